//! `tradewind-bench relay-delay`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tradewind_host::{Host, OsHost};

use crate::{
    network::Network,
    stats::Summary,
    threads::alone,
    ways::{Bare, Direct, Packets, Relayed, Way},
};

/// What is thrown away at the beginning of each block: caches and clocks of the CPU settle.
const WARM_UP: Duration = Duration::from_millis(200);
/// The last packets of a block may still be on their way.
const SETTLE: Duration = Duration::from_millis(100);
const TARGET_US: f64 = 150.0;

/// What one relay adds to a packet's delay at light load, beside bare sockets.
#[derive(Debug, Args)]
pub(crate) struct DelayArgs {
    /// How long to measure each way, in blocks of one second that take turns.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Packets per second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Bytes of each packet.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(8..=1_100))]
    payload: u16,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DelayArgs) -> anyhow::Result<()> {
    alone(measure(args))
}

async fn measure(args: &DelayArgs) -> anyhow::Result<()> {
    let host: &dyn Host = &OsHost;
    let packets = Packets {
        origin: host.now(),
        bytes: usize::from(args.payload),
    };
    let network = Network::start().await?;
    let mut bare = Bare::start(packets)?;
    let mut direct = Direct::start(packets).await?;
    let mut relayed = Relayed::start(packets, network.entrance()).await?;
    let mut results: [(usize, Vec<u64>); 3] = Default::default();
    for second in 0..args.seconds {
        if !args.json {
            eprint!("\rsecond {} of {}", second + 1, args.seconds);
        }
        let ways: [&mut dyn Way; 3] = [&mut bare, &mut direct, &mut relayed];
        for (way, (sent, delays)) in ways.into_iter().zip(&mut results) {
            let (block_sent, block_delays) = block(way, args.rate).await?;
            *sent += block_sent;
            delays.extend(block_delays);
        }
    }
    let [bare, direct, relayed] = results.map(|(sent, delays)| Summary::new(sent, delays));
    if args.json {
        let report = json!({
            "rate_per_s": args.rate,
            "payload_bytes": args.payload,
            "seconds": args.seconds,
            "bare_sockets": bare,
            "quic_without_relay": direct,
            "relay": relayed,
            "difference_us": {
                "p50": relayed.p50_us - bare.p50_us,
                "p99": relayed.p99_us - bare.p99_us,
            },
            "target_p50_difference_us": TARGET_US,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    show(args, &bare, &direct, &relayed);
    Ok(())
}

/// One second of one way; gives how many were sent and the delays of those that came.
async fn block(way: &mut dyn Way, rate: u32) -> anyhow::Result<(usize, Vec<u64>)> {
    let host: &dyn Host = &OsHost;
    paced(way, rate, WARM_UP).await?;
    host.sleep(SETTLE).await;
    way.take_delays();
    let sent = paced(way, rate, Duration::from_secs(1)).await?;
    host.sleep(SETTLE).await;
    Ok((sent, way.take_delays()))
}

async fn paced(way: &mut dyn Way, rate: u32, duration: Duration) -> anyhow::Result<usize> {
    let host: &dyn Host = &OsHost;
    let start = host.now();
    let count = (f64::from(rate) * duration.as_secs_f64()).round() as u32;
    for number in 0..count {
        host.sleep_until(start + Duration::from_secs(1) * number / rate)
            .await;
        way.send()?;
    }
    Ok(count as usize)
}

fn show(args: &DelayArgs, bare: &Summary, direct: &Summary, relayed: &Summary) {
    eprint!("\r");
    println!(
        "one-way delay, {} packets/s of {} bytes, {} s each, taking turns (microseconds)\n",
        args.rate, args.payload, args.seconds
    );
    println!(
        "{:<34}{:>7}{:>7}{:>8}{:>8}{:>9}  received",
        "", "min", "p50", "p90", "p99", "max"
    );
    for (name, way) in [
        ("bare sockets, bare forwarder", bare),
        ("QUIC, no relay between", direct),
        ("through the relay", relayed),
    ] {
        println!(
            "{name:<34}{:>7.0}{:>7.0}{:>8.0}{:>8.0}{:>9.0}  {} of {}",
            way.min_us, way.p50_us, way.p90_us, way.p99_us, way.max_us, way.received, way.sent
        );
    }
    println!(
        "\nthrough the relay over bare sockets: p50 {:+.0} us, p99 {:+.0} us (aimed at: p50 below {TARGET_US:.0} us)",
        relayed.p50_us - bare.p50_us,
        relayed.p99_us - bare.p99_us
    );
}
