//! What the relay shows of itself on its debug pages.

use serde::Serialize;
use tradewind_proto::{Profile, RelayIndex, control};

use crate::tables::Tables;

/// The plan a relay stamps, by names.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PlanView {
    /// `epoch.number`; `0.0` when there is none.
    pub active: String,
    /// All plans held.
    pub held: Vec<String>,
    /// This relay's index and name.
    pub relay: String,
    /// Next hop and backups by destination.
    pub routes: Vec<RouteView>,
}

/// One destination of the plan.
#[derive(Debug, Clone, Serialize)]
pub struct RouteView {
    /// The destination relay.
    pub to: String,
    /// The next relay; `None` when there is no way.
    pub next: Option<String>,
    /// Where to deflect to, best first.
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
                .map(|&to| RouteView {
                    to: name(to),
                    next: plan.next_hop(Profile::Realtime as u8, 0, to).map(name),
                    backups: plan.backups(to).iter().map(|&relay| name(relay)).collect(),
                })
                .collect()
        });
        Self {
            active: tables.active.to_string(),
            held: tables.plans_held().map(|id| id.to_string()).collect(),
            relay: name(tables.me),
            routes,
        }
    }
}

/// One link as the relay measures it.
#[derive(Debug, Clone, Serialize)]
pub struct LinkView {
    /// The other relay.
    pub peer: String,
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
            rtt_min_ms: ms(link.rtt_min_us),
            rtt_ms: ms(link.rtt_smoothed_us),
            deviation_ms: ms(link.rtt_deviation_us),
            loss_in_percent: f64::from(link.loss_in_ppm) / 1e4,
            loss_out_percent: f64::from(link.loss_out_ppm) / 1e4,
            degraded_in: link.degraded_in,
            degraded_out: link.degraded_out,
            bytes_sent: link.bytes_sent,
            bytes_received: link.bytes_received,
        }
    }
}
