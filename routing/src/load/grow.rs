//! Finding further ways: trees grown round what is dear.

use super::{LoadPlan, LoadProblem, links::Links, positive, share::Flow, share::Way};
use crate::{
    cost::CostMatrix,
    tree::{InTree, Tree, TreeRules},
};
use std::collections::{BTreeMap, BTreeSet};

/// No parent.
pub(super) const NONE: u16 = u16::MAX;

/// The most ways of one pair that are kept in mind.
const MAX_WAYS: usize = 16;

/// The most flows for which a detour is looked for in one round.
const MAX_DETOURS: usize = 2_000;

/// To what the highest price is scaled down, in ms, when trees grow: with full prices ways avoid
/// what is over the limit at any cost, with lower ones they rather stay within the bound.
const SCALES_MS: [f64; 4] = [f64::INFINITY, 200.0, 50.0, 15.0];

/// The pairs whose flows may have to move, and the ways found for them.
pub(super) struct Nursery<'a> {
    pub(super) problem: &'a LoadProblem<'a>,
    /// The cost matrix turned round; links over the target have their price added while trees
    /// grow.
    pub(super) away: CostMatrix,
    pub(super) flows: Vec<Flow>,
    /// Where in `flows` a pair is, by (destination, origin).
    index: BTreeMap<(usize, usize), usize>,
    /// Trees of the previous plan that are still good, by destination.
    pub(super) adopted: BTreeMap<usize, Vec<InTree>>,
}

impl<'a> Nursery<'a> {
    pub(super) fn new(problem: &'a LoadProblem<'a>) -> Self {
        Self {
            problem,
            away: problem.cost.transposed(),
            flows: Vec::new(),
            index: BTreeMap::new(),
            adopted: BTreeMap::new(),
        }
    }

