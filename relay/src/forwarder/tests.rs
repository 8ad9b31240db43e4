use tradewind_proto::{
    Class, PlanId,
    control::{Backup, PlanName, PlanPart, ProfileTable, RelayInfo, TreeTable},
    packet::{Kind, MAX_DEFLECTIONS, MAX_PASSED},
};

use super::*;
use crate::plan::Plan;

const ME: RelayIndex = RelayIndex(0);

/// Relay 0's part of a plan over relays 0 to 4 in which relay 3 is reached through 1.
fn tables() -> Tables {
    let part = PlanPart {
        plan: Some(PlanName {
            epoch: 1,
            number: 1,
        }),
        relays: (0..5)
            .map(|index| RelayInfo {
                index,
                name: format!("r{index}"),
                ..Default::default()
            })
            .collect(),
        profiles: vec![ProfileTable {
            profile: 0,
            trees: vec![
                TreeTable {
                    next_hop: vec![0, 1, 2, 1, 65_535],
                    cost_us: vec![0, 10_000, 10_000, 30_000, 0],
                    ..Default::default()
                },
                // Relay 2 must not be crossed.
                TreeTable {
                    next_hop: vec![0, 1, 2, 1, 4],
                    rules: 1,
                    ..Default::default()
                },
            ],
            backups: vec![Backup {
                destination: 3,
                relays: vec![1, 2, 4],
                cost_us: vec![30_000, 45_000, 60_000],
                ..Default::default()
            }],
            restricted_backups: vec![Backup {
                destination: 3,
                relays: vec![1, 4],
                rules: 1,
                ..Default::default()
            }],
            may_cross: vec![vec![0b1_1111], vec![0b1_1011]],
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut tables = Tables::default();
    tables.me = ME;
    tables.insert(Plan::from_part(&part).expect("a good plan"));
    tables
}

fn header(to: u16) -> LinkHeader {
    LinkHeader {
        kind: Kind::Media,
        class: Class::Audio,
        profile: 0,
        tree: 0,
        deflections: 0,
        trace: false,
        path_change: false,
        hop_limit: HOP_LIMIT,
        plan: PlanId {
            epoch: 1,
            number: 1,
        },
        age_us: 0,
        sender: Locator {
            relay: RelayIndex(9),
            slot: 1,
            generation: 1,
        },
        destination: Destination::Session(Locator {
            relay: RelayIndex(to),
            slot: 1,
            generation: 1,
        }),
        passed: [RelayIndex::NONE; MAX_PASSED],
        uplink: 0,
        flow: 1,
        sequence: 1,
        layer: 0,
        tenant: tradewind_proto::Tenant::NONE,
    }
}

fn link(next: u16, deflected: Option<Deflection>) -> Verdict {
    Verdict::Link {
        next: RelayIndex(next),
        uplink: Uplink(0),
        deflected,
    }
}

fn all_up(_: RelayIndex) -> LinkHealth {
    LinkHealth::Up
}

/// All are up but these.
fn down(dead: &[u16]) -> impl Fn(RelayIndex) -> LinkHealth + '_ {
    |relay| {
        if dead.contains(&relay.0) {
            LinkHealth::Down
        } else {
            LinkHealth::Up
        }
    }
}

#[test]
fn a_packet_follows_the_tree_of_its_plan() {
    assert_eq!(route(&header(3), &tables(), all_up), link(1, None));
    assert!(matches!(
        route(&header(0), &tables(), all_up),
        Verdict::Local(_)
    ));
}

#[test]
fn a_packet_of_an_unknown_plan_goes_by_the_direct_link() {
    let mut packet = header(3);
    packet.plan.number = 7;
    assert_eq!(route(&packet, &tables(), all_up), link(3, None));
}

#[test]
fn a_dead_next_hop_deflects_to_the_backup_and_from_there_directly() {
    let dead = down(&[1]);
    assert_eq!(
        route(&header(3), &tables(), dead),
        link(2, Some(Deflection::Failure))
    );
    let mut deflected = header(3);
    deflected.deflections = 1;
    assert_eq!(route(&deflected, &tables(), all_up), link(3, None));
}

#[test]
fn a_deflection_never_goes_back_to_a_relay_the_packet_has_passed() {
    let mut packet = header(3);
    assert!(packet.pass(RelayIndex(2)));
    let dead = down(&[1]);
    assert_eq!(
        route(&packet, &tables(), dead),
        link(4, Some(Deflection::Failure))
    );
}

#[test]
fn a_packet_of_a_restricted_tree_is_deflected_within_its_rules() {
    let mut packet = header(3);
    packet.tree = 1;
    let dead = down(&[1]);
    assert_eq!(
        route(&packet, &tables(), dead),
        link(4, Some(Deflection::Failure))
    );
    // Nobody but the destination itself is left: by the direct link, which crosses nobody.
    let dead = down(&[1, 4]);
    assert_eq!(
        route(&packet, &tables(), dead),
        link(3, Some(Deflection::Failure))
    );
}

#[test]
fn where_all_backups_are_down_whoever_else_may_be_crossed_is_asked() {
    // There is no way and no backup towards 4.
    let dead = down(&[4]);
    let spare = Some(Deflection::Failure);
    assert_eq!(route(&header(4), &tables(), dead), link(1, spare));
    assert_eq!(route(&header(4), &tables(), down(&[4, 1])), link(2, spare));
    // Not relay 2, when the packet must not cross it.
    let mut restricted = header(4);
    restricted.tree = 1;
    assert_eq!(route(&restricted, &tables(), down(&[4, 1])), link(3, spare));
    let verdict = route(&restricted, &tables(), down(&[4, 1, 3]));
    assert_eq!(verdict, Verdict::Drop(DropReason::NoWay));
}

#[test]
fn a_brownout_deflects_only_to_what_is_cheaper_than_the_link_is_now() {
    let degraded = |extra: f64| {
        move |relay: RelayIndex| match relay.0 {
            1 => LinkHealth::Degraded { extra },
            _ => LinkHealth::Up,
        }
    };
    // 30 ms by the tree and 45 ms over relay 2.
    let brownout = Some(Deflection::Brownout);
    assert_eq!(
        route(&header(3), &tables(), degraded(15_001.0)),
        link(2, brownout)
    );
    assert_eq!(
        route(&header(3), &tables(), degraded(15_000.0)),
        link(1, None)
    );
    // Where all are bad, the bad link is used.
    let all = |_: RelayIndex| LinkHealth::Degraded { extra: 90_000.0 };
    assert_eq!(route(&header(3), &tables(), all), link(1, None));
    // A packet that may not be deflected any more is not lost for it.
    let mut tired = header(3);
    tired.deflections = MAX_DEFLECTIONS;
    assert_eq!(route(&tired, &tables(), all), link(3, None));
}

#[test]
fn a_degraded_backup_is_better_than_none() {
    let state = |relay: RelayIndex| match relay.0 {
        1 | 3 => LinkHealth::Down,
        _ => LinkHealth::Degraded { extra: 1.0 },
    };
    assert_eq!(
        route(&header(3), &tables(), state),
        link(2, Some(Deflection::Failure))
    );
}

#[test]
fn after_two_deflections_there_is_no_way() {
    let mut packet = header(3);
    packet.deflections = MAX_DEFLECTIONS;
    let dead = down(&[3]);
    assert_eq!(
        route(&packet, &tables(), dead),
        Verdict::Drop(DropReason::NoWay)
    );
}

#[test]
fn a_used_up_hop_limit_and_a_loop_end_the_way() {
    let mut packet = header(3);
    packet.hop_limit = 0;
    assert_eq!(
        route(&packet, &tables(), all_up),
        Verdict::Drop(DropReason::HopLimit)
    );
    let mut packet = header(3);
    assert!(packet.pass(RelayIndex(1)));
    assert_eq!(
        route(&packet, &tables(), all_up),
        Verdict::Drop(DropReason::Loop)
    );
}

mod groups {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tradewind_proto::{
        GroupKey,
        control::{OutHop, OutTreePart},
    };

    use super::*;

    /// A network of `parents.len()` relays in which what enters at relay 0 takes the tree of `parents`.
    fn world(parents: &[u16]) -> Vec<Tables> {
        let count = parents.len() as u16;
        (0..count).map(|own| relay(own, parents)).collect()
    }

    fn relay(own: u16, parents: &[u16]) -> Tables {
        let count = parents.len() as u16;
        let mut hops: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for to in 1..count {
            let mut at = to;
            while at != 0 && parents[usize::from(at)] != own {
                at = parents[usize::from(at)];
            }
            if at != 0 && to != own {
                hops.entry(at).or_default().push(u32::from(to));
            }
        }
        let hop = |(next, destinations)| OutHop {
            next: u32::from(next),
            uplink: 0,
            destinations,
        };
        let others = (0..u32::from(count)).filter(|&to| to != u32::from(own));
        let part = PlanPart {
            plan: Some(PlanName {
                epoch: 1,
                number: 1,
            }),
            relays: (0..u32::from(count))
                .map(|index| RelayInfo {
                    index,
                    ..Default::default()
                })
                .collect(),
            profiles: vec![ProfileTable {
                trees: vec![TreeTable {
                    next_hop: (0..u32::from(count)).collect(),
                    ..Default::default()
                }],
                backups: others
                    .map(|destination| Backup {
                        destination,
                        relays: (0..3)
                            .map(|n| (destination + n) % u32::from(count))
                            .collect(),
                        ..Default::default()
                    })
                    .collect(),
                may_cross: vec![vec![0xff; usize::from(count).div_ceil(8)]],
                out_trees: vec![OutTreePart {
                    origin: 0,
                    hops: hops.into_iter().map(hop).collect(),
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut tables = Tables::default();
        tables.me = RelayIndex(own);
        tables.insert(Plan::from_part(&part).expect("a good plan"));
        tables
    }

    /// What a packet to a group has done.
    #[derive(Default)]
    struct Walk {
        copies: BTreeMap<u16, u32>,
        links: BTreeMap<(u16, u16), u32>,
        lost: Vec<u16>,
        deflected: bool,
    }

    fn walk(tables: &[Tables], set: &RelaySet, dead: &dyn Fn(u16, u16) -> bool) -> Walk {
        let mut done = Walk::default();
        let mut first = header(1);
        first.sender.relay = RelayIndex(0);
        first.destination = Destination::Group(GroupKey(1));
        let mut packets = vec![(0, first, set.clone())];
        let mut result = Split::default();
        while let Some((at, header, relays)) = packets.pop() {
            let own = &tables[usize::from(at)];
            let health = |next: RelayIndex, _| match dead(at, next.0) {
                true => LinkHealth::Down,
                false => LinkHealth::Up,
            };
            split(&header, &relays, own, health, &mut result);
            if result.local {
                *done.copies.entry(at).or_default() += 1;
            }
            done.lost
                .extend(result.dropped.iter().map(|(relay, _)| relay.0));
            let mut all: RelaySet = result.copies.iter().flat_map(|c| c.relays.iter()).collect();
            assert_eq!(
                all.len(),
                result.copies.iter().map(|c| c.relays.len()).sum::<usize>()
            );
            all.extend(result.dropped.iter().map(|(relay, _)| *relay));
            if result.local {
                all.insert(RelayIndex(at));
            }
            assert_eq!(all, relays, "each relay is in one part of the split");
            for copy in result.copies.drain(..) {
                let mut header = header;
                assert!(at == 0 || header.pass(RelayIndex(at)), "it walks too far");
                header.hop_limit -= 1;
                header.deflections += u8::from(copy.deflected.is_some());
                done.deflected |= copy.deflected.is_some();
                *done.links.entry((at, copy.next.0)).or_default() += 1;
                packets.push((copy.next.0, header, copy.relays));
            }
        }
        done
    }

    /// A tree in which no relay is more than 5 links from relay 0, and members of a group.
    fn trees() -> impl Strategy<Value = (Vec<u16>, Vec<bool>)> {
        (2..40_usize).prop_flat_map(|count| {
            let tree = prop::collection::vec(any::<u16>(), count).prop_map(|draws| {
                let mut parents = vec![0_u16];
                let mut depths = vec![0];
                for (index, draw) in draws.iter().enumerate().skip(1) {
                    let parent = usize::from(*draw) % index;
                    let parent = if depths[parent] >= 5 { 0 } else { parent };
                    parents.push(parent as u16);
                    depths.push(depths[parent] + 1);
                }
                parents
            });
            (tree, prop::collection::vec(any::<bool>(), count))
        })
    }

    fn set_of(members: &[bool]) -> RelaySet {
        let members = members
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, member)| **member);
        members.map(|(index, _)| RelayIndex(index as u16)).collect()
    }

    proptest! {
        #[test]
        fn each_relay_of_the_set_gets_one_copy_over_as_few_links_as_can_be(
            (parents, members) in trees(),
        ) {
            let set = set_of(&members);
            let done = walk(&world(&parents), &set, &|_, _| false);
            prop_assert!(done.copies.keys().copied().eq(set.iter().map(|relay| relay.0)));
            prop_assert!(done.copies.values().all(|&copies| copies == 1));
            // The links of the tree that lead to members, each once.
            let mut links = BTreeMap::new();
            for relay in set.iter() {
                let mut at = relay.0;
                while at != 0 {
                    let parent = parents[usize::from(at)];
                    links.insert((parent, at), 1);
                    at = parent;
                }
            }
            prop_assert_eq!(done.links, links);
            prop_assert!(done.lost.is_empty() && !done.deflected);
        }

        #[test]
        fn with_dead_links_nobody_gets_two_copies_and_nothing_loops(
            (parents, members) in trees(),
            dead in prop::collection::btree_set((0..40_u16, 0..40_u16), 0..60),
        ) {
            let set = set_of(&members);
            let down = |from: u16, to: u16| dead.contains(&(from, to));
            let done = walk(&world(&parents), &set, &down);
            prop_assert!(done.copies.values().all(|&copies| copies == 1));
            let mut reached: RelaySet = done.copies.keys().copied().map(RelayIndex).collect();
            reached.extend(done.lost.iter().copied().map(RelayIndex));
            prop_assert_eq!(reached, set);
            prop_assert!(done.links.keys().all(|&(from, to)| !down(from, to)));
        }

        #[test]
        fn one_dead_relay_costs_nobody_else_its_copy((parents, members) in trees(), who in 1..40_u16) {
            let set = set_of(&members);
            let done = walk(&world(&parents), &set, &|_, to| to == who);
            let living = set.iter().filter(|relay| relay.0 != who).map(|relay| relay.0);
            // Two relays have nobody to go round by.
            if parents.len() > 2 {
                prop_assert!(living.eq(done.copies.keys().copied()));
            }
        }
    }

    #[test]
    fn without_the_plan_each_relay_is_sent_to_directly() {
        let tables = world(&[0, 0, 1, 2]);
        let set: RelaySet = [2, 3].map(RelayIndex).into_iter().collect();
        let mut packet = header(1);
        packet.sender.relay = RelayIndex(0);
        packet.plan.number = 9;
        let mut result = Split::default();
        split(
            &packet,
            &set,
            &tables[0],
            |_, _| LinkHealth::Up,
            &mut result,
        );
        let next: Vec<u16> = result.copies.iter().map(|copy| copy.next.0).collect();
        assert_eq!(next, [2, 3]);
    }
}
