//! The operator's hand: quarantine, decommission, policy, rollout, rollback.

use super::*;
use crate::{
    policy::{Policy, ProfileName},
    storage::{KeptPolicy, Record},
};

const S: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn policy(&mut self, text: &str) {
        let policy = KeptPolicy {
            policy: Policy::from_toml(text, "test").unwrap(),
            source: "api".into(),
            ..KeptPolicy::default()
        };
        self.network
            .set_policy(self.now, policy, By::Policy, "a policy");
        self.deliver();
    }

    fn operate<E: std::fmt::Debug>(
        &mut self,
        act: impl FnOnce(&mut Network, Duration) -> Result<(), E>,
    ) {
        act(&mut self.network, self.now).unwrap();
        self.deliver();
    }

    /// The present plan's part at a place.
    pub(super) fn part(&self, place: usize) -> &PlanPart {
        let fake = &self.relays[place];
        &fake.parts[&fake.active.unwrap()]
    }

    /// What each place stamps: plan, share, rest.
    fn stamping(&self, place: usize) -> (u32, u32, Option<u32>) {
        let fake = &self.relays[place];
        let (share, rest) = fake.share;
        (
            fake.active.unwrap().number,
            share,
            rest.map(|rest| rest.number),
        )
    }

    /// Makes the way by relay-1 so bad that the planner leaves it by choice.
    fn worsen(&mut self) {
        (self.delays[0][1], self.delays[1][0]) = (Some(150_000), Some(150_000));
    }

    pub(super) fn heal(&mut self) {
        self.delays = triangle();
    }
}

/// A ring of four fast links with two slow diagonals: always another way.
pub(super) fn ring() -> Vec<Vec<Option<u32>>> {
    let (fast, slow) = (Some(10_000), Some(90_000));
    vec![
        vec![None, fast, slow, Some(11_000)],
        vec![fast, None, fast, slow],
        vec![slow, fast, None, Some(11_000)],
        vec![Some(11_000), slow, Some(11_000), None],
    ]
}

#[test]
fn a_quarantined_relay_is_crossed_by_nobody_at_once_and_keeps_its_sessions() {
    let mut world = World::running(ring());
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    world.operate(|network, now| network.quarantine(now, "relay-1", "drops packets"));
    world.run(20 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 3, 2]));
    assert_eq!(world.walk(0, 1), Some(vec![0, 1]), "still a destination");
    assert!(world.network.relays()[1].online);
    assert_eq!(world.network.relays()[1].standing, "quarantined");
    assert!(
        world
            .network
            .edges()
            .iter()
            .all(|edge| edge.name != "relay-1"),
        "no new clients"
    );
    // Nor does any backup lead over it.
    let backups = &world.part(0).profiles[0].backups;
    assert!(
        backups
            .iter()
            .all(|backup| { backup.destination == 1 || !backup.relays.contains(&1) })
    );
    let entry = world.network.plans().next().unwrap();
    assert_eq!((entry.by, entry.repairs), (By::Operator, true));
    assert_eq!(entry.reasons[0], "quarantined: relay-1");
    let why = world
        .network
        .explain(world.now, "relay-0", "relay-2", ProfileName::Realtime)
        .unwrap()
        .why;
    assert!(
        why.contains("relay-1") && why.contains("quarantined"),
        "{why}"
    );

    world.operate(|network, now| network.unquarantine(now, "relay-1"));
    world.run(5 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
}

