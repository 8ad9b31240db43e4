//! Presence at a shard: what its sessions watch, what it says of users as one of their homes, and which
//! relays live. The state machines are in [`crate::presence`].

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tradewind_proto::{
    Locator, RelayIndex, UserKey,
    control::{
        PresenceChanged, PresenceNews, PresenceNoted, PresenceState, PresenceStates,
        PresenceUnwatch, PresenceWatch, RelayMessage, UserName, UserPresence, WhoIs, edge_message,
        relay_message::Body, user_presence,
    },
};

use super::{ConnKey, Shard, TimerKey};
use crate::{
    directory::{self, COLD_START},
    presence::{
        Known, LEASE, Lives, News, Refusal, Status, TICK, USERS_PER_MESSAGE, Watchers, Watches,
        is_user_name, name_of, parse_name,
    },
};

/// The highest bits of the ids of what this file asks; [`super::requests`] counts from 1, and groups
/// have the highest bit set.
const OWN_ID: u64 = 0b01 << 62;

/// All that a shard knows of presence.
#[derive(Debug)]
pub(super) struct Presence {
    watches: Watches<ConnKey>,
    watchers: Watchers,
    lives: Lives,
    next_id: u64,
    /// The next tick stands among the timers.
    ticks: bool,
    /// Not before all edges have told this home of their sessions does it know anything.
    cold_until: Instant,
    /// The relays before those that the homes are chosen from now: their homes know everything.
    relays_before: Vec<RelayIndex>,
}

impl Presence {
    pub(super) fn new(now: Instant, wall: SystemTime) -> Self {
        let wall_us = wall
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as u64);
        Self {
            watches: Watches::default(),
            watchers: Watchers::new(wall_us, OWN_ID),
            lives: Lives::default(),
            next_id: OWN_ID,
            ticks: false,
            cold_until: now + COLD_START,
            relays_before: Vec::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.watches.len() == 0 && self.watchers.len() == 0
    }
}

impl Shard {
    /// A client watches users.
    pub(super) fn watch_users(&mut self, key: ConnKey, users: Vec<String>, now: Instant) {
        let tables = self.tables.clone();
        let homes = |user: &UserKey| homes_of(&tables, user);
        let mut refused = Vec::new();
        for user in users {
            let Some(session) = self.session(key) else {
                return;
            };
            let allowed = is_user_name(&user) && session.may_watch(&user);
            let Some(app) = session
                .user()
                .filter(|_| allowed)
                .map(|own| own.app.clone())
            else {
                refused.push((user, user_presence::Status::Denied));
                continue;
            };
            let watched = UserKey {
                app,
                user: user.clone(),
            };
            let presence = &mut self.presence;
            let lives = &presence.lives;
            match presence.watches.watch(key, watched, homes, lives, now) {
                Ok(()) => {}
                Err(Refusal::TooMany) => refused.push((user, user_presence::Status::TooMany)),
                Err(Refusal::Busy) => refused.push((user, user_presence::Status::Busy)),
            }
        }
        self.tell_presence(key, refused);
        self.flush_presence(now);
    }

    /// A client does not watch users any more.
    pub(super) fn unwatch_users(&mut self, key: ConnKey, users: Vec<String>, now: Instant) {
        let Some(app) = self.session(key).and_then(|s| Some(s.user()?.app.clone())) else {
            return;
        };
        for user in users {
            let app = app.clone();
            self.presence.watches.unwatch(key, &UserKey { app, user });
        }
        self.flush_presence(now);
    }

    /// A session has a new token: it watches nobody any more whom this one does not allow.
    pub(super) fn stop_denied_watches(&mut self, key: ConnKey, now: Instant) {
        let Some(session) = self.session(key) else {
            return;
        };
        let watched = self.presence.watches.watched_by(key);
        let denied = watched.filter(|watched| !session.may_watch(&watched.user));
        let denied: Vec<Arc<UserKey>> = denied.cloned().collect();
        let mut refused = Vec::new();
        for user in denied {
            self.presence.watches.unwatch(key, &user);
            refused.push((user.user.clone(), user_presence::Status::Denied));
        }
        self.tell_presence(key, refused);
        self.flush_presence(now);
    }

    /// A session has ended: it watches nobody any more.
    pub(super) fn stop_watching(&mut self, key: ConnKey, now: Instant) {
        self.presence.watches.forget_session(key);
        self.flush_presence(now);
    }

