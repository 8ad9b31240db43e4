//! A plan: what is in force, what each relay is told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tradewind_proto::{
    PlanId, RelayIndex,
    control::{
        Backup, ControllerToRelay, OutHop, OutTreePart, PlanPart, ProfileTable, RelayInfo,
        Selector, TreeTable, controller_to_relay as to_relay,
    },
};
use tradewind_routing::{CostMatrix, PlanTables, TreeRules};

use super::{
    costs::{Costs, PROFILES},
    history::By,
    registry::Registry,
    rules::Forbidden,
};

/// The profile whose costs out-trees go by: realtime.
const OUT_TREE_PROFILE: usize = 0;

/// An immutable set of forwarding tables for all relays. Clones share what is large.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) id: PlanId,
    pub(super) made_at: Duration,
    pub(super) reasons: Vec<String>,
    pub(super) by: By,
    /// Whether it mends something: it does not wait for an operator's leave.
    pub(super) repairs: bool,
    /// Those it knows, by index.
    pub(super) members: Arc<[RelayInfo]>,
    pub(super) tables: Arc<PlanTables>,
    pub(super) selectors: Vec<Selector>,
    /// By profile and ordered pair the uplink to take, row-major over the tables' indices.
    uplinks: Arc<[Vec<u8>; PROFILES]>,
    /// What no way of it crosses, even if there is no other.
    pub(super) forbidden: Forbidden,
    /// By profile: packets go direct where the direct link works.
    direct: [Option<Arc<Direct>>; PROFILES],
    /// Who has acknowledged it.
    pub(super) held_by: BTreeSet<RelayIndex>,
    pub(super) activated_at: Option<Duration>,
}

/// What one relay is told of a plan: built when it is sent ([`Part::message`]), which need not be
/// where the network is locked.
#[derive(Debug, Clone)]
pub struct Part {
    plan: Arc<Plan>,
    relay: RelayIndex,
}

impl Part {
    /// `None` when the plan does not know the relay.
    pub(super) fn new(plan: &Plan, relay: RelayIndex) -> Option<Self> {
        plan.knows(relay).then(|| Self {
            plan: Arc::new(plan.clone()),
            relay,
        })
    }

    /// The same of a plan that is shared already.
    pub(super) fn of(plan: Arc<Plan>, relay: RelayIndex) -> Option<Self> {
        plan.knows(relay).then_some(Self { plan, relay })
    }

    /// The message. At a thousand relays this takes a millisecond.
    #[must_use]
    pub fn message(&self) -> ControllerToRelay {
        ControllerToRelay {
            body: Some(to_relay::Body::PlanPart(self.plan.part_for(self.relay))),
        }
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        (self.plan.id, self.relay) == (other.plan.id, other.relay)
    }
}

/// The links that packets of an observed profile take instead of the plan's ways.
#[derive(Debug, Clone)]
pub(super) struct Direct {
    n: usize,
    cost: CostMatrix,
}

/// A plan on its way to the relays.
#[derive(Debug)]
pub(super) struct Distribution {
    pub(super) plan: Plan,
    /// Who must still acknowledge it.
    pub(super) waiting: BTreeSet<RelayIndex>,
    /// When those who have not are left out.
    pub(super) deadline: Duration,
    /// What is to be done with it when all hold it.
    pub(super) goal: Goal,
}

/// What a distributed plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// It is new: the planner's, to be stamped by the configured shares.
    New,
    /// It was in force before, and is to be again.
    Rollback,
}

/// What a plan is made of besides its name.
pub(super) struct Ingredients<'a> {
    pub(super) members: &'a BTreeSet<RelayIndex>,
    pub(super) registry: &'a Registry,
    pub(super) tables: Arc<PlanTables>,
    pub(super) costs: &'a Costs,
    pub(super) selectors: Vec<Selector>,
    pub(super) forbidden: Forbidden,
    /// By profile, whether it is only observed.
    pub(super) observed: [bool; PROFILES],
}

