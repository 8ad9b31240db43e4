//! The operator's hand: quarantine, decommission, policy, rollout and rollback.

use std::time::Duration;

use serde::Serialize;
use tradewind_proto::{
    CloseCode, PlanId, RelayIndex,
    control::{ControllerToRelay, Refused, controller_to_relay as to_relay},
};

use super::{
    Gain, Network, ObservedRule, PathError,
    history::{By, PlanEntry},
    plan::{Goal, Plan},
    registry::Standing,
    rollout::ALL,
    views::AlertView,
};
use crate::{
    policy::{Mode, ProfileName},
    storage::{KeptPolicy, Mark, Record},
};

/// Longest reason of an operator, in bytes.
const MAX_REASON: usize = 500;

/// Why an operator's wish is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// No relay is called so.
    #[error(transparent)]
    Relay(#[from] PathError),
    /// The value makes no sense.
    #[error("{0}")]
    Bad(String),
    /// It cannot be done as things are.
    #[error("{0}")]
    Conflict(String),
}

/// What is stamped and what could be, as in `/v1/rollout`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RolloutView {
    /// The plan in force, `epoch.number`.
    pub plan: Option<String>,
    /// Share of flows that are stamped with it, parts per thousand.
    pub share_permille: u32,
    /// What the other flows are stamped with.
    pub rest: Option<String>,
    /// The order in force; counts within the epoch.
    pub order: u64,
    /// Why plans by choice wait, if they do.
    pub held: Option<String>,
    /// Whether the next step comes by itself, and when, Unix milliseconds.
    pub next_step_unix_ms: Option<u64>,
    /// Plans that can be gone back to, the latest first.
    pub older: Vec<String>,
    /// A plan that relays are being sent.
    pub on_its_way: Option<String>,
    /// What a plan by choice would be made for, were they not held.
    pub held_back: Vec<String>,
}

/// The controller at a glance, as in `/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusView {
    /// Of this controller.
    pub epoch: u16,
    /// What is stamped.
    pub rollout: RolloutView,
    /// What needs somebody's eyes.
    pub alerts: Vec<AlertView>,
    /// What plans save, by profile.
    pub gains: Vec<Gain>,
    /// What rules that are only observed would change.
    pub observed: Vec<ObservedRule>,
    /// Where the policy came from.
    pub policy_source: String,
}

impl Network {
    /// Takes a relay out of all paths, at once; its sessions stay, and packets still begin and end
    /// there.
    ///
    /// # Errors
    /// [`OperateError`].
    pub fn quarantine(
        &mut self,
        now: Duration,
        relay: &str,
        reason: &str,
    ) -> Result<(), OperateError> {
        let index = self.find_exactly(relay)?;
        if matches!(
            self.registry.get(index).standing,
            Standing::Leaving { .. } | Standing::Retired
        ) {
            let what = format!("`{relay}` is decommissioned; undo that first");
            return Err(OperateError::Conflict(what));
        }
        let mark = self.mark(now, reason)?;
        self.decisions.quarantined.insert(relay.to_owned(), mark);
        self.registry.get_mut(index).standing = Standing::Quarantined;
        self.decided(now, format!("quarantined: {relay}"));
        Ok(())
    }

    /// Ends a quarantine.
    ///
    /// # Errors
    /// [`OperateError`].
    pub fn unquarantine(&mut self, now: Duration, relay: &str) -> Result<(), OperateError> {
        if self.decisions.quarantined.remove(relay).is_none() {
            let what = format!(
                "`{relay}` is not quarantined{}",
                listed("; quarantined are: ", self.decisions.quarantined.keys())
            );
            return Err(OperateError::Conflict(what));
        }
        if let Some(index) = self.registry.index_of(relay) {
            self.registry.get_mut(index).standing = Standing::Member;
        }
        self.decided(now, format!("no longer quarantined: {relay}"));
        Ok(())
    }

