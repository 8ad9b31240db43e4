//! The thin loop around a shard: packets in batches from its sockets, batches out, the clock, and
//! commands.

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use quinn::{
    AsyncTimer, AsyncUdpSocket, UdpPoller,
    udp::{self, BATCH_SIZE, RecvMeta},
};
use quinn_proto::Transmit;
use tokio::sync::mpsc;
use tradewind_host::Host;

use crate::shard::{Command, News, Port, PortTraits, Shard};

/// Batches taken from one socket before anything else gets its turn.
const BATCHES_PER_TURN: usize = 4;

/// Shortest time that a share of it says anything.
const BUSY_WINDOW: Duration = Duration::from_millis(900);

/// A shard with its sockets.
pub(crate) struct Driver {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) shard: Shard,
    /// By [`Port::place`].
    pub(crate) sockets: Vec<Socket>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) news: mpsc::Sender<News>,
    pub(crate) busy: Busy,
}

/// How busy the shard is: the share of the time that it does not wait, by the host's clock.
#[derive(Debug)]
pub(crate) struct Busy {
    since: Instant,
    worked: Duration,
    permille: u32,
}

impl Busy {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            worked: Duration::ZERO,
            permille: 0,
        }
    }

    /// The share over the last second or so, parts per thousand.
    fn permille(&mut self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.since);
        if passed >= BUSY_WINDOW {
            let worked = std::mem::take(&mut self.worked);
            self.since = now;
            let share = worked.as_secs_f64() / passed.as_secs_f64();
            self.permille = (share * 1_000.0).min(1_000.0) as u32;
        }
        self.permille
    }
}

/// One UDP port.
pub(crate) struct Socket {
    port: Port,
    io: Arc<dyn AsyncUdpSocket>,
    poller: Pin<Box<dyn UdpPoller>>,
    /// A datagram (or several for one destination) that the kernel had no room for.
    held: Option<(Transmit, Vec<u8>)>,
    buffer: Vec<u8>,
    buffer_per_datagram: usize,
}

impl Socket {
    /// Binds a port.
    pub(crate) fn bind(host: &dyn Host, port: Port, address: SocketAddr) -> io::Result<Self> {
        let io = host.bind_udp(address)?;
        let buffer_per_datagram = (io.max_receive_segments() * 1_500).clamp(2_048, 65_535);
        Ok(Self {
            port,
            poller: io.clone().create_io_poller(),
            held: None,
            buffer: vec![0; BATCH_SIZE * buffer_per_datagram],
            buffer_per_datagram,
            io,
        })
    }

    /// The address it is bound to.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// What the shard must know of it.
    pub(crate) fn traits(&self) -> PortTraits {
        PortTraits {
            ipv6: self.local_addr().is_ok_and(|address| address.is_ipv6()),
            may_fragment: self.io.may_fragment(),
            max_segments: self.io.max_transmit_segments(),
        }
    }

    /// Takes one batch of datagrams. `false` when there is none.
    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        host: &dyn Host,
        shard: &mut Shard,
    ) -> io::Result<bool> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let count = {
            let mut slices = self
                .buffer
                .chunks_mut(self.buffer_per_datagram)
                .map(IoSliceMut::new);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            match self.io.poll_recv(cx, &mut slices, &mut metas) {
                Poll::Ready(count) => count?,
                Poll::Pending => return Ok(false),
            }
        };
        let now = host.now();
        for (meta, slot) in metas
            .iter()
            .zip(self.buffer.chunks(self.buffer_per_datagram))
            .take(count)
        {
            let received = &slot[..meta.len];
            for datagram in received.chunks(meta.stride.max(1)) {
                shard.handle(
                    self.port,
                    now,
                    meta.addr,
                    meta.dst_ip,
                    meta.ecn.and_then(to_proto),
                    BytesMut::from(datagram),
                );
            }
        }
        Ok(true)
    }

    /// Sends, or keeps it until the socket has room. `false` when it is kept.
    fn send(&mut self, transmit: &Transmit, bytes: &[u8]) -> bool {
        match self.io.try_send(&to_udp(transmit, bytes)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.held = Some((copy(transmit), bytes.to_vec()));
                false
            }
            // Like loss on the way, which QUIC survives: unreachable, interrupted, no buffers.
            Ok(()) | Err(_) => true,
        }
    }

    /// Sends what was kept. `false` when there is still no room.
    fn flush(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some((transmit, bytes)) = self.held.take() {
            if self.send(&transmit, &bytes) {
                break;
            }
            match self.poller.as_mut().poll_writable(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => self.held = None,
            }
        }
        true
    }
}

