//! What goes out: messages, acknowledgements, flows' ways.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tradewind_proto::{
    Class,
    lane::{Enqueue, LaneFrame, Outcome, SendLane},
    packet::{AccessHeader, Kind},
};

use super::{Core, LaneKey, Outcomes, ReceiveKey, STREAMS, SendEntry, Timer, Whereabouts};
use crate::{Delivered, SendError, SendOptions, session::Live};

/// Bytes handed to a stream at once.
const BATCH: usize = 32 << 10;

/// A packet of the present session.
pub(crate) struct Packet {
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
            let _ = outcome.send(Err(send_error(error, bytes, limit)));
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
        let config = self.send_config;
        let Some((name, peer)) = self.peer(user) else {
            return Err((Outcome::Offline, outcome));
        };
        let sender = peer.sender;
        let entry = peer.lanes.entry(options.lane).or_insert_with(|| SendEntry {
            lane: SendLane::new(config, sender, options.lane),
            outcomes: BTreeMap::new(),
            lengths: BTreeMap::new(),
            resent_counted: 0,
            queued: false,
            timer: None,
        });
        let enqueue = Enqueue {
            payload,
            class: options.class,
            ttl: options.ttl,
        };
        match entry.lane.enqueue(enqueue, now) {
            Ok(id) => {
                entry.outcomes.insert(id, outcome);
                entry.lengths.insert(id, bytes);
            }
            Err(error) => return Err((error, outcome)),
        }
        // While a lookup is open or waits to be made again, this message waits with the others.
        if peer.whereabouts == Whereabouts::Unknown {
            self.look_up(&name, now);
        }
        self.serve_send(&name, options.lane);
        Ok(())
    }

    /// After anything that happened to a lane of ours: outcomes, timer, and its turn to send.
    pub(super) fn serve_send(&mut self, user: &Arc<str>, lane: u32) {
        let limit = self.welcome.max_message_bytes;
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let can_send = peer.whereabouts.handle().is_some();
        let Some(entry) = peer.lanes.get_mut(&lane) else {
            return;
        };
        while let Some((id, outcome)) = entry.lane.poll_outcome() {
            let bytes = entry.lengths.remove(&id).unwrap_or(0);
            let result = match outcome {
                Outcome::Delivered { after, age } => {
                    self.stats.messages_delivered += 1;
                    Ok(Delivered { after, age })
                }
                failed => {
                    self.stats.messages_failed += 1;
                    Err(send_error(failed, bytes, limit))
                }
            };
            if let Some(told) = entry.outcomes.remove(&id) {
                let _ = told.send(result);
            }
        }
        self.stats.segments_resent += entry.lane.resent() - entry.resent_counted;
        entry.resent_counted = entry.lane.resent();
        let next = entry.lane.next_timeout();
        let before = std::mem::replace(&mut entry.timer, next);
        let turn = can_send && !entry.queued && !entry.lane.is_idle();
        entry.queued |= turn;
        let key = LaneKey::Send(user.clone(), lane);
        if turn {
            self.ready[stream_of(lane)].push_back(key.clone());
            self.wakes.streams |= 1 << stream_of(lane);
        }
        self.set_timer(Timer::Lane(key), before, next);
    }

    /// Does something to all lanes to a peer.
    pub(super) fn each_lane(
        &mut self,
        user: &Arc<str>,
        now: Instant,
        work: impl Fn(&mut SendLane, Instant),
    ) {
        let lanes: Vec<u32> = self
            .peers
            .get(user)
            .map_or_else(Vec::new, |peer| peer.lanes.keys().copied().collect());
        for lane in lanes {
            if let Some(entry) = self.send_entry(user, lane) {
                work(&mut entry.lane, now);
                self.serve_send(user, lane);
            }
        }
    }

    /// The next frames of a message stream, ready for the wire: empty when there are none now.
    pub(crate) fn next_frames(&mut self, session: u64, stream: usize, now: Instant) -> Vec<Bytes> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        if session != self.sessions {
            return frames;
        }
        while bytes < BATCH
            && let Some(key) = self.ready[stream].pop_front()
        {
            match key {
                LaneKey::Send(user, lane) => {
                    let handle = self
                        .peers
                        .get(&user)
                        .and_then(|peer| peer.whereabouts.handle());
                    let Some(entry) = self.send_entry(&user, lane) else {
                        continue;
                    };
                    entry.queued = false;
                    let Some(handle) = handle else {
                        continue;
                    };
                    let Some((frame, class)) = entry.lane.poll_transmit(now) else {
                        let next = entry.lane.next_timeout();
                        let before = std::mem::replace(&mut entry.timer, next);
                        self.set_timer(Timer::Lane(LaneKey::Send(user, lane)), before, next);
                        continue;
                    };
                    entry.queued = true;
                    bytes += push_frame(&mut frames, handle, class, &frame);
                    // One segment each, in turn.
                    self.ready[stream].push_back(LaneKey::Send(user, lane));
                }
                LaneKey::Receive(key) => {
                    let Some(entry) = self.received.get_mut(&key) else {
                        continue;
                    };
                    entry.queued = false;
                    let (session, handle) = entry.from;
                    while session == self.sessions
                        && let Some(frame) = entry.lane.poll_transmit(now)
                    {
                        bytes += push_frame(&mut frames, handle, Class::Message, &frame);
                    }
                    let next = entry.lane.next_timeout().filter(|at| *at > now);
                    let before = std::mem::replace(&mut entry.timer, next);
                    self.set_timer(Timer::Lane(LaneKey::Receive(key)), before, next);
                }
            }
        }
        frames
    }

    /// Whether all that can go out now has been handed over.
    pub(crate) fn has_frames(&self, stream: usize) -> bool {
        !self.ready[stream].is_empty()
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
        let turn = entry.from.0 == self.sessions
            && self.live.is_some()
            && !entry.queued
            && (entry.lane.must_refuse() || due.is_some_and(|due| due <= now));
        entry.queued |= turn;
        let next = due.filter(|at| *at > now);
        let before = std::mem::replace(&mut entry.timer, next);
        let stream = stream_of(key.lane);
        if turn {
            // Acknowledgements are small, and somebody waits for them.
            self.ready[stream].push_front(LaneKey::Receive(key.clone()));
            self.wakes.streams |= 1 << stream;
        }
        self.set_timer(Timer::Lane(LaneKey::Receive(key.clone())), before, next);
    }

    /// The way of a flow now: to the handle a packet came from while that holds, else to the user.
    pub(crate) fn way_of(
        &mut self,
        user: &Arc<str>,
        direct: Option<(u64, u32)>,
        now: Instant,
    ) -> Option<(Arc<Live>, u32)> {
        let live = self.live.clone()?;
        if let Some((session, handle)) = direct
            && session == self.sessions
            && self.handles.get(&handle).is_some_and(|handle| !handle.gone)
        {
            return Some((live, handle));
        }
        let peer = self.peers.get_mut(user)?;
        if let Some(handle) = peer.whereabouts.handle() {
            peer.flow_used = true;
            return Some((live, handle));
        }
        if peer.whereabouts == Whereabouts::Unknown {
            self.look_up(user, now);
        }
        None
    }

    /// A flow to a user is opened (+1) or closed (−1).
    pub(crate) fn count_flow(&mut self, user: &str, by: isize, now: Instant) -> Option<Arc<str>> {
        let (name, peer) = self.peer(user)?;
        peer.flows = peer.flows.saturating_add_signed(by);
        self.watch_flow(&name, now);
        Some(name)
    }
}

