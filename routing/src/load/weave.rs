//! Putting the ways in use into as few trees as there may be.

use super::{
    LoadPlan, LoadProblem, MAX_EXTRA,
    grow::{NONE, Nursery, path_under, regrow},
    links::Links,
    share::{self, Flow, settle},
};
use crate::tree::{InTree, Tree};
use std::collections::{BTreeMap, BTreeSet};

/// A share below which a way is not worth a place in a tree: it would round to nothing.
const WORTHWHILE: f64 = 0.005;

/// The most destinations whose trees are tried anew in one pass of [`Woven::improve`], and the
/// most passes.
const TRIES: usize = 64;
const PASSES: usize = 6;

/// Parents of a tree by relay; a reduced form of [`Tree`] while its costs do not matter.
type Parents = Vec<u16>;

/// Flows on the primary trees and at most two more per destination.
pub(super) struct Woven {
    pub(super) flows: Vec<Flow>,
    pub(super) links: Links,
    trees: BTreeMap<usize, Vec<Parents>>,
}

impl Woven {
    /// Weaves the ways that the nursery's flows take into trees, and lets shares settle on them.
    pub(super) fn new(nursery: &mut Nursery<'_>, pool: &Links, unchanged: &Links) -> Self {
        let mut woven = Self {
            flows: nursery.flows.clone(),
            links: pool.with_load_of(unchanged),
            trees: BTreeMap::new(),
        };
        let n = pool.n;
        let priced = pool.over(pool.config.target);
        let mut dear = vec![false; n * n];
        for &link in &priced {
            dear[link] = true;
        }
        nursery.add_prices(pool, &priced, f64::INFINITY);
        for to in nursery.destinations() {
            let trees = weave(nursery, to, &dear);
            if !trees.is_empty() {
                woven.trees.insert(to, trees);
            }
        }
        nursery.remove_prices(&priced);
        for flow in &mut woven.flows {
            let trees = woven.trees.get(&flow.to).map_or(&[][..], Vec::as_slice);
            flow.carry_on_primary(&mut woven.links, -1.0);
            *flow = replanted(nursery, flow, trees);
            flow.carry(&mut woven.links, 1.0);
        }
        settle(&mut woven.flows, &mut woven.links, 60);
        woven
    }

    /// While links are over the limit: tries further trees, grown on the prices as they are, in the
    /// place of those that a destination has, and keeps what is a gain.
    pub(super) fn improve(&mut self, problem: &LoadProblem<'_>, nursery: &mut Nursery<'_>) {
        for _ in 0..PASSES {
            let full = self.links.over(problem.config.limit);
            if full.is_empty() {
                return;
            }
            let full: BTreeSet<u32> = full.into_iter().map(|link| link as u32).collect();
            let mut gain = false;
            for to in self.crossing(&full) {
                gain |= self.try_anew(problem, nursery, to);
            }
            settle(&mut self.flows, &mut self.links, 20);
            if !gain {
                return;
            }
        }
    }

    /// The destinations of the flows over these links, those with most bytes first.
    fn crossing(&self, full: &BTreeSet<u32>) -> Vec<usize> {
        let mut bytes: BTreeMap<usize, f64> = BTreeMap::new();
        for flow in &self.flows {
            for (way, share) in flow.ways.iter().zip(&flow.share) {
                if *share > 0.0 && way.links.iter().any(|link| full.contains(link)) {
                    *bytes.entry(flow.to).or_default() += share * flow.bytes;
                }
            }
        }
        let mut order: Vec<(usize, f64)> = bytes.into_iter().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        order.into_iter().take(TRIES).map(|(to, _)| to).collect()
    }

    /// Tries a new tree for one destination in each place; whether that was a gain.
    fn try_anew(
        &mut self,
        problem: &LoadProblem<'_>,
        nursery: &mut Nursery<'_>,
        to: usize,
    ) -> bool {
        let n = self.links.n;
        let priced = self.links.over(problem.config.target);
        let mut dear = vec![false; n * n];
        for &link in &priced {
            dear[link] = true;
        }
        let mine: Vec<usize> = nursery.towards(to).collect();
        let mut gain = false;
        for most in [f64::INFINITY, problem.config.slack_ms] {
            nursery.add_prices(&self.links, &priced, most);
            let primary = &problem.primary[to].0;
            let fresh = regrow(&nursery.away, primary, &[], &dear, problem.rules);
            nursery.remove_prices(&priced);
            let trees = self.trees.get(&to).cloned().unwrap_or_default();
            if trees.contains(&fresh) {
                continue;
            }
            for place in 0..(trees.len() + 1).min(MAX_EXTRA) {
                let mut changed = trees.clone();
                match changed.get_mut(place) {
                    Some(tree) => tree.clone_from(&fresh),
                    None => changed.push(fresh.clone()),
                }
                if self.exchange(nursery, &mine, changed, to) {
                    gain = true;
                    break;
                }
            }
        }
        gain
    }

