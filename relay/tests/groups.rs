//! Groups over real relays, in virtual time.

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::{Inbox, TestClient, World, data, header, skip};
use tradewind_proto::{
    Class,
    control::{FetchGroup, client_message, edge_message, group_result::Status},
    packet::Kind,
};
use tradewind_relay::RelaySettings;
use tradewind_wan::{Wan, WanHost, run_virtual};

/// Four relays; r0 and r1 are near each other, r2 and r3 are, and the two pairs are far apart.
const PAIRS: &[&[u64]] = &[
    &[0, 5, 60, 65],
    &[5, 0, 62, 66],
    &[60, 62, 0, 5],
    &[65, 66, 5, 0],
];
/// Everything directly.
const TO_ALL: &[u32] = &[0, 1, 2, 3];
const DIRECT: &[&[u32]] = &[TO_ALL; 4];
/// To groups over one far link: r0 and r2 pass on to their neighbours.
const OVER_ONE_LINK: &[&[u32]] = &[&[0, 0, 0, 2], &[1, 1, 0, 2], &[2, 0, 2, 2], &[2, 0, 3, 3]];

async fn world(wan: &Wan) -> World {
    let world = World::new(wan.clone(), PAIRS).await;
    world.group_plan(1, DIRECT, OVER_ONE_LINK).await;
    world
}

/// How often each relay is reached by a packet over a link.
fn watch_links(world: &World) -> Arc<Mutex<BTreeMap<u16, usize>>> {
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    for relay in &world.relays {
        let seen = seen.clone();
        relay.watch_packets(move |passage| {
            let over_a_link = passage.header.sender.relay != passage.relay;
            if over_a_link && !passage.relays.is_empty() {
                let mut seen = seen.lock().expect("nobody panics");
                *seen.entry(passage.relay.0).or_default() += 1;
            }
        });
    }
    seen
}

#[test]
fn media_crosses_each_link_of_the_out_tree_once_however_many_members_are_behind_it() {
    run_virtual(1, |wan| async move {
        let world = world(&wan).await;
        let mut members = Vec::new();
        for at in [0, 0, 1, 2, 2, 3, 3, 3] {
            let name = format!("user-{}", members.len());
            let mut member = world.group_client(at, &name).await;
            member.joined("call").await;
            members.push(member);
        }
        let mut alice = world.group_client(0, "alice").await;
        let handle = alice.joined("call").await;
        wan.sleep(Duration::from_millis(500)).await;
        let seen = watch_links(&world);
        let mut packet = header(Kind::Media, Class::Audio, handle, 7);
        packet.layer = 2;
        alice.send(packet, b"hello all");
        for member in &members {
            let got = member.datagrams(Duration::from_millis(300)).await;
            let [(header, payload)] = &got[..] else {
                panic!("{got:?}");
            };
            assert!(header.group && header.handle >> 31 == 1);
            assert_eq!((header.sequence, header.layer), (7, 2));
            assert_eq!(&payload[..], b"hello all");
        }
        assert!(alice.datagrams(Duration::from_millis(300)).await.is_empty());
        let seen = seen.lock().unwrap().clone();
        assert_eq!(seen, BTreeMap::from([(1, 1), (2, 1), (3, 1)]));
        // Members learn who that is.
        let news = members[5].news().await.unwrap().body;
        let Some(edge_message::Body::GroupSource(source)) = news else {
            panic!("{news:?}");
        };
        assert_eq!(
            (source.user.as_str(), source.group.as_str(), source.origin),
            ("alice", "call", 0)
        );
    });
}

