//! One-way delays from clocks that do not agree.
//!
//! A probe from A to B measures *raw* = delay + θ(B) − θ(A), with θ the offset of each relay's
//! clock: no single one-way delay can be known from such numbers. But along any path from A to B
//! the offsets telescope to the same θ(B) − θ(A), so whatever θ is assumed, *comparisons between
//! paths of one pair are exact*. All that is asked of the assumed offsets is that the delays
//! computed with them look sensible and are not negative, as shortest paths need it.
//!
//! They are found by weighted least squares: each pair measured both ways says that θ(B) − θ(A) is
//! (raw(A→B) − raw(B→A))/2, wrong by half the asymmetry of the pair, which is at most half its
//! round trip; so short pairs weigh more. Then offsets are lowered, where needed, until no delay is
//! negative (potentials, by Bellman and Ford's relaxation): that is always possible when the
//! measurements are consistent, because the true offsets do it.

use std::time::Duration;

/// Raw one-way differences of all directed links among `n` relays, in microseconds:
/// the receiver's clock at arrival minus the sender's clock at departure.
///
/// Clocks may have any origin, also ones so far apart that the difference wraps round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDelays {
    n: usize,
    raw_us: Vec<Option<i64>>,
}

impl RawDelays {
    /// `n` relays without any measurement.
    #[must_use]
    pub fn new(n: usize) -> Self {
        Self {
            n,
            raw_us: vec![None; n * n],
        }
    }

    /// The number of relays.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there is no relay at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Sets the raw difference from `from` to `to`; `None` is unknown.
    ///
    /// # Panics
    /// When an index is out of range.
    pub fn set(&mut self, from: usize, to: usize, raw_us: Option<i64>) {
        assert!(to < self.n, "relay {to} outside of {} relays", self.n);
        self.raw_us[from * self.n + to] = raw_us;
    }

    /// The raw difference from `from` to `to`.
    ///
    /// # Panics
    /// When an index is out of range.
    #[must_use]
    pub fn get(&self, from: usize, to: usize) -> Option<i64> {
        assert!(to < self.n, "relay {to} outside of {} relays", self.n);
        self.raw_us[from * self.n + to]
    }

    /// The round-trip time of a pair that was measured both ways, if it can be one: the offsets
    /// cancel. Clocks that drift while the two directions are measured may make a tiny one look
    /// negative.
    fn round_trip_us(&self, a: usize, b: usize) -> Option<i64> {
        let sum = self.get(a, b)?.wrapping_add(self.get(b, a)?);
        (a != b && (-DRIFT_US..MAX_RTT_US).contains(&sum)).then_some(sum)
    }
}

/// How negative a round trip may look because of drift.
const DRIFT_US: i64 = 10_000;

/// A round trip beyond this is a broken stamp.
const MAX_RTT_US: i64 = 60_000_000;

/// Clock offsets that explain the raw differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockSolution {
    offsets_us: Vec<i64>,
    component: Vec<usize>,
    clamped: usize,
}

impl ClockSolution {
    /// The relay's clock minus that of its component's lowest-numbered relay, in microseconds
    /// (wrapping, as the clocks' origins are anything).
    ///
    /// This is an estimate, wrong by up to half the asymmetry of the network around the relay.
    #[must_use]
    pub fn offset_us(&self, relay: usize) -> i64 {
        self.offsets_us[relay]
    }

    /// The lowest-numbered relay that `relay` is connected with by pairs measured both ways.
    /// Relays of different components cannot be compared.
    #[must_use]
    pub fn component(&self, relay: usize) -> usize {
        self.component[relay]
    }

    /// How many links have a delay that is still negative and counts as 0: only when measurements
    /// contradict each other, by noise or drift; comparisons over those links are then off by as
    /// much.
    #[must_use]
    pub fn clamped(&self) -> usize {
        self.clamped
    }

    /// The one-way delay of a link in microseconds, ≥ 0, in the frame of these offsets: fit to be
    /// summed along paths and compared. `None` where the pair was not measured both ways, or its
    /// round trip is absurd (negative, or a minute and more).
    #[must_use]
    pub fn one_way_us(&self, raw: &RawDelays, from: usize, to: usize) -> Option<i64> {
        raw.round_trip_us(from, to)?;
        Some(self.delay_us(raw.get(from, to)?, from, to).max(0))
    }

    fn delay_us(&self, raw_us: i64, from: usize, to: usize) -> i64 {
        raw_us.wrapping_sub(self.offsets_us[to].wrapping_sub(self.offsets_us[from]))
    }
}

