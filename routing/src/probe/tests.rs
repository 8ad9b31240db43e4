use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::collections::BTreeMap;

const EVERY_US: u64 = 100_000;

fn session(discriminator: u32) -> ProbeSession {
    let every = Duration::from_micros(EVERY_US);
    ProbeSession::new(discriminator, every, EstimatorConfig::default())
}

/// Two ends, each with a clock of its own, and a link between them.
struct Pair {
    ends: [ProbeSession; 2],
    clocks: [u64; 2],
    now: u64,
    flying: BTreeMap<(u64, u64), (usize, ProbeFields)>,
    sent: u64,
    rng: Pcg64,
    /// To end 0, to end 1.
    delay_us: [u64; 2],
    loss: [f64; 2],
}

impl Pair {
    fn new() -> Self {
        Self {
            ends: [session(1), session(2)],
            clocks: [5_000_000_000, u64::MAX / 2 + 12_345],
            now: 0,
            flying: BTreeMap::new(),
            sent: 0,
            rng: Pcg64::seed_from_u64(7),
            delay_us: [70_000, 30_000],
            loss: [0.0; 2],
        }
    }

    fn clock(&self, end: usize) -> u64 {
        self.clocks[end].wrapping_add(self.now)
    }

    /// Runs for `us`; `step` sees the world after each millisecond.
    fn run(&mut self, us: u64, mut step: impl FnMut(&mut Self)) {
        let until = self.now + us;
        while self.now < until {
            self.now += 1_000;
            while let Some(entry) = self.flying.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let (to, probe) = entry.remove();
                let clock = self.clock(to);
                self.ends[to].on_probe(clock, &probe);
            }
            for end in 0..2 {
                // The second end probes half an interval later.
                if (self.now + end as u64 * EVERY_US / 2).is_multiple_of(EVERY_US) {
                    let (clock, to) = (self.clock(end), 1 - end);
                    let probe = self.ends[end].next_probe(clock);
                    if !self.rng.random_bool(self.loss[to]) {
                        self.sent += 1;
                        let key = (self.now + self.delay_us[to], self.sent);
                        self.flying.insert(key, (to, probe));
                    }
                }
            }
            step(self);
        }
    }

    fn estimate(&mut self, end: usize) -> LinkEstimate {
        let clock = self.clock(end);
        self.ends[end].estimate(clock)
    }
}

#[test]
fn a_link_warms_up_before_it_is_up_and_then_shows_its_true_delays() {
    let mut pair = Pair::new();
    assert_eq!(pair.estimate(0), LinkEstimate::nothing(LinkState::Unknown));
    let mut seen = vec![LinkState::Unknown];
    pair.run(3_000_000, |pair| {
        let state = pair.estimate(0).state;
        if seen.last() != Some(&state) {
            seen.push(state);
        }
    });
    assert_eq!(
        seen,
        [LinkState::Unknown, LinkState::Warming, LinkState::Up]
    );
    for end in 0..2 {
        let link = pair.estimate(end);
        let rtt = Some(Duration::from_millis(100));
        assert_eq!((link.rtt_min, link.rtt_smoothed), (rtt, rtt));
        assert!(link.rtt_dev.unwrap() < Duration::from_millis(1));
        assert_eq!(
            (link.loss_in.unwrap().lost, link.loss_out.unwrap().lost),
            (0, 0)
        );
        // The two raw differences differ in sign of the clocks only.
        let sum = link
            .raw_in_us
            .unwrap()
            .wrapping_add(link.raw_out_us.unwrap());
        assert_eq!(sum, 100_000);
        let ahead = pair.clocks[end].wrapping_sub(pair.clocks[1 - end]) as i64;
        assert_eq!(
            link.raw_in_us.unwrap().wrapping_sub(ahead),
            pair.delay_us[end] as i64
        );
    }
}

