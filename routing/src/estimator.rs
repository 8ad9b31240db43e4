//! What one relay believes about one link, from probes: delay, its variation, loss in each
//! direction, and whether the link is alive.
//!
//! *Unknown* is a state of its own and every number is optional: a link without answers has no
//! round-trip time, it does not have one of 0 ms.
//!
//! All times are microseconds of one monotonic clock, the relay's own, handed in. Time that goes
//! backwards is taken as standing still.

use std::{collections::VecDeque, time::Duration};

/// Whether a link can carry traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkState {
    /// Never heard from the peer, or not since it restarted.
    Unknown,
    /// The peer is heard, but there are not enough round trips (yet) to route on the link. A link
    /// that works in one direction only stays here.
    Warming,
    /// Enough round trips, the last of them recent.
    Up,
    /// Was up and has fallen silent in either direction (a peer that hears nothing from us returns
    /// no fresh echoes), or was warming and has fallen silent. Heard again, it warms up anew.
    Down,
}

/// Windows and limits of a [`LinkEstimator`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EstimatorConfig {
    /// Over how long the minimum round-trip time is taken. Long enough for one probe to pass
    /// without queueing, short enough to follow a changed route within seconds.
    pub rtt_window: Duration,
    /// Over how long the minima of the raw one-way differences are taken. Short: they drift with
    /// the clocks (100 ppm make 200 µs in 2 s). At least the last four probes count in any case.
    pub raw_window: Duration,
    /// Over how long loss is counted.
    pub loss_window: Duration,
    /// Round trips before the link is up.
    pub warm_round_trips: u32,
    /// How many probes in a row must be missed before the link is down.
    pub missed_probes: u32,
    /// A silence shorter than this never makes a link down.
    pub detection_floor: Duration,
}

impl Default for EstimatorConfig {
    fn default() -> Self {
        Self {
            rtt_window: Duration::from_secs(10),
            raw_window: Duration::from_secs(2),
            loss_window: Duration::from_secs(10),
            warm_round_trips: 3,
            missed_probes: 3,
            detection_floor: Duration::from_millis(250),
        }
    }
}

/// How many packets were sent in a direction since the peer's session began, and how many of them
/// came. Only differences between two of these are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Highest sequence number known to have been sent.
    pub sent: u32,
    /// Different packets received up to that point.
    pub received: u32,
}

/// What one received probe tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSample {
    /// When it was received, by our clock.
    pub now_us: u64,
    /// A new round trip it completes (the time the peer held the echo taken off), if any.
    pub rtt: Option<Duration>,
    /// Peer to us: our receive time minus the peer's send stamp, by two clocks.
    pub raw_in_us: i64,
    /// Us to the peer, if a new echo came: its receive time minus our send stamp.
    pub raw_out_us: Option<i64>,
    /// The peer's probes as counted by us.
    pub inbound: Counted,
    /// Our probes as counted by the peer, if a new echo came.
    pub outbound: Option<Counted>,
}

/// Lost and sent packets of one direction within the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LossCount {
    /// How many did not come.
    pub lost: u32,
    /// How many were sent, at least 1.
    pub sent: u32,
}

impl LossCount {
    /// The share that was lost, 0..=1.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from(self.lost) / f64::from(self.sent.max(1))
    }
}

/// What is believed about a link now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkEstimate {
    /// Whether it can carry traffic. The numbers below are absent in states `Unknown` and `Down`,
    /// and may be absent in `Warming`.
    pub state: LinkState,
    /// Minimum round-trip time of the window.
    pub rtt_min: Option<Duration>,
    /// Smoothed round-trip time (RFC 6298, α = 1/8).
    pub rtt_smoothed: Option<Duration>,
    /// Mean deviation of the round-trip time (RFC 6298's RTTVAR, β = 1/4, but beginning at 0).
    pub rtt_dev: Option<Duration>,
    /// Loss from the peer to us within the window.
    pub loss_in: Option<LossCount>,
    /// Loss from us to the peer within the window.
    pub loss_out: Option<LossCount>,
    /// Minimum raw difference from the peer to us: the one-way delay plus our clock minus the
    /// peer's. May be anything, also negative; see [`crate::clock_sync`].
    pub raw_in_us: Option<i64>,
    /// Minimum raw difference from us to the peer: the one-way delay plus the peer's clock minus
    /// ours.
    pub raw_out_us: Option<i64>,
}

impl LinkEstimate {
    /// Nothing but a state.
    #[must_use]
    pub fn nothing(state: LinkState) -> Self {
        Self {
            state,
            rtt_min: None,
            rtt_smoothed: None,
            rtt_dev: None,
            loss_in: None,
            loss_out: None,
            raw_in_us: None,
            raw_out_us: None,
        }
    }

