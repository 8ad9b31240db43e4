//! What plans gain over direct links, and what rules that are not applied would change.

use std::{collections::BTreeSet, time::Duration};

use serde::Serialize;
use tradewind_proto::{RelayIndex, control::Selector};
use tradewind_routing::{CostMatrix, InTree, in_trees, path_cost};

use super::{
    Network,
    costs::{Costs, PROFILES},
    plan::Plan,
    rules::AllRules,
};
use crate::policy::{Compiled, Mode, ObservedKind, Policy, ProfileName};

/// What a profile's ways save against direct links, over all ordered pairs that have one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gain {
    /// `realtime` or `economy`.
    pub profile: &'static str,
    /// Whether it is applied: `enforce`, or only computed: `observe`.
    pub mode: &'static str,
    /// Pairs with a direct link, unless that is for busy hours and it is none of them.
    pub pairs: usize,
    /// Of which another way is better by the profile's costs.
    pub improved: usize,
    /// What the planned ways cost less than the direct links, milliseconds-equivalents: the mean
    /// over all pairs,
    pub mean_saved_ms: f64,
    /// the most,
    pub most_saved_ms: f64,
    /// and the mean over what flows, where demand is known.
    pub by_demand_saved_ms: Option<f64>,
}

/// What a rule that is only observed would change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObservedRule {
    /// Which: kind and number.
    pub rule: String,
    /// By profile.
    pub effects: Vec<Effect>,
}

/// What one set of costs and rules changes against another, in one profile.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effect {
    /// `realtime` or `economy`.
    pub profile: &'static str,
    /// Which traffic, such as `app bank`; empty: all that no rule of an app or group is about.
    pub traffic: Vec<String>,
    /// Ordered pairs that would take another way.
    pub rerouted: usize,
    /// Of which would have no way at all.
    pub without_way: usize,
    /// The pair whose delay would grow most, if any would.
    pub worst: Option<WorstPair>,
}

/// The pair that suffers most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorstPair {
    /// Where its way begins.
    pub from: String,
    /// Where its way ends.
    pub to: String,
    /// Added one-way delay, milliseconds.
    pub added_ms: f64,
}

/// Two states of costs and rules, to be compared outside of any lock ([`Trial::effects`]).
#[derive(Debug)]
pub struct Trial {
    names: Vec<String>,
    live: Vec<bool>,
    /// Before and after.
    sides: [Side; 2],
}

#[derive(Debug, Clone)]
struct Side {
    cost: [CostMatrix; PROFILES],
    delay_ms: [CostMatrix; PROFILES],
    rules: AllRules,
    pins: [Vec<Vec<usize>>; PROFILES],
    /// Profiles whose packets go direct where the direct link works.
    observed: [bool; PROFILES],
    /// `economy` takes no way that is slower than so many times the fastest and so many
    /// milliseconds.
    latency_bound: (f64, f64),
    /// Which traffic obeys a restricted rule set, the more special first.
    selectors: Vec<Selector>,
}

/// The best ways to each relay in one profile and rule set.
struct Ways<'a> {
    side: &'a Side,
    profile: usize,
    rules: usize,
    trees: Vec<InTree>,
    /// By delay alone, where latency is bounded.
    fastest: Option<Vec<InTree>>,
}

impl Network {
    /// What `policy` would change against the present one: everything that takes long is left to
    /// [`Trial::effects`].
    #[must_use]
    pub fn trial(&self, now: Duration, policy: &Policy) -> Trial {
        let reachable = self.links.reachable(now, &self.registry);
        let live: Vec<bool> = self
            .registry
            .iter()
            .map(|(index, relay)| !relay.is_retired() && reachable[index.as_usize()])
            .collect();
        let side = |policy: &Policy| {
            let compiled = self.compile(now, policy);
            let costs = self.costs(now, &compiled);
            let rules = self.rules(&compiled, &costs, &live);
            Side::new(&compiled, &costs, &rules)
        };
        Trial {
            names: self.registry.names(),
            sides: [side(&self.policy.policy), side(policy)],
            live,
        }
    }

