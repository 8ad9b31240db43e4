//! The ways to one device of a peer, and which of them is taken: the sum of the own leg to an edge, of
//! the way from there by the plan in force, and of the peer's leg decides. Pure: legs and the time are
//! handed in.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::tries::{Rounds, Tries};

/// Another way is taken by choice only when it is shorter by this share …
const MARGIN: f64 = 0.01;
/// … and by this much, …
const LEAST_MARGIN_US: i64 = 300;
/// … and the last change was so long ago.
const REST: Duration = Duration::from_secs(3);
/// A way over which nothing was heard is not taken for so long, unless it is the only one and the
/// directory says again that it is there.
pub(super) const DISTRUST: Duration = Duration::from_secs(5);
/// A way that has shown that it works may be moved to by choice for so long.
const PROVEN: Duration = Duration::from_secs(3);
/// Ways that are tried at a time: …
const MOST_TRIED: usize = 6;
/// … those that are longer than the best one by no more than this share, or by this much.
const MAY_BE_BEST: f64 = 0.2;
const MAY_BE_BEST_BY_US: i64 = 8_000;

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
    /// What trying it has shown.
    pub(super) tries: Tries,
}

impl Way {
    fn is_trusted(&self, now: Instant) -> bool {
        self.distrusted_until.is_none_or(|until| until <= now)
    }
}

/// All ways to one device.
#[derive(Debug, Default)]
pub(super) struct Ways {
    known: BTreeMap<WayKey, Way>,
    chosen: Option<WayKey>,
    chosen_at: Option<Instant>,
    rounds: Rounds,
}

