//! Compiles the schemas to Rust with `protox`: no system `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    compile("tradewind/v1", "schema")?;
    // For the tests of how two versions get on: see `schema/previous/README.md`.
    compile("tradewind/previous", "schema/previous")
}

fn compile(package: &str, folder: &str) -> Result<(), Box<dyn std::error::Error>> {
    let files = ["session", "relay", "control"].map(|name| format!("{package}/{name}.proto"));
    let compiled = protox::compile(files, [folder])?;
    prost_build::Config::new().compile_fds(compiled)?;
    Ok(())
}
