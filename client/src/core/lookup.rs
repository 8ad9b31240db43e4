//! Where peers are: lookups, handles, their loss.

use std::{sync::Arc, time::Instant};

use tradewind_proto::{
    control::{
        ClientMessage, EdgeMessage, LookupRelay, LookupUser, Rejected, client_message,
        edge_message, lookup_result, rejected,
    },
    frame_message,
    lane::{Outcome, Trouble},
};

use super::{
    Ask, Core, FLOW_CHECK, Found, LOOKUP_OFFLINE_RETRY, LOOKUP_PATIENCE, LOOKUP_RETRY, LookupError,
    Timer, Whereabouts,
};
use crate::connect::edges_of;

impl Core {
    /// Answers with a handle for `user` as soon as there is one.
    pub(crate) fn find_user(&mut self, user: &str, found: Found, now: Instant) {
        if self.closed {
            let _ = found.send(Err(LookupError::Closed));
            return;
        }
        let Some((name, peer)) = self.peer(user) else {
            let _ = found.send(Err(LookupError::Offline));
            return;
        };
        if let Some(handle) = peer.whereabouts.handle() {
            let _ = found.send(Ok(handle));
            return;
        }
        peer.waiting.push(found);
        self.look_up(&name, now);
    }

    /// Answers with a handle for a relay.
    pub(crate) fn find_relay(&mut self, relay: &str, found: Found) {
        let relay = relay.to_owned();
        let body = client_message::Body::LookupRelay(LookupRelay { relay });
        if let Some(id) = self.tell_edge(body) {
            self.asks.insert(id, Ask::Relay(found));
        }
    }

    /// Sends a control message. Its id; `None` without a session.
    pub(crate) fn tell_edge(&mut self, body: client_message::Body) -> Option<u32> {
        self.live.as_ref()?;
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        let body = Some(body);
        self.control
            .push_back(frame_message(&ClientMessage { id, body }));
        self.wakes.control = true;
        Some(id)
    }

    /// Control messages to send now.
    pub(crate) fn take_control(&mut self, session: u64) -> Vec<bytes::Bytes> {
        if session != self.sessions {
            return Vec::new();
        }
        self.control.drain(..).collect()
    }

    /// A control message has come.
    pub(crate) fn on_control(&mut self, session: u64, message: EdgeMessage, now: Instant) {
        let Some(body) = message.body.filter(|_| session == self.sessions) else {
            return;
        };
        match body {
            edge_message::Body::LookupResult(result) => {
                let status = result.status();
                match self.asks.remove(&message.reply_to) {
                    Some(Ask::User(user)) => {
                        self.on_lookup(&user, message.reply_to, status, result.handle, now);
                    }
                    Some(Ask::Relay(found)) => {
                        let _ = found.send(match status {
                            lookup_result::Status::Found => Ok(result.handle),
                            lookup_result::Status::Denied => Err(LookupError::Denied),
                            lookup_result::Status::Retry => Err(LookupError::TimedOut),
                            _ => Err(LookupError::Offline),
                        });
                    }
                    None => {}
                }
            }
            edge_message::Body::Peer(peer) => self.on_peer(peer.handle, &peer.user, now),
            edge_message::Body::Gone(gone) => self.on_gone(gone.handle, now),
            edge_message::Body::Rejected(rejected) => self.on_rejected(&rejected, now),
            edge_message::Body::Draining(draining) => {
                self.known_edges = edges_of(&draining.edges);
                self.wakes.draining = true;
            }
            edge_message::Body::Refreshed(refreshed) => {
                self.welcome.expires_unix_s = refreshed.expires_unix_s;
                if !refreshed.error.is_empty() {
                    tracing::warn!(error = refreshed.error, "the edge refused the fresh token");
                }
            }
            _ => {}
        }
    }

    /// Asks where a peer is, unless that is known or asked already.
    pub(super) fn look_up(&mut self, user: &Arc<str>, now: Instant) {
        let asking = self.peers.get(user).is_some_and(|peer| {
            matches!(
                peer.whereabouts,
                Whereabouts::Unknown | Whereabouts::AskLater
            )
        });
        if asking {
            self.ask_user(user, now);
        }
    }

