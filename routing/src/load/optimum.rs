//! The optimum that splitting is compared with: a linear program over all allowed paths, each
//! pair's demand divided as finely as it likes.

use super::{LoadProblem, positive};
use crate::paths::path_cost;
use microlp::{ComparisonOp, OptimizationDirection, Problem, Variable};
use std::collections::BTreeMap;

/// The least highest utilisation of the links of known capacity that any division over paths
/// within hop bound, rules and latency bound can have.
pub(super) fn least_worst_utilisation(problem: &LoadProblem<'_>) -> f64 {
    let n = problem.cost.len();
    let mut program = Problem::new(OptimizationDirection::Minimize);
    let worst = program.add_var(1.0, (0.0, f64::INFINITY));
    let mut on_link: BTreeMap<usize, Vec<(Variable, f64)>> = BTreeMap::new();
    for from in 0..n {
        for to in 0..n {
            let bytes = problem.demand[from * n + to];
            let Some(primary) = problem.primary[to]
                .path(from)
                .filter(|_| bytes > 0.0 && from != to)
            else {
                continue;
            };
            let best = path_cost(problem.cost, &primary);
            let bound = problem.config.factor * best + problem.config.slack_ms;
            let mut shares = Vec::new();
            for path in all_paths(problem, from, to) {
                if path_cost(problem.cost, &path) > bound && path != primary {
                    continue;
                }
                let share = program.add_var(0.0, (0.0, f64::INFINITY));
                shares.push((share, 1.0));
                for link in path.windows(2) {
                    let terms = on_link.entry(link[0] * n + link[1]).or_default();
                    terms.push((share, bytes));
                }
            }
            program.add_constraint(&shares[..], ComparisonOp::Eq, 1.0);
        }
    }
    for (link, mut terms) in on_link {
        let capacity = problem.capacity[link];
        if capacity.is_finite() {
            terms.iter_mut().for_each(|term| term.1 /= capacity);
            terms.push((worst, -1.0));
            let background = problem.background.get(link).map_or(0.0, |&b| positive(b));
            program.add_constraint(&terms[..], ComparisonOp::Le, -background / capacity);
        }
    }
    let solution = program.solve().unwrap().into_solution().unwrap();
    solution.objective()
}

/// All simple paths from one relay to another that obey the rules.
fn all_paths(problem: &LoadProblem<'_>, from: usize, to: usize) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    let mut open = vec![vec![from]];
    while let Some(path) = open.pop() {
        let at = path[path.len() - 1];
        for next in 0..problem.cost.len() {
            if path.contains(&next) || !problem.cost.is_up(at, next) {
                continue;
            }
            let mut longer = path.clone();
            longer.push(next);
            if next == to {
                found.push(longer);
            } else if longer.len() <= problem.rules.max_links && problem.rules.may_cross(next) {
                open.push(longer);
            }
        }
    }
    found
}
