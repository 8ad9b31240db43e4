//! The operator's hand: quarantine, decommission, policy, rollout, rollback.

use super::*;
use crate::{
    policy::{Policy, ProfileName},
    storage::{KeptPolicy, Record},
};

const S: Duration = Duration::from_secs(1);

impl World {
    fn policy(&mut self, text: &str) {
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
    fn part(&self, place: usize) -> &PlanPart {
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

    fn heal(&mut self) {
        self.delays = triangle();
    }
}

/// A ring of four fast links with two slow diagonals: always another way.
fn ring() -> Vec<Vec<Option<u32>>> {
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
    world.run(5 * S);
    let code = world.closed.last().unwrap().1;
    assert_eq!(
        (code, world.relays[1].heard.last()),
        (CloseCode::Done, Some(&"refused"))
    );
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
fn transit_is_forbidden_for_everybody_or_for_restricted_traffic() {
    let mut world = World::running(ring());
    world.policy("[[forbid_transit]]\nrelays = [\"relay-1\"]\napp = \"bank\"");
    world.run(3 * S);
    assert_eq!(
        world.walk(0, 2),
        Some(vec![0, 1, 2]),
        "others cross it still"
    );
    let part = world.part(0);
    assert_eq!(
        (part.selectors[0].app.as_str(), part.selectors[0].rules),
        ("bank", 1)
    );
    for table in &part.profiles {
        let restricted = table.trees.iter().find(|tree| tree.rules == 1).unwrap();
        assert_eq!(restricted.next_hop[2], 3, "the bank's packets go round it");
        let backups = table
            .restricted_backups
            .iter()
            .filter(|backup| backup.destination == 2);
        assert!(
            backups
                .into_iter()
                .all(|backup| !backup.relays.contains(&1))
        );
    }
    world.policy("[[forbid_transit]]\nrelays = [\"relay-1\"]");
    world.run(30 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 3, 2]));
    assert!(world.part(0).selectors.is_empty());
    let entry = world.network.plans().next().unwrap();
    assert_eq!(
        (entry.by, entry.reasons[0].as_str()),
        (By::Policy, "a policy")
    );
}

#[test]
fn a_ban_holds_even_where_there_is_no_other_way() {
    // A chain 0 - 1 - 2.
    let link = Some(10_000);
    let mut world = World::running(vec![
        vec![None, link, None],
        vec![link, None, link],
        vec![None, link, None],
    ]);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    // Draining is no ban: rather over it than not at all.
    world.relays[1].draining = true;
    world.report(1);
    world.run(3 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    world.policy("[[forbid_transit]]\nrelays = [\"relay-1\"]\nprofile = \"realtime\"");
    world.run(3 * S);
    assert_eq!(world.walk(0, 2), None);
    assert_eq!(world.walk(0, 1), Some(vec![0, 1]));
    let part = world.part(0);
    assert!(
        part.profiles[0]
            .backups
            .iter()
            .all(|backup| backup.destination != 2)
    );
    assert_eq!(
        part.profiles[1].trees[0].next_hop[2], 1,
        "economy is not meant"
    );
    world.policy("");
    world.run(3 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
}

#[test]
fn a_pin_is_taken_whatever_it_costs_until_a_link_of_it_fails() {
    let mut world = World::running(ring());
    world.policy("[[pin]]\nfrom = \"relay-0\"\nto = \"relay-2\"\nvia = [\"relay-3\"]\nprofile = \"realtime\"");
    world.run(10 * S);
    let path = |world: &World, profile| {
        let explained = world
            .network
            .explain(world.now, "relay-0", "relay-2", profile);
        let explained = explained.unwrap();
        (explained.way.path[1].clone(), explained.why)
    };
    let (hop, why) = path(&world, ProfileName::Realtime);
    assert_eq!(hop, "relay-3");
    assert!(why.contains("pinned"), "{why}");
    assert_eq!(path(&world, ProfileName::Economy).0, "relay-1");
    world.cut(0, 3);
    world.run(30 * MS);
    assert_eq!(path(&world, ProfileName::Realtime).0, "relay-1");
}

#[test]
fn economy_takes_the_cheap_way_within_the_bound_on_latency() {
    let mut world = World::running(ring());
    // 0-2 by way of 1 takes 20 ms and by way of 3 takes 22 ms.
    let price = |per_gb: f64| {
        format!("[[price]]\nfrom = \"relay-0\"\nto = \"relay-1\"\nper_gb = {per_gb}\n")
    };
    world.policy(&price(0.05));
    world.run(10 * S);
    let explain = |world: &World, profile| {
        world
            .network
            .explain(world.now, "relay-0", "relay-2", profile)
            .unwrap()
    };
    assert_eq!(
        explain(&world, ProfileName::Realtime).way.path[1],
        "relay-1"
    );
    let economy = explain(&world, ProfileName::Economy);
    assert_eq!(economy.way.path[1], "relay-3");
    let dear = economy
        .alternatives
        .iter()
        .find(|way| way.path[1] == "relay-1");
    let dear = dear.unwrap();
    assert_eq!(
        dear.links[0].price_cost_ms,
        Some(100.0),
        "5 cents at 20 ms each"
    );
    assert_eq!(
        dear.links[0].delay_cost_ms,
        Some(dear.links[0].one_way_ms.unwrap() * 0.2)
    );
    // The cheap way becomes far too slow: the dear one is within the bound.
    for (a, b) in [(0, 3), (3, 0)] {
        world.delays[a][b] = Some(85_000);
    }
    world.run(90 * S);
    assert_eq!(explain(&world, ProfileName::Economy).way.path[1], "relay-1");
}

#[test]
fn an_observed_profile_goes_direct_and_its_gain_is_recorded() {
    let mut world = World::running(triangle());
    world.policy("[profiles.realtime]\nmode = \"observe\"");
    world.run(3 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 2]));
    let (gains, _) = world.network.gains();
    assert_eq!(
        (gains[0].mode, gains[0].pairs, gains[0].improved),
        ("observe", 6, 2)
    );
    assert!((gains[0].most_saved_ms - 71.9).abs() < 0.2, "{gains:?}");
    let why = world
        .network
        .explain(world.now, "relay-0", "relay-2", ProfileName::Realtime)
        .unwrap()
        .why;
    assert!(why.contains("observed"), "{why}");
    // Where the direct link fails, the plan's way is taken; and left again.
    let links = world.delays.clone();
    world.cut(0, 2);
    world.run(100 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    world.delays = links;
    world.run(5 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 2]));
}

