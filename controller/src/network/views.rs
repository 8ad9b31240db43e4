//! The network shown to people and programs: plain data for the HTTP API, the lab and metrics.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tradewind_proto::RelayIndex;

use super::{
    Network,
    links::{Matrix, Measured, Usable},
    plan::Plan,
};

/// Most names that an error lists.
const MOST_CANDIDATES: usize = 50;

/// Counts since the controller started, and the present size of things.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Registrations of relays, repeated ones too.
    pub registrations: u64,
    /// Registrations refused.
    pub relays_refused: u64,
    /// Link reports taken in.
    pub reports: u64,
    /// Link reports passed over: repeated, or older than one before.
    pub reports_stale: u64,
    /// Plans numbered and sent out.
    pub plans_made: u64,
    /// Plans that came into force.
    pub plans_activated: u64,
    /// Plans replaced by a newer one before they came into force.
    pub plans_superseded: u64,
    /// Plans that a relay did not acknowledge in time, per relay.
    pub plan_timeouts: u64,
    /// How often a measurement was not believed and the plan kept.
    pub disbeliefs: u64,
    /// Directed links that could be used when last planned.
    pub usable_links: u64,
    /// Directed links whose delay contradicts the others'.
    pub contradicted_links: u64,
}

/// One relay, as in `/v1/relays`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RelayView {
    /// Its stable name.
    pub name: String,
    /// Its dense index.
    pub index: u16,
    /// Its region.
    pub region: String,
    /// Whether its control connection is there.
    pub online: bool,
    /// Whether it is going away: no transit, no new clients.
    pub draining: bool,
    /// Whether it has not acknowledged a plan in time: no transit until it does.
    pub silent: bool,
    /// Where it is reached.
    pub addresses: Addresses,
    /// Client sessions.
    pub sessions: u32,
    /// Share of the time that its busiest shard works, parts per thousand.
    pub busy_permille: u32,
    /// Its version.
    pub software: String,
    /// Since when it is online (or offline), Unix seconds.
    pub since_unix_s: u64,
    /// Degrees; both 0 when not known.
    pub latitude: f64,
    /// Degrees; both 0 when not known.
    pub longitude: f64,
    /// Newest plan it has acknowledged, `epoch.number`.
    pub held_plan: Option<String>,
}

/// Where a relay is reached, `ip:port` each, in order of preference.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// By clients.
    pub client: Vec<String>,
    /// By other relays.
    pub link: Vec<String>,
}

/// An edge that clients may connect to, as in `/v1/edges`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EdgeView {
    /// Its stable name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Where clients reach it.
    pub client_addresses: Vec<String>,
}

/// All directed links, as in `/v1/matrix`: row is where a link begins, column where it ends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MatrixView {
    /// Names of rows and columns.
    pub names: Vec<String>,
    /// One-way delay, milliseconds; unknown is null. In the frame of the solved clocks: exact in
    /// comparisons between whole paths of the same ends, an estimate by itself.
    pub one_way_ms: Vec<Vec<Option<f64>>>,
    /// Least round trip of the recent past, milliseconds.
    pub rtt_ms: Vec<Vec<Option<f64>>>,
    /// Share of probes lost in this direction, 0 to 1.
    pub loss: Vec<Vec<Option<f64>>>,
    /// What routing pays for the link, milliseconds-equivalents.
    pub cost_ms: Vec<Vec<Option<f64>>>,
    /// `up`, `down` or `unknown`.
    pub state: Vec<Vec<&'static str>>,
}

/// A plan, as in `/v1/plan`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanView {
    /// Its name: epoch and number.
    pub epoch: u16,
    /// Its name: epoch and number.
    pub number: u32,
    /// Whether it is in force.
    pub active: bool,
    /// When it was made, Unix milliseconds.
    pub made_at_unix_ms: u64,
    /// From being made to being in force, milliseconds.
    pub activated_after_ms: Option<u64>,
    /// What changed and why.
    pub reasons: Vec<String>,
    /// By destination, by relay: the next hop. Where there is no way there is no entry.
    pub next_hops: BTreeMap<String, BTreeMap<String, String>>,
    /// Who has acknowledged it.
    pub held_by: Vec<String>,
    /// The number of a newer plan that is on its way to the relays.
    pub on_its_way: Option<u32>,
}