    /// The flows to one destination, as positions in `flows`.
    pub(super) fn towards(&self, to: usize) -> impl Iterator<Item = usize> + '_ {
        self.index.range((to, 0)..(to + 1, 0)).map(|(_, &at)| at)
    }

    /// The destinations of all flows.
    pub(super) fn destinations(&self) -> BTreeSet<usize> {
        self.index.keys().map(|&(to, _)| to).collect()
    }

    /// Deals flows as the previous plan did, as far as its ways are still allowed; whether all of
    /// it is.
    pub(super) fn adopt(&mut self, previous: &LoadPlan, links: &mut Links) -> bool {
        let n = self.problem.cost.len();
        let mut whole = true;
        for (&to, trees) in &previous.extra {
            let good = |tree: &InTree| {
                tree.len() == n && tree.destination() == to && self.obeys_rules(tree)
            };
            if to < n && trees.iter().all(good) {
                self.adopted.insert(to, trees.clone());
            } else {
                whole = false;
            }
        }
        for (&(from, to), weights) in &previous.weights {
            let Some(trees) = self.adopted.get(&to).filter(|_| from < n) else {
                whole = false;
                continue;
            };
            let paths: Vec<_> = trees.iter().map(|tree| tree.path(from)).collect();
            let bytes = self.demand(from, to);
            if bytes <= 0.0 {
                continue;
            }
            let Some(at) = self.watch(from, to, bytes) else {
                whole = false;
                continue;
            };
            let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            let mut share = vec![f64::from(weights[0])];
            for (path, &weight) in paths.into_iter().zip(&weights[1..]) {
                let way = path.and_then(|path| self.way(&path, self.flows[at].bound));
                let Some(way) = way else {
                    whole &= weight == 0;
                    share[0] += f64::from(weight);
                    continue;
                };
                let position = self.add_way(at, way).0;
                share.resize(self.flows[at].ways.len(), 0.0);
                share[position] += f64::from(weight);
            }
            if sum > 0.0 {
                let share = share.iter().map(|s| s / sum).collect();
                self.flows[at].set(share, links);
            }
        }
        whole
    }

    /// Looks for pairs that now cross links over the target, and for further ways of those that
    /// do. Whether a way was found that was not known.
    pub(super) fn grow(&mut self, links: &Links) -> bool {
        let n = self.problem.cost.len();
        let priced = links.over(links.config.target);
        let mut dear = vec![false; n * n];
        for &link in &priced {
            dear[link] = true;
        }
        self.discover(&dear);
        let crosses = |flow: &Flow| {
            let ways = flow.ways.iter().zip(&flow.share);
            ways.filter(|(_, share)| **share > 0.0)
                .any(|(way, _)| way.links.iter().any(|&link| dear[link as usize]))
        };
        let concerned: BTreeSet<usize> = self
            .flows
            .iter()
            .filter(|flow| crosses(flow))
            .map(|flow| flow.to)
            .collect();
        let mut found = false;
        for scale in SCALES_MS {
            self.add_prices(links, &priced, scale);
            for &to in &concerned {
                let primary = &self.problem.primary[to].0;
                let parents = regrow(&self.away, primary, &[], &dear, self.problem.rules);
                let flows: Vec<usize> = self.towards(to).collect();
                for at in flows {
                    let path = path_under(&parents, self.flows[at].from, to);
                    found |= path.is_some_and(|path| self.take_up(at, &path));
                }
            }
            self.remove_prices(&priced);
        }
        found | self.detours(links)
    }

    /// For flows that still cross links over the limit: the cheapest way, prices included, within
    /// the bound that leaves a known way at some relay for one other and goes on from there as the
    /// primary tree does. Trees grown on cost plus price look for the cheapest whatever its delay,
    /// and can miss one that is short enough.
    fn detours(&mut self, links: &Links) -> bool {
        let n = links.n;
        let mut full = vec![false; n * n];
        for link in links.over(links.config.limit) {
            full[link] = true;
        }
        let stuck = |flow: &Flow| {
            let ways = flow.ways.iter().zip(&flow.share);
            ways.filter(|(_, share)| **share > 0.0)
                .any(|(way, _)| way.links.iter().any(|&link| full[link as usize]))
        };
        let stuck: Vec<usize> = (0..self.flows.len())
            .filter(|&at| stuck(&self.flows[at]))
            .take(MAX_DETOURS)
            .collect();
        let mut found = false;
        for at in stuck {
            let detour = self.detour(&self.flows[at], links);
            found |= detour.is_some_and(|path| self.take_up(at, &path));
        }
        found
    }

    fn detour(&self, flow: &Flow, links: &Links) -> Option<Vec<usize>> {
        let problem = self.problem;
        let (n, rules) = (links.n, problem.rules);
        let tree = problem.primary[flow.to];
        let priced =
            |from: usize, to: usize| problem.cost.get(from, to) + links.price(from * n + to, 0.0);
        let mut best = (f64::INFINITY, None);
        let mut head = vec![flow.from];
        let (mut head_cost, mut head_priced) = (0.0, 0.0);
        while let Some(&at) = head.last() {
            for via in (0..n).filter(|via| !head.contains(via) && problem.cost.is_up(at, *via)) {
                let cost = head_cost + problem.cost.get(at, via) + tree.cost(via);
                // The tree's own figure may be of earlier costs: `take_up` looks again.
                if cost > flow.bound || via == tree.next_hop(at).unwrap_or(via) && via != flow.to {
                    continue;
                }
                let mut total = head_priced + priced(at, via);
                let (mut hop, mut count) = (via, head.len());
                let mut allowed = true;
                while let Some(next) = tree.next_hop(hop) {
                    allowed &= rules.may_cross(hop) && !head.contains(&next);
                    total += priced(hop, next);
                    count += 1;
                    hop = next;
                }
                if allowed && hop == flow.to && count <= rules.max_links && total < best.0 {
                    best = (total, Some((head.clone(), via)));
                }
            }
            let Some(next) = tree.next_hop(at).filter(|&next| next != flow.to) else {
                break;
            };
            head_cost += problem.cost.get(at, next);
            head_priced += priced(at, next);
            head.push(next);
        }
        let (mut path, via) = best.1?;
        path.extend(tree.path(via)?);
        Some(path)
    }

    /// Adds a path to the ways of a flow if it is within the bound; whether it is new.
    fn take_up(&mut self, at: usize, path: &[usize]) -> bool {
        let way = self.way(path, self.flows[at].bound);
        way.is_some_and(|way| self.add_way(at, way).1)
    }

    /// Adds the links' prices to the costs that trees grow on, all in proportion so that the
    /// highest is at most `highest` ms.
    pub(super) fn add_prices(&mut self, links: &Links, priced: &[usize], highest: f64) {
        let n = links.n;
        let prices = priced.iter().map(|&link| links.price(link, 0.0));
        let scale = (highest / prices.fold(0.0, f64::max)).min(1.0);
        for &link in priced {
            let cost = self.problem.cost.get(link / n, link % n);
            self.away
                .set(link % n, link / n, cost + scale * links.price(link, 0.0));
        }
    }

    pub(super) fn remove_prices(&mut self, priced: &[usize]) {
        let n = self.problem.cost.len();
        for &link in priced {
            let cost = self.problem.cost.get(link / n, link % n);
            self.away.set(link % n, link / n, cost);
        }
    }

    /// The way along a path, unless a link of it is down or it costs more than `bound`.
    pub(super) fn way(&self, path: &[usize], bound: f64) -> Option<Way> {
        let n = self.problem.cost.len();
        let mut way = Way {
            links: Vec::with_capacity(path.len()),
            cost: 0.0,
        };
        for link in path.windows(2) {
            way.links.push((link[0] * n + link[1]) as u32);
            way.cost += self.problem.cost.get(link[0], link[1]);
        }
        (way.cost.is_finite() && way.cost <= bound).then_some(way)
    }

    fn demand(&self, from: usize, to: usize) -> f64 {
        let demand = self.problem.demand.get(from * self.problem.cost.len() + to);
        positive(demand.copied().unwrap_or(0.0))
    }

    /// Takes up pairs whose primary way crosses a dear link, those with most demand first.
    fn discover(&mut self, dear: &[bool]) {
        let n = self.problem.cost.len();
        let mut pairs = Vec::new();
        let mut crossing = Vec::new();
        for (to, tree) in self.problem.primary.iter().enumerate() {
            crossing.clear();
            crossing.resize(n, None);
            crossing[to] = Some(false);
            for from in 0..n {
                let bytes = self.demand(from, to);
                if bytes > 0.0
                    && tree.cost(from).is_finite()
                    && crosses(tree, from, dear, &mut crossing)
                {
                    pairs.push((from, to, bytes));
                }
            }
        }
        pairs.sort_by(|a, b| b.2.total_cmp(&a.2));
        for (from, to, bytes) in pairs {
            if self.flows.len() >= self.problem.config.max_pairs {
                break;
            }
            self.watch(from, to, bytes);
        }
    }

    /// Takes up a pair; `None` where there is no primary way that works.
    fn watch(&mut self, from: usize, to: usize, bytes: f64) -> Option<usize> {
        if let Some(&at) = self.index.get(&(to, from)) {
            return Some(at);
        }
        let primary = self.problem.primary.get(to)?.path(from)?;
        let way = self
            .way(&primary, f64::MAX)
            .filter(|way| !way.links.is_empty())?;
        let config = &self.problem.config;
        self.index.insert((to, from), self.flows.len());
        self.flows.push(Flow {
            from,
            to,
            bytes,
            bound: config.factor * way.cost + config.slack_ms,
            ways: vec![way],
            share: vec![1.0],
        });
        Some(self.flows.len() - 1)
    }

    /// Adds a way unless it is known: its position, and whether it is new.
    fn add_way(&mut self, at: usize, way: Way) -> (usize, bool) {
        let flow = &mut self.flows[at];
        if let Some(known) = flow.ways.iter().position(|known| known.links == way.links) {
            return (known, false);
        }
        if flow.ways.len() < MAX_WAYS {
            flow.ways.push(way);
            flow.share.push(0.0);
            return (flow.ways.len() - 1, true);
        }
        // Full: what nobody takes makes room.
        let Some(unused) = (1..MAX_WAYS).find(|&way| flow.share[way] == 0.0) else {
            return (0, false);
        };
        flow.ways[unused] = way;
        (unused, true)
    }

    /// Whether all ways of a tree are up and obey the rules.
    fn obeys_rules(&self, tree: &InTree) -> bool {
        let rules = self.problem.rules;
        (0..tree.len())
            .filter_map(|from| tree.path(from))
            .all(|path| {
                let between = path.get(1..path.len() - 1).unwrap_or_default();
                path.len() <= rules.max_links + 1
                    && between.iter().all(|&relay| rules.may_cross(relay))
                    && self.way(&path, f64::MAX).is_some()
            })
    }
}

