//! Plans: several trees, shares of flows, rollbacks, rule sets, and what is kept on disk. Real
//! relays in virtual time.

mod support;

use std::{collections::BTreeMap, time::Duration};

use support::{TestClient, World, header};
use tradewind_proto::{
    Class,
    control::{
        Activate, Backup, PlanName, PlanPart, ProfileTable, Selector, TreeTable,
        controller_to_relay::Body,
    },
    packet::Kind,
};
use tradewind_wan::{Wan, run_virtual};

/// Four relays, 20 ms from each to each.
const SQUARE: &[&[u64]] = &[
    &[0, 20, 20, 20],
    &[20, 0, 20, 20],
    &[20, 20, 0, 20],
    &[20, 20, 20, 0],
];

/// Everybody by direct links.
const DIRECT: [u32; 4] = [0, 1, 2, 3];

/// A tree towards r2 (and all others directly) in which r0 sends what is for r2 to `next`.
fn r0_to_r2_over(relay: usize, next: u32, rules: u32) -> TreeTable {
    let mut next_hop = DIRECT.to_vec();
    if relay == 0 {
        next_hop[2] = next;
    }
    TreeTable {
        next_hop,
        rules,
        ..Default::default()
    }
}

fn realtime(trees: Vec<TreeTable>) -> Vec<ProfileTable> {
    vec![ProfileTable {
        trees,
        ..Default::default()
    }]
}

fn order(order: u64, number: u32, share_permille: u32, rest: u32) -> Activate {
    let name = |number| (number > 0).then_some(PlanName { epoch: 1, number });
    Activate {
        plan: name(number),
        share_permille,
        rest: name(rest),
        order,
    }
}

/// Plan 1: from r0 to r2 directly. Plan 2: over r1. Plan 1 is stamped.
async fn two_plans(wan: &Wan) -> World {
    let world = World::new(wan.clone(), SQUARE).await;
    let plans = &world.controller;
    plans.distribute(1, &[], |relay| realtime(vec![r0_to_r2_over(relay, 2, 0)]));
    plans.distribute(2, &[], |relay| realtime(vec![r0_to_r2_over(relay, 1, 0)]));
    plans.activate(&order(1, 1, 0, 0));
    wan.sleep(Duration::from_secs(3)).await;
    world
}

/// Alice at r0 and Bob at r2, of an app, and Alice's handle for him.
async fn pair(wan: &Wan, world: &World, app: &str) -> (TestClient, TestClient, u32) {
    let token = |user| world.token(user, |claims| app.clone_into(&mut claims.app));
    let mut alice = world.client_with(0, &token("alice")).await.unwrap();
    let bob = world.client_with(2, &token("bob")).await.unwrap();
    wan.sleep(Duration::from_millis(500)).await;
    let handle = alice.handle("bob").await;
    (alice, bob, handle)
}

/// The flows that went over r1.
fn over_r1(ways: &BTreeMap<u32, Vec<u16>>) -> Vec<u32> {
    for way in ways.values() {
        assert!([&[0, 2][..], &[0, 1, 2]].contains(&&way[..]), "{way:?}");
    }
    let detour = ways.iter().filter(|(_, way)| way.len() == 3);
    detour.map(|(&flow, _)| flow).collect()
}

#[test]
fn a_share_of_flows_tries_the_new_plan_grows_and_is_rolled_back() {
    run_virtual(21, |wan| async move {
        let world = two_plans(&wan).await;
        let (alice, bob, handle) = pair(&wan, &world, "chat").await;
        let stamp = async |activate: Activate| {
            world.controller.activate(&activate);
            wan.sleep(Duration::from_millis(200)).await;
            over_r1(&alice.ways(&bob, handle, Class::Audio, 0..2_000).await)
        };
        assert!(stamp(order(1, 1, 0, 0)).await.is_empty());
        let few = stamp(order(2, 2, 50, 1)).await;
        assert!((70..=130).contains(&few.len()), "{} of 2,000", few.len());
        // One flow, one plan: asked again, the same ones go there.
        assert_eq!(stamp(order(2, 2, 50, 1)).await, few);
        let more = stamp(order(3, 2, 250, 1)).await;
        assert!((430..=570).contains(&more.len()), "{}", more.len());
        assert!(
            few.iter().all(|flow| more.contains(flow)),
            "a flow went back"
        );
        let view = world.relays[0].plan();
        assert_eq!(
            (
                view.active.as_str(),
                view.share_percent,
                view.rest.as_deref()
            ),
            ("1.2", 25.0, Some("1.1"))
        );
        // The gates fail: back to the old one. An order that was delayed changes nothing any more.
        assert!(stamp(order(4, 1, 0, 0)).await.is_empty());
        assert!(stamp(order(3, 2, 250, 1)).await.is_empty());
        assert_eq!(stamp(order(5, 2, 1_000, 0)).await.len(), 2_000);
    });
}

