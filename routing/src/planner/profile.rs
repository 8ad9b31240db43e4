//! What the planner knows of one profile: its trees with their histories, its pins, bound and
//! spread, its backups.

use std::{borrow::Cow, time::Duration};

use super::{
    PlannerConfig, ProfileInput,
    bound::Bound,
    forest::{Acceptance, Forest, any_due, look, make_room},
    pins::Pins,
    slot::Slot,
    split::{Split, Traffic},
    tables::{MAX_TREES, ProfileTables, TreeSet, assert_rule_sets},
};
use crate::{
    cost::CostMatrix,
    load::spread,
    reaction::{Backups, backups},
    tree::{InTree, OutTree, TreeRules},
};

/// The state of one profile.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    rules: Vec<TreeRules>,
    /// By origin, from parents to children as packets go. Without slots where no out-trees are
    /// wanted.
    outs: Forest,
    /// By destination, for rule set 0.
    ins: Forest,
    /// By rule set from 1, by destination; over the field of `ins`.
    restricted: Vec<Vec<Slot>>,
    pins: Pins,
    bound: Option<Bound>,
    split: Split,
    lists: Lists,
    /// Whether trees of rule set 0 have changed in this step.
    trees_changed: bool,
}

/// Backups by rule set, as of now, while those in force may be older.
#[derive(Debug, Clone)]
struct Lists {
    now: Vec<Backups>,
    /// Links that have changed since.
    changed: Vec<(usize, usize)>,
    /// Something has vanished or come that those in force may lack.
    suspect: bool,
    stale_since: Option<Duration>,
}

/// What all profiles have in common in a step.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) config: &'a PlannerConfig,
    pub(super) now: Duration,
    pub(super) names: &'a [String],
    pub(super) live: &'a [bool],
    pub(super) capacity: &'a [f64],
}

/// The costs, with the links of relays that are not there down.
pub(super) fn among_the_live<'a>(cost: &'a CostMatrix, live: &[bool]) -> Cow<'a, CostMatrix> {
    if live.iter().all(|&live| live) {
        return Cow::Borrowed(cost);
    }
    let mut masked = cost.clone();
    for gone in (0..live.len()).filter(|&relay| !live[relay]) {
        for other in 0..live.len() {
            masked.set(gone, other, f64::INFINITY);
            masked.set(other, gone, f64::INFINITY);
        }
    }
    Cow::Owned(masked)
}

impl Profile {
    /// The best trees, without history.
    pub(super) fn new(step: &Step<'_>, input: &ProfileInput<'_>, out_trees: bool) -> Self {
        assert_rule_sets(input.rules.len());
        let cost = among_the_live(input.cost, step.live).into_owned();
        let ins = Forest::best(cost.transposed(), &input.rules[0]);
        let restricted = input.rules[1..]
            .iter()
            .map(|rules| Forest::grow(ins.field(), rules))
            .collect();
        let lists = Lists {
            now: input
                .rules
                .iter()
                .map(|rules| backups(&cost, rules))
                .collect(),
            changed: Vec::new(),
            suspect: false,
            stale_since: None,
        };
        let bound = input
            .latency_bound
            .map(|bound| Bound::new(&bound, &cost, &input.rules[0]));
        Self {
            rules: input.rules.to_vec(),
            outs: match out_trees {
                true => Forest::best(cost, &input.rules[0]),
                false => Forest::fallow(cost),
            },
            ins,
            restricted,
            pins: Pins::default(),
            bound,
            split: Split::default(),
            lists,
            trees_changed: true,
        }
    }

    /// The costs that it goes by.
    fn cost(&self) -> &CostMatrix {
        self.outs.field().away()
    }

    /// How many trees of rule set 0 there may be beside the best one.
    fn room(&self) -> usize {
        MAX_TREES - self.rules.len()
    }

