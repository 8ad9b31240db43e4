//! Where peers are: lookups, the ways to them, their loss.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tradewind_proto::{
    Class,
    control::{
        self, EdgeMessage, FindEdges, LookupRelay, LookupResult, LookupUser, Rejected,
        client_message, edge_message, lookup_result::Status, lookup_user::Purpose, rejected,
    },
    lane::{Outcome, Trouble},
};

use super::{
    Ask, Core, DeviceKey, FLOW_CHECK, Found, LOOKUP_OFFLINE_RETRY, LOOKUP_PATIENCE, LOOKUP_RETRY,
    LookupError, Timer, WayKey, Whereabouts, Wish,
    devices::MAX_DEVICES,
    talk::MOMENT,
    tries::Tries,
    ways::{Choice, Way},
};
use crate::connect::edges_of;

/// Edges nearest to the peer that a conversation tries to enter the network by.
const PEERS_NEAREST: usize = 3;
/// For how long such an edge is wanted.
const WANTED_FOR: Duration = Duration::from_secs(15);

impl Core {
    /// Answers with a way to `user` as soon as there is one.
    /// `class` is that of what is to be sent there, if anything is.
    pub(crate) fn find_user(
        &mut self,
        user: &str,
        class: Option<Class>,
        found: Found,
        now: Instant,
    ) {
        if self.closed {
            let _ = found.send(Err(LookupError::Closed));
            return;
        }
        let Some((name, peer)) = self.peer(user) else {
            let _ = found.send(Err(LookupError::Offline));
            return;
        };
        if let Some(way) = peer.way() {
            let _ = found.send(Ok(way));
            return;
        }
        if let Some(class) = class {
            peer.want(class);
        }
        peer.waiting.push(found);
        self.look_up(&name, now);
    }

    /// Answers with a way to a relay.
    pub(crate) fn find_relay(&mut self, relay: &str, found: Found) {
        let relay = relay.to_owned();
        let body = client_message::Body::LookupRelay(LookupRelay { relay });
        self.ask(body, Ask::Relay(found));
    }

    /// Asks where clients reach these relays; the answer is among the known edges then.
    pub(crate) fn find_edges(&mut self, relays: Vec<String>) {
        self.tell_edge(client_message::Body::FindEdges(FindEdges { relays }));
    }

    /// Sends a control message over the first session. Its id; `None` without one.
    pub(crate) fn tell_edge(&mut self, body: client_message::Body) -> Option<u32> {
        self.tell_session(self.first?, body)
    }

    fn ask(&mut self, body: client_message::Body, ask: Ask) -> Option<(u64, u32)> {
        let session = self.first?;
        self.ask_at(session, body, ask).map(|id| (session, id))
    }

    fn ask_at(&mut self, session: u64, body: client_message::Body, ask: Ask) -> Option<u32> {
        let id = self.tell_session(session, body)?;
        self.attachments.get_mut(&session)?.asks.insert(id, ask);
        Some(id)
    }

    fn forget_ask(&mut self, session: u64, id: u32) {
        if let Some(attachment) = self.attachments.get_mut(&session) {
            attachment.asks.remove(&id);
        }
    }

    /// Control messages to send now.
    pub(crate) fn take_control(&mut self, session: u64) -> Vec<bytes::Bytes> {
        let attachment = self.attachments.get_mut(&session);
        attachment.map_or_else(Vec::new, |attachment| {
            attachment.control.drain(..).collect()
        })
    }

