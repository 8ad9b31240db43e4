//! What relays ask each other: the directory, and who is behind a session. Asked in packets of kind
//! `control`, over the same trees as everybody's packets.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use tradewind_proto::{
    Class, DropReason, Locator, Profile, RelayIndex, Tenant, UserKey,
    control::{
        Announce, Announced, DirectoryAnswer, DirectoryLookup, Identity, LookupUser,
        PacketRejected, Presence, RelayMessage, SessionGone, WhoIs, Withdraw, lookup_result,
        lookup_user::Purpose, rejected, relay_message,
    },
    packet::{Destination, Kind, LinkHeader, MAX_PASSED},
};

use super::{ConnKey, Shard, TimerKey};
use crate::{
    directory::{self, ANSWER_LEASE, LEASE, RENEWAL, Whereabouts},
    flow::FlowHash,
    forwarder::HOP_LIMIT,
    packet::Packet,
};

/// How long an answer is waited for before it is asked again.
const PATIENCE: Duration = Duration::from_millis(600);
/// How often something is asked.
const TRIES: u32 = 4;
/// Users told to a home in one packet.
const PRESENCES_PER_PACKET: usize = 100;
/// Places of sessions that are announced again in one go.
const RENEWED_AT_ONCE: usize = 2_000;
/// Identities of remote sessions remembered.
const MAX_IDENTITIES: usize = 100_000;
/// Requests open at a time.
const MAX_REQUESTS: usize = 100_000;
/// Longest name of a user, in bytes.
const MAX_USER_NAME: usize = 256;
/// How often a sender is told that the same session is gone.
const GONE_PERIOD: Duration = Duration::from_millis(500);

/// Something asked and not answered yet.
#[derive(Debug)]
pub(super) struct Request {
    tries: u32,
    what: What,
}

#[derive(Debug)]
enum What {
    Lookup {
        session: ConnKey,
        reply_to: u32,
        user: UserKey,
        purpose: Purpose,
        homes: Vec<RelayIndex>,
        /// Homes that say, having been told by all edges, that the user is nowhere.
        nowhere: Vec<RelayIndex>,
    },
    WhoIs {
        locator: Locator,
        waiting: Vec<ConnKey>,
    },
    Announce {
        home: RelayIndex,
        presences: Vec<Presence>,
    },
}

impl Shard {
    /// Asks the homes of a user where it is, for one of our sessions.
    pub(super) fn lookup_user(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        lookup: LookupUser,
        now: Instant,
    ) {
        let purpose = lookup.purpose();
        let Some(own) = self.session(key).and_then(|session| session.user()) else {
            return;
        };
        let user = UserKey {
            app: own.app.clone(),
            user: lookup.user,
        };
        if let Some((at, until)) = self.lookups.get(&user)
            && *until > now
        {
            let at = at.clone();
            self.found_user(key, reply_to, &user.user, &at);
            return;
        }
        if user.user.len() > MAX_USER_NAME {
            self.tell_lookup(key, reply_to, None, lookup_result::Status::Denied);
            return;
        }
        let homes = self.homes_of(&user);
        if homes.is_empty() || self.requests.len() >= MAX_REQUESTS {
            self.tell_lookup(key, reply_to, None, lookup_result::Status::Retry);
            return;
        }
        self.ask(
            What::Lookup {
                session: key,
                reply_to,
                user,
                purpose,
                homes,
                nowhere: Vec::new(),
            },
            now,
        );
    }

    /// Finds out who is behind `sender`, and tells the session.
    pub(super) fn introduce(&mut self, key: ConnKey, sender: Locator, now: Instant) {
        let known = if sender.relay == self.tables.me {
            self.user_at(sender)
        } else {
            self.identities.get(&sender).cloned()
        };
        if let Some(user) = known {
            self.tell_peer(key, sender, &user);
            return;
        }
        let asked = self.asked_who.get(&sender);
        let open = asked.and_then(|id| self.requests.get_mut(id));
        if let Some(Request {
            what: What::WhoIs { waiting, .. },
            ..
        }) = open
        {
            waiting.push(key);
        } else if self.requests.len() < MAX_REQUESTS {
            let what = What::WhoIs {
                locator: sender,
                waiting: vec![key],
            };
            let id = self.ask(what, now);
            self.asked_who.insert(sender, id);
        }
    }

