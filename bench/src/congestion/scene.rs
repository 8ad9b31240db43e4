//! One link between two relays over an emulated path, in virtual time: two quinn endpoints with the
//! relays' transport parameters, what their users send, and somebody beside them who measures.

use std::{
    io::IoSliceMut,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use quinn::{
    congestion::{BbrConfig, CubicConfig},
    udp::{RecvMeta, Transmit},
};
use serde::Serialize;
use tradewind_host::Host;
use tradewind_relay::{LinkCongestion, link_transport};
use tradewind_trust::{Ca, EDGE_NAME, tls};
use tradewind_wan::{Bandwidth, HostClock, LinkSpec, PlaceId, Wan, WanHost, run_virtual};

use crate::stats::Summary;

const ALPN: &[u8] = b"bench";
const PORT: u16 = 4_433;
/// Calls: 64 kbit/s in packets of 20 ms.
const CALL_BYTES: usize = 160;
const CALL_EVERY_MS: u64 = 20;
/// Pictures: some 1.5 Mbit/s, a frame every 33 ms in six packets.
const VIDEO_BYTES: usize = 1_031;
const VIDEO_PACKETS: usize = 6;
const VIDEO_EVERY_MS: u64 = 33;
/// What a relay's queue holds before the oldest is dropped, some 20 ms' worth.
const SENDER_QUEUE: usize = 128 << 10;
const STREAM_WINDOW: u32 = 16 << 20;
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// A congestion controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Control {
    /// The links' own.
    Tradewind,
    /// quinn's CUBIC (RFC 9438).
    Cubic,
    /// quinn's BBR (version 1). It draws from a generator without seed: its figures differ a little
    /// from run to run.
    Bbr,
}

/// What the link is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Calls with some pictures among them, as datagrams.
    Calls { calls: u64, videos: u64 },
    /// One stream that takes all it gets.
    Bulk,
}

/// What is tried.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Scene {
    pub(crate) control: Control,
    pub(crate) work: Work,
    /// A bulk stream between two other hosts over the same bottleneck, under quinn's CUBIC and with
    /// an acknowledgement for every other packet: it stands for TCP.
    pub(crate) beside_tcp: bool,
    /// Each way, 0 to 1.
    pub(crate) loss: f64,
    pub(crate) rtt_ms: u64,
    pub(crate) mbps: f64,
    /// How long a packet waits in the full queue before the bottleneck.
    pub(crate) buffer_ms: u64,
    /// What the link's own control is told about its capacity.
    pub(crate) configured: bool,
    /// Not measured.
    pub(crate) warm_up_s: u64,
    pub(crate) measure_s: u64,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// Payload offered in the measured time; `None`: as much as possible.
    pub(crate) offered_mbps: Option<f64>,
    /// Payload that arrived.
    pub(crate) goodput_mbps: f64,
    /// Part of the offered payload that arrived.
    pub(crate) delivered: Option<f64>,
    /// How long small packets of somebody else, beside the link, waited in the bottleneck's queue.
    pub(crate) queue_p50_ms: f64,
    pub(crate) queue_p99_ms: f64,
    /// The delay of packets of calls and pictures over the path's own, the wait at the sender
    /// included.
    pub(crate) media_p99_ms: Option<f64>,
    /// Payload of the TCP-like flow that arrived.
    pub(crate) tcp_mbps: Option<f64>,
    /// The link's connection was lost on the way.
    pub(crate) broken: Option<String>,
}

/// Counts what arrives in the measured time.
#[derive(Debug)]
struct Count {
    from: Duration,
    to: Duration,
    state: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    offered: u64,
    arrived: u64,
    delays_ns: Vec<u64>,
}

/// Plays a scene to its end.
pub(crate) fn play(scene: &Scene) -> anyhow::Result<Outcome> {
    let scene = *scene;
    run_virtual(scene.seed, |wan| async move { perform(&wan, &scene).await })
}

