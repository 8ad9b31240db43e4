//! The network in real time. Speed is printed, never asserted; what must hold on any machine, is.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::{bind, echo, ms, quic_configs, receive, seen, send_to, serve_echo, us};
use tradewind_host::Host;
use tradewind_wan::{HostClock, LinkSpec, Wan, run_real};

/// Sends `per_tick` packets every `tick` over a link of 20 ms, `ticks` times, between `pairs`
/// pairs of hosts: how late each arrived at its reader, in µs, sorted. Asserts that none was
/// early, lost or out of order.
async fn lateness_us(wan: Wan, pairs: u64, per_tick: u64, tick: Duration, ticks: u64) -> Vec<u128> {
    const DELAY: Duration = ms(20);
    let mut readers = Vec::new();
    for pair in 0..pairs {
        let [pa, pb] = ["a", "b"].map(|end| wan.add_place(&format!("{end}{pair}")));
        wan.set_links(pa, pb, &LinkSpec::with_delay(DELAY));
        let [a, b] = [pa, pb].map(|place| wan.add_host(place, HostClock::EXACT));
        let (from, to) = (bind(&a), bind(&b));
        let address = to.local_addr().unwrap();
        let sender = wan.clone();
        let start = wan.network_time() + us(97 * pair);
        seen(&a).spawn(async move {
            for number in 0..ticks {
                sender.sleep_until(start + tick * number as u32).await;
                for _ in 0..per_tick {
                    let now = sender.network_time().as_nanos() as u64;
                    send_to(
                        &*from,
                        address,
                        &[now.to_be_bytes(), number.to_be_bytes()].concat(),
                    );
                }
            }
        });
        let clock = wan.clone();
        readers.push(tokio::runtime::Handle::current().spawn(async move {
            let mut late = Vec::new();
            let mut last = 0;
            while (late.len() as u64) < per_tick * ticks {
                for datagram in receive(&*to).await.1 {
                    let now = clock.network_time();
                    let sent = u64::from_be_bytes(datagram[..8].try_into().unwrap());
                    assert!(sent >= last, "in order");
                    last = sent;
                    let due = Duration::from_nanos(sent) + DELAY;
                    assert!(now >= due, "never early");
                    late.push((now - due).as_micros());
                }
            }
            late
        }));
    }
    let mut late = Vec::new();
    for reader in readers {
        late.extend(reader.await.unwrap());
    }
    late.sort_unstable();
    late
}

fn report(what: &str, wan: &Wan, late: &[u128]) {
    let error = wan.delivery_error();
    let total = wan.total_stats();
    println!(
        "{what}: {} packets; placed into the inbox late by p50 {} µs, p99 {} µs, max {} µs; read \
         late by p50 {} µs, p99 {} µs",
        error.packets,
        error.p50_us,
        error.p99_us,
        error.max_us,
        late[late.len() / 2],
        late[late.len() * 99 / 100]
    );
    assert_eq!(error.packets, late.len() as u64);
    assert_eq!((total.delivered, total.vanished()), (late.len() as u64, 0));
}

#[test]
fn in_real_time_nothing_arrives_early_or_out_of_order() {
    run_real(1, |wan| async move {
        let late = lateness_us(wan.clone(), 1, 1, ms(2), 500).await;
        report("500 packets/s", &wan, &late);
    });
}

#[test]
fn under_load_nothing_arrives_early_lost_or_out_of_order() {
    run_real(1, |wan| async move {
        let late = lateness_us(wan.clone(), 10, 2, ms(1), 1_000).await;
        report("20,000 packets/s", &wan, &late);
    });
}

#[test]
fn on_one_thread_nothing_arrives_early_lost_or_out_of_order() {
    for (what, pairs, per_tick, tick, ticks) in [
        ("one thread, 500 packets/s", 1, 1, ms(2), 500),
        ("one thread, 20,000 packets/s", 10, 2, ms(1), 1_000),
    ] {
        let wan = Wan::real_time_on_one_thread(1);
        wan.run(async {
            let late = lateness_us(wan.clone(), pairs, per_tick, tick, ticks).await;
            report(what, &wan, &late);
        });
    }
}

