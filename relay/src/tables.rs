//! What the control task publishes to the shards: plans, relays, token keys. Immutable once
//! published.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use tradewind_proto::{
    PlanId, RelayIndex, Uplink,
    control::{Edge, RelayInfo},
};
use tradewind_trust::{RevocationList, TokenKeys};

use crate::{
    flow::FlowHash,
    plan::{Plan, relay_index},
};

/// All flows, in the parts per thousand that shares are given in.
pub(crate) const WHOLE: u16 = 1_000;

/// Another relay of the network, or this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) index: RelayIndex,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) client_addresses: Vec<SocketAddr>,
    /// By uplink; uplink 0 is always there.
    link_addresses: BTreeMap<Uplink, Vec<SocketAddr>>,
    pub(crate) draining: bool,
    /// For clients, parts per thousand.
    load_permille: u32,
}

impl Member {
    /// From the controller's list. Addresses that cannot be parsed are left out.
    pub(crate) fn from_info(info: &RelayInfo) -> Option<Self> {
        let parse =
            |list: &[String]| -> Vec<SocketAddr> { list.iter().flat_map(|a| a.parse()).collect() };
        let mut link_addresses: BTreeMap<Uplink, Vec<SocketAddr>> = info
            .uplinks
            .iter()
            .filter_map(|uplink| {
                let number = u8::try_from(uplink.number).ok()?;
                Some((Uplink(number), parse(&uplink.link_addresses)))
            })
            .collect();
        link_addresses.insert(Uplink(0), parse(&info.link_addresses));
        Some(Self {
            index: relay_index(info.index)?,
            name: info.name.clone(),
            region: info.region.clone(),
            client_addresses: parse(&info.client_addresses),
            link_addresses,
            draining: info.draining,
            load_permille: info.load_permille,
        })
    }

    /// As clients are told of it.
    pub(crate) fn as_edge(&self) -> Edge {
        Edge {
            relay: self.name.clone(),
            region: self.region.clone(),
            addresses: self
                .client_addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            load_permille: self.load_permille,
        }
    }

    /// Whether it has an uplink of that number.
    pub(crate) fn has_uplink(&self, uplink: Uplink) -> bool {
        self.link_addresses.contains_key(&uplink)
    }

    /// Where it is to be dialled over an uplink.
    pub(crate) fn addresses_of(&self, uplink: Uplink) -> &[SocketAddr] {
        self.link_addresses.get(&uplink).map_or(&[], Vec::as_slice)
    }
}

/// Which plans ingress packets are stamped with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamping {
    /// The plan that a share of the flows is stamped with.
    pub(crate) plan: PlanId,
    /// The share, parts per thousand, at most [`WHOLE`].
    pub(crate) share: u16,
    /// What the other flows are stamped with; [`PlanId::NONE`] when there are no others.
    pub(crate) rest: PlanId,
}

impl Default for Stamping {
    fn default() -> Self {
        Self::all(PlanId::NONE)
    }
}

impl Stamping {
    /// All flows on one plan.
    pub(crate) const fn all(plan: PlanId) -> Self {
        Self {
            plan,
            share: WHOLE,
            rest: PlanId::NONE,
        }
    }

    /// Whether packets are stamped with it here.
    pub(crate) fn stamps(&self, id: PlanId) -> bool {
        id != PlanId::NONE && (id == self.plan || id == self.rest)
    }

    /// The plan of a flow. Shares grow and shrink at one end: a flow in a share of 5 % is in the one
    /// of 25 % too.
    fn draw(&self, flow: FlowHash) -> PlanId {
        if self.share >= WHOLE || flow.plan_draw(u32::from(WHOLE)) < u32::from(self.share) {
            self.plan
        } else {
            self.rest
        }
    }
}

/// Everything a shard looks up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    /// This relay's own index; [`RelayIndex::NONE`] until the controller has given it one.
    pub(crate) me: RelayIndex,
    /// The plan in force: that of all flows, or of a share of them. Directory homes are chosen by it.
    pub(crate) active: PlanId,
    /// Which flows are stamped with it, and with what the others are.
    pub(crate) stamping: Stamping,
    plans: BTreeMap<PlanId, Arc<Plan>>,
    /// All relays of the network, this one included, by index.
    pub(crate) members: BTreeMap<RelayIndex, Arc<Member>>,
    /// Keys that client tokens are verified with.
    pub(crate) keys: Arc<TokenKeys>,
    /// Tokens that are withdrawn. Another list is another `Arc`.
    pub(crate) revoked: Arc<RevocationList>,
}

