//! `tradewind-bench fan-out`: one sender to many receivers at one relay.

use std::{
    sync::{Arc, atomic::AtomicBool},
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
    raw::{Arrivals, Meter, RawSession, payload, receivers},
    stats::Summary,
};

/// A round is given up when it has not come to all within this.
const ROUND_WITHIN: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(1);

/// One sender to many receivers at one relay: deliveries per second and what each costs.
#[derive(Debug, Args)]
pub(crate) struct FanOutArgs {
    /// How many receivers; several with commas.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500, 10_000], value_parser = clap::value_parser!(u32).range(1..=15_000))]
    receivers: Vec<u32>,
    /// How long to measure each row.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Deliveries per second of the paced rows.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    rate: u32,
    /// Bytes of each packet.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(8..=1_000))]
    payload: u16,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    receivers: u32,
    way: Way,
    paced: bool,
    deliveries_per_s: f64,
    cpu_s_per_million: f64,
    delay: Summary,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Datagrams,
    Frames,
}

pub(crate) fn run(args: &FanOutArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(measure(args))
}

async fn measure(args: &FanOutArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for &count in &args.receivers {
        if !args.json {
            eprintln!("1 to {count}: sessions are set up");
        }
        let network = Network::start_with(&["--max-sessions", "20000"]).await?;
        let mut scene = Scene::start(&network, count, usize::from(args.payload)).await?;
        for way in [Way::Datagrams, Way::Frames] {
            for paced in [true, false] {
                rows.push(scene.measure(args, way, paced).await?);
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "one sender to many receivers, {} bytes; CPU of the relay, seconds per million deliveries\n\n\
         {:>10}  {:<18}{:>14}{:>9}{:>10}{:>11}  delivered",
        args.payload, "receivers", "", "deliveries/s", "s/M", "p50 us", "p99 us"
    );
    for row in rows {
        println!(
            "{:>10}  {:<18}{:>14.0}{:>9.2}{:>10.0}{:>11.0}  {} of {}",
            row.receivers,
            format!(
                "{:?}, {}",
                row.way,
                if row.paced { "paced" } else { "most" }
            ),
            row.deliveries_per_s,
            row.cpu_s_per_million,
            row.delay.p50_us,
            row.delay.p99_us,
            row.delay.received,
            row.delay.sent,
        );
    }
    Ok(())
}

/// A sender and its receivers.
struct Scene<'a> {
    network: &'a Network,
    sender: RawSession,
    handles: Vec<u32>,
    arrivals: Arc<Arrivals>,
    payload: Vec<u8>,
}

impl<'a> Scene<'a> {
    async fn start(network: &'a Network, count: u32, bytes: usize) -> anyhow::Result<Self> {
        let entrance = network.entrance();
        let arrivals = Arrivals::new();
        let never = Arc::new(AtomicBool::new(false));
        receivers(&entrance, "receiver", count as usize, &arrivals, &never)?;
        let mut sender = RawSession::open(&entrance, "sender").await?;
        let mut handles = Vec::new();
        for n in 0..count {
            handles.push(sender.handle(&format!("receiver-{n}")).await?);
        }
        Ok(Self {
            network,
            sender,
            handles,
            arrivals,
            payload: payload(bytes),
        })
    }

    async fn measure(&mut self, args: &FanOutArgs, way: Way, paced: bool) -> anyhow::Result<Row> {
        let host: &dyn Host = &OsHost;
        let receivers = self.handles.len();
        // Streams are opened and limits of paths found out meanwhile.
        for _ in 0..2 {
            self.round(way).await?;
            self.wait_for(self.arrivals.count() + receivers).await;
        }
        self.arrivals.take_delays();
        let meter = Meter::start(self.network.relay())?;
        let begun = host.now();
        let before = self.arrivals.count();
        let every = Duration::from_secs_f64(receivers as f64 / f64::from(args.rate));
        let mut rounds = 0;
        loop {
            if paced {
                host.sleep_until(begun + every * rounds).await;
            } else {
                // Two rounds are under way.
                let last_but_one = receivers * rounds.saturating_sub(1) as usize;
                self.wait_for(before + last_but_one).await;
            }
            if host.now() - begun >= Duration::from_secs(args.seconds.into()) {
                break;
            }
            self.round(way).await?;
            rounds += 1;
        }
        let (seconds, cpu) = meter.stop(self.network.relay())?;
        let sent = receivers * rounds as usize;
        self.wait_for(before + sent).await;
        let delays = self.arrivals.take_delays();
        let delivered = delays.len() as f64;
        Ok(Row {
            receivers: receivers as u32,
            way,
            paced,
            deliveries_per_s: delivered / seconds,
            cpu_s_per_million: cpu / delivered * 1e6,
            delay: Summary::new(sent, delays),
        })
    }

    /// One packet to each receiver.
    async fn round(&mut self, way: Way) -> anyhow::Result<()> {
        match way {
            Way::Datagrams => {
                let host: &dyn Host = &OsHost;
                for (n, &handle) in self.handles.iter().enumerate() {
                    self.arrivals.stamp(&mut self.payload);
                    self.sender
                        .send_media(handle, Class::Audio, &self.payload)?;
                    // The kernel's buffers are small here, and what they lose no relay can help.
                    if n % 50 == 49 {
                        host.sleep(TICK).await;
                    }
                }
            }
            Way::Frames => {
                for some in self.handles.chunks(100) {
                    let mut frames = BytesMut::new();
                    for &handle in some {
                        self.arrivals.stamp(&mut self.payload);
                        RawSession::frame(&mut frames, handle, &self.payload);
                    }
                    self.sender.send_frames(frames).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until so many have come, or no more will.
    async fn wait_for(&self, count: usize) {
        let host: &dyn Host = &OsHost;
        let until = host.now() + ROUND_WITHIN;
        while self.arrivals.count() < count && host.now() < until {
            host.sleep(TICK).await;
        }
    }
}
