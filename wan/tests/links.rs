//! What links do to packets, exactly, in virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::{bind, drain, ms, receive, send, send_to, us};
use quinn::udp::{EcnCodepoint, Transmit};
use tradewind_host::Host;
use tradewind_wan::{
    Bandwidth, BurstLoss, HostClock, Jitter, LinkSpec, Overtaking, PlaceId, Wan, WanHost,
    run_virtual,
};

/// Two places joined both ways by `spec`, with one host each.
fn pair(wan: &Wan, spec: LinkSpec) -> ([PlaceId; 2], [Arc<WanHost>; 2]) {
    let places = [wan.add_place("a"), wan.add_place("b")];
    wan.set_links(places[0], places[1], &spec);
    (
        places,
        places.map(|place| wan.add_host(place, HostClock::EXACT)),
    )
}

#[test]
fn every_packet_arrives_exactly_when_the_matrix_says_whatever_the_clocks_say() {
    // Half of a cell in row A, column B; asymmetric, with sub-millisecond parts.
    let round_trips_us = [[0, 498_126, 20_002], [301_000, 0, 7], [2, 99_999, 0]];
    run_virtual(1, |wan| async move {
        let names = ["a", "b", "c"].map(str::to_owned);
        let places = wan.add_matrix(&names, |i, j| Some(us(round_trips_us[i][j]) / 2));
        let hosts: Vec<_> = (0..3)
            .map(|i| {
                wan.add_host(
                    places[i],
                    HostClock::new(i as i64 * 777_777 - 1_000_000, 83.0),
                )
            })
            .collect();
        let sockets: Vec<_> = hosts.iter().map(|host| bind(host)).collect();
        for round in 0..20 {
            for i in 0..3 {
                for j in (0..3).filter(|&j| j != i) {
                    let sent = wan.network_time();
                    send(&*sockets[i], &*sockets[j], &[round]);
                    let (meta, datagrams) = receive(&*sockets[j]).await;
                    assert_eq!(datagrams, [[round]]);
                    assert_eq!(meta.addr, sockets[i].local_addr().unwrap());
                    let exact_ns = round_trips_us[i][j] * 500;
                    let took = wan.network_time() - sent;
                    assert_eq!(took, us(u64::div_ceil(exact_ns, 1000)), "{i} to {j}");
                    wan.sleep(us(1_237)).await;
                }
            }
        }
    });
}

#[test]
fn hosts_at_one_place_are_0_ms_apart_but_for_their_access_delays() {
    run_virtual(1, |wan| async move {
        let place = wan.add_place("a");
        let [a, b] = [(); 2].map(|()| wan.add_host(place, HostClock::EXACT));
        let (from, to) = (bind(&a), bind(&b));
        send(&*from, &*to, b"x");
        receive(&*to).await;
        assert_eq!(wan.network_time(), Duration::ZERO);
        a.set_access_delay(us(1_500));
        b.set_access_delay(us(300));
        send(&*from, &*to, b"x");
        receive(&*to).await;
        assert_eq!(wan.network_time(), us(1_800));
    });
}

#[test]
fn an_unknown_cell_is_no_link_and_every_vanished_packet_has_its_reason() {
    run_virtual(1, |wan| async move {
        let names = ["a", "b"].map(str::to_owned);
        let places = wan.add_matrix(&names, |i, _| (i == 0).then_some(ms(10)));
        let [a, b] = [0, 1].map(|i| wan.add_host(places[i], HostClock::EXACT));
        let (sa, sb) = (bind(&a), bind(&b));
        send(&*sb, &*sa, b"into the unknown");
        send_to(&*sa, SocketAddr::new(b.ip(), 9), b"nobody listens");
        send_to(&*sa, "10.99.0.1:9".parse().unwrap(), b"nobody lives there");
        send(&*sa, &*sb, &[0; 1472]);
        send(&*sa, &*sb, &[0; 1473]);
        wan.sleep(ms(20)).await;
        assert_eq!(wan.unknown_address(), 1);
        let back = wan.link_stats(places[1], places[0]);
        assert_eq!((back.sent, back.no_link, back.vanished()), (1, 1, 1));
        let forth = wan.link_stats(places[0], places[1]);
        assert_eq!((forth.sent, forth.delivered, forth.vanished()), (3, 1, 2));
        assert_eq!(
            (forth.no_socket, forth.too_large, forth.delivered_bytes),
            (1, 1, 1472)
        );
        assert_eq!(forth.in_flight(), 0);
    });
}

