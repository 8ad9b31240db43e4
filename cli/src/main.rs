//! `tradewind`: the one command people type.

// Doc comments of arguments are their help texts, where markup would show.
#![allow(rustdoc::bare_urls)]

mod commands;
mod lab;
mod matrix_args;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Carries real-time traffic over the better path between places.
#[derive(Debug, Parser)]
#[command(name = "tradewind", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows a whole network at work on this machine, on real round-trip times.
    Lab(lab::LabArgs),
    #[command(flatten)]
    Network(commands::NetworkCommand),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Lab(args) => lab::run(&args),
        Command::Network(command) => commands::run(command),
    };
    tradewind_service::exit::finish("tradewind", result)
}
