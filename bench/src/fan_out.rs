//! `tradewind-bench fan-out`: one sender to many receivers at one relay.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tradewind_client::Class;
use tradewind_host::{Host, OsHost};

use crate::{
    network::{Network, Process},
    quinn_relay::QuinnRelay,
    raw::{Arrivals, Meter, RawSession, Receivers, payload, receivers, stamped},
    stats::Summary,
    threads::alone,
};

/// A round is given up when it has not come to all within this.
const ROUND_WITHIN: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(1);
/// Deliveries under way when as many as possible are sent; but two rounds at least.
const UNDER_WAY: usize = 2_000;
/// Limits of paths are found out meanwhile, and streams opened.
const WARM_UP_ROUNDS: u32 = 30;
const WARM_UP_EVERY: Duration = Duration::from_millis(100);
const GROUP: &str = "crowd";

/// One sender to many receivers at one relay: deliveries per second and what each costs.
#[derive(Debug, Args)]
pub(crate) struct FanOutArgs {
    /// How many receivers; several with commas.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 500, 10_000], value_parser = clap::value_parser!(u32).range(1..=15_000))]
    receivers: Vec<u32>,
    /// How long to measure each row.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Deliveries per second of the paced rows.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    rate: u32,
    /// Bytes of each packet; several with commas.
    #[arg(long, value_delimiter = ',', default_values_t = [200, 1_200], value_parser = clap::value_parser!(u16).range(8..=1_200))]
    payload: Vec<u16>,
    /// How to send; several with commas.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Way::ALL)]
    ways: Vec<Way>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    receivers: u32,
    payload_bytes: usize,
    way: Way,
    /// `false`: as many as possible.
    paced: bool,
    deliveries_per_s: f64,
    /// Of the process between.
    cpu_s_per_million: f64,
    memory_bytes: u64,
    delay: Summary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// Through the least that can fan out datagrams, on async quinn.
    Quinn,
    /// A datagram to each receiver from the sender itself.
    Copies,
    /// One datagram to their group.
    GroupDatagrams,
    /// One message to their group.
    GroupMessages,
}

impl Way {
    const ALL: [Self; 4] = [
        Self::Quinn,
        Self::Copies,
        Self::GroupDatagrams,
        Self::GroupMessages,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Quinn => "minimal quinn relay",
            Self::Copies => "a datagram to each",
            Self::GroupDatagrams => "group, datagrams",
            Self::GroupMessages => "group, messages",
        }
    }
}

pub(crate) fn run(args: &FanOutArgs) -> anyhow::Result<()> {
    alone(measure(args))
}

