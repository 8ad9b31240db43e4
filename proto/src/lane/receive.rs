//! The receiver's end.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{ACK_DELAY, Ack, Data, LaneFrame, MAX_RANGES, Refusal, Refuse, SEGMENT_COST, cost};
use crate::MAX_SEGMENT;

/// Payloads below this length are copied when they are kept: a slice would hold the whole packet
/// it came in.
const COPY_BELOW: usize = 1024;

/// A receiver's limits.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveConfig {
    /// Cost of what a lane keeps besides the message being put together, bytes. At least two full
    /// segments.
    pub capacity: usize,
    /// Longest message that is taken, in bytes.
    pub max_message: u64,
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        Self {
            capacity: 1 << 20,
            max_message: crate::token::DEFAULT_MAX_MESSAGE,
        }
    }
}

/// A whole message, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub payload: Bytes,
    /// Age of its last segment when that came.
    pub age: Duration,
}

/// The receiver's end of a lane.
#[derive(Debug)]
pub struct ReceiveLane {
    config: ReceiveConfig,
    receiver: u64,
    sender: u64,
    lane: u32,
    next: u64,
    /// Segments beyond `next`.
    held: BTreeMap<u64, Held>,
    held_cost: usize,
    partial: Option<Partial>,
    ready: VecDeque<Received>,
    ready_cost: usize,
    ack_at: Option<Instant>,
    /// Segments since the last ACK.
    unacknowledged: u32,
    told_window: u32,
    age_us: u32,
    refuse: Option<u64>,
    duplicates: u64,
}

#[derive(Debug)]
struct Held {
    total: Option<u32>,
    last: bool,
    payload: Bytes,
    age: Duration,
}

/// A message being put together. Its buffer grows with what comes, never with what is announced.
#[derive(Debug)]
struct Partial {
    total: usize,
    bytes: BytesMut,
}

impl ReceiveLane {
    /// A lane that begins at `base`, as the first frame that came of it says.
    #[must_use]
    pub fn new(config: ReceiveConfig, receiver: u64, sender: u64, lane: u32, base: u64) -> Self {
        let config = ReceiveConfig {
            capacity: config.capacity.max(2 * cost(MAX_SEGMENT)),
            ..config
        };
        Self {
            config,
            receiver,
            sender,
            lane,
            next: base,
            held: BTreeMap::new(),
            held_cost: 0,
            partial: None,
            ready: VecDeque::new(),
            ready_cost: 0,
            ack_at: None,
            unacknowledged: 0,
            told_window: u32::MAX,
            age_us: 0,
            refuse: None,
            duplicates: 0,
        }
    }

    /// A DATA frame has come; `age` is that of its packet.
    pub fn on_data(&mut self, data: Data, age: Duration, now: Instant) {
        self.age_us = u32::try_from(age.as_micros()).unwrap_or(u32::MAX);
        self.advance_to(data.base, now);
        if data.sequence < self.next || self.held.contains_key(&data.sequence) {
            // The sender does not know that it came: its ACK may be lost.
            self.duplicates += 1;
            self.ack_at = Some(now);
            return;
        }
        let segment = Held {
            total: data.total,
            last: data.last,
            payload: data.payload,
            age,
        };
        if data.sequence == self.next {
            if !self.has_room() {
                self.ack_at = Some(now);
                return;
            }
            self.unacknowledged += 1;
            let mut at_once = self.take_in(segment);
            at_once |= self.unacknowledged >= 2 || !self.held.is_empty();
            self.take_in_held(now);
            self.acknowledge(at_once, now);
            return;
        }
        // Out of order: the sender wants to know what is missing.
        self.ack_at = Some(now);
        let segment_cost = cost(segment.payload.len());
        if self.ready_cost + self.held_cost + segment_cost <= self.config.capacity {
            self.held_cost += segment_cost;
            let payload = kept(segment.payload);
            self.held.insert(data.sequence, Held { payload, ..segment });
        }
    }

    /// A SKIP frame has come.
    pub fn on_skip(&mut self, base: u64, now: Instant) {
        self.advance_to(base, now);
        self.ack_at = Some(now);
    }

    /// The next whole message.
    pub fn take(&mut self, now: Instant) -> Option<Received> {
        let received = self.ready.pop_front()?;
        self.ready_cost -= cost(received.payload.len());
        // Tell a sender that may be waiting, but not for every byte.
        let half = self.config.capacity as u32 / 2;
        if self.told_window < half && self.window() >= half {
            self.ack_at = Some(now);
        }
        Some(received)
    }

