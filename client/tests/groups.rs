//! Groups, with a stand-in for the relays, in virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{Net, ms, secs};
use tradewind_client::{
    Class, Client, Event, FlowError, GroupError, JoinOptions, SendError, SendOptions,
};
use tradewind_wan::{PlaceId, Wan, run_virtual};

/// Places in a row, 20 ms from each to the next.
fn row(wan: &Wan, n: usize) -> Vec<PlaceId> {
    let names: Vec<_> = (0..n).map(|i| format!("place-{i}")).collect();
    wan.add_matrix(&names, |i, j| Some(ms(20) * i.abs_diff(j) as u32))
}

async fn member(net: &Net, place: PlaceId, user: &str) -> Client {
    let client = net.client(place, user).await;
    client.join("choir", JoinOptions::default()).await.unwrap();
    client
}

async fn text_of(client: &Client) -> String {
    let message = client.recv_message().await.unwrap();
    assert_eq!(message.group.as_deref(), Some("choir"));
    String::from_utf8(message.payload.to_vec()).unwrap()
}

#[test]
fn all_members_but_the_sender_get_what_is_sent_and_the_sender_an_outcome() {
    run_virtual(1, |wan| async move {
        let places = row(&wan, 3);
        let net = Net::new(&wan);
        net.edge(places[0]);
        net.set(|knobs| knobs.peer_delay = ms(30));
        let ann = member(&net, places[0], "ann").await;
        let ben = member(&net, places[1], "ben").await;
        let cleo = member(&net, places[2], "cleo").await;
        let outsider = net.client(places[1], "dora").await;
        ann.send_group("choir", "one").await.unwrap();
        // One need not be a member to send.
        outsider.send_group("choir", "two").await.unwrap();
        for listener in [&ben, &cleo] {
            let message = listener.recv_message().await.unwrap();
            assert_eq!((&*message.from, &message.payload[..]), ("ann", &b"one"[..]));
            assert_eq!(text_of(listener).await, "two");
        }
        assert_eq!(text_of(&ann).await, "two");
        wan.sleep(secs(2)).await;
        let got: Vec<u64> = [&ann, &ben, &cleo, &outsider]
            .map(|client| client.stats().messages_received)
            .into();
        assert_eq!(got, [1, 2, 2, 0]);
        // The edge writes one packet for all: each member adds its own 40 ms.
        ann.send_group("choir", "three").await.unwrap();
        let age = cleo.recv_message().await.unwrap().age;
        assert!(age.abs_diff(ms(41)) < ms(1), "{age:?}");
    });
}

#[test]
fn what_the_edge_had_no_room_for_is_fetched() {
    run_virtual(2, |wan| async move {
        let places = row(&wan, 2);
        let net = Net::new(&wan);
        net.edge(places[0]);
        let ann = net.client(places[0], "ann").await;
        let ben = member(&net, places[1], "ben").await;
        net.set(|knobs| knobs.group_loss = 30);
        let mut receipts = Vec::new();
        for n in 0..200_u32 {
            let mut payload = n.to_be_bytes().to_vec();
            payload.resize(4 + (n as usize * 997) % 40_000, n as u8);
            let options = SendOptions {
                lane: n % 2,
                ..SendOptions::default()
            };
            receipts.push(ann.enqueue_group("choir", payload, options));
            wan.sleep(ms(5)).await;
        }
        let mut next = [0_u32, 1];
        for _ in 0..200 {
            let message = ben.recv_message().await.unwrap();
            let expected = &mut next[message.lane as usize];
            let n = *expected;
            *expected += 2;
            assert_eq!(message.payload[..4], n.to_be_bytes());
            assert_eq!(message.payload.len(), 4 + (n as usize * 997) % 40_000);
        }
        for receipt in receipts {
            receipt.await.unwrap();
        }
        assert!(ben.stats().group_fetches > 10);
    });
}

#[test]
fn a_member_whose_edge_dies_misses_nothing() {
    run_virtual(3, |wan| async move {
        let places = row(&wan, 2);
        let net = Net::new(&wan);
        let near = net.edge(places[0]);
        net.edge(places[1]);
        let ann = net.client(places[1], "ann").await;
        let ben = member(&net, places[0], "ben").await;
        assert_eq!(ben.stats().relay.as_deref(), Some("edge-0"));
        for n in 0..100_u32 {
            if n == 30 {
                near.kill();
            }
            drop(ann.enqueue_group("choir", n.to_string(), SendOptions::default()));
            wan.sleep(ms(200)).await;
        }
        for n in 0..100_u32 {
            assert_eq!(text_of(&ben).await, n.to_string());
        }
        assert_eq!(ben.stats().relay.as_deref(), Some("edge-1"));
        assert_eq!(net.seen().joins.len(), 2);
    });
}

