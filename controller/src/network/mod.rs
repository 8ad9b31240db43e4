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

mod links;
mod plan;
mod registry;
mod rollout;
#[cfg(test)]
mod tests;
mod views;

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use tradewind_proto::{
    CloseCode, PlanId, RelayIndex, Uplink,
    control::{
        Activate, ControllerToRelay, LinkReport, PlanName, Refused, Register, Registered,
        RelayList, RelayToController, TokenKey, TokenKeys as TokenKeysMessage,
        controller_to_relay as to_relay, relay_to_controller as from_relay,
    },
};
use tradewind_routing::{CostWeights, Planner, PlannerConfig};
use tradewind_trust::TokenKeys;

use crate::state::SavedNetwork;
use links::Links;
use plan::{Distribution, Plan};
use registry::Registry;

pub use views::{
    Addresses, EdgeView, LinkView, MatrixView, PathError, PathView, PlanView, RelayView, Stats,
};

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
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            expected_relays: None,
            planner: PlannerConfig {
                out_trees: false,
                ..PlannerConfig::default()
            },
            weights: CostWeights::default(),
            interval: Duration::from_millis(250),
            gather: Duration::from_millis(10),
            plan_timeout: Duration::from_secs(1),
            leave_out_after: Duration::from_secs(30),
            forget_after: Duration::from_secs(3_600),
            max_relays: 4_096,
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
    active: Option<Plan>,
    on_its_way: Option<Distribution>,
    next_planning: Duration,
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
            active: None,
            on_its_way: None,
            next_planning: config.interval,
            gathered: (0, Duration::ZERO),
            urgent: None,
            alert: None,
            republish: None,
            actions: VecDeque::new(),
            stats: Stats::default(),
            config,
        }
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
        let urgent = self.urgent.is_some_and(|at| now >= at);
        if urgent || (now >= self.next_planning && self.on_its_way.is_none()) {
            self.plan(now);
        }
    }

    /// When [`Network::tick`] has something to do next, if nothing is received before.
    #[must_use]
    pub fn next_tick(&self) -> Duration {
        let regular = match &self.on_its_way {
            Some(distribution) => distribution.deadline,
            None => self.next_planning,
        };
        self.urgent.map_or(regular, |urgent| urgent.min(regular))
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

    fn register(&mut self, now: Duration, connection: ConnectionId, register: Register) {
        if self.registry.of_connection(connection).is_some() {
            return self.close(connection, CloseCode::Protocol, "registered twice");
        }
        let name = register.name.clone();
        let held = register.held.as_ref().and_then(PlanName::id);
        let admitted = match held {
            Some(held) if held.epoch == u16::MAX => {
                Err("it holds a plan of the last possible epoch: remove its plan file".to_owned())
            }
            _ => self
                .registry
                .admit(now, connection, register, self.config.max_relays),
        };
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                tracing::warn!(relay = name, reason, "relay refused");
                self.stats.relays_refused += 1;
                let body = to_relay::Body::Refused(Refused {
                    reason: reason.clone(),
                });
                self.send(connection, ControllerToRelay { body: Some(body) });
                return self.close(connection, CloseCode::Protocol, &reason);
            }
        };
        self.stats.registrations += 1;
        let ours = PlanId {
            epoch: self.epoch,
            number: self.next_number,
        };
        let outdated = held.is_some_and(|held| held >= ours);
        if let Some(held) = held.filter(|_| outdated) {
            // This controller has lost what it knew: relays would take its plans for old ones.
            tracing::warn!(relay = name, %held, "holds a plan from the future: new epoch");
            self.epoch = held.epoch + 1;
            self.next_number = 1;
            self.republish = Some(format!("{name} holds the later plan {held}"));
        }
        if admitted.changed || outdated {
            self.save();
        }
        if let Some(old) = admitted.replaced {
            self.close(old, CloseCode::Replaced, "the relay has connected again");
        }
        if admitted.restarted {
            self.links.restarted(admitted.index);
        }
        tracing::info!(relay = name, index = admitted.index.0, "relay online");
        self.welcome(connection, admitted.index);
        if admitted.changed || admitted.restarted {
            self.push_list(now);
        } else {
            let list = self.list_message(now);
            self.send(connection, list);
        }
        self.send_plans(connection, admitted.index);
        self.ask_soon(now);
    }

    fn welcome(&mut self, connection: ConnectionId, index: RelayIndex) {
        let registered = Registered {
            index: u32::from(index.0),
            epoch: u32::from(self.epoch),
        };
        let body = to_relay::Body::Registered(registered);
        self.send(connection, ControllerToRelay { body: Some(body) });
        let keys = self.token_keys_message();
        self.send(connection, keys);
    }

    /// The plan in force, and the one on its way, for a relay that has just come.
    fn send_plans(&mut self, connection: ConnectionId, index: RelayIndex) {
        let active = self
            .active
            .as_ref()
            .and_then(|plan| Some((plan.id, plan.part_for(index)?)));
        if let Some((id, part)) = active {
            self.send(
                connection,
                ControllerToRelay {
                    body: Some(to_relay::Body::PlanPart(part)),
                },
            );
            self.send(connection, activate(id));
        }
        let coming = self
            .on_its_way
            .as_ref()
            .and_then(|coming| coming.plan.part_for(index));
        if let Some(part) = coming {
            self.send(
                connection,
                ControllerToRelay {
                    body: Some(to_relay::Body::PlanPart(part)),
                },
            );
        }
    }

    fn report(&mut self, now: Duration, relay: RelayIndex, report: &LinkReport) {
        let entry = self.registry.get_mut(relay);
        if entry
            .last_report
            .is_some_and(|last| report.sequence <= last)
        {
            self.stats.reports_stale += 1;
            return;
        }
        entry.last_report = Some(report.sequence);
        self.stats.reports += 1;
        if let Some(load) = &report.load {
            entry.sessions = load.sessions;
            entry.busy_permille = load.busy_permille.min(1_000);
            if entry.draining != load.draining {
                self.set_draining(now, relay, load.draining);
            }
        }
        self.links.begin_report(now, relay, report, &self.registry);
        let (mut failed, mut gained) = (false, false);
        for link in &report.links {
            let peer = self
                .registry
                .index_of(&link.peer)
                .filter(|&peer| peer != relay);
            let (Some(peer), Ok(uplink)) = (peer, u8::try_from(link.uplink)) else {
                continue; // not, or no more, of this network
            };
            let changes = self
                .links
                .update(now, relay, peer, Uplink(uplink), link, &self.registry);
            failed |= changes.failed;
            gained |= changes.gained;
        }
        if failed || (gained && self.active.is_some()) {
            self.ask_soon(now);
        }
    }

    fn set_draining(&mut self, now: Duration, relay: RelayIndex, draining: bool) {
        let entry = self.registry.get_mut(relay);
        if std::mem::replace(&mut entry.draining, draining) != draining {
            tracing::info!(relay = entry.name(), draining, "relay drains");
            self.push_list(now);
            self.ask_soon(now);
        }
    }

    fn held(&mut self, now: Duration, relay: RelayIndex, id: PlanId) {
        let entry = self.registry.get_mut(relay);
        entry.held = entry.held.max(Some(id));
        if let Some(active) = self.active.as_mut().filter(|plan| plan.id == id) {
            active.held_by.insert(relay);
        }
        let coming = self
            .on_its_way
            .as_mut()
            .filter(|coming| coming.plan.id == id);
        if let Some(coming) = coming {
            coming.plan.held_by.insert(relay);
            coming.waiting.remove(&relay);
        } else if self.active_plan() != Some(id) {
            return; // of a plan that was replaced, or of another controller
        }
        let entry = self.registry.get_mut(relay);
        if std::mem::take(&mut entry.silent) {
            tracing::info!(relay = entry.name(), "relay acknowledges plans again");
            self.ask_soon(now);
        }
        self.finish_distribution(now);
    }

    /// Asks the planner a moment from now, however soon the regular time is.
    fn ask_soon(&mut self, now: Duration) {
        self.urgent.get_or_insert(now + self.config.gather);
    }

    fn push_list(&mut self, now: Duration) {
        self.list_version += 1;
        let list = self.list_message(now);
        self.send_to_all(&list);
    }

    fn list_message(&self, now: Duration) -> ControllerToRelay {
        let known = self.registry.iter().filter(|(_, relay)| {
            relay
                .dead_since
                .is_none_or(|since| now < since + self.config.forget_after)
        });
        let list = RelayList {
            version: u64::from(self.epoch) << 32 | u64::from(self.list_version),
            relays: known.map(|(index, relay)| relay.info(index)).collect(),
        };
        ControllerToRelay {
            body: Some(to_relay::Body::RelayList(list)),
        }
    }

    fn token_keys_message(&self) -> ControllerToRelay {
        let keys = self.token_keys.iter().map(|(kid, public)| TokenKey {
            kid: kid.to_owned(),
            public_key: public.to_vec(),
        });
        let keys = TokenKeysMessage {
            keys: keys.collect(),
            revocations: Vec::new(),
        };
        ControllerToRelay {
            body: Some(to_relay::Body::TokenKeys(keys)),
        }
    }

    fn save(&mut self) {
        let saved = SavedNetwork {
            epoch: self.epoch,
            relays: self.registry.to_saved(),
        };
        self.actions.push_back(Action::Save(saved));
    }

    fn send(&mut self, connection: ConnectionId, message: ControllerToRelay) {
        self.actions.push_back(Action::Send {
            connection,
            message,
        });
    }

    fn send_to_all(&mut self, message: &ControllerToRelay) {
        let online: Vec<ConnectionId> = self.registry.online().map(|(_, c)| c).collect();
        for connection in online {
            self.send(connection, message.clone());
        }
    }

    fn close(&mut self, connection: ConnectionId, code: CloseCode, reason: &str) {
        let reason = reason.to_owned();
        self.actions.push_back(Action::Close {
            connection,
            code,
            reason,
        });
    }
}

fn activate(id: PlanId) -> ControllerToRelay {
    ControllerToRelay {
        body: Some(to_relay::Body::Activate(Activate {
            plan: Some(id.into()),
            ..Default::default()
        })),
    }
}
