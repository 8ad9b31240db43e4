//! The sender's end.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Ack, Data, INITIAL_WINDOW, LaneFrame, Refusal, Refuse, Skip, cost, rtt::Rtt};
use crate::{Class, MAX_SEGMENT};

/// Later transmissions acknowledged before a segment counts as lost.
const REORDERING: u64 = 3;
/// Timeouts in a row after which acknowledged segments are doubted, too.
const DOUBT_AFTER: u32 = 3;
/// Timeouts in a row after which the receiver is not told any more of what it need not wait for.
const SKIP_TRIES: u32 = 6;
const INITIAL_CONGESTION: usize = 256 << 10;
const MIN_CONGESTION: usize = 32 << 10;
const MAX_CONGESTION: usize = 16 << 20;

/// A sender's limits.
#[derive(Debug, Clone, Copy)]
pub struct SendConfig {
    /// Most bytes of unsettled messages. One message is always taken.
    pub queue_bytes: usize,
    /// Most unsettled messages.
    pub queue_messages: usize,
}

impl Default for SendConfig {
    fn default() -> Self {
        Self {
            queue_bytes: 32 << 20,
            queue_messages: 65_536,
        }
    }
}

/// A message of a lane, as its sender knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// How a send ended. Exactly one per message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver holds it, whole and in order.
    Delivered {
        /// From the send to the confirmation.
        after: Duration,
        /// The age of its last packet when that came to the receiver.
        age: Duration,
    },
    /// Not confirmed within its time to live. It may have been delivered all the same.
    Expired,
    /// The user is nowhere.
    Offline,
    /// The sender may not.
    Denied,
    /// Larger than allowed.
    TooLarge,
    /// Too much is queued already.
    QueueFull,
    /// The sender has ended. It may have been delivered all the same.
    Closed,
}

/// What is to be sent.
#[derive(Debug, Clone)]
pub struct Enqueue {
    /// The message.
    pub payload: Bytes,
    /// Its class.
    pub class: Class,
    /// How long to try.
    pub ttl: Duration,
}

/// Why a relay did not take a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A queue was full, or there was no way: to be tried again a little later.
    Congested,
    /// Not allowed: the message is given up.
    Denied,
    /// Larger than allowed: the message is given up.
    TooLarge,
}

/// The sender's end of a lane.
#[derive(Debug)]
pub struct SendLane {
    config: SendConfig,
    sender: u64,
    lane: u32,
    /// The receiver instance, once it has said something.
    receiver: Option<u64>,
    /// Unsettled messages and, between them, settled ones; the oldest is unsettled.
    messages: VecDeque<Message>,
    /// Id of the oldest in `messages`.
    first_message: u64,
    queued_bytes: usize,
    expiries: BTreeSet<(Instant, MessageId)>,
    /// Segments of `messages`.
    segments: VecDeque<Segment>,
    /// Sequence of the oldest in `segments`.
    base: u64,
    /// The first segment that was never sent.
    unsent: u64,
    lost: BTreeSet<u64>,
    /// Cost of segments in flight.
    in_flight: usize,
    /// Cost of segments sent, from the receiver's next on.
    beyond_next: usize,
    /// The receiver's next, as last heard.
    peer_next: u64,
    window: usize,
    congestion: usize,
    /// Below it the congestion window doubles every round trip.
    slow_start_below: usize,
    /// Losses of transmissions before this one belong to one event.
    recovered_at: u64,
    transmissions: u64,
    largest_acked: u64,
    rtt: Rtt,
    retransmit_at: Option<Instant>,
    /// Nothing is sent before.
    hold_until: Option<Instant>,
    /// One segment may be sent against a shut window.
    probe: bool,
    skip_due: bool,
    /// Something of which a part was sent has been given up, and the receiver may not know.
    gave_up_sent: bool,
    outcomes: VecDeque<(MessageId, Outcome)>,
    resent: u64,
}

