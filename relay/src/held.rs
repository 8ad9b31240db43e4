//! What the relay holds of what controllers have said: the tables, and the form that is kept on
//! disk. Decides what is believed: nothing of a controller older than one already seen, no order
//! older than the one in force, no plan part twice.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tradewind_proto::{
    PlanId, RelayIndex,
    control::{self, Activate, HeldState, PlanPart},
};
use tradewind_trust::{Revocation, RevocationList, TokenKeys};

use crate::{
    plan::{BadPlan, Plan},
    tables::{Member, Stamping, Tables, WHOLE},
};

/// The newest plans are held, whether or not anybody stamps them: what a rollback goes back to.
const NEWEST_HELD: usize = 8;
/// How long any plan is held at least: packets stamped with it are still on their way, and an
/// activation that was told to others may be late here.
const HELD_AT_LEAST: Duration = Duration::from_secs(30);
/// Plans held at most, whatever is asked of us.
const MOST_HELD: usize = 64;

/// Everything that the tables are made from, in the form it came and is kept.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) state: HeldState,
    pub(crate) tables: Tables,
    /// Since when each plan is held.
    since: BTreeMap<PlanId, Instant>,
    /// The oldest plan that neighbours stamp; [`PlanId::NONE`] while none has said so.
    stamped_elsewhere: PlanId,
}

/// What became of an [`Activate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// It holds from now on.
    Done,
    /// It was overtaken by a later one, or is that of now once more.
    Late,
    /// It cannot be followed.
    Refused(&'static str),
}

impl Held {
    /// Takes what was kept on disk. Plans that cannot be read are left out.
    pub(crate) fn restore(&mut self, state: HeldState, now: Instant, wall: SystemTime) {
        self.state.epoch = state.epoch;
        self.take_index(state.index);
        if let Some(relays) = state.relays {
            self.take_relays(relays);
        }
        if let Some(keys) = state.keys {
            self.take_keys(keys);
        }
        if let Some(revocations) = state.revocations {
            self.take_revocations(revocations, wall);
        }
        for part in [&state.rest, &state.plan].into_iter().flatten() {
            if let Ok(plan) = Plan::from_part(part) {
                self.insert(plan, now);
            }
        }
        let kept = state.stamping.unwrap_or_default();
        let order = kept.order;
        let whole = Activate {
            plan: state.plan.as_ref().and_then(|part| part.plan),
            ..Default::default()
        };
        // If its other half is damaged, all flows go by the plan that is there.
        for activate in [kept, whole] {
            if let Ok(stamping) = self.stamping(&activate) {
                self.stamp(stamping, order);
                return;
            }
        }
    }

    /// A controller has given this relay its index. `false` when the controller is of an older epoch
    /// than one already seen: nothing of it may be taken.
    pub(crate) fn register(&mut self, index: u32, epoch: u32) -> bool {
        if epoch < self.state.epoch {
            return false;
        }
        self.see_epoch(epoch);
        self.take_index(index);
        true
    }

    fn see_epoch(&mut self, epoch: u32) {
        if epoch > self.state.epoch {
            self.state.epoch = epoch;
            // Orders count from anew in each epoch.
            if let Some(stamping) = &mut self.state.stamping {
                stamping.order = 0;
            }
        }
    }

    fn take_index(&mut self, index: u32) {
        self.tables.me = u16::try_from(index).map_or(RelayIndex::NONE, RelayIndex);
        self.state.index = index;
    }

    pub(crate) fn take_relays(&mut self, list: control::RelayList) {
        self.tables.members = list
            .relays
            .iter()
            .filter_map(Member::from_info)
            .map(|member| (member.index, Arc::new(member)))
            .collect();
        self.state.relays = Some(list);
    }

    pub(crate) fn take_keys(&mut self, list: control::TokenKeys) {
        let mut keys = TokenKeys::default();
        for key in &list.keys {
            match <[u8; 32]>::try_from(key.public_key.as_slice()) {
                Ok(public) => keys.insert(key.kid.clone(), public),
                Err(_) => tracing::error!(kid = %key.kid, "a token key has not 32 bytes"),
            }
        }
        self.tables.keys = Arc::new(keys);
        self.state.keys = Some(list);
    }

