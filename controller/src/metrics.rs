//! The controller's metrics: read from it whenever they are asked for.

use prometheus::{
    Gauge, GaugeVec, IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
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
const COUNTERS: [(&str, &str, Read); 14] = [
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
    (
        "orders",
        "Orders to stamp plans: activations, shares, rollbacks",
        |s| s.orders,
    ),
    (
        "rollbacks",
        "Times that an operator went back to an older plan",
        |s| s.rollbacks,
    ),
    (
        "plans_held_back",
        "Times that a plan by choice had to wait for an operator or a rollout",
        |s| s.plans_held_back,
    ),
    ("revocations_made", "Times that tokens were revoked", |s| {
        s.revocations_made
    }),
    ("policies_set", "Times that another policy was set", |s| {
        s.policies_set
    }),
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
    relay_quarantined: IntGaugeVec,
    alert: IntGauge,
    alerts: IntGaugeVec,
    plan_epoch: IntGauge,
    plan_number: IntGauge,
    plan_share: Gauge,
    unprotected: IntGauge,
    saved: GaugeVec,
    improved_pairs: IntGaugeVec,
    observed_rerouted: IntGaugeVec,
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
                "Times that state, policy, decisions or history could not be written to disk",
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
            relay_quarantined: gauges(
                "relay_quarantined",
                "Whether an operator has taken the relay out of all paths",
                &["relay", "region"],
            )?,
            alerts: gauges("alerts", "What needs somebody's eyes, by kind", &["kind"])?,
            plan_share: Gauge::with_opts(opts(
                "plan_share_ratio",
                "Share of flows that are stamped with the plan in force",
            ))?,
            unprotected: gauge(
                "unprotected_ways",
                "Ways of the plan in force that no reaction keeps open when their next hop fails",
            )?,
            saved: GaugeVec::new(
                opts(
                    "saved_cost_seconds",
                    "What planned ways cost less than direct links, as seconds of delay, mean over all pairs",
                ),
                &["profile", "mode"],
            )?,
            improved_pairs: gauges(
                "improved_pairs",
                "Ordered pairs for which a planned way is better than the direct link",
                &["profile", "mode"],
            )?,
            observed_rerouted: gauges(
                "observed_rerouted_pairs",
                "Ordered pairs that a rule which is only observed would send another way",
                &["rule", "profile"],
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

        let rollout = self.controller.rollout();
        self.plan_share
            .set(f64::from(rollout.share_permille) / 1_000.0);
        let entry = self.controller.plan_entry(&plan.to_string());
        self.unprotected
            .set(entry.map_or(0, |entry| entry.unprotected as i64));
        self.alerts.reset();
        for alert in self.controller.alerts() {
            self.alerts.with_label_values(&[alert.kind]).inc();
        }
        let (gains, observed) = self.controller.gains();
        self.saved.reset();
        self.improved_pairs.reset();
        for gain in gains {
            let labels = [gain.profile, gain.mode];
            self.saved
                .with_label_values(&labels)
                .set(gain.mean_saved_ms / 1e3);
            let improved = self.improved_pairs.with_label_values(&labels);
            improved.set(gain.improved as i64);
        }
        self.observed_rerouted.reset();
        for rule in observed {
            for effect in rule.effects {
                self.observed_rerouted
                    .with_label_values(&[rule.rule.as_str(), effect.profile])
                    .set(effect.rerouted as i64);
            }
        }

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
        self.relay_quarantined.reset();
        for relay in &relays {
            let labels = [relay.name.as_str(), relay.region.as_str()];
            self.relay_online
                .with_label_values(&labels)
                .set(i64::from(relay.online));
            self.relay_sessions
                .with_label_values(&labels)
                .set(i64::from(relay.sessions));
            self.relay_quarantined
                .with_label_values(&labels)
                .set(i64::from(relay.standing == "quarantined"));
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
        all.push(&self.relay_quarantined);
        all.push(&self.alert);
        all.push(&self.alerts);
        all.push(&self.plan_share);
        all.push(&self.unprotected);
        all.push(&self.saved);
        all.push(&self.improved_pairs);
        all.push(&self.observed_rerouted);
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
