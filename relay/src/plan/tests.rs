use tradewind_proto::control::{OutHop, OutTreePart, PlanName, RelayInfo, Selector};

use super::*;

/// A part of a plan over relays 2, 5 and 7, with two trees for everybody and a restricted one.
fn part() -> PlanPart {
    PlanPart {
        plan: Some(PlanName {
            epoch: 1,
            number: 4,
        }),
        relays: [2, 5, 7]
            .map(|index| RelayInfo {
                index,
                ..Default::default()
            })
            .to_vec(),
        profiles: vec![ProfileTable {
            profile: 0,
            trees: vec![
                tree(&[2, 5, 5], 0),
                tree(&[2, 5, 7], 0),
                tree(&[2, 7, NO_WAY], 2),
            ],
            backups: vec![backup(7, &[5, 7], 0)],
            weights: vec![0, 0, weights([1, 3, 0, 0])],
            restricted_backups: vec![backup(5, &[5], 2)],
            may_cross: vec![vec![0b111], vec![0], vec![0b010]],
            out_trees: vec![out_tree(7, &[(5, &[2, 5])]), out_tree(2, &[(7, &[5, 7])])],
        }],
        selectors: vec![
            Selector {
                app: "bank".to_owned(),
                group: "staff".to_owned(),
                rules: 2,
            },
            Selector {
                app: "clinic".to_owned(),
                group: String::new(),
                rules: 2,
            },
        ],
    }
}

fn tree(next_hop: &[u32], rules: u32) -> TreeTable {
    TreeTable {
        next_hop: next_hop.to_vec(),
        uplink: vec![0, 1, 0],
        cost_us: vec![0, 10_000, 20_000],
        rules,
    }
}

fn backup(destination: u32, relays: &[u32], rules: u32) -> Backup {
    Backup {
        destination,
        relays: relays.to_vec(),
        cost_us: (1..=relays.len() as u32).map(|i| 1_000 * i).collect(),
        rules,
    }
}

fn weights(weights: [u8; 4]) -> u32 {
    u32::from_le_bytes(weights)
}

fn plan() -> Plan {
    Plan::from_part(&part()).expect("a good plan")
}

fn next(plan: &Plan, profile: u8, tree: u8, to: u16) -> Option<u16> {
    plan.hop(profile, tree, RelayIndex(to)).map(|h| h.next.0)
}

#[test]
fn whoever_may_be_crossed_is_a_spare_nearest_first() {
    let plan = plan();
    let spares = |profile, rules| -> Vec<u16> {
        let spares = plan.spares(profile, rules).iter();
        spares.map(|relay| relay.0).collect()
    };
    // 5 is at 10 ms, 7 at 20; of 2, which is this relay, no cost is known.
    assert_eq!(spares(0, 0), [5, 7, 2]);
    assert_eq!(spares(0, 2), [5]);
    assert!(spares(0, 1).is_empty());
    // What economy has not is realtime's.
    assert_eq!(spares(1, 2), [5]);
}

#[test]
fn what_is_forbidden_to_economy_is_not_taken_from_realtime() {
    let mut part = part();
    part.profiles.push(ProfileTable {
        profile: 1,
        trees: vec![tree(&[2, 5, NO_WAY], 0), tree(&[2, 5, NO_WAY], 2)],
        backups: vec![backup(5, &[5], 0)],
        may_cross: vec![vec![0], vec![0], vec![0]],
        ..ProfileTable::default()
    });
    let plan = Plan::from_part(&part).expect("a good plan");
    assert_eq!(next(&plan, 1, 0, 7), None);
    assert!(plan.candidates(1, 0, RelayIndex(7)).is_empty());
    assert!(plan.spares(1, 0).is_empty());
    assert_eq!(plan.candidates(0, 0, RelayIndex(7)).len(), 2);
}