    /// Gives one destination other trees if that is a gain.
    fn exchange(
        &mut self,
        nursery: &Nursery<'_>,
        mine: &[usize],
        trees: Vec<Parents>,
        to: usize,
    ) -> bool {
        let before: Vec<Flow> = mine.iter().map(|&at| self.flows[at].clone()).collect();
        let mut after: Vec<Flow> = before
            .iter()
            .map(|flow| replanted(nursery, flow, &trees))
            .collect();
        let both = before.iter().chain(&after).flat_map(|flow| &flow.ways);
        let touched: BTreeSet<u32> = both.flat_map(|way| way.links.iter().copied()).collect();
        let value = |flows: &[Flow], links: &Links| {
            let penalty = touched
                .iter()
                .map(|&link| links.strict_penalty_of(link as usize));
            penalty.sum::<f64>() + flows.iter().map(Flow::detour).sum::<f64>()
        };
        let without = value(&before, &self.links);
        before
            .iter()
            .for_each(|flow| flow.carry(&mut self.links, -1.0));
        after
            .iter()
            .for_each(|flow| flow.carry(&mut self.links, 1.0));
        settle(&mut after, &mut self.links, 20);
        if value(&after, &self.links) < without * (1.0 - 1e-6) {
            for (&at, flow) in mine.iter().zip(after) {
                self.flows[at] = flow;
            }
            self.trees.insert(to, trees);
            return true;
        }
        after
            .iter()
            .for_each(|flow| flow.carry(&mut self.links, -1.0));
        before
            .iter()
            .for_each(|flow| flow.carry(&mut self.links, 1.0));
        false
    }

    /// Rounds shares to percents.
    pub(super) fn round(&mut self) {
        share::round(&mut self.flows, &mut self.links);
    }

    /// The plan: the trees that somebody takes, and the weights of the pairs that are split.
    pub(super) fn into_plan(self, nursery: &Nursery<'_>) -> LoadPlan {
        let mut weights: BTreeMap<usize, Vec<(usize, [u8; 4])>> = BTreeMap::new();
        for flow in &self.flows {
            let Some(trees) = self.trees.get(&flow.to) else {
                continue;
            };
            let percents = flow.percents();
            let mut row = [percents[0], 0, 0, 0];
            for (way, &percent) in flow.ways.iter().zip(&percents).skip(1) {
                let place = trees.iter().position(|tree| {
                    let path = path_under(tree, flow.from, flow.to);
                    let same = path.and_then(|path| nursery.way(&path, f64::MAX));
                    same.is_some_and(|same| same.links == way.links)
                });
                // Every way comes from a tree.
                row[place.map_or(0, |place| place + 1)] += percent;
            }
            if row[0] != percents.iter().sum::<u8>() {
                weights.entry(flow.to).or_default().push((flow.from, row));
            }
        }
        let mut plan = LoadPlan::default();
        for (to, rows) in weights {
            let used = |place: usize| rows.iter().any(|(_, row)| row[place + 1] > 0);
            let places: Vec<usize> = (0..self.trees[&to].len()).filter(|&p| used(p)).collect();
            for &(from, row) in &rows {
                let mut compact = [row[0], 0, 0, 0];
                for (new, &old) in places.iter().enumerate() {
                    compact[new + 1] = row[old + 1];
                }
                plan.weights.insert((from, to), compact);
            }
            let tree = |&place: &usize| {
                let parents = self.trees[&to][place].clone();
                InTree(Tree::from_parents(to, parents, &nursery.away))
            };
            plan.extra.insert(to, places.iter().map(tree).collect());
        }
        plan
    }
}

/// The flow with the ways that these trees offer besides the primary one, its shares kept where
/// their ways are still there and on the primary way else.
fn replanted(nursery: &Nursery<'_>, flow: &Flow, trees: &[Parents]) -> Flow {
    let mut new = flow.clone();
    new.ways.truncate(1);
    for tree in trees {
        let path = path_under(tree, flow.from, flow.to);
        if let Some(way) = path.and_then(|path| nursery.way(&path, flow.bound))
            && !new.ways.contains(&way)
        {
            new.ways.push(way);
        }
    }
    new.share = vec![0.0; new.ways.len()];
    for (way, share) in flow.ways.iter().zip(&flow.share) {
        let place = new.ways.iter().position(|known| known.links == way.links);
        new.share[place.unwrap_or(0)] += share;
    }
    new
}

/// At most two trees for the ways that flows to `to` take besides the primary tree.
fn weave(nursery: &Nursery<'_>, to: usize, dear: &[bool]) -> Vec<Parents> {
    let n = nursery.away.len();
    let mut wishes: Vec<(f64, Vec<usize>)> = Vec::new();
    for flow in nursery.towards(to).map(|at| &nursery.flows[at]) {
        for (way, &share) in flow.ways.iter().zip(&flow.share).skip(1) {
            if share >= WORTHWHILE {
                let relays = way.links.iter().map(|&link| link as usize % n);
                let path = std::iter::once(flow.from).chain(relays).collect();
                wishes.push((share * flow.bytes, path));
            }
        }
    }
    if wishes.is_empty() {
        return Vec::new();
    }
    if let Some(trees) = nursery.adopted.get(&to) {
        let offers =
            |path: &Vec<usize>| trees.iter().any(|t| t.path(path[0]).as_ref() == Some(path));
        if wishes.iter().all(|(_, path)| offers(path)) {
            return trees.iter().map(parents_of).collect();
        }
    }
    wishes.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut trees = vec![vec![NONE; n]; MAX_EXTRA];
    for (_, path) in &wishes {
        let fits = |tree: &&mut Parents| {
            path.windows(2).all(|link| {
                let parent = tree[link[0]];
                parent == NONE || usize::from(parent) == link[1]
            })
        };
        if let Some(tree) = trees.iter_mut().find(fits) {
            for link in path.windows(2) {
                tree[link[0]] = link[1] as u16;
            }
        }
    }
    trees.retain(|tree| tree.iter().any(|&parent| parent != NONE));
    let problem = nursery.problem;
    let whole = |fixed: &Parents| {
        regrow(
            &nursery.away,
            &problem.primary[to].0,
            fixed,
            dear,
            problem.rules,
        )
    };
    trees.iter().map(whole).collect()
}

fn parents_of(tree: &InTree) -> Parents {
    let parent = |relay| tree.next_hop(relay).map_or(NONE, |next| next as u16);
    (0..tree.len()).map(parent).collect()
}
