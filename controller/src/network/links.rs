//! What the relays say about their links, and what follows for each directed link.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tradewind_proto::{
    LinkKey, RelayIndex, Uplink,
    control::{LinkReport, LinkState, link_state::State},
};
use tradewind_routing::{
    LinkMetrics, RawDelays,
    clock_sync::{Drifts, solve_drifts},
    cost::confident_loss,
    solve_clocks,
};

use super::registry::Registry;

/// A statement that was not repeated for this long says nothing about the link any more, if its
/// relay is still online; and no clock difference older than this is used.
pub(super) const VIEW_LIFETIME: Duration = Duration::from_secs(10);

/// How many probes a share of loss is taken to stem from, where the relay does not say it.
const LOSS_PROBES: u64 = 50;

/// Whether a directed link can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Usable {
    /// Nobody knows, or not yet.
    Unknown,
    Yes,
    /// One of its ends says that it is down.
    Down,
}

/// What one end of a link says about it.
#[derive(Debug, Clone, Default)]
struct View {
    at: Duration,
    state: State,
    rtt_min_us: Option<u32>,
    rtt_deviation_us: u32,
    loss_in_ppm: u32,
    loss_out_ppm: u32,
    /// (peer to reporter, reporter to peer)
    raw_us: Option<(i64, i64)>,
    /// When these held.
    raw_at: Duration,
    /// How much faster the reporter's clock runs than the peer's, parts per billion; 0: unknown.
    drift_ppb: i32,
    /// How many probes the shares of loss are of; 0: not said.
    loss_probes: u32,
    packets_received: u64,
    /// The peer's process has restarted and this end has not noticed yet: what it says is about
    /// the peer's earlier life.
    outlived: bool,
}

/// Everything said, by (who says it, about the links to and from whom, over which uplink).
#[derive(Debug, Default)]
pub(super) struct Links {
    views: BTreeMap<(RelayIndex, RelayIndex, Uplink), View>,
    /// When each relay last reported only what has changed: all else was as it had said.
    confirmed: BTreeMap<RelayIndex, Duration>,
}

/// What a report changed about the links of its relay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changes {
    /// A link that could be used cannot be any more.
    pub(super) failed: bool,
    /// A link can be used that could not.
    pub(super) gained: bool,
}

/// The numbers of one directed link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    pub(super) key: LinkKey,
    pub(super) usable: Usable,
    /// In the frame of the solved clocks: exact in comparisons between whole paths.
    pub(super) one_way_ms: Option<f64>,
    pub(super) rtt_ms: Option<f64>,
    pub(super) loss: f64,
    /// What its cost follows from; `None` unless usable and measured.
    pub(super) metrics: Option<LinkMetrics>,
}

impl Links {
    /// A report is about to be taken in: if it names only what has changed, all else is as it was;
    /// if it is whole, there is nothing else.
    pub(super) fn begin_report(
        &mut self,
        now: Duration,
        reporter: RelayIndex,
        report: &LinkReport,
        registry: &Registry,
    ) {
        if report.delta {
            self.confirmed.insert(reporter, now);
            return;
        }
        self.confirmed.remove(&reporter);
        let named: BTreeSet<(RelayIndex, u32)> = report
            .links
            .iter()
            .filter_map(|link| Some((registry.index_of(&link.peer)?, link.uplink)))
            .collect();
        self.views.retain(|&(by, peer, uplink), _| {
            by != reporter || named.contains(&(peer, u32::from(uplink.0)))
        });
    }

    /// Takes in what `reporter` says about its links with `peer`.
    pub(super) fn update(
        &mut self,
        now: Duration,
        reporter: RelayIndex,
        peer: RelayIndex,
        uplink: Uplink,
        link: &LinkState,
        registry: &Registry,
    ) -> Changes {
        let before = self.usable_both(now, reporter, peer, uplink, registry);
        let view = self.views.entry((reporter, peer, uplink)).or_default();
        let begun_anew = link.packets_received < view.packets_received;
        let up = link.state() == State::Up;
        if view.outlived && (!up || begun_anew || now >= view.at + VIEW_LIFETIME) {
            view.outlived = false;
        }
        *view = View {
            // While it is about the past it also keeps its age, so that it ends.
            at: if view.outlived { view.at } else { now },
            state: link.state(),
            rtt_min_us: (up && link.rtt_min_us > 0).then_some(link.rtt_min_us),
            rtt_deviation_us: link.rtt_deviation_us,
            loss_in_ppm: link.loss_in_ppm,
            loss_out_ppm: link.loss_out_ppm,
            raw_us: (up && link.raw_known).then_some((link.raw_in_us, link.raw_out_us)),
            raw_at: now.saturating_sub(Duration::from_micros(link.raw_age_us.into())),
            drift_ppb: link.drift_ppb,
            loss_probes: link.loss_probes,
            packets_received: link.packets_received,
            outlived: view.outlived,
        };
        let after = self.usable_both(now, reporter, peer, uplink, registry);
        Changes {
            failed: before == Usable::Yes && after != Usable::Yes,
            gained: before != Usable::Yes && after == Usable::Yes,
        }
    }

