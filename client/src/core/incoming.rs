//! What comes in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tradewind_proto::{
    lane::{Data, LaneFrame, ReceiveLane},
    packet::{AccessHeader, Kind, Trace},
};

use super::{
    Core, LaneKey, MAX_HELD, MAX_HELD_PER_HANDLE, MAX_LANES_PER_SENDER, Packet, Pinged,
    ReceiveEntry, ReceiveKey, Timer,
};
use crate::{Hop, Media, PingError, PingReport, shared::Shared};

/// A ping that waits for its answer.
pub(crate) struct Ping {
    /// What must come back.
    pub(crate) nonce: [u8; 8],
    pub(crate) sent: Instant,
    pub(crate) pinged: Pinged,
}

impl Ping {
    pub(super) fn failed(self, error: PingError) {
        let _ = self.pinged.send(Err(error));
    }
}

impl Core {
    /// A packet has come: a datagram, or a frame of a message stream.
    pub(crate) fn on_packet(&mut self, session: u64, bytes: Bytes, reliable: bool, now: Instant) {
        if session != self.sessions || self.live.is_none() {
            return;
        }
        let header = match AccessHeader::decode(&bytes) {
            Ok(header) if header.kind.is_reliable() == reliable => header,
            _ => {
                self.stats.unexpected += 1;
                return;
            }
        };
        let payload = bytes.slice(AccessHeader::LEN..);
        let packet = Packet { header, payload };
        match header.kind {
            Kind::Message => self.on_message_packet(packet, now),
            Kind::Media => self.on_media(packet),
            Kind::EchoRequest => self.on_echo_request(&packet),
            Kind::EchoReply => self.on_echo_reply(&packet, now),
            Kind::Control | Kind::Probe => self.stats.unexpected += 1,
        }
    }

    /// Awaits the answer to an echo with this flow.
    pub(crate) fn await_ping(&mut self, flow: u32, ping: Ping) {
        self.pings.insert(flow, ping);
    }

    /// Nobody awaits it any more.
    pub(crate) fn forget_ping(&mut self, flow: u32) {
        self.pings.remove(&flow);
    }

    /// It is now known who is behind a handle.
    pub(super) fn on_peer(&mut self, handle: u32, user: &str, now: Instant) {
        let user: Arc<str> = self
            .peers
            .get_key_value(user)
            .map_or_else(|| user.into(), |(name, _)| name.clone());
        let entry = self.handles.entry(handle).or_default();
        entry.user = Some(user);
        let held = std::mem::take(&mut entry.held);
        self.held -= held.len();
        for packet in held {
            match packet.header.kind {
                Kind::Message => self.on_message_packet(packet, now),
                _ => self.on_media(packet),
            }
        }
    }

