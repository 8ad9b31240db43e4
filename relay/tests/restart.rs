//! A relay whose process ends and starts anew at the same address: real relays in virtual time.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod support;

use std::{path::PathBuf, time::Duration};

use quinn::ConnectionError;
use support::{TestClient, World};
use tradewind_wan::{Wan, run_virtual};

/// One way between the client and the relay.
const ONE_WAY: Duration = Duration::from_millis(20);
const PAIR: &[&[u64]] = &[&[0, 20], &[20, 0]];

/// Kills r0's process and starts it anew with the state in `file`.
async fn restart(world: &mut World, file: PathBuf) {
    let host = world.relay_hosts[0].clone();
    host.kill();
    world.wan.sleep(Duration::from_secs(1)).await;
    host.revive();
    let with_file = |settings: &mut tradewind_relay::RelaySettings| {
        settings.state_file = Some(file);
    };
    world.relays[0] = world.try_start_relay("r0", host, with_file).await.unwrap();
    world.wan.sleep(Duration::from_secs(5)).await;
}

/// A relay with its state in `file`, and a client of it at the other place.
async fn with_client(wan: &Wan, file: PathBuf) -> (World, TestClient) {
    let mut world = World::new(wan.clone(), PAIR).await;
    world.plan(1, &[&[0, 1], &[0, 1]], &[]).await;
    restart(&mut world, file).await;
    let host = wan.add_host(world.places[1], tradewind_wan::HostClock::EXACT);
    let token = world.token("ann", |_| ());
    let client = world.client_on(host, 0, &token).await.unwrap();
    // Until it has nothing more to say by itself, such as probes of the path's MTU.
    wan.sleep(Duration::from_secs(2)).await;
    (world, client)
}

/// How long after its next packet the client knows that the connection is gone; `None`: not within
/// five seconds.
async fn noticed(wan: &Wan, client: &TestClient) -> Option<Duration> {
    assert_eq!(client.connection.close_reason(), None);
    client
        .connection
        .send_datagram(vec![0; 100].into())
        .unwrap();
    let sent = wan.network_time();
    let patience = Duration::from_secs(5);
    let closed = client.host.timeout(patience, client.connection.closed());
    let reason = closed.await.ok()?;
    assert!(matches!(reason, ConnectionError::Reset), "{reason}");
    Some(wan.network_time() - sent)
}

#[test]
fn a_client_of_the_process_before_knows_within_a_round_trip() {
    run_virtual(41, |wan| async move {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plan.bin");
        let (mut world, client) = with_client(&wan, file.clone()).await;
        restart(&mut world, file.clone()).await;
        let took = noticed(&wan, &client).await.expect("a stateless reset");
        assert!(took < ONE_WAY * 2 + Duration::from_millis(2), "{took:?}");
        // And is served again by the new one.
        let token = world.token("ann", |_| ());
        assert!(world.client_with(0, &token).await.is_ok());
    });
}

#[test]
fn damaged_keys_are_replaced_and_only_cost_the_notice() {
    run_virtual(42, |wan| async move {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plan.bin");
        let (mut world, client) = with_client(&wan, file.clone()).await;
        let keys = file.with_extension("quic-key");
        std::fs::write(&keys, "damaged").unwrap();
        restart(&mut world, file.clone()).await;
        assert_eq!(noticed(&wan, &client).await, None);
        assert_ne!(std::fs::read_to_string(&keys).unwrap(), "damaged");
        // The next restart is noticed again.
        let token = world.token("ben", |_| ());
        let host = wan.add_host(world.places[1], tradewind_wan::HostClock::EXACT);
        let client = world.client_on(host, 0, &token).await.unwrap();
        wan.sleep(Duration::from_secs(2)).await;
        restart(&mut world, file).await;
        assert!(noticed(&wan, &client).await.is_some());
    });
}
