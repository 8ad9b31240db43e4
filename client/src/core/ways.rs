//! The ways to one device of a peer, and which of them is taken: the sum of the own leg to an edge, of
//! the way from there by the plan in force, and of the peer's leg decides. Pure: legs and the time are
//! handed in.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Another way is taken by choice only when it is shorter by this share …
const MARGIN: f64 = 0.01;
/// … and by this much, …
const LEAST_MARGIN: Duration = Duration::from_micros(300);
/// … and the last change was so long ago.
const REST: Duration = Duration::from_secs(3);
/// A way over which nothing was heard is not taken for so long, unless it is the only one and the
/// directory says again that it is there.
pub(super) const DISTRUST: Duration = Duration::from_secs(5);
/// A way that has shown that it works may be moved to by choice for so long.
const PROVEN: Duration = Duration::from_secs(3);

/// Names a way: the own session that it begins with, and the handle there of the peer's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WayKey {
    pub(crate) session: u64,
    pub(crate) handle: u32,
}

/// What is known of a way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// Name of the peer's edge.
    pub(super) relay: Arc<str>,
    /// From the own edge to the peer, its leg included; `None` while not known.
    pub(super) cost: Option<Duration>,
    /// The peer's leg; `None` while not known.
    pub(super) leg: Option<Duration>,
    /// It leads to one of the device's further sessions.
    pub(super) standby: bool,
    /// Nothing was heard over it.
    pub(super) distrusted_until: Option<Instant>,
    /// An echo has come back over it.
    pub(super) proven_at: Option<Instant>,
}

/// All ways to one device.
#[derive(Debug, Default)]
pub(super) struct Ways {
    known: BTreeMap<WayKey, Way>,
    chosen: Option<WayKey>,
    chosen_at: Option<Instant>,
}

/// What came of looking for the best way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// As before.
    Same,
    /// As before; but this one should be better, if it works.
    Try(WayKey),
    /// A better one than before.
    Better,
    /// Another one than before, which does not hold any more (or there is none now, or the first one).
    Other,
}

impl Ways {
    /// The way to take.
    pub(super) const fn chosen(&self) -> Option<WayKey> {
        self.chosen
    }

    /// Takes what the directory says of the ways that begin with `session`: complete.
    pub(super) fn learn(&mut self, session: u64, ways: impl IntoIterator<Item = (u32, Way)>) {
        let before = self.take_session(session);
        for (handle, mut way) in ways {
            let key = WayKey { session, handle };
            if let Some(before) = before.get(&key) {
                way.distrusted_until = before.distrusted_until;
                way.proven_at = before.proven_at;
            }
            self.known.insert(key, way);
        }
        // They are there, says the directory, and nothing else is.
        if self
            .known
            .values()
            .all(|way| way.distrusted_until.is_some())
        {
            for way in self.known.values_mut() {
                way.distrusted_until = None;
            }
        }
    }

    /// Takes a way that packets came over, if it is not known.
    pub(super) fn heard(&mut self, key: WayKey) {
        self.known.entry(key).or_insert_with(|| Way {
            relay: "".into(),
            cost: None,
            leg: None,
            standby: false,
            distrusted_until: None,
            proven_at: None,
        });
    }

    /// An echo has come back over a way.
    pub(super) fn proved(&mut self, key: WayKey, now: Instant) {
        if let Some(way) = self.known.get_mut(&key) {
            way.distrusted_until = None;
            way.proven_at = Some(now);
        }
    }

    /// What a way costs from the own edge on, where that is known.
    pub(super) fn cost_of(&self, key: WayKey) -> Option<Duration> {
        self.known.get(&key)?.cost
    }

    /// A session of ours is over.
    pub(super) fn forget_session(&mut self, session: u64) {
        self.take_session(session);
    }

    fn take_session(&mut self, session: u64) -> BTreeMap<WayKey, Way> {
        let first = WayKey { session, handle: 0 };
        let mut from = self.known.split_off(&first);
        let mut after = from.split_off(&WayKey {
            session: session + 1,
            handle: 0,
        });
        self.known.append(&mut after);
        from
    }