#[test]
fn a_message_is_acknowledged_when_every_edge_with_members_holds_it() {
    run_virtual(2, |wan| async move {
        let world = world(&wan).await;
        let mut inboxes = Vec::new();
        for at in [1, 2, 3, 0] {
            let mut member = world.group_client(at, &format!("user-{at}")).await;
            member.joined("cats").await;
            inboxes.push((Inbox::new(&member), member));
        }
        let mut alice = world.group_client(0, "alice").await;
        let mut acks = Inbox::new(&alice);
        // She sends without being a member.
        let (status, handle) = alice.lookup_group("cats").await;
        assert_eq!(status, Status::Done);
        for sequence in 0..3 {
            alice
                .send_frame(handle, &data(77, sequence, 0, &format!("miau {sequence}")))
                .await;
        }
        // 65 ms to the farthest edge: not yet.
        wan.sleep(Duration::from_millis(100)).await;
        assert_eq!(acks.last_ack(), None);
        wan.sleep(Duration::from_millis(60)).await;
        let ack = acks.last_ack().expect("all hold it");
        assert_eq!(
            (ack.sender, ack.lane, ack.next, ack.ranges.len()),
            (77, 3, 3, 0)
        );
        let away = i64::from(ack.age_us) - 65_000;
        assert!(away.abs() < 3_000, "the age of the farthest: {away}");
        for (inbox, _) in &mut inboxes {
            assert_eq!(inbox.texts(), ["miau 0", "miau 1", "miau 2"]);
        }
        // What comes again is acknowledged again, and given to nobody again.
        alice.send_frame(handle, &data(77, 1, 0, "miau 1")).await;
        wan.sleep(Duration::from_millis(200)).await;
        assert_eq!(acks.last_ack().map(|ack| ack.next), Some(3));
        for (inbox, _) in &mut inboxes {
            assert_eq!(inbox.texts(), [""; 0]);
        }
        // A skip goes to all and is answered.
        alice.send_frame(handle, &skip(77, 9)).await;
        wan.sleep(Duration::from_millis(200)).await;
        assert_eq!(acks.last_ack().map(|ack| ack.next), Some(9));
        for (inbox, _) in &mut inboxes {
            assert_eq!(inbox.take()[0].frame, skip(77, 9));
        }
    });
}

#[test]
fn a_group_within_one_relay_needs_no_other() {
    run_virtual(3, |wan| async move {
        let world = World::new(wan.clone(), &[&[0]]).await;
        world.group_plan(1, &[&[0]], &[&[0]]).await;
        let mut alice = world.group_client(0, "alice").await;
        let mut bob = world.group_client(0, "bob").await;
        let handle = alice.joined("two").await;
        bob.joined("two").await;
        let (mut acks, mut inbox) = (Inbox::new(&alice), Inbox::new(&bob));
        alice.send_frame(handle, &data(5, 0, 0, "psst")).await;
        wan.sleep(Duration::from_millis(50)).await;
        assert_eq!(acks.last_ack().map(|ack| ack.next), Some(1));
        assert_eq!(inbox.texts(), ["psst"]);
        // Another session of the same user does hear it.
        let mut second = world.group_client(0, "alice").await;
        second.joined("two").await;
        let mut second_inbox = Inbox::new(&second);
        alice.send_frame(handle, &data(5, 1, 0, "me too")).await;
        wan.sleep(Duration::from_millis(50)).await;
        assert_eq!(second_inbox.texts(), ["me too"]);
        bob.leave("two").await;
        alice.send_frame(handle, &data(5, 2, 0, "gone")).await;
        wan.sleep(Duration::from_millis(50)).await;
        assert_eq!(inbox.texts(), ["me too"]);
    });
}