#[test]
fn silence_in_either_direction_takes_the_link_down_at_both_ends_in_time() {
    for dead in 0..2 {
        let mut pair = Pair::new();
        pair.run(3_000_000, |_| {});
        pair.loss[dead] = 1.0;
        let cut = pair.now;
        let mut down = [None; 2];
        pair.run(2_000_000, |pair| {
            for (end, down) in down.iter_mut().enumerate() {
                let now = pair.now;
                if pair.estimate(end).state == LinkState::Down {
                    down.get_or_insert(now - cut);
                }
            }
        });
        // The deaf end hears silence after the packets in flight; the other misses echoes one
        // trip later.
        let (here, there) = (down[dead].unwrap(), down[1 - dead].unwrap());
        assert!(here <= pair.delay_us[dead] + 310_000, "{here}");
        assert!(there <= 100_000 + EVERY_US + 310_000, "{there}");
        for end in 0..2 {
            let link = pair.estimate(end);
            assert!(!link.is_usable() && link.rtt_min.is_none(), "{link:?}");
        }

        pair.loss[dead] = 0.0;
        pair.run(1_000_000, |_| {});
        assert!(pair.estimate(0).is_usable() && pair.estimate(1).is_usable());
        assert_eq!(
            pair.estimate(0).loss_in.unwrap().lost,
            0,
            "the outage is not loss"
        );
    }
}

#[test]
fn loss_is_told_apart_by_direction() {
    let mut pair = Pair::new();
    pair.loss = [0.2, 0.0];
    pair.run(60_000_000, |_| {});
    let (zero, one) = (pair.estimate(0), pair.estimate(1));
    let share = |loss: Option<crate::estimator::LossCount>| loss.unwrap().share();
    assert!(
        (0.08..0.35).contains(&share(zero.loss_in)),
        "{:?}",
        zero.loss_in
    );
    assert!(
        (0.08..0.35).contains(&share(one.loss_out)),
        "{:?}",
        one.loss_out
    );
    assert_eq!((share(zero.loss_out), share(one.loss_in)), (0.0, 0.0));
}

#[test]
fn a_stalled_relay_does_not_take_its_peers_for_dead() {
    let mut pair = Pair::new();
    pair.run(3_000_000, |_| {});
    // End 0 sleeps 5 s and looks at its timers before its sockets.
    pair.now += 5_000_000;
    assert_eq!(pair.estimate(0).state, LinkState::Up);
    pair.run(300_000, |pair| assert!(pair.estimate(0).is_usable()));
}

#[test]
fn a_delay_that_changes_is_followed_within_a_second_in_both_directions_of_change() {
    let mut pair = Pair::new();
    pair.run(20_000_000, |_| {});
    let base = pair.estimate(0);
    for (to_zero, rtt_ms) in [(170_000, 200), (40_000, 70)] {
        // The way from 1 to 0 changes, as seen at 0.
        pair.delay_us[0] = to_zero;
        pair.run(1_250_000, |_| {});
        let link = pair.estimate(0);
        let change = i64::from(to_zero as u32) - 70_000;
        let raw = link
            .raw_in_us
            .unwrap()
            .wrapping_sub(base.raw_in_us.unwrap());
        assert_eq!(raw, change, "the one-way difference");
        assert_eq!(
            link.raw_out_us, base.raw_out_us,
            "the other way is as it was"
        );
        pair.run(750_000, |_| {});
        let link = pair.estimate(0);
        assert_eq!(link.rtt_min, Some(Duration::from_millis(rtt_ms)));
        // What has changed for good does not count as jitter for long.
        assert!(link.rtt_dev.unwrap() < Duration::from_millis(2), "{link:?}");
    }
}

#[test]
fn a_suspended_machine_has_its_clock_compared_anew() {
    let mut pair = Pair::new();
    pair.run(10_000_000, |_| {});
    let before = pair.estimate(0);
    // The clock of end 1 stands still for four seconds while it is not there.
    pair.flying.clear();
    pair.clocks[1] = pair.clocks[1].wrapping_sub(4_000_000);
    pair.run(400_000, |_| {});
    let after = pair.estimate(0);
    assert!(after.is_usable());
    let moved = |a: Option<i64>, b: Option<i64>| b.unwrap().wrapping_sub(a.unwrap());
    assert_eq!(moved(before.raw_in_us, after.raw_in_us), 4_000_000);
    assert_eq!(moved(before.raw_out_us, after.raw_out_us), -4_000_000);
    assert!(!pair.ends[0].brownout().degraded_in());
}

