//! How much traffic is offered between relays: from counters that relays report to rates.
//!
//! Every relay counts the bytes that its own clients send, by destination relay and class, since
//! its start, and reports the rows that changed. [`DemandMeter`] makes smoothed rates of that:
//! exponentially weighted moving averages over uneven intervals, in which the weight of what
//! happened `t` ago is e^(−t/τ). A rate is divided by the weight seen so far, so that a relay that
//! has just begun to report is not taken for one that sends little.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How demand is smoothed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DemandConfig {
    /// The time constant τ of the averages: a step of demand is believed to 63 % after it, to 95 %
    /// after three times as long. 10 s: splits are for loads that last, queues and congestion
    /// control for those that do not.
    pub time_constant: Duration,
}

impl Default for DemandConfig {
    fn default() -> Self {
        Self {
            time_constant: Duration::from_secs(10),
        }
    }
}

/// Rates of demand between relays, from their counters. Relays go by an id that the caller chooses
/// and never gives to another (a relay's index in plans).
#[derive(Debug, Clone)]
pub struct DemandMeter {
    config: DemandConfig,
    reporters: BTreeMap<u32, Reporter>,
}

/// What one relay has reported.
#[derive(Debug, Clone, Default)]
struct Reporter {
    /// When its counters were last read; `None` before the first report.
    read_at: Option<Duration>,
    /// Whether its counters are known to begin at 0 with the next report.
    fresh: bool,
    /// The time over which its bytes were seen.
    observed: Duration,
    /// By (destination, class).
    cells: BTreeMap<(u32, usize), Cell>,
}

#[derive(Debug, Clone, Default)]
struct Cell {
    /// The counter at the last report.
    total: u64,
    /// The average without regard to how short it has run, in bytes/s, at `at`.
    rate: f64,
    /// In observed time of the reporter.
    at: Duration,
}

impl DemandMeter {
    /// A meter that knows nothing.
    #[must_use]
    pub fn new(config: DemandConfig) -> Self {
        Self {
            config,
            reporters: BTreeMap::new(),
        }
    }

    /// Takes a report of the counters of relay `from` as they were at `read_at` (on one clock for
    /// all reports, whatever restarts): (destination, class, bytes since its start); what is not
    /// named has not changed. The first report of a relay only says where its counters stand.
    ///
    /// Whether the report was of use: one that is not later than the last is ignored, so late and
    /// doubled ones do nothing. A counter that has gone backwards says nothing either, until it has
    /// caught up or the relay's restart is told.
    pub fn report(
        &mut self,
        read_at: Duration,
        from: u32,
        counters: impl IntoIterator<Item = (u32, usize, u64)>,
    ) -> bool {
        let reporter = self.reporters.entry(from).or_default();
        let Some(last) = reporter.read_at else {
            reporter.begin(read_at, counters);
            return true;
        };
        let Some(interval) = read_at.checked_sub(last).filter(|i| !i.is_zero()) else {
            return false;
        };
        reporter.read_at = Some(read_at);
        reporter.observed += interval;
        let (now, tau) = (reporter.observed, self.config.seconds());
        let fresh = std::mem::take(&mut reporter.fresh);
        // A report may name a counter more than once; only its highest value can be the latest.
        let mut totals: BTreeMap<(u32, usize), u64> = BTreeMap::new();
        for (to, class, total) in counters {
            let highest = totals.entry((to, class)).or_default();
            *highest = total.max(*highest);
        }
        if fresh {
            reporter.cells.values_mut().for_each(|cell| cell.total = 0);
        }
        for (key, total) in totals {
            let cell = reporter.cells.entry(key).or_default();
            let Some(bytes) = total.checked_sub(cell.total) else {
                continue;
            };
            // Spread evenly over the interval: ∫ (bytes / interval) e^(−t/τ) dt / τ.
            let seconds = interval.as_secs_f64();
            let gained = bytes as f64 * -(-seconds / tau).exp_m1() / seconds;
            cell.rate = cell.decayed(now, tau) + gained;
            cell.at = now;
            cell.total = total;
        }
        true
    }

    /// Tells that a relay has begun anew: its counters start from 0. Its rates stay and fade, as
    /// its clients are most likely still there; the next report counts from 0 over the time since
    /// the last one.
    pub fn restarted(&mut self, relay: u32) {
        self.reporters.entry(relay).or_default().fresh = true;
    }

