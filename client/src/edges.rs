//! What is known of edges: where they are, how far away, which of them have failed. Pure: the time is
//! handed in.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use crate::EdgeAddr;

/// Edges remembered.
const MAX_EDGES: usize = 64;
/// How long a measurement holds: the network may be another one by then.
const FRESH: Duration = Duration::from_secs(60);
/// An edge that has failed is not tried for so long.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// A session that was of no use is not set up again for so long.
const USELESS_FOR: Duration = Duration::from_secs(60);

/// From this load on an edge is worth less than its round trip says, parts per thousand.
const WORRY: u32 = 700;
/// A fully loaded edge is as good as one this much farther away, …
const FULL: f64 = 4.0;
/// … counted from here, so that the nearest ones are not taken at any load.
const NEXT_DOOR: Duration = Duration::from_millis(10);
/// An edge that had no time is not asked again for so long: from, to, at random.
const BUSY_FOR: (f64, f64) = (2.0, 10.0);

/// What a round trip to an edge is worth, given its load in parts per thousand: longer from 70 % on, and
/// steeply so.
pub(crate) fn weighed(rtt: Duration, load_permille: u32) -> Duration {
    let over = f64::from(load_permille.min(1_000).saturating_sub(WORRY)) / f64::from(1_000 - WORRY);
    rtt + (rtt + NEXT_DOOR).mul_f64(FULL * over * over)
}

/// All edges that the client has heard of.
#[derive(Debug, Default)]
pub(crate) struct EdgeTable {
    edges: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    edge: EdgeAddr,
    load_permille: u32,
    rtt: Option<Duration>,
    measured_at: Option<Instant>,
    not_before: Option<Instant>,
}

impl EdgeTable {
    /// Takes edges that were told.
    pub(crate) fn learn(&mut self, edges: &[EdgeAddr]) {
        for edge in edges {
            if let Some(known) = self.known(edge.address) {
                if known.edge.relay.is_none() {
                    known.edge.relay.clone_from(&edge.relay);
                }
            } else if self.has_room() {
                self.edges.push(Known {
                    edge: edge.clone(),
                    load_permille: 0,
                    rtt: None,
                    measured_at: None,
                    not_before: None,
                });
            }
        }
    }

    /// An edge to be measured now that is not `busy`, if there is one: those that never were come first.
    pub(crate) fn to_measure(&self, busy: &[EdgeAddr], now: Instant) -> Option<EdgeAddr> {
        let due = |known: &&Known| {
            let old = known.measured_at.is_none_or(|at| now >= at + FRESH);
            let allowed = known.not_before.is_none_or(|at| at <= now);
            old && allowed && !busy.contains(&known.edge)
        };
        let first = self.edges.iter().filter(due);
        first
            .min_by_key(|known| known.measured_at)
            .map(|known| known.edge.clone())
    }

    /// Whether it was ever measured.
    pub(crate) fn is_measured(&self, address: SocketAddr) -> bool {
        let mut edges = self.edges.iter();
        edges.any(|known| known.edge.address == address && known.measured_at.is_some())
    }

    /// When the next edge is to be measured.
    pub(crate) fn next_measurement(&self) -> Option<Instant> {
        let due = self.edges.iter().filter_map(|known| {
            let old = known.measured_at.map(|at| at + FRESH);
            old.max(known.not_before)
        });
        due.min()
    }

    /// An edge was measured.
    pub(crate) fn measured(&mut self, address: SocketAddr, rtt: Duration, now: Instant) {
        if let Some(known) = self.known(address) {
            known.rtt = Some(rtt);
            known.measured_at = Some(now);
        }
    }

    /// An edge does not answer, or has no room.
    pub(crate) fn failed(&mut self, address: SocketAddr, now: Instant) {
        if let Some(known) = self.known(address) {
            known.rtt = None;
            known.not_before = Some(now + FAILED_FOR);
        }
    }

    /// An edge had no time for one more. `chance` is from 0 to 1: not all are to come again at once.
    pub(crate) fn busy(&mut self, address: SocketAddr, chance: f64, now: Instant) {
        if let Some(known) = self.known(address) {
            let (from, to) = BUSY_FOR;
            known.not_before = Some(now + Duration::from_secs_f64(from + (to - from) * chance));
        }
    }

    /// How loaded edges are, parts per thousand, is known.
    pub(crate) fn learn_loads(&mut self, loads: &FxHashMap<SocketAddr, u32>) {
        for known in &mut self.edges {
            if let Some(load) = loads.get(&known.edge.address) {
                known.load_permille = *load;
            }
        }
    }

    /// What a round trip to an edge is worth.
    pub(crate) fn weighed(&self, address: SocketAddr, rtt: Duration) -> Duration {
        let mut edges = self.edges.iter();
        let known = edges.find(|known| known.edge.address == address);
        weighed(rtt, known.map_or(0, |known| known.load_permille))
    }

    /// A session with an edge was of no use.
    pub(crate) fn useless(&mut self, address: SocketAddr, now: Instant) {
        if let Some(known) = self.known(address) {
            known.not_before = Some(now + USELESS_FOR);
        }
    }

