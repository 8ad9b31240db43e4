//! A sender's lane at the edge where it enters the network.

use std::{collections::BTreeMap, time::Instant};

use tradewind_proto::{
    RelayIndex,
    lane::{Ack, MAX_RANGES, SEGMENT_COST},
    packet::RelaySet,
};

/// Cost of segments from *next* on that are taken, bytes: the credit that is given.
pub(crate) const WINDOW: usize = 1 << 20;
/// How far beyond *next* a sequence may lie: as many as the credit allows.
const MAX_AHEAD: u64 = (WINDOW / SEGMENT_COST) as u64;

/// Which segments of a lane are held by every edge that has members. It is the receiver's end of the
/// lane: the sender's SDK takes its acknowledgements for those of a user.
#[derive(Debug)]
pub(crate) struct IngressLane {
    /// The receiver instance: random, new whenever the edge has forgotten the lane.
    receiver: u64,
    /// All before it are held everywhere, or given up.
    next: u64,
    segments: BTreeMap<u64, Segment>,
    cost: usize,
    /// Age of the latest confirmation.
    age_us: u32,
    pub(crate) used: Instant,
}

#[derive(Debug)]
struct Segment {
    cost: usize,
    /// Who has not confirmed it.
    pending: RelaySet,
    /// Whom it was sent to while the relay set was not certain; `None` once it has been.
    uncertain: Option<Box<RelaySet>>,
}

/// What is to be done with a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is new: to all.
    New,
    /// It came before: to those who have not confirmed it.
    Again(RelaySet),
    /// Everybody holds it: acknowledge it (again).
    Held,
    /// Beyond the credit.
    Refused,
}

impl Segment {
    fn is_held(&self) -> bool {
        self.uncertain.is_none() && self.pending.is_empty()
    }
}

impl IngressLane {
    /// A lane that was not known before: `base` is what its sender says.
    pub(crate) fn new(receiver: u64, base: u64, now: Instant) -> Self {
        Self {
            receiver,
            next: base,
            segments: BTreeMap::new(),
            cost: 0,
            age_us: 0,
            used: now,
        }
    }

    /// A segment has come from the sender. `relays` are the other relays with members, as far as they
    /// are known; `certain` says whether there can be no others.
    pub(crate) fn take(
        &mut self,
        sequence: u64,
        payload: usize,
        relays: &RelaySet,
        certain: bool,
        now: Instant,
    ) -> Taken {
        self.used = now;
        if sequence < self.next {
            return Taken::Held;
        }
        if let Some(segment) = self.segments.get_mut(&sequence) {
            return match segment.is_held() {
                true => Taken::Held,
                false => Taken::Again(segment.pending.clone()),
            };
        }
        let cost = payload + SEGMENT_COST;
        if sequence - self.next >= MAX_AHEAD || self.cost + cost > WINDOW {
            return Taken::Refused;
        }
        self.cost += cost;
        let segment = Segment {
            cost,
            pending: relays.clone(),
            uncertain: (!certain).then(|| Box::new(relays.clone())),
        };
        self.segments.insert(sequence, segment);
        self.advance();
        Taken::New
    }

    /// What the sender says of its base: nothing before it is waited for.
    pub(crate) fn go_on_from(&mut self, base: u64) {
        if base > self.next {
            let beyond = self.segments.split_off(&base);
            let passed = std::mem::replace(&mut self.segments, beyond);
            self.cost -= passed.values().map(|segment| segment.cost).sum::<usize>();
            self.next = base;
            self.advance();
        }
    }

    /// A relay holds a segment, or has no members. `true` when everybody holds it now.
    pub(crate) fn confirm(&mut self, sequence: u64, relay: RelayIndex, age_us: u32) -> bool {
        let Some(segment) = self.segments.get_mut(&sequence) else {
            return false;
        };
        if !segment.pending.remove(relay) || !segment.is_held() {
            return false;
        }
        self.age_us = age_us;
        self.advance();
        true
    }

    /// Takes all but these off what is waited for: they have no members any more, or are no more.
    /// `true` when something is held everywhere now.
    pub(crate) fn wait_only_for(&mut self, relays: &RelaySet) -> bool {
        let before = self.held();
        for segment in self.segments.values_mut() {
            segment.pending.retain(|relay| relays.contains(relay));
        }
        let progress = self.held() > before;
        self.advance();
        progress
    }

    /// The relay set is certain now: gives the segments that were taken when it was not, and the relays
    /// each of them has not been sent to yet.
    pub(crate) fn make_certain(&mut self, relays: &RelaySet) -> Vec<(u64, RelaySet)> {
        let mut more = Vec::new();
        for (&sequence, segment) in &mut self.segments {
            let Some(sent) = segment.uncertain.take() else {
                continue;
            };
            let mut new = relays.clone();
            new.retain(|relay| !sent.contains(relay));
            segment.pending.retain(|relay| relays.contains(relay));
            segment.pending.extend(new.iter());
            more.push((sequence, new));
        }
        self.advance();
        more
    }