    pub(super) fn gains_of(
        &self,
        plan: &Plan,
        costs: &Costs,
        demand: &[Vec<f64>; PROFILES],
    ) -> Vec<Gain> {
        let n = costs.delay_ms.len();
        let members = plan.member_indices();
        let gain = |profile: ProfileName| {
            let at = profile as usize;
            let cost = &costs.profiles[at].cost;
            let tables = &plan.tables.profiles[at];
            let (mut pairs, mut improved, mut sum, mut most) = (0, 0, 0.0, 0.0f64);
            let (mut flowing, mut flowing_sum) = (0.0, 0.0);
            for &to in &members {
                // A last resort outside of its hours is nothing to compare with.
                let is_direct = |&&from: &&usize| {
                    cost.is_up(from, to)
                        && costs.get(at, from, to).is_none_or(|link| !link.off_hours)
                };
                for &from in members.iter().filter(is_direct) {
                    pairs += 1;
                    let flow = demand[at].get(from * n + to).copied().unwrap_or(0.0);
                    flowing += flow;
                    let path = tables.path(0, from, to);
                    let Some(path) = path.filter(|path| path.len() > 2) else {
                        continue;
                    };
                    let saved = cost.get(from, to) - path_cost(cost, &path);
                    if saved.is_finite() && saved > 0.0 {
                        improved += 1;
                        sum += saved;
                        flowing_sum += flow * saved;
                        most = most.max(saved);
                    }
                }
            }
            Gain {
                profile: profile.word(),
                mode: if plan.is_observed(at) {
                    "observe"
                } else {
                    "enforce"
                },
                pairs,
                improved,
                mean_saved_ms: if pairs == 0 { 0.0 } else { sum / pairs as f64 },
                most_saved_ms: most,
                by_demand_saved_ms: (flowing > 0.0).then(|| flowing_sum / flowing),
            }
        };
        ProfileName::ALL.into_iter().map(gain).collect()
    }

    pub(super) fn effects_of_observed(
        &self,
        policy: &Compiled,
        costs: &Costs,
        rules: &AllRules,
        plan: &Plan,
    ) -> Vec<ObservedRule> {
        let members = plan.member_indices();
        let mut live = vec![false; self.registry.len()];
        for member in members {
            live[member] = true;
        }
        let observed = policy.observed.iter().map(|rule| {
            let mut before = Side::new(policy, costs, rules);
            before.selectors.clear(); // what is restricted anyway is not asked about
            let mut after = before.clone();
            match &rule.kind {
                ObservedKind::Forbid(forbidden) => {
                    for rules in after.rules.iter_mut().flatten() {
                        for (closed, &forbidden) in rules.no_transit.iter_mut().zip(forbidden) {
                            *closed |= forbidden;
                        }
                    }
                }
                ObservedKind::Pin(path) => {
                    for pins in &mut after.pins {
                        pins.push(path.clone());
                    }
                }
            }
            let trial = Trial {
                names: self.registry.names(),
                live: live.clone(),
                sides: [before, after],
            };
            ObservedRule {
                rule: rule.rule.clone(),
                effects: trial.effects(),
            }
        });
        observed.collect()
    }

    /// What plan and observed rules gain and change, as last computed.
    #[must_use]
    pub fn gains(&self) -> (&[Gain], &[ObservedRule]) {
        (&self.gains, &self.observed_rules)
    }

    pub(super) fn relay_name(&self, index: usize) -> String {
        self.registry
            .get(RelayIndex(index as u16))
            .name()
            .to_owned()
    }
}

impl Side {
    fn new(policy: &Compiled, costs: &Costs, rules: &AllRules) -> Self {
        let n = costs.delay_ms.len();
        Self {
            cost: std::array::from_fn(|profile| costs.profiles[profile].cost.clone()),
            delay_ms: std::array::from_fn(|profile| {
                CostMatrix::from_fn(n, |from, to| {
                    let link = costs.get(profile, from, to);
                    let metrics = link.and_then(|link| link.measured.metrics);
                    metrics.map_or(f64::INFINITY, |metrics| metrics.delay_ms)
                })
            }),
            rules: rules.clone(),
            pins: policy.pins.clone(),
            observed: std::array::from_fn(|at| policy.profiles[at].mode == Mode::Observe),
            latency_bound: (policy.latency_factor, policy.latency_slack_ms),
            selectors: policy.selectors.clone(),
        }
    }

    /// The rule set of some traffic: the first that fits, as at the ingress edge.
    fn rule_set(&self, traffic: &Selector) -> usize {
        let fits = |selector: &&Selector| {
            (selector.app.is_empty() || selector.app == traffic.app)
                && (selector.group.is_empty() || selector.group == traffic.group)
        };
        let found = self.selectors.iter().find(fits);
        found.map_or(0, |selector| selector.rules as usize)
    }