    /// The process of `relay` has restarted: what it said is void, and what others say about it
    /// is about its earlier life until they notice.
    pub(super) fn restarted(&mut self, relay: RelayIndex) {
        self.views.retain(|&(reporter, _, _), _| reporter != relay);
        self.confirmed.remove(&relay);
        for (&(_, peer, _), view) in &mut self.views {
            if peer == relay && view.state == State::Up {
                view.outlived = true;
            }
        }
    }

    /// Per relay, whether any of its links can be used.
    pub(super) fn reachable(&self, now: Duration, registry: &Registry) -> Vec<bool> {
        let mut reachable = vec![false; registry.len()];
        for &(a, b, uplink) in self.views.keys() {
            let known = reachable[a.as_usize()] && reachable[b.as_usize()];
            if !known && self.usable_both(now, a, b, uplink, registry) == Usable::Yes {
                reachable[a.as_usize()] = true;
                reachable[b.as_usize()] = true;
            }
        }
        reachable
    }

    /// All links in the order of their keys, and how many of them have a delay that others
    /// contradict (noise, drift).
    pub(super) fn measured(&self, now: Duration, registry: &Registry) -> (Vec<Measured>, usize) {
        let n = registry.len();
        // Per uplink its raw differences; and of each directed link the least of them, which the
        // clocks are solved on.
        let mut by_uplink: BTreeMap<Uplink, RawDelays> = BTreeMap::new();
        let mut least = RawDelays::new(n);
        let mut keys: Vec<LinkKey> = Vec::new();
        let drifts = self.drifts(now, registry);
        for &(reporter, peer, uplink) in self.views.keys() {
            let there = LinkKey {
                from: reporter,
                to: peer,
                uplink,
            };
            keys.push(there);
            if !self.views.contains_key(&(peer, reporter, uplink)) {
                keys.push(LinkKey {
                    from: peer,
                    to: reporter,
                    uplink,
                });
            }
        }
        for &key in &keys {
            let Some(raw) = self.raw_us(now, key, registry, &drifts) else {
                continue;
            };
            let (from, to) = (key.from.as_usize(), key.to.as_usize());
            by_uplink
                .entry(key.uplink)
                .or_insert_with(|| RawDelays::new(n))
                .set(from, to, Some(raw));
            if least
                .get(from, to)
                .is_none_or(|known| raw.wrapping_sub(known) < 0)
            {
                least.set(from, to, Some(raw));
            }
        }
        let clocks = solve_clocks(&least);

        keys.sort_unstable();
        let links = keys
            .into_iter()
            .map(|key| {
                let one_way_us = by_uplink
                    .get(&key.uplink)
                    .and_then(|raw| clocks.one_way_us(raw, key.from.as_usize(), key.to.as_usize()));
                let busy = f64::from(registry.get(key.to).busy_permille) / 1_000.0;
                self.measure(now, key, registry, one_way_us, busy)
            })
            .collect();
        (links, clocks.clamped())
    }

    fn measure(
        &self,
        now: Duration,
        key: LinkKey,
        registry: &Registry,
        one_way_us: Option<i64>,
        utilisation: f64,
    ) -> Measured {
        let usable = self.usable_both(now, key.from, key.to, key.uplink, registry);
        let (receiver, sender) = self.ends(now, key, registry);
        let best = receiver.or(sender);
        let rtt_us = [receiver, sender]
            .into_iter()
            .flatten()
            .filter_map(|view| view.rtt_min_us)
            .min();
        let loss_ppm = receiver
            .map(|view| view.loss_in_ppm)
            .or(sender.map(|view| view.loss_out_ppm))
            .unwrap_or(0);
        let loss = (f64::from(loss_ppm) / 1e6).clamp(0.0, 1.0);
        let rtt_ms = rtt_us.map(|us| f64::from(us) / 1_000.0);
        let one_way_ms = one_way_us.map(|us| us as f64 / 1_000.0);
        let delay_ms = one_way_ms.or(rtt_ms.map(|rtt| rtt / 2.0));
        let metrics = match (usable, delay_ms) {
            (Usable::Yes, Some(delay_ms)) => {
                let said = best.map_or(0, |view| u64::from(view.loss_probes));
                let probes = if said > 0 { said } else { LOSS_PROBES };
                let lost = (loss * probes as f64).round() as u64;
                Some(LinkMetrics {
                    delay_ms,
                    rtt_dev_ms: best.map_or(0.0, |view| f64::from(view.rtt_deviation_us) / 1_000.0),
                    loss: confident_loss(lost, probes),
                    utilisation,
                    price_ms: 0.0,
                })
            }
            _ => None,
        };
        Measured {
            key,
            usable,
            one_way_ms: one_way_ms.filter(|_| usable == Usable::Yes),
            rtt_ms: rtt_ms.filter(|_| usable == Usable::Yes),
            loss,
            metrics,
        }
    }

