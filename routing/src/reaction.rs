//! Reactions: where a relay sends a packet at once when the next hop of its tree fails.
//!
//! The packet is deflected to a backup neighbour B, and B sends it *directly* to the destination,
//! whatever its own tree says. Two links, the second of which ends at the destination: such a
//! packet cannot loop. The destination itself is a candidate too, by the direct link. In sparse
//! networks a B without a direct link will do, if it has a backup C of its own that has one: the
//! second deflection, A→B→C→D. There is no third.
//!
//! A relay keeps, per destination, the three best *different* first hops, best first. Whichever
//! neighbour fails, the list without it holds the two best that remain; so the list need not
//! depend on the failing neighbour, and takes 18 bytes per relay and destination with its costs
//! instead of 6 times the number of neighbours.
//!
//! The rule that relays follow is [`next_hop`]; what it cannot save is counted by
//! [`crate::planner::ProfileTables::unprotected`]. (The ideas: loop-free alternates, RFC 5286; reaction plans,
//! XRON, SIGCOMM 2023.)

mod cover;
mod rule;

#[cfg(test)]
mod proof;

use crate::{
    cost::CostMatrix,
    grow::{LowRows, rounded_up},
    tree::{NONE, TreeRules},
};

pub use cover::{Unprotected, UnprotectedWays};
pub(crate) use cover::{cover, unprotected};
pub use rule::{LinkHealth, MAX_DEFLECTIONS, NextHop, Situation, next_hop};

/// How many first hops are kept per relay and destination.
pub const CANDIDATES: usize = 3;

/// The backup neighbours of all relays towards all destinations.
#[derive(Debug, Clone, PartialEq)]
pub struct Backups {
    n: usize,
    hops: Vec<[u16; CANDIDATES]>,
    costs: Vec<[f32; CANDIDATES]>,
    /// Whether some of them need two deflections.
    deep: bool,
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
    /// [`CANDIDATES`]. One that equals `destination` means its direct link. Those that have no
    /// direct link to the destination themselves come last.
    ///
    /// # Panics
    /// When an index is out of range.
    pub fn candidates(&self, relay: usize, destination: usize) -> impl Iterator<Item = usize> {
        self.candidates_with_cost(relay, destination)
            .map(|(hop, _)| hop)
    }

    /// As [`Backups::candidates`], each with the cost of the whole way over it to the destination
    /// when the plan was made, in the unit of the cost matrix.
    ///
    /// # Panics
    /// When an index is out of range.
    pub fn candidates_with_cost(
        &self,
        relay: usize,
        destination: usize,
    ) -> impl Iterator<Item = (usize, f64)> {
        assert!(
            destination < self.n,
            "relay {destination} outside of {} relays",
            self.n
        );
        let cell = relay * self.n + destination;
        self.hops[cell]
            .into_iter()
            .zip(self.costs[cell])
            .filter(|&(hop, _)| hop != NONE)
            .map(|(hop, cost)| (usize::from(hop), f64::from(cost)))
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
        if self.n != fresh.n {
            return true;
        }
        let pairs = (0..self.n * self.n).map(|cell| (cell / self.n, cell % self.n));
        pairs
            .filter(|&(relay, to)| relay != to && live[relay] && live[to])
            .any(|(relay, to)| {
                let usable = self.candidates(relay, to).filter(|&hop| {
                    let crossable = hop == to || rules.may_cross(hop);
                    let leads_on = || {
                        hop == to
                            || cost.is_up(hop, to)
                            || fresh.candidates(hop, to).next().is_some()
                    };
                    crossable && cost.is_up(relay, hop) && leads_on()
                });
                usable.count() < fresh.candidates(relay, to).count()
            })
    }