#[test]
fn what_is_sent_after_a_join_has_returned_comes_and_comes_once() {
    run_virtual(4, |wan| async move {
        let world = world(&wan).await;
        let mut alice = world.group_client(0, "alice").await;
        let handle = alice.joined("busy").await;
        let next = Arc::new(Mutex::new(0_u64));
        let counter = next.clone();
        let host = alice.host.clone();
        let clock = wan.clone();
        let sender = async move {
            while *counter.lock().unwrap() < 1_500 {
                let sequence = {
                    let mut next = counter.lock().unwrap();
                    *next += 1;
                    *next - 1
                };
                alice
                    .send_frame(handle, &data(5, sequence, sequence, &sequence.to_string()))
                    .await;
                clock.sleep(Duration::from_millis(5)).await;
            }
            alice
        };
        let (done, sent) = tokio::sync::oneshot::channel();
        host.spawn(async move {
            let _ = done.send(sender.await);
        });
        let mut members = Vec::new();
        for (n, at) in [1, 3, 2, 0, 3, 2, 1].into_iter().enumerate() {
            wan.sleep(Duration::from_millis(137)).await;
            let mut member = world.group_client(at, &format!("user-{n}")).await;
            let inbox = Inbox::new(&member);
            member.joined("busy").await;
            let from = *next.lock().unwrap();
            members.push((member, inbox, from, u64::MAX));
        }
        // One leaves, and comes back while its edge lingers.
        wan.sleep(Duration::from_millis(100)).await;
        // What is on its way then does not come any more: less than 40 of them.
        members[1].3 = *next.lock().unwrap() - 40;
        members[1].0.leave("busy").await;
        wan.sleep(Duration::from_millis(700)).await;
        members[1].0.joined("busy").await;
        let back = *next.lock().unwrap();
        let _alice = sent.await.unwrap();
        wan.sleep(Duration::from_millis(500)).await;
        for (_, inbox, from, to) in &mut members {
            let got: Vec<u64> = inbox
                .texts()
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();
            let mut once = got.clone();
            once.dedup();
            assert_eq!(once, got, "twice or out of order");
            let missed: Vec<u64> = (*from..1_500)
                .filter(|&n| n < *to || n >= back)
                .filter(|n| !got.contains(n))
                .collect();
            assert_eq!(missed, [0_u64; 0], "joined at {from}");
        }
    });
}

#[test]
fn when_a_relay_dies_its_share_is_not_waited_for_and_the_rest_gets_everything() {
    run_virtual(5, |wan| async move {
        let world = world(&wan).await;
        let mut carol = world.group_client(2, "carol").await;
        carol.joined("cats").await;
        let mut dave = world.group_client(3, "dave").await;
        dave.joined("cats").await;
        let (mut inbox, mut acks) = (Inbox::new(&dave), None);
        let mut alice = world.group_client(0, "alice").await;
        let handle = alice.joined("cats").await;
        let acks = acks.get_or_insert_with(|| Inbox::new(&alice));
        world.relay_hosts[2].kill();
        // r2 is on the way to r3, which is reached around it once the link is known to be down.
        let mut waited = Duration::ZERO;
        let confirmed = loop {
            alice
                .send_frame(handle, &data(8, 0, 0, "still there?"))
                .await;
            wan.sleep(Duration::from_millis(250)).await;
            waited += Duration::from_millis(250);
            if let Some(ack) = acks.last_ack().filter(|ack| ack.next == 1) {
                break ack;
            }
            assert!(
                waited < Duration::from_secs(12),
                "nobody stops waiting for r2"
            );
        };
        assert_eq!(confirmed.sender, 8);
        assert_eq!(inbox.texts(), ["still there?"], "once");
        assert!(world.metric(0, "tradewind_relay_deflected_packets_total", "") > 0.0);
    });
}

