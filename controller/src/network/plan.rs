//! A plan: what is in force, what each relay is told of it.

use std::{collections::BTreeSet, time::Duration};

use tradewind_proto::{
    PlanId, RelayIndex,
    control::{Backup, PlanPart, ProfileTable, RelayInfo, TreeTable},
};
use tradewind_routing::PlanTables;

use super::{links::Matrix, registry::Registry};

/// An immutable set of forwarding tables for all relays.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) id: PlanId,
    pub(super) made_at: Duration,
    pub(super) reasons: Vec<String>,
    /// Those it knows, by index.
    pub(super) members: Vec<RelayInfo>,
    pub(super) tables: PlanTables,
    /// Per ordered pair the uplink to take, row-major over the tables' indices.
    uplinks: Vec<u8>,
    /// Who has acknowledged it.
    pub(super) held_by: BTreeSet<RelayIndex>,
    pub(super) activated_at: Option<Duration>,
}

/// A plan on its way to the relays.
#[derive(Debug)]
pub(super) struct Distribution {
    pub(super) plan: Plan,
    /// Who must still acknowledge it.
    pub(super) waiting: BTreeSet<RelayIndex>,
    /// When those who have not are left out.
    pub(super) deadline: Duration,
}

impl Plan {
    pub(super) fn new(
        id: PlanId,
        made_at: Duration,
        reasons: Vec<String>,
        members: &BTreeSet<RelayIndex>,
        registry: &Registry,
        tables: &PlanTables,
        matrix: &Matrix,
    ) -> Self {
        let n = tables.cost.len();
        let uplinks = (0..n * n)
            .map(|cell| matrix.uplink(cell / n, cell % n).0)
            .collect();
        Self {
            id,
            made_at,
            reasons,
            members: members
                .iter()
                .map(|&index| registry.get(index).info(index))
                .collect(),
            tables: tables.clone(),
            uplinks,
            held_by: BTreeSet::new(),
            activated_at: None,
        }
    }

    /// The indices of those it knows.
    pub(super) fn member_set(&self) -> BTreeSet<RelayIndex> {
        self.members
            .iter()
            .map(|info| RelayIndex(info.index as u16))
            .collect()
    }

    pub(super) fn knows(&self, relay: RelayIndex) -> bool {
        self.members
            .binary_search_by_key(&u32::from(relay.0), |info| info.index)
            .is_ok()
    }

    /// The whole way in this plan, both ends included.
    pub(super) fn path(&self, from: RelayIndex, to: RelayIndex) -> Option<Vec<usize>> {
        if !self.knows(from) || !self.knows(to) {
            return None;
        }
        self.tables.in_trees[to.as_usize()].path(from.as_usize())
    }

    /// What `relay` needs of it; `None` when the plan does not know it.
    pub(super) fn part_for(&self, relay: RelayIndex) -> Option<PlanPart> {
        if !self.knows(relay) {
            return None;
        }
        let own = relay.as_usize();
        let n = self.tables.cost.len();
        let mut tree = TreeTable::default();
        let mut backups = Vec::new();
        for info in &self.members {
            let to = info.index as usize;
            let in_tree = &self.tables.in_trees[to];
            let next = if to == own {
                Some(own)
            } else {
                in_tree.next_hop(own)
            };
            let cost_ms = in_tree.cost(own);
            tree.next_hop
                .push(next.map_or(u32::from(RelayIndex::NONE.0), |hop| hop as u32));
            tree.uplink
                .push(next.map_or(0, |hop| u32::from(self.uplinks[own * n + hop])));
            tree.cost_us.push(match cost_ms.is_finite() {
                true => (cost_ms * 1_000.0).round() as u32,
                false => 0,
            });
            let relays: Vec<u32> = self
                .tables
                .backups
                .candidates(own, to)
                .map(|hop| hop as u32)
                .collect();
            if to != own && !relays.is_empty() {
                backups.push(Backup {
                    destination: info.index,
                    relays,
                    ..Default::default()
                });
            }
        }
        Some(PlanPart {
            plan: Some(self.id.into()),
            relays: self.members.clone(),
            profiles: vec![ProfileTable {
                profile: 0,
                trees: vec![tree],
                backups,
                ..Default::default()
            }],
            ..Default::default()
        })
    }
}
