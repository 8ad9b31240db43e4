//! Pins, bounds on latency, restricted rule sets, load: what uses further trees.

use super::*;
use std::collections::BTreeMap;

/// 1 is near everybody, 2 a little farther, 3 far; 0 and 4 reach each other over any of them.
fn three_ways() -> CostMatrix {
    let mut cost = CostMatrix::from_fn(5, |_, _| 200.0);
    for (via, ms) in [(1, 20.0), (2, 30.0), (3, 60.0)] {
        for end in [0, 4] {
            cost.set(end, via, ms);
            cost.set(via, end, ms);
        }
    }
    cost
}

/// The tree on which all flows of a pair go.
fn only_tree(world: &World, from: usize, to: usize) -> usize {
    let weights = world.tables().weights(from, to);
    let used: Vec<usize> = (0..MAX_TREES).filter(|&tree| weights[tree] > 0).collect();
    assert_eq!(used.len(), 1, "{weights:?}");
    used[0]
}

/// The path that all flows of a pair take.
fn way(world: &World, from: usize, to: usize) -> Vec<usize> {
    let tree = only_tree(world, from, to);
    world.tables().path(tree, from, to).unwrap_or_default()
}

#[test]
fn a_pinned_path_is_used_by_its_pair_and_by_no_other() {
    let mut world = World::planned(three_ways());
    world.pins = vec![vec![0, 3, 4]];
    let decision = world.step();
    assert_eq!(
        decision.reasons,
        ["pin relay-0 > relay-3 > relay-4 is honoured"]
    );
    assert_eq!(way(&world, 0, 4), [0, 3, 4]);
    assert_eq!(way(&world, 4, 0), [4, 1, 0]);
    assert_eq!(world.path(0, 4), [0, 1, 4], "tree 0 is everybody's");
    let tables = world.tables();
    assert_eq!((tables.trees.len(), tables.trees[1].rules), (2, 0));
    for from in 0..4 {
        assert!(tables.path(1, from, 4).is_some(), "it is a whole tree");
    }
    world.run(5.0);
    assert_eq!(world.changes.len(), 1, "{:?}", world.changes);
    world.pins.clear();
    assert_eq!(world.step().reasons, ["pins have been taken away"]);
    assert_eq!(way(&world, 0, 4), [0, 1, 4]);
}

#[test]
fn a_pin_over_a_dead_link_fails_open_and_returns_when_the_link_has_stayed() {
    let mut world = World::planned(three_ways());
    world.pins = vec![vec![0, 3, 4]];
    world.step();
    world.cost.set(3, 4, f64::INFINITY);
    let decision = world.step();
    assert!(
        decision
            .reasons
            .iter()
            .any(|why| why.contains("no usable link from relay-3 to relay-4")),
        "{decision:?}"
    );
    assert_eq!(way(&world, 0, 4), [0, 1, 4]);
    assert_eq!(world.planner.refused_pins().count(), 1);
    world.cost.set(3, 4, 60.0);
    world.run(1.0);
    assert_eq!(way(&world, 0, 4), [0, 1, 4]);
    world.run(1.0);
    assert_eq!(way(&world, 0, 4), [0, 3, 4]);
    // A pin whose link flaps is honoured once a minute at most.
    world.changes.clear();
    for _ in 0..30 {
        world.cost.set(3, 4, f64::INFINITY);
        world.run(0.3);
        world.cost.set(3, 4, 60.0);
        world.run(1.7);
    }
    let returns = world
        .changes
        .iter()
        .filter(|(_, why)| why.iter().any(|why| why.ends_with("is honoured")));
    assert!(returns.count() <= 1, "{:?}", world.changes);
}

#[test]
fn pins_to_one_destination_share_a_tree_when_they_fit_and_are_refused_when_there_is_none_left() {
    let mut world = World::planned(three_ways());
    world.pins = vec![vec![0, 3, 4], vec![3, 4], vec![1, 0, 3, 4], vec![2, 3, 4]];
    world.step();
    assert_eq!(world.tables().trees.len(), 2, "all four fit into one tree");
    for pin in world.pins.clone() {
        assert_eq!(way(&world, pin[0], 4), pin);
    }
    // Each of these has another way from 0 to 4 below it.
    world.pins = [[1, 0], [2, 0], [3, 0]]
        .iter()
        .zip([vec![4], vec![3, 4], vec![2, 4]])
        .map(|(start, rest)| [&start[..], &rest[..]].concat())
        .chain([vec![0, 1, 4]])
        .collect();
    world.step();
    assert_eq!(world.tables().trees.len(), 4);
    let refused: Vec<_> = world.planner.refused_pins().collect();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].0, refused[0].1), (0, &[0, 1, 4][..]));
    assert!(refused[0].2.contains("more than 3 trees"), "{refused:?}");
    for pin in &world.pins[..3] {
        assert_eq!(&way(&world, pin[0], 4), pin);
    }
    assert_eq!(way(&world, 0, 4), [0, 1, 4], "by tree 0, as it happens");
}