    /// The edges that a session may be set up with, nearest first.
    pub(crate) fn nearest(&self, now: Instant) -> Vec<&EdgeAddr> {
        let mut near: Vec<(Duration, &EdgeAddr)> = self
            .edges
            .iter()
            .filter(|known| known.not_before.is_none_or(|at| at <= now))
            .filter_map(|known| Some((weighed(known.rtt?, known.load_permille), &known.edge)))
            .collect();
        near.sort();
        near.into_iter().map(|(_, edge)| edge).collect()
    }

    /// The edge of a relay, if its address is known and it may be tried.
    pub(crate) fn of_relay(&self, relay: &str, now: Instant) -> Option<Result<&EdgeAddr, ()>> {
        let mut edges = self.edges.iter();
        let known = edges.find(|known| known.edge.relay.as_deref() == Some(relay))?;
        let allowed = known.not_before.is_none_or(|at| at <= now);
        Some(if allowed { Ok(&known.edge) } else { Err(()) })
    }

    /// The round trip to the edge of a relay, as far as it was measured.
    pub(crate) fn rtt_of(&self, relay: &str) -> Option<Duration> {
        let mut edges = self.edges.iter();
        let known = edges.find(|known| known.edge.relay.as_deref() == Some(relay))?;
        known.rtt
    }

    /// Makes room for another edge: one that does not answer goes.
    fn has_room(&mut self) -> bool {
        if self.edges.len() < MAX_EDGES {
            return true;
        }
        let dead = |known: &Known| known.rtt.is_none() && known.not_before.is_some();
        let at = self.edges.iter().position(dead);
        at.map(|at| self.edges.remove(at)).is_some()
    }

    fn known(&mut self, address: SocketAddr) -> Option<&mut Known> {
        let mut edges = self.edges.iter_mut();
        edges.find(|known| known.edge.address == address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(n: u8) -> EdgeAddr {
        EdgeAddr {
            address: SocketAddr::from(([192, 0, 2, n], 7443)),
            relay: Some(format!("edge-{n}")),
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // any instant will do
    fn edges_are_measured_now_and_then_and_the_nearest_come_first() {
        let now = Instant::now();
        let mut table = EdgeTable::default();
        table.learn(&[edge(1), edge(2), edge(3)]);
        for (n, rtt) in [(1, 30), (2, 10), (3, 20)] {
            assert_eq!(table.to_measure(&[], now), Some(edge(n)));
            table.measured(edge(n).address, Duration::from_millis(rtt), now);
        }
        assert_eq!(table.to_measure(&[], now), None);
        assert_eq!(table.next_measurement(), Some(now + FRESH));
        assert_eq!(table.nearest(now), [&edge(2), &edge(3), &edge(1)]);
        assert_eq!(table.rtt_of("edge-3"), Some(Duration::from_millis(20)));
        assert_eq!(table.rtt_of("edge-4"), None);
        table.failed(edge(2).address, now);
        assert_eq!(table.nearest(now), [&edge(3), &edge(1)]);
        table.useless(edge(3).address, now);
        assert_eq!(table.of_relay("edge-3", now), Some(Err(())));
        assert_eq!(table.of_relay("edge-1", now), Some(Ok(&edge(1))));
        assert_eq!(table.of_relay("edge-4", now), None);
        let later = now + FRESH;
        assert_eq!(table.to_measure(&[], later), Some(edge(1)));
        assert_eq!(table.to_measure(&[edge(1)], later), Some(edge(2)));
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // any instant will do
    fn load_counts_from_seventy_percent_on_and_a_busy_edge_is_asked_again_at_random() {
        let rtt = Duration::from_millis(20);
        assert_eq!((weighed(rtt, 0), weighed(rtt, 700)), (rtt, rtt));
        let mut before = rtt;
        for load in [800, 900, 1_000] {
            let worth = weighed(rtt, load);
            assert!(worth > before, "{load}");
            before = worth;
        }
        assert_eq!(weighed(rtt, 5_000), Duration::from_millis(140));
        let now = Instant::now();
        let mut table = EdgeTable::default();
        table.learn(&[edge(1), edge(2)]);
        for (n, rtt) in [(1, 10), (2, 20)] {
            table.measured(edge(n).address, Duration::from_millis(rtt), now);
        }
        let loads = |load| FxHashMap::from_iter([(edge(1).address, load)]);
        table.learn_loads(&loads(700));
        assert_eq!(table.nearest(now), [&edge(1), &edge(2)]);
        table.learn_loads(&loads(900));
        assert_eq!(table.nearest(now), [&edge(2), &edge(1)]);
        for (chance, seconds) in [(0.0, 2), (0.5, 6), (1.0, 10)] {
            table.busy(edge(2).address, chance, now);
            let at = now + Duration::from_secs(seconds);
            assert_eq!(table.nearest(at).len(), 2, "{chance}");
            assert_eq!(table.nearest(at - Duration::from_millis(1)).len(), 1);
        }
    }
}
