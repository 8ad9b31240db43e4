//! Spreading load over several trees.

use crate::{
    cost::CostMatrix,
    tree::{InTree, TreeRules},
};
use std::collections::BTreeMap;

/// Limits of [`spread`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadConfig {
    /// Utilisation over which flows are split: 0.7.
    pub target: f64,
    /// Utilisation over which no link is planned while an alternative has room: 0.8.
    pub limit: f64,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            target: 0.7,
            limit: 0.8,
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
    /// The best tree of each destination.
    pub primary: &'a [&'a InTree],
    /// Bytes per second offered, row-major (origin, destination).
    pub demand: &'a [f64],
    /// Bytes per second each link can carry, row-major; infinite when unknown.
    pub capacity: &'a [f64],
    /// Bytes per second on each link from elsewhere, row-major; may be empty.
    pub background: &'a [f64],
    /// Limits.
    pub config: LoadConfig,
}

/// How load is spread.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadPlan {
    /// Further trees by destination.
    pub extra: BTreeMap<usize, Vec<InTree>>,
    /// Weights over [primary, first extra, second extra, none] for (origin, destination).
    pub weights: BTreeMap<(usize, usize), [u8; 4]>,
    /// Bytes per second that each link then carries.
    pub load: Vec<f64>,
    /// Links left over the limit, as (from, to, utilisation).
    pub unrelieved: Vec<(usize, usize, f64)>,
}

/// Spreads load over several trees per destination: everything stays on the primary ones.
#[must_use]
pub fn spread(_problem: &LoadProblem<'_>) -> LoadPlan {
    LoadPlan::default()
}
