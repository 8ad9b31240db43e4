use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    tests::{Dice, LANE, SENDER, message, ms, number, origin},
    *,
};
use crate::{Class, MAX_SEGMENT};

fn config() -> ReceiveConfig {
    ReceiveConfig {
        capacity: 256 << 10,
        max_message: 1 << 20,
    }
}

fn ack(receiver: u64, next: u64, ranges: Vec<(u64, u32)>) -> Ack {
    Ack {
        receiver,
        sender: SENDER,
        lane: LANE,
        next,
        window: 1 << 20,
        age_us: 0,
        ranges,
    }
}

/// The segments of some messages, as their sender makes them.
fn segments(lengths: &[usize]) -> Vec<Data> {
    let mut lane = SendLane::new(SendConfig::default(), SENDER, LANE);
    let now = origin();
    let mut segments = Vec::new();
    for (n, &length) in lengths.iter().enumerate() {
        let enqueue = Enqueue {
            payload: message(n, length),
            class: Class::Message,
            ttl: ms(60_000),
        };
        lane.enqueue(enqueue, now).unwrap();
        while lane.pending() > 0 {
            while let Some((LaneFrame::Data(data), _)) = lane.poll_transmit(now) {
                segments.push(data);
            }
            let next = segments.len() as u64;
            lane.on_ack(&ack(1, next, Vec::new()), now);
        }
    }
    segments
}

/// What comes to a member, in order of time.
enum Arrival {
    Data(Data),
    Fetched {
        from: u64,
        to: u64,
        missing: Vec<u64>,
        unreachable: bool,
        busy: bool,
    },
    /// A new session.
    Resume,
}

/// A member gives a segment up that it asks for six times in vain; of those tries some find the
/// sender's edge out of reach. Fewer losses than the others must not cost anything.
const MOST_LOSSES: u8 = 2;

/// A member at an edge that holds some of the segments.
struct World {
    dice: Dice,
    loss: u64,
    jitter_ms: u64,
    now: Instant,
    order: u64,
    arrivals: BTreeMap<(Instant, u64), Arrival>,
    lane: MemberLane,
    segments: Vec<Data>,
    /// By sequence.
    held: Vec<bool>,
    /// How often each segment was lost on its way to the member, at most [`MOST_LOSSES`].
    losses: Vec<u8>,
    unreachable_until: Instant,
    /// Questions that the edge does not take, percent.
    busy: u64,
    /// Segments that the sender has sent so far.
    sent: u64,
    taken: Vec<Taken>,
    fetches: usize,
}

