//! The two ends, each a process of its own that is told line by line what to do: `run BYTES RATE MS`
//! to senders, `begin` and `end` to receivers. Each line is answered by one of JSON.

use std::{
    io::BufRead as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::{Args, ValueEnum};
use quinn::{Connection, SendDatagramError};
use serde::{Deserialize, Serialize};
use tokio::{net::UdpSocket, sync::mpsc};
use tradewind_host::{Host, OsHost};
use tradewind_proto::{Class, packet::AccessHeader};
use tradewind_trust::{EDGE_NAME, Roots};

use super::between::{self, FIRST_SENDER, NUMBER, REGISTER};
use crate::{
    network::{self, Entrance, KEEP_ALIVE},
    raw::{self, RawSession},
    stats::Summary,
};

const TICK: Duration = Duration::from_millis(1);
/// How long receivers answer on nothing, at most, before the sender goes on.
const WARM_UP: Duration = Duration::from_secs(1);
/// Sent at a time when as much as possible is sent.
const BURST: usize = 32;

/// What both ends must know.
#[derive(Debug, Args)]
pub(crate) struct EndArgs {
    /// What is between.
    #[arg(long)]
    door: Door,
    /// Its address.
    #[arg(long)]
    at: SocketAddr,
    /// Directory of the development CA.
    #[arg(long)]
    dir: PathBuf,
    /// How many senders or receivers.
    #[arg(long)]
    count: u32,
}

/// What an end talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Door {
    Udp,
    Quinn,
    Tradewind,
}

/// What has come to a receiver during a block.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Arrived {
    pub(crate) delivered: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
}

/// What a sender has done in a block.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Sent {
    pub(crate) sent: u64,
    /// How long it took, seconds.
    pub(crate) seconds: f64,
}

/// A way to one receiver.
struct Line {
    wire: Wire,
    /// What each packet begins with.
    head: Bytes,
}

enum Wire {
    Udp(Arc<UdpSocket>),
    Quic(Connection),
}

impl Line {
    fn packet(&self, body: &mut [u8]) -> Bytes {
        stamp(body);
        let mut packet = BytesMut::with_capacity(self.head.len() + body.len());
        packet.put_slice(&self.head);
        packet.put_slice(body);
        packet.freeze()
    }

    /// Sends without waiting. A full buffer loses the packet, as on any path.
    fn send(&self, body: &mut [u8]) -> bool {
        let packet = self.packet(body);
        match &self.wire {
            Wire::Udp(socket) => socket.try_send(&packet).is_ok(),
            Wire::Quic(connection) => connection.send_datagram(packet).is_ok(),
        }
    }

    /// Sends when there is room.
    async fn send_wait(&self, body: &mut [u8]) -> anyhow::Result<()> {
        let packet = self.packet(body);
        match &self.wire {
            Wire::Udp(socket) => drop(socket.send(&packet).await?),
            Wire::Quic(connection) => match connection.send_datagram_wait(packet).await {
                // QUIC has taken losses for a sign that the path carries less than before, and will find
                // out that it does not: lost, as in `send`.
                Err(SendDatagramError::TooLarge) => {
                    let host: &dyn Host = &OsHost;
                    host.sleep(TICK).await;
                }
                result => result?,
            },
        }
        Ok(())
    }
}

fn now_ns() -> u64 {
    // All processes of the machine have this clock in common.
    let now = OsHost.wall_clock().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

fn stamp(body: &mut [u8]) {
    body[..8].copy_from_slice(&now_ns().to_be_bytes());
}

/// The lines that come on standard input.
fn commands() -> mpsc::UnboundedReceiver<String> {
    let (tell, told) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    told
}

fn answer(answer: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}

/// Receives and counts until standard input ends.
pub(crate) async fn receiver(args: &EndArgs) -> anyhow::Result<()> {
    let host: Arc<dyn Host> = Arc::new(OsHost);
    let delays: Arc<Mutex<Vec<u64>>> = Arc::default();
    let lock = || {
        delays
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    };
    let note = |delays: &Mutex<Vec<u64>>, body: &[u8]| {
        let sent = body.get(..8).and_then(|bytes| bytes.try_into().ok());
        if let Some(sent) = sent.map(u64::from_be_bytes) {
            let delay = now_ns().saturating_sub(sent);
            delays
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .push(delay);
        }
    };
    match args.door {
        Door::Udp => {
            for number in 0..args.count {
                let socket = udp(args.at).await?;
                let mut hello = BytesMut::new();
                hello.put_u32(REGISTER);
                hello.put_u32(number);
                socket.send(&hello).await?;
                let delays = delays.clone();
                host.spawn(async move {
                    let mut buffer = [0; 2_048];
                    while let Ok(length) = socket.recv(&mut buffer).await {
                        note(&delays, &buffer[..length][NUMBER.min(length)..]);
                    }
                });
            }
        }
        Door::Quinn | Door::Tradewind => {
            let skip = if args.door == Door::Quinn {
                NUMBER
            } else {
                AccessHeader::LEN
            };
            for (connection, keep) in connections(args, "receiver").await? {
                let delays = delays.clone();
                host.spawn(async move {
                    let _keep = keep;
                    while let Ok(packet) = connection.read_datagram().await {
                        note(&delays, packet.get(skip..).unwrap_or_default());
                    }
                });
            }
        }
    }
    println!("ready");
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        let delays = std::mem::take(&mut *lock());
        match command.as_str() {
            "begin" => answer(&"begun")?,
            "end" => answer(&arrived(delays))?,
            other => bail!("a receiver cannot {other:?}"),
        }
    }
    Ok(())
}