    fn on_message_packet(&mut self, packet: Packet, now: Instant) {
        let frame = match LaneFrame::decode(packet.payload.clone()) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(%error, "a packet that is no frame of a lane");
                self.stats.unexpected += 1;
                return;
            }
        };
        let age = Duration::from_micros(u64::from(packet.header.age_us));
        match frame {
            // Whoever knows the sender instance is the peer: no need to know its name.
            LaneFrame::Ack(ack) => {
                if let Some(user) = self.by_sender.get(&ack.sender).cloned()
                    && let Some(entry) = self.send_entry(&user, ack.lane)
                {
                    entry.lane.on_ack(&ack, now);
                    self.serve_send(&user, ack.lane);
                }
            }
            LaneFrame::Refuse(refuse) => {
                if let Some(user) = self.by_sender.get(&refuse.sender).cloned()
                    && let Some(entry) = self.send_entry(&user, refuse.lane)
                {
                    entry.lane.on_refuse(&refuse, now);
                    self.serve_send(&user, refuse.lane);
                }
            }
            LaneFrame::Data(data) => {
                let Some(packet) = self.hold_if_unknown(packet) else {
                    return;
                };
                self.on_data(packet.header.handle, data, age, now);
            }
            LaneFrame::Skip(skip) => {
                let Some(packet) = self.hold_if_unknown(packet) else {
                    return;
                };
                let handle = packet.header.handle;
                let Some(user) = self.user_of(handle) else {
                    return;
                };
                let key = ReceiveKey {
                    user,
                    sender: skip.sender,
                    lane: skip.lane,
                };
                if let Some(entry) = self.received.get_mut(&key) {
                    entry.from = (self.sessions, handle);
                    entry.lane.on_skip(skip.base, now);
                    self.serve_receive(&key, now);
                }
            }
        }
    }

    fn on_data(&mut self, handle: u32, data: Data, age: Duration, now: Instant) {
        let Some(user) = self.user_of(handle) else {
            return;
        };
        let key = ReceiveKey {
            user,
            sender: data.sender,
            lane: data.lane,
        };
        if !self.received.contains_key(&key) {
            if !self.make_room_for(&key.user) {
                self.stats.unexpected += 1;
                return;
            }
            let lane = ReceiveLane::new(
                self.receive_config,
                self.instance,
                data.sender,
                data.lane,
                data.base,
            );
            let entry = ReceiveEntry {
                lane,
                from: (self.sessions, handle),
                heard_at: now,
                duplicates_counted: 0,
                queued: false,
                blocked: false,
                timer: None,
            };
            self.received.insert(key.clone(), entry);
        }
        if let Some(entry) = self.received.get_mut(&key) {
            entry.from = (self.sessions, handle);
            entry.heard_at = now;
            entry.lane.on_data(data, age, now);
            self.serve_receive(&key, now);
        }
    }

    fn on_media(&mut self, packet: Packet) {
        let Some(Packet { header, payload }) = self.hold_if_unknown(packet) else {
            return;
        };
        let Some(from) = self.user_of(header.handle) else {
            return;
        };
        let payload = if header.trace {
            payload.slice(Trace::LEN.min(payload.len())..)
        } else {
            payload
        };
        self.stats.media_received += 1;
        let dropped = self.inbox.push_media(Media {
            from,
            handle: header.handle,
            session: self.sessions,
            flow: header.flow,
            sequence: header.sequence,
            age: Duration::from_micros(u64::from(header.age_us)),
            class: header.class,
            path_change: header.path_change,
            payload,
        });
        self.stats.media_dropped += u64::from(dropped);
        self.wakes.events = true;
    }

    /// Answers at once, with what the request went through.
    fn on_echo_request(&mut self, packet: &Packet) {
        let Some(live) = &self.live else {
            return;
        };
        let header = AccessHeader {
            kind: Kind::EchoReply,
            path_change: false,
            group: false,
            layer: 0,
            age_us: 0,
            ..packet.header
        };
        // With the trace flag the trace stands before the payload: both go back as they are.
        if Shared::send_datagram(&live.connection, &header, &[&packet.payload]).is_err() {
            self.stats.unexpected += 1;
        }
    }

    fn on_echo_reply(&mut self, packet: &Packet, now: Instant) {
        let flow = packet.header.flow;
        let report = self.pings.get(&flow).and_then(|ping| {
            let (back, rest) = hops(packet.header.trace, &packet.payload)?;
            let (forward, nonce) = hops(packet.header.trace, rest)?;
            (nonce == ping.nonce).then(|| PingReport {
                rtt: now.saturating_duration_since(ping.sent),
                forward,
                back,
            })
        });
        match report {
            Some(report) => {
                if let Some(ping) = self.pings.remove(&flow) {
                    let _ = ping.pinged.send(Ok(report));
                }
            }
            None => self.stats.unexpected += 1,
        }
    }

    fn user_of(&self, handle: u32) -> Option<Arc<str>> {
        self.handles.get(&handle)?.user.clone()
    }

    /// Gives the packet back if its sender is known; holds it until then otherwise.
    fn hold_if_unknown(&mut self, packet: Packet) -> Option<Packet> {
        let entry = self.handles.entry(packet.header.handle).or_default();
        if entry.user.is_some() {
            return Some(packet);
        }
        if entry.held.len() < MAX_HELD_PER_HANDLE && self.held < MAX_HELD {
            entry.held.push(packet);
            self.held += 1;
        } else if packet.header.kind == Kind::Media {
            self.stats.media_dropped += 1;
        }
        None
    }

    /// Forgets the lane of `user` that was idle for longest, if it has too many. `false` when none
    /// can be forgotten, as each has something kept.
    fn make_room_for(&mut self, user: &Arc<str>) -> bool {
        let from = ReceiveKey {
            user: user.clone(),
            sender: 0,
            lane: 0,
        };
        let of_user = || {
            self.received
                .range(from.clone()..)
                .take_while(|(key, _)| key.user == *user)
        };
        if of_user().count() < MAX_LANES_PER_SENDER {
            return true;
        }
        let oldest = of_user()
            .filter(|(_, entry)| entry.lane.kept_bytes() == 0)
            .min_by_key(|(_, entry)| entry.heard_at)
            .map(|(key, _)| key.clone());
        let Some(key) = oldest else {
            return false;
        };
        if let Some(entry) = self.received.remove(&key)
            && let Some(at) = entry.timer
        {
            self.timers
                .remove(&(at, Timer::Lane(LaneKey::Receive(key))));
        }
        true
    }
}

/// The hops of a trace, if there is one, and what follows it.
fn hops(traced: bool, bytes: &[u8]) -> Option<(Vec<Hop>, &[u8])> {
    if !traced {
        return Some((Vec::new(), bytes));
    }
    let trace = Trace::decode(bytes).ok()?;
    let hops = trace.hops.into_iter().map(Hop::from).collect();
    Some((hops, &bytes[Trace::LEN..]))
}