#[test]
fn flows_are_spread_over_the_trees_by_weight_and_one_flow_keeps_one_tree() {
    run_virtual(22, |wan| async move {
        let world = World::new(wan.clone(), SQUARE).await;
        let weights = |weights: [u8; 4]| u32::from_le_bytes(weights);
        world.controller.distribute(1, &[], |relay| {
            vec![ProfileTable {
                trees: vec![r0_to_r2_over(relay, 2, 0), r0_to_r2_over(relay, 1, 0)],
                weights: vec![0, 0, weights([170, 85, 0, 0]), 0],
                ..Default::default()
            }]
        });
        world.controller.activate(&order(1, 1, 0, 0));
        wan.sleep(Duration::from_secs(3)).await;
        let (alice, bob, handle) = pair(&wan, &world, "chat").await;
        let detour = over_r1(&alice.ways(&bob, handle, Class::Video, 0..1_500).await);
        assert!((430..=570).contains(&detour.len()), "{}", detour.len());
        let again = over_r1(&alice.ways(&bob, handle, Class::Video, 0..1_500).await);
        assert_eq!(detour, again);
    });
}

#[test]
fn an_app_that_must_not_cross_a_relay_does_not_even_when_its_way_fails() {
    run_virtual(23, |wan| async move {
        let world = World::new(wan.clone(), SQUARE).await;
        // r1 must not be crossed by the clinic; everybody else goes over it.
        let selectors = [Selector {
            app: "clinic".to_owned(),
            rules: 1,
            ..Default::default()
        }];
        let backups = |relays: &[u32], rules| Backup {
            destination: 2,
            relays: relays.to_vec(),
            rules,
            ..Default::default()
        };
        world.controller.distribute(1, &selectors, |relay| {
            vec![ProfileTable {
                trees: vec![r0_to_r2_over(relay, 1, 0), r0_to_r2_over(relay, 2, 1)],
                backups: vec![backups(&[1, 3, 2], 0)],
                restricted_backups: vec![backups(&[3, 2], 1)],
                ..Default::default()
            }]
        });
        world.controller.activate(&order(1, 1, 0, 0));
        wan.sleep(Duration::from_secs(3)).await;
        let (alice, bob, to_bob) = pair(&wan, &world, "chat").await;
        let (anne, boris, to_boris) = pair(&wan, &world, "clinic").await;
        let way = async |from: &TestClient, to: &TestClient, handle| {
            let ways = from.ways(to, handle, Class::Audio, 1..2).await;
            ways[&1].clone()
        };
        assert_eq!(way(&alice, &bob, to_bob).await, [0, 1, 2]);
        assert_eq!(way(&anne, &boris, to_boris).await, [0, 2]);
        // Bulk has no tree of its own here: the rules hold for it too.
        let bulk = anne.ways(&boris, to_boris, Class::Bulk, 1..2).await;
        assert_eq!(bulk[&1], [0, 2]);

        wan.cut_both(world.places[0], world.places[2]);
        wan.sleep(Duration::from_secs(1)).await;
        assert_eq!(way(&anne, &boris, to_boris).await, [0, 3, 2]);
        assert_eq!(
            world.metric(0, "tradewind_relay_deflected_packets_total", "failure"),
            1.0
        );
        wan.cut_both(world.places[0], world.places[1]);
        wan.sleep(Duration::from_secs(1)).await;
        assert_eq!(way(&alice, &bob, to_bob).await, [0, 3, 2]);
        // Only r1 would be left.
        wan.heal_both(world.places[0], world.places[1]);
        wan.cut_both(world.places[0], world.places[3]);
        wan.sleep(Duration::from_secs(6)).await;
        anne.send(header(Kind::Media, Class::Audio, to_boris, 1), b"in vain");
        assert!(boris.receive().await.is_none(), "it crossed r1");
        let lost = world.metric(0, "tradewind_relay_dropped_packets_total", "no_way");
        assert!(lost >= 1.0, "{lost}");
        assert_eq!(way(&alice, &bob, to_bob).await, [0, 1, 2]);
    });
}

#[test]
fn what_waits_for_a_link_that_goes_down_takes_another_way_at_once() {
    run_virtual(24, |wan| async move {
        let world = World::new(wan.clone(), SQUARE).await;
        world.controller.distribute(1, &[], |relay| {
            vec![ProfileTable {
                trees: vec![r0_to_r2_over(relay, 1, 0)],
                backups: vec![Backup {
                    destination: 2,
                    relays: vec![3],
                    ..Default::default()
                }],
                ..Default::default()
            }]
        });
        world.controller.activate(&order(1, 1, 0, 0));
        wan.sleep(Duration::from_secs(3)).await;
        let (mut alice, bob, handle) = pair(&wan, &world, "chat").await;

        wan.cut_both(world.places[0], world.places[1]);
        let cut = wan.network_time();
        let count = 60;
        for sequence in 0..count {
            let packet = header(Kind::Message, Class::Message, handle, sequence);
            alice.send_message(packet, &[7; 15_000]).await;
        }
        let mut lane = bob
            .host
            .timeout(Duration::from_secs(5), bob.incoming_lane())
            .await
            .expect("something arrives");
        loop {
            let (received, payload) = TestClient::receive_message(&mut lane).await;
            assert_eq!(payload, [7; 15_000]);
            if received.sequence == count - 1 {
                break;
            }
        }
        // Not when the connection is given up, two seconds later.
        let took = wan.network_time() - cut;
        assert!(took < Duration::from_millis(1_000), "{took:?}");
        let requeued = world.metric(0, "tradewind_relay_requeued_packets_total", "");
        assert!(requeued >= 1.0, "{requeued}");
        let deflected = world.metric(0, "tradewind_relay_deflected_packets_total", "failure");
        assert!(deflected >= requeued, "{deflected} of {requeued}");
    });
}

