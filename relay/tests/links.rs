//! What relays find out about their links, in virtual time.

mod support;

use std::time::Duration;

use support::{TestClient, World, header};
use tradewind_proto::{
    Class,
    packet::{AccessHeader, Kind},
};
use tradewind_wan::{Jitter, LinkSpec, Wan, run_virtual};

/// r0 to r2 takes 100 ms direct and 50 ms through r1.
const DETOUR: &[&[u64]] = &[&[0, 20, 100], &[20, 0, 30], &[100, 30, 0]];
const VIA_R1: &[&[u32]] = &[&[0, 1, 1], &[0, 1, 2], &[1, 1, 2]];
const BACKUPS: &[(u32, &[u32])] = &[(0, &[1, 0]), (2, &[1, 2])];
/// Of the link between r0 and r1.
const ROUND_TRIP: Duration = Duration::from_millis(40);
/// From the last packet that comes to the link being down.
const DETECTION: Duration = Duration::from_millis(260);

const MS: Duration = Duration::from_millis(1);

async fn planned(wan: &Wan) -> World {
    let world = World::new(wan.clone(), DETOUR).await;
    world.plan(1, VIA_R1, BACKUPS).await;
    world
}

async fn state(world: &World, relay: usize, peer: &str) -> &'static str {
    let links = world.relays[relay].links().await;
    let link = links.into_iter().find(|link| link.peer == peer);
    link.map_or("none", |link| link.state)
}

/// When the link between r0 and r1 stops being up, at either end.
async fn both_down(world: &World) -> [Duration; 2] {
    let begun = world.wan.network_time();
    let mut down = [None; 2];
    while down.contains(&None) {
        for (relay, peer) in [(0, "r1"), (1, "r0")] {
            let passed = world.wan.network_time() - begun;
            assert!(passed < Duration::from_secs(2), "not noticed: {down:?}");
            if state(world, relay, peer).await != "up" {
                down[relay].get_or_insert(passed);
            }
        }
        world.wan.sleep(MS).await;
    }
    down.map(Option::unwrap_or_default)
}

#[test]
fn a_dead_link_in_use_is_down_at_both_ends_in_time_whichever_direction_has_died() {
    for (seed, directions) in [(21, [true, true]), (22, [true, false]), (23, [false, true])] {
        run_virtual(seed, |wan| async move {
            let world = planned(&wan).await;
            let [a, b] = [world.places[0], world.places[1]];
            for (cut, (from, to)) in directions.into_iter().zip([(a, b), (b, a)]) {
                if cut {
                    wan.cut(from, to);
                }
            }
            let down = both_down(&world).await;
            for at in down {
                assert!(
                    at > 150 * MS,
                    "{down:?}: before a probe can have been missed"
                );
                assert!(
                    at <= DETECTION + ROUND_TRIP + 2 * MS,
                    "{directions:?}: {down:?}"
                );
            }
            // It comes back by itself, and soon.
            wan.sleep(Duration::from_secs(20)).await;
            wan.heal_both(a, b);
            let healed = wan.network_time();
            while state(&world, 0, "r1").await != "up" || state(&world, 1, "r0").await != "up" {
                let passed = wan.network_time() - healed;
                assert!(passed < Duration::from_millis(3_500), "{passed:?}");
                wan.sleep(10 * MS).await;
            }
        });
    }
}

/// The longest silence in what comes to `bob` while `alice` sends a packet every 20 ms for `time`.
async fn longest_gap(
    alice: &TestClient,
    bob: &TestClient,
    handle: u32,
    time: Duration,
) -> Duration {
    let host = bob.host.clone();
    let begun = host.now();
    let mut last = begun;
    let mut gap = Duration::ZERO;
    let mut sequence = 0;
    let mut next = begun;
    while host.now() - begun < time {
        if host.now() >= next {
            alice.send(header(Kind::Media, Class::Audio, handle, sequence), b"x");
            sequence += 1;
            next += 20 * MS;
        }
        let wait = next.saturating_duration_since(host.now());
        let received = host.timeout(wait, bob.connection.read_datagram()).await;
        if let Ok(Ok(datagram)) = received {
            AccessHeader::decode(&datagram).expect("a packet");
            gap = gap.max(host.now() - last);
            last = host.now();
        }
    }
    gap.max(host.now() - last)
}

#[test]
fn a_steady_flow_is_silent_for_the_detection_and_a_round_trip_at_most() {
    // The backup of r0 is the direct way, 50 ms longer.
    let difference = 50 * MS;
    for (seed, both) in [(31, true), (32, false), (33, true), (34, false)] {
        run_virtual(seed, |wan| async move {
            let world = planned(&wan).await;
            let mut alice = world.client(0, "alice").await;
            let bob = world.client(2, "bob").await;
            wan.sleep(Duration::from_millis(500)).await;
            let handle = alice.handle("bob").await;
            let calm = longest_gap(&alice, &bob, handle, Duration::from_secs(3)).await;
            assert!(calm < 80 * MS, "{calm:?}");
            wan.sleep(Duration::from_millis(seed * 7 % 20)).await;
            wan.cut(world.places[0], world.places[1]);
            if both {
                wan.cut(world.places[1], world.places[0]);
            }
            let gap = longest_gap(&alice, &bob, handle, Duration::from_secs(2)).await;
            let bound = 300 * MS + ROUND_TRIP + difference;
            assert!(gap <= bound, "{gap:?} (seed {seed})");
        });
    }
}