#[test]
fn each_tree_leads_its_own_way_with_its_uplink_and_cost() {
    let plan = plan();
    assert_eq!(next(&plan, 0, 0, 7), Some(5));
    assert_eq!(next(&plan, 0, 1, 7), Some(7));
    assert_eq!(next(&plan, 0, 2, 7), None);
    let hop = plan.hop(0, 0, RelayIndex(5)).expect("a way");
    assert_eq!((hop.uplink, hop.cost_us), (Uplink(1), 10_000));
    // Relays that the plan does not know, below and above those it does.
    assert_eq!(next(&plan, 0, 0, 3), None);
    assert_eq!(next(&plan, 0, 0, 8), None);
    assert_eq!(next(&plan, 0, 0, u16::MAX), None);
}

#[test]
fn what_the_plan_has_not_falls_back_to_realtime_and_the_first_tree() {
    let plan = plan();
    assert_eq!(next(&plan, 1, 1, 7), Some(7));
    assert_eq!(next(&plan, 3, 0, 7), Some(5));
    assert_eq!(next(&plan, 0, 3, 7), Some(5));
    assert_eq!(plan.candidates(1, 2, RelayIndex(5)).len(), 1);
    // An economy profile of its own, without a restricted tree: the rules count for more.
    let mut economy = part();
    economy.profiles.push(ProfileTable {
        profile: 1,
        trees: vec![tree(&[2, 5, 7], 0)],
        ..Default::default()
    });
    let plan = Plan::from_part(&economy).expect("a good plan");
    assert_eq!(next(&plan, 1, 0, 7), Some(7));
    assert_eq!(plan.entry(0, 1, RelayIndex(7), |_| 3), (1, 0));
    assert_eq!(plan.entry(2, 1, RelayIndex(7), |_| 3), (0, 2));
}

#[test]
fn backups_are_kept_apart_by_rule_set_and_carry_their_costs() {
    let plan = plan();
    let list = |rules, to| -> Vec<(u16, u32)> {
        plan.candidates(0, rules, RelayIndex(to))
            .iter()
            .map(|candidate| (candidate.relay.0, candidate.cost_us))
            .collect()
    };
    assert_eq!(list(0, 7), [(5, 1_000), (7, 2_000)]);
    assert_eq!(list(2, 5), [(5, 1_000)]);
    assert_eq!(list(2, 7), []);
    assert_eq!(list(0, 9), []);
}

#[test]
fn the_weights_share_out_the_draws_and_no_weights_are_the_first_tree() {
    let plan = plan();
    let drawn: Vec<u8> = (0..4)
        .map(|at| {
            let draw = |of| {
                assert_eq!(of, 4);
                at
            };
            plan.entry(0, 0, RelayIndex(7), draw).1
        })
        .collect();
    assert_eq!(drawn, [0, 1, 1, 1]);
    assert_eq!(plan.entry(0, 0, RelayIndex(5), |_| 0), (0, 0));
    // A tree that has no way to the destination carries nothing there.
    let mut pathless = part();
    pathless.profiles[0].trees[1].next_hop[2] = NO_WAY;
    let plan = Plan::from_part(&pathless).expect("a good plan");
    assert_eq!(plan.entry(0, 0, RelayIndex(7), |of| of - 1), (0, 0));
}

#[test]
fn selectors_of_groups_are_not_for_what_is_sent_to_one_user() {
    let plan = plan();
    assert_eq!(plan.rules_for_app("clinic"), 2);
    assert_eq!(plan.rules_for_app("bank"), 0);
    assert_eq!(plan.rules_for_app("chat"), 0);
    let mut everybody = part();
    everybody.selectors[1].app.clear();
    let plan = Plan::from_part(&everybody).expect("a good plan");
    assert_eq!(plan.rules_for_app("chat"), 2);
}

