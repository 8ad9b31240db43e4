//! From measurements and policy to a plan: asking the planner, and what else makes a plan due.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tradewind_proto::{Class, PlanId, RelayIndex};
use tradewind_routing::{
    CostMatrix, LatencyBound, PlanTables, PlannerInput, ProfileInput, ProfileTables,
};

use super::{
    Network,
    costs::{CostInput, Costs, PROFILES},
    history::{By, FINE, PlanEntry},
    plan::{Goal, Ingredients, Plan},
    rules::AllRules,
};
use crate::{
    policy::{Compiled, Mode, Places, ProfileName},
    storage::Record,
};

/// How long after an operator's or a policy's change a plan is taken to come of it: the planner
/// waits that long for a better way to last.
const CAUSE_LASTS: Duration = Duration::from_secs(5);
/// Observed rules are computed along in networks up to this size; beyond it that would hold up
/// plans, and a dry run of the policy says it.
const MOST_OBSERVED: usize = 250;
/// How often the effect of what is only observed is computed, beside at every plan.
const EFFECTS_EVERY: Duration = Duration::from_secs(60);

/// Something beside measurements that may lead to a plan.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    pub(super) by: By,
    pub(super) what: String,
    until: Duration,
}

impl Network {
    pub(super) fn plan(&mut self, now: Duration) {
        self.urgent = None;
        self.next_planning = now + self.config.interval;
        self.retire_the_drained(now);
        let names = self.registry.names();
        let reachable = self.links.reachable(now, &self.registry);
        self.note_the_dead(now, &reachable);
        let live: Vec<bool> = self
            .registry
            .iter()
            .map(|(index, relay)| {
                !relay.is_retired() && (relay.is_online() || reachable[index.as_usize()])
            })
            .collect();
        let policy = self.compiled(now);
        let mut costs = self.costs(now, &policy);
        if self.uplinks.follow(now, &costs, &self.config.planner) {
            costs = self.costs(now, &policy);
        }
        let rules = self.rules(&policy, &costs, &live);
        self.leave_broken_rest(now, &costs, &live, &rules);
        self.note_figures(now, &costs);
        let demand = self.demand_by_profile();
        let profiles: [ProfileInput<'_>; PROFILES] = std::array::from_fn(|profile| ProfileInput {
            cost: &costs.profiles[profile].cost,
            rules: &rules[profile],
            pins: &policy.pins[profile],
            demand: &demand[profile],
            latency_bound: (profile == ProfileName::Economy as usize).then_some(LatencyBound {
                delay_ms: &costs.delay_ms,
                factor: policy.latency_factor,
                slack_ms: policy.latency_slack_ms,
            }),
        });
        let decision = self.planner.step(&PlannerInput {
            now,
            names: &names,
            live: &live,
            expected_live: self.expected,
            profiles: &profiles,
            capacity: &costs.capacity,
        });
        self.stats.usable_links = costs.usable() as u64;
        self.stats.contradicted_links = costs.clamped as u64;
        if self.alert != decision.alert {
            if let Some(alert) = &decision.alert {
                tracing::error!(alert, "keeping the plan");
                self.stats.disbeliefs += 1;
            }
            self.alert = decision.alert;
        }
        let alone = self.tables_without_links(now, &rules);
        let Some(planned) = self
            .planner
            .tables()
            .or(alone.as_ref())
            .map(PlanTables::len)
        else {
            return;
        };
        let members = self.members(now, planned);
        let mut reasons = decision.reasons;
        reasons.extend(self.republish.take());
        if !decision.changed && reasons.is_empty() {
            reasons = self.other_reasons(&policy, &costs, &members);
        }
        if reasons.is_empty() {
            if now >= self.next_effects
                && let Some(active) = self.active.take()
            {
                self.note_effects(now, &policy, &costs, &rules, &active);
                self.active = Some(active);
            }
            return;
        }
        if let Some(tables) = self.planner.tables().cloned().or(alone) {
            let moment = (&policy, &costs, &rules, &live[..]);
            self.make_plan(now, reasons, Arc::new(tables), &members, moment);
        }
    }

    /// What clients send, bytes per second, by profile and ordered pair; empty where nothing is
    /// known to be sent.
    pub(super) fn demand_by_profile(&self) -> [Vec<f64>; PROFILES] {
        let relays: Vec<u32> = (0..self.registry.len() as u32).collect();
        let profile_of = |class: usize| {
            let class = Class::ALL.get(class)?;
            Some(class.profile() as usize)
        };
        let rates = self.demand.rates(&relays, PROFILES, profile_of);
        let mut rates = rates
            .into_iter()
            .map(|rates| match rates.iter().any(|&rate| rate > 0.0) {
                true => rates,
                false => Vec::new(),
            });
        std::array::from_fn(|_| rates.next().unwrap_or_default())
    }

    /// The policy for the relays of this moment.
    pub(super) fn compiled(&mut self, now: Duration) -> Compiled {
        let compiled = self.compile(now, &self.policy.policy);
        if self.policy_problems != compiled.problems {
            for problem in &compiled.problems {
                tracing::warn!(problem, "policy");
            }
            self.policy_problems.clone_from(&compiled.problems);
        }
        compiled
    }

    pub(super) fn compile(&self, now: Duration, policy: &crate::policy::Policy) -> Compiled {
        let names = self.registry.names();
        let regions = self.registry.regions();
        let places = Places {
            names: &names,
            regions: &regions,
        };
        policy.compile(places, self.wall_start + now)
    }

    /// All links with their costs under a policy.
    pub(super) fn costs(&self, now: Duration, policy: &Compiled) -> Costs {
        let measured = self.links.measured(now, &self.registry);
        let input = CostInput {
            now,
            registry: &self.registry,
            policy,
            weights: &self.config.weights,
            traffic: &self.traffic,
            uplinks: &self.uplinks,
        };
        Costs::new(measured, &input)
    }

    /// An operator or a policy has changed something: the plans that follow come of that.
    pub(super) fn note_cause(&mut self, now: Duration, by: By, what: String) {
        self.cause = Some(Cause {
            by,
            what,
            until: now + CAUSE_LASTS,
        });
        self.ask_soon(now);
    }

    /// Numbers a plan and sends it out, unless it is one by choice and those have to wait.
    fn make_plan(
        &mut self,
        now: Duration,
        mut reasons: Vec<String>,
        tables: Arc<PlanTables>,
        members: &BTreeSet<RelayIndex>,
        (policy, costs, rules, live): (&Compiled, &Costs, &AllRules, &[bool]),
    ) {
        let id = PlanId {
            epoch: self.epoch,
            number: self.next_number,
        };
        let repairs = self.active.as_ref().is_none_or(|active| {
            active.id.epoch != self.epoch
                || active.member_set() != *members
                || active.selectors != policy.selectors
                || !active.not_forbidden_yet(&self.forbidden(policy)).is_empty()
                || (0..PROFILES)
                    .any(|profile| active.is_broken(profile, costs, live, &rules[profile]))
        });
        if !repairs && self.held_for().is_some() {
            self.stats.plans_held_back += 1;
            self.held_back.append(&mut reasons);
            self.held_back.dedup();
            self.held_back.truncate(20);
            return;
        }
        reasons.append(&mut self.held_back);
        // Both profiles may have the same to say.
        let mut said = BTreeSet::new();
        reasons.retain(|reason| said.insert(reason.clone()));
        self.cause.take_if(|cause| now >= cause.until);
        let cause = self.cause.take();
        if let Some(cause) = &cause {
            reasons.insert(0, cause.what.clone());
        }
        let observed = std::array::from_fn(|at| policy.profiles[at].mode == Mode::Observe);
        let ingredients = Ingredients {
            members,
            registry: &self.registry,
            tables,
            costs,
            selectors: policy.selectors.clone(),
            forbidden: self.forbidden(policy),
            observed,
        };
        let mut plan = Plan::new(id, now, reasons, ingredients);
        plan.by = cause.map_or(By::Planner, |cause| cause.by);
        plan.repairs = repairs;
        self.next_number += 1;
        if let Some(superseded) = self.supersede() {
            plan.reasons.extend(superseded.reasons);
            // What was to be mended is mended by this one.
            plan.repairs |= superseded.repairs;
        }
        tracing::info!(plan = %plan.id, reasons = plan.reasons.join("; "), "new plan");
        self.stats.plans_made += 1;
        let entry = PlanEntry {
            plan: plan.id.to_string(),
            made_at_unix_ms: self.unix(now).as_millis() as u64,
            by: plan.by,
            reasons: plan.reasons.clone(),
            repairs: plan.repairs,
            relays: plan.members.len(),
            changed_next_hops: self
                .active
                .as_ref()
                .map_or(0, |before| plan.difference(before)),
            unprotected: plan.unprotected(),
            activated_after_ms: None,
            orders: Vec::new(),
        };
        self.history.add(entry.clone());
        self.keep(Record::Plan(entry));
        self.note_effects(now, policy, costs, rules, &plan);
        self.distribute(now, plan, Goal::New);
    }

    /// Why a plan is due though the planner keeps its trees.
    fn other_reasons(
        &self,
        policy: &Compiled,
        costs: &Costs,
        members: &BTreeSet<RelayIndex>,
    ) -> Vec<String> {
        let Some(newest) = self.newest() else {
            return vec!["first plan: no link is measured".to_owned()];
        };
        let mut reasons = Vec::new();
        let known = newest.member_set();
        if known != *members {
            reasons.push(self.who_came_and_went(&known, members));
        }
        if newest.forbidden != self.forbidden(policy) {
            reasons.push("other relays must not be crossed".to_owned());
        }
        if newest.selectors != policy.selectors {
            reasons.push("the traffic of other apps or groups is restricted".to_owned());
        }
        for profile in ProfileName::ALL {
            let observed = policy.profiles[profile as usize].mode == Mode::Observe;
            if observed != newest.is_observed(profile as usize) {
                let word = if observed {
                    "observed only"
                } else {
                    "enforced"
                };
                reasons.push(format!("profile {} is {word}", profile.word()));
            }
        }
        // Not while the measurement is doubted.
        if self.alert.is_none() {
            if newest.direct_is_stale(costs) {
                reasons.push("direct links of an observed profile have come or gone".to_owned());
            }
            let stale = match self.uplinks.is_empty() {
                true => Vec::new(),
                false => newest.stale_uplinks(costs),
            };
            if let Some(&(from, to, uplink)) = stale.first() {
                let name = |at: usize| self.registry.get(RelayIndex(at as u16)).name();
                let more = match stale.len() {
                    1 => String::new(),
                    n => format!(", and {} more", n - 1),
                };
                reasons.push(format!(
                    "uplink {uplink} from {} to {}{more}",
                    name(from),
                    name(to)
                ));
            }
        }
        reasons
    }

    /// Tables for relays between which no link is known, as long as the planner has none: a
    /// network of one relay serves its clients too. Relays get time to measure first.
    fn tables_without_links(&mut self, now: Duration, rules: &AllRules) -> Option<PlanTables> {
        let online = self.registry.online().count();
        if online != self.gathered.0 {
            self.gathered = (online, now);
        }
        let alone = online == 1 && self.expected <= 1;
        let patience = match alone {
            true => self.config.planner.settle,
            false => 2 * self.config.planner.first_plan_within,
        };
        if self.planner.tables().is_some() || online == 0 || now < self.gathered.1 + patience {
            return None;
        }
        let cost = CostMatrix::new(self.registry.len());
        Some(PlanTables {
            profiles: rules
                .iter()
                .map(|rules| ProfileTables::best(&cost, rules))
                .collect(),
            out_trees: Vec::new(),
        })
    }

    /// The relays that a plan over `planned` indices knows.
    fn members(&self, now: Duration, planned: usize) -> BTreeSet<RelayIndex> {
        self.registry
            .iter()
            .take(planned)
            .filter(|(_, relay)| {
                !relay.is_retired()
                    && relay
                        .dead_since
                        .is_none_or(|since| now < since + self.config.leave_out_after)
            })
            .map(|(index, _)| index)
            .collect()
    }

    fn who_came_and_went(
        &self,
        known: &BTreeSet<RelayIndex>,
        members: &BTreeSet<RelayIndex>,
    ) -> String {
        let names = |of: &mut dyn Iterator<Item = &RelayIndex>| {
            of.map(|&index| self.registry.get(index).name())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let came = names(&mut members.difference(known));
        let went = names(&mut known.difference(members));
        match (came.is_empty(), went.is_empty()) {
            (false, true) => format!("back: {came}"),
            (true, false) => format!("gone: {went}"),
            _ => format!("back: {came}; gone: {went}"),
        }
    }

    fn note_the_dead(&mut self, now: Duration, reachable: &[bool]) {
        for (index, relay) in self.registry.iter_mut() {
            let alive = relay.is_online() || reachable[index.as_usize()];
            if alive {
                relay.dead_since = None;
            } else {
                relay.dead_since.get_or_insert(now);
            }
        }
    }

    /// Notes the figures of all links down, every so often.
    fn note_figures(&mut self, now: Duration, costs: &Costs) {
        if now < self.next_sample {
            return;
        }
        self.next_sample = now + FINE;
        let n = self.registry.len();
        let mut used = vec![false; n * n];
        if let Some(active) = &self.active {
            let members = active.member_indices();
            for profile in 0..PROFILES {
                for &to in &members {
                    for &from in members.iter().filter(|&&from| from != to) {
                        if let Some(hop) = active.next_hop(profile, 0, from, to) {
                            used[from * n + hop] = true;
                        }
                    }
                }
            }
        }
        self.link_histories.note(now, costs.links(), |key| {
            used[key.from.as_usize() * n + key.to.as_usize()]
        });
    }

    /// Computes what plan and observed rules gain and change, at every plan and every so often.
    fn note_effects(
        &mut self,
        now: Duration,
        policy: &Compiled,
        costs: &Costs,
        rules: &AllRules,
        plan: &Plan,
    ) {
        self.next_effects = now + EFFECTS_EVERY;
        self.gains = self.gains_of(plan, costs, &self.demand_by_profile());
        self.observed_rules = match self.registry.len() <= MOST_OBSERVED {
            true => self.effects_of_observed(policy, costs, rules, plan),
            false => Vec::new(),
        };
    }
}
