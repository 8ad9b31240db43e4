//! The network without sockets: registrations, reports and silence in, plans out.

use std::collections::BTreeMap;

use tradewind_proto::control::{
    LinkReport, LinkState, PlanHeld, PlanPart, Register, RelayList, RelayLoad,
    controller_to_relay as to_relay, link_state::State as Link,
};
use tradewind_trust::{Revocation, RevocationList, TokenKeys};

use super::*;
use crate::storage::{MemoryStorage, Storage as _};

mod operate;
mod plans;
mod policy;
mod relays;
mod revocations;
mod stability;

const MS: Duration = Duration::from_millis(1);

/// Relays that do as they should, but for what a test tells them, at network time `now`.
struct World {
    network: Network,
    now: Duration,
    /// One-way delays, microseconds, by place.
    delays: Vec<Vec<Option<u32>>>,
    relays: Vec<Fake>,
    next_connection: u64,
    closed: Vec<(ConnectionId, CloseCode)>,
    saved: Vec<SavedNetwork>,
    storage: MemoryStorage,
    /// A second line between two places, and its one-way delay in microseconds while it works.
    second_uplink: Option<(usize, usize, Option<u32>)>,
    /// Relays say which life of a peer their links are with; the software before does not.
    tell_lives: bool,
    activated: Vec<PlanId>,
}

/// One relay at one place.
struct Fake {
    name: String,
    connection: Option<ConnectionId>,
    incarnation: u64,
    sequence: u64,
    /// Its clock's offset, microseconds.
    clock_us: i64,
    acknowledges: bool,
    draining: bool,
    next_report: Duration,
    index: u32,
    epoch: u32,
    parts: BTreeMap<PlanId, PlanPart>,
    active: Option<PlanId>,
    /// Of the last order: the share of `active`, and what the rest is stamped with.
    share: (u32, Option<PlanId>),
    order: u64,
    list: Option<RelayList>,
    keys: usize,
    revoked: RevocationList,
    /// Bodies received, in order, by a word each.
    heard: Vec<&'static str>,
}

/// Three places: 0–2 is slow, by way of 1 it is fast.
fn triangle() -> Vec<Vec<Option<u32>>> {
    vec![
        vec![None, Some(20_000), Some(120_000)],
        vec![Some(22_000), None, Some(30_000)],
        vec![Some(125_000), Some(31_000), None],
    ]
}

impl World {
    fn new(delays: Vec<Vec<Option<u32>>>) -> Self {
        let n = delays.len();
        let saved = SavedNetwork {
            epoch: 1,
            ..SavedNetwork::default()
        };
        Self::with(
            delays,
            saved,
            NetworkConfig {
                expected_relays: Some(n),
                ..Default::default()
            },
        )
    }

    fn with(delays: Vec<Vec<Option<u32>>>, saved: SavedNetwork, config: NetworkConfig) -> Self {
        let mut keys = TokenKeys::default();
        keys.insert("k1", [1; 32]);
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let relays = (0..delays.len()).map(Fake::new).collect();
        Self {
            network: Network::new(config, saved, keys, wall),
            now: Duration::ZERO,
            delays,
            relays,
            next_connection: 0,
            closed: Vec::new(),
            saved: Vec::new(),
            storage: MemoryStorage::default(),
            second_uplink: None,
            tell_lives: false,
            activated: Vec::new(),
        }
    }

    /// All relays have come and a first plan is in force.
    fn running(delays: Vec<Vec<Option<u32>>>) -> Self {
        let mut world = Self::new(delays);
        for place in 0..world.relays.len() {
            world.connect(place);
        }
        world.run(Duration::from_secs(5));
        assert!(world.network.active_plan().is_some(), "start-up within 5 s");
        world
    }

    fn connect(&mut self, place: usize) {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        let fake = &mut self.relays[place];
        fake.connection = Some(connection);
        fake.next_report = self.now;
        let register = Register {
            name: fake.name.clone(),
            region: "test".into(),
            client_addresses: vec![format!("10.0.0.{}:7443", place + 1)],
            link_addresses: vec![format!("10.0.0.{}:7444", place + 1)],
            incarnation: fake.incarnation,
            held: fake.parts.keys().next_back().map(|&id| id.into()),
            ..Register::default()
        };
        self.say(connection, from_relay::Body::Register(register));
    }

