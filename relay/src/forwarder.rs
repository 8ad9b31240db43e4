//! Where a packet goes next. Pure: a header, the tables, and the state of the neighbours.
//!
//! The second of the three rooms of a packet's way: *link or session → forwarder → queue*.

use tradewind_proto::{
    DropReason, Locator, RelayIndex, Uplink,
    packet::{self, Destination, LinkHeader},
};
use tradewind_routing::{LinkHealth, NextHop, Situation, next_hop};

use crate::tables::Tables;

/// Links a packet may take at most: 5 by tree (4 relays of transit) and 2 deflections.
pub(crate) const HOP_LIMIT: u8 = 7;

// The rule and the header's bits are of two crates that do not know each other.
const _: () = assert!(tradewind_routing::MAX_DEFLECTIONS == packet::MAX_DEFLECTIONS);

/// Why a packet has left its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deflection {
    /// The next hop is down.
    Failure,
    /// The next hop is far worse than normal, and another way is better now.
    Brownout,
}

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is for a session here, or for this relay itself.
    Local(Locator),
    /// Send it over a link to this relay.
    Link {
        /// The next relay.
        next: RelayIndex,
        /// The uplink to take to it while that is as good as the others.
        uplink: Uplink,
        /// The packet has left its tree here.
        deflected: Option<Deflection>,
    },
    /// It goes no further.
    Drop(DropReason),
}

/// Decides where a packet goes next; costs are microseconds-equivalents.
///
/// A packet follows the tree of the plan it is stamped with, by the rule of
/// [`tradewind_routing::next_hop`]. When the next hop is down, or degraded and dearer than a
/// candidate, the packet is deflected: to one of the plan's candidates, or where all of them are down
/// to any neighbour, and from there directly to the destination; at most twice, never to a relay it
/// has passed (so nothing can loop), and only to relays that the rule set of its tree lets it cross.
/// The direct link to the destination crosses nobody:
/// it is within every rule set, and the last resort. A packet with a plan that is not held here goes
/// by the direct link.
pub(crate) fn route(
    header: &LinkHeader,
    tables: &Tables,
    neighbour: impl Fn(RelayIndex) -> LinkHealth,
) -> Verdict {
    let Destination::Session(destination) = header.destination else {
        // Groups are not formed yet: no ingress edge stamps such a packet.
        return Verdict::Drop(DropReason::Unexpected);
    };
    let target = destination.relay;
    if target == tables.me {
        return Verdict::Local(destination);
    }
    if header.hop_limit == 0 {
        return Verdict::Drop(DropReason::HopLimit);
    }
    let plan = tables.plan(header.plan);
    let hop = plan.and_then(|plan| plan.hop(header.profile, header.tree, target));
    let (candidates, spares) = plan.map_or((&[][..], &[][..]), |plan| {
        let rules = plan.rules_of(header.profile, header.tree);
        let candidates = plan.candidates(header.profile, rules, target);
        (candidates, plan.spares(header.profile, rules))
    });
    let decision = next_hop(
        &Situation {
            destination: target,
            by_tree: hop.map(|hop| (hop.next, f64::from(hop.cost_us))),
            deflections: header.deflections,
        },
        candidates.iter().map(|candidate| match candidate.cost_us {
            // Nobody knows that it would be cheaper than a degraded link.
            0 => (candidate.relay, f64::INFINITY),
            cost_us => (candidate.relay, f64::from(cost_us)),
        }),
        spares.iter().copied(),
        &neighbour,
        |relay| relay == tables.me || header.has_visited(relay),
    );
    match decision {
        NextHop::Forward {
            next,
            deflected: false,
        } => Verdict::Link {
            next,
            uplink: hop
                .filter(|hop| hop.next == next && header.deflections == 0)
                .map_or(Uplink(0), |hop| hop.uplink),
            deflected: None,
        },
        NextHop::Forward { next, .. } => {
            let by_tree = hop.filter(|_| header.deflections == 0);
            let way = by_tree.map_or(target, |hop| hop.next);
            let reason = match neighbour(way) {
                LinkHealth::Degraded { .. } => Deflection::Brownout,
                _ => Deflection::Failure,
            };
            Verdict::Link {
                next,
                uplink: Uplink(0),
                deflected: Some(reason),
            }
        }
        NextHop::Loop => Verdict::Drop(DropReason::Loop),
        NextHop::NoWay => Verdict::Drop(DropReason::NoWay),
    }
}

#[cfg(test)]
mod tests {
    use tradewind_proto::{
        Class, PlanId, Tenant,
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
            tenant: Tenant::NONE,
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
}
