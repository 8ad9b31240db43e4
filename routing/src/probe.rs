//! The conversation of probes between the two ends of a link, without its bytes.
//!
//! Each end sends probes on its own account, at its own interval. A probe carries the sender's
//! session (a random number, new at every start), its sequence number, its send stamp, and an echo
//! of the newest probe received from the other end. So one probe completes a round trip of the
//! other end's probe, tells both raw one-way differences and the loss of both directions.

use crate::brownout::Brownout;
use crate::estimator::{
    Counted, EstimatorConfig, LinkEstimate, LinkEstimator, LinkState, ProbeSample,
};
use std::time::Duration;

/// What one probe carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeFields {
    /// The sender's session discriminator: random, new at every start of the sender.
    pub session: u32,
    /// Counts the sender's probes on this link, from 1.
    pub seq: u32,
    /// The sender's monotonic clock when it sent this, in microseconds from any origin.
    pub sent_us: u64,
    /// How often the sender probes now, in microseconds.
    pub interval_us: u32,
    /// The newest probe that the sender has received from the other end.
    pub echo: Option<ProbeEcho>,
    /// What the sender thinks of the link; `None` from a version that does not say it.
    pub state: Option<LinkState>,
    /// The sender uses the link: both ends shall probe it fast.
    pub in_use: bool,
    /// A probe is asked for at once.
    pub answer: bool,
    /// The way to the sender is degraded.
    pub degraded_in: bool,
    /// The way from the sender is degraded, as far as it has seen by itself.
    pub degraded_out: bool,
}

/// A probe returned to who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeEcho {
    /// Session of the probe's sender.
    pub session: u32,
    /// Sequence number of the probe.
    pub seq: u32,
    /// Send stamp of the probe, by its sender's clock.
    pub sent_us: u64,
    /// When it was received, by the echoing end's clock.
    pub received_us: u64,
    /// How many different probes of that session the echoing end has received.
    pub received: u32,
}

/// What became of a received probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeVerdict {
    /// It was taken in.
    Accepted,
    /// It was the first of a new session of the peer: all that was known is forgotten, the probe
    /// is taken in.
    PeerRestarted,
    /// It was received before.
    Duplicate,
    /// It is so late that it cannot be told whether it was received before.
    TooLate,
    /// It is from a session of the peer that is over, or our own come back.
    WrongSession,
}

/// How many of our last probes an echo is accepted for: over 6 s at ten per second.
const REMEMBERED: usize = 64;

/// How many ended sessions of the peer are remembered, so that late probes of them do no harm.
const ENDED_SESSIONS: usize = 4;

/// One end of a link's probing: makes probes, takes in those of the peer, keeps the estimate.
///
/// ```
/// use std::time::Duration;
/// use tradewind_routing::{EstimatorConfig, LinkState, ProbeSession};
///
/// let every = Duration::from_millis(200);
/// let mut a = ProbeSession::new(0xa, every, EstimatorConfig::default());
/// let mut b = ProbeSession::new(0xb, every, EstimatorConfig::default());
/// for n in 0..8 {
///     let now = n * 200_000;
///     let (from_a, from_b) = (a.next_probe(now), b.next_probe(now));
///     b.on_probe(now + 30_000, &from_a); // 30 ms there,
///     a.on_probe(now + 70_000, &from_b); // 70 ms back
/// }
/// let link = a.estimate(1_500_000);
/// assert_eq!(link.state, LinkState::Up);
/// assert_eq!(link.rtt_min, Some(Duration::from_millis(100)));
/// ```
#[derive(Debug, Clone)]
pub struct ProbeSession {
    session: u32,
    interval: Duration,
    last_seq: u32,
    /// Send stamps of our last probes, at `seq % REMEMBERED`.
    sent: [(u32, u64); REMEMBERED],
    /// The highest of our sequence numbers that came back.
    echoed: u32,
    peer: Option<Peer>,
    ended: [Option<u32>; ENDED_SESSIONS],
    in_use: bool,
    estimator: LinkEstimator,
    brownout: Brownout,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    session: u32,
    /// Highest sequence number received.
    highest: u32,
    /// Bit `k`: `highest - k` was received.
    seen: u64,
    received: u32,
    newest: ProbeEcho,
    /// It uses the link.
    in_use: bool,
    state: Option<LinkState>,
}

