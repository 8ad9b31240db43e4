//! How much somebody may send: a token bucket.

use std::time::Instant;

/// A rate, of which up to a second's worth may be used at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    /// Bytes per second.
    rate: f64,
    /// Most bytes that are saved up.
    most: f64,
    /// Bytes that may be sent now, and when that was so.
    left: (f64, Instant),
}

impl Allowance {
    /// A second's worth to begin with. Something of `largest` bytes can always be sent in the end.
    pub(crate) fn new(bytes_per_second: f64, largest: usize, now: Instant) -> Self {
        let most = bytes_per_second.max(largest as f64);
        Self {
            rate: bytes_per_second,
            most,
            left: (most, now),
        }
    }

    /// The same with another rate; what is left stays, as far as the new one allows it.
    pub(crate) fn with_rate(self, bytes_per_second: f64, largest: usize, now: Instant) -> Self {
        let mut changed = Self::new(bytes_per_second, largest, now);
        changed.left.0 = changed.most.min(self.left.0);
        changed
    }

    /// Whether `bytes` may be sent now.
    pub(crate) fn allows(&mut self, bytes: usize, now: Instant) -> bool {
        let (left, at) = self.left;
        let earned = now.saturating_duration_since(at).as_secs_f64() * self.rate;
        self.left = ((left + earned).min(self.most), now.max(at));
        self.left.0 >= bytes as f64
    }

    /// Takes off what has been sent.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.left.0 -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    /// What gets through in ten seconds of sending more than allowed.
    fn sent(mut allowance: Allowance, bytes: usize, now: Instant) -> usize {
        let mut sent = 0;
        for step in 0..10_000 {
            if allowance.allows(bytes, now + Duration::from_millis(step)) {
                allowance.spend(bytes);
                sent += bytes;
            }
        }
        sent
    }

    #[test]
    fn a_rate_and_a_second_at_once() {
        let now = start();
        let allowance = Allowance::new(10_000.0, 100, now);
        let sent = sent(allowance, 100, now);
        assert!((109_000..=110_000).contains(&sent), "{sent}");
    }

    #[test]
    fn the_largest_packet_passes_however_low_the_rate() {
        let now = start();
        let mut allowance = Allowance::new(10.0, 1_000, now);
        assert!(allowance.allows(1_000, now));
        allowance.spend(1_000);
        assert!(!allowance.allows(1_000, now + Duration::from_secs(99)));
        assert!(allowance.allows(1_000, now + Duration::from_secs(101)));
    }

    #[test]
    fn a_new_rate_gives_nothing_away() {
        let now = start();
        let mut allowance = Allowance::new(10_000.0, 100, now);
        assert!(allowance.allows(9_900, now));
        allowance.spend(9_900);
        let mut lower = allowance.with_rate(1_000.0, 100, now);
        assert!(!lower.allows(200, now));
        assert!(lower.allows(200, now + Duration::from_millis(150)));
    }
}
