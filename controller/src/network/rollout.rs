//! From a plan to a plan in force: sending parts, waiting, ordering what is stamped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tradewind_proto::{
    PlanId, RelayIndex,
    control::{Activate, ControllerToRelay, controller_to_relay as to_relay},
};
use tradewind_routing::MAX_TREES;

use super::{
    Action, ConnectionId, Network,
    costs::{Costs, PROFILES},
    history::{By, OrderEntry},
    plan::{Distribution, Goal, Part, Plan},
    rules::AllRules,
};
use crate::storage::Record;

/// Plans that can be gone back to, beside the one in force: relays hold the last 8.
const OLDER_PLANS: usize = 7;
/// Relays get at least so long for each of them to take a plan: that of a thousand is 100 MB in all.
const EACH_PART: Duration = Duration::from_millis(3);
/// All flows, in parts per thousand.
pub(super) const ALL: u32 = 1_000;

/// The order in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamping {
    pub(super) plan: PlanId,
    /// Parts per thousand.
    pub(super) share: u32,
    pub(super) rest: Option<PlanId>,
    pub(super) order: u64,
}

/// A rollout that goes on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stepping {
    /// When the next step is due.
    pub(super) at: Duration,
    /// Which of the configured ones it is; beyond the last: all flows.
    next: usize,
}

impl Stamping {
    /// As relays are told; `with_rest`: unless they do not hold the other plan.
    pub(super) fn message(&self, with_rest: bool) -> Activate {
        let rest = self.rest.filter(|_| with_rest && self.share < ALL);
        Activate {
            plan: Some(self.plan.into()),
            share_permille: rest.map_or(ALL, |_| self.share),
            rest: rest.map(Into::into),
            order: self.order,
        }
    }
}

impl Network {
    pub(super) fn newest(&self) -> Option<&Plan> {
        self.on_its_way
            .as_ref()
            .map(|coming| &coming.plan)
            .or(self.active.as_ref())
    }

    /// Sends a plan to all relays that it knows; it comes into force when the live ones hold it.
    pub(super) fn distribute(&mut self, now: Duration, plan: Plan, goal: Goal) {
        let mut waiting = BTreeSet::new();
        let online: BTreeMap<RelayIndex, ConnectionId> = self.registry.online().collect();
        let cut_off = self.links.cut_off(now, &self.registry);
        let sent = Arc::new(plan.clone());
        for (&index, &connection) in &online {
            let Some(part) = Part::of(sent.clone(), index) else {
                continue;
            };
            self.actions
                .push_back(Action::SendPart { connection, part });
            // A dead relay is missed by its neighbours long before its connection to here ends; while
            // it cannot be reached it stamps and forwards nothing.
            if !self.registry.get(index).silent && !cut_off[index.as_usize()] {
                waiting.insert(index);
            }
        }
        self.on_its_way = Some(Distribution {
            plan,
            waiting,
            deadline: now
                + self
                    .config
                    .plan_timeout
                    .max(EACH_PART * online.len() as u32),
            goal,
        });
        self.finish_distribution(now);
    }

    /// Gives up the plan that is on its way, for another; gives it, if it was a new one.
    pub(super) fn supersede(&mut self) -> Option<Plan> {
        let Distribution { plan, goal, .. } = self.on_its_way.take()?;
        match goal {
            Goal::New => {
                self.stats.plans_superseded += 1;
                Some(plan)
            }
            Goal::Rollback => {
                self.older.push_front(plan);
                None
            }
        }
    }

    pub(super) fn finish_distribution(&mut self, now: Duration) {
        if self
            .on_its_way
            .as_ref()
            .is_some_and(|coming| coming.waiting.is_empty())
        {
            self.activate(now);
        }
    }

    /// Some relays have not acknowledged in time: no transit over them. When the plan did not
    /// lead over them anyway, it comes into force as it is.
    pub(super) fn give_up_waiting(&mut self, now: Duration) {
        let Some(coming) = &mut self.on_its_way else {
            return;
        };
        let silent = std::mem::take(&mut coming.waiting);
        let id = coming.plan.id;
        for &index in &silent {
            let relay = self.registry.get_mut(index);
            relay.silent = true;
            self.stats.plan_timeouts += 1;
            tracing::warn!(relay = relay.name(), plan = %id, "does not acknowledge: left out");
        }
        self.plan(now);
        if self
            .on_its_way
            .as_ref()
            .is_some_and(|coming| coming.plan.id == id)
        {
            self.activate(now);
        }
    }

