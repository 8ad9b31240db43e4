//! Two ways between the same two relays: the public Internet and a private line. Real relays in
//! virtual time.

mod support;

use std::{io, net::SocketAddr, sync::Arc, time::Duration, time::SystemTime};

use support::{TestClient, World, header};
use tradewind_host::{AsyncUdpSocket, Host, Runtime};
use tradewind_proto::{
    Class,
    control::{Activate, Backup, PlanName, ProfileTable, TreeTable},
    packet::Kind,
};
use tradewind_relay::{RelaySettings, UplinkSettings};
use tradewind_wan::{HostClock, LinkSpec, WanHost, run_virtual};

/// Three relays, 20 ms from each to each by the public Internet.
const TRIANGLE: &[&[u64]] = &[&[0, 20, 20], &[20, 0, 20], &[20, 20, 0]];

/// A machine with two interfaces.
#[derive(Debug)]
struct TwoLines {
    public: Arc<WanHost>,
    private: Arc<WanHost>,
}

impl Host for TwoLines {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.public.runtime()
    }

    fn wall_clock(&self) -> SystemTime {
        self.public.wall_clock()
    }

    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        if address.ip() == self.private.ip() {
            self.private.bind_udp(address)
        } else {
            self.public.bind_udp(address)
        }
    }

    fn seed(&self) -> [u8; 32] {
        self.public.seed()
    }
}

/// The relays that a packet comes by, and the uplink that it came to each of them by.
async fn way(from: &TestClient, to: &TestClient, handle: u32) -> Vec<(u16, u8)> {
    let hops = from.hops(to, handle, Class::Audio, 1..2).await;
    hops[&1]
        .iter()
        .map(|hop| (hop.relay.0, hop.uplink))
        .collect()
}

#[test]
fn a_relay_whose_uplink_fails_uses_the_other_one_before_it_deflects() {
    run_virtual(31, |wan| async move {
        let mut world = World::new(wan.clone(), TRIANGLE).await;
        let lines = [wan.add_place("line-0"), wan.add_place("line-1")];
        let spec = LinkSpec::with_delay(Duration::from_millis(5));
        wan.set_links(lines[0], lines[1], &spec);
        for (relay, &line) in lines.iter().enumerate() {
            world.relays[relay].stop().await;
            wan.sleep(Duration::from_secs(1)).await;
            let public = world.relay_hosts[relay].clone();
            let private = wan.add_host(line, HostClock::EXACT);
            let uplink = UplinkSettings {
                number: 1,
                link_listen: SocketAddr::new(private.ip(), 7444),
                link_advertise: Vec::new(),
                capacity: 125_000_000,
            };
            let host = Arc::new(TwoLines {
                public: public.clone(),
                private,
            });
            let with_line = |settings: &mut RelaySettings| {
                settings.uplinks = vec![uplink];
                settings.link_capacity = 12_500_000;
            };
            world.relays[relay] = world
                .try_start_relay_on(&format!("r{relay}"), public, host, with_line)
                .await
                .unwrap();
        }
        wan.sleep(Duration::from_secs(5)).await;
        let told = world.controller.relay("r0").uplinks;
        let told: Vec<_> = told.iter().map(|u| (u.number, u.capacity)).collect();
        assert_eq!(told, [(0, 12_500_000), (1, 125_000_000)]);
        let links = world.relays[0].links().await;
        let links: Vec<_> = links
            .iter()
            .map(|link| (link.peer.as_str(), link.uplink, link.state))
            .collect();
        assert_eq!(links, [("r1", 0, "up"), ("r1", 1, "up"), ("r2", 0, "up")]);

        // By the private line from r0 to r1.
        world.controller.distribute(1, &[], |relay| {
            vec![ProfileTable {
                trees: vec![TreeTable {
                    next_hop: vec![0, 1, 2],
                    uplink: vec![0, u32::from(relay == 0), 0],
                    ..Default::default()
                }],
                backups: vec![Backup {
                    destination: 1,
                    relays: vec![2],
                    ..Default::default()
                }],
                ..Default::default()
            }]
        });
        world.controller.activate(&Activate {
            plan: Some(PlanName {
                epoch: 1,
                number: 1,
            }),
            ..Default::default()
        });
        wan.sleep(Duration::from_secs(3)).await;
        let mut alice = world.client(0, "alice").await;
        let bob = world.client(1, "bob").await;
        wan.sleep(Duration::from_millis(500)).await;
        let handle = alice.handle("bob").await;
        let before = wan.network_time();
        assert_eq!(way(&alice, &bob, handle).await, [(0, 0), (1, 1)]);
        let took = wan.network_time() - before;
        assert!(took < Duration::from_millis(7), "{took:?}");

        wan.cut_both(lines[0], lines[1]);
        wan.sleep(Duration::from_secs(1)).await;
        assert_eq!(way(&alice, &bob, handle).await, [(0, 0), (1, 0)]);
        let deflected = || world.metric(0, "tradewind_relay_deflected_packets_total", "");
        assert_eq!(deflected(), 0.0);

        wan.cut_both(world.places[0], world.places[1]);
        wan.sleep(Duration::from_secs(1)).await;
        let detour = way(&alice, &bob, handle).await;
        let relays: Vec<u16> = detour.iter().map(|hop| hop.0).collect();
        assert_eq!(relays, [0, 2, 1]);
        assert!(deflected() > 0.0);

        wan.heal_both(lines[0], lines[1]);
        wan.sleep(Duration::from_secs(6)).await;
        assert_eq!(way(&alice, &bob, handle).await, [(0, 0), (1, 1)]);
    });
}

/// Bytes per second that the links between two relays of these settings carry, there and back, when
/// two and a half megabytes per second are offered.
fn carried(change: fn(&mut RelaySettings, &WanHost)) -> [f64; 2] {
    run_virtual(33, move |wan| async move {
        let world = World::with_settings(wan.clone(), &[&[0, 40], &[40, 0]], change).await;
        world.plan(1, &[&[0, 1], &[0, 1]], &[]).await;
        let mut rates = [0.0; 2];
        // r0 dials r1: one end is the dialled one, the other the accepted one.
        for (from, to) in [(0, 1), (1, 0)] {
            let mut sender = world.client(from, &format!("from-{from}")).await;
            let _receiver = world.client(to, &format!("to-{to}")).await;
            wan.sleep(Duration::from_millis(500)).await;
            let handle = sender.handle(&format!("to-{to}")).await;
            let payload = vec![7; 1_000];
            // Four seconds, of which the first two settle.
            let mut before = (0, Duration::ZERO);
            for n in 0..10_000 {
                if n == 5_000 {
                    let sent = world.relays[from].links().await[0].bytes_sent;
                    before = (sent, wan.network_time());
                }
                sender.send(header(Kind::Media, Class::Video, handle, n), &payload);
                if n % 5 == 4 {
                    wan.sleep(Duration::from_millis(2)).await;
                }
            }
            let sent = world.relays[from].links().await[0].bytes_sent - before.0;
            rates[from] = sent as f64 / (wan.network_time() - before.1).as_secs_f64();
        }
        rates
    })
}

#[test]
fn a_link_takes_no_more_than_its_uplink_is_said_to_carry() {
    for rate in carried(|settings, _| settings.link_capacity = 1_250_000) {
        assert!((1.1e6..1.4e6).contains(&rate), "{rate} bytes/s");
    }
    // Nobody has said what it carries: it takes what there is.
    for rate in carried(|_, _| ()) {
        assert!(rate > 2.4e6, "{rate} bytes/s");
    }
}
