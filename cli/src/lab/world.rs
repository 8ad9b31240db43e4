//! A whole network at work: lets it live through a scenario, and looks on.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tradewind_controller::Controller;
use tradewind_wan::{Mode, Wan};

use super::{
    acts::Acts,
    builder::Builder,
    crowd::Crowd,
    groups::{GroupWatch, Groups},
    invariants,
    ledger::Ledger,
    options::{self, Scenario},
    record::Record,
    report::Outcome,
    steady::Steady,
    traffic::Traffic,
    trails::Trails,
};

/// How long media packets sent last are waited for.
const LAST_MEDIA: Duration = Duration::from_secs(2);

/// What can be seen from outside while the lab runs.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) wan: Wan,
    pub(super) record: Record,
    pub(super) ledger: Ledger,
    pub(super) steady: Steady,
    pub(super) trails: Trails,
    pub(super) groups: GroupWatch,
    /// Network time at which measuring began.
    pub(super) started: OnceLock<Duration>,
    controller: Mutex<Controllers>,
}

#[derive(Debug, Default)]
struct Controllers {
    present: Option<Controller>,
    /// Plans that those before it have brought into force.
    plans_before: u64,
}

impl Watched {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let wan = if scenario.virtual_time {
            Wan::virtual_time(scenario.seed)
        } else {
            Wan::real_time_on_one_thread(scenario.seed)
        };
        let n = scenario.matrix.len();
        Self {
            wan,
            record: Record::new(n),
            ledger: Ledger::new(&scenario.users),
            steady: Steady::new(n),
            trails: Trails::new(n),
            groups: GroupWatch::new(&scenario.places),
            started: OnceLock::new(),
            controller: Mutex::default(),
        }
    }

    /// Network time since measuring began.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        Some(self.wan.network_time().saturating_sub(*self.started.get()?))
    }

    /// The controller, which may have been killed.
    pub(super) fn controller(&self) -> Option<Controller> {
        self.controllers().present.clone()
    }

    pub(super) fn set_controller(&self, controller: Controller) {
        let mut controllers = self.controllers();
        if let Some(before) = controllers.present.replace(controller) {
            controllers.plans_before += before.plans_activated();
        }
    }

    /// Plans that have come into force so far.
    pub(super) fn plans_activated(&self) -> u64 {
        let controllers = self.controllers();
        let present = controllers.present.as_ref();
        controllers.plans_before + present.map_or(0, Controller::plans_activated)
    }

    fn controllers(&self) -> MutexGuard<'_, Controllers> {
        self.controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A network that works, and traffic ready to be sent.
pub(super) async fn build<'a>(
    scenario: &'a Scenario,
    watched: &'a Arc<Watched>,
) -> anyhow::Result<(Builder<'a>, Arc<Traffic>)> {
    let builder = Builder::new(scenario, watched)?;
    builder.start_controller()?;
    builder.start_relays().await?;
    builder.first_plan().await?;
    let clients = builder.clients().await?;
    let traffic =
        Traffic::prepare(scenario, watched.clone(), clients, &builder.client_hosts).await?;
    Ok((builder, Arc::new(traffic)))
}

/// Runs the scenario to its end.
pub(super) fn run(scenario: &Scenario, watched: &Arc<Watched>) -> anyhow::Result<Outcome> {
    watched.wan.run(live(scenario, watched))
}

async fn live(scenario: &Scenario, watched: &Arc<Watched>) -> anyhow::Result<Outcome> {
    let wan = &watched.wan;
    let (builder, traffic) = build(scenario, watched).await?;
    let groups = Groups::gather(&builder).await?;
    let chaos = scenario.mode == options::Mode::Chaos;
    let crowd = if chaos {
        Some(Crowd::gather(&builder, &traffic).await?)
    } else {
        None
    };
    let startup = wan.network_time();
    let _ = watched.started.set(startup);
    let acts = Acts::new(&builder, &traffic);
    let plans_before = watched.plans_activated();
    let end = startup + scenario.duration;
    let window = async {
        wan.sleep_until(end).await;
        watched.plans_activated() - plans_before
    };
    let plans = async {
        if chaos {
            invariants::follow_plans(watched, end).await
        } else {
            Vec::new()
        }
    };
    let everybody = async {
        if chaos {
            traffic.steady_between_all(invariants::PACE, end).await;
        }
    };
    let to_groups = async {
        if let Some(groups) = &groups {
            groups.run().await;
        }
    };
    let sends = async {
        if let Some(crowd) = &crowd {
            crowd.run(end).await;
        }
    };
    let (plan_updates, faults, (), (), plans, (), ()) = tokio::join!(
        window,
        acts.play(&scenario.faults),
        traffic.run(),
        sends,
        plans,
        everybody,
        to_groups
    );
    let last_media = wan.network_time().max(end + LAST_MEDIA);
    let paths = traffic.paths(watched.controller().as_ref()).await;
    wan.sleep_until(last_media).await;
    let faults = faults?;
    let mut violations = if chaos {
        acts.invariants(&plans)
    } else {
        Vec::new()
    };
    let groups = groups.map(|groups| groups.outcome(scenario, startup, &acts.ground()));
    violations.extend(groups.iter().flat_map(|groups| groups.violations.clone()));
    Ok(Outcome {
        pairs: watched.record.all(),
        between_users: watched.ledger.counts(),
        paths,
        plan_updates,
        startup,
        packets: wan.total_stats().sent,
        delivery_error: (wan.mode() == Mode::Real).then(|| wan.delivery_error()),
        faults: acts.judged(faults),
        groups: groups.map(|groups| groups.summary),
        violations,
    })
}
