//! The network shown to people and programs: plain data for the HTTP API, the lab and metrics.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tradewind_proto::{LinkKey, PlanId, RelayIndex, Uplink};

use super::{
    Network, SampleView,
    costs::{Costs, LinkCosts},
    links::Usable,
    path_error::PathError,
    plan::Plan,
    registry::Standing,
};

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
    /// Orders to stamp plans: activations, shares, rollbacks.
    pub orders: u64,
    /// How often an operator went back to an older plan.
    pub rollbacks: u64,
    /// How often a plan by choice would have been made, had it not to wait.
    pub plans_held_back: u64,
    /// How often another policy came into force.
    pub policies_set: u64,
    /// Times that tokens were revoked.
    pub revocations_made: u64,
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
    /// What the operator has decided: `member`, `quarantined`, `leaving` or `retired`.
    pub standing: &'static str,
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
    /// How loaded it is, parts per thousand: as busy or as full, whichever is greater.
    pub load_permille: u32,
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

/// Something that needs somebody's eyes, as in `/v1/alerts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AlertView {
    /// `measurement`, `silent_relay`, `quarantine`, `hold`, `policy`, `observe` or `storage`.
    pub kind: &'static str,
    /// For people.
    pub text: String,
}

/// One link now and over time, as in `/v1/link`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkHistoryView {
    /// As it is now.
    pub now: LinkView,
    /// Every five minutes of the last day, the oldest first.
    pub day: Vec<SampleView>,
    /// Every ten seconds of the last hour, the oldest first.
    pub hour: Vec<SampleView>,
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
    /// … of which for delay (in `economy` less than the delay is),
    pub delay_cost_ms: Option<f64>,
    /// for varying delay,
    pub jitter_cost_ms: Option<f64>,
    /// for loss,
    pub loss_cost_ms: Option<f64>,
    /// for load,
    pub load_cost_ms: Option<f64>,
    /// for being a hop,
    pub hop_cost_ms: Option<f64>,
    /// and for its price, or for being outside of its busy hours.
    pub price_cost_ms: Option<f64>,
    /// Money per 10⁹ bytes.
    pub price_per_gb: f64,
    /// Bytes per second over it at present.
    pub rate: f64,
    /// Bytes per second that it carries; null when not known.
    pub capacity: Option<f64>,
    /// Share of what it, an uplink or a processor at its ends can do that is in use.
    pub utilisation: f64,
    /// It is for busy hours only, and it is none of them.
    pub off_hours: bool,
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
                standing: match relay.standing {
                    Standing::Member => "member",
                    Standing::Quarantined => "quarantined",
                    Standing::Leaving { .. } => "leaving",
                    Standing::Retired => "retired",
                },
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
            .filter(|(_, relay)| {
                relay.is_online() && !relay.draining && relay.standing == Standing::Member
            })
            .map(|(_, relay)| EdgeView {
                name: relay.name().to_owned(),
                region: relay.saved.region.clone(),
                client_addresses: relay.saved.client_addresses.clone(),
                load_permille: relay.load_permille,
            })
            .collect()
    }

    /// All directed links as they are now.
    #[must_use]
    pub fn matrix(&self, now: Duration) -> MatrixView {
        let matrix = self.present_costs(now);
        let names = self.registry.names();
        let n = names.len();
        fn rows<T>(n: usize, cell: impl Fn(usize, usize) -> T) -> Vec<Vec<T>> {
            (0..n)
                .map(|i| (0..n).map(|j| cell(i, j)).collect())
                .collect()
        }
        let link = |i: usize, j: usize| matrix.get(0, i, j);
        MatrixView {
            one_way_ms: rows(n, |i, j| {
                link(i, j).and_then(|link| link.measured.one_way_ms)
            }),
            rtt_ms: rows(n, |i, j| link(i, j).and_then(|link| link.measured.rtt_ms)),
            loss: rows(n, |i, j| link(i, j).and_then(loss_of)),
            cost_ms: rows(n, |i, j| link(i, j).and_then(cost_of)),
            state: rows(n, |i, j| {
                link(i, j).map_or("unknown", |link| word(link.measured.usable))
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
                let hops = members
                    .iter()
                    .filter_map(|&from| Some((name(from), name(plan.next_hop(0, 0, from, to)?))));
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
        self.path_in(plan, from, to, 0, &self.present_costs(now))
    }

    /// The tree along which what enters at the relay `origin` goes to groups in a plan that relays
    /// still hold: (relay, relay that it receives from), by name. `None` when there is no such plan or
    /// relay.
    #[must_use]
    pub fn out_tree(&self, plan: PlanId, origin: &str) -> Option<Vec<(String, String)>> {
        let coming = self.on_its_way.as_ref().map(|coming| &coming.plan);
        let mut held = self.active.iter().chain(&self.older).chain(coming);
        let plan = held.find(|held| held.id == plan)?;
        let tree = plan.out_tree(self.registry.index_of(origin)?)?;
        let name = |at: usize| self.registry.get(RelayIndex(at as u16)).name().to_owned();
        Some(
            tree.into_iter()
                .map(|(to, from)| (name(to), name(from)))
                .collect(),
        )
    }

    /// One link now and over time.
    ///
    /// # Errors
    /// [`PathError`]: no such relays, or nothing is known of such a link.
    pub fn link(
        &self,
        now: Duration,
        from: &str,
        to: &str,
        uplink: u8,
    ) -> Result<LinkHistoryView, PathError> {
        let key = LinkKey {
            from: self.find(from)?,
            to: self.find(to)?,
            uplink: Uplink(uplink),
        };
        let costs = self.present_costs(now);
        let name = |index| self.registry.get(index).name().to_owned();
        let (from, to) = (name(key.from), name(key.to));
        let Some(link) = costs.of(key) else {
            return Err(PathError::NoLink { from, to, uplink });
        };
        let (day, hour) = self.link_histories.of(key, |at| self.unix(at));
        Ok(LinkHistoryView {
            now: link_view(0, from, to, Some(link)),
            day,
            hour,
        })
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

    pub(super) fn path_in(
        &self,
        plan: &Plan,
        from: RelayIndex,
        to: RelayIndex,
        profile: usize,
        costs: &Costs,
    ) -> Result<PathView, PathError> {
        let (a, b) = (from.as_usize(), to.as_usize());
        let tree = plan.main_tree(profile, a, b);
        let path = plan
            .path(profile, tree, from, to)
            .ok_or_else(|| PathError::NoWay {
                plan: plan.id.to_string(),
                from: self.relay_name(a),
                to: self.relay_name(b),
            })?;
        let (delay_ms, links) = self.links_of(profile, &path, costs);
        let direct = costs.get(profile, a, b);
        let cost_ms = links.iter().map(|link| link.cost_ms).sum::<Option<f64>>();
        let direct_cost_ms = direct.and_then(|link| total_of(link, profile));
        Ok(PathView {
            from: self.relay_name(a),
            to: self.relay_name(b),
            path: path.iter().map(|&index| self.relay_name(index)).collect(),
            cost_ms,
            direct_cost_ms,
            saved_ms: direct_cost_ms
                .zip(cost_ms)
                .map(|(direct, cost)| direct - cost),
            delay_ms,
            direct_delay_ms: direct.and_then(delay_of),
            plan: plan.id.to_string(),
            links,
        })
    }

    /// The delay of a path, if all its links can be used, and each of them.
    pub(super) fn links_of(
        &self,
        profile: usize,
        path: &[usize],
        costs: &Costs,
    ) -> (Option<f64>, Vec<LinkView>) {
        let hops = || path.windows(2).map(|hop| (hop[0], hop[1]));
        let delay = hops()
            .map(|(i, j)| costs.get(profile, i, j).and_then(delay_of))
            .sum::<Option<f64>>();
        let links = hops()
            .map(|(i, j)| {
                let link = costs.get(profile, i, j);
                link_view(profile, self.relay_name(i), self.relay_name(j), link)
            })
            .collect();
        (delay, links)
    }

    fn present_costs(&self, now: Duration) -> Costs {
        self.costs(now, &self.compile(now, &self.policy.policy))
    }

    /// A relay by its exact name, else by the only name equal but for case, else by the only one
    /// that contains what was given.
    pub(super) fn find(&self, name: &str) -> Result<RelayIndex, PathError> {
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
                candidates.truncate(PathError::MOST_CANDIDATES);
                Err(PathError::UnknownRelay { name, candidates })
            }
            _ => Err(PathError::Ambiguous {
                name,
                candidates: found.into_iter().map(|(_, name)| name).collect(),
            }),
        }
    }

    pub(super) fn unix(&self, at: Duration) -> Duration {
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

fn link_view(profile: usize, from: String, to: String, link: Option<&LinkCosts>) -> LinkView {
    let terms = link.and_then(|link| link.terms[profile]);
    let measured = link.map(|link| &link.measured);
    LinkView {
        from,
        to,
        uplink: measured.map_or(0, |link| link.key.uplink.0),
        state: measured.map_or("unknown", |link| word(link.usable)),
        one_way_ms: measured.and_then(|link| link.one_way_ms),
        rtt_ms: measured.and_then(|link| link.rtt_ms),
        loss: link.and_then(loss_of),
        cost_ms: terms.map(|terms| terms.total()),
        delay_cost_ms: terms.map(|terms| terms.delay_ms),
        jitter_cost_ms: terms.map(|terms| terms.jitter_ms),
        loss_cost_ms: terms.map(|terms| terms.loss_ms),
        load_cost_ms: terms.map(|terms| terms.load_ms),
        hop_cost_ms: terms.map(|terms| terms.hop_ms),
        price_cost_ms: terms.map(|terms| terms.price_ms),
        price_per_gb: link.map_or(0.0, |link| link.price),
        rate: link.map_or(0.0, |link| link.rate),
        capacity: link
            .map(|link| link.capacity)
            .filter(|capacity| capacity.is_finite()),
        utilisation: link.map_or(0.0, |link| link.utilisation),
        off_hours: link.is_some_and(|link| link.off_hours),
    }
}

fn cost_of(link: &LinkCosts) -> Option<f64> {
    total_of(link, 0)
}

fn total_of(link: &LinkCosts, profile: usize) -> Option<f64> {
    link.terms[profile].map(|terms| terms.total())
}

fn delay_of(link: &LinkCosts) -> Option<f64> {
    link.terms[0].map(|terms| terms.delay_ms)
}

fn loss_of(link: &LinkCosts) -> Option<f64> {
    (link.measured.usable == Usable::Yes).then_some(link.measured.loss)
}

pub(super) fn word(usable: Usable) -> &'static str {
    match usable {
        Usable::Unknown => "unknown",
        Usable::Yes => "up",
        Usable::Down => "down",
    }
}
