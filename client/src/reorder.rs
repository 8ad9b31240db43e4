//! Puts media packets into order across a change of way, for receivers that ask for it: those that come
//! by a shorter new way overtake what is still on the old one, and wait for it, for a bounded time. Pure:
//! the time is handed in.
//!
//! A sender marks the first packets that take a new way. From the first mark on that comes, packets of
//! the flow are given out in the order of their numbers, until all that come before the mark are
//! there, or the bound is over. At all other times every packet is given out as it comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Longest time that packets wait.
pub(crate) const MOST: Duration = Duration::from_millis(60);
/// Flows remembered; beyond it the one that was silent for longest is forgotten.
const MAX_FLOWS: usize = 1_024;
/// Packets of one flow that wait; beyond it none waits any longer.
const MAX_WAITING: usize = 128;
/// So soon after one change of way the marks of another one are those of the same: several packets are
/// marked, as one may get lost.
const SAME_CHANGE: Duration = Duration::from_millis(250);

/// Flows of media and their packets `T`.
#[derive(Debug)]
pub(crate) struct Reorder<K, T> {
    bound: Duration,
    flows: BTreeMap<K, Flow<T>>,
    /// When waiting ends.
    waiting: BTreeSet<(Instant, K)>,
}

#[derive(Debug)]
struct Flow<T> {
    /// One more than the highest number given out.
    next: u32,
    heard_at: Instant,
    change: Option<Change<T>>,
    changed_at: Option<Instant>,
}

/// A change of way that is not over.
#[derive(Debug)]
struct Change<T> {
    /// The first number that took the new way, as far as is known.
    first: u32,
    until: Instant,
    /// What has overtaken others, by how far it is beyond `next` as that was at the beginning.
    held: BTreeMap<u32, T>,
    base: u32,
}

