//! The lab's report: what was measured, against what the matrix says is possible.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tradewind_routing::{BestPaths, CostMatrix, RttMatrix, best_paths};
use tradewind_wan::DeliveryError;

use super::{
    ground::Applied, group_record::GroupSummary, invariants::Violation, ledger::Counts,
    options::Scenario, record::Pair, steady::FlowGap,
};

/// Most transit relays of the optimum, as of the network's own paths.
const MAX_TRANSIT: usize = 4;
/// A way counts as shorter when it is by this share …
const MARGIN: f64 = 0.05;
/// … and by this much.
const MARGIN_MS: f64 = 5.0;

/// The whole report, as it is written in JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) matrix: String,
    pub(crate) relays: Vec<String>,
    pub(crate) pairs: Vec<PairReport>,
    pub(crate) summary: Summary,
    pub(crate) faults: Vec<FaultReport>,
    /// With --chaos or --groups: what did not hold of what must.
    pub(crate) violations: Vec<Violation>,
    pub(crate) run: RunReport,
}

/// One ordered pair of clients. Times are round trips in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PairReport {
    pub(crate) from: String,
    pub(crate) to: String,
    /// By the matrix, over the direct link; null where there is none one way or the other.
    pub(crate) direct_ms: Option<f64>,
    /// By the matrix, over the best paths both ways; null where there is no way.
    pub(crate) optimal_ms: Option<f64>,
    /// Measured; null when no echo came back.
    pub(crate) overlay_ms_p50: Option<f64>,
    pub(crate) overlay_ms_p99: Option<f64>,
    /// Relays on the way there.
    pub(crate) path: Vec<String>,
    /// Messages.
    pub(crate) sent: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    /// Media packets, echoes and answers.
    pub(crate) media_sent: u64,
    pub(crate) media_delivered: u64,
    /// The flow's first echo, before measuring began: what being introduced adds to it.
    pub(crate) first_ms: Option<f64>,
    /// Echoes that came back.
    pub(crate) echoes: u64,
}

/// Over all pairs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// Share of the possible saving that was had, over the pairs that have a clearly shorter way
    /// (5 % and 5 ms); null if there is none.
    pub(crate) captured: Option<f64>,
    /// Pairs whose measured median is clearly below the direct round trip.
    pub(crate) improved_pairs: u64,
    /// What these save.
    pub(crate) median_saving_ms: Option<f64>,
    pub(crate) max_saving_ms: Option<f64>,
    pub(crate) messages_sent: u64,
    pub(crate) messages_delivered: u64,
    pub(crate) messages_failed: u64,
    /// Those of them without a named outcome, or whose sender was told that they were delivered
    /// though they never came.
    pub(crate) messages_lost: u64,
    pub(crate) duplicates: u64,
    pub(crate) reordered: u64,
    pub(crate) media_sent: u64,
    pub(crate) media_delivered: u64,
    /// Plans that came into force while measuring.
    pub(crate) plan_updates: u64,
    /// Pairs that have a clearly shorter way, measured ones only: those `captured` is about.
    pub(crate) improvable_pairs: u64,
    /// Pairs of which no echo came back.
    pub(crate) unmeasured_pairs: u64,
    /// Why messages failed.
    pub(crate) failures: BTreeMap<&'static str, u64>,
    /// Silence in the delivery of steady flows (50 packets a second) across faults, over the flows
    /// for which there was a way: the longest time between two arrivals in a row of which the later
    /// one comes after the fault. Null when no flow crossed a fault.
    pub(crate) failover_gap_ms_p50: Option<f64>,
    pub(crate) failover_gap_ms_p99: Option<f64>,
    pub(crate) failover_gap_ms_max: Option<f64>,
    /// These flows.
    pub(crate) failover_flows: u64,
    /// Those of them whose packets did not arrive again before the end, or before it was healed.
    pub(crate) failover_unrouted: u64,
    /// Those of them whose gap exceeds 300 ms, the failing link's round trip, and what the new way
    /// takes longer than the old one.
    pub(crate) failover_over_bound: u64,
    /// The same of flows that end at clients of a killed (or stalled) relay.
    pub(crate) session_gap_ms_p50: Option<f64>,
    pub(crate) session_gap_ms_p99: Option<f64>,
    pub(crate) session_gap_ms_max: Option<f64>,
    pub(crate) session_flows: u64,
    /// With --groups.
    #[serde(flatten)]
    pub(crate) groups: Option<GroupSummary>,
}

/// One fault, and the steady flows across it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FaultReport {
    pub(crate) at_s: f64,
    pub(crate) what: String,
    pub(crate) kind: &'static str,
    #[serde(flatten)]
    pub(crate) flows: Gaps,
}

