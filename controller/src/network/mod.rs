//! The network as the controller sees it: a state machine over explicit time.
//!
//! Messages from relays, ended connections and the passing of time go in; messages to relays and a
//! few other [`Action`]s come out ([`Network::take_actions`]). No sockets, no clock, no tasks: the
//! same input gives the same output.
//!
//! How a plan comes into force:
//!
//! 1. What relays report changes the matrix. Every [`NetworkConfig::interval`], and a moment after
//!    a link or relay has failed or come, the planner is asked.
//! 2. A new plan is numbered, and each live relay is sent its part. Nothing changes yet.
//! 3. When all live relays hold it, all are told to use it. One that does not answer within
//!    [`NetworkConfig::plan_timeout`] is planned around: no transit goes over it.
//!
//! Only one plan is on its way at a time; a failure meanwhile replaces it with a better one.

mod by_link;
mod costs;
mod effects;
mod explain;
mod history;
mod links;
mod membership;
mod operate;
mod path_error;
mod plan;
mod planning;
mod registry;
mod revocations;
mod rollout;
mod rules;
#[cfg(test)]
mod tests;
mod traffic;
mod views;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use tradewind_proto::{
    CloseCode, PlanId,
    control::{ControllerToRelay, PlanName, RelayToController, relay_to_controller as from_relay},
};
use tradewind_routing::{CostWeights, DemandConfig, DemandMeter, Planner, PlannerConfig};
use tradewind_trust::{Revoked, TokenKeys};

use crate::{
    state::SavedNetwork,
    storage::{Decisions, Kept, KeptPolicy, Record},
};
use costs::Uplinks;
use history::{History, LinkHistories};
use links::Links;
use plan::{Distribution, Plan};
use planning::Cause;
use registry::Registry;
use rollout::{Stamping, Stepping};
use traffic::Traffic;

pub use effects::{Effect, Gain, ObservedRule, Trial, WorstPair};
pub use explain::{Alternative, BackupView, Explanation, OtherFlows};
pub use history::{By, MOST_PLANS, OrderEntry, PlanEntry, SampleView};
pub use operate::{OperateError, RolloutView, StatusView};
pub use path_error::PathError;
pub use plan::Part;
pub use revocations::{KeptRevocation, RevocationView, Revoke};
pub use views::{
    Addresses, AlertView, EdgeView, LinkHistoryView, LinkView, MatrixView, PathView, PlanView,
    RelayView, Stats,
};

/// Planning rests for so many times as long as it took.
const PLANNING_RESTS: u32 = 4;

/// One control connection of one relay, named by whoever accepts connections; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// How the controller plans.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The first plan waits for so many relays (but not for ever, see
    /// [`PlannerConfig::first_plan_within`]). `None`: for as many as were known before a restart.
    pub expected_relays: Option<usize>,
    /// Margins and times.
    pub planner: PlannerConfig,
    /// What makes a link dear.
    pub weights: CostWeights,
    /// How often the planner is asked when nothing happens.
    pub interval: Duration,
    /// How long after a failure or a change the planner is asked: what has one cause mostly
    /// comes together.
    pub gather: Duration,
    /// How long a relay may take to acknowledge a plan.
    pub plan_timeout: Duration,
    /// A relay that is offline and unreachable for its peers for this long is left out of plans.
    pub leave_out_after: Duration,
    /// And for this long, it is no more in the list that relays keep links by.
    pub forget_after: Duration,
    /// Most relays that are ever known.
    pub max_relays: usize,
    /// Shares of flows, in parts per thousand, that a plan made by choice is stamped on, one
    /// after the other; empty: all at once. What mends a failure is always stamped on all at once.
    pub rollout_steps: Vec<u32>,
    /// From one step to the next.
    pub rollout_every: Duration,
    /// How long a relay that is decommissioned may still drain.
    pub drain_for: Duration,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            expected_relays: None,
            planner: PlannerConfig::default(),
            weights: CostWeights::default(),
            interval: Duration::from_millis(250),
            gather: Duration::from_millis(10),
            plan_timeout: Duration::from_secs(1),
            leave_out_after: Duration::from_secs(30),
            forget_after: Duration::from_secs(3_600),
            max_relays: 4_096,
            rollout_steps: Vec::new(),
            rollout_every: Duration::from_secs(10),
            drain_for: Duration::from_secs(60),
        }
    }
}