impl Plan {
    pub(super) fn new(
        id: PlanId,
        made_at: Duration,
        reasons: Vec<String>,
        of: Ingredients<'_>,
    ) -> Self {
        let n = of.tables.len();
        let uplinks: [Vec<u8>; PROFILES] = std::array::from_fn(|profile| {
            (0..n * n)
                .map(|cell| of.costs.uplink(profile, cell / n, cell % n).0)
                .collect()
        });
        let direct = std::array::from_fn(|profile| {
            of.observed[profile].then(|| Arc::new(Direct::new(n, &of.costs.profiles[profile].cost)))
        });
        Self {
            id,
            made_at,
            reasons,
            by: By::Planner,
            repairs: false,
            members: of
                .members
                .iter()
                .map(|&index| of.registry.get(index).info(index))
                .collect(),
            tables: of.tables,
            selectors: of.selectors,
            uplinks: Arc::new(uplinks),
            forbidden: of.forbidden,
            direct,
            held_by: BTreeSet::new(),
            activated_at: None,
        }
    }

    /// The number of relays its tables are about, members or not.
    pub(super) fn len(&self) -> usize {
        self.tables.len()
    }

    /// The indices of those it knows.
    pub(super) fn member_set(&self) -> BTreeSet<RelayIndex> {
        self.members
            .iter()
            .map(|info| RelayIndex(info.index as u16))
            .collect()
    }

    pub(super) fn member_indices(&self) -> Vec<usize> {
        self.members
            .iter()
            .map(|info| info.index as usize)
            .collect()
    }

    pub(super) fn knows(&self, relay: RelayIndex) -> bool {
        self.members
            .binary_search_by_key(&u32::from(relay.0), |info| info.index)
            .is_ok()
    }

    /// How many trees packets of a profile have a choice of.
    pub(super) fn tree_count(&self, profile: usize) -> usize {
        self.tables.profiles[profile].trees.len()
    }

    /// The next hop on tree `tree`.
    pub(super) fn next_hop(
        &self,
        profile: usize,
        tree: usize,
        from: usize,
        to: usize,
    ) -> Option<usize> {
        // Another plan may know relays that came later.
        if from >= self.len() || to >= self.len() {
            return None;
        }
        let tables = &self.tables.profiles[profile];
        let set = tables.trees.get(tree)?;
        if let Some(direct) = &self.direct[profile]
            && set.rules == 0
            && direct.has(from, to)
        {
            return Some(to);
        }
        // The planner keeps a tree for which it finds no other; a ban is a ban.
        let hop = tables.next_hop(tree, from, to)?;
        (hop == to || self.may_cross(profile, set.rules, hop)).then_some(hop)
    }

    /// Relays that must not be crossed by now and that this plan does not keep away from, on its
    /// ways or in its reactions.
    pub(super) fn not_forbidden_yet(&self, forbidden: &Forbidden) -> BTreeSet<usize> {
        let mut missing = BTreeSet::new();
        for (own, now) in self.forbidden.iter().zip(forbidden) {
            for (rules, relays) in now.iter().enumerate() {
                let known = own.get(rules).cloned().unwrap_or_default();
                missing.extend(relays.difference(&known));
            }
        }
        missing
    }

    fn may_cross(&self, profile: usize, rules: usize, relay: usize) -> bool {
        let forbidden = self.forbidden[profile].get(rules);
        forbidden.is_none_or(|forbidden| !forbidden.contains(&relay))
    }

    /// Where to deflect to, and what the way over it cost when the plan was made.
    pub(super) fn backups(
        &self,
        profile: usize,
        rules: usize,
        own: usize,
        to: usize,
    ) -> Vec<(usize, f64)> {
        let tables = &self.tables.profiles[profile];
        match tables
            .backups
            .get(rules)
            .filter(|backups| to < backups.len())
        {
            Some(backups) => backups
                .candidates_with_cost(own, to)
                .filter(|&(hop, _)| hop == to || self.may_cross(profile, rules, hop))
                .collect(),
            None => Vec::new(),
        }
    }

