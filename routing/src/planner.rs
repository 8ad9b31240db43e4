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
//! - Pins, bounds on latency and load choose further trees beside the best ones, each with a
//!   history of its own.
//! - Steps are cheap when little has changed: costs count as changed only beyond
//!   [`PlannerConfig::quantum_ms`], and only trees are looked at again in whose growth a changed
//!   link can have a say.
//! - When half of the network vanishes at once, the measurement is more likely broken than the
//!   world: the plan is kept for [`PlannerConfig::grace`], and an alert is given.

mod belief;
mod bound;
mod forest;
mod pins;
mod profile;
mod slot;
mod split;
mod tables;

use crate::{cost::CostMatrix, load::LoadConfig, tree::TreeRules};
use belief::{Belief, Coverage};
use forest::Acceptance;
use profile::{Profile, Step, among_the_live};
use std::time::Duration;

pub use tables::{MAX_TREES, PlanTables, ProfileTables, TreeSet};

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
    /// How long half of the network must be gone before it is believed.
    pub grace: Duration,
    /// The first plan is made when all links of the expected relays are measured, or when nothing
    /// new has been measured for this long,
    pub settle: Duration,
    /// or, whatever is missing, this long after the first measurement.
    pub first_plan_within: Duration,
    /// Whether out-trees are wanted (for groups). They double the work.
    pub out_trees: bool,
    /// A link's cost has changed when it differs by more than this from what it was when it last
    /// changed, in milliseconds: 0.02. A way of five links is misjudged by 0.1 ms at most.
    pub quantum_ms: f64,
    /// From which utilisation on load is spread, and how.
    pub load: LoadConfig,
    /// How long after load was spread, or it was tried, it is not spread anew, unless a way of the
    /// spread is gone.
    pub load_rest: Duration,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self {
            margin: 0.02,
            margin_ms: 0.5,
            total_margin: 0.01,
            hold: Duration::from_millis(1_200),
            choice_rest: Duration::from_secs(60),
            grace: Duration::from_secs(3),
            settle: Duration::from_secs(1),
            first_plan_within: Duration::from_secs(5),
            out_trees: true,
            quantum_ms: 0.02,
            load: LoadConfig::default(),
            load_rest: Duration::from_secs(10),
        }
    }
}

/// What one profile routes on.
#[derive(Debug, Clone, Copy)]
pub struct ProfileInput<'a> {
    /// This profile's cost of each link, in milliseconds-equivalents; [`f64::INFINITY`] for down
    /// and unknown.
    pub cost: &'a CostMatrix,
    /// `rules[0]` is everybody's. The others are restricted rule sets, each with one tree of its
    /// own per destination; at most [`MAX_TREES`] in all.
    pub rules: &'a [TreeRules],
    /// Paths the operator has pinned, both ends included; honoured in rule set 0 while all their
    /// links are usable. When they are too many for the trees there are, the first ones win.
    pub pins: &'a [Vec<usize>],
    /// Bytes per second offered, row-major (origin, destination); empty: unknown.
    pub demand: &'a [f64],
    /// A bound on delay, for a profile that does not go by delay alone.
    pub latency_bound: Option<LatencyBound<'a>>,
}

