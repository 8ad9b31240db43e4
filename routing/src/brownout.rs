//! Links that work, but far worse than is normal for them: noticed long before averages have moved, so
//! that a relay can deflect as it does for a failure. Delay takes a fifth of a second and a trip; loss
//! takes as many packets as make it certain: three losses among twenty packets.
//!
//! Of each direction two things are watched, each where it is seen first:
//! - **Delay** at the receiver: two probes in a row are late, by much more than the link varies,
//!   against the least of the last ten seconds. It tells the sender in a probe at once.
//! - **Loss** at the sender, from QUIC's loss detection (RFC 9002), which sees every packet: within a
//!   short window more are lost than chance can explain, given what the link usually loses.
//!
//! One packet late, or two lost, is chance. A degraded link has recovered when enough packets in a
//! row have come well over it, probes included, however few others it carries by then. Evidence from a
//! time in which this process was stalled is thrown away ([`Brownout::distrust`]): then everything looks late, and the links are not to blame.

mod loss;

use self::loss::LossWatch;
use crate::window::WindowedMin;

/// Probes in a row that must be late.
const LATE_IN_A_ROW: u32 = 2;
/// How late is late, at least.
const LEAST_EXCESS_US: i64 = 30_000;
/// … and in deviations of the link's delay.
const DEVIATIONS: f64 = 6.0;
/// A delay beyond this is silence, or a clock that has jumped: others notice those.
const MOST_EXCESS_US: i64 = 1_000_000;
/// What is normal is the least delay of so long.
const NORMAL_US: u64 = 10_000_000;
/// Before so many probes nothing is normal.
const LEAST_SAMPLES: u32 = 8;
/// How long probes must be in time again, and how many of them: shorter spells alternate.
const RECOVERY_US: u64 = 1_000_000;
const RECOVERY_PROBES: u32 = 8;
/// Cost of one percent of loss, as routing has it ([`crate::CostWeights`]), microseconds.
const LOSS_US_PER_PERCENT: f64 = 20_000.0;

/// Watches both directions of one link, from one of its ends.
#[derive(Debug, Clone, Default)]
pub struct Brownout {
    delay_in: DelayWatch,
    /// For how much: the peer sees it first.
    delay_out: DelayWatch,
    loss_out: LossWatch,
    peer_in: bool,
    peer_out: bool,
    distrusted_until: u64,
}

impl Brownout {
    /// Takes in a probe: the raw one-way differences it tells, the link's round-trip time, and
    /// whether its sender sees the way to itself, or from itself, degraded.
    pub fn on_probe(
        &mut self,
        now_us: u64,
        raw_in_us: i64,
        raw_out_us: Option<i64>,
        rtt_us: u64,
        (peer_in, peer_out): (bool, bool),
    ) {
        (self.peer_in, self.peer_out) = (peer_in, peer_out);
        if now_us < self.distrusted_until {
            return;
        }
        self.delay_in.push(now_us, raw_in_us, rtt_us);
        if let Some(raw) = raw_out_us {
            self.delay_out.push(now_us, raw, rtt_us);
        }
    }

    /// Takes in how many packets have been sent over the link and how many of them QUIC has declared
    /// lost, since the connection began.
    pub fn on_counts(&mut self, now_us: u64, sent: u64, lost: u64, rtt_us: u64) {
        let trusted = now_us >= self.distrusted_until;
        self.loss_out.push(now_us, sent, lost, rtt_us, trusted);
    }

    /// Whether packets have been lost lately, and those that are sent anyway tell too slowly whether
    /// that is a brownout: a few more should be sent now. True once for each time.
    pub fn wants_proof(&mut self) -> bool {
        self.loss_out.wants_proof()
    }

    /// What is seen until `until_us` is not the links' fault: this process was stalled, or most of
    /// its links look slow at once. What has been held against the link for delay is forgiven.
    pub fn distrust(&mut self, until_us: u64) {
        self.distrusted_until = self.distrusted_until.max(until_us);
        self.delay_in.forgive();
        self.delay_out.forgive();
    }

