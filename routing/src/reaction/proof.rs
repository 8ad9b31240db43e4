//! The proof that reactions do what is claimed: packets are followed hop by hop by the very rule
//! that relays call, each relay knowing only its own links.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    Backups, LinkHealth, Unprotected,
    cover::{Failure, Fate, Search, follow},
};
use crate::{
    MAX_LINKS, cost::CostMatrix, planner::ProfileTables, testing::metric_costs, tree::TreeRules,
};

/// By tree at most, and two deflections.
const HOP_LIMIT: usize = MAX_LINKS + 2;

/// Networks from trees to full meshes. Both directions of a link exist or none, or each by itself;
/// they cost differently either way.
fn networks() -> impl Strategy<Value = (CostMatrix, TreeRules)> {
    (3..=9usize, 0.15..1.0f64, proptest::bool::ANY)
        .prop_flat_map(|(n, density, paired)| {
            let cell = (proptest::bool::weighted(density), 0..200u32);
            let cells = proptest::collection::vec(cell, n * n);
            let forbidden = proptest::collection::vec(proptest::bool::weighted(0.1), n);
            (Just(n), Just(paired), cells, forbidden)
        })
        .prop_map(|(n, paired, cells, no_transit)| {
            let cost = CostMatrix::from_fn(n, |i, j| {
                let exists = match paired {
                    true => cells[i.min(j) * n + i.max(j)].0,
                    false => cells[i * n + j].0,
                };
                match exists {
                    true => f64::from(cells[i * n + j].1) / 4.0,
                    false => f64::INFINITY,
                }
            });
            let rules = TreeRules {
                no_transit,
                ..TreeRules::default()
            };
            (cost, rules)
        })
}

fn failures(cost: &CostMatrix) -> Vec<Failure> {
    let n = cost.len();
    let links = (0..n * n).map(|cell| (cell / n, cell % n));
    links
        .filter(|&(from, to)| cost.is_up(from, to))
        .map(|(from, to)| Failure::Link(from, to))
        .chain((0..n).map(Failure::Relay))
        .collect()
}

fn health(cost: &CostMatrix, failures: &[Failure], from: usize, to: usize) -> LinkHealth {
    let broken = failures.iter().any(|failure| failure.breaks(from, to));
    match cost.is_up(from, to) && !broken {
        true => LinkHealth::Up,
        false => LinkHealth::Down,
    }
}

/// Every pair of relays of which neither has failed.
fn pairs(n: usize, failures: &[Failure]) -> Vec<(usize, usize)> {
    let dead = |relay: usize| failures.contains(&Failure::Relay(relay));
    (0..n * n)
        .map(|pair| (pair / n, pair % n))
        .filter(|&(from, to)| from != to && !dead(from) && !dead(to))
        .collect()
}

fn fate(
    tables: &ProfileTables,
    from: usize,
    to: usize,
    health: impl Fn(usize, usize) -> LinkHealth,
) -> Fate {
    let tree = tables.tree(0, to).expect("tree 0 is always there");
    follow(&tree.0, &tables.backups[0], from, health)
}

/// No relay twice, not too long, and nobody crossed who may not be.
fn is_orderly(path: &[usize], rules: &TreeRules) -> bool {
    let once: BTreeSet<usize> = path.iter().copied().collect();
    let transit = path.iter().skip(1).rev().skip(1);
    once.len() == path.len()
        && path.len() <= HOP_LIMIT + 1
        && transit.copied().all(|relay| rules.may_cross(relay))
}

fn transit_so_far(path: &[usize], rules: &TreeRules) -> bool {
    path.iter().skip(1).all(|&relay| rules.may_cross(relay))
}

