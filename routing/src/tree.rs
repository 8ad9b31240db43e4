//! Trees of next hops: for every destination one *in-tree* (from each relay, which neighbour is
//! next towards it), for every origin one *out-tree* (for groups: to which neighbours a copy goes).
//!
//! A tree is acyclic by construction, so packets that follow one cannot loop; and no path in it has
//! more than [`crate::MAX_LINKS`] links. Within one tree every relay's way goes on as its next
//! hop's way does, so under the bound on links a tree can be a little worse than the best path of
//! each pair by itself; where the bound does not bind it is exactly as good.

use crate::{
    MAX_LINKS,
    cost::CostMatrix,
    grow::{Field, Wishes},
};
use std::sync::Arc;

/// No relay.
pub(crate) const NONE: u16 = u16::MAX;

/// What a tree must obey, besides being a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeRules {
    /// The most links between a relay and the root.
    pub max_links: usize,
    /// Per relay, whether it must not be crossed (it can still be an origin or a destination).
    /// Relays beyond the end may be crossed: empty forbids nothing.
    pub no_transit: Vec<bool>,
}

impl Default for TreeRules {
    fn default() -> Self {
        Self {
            max_links: MAX_LINKS,
            no_transit: Vec::new(),
        }
    }
}

impl TreeRules {
    /// Whether packets of others may cross this relay.
    #[must_use]
    pub fn may_cross(&self, relay: usize) -> bool {
        !self.no_transit.get(relay).copied().unwrap_or(false)
    }
}

/// For one destination, the next hop from every relay.
#[derive(Debug, Clone, PartialEq)]
pub struct InTree(pub(crate) Tree);

impl InTree {
    /// Where all paths of this tree end.
    #[must_use]
    pub fn destination(&self) -> usize {
        self.0.root
    }

    /// The number of relays.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.parent.len()
    }

    /// Whether there is no relay at all (never so).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.parent.is_empty()
    }

    /// The neighbour to which `from` sends: `None` at the destination itself and where there is no
    /// way.
    #[must_use]
    pub fn next_hop(&self, from: usize) -> Option<usize> {
        self.0.parent(from)
    }

    /// The cost from `from` to the destination when the tree was made: [`f64::INFINITY`] where
    /// there is no way.
    #[must_use]
    pub fn cost(&self, from: usize) -> f64 {
        self.0.cost[from]
    }

    /// The whole path from `from`, both ends included; `None` where there is no way.
    #[must_use]
    pub fn path(&self, from: usize) -> Option<Vec<usize>> {
        self.0.path_to_root(from)
    }
}

/// For one origin, to which neighbours each relay sends copies.
#[derive(Debug, Clone, PartialEq)]
pub struct OutTree(pub(crate) Tree);

impl OutTree {
    /// Where all paths of this tree begin.
    #[must_use]
    pub fn origin(&self) -> usize {
        self.0.root
    }

    /// The number of relays.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.parent.len()
    }

    /// Whether there is no relay at all (never so).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.parent.is_empty()
    }

    /// The relay from which `relay` receives: `None` for the origin and where there is no way.
    #[must_use]
    pub fn previous_hop(&self, relay: usize) -> Option<usize> {
        self.0.parent(relay)
    }

    /// The relays that receive from `relay`, in order of index.
    #[must_use]
    pub fn children(&self, relay: usize) -> Vec<usize> {
        (0..self.len())
            .filter(|&child| self.0.parent(child) == Some(relay))
            .collect()
    }

    /// The neighbour to which `at` sends the copy meant for `to`: `None` when `to` is not below
    /// `at` in this tree.
    #[must_use]
    pub fn next_hop(&self, at: usize, to: usize) -> Option<usize> {
        let mut hop = to;
        loop {
            let before = self.0.parent(hop)?;
            if before == at {
                return Some(hop);
            }
            hop = before;
        }
    }

    /// The next hops at `at` for every destination at once, as [`OutTree::next_hop`].
    #[must_use]
    pub fn next_hops(&self, at: usize) -> Vec<Option<usize>> {
        (0..self.len()).map(|to| self.next_hop(at, to)).collect()
    }

    /// The cost from the origin to `to` when the tree was made.
    #[must_use]
    pub fn cost(&self, to: usize) -> f64 {
        self.0.cost[to]
    }

    /// The whole path to `to`, both ends included; `None` where there is no way.
    #[must_use]
    pub fn path(&self, to: usize) -> Option<Vec<usize>> {
        let mut path = self.0.path_to_root(to)?;
        path.reverse();
        Some(path)
    }
}

