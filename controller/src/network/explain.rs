//! Why packets go the way they go: the way now, the others, and what keeps them from being taken.

use std::time::Duration;

use serde::Serialize;
use tradewind_proto::RelayIndex;
use tradewind_routing::{TreeRules, in_tree, path_cost};

use super::{
    Network, PathError, PathView,
    costs::{Costs, LinkCosts},
    plan::Plan,
    rollout::ALL,
    rules::AllRules,
    views::LinkView,
};
use crate::policy::{Compiled, ProfileName};

/// Other ways that are shown.
const MOST_ALTERNATIVES: usize = 5;
/// Costs closer than this are the same, milliseconds.
const SAME_MS: f64 = 0.005;

/// The way from one relay to another with everything that led to it, as in `/v1/path`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The way of most packets that are stamped with the plan in force, in numbers.
    #[serde(flatten)]
    pub way: PathView,
    /// `realtime` or `economy`.
    pub profile: &'static str,
    /// Since when packets take it, Unix seconds; null when that is longer ago than plans are
    /// retained.
    pub since_unix_s: Option<u64>,
    /// Ways that flows are spread over: weight and relays. Empty: all take the same.
    pub split: Vec<(u8, Vec<String>)>,
    /// During a rollout, the way of the flows that are stamped with the plan before; null: all
    /// flows are stamped with this one.
    pub other_flows: Option<OtherFlows>,
    /// The best ways over each other first hop, the best first.
    pub alternatives: Vec<Alternative>,
    /// Why none of them is taken.
    pub why: String,
    /// Where packets turn when the first hop fails, before a new plan comes, the best first.
    pub backups: Vec<BackupView>,
    /// Which relay does what when the first link fails.
    pub if_first_hop_fails: String,
}

/// Flows that are not stamped with the plan in force.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OtherFlows {
    /// What they are stamped with, `epoch.number`.
    pub plan: String,
    /// Their share, parts per thousand.
    pub share_permille: u32,
    /// The relays they cross, both ends included; empty: that plan has no way.
    pub path: Vec<String>,
}

/// A way that is not taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alternative {
    /// The relays it crosses, both ends included.
    pub path: Vec<String>,
    /// What it costs at present, milliseconds-equivalents.
    pub cost_ms: f64,
    /// How much more that is than the present way's cost.
    pub more_ms: Option<f64>,
    /// One-way delay, milliseconds.
    pub delay_ms: Option<f64>,
    /// Each link of it.
    pub links: Vec<LinkView>,
}

/// One place to deflect to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackupView {
    /// The neighbour; the destination itself: by the direct link.
    pub relay: String,
    /// What the way over it cost when the plan was made; null when unknown.
    pub cost_ms: Option<f64>,
}

impl Network {
    /// The way that the plan in force takes between two relays in a profile, and why. Names as in
    /// [`Network::path`].
    ///
    /// # Errors
    /// [`PathError`].
    pub fn explain(
        &self,
        now: Duration,
        from: &str,
        to: &str,
        profile: ProfileName,
    ) -> Result<Explanation, PathError> {
        let (from, to) = (self.find(from)?, self.find(to)?);
        let plan = self.active.as_ref().ok_or(PathError::NoPlan)?;
        let policy = self.compile(now, &self.policy.policy);
        let costs = self.costs(now, &policy);
        let reachable = self.links.reachable(now, &self.registry);
        let rules = self.rules(&policy, &costs, &reachable);
        let way = self.path_in(plan, from, to, profile as usize, &costs)?;
        let (a, b, at) = (from.as_usize(), to.as_usize(), profile as usize);
        let path = plan
            .path(at, plan.main_tree(at, a, b), from, to)
            .unwrap_or_default();
        let others = self.alternatives(at, (a, b), &path, &costs, &rules[at][0], way.cost_ms);
        let why = self.why(
            now,
            plan,
            &path,
            (&way, &others),
            profile,
            (&policy, &costs, &rules),
        );
        let backups = self.backups(plan, at, a, b);
        let deflected = backups
            .iter()
            .find(|backup| Some(&backup.relay) != way.path.get(1));
        let other_uplink = path
            .get(1)
            .and_then(|&hop| other_uplink(&costs, at, a, hop));
        let if_first_hop_fails = match (way.path.get(1), other_uplink, deflected) {
            (None, ..) => "it is the same relay".to_owned(),
            // Before any other relay, another uplink to the same one.
            (Some(hop), Some(uplink), _) => format!(
                "{} sends to {hop} over uplink {uplink} at once, and a new plan follows",
                way.from
            ),
            (Some(hop), _, None) => format!(
                "nothing bridges a failure of the link to {hop}: packets are dropped (no_way) until a new plan is in force"
            ),
            (_, _, Some(backup)) if backup.relay == way.to => {
                format!(
                    "{} sends by the direct link at once, and a new plan follows",
                    way.from
                )
            }
            (_, _, Some(backup)) => format!(
                "{} sends to {} at once, which sends on directly to {} (or deflects once more); a new plan follows",
                way.from, backup.relay, way.to
            ),
        };
        Ok(Explanation {
            profile: profile.word(),
            since_unix_s: self.since(plan, at, from, to),
            split: self.split(plan, at, from, to),
            other_flows: self.other_flows(at, from, to),
            alternatives: others,
            why,
            backups,
            if_first_hop_fails,
            way,
        })
    }