    /// The link is not up. What is lost then is no brownout. But what was normal before still is, and
    /// a degraded link stays so: a delay that grows by more than the detection time looks like a
    /// short outage, and so do some probes in a row that a lossy link loses.
    pub fn interrupt(&mut self) {
        self.loss_out.interrupt();
    }

    /// Forgets everything: the peer has restarted, and its clock with it.
    pub fn reset(&mut self) {
        *self = Self {
            distrusted_until: self.distrusted_until,
            ..Self::default()
        };
    }

    /// Whether what comes is late, as seen here: for the peer to know.
    #[must_use]
    pub fn sees_in(&self) -> bool {
        self.delay_in.is_degraded()
    }

    /// Whether what goes out is lost, as seen here: for the peer to know.
    #[must_use]
    pub fn sees_out(&self) -> bool {
        self.loss_out.is_degraded()
    }

    /// Whether the direction from the peer is degraded, as seen by either end.
    #[must_use]
    pub fn degraded_in(&self) -> bool {
        self.sees_in() || self.peer_out
    }

    /// Whether the direction to the peer is degraded, as seen by either end, and by how much:
    /// microseconds-equivalent.
    #[must_use]
    pub fn degraded_out(&self) -> Option<u32> {
        let loss = self.loss_out.is_degraded();
        if !loss && !self.peer_in {
            return None;
        }
        let delay_us = if self.peer_in {
            self.delay_out.excess_us.max(LEAST_EXCESS_US)
        } else {
            0
        };
        let loss_us = if loss {
            self.loss_out.share * 100.0 * LOSS_US_PER_PERCENT
        } else {
            0.0
        };
        Some(u32::try_from(delay_us + loss_us as i64).unwrap_or(u32::MAX))
    }

    /// The share lost on the way out lately, while that is degraded.
    #[must_use]
    pub fn share_out(&self) -> Option<f64> {
        self.loss_out.is_degraded().then_some(self.loss_out.share)
    }

    /// When the way in, or the way out, began to be late, if it is: what was measured before says
    /// nothing about it now.
    #[must_use]
    pub fn late_since(&self) -> (Option<u64>, Option<u64>) {
        (self.delay_in.late_since, self.delay_out.late_since)
    }
}

#[derive(Debug, Clone, Default)]
struct DelayWatch {
    normal: WindowedMin<i64>,
    samples: u32,
    deviation: f64,
    last: Option<i64>,
    late: u32,
    late_since: Option<u64>,
    /// There have been enough late ones, …
    degraded: bool,
    /// … and since then so many in time, since when.
    well: u32,
    well_since: u64,
    excess_us: i64,
}

impl DelayWatch {
    fn push(&mut self, now: u64, raw: i64, rtt_us: u64) {
        let known = self.normal.least().map(|(_, least)| least);
        let excess = known.map_or(0, |least| raw.wrapping_sub(least));
        if !(-60_000_000..MOST_EXCESS_US).contains(&excess) {
            // No delay does that: the clocks have jumped.
            *self = Self::default();
        } else if known.is_some() {
            let limit = LEAST_EXCESS_US
                .max((rtt_us / 8) as i64)
                .max((DEVIATIONS * self.deviation) as i64);
            if self.samples >= LEAST_SAMPLES && excess > limit {
                self.late += 1;
                self.late_since.get_or_insert(now);
                self.excess_us = excess;
                self.well = 0;
                self.degraded |= self.late >= LATE_IN_A_ROW;
            } else {
                self.on_time(now, raw);
            }
        }
        self.last = Some(raw);
        self.samples = self.samples.saturating_add(1);
        self.normal.push_by(
            now,
            raw,
            NORMAL_US,
            |raw, _| raw,
            |a, b| a.wrapping_sub(b) < 0,
        );
    }

    fn on_time(&mut self, now: u64, raw: i64) {
        if self.late == 0
            && let Some(last) = self.last
        {
            // As the jitter of RFC 3550.
            let apart = raw.wrapping_sub(last).unsigned_abs() as f64;
            self.deviation += (apart - self.deviation) / 16.0;
        }
        self.late = 0;
        if self.well == 0 {
            self.well_since = now;
        }
        self.well += 1;
        let well = self.well >= RECOVERY_PROBES && now >= self.well_since + RECOVERY_US;
        if !self.degraded || well {
            self.forgive();
        }
    }

