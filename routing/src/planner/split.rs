//! Spreading load: when the spread is made, kept, and ended.

use std::time::Duration;

use super::PlannerConfig;
use crate::{
    cost::CostMatrix,
    load::{LoadPlan, LoadProblem},
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
    /// Keeps, makes (by `spread`) or ends the spread; what has changed, in words. It is made when
    /// some link has been over the target for the hold time, made anew when one is over the limit,
    /// and ended when all have been well below the target without it for as long as a choice
    /// rests: so it does not follow every breath of the demand.
    pub(super) fn step(
        &mut self,
        config: &PlannerConfig,
        now: Duration,
        names: &[String],
        traffic: &Traffic<'_>,
        changed: bool,
        spread: impl Fn(&LoadProblem<'_>) -> LoadPlan,
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
                previous: spread_now.then_some(&self.plan),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Tree, in_trees};
    use std::{cell::Cell, collections::BTreeMap};

    /// Relays 0 and 1 send to 3: directly, or over 2. The direct links carry 100 each.
    struct Net {
        split: Split,
        now: Duration,
        cost: CostMatrix,
        demand: Vec<f64>,
        capacity: Vec<f64>,
        spreads: Cell<usize>,
    }

    impl Net {
        fn new() -> Self {
            let mut capacity = vec![f64::INFINITY; 16];
            capacity[3] = 100.0;
            capacity[4 + 3] = 100.0;
            Self {
                split: Split::default(),
                now: Duration::ZERO,
                cost: CostMatrix::from_fn(4, |_, _| 10.0),
                demand: vec![0.0; 16],
                capacity,
                spreads: Cell::new(0),
            }
        }

        /// Halves over 2 what is more than 60 on a direct link.
        fn spread(&self, problem: &LoadProblem<'_>) -> LoadPlan {
            self.spreads.set(self.spreads.get() + 1);
            let away = problem.cost.transposed();
            let over_2 = InTree(Tree::from_parents(3, vec![2, 2, 3, u16::MAX], &away));
            let mut plan = LoadPlan {
                extra: BTreeMap::from([(3, vec![over_2])]),
                ..LoadPlan::default()
            };
            for from in 0..2 {
                if problem.demand[from * 4 + 3] > 60.0 && problem.cost.is_up(from, 2) {
                    plan.weights.insert((from, 3), [128, 127, 0, 0]);
                }
            }
            plan
        }

        /// Steps for seconds, five a second; how often the spread changed.
        fn run(&mut self, seconds: u32) -> usize {
            let mut changes = 0;
            for _ in 0..seconds * 5 {
                self.now += Duration::from_millis(200);
                let mut split = std::mem::take(&mut self.split);
                let names: Vec<String> = (0..4).map(|relay| format!("r{relay}")).collect();
                let rules = TreeRules::default();
                let traffic = Traffic {
                    cost: &self.cost,
                    rules: &rules,
                    primary: &in_trees(&self.cost, &rules),
                    demand: &self.demand,
                    capacity: &self.capacity,
                    background: &[],
                };
                let config = PlannerConfig::default();
                let spread = |problem: &LoadProblem<'_>| self.spread(problem);
                let reason = split.step(&config, self.now, &names, &traffic, false, spread);
                changes += usize::from(reason.is_some());
                self.split = split;
            }
            changes
        }
    }

    #[test]
    fn load_over_the_target_is_spread_after_the_hold_time_and_stays_so_while_it_fits() {
        let mut net = Net::new();
        net.demand[3] = 69.0;
        assert_eq!(net.run(20), 0);
        assert_eq!(net.spreads.get(), 0, "nothing to do, nothing computed");
        net.demand[3] = 75.0;
        assert_eq!(net.run(1), 0, "not at once");
        assert_eq!(net.run(3), 1);
        assert_eq!(net.split.plan.weights[&(0, 3)], [128, 127, 0, 0]);
        // Up and down: 55 without a spread would be well below the target, but not for long.
        for _ in 0..10 {
            net.demand[3] = 55.0;
            assert_eq!(net.run(20), 0);
            net.demand[3] = 140.0;
            assert_eq!(net.run(20), 0);
        }
        assert_eq!(net.spreads.get(), 1);
    }

    #[test]
    fn it_ends_when_the_load_has_been_clearly_lower_for_a_minute() {
        let mut net = Net::new();
        net.demand[3] = 75.0;
        net.run(4);
        net.demand[3] = 65.0;
        assert_eq!(net.run(200), 0, "below the target, but not clearly");
        net.demand[3] = 50.0;
        assert_eq!(net.run(59), 0);
        assert_eq!(net.run(4), 1);
        assert!(net.split.plan.weights.is_empty());
    }

    #[test]
    fn a_link_over_the_limit_makes_it_anew_and_what_cannot_be_helped_is_tried_seldom() {
        let mut net = Net::new();
        net.demand[3] = 75.0;
        net.run(4);
        net.demand[4 + 3] = 78.0;
        assert_eq!(net.run(30), 0, "over the target, within the limit");
        net.demand[4 + 3] = 90.0;
        assert_eq!(net.run(5), 1);
        assert_eq!(net.split.plan.weights.len(), 2);
        let before = net.spreads.get();
        net.demand[3] = 300.0;
        assert_eq!(
            net.run(100),
            0,
            "half of 300 is too much, and there is nothing better"
        );
        assert!((5..=10).contains(&(net.spreads.get() - before)));
    }

    #[test]
    fn a_spread_that_has_lost_a_way_is_made_anew_at_once() {
        let mut net = Net::new();
        net.demand[3] = 75.0;
        net.run(20);
        net.cost.set(0, 2, f64::INFINITY);
        let before = net.now;
        while !net.split.plan.weights.is_empty() {
            net.run(1);
            assert!(net.now < before + Duration::from_secs(2));
        }
    }
}
