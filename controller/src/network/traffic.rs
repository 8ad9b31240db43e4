//! How much flows over each link: rates out of the relays' counters.

use std::{collections::BTreeMap, time::Duration};

use tradewind_proto::{LinkKey, RelayIndex, Uplink};

use super::by_link::ByLink;

/// A counter that was not named for this long stands still: relays name only what has changed.
const STANDS_STILL: Duration = Duration::from_secs(60);
/// Over what time a rate is averaged: long enough that a burst is no load, short enough that a
/// link which fills up is seen within seconds.
const AVERAGED_OVER: Duration = Duration::from_secs(5);

/// The sending rate of every link, as its sender counts it.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    counters: ByLink<Counter>,
}

#[derive(Debug, Clone, Copy)]
struct Counter {
    at: Duration,
    bytes: u64,
    /// Bytes per second.
    rate: f64,
}

impl Traffic {
    /// Takes in a relay's counter of what it sent to a peer since their connection began.
    pub(super) fn update(&mut self, now: Duration, key: LinkKey, bytes: u64) {
        let fresh = Counter {
            at: now,
            bytes,
            rate: 0.0,
        };
        let counter = self.counters.entry(key.from, key.to, key.uplink, || fresh);
        let elapsed = now.saturating_sub(counter.at);
        if elapsed.is_zero() {
            return; // two reports at once: the next one tells
        }
        // A smaller count is a new connection's.
        let sent = bytes.checked_sub(counter.bytes).unwrap_or(bytes);
        let rate = sent as f64 / elapsed.as_secs_f64();
        let weight = 1.0 - (-elapsed.as_secs_f64() / AVERAGED_OVER.as_secs_f64()).exp();
        *counter = Counter {
            at: now,
            bytes,
            rate: counter.rate + weight * (rate - counter.rate),
        };
    }

    /// A restarted relay counts from 0.
    pub(super) fn restarted(&mut self, relay: RelayIndex) {
        self.counters.retain_in_row(relay, |_, _| false);
    }

    /// Bytes per second over a link; 0 when nobody has said anything for a while.
    pub(super) fn rate(&self, now: Duration, key: LinkKey) -> f64 {
        self.counters
            .get(key.from, key.to, key.uplink)
            .map_or(0.0, |counter| counter.rate_at(now))
    }

    /// What a relay sends and receives over one of its uplinks, all links together.
    pub(super) fn of_uplinks(&self, now: Duration) -> BTreeMap<(RelayIndex, Uplink), (f64, f64)> {
        let mut sums: BTreeMap<(RelayIndex, Uplink), (f64, f64)> = BTreeMap::new();
        for (from, to, uplink, counter) in self.counters.iter() {
            let rate = counter.rate_at(now);
            if rate > 0.0 {
                sums.entry((from, uplink)).or_default().0 += rate;
                sums.entry((to, uplink)).or_default().1 += rate;
            }
        }
        sums
    }
}

impl Counter {
    fn rate_at(&self, now: Duration) -> f64 {
        match now < self.at + STANDS_STILL {
            true => self.rate,
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: LinkKey = LinkKey {
        from: RelayIndex(0),
        to: RelayIndex(1),
        uplink: Uplink(0),
    };
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_steady_flow_is_seen_as_what_it_is_within_some_seconds() {
        let mut traffic = Traffic::default();
        for second in 0..=20 {
            traffic.update(second * S, KEY, u64::from(second) * 1_000_000);
        }
        let rate = traffic.rate(20 * S, KEY);
        assert!((0.97e6..=1e6).contains(&rate), "{rate}");
        let sums = traffic.of_uplinks(20 * S);
        assert_eq!(sums[&(RelayIndex(1), Uplink(0))], (0.0, rate));
        assert_eq!(traffic.rate(81 * S, KEY), 0.0, "silence is no load");
    }

    #[test]
    fn a_counter_that_begins_anew_is_no_flood() {
        let mut traffic = Traffic::default();
        traffic.update(S, KEY, 5_000_000);
        traffic.update(2 * S, KEY, 5_000_000);
        traffic.update(3 * S, KEY, 1_000);
        assert!(traffic.rate(3 * S, KEY) <= 1_000.0);
    }
}
