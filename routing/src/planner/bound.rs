//! The bound on latency of a profile that is not routed by delay alone: pairs for which its best
//! tree takes too long a way use a tree grown on delay.

use std::{collections::BTreeMap, time::Duration};

use super::{LatencyBound, PlannerConfig, forest::Forest};
use crate::{cost::CostMatrix, tree::TreeRules};

/// A pair goes back to the profile's own tree when that is within this share of the bound.
const WELL_WITHIN: f64 = 0.9;

/// How often it is looked whether pairs can go back.
const REVIEW: Duration = Duration::from_secs(1);

/// Which pairs are over the bound, with the trees they use.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) forest: Forest,
    /// (origin, destination) → when it was moved to the fallback tree.
    pub(super) moved: BTreeMap<(usize, usize), Duration>,
    over_since: BTreeMap<(usize, usize), Duration>,
    reviewed_at: Option<Duration>,
    /// Delays have changed since.
    outdated: bool,
}

/// Delays of the links that can be used.
fn usable_delays(bound: &LatencyBound<'_>, cost: &CostMatrix) -> CostMatrix {
    CostMatrix::from_fn(cost.len(), |from, to| match cost.is_up(from, to) {
        true => bound.delay_ms.get(from, to),
        false => f64::INFINITY,
    })
}

impl Bound {
    pub(super) fn new(bound: &LatencyBound<'_>, cost: &CostMatrix, rules: &TreeRules) -> Self {
        Self {
            forest: Forest::best(usable_delays(bound, cost).transposed(), rules),
            moved: BTreeMap::new(),
            over_since: BTreeMap::new(),
            reviewed_at: None,
            outdated: true,
        }
    }

    /// Takes in delays and costs of now.
    pub(super) fn follow(&mut self, bound: &LatencyBound<'_>, cost: &CostMatrix, quantum_ms: f64) {
        let delays = usable_delays(bound, cost).transposed();
        self.outdated |= self.forest.follow(&delays, quantum_ms);
    }

    /// Looks which pairs are over the bound on `primary`, the profile's own trees (`changed` if
    /// they are not those of the step before); what has changed, in words.
    pub(super) fn step(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        names: &[String],
        bound: &LatencyBound<'_>,
        primary: &Forest,
        changed: bool,
    ) -> Option<String> {
        let due = self.reviewed_at.is_none_or(|at| now >= at + REVIEW);
        if !due && !changed && !self.outdated && self.over_since.is_empty() {
            return None;
        }
        let first = self.reviewed_at.is_none();
        self.reviewed_at = Some(now);
        self.outdated = false;
        let away = self.forest.field().away();
        let (mut to_fallback, mut back) = (Vec::new(), 0);
        for (own, fallback) in primary.slots().iter().zip(self.forest.slots()) {
            let to = own.tree.root;
            let own = own.tree.costs_under(away, None);
            let best = fallback.tree.costs_under(away, None);
            for from in (0..own.len()).filter(|&from| from != to) {
                let limit = bound.factor * best[from] + bound.slack_ms;
                let pair = (from, to);
                if let Some(&at) = self.moved.get(&pair) {
                    let rested = now >= at + config.choice_rest;
                    let lost = !best[from].is_finite();
                    if lost || (rested && own[from] <= WELL_WITHIN * limit) {
                        self.moved.remove(&pair);
                        back += 1;
                    }
                } else if own[from].is_finite() && own[from] > limit {
                    let since = *self.over_since.entry(pair).or_insert(now);
                    if first || now >= since + config.hold {
                        to_fallback.push((pair, own[from], best[from]));
                    }
                } else if !self.over_since.is_empty() {
                    self.over_since.remove(&pair);
                }
            }
        }
        for (pair, ..) in &to_fallback {
            self.over_since.remove(pair);
            self.moved.insert(*pair, now);
        }
        let worst = to_fallback
            .iter()
            .max_by(|a, b| (a.1 - a.2).total_cmp(&(b.1 - b.2)));
        if let Some(&((from, to), own, best)) = worst {
            return Some(format!(
                "{} pairs over the bound on latency take the fast way, as {} to {}: {best:.1} ms \
                 instead of {own:.1} ms",
                to_fallback.len(),
                names[from],
                names[to]
            ));
        }
        (back > 0).then(|| format!("{back} pairs are well within the bound on latency again"))
    }

    /// Whether some pair with this destination uses the fallback tree.
    pub(super) fn is_used_to(&self, to: usize) -> bool {
        self.moved.keys().any(|pair| pair.1 == to)
    }
}