impl World {
    fn new(seed: u64, loss: u64, jitter_ms: u64, segments: Vec<Data>) -> Self {
        let now = origin();
        Self {
            dice: Dice(seed),
            loss,
            jitter_ms,
            now,
            order: 0,
            arrivals: BTreeMap::new(),
            lane: MemberLane::new(config(), SENDER, LANE, 0, 0),
            held: vec![true; segments.len()],
            losses: vec![0; segments.len()],
            segments,
            unreachable_until: now,
            busy: 0,
            sent: 0,
            taken: Vec::new(),
            fetches: 0,
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        let late = 20 + self.dice.below(self.jitter_ms + 1);
        self.arrivals
            .insert((self.now + ms(late), self.order), arrival);
        self.order += 1;
    }

    fn send(&mut self, sequence: u64) {
        let losses = &mut self.losses[sequence as usize];
        if self.dice.happens(self.loss) && *losses < MOST_LOSSES {
            *losses += 1;
        } else {
            let data = self.segments[sequence as usize].clone();
            self.arrive(Arrival::Data(data));
        }
    }

    /// The sender sends its next segment to everybody.
    fn publish(&mut self) {
        self.sent += 1;
        self.send(self.sent - 1);
    }

    fn answer(&mut self, fetch: Fetch) {
        if self.dice.happens(self.busy) {
            return self.arrive(Arrival::Fetched {
                from: fetch.from,
                to: fetch.from.saturating_sub(1),
                missing: Vec::new(),
                unreachable: true,
                busy: true,
            });
        }
        self.fetches += 1;
        let to = fetch.to.min(self.sent.saturating_sub(1));
        let unreachable = self.now < self.unreachable_until;
        let mut missing = Vec::new();
        for sequence in fetch.from..=to {
            if unreachable {
                break;
            } else if self.held[sequence as usize] {
                self.send(sequence);
            } else {
                missing.extend([sequence, sequence]);
            }
        }
        let to = if to < fetch.from || self.sent == 0 {
            fetch.from.wrapping_sub(1)
        } else {
            to
        };
        self.arrive(Arrival::Fetched {
            from: fetch.from,
            to,
            missing,
            unreachable,
            busy: false,
        });
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while let Some(taken) = self.lane.take(self.now) {
                self.taken.push(taken);
            }
            if let Some(fetch) = self.lane.poll_fetch(self.now) {
                self.answer(fetch);
                continue;
            }
            // Having given up on something, the lane may have gone on.
            if self.lane.has_ready() {
                continue;
            }
            let arrival = self.arrivals.first_key_value().map(|((at, _), _)| *at);
            let due = self.lane.next_timeout().map(|at| at.max(self.now));
            let Some(next) = [arrival, due]
                .into_iter()
                .flatten()
                .min()
                .filter(|at| *at <= end)
            else {
                self.now = end;
                return;
            };
            self.now = next;
            if arrival == Some(next)
                && let Some((_, arrival)) = self.arrivals.pop_first()
            {
                match arrival {
                    Arrival::Data(data) => self.lane.on_data(data, ms(20), self.now),
                    Arrival::Fetched {
                        from,
                        to,
                        missing,
                        unreachable,
                        busy,
                    } => {
                        let missing = &missing;
                        let fetched = Fetched {
                            from,
                            to,
                            missing,
                            unreachable,
                            busy,
                        };
                        self.lane.on_fetched(&fetched, self.now);
                    }
                    Arrival::Resume => self.lane.resume(self.now),
                }
            }
        }
    }

    fn numbers(&self) -> Vec<usize> {
        let messages = self.taken.iter().filter_map(|taken| match taken {
            Taken::Message(received) => Some(number(&received.payload)),
            Taken::Gap(_) => None,
        });
        messages.collect()
    }

