//! The way of every packet, as the relays it passes show it, and what must hold for each.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tradewind_proto::{PlanId, packet::Kind};
use tradewind_relay::Passage;

use super::traffic::Stamp;

/// Violations that are told in words; more are only counted.
const MOST_TOLD: usize = 10;

/// A media packet of the lab: kind, sender, receiver, number.
pub(super) type PacketName = (u8, usize, usize, u32);

/// Where a packet was, and when (network time), in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trail {
    plan: PlanId,
    pub(super) hops: Vec<(usize, Duration)>,
}

/// All trails, and what was wrong with them.
#[derive(Debug)]
pub(super) struct Trails {
    inner: Mutex<Inner>,
    /// By place: media packets between clients of others.
    transit: Vec<AtomicU64>,
}

#[derive(Debug, Default)]
struct Inner {
    by_packet: HashMap<PacketName, Trail>,
    wrong: Vec<String>,
    wrong_count: u64,
}

impl Trails {
    pub(super) fn new(n: usize) -> Self {
        Self {
            inner: Mutex::default(),
            transit: (0..n).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// A packet passes the relay at `place` at network time `now`.
    pub(super) fn note(&self, place: usize, now: Duration, passage: &Passage<'_>) {
        let header = passage.header;
        let mut inner = self.lock();
        let came_over_a_link = header.passed_count() > 0 || header.sender.relay != passage.relay;
        if came_over_a_link && header.has_visited(passage.relay) {
            inner.tell(|| {
                format!(
                    "at {now:?} a {:?} packet visits relay {place} twice",
                    header.kind
                )
            });
        }
        if header.kind != Kind::Media {
            return;
        }
        let Some(stamp) = Stamp::read(passage.payload) else {
            return;
        };
        if let tradewind_proto::packet::Destination::Session(to) = header.destination
            && came_over_a_link
            && to.relay != passage.relay
        {
            self.transit[place].fetch_add(1, Relaxed);
        }
        let name = (stamp.kind, stamp.from, stamp.to, stamp.number);
        let trail = inner.by_packet.entry(name).or_insert_with(|| Trail {
            plan: header.plan,
            hops: Vec::new(),
        });
        let (plan, visited) = (trail.plan, trail.hops.iter().any(|hop| hop.0 == place));
        trail.hops.push((place, now));
        if visited {
            inner.tell(|| format!("at {now:?} media packet {name:?} visits relay {place} twice"));
        }
        if plan != header.plan {
            let other = header.plan;
            inner.tell(|| format!("media packet {name:?} sees plan {plan} and plan {other}"));
        }
    }

    pub(super) fn trail(&self, packet: &PacketName) -> Option<Trail> {
        self.lock().by_packet.get(packet).cloned()
    }

    /// What was wrong: in words, as far as they go, and how often.
    pub(super) fn wrong(&self) -> (Vec<String>, u64) {
        let inner = self.lock();
        (inner.wrong.clone(), inner.wrong_count)
    }

    /// Media packets in transit so far, by place.
    pub(super) fn transit(&self) -> Vec<u64> {
        let counts = self.transit.iter();
        counts.map(|count| count.load(Relaxed)).collect()
    }

    /// Forgets all ways: what comes later is seen as before.
    pub(super) fn clear(&self) {
        self.lock().by_packet.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&mut self, text: impl FnOnce() -> String) {
        self.wrong_count += 1;
        if self.wrong.len() < MOST_TOLD {
            self.wrong.push(text());
        }
    }
}

impl Trail {
    /// The places, in order.
    pub(super) fn path(&self) -> Vec<usize> {
        self.hops.iter().map(|hop| hop.0).collect()
    }
}

#[cfg(test)]
impl Trail {
    pub(super) fn new(plan: PlanId, hops: Vec<(usize, Duration)>) -> Self {
        Self { plan, hops }
    }
}

#[cfg(test)]
mod tests {
    use tradewind_proto::{
        Class, Locator, RelayIndex, Tenant,
        packet::{Destination, LinkHeader, MAX_PASSED},
    };

    use super::*;

    const PLAN: PlanId = PlanId {
        epoch: 1,
        number: 1,
    };

    fn header(passed: &[u16]) -> LinkHeader {
        let at = |relay: u16| Locator {
            relay: RelayIndex(relay),
            slot: 1,
            generation: 1,
        };
        let mut header = LinkHeader {
            kind: Kind::Media,
            class: Class::Audio,
            profile: 0,
            tree: 0,
            deflections: 0,
            trace: false,
            path_change: false,
            hop_limit: 7,
            plan: PLAN,
            age_us: 0,
            sender: at(0),
            destination: Destination::Session(at(3)),
            passed: [RelayIndex::NONE; MAX_PASSED],
            uplink: 0,
            flow: 1,
            sequence: 1,
            layer: 0,
            tenant: Tenant::NONE,
        };
        for &relay in passed {
            assert!(header.pass(RelayIndex(relay)));
        }
        header
    }

    /// Packet number 0 of a steady flow from place 0 to place 3.
    fn payload() -> Vec<u8> {
        let mut payload = vec![0; 17];
        (payload[0], payload[4]) = (super::super::traffic::STEADY, 3);
        payload
    }

    fn passes(trails: &Trails, relay: u16, header: &LinkHeader) {
        let passage = Passage {
            relay: RelayIndex(relay),
            header,
            relays: &[],
            payload: &payload(),
        };
        trails.note(relay.into(), Duration::from_millis(relay.into()), &passage);
    }

    #[test]
    fn a_way_is_put_together_from_what_relays_show() {
        let trails = Trails::new(4);
        for (relay, passed) in [(0, &[][..]), (2, &[]), (3, &[2])] {
            passes(&trails, relay, &header(passed));
        }
        let trail = trails.trail(&(super::super::traffic::STEADY, 0, 3, 0));
        assert_eq!(trail.unwrap().path(), [0, 2, 3]);
        assert_eq!(trails.wrong().1, 0);
        assert_eq!(trails.transit(), [0, 0, 1, 0]);
    }

    #[test]
    fn a_second_visit_is_seen_whether_the_packet_remembers_the_first_or_not() {
        let trails = Trails::new(4);
        passes(&trails, 1, &header(&[1, 2]));
        assert_eq!(trails.wrong().1, 1);
        passes(&trails, 1, &header(&[]));
        assert_eq!(trails.wrong().1, 2);
    }

    #[test]
    fn a_packet_that_changes_its_plan_on_the_way_is_seen() {
        let trails = Trails::new(4);
        passes(&trails, 0, &header(&[]));
        let mut other = header(&[]);
        other.plan.number = 2;
        passes(&trails, 1, &other);
        assert_eq!(trails.wrong().1, 1);
        assert!(trails.wrong().0[0].contains("plan 1.2"));
    }
}
