//! The state machine behind a link's window, over explicit time.
//!
//! Once per round (about a round trip) it looks at three things: how long the shortest wait in the
//! path's queues was, how much arrived, and how much was lost.
//!
//! - **Alone**, the normal state, it steers by the queue: it grows while nothing waits, holds when a
//!   little does, and comes back to what really arrived when more does. Loss up to
//!   [`TOLERATED_LOSS`] means nothing as long as nothing waits; more than [`HEAVY_LOSS`] does.
//! - **Competing**: the queue stays full although the link has gone down to its floor, so it is
//!   somebody else's, who fills queues until they overflow. Yielding further would be for ever, so
//!   the link takes its share as such flows do (CUBIC, RFC 9438), and yields again every
//!   [`COMPETE_FOR`] to see whether they are gone.
//!
//! The ideas are those of Vegas (Brakmo and Peterson, 1995) and BBR (Cardwell and others, 2016) for
//! the first state, of Copa (Arun and Balakrishnan, 2018) for the change between the two.

use std::time::Duration;

use super::{base::BaseDelay, cubic::Cubic};

/// Lost bytes of those sent in a round that count as noise while nothing waits.
const TOLERATED_LOSS: f64 = 0.05;
/// Lost bytes of those sent in a round that make the link back off, queue or not.
const HEAVY_LOSS: f64 = 0.10;
/// Growth per round: slow near where it last became too much, then twice as fast every
/// [`GAIN_ROUNDS`] rounds.
const MIN_GAIN: f64 = 0.01;
const MAX_GAIN: f64 = 0.25;
const GAIN_ROUNDS: f64 = 4.0;
/// After too much, a little less than what arrived: what waits must also drain.
const DRAIN: f64 = 0.95;
/// Most that one round takes away.
const MAX_CUT: f64 = 0.5;
/// Rounds at the floor with a full queue before it counts as somebody else's.
const PATIENCE: u32 = 4;
/// How long the link competes before it yields and looks again.
const COMPETE_FOR: Duration = Duration::from_secs(20);
/// A round takes at least this: shorter ones hold too few packets to measure a rate.
const MIN_ROUND: Duration = Duration::from_millis(25);
/// Acknowledged packets that make a round. Fewer say nothing about waiting: the peer holds an
/// acknowledgement back until it has several packets or its patience is over, which looks the same.
const MIN_PACKETS: u64 = 20;
/// Part of the window that must have been in use for a round to say something about its size.
const IN_USE: f64 = 0.85;
/// Most bytes per second: above this nothing has been tried.
const MAX_RATE: f64 = 1.25e9;
const MAX_WINDOW: f64 = (64 << 20) as f64;
/// Before anything is measured.
const UNMEASURED_RTT: Duration = Duration::from_millis(200);
const UNMEASURED_MAX_WINDOW: f64 = (4 << 20) as f64;

/// What the operator has said, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limits {
    /// Never more than this on average.
    pub(super) capacity: Option<f64>,
    /// Never less than this.
    pub(super) floor: f64,
    /// Where to begin.
    pub(super) start: f64,
}

/// One link's window.
#[derive(Debug, Clone)]
pub(super) struct Control {
    limits: Limits,
    /// Bytes of a full packet.
    mtu: f64,
    /// Packets the peer may have received without acknowledging them, with room for some lost.
    slack_packets: f64,
    state: State,
    base: BaseDelay,
    /// The smoothed round trip, queues included; without the peer's delay in acknowledging.
    smoothed: Option<Duration>,
    round: Round,
    /// What the granularity of acknowledgements adds to the capacity is taken away again by this
    /// factor, so that the average is right; at most 1.
    trim: f64,
    /// No outage is punished twice: packets sent before this have been accounted for.
    last_outage: Duration,
    /// Bytes.
    window: f64,
}

#[derive(Debug, Clone)]
enum State {
    Alone(Alone),
    Competing {
        since: Duration,
        share: Cubic,
        /// Losses of packets sent before this have been answered.
        answered: Duration,
    },
}

#[derive(Debug, Clone)]
struct Alone {
    /// Bytes per second.
    rate: f64,
    gain: f64,
    /// Rounds at the floor although too much waits.
    stuck: u32,
    /// Bytes per second with which it would compete: half of what it had before it began to yield
    /// (there is at least one other), or all it had when it last competed.
    before: Option<f64>,
}

/// What acknowledgements have said since `start`.
#[derive(Debug, Clone, Default)]
struct Round {
    start: Duration,
    /// A packet sent since `start` has been acknowledged: a round trip is over.
    complete: bool,
    shortest: Option<Duration>,
    packets: u64,
    acked: f64,
    lost: f64,
    /// When the latest of the lost ones was sent.
    lost_sent: Option<Duration>,
    /// The network has marked a packet (ECN, RFC 3168).
    marked: bool,
    /// Acknowledged in the present batch.
    batch: f64,
    /// Most bytes that were under way at once.
    peak: f64,
}

