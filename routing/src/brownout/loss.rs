//! Loss far beyond what a link usually has, from QUIC's counts at the sender.

use std::collections::VecDeque;

/// Loss is looked at over each of these, whenever a packet is found lost.
const WINDOWS_US: [u64; 5] = [100_000, 150_000, 250_000, 500_000, LONGEST_US];
const LONGEST_US: u64 = 1_000_000;
/// Losses are found in bunches, when an acknowledgement comes after one that was lost: they may be
/// of packets from so long before the window.
const BUNCHED_US: u64 = 40_000;
/// Fewer losses are chance, whatever the arithmetic says: they come in pairs.
const LEAST_LOST: u64 = 3;
/// A window counts as so many packets at least: where few are sent, a lost acknowledgement bunches
/// the losses of a longer time.
const LEAST_SENT: u64 = 12;
/// Less than this is no brownout, however certain.
const LEAST_SHARE: f64 = 0.1;
/// How probable it may be that a window of a link that is as usual looks like a brownout. With
/// [`LEAST_USUAL`] it makes three losses of twenty packets enough.
const CHANCE: f64 = 1e-5;
/// More losses than this are judged by Chernoff's bound alone.
const MOST_SUMMED: u64 = 64;
/// A link is taken to lose so much usually, at least.
const LEAST_USUAL: f64 = 0.002;
/// What is usual is so many packets of belief, with a quarter of a loss in them, …
const PRIOR_SENT: f64 = 100.0;
const PRIOR_LOST: f64 = 0.25;
/// … and what was seen lately, forgotten with this time constant.
const USUAL_S: f64 = 60.0;
/// A degraded link has recovered when it has carried so many packets well, …
const LEAST_PROOF: u64 = 30;
/// … for this time. It doubles when the link relapses soon, up to the second.
const RECOVERY_US: (u64, u64) = (2_000_000, 10_000_000);
/// How soon is soon, after it was thought to be well.
const RELAPSE_US: u64 = 10_000_000;
/// To be more certain more packets are needed where there are fewer than this within
/// [`THIN_US`], on a link that loses less than this usually.
const THIN_SENT: u64 = 50;
const THIN_US: u64 = 250_000;
const THIN_USUAL: f64 = 0.02;
/// Counts are kept so far apart.
const COUNT_SPACING_US: u64 = 10_000;

#[derive(Debug, Clone, Default)]
pub(super) struct LossWatch {
    /// When, sent, lost.
    counts: VecDeque<(u64, u64, u64)>,
    usual: Usual,
    spell: Option<Spell>,
    /// The share lost lately, while degraded.
    pub(super) share: f64,
    recovery_us: u64,
    recovered_at: Option<u64>,
    wants_proof: bool,
}

/// While a link is degraded.
#[derive(Debug, Clone, Copy)]
struct Spell {
    /// When it was last seen to be bad, and what had been sent by then.
    bad_at: u64,
    sent: u64,
}

impl LossWatch {
    pub(super) fn push(&mut self, now: u64, sent: u64, lost: u64, rtt_us: u64, trusted: bool) {
        let last = self.counts.back().copied();
        if last.is_some_and(|(_, last_sent, last_lost)| sent < last_sent || lost < last_lost) {
            *self = Self::default(); // another connection
        }
        let worse = last.is_some_and(|(.., last)| lost > last);
        if !worse && last.is_some_and(|(at, ..)| now < at + COUNT_SPACING_US) {
            return;
        }
        self.counts.push_back((now, sent, lost));
        let longest = LONGEST_US + BUNCHED_US + rtt_us.min(2_000_000) + 100_000;
        while self
            .counts
            .front()
            .is_some_and(|&(at, ..)| at + longest < now)
        {
            self.counts.pop_front();
        }
        if !trusted {
            return;
        }
        if worse {
            self.judge(now, sent, rtt_us);
        }
        self.recover(now, sent, rtt_us);
        if now >= self.usual.at + LONGEST_US {
            let (sent, lost) = self.within(now, LONGEST_US, 0, rtt_us);
            self.usual.learn(now, sent, lost, self.spell.is_none());
        }
    }

    /// What has been lost lately is no evidence.
    pub(super) fn interrupt(&mut self) {
        self.counts.clear();
        self.wants_proof = false;
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.spell.is_some()
    }

    /// Whether packets have been lost lately, and those that are sent anyway tell too slowly
    /// whether that is a brownout. Once for each time.
    pub(super) fn wants_proof(&mut self) -> bool {
        std::mem::take(&mut self.wants_proof)
    }

