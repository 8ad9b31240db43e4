//! One QUIC connection of a shard: reading frames from it, and handing queued packets to it.
//!
//! The first and the third of the three rooms of a packet's way.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_proto::{Connection, Dir, Event, ReadError, StreamEvent, StreamId, WriteError};
use rustc_hash::FxHashMap;
use tradewind_proto::{Class, DropReason, FrameReader, MAX_FRAME, RelayIndex};

use super::{link::Link, session::Session};
use crate::{
    metrics::Metrics,
    queue::{Queued, SendQueue},
};

/// Message streams towards a client.
pub(super) const SESSION_STREAMS: usize = 8;
/// Message streams towards a relay.
pub(super) const LINK_STREAMS: usize = 32;
/// Most bytes of messages waiting for one client.
const SESSION_MESSAGE_BYTES: usize = 2 << 20;
/// Most bytes of messages waiting for one link.
const LINK_MESSAGE_BYTES: usize = 32 << 20;
/// Most bytes of control messages waiting for one connection: whoever reads none for so long is
/// not talking to us.
const MAX_CONTROL_BYTES: usize = 1 << 20;
/// Most stream bytes that QUIC has taken and not sent: it has enough to work on, and what waits in our
/// queue can still be scheduled, or go another way when the link fails.
const STREAM_BATCH: usize = 16 << 10;

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
    next_stream: usize,
    /// Stream bytes that QUIC has taken and not sent. Estimated: all that is sent is taken to be such.
    unsent: usize,
}

#[derive(Debug)]
struct Reader {
    frames: FrameReader,
    control: bool,
}

#[derive(Debug, Default)]
struct OutStream {
    id: Option<StreamId>,
    /// A frame that QUIC has taken a part of.
    rest: VecDeque<Bytes>,
    blocked: bool,
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
        let (streams, bytes) = match role {
            Role::Session(_) => (SESSION_STREAMS, SESSION_MESSAGE_BYTES),
            Role::Link(_) => (LINK_STREAMS, LINK_MESSAGE_BYTES),
        };
        Self {
            quic,
            role,
            queue: SendQueue::new(streams, bytes),
            timer: None,
            dirty: false,
            alive: false,
            handshaking: true,
            over: false,
            readers: FxHashMap::default(),
            control_stream: None,
            control: VecDeque::new(),
            control_bytes: 0,
            streams: (0..streams).map(|_| OutStream::default()).collect(),
            next_stream: 0,
            unsent: 0,
        }
    }

    /// Half the shortest round trip of this connection: the estimate of its one-way delay. (The
    /// smoothed one contains the peer's delay in acknowledging.)
    pub(super) fn leg(&self) -> Duration {
        self.quic.min_rtt() / 2
    }

    /// Opens the control stream (the dialer's part).
    pub(super) fn open_control(&mut self) {
        self.control_stream = self.quic.streams().open(Dir::Bi);
        if let Some(id) = self.control_stream {
            self.readers.insert(id, Reader::new(true));
        }
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
                            self.control_stream = Some(id);
                        }
                        self.readers.insert(id, Reader::new(control));
                        self.read_stream(id, &mut on_input);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read_stream(id, &mut on_input),
                Event::Stream(StreamEvent::Writable { id }) => {
                    if let Some(stream) = self.streams.iter_mut().find(|s| s.id == Some(id)) {
                        stream.blocked = false;
                    }
                }
                Event::Stream(StreamEvent::Available { .. }) => {
                    for stream in &mut self.streams {
                        stream.blocked = false;
                    }
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
        if self.queue.is_empty() && self.streams.iter().all(|stream| stream.rest.is_empty()) {
            return progress;
        }
        progress |= self.pump_datagrams(Class::Audio, leaving, metrics);
        progress |= self.pump_messages(leaving, metrics);
        progress |= self.pump_datagrams(Class::Bulk, leaving, metrics);
        progress
    }

    /// Notes that QUIC has sent so many bytes.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.unsent = self.unsent.saturating_sub(bytes);
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

    fn pump_datagrams(&mut self, least: Class, leaving: Leaving, metrics: &Metrics) -> bool {
        let mut progress = false;
        loop {
            let next = self
                .queue
                .pop_datagram(least, leaving.now, |_, reason| metrics.count_drop(reason));
            let Some(queued) = next else {
                return progress;
            };
            let length = match leaving.leg {
                Some(_) => queued.packet.access_len(),
                None => queued.packet.link_len(),
            };
            let datagrams = self.quic.datagrams();
            if datagrams.max_size().is_none_or(|max| length > max) {
                metrics.count_drop(DropReason::TooLarge);
                continue;
            }
            if datagrams.send_buffer_space() < length {
                self.queue.unpop_datagram(queued);
                return progress;
            }
            leaving.count(&queued, metrics);
            let Queued { packet, handle } = queued;
            let bytes = match leaving.leg {
                Some(leg) => packet.into_access_datagram(handle, leg, leaving.me, leaving.now),
                None => packet.into_link_datagram(leaving.me, leaving.now),
            };
            if self.quic.datagrams().send(bytes, false).is_err() {
                metrics.count_drop(DropReason::TooLarge);
            }
            progress = true;
        }
    }

    fn pump_messages(&mut self, leaving: Leaving, metrics: &Metrics) -> bool {
        let mut budget = STREAM_BATCH.saturating_sub(self.unsent);
        if budget == 0 {
            return false;
        }
        let mut progress = false;
        let count = self.queue.streams();
        for offset in 0..count {
            let index = (self.next_stream + offset) % count;
            loop {
                if budget == 0 {
                    // The others come first next time.
                    self.next_stream = (index + 1) % count;
                    return progress;
                }
                let stream = &mut self.streams[index];
                if stream.blocked {
                    break;
                }
                if stream.rest.is_empty() {
                    let Some(queued) = self.queue.pop_message(index) else {
                        break;
                    };
                    leaving.count(&queued, metrics);
                    let Queued { packet, handle } = queued;
                    stream.rest.extend(match leaving.leg {
                        Some(leg) => packet.into_access_frame(handle, leg, leaving.me, leaving.now),
                        None => packet.into_link_frame(leaving.me, leaving.now),
                    });
                }
                let written = stream.write(&mut self.quic);
                budget = budget.saturating_sub(written);
                self.unsent += written;
                progress |= written > 0;
            }
        }
        progress
    }
}

impl OutStream {
    /// Writes what is there; gives the bytes that QUIC took.
    fn write(&mut self, quic: &mut Connection) -> usize {
        if self.id.is_none() {
            self.id = quic.streams().open(Dir::Uni);
        }
        let Some(id) = self.id else {
            self.blocked = true; // until StreamEvent::Available
            return 0;
        };
        let chunks = self.rest.make_contiguous();
        match quic.send_stream(id).write_chunks(chunks) {
            Ok(written) => {
                self.rest.drain(..written.chunks);
                written.bytes
            }
            Err(_) => {
                // Blocked: until it is writable. Stopped or closed: the connection is being closed.
                self.blocked = true;
                0
            }
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
