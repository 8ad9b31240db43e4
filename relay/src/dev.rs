//! `tradewind-relay --dev`: a relay of a throw-away network on this machine.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use tradewind_service::{config::Secret, exit::UsageError};
use tradewind_trust::{Roots, cert_name};

use crate::{
    config::{Config, ConfigArgs},
    serve::{Service, enrol_anywhere},
};

const DEV_DIR: &str = ".tradewind-dev";
const DEV_CONTROLLER: &str = "127.0.0.1:7400";

/// The throw-away network that `tradewind-controller --dev` has begun.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Development network")]
pub(crate) struct DevArgs {
    /// Join the network that `tradewind-controller --dev` has set up: loopback, free ports, enrols
    /// by itself.
    #[arg(long, env = "TRADEWIND_RELAY_DEV", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) dev: bool,
    /// Where that network keeps its keys.
    #[arg(long, env = "TRADEWIND_DEV_DIR", default_value = DEV_DIR, value_name = "DIR")]
    dev_dir: PathBuf,
}

/// Runs a relay of the development network.
pub(crate) async fn run(mut args: ConfigArgs, dev: DevArgs) -> anyhow::Result<()> {
    let dir = &dev.dev_dir;
    let mut config = defaults(dir);
    args.apply(&mut config);
    if config.name.is_empty() {
        return Err(
            UsageError::new("a relay needs a name: add --name, like --name tokyo-1").into(),
        );
    }
    let home = dir.join("relays").join(cert_name(&config.name));
    config.certificate = home.join("relay.pem");
    config.key = home.join("relay.key");
    config.state_file = home.join("plan.bin");
    config.check()?;
    enrol_if_needed(&config, dir).await?;
    // There is no file; SIGHUP reads the certificates only.
    args.config = None;
    let service = Service::start(config.clone(), args).await?;
    say_what_next(&service, &config, dir);
    service.until_stopped().await
}

fn defaults(dir: &Path) -> Config {
    let free_port = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    Config {
        region: "dev".to_owned(),
        controllers: vec![DEV_CONTROLLER.to_owned()],
        client_listen: free_port,
        link_listen: free_port,
        admin: free_port,
        ca: dir.join("ca.pem"),
        log: "warn,tradewind_relay=info".to_owned(),
        ..Config::default()
    }
}

async fn enrol_if_needed(config: &Config, dir: &Path) -> anyhow::Result<()> {
    let token_file = dir.join("enrol-token");
    if !config.ca.exists() || !token_file.exists() {
        return Err(UsageError::new(format!(
            "there is no development network in {}: start `tradewind-controller --dev` in this directory first, or name it with --dev-dir",
            dir.display()
        ))
        .into());
    }
    if is_newer(&config.certificate, &config.ca) {
        return Ok(());
    }
    let roots = Roots::load(&config.ca)?;
    let token = Secret::resolve("enrol_token", None, Some(&token_file))?
        .context("the enrolment token is empty")?;
    let identity = enrol_anywhere(config, &token, &roots).await?;
    // One of an earlier authority is worth nothing.
    identity.save(&config.certificate, &config.key, true)?;
    Ok(())
}

/// Whether the certificate is there and was made after the authority.
fn is_newer(certificate: &Path, authority: &Path) -> bool {
    let made = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
    match (made(certificate), made(authority)) {
        (Ok(certificate), Ok(authority)) => certificate >= authority,
        _ => false,
    }
}

fn say_what_next(service: &Service, config: &Config, dir: &Path) {
    let edge = service.relay.client_address();
    let dev_dir = if dir == Path::new(DEV_DIR) {
        String::new()
    } else {
        format!(" --dev-dir {}", dir.display())
    };
    println!(
        "relay {name} runs ({region})
  clients  {edge}
  links    {links}
  admin    http://{admin}

Next, in other terminals:
  tradewind recv --dev{dev_dir} --as bob --edge {edge}
  tradewind send --dev{dev_dir} --as alice --edge {edge} bob 'hello'
  tradewind relays --dev{dev_dir}
Ctrl-C drains it.",
        name = config.name,
        region = config.region,
        links = service.relay.link_address(),
        admin = service.admin,
    );
}
