//! Who sends to groups: edge-wide handles, and the users behind them.

use std::time::Instant;

use tradewind_proto::{
    DropReason, GroupKey, Locator,
    control::{EdgeMessage, GroupSource, edge_message},
    frame_message,
};

use super::{ConnKey, EDGE_HANDLE, Group, INTRODUCTION_PERIOD, MAX_SOURCES, Shard, Source, What};

/// Senders that a new member is told of at once.
const MAX_TOLD: usize = 1_024;

impl Group {
    fn source_message(&self, locator: Locator) -> Option<GroupSource> {
        let source = self.sources.get(&locator)?;
        Some(GroupSource {
            handle: source.handle,
            group: self.id.group.clone(),
            user: source.user.clone()?,
            origin: u32::from(locator.relay.0),
        })
    }
}

impl Shard {
    /// The edge-wide handle of a sender, made when there is none.
    pub(super) fn handle_of_source(
        &mut self,
        key: GroupKey,
        locator: Locator,
        now: Instant,
    ) -> Option<u32> {
        let groups = &mut self.groups;
        let group = groups.known.get_mut(&key)?;
        if let Some(source) = group.sources.get_mut(&locator) {
            source.used = now;
            let handle = source.handle;
            let ask = source.user.is_none()
                && now.saturating_duration_since(source.asked) > INTRODUCTION_PERIOD;
            if ask {
                source.asked = now;
                self.ask_who_is(key, locator, now);
            }
            return Some(handle);
        }
        if groups.sources >= MAX_SOURCES {
            self.metrics.count_drop(DropReason::UnknownHandle);
            return None;
        }
        groups.sources += 1;
        groups.next_handle = (groups.next_handle + 1) & !EDGE_HANDLE;
        let handle = groups.next_handle | EDGE_HANDLE;
        let source = Source {
            handle,
            user: None,
            asked: now,
            used: now,
        };
        group.sources.insert(locator, source);
        self.ask_who_is(key, locator, now);
        Some(handle)
    }

    /// Finds out who is behind a sender's locator.
    fn ask_who_is(&mut self, key: GroupKey, locator: Locator, now: Instant) {
        let known = if locator.relay == self.tables.me {
            self.user_at(locator)
        } else {
            self.identities.get(&locator).cloned()
        };
        match known {
            Some((user, _)) => self.source_is(key, locator, &user.app, user.user, now),
            None => self.ask_relay(
                What::WhoIs {
                    group: key,
                    locator,
                },
                now,
            ),
        }
    }

    /// A sender's user is known now: all members are told.
    pub(super) fn source_is(
        &mut self,
        key: GroupKey,
        locator: Locator,
        app: &str,
        user: String,
        now: Instant,
    ) {
        let Some(group) = self.groups.known.get_mut(&key).filter(|g| g.id.app == app) else {
            return; // users of another app are nobody here
        };
        let Some(source) = group.sources.get_mut(&locator) else {
            return;
        };
        source.user = Some(user);
        let Some(message) = group.source_message(locator) else {
            return;
        };
        let frame = frame_message(&EdgeMessage {
            reply_to: 0,
            body: Some(edge_message::Body::GroupSource(message)),
        });
        // One that reads nothing is closed, and leaves the group by that.
        let members: Vec<ConnKey> = group.members.iter().map(|member| member.key).collect();
        for member in members {
            self.tell_framed(member, frame.clone(), now);
        }
    }

    /// Tells a new member who is behind the handles there are.
    pub(super) fn tell_sources(&mut self, key: GroupKey, member: ConnKey) {
        let Some(group) = self.groups.known.get(&key) else {
            return;
        };
        // The latest ones: a member that cannot take in all of them at once would be closed for it.
        let mut latest: Vec<_> = group.sources.iter().map(|(&l, s)| (s.used, l)).collect();
        latest.sort_unstable_by(|a, b| b.cmp(a));
        latest.truncate(MAX_TOLD);
        let locators = latest.iter().map(|(_, locator)| locator);
        let messages: Vec<GroupSource> =
            locators.filter_map(|&l| group.source_message(l)).collect();
        for message in messages {
            self.tell(member, 0, edge_message::Body::GroupSource(message));
        }
    }
}
