//! Watching users, with a stand-in for the relays, in virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Net, ms, secs};
use tradewind_client::{Class, Client, Event, SendError, SendOptions, State, WatchError};
use tradewind_host::Host;
use tradewind_proto::control::lookup_user::Purpose;
use tradewind_wan::{HostClock, PlaceId, Wan, run_virtual};

fn row(wan: &Wan, n: usize) -> Vec<PlaceId> {
    let names: Vec<_> = (0..n).map(|i| format!("place-{i}")).collect();
    wan.add_matrix(&names, |i, j| Some(ms(20) * i.abs_diff(j) as u32))
}

/// What is told of watched users within a time.
async fn told(wan: &Wan, client: &Client, within: std::time::Duration) -> Vec<(String, bool)> {
    let clock: Arc<dyn Host> = wan.add_host(wan.add_place("watch"), HostClock::EXACT);
    let mut told = Vec::new();
    let until = clock.now() + within;
    while let Ok(event) = clock.timeout(until - clock.now(), client.recv()).await {
        if let Event::Presence(presence) = event.expect("the client goes on") {
            told.push((presence.user.to_string(), presence.online));
        }
    }
    told
}

#[test]
fn changes_are_told_once_and_a_change_of_the_edge_is_none() {
    run_virtual(1, |wan| async move {
        let places = row(&wan, 3);
        let net = Net::new(&wan);
        let near = net.edge(places[0]);
        net.edge(places[1]);
        let ann = net.client(places[0], "ann").await;
        ann.watch(&["ben", "eve", "ben"]).unwrap();
        let start = told(&wan, &ann, secs(1)).await;
        assert_eq!(start, [("ben".into(), false), ("eve".into(), false)]);
        let ben = net.client(places[2], "ben").await;
        assert_eq!(told(&wan, &ann, secs(1)).await, [("ben".into(), true)]);
        near.kill();
        assert_eq!(told(&wan, &ann, secs(5)).await, []);
        let moved = net.seen().watches;
        let at_the_other = moved.iter().filter(|(_, edge, _)| *edge == 1).count();
        assert_eq!(at_the_other, 2, "{moved:?}");
        // The other edge goes on telling.
        ben.close().await;
        assert_eq!(told(&wan, &ann, secs(40)).await, [("ben".into(), false)]);
        ann.unwatch(&["ben"]);
        let _ben = net.client(places[2], "ben").await;
        assert_eq!(told(&wan, &ann, secs(2)).await, []);
    });
}

#[test]
fn what_changes_while_there_is_no_session_is_told_afterwards() {
    run_virtual(2, |wan| async move {
        let places = row(&wan, 2);
        let net = Net::new(&wan);
        net.edge(places[0]);
        let ann = net.client(places[0], "ann").await;
        let ben = net.client(places[1], "ben").await;
        ann.watch(&["ben"]).unwrap();
        assert_eq!(told(&wan, &ann, secs(1)).await, [("ben".into(), true)]);
        net.kick("ann", tradewind_client::CloseCode::Full);
        ben.close().await;
        assert_eq!(told(&wan, &ann, secs(40)).await, [("ben".into(), false)]);
    });
}

#[test]
fn refusals_are_told_and_busy_networks_are_asked_again() {
    run_virtual(3, |wan| async move {
        let places = row(&wan, 1);
        let net = Net::new(&wan);
        net.edge(places[0]);
        net.set(|knobs| {
            knobs.denied.insert("eve".to_owned());
            knobs.busy_watches = 1;
        });
        let ann = net.client(places[0], "ann").await;
        assert_eq!(ann.watch(&["ben", ""]), Err(WatchError::Name));
        let many: Vec<String> = (0..1_025).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(ann.watch(&many), Err(WatchError::TooMany));
        ann.watch(&["ben"]).unwrap();
        assert_eq!(told(&wan, &ann, secs(4)).await, []);
        assert_eq!(told(&wan, &ann, secs(4)).await, [("ben".into(), false)]);
        ann.watch(&["eve"]).unwrap();
        let ended = loop {
            match ann.recv().await.unwrap() {
                Event::State(State::Connected { .. }) => {}
                other => break other,
            }
        };
        let Event::WatchEnded { user, reason } = ended else {
            panic!("{ended:?}");
        };
        assert_eq!((&*user, reason), ("eve", WatchError::Denied));
        ann.close().await;
        assert_eq!(ann.watch(&["ben"]), Err(WatchError::Closed));
    });
}

#[test]
fn lookups_say_once_what_waits_for_whom() {
    run_virtual(4, |wan| async move {
        let places = row(&wan, 2);
        let net = Net::new(&wan);
        net.edge(places[0]);
        let ann = net.client(places[0], "ann").await;
        net.set(|knobs| knobs.retries = 2);
        assert_eq!(ann.send("ben", "x").await, Err(SendError::Offline));
        assert!(ann.open_flow("ben", Class::Video).await.is_err());
        assert!(ann.ping_user("ben").await.is_err());
        let ben = net.client(places[1], "ben").await;
        // What is under way when its receiver vanishes waits for it, and is looked up again and again.
        net.set(|knobs| knobs.loss = 100);
        let ttl = secs(8);
        let options = SendOptions {
            ttl,
            ..SendOptions::default()
        };
        let waiting = ann.enqueue("ben", "x", options);
        wan.sleep(secs(1)).await;
        net.kick("ben", tradewind_client::CloseCode::Revoked);
        assert_eq!(waiting.await, Err(SendError::Expired));
        let purposes = net.seen().purposes;
        let of_ben: Vec<Purpose> = purposes.iter().map(|(_, purpose)| *purpose).collect();
        // Asked until the directory can say; a call; a ping; and the message for ben while he was there.
        let begun = [
            Purpose::Message,
            Purpose::Message,
            Purpose::Message,
            Purpose::Video,
            Purpose::Look,
            Purpose::Message,
        ];
        assert_eq!(of_ben[..6], begun, "{of_ben:?}");
        let more = &of_ben[6..];
        let told = more.iter().filter(|purpose| **purpose != Purpose::Look);
        assert!(told.count() <= 2 && more.len() >= 4, "{more:?}");
        drop(ben);
    });
}