#[test]
fn an_ipv6_packet_of_the_mtu_passes_and_one_byte_more_does_not() {
    run_virtual(1, |wan| async move {
        let spec = LinkSpec {
            mtu: 1280,
            ..LinkSpec::with_delay(ms(1))
        };
        let (places, [a, b]) = pair(&wan, spec);
        let [sa, sb] = [&a, &b].map(|host| host.bind_udp(SocketAddr::new(host.ip6(), 0)).unwrap());
        send(&*sa, &*sb, &[0; 1232]);
        send(&*sa, &*sb, &[0; 1233]);
        wan.sleep(ms(2)).await;
        let stats = wan.link_stats(places[0], places[1]);
        assert_eq!((stats.delivered, stats.too_large), (1, 1));
    });
}

#[test]
fn random_loss_takes_its_share_from_one_direction_only() {
    run_virtual(3, |wan| async move {
        let (places, [a, b]) = pair(&wan, LinkSpec::with_delay(ms(1)));
        let lossy = LinkSpec {
            loss: 0.1,
            ..LinkSpec::with_delay(ms(1))
        };
        wan.set_link(places[0], places[1], lossy);
        let (sa, sb) = (bind(&a), bind(&b));
        for _ in 0..5_000 {
            send(&*sa, &*sb, b"x");
            send(&*sb, &*sa, b"x");
        }
        wan.sleep(ms(2)).await;
        let forth = wan.link_stats(places[0], places[1]);
        assert!((400..600).contains(&forth.lost_random), "{forth:?}");
        assert_eq!(forth.delivered + forth.lost_random, 5_000);
        assert_eq!(wan.link_stats(places[1], places[0]).delivered, 5_000);
        assert_eq!(drain(&*sb).await.len() as u64, forth.delivered);
    });
}

#[test]
fn burst_loss_comes_in_runs_of_the_configured_length() {
    run_virtual(3, |wan| async move {
        let burst = BurstLoss {
            enter: 0.01,
            leave: 0.1,
            loss: 1.0,
        };
        let spec = LinkSpec {
            burst: Some(burst),
            ..LinkSpec::default()
        };
        let (places, [a, b]) = pair(&wan, spec);
        let (sa, sb) = (bind(&a), bind(&b));
        let mut arrived = Vec::new();
        for number in 0..20_000_u32 {
            send(&*sa, &*sb, &number.to_be_bytes());
            if number % 1000 == 999 {
                wan.sleep(us(1)).await;
                let got = drain(&*sb).await;
                arrived.extend(
                    got.iter()
                        .map(|b| u32::from_be_bytes(b[..].try_into().unwrap())),
                );
            }
        }
        let lost = wan.link_stats(places[0], places[1]).lost_burst;
        assert_eq!(arrived.len() as u64 + lost, 20_000);
        // In the long run enter / (enter + leave) = 9.1 % is lost, 10 at a time.
        assert!((1_200..2_600).contains(&lost), "{lost}");
        let runs = arrived
            .windows(2)
            .filter(|pair| pair[1] != pair[0] + 1)
            .count() as u64;
        assert!(
            (7..14).contains(&(lost / runs)),
            "{lost} lost in {runs} runs"
        );
    });
}

#[test]
fn bandwidth_spaces_packets_and_its_queue_drops_the_tail() {
    run_virtual(1, |wan| async move {
        // 1,000 bytes with headers take 1 ms each; 5 fit, the one being sent included.
        let bandwidth = Bandwidth {
            bytes_per_second: 1_000_000,
            queue_bytes: 5_000,
        };
        let spec = LinkSpec {
            bandwidth: Some(bandwidth),
            ..LinkSpec::with_delay(ms(50))
        };
        let (places, [a, b]) = pair(&wan, spec);
        let (sa, sb) = (bind(&a), bind(&b));
        for number in 0..8 {
            send(&*sa, &*sb, &[number; 972]);
        }
        for number in 0..5 {
            let (_, datagrams) = receive(&*sb).await;
            assert_eq!(datagrams, [[number; 972]]);
            assert_eq!(wan.network_time(), ms(51 + u64::from(number)));
        }
        let stats = wan.link_stats(places[0], places[1]);
        assert_eq!((stats.sent, stats.delivered, stats.queue_full), (8, 5, 3));
        // The queue is empty again.
        let sent = wan.network_time();
        send(&*sa, &*sb, &[9; 972]);
        receive(&*sb).await;
        assert_eq!(wan.network_time() - sent, ms(51));
    });
}