/// Has alice's steady flow go from r0 through r1 to bob at r2, then changes the link from r0 to r1,
/// and waits until r0 sees its way out degraded: how long that took.
fn brownout(seed: u64, spec: LinkSpec) -> Duration {
    run_virtual(seed, |wan| async move {
        let world = planned(&wan).await;
        let mut alice = world.client(0, "alice").await;
        let _bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;
        for sequence in 0..250 {
            alice.send(header(Kind::Media, Class::Audio, handle, sequence), b"x");
            wan.sleep(20 * MS).await;
        }
        for relay in [0, 1] {
            let links = world.relays[relay].links().await;
            assert!(
                links
                    .iter()
                    .all(|link| !link.degraded_in && !link.degraded_out)
            );
        }
        wan.sleep(Duration::from_millis(seed % 20)).await;
        wan.set_link(world.places[0], world.places[1], spec);
        let begun = wan.network_time();
        let mut noticed = None;
        for sequence in 250..400 {
            alice.send(header(Kind::Media, Class::Audio, handle, sequence), b"x");
            for _ in 0..4 {
                wan.sleep(5 * MS).await;
                let links = world.relays[0].links().await;
                let link = links.iter().find(|link| link.peer == "r1").expect("linked");
                assert_eq!(link.state, "up");
                if link.degraded_out && noticed.is_none() {
                    noticed = Some(wan.network_time() - begun);
                }
            }
        }
        let noticed = noticed.expect("noticed");
        let report = world.controller.report("r0");
        let link = report
            .links
            .iter()
            .find(|link| link.peer == "r1")
            .expect("linked");
        assert!(link.degraded_out && !link.degraded_in, "{link:?}");

        // It ends with the trouble.
        wan.set_link(
            world.places[0],
            world.places[1],
            LinkSpec::with_delay(20 * MS),
        );
        wan.sleep(Duration::from_secs(3)).await;
        let links = world.relays[0].links().await;
        assert!(links.iter().all(|link| !link.degraded_out), "{links:?}");
        noticed
    })
}

#[test]
fn a_link_that_becomes_much_slower_is_noticed_by_its_sender_within_a_fifth_of_a_second_and_a_trip()
{
    for seed in 51..57 {
        let noticed = brownout(seed, LinkSpec::with_delay(120 * MS));
        // There: 120 ms now. Back: 20 ms.
        assert!(noticed <= 200 * MS + 140 * MS, "{noticed:?}");
    }
}

#[test]
fn a_link_that_loses_a_third_is_noticed_by_its_sender_within_half_a_second() {
    let mut delays: Vec<Duration> = (61..71)
        .map(|seed| {
            let spec = LinkSpec {
                loss: 0.33,
                ..LinkSpec::with_delay(20 * MS)
            };
            brownout(seed, spec)
        })
        .collect();
    delays.sort_unstable();
    assert!(delays[5] <= 350 * MS, "{delays:?}");
    assert!(delays[9] <= 700 * MS, "{delays:?}");
}

#[test]
fn the_controller_hears_within_moments_of_a_link_that_has_become_faster_and_in_a_second_of_a_slower_one()
 {
    run_virtual(81, |wan| async move {
        let world = planned(&wan).await;
        wan.sleep(Duration::from_secs(15)).await;
        let before = raw_out(&world);
        for (delay, patience) in [(5_u32, 300), (45, 1_600)] {
            wan.set_links(
                world.places[0],
                world.places[1],
                &LinkSpec::with_delay(delay * MS),
            );
            let begun = wan.network_time();
            let change = (i64::from(delay) - 20) * 1_000;
            // The clocks drift apart by 20 ppm.
            while (raw_out(&world) - before - change).abs() > 1_000 {
                let passed = wan.network_time() - begun;
                assert!(
                    passed < Duration::from_millis(patience),
                    "{delay} ms: {passed:?}"
                );
                wan.sleep(10 * MS).await;
            }
        }
    });
}

/// What r0 has reported of its way to r1, microseconds.
fn raw_out(world: &World) -> i64 {
    let report = world.controller.report("r0");
    let link = report.links.iter().find(|link| link.peer == "r1");
    link.expect("linked").raw_out_us
}

#[test]
fn three_percent_of_loss_and_jitter_take_no_link_down_and_are_rarely_a_brownout() {
    let changes = |wan: Wan| async move {
        let world = planned(&wan).await;
        for (i, &from) in world.places.iter().enumerate() {
            for (j, &to) in world.places.iter().enumerate() {
                let spec = LinkSpec {
                    jitter: Jitter::Uniform {
                        max: Duration::from_millis(10),
                    },
                    loss: 0.03,
                    ..LinkSpec::with_delay(Duration::from_millis(DETOUR[i][j]))
                };
                if i != j {
                    wan.set_link(from, to, spec);
                }
            }
        }
        let count = |name: &str| -> f64 { (0..3).map(|relay| world.metric(relay, name, "")).sum() };
        let states = "tradewind_relay_link_state_changes_total";
        let brownouts = "tradewind_relay_link_brownouts_total";
        // Until now nothing was lost: what is usual has to be learnt.
        wan.sleep(Duration::from_secs(60)).await;
        let before = (count(states), count(brownouts));
        wan.sleep(Duration::from_secs(150)).await;
        (count(states) - before.0, count(brownouts) - before.1)
    };
    let seen: Vec<(f64, f64)> = (41..45).map(|seed| run_virtual(seed, changes)).collect();
    assert!(seen.iter().all(|seen| seen.0 == 0.0), "{seen:?}");
    // Each is counted four times: its beginning and its end, at both ends of the link.
    let false_alarms = seen.iter().map(|seen| seen.1).sum::<f64>() / 4.0;
    assert!(
        false_alarms <= 2.0,
        "{seen:?} in 10 minutes of 6 directions"
    );
}
