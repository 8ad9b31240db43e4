//! What is counted of webhooks, over all of them.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Counters of webhooks, with the label values resolved beforehand.
#[derive(Debug, Clone)]
pub(crate) struct WebhookMetrics {
    /// Events handed over by the shard.
    pub(super) events: IntCounter,
    pub(super) calls_ok: IntCounter,
    pub(super) calls_failed: IntCounter,
    /// The task was too far behind.
    pub(super) dropped_busy: IntCounter,
    /// Too many notices wait already.
    pub(super) dropped_full: IntCounter,
    /// All attempts have failed.
    pub(super) dropped_gave_up: IntCounter,
    /// The application has said that it will not have it.
    pub(super) dropped_refused: IntCounter,
    pub(super) waiting: IntGauge,
}

impl WebhookMetrics {
    /// Makes and registers them.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let events = IntCounter::new(
            "tradewind_relay_webhook_events_total",
            "Times that a client here had something for a user who is offline, of apps with a webhook.",
        )?;
        let calls = IntCounterVec::new(
            Opts::new(
                "tradewind_relay_webhook_calls_total",
                "HTTP requests to webhooks, repeated ones included, by result.",
            ),
            &["result"],
        )?;
        let dropped = IntCounterVec::new(
            Opts::new(
                "tradewind_relay_webhook_dropped_total",
                "Events (busy, queue_full) and notices (gave_up, refused) that no webhook took, by reason.",
            ),
            &["reason"],
        )?;
        let waiting = IntGauge::new(
            "tradewind_relay_webhook_waiting",
            "Notices that wait to be sent, or to be sent again.",
        )?;
        registry.register(Box::new(events.clone()))?;
        registry.register(Box::new(calls.clone()))?;
        registry.register(Box::new(dropped.clone()))?;
        registry.register(Box::new(waiting.clone()))?;
        Ok(Self {
            events,
            calls_ok: calls.with_label_values(&["ok"]),
            calls_failed: calls.with_label_values(&["failed"]),
            dropped_busy: dropped.with_label_values(&["busy"]),
            dropped_full: dropped.with_label_values(&["queue_full"]),
            dropped_gave_up: dropped.with_label_values(&["gave_up"]),
            dropped_refused: dropped.with_label_values(&["refused"]),
            waiting,
        })
    }
}