/// What came of looking for the best way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// As before.
    Same,
    /// As before; but this one should be better, if it works.
    Prove(WayKey),
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
                way.tries.clone_from(&before.tries);
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
            tries: Tries::default(),
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

    /// The relays that are nearest to the peer, by name, and its legs to them.
    pub(super) fn nearest_to_peer(&self, count: usize) -> Vec<(Arc<str>, Duration)> {
        let mut relays: Vec<(Duration, &Arc<str>)> = self
            .known
            .values()
            .filter_map(|way| Some((way.leg?, &way.relay)))
            .collect();
        relays.sort();
        let mut nearest: Vec<(Arc<str>, Duration)> = Vec::new();
        for (leg, name) in relays {
            if nearest.len() < count && nearest.iter().all(|(other, _)| other != name) {
                nearest.push((name.clone(), leg));
            }
        }
        nearest
    }

    /// A way that is longer than this is not worth trying. `None` while nothing is known to compare with.
    pub(super) fn longest(&self, leg: impl Fn(u64) -> Option<Duration>) -> Option<Duration> {
        let key = self.chosen?;
        let parts_us = parts_us(&leg, key, self.known.get(&key)?)?;
        Some(Duration::from_micros(may_be_best_us(parts_us).max(0) as u64))
    }

    /// The ways to try now, and what their parts add up to in microseconds; none when it is not the time,
    /// or there is nothing to choose between.
    pub(super) fn begin_round(
        &mut self,
        leg: impl Fn(u64) -> Option<Duration>,
        now: Instant,
    ) -> Vec<(WayKey, i64)> {
        let common_us = self.common_excess_us(now);
        let mut ranked: Vec<(i64, WayKey, i64)> = self
            .known
            .iter()
            .filter(|(_, way)| way.is_trusted(now))
            .filter_map(|(&key, way)| {
                let parts_us = parts_us(&leg, key, way)?;
                let tried = way.tries.excess_us(now);
                let tried = tried.map(|excess| parts_us + excess - common_us);
                let sum_us = match tried {
                    Some(tried) if way.tries.are_enough(now) => tried,
                    // That was too long, perhaps.
                    Some(tried) => tried.min(parts_us),
                    None => parts_us,
                };
                Some((sum_us, key, parts_us))
            })
            .collect();
        ranked.sort_unstable();
        let Some(&(best_us, ..)) = ranked.first() else {
            return Vec::new();
        };
        let most = may_be_best_us(best_us);
        ranked.retain(|(sum_us, key, _)| *sum_us <= most || Some(*key) == self.chosen);
        let chosen = ranked
            .iter()
            .position(|(_, key, _)| Some(*key) == self.chosen);
        if let Some(chosen) = chosen.filter(|&at| at >= MOST_TRIED) {
            ranked.swap(chosen, MOST_TRIED - 1);
        }
        ranked.truncate(MOST_TRIED);
        let enough = |key: &WayKey| self.known[key].tries.are_enough(now);
        let settled = ranked.iter().all(|(_, key, _)| enough(key));
        if ranked.len() < 2 || !self.rounds.begin(settled, self.chosen, now) {
            return Vec::new();
        }
        let of_round = ranked.into_iter();
        of_round.map(|(_, key, parts_us)| (key, parts_us)).collect()
    }

    /// A way was tried: it took so much longer than its parts added up to, by two clocks.
    pub(super) fn tried(&mut self, key: WayKey, excess_us: i64, now: Instant) {
        self.rounds.answered();
        if let Some(way) = self.known.get_mut(&key) {
            way.tries.add(excess_us, now);
            // It has led there.
            way.proven_at = Some(now);
        }
    }

    /// Whether an answer has come over one of them since then.
    pub(super) fn any_tried_since(&self, since: Instant) -> bool {
        let mut latest = self.known.values().filter_map(|way| way.tries.latest());
        latest.any(|at| at >= since)
    }

    /// What all that were tried took longer than their parts: above all the difference of the clocks.
    fn common_excess_us(&self, now: Instant) -> i64 {
        let tried = self.known.values();
        let mut tried: Vec<i64> = tried.filter_map(|way| way.tries.excess_us(now)).collect();
        tried.sort_unstable();
        tried.get(tried.len() / 2).copied().unwrap_or(0)
    }

    /// Looks for the best way. `leg` is the delay to the edge of a session of ours; `first` our first
    /// session.
    pub(super) fn choose(
        &mut self,
        leg: impl Fn(u64) -> Option<Duration>,
        first: Option<u64>,
        now: Instant,
    ) -> Choice {
        let common_us = self.common_excess_us(now);
        let sum_us = |key: &WayKey, way: &Way| {
            let excess_us = way.tries.excess_us(now).map_or(0, |us| us - common_us);
            Some(parts_us(&leg, *key, way)? + excess_us)
        };
        // Where sums are not known the first sessions of both are taken.
        let rank = |key: &WayKey, way: &Way| {
            let sum_us = sum_us(key, way);
            (
                sum_us.is_none(),
                sum_us,
                Some(key.session) != first,
                way.standby,
                *key,
            )
        };
        let present = self.chosen.and_then(|key| {
            let way = self.known.get(&key).filter(|way| way.is_trusted(now))?;
            Some((key, way))
        });
        // What is known for certain is not left for what may be so.
        let tried = present.is_some_and(|(_, way)| way.tries.excess_us(now).is_some());
        let best = self
            .known
            .iter()
            .filter(|(_, way)| way.is_trusted(now))
            .filter(|(_, way)| !tried || way.tries.excess_us(now).is_some())
            .min_by_key(|(key, way)| rank(key, way))
            .map(|(key, way)| (*key, sum_us(key, way)));
        let present = present.map(|(key, way)| (key, sum_us(&key, way)));
        let better = |key: WayKey| {
            let proven_at = self.known.get(&key).and_then(|way| way.proven_at);
            match proven_at.is_some_and(|at| now < at + PROVEN) {
                true => Choice::Better,
                false => Choice::Prove(key),
            }
        };
        let choice = match (present, best) {
            (Some((present, _)), Some((best, _))) if present == best => Choice::Same,
            (Some((_, Some(old))), Some((key, Some(new)))) => {
                let margin = ((old as f64 * MARGIN) as i64).max(LEAST_MARGIN_US);
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

/// How long a way may look that may yet be shorter than one of `best_us`.
fn may_be_best_us(best_us: i64) -> i64 {
    best_us + ((best_us as f64 * MAY_BE_BEST) as i64).max(MAY_BE_BEST_BY_US)
}

/// What the parts of a way add up to, in microseconds.
fn parts_us(leg: &impl Fn(u64) -> Option<Duration>, key: WayKey, way: &Way) -> Option<i64> {
    let parts = leg(key.session)? + way.cost?;
    Some(i64::try_from(parts.as_micros()).unwrap_or(u32::MAX.into()))
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
            tries: Tries::default(),
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
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Prove(further));
        assert_eq!(ways.chosen(), Some(key(FIRST, 2)), "not before it is tried");
        ways.proved(further, later);
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Better);
        assert_eq!(ways.chosen(), Some(key(FURTHER, 7)), "70 ms beat 95");
        assert_eq!(ways.nearest_to_peer(1), [("a".into(), ms(10))]);
        assert_eq!(ways.longest(leg), Some(ms(84)));
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
        assert_eq!(ways.choose(leg, Some(FIRST), rested), Choice::Prove(other));
        ways.proved(other, rested);
        let late = rested + PROVEN;
        assert_eq!(ways.choose(leg, Some(FIRST), late), Choice::Prove(other));
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

    /// Tries two ways once each, which takes them so long by clocks that disagree by much.
    fn try_both(ways: &mut Ways, [a, b]: [(WayKey, i64); 2], now: Instant) {
        let round = ways.begin_round(leg, now);
        for (key, took_ms) in [a, b] {
            let tried = round.iter().find(|(tried, _)| *tried == key);
            let parts_us = tried.expect("it is tried").1;
            ways.tried(key, took_ms * 1_000 - 5_000_000_000 - parts_us, now);
        }
    }

    #[test]
    fn what_trying_them_shows_decides_between_ways_and_not_what_their_parts_add_up_to() {
        let now = start();
        let mut ways = Ways::default();
        let (a, b) = (key(FIRST, 1), key(FIRST, 2));
        ways.learn(FIRST, [(1, way("a", 100, 10)), (2, way("b", 110, 10))]);
        ways.choose(leg, Some(FIRST), now);
        assert_eq!(ways.chosen(), Some(a));
        try_both(&mut ways, [(a, 107), (b, 103)], now);
        // A later plan makes both longer: what was seen still holds.
        ways.learn(FIRST, [(1, way("a", 130, 10)), (2, way("b", 140, 10))]);
        let later = now + REST;
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Prove(b));
        ways.proved(b, later);
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Better);
        assert_eq!(ways.chosen(), Some(b));
        // A new one may look shorter. It is taken when it has been tried, and is.
        ways.learn(FURTHER, [(7, way("b", 100, 10))]);
        let later = later + REST;
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Same);
        let c = key(FURTHER, 7);
        try_both(&mut ways, [(b, 133), (c, 120)], later);
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Better);
        assert_eq!(ways.chosen(), Some(c));
        // One that is lost is left for whatever is there.
        ways.forget_session(FURTHER);
        ways.forget(b);
        assert_eq!(ways.choose(leg, Some(FIRST), later), Choice::Other);
        assert_eq!(ways.chosen(), Some(a));
    }

    #[test]
    fn the_most_promising_ways_are_tried_and_the_one_that_is_taken() {
        let now = start();
        let mut ways = Ways::default();
        ways.learn(FIRST, [(1, way("a", 95, 10))]);
        ways.choose(leg, Some(FIRST), now);
        assert!(ways.begin_round(leg, now).is_empty(), "there is no other");
        let unknown = Way {
            cost: None,
            ..way("u", 0, 10)
        };
        let others = (2..=9).map(|n| (n, way("b", 83 + u64::from(n), 10)));
        let all = others.chain([
            (1, way("a", 99, 10)),
            (20, way("far", 150, 10)),
            (21, unknown),
        ]);
        ways.learn(FIRST, all);
        let handles = |round: &[(WayKey, i64)]| -> Vec<u32> {
            round.iter().map(|(key, _)| key.handle).collect()
        };
        let round = ways.begin_round(leg, now);
        assert_eq!(handles(&round), [2, 3, 4, 5, 6, 1]);
        assert_eq!(round[0].1, 90_000);
        assert!(ways.begin_round(leg, now).is_empty(), "not so soon");
        // Those that turn out to be long make room for others once that is certain.
        for nth in 1..=2 {
            let later = now + ms(1_500) * nth;
            for handle in [1, 2, 3, 4, 5] {
                ways.tried(key(FIRST, handle), 0, later);
            }
            ways.tried(key(FIRST, 6), 60_000, later);
            let round = ways.begin_round(leg, later);
            assert_eq!(round.iter().any(|(key, _)| key.handle == 6), nth == 1);
            assert_eq!(round.iter().any(|(key, _)| key.handle == 7), nth == 2);
        }
        ways.distrust(key(FIRST, 2), now + ms(4_500));
        let round = ways.begin_round(leg, now + ms(4_500));
        assert!(!handles(&round).contains(&2));
    }
}