/// Whether the way from `from` crosses a dear link; remembers the answer for every relay on it.
fn crosses(tree: &InTree, from: usize, dear: &[bool], known: &mut [Option<bool>]) -> bool {
    let n = known.len();
    let mut passed = Vec::new();
    let mut at = from;
    let mut answer = loop {
        if let Some(answer) = known[at] {
            break answer;
        }
        let Some(next) = tree.next_hop(at) else {
            break false;
        };
        passed.push((at, dear[at * n + next]));
        at = next;
    };
    for (relay, link) in passed.into_iter().rev() {
        answer |= link;
        known[relay] = Some(answer);
    }
    answer
}

/// The path from a relay under these parents, both ends included.
pub(super) fn path_under(parents: &[u16], from: usize, to: usize) -> Option<Vec<usize>> {
    let mut path = vec![from];
    let mut at = from;
    while at != to {
        let next = parents[at];
        if next == NONE {
            return None;
        }
        at = usize::from(next);
        path.push(at);
    }
    Some(path)
}

/// The tree that has the parents `fixed` (empty: none are), and otherwise stays as the primary tree
/// is where that crosses nothing dear; all other relays are hung anew by Dijkstra's algorithm on
/// the costs in `away`. Where prices are all above cost this is what growing it from nothing would
/// give, at O(n) per relay that has to move instead of O(n²).
///
/// The chains of `fixed` must lead to the root and obey the rules.
pub(super) fn regrow(
    away: &CostMatrix,
    primary: &Tree,
    fixed: &[u16],
    dear: &[bool],
    rules: &TreeRules,
) -> Vec<u16> {
    let n = away.len();
    let root = primary.root;
    let mut young = Young {
        parent: vec![NONE; n],
        cost: vec![f64::INFINITY; n],
        depth: vec![0; n],
    };
    young.cost[root] = 0.0;
    let mut open = young.plant(away, primary, fixed, dear, rules);
    let mut settled: Vec<usize> = (0..n).filter(|&at| young.cost[at].is_finite()).collect();
    loop {
        for at in settled.drain(..) {
            young.offer(away, at, &open, root, rules);
        }
        let nearest = open
            .iter()
            .enumerate()
            .filter(|&(_, &at)| young.cost[at].is_finite())
            .min_by(|(_, a), (_, b)| young.cost[**a].total_cmp(&young.cost[**b]));
        let Some((position, &at)) = nearest else {
            break;
        };
        open.remove(position);
        settled.push(at);
    }
    young.parent
}

