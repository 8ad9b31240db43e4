//! All clients of an edge that has died come to the next ones, with a stand-in for the relays, in
//! virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Net, ms, secs};
use tradewind_client::Client;
use tradewind_wan::{HostClock, run_virtual};

const CLIENTS: usize = 60;
/// Handshakes that an edge begins per second.
const PER_SECOND: usize = 5;

/// Clients at an edge that dies, and two edges that take few at a time. How long until all are back, and
/// how often they were refused meanwhile.
fn herd(seed: u64, standby: bool) -> (Duration, usize) {
    run_virtual(seed, |wan| async move {
        let names = ["dies", "next", "last"].map(str::to_owned);
        let places = wan.add_matrix(&names, |a, b| Some(ms(10) * a.abs_diff(b) as u32));
        let net = Net::new(&wan);
        let dies = net.edge(places[0]);
        net.edge(places[1]);
        net.edge(places[2]);
        let mut clients = Vec::new();
        for n in 0..CLIENTS {
            let mut config = net.config(&format!("user-{n}"));
            config.standby = standby;
            config.max_sessions = if standby { 2 } else { 1 };
            let host = wan.add_host(places[0], HostClock::EXACT);
            clients.push(Client::connect(config, host).await.unwrap());
        }
        wan.sleep(secs(30)).await;
        net.set(|knobs| knobs.handshakes_per_s = Some(PER_SECOND));
        dies.kill();
        let died = wan.network_time();
        // Without a session that stands by, sends would only wait for one.
        wan.sleep(secs(10)).await;
        let is_back = |client: &Client| {
            let relay = client.stats().relay;
            relay.is_some_and(|relay| relay != "edge-0")
        };
        while !clients.iter().all(is_back) {
            wan.sleep(ms(100)).await;
        }
        let took = wan.network_time() - died;
        let seen = net.seen();
        for (edge, at) in &seen.begun {
            let begun = seen.begun.iter();
            let in_a_second = begun
                .filter(|(other, then)| other == edge && at <= then && *then < *at + secs(1))
                .count();
            assert!(*at < died || in_a_second <= PER_SECOND, "at {at:?}");
        }
        // Nobody was lost: all can be reached.
        for n in 1..CLIENTS {
            clients[n - 1]
                .send(&format!("user-{n}"), "here")
                .await
                .unwrap();
        }
        (took, seen.refused)
    })
}

#[test]
fn those_with_another_session_are_back_without_a_handshake() {
    let (took, _) = herd(1, true);
    // An idle client misses its edge 8 s after the next sign of life, which it sends every 2.5 s.
    assert!(took <= secs(11), "{took:?}");
}

#[test]
fn the_others_come_as_fast_as_edges_take_them_and_no_faster() {
    let (took, refused) = herd(2, false);
    assert!(refused > 0, "the edges had to refuse some");
    // Two edges take 10 per second; some pauses are longer than they had to be.
    assert!(took < secs(60), "{took:?}");
}
