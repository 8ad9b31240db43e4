//! What goes out: messages, acknowledgements, flows' ways.

use std::{sync::Arc, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tradewind_proto::{
    Class,
    lane::{Enqueue, LaneFrame, Left, Outcome, SendLane},
    packet::{AccessHeader, Kind},
};

use super::{
    Core, Device, DeviceKey, LaneKey, Outcomes, ReceiveKey, STREAMS, Timer, WayKey, Whereabouts,
    devices::{ANY, send_error},
};
use crate::{SendOptions, session::Live};

/// Bytes handed to a stream at once.
const BATCH: usize = 32 << 10;

/// A packet that has come.
pub(crate) struct Packet {
    /// The session that it came over.
    pub(crate) session: u64,
    pub(crate) header: AccessHeader,
    pub(crate) payload: Bytes,
}

impl Core {
    /// Takes a message to send.
    pub(crate) fn enqueue(
        &mut self,
        user: &str,
        payload: Bytes,
        options: SendOptions,
        outcome: Outcomes,
        now: Instant,
    ) {
        self.stats.messages_sent += 1;
        let bytes = payload.len() as u64;
        if let Err((error, outcome)) = self.try_enqueue(user, payload, options, outcome, now) {
            self.stats.messages_failed += 1;
            let limit = self.welcome.max_message_bytes;
            let error = send_error(error, bytes, limit);
            let _ = outcome.send(crate::Outcomes::failed(error));
        }
    }

    fn try_enqueue(
        &mut self,
        user: &str,
        payload: Bytes,
        options: SendOptions,
        outcome: Outcomes,
        now: Instant,
    ) -> Result<(), (Outcome, Outcomes)> {
        if self.closed {
            return Err((Outcome::Closed, outcome));
        }
        let bytes = payload.len() as u64;
        if bytes > self.welcome.max_message_bytes {
            return Err((Outcome::TooLarge, outcome));
        }
        let Some((name, peer)) = self.peer(user) else {
            return Err((Outcome::Offline, outcome));
        };
        peer.want(options.class);
        let mut devices = peer.present.clone();
        if options.newest_device {
            devices.truncate(1);
        }
        if devices.is_empty() {
            devices.push(ANY);
        }
        // While a lookup is open or waits to be made again, this message waits with the others.
        let unknown = peer.whereabouts == Whereabouts::Unknown;
        peer.class = options.class;
        let message = Enqueue {
            payload,
            class: options.class,
            ttl: options.ttl,
        };
        let how = (!options.newest_device, outcome);
        self.send_to(&name, &devices, options.lane, message, how, now);
        if unknown {
            self.look_up(&name, now);
        } else {
            self.ask_if_lost(&name, now);
        }
        self.note_talk(&name, now);
        Ok(())
    }

    /// After anything that happened to a lane of ours: outcomes, timer, and its turn to send.
    pub(super) fn serve_send(&mut self, key: &DeviceKey, lane: u32) {
        let Some(device) = self.device(key) else {
            return;
        };
        let way = device.ways.chosen();
        let Some(entry) = device.lanes.get_mut(&lane) else {
            return;
        };
        let mut settled = Vec::new();
        while let Some((id, outcome)) = entry.lane.poll_outcome() {
            if let Some(send) = entry.sends.remove(&id) {
                settled.push((send, outcome));
            }
        }
        let resent = entry.lane.resent() - entry.resent_counted;
        entry.resent_counted = entry.lane.resent();
        let next = entry.lane.next_timeout();
        let before = std::mem::replace(&mut entry.timer, next);
        let turn = way.filter(|_| !entry.queued && !entry.lane.is_idle());
        entry.queued |= turn.is_some();
        self.stats.segments_resent += resent;
        for (send, outcome) in settled {
            self.settle(send, key.instance, outcome);
        }
        let lane_key = LaneKey::Send(key.clone(), lane);
        if let Some(way) = turn {
            self.queue_turn(way.session, stream_of(lane), lane_key.clone(), false);
        }
        self.set_timer(Timer::Lane(lane_key), before, next);
    }

    /// Gives a lane its turn on a message stream of a session.
    pub(super) fn queue_turn(
        &mut self,
        session: u64,
        stream: usize,
        key: LaneKey,
        before_others: bool,
    ) {
        if let Some(attachment) = self.attachments.get_mut(&session) {
            match before_others {
                true => attachment.ready[stream].push_front(key),
                false => attachment.ready[stream].push_back(key),
            }
            self.wake(session, |wakes| wakes.streams |= 1 << stream);
        }
    }

    /// Does something to all lanes to a peer.
    pub(super) fn each_lane(
        &mut self,
        user: &Arc<str>,
        now: Instant,
        work: impl Fn(&mut SendLane, Instant),
    ) {
        let lanes: Vec<(u64, u32)> = self.peers.get(user).map_or_else(Vec::new, |peer| {
            let devices = peer.devices.iter();
            devices
                .flat_map(|(&instance, device)| device.lanes.keys().map(move |&l| (instance, l)))
                .collect()
        });
        for (instance, lane) in lanes {
            let key = DeviceKey {
                user: user.clone(),
                instance,
            };
            if let Some(entry) = self.send_entry(&key, lane) {
                work(&mut entry.lane, now);
                self.serve_send(&key, lane);
            }
        }
    }

    /// The next frames of a message stream, ready for the wire: empty when there are none now.
    pub(crate) fn next_frames(&mut self, session: u64, stream: usize, now: Instant) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        let mut of_use = false;
        while bytes < BATCH
            && let Some(attachment) = self.attachments.get_mut(&session)
            && let Some(key) = attachment.ready[stream].pop_front()
        {
            of_use |= !matches!(&key, LaneKey::Notice(_, frame) if LaneFrame::is_try(frame));
            match key {
                LaneKey::Send(device, lane) => {
                    let Some(Device { ways, lanes, .. }) = self.device(&device) else {
                        continue;
                    };
                    // Another way may have been chosen meanwhile: then it has its turn there.
                    let way = ways.chosen().filter(|way| way.session == session);
                    let (Some(entry), Some(way)) = (lanes.get_mut(&lane), way) else {
                        continue;
                    };
                    entry.queued = false;
                    let sent = entry.lane.poll_transmit(now);
                    let next = entry.lane.next_timeout();
                    let before = std::mem::replace(&mut entry.timer, next);
                    if let Some((frame, class)) = sent {
                        entry.queued = true;
                        bytes += push_frame(&mut frames, way.handle, class, &frame);
                        // One segment each, in turn.
                        let key = LaneKey::Send(device.clone(), lane);
                        if let Some(attachment) = self.attachments.get_mut(&session) {
                            attachment.ready[stream].push_back(key);
                        }
                    }
                    self.set_timer(Timer::Lane(LaneKey::Send(device, lane)), before, next);
                }
                LaneKey::Receive(key) => {
                    let Some(entry) = self.received.get_mut(&key) else {
                        continue;
                    };
                    // It may have its turn at another session by now.
                    if entry.queued_at != Some(session) {
                        continue;
                    }
                    entry.queued_at = None;
                    let from = entry.from;
                    while from.session == session
                        && let Some(frame) = entry.lane.poll_transmit(now)
                    {
                        bytes += push_frame(&mut frames, from.handle, Class::Message, &frame);
                    }
                    let next = entry.lane.next_timeout().filter(|at| *at > now);
                    let before = std::mem::replace(&mut entry.timer, next);
                    self.set_timer(Timer::Lane(LaneKey::Receive(key)), before, next);
                }
                LaneKey::Group(group, lane) => {
                    if let Some((handle, class, frame)) =
                        self.next_group_frame(session, &group, lane, now)
                    {
                        bytes += push_frame(&mut frames, handle, class, &frame);
                        self.queue_turn(session, stream, LaneKey::Group(group, lane), false);
                    }
                }
                LaneKey::Notice(handle, frame) => {
                    let header = header_for(handle, Class::Message, 0, 0);
                    bytes += push_packet(&mut frames, header, &[&frame], Bytes::new());
                }
            }
        }
        if of_use && !frames.is_empty() {
            self.note_use(session, now);
        }
        frames
    }

    /// Whether all that can go out now has been handed over.
    pub(crate) fn has_frames(&self, session: u64, stream: usize) -> bool {
        let attachment = self.attachments.get(&session);
        attachment.is_some_and(|attachment| !attachment.ready[stream].is_empty())
    }

    /// After anything that happened to a lane towards us: messages to the inbox, timer, and its
    /// turn to acknowledge.
    pub(super) fn serve_receive(&mut self, key: &ReceiveKey, now: Instant) {
        let Some(entry) = self.received.get_mut(key) else {
            return;
        };
        while self.inbox.has_room()
            && let Some(received) = entry.lane.take(now)
        {
            self.stats.messages_received += 1;
            self.wakes.events = true;
            self.inbox.push_message(crate::Message {
                from: key.user.clone(),
                group: None,
                lane: key.lane,
                payload: received.payload,
                age: received.age,
            });
        }
        if entry.lane.has_ready() && !entry.blocked {
            entry.blocked = true;
            self.blocked.push_back(key.clone());
        }
        self.stats.duplicates_removed += entry.lane.duplicates() - entry.duplicates_counted;
        entry.duplicates_counted = entry.lane.duplicates();
        let due = entry.lane.next_timeout();
        let session = entry.from.session;
        let turn = self.attachments.contains_key(&session)
            && entry.queued_at != Some(session)
            && (entry.lane.must_refuse() || due.is_some_and(|due| due <= now));
        if turn {
            entry.queued_at = Some(session);
        }
        let next = due.filter(|at| *at > now);
        let before = std::mem::replace(&mut entry.timer, next);
        let stream = stream_of(key.lane);
        if turn {
            // Acknowledgements are small, and somebody waits for them.
            self.queue_turn(session, stream, LaneKey::Receive(key.clone()), true);
        }
        self.set_timer(Timer::Lane(LaneKey::Receive(key.clone())), before, next);
    }

    /// The way of a flow now: the best one that is known; without one, back to where a packet came
    /// from, while that holds.
    pub(crate) fn way_of(
        &mut self,
        user: &Arc<str>,
        direct: Option<WayKey>,
        class: Class,
        now: Instant,
    ) -> Option<(Arc<Live>, WayKey)> {
        self.note_talk(user, now);
        if let Some(peer) = self.peers.get_mut(user) {
            peer.class = class;
        }
        let chosen = match direct {
            None => self.peers.get(user)?.way(),
            Some(direct) => {
                let attachment = self.attachments.get(&direct.session);
                let known = attachment.and_then(|a| a.handles.get(&direct.handle));
                let alive = known.filter(|handle| !handle.gone);
                let instance = known.map(|handle| handle.instance);
                let peer = self.peers.get(user)?;
                let device = instance.and_then(|instance| peer.devices.get(&instance));
                let best = device.and_then(|device| device.ways.chosen());
                best.or(alive.map(|_| direct)).or(peer.way())
            }
        };
        if let Some(way) = chosen
            && let Some(live) = self.live(way.session).cloned()
        {
            self.note_use(way.session, now);
            return Some((live, way));
        }
        // Not before it is to be asked again: packets come often.
        let waits = self
            .peers
            .get(user)
            .is_some_and(|peer| peer.whereabouts == Whereabouts::AskLater);
        if !waits {
            self.look_up(user, now);
        }
        None
    }

    /// Tells a peer, by the ways that are chosen now, which edges have been left: at once, or as soon as
    /// there is a way.
    pub(super) fn say_unsaid(&mut self, user: &Arc<str>, now: Instant) {
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        if !peer.must_be_told(now) {
            // It will ask the directory before it says anything.
            peer.unsaid.clear();
            return;
        }
        let devices = peer.devices.values();
        let ways: Vec<WayKey> = devices.filter_map(|device| device.ways.chosen()).collect();
        if ways.is_empty() {
            return;
        }
        for relay in std::mem::take(&mut peer.unsaid) {
            let instance = self.instance;
            let left = LaneFrame::Left(Left { instance, relay }).encode();
            for way in &ways {
                let key = LaneKey::Notice(way.handle, left.clone());
                self.queue_turn(way.session, 0, key, true);
            }
        }
    }

    /// A flow to a user is opened (+1) or closed (−1).
    pub(crate) fn count_flow(&mut self, user: &str, by: isize) -> Option<Arc<str>> {
        let (name, peer) = self.peer(user)?;
        peer.flows = peer.flows.saturating_add_signed(by);
        Some(name)
    }
}

