//! `tradewind-bench day`: a day of a network, simulated with the estimators and the planner that
//! relays and controller use, without packets.
//!
//! Every pair of relays probes once a second in both directions (a tenth of the rate of links in
//! use, so that failures are noticed three times later than in truth; but all links are measured
//! as well as that). Clocks agree: solving clocks is tested where it is done. Each second the
//! planner gets the costs that follow from the estimates.

use std::time::Duration;

use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;
use tradewind_routing::{
    CostMatrix, CostWeights, EstimatorConfig, LinkMetrics, LinkState, MAX_TRANSIT, Planner,
    PlannerConfig, PlannerInput, ProbeSession, ProfileInput, TreeRules, best_paths, link_cost,
};

const SECOND_US: u64 = 1_000_000;
/// The share of probes lost by accident on links that work.
const LOSS: f64 = 1.0 / 2_000.0;
/// A way counts as off the best one when it costs this many times as much, or more.
const OFF: f64 = 1.05;
/// What is not counted at the beginning: the first plan is made on links that have just come up.
const WARM_UP_S: u64 = 60;

/// A day of a network whose delays swing.
#[derive(Debug, Args)]
pub(crate) struct DayArgs {
    /// How many relays.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(2..=200))]
    relays: u16,
    /// How long, in hours of network time.
    #[arg(long, default_value_t = 24.0)]
    hours: f64,
    /// Of the network and its day.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// What became of a day.
#[derive(Debug, Clone, Serialize)]
struct Report {
    relays: usize,
    hours: f64,
    plans: usize,
    /// Pairs whose path changed from one second to the next.
    path_changes: usize,
    path_changes_per_pair_and_hour: f64,
    /// Outages of links and of relays, and routes that became longer for a while.
    link_outages: usize,
    relay_outages: usize,
    detours: usize,
    /// Share of pairs and seconds with a path that costs over 5 % more than the best one does at
    /// that moment, or is broken while another way exists; percent.
    off_best_percent: f64,
    /// The part of it in which the path is broken.
    broken_percent: f64,
    /// Mean cost of the paths used over that of the best ones.
    stretch: f64,
    /// The same, had everything gone directly.
    direct_stretch: f64,
}

pub(crate) fn run(args: &DayArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.hours > 0.05 && args.hours <= 1_000.0,
        "--hours takes 0.05 to 1000"
    );
    let seconds = (args.hours * 3_600.0) as u64;
    let progress = |second: u64| {
        if !args.json && second.is_multiple_of(600) {
            eprint!(
                "\r{:5.1} of {:.1} hours",
                second as f64 / 3_600.0,
                args.hours
            );
        }
    };
    let report = simulate(usize::from(args.relays), seconds, args.seed, progress);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    eprintln!();
    println!(
        "{} relays, {:.1} hours; {} outages of links, {} of relays, {} detours\n\
         plans                 {}\n\
         path changes          {} ({:.2} per pair and hour)\n\
         time off the best     {:.3} % (over 5 % dearer, of all pairs and seconds), of which broken \
         {:.3} %\n\
         cost over the best    {:.2} % (direct: {:.1} %)",
        report.relays,
        report.hours,
        report.link_outages,
        report.relay_outages,
        report.detours,
        report.plans,
        report.path_changes,
        report.path_changes_per_pair_and_hour,
        report.off_best_percent,
        report.broken_percent,
        100.0 * (report.stretch - 1.0),
        100.0 * (report.direct_stretch - 1.0),
    );
    Ok(())
}