    /// Takes which tokens are withdrawn, or what has changed of that.
    pub(crate) fn take_revocations(&mut self, change: control::Revocations, wall: SystemTime) {
        let mut list = match change.whole {
            true => RevocationList::default(),
            false => self.tables.revoked.as_ref().clone(),
        };
        list.prune(wall);
        for lifted in change
            .lifted
            .into_iter()
            .filter_map(Revocation::from_message)
        {
            list.remove(&lifted.app, &lifted.what);
        }
        for revoked in change.revoked {
            let taken = Revocation::from_message(revoked).map(|revoked| list.insert(&revoked));
            match taken {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::error!(%error, "a revocation is not taken"),
                None => tracing::error!("a revocation of a kind that is not known is not taken"),
            }
        }
        // What was kept on disk may be over by now.
        list.prune(wall);
        if list != *self.tables.revoked {
            self.tables.revoked = Arc::new(list);
        }
        self.state.revocations = Some(control::Revocations {
            whole: true,
            revoked: self.tables.revoked.iter().map(|r| r.to_message()).collect(),
            lifted: Vec::new(),
        });
    }

    /// Holds a plan. Gives its name when it is held now (also when it was before: the answer to that
    /// may have been lost), `None` when it is of a controller before the present one.
    pub(crate) fn hold(
        &mut self,
        part: &PlanPart,
        now: Instant,
    ) -> Result<Option<PlanId>, BadPlan> {
        let plan = Plan::from_part(part)?;
        let id = plan.id;
        if u32::from(id.epoch) < self.state.epoch {
            return Ok(None);
        }
        // A controller that finds itself behind begins a new epoch without a new connection.
        self.see_epoch(u32::from(id.epoch));
        if self.tables.plan(id).is_none() {
            self.insert(plan, now);
            self.forget_old(now);
        }
        Ok(Some(id))
    }

    /// Follows an order of what to stamp.
    pub(crate) fn activate(&mut self, activate: &Activate) -> Activation {
        let stamping = match self.stamping(activate) {
            Ok(stamping) => stamping,
            Err(reason) => return Activation::Refused(reason),
        };
        let last = self.state.stamping.as_ref().map_or(0, |last| last.order);
        let overtaken = match activate.order {
            // From a controller that knows no orders.
            0 => stamping.plan <= self.tables.active,
            order => order <= last,
        };
        if overtaken {
            return Activation::Late;
        }
        self.stamp(stamping, activate.order.max(last));
        Activation::Done
    }

    /// The oldest plan that some neighbour stamps, as its probes say.
    pub(crate) fn note_stamped_elsewhere(&mut self, oldest: PlanId) {
        self.stamped_elsewhere = oldest;
    }

    /// What an order means, if everything it names is held.
    fn stamping(&self, activate: &Activate) -> Result<Stamping, &'static str> {
        let held = |name: Option<control::PlanName>| {
            name.and_then(|name| name.id())
                .filter(|&id| self.tables.plan(id).is_some())
        };
        let plan = held(activate.plan).ok_or("the plan is not held")?;
        match u16::try_from(activate.share_permille) {
            Ok(0 | WHOLE) => Ok(Stamping::all(plan)),
            Ok(share) if share < WHOLE => Ok(Stamping {
                plan,
                share,
                rest: held(activate.rest).ok_or("the plan of the other flows is not held")?,
            }),
            _ => Err("the share is more than the whole"),
        }
    }

    fn stamp(&mut self, stamping: Stamping, order: u64) {
        self.tables.set_stamping(stamping);
        let part = |id| self.tables.plan(id).map(|plan| plan.part.clone());
        self.state.plan = part(stamping.plan);
        self.state.rest = part(stamping.rest);
        self.state.stamping = Some(Activate {
            plan: Some(stamping.plan.into()),
            share_permille: u32::from(stamping.share),
            rest: (stamping.rest != PlanId::NONE).then(|| stamping.rest.into()),
            order,
        });
    }

    fn insert(&mut self, plan: Plan, now: Instant) {
        self.since.insert(plan.id, now);
        self.tables.insert(plan);
    }

    /// Forgets the plans that nobody needs any more: not among the newest, held for long enough,
    /// stamped neither here nor by a neighbour. Beyond [`MOST_HELD`] only what is certainly stamped
    /// stays.
    fn forget_old(&mut self, now: Instant) {
        let elsewhere = self.stamped_elsewhere;
        let old: Vec<PlanId> = self.tables.plans_held().rev().skip(NEWEST_HELD).collect();
        let mut count = self.since.len();
        for id in old.into_iter().rev() {
            let held_for = self
                .since
                .get(&id)
                .map_or(Duration::MAX, |&since| now.saturating_duration_since(since));
            let needed = held_for < HELD_AT_LEAST || (elsewhere != PlanId::NONE && id >= elsewhere);
            let stamped = self.tables.stamping.stamps(id) || id == elsewhere;
            if !stamped && (!needed || count > MOST_HELD) {
                self.tables.forget(id);
                self.since.remove(&id);
                count -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