/// The gaps of some flows.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Gaps {
    pub(crate) flows: u64,
    pub(crate) unrouted: u64,
    pub(crate) over_bound: u64,
    pub(crate) gap_ms_p50: Option<f64>,
    pub(crate) gap_ms_p99: Option<f64>,
    pub(crate) gap_ms_max: Option<f64>,
    /// How much the gap exceeds the bound of its flow; below 0: how much it stays below.
    pub(crate) excess_ms_p99: Option<f64>,
    pub(crate) excess_ms_max: Option<f64>,
    pub(crate) session_flows: u64,
    pub(crate) session_gap_ms_p50: Option<f64>,
    pub(crate) session_gap_ms_p99: Option<f64>,
    pub(crate) session_gap_ms_max: Option<f64>,
    /// Flows over a brownout that there was a better way around: how long packets were still sent
    /// over it, …
    pub(crate) brownout_flows: u64,
    pub(crate) brownout_reaction_ms_p50: Option<f64>,
    pub(crate) brownout_reaction_ms_p99: Option<f64>,
    pub(crate) brownout_reaction_ms_max: Option<f64>,
    /// … and for how many of them that was longer than 200 ms and the link's round trip as it was.
    pub(crate) brownout_over_bound: u64,
}

impl Gaps {
    pub(super) fn of<'a>(all: impl Iterator<Item = &'a FlowGap>) -> Self {
        let (sessions, flows): (Vec<&FlowGap>, Vec<&FlowGap>) = all.partition(|flow| flow.session);
        let sorted = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values
        };
        let gaps = |flows: &[&FlowGap]| sorted(flows.iter().map(|flow| ms(flow.gap)).collect());
        let (failover, session) = (gaps(&flows), gaps(&sessions));
        let excess = flows.iter().map(|flow| ms(flow.gap) - ms(flow.bound));
        let excess = sorted(excess.collect());
        let reactions: Vec<_> = flows.iter().filter_map(|flow| flow.reaction).collect();
        let took = sorted(reactions.iter().map(|reaction| ms(reaction.took)).collect());
        let count =
            |holds: fn(&FlowGap) -> bool| flows.iter().filter(|flow| holds(flow)).count() as u64;
        let over = |reaction: &&super::steady::Reaction| reaction.took > reaction.bound;
        Self {
            flows: flows.len() as u64,
            unrouted: count(|flow| !flow.routed),
            over_bound: count(|flow| flow.gap > flow.bound),
            gap_ms_p50: quantile(&failover, 50),
            gap_ms_p99: quantile(&failover, 99),
            gap_ms_max: quantile(&failover, 100),
            excess_ms_p99: quantile(&excess, 99),
            excess_ms_max: quantile(&excess, 100),
            session_flows: sessions.len() as u64,
            session_gap_ms_p50: quantile(&session, 50),
            session_gap_ms_p99: quantile(&session, 99),
            session_gap_ms_max: quantile(&session, 100),
            brownout_flows: reactions.len() as u64,
            brownout_reaction_ms_p50: quantile(&took, 50),
            brownout_reaction_ms_p99: quantile(&took, 99),
            brownout_reaction_ms_max: quantile(&took, 100),
            brownout_over_bound: reactions.iter().filter(over).count() as u64,
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// The least value that so many percent of the values are at most as large as.
fn quantile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied().map(rounded)
}

