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
            degraded_in: self.brownout.sees_in(),
            degraded_out: self.brownout.sees_out(),
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
        if verdict == ProbeVerdict::PeerRestarted {
            self.brownout.reset();
        } else if self.estimator.state() != LinkState::Up {
            self.brownout.interrupt();
        }
        if newest {
            self.brownout.on_probe(
                now_us,
                now_us.wrapping_sub(probe.sent_us) as i64,
                round.map(|round| round.raw_out_us),
                self.estimator.last_rtt_us(),
                (probe.degraded_in, probe.degraded_out),
            );
            let (since_in, since_out) = self.brownout.late_since();
            self.estimator.forget_before(
                since_in.filter(|_| self.brownout.degraded_in()),
                since_out.filter(|_| self.brownout.degraded_out().is_some()),
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

    /// Whether a few more probes should be sent now, see [`Brownout::wants_proof`].
    pub fn wants_proof(&mut self) -> bool {
        self.brownout.wants_proof()
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
mod tests;