pub(super) const fn stream_of(lane: u32) -> usize {
    lane as usize % STREAMS
}

fn push_frame(frames: &mut Vec<Bytes>, handle: u32, class: Class, frame: &LaneFrame) -> usize {
    let mut head = BytesMut::with_capacity(64);
    frame.encode_head(&mut head);
    let header = header_for(handle, class, frame.lane(), frame.sequence());
    push_packet(frames, header, &[&head], frame.payload())
}

fn push_packet(
    frames: &mut Vec<Bytes>,
    header: AccessHeader,
    heads: &[&[u8]],
    payload: Bytes,
) -> usize {
    let head: usize = heads.iter().map(|head| head.len()).sum();
    let length = AccessHeader::LEN + head + payload.len();
    let mut packet = BytesMut::with_capacity(4 + AccessHeader::LEN + head);
    packet.put_u32(length as u32);
    packet.put_bytes(0, AccessHeader::LEN);
    header.encode(&mut packet[4..]);
    for head in heads {
        packet.extend_from_slice(head);
    }
    frames.push(packet.freeze());
    if !payload.is_empty() {
        frames.push(payload);
    }
    length + 4
}

fn header_for(handle: u32, class: Class, flow: u32, sequence: u32) -> AccessHeader {
    AccessHeader {
        kind: Kind::Message,
        class,
        trace: false,
        path_change: false,
        group: false,
        layer: 0,
        handle,
        flow,
        sequence,
        age_us: 0,
    }
}