    fn judge(&mut self, now: u64, sent_now: u64, rtt_us: u64) {
        let usual = self.usual.share();
        for window in WINDOWS_US {
            let (sent, lost) = self.within(now, window, BUNCHED_US, rtt_us);
            let share = lost as f64 / sent.max(1) as f64;
            let enough = sent.max(LEAST_SENT);
            if share >= LEAST_SHARE && is_beyond_chance(enough, lost, usual) {
                self.begin_or_go_on(now, sent_now, share);
                return;
            }
        }
        if self.spell.is_some() {
            let (sent, lost) = self.within(now, LONGEST_US, 0, rtt_us);
            let share = lost as f64 / sent.max(1) as f64;
            if lost >= 2 && share >= LEAST_SHARE.max(2.0 * usual) {
                self.begin_or_go_on(now, sent_now, share);
            }
        } else {
            let (sent, _) = self.within(now, THIN_US, 0, rtt_us);
            self.wants_proof = sent < THIN_SENT && usual < THIN_USUAL;
        }
    }

    fn begin_or_go_on(&mut self, now: u64, sent: u64, share: f64) {
        self.share = share.min(1.0);
        if self.spell.is_none() {
            let relapse = self.recovered_at.is_some_and(|at| now < at + RELAPSE_US);
            let (least, most) = RECOVERY_US;
            self.recovery_us = if relapse {
                (2 * self.recovery_us).clamp(least, most)
            } else {
                least
            };
        }
        self.spell = Some(Spell { bad_at: now, sent });
    }

    /// What was sent in the last round trip may yet be found lost.
    fn recover(&mut self, now: u64, sent: u64, rtt_us: u64) {
        let well = self.spell.is_some_and(|spell| {
            now >= spell.bad_at + rtt_us + self.recovery_us && sent >= spell.sent + LEAST_PROOF
        });
        if well {
            self.spell = None;
            self.recovered_at = Some(now);
        }
    }

    /// Packets sent and lost within a window; sent also a little before it. What is declared lost
    /// now was sent a round trip ago, when more may have been sent than now, or fewer.
    fn within(&self, now: u64, window: u64, before: u64, rtt_us: u64) -> (u64, u64) {
        let at = |time: u64| {
            let position = self.counts.partition_point(|&(at, ..)| at <= time);
            let (_, sent, lost) = match position.checked_sub(1) {
                Some(index) => self.counts[index],
                None => self.counts.front().copied().unwrap_or_default(),
            };
            (sent, lost)
        };
        let from = now.saturating_sub(window);
        let sent = at(now).0 - at(from.saturating_sub(before)).0;
        let then = at(now.saturating_sub(rtt_us)).0;
        let then_before = at(from.saturating_sub(before + rtt_us)).0;
        (sent.max(then - then_before), at(now).1 - at(from).1)
    }
}

/// What a link usually loses.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    at: u64,
    sent: f64,
    lost: f64,
}

impl Usual {
    fn learn(&mut self, now: u64, sent: u64, lost: u64, is_usual: bool) {
        let passed = now.saturating_sub(self.at) as f64 / 1e6;
        self.at = now;
        if is_usual {
            let keep = (-passed / USUAL_S).exp();
            self.sent = self.sent * keep + sent as f64;
            self.lost = self.lost * keep + lost as f64;
        }
    }

    fn share(&self) -> f64 {
        let share = (self.lost + PRIOR_LOST) / (self.sent + PRIOR_SENT);
        share.clamp(LEAST_USUAL, 1.0)
    }
}