    /// Follows a change of the links in `changed`, as (from, to): `cost` has the new ones and
    /// `reversed` is that turned round. The same as computing all afresh, for the lists that no
    /// changed link is part of, nor would now be among the best of, are as they were.
    pub(crate) fn update(
        &mut self,
        cost: &CostMatrix,
        reversed: &CostMatrix,
        rules: &TreeRules,
        changed: &[(usize, usize)],
    ) {
        let n = self.n;
        if n != cost.len() || changed.len() > 2 * n || self.deep {
            *self = backups(cost, rules);
            return;
        }
        for &(from, to) in changed {
            let row = (0..n).map(|end| (from, end, to));
            let column = (0..n).map(|start| (start, to, from));
            for (relay, end, hop) in row.chain(column) {
                if relay == end || hop == relay {
                    continue;
                }
                let cell = relay * n + end;
                let named = self.hops[cell].contains(&(hop as u16));
                let total =
                    cost.get(relay, hop) + if hop == end { 0.0 } else { cost.get(hop, end) };
                let last = f64::from(self.costs[cell][CANDIDATES - 1]);
                if !named && total > last * (1.0 + 1e-6) {
                    continue;
                }
                let list = best_three(relay, end, cost, reversed, rules);
                self.set(cell, list);
            }
        }
        // Where candidates are lacking, ways over two deflections may have come up anywhere; but
        // not from or to relays that have no link at all.
        let has_link = |row: &[f64]| row.iter().filter(|cost| cost.is_finite()).count() > 1;
        let starts: Vec<bool> = (0..n).map(|relay| has_link(cost.row(relay))).collect();
        let ends: Vec<bool> = (0..n).map(|relay| has_link(reversed.row(relay))).collect();
        let lacking = (0..n * n).any(|cell| {
            let (relay, to) = (cell / n, cell % n);
            let short = self.hops[cell][CANDIDATES - 1] == NONE;
            short && relay != to && starts[relay] && ends[to]
        });
        if lacking {
            *self = backups(cost, rules);
        }
    }

    fn set(&mut self, cell: usize, list: [(f64, u16); CANDIDATES]) {
        self.hops[cell] = list.map(|(_, hop)| hop);
        self.costs[cell] = list.map(|(cost, _)| cost as f32);
    }
}

/// Computes all backups, O(n³) with most of it in bulk (see [`crate::reaction`]): for relay A, destination D
/// and every B, the cost A→B plus B→D. Both links must be up, and `rules` must let packets cross B.
/// Among equals the direct link wins, then the lower index. Where there are fewer than
/// [`CANDIDATES`] such B, others follow from which a second deflection leads on.
#[must_use]
pub fn backups(cost: &CostMatrix, rules: &TreeRules) -> Backups {
    let n = cost.len();
    let low = LowRows::new(cost);
    let mut all = Backups {
        n,
        hops: vec![[NONE; CANDIDATES]; n * n],
        costs: vec![[f32::INFINITY; CANDIDATES]; n * n],
        deep: false,
    };
    let mut onto: Vec<Vec<(f64, u16)>> = Vec::with_capacity(n);
    let mut known = vec![f32::INFINITY; low.stride()];
    for relay in 0..n {
        let row = cost.row(relay);
        let mut hops: Vec<(f64, u16)> = (0..n)
            .filter(|&hop| hop != relay && row[hop].is_finite() && rules.may_cross(hop))
            .map(|hop| (row[hop], hop as u16))
            .collect();
        hops.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        // In any order the lists are the same; what is good for a near relay comes first, so that
        // most of the rest has no block with a hit.
        let near = hops
            .iter()
            .take(NEAR)
            .find(|hop| usize::from(hop.1) < relay);
        let ahead = near.map_or_else(Vec::new, |near| all.popular(near.1.into()));
        let rank = |hop: u16| ahead.iter().position(|&popular| popular == hop);
        let (mut first, rest): (Vec<_>, Vec<_>) =
            hops.iter().copied().partition(|hop| rank(hop.1).is_some());
        first.sort_unstable_by_key(|hop| rank(hop.1));

        let mut lists: Vec<[(f64, u16); CANDIDATES]> = (0..n)
            .map(|to| {
                let mut list = [(f64::INFINITY, NONE); CANDIDATES];
                if to != relay && row[to].is_finite() {
                    list[0] = (row[to], to as u16);
                }
                list
            })
            .collect();
        known.fill(f32::INFINITY);
        known[n..].fill(-1.0);
        known[relay] = -1.0;
        for (base, hop) in first.into_iter().chain(rest) {
            let onwards = cost.row(usize::from(hop));
            low.scan(usize::from(hop), base, &mut known, |to, known| {
                if to != usize::from(hop) {
                    offer(&mut lists[to], to, base + onwards[to], hop);
                    *known = rounded_up(lists[to][CANDIDATES - 1].0);
                }
            });
        }
        for (to, list) in lists.into_iter().enumerate() {
            all.set(relay * n + to, list);
        }
        onto.push(hops);
    }
    all.fill_up(cost, &onto);
    all
}

