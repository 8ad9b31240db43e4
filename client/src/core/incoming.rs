//! What comes in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tradewind_proto::{
    Class,
    lane::{Data, LaneFrame, ReceiveLane},
    packet::{AccessHeader, Kind, Trace},
};

use super::{
    Core, DeviceKey, FlowKey, LaneKey, MAX_HELD, MAX_HELD_PER_HANDLE, MAX_LANES_PER_SENDER, Packet,
    Pinged, ReceiveEntry, ReceiveKey, Timer, WayKey,
};
use crate::{Hop, Media, PingError, PingReport, Stats, inbox::Inbox, shared::Shared};

/// A ping that waits for its answer.
pub(crate) struct Ping {
    /// The session that it was sent over.
    pub(crate) session: u64,
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

impl Packet {
    /// The way back to where it came from.
    const fn way(&self) -> WayKey {
        WayKey {
            session: self.session,
            handle: self.header.handle,
        }
    }
}

impl Core {
    /// A packet has come: a datagram, or a frame of a message stream.
    pub(crate) fn on_packet(&mut self, session: u64, bytes: Bytes, reliable: bool, now: Instant) {
        if !self.attachments.contains_key(&session) {
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
        if !(reliable && LaneFrame::is_try(&payload)) {
            self.note_use(session, now);
        }
        let packet = Packet {
            session,
            header,
            payload,
        };
        if header.group {
            return self.on_group_packet(packet, now);
        }
        match header.kind {
            Kind::Message => self.on_message_packet(packet, now),
            Kind::Media => self.on_media(packet, now),
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
    pub(super) fn on_peer(&mut self, way: WayKey, user: &str, instance: u64, now: Instant) {
        let user: Arc<str> = self
            .peers
            .get_key_value(user)
            .map_or_else(|| user.into(), |(name, _)| name.clone());
        let Some(attachment) = self.attachments.get_mut(&way.session) else {
            return;
        };
        let entry = attachment.handles.entry(way.handle).or_default();
        entry.user = Some(user);
        entry.instance = instance;
        entry.gone = false;
        let held = std::mem::take(&mut entry.held);
        self.held -= held.len();
        for packet in held {
            match packet.header.kind {
                Kind::Message => self.on_message_packet(packet, now),
                _ => self.on_media(packet, now),
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
            // Of a lane to a group, only what comes from the group's own handle counts: its
            // members know the sender instance.
            LaneFrame::Ack(ack) => {
                if self.is_group_way(packet.way()) {
                    self.groups.on_ack(packet.header.handle, &ack, now);
                    self.serve_groups(now);
                } else if let Some(device) = self.by_sender.get(&ack.sender).cloned()
                    && let Some(entry) = self.send_entry(&device, ack.lane)
                {
                    entry.lane.on_ack(&ack, now);
                    self.serve_send(&device, ack.lane);
                }
            }
            // Whoever knows the sender instance is the peer: no need to know its name.
            LaneFrame::Refuse(refuse) => {
                if self.is_group_way(packet.way()) {
                    self.groups.on_refuse(packet.header.handle, &refuse, now);
                    self.serve_groups(now);
                } else if let Some(device) = self.by_sender.get(&refuse.sender).cloned()
                    && let Some(entry) = self.send_entry(&device, refuse.lane)
                {
                    entry.lane.on_refuse(&refuse, now);
                    self.serve_send(&device, refuse.lane);
                }
            }
            LaneFrame::Data(data) => {
                let Some(packet) = self.hold_if_unknown(packet) else {
                    return;
                };
                self.on_data(packet.way(), data, age, now);
            }
            LaneFrame::Skip(skip) => {
                let Some(packet) = self.hold_if_unknown(packet) else {
                    return;
                };
                let way = packet.way();
                let Some((user, _)) = self.user_of(way) else {
                    return;
                };
                let key = ReceiveKey {
                    user,
                    sender: skip.sender,
                    lane: skip.lane,
                };
                if let Some(entry) = self.received.get_mut(&key) {
                    entry.from = way;
                    entry.lane.on_skip(skip.base, now);
                    self.serve_receive(&key, now);
                }
            }
            LaneFrame::Left(left) => {
                let Some(packet) = self.hold_if_unknown(packet) else {
                    return;
                };
                let way = packet.way();
                if let Some((user, instance)) = self.user_of(way)
                    && instance == left.instance
                    && self.peers.contains_key(&user)
                {
                    self.on_left(&DeviceKey { user, instance }, &left.relay, way, now);
                }
            }
            // At once: when it came is what is asked.
            LaneFrame::Try(asked) => self.on_try(packet.way(), asked, now),
            LaneFrame::Tried(tried) => self.on_tried(tried, now),
        }
    }

    fn on_data(&mut self, way: WayKey, data: Data, age: Duration, now: Instant) {
        let Some((user, _)) = self.user_of(way) else {
            return;
        };
        self.note_talk(&user, now);
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
                from: way,
                heard_at: now,
                duplicates_counted: 0,
                queued_at: None,
                blocked: false,
                timer: None,
            };
            self.received.insert(key.clone(), entry);
        }
        if let Some(entry) = self.received.get_mut(&key) {
            entry.from = way;
            entry.heard_at = now;
            entry.lane.on_data(data, age, now);
            self.serve_receive(&key, now);
        }
    }

    fn on_media(&mut self, packet: Packet, now: Instant) {
        let Some(packet) = self.hold_if_unknown(packet) else {
            return;
        };
        let Some((from, instance)) = self.user_of(packet.way()) else {
            return;
        };
        self.note_talk(&from, now);
        let Packet {
            session,
            header,
            payload,
        } = packet;
        let payload = if header.trace {
            payload.slice(Trace::LEN.min(payload.len())..)
        } else {
            payload
        };
        self.stats.media_received += 1;
        let key = FlowKey {
            user: from.clone(),
            instance,
            flow: header.flow,
        };
        let media = Media {
            from,
            group: None,
            layer: 0,
            handle: header.handle,
            session,
            flow: header.flow,
            sequence: header.sequence,
            age: Duration::from_micros(u64::from(header.age_us)),
            class: header.class,
            path_change: header.path_change,
            payload,
        };
        let order = (header.sequence, header.path_change);
        let (inbox, stats) = (&mut self.inbox, &mut self.stats);
        let mut give = |packet| give_media(inbox, stats, packet, now);
        match header.class {
            Class::Audio | Class::Video => {
                self.reorder.take(&key, order, (media, now), now, &mut give);
            }
            Class::Message | Class::Bulk => give((media, now)),
        }
        self.wakes.events = true;
        self.set_reorder_timer();
    }

    /// Media that has overtaken other has waited for long enough.
    pub(super) fn on_reorder_timer(&mut self, now: Instant) {
        self.reorder_timer = None;
        let (inbox, stats) = (&mut self.inbox, &mut self.stats);
        let mut give = |packet| give_media(inbox, stats, packet, now);
        self.reorder.on_timeout(now, &mut give);
        self.wakes.events = true;
        self.set_reorder_timer();
    }

    fn set_reorder_timer(&mut self) {
        let next = self.reorder.next_timeout();
        let before = std::mem::replace(&mut self.reorder_timer, next);
        self.set_timer(Timer::Reorder, before, next);
    }

    /// Answers at once, with what the request went through.
    fn on_echo_request(&mut self, packet: &Packet) {
        let Some(live) = self.live(packet.session) else {
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
        if self.on_proof(&packet.header, &packet.payload, now) {
            return;
        }
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

    fn user_of(&self, way: WayKey) -> Option<(Arc<str>, u64)> {
        let handle = self
            .attachments
            .get(&way.session)?
            .handles
            .get(&way.handle)?;
        Some((handle.user.clone()?, handle.instance))
    }

    /// Gives the packet back if its sender is known; holds it until then otherwise.
    fn hold_if_unknown(&mut self, packet: Packet) -> Option<Packet> {
        let attachment = self.attachments.get_mut(&packet.session)?;
        let entry = attachment.handles.entry(packet.header.handle).or_default();
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

/// Gives the application a media packet that came at a certain time.
fn give_media(inbox: &mut Inbox, stats: &mut Stats, packet: (Media, Instant), now: Instant) {
    let (mut media, came) = packet;
    media.age += now.saturating_duration_since(came);
    stats.media_dropped += u64::from(inbox.push_media(media));
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
