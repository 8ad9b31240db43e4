//! Where a packet goes next. Pure: a header, the tables, and the state of the neighbours.
//!
//! The second of the three rooms of a packet's way: *link or session → forwarder → queue*.

use tradewind_proto::{
    DropReason, Locator, RelayIndex, Uplink,
    packet::{self, Destination, LinkHeader, RelaySet},
};
use tradewind_routing::{LinkHealth, NextHop, Situation, next_hop};

use crate::{
    plan::{Hop, Plan},
    tables::Tables,
};

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
        // Those are split.
        return Verdict::Drop(DropReason::Unexpected);
    };
    let target = destination.relay;
    if target == tables.me {
        return Verdict::Local(destination);
    }
    let plan = tables.plan(header.plan);
    let hop = plan.and_then(|plan| plan.hop(header.profile, header.tree, target));
    way(header, tables, plan, target, hop, neighbour)
}

/// A copy of a group packet for one neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupCopy {
    /// The neighbour.
    pub(crate) next: RelayIndex,
    /// The uplink to take to it while that is as good as the others.
    pub(crate) uplink: Uplink,
    /// These have left their tree here.
    pub(crate) deflected: Option<Deflection>,
    /// Whom it is still to reach, the neighbour perhaps among them.
    pub(crate) relays: RelaySet,
}

/// What becomes of a group packet. Kept from packet to packet, so that nothing is allocated for each.
#[derive(Debug, Default)]
pub(crate) struct Split {
    /// It is for members here, among others.
    pub(crate) local: bool,
    pub(crate) copies: Vec<GroupCopy>,
    /// Relays that it does not get to from here.
    pub(crate) dropped: Vec<(RelayIndex, DropReason)>,
}

/// Splits the set of relays that a group packet is still to reach by next hops: one copy for each.
///
/// Each relay of the set is in exactly one copy (or here, or dropped), and relays behind one next hop
/// in the out-tree of the packet's origin share one: so a copy crosses each link of the tree once.
/// Relays whose next hop is down or degraded are deflected one by one, by the same rule as
/// [`route`]'s, and share a copy with those that are deflected to the same neighbour.
/// `neighbour` says how it stands with the first relay on a way to the second.
pub(crate) fn split(
    header: &LinkHeader,
    relays: &RelaySet,
    tables: &Tables,
    neighbour: impl Fn(RelayIndex, RelayIndex) -> LinkHealth,
    split: &mut Split,
) {
    split.local = false;
    split.copies.clear();
    split.dropped.clear();
    let plan = tables.plan(header.plan);
    for target in relays.iter() {
        if target == tables.me {
            split.local = true;
            continue;
        }
        let origin = header.sender.relay;
        let hop =
            plan.and_then(|plan| plan.hop_to_group(header.profile, header.tree, origin, target));
        match way(header, tables, plan, target, hop, |relay| {
            neighbour(relay, target)
        }) {
            Verdict::Link {
                next,
                uplink,
                deflected,
            } => {
                let same = |copy: &&mut GroupCopy| {
                    copy.next == next && copy.deflected.is_some() == deflected.is_some()
                };
                let copy = match split.copies.iter_mut().find(same) {
                    Some(copy) => copy,
                    None => {
                        split.copies.push(GroupCopy {
                            next,
                            uplink,
                            deflected,
                            relays: RelaySet::EMPTY,
                        });
                        let last = split.copies.len() - 1;
                        &mut split.copies[last]
                    }
                };
                copy.relays.insert(target);
            }
            Verdict::Drop(reason) => split.dropped.push((target, reason)),
            // Never: the target is another relay.
            Verdict::Local(_) => split.local = true,
        }
    }
}

/// Where a packet goes next on its way to another relay, `target`, by whose tree it would take `hop`.
/// `plan` is the one that it is stamped with, if it is held here.
fn way(
    header: &LinkHeader,
    tables: &Tables,
    plan: Option<&Plan>,
    target: RelayIndex,
    hop: Option<Hop>,
    neighbour: impl Fn(RelayIndex) -> LinkHealth,
) -> Verdict {
    if header.hop_limit == 0 {
        return Verdict::Drop(DropReason::HopLimit);
    }
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
mod tests;
