//! Which links' states the controller has to be told: those it would be wrong about.
//!
//! A relay of a thousand knows 999 links; all of them every second were 100 KB. Most say the same as
//! before. What has changed its state is told at once, figures when they have moved by more than
//! they always do, and everything every ten seconds. At a thousand relays that is about 100 links a
//! second by age and 60 by their figures (those that are probed fast), of some 70 bytes each: 11 KB/s,
//! 90 kbit/s. What is neither told nor probed again is as it was: raw differences move with the
//! clocks' drift, which the controller knows.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tradewind_proto::control::{LinkState, link_state::State};

/// Everything is told again after this.
const REFRESH: Duration = Duration::from_secs(10);
/// What one-way differences and round trips may move by, untold, at least: well below what routing
/// cares about.
const QUANTUM_US: u32 = 200;
/// So many bytes sent since are told, so that utilisation is known by the second.
const TRAFFIC_QUANTUM_BYTES: u64 = 250_000;
/// Differences of loss that are told, parts per million.
const LOSS_QUANTUM_PPM: u32 = 5_000;
/// Of drift, parts per billion: in ten seconds it makes 20 µs.
const DRIFT_QUANTUM_PPB: u32 = 2_000;

/// What the controller has been told on the present connection.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By peer and uplink.
    links: BTreeMap<(String, u32), (Instant, LinkState)>,
    whole: bool,
}

impl Told {
    /// What to tell of `links`, which are all there are, and whether it is only what has changed (the
    /// first time it is everything).
    pub(crate) fn next(&mut self, now: Instant, links: Vec<LinkState>) -> (Vec<LinkState>, bool) {
        let delta = std::mem::replace(&mut self.whole, true);
        let mut before = std::mem::take(&mut self.links);
        let mut tell = Vec::new();
        for link in links {
            let key = (link.peer.clone(), link.uplink);
            let known = before.remove(&key);
            let same = known.filter(|(at, told)| delta && !has_moved(told, &link, now - *at));
            let entry = same.unwrap_or_else(|| {
                tell.push(link.clone());
                (now, link)
            });
            self.links.insert(key, entry);
        }
        // Those that are no more are told once.
        tell.extend(before.into_keys().map(|(peer, uplink)| LinkState {
            peer,
            uplink,
            state: State::Down.into(),
            ..LinkState::default()
        }));
        (tell, delta)
    }
}

