//! What relays say to each other about groups.

use std::time::{Duration, Instant};

use tradewind_proto::{
    GroupKey, RelayIndex, UserKey,
    control::{
        GroupAnnounced, GroupAnswer, GroupChanged, GroupConfirmed, GroupHeld, GroupName, Identity,
        RelayMessage, relay_message::Body,
    },
    packet::RelaySet,
};

use super::{LaneKey, OWN_ID, Shard, What};
use crate::{
    groups::{CACHE_LEASE, GroupId, HomeAction},
    plan::relay_index,
};

/// Confirmations in one packet.
const SEGMENTS_PER_PACKET: usize = 200;

impl Shard {
    /// Handles a message that is about groups; gives back what is not.
    pub(in crate::shard) fn on_group_message(
        &mut self,
        from: RelayIndex,
        message: RelayMessage,
        now: Instant,
    ) -> Option<RelayMessage> {
        let id = message.id;
        match message.body {
            Some(Body::GroupAnnounce(announce)) => {
                let lease = Duration::from_millis(u64::from(announce.lease_ms));
                let names = announce.groups.into_iter();
                let groups: Vec<GroupId> = names
                    .filter_map(|name| GroupId::parse(Some(name)))
                    .collect();
                self.at_home(now, |home, actions| {
                    home.announce(from, id, groups, lease, now, actions);
                });
            }
            Some(Body::GroupWithdraw(withdraw)) => {
                if let Some(group) = GroupId::parse(withdraw.group) {
                    self.at_home(now, |home, actions| {
                        home.withdraw(from, id, &group, now, actions);
                    });
                }
            }
            Some(Body::GroupLookup(lookup)) => self.on_group_lookup(from, id, lookup.group, now),
            Some(Body::GroupConfirmed(_)) => {
                self.at_home(now, |home, actions| home.confirmed(from, id, now, actions));
            }
            Some(Body::GroupAnnounced(_)) => self.on_group_announced(from, id, now),
            Some(Body::GroupAnswer(answer)) => self.on_group_answer(from, id, answer, now),
            Some(Body::GroupChanged(changed)) => self.on_group_changed(from, id, changed, now),
            Some(Body::GroupHeld(held)) => self.on_group_held(from, &held, now),
            Some(Body::GroupFetch(fetch)) => self.on_group_fetch(from, id, fetch, now),
            Some(Body::GroupReplay(replay)) => self.on_group_replay(from, id, replay, now),
            Some(Body::Identity(identity)) if id & OWN_ID != 0 => {
                self.on_source_identity(from, id, identity, now);
            }
            body => return Some(RelayMessage { id, body }),
        }
        None
    }

    pub(super) fn home_says(&mut self, action: HomeAction, now: Instant) {
        match action {
            HomeAction::Announced { to, id } => {
                self.send_control(to, id, Body::GroupAnnounced(GroupAnnounced {}), now);
            }
            HomeAction::Changed {
                to,
                id,
                group,
                relays,
                version,
            } => {
                let changed = GroupChanged {
                    group: Some(group.message()),
                    relays: numbers(&relays),
                    version,
                };
                self.send_control(to, id, Body::GroupChanged(changed), now);
            }
        }
    }

    fn on_group_lookup(
        &mut self,
        from: RelayIndex,
        id: u64,
        name: Option<GroupName>,
        now: Instant,
    ) {
        let Some(group) = GroupId::parse(name) else {
            return;
        };
        let warming = self.is_warming(&group, now);
        let mut found = None;
        self.at_home(now, |home, _| {
            found = home.look_up(from, group.clone(), now);
        });
        let Some((relays, version)) = found else {
            return; // no room: the edge asks again
        };
        let answer = GroupAnswer {
            group: Some(group.message()),
            relays: numbers(&relays),
            version,
            lease_ms: CACHE_LEASE.as_millis() as u32,
            warming,
        };
        self.send_control(from, id, Body::GroupAnswer(answer), now);
    }