    /// Whether some segment was taken while the relay set was not certain.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.segments
            .values()
            .any(|segment| segment.uncertain.is_some())
    }

    /// The acknowledgement of what is held everywhere.
    pub(crate) fn ack(&self, sender: u64, lane: u32) -> Ack {
        let mut ranges: Vec<(u64, u32)> = Vec::new();
        for (&sequence, _) in self
            .segments
            .iter()
            .filter(|(_, segment)| segment.is_held())
        {
            let full = ranges.len() == MAX_RANGES;
            match ranges.last_mut() {
                Some((first, count)) if *first + u64::from(*count) == sequence => *count += 1,
                _ if full => break,
                _ => ranges.push((sequence, 1)),
            }
        }
        Ack {
            receiver: self.receiver,
            sender,
            lane,
            next: self.next,
            window: WINDOW as u32,
            age_us: self.age_us,
            ranges,
        }
    }

    fn held(&self) -> usize {
        self.segments
            .values()
            .filter(|segment| segment.is_held())
            .count()
    }

    fn advance(&mut self) {
        while let Some(entry) = self.segments.first_entry()
            && *entry.key() == self.next
            && entry.get().is_held()
        {
            self.cost -= entry.remove().cost;
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn lane(base: u64) -> IngressLane {
        IngressLane::new(9, base, Instant::now())
    }

    fn set(relays: &[u16]) -> RelaySet {
        relays.iter().copied().map(RelayIndex).collect()
    }

    fn take(lane: &mut IngressLane, sequence: u64, relays: &[u16], certain: bool) -> Taken {
        let now = lane.used;
        lane.take(sequence, 100, &set(relays), certain, now)
    }

    #[test]
    fn a_segment_is_acknowledged_when_every_edge_with_members_holds_it() {
        let mut lane = lane(5);
        assert_eq!(take(&mut lane, 5, &[1, 2], true), Taken::New);
        assert_eq!(take(&mut lane, 7, &[1], true), Taken::New);
        assert_eq!(
            take(&mut lane, 5, &[1, 2], true),
            Taken::Again(set(&[1, 2]))
        );
        assert!(!lane.confirm(5, RelayIndex(1), 10));
        assert_eq!(take(&mut lane, 5, &[1, 2], true), Taken::Again(set(&[2])));
        assert!(lane.confirm(7, RelayIndex(1), 20));
        assert_eq!(
            (lane.ack(1, 2).next, lane.ack(1, 2).ranges),
            (5, vec![(7, 1)])
        );
        assert!(lane.confirm(5, RelayIndex(2), 30));
        assert!(!lane.confirm(5, RelayIndex(2), 30));
        let ack = lane.ack(1, 2);
        assert_eq!((ack.next, ack.age_us, ack.receiver), (6, 30, 9));
        assert_eq!(take(&mut lane, 5, &[1, 2], true), Taken::Held);
        // The sender has given up what is missing.
        lane.go_on_from(7);
        assert_eq!((lane.ack(1, 2).next, lane.ack(1, 2).ranges), (8, vec![]));
        assert!(lane.segments.is_empty() && lane.cost == 0);
    }

    #[test]
    fn nobody_to_wait_for_holds_at_once() {
        let mut lane = lane(0);
        assert_eq!(take(&mut lane, 0, &[], true), Taken::New);
        assert_eq!(lane.ack(1, 2).next, 1);
    }

    #[test]
    fn who_leaves_the_group_or_the_network_is_not_waited_for() {
        let mut lane = lane(0);
        take(&mut lane, 0, &[1, 2], true);
        take(&mut lane, 1, &[2], true);
        assert!(!lane.wait_only_for(&set(&[1, 2])));
        assert!(lane.wait_only_for(&set(&[1])));
        assert_eq!(
            (lane.ack(1, 2).next, lane.ack(1, 2).ranges),
            (0, vec![(1, 1)])
        );
        assert!(lane.confirm(0, RelayIndex(1), 1));
        assert_eq!(lane.ack(1, 2).next, 2);
    }

    #[test]
    fn what_was_taken_before_the_relay_set_was_certain_goes_to_those_that_it_has_more() {
        let mut lane = lane(0);
        take(&mut lane, 0, &[1], false);
        assert!(!lane.confirm(0, RelayIndex(1), 1), "there may be others");
        take(&mut lane, 1, &[1], false);
        assert!(lane.is_uncertain());
        let more = lane.make_certain(&set(&[1, 3]));
        assert_eq!(more, [(0, set(&[3])), (1, set(&[3]))]);
        assert!(
            lane.confirm(0, RelayIndex(3), 1),
            "relay 1 holds it already"
        );
        assert_eq!(
            take(&mut lane, 1, &[1, 3], true),
            Taken::Again(set(&[1, 3]))
        );
        assert!(!lane.is_uncertain());
        // Nobody else was there.
        take(&mut lane, 2, &[], false);
        assert_eq!(lane.make_certain(&set(&[])), [(2, set(&[]))]);
        assert_eq!(lane.ack(1, 2).ranges, [(2, 1)]);
    }

    #[test]
    fn what_exceeds_the_credit_is_refused() {
        let mut lane = lane(0);
        let now = lane.used;
        let whole = WINDOW - SEGMENT_COST;
        assert_eq!(lane.take(3, whole, &set(&[1]), true, now), Taken::New);
        assert_eq!(lane.take(4, 0, &set(&[1]), true, now), Taken::Refused);
        assert!(lane.confirm(3, RelayIndex(1), 1));
        lane.go_on_from(4);
        assert_eq!(lane.take(4, 0, &set(&[1]), true, now), Taken::New);
        assert_eq!(
            lane.take(4 + MAX_AHEAD, 0, &set(&[1]), true, now),
            Taken::Refused
        );
    }
}
