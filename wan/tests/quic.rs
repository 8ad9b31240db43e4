//! quinn over the emulated network, in virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{echo, ms, quic_configs, seen, serve_echo, us};
use tradewind_wan::{Bandwidth, BurstLoss, HostClock, Jitter, LinkSpec, Overtaking, run_virtual};

#[test]
fn two_quinn_endpoints_measure_the_round_trip_of_the_matrix() {
    run_virtual(11, |wan| async move {
        let names = ["a", "b"].map(str::to_owned);
        let one_way = [ms(0), ms(60), ms(40)];
        let places = wan.add_matrix(&names, |i, j| Some(one_way[2 * i + j]));
        let a = seen(&wan.add_host(places[0], HostClock::new(5_000_000, 30.0)));
        let b = wan.add_host(places[1], HostClock::new(-9_000_000, -30.0));
        let (server, client) = quic_configs();
        let listening = SocketAddr::new(b.ip(), 4433);
        let b = seen(&b);
        serve_echo(b.clone(), b.quic_endpoint(listening, Some(server)).unwrap());
        let endpoint = a.quic_endpoint("0.0.0.0:0".parse().unwrap(), None).unwrap();
        let connection = endpoint
            .connect_with(client, listening, "wan.test")
            .unwrap()
            .await
            .unwrap();
        assert_eq!(wan.network_time(), ms(100), "one round trip of handshake");
        for round in 0..10 {
            let (asked, by_own_clock) = (wan.network_time(), a.now());
            assert_eq!(echo(&connection, &[round; 300]).await, [round; 300]);
            assert_eq!(wan.network_time() - asked, ms(100));
            assert_eq!(
                a.now() - by_own_clock,
                us(100_003),
                "30 ppm of 100 ms are 3 µs"
            );
        }
        assert!(
            connection.rtt().abs_diff(ms(100)) < ms(1),
            "{:?}",
            connection.rtt()
        );
        assert_eq!(connection.stats().path.lost_packets, 0);
    });
}

#[test]
fn a_connection_lives_on_when_its_client_moves_and_when_packets_come_twice_or_late() {
    run_virtual(12, |wan| async move {
        let spec = LinkSpec {
            duplicate: 0.1,
            overtaking: Some(Overtaking {
                share: 0.1,
                by: ms(10),
            }),
            ..LinkSpec::with_delay(ms(20))
        };
        let [pa, pb, pc] = ["a", "b", "c"].map(|name| wan.add_place(name));
        wan.set_links(pa, pb, &spec);
        wan.set_links(pc, pb, &spec);
        let host = wan.add_host(pa, HostClock::EXACT);
        let a = seen(&host);
        let b = wan.add_host(pb, HostClock::EXACT);
        let (server, client) = quic_configs();
        let listening = SocketAddr::new(b.ip(), 4433);
        let b = seen(&b);
        serve_echo(b.clone(), b.quic_endpoint(listening, Some(server)).unwrap());
        let endpoint = a.quic_endpoint("0.0.0.0:0".parse().unwrap(), None).unwrap();
        let connection = endpoint
            .connect_with(client, listening, "wan.test")
            .unwrap()
            .await
            .unwrap();
        for (round, place) in [pa, pa, pc, pb, pa].into_iter().enumerate() {
            wan.move_host(&host, place);
            for _ in 0..20 {
                let payload = vec![round as u8; 3_000];
                assert_eq!(echo(&connection, &payload).await, payload);
            }
        }
        let stats = wan.total_stats();
        assert!(stats.duplicated > 0 && stats.held_back > 0, "{stats:?}");
    });
}