/// Solves the offsets of all relays' clocks. Deterministic; for 300 relays in full mesh some
/// milliseconds of work.
///
/// ```
/// use tradewind_routing::{RawDelays, solve_clocks};
/// // B's clock is an hour ahead; 40 ms each way.
/// let mut raw = RawDelays::new(2);
/// raw.set(0, 1, Some(3_600_040_000));
/// raw.set(1, 0, Some(-3_599_960_000));
/// let clocks = solve_clocks(&raw);
/// assert_eq!(clocks.offset_us(1), 3_600_000_000);
/// assert_eq!(clocks.one_way_us(&raw, 0, 1), Some(40_000));
/// ```
#[must_use]
pub fn solve_clocks(raw: &RawDelays) -> ClockSolution {
    let n = raw.len();
    let mut solution = ClockSolution {
        offsets_us: vec![0; n],
        component: (0..n).collect(),
        clamped: 0,
    };
    span(raw, &mut solution);
    let corrections = least_squares(raw, &solution);
    for (offset, correction) in solution.offsets_us.iter_mut().zip(corrections) {
        *offset = offset.wrapping_add(correction.round() as i64);
    }
    make_non_negative(raw, &mut solution);
    let roots = solution.offsets_us.clone();
    for relay in 0..n {
        let root = roots[solution.component[relay]];
        solution.offsets_us[relay] = solution.offsets_us[relay].wrapping_sub(root);
    }
    solution
}

/// A first guess in whole microseconds, along a spanning tree of the shortest round trips (Prim's
/// algorithm), which also finds the components. After it all that remains to be solved is small,
/// however far apart the clocks are.
fn span(raw: &RawDelays, solution: &mut ClockSolution) {
    let n = raw.len();
    let mut joined = vec![false; n];
    for root in 0..n {
        if joined[root] {
            continue;
        }
        // Per relay outside, its shortest round trip to one inside.
        let mut reach: Vec<Option<(i64, usize)>> = vec![None; n];
        let mut newest = root;
        loop {
            joined[newest] = true;
            solution.component[newest] = root;
            for other in (0..n).filter(|&other| !joined[other]) {
                if let Some(rtt) = raw.round_trip_us(newest, other)
                    && reach[other].is_none_or(|(known, _)| rtt < known)
                {
                    reach[other] = Some((rtt, newest));
                }
            }
            let nearest = (0..n)
                .filter(|&other| !joined[other])
                .filter_map(|other| reach[other].map(|(rtt, via)| (rtt, other, via)))
                .min();
            let Some((rtt, next, via)) = nearest else {
                break;
            };
            let there = raw
                .get(via, next)
                .expect("a pair with a round trip has both directions");
            solution.offsets_us[next] =
                solution.offsets_us[via].wrapping_add(there.wrapping_sub(rtt / 2));
            newest = next;
        }
    }
}

/// What to add to the offsets, in microseconds, so that the weighted squares of what the pairs say
/// otherwise are least: conjugate gradients on the graph's Laplacian, preconditioned by its
/// diagonal.
fn least_squares(raw: &RawDelays, guess: &ClockSolution) -> Vec<f64> {
    let n = raw.len();
    let mut weights = vec![0.0; n * n];
    let mut degree = vec![0.0; n];
    let mut residual = vec![0.0; n];
    for a in 0..n {
        for b in a + 1..n {
            let (Some(rtt), Some(there), Some(back)) =
                (raw.round_trip_us(a, b), raw.get(a, b), raw.get(b, a))
            else {
                continue;
            };
            let there = guess.delay_us(there, a, b);
            let back = guess.delay_us(back, b, a);
            // One-sided: half of what there is more on the way there than on the way back.
            let excess = (there.saturating_sub(back)) as f64 / 2.0;
            let rtt_ms = rtt.max(0) as f64 / 1_000.0;
            let weight = 1.0 / (rtt_ms + 1.0).powi(2);
            (weights[a * n + b], weights[b * n + a]) = (weight, weight);
            degree[a] += weight;
            degree[b] += weight;
            residual[b] += weight * excess;
            residual[a] -= weight * excess;
        }
    }
    solve_laplacian(&weights, &degree, residual)
}

