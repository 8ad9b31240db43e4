//! A plan's part for this relay, checked and laid out for look-ups: a packet's next hop is one
//! index into one array.

use tradewind_proto::{
    PlanId, Profile, RelayIndex, Uplink,
    control::{Backup, PlanPart, ProfileTable, TreeTable},
};

/// Trees per profile and destination: two bits in the header.
pub(crate) const TREES: usize = 4;
/// Rule sets: everybody's, and one restricted one for each further tree.
pub(crate) const RULE_SETS: usize = 4;
/// Profiles that this version knows.
const PROFILES: usize = 2;
/// Relay index on the wire where there is no way.
const NO_WAY: u32 = RelayIndex::NONE.0 as u32;

/// Where a tree leads from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The next relay.
    pub(crate) next: RelayIndex,
    /// The uplink that the plan wants to be taken to it.
    pub(crate) uplink: Uplink,
    /// Cost from here to the destination, microseconds-equivalent; 0: not said.
    pub(crate) cost_us: u32,
}

/// A neighbour that packets can be deflected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) relay: RelayIndex,
    /// Cost over it to the destination, microseconds-equivalent; 0: not said.
    pub(crate) cost_us: u32,
}

/// A plan, as far as this relay needs it. Immutable.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) id: PlanId,
    /// Indices of the plan's relays, ascending: the set that directory homes are chosen from.
    pub(crate) relays: Vec<RelayIndex>,
    /// The part as it came, for the store.
    pub(crate) part: PlanPart,
    /// One more than the greatest relay index.
    size: usize,
    /// `[profile][tree][destination]`. What the plan has not is filled with what stands in for it.
    hops: Vec<Hop>,
    /// `[profile][tree]`: the rule set that the tree obeys.
    rules: [[u8; TREES]; PROFILES],
    /// `[profile][destination]`: how flows of rule set 0 are spread over the trees.
    weights: Vec<[u8; TREES]>,
    /// `[profile][rule set]`: profile and tree of a restricted rule set.
    restricted: [[(u8, u8); RULE_SETS]; PROFILES],
    /// `[profile][rule set][destination]`: where its candidates begin; they end where the next ones
    /// begin.
    starts: Vec<u32>,
    candidates: Vec<Candidate>,
    /// `[profile][rule set]`: the relays that packets of the rule set may cross, nearest first.
    spares: Vec<Vec<RelayIndex>>,
    selectors: Vec<Selection>,
    out_trees: OutTrees,
}

#[derive(Debug, Clone)]
struct Selection {
    /// Empty: any.
    app: String,
    /// Empty: whatever it is.
    group: String,
    rules: u8,
}

/// This relay's part of the trees along which packets go to groups.
#[derive(Debug, Clone, Default)]
struct OutTrees {
    /// By origin: where its branches begin; they end where the next one's begin.
    starts: Vec<u32>,
    /// By origin, in the order of destinations.
    branches: Vec<Branch>,
}

#[derive(Debug, Clone, Copy)]
struct Branch {
    destination: RelayIndex,
    next: RelayIndex,
    uplink: Uplink,
}