fn simulate(n: usize, seconds: u64, seed: u64, progress: impl Fn(u64)) -> Report {
    let mut world = World::new(n, seed);
    let mut probes = Probes::new(n);
    let mut planner = Planner::new(PlannerConfig::default());
    let names: Vec<String> = (0..n).map(|relay| format!("relay-{relay}")).collect();
    let rules = [TreeRules::default()];
    let mut before: Option<Vec<Option<Vec<usize>>>> = None;
    let mut tally = Tally::default();
    for second in 0..seconds {
        progress(second);
        world.pass(second);
        probes.pass(second, &mut world);
        let cost = probes.costs(second, &world);
        // A dead relay says nothing, and nothing comes from it.
        let live: Vec<bool> = (0..n).map(|relay| !world.is_dead(relay, second)).collect();
        let decision = planner.step(&PlannerInput {
            now: Duration::from_secs(second),
            names: &names,
            live: &live,
            expected_live: n,
            profiles: &[ProfileInput {
                cost: &cost,
                rules: &rules,
                pins: &[],
                demand: &[],
                latency_bound: None,
            }],
            capacity: &[],
        });
        tally.plans += usize::from(decision.changed && second >= WARM_UP_S);
        let Some(tables) = planner.tables().map(|tables| &tables.profiles[0]) else {
            continue;
        };
        if decision.changed || before.is_none() {
            let paths = (0..n * n).map(|pair| tables.path(0, pair / n, pair % n));
            let paths: Vec<_> = paths.collect();
            if let Some(before) = before.filter(|_| second >= WARM_UP_S) {
                tally.path_changes += before.iter().zip(&paths).filter(|(a, b)| a != b).count();
            }
            before = Some(paths);
        }
        if second >= WARM_UP_S {
            tally.compare(&world.costs(second), before.as_deref().unwrap_or_default());
        }
    }
    tally.report(n, seconds, &world)
}

/// Sums over pairs and seconds.
#[derive(Debug, Default)]
struct Tally {
    plans: usize,
    path_changes: usize,
    seen: u64,
    off: u64,
    broken: u64,
    used: f64,
    best: f64,
    direct: f64,
    best_of_direct: f64,
}

impl Tally {
    fn compare(&mut self, truth: &CostMatrix, paths: &[Option<Vec<usize>>]) {
        let n = truth.len();
        let best = best_paths(truth, MAX_TRANSIT);
        for (pair, path) in paths.iter().enumerate() {
            let (from, to) = (pair / n, pair % n);
            let least = best.cost(from, to);
            if from == to || !least.is_finite() {
                continue;
            }
            let cost = path.as_ref().map_or(f64::INFINITY, |path| {
                path.windows(2)
                    .map(|link| truth.get(link[0], link[1]))
                    .sum()
            });
            self.seen += 1;
            self.off += u64::from(cost > OFF * least);
            if cost.is_finite() {
                self.used += cost;
                self.best += least;
            } else {
                self.broken += 1;
            }
            if truth.is_up(from, to) {
                self.direct += truth.get(from, to);
                self.best_of_direct += least;
            }
        }
    }

    fn report(&self, n: usize, seconds: u64, world: &World) -> Report {
        let hours = seconds as f64 / 3_600.0;
        let percent = |count: u64| 100.0 * count as f64 / self.seen.max(1) as f64;
        Report {
            relays: n,
            hours,
            plans: self.plans,
            path_changes: self.path_changes,
            path_changes_per_pair_and_hour: self.path_changes as f64 / (n * (n - 1)) as f64 / hours,
            link_outages: world.link_outages,
            relay_outages: world.relay_outages,
            detours: world.detours,
            off_best_percent: percent(self.off),
            broken_percent: percent(self.broken),
            stretch: self.used / self.best,
            direct_stretch: self.direct / self.best_of_direct,
        }
    }
}

/// The network as it truly is.
struct World {
    n: usize,
    rng: Pcg64,
    /// Hours ahead of UTC, by where the relay is.
    zone: Vec<f64>,
    links: Vec<Link>,
    dead_until: Vec<u64>,
    second: u64,
    link_outages: usize,
    relay_outages: usize,
    detours: usize,
}

