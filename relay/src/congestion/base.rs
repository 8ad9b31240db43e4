//! The round trip of a path whose queues are empty.

use std::time::Duration;

/// How long a measurement counts, at least; at most twice as long. Long: beside a flow that keeps
/// the path's queue filled no empty one is seen for minutes, and a base that has grown by that queue
/// would allow the same again. A path that has become longer is meanwhile taken for a full queue,
/// which costs little: the link competes with nobody.
const MEMORY: Duration = Duration::from_secs(60);

/// The shortest round trip of the last one to two minutes.
#[derive(Debug, Clone, Default)]
pub(super) struct BaseDelay {
    /// Of the present minute.
    present: Option<Duration>,
    /// Of the minute before it.
    past: Option<Duration>,
    since: Duration,
}

impl BaseDelay {
    pub(super) fn sample(&mut self, now: Duration, rtt: Duration) {
        if now.saturating_sub(self.since) >= MEMORY {
            self.past = self.present.take();
            self.since = now;
        }
        self.present = Some(self.present.map_or(rtt, |shortest| shortest.min(rtt)));
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.present.into_iter().chain(self.past).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_has_become_longer_is_known_after_two_minutes() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let mut base = BaseDelay::default();
        assert_eq!(base.get(), None);
        base.sample(s(1), ms(40));
        base.sample(s(2), ms(50));
        base.sample(s(61), ms(90));
        assert_eq!(base.get(), Some(ms(40)));
        base.sample(s(122), ms(91));
        assert_eq!(base.get(), Some(ms(90)));
        base.sample(s(123), ms(30));
        assert_eq!(base.get(), Some(ms(30)), "a shorter one at once");
    }
}
