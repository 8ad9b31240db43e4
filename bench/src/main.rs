//! `tradewind-bench`: load generators and benchmarks. They print; they judge nothing.

mod delay;
mod network;
mod stats;
mod ways;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Tradewind on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "tradewind-bench",
    version,
    after_help = "Build everything first: cargo build --release --workspace

Examples:
  tradewind-bench relay-delay
  tradewind-bench relay-delay --seconds 60 --json"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What one relay adds to a packet's delay at light load, beside bare sockets.
    RelayDelay(delay::DelayArgs),
    /// The bare forwarder that a relay is compared with.
    #[command(hide = true)]
    UdpForwarder {
        /// Where to send what comes.
        to: std::net::SocketAddr,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::RelayDelay(args) => delay::run(&args),
        Command::UdpForwarder { to } => ways::forward(to),
    };
    tradewind_service::exit::finish("tradewind-bench", result)
}