    /// A control message has come.
    pub(crate) fn on_control(&mut self, session: u64, message: EdgeMessage, now: Instant) {
        let Some(attachment) = self.attachments.get_mut(&session) else {
            return;
        };
        let Some(body) = message.body else {
            return;
        };
        match body {
            edge_message::Body::Alive(_) => self.on_alive(session, message.reply_to),
            edge_message::Body::LookupResult(result) => {
                match attachment.asks.remove(&message.reply_to) {
                    Some(Ask::User(user)) => {
                        self.on_lookup(&user, (session, message.reply_to), &result, now);
                    }
                    Some(Ask::Ways(user)) => {
                        if result.status() == Status::Found {
                            self.learn_ways(&user, session, &result, now);
                            self.choose_ways(&user, now);
                        }
                        let of_user = |ask: &Ask| matches!(ask, Ask::Ways(other) if *other == user);
                        let mut others = self.attachments.values();
                        if !others.any(|other| other.asks.values().any(of_user)) {
                            self.try_ways(&user, now);
                        }
                    }
                    Some(Ask::Relay(found)) => {
                        let handle = result.handle;
                        let _ = found.send(match result.status() {
                            Status::Found => Ok(WayKey { session, handle }),
                            Status::Denied => Err(LookupError::Denied),
                            Status::Retry => Err(LookupError::TimedOut),
                            _ => Err(LookupError::Offline),
                        });
                    }
                    Some(Ask::Group(_)) | None => {}
                }
            }
            body @ (edge_message::Body::GroupResult(_)
            | edge_message::Body::GroupSource(_)
            | edge_message::Body::GroupFetched(_)
            | edge_message::Body::GroupHead(_)) => {
                self.on_group_control(session, message.reply_to, body, now);
            }
            edge_message::Body::Peer(peer) => {
                let way = WayKey {
                    session,
                    handle: peer.handle,
                };
                self.on_peer(way, &peer.user, peer.instance, now);
            }
            edge_message::Body::Gone(gone) => {
                let handle = gone.handle;
                self.on_gone(WayKey { session, handle }, now);
            }
            edge_message::Body::Rejected(rejected) => self.on_rejected(session, &rejected, now),
            edge_message::Body::Draining(draining) => {
                self.known_edges = edges_of(&draining.edges);
                self.wake(session, |wakes| wakes.draining = true);
            }
            edge_message::Body::Refreshed(refreshed) => {
                attachment.welcome.expires_unix_s = refreshed.expires_unix_s;
                if self.first == Some(session) {
                    self.welcome.expires_unix_s = refreshed.expires_unix_s;
                }
                if refreshed.error.is_empty() {
                    self.group_token_changed(session, now);
                } else {
                    tracing::warn!(error = refreshed.error, "the edge refused the fresh token");
                }
            }
            edge_message::Body::EdgeDown(down) => self.on_edge_down(&down.relay),
            edge_message::Body::PresenceNews(news) => self.on_presence(session, news, now),
            edge_message::Body::FoundEdges(found) => {
                for edge in edges_of(&found.edges) {
                    if !self.known_edges.contains(&edge) {
                        self.known_edges.push(edge);
                    }
                }
                self.wakes.keeper = true;
            }
            // A message of a later version, or an answer that nobody waits for.
            _ => {}
        }
    }

    /// Asks where a peer is, unless that is known or asked already.
    pub(super) fn look_up(&mut self, user: &Arc<str>, now: Instant) {
        let asking = self.peers.get(user).is_some_and(|peer| {
            let at_rest = matches!(
                peer.whereabouts,
                Whereabouts::Unknown | Whereabouts::AskLater
            );
            at_rest || (peer.whereabouts == Whereabouts::Known && peer.way().is_none())
        });
        if asking {
            self.ask_user(user, now);
        }
    }

    /// A peer does not answer: its edge may have died, which nobody tells. Takes another way to it, and
    /// asks anew where it is.
    pub(super) fn doubt_way(&mut self, key: &DeviceKey, now: Instant) {
        let Some(device) = self.device(key) else {
            return;
        };
        if let Some(way) = device.ways.chosen() {
            device.ways.distrust(way, now);
            self.choose_ways(&key.user, now);
        }
        let asking = self.peers.get(&key.user).is_some_and(|peer| {
            matches!(peer.whereabouts, Whereabouts::Known | Whereabouts::Unknown)
                && peer.is_wanted()
        });
        if asking {
            self.ask_user(&key.user, now);
        }
    }