#[test]
fn a_link_about_to_be_used_is_called_dead_soon_however_seldom_it_was_probed() {
    // Also where only the way out is dead: what comes in says nothing about that.
    for dead in [[1.0, 1.0], [0.0, 1.0]] {
        let mut pair = Pair::new();
        pair.run(3_000_000, |_| {});
        for end in &mut pair.ends {
            end.set_interval(Duration::from_secs(5));
        }
        // Both learn of it, and then nothing comes any more.
        pair.run(300_000, |_| {});
        pair.loss = dead;
        pair.run(1_000_000, |_| {});
        assert!(
            pair.estimate(0).is_usable(),
            "5 s between probes are no silence"
        );
        let clock = pair.clock(0);
        pair.ends[0].set_in_use(clock, true);
        pair.ends[0].set_interval(Duration::from_micros(EVERY_US));
        let asked = pair.now;
        while pair.estimate(0).is_usable() && pair.now < asked + 10_000_000 {
            pair.run(1_000, |_| {});
        }
        // A round trip of 100 ms and a quarter, and the detection time.
        let took = pair.now - asked;
        assert!((350_000..400_000).contains(&took), "{took} with {dead:?}");
    }
}

/// How often the link goes down by chance in so many hours, at a loss each way.
fn false_alarms(hours: u64, loss: f64) -> usize {
    let mut pair = Pair::new();
    pair.loss = [loss; 2];
    pair.run(2_000_000, |_| {});
    let mut alarms = 0;
    let mut up = true;
    for _ in 0..hours * 36_000 {
        pair.run(100_000, |_| {});
        // What QUIC acknowledges by itself: a packet of its own for most probes that come.
        for end in 0..2 {
            let there = !pair.rng.random_bool(pair.loss[1 - end]);
            if there && !pair.rng.random_bool(pair.loss[end]) {
                let clock = pair.clock(end);
                pair.ends[end].on_traffic(clock);
            }
        }
        let is_up = pair.estimate(0).is_usable() && pair.estimate(1).is_usable();
        alarms += usize::from(up && !is_up);
        up = is_up;
    }
    alarms
}

#[test]
fn chance_takes_a_link_down_once_in_many_hours_at_most() {
    assert_eq!(false_alarms(2, 0.01), 0);
    assert!(false_alarms(2, 0.03) <= 2);
}

#[test]
fn a_restarted_peer_begins_anew_and_late_probes_of_its_past_do_no_harm() {
    let mut pair = Pair::new();
    pair.run(3_000_000, |_| {});
    let clock = pair.clock(1);
    let late = pair.ends[1].next_probe(clock);
    pair.flying.clear();
    pair.ends[1] = session(3);
    pair.clocks[1] = 17;
    let clock = pair.clock(1);
    let first = pair.ends[1].next_probe(clock);
    let clock = pair.clock(0);
    assert_eq!(
        pair.ends[0].on_probe(clock, &first),
        ProbeVerdict::PeerRestarted
    );
    assert_eq!(pair.estimate(0).state, LinkState::Warming);
    assert_eq!(pair.estimate(0).rtt_min, None);
    assert_eq!(
        pair.ends[0].on_probe(clock, &late),
        ProbeVerdict::WrongSession
    );
    pair.run(1_000_000, |_| {});
    assert!(pair.estimate(0).is_usable());
    assert_eq!(
        pair.ends[0].on_probe(clock, &late),
        ProbeVerdict::WrongSession
    );
    assert!(pair.estimate(0).is_usable());
}

#[test]
fn duplicates_and_reordering_are_seen_for_what_they_are() {
    let (mut a, mut b) = (session(1), session(2));
    let probes: Vec<ProbeFields> = (0..80).map(|n| a.next_probe(n * EVERY_US)).collect();
    let verdicts: Vec<ProbeVerdict> = [2, 0, 0, 1, 2, 79, 3, 78]
        .iter()
        .map(|&n| b.on_probe(9_000_000, &probes[n]))
        .collect();
    use ProbeVerdict::{Accepted, Duplicate, TooLate};
    assert_eq!(
        verdicts,
        [
            Accepted, Accepted, Duplicate, Accepted, Duplicate, Accepted, TooLate, Accepted
        ]
    );
    let echo = b.next_probe(9_000_000).echo.unwrap();
    assert_eq!((echo.seq, echo.received), (80, 5));
}