#[test]
fn a_part_that_contradicts_itself_is_refused() {
    type Change = fn(&mut PlanPart);
    let cases: [(&str, Change); 20] = [
        ("no plan number", |p| p.plan = None),
        ("out of range", |p| p.relays[2].index = 65_535),
        ("ascending", |p| p.relays.swap(0, 1)),
        ("comes twice", |p| p.profiles.push(p.profiles[0].clone())),
        ("four trees", |p| {
            p.profiles[0].trees = vec![tree(&[2, 5, 5], 0); 5];
        }),
        ("not everybody's", |p| p.profiles[0].trees[0].rules = 1),
        ("do not come first", |p| p.profiles[0].trees.swap(1, 2)),
        ("two trees of one", |p| p.profiles[0].trees[1].rules = 2),
        ("rule set out of range", |p| {
            p.profiles[0].trees[2].rules = 4;
        }),
        ("one entry per relay", |p| {
            p.profiles[0].trees[0].next_hop.truncate(2);
        }),
        ("one entry per relay", |p| {
            p.profiles[0].trees[0].cost_us.truncate(2);
        }),
        ("unknown relay", |p| {
            p.profiles[0].trees[0].next_hop[1] = 3;
        }),
        ("unknown relay", |p| {
            p.profiles[0].trees[0].next_hop[1] = 70_000;
        }),
        ("uplink", |p| p.profiles[0].trees[0].uplink[1] = 256),
        ("weights per relay", |p| {
            p.profiles[0].weights.truncate(1);
        }),
        ("a weight for a tree", |p| {
            p.profiles[0].weights[2] = weights([1, 0, 1, 0]);
        }),
        ("for an unknown relay", |p| {
            p.profiles[0].backups[0].destination = 6;
        }),
        ("two lists", |p| {
            let again = p.profiles[0].backups[0].clone();
            p.profiles[0].backups.push(again);
        }),
        ("without a rule set", |p| {
            p.profiles[0].restricted_backups[0].rules = 0;
        }),
        ("without a tree", |p| p.selectors[1].rules = 1),
    ];
    for (reason, change) in cases {
        let mut bad = part();
        change(&mut bad);
        let error = Plan::from_part(&bad).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error} for {reason}");
    }
}

fn out_tree(origin: u32, hops: &[(u32, &[u32])]) -> OutTreePart {
    OutTreePart {
        origin,
        hops: hops
            .iter()
            .map(|&(next, destinations)| OutHop {
                next,
                uplink: 1,
                destinations: destinations.to_vec(),
            })
            .collect(),
    }
}

#[test]
fn what_goes_to_a_group_takes_the_out_tree_of_its_origin_or_the_tree_of_its_rules() {
    let plan = Plan::from_part(&part()).expect("a good plan");
    let next = |tree, origin, to| {
        let hop = plan.hop_to_group(0, tree, RelayIndex(origin), RelayIndex(to));
        hop.map(|hop| (hop.next.0, hop.uplink.0))
    };
    assert_eq!(next(0, 2, 5), Some((7, 1)));
    assert_eq!(next(0, 7, 5), Some((5, 1)));
    assert_eq!(next(0, 5, 7), None, "nothing of that origin comes by here");
    assert_eq!(next(0, 999, 7), None);
    // Tree 2 obeys rule set 2.
    assert_eq!(next(2, 2, 5).map(|hop| hop.0), Some(7));
    assert_eq!(next(2, 2, 7), None);
    assert_eq!(plan.rules_for_group("bank", "staff"), 2);
    assert_eq!(plan.rules_for_group("bank", "all"), 0);
    assert_eq!(plan.rules_for_group("clinic", "all"), 2);
    assert_eq!(plan.entry_to_group(2), (0, 2));
}

#[test]
fn an_out_tree_that_contradicts_itself_is_refused() {
    let refused = |change: fn(&mut ProfileTable)| {
        let mut part = part();
        change(&mut part.profiles[0]);
        Plan::from_part(&part).is_err()
    };
    assert!(refused(|table| table
        .out_trees
        .push(out_tree(2, &[(7, &[7])]))));
    assert!(refused(|table| table
        .out_trees
        .push(out_tree(5, &[(2, &[2, 7]), (7, &[7])]))));
    assert!(refused(|table| table
        .out_trees
        .push(out_tree(5, &[(3, &[7])]))));
    assert!(refused(|table| table
        .out_trees
        .push(out_tree(5, &[(7, &[3])]))));
    assert!(refused(|table| table
        .out_trees
        .push(out_tree(3, &[(7, &[7])]))));
    assert!(refused(|table| table
        .out_trees
        .push(out_tree(5, &[(7, &[5, 7])]))));
}
