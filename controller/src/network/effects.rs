//! What plans gain over direct links, and what rules that are not applied would change.

use std::time::Duration;

use serde::Serialize;
use tradewind_proto::RelayIndex;
use tradewind_routing::{CostMatrix, TreeRules, in_trees, path_cost};

use super::{
    Network,
    costs::{Costs, PROFILES},
    plan::Plan,
    rules::AllRules,
};
use crate::policy::{Compiled, ObservedKind, Policy, ProfileName};

/// What a profile's ways save against direct links, over all ordered pairs that have one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gain {
    /// `realtime` or `economy`.
    pub profile: &'static str,
    /// Whether it is applied: `enforce`, or only computed: `observe`.
    pub mode: &'static str,
    /// Pairs with a direct link.
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
    /// Ordered pairs that would take another way.
    pub rerouted: usize,
    /// Of which there would be none at all.
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

#[derive(Debug)]
struct Side {
    cost: [CostMatrix; PROFILES],
    delay_ms: [CostMatrix; PROFILES],
    rules: [TreeRules; PROFILES],
    pins: [Vec<Vec<usize>>; PROFILES],
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
                for &from in members.iter().filter(|&&from| cost.is_up(from, to)) {
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
            let before = Side::new(policy, costs, rules);
            let mut after = Side::new(policy, costs, rules);
            match &rule.kind {
                ObservedKind::Forbid(forbidden) => {
                    for rules in &mut after.rules {
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
            rules: std::array::from_fn(|profile| rules[profile][0].clone()),
            pins: policy.pins.clone(),
        }
    }

    /// The ways of a profile to one relay, from all others: pinned, else the best.
    fn ways(
        &self,
        profile: usize,
        to: usize,
        tree: &tradewind_routing::InTree,
    ) -> Vec<Option<Vec<usize>>> {
        let cost = &self.cost[profile];
        (0..cost.len())
            .map(|from| {
                let pinned = self.pins[profile].iter().find(|path| {
                    path.first() == Some(&from)
                        && path.last() == Some(&to)
                        && path_cost(cost, path).is_finite()
                });
                pinned.cloned().or_else(|| tree.path(from))
            })
            .collect()
    }
}

impl Trial {
    /// By profile, what the second state changes against the first, both with the best ways at
    /// once (no margins, no waiting).
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        let effect = |profile: ProfileName| {
            let at = profile as usize;
            let [before, after] = &self.sides;
            let trees = |side: &Side| in_trees(&side.cost[at], &side.rules[at]);
            let (trees_before, trees_after) = (trees(before), trees(after));
            let (mut rerouted, mut without_way) = (0, 0);
            let mut worst: Option<(usize, usize, f64)> = None;
            for to in (0..self.names.len()).filter(|&to| self.live[to]) {
                let old = before.ways(at, to, &trees_before[to]);
                let new = after.ways(at, to, &trees_after[to]);
                for from in (0..self.names.len()).filter(|&from| from != to && self.live[from]) {
                    if old[from] == new[from] {
                        continue;
                    }
                    rerouted += 1;
                    let (Some(old), Some(new)) = (&old[from], &new[from]) else {
                        without_way += usize::from(new[from].is_none());
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
                rerouted,
                without_way,
                worst: worst.map(|(from, to, added_ms)| WorstPair {
                    from: self.names[from].clone(),
                    to: self.names[to].clone(),
                    added_ms,
                }),
            }
        };
        ProfileName::ALL.into_iter().map(effect).collect()
    }
}