#[test]
fn jitter_never_reorders_unless_asked_to() {
    for (keep_order, jitter) in [
        (true, Jitter::Uniform { max: ms(10) }),
        (
            true,
            Jitter::Normal {
                mean: ms(5),
                deviation: ms(2),
            },
        ),
        (false, Jitter::Uniform { max: ms(10) }),
    ] {
        run_virtual(5, |wan| async move {
            let spec = LinkSpec {
                jitter,
                keep_order,
                ..LinkSpec::with_delay(ms(20))
            };
            let (_, [a, b]) = pair(&wan, spec);
            let (sa, sb) = (bind(&a), bind(&b));
            let sender = sb.local_addr().unwrap();
            let outside = wan.clone();
            let sending = sa.clone();
            common::seen(&a).spawn(async move {
                for number in 0..500_u32 {
                    send_to(&*sending, sender, &number.to_be_bytes());
                    outside.sleep(us(500)).await;
                }
            });
            let (mut order, mut delays) = (Vec::new(), Vec::new());
            while order.len() < 500 {
                for datagram in receive(&*sb).await.1 {
                    let number = u32::from_be_bytes(datagram.try_into().unwrap());
                    delays.push(wan.network_time() - us(500) * number);
                    order.push(number);
                }
            }
            assert_eq!(order.is_sorted(), keep_order, "{jitter:?}");
            assert!(delays.iter().all(|delay| (ms(20)..ms(34)).contains(delay)));
            assert!(delays.iter().any(|delay| *delay > ms(25)));
            assert!(delays.iter().max() > delays.iter().min());
        });
    }
}

#[test]
fn a_share_of_the_packets_arrives_twice_and_every_copy_is_counted() {
    run_virtual(4, |wan| async move {
        let spec = LinkSpec {
            duplicate: 0.1,
            ..LinkSpec::with_delay(ms(1))
        };
        let (places, [a, b]) = pair(&wan, spec);
        let (sa, sb) = (bind(&a), bind(&b));
        for number in 0..5_000_u32 {
            send(&*sa, &*sb, &number.to_be_bytes());
        }
        assert!(wan.link_stats(places[0], places[1]).in_flight() > 5_000);
        wan.sleep(ms(2)).await;
        let mut times = vec![0_u64; 5_000];
        for datagram in drain(&*sb).await {
            times[u32::from_be_bytes(datagram.try_into().unwrap()) as usize] += 1;
        }
        assert!(times.iter().all(|times| (1..=2).contains(times)));
        let twice = times.iter().filter(|times| **times == 2).count() as u64;
        assert!((400..600).contains(&twice), "{twice}");
        let stats = wan.link_stats(places[0], places[1]);
        assert_eq!((stats.sent, stats.duplicated), (5_000, twice));
        assert_eq!((stats.delivered, stats.in_flight()), (5_000 + twice, 0));
        assert_eq!(wan.total_stats().duplicated, twice);
    });
}

#[test]
fn packets_that_are_held_back_are_overtaken_and_the_others_stay_in_order() {
    run_virtual(4, |wan| async move {
        let overtaking = Overtaking {
            share: 0.2,
            by: ms(30),
        };
        let spec = LinkSpec {
            overtaking: Some(overtaking),
            ..LinkSpec::with_delay(ms(10))
        };
        let (places, [a, b]) = pair(&wan, spec);
        let (sa, sb) = (bind(&a), bind(&b));
        let to = sb.local_addr().unwrap();
        let (outside, sending) = (wan.clone(), sa.clone());
        common::seen(&a).spawn(async move {
            for number in 0..1_000_u32 {
                send_to(&*sending, to, &number.to_be_bytes());
                outside.sleep(ms(1)).await;
            }
        });
        let (mut in_time, mut late) = (Vec::new(), Vec::new());
        while in_time.len() + late.len() < 1_000 {
            for datagram in receive(&*sb).await.1 {
                let number = u32::from_be_bytes(datagram.try_into().unwrap());
                let delay = wan.network_time() - ms(1) * number;
                assert!((ms(10)..=ms(40)).contains(&delay), "{delay:?}");
                if delay == ms(10) {
                    in_time.push(number);
                } else {
                    late.push((number, in_time.last().copied()));
                }
            }
        }
        assert!(in_time.is_sorted());
        let stats = wan.link_stats(places[0], places[1]);
        assert_eq!(stats.held_back, late.len() as u64);
        assert!((140..260).contains(&late.len()), "{}", late.len());
        let overtaken = late.iter().filter(|(number, last)| *last > Some(*number));
        assert!(overtaken.count() > late.len() / 2);
    });
}

