//! What is done to a network at work: faults, and the steady flows across them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::seq::SliceRandom as _;
use tokio::task::JoinSet;
use tradewind_host::{Host, Rng};
use tradewind_wan::{LinkSpec, Overtaking, PlaceId};

use super::{
    builder::Builder,
    faults::{Fault, FaultKind, Who, Worse},
    ground::{Applied, Ground},
    invariants::{self, PlanInForce, Violation},
    report::FaultOutcome,
    seeds,
    steady::{self, AFTER, BEFORE, FlowGap, MOST_FLOWS, PACE, Seen},
    traffic::{STEADY, Traffic},
};

/// When it is to be the busiest relay, flows across so many candidates are begun.
const CANDIDATES: usize = 3;
/// On a link in disorder packets are late by up to so much.
const LATE_BY: Duration = Duration::from_millis(40);
/// What carries most at a moment is decided by so long before it.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Does things to the network, and keeps a list of them.
pub(super) struct Acts<'a> {
    builder: &'a Builder<'a>,
    traffic: &'a Traffic,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    applied: Vec<Applied>,
    /// What the links were like at first, by (from · n + to).
    specs: Vec<Option<LinkSpec>>,
    /// Packets that relays dropped because they would have gone in circles, in lives of theirs
    /// that are over.
    looped: u64,
}

/// A fault that was played, with the steady flows that were begun for it.
pub(super) struct Played {
    pub(super) fault: Applied,
    /// Until when (since measuring began) its flows are judged.
    pub(super) until: Duration,
    pub(super) pairs: Vec<(usize, usize)>,
}

/// What happens when, since measuring began.
enum Step {
    Snapshot,
    Flows(usize),
    Fault(usize),
}

impl<'a> Acts<'a> {
    pub(super) fn new(builder: &'a Builder<'a>, traffic: &'a Traffic) -> Self {
        let places = &builder.places;
        let specs = places
            .iter()
            .flat_map(|&from| places.iter().map(move |&to| builder.wan.link(from, to)))
            .collect();
        Self {
            builder,
            traffic,
            inner: Mutex::new(Inner {
                specs,
                ..Inner::default()
            }),
        }
    }

    /// Lets all faults happen when they shall, with steady flows across those that were asked for.
    pub(super) async fn play(&self, faults: &[Fault]) -> anyhow::Result<Vec<Played>> {
        let scenario = self.builder.scenario;
        let asked_for = scenario.mode == super::options::Mode::Traffic;
        let mut steps = Vec::new();
        for (index, fault) in faults.iter().enumerate() {
            if asked_for && fault.what.hits_ways() {
                steps.push((fault.at.saturating_sub(BEFORE), Step::Flows(index)));
            }
            if fault.what == FaultKind::Kill(Who::Busiest) {
                steps.push((fault.at.saturating_sub(BUSY_FOR), Step::Snapshot));
            }
            steps.push((fault.at, Step::Fault(index)));
        }
        steps.sort_by_key(|step| step.0);
        let mut flows = JoinSet::new();
        let mut pairs = vec![Vec::new(); faults.len()];
        let mut transit = vec![0; self.n()];
        let mut played: Vec<Played> = Vec::new();
        for (at, step) in steps {
            self.builder.wan.sleep_until(self.origin() + at).await;
            match step {
                Step::Snapshot => transit = self.builder.watched.trails.transit(),
                Step::Flows(index) => {
                    let fault = faults[index];
                    let mut rng = seeds::rng(scenario.seed, seeds::STEADY, index as u64);
                    pairs[index] = self.pairs_across(fault.what, MOST_FLOWS, &mut rng);
                    let until = self.origin() + (fault.at + AFTER).min(scenario.duration);
                    self.traffic
                        .start_steady(&mut flows, &pairs[index], PACE, until);
                }
                Step::Fault(index) => {
                    let fault = faults[index];
                    let what = match fault.what {
                        FaultKind::Kill(Who::Busiest) => {
                            FaultKind::Kill(Who::Relay(self.busiest(&transit)))
                        }
                        what => what,
                    };
                    self.apply(what).await?;
                    for earlier in &mut played {
                        if what.heals(earlier.fault.what) {
                            earlier.until = earlier.until.min(fault.at);
                        }
                    }
                    played.push(Played {
                        fault: Applied { at: fault.at, what },
                        until: (fault.at + AFTER).min(scenario.duration),
                        pairs: std::mem::take(&mut pairs[index]),
                    });
                }
            }
        }
        while flows.join_next().await.is_some() {}
        Ok(played)
    }

