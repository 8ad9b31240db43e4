//! Backups and trees together: making sure that the relays above a failure can be saved, and
//! counting who cannot.
//!
//! The best three candidates of a relay may all lie *above* it in the tree of the destination: a
//! packet that has come over all of them finds no one new. Such a relay gets the best candidate
//! that is not above it in place of its last.

use super::{Backups, CANDIDATES, LinkHealth, NextHop, Situation, next_hop};
use crate::{
    cost::CostMatrix,
    tree::{NONE, Tree, TreeRules},
};

/// A relay that has no reaction for some packets when one neighbour, or its link to it, fails,
/// though there is another way within the bound on links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unprotected {
    /// The relay that would have to react.
    pub relay: usize,
    /// Where packets are to go.
    pub destination: usize,
    /// Its next hop to there.
    pub failing: usize,
}

/// What reactions alone do not save: packets for these wait for the next plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnprotectedWays {
    /// How many there are.
    pub count: usize,
    /// The first [`UnprotectedWays::MOST`] of them, by destination and relay.
    pub first: Vec<Unprotected>,
    /// There were so many suspects that from some point on it was not checked any more whether
    /// another way exists: `count` is an upper bound.
    pub upper_bound: bool,
}

impl UnprotectedWays {
    /// How many are listed.
    pub const MOST: usize = 1_000;
    /// How many searches for another way are made.
    const SEARCHES: usize = 20_000;
}

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Link(usize, usize),
    Relay(usize),
}

impl Failure {
    /// Whether the link from `from` to `to` is gone with it.
    pub(crate) fn breaks(self, from: usize, to: usize) -> bool {
        match self {
            Self::Link(a, b) => (a, b) == (from, to),
            Self::Relay(relay) => relay == from || relay == to,
        }
    }
}

/// Whether `hop` has only one more link to go.
fn ends_at(cost: &CostMatrix, hop: usize, to: usize) -> bool {
    hop == to || cost.is_up(hop, to)
}

/// Whether a candidate saves *every* packet that the tree brings to `relay` when its next hop
/// `failing` does not work: nothing above `relay`, one link from the destination.
fn saves(cost: &CostMatrix, tree: &Tree, relay: usize, failing: usize, hop: usize) -> bool {
    hop != failing && ends_at(cost, hop, tree.root) && !tree.leads_over(hop, relay)
}

fn is_covered(lists: &Backups, cost: &CostMatrix, tree: &Tree, relay: usize, hop: usize) -> bool {
    lists
        .candidates(relay, tree.root)
        .any(|candidate| saves(cost, tree, relay, hop, candidate))
}

/// Replaces candidates so that every relay has one that saves all that comes to it in `trees`,
/// wherever there is such a one.
pub(crate) fn cover<'a>(
    lists: &mut Backups,
    cost: &CostMatrix,
    rules: &TreeRules,
    trees: impl Iterator<Item = &'a Tree>,
) {
    let n = lists.len();
    for tree in trees {
        for relay in 0..n {
            let Some(failing) = tree.parent(relay) else {
                continue;
            };
            if is_covered(lists, cost, tree, relay, failing) {
                continue;
            }
            let (row, to) = (cost.row(relay), tree.root);
            let new_to_all = |hop: usize| {
                hop != relay
                    && hop != failing
                    && row[hop].is_finite()
                    && (hop == to || rules.may_cross(hop))
                    && !tree.leads_over(hop, relay)
            };
            let once = (0..n)
                .filter(|&hop| new_to_all(hop) && ends_at(cost, hop, to))
                .map(|hop| (row[hop] + cost.get(hop, to), hop));
            let best = once.min_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((total, hop)) = best {
                lists.insert(cost, relay, to, hop, total);
                continue;
            }
            // Over two deflections then, the second of which avoids the failing one too.
            let twice = (0..n)
                .filter(|&hop| hop != to && new_to_all(hop))
                .filter_map(|hop| {
                    let onwards = lists
                        .candidates_with_cost(hop, to)
                        .find(|&(via, _)| via != relay && saves(cost, tree, relay, failing, via))?;
                    Some((row[hop] + onwards.1, hop))
                });
            let best = twice.min_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((total, hop)) = best
                && lists.candidates(relay, to).all(|known| known != hop)
            {
                lists.insert(cost, relay, to, hop, total);
            }
        }
    }
}

