//! How fast a link may be filled.
//!
//! A loss-based controller starves long links: at 1 % loss and 250 ms CUBIC leaves 0.5 Mbit/s to all
//! calls on the link together. And one that begins with ten packets makes everybody wait: a picture
//! fills the window, and the voice packets and probes behind it leave a round trip later, which
//! looks like a bad link and moves traffic away. So links have their own: they begin with what the
//! operator has configured, take no notice of some loss, back off when packets wait in the path's
//! queues or many are lost, and never go below a floor. See `docs/decisions/0014`.

mod base;
mod control;
mod cubic;

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, ControllerMetrics},
};

use self::control::{Control, Limits};
use crate::transport::LINK_ACK_EVERY;

/// Where a link of unknown capacity begins: 50 Mbit/s, in bytes per second.
const ASSUMED_START: u64 = 50_000_000 / 8;
/// The floor of a link of unknown capacity: 10 Mbit/s, in bytes per second; some hundred calls.
const ASSUMED_FLOOR: u64 = 10_000_000 / 8;
/// The floor of a link of known capacity is this part of it.
const FLOOR_DIVISOR: u64 = 5;

/// Congestion control of links between relays, for
/// [`TransportConfig::congestion_controller_factory`](quinn_proto::TransportConfig::congestion_controller_factory).
///
/// The default knows no capacity: it begins at 50 Mbit/s, seeks more as long as no packets wait, and
/// never goes below 10 Mbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkCongestion {
    /// What the link may take of its uplink, in bytes per second: where it begins, and what it never
    /// exceeds on average. `None`: unknown.
    pub capacity: Option<u64>,
    /// What it never goes below, in bytes per second, whatever the network does. A path that
    /// carries less has a full queue for as long as more is offered.
    pub floor: u64,
}

impl Default for LinkCongestion {
    fn default() -> Self {
        Self {
            capacity: None,
            floor: ASSUMED_FLOOR,
        }
    }
}

impl LinkCongestion {
    /// Of a link that has a way of this capacity for itself, in bytes per second; the floor is a fifth
    /// of it.
    #[must_use]
    pub const fn with_capacity(bytes_per_second: u64) -> Self {
        Self {
            capacity: Some(bytes_per_second),
            floor: bytes_per_second / FLOOR_DIVISOR,
        }
    }

    /// Of one of `links` links over an uplink of this capacity, in bytes per second. Any of them may
    /// take all of it, for mostly few are busy at once, and how they share it is found by what waits;
    /// but the floors of all of them together are a fifth of it.
    #[must_use]
    pub fn sharing(bytes_per_second: u64, links: usize) -> Self {
        let whole = Self::with_capacity(bytes_per_second);
        Self {
            floor: whole.floor / (links.max(1) as u64),
            ..whole
        }
    }

    fn limits(self) -> Limits {
        let floor = self.floor.max(1) as f64;
        let capacity = self.capacity.map(|capacity| (capacity as f64).max(floor));
        Limits {
            capacity,
            floor,
            start: capacity.unwrap_or(ASSUMED_START as f64).max(floor),
        }
    }
}

impl ControllerFactory for LinkCongestion {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let control = Control::new(self.limits(), current_mtu, LINK_ACK_EVERY);
        Box::new(LinkController {
            initial_window: control.window(),
            began: now,
            control,
        })
    }
}

/// [`Control`] as quinn wants it.
#[derive(Clone)]
struct LinkController {
    began: Instant,
    control: Control,
    initial_window: u64,
}

impl LinkController {
    fn since_begin(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }
}

impl Controller for LinkController {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        rtt: &RttEstimator,
    ) {
        // quinn's word for "limited by the application" is of the last packet alone, and waiting
        // for the pacer counts as not being so: the bytes under way say it better.
        let (now, sent) = (self.since_begin(now), self.since_begin(sent));
        self.control.acknowledged(now, sent, bytes, rtt.get());
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        _app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.control.batch_ends(self.since_begin(now), in_flight);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        if lost_bytes == 0 {
            self.control.marked();
            return;
        }
        let (now, sent) = (self.since_begin(now), self.since_begin(sent));
        self.control.lost(sent, lost_bytes);
        if is_persistent_congestion {
            self.control.outage(now, sent);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.control.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.control.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.control.window();
        metrics.pacing_rate = Some((self.control.rate() * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
