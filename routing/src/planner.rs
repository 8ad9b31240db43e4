//! When to change which tree: the matrix of costs in, forwarding tables out, with hysteresis.
//!
//! The planner is asked again and again ([`Planner::step`], on every new matrix and at least twice
//! a second) and answers mostly "no change". It replaces whole trees only, never single next hops:
//!
//! - A tree that has lost a way for a live relay is replaced **at once**.
//! - A tree that has become clearly worse than a new one ([`PlannerConfig::margin`] and the
//!   others) is replaced when that lasts for [`PlannerConfig::hold`].
//! - The new tree is grown so that it differs from the present one only where that gains
//!   something, and a relay's next hop that took part in a change *by choice* within the last
//!   minute ([`PlannerConfig::choice_rest`]) is not chosen again: between the same two choices
//!   there is at most one change per minute. A change forced by a failure does not count; so the
//!   way back after healing is open, once a minute.
//! - When half of the network vanishes at once, the measurement is more likely broken than the
//!   world: the plan is kept for [`PlannerConfig::grace`], and an alert is given.

use crate::{
    cost::CostMatrix,
    reaction::{Backups, backups},
    tree::{InTree, OutTree, Tree, TreeRules},
};
use std::{collections::BTreeMap, time::Duration};

/// Margins and times of the [`Planner`].
#[derive(Debug, Clone, PartialEq)]
pub struct PlannerConfig {
    /// A tree is clearly better when it is better for at least one relay by this share of its
    /// present cost …
    pub margin: f64,
    /// … and by this much, in milliseconds;
    pub margin_ms: f64,
    /// or when the sum over all relays is better by this share (and by `margin_ms`).
    pub total_margin: f64,
    /// How long it must be clearly better before it is used.
    pub hold: Duration,
    /// How long a next hop that took part in a change by choice is not chosen again.
    pub choice_rest: Duration,
    /// How long after the first plan changes do not count as choices: the figures of links that
    /// have only just been measured still get better, and must be followed.
    pub warm_up: Duration,
    /// How long half of the network must be gone before it is believed.
    pub grace: Duration,
    /// The first plan is made when all links of the expected relays are measured, or when nothing
    /// new has been measured for this long,
    pub settle: Duration,
    /// or, whatever is missing, this long after the first measurement.
    pub first_plan_within: Duration,
    /// Whether out-trees are wanted (for groups). They double the work.
    pub out_trees: bool,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self {
            margin: 0.02,
            margin_ms: 0.5,
            total_margin: 0.01,
            hold: Duration::from_millis(1_500),
            choice_rest: Duration::from_secs(60),
            warm_up: Duration::from_secs(10),
            grace: Duration::from_secs(3),
            settle: Duration::from_secs(1),
            first_plan_within: Duration::from_secs(5),
            out_trees: true,
        }
    }
}

/// The state of the network at one moment.
#[derive(Debug, Clone, Copy)]
pub struct PlannerInput<'a> {
    /// The present moment, since any fixed origin. Must not go backwards.
    pub now: Duration,
    /// The relays' names, by index. May grow; if a name changes, planning starts afresh.
    pub names: &'a [String],
    /// Per relay, whether it is there to forward. Links of others count as down.
    pub live: &'a [bool],
    /// How many live relays there should be before the first plan; 0 when not known.
    pub expected_live: usize,
    /// The links' costs; [`f64::INFINITY`] for down and unknown.
    pub cost: &'a CostMatrix,
    /// Bound and policy that trees obey.
    pub rules: &'a TreeRules,
}

/// Forwarding tables for all relays: what a plan consists of. Indices are those of the input the
/// tables were made from; later relays are missing until the next change.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanTables {
    /// By destination.
    pub in_trees: Vec<InTree>,
    /// By origin; empty when [`PlannerConfig::out_trees`] is off.
    pub out_trees: Vec<OutTree>,
    /// Where to deflect to.
    pub backups: Backups,
    /// The costs at the time (links of relays that are not live are down).
    pub cost: CostMatrix,
}

