//! A packet while it is inside the relay: what came, and how it leaves. The payload stays where QUIC
//! put it; only headers are written anew.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tradewind_proto::{
    RelayIndex,
    packet::{
        AccessHeader, Destination, HeaderError, LinkHeader, MAX_SET_LEN, RelaySet, Trace,
        TraceRecord,
    },
};

/// A packet between its arrival and its leaving.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// The header for links. On packets from a session it is set by this edge.
    pub(crate) header: LinkHeader,
    /// Of a packet to a group: the relays that it has still to reach.
    pub(crate) relays: RelaySet,
    /// The hops so far, of a flagged packet.
    pub(crate) trace: Option<Box<Trace>>,
    /// What came, headers included.
    raw: Bytes,
    /// Where the payload begins in `raw`.
    payload_at: usize,
    /// When it came; `header.age_us` is its age then.
    pub(crate) arrived: Instant,
    /// The packet left its tree here.
    pub(crate) deflected: bool,
    /// Uplink of the link it came over; 0 at the origin.
    came_over: u8,
    access: Access,
}

/// How a packet is written for a client.
#[derive(Debug, Clone)]
enum Access {
    /// When it leaves, for this client alone.
    Own,
    /// It is written, for all members of a group here: `raw` is the datagram.
    Datagram,
    /// It is written, for all members of a group here: the frame's length and headers. The payload
    /// is in `raw`.
    Frame(Bytes),
}

/// Longest headers between relays.
const LINK_HEAD: usize = LinkHeader::LEN + MAX_SET_LEN + Trace::LEN;

impl Packet {
    /// A packet that came over a link.
    pub(crate) fn from_link(raw: Bytes, now: Instant) -> Result<Self, HeaderError> {
        let header = LinkHeader::decode(&raw)?;
        let mut payload_at = LinkHeader::LEN;
        let mut relays = RelaySet::EMPTY;
        if let Destination::Group(_) = header.destination {
            let (set, length) = RelaySet::decode(&raw[payload_at..])?;
            payload_at += length;
            relays = set;
        }
        let mut trace = None;
        if header.trace {
            trace = Some(Box::new(Trace::decode(&raw[payload_at..])?));
            payload_at += Trace::LEN;
        }
        Ok(Self {
            header,
            relays,
            trace,
            raw,
            payload_at,
            arrived: now,
            deflected: false,
            came_over: header.uplink,
            access: Access::Own,
        })
    }

    /// A packet whose payload begins at `payload_at` in `raw`, with a header made here.
    pub(crate) fn new(header: LinkHeader, raw: Bytes, payload_at: usize, now: Instant) -> Self {
        Self {
            header,
            relays: RelaySet::EMPTY,
            trace: header.trace.then(Box::default),
            raw,
            payload_at,
            arrived: now,
            deflected: false,
            came_over: 0,
            access: Access::Own,
        }
    }

    /// The packet as all members of its group here get it, written once: its copies share headers and
    /// payload. `handle` is the edge's own for its sender; the age is without the members' legs.
    pub(crate) fn for_members(mut self, handle: u32, me: RelayIndex, now: Instant) -> Self {
        let mut head = [0; AccessHeader::LEN + Trace::LEN];
        let length = self.write_access_head(&mut head, handle, Duration::ZERO, me, now);
        let (header, arrived) = (self.header, self.arrived);
        let (raw, payload_at, access) = if header.kind.is_reliable() {
            let [head, payload] = self.framed(&head[..length]);
            (payload, 0, Access::Frame(head))
        } else {
            let raw = self.with_head(&head[..length]);
            (raw, length, Access::Datagram)
        };
        Self {
            header,
            relays: RelaySet::EMPTY,
            trace: None,
            raw,
            payload_at,
            arrived,
            deflected: false,
            came_over: 0,
            access,
        }
    }

    /// Makes it what it was before this relay (`me`) forwarded it: it has not left, and is to be
    /// forwarded anew.
    pub(crate) fn take_back(&mut self, me: RelayIndex) {
        let header = &mut self.header;
        header.hop_limit += 1;
        if std::mem::take(&mut self.deflected) {
            header.deflections -= 1;
        }
        // The origin is not among those passed.
        if header.sender.relay != me
            && let Some(last) = header.passed_count().checked_sub(1)
            && header.passed[last] == me
        {
            header.passed[last] = RelayIndex::NONE;
        }
    }

