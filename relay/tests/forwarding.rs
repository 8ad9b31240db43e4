//! Packets through real relays, in virtual time.

mod support;

use std::{net::SocketAddr, time::Duration};

use support::{TestClient, World, header};
use tradewind_proto::{
    Class,
    control::{RelayInfo, RelayList, controller_to_relay, edge_message, lookup_result},
    packet::{AccessHeader, Kind, Trace},
};
use tradewind_wan::{HostClock, run_virtual};

/// r0 to r2 takes 100 ms direct and 50 ms through r1.
const DETOUR: &[&[u64]] = &[&[0, 20, 100], &[20, 0, 30], &[100, 30, 0]];
/// The plan that goes through r1.
const VIA_R1: &[&[u32]] = &[&[0, 1, 1], &[0, 1, 2], &[1, 1, 2]];
/// If a next hop towards r0 or r2 fails.
const BACKUPS: &[(u32, &[u32])] = &[(0, &[1, 0]), (2, &[1, 2])];

#[test]
fn media_takes_the_planned_way_and_knows_its_age() {
    run_virtual(1, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;

        let handle = alice.handle("bob").await;
        let mut packet = header(Kind::Media, Class::Audio, handle, 7);
        packet.trace = true;
        let before = wan.network_time();
        alice.send(packet, b"hello");
        let (received, payload) = bob.receive().await.expect("it arrives");
        let took = wan.network_time() - before;
        assert!(
            took >= Duration::from_millis(50) && took < Duration::from_millis(51),
            "{took:?}"
        );
        assert_eq!((received.flow, received.sequence), (1, 7));
        let age = i64::from(received.age_us) - 50_000;
        assert!(age.abs() < 1_000, "the age is off by {age} µs");
        let trace = Trace::decode(&payload).expect("a trace");
        let way: Vec<u16> = trace.hops.iter().map(|hop| hop.relay.0).collect();
        assert_eq!(way, [0, 1, 2]);
        assert_eq!(&payload[Trace::LEN..], b"hello");
    });
}

#[test]
fn messages_arrive_in_order_and_the_receiver_learns_who_sent_them() {
    run_virtual(2, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let mut bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;

        let handle = alice.handle("bob").await;
        for sequence in 0..50 {
            let packet = header(Kind::Message, Class::Message, handle, sequence);
            let payload = vec![sequence as u8; 10 + 300 * sequence as usize];
            alice.send_message(packet, &payload).await;
        }
        let mut lane = bob.incoming_lane().await;
        let mut senders = Vec::new();
        for sequence in 0..50 {
            let (received, payload) = TestClient::receive_message(&mut lane).await;
            assert_eq!(received.sequence, sequence);
            assert_eq!(payload, vec![sequence as u8; 10 + 300 * sequence as usize]);
            senders.push(received.handle);
        }
        senders.dedup();
        let Some(edge_message::Body::Peer(peer)) = bob.news().await.unwrap().body else {
            panic!("no introduction");
        };
        assert_eq!((peer.user.as_str(), vec![peer.handle]), ("alice", senders));
        // The handle serves for the way back.
        bob.send(header(Kind::Media, Class::Audio, peer.handle, 1), b"back");
        let (_, payload) = alice.receive().await.expect("it arrives");
        assert_eq!(&payload[..], b"back");
    });
}

#[test]
fn who_sends_for_the_first_time_is_known_without_a_question() {
    run_virtual(20, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let mut bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;
        let before = wan.network_time();
        alice.send(header(Kind::Media, Class::Audio, handle, 1), b"first");
        let Some(edge_message::Body::Peer(peer)) = bob.news().await.unwrap().body else {
            panic!("no introduction");
        };
        // 50 ms are one way through r1: no time to ask and be answered.
        let took = wan.network_time() - before;
        assert!(took < Duration::from_millis(55), "{took:?}");
        let (received, _) = bob.receive().await.expect("it arrives");
        assert_eq!(
            (peer.user.as_str(), peer.handle),
            ("alice", received.handle)
        );
        // Whoever answers by the same handle is known as well: nobody is told anything.
        bob.send(header(Kind::Media, Class::Audio, peer.handle, 1), b"back");
        alice.receive().await.expect("it arrives");
        assert_eq!(alice.take_news(), []);
    });
}

#[test]
fn a_cut_link_is_deflected_around_within_the_detection_time() {
    run_virtual(3, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;

        wan.cut_both(world.places[0], world.places[1]);
        let cut = wan.network_time();
        let mut sequence = 0;
        let arrived = loop {
            alice.send(
                header(Kind::Media, Class::Audio, handle, sequence),
                b"still there?",
            );
            sequence += 1;
            let wait = bob
                .host
                .timeout(Duration::from_millis(20), bob.connection.read_datagram());
            if let Ok(Ok(datagram)) = wait.await {
                break AccessHeader::decode(&datagram).unwrap();
            }
            assert!(wan.network_time() - cut < Duration::from_secs(3), "silence");
        };
        assert!(arrived.sequence > 0, "those before the detection are lost");
        let gap = wan.network_time() - cut;
        assert!(gap < Duration::from_millis(600), "{gap:?}");
        assert!(world.metric(0, "tradewind_relay_deflected_packets_total", "") > 0.0);
        assert_eq!(
            world
                .controller
                .report("r0")
                .links
                .iter()
                .filter(|link| link.state() == tradewind_proto::control::link_state::State::Down)
                .map(|link| link.peer.as_str())
                .collect::<Vec<_>>(),
            ["r1"]
        );
        // And heals.
        wan.heal_both(world.places[0], world.places[1]);
        wan.sleep(Duration::from_secs(6)).await;
        let links = world.relays[0].links().await;
        assert!(links.iter().all(|link| link.state == "up"), "{links:?}");
    });
}