    /// The whole way on tree `tree`, both ends included.
    pub(super) fn path(
        &self,
        profile: usize,
        tree: usize,
        from: RelayIndex,
        to: RelayIndex,
    ) -> Option<Vec<usize>> {
        if !self.knows(from) || !self.knows(to) {
            return None;
        }
        let mut path = vec![from.as_usize()];
        while *path.last()? != to.as_usize() {
            if path.len() > self.len() {
                return None; // never: trees are acyclic, and a direct link ends the way
            }
            path.push(self.next_hop(profile, tree, *path.last()?, to.as_usize())?);
        }
        Some(path)
    }

    /// Where `own` sends a packet on that entered at `origin` and goes to groups with members at `to`;
    /// `None` where it does not pass `own`, or no out-tree knows a way.
    fn out_hop(&self, origin: usize, own: usize, to: usize) -> Option<usize> {
        if let Some(direct) = &self.direct[OUT_TREE_PROFILE]
            && direct.has(origin, to)
        {
            return (own == origin).then_some(to);
        }
        let tree = self.tables.out_trees.get(origin)?;
        if own >= tree.len() || to >= tree.len() {
            return None;
        }
        let hop = tree.next_hop(own, to)?;
        let allowed = hop == to || self.may_cross(OUT_TREE_PROFILE, 0, hop);
        (allowed && self.knows(RelayIndex(hop as u16))).then_some(hop)
    }

    /// The tree along which what enters at `origin` goes to groups: who receives from whom. Relays
    /// that no out-tree leads to receive by the direct link.
    pub(super) fn out_tree(&self, origin: RelayIndex) -> Option<Vec<(usize, usize)>> {
        if !self.knows(origin) {
            return None;
        }
        let origin = origin.as_usize();
        let members = self.member_indices().into_iter().filter(|&to| to != origin);
        let parent = |to: usize| {
            let mut at = origin;
            // No deeper than there are relays: trees are acyclic.
            for _ in 0..self.len() {
                match self.out_hop(origin, at, to) {
                    Some(hop) if hop != to => at = hop,
                    _ => break,
                }
            }
            (to, at)
        };
        Some(members.map(parent).collect())
    }

    /// The weights of the trees for a pair, of which the sum is not 0; `None`: all on tree 0.
    pub(super) fn weights(&self, profile: usize, from: usize, to: usize) -> Option<[u8; 4]> {
        let tables = &self.tables.profiles[profile];
        let weights = *tables.weights.get(from * self.len() + to)?;
        (weights != [0; 4] && self.direct[profile].is_none()).then_some(weights)
    }

    /// The tree of everybody's rules that most packets of a pair take.
    pub(super) fn main_tree(&self, profile: usize, from: usize, to: usize) -> usize {
        let weights = self.weights(profile, from, to).unwrap_or_default();
        // The first of equals.
        (1..weights.len()).fold(0, |best, tree| match weights[tree] > weights[best] {
            true => tree,
            false => best,
        })
    }

    pub(super) fn uplink(&self, profile: usize, from: usize, to: usize) -> u8 {
        let known = from < self.len() && to < self.len();
        let uplink = known.then(|| self.uplinks[profile][from * self.len() + to]);
        uplink.unwrap_or(0)
    }

    /// Whether a profile is only observed in it.
    pub(super) fn is_observed(&self, profile: usize) -> bool {
        self.direct[profile].is_some()
    }

    /// How many next hops (over trees and profiles, counting uplinks) differ from another plan's.
    pub(super) fn difference(&self, other: &Self) -> usize {
        let mut differing = 0;
        let members = self.member_indices();
        for profile in 0..PROFILES {
            for tree in 0..self.tree_count(profile).max(other.tree_count(profile)) {
                for &to in &members {
                    for &from in members.iter().filter(|&&from| from != to) {
                        let hop = |plan: &Self| {
                            let hop = plan.next_hop(profile, tree, from, to)?;
                            Some((hop, plan.uplink(profile, from, hop)))
                        };
                        differing += usize::from(hop(self) != hop(other));
                    }
                }
            }
        }
        differing
    }