fn arrived(delays_ns: Vec<u64>) -> Arrived {
    let summary = Summary::new(0, delays_ns);
    Arrived {
        delivered: summary.received as u64,
        p50_us: summary.p50_us,
        p99_us: summary.p99_us,
        p999_us: summary.p999_us,
    }
}

async fn udp(to: SocketAddr) -> anyhow::Result<Arc<UdpSocket>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    between::enlarge_buffers(&socket)?;
    socket.connect(to).await?;
    Ok(Arc::new(socket))
}

/// What must live as long as a connection.
type Keep = Option<RawSession>;

/// A connection for each of `count` ends.
async fn connections(args: &EndArgs, name: &str) -> anyhow::Result<Vec<(Connection, Keep)>> {
    if args.door == Door::Tradewind {
        let entrance = Entrance::new(&args.dir, args.at);
        let sessions = raw::open_many(&entrance, name, 0..args.count as usize, None).await?;
        return Ok(sessions
            .into_iter()
            .map(|session| (session.connection().clone(), Some(session)))
            .collect());
    }
    let roots = Roots::load(&args.dir.join("ca.pem"))?;
    let socket = network::socket(&roots, KEEP_ALIVE)?;
    let first = if name == "receiver" { 0 } else { FIRST_SENDER };
    let mut all = Vec::new();
    for number in 0..args.count {
        let connection = socket.connect(args.at, EDGE_NAME)?.await?;
        between::register(&connection, first + number).await?;
        all.push((connection, None));
    }
    Ok(all)
}

/// Sends when it is told to, until standard input ends.
pub(crate) async fn sender(args: &EndArgs) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    // Sessions end when they are dropped.
    let mut kept = Vec::new();
    if args.door == Door::Udp {
        for number in 0..args.count {
            lines.push(Line {
                wire: Wire::Udp(udp(args.at).await?),
                head: Bytes::copy_from_slice(&number.to_be_bytes()),
            });
        }
    } else {
        for (number, (connection, session)) in (0..).zip(connections(args, "sender").await?) {
            let head = match session {
                None => Bytes::copy_from_slice(&u32::to_be_bytes(number)),
                Some(mut session) => {
                    let handle = session.handle(&format!("receiver-{number}")).await?;
                    kept.push(session);
                    raw::media_head(handle, Class::Audio)
                }
            };
            lines.push(Line {
                wire: Wire::Quic(connection),
                head,
            });
        }
    }
    // Limits of paths are found out meanwhile.
    let warm_up = Orders {
        bytes: 200,
        rate: 200 * args.count.min(10),
        duration: WARM_UP,
    };
    paced(&lines, warm_up).await;
    println!("ready");
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        let orders: Orders = command.parse()?;
        answer(&if orders.rate == super::MOST {
            most(&lines, orders).await?
        } else {
            paced(&lines, orders).await
        })?;
    }
    Ok(())
}

/// `run BYTES RATE MS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Orders {
    bytes: usize,
    rate: u32,
    duration: Duration,
}

impl std::str::FromStr for Orders {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let &["run", bytes, rate, ms] = words.as_slice() else {
            bail!("a sender cannot {line:?}");
        };
        let bytes = bytes.parse().context("bytes")?;
        anyhow::ensure!(bytes >= 8, "a payload has 8 bytes at least");
        Ok(Self {
            bytes,
            rate: rate.parse().context("rate")?,
            duration: Duration::from_millis(ms.parse().context("milliseconds")?),
        })
    }
}

/// How many packets are due at each tick.
fn due(rate: u32, tick: u32) -> u64 {
    let at = |tick: u32| u64::from(rate) * u64::from(tick) / 1_000;
    at(tick + 1) - at(tick)
}

/// So many packets a second, in turn over all lines.
async fn paced(lines: &[Line], orders: Orders) -> Sent {
    let host: &dyn Host = &OsHost;
    let mut body = raw::payload(orders.bytes);
    let begun = host.now();
    let ticks = u32::try_from(orders.duration.as_millis()).unwrap_or(u32::MAX);
    let mut next = lines.iter().cycle();
    let mut sent = 0;
    for tick in 0..ticks {
        host.sleep_until(begun + TICK * tick).await;
        for line in next.by_ref().take(due(orders.rate, tick) as usize) {
            // Lost at once or on the way: both are not delivered.
            line.send(&mut body);
            sent += 1;
        }
    }
    Sent {
        sent,
        seconds: (host.now() - begun).as_secs_f64(),
    }
}

/// As many as the lines take.
async fn most(lines: &[Line], orders: Orders) -> anyhow::Result<Sent> {
    let host: &dyn Host = &OsHost;
    let mut body = raw::payload(orders.bytes);
    let begun = host.now();
    let mut sent = 0;
    'blocks: loop {
        for line in lines {
            if host.now() - begun >= orders.duration {
                break 'blocks;
            }
            for _ in 0..BURST {
                line.send_wait(&mut body).await?;
                sent += 1;
            }
        }
        tokio::task::yield_now().await;
    }
    Ok(Sent {
        sent,
        seconds: (host.now() - begun).as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        let orders: Orders = "run 1200 30000 2000".parse().unwrap();
        let expected = Orders {
            bytes: 1_200,
            rate: 30_000,
            duration: Duration::from_secs(2),
        };
        assert_eq!(orders, expected);
        for wrong in [
            "",
            "run",
            "run 7 1 1",
            "walk 8 1 1",
            "run 8 1 1 1",
            "run 8 x 1",
        ] {
            assert!(wrong.parse::<Orders>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_due_adds_up() {
        for rate in [1_u32, 500, 30_000, 99_999] {
            assert_eq!(
                (0..1_000).map(|tick| due(rate, tick)).sum::<u64>(),
                u64::from(rate)
            );
        }
    }
}