    /// Lets a relay drain, then refuses its name. Its index is never given to another.
    ///
    /// # Errors
    /// [`OperateError`].
    pub fn decommission(
        &mut self,
        now: Duration,
        relay: &str,
        reason: &str,
    ) -> Result<(), OperateError> {
        let index = self.find_exactly(relay)?;
        if self.decisions.decommissioned.contains_key(relay) {
            let what = format!("`{relay}` is decommissioned already");
            return Err(OperateError::Conflict(what));
        }
        let mark = self.mark(now, reason)?;
        self.decisions.quarantined.remove(relay);
        self.decisions.decommissioned.insert(relay.to_owned(), mark);
        self.registry.get_mut(index).standing = Standing::Leaving {
            until: now + self.config.drain_for,
        };
        self.push_list(now);
        self.decided(now, format!("decommissioned: {relay}"));
        Ok(())
    }

    /// Takes a decommissioned relay in again, when it comes.
    ///
    /// # Errors
    /// [`OperateError`].
    pub fn recommission(&mut self, now: Duration, relay: &str) -> Result<(), OperateError> {
        if self.decisions.decommissioned.remove(relay).is_none() {
            let what = format!(
                "`{relay}` is not decommissioned{}",
                listed(
                    "; decommissioned are: ",
                    self.decisions.decommissioned.keys()
                )
            );
            return Err(OperateError::Conflict(what));
        }
        if let Some(index) = self.registry.index_of(relay) {
            self.registry.get_mut(index).standing = Standing::Member;
            self.push_list(now);
        }
        self.decided(now, format!("taken in again: {relay}"));
        Ok(())
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> (&KeptPolicy, &[String]) {
        (&self.policy, &self.policy_problems)
    }

    /// Sets another policy, which has been checked; `what` says in a few words what changed.
    pub fn set_policy(&mut self, now: Duration, mut policy: KeptPolicy, by: By, what: &str) {
        policy.set_at_unix_ms = self.unix(now).as_millis() as u64;
        self.keep(Record::Policy(policy.clone()));
        if policy.policy != self.policy.policy {
            self.stats.policies_set += 1;
            tracing::info!(source = policy.source, what, "policy");
            self.note_cause(now, by, what.to_owned());
            self.next_effects = now;
        }
        self.policy = policy;
        self.policy_problems.clear(); // said anew when it is compiled
    }

    /// Stamps a share of flows with the plan in force and the others with the one before it; with
    /// all, the rollout is over.
    ///
    /// # Errors
    /// [`OperateError`]: no such share, or no plan to share with that keeps to the bans of now.
    pub fn set_share(&mut self, now: Duration, permille: u32) -> Result<(), OperateError> {
        if permille == 0 || permille > ALL {
            let what = "a share must be more than 0 % and at most 100 %; to go back, roll back to the plan before";
            return Err(OperateError::Bad(what.to_owned()));
        }
        if self.active.is_none() {
            return Err(PathError::NoPlan.into());
        }
        self.stepping = None;
        if permille == ALL {
            self.order(now, ALL, None, By::Operator, "the operator's share");
            if self.held_for().is_none() {
                self.publish_held_back(now);
            }
            return Ok(());
        }
        let present = self.stamping.and_then(|stamping| stamping.rest);
        let rest = match present {
            Some(rest) => self.older.iter().find(|plan| plan.id == rest),
            None => self.older.front(),
        };
        let Some(rest) = rest else {
            let what = "there is no plan before the one in force to share with";
            return Err(OperateError::Conflict(what.to_owned()));
        };
        self.check_bans(now, rest)?;
        let rest = rest.id;
        self.order(
            now,
            permille,
            Some(rest),
            By::Operator,
            "the operator's share",
        );
        Ok(())
    }

    /// Goes back to an older plan, and holds it: plans by choice wait until [`Network::release`].
    ///
    /// # Errors
    /// [`OperateError`]: it is not retained.
    pub fn rollback(&mut self, now: Duration, plan: &str) -> Result<(), OperateError> {
        let wanted: Option<PlanId> = plan.split_once('.').and_then(|(epoch, number)| {
            Some(PlanId {
                epoch: epoch.parse().ok()?,
                number: number.parse().ok()?,
            })
        });
        let Some(wanted) = wanted else {
            let what = format!("`{plan}` is no plan; write its epoch and number, such as 3.17");
            return Err(OperateError::Bad(what));
        };
        let at = self.older.iter().position(|older| older.id == wanted);
        let Some(at) = at else {
            let retained: Vec<String> = self.older.iter().map(|plan| plan.id.to_string()).collect();
            let what = match self.active_plan() == Some(wanted) {
                true => format!("plan {plan} is in force already"),
                false => format!(
                    "plan {plan} is not retained{}",
                    listed("; there are: ", retained.iter())
                ),
            };
            return Err(OperateError::Conflict(what));
        };
        self.check_bans(now, &self.older[at])?;
        let Some(mut older) = self.older.remove(at) else {
            return Ok(());
        };
        self.supersede();
        self.stats.rollbacks += 1;
        // What the planner has is newer: it is published on release.
        if let Some(active) = self.active_plan() {
            self.held_back
                .push(format!("rolled back from plan {active}"));
        }
        self.hold = Some(format!("rolled back to plan {plan}"));
        tracing::warn!(plan, "rollback");
        older.by = By::Operator;
        self.distribute(now, older, Goal::Rollback);
        Ok(())
    }

    /// Lets plans by choice wait. What mends a failure does not wait.
    ///
    /// # Errors
    /// [`OperateError`]: the reason is too long.
    pub fn hold(&mut self, now: Duration, reason: &str) -> Result<(), OperateError> {
        let mark = self.mark(now, reason)?;
        self.hold = Some(match mark.reason.is_empty() {
            true => "held by the operator".to_owned(),
            false => format!("held by the operator: {}", mark.reason),
        });
        Ok(())
    }

    /// Ends a hold: what was held back is planned now.
    pub fn release(&mut self, now: Duration) {
        if self.hold.take().is_some() && self.held_for().is_none() {
            self.publish_held_back(now);
        }
    }

    /// Plans with their reasons and orders, the latest first.
    pub fn plans(&self) -> impl Iterator<Item = &PlanEntry> {
        self.history.latest()
    }

    /// One of them, by `epoch.number`.
    #[must_use]
    pub fn plan_entry(&self, name: &str) -> Option<&PlanEntry> {
        self.history.get(name)
    }

    /// What is stamped and what could be.
    #[must_use]
    pub fn rollout(&self) -> RolloutView {
        let stamping = self.stamping.as_ref();
        RolloutView {
            plan: self.active_plan().map(|id| id.to_string()),
            share_permille: stamping.map_or(0, |stamping| stamping.share),
            rest: stamping
                .and_then(|stamping| stamping.rest)
                .map(|id| id.to_string()),
            order: self.order,
            held: self.held_for().map(str::to_owned),
            next_step_unix_ms: self
                .stepping
                .map(|stepping| self.unix(stepping.at).as_millis() as u64),
            older: self.older.iter().map(|plan| plan.id.to_string()).collect(),
            on_its_way: self
                .on_its_way
                .as_ref()
                .map(|coming| coming.plan.id.to_string()),
            held_back: self.held_back.clone(),
        }
    }

    /// The controller at a glance.
    #[must_use]
    pub fn status(&self, now: Duration) -> StatusView {
        StatusView {
            epoch: self.epoch,
            rollout: self.rollout(),
            alerts: self.alerts(now),
            gains: self.gains.clone(),
            observed: self.observed_rules.clone(),
            policy_source: self.policy.source.clone(),
        }
    }

    /// What needs somebody's eyes.
    #[must_use]
    pub fn alerts(&self, _now: Duration) -> Vec<AlertView> {
        let mut alerts = Vec::new();
        let mut add = |kind, text: String| alerts.push(AlertView { kind, text });
        if let Some(alert) = &self.alert {
            add("measurement", alert.clone());
        }
        for (_, relay) in self.registry.iter() {
            let name = relay.name();
            if relay.silent && !relay.is_retired() {
                add(
                    "silent_relay",
                    format!("{name} does not acknowledge plans: no path crosses it"),
                );
            }
        }
        for name in self.decisions.quarantined.keys() {
            add(
                "quarantine",
                format!("{name} is quarantined: no path crosses it"),
            );
        }
        if let Some(held) = &self.hold {
            add(
                "hold",
                format!("{held}: plans by choice wait for `tradewind rollout release`"),
            );
        }
        for problem in &self.policy_problems {
            add("policy", problem.clone());
        }
        for profile in ProfileName::ALL {
            let mode = match profile {
                ProfileName::Realtime => self.policy.policy.profiles.realtime.mode,
                ProfileName::Economy => self.policy.policy.profiles.economy.mode,
            };
            if mode == Mode::Observe {
                add(
                    "observe",
                    format!(
                        "profile {} is only observed: its packets go direct",
                        profile.word()
                    ),
                );
            }
        }
        alerts
    }

    /// Whether a relay of this name is not to be registered.
    pub(super) fn is_refused(&self, name: &str) -> bool {
        let unknown_or_retired = self
            .registry
            .index_of(name)
            .is_none_or(|index| self.registry.get(index).is_retired());
        unknown_or_retired && self.decisions.decommissioned.contains_key(name)
    }

    /// Applies what was decided about a relay to its entry, which is new or was read from disk.
    pub(super) fn apply_decisions(&mut self, now: Duration, index: RelayIndex) {
        let until = now + self.config.drain_for;
        let relay = self.registry.get_mut(index);
        if relay.standing != Standing::Member {
            return;
        }
        if self.decisions.decommissioned.contains_key(relay.name()) {
            relay.standing = Standing::Leaving { until };
        } else if self.decisions.quarantined.contains_key(relay.name()) {
            relay.standing = Standing::Quarantined;
        }
    }

    /// Retires the decommissioned relays that have no sessions any more, or had time enough.
    pub(super) fn retire_the_drained(&mut self, now: Duration) {
        let due: Vec<RelayIndex> = self
            .registry
            .iter()
            .filter(|(_, relay)| match relay.standing {
                // Not before the plan that avoids it has had time to come into force.
                Standing::Leaving { until } => {
                    let begun = until.saturating_sub(self.config.drain_for);
                    now >= until
                        || (relay.sessions == 0 && now >= begun + 3 * self.config.plan_timeout)
                }
                _ => false,
            })
            .map(|(index, _)| index)
            .collect();
        if due.is_empty() {
            return;
        }
        for &index in &due {
            let relay = self.registry.get_mut(index);
            relay.standing = Standing::Retired;
            let (name, connection) = (relay.name().to_owned(), relay.connection);
            tracing::info!(relay = name, "retired");
            if let Some(connection) = connection {
                self.registry.disconnect(now, connection);
                let reason = format!("`{name}` was decommissioned");
                let body = to_relay::Body::Refused(Refused {
                    reason: reason.clone(),
                });
                self.send(connection, ControllerToRelay { body: Some(body) });
                self.close(connection, CloseCode::Done, &reason);
            }
        }
        self.push_list(now);
    }

    pub(super) fn publish_held_back(&mut self, now: Duration) {
        let reasons = std::mem::take(&mut self.held_back);
        if !reasons.is_empty() {
            self.republish = Some(format!("released: {}", reasons.join("; ")));
        }
        self.ask_soon(now);
    }

    /// Whether a plan crosses nothing that has been forbidden since it was made.
    fn check_bans(&self, now: Duration, plan: &Plan) -> Result<(), OperateError> {
        let forbidden = self.forbidden(&self.compile(now, &self.policy.policy));
        let crossed = plan.not_forbidden_yet(&forbidden);
        if crossed.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = crossed
            .iter()
            .map(|&relay| self.relay_name(relay))
            .collect();
        Err(OperateError::Conflict(format!(
            "plan {} is from before these relays were forbidden to cross: {}; lift that first \
             (tradewind unquarantine, tradewind policy)",
            plan.id,
            names.join(", ")
        )))
    }

    fn find_exactly(&self, relay: &str) -> Result<RelayIndex, OperateError> {
        if let Some(index) = self.registry.index_of(relay) {
            return Ok(index);
        }
        // What changes the network is not guessed from parts of names.
        match self.find(relay) {
            Ok(index) => Err(OperateError::Bad(format!(
                "no relay is called `{relay}`; did you mean `{}`? Give the whole name",
                self.registry.get(index).name()
            ))),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn mark(&self, now: Duration, reason: &str) -> Result<Mark, OperateError> {
        if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
            let what = format!("`reason` must be at most {MAX_REASON} bytes that print");
            return Err(OperateError::Bad(what));
        }
        Ok(Mark {
            at_unix_ms: self.unix(now).as_millis() as u64,
            reason: reason.to_owned(),
        })
    }

    fn decided(&mut self, now: Duration, what: String) {
        tracing::warn!(what, "operator");
        let record = Record::Decisions(self.decisions.clone());
        self.keep(record);
        self.note_cause(now, By::Operator, what);
    }
}

fn listed<'a>(before: &str, names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!("{before}{}", names.join(", ")),
    }
}