#[test]
fn an_echo_counts_once_and_only_with_our_own_stamp() {
    let (mut a, mut b) = (session(1), session(2));
    b.on_probe(50_000, &a.next_probe(0));
    let answer = b.next_probe(60_000);
    let with_echo = |change: &dyn Fn(&mut ProbeEcho)| {
        let mut probe = answer;
        change(probe.echo.as_mut().unwrap());
        probe
    };
    let refused: [&dyn Fn(&mut ProbeEcho); 5] = [
        &|echo| echo.sent_us = 1,
        &|echo| echo.session = 9,
        &|echo| echo.seq = 65,
        &|echo| echo.received_us = 70_000, // held for less than no time
        &|echo| echo.received_us = 60_000u64.wrapping_sub(200_000), // held for longer than the round trip
    ];
    for (seq, change) in refused.into_iter().enumerate() {
        let probe = ProbeFields {
            seq: 10 + seq as u32,
            ..with_echo(change)
        };
        assert_eq!(a.on_probe(100_000, &probe), ProbeVerdict::Accepted);
        assert_eq!(a.estimate(100_000).rtt_min, None, "forged echo {seq}");
    }
    a.on_probe(100_000, &ProbeFields { seq: 20, ..answer });
    assert_eq!(a.estimate(100_000).rtt_min, Some(Duration::from_millis(90)));
    a.on_probe(
        101_000,
        &ProbeFields {
            seq: 21,
            sent_us: 61_000,
            ..answer
        },
    );
    assert_eq!(
        a.estimate(101_000).rtt_smoothed,
        Some(Duration::from_millis(90))
    );
}

#[test]
fn the_ends_of_a_long_link_do_not_take_each_other_down_in_turn() {
    // Each way there are more probes under way than a link needs to be up again.
    for delay_us in [150_000, 250_000, 400_000] {
        for silent in [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]] {
            let mut pair = Pair::new();
            pair.delay_us = [delay_us; 2];
            pair.run(5_000_000, |_| ());
            pair.loss = silent;
            pair.run(400_000, |_| ());
            pair.loss = [0.0; 2];
            let mut before = [0, 1].map(|end| pair.ends[end].state());
            let mut downs = [0; 2];
            pair.run(10_000_000, |pair| {
                for end in 0..2 {
                    let state = pair.ends[end].state();
                    if state == LinkState::Down && before[end] != LinkState::Down {
                        downs[end] += 1;
                    }
                    before[end] = state;
                }
            });
            assert!(
                downs.iter().all(|&downs| downs <= 1),
                "{delay_us}: {downs:?}"
            );
            assert_eq!(before, [LinkState::Up; 2], "{delay_us}");
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_can_be_received_makes_a_session_panic_or_lie(
        probes in proptest::collection::vec(
            (any::<[u32; 6]>(), any::<[u64; 4]>(), 0..4u32, any::<bool>()), 0..40),
    ) {
        let mut a = session(1);
        for (n, (words, stamps, near, echoed)) in probes.into_iter().enumerate() {
            a.next_probe(n as u64 * 1_000);
            let echo = ProbeEcho {
                session: 1,
                seq: n as u32 + near,
                sent_us: if near == 1 { n as u64 * 1_000 } else { stamps[1] },
                received_us: stamps[2],
                received: words[3],
            };
            let probe = ProbeFields {
                session: near,
                seq: words[0] >> (words[1] % 32),
                sent_us: stamps[0],
                interval_us: words[4],
                echo: echoed.then_some(echo),
                state: [None, Some(LinkState::Down), Some(LinkState::Up)][near as usize % 3],
                in_use: echoed,
                answer: echoed,
                degraded_in: echoed,
                degraded_out: echoed,
            };
            a.on_probe(stamps[3] >> (words[2] % 64), &probe);
            let link = a.estimate(n as u64);
            prop_assert!(!link.is_usable() || link.rtt_min.is_some());
            for loss in [link.loss_in, link.loss_out].into_iter().flatten() {
                prop_assert!((0.0..=1.0).contains(&loss.share()));
            }
        }
    }
}