    /// Forgets all relays that are not named, as senders and as destinations.
    pub fn retain(&mut self, relays: &BTreeSet<u32>) {
        self.reporters.retain(|relay, _| relays.contains(relay));
        for reporter in self.reporters.values_mut() {
            reporter.cells.retain(|(to, _), _| relays.contains(to));
        }
    }

    /// The rates in bytes per second among `relays`, for each of `profiles` profiles: row-major
    /// (origin, destination) in the order of `relays`. `profile_of` says to which profile a class
    /// belongs; what it does not give one of `profiles` is left out, as is what a relay sends to
    /// itself.
    ///
    /// A relay that has stopped reporting keeps its last rates until it is forgotten: silence is
    /// not a sign that nothing is sent.
    #[must_use]
    pub fn rates(
        &self,
        relays: &[u32],
        profiles: usize,
        profile_of: impl Fn(usize) -> Option<usize>,
    ) -> Vec<Vec<f64>> {
        let n = relays.len();
        let index: BTreeMap<u32, usize> = relays.iter().copied().zip(0..).collect();
        let tau = self.config.seconds();
        let mut rates = vec![vec![0.0; n * n]; profiles];
        for (from, reporter) in &self.reporters {
            let Some(&row) = index.get(from) else {
                continue;
            };
            let seen = -(-reporter.observed.as_secs_f64() / tau).exp_m1();
            if seen <= 0.0 {
                continue;
            }
            for (&(to, class), cell) in &reporter.cells {
                let column = index.get(&to).filter(|&&column| column != row);
                let profile = profile_of(class).and_then(|profile| rates.get_mut(profile));
                if let (Some(&column), Some(profile)) = (column, profile) {
                    profile[row * n + column] += cell.decayed(reporter.observed, tau) / seen;
                }
            }
        }
        rates
    }
}

impl DemandConfig {
    /// τ in seconds, not so small that anything divided by it ceases to be a number.
    fn seconds(&self) -> f64 {
        self.time_constant.as_secs_f64().max(1e-3)
    }
}

impl Reporter {
    /// The first report: where counters stand.
    fn begin(&mut self, read_at: Duration, counters: impl IntoIterator<Item = (u32, usize, u64)>) {
        self.read_at = Some(read_at);
        self.fresh = false;
        for (to, class, total) in counters {
            let cell = self.cells.entry((to, class)).or_default();
            cell.total = total.max(cell.total);
        }
    }
}

