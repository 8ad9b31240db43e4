//! `tradewind-bench planner`: time and memory of plans, by the number of relays.

use std::time::Duration;

use clap::Args;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::Serialize;
use serde_json::json;
use tradewind_host::{Host, OsHost};
use tradewind_routing::{
    CostMatrix, MAX_TRANSIT, Planner, PlannerConfig, PlannerInput, ProfileInput, TreeRules,
    backups, best_paths, in_trees, out_trees,
};

/// Time and memory of a full plan and of steps, for one profile, on one core.
#[derive(Debug, Args)]
pub(crate) struct PlannerArgs {
    /// Numbers of relays, in full mesh.
    #[arg(long, value_delimiter = ',', default_value = "100,250,500,1000")]
    relays: Vec<usize>,
    /// Each figure is the least of so many runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Of the network.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Of one profile. Milliseconds, unless said otherwise.
#[derive(Debug, Clone, Serialize)]
struct Row {
    relays: usize,
    links: usize,
    /// The optimum of every pair over at most 4 transit relays.
    best_paths_ms: f64,
    in_trees_ms: f64,
    /// In-trees and out-trees: the paths of a plan.
    trees_ms: f64,
    reactions_ms: f64,
    /// The planner's first plan: trees, reactions, checks, tables.
    full_plan_ms: f64,
    /// Steps of the planner afterwards: nothing has changed,
    step_same_ms: f64,
    /// ten links have changed by up to 5 %,
    step_10_links_ms: f64,
    /// one link in a hundred has,
    step_1_percent_ms: f64,
    /// a link that is in use is gone, and a new plan follows.
    step_failure_ms: f64,
    /// Relays without a reaction for some destination and failing neighbour.
    unprotected: usize,
    /// Most memory in use by the full plan and the steps beyond what was in use before, MiB.
    planner_mib: Option<f64>,
}

pub(crate) fn run(args: &PlannerArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.relays.iter().all(|&n| (2..=5_000).contains(&n)),
        "--relays takes numbers from 2 to 5000"
    );
    let mut rows = Vec::new();
    for &relays in &args.relays {
        if !args.json {
            eprintln!("{relays} relays …");
        }
        rows.push(measure(relays, args));
    }
    let growth = growth(&rows);
    if args.json {
        let report = json!({ "profiles": 1, "rows": rows, "growth_exponents": growth });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    println!(
        "One profile, full mesh, one core; milliseconds.\n\n\
         relays    paths  in-trees  in+out  reactions  full plan |  step: same  10 links    1 %  \
         failure | MiB"
    );
    for row in &rows {
        println!(
            "{:6} {:8.1} {:9.1} {:7.1} {:10.1} {:10.1} | {:11.2} {:9.2} {:6.1} {:8.1} | {}",
            row.relays,
            row.best_paths_ms,
            row.in_trees_ms,
            row.trees_ms,
            row.reactions_ms,
            row.full_plan_ms,
            row.step_same_ms,
            row.step_10_links_ms,
            row.step_1_percent_ms,
            row.step_failure_ms,
            row.planner_mib
                .map_or("-".to_owned(), |mib| format!("{mib:.0}")),
        );
    }
    for (name, exponent) in &growth {
        println!("{name} grows as relays^{exponent:.1}");
    }
    Ok(())
}

fn measure(n: usize, args: &PlannerArgs) -> Row {
    let cost = network(n, args.seed);
    let rules = TreeRules::default();
    let least = |act: &mut dyn FnMut()| {
        (0..args.runs)
            .map(|_| timed(&mut *act))
            .fold(f64::INFINITY, f64::min)
    };
    let best_paths_ms = least(&mut || drop(best_paths(&cost, MAX_TRANSIT)));
    let in_trees_ms = least(&mut || drop(in_trees(&cost, &rules)));
    let out_trees_ms = least(&mut || drop(out_trees(&cost, &rules)));
    let reactions_ms = least(&mut || drop(backups(&cost, &rules)));

    let before = reset_peak();
    let mut full_plan_ms = f64::INFINITY;
    let mut asked = Asked::new(n);
    for _ in 0..args.runs {
        asked = Asked::new(n);
        full_plan_ms = full_plan_ms.min(asked.step(&cost));
    }
    asked.step(&cost);
    let step_same_ms = (0..args.runs)
        .map(|_| asked.step(&cost))
        .fold(f64::INFINITY, f64::min);
    let mut rng = Pcg64::seed_from_u64(args.seed + 1);
    let mut with_noise = |links: usize| {
        let mut steps = Vec::new();
        for _ in 0..args.runs {
            let mut noisy = cost.clone();
            for _ in 0..links {
                let (from, to) = (rng.random_range(0..n), rng.random_range(0..n));
                let factor = rng.random_range(0.95..1.05);
                noisy.set(from, to, factor * cost.get(from, to));
            }
            steps.push(asked.step(&noisy));
            asked.step(&cost);
        }
        steps.into_iter().fold(f64::INFINITY, f64::min)
    };
    let step_10_links_ms = with_noise(10);
    let step_1_percent_ms = with_noise(n * n / 100);
    let mut failed = cost.clone();
    let path = asked.path(0, n - 1);
    failed.set(path[0], path[1], f64::INFINITY);
    let step_failure_ms = asked.step(&failed);
    let planner_mib = before.and_then(|before| Some((peak()? - before).max(0.0)));
    let unprotected = asked
        .planner
        .tables()
        .map_or(0, |tables| tables.profiles[0].unprotected().count);
    Row {
        relays: n,
        links: cost.link_count(),
        best_paths_ms,
        in_trees_ms,
        trees_ms: in_trees_ms + out_trees_ms,
        reactions_ms,
        full_plan_ms,
        step_same_ms,
        step_10_links_ms,
        step_1_percent_ms,
        step_failure_ms,
        unprotected,
        planner_mib,
    }
}

/// A planner that is asked twice a second.
struct Asked {
    planner: Planner,
    names: Vec<String>,
    live: Vec<bool>,
    now: Duration,
}

impl Asked {
    fn new(n: usize) -> Self {
        Self {
            planner: Planner::new(PlannerConfig::default()),
            names: (0..n).map(|relay| format!("relay-{relay}")).collect(),
            live: vec![true; n],
            now: Duration::ZERO,
        }
    }

