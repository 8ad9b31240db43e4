//! UDP sockets of emulated hosts.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};

use crate::{
    Core,
    engine::{Mode, Packet, What},
    host::HostNode,
    link::{Fate, Offer},
};

/// Datagrams per transmit and per received buffer.
const SEGMENTS: usize = 10;

/// Bytes a socket's inbox holds, each datagram's bookkeeping included: what `OsHost` asks of the
/// kernel.
const INBOX_BYTES: usize = 4 << 20;

/// What a datagram costs in the inbox besides its payload, in bytes.
const DATAGRAM_OVERHEAD: usize = 256;

/// One UDP datagram. Addresses are never IPv4-mapped ones here.
#[derive(Debug, Clone)]
pub(crate) struct Datagram {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) ecn: Option<EcnCodepoint>,
    pub(crate) payload: Bytes,
}

/// A datagram without its payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outline {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) ecn: Option<EcnCodepoint>,
    /// Bytes of payload.
    pub(crate) len: usize,
}

impl Datagram {
    pub(crate) fn outline(&self) -> Outline {
        Outline {
            source: self.source,
            destination: self.destination,
            ecn: self.ecn,
            len: self.payload.len(),
        }
    }
}

/// The receiving half of a socket, as its host's table of ports knows it.
#[derive(Debug)]
pub(crate) struct SocketShared {
    local: SocketAddr,
    /// The process that owned it was killed: it neither sends nor receives, for ever.
    closed: AtomicBool,
    inbox: Mutex<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    waker: Option<Waker>,
}

impl SocketShared {
    pub(crate) fn new(local: SocketAddr) -> Self {
        Self {
            local,
            closed: AtomicBool::new(false),
            inbox: Mutex::default(),
        }
    }

    /// See [`HostNode::deliver`].
    pub(crate) fn deliver(&self, datagram: Datagram, fate: impl FnOnce(Fate)) {
        let mut inbox = self.inbox();
        let bytes = datagram.payload.len() + DATAGRAM_OVERHEAD;
        if inbox.bytes + bytes > INBOX_BYTES {
            drop(inbox);
            return fate(Fate::InboxFull);
        }
        inbox.bytes += bytes;
        inbox.datagrams.push_back(datagram);
        let waker = inbox.waker.take();
        fate(Fate::Delivered);
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Its process has died.
    pub(crate) fn close(&self) {
        self.closed.store(true, Relaxed);
        let inbox = std::mem::take(&mut *self.inbox());
        drop(inbox);
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox
            .lock()
            .expect("no code panics while it holds an inbox")
    }
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct WanSocket {
    core: Arc<Core>,
    node: Arc<HostNode>,
    shared: Arc<SocketShared>,
}

impl WanSocket {
    pub(crate) fn new(core: Arc<Core>, node: Arc<HostNode>, shared: Arc<SocketShared>) -> Self {
        Self { core, node, shared }
    }

    /// The address packets to `destination` bear as their source.
    fn source(&self, destination: IpAddr, asked: Option<IpAddr>) -> io::Result<SocketAddr> {
        let local = self.shared.local;
        if local.is_ipv4() && destination.is_ipv6() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("an IPv4 socket ({local}) cannot send to {destination}"),
            ));
        }
        let bound = Some(local.ip()).filter(|ip| !ip.is_unspecified());
        let asked = asked
            .map(|ip| ip.to_canonical())
            .filter(|ip| !ip.is_unspecified());
        let ip = asked
            .or(bound)
            .unwrap_or_else(|| self.node.address_like(destination));
        if !self.node.owns(ip) || ip.is_ipv4() != destination.is_ipv4() {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("cannot send to {destination} from {ip}"),
            ));
        }
        Ok(SocketAddr::new(ip, local.port()))
    }

    /// How this socket shows an address: a dual-stack one has IPv4 peers as mapped addresses.
    fn shown(&self, address: SocketAddr) -> SocketAddr {
        match (self.shared.local, address.ip()) {
            (SocketAddr::V6(_), IpAddr::V4(ip)) => {
                SocketAddr::new(ip.to_ipv6_mapped().into(), address.port())
            }
            _ => address,
        }
    }
}