#[test]
fn a_pin_that_cannot_be_is_refused_with_the_reason() {
    let mut world = World::planned(three_ways());
    world.rules[0].no_transit = vec![false, false, true];
    world.step();
    world.pins = vec![
        vec![0, 2, 4],
        vec![0, 1, 0, 4],
        vec![0],
        vec![0, 9],
        vec![0, 4],
        vec![0, 3, 4],
    ];
    world.step();
    let refused: Vec<(Vec<usize>, String)> = world
        .planner
        .refused_pins()
        .map(|(_, path, why)| (path.to_vec(), why.to_owned()))
        .collect();
    let why = |path: &[usize]| {
        let found = refused.iter().find(|(refused, _)| refused == path);
        found.map(|(_, why)| why.as_str()).unwrap_or_default()
    };
    assert!(why(&[0, 2, 4]).contains("relay-2 must not be crossed"));
    assert!(why(&[0, 1, 0, 4]).contains("visits relay-0 twice"));
    assert!(why(&[0]).contains("0 links"));
    assert!(why(&[0, 9]).contains("not known"));
    assert!(why(&[0, 3, 4]).contains("another pin"));
    assert_eq!(refused.len(), 5);
    assert_eq!(way(&world, 0, 4), [0, 4]);
}

#[test]
fn a_restricted_rule_set_has_a_tree_and_backups_of_its_own() {
    let mut world = World::new(three_ways());
    world.rules.push(TreeRules {
        no_transit: vec![false, true, false, false, false],
        ..TreeRules::default()
    });
    world.step();
    let tables = world.tables();
    assert_eq!(tables.tree_of_rules(1), Some(1));
    assert_eq!(tables.path(0, 0, 4), Some(vec![0, 1, 4]));
    assert_eq!(tables.path(1, 0, 4), Some(vec![0, 2, 4]));
    assert!(tables.backups[0].candidates(0, 4).any(|hop| hop == 1));
    assert_eq!(
        tables.backups[1].candidates(0, 4).collect::<Vec<_>>(),
        [2, 3, 4]
    );
    // A pin's tree comes before it.
    world.pins = vec![vec![0, 3, 4]];
    world.step();
    let tables = world.tables();
    assert_eq!(tables.tree_of_rules(1), Some(2));
    assert_eq!(tables.path(2, 0, 4), Some(vec![0, 2, 4]));
    assert_eq!(way(&world, 0, 4), [0, 3, 4]);
    // Other restrictions take effect at once.
    world.rules[1].no_transit = vec![false, true, true, false, false];
    assert!(world.step().changed);
    assert_eq!(world.tables().path(2, 0, 4), Some(vec![0, 3, 4]));
    world.rules.truncate(1);
    assert!(world.step().changed);
    assert_eq!(world.tables().trees.len(), 2);
}

/// Asks a planner for realtime and economy; economy's prices make 3 the cheapest way.
struct TwoProfiles {
    planner: Planner,
    now: Duration,
    delay: CostMatrix,
    economy: CostMatrix,
}

impl TwoProfiles {
    fn step(&mut self) -> Decision {
        let names: Vec<String> = (0..5).map(|relay| format!("relay-{relay}")).collect();
        let rules = [TreeRules::default()];
        let realtime = ProfileInput {
            cost: &self.delay,
            rules: &rules,
            pins: &[],
            demand: &[],
            latency_bound: None,
        };
        let economy = ProfileInput {
            cost: &self.economy,
            latency_bound: Some(LatencyBound {
                delay_ms: &self.delay,
                factor: 2.0,
                slack_ms: 20.0,
            }),
            ..realtime
        };
        self.now += Duration::from_millis(100);
        self.planner.step(&PlannerInput {
            now: self.now,
            names: &names,
            live: &[true; 5],
            expected_live: 5,
            profiles: &[realtime, economy],
            capacity: &[],
        })
    }

    fn run(&mut self, seconds: u32) -> usize {
        (0..seconds * 10).filter(|_| self.step().changed).count()
    }

    /// The way of economy, and the number of its tree.
    fn economy_way(&self) -> (usize, Vec<usize>) {
        let tables = &self.planner.tables().unwrap().profiles[1];
        let tree = (0..MAX_TREES)
            .find(|&tree| tables.weights(0, 4)[tree] > 0)
            .unwrap();
        (tree, tables.path(tree, 0, 4).unwrap())
    }
}