    /// One step, and how many milliseconds it takes.
    fn step(&mut self, cost: &CostMatrix) -> f64 {
        self.now += Duration::from_millis(500);
        let profiles = [ProfileInput {
            cost,
            rules: &[TreeRules::default()],
            pins: &[],
            demand: &[],
            latency_bound: None,
        }];
        let input = PlannerInput {
            now: self.now,
            names: &self.names,
            live: &self.live,
            expected_live: self.names.len(),
            profiles: &profiles,
            capacity: &[],
        };
        let planner = &mut self.planner;
        timed(&mut || drop(planner.step(&input)))
    }

    fn path(&self, from: usize, to: usize) -> Vec<usize> {
        let tables = self.planner.tables().map(|tables| &tables.profiles[0]);
        tables
            .and_then(|tables| tables.path(0, from, to))
            .unwrap_or_else(|| vec![from, to])
    }
}

fn timed(act: &mut dyn FnMut()) -> f64 {
    let host: &dyn Host = &OsHost;
    let begin = host.now();
    act();
    (host.now() - begin).as_secs_f64() * 1e3
}

/// Places on a map in clusters, as towns are; links as long as the distance, each direction made
/// longer by a route of its own: what round-trip times between real places look like.
fn network(n: usize, seed: u64) -> CostMatrix {
    let mut rng = Pcg64::seed_from_u64(seed);
    let places = places(n, &mut rng);
    CostMatrix::from_fn(n, |i, j| {
        let (dx, dy) = (places[i].0 - places[j].0, places[i].1 - places[j].1);
        let stretch: f64 = rng.random_range(0.0..1.0);
        0.5 + dx.hypot(dy) * (1.0 + 2.0 * stretch * stretch * stretch)
    })
}

/// Places in clusters on a map of 150 by 80.
pub(crate) fn places(n: usize, rng: &mut Pcg64) -> Vec<(f64, f64)> {
    let towns: Vec<(f64, f64)> = (0..n.div_ceil(12).max(4))
        .map(|_| (rng.random_range(0.0..150.0), rng.random_range(0.0..80.0)))
        .collect();
    (0..n)
        .map(|_| {
            let town = towns[rng.random_range(0..towns.len())];
            let near = rng.random_range(-3.0..3.0);
            (town.0 + near, town.1 + rng.random_range(-3.0..3.0))
        })
        .collect()
}

/// By how much each thing grows from the smallest to the greatest number: the exponent.
fn growth(rows: &[Row]) -> Vec<(&'static str, f64)> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Vec::new();
    };
    if first.relays == last.relays {
        return Vec::new();
    }
    let exponent = |of: fn(&Row) -> f64| {
        (of(last) / of(first)).ln() / (last.relays as f64 / first.relays as f64).ln()
    };
    vec![
        ("paths", exponent(|row| row.best_paths_ms)),
        ("trees", exponent(|row| row.trees_ms)),
        ("reactions", exponent(|row| row.reactions_ms)),
        ("full plan", exponent(|row| row.full_plan_ms)),
        ("step without change", exponent(|row| row.step_same_ms)),
    ]
}

/// Has the kernel forget the peak; what is in use now, MiB. `None` where it cannot be known.
pub(crate) fn reset_peak() -> Option<f64> {
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    peak()
}

/// The most memory that has been resident, MiB.
pub(crate) fn peak() -> Option<f64> {
    status("VmHWM:")
}

/// A figure of this process that the kernel keeps in KiB, in MiB.
pub(crate) fn status(name: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_measured_and_growth_is_an_exponent() {
        let args = PlannerArgs {
            relays: vec![],
            runs: 1,
            seed: 1,
            json: false,
        };
        let rows = [measure(6, &args), measure(24, &args)];
        assert_eq!((rows[0].links, rows[1].links), (30, 24 * 23));
        assert_eq!(rows[1].unprotected, 0);
        assert!(rows.iter().all(|row| row.full_plan_ms > 0.0));
        let mut cubic = rows.clone();
        cubic[0].trees_ms = 1.0;
        cubic[1].trees_ms = 64.0;
        let growth = growth(&cubic);
        assert!((growth[1].1 - 3.0).abs() < 1e-9, "{growth:?}");
    }
}
