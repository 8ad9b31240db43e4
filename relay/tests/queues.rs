//! Who goes first, who gets what, and who is told, when there is not room for all; in virtual time.
#![allow(clippy::unwrap_used)] // a test's helpers

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use support::{TestClient, World, header};
use tradewind_proto::{
    Class,
    control::{edge_message, rejected},
    packet::{AccessHeader, Kind},
};
use tradewind_relay::AppRates;
use tradewind_wan::{Bandwidth, HostClock, LinkSpec, Wan, run_virtual};

/// r0 and r1, 10 ms apart.
const PAIR: &[&[u64]] = &[&[0, 10], &[10, 0]];
const STRAIGHT: &[&[u32]] = &[&[0, 1], &[0, 1]];
/// What the link between them carries, bytes per second.
const LINK: u64 = 2_000_000;
/// By then the link knows what the path carries.
const SETTLED: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(10);

/// Something that has come: of which class, how many bytes of payload, and how long it took.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    class: Class,
    sequence: u32,
    bytes: usize,
    sent: Duration,
    took: Duration,
}

/// What a client has received.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<Vec<Arrival>>>);

impl Arrivals {
    /// Everything that comes to a client from now on.
    fn at(client: &TestClient, wan: &Wan) -> Self {
        let arrivals = Self::default();
        let (connection, wan) = (client.connection.clone(), wan.clone());
        let (all, datagrams) = (arrivals.clone(), (connection.clone(), wan.clone()));
        client.host.spawn(async move {
            let (connection, wan) = datagrams;
            while let Ok(datagram) = connection.read_datagram().await {
                let header = AccessHeader::decode(&datagram).unwrap();
                all.note(&wan, header, &datagram[AccessHeader::LEN..]);
            }
        });
        let (all, host) = (arrivals.clone(), client.host.clone());
        client.host.spawn(async move {
            while let Ok(mut stream) = connection.accept_uni().await {
                let (all, wan) = (all.clone(), wan.clone());
                host.spawn(async move {
                    let mut length = [0; 4];
                    while stream.read_exact(&mut length).await.is_ok() {
                        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
                        stream.read_exact(&mut frame).await.unwrap();
                        let header = AccessHeader::decode(&frame).unwrap();
                        all.note(&wan, header, &frame[AccessHeader::LEN..]);
                    }
                });
            }
        });
        arrivals
    }

    fn note(&self, wan: &Wan, header: AccessHeader, payload: &[u8]) {
        let sent = u64::from_be_bytes(payload[..8].try_into().unwrap());
        let sent = Duration::from_micros(sent);
        self.0.lock().unwrap().push(Arrival {
            class: header.class,
            sequence: header.sequence,
            bytes: payload.len(),
            sent,
            took: wan.network_time() - sent,
        });
    }

    fn of(&self, class: Class) -> Vec<Arrival> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|a| a.class == class).copied().collect()
    }

    fn bytes(&self, class: Class) -> u64 {
        self.of(class).iter().map(|a| a.bytes as u64).sum()
    }

    /// Of what was sent when the link had found out what the path carries.
    fn p99(&self, class: Class) -> Duration {
        let mut all = self.of(class);
        let begun = all.iter().map(|a| a.sent).min().unwrap();
        all.retain(|a| a.sent - begun > SETTLED);
        p99(&all)
    }
}

/// The time that all but a hundredth took no longer than.
fn p99(arrivals: &[Arrival]) -> Duration {
    let mut took: Vec<Duration> = arrivals.iter().map(|a| a.took).collect();
    took.sort();
    took[took.len() * 99 / 100]
}

fn stamped(wan: &Wan, bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; bytes];
    payload[..8].copy_from_slice(&(wan.network_time().as_micros() as u64).to_be_bytes());
    payload
}

/// Two relays with a thin link between them.
async fn thin_pair(wan: &Wan) -> World {
    let world = World::with_settings(wan.clone(), PAIR, |settings, _| {
        settings.link_capacity = LINK;
    })
    .await;
    world.plan(1, STRAIGHT, &[]).await;
    let spec = LinkSpec {
        bandwidth: Some(Bandwidth {
            bytes_per_second: LINK,
            queue_bytes: 200_000,
        }),
        ..LinkSpec::with_delay(Duration::from_millis(10))
    };
    wan.set_links(world.places[0], world.places[1], &spec);
    world
}