/// The relay on the way by tree 0 that the failure stops, and its next hop.
fn stopped_at(
    tables: &ProfileTables,
    from: usize,
    to: usize,
    failure: Failure,
) -> Option<Unprotected> {
    let path = tables.path(0, from, to)?;
    let link = path
        .windows(2)
        .find(|link| failure.breaks(link[0], link[1]))?;
    Some(Unprotected {
        relay: link[0],
        destination: to,
        failing: link[1],
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn under_any_single_failure_all_are_delivered_by_the_reaction_or_counted(
        (cost, rules) in networks(),
    ) {
        let tables = ProfileTables::best(&cost, std::slice::from_ref(&rules));
        let gaps = tables.unprotected();
        prop_assert_eq!(gaps.count, gaps.first.len());
        let counted: BTreeSet<Unprotected> = gaps.first.iter().copied().collect();
        let search = Search::new(&cost);
        let mut proven = BTreeSet::new();
        for failure in failures(&cost) {
            for (from, to) in pairs(cost.len(), &[failure]) {
                match fate(&tables, from, to, |a, b| health(&cost, &[failure], a, b)) {
                    Fate::Delivered(path) => {
                        prop_assert!(is_orderly(&path, &rules), "{:?}", path);
                    }
                    Fate::Lost(path) => {
                        prop_assert!(path.len() <= HOP_LIMIT && transit_so_far(&path, &rules));
                        if !search.finds(from, to, &rules, failure) {
                            continue;
                        }
                        let gap = stopped_at(&tables, from, to, failure);
                        prop_assert!(
                            gap.is_some_and(|gap| counted.contains(&gap)),
                            "{} to {} under {:?} ends with {:?}, not counted", from, to, failure, path
                        );
                        proven.extend(gap);
                    }
                }
            }
        }
        // And nothing is counted that is not so.
        prop_assert_eq!(counted, proven);
    }

    #[test]
    fn under_any_two_failures_and_brownouts_nothing_loops(
        (cost, rules) in networks(),
        picks in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::usize::ANY), 12),
        brownouts in proptest::collection::vec(prop_oneof![
            4 => Just(None), 1 => (0..400u32).prop_map(|extra| Some(f64::from(extra) / 4.0)),
        ], 81),
    ) {
        let tables = ProfileTables::best(&cost, std::slice::from_ref(&rules));
        let all = failures(&cost);
        let n = cost.len();
        for (one, two) in picks {
            let two_of_them = [all[one % all.len()], all[two % all.len()]];
            let state = |a: usize, b: usize| match health(&cost, &two_of_them, a, b) {
                LinkHealth::Up => match brownouts[a * n + b] {
                    Some(extra) => LinkHealth::Degraded { extra },
                    None => LinkHealth::Up,
                },
                down => down,
            };
            for (from, to) in pairs(n, &two_of_them) {
                let (Fate::Delivered(path) | Fate::Lost(path)) = fate(&tables, from, to, state);
                let once: BTreeSet<usize> = path.iter().copied().collect();
                prop_assert_eq!(once.len(), path.len(), "{:?} visits a relay twice", path);
                prop_assert!(path.len() <= HOP_LIMIT + 1, "{:?} is too long", path);
            }
        }
    }

    #[test]
    fn a_brownout_never_makes_a_way_dearer_than_staying_on_it(
        (cost, rules) in networks(),
        extra in 0..800u32,
    ) {
        let extra = f64::from(extra) / 4.0;
        let tables = ProfileTables::best(&cost, std::slice::from_ref(&rules));
        // What a way over two deflections costs depends on where the packet has been.
        prop_assume!(!tables.backups[0].deep);
        let n = cost.len();
        for failure in failures(&cost) {
            let Failure::Link(a, b) = failure else { continue };
            let state = |from, to| match (from, to) == (a, b) {
                true => LinkHealth::Degraded { extra },
                false => health(&cost, &[], from, to),
            };
            let price = |path: &[usize]| -> f64 {
                let links = path.windows(2);
                links.map(|l| cost.get(l[0], l[1]) + if (l[0], l[1]) == (a, b) { extra } else { 0.0 }).sum()
            };
            for (from, to) in pairs(n, &[]) {
                let Some(stay) = tables.path(0, from, to) else { continue };
                let fate = fate(&tables, from, to, state);
                let Fate::Delivered(path) = fate else {
                    return Err(TestCaseError::fail(format!("{fate:?}: a bad link is better than none")));
                };
                // Costs in lists are rounded.
                prop_assert!(price(&path) <= price(&stay) + 1e-3, "{:?} instead of {:?}", path, stay);
            }
        }
    }

    #[test]
    fn lists_that_follow_changes_are_the_same_as_fresh_ones(
        (mut cost, rules) in networks(),
        changes in proptest::collection::vec(
            (0..9usize, 0..9usize, prop_oneof![3 => (0..200u32).prop_map(|c| f64::from(c) / 4.0), 1 => Just(f64::INFINITY)]),
            1..12,
        ),
    ) {
        let n = cost.len();
        let mut lists = super::backups(&cost, &rules);
        for group in changes.chunks(2) {
            let mut changed = Vec::new();
            for &(from, to, ms) in group {
                let link = (from % n, to % n);
                cost.set(link.0, link.1, ms);
                changed.push(link);
            }
            lists.update(&cost, &cost.transposed(), &rules, &changed);
            let fresh = super::backups(&cost, &rules);
            prop_assert_eq!(&lists, &fresh);
        }
    }
}