    fn disconnect(&mut self, place: usize) {
        if let Some(connection) = self.relays[place].connection.take() {
            self.network.disconnected(self.now, connection);
            self.deliver();
        }
    }

    /// The process of a relay ends: its links too.
    fn kill(&mut self, place: usize) {
        self.disconnect(place);
        for other in 0..self.relays.len() {
            self.delays[place][other] = None;
            self.delays[other][place] = None;
            self.relays[other].next_report = self.now;
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        (self.delays[a][b], self.delays[b][a]) = (None, None);
        (self.relays[a].next_report, self.relays[b].next_report) = (self.now, self.now);
    }

    fn say(&mut self, connection: ConnectionId, body: from_relay::Body) {
        self.network
            .received(self.now, connection, RelayToController { body: Some(body) });
        self.deliver();
    }

    /// Lets time pass: reports every second, ticks when they are due.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let reports = self.relays.iter().filter(|fake| fake.connection.is_some());
            let next = reports
                .map(|fake| fake.next_report)
                .chain([self.network.next_tick()])
                .min()
                .unwrap()
                .max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            for place in 0..self.relays.len() {
                let fake = &self.relays[place];
                if fake.connection.is_some() && fake.next_report <= self.now {
                    self.report(place);
                }
            }
            self.network.tick(self.now);
            self.deliver();
        }
    }

    fn report(&mut self, place: usize) {
        let links = self.links_of(place);
        let now = self.now;
        let fake = &mut self.relays[place];
        fake.sequence += 1;
        fake.next_report = now + Duration::from_secs(1);
        let report = LinkReport {
            sequence: fake.sequence,
            links,
            load: Some(RelayLoad {
                draining: fake.draining,
                ..RelayLoad::default()
            }),
            ..Default::default()
        };
        let connection = fake.connection.unwrap();
        self.say(connection, from_relay::Body::LinkReport(report));
    }

    fn links_of(&self, place: usize) -> Vec<LinkState> {
        let peers = (0..self.relays.len()).filter(|&peer| peer != place);
        let first = peers.map(|peer| (peer, 0, self.delays[peer][place], self.delays[place][peer]));
        let second = self.second_uplink.and_then(|(a, b, delay)| match place {
            place if place == a => Some((b, 1, delay, delay)),
            place if place == b => Some((a, 1, delay, delay)),
            _ => None,
        });
        first
            .chain(second)
            .map(|(peer, uplink, inward, outward)| {
                let clocks = self.relays[place].clock_us - self.relays[peer].clock_us;
                let mut link = LinkState {
                    peer: self.relays[peer].name.clone(),
                    uplink,
                    state: Link::Down.into(),
                    ..LinkState::default()
                };
                if let (Some(inward), Some(outward)) = (inward, outward) {
                    link.state = Link::Up.into();
                    link.rtt_min_us = inward + outward;
                    link.rtt_smoothed_us = inward + outward;
                    link.raw_known = true;
                    link.raw_in_us = i64::from(inward) + clocks;
                    link.raw_out_us = i64::from(outward) - clocks;
                    link.packets_received = self.now.as_millis() as u64;
                    if self.tell_lives {
                        link.peer_incarnation = self.relays[peer].incarnation;
                    }
                }
                link
            })
            .collect()
    }

    fn deliver(&mut self) {
        loop {
            let actions = self.network.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Send {
                        connection,
                        message,
                    } => self.hear(connection, message),
                    Action::SendAll {
                        connections,
                        message,
                    } => {
                        for connection in connections {
                            self.hear(connection, message.clone());
                        }
                    }
                    Action::SendPart { connection, part } => self.hear(connection, part.message()),
                    Action::Close {
                        connection, code, ..
                    } => {
                        self.closed.push((connection, code));
                    }
                    Action::Save(saved) => self.saved.push(saved),
                    Action::Keep(record) => self.storage.write(&record).unwrap(),
                    Action::Activated(id) => self.activated.push(id),
                }
            }
        }
    }

    fn hear(&mut self, connection: ConnectionId, message: ControllerToRelay) {
        let fake = self
            .relays
            .iter_mut()
            .find(|fake| fake.connection == Some(connection));
        let Some(fake) = fake else { return };
        let mut answer = None;
        match message.body.unwrap() {
            to_relay::Body::Registered(registered) => {
                fake.heard.push("registered");
                (fake.index, fake.epoch) = (registered.index, registered.epoch);
            }
            to_relay::Body::TokenKeys(keys) => {
                fake.heard.push("keys");
                fake.keys = keys.keys.len();
            }
            to_relay::Body::RelayList(list) => {
                fake.heard.push("list");
                if let Some(known) = &fake.list {
                    assert!(known.version <= list.version, "lists never go backwards");
                }
                fake.list = Some(list);
            }
            to_relay::Body::PlanPart(part) => {
                fake.heard.push("part");
                let plan = part.plan;
                fake.parts.insert(plan.unwrap().id().unwrap(), part);
                answer = fake.acknowledges.then_some(plan);
            }
            to_relay::Body::Activate(activate) => {
                fake.heard.push("activate");
                let id = activate.plan.unwrap().id().unwrap();
                assert!(fake.parts.contains_key(&id), "activated plans are held");
                assert!(activate.order >= fake.order, "orders never go backwards");
                fake.order = activate.order;
                let rest = activate.rest.and_then(|rest| rest.id());
                if let Some(rest) = rest {
                    assert!(
                        fake.parts.contains_key(&rest),
                        "so is what the rest is stamped with"
                    );
                    assert!((1..1_000).contains(&activate.share_permille));
                }
                fake.share = (activate.share_permille, rest);
                fake.active = Some(id);
            }
            to_relay::Body::Revocations(change) => {
                if change.whole {
                    fake.revoked = RevocationList::default();
                }
                for lifted in change.lifted {
                    let lifted = Revocation::from_message(lifted).unwrap();
                    assert!(fake.revoked.remove(&lifted.app, &lifted.what));
                }
                for revoked in change.revoked {
                    let revoked = Revocation::from_message(revoked).unwrap();
                    fake.revoked.insert(&revoked).unwrap();
                }
            }
            to_relay::Body::Refused(_) => fake.heard.push("refused"),
        }
        if let Some(plan) = answer {
            let held = from_relay::Body::PlanHeld(PlanHeld { plan });
            self.network
                .received(self.now, connection, RelayToController { body: Some(held) });
        }
    }

    /// The path packets take from place to place, as the relays forward: `None` when it ends
    /// nowhere.
    fn walk(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        let mut path = vec![from];
        while path[path.len() - 1] != to {
            let at = &self.relays[path[path.len() - 1]];
            let part = &at.parts[&at.active?];
            let column = part.relays.iter().position(|info| info.name == name(to))?;
            let next = part.profiles[0].trees[0].next_hop[column];
            let next = part.relays.iter().find(|info| info.index == next)?;
            path.push(self.relays.iter().position(|fake| fake.name == next.name)?);
            assert!(path.len() <= 6, "at most 4 relays of transit: {path:?}");
        }
        Some(path)
    }

    fn path(&self, from: usize, to: usize) -> PathView {
        self.network.path(self.now, &name(from), &name(to)).unwrap()
    }
}

impl Fake {
    fn new(place: usize) -> Self {
        Self {
            name: name(place),
            connection: None,
            incarnation: 100 + place as u64,
            sequence: 0,
            clock_us: 1_000_000_000 * place as i64 - 123_456_789,
            acknowledges: true,
            draining: false,
            next_report: Duration::ZERO,
            index: u32::MAX,
            epoch: 0,
            parts: BTreeMap::new(),
            active: None,
            share: (0, None),
            order: 0,
            list: None,
            keys: 0,
            revoked: RevocationList::default(),
            heard: Vec::new(),
        }
    }
}

fn name(place: usize) -> String {
    format!("relay-{place}")
}
