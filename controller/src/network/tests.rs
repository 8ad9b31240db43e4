//! The network without sockets: registrations, reports and silence in, plans out.

use std::collections::BTreeMap;

use tradewind_proto::control::{
    LinkState, PlanHeld, PlanPart, RelayLoad, link_state::State as Link,
};
use tradewind_trust::TokenKeys;

use super::*;

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
    list: Option<RelayList>,
    keys: usize,
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
        };
        let connection = fake.connection.unwrap();
        self.say(connection, from_relay::Body::LinkReport(report));
    }

    fn links_of(&self, place: usize) -> Vec<LinkState> {
        let peers = (0..self.relays.len()).filter(|&peer| peer != place);
        peers
            .map(|peer| {
                let (inward, outward) = (self.delays[peer][place], self.delays[place][peer]);
                let clocks = self.relays[place].clock_us - self.relays[peer].clock_us;
                let mut link = LinkState {
                    peer: self.relays[peer].name.clone(),
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
                    Action::Close {
                        connection, code, ..
                    } => {
                        self.closed.push((connection, code));
                    }
                    Action::Save(saved) => self.saved.push(saved),
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
                assert!(fake.active <= Some(id), "plans never go backwards");
                fake.active = Some(id);
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
            list: None,
            keys: 0,
            heard: Vec::new(),
        }
    }
}

fn name(place: usize) -> String {
    format!("relay-{place}")
}

#[test]
fn packets_take_the_detour_as_soon_as_all_links_are_measured() {
    let mut world = World::new(triangle());
    for place in 0..3 {
        world.connect(place);
    }
    world.run(Duration::from_millis(600));
    assert_eq!(
        world.activated,
        [PlanId {
            epoch: 1,
            number: 1
        }]
    );
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    assert_eq!(world.walk(2, 0), Some(vec![2, 1, 0]));
    assert_eq!(world.walk(0, 1), Some(vec![0, 1]));
    // Clocks are 1,000 s apart; along a path that does not matter.
    let path = world.path(0, 2);
    assert_eq!(path.path, ["relay-0", "relay-1", "relay-2"]);
    let saved = path.direct_delay_ms.unwrap() - path.delay_ms.unwrap();
    assert!((saved - 70.0).abs() < 0.01, "{path:?}");
    assert!(
        (path.saved_ms.unwrap() - 69.9).abs() < 0.01,
        "one hop more: {path:?}"
    );
}

#[test]
fn a_relay_is_greeted_in_order_and_others_hear_of_it() {
    let mut world = World::new(triangle());
    world.connect(0);
    assert_eq!(world.relays[0].heard, ["registered", "keys", "list"]);
    assert_eq!(
        (
            world.relays[0].index,
            world.relays[0].epoch,
            world.relays[0].keys
        ),
        (0, 1, 1)
    );
    world.connect(1);
    let names: Vec<_> = world.relays[0]
        .list
        .iter()
        .flat_map(|list| list.relays.iter().map(|relay| relay.name.as_str()))
        .collect();
    assert_eq!(names, ["relay-0", "relay-1"]);
    assert_eq!(world.saved.last().unwrap().relays.len(), 2);
}

#[test]
fn who_comes_back_gets_the_plan_in_force_at_once() {
    let mut world = World::running(triangle());
    world.disconnect(1);
    world.relays[1].heard.clear();
    world.connect(1);
    assert_eq!(
        world.relays[1].heard[..5],
        ["registered", "keys", "list", "part", "activate"]
    );
    assert_eq!(world.relays[1].active, world.network.active_plan());
}

#[test]
fn a_second_connection_of_the_same_relay_replaces_the_first() {
    let mut world = World::running(triangle());
    let old = world.relays[1].connection.unwrap();
    world.connect(1);
    assert_eq!(world.closed, [(old, CloseCode::Replaced)]);
    // The end of the old one changes nothing.
    world.network.disconnected(world.now, old);
    assert!(world.network.relays()[1].online);
}

#[test]
fn relays_that_cannot_be_told_to_others_are_refused() {
    let mut world = World::new(triangle());
    let bad = [
        Register {
            name: " x".into(),
            ..Register::default()
        },
        Register {
            name: "a".into(),
            link_addresses: vec!["0.0.0.0:7444".into()],
            ..Register::default()
        },
        Register {
            name: "a".into(),
            client_addresses: vec!["tokyo.example:1".into()],
            ..Register::default()
        },
        Register {
            name: "a".into(),
            latitude: f64::NAN,
            ..Register::default()
        },
    ];
    for (i, register) in bad.into_iter().enumerate() {
        let connection = ConnectionId(1_000 + i as u64);
        world.say(connection, from_relay::Body::Register(register));
        assert_eq!(
            world.closed.pop(),
            Some((connection, CloseCode::Protocol)),
            "case {i}"
        );
    }
    assert_eq!(world.network.relays(), []);
}

#[test]
fn nothing_is_taken_from_a_connection_that_has_not_registered() {
    let mut world = World::new(triangle());
    let stranger = ConnectionId(77);
    world.say(
        stranger,
        from_relay::Body::LinkReport(LinkReport::default()),
    );
    assert_eq!(world.closed, [(stranger, CloseCode::Protocol)]);
}

#[test]
fn reports_that_come_twice_or_late_are_passed_over() {
    let mut world = World::running(triangle());
    let connection = world.relays[0].connection.unwrap();
    let before = world.network.stats();
    // An old one that says everything is down.
    let old = LinkReport {
        sequence: 1,
        links: vec![LinkState {
            peer: name(1),
            state: Link::Down.into(),
            ..LinkState::default()
        }],
        load: None,
    };
    world.say(connection, from_relay::Body::LinkReport(old));
    assert_eq!(
        world.network.stats().reports_stale,
        before.reports_stale + 1
    );
    world.run(Duration::from_millis(900));
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
}

#[test]
fn links_to_strangers_and_to_itself_are_ignored() {
    let mut world = World::running(triangle());
    world.relays[0].sequence += 1;
    let report = LinkReport {
        sequence: world.relays[0].sequence,
        links: ["nobody", "relay-0"]
            .map(|peer| LinkState {
                peer: peer.into(),
                uplink: 999,
                ..LinkState::default()
            })
            .into(),
        load: None,
    };
    let connection = world.relays[0].connection.unwrap();
    world.say(connection, from_relay::Body::LinkReport(report));
    world.run(Duration::from_secs(2));
    assert_eq!(world.network.matrix(world.now).names.len(), 3);
}

#[test]
fn a_link_that_one_end_calls_down_is_planned_around_at_once() {
    let mut world = World::running(triangle());
    world.cut(0, 1);
    // Only one end has noticed yet.
    world.report(0);
    world.run(20 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 2]));
    assert_eq!(world.network.matrix(world.now).state[1][0], "down");
    assert_eq!(world.walk(0, 1), Some(vec![0, 2, 1]));
}

