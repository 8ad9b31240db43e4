//! Spreading load: when the spread is made, kept, and ended.

use std::time::Duration;

use super::PlannerConfig;
use crate::{
    cost::CostMatrix,
    load::{LoadPlan, LoadProblem, spread},
    tree::{InTree, TreeRules},
};

/// How often load is looked at: demand is reported once a second.
const REVIEW: Duration = Duration::from_secs(1);

/// A spread ends when without it all links would be within this share of the target.
const CLEARLY_LOWER: f64 = 0.85;

/// A new spread must lower the highest utilisation by this much to be worth a change.
const WORTH: f64 = 0.01;

/// The spread of one profile's load.
#[derive(Debug, Clone, Default)]
pub(super) struct Split {
    pub(super) plan: LoadPlan,
    reviewed_at: Option<Duration>,
    over_since: Option<Duration>,
    lower_since: Option<Duration>,
    /// When the last spread was computed.
    tried_at: Option<Duration>,
}

/// What is spread over what.
#[derive(Clone, Copy)]
pub(super) struct Traffic<'a> {
    pub(super) cost: &'a CostMatrix,
    pub(super) rules: &'a TreeRules,
    pub(super) primary: &'a [InTree],
    pub(super) demand: &'a [f64],
    pub(super) capacity: &'a [f64],
    /// From profiles before.
    pub(super) background: &'a [f64],
}

impl Split {
    /// Keeps, makes or ends the spread; what has changed, in words.
    pub(super) fn step(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        names: &[String],
        traffic: &Traffic<'_>,
        changed: bool,
    ) -> Option<String> {
        let broken = self.is_broken(traffic);
        let due = self.reviewed_at.is_none_or(|at| now >= at + REVIEW);
        if !due && !changed && !broken {
            return None;
        }
        self.reviewed_at = Some(now);
        let spread_now = !self.plan.weights.is_empty();
        let load = traffic.load(&self.plan);
        let highest = traffic.highest(&load);
        let allowed = match spread_now {
            true => config.load.limit,
            false => config.load.target,
        };
        match highest {
            Some((_, _, utilisation)) if utilisation > allowed => {
                self.over_since.get_or_insert(now);
            }
            _ => self.over_since = None,
        }
        let rested = self.tried_at.is_none_or(|at| now >= at + config.load_rest);
        let over = self
            .over_since
            .is_some_and(|since| now >= since + config.hold);
        if broken || (over && rested) {
            self.tried_at = Some(now);
            let plan = spread(&LoadProblem {
                cost: traffic.cost,
                rules: traffic.rules,
                primary: &traffic.primary.iter().collect::<Vec<_>>(),
                demand: traffic.demand,
                capacity: traffic.capacity,
                background: traffic.background,
                previous: None,
                config: config.load,
            });
            let utilisation = |load| traffic.highest(load).map_or(0.0, |found| found.2);
            let after = utilisation(&traffic.load(&plan));
            let before = highest.map_or(0.0, |found| found.2);
            if plan.weights != self.plan.weights && (broken || after < before - WORTH) {
                let reason = match (broken, highest) {
                    (false, Some((from, to, _))) => format!(
                        "load is spread anew: {} to {} at {:.0} %, the fullest link then at {:.0} %",
                        names[from],
                        names[to],
                        100.0 * before,
                        100.0 * after
                    ),
                    _ => "load is spread anew: a way of the spread was gone".to_owned(),
                };
                self.plan = plan;
                self.lower_since = None;
                return Some(reason);
            }
        }
        self.end_when_lower(config, now, traffic)
    }

    /// Ends the spread when there has been no need of it for long.
    fn end_when_lower(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        traffic: &Traffic<'_>,
    ) -> Option<String> {
        if self.plan.weights.is_empty() {
            return None;
        }
        let without = traffic.highest(&traffic.load(&LoadPlan::default()));
        if without.is_some_and(|found| found.2 > CLEARLY_LOWER * config.load.target) {
            self.lower_since = None;
            return None;
        }
        let since = *self.lower_since.get_or_insert(now);
        if now < since + config.choice_rest {
            return None;
        }
        *self = Self {
            reviewed_at: Some(now),
            ..Self::default()
        };
        Some("load is not spread any more: the best ways carry it".to_owned())
    }

    /// Whether a way that is in use for the spread has lost a link.
    fn is_broken(&self, traffic: &Traffic<'_>) -> bool {
        self.plan.weights.iter().any(|(&(from, to), weights)| {
            let extra = self.plan.extra.get(&to).map_or(&[][..], Vec::as_slice);
            extra.iter().zip(&weights[1..]).any(|(tree, &weight)| {
                weight > 0 && !is_usable(traffic.cost, traffic.rules, tree.path(from).as_deref())
            })
        })
    }
}

fn is_usable(cost: &CostMatrix, rules: &TreeRules, path: Option<&[usize]>) -> bool {
    path.is_some_and(|path| {
        let links = path.windows(2).all(|link| cost.is_up(link[0], link[1]));
        let transit = path.iter().skip(1).rev().skip(1);
        links && transit.copied().all(|relay| rules.may_cross(relay))
    })
}

impl Traffic<'_> {
    /// Bytes per second on each link, the background included.
    pub(super) fn load(&self, plan: &LoadPlan) -> Vec<f64> {
        let n = self.cost.len();
        let mut load = match self.background.is_empty() {
            true => vec![0.0; n * n],
            false => self.background.to_vec(),
        };
        for (pair, &offered) in self.demand.iter().enumerate() {
            // Not a number is no demand.
            if !(offered > 0.0 && offered.is_finite()) {
                continue;
            }
            let (from, to) = (pair / n, pair % n);
            let weights = plan.weights.get(&(from, to)).copied().unwrap_or([0; 4]);
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let extra = plan.extra.get(&to).map_or(&[][..], Vec::as_slice);
            let trees = std::iter::once(&self.primary[to]).chain(extra);
            for (number, tree) in trees.enumerate() {
                let share = match (sum > 0.0, number) {
                    (true, _) => f64::from(weights[number]) / sum,
                    (false, 0) => 1.0,
                    (false, _) => 0.0,
                };
                if share == 0.0 {
                    continue;
                }
                let mut at = from;
                while let Some(next) = tree.next_hop(at) {
                    load[at * n + next] += share * offered;
                    at = next;
                }
            }
        }
        load
    }

    /// The fullest link of known capacity: from, to, utilisation.
    fn highest(&self, load: &[f64]) -> Option<(usize, usize, f64)> {
        let n = self.cost.len();
        load.iter()
            .zip(self.capacity)
            .enumerate()
            .filter(|(_, (_, capacity))| capacity.is_finite() && **capacity > 0.0)
            .map(|(link, (load, capacity))| (link / n, link % n, load / capacity))
            .max_by(|a, b| a.2.total_cmp(&b.2))
    }
}
