//! Least-cost paths between all ordered pairs of relays, over a bounded number of transit relays:
//! the optimum that trees and measurements are compared with.

use crate::{
    cost::CostMatrix,
    grow::{LowRows, rounded_up},
};

/// The best paths of all ordered pairs; see [`best_paths`].
#[derive(Debug, Clone)]
pub struct BestPaths {
    n: usize,
    costs: Vec<f64>,
    /// Per pair, where its transit relays lie in `transit`, and how many they are.
    spans: Vec<(u32, u16)>,
    transit: Vec<u16>,
}

impl BestPaths {
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

    /// The cost of the best path: [`f64::INFINITY`] where there is none, 0 from a relay to itself.
    #[must_use]
    pub fn cost(&self, from: usize, to: usize) -> f64 {
        self.costs[self.pair(from, to)]
    }

    /// The best path with both its ends, or `None` where there is none. From a relay to itself it
    /// is that relay alone.
    #[must_use]
    pub fn path(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        if !self.cost(from, to).is_finite() {
            return None;
        }
        let mut path = vec![from];
        path.extend(
            self.transit(from, to)
                .iter()
                .map(|&relay| usize::from(relay)),
        );
        if from != to {
            path.push(to);
        }
        Some(path)
    }

    /// The transit relays of the best path, in order: none when it is direct or when there is no
    /// path.
    #[must_use]
    pub fn transit(&self, from: usize, to: usize) -> &[u16] {
        let (start, count) = self.spans[self.pair(from, to)];
        &self.transit[start as usize..start as usize + usize::from(count)]
    }

    fn pair(&self, from: usize, to: usize) -> usize {
        assert!(to < self.n, "relay {to} outside of {} relays", self.n);
        from * self.n + to
    }
}

/// The best path of every ordered pair over at most `max_transit` transit relays: the exact
/// optimum, each path simple (no relay twice). Among paths of equal cost the one with fewer links
/// is taken, then the one whose last relay before the destination has the lower index, and so on
/// backwards.
///
/// Time O(n³ · max_transit) at worst; in metric-like networks few relays improve anything beyond
/// the second link, and it is close to O(n³).
///
/// ```
/// use tradewind_routing::{CostMatrix, best_paths};
/// let mut costs = CostMatrix::new(3);
/// costs.set(0, 2, 498.0);
/// costs.set(0, 1, 94.0);
/// costs.set(1, 2, 57.0);
/// let best = best_paths(&costs, 4);
/// assert_eq!((best.cost(0, 2), best.path(0, 2)), (151.0, Some(vec![0, 1, 2])));
/// assert_eq!(best.path(2, 0), None);
/// ```
///
/// # Panics
/// With 65,536 relays or more.
#[must_use]
pub fn best_paths(cost: &CostMatrix, max_transit: usize) -> BestPaths {
    best_paths_with_hop_cost(cost, max_transit, 0.0)
}

/// As [`best_paths`], with `per_transit_ms` added for every transit relay (never for the direct
/// link).
///
/// # Panics
/// With 65,536 relays or more, or when `per_transit_ms` is negative or not a number.
#[must_use]
pub fn best_paths_with_hop_cost(
    cost: &CostMatrix,
    max_transit: usize,
    per_transit_ms: f64,
) -> BestPaths {
    let n = cost.len();
    assert!(
        n <= usize::from(u16::MAX),
        "{n} relays are more than an index can name"
    );
    assert!(per_transit_ms >= 0.0, "a hop cost of {per_transit_ms} ms");
    let mut best = BestPaths {
        n,
        costs: Vec::with_capacity(n * n),
        spans: Vec::with_capacity(n * n),
        transit: Vec::new(),
    };
    let low = LowRows::new(cost);
    let mut layers = Layers::default();
    for from in 0..n {
        layers.grow((cost, &low), from, max_transit, per_transit_ms);
        best.costs.extend_from_slice(&layers.best);
        for to in 0..n {
            let start = best.transit.len();
            layers.push_transit(to, &mut best.transit);
            let count = best.transit.len() - start;
            let start = u32::try_from(start).expect("fewer than 2³² relays on all paths together");
            best.spans.push((start, count as u16));
        }
    }
    best
}

/// The cost of a given path (both ends included): [`f64::INFINITY`] if a link of it is missing,
/// 0 for a single relay.
#[must_use]
pub fn path_cost(cost: &CostMatrix, path: &[usize]) -> f64 {
    path.windows(2).map(|link| cost.get(link[0], link[1])).sum()
}

/// Best paths from one relay, layer by layer: layer `k` holds what `k` links can do better than
/// fewer (Bellman and Ford's recursion). Costs are not negative, so a path that wins with as few
/// links as possible never visits a relay twice.
#[derive(Default)]
struct Layers {
    best: Vec<f64>,
    /// `best` rounded up, with padding that nothing is below.
    high: Vec<f32>,
    /// The number of links of the best path to each relay; 0 where there is none.
    links: Vec<u16>,
    /// `before[k][v]`: the relay before `v` on the best path of exactly `k + 1` links.
    before: Vec<Vec<u16>>,
}

