//! What is sent when: decided before it begins, from the seed alone.

use std::time::Duration;

use rand::RngExt as _;
use tradewind_host::Rng;

use super::seeds;

/// Most echoes per second and ordered pair, …
const ECHOES_PER_PAIR: f64 = 2.0;
/// … and over all pairs.
const ECHOES: f64 = 900.0;
/// Most messages per second and ordered pair, …
const MESSAGES_PER_PAIR: f64 = 0.3;
/// … and over all pairs.
const MESSAGES: f64 = 300.0;

/// Bytes of a media packet, as audio and small video frames have.
const MEDIA_BYTES: std::ops::RangeInclusive<usize> = 160..=1_000;

/// Lane of short messages.
pub(super) const TEXT_LANE: u32 = 0;
/// Lane of long ones, for which text does not wait.
pub(super) const PICTURE_LANE: u32 = 1;
pub(super) const LANES: usize = 2;

/// One thing to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Send {
    /// Since measuring began.
    pub(super) at: Duration,
    /// Index of the place whose client it is for.
    pub(super) to: usize,
    pub(super) what: What,
    /// Bytes of payload.
    pub(super) bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// A media packet that the receiver sends back.
    Echo,
    /// A message.
    Message { lane: u32 },
}

/// What the client at place `from` of `n` sends within `duration`, in order of time: to each of
/// the others at least one echo and one message, evenly spaced, beginning at random.
pub(super) fn schedule(n: usize, from: usize, duration: Duration, seed: u64) -> Vec<Send> {
    let pairs = (n * (n - 1)) as f64;
    let period = |per_pair: f64, all: f64| {
        let rate = per_pair.min(all / pairs);
        duration.min(Duration::from_secs_f64(1.0 / rate))
    };
    let echo_period = period(ECHOES_PER_PAIR, ECHOES);
    let message_period = period(MESSAGES_PER_PAIR, MESSAGES);
    let mut rng = seeds::rng(seed, seeds::TRAFFIC, from as u64);
    let mut sends = Vec::new();
    for to in (0..n).filter(|&to| to != from) {
        for at in times(echo_period, duration, &mut rng) {
            let bytes = rng.random_range(MEDIA_BYTES);
            sends.push(Send {
                at,
                to,
                what: What::Echo,
                bytes,
            });
        }
        for at in times(message_period, duration, &mut rng) {
            let (lane, bytes) = match rng.random_range(0..100) {
                0..88 => (TEXT_LANE, 200),
                88..98 => (PICTURE_LANE, 5_000),
                _ => (PICTURE_LANE, 60_000),
            };
            let what = What::Message { lane };
            sends.push(Send {
                at,
                to,
                what,
                bytes,
            });
        }
    }
    sends.sort_unstable();
    sends
}

fn times(period: Duration, duration: Duration, rng: &mut Rng) -> Vec<Duration> {
    let first = period.mul_f64(rng.random_range(0.0..1.0));
    std::iter::successors(Some(first), |at| Some(*at + period))
        .take_while(|at| *at < duration)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(20);

    fn count(sends: &[Send], to: usize) -> (usize, usize) {
        let sends = sends.iter().filter(|send| send.to == to);
        let echoes = sends.clone().filter(|send| send.what == What::Echo).count();
        (echoes, sends.count() - echoes)
    }

    #[test]
    fn few_pairs_get_the_full_rate_each() {
        let sends = schedule(3, 1, WINDOW, 1);
        for to in [0, 2] {
            let (echoes, messages) = count(&sends, to);
            assert_eq!(echoes, 40);
            assert!((6..=7).contains(&messages), "{messages}");
        }
        assert!(sends.is_sorted());
        assert!(sends.iter().all(|send| send.at < WINDOW && send.to != 1));
    }

    #[test]
    fn many_pairs_share_what_one_machine_can_carry() {
        let all: usize = (0..40)
            .map(|from| schedule(40, from, WINDOW, 1).len())
            .sum();
        let per_second = all as f64 / WINDOW.as_secs_f64();
        assert!((1_100.0..1_300.0).contains(&per_second), "{per_second}");
    }

    #[test]
    fn every_pair_sends_something_in_the_shortest_window() {
        for from in 0..40 {
            let sends = schedule(40, from, Duration::from_millis(100), 3);
            for to in (0..40).filter(|&to| to != from) {
                assert_eq!(count(&sends, to), (1, 1));
            }
        }
    }
}
