//! The segments that an edge has passed on to members or into the network, for a while.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tradewind_proto::{Class, GroupKey, Locator};

use super::{GroupSettings, LaneKey};

/// What a segment costs besides its bytes.
const OVERHEAD: usize = 160;
/// One group takes at most this share of the room.
const GROUP_SHARE: usize = 4;
/// Payloads up to this length get bytes of their own: as they come they are a part of the datagram that
/// brought them, all of which would be held and not counted.
const SMALL: usize = 1_024;

/// A segment.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// The lane's frame.
    pub(crate) payload: Bytes,
    pub(crate) class: Class,
    /// The sending session.
    pub(crate) source: Locator,
    pub(crate) arrived: Instant,
    /// Its age then.
    pub(crate) age_us: u32,
}

/// The replay windows of all lanes: bounded in bytes, for each group and in all, and by age; the oldest
/// go first.
#[derive(Debug)]
pub(crate) struct ReplayWindows {
    limits: GroupSettings,
    lanes: FxHashMap<LaneKey, BTreeMap<u64, Held>>,
    bytes: usize,
    order: VecDeque<(Instant, LaneKey, u64)>,
    groups: FxHashMap<GroupKey, OfGroup>,
}

#[derive(Debug, Default)]
struct OfGroup {
    bytes: usize,
    order: VecDeque<(Instant, LaneKey, u64)>,
}

impl Held {
    fn cost(&self) -> usize {
        self.payload.len() + OVERHEAD
    }

    /// Its age at `now`, microseconds.
    pub(crate) fn age_at(&self, now: Instant) -> u32 {
        let stay = now.saturating_duration_since(self.arrived).as_micros();
        self.age_us
            .saturating_add(u32::try_from(stay).unwrap_or(u32::MAX))
    }
}

impl ReplayWindows {
    pub(crate) fn new(limits: GroupSettings) -> Self {
        Self {
            limits,
            lanes: FxHashMap::default(),
            bytes: 0,
            order: VecDeque::new(),
            groups: FxHashMap::default(),
        }
    }

    /// Takes a segment; `false` when it is held already.
    pub(crate) fn insert(&mut self, lane: LaneKey, sequence: u64, mut held: Held) -> bool {
        let window = self.lanes.entry(lane).or_default();
        if window.contains_key(&sequence) {
            return false;
        }
        if held.payload.len() <= SMALL {
            held.payload = Bytes::copy_from_slice(&held.payload);
        }
        let (cost, entry) = (held.cost(), (held.arrived, lane, sequence));
        window.insert(sequence, held);
        self.bytes += cost;
        self.order.push_back(entry);
        let group = self.groups.entry(lane.group).or_default();
        group.bytes += cost;
        group.order.push_back(entry);
        while self
            .groups
            .get(&lane.group)
            .is_some_and(|group| group.bytes > self.limits.replay_bytes / GROUP_SHARE)
        {
            let oldest = self
                .groups
                .get_mut(&lane.group)
                .and_then(|g| g.order.pop_front());
            let Some(oldest) = oldest else {
                break;
            };
            self.remove(oldest);
        }
        while self.bytes > self.limits.replay_bytes {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.remove(oldest);
        }
        true
    }

