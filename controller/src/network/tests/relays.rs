//! Registrations, reports, and what is shown of them.

use super::*;

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
        ..Default::default()
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
        ..Default::default()
    };
    let connection = world.relays[0].connection.unwrap();
    world.say(connection, from_relay::Body::LinkReport(report));
    world.run(Duration::from_secs(2));
    assert_eq!(world.network.matrix(world.now).names.len(), 3);
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
fn what_was_said_of_a_restarted_relay_before_it_has_registered_stays_true() {
    let mut world = World::running(triangle());
    world.tell_lives = true;
    world.run(Duration::from_secs(2));
    // Its peers have links with its new life before the controller hears of that.
    world.disconnect(1);
    world.relays[1].incarnation += 1;
    world.relays[1].sequence = 0;
    world.run(Duration::from_secs(2));
    world.connect(1);
    assert_eq!(world.network.matrix(world.now).state[0][1], "up");
    let path = world.path(0, 2);
    assert_eq!(path.path, ["relay-0", "relay-1", "relay-2"]);
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
fn what_a_delta_does_not_name_is_as_it_was() {
    let mut world = World::running(triangle());
    let before = world.network.matrix(world.now);
    for second in 0..60_u32 {
        for place in 0..3 {
            world.relays[place].sequence += 1;
            let mut links = Vec::new();
            if second == 30 && place == 2 {
                // The way from 1 to 2 has become slower, as 2 sees it.
                links = world.links_of(2);
                links.retain(|link| link.peer == name(1));
                links[0].raw_in_us += 15_000;
                links[0].rtt_min_us += 15_000;
            }
            let report = LinkReport {
                sequence: world.relays[place].sequence,
                delta: true,
                links,
                ..LinkReport::default()
            };
            let connection = world.relays[place].connection.unwrap();
            world.relays[place].next_report = world.now + Duration::from_secs(3_600);
            world.say(connection, from_relay::Body::LinkReport(report));
        }
        world.run(Duration::from_secs(1));
        let matrix = world.network.matrix(world.now);
        assert_eq!(matrix.state, before.state, "second {second}");
        let slower = |matrix: &MatrixView| {
            let cell = |a: usize, b: usize| matrix.one_way_ms[a][b].unwrap();
            cell(0, 1) + cell(1, 2) - cell(0, 2)
        };
        let difference = slower(&matrix) - slower(&before);
        let expected = if second < 30 { 0.0 } else { 15.0 };
        assert!(
            (difference - expected).abs() < 0.01,
            "{difference} ms in second {second}"
        );
    }
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
