//! What the relay shows of itself on its debug pages.

use serde::Serialize;
use tradewind_proto::{PlanId, Profile, RelayIndex, control};

use crate::{plan::Plan, tables::Tables};

/// The plan a relay stamps, by names.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PlanView {
    /// `epoch.number`; `0.0` when there is none.
    pub active: String,
    /// Share of flows stamped with it, percent.
    pub share_percent: f64,
    /// What the other flows are stamped with.
    pub rest: Option<String>,
    /// All plans held.
    pub held: Vec<String>,
    /// This relay's index and name.
    pub relay: String,
    /// Ways by the active plan, by destination.
    pub routes: Vec<RouteView>,
}

/// One destination of the plan.
#[derive(Debug, Clone, Serialize)]
pub struct RouteView {
    /// The destination relay.
    pub to: String,
    /// The next relay by the first realtime tree; `None` when there is no way.
    pub next: Option<String>,
    /// Where to deflect realtime packets to, best first.
    pub backups: Vec<String>,
    /// All trees of both profiles.
    pub trees: Vec<TreeView>,
}

/// One tree towards one destination.
#[derive(Debug, Clone, Serialize)]
pub struct TreeView {
    /// `realtime` or `economy`.
    pub profile: &'static str,
    /// Its number.
    pub tree: u8,
    /// The rule set that it obeys; 0 is everybody's.
    pub rules: u8,
    /// The next relay; `None` when it has no way.
    pub next: Option<String>,
    /// The uplink that it takes to the next relay.
    pub uplink: u8,
    /// Cost to the destination, milliseconds-equivalent, where the plan says it.
    pub cost_ms: Option<f64>,
    /// Weight among the trees of rule set 0; all 0: all flows on the first one.
    pub weight: u8,
    /// Where to deflect its packets to, best first.
    pub backups: Vec<String>,
}

impl PlanView {
    pub(crate) fn new(tables: &Tables) -> Self {
        let name = |relay: RelayIndex| {
            tables
                .name_of(relay)
                .map_or_else(|| relay.to_string(), str::to_owned)
        };
        let routes = tables.active_plan().map_or_else(Vec::new, |plan| {
            plan.relays
                .iter()
                .filter(|&&to| to != tables.me)
                .map(|&to| RouteView::new(plan, to, &name))
                .collect()
        });
        let stamping = tables.stamping;
        Self {
            active: stamping.plan.to_string(),
            share_percent: f64::from(stamping.share) / 10.0,
            rest: (stamping.rest != PlanId::NONE).then(|| stamping.rest.to_string()),
            held: tables.plans_held().map(|id| id.to_string()).collect(),
            relay: name(tables.me),
            routes,
        }
    }
}

impl RouteView {
    fn new(plan: &Plan, to: RelayIndex, name: &impl Fn(RelayIndex) -> String) -> Self {
        let backups = |profile: u8, rules: u8| {
            let candidates = plan.candidates(profile, rules, to);
            candidates.iter().map(|c| name(c.relay)).collect()
        };
        let mut trees = Vec::new();
        for (profile, profile_name) in [
            (Profile::Realtime as u8, "realtime"),
            (Profile::Economy as u8, "economy"),
        ] {
            let weights = plan.weights(profile, to);
            for tree in 0..plan.trees(profile) {
                let hop = plan.hop(profile, tree, to);
                let rules = plan.rules_of(profile, tree);
                trees.push(TreeView {
                    profile: profile_name,
                    tree,
                    rules,
                    next: hop.map(|hop| name(hop.next)),
                    uplink: hop.map_or(0, |hop| hop.uplink.0),
                    cost_ms: hop
                        .filter(|hop| hop.cost_us > 0)
                        .map(|hop| f64::from(hop.cost_us) / 1e3),
                    weight: weights[usize::from(tree)],
                    backups: backups(profile, rules),
                });
            }
        }
        Self {
            to: name(to),
            next: plan
                .hop(Profile::Realtime as u8, 0, to)
                .map(|hop| name(hop.next)),
            backups: backups(Profile::Realtime as u8, 0),
            trees,
        }
    }
}

/// One link as the relay measures it.
#[derive(Debug, Clone, Serialize)]
pub struct LinkView {
    /// The other relay.
    pub peer: String,
    /// The uplink.
    pub uplink: u32,
    /// `unknown`, `up` or `down`.
    pub state: &'static str,
    /// Windowed minimum of the round trip, milliseconds.
    pub rtt_min_ms: Option<f64>,
    /// Smoothed round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Mean deviation, milliseconds.
    pub deviation_ms: Option<f64>,
    /// Share of probes lost on the way here, percent.
    pub loss_in_percent: f64,
    /// Share of probes lost on the way there, percent.
    pub loss_out_percent: f64,
    /// Whether the way here is far worse than normal.
    pub degraded_in: bool,
    /// Whether the way there is far worse than normal.
    pub degraded_out: bool,
    /// UDP payload sent, bytes.
    pub bytes_sent: u64,
    /// UDP payload received, bytes.
    pub bytes_received: u64,
    /// UDP packets sent.
    pub packets_sent: u64,
    /// UDP packets received.
    pub packets_received: u64,
}

impl From<control::LinkState> for LinkView {
    fn from(link: control::LinkState) -> Self {
        let ms = |us: u32| (us > 0).then(|| f64::from(us) / 1e3);
        Self {
            state: match link.state() {
                control::link_state::State::Up => "up",
                control::link_state::State::Down => "down",
                _ => "unknown",
            },
            peer: link.peer,
            uplink: link.uplink,
            rtt_min_ms: ms(link.rtt_min_us),
            rtt_ms: ms(link.rtt_smoothed_us),
            deviation_ms: ms(link.rtt_deviation_us),
            loss_in_percent: f64::from(link.loss_in_ppm) / 1e4,
            loss_out_percent: f64::from(link.loss_out_ppm) / 1e4,
            degraded_in: link.degraded_in,
            degraded_out: link.degraded_out,
            bytes_sent: link.bytes_sent,
            bytes_received: link.bytes_received,
            packets_sent: link.packets_sent,
            packets_received: link.packets_received,
        }
    }
}