/// The in-tree of one destination.
///
/// # Panics
/// When `destination` is out of range, or with 65,535 relays or more.
#[must_use]
pub fn in_tree(cost: &CostMatrix, destination: usize, rules: &TreeRules) -> InTree {
    InTree(grown(&Field::new(cost.transposed()), destination, rules))
}

/// The in-trees of all destinations, by index. O(n²) each.
#[must_use]
pub fn in_trees(cost: &CostMatrix, rules: &TreeRules) -> Vec<InTree> {
    let all = Field::new(cost.transposed()).grow_all(rules);
    all.into_iter().map(|grown| InTree(grown.tree)).collect()
}

/// The out-tree of one origin.
///
/// # Panics
/// When `origin` is out of range, or with 65,535 relays or more.
#[must_use]
pub fn out_tree(cost: &CostMatrix, origin: usize, rules: &TreeRules) -> OutTree {
    OutTree(grown(&Field::new(cost.clone()), origin, rules))
}

/// The out-trees of all origins, by index.
#[must_use]
pub fn out_trees(cost: &CostMatrix, rules: &TreeRules) -> Vec<OutTree> {
    let all = Field::new(cost.clone()).grow_all(rules);
    all.into_iter().map(|grown| OutTree(grown.tree)).collect()
}

fn grown(field: &Field, root: usize, rules: &TreeRules) -> Tree {
    field.grow(root, rules, &Wishes::default()).tree
}

/// A tree hanging from its root, whichever way packets move in it. Clones share their contents.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    pub(crate) root: usize,
    parent: Arc<[u16]>,
    pub(crate) cost: Arc<[f64]>,
}

impl Tree {
    /// A tree of these parents ([`NONE`]: none), which must lead to the root without a circle, and
    /// of these costs.
    pub(crate) fn new(root: usize, parent: Vec<u16>, cost: Vec<f64>) -> Self {
        Self {
            root,
            parent: parent.into(),
            cost: cost.into(),
        }
    }

    /// A tree of these parents, which must lead to the root without a circle; `away.get(p, c)` is
    /// the cost of the link between a parent `p` and its child `c`.
    pub(crate) fn from_parents(root: usize, parent: Vec<u16>, away: &CostMatrix) -> Self {
        let mut tree = Self::new(root, parent, Vec::new());
        tree.cost = tree.costs_under(away, None).into();
        tree
    }

    /// A tree that reaches nothing.
    pub(crate) fn empty(root: usize, n: usize) -> Self {
        let mut cost = vec![f64::INFINITY; n];
        cost[root] = 0.0;
        Self::new(root, vec![NONE; n], cost)
    }

    /// Makes room for further relays, which have no way.
    pub(crate) fn make_room(&mut self, n: usize) {
        let (mut parent, mut cost) = (self.parent.to_vec(), self.cost.to_vec());
        parent.resize(n, NONE);
        cost.resize(n, f64::INFINITY);
        *self = Self::new(self.root, parent, cost);
    }

    pub(crate) fn parent(&self, relay: usize) -> Option<usize> {
        let parent = self.parent[relay];
        (parent != NONE).then_some(usize::from(parent))
    }

    pub(crate) fn parents(&self) -> &[u16] {
        &self.parent
    }

    pub(crate) fn len(&self) -> usize {
        self.parent.len()
    }