async fn client_of(world: &World, relay: usize, app: &str, user: &str) -> TestClient {
    let token = world.token(user, |claims| claims.app = app.to_owned());
    world.client_with(relay, &token).await.unwrap()
}

#[test]
fn tenants_share_a_full_link_evenly_whatever_each_of_them_sends() {
    run_virtual(1, |wan| async move {
        let world = thin_pair(&wan).await;
        let mut loud = client_of(&world, 0, "chat", "alice").await;
        let mut quiet = client_of(&world, 0, "bank", "bea").await;
        let loud_to = client_of(&world, 1, "chat", "bob").await;
        let quiet_to = client_of(&world, 1, "bank", "ben").await;
        wan.sleep(Duration::from_millis(500)).await;
        let (to_bob, to_ben) = (loud.handle("bob").await, quiet.handle("ben").await);
        let got = [Arrivals::at(&loud_to, &wan), Arrivals::at(&quiet_to, &wan)];
        // Twice what the link carries, and a third of it.
        let mut sent = 0;
        for tick in 0..600 {
            for n in 0..40 {
                let packet = header(Kind::Media, Class::Video, to_bob, 40 * tick + n);
                loud.send(packet, &stamped(&wan, 1_000));
            }
            for n in 0..7 {
                let packet = header(Kind::Media, Class::Video, to_ben, 7 * tick + n);
                quiet.send(packet, &stamped(&wan, 1_000));
                sent += 1_000;
            }
            wan.sleep(TICK).await;
        }
        wan.sleep(Duration::from_secs(3)).await;
        let [loud, quiet] = got.map(|got| (got.bytes(Class::Video), got.p99(Class::Video)));
        // (In the beginning a few packets are lost on the path.)
        assert!(quiet.0 > sent * 99 / 100, "{} of {sent}", quiet.0);
        assert!(quiet.1 < Duration::from_millis(60), "{:?}", quiet.1);
        assert!(loud.0 > sent, "{} of what was left", loud.0);
        let dropped = |reason| world.metric(0, "tradewind_relay_dropped_packets_total", reason);
        assert!(dropped("queue_full") + dropped("deadline") > 1_000.0);
    });
}

#[test]
fn messages_of_tenants_share_a_full_link_evenly() {
    run_virtual(2, |wan| async move {
        let world = thin_pair(&wan).await;
        let mut loud = client_of(&world, 0, "chat", "alice").await;
        let mut quiet = client_of(&world, 0, "bank", "bea").await;
        let loud_to = client_of(&world, 1, "chat", "bob").await;
        let quiet_to = client_of(&world, 1, "bank", "ben").await;
        wan.sleep(Duration::from_millis(500)).await;
        let (to_bob, to_ben) = (loud.handle("bob").await, quiet.handle("ben").await);
        let got = [Arrivals::at(&loud_to, &wan), Arrivals::at(&quiet_to, &wan)];
        for tick in 0..600 {
            // 4.8 MB/s in segments, and 20 kB/s of texts.
            for n in 0..3 {
                let packet = header(Kind::Message, Class::Message, to_bob, 3 * tick + n);
                loud.send_message(packet, &stamped(&wan, 16_000)).await;
            }
            let packet = header(Kind::Message, Class::Message, to_ben, tick);
            quiet.send_message(packet, &stamped(&wan, 200)).await;
            wan.sleep(TICK).await;
        }
        wan.sleep(Duration::from_secs(1)).await;
        let texts = got[1].of(Class::Message);
        let order: Vec<u32> = texts.iter().map(|a| a.sequence).collect();
        assert_eq!(order, (0..600).collect::<Vec<_>>());
        let slow = got[1].p99(Class::Message);
        // The way there, a segment before it, and what is in QUIC and in the path's own queue.
        assert!(slow < Duration::from_millis(100), "{slow:?}");
        assert!(got[0].bytes(Class::Message) > 8_000_000);
    });
}