#[test]
fn an_observed_rule_changes_nothing_and_its_effect_is_recorded() {
    let mut world = World::running(ring());
    world.policy("[[forbid_transit]]\nrelays = [\"relay-1\"]\nmode = \"observe\"");
    world.run(3 * S);
    world.network.next_effects = Duration::ZERO;
    world.run(3 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    let (_, observed) = world.network.gains();
    let effect = &observed[0].effects[0];
    assert_eq!(
        (observed[0].rule.as_str(), effect.rerouted),
        ("[[forbid_transit]] number 1", 2)
    );
    let worst = effect.worst.as_ref().unwrap();
    assert!((worst.added_ms - 2.0).abs() < 0.1, "{worst:?}");
    // A dry run of the same rule, enforced, says the same.
    let policy = Policy::from_toml("[[forbid_transit]]\nrelays = [\"relay-1\"]", "p").unwrap();
    let trial = world.network.trial(world.now, &policy).effects();
    assert_eq!(trial[0].rerouted, 2);
}

#[test]
fn peak_only_links_are_the_last_resort_outside_of_their_hours() {
    let mut world = World::running(triangle());
    // The world begins on 1970-01-12 at 13:46 UTC.
    let rule = |hours: &str| {
        format!("[[peak_only]]\nfrom = \"relay-0\"\nto = \"relay-1\"\nhours = \"{hours}\"")
    };
    world.policy(&rule("20:00-23:00"));
    world.run(5 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 2]));
    assert_eq!(world.walk(0, 1), Some(vec![0, 2, 1]));
    assert_eq!(
        world.network.matrix(world.now).state[0][1],
        "up",
        "it is measured"
    );
    world.cut(0, 2);
    world.run(100 * MS);
    assert_eq!(
        world.walk(0, 2),
        Some(vec![0, 1, 2]),
        "there is no other way"
    );
    world.policy(&rule("13:00-23:00"));
    world.heal();
    world.run(90 * S);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    assert_eq!(world.walk(0, 1), Some(vec![0, 1]));
}

#[test]
fn the_cheapest_uplink_of_a_pair_is_taken_and_one_that_fails_is_left_at_once() {
    let mut world = World::new(triangle());
    world.second_uplink = Some((0, 1, Some(5_000)));
    for place in 0..3 {
        world.connect(place);
    }
    world.run(5 * S);
    let uplink = |world: &World| world.part(0).profiles[0].trees[0].uplink[1];
    assert_eq!(uplink(&world), 1, "5 ms instead of 20 ms");
    let link = world
        .network
        .link(world.now, "relay-0", "relay-1", 1)
        .unwrap();
    assert_eq!((link.now.state, link.now.uplink), ("up", 1));
    assert!(!link.hour.is_empty());
    world.second_uplink = Some((0, 1, None));
    world.relays[0].next_report = world.now;
    world.run(30 * MS);
    assert_eq!(uplink(&world), 0);
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