#[test]
fn a_sender_whose_edge_dies_sends_on_over_the_next_one() {
    run_virtual(4, |wan| async move {
        let places = row(&wan, 2);
        let net = Net::new(&wan);
        let near = net.edge(places[0]);
        net.edge(places[1]);
        let ann = net.client(places[0], "ann").await;
        let ben = member(&net, places[1], "ben").await;
        let mut receipts = Vec::new();
        for n in 0..60_u32 {
            if n == 20 {
                near.kill();
            }
            receipts.push(ann.enqueue_group("choir", n.to_string(), SendOptions::default()));
            wan.sleep(ms(50)).await;
        }
        for n in 0..60_u32 {
            assert_eq!(text_of(&ben).await, n.to_string());
        }
        for receipt in receipts {
            receipt.await.unwrap();
        }
        assert_eq!(ben.stats().messages_received, 60);
    });
}

#[test]
fn what_nobody_holds_is_told_as_a_gap_in_its_place() {
    run_virtual(5, |wan| async move {
        let places = row(&wan, 1);
        let net = Net::new(&wan);
        net.edge(places[0]);
        let ann = net.client(places[0], "ann").await;
        let ben = member(&net, places[0], "ben").await;
        ann.send_group("choir", "one").await.unwrap();
        net.set(|knobs| (knobs.group_loss, knobs.forgotten) = (100, true));
        ann.send_group("choir", "lost").await.unwrap();
        ann.send_group("choir", "lost too").await.unwrap();
        net.set(|knobs| knobs.group_loss = 0);
        ann.send_group("choir", "four").await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 3 {
            match ben.recv().await.unwrap() {
                Event::Message(message) => {
                    seen.push(String::from_utf8(message.payload.to_vec()).unwrap());
                }
                Event::Gap(gap) => {
                    assert_eq!((&*gap.group, &*gap.from, gap.lane), ("choir", "ann", 0));
                    seen.push(format!("gap of {}", gap.segments));
                }
                _ => {}
            }
        }
        assert_eq!(seen, ["one", "gap of 2", "four"]);
    });
}

#[test]
fn grants_leaving_and_an_edge_that_cannot_say_yet() {
    run_virtual(6, |wan| async move {
        let places = row(&wan, 1);
        let net = Net::new(&wan);
        net.edge(places[0]);
        net.set(|knobs| {
            knobs.denied.insert("board".to_owned());
            knobs.retries = 2;
        });
        let ann = net.client(places[0], "ann").await;
        let ben = member(&net, places[0], "ben").await;
        let none = JoinOptions::default();
        assert_eq!(ann.join("board", none).await, Err(GroupError::Denied));
        assert_eq!(ann.send_group("board", "x").await, Err(SendError::Denied));
        let flow = ann.open_group_flow("board", Class::Audio).await;
        assert_eq!(flow.unwrap_err(), GroupError::Denied);
        assert_eq!(ann.join("", none).await, Err(GroupError::Name));
        ann.send_group("choir", "one").await.unwrap();
        assert_eq!(text_of(&ben).await, "one");
        ben.leave("choir");
        wan.sleep(ms(100)).await;
        ann.send_group("choir", "two").await.unwrap();
        // Who joins again gets what is sent from then on.
        ben.join("choir", none).await.unwrap();
        ann.send_group("choir", "three").await.unwrap();
        assert_eq!(text_of(&ben).await, "three");
        ann.close().await;
        assert_eq!(ann.join("choir", none).await, Err(GroupError::Closed));
        assert_eq!(ann.send_group("choir", "x").await, Err(SendError::Closed));
    });
}

#[test]
fn members_get_the_layers_of_media_that_they_want() {
    run_virtual(7, |wan| async move {
        let places = row(&wan, 1);
        let net = Net::new(&wan);
        net.edge(places[0]);
        let ann = net.client(places[0], "ann").await;
        let ben = member(&net, places[0], "ben").await;
        let cleo = net.client(places[0], "cleo").await;
        cleo.join("choir", JoinOptions { layers: 0b101 })
            .await
            .unwrap();
        let flow = ann.open_group_flow("choir", Class::Video).await.unwrap();
        for layer in 0..3 {
            flow.send(layer, Bytes::from(vec![layer])).unwrap();
        }
        wan.sleep(ms(100)).await;
        let layers = |client: &Client| client.stats().media_received;
        assert_eq!((layers(&ben), layers(&cleo)), (3, 2));
        for layer in [0, 2] {
            let media = cleo.recv_media().await.unwrap();
            assert_eq!(
                (media.layer, media.group.as_deref()),
                (layer, Some("choir"))
            );
            assert_eq!((&*media.from, media.payload[0]), ("ann", layer));
        }
        assert_eq!(flow.send(8, Bytes::new()), Err(FlowError::NoSuchLayer(8)));
        let (bytes, limit) = (1_001, 1_000);
        let large = flow.send(0, Bytes::from(vec![0; bytes]));
        assert_eq!(large, Err(FlowError::TooLarge { bytes, limit }));
        // Other layers from now on, without a gap in the membership.
        cleo.join("choir", JoinOptions { layers: 0b010 })
            .await
            .unwrap();
        flow.send(1, Bytes::from_static(b"x")).unwrap();
        assert_eq!(cleo.recv_media().await.unwrap().layer, 1);
    });
}