/// What is to be done in the world.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a message to the relay on this connection.
    Send {
        /// Where to.
        connection: ConnectionId,
        /// What.
        message: ControllerToRelay,
    },
    /// Send the same message to the relays on these connections.
    SendAll {
        /// Where to.
        connections: Vec<ConnectionId>,
        /// What.
        message: ControllerToRelay,
    },
    /// Send a relay its part of a plan. Building it takes a while in a large network: do it
    /// outside of any lock.
    SendPart {
        /// Where to.
        connection: ConnectionId,
        /// What.
        part: Part,
    },
    /// Close the connection, once what was sent before has left.
    Close {
        /// Which.
        connection: ConnectionId,
        /// The code on the wire.
        code: CloseCode,
        /// The reason, for people.
        reason: String,
    },
    /// Write this to disk before doing what follows.
    Save(SavedNetwork),
    /// Keep this, soon: nothing waits for it.
    Keep(Box<Record>),
    /// This plan is in force from now on.
    Activated(PlanId),
}

/// Registry, matrix, plans. See the [module](self).
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    /// The wall clock when the monotonic one showed 0: for showing times only.
    wall_start: SystemTime,
    epoch: u16,
    next_number: u32,
    list_version: u32,
    expected: usize,
    registry: Registry,
    links: Links,
    planner: Planner,
    token_keys: TokenKeys,
    /// By app.
    revocations: BTreeMap<(String, Revoked), KeptRevocation>,
    traffic: Traffic,
    demand: DemandMeter,
    uplinks: Uplinks,
    policy: KeptPolicy,
    /// What the policy says that has no effect at present, and why.
    policy_problems: Vec<String>,
    decisions: Decisions,
    active: Option<Plan>,
    /// Plans that were in force before, the latest first.
    older: VecDeque<Plan>,
    on_its_way: Option<Distribution>,
    /// The order in force.
    stamping: Option<Stamping>,
    /// Of the last order.
    order: u64,
    /// Why no plan by choice comes into force.
    hold: Option<String>,
    stepping: Option<Stepping>,
    /// Reasons for a plan that is held back.
    held_back: Vec<String>,
    cause: Option<Cause>,
    history: History,
    link_histories: LinkHistories,
    next_sample: Duration,
    gains: Vec<Gain>,
    observed_rules: Vec<ObservedRule>,
    next_effects: Duration,
    next_planning: Duration,
    /// Before that nothing is planned out of turn either: planning must leave the processor to
    /// the relays' reports.
    rest_until: Duration,
    /// When the list of relays may be sent to all again, and whether it is to be.
    next_list: Duration,
    list_is_due: bool,
    /// Relays' loads have changed, and when all may be told so again.
    loads_changed: bool,
    next_loads: Duration,
    /// How many relays are online, and since when, while nothing is planned.
    gathered: (usize, Duration),
    /// When the planner is asked out of turn.
    urgent: Option<Duration>,
    alert: Option<String>,
    /// Why the tables are to be numbered and sent anew though they have not changed.
    republish: Option<String>,
    actions: VecDeque<Action>,
    stats: Stats,
}

impl Network {
    /// A network that begins at monotonic time 0, with what was kept from before.
    #[must_use]
    pub fn new(
        config: NetworkConfig,
        saved: SavedNetwork,
        token_keys: TokenKeys,
        wall_start: SystemTime,
    ) -> Self {
        Self {
            wall_start,
            epoch: saved.epoch,
            next_number: 1,
            list_version: 0,
            expected: config.expected_relays.unwrap_or(saved.relays.len()),
            registry: Registry::from_saved(saved.relays),
            links: Links::default(),
            planner: Planner::new(config.planner.clone()),
            token_keys,
            revocations: BTreeMap::new(),
            traffic: Traffic::default(),
            demand: DemandMeter::new(DemandConfig::default()),
            uplinks: Uplinks::default(),
            policy: KeptPolicy {
                source: "default".to_owned(),
                ..KeptPolicy::default()
            },
            policy_problems: Vec::new(),
            decisions: Decisions::default(),
            active: None,
            older: VecDeque::new(),
            on_its_way: None,
            stamping: None,
            order: 0,
            hold: None,
            stepping: None,
            held_back: Vec::new(),
            cause: None,
            history: History::default(),
            link_histories: LinkHistories::default(),
            next_sample: Duration::ZERO,
            gains: Vec::new(),
            observed_rules: Vec::new(),
            next_effects: Duration::ZERO,
            next_planning: config.interval,
            rest_until: Duration::ZERO,
            next_list: Duration::ZERO,
            list_is_due: false,
            loads_changed: false,
            next_loads: Duration::ZERO,
            gathered: (0, Duration::ZERO),
            urgent: None,
            alert: None,
            republish: None,
            actions: VecDeque::new(),
            stats: Stats::default(),
            config,
        }
    }

    /// Takes up what was kept from before: to be called before anything else.
    pub fn restore(&mut self, kept: Kept) {
        if let Some(policy) = kept.policy {
            self.policy = policy;
        }
        self.decisions = kept.decisions;
        self.history.restore(kept.plans);
        self.restore_revocations(kept.revocations);
        let known: Vec<_> = self.registry.iter().map(|(index, _)| index).collect();
        for index in known {
            self.apply_decisions(Duration::ZERO, index);
        }
    }

