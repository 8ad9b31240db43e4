//! Splitting load over trees: where the best ways together would fill a link, part of the flows
//! take other ways.
//!
//! A packet is forwarded by (tree, destination), so other ways are further in-trees of the
//! destination, at most two, shared by all origins; and each origin has weights by which its flows
//! (by their hash, so that one flow keeps one path) are dealt to the trees.
//!
//! The method is the classic one for multi-commodity flows, column generation with a convex
//! penalty (Fortz and Thorup, INFOCOM 2000; Dantzig and Wolfe 1960):
//!
//! 1. Every link has a *price* that is 0 up to the target utilisation (70 %), rises from there,
//!    and is prohibitive over the limit (80 %).
//! 2. Trees are grown on cost plus price. All shortest ways to one destination form a tree, so one
//!    growth finds the best further way of every origin at once.
//! 3. Flows move from ways that are dear (cost plus prices) to cheap ones until these are equal.
//!    Back to 1, a few rounds; links that stay over the limit become dearer each round.
//! 4. The ways that are then in use are *woven* into two trees per destination, the heaviest first;
//!    shares settle once more on what these offer, and are rounded to percents.
//!
//! What the linear optimum can do and trees cannot: give one pair more than three ways; and let two
//! origins that meet at a relay go on from there by more than three different ways in all, as
//! every tree has one next hop there. Where that is needed a link can stay over the limit: it is
//! then named in [`LoadPlan::unrelieved`].

mod grow;
mod links;
mod share;
mod weave;

#[cfg(test)]
mod optimum;
#[cfg(test)]
mod tests;

use crate::{
    cost::CostMatrix,
    tree::{InTree, TreeRules},
};
use grow::Nursery;
use links::Links;
use share::{Flow, settle};
use std::collections::BTreeMap;

/// The sum of the weights of a pair that is split: weights are percents.
pub const WEIGHT_SUM: u8 = 100;

/// The most trees beyond the primary one that a destination gets.
pub const MAX_EXTRA: usize = 2;

/// How far links may be filled, and what a detour may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadConfig {
    /// Utilisation over which flows are split: 0.7. Below, queues are short whatever the traffic;
    /// also the knee of [`crate::CostWeights::load_knee`].
    pub target: f64,
    /// Utilisation over which no link is planned while an alternative has room: 0.8.
    pub limit: f64,
    /// A further way may cost this many times the best one …: 1.5.
    pub factor: f64,
    /// … and this many milliseconds-equivalents: 20, so that short ways have alternatives too.
    pub slack_ms: f64,
    /// The most pairs that are looked at, the ones with most demand first: bounds the time when
    /// everything is full. 20,000.
    pub max_pairs: usize,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            target: 0.7,
            limit: 0.8,
            factor: 1.5,
            slack_ms: 20.0,
            max_pairs: 20_000,
        }
    }
}

/// What load is to be spread over what.
#[derive(Debug, Clone, Copy)]
pub struct LoadProblem<'a> {
    /// The cost of each link in milliseconds-equivalents.
    pub cost: &'a CostMatrix,
    /// What every tree must obey.
    pub rules: &'a TreeRules,
    /// The tree of each destination that is best without regard to load, by destination.
    pub primary: &'a [&'a InTree],
    /// Bytes per second offered, row-major n·n (origin, destination); empty: none known. What is
    /// not a positive number is no demand.
    pub demand: &'a [f64],
    /// Bytes per second each link can carry, row-major n·n; what is not finite is unknown, and
    /// such a link never counts as full. Less than 1 counts as 1. Empty: all unknown.
    pub capacity: &'a [f64],
    /// Bytes per second that each link carries besides, row-major n·n; may be empty.
    pub background: &'a [f64],
    /// The plan in use, if any: kept where it still does, so that splits do not move about with
    /// every small change of demand.
    pub previous: Option<&'a LoadPlan>,
    /// Limits.
    pub config: LoadConfig,
}

/// How load is spread.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadPlan {
    /// Further trees by destination, at most [`MAX_EXTRA`] each.
    pub extra: BTreeMap<usize, Vec<InTree>>,
    /// Weights over [primary, first extra, second extra, none] for (origin, destination), with the
    /// sum [`WEIGHT_SUM`]; pairs that are not named are all on the primary tree.
    pub weights: BTreeMap<(usize, usize), [u8; 4]>,
    /// Bytes per second that each link then carries, the background included, row-major n·n.
    pub load: Vec<f64>,
    /// Links left over [`LoadConfig::limit`], as (from, to, utilisation), the fullest first.
    pub unrelieved: Vec<(usize, usize, f64)>,
}

/// Spreads load over up to three trees per destination.
///
/// The same problem has the same answer, always. Never worse than leaving everything on the
/// primary trees: neither the highest utilisation over the target, nor the sum of costs and
/// prices. When there is nothing to do (no demand, no capacity known, no link over the target) it
/// is one pass over all pairs.
///
/// Pairs whose primary tree does not reach are not carried.
///
/// # Panics
/// When a matrix that is not empty has another size than n·n, or there is not one primary tree
/// for each destination.
#[must_use]
pub fn spread(problem: &LoadProblem<'_>) -> LoadPlan {
    let n = problem.cost.len();
    assert_eq!(problem.primary.len(), n, "one primary tree per relay");
    for matrix in [problem.demand, problem.capacity, problem.background] {
        assert!(
            matrix.is_empty() || matrix.len() == n * n,
            "{} figures for {n} relays",
            matrix.len()
        );
    }
    let mut links = Links::new(problem, primary_load(problem));
    let kept = problem
        .previous
        .and_then(|previous| still_good(problem, &links, previous));
    if let Some(plan) = kept {
        return plan;
    }
    if links.over(problem.config.target).is_empty() {
        return finished(LoadPlan::default(), &links, problem);
    }
    let unchanged = links.clone();
    let mut nursery = Nursery::new(problem);
    if let Some(previous) = problem.previous {
        nursery.adopt(previous, &mut links);
    }
    let plan = search(problem, &mut nursery, &unchanged, &mut links);
    match plan {
        Some((plan, links)) => finished(plan, &links, problem),
        None => finished(LoadPlan::default(), &unchanged, problem),
    }
}