    /// Forgets what is too old.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let old = |at: Instant, age: Duration| now.saturating_duration_since(at) > age;
        while let Some(&oldest) = self.order.front()
            && old(oldest.0, self.limits.replay_age)
        {
            self.order.pop_front();
            self.remove(oldest);
        }
        let age = self.limits.replay_age;
        self.groups.retain(|_, group| {
            while group.order.front().is_some_and(|oldest| old(oldest.0, age)) {
                group.order.pop_front();
            }
            !group.order.is_empty()
        });
    }

    pub(crate) fn get(&self, lane: LaneKey, sequence: u64) -> Option<&Held> {
        self.lanes.get(&lane)?.get(&sequence)
    }

    #[cfg(test)]
    fn holds(&self, lane: LaneKey, sequence: u64) -> bool {
        self.get(lane, sequence).is_some()
    }

    /// The newest segment of a lane that is held.
    pub(crate) fn newest(&self, lane: LaneKey) -> Option<u64> {
        let (&sequence, _) = self.lanes.get(&lane)?.last_key_value()?;
        Some(sequence)
    }

    /// The lanes of a group of which something is held.
    pub(crate) fn lanes_of(&self, group: GroupKey) -> impl Iterator<Item = LaneKey> + '_ {
        self.lanes
            .keys()
            .copied()
            .filter(move |lane| lane.group == group)
    }

    /// The segments of a lane from `from` to `to`, both included.
    pub(crate) fn range(
        &self,
        lane: LaneKey,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = (u64, &Held)> {
        let window = self.lanes.get(&lane).filter(|_| from <= to);
        let held = window
            .into_iter()
            .flat_map(move |held| held.range(from..=to));
        held.map(|(&sequence, held)| (sequence, held))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes out what is still there of what was put in then.
    fn remove(&mut self, (arrived, lane, sequence): (Instant, LaneKey, u64)) {
        let Some(window) = self.lanes.get_mut(&lane) else {
            return;
        };
        if window
            .get(&sequence)
            .is_none_or(|held| held.arrived != arrived)
        {
            return;
        }
        if let Some(held) = window.remove(&sequence) {
            self.bytes -= held.cost();
            if let Some(group) = self.groups.get_mut(&lane.group) {
                group.bytes -= held.cost();
            }
        }
        if window.is_empty() {
            self.lanes.remove(&lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use tradewind_proto::RelayIndex;

    use super::*;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    fn lane(group: u64) -> LaneKey {
        LaneKey {
            group: GroupKey(group),
            sender: 1,
            lane: 2,
        }
    }

    fn held(bytes: usize, arrived: Instant) -> Held {
        Held {
            payload: vec![7; bytes].into(),
            class: Class::Message,
            source: Locator::relay_itself(RelayIndex(0)),
            arrived,
            age_us: 5,
        }
    }

    fn windows(replay_bytes: usize) -> ReplayWindows {
        ReplayWindows::new(GroupSettings {
            replay_bytes,
            replay_age: Duration::from_secs(30),
        })
    }

    #[test]
    fn the_oldest_of_a_full_group_go_first_and_others_keep_theirs() {
        let now = start();
        let cost = 1_000 + OVERHEAD;
        let mut windows = windows(4 * 3 * cost);
        for sequence in 0..3 {
            assert!(windows.insert(lane(1), sequence, held(1_000, now)));
            assert!(!windows.insert(lane(1), sequence, held(1_000, now)));
        }
        for sequence in 0..10 {
            assert!(windows.insert(lane(2), sequence, held(1_000, now)));
        }
        let sequences = |group| -> Vec<u64> {
            windows
                .range(lane(group), 0, u64::MAX)
                .map(|(s, _)| s)
                .collect()
        };
        assert_eq!((sequences(1), sequences(2)), (vec![0, 1, 2], vec![7, 8, 9]));
        assert_eq!(windows.bytes(), 6 * cost);
        assert_eq!(windows.newest(lane(2)), Some(9));
    }

    #[test]
    fn all_groups_together_are_bounded() {
        let now = start();
        let cost = 1_000 + OVERHEAD;
        let mut windows = windows(8 * cost);
        for group in 0..20 {
            assert!(windows.insert(lane(group), 0, held(1_000, now)));
        }
        assert_eq!(windows.bytes(), 8 * cost);
        assert!(!windows.holds(lane(11), 0) && windows.holds(lane(12), 0));
    }

    #[test]
    fn the_old_are_forgotten_and_the_young_are_not() {
        let now = start();
        let mut windows = windows(1 << 20);
        windows.insert(lane(1), 0, held(10, now));
        let later = now + Duration::from_secs(20);
        windows.insert(lane(1), 1, held(10, later));
        windows.sweep(now + Duration::from_secs(31));
        assert_eq!(
            (windows.holds(lane(1), 0), windows.holds(lane(1), 1)),
            (false, true)
        );
        assert_eq!(
            windows
                .get(lane(1), 1)
                .map(|h| h.age_at(later + Duration::from_micros(3))),
            Some(8)
        );
        windows.sweep(now + Duration::from_secs(60));
        assert_eq!((windows.bytes(), windows.newest(lane(1))), (0, None));
        assert!(windows.groups.is_empty() && windows.lanes.is_empty() && windows.order.is_empty());
    }
}