    /// Whether some live member's next hop cannot be used any more, by the costs and rules (by rule
    /// set) of this moment, so that the plan needs mending.
    pub(super) fn is_broken(
        &self,
        profile: usize,
        costs: &Costs,
        live: &[bool],
        rules: &[TreeRules],
    ) -> bool {
        let members: Vec<usize> = self
            .member_indices()
            .into_iter()
            .filter(|&member| live.get(member) == Some(&true))
            .collect();
        let cost = &costs.profiles[profile].cost;
        let trees = &self.tables.profiles[profile].trees;
        trees.iter().enumerate().any(|(tree, set)| {
            let Some(rules) = rules.get(set.rules) else {
                return true; // a rule set that is no more
            };
            members.iter().any(|&to| {
                members.iter().filter(|&&from| from != to).any(|&from| {
                    match self.next_hop(profile, tree, from, to) {
                        Some(hop) => !cost.is_up(from, hop) || (hop != to && !rules.may_cross(hop)),
                        // Further trees need not reach everybody.
                        None => tree == 0,
                    }
                })
            })
        })
    }

    /// Ways, over all profiles, that no reaction keeps open when a next hop or the link to it
    /// fails.
    pub(super) fn unprotected(&self) -> usize {
        let profiles = self.tables.profiles.iter();
        profiles.map(|tables| tables.unprotected().count).sum()
    }

    /// Whether packets of an observed profile would go otherwise by the links of this moment.
    pub(super) fn direct_is_stale(&self, costs: &Costs) -> bool {
        (0..PROFILES).any(|profile| {
            self.direct[profile]
                .as_ref()
                .is_some_and(|direct| !direct.has_links_of(&costs.profiles[profile].cost))
        })
    }

    /// Pairs of neighbours in use that should use another uplink now: (from, to, uplink now).
    pub(super) fn stale_uplinks(&self, costs: &Costs) -> Vec<(usize, usize, u8)> {
        let members = self.member_indices();
        let mut stale = BTreeSet::new();
        for profile in 0..PROFILES {
            for &to in &members {
                for &from in members.iter().filter(|&&from| from != to) {
                    let Some(hop) = self.next_hop(profile, 0, from, to) else {
                        continue;
                    };
                    let fresh = costs.uplink(profile, from, hop).0;
                    let usable = costs.profiles[profile].cost.is_up(from, hop);
                    if usable && fresh != self.uplink(profile, from, hop) {
                        stale.insert((from, hop, fresh));
                    }
                }
            }
        }
        stale.into_iter().collect()
    }

    /// What `relay` needs of it.
    fn part_for(&self, relay: RelayIndex) -> PlanPart {
        let profiles = (0..PROFILES).map(|profile| self.table_for(relay.as_usize(), profile));
        PlanPart {
            plan: Some(self.id.into()),
            relays: self.members.to_vec(),
            profiles: profiles.collect(),
            selectors: self.selectors.clone(),
        }
    }

    fn table_for(&self, own: usize, profile: usize) -> ProfileTable {
        let tables = &self.tables.profiles[profile];
        let trees = (0..tables.trees.len()).map(|tree| self.tree_for(own, profile, tree));
        let weights: Vec<u32> = self
            .members
            .iter()
            .map(|info| {
                self.weights(profile, own, info.index as usize)
                    .map_or(0, u32::from_le_bytes)
            })
            .collect();
        let mut table = ProfileTable {
            profile: profile as u32,
            trees: trees.collect(),
            // Nothing to say is said by nothing.
            weights: match weights.iter().any(|&weights| weights != 0) {
                true => weights,
                false => Vec::new(),
            },
            ..ProfileTable::default()
        };
        table.may_cross = tables
            .rules
            .iter()
            .map(|rules| self.crossable(rules))
            .collect();
        if profile == OUT_TREE_PROFILE {
            table.out_trees = self.out_trees_for(own);
        }
        for rules in 0..tables.backups.len() {
            let backups = self.backups_for(own, profile, rules);
            match rules {
                0 => table.backups = backups,
                _ => table.restricted_backups.extend(backups),
            }
        }
        table
    }

