//! The rule by which a relay decides where a packet goes next, as one pure function: the relay's
//! forwarder calls it, and the proofs of this crate simulate it hop by hop.

use std::cmp::Ordering;

/// How often a packet may leave its way, see [`next_hop`].
pub const MAX_DEFLECTIONS: u8 = 2;

/// What a relay knows of its own link to a neighbour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LinkHealth {
    /// It works as is normal for it.
    Up,
    /// Brownout: it works, but far worse than is normal for it.
    Degraded {
        /// By how much more than normal it costs now, in the unit of the candidates' costs, ≥ 0.
        extra: f64,
    },
    /// It does not work, or is not there.
    Down,
}

impl LinkHealth {
    /// Orders by preference: the better one is less.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        let rank = |health: &Self| match *health {
            Self::Up => (0, 0.0),
            Self::Degraded { extra } => (1, extra),
            Self::Down => (2, 0.0),
        };
        let ((kind, extra), (other_kind, other_extra)) = (rank(self), rank(other));
        kind.cmp(&other_kind).then(extra.total_cmp(&other_extra))
    }
}

/// A packet at a relay, and what the relay's plan says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Situation<R> {
    /// The relay that the packet must get to. Not the relay that decides.
    pub destination: R,
    /// The next hop in the packet's tree and what the way over it cost when the plan was made;
    /// `None` when there is none, or the plan is not known.
    pub by_tree: Option<(R, f64)>,
    /// How often the packet has been deflected already.
    pub deflections: u8,
}

/// Where the packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop<R> {
    /// To this neighbour.
    Forward {
        /// The neighbour.
        next: R,
        /// It leaves its way here: the packet's deflections are to be counted up by one.
        deflected: bool,
    },
    /// Its way leads to a relay that it has passed: the tree is broken. Drop it.
    Loop,
    /// There is no way left. Drop it.
    NoWay,
}

/// Decides where a packet goes next.
///
/// 1. Its *way* is its tree while it has not been deflected (without a next hop there, and once it
///    has been deflected, the direct link to the destination).
/// 2. If that link is up, it is taken.
/// 3. If it is degraded, the first candidate is taken that is up, has not been passed and costs
///    less than the degraded way costs now; if there is none, the degraded link (fail open).
/// 4. If it is down, the first candidate is taken that is up and has not been passed, else the
///    direct link if that is up; else whichever of them is degraded and costs least now.
/// 5. If all of them are down, any neighbour in `spares` will do that has not been passed: the first
///    that is up, else the first that is degraded; else there is no way. More has failed than the
///    plan's candidates are for, or the plan knew no way; a neighbour may, by its own link or its own
///    candidates.
///
/// The last three are deflections, of which there are two at most: after them there is only the
/// direct link. No relay is ever passed twice, so nothing can loop.
///
/// `candidates` are those of the plan with the costs of their whole ways, best first
/// ([`crate::Backups::candidates_with_cost`]); they obey the packet's rule set, and so do `spares`,
/// the neighbours that packets of the rule set may cross, best first.
pub fn next_hop<R: Copy + PartialEq>(
    packet: &Situation<R>,
    candidates: impl Iterator<Item = (R, f64)> + Clone,
    spares: impl Iterator<Item = R> + Clone,
    link: impl Fn(R) -> LinkHealth,
    passed: impl Fn(R) -> bool,
) -> NextHop<R> {
    let on_tree = packet.by_tree.filter(|_| packet.deflections == 0);
    let way = on_tree.map_or(packet.destination, |(hop, _)| hop);
    if passed(way) {
        return NextHop::Loop;
    }
    let stay = NextHop::Forward {
        next: way,
        deflected: false,
    };
    let health = link(way);
    let may_deflect = packet.deflections < MAX_DEFLECTIONS;
    if health == LinkHealth::Up || (!may_deflect && health != LinkHealth::Down) {
        return stay;
    }
    if !may_deflect {
        return NextHop::NoWay;
    }
    let others = || {
        candidates
            .clone()
            .filter(|&(hop, _)| hop != way && !passed(hop))
    };
    let deflect = |next| NextHop::Forward {
        next,
        deflected: true,
    };
    if let LinkHealth::Degraded { extra } = health {
        // What the direct link costs is in the list, unless all in it cost less.
        let direct = || {
            let named = candidates.clone().find(|&(hop, _)| hop == way);
            named
                .or(candidates.clone().last())
                .map_or(0.0, |(_, cost)| cost)
        };
        let now = on_tree.map_or_else(direct, |(_, cost)| cost) + extra;
        let better = others().find(|&(hop, cost)| link(hop) == LinkHealth::Up && cost < now);
        return better.map_or(stay, |(hop, _)| deflect(hop));
    }
    let direct = (way != packet.destination).then_some((packet.destination, f64::INFINITY));
    let all = || others().chain(direct);
    if let Some((hop, _)) = all().find(|&(hop, _)| link(hop) == LinkHealth::Up) {
        return deflect(hop);
    }
    all()
        .filter_map(|(hop, cost)| match link(hop) {
            LinkHealth::Degraded { extra } => Some((hop, cost + extra)),
            _ => None,
        })
        .reduce(|best, other| if other.1 < best.1 { other } else { best })
        .map(|(hop, _)| hop)
        .or_else(|| {
            let new = || spares.clone().filter(|&hop| hop != way && !passed(hop));
            let up = new().find(|&hop| link(hop) == LinkHealth::Up);
            up.or_else(|| new().find(|&hop| link(hop) != LinkHealth::Down))
        })
        .map_or(NextHop::NoWay, deflect)
}

