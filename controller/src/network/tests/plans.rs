//! How plans come to be and into force.

use super::*;

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
fn relays_are_told_their_parts_of_the_out_trees() {
    let world = World::running(triangle());
    let id = world.network.active_plan().expect("it has been planned");
    let tree = |origin: &str| world.network.out_tree(id, origin);
    let pairs = |list: &[(&str, &str)]| {
        let owned = |&(to, from): &(&str, &str)| (to.to_owned(), from.to_owned());
        Some(list.iter().map(owned).collect::<Vec<_>>())
    };
    let over_relay_1 = [("relay-1", "relay-0"), ("relay-2", "relay-1")];
    assert_eq!(tree("relay-0"), pairs(&over_relay_1));
    let over_relay_1 = [("relay-0", "relay-1"), ("relay-1", "relay-2")];
    assert_eq!(tree("relay-2"), pairs(&over_relay_1));
    assert_eq!(tree("nobody"), None);
    assert_eq!(world.network.out_tree(PlanId::NONE, "relay-0"), None);
    // By relay and origin: next hops and who is behind them.
    let told = |relay: usize| {
        let tables = &world.relays[relay].parts[&id].profiles;
        assert!(tables[1..].iter().all(|table| table.out_trees.is_empty()));
        let hops = tables[0].out_trees.iter().flat_map(|tree| {
            let hops = tree.hops.iter();
            hops.map(|hop| (tree.origin, hop.next, hop.destinations.clone()))
        });
        hops.collect::<Vec<_>>()
    };
    assert_eq!(told(0), [(0, 1, vec![1, 2])]);
    let own = [(1, 0, vec![0]), (1, 2, vec![2])];
    assert_eq!(
        told(1),
        [&[(0, 2, vec![2])][..], &own, &[(2, 0, vec![0])]].concat()
    );
    assert_eq!(told(2), [(2, 1, vec![0, 1])]);
}

#[test]
fn a_link_that_is_slow_in_one_direction_only_is_left_in_that_direction_only() {
    // 60 ms there, 140 ms back, which no clock can tell by itself; by way of the third 100 ms.
    let world = World::running(vec![
        vec![None, Some(60_000), Some(50_000)],
        vec![Some(140_000), None, Some(50_000)],
        vec![Some(50_000), Some(50_000), None],
    ]);
    assert_eq!(world.walk(0, 1), Some(vec![0, 1]));
    assert_eq!(world.walk(1, 0), Some(vec![1, 2, 0]));
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