/// The way from one relay to another, as in `/v1/path`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathView {
    /// Where it begins.
    pub from: String,
    /// Where it ends.
    pub to: String,
    /// The relays it crosses, both ends included.
    pub path: Vec<String>,
    /// What it costs at present, milliseconds-equivalents; null when one of its links is not
    /// usable at this moment.
    pub cost_ms: Option<f64>,
    /// What the direct link costs; null when there is none.
    pub direct_cost_ms: Option<f64>,
    /// What the path saves against the direct link; null when there is none.
    pub saved_ms: Option<f64>,
    /// One-way delay of the path, milliseconds.
    pub delay_ms: Option<f64>,
    /// One-way delay of the direct link, milliseconds.
    pub direct_delay_ms: Option<f64>,
    /// The plan it is in, `epoch.number`.
    pub plan: String,
    /// Each link of it.
    pub links: Vec<LinkView>,
}

/// One link of a path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkView {
    /// Where it begins.
    pub from: String,
    /// Where it ends.
    pub to: String,
    /// Over which uplink.
    pub uplink: u8,
    /// `up`, `down` or `unknown`.
    pub state: &'static str,
    /// One-way delay, milliseconds.
    pub one_way_ms: Option<f64>,
    /// Least round trip of the recent past, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Share of probes lost, 0 to 1.
    pub loss: Option<f64>,
    /// What routing pays for it, milliseconds-equivalents …
    pub cost_ms: Option<f64>,
    /// … of which for varying delay,
    pub jitter_cost_ms: Option<f64>,
    /// for loss,
    pub loss_cost_ms: Option<f64>,
    /// for load,
    pub load_cost_ms: Option<f64>,
    /// and for being a hop.
    pub hop_cost_ms: Option<f64>,
}

/// Why there is no path to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No relay is called so.
    #[error("no relay is called `{name}`; there are: {}", listed(candidates))]
    UnknownRelay {
        /// What was asked for.
        name: String,
        /// Those there are.
        candidates: Vec<String>,
    },
    /// Several relays fit.
    #[error(
        "`{name}` could be any of: {}; give more of the name",
        listed(candidates)
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Those that fit.
        candidates: Vec<String>,
    },
    /// No plan is in force yet.
    #[error("no plan is in force yet: relays are still measuring; ask again in some seconds")]
    NoPlan,
    /// The plan has no way.
    #[error("plan {plan} has no way from `{from}` to `{to}`")]
    NoWay {
        /// Which plan.
        plan: String,
        /// Where it should begin.
        from: String,
        /// Where it should end.
        to: String,
    },
}

impl Network {
    /// All relays ever known, by index.
    #[must_use]
    pub fn relays(&self) -> Vec<RelayView> {
        self.registry
            .iter()
            .map(|(index, relay)| RelayView {
                name: relay.name().to_owned(),
                index: index.0,
                region: relay.saved.region.clone(),
                online: relay.is_online(),
                draining: relay.draining,
                silent: relay.silent,
                addresses: Addresses {
                    client: relay.saved.client_addresses.clone(),
                    link: relay.saved.link_addresses.clone(),
                },
                sessions: relay.sessions,
                busy_permille: relay.busy_permille,
                software: relay.software.clone(),
                since_unix_s: self.unix(relay.since).as_secs(),
                latitude: relay.saved.latitude,
                longitude: relay.saved.longitude,
                held_plan: relay.held.map(|id| id.to_string()),
            })
            .collect()
    }

