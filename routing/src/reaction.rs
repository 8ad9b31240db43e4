//! Reactions: where a relay sends a packet at once when the next hop of its tree fails.
//!
//! The packet is deflected to a backup neighbour B, and B sends it *directly* to the destination,
//! whatever its own tree says. Two links, the second of which ends at the destination: such a
//! packet cannot loop. The destination itself is a candidate too, by the direct link.
//!
//! A relay keeps, per destination, the three best *different* first hops, best first. Whichever
//! neighbour fails, the list without it holds the two best that remain; so the list need not
//! depend on the failing neighbour, and takes 6 bytes per relay and destination instead of 4 times
//! the number of neighbours.

mod rule;

use crate::{cost::CostMatrix, tree::TreeRules};

pub use rule::{LinkHealth, MAX_DEFLECTIONS, NextHop, Situation, next_hop};

const NONE: u16 = u16::MAX;

/// How many first hops are kept per relay and destination.
pub const CANDIDATES: usize = 3;

/// The backup neighbours of all relays towards all destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backups {
    n: usize,
    hops: Vec<[u16; CANDIDATES]>,
}

impl Backups {
    /// The number of relays.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there is no relay at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The first hops that `relay` can deflect to towards `destination`, best first, at most
    /// [`CANDIDATES`]. One that equals `destination` means its direct link.
    ///
    /// # Panics
    /// When an index is out of range.
    pub fn candidates(&self, relay: usize, destination: usize) -> impl Iterator<Item = usize> {
        assert!(
            destination < self.n,
            "relay {destination} outside of {} relays",
            self.n
        );
        self.hops[relay * self.n + destination]
            .into_iter()
            .filter(|&hop| hop != NONE)
            .map(usize::from)
    }

    /// The candidates that remain when neighbour `failing` cannot be used, best first. The relay
    /// takes the first one whose link is up and which the packet has not passed already.
    pub fn for_failing(
        &self,
        relay: usize,
        destination: usize,
        failing: usize,
    ) -> impl Iterator<Item = usize> {
        self.candidates(relay, destination)
            .filter(move |&hop| hop != failing)
    }

    /// Whether some candidate between live relays leads over a link that is gone or a relay that
    /// may not be crossed, or there are too few, while `fresh` ones, by the same costs, do better.
    pub(crate) fn is_stale(
        &self,
        cost: &CostMatrix,
        live: &[bool],
        rules: &TreeRules,
        fresh: &Self,
    ) -> bool {
        let pairs = (0..self.n * self.n).map(|cell| (cell / self.n, cell % self.n));
        pairs
            .filter(|&(relay, to)| relay != to && live[relay] && live[to])
            .any(|(relay, to)| {
                let usable = self.candidates(relay, to).filter(|&hop| {
                    let crossable = hop == to || rules.may_cross(hop);
                    crossable && (cost.get(relay, hop) + cost.get(hop, to)).is_finite()
                });
                usable.count() < fresh.candidates(relay, to).count()
            })
    }
}

/// Computes all backups, O(n³): for relay A, destination D and every B, the cost A→B plus B→D.
/// Both links must be up, and `rules` must let packets cross B. Among equals the direct link wins,
/// then the lower index.
#[must_use]
pub fn backups(cost: &CostMatrix, rules: &TreeRules) -> Backups {
    let n = cost.len();
    let reversed = cost.transposed();
    let mut hops = Vec::with_capacity(n * n);
    for relay in 0..n {
        // Crossing what may not be crossed costs infinity.
        let onto: Vec<f64> = (0..n)
            .map(|hop| match rules.may_cross(hop) && hop != relay {
                true => cost.get(relay, hop),
                false => f64::INFINITY,
            })
            .collect();
        for destination in 0..n {
            let direct = cost.get(relay, destination);
            hops.push(match relay == destination {
                true => [NONE; CANDIDATES],
                false => best_three(&onto, reversed.row(destination), direct, destination),
            });
        }
    }
    Backups { n, hops }
}

fn best_three(onto: &[f64], onwards: &[f64], direct: f64, to: usize) -> [u16; CANDIDATES] {
    let mut best = [(f64::INFINITY, NONE); CANDIDATES];
    let mut offer = |total: f64, hop: usize| {
        if let Some(place) = best.iter().position(|&(known, _)| total < known) {
            best[place..].rotate_right(1);
            best[place] = (total, hop as u16);
        }
    };
    offer(direct, to);
    for (hop, (first, second)) in onto.iter().zip(onwards).enumerate() {
        if hop != to {
            offer(first + second, hop);
        }
    }
    best.map(|(_, hop)| hop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::arbitrary_costs;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whichever_neighbour_fails_the_two_best_ways_around_it_are_there(
            cost in arbitrary_costs(2..=8),
            forbidden in proptest::collection::vec(proptest::bool::weighted(0.2), 0..8),
        ) {
            let n = cost.len();
            let rules = TreeRules { no_transit: forbidden, ..TreeRules::default() };
            let lists = backups(&cost, &rules);
            let total = |relay, hop, to| cost.get(relay, hop) + cost.get(hop, to);
            for relay in 0..n {
                for to in (0..n).filter(|&to| to != relay) {
                    for failing in 0..n {
                        let mut all: Vec<f64> = (0..n)
                            .filter(|&hop| hop != relay && hop != failing)
                            .filter(|&hop| hop == to || rules.may_cross(hop))
                            .map(|hop| total(relay, hop, to))
                            .filter(|cost| cost.is_finite())
                            .collect();
                        all.sort_by(f64::total_cmp);
                        all.truncate(2);
                        let kept: Vec<usize> =
                            lists.for_failing(relay, to, failing).take(2).collect();
                        prop_assert!(!kept.contains(&relay) && !kept.contains(&failing));
                        let costs: Vec<f64> =
                            kept.iter().map(|&hop| total(relay, hop, to)).collect();
                        prop_assert_eq!(costs, all);
                    }
                }
                prop_assert_eq!(lists.candidates(relay, relay).count(), 0);
            }
        }
    }

    #[test]
    fn among_equals_the_direct_link_comes_first_then_lower_indices() {
        let cost = CostMatrix::from_fn(5, |i, j| match (i, j) {
            (0, 4) => 2.0,
            _ => 1.0,
        });
        let lists = backups(&cost, &TreeRules::default());
        assert_eq!(lists.candidates(0, 4).collect::<Vec<_>>(), [4, 1, 2]);
        assert_eq!(lists.for_failing(0, 4, 4).collect::<Vec<_>>(), [1, 2]);
    }
}
