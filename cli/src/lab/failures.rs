//! Many single failures, one after the other: how long steady flows across each fall silent.
//!
//! A world lives through some of them, each on a link or relay that carries something, each healed
//! and followed by a rest before the next. The worlds of one run differ by their seeds only, so
//! that each can be run again by itself.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rand::{RngExt as _, seq::IndexedRandom as _};
use serde::Serialize;
use tokio::task::JoinSet;
use tradewind_host::Rng;

use super::{
    acts::{Acts, Played},
    faults::{FaultKind, Who, Worse},
    ground::Applied,
    options::{Mode, Scenario},
    report::{FaultOutcome, Gaps},
    seeds,
    steady::PACE,
    world::{self, Watched},
};

/// Failures in one world.
const PER_WORLD: usize = 25;
/// Flows across each.
const FLOWS: usize = 16;
/// Flows begin so long before, …
const BEFORE: Duration = Duration::from_secs(1);
/// … and are watched so long after it, …
const WATCHED: Duration = Duration::from_secs(3);
/// … what was sent last included.
const LAST: Duration = Duration::from_millis(600);
/// Rest after a link is healed …
const REST: Duration = Duration::from_secs(4);
/// … and after a relay has started anew.
const REST_OF_RELAY: Duration = Duration::from_secs(7);
/// What shall be said of so many of a hundred flows.
const NEARLY_ALL: f64 = 0.01;

/// The whole report, as it is written in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct FailuresReport {
    matrix: String,
    relays: Vec<String>,
    seed: u64,
    without_controller: bool,
    /// Over all failures.
    all: Gaps,
    /// Over those of one kind.
    by_kind: BTreeMap<&'static str, Gaps>,
    failures: Vec<Failure>,
    /// What the run took in all, by the wall clock.
    wall_s: f64,
}

/// One failure.
#[derive(Debug, Serialize)]
struct Failure {
    /// Of the world: `--failures 25 --seed` this runs it again.
    seed: u64,
    at_s: f64,
    what: String,
    kind: &'static str,
    #[serde(flatten)]
    gaps: Gaps,
    /// The flow that exceeds its bound by most.
    worst: Option<Worst>,
}

#[derive(Debug, Serialize)]
struct Worst {
    from: String,
    to: String,
    gap_ms: f64,
    bound_ms: f64,
    before: Vec<String>,
    after: Vec<String>,
}

/// Runs all worlds, as many at a time as there are processors.
#[allow(clippy::disallowed_methods)] // what the run takes, for people
pub(super) fn measure(scenario: &Scenario, show: bool) -> anyhow::Result<FailuresReport> {
    let Mode::Failures {
        count,
        without_controller,
    } = scenario.mode
    else {
        bail!("no failures are asked for");
    };
    let began = Instant::now();
    let worlds: Vec<Scenario> = (0..count.div_ceil(PER_WORLD))
        .map(|world| Scenario {
            seed: scenario.seed + world as u64,
            mode: Mode::Failures {
                count: PER_WORLD.min(count - world * PER_WORLD),
                without_controller,
            },
            ..scenario.clone()
        })
        .collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || -> anyhow::Result<Vec<(usize, Vec<FaultOutcome>)>> {
        let mut outcomes = Vec::new();
        while let index = next.fetch_add(1, Relaxed)
            && let Some(world) = worlds.get(index)
        {
            let watched = Arc::new(Watched::new(world));
            let outcome = watched
                .wan
                .run(live(world, &watched))
                .with_context(|| format!("the world of seed {}", world.seed))?;
            outcomes.push((index, outcome));
            if show {
                let done = done.fetch_add(1, Relaxed) + 1;
                eprintln!("{done} of {} worlds", worlds.len());
            }
        }
        Ok(outcomes)
    };
    let mut outcomes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(worlds.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let mut outcomes = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(done) => outcomes.extend(done?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        anyhow::Ok(outcomes)
    })?;
    outcomes.sort_by_key(|outcome| outcome.0);
    let outcomes: Vec<(u64, FaultOutcome)> = outcomes
        .into_iter()
        .flat_map(|(index, faults)| {
            let seed = worlds[index].seed;
            faults.into_iter().map(move |fault| (seed, fault))
        })
        .collect();
    Ok(report(
        scenario,
        without_controller,
        &outcomes,
        began.elapsed(),
    ))
}

