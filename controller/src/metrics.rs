//! The controller's metrics: read from it whenever they are asked for.

use prometheus::{
    GaugeVec, IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{Controller, network::Stats};

/// A registry that shows `controller`.
///
/// # Errors
/// Never in practice: names are fixed.
pub fn registry(
    controller: &Controller,
    version: &str,
    commit: &str,
) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    let info = gauges("build_info", "What runs here", &["version", "commit"])?;
    info.with_label_values(&[version, commit]).set(1);
    registry.register(Box::new(info))?;
    registry.register(Box::new(Live::new(controller.clone())?))?;
    Ok(registry)
}

type Read = fn(&Stats) -> u64;

/// Counters out of [`Stats`]: name without `_total`, help, value.
const COUNTERS: [(&str, &str, Read); 9] = [
    (
        "registrations",
        "Registrations of relays, repeated ones too",
        |s| s.registrations,
    ),
    (
        "relays_refused",
        "Registrations of relays that were refused",
        |s| s.relays_refused,
    ),
    ("link_reports", "Link reports taken in", |s| s.reports),
    (
        "stale_link_reports",
        "Link reports passed over as repeated or late",
        |s| s.reports_stale,
    ),
    ("plans_made", "Plans numbered and sent to relays", |s| {
        s.plans_made
    }),
    ("plans_activated", "Plans that came into force", |s| {
        s.plans_activated
    }),
    (
        "plans_superseded",
        "Plans replaced before they came into force",
        |s| s.plans_superseded,
    ),
    (
        "plan_timeouts",
        "Plans that a relay did not acknowledge in time",
        |s| s.plan_timeouts,
    ),
    (
        "disbeliefs",
        "Times that a measurement was taken for broken",
        |s| s.disbeliefs,
    ),
];

/// Gauges out of [`Stats`].
const GAUGES: [(&str, &str, Read); 2] = [
    ("usable_links", "Directed links that can be used", |s| {
        s.usable_links
    }),
    (
        "contradicted_links",
        "Directed links whose delay contradicts those of others",
        |s| s.contradicted_links,
    ),
];

struct Live {
    controller: Controller,
    counters: Vec<(IntCounter, Read)>,
    gauges: Vec<(IntGauge, Read)>,
    state_write_failures: IntCounter,
    relays: IntGaugeVec,
    relay_online: IntGaugeVec,
    relay_sessions: IntGaugeVec,
    relay_busy: GaugeVec,
    alert: IntGauge,
    plan_epoch: IntGauge,
    plan_number: IntGauge,
}

impl Live {
    fn new(controller: Controller) -> prometheus::Result<Self> {
        let counter =
            |name: &str, help| IntCounter::with_opts(opts(&format!("{name}_total"), help));
        let gauge = |name: &str, help| IntGauge::with_opts(opts(name, help));
        Ok(Self {
            controller,
            counters: COUNTERS
                .iter()
                .map(|&(name, help, read)| Ok((counter(name, help)?, read)))
                .collect::<prometheus::Result<_>>()?,
            gauges: GAUGES
                .iter()
                .map(|&(name, help, read)| Ok((gauge(name, help)?, read)))
                .collect::<prometheus::Result<_>>()?,
            state_write_failures: counter(
                "state_write_failures",
                "Times that the state could not be written to disk",
            )?,
            relays: gauges("relays", "Relays by what they are doing", &["state"])?,
            relay_online: gauges(
                "relay_online",
                "Whether the relay is connected to the controller",
                &["relay", "region"],
            )?,
            relay_sessions: gauges(
                "relay_sessions",
                "Client sessions at the relay",
                &["relay", "region"],
            )?,
            relay_busy: GaugeVec::new(
                opts(
                    "relay_busy_ratio",
                    "Share of time that the relay's busiest shard works",
                ),
                &["relay", "region"],
            )?,
            alert: gauge(
                "alert",
                "Whether measurements are distrusted and the plan is kept",
            )?,
            plan_epoch: gauge(
                "plan_epoch",
                "Epoch of the plan in force, 0 before the first",
            )?,
            plan_number: gauge(
                "plan_number",
                "Number of the plan in force, 0 before the first",
            )?,
        })
    }

    fn refresh(&self) {
        let stats = self.controller.stats();
        for (counter, read) in &self.counters {
            raise(counter, read(&stats));
        }
        for (gauge, read) in &self.gauges {
            gauge.set(read(&stats) as i64);
        }
        raise(
            &self.state_write_failures,
            self.controller.state_write_failures(),
        );
        self.alert.set(i64::from(self.controller.alert().is_some()));
        let plan = self.controller.active_plan().unwrap_or_default();
        self.plan_epoch.set(i64::from(plan.epoch));
        self.plan_number.set(i64::from(plan.number));

        let relays = self.controller.relays();
        let count = |state: &str, of: usize| {
            self.relays.with_label_values(&[state]).set(of as i64);
        };
        count("online", relays.iter().filter(|relay| relay.online).count());
        count(
            "offline",
            relays.iter().filter(|relay| !relay.online).count(),
        );
        count(
            "draining",
            relays.iter().filter(|relay| relay.draining).count(),
        );
        // A relay may have moved to another region.
        self.relay_online.reset();
        self.relay_sessions.reset();
        self.relay_busy.reset();
        for relay in &relays {
            let labels = [relay.name.as_str(), relay.region.as_str()];
            self.relay_online
                .with_label_values(&labels)
                .set(i64::from(relay.online));
            self.relay_sessions
                .with_label_values(&labels)
                .set(i64::from(relay.sessions));
            let busy = f64::from(relay.busy_permille) / 1_000.0;
            self.relay_busy.with_label_values(&labels).set(busy);
        }
    }

    fn all(&self) -> Vec<&dyn Collector> {
        let mut all: Vec<&dyn Collector> = Vec::new();
        all.extend(
            self.counters
                .iter()
                .map(|(counter, _)| counter as &dyn Collector),
        );
        all.extend(self.gauges.iter().map(|(gauge, _)| gauge as &dyn Collector));
        all.push(&self.state_write_failures);
        all.push(&self.relays);
        all.push(&self.relay_online);
        all.push(&self.relay_sessions);
        all.push(&self.relay_busy);
        all.push(&self.alert);
        all.push(&self.plan_epoch);
        all.push(&self.plan_number);
        all
    }
}

impl Collector for Live {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.refresh();
        self.all()
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(opts(name, help), labels)
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("tradewind_controller_{name}"), help)
}