    /// Does it now.
    pub(super) async fn apply(&self, what: FaultKind) -> anyhow::Result<()> {
        let builder = self.builder;
        let (wan, places) = (builder.wan, &builder.places);
        let at = wan.network_time().saturating_sub(self.origin());
        self.lock().applied.push(Applied { at, what });
        match what {
            FaultKind::Cut(a, b) => {
                for (from, to) in self.links_between(a, b) {
                    wan.cut_both(from, to);
                }
            }
            FaultKind::CutOneWay(a, b) => wan.cut(places[a], places[b]),
            FaultKind::Brownout(a, b, worse) => self.change_links(a, b, |spec| match worse {
                Worse::Delay(by) => spec.delay += by,
                Worse::Loss(ppm) => spec.loss = spec.loss.max(f64::from(ppm) / 1e6),
            }),
            FaultKind::DelayStep(a, b, us) => self.change_links(a, b, |spec| {
                let by = Duration::from_micros(us.unsigned_abs());
                spec.delay = if us < 0 {
                    spec.delay.saturating_sub(by)
                } else {
                    spec.delay + by
                };
            }),
            FaultKind::Heal(a, b) => {
                for (from, to) in self.links_between(a, b) {
                    wan.heal_both(from, to);
                }
                self.change_links(a, b, |_| {});
            }
            FaultKind::Kill(Who::Relay(relay)) => builder.relay_hosts[relay].kill(),
            FaultKind::Kill(Who::Controller) => builder.controller_host.kill(),
            FaultKind::Restart(Who::Relay(relay)) => {
                let host = &builder.relay_hosts[relay];
                self.lock().looped += looped(&builder.relays()[relay]);
                host.kill();
                host.revive();
                builder.start_relay(relay).await?;
            }
            FaultKind::Restart(Who::Controller) => {
                builder.controller_host.kill();
                builder.controller_host.revive();
                builder.start_controller()?;
            }
            // Nobody is called so: the options do not allow it, and the victim is known by now.
            FaultKind::Kill(Who::Busiest) | FaultKind::Restart(Who::Busiest) => {}
            FaultKind::Stall(relay, by) => builder.relay_hosts[relay].stall(by),
            FaultKind::StepClock(relay, s) => {
                builder.relay_hosts[relay].step_wall_clock(s * 1_000_000);
            }
            FaultKind::Drift(relay, ppm) => builder.relay_hosts[relay].set_drift(ppm.into()),
            FaultKind::SlowDisk(relay, by) => builder.relay_hosts[relay].set_disk_wait(by),
            FaultKind::ControlLoss(ppm) => {
                for &place in places {
                    let centre = builder.controller_place;
                    for (from, to) in [(place, centre), (centre, place)] {
                        if let Some(mut spec) = wan.link(from, to) {
                            spec.loss = f64::from(ppm) / 1e6;
                            wan.set_link(from, to, spec);
                        }
                    }
                }
            }
            FaultKind::Drain(relay, within) => {
                let host: Arc<dyn Host> = builder.relay_hosts[relay].clone();
                let relay = builder.relays()[relay].clone();
                host.spawn(async move { relay.drain(within).await });
            }
            FaultKind::Disorder(a, b, ppm) => self.change_links(a, b, |spec| {
                let share = f64::from(ppm) / 1e6;
                spec.duplicate = share;
                spec.overtaking = Some(Overtaking { share, by: LATE_BY });
            }),
            FaultKind::Roam(user, place, access) => {
                if let Some(host) = builder.user_host(user) {
                    wan.move_host(host, places[place]);
                    host.set_access_delay(access);
                }
            }
            FaultKind::Sleep(user, by) => {
                if let Some(host) = builder.user_host(user) {
                    host.sleep_for(by);
                }
            }
            FaultKind::Partition(relay) => wan.cut_both(places[relay], builder.controller_place),
            FaultKind::Rejoin(relay) => wan.heal_both(places[relay], builder.controller_place),
        }
        Ok(())
    }