    /// The peer's session at the end of a way is over. `true` if it was known.
    pub(super) fn forget(&mut self, key: WayKey) -> bool {
        self.known.remove(&key).is_some()
    }

    /// Nothing was heard over a way.
    pub(super) fn distrust(&mut self, key: WayKey, now: Instant) {
        if let Some(way) = self.known.get_mut(&key) {
            way.distrusted_until = Some(now + DISTRUST);
        }
    }

    /// The peer has left an edge.
    pub(super) fn distrust_relay(&mut self, relay: &str, now: Instant) {
        for way in self.known.values_mut() {
            if *way.relay == *relay {
                way.distrusted_until = Some(now + DISTRUST);
            }
        }
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.chosen = None;
    }

    /// The relays that are nearest to the peer, by name.
    pub(super) fn nearest_to_peer(&self, count: usize) -> Vec<Arc<str>> {
        let mut relays: Vec<(Duration, &Arc<str>)> = self
            .known
            .values()
            .filter_map(|way| Some((way.leg?, &way.relay)))
            .collect();
        relays.sort();
        let mut names: Vec<Arc<str>> = Vec::new();
        for (_, name) in relays {
            if names.len() < count && !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Looks for the best way. `leg` is the delay to the edge of a session of ours; `first` our first
    /// session.
    pub(super) fn choose(
        &mut self,
        leg: impl Fn(u64) -> Option<Duration>,
        first: Option<u64>,
        now: Instant,
    ) -> Choice {
        let sum = |key: &WayKey, way: &Way| Some(leg(key.session)? + way.cost?);
        let trusted = |way: &Way| way.distrusted_until.is_none_or(|until| until <= now);
        // Where sums are not known the first sessions of both are taken.
        let rank = |key: &WayKey, way: &Way| {
            let sum = sum(key, way);
            (
                sum.is_none(),
                sum,
                Some(key.session) != first,
                way.standby,
                *key,
            )
        };
        let best = self
            .known
            .iter()
            .filter(|(_, way)| trusted(way))
            .min_by_key(|(key, way)| rank(key, way))
            .map(|(key, way)| (*key, sum(key, way)));
        let present = self.chosen.and_then(|key| {
            let way = self.known.get(&key).filter(|way| trusted(way))?;
            Some((key, sum(&key, way)))
        });
        let better = |key: WayKey| {
            let proven_at = self.known.get(&key).and_then(|way| way.proven_at);
            match proven_at.is_some_and(|at| now < at + PROVEN) {
                true => Choice::Better,
                false => Choice::Try(key),
            }
        };
        let choice = match (present, best) {
            (Some((present, _)), Some((best, _))) if present == best => Choice::Same,
            (Some((_, Some(old))), Some((key, Some(new)))) => {
                let margin = old.mul_f64(MARGIN).max(LEAST_MARGIN);
                let rested = self.chosen_at.is_none_or(|at| now >= at + REST);
                match rested && new + margin < old {
                    true => better(key),
                    false => Choice::Same,
                }
            }
            // Now it is known how long it is.
            (Some((_, None)), Some((key, Some(_)))) => better(key),
            (Some(_), _) => Choice::Same,
            (None, None) if self.chosen.is_none() => Choice::Same,
            (None, _) => Choice::Other,
        };
        if matches!(choice, Choice::Better | Choice::Other) {
            self.chosen = best.map(|(key, _)| key);
            self.chosen_at = Some(now);
        }
        choice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = 1;
    const FURTHER: u64 = 2;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn way(relay: &str, cost: u64, leg: u64) -> Way {
        Way {
            relay: relay.into(),
            cost: Some(ms(cost)),
            leg: Some(ms(leg)),
            standby: false,
            distrusted_until: None,
            proven_at: None,
        }
    }

    /// The first edge is 5 ms away, the further one 20 ms.
    fn leg(session: u64) -> Option<Duration> {
        match session {
            FIRST => Some(ms(5)),
            FURTHER => Some(ms(20)),
            _ => None,
        }
    }

    fn key(session: u64, handle: u32) -> WayKey {
        WayKey { session, handle }
    }

    #[test]
    fn the_sum_of_all_parts_decides_and_not_the_nearest_door() {
        let now = start();
        let mut ways = Ways::default();
        ways.learn(FIRST, [(1, way("a", 100, 10)), (2, way("b", 90, 30))]);
        assert_eq!(ways.choose(leg, Some(FIRST), now), Choice::Other);
        assert_eq!(ways.chosen(), Some(key(FIRST, 2)));
        ways.learn(FURTHER, [(7, way("a", 50, 10))]);
        let later = now + REST;
        let further = key(FURTHER, 7);
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Try(further));
        assert_eq!(ways.chosen(), Some(key(FIRST, 2)), "not before it is tried");
        ways.proved(further, later);
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Better);
        assert_eq!(ways.chosen(), Some(key(FURTHER, 7)), "70 ms beat 95");
        assert_eq!(ways.nearest_to_peer(1), ["a".into()]);
    }

    #[test]
    fn a_little_better_is_not_worth_a_change_and_changes_rest() {
        let now = start();
        let mut ways = Ways::default();
        ways.learn(FIRST, [(1, way("a", 100, 10))]);
        ways.choose(leg, Some(FIRST), now);
        ways.learn(FIRST, [(1, way("a", 100, 10)), (2, way("b", 99, 10))]);
        assert_eq!(ways.choose(leg, Some(FIRST), now + REST), Choice::Same);
        ways.learn(FIRST, [(1, way("a", 100, 10)), (2, way("b", 60, 10))]);
        assert_eq!(ways.choose(leg, Some(FIRST), now + ms(10)), Choice::Same);
        let rested = now + REST;
        let other = key(FIRST, 2);
        assert_eq!(ways.choose(leg, Some(FIRST), rested), Choice::Try(other));
        ways.proved(other, rested);
        let late = rested + PROVEN;
        assert_eq!(ways.choose(leg, Some(FIRST), late), Choice::Try(other));
        // What has just been said of it by the directory does not change that it works.
        ways.learn(FIRST, [(1, way("a", 100, 10)), (2, way("b", 60, 10))]);
        assert_eq!(ways.choose(leg, Some(FIRST), rested), Choice::Better);
    }

    #[test]
    fn a_way_that_is_gone_or_silent_is_left_at_once() {
        let now = start();
        let mut ways = Ways::default();
        ways.learn(FIRST, [(1, way("a", 50, 10)), (2, way("b", 90, 30))]);
        ways.choose(leg, Some(FIRST), now);
        ways.distrust_relay("a", now);
        assert_eq!(ways.choose(leg, Some(FIRST), now), Choice::Other);
        assert_eq!(ways.chosen(), Some(key(FIRST, 2)));
        assert!(ways.forget(key(FIRST, 2)));
        assert_eq!(ways.choose(leg, Some(FIRST), now), Choice::Other);
        assert_eq!(ways.chosen(), None, "the other one is still distrusted");
        // The directory says again that it is there.
        ways.learn(FIRST, [(1, way("a", 50, 10))]);
        assert_eq!(ways.choose(leg, Some(FIRST), now), Choice::Other);
        assert_eq!(ways.chosen(), Some(key(FIRST, 1)));
    }

    #[test]
    fn without_sums_the_first_sessions_are_taken_and_of_a_lost_session_nothing_is_left() {
        let now = start();
        let unknown = |standby| Way {
            cost: None,
            leg: None,
            standby,
            ..way("a", 0, 0)
        };
        let mut ways = Ways::default();
        ways.learn(FURTHER, [(1, unknown(false))]);
        ways.learn(FIRST, [(1, unknown(true)), (2, unknown(false))]);
        ways.choose(leg, Some(FIRST), now);
        assert_eq!(ways.chosen(), Some(key(FIRST, 2)));
        ways.forget_session(FIRST);
        assert_eq!(ways.choose(leg, Some(FURTHER), now), Choice::Other);
        assert_eq!(ways.chosen(), Some(key(FURTHER, 1)));
    }
}
