//! `tradewind-bench sessions`: memory of a relay with many idle sessions.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use tradewind_host::{Host, OsHost};

use crate::{
    network::{Entrance, Network, Process, myself},
    quinn_relay::QuinnRelay,
    raw::{Arrivals, Meter, open_many},
    threads::alone,
};

/// What setting them up has left behind is given back meanwhile, and the directory is told.
const SETTLE: Duration = Duration::from_secs(10);
/// Sessions of one process.
const PER_PROCESS: u32 = 20_000;

/// Memory of a relay with many idle sessions, and what they cost its processor.
#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// How many sessions.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    sessions: u32,
    /// How long to let them be idle.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Seconds between two signs of life of a session.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=25))]
    alive_every: u32,
    /// Also measure so many idle connections at the least that can relay, on async quinn.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    beside: u32,
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
    /// Of one core, percent, with the signs of life.
    idle_cpu_percent: f64,
    alive_every_s: u32,
    /// Of a connection at the least that can relay.
    bytes_per_quinn_connection: Option<f64>,
}

/// Many sessions at a relay that runs already, in a process of its own.
#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    dir: PathBuf,
    edge: SocketAddr,
    from: usize,
    to: usize,
    alive_every: u32,
}

/// The whole of such a process.
pub(crate) fn idle(args: &IdleArgs) -> anyhow::Result<()> {
    alone(async {
        let entrance = Entrance::new(&args.dir, args.edge)
            .alive_every(Duration::from_secs(args.alive_every.into()));
        let _sessions = open_many(&entrance, "idle", args.from..args.to, None).await?;
        println!("ready");
        std::future::pending().await
    })
}

pub(crate) fn run(args: &SessionsArgs) -> anyhow::Result<()> {
    alone(measure(args))
}

async fn measure(args: &SessionsArgs) -> anyhow::Result<()> {
    let host: &dyn Host = &OsHost;
    let beside = match args.beside {
        0 => None,
        count => Some(quinn_connections(count).await?),
    };
    let most = (args.sessions + 100).to_string();
    let network = Network::start_with(&["--max-sessions", &most]).await?;
    let relay = network.relay();
    // So that what the first one brings with it is not counted.
    let _first = open_many(&network.entrance(), "first", 0..10, None).await?;
    host.sleep(SETTLE).await;
    let before = relay.memory()?;
    let meter = Meter::start(relay)?;
    let mut clients = Vec::new();
    let mut there = 0;
    while there < args.sessions {
        let next = args.sessions.min(there + PER_PROCESS);
        clients.push(start_idle(
            &network.entrance(),
            there..next,
            args.alive_every,
        )?);
        there = next;
        if !args.json {
            eprintln!("{there} sessions, {:.0} MiB", mebibytes(relay.memory()?));
        }
    }
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
        alive_every_s: args.alive_every,
        bytes_per_quinn_connection: beside,
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
         processor          {:.1} % of a core, with a sign of life from each every {} s",
        report.sessions,
        report.set_up_s,
        report.set_up_cpu_ms,
        mebibytes(after),
        mebibytes(before),
        report.bytes_per_session / 1024.0,
        report.idle_cpu_percent,
        report.alive_every_s,
    );
    if let Some(bytes) = beside {
        let kib = bytes / 1024.0;
        println!("minimal relay      {kib:.1} KiB for each connection of async quinn");
    }
    Ok(())
}

fn start_idle(
    entrance: &Entrance,
    numbers: std::ops::Range<u32>,
    alive_every: u32,
) -> anyhow::Result<Process> {
    let numbers = [numbers.start, numbers.end, alive_every];
    let mut command = myself()?;
    command
        .arg("idle-sessions")
        .arg(entrance.dir())
        .arg(entrance.edge().to_string())
        .args(numbers.map(|number| number.to_string()));
    Ok(Process::start(&mut command, "ready")?.0)
}

/// Bytes that the least that can relay has for each idle connection.
async fn quinn_connections(count: u32) -> anyhow::Result<f64> {
    let host: &dyn Host = &OsHost;
    let few = QuinnRelay::start(10, &Arrivals::new()).await?;
    host.sleep(SETTLE).await;
    let before = few.process().memory()?;
    let many = QuinnRelay::start(count as usize, &Arrivals::new()).await?;
    host.sleep(SETTLE).await;
    let after = many.process().memory()?;
    Ok(after.saturating_sub(before) as f64 / f64::from(count))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