/// Rounds of growing and settling before ways are woven into trees.
const ROUNDS: usize = 8;

/// How often ways are woven, with links that stayed too full dearer each time.
const WEAVES: usize = 4;

/// The best plan found, unless doing nothing is as good.
fn search<'a>(
    problem: &LoadProblem<'a>,
    nursery: &mut Nursery<'a>,
    unchanged: &Links,
    links: &mut Links,
) -> Option<(LoadPlan, Links)> {
    let mut least = Score::of(unchanged, &[]);
    let nothing = least;
    let mut best = None;
    for weave in 0..WEAVES {
        for _ in 0..if weave == 0 { ROUNDS } else { 2 } {
            let found = nursery.grow(links);
            settle(&mut nursery.flows, links, 40);
            let full = links.over(problem.config.limit);
            if !found && full.is_empty() {
                break;
            }
            links.harden(&full);
        }
        let mut woven = weave::Woven::new(nursery, links, unchanged);
        woven.improve(problem, nursery);
        woven.round();
        let score = Score::of(&woven.links, &woven.flows);
        if score.is_below(&least) && score.worst <= nothing.worst {
            least = score;
            let links = woven.links.clone();
            best = Some((woven.into_plan(nursery), links));
        }
        let over = links.over(problem.config.limit);
        // Done, or as good as it gets: weaving lost nothing.
        if least.over == 0.0 || least.over <= 1.01 * links.excess(&over) {
            break;
        }
        let lost = best
            .as_ref()
            .map_or(unchanged, |(_, links)| links)
            .over(problem.config.limit);
        links.harden(&lost);
    }
    best
}

/// How good a state of the network is: less is better, what is over the limit first.
#[derive(Debug, Clone, Copy)]
struct Score {
    /// Sum over links of the utilisation over the limit.
    over: f64,
    /// Costs and prices, in ms · bytes/s.
    total: f64,
    /// The highest utilisation, not less than the target: what is below is all the same.
    worst: f64,
}

impl Score {
    fn of(links: &Links, flows: &[Flow]) -> Self {
        let full = links.over(links.config.limit);
        Self {
            over: links.excess(&full),
            total: links.penalty() + flows.iter().map(Flow::detour).sum::<f64>(),
            worst: links.worst().max(links.config.target),
        }
    }

    fn is_below(&self, other: &Self) -> bool {
        match self.over.total_cmp(&other.over) {
            std::cmp::Ordering::Less => self.total < other.total || self.worst < other.worst,
            std::cmp::Ordering::Equal => self.total < other.total,
            std::cmp::Ordering::Greater => false,
        }
    }
}

/// What each link carries with everything on the primary trees, the background included.
fn primary_load(problem: &LoadProblem<'_>) -> Vec<f64> {
    let n = problem.cost.len();
    let mut load = match problem.background {
        [] => vec![0.0; n * n],
        background => background.iter().map(|&b| positive(b)).collect(),
    };
    if problem.demand.is_empty() {
        return load;
    }
    for from in 0..n {
        for (to, tree) in problem.primary.iter().enumerate() {
            let bytes = positive(problem.demand[from * n + to]);
            if bytes > 0.0 && from != to && tree.cost(from).is_finite() {
                let mut at = from;
                while let Some(next) = tree.next_hop(at) {
                    load[at * n + next] += bytes;
                    at = next;
                }
            }
        }
    }
    load
}

/// The previous plan with the load it gives now, where it can stay as it is: all of its ways still
/// obey the rules and the bound, no link is over the middle between target and limit, and without
/// it some link would be near the target. So a split is not given up and made anew while demand
/// swings about the target.
fn still_good(problem: &LoadProblem<'_>, links: &Links, previous: &LoadPlan) -> Option<LoadPlan> {
    let config = &problem.config;
    if previous.weights.is_empty() || links.over(0.9 * config.target).is_empty() {
        return None;
    }
    let mut nursery = Nursery::new(problem);
    let mut links = links.clone();
    if !nursery.adopt(previous, &mut links) {
        return None;
    }
    if links.worst() > 0.5 * (config.target + config.limit) {
        return None;
    }
    let plan = LoadPlan {
        extra: previous.extra.clone(),
        weights: previous.weights.clone(),
        ..LoadPlan::default()
    };
    Some(finished(plan, &links, problem))
}

/// Fills in what follows from the links' load.
fn finished(mut plan: LoadPlan, links: &Links, problem: &LoadProblem<'_>) -> LoadPlan {
    let n = problem.cost.len();
    let mut full: Vec<(usize, usize, f64)> = links
        .over(problem.config.limit)
        .into_iter()
        .map(|link| (link / n, link % n, links.utilisation(link)))
        .collect();
    full.sort_by(|a, b| b.2.total_cmp(&a.2));
    plan.unrelieved = full;
    plan.load.clone_from(&links.load);
    plan
}

/// The number if it is positive, else 0: broken figures are no load.
fn positive(figure: f64) -> f64 {
    if figure.is_finite() {
        figure.max(0.0)
    } else {
        0.0
    }
}