    /// Tells another edge who is behind one of our sessions, as something of it is on its way there for
    /// the first time: so that this need not wait until the edge has asked.
    pub(super) fn introduce_to(&mut self, edge: RelayIndex, sender: Locator, now: Instant) {
        if edge == self.tables.me {
            return;
        }
        let identity = self.identity_of(sender);
        self.send_control(edge, 0, relay_message::Body::Identity(identity), now);
    }

    /// Who is behind a session of this relay, for other relays.
    fn identity_of(&self, locator: Locator) -> Identity {
        let mut identity = Identity {
            locator: Some(locator.into()),
            incarnation: self.incarnation,
            ..Default::default()
        };
        if let Some((user, instance)) = self.user_at(locator) {
            identity.known = true;
            identity.app = user.app;
            identity.user = user.user;
            identity.instance = instance;
        }
        identity
    }

    /// Remembers who is behind a session elsewhere. Where there is no room all others are forgotten, and
    /// asked for again when they matter.
    pub(super) fn remember_identity(&mut self, locator: Locator, identity: (UserKey, u64)) {
        if self.identities.len() >= MAX_IDENTITIES && !self.identities.contains_key(&locator) {
            self.identities.clear();
        }
        self.identities.insert(locator, identity);
    }

    /// Tells the homes of a user of its new session, or how it is used now.
    pub(super) fn announce_session(&mut self, key: ConnKey, now: Instant) {
        let Some((user, at)) = self.presence_of(key) else {
            return;
        };
        for home in self.homes_of(&user) {
            let presences = vec![presence(&user, at)];
            self.ask(What::Announce { home, presences }, now);
        }
    }

    /// Tells all homes of all sessions here, when the list of relays has changed.
    pub(super) fn announce_all(&mut self, now: Instant) {
        self.announce_slots(0..self.slots.len(), now);
    }

    /// Tells the homes of some of the sessions here before the leases end, in turn. Gives how long to
    /// wait for the next ones: each one's turn comes once in a [`RENEWAL`].
    pub(super) fn renew_some(&mut self, now: Instant) -> Duration {
        let from = self.next_renewed;
        let to = self.slots.len().min(from + RENEWED_AT_ONCE);
        self.announce_slots(from..to, now);
        self.next_renewed = if to == self.slots.len() { 0 } else { to };
        let turns = self.slots.len().div_ceil(RENEWED_AT_ONCE).max(1);
        RENEWAL / turns as u32
    }

    fn announce_slots(&mut self, slots: Range<usize>, now: Instant) {
        let mut by_home: BTreeMap<RelayIndex, Vec<Presence>> = BTreeMap::new();
        for (user, at) in self.present(slots) {
            for home in self.homes_of(&user) {
                by_home.entry(home).or_default().push(presence(&user, at));
            }
        }
        for (home, presences) in by_home {
            for chunk in presences.chunks(PRESENCES_PER_PACKET) {
                let presences = chunk.to_vec();
                self.ask(What::Announce { home, presences }, now);
            }
        }
    }

    /// Tells the homes of a user that a session of it has ended.
    pub(super) fn withdraw(&mut self, user: &UserKey, locator: Locator, now: Instant) {
        for home in self.homes_of(user) {
            let message = relay_message::Body::Withdraw(Withdraw {
                presence: Some(Presence {
                    app: user.app.clone(),
                    user: user.user.clone(),
                    locator: Some(locator.into()),
                    ..Default::default()
                }),
            });
            self.send_control(home, 0, message, now);
        }
    }

    /// Tells the edge of `sender` that the session it sends to is no more.
    pub(super) fn tell_sender_gone(&mut self, sender: Locator, gone: Locator, now: Instant) {
        if sender.is_relay_itself() {
            return;
        }
        let told = self.told_gone.get(&(sender, gone)).copied();
        if told.is_some_and(|told| now.saturating_duration_since(told) < GONE_PERIOD) {
            return;
        }
        self.told_gone.insert((sender, gone), now);
        let message = relay_message::Body::SessionGone(SessionGone {
            sender: Some(sender.into()),
            destination: Some(gone.into()),
        });
        self.send_control(sender.relay, 0, message, now);
    }