async fn live(scenario: &Scenario, watched: &Arc<Watched>) -> anyhow::Result<Vec<FaultOutcome>> {
    let Mode::Failures {
        count,
        without_controller,
    } = scenario.mode
    else {
        bail!("no failures are asked for");
    };
    let wan = &watched.wan;
    let (builder, traffic) = world::build(scenario, watched).await?;
    let origin = wan.network_time();
    let _ = watched.started.set(origin);
    let acts = Acts::new(&builder, &traffic);
    // The first plans settle.
    wan.sleep(REST).await;
    if without_controller {
        acts.apply(FaultKind::Kill(Who::Controller)).await?;
        wan.sleep(BEFORE).await;
    }
    let mut rng = seeds::rng(scenario.seed, seeds::FAILURES, 0);
    let mut outcomes = Vec::new();
    let mut before = None;
    while outcomes.len() < count {
        let what = choose(&acts, before, &mut rng).context("no relay has a way to another one")?;
        before = Some(what);
        let pairs = acts.pairs_across(what, FLOWS, &mut rng);
        let wait = BEFORE + Duration::from_micros(rng.random_range(0..100_000));
        let mut flows = JoinSet::new();
        let until = wan.network_time() + wait + WATCHED;
        traffic.start_steady(&mut flows, &pairs, PACE, until);
        wan.sleep(wait).await;
        let at = wan.network_time() - origin;
        acts.apply(what).await?;
        wan.sleep(WATCHED + LAST).await;
        while flows.join_next().await.is_some() {}
        let played = Played {
            fault: Applied { at, what },
            until: at + WATCHED,
            pairs,
        };
        outcomes.push(FaultOutcome {
            flows: acts.flows(&played),
            fault: played.fault,
        });
        watched.trails.clear();
        watched.steady.clear();
        let (healing, rest) = healing(what);
        acts.apply(healing).await?;
        wan.sleep(rest).await;
    }
    Ok(outcomes)
}

/// A failure of something that carries traffic now, and not what failed last.
fn choose(acts: &Acts<'_>, before: Option<FaultKind>, rng: &mut Rng) -> Option<FaultKind> {
    let ways = acts.ways();
    let mut links = Vec::new();
    let mut relays = Vec::new();
    for (_, _, way) in &ways {
        links.extend(way.windows(2).map(|link| (link[0], link[1])));
        relays.extend(way.iter().skip(1).rev().skip(1).copied());
    }
    links.sort_unstable();
    links.dedup();
    relays.sort_unstable();
    relays.dedup();
    for _ in 0..100 {
        let &(a, b) = links.choose(rng)?;
        let what = match rng.random_range(0..100) {
            0..45 => FaultKind::Cut(a, b),
            45..60 => FaultKind::CutOneWay(a, b),
            60..80 => match relays.choose(rng) {
                Some(&relay) => FaultKind::Kill(Who::Relay(relay)),
                None => FaultKind::Cut(a, b),
            },
            80..90 => {
                let by = Duration::from_millis(rng.random_range(100..300));
                FaultKind::Brownout(a, b, Worse::Delay(by))
            }
            _ => FaultKind::Brownout(a, b, Worse::Loss(rng.random_range(200_000..500_000))),
        };
        if before.is_none_or(|before| !healing(what).0.heals(before)) {
            return Some(what);
        }
    }
    None
}

/// What ends a failure, and how long everything rests then.
fn healing(what: FaultKind) -> (FaultKind, Duration) {
    match what {
        FaultKind::Cut(a, b) | FaultKind::CutOneWay(a, b) | FaultKind::Brownout(a, b, _) => {
            (FaultKind::Heal(a, b), REST)
        }
        FaultKind::Kill(who) => (FaultKind::Restart(who), REST_OF_RELAY),
        other => (other, REST),
    }
}

