//! What the relay counts. Labels: class, reason, port; never a user or group.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
};
use tradewind_proto::{Class, DropReason};

use crate::{forwarder::Deflection, watch::Watcher, webhook::WebhookMetrics};

/// All metrics of a relay, with the label values resolved beforehand: counting a packet is one
/// atomic addition.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    ingress: Vec<IntCounter>,
    transit: Vec<IntCounter>,
    egress: Vec<IntCounter>,
    transit_bytes: Vec<IntCounter>,
    egress_bytes: Vec<IntCounter>,
    drops: Vec<IntCounter>,
    delivery_age: Vec<Histogram>,
    stay: Histogram,
    deflections: [IntCounter; 2],
    pub(crate) requeued: IntCounter,
    pub(crate) unknown_plans: IntCounter,
    pub(crate) plans_refused: IntCounter,
    pub(crate) store_failures: IntCounter,
    pub(crate) sessions: IntGauge,
    pub(crate) sessions_accepted: IntCounter,
    pub(crate) sessions_refused: IntCounter,
    pub(crate) sessions_revoked: IntCounter,
    pub(crate) handshakes_refused: IntCounter,
    pub(crate) handshakes_open: IntGauge,
    pub(crate) links_up: IntGauge,
    pub(crate) link_changes: IntCounter,
    pub(crate) link_brownouts: IntCounter,
    pub(crate) stalls: IntCounter,
    pub(crate) queue_packets: IntGauge,
    pub(crate) directory_users: IntGauge,
    pub(crate) plan_epoch: IntGauge,
    pub(crate) plan_number: IntGauge,
    pub(crate) stamped_share: IntGauge,
    pub(crate) controller_connected: IntGauge,
    pub(crate) groups: GroupMetrics,
    pub(crate) watched_users: IntGauge,
    pub(crate) directory_watched_users: IntGauge,
    pub(crate) webhooks: WebhookMetrics,
    /// Not a number: who sees every packet, if anybody does.
    pub(crate) watcher: Watcher,
}