#[derive(Debug)]
struct Message {
    payload: Bytes,
    class: Class,
    first: u64,
    segments: u64,
    queued_at: Instant,
    expires: Instant,
    settled: bool,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    message: u64,
    state: SegmentState,
    /// Whether it was sent once only, so that its round trip is known.
    sent_once: bool,
    sent_at: Option<Instant>,
    /// Number of its latest transmission.
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SegmentState {
    Unsent,
    InFlight,
    Lost,
    /// The receiver has it.
    Acked,
    /// Its message is settled.
    Gone,
}

impl SendLane {
    /// An empty lane. `sender` is the sender instance: random, new for each destination user.
    #[must_use]
    pub fn new(config: SendConfig, sender: u64, lane: u32) -> Self {
        Self {
            config,
            sender,
            lane,
            receiver: None,
            messages: VecDeque::new(),
            first_message: 0,
            queued_bytes: 0,
            expiries: BTreeSet::new(),
            segments: VecDeque::new(),
            base: 0,
            unsent: 0,
            lost: BTreeSet::new(),
            in_flight: 0,
            beyond_next: 0,
            peer_next: 0,
            window: INITIAL_WINDOW as usize,
            congestion: INITIAL_CONGESTION,
            slow_start_below: MAX_CONGESTION,
            recovered_at: 0,
            transmissions: 0,
            largest_acked: 0,
            rtt: Rtt::default(),
            retransmit_at: None,
            hold_until: None,
            probe: false,
            skip_due: false,
            gave_up_sent: false,
            outcomes: VecDeque::new(),
            resent: 0,
        }
    }

    /// Takes a message to send; its outcome comes from [`poll_outcome`](Self::poll_outcome).
    ///
    /// # Errors
    /// [`Outcome::QueueFull`], and [`Outcome::TooLarge`] beyond 4 GiB: then that *is* the outcome.
    pub fn enqueue(&mut self, enqueue: Enqueue, now: Instant) -> Result<MessageId, Outcome> {
        let length = enqueue.payload.len();
        if u32::try_from(length).is_err() {
            return Err(Outcome::TooLarge);
        }
        let full = self.messages.len() >= self.config.queue_messages
            || self.queued_bytes + length > self.config.queue_bytes;
        if full && !self.messages.is_empty() {
            return Err(Outcome::QueueFull);
        }
        let number = self.first_message + self.messages.len() as u64;
        let first = self.end();
        let segments = length.div_ceil(MAX_SEGMENT).max(1) as u64;
        for _ in 0..segments {
            self.segments.push_back(Segment {
                message: number,
                state: SegmentState::Unsent,
                sent_once: false,
                sent_at: None,
                number: 0,
            });
        }
        let expires = now + enqueue.ttl;
        self.queued_bytes += length;
        self.expiries.insert((expires, MessageId(number)));
        self.messages.push_back(Message {
            payload: enqueue.payload,
            class: enqueue.class,
            first,
            segments,
            queued_at: now,
            expires,
            settled: false,
        });
        Ok(MessageId(number))
    }

    /// The next frame to send, and the class of its packet. Call until `None`, as far as the way
    /// out takes them.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(LaneFrame, Class)> {
        if self.hold_until.is_some_and(|until| until > now) {
            return None;
        }
        self.hold_until = None;
        if self.skip_due {
            self.skip_due = false;
            self.arm(now);
            let skip = Skip {
                sender: self.sender,
                lane: self.lane,
                base: self.base,
            };
            return Some((LaneFrame::Skip(skip), Class::Message));
        }
        let sequence = self.sendable()?;
        self.probe = false;
        Some(self.transmit(sequence, now))
    }