/// A finished round.
#[derive(Debug, Clone, Copy)]
struct Findings {
    /// By how much the shortest round trip in it was longer than an empty path's.
    waiting: Duration,
    target: Duration,
    /// Bytes per second that arrived.
    arrived: f64,
    /// Part of the bytes that was lost.
    loss: f64,
    marked: bool,
    /// The window was what held the sender back.
    in_use: bool,
}

impl Control {
    /// Of a link whose peer acknowledges every `ack_every` packets.
    pub(super) fn new(limits: Limits, mtu: u16, ack_every: u32) -> Self {
        let mut control = Self {
            limits,
            mtu: f64::from(mtu),
            slack_packets: f64::from(ack_every) * 1.6,
            state: State::Alone(Alone {
                rate: limits.start,
                gain: MIN_GAIN,
                stuck: 0,
                before: None,
            }),
            base: BaseDelay::default(),
            smoothed: None,
            round: Round::default(),
            trim: 1.0,
            last_outage: Duration::ZERO,
            window: 0.0,
        };
        control.update_window();
        control
    }

    /// Most bytes that may be under way.
    pub(super) fn window(&self) -> u64 {
        self.window as u64
    }

    /// Bytes per second the link is steered at.
    pub(super) fn rate(&self) -> f64 {
        match &self.state {
            State::Alone(alone) => alone.rate,
            State::Competing { .. } => self.window / self.smoothed().as_secs_f64(),
        }
    }

    /// Whether somebody else fills the path's queue.
    #[cfg(test)]
    pub(super) fn is_competing(&self) -> bool {
        matches!(self.state, State::Competing { .. })
    }

    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = f64::from(mtu);
        self.update_window();
    }

    /// A packet of `bytes`, sent at `sent`, was acknowledged. [`Self::batch_ends`] follows.
    pub(super) fn acknowledged(
        &mut self,
        now: Duration,
        sent: Duration,
        bytes: u64,
        smoothed: Duration,
    ) {
        let rtt = now.saturating_sub(sent);
        self.base.sample(now, rtt);
        self.smoothed = Some(smoothed.max(Duration::from_micros(1)));
        let round = &mut self.round;
        round.complete |= sent >= round.start;
        round.shortest = Some(round.shortest.map_or(rtt, |shortest| shortest.min(rtt)));
        round.packets += 1;
        round.acked += bytes as f64;
        round.batch += bytes as f64;
    }

    /// All packets of one acknowledgement have been told; `in_flight` bytes remain under way.
    pub(super) fn batch_ends(&mut self, now: Duration, in_flight: u64) {
        let round = &mut self.round;
        let under_way = in_flight as f64 + std::mem::take(&mut round.batch);
        round.peak = round.peak.max(under_way);
        if round.complete {
            let took = now.saturating_sub(round.start);
            // After a pause nothing that was counted over it is a rate.
            let paused = took > self.smoothed() * 4 + Duration::from_millis(200);
            if !paused && (took < MIN_ROUND || self.round.packets < MIN_PACKETS) {
                self.update_window();
                return;
            }
            let round = std::mem::replace(
                &mut self.round,
                Round {
                    start: now,
                    ..Round::default()
                },
            );
            if !paused {
                self.judge(now, took, &round);
            }
        }
        self.update_window();
    }

    /// Packets of `bytes` in all were lost, the latest of them sent at `sent`.
    pub(super) fn lost(&mut self, sent: Duration, bytes: u64) {
        self.round.lost_sent = self.round.lost_sent.max(Some(sent));
        self.round.lost += bytes as f64;
    }

    /// The network has marked packets instead of dropping them (ECN).
    pub(super) fn marked(&mut self) {
        self.round.marked = true;
    }

    /// Everything was lost for several round trips, up to a packet sent at `sent`: the path may be
    /// another one now.
    pub(super) fn outage(&mut self, now: Duration, sent: Duration) {
        if sent < self.last_outage {
            return;
        }
        self.last_outage = now;
        let rate = (self.rate() * MAX_CUT).max(self.limits.floor);
        self.state = State::alone(rate, MIN_GAIN);
        self.update_window();
    }

    fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(UNMEASURED_RTT)
    }

    fn judge(&mut self, now: Duration, took: Duration, round: &Round) {
        let (Some(rtt), Some(base)) = (round.shortest, self.base.get()) else {
            return;
        };
        let found = Findings {
            waiting: rtt.saturating_sub(base),
            target: target(base),
            arrived: round.acked / took.as_secs_f64(),
            loss: round.lost / (round.lost + round.acked).max(1.0),
            marked: round.marked,
            in_use: round.peak >= IN_USE * self.window,
        };
        if let (Some(capacity), true) = (self.limits.capacity, found.in_use) {
            let off = (capacity / found.arrived.max(1.0)).clamp(0.9, 1.1);
            self.trim = (self.trim * off).clamp(0.25, 1.0);
        }
        let least = self.limits.floor * self.smoothed().as_secs_f64() / self.mtu;
        let next = match &mut self.state {
            State::Alone(alone) => alone.judge(&found, &self.limits).map(|before| {
                let share = Cubic::begin(before * rtt.as_secs_f64() / self.mtu);
                State::Competing {
                    since: now,
                    share,
                    answered: now,
                }
            }),
            State::Competing {
                since,
                share,
                answered,
            } => {
                if found.waiting <= found.target / 2 {
                    // Whoever filled the queue has gone.
                    let rate = found.arrived.max(self.limits.floor);
                    Some(State::alone(rate, MIN_GAIN))
                } else if now.saturating_sub(*since) >= COMPETE_FOR {
                    let before = Some(share.packets() * self.mtu / rtt.as_secs_f64());
                    let mut alone = Alone::new(self.limits.floor, MAX_GAIN);
                    alone.before = before;
                    Some(State::Alone(alone))
                } else {
                    // One overflow takes more than a round to be noticed in full.
                    let new_loss = round.lost_sent.is_some_and(|sent| sent >= *answered);
                    if new_loss || found.marked {
                        share.cut();
                        *answered = now;
                    } else if found.in_use {
                        share.grow(took);
                    }
                    share.keep_within(least, MAX_WINDOW / self.mtu);
                    None
                }
            }
        };
        if let Some(next) = next {
            self.state = next;
        }
    }

    fn update_window(&mut self) {
        let smoothed = self.smoothed().as_secs_f64();
        let slack = self.slack_packets * self.mtu;
        let Some(base) = self.base.get() else {
            let fill = self.limits.start * UNMEASURED_RTT.as_secs_f64();
            self.window = fill.clamp(2.0 * slack, UNMEASURED_MAX_WINDOW);
            return;
        };
        let mut fill = match &self.state {
            // Half of what may wait: enough to keep the path busy while rounds differ.
            State::Alone(alone) => alone.rate * (base + target(base) / 2).as_secs_f64(),
            State::Competing { share, .. } => share.packets() * self.mtu,
        };
        if let Some(capacity) = self.limits.capacity {
            fill = fill.min(capacity * smoothed * self.trim);
        }
        // In the round trip as it is, the wait in others' queues included: the floor is a rate.
        fill = fill.max(self.limits.floor * smoothed);
        self.window = (fill + slack).min(MAX_WINDOW);
    }
}