#[test]
fn a_member_on_a_new_edge_fetches_from_the_senders() {
    run_virtual(7, |wan| async move {
        let short = |settings: &mut RelaySettings, _: &WanHost| {
            settings.groups.replay_age = Duration::from_secs(4);
        };
        let world = World::with_settings(wan.clone(), PAIRS, short).await;
        world.group_plan(1, DIRECT, OVER_ONE_LINK).await;
        let mut alice = world.group_client(0, "alice").await;
        let handle = alice.joined("news").await;
        for sequence in 0..300 {
            alice
                .send_frame(handle, &data(4, sequence, 0, &format!("{sequence}")))
                .await;
            wan.sleep(Duration::from_millis(5)).await;
        }
        // Nobody at r3 was a member then.
        let mut bob = world.group_client(3, "bob").await;
        bob.joined("news").await;
        let mut inbox = Inbox::new(&bob);
        let fetch = |from, to, origin| FetchGroup {
            group: "news".to_owned(),
            sender: 4,
            lane: 3,
            from,
            to,
            origin,
        };
        let fetched = bob.fetch(fetch(20, u64::MAX, 0)).await;
        assert_eq!(
            (
                fetched.from,
                fetched.to,
                fetched.missing,
                fetched.unreachable
            ),
            (20, 299, vec![], false)
        );
        wan.sleep(Duration::from_millis(100)).await;
        let texts = inbox.texts();
        assert_eq!(texts, (20..300).map(|n| n.to_string()).collect::<Vec<_>>());
        // Of what nobody holds any more he is told so.
        wan.sleep(Duration::from_secs(6)).await;
        alice.send_frame(handle, &data(4, 300, 300, "late")).await;
        wan.sleep(Duration::from_millis(300)).await;
        let fetched = bob.fetch(fetch(290, u64::MAX, 0)).await;
        assert_eq!((fetched.to, fetched.missing), (300, vec![290, 299]));
        // A dead edge says nothing.
        world.relay_hosts[0].kill();
        let fetched = bob.fetch(fetch(250, 260, 0)).await;
        assert!(fetched.unreachable);
    });
}

#[test]
fn who_asks_for_too_much_at_once_is_told_to_ask_again() {
    run_virtual(12, |wan| async move {
        let world = world(&wan).await;
        let mut bob = world.group_client(3, "bob").await;
        bob.joined("news").await;
        // Its silence keeps the questions open.
        world.relay_hosts[0].kill();
        let ask = |sender| {
            client_message::Body::FetchGroup(FetchGroup {
                group: "news".to_owned(),
                sender,
                lane: 3,
                from: 5,
                to: 9,
                origin: 0,
            })
        };
        for sender in 0..66 {
            bob.ask(ask(sender)).await;
        }
        // One of those that are open, again: it takes the place of the former question.
        bob.ask(ask(7)).await;
        let mut answers = Vec::new();
        while answers.len() < 66 {
            let answer = bob.news().await.expect("the session lives").body;
            if let Some(edge_message::Body::GroupFetched(fetched)) = answer {
                assert_eq!(
                    (fetched.from, fetched.to, fetched.unreachable),
                    (5, 4, true)
                );
                answers.push((fetched.sender, fetched.busy));
            }
        }
        assert_eq!(answers[..2], [(64, true), (65, true)], "at once");
        answers.sort_unstable();
        let open: Vec<(u64, bool)> = (0..64).map(|sender| (sender, false)).collect();
        assert_eq!(answers[..64], open);
        // There is room again.
        let id = bob.ask(ask(65)).await;
        let Some(edge_message::Body::GroupFetched(fetched)) = bob.answer(id).await else {
            panic!("no answer");
        };
        assert!(!fetched.busy);
    });
}

#[test]
fn layers_are_given_to_those_who_want_them() {
    run_virtual(8, |wan| async move {
        let world = world(&wan).await;
        let mut alice = world.group_client(0, "alice").await;
        let handle = alice.joined("show").await;
        let mut thin = world.group_client(2, "thin").await;
        assert_eq!(thin.join("show", 0b001).await.0, Status::Done);
        let mut wide = world.group_client(2, "wide").await;
        assert_eq!(wide.join("show", 0).await.0, Status::Done);
        let layers = async |member: &TestClient| {
            for layer in 0..3 {
                let mut packet = header(Kind::Media, Class::Video, handle, 1);
                packet.layer = layer;
                alice.send(packet, b"frame");
            }
            let got = member.datagrams(Duration::from_millis(300)).await;
            got.iter()
                .map(|(header, _)| header.layer)
                .collect::<Vec<_>>()
        };
        assert_eq!(layers(&thin).await, [0]);
        assert_eq!(layers(&wide).await.len(), 6);
        assert_eq!(thin.join("show", 0b110).await.0, Status::Done);
        assert_eq!(thin.datagrams(Duration::from_millis(300)).await.len(), 1);
        assert_eq!(layers(&thin).await, [1, 2]);
    });
}