#[cfg(test)]
mod tests {
    use super::*;
    use LinkHealth::{Degraded, Down, Up};

    const TO: u16 = 9;

    /// At a relay whose tree leads over 1 at 20 ms, with backups 2 at 25 ms and 3 at 40 ms.
    fn decide(deflections: u8, health: impl Fn(u16) -> LinkHealth, passed: &[u16]) -> NextHop<u16> {
        decide_with_spares(deflections, &[], health, passed)
    }

    fn decide_with_spares(
        deflections: u8,
        spares: &[u16],
        health: impl Fn(u16) -> LinkHealth,
        passed: &[u16],
    ) -> NextHop<u16> {
        let packet = Situation {
            destination: TO,
            by_tree: Some((1, 20.0)),
            deflections,
        };
        let candidates = [(1, 20.0), (2, 25.0), (3, 40.0)].into_iter();
        let spares = spares.iter().copied();
        next_hop(&packet, candidates, spares, health, |relay| {
            passed.contains(&relay)
        })
    }

    fn to(next: u16, deflected: bool) -> NextHop<u16> {
        NextHop::Forward { next, deflected }
    }

    #[test]
    fn a_packet_follows_its_tree_and_once_deflected_goes_directly() {
        assert_eq!(decide(0, |_| Up, &[]), to(1, false));
        assert_eq!(decide(1, |_| Up, &[]), to(TO, false));
        assert_eq!(decide(2, |_| Up, &[]), to(TO, false));
        let unplanned = Situation {
            destination: TO,
            by_tree: None,
            deflections: 0,
        };
        let (nothing, nobody) = (std::iter::empty(), std::iter::empty());
        assert_eq!(
            next_hop(&unplanned, nothing, nobody, |_| Up, |_| false),
            to(TO, false)
        );
    }

    #[test]
    fn a_dead_next_hop_deflects_to_the_best_backup_that_is_up_and_new_to_the_packet() {
        let dead = |gone: &'static [u16]| move |hop| if gone.contains(&hop) { Down } else { Up };
        assert_eq!(decide(0, dead(&[1]), &[]), to(2, true));
        assert_eq!(decide(0, dead(&[1, 2]), &[]), to(3, true));
        assert_eq!(decide(0, dead(&[1]), &[2]), to(3, true));
        assert_eq!(decide(0, dead(&[1, 2, 3]), &[]), to(TO, true));
        assert_eq!(decide(0, dead(&[1, 2, 3, TO]), &[]), NextHop::NoWay);
        // Deflected once, the direct link gone: once more. Deflected twice: no more.
        assert_eq!(decide(1, dead(&[TO]), &[]), to(1, true));
        assert_eq!(decide(2, dead(&[TO]), &[]), NextHop::NoWay);
    }