    /// Whether traffic may be routed on the link.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state == LinkState::Up
    }
}

/// The estimator of one link, seen from one of its ends. Fed by [`crate::ProbeSession`].
///
/// Silence is counted in time during which this process was *awake*: when the clock jumps (a busy
/// processor, a suspended machine) the jump counts as one and a half probe intervals at most, so
/// that a relay that was stalled itself does not take all its peers for dead at once. This needs
/// [`LinkEstimator::tick`] at least once per probe interval.
#[derive(Debug, Clone)]
pub struct LinkEstimator {
    config: EstimatorConfig,
    interval_us: u64,
    peer_interval_us: u64,
    state: LinkState,
    now_us: u64,
    awake_us: u64,
    heard_at: u64,
    round_trip_at: u64,
    numbers: Numbers,
}

/// What is forgotten when the link goes down or the peer restarts.
#[derive(Debug, Clone, Default)]
struct Numbers {
    round_trips: u32,
    /// Smoothed RTT and deviation in microseconds.
    smoothed: Option<(f64, f64)>,
    rtt: WindowedMin<u64>,
    raw_in: WindowedMin<i64>,
    raw_out: WindowedMin<i64>,
    inbound: VecDeque<(u64, Counted)>,
    outbound: VecDeque<(u64, Counted)>,
}

impl LinkEstimator {
    /// A link of which nothing is known yet, probed by us every `interval`.
    #[must_use]
    pub fn new(interval: Duration, config: EstimatorConfig) -> Self {
        let interval_us = micros(interval).max(1);
        Self {
            config,
            interval_us,
            peer_interval_us: interval_us,
            state: LinkState::Unknown,
            now_us: 0,
            awake_us: 0,
            heard_at: 0,
            round_trip_at: 0,
            numbers: Numbers::default(),
        }
    }

    /// Sets how often we probe, and how often the peer says that it does. An absurd interval of
    /// the peer is brought between 1 ms and 60 s: it decides how soon silence is noticed.
    pub fn set_intervals(&mut self, ours: Duration, peers: Duration) {
        self.interval_us = micros(ours).max(1);
        self.peer_interval_us = micros(peers).clamp(1_000, 60_000_000);
    }

    /// How often the peer says that it probes.
    #[must_use]
    pub fn peer_interval(&self) -> Duration {
        Duration::from_micros(self.peer_interval_us)
    }

    /// Takes in a probe.
    pub fn on_sample(&mut self, sample: &ProbeSample) {
        self.advance(sample.now_us);
        if matches!(self.state, LinkState::Unknown | LinkState::Down) {
            self.forget(LinkState::Warming);
        }
        let now = self.now_us;
        self.heard_at = self.awake_us;
        let numbers = &mut self.numbers;
        let slowest = self.interval_us.max(self.peer_interval_us);
        let raw_window = micros(self.config.raw_window).max(4 * slowest);
        let rtt_window = micros(self.config.rtt_window).max(4 * slowest);
        let loss_window = micros(self.config.loss_window).max(20 * slowest);

        numbers.raw_in.push(now, sample.raw_in_us, raw_window);
        if let Some(raw) = sample.raw_out_us {
            numbers.raw_out.push(now, raw, raw_window);
        }
        push_count(&mut numbers.inbound, now, sample.inbound, loss_window);
        if let Some(counted) = sample.outbound {
            push_count(&mut numbers.outbound, now, counted, loss_window);
        }
        if let Some(rtt) = sample.rtt {
            let rtt = micros(rtt);
            numbers.rtt.push(now, rtt, rtt_window);
            numbers.round_trips = numbers.round_trips.saturating_add(1);
            numbers.smoothed = Some(smooth(numbers.smoothed, numbers.round_trips, rtt as f64));
            self.round_trip_at = self.awake_us;
            if numbers.round_trips >= self.config.warm_round_trips {
                self.state = LinkState::Up;
            }
        }
    }

    /// Any authentic packet from the peer is a sign of life of its direction.
    pub fn on_traffic(&mut self, now_us: u64) {
        self.advance(now_us);
        self.heard_at = self.awake_us;
    }

    /// Forgets everything: the peer has restarted, or the link's address has changed.
    pub fn reset(&mut self) {
        self.forget(LinkState::Unknown);
    }