/// Conjugate gradients on the Laplacian of the graph with these edge weights (row-major) and their
/// sums by node, preconditioned by its diagonal.
fn solve_laplacian(weights: &[f64], degree: &[f64], mut residual: Vec<f64>) -> Vec<f64> {
    let n = degree.len();
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    let scaled = |r: &[f64]| -> Vec<f64> {
        r.iter()
            .zip(degree)
            .map(|(r, d)| if *d > 0.0 { r / d } else { 0.0 })
            .collect()
    };
    let mut x = vec![0.0; n];
    let mut z = scaled(&residual);
    let mut direction = z.clone();
    let mut energy = dot(&residual, &z);
    let enough = energy * 1e-18;
    for _ in 0..4 * n + 16 {
        if energy <= enough || energy <= f64::MIN_POSITIVE {
            break;
        }
        let image: Vec<f64> = (0..n)
            .map(|a| degree[a] * direction[a] - dot(&weights[a * n..(a + 1) * n], &direction))
            .collect();
        let curvature = dot(&direction, &image);
        if curvature <= 0.0 {
            break;
        }
        let step = energy / curvature;
        for a in 0..n {
            x[a] += step * direction[a];
            residual[a] -= step * image[a];
        }
        z = scaled(&residual);
        let next = dot(&residual, &z);
        for a in 0..n {
            direction[a] = z[a] + next / energy * direction[a];
        }
        energy = next;
    }
    x
}

/// How fast each relay's clock runs, against their mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Drifts {
    rates_ppb: Vec<f64>,
}

impl Drifts {
    /// How much faster than the mean the relay's clock runs, parts per billion; 0 where nothing is
    /// known.
    #[must_use]
    pub fn rate_ppb(&self, relay: usize) -> f64 {
        self.rates_ppb[relay]
    }

    /// What the raw difference of the link from `from` to `to`, measured `age` ago, is now, if the
    /// delay is the same.
    #[must_use]
    pub fn later(&self, raw_us: i64, from: usize, to: usize, age: Duration) -> i64 {
        let apart_ppb = self.rates_ppb[to] - self.rates_ppb[from];
        raw_us.wrapping_add((apart_ppb * age.as_micros() as f64 / 1e9).round() as i64)
    }
}

/// Solves the rates of all `n` relays' clocks from what pairs say: `(a, b, ppb)`, a's clock runs so
/// much faster than b's. As offsets do, rates telescope along paths, so that raw differences measured
/// at different moments can be brought to one without spoiling comparisons. What exceeds 500 ppm is
/// broken, and left out.
#[must_use]
pub fn solve_drifts(n: usize, measured: &[(usize, usize, f64)]) -> Drifts {
    let mut weights = vec![0.0; n * n];
    let mut degree = vec![0.0; n];
    let mut residual = vec![0.0; n];
    for &(a, b, ppb) in measured {
        if a == b || a >= n || b >= n || !(-500_000.0..=500_000.0).contains(&ppb) {
            continue;
        }
        weights[a * n + b] += 1.0;
        weights[b * n + a] += 1.0;
        degree[a] += 1.0;
        degree[b] += 1.0;
        residual[a] += ppb;
        residual[b] -= ppb;
    }
    Drifts {
        rates_ppb: solve_laplacian(&weights, &degree, residual),
    }
}

/// How far measurements may contradict each other, in microseconds, tried in turn: not at all,
/// by what drift does within the window of the minima, by what can be forgiven.
const TOLERANCES_US: [i64; 3] = [0, 1_000, 10_000];

/// Lowers the receiver's offset wherever a delay would be negative, until none is. When
/// measurements contradict each other that never ends; then delays may stay a little negative, and
/// at worst the offsets stay as they are. Counts the delays that stay negative.
fn make_non_negative(raw: &RawDelays, solution: &mut ClockSolution) {
    let links = links(raw);
    let solved = solution.offsets_us.clone();
    for tolerance in TOLERANCES_US {
        if relax(&links, raw.len(), tolerance, solution) {
            break;
        }
        solution.offsets_us.clone_from(&solved);
    }
    solution.clamped = links
        .iter()
        .filter(|&&(from, to, raw_us)| solution.delay_us(raw_us, from, to) < 0)
        .count();
}

/// Bellman and Ford's relaxation; whether it came to an end.
fn relax(
    links: &[(usize, usize, i64)],
    n: usize,
    tolerance_us: i64,
    solution: &mut ClockSolution,
) -> bool {
    for _ in 0..=n {
        let mut lowered = false;
        for &(from, to, raw_us) in links {
            let delay = solution
                .delay_us(raw_us, from, to)
                .saturating_add(tolerance_us);
            if delay < 0 {
                solution.offsets_us[to] = solution.offsets_us[to].wrapping_add(delay);
                lowered = true;
            }
        }
        if !lowered {
            return true;
        }
    }
    false
}