#[test]
fn traffic_goes_on_when_the_controller_is_dead() {
    run_virtual(4, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        world.controller.kill();
        wan.sleep(Duration::from_secs(20)).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;
        alice.send(header(Kind::Media, Class::Video, handle, 1), b"hello");
        assert!(bob.receive().await.is_some());
        assert!(!world.relays[0].controller_connected());
        assert_eq!(world.relays[0].unready(), None);
    });
}

#[test]
fn who_is_nowhere_is_offline_and_who_has_left_is_gone() {
    run_virtual(5, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let (status, _) = alice.lookup("nobody").await;
        assert_eq!(status, lookup_result::Status::Offline);

        let bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;
        bob.connection.close(0_u32.into(), b"bye");
        wan.sleep(Duration::from_millis(500)).await;
        alice.send(header(Kind::Media, Class::Audio, handle, 1), b"hello?");
        let Some(edge_message::Body::Gone(gone)) = alice.news().await.unwrap().body else {
            panic!("not told");
        };
        assert_eq!(gone.handle, handle);
        let (status, _) = alice.lookup("bob").await;
        assert_eq!(status, lookup_result::Status::Offline);
        assert_eq!(
            world.metric(2, "tradewind_relay_dropped_packets_total", "session_gone"),
            1.0
        );
    });
}

#[test]
fn a_client_that_vanishes_without_a_word_is_counted_out_and_no_drain_waits_for_it() {
    run_virtual(14, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let host = wan.add_host(world.places[2], HostClock::EXACT);
        let token = world.token("bob", |_| ());
        let _bob = world.client_on(host.clone(), 2, &token).await.unwrap();
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;
        host.kill();
        assert_eq!(world.metric(2, "tradewind_relay_sessions", ""), 1.0);
        // QUIC's idle timeout on the client port is 30 s.
        for _ in 0..4 {
            wan.sleep(Duration::from_secs(10)).await;
            alice.lookup("bob").await; // so that alice's own session does not end
        }
        assert_eq!(world.metric(2, "tradewind_relay_sessions", ""), 0.0);
        alice.send(header(Kind::Media, Class::Audio, handle, 1), b"hello?");
        let Some(edge_message::Body::Gone(gone)) = alice.news().await.unwrap().body else {
            panic!("not told");
        };
        assert_eq!(gone.handle, handle);
        let before = wan.network_time();
        world.relays[2].drain(Duration::from_secs(10)).await;
        let took = wan.network_time() - before;
        // The time to plan around it, not the deadline.
        assert!(took < Duration::from_secs(3), "{took:?}");
    });
}

#[test]
fn a_ping_to_a_relay_shows_both_ways() {
    run_virtual(6, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let (status, handle) = alice.lookup_relay("r2").await;
        assert_eq!(status, lookup_result::Status::Found);
        let mut packet = header(Kind::EchoRequest, Class::Audio, handle, 3);
        packet.trace = true;
        alice.send(packet, b"ping");
        let (answer, payload) = alice.receive().await.expect("an answer");
        assert_eq!((answer.kind, answer.sequence), (Kind::EchoReply, 3));
        let way = |bytes: &[u8]| -> Vec<u16> {
            let trace = Trace::decode(bytes).expect("a trace");
            trace.hops.iter().map(|hop| hop.relay.0).collect()
        };
        assert_eq!(way(&payload), [2, 1, 0]);
        assert_eq!(way(&payload[Trace::LEN..]), [0, 1, 2]);
        assert_eq!(&payload[2 * Trace::LEN..], b"ping");
    });
}

#[test]
fn bad_tokens_are_refused_and_a_session_ends_with_its_token() {
    run_virtual(7, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let refused = world.client_with(0, "not a token").await.err().unwrap();
        assert!(refused.contains("closed by peer"), "{refused}");
        let expired = world.token("carol", |claims| claims.exp -= 7_200);
        let refused = world.client_with(0, &expired).await.err().unwrap();
        assert!(refused.contains("expired"), "{refused}");

        let short = world.token("carol", |claims| claims.exp -= 3_590);
        let carol = world.client_with(0, &short).await.unwrap();
        let closed = carol
            .host
            .timeout(Duration::from_secs(60), carol.connection.closed())
            .await
            .expect("closed in time");
        assert!(closed.to_string().contains("expired"), "{closed}");
    });
}

