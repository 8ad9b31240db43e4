//! One QUIC connection of a shard: reading frames from it, and handing queued packets to it.
//!
//! The first and the third of the three rooms of a packet's way.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_proto::{Connection, Dir, Event, ReadError, StreamEvent, StreamId, Transmit, WriteError};
use rustc_hash::FxHashMap;
use tradewind_proto::{Class, DropReason, FrameReader, MAX_FRAME, RelayIndex};

use super::{link::Link, session::Session};
use crate::{
    metrics::Metrics,
    queue::{ByClass, Layout, Priority, Queued, SendQueue},
};

/// Towards a client.
static SESSION: Layout = Layout {
    streams: [0..1, 1..4, 4..6, 6..8],
    max_message_bytes: 2 << 20,
    tenants: false,
};
/// Towards a relay.
static LINK: Layout = Layout {
    streams: [0..4, 4..20, 20..26, 26..32],
    max_message_bytes: 32 << 20,
    tenants: true,
};
/// Most bytes of control messages waiting for one connection: whoever reads none for so long is
/// not talking to us.
const MAX_CONTROL_BYTES: usize = 1 << 20;
/// Most stream bytes of a class and more urgent ones that QUIC has taken and not sent: it has enough to
/// work on, and what waits in our queue can still be scheduled, or go another way when the link fails.
const STREAM_BATCH: usize = 16 << 10;

/// Priority of the control stream within QUIC. Those of messages have 0 (audio) and less.
const CONTROL_PRIORITY: i32 = 1;

/// What a connection is to us.
#[derive(Debug)]
pub(super) enum Role {
    Session(Box<Session>),
    Link(Box<Link>),
}

/// What came out of a connection.
#[derive(Debug)]
pub(super) enum Input {
    /// The handshake is complete.
    Connected,
    /// One datagram.
    Datagram(Bytes),
    /// One packet from a message stream.
    Packet(Bytes),
    /// One message from the control stream.
    Control(Bytes),
    /// The peer speaks what cannot be understood.
    Broken(&'static str),
    /// It is over.
    Lost(String),
}

/// A connection and what belongs to it.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) quic: Connection,
    pub(super) role: Role,
    pub(super) queue: SendQueue,
    /// Deadline of QUIC's timer as it stands in the shard's timers.
    pub(super) timer: Option<Instant>,
    /// Waits to be driven and to send.
    pub(super) dirty: bool,
    /// Bytes that have come since what QUIC has for us was last taken.
    pub(super) unread: usize,
    /// Established, and not over.
    pub(super) alive: bool,
    /// Counted among the handshakes of its endpoint.
    pub(super) handshaking: bool,
    /// What belonged to it has been cleaned up.
    pub(super) over: bool,
    readers: FxHashMap<StreamId, Reader>,
    control_stream: Option<StreamId>,
    control: VecDeque<Bytes>,
    control_bytes: usize,
    streams: Vec<OutStream>,
    /// A bit for each stream with a frame that QUIC has taken only a part of.
    unfinished: u32,
    /// A bit for each stream that takes nothing now.
    blocked: u32,
    priority: Priority,
    /// Whether it is the messages' turn in a class that has datagrams as well.
    messages_next: ByClass<bool>,
    /// Stream bytes that QUIC has taken and not sent, or a little less.
    unsent: ByClass<usize>,
}

#[derive(Debug)]
struct Reader {
    frames: FrameReader,
    control: bool,
}

#[derive(Debug, Default)]
struct OutStream {
    id: Option<StreamId>,
    /// What QUIC has not taken of a frame.
    rest: VecDeque<Bytes>,
}

/// What a packet needs to leave: who we are, and the clients' leg.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    me: RelayIndex,
    now: Instant,
    /// One-way estimate of the client's leg; `None` on links.
    leg: Option<Duration>,
}

impl Conn {
    pub(super) fn new(quic: Connection, role: Role) -> Self {
        let layout = match role {
            Role::Session(_) => &SESSION,
            Role::Link(_) => &LINK,
        };
        Self {
            quic,
            role,
            queue: SendQueue::new(layout),
            timer: None,
            dirty: false,
            unread: 0,
            alive: false,
            handshaking: true,
            over: false,
            readers: FxHashMap::default(),
            control_stream: None,
            control: VecDeque::new(),
            control_bytes: 0,
            streams: (0..layout.count()).map(|_| OutStream::default()).collect(),
            unfinished: 0,
            blocked: 0,
            priority: Priority::default(),
            messages_next: Default::default(),
            unsent: Default::default(),
        }
    }

