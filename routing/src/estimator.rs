//! What one relay believes about one link, from probes: delay, its variation, loss in each
//! direction, and whether the link is alive.
//!
//! *Unknown* is a state of its own and every number is optional: a link without answers has no
//! round-trip time, it does not have one of 0 ms.
//!
//! All times are microseconds of one monotonic clock, the relay's own, handed in. Time that goes
//! backwards is taken as standing still.

use std::{collections::VecDeque, time::Duration};

use crate::{drift::DriftFit, liveness::Liveness, window::WindowedMin};

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
    /// Was up and has fallen silent in either direction (a peer that hears nothing from us says so,
    /// and returns no fresh echoes), or was warming and has fallen silent. Heard again, it warms up
    /// anew.
    Down,
}

/// Loss is counted over so many probes at least: of fewer one lost by accident would be per cents.
const LOSS_PROBES: u64 = 50;

/// Windows and limits of a [`LinkEstimator`]. Every window holds at least some probes, however
/// slowly a link is probed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EstimatorConfig {
    /// Over how long the minimum round-trip time is taken, as long as it is still met now and then.
    pub rtt_window: Duration,
    /// A minimum that nothing has come near to for so long is forgotten: the route has changed.
    pub step_window: Duration,
    /// Over how long the minima of the raw one-way differences are taken. Short, so that routing
    /// follows a changed delay within a second.
    pub raw_window: Duration,
    /// Over how long loss is counted.
    pub loss_window: Duration,
    /// Round trips before the link is up.
    pub warm_round_trips: u32,
    /// How often a link in use is probed: what a peer is expected to do once it has been asked.
    pub fast_interval: Duration,
    /// A silence shorter than this never makes a link down.
    pub detection_floor: Duration,
    /// How much longer silence may be for varying delay, at most.
    pub jitter_allowance: Duration,
}

impl Default for EstimatorConfig {
    fn default() -> Self {
        Self {
            rtt_window: Duration::from_secs(10),
            step_window: Duration::from_secs(1),
            raw_window: Duration::from_secs(1),
            loss_window: Duration::from_secs(20),
            warm_round_trips: 3,
            fast_interval: Duration::from_millis(100),
            detection_floor: Duration::from_millis(240),
            jitter_allowance: Duration::from_millis(10),
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
    /// How long the peer held that echo, microseconds by its clock.
    pub held_us: u64,
    /// The peer's probes as counted by us.
    pub inbound: Counted,
    /// Our probes as counted by the peer, if a new echo came.
    pub outbound: Option<Counted>,
    /// What the peer says of the link; `None` when it is of a version that says nothing.
    pub peer_says: Option<LinkState>,
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
    /// Mean deviation of the round-trip time, from the differences of successive ones (as the jitter
    /// of RFC 3550): a delay that changes for good is no deviation.
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
    /// How long ago the two above held, microseconds.
    pub raw_age_us: u64,
    /// How much faster our clock runs than the peer's, parts per billion, once that is known.
    pub drift_ppb: Option<i32>,
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
            raw_age_us: 0,
            drift_ppb: None,
        }
    }

    /// Whether traffic may be routed on the link.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state == LinkState::Up
    }
}

/// The estimator of one link, seen from one of its ends. Fed by [`crate::ProbeSession`].
#[derive(Debug, Clone)]
pub struct LinkEstimator {
    config: EstimatorConfig,
    live: Liveness,
    numbers: Numbers,
    /// Outlives outages: crystals keep their rate.
    drift: DriftFit,
}

/// What is forgotten when the link goes down or the peer restarts.
#[derive(Debug, Clone, Default)]
struct Numbers {
    round_trips: u32,
    /// Smoothed RTT and deviation, and the last RTT, in microseconds.
    smoothed: Option<Smoothed>,
    rtt: WindowedMin<u64>,
    raw_in: WindowedMin<i64>,
    raw_out: WindowedMin<i64>,
    /// When the last round trip was completed, and how far the clocks seemed apart by it.
    apart: Option<(u64, i64)>,
    inbound: VecDeque<(u64, Counted)>,
    outbound: VecDeque<(u64, Counted)>,
}

#[derive(Debug, Clone, Copy)]
struct Smoothed {
    mean: f64,
    deviation: f64,
    last: f64,
}

impl LinkEstimator {
    /// A link of which nothing is known yet, probed by us every `interval`.
    #[must_use]
    pub fn new(interval: Duration, config: EstimatorConfig) -> Self {
        Self {
            config,
            live: Liveness::new(micros(interval).max(1), config),
            numbers: Numbers::default(),
            drift: DriftFit::default(),
        }
    }

