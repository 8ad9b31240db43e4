//! The brain of Tradewind: what to believe about links, and which way packets go.
//!
//! Pure functions and state machines over explicit time: no IO, no clock, no threads. Relays and
//! controllers hand in what they measured and when, and get back what follows from it. The same
//! input gives the same output, always, so that networks in virtual time can be replayed.
//!
//! The algorithms work on *dense indices*: relay `i` is row and column `i` of every matrix. Who
//! is which index is the caller's business. Costs are `f64` milliseconds-equivalents, with
//! [`f64::INFINITY`] for "no link".
//!
//! From measurement to tables:
//!
//! ```text
//! ProbeSession (relay) ─ LinkEstimate ─▶ clock_sync ─ one-way delays ─▶ link_cost ─ CostMatrix
//!      ─▶ Planner ─ PlanTables { per profile: in-trees, weights, backups; out-trees }
//!      ─▶ next_hop (relay)
//! ```

pub mod brownout;
pub mod budget;
pub mod clock_sync;
pub mod cost;
pub mod demand;
mod drift;
pub mod estimator;
mod grow;
mod liveness;
pub mod load;
pub mod matrix;
pub mod paths;
pub mod placement;
pub mod planner;
pub mod probe;
pub mod reaction;
pub mod tree;
pub mod whatif;
mod window;

#[cfg(test)]
mod testing;

pub use brownout::Brownout;
pub use clock_sync::{ClockSolution, RawDelays, solve_clocks};
pub use cost::{CostMatrix, CostTerms, CostWeights, LinkMetrics, link_cost};
pub use demand::{DemandConfig, DemandMeter};
pub use estimator::{
    EstimatorConfig, LinkEstimate, LinkEstimator, LinkState, LossCount, ProbeSample,
};
pub use load::{LoadConfig, LoadPlan, LoadProblem, spread};
pub use matrix::{MatrixError, NameError, RttMatrix};
pub use paths::{BestPaths, best_paths, best_paths_with_hop_cost, path_cost};
pub use placement::{Placement, Progress, Stage};
pub use planner::{
    Decision, LatencyBound, MAX_TREES, PlanTables, Planner, PlannerConfig, PlannerInput,
    ProfileInput, ProfileTables, TreeSet,
};
pub use probe::{ProbeEcho, ProbeFields, ProbeSession, ProbeVerdict};
pub use reaction::{
    Backups, LinkHealth, MAX_DEFLECTIONS, NextHop, Situation, Unprotected, UnprotectedWays,
    backups, next_hop,
};
pub use tree::{InTree, OutTree, TreeRules, in_tree, in_trees, out_tree, out_trees};
pub use whatif::{Failures, Toll, Ways, WhatIf};

/// The most relays a packet may cross between its ingress and its egress edge.
pub const MAX_TRANSIT: usize = 4;

/// The most links a path may have: one more than [`MAX_TRANSIT`].
pub const MAX_LINKS: usize = MAX_TRANSIT + 1;