    /// Takes in costs and rules of now; what has changed by that alone, in words.
    pub(super) fn follow(&mut self, step: &Step<'_>, input: &ProfileInput<'_>) -> Vec<String> {
        assert_rule_sets(input.rules.len());
        let cost = among_the_live(input.cost, step.live);
        let grown = cost.len() != self.cost().len();
        self.outs.follow(&cost, step.config.quantum_ms);
        self.ins.follow_reversed(&self.outs);
        if grown {
            for slots in &mut self.restricted {
                make_room(slots, cost.len());
            }
        }
        let mut reasons = self.follow_rules(input.rules);
        match (&mut self.bound, input.latency_bound) {
            (Some(known), Some(bound)) => {
                known.follow(&bound, self.outs.field().away(), step.config.quantum_ms);
            }
            (known, Some(bound)) => {
                *known = Some(Bound::new(&bound, self.outs.field().away(), &self.rules[0]));
            }
            (known, None) => {
                if known.take().is_some_and(|known| !known.moved.is_empty()) {
                    reasons.push("there is no bound on latency any more".to_owned());
                }
            }
        }
        let changes = self.outs.changes();
        self.lists.suspect |= grown
            || changes
                .iter()
                .any(|change| change.cost.is_finite() != change.before.is_finite());
        let links = changes.iter().map(|change| (change.parent, change.child));
        // So many that all will be computed afresh: no need to know which.
        if self.lists.changed.len() <= 2 * cost.len() {
            self.lists.changed.extend(links);
        }
        if grown {
            self.lists.now = self.fresh_lists();
        }
        reasons
    }

    fn fresh_lists(&self) -> Vec<Backups> {
        let fresh = |rules| backups(self.cost(), rules);
        self.rules.iter().map(fresh).collect()
    }

    fn follow_rules(&mut self, rules: &[TreeRules]) -> Vec<String> {
        if self.rules == rules {
            return Vec::new();
        }
        let mut reasons = Vec::new();
        if self.rules[0] != rules[0] {
            let bound = self.bound.iter_mut().map(|bound| &mut bound.forest);
            for forest in [&mut self.ins, &mut self.outs].into_iter().chain(bound) {
                forest.slots_mut().iter_mut().for_each(Slot::forget);
            }
        }
        if self.rules.len() != rules.len() {
            reasons.push(format!("{} restricted rule sets", rules.len() - 1));
        }
        self.restricted.truncate(rules.len() - 1);
        for (number, rules) in rules.iter().enumerate().skip(1) {
            match self.restricted.get_mut(number - 1) {
                Some(slots) if self.rules[number] != *rules => {
                    slots.iter_mut().for_each(Slot::forget);
                }
                Some(_) => {}
                None => self.restricted.push(Forest::grow(self.ins.field(), rules)),
            }
        }
        self.rules = rules.to_vec();
        self.lists.now = self.fresh_lists();
        self.lists.changed.clear();
        self.lists.suspect = true;
        reasons
    }

    /// Finds what may follow each tree.
    pub(super) fn look(&mut self, step: &Step<'_>) {
        let (config, now, live) = (step.config, step.now, step.live);
        self.ins.look(config, now, live, &self.rules[0]);
        self.outs.look(config, now, live, &self.rules[0]);
        if let Some(bound) = &mut self.bound {
            bound.forest.look(config, now, live, &self.rules[0]);
        }
        let (field, changes) = (self.ins.field(), self.ins.changes());
        for (slots, rules) in self.restricted.iter_mut().zip(&self.rules[1..]) {
            look(slots, config, now, live, (field, rules), changes);
        }
    }

    /// Whether some tree has had a clearly better one beside it for long enough.
    pub(super) fn any_due(&self, step: &Step<'_>) -> bool {
        let bound = self.bound.iter().map(|bound| bound.forest.slots());
        [self.ins.slots(), self.outs.slots()]
            .into_iter()
            .chain(bound)
            .chain(self.restricted.iter().map(Vec::as_slice))
            .any(|slots| any_due(slots, step.config, step.now))
    }

