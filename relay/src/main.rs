//! The relay's service: parse, build, run, drain.

mod config;
mod dev;
mod health;
mod serve;
mod webhook_config;

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use config::ConfigArgs;
use tradewind_service::{config::to_toml, exit};

const PROGRAM: &str = "tradewind-relay";

/// Forwards packets between clients and other relays, the way the controller's plan says.
#[derive(Debug, Parser)]
#[command(
    name = "tradewind-relay",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  tradewind-relay --config /etc/tradewind/relay.toml
  tradewind-relay --dev --name tokyo-1 --region asia
  tradewind-relay check-config --config /etc/tradewind/relay.toml
  tradewind-relay health"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the relay; so does giving no command.
    Run(Box<RunArgs>),
    /// Checks a configuration, and shows what it comes to.
    CheckConfig(Box<ConfigArgs>),
    /// Asks a running relay whether it is ready: for containers.
    Health(HealthArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    dev: dev::DevArgs,
}

#[derive(Debug, Args)]
struct HealthArgs {
    /// The relay's admin address.
    #[arg(
        long,
        env = "TRADEWIND_RELAY_ADMIN",
        default_value = "127.0.0.1:7445",
        value_name = "IP:PORT"
    )]
    admin: SocketAddr,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run(cli.run),
        Some(Command::Run(args)) => run(*args),
        Some(Command::CheckConfig(args)) => check_config(&args),
        Some(Command::Health(args)) => block_on(health::check(args.admin)),
    };
    exit::finish(PROGRAM, result)
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    if args.dev.dev {
        return block_on(dev::run(args.config, args.dev));
    }
    let config = args.config.load()?;
    config.check()?;
    block_on(serve::run(config, args.config))
}

fn check_config(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = args.load()?;
    config.check()?;
    print!("{}", to_toml(&config)?);
    Ok(())
}

/// The control task and the admin HTTP need one thread; shards have their own.
fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(future)
}
