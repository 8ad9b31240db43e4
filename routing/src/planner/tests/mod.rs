mod choices;

use super::*;
use crate::testing::metric_costs;

/// A network whose state is changed by hand, and a planner that is asked every 100 ms.
struct World {
    planner: Planner,
    now: Duration,
    names: Vec<String>,
    live: Vec<bool>,
    cost: CostMatrix,
    rules: Vec<TreeRules>,
    pins: Vec<Vec<usize>>,
    demand: Vec<f64>,
    capacity: Vec<f64>,
    expected: usize,
    /// When each change came, and what was said.
    changes: Vec<(Duration, Vec<String>)>,
    alerts: usize,
}

const STEP: Duration = Duration::from_millis(100);

impl World {
    fn new(cost: CostMatrix) -> Self {
        let n = cost.len();
        Self {
            planner: Planner::new(PlannerConfig::default()),
            now: Duration::from_secs(1_000),
            names: (0..n).map(|relay| format!("relay-{relay}")).collect(),
            live: vec![true; n],
            cost,
            rules: vec![TreeRules::default()],
            pins: Vec::new(),
            demand: Vec::new(),
            capacity: Vec::new(),
            expected: n,
            changes: Vec::new(),
            alerts: 0,
        }
    }

    /// One that has its first plan.
    fn planned(cost: CostMatrix) -> Self {
        let mut world = Self::new(cost);
        while !world.step().changed {
            assert!(world.now < Duration::from_secs(1_010), "no first plan");
        }
        world.run(10.0);
        world.changes.clear();
        world
    }

    fn step(&mut self) -> Decision {
        let decision = self.planner.step(&PlannerInput {
            now: self.now,
            names: &self.names,
            live: &self.live,
            expected_live: self.expected,
            profiles: &[ProfileInput {
                cost: &self.cost,
                rules: &self.rules,
                pins: &self.pins,
                demand: &self.demand,
                latency_bound: None,
            }],
            capacity: &self.capacity,
        });
        if decision.changed {
            assert!(!decision.reasons.is_empty());
            self.changes.push((self.now, decision.reasons.clone()));
        }
        self.alerts += usize::from(decision.alert.is_some());
        self.now += STEP;
        decision
    }

    /// Steps for `seconds`; how often the plan changed.
    fn run(&mut self, seconds: f64) -> usize {
        let before = self.changes.len();
        let until = self.now + Duration::from_secs_f64(seconds);
        while self.now < until {
            self.step();
        }
        self.changes.len() - before
    }

    /// Of the only profile.
    fn tables(&self) -> &ProfileTables {
        &self.planner.tables().unwrap().profiles[0]
    }

    fn path(&self, from: usize, to: usize) -> Vec<usize> {
        self.tables().path(0, from, to).unwrap_or_default()
    }

    fn set_both(&mut self, a: usize, b: usize, cost: f64) {
        self.cost.set(a, b, cost);
        self.cost.set(b, a, cost);
    }
}

/// 0 and 3 are 100 ms apart, by 1 or by 2 less; the rest is far.
fn diamond() -> CostMatrix {
    let mut cost = CostMatrix::from_fn(4, |_, _| 100.0);
    for (a, b, ms) in [
        (0, 1, 20.0),
        (1, 3, 20.0),
        (0, 2, 30.0),
        (2, 3, 30.0),
        (1, 2, 5.0),
    ] {
        cost.set(a, b, ms);
        cost.set(b, a, ms);
    }
    cost
}

#[test]
fn the_first_plan_comes_as_soon_as_everything_expected_is_measured() {
    let full = diamond();
    let mut world = World::new(CostMatrix::new(4));
    assert_eq!(world.run(20.0), 0, "nothing measured, nothing planned");
    world.cost = full.clone();
    world.cost.set(0, 3, f64::INFINITY);
    assert!(!world.step().changed);
    world.cost = full;
    let decision = world.step();
    assert_eq!(
        decision.reasons,
        ["first plan: 4 relays, 12 of 12 links measured"]
    );
    assert_eq!(world.path(0, 3), [0, 1, 3]);
    let tables = world.planner.tables().unwrap();
    assert_eq!(tables.out_trees[0].path(3), Some(vec![0, 1, 3]));
    assert_eq!(
        tables.profiles[0].backups[0]
            .for_failing(0, 3, 1)
            .collect::<Vec<_>>(),
        [2, 3]
    );
}