#[test]
fn a_relay_that_leaves_the_controller_keeps_its_traffic() {
    let mut world = World::running(triangle());
    let plan = world.network.active_plan();
    world.disconnect(1);
    world.run(Duration::from_secs(120));
    // Its peers say that its links are up.
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    assert_eq!(world.network.active_plan(), plan);
    assert!(!world.network.relays()[1].online);
}

#[test]
fn a_dead_relay_is_planned_around_and_in_time_left_out() {
    // Four places in a ring of fast links, so that most of the network stays.
    let fast = Some(10_000);
    let slow = Some(90_000);
    let mut world = World::running(vec![
        vec![None, fast, slow, fast],
        vec![fast, None, fast, slow],
        vec![slow, fast, None, fast],
        vec![fast, slow, fast, None],
    ]);
    assert_eq!(world.walk(0, 2).unwrap().len(), 3);
    world.kill(1);
    world.run(Duration::from_secs(4));
    assert_eq!(world.walk(0, 2), Some(vec![0, 3, 2]));
    let members = |world: &World| {
        let fake = &world.relays[0];
        fake.parts[&fake.active.unwrap()].relays.len()
    };
    assert_eq!(members(&world), 4, "it may come back");
    world.run(Duration::from_secs(31));
    assert_eq!(members(&world), 3);
    let plan = world.network.plan_view().unwrap();
    assert!(
        plan.reasons.iter().any(|reason| reason == "gone: relay-1"),
        "{:?}",
        plan.reasons
    );
    assert_eq!(world.walk(0, 3), Some(vec![0, 3]));
}