    fn is_degraded(&self) -> bool {
        self.degraded
    }

    fn forgive(&mut self) {
        self.late = 0;
        self.late_since = None;
        self.degraded = false;
        self.well = 0;
        self.excess_us = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    const RTT_US: u64 = 80_000;

    /// Probes every 60 ms with up to `jitter_us` of varying delay; from `from_us` on `extra_us` more.
    /// Gives when the way in is degraded: from, to.
    fn watch_delay(seconds: u64, jitter_us: i64, from_us: u64, extra_us: i64) -> Vec<(u64, bool)> {
        let mut rng = Pcg64::seed_from_u64(9);
        let mut link = Brownout::default();
        let mut changes = vec![(0, false)];
        for n in 0..seconds * 1_000 / 60 {
            let now = n * 60_000;
            // 100 ppm of drift.
            let mut raw = 7_000_000_000 + (now / 10_000) as i64 + rng.random_range(0..=jitter_us);
            if (from_us..from_us + 4_000_000).contains(&now) {
                raw += extra_us;
            }
            link.on_probe(now, raw, None, RTT_US, (false, false));
            let degraded = link.degraded_in();
            if changes.last().is_some_and(|&(_, last)| last != degraded) {
                changes.push((now, degraded));
            }
        }
        changes
    }

    #[test]
    fn a_delay_of_a_tenth_of_a_second_more_is_noticed_with_the_second_probe_and_its_end_too() {
        let changes = watch_delay(30, 4_000, 10_000_000, 100_000);
        let [_, (from, true), (to, false)] = changes[..] else {
            panic!("{changes:?}");
        };
        assert!((10_060_000..=10_120_000).contains(&from), "{from}");
        assert!((14_900_000..=15_100_000).contains(&to), "{to}");
    }

    #[test]
    fn what_is_within_the_links_own_variation_is_no_brownout() {
        assert_eq!(watch_delay(600, 80_000, 10_000_000, 0).len(), 1);
        assert_eq!(watch_delay(60, 1_000, 10_000_000, 20_000).len(), 1);
    }

    #[test]
    fn one_late_probe_is_chance_and_a_clock_that_jumps_is_no_delay() {
        let mut link = Brownout::default();
        let mut raw = -5_000_000;
        for n in 0..200 {
            let now = n * 60_000;
            let spike = if n % 20 == 19 { 300_000 } else { 0 };
            if n == 100 {
                raw += 5_000_000_000; // the peer was suspended
            }
            link.on_probe(now, raw + spike, None, RTT_US, (false, false));
            assert!(!link.degraded_in(), "probe {n}");
        }
    }

    #[test]
    fn a_stalled_process_does_not_blame_its_links() {
        let mut link = Brownout::default();
        for n in 0..100_u64 {
            let now = n * 60_000;
            let stalled = n >= 90;
            if stalled {
                link.distrust(now + 50_000);
            }
            let raw = if stalled { 200_000 } else { 0 };
            link.on_probe(now, raw, None, RTT_US, (false, false));
            assert!(!link.degraded_in(), "probe {n}");
        }
    }

    #[test]
    fn the_sender_learns_of_delay_from_the_receiver_and_how_much_it_is() {
        let mut link = Brownout::default();
        for n in 0..30_u64 {
            let late = n >= 28;
            let out = if late { 190_000 } else { 40_000 };
            link.on_probe(n * 60_000, 0, Some(out), RTT_US, (n == 29, false));
            let expected = (n == 29).then_some(150_000);
            assert_eq!(link.degraded_out(), expected);
        }
    }

    #[test]
    fn a_delay_that_looked_like_an_outage_at_first_is_a_brownout_when_the_link_is_up_again() {
        let mut link = Brownout::default();
        for n in 0..200_u64 {
            // Nothing comes for 300 ms, then all of it late.
            let late = n >= 100;
            let now = n * 60_000 + if late { 300_000 } else { 0 };
            if (100..105).contains(&n) {
                link.interrupt();
            }
            let raw = if late { 300_000 } else { 0 };
            link.on_probe(now, raw, None, RTT_US, (false, false));
        }
        assert!(link.degraded_in());
    }
}