    /// An ACK frame has come.
    pub fn on_ack(&mut self, ack: &Ack, now: Instant) {
        if ack.sender != self.sender || ack.next > self.unsent {
            return;
        }
        if self.receiver.is_some_and(|known| known != ack.receiver) {
            self.peer_changed();
        }
        self.receiver = Some(ack.receiver);
        let next = ack.next.max(self.peer_next);
        // Of two ACKs that overtook each other, the later one's window holds.
        if ack.next == next {
            self.window = ack.window as usize;
        }
        let mut newest: Option<(u64, Instant, bool)> = None;
        let mut progress = next > self.peer_next;
        for sequence in self.peer_next.max(self.base)..next {
            progress |= self.acked(sequence, &mut newest);
            if self.segment(sequence).state != SegmentState::Gone {
                self.beyond_next -= self.cost_of(sequence);
            }
        }
        self.peer_next = next;
        self.gave_up_sent &= next < self.base;
        for &(first, count) in &ack.ranges {
            let end = (first + u64::from(count)).min(self.unsent);
            for sequence in first.max(self.base).max(next)..end {
                progress |= self.acked(sequence, &mut newest);
            }
        }
        if let Some((number, sent_at, once)) = newest {
            self.largest_acked = self.largest_acked.max(number);
            if once {
                self.rtt.sample(now.saturating_duration_since(sent_at));
            }
        }
        if progress {
            self.rtt.backoffs = 0;
            self.retransmit_at = None;
        }
        if let Some(&(first, count)) = ack.ranges.last() {
            self.detect_losses((first + u64::from(count)).min(self.unsent));
        }
        let age = Duration::from_micros(u64::from(ack.age_us));
        self.settle_delivered(age, now);
        self.arm(now);
    }

    /// A REFUSE frame has come.
    pub fn on_refuse(&mut self, refuse: &Refuse, now: Instant) {
        if refuse.sender != self.sender {
            return;
        }
        let outcome = match refuse.reason {
            Refusal::TooLarge => Outcome::TooLarge,
            Refusal::Denied => Outcome::Denied,
        };
        self.give_up_segment(refuse.sequence, outcome, now);
    }

    /// A relay did not take the packet with this sequence (its low 32 bits).
    pub fn on_rejected(&mut self, sequence: u32, trouble: Trouble, now: Instant) {
        let sequence = self.base + u64::from(sequence.wrapping_sub(self.base as u32));
        if sequence >= self.unsent {
            return;
        }
        match trouble {
            Trouble::Denied => self.give_up_segment(sequence, Outcome::Denied, now),
            Trouble::TooLarge => self.give_up_segment(sequence, Outcome::TooLarge, now),
            Trouble::Congested => {
                if self.segment(sequence).state != SegmentState::InFlight {
                    return;
                }
                self.lose(sequence);
                self.shrink();
                let pause = self.rtt.smoothed().unwrap_or(Duration::from_millis(100));
                let pause = pause.clamp(Duration::from_millis(20), Duration::from_millis(500));
                self.hold_until = Some(now + pause);
            }
        }
    }

    /// The way to the peer is a new one (another session of ours or the peer's, or another peer):
    /// everything unsettled that has not been confirmed is sent again at once.
    pub fn way_changed(&mut self) {
        for sequence in self.base..self.unsent {
            if self.segment(sequence).state == SegmentState::InFlight {
                self.lose(sequence);
            }
        }
        self.rtt = Rtt::default();
        self.congestion = INITIAL_CONGESTION;
        self.slow_start_below = MAX_CONGESTION;
        self.recovered_at = self.transmissions;
        self.hold_until = None;
        self.retransmit_at = None;
        self.skip_due |= self.skip_unknown();
    }

    /// The receiver has begun anew: all unsettled messages are sent again from their beginnings.
    pub fn peer_changed(&mut self) {
        self.receiver = None;
        self.window = INITIAL_WINDOW as usize;
        self.doubt_all();
        self.way_changed();
    }

    /// The unsettled messages, in order: each with its payload, its class and the end of its time to
    /// live.
    pub fn unsettled(&self) -> impl Iterator<Item = (MessageId, &Bytes, Class, Instant)> {
        (self.first_message..)
            .zip(&self.messages)
            .filter(|(_, message)| !message.settled)
            .map(|(number, message)| {
                let id = MessageId(number);
                (id, &message.payload, message.class, message.expires)
            })
    }

