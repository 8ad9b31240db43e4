//! Compiles the schemas to Rust with `protox`: no system `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema");
    let files = protox::compile(
        [
            "tradewind/v1/session.proto",
            "tradewind/v1/relay.proto",
            "tradewind/v1/control.proto",
        ],
        ["schema"],
    )?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
