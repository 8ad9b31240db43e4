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

use super::{by_link::ByLink, registry::Registry};

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
    /// Which life of the peer this is about; 0: not said.
    peer_incarnation: u64,
    /// The peer's process has restarted and this end has not noticed yet: what it says is about
    /// the peer's earlier life.
    outlived: bool,
}

/// Everything said, by (who says it, about the links to and from whom, over which uplink).
#[derive(Debug, Default)]
pub(super) struct Links {
    views: ByLink<View>,
    /// By relay, when it last reported only what has changed: all else was as it had said.
    confirmed: Vec<Option<Duration>>,
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

/// What the receiving and the sending end of a link say, as far as it counts.
type Ends<'a> = (Option<&'a View>, Option<&'a View>);

/// A directed link, and its raw one-way difference.
struct Seen {
    measured: Measured,
    raw_us: Option<i64>,
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
        if self.confirmed.len() < registry.len() {
            self.confirmed.resize(registry.len(), None);
        }
        self.confirmed[reporter.as_usize()] = report.delta.then_some(now);
        if report.delta {
            return;
        }
        let named: BTreeSet<(RelayIndex, u32)> = report
            .links
            .iter()
            .filter_map(|link| Some((registry.index_of(&link.peer)?, link.uplink)))
            .collect();
        self.views.retain_in_row(reporter, |peer, uplink| {
            named.contains(&(peer, u32::from(uplink.0)))
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
        let view = self.views.entry(reporter, peer, uplink, View::default);
        let begun_anew = link.packets_received < view.packets_received
            || link.peer_incarnation != view.peer_incarnation;
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
            peer_incarnation: link.peer_incarnation,
            outlived: view.outlived,
        };
        let after = self.usable_both(now, reporter, peer, uplink, registry);
        Changes {
            failed: before == Usable::Yes && after != Usable::Yes,
            gained: before != Usable::Yes && after == Usable::Yes,
        }
    }

    /// The process of `relay` has restarted: what it said is void, and what others say about it
    /// is about its earlier life until they notice. Some may have noticed before the relay has
    /// reached the controller.
    pub(super) fn restarted(&mut self, relay: RelayIndex, incarnation: u64) {
        self.views.retain_in_row(relay, |_, _| false);
        if let Some(confirmed) = self.confirmed.get_mut(relay.as_usize()) {
            *confirmed = None;
        }
        for view in self.views.column_mut(relay) {
            view.outlived |= view.state == State::Up && view.peer_incarnation != incarnation;
        }
    }

    /// Per relay, whether any of its links can be used.
    pub(super) fn reachable(&self, now: Duration, registry: &Registry) -> Vec<bool> {
        let mut reachable = vec![false; registry.len()];
        for (a, b, uplink, _) in self.views.iter() {
            let known = reachable[a.as_usize()] && reachable[b.as_usize()];
            if !known && self.usable_both(now, a, b, uplink, registry) == Usable::Yes {
                reachable[a.as_usize()] = true;
                reachable[b.as_usize()] = true;
            }
        }
        reachable
    }

    /// Per relay, whether others have lost it: some say so, and none of its links can be used.
    pub(super) fn cut_off(&self, now: Duration, registry: &Registry) -> Vec<bool> {
        let mut lost = vec![false; registry.len()];
        for (by, peer, _, view) in self.views.iter() {
            lost[peer.as_usize()] |= view.state == State::Down && self.is_fresh(now, by, view);
        }
        let reachable = self.reachable(now, registry);
        lost.iter()
            .zip(reachable)
            .map(|(&lost, reachable)| lost && !reachable)
            .collect()
    }