    /// Half the shortest round trip of this connection: the estimate of its one-way delay. (The
    /// smoothed one contains the peer's delay in acknowledging.)
    pub(super) fn leg(&self) -> Duration {
        self.quic.min_rtt() / 2
    }

    /// Opens the control stream (the dialer's part).
    pub(super) fn open_control(&mut self) {
        if let Some(id) = self.quic.streams().open(Dir::Bi) {
            self.set_control(id);
            self.readers.insert(id, Reader::new(true));
        }
    }

    fn set_control(&mut self, id: StreamId) {
        self.control_stream = Some(id);
        // It only fails on a stream that is not there.
        let _ = self.quic.send_stream(id).set_priority(CONTROL_PRIORITY);
    }

    /// Queues a control message (already framed). `false` when the peer takes none.
    pub(super) fn send_control(&mut self, frame: Bytes) -> bool {
        self.control_bytes += frame.len();
        self.control.push_back(frame);
        self.control_bytes <= MAX_CONTROL_BYTES
    }

    /// Takes everything that QUIC has for us.
    pub(super) fn read(&mut self, mut on_input: impl FnMut(Input)) {
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Connected => {
                    self.alive = true;
                    on_input(Input::Connected);
                }
                Event::ConnectionLost { reason } => {
                    self.alive = false;
                    on_input(Input::Lost(reason.to_string()));
                }
                Event::DatagramReceived => {
                    while let Some(datagram) = self.quic.datagrams().recv() {
                        on_input(Input::Datagram(datagram));
                    }
                }
                Event::Stream(StreamEvent::Opened { dir }) => {
                    while let Some(id) = self.quic.streams().accept(dir) {
                        let control = dir == Dir::Bi;
                        if control && self.control_stream.is_none() {
                            self.set_control(id);
                        }
                        self.readers.insert(id, Reader::new(control));
                        self.read_stream(id, &mut on_input);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read_stream(id, &mut on_input),
                Event::Stream(StreamEvent::Writable { id }) => {
                    if let Some(stream) = self.streams.iter().position(|s| s.id == Some(id)) {
                        self.blocked &= !(1 << stream);
                    }
                }
                Event::Stream(StreamEvent::Available { .. }) => {
                    self.blocked = 0;
                }
                Event::Stream(StreamEvent::Stopped { .. }) => {
                    on_input(Input::Broken("a message stream was stopped by the peer"));
                }
                Event::Stream(StreamEvent::Finished { .. })
                | Event::HandshakeDataReady
                | Event::DatagramsUnblocked => {}
            }
        }
    }