impl Driver {
    /// Runs the shard until it is told to close.
    pub(crate) async fn run(mut self) {
        let mut timer = self.host.runtime().new_timer(self.host.now());
        poll_fn(|cx| self.turn(cx, timer.as_mut())).await;
    }

    fn turn(&mut self, cx: &mut Context<'_>, timer: Pin<&mut dyn AsyncTimer>) -> Poll<()> {
        let begun = self.host.now();
        let result = self.work(cx, timer);
        self.busy.worked += self.host.now().saturating_duration_since(begun);
        result
    }

    /// Works until there is nothing to do but wait.
    fn work(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut dyn AsyncTimer>) -> Poll<()> {
        loop {
            let mut progress = false;
            for socket in &mut self.sockets {
                for _ in 0..BATCHES_PER_TURN {
                    match socket.receive(cx, &*self.host, &mut self.shard) {
                        Ok(true) => progress = true,
                        Ok(false) => break,
                        Err(error) => {
                            // An ICMP answer to an earlier datagram, on some systems.
                            tracing::debug!(port = ?socket.port, %error, "receive");
                        }
                    }
                }
            }
            let mut ended = false;
            while let Poll::Ready(command) = self.commands.poll_recv(cx) {
                let Some(command) = command else {
                    return Poll::Ready(());
                };
                progress = true;
                ended |= matches!(command, Command::Close);
                self.shard.command(command, self.host.now());
            }
            let mut room = true;
            for socket in &mut self.sockets {
                room &= socket.flush(cx);
            }
            if room {
                let sockets = &mut self.sockets;
                self.shard.poll(
                    self.host.now(),
                    self.host.wall_clock(),
                    |port, transmit, bytes| sockets[port.place()].send(transmit, bytes),
                );
                progress |= sockets.iter().any(|socket| socket.held.is_some());
            }
            while let Some(mut news) = self.shard.next_news() {
                let News::Links {
                    busy_permille,
                    load_permille,
                    ..
                } = &mut news;
                *busy_permille = self.busy.permille(self.host.now());
                *load_permille = self.shard.take_busy(*busy_permille);
                // When the control task is that far behind, it gets the next one.
                let _ = self.news.try_send(news);
            }
            if ended {
                return Poll::Ready(());
            }
            if let Some(deadline) = self.shard.next_deadline() {
                timer.as_mut().reset(deadline);
                // Where there is no room the deadline has to wait for it.
                progress |= timer.as_mut().poll(cx).is_ready() && room;
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }
}

fn to_udp<'a>(transmit: &Transmit, contents: &'a [u8]) -> udp::Transmit<'a> {
    udp::Transmit {
        destination: transmit.destination,
        ecn: transmit
            .ecn
            .and_then(|ecn| udp::EcnCodepoint::from_bits(ecn as u8)),
        contents,
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    }
}

fn copy(transmit: &Transmit) -> Transmit {
    Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn,
        size: transmit.size,
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    }
}

fn to_proto(ecn: udp::EcnCodepoint) -> Option<quinn_proto::EcnCodepoint> {
    quinn_proto::EcnCodepoint::from_bits(ecn as u8)
}