    /// All links in the order of their keys, and how many of them have a delay that others
    /// contradict (noise, drift).
    pub(super) fn measured(&self, now: Duration, registry: &Registry) -> (Vec<Measured>, usize) {
        let n = registry.len();
        let online: Vec<bool> = registry
            .iter()
            .map(|(_, relay)| relay.is_online())
            .collect();
        let drifts = self.drifts(now, registry);
        let mut seen: Vec<Seen> = Vec::with_capacity(n * n);
        for (reporter, peer, uplink, own) in self.views.iter() {
            let (up, up_peer) = (online[reporter.as_usize()], online[peer.as_usize()]);
            let back = self.views.get(peer, reporter, uplink);
            let ends = self.those_that_count(now, (peer, back, up_peer), (reporter, Some(own), up));
            let key = LinkKey {
                from: reporter,
                to: peer,
                uplink,
            };
            seen.push(self.seen(now, key, ends, &drifts));
            if back.is_none() {
                let (receiver, sender) = ends;
                let key = LinkKey {
                    from: peer,
                    to: reporter,
                    uplink,
                };
                seen.push(self.seen(now, key, (sender, receiver), &drifts));
            }
        }
        // It mostly is by now.
        seen.sort_by_key(|seen| seen.measured.key);

        // Per uplink its raw differences; and of each directed link the least of them, which the
        // clocks are solved on.
        let mut by_uplink: BTreeMap<Uplink, RawDelays> = BTreeMap::new();
        for link in &seen {
            if let Some(raw_us) = link.raw_us {
                let key = link.measured.key;
                by_uplink
                    .entry(key.uplink)
                    .or_insert_with(|| RawDelays::new(n))
                    .set(key.from.as_usize(), key.to.as_usize(), Some(raw_us));
            }
        }
        let least = match by_uplink.len() {
            0 | 1 => None,
            _ => Some(least_of(n, &seen)),
        };
        let none = RawDelays::new(0);
        let raw = least.as_ref().or(by_uplink.values().next());
        let clocks = solve_clocks(raw.unwrap_or(&none));
        let mut of_uplink = None;
        let links = seen
            .into_iter()
            .map(|Seen { mut measured, .. }| {
                let key = measured.key;
                if of_uplink.is_none_or(|(uplink, _)| uplink != key.uplink) {
                    of_uplink = Some((key.uplink, by_uplink.get(&key.uplink)));
                }
                let raw = of_uplink.and_then(|(_, raw)| raw);
                let one_way_us = raw
                    .and_then(|raw| clocks.one_way_us(raw, key.from.as_usize(), key.to.as_usize()));
                measured.complete(one_way_us, registry.get(key.to).busy_permille);
                measured
            })
            .collect();
        (links, clocks.clamped())
    }

    /// What is known of a directed link without regard to others, of which one-way delays come:
    /// until then its delay is half of its round trip.
    fn seen(&self, now: Duration, key: LinkKey, ends: Ends<'_>, drifts: &Drifts) -> Seen {
        let (receiver, sender) = ends;
        let usable = usable_by(ends);
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
        let metrics = (usable == Usable::Yes).then(|| {
            let best = receiver.or(sender);
            let said = best.map_or(0, |view| u64::from(view.loss_probes));
            let probes = if said > 0 { said } else { LOSS_PROBES };
            let lost = (loss * probes as f64).round() as u64;
            LinkMetrics {
                delay_ms: rtt_ms.map_or(f64::NAN, |rtt| rtt / 2.0),
                rtt_dev_ms: best.map_or(0.0, |view| f64::from(view.rtt_deviation_us) / 1_000.0),
                loss: confident_loss(lost, probes),
                utilisation: 0.0,
                price_ms: 0.0,
            }
        });
        Seen {
            measured: Measured {
                key,
                usable,
                one_way_ms: None,
                rtt_ms: rtt_ms.filter(|_| usable == Usable::Yes),
                loss,
                metrics,
            },
            raw_us: match usable {
                Usable::Yes => self.raw_us(now, key, ends, drifts),
                _ => None,
            },
        }
    }

    /// What the link's receiving and sending end say, as far as it counts.
    fn ends(&self, now: Duration, key: LinkKey, registry: &Registry) -> Ends<'_> {
        let online = |relay| registry.get(relay).is_online();
        let receiver = self.views.get(key.to, key.from, key.uplink);
        let sender = self.views.get(key.from, key.to, key.uplink);
        self.those_that_count(
            now,
            (key.to, receiver, online(key.to)),
            (key.from, sender, online(key.from)),
        )
    }