/// What a step has led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether [`Planner::tables`] are new: number and distribute them.
    pub changed: bool,
    /// What changed and why, in words, when `changed`.
    pub reasons: Vec<String>,
    /// Set while the input is not believed.
    pub alert: Option<String>,
}

/// Decides when a new plan is due, and keeps the present one.
#[derive(Debug, Clone)]
pub struct Planner {
    config: PlannerConfig,
    names: Vec<String>,
    ins: Vec<Slot>,
    outs: Vec<Slot>,
    tables: Option<PlanTables>,
    first_plan_at: Duration,
    coverage: Coverage,
    baseline: Option<Baseline>,
    absurd_since: Option<Duration>,
    backups_stale_since: Option<Duration>,
}

/// One tree and its history.
#[derive(Debug, Clone)]
struct Slot {
    tree: Tree,
    /// Since when a clearly better tree has been there.
    better_since: Option<Duration>,
    /// (relay, hop) → when that hop last took part in a change of the relay's by choice.
    chosen: BTreeMap<(usize, usize), Duration>,
}

/// What a slot could be changed to.
struct Candidate {
    tree: Tree,
    verdict: Verdict,
    /// For the relay that gains most: the relay, its cost now and then.
    gain: Option<(usize, f64, f64)>,
    changed_relays: usize,
    /// Per relay, whether it has no way in the present tree, so that a change is no choice.
    forced: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// Not clearly better.
    Keep,
    /// Clearly better, or reaches relays that had no way before.
    Better,
    /// Gives a live relay a way that it has lost.
    Repairs,
}

#[derive(Debug, Clone, Default)]
struct Coverage {
    first_at: Option<Duration>,
    grown_at: Duration,
    links: usize,
}

/// What was there some seconds ago: absurd input is recognised by comparison.
#[derive(Debug, Clone)]
struct Baseline {
    at: Duration,
    live: Vec<bool>,
    cost: CostMatrix,
}

/// No more reasons than this are given one by one.
const MOST_REASONS: usize = 20;

impl Planner {
    /// A planner without a plan.
    #[must_use]
    pub fn new(config: PlannerConfig) -> Self {
        Self {
            config,
            names: Vec::new(),
            ins: Vec::new(),
            outs: Vec::new(),
            tables: None,
            first_plan_at: Duration::ZERO,
            coverage: Coverage::default(),
            baseline: None,
            absurd_since: None,
            backups_stale_since: None,
        }
    }

    /// The present plan's tables; `None` before the first plan.
    #[must_use]
    pub fn tables(&self) -> Option<&PlanTables> {
        self.tables.as_ref()
    }

    /// Takes in the state of the network and decides.
    ///
    /// # Panics
    /// When `names`, `live` and `cost` are not of the same number of relays.
    pub fn step(&mut self, input: &PlannerInput<'_>) -> Decision {
        let n = input.names.len();
        assert!(
            input.live.len() == n && input.cost.len() == n,
            "{n} names, {} live flags, {} relays in the costs",
            input.live.len(),
            input.cost.len()
        );
        self.follow_names(input.names);
        let cost = CostMatrix::from_fn(n, |i, j| match input.live[i] && input.live[j] {
            true => input.cost.get(i, j),
            false => f64::INFINITY,
        });
        if self.tables.is_none() {
            return self.first_plan(input, cost);
        }
        if let Some(alert) = self.disbelief(input, &cost) {
            return Decision {
                alert: Some(alert),
                ..Decision::default()
            };
        }
        self.replan(input, cost)
    }

    /// Starts afresh when a name has changed its meaning; makes room for new relays.
    fn follow_names(&mut self, names: &[String]) {
        if !names.starts_with(&self.names) {
            *self = Self::new(self.config.clone());
        }
        let n = names.len();
        if n == self.names.len() {
            return;
        }
        self.names = names.to_vec();
        for slots in [&mut self.ins, &mut self.outs] {
            for slot in slots.iter_mut() {
                slot.tree.make_room(n);
            }
        }
        if self.tables.is_some() {
            self.ins
                .extend((self.ins.len()..n).map(|root| Slot::new(Tree::empty(root, n))));
            if self.config.out_trees {
                self.outs
                    .extend((self.outs.len()..n).map(|root| Slot::new(Tree::empty(root, n))));
            }
        }
    }

