//! What a controller must survive: its own past, late words, slow relays, absurd measurements.

use super::*;

const S: Duration = Duration::from_secs(1);

#[test]
fn a_controller_restored_from_an_old_state_outdoes_what_relays_hold() {
    let mut world = World::running(triangle());
    // It was at epoch 5; what is restored is of epoch 1, from before relay-2 came.
    let id = PlanId {
        epoch: 5,
        number: 40,
    };
    let old = SavedNetwork {
        epoch: 2,
        relays: world.saved.last().unwrap().relays[..2].to_vec(),
    };
    let mut fresh = World::with(triangle(), old, NetworkConfig::default());
    for place in 0..3 {
        fresh.relays[place].parts.insert(id, PlanPart::default());
        fresh.connect(place);
    }
    fresh.run(5 * S);
    let active = fresh.network.active_plan().unwrap();
    assert_eq!(active.epoch, 6);
    assert_eq!(
        fresh.saved.last().unwrap().epoch,
        6,
        "and it is written down"
    );
    assert_eq!(fresh.walk(0, 2), Some(vec![0, 1, 2]));
    assert!(world.network.active_plan().unwrap() < active);
    world.run(S);
}

#[test]
fn acknowledgements_that_are_late_doubled_or_of_nothing_change_nothing() {
    let mut world = World::running(triangle());
    world.cut(0, 1);
    world.run(30 * MS);
    let (active, stats) = (world.network.active_plan(), world.network.stats());
    let order = world.network.rollout().order;
    for place in 0..3 {
        let connection = world.relays[place].connection.unwrap();
        for (epoch, number) in [(1, 1), (1, 2), (1, 2), (1, 99), (9, 1), (0, 0)] {
            let held = PlanHeld {
                plan: Some(PlanId { epoch, number }.into()),
            };
            world.say(connection, from_relay::Body::PlanHeld(held));
        }
        world.say(
            connection,
            from_relay::Body::PlanHeld(PlanHeld { plan: None }),
        );
    }
    assert_eq!(world.network.active_plan(), active);
    assert_eq!(world.network.stats(), stats);
    assert_eq!(world.network.rollout().order, order);
}

#[test]
fn reports_that_are_late_doubled_or_reordered_are_passed_over() {
    let mut world = World::running(triangle());
    let connection = world.relays[0].connection.unwrap();
    let links = world.links_of(0);
    let down: Vec<LinkState> = links
        .iter()
        .map(|link| LinkState {
            state: Link::Down.into(),
            ..link.clone()
        })
        .collect();
    let sequence = world.relays[0].sequence;
    let stale = world.network.stats().reports_stale;
    // An old report says that everything is down; it comes twice, after newer ones.
    for _ in 0..2 {
        let report = LinkReport {
            sequence: sequence - 1,
            links: down.clone(),
            ..Default::default()
        };
        world.say(connection, from_relay::Body::LinkReport(report));
    }
    world.run(100 * MS);
    assert_eq!(world.network.stats().reports_stale, stale + 2);
    assert_eq!(world.walk(0, 2), Some(vec![0, 1, 2]));
    assert_eq!(world.network.alert(), None);
}

#[test]
fn half_of_the_relays_gone_in_one_report_is_a_broken_measurement_for_a_while() {
    let n = 6;
    let near = |a: usize, b: usize| Some(10_000 + 1_000 * (a as u32 + b as u32));
    let full: Vec<Vec<Option<u32>>> = (0..n)
        .map(|a| {
            (0..n)
                .map(|b| if a == b { None } else { near(a, b) })
                .collect()
        })
        .collect();
    let mut world = World::running(full.clone());
    let plan = world.network.active_plan();
    let disbeliefs = world.network.stats().disbeliefs;
    // Relays 3, 4 and 5 lose their connections to the controller, and all others say that the
    // links to them are down.
    for place in 3..n {
        world.kill(place);
    }
    world.run(S);
    assert_eq!(world.network.active_plan(), plan, "the last plan is kept");
    assert!(world.network.alert().is_some());
    let alerts = world.network.alerts(world.now);
    assert!(
        alerts.iter().any(|alert| alert.kind == "measurement"),
        "{alerts:?}"
    );
    assert_eq!(world.network.stats().disbeliefs, disbeliefs + 1);
    // If it lasts, it is true.
    world.run(40 * S);
    assert_eq!(world.network.alert(), None);
    assert!(world.network.active_plan() > plan);
    assert_eq!(world.walk(0, 2), Some(vec![0, 2]));
}

#[test]
fn a_relay_that_reads_slowly_delays_a_plan_by_no_more_than_the_timeout() {
    let mut world = World::running(triangle());
    world.run(10 * S);
    world.relays[2].acknowledges = false;
    world.cut(0, 1);
    world.run(50 * MS);
    let before = world.network.active_plan();
    world.run(S);
    assert!(
        world.network.active_plan() > before,
        "activated without the slow one"
    );
    assert!(world.network.relays()[2].silent);
    // The only way from 0 to 1 is over the slow one: rather that than none.
    let part = &world.relays[0].parts[&world.network.active_plan().unwrap()];
    assert_eq!(part.profiles[0].trees[0].next_hop, [0, 2, 2]);
}

#[test]
fn a_controller_that_restarts_again_and_again_never_uses_a_name_twice() {
    let mut world = World::running(triangle());
    let mut seen = vec![world.network.active_plan().unwrap()];
    for epoch in 2..6 {
        let saved = SavedNetwork {
            epoch,
            ..world.saved.last().unwrap().clone()
        };
        let mut next = World::with(triangle(), saved.clone(), NetworkConfig::default());
        next.saved.push(saved);
        for place in 0..3 {
            next.relays[place].parts = std::mem::take(&mut world.relays[place].parts);
            next.relays[place].active = world.relays[place].active;
            next.connect(place);
        }
        next.run(3 * S);
        let active = next.network.active_plan().unwrap();
        assert!(active > *seen.last().unwrap());
        assert_eq!(next.walk(0, 2), Some(vec![0, 1, 2]));
        seen.push(active);
        world = next;
    }
}

#[test]
fn figures_that_are_no_figures_do_not_hurt() {
    let mut world = World::running(triangle());
    let connection = world.relays[0].connection.unwrap();
    let mut links = world.links_of(0);
    for link in &mut links {
        link.rtt_min_us = u32::MAX;
        link.rtt_deviation_us = u32::MAX;
        link.loss_in_ppm = u32::MAX;
        link.raw_in_us = i64::MIN;
        link.raw_out_us = i64::MAX;
        link.bytes_sent = u64::MAX;
        link.uplink = 3;
    }
    let report = LinkReport {
        sequence: u64::MAX,
        links,
        demand: vec![tradewind_proto::control::Demand {
            destination: u32::MAX,
            bytes: vec![u64::MAX; 9],
        }],
        ..Default::default()
    };
    world.say(connection, from_relay::Body::LinkReport(report));
    world.disconnect(0);
    world.run(5 * S);
    assert_eq!(world.walk(1, 2), Some(vec![1, 2]));
    let matrix = world.network.matrix(world.now);
    assert!(
        matrix
            .cost_ms
            .iter()
            .flatten()
            .flatten()
            .all(|cost| cost.is_finite())
    );
}
