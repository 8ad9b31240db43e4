//! Conversations that move to another way while they go on, in virtual time.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{Net, ms, secs};
use tradewind_client::{Class, Client, ClientConfig, Event, Flow, Media};
use tradewind_host::Host;
use tradewind_wan::{HostClock, PlaceId, Wan, WanHost, run_virtual};

/// Time from one packet to the next.
const PACE: Duration = ms(5);

/// Three edges 10 ms from each other and from anybody, which cost `cost` ms between each two.
struct World {
    wan: Wan,
    net: Net,
    places: Vec<PlaceId>,
    edges: Vec<Arc<WanHost>>,
    reorder: Duration,
}

impl World {
    fn new(wan: &Wan, cost: u32) -> Self {
        let names: Vec<String> = (0..3).map(|n| format!("place-{n}")).collect();
        let places = wan.add_matrix(&names, |i, j| Some(ms(10) * u32::from(i != j)));
        let net = Net::new(wan);
        let edges: Vec<_> = places.iter().map(|&place| net.edge(place)).collect();
        let world = Self {
            wan: wan.clone(),
            net,
            places,
            edges,
            reorder: Duration::ZERO,
        };
        world.costs(&[], cost);
        world
    }

    /// What all ways cost, in ms, and those from some edges on.
    fn costs(&self, from: &[(usize, u32)], others: u32) {
        let from: BTreeMap<usize, u32> = from.iter().copied().collect();
        let n = self.edges.len();
        let cost = |edge| from.get(&edge).copied().unwrap_or(others);
        let costs = (0..n * n).map(|pair| ((pair / n, pair % n), cost(pair / n)));
        self.net.set(|knobs| knobs.costs = Some(costs.collect()));
    }

    async fn client(&self, place: usize, name: &str, near_edges: usize) -> Client {
        let several = |config: &mut ClientConfig| config.near_edges = near_edges;
        self.client_with(place, name, several).await
    }

    async fn client_with(
        &self,
        place: usize,
        name: &str,
        change: impl FnOnce(&mut ClientConfig),
    ) -> Client {
        let host = self.wan.add_host(self.places[place], HostClock::EXACT);
        host.set_access_delay(ms(1));
        let mut config = self.net.config(name);
        change(&mut config);
        config.reorder = self.reorder;
        Client::connect(config, host).await.unwrap()
    }

    /// Takes a note of all media that comes to a client.
    fn listen(&self, client: &Client) -> Heard {
        let heard = Heard::default();
        let (noting, client, wan) = (heard.clone(), client.clone(), self.wan.clone());
        let host: Arc<dyn Host> = self.wan.add_host(self.places[0], HostClock::EXACT);
        host.spawn(async move {
            while let Some(event) = client.recv().await {
                if let Event::Media(media) = event {
                    let came = (wan.network_time(), media);
                    noting.0.lock().unwrap().push(came);
                }
            }
        });
        heard
    }

    /// Sends packets on flows for some time.
    async fn talk(&self, flows: &[&Flow], lasts: Duration) {
        let until = self.wan.network_time() + lasts;
        while self.wan.network_time() < until {
            for flow in flows {
                let _ = flow.send(Bytes::from_static(b"hello"));
            }
            self.wan.sleep(PACE).await;
        }
    }
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(Duration, Media)>>>);

impl Heard {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The longest time without a packet since a moment.
    fn silence(&self, since: Duration) -> Duration {
        let heard = self.0.lock().unwrap();
        let times: Vec<Duration> = heard.iter().map(|(at, _)| *at).collect();
        let pairs = times.windows(2).filter(|pair| pair[1] >= since);
        pairs
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or(Duration::MAX)
    }

    /// Packets that said that they took another way.
    fn marks(&self) -> usize {
        let heard = self.0.lock().unwrap();
        heard.iter().filter(|(_, media)| media.path_change).count()
    }

    fn is_in_order(&self) -> bool {
        let heard = self.0.lock().unwrap();
        heard.is_sorted_by_key(|(_, media)| media.sequence)
    }
}

#[test]
fn a_flow_moves_to_a_shorter_way_without_a_gap() {
    run_virtual(1, |wan| async move {
        let world = World::new(&wan, 50);
        // The edge that a sender is told late by whom that is: far more than the pace.
        world.net.set(|knobs| knobs.peer_delay = ms(25));
        let ann = world.client(0, "ann", 3).await;
        let ben = world.client(2, "ben", 3).await;
        let heard = world.listen(&ben);
        let flow = ann.open_flow("ben", Class::Audio).await.unwrap();
        world.talk(&[&flow], secs(8)).await;
        let (moved, since) = (heard.marks(), wan.network_time());
        world.costs(&[(1, 10)], 50);
        world.talk(&[&flow], secs(12)).await;
        assert!(heard.marks() > moved, "it has moved");
        wan.sleep(ms(100)).await;
        let silence = heard.silence(since);
        assert!(silence < ms(30), "{silence:?}");
        assert_eq!(heard.count() as u64, flow.sent());
    });
}