/// One directed link.
#[derive(Clone)]
struct Link {
    base_ms: f64,
    /// What the busiest hour adds.
    swing_ms: f64,
    /// Utilisation at the busiest hour.
    busiest: f64,
    down_until: u64,
    detour_until: u64,
    detour_ms: f64,
}

impl World {
    fn new(n: usize, seed: u64) -> Self {
        let mut rng = Pcg64::seed_from_u64(seed);
        let places: Vec<(f64, f64)> = (0..n)
            .map(|_| (rng.random_range(0.0..150.0), rng.random_range(0.0..60.0)))
            .collect();
        let mut links = Vec::with_capacity(n * n);
        for pair in 0..n * n {
            let (a, b) = (places[pair / n], places[pair % n]);
            let distance = (a.0 - b.0).hypot(a.1 - b.1);
            let stretch: f64 = rng.random_range(0.0..1.0);
            links.push(Link {
                base_ms: 1.0 + distance * (1.0 + 1.5 * stretch * stretch),
                swing_ms: distance * rng.random_range(0.0..0.4),
                busiest: rng.random_range(0.2..0.85),
                down_until: 0,
                detour_until: 0,
                detour_ms: 0.0,
            });
        }
        Self {
            n,
            rng,
            zone: places.iter().map(|place| place.0 / 150.0 * 24.0).collect(),
            links,
            dead_until: vec![0; n],
            second: 0,
            link_outages: 0,
            relay_outages: 0,
            detours: 0,
        }
    }

    /// What happens within a second: every link fails once in two days and is detoured once a day,
    /// every relay dies once in four days.
    fn pass(&mut self, second: u64) {
        self.second = second;
        let n = self.n;
        for pair in (0..n * n).filter(|pair| pair / n != pair % n) {
            if self.rng.random_bool(1.0 / (2.0 * 86_400.0)) {
                self.link_outages += 1;
                self.links[pair].down_until = second + self.rng.random_range(5..300);
            }
            if self.rng.random_bool(1.0 / 86_400.0) {
                self.detours += 1;
                let link = &mut self.links[pair];
                link.detour_until = second + self.rng.random_range(300..7_200);
                link.detour_ms = link.base_ms * self.rng.random_range(0.2..1.5);
            }
        }
        for relay in 0..n {
            if self.rng.random_bool(1.0 / (4.0 * 86_400.0)) {
                self.relay_outages += 1;
                self.dead_until[relay] = second + self.rng.random_range(10..120);
            }
        }
    }

    fn is_dead(&self, relay: usize, second: u64) -> bool {
        second < self.dead_until[relay]
    }

    /// How busy the hour is where a link runs, 0..=1: least at 8 in the morning by local time, most
    /// at 8 in the evening.
    fn busy(&self, from: usize, to: usize, second: u64) -> f64 {
        let ends = [from, to].map(|end| {
            let hour = second as f64 / 3_600.0 + self.zone[end];
            0.5 - 0.5 * ((hour - 8.0) / 24.0 * std::f64::consts::TAU).cos()
        });
        (ends[0] + ends[1]) / 2.0
    }

    /// One-way delay in milliseconds without a single packet's bad luck; `None` while down.
    fn delay_ms(&self, from: usize, to: usize, second: u64) -> Option<f64> {
        let link = &self.links[from * self.n + to];
        if second < link.down_until || self.is_dead(from, second) || self.is_dead(to, second) {
            return None;
        }
        let detour = match second < link.detour_until {
            true => link.detour_ms,
            false => 0.0,
        };
        Some(link.base_ms + detour + link.swing_ms * self.busy(from, to, second))
    }

    fn utilisation(&self, from: usize, to: usize, second: u64) -> f64 {
        self.links[from * self.n + to].busiest * self.busy(from, to, second)
    }