    /// A peer does not answer: its edge may have died, which nobody tells. Asks anew where it is.
    pub(super) fn doubt_whereabouts(&mut self, user: &Arc<str>, now: Instant) {
        if let Some(peer) = self.peers.get_mut(user)
            && peer.whereabouts.handle().is_some()
            && peer.is_wanted()
        {
            peer.whereabouts = Whereabouts::Unknown;
            self.look_up(user, now);
        }
    }

    /// The time to ask again has come.
    pub(super) fn lookup_timer(&mut self, user: &Arc<str>, now: Instant) {
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        peer.lookup_timer = None;
        peer.waiting.retain(|found| !found.is_closed());
        match peer.whereabouts {
            Whereabouts::At(_) if peer.flows > 0 && peer.flow_used => self.check_user(user, now),
            Whereabouts::At(_) => {
                if peer.flows > 0 {
                    self.set_lookup_timer(user, Some(now + FLOW_CHECK));
                }
            }
            // No answer. What holds will hold for a while longer.
            Whereabouts::Checked { handle, id } => {
                peer.whereabouts = Whereabouts::At(handle);
                self.asks.remove(&id);
                self.set_lookup_timer(user, Some(now + FLOW_CHECK));
            }
            Whereabouts::Asked(id) => {
                self.asks.remove(&id);
                self.ask_if_wanted(user, now);
            }
            Whereabouts::Unknown | Whereabouts::AskLater => self.ask_if_wanted(user, now),
        }
    }

    /// From the first flow on its way is checked now and then.
    pub(super) fn watch_flow(&mut self, user: &Arc<str>, now: Instant) {
        let unwatched = self.peers.get(user).is_some_and(|peer| {
            let found = matches!(peer.whereabouts, Whereabouts::At(_));
            peer.flows > 0 && found && peer.lookup_timer.is_none()
        });
        if unwatched {
            self.set_lookup_timer(user, Some(now + FLOW_CHECK));
        }
    }

    fn ask_if_wanted(&mut self, user: &Arc<str>, now: Instant) {
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        peer.whereabouts = Whereabouts::Unknown;
        if peer.is_wanted() {
            self.ask_user(user, now);
        }
    }

    /// Asks whether a peer is still where it was.
    fn check_user(&mut self, user: &Arc<str>, now: Instant) {
        let lookup = LookupUser {
            user: user.to_string(),
        };
        let id = self.tell_edge(client_message::Body::LookupUser(lookup));
        if let Some(id) = id
            && let Some(peer) = self.peers.get_mut(user)
            && let Some(handle) = peer.whereabouts.handle()
        {
            peer.flow_used = false;
            peer.whereabouts = Whereabouts::Checked { handle, id };
            self.asks.insert(id, Ask::User(user.clone()));
            self.set_lookup_timer(user, Some(now + LOOKUP_PATIENCE));
        }
    }

    fn ask_user(&mut self, user: &Arc<str>, now: Instant) {
        let lookup = LookupUser {
            user: user.to_string(),
        };
        let id = self.tell_edge(client_message::Body::LookupUser(lookup));
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let Some(id) = id else {
            // Asked when there is a session.
            peer.whereabouts = Whereabouts::Unknown;
            return;
        };
        peer.whereabouts = Whereabouts::Asked(id);
        self.asks.insert(id, Ask::User(user.clone()));
        self.set_lookup_timer(user, Some(now + LOOKUP_PATIENCE));
    }

    fn ask_later(&mut self, user: &Arc<str>, at: Instant) {
        if let Some(peer) = self.peers.get_mut(user) {
            peer.whereabouts = Whereabouts::AskLater;
            self.set_lookup_timer(user, Some(at));
        }
    }

    fn set_lookup_timer(&mut self, user: &Arc<str>, at: Option<Instant>) {
        if let Some(peer) = self.peers.get_mut(user) {
            let before = std::mem::replace(&mut peer.lookup_timer, at);
            self.set_timer(Timer::Lookup(user.clone()), before, at);
        }
    }

