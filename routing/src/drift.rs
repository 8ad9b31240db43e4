//! How fast one clock runs against another, from the probes between them.
//!
//! Half the difference of the two raw one-way differences is the difference of the clocks, plus half
//! the asymmetry of the link, which stays. Its slope is the drift. Of each few seconds the pair with
//! the shortest round trip counts (it has waited least), and the slope is the median over pairs of
//! such points (Theil and Sen's estimator), so that a route that changes on the way does little harm.

use std::{collections::VecDeque, time::Duration};

/// One point is kept of so long.
const BLOCK: Duration = Duration::from_secs(5);
/// The most points: three minutes, in which crystals keep their rate.
const MOST_POINTS: usize = 36;
/// No slope is told from less.
const LEAST_SPAN: Duration = Duration::from_secs(15);
const LEAST_POINTS: usize = 4;
/// Beyond this, parts per billion, it is no drift: crystals are within 100 ppm.
const MOST_PPB: f64 = 500_000.0;
/// A point this far beside the line is of another route, or of a clock that has jumped.
const STEP_US: f64 = 2_000.0;

#[derive(Debug, Clone, Copy)]
struct Point {
    at_us: u64,
    /// Difference of the clocks, less that of the first point.
    apart_us: f64,
    rtt_us: u64,
}

/// Follows the drift of one pair of clocks.
#[derive(Debug, Clone, Default)]
pub(crate) struct DriftFit {
    first: Option<i64>,
    block: Option<(u64, Point)>,
    points: VecDeque<Point>,
    beside: u32,
    ppb: Option<f64>,
}

impl DriftFit {
    /// Takes in the difference of the clocks at `at_us`, measured by a round trip of `rtt_us`.
    pub(crate) fn push(&mut self, at_us: u64, apart_us: i64, rtt_us: u64) {
        let first = *self.first.get_or_insert(apart_us);
        let point = Point {
            at_us,
            apart_us: apart_us.wrapping_sub(first) as f64,
            rtt_us,
        };
        match &mut self.block {
            Some((begun, best)) if at_us < *begun + BLOCK.as_micros() as u64 => {
                if point.rtt_us < best.rtt_us {
                    *best = point;
                }
            }
            block => {
                let done = block.replace((at_us, point));
                if let Some((_, done)) = done {
                    self.add(done);
                }
            }
        }
    }

    /// How much faster our clock runs than the peer's, parts per billion.
    pub(crate) fn ppb(&self) -> Option<f64> {
        self.ppb
    }

    /// Begins anew with the points; the rate itself still holds.
    pub(crate) fn step(&mut self) {
        *self = Self {
            ppb: self.ppb,
            ..Self::default()
        };
    }

    fn add(&mut self, point: Point) {
        if let (Some(ppb), Some(last)) = (self.ppb, self.points.back()) {
            let run = point.at_us.saturating_sub(last.at_us) as f64;
            let off = point.apart_us - last.apart_us - run * ppb / 1e9;
            if off.abs() > STEP_US {
                self.beside += 1;
                if self.beside < 2 {
                    return;
                }
                self.points.clear();
            }
        }
        self.beside = 0;
        self.points.push_back(point);
        if self.points.len() > MOST_POINTS {
            self.points.pop_front();
        }
        if let Some(ppb) = self.slope() {
            self.ppb = Some(ppb);
        }
    }

    fn slope(&self) -> Option<f64> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        let span = last.at_us.saturating_sub(first.at_us);
        if self.points.len() < LEAST_POINTS || span < LEAST_SPAN.as_micros() as u64 {
            return None;
        }
        let mut slopes = Vec::new();
        for (i, a) in self.points.iter().enumerate() {
            for b in self.points.iter().skip(i + 1) {
                let run = b.at_us.saturating_sub(a.at_us);
                // Of near points the noise is all there is.
                if run >= span / 3 {
                    slopes.push((b.apart_us - a.apart_us) / run as f64 * 1e9);
                }
            }
        }
        slopes.sort_by(f64::total_cmp);
        let median = slopes.get(slopes.len() / 2).copied()?;
        (median.abs() <= MOST_PPB).then_some(median)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    /// Clocks that drift apart by `ppm`, seen ten times a second over links with up to `jitter_us`
    /// of queueing each way.
    fn fit(ppm: f64, jitter_us: i64, seconds: u64, step: impl Fn(u64) -> i64) -> Option<f64> {
        let mut fit = DriftFit::default();
        let mut rng = Pcg64::seed_from_u64(3);
        for n in 0..seconds * 10 {
            let at = n * 100_000;
            let mut wait = || rng.random_range(0..=jitter_us);
            let (there, back) = (40_000 + wait(), 90_000 + wait());
            let apart = 1_i64 << 50 | (at as f64 * ppm / 1e6) as i64;
            let seen = apart + (back - there) / 2 + step(at);
            fit.push(at, seen, (there + back) as u64);
        }
        fit.ppb()
    }

    #[test]
    fn drift_is_found_within_seconds_and_better_with_time() {
        assert_eq!(fit(100.0, 0, 10, |_| 0), None, "too early to say");
        let soon = fit(100.0, 200, 30, |_| 0).expect("30 s suffice");
        assert!((soon - 100_000.0).abs() < 8_000.0, "{soon}");
        let later = fit(-80.0, 2_000, 180, |_| 0).expect("three minutes suffice");
        assert!((later + 80_000.0).abs() < 3_000.0, "{later}");
    }

    #[test]
    fn a_route_that_changes_does_not_look_like_drift() {
        let step = |at| if at > 60_000_000 { 25_000 } else { 0 };
        let drift = fit(30.0, 500, 120, step).expect("two minutes suffice");
        assert!((drift - 30_000.0).abs() < 5_000.0, "{drift}");
    }
}
