//! Where a packet goes next. Pure: a header, the tables, and the state of the neighbours.
//!
//! The second of the three rooms of a packet's way: *link or session → forwarder → queue*.

use tradewind_proto::{
    DropReason, Locator, RelayIndex, Uplink,
    packet::{Destination, LinkHeader, MAX_DEFLECTIONS},
};

use crate::{plan::Candidate, tables::Tables};

/// Links a packet may take at most: 5 by tree (4 relays of transit) and 2 deflections.
pub(crate) const HOP_LIMIT: u8 = 7;

/// How it stands with the links to another relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code)] // Degraded: when links tell it
pub(crate) enum Neighbour {
    /// Packets get there as they normally do.
    Up,
    /// Brownout: they get there, but far worse than is normal.
    Degraded {
        /// What the link costs now beyond its normal cost, microseconds-equivalent.
        extra_us: u32,
    },
    /// They do not get there.
    Down,
}

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

/// Decides where a packet goes next.
///
/// A packet follows the tree of the plan it is stamped with. When the next hop is down it is
/// deflected: to one of the plan's candidates, and from there directly to the destination; at most
/// twice, never to a relay it has passed (so nothing can loop), and only to candidates of the rule
/// set that its tree obeys. When the next hop is degraded it is deflected if a candidate that is in
/// good health is cheaper than what the way over the degraded link costs now; else the degraded link
/// is used. The direct link to the destination crosses nobody, so it is within every rule set and
/// the last resort. A packet with a plan that is not held here goes by the direct link.
pub(crate) fn route(
    header: &LinkHeader,
    tables: &Tables,
    neighbour: impl Fn(RelayIndex) -> Neighbour,
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
    let hop = plan
        .filter(|_| header.deflections == 0)
        .and_then(|plan| plan.hop(header.profile, header.tree, target));
    let (next, uplink) = hop.map_or((target, Uplink(0)), |hop| (hop.next, hop.uplink));
    if header.has_visited(next) {
        return Verdict::Drop(DropReason::Loop);
    }
    let onwards = Verdict::Link {
        next,
        uplink,
        deflected: None,
    };
    let state = neighbour(next);
    if state == Neighbour::Up {
        return onwards;
    }
    let candidates = plan.map_or(&[][..], |plan| {
        let rules = plan.rules_of(header.profile, header.tree);
        plan.candidates(header.profile, rules, target)
    });
    let way = Way {
        next,
        target,
        cost_us: hop.map_or(0, |hop| hop.cost_us),
        state,
        may_deflect: header.deflections < MAX_DEFLECTIONS,
    };
    let passed = |relay| relay == tables.me || header.has_visited(relay);
    match react(&way, candidates, passed, neighbour) {
        Reaction::Stay => onwards,
        Reaction::Deflect(next, reason) => Verdict::Link {
            next,
            uplink: Uplink(0),
            deflected: Some(reason),
        },
        Reaction::NoWay => Verdict::Drop(DropReason::NoWay),
    }
}

/// A packet's way that is not in good health.
struct Way {
    /// The neighbour that is not.
    next: RelayIndex,
    target: RelayIndex,
    /// What the plan says that the way costs; 0 when it does not say.
    cost_us: u32,
    /// The neighbour's state.
    state: Neighbour,
    may_deflect: bool,
}

enum Reaction {
    /// Take the link there is.
    Stay,
    Deflect(RelayIndex, Deflection),
    NoWay,
}

/// What to do with a packet whose next hop is not in good health.
fn react(
    way: &Way,
    candidates: &[Candidate],
    passed: impl Fn(RelayIndex) -> bool,
    neighbour: impl Fn(RelayIndex) -> Neighbour,
) -> Reaction {
    let open = |relay: RelayIndex| relay != way.next && !passed(relay);
    if let Neighbour::Degraded { extra_us } = way.state {
        // The cost of the direct link stands among the candidates.
        let normal = match way.cost_us {
            0 => candidates
                .iter()
                .find(|candidate| candidate.relay == way.next && way.next == way.target)
                .map_or(0, |direct| direct.cost_us),
            cost_us => cost_us,
        };
        let now_us = normal.saturating_add(extra_us);
        let better = candidates.iter().find(|candidate| {
            open(candidate.relay)
                && candidate.cost_us != 0
                && candidate.cost_us < now_us
                && neighbour(candidate.relay) == Neighbour::Up
        });
        // Without figures there is nothing to compare: the link works, after all.
        return match better.filter(|_| normal != 0 && way.may_deflect) {
            Some(candidate) => Reaction::Deflect(candidate.relay, Deflection::Brownout),
            None => Reaction::Stay,
        };
    }
    if !way.may_deflect {
        return Reaction::NoWay;
    }
    let relays = || {
        let planned = candidates.iter().map(|candidate| candidate.relay);
        planned.chain([way.target]).filter(|&relay| open(relay))
    };
    // A degraded neighbour is better than none.
    let usable = relays()
        .find(|&relay| neighbour(relay) == Neighbour::Up)
        .or_else(|| relays().find(|&relay| neighbour(relay) != Neighbour::Down));
    usable.map_or(Reaction::NoWay, |relay| {
        Reaction::Deflect(relay, Deflection::Failure)
    })
}

#[cfg(test)]
mod tests {
    use tradewind_proto::{
        Class, PlanId,
        control::{Backup, PlanName, PlanPart, ProfileTable, RelayInfo, TreeTable},
        packet::{Kind, MAX_PASSED},
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
        }
    }

    fn link(next: u16, deflected: Option<Deflection>) -> Verdict {
        Verdict::Link {
            next: RelayIndex(next),
            uplink: Uplink(0),
            deflected,
        }
    }

    fn all_up(_: RelayIndex) -> Neighbour {
        Neighbour::Up
    }

    /// All are up but these.
    fn down(dead: &[u16]) -> impl Fn(RelayIndex) -> Neighbour + '_ {
        |relay| {
            if dead.contains(&relay.0) {
                Neighbour::Down
            } else {
                Neighbour::Up
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
    fn a_brownout_deflects_only_to_what_is_cheaper_than_the_link_is_now() {
        let degraded = |extra_us: u32| {
            move |relay: RelayIndex| match relay.0 {
                1 => Neighbour::Degraded { extra_us },
                _ => Neighbour::Up,
            }
        };
        // 30 ms by the tree and 45 ms over relay 2.
        let brownout = Some(Deflection::Brownout);
        assert_eq!(
            route(&header(3), &tables(), degraded(15_001)),
            link(2, brownout)
        );
        assert_eq!(
            route(&header(3), &tables(), degraded(15_000)),
            link(1, None)
        );
        // Where all are bad, the bad link is used.
        let all = |_: RelayIndex| Neighbour::Degraded { extra_us: 90_000 };
        assert_eq!(route(&header(3), &tables(), all), link(1, None));
        // A packet that may not be deflected any more is not lost for it.
        let mut tired = header(3);
        tired.deflections = MAX_DEFLECTIONS;
        assert_eq!(route(&tired, &tables(), all), link(3, None));
    }

    #[test]
    fn a_degraded_backup_is_better_than_none() {
        let state = |relay: RelayIndex| match relay.0 {
            1 | 3 => Neighbour::Down,
            _ => Neighbour::Degraded { extra_us: 1 },
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