/// Whether somebody who was told `before`, that long ago, is wrong about `link` now.
fn has_moved(before: &LinkState, link: &LinkState, ago: Duration) -> bool {
    let states = |link: &LinkState| {
        (
            link.state,
            link.degraded_in,
            link.degraded_out,
            link.raw_known,
            link.peer_incarnation,
        )
    };
    let sent = link.bytes_sent.abs_diff(before.bytes_sent);
    if states(before) != states(link) || ago >= REFRESH || sent >= TRAFFIC_QUANTUM_BYTES {
        return true;
    }
    let quantum = QUANTUM_US
        .max(before.rtt_min_us / 50)
        .max(before.rtt_deviation_us / 2);
    let by_drift = |raw: i64, sign: f64| {
        let passed_us =
            ago.as_micros() as f64 + f64::from(before.raw_age_us) - f64::from(link.raw_age_us);
        raw.wrapping_add((sign * passed_us * f64::from(before.drift_ppb) / 1e9) as i64)
    };
    let apart = |expected: i64, seen: i64| expected.wrapping_sub(seen).unsigned_abs();
    before.rtt_min_us.abs_diff(link.rtt_min_us) > quantum
        || before.rtt_smoothed_us.abs_diff(link.rtt_smoothed_us) > 2 * quantum
        || before.rtt_deviation_us.abs_diff(link.rtt_deviation_us)
            > (before.rtt_deviation_us / 2).max(1_000)
        || before.loss_in_ppm.abs_diff(link.loss_in_ppm) > LOSS_QUANTUM_PPM
        || before.loss_out_ppm.abs_diff(link.loss_out_ppm) > LOSS_QUANTUM_PPM
        || before.drift_ppb.abs_diff(link.drift_ppb) > DRIFT_QUANTUM_PPB
        || apart(by_drift(before.raw_in_us, 1.0), link.raw_in_us) > u64::from(quantum)
        || apart(by_drift(before.raw_out_us, -1.0), link.raw_out_us) > u64::from(quantum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn begin() -> Instant {
        Instant::now()
    }

    fn link(peer: usize) -> LinkState {
        LinkState {
            peer: format!("relay-{peer:03}"),
            state: State::Up.into(),
            rtt_min_us: 80_000,
            rtt_smoothed_us: 81_000,
            rtt_deviation_us: 300,
            raw_in_us: 7_040_000,
            raw_out_us: -6_960_000,
            raw_known: true,
            drift_ppb: 50_000,
            bytes_sent: 123_456_789,
            bytes_received: 123_456_789,
            packets_sent: 1_234_567,
            packets_received: 1_234_567,
            loss_probes: 100,
            ..LinkState::default()
        }
    }

    #[test]
    fn the_first_report_is_whole_and_later_ones_name_what_has_changed() {
        let (mut told, now) = (Told::default(), begin());
        let links: Vec<LinkState> = (0..5).map(link).collect();
        let (first, delta) = told.next(now, links.clone());
        assert_eq!((first.len(), delta), (5, false));
        let second = Duration::from_secs(1);
        let mut later = links.clone();
        for link in &mut later {
            link.bytes_sent += 1_000; // nobody cares
            link.raw_in_us += 50; // the clocks drift, as the controller knows
            link.raw_out_us -= 50;
        }
        assert_eq!(told.next(now + second, later.clone()), (vec![], true));
        later[1].state = State::Down.into();
        later[2].raw_in_us += 5_000;
        later[3].degraded_out = true;
        let (some, delta) = told.next(now + second, later.clone());
        assert!(delta);
        assert_eq!(some, later[1..4]);
        assert_eq!(told.next(now + second, later), (vec![], true));
    }

    #[test]
    fn small_steps_add_up_and_everything_is_told_again_in_time() {
        let (mut told, now) = (Told::default(), begin());
        told.next(now, vec![link(1)]);
        let at = |ms: u64, us: u32| {
            let mut link = link(1);
            link.drift_ppb = 0;
            link.rtt_min_us += us;
            link.raw_in_us += i64::from(us);
            (now + Duration::from_millis(ms), vec![link])
        };
        let mut named = Vec::new();
        for step in 0..100_u64 {
            let (when, links) = at(step * 200, 400 * step as u32);
            if !told.next(when, links).0.is_empty() {
                named.push(step);
            }
        }
        // Every 1,600 to 2,400 µs: a fiftieth of the round trip, which grows.
        assert!((15..=20).contains(&named.len()), "{named:?}");
        let mut told = Told::default();
        let again = (0..=30)
            .filter(|&second| {
                let (when, links) = at(second * 1_000, 0);
                !told.next(when, links).0.is_empty()
            })
            .count();
        assert_eq!(again, 4);
    }

    #[test]
    fn a_link_that_is_no_more_is_down() {
        let (mut told, now) = (Told::default(), begin());
        told.next(now, vec![link(1), link(2)]);
        let (some, _) = told.next(now, vec![link(1)]);
        assert_eq!(some.len(), 1);
        assert_eq!(
            (some[0].peer.as_str(), some[0].state()),
            ("relay-002", State::Down)
        );
        assert_eq!(told.next(now, vec![link(1)]).0, vec![]);
    }

    #[test]
    fn a_thousand_links_of_which_a_few_vary_cost_a_tenth_of_a_megabit() {
        let (mut told, now) = (Told::default(), begin());
        let mut bytes = 0;
        for second in 0..60_u64 {
            let links = (0..999)
                .map(|peer| {
                    let mut link = link(peer);
                    if peer < 56 {
                        let jitter = (second as u32 * 7 + peer as u32 * 13) % 5 * 2_000;
                        link.rtt_smoothed_us += jitter;
                    }
                    let drifted = second as i64 * 50;
                    link.raw_in_us += drifted;
                    link.raw_out_us -= drifted;
                    link
                })
                .collect();
            let (some, _) = told.next(now + Duration::from_secs(second), links);
            if second > 0 {
                bytes += some.iter().map(prost::Message::encoded_len).sum::<usize>();
            }
        }
        let kbit = bytes as f64 / 59.0 * 8.0 / 1_000.0;
        assert!(kbit < 150.0, "{kbit} kbit/s");
    }
}