    /// The time to ask again has come.
    pub(super) fn lookup_timer(&mut self, user: &Arc<str>, now: Instant) {
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        peer.lookup_timer = None;
        peer.waiting.retain(|found| !found.is_closed());
        let (goes_on, lasts) = (peer.talk.goes_on(now), peer.talk.lasts(now));
        match peer.whereabouts {
            Whereabouts::Known if lasts => {
                self.check_user(user, now);
                self.try_ways(user, now);
                self.ask_for_ways(user, now);
            }
            // Nothing else would show that its edge has died.
            Whereabouts::Known if goes_on && peer.flows > 0 => self.check_user(user, now),
            Whereabouts::Known => {}
            // No answer. What holds will hold for a while longer.
            Whereabouts::Checked(session, id) => {
                peer.whereabouts = Whereabouts::Known;
                self.forget_ask(session, id);
                self.set_lookup_timer(user, Some(now + FLOW_CHECK));
                self.ask_if_lost(user, now);
            }
            Whereabouts::Asked(session, id) => {
                peer.whereabouts = Whereabouts::Unknown;
                self.forget_ask(session, id);
                self.ask_if_wanted(user, now);
            }
            Whereabouts::Unknown | Whereabouts::AskLater => self.ask_if_wanted(user, now),
        }
    }

    /// Something was said to a peer, or by it.
    pub(super) fn note_talk(&mut self, user: &Arc<str>, now: Instant) {
        if !self.peers.contains_key(user) {
            // A name that cannot be one's.
            if self.peer(user).is_none() {
                return;
            }
        }
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let lasts = peer.talk.lasts(now);
        let begins = peer.talk.note(now);
        if !lasts && peer.talk.lasts(now) {
            // Where a question is open its answer is waited for.
            if matches!(peer.whereabouts, Whereabouts::Known | Whereabouts::Unknown) {
                self.set_lookup_timer(user, Some(now));
            }
        } else if begins && peer.flows > 0 && peer.lookup_timer.is_none() {
            self.set_lookup_timer(user, Some(now + MOMENT));
        }
    }

    fn ask_if_wanted(&mut self, user: &Arc<str>, now: Instant) {
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        peer.whereabouts = Whereabouts::Unknown;
        if peer.is_wanted() || peer.talk.lasts(now) {
            self.ask_user(user, now);
        }
    }

    /// Asks whether a peer is still where it was.
    fn check_user(&mut self, user: &Arc<str>, now: Instant) {
        let body = lookup_of(user, self.purpose_of(user));
        let Some((session, id)) = self.ask(body, Ask::User(user.clone())) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(user) {
            peer.whereabouts = Whereabouts::Checked(session, id);
            self.set_lookup_timer(user, Some(now + LOOKUP_PATIENCE));
        }
    }

    fn ask_user(&mut self, user: &Arc<str>, now: Instant) {
        let body = lookup_of(user, self.purpose_of(user));
        let asked = self.ask(body, Ask::User(user.clone()));
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let Some((session, id)) = asked else {
            // Asked when there is a session.
            peer.whereabouts = Whereabouts::Unknown;
            return;
        };
        peer.whereabouts = Whereabouts::Asked(session, id);
        self.set_lookup_timer(user, Some(now + LOOKUP_PATIENCE));
    }

    /// Whether conversations choose among edges on this side, or keep to the first session's.
    const fn chooses_edges(&self) -> bool {
        self.near_edges > 1
    }