const fn stream_of(lane: u32) -> usize {
    lane as usize % STREAMS
}

fn push_frame(frames: &mut Vec<Bytes>, handle: u32, class: Class, frame: &LaneFrame) -> usize {
    let payload = frame.payload();
    let mut head = BytesMut::with_capacity(256);
    head.put_u32(0);
    head.put_bytes(0, AccessHeader::LEN);
    frame.encode_head(&mut head);
    let length = head.len() - 4 + payload.len();
    head[..4].copy_from_slice(&(length as u32).to_be_bytes());
    AccessHeader {
        kind: Kind::Message,
        class,
        trace: false,
        path_change: false,
        group: false,
        layer: 0,
        handle,
        flow: frame.lane(),
        sequence: frame.sequence(),
        age_us: 0,
    }
    .encode(&mut head[4..]);
    frames.push(head.freeze());
    if !payload.is_empty() {
        frames.push(payload);
    }
    length + 4
}

const fn send_error(outcome: Outcome, bytes: u64, limit: u64) -> SendError {
    match outcome {
        Outcome::Expired | Outcome::Delivered { .. } => SendError::Expired,
        Outcome::Offline => SendError::Offline,
        Outcome::Denied => SendError::Denied,
        Outcome::TooLarge => SendError::TooLarge {
            bytes,
            // Within the token's limit it was the receiver who said no.
            limit: if bytes > limit {
                limit
            } else {
                bytes.saturating_sub(1)
            },
        },
        Outcome::QueueFull => SendError::QueueFull,
        Outcome::Closed => SendError::Closed,
    }
}