/// What is counted of groups.
#[derive(Debug)]
pub(crate) struct GroupMetrics {
    pub(crate) groups: IntGauge,
    pub(crate) members: IntGauge,
    pub(crate) directory: IntGauge,
    pub(crate) replay_bytes: IntGauge,
    pub(crate) packets: IntCounter,
    pub(crate) copies: IntCounter,
    pub(crate) deliveries: IntCounter,
    pub(crate) fetches: IntCounter,
    pub(crate) heads: IntCounter,
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let by_class = |name: &str, help: &str| -> Result<Vec<IntCounter>, prometheus::Error> {
            let family = IntCounterVec::new(Opts::new(name, help), &["class"])?;
            registry.register(Box::new(family.clone()))?;
            Ok(Class::ALL
                .map(|class| family.with_label_values(&[class.name()]))
                .to_vec())
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let drops = IntCounterVec::new(
            Opts::new(
                "tradewind_relay_dropped_packets_total",
                "Packets not forwarded, by reason.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(drops.clone()))?;
        let deflections = IntCounterVec::new(
            Opts::new(
                "tradewind_relay_deflected_packets_total",
                "Packets that left their tree here, because the next hop was down or far worse than normal.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(deflections.clone()))?;
        let age = HistogramVec::new(
            HistogramOpts::new(
                "tradewind_relay_delivery_age_seconds",
                "Estimated age of packets when they left this relay for a client.",
            )
            .buckets(vec![
                0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0,
            ]),
            &["class"],
        )?;
        registry.register(Box::new(age.clone()))?;
        let stay = Histogram::with_opts(
            HistogramOpts::new(
                "tradewind_relay_stay_seconds",
                "Time between a packet's arrival and its hand-over to QUIC.",
            )
            .buckets(vec![
                0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05,
                0.2, 1.0,
            ]),
        )?;
        registry.register(Box::new(stay.clone()))?;
        Ok(Self {
            ingress: by_class(
                "tradewind_relay_ingress_packets_total",
                "Packets taken from clients.",
            )?,
            transit: by_class(
                "tradewind_relay_forwarded_packets_total",
                "Packets handed to links.",
            )?,
            egress: by_class(
                "tradewind_relay_delivered_packets_total",
                "Packets handed to clients.",
            )?,
            transit_bytes: by_class(
                "tradewind_relay_forwarded_payload_bytes_total",
                "Payload handed to links.",
            )?,
            egress_bytes: by_class(
                "tradewind_relay_delivered_payload_bytes_total",
                "Payload handed to clients.",
            )?,
            drops: DropReason::ALL
                .map(|reason| drops.with_label_values(&[reason.name()]))
                .to_vec(),
            delivery_age: Class::ALL
                .map(|class| age.with_label_values(&[class.name()]))
                .to_vec(),
            stay,
            deflections: ["failure", "brownout"]
                .map(|reason| deflections.with_label_values(&[reason])),
            requeued: counter(
                "tradewind_relay_requeued_packets_total",
                "Packets taken out of the queue of a link that went down and forwarded anew.",
            )?,
            unknown_plans: counter(
                "tradewind_relay_unknown_plan_packets_total",
                "Packets stamped with a plan not held here; they went by the direct link.",
            )?,
            plans_refused: counter(
                "tradewind_relay_refused_plans_total",
                "Plan parts that contradicted themselves and were not taken.",
            )?,
            store_failures: counter(
                "tradewind_relay_store_failures_total",
                "Times that the plan could not be kept on disk.",
            )?,
            sessions: gauge("tradewind_relay_sessions", "Client sessions now.")?,
            sessions_accepted: counter(
                "tradewind_relay_accepted_sessions_total",
                "Client sessions accepted.",
            )?,
            sessions_refused: counter(
                "tradewind_relay_refused_sessions_total",
                "Client connections refused (token, capacity, protocol).",
            )?,
            sessions_revoked: counter(
                "tradewind_relay_revoked_sessions_total",
                "Client sessions ended because their token was revoked.",
            )?,
            handshakes_refused: counter(
                "tradewind_relay_refused_handshakes_total",
                "Handshakes of clients that were refused, as too many had begun or the relay drains.",
            )?,
            handshakes_open: gauge(
                "tradewind_relay_open_handshakes",
                "Handshakes of clients under way.",
            )?,
            links_up: gauge(
                "tradewind_relay_links_up",
                "Links to other relays that are up.",
            )?,
            link_changes: counter(
                "tradewind_relay_link_state_changes_total",
                "Times that a link went up or down.",
            )?,
            link_brownouts: counter(
                "tradewind_relay_link_brownouts_total",
                "Times that a direction of a link became, or ceased to be, far worse than normal.",
            )?,
            stalls: counter(
                "tradewind_relay_stalls_total",
                "Times that timers were so late that links were not judged by it: a busy processor.",
            )?,
            queue_packets: gauge(
                "tradewind_relay_queued_packets",
                "Packets waiting in all queues.",
            )?,
            directory_users: gauge(
                "tradewind_relay_directory_users",
                "Users of which this relay is a home and knows where they are.",
            )?,
            plan_epoch: gauge(
                "tradewind_relay_plan_epoch",
                "Epoch of the plan stamped now.",
            )?,
            plan_number: gauge(
                "tradewind_relay_plan_number",
                "Number of the plan stamped now.",
            )?,
            stamped_share: gauge(
                "tradewind_relay_plan_share_permille",
                "Share of flows stamped with that plan, parts per thousand.",
            )?,
            controller_connected: gauge(
                "tradewind_relay_controller_connected",
                "Whether the controller is connected (1) or away (0).",
            )?,
            groups: GroupMetrics {
                groups: gauge("tradewind_relay_groups", "Groups with members here.")?,
                members: gauge(
                    "tradewind_relay_group_members",
                    "Members here, over all groups.",
                )?,
                directory: gauge(
                    "tradewind_relay_directory_groups",
                    "Groups of which this relay is a home.",
                )?,
                replay_bytes: gauge(
                    "tradewind_relay_replay_bytes",
                    "Bytes kept of messages to groups.",
                )?,
                packets: counter(
                    "tradewind_relay_group_packets_total",
                    "Packets to groups taken from clients.",
                )?,
                copies: counter(
                    "tradewind_relay_group_copies_total",
                    "Copies of packets to groups put into the queues of links.",
                )?,
                deliveries: counter(
                    "tradewind_relay_group_deliveries_total",
                    "Copies of packets to groups made for members here.",
                )?,
                fetches: counter(
                    "tradewind_relay_group_fetches_total",
                    "Times that a member asked for what it had missed.",
                )?,
                heads: counter(
                    "tradewind_relay_group_heads_total",
                    "Times that a member was told that it had missed something of a lane.",
                )?,
            },
            watched_users: gauge(
                "tradewind_relay_watched_users",
                "Users whom clients here watch.",
            )?,
            directory_watched_users: gauge(
                "tradewind_relay_directory_watched_users",
                "Watched users of whom this relay is a home.",
            )?,
            webhooks: WebhookMetrics::new(&registry)?,
            watcher: Watcher::default(),
            registry: registry.clone(),
        })
    }

    pub(crate) fn count_ingress(&self, class: Class) {
        self.ingress[class as usize].inc();
    }

    pub(crate) fn count_forwarded(&self, class: Class, bytes: usize, stay: Duration) {
        self.transit[class as usize].inc();
        self.transit_bytes[class as usize].inc_by(bytes as u64);
        self.stay.observe(stay.as_secs_f64());
    }

    pub(crate) fn count_delivered(
        &self,
        class: Class,
        bytes: usize,
        stay: Duration,
        age: Duration,
    ) {
        self.egress[class as usize].inc();
        self.egress_bytes[class as usize].inc_by(bytes as u64);
        self.stay.observe(stay.as_secs_f64());
        self.delivery_age[class as usize].observe(age.as_secs_f64());
    }

    pub(crate) fn count_deflection(&self, reason: Deflection) {
        self.deflections[reason as usize].inc();
    }

    pub(crate) fn count_drop(&self, reason: DropReason) {
        self.drops[reason as usize].inc();
    }
}