impl Cell {
    fn decayed(&self, now: Duration, tau: f64) -> f64 {
        self.rate * (-now.saturating_sub(self.at).as_secs_f64() / tau).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AUDIO: usize = 0;
    const BULK: usize = 3;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    /// `realtime` for all classes but bulk.
    fn profile_of(class: usize) -> Option<usize> {
        match class {
            0..=2 => Some(0),
            BULK => Some(1),
            _ => None,
        }
    }

    fn meter() -> DemandMeter {
        DemandMeter::new(DemandConfig::default())
    }

    /// The rates from relay 0 to relay 1, by profile.
    fn between(meter: &DemandMeter) -> (f64, f64) {
        let rates = meter.rates(&[0, 1], 2, profile_of);
        (rates[0][1], rates[1][1])
    }

    #[test]
    fn a_steady_sender_is_seen_at_its_rate_from_the_second_report_on() {
        let mut meter = meter();
        for s in 0..60 {
            meter.report(
                seconds(s),
                0,
                [(1, AUDIO, 7_000 + 500 * s), (1, BULK, 90 * s)],
            );
            if s > 0 {
                let (realtime, economy) = between(&meter);
                assert!((realtime - 500.0).abs() < 1e-6, "{realtime} after {s} s");
                assert!((economy - 90.0).abs() < 1e-6, "{economy} after {s} s");
            }
        }
    }

    #[test]
    fn a_step_is_believed_to_two_thirds_after_the_time_constant() {
        let mut meter = meter();
        for s in 0..=200 {
            meter.report(seconds(s), 0, [(1, AUDIO, 0)]);
        }
        for s in 1..=10 {
            meter.report(seconds(200 + s), 0, [(1, AUDIO, 1_000 * s)]);
        }
        assert!((between(&meter).0 - 632.0).abs() < 1.0);
        // And fades as fast when reports no longer name it.
        for s in 11..=20 {
            meter.report(seconds(200 + s), 0, []);
        }
        assert!((between(&meter).0 - 632.0 * 0.368).abs() < 1.0);
    }

    #[test]
    fn how_often_is_reported_makes_no_difference() {
        let rate_with = |every: u64| {
            let mut meter = meter();
            for s in (0..=60).step_by(every as usize) {
                meter.report(seconds(s), 0, [(1, AUDIO, 300 * s)]);
            }
            between(&meter).0
        };
        assert!((rate_with(1) - rate_with(20)).abs() < 1e-6);
    }

    #[test]
    fn a_restart_neither_loses_the_rate_nor_invents_one() {
        let mut meter = meter();
        for s in 0..=30 {
            meter.report(seconds(s), 0, [(1, AUDIO, 1_000_000 + 500 * s)]);
        }
        meter.restarted(0);
        meter.report(seconds(31), 0, [(1, AUDIO, 500)]);
        assert!((between(&meter).0 - 500.0).abs() < 1e-6);
        // An untold one freezes the counter that went backwards.
        meter.report(seconds(32), 0, [(1, AUDIO, 3)]);
        assert!(between(&meter).0 < 500.0);
    }

    #[test]
    fn relays_that_are_gone_are_forgotten_both_ways() {
        let mut meter = meter();
        for s in 0..5 {
            meter.report(seconds(s), 0, [(1, AUDIO, 100 * s), (2, AUDIO, 100 * s)]);
            meter.report(seconds(s), 1, [(0, AUDIO, 100 * s)]);
        }
        meter.retain(&BTreeSet::from([0, 2]));
        let rates = &meter.rates(&[2, 1, 0], 1, profile_of)[0];
        let sent: Vec<bool> = rates.iter().map(|rate| *rate > 0.0).collect();
        let mut expected = [false; 9];
        expected[6] = true; // relay 0 to relay 2, in the order that was asked for
        assert_eq!(sent, expected);
    }

    /// What can arrive: (time in ms, relay, destination, class, total, kind).
    fn events() -> impl Strategy<Value = Vec<(u64, u32, u32, usize, u64, u8)>> {
        let total = prop_oneof![0..10_000u64, Just(u64::MAX), any::<u64>()];
        let event = (0..20_000u64, 0..4u32, 0..4u32, 0..6usize, total, 0..10u8);
        proptest::collection::vec(event, 0..60)
    }

    fn replay(events: &[(u64, u32, u32, usize, u64, u8)]) -> DemandMeter {
        let mut meter = meter();
        for &(ms, from, to, class, total, kind) in events {
            if kind == 0 {
                meter.restarted(from);
            }
            meter.report(Duration::from_millis(ms), from, [(to, class, total)]);
        }
        meter
    }

    proptest! {
        #[test]
        fn whatever_arrives_rates_are_numbers_and_not_negative(events in events()) {
            let meter = replay(&events);
            for rates in meter.rates(&[0, 1, 2, 3, 9], 2, profile_of) {
                prop_assert_eq!(rates.len(), 25);
                prop_assert!(rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0));
            }
        }

        #[test]
        fn late_and_doubled_reports_do_nothing(
            steps in proptest::collection::vec((1..3_000u64, 0..100_000u64), 2..30),
            late in 0..30usize,
        ) {
            let mut meter = meter();
            let (mut now, mut total) = (0, 0);
            let mut sent = Vec::new();
            for (interval, bytes) in steps {
                now += interval;
                total += bytes;
                let report = (Duration::from_millis(now), total);
                prop_assert!(meter.report(report.0, 0, [(1, AUDIO, report.1)]));
                sent.push(report);
            }
            let before = between(&meter);
            let (read_at, total) = sent[late % sent.len()];
            prop_assert!(!meter.report(read_at, 0, [(1, AUDIO, total)]));
            prop_assert_eq!(between(&meter), before);
        }

        #[test]
        fn rates_are_within_what_was_ever_sent(
            steps in proptest::collection::vec((100..3_000u64, 0..100_000u64), 2..30),
            restart in 1..30usize,
        ) {
            let mut meter = meter();
            let (mut now, mut total) = (0, 5_000_000);
            let mut fastest = 0.0f64;
            meter.report(Duration::ZERO, 0, [(1, AUDIO, total)]);
            for (step, &(interval, bytes)) in steps.iter().enumerate() {
                if step == restart {
                    meter.restarted(0);
                    total = 0;
                }
                now += interval;
                total += bytes;
                fastest = fastest.max(bytes as f64 / (interval as f64 / 1e3));
                meter.report(Duration::from_millis(now), 0, [(1, AUDIO, total)]);
                prop_assert!(between(&meter).0 <= fastest * (1.0 + 1e-9) + 1e-6);
            }
        }
    }
}