    fn activate(&mut self, now: Duration) {
        let Some(Distribution { mut plan, goal, .. }) = self.on_its_way.take() else {
            return;
        };
        let (id, by) = (plan.id, plan.by);
        let took = now.saturating_sub(plan.made_at);
        if goal == Goal::New {
            plan.activated_at = Some(now);
            self.stats.plans_activated += 1;
        }
        tracing::info!(plan = %id, held_by = plan.held_by.len(), "plan in force");
        let gray = goal == Goal::New && !plan.repairs && self.active.is_some();
        let first = self.config.rollout_steps.first().copied().filter(|_| gray);
        if let Some(before) = self.active.replace(plan)
            && before.id.epoch == self.epoch
        {
            self.older.push_front(before);
            self.older.truncate(OLDER_PLANS);
        }
        let why = match goal {
            Goal::New => "all live relays hold it",
            Goal::Rollback => "rollback",
        };
        self.history.amend(id, |entry| {
            entry
                .activated_after_ms
                .get_or_insert(took.as_millis() as u64);
        });
        match (first, self.older.front().map(|plan| plan.id)) {
            (Some(share), Some(rest)) if share < ALL => {
                self.stepping = Some(Stepping {
                    at: now + self.config.rollout_every,
                    next: 1,
                });
                self.order(now, share, Some(rest), by, "first step of the rollout");
            }
            _ => {
                self.stepping = None;
                self.order(now, ALL, None, by, why);
            }
        }
        self.actions.push_back(Action::Activated(id));
    }

    /// The next step of a rollout, when it is due.
    pub(super) fn step_rollout(&mut self, now: Duration) {
        let Some(stepping) = self.stepping.filter(|stepping| now >= stepping.at) else {
            return;
        };
        let share = self.config.rollout_steps.get(stepping.next).copied();
        match share.filter(|&share| share < ALL) {
            Some(share) => {
                self.stepping = Some(Stepping {
                    at: now + self.config.rollout_every,
                    next: stepping.next + 1,
                });
                let rest = self.stamping.and_then(|stamping| stamping.rest);
                self.order(now, share, rest, By::Planner, "next step of the rollout");
            }
            None => {
                self.stepping = None;
                self.order(now, ALL, None, By::Planner, "last step of the rollout");
                if self.held_for().is_none() {
                    self.publish_held_back(now);
                }
            }
        }
    }

    /// Orders all relays to stamp a share of flows with the plan in force, the others with `rest`.
    pub(super) fn order(
        &mut self,
        now: Duration,
        share: u32,
        rest: Option<PlanId>,
        by: By,
        why: &str,
    ) {
        let Some(active) = &self.active else { return };
        self.order += 1;
        let stamping = Stamping {
            plan: active.id,
            share,
            rest,
            order: self.order,
        };
        self.stamping = Some(stamping);
        self.stats.orders += 1;
        let knows_rest = |index| {
            let rest = self.older.iter().find(|plan| Some(plan.id) == rest);
            rest.is_some_and(|plan| plan.knows(index))
        };
        let messages: Vec<(ConnectionId, Activate)> = self
            .registry
            .online()
            .filter(|&(index, _)| active.knows(index))
            .map(|(index, connection)| (connection, stamping.message(knows_rest(index))))
            .collect();
        let plan = active.id;
        for (connection, activate) in messages {
            let body = to_relay::Body::Activate(activate);
            self.send(connection, ControllerToRelay { body: Some(body) });
        }
        let entry = OrderEntry {
            order: self.order,
            at_unix_ms: self.unix(now).as_millis() as u64,
            share_permille: share,
            rest: rest.map(|id| id.to_string()),
            by,
            why: why.to_owned(),
        };
        let amended = self.history.amend(plan, |known| known.orders.push(entry));
        if let Some(entry) = amended {
            self.keep(Record::Plan(entry));
        }
    }

    /// Ends a partial rollout when the plan of the other flows has a way that cannot be used any
    /// more and the one in force has none: nothing else would mend it.
    pub(super) fn leave_broken_rest(
        &mut self,
        now: Duration,
        costs: &Costs,
        live: &[bool],
        rules: &AllRules,
    ) {
        let partial = self.stamping.filter(|stamping| stamping.share < ALL);
        let (Some(stamping), Some(active)) = (partial, &self.active) else {
            return;
        };
        let is_broken = |plan: &Plan| {
            (0..PROFILES).any(|profile| {
                // A rule set that is no more breaks nothing of what is stamped.
                let mut rules = rules[profile].clone();
                let everybody = rules[0].clone();
                rules.resize(MAX_TREES.max(rules.len()), everybody);
                plan.is_broken(profile, costs, live, &rules)
            })
        };
        let rest = self
            .older
            .iter()
            .find(|plan| Some(plan.id) == stamping.rest);
        if rest.is_none_or(is_broken) && !is_broken(active) {
            self.stepping = None;
            let why = "ways of the plan before cannot be used any more";
            self.order(now, ALL, None, By::Planner, why);
        }
    }

    /// Whether plans by choice wait, and for what.
    pub(super) fn held_for(&self) -> Option<&str> {
        if let Some(hold) = &self.hold {
            return Some(hold);
        }
        let partial = self.stamping.is_some_and(|stamping| stamping.share < ALL);
        partial.then_some("a rollout is under way")
    }

    /// A relay's process has restarted: what it held is gone, but for what it keeps on disk.
    pub(super) fn forget_what_is_held(&mut self, relay: RelayIndex) {
        let coming = self.on_its_way.as_mut().map(|coming| &mut coming.plan);
        for plan in self.active.iter_mut().chain(&mut self.older).chain(coming) {
            plan.held_by.remove(&relay);
        }
    }
}
