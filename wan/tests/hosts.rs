//! Hosts: clocks, ports, death and revival, in virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use common::{bind, drain, ms, receive, seen, send, send_to, us};
use quinn::udp::Transmit;
use tradewind_host::{Elapsed, Host};
use tradewind_wan::{HostClock, LinkSpec, Wan, WanHost, run_virtual};

fn one_place(wan: &Wan, clocks: [HostClock; 2]) -> [Arc<WanHost>; 2] {
    let place = wan.add_place("a");
    clocks.map(|clock| wan.add_host(place, clock))
}

#[test]
fn clocks_disagree_by_their_offset_and_drift_apart_as_configured() {
    run_virtual(1, |wan| async move {
        let clocks = [
            HostClock::new(-2_000_000, -50.0),
            HostClock::new(3_000_000, 100.0),
        ];
        let [slow, fast] = one_place(&wan, clocks).map(|host| seen(&host));
        assert_eq!(fast.now() - slow.now(), ms(5_000));
        wan.sleep(Duration::from_secs(100)).await;
        // 100 s at 150 ppm are 15 ms.
        assert_eq!(fast.now() - slow.now(), ms(5_015));
        let apart = fast.wall_clock().duration_since(slow.wall_clock()).unwrap();
        assert_eq!(apart, ms(5_015));
    });
}

#[test]
fn a_second_by_a_fast_clock_is_over_early_in_network_time() {
    run_virtual(1, |wan| async move {
        let [fast, slow] = one_place(
            &wan,
            [
                HostClock::new(77, 100_000.0),
                HostClock::new(-5, -200_000.0),
            ],
        )
        .map(|host| seen(&host));
        fast.sleep(ms(1_100)).await;
        assert_eq!(wan.network_time(), ms(1_000));
        slow.sleep(ms(800)).await;
        assert_eq!(wan.network_time(), ms(2_000));
        let started = fast.now();
        fast.sleep(us(1)).await;
        assert!(
            fast.now() - started >= us(1),
            "never early by the own clock"
        );
    });
}

#[test]
fn a_timer_that_runs_follows_when_its_clock_changes_speed() {
    run_virtual(1, |wan| async move {
        let [host, _] = one_place(&wan, [HostClock::EXACT; 2]);
        let outside = wan.clone();
        let changed = host.clone();
        seen(&host).spawn(async move {
            outside.sleep(ms(500)).await;
            changed.set_drift(250_000.0);
        });
        seen(&host).sleep(ms(1_000)).await;
        assert_eq!(wan.network_time(), ms(900));
    });
}

#[test]
fn stepping_the_wall_clock_leaves_timers_alone() {
    run_virtual(1, |wan| async move {
        let [host, _] = one_place(&wan, [HostClock::EXACT; 2]);
        let new_year = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        assert_eq!(host.wall_clock(), new_year);
        let started = seen(&host).now();
        host.step_wall_clock(-3_600_000_000);
        seen(&host).sleep(ms(10)).await;
        assert_eq!(
            host.wall_clock(),
            new_year - Duration::from_secs(3600) + ms(10)
        );
        assert_eq!(seen(&host).now() - started, ms(10));
        wan.set_wall_clock_start(SystemTime::UNIX_EPOCH);
        host.step_wall_clock(3_600_000_000);
        assert_eq!(host.wall_clock(), SystemTime::UNIX_EPOCH + ms(10));
    });
}

#[test]
fn a_timer_that_is_reset_fires_at_its_last_deadline_only() {
    run_virtual(1, |wan| async move {
        let [host, _] = one_place(&wan, [HostClock::new(123_456, 0.0); 2]);
        let host = seen(&host);
        let start = host.now();
        let mut timer = host.runtime().new_timer(start + ms(10));
        let mut polls = 0;
        for (deadline, expected) in [(50, 50), (60, 70), (300, 400)] {
            // Armed, then moved back and forth.
            timer.as_mut().reset(start + ms(deadline));
            let _ =
                std::future::poll_fn(|cx| std::task::Poll::Ready(timer.as_mut().poll(cx))).await;
            timer.as_mut().reset(start + ms(expected));
            std::future::poll_fn(|cx| {
                polls += 1;
                timer.as_mut().poll(cx)
            })
            .await;
            assert_eq!(wan.network_time(), ms(expected));
        }
        assert_eq!(polls, 6, "entries that have become stale wake nobody");
    });
}

