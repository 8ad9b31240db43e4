//! What is asked of other relays until they answer: to hold our announcements, and who a sender is.

use std::{collections::BTreeMap, time::Instant};

use tradewind_proto::{
    GroupKey, RelayIndex,
    control::{GroupAnnounce, WhoIs, relay_message},
};

use super::{Ask, GROUPS_PER_PACKET, Group, PATIENCE, Shard, TRIES, Timer, TimerKey, What};
use crate::groups::{GroupId, LEASE};

impl Shard {
    /// Tells the homes of a group that has members here, unless they know.
    pub(super) fn announce_group(&mut self, group_key: GroupKey, now: Instant) {
        let tables = self.tables.clone();
        let relays = tables.active_plan().map_or(&[][..], |plan| &plan.relays);
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        let new = group.announced.set_homes(group.id.homes(relays));
        for home in new {
            let groups = vec![group_key];
            self.ask_relay(What::Announce { home, groups }, now);
        }
    }

    /// Tells all homes of all groups with members here: before the leases end.
    pub(in crate::shard) fn renew_groups(&mut self, now: Instant) {
        let mut by_home: BTreeMap<RelayIndex, Vec<GroupKey>> = BTreeMap::new();
        for (&key, group) in self.groups.known.iter().filter(|(_, g)| g.is_announced()) {
            for &home in group.announced.homes() {
                by_home.entry(home).or_default().push(key);
            }
        }
        self.announce_groups(by_home, now);
    }

    fn announce_groups(&mut self, by_home: BTreeMap<RelayIndex, Vec<GroupKey>>, now: Instant) {
        for (home, groups) in by_home {
            for chunk in groups.chunks(GROUPS_PER_PACKET) {
                let groups = chunk.to_vec();
                self.ask_relay(What::Announce { home, groups }, now);
            }
        }
    }

    /// The relays that homes are chosen from have changed: what moved is announced and asked for anew.
    pub(in crate::shard) fn move_groups(
        &mut self,
        before: Option<Vec<RelayIndex>>,
        warm: bool,
        now: Instant,
    ) {
        // What was a home all the time knows all that it knew.
        if warm {
            self.groups.relays_before = before.unwrap_or_default();
        }
        let tables = self.tables.clone();
        let relays = tables.active_plan().map_or(&[][..], |plan| &plan.relays);
        let mut by_home: BTreeMap<RelayIndex, Vec<GroupKey>> = BTreeMap::new();
        let mut cached = Vec::new();
        for (&key, group) in &mut self.groups.known {
            let homes = group.id.homes(relays);
            if group.is_announced() {
                for home in group.announced.set_homes(homes.clone()) {
                    by_home.entry(home).or_default().push(key);
                }
            }
            if let Some(cache) = &mut group.cache {
                cache.set_homes(homes);
                cached.push(key);
            }
        }
        self.announce_groups(by_home, now);
        for key in cached {
            self.ask_homes(key, now);
            self.relays_have_changed(key, now);
        }
    }

    /// Whether this home may not know all relays with members of a group yet.
    pub(super) fn is_warming(&self, group: &GroupId, now: Instant) -> bool {
        let before = &self.groups.relays_before;
        now < self.groups.cold_until
            || (now < self.homes_warm_at && !group.homes(before).contains(&self.tables.me))
    }

    pub(super) fn ask_relay(&mut self, what: What, now: Instant) {
        let id = self.groups.next_id();
        let ask = Ask {
            tries: 0,
            since: now,
            what,
        };
        self.groups.asks.insert(id, ask);
        self.try_ask(id, now);
    }

    /// Asks (again), or gives up: announcements are renewed, and who a sender is is asked when its next
    /// packet comes.
    pub(super) fn try_ask(&mut self, id: u64, now: Instant) {
        let groups = &mut self.groups;
        let Some(ask) = groups.asks.get_mut(&id) else {
            return;
        };
        ask.tries += 1;
        let (to, body) = match &mut ask.what {
            What::Announce { home, groups: keys } => {
                // A group whose last member has left meanwhile must not come back to life.
                keys.retain(|key| groups.known.get(key).is_some_and(Group::is_announced));
                let names = keys.iter().filter_map(|key| groups.known.get(key));
                let announce = GroupAnnounce {
                    groups: names.map(|group| group.id.message()).collect(),
                    lease_ms: LEASE.as_millis() as u32,
                };
                let some = !announce.groups.is_empty();
                (
                    some.then_some(*home),
                    relay_message::Body::GroupAnnounce(announce),
                )
            }
            What::WhoIs { locator, .. } => {
                let who = WhoIs {
                    locator: Some((*locator).into()),
                };
                (Some(locator.relay), relay_message::Body::WhoIs(who))
            }
        };
        match to.filter(|_| ask.tries <= TRIES) {
            Some(to) => {
                self.timers
                    .push(now + PATIENCE, TimerKey::Groups(Timer::Ask(id)));
                self.send_control(to, id, body, now);
            }
            None => {
                groups.asks.remove(&id);
            }
        }
    }
}