#[test]
fn the_first_plan_does_not_wait_for_what_does_not_come() {
    let mut world = World::new(diamond());
    world.cost.set(0, 3, f64::INFINITY);
    let start = world.now;
    world.run(3.0);
    assert_eq!(
        world.changes[0].0 - start,
        Duration::from_secs(1),
        "nothing new for a second"
    );

    let mut world = World::new(diamond());
    world.expected = 5;
    let start = world.now;
    world.run(8.0);
    assert_eq!(
        world.changes[0].0 - start,
        Duration::from_secs(5),
        "a relay never came"
    );
}

#[test]
fn a_better_way_that_stays_is_in_use_after_the_hold_time() {
    let mut world = World::planned(diamond());
    world.set_both(0, 2, 5.0);
    world.set_both(2, 3, 5.0);
    let since = world.now;
    world.run(5.0);
    assert_eq!(world.changes.len(), 1);
    assert_eq!(world.changes[0].0 - since, Duration::from_millis(1_200));
    assert_eq!(world.path(0, 3), [0, 2, 3]);
    assert!(
        world.changes[0]
            .1
            .iter()
            .any(|reason| reason.contains("relay-0 via relay-2 (10.0 ms")),
        "{:?}",
        world.changes
    );
}

#[test]
fn a_better_way_that_does_not_stay_changes_nothing() {
    let mut world = World::planned(diamond());
    for _ in 0..10 {
        world.set_both(0, 2, 5.0);
        world.run(1.0);
        world.set_both(0, 2, 30.0);
        world.run(0.3);
    }
    assert_eq!(world.changes, []);
}

#[test]
fn a_gain_below_the_margin_changes_nothing() {
    let mut world = World::planned(CostMatrix::from_fn(3, |i, j| {
        [20.0, 40.0][usize::from(i + j == 2)]
    }));
    assert_eq!(
        world.path(0, 2),
        [0, 2],
        "equal ways: the one with fewer links"
    );
    world.set_both(0, 1, 19.6);
    assert_eq!(world.run(10.0), 0, "39.6 ms by 1, 40 ms directly");
    world.set_both(0, 1, 19.1);
    assert_eq!(world.run(10.0), 1, "39.1 ms is worth it");
    assert_eq!(world.path(0, 2), [0, 1, 2]);
}

#[test]
fn a_failure_is_answered_in_the_same_step_and_healing_after_the_hold_time() {
    let mut world = World::planned(diamond());
    world.cost.set(1, 3, f64::INFINITY);
    let failed = world.now;
    assert!(world.step().changed);
    // 0-1-2-3 costs less than 0-2-3.
    assert_eq!(world.path(0, 3), [0, 1, 2, 3]);
    assert_eq!(
        world.path(3, 0),
        [3, 1, 0],
        "the other direction is alive and stays"
    );
    assert_eq!(world.changes[0].0, failed);
    world.run(4.0);
    assert_eq!(
        world.changes.len(),
        1,
        "once is enough: {:?}",
        world.changes
    );

    world.cost.set(1, 3, 20.0);
    world.run(4.0);
    assert_eq!(
        world.path(0, 3),
        [0, 1, 3],
        "the way back is open after a failure"
    );
    // It fails and heals again within the minute: away at once, back only when the minute is over.
    let back = world.changes.last().unwrap().0;
    world.cost.set(1, 3, f64::INFINITY);
    assert!(world.step().changed);
    world.cost.set(1, 3, 20.0);
    world.run(70.0);
    assert_eq!(world.path(0, 3), [0, 1, 3]);
    assert!(world.changes.last().unwrap().0 - back >= Duration::from_secs(60));
}