#[test]
fn in_a_full_mesh_no_one_is_without_a_reaction() {
    for seed in 0..3 {
        let tables = ProfileTables::best(&metric_costs(30, seed, 0.0), &[TreeRules::default()]);
        assert_eq!(tables.unprotected().count, 0);
    }
}

#[test]
fn in_a_mesh_with_missing_links_lists_that_follow_changes_are_the_same_as_fresh_ones() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_pcg::Pcg64::seed_from_u64(7);
    let mut cost = metric_costs(40, 1, 0.02);
    let rules = TreeRules::default();
    let mut lists = super::backups(&cost, &rules);
    for _ in 0..40 {
        let changed: Vec<(usize, usize)> = (0..rng.random_range(1..8))
            .map(|_| (rng.random_range(0..40), rng.random_range(0..40)))
            .collect();
        for &(from, to) in &changed {
            let ms = match rng.random_bool(0.1) {
                true => f64::INFINITY,
                false => rng.random_range(1.0..150.0),
            };
            cost.set(from, to, ms);
        }
        lists.update(&cost, &cost.transposed(), &rules, &changed);
        assert_eq!(lists, super::backups(&cost, &rules));
    }
}

/// Where a chain of two backups is the only way around.
#[test]
fn in_sparse_networks_a_second_deflection_saves_what_one_cannot() {
    // 0 → 3 goes over 1; around it only 0 → 2 → 4 → 3.
    let mut cost = CostMatrix::new(5);
    for (a, b) in [(0, 1), (1, 3), (0, 2), (2, 4), (4, 3)] {
        cost.set(a, b, 10.0);
        cost.set(b, a, 10.0);
    }
    let tables = ProfileTables::best(&cost, &[TreeRules::default()]);
    let lists: &Backups = &tables.backups[0];
    let candidates: Vec<_> = lists.candidates_with_cost(0, 3).collect();
    assert_eq!(candidates, [(1, 20.0), (2, 30.0)]);
    let failure = [Failure::Relay(1)];
    assert_eq!(
        fate(&tables, 0, 3, |a, b| health(&cost, &failure, a, b)),
        Fate::Delivered(vec![0, 2, 4, 3])
    );
    let gap = Unprotected {
        relay: 0,
        destination: 3,
        failing: 1,
    };
    assert!(!tables.unprotected().first.contains(&gap));
}

#[test]
fn where_there_is_no_reaction_it_is_said() {
    // A ring: the other way round has more links than two deflections can lead.
    let ring = |n: usize| {
        let cost = CostMatrix::from_fn(n, |i, j| match (n + i - j) % n {
            1 => 10.0,
            back if back == n - 1 => 10.0,
            _ => f64::INFINITY,
        });
        ProfileTables::best(&cost, &[TreeRules::default()]).unprotected()
    };
    assert_eq!(ring(12).count, 0, "the other way round is beyond the bound");
    let gaps = ring(7);
    let gap = Unprotected {
        relay: 2,
        destination: 0,
        failing: 1,
    };
    assert!(gaps.first.contains(&gap), "{gaps:?}");
    assert!(!gaps.upper_bound);
}