    /// Since when the retained plans have had the present way; `None` when the oldest has it too
    /// and is not the first.
    fn since(&self, plan: &Plan, profile: usize, from: RelayIndex, to: RelayIndex) -> Option<u64> {
        let main = |plan: &Plan| {
            let tree = plan.main_tree(profile, from.as_usize(), to.as_usize());
            plan.path(profile, tree, from, to)
        };
        let now = main(plan);
        let mut since = plan.activated_at?;
        let mut changed = false;
        for older in &self.older {
            if main(older) != now {
                changed = true;
                break;
            }
            since = since.min(older.activated_at?);
        }
        let first = self.older.back().unwrap_or(plan).id.number == 1;
        (changed || first).then(|| self.unix(since).as_secs())
    }

    fn other_flows(&self, profile: usize, from: RelayIndex, to: RelayIndex) -> Option<OtherFlows> {
        let stamping = self.stamping.filter(|stamping| stamping.share < ALL)?;
        let rest = self
            .older
            .iter()
            .find(|plan| Some(plan.id) == stamping.rest)?;
        let tree = rest.main_tree(profile, from.as_usize(), to.as_usize());
        let path = rest.path(profile, tree, from, to).unwrap_or_default();
        Some(OtherFlows {
            plan: rest.id.to_string(),
            share_permille: ALL - stamping.share,
            path: path.iter().map(|&relay| self.relay_name(relay)).collect(),
        })
    }

    fn split(
        &self,
        plan: &Plan,
        profile: usize,
        from: RelayIndex,
        to: RelayIndex,
    ) -> Vec<(u8, Vec<String>)> {
        let Some(weights) = plan.weights(profile, from.as_usize(), to.as_usize()) else {
            return Vec::new();
        };
        let used: Vec<usize> = (0..4).filter(|&tree| weights[tree] > 0).collect();
        if used.len() < 2 {
            return Vec::new(); // pinned: all take the same
        }
        let used = used.into_iter();
        used.filter_map(|tree| {
            let path = plan.path(profile, tree, from, to)?;
            let names = path.iter().map(|&relay| self.relay_name(relay)).collect();
            Some((weights[tree], names))
        })
        .collect()
    }

    /// The best way over each first hop other than the present one.
    fn alternatives(
        &self,
        profile: usize,
        (from, to): (usize, usize),
        present: &[usize],
        costs: &Costs,
        rules: &TreeRules,
        present_ms: Option<f64>,
    ) -> Vec<Alternative> {
        let cost = &costs.profiles[profile].cost;
        let tree = in_tree(cost, to, rules);
        let mut ways: Vec<(f64, Vec<usize>)> = (0..cost.len())
            .filter(|&hop| hop != from && Some(&hop) != present.get(1) && cost.is_up(from, hop))
            .filter(|&hop| hop == to || rules.may_cross(hop))
            .filter_map(|hop| {
                let rest = if hop == to { vec![to] } else { tree.path(hop)? };
                let path: Vec<usize> = [from].into_iter().chain(rest).collect();
                let short = path.len() <= rules.max_links + 1;
                let loops = path[1..].contains(&from);
                (short && !loops).then(|| (path_cost(cost, &path), path))
            })
            .filter(|(cost, _)| cost.is_finite())
            .collect();
        ways.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        ways.truncate(MOST_ALTERNATIVES);
        ways.into_iter()
            .map(|(cost_ms, path)| {
                let (delay_ms, links) = self.links_of(profile, &path, costs);
                Alternative {
                    path: path.iter().map(|&relay| self.relay_name(relay)).collect(),
                    cost_ms,
                    more_ms: present_ms.map(|present| cost_ms - present),
                    delay_ms,
                    links,
                }
            })
            .collect()
    }