    fn first_plan(&mut self, input: &PlannerInput<'_>, cost: CostMatrix) -> Decision {
        let links = cost.link_count();
        if links == 0 {
            return Decision::default();
        }
        if links != self.coverage.links {
            self.coverage.links = links;
            self.coverage.grown_at = input.now;
        }
        let first_at = *self.coverage.first_at.get_or_insert(input.now);
        let live = input.live.iter().filter(|&&live| live).count();
        let all_here = live >= input.expected_live;
        let complete = all_here && links == live * (live - 1);
        let settled = all_here && input.now >= self.coverage.grown_at + self.config.settle;
        if !complete && !settled && input.now < first_at + self.config.first_plan_within {
            return Decision::default();
        }
        let n = cost.len();
        let reversed = cost.transposed();
        let grown = |away: &CostMatrix| -> Vec<Slot> {
            (0..n)
                .map(|root| Slot::new(Tree::grow(away, root, input.rules)))
                .collect()
        };
        self.ins = grown(&reversed);
        if self.config.out_trees {
            self.outs = grown(&cost);
        }
        self.baseline = Some(Baseline::new(input, &cost));
        self.first_plan_at = input.now;
        let reason = format!(
            "first plan: {live} relays, {links} of {} links measured",
            live * (live - 1)
        );
        self.publish(cost, reversed, input.rules);
        Decision {
            changed: true,
            reasons: vec![reason],
            alert: None,
        }
    }

    /// Why this input is not believed yet, if so.
    fn disbelief(&mut self, input: &PlannerInput<'_>, cost: &CostMatrix) -> Option<String> {
        let baseline = self
            .baseline
            .get_or_insert_with(|| Baseline::new(input, cost));
        let Some(what) = baseline.what_vanished(input.live, cost) else {
            self.absurd_since = None;
            if input.now >= baseline.at + self.config.grace {
                *baseline = Baseline::new(input, cost);
            }
            return None;
        };
        let since = *self.absurd_since.get_or_insert(input.now);
        if input.now < since + self.config.grace {
            return Some(format!(
                "{what} vanished within {:?}: more likely a broken measurement than a broken \
                 network; keeping the plan for {:?}",
                self.config.grace, self.config.grace
            ));
        }
        self.absurd_since = None;
        *baseline = Baseline::new(input, cost);
        None
    }

    fn replan(&mut self, input: &PlannerInput<'_>, cost: CostMatrix) -> Decision {
        let reversed = cost.transposed();
        let mut reasons = Vec::new();
        let forests = [
            (&mut self.ins, &reversed, "to"),
            (&mut self.outs, &cost, "from"),
        ];
        let mut candidates: Vec<(&mut Slot, Candidate, &str)> = Vec::new();
        for (slots, away, word) in forests {
            let mut scratch = away.clone();
            for slot in slots.iter_mut().filter(|slot| input.live[slot.tree.root]) {
                let candidate = slot.candidate(&self.config, input, away, &mut scratch);
                match candidate.verdict {
                    Verdict::Keep => slot.better_since = None,
                    _ => {
                        slot.better_since.get_or_insert(input.now);
                        candidates.push((slot, candidate, word));
                    }
                }
            }
        }
        // When one tree is due, those that are nearly due go along: fewer plans.
        let waited = |slot: &Slot, share: u32| {
            slot.better_since
                .is_some_and(|since| input.now >= since + self.config.hold / share)
        };
        let any_due = candidates
            .iter()
            .any(|(slot, candidate, _)| candidate.verdict == Verdict::Better && waited(slot, 1));
        for (slot, candidate, word) in candidates {
            let due = match candidate.verdict {
                Verdict::Repairs => true,
                _ => any_due && waited(slot, 3),
            };
            if due {
                reasons.push(reason(&self.names, word, &candidate));
                let counts = input.now >= self.first_plan_at + self.config.warm_up;
                slot.accept(candidate, counts.then_some(input.now));
            }
        }

        let mut changed = !reasons.is_empty();
        if !changed && self.backups_due(input, &cost) {
            reasons.push("backups renewed: some led over links that are gone".to_owned());
            changed = true;
        }
        if changed {
            if reasons.len() > MOST_REASONS {
                let more = reasons.len() - MOST_REASONS;
                reasons.truncate(MOST_REASONS);
                reasons.push(format!("and {more} trees more"));
            }
            self.publish(cost, reversed, input.rules);
        }
        Decision {
            changed,
            reasons,
            alert: None,
        }
    }

