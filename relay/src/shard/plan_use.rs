//! What the plans in use make of our links, which decides how the budget of probes is shared.

use std::collections::BTreeMap;

use tradewind_proto::{
    RelayIndex,
    control::{Backup, PlanPart, ProfileTable},
};

use crate::plan::relay_index;

/// How many destinations lie behind each next hop, and which links would be deflected to from which.
#[derive(Debug, Default)]
pub(super) struct PlanUse {
    destinations: BTreeMap<RelayIndex, usize>,
    /// By (next hop, its first backup).
    backups: BTreeMap<(RelayIndex, RelayIndex), usize>,
}

impl PlanUse {
    /// Of the parts of all plans that are stamped, or soon will be.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a PlanPart>) -> Self {
        let mut plan_use = Self::default();
        for part in parts {
            for table in &part.profiles {
                plan_use.add(part, table);
            }
        }
        plan_use
    }

    /// To how many destinations a relay is the next hop, in all trees together.
    pub(super) fn destinations(&self, next: RelayIndex) -> usize {
        self.destinations.get(&next).copied().unwrap_or(0)
    }

    /// To how many destinations a relay is the first backup of a next hop: (next hop, backup), count.
    pub(super) fn backups(&self) -> impl Iterator<Item = ((RelayIndex, RelayIndex), usize)> + '_ {
        self.backups.iter().map(|(&pair, &count)| (pair, count))
    }

    fn add(&mut self, part: &PlanPart, table: &ProfileTable) {
        // By rule set and destination, of the first tree of each rule set.
        let mut next_hops = BTreeMap::new();
        for tree in &table.trees {
            for (info, &next) in part.relays.iter().zip(&tree.next_hop) {
                if let Some(next) = relay_index(next) {
                    *self.destinations.entry(next).or_default() += 1;
                    next_hops.entry((tree.rules, info.index)).or_insert(next);
                }
            }
        }
        for hop in table.out_trees.iter().flat_map(|tree| &tree.hops) {
            if let Some(next) = relay_index(hop.next) {
                *self.destinations.entry(next).or_default() += hop.destinations.len();
            }
        }
        let everybodys = table.backups.iter().map(|backup| (0, backup));
        let restricted = table.restricted_backups.iter();
        for (rules, backup) in everybodys.chain(restricted.map(|backup| (backup.rules, backup))) {
            let Some(&next) = next_hops.get(&(rules, backup.destination)) else {
                continue;
            };
            if let Some(first) = first_beside(backup, next) {
                *self.backups.entry((next, first)).or_default() += 1;
            }
        }
    }
}

/// Where packets go first when `next` fails.
fn first_beside(backup: &Backup, next: RelayIndex) -> Option<RelayIndex> {
    let mut relays = backup.relays.iter().filter_map(|&relay| relay_index(relay));
    relays.find(|&relay| relay != next)
}

#[cfg(test)]
mod tests {
    use tradewind_proto::control::{OutHop, OutTreePart, RelayInfo, TreeTable};

    use super::*;

    const NO_WAY: u32 = 65_535;

    /// Relay 0's part over relays 0 to 4: by tree to 3 over 1, to 4 not at all.
    fn part(change: impl FnOnce(&mut ProfileTable)) -> PlanPart {
        let mut table = ProfileTable {
            trees: vec![TreeTable {
                next_hop: vec![0, 1, 2, 1, NO_WAY],
                ..Default::default()
            }],
            backups: vec![Backup {
                destination: 3,
                relays: vec![1, 2],
                ..Default::default()
            }],
            ..Default::default()
        };
        change(&mut table);
        PlanPart {
            relays: (0..5)
                .map(|index| RelayInfo {
                    index,
                    ..Default::default()
                })
                .collect(),
            profiles: vec![table],
            ..Default::default()
        }
    }

    fn backups(plan_use: &PlanUse) -> Vec<(u16, u16, usize)> {
        let pairs = plan_use.backups();
        pairs.map(|((a, b), count)| (a.0, b.0, count)).collect()
    }

    fn destinations(plan_use: &PlanUse) -> Vec<usize> {
        (0..5)
            .map(|relay| plan_use.destinations(RelayIndex(relay)))
            .collect()
    }

    #[test]
    fn a_link_matters_as_next_hop_and_as_the_backup_of_one() {
        let plan_use = PlanUse::of([&part(|_| ())]);
        assert_eq!(destinations(&plan_use), [1, 2, 1, 0, 0]);
        assert_eq!(backups(&plan_use), [(1, 2, 1)]);
    }

    #[test]
    fn the_links_that_groups_packets_take_matter() {
        let part = part(|table| {
            table.out_trees.push(OutTreePart {
                origin: 2,
                hops: vec![OutHop {
                    next: 4,
                    destinations: vec![3, 4],
                    ..Default::default()
                }],
            });
        });
        assert_eq!(destinations(&PlanUse::of([&part])), [1, 2, 1, 0, 2]);
    }

    #[test]
    fn the_backups_of_a_restricted_rule_set_stand_in_for_the_next_hops_of_its_tree() {
        let restricted = part(|table| {
            table.trees.push(TreeTable {
                next_hop: vec![0, 1, 2, 2, NO_WAY],
                rules: 1,
                ..Default::default()
            });
            table.restricted_backups.push(Backup {
                destination: 3,
                relays: vec![2, 4],
                rules: 1,
                ..Default::default()
            });
        });
        assert_eq!(backups(&PlanUse::of([&restricted])), [(1, 2, 1), (2, 4, 1)]);
    }

    #[test]
    fn while_two_plans_are_stamped_the_links_of_both_matter() {
        let other = part(|table| {
            table.trees[0].next_hop[3] = 4;
            table.backups[0].relays = vec![4, 1];
        });
        let plan_use = PlanUse::of([&part(|_| ()), &other]);
        assert_eq!(destinations(&plan_use), [2, 3, 2, 0, 1]);
        assert_eq!(backups(&plan_use), [(1, 2, 1), (4, 1, 1)]);
    }
}
