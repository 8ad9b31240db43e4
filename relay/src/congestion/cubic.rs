//! CUBIC's window (RFC 9438), for the time beside flows that fill queues.

use std::time::Duration;

/// Packets per second³ (RFC 9438, section 5).
const C: f64 = 0.4;
/// What is left after a loss (section 4.6).
const BETA: f64 = 0.7;

/// A window in packets.
#[derive(Debug, Clone)]
pub(super) struct Cubic {
    window: f64,
    /// Where the last loss came; the window grows quickly far from here and slowly near it.
    plateau: f64,
    /// The window this growth began with.
    begin: f64,
    /// Seconds of growth; time in which the window was not in use does not count.
    grown: f64,
    /// What Reno would have: the more on short paths (section 4.3).
    reno: f64,
}

impl Cubic {
    /// A window of `packets`, as after a loss that made it so small.
    pub(super) fn begin(packets: f64) -> Self {
        Self {
            window: packets,
            plateau: packets / BETA,
            begin: packets,
            grown: 0.0,
            reno: packets,
        }
    }

    pub(super) fn packets(&self) -> f64 {
        self.window
    }

    /// Packets were lost, in a round trip.
    pub(super) fn cut(&mut self) {
        let plateau = if self.window < self.plateau {
            // Fast convergence (section 4.7): others need room.
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        *self = Self {
            plateau,
            ..Self::begin(self.window * BETA)
        };
    }

    /// A round trip that took `took` was without loss.
    pub(super) fn grow(&mut self, took: Duration) {
        self.grown += took.as_secs_f64();
        self.reno += 3.0 * (1.0 - BETA) / (1.0 + BETA);
        let inflection = ((self.plateau - self.begin) / C).cbrt();
        let cubic = self.plateau + C * (self.grown - inflection).powi(3);
        // At most half as much again per round trip (section 4.4).
        self.window = cubic.clamp(self.window, self.window * 1.5).max(self.reno);
    }

    /// Stays within bounds that others set.
    pub(super) fn keep_within(&mut self, least: f64, most: f64) {
        self.window = self.window.max(least).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_comes_back_to_where_the_loss_was_and_then_goes_beyond() {
        let mut window = Cubic::begin(700.0);
        // K = cbrt(1000 * 0.3 / 0.4) = 9.09 s.
        let mut at = Vec::new();
        for _ in 0..140 {
            window.grow(Duration::from_millis(100));
            at.push(window.packets());
        }
        assert!((at[90] - 1_000.0).abs() < 1.0, "{}", at[90]);
        assert!(at[9] - 700.0 > 50.0, "fast at first");
        assert!(at[95] - at[85] < 2.0, "slow near the plateau");
        assert!(at[139] > 1_040.0, "and on: {}", at[139]);
    }

    #[test]
    fn two_losses_in_a_row_leave_room_for_others() {
        let mut window = Cubic::begin(700.0);
        window.cut();
        assert!((window.packets() - 490.0).abs() < 0.1);
        for _ in 0..64 {
            window.grow(Duration::from_millis(100));
        }
        assert!(window.packets() < 600.0, "{}", window.packets());
    }
}