#[test]
fn on_a_full_link_audio_goes_first_texts_pass_pictures_and_nobody_starves() {
    run_virtual(3, |wan| async move {
        let world = thin_pair(&wan).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(1, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let to_bob = alice.handle("bob").await;
        let got = Arrivals::at(&bob, &wan);
        for tick in 0..600 {
            // Audio 16 kB/s, texts 20 kB/s, video 2.4 MB/s, pictures 1.6 MB/s: of 2.
            let packet = header(Kind::Media, Class::Audio, to_bob, tick);
            alice.send(packet, &stamped(&wan, 160));
            for n in 0..24 {
                let packet = header(Kind::Media, Class::Video, to_bob, 24 * tick + n);
                alice.send(packet, &stamped(&wan, 1_000));
            }
            let packet = header(Kind::Message, Class::Bulk, to_bob, tick);
            alice.send_message(packet, &stamped(&wan, 16_000)).await;
            let packet = header(Kind::Message, Class::Message, to_bob, tick);
            alice.send_message(packet, &stamped(&wan, 200)).await;
            wan.sleep(TICK).await;
        }
        wan.sleep(Duration::from_secs(3)).await;
        for class in [Class::Audio, Class::Message] {
            let (count, slow) = (got.of(class).len(), got.p99(class));
            assert!(count > 594, "{class}: {count}");
            assert!(slow < Duration::from_millis(60), "{class}: {slow:?}");
        }
        let order: Vec<u32> = got.of(Class::Message).iter().map(|a| a.sequence).collect();
        assert!(order.is_sorted());
        // Of 12 MB in six seconds: video has most of what is left, pictures a sixteenth of all.
        let [video, bulk] = [Class::Video, Class::Bulk].map(|class| got.bytes(class));
        assert!(video > 9_000_000, "{video}");
        // (And some from what waits when the video has ended.)
        assert!((400_000..8_000_000).contains(&bulk), "{bulk}");
    });
}

#[test]
fn texts_do_not_starve_where_audio_alone_is_more_than_the_link_carries() {
    run_virtual(4, |wan| async move {
        let world = thin_pair(&wan).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(1, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let to_bob = alice.handle("bob").await;
        let got = Arrivals::at(&bob, &wan);
        for tick in 0..600 {
            for n in 0..28 {
                let packet = header(Kind::Media, Class::Audio, to_bob, 28 * tick + n);
                alice.send(packet, &stamped(&wan, 1_000));
            }
            let packet = header(Kind::Message, Class::Message, to_bob, tick);
            alice.send_message(packet, &stamped(&wan, 100)).await;
            wan.sleep(TICK).await;
        }
        wan.sleep(Duration::from_secs(2)).await;
        // A sixteenth of the link is more than the texts need.
        assert_eq!(got.of(Class::Message).len(), 600);
        let slow = got.p99(Class::Message);
        assert!(slow < Duration::from_millis(150), "{slow:?}");
        assert!(got.bytes(Class::Audio) > 9_000_000);
    });
}

/// What others receive while one of a sender's receivers has a line of `line` bytes per second, and the
/// counted drops.
fn beside_a_line_of(line: u64) -> (Vec<Vec<Arrival>>, f64, u32) {
    const OTHERS: usize = 30;
    run_virtual(5, |wan| async move {
        let world = World::new(wan.clone(), PAIR).await;
        world.plan(1, STRAIGHT, &[]).await;
        let mut alice = world.client(0, "alice").await;
        let home = wan.add_place("home");
        wan.set_links(
            home,
            world.places[1],
            &LinkSpec {
                bandwidth: Some(Bandwidth {
                    bytes_per_second: line,
                    queue_bytes: 30_000,
                }),
                ..LinkSpec::with_delay(Duration::from_millis(5))
            },
        );
        let token = world.token("slow", |_| ());
        let slow = world
            .client_on(wan.add_host(home, HostClock::EXACT), 1, &token)
            .await
            .unwrap();
        let _received = Arrivals::at(&slow, &wan);
        let mut others = Vec::new();
        for n in 0..OTHERS {
            others.push(world.client(1, &format!("user-{n}")).await);
        }
        wan.sleep(Duration::from_millis(500)).await;
        let mut handles = vec![alice.handle("slow").await];
        for n in 0..OTHERS {
            handles.push(alice.handle(&format!("user-{n}")).await);
        }
        let got: Vec<Arrivals> = others.iter().map(|o| Arrivals::at(o, &wan)).collect();
        for tick in 0..1_000 {
            for &handle in &handles {
                let packet = header(Kind::Media, Class::Video, handle, tick);
                alice.send(packet, &stamped(&wan, 300));
                let packet = header(Kind::Message, Class::Message, handle, tick);
                let bytes = if handle == handles[0] { 6_000 } else { 100 };
                alice.send_message(packet, &stamped(&wan, bytes)).await;
            }
            wan.sleep(TICK).await;
        }
        wan.sleep(Duration::from_secs(3)).await;
        let mut refused = 0;
        // One answer more, so that all news before it has come.
        let last = alice.lookup("nobody").await;
        assert_eq!(last.1, 0);
        for news in alice.take_news() {
            if let Some(edge_message::Body::Rejected(news)) = news.body {
                assert_eq!(news.reason(), rejected::Reason::QueueFull);
                assert_eq!(news.handle, handles[0], "only the slow one's are refused");
                refused += 1;
            }
        }
        let got = got.iter().map(|g| g.0.lock().unwrap().clone()).collect();
        let dropped = world.metric(1, "tradewind_relay_dropped_packets_total", "");
        (got, dropped, refused)
    })
}

#[test]
fn a_slow_receiver_costs_nobody_else_anything_and_its_own_drops_are_counted() {
    let (beside_fast, none_dropped, none_refused) = beside_a_line_of(10_000_000);
    let (beside_slow, dropped, refused) = beside_a_line_of(15_000);
    assert_eq!((none_dropped, none_refused), (0.0, 0));
    assert!(dropped > 1_000.0, "{dropped}");
    assert!(refused > 100, "its sender is told: {refused}");
    for (fast, slow) in beside_fast.iter().zip(&beside_slow) {
        // Everything came, in order, …
        assert_eq!(slow.len(), 2_000);
        for class in [Class::Video, Class::Message] {
            let of = |all: &[Arrival]| -> Vec<Arrival> {
                all.iter().filter(|a| a.class == class).copied().collect()
            };
            let (fast, slow) = (of(fast), of(slow));
            assert!(slow.iter().map(|a| a.sequence).eq(0..1_000));
            // … and as fast.
            let (fast, slow) = (p99(&fast), p99(&slow));
            assert!(slow <= fast.mul_f64(1.1), "{class}: {slow:?} for {fast:?}");
        }
    }
}

#[test]
fn what_an_app_may_send_its_sessions_share_and_senders_of_messages_are_told() {
    run_virtual(6, |wan| async move {
        let world = World::with_settings(wan.clone(), PAIR, |settings, _| {
            settings.app_rates = AppRates {
                each: Some(20_000),
                named: [("bank".to_owned(), 0)].into(),
            };
        })
        .await;
        world.plan(1, STRAIGHT, &[]).await;
        let mut senders = Vec::new();
        let mut got = Vec::new();
        for (n, app) in ["chat", "chat", "bank"].into_iter().enumerate() {
            let to = client_of(&world, 1, app, &format!("to-{n}")).await;
            let mut from = client_of(&world, 0, app, &format!("from-{n}")).await;
            wan.sleep(Duration::from_millis(500)).await;
            let handle = from.handle(&format!("to-{n}")).await;
            got.push(Arrivals::at(&to, &wan));
            senders.push((from, handle, to));
        }
        // 50 kB/s each for ten seconds.
        for tick in 0..1_000 {
            for (from, handle, _) in &mut senders {
                let packet = header(Kind::Message, Class::Message, *handle, tick);
                from.send_message(packet, &stamped(&wan, 480)).await;
            }
            wan.sleep(TICK).await;
        }
        wan.sleep(Duration::from_secs(1)).await;
        let bytes: Vec<u64> = got.iter().map(|got| got.bytes(Class::Message)).collect();
        // Ten seconds' worth and what may be sent at once.
        let chat = bytes[0] + bytes[1];
        assert!((190_000..=220_000).contains(&chat), "{bytes:?}");
        assert_eq!(bytes[2], 480_000);
        let limited = world.metric(0, "tradewind_relay_dropped_packets_total", "rate_limited");
        assert_eq!(limited, (960_000 - chat) as f64 / 480.0);
        let mut told = 0;
        for (from, ..) in &mut senders[..2] {
            from.lookup("nobody").await;
            for news in from.take_news() {
                if let Some(edge_message::Body::Rejected(news)) = news.body {
                    assert_eq!(news.reason(), rejected::Reason::QueueFull);
                    told += 1;
                }
            }
        }
        assert_eq!(f64::from(told), limited);
    });
}