/// A tree while it grows.
struct Young {
    parent: Vec<u16>,
    cost: Vec<f64>,
    depth: Vec<usize>,
}

impl Young {
    /// Hangs what is fixed or can stay; gives back the others.
    fn plant(
        &mut self,
        away: &CostMatrix,
        primary: &Tree,
        fixed: &[u16],
        dear: &[bool],
        rules: &TreeRules,
    ) -> Vec<usize> {
        let n = away.len();
        let root = primary.root;
        let fixed = |at: usize| fixed.get(at).copied().filter(|&parent| parent != NONE);
        // Whether it hangs as in the primary tree all the way; None: not looked at yet.
        let mut original: Vec<Option<bool>> = vec![None; n];
        original[root] = Some(true);
        let mut open = Vec::new();
        let mut chain = Vec::new();
        for relay in 0..n {
            let mut at = relay;
            while original[at].is_none() {
                let parent = fixed(at).map(usize::from).or_else(|| primary.parent(at));
                let Some(parent) = parent else {
                    original[at] = Some(false);
                    open.push(at);
                    break;
                };
                chain.push((at, parent));
                at = parent;
            }
            while let Some((at, parent)) = chain.pop() {
                let same = original[parent] == Some(true) && primary.parent(at) == Some(parent);
                let crossable = parent == root || rules.may_cross(parent);
                let cost = self.cost[parent] + away.get(parent, at);
                let stays = same
                    && crossable
                    && cost.is_finite()
                    && !dear[at * n + parent]
                    && self.depth[parent] < rules.max_links;
                original[at] = Some(same && stays);
                if stays || fixed(at).is_some() {
                    original[at] = Some(same);
                    self.parent[at] = parent as u16;
                    self.cost[at] = cost;
                    self.depth[at] = self.depth[parent] + 1;
                } else {
                    open.push(at);
                }
            }
        }
        open.sort_unstable();
        open
    }

    /// Offers `at` as the parent of all that are open.
    fn offer(
        &mut self,
        away: &CostMatrix,
        at: usize,
        open: &[usize],
        root: usize,
        rules: &TreeRules,
    ) {
        let crossable = at == root || rules.may_cross(at);
        if !crossable || self.depth[at] >= rules.max_links {
            return;
        }
        let (row, base) = (away.row(at), self.cost[at]);
        for &child in open {
            if base + row[child] < self.cost[child] {
                self.cost[child] = base + row[child];
                self.parent[child] = at as u16;
                self.depth[child] = self.depth[at] + 1;
            }
        }
    }
}