/// What the ingress edge writes into a packet's header to decide its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) plan: PlanId,
    pub(crate) profile: u8,
    pub(crate) tree: u8,
}

/// The rule set of somebody's packets in the (at most two) plans that are stamped. Plans do not change,
/// so it is found out once for each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RulesByPlan([(PlanId, u8); 2]);

impl Default for RulesByPlan {
    fn default() -> Self {
        Self([(PlanId::NONE, 0); 2])
    }
}

impl RulesByPlan {
    /// The rule set in a plan; `find` finds it out.
    pub(crate) fn of(&mut self, plan: &Plan, find: impl FnOnce(&Plan) -> u8) -> u8 {
        if let Some(&(_, rules)) = self.0.iter().find(|(id, _)| *id == plan.id) {
            return rules;
        }
        let rules = find(plan);
        self.0 = [(plan.id, rules), self.0[0]];
        rules
    }
}

impl Tables {
    /// The plan of that name, if it is held.
    pub(crate) fn plan(&self, id: PlanId) -> Option<&Plan> {
        self.plans.get(&id).map(AsRef::as_ref)
    }

    /// The plan in force.
    pub(crate) fn active_plan(&self) -> Option<&Plan> {
        self.plan(self.active)
    }

    /// Whether the controller tells all relays that this one drains.
    pub(crate) fn i_am_to_go(&self) -> bool {
        self.members.get(&self.me).is_some_and(|me| me.draining)
    }

    /// What a packet that enters the network here is stamped with. `rules` says which rule set of a
    /// plan it keeps to.
    pub(crate) fn stamp(
        &self,
        flow: FlowHash,
        profile: u8,
        destination: RelayIndex,
        rules: impl FnOnce(&Plan) -> u8,
    ) -> Stamp {
        let id = self.stamping.draw(flow);
        // Without a plan it goes by the direct link.
        let (profile, tree) = self.plan(id).map_or((profile, 0), |plan| {
            plan.entry(rules(plan), profile, destination, |of| flow.tree_draw(of))
        });
        Stamp {
            plan: id,
            profile,
            tree,
        }
    }

    /// The same for what is sent to a group.
    pub(crate) fn stamp_to_group(&self, flow: FlowHash, rules: impl FnOnce(&Plan) -> u8) -> Stamp {
        let id = self.stamping.draw(flow);
        let (profile, tree) = self
            .plan(id)
            .map_or((0, 0), |plan| plan.entry_to_group(rules(plan)));
        Stamp {
            plan: id,
            profile,
            tree,
        }
    }

    /// The plans that packets are stamped with here: one, or two while flows are shared between them.
    pub(crate) fn stamped_plans(&self) -> impl Iterator<Item = &Plan> {
        let Stamping { plan, rest, .. } = self.stamping;
        [plan, rest].into_iter().filter_map(|id| self.plan(id))
    }

    /// The plans whose links must be known to work: those that packets are stamped with here, and the
    /// newest one if it is about to come into force. Its links begin to be probed as soon as it is
    /// held, so that one that failed while nobody used it is found by the time packets are sent over
    /// it, and not by them.
    pub(crate) fn plans_in_use(&self) -> impl Iterator<Item = &Plan> {
        let newest = self.plans.last_key_value();
        let coming =
            newest.filter(|&(&id, _)| id > self.stamping.plan && !self.stamping.stamps(id));
        self.stamped_plans()
            .chain(coming.map(|(_, plan)| plan.as_ref()))
    }

    /// The oldest plan that packets are stamped with here.
    pub(crate) fn oldest_stamped(&self) -> PlanId {
        let Stamping { plan, rest, .. } = self.stamping;
        if rest == PlanId::NONE {
            plan
        } else {
            plan.min(rest)
        }
    }

    /// Stamps as `stamping` says from now on.
    pub(crate) fn set_stamping(&mut self, stamping: Stamping) {
        self.active = stamping.plan;
        self.stamping = stamping;
    }

    /// Keeps `plan` beside those held.
    pub(crate) fn insert(&mut self, plan: Plan) {
        self.plans.insert(plan.id, Arc::new(plan));
    }

    /// Forgets a plan.
    pub(crate) fn forget(&mut self, id: PlanId) {
        self.plans.remove(&id);
    }

    /// Names of the plans held, oldest first.
    pub(crate) fn plans_held(&self) -> impl DoubleEndedIterator<Item = PlanId> + '_ {
        self.plans.keys().copied()
    }

    /// The name of the relay with that index.
    pub(crate) fn name_of(&self, index: RelayIndex) -> Option<&str> {
        self.members.get(&index).map(|member| member.name.as_str())
    }
}