#[test]
fn a_cut_loses_what_is_sent_during_it_and_heals() {
    run_virtual(1, |wan| async move {
        let (places, [a, b]) = pair(&wan, LinkSpec::with_delay(ms(30)));
        let (sa, sb) = (bind(&a), bind(&b));
        send(&*sa, &*sb, b"before");
        wan.sleep(ms(10)).await;
        wan.cut(places[0], places[1]);
        send(&*sa, &*sb, b"during");
        send(&*sb, &*sa, b"other way");
        wan.sleep(ms(10)).await;
        wan.heal(places[0], places[1]);
        send(&*sa, &*sb, b"after");
        wan.sleep(ms(40)).await;
        assert_eq!(drain(&*sb).await, [&b"before"[..], b"after"]);
        assert_eq!(drain(&*sa).await, [b"other way"]);
        assert_eq!(wan.link_stats(places[0], places[1]).cut, 1);
        assert_eq!(wan.total_stats().cut, 1);
    });
}

#[test]
fn a_link_can_change_its_delay_while_running() {
    run_virtual(1, |wan| async move {
        let (places, [a, b]) = pair(&wan, LinkSpec::with_delay(ms(30)));
        let (sa, sb) = (bind(&a), bind(&b));
        send(&*sa, &*sb, b"slow");
        wan.set_link(places[0], places[1], LinkSpec::with_delay(ms(80)));
        send(&*sa, &*sb, b"slower");
        receive(&*sb).await;
        assert_eq!(wan.network_time(), ms(30));
        receive(&*sb).await;
        assert_eq!(wan.network_time(), ms(80));
        assert_eq!(wan.link(places[0], places[1]).unwrap().delay, ms(80));
        wan.remove_link(places[0], places[1]);
        send(&*sa, &*sb, b"never");
        assert_eq!(wan.link_stats(places[0], places[1]).no_link, 1);
    });
}

#[test]
fn segments_travel_each_for_itself_and_arrive_together_with_addresses_and_ecn() {
    run_virtual(2, |wan| async move {
        let spec = LinkSpec {
            loss: 0.3,
            ..LinkSpec::with_delay(ms(5))
        };
        let (places, [a, b]) = pair(&wan, spec);
        let (sa, sb) = (
            a.bind_udp("0.0.0.0:700".parse().unwrap()).unwrap(),
            b.bind_udp("0.0.0.0:800".parse().unwrap()).unwrap(),
        );
        let contents: Vec<u8> = (0..10).flat_map(|n| [n; 100]).chain([10; 7]).collect();
        let transmit = Transmit {
            destination: SocketAddr::new(b.ip(), 800),
            ecn: Some(EcnCodepoint::Ect0),
            contents: &contents,
            segment_size: Some(100),
            src_ip: None,
        };
        sa.try_send(&transmit).unwrap();
        let (meta, datagrams) = receive(&*sb).await;
        let stats = wan.link_stats(places[0], places[1]);
        assert_eq!(stats.sent, 11);
        assert!(stats.lost_random > 0 && stats.delivered > 1, "{stats:?}");
        assert_eq!(datagrams.len() as u64, stats.delivered);
        assert!(datagrams.iter().all(|d| d.len() == 100 || *d == [10; 7]));
        assert!(datagrams.is_sorted());
        assert_eq!(meta.addr, SocketAddr::new(a.ip(), 700));
        assert_eq!(meta.dst_ip, Some(b.ip()));
        assert_eq!(meta.ecn, Some(EcnCodepoint::Ect0));
    });
}

#[test]
fn an_inbox_nobody_reads_fills_up_and_the_rest_is_counted() {
    run_virtual(1, |wan| async move {
        let (places, [a, b]) = pair(&wan, LinkSpec::default());
        let (sa, sb) = (bind(&a), bind(&b));
        for _ in 0..5_000 {
            send(&*sa, &*sb, &[0; 1200]);
        }
        wan.sleep(us(1)).await;
        let stats = wan.link_stats(places[0], places[1]);
        assert!(stats.inbox_full > 0 && stats.delivered > 2_000, "{stats:?}");
        assert_eq!(stats.inbox_full + stats.delivered, 5_000);
        assert_eq!(drain(&*sb).await.len() as u64, stats.delivered);
        send(&*sa, &*sb, b"room again");
        assert_eq!(receive(&*sb).await.1, [b"room again"]);
    });
}