/// Whether `lost` of `sent` are more than chance explains when `usual` is the share that is lost.
fn is_beyond_chance(sent: u64, lost: u64, usual: f64) -> bool {
    let (n, k) = (sent.max(lost) as f64, lost as f64);
    let share = k / n.max(1.0);
    if lost < LEAST_LOST || share <= usual {
        return false;
    }
    // Chernoff's bound, by Kullback and Leibler's divergence.
    let kept = 1.0 - share;
    let rest = if kept > 0.0 {
        kept * (kept / (1.0 - usual)).ln()
    } else {
        0.0
    };
    let limit = CHANCE.ln();
    if -n * (share * (share / usual).ln() + rest) <= limit {
        return true;
    }
    if lost > MOST_SUMMED {
        return false;
    }
    // The tail of the binomial distribution itself: its first term, and the ratios of the others.
    let ways: f64 = (0..lost)
        .map(|i| ((n - i as f64) / (k - i as f64)).ln())
        .sum();
    let first = ways + k * usual.ln() + (n - k) * (1.0 - usual).ln();
    let odds = usual / (1.0 - usual);
    let (mut term, mut sum, mut i) = (1.0, 1.0, k);
    while i < n && term > 1e-3 * sum {
        term *= (n - i) / (i + 1.0) * odds;
        sum += term;
        i += 1.0;
    }
    first + f64::ln(sum) <= limit
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    const RTT_US: u64 = 80_000;

    #[test]
    fn three_of_twenty_are_enough_on_a_good_link_and_not_on_a_bad_one() {
        assert!(is_beyond_chance(20, 3, LEAST_USUAL));
        assert!(!is_beyond_chance(30, 3, LEAST_USUAL));
        assert!(!is_beyond_chance(4, 2, LEAST_USUAL));
        assert!(!is_beyond_chance(20, 3, 0.03));
        assert!(is_beyond_chance(20, 7, 0.03));
        // By the binomial distribution: 1.1e-5, and 1.9e-6.
        assert!(!is_beyond_chance(100, 12, 0.03));
        assert!(is_beyond_chance(100, 13, 0.03));
    }

    /// A link with `rate` packets a second of ours, besides the proof it wants, of which a share is
    /// lost: found out a round trip and up to 25 ms later.
    struct Path {
        rng: Pcg64,
        watch: LossWatch,
        now: u64,
        sent: u64,
        lost: u64,
        proof: u64,
        flying: VecDeque<u64>,
    }

    impl Path {
        fn new(seed: u64) -> Self {
            Self {
                rng: Pcg64::seed_from_u64(seed),
                watch: LossWatch::default(),
                now: 0,
                sent: 0,
                lost: 0,
                proof: 0,
                flying: VecDeque::new(),
            }
        }

        /// Lets time pass until `until` says so, or `seconds` are over; gives the time it took.
        fn run(&mut self, rate: u64, loss: f64, seconds: f64, until: bool) -> Option<u64> {
            let begin = self.now;
            let end = begin + (seconds * 1e6) as u64;
            let mut next = begin;
            while self.now < end {
                self.now += 5_000;
                let mut due = 0;
                while next <= self.now {
                    due += 1;
                    next += 1_000_000 / rate;
                }
                if self.proof > 0 && self.now.is_multiple_of(15_000) {
                    self.proof -= 1;
                    due += 1;
                }
                for _ in 0..due {
                    self.sent += 1;
                    if self.rng.random_bool(loss) {
                        let found = RTT_US + self.rng.random_range(10_000..35_000);
                        self.flying.push_back(self.now + found);
                    }
                }
                while self.flying.front().is_some_and(|&at| at <= self.now) {
                    self.flying.pop_front();
                    self.lost += 1;
                }
                self.watch
                    .push(self.now, self.sent, self.lost, RTT_US, true);
                if self.watch.wants_proof() {
                    self.proof = 8;
                }
                if self.watch.is_degraded() == until {
                    return Some(self.now - begin);
                }
            }
            None
        }

        fn false_alarms(&mut self, rate: u64, loss: f64, seconds: u64) -> u32 {
            let (end, mut alarms) = (self.now + seconds * 1_000_000, 0);
            while self.now < end {
                let left = (end - self.now) as f64 / 1e6;
                if self.run(rate, loss, left, true).is_some() {
                    alarms += 1;
                    self.run(rate, loss, 60.0, false);
                }
            }
            alarms
        }
    }

    #[test]
    fn of_66_packets_a_second_a_third_lost_is_noticed_within_half_a_second() {
        let mut took: Vec<u64> = (0..400)
            .map(|seed| {
                let mut path = Path::new(seed);
                path.run(66, 0.000_5, 20.0, true);
                path.run(66, 0.3, 5.0, true).expect("noticed") / 1_000
            })
            .collect();
        took.sort_unstable();
        // A round trip of 80 ms is in it.
        let (median, p95, p99) = (took[200], took[380], took[396]);
        assert!(
            median <= 260 && p95 <= 400 && p99 <= 500,
            "median {median} ms, 95 % {p95} ms, 99 % {p99} ms"
        );
    }

    #[test]
    fn what_the_link_always_loses_is_rarely_a_brownout() {
        for (rate, loss, most) in [(66, 0.000_5, 0), (66, 0.03, 3), (10, 0.03, 3), (2, 0.03, 2)] {
            let alarms: u32 = (0..10)
                .map(|seed| Path::new(seed).false_alarms(rate, loss, 600))
                .sum();
            assert!(alarms <= most, "{alarms} in 100 minutes at {rate}, {loss}");
        }
    }

    #[test]
    fn a_link_that_carries_only_probes_is_not_declared_good_while_it_loses_a_fifth() {
        for seed in 0..50 {
            let mut path = Path::new(seed);
            path.run(66, 0.0, 10.0, true);
            assert!(path.run(66, 0.2, 10.0, true).is_some());
            // Some probes lost in a row look like an outage.
            path.watch.interrupt();
            assert!(path.watch.is_degraded());
            let early = path.run(33, 0.2, 30.0, false);
            assert_eq!(early, None, "seed {seed}");
            let healed = path.run(33, 0.0, 30.0, false).expect("it is well again");
            assert!(healed < 2_500_000, "{healed}");
        }
    }

    #[test]
    fn a_link_that_relapses_is_trusted_later_each_time() {
        let mut path = Path::new(1);
        path.run(66, 0.0, 10.0, true);
        let mut took = Vec::new();
        for _ in 0..4 {
            assert!(path.run(66, 0.5, 10.0, true).is_some());
            took.push(path.run(66, 0.0, 30.0, false).expect("it is well again") / 1_000_000);
        }
        assert_eq!(took, [2, 4, 8, 10]);
    }
}
