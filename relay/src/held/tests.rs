use tradewind_proto::control::{PlanName, ProfileTable, RelayInfo, TreeTable};

use super::*;

const WALL: SystemTime = SystemTime::UNIX_EPOCH;

fn name(epoch: u32, number: u32) -> PlanName {
    PlanName { epoch, number }
}

fn id(epoch: u16, number: u32) -> PlanId {
    PlanId { epoch, number }
}

fn part(epoch: u32, number: u32) -> PlanPart {
    PlanPart {
        plan: Some(name(epoch, number)),
        relays: vec![RelayInfo::default()],
        profiles: vec![ProfileTable {
            trees: vec![TreeTable {
                next_hop: vec![0],
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn all(number: u32, order: u64) -> Activate {
    Activate {
        plan: Some(name(1, number)),
        order,
        ..Default::default()
    }
}

fn share(number: u32, share_permille: u32, rest: u32, order: u64) -> Activate {
    Activate {
        share_permille,
        rest: Some(name(1, rest)),
        ..all(number, order)
    }
}

#[allow(clippy::disallowed_methods)] // any instant will do
fn start() -> Instant {
    Instant::now()
}

/// Registered in epoch 1 and holding plans 1.1 to 1.`count`.
fn held(count: u32, now: Instant) -> Held {
    let mut held = Held::default();
    assert!(held.register(0, 1));
    for number in 1..=count {
        held.hold(&part(1, number), now).expect("a good plan");
    }
    held
}

fn stamped(held: &Held) -> (u32, u16, u32) {
    let Stamping { plan, share, rest } = held.tables.stamping;
    (plan.number, share, rest.number)
}

#[test]
fn a_rollout_grows_and_is_rolled_back_by_later_orders() {
    let mut held = held(2, start());
    for (order, expected) in [
        (all(1, 1), (1, 1_000, 0)),
        (share(2, 50, 1, 2), (2, 50, 1)),
        (share(2, 250, 1, 3), (2, 250, 1)),
        (all(1, 4), (1, 1_000, 0)),
        (
            Activate {
                share_permille: 1_000,
                ..all(2, 5)
            },
            (2, 1_000, 0),
        ),
    ] {
        assert_eq!(held.activate(&order), Activation::Done);
        assert_eq!(stamped(&held), expected);
    }
}

#[test]
fn orders_in_any_sequence_and_any_number_of_times_end_with_the_last_one() {
    let orders = [
        all(1, 1),
        share(2, 50, 1, 2),
        all(1, 3),
        share(3, 250, 1, 4),
    ];
    // Every sequence of the four, each order twice.
    for sequence in 0..24_usize {
        let mut left: Vec<_> = orders.to_vec();
        let mut held = held(3, start());
        let mut code = sequence;
        let mut latest = 0;
        while !left.is_empty() {
            let count = left.len();
            let order = left.remove(code % count);
            code /= count;
            for _ in 0..2 {
                let expected = if order.order > latest {
                    Activation::Done
                } else {
                    Activation::Late
                };
                assert_eq!(held.activate(&order), expected);
                latest = latest.max(order.order);
            }
        }
        assert_eq!(stamped(&held), (3, 250, 1));
    }
}

#[test]
fn a_controller_without_orders_only_goes_forward() {
    let mut held = held(3, start());
    assert_eq!(held.activate(&all(2, 0)), Activation::Done);
    assert_eq!(held.activate(&all(1, 0)), Activation::Late);
    assert_eq!(held.activate(&all(3, 0)), Activation::Done);
    assert_eq!(stamped(&held), (3, 1_000, 0));
}

#[test]
fn the_links_of_the_newest_plan_are_in_use_before_it_is_in_force() {
    let now = start();
    let mut held = held(1, now);
    let in_use = |held: &Held| -> Vec<u32> {
        let plans = held.tables.plans_in_use();
        plans.map(|plan| plan.id.number).collect()
    };
    held.activate(&all(1, 1));
    assert_eq!(in_use(&held), [1]);
    held.hold(&part(1, 2), now).expect("a good plan");
    held.hold(&part(1, 3), now).expect("a good plan");
    assert_eq!(in_use(&held), [1, 3]);
    held.activate(&share(3, 50, 1, 2));
    assert_eq!(in_use(&held), [3, 1]);
    held.activate(&all(3, 3));
    assert_eq!(in_use(&held), [3]);
}

#[test]
fn an_order_that_cannot_be_followed_changes_nothing() {
    let mut held = held(2, start());
    held.activate(&all(1, 1));
    for bad in [
        all(9, 2),
        Activate::default(),
        share(2, 50, 9, 2),
        share(2, 1_001, 1, 2),
        Activate {
            rest: None,
            ..share(2, 50, 1, 2)
        },
    ] {
        assert!(matches!(held.activate(&bad), Activation::Refused(_)));
        assert_eq!(stamped(&held), (1, 1_000, 0));
    }
    // It did not use up the order either: the plan may have been late.
    assert_eq!(held.activate(&share(2, 50, 1, 2)), Activation::Done);
}

#[test]
fn a_controller_of_an_older_epoch_overwrites_nothing_and_orders_count_anew_in_a_newer_one() {
    let mut held = held(2, start());
    held.activate(&all(2, 70));
    assert!(held.register(0, 2));
    assert!(!held.register(5, 1));
    assert_eq!(held.tables.me, RelayIndex(0));
    assert_eq!(held.hold(&part(1, 3), start()), Ok(None));
    assert_eq!(held.tables.plan(id(1, 3)).map(|plan| plan.id), None);
    // The first order of the new controller: back to what it knows to be good.
    assert_eq!(held.activate(&all(1, 1)), Activation::Done);
    assert_eq!(stamped(&held), (1, 1_000, 0));
    // A plan of a yet newer epoch shows that its controller has begun one.
    assert_eq!(held.hold(&part(3, 1), start()), Ok(Some(id(3, 1))));
    let first = Activate {
        plan: Some(name(3, 1)),
        order: 1,
        ..Default::default()
    };
    assert_eq!(held.activate(&first), Activation::Done);
    assert!(!held.register(0, 2));
}

#[test]
fn a_part_that_comes_again_is_acknowledged_again_and_not_taken_again() {
    let mut held = held(1, start());
    let mut other = part(1, 1);
    other.relays[0].name = "not what was said first".to_owned();
    assert_eq!(held.hold(&other, start()), Ok(Some(id(1, 1))));
    let name = |held: &Held| {
        held.tables
            .plan(id(1, 1))
            .map(|p| p.part.relays[0].name.clone())
    };
    assert_eq!(name(&held), Some(String::new()));
    assert!(held.hold(&PlanPart::default(), start()).is_err());
}

#[test]
fn the_last_eight_plans_stay_and_all_that_are_young_or_stamped_here_or_by_a_neighbour() {
    let now = start();
    let mut held = held(2, now);
    held.activate(&all(1, 1));
    let numbers =
        |held: &Held| -> Vec<u32> { held.tables.plans_held().map(|p| p.number).collect() };
    let add = |held: &mut Held, numbers: std::ops::RangeInclusive<u32>, after: u64| {
        for number in numbers {
            held.hold(&part(1, number), now + Duration::from_secs(after))
                .expect("a good plan");
        }
    };
    add(&mut held, 3..=12, 10);
    assert_eq!(
        numbers(&held),
        (1..=12).collect::<Vec<_>>(),
        "all are young"
    );
    add(&mut held, 13..=13, 35);
    // Plan 2 is old enough now; plan 1 is stamped here.
    assert_eq!(numbers(&held)[..3], [1, 3, 4]);
    held.note_stamped_elsewhere(id(1, 5));
    add(&mut held, 14..=14, 60);
    assert_eq!(numbers(&held)[..3], [1, 5, 6]);
    held.note_stamped_elsewhere(PlanId::NONE);
    add(&mut held, 15..=15, 120);
    assert_eq!(numbers(&held), [1, 8, 9, 10, 11, 12, 13, 14, 15]);
}

#[test]
fn there_is_a_bound_to_the_plans_that_others_make_us_hold() {
    let now = start();
    let mut held = held(3, now);
    held.activate(&all(2, 1));
    held.note_stamped_elsewhere(id(1, 1));
    for number in 4..=300 {
        held.hold(&part(1, number), now).expect("a good plan");
    }
    let numbers: Vec<u32> = held.tables.plans_held().map(|p| p.number).collect();
    assert_eq!(numbers.len(), MOST_HELD);
    assert_eq!(numbers[..3], [1, 2, 239]);
}

#[test]
fn a_restarted_relay_goes_on_with_the_same_stamping_and_takes_no_order_twice() {
    let now = start();
    let mut before = held(2, now);
    before.activate(&share(2, 250, 1, 9));
    let mut after = Held::default();
    after.restore(before.state.clone(), now, WALL);
    assert_eq!(stamped(&after), (2, 250, 1));
    assert_eq!(after.state, before.state);
    assert_eq!(after.activate(&all(1, 9)), Activation::Late);
    assert_eq!(after.activate(&all(1, 10)), Activation::Done);
}

#[test]
fn a_kept_state_without_its_other_half_or_of_an_older_version_stamps_the_plan_there_is() {
    let now = start();
    let mut before = held(2, now);
    before.activate(&share(2, 250, 1, 9));
    let mut damaged = before.state.clone();
    damaged.rest = None;
    let mut older = before.state.clone();
    (older.rest, older.stamping) = (None, None);
    for state in [damaged, older] {
        let mut after = Held::default();
        after.restore(state, now, WALL);
        assert_eq!(stamped(&after), (2, 1_000, 0));
    }
    let mut nothing = Held::default();
    nothing.restore(HeldState::default(), now, WALL);
    assert_eq!(nothing.tables.active, PlanId::NONE);
}

fn revocation(user: &str, until: u64) -> control::Revocation {
    control::Revocation {
        app: "chat".to_owned(),
        user: user.to_owned(),
        not_after_unix_s: 50,
        until_unix_s: until,
        ..Default::default()
    }
}

#[test]
fn revocations_add_up_are_lifted_and_kept_until_they_are_over() {
    let at = |unix_s| WALL + Duration::from_secs(unix_s);
    let mut held = Held::default();
    let users = |held: &Held| -> Vec<String> {
        let all = held.tables.revoked.iter();
        all.map(|one| one.what.name().to_owned()).collect()
    };
    let change = |revoked: &[control::Revocation]| control::Revocations {
        revoked: revoked.to_vec(),
        ..Default::default()
    };
    held.take_revocations(
        change(&[revocation("ann", 100), revocation("ben", 200)]),
        at(60),
    );
    held.take_revocations(
        change(&[revocation("cem", 300), revocation("", 300)]),
        at(60),
    );
    assert_eq!(users(&held), ["ann", "ben", "cem"]);
    let lifted = control::Revocations {
        lifted: vec![revocation("ben", 0)],
        ..Default::default()
    };
    held.take_revocations(lifted, at(60));
    assert_eq!(users(&held), ["ann", "cem"]);
    let mut restarted = Held::default();
    restarted.restore(held.state.clone(), start(), at(60));
    assert_eq!(restarted.tables.revoked, held.tables.revoked);
    restarted.restore(held.state.clone(), start(), at(200));
    assert_eq!(users(&restarted), ["cem"]);
    let whole = control::Revocations {
        whole: true,
        ..change(&[revocation("dee", 300)])
    };
    held.take_revocations(whole, at(60));
    assert_eq!(users(&held), ["dee"]);
}
