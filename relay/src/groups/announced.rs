//! What an edge has told the homes of a group: that it has members.

use std::{collections::BTreeMap, time::Instant};

use tradewind_proto::RelayIndex;

use super::{LEASE, is_majority};

/// An edge's own membership of a group, as far as the homes have confirmed it. Joins return once a
/// majority has: any majority of answers that a sender's edge uses has one of them.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    homes: Vec<RelayIndex>,
    /// Until when each of them holds it, measured from when it was announced.
    confirmed: BTreeMap<RelayIndex, Instant>,
}

impl Announced {
    /// The homes are these; gives those that are new, which are to be told.
    pub(crate) fn set_homes(&mut self, homes: Vec<RelayIndex>) -> Vec<RelayIndex> {
        let mut new = homes.clone();
        new.retain(|home| !self.homes.contains(home));
        self.confirmed.retain(|home, _| homes.contains(home));
        self.homes = homes;
        new
    }

    pub(crate) fn homes(&self) -> &[RelayIndex] {
        &self.homes
    }

    /// A home confirms what it was told at `told_at`.
    pub(crate) fn confirm(&mut self, home: RelayIndex, told_at: Instant) {
        if self.homes.contains(&home) {
            let until = told_at + LEASE;
            let known = self.confirmed.entry(home).or_insert(until);
            *known = until.max(*known);
        }
    }

    /// Whether everything that is sent to the group from `now` on comes here.
    pub(crate) fn holds(&self, now: Instant) -> bool {
        let confirmed = self.confirmed.values().filter(|&&until| until > now);
        is_majority(confirmed.count(), self.homes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // any instant will do
    fn it_holds_while_a_majority_of_the_present_homes_has_confirmed_it() {
        let now = Instant::now();
        let homes = |homes: &[u16]| homes.iter().copied().map(RelayIndex).collect::<Vec<_>>();
        let mut announced = Announced::default();
        assert!(
            !announced.holds(now),
            "without homes there is nobody to ask"
        );
        assert_eq!(announced.set_homes(homes(&[1, 2, 3])).len(), 3);
        announced.confirm(RelayIndex(1), now);
        announced.confirm(RelayIndex(9), now);
        assert!(!announced.holds(now));
        let later = now + Duration::from_secs(1);
        announced.confirm(RelayIndex(2), later);
        assert!(announced.holds(later));
        assert!(!announced.holds(now + LEASE), "the first one's has ended");
        assert_eq!(announced.set_homes(homes(&[2, 3, 4])), homes(&[4]));
        assert!(!announced.holds(later));
        announced.confirm(RelayIndex(4), later);
        assert!(announced.holds(later));
    }
}
