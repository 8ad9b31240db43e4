//! A member asks for segments again.

use std::time::{Duration, Instant};

use super::{LaneKey, ReplayWindows};

/// Most ranges of missing segments that are named in one answer, which ends there.
const MAX_MISSING: usize = 128;
/// How long the sender's edge has to say something.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// How often it is asked while nothing comes.
const REPEAT: Duration = Duration::from_millis(600);

/// A member's fetch: gives out in order what this edge holds, as the member's queue takes it. What it
/// does not hold it asks the sender's edge for before ([`OriginAsk`]).
#[derive(Debug)]
pub(crate) struct Fetch {
    lane: LaneKey,
    from: u64,
    /// The last one wanted; `u64::MAX`: the newest.
    to: u64,
    next: u64,
    missing: Vec<(u64, u64)>,
    /// The newest that the sender's edge holds, if it was asked.
    newest: Option<u64>,
    unreachable: bool,
}

/// What a member is to be given next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// This segment.
    Give(u64),
    /// The end. `to` is below `from` when there is nothing from there on.
    Done {
        from: u64,
        to: u64,
        /// Pairs of first and last.
        missing: Vec<u64>,
        unreachable: bool,
    },
}

impl Fetch {
    pub(crate) fn new(lane: LaneKey, from: u64, to: u64) -> Self {
        Self {
            lane,
            from,
            to,
            next: from,
            missing: Vec::new(),
            newest: None,
            unreachable: false,
        }
    }

    /// The segments that are not all held here, as (first, last); `None` when all are.
    pub(crate) fn not_held(&self, windows: &ReplayWindows) -> Option<(u64, u64)> {
        let mut first = self.from;
        for (sequence, _) in windows.range(self.lane, self.from, self.to) {
            if sequence != first {
                break;
            }
            if sequence == self.to {
                return None;
            }
            first += 1;
        }
        (first <= self.to).then_some((first, self.to))
    }

    /// What the sender's edge had to say.
    pub(crate) fn origin_said(&mut self, newest: Option<u64>, unreachable: bool) {
        self.newest = newest;
        self.unreachable = unreachable;
    }

    /// The next step. Call again after each [`Step::Give`].
    pub(crate) fn step(&mut self, windows: &ReplayWindows) -> Step {
        let newest = windows.newest(self.lane).max(self.newest);
        let mut last = newest.map(|newest| newest.min(self.to));
        if let Some(end) = last.filter(|&end| self.next <= end) {
            let found = windows.range(self.lane, self.next, end).next();
            let found = found.map(|(sequence, _)| sequence);
            if found != Some(self.next) {
                if self.missing.len() == MAX_MISSING {
                    // More is not named at a time.
                    last = self.next.checked_sub(1);
                    return self.done(last);
                }
                self.missing
                    .push((self.next, found.map_or(end, |found| found - 1)));
            }
            if let Some(found) = found {
                self.next = found.saturating_add(1);
                return Step::Give(found);
            }
            self.next = end.saturating_add(1);
        }
        self.done(last)
    }

    fn done(&self, last: Option<u64>) -> Step {
        let to = last.filter(|&last| last >= self.from);
        Step::Done {
            from: self.from,
            to: to.unwrap_or(self.from.saturating_sub(1)),
            missing: self.missing.iter().flat_map(|&(a, b)| [a, b]).collect(),
            unreachable: self.unreachable,
        }
    }
}

/// What a sender's edge is being asked for, for all members here that want something of a lane.
#[derive(Debug)]
pub(crate) struct OriginAsk {
    pub(crate) id: u64,
    from: u64,
    to: u64,
    since: Instant,
    asked_at: Option<Instant>,
    /// Something has come since it was asked last.
    progress: bool,
}

impl OriginAsk {
    pub(crate) fn new((from, to): (u64, u64), now: Instant) -> Self {
        Self {
            id: 0,
            from,
            to,
            since: now,
            asked_at: None,
            progress: false,
        }
    }

    /// Another member wants these.
    pub(crate) fn widen(&mut self, (from, to): (u64, u64)) {
        if from < self.from {
            self.from = from;
            self.asked_at = None;
        }
        self.to = self.to.max(to);
    }

