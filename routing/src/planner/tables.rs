//! What a plan consists of.

use crate::{
    cost::CostMatrix,
    grow::Field,
    reaction::{self, Backups, UnprotectedWays, backups},
    tree::{self, InTree, OutTree, TreeRules},
};

use super::ProfileInput;

/// How many trees a packet's header can tell apart.
pub const MAX_TREES: usize = 4;

/// Forwarding tables for all relays: what a plan consists of. Indices are those of the input the
/// tables were made from; later relays are missing until the next change.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanTables {
    /// By profile, as in the input.
    pub profiles: Vec<ProfileTables>,
    /// By origin, by the first profile's costs and rule set 0; empty when
    /// [`super::PlannerConfig::out_trees`] is off.
    pub out_trees: Vec<OutTree>,
}

/// What packets of one profile follow.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileTables {
    /// By number of the tree, at most [`MAX_TREES`]: those of rule set 0 first, the best one
    /// before all, then one for each other rule set.
    pub trees: Vec<TreeSet>,
    /// Per (origin, destination), row-major: how an ingress edge spreads flows over the trees of
    /// rule set 0. All 0: everything on tree 0.
    pub weights: Vec<[u8; MAX_TREES]>,
    /// Where to deflect to, by rule set.
    pub backups: Vec<Backups>,
    /// The rule sets themselves.
    pub rules: Vec<TreeRules>,
    /// The costs at the time (links of relays that are not live are down).
    pub cost: CostMatrix,
}

/// All trees of one number.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeSet {
    /// The rule set they obey.
    pub rules: usize,
    /// By destination; `None` where this number is not needed.
    pub by_destination: Vec<Option<InTree>>,
}

impl PlanTables {
    /// The best tables for these costs, without regard to what was before: tree 0 and the trees of
    /// restricted rule sets, with backups. Pins, demand and bounds on latency are left to
    /// [`super::Planner`].
    ///
    /// # Panics
    /// When a profile has no rule set, or more than [`MAX_TREES`].
    #[must_use]
    pub fn best(profiles: &[ProfileInput<'_>], out_trees: bool) -> Self {
        let first = profiles.first().filter(|_| out_trees);
        let out_trees = first.map(|first| tree::out_trees(first.cost, &first.rules[0]));
        Self {
            profiles: profiles
                .iter()
                .map(|profile| ProfileTables::best(profile.cost, profile.rules))
                .collect(),
            out_trees: out_trees.unwrap_or_default(),
        }
    }

    /// The number of relays they are for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.profiles.first().map_or(0, |first| first.cost.len())
    }

    /// Whether they are for no relay at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ProfileTables {
    /// The best tables for these costs, without regard to what was before.
    ///
    /// # Panics
    /// When there is no rule set, or more than [`MAX_TREES`].
    #[must_use]
    pub fn best(cost: &CostMatrix, rules: &[TreeRules]) -> Self {
        assert_rule_sets(rules.len());
        let field = Field::new(cost.transposed());
        let trees = rules.iter().enumerate().map(|(number, rules)| {
            let all = field.grow_all(rules).into_iter();
            TreeSet {
                rules: number,
                by_destination: all.map(|grown| Some(InTree(grown.tree))).collect(),
            }
        });
        let trees: Vec<TreeSet> = trees.collect();
        let lists = rules.iter().map(|rules| backups(cost, rules)).collect();
        Self::assemble(trees, Vec::new(), lists, rules.to_vec(), cost.clone())
    }

    /// Puts tables together; backups are made to fit the trees.
    pub(super) fn assemble(
        trees: Vec<TreeSet>,
        weights: Vec<[u8; MAX_TREES]>,
        mut backups: Vec<Backups>,
        rules: Vec<TreeRules>,
        cost: CostMatrix,
    ) -> Self {
        for (number, lists) in backups.iter_mut().enumerate() {
            // The best tree of each rule set; those for pins and loads take what there is.
            if let Some(set) = trees.iter().find(|set| set.rules == number) {
                let trees = set.by_destination.iter().flatten().map(|tree| &tree.0);
                reaction::cover(lists, &cost, &rules[number], trees);
            }
        }
        let n = cost.len();
        Self {
            trees,
            weights: match weights.is_empty() {
                true => vec![[0; MAX_TREES]; n * n],
                false => weights,
            },
            backups,
            rules,
            cost,
        }
    }

    /// The next hop on a tree: `None` at the destination, where there is no way, and where there is
    /// no such tree.
    #[must_use]
    pub fn next_hop(&self, tree: usize, from: usize, to: usize) -> Option<usize> {
        self.tree(tree, to)?.next_hop(from)
    }

    /// The whole path on a tree, both ends included.
    #[must_use]
    pub fn path(&self, tree: usize, from: usize, to: usize) -> Option<Vec<usize>> {
        let tree = self.tree(tree, to)?;
        (from < tree.len()).then(|| tree.path(from)).flatten()
    }

    /// The in-tree of a number and destination, if there is one.
    #[must_use]
    pub fn tree(&self, tree: usize, to: usize) -> Option<&InTree> {
        self.trees.get(tree)?.by_destination.get(to)?.as_ref()
    }

    /// The number of the tree that obeys rule set `rules` alone (0 for everybody's best).
    #[must_use]
    pub fn tree_of_rules(&self, rules: usize) -> Option<usize> {
        self.trees.iter().position(|set| set.rules == rules)
    }

    /// What share of the flows of a pair goes on which tree, in 255ths at most; sums to anything
    /// above 0.
    ///
    /// # Panics
    /// When an index is out of range.
    #[must_use]
    pub fn weights(&self, from: usize, to: usize) -> [u8; MAX_TREES] {
        match self.weights[from * self.cost.len() + to] {
            [0, 0, 0, 0] => [u8::MAX, 0, 0, 0],
            weights => weights,
        }
    }

    /// Who has no reaction, on everybody's best tree, when a next hop or the link to it fails,
    /// though there is another way. None in networks where every relay has three neighbours or
    /// more with a link to the destination.
    ///
    /// Some n² steps, and more only where reactions are lacking.
    #[must_use]
    pub fn unprotected(&self) -> UnprotectedWays {
        self.unprotected_on(0)
    }

    /// The same for any tree.
    ///
    /// # Panics
    /// When there is no such tree.
    #[must_use]
    pub fn unprotected_on(&self, tree: usize) -> UnprotectedWays {
        let set = &self.trees[tree];
        let trees = set.by_destination.iter().flatten().map(|tree| &tree.0);
        let rules = &self.rules[set.rules];
        reaction::unprotected(&self.backups[set.rules], &self.cost, rules, trees)
    }
}

pub(super) fn assert_rule_sets(count: usize) {
    assert!(
        (1..=MAX_TREES).contains(&count),
        "{count} rule sets: there must be everybody's, and at most {MAX_TREES} in all"
    );
}