#[test]
fn a_ban_wins_over_a_hold_and_over_a_rollback() {
    let mut world = World::running(ring());
    world.operate(|network, now| network.hold(now, ""));
    // Not even a reaction of the held plan may lead over it.
    world.operate(|network, now| network.quarantine(now, "relay-3", ""));
    world.run(30 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    let backups = &world.part(0).profiles[0].backups;
    assert!(
        backups
            .iter()
            .all(|backup| backup.destination == 3 || !backup.relays.contains(&3))
    );
    let error = world.network.rollback(world.now, "1.1").unwrap_err();
    assert!(error.to_string().contains("relay-3"), "{error}");
    world.operate(|network, now| network.unquarantine(now, "relay-3"));
    world.operate(|network, now| network.rollback(now, "1.1"));
    assert_eq!(world.stamping(0), (1, 1_000, None));
}

#[test]
fn quarantine_outlives_the_controller() {
    let mut world = World::running(ring());
    world.operate(|network, now| network.quarantine(now, "relay-1", ""));
    let saved = SavedNetwork {
        epoch: 2,
        ..world.saved.last().unwrap().clone()
    };
    let mut fresh = World::with(ring(), saved, NetworkConfig::default());
    fresh.network.restore(world.storage.load().unwrap());
    for place in 0..4 {
        fresh.connect(place);
    }
    fresh.run(3 * S);
    assert_eq!(fresh.walk(0, 2), Some(vec![0, 3, 2]));
    assert!(
        fresh.network.plans().count() > world.network.plans().count(),
        "so does the history"
    );
}

#[test]
fn what_changes_the_network_is_not_guessed_from_parts_of_names() {
    let mut world = World::running(triangle());
    for wrong in ["relay", "relay-9", "Relay-1"] {
        let error = world.network.quarantine(world.now, wrong, "").unwrap_err();
        assert!(error.to_string().contains("relay-1"), "{error}");
    }
    let error = world
        .network
        .unquarantine(world.now, "relay-1")
        .unwrap_err();
    assert!(matches!(error, OperateError::Conflict(_)), "{error}");
}

#[test]
fn a_decommissioned_relay_drains_is_refused_and_its_index_stays_its_own() {
    let mut world = World::running(ring());
    world.operate(|network, now| network.decommission(now, "relay-1", "sold"));
    world.run(20 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 3, 2]));
    let list = world.relays[0].list.as_ref().unwrap();
    assert!(list.relays[1].draining, "others are told that it goes");
    // It has no sessions: once plans avoid it, it may go.
    let connection = world.relays[1].connection.unwrap();
    world.run(5 * S);
    assert!(world.closed.contains(&(connection, CloseCode::Done)));
    assert_eq!(world.relays[1].heard.last(), Some(&"refused"));
    world.kill(1);
    assert!(
        world.relays[0]
            .list
            .as_ref()
            .unwrap()
            .relays
            .iter()
            .all(|relay| relay.name != "relay-1")
    );
    world.run(5 * S);
    assert_eq!(world.part(0).relays.len(), 3);

    world.relays[1].incarnation += 1;
    world.connect(1);
    assert_eq!(world.relays[1].heard.last(), Some(&"refused"));
    world.relays[1].connection = None;
    assert_eq!(world.network.stats().relays_refused, 1);

    // A new relay gets an index that was never given.
    let register = Register {
        name: "relay-new".into(),
        incarnation: 7,
        ..Register::default()
    };
    world.say(ConnectionId(900), from_relay::Body::Register(register));
    assert_eq!(world.network.relays()[4].name, "relay-new");

    world.operate(|network, now| network.recommission(now, "relay-1"));
    world.delays = ring();
    world.connect(1);
    assert_eq!(
        (
            world.relays[1].index,
            world.relays[1].heard.contains(&"part")
        ),
        (1, true)
    );
}

#[test]
fn a_share_stamps_the_plan_before_on_the_other_flows_and_holds_choices_back() {
    let mut world = World::running(triangle());
    let error = world.network.set_share(world.now, 50).unwrap_err();
    assert!(error.to_string().contains("no plan before"), "{error}");
    world.run(20 * S);
    world.worsen();
    world.run(10 * S);
    assert_eq!(world.stamping(0), (2, 1_000, None));
    assert_eq!(world.walk(0, 2), Some(vec![0, 2]));

    world.operate(|network, now| network.set_share(now, 50));
    assert_eq!(world.stamping(0), (2, 50, Some(1)));
    let way = world
        .network
        .explain(world.now, "relay-0", "relay-2", ProfileName::Realtime);
    let others = way.unwrap().other_flows.unwrap();
    assert_eq!((others.plan.as_str(), others.share_permille), ("1.1", 950));
    assert_eq!(others.path, ["relay-0", "relay-1", "relay-2"]);
    // A choice waits as long as two plans are stamped.
    world.run(60 * S);
    world.heal();
    world.run(20 * S);
    assert_eq!(world.stamping(0), (2, 50, Some(1)));
    assert!(world.network.stats().plans_held_back > 0);
    world.operate(|network, now| network.set_share(now, 1_000));
    assert_eq!(world.stamping(1), (2, 1_000, None));
    world.run(20 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]), "and comes after");
    for wrong in [0, 1_001] {
        assert!(world.network.set_share(world.now, wrong).is_err());
    }
}

#[test]
fn a_failure_on_the_ways_of_the_other_flows_only_ends_a_partial_rollout_too() {
    let mut world = World::running(ring());
    world.run(20 * S);
    world.delays[0][1] = Some(150_000);
    world.delays[1][0] = Some(150_000);
    world.run(10 * S);
    let plan = world.stamping(0).0;
    world.operate(|network, now| network.set_share(now, 250));
    assert_eq!(world.stamping(0).1, 250);
    world.run(S);
    assert_eq!(world.stamping(0).1, 250, "all is well");
    // Only the plan before goes this way.
    world.cut(0, 1);
    world.run(500 * MS);
    assert_eq!(world.stamping(0), (plan, 1_000, None));
}

#[test]
fn no_share_of_flows_goes_back_to_a_plan_from_before_a_quarantine() {
    let mut world = World::running(ring());
    world.run(20 * S);
    world.operate(|network, now| network.quarantine(now, "relay-1", ""));
    world.run(S);
    let error = world.network.set_share(world.now, 50).unwrap_err();
    assert!(
        error.to_string().contains("forbidden to cross: relay-1"),
        "{error}"
    );
    assert_eq!(world.stamping(0).1, 1_000);
}