    /// As one of the homes of a user this relay is told of a session.
    pub(super) fn presence_announced(
        &mut self,
        user: &UserKey,
        locator: Locator,
        lease: Duration,
        now: Instant,
    ) {
        let Presence {
            watchers, lives, ..
        } = &mut self.presence;
        watchers.announced(user, locator, lease, lives, now);
    }

    /// As one of the homes of a user this relay is told that a session has ended.
    pub(super) fn presence_withdrawn(&mut self, user: &UserKey, locator: Locator, now: Instant) {
        let Presence {
            watchers, lives, ..
        } = &mut self.presence;
        watchers.withdrawn(user, locator, lives, now);
    }

    /// The relays that homes are chosen from have changed.
    pub(super) fn move_presence(&mut self, before: Option<Vec<RelayIndex>>, warm: bool) {
        // What was a home all the time knows all that it knew.
        if warm {
            self.presence.relays_before = before.unwrap_or_default();
        }
        self.presence.watches.move_homes();
    }

    /// Handles a message that is about presence; gives back what is not.
    pub(super) fn on_presence_message(
        &mut self,
        from: RelayIndex,
        message: RelayMessage,
        now: Instant,
    ) -> Option<RelayMessage> {
        let id = message.id;
        match message.body {
            Some(Body::PresenceWatch(watch)) => {
                let lease = Duration::from_millis(u64::from(watch.lease_ms));
                let states = self.watched_from(from, watch.users, lease, now);
                let states = PresenceStates { states };
                self.send_control(from, id, Body::PresenceStates(states), now);
            }
            Some(Body::PresenceUnwatch(unwatch)) => {
                let Presence {
                    watchers, lives, ..
                } = &mut self.presence;
                for user in unwatch
                    .users
                    .into_iter()
                    .filter_map(|u| parse_name(Some(u)))
                {
                    watchers.unwatch(from, &user, lives, now);
                }
            }
            Some(Body::PresenceStates(states)) => {
                self.take_states(from, states.states, true, now);
            }
            Some(Body::PresenceChanged(changed)) => {
                self.take_states(from, changed.states, false, now);
                self.send_control(from, id, Body::PresenceNoted(PresenceNoted {}), now);
            }
            Some(Body::PresenceNoted(_)) => self.presence.watchers.noted(from, id),
            Some(Body::Identity(identity)) if id >> 62 == OWN_ID >> 62 => {
                let Presence {
                    watchers, lives, ..
                } = &mut self.presence;
                if lives.heard(from, id & !OWN_ID, identity.incarnation, now) {
                    watchers.relay_changed(from);
                }
            }
            body => return Some(RelayMessage { id, body }),
        }
        self.flush_presence(now);
        None
    }

    /// Looks at what is due.
    pub(super) fn presence_due(&mut self, now: Instant) {
        self.presence.ticks = false;
        let me = self.tables.me;
        let tables = self.tables.clone();
        let presence = &mut self.presence;
        let there: BTreeSet<RelayIndex> = presence
            .watchers
            .relays()
            .chain(presence.watches.homes())
            .filter(|relay| *relay != me)
            .collect();
        presence.lives.follow(there.into_iter(), now);
        let (asked, died) = presence.lives.tick(now);
        for relay in died {
            presence.watchers.relay_changed(relay);
        }
        presence.watchers.tick(&presence.lives, now);
        let homes = |user: &UserKey| homes_of(&tables, user);
        presence.watches.tick(homes, &presence.lives, now);
        for (relay, id) in asked {
            let locator = Some(Locator::relay_itself(relay).into());
            let id = OWN_ID | id;
            self.send_control(relay, id, Body::WhoIs(WhoIs { locator }), now);
        }
        self.flush_presence(now);
    }

    /// How many users are watched.
    pub(super) fn count_watched(&self) {
        let Presence {
            watches, watchers, ..
        } = &self.presence;
        self.metrics.watched_users.set(watches.len() as i64);
        let of_home = watchers.len() as i64;
        self.metrics.directory_watched_users.set(of_home);
    }