    /// Ends one unsettled message as `outcome`.
    pub fn fail(&mut self, id: MessageId, outcome: Outcome, now: Instant) {
        let index = id.0.checked_sub(self.first_message);
        let message = index.and_then(|index| self.messages.get(index as usize));
        if message.is_some_and(|message| !message.settled) {
            self.settle(id, outcome);
            self.pop_settled();
            self.arm(now);
        }
    }

    /// Ends all unsettled messages as `outcome`.
    pub fn fail_all(&mut self, outcome: Outcome, now: Instant) {
        self.fail_if(outcome, now, |_| true);
    }

    /// Ends those unsettled messages of which nothing was ever sent.
    pub fn fail_unsent(&mut self, outcome: Outcome, now: Instant) {
        let unsent = self.unsent;
        self.fail_if(outcome, now, |message| message.first >= unsent);
    }

    /// Does what the time demands. Call when [`next_timeout`](Self::next_timeout) has come, and
    /// then [`poll_transmit`](Self::poll_transmit).
    pub fn on_timeout(&mut self, now: Instant) {
        if self.hold_until.is_some_and(|until| until <= now) {
            self.hold_until = None;
        }
        let mut expired = false;
        while let Some(&(expires, id)) = self.expiries.first() {
            if expires > now {
                break;
            }
            self.settle(id, Outcome::Expired);
            expired = true;
        }
        if expired {
            self.pop_settled();
            self.arm(now);
        }
        if self.retransmit_at.is_none_or(|at| at > now) {
            return;
        }
        self.retransmit_at = None;
        self.rtt.backoffs += 1;
        if self.rtt.backoffs >= DOUBT_AFTER {
            self.doubt_all();
        }
        for sequence in self.base..self.unsent {
            if self.segment(sequence).state == SegmentState::InFlight {
                self.lose(sequence);
            }
        }
        self.shrink();
        self.congestion = MIN_CONGESTION;
        self.probe = true;
        self.skip_due |= self.skip_unknown();
        self.arm(now);
    }

    /// When [`on_timeout`](Self::on_timeout) or [`poll_transmit`](Self::poll_transmit) must be
    /// called again, if nothing else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let expiry = self.expiries.first().map(|(at, _)| *at);
        [self.retransmit_at, self.hold_until, expiry]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next outcome.
    pub fn poll_outcome(&mut self) -> Option<(MessageId, Outcome)> {
        self.outcomes.pop_front()
    }

    /// Timeouts in a row without any sign of the receiver. From 2 on it may well be elsewhere.
    #[must_use]
    pub const fn timeouts(&self) -> u32 {
        self.rtt.backoffs
    }