#[test]
fn what_a_token_does_not_allow_is_refused_and_counted() {
    run_virtual(8, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let _bob = world.client(2, "bob").await;
        let token = world.token("dave", |claims| {
            claims.classes = Some(vec![Class::Message]);
        });
        let mut dave = world.client_with(0, &token).await.unwrap();
        wan.sleep(Duration::from_millis(500)).await;
        let handle = dave.handle("bob").await;
        dave.send(header(Kind::Media, Class::Video, handle, 1), b"no");
        dave.send(header(Kind::Media, Class::Video, 99, 1), b"nobody");
        dave.send(header(Kind::Control, Class::Message, handle, 1), b"no");
        dave.send_message(header(Kind::Message, Class::Bulk, handle, 5), b"no")
            .await;
        let Some(edge_message::Body::Rejected(rejected)) = dave.news().await.unwrap().body else {
            panic!("not told");
        };
        assert_eq!(rejected.sequence, 5);
        let dropped = |reason| world.metric(0, "tradewind_relay_dropped_packets_total", reason);
        assert_eq!(dropped("denied"), 3.0);
        assert_eq!(dropped("unexpected"), 1.0);
    });
}

#[test]
fn a_draining_relay_says_where_to_go_and_takes_nobody_new() {
    run_virtual(9, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let relay = world.relays[0].clone();
        let host = alice.host.clone();
        let started = wan.network_time();
        host.spawn(async move { relay.drain(Duration::from_secs(10)).await });
        let Some(edge_message::Body::Draining(draining)) = alice.news().await.unwrap().body else {
            panic!("not told");
        };
        let names: Vec<_> = draining.edges.iter().map(|e| e.relay.as_str()).collect();
        assert_eq!(names, ["r1", "r2"]);
        assert_eq!(world.relays[0].unready(), Some("draining"));
        let token = world.token("late", |_| ());
        assert!(world.client_with(0, &token).await.is_err());
        let closed = alice.connection.closed().await;
        assert!(closed.to_string().contains("stops"), "{closed}");
        let took = wan.network_time() - started;
        assert!(took >= Duration::from_secs(10), "{took:?}");
    });
}

#[test]
fn a_relay_that_the_controller_takes_out_sends_its_clients_elsewhere_and_serves_those_who_stay() {
    run_virtual(9, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let mut relays: Vec<RelayInfo> = ["r0", "r1", "r2"]
            .map(|name| world.controller.relay(name))
            .into();
        relays[0].draining = true;
        let list = RelayList { version: 2, relays };
        let body = controller_to_relay::Body::RelayList(list);
        world.controller.tell("r0", body);
        let Some(edge_message::Body::Draining(draining)) = alice.news().await.unwrap().body else {
            panic!("not told");
        };
        let names: Vec<_> = draining.edges.iter().map(|e| e.relay.as_str()).collect();
        assert_eq!(names, ["r1", "r2"]);
        let token = world.token("late", |_| ());
        assert!(world.client_with(0, &token).await.is_ok());
        assert_eq!(world.relays[0].unready(), None);
    });
}

#[test]
fn relays_on_ipv6_reach_each_other_by_the_addresses_they_advertise() {
    run_virtual(12, |wan| async move {
        let world = World::with_settings(wan.clone(), DETOUR, |settings, host| {
            settings.client_listen = "[::]:7443".parse().unwrap();
            settings.link_listen = "[::]:7444".parse().unwrap();
            // Port 0: the one that was bound.
            settings.client_advertise = vec![SocketAddr::new(host.ip6(), 0)];
            settings.link_advertise = vec![SocketAddr::new(host.ip6(), 0)];
        })
        .await;
        world.plan(1, VIA_R1, BACKUPS).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(2, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;
        alice.send(header(Kind::Media, Class::Audio, handle, 1), b"hello");
        assert!(bob.receive().await.is_some());
    });
}

#[test]
fn a_relay_that_others_could_not_reach_does_not_start() {
    run_virtual(13, |wan| async move {
        let world = World::new(wan.clone(), DETOUR).await;
        let host = wan.add_host(world.places[0], HostClock::EXACT);
        let refused = world
            .try_start_relay("r9", host.clone(), |settings| {
                settings.client_listen = "0.0.0.0:7443".parse().unwrap();
            })
            .await;
        let error = refused.expect_err("refused").to_string();
        assert!(error.contains("client_advertise"), "{error}");
        let refused = world
            .try_start_relay("r0", world.relay_hosts[0].clone(), |_| ())
            .await;
        let error = refused.expect_err("refused").to_string();
        assert!(error.contains("--client-listen"), "{error}");
    });
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let digest = |seed| {
        run_virtual(seed, |wan| async move {
            let world = World::new(wan.clone(), DETOUR).await;
            world.plan(1, VIA_R1, BACKUPS).await;
            let mut alice = world.client(0, "alice").await;
            let bob = world.client(2, "bob").await;
            wan.sleep(Duration::from_millis(500)).await;
            let handle = alice.handle("bob").await;
            alice.send(header(Kind::Media, Class::Audio, handle, 1), b"hello");
            bob.receive().await.expect("it arrives");
            wan.trace_digest()
        })
    };
    assert_eq!(digest(10), digest(10));
    assert_ne!(digest(10), digest(11));
}