    fn lost(&self) -> u64 {
        let gaps = self.taken.iter().map(|taken| match taken {
            Taken::Gap(segments) => *segments,
            Taken::Message(_) => 0,
        });
        gaps.sum()
    }
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![8 => 4..2_000usize, 1 => MAX_SEGMENT..60_000usize];
    prop::collection::vec(length, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// In order, once, whole; and what the edges hold comes, however bad the way to the member is.
    #[test]
    fn a_member_gets_all_that_the_edges_hold(
        (seed, loss, jitter_ms, pause) in (any::<u64>(), 0..40u64, 0..80u64, 0..60u64),
        (away, back) in (0..3_000u64, 0..3_000u64),
        busy in 0..70u64,
        lengths in lengths(),
    ) {
        let mut world = World::new(seed, loss, jitter_ms, segments(&lengths));
        world.busy = busy;
        // The first one comes: a member knows nothing of a lane until something of it does.
        world.lane.on_newest(0, world.now);
        let began = world.now;
        let mut session = true;
        while world.sent < world.segments.len() as u64 {
            let is_away = (away..away + back).contains(&((world.now - began).as_millis() as u64));
            if session && is_away {
                world.lane.suspend();
                world.arrivals.clear();
            } else if !session && !is_away {
                world.arrive(Arrival::Resume);
            }
            session = !is_away;
            if is_away {
                world.sent += 1;
            } else {
                world.publish();
            }
            world.run_for(ms(pause + 1));
            if is_away {
                world.arrivals.clear();
            }
        }
        if !session {
            world.arrive(Arrival::Resume);
        }
        // What was sent last may have been lost: the edge tells of it.
        world.run_for(ms(100));
        world.lane.on_newest(world.sent - 1, world.now);
        world.run_for(Duration::from_secs(600));
        prop_assert_eq!(world.numbers(), (0..lengths.len()).collect::<Vec<_>>());
        prop_assert_eq!(world.lost(), 0);
        prop_assert!(world.lane.is_idle());
        prop_assert_eq!(world.lane.next_timeout(), None);
    }

    /// What nobody holds is told as a gap, in its place, and nothing else is.
    #[test]
    fn what_nobody_holds_is_a_gap(
        (seed, loss, jitter_ms) in (any::<u64>(), 0..30u64, 0..80u64),
        unreachable_ms in prop_oneof![Just(0), 0..4_000u64],
        forgotten in prop::collection::btree_set(0..100usize, 0..20),
        lengths in lengths(),
    ) {
        let mut world = World::new(seed, loss, jitter_ms, segments(&lengths));
        world.unreachable_until = world.now + ms(unreachable_ms);
        let all = world.segments.len();
        for sequence in forgotten.iter().copied().filter(|sequence| *sequence < all) {
            world.held[sequence] = false;
        }
        for _ in 0..all {
            world.publish();
            world.run_for(ms(10));
        }
        world.lane.on_newest(all as u64 - 1, world.now);
        world.run_for(Duration::from_secs(600));
        let numbers = world.numbers();
        prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", numbers);
        let missing = lengths.len() - numbers.len();
        prop_assert!(world.lost() >= missing as u64);
        prop_assert!(world.lost() <= forgotten.len() as u64);
        prop_assert_eq!(world.lost() == 0, missing == 0);
        prop_assert!(world.lane.is_idle());
        // A gap stands where its messages would.
        let mut next = 0;
        let mut gap = false;
        for taken in &world.taken {
            match taken {
                Taken::Gap(_) => gap = true,
                Taken::Message(received) => {
                    let n = number(&received.payload);
                    prop_assert_eq!(&received.payload, &message(n, lengths[n]));
                    prop_assert!(n == next || gap, "{} instead of {} without a gap", n, next);
                    (next, gap) = (n + 1, false);
                }
            }
        }
    }

    /// Whatever comes, nothing panics, and what is kept is bounded.
    #[test]
    fn hostile_frames_neither_crash_nor_fill_a_member(
        frames in prop::collection::vec(
            (0..5u8, any::<u64>(), any::<u64>(), any::<Option<u32>>(), any::<bool>(), 0..3_000usize),
            1..200,
        ),
    ) {
        let now = origin();
        let config = ReceiveConfig { capacity: 40_000, max_message: 20_000 };
        let mut lane = MemberLane::new(config, SENDER, LANE, 3, 0);
        for (n, (kind, a, b, total, last, length)) in frames.into_iter().enumerate() {
            let now = now + ms(n as u64 * 100);
            let (a, b) = if last { (a % 40, b % 40) } else { (a, b) };
            match kind {
                0 | 1 => lane.on_data(
                    Data {
                        sender: SENDER,
                        lane: LANE,
                        sequence: a.min(u64::MAX - 1),
                        base: 0,
                        total: total.map(|total| total % 30_000),
                        last,
                        payload: vec![0; length].into(),
                    },
                    ms(1),
                    now,
                ),
                2 => lane.on_skip(&Skip { sender: SENDER, lane: LANE, base: a }, now),
                3 => lane.on_newest(a, now),
                _ => lane.on_fetched(
                    &Fetched { from: a, to: b, missing: &[a, b, b, a, 7], unreachable: last, busy: b % 2 == 0 },
                    now,
                ),
            }
            let _ = lane.poll_fetch(now);
            if a % 3 == 0 {
                while lane.take(now).is_some() {}
            }
        }
    }
}

#[test]
fn what_comes_late_by_itself_is_not_asked_for() {
    let all = segments(&[10; 4]);
    let mut world = World::new(1, 0, 0, all.clone());
    world.sent = 4;
    world.lane.on_data(all[0].clone(), ms(20), world.now);
    world.lane.on_data(all[2].clone(), ms(20), world.now);
    world.run_for(ms(250));
    world.lane.on_data(all[1].clone(), ms(20), world.now);
    world.run_for(ms(1_000));
    assert_eq!((world.fetches, world.numbers()), (0, vec![0, 1, 2]));
    // And what does not, is, once.
    world.lane.on_newest(3, world.now);
    world.run_for(ms(299));
    assert_eq!(world.fetches, 0);
    world.run_for(ms(1_000));
    assert_eq!((world.fetches, world.numbers()), (1, vec![0, 1, 2, 3]));
}

#[test]
fn the_senders_base_is_not_the_members() {
    let mut all = segments(&[10; 3]);
    let mut world = World::new(1, 0, 0, all.clone());
    world.sent = 3;
    world.lane.on_data(all[0].clone(), ms(20), world.now);
    // All edges hold the second one; this member has not got it.
    all[2].base = 2;
    world.lane.on_data(all[2].clone(), ms(20), world.now);
    world.run_for(ms(1_000));
    assert_eq!(world.numbers(), [0, 1, 2]);
    assert_eq!(world.lost(), 0);
}

#[test]
fn what_may_be_older_than_the_membership_is_passed_over_without_a_word() {
    let all = segments(&[10; 6]);
    let mut world = World::new(1, 0, 0, all.clone());
    world.sent = 6;
    world.held[..5].fill(false);
    world.lane = MemberLane::new(config(), SENDER, LANE, 0, 3);
    world.lane.on_data(all[3].clone(), ms(20), world.now);
    world.lane.on_data(all[5].clone(), ms(20), world.now);
    world.run_for(ms(2_000));
    assert_eq!(world.numbers(), [3, 5]);
    assert_eq!(world.taken[1], Taken::Gap(1));
    assert_eq!(world.lost(), 1);
}

#[test]
fn a_message_larger_than_the_member_takes_is_a_gap() {
    let all = segments(&[10, 1_100_000, 20]);
    let mut world = World::new(1, 0, 0, all);
    while world.sent < world.segments.len() as u64 {
        world.publish();
        world.run_for(ms(1));
    }
    world.run_for(ms(10_000));
    assert_eq!(world.numbers(), [0, 2]);
    assert!(matches!(world.taken[1], Taken::Gap(_)));
    assert_eq!(world.fetches, 0, "it was all there");
}

#[test]
fn a_member_that_does_not_read_asks_for_nothing_and_keeps_little() {
    let all = segments(&[10_000; 100]);
    let now = origin();
    let mut lane = MemberLane::new(config(), SENDER, LANE, 0, 0);
    for data in all {
        lane.on_data(data, ms(1), now);
    }
    assert_eq!(lane.next_timeout(), None);
    assert_eq!(lane.poll_fetch(now + ms(10_000)), None);
    let mut read = 0;
    while lane.take(now).is_some() {
        read += 1;
    }
    assert!((20..40).contains(&read), "{read}");
    let fetch = lane.poll_fetch(now + ms(10_000));
    assert_eq!(fetch, Some(Fetch { from: read, to: 99 }));
}

#[test]
fn a_sender_sends_everything_unsettled_again_to_a_new_ingress_edge() {
    let now = origin();
    let mut lane = SendLane::new(SendConfig::default(), SENDER, LANE);
    for n in 0..5 {
        let payload = message(n, 100);
        let (class, ttl) = (Class::Message, ms(60_000));
        lane.enqueue(
            Enqueue {
                payload,
                class,
                ttl,
            },
            now,
        )
        .unwrap();
    }
    while lane.poll_transmit(now).is_some() {}
    // The first edge knows that all edges hold 0, 2 and 3.
    lane.on_ack(&ack(1, 1, vec![(2, 2)]), now + ms(50));
    assert_eq!(lane.pending(), 4);
    while lane.poll_transmit(now + ms(50)).is_some() {}
    // Another one takes over, and knows of nothing from the base on.
    lane.way_changed();
    let mut again = Vec::new();
    while let Some((LaneFrame::Data(data), _)) = lane.poll_transmit(now + ms(60)) {
        assert_eq!(data.base, 1);
        again.push(data.sequence);
    }
    assert_eq!(again, [1, 4], "what was confirmed is not doubted yet");
    lane.on_ack(&ack(2, 2, vec![]), now + ms(100));
    let mut again = Vec::new();
    while let Some((frame, _)) = lane.poll_transmit(now + ms(100)) {
        if let LaneFrame::Data(data) = frame {
            again.push(data.sequence);
        }
    }
    assert_eq!(again, [2, 3, 4]);
    lane.on_ack(&ack(2, 5, vec![]), now + ms(200));
    assert_eq!(lane.pending(), 0);
}