#[test]
fn a_restarted_relay_is_measured_anew_before_it_is_used() {
    let mut world = World::running(triangle());
    world.disconnect(1);
    // Its peers have not noticed: what they say is about its earlier life and clock.
    world.relays[1].incarnation += 1;
    world.relays[1].sequence = 0;
    world.relays[1].clock_us = 42;
    world.relays[1].parts.clear();
    world.relays[1].active = None;
    let links = world.delays.clone();
    for peer in [0, 2] {
        (world.delays[1][peer], world.delays[peer][1]) = (None, None);
    }
    world.connect(1);
    assert_eq!(world.network.matrix(world.now).state[0][1], "down");
    world.run(Duration::from_secs(4));
    world.delays = links;
    world.run(Duration::from_secs(4));
    let path = world.path(0, 2);
    assert_eq!(path.path, ["relay-0", "relay-1", "relay-2"]);
    let saved = path.direct_delay_ms.unwrap() - path.delay_ms.unwrap();
    assert!((saved - 70.0).abs() < 0.01, "{path:?}");
    assert_eq!(world.relays[1].index, 1, "indices are stable");
}

#[test]
fn a_plan_comes_into_force_only_when_all_live_relays_hold_it() {
    let mut world = World::new(triangle());
    world.relays[2].acknowledges = false;
    for place in 0..3 {
        world.connect(place);
    }
    world.run(Duration::from_millis(600));
    assert_eq!(world.activated, []);
    assert_eq!(world.relays[0].active, None);
    let id = *world.relays[2].parts.keys().next_back().unwrap();
    let connection = world.relays[2].connection.unwrap();
    // Holding some other plan does not count.
    for wrong in [
        PlanId { epoch: 9, ..id },
        PlanId {
            number: id.number + 1,
            ..id
        },
    ] {
        let held = PlanHeld {
            plan: Some(wrong.into()),
        };
        world.say(connection, from_relay::Body::PlanHeld(held));
        assert_eq!(world.activated, []);
    }
    let held = PlanHeld {
        plan: Some(id.into()),
    };
    world.say(connection, from_relay::Body::PlanHeld(held));
    assert_eq!(world.activated, [id]);
    assert_eq!(world.network.plan_view().unwrap().held_by.len(), 3);
}

#[test]
fn a_relay_that_does_not_acknowledge_is_no_transit_until_it_does() {
    let mut world = World::new(triangle());
    world.relays[1].acknowledges = false;
    for place in 0..3 {
        world.connect(place);
    }
    world.run(Duration::from_secs(3));
    assert!(world.network.relays()[1].silent);
    let path = |world: &World| world.path(0, 2).path.len();
    assert_eq!(path(&world), 2, "not over the silent one");
    assert_eq!(
        world.network.stats().plan_timeouts,
        1,
        "it is waited for once"
    );

    world.relays[1].acknowledges = true;
    world.disconnect(1);
    world.connect(1);
    world.run(Duration::from_secs(5));
    assert_eq!(path(&world), 3);
}

#[test]
fn a_relay_that_goes_away_during_distribution_does_not_hold_it_up() {
    let mut world = World::new(triangle());
    world.relays[2].acknowledges = false;
    for place in 0..3 {
        world.connect(place);
    }
    world.run(Duration::from_millis(600));
    assert_eq!(world.activated, []);
    world.disconnect(2);
    assert_eq!(world.activated.len(), 1);
}