    /// The application's bytes.
    pub(crate) fn payload(&self) -> Bytes {
        self.raw.slice(self.payload_at..)
    }

    /// Length of the payload, in bytes.
    pub(crate) fn payload_len(&self) -> usize {
        self.raw.len() - self.payload_at
    }

    /// Its age at `now`.
    pub(crate) fn age_at(&self, now: Instant) -> Duration {
        Duration::from_micros(u64::from(self.header.age_us))
            + now.saturating_duration_since(self.arrived)
    }

    /// As a datagram over a link.
    pub(crate) fn into_link_datagram(mut self, me: RelayIndex, now: Instant) -> Bytes {
        let mut head = [0; LINK_HEAD];
        let length = self.write_link_head(&mut head, me, now);
        self.with_head(&head[..length])
    }

    /// As a frame on a stream of a link: its length and headers, then its payload.
    pub(crate) fn into_link_frame(mut self, me: RelayIndex, now: Instant) -> [Bytes; 2] {
        let mut head = [0; LINK_HEAD];
        let length = self.write_link_head(&mut head, me, now);
        self.framed(&head[..length])
    }

    /// As a datagram to a client.
    pub(crate) fn into_access_datagram(
        mut self,
        handle: u32,
        leg: Duration,
        me: RelayIndex,
        now: Instant,
    ) -> Bytes {
        if let Access::Datagram = self.access {
            return self.raw;
        }
        let mut head = [0; AccessHeader::LEN + Trace::LEN];
        let length = self.write_access_head(&mut head, handle, leg, me, now);
        self.with_head(&head[..length])
    }

    /// As a frame on a stream to a client.
    pub(crate) fn into_access_frame(
        mut self,
        handle: u32,
        leg: Duration,
        me: RelayIndex,
        now: Instant,
    ) -> [Bytes; 2] {
        if let Access::Frame(head) = self.access {
            return [head, self.raw];
        }
        let mut head = [0; AccessHeader::LEN + Trace::LEN];
        let length = self.write_access_head(&mut head, handle, leg, me, now);
        self.framed(&head[..length])
    }

    /// Bytes that a datagram over a link will have.
    pub(crate) fn link_len(&self) -> usize {
        let trace = if self.trace.is_some() { Trace::LEN } else { 0 };
        let relays = match self.header.destination {
            Destination::Group(_) => self.relays.encoded_len().unwrap_or(MAX_SET_LEN),
            Destination::Session(_) => 0,
        };
        LinkHeader::LEN + relays + trace + self.payload_len()
    }

    /// Bytes that a datagram to a client will have.
    pub(crate) fn access_len(&self) -> usize {
        if let Access::Datagram = self.access {
            return self.raw.len();
        }
        let trace = if self.trace.is_some() { Trace::LEN } else { 0 };
        AccessHeader::LEN + trace + self.payload_len()
    }

    /// Notes this relay in the trace of a flagged packet.
    pub(crate) fn record_hop(&mut self, me: RelayIndex, now: Instant) {
        let hop = TraceRecord {
            relay: me,
            uplink: self.came_over,
            deflected: self.deflected,
            age_us: micros(self.age_at(now)),
        };
        if let Some(trace) = &mut self.trace
            && trace.hops.len() < tradewind_proto::packet::MAX_HOPS
        {
            trace.hops.push(hop);
        }
    }

    fn write_link_head(&mut self, head: &mut [u8], me: RelayIndex, now: Instant) -> usize {
        self.record_hop(me, now);
        let mut header = self.header;
        header.age_us = micros(self.age_at(now));
        header.encode(head);
        let mut length = LinkHeader::LEN;
        if let Destination::Group(_) = header.destination {
            // It fits: too large sets have been cut.
            length += self.relays.encode(&mut head[length..]).unwrap_or(0);
        }
        self.write_trace(head, length)
    }

    fn write_access_head(
        &mut self,
        head: &mut [u8],
        handle: u32,
        leg: Duration,
        me: RelayIndex,
        now: Instant,
    ) -> usize {
        self.record_hop(me, now);
        AccessHeader {
            kind: self.header.kind,
            class: self.header.class,
            trace: self.trace.is_some(),
            path_change: self.header.path_change,
            group: matches!(self.header.destination, Destination::Group(_)),
            layer: self.header.layer,
            handle,
            flow: self.header.flow,
            sequence: self.header.sequence,
            age_us: micros(self.age_at(now) + leg),
        }
        .encode(head);
        self.write_trace(head, AccessHeader::LEN)
    }

