//! Idle clients behind NATs that forget them, with a stand-in for the relays, in virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Net, ms, secs};
use tradewind_client::{AdaptiveKeepAlive, Client, KeepAlive, SendOptions};
use tradewind_wan::{HostClock, PlaceId, Wan, WanHost, run_virtual};

/// Two places with an edge each, 20 ms apart, and one without, 10 ms from both.
fn three(wan: &Wan) -> (Vec<PlaceId>, Net, Vec<Arc<WanHost>>) {
    let names = ["one", "two", "home"].map(str::to_owned);
    let places = wan.add_matrix(&names, |a, b| {
        Some(ms(if a == b {
            0
        } else if a + b == 1 {
            20
        } else {
            10
        }))
    });
    let net = Net::new(wan);
    let edges = places[..2].iter().map(|&place| net.edge(place)).collect();
    (places, net, edges)
}

/// A phone at home that spares its battery, behind a NAT that remembers for so long.
async fn phone(wan: &Wan, net: &Net, home: PlaceId, remembers: Duration) -> Client {
    let host = wan.add_host(home, HostClock::new(7_000_000, 30.0));
    host.set_binding_lifetime(Some(remembers));
    let mut config = net.config("ann");
    config.keep_alive = KeepAlive::Adaptive(AdaptiveKeepAlive::default());
    Client::connect(config, host).await.unwrap()
}

/// Packets that have left home so far.
fn sent_from(wan: &Wan, places: &[PlaceId]) -> u64 {
    let to = |edge| wan.link_stats(places[2], edge).sent;
    to(places[0]) + to(places[1])
}

#[test]
fn a_phone_is_reached_at_any_time_and_wakes_up_rarely() {
    run_virtual(1, |wan| async move {
        let (places, net, _edges) = three(&wan);
        let ann = phone(&wan, &net, places[2], secs(40)).await;
        let ben = net.client(places[0], "ben").await;
        // By then it has found out how long it may be silent.
        wan.sleep(secs(300)).await;
        let before = sent_from(&wan, &places);
        wan.sleep(secs(600)).await;
        let sent = sent_from(&wan, &places) - before;
        // Two sessions, 33.75 s each time; some acknowledgements. A sign of life every 2.5 s would be 480
        // and as many acknowledgements.
        assert!((34..=110).contains(&sent), "{sent} packets in ten minutes");
        assert_eq!(ann.stats().sessions, 1, "no session was lost");
        for n in 0..40_u64 {
            let late = SendOptions {
                ttl: secs(5),
                ..SendOptions::default()
            };
            let delivered = ben.send_with("ann", n.to_string(), late).await.unwrap();
            assert!(delivered.after < ms(200), "{n}: {delivered:?}");
            ann.recv_message().await.unwrap();
            // Long enough to be idle again, and each time a moment later in its rhythm.
            wan.sleep(secs(20) + ms(n * 700)).await;
        }
    });
}

#[test]
fn on_a_network_that_does_not_forget_two_minutes_pass_between_signs_of_life() {
    run_virtual(2, |wan| async move {
        let (places, net, _edges) = three(&wan);
        let ann = phone(&wan, &net, places[2], secs(3_600)).await;
        wan.sleep(secs(600)).await;
        let before = sent_from(&wan, &places);
        wan.sleep(secs(1_200)).await;
        let sent = sent_from(&wan, &places) - before;
        assert!(
            (18..=60).contains(&sent),
            "{sent} packets in twenty minutes"
        );
        assert_eq!(ann.stats().sessions, 1, "no session was lost");
    });
}

#[test]
fn an_idle_phone_leaves_a_dead_edge_as_soon_as_it_is_told() {
    run_virtual(3, |wan| async move {
        let (places, net, edges) = three(&wan);
        let ann = phone(&wan, &net, places[2], secs(40)).await;
        wan.sleep(secs(310)).await;
        let at = ann.stats().relay.unwrap();
        let (dies, other) = if at == "edge-0" { (0, 1) } else { (1, 0) };
        edges[dies].kill();
        net.say_down(other, &at);
        wan.sleep(secs(1)).await;
        assert_eq!(ann.stats().relay, Some(format!("edge-{other}")));
    });
}

#[test]
fn an_edge_that_dies_in_silence_is_missed_after_the_silence() {
    run_virtual(4, |wan| async move {
        let (places, net, edges) = three(&wan);
        let ann = phone(&wan, &net, places[2], secs(40)).await;
        wan.sleep(secs(310)).await;
        let at = ann.stats().relay.unwrap();
        let (dies, other) = if at == "edge-0" { (0, 1) } else { (1, 0) };
        edges[dies].kill();
        // Nobody says so: 33.75 s of silence, and twice three seconds and a little for an answer.
        wan.sleep(secs(45)).await;
        assert_eq!(ann.stats().relay, Some(format!("edge-{other}")));
    });
}