    /// The edges that clients may connect to now.
    #[must_use]
    pub fn edges(&self) -> Vec<EdgeView> {
        self.registry
            .iter()
            .filter(|(_, relay)| relay.is_online() && !relay.draining)
            .map(|(_, relay)| EdgeView {
                name: relay.name().to_owned(),
                region: relay.saved.region.clone(),
                client_addresses: relay.saved.client_addresses.clone(),
            })
            .collect()
    }

    /// All directed links as they are now.
    #[must_use]
    pub fn matrix(&self, now: Duration) -> MatrixView {
        let matrix = self.present_matrix(now);
        let names = self.registry.names();
        let n = names.len();
        fn rows<T>(n: usize, cell: impl Fn(usize, usize) -> T) -> Vec<Vec<T>> {
            (0..n)
                .map(|i| (0..n).map(|j| cell(i, j)).collect())
                .collect()
        }
        let link = |i: usize, j: usize| matrix.get(i, j);
        MatrixView {
            one_way_ms: rows(n, |i, j| link(i, j).and_then(|link| link.one_way_ms)),
            rtt_ms: rows(n, |i, j| link(i, j).and_then(|link| link.rtt_ms)),
            loss: rows(n, |i, j| link(i, j).and_then(loss_of)),
            cost_ms: rows(n, |i, j| link(i, j).and_then(cost_of)),
            state: rows(n, |i, j| {
                link(i, j).map_or("unknown", |link| word(link.usable))
            }),
            names,
        }
    }

    /// The plan in force; `None` before the first one.
    #[must_use]
    pub fn plan_view(&self) -> Option<PlanView> {
        let plan = self.active.as_ref()?;
        let name = |index: usize| {
            self.registry
                .get(RelayIndex(index as u16))
                .name()
                .to_owned()
        };
        let members: Vec<usize> = plan
            .members
            .iter()
            .map(|info| info.index as usize)
            .collect();
        let next_hops = members
            .iter()
            .map(|&to| {
                let hops = members.iter().filter_map(|&from| {
                    Some((name(from), name(plan.tables.in_trees[to].next_hop(from)?)))
                });
                (name(to), hops.collect())
            })
            .collect();
        Some(PlanView {
            epoch: plan.id.epoch,
            number: plan.id.number,
            active: true,
            made_at_unix_ms: self.unix(plan.made_at).as_millis() as u64,
            activated_after_ms: plan
                .activated_at
                .map(|at| at.saturating_sub(plan.made_at).as_millis() as u64),
            reasons: plan.reasons.clone(),
            next_hops,
            held_by: plan
                .held_by
                .iter()
                .map(|index| name(index.as_usize()))
                .collect(),
            on_its_way: self.on_its_way.as_ref().map(|coming| coming.plan.id.number),
        })
    }

