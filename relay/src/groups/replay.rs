//! The segments that an edge has passed on to members or into the network, for a while.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tradewind_proto::{Class, GroupKey, Locator};

use super::{GroupSettings, LaneKey};

/// What a segment costs besides its bytes: itself, its place in its lane and in the orders.
const OVERHEAD: usize = 240;
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
    groups: FxHashMap<GroupKey, OfGroup>,
    bytes: usize,
    /// What is held, in the order of its coming.
    order: BTreeMap<u64, (LaneKey, u64)>,
    next: u64,
}

#[derive(Debug, Default)]
struct OfGroup {
    bytes: usize,
    /// The group's part of the order.
    order: VecDeque<u64>,
    /// By sender instance and lane.
    lanes: FxHashMap<(u64, u32), BTreeMap<u64, Held>>,
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
            groups: FxHashMap::default(),
            bytes: 0,
            order: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes a segment; `false` when it is held already.
    pub(crate) fn insert(&mut self, lane: LaneKey, sequence: u64, mut held: Held) -> bool {
        let group = self.groups.entry(lane.group).or_default();
        let window = group.lanes.entry((lane.sender, lane.lane)).or_default();
        if window.contains_key(&sequence) {
            return false;
        }
        if held.payload.len() <= SMALL {
            held.payload = Bytes::copy_from_slice(&held.payload);
        }
        let cost = held.cost();
        window.insert(sequence, held);
        self.order.insert(self.next, (lane, sequence));
        group.order.push_back(self.next);
        self.next += 1;
        self.bytes += cost;
        group.bytes += cost;
        let most = self.limits.replay_bytes;
        while let Some(group) = self.groups.get(&lane.group)
            && group.bytes > most / GROUP_SHARE
            && let Some(&oldest) = group.order.front()
        {
            self.forget(oldest);
        }
        while self.bytes > most
            && let Some((&oldest, _)) = self.order.first_key_value()
        {
            self.forget(oldest);
        }
        true
    }

    /// Forgets what is too old.
    pub(crate) fn sweep(&mut self, now: Instant) {
        while let Some((&oldest, &(lane, sequence))) = self.order.first_key_value()
            && self.get(lane, sequence).is_none_or(|held| {
                now.saturating_duration_since(held.arrived) > self.limits.replay_age
            })
        {
            self.forget(oldest);
        }
    }

    pub(crate) fn get(&self, lane: LaneKey, sequence: u64) -> Option<&Held> {
        self.window(lane)?.get(&sequence)
    }

    #[cfg(test)]
    fn holds(&self, lane: LaneKey, sequence: u64) -> bool {
        self.get(lane, sequence).is_some()
    }

    /// The newest segment of a lane that is held.
    pub(crate) fn newest(&self, lane: LaneKey) -> Option<u64> {
        let (&sequence, _) = self.window(lane)?.last_key_value()?;
        Some(sequence)
    }

    /// The lanes of a group of which something is held.
    pub(crate) fn lanes_of(&self, group: GroupKey) -> impl Iterator<Item = LaneKey> + '_ {
        let lanes = self.groups.get(&group).into_iter();
        let lanes = lanes.flat_map(|of_group| of_group.lanes.keys());
        lanes.map(move |&(sender, lane)| LaneKey {
            group,
            sender,
            lane,
        })
    }

    /// The segments of a lane from `from` to `to`, both included.
    pub(crate) fn range(
        &self,
        lane: LaneKey,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = (u64, &Held)> {
        let window = self.window(lane).filter(|_| from <= to);
        let held = window
            .into_iter()
            .flat_map(move |held| held.range(from..=to));
        held.map(|(&sequence, held)| (sequence, held))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn window(&self, lane: LaneKey) -> Option<&BTreeMap<u64, Held>> {
        let group = self.groups.get(&lane.group)?;
        group.lanes.get(&(lane.sender, lane.lane))
    }

    /// Takes out the segment with that number in the order: the oldest one of its group.
    fn forget(&mut self, number: u64) {
        let Some((lane, sequence)) = self.order.remove(&number) else {
            return;
        };
        let Some(group) = self.groups.get_mut(&lane.group) else {
            return;
        };
        group.order.pop_front();
        let key = (lane.sender, lane.lane);
        if let Some(window) = group.lanes.get_mut(&key) {
            if let Some(held) = window.remove(&sequence) {
                self.bytes -= held.cost();
                group.bytes -= held.cost();
            }
            if window.is_empty() {
                group.lanes.remove(&key);
            }
        }
        if group.order.is_empty() {
            self.groups.remove(&lane.group);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn what_is_remembered_of_the_order_is_bounded_with_what_is_held() {
        let now = start();
        let mut windows = windows(8 * (1_000 + OVERHEAD));
        for sequence in 0..1_000 {
            // One group is full at once, the others push out each other's and its own.
            let group = if sequence % 2 == 0 { 0 } else { sequence % 7 };
            assert!(windows.insert(lane(group), sequence, held(1_000, now)));
            let groups = windows.groups.values();
            let (in_groups, bytes) = groups.fold((0, 0), |(count, bytes), group| {
                let held: usize = group.lanes.values().map(BTreeMap::len).sum();
                assert_eq!(held, group.order.len());
                (count + held, bytes + group.bytes)
            });
            assert_eq!((windows.order.len(), windows.bytes), (in_groups, bytes));
            assert!(in_groups <= 8);
        }
        let mut lanes: Vec<LaneKey> = windows.lanes_of(GroupKey(0)).collect();
        assert_eq!(lanes.pop(), Some(lane(0)));
        assert_eq!(lanes, []);
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
        assert!(windows.groups.is_empty() && windows.order.is_empty());
    }
}