    /// Lets time pass; notices silence.
    pub fn tick(&mut self, now_us: u64) -> LinkState {
        self.advance(now_us);
        let limit_in = self.detection_us(self.peer_interval_us);
        let limit_round = self.detection_us(self.peer_interval_us.max(self.interval_us));
        let silent = self.awake_us - self.heard_at > limit_in;
        let unechoed = self.awake_us - self.round_trip_at > limit_round;
        let lost = match self.state {
            LinkState::Up => silent || unechoed,
            LinkState::Warming => silent,
            LinkState::Unknown | LinkState::Down => false,
        };
        if lost {
            self.forget(LinkState::Down);
        }
        self.state
    }

    /// How long a silence must be before the link counts as down: the missed probes and four
    /// deviations (as RFC 6298 allows for an answer), at least the floor.
    #[must_use]
    pub fn detection_time(&self) -> Duration {
        Duration::from_micros(self.detection_us(self.peer_interval_us))
    }

    /// What is believed now.
    pub fn estimate(&mut self, now_us: u64) -> LinkEstimate {
        let state = self.tick(now_us);
        let numbers = &self.numbers;
        if matches!(state, LinkState::Unknown | LinkState::Down) {
            return LinkEstimate::nothing(state);
        }
        let as_duration = |us: f64| Duration::from_micros(us.round() as u64);
        LinkEstimate {
            state,
            rtt_min: numbers.rtt.min().map(Duration::from_micros),
            rtt_smoothed: numbers.smoothed.map(|(mean, _)| as_duration(mean)),
            rtt_dev: numbers.smoothed.map(|(_, dev)| as_duration(dev)),
            loss_in: loss(&numbers.inbound),
            loss_out: loss(&numbers.outbound),
            raw_in_us: numbers.raw_in.min(),
            raw_out_us: numbers.raw_out.min(),
        }
    }

    fn detection_us(&self, interval_us: u64) -> u64 {
        let deviation = self
            .numbers
            .smoothed
            .map_or(0.0, |(_, dev)| 4.0 * dev)
            .min(1e6) as u64;
        (u64::from(self.config.missed_probes) * interval_us + deviation)
            .max(micros(self.config.detection_floor))
    }

    fn advance(&mut self, now_us: u64) {
        let passed = now_us.saturating_sub(self.now_us);
        self.now_us = self.now_us.max(now_us);
        self.awake_us += passed.min(self.interval_us + self.interval_us / 2);
    }

    fn forget(&mut self, state: LinkState) {
        self.state = state;
        self.numbers = Numbers::default();
    }
}

/// RFC 6298, section 2: the deviation first, with the old mean. Unlike there the first samples are
/// averaged evenly and the deviation begins at 0 instead of half the RTT: that is caution fit for
/// a retransmission timer, but here it would read as jitter of a link nobody has seen vary.
fn smooth(known: Option<(f64, f64)>, count: u32, rtt: f64) -> (f64, f64) {
    let Some((mean, dev)) = known else {
        return (rtt, 0.0);
    };
    let even = 1.0 / f64::from(count);
    let dev = dev + even.max(1.0 / 4.0) * ((rtt - mean).abs() - dev);
    (mean + even.max(1.0 / 8.0) * (rtt - mean), dev)
}

fn push_count(counts: &mut VecDeque<(u64, Counted)>, now: u64, counted: Counted, window_us: u64) {
    // A count that goes back is a late packet: what it tells is in the newest one already.
    if counts
        .back()
        .is_some_and(|(_, last)| counted.sent < last.sent)
    {
        return;
    }
    counts.push_back((now, counted));
    while counts.front().is_some_and(|&(at, _)| at + window_us < now) {
        counts.pop_front();
    }
}

fn loss(counts: &VecDeque<(u64, Counted)>) -> Option<LossCount> {
    let ((_, first), (_, last)) = (counts.front()?, counts.back()?);
    let sent = last.sent.saturating_sub(first.sent);
    // Late packets from before the window can make it look as if more came than were sent.
    let received = last.received.saturating_sub(first.received).min(sent);
    (sent > 0).then_some(LossCount {
        lost: sent - received,
        sent,
    })
}

/// The minimum of the values within a sliding window: only those are kept that can still become
/// the minimum.
#[derive(Debug, Clone)]
struct WindowedMin<T>(VecDeque<(u64, T)>);

impl<T> Default for WindowedMin<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy + Ord> WindowedMin<T> {
    fn push(&mut self, now: u64, value: T, window_us: u64) {
        while self.0.back().is_some_and(|&(_, last)| last >= value) {
            self.0.pop_back();
        }
        self.0.push_back((now, value));
        while self.0.front().is_some_and(|&(at, _)| at + window_us < now) {
            self.0.pop_front();
        }
    }

    fn min(&self) -> Option<T> {
        self.0.front().map(|&(_, value)| value)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