/// How many of a relay's nearest hops are asked for a relay whose lists are known.
const NEAR: usize = 32;

/// How many hops that are good for a near relay are looked at first.
const POPULAR: usize = 32;

/// Puts a hop where it belongs in a list of the best three.
fn offer(list: &mut [(f64, u16); CANDIDATES], to: usize, total: f64, hop: u16) {
    let direct = to as u16;
    let before = |a: &(f64, u16), b: &(f64, u16)| match a.0 == b.0 {
        true => (a.1 != direct, a.1) < (b.1 != direct, b.1),
        false => a.0 < b.0,
    };
    let mut new = (total, hop);
    if total.is_finite() {
        for known in list {
            if before(&new, known) {
                std::mem::swap(known, &mut new);
            }
        }
    }
}

/// One list alone, without second deflections.
fn best_three(
    relay: usize,
    to: usize,
    cost: &CostMatrix,
    reversed: &CostMatrix,
    rules: &TreeRules,
) -> [(f64, u16); CANDIDATES] {
    let mut list = [(f64::INFINITY, NONE); CANDIDATES];
    let (onto, onwards) = (cost.row(relay), reversed.row(to));
    offer(&mut list, to, onto[to], to as u16);
    for (hop, (first, second)) in onto.iter().zip(onwards).enumerate() {
        let total = first + second;
        if total <= list[CANDIDATES - 1].0 && hop != to && hop != relay && rules.may_cross(hop) {
            offer(&mut list, to, total, hop as u16);
        }
    }
    list
}

impl Backups {
    /// The hops that are most often among a relay's candidates, the most frequent first.
    fn popular(&self, relay: usize) -> Vec<u16> {
        let mut counts = vec![0u32; self.n];
        for &hop in self.hops[relay * self.n..(relay + 1) * self.n]
            .iter()
            .flatten()
        {
            if hop != NONE {
                counts[usize::from(hop)] += 1;
            }
        }
        // Every destination names itself once, as the direct link.
        let mut hops: Vec<u16> = (0..self.n as u16)
            .filter(|&hop| counts[usize::from(hop)] > 1)
            .collect();
        hops.sort_by_key(|&hop| std::cmp::Reverse(counts[usize::from(hop)]));
        hops.truncate(POPULAR);
        hops
    }

    /// Where there are places left, takes hops that can lead on by a second deflection: cheapest
    /// first, by the way over their own best backup that does not lead back.
    fn fill_up(&mut self, cost: &CostMatrix, onto: &[Vec<(f64, u16)>]) {
        let n = self.n;
        let short: Vec<usize> = (0..n * n)
            .filter(|&cell| self.hops[cell][CANDIDATES - 1] == NONE && cell / n != cell % n)
            .collect();
        let mut found = Vec::new();
        for cell in short {
            let (relay, to) = (cell / n, cell % n);
            let mut ways: Vec<(f64, u16)> = onto[relay]
                .iter()
                .filter(|&&(_, hop)| usize::from(hop) != to && !cost.is_up(hop.into(), to))
                .filter_map(|&(base, hop)| {
                    let onwards = self.onwards(hop.into(), to, relay)?;
                    Some((base + onwards, hop))
                })
                .collect();
            if ways.is_empty() {
                continue;
            }
            ways.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let taken = self.candidates(relay, to).count();
            ways.truncate(CANDIDATES - taken);
            found.push((cell, taken, ways));
        }
        self.deep = !found.is_empty();
        // Only now: they must not count as backups with a direct link.
        for (cell, taken, ways) in found {
            for (place, (total, hop)) in (taken..).zip(ways) {
                self.hops[cell][place] = hop;
                self.costs[cell][place] = total as f32;
            }
        }
    }

    /// What the way costs from `hop` over its best backup to `to`, not back over `from`.
    fn onwards(&self, hop: usize, to: usize, from: usize) -> Option<f64> {
        self.candidates_with_cost(hop, to)
            .find(|&(via, _)| via != from)
            .map(|(_, cost)| cost)
    }
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
                        // Those with one more link to go.
                        let near = |&hop: &usize| hop == to || cost.is_up(hop, to);
                        let kept: Vec<usize> = lists
                            .for_failing(relay, to, failing)
                            .take_while(near)
                            .take(2)
                            .collect();
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
