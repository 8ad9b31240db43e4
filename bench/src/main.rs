//! `tradewind-bench`: load generators and benchmarks. They print; they judge nothing.

mod congestion;
mod controller;
mod data_plane;
mod day;
mod delay;
mod fan_out;
mod messages;
mod network;
mod planner;
mod probing;
mod quinn_relay;
mod raw;
mod sessions;
mod slow_reader;
mod stats;
mod threads;
mod ways;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use data_plane::{
    between::{self, UdpMode},
    ends::{self, EndArgs},
};
use threads::alone;

/// Measures Tradewind on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "tradewind-bench",
    version,
    after_help = "Build everything first: cargo build --release --workspace

Examples:
  tradewind-bench data-plane
  tradewind-bench relay-delay
  tradewind-bench relay-delay --seconds 60 --json
  tradewind-bench planner --relays 100,1000
  tradewind-bench controller --relays 100,1000
  tradewind-bench probing
  tradewind-bench day --relays 20
  tradewind-bench congestion
  tradewind-bench messages
  tradewind-bench fan-out --receivers 100,500
  tradewind-bench slow-reader
  tradewind-bench sessions --sessions 20000"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What packets cost in a relay, beside a plain UDP forwarder and a minimal relay on quinn.
    DataPlane(data_plane::DataPlaneArgs),
    /// What one relay adds to a packet's delay at light load, beside bare sockets.
    RelayDelay(delay::DelayArgs),
    /// Time and memory of a full plan and of steps, by the number of relays.
    Planner(planner::PlannerArgs),
    /// What the controller takes for reports, planning and plans, by the number of relays.
    Controller(controller::ControllerArgs),
    /// A day of a network whose delays swing, simulated: how often plans change, and how long ways
    /// are not the best.
    Day(day::DayArgs),
    /// What the links of one relay cost while nothing goes over them: processor and bits per second.
    Probing(probing::ProbingArgs),
    /// The links' congestion control beside CUBIC and BBR, on an emulated path in virtual time.
    Congestion(congestion::CongestionArgs),
    /// Packets from one sender to one receiver through one relay: how many, and what each costs.
    Messages(messages::MessagesArgs),
    /// Packets from one sender to many receivers at one relay: how many, and what each costs.
    FanOut(fan_out::FanOutArgs),
    /// What one receiver that reads slowly costs the others.
    SlowReader(slow_reader::SlowReaderArgs),
    /// Memory of a relay with many idle sessions.
    Sessions(sessions::SessionsArgs),
    /// Many sessions that do nothing.
    #[command(hide = true)]
    IdleSessions(sessions::IdleArgs),
    /// The bare forwarder that a relay is compared with.
    #[command(hide = true)]
    UdpForwarder {
        /// How it receives and sends.
        mode: UdpMode,
    },
    /// The minimal relay that a relay is compared with.
    #[command(hide = true)]
    QuinnRelay {
        /// Directory of a development CA.
        dir: std::path::PathBuf,
    },
    /// Sessions that send when they are told to.
    #[command(hide = true)]
    Sender(EndArgs),
    /// Sessions that receive and count.
    #[command(hide = true)]
    Receiver(EndArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::RelayDelay(args) => delay::run(&args),
        Command::Planner(args) => planner::run(&args),
        Command::Controller(args) => controller::run(&args),
        Command::Day(args) => day::run(&args),
        Command::Probing(args) => probing::run(&args),
        Command::Congestion(args) => congestion::run(&args),
        Command::Messages(args) => messages::run(&args),
        Command::FanOut(args) => fan_out::run(&args),
        Command::SlowReader(args) => slow_reader::run(&args),
        Command::Sessions(args) => sessions::run(&args),
        Command::IdleSessions(args) => sessions::idle(&args),
        Command::DataPlane(args) => data_plane::run(&args),
        Command::UdpForwarder { mode } => alone(between::udp_forwarder(mode)),
        Command::QuinnRelay { dir } => alone(between::quinn_relay(&dir)),
        Command::Sender(args) => alone(ends::sender(&args)),
        Command::Receiver(args) => alone(ends::receiver(&args)),
    };
    tradewind_service::exit::finish("tradewind-bench", result)
}
