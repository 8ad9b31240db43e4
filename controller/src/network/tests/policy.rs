//! What policies do to plans: bans, pins, prices, modes, busy hours, uplinks.

use super::{operate::ring, *};
use crate::policy::{Policy, ProfileName};

const S: Duration = Duration::from_secs(1);

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
        assert_eq!(
            table.may_cross,
            [[0b1111], [0b1101]],
            "nor when all of them are down"
        );
    }
    world.policy("[[forbid_transit]]\nrelays = [\"relay-1\"]");
    world.run(30 * MS);
    assert_eq!(world.walk(0, 2), Some(vec![0, 3, 2]));
    let part = world.part(0);
    assert!(part.selectors.is_empty());
    assert_eq!(part.profiles[0].may_cross, [[0b1101]]);
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
fn a_dry_run_tells_what_becomes_of_restricted_traffic_and_of_a_profile_that_is_only_observed() {
    let world = World::running(ring());
    let effects = |text: &str| {
        let policy = Policy::from_toml(text, "p").unwrap();
        world.network.trial(world.now, &policy).effects()
    };
    let residency = effects("[[forbid_transit]]\nrelays = [\"relay-1\"]\napp = \"bank\"");
    let told: Vec<(&str, Vec<String>, usize)> = residency
        .iter()
        .map(|effect| (effect.profile, effect.traffic.clone(), effect.rerouted))
        .collect();
    let bank = vec!["app bank".to_owned()];
    assert_eq!(told[0], ("realtime", vec![], 0), "everybody else");
    assert_eq!(told[2], ("realtime", bank, 2));
    let observed = effects("[profiles.realtime]\nmode = \"observe\"");
    let direct = &observed[0];
    let ways_over_others = world.network.gains().0[0].improved;
    assert!(ways_over_others > 0);
    assert_eq!(
        (direct.profile, direct.rerouted),
        ("realtime", ways_over_others)
    );
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
    let way = world
        .network
        .explain(world.now, "relay-0", "relay-1", ProfileName::Realtime)
        .unwrap();
    let told = way.if_first_hop_fails;
    assert!(told.contains("to relay-1 over uplink 0"), "{told}");
    world.second_uplink = Some((0, 1, None));
    world.relays[0].next_report = world.now;
    world.run(30 * MS);
    assert_eq!(uplink(&world), 0);
}
