//! Metrics with the names this project uses: `tradewind_<part>_<name>_<unit>[_total]`, in base
//! units (seconds, bytes), in a registry of their own.

use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, Result, core::Collector,
};

/// Makes and registers the metrics of one part (`relay`, `controller`).
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    part: &'static str,
}

impl Metrics {
    /// Metrics of `part` in a new registry.
    #[must_use]
    pub fn new(part: &'static str) -> Self {
        Self {
            registry: Registry::new(),
            part,
        }
    }

    /// The registry, for [`Admin`](crate::admin::Admin).
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A counter `tradewind_<part>_<name>_total`.
    ///
    /// # Errors
    /// When the name is ill-formed or taken, or there is no help.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.register(IntCounter::with_opts(self.opts(&total(name), help)?)?)
    }

    /// Counters `tradewind_<part>_<name>_total` by labels.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.register(IntCounterVec::new(self.opts(&total(name), help)?, labels)?)
    }

    /// A gauge `tradewind_<part>_<name>`.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.register(IntGauge::with_opts(self.opts(name, help)?)?)
    }

    /// Gauges `tradewind_<part>_<name>` by labels.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(self.opts(name, help)?, labels)?)
    }

    /// A gauge `tradewind_<part>_<name>` of fractions (seconds).
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn float_gauge(&self, name: &str, help: &str) -> Result<prometheus::Gauge> {
        self.register(prometheus::Gauge::with_opts(self.opts(name, help)?)?)
    }

    /// Gauges `tradewind_<part>_<name>` of fractions (seconds) by labels.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn float_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<prometheus::GaugeVec> {
        self.register(prometheus::GaugeVec::new(self.opts(name, help)?, labels)?)
    }

    /// A histogram `tradewind_<part>_<name>`.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<Histogram> {
        let opts = self.histogram_opts(name, help, buckets)?;
        self.register(Histogram::with_opts(opts)?)
    }

    /// Histograms `tradewind_<part>_<name>` by labels.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Result<HistogramVec> {
        let opts = self.histogram_opts(name, help, buckets)?;
        self.register(HistogramVec::new(opts, labels)?)
    }

    /// The gauge `tradewind_<part>_build_info`, 1, with the version and commit as labels.
    ///
    /// # Errors
    /// As [`Metrics::counter`].
    pub fn build_info(&self, version: &str, commit: &str) -> Result<()> {
        self.gauges("build_info", "What runs here", &["version", "commit"])?
            .with_label_values(&[version, commit])
            .set(1);
        Ok(())
    }

    fn opts(&self, name: &str, help: &str) -> Result<Opts> {
        Ok(Opts::new(self.checked_name(name, help)?, help))
    }

    fn histogram_opts(&self, name: &str, help: &str, buckets: Vec<f64>) -> Result<HistogramOpts> {
        Ok(HistogramOpts::new(self.checked_name(name, help)?, help).buckets(buckets))
    }

    /// What `promtool check metrics` would complain about is refused here, in the first test that
    /// builds the metrics.
    fn checked_name(&self, name: &str, help: &str) -> Result<String> {
        const NOT_BASE_UNITS: [&str; 10] = [
            "ms",
            "us",
            "ns",
            "milliseconds",
            "microseconds",
            "minutes",
            "hours",
            "kb",
            "kilobytes",
            "bits",
        ];
        let complain = |reason: &str| Err(Error::Msg(format!("metric `{name}`: {reason}")));
        let well_formed = name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if name.is_empty() || !well_formed {
            return complain("names are lower case with underscores");
        }
        if name.split('_').any(|word| NOT_BASE_UNITS.contains(&word)) {
            return complain("the unit must be a base unit: seconds or bytes");
        }
        if help.is_empty() {
            return complain("it has no help text");
        }
        Ok(format!("tradewind_{}_{name}", self.part))
    }

    fn register<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

/// Buckets, in seconds, for what takes network time: 1 ms to 5 s.
#[must_use]
pub fn latency_buckets() -> Vec<f64> {
    vec![
        0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5,
        0.75, 1.0, 2.0, 5.0,
    ]
}

/// Buckets, in seconds, for what takes processing time: 10 µs to 100 ms.
#[must_use]
pub fn processing_buckets() -> Vec<f64> {
    vec![
        0.00001, 0.000025, 0.00005, 0.0001, 0.00015, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
        0.025, 0.1,
    ]
}

fn total(name: &str) -> String {
    let name = name.strip_suffix("_total").unwrap_or(name);
    format!("{name}_total")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_named_after_their_part_and_counters_end_in_total() {
        let metrics = Metrics::new("relay");
        metrics
            .counter("packets", "Packets forwarded")
            .unwrap()
            .inc();
        metrics.gauge("queue_bytes", "Bytes queued").unwrap();
        metrics.build_info("1.2.3", "abc").unwrap();
        let names: Vec<_> = metrics
            .registry()
            .gather()
            .iter()
            .map(|family| family.name().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "tradewind_relay_build_info",
                "tradewind_relay_packets_total",
                "tradewind_relay_queue_bytes"
            ]
        );
    }

    #[test]
    fn names_that_promtool_would_complain_about_are_refused() {
        let metrics = Metrics::new("relay");
        for name in ["delay_ms", "delay_milliseconds", "Packets", "a-b", ""] {
            assert!(metrics.gauge(name, "Help").is_err(), "{name}");
        }
        assert!(metrics.gauge("sessions", "").is_err());
        metrics.gauge("sessions", "Sessions").unwrap();
        assert!(metrics.gauge("sessions", "Sessions again").is_err());
    }
}
