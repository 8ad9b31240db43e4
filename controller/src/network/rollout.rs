//! From the matrix to a plan in force: asking the planner, sending parts, waiting, activating.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tradewind_proto::{
    PlanId, RelayIndex,
    control::{ControllerToRelay, controller_to_relay as to_relay},
};
use tradewind_routing::{CostMatrix, PlanTables, PlannerInput, TreeRules, backups, in_trees};

use super::{
    Action, ConnectionId, Network, activate,
    plan::{Distribution, Plan},
};

impl Network {
    pub(super) fn plan(&mut self, now: Duration) {
        self.urgent = None;
        self.next_planning = now + self.config.interval;
        let names = self.registry.names();
        let reachable = self.links.reachable(now, &self.registry);
        self.note_the_dead(now, &reachable);
        let live: Vec<bool> = self
            .registry
            .iter()
            .map(|(index, relay)| relay.is_online() || reachable[index.as_usize()])
            .collect();
        let rules = TreeRules {
            no_transit: self
                .registry
                .iter()
                .map(|(_, relay)| relay.draining || relay.silent)
                .collect(),
            ..TreeRules::default()
        };
        let matrix = self.links.matrix(now, &self.registry, &self.config.weights);
        let decision = self.planner.step(&PlannerInput {
            now,
            names: &names,
            live: &live,
            expected_live: self.expected,
            cost: &matrix.cost,
            rules: &rules,
        });
        self.stats.usable_links = matrix.usable() as u64;
        self.stats.contradicted_links = matrix.clamped as u64;
        if self.alert != decision.alert {
            if let Some(alert) = &decision.alert {
                tracing::error!(alert, "keeping the plan");
                self.stats.disbeliefs += 1;
            }
            self.alert = decision.alert;
        }
        let alone = self.tables_without_links(now, &rules);
        let Some(tables) = self.planner.tables().or(alone.as_ref()) else {
            return;
        };
        let members = self.members(now, tables.in_trees.len());
        let mut reasons = decision.reasons;
        reasons.extend(self.republish.take());
        if !decision.changed && reasons.is_empty() {
            match self.newest().map(Plan::member_set) {
                Some(known) if known == members => return,
                Some(known) => reasons.push(self.who_came_and_went(&known, &members)),
                None => reasons.push("first plan: no link is measured".to_owned()),
            }
        }
        let id = PlanId {
            epoch: self.epoch,
            number: self.next_number,
        };
        let mut plan = Plan::new(id, now, reasons, &members, &self.registry, tables, &matrix);
        self.next_number += 1;
        if let Some(superseded) = self.on_its_way.take() {
            self.stats.plans_superseded += 1;
            plan.reasons.extend(superseded.plan.reasons);
        }
        self.distribute(now, plan);
    }

    /// Tables for relays between which no link is known, as long as the planner has none: a
    /// network of one relay serves its clients too. Relays get time to measure first.
    fn tables_without_links(&mut self, now: Duration, rules: &TreeRules) -> Option<PlanTables> {
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
            in_trees: in_trees(&cost, rules),
            out_trees: Vec::new(),
            backups: backups(&cost, rules),
            cost,
        })
    }

    /// The relays that a plan over `planned` indices knows.
    fn members(&self, now: Duration, planned: usize) -> BTreeSet<RelayIndex> {
        self.registry
            .iter()
            .take(planned)
            .filter(|(_, relay)| {
                relay
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

    fn newest(&self) -> Option<&Plan> {
        self.on_its_way
            .as_ref()
            .map(|coming| &coming.plan)
            .or(self.active.as_ref())
    }

    fn distribute(&mut self, now: Duration, plan: Plan) {
        tracing::info!(plan = %plan.id, reasons = plan.reasons.join("; "), "new plan");
        self.stats.plans_made += 1;
        let mut waiting = BTreeSet::new();
        let online: BTreeMap<RelayIndex, ConnectionId> = self.registry.online().collect();
        for (&index, &connection) in &online {
            let Some(part) = plan.part_for(index) else {
                continue;
            };
            let body = to_relay::Body::PlanPart(part);
            self.send(connection, ControllerToRelay { body: Some(body) });
            if !self.registry.get(index).silent {
                waiting.insert(index);
            }
        }
        let deadline = now + self.config.plan_timeout;
        self.on_its_way = Some(Distribution {
            plan,
            waiting,
            deadline,
        });
        self.finish_distribution(now);
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
        let number = coming.plan.id.number;
        for &index in &silent {
            let relay = self.registry.get_mut(index);
            relay.silent = true;
            self.stats.plan_timeouts += 1;
            tracing::warn!(
                relay = relay.name(),
                number,
                "does not acknowledge: left out"
            );
        }
        self.plan(now);
        if self
            .on_its_way
            .as_ref()
            .is_some_and(|coming| coming.plan.id.number == number)
        {
            self.activate(now);
        }
    }

    fn activate(&mut self, now: Duration) {
        let Some(Distribution { mut plan, .. }) = self.on_its_way.take() else {
            return;
        };
        plan.activated_at = Some(now);
        tracing::info!(plan = %plan.id, held_by = plan.held_by.len(), "plan in force");
        self.stats.plans_activated += 1;
        let members: Vec<ConnectionId> = self
            .registry
            .online()
            .filter(|&(index, _)| plan.knows(index))
            .map(|(_, connection)| connection)
            .collect();
        for connection in members {
            self.send(connection, activate(plan.id));
        }
        self.actions.push_back(Action::Activated(plan.id));
        self.active = Some(plan);
    }
}
