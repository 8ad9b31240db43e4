//! `tradewind-bench slow-reader`: what one receiver that does not read costs the others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use clap::Args;
use serde::Serialize;
use tradewind_client::Class;
use tradewind_host::{Host, OsHost};

use crate::{
    network::Network,
    raw::{Arrivals, RawSession, Receivers, payload, receivers},
    stats::Summary,
    threads::alone,
};

/// Nothing is sent between two windows, and whoever did not read catches up.
const BETWEEN: Duration = Duration::from_millis(1_700);
/// What is on its way at the end of a window.
const SETTLE: Duration = Duration::from_millis(300);
/// Datagrams that are sent in one go.
const AT_ONCE: usize = 25;
const TICK: Duration = Duration::from_millis(1);
/// The slow one gets so many datagrams between the others' in one go and in the next, so that there is
/// something to drop.
const SLOW_PER_GO: usize = 5;
const DROPS: &str = "tradewind_relay_dropped_packets_total";

/// One of many receivers reads slowly: the delay of the others, with and without it.
///
/// Windows in which it reads and windows in which it does not take turns, over the same connections and
/// with the same packets sent, two of each in the order: reads, does not, does not, reads. So whatever
/// else goes on on this machine, and changes slowly, is in both.
#[derive(Debug, Args)]
pub(crate) struct SlowReaderArgs {
    /// Receivers, the slow one included.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=5_000))]
    receivers: u32,
    /// Pairs of windows.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    pairs: u32,
    /// How long each window is.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=60))]
    seconds: u32,
    /// Packets to each receiver in a second; half are datagrams (the slow one gets many more of these),
    /// half frames of messages.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=100))]
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
    pairs: u32,
    /// Of the others while the one reads.
    without: Side,
    /// Of the others while it does not.
    with: Side,
    /// With to without: the 99th percentiles of all delays, …
    pooled_p99_ratio: f64,
    /// … the medians of the windows' 99th percentiles, …
    median_p99_ratio: f64,
    /// … and the ratio within each pair of windows: median and quartiles.
    pair_ratios: Quartiles,
    /// Of what was sent to the slow one, what came in the end.
    slow_received: usize,
    slow_sent: usize,
}

#[derive(Debug, Serialize)]
struct Side {
    delay: Summary,
    /// Of the windows' 99th percentiles, microseconds.
    window_p99s: Quartiles,
    /// Packets that the relay dropped.
    drops: f64,
}

#[derive(Debug, Serialize)]
struct Quartiles {
    lower: f64,
    median: f64,
    upper: f64,
}

impl Quartiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let last = values.len().saturating_sub(1) as f64;
        let at = |share: f64| values.get((last * share).round() as usize).copied();
        let at = |share| at(share).unwrap_or(f64::NAN);
        Self {
            lower: at(0.25),
            median: at(0.5),
            upper: at(0.75),
        }
    }
}

pub(crate) fn run(args: &SlowReaderArgs) -> anyhow::Result<()> {
    alone(measure(args))
}

async fn measure(args: &SlowReaderArgs) -> anyhow::Result<()> {
    let host: &dyn Host = &OsHost;
    let mut scene = Scene::start(args).await?;
    let mut windows: [Vec<Vec<u64>>; 2] = Default::default();
    let mut drops = [0.0; 2];
    // Streams are opened, and limits of paths found out.
    scene.window(args, true).await?;
    scene.slow_sent = 0;
    let before = scene.slow.count();
    for nth in 0..2 * args.pairs {
        let reads = matches!(nth % 4, 0 | 3);
        if !args.json {
            eprint!("\rwindow {} of {} ", nth + 1, 2 * args.pairs);
        }
        let dropped = scene.network.relay_metric(DROPS, "").await?;
        let side = usize::from(!reads);
        windows[side].push(scene.window(args, reads).await?);
        host.sleep(BETWEEN).await;
        drops[side] += scene.network.relay_metric(DROPS, "").await? - dropped;
    }
    let sent = (args.pairs * args.seconds * args.rate) as usize * scene.handles.len();
    let p99s = |windows: &[Vec<u64>]| -> Vec<f64> {
        let p99 = |window: &Vec<u64>| Summary::new(window.len(), window.clone()).p99_us;
        windows.iter().map(p99).collect()
    };
    let all = windows.each_ref().map(|windows| p99s(windows));
    let pairs = all[0].iter().zip(&all[1]);
    let pair_ratios = Quartiles::of(pairs.map(|(without, with)| with / without).collect());
    let [without_p99s, with_p99s] = all;
    let [without, with] = windows.map(|windows| Summary::new(sent, windows.concat()));
    let side = |delay, p99s, drops| Side {
        delay,
        window_p99s: Quartiles::of(p99s),
        drops,
    };
    let without = side(without, without_p99s, drops[0]);
    let with = side(with, with_p99s, drops[1]);
    let report = Report {
        receivers: args.receivers,
        pairs: args.pairs,
        pooled_p99_ratio: with.delay.p99_us / without.delay.p99_us,
        median_p99_ratio: with.window_p99s.median / without.window_p99s.median,
        pair_ratios,
        without,
        with,
        slow_received: scene.slow.count() - before,
        slow_sent: scene.slow_sent,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        eprint!("\r");
        report.print(args);
    }
    Ok(())
}

