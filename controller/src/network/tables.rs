//! The planner's tables, as plans are made of them.

use tradewind_routing::{Backups, CostMatrix, InTree, TreeRules, backups, in_trees};

#[derive(Debug, Clone)]
pub(super) struct PlanTables {
    pub(super) profiles: Vec<ProfileTables>,
}

#[derive(Debug, Clone)]
pub(super) struct ProfileTables {
    pub(super) trees: Vec<TreeSet>,
    pub(super) weights: Vec<[u8; 4]>,
    pub(super) backups: Vec<Backups>,
    pub(super) cost: CostMatrix,
}

#[derive(Debug, Clone)]
pub(super) struct TreeSet {
    pub(super) rules: usize,
    pub(super) by_destination: Vec<Option<InTree>>,
}

pub(super) struct ProfileInput<'a> {
    pub(super) cost: &'a CostMatrix,
    pub(super) rules: &'a [TreeRules],
    pub(super) pins: &'a [Vec<usize>],
    pub(super) demand: &'a [f64],
    pub(super) latency_bound: Option<LatencyBound<'a>>,
}

pub(super) struct LatencyBound<'a> {
    pub(super) delay_ms: &'a CostMatrix,
    pub(super) factor: f64,
    pub(super) slack_ms: f64,
}

pub(super) fn convert(tables: &tradewind_routing::PlanTables) -> PlanTables {
    let profile = ProfileTables {
        trees: vec![TreeSet {
            rules: 0,
            by_destination: tables.in_trees.iter().cloned().map(Some).collect(),
        }],
        weights: Vec::new(),
        backups: vec![tables.backups.clone()],
        cost: tables.cost.clone(),
    };
    PlanTables {
        profiles: vec![profile.clone(), profile],
    }
}

/// Tables over relays between which there are only these links, made at once and afresh: by
/// profile, for its rule sets.
pub(super) fn fresh(cost: &CostMatrix, rules: &super::rules::AllRules) -> PlanTables {
    let profiles = rules.iter().map(|sets| ProfileTables {
        trees: sets
            .iter()
            .enumerate()
            .map(|(at, rules)| TreeSet {
                rules: at,
                by_destination: in_trees(cost, rules).into_iter().map(Some).collect(),
            })
            .collect(),
        weights: Vec::new(),
        backups: sets.iter().map(|rules| backups(cost, rules)).collect(),
        cost: cost.clone(),
    });
    PlanTables {
        profiles: profiles.collect(),
    }
}