    #[test]
    fn a_brownout_deflects_when_the_backup_is_better_than_the_degraded_way() {
        let worse_by = |extra| move |hop| if hop == 1 { Degraded { extra } } else { Up };
        assert_eq!(
            decide(0, worse_by(4.0), &[]),
            to(1, false),
            "24 ms are less than 25"
        );
        assert_eq!(decide(0, worse_by(6.0), &[]), to(2, true));
        assert_eq!(
            decide(0, worse_by(6.0), &[2]),
            to(1, false),
            "26 ms are less than 40: better a bad link than a worse way"
        );
        let only_bad = |hop| {
            if hop == 1 {
                Degraded { extra: 500.0 }
            } else {
                Down
            }
        };
        assert_eq!(decide(0, only_bad, &[]), to(1, false), "fail open");
        let direct_is_bad = |hop| {
            if hop == TO {
                Degraded { extra: 9.0 }
            } else {
                Up
            }
        };
        assert_eq!(decide(1, direct_is_bad, &[]), to(1, true));
        assert_eq!(decide(2, direct_is_bad, &[]), to(TO, false));
    }

    #[test]
    fn where_all_backups_are_degraded_the_least_bad_one_is_taken() {
        let health = |hop| match hop {
            1 => Down,
            2 => Degraded { extra: 100.0 },
            3 => Degraded { extra: 10.0 },
            _ => Down,
        };
        assert_eq!(decide(0, health, &[]), to(3, true));
    }

    #[test]
    fn where_all_that_the_plan_names_is_down_any_neighbour_is_taken_that_may_be_crossed() {
        let named = [1, 2, 3, TO];
        let spares = [2, 5, 6, 7];
        let dead = |gone: &'static [u16]| {
            move |hop| {
                if named.contains(&hop) || gone.contains(&hop) {
                    Down
                } else {
                    Up
                }
            }
        };
        let decide = |deflections, gone, passed: &[u16]| {
            decide_with_spares(deflections, &spares, dead(gone), passed)
        };
        assert_eq!(decide(0, &[], &[]), to(5, true));
        assert_eq!(decide(0, &[5], &[]), to(6, true));
        assert_eq!(decide(1, &[], &[5]), to(6, true), "never a way back");
        assert_eq!(decide(2, &[], &[]), NextHop::NoWay);
        assert_eq!(decide(0, &[5, 6, 7], &[]), NextHop::NoWay);
        // Before one of them: whatever the plan names, however bad it is.
        let bad = |hop| match hop {
            3 => Degraded { extra: 100.0 },
            1 | 2 | TO => Down,
            _ => Up,
        };
        assert_eq!(decide_with_spares(0, &spares, bad, &[]), to(3, true));
        // A bad one is better than none.
        let only_bad = |hop| {
            if hop == 7 {
                Degraded { extra: 1.0 }
            } else {
                Down
            }
        };
        assert_eq!(decide_with_spares(0, &spares, only_bad, &[]), to(7, true));
        // A degraded way is not left for one of which nobody knows what it costs.
        let browned_out = |hop| match hop {
            1 => Degraded { extra: 500.0 },
            2 | 3 => Down,
            _ => Up,
        };
        assert_eq!(
            decide_with_spares(0, &spares, browned_out, &[]),
            to(1, false)
        );
    }

    #[test]
    fn links_are_preferred_in_the_order_of_their_health() {
        let in_order = [Up, Degraded { extra: 5.0 }, Degraded { extra: 9.0 }, Down];
        assert!(in_order.is_sorted_by(|a, b| a.compare(b) == Ordering::Less));
    }

    #[test]
    fn a_way_back_is_never_taken() {
        assert_eq!(decide(0, |_| Up, &[1]), NextHop::Loop);
        assert_eq!(decide(1, |_| Up, &[TO]), NextHop::Loop);
    }
}