    fn read_stream(&mut self, id: StreamId, on_input: &mut impl FnMut(Input)) {
        let Some(reader) = self.readers.get_mut(&id) else {
            return;
        };
        let mut ended = false;
        let mut stream = self.quic.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else {
            return;
        };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    reader.frames.push(chunk.bytes);
                    loop {
                        match reader.frames.next_frame() {
                            Ok(Some(frame)) if reader.control => on_input(Input::Control(frame)),
                            Ok(Some(frame)) => on_input(Input::Packet(frame)),
                            Ok(None) => break,
                            Err(_) => {
                                drop(chunks);
                                self.readers.remove(&id);
                                on_input(Input::Broken("a frame is longer than allowed"));
                                return;
                            }
                        }
                    }
                }
                Ok(None) | Err(ReadError::Reset(_)) => {
                    ended = true;
                    break;
                }
                Err(ReadError::Blocked) => break,
            }
        }
        // Flow-control credit goes out with the next transmit in any case.
        let _ = chunks.finalize();
        if ended {
            self.readers.remove(&id);
        }
    }

    /// Hands packets to QUIC, most urgent first, as far as it takes them without queueing much
    /// itself. `true` when something was handed over.
    pub(super) fn pump(&mut self, me: RelayIndex, now: Instant, metrics: &Metrics) -> bool {
        if !self.alive {
            return false;
        }
        let leaving = Leaving {
            me,
            now,
            leg: matches!(self.role, Role::Session(_)).then(|| self.leg()),
        };
        let mut progress = self.pump_control();
        while let Some(class) = self.priority.next(self.waiting()) {
            if !self.serve(class, leaving, metrics) {
                // QUIC has enough of it, and sends that before anything less urgent is let in.
                break;
            }
            progress = true;
        }
        progress
    }

    /// Whether something waits here that QUIC has not taken.
    pub(super) fn has_more(&self) -> bool {
        !self.queue.is_empty() || self.unfinished != 0 || !self.control.is_empty()
    }

    /// Which classes have something that could be sent: waiting here for QUIC to take it, or inside
    /// QUIC, which would send any datagram first.
    fn waiting(&self) -> ByClass<bool> {
        if self.queue.is_empty() && self.unsent == [0; Class::ALL.len()] && self.unfinished == 0 {
            return [false; Class::ALL.len()];
        }
        Class::ALL.map(|class| {
            self.queue.has_datagrams(class)
                || self.unsent[class as usize] > 0
                || self.can_write(class)
        })
    }

    /// Whether a stream of a class would take something that waits.
    fn can_write(&self, class: Class) -> bool {
        let open = self.queue.streams(class) & !self.blocked;
        open & self.unfinished != 0 || self.queue.has_messages(class, open)
    }

    /// Hands over a packet of a class. `false` when QUIC has to send first.
    fn serve(&mut self, class: Class, leaving: Leaving, metrics: &Metrics) -> bool {
        let messages = self.unsent[class as usize] > 0 || self.can_write(class);
        // Datagrams and messages of the same class share evenly.
        if messages && (self.messages_next[class as usize] || !self.queue.has_datagrams(class)) {
            return self.serve_message(class, leaving, metrics);
        }
        self.serve_datagram(class, leaving, metrics)
    }

    fn serve_datagram(&mut self, class: Class, leaving: Leaving, metrics: &Metrics) -> bool {
        let count = |_, reason| metrics.count_drop(reason);
        let Some(packet) = self.queue.next_datagram(class, leaving.now, count) else {
            // Late ones only: it does not wait any more.
            return true;
        };
        let length = match leaving.leg {
            Some(_) => packet.access_len(),
            None => packet.link_len(),
        };
        let datagrams = self.quic.datagrams();
        let fits = datagrams.max_size().is_some_and(|max| length <= max);
        if fits && datagrams.send_buffer_space() < length {
            return false;
        }
        let Some(queued) = self.queue.pop_datagram(class) else {
            return true;
        };
        if !fits {
            metrics.count_drop(DropReason::TooLarge);
            return true;
        }
        leaving.count(&queued, metrics);
        let Queued { packet, handle } = queued;
        let bytes = match leaving.leg {
            Some(leg) => packet.into_access_datagram(handle, leg, leaving.me, leaving.now),
            None => packet.into_link_datagram(leaving.me, leaving.now),
        };
        if self.quic.datagrams().send(bytes, false).is_err() {
            metrics.count_drop(DropReason::TooLarge);
            return true;
        }
        // Datagrams leave before all else that QUIC has: as good as sent.
        self.priority.sent(class, length, self.waiting());
        self.messages_next[class as usize] = true;
        true
    }

    fn serve_message(&mut self, class: Class, leaving: Leaving, metrics: &Metrics) -> bool {
        // What is less urgent is no hindrance: QUIC sends it later.
        let inside: usize = self.unsent[..=class as usize].iter().sum();
        let open = self.queue.streams(class) & !self.blocked;
        if inside >= STREAM_BATCH || open == 0 {
            return false;
        }
        let begun = open & self.unfinished;
        let stream = if begun != 0 {
            begun.trailing_zeros() as u8
        } else {
            let Some((stream, queued)) = self.queue.pop_message(class, open) else {
                return false;
            };
            leaving.count(&queued, metrics);
            let Queued { packet, handle } = queued;
            self.streams[usize::from(stream)]
                .rest
                .extend(match leaving.leg {
                    Some(leg) => packet.into_access_frame(handle, leg, leaving.me, leaving.now),
                    None => packet.into_link_frame(leaving.me, leaving.now),
                });
            stream
        };
        let out = &mut self.streams[usize::from(stream)];
        let written = out.write(&mut self.quic, class);
        set_bit(&mut self.unfinished, stream, !out.rest.is_empty());
        // Until it is writable, or there may be more streams. (What is left after a part was taken is
        // tried again, for QUIC says when a stream becomes writable only after it has refused.)
        set_bit(&mut self.blocked, stream, written == 0);
        self.unsent[class as usize] += written;
        true
    }

    /// Lets QUIC make the next UDP datagrams, and notes what they carry.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        max_segments: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<Transmit> {
        let unsent: usize = self.unsent.iter().sum();
        if unsent == 0 {
            return self.quic.poll_transmit(now, max_segments, buffer);
        }
        let before = (
            self.quic.stats().frame_tx,
            self.quic.datagrams().send_buffer_space(),
        );
        let transmit = self.quic.poll_transmit(now, max_segments, buffer)?;
        let after = (
            self.quic.stats().frame_tx,
            self.quic.datagrams().send_buffer_space(),
        );
        if after.0.stream > before.0.stream {
            // QUIC's buffer counts what it takes itself for each datagram, too.
            let count = (after.0.datagram - before.0.datagram) as usize;
            let datagrams = after
                .1
                .saturating_sub(before.1 + count * size_of::<Bytes>());
            self.sent_of_streams(transmit.size.saturating_sub(datagrams));
        }
        Some(transmit)
    }

    /// Notes that so many bytes of streams have left QUIC, which sends the most urgent first. It is a
    /// little less in truth, for they are counted with their headers and with what is sent again: what
    /// we take to be unsent is never more than what is.
    fn sent_of_streams(&mut self, mut bytes: usize) {
        let waiting = self.waiting();
        for class in Class::ALL {
            let unsent = &mut self.unsent[class as usize];
            let sent = bytes.min(*unsent);
            *unsent -= sent;
            bytes -= sent;
            if sent > 0 {
                self.priority.sent(class, sent, waiting);
                self.messages_next[class as usize] = false;
            }
        }
    }

    fn pump_control(&mut self) -> bool {
        let Some(id) = self.control_stream else {
            return false;
        };
        let mut progress = false;
        while let Some(front) = self.control.front_mut() {
            match self.quic.send_stream(id).write(front) {
                Ok(written) => {
                    progress = true;
                    self.control_bytes -= written;
                    // So that no datagram gets ahead of it for ever.
                    self.unsent[Class::Message as usize] += written;
                    if written < front.len() {
                        *front = front.slice(written..);
                        break;
                    }
                    self.control.pop_front();
                }
                Err(WriteError::Blocked) => break,
                Err(_) => {
                    self.control.clear();
                    self.control_bytes = 0;
                }
            }
        }
        progress
    }
}