impl AsyncUdpSocket for WanSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = SocketAddr::new(
            transmit.destination.ip().to_canonical(),
            transmit.destination.port(),
        );
        let source = self.source(to.ip(), transmit.src_ip)?;
        let payload = Bytes::copy_from_slice(transmit.contents);
        let segment = transmit.segment_size.unwrap_or(payload.len()).max(1);
        // An empty datagram is a datagram too.
        let segments = payload.len().div_ceil(segment).max(1);
        let Some((link, to_node)) = self.core.route(&self.node, to.ip()) else {
            self.core.count_unknown_address(segments as u64);
            return Ok(());
        };
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let engine = &self.core.engine;
        let now_ns = engine.now_ns();
        let dead = self.shared.closed.load(Relaxed)
            || !self.node.is_alive()
            || self.node.is_asleep(now_ns);
        let access_ns = self.node.access_ns() + to_node.access_ns();
        // The link stays locked until its packets are queued or delivered: else two threads could
        // turn the order of packets due at the same instant around.
        if !dead {
            self.node.lets_out(source, to, now_ns);
        }
        let mut state = link.state();
        let mut later = Vec::new();
        for index in 0..segments {
            let start = index * segment;
            let payload = payload.slice(start..payload.len().min(start + segment));
            let offer = Offer {
                now_ns,
                bytes: (payload.len() + headers) as u64,
                pair: (self.node.index, to_node.index),
                access_ns,
            };
            let datagram = Datagram {
                source,
                destination: to,
                ecn: transmit.ecn,
                payload,
            };
            link.count_sent();
            let fate = if dead {
                Err(Fate::DeadHost)
            } else {
                state.admit(&offer)
            };
            match fate {
                Ok(arrivals) => {
                    link.count_arrivals(&arrivals);
                    let copy = arrivals.copy_ns.map(|at_ns| (at_ns, datagram.clone()));
                    for (at_ns, datagram) in std::iter::once((arrivals.at_ns, datagram)).chain(copy)
                    {
                        if engine.mode == Mode::Real
                            && at_ns <= now_ns
                            && link.queue_is_empty()
                            && to_node.stalled_until(now_ns).is_none()
                        {
                            engine.deliver_now(&link, &to_node, datagram);
                            continue;
                        }
                        link.enters_queue();
                        let packet = Packet {
                            link: link.clone(),
                            to: to_node.clone(),
                            datagram,
                        };
                        later.push((engine.round_up(at_ns), What::Deliver(Box::new(packet))));
                    }
                }
                Err(fate) => {
                    link.count(fate, 0);
                    engine.trace(fate, &datagram.outline());
                }
            }
        }
        if !later.is_empty() {
            engine.schedule_all(later.into_iter());
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.shared.inbox();
        if inbox.datagrams.is_empty() {
            match &mut inbox.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                empty => *empty = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(first) = inbox.pop() else { break };
            // As UDP does: what does not fit is cut off.
            let stride = first.payload.len().min(buf.len());
            buf[..stride].copy_from_slice(&first.payload[..stride]);
            let mut len = stride;
            let mut last = stride;
            let mut segments = 1;
            while let Some(next) = inbox.datagrams.front()
                && segments < SEGMENTS
                && last == stride
                && (1..=stride).contains(&next.payload.len())
                && len + next.payload.len() <= buf.len()
                && (next.source, next.destination, next.ecn)
                    == (first.source, first.destination, first.ecn)
            {
                last = next.payload.len();
                buf[len..len + last].copy_from_slice(&next.payload);
                len += last;
                segments += 1;
                inbox.pop();
            }
            *meta = RecvMeta::default();
            meta.addr = self.shown(first.source);
            meta.len = len;
            meta.stride = stride;
            meta.ecn = first.ecn;
            meta.dst_ip = Some(first.destination.ip());
            filled += 1;
        }
        Poll::Ready(Ok(filled))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shared.local)
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for WanSocket {
    fn drop(&mut self) {
        self.node.release(self.shared.local, &self.shared);
    }
}

impl Inbox {
    fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.datagrams.pop_front()?;
        self.bytes -= datagram.payload.len() + DATAGRAM_OVERHEAD;
        Some(datagram)
    }
}

/// Sending never waits: what a link cannot take, its queue drops.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The unspecified addresses under which a packet to `destination` may find its socket: its own
/// family's, and for IPv4 also IPv6's, whose sockets are dual-stack as Linux has them.
pub(crate) fn wildcards(destination: IpAddr) -> &'static [IpAddr] {
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match destination {
        IpAddr::V4(_) => &[V4, V6],
        IpAddr::V6(_) => &[V6],
    }
}