    pub(crate) fn path_to_root(&self, from: usize) -> Option<Vec<usize>> {
        let mut path = vec![from];
        while let Some(next) = self.parent(path[path.len() - 1]) {
            path.push(next);
        }
        (path[path.len() - 1] == self.root).then_some(path)
    }

    /// Whether the way from `relay` to the root leads over `over` (both ends included).
    pub(crate) fn leads_over(&self, relay: usize, over: usize) -> bool {
        let mut at = relay;
        loop {
            if at == over {
                return true;
            }
            match self.parent(at) {
                Some(parent) => at = parent,
                None => return false,
            }
        }
    }

    /// What each relay's way in this tree costs by other costs than those it was grown from; with
    /// `rules`, ways that break them cost infinity.
    pub(crate) fn costs_under(&self, away: &CostMatrix, rules: Option<&TreeRules>) -> Vec<f64> {
        let n = self.len();
        let mut costs = vec![f64::NAN; n];
        costs[self.root] = 0.0;
        let mut chain = Vec::new();
        for relay in 0..n {
            let mut at = relay;
            while costs[at].is_nan() {
                let Some(parent) = self.parent(at) else {
                    costs[at] = f64::INFINITY;
                    break;
                };
                chain.push(at);
                at = parent;
            }
            while let Some(child) = chain.pop() {
                let parent = usize::from(self.parent[child]);
                let crossable = parent == self.root || rules.is_none_or(|r| r.may_cross(parent));
                costs[child] = if crossable {
                    costs[parent] + away.get(parent, child)
                } else {
                    f64::INFINITY
                };
            }
        }
        costs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MAX_TRANSIT,
        paths::{best_paths, path_cost},
        testing::{arbitrary_costs, metric_costs},
    };
    use proptest::prelude::*;

    fn bounded(max_links: usize) -> TreeRules {
        TreeRules {
            max_links,
            no_transit: Vec::new(),
        }
    }

    /// The cost matrix among the relays that may be crossed, and to and from two ends.
    fn within(cost: &CostMatrix, rules: &TreeRules, from: usize, to: usize) -> CostMatrix {
        let usable = |relay: usize| relay == from || relay == to || rules.may_cross(relay);
        CostMatrix::from_fn(cost.len(), |i, j| match usable(i) && usable(j) {
            true => cost.get(i, j),
            false => f64::INFINITY,
        })
    }

    proptest! {
        #[test]
        fn every_tree_keeps_the_bound_and_the_rules_and_reaches_what_can_be_reached(
            cost in arbitrary_costs(2..=9),
            forbidden in proptest::collection::vec(proptest::bool::weighted(0.2), 0..9),
            max_links in 1..=5usize,
        ) {
            let rules = TreeRules { max_links, no_transit: forbidden };
            for tree in in_trees(&cost, &rules) {
                let to = tree.destination();
                for from in 0..cost.len() {
                    let best = best_paths(&within(&cost, &rules, from, to), max_links - 1);
                    let Some(path) = tree.path(from) else {
                        prop_assert_eq!(best.cost(from, to), f64::INFINITY);
                        prop_assert_eq!(tree.cost(from), f64::INFINITY);
                        continue;
                    };
                    prop_assert!(path.len() - 1 <= max_links, "{:?} is too long", path);
                    prop_assert_eq!(path_cost(&cost, &path), tree.cost(from));
                    prop_assert!(tree.cost(from) >= best.cost(from, to));
                    let transit = path.iter().skip(1).rev().skip(1);
                    prop_assert!(transit.copied().all(|relay| rules.may_cross(relay)));
                }
            }
        }

        #[test]
        fn where_the_bound_does_not_bind_a_tree_is_optimal(cost in arbitrary_costs(2..=9)) {
            let best = best_paths(&cost, cost.len());
            let free = in_trees(&cost, &bounded(cost.len()));
            for (tree, free) in in_trees(&cost, &TreeRules::default()).iter().zip(&free) {
                let longest = (0..cost.len()).filter_map(|from| free.path(from)).map(|p| p.len());
                let binds = longest.max().unwrap_or(0) > MAX_LINKS + 1;
                for from in 0..cost.len() {
                    prop_assert_eq!(free.cost(from), best.cost(from, free.destination()));
                    if !binds {
                        prop_assert_eq!(tree.cost(from), free.cost(from));
                    }
                }
            }
        }

        #[test]
        fn an_out_tree_is_the_in_tree_of_the_network_turned_round(cost in arbitrary_costs(2..=8)) {
            let turned = in_trees(&cost.transposed(), &TreeRules::default());
            for (out, turned) in out_trees(&cost, &TreeRules::default()).iter().zip(&turned) {
                for to in 0..cost.len() {
                    prop_assert_eq!(out.cost(to), turned.cost(to));
                    prop_assert_eq!(out.previous_hop(to), turned.next_hop(to));
                    let Some(path) = out.path(to) else { continue };
                    for link in path.windows(2) {
                        prop_assert_eq!(out.next_hop(link[0], to), Some(link[1]));
                        prop_assert_eq!(out.next_hops(link[0])[to], Some(link[1]));
                        prop_assert!(out.children(link[0]).contains(&link[1]));
                    }
                }
            }
        }
    }