impl OutStream {
    /// Writes what is there as far as QUIC takes it; gives the bytes that it took.
    fn write(&mut self, quic: &mut Connection, class: Class) -> usize {
        if self.id.is_none() {
            self.id = quic.streams().open(Dir::Uni);
            if let Some(id) = self.id {
                // Only fails on a stream that is not there.
                let _ = quic.send_stream(id).set_priority(-(class as i32));
            }
        }
        let Some(id) = self.id else {
            return 0;
        };
        let chunks = self.rest.make_contiguous();
        match quic.send_stream(id).write_chunks(chunks) {
            Ok(written) => {
                self.rest.drain(..written.chunks);
                written.bytes
            }
            // Blocked: until it is writable. Stopped or closed: the connection is being closed.
            Err(_) => 0,
        }
    }
}

impl Leaving {
    fn count(self, queued: &Queued, metrics: &Metrics) {
        let packet = &queued.packet;
        let class = packet.header.class;
        let stay = self.now.saturating_duration_since(packet.arrived);
        match self.leg {
            Some(leg) => metrics.count_delivered(
                class,
                packet.payload_len(),
                stay,
                packet.age_at(self.now) + leg,
            ),
            None => metrics.count_forwarded(class, packet.payload_len(), stay),
        }
    }
}

impl Reader {
    fn new(control: bool) -> Self {
        Self {
            frames: FrameReader::new(MAX_FRAME),
            control,
        }
    }
}

fn set_bit(bits: &mut u32, place: u8, on: bool) {
    *bits = *bits & !(1 << place) | u32::from(on) << place;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token's claims and names, and what small maps and vectors round up to.
    const ON_THE_HEAP: usize = 1 << 10;

    #[test]
    fn an_idle_session_takes_little_beside_quic() {
        let queue = SendQueue::new(&SESSION);
        assert!(queue.is_empty(), "nothing is allocated before it is used");
        let own = size_of::<Conn>() - size_of::<Connection>()
            + SESSION.count() * size_of::<OutStream>()
            + size_of::<Session>()
            // The control stream's reader, in the smallest table there is.
            + 4 * (size_of::<(StreamId, Reader)>() + 1)
            + ON_THE_HEAP;
        assert!(own <= 4 << 10, "{own} bytes");
    }
}
