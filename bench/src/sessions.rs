//! `tradewind-bench sessions`: memory of a relay with many idle sessions.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use tradewind_host::{Host, OsHost};

use crate::{
    network::Network,
    raw::{Meter, open_many},
};

/// What setting them up has left behind is given back meanwhile, and the directory is told.
const SETTLE: Duration = Duration::from_secs(5);

/// Memory of a relay with many idle sessions, and what they cost its processor.
#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// How many sessions.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    sessions: u32,
    /// How long to let them be idle.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    sessions: u32,
    set_up_s: f64,
    /// Of the relay's processor, for each session set up.
    set_up_cpu_ms: f64,
    memory_before_bytes: u64,
    memory_after_bytes: u64,
    /// QUIC's and TLS's state and the directory's entry included.
    bytes_per_session: f64,
    /// Of one core, percent, with a sign of life every 10 s from each.
    idle_cpu_percent: f64,
}

pub(crate) fn run(args: &SessionsArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(measure(args))
}

async fn measure(args: &SessionsArgs) -> anyhow::Result<()> {
    let host: &dyn Host = &OsHost;
    let most = (args.sessions + 100).to_string();
    let network = Network::start_with(&["--max-sessions", &most]).await?;
    let relay = network.relay();
    // So that what the first one brings with it is not counted.
    let _first = open_many(&network.entrance(), "first", 10).await?;
    host.sleep(SETTLE).await;
    let before = relay.memory()?;
    let meter = Meter::start(relay)?;
    let _sessions = open_many(&network.entrance(), "idle", args.sessions as usize).await?;
    let (set_up_s, set_up_cpu) = meter.stop(relay)?;
    host.sleep(SETTLE).await;
    let meter = Meter::start(relay)?;
    host.sleep(Duration::from_secs(args.seconds.into())).await;
    let (seconds, cpu) = meter.stop(relay)?;
    let after = relay.memory()?;
    let there = network.relay_metric("tradewind_relay_sessions", "").await?;
    anyhow::ensure!(
        there >= f64::from(args.sessions),
        "only {there} sessions are still there"
    );
    let report = Report {
        sessions: args.sessions,
        set_up_s,
        set_up_cpu_ms: set_up_cpu * 1e3 / f64::from(args.sessions),
        memory_before_bytes: before,
        memory_after_bytes: after,
        bytes_per_session: after.saturating_sub(before) as f64 / f64::from(args.sessions),
        idle_cpu_percent: cpu / seconds * 100.0,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!(
        "{} idle sessions at one relay\n\n\
         set up             {:.1} s, {:.2} ms of the relay's processor each\n\
         memory             {:.0} MiB, before {:.0} MiB\n\
         for each session   {:.1} KiB (QUIC, TLS, our own state and the directory)\n\
         processor          {:.1} % of a core",
        report.sessions,
        report.set_up_s,
        report.set_up_cpu_ms,
        mebibytes(after),
        mebibytes(before),
        report.bytes_per_session / 1024.0,
        report.idle_cpu_percent,
    );
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