fn report(
    scenario: &Scenario,
    without_controller: bool,
    outcomes: &[(u64, FaultOutcome)],
    wall: Duration,
) -> FailuresReport {
    let names = scenario.matrix.names();
    let kinds: std::collections::BTreeSet<&'static str> = outcomes
        .iter()
        .map(|(_, outcome)| outcome.fault.what.kind())
        .collect();
    let of_kind = |kind: &'static str| {
        let of_kind = outcomes
            .iter()
            .filter(move |(_, outcome)| outcome.fault.what.kind() == kind);
        (
            kind,
            Gaps::of(of_kind.flat_map(|(_, outcome)| &outcome.flows)),
        )
    };
    let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let path = |path: &[usize]| path.iter().map(|&place| names[place].clone()).collect();
    let failure = |(seed, outcome): &(u64, FaultOutcome)| {
        let flows = outcome.flows.iter().filter(|flow| !flow.session);
        let worst =
            flows.max_by_key(|flow| flow.gap.as_nanos() as i128 - flow.bound.as_nanos() as i128);
        Failure {
            seed: *seed,
            at_s: outcome.fault.at.as_secs_f64(),
            what: outcome.fault.what.describe(&scenario.matrix),
            kind: outcome.fault.what.kind(),
            gaps: Gaps::of(outcome.flows.iter()),
            worst: worst.map(|flow| Worst {
                from: names[flow.from].clone(),
                to: names[flow.to].clone(),
                gap_ms: ms(flow.gap),
                bound_ms: ms(flow.bound),
                before: path(&flow.before),
                after: path(&flow.after),
            }),
        }
    };
    FailuresReport {
        matrix: scenario.matrix_name.clone(),
        relays: names.to_vec(),
        seed: scenario.seed,
        without_controller,
        all: Gaps::of(outcomes.iter().flat_map(|(_, outcome)| &outcome.flows)),
        by_kind: kinds.into_iter().map(of_kind).collect(),
        failures: outcomes.iter().map(failure).collect(),
        wall_s: (wall.as_secs_f64() * 1e3).round() / 1e3,
    }
}

impl FailuresReport {
    /// For people.
    pub(super) fn summary(&self) -> String {
        let shown = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
        let mut text = format!(
            "{} failures{}, {:.0} s\n\n{:16}{:>8}{:>10}{:>8}{:>8}{:>8}{:>8}{:>12}{:>9}\n",
            self.failures.len(),
            if self.without_controller {
                " without a controller"
            } else {
                ""
            },
            self.wall_s,
            "silence in ms",
            "flows",
            "unrouted",
            "p50",
            "p99",
            "most",
            "over",
            "excess p99",
            "sessions",
        );
        let all = std::iter::once((&"all", &self.all));
        for (kind, gaps) in self.by_kind.iter().chain(all) {
            // Writing to a string never fails.
            let _ = writeln!(
                text,
                "{kind:16}{:>8}{:>10}{:>8}{:>8}{:>8}{:>8}{:>12}{:>9}",
                gaps.flows,
                gaps.unrouted,
                shown(gaps.gap_ms_p50),
                shown(gaps.gap_ms_p99),
                shown(gaps.gap_ms_max),
                gaps.over_bound,
                shown(gaps.excess_ms_p99),
                gaps.session_flows,
            );
        }
        let all = &self.all;
        let _ = writeln!(
            text,
            "\nbrownouts left after: median {} ms, 99 % {} ms, most {} ms; {} of {} flows later than 200 ms (for loss: three packets lost, 99 times of 100) and the link's round trip",
            shown(all.brownout_reaction_ms_p50),
            shown(all.brownout_reaction_ms_p99),
            shown(all.brownout_reaction_ms_max),
            all.brownout_over_bound,
            all.brownout_flows,
        );
        text
    }

    /// An error when a flow was not routed around a failure, or too many were silent for too long.
    pub(super) fn verdict(&self, scenario: &Scenario) -> anyhow::Result<()> {
        let all = &self.all;
        let too_many = |some: u64, of: u64| some as f64 > NEARLY_ALL * of as f64;
        let mut broken = Vec::new();
        if all.unrouted > 0 {
            broken.push(format!("{} flows were not routed around", all.unrouted));
        }
        if too_many(all.over_bound, all.flows) {
            broken.push(format!(
                "{} of {} flows were silent beyond the bound",
                all.over_bound, all.flows
            ));
        }
        if too_many(all.brownout_over_bound, all.brownout_flows) {
            broken.push(format!(
                "{} of {} flows stayed on a bad link beyond the bound",
                all.brownout_over_bound, all.brownout_flows
            ));
        }
        if broken.is_empty() {
            return Ok(());
        }
        bail!("{}; to replay: {}", broken.join(", "), scenario.replay())
    }
}