impl Backups {
    /// Puts in a candidate, at the cost of the last one: behind those that are as near to the
    /// destination as it is.
    fn insert(&mut self, cost: &CostMatrix, relay: usize, to: usize, hop: usize, total: f64) {
        let cell = relay * self.n + to;
        let direct = ends_at(cost, hop, to);
        let before =
            |&known: &u16| known != NONE && (!direct || ends_at(cost, usize::from(known), to));
        let place = self.hops[cell]
            .iter()
            .take_while(|known| before(known))
            .count();
        let place = place.min(CANDIDATES - 1);
        self.hops[cell][place..].rotate_right(1);
        self.costs[cell][place..].rotate_right(1);
        self.hops[cell][place] = hop as u16;
        self.costs[cell][place] = total as f32;
    }
}

/// Where packets end up when one thing fails and relays react.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered(Vec<usize>),
    Lost(Vec<usize>),
}

/// Follows a packet from `from` on `tree` by the rule that relays follow, each knowing the health
/// of its own links only.
pub(crate) fn follow(
    tree: &Tree,
    lists: &Backups,
    from: usize,
    health: impl Fn(usize, usize) -> LinkHealth,
) -> Fate {
    let to = tree.root;
    let mut path = vec![from];
    let mut deflections = 0;
    loop {
        let at = path[path.len() - 1];
        if at == to {
            return Fate::Delivered(path);
        }
        let packet = Situation {
            destination: to,
            by_tree: tree.parent(at).map(|hop| (hop, tree.cost[at])),
            deflections,
        };
        let decision = next_hop(
            &packet,
            lists
                .candidates_with_cost(at, to)
                .collect::<Vec<_>>()
                .into_iter(),
            // Not counted on: they may know no more.
            std::iter::empty(),
            |hop| health(at, hop),
            |relay| path.contains(&relay),
        );
        let NextHop::Forward { next, deflected } = decision else {
            return Fate::Lost(path);
        };
        deflections += u8::from(deflected);
        path.push(next);
    }
}

/// Counts what the reactions of `lists` do not save in `trees`.
pub(crate) fn unprotected<'a>(
    lists: &Backups,
    cost: &CostMatrix,
    rules: &TreeRules,
    trees: impl Iterator<Item = &'a Tree>,
) -> UnprotectedWays {
    let n = lists.len();
    let mut ways = UnprotectedWays::default();
    let mut search: Option<Search> = None;
    let mut searches = 0;
    for tree in trees {
        for relay in 0..n {
            let Some(failing) = tree.parent(relay) else {
                continue;
            };
            if is_covered(lists, cost, tree, relay, failing) {
                continue;
            }
            let search = search.get_or_insert_with(|| Search::new(cost));
            let mut failures = vec![Failure::Link(relay, failing)];
            if failing != tree.root {
                failures.push(Failure::Relay(failing));
            }
            let mut is_lost = |from: usize, failure: Failure| {
                let health = |a, b| match cost.is_up(a, b) && !failure.breaks(a, b) {
                    true => LinkHealth::Up,
                    false => LinkHealth::Down,
                };
                if matches!(follow(tree, lists, from, health), Fate::Delivered(_)) {
                    return false;
                }
                searches += 1;
                searches > UnprotectedWays::SEARCHES
                    || search.finds(from, tree.root, rules, failure)
            };
            let lost = (0..n)
                .filter(|&from| tree.leads_over(from, relay))
                .any(|from| failures.iter().any(|&failure| is_lost(from, failure)));
            if lost {
                ways.count += 1;
                if ways.first.len() < UnprotectedWays::MOST {
                    ways.first.push(Unprotected {
                        relay,
                        destination: tree.root,
                        failing,
                    });
                }
            }
        }
    }
    ways.upper_bound = searches > UnprotectedWays::SEARCHES;
    ways
}

/// Searches for any way within the bound.
pub(crate) struct Search {
    /// From where each relay can be reached.
    before: Vec<Vec<usize>>,
}

impl Search {
    pub(crate) fn new(cost: &CostMatrix) -> Self {
        let n = cost.len();
        let before = (0..n)
            .map(|to| (0..n).filter(|&from| cost.is_up(from, to)).collect())
            .collect();
        Self { before }
    }

    /// Whether there is a way from `from` to `to` within the rules in spite of the failure.
    pub(crate) fn finds(
        &self,
        from: usize,
        to: usize,
        rules: &TreeRules,
        failure: Failure,
    ) -> bool {
        let mut reached = vec![false; self.before.len()];
        reached[to] = true;
        let mut level = vec![to];
        for _ in 0..rules.max_links {
            let mut next = Vec::new();
            for &at in level.iter().filter(|&&at| at == to || rules.may_cross(at)) {
                for &before in &self.before[at] {
                    if reached[before] || failure.breaks(before, at) {
                        continue;
                    }
                    if before == from {
                        return true;
                    }
                    reached[before] = true;
                    next.push(before);
                }
            }
            level = next;
        }
        false
    }
}