async fn perform(wan: &Wan, scene: &Scene) -> anyhow::Result<Outcome> {
    let [a, b] = ["a", "b"].map(|name| wan.add_place(name));
    let bytes_per_second = (scene.mbps * 1e6 / 8.0) as u64;
    let path = LinkSpec {
        loss: scene.loss,
        bandwidth: Some(Bandwidth {
            bytes_per_second,
            queue_bytes: bytes_per_second * scene.buffer_ms / 1_000,
        }),
        ..LinkSpec::with_delay(Duration::from_micros(scene.rtt_ms * 500))
    };
    wan.set_links(a, b, &path);

    let mut transport = link_transport(if scene.configured {
        LinkCongestion::with_capacity(bytes_per_second)
    } else {
        LinkCongestion::default()
    });
    match scene.control {
        Control::Tradewind => {}
        Control::Cubic => {
            transport.congestion_controller_factory(Arc::new(CubicConfig::default()));
        }
        Control::Bbr => {
            transport.congestion_controller_factory(Arc::new(BbrConfig::default()));
        }
    }
    transport.datagram_send_buffer_size(SENDER_QUEUE);
    let link = connect(wan, a, b, transport).await?;
    let tcp = if scene.beside_tcp {
        let mut transport = link_transport(LinkCongestion::default());
        transport
            .congestion_controller_factory(Arc::new(CubicConfig::default()))
            .ack_frequency_config(None);
        Some(connect(wan, a, b, transport).await?)
    } else {
        None
    };

    let from = wan.network_time() + Duration::from_secs(scene.warm_up_s);
    let to = from + Duration::from_secs(scene.measure_s);
    let count = || {
        Arc::new(Count {
            from,
            to,
            state: Mutex::default(),
        })
    };
    let watched = link.sender.1.clone();
    let (probed, used, beside) = (count(), count(), count());
    probe(wan, a, b, probed.clone())?;
    if let Some(tcp) = tcp {
        bulk(wan, tcp, beside.clone());
    }
    match scene.work {
        Work::Calls { calls, videos } => media(wan, link, (calls, videos), used.clone()),
        Work::Bulk => bulk(wan, link, used.clone()),
    }
    // What was sent last may still be under way.
    let settle = Duration::from_millis(scene.rtt_ms + scene.buffer_ms + 500);
    wan.sleep_until(to + settle).await;

    let seconds = scene.measure_s as f64;
    let mbps = |bytes: u64| bytes as f64 * 8.0 / 1e6 / seconds;
    let path_ns = scene.rtt_ms * 500_000;
    let extra_ms = |count: &Count, share: fn(&Summary) -> f64| {
        let delays = std::mem::take(&mut count.lock().delays_ns);
        let extra = delays.iter().map(|ns| ns.saturating_sub(path_ns));
        let summary = Summary::new(delays.len(), extra.collect());
        count.lock().delays_ns = delays;
        share(&summary) / 1e3
    };
    let is_media = matches!(scene.work, Work::Calls { .. });
    let offered = used.lock().offered;
    let arrived = used.lock().arrived;
    Ok(Outcome {
        offered_mbps: is_media.then(|| mbps(offered)),
        goodput_mbps: mbps(arrived),
        delivered: is_media.then(|| arrived as f64 / offered as f64),
        queue_p50_ms: extra_ms(&probed, |summary| summary.p50_us),
        queue_p99_ms: extra_ms(&probed, |summary| summary.p99_us),
        media_p99_ms: is_media.then(|| extra_ms(&used, |summary| summary.p99_us)),
        tcp_mbps: scene.beside_tcp.then(|| mbps(beside.lock().arrived)),
        broken: watched.close_reason().map(|reason| reason.to_string()),
    })
}

/// Both ends of a connection; the endpoints live as long as it.
struct Connected {
    sender: (Arc<WanHost>, quinn::Connection),
    receiver: (Arc<WanHost>, quinn::Connection),
}

/// A connection between two new hosts.
async fn connect(
    wan: &Wan,
    a: PlaceId,
    b: PlaceId,
    mut transport: quinn::TransportConfig,
) -> anyhow::Result<Connected> {
    transport
        .stream_receive_window(STREAM_WINDOW.into())
        .send_window(u64::from(STREAM_WINDOW));
    let transport = Arc::new(transport);
    let (sender, receiver) = (
        wan.add_host(a, HostClock::EXACT),
        wan.add_host(b, HostClock::EXACT),
    );
    let (here, there): (Arc<dyn Host>, Arc<dyn Host>) = (sender.clone(), receiver.clone());
    let now = here.wall_clock();
    let ca = Ca::create("bench", now)?;
    let identity = ca.issue_relay("bench-1", &[], now, Duration::from_secs(86_400))?;
    let clock = tls::host_clock(there.clone());
    let server = tls::client_port_server_config(&identity, &[ALPN], clock)?;
    let mut server = quinn::ServerConfig::with_crypto(tls::quic_server(server)?);
    server.transport_config(transport.clone());
    let client = tls::client_config(&ca.roots(), &[ALPN], tls::host_clock(here.clone()))?;
    let mut client = quinn::ClientConfig::new(tls::quic_client(client)?);
    client.transport_config(transport);

    let address = SocketAddr::new(receiver.ip(), PORT);
    let listening = there.quic_endpoint(address, Some(server))?;
    let (told, accepted) = tokio::sync::oneshot::channel();
    there.spawn(async move {
        if let Some(incoming) = listening.accept().await
            && let Ok(connection) = incoming.await
        {
            let _ = told.send(connection);
        }
    });
    let endpoint = here.quic_endpoint(SocketAddr::new(sender.ip(), 0), None)?;
    let connection = endpoint.connect_with(client, address, EDGE_NAME)?.await?;
    let accepted = accepted.await.context("the receiver did not accept")?;
    Ok(Connected {
        sender: (sender, connection),
        receiver: (receiver, accepted),
    })
}