    /// What the link's receiving and sending end say, as far as it counts.
    fn ends(
        &self,
        now: Duration,
        key: LinkKey,
        registry: &Registry,
    ) -> (Option<&View>, Option<&View>) {
        let receiver = self.views.get(&(key.to, key.from, key.uplink));
        let sender = self.views.get(&(key.from, key.to, key.uplink));
        let (to, from) = (
            registry.get(key.to).is_online(),
            registry.get(key.from).is_online(),
        );
        // An online relay speaks for itself every second; one that is offline is quoted only
        // where nobody else can say anything.
        let fresh = |by: RelayIndex| move |view: &&View| self.is_fresh(now, by, view);
        let receiver_counts = receiver.filter(|view| if to { fresh(key.to)(view) } else { !from });
        let sender_counts = sender.filter(|view| if from { fresh(key.from)(view) } else { !to });
        match (receiver_counts, sender_counts) {
            (None, None) => (
                receiver.filter(|_| !to && sender.is_none()),
                sender.filter(|_| !from && receiver.is_none()),
            ),
            ends => ends,
        }
    }

    /// One connection carries both directions: what stops one stops the other.
    fn usable_both(
        &self,
        now: Duration,
        a: RelayIndex,
        b: RelayIndex,
        uplink: Uplink,
        registry: &Registry,
    ) -> Usable {
        let (one, other) = self.ends(
            now,
            LinkKey {
                from: a,
                to: b,
                uplink,
            },
            registry,
        );
        let mut combined = Usable::Unknown;
        let mut doubt = false;
        for view in [one, other].into_iter().flatten() {
            match view.state {
                State::Down => return Usable::Down,
                _ if view.outlived => return Usable::Down,
                State::Up => combined = Usable::Yes,
                State::Unknown | State::Unspecified => doubt = true,
            }
        }
        if doubt { Usable::Unknown } else { combined }
    }

    /// Whether what `by` has said is not too old: when it said it, or that nothing has changed since.
    fn is_fresh(&self, now: Duration, by: RelayIndex, view: &View) -> bool {
        let confirmed = self.confirmed.get(&by).filter(|_| !view.outlived);
        let at = confirmed.map_or(view.at, |&confirmed| confirmed.max(view.at));
        now < at + VIEW_LIFETIME
    }

    /// How fast the relays' clocks run against each other.
    fn drifts(&self, now: Duration, registry: &Registry) -> Drifts {
        let measured: Vec<(usize, usize, f64)> = self
            .views
            .iter()
            .filter(|(_, view)| view.state == State::Up && view.drift_ppb != 0)
            .filter(|&(&(by, ..), view)| self.is_fresh(now, by, view))
            .map(|(&(by, peer, _), view)| {
                (by.as_usize(), peer.as_usize(), f64::from(view.drift_ppb))
            })
            .collect();
        solve_drifts(registry.len(), &measured)
    }

    /// The raw one-way difference as it is now: the receiver's own, else what its peer was told.
    fn raw_us(
        &self,
        now: Duration,
        key: LinkKey,
        registry: &Registry,
        drifts: &Drifts,
    ) -> Option<i64> {
        if self.usable_both(now, key.from, key.to, key.uplink, registry) != Usable::Yes {
            return None;
        }
        let (receiver, sender) = self.ends(now, key, registry);
        let received = receiver
            .filter(|view| self.is_fresh(now, key.to, view))
            .and_then(|view| Some((view.raw_us?.0, view.raw_at)));
        let sent = sender
            .filter(|view| self.is_fresh(now, key.from, view))
            .and_then(|view| Some((view.raw_us?.1, view.raw_at)));
        let (raw_us, at) = received.or(sent)?;
        let age = now.saturating_sub(at);
        Some(drifts.later(raw_us, key.from.as_usize(), key.to.as_usize(), age))
    }
}