#[test]
fn a_timeout_ends_what_takes_too_long() {
    run_virtual(1, |wan| async move {
        let [host, _] = one_place(&wan, [HostClock::EXACT; 2]);
        let host = seen(&host);
        assert_eq!(
            host.timeout(ms(5), std::future::pending::<()>()).await,
            Err(Elapsed)
        );
        assert_eq!(host.timeout(ms(5), host.sleep(ms(4))).await, Ok(()));
        assert_eq!(wan.network_time(), ms(9));
    });
}

#[test]
fn ports_are_given_out_refused_and_freed_as_an_operating_system_does() {
    run_virtual(1, |wan| async move {
        let [a, b] = one_place(&wan, [HostClock::EXACT; 2]);
        let bind = |address: &str| a.bind_udp(address.parse().unwrap());
        let first = bind("0.0.0.0:0").unwrap().local_addr().unwrap();
        let held = bind("0.0.0.0:0").unwrap();
        assert!(first.port() >= 49_152);
        assert_ne!(first, held.local_addr().unwrap());
        let _any = bind("0.0.0.0:443").unwrap();
        let own = SocketAddr::new(a.ip(), 443);
        assert_eq!(a.bind_udp(own).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(
            bind("0.0.0.0:443").unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
        // An unspecified IPv6 address is dual-stack.
        assert_eq!(bind("[::]:443").unwrap_err().kind(), ErrorKind::AddrInUse);
        let six = a.bind_udp(SocketAddr::new(a.ip6(), 443)).unwrap();
        assert_eq!(
            bind("127.0.0.1:0").unwrap_err().kind(),
            ErrorKind::AddrNotAvailable
        );
        let foreign = SocketAddr::new(b.ip(), 0);
        assert_eq!(
            a.bind_udp(foreign).unwrap_err().kind(),
            ErrorKind::AddrNotAvailable
        );
        drop(six);
        assert!(a.bind_udp(SocketAddr::new(a.ip6(), 443)).is_ok());
        assert!(
            b.bind_udp("0.0.0.0:443".parse().unwrap()).is_ok(),
            "other hosts do not care"
        );
    });
}

#[test]
fn a_dual_stack_socket_talks_to_ipv4_and_ipv6_peers() {
    run_virtual(1, |wan| async move {
        let [a, b] = one_place(&wan, [HostClock::EXACT; 2]);
        let dual = a.bind_udp("[::]:443".parse().unwrap()).unwrap();
        let four = bind(&b);
        let six = b.bind_udp(SocketAddr::new(b.ip6(), 0)).unwrap();
        for (peer, own) in [(&four, a.ip()), (&six, a.ip6())] {
            send_to(&**peer, SocketAddr::new(own, 443), b"ping");
            let (meta, _) = receive(&*dual).await;
            assert!(meta.addr.is_ipv6());
            assert_eq!(
                meta.addr.ip().to_canonical(),
                peer.local_addr().unwrap().ip()
            );
            assert_eq!(meta.dst_ip, Some(own));
            // As quinn answers: to that address, from where the question went.
            let answer = Transmit {
                destination: meta.addr,
                ecn: None,
                contents: b"pong",
                segment_size: None,
                src_ip: meta.dst_ip,
            };
            dual.try_send(&answer).unwrap();
            assert_eq!(receive(&**peer).await.0.addr, SocketAddr::new(own, 443));
        }
        let stolen = Transmit {
            destination: four.local_addr().unwrap(),
            ecn: None,
            contents: b"x",
            segment_size: None,
            src_ip: Some(b.ip()),
        };
        assert_eq!(
            dual.try_send(&stolen).unwrap_err().kind(),
            ErrorKind::AddrNotAvailable
        );
        let mixed = Transmit {
            destination: six.local_addr().unwrap(),
            src_ip: None,
            ..stolen
        };
        assert_eq!(
            four.try_send(&mixed).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    });
}

#[test]
fn a_killed_host_falls_silent_and_its_revival_starts_afresh() {
    run_virtual(1, |wan| async move {
        let [pa, pb] = ["a", "b"].map(|name| wan.add_place(name));
        wan.set_links(pa, pb, &LinkSpec::with_delay(ms(10)));
        let (a, b) = (
            wan.add_host(pa, HostClock::EXACT),
            wan.add_host(pb, HostClock::EXACT),
        );
        let (sa, sb) = (bind(&a), bind(&b));
        let address = sb.local_addr().unwrap();
        let ticks = Arc::new(AtomicU32::new(0));
        let (counting, ticking) = (ticks.clone(), seen(&b));
        seen(&b).spawn(async move {
            loop {
                ticking.sleep(ms(1)).await;
                counting.fetch_add(1, Relaxed);
            }
        });
        send(&*sa, &*sb, b"under way");
        wan.sleep(us(5_500)).await;
        assert_eq!((ticks.load(Relaxed), b.task_count()), (5, 1));
        b.kill();
        send(&*sb, &*sa, b"from the grave");
        assert_eq!(
            b.bind_udp(address).unwrap_err().kind(),
            ErrorKind::NetworkDown
        );
        seen(&b).spawn(async { panic!("nothing starts on a dead host") });
        wan.sleep(ms(20)).await;
        assert_eq!(
            (ticks.load(Relaxed), b.task_count(), b.is_alive()),
            (5, 0, false)
        );
        assert_eq!(wan.link_stats(pa, pb).dead_host, 1);
        assert_eq!(wan.link_stats(pb, pa).dead_host, 1);
        assert_eq!(drain(&*sb).await, Vec::<Vec<u8>>::new());

        b.revive();
        let reborn = b.bind_udp(address).unwrap();
        drop(sb);
        send(&*sa, &*reborn, b"hello again");
        wan.sleep(ms(11)).await;
        assert_eq!(
            drain(&*reborn).await,
            [b"hello again"],
            "an old socket's end frees nothing"
        );
    });
}

#[test]
fn a_stalled_host_gets_everything_at_once_when_it_goes_on() {
    run_virtual(1, |wan| async move {
        let [pa, pb] = ["a", "b"].map(|name| wan.add_place(name));
        wan.set_links(pa, pb, &LinkSpec::with_delay(ms(10)));
        let (a, b) = (
            wan.add_host(pa, HostClock::EXACT),
            wan.add_host(pb, HostClock::EXACT),
        );
        let (sa, sb) = (bind(&a), bind(&b));
        let started = seen(&b).now();
        let ticks = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (noting, ticking) = (ticks.clone(), seen(&b));
        seen(&b).spawn(async move {
            loop {
                ticking.sleep(ms(100)).await;
                noting.lock().unwrap().push(ticking.now() - started);
            }
        });
        send(&*sa, &*sb, b"before");
        wan.sleep(ms(50)).await;
        b.stall(ms(200));
        b.stall(ms(20));
        send(&*sa, &*sb, b"first");
        wan.sleep(ms(100)).await;
        send(&*sa, &*sb, b"second");
        wan.sleep(ms(99)).await;
        assert_eq!(drain(&*sb).await, [b"before"]);
        assert_eq!(*ticks.lock().unwrap(), Vec::<Duration>::new());
        wan.sleep(ms(2)).await;
        assert_eq!(drain(&*sb).await, [&b"first"[..], b"second"]);
        assert_eq!(*ticks.lock().unwrap(), [ms(250)], "clocks go on meanwhile");
        wan.sleep(ms(100)).await;
        assert_eq!(*ticks.lock().unwrap(), [ms(250), ms(350)]);
    });
}

#[test]
fn a_host_that_sleeps_hears_nothing_and_its_monotonic_clock_stands_still() {
    run_virtual(1, |wan| async move {
        let [pa, pb] = ["a", "b"].map(|name| wan.add_place(name));
        wan.set_links(pa, pb, &LinkSpec::with_delay(ms(10)));
        let (a, b) = (
            wan.add_host(pa, HostClock::EXACT),
            wan.add_host(pb, HostClock::EXACT),
        );
        let (sa, sb) = (bind(&a), bind(&b));
        let (started, wall) = (seen(&b).now(), seen(&b).wall_clock());
        let ticks = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (noting, ticking, outside) = (ticks.clone(), seen(&b), wan.clone());
        seen(&b).spawn(async move {
            loop {
                ticking.sleep(ms(100)).await;
                noting
                    .lock()
                    .unwrap()
                    .push((ticking.now() - started, outside.network_time()));
            }
        });
        wan.sleep(ms(50)).await;
        b.sleep_for(ms(1_000));
        b.sleep_for(ms(20));
        send(&*sb, &*sa, b"in its dreams");
        send(&*sa, &*sb, b"unheard");
        wan.sleep(ms(985)).await;
        send(&*sa, &*sb, b"just unheard");
        wan.sleep(ms(10)).await;
        send(&*sa, &*sb, b"heard");
        wan.sleep(ms(105)).await;
        assert_eq!(drain(&*sb).await, [b"heard"]);
        assert_eq!(drain(&*sa).await, Vec::<Vec<u8>>::new());
        assert_eq!(wan.link_stats(pa, pb).dead_host, 2);
        assert_eq!(wan.link_stats(pb, pa).dead_host, 1);
        assert_eq!(*ticks.lock().unwrap(), [(ms(100), ms(1_100))]);
        let awake = seen(&b);
        assert_eq!(awake.now() - started, ms(150));
        assert_eq!(
            awake.wall_clock().duration_since(wall).unwrap(),
            wan.network_time()
        );
    });
}

#[test]
fn a_host_that_moves_goes_on_under_new_addresses_by_the_links_of_its_new_place() {
    run_virtual(1, |wan| async move {
        let [pa, pb, pc] = ["a", "b", "c"].map(|name| wan.add_place(name));
        wan.set_links(pa, pb, &LinkSpec::with_delay(ms(10)));
        wan.set_links(pc, pb, &LinkSpec::with_delay(ms(25)));
        let (a, b) = (
            wan.add_host(pa, HostClock::EXACT),
            wan.add_host(pb, HostClock::EXACT),
        );
        let anywhere = a.bind_udp("0.0.0.0:700".parse().unwrap()).unwrap();
        let (bound, sb) = (bind(&a), bind(&b));
        let before = SocketAddr::new(a.ip(), 700);
        send_to(&*sb, before, b"under way to the old address");
        wan.sleep(ms(5)).await;
        wan.move_host(&a, pc);
        let after = SocketAddr::new(a.ip(), 700);
        assert!(after != before && a.place() == pc && wan.host(before.ip()).is_none());
        send_to(&*sb, before, b"to nobody");
        wan.sleep(ms(10)).await;
        assert_eq!(wan.link_stats(pb, pa).no_socket, 1);
        assert_eq!(wan.unknown_address(), 1);

        let sent = wan.network_time();
        send_to(&*anywhere, sb.local_addr().unwrap(), b"here I am");
        let (meta, datagrams) = receive(&*sb).await;
        assert_eq!((meta.addr, wan.network_time() - sent), (after, ms(25)));
        assert_eq!(datagrams, [b"here I am"]);
        send_to(&*sb, after, b"welcome");
        assert_eq!(receive(&*anywhere).await.1, [b"welcome"]);
        let transmit = Transmit {
            destination: sb.local_addr().unwrap(),
            ecn: None,
            contents: b"from an address that is gone",
            segment_size: None,
            src_ip: None,
        };
        let error = bound.try_send(&transmit).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
        // Nobody gets the old address again.
        let other = wan.add_host(pa, HostClock::EXACT);
        assert!(other.ip() != before.ip() && other.ip() != after.ip());
    });
}

#[test]
fn a_nat_lets_in_only_who_was_sent_to_not_long_ago() {
    run_virtual(12, |wan| async move {
        let [inside, outside] = one_place(&wan, [HostClock::EXACT; 2]);
        let (a, b, other) = (bind(&inside), bind(&outside), bind(&outside));
        inside.set_binding_lifetime(Some(ms(1_000)));
        send(&*b, &*a, b"unasked");
        wan.sleep(ms(10)).await;
        send(&*a, &*b, b"hello");
        assert_eq!(receive(&*b).await.1, [b"hello"]);
        wan.sleep(ms(900)).await;
        send(&*b, &*a, b"in time");
        send(&*other, &*a, b"from another port");
        assert_eq!(receive(&*a).await.1, [b"in time"]);
        // What comes in does not keep it open.
        wan.sleep(ms(200)).await;
        send(&*b, &*a, b"too late");
        wan.sleep(ms(10)).await;
        inside.set_binding_lifetime(None);
        send(&*b, &*a, b"open");
        assert_eq!(receive(&*a).await.1, [b"open"]);
        assert_eq!(wan.total_stats().no_socket, 3);
    });
}

#[test]
fn a_host_draws_the_same_seeds_in_every_run_and_no_two_are_equal() {
    let seeds = |seed| {
        run_virtual(seed, |wan| async move {
            let [a, b] = one_place(&wan, [HostClock::EXACT; 2]);
            [a.seed(), a.seed(), b.seed()]
        })
    };
    let first = seeds(1);
    assert_eq!(first, seeds(1));
    assert!(first[0] != first[1] && first[0] != first[2] && first[1] != first[2]);
    assert_ne!(first[0], seeds(2)[0]);
}

#[test]
#[should_panic(expected = "virtual time stands still")]
fn a_world_in_which_nothing_can_ever_happen_is_reported_not_awaited() {
    run_virtual(1, |_| std::future::pending::<()>());
}