    /// What links truly cost.
    fn costs(&self, second: u64) -> CostMatrix {
        CostMatrix::from_fn(self.n, |from, to| {
            let Some(delay_ms) = self.delay_ms(from, to, second) else {
                return f64::INFINITY;
            };
            let metrics = LinkMetrics {
                delay_ms,
                rtt_dev_ms: 0.0,
                loss: 0.0,
                utilisation: self.utilisation(from, to, second),
                price_ms: 0.0,
            };
            link_cost(&metrics, &CostWeights::default()).total()
        })
    }

    /// How long one probe takes, microseconds: most wait a little, some long, and a few are lost.
    fn probe_us(&mut self, from: usize, to: usize, second: u64) -> Option<u64> {
        let delay_ms = self.delay_ms(from, to, second)?;
        if self.rng.random_bool(LOSS) {
            return None;
        }
        let uniform: f64 = self.rng.random_range(1e-9..1.0);
        let mean = 0.15 + 0.6 * self.busy(from, to, second);
        Some(((delay_ms - mean * uniform.ln()) * 1e3) as u64)
    }
}

/// Both ends of the probing of all pairs.
struct Probes {
    n: usize,
    /// `ends[a * n + b]`: the end at `a` of the link to `b`.
    ends: Vec<ProbeSession>,
}

impl Probes {
    fn new(n: usize) -> Self {
        let every = Duration::from_secs(1);
        Self {
            n,
            ends: (0..n * n)
                .map(|end| ProbeSession::new(end as u32 + 1, every, EstimatorConfig::default()))
                .collect(),
        }
    }

    /// Every end sends one probe, and gets that of the other end.
    fn pass(&mut self, second: u64, world: &mut World) {
        let n = self.n;
        let now_us = second * SECOND_US;
        for a in 0..n {
            for b in a + 1..n {
                let there = self.ends[a * n + b].next_probe(now_us);
                let back = self.ends[b * n + a].next_probe(now_us);
                if let Some(us) = world.probe_us(a, b, second) {
                    self.ends[b * n + a].on_probe(now_us + us, &there);
                }
                if let Some(us) = world.probe_us(b, a, second) {
                    self.ends[a * n + b].on_probe(now_us + us, &back);
                }
            }
        }
    }

    /// What links seem to cost at the end of the second.
    fn costs(&mut self, second: u64, world: &World) -> CostMatrix {
        let n = self.n;
        let now_us = (second + 1) * SECOND_US - 1;
        CostMatrix::from_fn(n, |from, to| {
            let estimate = self.ends[from * n + to].estimate(now_us);
            let (LinkState::Up, Some(raw_us)) = (estimate.state, estimate.raw_out_us) else {
                return f64::INFINITY;
            };
            let loss = estimate.loss_out.map_or(0.0, |loss| {
                tradewind_routing::cost::confident_loss(loss.lost.into(), loss.sent.into())
            });
            let metrics = LinkMetrics {
                delay_ms: raw_us as f64 / 1e3,
                rtt_dev_ms: estimate.rtt_dev.map_or(0.0, |dev| dev.as_secs_f64() * 1e3),
                loss,
                utilisation: world.utilisation(from, to, second),
                price_ms: 0.0,
            };
            link_cost(&metrics, &CostWeights::default()).total()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_two_hours_ways_are_the_best_ones_and_change_seldom() {
        let report = simulate(8, 2 * 3_600, 3, |_| ());
        assert!(report.off_best_percent <= 1.0, "{report:?}");
        assert!(report.path_changes_per_pair_and_hour < 2.0, "{report:?}");
        assert!(report.stretch < 1.005, "{report:?}");
        assert!(
            report.direct_stretch > 1.02,
            "a network with nothing to gain proves nothing: {report:?}"
        );
        assert!(report.detours > 0 && report.path_changes > 0, "{report:?}");
    }

    #[test]
    fn the_same_seed_has_the_same_day() {
        let day = || format!("{:?}", simulate(5, 600, 9, |_| ()));
        assert_eq!(day(), day());
    }
}