    fn on_lookup(
        &mut self,
        user: &Arc<str>,
        id: u32,
        status: lookup_result::Status,
        handle: u32,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let checked = match peer.whereabouts {
            Whereabouts::Asked(asked) if asked == id => false,
            Whereabouts::Checked { id: asked, .. } if asked == id => true,
            _ => return,
        };
        let next_check = (peer.flows > 0).then_some(now + FLOW_CHECK);
        match status {
            lookup_result::Status::Found => {
                peer.whereabouts = Whereabouts::At(handle);
                peer.found_at = Some(now);
                for found in peer.waiting.drain(..) {
                    let _ = found.send(Ok(handle));
                }
                self.handles.entry(handle).or_default().gone = false;
                self.set_lookup_timer(user, next_check);
                self.on_peer(handle, user, now);
                if !checked {
                    self.each_lane(user, now, |lane, _| lane.way_changed());
                }
            }
            lookup_result::Status::Retry if checked => {
                if let Some(handle) = peer.whereabouts.handle() {
                    peer.whereabouts = Whereabouts::At(handle);
                }
                self.set_lookup_timer(user, next_check);
            }
            lookup_result::Status::Retry => self.ask_later(user, now + LOOKUP_RETRY),
            lookup_result::Status::Denied => {
                peer.whereabouts = Whereabouts::Unknown;
                for found in peer.waiting.drain(..) {
                    let _ = found.send(Err(LookupError::Denied));
                }
                self.set_lookup_timer(user, None);
                self.each_lane(user, now, |lane, now| lane.fail_all(Outcome::Denied, now));
            }
            lookup_result::Status::Offline | lookup_result::Status::Unspecified => {
                peer.whereabouts = Whereabouts::Unknown;
                for found in peer.waiting.drain(..) {
                    let _ = found.send(Err(LookupError::Offline));
                }
                self.set_lookup_timer(user, None);
                // What was sent already may have arrived: of that, offline would say too much.
                // The peer may be between two sessions just now.
                self.each_lane(user, now, |lane, now| {
                    lane.fail_unsent(Outcome::Offline, now);
                });
                if self.peers.get(user).is_some_and(super::Peer::is_wanted) {
                    self.ask_later(user, now + LOOKUP_OFFLINE_RETRY);
                }
            }
        }
    }

    fn on_gone(&mut self, handle: u32, now: Instant) {
        let Some(entry) = self.handles.get_mut(&handle) else {
            return;
        };
        entry.gone = true;
        let Some(user) = entry.user.clone() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&user) else {
            return;
        };
        if peer.whereabouts.handle() != Some(handle) {
            return;
        }
        peer.whereabouts = Whereabouts::Unknown;
        if !peer.is_wanted() {
            return;
        }
        // The directory may not have heard yet: do not ask it in a tight loop.
        match peer.found_at {
            Some(found_at) if now < found_at + LOOKUP_RETRY => {
                self.ask_later(&user, found_at + LOOKUP_RETRY);
            }
            _ => self.look_up(&user, now),
        }
    }

    fn on_rejected(&mut self, rejected: &Rejected, now: Instant) {
        let trouble = match rejected.reason() {
            rejected::Reason::UnknownHandle => return self.on_gone(rejected.handle, now),
            rejected::Reason::Denied => Trouble::Denied,
            rejected::Reason::TooLarge => Trouble::TooLarge,
            rejected::Reason::QueueFull
            | rejected::Reason::NoWay
            | rejected::Reason::Unspecified => Trouble::Congested,
        };
        let user = self
            .handles
            .get(&rejected.handle)
            .and_then(|handle| handle.user.clone());
        // Acknowledgements go to other handles; they are made anew when needed.
        let Some(user) = user.filter(|user| {
            self.peers
                .get(user)
                .is_some_and(|peer| peer.whereabouts.handle() == Some(rejected.handle))
        }) else {
            return;
        };
        if let Some(entry) = self.send_entry(&user, rejected.flow) {
            entry.lane.on_rejected(rejected.sequence, trouble, now);
            self.serve_send(&user, rejected.flow);
        }
    }
}
