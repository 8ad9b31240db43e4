//! Relays come, report, acknowledge and go.

use std::time::Duration;

use tradewind_proto::{
    Class, CloseCode, LinkKey, PlanId, RelayIndex, Uplink,
    control::{
        ControllerToRelay, LinkReport, PlanName, Refused, Register, Registered, RelayList,
        TokenKey, TokenKeys as TokenKeysMessage, controller_to_relay as to_relay,
    },
};

use super::{Action, ConnectionId, Network, plan::Part};

/// In networks up to this size the list of relays is sent to all whenever it changes. In larger
/// ones, where many may come or go together, it rests a microsecond per pair of relays meanwhile:
/// a second at a thousand.
const SMALL: usize = 64;

/// How soon relays are told again how loaded others are.
const LOADS_AGAIN: Duration = Duration::from_secs(5);

impl Network {
    pub(super) fn register(&mut self, now: Duration, connection: ConnectionId, register: Register) {
        if self.registry.of_connection(connection).is_some() {
            return self.close(connection, CloseCode::Protocol, "registered twice");
        }
        let name = register.name.clone();
        let incarnation = register.incarnation;
        let held = register.held.as_ref().and_then(PlanName::id);
        let admitted = match held {
            _ if self.is_refused(&name) => Err(format!(
                "`{name}` was decommissioned; to take it in again: tradewind decommission --undo {name}"
            )),
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
            // Relays take nothing of the epoch before any more.
            self.older.clear();
            self.republish = Some(format!("{name} holds the later plan {held}"));
        }
        if admitted.changed || outdated {
            self.save();
        }
        if let Some(old) = admitted.replaced {
            self.close(old, CloseCode::Replaced, "the relay has connected again");
        }
        if admitted.restarted {
            self.links.restarted(admitted.index, incarnation);
            self.traffic.restarted(admitted.index);
            self.demand.restarted(u32::from(admitted.index.0));
            self.forget_what_is_held(admitted.index);
        }
        self.apply_decisions(now, admitted.index);
        tracing::info!(relay = name, index = admitted.index.0, "relay online");
        self.welcome(now, connection, admitted.index);
        let news = admitted.changed || admitted.restarted;
        if news {
            self.push_list(now);
        }
        // It does not wait for the list that others get later.
        if !news || self.list_is_due {
            let list = self.list_message(now);
            self.send(connection, list);
        }
        self.send_plans(connection, admitted.index);
        self.ask_soon(now);
    }

    pub(super) fn welcome(&mut self, now: Duration, connection: ConnectionId, index: RelayIndex) {
        let registered = Registered {
            index: u32::from(index.0),
            epoch: u32::from(self.epoch),
        };
        let body = to_relay::Body::Registered(registered);
        self.send(connection, ControllerToRelay { body: Some(body) });
        // First what no key can make valid.
        self.send_revocations(connection, now);
        let keys = self.token_keys_message();
        self.send(connection, keys);
    }

    /// For a relay that has just come: the plans that are stamped, the order in force, and the
    /// plan that is on its way.
    pub(super) fn send_plans(&mut self, connection: ConnectionId, index: RelayIndex) {
        let mut actions = Vec::new();
        // Of an epoch before, relays would take nothing; a new plan is about to be made then.
        if let Some((stamping, active)) = self.stamping.as_ref().zip(self.active.as_ref())
            && active.id.epoch == self.epoch
            && active.knows(index)
        {
            let rest = self
                .older
                .iter()
                .find(|plan| Some(plan.id) == stamping.rest);
            let rest = rest.and_then(|plan| Part::new(plan, index));
            // A relay that is newer than the other plan stamps all of its flows with this one.
            let order = stamping.message(rest.is_some());
            let parts = rest.into_iter().chain(Part::new(active, index));
            actions.extend(parts.map(|part| Action::SendPart { connection, part }));
            let body = to_relay::Body::Activate(order);
            actions.push(Action::Send {
                connection,
                message: ControllerToRelay { body: Some(body) },
            });
        }
        let coming = self.on_its_way.as_ref();
        let coming = coming.and_then(|coming| Part::new(&coming.plan, index));
        actions.extend(coming.map(|part| Action::SendPart { connection, part }));
        self.actions.extend(actions);
    }

    pub(super) fn report(&mut self, now: Duration, relay: RelayIndex, report: &LinkReport) {
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
            let permille = load.load_permille.max(load.busy_permille).min(1_000);
            self.loads_changed |= entry.set_load(permille);
            if entry.draining != load.draining {
                self.set_draining(now, relay, load.draining);
            }
        }
        if self.loads_changed && now >= self.next_loads {
            self.loads_changed = false;
            self.next_loads = now + LOADS_AGAIN;
            self.push_list(now);
        }
        let known = self.registry.len() as u32;
        let rows = report.demand.iter().filter(|row| row.destination < known);
        let counters = rows.flat_map(|row| {
            let bytes = row.bytes.iter().take(Class::ALL.len()).enumerate();
            bytes.map(|(class, &bytes)| (row.destination, class, bytes))
        });
        self.demand.report(now, u32::from(relay.0), counters);
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
            let key = LinkKey {
                from: relay,
                to: peer,
                uplink: Uplink(uplink),
            };
            self.traffic.update(now, key, link.bytes_sent);
        }
        if failed || (gained && self.active.is_some()) {
            self.ask_soon(now);
        }
    }

    pub(super) fn set_draining(&mut self, now: Duration, relay: RelayIndex, draining: bool) {
        let entry = self.registry.get_mut(relay);
        if std::mem::replace(&mut entry.draining, draining) != draining {
            tracing::info!(relay = entry.name(), draining, "relay drains");
            self.push_list(now);
            self.ask_soon(now);
        }
    }

    pub(super) fn held(&mut self, now: Duration, relay: RelayIndex, id: PlanId) {
        let entry = self.registry.get_mut(relay);
        entry.held = entry.held.max(Some(id));
        for plan in self.active.iter_mut().chain(&mut self.older) {
            if plan.id == id {
                plan.held_by.insert(relay);
            }
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
    pub(super) fn ask_soon(&mut self, now: Duration) {
        let at = (now + self.config.gather).max(self.rest_until);
        self.urgent.get_or_insert(at);
    }

    pub(super) fn push_list(&mut self, now: Duration) {
        self.list_version += 1;
        self.list_is_due = true;
        if now >= self.next_list {
            self.send_list(now);
        }
    }

    pub(super) fn send_list(&mut self, now: Duration) {
        self.list_is_due = false;
        let n = self.registry.len();
        if n > SMALL {
            self.next_list = now + Duration::from_micros((n * n) as u64);
        }
        let list = self.list_message(now);
        self.send_to_all(&list);
    }

    pub(super) fn list_message(&self, now: Duration) -> ControllerToRelay {
        let known = self.registry.iter().filter(|(_, relay)| {
            !relay.is_retired()
                && relay
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

    pub(super) fn token_keys_message(&self) -> ControllerToRelay {
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
}