    #[test]
    fn on_networks_like_real_ones_trees_are_within_a_thousandth_of_the_optimum() {
        for seed in 0..5 {
            let cost = metric_costs(60, seed, 0.05);
            let best = best_paths(&cost, MAX_TRANSIT);
            let (mut trees, mut optimum) = (0.0, 0.0);
            for tree in in_trees(&cost, &TreeRules::default()) {
                for from in 0..cost.len() {
                    let least = best.cost(from, tree.destination());
                    assert!(
                        tree.cost(from) <= 1.1 * least,
                        "{} for {least}",
                        tree.cost(from)
                    );
                    trees += tree.cost(from);
                    optimum += least;
                }
            }
            assert!(
                trees <= 1.001 * optimum,
                "seed {seed}: {trees} for {optimum}"
            );
        }
    }

    #[test]
    fn on_shared_matrices_when_present_trees_are_within_a_thousandth_of_the_optimum() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
        let Ok(files) = std::fs::read_dir(folder) else {
            return;
        };
        for file in files
            .flatten()
            .filter(|f| f.path().extension().is_some_and(|e| e == "csv"))
        {
            let text = std::fs::read_to_string(file.path()).unwrap();
            let matrix = crate::RttMatrix::parse(&text).unwrap();
            let cost = CostMatrix::from_rtt(&matrix);
            let best = best_paths(&cost, MAX_TRANSIT);
            let (mut trees, mut optimum) = (0.0, 0.0);
            for tree in in_trees(&cost, &TreeRules::default()) {
                for from in 0..cost.len() {
                    trees += tree.cost(from);
                    optimum += best.cost(from, tree.destination());
                }
            }
            assert!(trees <= 1.001 * optimum, "{file:?}: {trees} for {optimum}");
        }
    }

    #[test]
    fn a_relay_beyond_the_bound_on_its_cheapest_way_is_reached_by_a_shorter_dear_one() {
        // A chain 6-5-4-3-2-1-0 of cheap links, and a dear link 5→0.
        let mut cost = CostMatrix::new(7);
        for relay in 1..7 {
            cost.set(relay, relay - 1, 1.0);
        }
        assert_eq!(in_tree(&cost, 0, &TreeRules::default()).path(6), None);
        cost.set(5, 0, 100.0);
        let tree = in_tree(&cost, 0, &TreeRules::default());
        assert_eq!(tree.path(6), Some(vec![6, 5, 0]));
        assert_eq!(tree.cost(6), 101.0);
        assert_eq!(tree.path(4), Some(vec![4, 3, 2, 1, 0]));
    }
}
