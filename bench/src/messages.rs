//! `tradewind-bench messages`: packets from one sender to one receiver through one relay.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::BytesMut;
use clap::Args;
use serde::Serialize;
use tradewind_client::{Class, Receipt, SendOptions};
use tradewind_host::{Host, OsHost};

use crate::{
    network::{Network, Process},
    raw::{Arrivals, Meter, RawSession, payload, receivers, stamped},
    stats::Summary,
    threads::{alone, on_a_thread},
    ways::{Bare, Packets, Way as _},
};

/// How often a paced sender sends.
const TICK: Duration = Duration::from_millis(1);
/// The last ones may still be on their way.
const SETTLE: Duration = Duration::from_millis(200);
/// Frames that may be under way when as many as possible are sent.
const FRAMES_UNDER_WAY: usize = 4_000;
/// Messages of an SDK that may be unconfirmed then.
const MESSAGES_UNDER_WAY: usize = 1_000;
/// Frames that are written at a time then.
const BATCH: usize = 50;

/// Packets from one sender to one receiver through one relay, beside a plain UDP forwarder.
#[derive(Debug, Args)]
pub(crate) struct MessagesArgs {
    /// How long to measure each row.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Packets per second of the paced rows.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1_000..=1_000_000))]
    rate: u32,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One way of sending.
#[derive(Debug, Serialize)]
struct Row {
    way: &'static str,
    payload_bytes: usize,
    /// `false`: as many as possible.
    paced: bool,
    delivered_per_s: f64,
    /// Of the process between, seconds per million delivered.
    cpu_s_per_million: f64,
    delay: Summary,
}

pub(crate) fn run(args: &MessagesArgs) -> anyhow::Result<()> {
    alone(measure(args))
}

async fn measure(args: &MessagesArgs) -> anyhow::Result<()> {
    let network = Network::start().await?;
    let mut rows = Vec::new();
    for bytes in [200, 1_200] {
        for paced in [true, false] {
            rows.push(udp(args, bytes, paced).await?);
        }
        rows.extend(frames(args, &network, bytes).await?);
        rows.push(sdk(args, &network, bytes).await?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!(
        "one sender to one receiver; CPU of the process between, seconds per million delivered\n\n\
         {:<36}{:>6}{:>12}{:>9}{:>10}{:>10}  delivered",
        "", "bytes", "per second", "s/M", "p50 us", "p99 us"
    );
    for row in rows {
        println!(
            "{:<36}{:>6}{:>12.0}{:>9.2}{:>10.0}{:>10.0}  {} of {}",
            format!("{}, {}", row.way, if row.paced { "paced" } else { "most" }),
            row.payload_bytes,
            row.delivered_per_s,
            row.cpu_s_per_million,
            row.delay.p50_us,
            row.delay.p99_us,
            row.delay.received,
            row.delay.sent,
        );
    }
    Ok(())
}

/// What a block of sending has come to.
fn row(
    way: &'static str,
    bytes: usize,
    paced: bool,
    sent: usize,
    delays: Vec<u64>,
    (seconds, cpu): (f64, f64),
) -> Row {
    let delivered = delays.len() as f64;
    Row {
        way,
        payload_bytes: bytes,
        paced,
        delivered_per_s: delivered / seconds,
        cpu_s_per_million: cpu / delivered * 1e6,
        delay: Summary::new(sent, delays),
    }
}

/// How many are due at each tick of a paced block.
fn due(rate: u32, tick: u32) -> usize {
    let at = |tick: u32| u64::from(rate) * u64::from(tick) / 1_000;
    (at(tick + 1) - at(tick)) as usize
}

async fn udp(args: &MessagesArgs, bytes: usize, paced: bool) -> anyhow::Result<Row> {
    let host: &dyn Host = &OsHost;
    let origin = host.now();
    let mut bare = Bare::start(Packets { origin, bytes })?;
    let meter = Meter::start(bare.process())?;
    let (begun, mut sent) = (host.now(), 0);
    for tick in 0..args.seconds * 1_000 {
        host.sleep_until(begun + TICK * tick).await;
        let count = if paced { due(args.rate, tick) } else { 500 };
        for _ in 0..count {
            // A full buffer is a lost packet.
            sent += usize::from(bare.send().is_ok());
        }
        if host.now() > begun + Duration::from_secs(args.seconds.into()) {
            break;
        }
    }
    let spent = meter.stop(bare.process())?;
    host.sleep(SETTLE).await;
    Ok(row(
        "plain UDP forwarder",
        bytes,
        paced,
        sent,
        bare.take_delays(),
        spent,
    ))
}

/// Frames on a message stream, and datagrams, without an SDK at either end.
async fn frames(args: &MessagesArgs, network: &Network, bytes: usize) -> anyhow::Result<Vec<Row>> {
    let entrance = network.entrance();
    let arrivals = Arrivals::new();
    let name: &'static str = if bytes < 1_000 { "small" } else { "large" };
    let _receivers = receivers(
        &entrance,
        name,
        1,
        None,
        &arrivals,
        &Arc::new(AtomicBool::new(false)),
    )?;
    let mut session = RawSession::open(&entrance, &format!("{name}-sender")).await?;
    let handle = session.handle(&format!("{name}-0")).await?;
    let mut sender = Sender {
        relay: network.relay(),
        arrivals,
        handle,
        payload: payload(bytes),
    };
    let mut rows = Vec::new();
    // The path's limit is found out meanwhile.
    sender.paced(&mut session, Kind::Frames, 1_000, 1).await?;
    for (kind, way) in [
        (Kind::Frames, "relay, frames"),
        (Kind::Datagrams, "relay, datagrams"),
    ] {
        let (sent, delays, spent) = sender
            .paced(&mut session, kind, args.rate, args.seconds)
            .await?;
        rows.push(row(way, bytes, true, sent, delays, spent));
    }
    let (sent, delays, spent) = sender.most(&mut session, args.seconds).await?;
    rows.push(row("relay, frames", bytes, false, sent, delays, spent));
    Ok(rows)
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Frames,
    Datagrams,
}

struct Sender<'a> {
    relay: &'a Process,
    arrivals: Arc<Arrivals>,
    handle: u32,
    payload: Vec<u8>,
}

/// How many were sent, the delays of those that came, and the seconds of time and of work.
type Block = (usize, Vec<u64>, (f64, f64));

impl Sender<'_> {
    async fn paced(
        &mut self,
        session: &mut RawSession,
        kind: Kind,
        rate: u32,
        seconds: u32,
    ) -> anyhow::Result<Block> {
        let host: &dyn Host = &OsHost;
        self.arrivals.take_delays();
        let meter = Meter::start(self.relay)?;
        let (begun, mut sent) = (host.now(), 0);
        for tick in 0..seconds * 1_000 {
            host.sleep_until(begun + TICK * tick).await;
            let count = due(rate, tick);
            sent += count;
            match kind {
                Kind::Frames => self.write(session, count).await?,
                Kind::Datagrams => {
                    for _ in 0..count {
                        self.arrivals.stamp(&mut self.payload);
                        session.send_media(self.handle, Class::Audio, &self.payload)?;
                    }
                }
            }
        }
        let spent = meter.stop(self.relay)?;
        host.sleep(SETTLE).await;
        Ok((sent, self.arrivals.take_delays(), spent))
    }

    /// As many frames as come through.
    async fn most(&mut self, session: &mut RawSession, seconds: u32) -> anyhow::Result<Block> {
        let host: &dyn Host = &OsHost;
        self.arrivals.take_delays();
        let meter = Meter::start(self.relay)?;
        let (before, mut sent) = (self.arrivals.count(), 0);
        let until = host.now() + Duration::from_secs(seconds.into());
        while host.now() < until {
            if sent - (self.arrivals.count() - before).min(sent) < FRAMES_UNDER_WAY {
                self.write(session, BATCH).await?;
                sent += BATCH;
            } else {
                host.sleep(TICK).await;
            }
        }
        let spent = meter.stop(self.relay)?;
        host.sleep(SETTLE).await;
        Ok((sent, self.arrivals.take_delays(), spent))
    }

    async fn write(&mut self, session: &mut RawSession, count: usize) -> anyhow::Result<()> {
        let mut frames = BytesMut::with_capacity(count * (self.payload.len() + 32));
        for _ in 0..count {
            self.arrivals.stamp(&mut self.payload);
            RawSession::frame(&mut frames, self.handle, &self.payload);
        }
        session.send_frames(frames).await
    }
}

/// Messages of two SDKs: numbered, confirmed from end to end, exactly once.
async fn sdk(args: &MessagesArgs, network: &Network, bytes: usize) -> anyhow::Result<Row> {
    let host: &dyn Host = &OsHost;
    let arrivals = Arrivals::new();
    let (entrance, noted) = (network.entrance(), arrivals.clone());
    let user = format!("sdk-{bytes}");
    let receiver = entrance.client(&user).await?;
    on_a_thread("sdk", async move {
        while let Some(message) = receiver.recv_message().await {
            noted.note(&message.payload);
        }
        Ok(())
    })?;
    let sender = entrance.client("sdk-sender").await?;
    let mut body = payload(bytes);
    sender.send(&user, stamped(&arrivals, &mut body)).await?;
    arrivals.take_delays();
    let meter = Meter::start(network.relay())?;
    let until = host.now() + Duration::from_secs(args.seconds.into());
    let mut under_way: VecDeque<Receipt> = VecDeque::new();
    let mut sent = 0;
    while host.now() < until {
        while under_way.len() < MESSAGES_UNDER_WAY {
            let body = stamped(&arrivals, &mut body);
            under_way.push_back(sender.enqueue(&user, body, SendOptions::default()));
            sent += 1;
        }
        if let Some(receipt) = under_way.pop_front() {
            receipt.await?;
        }
    }
    let spent = meter.stop(network.relay())?;
    for receipt in under_way {
        receipt.await?;
    }
    host.sleep(SETTLE).await;
    Ok(row(
        "relay, messages of the SDK",
        bytes,
        false,
        sent,
        arrivals.take_delays(),
        spent,
    ))
}
