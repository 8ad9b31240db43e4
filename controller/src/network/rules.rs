//! Which relays packets must not cross, for whom, and why.

use std::collections::BTreeSet;

use tradewind_routing::{CostMatrix, TreeRules};

use super::{
    Network,
    costs::{Costs, PROFILES},
    registry::Standing,
};
use crate::policy::Compiled;

/// Everybody's rules and the restricted ones, by profile.
pub(super) type AllRules = [Vec<TreeRules>; PROFILES];

/// By profile and rule set, the relays that are not crossed even if there is no other way: policy
/// and the operator say so. Relays that drain or are silent are crossed rather than nothing.
pub(super) type Forbidden = [Vec<BTreeSet<usize>>; PROFILES];

impl Network {
    pub(super) fn forbidden(&self, policy: &Compiled) -> Forbidden {
        let by_operator: BTreeSet<usize> = self
            .registry
            .iter()
            .filter(|(_, relay)| relay.standing != Standing::Member)
            .map(|(index, _)| index.as_usize())
            .collect();
        let set = |flags: &[bool]| -> BTreeSet<usize> {
            (0..flags.len()).filter(|&relay| flags[relay]).collect()
        };
        std::array::from_fn(|profile| {
            let mut everybody = by_operator.clone();
            everybody.extend(set(&policy.everybody));
            everybody.extend(set(&policy.by_profile[profile]));
            let restricted = policy
                .restricted
                .iter()
                .map(|forbidden| &everybody | &set(forbidden));
            let restricted: Vec<BTreeSet<usize>> = restricted.collect();
            [everybody].into_iter().chain(restricted).collect()
        })
    }

    pub(super) fn rules(&self, policy: &Compiled, costs: &Costs, live: &[bool]) -> AllRules {
        let n = self.registry.len();
        let mut closed: Vec<bool> = self
            .registry
            .iter()
            .map(|(index, relay)| {
                relay.closed_because().is_some() || policy.everybody[index.as_usize()]
            })
            .collect();
        let off_hours: Vec<bool> = (0..n)
            .map(|relay| policy.off_hours_relays[relay] && !closed[relay])
            .collect();
        if off_hours.contains(&true) {
            let without: Vec<bool> = (0..n).map(|at| closed[at] || off_hours[at]).collect();
            let cost = &costs.profiles[0].cost;
            // Fail open: outside of its hours a relay is crossed if there is no other way.
            if parts(cost, live, &without) <= parts(cost, live, &closed) {
                closed = without;
            }
        }
        std::array::from_fn(|profile| {
            let own = &policy.by_profile[profile];
            let everybody: Vec<bool> = (0..n).map(|at| closed[at] || own[at]).collect();
            let restricted = policy.restricted.iter().map(|forbidden| {
                tree_rules((0..n).map(|at| everybody[at] || forbidden[at]).collect())
            });
            let restricted: Vec<TreeRules> = restricted.collect();
            [tree_rules(everybody)]
                .into_iter()
                .chain(restricted)
                .collect()
        })
    }

    /// Why packets of everybody in a profile do not cross a relay.
    pub(super) fn closed_because(
        &self,
        policy: &Compiled,
        profile: usize,
        relay: usize,
    ) -> Option<&'static str> {
        let index = tradewind_proto::RelayIndex(relay as u16);
        let by_policy = policy.everybody[relay] || policy.by_profile[profile][relay];
        self.registry
            .get(index)
            .closed_because()
            .or(by_policy.then_some("closed to transit by policy"))
            .or(policy.off_hours_relays[relay].then_some("outside of its busy hours"))
    }
}

fn tree_rules(no_transit: Vec<bool>) -> TreeRules {
    TreeRules {
        no_transit,
        ..TreeRules::default()
    }
}

/// Into how many parts the live relays fall when those that are closed are not crossed, roughly: a
/// closed relay belongs to the part of any neighbour that is not.
fn parts(cost: &CostMatrix, live: &[bool], closed: &[bool]) -> usize {
    let n = cost.len();
    let joined = |a: usize, b: usize| cost.is_up(a, b) && cost.is_up(b, a);
    let mut part: Vec<Option<usize>> = vec![None; n];
    let mut count = 0;
    for begin in (0..n).filter(|&at| live[at] && !closed[at]) {
        if part[begin].is_some() {
            continue;
        }
        part[begin] = Some(count);
        let mut open = vec![begin];
        while let Some(at) = open.pop() {
            for next in (0..n).filter(|&next| live[next] && joined(at, next)) {
                if part[next].is_none() {
                    part[next] = Some(count);
                    // Reached, but not crossed.
                    if !closed[next] {
                        open.push(next);
                    }
                }
            }
        }
        count += 1;
    }
    // Closed relays that reach nobody who is not are parts of their own, unless all have links
    // with one another.
    let alone: Vec<usize> = (0..n)
        .filter(|&at| live[at] && part[at].is_none())
        .collect();
    let meshed = count == 0
        && alone
            .iter()
            .all(|&a| alone.iter().all(|&b| a == b || joined(a, b)));
    count
        + if meshed {
            usize::from(!alone.is_empty())
        } else {
            alone.len()
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(n: usize, links: &[(usize, usize)]) -> CostMatrix {
        let mut cost = CostMatrix::new(n);
        for &(a, b) in links {
            cost.set(a, b, 1.0);
            cost.set(b, a, 1.0);
        }
        cost
    }

    #[test]
    fn a_relay_that_holds_the_network_together_is_told_from_one_that_does_not() {
        let live = [true; 4];
        let none = [false; 4];
        let closed = [false, true, false, false];
        // A chain by way of 1, and the same with a way around it.
        let chain = network(4, &[(0, 1), (1, 2), (2, 3)]);
        assert_eq!(parts(&chain, &live, &none), 1);
        assert_eq!(parts(&chain, &live, &closed), 2);
        let ring = network(4, &[(0, 1), (1, 2), (2, 3), (3, 0)]);
        assert_eq!(parts(&ring, &live, &closed), 1);
        assert_eq!(parts(&ring, &[true, true, true, false], &closed), 2);
    }

    #[test]
    fn relays_that_are_all_closed_are_together_only_by_direct_links() {
        let live = [true; 3];
        let closed = [true; 3];
        let mesh = network(3, &[(0, 1), (1, 2), (0, 2)]);
        assert_eq!(parts(&mesh, &live, &closed), 1);
        assert_eq!(parts(&network(3, &[(0, 1), (1, 2)]), &live, &closed), 3);
    }
}