    /// What became of the faults and of the flows across them.
    pub(super) fn judged(&self, played: Vec<Played>) -> Vec<FaultOutcome> {
        played
            .into_iter()
            .map(|played| FaultOutcome {
                flows: self.flows(&played),
                fault: played.fault,
            })
            .collect()
    }

    /// The flows that crossed the fault and for which there was a way all the time after it.
    pub(super) fn flows(&self, played: &Played) -> Vec<FlowGap> {
        let scenario = self.builder.scenario;
        let watched = self.builder.watched;
        let ground = self.ground();
        let judge = |&(from, to): &(usize, usize)| {
            let log = watched.steady.log(from, to);
            let trail = |number: u32| watched.trails.trail(&(STEADY, from, to, number));
            let seen = Seen {
                from,
                to,
                log: &log,
                trail: &trail,
            };
            let Played { fault, until, .. } = played;
            let flow = steady::judge(fault, *until, self.origin(), &scenario.matrix, &seen)?;
            let (edge_in, edge_out) = (*flow.before.first()?, *flow.before.last()?);
            let brownout = matches!(fault.what, FaultKind::Brownout(..));
            let has_way = ground.throughout(fault.at, *until, |now| {
                // A brownout's link is a way, though a bad one. No relay can help a client that
                // does not reach its edge.
                let way = brownout || now.is_connected(edge_in, edge_out);
                way && (brownout || now.is_open(from, edge_in) && now.is_open(to, edge_out))
            });
            (flow.session || has_way).then_some(flow)
        };
        played.pairs.iter().filter_map(judge).collect()
    }

    /// What did not hold of all that must.
    pub(super) fn invariants(&self, plans: &[PlanInForce]) -> Vec<Violation> {
        let relays = self.builder.relays();
        let looped = self.lock().looped + relays.iter().map(looped).sum::<u64>();
        let (ground, applied) = (self.ground(), self.applied());
        let mut found = invariants::check(&invariants::Facts {
            scenario: self.builder.scenario,
            watched: self.builder.watched,
            origin: self.origin(),
            ground: &ground,
            applied: &applied,
            plans,
            looped,
        });
        found.extend(self.builder.watched.ledger.check(&ground, &applied));
        found
    }

    /// All that was done so far.
    pub(super) fn applied(&self) -> Vec<Applied> {
        self.lock().applied.clone()
    }

    pub(super) fn ground(&self) -> Ground {
        Ground::new(&self.builder.scenario.matrix, &self.applied())
    }

