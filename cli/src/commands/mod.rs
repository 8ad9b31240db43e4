//! What people type besides `lab`: sending and receiving, looking at the network, planning one,
//! making tokens and certificates.

mod ca;
mod connect;
mod doctor;
mod http;
mod operate;
mod ping;
mod plan;
mod plans;
mod policy;
mod recv;
mod relays;
mod revoke;
mod rollout;
mod routes;
mod send;
mod show;
mod token;
mod watch;

use std::future::Future;

use anyhow::Context as _;
use clap::Subcommand;

/// The commands, to be put beside `lab`.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Sends a message and tells its end-to-end outcome.
    Send(send::SendArgs),
    /// Receives messages and shows them.
    Recv(recv::RecvArgs),
    /// Watches users: shows whether each is online, and every change.
    Watch(watch::WatchArgs),
    /// Measures the whole way to a user or relay and back, hop by hop.
    Ping(ping::PingArgs),
    /// Shows which way packets go between two relays, and why.
    Routes(routes::RoutesArgs),
    /// Shows the relays of the network.
    Relays(relays::RelaysArgs),
    /// Tells what a network of relays at the places of a matrix would save, and what to build.
    Plan(plan::PlanArgs),
    /// Shows the plans that were made: when, why, by whom, and what was stamped.
    Plans(plans::PlansArgs),
    /// Shows one link now, and over the last hour and day.
    Link(plans::LinkArgs),
    /// Shows what needs somebody's eyes, what is stamped, and what the plan saves.
    Status(plans::StatusArgs),
    /// The operator's policy: prices, capacities, transit bans, pins, busy hours, modes.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Makes packets take a certain way, whatever it costs.
    Pin(policy::PinArgs),
    /// Ends a pin.
    Unpin(policy::UnpinArgs),
    /// Takes a relay out of all paths at once; its sessions stay.
    Quarantine(operate::QuarantineArgs),
    /// Ends a quarantine.
    Unquarantine(operate::UnquarantineArgs),
    /// Lets a relay drain, then refuses its name.
    Decommission(operate::DecommissionArgs),
    /// What plans are stamped: shares, rollback, hold, release.
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// Makes client tokens and the key that signs them, and revokes them.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// The deployment's certificate authority.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Looks for what keeps this machine from using the network.
    Doctor(doctor::DoctorArgs),
}

/// Runs a command to its end.
///
/// # Errors
/// What went wrong, for people; [`tradewind_service::exit`] has the exit codes.
pub(crate) fn run(command: NetworkCommand) -> anyhow::Result<()> {
    // The outcome is what people want to read; warnings of the libraries below are for debugging.
    tradewind_service::logs::init("error,tradewind=warn,tradewind_client=warn")?;
    match command {
        NetworkCommand::Send(args) => block_on(send::run(args)),
        NetworkCommand::Recv(args) => block_on(recv::run(args)),
        NetworkCommand::Watch(args) => block_on(watch::run(args)),
        NetworkCommand::Ping(args) => block_on(ping::run(args)),
        NetworkCommand::Routes(args) => block_on(routes::run(args)),
        NetworkCommand::Relays(args) => block_on(relays::run(args)),
        NetworkCommand::Plan(args) => plan::run(&args),
        NetworkCommand::Plans(args) => block_on(plans::plans(args)),
        NetworkCommand::Link(args) => block_on(plans::link(args)),
        NetworkCommand::Status(args) => block_on(plans::status(args)),
        NetworkCommand::Policy(command) => block_on(policy::run(command)),
        NetworkCommand::Pin(args) => block_on(policy::pin(args)),
        NetworkCommand::Unpin(args) => block_on(policy::unpin(args)),
        NetworkCommand::Quarantine(args) => block_on(operate::quarantine(args)),
        NetworkCommand::Unquarantine(args) => block_on(operate::unquarantine(args)),
        NetworkCommand::Decommission(args) => block_on(operate::decommission(args)),
        NetworkCommand::Rollout(command) => block_on(rollout::run(command)),
        NetworkCommand::Token(command) => token::run(command),
        NetworkCommand::Ca(command) => ca::run(command),
        NetworkCommand::Doctor(args) => block_on(doctor::run(args)),
    }
}

fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(future)
}