    /// An edge watches users of whom this relay is a home.
    fn watched_from(
        &mut self,
        from: RelayIndex,
        users: Vec<UserName>,
        lease: Duration,
        now: Instant,
    ) -> Vec<PresenceState> {
        let directory = self.directory.clone();
        let names = users.into_iter().take(USERS_PER_MESSAGE);
        let mut states = Vec::new();
        for user in names.filter_map(|name| parse_name(Some(name))) {
            let sure_from = self.presence_sure_from(&user, now);
            let known = || Known {
                sessions: directory
                    .lookup(&user, now)
                    .iter()
                    .map(|at| at.locator)
                    .collect(),
                may_be_moving: directory.may_be_moving(&user, now),
            };
            let Presence {
                watchers, lives, ..
            } = &mut self.presence;
            let terms = (lease, sure_from);
            let (status, version) = watchers.watch(from, &user, terms, known, lives, now);
            states.push(state(&user, status, version));
        }
        states
    }

    /// From when on this home knows all sessions of a user.
    fn presence_sure_from(&self, user: &UserKey, now: Instant) -> Instant {
        // Nearly always: no user's homes have to be worked out.
        if now >= self.homes_warm_at {
            return self.presence.cold_until;
        }
        let before = directory::homes(user, &self.presence.relays_before);
        if before.contains(&self.tables.me) {
            self.presence.cold_until
        } else {
            self.presence.cold_until.max(self.homes_warm_at)
        }
    }

    fn take_states(
        &mut self,
        from: RelayIndex,
        states: Vec<PresenceState>,
        asked: bool,
        now: Instant,
    ) {
        let Presence { watches, lives, .. } = &mut self.presence;
        let states = states.into_iter().filter_map(|state| {
            let status = state.status();
            Some((parse_name(state.user)?, status, state.version))
        });
        watches.on_states(from, states, asked, lives, now);
    }

    /// Sends what there is to be said.
    pub(super) fn flush_presence(&mut self, now: Instant) {
        if !self.presence.ticks && !self.presence.is_idle() {
            self.presence.ticks = true;
            self.timers.push(now + TICK, TimerKey::Presence);
        }
        for (home, users) in self.presence.watches.questions() {
            for users in users.chunks(USERS_PER_MESSAGE) {
                self.presence.next_id += 1;
                let watch = PresenceWatch {
                    users: users.iter().map(|user| name_of(user)).collect(),
                    lease_ms: LEASE.as_millis() as u32,
                };
                let id = self.presence.next_id;
                self.send_control(home, id, Body::PresenceWatch(watch), now);
            }
        }
        for (home, users) in self.presence.watches.farewells() {
            for users in users.chunks(USERS_PER_MESSAGE) {
                let users = users.iter().map(|user| name_of(user)).collect();
                let unwatch = PresenceUnwatch { users };
                self.send_control(home, 0, Body::PresenceUnwatch(unwatch), now);
            }
        }
        for push in self.presence.watchers.pushes(now) {
            let states = push.states.iter();
            let states = states.map(|(user, status, version)| state(user, *status, *version));
            let changed = PresenceChanged {
                states: states.collect(),
            };
            self.send_control(push.to, push.id, Body::PresenceChanged(changed), now);
        }
        for (session, news) in self.presence.watches.news() {
            let status = |news| match news {
                News::Online => user_presence::Status::Online,
                News::Offline => user_presence::Status::Offline,
                News::Busy => user_presence::Status::Busy,
            };
            let users = news.into_iter();
            let users = users.map(|(user, news)| (user.user.clone(), status(news)));
            self.tell_presence(session, users.collect());
        }
    }

    fn tell_presence(&mut self, key: ConnKey, users: Vec<(String, user_presence::Status)>) {
        for users in users.chunks(USERS_PER_MESSAGE) {
            let one = |(user, status): &(String, user_presence::Status)| UserPresence {
                user: user.clone(),
                status: *status as i32,
            };
            let users = users.iter().map(one).collect();
            self.tell(
                key,
                0,
                edge_message::Body::PresenceNews(PresenceNews { users }),
            );
        }
    }
}

fn homes_of(tables: &crate::tables::Tables, user: &UserKey) -> Vec<RelayIndex> {
    let plan = tables.active_plan();
    plan.map_or_else(Vec::new, |plan| directory::homes(user, &plan.relays))
}

fn state(user: &UserKey, status: Status, version: u64) -> PresenceState {
    PresenceState {
        user: Some(name_of(user)),
        status: status as i32,
        version,
    }
}