    /// Whether no message is unsettled, and all outcomes were told.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.messages.is_empty() && self.outcomes.is_empty() && !self.skip_due
    }

    /// Unsettled messages.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.expiries.len()
    }

    /// Segments that were sent again, so far.
    #[must_use]
    pub const fn resent(&self) -> u64 {
        self.resent
    }

    /// The sequence after the last segment.
    fn end(&self) -> u64 {
        self.base + self.segments.len() as u64
    }

    fn segment(&self, sequence: u64) -> &Segment {
        &self.segments[(sequence - self.base) as usize]
    }

    fn segment_mut(&mut self, sequence: u64) -> &mut Segment {
        &mut self.segments[(sequence - self.base) as usize]
    }

    fn message(&self, number: u64) -> &Message {
        &self.messages[(number - self.first_message) as usize]
    }

    /// The part of the payload that is this segment.
    fn range_of(&self, sequence: u64) -> (usize, usize) {
        let message = self.message(self.segment(sequence).message);
        let start = (sequence - message.first) as usize * MAX_SEGMENT;
        (start, (start + MAX_SEGMENT).min(message.payload.len()))
    }

    fn cost_of(&self, sequence: u64) -> usize {
        let (start, end) = self.range_of(sequence);
        cost(end - start)
    }

    /// The segment that may be sent now.
    fn sendable(&mut self) -> Option<u64> {
        if let Some(&lost) = self.lost.first() {
            let fits = self.in_flight + self.cost_of(lost) <= self.congestion;
            return (fits || self.in_flight == 0).then_some(lost);
        }
        // Those given up before they were ever sent are passed over: the base tells.
        while self.unsent < self.end() && self.segment(self.unsent).state == SegmentState::Gone {
            self.unsent += 1;
        }
        if self.unsent >= self.end() {
            return None;
        }
        let cost = self.cost_of(self.unsent);
        let credit = self.beyond_next + cost <= self.window;
        let room = self.in_flight == 0 || self.in_flight + cost <= self.congestion;
        let allowed = (credit && room) || (self.probe && self.in_flight == 0);
        allowed.then_some(self.unsent)
    }

    fn transmit(&mut self, sequence: u64, now: Instant) -> (LaneFrame, Class) {
        let segment_cost = self.cost_of(sequence);
        let again = self.lost.remove(&sequence);
        if again {
            self.resent += 1;
        } else {
            self.unsent = sequence + 1;
            self.beyond_next += segment_cost;
        }
        self.in_flight += segment_cost;
        self.transmissions += 1;
        let number = self.transmissions;
        let segment = self.segment_mut(sequence);
        segment.state = SegmentState::InFlight;
        segment.sent_once = !again;
        segment.sent_at = Some(now);
        segment.number = number;
        self.arm(now);
        let (start, end) = self.range_of(sequence);
        let message = self.message(self.segment(sequence).message);
        let data = Data {
            sender: self.sender,
            lane: self.lane,
            sequence,
            base: self.base,
            total: (sequence == message.first).then_some(message.payload.len() as u32),
            last: sequence + 1 == message.first + message.segments,
            payload: message.payload.slice(start..end),
        };
        (LaneFrame::Data(data), message.class)
    }

    /// Notes that the receiver has a segment. `true` when that is news.
    fn acked(&mut self, sequence: u64, newest: &mut Option<(u64, Instant, bool)>) -> bool {
        let segment = *self.segment(sequence);
        let segment_cost = self.cost_of(sequence);
        match segment.state {
            SegmentState::InFlight => self.in_flight -= segment_cost,
            SegmentState::Lost => {
                self.lost.remove(&sequence);
            }
            SegmentState::Unsent | SegmentState::Acked | SegmentState::Gone => return false,
        }
        self.segment_mut(sequence).state = SegmentState::Acked;
        if let Some(sent_at) = segment.sent_at
            && newest.is_none_or(|(number, ..)| number < segment.number)
        {
            *newest = Some((segment.number, sent_at, segment.sent_once));
        }
        let growth = if self.congestion < self.slow_start_below {
            segment_cost
        } else {
            segment_cost * MAX_SEGMENT / self.congestion
        };
        // Only what was used is known to fit.
        if self.in_flight + segment_cost >= self.congestion / 2 {
            self.congestion = (self.congestion + growth).min(MAX_CONGESTION);
        }
        true
    }

    /// Marks as lost what was sent well before something that has been acknowledged since.
    fn detect_losses(&mut self, end: u64) {
        let mut shrink = false;
        for sequence in self.base.max(self.peer_next)..end {
            let segment = *self.segment(sequence);
            if segment.state == SegmentState::InFlight
                && segment.number + REORDERING <= self.largest_acked
            {
                self.lose(sequence);
                shrink |= segment.number > self.recovered_at;
            }
        }
        if shrink {
            self.shrink();
        }
    }

    fn lose(&mut self, sequence: u64) {
        self.in_flight -= self.cost_of(sequence);
        self.segment_mut(sequence).state = SegmentState::Lost;
        self.lost.insert(sequence);
    }

    fn shrink(&mut self) {
        self.congestion = (self.congestion / 2).max(MIN_CONGESTION);
        self.slow_start_below = self.congestion;
        self.recovered_at = self.transmissions;
    }

    /// Believes no ACK of unsettled messages any more.
    fn doubt_all(&mut self) {
        // Nor that the base is known there.
        self.peer_next = 0;
        self.beyond_next = 0;
        for sequence in self.base..self.unsent {
            let segment = self.segment(sequence);
            match segment.state {
                SegmentState::Gone => continue,
                SegmentState::Acked => {
                    self.segment_mut(sequence).state = SegmentState::Lost;
                    self.lost.insert(sequence);
                }
                _ => {}
            }
            self.beyond_next += self.cost_of(sequence);
        }
    }

    /// Whether the receiver may be waiting for what was given up: with something behind it, which
    /// must get on, or with a part of it, which takes memory.
    fn skip_unknown(&self) -> bool {
        let holds_part = self.gave_up_sent && self.rtt.backoffs < SKIP_TRIES;
        self.peer_next < self.base && (self.base < self.unsent || holds_part)
    }

    /// Sets the retransmission timer if there is something to wait for.
    fn arm(&mut self, now: Instant) {
        let shut = self.in_flight == 0 && self.lost.is_empty() && self.unsent < self.end();
        // Also when all that was sent is there but not confirmed: the receiver may have lost it.
        let waits = self.base < self.unsent || shut || self.skip_unknown();
        if !waits {
            self.retransmit_at = None;
        } else if self.retransmit_at.is_none() {
            self.retransmit_at = Some(now + self.rtt.timeout());
        }
    }

    fn settle_delivered(&mut self, age: Duration, now: Instant) {
        for index in 0..self.messages.len() {
            let message = &self.messages[index];
            if message.first + message.segments > self.peer_next {
                break;
            }
            if message.settled {
                continue;
            }
            let after = now.saturating_duration_since(message.queued_at);
            let id = MessageId(self.first_message + index as u64);
            self.settle(id, Outcome::Delivered { after, age });
        }
        self.pop_settled();
    }

    fn give_up_segment(&mut self, sequence: u64, outcome: Outcome, now: Instant) {
        if sequence < self.base || sequence >= self.end() {
            return;
        }
        let number = self.segment(sequence).message;
        if !self.message(number).settled {
            self.settle(MessageId(number), outcome);
            self.pop_settled();
            self.arm(now);
        }
    }

    fn fail_if(&mut self, outcome: Outcome, now: Instant, which: impl Fn(&Message) -> bool) {
        let failing: Vec<_> = (self.first_message..)
            .zip(&self.messages)
            .filter(|(_, message)| !message.settled && which(message))
            .map(|(number, _)| MessageId(number))
            .collect();
        for id in failing {
            self.settle(id, outcome);
        }
        self.pop_settled();
        self.arm(now);
    }

    /// Ends a message. Its segments stay until it is the oldest.
    fn settle(&mut self, id: MessageId, outcome: Outcome) {
        let index = (id.0 - self.first_message) as usize;
        let message = &mut self.messages[index];
        message.settled = true;
        let (first, end, expires) = (
            message.first,
            message.first + message.segments,
            message.expires,
        );
        for sequence in first..end {
            let segment_cost = self.cost_of(sequence);
            let state = self.segment(sequence).state;
            match state {
                SegmentState::InFlight => self.in_flight -= segment_cost,
                SegmentState::Lost => {
                    self.lost.remove(&sequence);
                }
                SegmentState::Unsent | SegmentState::Acked | SegmentState::Gone => {}
            }
            if sequence >= self.peer_next && sequence < self.unsent && state != SegmentState::Gone {
                self.beyond_next -= segment_cost;
            }
            self.segment_mut(sequence).state = SegmentState::Gone;
        }
        self.queued_bytes -= self.messages[index].payload.len();
        self.expiries.remove(&(expires, id));
        self.outcomes.push_back((id, outcome));
    }

    fn pop_settled(&mut self) {
        let before = self.base;
        while self.messages.front().is_some_and(|message| message.settled) {
            let Some(message) = self.messages.pop_front() else {
                break;
            };
            self.first_message += 1;
            self.segments.drain(..message.segments as usize);
            self.base += message.segments;
        }
        // The receiver may wait for what it will not get, or keep the half of it.
        let sent = before < self.unsent;
        self.unsent = self.unsent.max(self.base);
        if self.base > before && self.peer_next < self.base && sent {
            self.skip_due = true;
            self.gave_up_sent = true;
        }
    }
}