#[test]
fn a_failure_during_distribution_replaces_the_plan_on_its_way() {
    let mut world = World::running(triangle());
    world.relays[2].acknowledges = false;
    world.cut(1, 2);
    world.run(30 * MS);
    assert_eq!(world.network.stats().plans_activated, 1);
    let waiting = world.network.plan_view().unwrap().on_its_way.unwrap();
    // That link heals, and another fails.
    (world.delays[1][2], world.delays[2][1]) = (Some(30_000), Some(31_000));
    world.relays[2].next_report = world.now;
    world.cut(0, 1);
    world.run(30 * MS);
    assert_eq!(world.network.stats().plans_superseded, 1);
    let newer = world.network.plan_view().unwrap().on_its_way.unwrap();
    assert!(newer > waiting);
    // The acknowledgement of the replaced one brings nothing into force.
    let connection = world.relays[2].connection.unwrap();
    let held = |number| PlanHeld {
        plan: Some(PlanId { epoch: 1, number }.into()),
    };
    world.say(connection, from_relay::Body::PlanHeld(held(waiting)));
    assert_eq!(world.network.stats().plans_activated, 1);
    world.say(connection, from_relay::Body::PlanHeld(held(newer)));
    assert_eq!(
        world.network.active_plan(),
        Some(PlanId {
            epoch: 1,
            number: newer
        })
    );
    assert_eq!(world.walk(0, 1), Some(vec![0, 2, 1]));
}

#[test]
fn a_draining_relay_is_no_transit_but_still_a_destination() {
    for by_message in [true, false] {
        let mut world = World::running(triangle());
        world.relays[1].draining = true;
        match by_message {
            true => {
                let connection = world.relays[1].connection.unwrap();
                let leaving = tradewind_proto::control::Leaving {};
                world.say(connection, from_relay::Body::Leaving(leaving));
            }
            false => world.report(1),
        }
        world.run(20 * MS);
        assert_eq!(world.walk(0, 2), Some(vec![0, 2]));
        assert_eq!(world.walk(0, 1), Some(vec![0, 1]));
        let edges: Vec<_> = world
            .network
            .edges()
            .into_iter()
            .map(|edge| edge.name)
            .collect();
        assert_eq!(edges, ["relay-0", "relay-2"]);
        let list = world.relays[0].list.as_ref().unwrap();
        assert!(list.relays[1].draining);
    }
}

#[test]
fn after_a_restart_indices_stay_and_plans_continue_in_a_greater_epoch() {
    let mut world = World::running(triangle());
    let saved = SavedNetwork {
        epoch: 2,
        ..world.saved.last().unwrap().clone()
    };
    let mut fresh = World::with(triangle(), saved, NetworkConfig::default());
    for place in [2, 0] {
        fresh.relays[place].parts = std::mem::take(&mut world.relays[place].parts);
        fresh.relays[place].active = world.relays[place].active;
        fresh.connect(place);
    }
    assert_eq!(fresh.relays[2].index, 2);
    // Nobody is told that relay-1, which is not back yet, is gone.
    assert_eq!(fresh.relays[0].list.as_ref().unwrap().relays.len(), 3);
    fresh.run(Duration::from_secs(2));
    assert_eq!(
        fresh.activated,
        [PlanId {
            epoch: 2,
            number: 1
        }]
    );
    // And the ways over it, which its peers vouch for, are used.
    assert_eq!(fresh.path(0, 2).path, ["relay-0", "relay-1", "relay-2"]);
    fresh.connect(1);
    fresh.run(Duration::from_secs(1));
    assert_eq!(fresh.walk(0, 2), Some(vec![0, 1, 2]));
}

#[test]
fn a_controller_that_has_lost_its_state_outdoes_the_plans_that_relays_hold() {
    let mut world = World::new(triangle());
    world.connect(0);
    world.connect(1);
    world.relays[2].parts.insert(
        PlanId {
            epoch: 7,
            number: 3,
        },
        PlanPart::default(),
    );
    world.connect(2);
    world.run(Duration::from_secs(1));
    assert_eq!(
        world.activated.last(),
        Some(&PlanId {
            epoch: 8,
            number: 1
        })
    );
    assert_eq!(world.saved.last().unwrap().epoch, 8);
}

