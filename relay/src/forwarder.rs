//! Where a packet goes next. Pure: a header, the tables, and which links are up.
//!
//! The second of the three rooms of a packet's way: *link or session → forwarder → queue*.

use tradewind_proto::{
    DropReason, Locator, RelayIndex,
    packet::{Destination, LinkHeader, MAX_DEFLECTIONS},
};

use crate::tables::Tables;

/// Links a packet may take at most: 5 by tree (4 relays of transit) and 2 deflections.
pub(crate) const HOP_LIMIT: u8 = 7;

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is for a session here, or for this relay itself.
    Local(Locator),
    /// Send it over the link to this relay.
    Link {
        /// The next relay.
        next: RelayIndex,
        /// The packet has left its tree here.
        deflected: bool,
    },
    /// It goes no further.
    Drop(DropReason),
}

/// Decides where a packet goes next.
///
/// A packet follows the tree of the plan it is stamped with. When the next hop's link is down it is
/// deflected: to the plan's backup, and from there directly to the destination; at most twice, and
/// never to a relay it has passed (so nothing can loop). A packet with a plan that is not held here
/// goes by the direct link.
pub(crate) fn route(
    header: &LinkHeader,
    tables: &Tables,
    is_up: impl Fn(RelayIndex) -> bool,
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
    let by_tree = if header.deflections == 0 {
        plan.and_then(|plan| plan.next_hop(header.profile, header.tree, target))
            .unwrap_or(target)
    } else {
        target
    };
    if header.has_visited(by_tree) {
        return Verdict::Drop(DropReason::Loop);
    }
    if is_up(by_tree) {
        return Verdict::Link {
            next: by_tree,
            deflected: false,
        };
    }
    if header.deflections >= MAX_DEFLECTIONS {
        return Verdict::Drop(DropReason::NoWay);
    }
    let usable = |&relay: &RelayIndex| {
        relay != by_tree && relay != tables.me && !header.has_visited(relay) && is_up(relay)
    };
    let backups = plan.map_or(&[][..], |plan| plan.backups(target));
    match backups.iter().copied().chain([target]).find(usable) {
        Some(next) => Verdict::Link {
            next,
            deflected: true,
        },
        None => Verdict::Drop(DropReason::NoWay),
    }
}

#[cfg(test)]
mod tests {
    use tradewind_proto::{
        Class, PlanId,
        control::{Backup, PlanName, PlanPart, ProfileTable, RelayInfo, TreeTable},
        packet::{Kind, MAX_PASSED},
    };

    use super::*;
    use crate::tables::Plan;

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
                trees: vec![TreeTable {
                    next_hop: vec![0, 1, 2, 1, 65_535],
                    ..Default::default()
                }],
                backups: vec![Backup {
                    destination: 3,
                    relays: vec![1, 2, 4],
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut tables = Tables::default();
        tables.me = ME;
        tables.hold(Plan::from_part(&part).expect("a good plan"));
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
        }
    }

    fn link(next: u16, deflected: bool) -> Verdict {
        Verdict::Link {
            next: RelayIndex(next),
            deflected,
        }
    }

    #[test]
    fn a_packet_follows_the_tree_of_its_plan() {
        assert_eq!(route(&header(3), &tables(), |_| true), link(1, false));
        assert!(matches!(
            route(&header(0), &tables(), |_| true),
            Verdict::Local(_)
        ));
    }

    #[test]
    fn a_packet_of_an_unknown_plan_goes_by_the_direct_link() {
        let mut packet = header(3);
        packet.plan.number = 7;
        assert_eq!(route(&packet, &tables(), |_| true), link(3, false));
    }

    #[test]
    fn a_dead_next_hop_deflects_to_the_backup_and_from_there_directly() {
        let dead = |relay: RelayIndex| relay.0 != 1;
        assert_eq!(route(&header(3), &tables(), dead), link(2, true));
        let mut deflected = header(3);
        deflected.deflections = 1;
        assert_eq!(route(&deflected, &tables(), |_| true), link(3, false));
    }

    #[test]
    fn a_deflection_never_goes_back_to_a_relay_the_packet_has_passed() {
        let mut packet = header(3);
        assert!(packet.pass(RelayIndex(2)));
        let dead = |relay: RelayIndex| relay.0 != 1;
        assert_eq!(route(&packet, &tables(), dead), link(4, true));
    }

    #[test]
    fn after_two_deflections_there_is_no_way() {
        let mut packet = header(3);
        packet.deflections = MAX_DEFLECTIONS;
        let dead = |relay: RelayIndex| relay.0 != 3;
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
            route(&packet, &tables(), |_| true),
            Verdict::Drop(DropReason::HopLimit)
        );
        let mut packet = header(3);
        assert!(packet.pass(RelayIndex(1)));
        assert_eq!(
            route(&packet, &tables(), |_| true),
            Verdict::Drop(DropReason::Loop)
        );
    }
}