#[test]
fn a_dead_relay_is_left_out_at_once_and_comes_back_by_itself() {
    let mut world = World::planned(diamond());
    world.live[1] = false;
    assert!(world.step().changed);
    assert_eq!(world.path(0, 3), [0, 2, 3]);
    assert_eq!(
        world.path(0, 1),
        [0, 1],
        "to the dead one nothing changes: it cannot be reached"
    );
    world.run(5.0);
    assert!(
        world.changes.len() <= 2,
        "backups may follow, nothing else: {:?}",
        world.changes
    );
    world.live[1] = true;
    world.run(5.0);
    assert_eq!(world.path(0, 3), [0, 1, 3]);
    assert_eq!(world.alerts, 0);
}

#[test]
fn two_equal_ways_whose_delay_follows_the_load_change_once_a_minute_at_most() {
    let mut world = World::planned(diamond());
    let minutes = 10;
    for _ in 0..minutes * 600 {
        // Whichever way is used becomes the slower one.
        let by_one = world.path(0, 3).contains(&1);
        let (one, two) = if by_one { (30.0, 20.0) } else { (20.0, 30.0) };
        for end in [0, 3] {
            world.set_both(end, 1, one);
            world.set_both(end, 2, two);
        }
        world.set_both(1, 2, 80.0);
        world.step();
    }
    let flips = world.changes.len();
    assert!(
        (3..=minutes + 1).contains(&flips),
        "{flips} changes in {minutes} minutes"
    );
}

#[test]
fn noise_on_every_link_changes_no_tree() {
    use rand::{RngExt, SeedableRng};
    let calm = metric_costs(15, 3, 0.0);
    let mut world = World::planned(calm.clone());
    let mut rng = rand_pcg::Pcg64::seed_from_u64(1);
    for _ in 0..300 {
        world.cost = CostMatrix::from_fn(15, |i, j| calm.get(i, j) + rng.random_range(0.0..0.2));
        world.step();
    }
    assert!(world.changes.len() <= 1, "{:?}", world.changes);
}

#[test]
fn half_of_the_network_gone_at_once_is_not_believed_until_it_stays() {
    let full = metric_costs(8, 1, 0.0);
    let mut world = World::planned(full.clone());
    let before = world.planner.tables().cloned();
    world.cost = CostMatrix::new(8);
    let decision = world.step();
    assert!(
        !decision.changed
            && decision
                .alert
                .is_some_and(|alert| alert.contains("8 of 8 relays"))
    );
    world.run(2.0);
    assert_eq!(world.planner.tables().cloned(), before);
    world.cost = full.clone();
    assert_eq!(world.step().alert, None);
    assert_eq!(world.run(5.0), 0);

    // Half of the relays truly gone: believed after the grace time.
    world.live[4..].fill(false);
    let gone = world.now;
    assert!(world.step().alert.is_some());
    world.run(6.0);
    assert!(
        world
            .changes
            .iter()
            .all(|(at, _)| *at >= gone + Duration::from_secs(3))
    );
    assert_eq!(world.step().alert, None);

    // Every second link of the others gone, no relay dead.
    let mut world = World::planned(full);
    for a in 0..8 {
        for b in (0..8).filter(|b| (a + b) % 2 == 1) {
            world.cost.set(a, b, f64::INFINITY);
        }
    }
    assert!(
        world
            .step()
            .alert
            .is_some_and(|alert| alert.contains("32 of 56 links"))
    );
}

#[test]
fn one_of_three_relays_dying_is_believed() {
    let mut world = World::planned(CostMatrix::from_fn(3, |i, j| [20.0, 50.0][(i + j) / 3]));
    assert_eq!(world.path(1, 2), [1, 0, 2]);
    for other in 1..3 {
        world.set_both(0, other, f64::INFINITY);
    }
    let decision = world.step();
    assert!(decision.changed && decision.alert.is_none(), "{decision:?}");
    assert_eq!(world.path(1, 2), [1, 2]);
}