    /// Sets how often we probe, and how often the peer says that it does. An absurd interval of
    /// the peer is brought between 1 ms and 60 s: it decides how soon silence is noticed.
    pub fn set_intervals(&mut self, ours: Duration, peers: Duration) {
        self.live
            .set_intervals(micros(ours).max(1), micros(peers).clamp(1_000, 60_000_000));
    }

    /// How often the peer says that it probes.
    #[must_use]
    pub fn peer_interval(&self) -> Duration {
        Duration::from_micros(self.live.peer_interval_us())
    }

    /// The state as it was when last looked at.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.live.state()
    }

    /// Takes in a probe.
    pub fn on_sample(&mut self, sample: &ProbeSample) {
        if self.live.probed(sample.now_us, sample.peer_says) {
            self.numbers = Numbers::default();
        }
        if self.live.state() == LinkState::Down {
            return; // the peer hears nothing of us
        }
        let now = self.live.now_us();
        let numbers = &mut self.numbers;
        let slowest = self.live.slowest_us();
        let loss_window = micros(self.config.loss_window).max(LOSS_PROBES * slowest);
        push_count(&mut numbers.inbound, now, sample.inbound, loss_window);
        if let Some(counted) = sample.outbound {
            push_count(&mut numbers.outbound, now, counted, loss_window);
        }

        let drift = self.drift.ppb().unwrap_or(0.0);
        let rtt = sample.rtt.map(|rtt| {
            // The time held is by the peer's clock.
            let held = (sample.held_us as f64 * drift / 1e9) as i64;
            micros(rtt).saturating_add_signed(-held)
        });
        if let Some(rtt) = rtt {
            let apart = sample.raw_in_us.wrapping_sub((rtt / 2) as i64);
            if numbers.clocks_jumped(now, apart, rtt) {
                numbers.raw_in.clear();
                numbers.raw_out.clear();
                self.drift.step();
            }
            numbers.apart = Some((now, apart));
            self.drift.push(now, apart, rtt);
        }
        let raw_window = micros(self.config.raw_window).max(slowest * 5 / 2);
        let less = |a: i64, b: i64| a.wrapping_sub(b) < 0;
        let run = |by: u64| (by as f64 * drift / 1e9) as i64;
        numbers.raw_in.push_by(
            now,
            sample.raw_in_us,
            raw_window,
            |raw, by| raw.wrapping_add(run(by)),
            less,
        );
        let (Some(rtt), Some(raw_out)) = (rtt, sample.raw_out_us) else {
            return;
        };
        let came_there = now.saturating_sub(sample.held_us + rtt / 2);
        numbers.raw_out.push_by(
            came_there,
            raw_out,
            raw_window,
            |raw, by| raw.wrapping_sub(run(by)),
            less,
        );
        let rtt_window = micros(self.config.rtt_window).max(4 * slowest);
        let step_window = micros(self.config.step_window).max(4 * slowest);
        numbers.rtt.push(now, rtt, rtt_window);
        numbers.forget_unmet_minimum(now, rtt_window, step_window);
        numbers.round_trips = numbers.round_trips.saturating_add(1);
        let smoothed = smooth(numbers.smoothed, numbers.round_trips, rtt as f64);
        numbers.smoothed = Some(smoothed);
        self.live.set_delay(rtt, smoothed.deviation as u64);
        let took = micros(sample.rtt.unwrap_or_default()) + sample.held_us;
        self.live.round_trip(now.saturating_sub(took));
    }

    /// Any authentic packet from the peer is a sign of life of its direction.
    pub fn on_traffic(&mut self, now_us: u64) {
        self.live.heard(now_us);
    }

    /// The link is about to be used: if the peer does not answer within a round trip and the
    /// detection time of a link in use, however slowly the link has been probed until now, it is
    /// down.
    pub fn call(&mut self, now_us: u64) {
        self.live.call(now_us);
    }

    /// The ways in and out have been far worse than before since then: what was measured before
    /// that, by our clock, says nothing about them any more.
    pub fn forget_before(&mut self, since_in_us: Option<u64>, since_out_us: Option<u64>) {
        let now = self.live.now_us();
        let numbers = &mut self.numbers;
        if let Some(since) = since_in_us {
            numbers.raw_in.expire(now, now.saturating_sub(since));
        }
        if let Some(since) = since_out_us {
            numbers.raw_out.expire(now, now.saturating_sub(since));
        }
        if let Some(since) = since_in_us.or(since_out_us) {
            numbers.rtt.expire(now, now.saturating_sub(since));
        }
    }

    /// The last round-trip time, microseconds; 0 while there is none.
    #[must_use]
    pub fn last_rtt_us(&self) -> u64 {
        self.numbers
            .smoothed
            .map_or(0, |smoothed| smoothed.last as u64)
    }

    /// Forgets everything: the peer has restarted, or the link's address has changed.
    pub fn reset(&mut self) {
        self.live.set_state(LinkState::Unknown);
        self.numbers = Numbers::default();
        self.drift.step();
    }

    /// Lets time pass; notices silence.
    pub fn tick(&mut self, now_us: u64) -> LinkState {
        if self.live.tick(now_us) {
            self.numbers = Numbers::default();
        }
        self.live.state()
    }

    /// When silence will be death, if nothing is heard before.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        self.live.deadline_us()
    }

    /// How long a silence must be before the link counts as down: two and a half of the peer's
    /// intervals and a little for jitter, at least the floor.
    #[must_use]
    pub fn detection_time(&self) -> Duration {
        Duration::from_micros(self.live.detection_us())
    }

    /// What is believed now.
    pub fn estimate(&mut self, now_us: u64) -> LinkEstimate {
        let state = self.tick(now_us);
        let drift = self.drift.ppb();
        if matches!(state, LinkState::Unknown | LinkState::Down) {
            return LinkEstimate {
                drift_ppb: drift.map(|ppb| ppb as i32),
                ..LinkEstimate::nothing(state)
            };
        }
        let numbers = &self.numbers;
        let as_duration = |us: f64| Duration::from_micros(us.round() as u64);
        // Both as of the moment of the first one.
        let (raw_in, raw_out) = (numbers.raw_in.least(), numbers.raw_out.least());
        let raw_at = raw_in.map_or(0, |(at, _)| at);
        let raw_out = raw_out.map(|(at, raw)| {
            let later = raw_at as f64 - at as f64;
            raw.wrapping_sub((later * drift.unwrap_or(0.0) / 1e9) as i64)
        });
        LinkEstimate {
            state,
            rtt_min: numbers
                .rtt
                .least()
                .map(|(_, rtt)| Duration::from_micros(rtt)),
            rtt_smoothed: numbers.smoothed.map(|smoothed| as_duration(smoothed.mean)),
            rtt_dev: numbers
                .smoothed
                .map(|smoothed| as_duration(smoothed.deviation)),
            loss_in: loss(&numbers.inbound),
            loss_out: loss(&numbers.outbound),
            raw_in_us: raw_in.map(|(_, raw)| raw),
            raw_out_us: raw_out,
            raw_age_us: self.live.now_us().saturating_sub(raw_at),
            drift_ppb: drift.map(|ppb| ppb as i32),
        }
    }
}