/// A full mesh of `n` quinn endpoints that echo to each other for `time`: the digest of
/// everything on the wire, the echoes, and the packets.
fn mesh(seed: u64, n: usize, time: Duration) -> (u64, usize, u64) {
    run_virtual(seed, |wan| async move {
        let names: Vec<_> = (0..n).map(|i| format!("place-{i}")).collect();
        let places = wan.add_matrix(&names, |i, j| {
            Some(us(
                (5 + (i * 7 + j * 13) % 90) as u64 * 1_000 + (i * j) as u64
            ))
        });
        // Some of everything on some links.
        wan.set_links(
            places[0],
            places[1],
            &LinkSpec {
                loss: 0.02,
                jitter: Jitter::Uniform { max: ms(3) },
                burst: Some(BurstLoss {
                    enter: 0.005,
                    leave: 0.3,
                    loss: 0.9,
                }),
                bandwidth: Some(Bandwidth {
                    bytes_per_second: 200_000,
                    queue_bytes: 60_000,
                }),
                ..LinkSpec::with_delay(ms(33))
            },
        );
        let (server, client) = quic_configs();
        let mut all = Vec::new();
        for (i, &place) in places.iter().enumerate() {
            let host = wan.add_host(place, HostClock::new(i as i64 * 999_983, i as f64 - 9.5));
            let address = SocketAddr::new(host.ip(), 4433);
            let host = seen(&host);
            let endpoint = host.quic_endpoint(address, Some(server.clone())).unwrap();
            serve_echo(host.clone(), endpoint.clone());
            all.push((host, endpoint, address));
        }
        let echoes = Arc::new(Mutex::new(0));
        for i in 0..n {
            for j in i + 1..n {
                let (host, endpoint) = (all[i].0.clone(), all[i].1.clone());
                let (address, client, echoes) = (all[j].2, client.clone(), echoes.clone());
                all[i].0.spawn(async move {
                    let connecting = endpoint.connect_with(client, address, "wan.test").unwrap();
                    let connection = connecting.await.unwrap();
                    for round in 0.. {
                        assert_eq!(echo(&connection, &[round as u8; 200]).await.len(), 200);
                        *echoes.lock().unwrap() += 1;
                        host.sleep(ms(50 + round % 7)).await;
                    }
                });
            }
        }
        wan.sleep(time).await;
        let echoes = *echoes.lock().unwrap();
        (wan.trace_digest(), echoes, wan.total_stats().sent)
    })
}

#[test]
fn a_full_mesh_of_20_quinn_endpoints_talks_in_virtual_time() {
    let (_, echoes, packets) = mesh(1, 20, ms(5_000));
    println!("190 connections, 5 s: {echoes} echoes, {packets} packets");
    // The slowest pair needs some 260 ms per echo, the fastest 60.
    assert!(echoes > 190 * 15, "{echoes}");
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let first = mesh(7, 6, ms(3_000));
    assert_eq!(first, mesh(7, 6, ms(3_000)));
    assert_ne!(first.0, mesh(8, 6, ms(3_000)).0);
}

#[test]
fn a_connection_survives_a_short_cut_and_ends_when_its_peer_is_killed() {
    run_virtual(4, |wan| async move {
        let [pa, pb] = ["a", "b"].map(|name| wan.add_place(name));
        wan.set_links(pa, pb, &LinkSpec::with_delay(ms(25)));
        let a = seen(&wan.add_host(pa, HostClock::EXACT));
        let b = wan.add_host(pb, HostClock::EXACT);
        let (server, client) = quic_configs();
        let listening = SocketAddr::new(b.ip6(), 4433);
        let serve = || {
            let host = seen(&b);
            let endpoint = host.quic_endpoint(listening, Some(server.clone())).unwrap();
            serve_echo(host, endpoint);
        };
        serve();
        let endpoint = a.quic_endpoint("[::]:0".parse().unwrap(), None).unwrap();
        let connect = || {
            endpoint
                .connect_with(client.clone(), listening, "wan.test")
                .unwrap()
        };
        let connection = connect().await.unwrap();

        wan.cut_both(pa, pb);
        let cut_at = wan.network_time();
        let outside = wan.clone();
        a.spawn(async move {
            outside.sleep(ms(2_000)).await;
            outside.heal_both(pa, pb);
        });
        assert_eq!(echo(&connection, b"patience").await, b"patience");
        assert!(wan.network_time() - cut_at > ms(2_000));

        b.kill();
        let reason = connection.closed().await;
        assert!(
            matches!(reason, quinn::ConnectionError::TimedOut),
            "{reason}"
        );
        b.revive();
        serve();
        assert_eq!(echo(&connect().await.unwrap(), b"again").await, b"again");
    });
}

/// The speed of virtual time; run in release with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a test"]
#[allow(clippy::disallowed_methods)] // measures wall time on purpose
fn how_long_a_minute_of_50_endpoints_takes() {
    let started = std::time::Instant::now();
    let (_, echoes, packets) = mesh(1, 50, Duration::from_secs(60));
    println!(
        "1,225 connections, 60 s: {echoes} echoes, {packets} packets in {:?}",
        started.elapsed()
    );
}
