//! Whom the application watches. Watches live on the first session; the table outlives it, so that the
//! application is told of changes only.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tradewind_proto::control::{
    PresenceNews, UnwatchUsers, WatchUsers, client_message::Body, user_presence::Status,
};

use super::{Core, MAX_USER, Timer};
use crate::{Event, WatchError};

/// Users that one client may watch: as many as an edge takes of one session.
const MAX_WATCHED: usize = 1_024;
/// Names in one message: they fit into a frame, however long they are.
const NAMES_PER_MESSAGE: usize = 100;
/// When to ask again what the network had no room for.
const BUSY_RETRY: Duration = Duration::from_secs(5);

/// The users that the application watches.
#[derive(Default)]
pub(super) struct Watched {
    /// Whether each of them was online when it was heard of last.
    users: BTreeMap<Arc<str>, Option<bool>>,
    /// The session that the watches live on.
    session: Option<u64>,
    /// Those that are to be asked for again, and when.
    busy: Vec<Arc<str>>,
    busy_until: Option<Instant>,
}

impl Core {
    /// Watches users from now on.
    pub(crate) fn watch(&mut self, users: &[&str]) -> Result<(), WatchError> {
        if self.closed {
            return Err(WatchError::Closed);
        }
        if users
            .iter()
            .any(|user| user.is_empty() || user.len() > MAX_USER)
        {
            return Err(WatchError::Name);
        }
        let mut new: Vec<Arc<str>> = users
            .iter()
            .filter(|user| !self.watched.users.contains_key(**user))
            .map(|user| Arc::from(*user))
            .collect();
        new.sort_unstable();
        new.dedup();
        if self.watched.users.len() + new.len() > MAX_WATCHED {
            return Err(WatchError::TooMany);
        }
        let unknown = new.iter().map(|user| (user.clone(), None));
        self.watched.users.extend(unknown);
        self.ask_to_watch(&new);
        Ok(())
    }

    /// Watches users no more.
    pub(crate) fn unwatch(&mut self, users: &[&str]) {
        let known = |user: &&&str| self.watched.users.contains_key(**user);
        let known: Vec<&str> = users.iter().filter(known).copied().collect();
        for user in &known {
            self.watched.users.remove(*user);
            self.watched.busy.retain(|busy| **busy != **user);
            self.inbox.forget_presence(user);
        }
        self.ask_to_unwatch(self.watched.session, &known);
    }

    /// All watches move to another session, or wait for one.
    pub(super) fn move_watches(&mut self, to: Option<u64>) {
        let before = std::mem::replace(&mut self.watched.session, to);
        if before == to {
            return;
        }
        self.watched.busy.clear();
        let all: Vec<Arc<str>> = self.watched.users.keys().cloned().collect();
        let names: Vec<&str> = all.iter().map(|user| &**user).collect();
        self.ask_to_unwatch(before, &names);
        self.ask_to_watch(&all);
    }

    /// The edge says how it stands with watched users.
    pub(super) fn on_presence(&mut self, session: u64, news: PresenceNews, now: Instant) {
        if self.watched.session != Some(session) {
            // What was still under way over the session before.
            return;
        }
        for news in news.users {
            let Some((user, &before)) = self.watched.users.get_key_value(&*news.user) else {
                continue;
            };
            let user = user.clone();
            match news.status() {
                status @ (Status::Online | Status::Offline) => {
                    let online = status == Status::Online;
                    if before != Some(online) {
                        self.watched.users.insert(user.clone(), Some(online));
                        self.inbox.push_presence(user, online, before.is_none());
                        self.wakes.events = true;
                    }
                }
                Status::Denied => self.end_watch(user, WatchError::Denied),
                Status::TooMany => self.end_watch(user, WatchError::TooMany),
                Status::Busy => {
                    if !self.watched.busy.contains(&user) {
                        self.watched.busy.push(user);
                    }
                    let at = Some(now + BUSY_RETRY);
                    let before = std::mem::replace(&mut self.watched.busy_until, at);
                    self.set_timer(Timer::Watches, before, at);
                }
                // Of a later version.
                Status::Unspecified => {}
            }
        }
    }

    /// What the network had no room for is asked for again.
    pub(super) fn watch_timer(&mut self) {
        self.watched.busy_until = None;
        let busy = std::mem::take(&mut self.watched.busy);
        self.ask_to_watch(&busy);
    }

    fn end_watch(&mut self, user: Arc<str>, reason: WatchError) {
        self.watched.users.remove(&user);
        self.inbox.forget_presence(&user);
        self.inbox.push_notice(Event::WatchEnded { user, reason });
        self.wakes.events = true;
    }

    fn ask_to_watch(&mut self, users: &[Arc<str>]) {
        let Some(session) = self.watched.session else {
            return;
        };
        for users in users.chunks(NAMES_PER_MESSAGE) {
            let users = users.iter().map(|user| user.to_string()).collect();
            self.tell_session(session, Body::WatchUsers(WatchUsers { users }));
        }
    }

    fn ask_to_unwatch(&mut self, session: Option<u64>, users: &[&str]) {
        let Some(session) = session else {
            return;
        };
        for users in users.chunks(NAMES_PER_MESSAGE) {
            let users = users.iter().map(|user| (*user).to_owned()).collect();
            self.tell_session(session, Body::UnwatchUsers(UnwatchUsers { users }));
        }
    }
}
