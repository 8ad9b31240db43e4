//! The least of what was measured recently.

use std::collections::VecDeque;

/// The minimum of the values within a sliding window: only those are kept that can still become
/// the minimum, so values ascend with their time.
#[derive(Debug, Clone)]
pub(crate) struct WindowedMin<T>(VecDeque<(u64, T)>);

impl<T> Default for WindowedMin<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy> WindowedMin<T> {
    /// Takes in a value measured at `at`; `later(value, by_us)` is what a value measured `by_us`
    /// earlier would be now, `less` whether one value is less than another.
    pub(crate) fn push_by(
        &mut self,
        at: u64,
        value: T,
        window_us: u64,
        later: impl Fn(T, u64) -> T,
        less: impl Fn(T, T) -> bool,
    ) {
        let at = self.0.back().map_or(at, |&(last, _)| at.max(last));
        while self
            .0
            .back()
            .is_some_and(|&(then, last)| !less(later(last, at - then), value))
        {
            self.0.pop_back();
        }
        self.0.push_back((at, value));
        self.expire(at, window_us);
    }

    /// Forgets what is older than the window; the newest value stays.
    pub(crate) fn expire(&mut self, now: u64, window_us: u64) {
        while self.0.len() > 1 && self.0.front().is_some_and(|&(at, _)| at + window_us < now) {
            self.0.pop_front();
        }
    }

    /// The least value, and when it was measured.
    pub(crate) fn least(&self) -> Option<(u64, T)> {
        self.0.front().copied()
    }

    /// The least value measured since `since`.
    pub(crate) fn least_since(&self, since: u64) -> Option<T> {
        self.0
            .iter()
            .find(|&&(at, _)| at >= since)
            .map(|&(_, value)| value)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T: Copy + Ord> WindowedMin<T> {
    pub(crate) fn push(&mut self, at: u64, value: T, window_us: u64) {
        self.push_by(at, value, window_us, |value, _| value, |a, b| a < b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_value_is_remembered_for_the_window_and_no_longer() {
        let mut window = WindowedMin::default();
        for (at, value) in [(0, 5), (10, 3), (20, 7), (30, 4)] {
            window.push(at, value, 25);
        }
        assert_eq!(window.least(), Some((10, 3)));
        assert_eq!(window.least_since(11), Some(4));
        window.push(40, 9, 25);
        assert_eq!(window.least(), Some((30, 4)));
        window.expire(1_000, 25);
        assert_eq!(window.least(), Some((40, 9)), "the newest one stays");
    }

    #[test]
    fn values_that_drift_are_compared_as_of_one_moment() {
        // Everything measured grows by 1 per 10: the second one is really less than the first.
        let mut window = WindowedMin::default();
        let later = |value: i64, by: u64| value + (by / 10) as i64;
        window.push_by(0, 100, 1_000, later, |a, b| a < b);
        window.push_by(100, 105, 1_000, later, |a, b| a < b);
        assert_eq!(window.least(), Some((100, 105)));
        window.push_by(200, 120, 1_000, later, |a, b| a < b);
        assert_eq!(window.least(), Some((100, 105)));
    }
}