#[test]
fn economy_takes_the_cheap_way_within_the_bound_on_latency_and_the_fast_one_beyond() {
    let mut economy = three_ways();
    for via in [1, 2] {
        for end in [0, 4] {
            economy.set(end, via, 500.0);
            economy.set(via, end, 500.0);
        }
    }
    economy.set(0, 4, 500.0);
    let mut two = TwoProfiles {
        planner: Planner::new(PlannerConfig::default()),
        now: Duration::ZERO,
        delay: three_ways(),
        economy,
    };
    assert!(two.step().changed);
    assert_eq!(
        two.economy_way(),
        (1, vec![0, 1, 4]),
        "120 ms are more than 2 · 40 + 20"
    );
    let realtime = &two.planner.tables().unwrap().profiles[0];
    assert_eq!(realtime.path(0, 0, 4), Some(vec![0, 1, 4]));
    assert_eq!(realtime.trees.len(), 1);
    // The cheap way becomes faster: 70 ms. It is used again, but not within a minute.
    two.delay.set(3, 4, 10.0);
    two.run(30);
    assert_eq!(two.economy_way().0, 1);
    two.run(60);
    assert_eq!(two.economy_way(), (0, vec![0, 3, 4]));
    // A little over the bound for a little while is nothing.
    two.delay.set(3, 4, 41.0);
    two.run(1);
    two.delay.set(3, 4, 30.0);
    two.run(5);
    assert_eq!(two.economy_way(), (0, vec![0, 3, 4]));
    two.delay.set(3, 4, 41.0);
    two.run(5);
    assert_eq!(two.economy_way(), (1, vec![0, 1, 4]));
}

/// What the incremental step leaves out changes nothing: a planner that looks at everything in
/// every step decides the same.
#[test]
fn steps_that_look_only_where_something_changed_decide_as_if_they_looked_everywhere() {
    use rand::{RngExt, SeedableRng};
    for seed in 0..6 {
        let full = metric_costs(12, seed, [0.0, 0.3][seed as usize % 2]);
        let mut rng = rand_pcg::Pcg64::seed_from_u64(seed);
        let mut lazy = World::new(full.clone());
        let mut eager = World::new(full.clone());
        for step in 0..800 {
            for _ in 0..rng.random_range(0..4) {
                let (a, b) = (rng.random_range(0..12), rng.random_range(0..12));
                let ms = match rng.random_range(0..10) {
                    0 => f64::INFINITY,
                    1..4 => full.get(a, b),
                    _ => full.get(a, b) * rng.random_range(0.6..1.5),
                };
                lazy.cost.set(a, b, ms);
                eager.cost.set(a, b, ms);
            }
            for profile in &mut eager.planner.profiles {
                profile.forget();
            }
            assert_eq!(lazy.step(), eager.step(), "seed {seed}, step {step}");
            assert_eq!(
                lazy.planner.tables(),
                eager.planner.tables(),
                "seed {seed}, step {step}"
            );
        }
        assert!(
            lazy.changes.len() > 20,
            "something must happen for this to prove anything"
        );
    }
}

#[test]
fn changes_below_the_quantum_are_no_changes_but_add_up() {
    let mut world = World::planned(diamond());
    let mut both = |ms: f64| {
        world.set_both(0, 2, ms);
        world.set_both(2, 3, ms);
        world.run(2.0)
    };
    assert_eq!(both(29.99), 0);
    // In steps of half a quantum from 60 ms to less than the other way's 40.
    let changes: usize = (1..=1_100)
        .map(|step| both(30.0 - 0.01 * f64::from(step)))
        .sum();
    assert!((1..=4).contains(&changes), "{changes}: pair by pair");
    assert_eq!(world.path(0, 3), [0, 2, 3]);
}

#[test]
fn a_new_relay_changes_nothing_for_a_pin() {
    let mut world = World::planned(three_ways());
    world.pins = vec![vec![0, 3, 4]];
    world.step();
    let old = world.cost.clone();
    world.cost = CostMatrix::from_fn(6, |i, j| match i.max(j) {
        5 => 150.0,
        _ => old.get(i, j),
    });
    world.names.push("relay-5".into());
    world.live.push(true);
    world.run(3.0);
    assert_eq!(way(&world, 0, 4), [0, 3, 4]);
    assert_eq!(world.path(5, 4), [5, 4]);
}

#[test]
fn load_that_would_fill_the_best_way_is_split_over_trees_by_weight() {
    let mut world = World::planned(three_ways());
    world.capacity = vec![f64::INFINITY; 25];
    world.demand = vec![0.0; 25];
    for link in [1, 5 + 4, 2, 10 + 4] {
        world.capacity[link] = 100.0; // 0→1→4 and 0→2→4
    }
    // From 0, 1 and 2 to 4.
    world.demand[4] = 60.0;
    world.run(5.0);
    assert_eq!(world.changes, [], "60 % are below the target");
    world.demand[4] = 95.0;
    world.run(5.0);
    assert_eq!(world.changes.len(), 1, "{:?}", world.changes);
    assert!(
        world.changes[0].1[0].contains("load is spread"),
        "{:?}",
        world.changes
    );
    let (tables, weights) = (world.tables(), world.tables().weights(0, 4));
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let mut carried = BTreeMap::new();
    for (tree, &weight) in weights
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight > 0)
    {
        let path = tables
            .path(tree, 0, 4)
            .expect("a tree with weight has a way");
        for link in path.windows(2) {
            *carried.entry((link[0], link[1])).or_insert(0.0) += 95.0 * f64::from(weight) / sum;
        }
    }
    for (link, bytes) in &carried {
        let capacity = world.capacity[link.0 * 5 + link.1];
        assert!(*bytes <= 0.8 * capacity, "{bytes} on {link:?}: {weights:?}");
    }
    world.run(60.0);
    assert_eq!(world.changes.len(), 1, "it stays: {:?}", world.changes);
}