    /// Whether the backups in force have been worse than they could be for the hold time.
    fn backups_due(&mut self, input: &PlannerInput<'_>, cost: &CostMatrix) -> bool {
        let Some(tables) = &self.tables else {
            return false;
        };
        if tables.backups.len() == cost.len() {
            let fresh = backups(cost, input.rules);
            if !tables
                .backups
                .is_stale(cost, input.live, input.rules, &fresh)
            {
                self.backups_stale_since = None;
                return false;
            }
        }
        let since = *self.backups_stale_since.get_or_insert(input.now);
        input.now >= since + self.config.hold
    }

    fn publish(&mut self, cost: CostMatrix, reversed: CostMatrix, rules: &TreeRules) {
        for (slots, away) in [(&mut self.ins, &reversed), (&mut self.outs, &cost)] {
            for slot in slots.iter_mut() {
                slot.tree.cost = slot.tree.costs_under(away, Some(rules));
            }
        }
        self.backups_stale_since = None;
        self.tables = Some(PlanTables {
            in_trees: self
                .ins
                .iter()
                .map(|slot| InTree(slot.tree.clone()))
                .collect(),
            out_trees: self
                .outs
                .iter()
                .map(|slot| OutTree(slot.tree.clone()))
                .collect(),
            backups: backups(&cost, rules),
            cost,
        });
    }
}

impl Slot {
    fn new(tree: Tree) -> Self {
        Self {
            tree,
            better_since: None,
            chosen: BTreeMap::new(),
        }
    }

    /// The best tree that may follow the present one. `scratch` equals `away` before and after.
    fn candidate(
        &mut self,
        config: &PlannerConfig,
        input: &PlannerInput<'_>,
        away: &CostMatrix,
        scratch: &mut CostMatrix,
    ) -> Candidate {
        let now_costs = self.tree.costs_under(away, Some(input.rules));
        self.chosen
            .retain(|_, at| input.now < *at + config.choice_rest);

        // Present links look a little shorter, so that a tree does not change without gain: all
        // of a path's links together by the margin at most.
        let favour = config.margin_ms / input.rules.max_links.max(1) as f64;
        let mut touched = Vec::new();
        for relay in 0..self.tree.len() {
            if let Some(hop) = self.tree.parent(relay) {
                scratch.set(hop, relay, (away.get(hop, relay) - favour).max(0.0));
                touched.push((hop, relay));
            }
        }
        for &(relay, hop) in self.chosen.keys() {
            if self.tree.parent(relay) != Some(hop) && now_costs[relay].is_finite() {
                scratch.set(hop, relay, f64::INFINITY);
                touched.push((hop, relay));
            }
        }
        let tree = Tree::grow(scratch, self.tree.root, input.rules);
        for (hop, relay) in touched {
            scratch.set(hop, relay, away.get(hop, relay));
        }
        let then_costs = tree.costs_under(away, Some(input.rules));
        self.judge(config, tree, &now_costs, &then_costs)
    }

    fn judge(
        &self,
        config: &PlannerConfig,
        tree: Tree,
        now_costs: &[f64],
        then_costs: &[f64],
    ) -> Candidate {
        let mut verdict = Verdict::Keep;
        let mut gain: Option<(usize, f64, f64)> = None;
        let (mut sum_now, mut sum_then) = (0.0, 0.0);
        for (relay, (&now, &then)) in now_costs.iter().zip(then_costs).enumerate() {
            if !then.is_finite() {
                continue;
            }
            if now.is_finite() {
                sum_now += now;
                sum_then += then;
                if now - then >= config.margin_ms.max(config.margin * now) {
                    verdict = verdict.max(Verdict::Better);
                }
            } else if self.tree.parent(relay).is_some() {
                verdict = Verdict::Repairs;
            } else {
                verdict = verdict.max(Verdict::Better);
            }
            if now > then && gain.is_none_or(|(_, known, new)| now - then > known - new) {
                gain = Some((relay, now, then));
            }
        }
        if sum_now - sum_then >= config.margin_ms.max(config.total_margin * sum_now) {
            verdict = verdict.max(Verdict::Better);
        }
        let changed_relays = (0..tree.len())
            .filter(|&relay| tree.parent(relay) != self.tree.parent(relay))
            .count();
        let forced = now_costs.iter().map(|cost| !cost.is_finite()).collect();
        Candidate {
            tree,
            verdict,
            gain,
            changed_relays,
            forced,
        }
    }

