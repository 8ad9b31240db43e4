//! What is left of many delays.

use serde::Serialize;

/// Delays of one way, microseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Summary {
    /// Packets sent.
    pub(crate) sent: usize,
    /// Packets that came.
    pub(crate) received: usize,
    pub(crate) min_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl Summary {
    /// Of delays in nanoseconds.
    pub(crate) fn new(sent: usize, mut delays_ns: Vec<u64>) -> Self {
        delays_ns.sort_unstable();
        let at = |share: f64| {
            let last = delays_ns.len().saturating_sub(1);
            let index = (last as f64 * share).round() as usize;
            delays_ns.get(index).map_or(f64::NAN, |ns| *ns as f64 / 1e3)
        };
        Self {
            sent,
            received: delays_ns.len(),
            min_us: at(0.0),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_came() {
        let summary = Summary::new(120, (1..=101).rev().map(|us| us * 1_000).collect());
        assert_eq!((summary.sent, summary.received), (120, 101));
        assert_eq!(summary.min_us, 1.0);
        assert_eq!(summary.p50_us, 51.0);
        assert_eq!(summary.p99_us, 100.0);
        assert_eq!(summary.max_us, 101.0);
        assert!(Summary::new(1, Vec::new()).p50_us.is_nan());
    }
}