    /// Tells the sender of a message packet that it was not taken here.
    pub(super) fn tell_sender_rejected(
        &mut self,
        header: &LinkHeader,
        reason: rejected::Reason,
        now: Instant,
    ) {
        let Destination::Session(destination) = header.destination else {
            return;
        };
        if header.sender.is_relay_itself() {
            return;
        }
        let message = relay_message::Body::Rejected(PacketRejected {
            sender: Some(header.sender.into()),
            destination: Some(destination.into()),
            reason: reason as u32,
            flow: header.flow,
            sequence: header.sequence,
        });
        self.send_control(header.sender.relay, 0, message, now);
    }

    fn ask(&mut self, what: What, now: Instant) -> u64 {
        self.next_request += 1;
        let id = self.next_request;
        self.requests.insert(id, Request { tries: 0, what });
        self.try_request(id, now);
        id
    }

    /// Asks (again), or gives up.
    pub(super) fn try_request(&mut self, id: u64, now: Instant) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        request.tries += 1;
        let last = request.tries > TRIES;
        if let What::Announce { presences, .. } = &mut request.what {
            // A session that has ended meanwhile must not come back to life.
            let (slots, me) = (&self.slots, self.tables.me);
            presences.retain(|presence| {
                let locator = presence.locator.and_then(|locator| locator.locator());
                locator.is_some_and(|l| l.relay == me && is_present(slots, l))
            });
            if presences.is_empty() {
                self.requests.remove(&id);
                return;
            }
        }
        let messages: Vec<(RelayIndex, relay_message::Body)> = match &request.what {
            What::Lookup {
                user,
                homes,
                nowhere,
                ..
            } => homes
                .iter()
                .filter(|home| !nowhere.contains(home))
                .map(|&home| {
                    let lookup = DirectoryLookup {
                        app: user.app.clone(),
                        user: user.user.clone(),
                    };
                    (home, relay_message::Body::Lookup(lookup))
                })
                .collect(),
            What::WhoIs { locator, .. } => {
                let who = WhoIs {
                    locator: Some((*locator).into()),
                };
                vec![(locator.relay, relay_message::Body::WhoIs(who))]
            }
            What::Announce { home, presences } => {
                let announce = Announce {
                    presences: presences.clone(),
                    lease_ms: LEASE.as_millis() as u32,
                };
                vec![(*home, relay_message::Body::Announce(announce))]
            }
        };
        if last {
            self.give_up(id);
            return;
        }
        self.timers.push(now + PATIENCE, TimerKey::Request(id));
        for (to, body) in messages {
            self.send_control(to, id, body, now);
        }
    }

    fn give_up(&mut self, id: u64) {
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        if let What::WhoIs { locator, .. } = &request.what {
            self.asked_who.remove(locator);
        }
        if let What::Lookup {
            session, reply_to, ..
        } = request.what
        {
            // What most homes have not said is not known: one alone may have missed an announcement
            // that the others have.
            self.tell_lookup(session, reply_to, None, lookup_result::Status::Retry);
        }
    }

    /// Sends a message to a relay, this one included.
    pub(super) fn send_control(
        &mut self,
        to: RelayIndex,
        id: u64,
        body: relay_message::Body,
        now: Instant,
    ) {
        let me = self.tables.me;
        let message = RelayMessage {
            id,
            body: Some(body),
        };
        if to == me {
            self.own_messages.push_back(message);
            return;
        }
        let sender = Locator::relay_itself(me);
        let profile = Profile::Realtime as u8;
        let stamp = self
            .tables
            .stamp(FlowHash::new(sender, 0), profile, to, |_| 0);
        let header = LinkHeader {
            kind: Kind::Control,
            class: Class::Message,
            profile: stamp.profile,
            tree: stamp.tree,
            deflections: 0,
            trace: false,
            path_change: false,
            hop_limit: HOP_LIMIT,
            plan: stamp.plan,
            age_us: 0,
            sender,
            destination: Destination::Session(Locator::relay_itself(to)),
            passed: [RelayIndex::NONE; MAX_PASSED],
            uplink: 0,
            flow: 0,
            sequence: 0,
            layer: 0,
            tenant: Tenant::NONE,
        };
        let payload = Bytes::from(message.encode_to_vec());
        self.forward(Packet::new(header, payload, 0, now), now);
    }

    /// A control packet for this relay.
    pub(super) fn control_packet(&mut self, packet: &Packet, now: Instant) {
        match RelayMessage::decode(packet.payload()) {
            Ok(message) => self.on_relay_message(packet.header.sender.relay, message, now),
            Err(_) => self.metrics.count_drop(DropReason::Malformed),
        }
    }

    /// Handles what another relay (or this one) asks or answers.
    pub(super) fn on_relay_message(
        &mut self,
        from: RelayIndex,
        message: RelayMessage,
        now: Instant,
    ) {
        use relay_message::Body;
        let message = self.on_group_message(from, message, now);
        let Some(message) = message.and_then(|m| self.on_presence_message(from, m, now)) else {
            return;
        };
        let id = message.id;
        match message.body {
            Some(Body::Announce(announce)) => {
                let lease = Duration::from_millis(u64::from(announce.lease_ms));
                for presence in announce.presences {
                    if let Some((user, at)) = parse_presence(presence)
                        && at.locator.relay == from
                    {
                        self.presence_announced(&user, at.locator, lease, now);
                        self.directory.announce(&user, at, lease, now);
                    }
                }
                self.flush_presence(now);
                self.send_control(from, id, Body::Announced(Announced {}), now);
            }
            Some(Body::Withdraw(withdraw)) => {
                if let Some((user, at)) = withdraw.presence.and_then(parse_presence)
                    && at.locator.relay == from
                {
                    self.directory.withdraw(&user, at.locator, now);
                    self.presence_withdrawn(&user, at.locator, now);
                    self.flush_presence(now);
                }
            }
            Some(Body::Lookup(lookup)) => {
                let user = UserKey {
                    app: lookup.app,
                    user: lookup.user,
                };
                let sessions = self.directory.lookup(&user, now);
                let presences = sessions.iter().map(|&at| Presence {
                    // Whose they are is known to who asks.
                    app: String::new(),
                    user: String::new(),
                    ..presence(&user, at)
                });
                let answer = DirectoryAnswer {
                    locators: sessions.iter().map(|at| at.locator.into()).collect(),
                    presences: presences.collect(),
                    lease_ms: ANSWER_LEASE.as_millis() as u32,
                    warming: now < self.homes_warm_at || self.directory.may_be_moving(&user, now),
                };
                self.send_control(from, id, Body::Answer(answer), now);
            }
            Some(Body::WhoIs(who)) => {
                let Some(locator) = who.locator.and_then(|l| l.locator()) else {
                    return;
                };
                let identity = self.identity_of(locator);
                self.send_control(from, id, Body::Identity(identity), now);
            }
            Some(Body::Announced(_)) => {
                if matches!(
                    self.requests.get(&id),
                    Some(Request { what: What::Announce { home, .. }, .. }) if *home == from
                ) {
                    self.requests.remove(&id);
                }
            }
            Some(Body::Answer(answer)) => self.on_answer(id, from, &answer, now),
            Some(Body::Identity(identity)) => self.on_identity(from, identity),
            Some(Body::SessionGone(gone)) => {
                let sender = gone.sender.and_then(|l| l.locator());
                let destination = gone.destination.and_then(|l| l.locator());
                if let (Some(sender), Some(destination)) = (sender, destination)
                    && destination.relay == from
                {
                    self.lookups.retain(|_, (at, _)| {
                        at.retain(|at| at.locator != destination);
                        !at.is_empty()
                    });
                    self.session_is_gone(sender, destination);
                }
            }
            Some(Body::Rejected(rejection)) => {
                let sender = rejection.sender.and_then(|l| l.locator());
                let destination = rejection.destination.and_then(|l| l.locator());
                let reason = i32::try_from(rejection.reason)
                    .ok()
                    .and_then(|reason| rejected::Reason::try_from(reason).ok())
                    .unwrap_or_default();
                if let (Some(sender), Some(destination)) = (sender, destination) {
                    self.packet_was_rejected(
                        sender,
                        destination,
                        reason,
                        rejection.flow,
                        rejection.sequence,
                    );
                }
            }
            // A message of a later version.
            _ => {}
        }
    }

    fn on_answer(&mut self, id: u64, from: RelayIndex, answer: &DirectoryAnswer, now: Instant) {
        let Some(Request {
            what:
                What::Lookup {
                    session,
                    reply_to,
                    user,
                    purpose,
                    homes,
                    nowhere,
                },
            ..
        }) = self.requests.get_mut(&id)
        else {
            return;
        };
        if !homes.contains(&from) {
            return;
        }
        let (session, reply_to, user, purpose) = (*session, *reply_to, user.clone(), *purpose);
        let at = sessions_in(answer);
        if !at.is_empty() {
            self.requests.remove(&id);
            let lease = Duration::from_millis(u64::from(answer.lease_ms));
            self.found_user(session, reply_to, &user.user, &at);
            self.lookups
                .insert(user, (at, now + lease.min(ANSWER_LEASE)));
            return;
        }
        if answer.warming || nowhere.contains(&from) {
            return;
        }
        nowhere.push(from);
        if 2 * nowhere.len() > homes.len() {
            self.requests.remove(&id);
            self.tell_lookup(session, reply_to, None, lookup_result::Status::Offline);
            self.call_webhook(session, user, purpose);
        }
    }

    /// An edge says who is behind a session of its own, asked or not.
    fn on_identity(&mut self, from: RelayIndex, identity: Identity) {
        let Some(locator) = identity.locator.and_then(|l| l.locator()) else {
            return;
        };
        if locator.relay != from {
            return;
        }
        let asked = self.asked_who.remove(&locator);
        let asked = asked.and_then(|id| self.requests.remove(&id));
        if !identity.known {
            return;
        }
        let user = UserKey {
            app: identity.app,
            user: identity.user,
        };
        let user = (user, identity.instance);
        self.remember_identity(locator, user.clone());
        if let Some(Request {
            what: What::WhoIs { waiting, .. },
            ..
        }) = asked
        {
            for key in waiting {
                self.tell_peer(key, locator, &user);
            }
        }
    }

    fn homes_of(&self, user: &UserKey) -> Vec<RelayIndex> {
        self.tables
            .active_plan()
            .map_or_else(Vec::new, |plan| directory::homes(user, &plan.relays))
    }

    /// Forgets what has run out.
    pub(super) fn sweep_requests(&mut self, now: Instant) {
        self.lookups.retain(|_, (_, until)| *until > now);
        self.told_gone
            .retain(|_, told| now.saturating_duration_since(*told) < GONE_PERIOD);
    }
}