    /// The same, of what both say: (who, what, whether it is online).
    fn those_that_count<'a>(
        &self,
        now: Duration,
        (to, receiver, to_online): (RelayIndex, Option<&'a View>, bool),
        (from, sender, from_online): (RelayIndex, Option<&'a View>, bool),
    ) -> Ends<'a> {
        // An online relay speaks for itself every second; one that is offline is quoted only
        // where nobody else can say anything.
        let counts = |by, by_online: bool, other_online: bool| {
            move |view: &&View| match by_online {
                true => self.is_fresh(now, by, view),
                false => !other_online,
            }
        };
        let receiver_counts = receiver.filter(counts(to, to_online, from_online));
        let sender_counts = sender.filter(counts(from, from_online, to_online));
        match (receiver_counts, sender_counts) {
            (None, None) => (
                receiver.filter(|_| !to_online && sender.is_none()),
                sender.filter(|_| !from_online && receiver.is_none()),
            ),
            ends => ends,
        }
    }

    fn usable_both(
        &self,
        now: Duration,
        a: RelayIndex,
        b: RelayIndex,
        uplink: Uplink,
        registry: &Registry,
    ) -> Usable {
        let key = LinkKey {
            from: a,
            to: b,
            uplink,
        };
        usable_by(self.ends(now, key, registry))
    }

    /// Whether what `by` has said is not too old: when it said it, or that nothing has changed since.
    fn is_fresh(&self, now: Duration, by: RelayIndex, view: &View) -> bool {
        let confirmed = self.confirmed.get(by.as_usize()).copied().flatten();
        let confirmed = confirmed.filter(|_| !view.outlived);
        let at = confirmed.map_or(view.at, |confirmed| confirmed.max(view.at));
        now < at + VIEW_LIFETIME
    }

    /// How fast the relays' clocks run against each other.
    fn drifts(&self, now: Duration, registry: &Registry) -> Drifts {
        let measured: Vec<(usize, usize, f64)> = self
            .views
            .iter()
            .filter(|(.., view)| view.state == State::Up && view.drift_ppb != 0)
            .filter(|&(by, .., view)| self.is_fresh(now, by, view))
            .map(|(by, peer, _, view)| (by.as_usize(), peer.as_usize(), f64::from(view.drift_ppb)))
            .collect();
        solve_drifts(registry.len(), &measured)
    }

    /// The raw one-way difference as it is now: the receiver's own, else what its peer was told.
    fn raw_us(
        &self,
        now: Duration,
        key: LinkKey,
        (receiver, sender): Ends<'_>,
        drifts: &Drifts,
    ) -> Option<i64> {
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

impl Measured {
    /// Puts in what follows from other links and from the receiver's load.
    fn complete(&mut self, one_way_us: Option<i64>, busy_permille: u32) {
        let one_way_ms = one_way_us.map(|us| us as f64 / 1_000.0);
        self.one_way_ms = one_way_ms.filter(|_| self.usable == Usable::Yes);
        if let Some(metrics) = &mut self.metrics {
            metrics.delay_ms = one_way_ms.unwrap_or(metrics.delay_ms);
            metrics.utilisation = f64::from(busy_permille) / 1_000.0;
        }
        self.metrics.take_if(|metrics| metrics.delay_ms.is_nan());
    }
}

/// One connection carries both directions: what stops one stops the other.
fn usable_by((one, other): Ends<'_>) -> Usable {
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

/// Of each directed link the least raw difference over any uplink.
fn least_of(n: usize, seen: &[Seen]) -> RawDelays {
    let mut least = RawDelays::new(n);
    for link in seen {
        let Some(raw_us) = link.raw_us else { continue };
        let key = link.measured.key;
        let (from, to) = (key.from.as_usize(), key.to.as_usize());
        if least
            .get(from, to)
            .is_none_or(|known| raw_us.wrapping_sub(known) < 0)
        {
            least.set(from, to, Some(raw_us));
        }
    }
    least
}