async fn measure(args: &FanOutArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    if !args.json {
        println!(
            "one sender to many receivers; CPU of the process between, seconds per million deliveries\n\n\
             {:>9}{:>7}  {:<28}{:>13}{:>8}{:>10}{:>10}{:>9}{:>6}",
            "receivers", "bytes", "", "deliveries/s", "s/M", "p50 us", "p99 us", "percent", "MiB"
        );
    }
    for &count in &args.receivers {
        // What is measured is alone: sessions of the other one would cost something, idle or not.
        let (quinn, ours): (Vec<Way>, Vec<Way>) =
            args.ways.iter().partition(|way| **way == Way::Quinn);
        if !quinn.is_empty() {
            let arrivals = Arrivals::new();
            let relay = QuinnRelay::start(count as usize, &arrivals).await?;
            let target = Target::Quinn(relay);
            let mut scene = Scene::new(target, count, arrivals);
            scene.measure_all(args, &quinn, &mut rows).await?;
        }
        if !ours.is_empty() {
            let network = Network::start_with(&["--max-sessions", "20000"]).await?;
            let arrivals = Arrivals::new();
            let target = Target::ours(network, count, &arrivals).await?;
            let mut scene = Scene::new(target, count, arrivals);
            scene.measure_all(args, &ours, &mut rows).await?;
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

fn print(row: &Row) {
    let share = 100.0 * row.delay.received as f64 / row.delay.sent as f64;
    let pace = if row.paced { "paced" } else { "most" };
    println!(
        "{:>9}{:>7}  {:<28}{:>13.0}{:>8.2}{:>10.0}{:>10.0}{share:>9.2}{:>6}",
        row.receivers,
        row.payload_bytes,
        format!("{}, {pace}", row.way.name()),
        row.deliveries_per_s,
        row.cpu_s_per_million,
        row.delay.p50_us,
        row.delay.p99_us,
        row.memory_bytes >> 20,
    );
}

/// What stands between, with the sender's end.
enum Target {
    Quinn(QuinnRelay),
    Ours(Box<Ours>),
}

struct Ours {
    network: Network,
    sender: RawSession,
    group: u32,
    handles: Vec<u32>,
    next_message: u64,
    _receivers: Receivers,
}

impl Target {
    async fn ours(network: Network, count: u32, arrivals: &Arc<Arrivals>) -> anyhow::Result<Self> {
        let entrance = network.entrance();
        let never = Arc::default();
        let receivers = receivers(
            &entrance,
            "receiver",
            count as usize,
            Some(GROUP),
            arrivals,
            &never,
        )?;
        let mut sender = RawSession::open(&entrance, "sender").await?;
        let group = sender.join(GROUP).await?;
        let mut handles = Vec::new();
        for n in 0..count {
            handles.push(sender.handle(&format!("receiver-{n}")).await?);
        }
        sender.discard();
        Ok(Self::Ours(Box::new(Ours {
            network,
            sender,
            group,
            handles,
            next_message: 0,
            _receivers: receivers,
        })))
    }

    fn process(&self) -> &Process {
        match self {
            Self::Quinn(relay) => relay.process(),
            Self::Ours(ours) => ours.network.relay(),
        }
    }
}

/// A sender and its receivers.
struct Scene {
    target: Target,
    receivers: u32,
    arrivals: Arc<Arrivals>,
}

impl Scene {
    fn new(target: Target, receivers: u32, arrivals: Arc<Arrivals>) -> Self {
        Self {
            target,
            receivers,
            arrivals,
        }
    }

    async fn measure_all(
        &mut self,
        args: &FanOutArgs,
        ways: &[Way],
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<()> {
        let host: &dyn Host = &OsHost;
        for &bytes in &args.payload {
            let mut body = payload(bytes.into());
            for &way in ways {
                let every = WARM_UP_EVERY.max(self.period(args.rate));
                for _ in 0..WARM_UP_ROUNDS.min(3_000 / every.as_millis() as u32) {
                    self.round(way, &mut body).await?;
                    host.sleep(every).await;
                }
                for paced in [true, false] {
                    let row = self.measure(args, way, &mut body, paced).await?;
                    if !args.json {
                        print(&row);
                    }
                    rows.push(row);
                }
            }
        }
        Ok(())
    }

    /// Time between two rounds.
    fn period(&self, rate: u32) -> Duration {
        Duration::from_secs_f64(f64::from(self.receivers) / f64::from(rate))
    }

    async fn measure(
        &mut self,
        args: &FanOutArgs,
        way: Way,
        body: &mut [u8],
        paced: bool,
    ) -> anyhow::Result<Row> {
        let host: &dyn Host = &OsHost;
        let receivers = self.receivers as usize;
        host.sleep(ROUND_WITHIN / 4).await;
        self.arrivals.take_delays();
        let meter = Meter::start(self.target.process())?;
        let begun = host.now();
        let before = self.arrivals.count();
        let every = self.period(args.rate);
        let under_way = (UNDER_WAY / receivers).max(2);
        let mut rounds = 0;
        loop {
            if paced {
                host.sleep_until(begun + every * rounds).await;
            } else {
                let old = (rounds as usize + 1).saturating_sub(under_way);
                self.wait_for(before + receivers * old).await;
            }
            if host.now() - begun >= Duration::from_secs(args.seconds.into()) {
                break;
            }
            self.round(way, body).await?;
            rounds += 1;
        }
        let sent = receivers * rounds as usize;
        let last = self.wait_for(before + sent).await;
        let (_, cpu) = meter.stop(self.target.process())?;
        let seconds = (last - begun).as_secs_f64();
        let delays = self.arrivals.take_delays();
        let delivered = delays.len() as f64;
        Ok(Row {
            receivers: self.receivers,
            payload_bytes: body.len(),
            way,
            paced,
            deliveries_per_s: delivered / seconds,
            cpu_s_per_million: cpu / delivered * 1e6,
            memory_bytes: self.target.process().memory()?,
            delay: Summary::new(sent, delays),
        })
    }

    /// One packet to each receiver.
    async fn round(&mut self, way: Way, body: &mut [u8]) -> anyhow::Result<()> {
        let host: &dyn Host = &OsHost;
        let arrivals = &self.arrivals;
        match &mut self.target {
            Target::Quinn(relay) => {
                arrivals.stamp(body);
                relay.send(body)?;
            }
            Target::Ours(ours) => match way {
                Way::Quinn => anyhow::bail!("this is another relay"),
                Way::Copies => {
                    for (n, &handle) in ours.handles.iter().enumerate() {
                        arrivals.stamp(body);
                        ours.sender.send_media(handle, Class::Audio, body)?;
                        // The kernel's buffers are small here, and what they lose no relay can help.
                        if n % 50 == 49 {
                            host.sleep(TICK).await;
                        }
                    }
                }
                Way::GroupDatagrams => {
                    arrivals.stamp(body);
                    ours.sender.send_media(ours.group, Class::Audio, body)?;
                }
                Way::GroupMessages => {
                    let mut frames = BytesMut::new();
                    let message = stamped(arrivals, body);
                    RawSession::group_frame(&mut frames, ours.group, ours.next_message, message);
                    ours.next_message += 1;
                    ours.sender.send_frames(frames).await?;
                }
            },
        }
        Ok(())
    }

    /// Waits until so many have come, or no more will; gives when the last one came.
    async fn wait_for(&self, count: usize) -> Instant {
        let host: &dyn Host = &OsHost;
        let mut came = self.arrivals.count();
        let mut last = host.now();
        while came < count && host.now() < last + ROUND_WITHIN {
            host.sleep(TICK).await;
            let now = self.arrivals.count();
            if now > came {
                (came, last) = (now, host.now());
            }
        }
        last
    }
}