impl Numbers {
    /// Whether the clocks have moved against each other by more than delays can explain: a machine
    /// was suspended. (Half a round trip is how far the estimate can be off, each time.)
    fn clocks_jumped(&self, now: u64, apart: i64, rtt: u64) -> bool {
        let (Some((then, before)), Some(smoothed)) = (self.apart, self.smoothed) else {
            return false;
        };
        let explained = (rtt + smoothed.last as u64) / 2 + 10_000;
        let drifted = now.saturating_sub(then) / 2_000; // 500 ppm
        apart.wrapping_sub(before).unsigned_abs() > explained + drifted
    }

    /// Forgets the minimum when all of late is far above it.
    fn forget_unmet_minimum(&mut self, now: u64, window_us: u64, step_us: u64) {
        let Some((_, least)) = self.rtt.least() else {
            return;
        };
        let lately = self.rtt.least_since(now.saturating_sub(step_us));
        let near = least + (least / 20).max(2_000);
        if lately.is_some_and(|lately| lately > near) {
            self.rtt.expire(now, step_us.min(window_us));
        }
    }
}

/// The mean as in RFC 6298 (α = 1/8), with the first samples averaged evenly. The deviation from
/// successive differences, as RFC 3550 has it (section 6.4.1), less the √2 by which two independent
/// values differ more than one from its mean, with β = 1/4.
fn smooth(known: Option<Smoothed>, count: u32, rtt: f64) -> Smoothed {
    let Some(Smoothed {
        mean,
        deviation,
        last,
    }) = known
    else {
        return Smoothed {
            mean: rtt,
            deviation: 0.0,
            last: rtt,
        };
    };
    let even = 1.0 / f64::from(count);
    let apart = (rtt - last).abs() / std::f64::consts::SQRT_2;
    Smoothed {
        mean: mean + even.max(1.0 / 8.0) * (rtt - mean),
        deviation: deviation + even.max(1.0 / 4.0) * (apart - deviation),
        last: rtt,
    }
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

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