    /// A conversation lasts: asks the own nearest edges and those nearest to the peer what the ways
    /// from there cost. Those of them that there is no session with are wanted. The one that stands by is
    /// always asked, so that a way is known when the first session is lost.
    pub(super) fn ask_for_ways(&mut self, user: &Arc<str>, now: Instant) {
        let peer = self.peers.get(user).filter(|_| self.chooses_edges());
        let newest = peer.and_then(|peer| {
            let newest = peer.devices.get(&peer.newest?)?;
            Some(&newest.ways)
        });
        let near_peer = newest.map_or_else(Vec::new, |ways| ways.nearest_to_peer(PEERS_NEAREST));
        let leg = |session: u64| Some(self.attachments.get(&session)?.leg());
        let longest = newest.and_then(|ways| ways.longest(leg));
        let mut own: Vec<(Duration, u64)> = self
            .attachments
            .iter()
            .map(|(&session, attachment)| (attachment.leg(), session))
            .collect();
        own.sort_unstable();
        own.truncate(self.near_edges.max(2));
        let asked: Vec<u64> = self
            .attachments
            .iter()
            .filter(|(session, attachment)| {
                let near = own.iter().any(|(_, own)| own == *session);
                let open = |ask: &Ask| matches!(ask, Ask::User(u) | Ask::Ways(u) if u == user);
                let at = &*attachment.welcome.relay;
                (near || near_peer.iter().any(|(relay, _)| **relay == *at))
                    && !attachment.asks.values().any(open)
            })
            .map(|(&session, _)| session)
            .collect();
        for session in asked {
            let body = lookup_of(user, Purpose::Look);
            self.ask_at(session, body, Ask::Ways(user.clone()));
        }
        for (relay, peers_leg) in near_peer {
            let attached = |a: &super::Attachment| *a.welcome.relay == *relay;
            if self.attachments.values().any(attached) {
                continue;
            }
            let within = longest.map_or(Duration::MAX, |most| most.saturating_sub(peers_leg));
            self.wakes.keeper |= !self.wanted_edges.contains_key(&relay);
            let wish = self.wanted_edges.entry(relay).or_insert(Wish {
                until: now,
                within: Duration::ZERO,
            });
            wish.until = now + WANTED_FOR;
            wish.within = wish.within.max(within);
        }
    }

