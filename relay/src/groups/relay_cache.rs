//! An edge's copy of a group's relay set.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tradewind_proto::{RelayIndex, packet::RelaySet};

use super::{CACHE_LEASE, is_majority};

/// Answers are asked for again when their lease holds no longer than this.
const RENEW_BEFORE: Duration = Duration::from_millis(1_100);
/// How often a home is asked that does not answer.
const REPEAT: Duration = Duration::from_millis(400);
/// What a home has said is still sent by for so long after its lease, where there is nothing better.
const STALE: Duration = Duration::from_secs(30);

/// Which relays have members of a group, by the answers of its homes.
///
/// The set is *certain* while the leases of a majority of the homes hold: it is the union of their
/// answers. Whoever joins has been confirmed by a majority as well, so one of them knows of it. While
/// the set is not certain it is the union of all that is known: packets go there, but nobody can say
/// that they have reached everybody.
#[derive(Debug)]
pub(crate) struct RelayCache {
    homes: Vec<RelayIndex>,
    answers: BTreeMap<RelayIndex, Answer>,
    asked: BTreeMap<RelayIndex, (u64, Instant)>,
    relays: RelaySet,
    certain_until: Option<Instant>,
    pub(crate) used: Instant,
}

#[derive(Debug)]
struct Answer {
    relays: RelaySet,
    version: u64,
    /// Measured from when it was asked for, so that it ends before it does at the home.
    until: Instant,
    /// The home did not know all yet.
    warming: bool,
}

impl RelayCache {
    pub(crate) fn new(homes: Vec<RelayIndex>, now: Instant) -> Self {
        Self {
            homes,
            answers: BTreeMap::new(),
            asked: BTreeMap::new(),
            relays: RelaySet::EMPTY,
            certain_until: None,
            used: now,
        }
    }

    /// The homes are others now. What the former ones said is what is known until these have answered.
    pub(crate) fn set_homes(&mut self, homes: Vec<RelayIndex>) {
        self.homes = homes;
    }

    /// The homes that are to be asked now. Each ask has an id, from `ids` on.
    pub(crate) fn due(
        &mut self,
        mut next_id: impl FnMut() -> u64,
        now: Instant,
    ) -> Vec<(RelayIndex, u64)> {
        let mut due = Vec::new();
        for &home in &self.homes {
            let answer = self.answers.get(&home);
            let fresh = answer.is_some_and(|a| !a.warming && a.until > now + RENEW_BEFORE);
            let asked = self.asked.get(&home);
            if !fresh && asked.is_none_or(|&(_, at)| now.saturating_duration_since(at) >= REPEAT) {
                let id = next_id();
                self.asked.insert(home, (id, now));
                due.push((home, id));
            }
        }
        due
    }

    /// A home has answered the ask `id`. `false` when it was not asked that (any more).
    pub(crate) fn answer(
        &mut self,
        home: RelayIndex,
        id: u64,
        relays: RelaySet,
        version: u64,
        warming: bool,
    ) -> bool {
        let Some(&(_, asked_at)) = self.asked.get(&home).filter(|asked| asked.0 == id) else {
            return false;
        };
        self.asked.remove(&home);
        let until = asked_at + CACHE_LEASE;
        match self.answers.get_mut(&home) {
            // A change that was told meanwhile is newer than what the home knew when it was asked.
            Some(known) if known.version > version => {
                known.until = known.until.max(until);
                known.warming = warming;
            }
            _ => {
                let answer = Answer {
                    relays,
                    version,
                    until,
                    warming,
                };
                self.answers.insert(home, answer);
            }
        }
        true
    }

    /// A home tells of a change.
    pub(crate) fn changed(
        &mut self,
        home: RelayIndex,
        relays: RelaySet,
        version: u64,
        now: Instant,
    ) {
        // It may have overtaken the answer, with which the lease comes.
        let known = self.answers.entry(home).or_insert(Answer {
            relays: RelaySet::EMPTY,
            version: 0,
            until: now,
            warming: false,
        });
        if known.version < version {
            known.relays = relays;
            known.version = version;
        }
    }

    /// Finds out what holds now, among the relays `network` (ascending). Call when something has been
    /// said, when the network has changed, and now and then, as leases end.
    pub(crate) fn update(&mut self, network: &[RelayIndex], now: Instant) {
        self.answers.retain(|home, answer| {
            answer.until + STALE > now && (self.homes.contains(home) || answer.until > now)
        });
        let holds = |(home, answer): &(&RelayIndex, &Answer)| {
            answer.until > now && !answer.warming && self.homes.contains(home)
        };
        let mut leases: Vec<Instant> = self
            .answers
            .iter()
            .filter(holds)
            .map(|(_, answer)| answer.until)
            .collect();
        if is_majority(leases.len(), self.homes.len()) {
            // It holds as long as the majority does: until the lease ends without which there is none.
            leases.sort_unstable();
            let needed = self.homes.len() / 2 + 1;
            self.certain_until = Some(leases[leases.len() - needed]);
            let holding = self.answers.iter().filter(holds);
            self.relays = holding
                .flat_map(|(_, answer)| answer.relays.iter())
                .collect();
        } else {
            self.certain_until = None;
            let all = self.answers.values();
            self.relays = all.flat_map(|answer| answer.relays.iter()).collect();
        }
        self.relays
            .retain(|relay| network.binary_search(&relay).is_ok());
    }

    /// Whether the set is certain at `now`.
    pub(crate) fn is_certain(&self, now: Instant) -> bool {
        self.certain_until.is_some_and(|until| now < until)
    }