/// A plan part that contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the plan part is malformed ({0}); it was not taken")]
pub(crate) struct BadPlan(&'static str);

/// One profile while the plan is being laid out.
#[derive(Debug, Clone)]
struct Layout {
    /// As many trees as the plan has; none when the profile is missing.
    trees: Vec<Vec<Hop>>,
    rules: [u8; TREES],
    weights: Vec<[u8; TREES]>,
    /// `[rule set][destination]`.
    candidates: Vec<Vec<Candidate>>,
    /// `[rule set]`.
    may_cross: Vec<Vec<RelayIndex>>,
}

impl Plan {
    /// Checks a plan part and lays it out.
    pub(crate) fn from_part(part: &PlanPart) -> Result<Self, BadPlan> {
        let id = part
            .plan
            .as_ref()
            .and_then(tradewind_proto::control::PlanName::id)
            .filter(|&id| id != PlanId::NONE)
            .ok_or(BadPlan("no plan number"))?;
        let mut relays = Vec::with_capacity(part.relays.len());
        for info in &part.relays {
            relays.push(relay_index(info.index).ok_or(BadPlan("relay index out of range"))?);
        }
        if !relays.is_sorted_by(|a, b| a < b) {
            return Err(BadPlan("relays are not in ascending order"));
        }
        let mut tables = [None; PROFILES];
        for table in &part.profiles {
            // Profiles of a later version are not for us.
            if let Some(slot) = tables.get_mut(table.profile as usize)
                && slot.replace(table).is_some()
            {
                return Err(BadPlan("a profile comes twice"));
            }
        }
        let realtime = Layout::new(tables[Profile::Realtime as usize], &relays)?;
        let economy = match tables[Profile::Economy as usize] {
            // Its own bans hold: where it has no way or no backup, realtime's may be forbidden to it.
            Some(table) if !table.trees.is_empty() => Layout::new(Some(table), &relays)?,
            _ => realtime.clone(),
        };
        let layouts = [realtime, economy];
        let selectors = selections(part, &layouts[0])?;
        let mut starts = Vec::new();
        let mut candidates = Vec::new();
        for list in layouts.iter().flat_map(|layout| &layout.candidates) {
            starts.push(candidates.len() as u32);
            candidates.extend_from_slice(list);
        }
        starts.push(candidates.len() as u32);
        Ok(Self {
            id,
            size: size_of(&relays),
            hops: layouts.iter().flat_map(Layout::all_hops).collect(),
            rules: layouts.each_ref().map(|layout| layout.rules),
            restricted: restricted(&layouts),
            spares: layouts.iter().flat_map(Layout::spares).collect(),
            weights: layouts
                .into_iter()
                .flat_map(|layout| layout.weights)
                .collect(),
            starts,
            candidates,
            selectors,
            out_trees: OutTrees::new(tables[Profile::Realtime as usize], &relays)?,
            relays,
            part: part.clone(),
        })
    }

    /// Where a tree leads towards `destination`; `None` where it has no way. A profile that is not
    /// known is realtime, a tree that the plan has not is the profile's first one.
    pub(crate) fn hop(&self, profile: u8, tree: u8, destination: RelayIndex) -> Option<Hop> {
        let destination = destination.as_usize();
        if destination >= self.size {
            return None;
        }
        let row = known(profile) * TREES + usize::from(tree) % TREES;
        let hop = self.hops[row * self.size + destination];
        (hop.next != RelayIndex::NONE).then_some(hop)
    }

    /// Where a packet to a group goes from here on its way from `origin` to one of the group's
    /// relays: by the out-tree of its origin where the tree in its header is everybody's, by that
    /// tree where it keeps to other rules. `None` where the plan knows no way.
    pub(crate) fn hop_to_group(
        &self,
        profile: u8,
        tree: u8,
        origin: RelayIndex,
        destination: RelayIndex,
    ) -> Option<Hop> {
        let by_tree = self.hop(profile, tree, destination);
        if self.rules_of(profile, tree) != 0 {
            return by_tree;
        }
        let branch = self.out_trees.branch(origin, destination)?;
        Some(Hop {
            next: branch.next,
            uplink: branch.uplink,
            // Out-trees come without costs: the best way's is what theirs is about.
            cost_us: by_tree.map_or(0, |hop| hop.cost_us),
        })
    }

    /// The rule set that a tree obeys.
    pub(crate) fn rules_of(&self, profile: u8, tree: u8) -> u8 {
        self.rules[known(profile)][usize::from(tree) % TREES]
    }

    /// Where to deflect a packet of a rule set to, best first.
    pub(crate) fn candidates(
        &self,
        profile: u8,
        rules: u8,
        destination: RelayIndex,
    ) -> &[Candidate] {
        let destination = destination.as_usize();
        if destination >= self.size {
            return &[];
        }
        let row = known(profile) * RULE_SETS + usize::from(rules) % RULE_SETS;
        let at = row * self.size + destination;
        &self.candidates[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    /// The relays that packets of a rule set may cross, whatever their destination, nearest first.
    pub(crate) fn spares(&self, profile: u8, rules: u8) -> &[RelayIndex] {
        &self.spares[known(profile) * RULE_SETS + usize::from(rules) % RULE_SETS]
    }

    /// The rule set of what an app sends to single users.
    pub(crate) fn rules_for_app(&self, app: &str) -> u8 {
        let fits = |selection: &&Selection| {
            selection.group.is_empty() && (selection.app.is_empty() || selection.app == app)
        };
        self.selectors.iter().find(fits).map_or(0, |s| s.rules)
    }

    /// The rule set of what is sent to a group.
    pub(crate) fn rules_for_group(&self, app: &str, group: &str) -> u8 {
        let fits = |selection: &&Selection| {
            (selection.app.is_empty() || selection.app == app)
                && (selection.group.is_empty() || selection.group == group)
        };
        self.selectors.iter().find(fits).map_or(0, |s| s.rules)
    }

    /// The profile and tree that what is sent to groups enters by: everybody's first, or the one of
    /// its rule set.
    pub(crate) fn entry_to_group(&self, rules: u8) -> (u8, u8) {
        match rules {
            0 => (Profile::Realtime as u8, 0),
            _ => self.restricted[Profile::Realtime as usize][usize::from(rules) % RULE_SETS],
        }
    }

    /// The profile and tree that a flow enters by: the tree of its rule set if that is a restricted
    /// one, else by the weights. `draw` gives a number below its argument, always the same for one
    /// flow.
    pub(crate) fn entry(
        &self,
        rules: u8,
        profile: u8,
        destination: RelayIndex,
        draw: impl FnOnce(u32) -> u32,
    ) -> (u8, u8) {
        if rules != 0 {
            return self.restricted[known(profile)][usize::from(rules) % RULE_SETS];
        }
        if destination.as_usize() >= self.size {
            return (profile, 0);
        }
        let weights = self.weights[known(profile) * self.size + destination.as_usize()];
        let total: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        if total == 0 {
            return (profile, 0);
        }
        let mut left = draw(total);
        for (tree, &weight) in (0..).zip(&weights) {
            if left < u32::from(weight) {
                return (profile, tree);
            }
            left -= u32::from(weight);
        }
        (profile, 0)
    }

    /// How many trees the part has for a profile, as it came.
    pub(crate) fn trees(&self, profile: u8) -> u8 {
        let table = self
            .part
            .profiles
            .iter()
            .find(|table| table.profile == u32::from(profile));
        table.map_or(0, |table| table.trees.len() as u8)
    }

    /// The weights of the trees of rule set 0 towards `destination`.
    pub(crate) fn weights(&self, profile: u8, destination: RelayIndex) -> [u8; TREES] {
        self.weights
            .get(known(profile) * self.size + destination.as_usize())
            .filter(|_| destination.as_usize() < self.size)
            .copied()
            .unwrap_or_default()
    }
}

impl Layout {
    fn new(table: Option<&ProfileTable>, relays: &[RelayIndex]) -> Result<Self, BadPlan> {
        let size = size_of(relays);
        let mut layout = Self {
            trees: Vec::new(),
            rules: [0; TREES],
            weights: vec![[0; TREES]; size],
            candidates: vec![Vec::new(); RULE_SETS * size],
            may_cross: vec![Vec::new(); RULE_SETS],
        };
        let Some(table) = table else {
            return Ok(layout);
        };
        if table.trees.len() > TREES {
            return Err(BadPlan("more than four trees"));
        }
        for (number, tree) in table.trees.iter().enumerate() {
            let rules = rule_set(tree.rules)?;
            let before = &layout.rules[..number];
            if number == 0 && rules != 0 {
                return Err(BadPlan("the first tree is not everybody's"));
            }
            if rules == 0 && before.iter().any(|&other| other != 0) {
                return Err(BadPlan("everybody's trees do not come first"));
            }
            if rules != 0 && before.contains(&rules) {
                return Err(BadPlan("two trees of one restricted rule set"));
            }
            layout.rules[number] = rules;
            layout.trees.push(tree_hops(tree, relays)?);
        }
        layout.take_weights(&table.weights, relays)?;
        for backup in &table.backups {
            layout.take_backup(backup, 0, relays)?;
        }
        for backup in &table.restricted_backups {
            let rules = rule_set(backup.rules)?;
            if rules == 0 {
                return Err(BadPlan("a restricted backup without a rule set"));
            }
            layout.take_backup(backup, rules, relays)?;
        }
        if table.may_cross.len() > RULE_SETS {
            return Err(BadPlan("too many rule sets"));
        }
        for (bits, may_cross) in table.may_cross.iter().zip(&mut layout.may_cross) {
            if bits.len() != relays.len().div_ceil(8) {
                return Err(BadPlan("who may be crossed is not a bit per relay"));
            }
            let named = |&(at, _): &(usize, &RelayIndex)| bits[at / 8] >> (at % 8) & 1 == 1;
            let crossed = relays.iter().enumerate().filter(named);
            may_cross.extend(crossed.map(|(_, &relay)| relay));
        }
        Ok(layout)
    }

    fn take_weights(&mut self, weights: &[u32], relays: &[RelayIndex]) -> Result<(), BadPlan> {
        if !weights.is_empty() && weights.len() != relays.len() {
            return Err(BadPlan("not one entry of weights per relay"));
        }
        for (destination, word) in relays.iter().zip(weights) {
            let mut weights = word.to_le_bytes();
            for (tree, weight) in weights.iter_mut().enumerate() {
                let Some(hops) = self.trees.get(tree).filter(|_| self.rules[tree] == 0) else {
                    if *weight != 0 {
                        return Err(BadPlan("a weight for a tree that is not everybody's"));
                    }
                    continue;
                };
                // A tree that has no way there carries nothing there.
                if hops[destination.as_usize()].next == RelayIndex::NONE {
                    *weight = 0;
                }
            }
            self.weights[destination.as_usize()] = weights;
        }
        Ok(())
    }

    fn take_backup(
        &mut self,
        backup: &Backup,
        rules: u8,
        relays: &[RelayIndex],
    ) -> Result<(), BadPlan> {
        let destination = relay_index(backup.destination)
            .filter(|index| relays.binary_search(index).is_ok())
            .ok_or(BadPlan("a backup is for an unknown relay"))?;
        if !backup.cost_us.is_empty() && backup.cost_us.len() != backup.relays.len() {
            return Err(BadPlan("a backup has not one cost per relay"));
        }
        let size = size_of(relays);
        let list = &mut self.candidates[usize::from(rules) * size + destination.as_usize()];
        if !list.is_empty() {
            return Err(BadPlan("two lists of backups for one destination"));
        }
        for (position, &relay) in backup.relays.iter().enumerate() {
            let relay = relay_index(relay)
                .filter(|index| relays.binary_search(index).is_ok())
                .ok_or(BadPlan("a backup is an unknown relay"))?;
            let cost_us = backup.cost_us.get(position).copied().unwrap_or(0);
            list.push(Candidate { relay, cost_us });
        }
        Ok(())
    }

    /// All hops, every tree that there can be filled.
    fn all_hops(&self) -> impl Iterator<Item = Hop> + '_ {
        let size = self.weights.len();
        (0..TREES).flat_map(move |tree| {
            let hops = self.trees.get(tree).or_else(|| self.trees.first());
            (0..size).map(move |destination| hops.map_or(Hop::NONE, |hops| hops[destination]))
        })
    }

    /// By rule set: the relays that packets of it may cross, by what the way to them costs.
    fn spares(&self) -> impl Iterator<Item = Vec<RelayIndex>> + '_ {
        self.may_cross.iter().zip(0..).map(|(relays, rules)| {
            let own = self.trees.iter().zip(self.rules);
            let trees = || own.clone().filter(|tree| tree.1 == rules);
            let far = |relay: RelayIndex| {
                let hops = trees().filter_map(|(hops, _)| hops.get(relay.as_usize()));
                let known = hops.filter(|hop| hop.next != RelayIndex::NONE && hop.cost_us > 0);
                known.map(|hop| hop.cost_us).min().unwrap_or(u32::MAX)
            };
            let mut spares = relays.clone();
            spares.sort_by_cached_key(|&relay| (far(relay), relay));
            spares
        })
    }

    fn tree_of(&self, rules: u8) -> Option<u8> {
        let count = self.trees.len();
        let tree = self.rules[..count].iter().position(|&r| r == rules)?;
        Some(tree as u8)
    }
}

impl OutTrees {
    fn new(table: Option<&ProfileTable>, relays: &[RelayIndex]) -> Result<Self, BadPlan> {
        let known =
            |relay: u32| relay_index(relay).filter(|index| relays.binary_search(index).is_ok());
        let mut by_origin: Vec<Vec<Branch>> = vec![Vec::new(); size_of(relays)];
        for tree in table.map_or(&[][..], |table| &table.out_trees) {
            let origin = known(tree.origin).ok_or(BadPlan("an out-tree is of an unknown relay"))?;
            let branches = &mut by_origin[origin.as_usize()];
            if !branches.is_empty() {
                return Err(BadPlan("an origin has two out-trees"));
            }
            for hop in &tree.hops {
                let next =
                    known(hop.next).ok_or(BadPlan("an out-tree leads to an unknown relay"))?;
                let uplink =
                    Uplink(u8::try_from(hop.uplink).map_err(|_| BadPlan("uplink out of range"))?);
                for &destination in &hop.destinations {
                    branches.push(Branch {
                        destination: known(destination)
                            .filter(|&destination| destination != origin)
                            .ok_or(BadPlan("an out-tree reaches an unknown relay"))?,
                        next,
                        uplink,
                    });
                }
            }
            branches.sort_unstable_by_key(|branch| branch.destination);
            // One copy and no more reaches each relay.
            if branches
                .windows(2)
                .any(|two| two[0].destination == two[1].destination)
            {
                return Err(BadPlan("an out-tree reaches a relay twice"));
            }
        }
        let mut out_trees = Self::default();
        for branches in by_origin {
            out_trees.starts.push(out_trees.branches.len() as u32);
            out_trees.branches.extend(branches);
        }
        out_trees.starts.push(out_trees.branches.len() as u32);
        Ok(out_trees)
    }

    fn branch(&self, origin: RelayIndex, destination: RelayIndex) -> Option<&Branch> {
        let from = *self.starts.get(origin.as_usize())? as usize;
        let to = *self.starts.get(origin.as_usize() + 1)? as usize;
        let branches = &self.branches[from..to];
        let at = branches.binary_search_by_key(&destination, |branch| branch.destination);
        at.ok().map(|at| &branches[at])
    }
}

impl Hop {
    const NONE: Self = Self {
        next: RelayIndex::NONE,
        uplink: Uplink(0),
        cost_us: 0,
    };
}

fn tree_hops(tree: &TreeTable, relays: &[RelayIndex]) -> Result<Vec<Hop>, BadPlan> {
    let count = relays.len();
    let fits = |list: &[u32]| list.is_empty() || list.len() == count;
    if tree.next_hop.len() != count || !fits(&tree.uplink) || !fits(&tree.cost_us) {
        return Err(BadPlan("a tree has not one entry per relay"));
    }
    let mut hops = vec![Hop::NONE; size_of(relays)];
    for (position, &destination) in relays.iter().enumerate() {
        let next = tree.next_hop[position];
        if next == NO_WAY {
            continue;
        }
        let uplink = tree.uplink.get(position).copied().unwrap_or(0);
        hops[destination.as_usize()] = Hop {
            next: relay_index(next)
                .filter(|index| relays.binary_search(index).is_ok())
                .ok_or(BadPlan("a next hop is an unknown relay"))?,
            uplink: Uplink(u8::try_from(uplink).map_err(|_| BadPlan("uplink out of range"))?),
            cost_us: tree.cost_us.get(position).copied().unwrap_or(0),
        };
    }
    Ok(hops)
}

fn selections(part: &PlanPart, realtime: &Layout) -> Result<Vec<Selection>, BadPlan> {
    let mut selections = Vec::with_capacity(part.selectors.len());
    for selector in &part.selectors {
        let rules = rule_set(selector.rules)?;
        // Traffic that must keep to rules which nothing obeys would have to be lost: the plan before
        // this one is better than that.
        if rules == 0 || realtime.tree_of(rules).is_none() {
            return Err(BadPlan("a selector names a rule set without a tree"));
        }
        selections.push(Selection {
            app: selector.app.clone(),
            group: selector.group.clone(),
            rules,
        });
    }
    Ok(selections)
}

/// Which tree each restricted rule set enters by. Where a profile has none, it is realtime's: the
/// rules count for more than the price.
fn restricted(layouts: &[Layout; PROFILES]) -> [[(u8, u8); RULE_SETS]; PROFILES] {
    let mut entries = [[(0, 0); RULE_SETS]; PROFILES];
    for (profile, row) in entries.iter_mut().enumerate() {
        for (rules, entry) in row.iter_mut().enumerate() {
            let own = layouts[profile].tree_of(rules as u8);
            let realtime = layouts[0].tree_of(rules as u8);
            *entry = match (own, realtime) {
                (Some(tree), _) => (profile as u8, tree),
                (None, Some(tree)) => (0, tree),
                (None, None) => (profile as u8, 0),
            };
        }
    }
    entries
}

fn rule_set(rules: u32) -> Result<u8, BadPlan> {
    u8::try_from(rules)
        .ok()
        .filter(|&rules| usize::from(rules) < RULE_SETS)
        .ok_or(BadPlan("rule set out of range"))
}

/// A profile of a later version is realtime.
fn known(profile: u8) -> usize {
    Some(usize::from(profile))
        .filter(|&profile| profile < PROFILES)
        .unwrap_or(Profile::Realtime as usize)
}

fn size_of(relays: &[RelayIndex]) -> usize {
    relays.last().map_or(0, |last| last.as_usize() + 1)
}

pub(crate) fn relay_index(value: u32) -> Option<RelayIndex> {
    u16::try_from(value)
        .ok()
        .map(RelayIndex)
        .filter(|&index| index != RelayIndex::NONE)
}

#[cfg(test)]
mod tests;