    /// Takes the trees that are due.
    pub(super) fn accept(&mut self, acceptance: &mut Acceptance<'_>) {
        self.trees_changed = acceptance.take(self.ins.slots_mut(), "to");
        acceptance.take(self.outs.slots_mut(), "from");
        if let Some(bound) = &mut self.bound {
            self.trees_changed |= acceptance.take(bound.forest.slots_mut(), "fast way to");
        }
        for (number, slots) in (1..).zip(&mut self.restricted) {
            acceptance.take(slots, &format!("by rule set {number} to"));
        }
    }

    /// Decides about everything but the trees; what has changed, in words. Adds what it puts on
    /// the links to `background`.
    pub(super) fn choose(
        &mut self,
        step: &Step<'_>,
        input: &ProfileInput<'_>,
        background: &mut Vec<f64>,
    ) -> Vec<String> {
        let (config, now, names) = (step.config, step.now, step.names);
        let cost = self.outs.field().away();
        let room = MAX_TREES - self.rules.len();
        let by = (cost, &self.rules[0]);
        let mut reasons = self.pins.step(config, now, names, by, input.pins, room);
        if let (Some(known), Some(bound)) = (&mut self.bound, input.latency_bound) {
            reasons.extend(known.step(config, now, names, &bound, &self.ins, self.trees_changed));
        }
        if !input.demand.is_empty() && !step.capacity.is_empty() {
            let primary = self.primary();
            let traffic = Traffic {
                cost: self.outs.field().away(),
                rules: &self.rules[0],
                primary: &primary,
                demand: input.demand,
                capacity: step.capacity,
                background,
            };
            let changed = self.trees_changed;
            let split = &mut self.split;
            reasons.extend(split.step(config, now, names, &traffic, changed, spread));
            *background = traffic.load(&self.split.plan);
        } else if !self.split.plan.weights.is_empty() {
            self.split = Split::default();
            reasons.push("load is not known any more, and not spread".to_owned());
        }
        reasons
    }

    fn primary(&self) -> Vec<InTree> {
        let slots = self.ins.slots().iter();
        slots.map(|slot| InTree(slot.tree.clone())).collect()
    }

    /// Whether the backups in force have been worse than they could be for the hold time.
    pub(super) fn backups_due(&mut self, step: &Step<'_>, in_force: &[Backups]) -> bool {
        if !self.lists.suspect {
            return false;
        }
        self.renew_lists();
        let pairs = in_force.iter().zip(&self.lists.now).zip(&self.rules);
        let stale = in_force.len() != self.rules.len()
            || pairs.into_iter().any(|((in_force, now), rules)| {
                in_force.is_stale(self.outs.field().away(), step.live, rules, now)
            });
        if !stale {
            self.lists.stale_since = None;
            self.lists.suspect = false;
            return false;
        }
        let since = *self.lists.stale_since.get_or_insert(step.now);
        step.now >= since + step.config.hold
    }

    fn renew_lists(&mut self) {
        let changed = std::mem::take(&mut self.lists.changed);
        if changed.is_empty() {
            return;
        }
        let (cost, reversed) = (self.outs.field().away(), self.ins.field().away());
        for (lists, rules) in self.lists.now.iter_mut().zip(&self.rules) {
            lists.update(cost, reversed, rules, &changed);
        }
    }

    /// The tables of now.
    pub(super) fn tables(&mut self) -> ProfileTables {
        self.renew_lists();
        self.lists.suspect = false;
        self.lists.stale_since = None;
        self.ins.renew_costs(&self.rules[0]);
        self.outs.renew_costs(&self.rules[0]);
        let field = self.ins.field();
        for (slots, rules) in self.restricted.iter_mut().zip(&self.rules[1..]) {
            for slot in slots {
                slot.renew_costs(field, rules);
            }
        }
        let mut trees = vec![TreeSet {
            rules: 0,
            by_destination: self.primary().into_iter().map(Some).collect(),
        }];
        let (extra, weights) = self.extra_trees();
        trees.extend(extra);
        trees.extend((1..).zip(&self.restricted).map(|(rules, slots)| {
            TreeSet {
                rules,
                by_destination: slots
                    .iter()
                    .map(|slot| Some(InTree(slot.tree.clone())))
                    .collect(),
            }
        }));
        let lists = self.lists.now.clone();
        ProfileTables::assemble(
            trees,
            weights,
            lists,
            self.rules.clone(),
            self.cost().clone(),
        )
    }