    fn on_group_announced(&mut self, from: RelayIndex, id: u64, now: Instant) {
        let Some(ask) = self.groups.asks.get(&id) else {
            return;
        };
        let What::Announce { home, .. } = &ask.what else {
            return;
        };
        if *home != from {
            return;
        }
        let Some(ask) = self.groups.asks.remove(&id) else {
            return;
        };
        if let What::Announce { groups, .. } = ask.what {
            for key in groups {
                if let Some(group) = self.groups.known.get_mut(&key) {
                    group.announced.confirm(from, ask.since);
                }
                self.settle_waiting(key, now);
            }
        }
    }

    fn on_group_answer(&mut self, from: RelayIndex, id: u64, answer: GroupAnswer, now: Instant) {
        let Some(key) = GroupId::parse(answer.group).map(|group| group.key()) else {
            return;
        };
        let relays = indices(&answer.relays);
        if let Some(cache) = self
            .groups
            .known
            .get_mut(&key)
            .and_then(|g| g.cache.as_mut())
            && cache.answer(from, id, relays, answer.version, answer.warming)
        {
            self.relays_have_changed(key, now);
        }
    }

    fn on_group_changed(&mut self, from: RelayIndex, id: u64, changed: GroupChanged, now: Instant) {
        let Some(key) = GroupId::parse(changed.group).map(|group| group.key()) else {
            return;
        };
        if let Some(cache) = self
            .groups
            .known
            .get_mut(&key)
            .and_then(|g| g.cache.as_mut())
        {
            cache.changed(from, indices(&changed.relays), changed.version, now);
            self.relays_have_changed(key, now);
        }
        // Whoever uses nothing of it has nothing to change.
        self.send_control(from, id, Body::GroupConfirmed(GroupConfirmed {}), now);
    }

    fn on_group_held(&mut self, from: RelayIndex, held: &GroupHeld, now: Instant) {
        for segment in &held.segments {
            let key = LaneKey {
                group: GroupKey(segment.group),
                sender: segment.sender,
                lane: segment.lane,
            };
            let lane = self.groups.known.get_mut(&key.group);
            let lane = lane.and_then(|group| group.lanes.get_mut(&(key.sender, key.lane)));
            if let Some(lane) = lane {
                lane.ingress.used = now;
                if lane.ingress.confirm(segment.sequence, from, segment.age_us) {
                    self.groups.acks_due.insert(key);
                }
            }
        }
    }

    fn on_source_identity(&mut self, from: RelayIndex, id: u64, identity: Identity, now: Instant) {
        let Some(ask) = self.groups.asks.get(&id) else {
            return;
        };
        let What::WhoIs { group, locator } = ask.what else {
            return;
        };
        if locator.relay != from {
            return;
        }
        self.groups.asks.remove(&id);
        if !identity.known {
            return;
        }
        let user = UserKey {
            app: identity.app.clone(),
            user: identity.user.clone(),
        };
        self.remember_identity(locator, (user, identity.instance));
        self.source_is(group, locator, &identity.app, identity.user, now);
    }

    /// Sends the confirmations and acknowledgements that this turn has brought. `true` when there were
    /// any.
    pub(in crate::shard) fn flush_groups(&mut self, now: Instant) -> bool {
        let held = std::mem::take(&mut self.groups.held);
        let acks = std::mem::take(&mut self.groups.acks_due);
        let any = !held.is_empty() || !acks.is_empty();
        for (origin, segments) in held {
            for chunk in segments.chunks(SEGMENTS_PER_PACKET) {
                let segments = chunk.to_vec();
                self.send_control(origin, 0, Body::GroupHeld(GroupHeld { segments }), now);
            }
        }
        for lane in acks {
            self.acknowledge(lane, now);
        }
        any
    }
}

fn numbers(relays: &RelaySet) -> Vec<u32> {
    relays.iter().map(|relay| u32::from(relay.0)).collect()
}

fn indices(relays: &[u32]) -> RelaySet {
    relays
        .iter()
        .filter_map(|&relay| relay_index(relay))
        .collect()
}