    fn write_trace(&self, head: &mut [u8], at: usize) -> usize {
        match &self.trace {
            Some(trace) => {
                head[at..at + Trace::LEN].copy_from_slice(&trace.encode());
                at + Trace::LEN
            }
            None => at,
        }
    }

    /// `head`, then the payload, contiguous as QUIC's DATAGRAM frame wants it. In place when nobody
    /// else holds the buffer and the new head is no longer than the old one; one copy otherwise
    /// (always at the ingress edge, whose clients send a shorter header).
    fn with_head(mut self, head: &[u8]) -> Bytes {
        if head.len() > self.payload_at {
            return joined(head, &self.raw[self.payload_at..]);
        }
        self.raw.advance(self.payload_at - head.len());
        match self.raw.try_into_mut() {
            Ok(mut own) => {
                own[..head.len()].copy_from_slice(head);
                own.freeze()
            }
            Err(shared) => joined(head, &shared[head.len()..]),
        }
    }

    /// The length of the frame and `head`, then the payload; nothing of the payload is copied.
    fn framed(&self, head: &[u8]) -> [Bytes; 2] {
        let length = (head.len() + self.payload_len()) as u32;
        let mut first = BytesMut::with_capacity(4 + head.len());
        first.extend_from_slice(&length.to_be_bytes());
        first.extend_from_slice(head);
        [first.freeze(), self.payload()]
    }
}