#[test]
fn a_relay_restarted_without_its_controller_goes_on_with_both_plans() {
    run_virtual(25, |wan| async move {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plan.bin");
        let mut world = two_plans(&wan).await;
        let restart = async |world: &mut World| {
            world.relays[0].stop().await;
            wan.sleep(Duration::from_secs(1)).await;
            let host = world.relay_hosts[0].clone();
            let with_file = |settings: &mut tradewind_relay::RelaySettings| {
                settings.state_file = Some(file.clone());
            };
            world.relays[0] = world.try_start_relay("r0", host, with_file).await.unwrap();
            wan.sleep(Duration::from_secs(5)).await;
        };
        restart(&mut world).await;
        world
            .controller
            .distribute(1, &[], |r| realtime(vec![r0_to_r2_over(r, 2, 0)]));
        world
            .controller
            .distribute(2, &[], |r| realtime(vec![r0_to_r2_over(r, 1, 0)]));
        world.controller.activate(&order(2, 2, 250, 1));
        wan.sleep(Duration::from_secs(2)).await;
        let before = world.relays[0].plan();
        assert_eq!(
            (before.active.as_str(), before.rest.as_deref()),
            ("1.2", Some("1.1"))
        );

        world.controller.kill();
        restart(&mut world).await;
        let after = world.relays[0].plan();
        assert_eq!(
            (after.active, after.share_percent, after.rest),
            (before.active, 25.0, before.rest)
        );
        assert_eq!(world.relays[0].unready(), None);
        let (alice, bob, handle) = pair(&wan, &world, "chat").await;
        let detour = over_r1(&alice.ways(&bob, handle, Class::Audio, 0..400).await);
        assert!((70..=130).contains(&detour.len()), "{}", detour.len());
    });
}

#[test]
fn control_messages_that_are_late_repeated_or_malformed_change_nothing() {
    run_virtual(26, |wan| async move {
        let world = two_plans(&wan).await;
        world.controller.activate(&order(2, 2, 0, 0));
        wan.sleep(Duration::from_millis(500)).await;
        let active = || world.relays[0].plan().active;
        assert_eq!(active(), "1.2");
        for late in [
            // Repeated, overtaken, by a controller that knows no orders, of a plan nobody holds.
            order(2, 2, 0, 0),
            order(1, 1, 0, 0),
            order(0, 1, 0, 0),
            order(9, 7, 0, 0),
            order(9, 1, 2_000, 0),
            order(9, 1, 500, 8),
            Activate::default(),
        ] {
            world.controller.activate(&late);
        }
        world
            .controller
            .tell("r0", Body::PlanPart(PlanPart::default()));
        // A plan that is held already, with another content.
        world
            .controller
            .distribute(2, &[], |r| realtime(vec![r0_to_r2_over(r, 3, 0)]));
        wan.sleep(Duration::from_millis(500)).await;
        assert_eq!(active(), "1.2");
        assert_eq!(
            world.metric(0, "tradewind_relay_refused_plans_total", ""),
            1.0
        );
        let (alice, bob, handle) = pair(&wan, &world, "chat").await;
        let ways = alice.ways(&bob, handle, Class::Audio, 1..2).await;
        assert_eq!(ways[&1], [0, 1, 2]);
    });
}

#[test]
fn the_controller_learns_how_much_clients_send_to_where() {
    run_virtual(27, |wan| async move {
        let world = two_plans(&wan).await;
        let (alice, bob, handle) = pair(&wan, &world, "chat").await;
        for sequence in 0..10 {
            let class = [Class::Audio, Class::Video][sequence as usize % 2];
            let packet = header(Kind::Media, class, handle, sequence);
            alice.send(packet, &[7; 100]);
            bob.receive().await.expect("it arrives");
        }
        wan.sleep(Duration::from_secs(2)).await;
        let demand = |relay, to| world.controller.demand(relay, to);
        assert_eq!(demand("r0", 2), Some(vec![500, 0, 500, 0]));
        assert_eq!(demand("r0", 1), None);
        assert_eq!(demand("r2", 0), None);
        // What has not changed is not said again.
        assert_eq!(world.controller.report("r0").demand, []);
    });
}