#[test]
fn who_asks_for_it_gets_packets_in_order_though_they_come_to_a_shorter_way() {
    for reorder in [Duration::ZERO, ms(40)] {
        run_virtual(5, move |wan| async move {
            let world = World {
                reorder,
                ..World::new(&wan, 50)
            };
            let ann = world.client(0, "ann", 3).await;
            let ben = world.client(2, "ben", 3).await;
            let heard = world.listen(&ben);
            let flow = ann.open_flow("ben", Class::Audio).await.unwrap();
            // The way by the farther edge, and back to the shorter one: what goes there overtakes.
            world.costs(&[(1, 10)], 50);
            world.talk(&[&flow], secs(12)).await;
            let (moved, since) = (heard.marks(), wan.network_time());
            assert!(moved > 0 && heard.is_in_order());
            world.costs(&[], 50);
            world.talk(&[&flow], secs(12)).await;
            wan.sleep(ms(100)).await;
            assert!(heard.marks() > moved, "it has moved back");
            assert_eq!(heard.is_in_order(), !reorder.is_zero());
            assert!(heard.silence(since) < ms(30));
            assert_eq!(heard.count() as u64, flow.sent());
        });
    }
}

#[test]
fn a_flow_does_not_move_to_an_edge_that_died_without_anybody_noticing() {
    run_virtual(2, |wan| async move {
        let world = World::new(&wan, 50);
        let ann = world.client(0, "ann", 3).await;
        let ben = world.client(2, "ben", 3).await;
        let heard = world.listen(&ben);
        let flow = ann.open_flow("ben", Class::Audio).await.unwrap();
        world.talk(&[&flow], secs(8)).await;
        // That ben has a session there is what everybody is told for a long time.
        let since = wan.network_time();
        world.edges[1].kill();
        world.costs(&[(1, 10)], 50);
        world.talk(&[&flow], secs(12)).await;
        let silence = heard.silence(since);
        assert!(silence < ms(30), "{silence:?}");
    });
}

#[test]
fn when_an_edge_dies_both_directions_go_on_over_what_stands_by() {
    for (seed, near_edges) in [(3, 1), (4, 3)] {
        run_virtual(seed, move |wan| async move {
            let world = World::new(&wan, 50);
            let ann = world.client(0, "ann", near_edges).await;
            let ben = world.client(2, "ben", near_edges).await;
            let (by_ann, by_ben) = (world.listen(&ann), world.listen(&ben));
            let there = ann.open_flow("ben", Class::Audio).await.unwrap();
            let back = ben.open_flow("ann", Class::Audio).await.unwrap();
            world.talk(&[&there, &back], secs(8)).await;
            let since = wan.network_time();
            let first = ann.stats().relay.unwrap();
            let index: usize = first.strip_prefix("edge-").unwrap().parse().unwrap();
            world.edges[index].kill();
            world.talk(&[&there, &back], secs(6)).await;
            for (who, heard) in [("ben", &by_ben), ("ann", &by_ann)] {
                let silence = heard.silence(since);
                assert!(silence < ms(1_200), "{who}, {near_edges}: {silence:?}");
                assert!(heard.is_in_order(), "{who}");
            }
            assert_ne!(ann.stats().relay.unwrap(), first);
        });
    }
}

#[test]
fn who_has_no_other_session_tells_its_peers_with_the_next_one() {
    run_virtual(6, |wan| async move {
        let world = World::new(&wan, 50);
        let single = |config: &mut ClientConfig| config.max_sessions = 1;
        let ann = world.client_with(0, "ann", single).await;
        let ben = world.client(2, "ben", 3).await;
        let heard = world.listen(&ann);
        // Ann says nothing: she looks nobody up for any other reason.
        let flow = ben.open_flow("ann", Class::Audio).await.unwrap();
        world.talk(&[&flow], secs(7)).await;
        let since = wan.network_time();
        world.edges[0].kill();
        world.talk(&[&flow], secs(8)).await;
        assert_eq!(world.net.seen().left, [("ann".into(), "edge-0".into())]);
        let silence = heard.silence(since);
        assert!(silence < secs(3), "{silence:?}");
    });
}