    /// The relays with members, as far as is known.
    pub(crate) fn relays(&self) -> &RelaySet {
        &self.relays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn cache() -> (RelayCache, Instant) {
        let now = Instant::now();
        (
            RelayCache::new([1, 2, 3].map(RelayIndex).to_vec(), now),
            now,
        )
    }

    fn set(relays: &[u16]) -> RelaySet {
        relays.iter().copied().map(RelayIndex).collect()
    }

    /// All relays there are.
    const NETWORK: [RelayIndex; 9] = {
        let mut all = [RelayIndex(0); 9];
        let mut i = 0;
        while i < 9 {
            all[i] = RelayIndex(i as u16 + 1);
            i += 1;
        }
        all
    };

    fn answer(
        cache: &mut RelayCache,
        home: u16,
        id: u64,
        relays: &[u16],
        version: u64,
        now: Instant,
    ) -> bool {
        let asked = cache.answer(RelayIndex(home), id, set(relays), version, false);
        cache.update(&NETWORK, now);
        asked
    }

    fn ask(cache: &mut RelayCache, now: Instant) -> BTreeMap<RelayIndex, u64> {
        // No two askings of one home have the same id.
        let mut id = 1_000 * now.saturating_duration_since(cache.used).as_millis() as u64;
        let next = || {
            id += 1;
            id
        };
        cache.due(next, now).into_iter().collect()
    }

    #[test]
    fn a_majority_of_the_homes_makes_the_set_certain() {
        let (mut cache, now) = cache();
        let asked = ask(&mut cache, now);
        assert_eq!(asked.len(), 3);
        let id = |home: u16| asked[&RelayIndex(home)];
        let later = now + 100 * MS;
        assert!(answer(&mut cache, 1, id(1), &[7], 1, later));
        assert!(!answer(&mut cache, 1, id(1), &[8], 1, later), "twice");
        assert!(!cache.is_certain(later));
        assert_eq!(cache.relays(), &set(&[7]), "but it is used");
        assert!(answer(&mut cache, 3, id(3), &[9], 1, later));
        assert!(cache.is_certain(later));
        assert_eq!(cache.relays(), &set(&[7, 9]));
        // By the time of the asking.
        assert!(cache.is_certain(now + CACHE_LEASE - MS));
        assert!(!cache.is_certain(now + CACHE_LEASE));
        cache.update(&NETWORK, now + CACHE_LEASE);
        assert_eq!(cache.relays(), &set(&[7, 9]), "still the best there is");
        cache.update(&NETWORK[..8], now + CACHE_LEASE);
        assert_eq!(cache.relays(), &set(&[7]), "the other one is no more");
    }

    #[test]
    fn a_home_that_is_still_being_told_does_not_count() {
        let (mut cache, now) = cache();
        let asked = ask(&mut cache, now);
        for home in [1, 2] {
            cache.answer(
                RelayIndex(home),
                asked[&RelayIndex(home)],
                set(&[7]),
                1,
                home == 2,
            );
        }
        cache.update(&NETWORK, now);
        assert!(!cache.is_certain(now));
        // And is asked again.
        let again = ask(&mut cache, now + REPEAT);
        assert!(again.contains_key(&RelayIndex(2)) && !again.contains_key(&RelayIndex(1)));
    }

    #[test]
    fn of_an_answer_and_a_change_that_overtook_it_the_newer_one_holds() {
        let (mut cache, now) = cache();
        let first = ask(&mut cache, now);
        for home in [1, 2, 3] {
            answer(&mut cache, home, first[&RelayIndex(home)], &[7], 5, now);
        }
        let later = now + CACHE_LEASE - RENEW_BEFORE;
        let second = ask(&mut cache, later);
        assert_eq!(second.len(), 3);
        cache.changed(RelayIndex(1), set(&[7, 8]), 6, later);
        answer(&mut cache, 1, second[&RelayIndex(1)], &[7], 5, later);
        assert_eq!(cache.relays(), &set(&[7, 8]));
        cache.changed(RelayIndex(1), set(&[]), 5, later);
        cache.update(&NETWORK, later);
        assert_eq!(cache.relays(), &set(&[7, 8]), "an old change");
    }

    #[test]
    fn a_change_that_overtakes_the_first_answer_is_not_lost() {
        let (mut cache, now) = cache();
        let asked = ask(&mut cache, now);
        cache.changed(RelayIndex(1), set(&[8]), 6, now);
        for home in [1, 2] {
            answer(&mut cache, home, asked[&RelayIndex(home)], &[], 5, now);
        }
        assert!(cache.is_certain(now));
        assert_eq!(cache.relays(), &set(&[8]));
    }

    #[test]
    fn new_homes_begin_anew_and_the_old_ones_answers_are_used_meanwhile() {
        let (mut cache, now) = cache();
        let asked = ask(&mut cache, now);
        for home in [1, 2, 3] {
            answer(&mut cache, home, asked[&RelayIndex(home)], &[home], 1, now);
        }
        cache.set_homes([3, 4, 5].map(RelayIndex).to_vec());
        cache.update(&NETWORK, now);
        assert!(!cache.is_certain(now));
        assert_eq!(cache.relays(), &set(&[1, 2, 3]));
        let asked = ask(&mut cache, now);
        assert_eq!(asked.keys().map(|r| r.0).collect::<Vec<_>>(), [4, 5]);
        answer(&mut cache, 4, asked[&RelayIndex(4)], &[4], 1, now);
        assert!(cache.is_certain(now));
        assert_eq!(cache.relays(), &set(&[3, 4]));
    }
}