#[test]
fn one_thread_at_rest_is_woken_by_what_comes_sooner() {
    let wan = Wan::real_time_on_one_thread(1);
    wan.run(async {
        let place = wan.add_place("a");
        let host = seen(&wan.add_host(place, HostClock::EXACT));
        let far = host.clone();
        host.spawn(async move { far.sleep(Duration::from_secs(3_600)).await });
        // Now it rests for an hour, as far as it knows.
        tokio::task::yield_now().await;
        let before = wan.network_time();
        host.sleep(ms(30)).await;
        let took = wan.network_time() - before;
        assert!(took >= ms(30));
        println!("30 ms out of a rest took {took:?}");
    });
}

#[test]
fn packets_between_hosts_at_one_place_stay_in_order_without_any_delay() {
    run_real(1, |wan| async move {
        let place = wan.add_place("a");
        let [a, b] = [(); 2].map(|()| wan.add_host(place, HostClock::EXACT));
        let (from, to) = (bind(&a), bind(&b));
        let address = to.local_addr().unwrap();
        let outside = wan.clone();
        seen(&a).spawn(async move {
            for number in 0..3_000_u32 {
                // Delays that come and go must not let a packet overtake.
                match number % 100 {
                    0 => outside.set_link(place, place, LinkSpec::with_delay(us(300))),
                    50 => outside.set_link(place, place, LinkSpec::default()),
                    90 => outside.sleep(us(200)).await,
                    _ => {}
                }
                send_to(&*from, address, &number.to_be_bytes());
            }
        });
        let mut expected = 0_u32;
        while expected < 3_000 {
            for datagram in receive(&*to).await.1 {
                assert_eq!(datagram, expected.to_be_bytes());
                expected += 1;
            }
        }
    });
}

#[test]
fn a_timer_by_a_fast_clock_is_never_early_by_that_clock() {
    run_real(1, |wan| async move {
        let place = wan.add_place("a");
        let host = seen(&wan.add_host(place, HostClock::new(-1_000_000, 200_000.0)));
        let (by_network, by_host) = (wan.network_time(), host.now());
        host.sleep(ms(120)).await;
        assert!(host.now() - by_host >= ms(120));
        assert!(wan.network_time() - by_network >= ms(100) - us(1));
        println!(
            "120 ms by a clock 20 % fast took {:?}",
            wan.network_time() - by_network
        );
    });
}

#[test]
fn quinn_measures_at_least_the_configured_round_trip_in_real_time() {
    run_real(1, |wan| async move {
        let [pa, pb] = ["a", "b"].map(|name| wan.add_place(name));
        wan.set_links(pa, pb, &LinkSpec::with_delay(ms(50)));
        let a = seen(&wan.add_host(pa, HostClock::new(123, 50.0)));
        let b = wan.add_host(pb, HostClock::EXACT);
        let (server, client) = quic_configs();
        let listening = SocketAddr::new(b.ip(), 4433);
        let host: Arc<dyn Host> = seen(&b);
        serve_echo(
            host.clone(),
            host.quic_endpoint(listening, Some(server)).unwrap(),
        );
        let endpoint = a.quic_endpoint("0.0.0.0:0".parse().unwrap(), None).unwrap();
        let connection = endpoint
            .connect_with(client, listening, "wan.test")
            .unwrap()
            .await
            .unwrap();
        for round in 0..5 {
            let asked = wan.network_time();
            assert_eq!(echo(&connection, &[round; 100]).await, [round; 100]);
            let took = wan.network_time() - asked;
            assert!(took >= ms(100));
            println!("echo over 100 ms took {took:?}");
        }
        assert!(connection.rtt() >= ms(100));

        b.kill();
        assert_eq!(b.task_count(), 0);
    });
}

#[test]
fn the_timer_thread_ends_with_its_network() {
    let wan = Wan::real_time(1);
    let place = wan.add_place("a");
    let host = wan.add_host(place, HostClock::EXACT);
    let socket = bind(&host);
    assert!(Wan::clone(&wan).host(host.ip()).is_some());
    drop((wan, host, socket));
}
