//! Whether the other end of a link is there: signs of life, and when their absence is death.
//!
//! An end that hears nothing for the detection time T takes the link down *and says so* in its next
//! probes, as BFD does (RFC 5880): the other end, which may hear everything, then takes it down too.
//! So death in one direction is known at both ends after T and one trip, and lost echoes alone need
//! not be taken for death as soon as silence.
//!
//! T on a link in use is 250 ms: two and a half probe intervals of 100 ms (240 ms at 60 ms), and up
//! to 10 ms for its jitter. Within T come, in either direction, at least two probes and the
//! acknowledgements of two of the other direction, each by itself. With loss *p* each way, T is
//! silent by chance with p²·(1 − (1 − p)²)², ten times a second: at 1 % once in 700 hours, at 3 %
//! (2p is lost of an acknowledgement, for what it acknowledges may be lost too) once in 8 hours. (Losses
//! taken to be independent, and each acknowledgement to be a packet of its own, as most are.)
//! So links with loss, and those that carry data, are probed every 60 ms: three of each make it
//! once in 3,000 hours at 3 %. Data adds its own packets to that.
//!
//! Silence is counted in time during which this process was *awake*: when the clock jumps (a busy
//! processor, a suspended machine) the jump counts as one and a half probe intervals at most, so
//! that a relay that was stalled itself does not take all its peers for dead at once. This needs
//! [`Liveness::tick`] at least once per probe interval.

use crate::estimator::{EstimatorConfig, LinkState, micros};

#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    config: EstimatorConfig,
    interval_us: u64,
    peer_interval_us: u64,
    state: LinkState,
    now_us: u64,
    awake_us: u64,
    /// By the awake clock, as the one below.
    heard_at: u64,
    round_trip_at: u64,
    /// We have asked the peer to probe fast, and no probe that we have sent since has come back.
    called: Option<Called>,
    round_trips: u32,
    /// When the link went down last.
    down_at_us: Option<u64>,
    /// The peer says what it thinks of the link: an older version does not.
    peer_tells: bool,
    rtt_us: u64,
    deviation_us: u64,
}

#[derive(Debug, Clone, Copy)]
struct Called {
    at_us: u64,
    /// By the awake clock.
    awake_us: u64,
}

impl Liveness {
    pub(crate) fn new(interval_us: u64, config: EstimatorConfig) -> Self {
        Self {
            config,
            interval_us,
            peer_interval_us: interval_us,
            state: LinkState::Unknown,
            now_us: 0,
            awake_us: 0,
            heard_at: 0,
            round_trip_at: 0,
            called: None,
            round_trips: 0,
            down_at_us: None,
            peer_tells: false,
            rtt_us: 0,
            deviation_us: 0,
        }
    }

