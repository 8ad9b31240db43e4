//! How fast a link may be filled.

use std::{any::Any, sync::Arc, time::Duration, time::Instant};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller, ControllerFactory, CubicConfig},
};

/// What every link can carry, in bytes per second: 50 Mbit/s. The window never falls below what
/// fills that for a round trip.
const FLOOR_BYTES_PER_SECOND: u64 = 50_000_000 / 8;
const FLOOR_MIN_BYTES: u64 = 64 << 10;
const FLOOR_MAX_BYTES: u64 = 4 << 20;
/// Before anything is measured.
const UNMEASURED_RTT: Duration = Duration::from_millis(200);

/// CUBIC (RFC 9438) with a floor.
///
/// A loss-based controller starves long links: at 1 % loss and 250 ms it leaves 0.5 Mbit/s to all
/// calls on the link together. And one that begins with ten packets makes everybody wait: a picture
/// fills the window, and the voice packets and probes behind it leave a round trip later, which
/// looks like a bad link and moves traffic away. So the window begins at and never falls below what
/// the link is sure to carry.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkCongestion;

impl ControllerFactory for LinkCongestion {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(LinkController {
            cubic: Arc::new(CubicConfig::default()).build(now, current_mtu),
            floor: floor(UNMEASURED_RTT),
        })
    }
}

struct LinkController {
    cubic: Box<dyn Controller>,
    /// Bytes.
    floor: u64,
}

fn floor(rtt: Duration) -> u64 {
    let bytes = rtt.as_secs_f64() * FLOOR_BYTES_PER_SECOND as f64;
    (bytes as u64).clamp(FLOOR_MIN_BYTES, FLOOR_MAX_BYTES)
}

impl Controller for LinkController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        // Not the smoothed one, which grows with queues: the floor must not feed them.
        self.floor = floor(rtt.min());
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.cubic
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.cubic
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().max(self.floor)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            cubic: self.cubic.clone_box(),
            floor: self.floor,
        })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window().max(floor(UNMEASURED_RTT))
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_never_take_the_window_below_what_the_link_is_sure_to_carry() {
        #[allow(clippy::disallowed_methods)] // any instant will do
        let now = Instant::now();
        let mut controller = Arc::new(LinkCongestion).build(now, 1_200);
        let begin = controller.window();
        assert_eq!(begin, floor(UNMEASURED_RTT));
        for second in 1..100 {
            let later = now + Duration::from_secs(second);
            controller.on_congestion_event(later, later, true, 1_200);
        }
        assert_eq!(controller.window(), begin);
        assert!(controller.clone_box().window() == begin);
    }

    #[test]
    fn the_floor_fills_a_round_trip_within_bounds() {
        assert_eq!(floor(Duration::from_millis(100)), 625_000);
        assert_eq!(floor(Duration::ZERO), FLOOR_MIN_BYTES);
        assert_eq!(floor(Duration::from_secs(10)), FLOOR_MAX_BYTES);
    }
}
