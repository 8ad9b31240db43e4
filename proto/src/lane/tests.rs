use std::{
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{Class, MAX_SEGMENT};

const RECEIVER: u64 = 7;
pub(super) const SENDER: u64 = 9;
pub(super) const LANE: u32 = 3;

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[allow(clippy::disallowed_methods)] // an origin for virtual time; its value means nothing
pub(super) fn origin() -> Instant {
    Instant::now()
}

/// SplitMix64 (Steele and others, 2014).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the network between the two ends does.
#[derive(Debug, Clone)]
struct Weather {
    seed: u64,
    loss: u64,
    duplication: u64,
    jitter_ms: u64,
    /// Nothing comes through from the first to the second, milliseconds.
    outage: (u64, u64),
    /// Percent of the time at which the receiver's application reads.
    reads: u64,
    /// The receiver is another instance from then on, milliseconds.
    restart: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
struct Arrival {
    at: Instant,
    order: u64,
    to_receiver: bool,
    bytes: Bytes,
}

impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A lane with both its ends and a network between them, in virtual time.
struct World {
    weather: Weather,
    dice: Dice,
    origin: Instant,
    now: Instant,
    order: u64,
    flying: BinaryHeap<Arrival>,
    sender: SendLane,
    receiver: Option<ReceiveLane>,
    receiver_instance: u64,
    config: ReceiveConfig,
    outcomes: BTreeMap<u64, Vec<Outcome>>,
    delivered: Vec<Bytes>,
    before_restart: usize,
    most_kept: usize,
}

impl World {
    fn new(weather: Weather, config: ReceiveConfig) -> Self {
        let origin = origin();
        Self {
            dice: Dice(weather.seed),
            weather,
            origin,
            now: origin,
            order: 0,
            flying: BinaryHeap::new(),
            sender: SendLane::new(SendConfig::default(), SENDER, LANE),
            receiver: None,
            receiver_instance: RECEIVER,
            config,
            outcomes: BTreeMap::new(),
            delivered: Vec::new(),
            before_restart: 0,
            most_kept: 0,
        }
    }

    fn send(&mut self, payload: Bytes, ttl: Duration) -> Result<MessageId, Outcome> {
        let enqueue = Enqueue {
            payload,
            class: Class::Message,
            ttl,
        };
        self.sender.enqueue(enqueue, self.now)
    }

    fn fly(&mut self, frame: &LaneFrame, to_receiver: bool) {
        let since = self.now - self.origin;
        let (from, to) = self.weather.outage;
        let out = since >= ms(from) && since < ms(to);
        let copies = if self.dice.happens(self.weather.duplication) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if out || self.dice.happens(self.weather.loss) {
                continue;
            }
            let jitter = self.dice.below(1 + 1_000 * self.weather.jitter_ms);
            self.order += 1;
            self.flying.push(Arrival {
                at: self.now + ms(40) + Duration::from_micros(jitter),
                order: self.order,
                to_receiver,
                bytes: frame.encode(),
            });
        }
    }

    fn pump(&mut self) {
        while let Some((frame, _)) = self.sender.poll_transmit(self.now) {
            self.fly(&frame, true);
        }
        while let Some((id, outcome)) = self.sender.poll_outcome() {
            self.outcomes.entry(id.0).or_default().push(outcome);
        }
        let mut frames = Vec::new();
        if let Some(receiver) = &mut self.receiver {
            self.most_kept = self.most_kept.max(receiver.kept_bytes());
            while let Some(frame) = receiver.poll_transmit(self.now) {
                frames.push(frame);
            }
        }
        for frame in frames {
            self.fly(&frame, false);
        }
    }

    fn read(&mut self, percent: u64) {
        while self.dice.happens(percent)
            && let Some(receiver) = &mut self.receiver
            && let Some(message) = receiver.take(self.now)
        {
            self.delivered.push(message.payload);
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match (
            LaneFrame::decode(arrival.bytes).unwrap(),
            arrival.to_receiver,
        ) {
            (LaneFrame::Data(data), true) => {
                let (config, instance) = (self.config, self.receiver_instance);
                self.receiver
                    .get_or_insert_with(|| {
                        ReceiveLane::new(config, instance, SENDER, LANE, data.base)
                    })
                    .on_data(data, ms(40), self.now);
            }
            (LaneFrame::Skip(skip), true) => {
                if let Some(receiver) = &mut self.receiver {
                    receiver.on_skip(skip.base, self.now);
                }
            }
            (LaneFrame::Ack(ack), false) => self.sender.on_ack(&ack, self.now),
            (LaneFrame::Refuse(refuse), false) => self.sender.on_refuse(&refuse, self.now),
            (frame, _) => panic!("{frame:?} the wrong way"),
        }
    }

    /// Runs until `until`, or until nothing happens any more.
    fn run_until(&mut self, until: Duration) {
        loop {
            self.pump();
            self.read(self.weather.reads);
            self.pump();
            let receiver = self.receiver.as_ref();
            let unread = receiver.is_some_and(ReceiveLane::has_ready);
            let next = [
                self.flying.peek().map(|arrival| arrival.at),
                self.sender.next_timeout(),
                receiver.and_then(ReceiveLane::next_timeout),
                unread.then_some(self.now + ms(5)),
            ]
            .into_iter()
            .flatten()
            .min();
            let Some(next) = next.filter(|next| *next <= self.origin + until) else {
                self.now = self.origin + until;
                return;
            };
            self.now = self.now.max(next);
            if let Some(restart) = self.weather.restart
                && self.now >= self.origin + ms(restart)
            {
                self.weather.restart = None;
                self.read(100);
                self.before_restart = self.delivered.len();
                self.receiver = None;
                self.receiver_instance += 1;
            }
            while self
                .flying
                .peek()
                .is_some_and(|arrival| arrival.at <= self.now)
            {
                let arrival = self.flying.pop().unwrap();
                self.arrive(arrival);
            }
            self.sender.on_timeout(self.now);
        }
    }
}

/// The n-th message: its bytes say which it is.
pub(super) fn message(n: usize, length: usize) -> Bytes {
    let mut bytes = (n as u32).to_be_bytes().to_vec();
    bytes.resize(length.max(4), n as u8);
    bytes.into()
}

pub(super) fn number(message: &Bytes) -> usize {
    u32::from_be_bytes(message[..4].try_into().unwrap()) as usize
}

fn weather() -> impl Strategy<Value = Weather> {
    (
        any::<u64>(),
        0..35u64,
        0..20u64,
        0..60u64,
        0..2_000u64,
        0..3_000u64,
        20..100u64,
    )
        .prop_map(
            |(seed, loss, duplication, jitter_ms, from, length, reads)| Weather {
                seed,
                loss,
                duplication,
                jitter_ms,
                outage: (from, from + length),
                reads,
                restart: None,
            },
        )
}

fn fine() -> Weather {
    Weather {
        seed: 1,
        loss: 0,
        duplication: 0,
        jitter_ms: 0,
        outage: (0, 0),
        reads: 100,
        restart: None,
    }
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 4..2_000usize,
        2 => MAX_SEGMENT - 2..MAX_SEGMENT + 2,
        1 => MAX_SEGMENT..300_000usize,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// The promise: in order, never twice, whole; and exactly one outcome, which is true.
    #[test]
    fn every_message_is_delivered_once_in_order_or_expires_at_the_sender(
        weather in weather(),
        sends in prop::collection::vec((length(), 0..300u64, 50..20_000u64), 1..60),
    ) {
        let mut world = World::new(weather, ReceiveConfig::default());
        let mut at = Duration::ZERO;
        for (n, (length, pause, ttl)) in sends.iter().enumerate() {
            at += ms(*pause);
            world.run_until(at);
            let id = world.send(message(n, *length), ms(*ttl)).unwrap();
            prop_assert_eq!(id, MessageId(n as u64));
        }
        world.run_until(at + Duration::from_secs(120));
        prop_assert_eq!(world.sender.pending(), 0);
        prop_assert!(world.sender.is_idle());
        prop_assert_eq!(world.outcomes.len(), sends.len());
        let numbers: Vec<_> = world.delivered.iter().map(number).collect();
        prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", numbers);
        for bytes in &world.delivered {
            let n = number(bytes);
            prop_assert_eq!(bytes, &message(n, sends[n].0));
        }
        for (n, outcomes) in &world.outcomes {
            prop_assert_eq!(outcomes.len(), 1);
            match outcomes[0] {
                Outcome::Delivered { .. } => prop_assert!(numbers.contains(&(*n as usize))),
                Outcome::Expired => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert!(!world.receiver.as_ref().is_some_and(ReceiveLane::has_ready));
    }

    /// With time enough, a bad network loses nothing.
    #[test]
    fn nothing_expires_that_has_time_enough(
        weather in weather(),
        lengths in prop::collection::vec(length(), 1..40),
    ) {
        let mut world = World::new(weather, ReceiveConfig::default());
        for (n, length) in lengths.iter().enumerate() {
            world.send(message(n, *length), Duration::from_secs(600)).unwrap();
        }
        world.run_until(Duration::from_secs(900));
        let numbers: Vec<_> = world.delivered.iter().map(number).collect();
        prop_assert_eq!(numbers, (0..lengths.len()).collect::<Vec<_>>());
        let all_delivered = world
            .outcomes
            .values()
            .all(|outcomes| matches!(outcomes[..], [Outcome::Delivered { .. }]));
        prop_assert!(all_delivered);
    }

    #[test]
    fn a_receiver_that_restarts_gets_in_order_what_its_predecessor_did_not(
        weather in weather(),
        restart in 1..3_000u64,
        lengths in prop::collection::vec(length(), 1..40),
    ) {
        let mut world = World::new(
            Weather { restart: Some(restart), ..weather },
            ReceiveConfig::default(),
        );
        for (n, length) in lengths.iter().enumerate() {
            world.send(message(n, *length), Duration::from_secs(600)).unwrap();
        }
        world.run_until(Duration::from_secs(900));
        let numbers: Vec<_> = world.delivered.iter().map(number).collect();
        let (before, after) = numbers.split_at(world.before_restart);
        prop_assert!(before.iter().copied().eq(0..before.len()));
        // It cannot know what its predecessor has read, so overlap is possible, a gap is not.
        prop_assert!(after.windows(2).all(|pair| pair[0] < pair[1]));
        let missed = (before.len()..lengths.len()).find(|n| !after.contains(n));
        prop_assert_eq!(missed, None);
        prop_assert_eq!(world.sender.pending(), 0);
    }

    #[test]
    fn frames_survive_the_wire(
        (sender, lane, base, ahead) in (any::<u64>(), any::<u32>(), 0..1u64 << 62, 0..1_000u64),
        (total, last) in (any::<Option<u32>>(), any::<bool>()),
        payload in prop::collection::vec(any::<u8>(), 0..2_000),
        gaps in prop::collection::vec((1..1_000u32, 1..1_000u32), 0..=MAX_RANGES),
        (window, age_us, denied) in (any::<u32>(), any::<u32>(), any::<bool>()),
    ) {
        let mut end = base;
        let mut ranges = Vec::new();
        for (gap, count) in gaps {
            ranges.push((end + u64::from(gap), count));
            end += u64::from(gap) + u64::from(count);
        }
        let sequence = base + ahead;
        let receiver = sender.rotate_left(7);
        let reason = if denied { Refusal::Denied } else { Refusal::TooLarge };
        for frame in [
            LaneFrame::Data(Data { sender, lane, sequence, base, total, last, payload: payload.into() }),
            LaneFrame::Ack(Ack { receiver, sender, lane, next: base, window, age_us, ranges }),
            LaneFrame::Skip(Skip { sender, lane, base }),
            LaneFrame::Refuse(Refuse { receiver, sender, lane, sequence, reason }),
        ] {
            prop_assert_eq!(LaneFrame::decode(frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = bytes;
        let _ = LaneFrame::decode(bytes.clone().into());
        if let Some(first) = bytes.first_mut() {
            *first = 0x10 | *first & 0x03;
            let _ = LaneFrame::decode(bytes.into());
        }
    }

    /// Whatever a peer says, neither end panics, and the receiver keeps no more than its limits.
    #[test]
    fn hostile_frames_neither_crash_nor_fill_an_end(
        frames in prop::collection::vec(
            (0..4u8, 0..40u64, 0..40u64, any::<Option<u32>>(), any::<bool>(), 0..3_000usize, 0..60u32),
            1..200,
        ),
    ) {
        let now = origin();
        let config = ReceiveConfig { capacity: 40_000, max_message: 20_000 };
        let mut receiver = ReceiveLane::new(config, RECEIVER, SENDER, LANE, 0);
        let mut sender = SendLane::new(SendConfig::default(), SENDER, LANE);
        for n in 0..10 {
            let payload = message(n, 10_000 * n);
            let enqueue = Enqueue { payload, class: Class::Message, ttl: ms(100) };
            sender.enqueue(enqueue, now).unwrap();
        }
        for (n, (kind, a, b, total, last, length, count)) in frames.into_iter().enumerate() {
            let now = now + ms(n as u64);
            while sender.poll_transmit(now).is_some() {}
            match kind {
                0 => receiver.on_data(
                    Data {
                        sender: SENDER,
                        lane: LANE,
                        sequence: a.max(b),
                        base: a.min(b),
                        total: total.map(|total| total % 30_000),
                        last,
                        payload: vec![0; length].into(),
                    },
                    ms(1),
                    now,
                ),
                1 => sender.on_ack(
                    &Ack {
                        receiver: u64::from(last),
                        sender: SENDER,
                        lane: LANE,
                        next: a.min(b),
                        window: length as u32,
                        age_us: 0,
                        ranges: vec![(a.max(b) + 1, count + 1)],
                    },
                    now,
                ),
                2 => receiver.on_skip(a, now),
                _ => {
                    sender.on_rejected(count, Trouble::Congested, now);
                    sender.on_timeout(now);
                }
            }
            let whole = receiver.poll_transmit(now);
            prop_assert!(receiver.kept_bytes() <= 40_000 + 2 * 20_000 + 2 * MAX_SEGMENT);
            if let Some(frame) = whole {
                prop_assert_eq!(LaneFrame::decode(frame.encode()), Ok(frame));
            }
        }
    }
}

#[test]
fn a_message_goes_out_at_once_and_is_confirmed_after_one_round_trip() {
    let mut world = World::new(fine(), ReceiveConfig::default());
    world.send(message(0, 200), ms(1_000)).unwrap();
    world.run_until(ms(500));
    let confirmed = Outcome::Delivered {
        after: ms(80),
        age: ms(40),
    };
    assert_eq!(world.outcomes[&0], [confirmed]);
    assert_eq!(world.sender.resent(), 0);
}

#[test]
fn a_lone_loss_among_others_is_mended_before_the_timeout() {
    let mut world = World::new(fine(), ReceiveConfig::default());
    for n in 0..10 {
        world.send(message(n, 100), ms(10_000)).unwrap();
    }
    let (first, _) = world.sender.poll_transmit(world.now).unwrap();
    drop(first);
    world.run_until(ms(190));
    assert_eq!(
        world.delivered.len(),
        10,
        "one round trip to see it, half of one to mend it"
    );
    assert_eq!(world.sender.resent(), 1);
}

#[test]
fn an_empty_message_is_a_message() {
    let mut world = World::new(fine(), ReceiveConfig::default());
    world.send(Bytes::new(), ms(1_000)).unwrap();
    world.run_until(ms(500));
    assert_eq!(world.delivered, [Bytes::new()]);
}

#[test]
fn a_receiver_that_does_not_read_stops_its_sender_and_costs_bounded_memory() {
    let config = ReceiveConfig {
        capacity: 100_000,
        ..ReceiveConfig::default()
    };
    let mut world = World::new(Weather { reads: 0, ..fine() }, config);
    for n in 0..1_000 {
        world
            .send(message(n, 1_000), Duration::from_secs(600))
            .unwrap();
    }
    world.run_until(Duration::from_secs(20));
    // What may be under way before the first ACK is the receiver's to drop.
    assert!(
        world.most_kept <= 100_000 + 2 * MAX_SEGMENT,
        "{}",
        world.most_kept
    );
    assert!(world.sender.pending() > 800);
    world.weather.reads = 100;
    world.run_until(Duration::from_secs(60));
    assert_eq!(world.delivered.len(), 1_000);
    assert_eq!(world.sender.pending(), 0);
}

#[test]
fn a_message_larger_than_the_window_passes() {
    let mut world = World::new(fine(), ReceiveConfig::default());
    world
        .send(message(0, 16 << 20), Duration::from_secs(60))
        .unwrap();
    world.run_until(Duration::from_secs(60));
    assert_eq!(world.delivered.len(), 1);
    assert_eq!(world.delivered[0], message(0, 16 << 20));
}

#[test]
fn a_message_the_receiver_finds_too_large_is_refused_and_the_next_one_passes() {
    let config = ReceiveConfig {
        max_message: 50_000,
        ..ReceiveConfig::default()
    };
    let mut world = World::new(fine(), config);
    world.send(message(0, 50_001), ms(10_000)).unwrap();
    world.send(message(1, 50_000), ms(10_000)).unwrap();
    world.run_until(ms(1_000));
    assert_eq!(world.outcomes[&0], [Outcome::TooLarge]);
    assert_eq!(world.delivered.iter().map(number).collect::<Vec<_>>(), [1]);
}

#[test]
fn what_came_of_an_expired_message_is_dropped_at_the_receiver() {
    let mut world = World::new(
        Weather {
            outage: (1, 400),
            ..fine()
        },
        ReceiveConfig::default(),
    );
    world.send(message(0, 2 << 20), ms(150)).unwrap();
    world.run_until(ms(100));
    let kept = |world: &World| world.receiver.as_ref().unwrap().kept_bytes();
    assert!(kept(&world) > 100_000);
    world.run_until(ms(5_000));
    assert_eq!(world.outcomes[&0], [Outcome::Expired]);
    assert_eq!(kept(&world), 0, "the first SKIP was lost, a later one came");
}

#[test]
fn a_full_queue_says_so() {
    let config = SendConfig {
        queue_bytes: 1_000,
        queue_messages: 3,
    };
    let now = origin();
    let mut lane = SendLane::new(config, SENDER, LANE);
    let mut send = |length| {
        let payload = Bytes::from(vec![0; length]);
        let class = Class::Message;
        lane.enqueue(
            Enqueue {
                payload,
                class,
                ttl: ms(1),
            },
            now,
        )
    };
    assert!(send(5_000).is_ok(), "one message is always taken");
    assert_eq!(send(1), Err(Outcome::QueueFull));
    lane.on_timeout(now + ms(1));
    let mut send = |length| {
        let payload = Bytes::from(vec![0; length]);
        let class = Class::Message;
        lane.enqueue(
            Enqueue {
                payload,
                class,
                ttl: ms(1),
            },
            now,
        )
    };
    assert!((0..3).all(|_| send(10).is_ok()));
    assert_eq!(send(10), Err(Outcome::QueueFull));
}

#[test]
fn a_rejected_segment_is_tried_again_and_a_denied_message_ends() {
    let mut world = World::new(fine(), ReceiveConfig::default());
    for n in 0..2 {
        world.send(message(n, 100), ms(10_000)).unwrap();
        world.sender.poll_transmit(world.now).unwrap();
    }
    world.sender.on_rejected(0, Trouble::Denied, world.now);
    world.sender.on_rejected(1, Trouble::Congested, world.now);
    world.run_until(ms(300));
    assert_eq!(world.outcomes[&0], [Outcome::Denied]);
    assert_eq!(world.delivered.iter().map(number).collect::<Vec<_>>(), [1]);
}

#[test]
fn only_what_was_never_sent_can_be_said_to_be_undelivered() {
    let mut world = World::new(fine(), ReceiveConfig::default());
    world.send(message(0, 100), ms(10_000)).unwrap();
    world.sender.poll_transmit(world.now).unwrap();
    world.send(message(1, 100), ms(10_000)).unwrap();
    world.sender.fail_unsent(Outcome::Offline, world.now);
    assert_eq!(
        world.sender.poll_outcome(),
        Some((MessageId(1), Outcome::Offline))
    );
    world.sender.fail_all(Outcome::Closed, world.now);
    assert_eq!(
        world.sender.poll_outcome(),
        Some((MessageId(0), Outcome::Closed))
    );
}
