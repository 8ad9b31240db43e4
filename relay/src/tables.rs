//! What the control task publishes to the shards: plans, relays, token keys. Immutable once
//! published.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use tradewind_proto::{
    PlanId, Profile, RelayIndex,
    control::{PlanPart, RelayInfo},
};
use tradewind_trust::TokenKeys;

/// Plans held at a time: the active one and those that packets may still be stamped with.
pub(crate) const PLANS_HELD: usize = 8;

/// A plan, as far as this relay needs it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) id: PlanId,
    /// Indices of the plan's relays, ascending: the set that directory homes are chosen from.
    pub(crate) relays: Vec<RelayIndex>,
    /// The part as it came, for the store and the debug pages.
    pub(crate) part: PlanPart,
    /// `[profile][tree][relay index]`: next hop, [`RelayIndex::NONE`] where there is none.
    next_hops: Vec<Vec<Vec<RelayIndex>>>,
    /// `[relay index]`: where to deflect to.
    backups: Vec<Vec<RelayIndex>>,
}

/// A plan part that contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the plan part is malformed ({0}); it was not taken")]
pub(crate) struct BadPlan(&'static str);

impl Plan {
    /// Checks a plan part and lays it out for look-ups.
    pub(crate) fn from_part(part: &PlanPart) -> Result<Self, BadPlan> {
        let id = part
            .plan
            .as_ref()
            .and_then(tradewind_proto::control::PlanName::id)
            .filter(|&id| id != PlanId::NONE)
            .ok_or(BadPlan("no plan number"))?;
        let mut relays = Vec::with_capacity(part.relays.len());
        for info in &part.relays {
            relays.push(relay_index(info.index).ok_or(BadPlan("relay index out of range"))?);
        }
        if !relays.is_sorted_by(|a, b| a < b) {
            return Err(BadPlan("relays are not in ascending order"));
        }
        let size = relays.last().map_or(0, |last| last.as_usize() + 1);
        let mut next_hops = vec![Vec::new(); 2];
        let mut backups = vec![Vec::new(); size];
        for table in &part.profiles {
            // Profiles of a later version are not for us.
            let Some(trees) = next_hops.get_mut(table.profile as usize) else {
                continue;
            };
            for tree in &table.trees {
                if tree.next_hop.len() != relays.len() {
                    return Err(BadPlan("a tree has not one entry per relay"));
                }
                let mut by_index = vec![RelayIndex::NONE; size];
                for (&destination, &next) in relays.iter().zip(&tree.next_hop) {
                    by_index[destination.as_usize()] =
                        relay_index(next).unwrap_or(RelayIndex::NONE);
                }
                trees.push(by_index);
            }
            if table.profile == Profile::Realtime as u32 {
                for backup in &table.backups {
                    let entry = backups
                        .get_mut(backup.destination as usize)
                        .ok_or(BadPlan("a backup is for an unknown relay"))?;
                    *entry = backup
                        .relays
                        .iter()
                        .filter_map(|&i| relay_index(i))
                        .collect();
                }
            }
        }
        Ok(Self {
            id,
            relays,
            part: part.clone(),
            next_hops,
            backups,
        })
    }

    /// The next relay towards `destination`. A profile or tree the plan has not falls back to the
    /// first realtime tree.
    pub(crate) fn next_hop(
        &self,
        profile: u8,
        tree: u8,
        destination: RelayIndex,
    ) -> Option<RelayIndex> {
        let trees = self
            .next_hops
            .get(usize::from(profile))
            .filter(|trees| !trees.is_empty())
            .unwrap_or(&self.next_hops[0]);
        let tree = trees.get(usize::from(tree)).or_else(|| trees.first())?;
        tree.get(destination.as_usize())
            .copied()
            .filter(|&next| next != RelayIndex::NONE)
    }

    /// Where to deflect a packet for `destination` to, best first.
    pub(crate) fn backups(&self, destination: RelayIndex) -> &[RelayIndex] {
        self.backups
            .get(destination.as_usize())
            .map_or(&[], Vec::as_slice)
    }
}

/// Another relay of the network, or this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) index: RelayIndex,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) client_addresses: Vec<SocketAddr>,
    pub(crate) link_addresses: Vec<SocketAddr>,
    pub(crate) draining: bool,
}

impl Member {
    /// From the controller's list. Addresses that cannot be parsed are left out.
    pub(crate) fn from_info(info: &RelayInfo) -> Option<Self> {
        let parse =
            |list: &[String]| -> Vec<SocketAddr> { list.iter().flat_map(|a| a.parse()).collect() };
        Some(Self {
            index: relay_index(info.index)?,
            name: info.name.clone(),
            region: info.region.clone(),
            client_addresses: parse(&info.client_addresses),
            link_addresses: parse(&info.link_addresses),
            draining: info.draining,
        })
    }
}

/// Everything a shard looks up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    /// This relay's own index; [`RelayIndex::NONE`] until the controller has given it one.
    pub(crate) me: RelayIndex,
    /// The plan that ingress packets are stamped with.
    pub(crate) active: PlanId,
    plans: BTreeMap<PlanId, Arc<Plan>>,
    /// All relays of the network, this one included, by index.
    pub(crate) members: BTreeMap<RelayIndex, Arc<Member>>,
    /// Keys that client tokens are verified with.
    pub(crate) keys: Arc<TokenKeys>,
}

impl Tables {
    /// The plan of that name, if it is held.
    pub(crate) fn plan(&self, id: PlanId) -> Option<&Plan> {
        self.plans.get(&id).map(AsRef::as_ref)
    }

    /// The plan that is stamped now.
    pub(crate) fn active_plan(&self) -> Option<&Plan> {
        self.plan(self.active)
    }

    /// Keeps `plan` beside those held, and forgets the oldest beyond [`PLANS_HELD`] (never the
    /// active one).
    pub(crate) fn hold(&mut self, plan: Plan) {
        self.plans.insert(plan.id, Arc::new(plan));
        while self.plans.len() > PLANS_HELD {
            let active = self.active;
            let Some(&oldest) = self.plans.keys().find(|&&id| id != active) else {
                break;
            };
            self.plans.remove(&oldest);
        }
    }

    /// Stamps `id` from now on, if it is held and not older than what is stamped.
    pub(crate) fn activate(&mut self, id: PlanId) -> bool {
        let newer = id >= self.active && self.plans.contains_key(&id);
        if newer {
            self.active = id;
        }
        newer
    }

    /// Names of the plans held, oldest first.
    pub(crate) fn plans_held(&self) -> impl Iterator<Item = PlanId> + '_ {
        self.plans.keys().copied()
    }

    /// The name of the relay with that index.
    pub(crate) fn name_of(&self, index: RelayIndex) -> Option<&str> {
        self.members.get(&index).map(|member| member.name.as_str())
    }
}

fn relay_index(value: u32) -> Option<RelayIndex> {
    u16::try_from(value)
        .ok()
        .map(RelayIndex)
        .filter(|&index| index != RelayIndex::NONE)
}