#[test]
fn when_everything_seems_dead_the_plan_is_kept() {
    let mut world = World::running(triangle());
    let links = world.delays.clone();
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        world.cut(a, b);
    }
    world.run(Duration::from_secs(1));
    assert!(world.network.alert().is_some());
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    world.delays = links;
    world.run(Duration::from_secs(6));
    assert_eq!(world.network.alert(), None);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
}

#[test]
fn a_link_nobody_reports_any_more_is_unknown_not_free() {
    let mut world = World::running(triangle());
    for _ in 0..12 {
        for place in 0..3 {
            world.relays[place].sequence += 1;
            let report = LinkReport {
                sequence: world.relays[place].sequence,
                ..LinkReport::default()
            };
            let connection = world.relays[place].connection.unwrap();
            world.relays[place].next_report = world.now + Duration::from_secs(3_600);
            world.say(connection, from_relay::Body::LinkReport(report));
        }
        world.run(Duration::from_secs(1));
    }
    let matrix = world.network.matrix(world.now);
    assert_eq!(matrix.state[0][1], "unknown");
    assert_eq!(matrix.one_way_ms[0][1], None);
    assert_eq!(matrix.rtt_ms[0][1], None);
}

#[test]
fn token_keys_go_to_all_relays_when_they_change() {
    let mut world = World::running(triangle());
    let mut keys = TokenKeys::default();
    keys.insert("k1", [1; 32]);
    keys.insert("k2", [2; 32]);
    world.network.set_token_keys(keys.clone());
    world.deliver();
    assert!(world.relays.iter().all(|fake| fake.keys == 2));
    world.network.set_token_keys(keys);
    assert!(
        world.network.take_actions().is_empty(),
        "nothing new, nothing sent"
    );
}

#[test]
fn backups_name_a_way_that_avoids_the_next_hop() {
    let world = World::running(triangle());
    let fake = &world.relays[0];
    let part = &fake.parts[&fake.active.unwrap()];
    let backup = part.profiles[0]
        .backups
        .iter()
        .find(|backup| backup.destination == 2)
        .unwrap();
    assert_eq!(backup.relays, [1, 2], "by way of relay-1, else directly");
    let tree = &part.profiles[0].trees[0];
    assert_eq!(tree.next_hop, [0, 1, 1]);
    assert_eq!(tree.cost_us[0], 0);
    assert!(
        part.profiles[0]
            .backups
            .iter()
            .all(|backup| backup.destination != 0)
    );
}

#[test]
fn an_unknown_name_is_answered_with_those_there_are() {
    let world = World::running(triangle());
    let error = world
        .network
        .path(world.now, "relay-9", "relay-1")
        .unwrap_err();
    assert!(matches!(&error, PathError::UnknownRelay { candidates, .. } if candidates.len() == 3));
    assert!(error.to_string().contains("relay-9") && error.to_string().contains("relay-2"));
    let error = world
        .network
        .path(world.now, "relay", "relay-1")
        .unwrap_err();
    assert!(matches!(error, PathError::Ambiguous { .. }));
    assert_eq!(
        world
            .network
            .path(world.now, "Y-2", "RELAY-1")
            .unwrap()
            .path,
        ["relay-2", "relay-1"]
    );
    assert_eq!(
        World::new(triangle())
            .network
            .path(Duration::ZERO, "a", "b"),
        Err(PathError::UnknownRelay {
            name: "a".into(),
            candidates: vec![]
        })
    );
}

#[test]
fn a_relay_by_itself_is_a_network_too() {
    let mut world = World::with(
        triangle(),
        SavedNetwork::default(),
        NetworkConfig::default(),
    );
    world.connect(0);
    world.run(Duration::from_secs(2));
    assert_eq!(world.relays[0].active, world.network.active_plan());
    assert!(world.relays[0].active.is_some());
    assert_eq!(world.walk(0, 0), Some(vec![0]));
    let plans = world.network.stats().plans_made;
    world.run(Duration::from_secs(60));
    assert_eq!(world.network.stats().plans_made, plans);
    world.connect(1);
    world.connect(2);
    world.run(Duration::from_secs(2));
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
}