    fn ways(&self, profile: usize, rules: usize) -> Ways<'_> {
        let (cost, delay_ms) = (&self.cost[profile], &self.delay_ms[profile]);
        let is_bounded = profile == ProfileName::Economy as usize && rules == 0;
        let rules_of = &self.rules[profile][rules];
        Ways {
            side: self,
            profile,
            rules,
            trees: in_trees(cost, rules_of),
            fastest: is_bounded.then(|| {
                let usable =
                    CostMatrix::from_fn(cost.len(), |from, to| match cost.is_up(from, to) {
                        true => delay_ms.get(from, to),
                        false => f64::INFINITY,
                    });
                in_trees(&usable, rules_of)
            }),
        }
    }
}

impl Ways<'_> {
    /// As packets would go: direct if the profile is only observed, pinned, else the best that is
    /// not too slow.
    fn between(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        let (cost, delay_ms) = (
            &self.side.cost[self.profile],
            &self.side.delay_ms[self.profile],
        );
        if self.side.observed[self.profile] && self.rules == 0 && cost.is_up(from, to) {
            return Some(vec![from, to]);
        }
        let pinned = self.side.pins[self.profile].iter().find(|path| {
            self.rules == 0
                && path.first() == Some(&from)
                && path.last() == Some(&to)
                && path_cost(cost, path).is_finite()
        });
        if let Some(path) = pinned {
            return Some(path.clone());
        }
        let best = self.trees[to].path(from)?;
        let (factor, slack_ms) = self.side.latency_bound;
        let fastest = self.fastest.as_ref().and_then(|all| all[to].path(from));
        let too_slow = |fastest: &Vec<usize>| {
            path_cost(delay_ms, &best) > factor * path_cost(delay_ms, fastest) + slack_ms
        };
        Some(fastest.filter(too_slow).unwrap_or(best))
    }
}

impl Trial {
    /// By profile, and by traffic that rules of an app or group are about, what the second state
    /// changes against the first, both with the best ways at once (no margins, no waiting, no
    /// flows spread for load).
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        let mut kinds = vec![((0, 0), Vec::new())];
        for (sets, traffic) in self.restricted() {
            match kinds
                .iter_mut()
                .find(|kind| kind.0 == sets && sets != (0, 0))
            {
                Some(kind) => kind.1.push(traffic),
                None => kinds.push((sets, vec![traffic])),
            }
        }
        let effects = kinds.iter().flat_map(|&(sets, ref traffic)| {
            ProfileName::ALL.map(|profile| self.effect(profile, sets, traffic.clone()))
        });
        effects.collect()
    }

    /// Traffic that has a rule set of its own on either side: both sets, and its name.
    fn restricted(&self) -> BTreeSet<((usize, usize), String)> {
        let [before, after] = &self.sides;
        let selectors = before.selectors.iter().chain(&after.selectors);
        let named = selectors.map(|selector| {
            let sets = (before.rule_set(selector), after.rule_set(selector));
            let words = [("app", &selector.app), ("group", &selector.group)];
            let words = words.iter().filter(|(_, name)| !name.is_empty());
            let words: Vec<String> = words.map(|(word, name)| format!("{word} {name}")).collect();
            (sets, words.join(", "))
        });
        named.collect()
    }

    fn effect(&self, profile: ProfileName, sets: (usize, usize), traffic: Vec<String>) -> Effect {
        let at = profile as usize;
        let [before, after] = &self.sides;
        let (old_ways, new_ways) = (before.ways(at, sets.0), after.ways(at, sets.1));
        let (mut rerouted, mut without_way) = (0, 0);
        let mut worst: Option<(usize, usize, f64)> = None;
        for to in (0..self.names.len()).filter(|&to| self.live[to]) {
            for from in (0..self.names.len()).filter(|&from| from != to && self.live[from]) {
                let (old, new) = (old_ways.between(from, to), new_ways.between(from, to));
                if old == new {
                    continue;
                }
                rerouted += 1;
                let (Some(old), Some(new)) = (&old, &new) else {
                    without_way += usize::from(new.is_none());
                    continue;
                };
                let added =
                    path_cost(&after.delay_ms[at], new) - path_cost(&before.delay_ms[at], old);
                if added > worst.map_or(0.0, |(_, _, most)| most) && added.is_finite() {
                    worst = Some((from, to, added));
                }
            }
        }
        Effect {
            profile: profile.word(),
            traffic,
            rerouted,
            without_way,
            worst: worst.map(|(from, to, added_ms)| WorstPair {
                from: self.names[from].clone(),
                to: self.names[to].clone(),
                added_ms,
            }),
        }
    }
}