/// A pair whose way takes longer than `factor` times the shortest possible delay plus `slack_ms`
/// uses a tree grown on delay instead.
#[derive(Debug, Clone, Copy)]
pub struct LatencyBound<'a> {
    /// The one-way delay of each link in milliseconds.
    pub delay_ms: &'a CostMatrix,
    /// Times the shortest delay.
    pub factor: f64,
    /// Milliseconds more, so that short ways need not be perfect.
    pub slack_ms: f64,
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
    /// `realtime` first: what is believed, and when the first plan is made, goes by it, and groups
    /// use it. At least one; if their number changes, planning starts afresh.
    pub profiles: &'a [ProfileInput<'a>],
    /// Bytes per second each link can carry, row-major; [`f64::INFINITY`] where not known; empty:
    /// none known.
    pub capacity: &'a [f64],
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
    /// Empty before the first plan.
    profiles: Vec<Profile>,
    tables: Option<PlanTables>,
    coverage: Coverage,
    belief: Belief,
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
            profiles: Vec::new(),
            tables: None,
            coverage: Coverage::default(),
            belief: Belief::default(),
        }
    }

    /// The present plan's tables; `None` before the first plan.
    #[must_use]
    pub fn tables(&self) -> Option<&PlanTables> {
        self.tables.as_ref()
    }

    /// The pins that are not honoured at present: the profile's number, the path, and why. Why
    /// not is also among the reasons of the plan from which on it is so.
    pub fn refused_pins(&self) -> impl Iterator<Item = (usize, &[usize], &str)> {
        let profiles = self.profiles.iter().enumerate();
        profiles.flat_map(|(number, profile)| {
            let refused = profile.refused_pins();
            refused.map(move |(path, why)| (number, path, why))
        })
    }

    /// Takes in the state of the network and decides.
    ///
    /// # Panics
    /// When there is no profile, one without rules or with more than [`MAX_TREES`] rule sets, or
    /// what the input is made of is not for the same number of relays.
    pub fn step(&mut self, input: &PlannerInput<'_>) -> Decision {
        assert_sizes(input);
        let known = !self.names.is_empty();
        let other_profiles =
            known && !self.profiles.is_empty() && self.profiles.len() != input.profiles.len();
        if !input.names.starts_with(&self.names) || other_profiles {
            *self = Self::new(self.config.clone());
        }
        if self.names.len() != input.names.len() {
            self.names = input.names.to_vec();
        }
        let cost = among_the_live(input.profiles[0].cost, input.live);
        if self.tables.is_none() {
            return self.first_plan(input, &cost);
        }
        let doubt = self
            .belief
            .doubt(self.config.grace, input.now, input.live, &cost);
        if doubt.is_some() {
            return Decision {
                alert: doubt,
                ..Decision::default()
            };
        }
        self.replan(input)
    }

    fn first_plan(&mut self, input: &PlannerInput<'_>, cost: &CostMatrix) -> Decision {
        let Some(reason) = self.coverage.suffices(&self.config, input, cost) else {
            return Decision::default();
        };
        self.belief
            .doubt(self.config.grace, input.now, input.live, cost);
        let config = self.config.clone();
        let step = step_of(&config, input);
        self.profiles = input
            .profiles
            .iter()
            .enumerate()
            .map(|(number, given)| Profile::new(&step, given, config.out_trees && number == 0))
            .collect();
        let mut reasons = vec![reason];
        reasons.extend(self.choose(&step, input));
        self.publish();
        Decision {
            changed: true,
            reasons,
            alert: None,
        }
    }

    fn replan(&mut self, input: &PlannerInput<'_>) -> Decision {
        let config = self.config.clone();
        let step = step_of(&config, input);
        let mut reasons = Vec::new();
        for (profile, given) in self.profiles.iter_mut().zip(input.profiles) {
            reasons.extend(profile.follow(&step, given));
            profile.look(&step);
        }
        let mut acceptance = Acceptance {
            config: &config,
            now: input.now,
            names: input.names,
            any_due: self.profiles.iter().any(|profile| profile.any_due(&step)),
            reasons,
        };
        for profile in &mut self.profiles {
            profile.accept(&mut acceptance);
        }
        let mut reasons = acceptance.reasons;
        reasons.extend(self.choose(&step, input));
        if reasons.is_empty() && self.backups_due(&step) {
            reasons.push("backups renewed: some led over links that are gone".to_owned());
        }
        if reasons.is_empty() {
            return Decision::default();
        }
        if reasons.len() > MOST_REASONS {
            let more = reasons.len() - MOST_REASONS;
            reasons.truncate(MOST_REASONS);
            reasons.push(format!("and {more} trees more"));
        }
        self.publish();
        Decision {
            changed: true,
            reasons,
            alert: None,
        }
    }

    /// Decides about pins, bounds and load of all profiles.
    fn choose(&mut self, step: &Step<'_>, input: &PlannerInput<'_>) -> Vec<String> {
        let mut background = Vec::new();
        let mut reasons = Vec::new();
        for (profile, given) in self.profiles.iter_mut().zip(input.profiles) {
            reasons.extend(profile.choose(step, given, &mut background));
        }
        reasons
    }

    fn backups_due(&mut self, step: &Step<'_>) -> bool {
        let Some(tables) = &self.tables else {
            return false;
        };
        let mut due = false;
        for (profile, tables) in self.profiles.iter_mut().zip(&tables.profiles) {
            due |= profile.backups_due(step, &tables.backups);
        }
        due
    }

    fn publish(&mut self) {
        let profiles = self.profiles.iter_mut().map(Profile::tables).collect();
        self.tables = Some(PlanTables {
            profiles,
            out_trees: self.profiles[0].out_trees(),
        });
    }
}

fn step_of<'a>(config: &'a PlannerConfig, input: &PlannerInput<'a>) -> Step<'a> {
    Step {
        config,
        now: input.now,
        names: input.names,
        live: input.live,
        capacity: input.capacity,
    }
}

fn assert_sizes(input: &PlannerInput<'_>) {
    let n = input.names.len();
    assert!(!input.profiles.is_empty(), "no profile to plan for");
    assert!(
        input.live.len() == n && [0, n * n].contains(&input.capacity.len()),
        "{n} names, {} live flags, {} capacities",
        input.live.len(),
        input.capacity.len()
    );
    for profile in input.profiles {
        let delays = profile
            .latency_bound
            .map_or(n, |bound| bound.delay_ms.len());
        assert!(
            profile.cost.len() == n && delays == n && [0, n * n].contains(&profile.demand.len()),
            "{n} names, {} relays in the costs, {delays} in the delays, {} demands",
            profile.cost.len(),
            profile.demand.len()
        );
    }
}

#[cfg(test)]
mod tests;
