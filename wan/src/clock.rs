//! Clocks that disagree: every host's time against network time.

/// How a host's clock differs from network time.
///
/// Both its monotonic clock and its wall clock are off by `offset_us` when the network starts and
/// run `drift_ppm` too fast from then on.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HostClock {
    /// Microseconds the clock is ahead of network time at its start; negative is behind. Within
    /// ±30 days (more is clamped).
    pub offset_us: i64,
    /// Parts per million the clock runs fast; negative is slow. Real crystals are within ±100.
    /// Within ±500,000 (more is clamped).
    pub drift_ppm: f64,
}

impl HostClock {
    /// A clock that agrees with network time.
    pub const EXACT: Self = Self {
        offset_us: 0,
        drift_ppm: 0.0,
    };

    /// A clock off by `offset_us` microseconds and `drift_ppm` parts per million.
    #[must_use]
    pub fn new(offset_us: i64, drift_ppm: f64) -> Self {
        Self {
            offset_us,
            drift_ppm,
        }
    }
}

const BILLION: i128 = 1_000_000_000;

/// Offsets are bounded so that a host's clock never reads less than the start of `Instant`.
pub(crate) const MAX_OFFSET_US: i64 = 30 * 86_400 * 1_000_000;

/// A linear clock: host nanoseconds as a function of network nanoseconds, in integers so that it
/// is monotonic and the same on every machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClockState {
    net_origin_ns: u64,
    host_origin_ns: i64,
    /// Parts per billion.
    drift_ppb: i64,
    /// From here until `net_origin_ns` it stands still.
    paused_from_ns: Option<u64>,
}

impl ClockState {
    pub(crate) fn new(clock: HostClock) -> Self {
        let offset_us = clock.offset_us.clamp(-MAX_OFFSET_US, MAX_OFFSET_US);
        let mut state = Self {
            net_origin_ns: 0,
            host_origin_ns: offset_us * 1000,
            drift_ppb: 0,
            paused_from_ns: None,
        };
        state.set_drift(clock.drift_ppm, 0);
        state
    }

    /// The clock goes on from its present reading at another speed.
    pub(crate) fn set_drift(&mut self, drift_ppm: f64, net_now_ns: u64) {
        self.host_origin_ns = self.host_ns(net_now_ns);
        self.net_origin_ns = match self.paused_from_ns {
            Some(_) => self.net_origin_ns.max(net_now_ns),
            None => net_now_ns,
        };
        self.drift_ppb = (drift_ppm.clamp(-500_000.0, 500_000.0) * 1000.0).round() as i64;
    }

    /// The clock stands still until `until_ns`; a longer pause that has begun stays.
    pub(crate) fn pause(&mut self, net_now_ns: u64, until_ns: u64) {
        let already_until_ns = match self.paused_from_ns {
            Some(_) => self.net_origin_ns,
            None => 0,
        };
        self.host_origin_ns = self.host_ns(net_now_ns);
        self.net_origin_ns = until_ns.max(already_until_ns).max(net_now_ns);
        self.paused_from_ns = Some(net_now_ns);
    }

    pub(crate) fn host_ns(&self, net_ns: u64) -> i64 {
        let mut elapsed = i128::from(net_ns) - i128::from(self.net_origin_ns);
        if self.paused_from_ns.is_some_and(|from_ns| net_ns >= from_ns) {
            elapsed = elapsed.max(0);
        }
        let drifted = elapsed + (elapsed * i128::from(self.drift_ppb)).div_euclid(BILLION);
        (i128::from(self.host_origin_ns) + drifted) as i64
    }

    /// The first network nanosecond at which the host's clock shows at least `host_ns`.
    pub(crate) fn net_ns(&self, host_ns: i64) -> u64 {
        let ahead = i128::from(host_ns) - i128::from(self.host_origin_ns);
        let speed = BILLION + i128::from(self.drift_ppb);
        let elapsed = (ahead * BILLION).div_euclid(speed);
        let far = i128::from(u64::MAX / 4);
        let mut net = (i128::from(self.net_origin_ns) + elapsed).clamp(0, far) as u64;
        while self.host_ns(net) < host_ns && i128::from(net) < far {
            net += 1;
        }
        net
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_the_first_network_instant_at_which_the_clock_has_reached_it() {
        for drift_ppm in [-300_000.0, -87.5, -0.001, 0.0, 0.001, 42.0, 400_000.0] {
            let mut clock = ClockState::new(HostClock::new(-7_654_321, drift_ppm));
            clock.set_drift(drift_ppm, 123_456_789);
            for host_ns in [
                -7_000_000_000,
                -1,
                0,
                1,
                999,
                1_000_000_007,
                86_400_000_000_000,
            ] {
                let net = clock.net_ns(host_ns);
                assert!(clock.host_ns(net) >= host_ns, "{drift_ppm} {host_ns}");
                assert!(
                    net == 0 || clock.host_ns(net - 1) < host_ns,
                    "{drift_ppm} {host_ns}"
                );
            }
        }
    }

    #[test]
    fn changing_the_drift_never_moves_the_clock_back() {
        let mut clock = ClockState::new(HostClock::new(0, 100.0));
        let before = clock.host_ns(10_000_000_000);
        clock.set_drift(-100.0, 10_000_000_000);
        assert_eq!(clock.host_ns(10_000_000_000), before);
        assert_eq!(before, 10_001_000_000);
        assert_eq!(clock.host_ns(20_000_000_000), before + 9_999_000_000);
    }

    #[test]
    fn a_paused_clock_goes_on_where_it_stopped_and_its_deadlines_come_so_much_later() {
        let mut clock = ClockState::new(HostClock::new(0, 100.0));
        let stopped = clock.host_ns(10_000_000_000);
        clock.pause(10_000_000_000, 40_000_000_000);
        clock.pause(20_000_000_000, 30_000_000_000);
        for net in [20_000_000_000, 35_000_000_000, 40_000_000_000] {
            assert_eq!(clock.host_ns(net), stopped);
        }
        assert_eq!(clock.host_ns(50_000_000_000), stopped + 10_001_000_000);
        assert_eq!(clock.net_ns(stopped + 10_001_000_000), 50_000_000_000);
        clock.set_drift(0.0, 25_000_000_000);
        assert_eq!(clock.host_ns(39_000_000_000), stopped);
        assert_eq!(clock.host_ns(41_000_000_000), stopped + 1_000_000_000);
    }

    #[test]
    fn a_deadline_beyond_all_time_does_not_overflow() {
        let clock = ClockState::new(HostClock::new(0, -400_000.0));
        assert_eq!(clock.net_ns(i64::MAX), u64::MAX / 4);
    }
}