/// How it was run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunReport {
    pub(crate) mode: &'static str,
    pub(crate) seed: u64,
    pub(crate) duration_s: f64,
    /// Network time from the first relay's start until measuring began.
    pub(crate) startup_s: f64,
    /// What the run took in all, by the wall clock.
    pub(crate) wall_s: f64,
    /// Packets on the emulated network.
    pub(crate) packets: u64,
    /// In real time: how late these were delivered.
    pub(crate) delivery_error: Option<DeliveryErrorReport>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeliveryErrorReport {
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

/// What running a scenario yields.
#[derive(Debug)]
pub(super) struct Outcome {
    /// By (from · n + to).
    pub(super) pairs: Vec<Pair>,
    /// Messages between the users of a crowd, those at the relays included.
    pub(super) between_users: Counts,
    /// By (from · n + to): the way there by places.
    pub(super) paths: Vec<Vec<String>>,
    pub(super) plan_updates: u64,
    pub(super) startup: Duration,
    pub(super) packets: u64,
    /// In real time only.
    pub(super) delivery_error: Option<DeliveryError>,
    /// In order of time, as in the scenario.
    pub(super) faults: Vec<FaultOutcome>,
    /// With --groups.
    pub(super) groups: Option<GroupSummary>,
    pub(super) violations: Vec<Violation>,
}

/// One fault, and what became of the steady flows across it.
#[derive(Debug)]
pub(super) struct FaultOutcome {
    pub(super) fault: Applied,
    pub(super) flows: Vec<FlowGap>,
}

impl Report {
    pub(super) fn new(scenario: &Scenario, outcome: Outcome, wall: Duration) -> Self {
        let matrix = &scenario.matrix;
        let names = matrix.names();
        let n = matrix.len();
        let optimum = Optimum::new(matrix);
        let mut pairs = Vec::with_capacity(n * (n - 1));
        for (index, pair) in outcome.pairs.iter().enumerate() {
            let (from, to) = (index / n, index % n);
            if from == to {
                continue;
            }
            let mut rtts = pair.rtts_us.clone();
            rtts.sort_unstable();
            pairs.push(PairReport {
                from: names[from].clone(),
                to: names[to].clone(),
                direct_ms: matrix.direct_rtt(from, to).map(rounded),
                optimal_ms: optimum.rtt(from, to).map(rounded),
                overlay_ms_p50: quantile_ms(&rtts, 50).map(rounded),
                overlay_ms_p99: quantile_ms(&rtts, 99).map(rounded),
                path: outcome.paths[index].clone(),
                sent: pair.messages_sent,
                delivered: pair.messages_delivered(),
                lost: pair.messages_sent - pair.messages_delivered(),
                media_sent: pair.media_sent,
                media_delivered: pair.media_delivered,
                first_ms: pair.first_rtt_us.map(|us| f64::from(us) / 1_000.0),
                echoes: rtts.len() as u64,
            });
        }
        let faults = scenario.faults.iter().enumerate().map(|(index, asked)| {
            let outcome = outcome.faults.get(index);
            let mut what = asked.what.describe(matrix);
            if let Some(outcome) = outcome
                && outcome.fault.what != asked.what
            {
                what = format!("{what}: {}", outcome.fault.what.describe(matrix));
            }
            FaultReport {
                at_s: asked.at.as_secs_f64(),
                what,
                kind: asked.what.kind(),
                flows: Gaps::of(outcome.into_iter().flat_map(|outcome| &outcome.flows)),
            }
        });
        let faults: Vec<FaultReport> = faults.collect();
        Self {
            matrix: scenario.matrix_name.clone(),
            relays: names.to_vec(),
            summary: summary(&pairs, &outcome),
            pairs,
            faults,
            violations: outcome.violations.clone(),
            run: RunReport {
                mode: if scenario.virtual_time {
                    "virtual"
                } else {
                    "real"
                },
                seed: scenario.seed,
                duration_s: scenario.duration.as_secs_f64(),
                startup_s: rounded(outcome.startup.as_secs_f64()),
                wall_s: rounded(wall.as_secs_f64()),
                packets: outcome.packets,
                delivery_error: outcome.delivery_error.map(|error| DeliveryErrorReport {
                    p50_us: error.p50_us,
                    p99_us: error.p99_us,
                    max_us: error.max_us,
                }),
            },
        }
    }
}

impl PairReport {
    /// What the network saves against the direct way, in milliseconds.
    pub(crate) fn saving_ms(&self) -> Option<f64> {
        Some(self.direct_ms? - self.overlay_ms_p50?)
    }
}

/// The shortest round trips the matrix allows.
struct Optimum {
    one_way: BestPaths,
}

impl Optimum {
    fn new(matrix: &RttMatrix) -> Self {
        Self {
            one_way: best_one_way(matrix),
        }
    }

    fn rtt(&self, from: usize, to: usize) -> Option<f64> {
        let rtt = self.one_way.cost(from, to) + self.one_way.cost(to, from);
        rtt.is_finite().then_some(rtt)
    }
}

/// The best ways one way, in milliseconds: half of what the cells say, without a cost per hop.
pub(super) fn best_one_way(matrix: &RttMatrix) -> BestPaths {
    let mut cost = CostMatrix::new(matrix.len());
    for i in 0..matrix.len() {
        for j in 0..matrix.len() {
            if let (true, Some(rtt)) = (i != j, matrix.cell(i, j)) {
                cost.set(i, j, rtt / 2.0);
            }
        }
    }
    best_paths(&cost, MAX_TRANSIT)
}

/// Whether `ms` is clearly less than `direct_ms`.
fn clearly_less(ms: f64, direct_ms: f64) -> bool {
    direct_ms - ms >= MARGIN_MS && direct_ms - ms >= MARGIN * direct_ms
}

fn summary(pairs: &[PairReport], outcome: &Outcome) -> Summary {
    let (mut had, mut possible, mut improvable_pairs) = (0.0, 0.0, 0);
    for pair in pairs {
        if let (Some(direct), Some(optimal), Some(overlay)) =
            (pair.direct_ms, pair.optimal_ms, pair.overlay_ms_p50)
            && clearly_less(optimal, direct)
        {
            improvable_pairs += 1;
            had += direct - overlay;
            possible += direct - optimal;
        }
    }
    let mut savings: Vec<f64> = pairs
        .iter()
        .filter(|pair| {
            pair.direct_ms
                .zip(pair.overlay_ms_p50)
                .is_some_and(|(direct, overlay)| clearly_less(overlay, direct))
        })
        .filter_map(PairReport::saving_ms)
        .collect();
    savings.sort_by(f64::total_cmp);
    let sum = |of: fn(&PairReport) -> u64| pairs.iter().map(of).sum::<u64>();
    let mut failures: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (&reason, count) in outcome.pairs.iter().flat_map(|pair| &pair.messages_failed) {
        *failures.entry(reason).or_default() += count;
    }
    let unnamed = sum(|pair| pair.lost).saturating_sub(failures.values().sum());
    let crowd = &outcome.between_users;
    for (&reason, count) in &crowd.failed {
        *failures.entry(reason).or_default() += count;
    }
    let lanes = || outcome.pairs.iter().flat_map(|pair| &pair.received);
    let gaps = Gaps::of(outcome.faults.iter().flat_map(|fault| &fault.flows));
    Summary {
        captured: (possible > 0.0).then(|| (had / possible * 1e6).round() / 1e6),
        improved_pairs: savings.len() as u64,
        median_saving_ms: median(&savings).map(rounded),
        max_saving_ms: savings.last().copied().map(rounded),
        messages_sent: sum(|pair| pair.sent) + crowd.sent,
        messages_delivered: sum(|pair| pair.delivered) + crowd.delivered,
        messages_failed: sum(|pair| pair.lost) + crowd.sent - crowd.delivered,
        messages_lost: unnamed + crowd.lost,
        duplicates: lanes().map(|lane| lane.duplicates).sum::<u64>() + crowd.duplicates,
        reordered: lanes().map(|lane| lane.reordered).sum::<u64>() + crowd.reordered,
        media_sent: sum(|pair| pair.media_sent),
        media_delivered: sum(|pair| pair.media_delivered),
        plan_updates: outcome.plan_updates,
        improvable_pairs,
        unmeasured_pairs: sum(|pair| u64::from(pair.overlay_ms_p50.is_none())),
        failures,
        failover_gap_ms_p50: gaps.gap_ms_p50,
        failover_gap_ms_p99: gaps.gap_ms_p99,
        failover_gap_ms_max: gaps.gap_ms_max,
        failover_flows: gaps.flows,
        failover_unrouted: gaps.unrouted,
        failover_over_bound: gaps.over_bound,
        session_gap_ms_p50: gaps.session_gap_ms_p50,
        session_gap_ms_p99: gaps.session_gap_ms_p99,
        session_gap_ms_max: gaps.session_gap_ms_max,
        session_flows: gaps.session_flows,
        groups: outcome.groups.clone(),
    }
}

/// The least value that so many percent of the values are at most as large as.
fn quantile_ms(sorted_us: &[u32], percent: usize) -> Option<f64> {
    let rank = (sorted_us.len() * percent).div_ceil(100);
    let us = sorted_us.get(rank.checked_sub(1)?)?;
    Some(f64::from(*us) / 1_000.0)
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        _ if sorted.is_empty() => None,
        0 => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

/// To microseconds, where the value is in milliseconds.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::lab::options::LabArgs;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        args: LabArgs,
    }

    /// a to c takes 100 ms directly and 60 ms over b; there is no link from c to b.
    fn scenario() -> (tempfile::TempDir, Scenario) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.csv");
        std::fs::write(&file, "x,a,b,c\na,0,20,100\nb,20,0,40\nc,100,,0\n").unwrap();
        let line = ["lab", "--matrix", file.to_str().unwrap(), "--cut", "a-b@1s"];
        let scenario = Scenario::new(&Program::parse_from(line).args).unwrap();
        (dir, scenario)
    }

    fn report(rtts_us: &[(usize, &[u32])]) -> Report {
        let (_dir, scenario) = scenario();
        let mut pairs = vec![Pair::default(); 9];
        for &(index, rtts) in rtts_us {
            pairs[index].rtts_us = rtts.to_vec();
            pairs[index].messages_sent = 3;
            pairs[index].messages_confirmed = 2;
            pairs[index].messages_failed = [("expired", 1)].into();
            for number in [0, 1, 1] {
                pairs[index].received[0].note(number);
            }
        }
        let outcome = Outcome {
            pairs,
            between_users: Counts::default(),
            paths: vec![vec!["a".to_owned()]; 9],
            plan_updates: 1,
            startup: Duration::from_secs(2),
            packets: 7,
            delivery_error: None,
            faults: Vec::new(),
            groups: None,
            violations: Vec::new(),
        };
        Report::new(&scenario, outcome, Duration::from_secs(3))
    }

    #[test]
    fn the_keys_are_those_that_scripts_rely_on() {
        let json = serde_json::to_value(report(&[(2, &[80_000])])).unwrap();
        for (at, keys) in [
            ("", "matrix relays pairs summary"),
            (
                "/pairs/0",
                "from to direct_ms optimal_ms overlay_ms_p50 overlay_ms_p99 path sent delivered lost",
            ),
            (
                "/summary",
                "captured improved_pairs median_saving_ms max_saving_ms messages_sent \
                 messages_delivered messages_failed messages_lost duplicates reordered media_sent \
                 media_delivered plan_updates failover_gap_ms_p50 failover_gap_ms_p99 \
                 failover_gap_ms_max session_gap_ms_p50 session_gap_ms_p99 session_gap_ms_max",
            ),
        ] {
            for key in keys.split_whitespace() {
                let path = format!("{at}/{key}");
                assert!(json.pointer(&path).is_some(), "{path} is missing");
            }
        }
        assert_eq!(json["pairs"].as_array().unwrap().len(), 6);
        assert_eq!(json["relays"], serde_json::json!(["a", "b", "c"]));
        assert_eq!(json["faults"][0]["what"], "cut a - b");
    }

    #[test]
    fn captured_compares_the_measured_saving_with_the_possible_one() {
        // a→c: direct 100, best 30 there and 50 back.
        let report = report(&[(1, &[20_500]), (2, &[84_000, 82_000, 90_000])]);
        let pair = |from: &str, to: &str| {
            let mut pairs = report.pairs.iter();
            pairs
                .find(|pair| (pair.from.as_str(), pair.to.as_str()) == (from, to))
                .unwrap()
        };
        let there = pair("a", "c");
        assert_eq!(
            (there.direct_ms, there.optimal_ms),
            (Some(100.0), Some(80.0))
        );
        assert_eq!(
            (there.overlay_ms_p50, there.overlay_ms_p99),
            (Some(84.0), Some(90.0))
        );
        let unlinked = pair("c", "b");
        assert_eq!(
            (unlinked.direct_ms, unlinked.optimal_ms),
            (None, Some(80.0))
        );
        let summary = &report.summary;
        assert_eq!(summary.captured, Some(0.8));
        assert_eq!((summary.improvable_pairs, summary.improved_pairs), (1, 1));
        assert_eq!(summary.median_saving_ms, Some(16.0));
        assert_eq!(summary.unmeasured_pairs, 4);
    }

    #[test]
    fn messages_that_were_not_delivered_are_counted_with_their_reasons() {
        let summary = report(&[(1, &[1]), (2, &[1])]).summary;
        assert_eq!(
            (
                summary.messages_sent,
                summary.messages_delivered,
                summary.messages_failed
            ),
            (6, 4, 2)
        );
        assert_eq!(summary.failures, [("expired", 2)].into());
        assert_eq!((summary.duplicates, summary.reordered), (2, 0));
    }

    #[test]
    fn where_nothing_can_be_gained_nothing_is_said_to_be_captured() {
        let (_dir, scenario) = scenario();
        let matrix = RttMatrix::parse("x,a,b\na,0,20\nb,20,0\n").unwrap();
        let scenario = Scenario { matrix, ..scenario };
        let outcome = Outcome {
            pairs: vec![Pair::default(); 4],
            between_users: Counts::default(),
            paths: vec![Vec::new(); 4],
            plan_updates: 0,
            startup: Duration::ZERO,
            packets: 0,
            delivery_error: None,
            faults: Vec::new(),
            groups: None,
            violations: Vec::new(),
        };
        let scenario = Scenario {
            faults: Vec::new(),
            ..scenario
        };
        let summary = Report::new(&scenario, outcome, Duration::ZERO).summary;
        assert_eq!((summary.captured, summary.median_saving_ms), (None, None));
    }
}
