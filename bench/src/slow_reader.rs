//! `tradewind-bench slow-reader`: what one receiver that does not read costs the others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::BytesMut;
use clap::Args;
use serde::Serialize;
use tradewind_client::Class;
use tradewind_host::{Host, OsHost};

use crate::{
    network::Network,
    raw::{Arrivals, RawSession, payload, receivers},
    stats::Summary,
};

/// Who did not read has this long to catch up.
const SETTLE: Duration = Duration::from_secs(3);
/// Datagrams that are sent in one go.
const AT_ONCE: usize = 50;
const TICK: Duration = Duration::from_millis(1);
/// The slow one gets so many times what each other one gets, so that there is something to drop.
const SLOW_FACTOR: usize = 20;
const DROPS: &str = "tradewind_relay_dropped_packets_total";

/// One of many receivers reads slowly: the delay of the others, with and without it.
#[derive(Debug, Args)]
pub(crate) struct SlowReaderArgs {
    /// Receivers, the slow one included.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=5_000))]
    receivers: u32,
    /// Times that it reads, and does not, in turn.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    blocks: u32,
    /// How long each time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=60))]
    seconds: u32,
    /// Packets to each receiver in a second; half are datagrams (the slow one gets twenty times as many
    /// of these), half frames of messages.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=100))]
    rate: u32,
    /// Bytes of each packet.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u16).range(8..=1_000))]
    payload: u16,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    receivers: u32,
    /// Of the others while the one reads.
    without: Summary,
    /// Of the others while it does not.
    with: Summary,
    /// With to without; the median of the blocks' 99th percentiles, so that one block in which this
    /// machine did something else does not decide.
    p99_ratio: f64,
    /// Packets that the relay dropped while all read, and while one did not.
    drops_without: f64,
    drops_with: f64,
    /// Of what was sent to the slow one, what came in the end.
    slow_received: usize,
    slow_sent: usize,
}

pub(crate) fn run(args: &SlowReaderArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(measure(args))
}

async fn measure(args: &SlowReaderArgs) -> anyhow::Result<()> {
    let host: &dyn Host = &OsHost;
    let network = Network::start().await?;
    let entrance = network.entrance();
    let (others, slow) = (Arrivals::new(), Arrivals::new());
    let (never, paused) = (Arc::default(), Arc::new(AtomicBool::new(false)));
    let count = args.receivers as usize - 1;
    receivers(&entrance, "other", count, &others, &never)?;
    receivers(&entrance, "slow", 1, &slow, &paused)?;
    let mut sender = RawSession::open(&entrance, "sender").await?;
    let slow_handle = sender.handle("slow-0").await?;
    let mut handles = Vec::new();
    for n in 0..count {
        handles.push(sender.handle(&format!("other-{n}")).await?);
    }
    let mut body = payload(usize::from(args.payload));
    let mut delays: [Vec<u64>; 2] = Default::default();
    let mut p99s: [Vec<f64>; 2] = Default::default();
    let mut drops = [0.0; 2];
    let mut slow_sent = 0;
    // A first block that does not count: streams are opened, limits of paths found out.
    for block in 0..=2 * args.blocks {
        let reads = block % 2 == 0;
        paused.store(!reads, Relaxed);
        if !args.json {
            eprint!("\rblock {block} of {} ", 2 * args.blocks);
        }
        let dropped = network.relay_metric(DROPS, "").await?;
        let begun = host.now();
        for round in 0..args.seconds * args.rate {
            host.sleep_until(begun + Duration::from_secs(1) * round / args.rate)
                .await;
            slow_sent += if round % 2 == 0 { SLOW_FACTOR } else { 1 };
            if round % 2 == 0 {
                for _ in 0..SLOW_FACTOR {
                    slow.stamp(&mut body);
                    sender.send_media(slow_handle, Class::Audio, &body)?;
                }
                for some in handles.chunks(AT_ONCE) {
                    for &handle in some {
                        others.stamp(&mut body);
                        sender.send_media(handle, Class::Audio, &body)?;
                    }
                    // The kernel's buffers are small here, and what they lose no relay can help.
                    host.sleep(TICK).await;
                }
            } else {
                let mut frames = BytesMut::new();
                slow.stamp(&mut body);
                RawSession::frame(&mut frames, slow_handle, &body);
                for &handle in &handles {
                    others.stamp(&mut body);
                    RawSession::frame(&mut frames, handle, &body);
                }
                sender.send_frames(frames).await?;
            }
        }
        host.sleep(Duration::from_millis(300)).await;
        let came = others.take_delays();
        if block > 0 {
            let share = Summary::new(came.len(), came.clone());
            p99s[usize::from(!reads)].push(share.p99_us);
            delays[usize::from(!reads)].extend(came);
        }
        if !reads {
            // What was late for it is dropped when it reads again.
            paused.store(false, Relaxed);
            host.sleep(SETTLE).await;
        }
        drops[usize::from(!reads)] += network.relay_metric(DROPS, "").await? - dropped;
    }
    let sent = (args.blocks * args.seconds * args.rate) as usize * count;
    let [without, with] = delays.map(|delays| Summary::new(sent, delays));
    let [without_p99s, with_p99s] = p99s;
    let report = Report {
        receivers: args.receivers,
        p99_ratio: median(with_p99s) / median(without_p99s),
        without,
        with,
        drops_without: drops[0],
        drops_with: drops[1],
        slow_received: slow.count(),
        slow_sent,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    eprint!("\r");
    println!(
        "{} receivers, {} packets/s to each; delay of all but one (microseconds)\n\n\
         {:<26}{:>9}{:>9}{:>9}  {:<20}drops",
        args.receivers, args.rate, "", "p50", "p99", "max", "received"
    );
    for (name, way, drops) in [
        ("all read", &report.without, report.drops_without),
        ("one does not", &report.with, report.drops_with),
    ] {
        println!(
            "{name:<26}{:>9.0}{:>9.0}{:>9.0}  {:<20}{drops:.0}",
            way.p50_us,
            way.p99_us,
            way.max_us,
            format!("{} of {}", way.received, way.sent),
        );
    }
    println!(
        "\np99 of a block, with to without: {:.3} (aimed at: at most 1.1); the slow one got {} of {}",
        report.p99_ratio, report.slow_received, report.slow_sent
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