impl<K: Ord + Clone, T> Reorder<K, T> {
    /// `bound`: how long a packet may wait, at most [`MOST`]; zero: none ever does.
    pub(crate) fn new(bound: Duration) -> Self {
        Self {
            bound: bound.min(MOST),
            flows: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Takes a packet of a flow; `marked`: its sender says that it took another way than those before.
    /// Gives out what need not wait.
    pub(crate) fn take(
        &mut self,
        key: &K,
        (sequence, marked): (u32, bool),
        packet: T,
        now: Instant,
        give: &mut impl FnMut(T),
    ) {
        if self.bound.is_zero() {
            return give(packet);
        }
        let Some(flow) = self.flows.get_mut(key) else {
            self.make_room();
            let flow = Flow {
                next: sequence.wrapping_add(1),
                heard_at: now,
                change: None,
                changed_at: None,
            };
            self.flows.insert(key.clone(), flow);
            return give(packet);
        };
        flow.heard_at = now;
        let ahead = ahead(sequence, flow.next);
        let Some(ahead) = ahead else {
            // Too late to be put anywhere.
            return give(packet);
        };
        let known = flow.changed_at.is_some_and(|at| now < at + SAME_CHANGE);
        if marked && !known {
            flow.changed_at = Some(now);
            // If nothing is missing, all that took the old way has come.
            if ahead > 0 && flow.change.is_none() {
                let until = now + self.bound;
                flow.change = Some(Change {
                    first: sequence,
                    until,
                    held: BTreeMap::new(),
                    base: flow.next,
                });
                self.waiting.insert((until, key.clone()));
            }
        }
        let Some(change) = &mut flow.change else {
            flow.next = sequence.wrapping_add(1);
            return give(packet);
        };
        if marked && distance(sequence, change.base) < distance(change.first, change.base) {
            change.first = sequence;
        }
        // One that comes a second time is none of our business, but its place is taken.
        if let Some(before) = change.held.insert(distance(sequence, change.base), packet) {
            give(before);
        }
        while let Some(entry) = change.held.first_entry()
            && *entry.key() == distance(flow.next, change.base)
        {
            flow.next = flow.next.wrapping_add(1);
            give(entry.remove());
        }
        let all_there = distance(flow.next, change.base) >= distance(change.first, change.base);
        if all_there || change.held.len() >= MAX_WAITING || now >= change.until {
            let until = change.until;
            self.waiting.remove(&(until, key.clone()));
            flow.end_change(give);
        }
    }

    /// When something need not wait any longer.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Gives out what has waited for long enough.
    pub(crate) fn on_timeout(&mut self, now: Instant, give: &mut impl FnMut(T)) {
        while let Some((until, _)) = self.waiting.first()
            && *until <= now
            && let Some((_, key)) = self.waiting.pop_first()
        {
            if let Some(flow) = self.flows.get_mut(&key) {
                flow.end_change(give);
            }
        }
    }

    fn make_room(&mut self) {
        if self.flows.len() < MAX_FLOWS {
            return;
        }
        let idle = self.flows.iter().filter(|(_, flow)| flow.change.is_none());
        let oldest = idle.min_by_key(|(_, flow)| flow.heard_at);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.flows.remove(&key);
        }
    }
}

impl<T> Flow<T> {
    /// Nothing waits any longer: all that is held is given out in order.
    fn end_change(&mut self, give: &mut impl FnMut(T)) {
        let Some(change) = self.change.take() else {
            return;
        };
        for (offset, packet) in change.held {
            self.next = change.base.wrapping_add(offset).wrapping_add(1);
            give(packet);
        }
    }
}

/// How far a number is beyond the next one expected; `None` when it comes before that. They wrap.
const fn ahead(sequence: u32, next: u32) -> Option<u32> {
    let ahead = sequence.wrapping_sub(next);
    if ahead < 1 << 31 { Some(ahead) } else { None }
}

const fn distance(sequence: u32, base: u32) -> u32 {
    sequence.wrapping_sub(base)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Packets as they come: when (ms), number, marked. Gives when each was given out.
    fn given(bound: Duration, packets: &[(u64, u32, bool)]) -> Vec<(u64, u32)> {
        let start = start();
        let mut reorder = Reorder::new(bound);
        let mut out = Vec::new();
        let mut packets = packets.iter().copied().peekable();
        loop {
            let timeout = reorder.next_timeout();
            let next = packets.peek().map(|&(at, ..)| start + ms(at));
            let Some(now) = timeout.into_iter().chain(next).min() else {
                return out;
            };
            let at = (now - start).as_millis() as u64;
            // Of what falls together the packet comes first.
            if next == Some(now)
                && let Some((_, number, marked)) = packets.next()
            {
                reorder.take(&"flow", (number, marked), number, now, &mut |n| {
                    out.push((at, n));
                });
            } else {
                reorder.on_timeout(now, &mut |n| out.push((at, n)));
            }
        }
    }

    #[test]
    fn what_overtakes_waits_for_what_is_on_the_old_way() {
        let packets = [
            (0, 1, false),
            (20, 2, false),
            (25, 5, true),
            (40, 3, false),
            (45, 6, true),
            (60, 4, false),
            (65, 7, true),
        ];
        assert_eq!(
            given(ms(60), &packets),
            [(0, 1), (20, 2), (40, 3), (60, 4), (60, 5), (60, 6), (65, 7)]
        );
        // Off.
        let as_they_come: Vec<_> = packets.iter().map(|&(at, n, _)| (at, n)).collect();
        assert_eq!(given(Duration::ZERO, &packets), as_they_come);
    }

    #[test]
    fn what_is_lost_is_waited_for_until_the_bound_and_only_what_comes_before_the_mark() {
        let lost_before = [(0, 1, false), (10, 3, true), (30, 4, true), (80, 5, false)];
        assert_eq!(
            given(ms(40), &lost_before),
            [(0, 1), (50, 3), (50, 4), (80, 5)]
        );
        let lost_after = [
            (0, 1, false),
            (10, 3, true),
            (20, 5, false),
            (30, 2, false),
            (40, 6, false),
        ];
        assert_eq!(
            given(ms(40), &lost_after),
            [(0, 1), (30, 2), (30, 3), (30, 5), (40, 6)]
        );
        // What comes too late is given out all the same.
        let late = [(0, 1, false), (10, 3, true), (60, 2, false), (70, 4, false)];
        assert_eq!(given(ms(40), &late), [(0, 1), (50, 3), (60, 2), (70, 4)]);
    }

    #[test]
    fn a_longer_way_delays_nothing_and_a_mark_that_got_lost_is_made_up_for_by_the_next() {
        let longer = [(0, 1, false), (50, 2, true), (70, 4, true), (80, 5, false)];
        assert_eq!(
            given(ms(60), &longer),
            [(0, 1), (50, 2), (70, 4), (80, 5)],
            "what is lost on the new way is not waited for"
        );
        let lost_mark = [(0, 1, false), (5, 4, true), (12, 2, false), (65, 5, false)];
        assert_eq!(
            given(ms(60), &lost_mark),
            [(0, 1), (12, 2), (65, 4), (65, 5)]
        );
    }

    #[test]
    fn numbers_wrap_and_what_is_kept_is_bounded() {
        let top = u32::MAX;
        let wraps = [
            (0, top - 1, false),
            (10, 1, true),
            (20, top, false),
            (30, 0, false),
        ];
        assert_eq!(
            given(ms(60), &wraps),
            [(0, top - 1), (20, top), (30, 0), (30, 1)]
        );
        let now = start();
        let mut reorder = Reorder::new(MOST);
        let mut count = 0;
        for flow in 0..2 * MAX_FLOWS as u32 {
            reorder.take(&flow, (0, false), (), now, &mut |()| count += 1);
        }
        assert_eq!((reorder.flows.len(), count), (MAX_FLOWS, 2 * MAX_FLOWS));
        let last = 2 * MAX_FLOWS as u32 - 1;
        count = 0;
        for number in 0..MAX_WAITING as u32 {
            reorder.take(&last, (2 + number, number == 0), (), now, &mut |()| {
                count += 1;
            });
        }
        assert_eq!((count, reorder.next_timeout()), (MAX_WAITING, None));
    }

    proptest! {
        /// A flow over an old and a new way, with jitter and loss.
        #[test]
        fn nothing_waits_beyond_the_bound_or_without_a_mark_and_nothing_is_put_out_of_order(
            bound in 1_u64..=60,
            change in 0_u32..60,
            (old, new) in (0_u64..200, 0_u64..200),
            jitter in prop::collection::vec(0_u64..15, 80),
            lost in prop::collection::vec(prop::bool::weighted(0.1), 80),
            marks in any::<bool>(),
        ) {
            let mut packets: Vec<(u64, u32, bool)> = (0..80_u32)
                .filter(|&n| !lost[n as usize])
                .map(|n| {
                    let delay = if n < change { old } else { new };
                    let marked = marks && (change..change + 3).contains(&n);
                    (10 * u64::from(n) + delay + jitter[n as usize], n, marked)
                })
                .collect();
            packets.sort_by_key(|&(at, n, _)| (at, n));
            let came = |n: u32| packets.iter().find(|p| p.1 == n).unwrap().0;
            let given = given(ms(bound), &packets);
            prop_assert_eq!(given.len(), packets.len(), "nothing is lost or doubled");
            for &(at, n) in &given {
                prop_assert!((came(n)..=came(n) + bound).contains(&at), "{} waited", n);
                prop_assert!(marks || at == came(n), "{} waited without a mark", n);
            }
            // What is given out after a later one came after that had been given out.
            for (index, &(at, n)) in given.iter().enumerate() {
                let overtaken = given[index + 1..].iter().find(|later| later.1 < n);
                if let Some(&(_, earlier)) = overtaken {
                    prop_assert!(came(earlier) >= at, "{} was held while {} went", earlier, n);
                }
            }
        }
    }
}