    /// The further trees of rule set 0, and who uses which of them: first come the pins, then the
    /// bound on latency, then load.
    fn extra_trees(&self) -> (Vec<TreeSet>, Vec<[u8; MAX_TREES]>) {
        const ALL: u8 = u8::MAX;
        let n = self.cost().len();
        let (field, rules) = (self.ins.field(), &self.rules[0]);
        let mut by_destination: Vec<Vec<InTree>> = vec![Vec::new(); n];
        let mut weights = vec![[0; MAX_TREES]; n * n];
        for (to, tree, origins) in self.pins.trees(field, rules) {
            by_destination[to].push(InTree(tree));
            for &from in origins {
                weights[from * n + to][by_destination[to].len()] = ALL;
            }
        }
        let is_free = |weights: &[[u8; MAX_TREES]], from: usize, to: usize| {
            weights[from * n + to] == [0; MAX_TREES]
        };
        for bound in self.bound.iter() {
            for slot in bound.forest.slots() {
                let to = slot.tree.root;
                if by_destination[to].len() >= self.room() || !bound.is_used_to(to) {
                    continue;
                }
                let mut tree = slot.tree.clone();
                tree.cost = tree.costs_under(field.away(), Some(rules)).into();
                by_destination[to].push(InTree(tree));
                for &(from, _) in bound.moved.keys().filter(|pair| pair.1 == to) {
                    if is_free(&weights, from, to) {
                        weights[from * n + to][by_destination[to].len()] = ALL;
                    }
                }
            }
        }
        let taken: Vec<usize> = by_destination.iter().map(Vec::len).collect();
        for (&to, trees) in &self.split.plan.extra {
            let room = self.room() - taken[to];
            by_destination[to].extend(trees.iter().take(room).cloned());
        }
        for (&(from, to), split) in &self.split.plan.weights {
            if !is_free(&weights, from, to) {
                continue;
            }
            let cell = &mut weights[from * n + to];
            cell[0] = split[0];
            for (number, &share) in split.iter().enumerate().skip(1) {
                let place = taken[to] + number;
                // What has found no place stays on the best way.
                let place = if place <= by_destination[to].len() {
                    place
                } else {
                    0
                };
                cell[place] = cell[place].saturating_add(share);
            }
        }
        let count = by_destination.iter().map(Vec::len).max().unwrap_or(0);
        let sets = (0..count).map(|number| TreeSet {
            rules: 0,
            by_destination: by_destination
                .iter()
                .map(|trees| trees.get(number).cloned())
                .collect(),
        });
        (sets.collect(), weights)
    }

    pub(super) fn out_trees(&self) -> Vec<OutTree> {
        let slots = self.outs.slots().iter();
        slots.map(|slot| OutTree(slot.tree.clone())).collect()
    }

    /// Has every tree looked at afresh in the next step.
    #[cfg(test)]
    pub(super) fn forget(&mut self) {
        let restricted = self.restricted.iter_mut().map(Vec::as_mut_slice);
        let forests = [self.ins.slots_mut(), self.outs.slots_mut()].into_iter();
        for slots in forests.chain(restricted) {
            slots.iter_mut().for_each(Slot::forget);
        }
    }

    /// The pins that are not honoured, each with the reason.
    pub(super) fn refused_pins(&self) -> impl Iterator<Item = (&[usize], &str)> {
        self.pins.refused()
    }
}