/// Small packets beside the link, on bare sockets: their delay is the path's.
fn probe(wan: &Wan, a: PlaceId, b: PlaceId, count: Arc<Count>) -> anyhow::Result<()> {
    let [from, to] = [a, b].map(|place| wan.add_host(place, HostClock::EXACT));
    let sender = from.bind_udp(SocketAddr::new(from.ip(), 0))?;
    let destination = SocketAddr::new(to.ip(), PORT);
    let receiver = to.bind_udp(destination)?;
    let ticking = wan.clone();
    (from as Arc<dyn Host>).spawn(async move {
        loop {
            let contents = stamp(ticking.network_time(), 8);
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: &contents,
                segment_size: None,
                src_ip: None,
            };
            if sender.try_send(&transmit).is_err() {
                return;
            }
            ticking.sleep(PROBE_EVERY).await;
        }
    });
    let watching = wan.clone();
    (to as Arc<dyn Host>).spawn(async move {
        let (mut buffer, mut meta) = ([0; 2_048], [RecvMeta::default()]);
        while let Ok(1) = std::future::poll_fn(|cx| {
            receiver.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)
        })
        .await
        {
            for packet in buffer[..meta[0].len].chunks(meta[0].stride.max(1)) {
                count.media(packet, watching.network_time());
            }
        }
    });
    Ok(())
}

/// A stream without end.
fn bulk(wan: &Wan, link: Connected, count: Arc<Count>) {
    let (host, connection) = link.sender;
    (host as Arc<dyn Host>).spawn(async move {
        let Ok(mut stream) = connection.open_uni().await else {
            return;
        };
        let chunk = Bytes::from(vec![0; 64 << 10]);
        while stream.write_chunk(chunk.clone()).await.is_ok() {}
    });
    let (host, connection) = link.receiver;
    let watching = wan.clone();
    (host as Arc<dyn Host>).spawn(async move {
        let Ok(mut stream) = connection.accept_uni().await else {
            return;
        };
        while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
            count.bulk(chunk.bytes.len(), watching.network_time());
        }
    });
}

/// Calls and pictures as datagrams, each user at his own moment.
fn media(wan: &Wan, link: Connected, (calls, videos): (u64, u64), count: Arc<Count>) {
    let (host, connection) = link.sender;
    let (ticking, offered) = (wan.clone(), count.clone());
    (host as Arc<dyn Host>).spawn(async move {
        let send = |bytes: usize| {
            let now = ticking.network_time();
            offered.offer(bytes, now);
            connection.send_datagram(stamp(now, bytes)).is_ok()
        };
        let begin = ticking.network_time();
        for tick in 0.. {
            let due = |number: u64, every: u64| (tick + 7 * number).is_multiple_of(every);
            for _ in (0..calls).filter(|call| due(*call, CALL_EVERY_MS)) {
                send(CALL_BYTES);
            }
            for _ in (0..videos).filter(|video| due(*video, VIDEO_EVERY_MS)) {
                for _ in 0..VIDEO_PACKETS {
                    send(VIDEO_BYTES);
                }
            }
            ticking
                .sleep_until(begin + Duration::from_millis(tick))
                .await;
        }
    });
    let (host, connection) = link.receiver;
    let watching = wan.clone();
    (host as Arc<dyn Host>).spawn(async move {
        while let Ok(packet) = connection.read_datagram().await {
            count.media(&packet, watching.network_time());
        }
    });
}

/// A packet that tells when it was sent.
fn stamp(now: Duration, bytes: usize) -> Bytes {
    let mut packet = BytesMut::zeroed(bytes);
    packet[..8].copy_from_slice(&nanoseconds(now).to_be_bytes());
    packet.freeze()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Count {
    fn lock(&self) -> std::sync::MutexGuard<'_, Counted> {
        self.state.lock().expect("nobody panics while counting")
    }

    fn is_measured(&self, at: Duration) -> bool {
        (self.from..self.to).contains(&at)
    }

    fn offer(&self, bytes: usize, now: Duration) {
        if self.is_measured(now) {
            self.lock().offered += bytes as u64;
        }
    }

    fn bulk(&self, bytes: usize, now: Duration) {
        if self.is_measured(now) {
            self.lock().arrived += bytes as u64;
        }
    }

    /// By when it was sent.
    fn media(&self, packet: &[u8], now: Duration) {
        let Some(sent) = packet.first_chunk() else {
            return;
        };
        let sent = u64::from_be_bytes(*sent);
        if self.is_measured(Duration::from_nanos(sent)) {
            let mut counted = self.lock();
            counted.arrived += packet.len() as u64;
            counted
                .delays_ns
                .push(nanoseconds(now).saturating_sub(sent));
        }
    }
}

#[cfg(test)]
#[path = "scene_tests.rs"]
mod tests;