impl Layers {
    fn grow(
        &mut self,
        (cost, low): (&CostMatrix, &LowRows),
        from: usize,
        max_transit: usize,
        per_transit_ms: f64,
    ) {
        let n = cost.len();
        self.best.clear();
        self.best.extend_from_slice(cost.row(from));
        self.links.clear();
        self.links
            .extend(self.best.iter().map(|cost| u16::from(cost.is_finite())));
        self.links[from] = 0;
        self.high.clear();
        self.high
            .extend(self.best.iter().map(|&cost| rounded_up(cost)));
        self.high.resize(low.stride(), -1.0);
        self.before.clear();
        self.before.push(vec![from as u16; n]);

        let mut improved: Vec<usize> = (0..n).filter(|&v| self.links[v] == 1).collect();
        // No simple path has more than n − 1 links.
        for links in 2..=(max_transit + 1).min(n.saturating_sub(1)) {
            // Read the previous layer while writing this one: k links and no more.
            let previous: Vec<f64> = improved.iter().map(|&v| self.best[v]).collect();
            let mut before = vec![0; n];
            for (&via, &so_far) in improved.iter().zip(&previous) {
                let so_far = so_far + per_transit_ms;
                let row = cost.row(via);
                low.scan(via, so_far, &mut self.high, |to, high| {
                    let total = so_far + row[to];
                    if total < self.best[to] {
                        self.best[to] = total;
                        self.links[to] = links as u16;
                        before[to] = via as u16;
                        *high = rounded_up(total);
                    }
                });
            }
            self.before.push(before);
            improved = (0..n)
                .filter(|&v| usize::from(self.links[v]) == links)
                .collect();
            if improved.is_empty() {
                break;
            }
        }
    }

    fn push_transit(&self, to: usize, transit: &mut Vec<u16>) {
        let start = transit.len();
        let mut at = to;
        for links in (2..=usize::from(self.links[to])).rev() {
            let before = self.before[links - 1][at];
            transit.push(before);
            at = usize::from(before);
        }
        transit[start..].reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{arbitrary_costs, brute_force};
    use petgraph::{algo::dijkstra, graph::DiGraph};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_pair_has_the_optimum_of_all_simple_paths_within_the_bound(
            cost in arbitrary_costs(2..=7),
            max_transit in 0..=5usize,
            hop in prop_oneof![Just(0.0), Just(0.25)],
        ) {
            let best = best_paths_with_hop_cost(&cost, max_transit, hop);
            for from in 0..cost.len() {
                for to in 0..cost.len() {
                    let optimum = brute_force(&cost, from, to, max_transit, hop);
                    prop_assert_eq!(best.cost(from, to), optimum);
                    let Some(path) = best.path(from, to) else {
                        prop_assert_eq!(optimum, f64::INFINITY);
                        continue;
                    };
                    prop_assert!(path.len() <= max_transit + 2);
                    let mut once = path.clone();
                    once.sort_unstable();
                    once.dedup();
                    prop_assert_eq!(once.len(), path.len(), "{:?} visits a relay twice", path);
                    let transit = best.transit(from, to).len() as f64;
                    prop_assert_eq!(path_cost(&cost, &path) + hop * transit, optimum);
                }
            }
        }

        #[test]
        fn without_a_bound_it_agrees_with_dijkstra(cost in arbitrary_costs(2..=24)) {
            let n = cost.len();
            let mut graph = DiGraph::<(), f64>::new();
            let nodes: Vec<_> = (0..n).map(|_| graph.add_node(())).collect();
            for i in 0..n {
                for j in (0..n).filter(|&j| cost.is_up(i, j)) {
                    graph.add_edge(nodes[i], nodes[j], cost.get(i, j));
                }
            }
            let best = best_paths(&cost, n);
            for from in 0..n {
                let reference = dijkstra(&graph, nodes[from], None, |edge| *edge.weight());
                for (to, node) in nodes.iter().enumerate() {
                    let optimum = reference.get(node).copied().unwrap_or(f64::INFINITY);
                    prop_assert_eq!(best.cost(from, to), optimum);
                }
            }
        }
    }

    #[test]
    fn equal_paths_go_to_the_one_with_fewer_links_then_to_lower_indices() {
        let mut cost = CostMatrix::from_fn(4, |_, _| 10.0);
        cost.set(0, 1, 4.0);
        cost.set(1, 3, 6.0);
        cost.set(0, 2, 5.0);
        cost.set(2, 3, 5.0);
        assert_eq!(best_paths(&cost, 4).path(0, 3), Some(vec![0, 3]));
        cost.set(0, 3, 11.0);
        assert_eq!(best_paths(&cost, 4).path(0, 3), Some(vec![0, 1, 3]));
    }

    #[test]
    fn a_relay_reaches_itself_at_no_cost() {
        let best = best_paths(&CostMatrix::new(2), 4);
        assert_eq!((best.cost(1, 1), best.path(1, 1)), (0.0, Some(vec![1])));
        assert_eq!((best.cost(0, 1), best.path(0, 1)), (f64::INFINITY, None));
        assert!(best_paths(&CostMatrix::new(0), 4).is_empty());
    }
}