#[test]
fn the_token_says_who_may_send_and_who_may_receive() {
    run_virtual(9, |wan| async move {
        let world = world(&wan).await;
        let reader = world.token("reader", |claims| claims.recv = vec!["board".to_owned()]);
        let writer = world.token("writer", |claims| claims.send = vec!["board".to_owned()]);
        let mut reader = world.client_with(1, &reader).await.unwrap();
        let mut writer = world.client_with(0, &writer).await.unwrap();
        assert_eq!(
            reader.join("board", 0).await,
            (Status::Done, 0),
            "no handle to send by"
        );
        assert_eq!(reader.join("cellar", 0).await.0, Status::Denied);
        assert_eq!(reader.lookup_group("board").await.0, Status::Denied);
        assert_eq!(writer.join("board", 0).await.0, Status::Denied);
        assert_eq!(writer.lookup_group("cellar").await.0, Status::Denied);
        let (status, handle) = writer.lookup_group("board").await;
        assert_eq!(status, Status::Done);
        let mut inbox = Inbox::new(&reader);
        writer.send_frame(handle, &data(1, 0, 0, "read this")).await;
        wan.sleep(Duration::from_millis(100)).await;
        assert_eq!(inbox.texts(), ["read this"]);
        // Groups of another app with the same name are others.
        let other = world.token("other", |claims| {
            claims.app = "elsewhere".to_owned();
            claims.recv = vec!["*".to_owned()];
        });
        let mut other = world.client_with(1, &other).await.unwrap();
        other.joined("board").await;
        let mut other_inbox = Inbox::new(&other);
        writer.send_frame(handle, &data(1, 1, 0, "and this")).await;
        // Nobody else may use a sender's instance at its edge.
        let mut thief = world.group_client(0, "thief").await;
        let (_, thiefs) = thief.lookup_group("board").await;
        thief.send_frame(thiefs, &data(1, 2, 0, "fake")).await;
        wan.sleep(Duration::from_millis(100)).await;
        assert_eq!(inbox.texts(), ["and this"]);
        assert!(other_inbox.take().is_empty());
        assert_eq!(
            world.metric(0, "tradewind_relay_dropped_packets_total", "denied"),
            1.0
        );
    });
}

#[test]
fn hundreds_of_members_are_served_by_one_copy() {
    run_virtual(10, |wan| async move {
        let world = World::new(wan.clone(), &[&[0, 40], &[40, 0]]).await;
        world
            .group_plan(1, &[&[0, 1], &[0, 1]], &[&[0, 0], &[1, 1]])
            .await;
        let mut members = Vec::new();
        for n in 0..200 {
            let mut member = world.group_client(1, &format!("user-{n}")).await;
            member.joined("hall").await;
            members.push((Inbox::new(&member), member));
        }
        let mut alice = world.group_client(0, "alice").await;
        let handle = alice.joined("hall").await;
        let mut acks = Inbox::new(&alice);
        let seen = watch_links(&world);
        for sequence in 0..10 {
            alice
                .send_frame(handle, &data(2, sequence, 0, "to everybody"))
                .await;
            alice.send(
                header(Kind::Media, Class::Audio, handle, sequence as u32),
                b"hm",
            );
        }
        wan.sleep(Duration::from_millis(300)).await;
        assert_eq!(acks.last_ack().map(|ack| ack.next), Some(10));
        for (inbox, member) in &mut members {
            assert_eq!(inbox.texts(), ["to everybody"; 10]);
            assert_eq!(member.datagrams(Duration::from_millis(1)).await.len(), 10);
        }
        assert_eq!(*seen.lock().unwrap(), BTreeMap::from([(1, 20)]));
        assert_eq!(
            world.metric(1, "tradewind_relay_group_deliveries_total", ""),
            4_000.0
        );
    });
}