    fn why(
        &self,
        now: Duration,
        plan: &Plan,
        path: &[usize],
        (way, others): (&PathView, &[Alternative]),
        profile: ProfileName,
        (policy, costs, rules): (&Compiled, &Costs, &AllRules),
    ) -> String {
        let at = profile as usize;
        let Some(cost_ms) = way.cost_ms else {
            return "one of its links cannot be used at this moment: relays deflect, and a new plan is due".to_owned();
        };
        let saved = others
            .first()
            .map_or(f64::NEG_INFINITY, |best| cost_ms - best.cost_ms);
        if saved <= SAME_MS {
            return self.forbidden_but_better(at, path, cost_ms, policy, costs, rules);
        }
        let better = format!(
            "a way over {} would be {saved:.1} ms better",
            hop_of(&others[0])
        );
        if policy.pins[at].iter().any(|pin| pin == path) {
            return format!("{better}, but the operator has pinned this one");
        }
        if plan.is_observed(at) {
            return format!(
                "{better}, but profile {} is only observed: packets go direct",
                profile.word()
            );
        }
        if let Some(held) = self.held_for() {
            return format!("{better}, but plans by choice wait: {held}");
        }
        if let Some(alert) = &self.alert {
            return format!("{better}, but measurements are doubted: {alert}");
        }
        let planner = &self.config.planner;
        let margin = (planner.margin * cost_ms).max(planner.margin_ms);
        if saved < margin {
            return format!("{better}, which is less than the margin of {margin:.1} ms");
        }
        let age = now.saturating_sub(plan.activated_at.unwrap_or_default());
        match age < planner.choice_rest {
            true => format!(
                "{better}; it must last for {:?}, and a choice made in the last {:?} is not made again (this plan is {:.0} s old)",
                planner.hold,
                planner.choice_rest,
                age.as_secs_f64()
            ),
            false => format!(
                "{better}; it must last for {:?}, and gain enough over the whole tree to {}",
                planner.hold, way.to
            ),
        }
    }

    /// When the present way is the best that is allowed: whether a better one is forbidden.
    fn forbidden_but_better(
        &self,
        profile: usize,
        path: &[usize],
        cost_ms: f64,
        policy: &Compiled,
        costs: &Costs,
        rules: &AllRules,
    ) -> String {
        let best = "it is the best way at present".to_owned();
        let (Some(&from), Some(&to)) = (path.first(), path.last()) else {
            return best;
        };
        let cost = &costs.profiles[profile].cost;
        let free = in_tree(cost, to, &TreeRules::default())
            .path(from)
            .unwrap_or_default();
        let saved = cost_ms - path_cost(cost, &free);
        let crossed = free
            .get(1..free.len().saturating_sub(1))
            .unwrap_or_default();
        let banned = crossed
            .iter()
            .find(|&&relay| !rules[profile][0].may_cross(relay));
        match banned {
            Some(&relay) if saved > SAME_MS => format!(
                "it is the best way that is allowed; one over {} would be {saved:.1} ms better, but that relay is {}",
                self.relay_name(relay),
                self.closed_because(policy, profile, relay)
                    .unwrap_or("closed")
            ),
            _ => best,
        }
    }

    fn backups(&self, plan: &Plan, profile: usize, from: usize, to: usize) -> Vec<BackupView> {
        plan.backups(profile, 0, from, to)
            .into_iter()
            .map(|(relay, cost_ms)| BackupView {
                relay: self.relay_name(relay),
                cost_ms: cost_ms.is_finite().then_some(cost_ms),
            })
            .collect()
    }
}

/// Another uplink to a neighbour than the one that a profile takes, if one can be used.
fn other_uplink(costs: &Costs, profile: usize, from: usize, to: usize) -> Option<u8> {
    let taken = costs.uplink(profile, from, to);
    let cost_of = |link: &LinkCosts| link.terms[profile].map(|terms| terms.total());
    let others = costs.links().iter().filter_map(|link| {
        let key = link.measured.key;
        let is_other =
            (key.from.as_usize(), key.to.as_usize()) == (from, to) && key.uplink != taken;
        cost_of(link)
            .filter(|_| is_other)
            .map(|cost| (cost, key.uplink.0))
    });
    let cheapest = others.min_by(|a, b| a.0.total_cmp(&b.0));
    cheapest.map(|(_, uplink)| uplink)
}

fn hop_of(way: &Alternative) -> &str {
    match way.path.len() {
        0..=2 => "the direct link",
        _ => &way.path[1],
    }
}