/// Whether a slot still holds the session that the locator names.
fn is_present(slots: &[Option<(u32, ConnKey)>], locator: Locator) -> bool {
    let slot = (locator.slot as usize).checked_sub(1);
    slot.and_then(|index| slots.get(index).copied().flatten())
        .is_some_and(|(generation, _)| generation == locator.generation)
}

fn presence(user: &UserKey, at: Whereabouts) -> Presence {
    Presence {
        app: user.app.clone(),
        user: user.user.clone(),
        locator: Some(at.locator.into()),
        instance: at.instance,
        leg_us: at.leg_us,
        standby: at.standby,
    }
}

fn whereabouts(presence: &Presence) -> Option<Whereabouts> {
    Some(Whereabouts {
        locator: presence.locator?.locator()?,
        instance: presence.instance,
        leg_us: presence.leg_us,
        standby: presence.standby,
    })
}

fn parse_presence(presence: Presence) -> Option<(UserKey, Whereabouts)> {
    let at = whereabouts(&presence)?;
    let user = UserKey {
        app: presence.app,
        user: presence.user,
    };
    Some((user, at))
}

/// The sessions that an answer names. A home of an earlier version says their places only.
fn sessions_in(answer: &DirectoryAnswer) -> Vec<Whereabouts> {
    if !answer.presences.is_empty() {
        return answer.presences.iter().filter_map(whereabouts).collect();
    }
    let only = answer.locators.iter().filter_map(|l| l.locator());
    only.map(|locator| Whereabouts {
        locator,
        instance: 0,
        leg_us: 0,
        standby: false,
    })
    .collect()
}