    /// What waits for a peer, as the edge is told.
    fn purpose_of(&self, user: &str) -> Purpose {
        let peer = self.peers.get(user).filter(|peer| peer.is_wanted());
        match peer.and_then(|peer| peer.wants) {
            None => Purpose::Look,
            Some(Class::Audio) => Purpose::Audio,
            Some(Class::Message) => Purpose::Message,
            Some(Class::Video) => Purpose::Video,
            Some(Class::Bulk) => Purpose::Bulk,
        }
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
        (session, id): (u64, u32),
        result: &LookupResult,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let checked = match peer.whereabouts {
            Whereabouts::Asked(s, asked) if (s, asked) == (session, id) => false,
            Whereabouts::Checked(s, asked) if (s, asked) == (session, id) => true,
            _ => return,
        };
        match result.status() {
            Status::Found => {
                peer.whereabouts = Whereabouts::Known;
                peer.found_at = Some(now);
                if !peer.has_messages() {
                    peer.wants = None;
                }
                let lasts = peer.talk.lasts(now);
                // Of messages a single one is no conversation yet.
                let goes_on = lasts || peer.flows > 0 && peer.talk.goes_on(now);
                let pause = if lasts { FLOW_CHECK } else { MOMENT };
                self.set_lookup_timer(user, goes_on.then_some(now + pause));
                self.learn_ways(user, session, result, now);
                self.choose_ways(user, now);
                let absent = self.peers.get(user).is_some_and(|peer| {
                    let mut devices = peer.devices.values();
                    devices.any(|device| device.absent_since.is_some() && device.has_messages())
                });
                if absent {
                    self.set_lookup_timer(user, Some(now + LOOKUP_OFFLINE_RETRY));
                }
            }
            // What holds will hold for a while longer: the directory alone does not end a way in use.
            Status::Retry if checked => {
                peer.whereabouts = Whereabouts::Known;
                self.set_lookup_timer(user, Some(now + FLOW_CHECK));
                self.ask_if_lost(user, now);
            }
            Status::Retry => self.ask_later(user, now + LOOKUP_RETRY),
            Status::Denied => {
                peer.whereabouts = Whereabouts::Unknown;
                for device in peer.devices.values_mut() {
                    device.ways.clear();
                }
                for found in peer.waiting.drain(..) {
                    let _ = found.send(Err(LookupError::Denied));
                }
                self.set_lookup_timer(user, None);
                self.each_lane(user, now, |lane, now| lane.fail_all(Outcome::Denied, now));
            }
            Status::Offline | Status::Unspecified => {
                peer.whereabouts = Whereabouts::Unknown;
                // The edge knows now; it is not to be told again for the same thing.
                peer.wants = None;
                for device in peer.devices.values_mut() {
                    device.ways.clear();
                }
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

    /// Takes the ways to a peer that begin with a session.
    fn learn_ways(&mut self, user: &Arc<str>, session: u64, result: &LookupResult, now: Instant) {
        let mut devices = result.devices.clone();
        if devices.is_empty() {
            // From an edge of an earlier version.
            devices.push(control::Device {
                instance: 0,
                ways: vec![control::Way {
                    handle: result.handle,
                    ..Default::default()
                }],
            });
        }
        devices.truncate(MAX_DEVICES);
        let present: Vec<u64> = devices.iter().map(|device| device.instance).collect();
        self.take_devices(user, &present, now);
        if let Some(peer) = self.peers.get_mut(user) {
            for (instance, device) in &mut peer.devices {
                if !present.contains(instance) {
                    device.ways.learn(session, []);
                }
            }
        }
        for device in devices {
            let instance = device.instance;
            for way in &device.ways {
                let handle = way.handle;
                if let Some(attachment) = self.attachments.get_mut(&session) {
                    attachment.handles.entry(handle).or_default().gone = false;
                }
                self.on_peer(WayKey { session, handle }, user, instance, now);
            }
            // A session that only stands by, at either end, is taken where there is nothing else.
            let (chooses, is_first) = (self.chooses_edges(), self.first == Some(session));
            let usual = |way: &control::Way| chooses || (is_first && !way.standby);
            let ways: Vec<(u32, Way)> = device
                .ways
                .into_iter()
                .map(|way| {
                    let micros = |us: u32| (us > 0).then(|| Duration::from_micros(u64::from(us)));
                    let cost = micros(way.cost_us).filter(|_| usual(&way));
                    let known = Way {
                        relay: way.relay.into(),
                        cost,
                        leg: micros(way.leg_us),
                        standby: way.standby,
                        distrusted_until: None,
                        proven_at: None,
                        tries: Tries::default(),
                    };
                    (way.handle, known)
                })
                .collect();
            let user = user.clone();
            if let Some(device) = self.device(&DeviceKey { user, instance }) {
                device.ways.learn(session, ways);
            }
        }
    }

    /// Takes the best way to each device of a peer.
    pub(super) fn choose_ways(&mut self, user: &Arc<str>, now: Instant) {
        let (attachments, first) = (&self.attachments, self.first);
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let leg = |session: u64| Some(attachments.get(&session)?.leg());
        let (mut moved, mut unproven) = (Vec::new(), Vec::new());
        for (&instance, device) in &mut peer.devices {
            match device.ways.choose(leg, first, now) {
                Choice::Same => {}
                Choice::Prove(way) => unproven.push((instance, way)),
                choice => moved.push((instance, choice)),
            }
        }
        if let Some(way) = peer.way() {
            for found in peer.waiting.drain(..) {
                let _ = found.send(Ok(way));
            }
        }
        let key = |instance| DeviceKey {
            user: user.clone(),
            instance,
        };
        for (instance, way) in unproven {
            self.prove_way(&key(instance), way, now);
        }
        for (instance, choice) in moved {
            let key = key(instance);
            let Some(device) = self.device(&key) else {
                continue;
            };
            let lanes: Vec<u32> = device.lanes.keys().copied().collect();
            for lane in lanes {
                if let Some(entry) = self.send_entry(&key, lane) {
                    entry.queued = false;
                    // What is on its way over the old one has not got lost when that was merely longer.
                    if choice == Choice::Other {
                        entry.lane.way_changed();
                    }
                    self.serve_send(&key, lane);
                }
            }
        }
        self.say_unsaid(user, now);
        self.ask_if_lost(user, now);
    }

    /// Asks where a peer is if there is no way for something that wants to go there.
    pub(super) fn ask_if_lost(&mut self, user: &Arc<str>, now: Instant) {
        let lost = self.peers.get(user).is_some_and(|peer| {
            let without_way =
                |device: &super::Device| device.has_messages() && device.ways.chosen().is_none();
            let media = (peer.flows > 0 || !peer.waiting.is_empty()) && peer.way().is_none();
            peer.whereabouts == Whereabouts::Known
                && (media || peer.devices.values().any(without_way))
        });
        if lost {
            self.ask_soon(user, now);
        }
    }

    /// Asks where a peer is, but not in a tight loop: the directory may not have heard yet.
    fn ask_soon(&mut self, user: &Arc<str>, now: Instant) {
        let Some(peer) = self.peers.get(user) else {
            return;
        };
        match peer.found_at {
            Some(found_at) if now < found_at + LOOKUP_RETRY => {
                self.ask_later(user, found_at + LOOKUP_RETRY);
            }
            _ => self.ask_user(user, now),
        }
    }

    /// The peer's session at the end of a way is over.
    fn on_gone(&mut self, way: WayKey, now: Instant) {
        if self.is_group_way(way) {
            return self.on_group_gone(way.handle, now);
        }
        let attachment = self.attachments.get_mut(&way.session);
        let Some(entry) = attachment.and_then(|a| a.handles.get_mut(&way.handle)) else {
            return;
        };
        // The edge gives the handle to another session later.
        entry.gone = true;
        let (Some(user), instance) = (entry.user.take(), entry.instance) else {
            return;
        };
        let key = DeviceKey {
            user: user.clone(),
            instance,
        };
        let known = self.device(&key).is_some_and(|d| d.ways.forget(way));
        if known {
            // What was asked before may be answered with what was so before.
            if let Some(peer) = self.peers.get_mut(&user)
                && matches!(peer.whereabouts, Whereabouts::Checked(..))
            {
                peer.whereabouts = Whereabouts::Known;
            }
            self.choose_ways(&user, now);
        }
    }

    fn on_rejected(&mut self, session: u64, rejected: &Rejected, now: Instant) {
        let way = WayKey {
            session,
            handle: rejected.handle,
        };
        let trouble = match rejected.reason() {
            rejected::Reason::UnknownHandle => return self.on_gone(way, now),
            rejected::Reason::Denied => Trouble::Denied,
            rejected::Reason::TooLarge => Trouble::TooLarge,
            rejected::Reason::QueueFull
            | rejected::Reason::NoWay
            | rejected::Reason::Unspecified => Trouble::Congested,
        };
        if self.is_group_way(way) {
            return self.on_group_rejected(rejected, trouble, now);
        }
        let attachment = self.attachments.get(&session);
        let Some(handle) = attachment.and_then(|a| a.handles.get(&way.handle)) else {
            return;
        };
        let Some(user) = handle.user.clone() else {
            return;
        };
        let key = DeviceKey {
            user,
            instance: handle.instance,
        };
        // Acknowledgements go to other handles; they are made anew when needed.
        if self.device(&key).and_then(|device| device.ways.chosen()) != Some(way) {
            return;
        }
        if let Some(entry) = self.send_entry(&key, rejected.flow) {
            entry.lane.on_rejected(rejected.sequence, trouble, now);
            self.serve_send(&key, rejected.flow);
        }
    }

    /// A peer has left the edge of that name: whatever leads there is not taken for a while.
    pub(super) fn on_left(&mut self, key: &DeviceKey, relay: &str, heard: WayKey, now: Instant) {
        self.make_device(key);
        if let Some(device) = self.device(key) {
            device.ways.heard(heard);
            device.ways.distrust_relay(relay, now);
            self.choose_ways(&key.user, now);
        }
    }
}

fn lookup_of(user: &str, purpose: Purpose) -> client_message::Body {
    client_message::Body::LookupUser(LookupUser {
        user: user.to_owned(),
        purpose: purpose as i32,
    })
}