    /// Whether a whole message waits to be taken.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The frame that is due to be sent to the sender, if any.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<LaneFrame> {
        if let Some(sequence) = self.refuse.take() {
            return Some(LaneFrame::Refuse(Refuse {
                receiver: self.receiver,
                sender: self.sender,
                lane: self.lane,
                sequence,
                reason: Refusal::TooLarge,
            }));
        }
        if self.ack_at.is_none_or(|at| at > now) {
            return None;
        }
        self.ack_at = None;
        self.unacknowledged = 0;
        self.told_window = self.window();
        Some(LaneFrame::Ack(Ack {
            receiver: self.receiver,
            sender: self.sender,
            lane: self.lane,
            next: self.next,
            window: self.told_window,
            age_us: self.age_us,
            ranges: self.ranges(),
        }))
    }

    /// When [`poll_transmit`](Self::poll_transmit) will have something, if nothing else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.ack_at
    }

    /// Whether a message waits to be refused by [`poll_transmit`](Self::poll_transmit).
    #[must_use]
    pub const fn must_refuse(&self) -> bool {
        self.refuse.is_some()
    }

    /// Segments that came again and were removed, so far.
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Bytes kept: whole messages not taken, the one being put together, and segments beyond it.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        let partial = self.partial.as_ref().map_or(0, |p| p.bytes.len());
        self.ready_cost + self.held_cost + partial
    }

    /// The next segment that is waited for.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// The first segment held beyond the next one.
    pub(super) fn first_held(&self) -> Option<u64> {
        self.held.first_key_value().map(|(sequence, _)| *sequence)
    }

    /// Whole messages that wait to be taken.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Whether the next segment would be kept.
    pub(super) const fn has_room(&self) -> bool {
        self.ready_cost < self.config.capacity
    }

    fn window(&self) -> u32 {
        let free = self.config.capacity.saturating_sub(self.ready_cost);
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// Whatever lies before `base` is not waited for any more.
    pub(super) fn advance_to(&mut self, base: u64, now: Instant) {
        if base <= self.next {
            return;
        }
        let beyond = self.held.split_off(&base);
        for segment in std::mem::replace(&mut self.held, beyond).into_values() {
            self.held_cost -= cost(segment.payload.len());
        }
        self.partial = None;
        self.refuse = None;
        self.next = base;
        self.take_in_held(now);
    }

    fn take_in_held(&mut self, now: Instant) {
        while let Some(entry) = self.held.first_entry() {
            if *entry.key() != self.next {
                break;
            }
            let segment = entry.remove();
            self.held_cost -= cost(segment.payload.len());
            let before = self.next;
            self.take_in(segment);
            self.ack_at = Some(now);
            if self.next == before {
                // Refused: it stays missing until the sender skips it.
                break;
            }
        }
    }

    /// Takes the segment that is next. `true` when that completes a message, or refuses it.
    fn take_in(&mut self, segment: Held) -> bool {
        let length = segment.payload.len();
        if let Some(total) = segment.total {
            if u64::from(total) > self.config.max_message {
                self.refuse = Some(self.next);
                return true;
            }
            self.next += 1;
            let total = total as usize;
            if segment.last {
                self.partial = None;
                if length != total {
                    return true;
                }
                let payload = kept(segment.payload);
                self.ready_cost += cost(length);
                self.ready.push_back(Received {
                    payload,
                    age: segment.age,
                });
                return true;
            }
            let mut bytes = BytesMut::new();
            if length <= total {
                bytes.extend_from_slice(&segment.payload);
                self.partial = Some(Partial { total, bytes });
            }
            return false;
        }
        self.next += 1;
        // A message whose segments contradict each other, or that has no beginning, is passed
        // over: no honest sender makes one.
        let Some(mut partial) = self.partial.take() else {
            return segment.last;
        };
        if partial.bytes.len() + length > partial.total {
            return segment.last;
        }
        partial.bytes.extend_from_slice(&segment.payload);
        if !segment.last {
            self.partial = Some(partial);
            return false;
        }
        if partial.bytes.len() == partial.total {
            self.ready_cost += cost(partial.total);
            self.ready.push_back(Received {
                payload: partial.bytes.freeze(),
                age: segment.age,
            });
        }
        true
    }

    fn acknowledge(&mut self, at_once: bool, now: Instant) {
        let at = if at_once { now } else { now + ACK_DELAY };
        self.ack_at = Some(self.ack_at.map_or(at, |before| before.min(at)));
    }

    fn ranges(&self) -> Vec<(u64, u32)> {
        let mut ranges: Vec<(u64, u32)> = Vec::new();
        for &sequence in self.held.keys() {
            // What an ACK cannot say is sent again in the worst case.
            if sequence - self.next > u64::from(u32::MAX) {
                break;
            }
            if let Some((first, count)) = ranges.last_mut()
                && *first + u64::from(*count) == sequence
            {
                *count += 1;
            } else if ranges.len() == MAX_RANGES {
                break;
            } else {
                ranges.push((sequence, 1));
            }
        }
        ranges
    }
}

fn kept(payload: Bytes) -> Bytes {
    if payload.len() < COPY_BELOW {
        Bytes::copy_from_slice(&payload)
    } else {
        payload
    }
}

// The cost of one whole message must fit, however large the message.
const _: () = assert!(SEGMENT_COST < MAX_SEGMENT);
