use super::*;
use crate::testing::{arbitrary_costs, metric_costs, plain_tree};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};

fn assert_is(grown: &Grown, (parent, cost): &(Vec<Option<usize>>, Vec<f64>)) {
    let found: Vec<_> = (0..grown.tree.len())
        .map(|relay| grown.tree.parent(relay))
        .collect();
    assert_eq!(&found, parent);
    assert_eq!(&grown.tree.cost[..], &cost[..]);
}

proptest! {
    #[test]
    fn growing_in_bulk_gives_the_tree_of_the_plain_algorithm_ties_included(
        cost in arbitrary_costs(2..=20),
        forbidden in proptest::collection::vec(proptest::bool::weighted(0.1), 0..20),
        max_links in 1..=6usize,
    ) {
        let rules = TreeRules { max_links, no_transit: forbidden };
        let field = Field::new(cost.clone());
        for (root, hinted) in field.grow_all(&rules).iter().enumerate() {
            let grown = field.grow(root, &rules, &Wishes::default());
            prop_assert_eq!(&grown.tree, &hinted.tree);
            if !grown.rehung {
                assert_is(&grown, &plain_tree(&cost, root, &rules));
            }
        }
    }

    #[test]
    fn wishes_are_the_same_as_other_costs(
        cost in arbitrary_costs(3..=14),
        favour in prop_oneof![Just(0.1), Just(1.0), Just(30.0)],
        picks in proptest::collection::vec((0..14usize, 0..14usize), 0..20),
        force in proptest::option::of((0..14usize, 0..14usize)),
        hints in proptest::collection::vec(proptest::collection::vec(prop_oneof![
            5 => Just(1.0), 2 => Just(1.2), 1 => Just(f64::INFINITY), 1 => Just(0.9),
        ], 14), 3),
    ) {
        let n = cost.len();
        let rules = TreeRules::default();
        let field = Field::new(cost.clone());
        let present = field.grow(0, &rules, &Wishes::default()).tree;
        let barred: BTreeMap<_, _> = picks
            .iter()
            .map(|&(child, parent)| ((child % n, parent % n), Duration::ZERO))
            .collect();
        let forced: BTreeMap<usize, usize> = force
            .iter()
            .map(|&(child, parent)| (child % n, parent % n))
            .filter(|(child, parent)| child != parent && *child != 0)
            .collect();
        let wishes = Wishes {
            favoured: Some((&present, favour)),
            barred: Some(&barred),
            forced: Some(&forced),
            at_most: None,
        };
        let wished = CostMatrix::from_fn(n, |parent, child| {
            let only = forced.get(&child);
            if only.is_some_and(|&only| only != parent) {
                f64::INFINITY
            } else if present.parent(child) == Some(parent) {
                (cost.get(parent, child) - favour).max(0.0)
            } else if barred.contains_key(&(child, parent)) {
                f64::INFINITY
            } else {
                cost.get(parent, child)
            }
        });
        let grown = field.grow(0, &rules, &wishes);
        prop_assume!(!grown.rehung);
        let plain = plain_tree(&wished, 0, &rules);
        assert_is(&grown, &plain);
        // Hints of any quality change nothing: true ones, wrong ones, none for some.
        for hint in &hints {
            let bounds: Vec<f64> = plain.1.iter().zip(hint).map(|(cost, by)| cost * by).collect();
            let hinted = Wishes { at_most: Some(&bounds), ..wishes };
            assert_is(&field.grow(0, &rules, &hinted), &plain);
        }
    }
}

#[test]
fn on_large_networks_and_after_changes_the_trees_are_those_of_the_plain_algorithm() {
    let mut rng = rand_pcg::Pcg64::seed_from_u64(5);
    let mut cost = metric_costs(150, 8, 0.1);
    let mut field = Field::new(cost.clone());
    let rules = TreeRules::default();
    for _ in 0..4 {
        let all = field.grow_all(&rules);
        for root in (0..150).step_by(7) {
            assert_is(&all[root], &plain_tree(&cost, root, &rules));
        }
        let changes: Vec<(usize, usize, f64)> = (0..500)
            .map(|_| {
                let link = (rng.random_range(0..150), rng.random_range(0..150));
                (link.0, link.1, rng.random_range(0.0..200.0))
            })
            .collect();
        for &(from, to, ms) in &changes {
            cost.set(from, to, ms);
        }
        field.update(changes.into_iter());
    }
}

#[test]
fn costs_of_any_size_are_rounded_to_the_safe_side() {
    for cost in [
        0.0, 1e-300, 1e-40, 0.1, 1.0, 151.125, 1e9, 1e36, 1e38, 1e300,
    ] {
        assert!(f64::from(rounded_down(cost)) <= cost);
        assert!(f64::from(rounded_up(cost)) > cost);
        assert!(rounded_down(cost).is_finite());
        assert!(rounded_down(cost) < rounded_up(cost));
    }
    assert_eq!(rounded_down(f64::INFINITY), f32::INFINITY);
}