/// All directed links of pairs that were measured both ways.
fn links(raw: &RawDelays) -> Vec<(usize, usize, i64)> {
    let n = raw.len();
    (0..n)
        .flat_map(|from| (0..n).map(move |to| (from, to)))
        .filter(|&(from, to)| raw.round_trip_us(from, to).is_some())
        .filter_map(|(from, to)| Some((from, to, raw.get(from, to)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cost::CostMatrix, paths::best_paths};
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    /// True one-way delays: asymmetric, some links missing (both directions together, as a link
    /// without answers is not up).
    fn true_delays(n: usize, rng: &mut Pcg64) -> Vec<Option<i64>> {
        let mut delays = vec![None; n * n];
        for a in 0..n {
            for b in 0..a {
                if rng.random_bool(0.9) {
                    delays[a * n + b] = Some(rng.random_range(50..200_000));
                    delays[b * n + a] = Some(rng.random_range(50..200_000));
                }
            }
        }
        delays
    }

    fn measured(n: usize, delays: &[Option<i64>], offsets: &[i64]) -> RawDelays {
        let mut raw = RawDelays::new(n);
        for from in 0..n {
            for to in 0..n {
                let seen = delays[from * n + to]
                    .map(|delay| delay.wrapping_add(offsets[to].wrapping_sub(offsets[from])));
                raw.set(from, to, seen);
            }
        }
        raw
    }

    fn costs(n: usize, delay: impl Fn(usize, usize) -> Option<i64>) -> CostMatrix {
        CostMatrix::from_fn(n, |i, j| delay(i, j).map_or(f64::INFINITY, |us| us as f64))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn shortest_paths_are_those_of_the_true_delays_whatever_the_clocks_say(
            n in 2..=14usize,
            seed in any::<u64>(),
            apart in prop_oneof![Just(1_000i64), Just(20_000_000_000), Just(i64::MAX)],
        ) {
            let mut rng = Pcg64::seed_from_u64(seed);
            let delays = true_delays(n, &mut rng);
            let offsets: Vec<i64> = (0..n).map(|_| rng.random_range(-apart..apart)).collect();
            let raw = measured(n, &delays, &offsets);
            let clocks = solve_clocks(&raw);
            prop_assert_eq!(clocks.clamped(), 0);

            let real = costs(n, |i, j| delays[i * n + j]);
            let seen = costs(n, |i, j| clocks.one_way_us(&raw, i, j));
            let (by_real, by_seen) = (best_paths(&real, 4), best_paths(&seen, 4));
            for from in 0..n {
                for to in 0..n {
                    // The same paths, or others that are truly as short.
                    let chosen = by_seen.path(from, to);
                    prop_assert_eq!(chosen.is_some(), by_real.path(from, to).is_some());
                    let Some(chosen) = chosen else { continue };
                    let true_cost = crate::paths::path_cost(&real, &chosen);
                    prop_assert_eq!(true_cost, by_real.cost(from, to));
                    // And every comparison is exact to the microsecond.
                    let saved = seen.get(from, to) - by_seen.cost(from, to);
                    let truly = real.get(from, to) - true_cost;
                    prop_assert!(saved == truly || (saved.is_infinite() && truly.is_infinite()));
                }
            }
        }

        #[test]
        fn any_numbers_at_all_are_survived(
            cells in proptest::collection::vec(proptest::option::of(any::<i64>()), 25),
        ) {
            let mut raw = RawDelays::new(5);
            for (cell, value) in cells.iter().enumerate() {
                raw.set(cell / 5, cell % 5, *value);
            }
            let clocks = solve_clocks(&raw);
            for from in 0..5 {
                for to in 0..5 {
                    prop_assert!(clocks.one_way_us(&raw, from, to).is_none_or(|us| us >= 0));
                }
            }
        }
    }

    #[test]
    fn symmetric_networks_give_the_true_offsets_and_delays() {
        let n = 6;
        let delays: Vec<Option<i64>> = (0..n * n)
            .map(|cell| (cell / n != cell % n).then(|| 1_000 * ((cell / n) + (cell % n)) as i64))
            .collect();
        let offsets = [0, 7_200_000_000, -3, 55, -9_000_000_000_000, 1];
        let raw = measured(n, &delays, &offsets);
        let clocks = solve_clocks(&raw);
        for from in 0..n {
            assert_eq!(clocks.offset_us(from), offsets[from]);
            for to in (0..n).filter(|&to| to != from) {
                assert_eq!(clocks.one_way_us(&raw, from, to), delays[from * n + to]);
            }
        }
    }

    #[test]
    fn figures_of_different_age_are_compared_to_some_microseconds_in_spite_of_drift() {
        let n = 12;
        let mut rng = Pcg64::seed_from_u64(77);
        let delays = true_delays(n, &mut rng);
        let rates: Vec<f64> = (0..n)
            .map(|_| rng.random_range(-100_000.0..100_000.0))
            .collect();
        let offsets: Vec<i64> = (0..n)
            .map(|_| rng.random_range(-1_i64 << 50..1 << 50))
            .collect();
        let mut said = Vec::new();
        for a in 0..n {
            for b in 0..n {
                if delays[a * n + b].is_some() {
                    // Each end measures the drift for itself, not quite right.
                    let off = rng.random_range(-3_000.0..3_000.0);
                    said.push((a, b, rates[a] - rates[b] + off));
                }
            }
        }
        let drifts = solve_drifts(n, &said);
        let mut raw = RawDelays::new(n);
        let mut stale = RawDelays::new(n);
        for from in 0..n {
            for to in 0..n {
                let Some(delay) = delays[from * n + to] else {
                    continue;
                };
                // Links in use are a second old, others ten.
                let age_us = if (from + to) % 3 == 0 {
                    1_000_000
                } else {
                    10_000_000
                };
                let ago =
                    |relay: usize| offsets[relay] - (rates[relay] * age_us as f64 / 1e9) as i64;
                let measured = delay + ago(to) - ago(from);
                let age = Duration::from_micros(age_us);
                raw.set(from, to, Some(drifts.later(measured, from, to, age)));
                stale.set(from, to, Some(measured));
            }
        }
        let worst = |raw: &RawDelays| {
            let clocks = solve_clocks(raw);
            let mut worst = 0;
            for (a, b, c) in (0..n * n * n).map(|k| (k / n / n, k / n % n, k % n)) {
                let sees = |x: usize, y: usize| clocks.one_way_us(raw, x, y);
                let is = |x: usize, y: usize| delays[x * n + y];
                if let (Some(ab), Some(bc), Some(ac)) = (sees(a, b), sees(b, c), sees(a, c)) {
                    let truly = is(a, b).unwrap() + is(b, c).unwrap() - is(a, c).unwrap();
                    worst = worst.max((ab + bc - ac - truly).abs());
                }
            }
            worst
        };
        assert!(worst(&raw) <= 50, "{} µs", worst(&raw));
        assert!(worst(&stale) > 500, "without it: {} µs", worst(&stale));
    }

    #[test]
    fn parts_of_the_network_without_a_pair_between_them_are_apart() {
        let mut raw = RawDelays::new(4);
        for (a, b) in [(0, 1), (2, 3)] {
            raw.set(a, b, Some(5_000));
            raw.set(b, a, Some(5_000));
        }
        raw.set(1, 2, Some(4_000)); // one way only: says nothing
        let clocks = solve_clocks(&raw);
        assert_eq!(
            (0..4).map(|r| clocks.component(r)).collect::<Vec<_>>(),
            [0, 0, 2, 2]
        );
        assert_eq!(clocks.one_way_us(&raw, 1, 2), None);
        assert_eq!(clocks.one_way_us(&raw, 2, 3), Some(5_000));
    }

    #[test]
    fn one_relay_with_broken_stamps_does_not_spoil_the_others() {
        let n = 5;
        let delays: Vec<Option<i64>> = (0..n * n)
            .map(|cell| (cell / n != cell % n).then_some(10_000))
            .collect();
        let mut raw = measured(n, &delays, &[0, 100, 200, 300, 400]);
        for other in 0..4 {
            raw.set(4, other, Some(i64::MIN + 17));
        }
        let clocks = solve_clocks(&raw);
        assert_eq!(clocks.one_way_us(&raw, 0, 3), Some(10_000));
        assert_eq!(clocks.one_way_us(&raw, 0, 4), None);
    }

    #[test]
    fn contradictions_by_drift_are_clamped_and_counted() {
        // The round trip 0-1-2-0 looks 30 µs shorter than nothing.
        let mut raw = RawDelays::new(3);
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            raw.set(a, b, Some(-10));
            raw.set(b, a, Some(200));
        }
        let clocks = solve_clocks(&raw);
        assert!(clocks.clamped() > 0);
        let around: i64 = [(0, 1), (1, 2), (2, 0)]
            .iter()
            .map(|&(a, b)| clocks.one_way_us(&raw, a, b).unwrap())
            .sum();
        assert!((0..1_000).contains(&around), "{around}");
    }
}