    /// Sets the wall clock: `wall_start` is what it showed when the monotonic one showed 0. It
    /// decides about busy hours, and is shown to people; nothing else hangs on it.
    pub fn set_wall_start(&mut self, wall_start: SystemTime) {
        self.wall_start = wall_start;
    }

    /// Takes in a message from a relay. The caller has checked that the certificate of the peer
    /// is that of the name in `Register`. Anything but `Register` first ends the connection.
    pub fn received(
        &mut self,
        now: Duration,
        connection: ConnectionId,
        message: RelayToController,
    ) {
        let Some(body) = message.body else { return }; // of a later version
        if let from_relay::Body::Register(register) = body {
            return self.register(now, connection, register);
        }
        let Some(relay) = self.registry.of_connection(connection) else {
            return self.close(
                connection,
                CloseCode::Protocol,
                "not registered on this connection",
            );
        };
        match body {
            from_relay::Body::Register(_) => {}
            from_relay::Body::LinkReport(report) => self.report(now, relay, &report),
            from_relay::Body::PlanHeld(held) => {
                if let Some(id) = held.plan.as_ref().and_then(PlanName::id) {
                    self.held(now, relay, id);
                }
            }
            from_relay::Body::Leaving(_) => self.set_draining(now, relay, true),
        }
    }

    /// A connection has ended, whyever.
    pub fn disconnected(&mut self, now: Duration, connection: ConnectionId) {
        let Some(relay) = self.registry.disconnect(now, connection) else {
            return;
        };
        tracing::warn!(relay = self.registry.get(relay).name(), "relay offline");
        if let Some(distribution) = &mut self.on_its_way {
            distribution.waiting.remove(&relay);
        }
        self.finish_distribution(now);
        self.ask_soon(now);
    }

    /// Does what is due. To be called at [`Network::next_tick`], and at any other time.
    pub fn tick(&mut self, now: Duration) {
        if self
            .on_its_way
            .as_ref()
            .is_some_and(|plan| now >= plan.deadline)
        {
            self.give_up_waiting(now);
        }
        self.step_rollout(now);
        if self.list_is_due && now >= self.next_list {
            self.send_list(now);
        }
        let urgent = self.urgent.is_some_and(|at| now >= at);
        if urgent || (now >= self.next_planning && self.on_its_way.is_none()) {
            self.plan(now);
        }
    }

    /// Tells how long a [`Network::tick`] took that has just ended, by a clock of the caller's
    /// choice. What took long is not done again soon: planning takes a fifth of the time at most,
    /// and half of it while things fail or come back.
    pub fn ticked(&mut self, now: Duration, took: Duration) {
        self.rest_until = now + took;
        self.next_planning = self.next_planning.max(now + PLANNING_RESTS * took);
        self.urgent = self.urgent.map(|at| at.max(self.rest_until));
    }

    /// When [`Network::tick`] has something to do next, if nothing is received before.
    #[must_use]
    pub fn next_tick(&self) -> Duration {
        let regular = match &self.on_its_way {
            Some(distribution) => distribution.deadline,
            None => self.next_planning,
        };
        let step = self.stepping.as_ref().map(|stepping| stepping.at);
        let list = self.list_is_due.then_some(self.next_list);
        [self.urgent, step, list]
            .into_iter()
            .flatten()
            .fold(regular, Duration::min)
    }

    /// What is to be done now, in this order.
    pub fn take_actions(&mut self) -> VecDeque<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Gives other token keys to all relays.
    pub fn set_token_keys(&mut self, keys: TokenKeys) {
        if keys == self.token_keys {
            return;
        }
        self.token_keys = keys;
        let message = self.token_keys_message();
        self.send_to_all(&message);
    }

    /// The plan in force.
    #[must_use]
    pub fn active_plan(&self) -> Option<PlanId> {
        self.active.as_ref().map(|plan| plan.id)
    }

    fn keep(&mut self, record: Record) {
        self.actions.push_back(Action::Keep(Box::new(record)));
    }

    pub(super) fn save(&mut self) {
        let saved = SavedNetwork {
            epoch: self.epoch,
            relays: self.registry.to_saved(),
        };
        self.actions.push_back(Action::Save(saved));
    }

    pub(super) fn send(&mut self, connection: ConnectionId, message: ControllerToRelay) {
        self.actions.push_back(Action::Send {
            connection,
            message,
        });
    }

    pub(super) fn send_to_all(&mut self, message: &ControllerToRelay) {
        let online: Vec<ConnectionId> = self.registry.online().map(|(_, c)| c).collect();
        self.actions.push_back(Action::SendAll {
            connections: online,
            message: message.clone(),
        });
    }

    pub(super) fn close(&mut self, connection: ConnectionId, code: CloseCode, reason: &str) {
        let reason = reason.to_owned();
        self.actions.push_back(Action::Close {
            connection,
            code,
            reason,
        });
    }
}