    /// Takes the candidate; changes by choice are remembered as of `chosen_at`, if they count.
    fn accept(&mut self, candidate: Candidate, chosen_at: Option<Duration>) {
        for relay in (0..self.tree.len()).filter(|&relay| !candidate.forced[relay]) {
            let (old, new) = (self.tree.parent(relay), candidate.tree.parent(relay));
            if let (Some(old), Some(new)) = (old, new)
                && old != new
                && let Some(at) = chosen_at
            {
                self.chosen.insert((relay, old), at);
                self.chosen.insert((relay, new), at);
            }
        }
        self.tree = candidate.tree;
        self.better_since = None;
    }
}

fn reason(names: &[String], word: &str, candidate: &Candidate) -> String {
    let root = &names[candidate.tree.root];
    let changed = candidate.changed_relays;
    let Some((relay, now, then)) = candidate.gain else {
        return format!("{word} {root}: {changed} next hops changed");
    };
    let other = &names[relay];
    let via: Vec<&str> = candidate
        .tree
        .path_to_root(relay)
        .unwrap_or_default()
        .iter()
        .filter(|&&hop| hop != relay && hop != candidate.tree.root)
        .map(|&hop| names[hop].as_str())
        .collect();
    let way = if via.is_empty() {
        "directly".to_owned()
    } else {
        format!("via {}", via.join(", "))
    };
    let why = if now.is_finite() {
        format!("{then:.1} ms instead of {now:.1} ms")
    } else if candidate.verdict == Verdict::Repairs {
        format!("{then:.1} ms, the way before is gone")
    } else {
        format!("{then:.1} ms, no way before")
    };
    format!("{word} {root}: {other} {way} ({why}); {changed} next hops changed")
}

impl Baseline {
    fn new(input: &PlannerInput<'_>, cost: &CostMatrix) -> Self {
        Self {
            at: input.now,
            live: input.live.to_vec(),
            cost: cost.clone(),
        }
    }

    /// What has vanished, in words, when it is too much to be believed: half of the relays or
    /// more, or half of the links or more among the relays that remain. A relay that is gone from
    /// the list, or all of whose links are gone, is a dead relay, and does not count as many
    /// vanished links.
    fn what_vanished(&self, live: &[bool], cost: &CostMatrix) -> Option<String> {
        let n = self.cost.len();
        let (mut before, mut dead) = (0, vec![false; n]);
        for relay in (0..n).filter(|&relay| self.live[relay]) {
            let mut links = (0..n)
                .flat_map(|other| [(relay, other), (other, relay)])
                .filter(|&(from, to)| self.cost.is_up(from, to))
                .peekable();
            if links.peek().is_none() {
                continue; // it was as good as not there
            }
            before += 1;
            dead[relay] = !live[relay] || links.all(|(from, to)| !cost.is_up(from, to));
        }
        let gone = dead.iter().filter(|&&dead| dead).count();
        if gone > 0 && gone * 2 >= before {
            return Some(format!("{gone} of {before} relays"));
        }
        let (mut links, mut lost) = (0, 0);
        for from in (0..n).filter(|&from| !dead[from]) {
            for to in (0..n).filter(|&to| !dead[to] && self.cost.is_up(from, to)) {
                links += 1;
                lost += usize::from(!cost.is_up(from, to));
            }
        }
        (lost > 0 && lost * 2 >= links).then(|| format!("{lost} of {links} links"))
    }
}

#[cfg(test)]
mod tests;