impl State {
    fn alone(rate: f64, gain: f64) -> Self {
        Self::Alone(Alone::new(rate, gain))
    }
}

impl Alone {
    fn new(rate: f64, gain: f64) -> Self {
        Self {
            rate,
            gain,
            stuck: 0,
            before: None,
        }
    }

    /// Gives the rate (bytes per second) to compete with when yielding has not helped.
    fn judge(&mut self, found: &Findings, limits: &Limits) -> Option<f64> {
        let too_much = found.waiting > found.target || found.marked;
        if too_much && found.in_use {
            let before = *self.before.get_or_insert(found.arrived / 2.0);
            self.come_back(found.arrived, limits);
            if self.rate <= limits.floor {
                self.stuck += 1;
            }
            return (self.stuck >= PATIENCE).then_some(before);
        }
        if too_much {
            // It waits, but not because of this link: its users send less than they may.
            return None;
        }
        self.stuck = 0;
        self.before = None;
        if found.loss > HEAVY_LOSS {
            // Also when there is room in the window: something on the way lets no more pass.
            self.come_back(found.arrived, limits);
        } else if found.in_use && found.waiting <= found.target / 2 && found.loss <= TOLERATED_LOSS
        {
            let most = limits.capacity.unwrap_or(MAX_RATE).max(limits.floor);
            self.rate = (self.rate * (1.0 + self.gain)).min(most);
            self.gain = (self.gain * 2_f64.powf(1.0 / GAIN_ROUNDS)).min(MAX_GAIN);
        }
        None
    }

    fn come_back(&mut self, arrived: f64, limits: &Limits) {
        let least = (self.rate * MAX_CUT).max(limits.floor);
        self.rate = (self.rate.min(arrived) * DRAIN).max(least);
        self.gain = MIN_GAIN;
    }
}

/// How long packets may wait in the path's queues: 10 ms, or a tenth of a long round trip.
fn target(base: Duration) -> Duration {
    (base / 10).max(Duration::from_millis(10))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
