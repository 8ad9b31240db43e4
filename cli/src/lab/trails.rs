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
    passages: u64,
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
        inner.passages += 1;
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

    /// Packets seen at relays so far.
    pub(super) fn passages(&self) -> u64 {
        self.lock().passages
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