    /// Whether nothing has come for too long.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PATIENCE
    }

    /// The segments to be asked for now, if it is time.
    pub(crate) fn due(
        &mut self,
        next_id: impl FnOnce() -> u64,
        now: Instant,
    ) -> Option<(u64, u64)> {
        let waits = |at| now.saturating_duration_since(at) < REPEAT;
        if self.asked_at.is_some_and(waits) {
            return None;
        }
        self.id = next_id();
        self.asked_at = Some(now);
        self.progress = false;
        Some((self.from, self.to))
    }

    /// A segment has come.
    pub(crate) fn got(&mut self, sequence: u64, now: Instant) {
        self.from = self.from.max(sequence.saturating_add(1));
        self.since = now;
        self.asked_at = Some(now);
        self.progress = true;
    }

    /// That was all it sends at once; `newest` is the newest that it holds. `false` when there is more
    /// to be asked for.
    pub(crate) fn end(&mut self, newest: Option<u64>) -> bool {
        let more = newest.is_some_and(|newest| self.from <= newest.min(self.to));
        if more && self.progress {
            self.asked_at = None;
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tradewind_proto::{Class, GroupKey, Locator, RelayIndex};

    use super::*;
    use crate::groups::{GroupSettings, Held};

    const LANE: LaneKey = LaneKey {
        group: GroupKey(1),
        sender: 2,
        lane: 3,
    };

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn windows(held: &[u64]) -> ReplayWindows {
        let mut windows = ReplayWindows::new(GroupSettings {
            replay_bytes: 1 << 20,
            replay_age: Duration::from_secs(30),
        });
        for &sequence in held {
            let held = Held {
                payload: Bytes::new(),
                class: Class::Message,
                source: Locator::relay_itself(RelayIndex(0)),
                arrived: Instant::now(),
                age_us: 0,
            };
            windows.insert(LANE, sequence, held);
        }
        windows
    }

    fn all(mut fetch: Fetch, windows: &ReplayWindows) -> (Vec<u64>, u64, Vec<u64>) {
        let mut given = Vec::new();
        loop {
            match fetch.step(windows) {
                Step::Give(sequence) => given.push(sequence),
                Step::Done { to, missing, .. } => return (given, to, missing),
            }
        }
    }

    #[test]
    fn what_is_held_is_given_and_what_nobody_holds_is_named() {
        let windows = windows(&[4, 5, 8]);
        let fetch = |from, to| all(Fetch::new(LANE, from, to), &windows);
        assert_eq!(fetch(3, u64::MAX), (vec![4, 5, 8], 8, vec![3, 3, 6, 7]));
        assert_eq!(fetch(5, 6), (vec![5], 6, vec![6, 6]));
        assert_eq!(fetch(9, u64::MAX), (vec![], 8, vec![]));
        let mut asked = Fetch::new(LANE, 7, u64::MAX);
        asked.origin_said(Some(10), false);
        assert_eq!(all(asked, &windows), (vec![8], 10, vec![7, 7, 9, 10]));
    }

    #[test]
    fn a_lane_that_nobody_knows_has_nothing() {
        let (given, to, missing) = all(Fetch::new(LANE, 5, u64::MAX), &windows(&[]));
        assert_eq!((given, to, missing), (vec![], 4, vec![]));
    }

    #[test]
    fn only_what_is_not_held_here_is_asked_for() {
        let windows = windows(&[4, 5, 8]);
        let not_held = |from, to| Fetch::new(LANE, from, to).not_held(&windows);
        assert_eq!(not_held(4, 5), None);
        assert_eq!(not_held(4, 8), Some((6, 8)));
        assert_eq!(not_held(3, 5), Some((3, 5)));
        assert_eq!(not_held(8, u64::MAX), Some((9, u64::MAX)));
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // any instant will do
    fn an_edge_that_sends_a_part_is_asked_for_the_rest_and_a_silent_one_is_given_up() {
        let now = Instant::now();
        let mut ask = OriginAsk::new((3, u64::MAX), now);
        assert_eq!(ask.due(|| 7, now), Some((3, u64::MAX)));
        assert_eq!(ask.due(|| 8, now), None);
        ask.got(3, now);
        ask.got(4, now);
        assert!(!ask.end(Some(6)));
        assert_eq!(ask.due(|| 8, now), Some((5, u64::MAX)));
        assert!(ask.end(Some(6)), "it has no more, whatever it says");
        assert!(ask.due(|| 9, now + REPEAT).is_some());
        assert!(!ask.is_over(now + REPEAT) && ask.is_over(now + PATIENCE));
    }
}