impl ProbeSession {
    /// Begins probing every `interval` under the given discriminator, which must be random,
    /// different from that of any earlier run, and not 0 (on the wire that means "no echo").
    #[must_use]
    pub fn new(session: u32, interval: Duration, config: EstimatorConfig) -> Self {
        Self {
            session,
            interval,
            last_seq: 0,
            sent: [(0, 0); REMEMBERED],
            echoed: 0,
            peer: None,
            ended: [None; ENDED_SESSIONS],
            in_use: false,
            estimator: LinkEstimator::new(interval, config),
            brownout: Brownout::default(),
        }
    }

    /// How often [`ProbeSession::next_probe`] should be called.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Changes how often we probe; the peer learns it from the next probe.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
        let peers = self.estimator.peer_interval();
        self.estimator.set_intervals(interval, peers);
    }

    /// Whether we use the link, which the peer learns from the next probe. When we begin to, the
    /// peer has a round trip to begin probing fast.
    pub fn set_in_use(&mut self, now_us: u64, in_use: bool) {
        if in_use && !self.in_use {
            self.estimator.call(now_us);
        }
        self.in_use = in_use;
    }

    /// Whether the peer says that it uses the link.
    #[must_use]
    pub fn peer_uses_it(&self) -> bool {
        self.peer.is_some_and(|peer| peer.in_use)
    }

    /// What the peer says of the link; `None` before it has said anything.
    #[must_use]
    pub fn peer_says(&self) -> Option<LinkState> {
        self.peer.and_then(|peer| peer.state)
    }

    /// The probe to send now.
    pub fn next_probe(&mut self, now_us: u64) -> ProbeFields {
        let state = self.estimator.tick(now_us);
        self.last_seq = self.last_seq.wrapping_add(1).max(1);
        self.sent[self.last_seq as usize % REMEMBERED] = (self.last_seq, now_us);
        ProbeFields {
            session: self.session,
            seq: self.last_seq,
            sent_us: now_us,
            interval_us: u32::try_from(self.interval.as_micros()).unwrap_or(u32::MAX),
            echo: self.peer.map(|peer| ProbeEcho {
                received: peer.received,
                ..peer.newest
            }),
            state: Some(state),
            in_use: self.in_use,
            // A link that warms up does so at the speed of its round trips.
            answer: matches!(state, LinkState::Unknown | LinkState::Warming),
            degraded_in: self.brownout.sees_in(now_us),
            degraded_out: self.brownout.sees_out(now_us),
        }
    }

    /// Takes in a probe of the peer, received at `now_us` by our clock. Whatever it carries, it
    /// cannot do worse than be ignored or count as a sign of life.
    pub fn on_probe(&mut self, now_us: u64, probe: &ProbeFields) -> ProbeVerdict {
        if probe.session == self.session || self.ended.contains(&Some(probe.session)) {
            return ProbeVerdict::WrongSession;
        }
        let mut verdict = ProbeVerdict::Accepted;
        if let Some(old) = self.peer.filter(|peer| peer.session != probe.session) {
            self.ended.rotate_right(1);
            self.ended[0] = Some(old.session);
            self.peer = None;
            self.estimator.reset();
            verdict = ProbeVerdict::PeerRestarted;
        }
        let echo_of_it = ProbeEcho {
            session: probe.session,
            seq: probe.seq,
            sent_us: probe.sent_us,
            received_us: now_us,
            received: 0, // filled in when it is sent
        };
        let peer = self.peer.get_or_insert(Peer {
            session: probe.session,
            highest: probe.seq.wrapping_sub(1),
            seen: 0,
            received: 0,
            newest: echo_of_it,
            in_use: false,
            state: None,
        });
        let newest = match peer.note(probe.seq) {
            Ok(newest) => newest,
            Err(refused) => return refused,
        };
        if newest {
            peer.newest = echo_of_it;
            peer.in_use = probe.in_use;
            peer.state = probe.state;
        }
        // What an overtaken probe says of the link is no longer so.
        let peer_says = peer.state;
        let inbound = Counted {
            sent: peer.highest,
            received: peer.received,
        };
        let round = probe
            .echo
            .and_then(|echo| self.round_trip(now_us, probe.sent_us, &echo));
        if newest {
            let peers_interval = Duration::from_micros(probe.interval_us.into());
            self.estimator.set_intervals(self.interval, peers_interval);
        }
        self.estimator.on_sample(&ProbeSample {
            now_us,
            rtt: round.map(|round| round.rtt),
            raw_in_us: now_us.wrapping_sub(probe.sent_us) as i64,
            raw_out_us: round.map(|round| round.raw_out_us),
            held_us: round.map_or(0, |round| round.held_us),
            inbound,
            outbound: round.map(|round| round.outbound),
            peer_says,
        });
        if self.estimator.state() != LinkState::Up {
            self.brownout.reset();
        } else if newest {
            self.brownout.on_probe(
                now_us,
                now_us.wrapping_sub(probe.sent_us) as i64,
                round.map(|round| round.raw_out_us),
                self.estimator.last_rtt_us(),
                (probe.degraded_in, probe.degraded_out),
            );
            let (since_in, since_out) = self.brownout.late_since();
            self.estimator.forget_before(
                since_in.filter(|_| self.brownout.degraded_in(now_us)),
                since_out.filter(|_| self.brownout.degraded_out(now_us).is_some()),
            );
        }
        verdict
    }

    /// How many packets have been sent over the link, and how many of them QUIC has declared lost,
    /// since its connection began.
    pub fn on_counts(&mut self, now_us: u64, sent: u64, lost: u64) {
        let rtt_us = self.estimator.last_rtt_us();
        self.brownout.on_counts(now_us, sent, lost, rtt_us);
    }

    /// What is seen until `until_us` is not the link's fault.
    pub fn distrust(&mut self, until_us: u64) {
        self.brownout.distrust(until_us);
    }

    /// Whether the link works far worse than normal.
    #[must_use]
    pub fn brownout(&self) -> &Brownout {
        &self.brownout
    }

    /// Any other authentic packet from the peer: a sign of life.
    pub fn on_traffic(&mut self, now_us: u64) {
        self.estimator.on_traffic(now_us);
    }

    /// Lets time pass: to be called at least once per interval ([`ProbeSession::next_probe`] does)
    /// and as often as silence should be noticed.
    pub fn tick(&mut self, now_us: u64) -> LinkState {
        self.estimator.tick(now_us)
    }

    /// What is believed about the link now.
    pub fn estimate(&mut self, now_us: u64) -> LinkEstimate {
        self.estimator.estimate(now_us)
    }

    /// The state as it was when last looked at.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.estimator.state()
    }

    /// When the link is down unless something is heard before: look then.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        self.estimator.deadline_us()
    }

    /// How long a silence makes the link down.
    #[must_use]
    pub fn detection_time(&self) -> Duration {
        self.estimator.detection_time()
    }

    /// The round trip that `echo` completes, unless it did so before or cannot be true.
    fn round_trip(&mut self, now_us: u64, peer_sent_us: u64, echo: &ProbeEcho) -> Option<Round> {
        let (seq, sent_us) = self.sent[echo.seq as usize % REMEMBERED];
        let known = echo.session == self.session && echo.seq == seq && echo.sent_us == sent_us;
        if !known || echo.seq <= self.echoed {
            return None;
        }
        let elapsed_us = now_us.checked_sub(sent_us)?;
        let held_us = u64::try_from(peer_sent_us.wrapping_sub(echo.received_us) as i64).ok()?;
        let rtt_us = elapsed_us.checked_sub(held_us)?;
        self.echoed = echo.seq;
        Some(Round {
            rtt: Duration::from_micros(rtt_us),
            raw_out_us: echo.received_us.wrapping_sub(sent_us) as i64,
            held_us,
            outbound: Counted {
                sent: echo.seq,
                received: echo.received,
            },
        })
    }
}

#[derive(Clone, Copy)]
struct Round {
    rtt: Duration,
    raw_out_us: i64,
    held_us: u64,
    outbound: Counted,
}

impl Peer {
    /// Marks a sequence number as received: `Ok(true)` when it is the newest so far.
    fn note(&mut self, seq: u32) -> Result<bool, ProbeVerdict> {
        let newest = seq > self.highest || self.received == 0;
        if newest {
            let step = seq.wrapping_sub(self.highest);
            self.seen = if step < 64 { self.seen << step | 1 } else { 1 };
            self.highest = seq;
        } else {
            let back = self.highest - seq;
            if back >= 64 {
                return Err(ProbeVerdict::TooLate);
            }
            if self.seen & 1 << back != 0 {
                return Err(ProbeVerdict::Duplicate);
            }
            self.seen |= 1 << back;
        }
        self.received = self.received.saturating_add(1);
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
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
}