    pub(crate) fn state(&self) -> LinkState {
        self.state
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    pub(crate) fn peer_interval_us(&self) -> u64 {
        self.peer_interval_us
    }

    pub(crate) fn slowest_us(&self) -> u64 {
        self.interval_us.max(self.peer_interval_us)
    }

    pub(crate) fn set_intervals(&mut self, ours_us: u64, peers_us: u64) {
        let before = self.slowest_us();
        self.interval_us = ours_us;
        self.peer_interval_us = peers_us;
        if self.slowest_us() < before {
            // What was in time so far must not be late at once.
            self.round_trip_at = self.awake_us;
        }
    }

    /// What the estimator knows of the link, for how long to wait.
    pub(crate) fn set_delay(&mut self, rtt_us: u64, deviation_us: u64) {
        self.rtt_us = rtt_us;
        self.deviation_us = deviation_us;
    }

    /// Any authentic packet from the peer.
    pub(crate) fn heard(&mut self, now_us: u64) {
        self.advance(now_us);
        self.heard_at = self.awake_us;
    }

    /// A probe of the peer, which says what it thinks of the link, unless it is of a version that
    /// does not. `true` when the link has to be measured anew.
    pub(crate) fn probed(&mut self, now_us: u64, peer_says: Option<LinkState>) -> bool {
        self.heard(now_us);
        self.peer_tells = peer_says.is_some();
        if self.state == LinkState::Up && peer_says == Some(LinkState::Down) {
            // It hears nothing of us. (If it were an old opinion we would not be up again yet: see
            // [`Liveness::round_trip`].)
            self.set_state(LinkState::Down);
            return true;
        }
        let anew = matches!(self.state, LinkState::Unknown | LinkState::Down);
        if anew {
            self.set_state(LinkState::Warming);
        }
        anew
    }

    /// A probe of ours has come back that was sent at `sent_us`.
    ///
    /// A link that was down is up again by probes sent *since*: before they are back the peer has
    /// heard that the link was down, and has heard us after that. What it says from then on is no
    /// echo of our own "down". Were those counted that were under way when the link went down, the
    /// two ends of a long one could take each other down in turn for ever: each up again by old
    /// probes just when the other's answer to its last "down" arrives.
    pub(crate) fn round_trip(&mut self, sent_us: u64) {
        self.round_trip_at = self.awake_us;
        self.called.take_if(|called| sent_us >= called.at_us);
        if self.down_at_us.is_some_and(|down_at| sent_us < down_at) {
            return;
        }
        self.round_trips = self.round_trips.saturating_add(1);
        if self.state == LinkState::Warming && self.round_trips >= self.config.warm_round_trips {
            self.state = LinkState::Up;
        }
    }

    /// The link is about to be used: the peer has a round trip's time to begin probing fast. That
    /// it is heard meanwhile says nothing about the way there.
    pub(crate) fn call(&mut self, now_us: u64) {
        self.advance(now_us);
        self.called = Some(Called {
            at_us: self.now_us,
            awake_us: self.awake_us,
        });
    }

    pub(crate) fn set_state(&mut self, state: LinkState) {
        if state == LinkState::Down {
            self.down_at_us = Some(self.now_us);
        }
        self.state = state;
        self.round_trips = 0;
    }

    /// Lets time pass. `true` when the link has just gone down.
    pub(crate) fn tick(&mut self, now_us: u64) -> bool {
        self.advance(now_us);
        let dead = self
            .deadline()
            .is_some_and(|deadline| self.awake_us >= deadline);
        if dead {
            self.set_state(LinkState::Down);
        }
        dead
    }

    /// When the link is down unless something is heard before.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        let left = self.deadline()?.saturating_sub(self.awake_us);
        Some(self.now_us.saturating_add(left))
    }

    /// How long a silence must be before the link counts as down.
    pub(crate) fn detection_us(&self) -> u64 {
        self.patience_us(self.peer_interval_us)
    }

    fn deadline(&self) -> Option<u64> {
        match self.state {
            LinkState::Up => Some(self.silence_deadline().min(self.echo_deadline())),
            LinkState::Warming => Some(self.silence_deadline()),
            LinkState::Unknown | LinkState::Down => None,
        }
    }

    fn silence_deadline(&self) -> u64 {
        let usual = self.heard_at + self.patience_us(self.peer_interval_us);
        match self.called.filter(|_| self.peer_tells) {
            Some(called) => {
                let answer = called.awake_us + self.rtt_us + self.rtt_us / 4;
                usual.min(answer + self.patience_us(micros(self.config.fast_interval)))
            }
            None => usual,
        }
    }

    fn echo_deadline(&self) -> u64 {
        let patience = self.patience_us(self.slowest_us());
        // A peer that tells when it hears nothing is believed; this is for when it cannot.
        let patience = if self.peer_tells {
            3 * patience
        } else {
            patience + patience / 2
        };
        self.round_trip_at + patience
    }

    fn patience_us(&self, interval_us: u64) -> u64 {
        let usual = (interval_us * 5 / 2).max(micros(self.config.detection_floor));
        let jitter = 4 * self.deviation_us.min(1_000_000);
        usual + jitter.min(micros(self.config.jitter_allowance).max(interval_us / 10))
    }

    fn advance(&mut self, now_us: u64) {
        let passed = now_us.saturating_sub(self.now_us);
        self.now_us = self.now_us.max(now_us);
        self.awake_us += passed.min(self.interval_us + self.interval_us / 2);
    }
}