#[test]
fn a_new_relay_is_reached_after_the_hold_time() {
    let mut world = World::planned(diamond());
    let old = world.cost.clone();
    world.cost = CostMatrix::from_fn(5, |i, j| match i.max(j) {
        4 => 7.0,
        _ => old.get(i, j),
    });
    world.names.push("relay-4".into());
    world.live.push(true);
    world.run(3.0);
    assert_eq!(world.path(0, 4), [0, 4]);
    assert_eq!(world.path(4, 3), [4, 3]);
    assert_eq!(
        world.path(0, 3),
        [0, 4, 3],
        "and used, being on better ways"
    );
    let tables = world.tables();
    assert_eq!(
        (
            tables.trees[0].by_destination.len(),
            tables.backups[0].len(),
            tables.cost.len()
        ),
        (5, 5, 5)
    );
}

#[test]
fn another_meaning_of_an_index_starts_planning_afresh() {
    let mut world = World::planned(diamond());
    world.names[2] = "another".into();
    let decision = world.step();
    assert!(
        decision.changed && decision.reasons[0].starts_with("first plan"),
        "{decision:?}"
    );
}

#[test]
fn forbidding_transit_takes_effect_at_once() {
    let mut world = World::planned(diamond());
    world.rules[0].no_transit = vec![false, true];
    assert!(world.step().changed);
    assert_eq!(world.path(0, 3), [0, 2, 3]);
    assert_eq!(world.path(0, 1), [0, 1]);
}

#[test]
fn backups_over_links_that_are_gone_are_renewed() {
    let mut world = World::planned(metric_costs(8, 5, 0.0));
    let all = world.planner.tables().unwrap().clone();
    let tables = &all.profiles[0];
    // A link that no tree uses, but a backup does.
    let used = |from, to| {
        (0..8).any(|end| tables.next_hop(0, from, end) == Some(to))
            || all
                .out_trees
                .iter()
                .any(|tree| tree.previous_hop(to) == Some(from))
    };
    let (from, to) = (0..64)
        .map(|cell| (cell / 8, cell % 8))
        .find(|&(from, to)| {
            from != to
                && !used(from, to)
                && (0..8).any(|end| {
                    end != to && tables.backups[0].candidates(from, end).any(|hop| hop == to)
                })
        })
        .expect("backups use more links than trees");
    world.cost.set(from, to, f64::INFINITY);
    assert_eq!(world.run(4.0), 1);
    assert!(
        world.changes[0].1[0].contains("backups"),
        "{:?}",
        world.changes
    );
    let tables = world.tables();
    for end in (0..8).filter(|&end| end != from) {
        assert_eq!(tables.backups[0].candidates(from, end).count(), 3);
        assert!(tables.backups[0].candidates(from, end).all(|hop| hop != to));
    }
}

#[test]
fn random_trouble_never_leaves_a_path_over_a_dead_link_while_another_way_exists() {
    use rand::{RngExt, SeedableRng};
    let full = metric_costs(10, 2, 0.1);
    let mut rng = rand_pcg::Pcg64::seed_from_u64(4);
    let mut world = World::planned(full.clone());
    for _ in 0..600 {
        let (a, b) = (rng.random_range(0..10), rng.random_range(0..10));
        let broken = rng.random_bool(0.3);
        world.cost.set(
            a,
            b,
            if broken {
                f64::INFINITY
            } else {
                full.get(a, b)
            },
        );
        let decision = world.step();
        if decision.alert.is_some() {
            continue;
        }
        let best = crate::paths::best_paths(&world.cost, crate::MAX_TRANSIT);
        for from in 0..10 {
            for to in 0..10 {
                let path = world.path(from, to);
                let cost = crate::paths::path_cost(&world.cost, &path);
                let alive = !path.is_empty() && cost.is_finite();
                assert!(
                    alive || !best.cost(from, to).is_finite(),
                    "{from} to {to}: {path:?}"
                );
            }
        }
    }
}