    /// The way that the plan in force takes between two relays. Names as in the registry; any
    /// part that only one relay's name has will do.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn path(&self, now: Duration, from: &str, to: &str) -> Result<PathView, PathError> {
        let from = self.find(from)?;
        let to = self.find(to)?;
        let plan = self.active.as_ref().ok_or(PathError::NoPlan)?;
        self.path_in(now, plan, from, to)
    }

    /// Whether measurements are distrusted at present, and why.
    #[must_use]
    pub fn alert(&self) -> Option<&str> {
        self.alert.as_deref()
    }

    /// Counts since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn path_in(
        &self,
        now: Duration,
        plan: &Plan,
        from: RelayIndex,
        to: RelayIndex,
    ) -> Result<PathView, PathError> {
        let name = |index: usize| {
            self.registry
                .get(RelayIndex(index as u16))
                .name()
                .to_owned()
        };
        let (a, b) = (from.as_usize(), to.as_usize());
        let path = plan.path(from, to).ok_or_else(|| PathError::NoWay {
            plan: plan.id.to_string(),
            from: name(a),
            to: name(b),
        })?;
        let matrix = self.present_matrix(now);
        let hops = || path.windows(2).map(|hop| (hop[0], hop[1]));
        let sum = |of: fn(&Measured) -> Option<f64>| {
            hops()
                .map(|(i, j)| matrix.get(i, j).and_then(of))
                .sum::<Option<f64>>()
        };
        let direct = matrix.get(a, b);
        let cost_ms = sum(cost_of);
        let direct_cost_ms = direct.and_then(cost_of);
        Ok(PathView {
            from: name(a),
            to: name(b),
            path: path.iter().map(|&index| name(index)).collect(),
            cost_ms,
            direct_cost_ms,
            saved_ms: direct_cost_ms
                .zip(cost_ms)
                .map(|(direct, cost)| direct - cost),
            delay_ms: sum(delay_of),
            direct_delay_ms: direct.and_then(delay_of),
            plan: plan.id.to_string(),
            links: hops()
                .map(|(i, j)| link_view(name(i), name(j), matrix.get(i, j)))
                .collect(),
        })
    }

    fn present_matrix(&self, now: Duration) -> Matrix {
        self.links.matrix(now, &self.registry, &self.config.weights)
    }

    /// A relay by its exact name, else by the only name equal but for case, else by the only one
    /// that contains what was given.
    fn find(&self, name: &str) -> Result<RelayIndex, PathError> {
        if let Some(index) = self.registry.index_of(name) {
            return Ok(index);
        }
        let wanted = name.trim().to_lowercase();
        let fitting = |fits: &dyn Fn(&str) -> bool| -> Vec<(RelayIndex, String)> {
            self.registry
                .iter()
                .filter(|(_, relay)| fits(&relay.name().to_lowercase()))
                .map(|(index, relay)| (index, relay.name().to_owned()))
                .collect()
        };
        let mut found = fitting(&|known| known == wanted);
        if found.is_empty() && !wanted.is_empty() {
            found = fitting(&|known| known.contains(&wanted));
        }
        let name = name.to_owned();
        match &found[..] {
            [(only, _)] => Ok(*only),
            [] => {
                let mut candidates = self.registry.names();
                // The most alike first.
                candidates.sort_by_cached_key(|known| {
                    strsim::levenshtein(&known.to_lowercase(), &wanted)
                });
                candidates.truncate(MOST_CANDIDATES);
                Err(PathError::UnknownRelay { name, candidates })
            }
            _ => Err(PathError::Ambiguous {
                name,
                candidates: found.into_iter().map(|(_, name)| name).collect(),
            }),
        }
    }

    fn unix(&self, at: Duration) -> Duration {
        (self.wall_start + at)
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }

    /// What time it was when the monotonic clock showed 0.
    #[must_use]
    pub fn wall_start(&self) -> SystemTime {
        self.wall_start
    }
}

fn link_view(from: String, to: String, link: Option<&Measured>) -> LinkView {
    let terms = link.and_then(|link| link.cost);
    LinkView {
        from,
        to,
        uplink: link.map_or(0, |link| link.key.uplink.0),
        state: link.map_or("unknown", |link| word(link.usable)),
        one_way_ms: link.and_then(|link| link.one_way_ms),
        rtt_ms: link.and_then(|link| link.rtt_ms),
        loss: link.and_then(loss_of),
        cost_ms: terms.map(|terms| terms.total()),
        jitter_cost_ms: terms.map(|terms| terms.jitter_ms),
        loss_cost_ms: terms.map(|terms| terms.loss_ms),
        load_cost_ms: terms.map(|terms| terms.load_ms),
        hop_cost_ms: terms.map(|terms| terms.hop_ms),
    }
}

fn cost_of(link: &Measured) -> Option<f64> {
    link.cost.map(|terms| terms.total())
}

fn delay_of(link: &Measured) -> Option<f64> {
    link.cost.map(|terms| terms.delay_ms)
}

fn loss_of(link: &Measured) -> Option<f64> {
    (link.usable == Usable::Yes).then_some(link.loss)
}

fn word(usable: Usable) -> &'static str {
    match usable {
        Usable::Unknown => "unknown",
        Usable::Yes => "up",
        Usable::Down => "down",
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none yet".to_owned(),
        names => names.join(", "),
    }
}