#[test]
fn a_failure_ends_a_partial_rollout_at_once() {
    let mut world = World::running(ring());
    world.run(20 * S);
    world.delays[0][1] = Some(150_000);
    world.delays[1][0] = Some(150_000);
    world.run(10 * S);
    world.operate(|network, now| network.set_share(now, 250));
    assert_eq!(world.stamping(0).1, 250);
    world.cut(0, 3);
    world.run(30 * MS);
    let (_, share, rest) = world.stamping(0);
    assert_eq!((share, rest), (1_000, None));
    assert!(world.walk(0, 2).is_some());
    assert!(world.network.plans().next().unwrap().repairs);
}

#[test]
fn rollback_stamps_an_older_plan_and_holds_it_until_release() {
    let mut world = World::running(triangle());
    world.run(20 * S);
    world.worsen();
    world.run(10 * S);
    assert_eq!(world.stamping(2).0, 2);
    let order = world.relays[2].order;
    world.operate(|network, _| {
        assert!(network.rollback(Duration::ZERO, "nonsense").is_err());
        assert!(
            network
                .rollback(Duration::ZERO, "1.77")
                .unwrap_err()
                .to_string()
                .contains("1.1")
        );
        Ok::<_, OperateError>(())
    });
    world.operate(|network, now| network.rollback(now, "1.1"));
    assert_eq!(world.stamping(2), (1, 1_000, None));
    assert!(
        world.relays[2].order > order,
        "a later order, though an older plan"
    );
    assert_eq!(world.network.active_plan().unwrap().number, 1);
    world.run(120 * S);
    assert_eq!(
        world.stamping(2).0,
        1,
        "the planner would choose otherwise, but waits"
    );
    let rollout = world.network.rollout();
    assert_eq!(rollout.older, ["1.2"]);
    assert!(rollout.held.unwrap().contains("rolled back"));

    // Who comes now gets what is stamped.
    world.relays[0].incarnation += 1;
    world.relays[0].parts.clear();
    world.relays[0].active = None;
    world.disconnect(0);
    world.connect(0);
    assert_eq!(world.stamping(0), (1, 1_000, None));
    world.run(5 * S);

    world.operate(|network, now| {
        network.release(now);
        Ok::<_, OperateError>(())
    });
    world.run(10 * S);
    assert!(world.stamping(2).0 > 2);
    assert_eq!(world.walk(0, 2), Some(vec![0, 2]));
    let entry = world.network.plan_entry("1.1").unwrap();
    assert_eq!(entry.orders.last().unwrap().by, By::Operator);
}

#[test]
fn a_hold_does_not_hold_back_what_mends_a_failure() {
    let mut world = World::running(ring());
    world.run(20 * S);
    world.operate(|network, now| network.hold(now, "the match begins"));
    world.delays[0][1] = Some(150_000);
    world.delays[1][0] = Some(150_000);
    world.run(10 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    world.cut(1, 2);
    world.run(30 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 3, 2]));
    let alerts = world.network.alerts(world.now);
    assert!(
        alerts.iter().any(|alert| alert.kind == "hold"),
        "{alerts:?}"
    );
}

#[test]
fn a_plan_by_choice_goes_out_in_the_configured_steps_and_a_repair_at_once() {
    let config = NetworkConfig {
        expected_relays: Some(3),
        rollout_steps: vec![50, 250, 1_000],
        rollout_every: 10 * S,
        ..NetworkConfig::default()
    };
    let saved = SavedNetwork {
        epoch: 1,
        ..SavedNetwork::default()
    };
    let mut world = World::with(triangle(), saved, config);
    for place in 0..3 {
        world.connect(place);
    }
    world.run(20 * S);
    assert_eq!(
        world.stamping(0),
        (1, 1_000, None),
        "the first is no choice"
    );
    world.worsen();
    let mut shares = Vec::new();
    for _ in 0..400 {
        world.run(100 * MS);
        let stamped = world.stamping(1);
        if shares.last() != Some(&stamped) {
            shares.push(stamped);
        }
    }
    assert_eq!(
        shares,
        [
            (1, 1_000, None),
            (2, 50, Some(1)),
            (2, 250, Some(1)),
            (2, 1_000, None)
        ]
    );
    // Who comes back in the middle of it is told both plans: the harness checks that it holds them.
    world.cut(0, 2);
    world.run(30 * MS);
    assert_eq!(world.stamping(0), (3, 1_000, None));
}

#[test]
fn records_are_kept_of_policy_decisions_and_plans() {
    let mut world = World::running(triangle());
    world.policy("[[price]]\nuplink = 0\nper_gb = 0.01");
    world.operate(|network, now| network.quarantine(now, "relay-1", "x"));
    world.run(S);
    let kept = world.storage.load().unwrap();
    assert_eq!(kept.policy.unwrap().policy.price.len(), 1);
    assert_eq!(kept.decisions.quarantined["relay-1"].reason, "x");
    assert!(kept.plans.len() >= 2);
    assert!(
        kept.plans.iter().all(|plan| !plan.orders.is_empty()),
        "each came into force"
    );
    // A record of something else of the same name replaces it.
    let record = Record::Policy(KeptPolicy::default());
    world.storage.write(&record).unwrap();
    assert_eq!(
        world.storage.load().unwrap().policy,
        Some(KeptPolicy::default())
    );
}