impl Report {
    fn print(&self, args: &SlowReaderArgs) {
        println!(
            "{} receivers, {} packets/s to each; delay of all but one (microseconds)\n\n\
             {:<16}{:>8}{:>8}{:>9}  {:<24}{:<20}drops",
            self.receivers, args.rate, "", "p50", "p99", "max", "p99 of a window", "received"
        );
        for (name, side) in [("all read", &self.without), ("one does not", &self.with)] {
            let Side {
                delay,
                window_p99s: p99s,
                drops,
            } = side;
            let window = format!(
                "{:.0} ({:.0} to {:.0})",
                p99s.median, p99s.lower, p99s.upper
            );
            let received = format!("{} of {}", delay.received, delay.sent);
            println!(
                "{name:<16}{:>8.0}{:>8.0}{:>9.0}  {window:<24}{received:<20}{drops:.0}",
                delay.p50_us, delay.p99_us, delay.max_us,
            );
        }
        println!(
            "\np99, with to without (aimed at: at most 1.1)\n\
             all delays                  {:.3}\n\
             median of the windows'      {:.3}\n\
             within a pair of windows    {:.3} (half of them {:.3} to {:.3})\n\
             the slow one got {} of {}",
            self.pooled_p99_ratio,
            self.median_p99_ratio,
            self.pair_ratios.median,
            self.pair_ratios.lower,
            self.pair_ratios.upper,
            self.slow_received,
            self.slow_sent,
        );
    }
}

/// A sender, a slow receiver and the others.
struct Scene {
    network: Network,
    sender: RawSession,
    handles: Vec<u32>,
    slow_handle: u32,
    others: Arc<Arrivals>,
    slow: Arc<Arrivals>,
    slow_sent: usize,
    paused: Arc<AtomicBool>,
    body: Vec<u8>,
    _receivers: [Receivers; 2],
}

impl Scene {
    async fn start(args: &SlowReaderArgs) -> anyhow::Result<Self> {
        let network = Network::start().await?;
        let entrance = network.entrance();
        let (others, slow) = (Arrivals::new(), Arrivals::new());
        let (never, paused) = (Arc::default(), Arc::default());
        let count = args.receivers as usize - 1;
        let receivers = [
            receivers(&entrance, "other", count, None, &others, &never)?,
            receivers(&entrance, "slow", 1, None, &slow, &paused)?,
        ];
        let mut sender = RawSession::open(&entrance, "sender").await?;
        let slow_handle = sender.handle("slow-0").await?;
        let mut handles = Vec::new();
        for n in 0..count {
            handles.push(sender.handle(&format!("other-{n}")).await?);
        }
        Ok(Self {
            network,
            sender,
            handles,
            slow_handle,
            others,
            slow,
            slow_sent: 0,
            paused,
            body: payload(usize::from(args.payload)),
            _receivers: receivers,
        })
    }

    /// Sends for a while; gives the delays of the others, nanoseconds.
    async fn window(&mut self, args: &SlowReaderArgs, reads: bool) -> anyhow::Result<Vec<u64>> {
        let host: &dyn Host = &OsHost;
        self.paused.store(!reads, Relaxed);
        let begun = host.now();
        for round in 0..args.seconds * args.rate {
            host.sleep_until(begun + Duration::from_secs(1) * round / args.rate)
                .await;
            if round % 2 == 0 {
                self.send_datagrams().await?;
            } else {
                self.send_frames().await?;
            }
        }
        host.sleep(SETTLE).await;
        self.paused.store(false, Relaxed);
        Ok(self.others.take_delays())
    }

    async fn send_datagrams(&mut self) -> anyhow::Result<()> {
        let host: &dyn Host = &OsHost;
        for some in self.handles.chunks(AT_ONCE) {
            for _ in 0..SLOW_PER_GO {
                self.slow.stamp(&mut self.body);
                let (to, body) = (self.slow_handle, &self.body);
                self.sender.send_media(to, Class::Audio, body)?;
            }
            self.slow_sent += SLOW_PER_GO;
            for &handle in some {
                self.others.stamp(&mut self.body);
                self.sender.send_media(handle, Class::Audio, &self.body)?;
            }
            // The kernel's buffers are small here, and what they lose no relay can help.
            host.sleep(TICK).await;
        }
        Ok(())
    }

    async fn send_frames(&mut self) -> anyhow::Result<()> {
        let mut frames = BytesMut::new();
        self.slow.stamp(&mut self.body);
        RawSession::frame(&mut frames, self.slow_handle, &self.body);
        self.slow_sent += 1;
        for &handle in &self.handles {
            self.others.stamp(&mut self.body);
            RawSession::frame(&mut frames, handle, &self.body);
        }
        self.sender.send_frames(frames).await
    }
}
