//! The retransmission timeout.

use std::time::Duration;

use super::ACK_DELAY;

const INITIAL: Duration = Duration::from_secs(1);
const MIN: Duration = Duration::from_millis(200);
const MAX: Duration = Duration::from_secs(4);

/// RFC 6298, with bounds fit for messages between people.
#[derive(Debug, Clone, Default)]
pub(super) struct Rtt {
    smoothed: Option<(Duration, Duration)>,
    /// Timeouts in a row.
    pub(super) backoffs: u32,
}

impl Rtt {
    pub(super) fn sample(&mut self, rtt: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((smoothed, deviation)) => (
                smoothed * 7 / 8 + rtt / 8,
                deviation * 3 / 4 + smoothed.abs_diff(rtt) / 4,
            ),
        });
        self.backoffs = 0;
    }

    /// The timeout now, backed off.
    pub(super) fn timeout(&self) -> Duration {
        let base = match self.smoothed {
            None => INITIAL,
            Some((smoothed, deviation)) => (smoothed + deviation * 4 + ACK_DELAY).clamp(MIN, MAX),
        };
        base.saturating_mul(1 << self.backoffs.min(5)).min(MAX)
    }

    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed.map(|(smoothed, _)| smoothed)
    }
}