fn joined(head: &[u8], payload: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(head.len() + payload.len());
    whole.extend_from_slice(head);
    whole.extend_from_slice(payload);
    whole.freeze()
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tradewind_proto::{
        Class, Locator, PlanId, Tenant,
        packet::{Destination, Kind, MAX_PASSED},
    };

    use super::*;

    const ME: RelayIndex = RelayIndex(5);

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    fn on_the_wire(trace: bool, payload: &[u8]) -> Bytes {
        let header = LinkHeader {
            kind: Kind::Media,
            class: Class::Audio,
            profile: 0,
            tree: 0,
            deflections: 0,
            trace,
            path_change: false,
            hop_limit: 7,
            plan: PlanId::NONE,
            age_us: 1_000,
            sender: Locator::relay_itself(RelayIndex(1)),
            destination: Destination::Session(Locator::relay_itself(RelayIndex(2))),
            passed: [RelayIndex::NONE; MAX_PASSED],
            uplink: 0,
            flow: 3,
            sequence: 4,
            layer: 0,
            tenant: Tenant::NONE,
        };
        let mut head = [0; LinkHeader::LEN];
        header.encode(&mut head);
        let mut bytes = head.to_vec();
        if trace {
            bytes.extend_from_slice(&Trace::default().encode());
        }
        bytes.extend_from_slice(payload);
        bytes.into()
    }

    #[test]
    fn a_transit_packet_keeps_its_payload_where_it_is_and_grows_older() {
        let now = start();
        for trace in [false, true] {
            let raw = on_the_wire(trace, b"payload");
            let payload_at = raw[raw.len() - 7..].as_ptr();
            let packet = Packet::from_link(raw, now).expect("a packet");
            let out = packet.into_link_datagram(ME, now + Duration::from_micros(250));
            assert_eq!(out[out.len() - 7..].as_ptr(), payload_at, "it was copied");
            let again = Packet::from_link(out, now).expect("a packet");
            assert_eq!(again.header.age_us, 1_250);
            assert_eq!(&again.payload()[..], b"payload");
            let hops = again.trace.map(|trace| trace.hops.len());
            assert_eq!(hops, trace.then_some(1));
        }
    }

    #[test]
    fn towards_a_client_the_shorter_header_is_written_in_front_of_the_payload() {
        let now = start();
        let raw = on_the_wire(false, b"payload");
        let payload_at = raw[LinkHeader::LEN..].as_ptr();
        let packet = Packet::from_link(raw, now).expect("a packet");
        let leg = Duration::from_micros(500);
        let out = packet.into_access_datagram(42, leg, ME, now);
        let header = AccessHeader::decode(&out).expect("a header");
        assert_eq!((header.handle, header.flow, header.sequence), (42, 3, 4));
        assert_eq!(header.age_us, 1_500);
        assert_eq!(
            out[AccessHeader::LEN..].as_ptr(),
            payload_at,
            "it was copied"
        );
        assert_eq!(&out[AccessHeader::LEN..], b"payload");
    }

    #[test]
    fn a_buffer_that_somebody_else_holds_is_left_alone() {
        let now = start();
        let raw = on_the_wire(false, b"payload");
        let before = raw.clone();
        let packet = Packet::from_link(raw, now).expect("a packet");
        let out = packet.into_link_datagram(ME, now + Duration::from_micros(250));
        assert_ne!(out, before);
        assert_eq!(before, on_the_wire(false, b"payload"));
    }

    #[test]
    fn a_frame_is_its_length_its_header_and_the_payload_itself() {
        let now = start();
        let raw = on_the_wire(false, b"payload");
        let payload_at = raw[LinkHeader::LEN..].as_ptr();
        let packet = Packet::from_link(raw, now).expect("a packet");
        let [head, payload] = packet.into_link_frame(ME, now);
        assert_eq!(payload.as_ptr(), payload_at);
        assert_eq!(head[..4], (LinkHeader::LEN as u32 + 7).to_be_bytes());
        assert_eq!(head.len(), 4 + LinkHeader::LEN);
    }

    #[test]
    fn a_packet_taken_back_is_as_it_came() {
        let now = start();
        let raw = on_the_wire(false, b"payload");
        let came = Packet::from_link(raw, now).expect("a packet");
        let mut packet = came.clone();
        assert!(packet.header.pass(ME));
        packet.header.hop_limit -= 1;
        packet.header.deflections += 1;
        packet.deflected = true;
        packet.take_back(ME);
        assert_eq!(packet.header, came.header);
        assert!(!packet.deflected);
    }

    /// A packet to a group that is to reach relays 2 and 7.
    fn to_group(kind: Kind, payload: &[u8], now: Instant) -> Packet {
        let mut packet = Packet::from_link(on_the_wire(false, payload), now).expect("a packet");
        packet.header.kind = kind;
        packet.header.destination = Destination::Group(tradewind_proto::GroupKey(77));
        packet.relays = [2, 7].map(RelayIndex).into_iter().collect();
        packet
    }

    #[test]
    fn a_group_packet_carries_its_relays_between_relays() {
        let now = start();
        let mut packet = to_group(Kind::Media, b"payload", now);
        packet.trace = Some(Box::default());
        packet.header.trace = true;
        let length = packet.link_len();
        let out = packet.into_link_datagram(ME, now);
        assert_eq!(out.len(), length);
        let again = Packet::from_link(out, now).expect("a packet");
        assert!(again.relays.iter().eq([RelayIndex(2), RelayIndex(7)]));
        assert_eq!(&again.payload()[..], b"payload");
        assert_eq!(again.trace.map(|trace| trace.hops.len()), Some(1));
    }

    #[test]
    fn the_members_of_a_group_share_headers_and_payload() {
        let now = start();
        for kind in [Kind::Media, Kind::Message] {
            let packet = to_group(kind, b"payload", now).for_members(1 << 31, ME, now);
            let later = now + Duration::from_secs(1);
            let leg = Duration::from_millis(3);
            let written = |packet: Packet| match kind {
                Kind::Media => {
                    let whole = packet.into_access_datagram(5, leg, ME, later);
                    (
                        whole.slice(..AccessHeader::LEN),
                        whole.slice(AccessHeader::LEN..),
                    )
                }
                _ => {
                    let [head, payload] = packet.into_access_frame(5, leg, ME, later);
                    (head.slice(4..), payload)
                }
            };
            let one = written(packet.clone());
            let other = written(packet);
            assert_eq!(one.0.as_ptr(), other.0.as_ptr());
            assert_eq!(one.1.as_ptr(), other.1.as_ptr());
            let header = AccessHeader::decode(&one.0).expect("a header");
            assert!(header.group);
            assert_eq!((header.handle, header.age_us), (1 << 31, 1_000));
            assert_eq!(&one.1[..], b"payload");
        }
    }

    #[test]
    fn a_packet_that_ends_before_its_trace_does_is_refused() {
        let raw = on_the_wire(true, b"");
        let cut = raw.slice(..raw.len() - 1);
        assert!(Packet::from_link(cut, start()).is_err());
    }
}
