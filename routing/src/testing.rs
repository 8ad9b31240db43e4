//! Graphs and references for the tests of this crate.

use crate::{cost::CostMatrix, tree::TreeRules};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::ops::RangeInclusive;

/// Any directed graph: costs are multiples of 1/4, so that sums are exact and ties are common;
/// some links are missing, some cost nothing.
pub(crate) fn arbitrary_costs(n: RangeInclusive<usize>) -> impl Strategy<Value = CostMatrix> {
    n.prop_flat_map(|n| {
        let cell = prop_oneof![
            1 => Just(f64::INFINITY),
            6 => (0..400u32).prop_map(|quarters| f64::from(quarters) / 4.0),
        ];
        proptest::collection::vec(cell, n * n)
            .prop_map(move |cells| CostMatrix::from_fn(n, |i, j| cells[i * n + j]))
    })
}

/// Places on a map, links as long as the distance, each direction made longer by a bad route of
/// its own: what real networks look like. `missing` is the share of links that do not exist.
pub(crate) fn metric_costs(n: usize, seed: u64, missing: f64) -> CostMatrix {
    let mut rng = Pcg64::seed_from_u64(seed);
    let places: Vec<(f64, f64)> = (0..n)
        .map(|_| (rng.random_range(0.0..150.0), rng.random_range(0.0..100.0)))
        .collect();
    CostMatrix::from_fn(n, |i, j| {
        let (dx, dy) = (places[i].0 - places[j].0, places[i].1 - places[j].1);
        let stretch: f64 = rng.random_range(0.0..1.0);
        if rng.random_bool(missing) {
            return f64::INFINITY;
        }
        1.0 + dx.hypot(dy) * (1.0 + 1.5 * stretch * stretch)
    })
}

/// A tree by Dijkstra's algorithm as it stands in the book, on a dense graph: parents (`None` for
/// none) and costs. Among equals the fewer links win, then the parent that is nearer to the root,
/// then the lower index.
pub(crate) fn plain_tree(
    away: &CostMatrix,
    root: usize,
    rules: &TreeRules,
) -> (Vec<Option<usize>>, Vec<f64>) {
    let n = away.len();
    let (mut parent, mut cost) = (vec![None; n], vec![f64::INFINITY; n]);
    let (mut depth, mut open) = (vec![0; n], vec![true; n]);
    cost[root] = 0.0;
    loop {
        let nearest = (0..n)
            .filter(|&relay| open[relay] && cost[relay].is_finite())
            .min_by(|&a, &b| cost[a].total_cmp(&cost[b]).then(depth[a].cmp(&depth[b])));
        let Some(at) = nearest else {
            return (parent, cost);
        };
        open[at] = false;
        if !(at == root || rules.may_cross(at)) || depth[at] >= rules.max_links {
            continue;
        }
        for child in (0..n).filter(|&child| open[child]) {
            let total = cost[at] + away.get(at, child);
            let fewer = total == cost[child] && depth[at] + 1 < depth[child];
            if total.is_finite() && (total < cost[child] || fewer) {
                (parent[child], cost[child], depth[child]) = (Some(at), total, depth[at] + 1);
            }
        }
    }
}

/// The least cost over all simple paths with at most `max_transit` relays between.
pub(crate) fn brute_force(
    cost: &CostMatrix,
    from: usize,
    to: usize,
    max_transit: usize,
    per_transit_ms: f64,
) -> f64 {
    fn visit(
        cost: &CostMatrix,
        path: &mut Vec<usize>,
        so_far: f64,
        to: usize,
        left: usize,
        hop: f64,
    ) -> f64 {
        let at = path[path.len() - 1];
        if at == to {
            return so_far;
        }
        let mut best = so_far + cost.get(at, to);
        if left > 0 {
            for via in 0..cost.len() {
                if via != to && !path.contains(&via) && cost.is_up(at, via) {
                    path.push(via);
                    let onward = so_far + cost.get(at, via) + hop;
                    best = best.min(visit(cost, path, onward, to, left - 1, hop));
                    path.pop();
                }
            }
        }
        best
    }
    visit(cost, &mut vec![from], 0.0, to, max_transit, per_transit_ms)
}