    /// Pairs of places whose way crosses what will fail: at most so many, by chance, and a few more
    /// whose own edge fails.
    pub(super) fn pairs_across(
        &self,
        what: FaultKind,
        most: usize,
        rng: &mut Rng,
    ) -> Vec<(usize, usize)> {
        let ways = self.ways();
        let mut some = |what: FaultKind| {
            let crossing = ways.iter().filter_map(|(from, to, way)| {
                steady::crosses(what, way).map(|edge| (edge, (*from, *to)))
            });
            let (ends, across): (Vec<_>, Vec<_>) = crossing.partition(|(edge, _)| *edge);
            let mut chosen = Vec::new();
            for (mut pairs, most) in [(across, most), (ends, most.div_ceil(4))] {
                pairs.shuffle(rng);
                pairs.truncate(most);
                chosen.extend(pairs.into_iter().map(|(_, pair)| pair));
            }
            chosen
        };
        let mut pairs = if what == FaultKind::Kill(Who::Busiest) {
            let mut carried = vec![0; self.n()];
            for (_, _, way) in &ways {
                for &relay in way.iter().skip(1).rev().skip(1) {
                    carried[relay] += 1;
                }
            }
            let mut order: Vec<usize> = (0..self.n()).collect();
            order.sort_by_key(|&relay| std::cmp::Reverse(carried[relay]));
            let candidates = order.into_iter().take(CANDIDATES);
            candidates
                .flat_map(|relay| some(FaultKind::Kill(Who::Relay(relay))))
                .collect()
        } else {
            some(what)
        };
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    /// The way between every two clients as the relays that stamp and forward have it, by places.
    pub(super) fn ways(&self) -> Vec<(usize, usize, Vec<usize>)> {
        let n = self.n();
        let places = self.builder.scenario.places.iter().enumerate();
        let by_name: BTreeMap<&str, usize> = places
            .map(|(index, place)| (place.relay.as_str(), index))
            .collect();
        let mut next_hops = vec![None; n * n];
        for (place, relay) in self.builder.relays().iter().enumerate() {
            for route in relay.plan().routes {
                let next = route
                    .next
                    .and_then(|next| by_name.get(next.as_str()).copied());
                if let Some(&to) = by_name.get(route.to.as_str()) {
                    next_hops[place * n + to] = next;
                }
            }
        }
        let edges: Vec<Option<usize>> = (0..n).map(|place| self.traffic.edge(place)).collect();
        let mut ways = Vec::new();
        for from in 0..n {
            for to in (0..n).filter(|&to| to != from) {
                let (Some(first), Some(last)) = (edges[from], edges[to]) else {
                    continue;
                };
                let mut way = vec![first];
                let mut here = first;
                while here != last && way.len() <= n {
                    let Some(next) = next_hops[here * n + last] else {
                        break;
                    };
                    way.push(next);
                    here = next;
                }
                if here == last {
                    ways.push((from, to, way));
                }
            }
        }
        ways
    }

    fn busiest(&self, before: &[u64]) -> usize {
        let now = self.builder.watched.trails.transit();
        let carried = |relay: usize| now[relay] - before[relay];
        // The first of equals; when nothing is carried, the place that most are near to.
        let centre = self.builder.centre;
        (0..self.n())
            .max_by_key(|&relay| (carried(relay), relay == centre, std::cmp::Reverse(relay)))
            .unwrap_or(centre)
    }

    /// Gives both directions of a link what they had at first, changed.
    fn change_links(&self, a: usize, b: usize, change: impl Fn(&mut LinkSpec)) {
        let (wan, places, n) = (self.builder.wan, &self.builder.places, self.n());
        for (from, to) in [(a, b), (b, a)] {
            let spec = self.lock().specs[from * n + to].clone();
            if let Some(mut spec) = spec {
                change(&mut spec);
                wan.set_link(places[from], places[to], spec);
            }
        }
    }

    /// The places' own, and that of the controller at one of them.
    fn links_between(&self, a: usize, b: usize) -> Vec<(PlaceId, PlaceId)> {
        let builder = self.builder;
        let mut links = vec![(builder.places[a], builder.places[b])];
        for (place, other) in [(a, b), (b, a)] {
            if place == builder.centre {
                links.push((builder.controller_place, builder.places[other]));
            }
        }
        links
    }

    fn n(&self) -> usize {
        self.builder.places.len()
    }

    /// Network time at which measuring began.
    fn origin(&self) -> Duration {
        let started = self.builder.watched.started.get();
        started.copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Packets that the relay dropped because they would have visited a relay twice.
fn looped(relay: &tradewind_relay::Relay) -> u64 {
    let families = relay.registry().gather();
    let drops = families
        .iter()
        .filter(|family| family.name() == "tradewind_relay_dropped_packets_total")
        .flat_map(|family| family.get_metric());
    drops
        .filter(|metric| {
            metric
                .get_label()
                .iter()
                .any(|label| label.value() == "loop")
        })
        .map(|metric| metric.get_counter().get_value() as u64)
        .sum()
}