    /// For each origin of which packets to groups pass `own`: to whom it sends them on.
    fn out_trees_for(&self, own: usize) -> Vec<OutTreePart> {
        let members = self.member_indices();
        let passes = |origin: usize| {
            let tree = self.tables.out_trees.get(origin);
            own == origin
                || tree.is_some_and(|tree| {
                    (0..tree.len()).any(|relay| tree.previous_hop(relay) == Some(own))
                })
        };
        let origins = members.iter().filter(|&&origin| passes(origin));
        let parts = origins.filter_map(|&origin| {
            let mut hops: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
            for &to in members.iter().filter(|&&to| to != origin && to != own) {
                if let Some(hop) = self.out_hop(origin, own, to) {
                    hops.entry(hop).or_default().push(to as u32);
                }
            }
            let hop = |(next, destinations)| OutHop {
                next: next as u32,
                uplink: u32::from(self.uplink(OUT_TREE_PROFILE, own, next)),
                destinations,
            };
            (!hops.is_empty()).then(|| OutTreePart {
                origin: origin as u32,
                hops: hops.into_iter().map(hop).collect(),
            })
        });
        parts.collect()
    }

    /// A bit for each member.
    fn crossable(&self, rules: &TreeRules) -> Vec<u8> {
        let mut bits = vec![0; self.members.len().div_ceil(8)];
        for (at, info) in self.members.iter().enumerate() {
            if rules.may_cross(info.index as usize) {
                bits[at / 8] |= 1 << (at % 8);
            }
        }
        bits
    }

    fn tree_for(&self, own: usize, profile: usize, tree: usize) -> TreeTable {
        let set = &self.tables.profiles[profile].trees[tree];
        let mut table = TreeTable {
            rules: set.rules as u32,
            ..TreeTable::default()
        };
        for info in self.members.iter() {
            let to = info.index as usize;
            let next = match to == own {
                true => Some(own),
                false => self.next_hop(profile, tree, own, to),
            };
            let direct = self.direct[profile].as_ref().filter(|_| set.rules == 0);
            let cost_ms = match direct.filter(|direct| direct.has(own, to)) {
                _ if next.is_none() => f64::INFINITY,
                Some(direct) => direct.cost.get(own, to),
                None => self.tables.profiles[profile]
                    .tree(tree, to)
                    .map_or(f64::INFINITY, |in_tree| in_tree.cost(own)),
            };
            table
                .next_hop
                .push(next.map_or(u32::from(RelayIndex::NONE.0), |hop| hop as u32));
            table
                .uplink
                .push(next.map_or(0, |hop| u32::from(self.uplink(profile, own, hop))));
            table.cost_us.push(micros(cost_ms));
        }
        table
    }

    fn backups_for(&self, own: usize, profile: usize, rules: usize) -> Vec<Backup> {
        let destinations = self.members.iter().map(|info| info.index as usize);
        destinations
            .filter(|&to| to != own)
            .filter_map(|to| {
                let candidates = self.backups(profile, rules, own, to);
                (!candidates.is_empty()).then(|| Backup {
                    destination: to as u32,
                    relays: candidates.iter().map(|&(hop, _)| hop as u32).collect(),
                    cost_us: candidates.iter().map(|&(_, cost)| micros(cost)).collect(),
                    rules: rules as u32,
                })
            })
            .collect()
    }
}

impl Direct {
    fn new(n: usize, cost: &CostMatrix) -> Self {
        Self {
            n,
            cost: CostMatrix::from_fn(n, |i, j| cost.get(i, j)),
        }
    }

    fn has_links_of(&self, cost: &CostMatrix) -> bool {
        let mut pairs = (0..self.n * self.n).map(|cell| (cell / self.n, cell % self.n));
        pairs.all(|(from, to)| cost.is_up(from, to) == self.cost.is_up(from, to))
    }

    fn has(&self, from: usize, to: usize) -> bool {
        from < self.n && to < self.n && self.cost.is_up(from, to)
    }
}

fn micros(cost_ms: f64) -> u32 {
    match cost_ms.is_finite() {
        true => (cost_ms * 1_000.0).round() as u32,
        false => 0,
    }
}
