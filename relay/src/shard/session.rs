//! Client sessions: token, handles, beginning and end. What goes through them is in [`packets`].

mod groups;
mod idle;
mod packets;
mod token;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use prost::Message as _;
use rand::RngExt;
use rustc_hash::FxHashMap;
use tradewind_proto::{
    Class, CloseCode, Locator, Profile, RelayIndex, UserKey,
    control::{
        ClientMessage, Device, Edge, EdgeDown, EdgeMessage, Edges, Hello, LookupResult,
        Role as SessionRole, UnwatchUsers, WatchUsers, Way, Welcome, client_message, edge_message,
        lookup_result,
    },
    frame_message,
    token::Claims,
};

use super::{
    ConnKey, Shard, TimerKey,
    connection::{Conn, Role},
};
use crate::{
    allowance::Allowance, apps::AppId, directory::Whereabouts, plan::Plan,
    presence::USERS_PER_MESSAGE, tables::RulesByPlan,
};

/// Handles that one session may hold.
const MAX_HANDLES: usize = 16_384;
/// How long a new connection may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Edges told to a client in its welcome.
const EDGES_TOLD: usize = 8;
/// Edges that a client may ask for at once.
const EDGES_FOUND: usize = 64;
/// A handle that leads nowhere any more is given anew only after so long: by then no packet with the
/// old meaning is on its way.
const HANDLE_REST: Duration = Duration::from_secs(60);

/// A client's session.
#[derive(Debug)]
pub(crate) struct Session {
    /// Its slot from 1; 0 until the token has been verified.
    pub(super) slot: u32,
    pub(super) generation: u32,
    ready: Option<Ready>,
    handles: Vec<Handle>,
    by_locator: FxHashMap<Locator, u32>,
    /// Handles that lead nowhere any more, and since when.
    resting: VecDeque<(Instant, u32)>,
    /// The rule sets that its app keeps to.
    rules: RulesByPlan,
    groups: groups::SessionGroups,
    /// When the client is to be told that it is still known, and in answer to what.
    answer_due: Option<(Instant, u32)>,
}

/// What is known of a session once its token has been verified.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) user: UserKey,
    claims: Claims,
    /// The SDK instance.
    instance: u64,
    /// It is one of the client's further sessions; its first one is at the relay of that index, if it
    /// has said so.
    further: Option<RelayIndex>,
    app: AppId,
    /// What its token allows it to send.
    allowance: Option<Allowance>,
}

/// What a handle stands for.
#[derive(Debug, Clone)]
struct Handle {
    /// `None` for sessions whose user is still being asked for, and for relays.
    user: Option<Box<str>>,
    /// When that was asked last.
    asked: Option<Instant>,
    /// Where to send to; `None` when that place is known to be empty.
    locator: Option<Locator>,
    /// The edge there knows who this client is, or has been told: it was looked up by the one who has
    /// sent to it, or has sent something.
    introduced: bool,
}

impl Session {
    pub(super) fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    pub(super) fn user(&self) -> Option<&UserKey> {
        self.ready.as_ref().map(|ready| &ready.user)
    }

    /// Whether its token allows it to watch a user.
    pub(super) fn may_watch(&self, user: &str) -> bool {
        let ready = self.ready.as_ref();
        ready.is_some_and(|ready| ready.claims.may_watch(user))
    }

    /// Whether its token allows it to send in a class.
    pub(super) fn may_send_in(&self, class: Class) -> bool {
        let ready = self.ready.as_ref();
        ready.is_some_and(|ready| ready.claims.allows_class(class))
    }

    pub(super) fn expired(&self, wall: SystemTime) -> bool {
        self.ready
            .as_ref()
            .is_some_and(|ready| unix_s(wall) >= ready.claims.exp)
    }

    /// The rule set of this session's packets in a plan.
    fn rules_in(&mut self, plan: &Plan) -> u8 {
        let app = self.ready.as_ref().map_or("", |ready| &ready.user.app);
        self.rules.of(plan, |plan| plan.rules_for_app(app))
    }

    /// The handle for the session at `locator`; `true` when it was made just now.
    fn handle_of(&mut self, locator: Locator, now: Instant) -> Option<(u32, bool)> {
        if let Some(&handle) = self.by_locator.get(&locator) {
            return Some((handle, false));
        }
        let handle = self.new_handle(locator, now)?;
        self.by_locator.insert(locator, handle);
        Some((handle, true))
    }

    /// The same where the user there is known.
    fn handle_of_user(&mut self, user: &str, locator: Locator, now: Instant) -> Option<u32> {
        let (handle, _) = self.handle_of(locator, now)?;
        let known = &mut self.handles[handle as usize - 1].user;
        known.get_or_insert_with(|| user.into());
        Some(handle)
    }

    /// Handles count from 1, so that 0 is none.
    fn new_handle(&mut self, locator: Locator, now: Instant) -> Option<u32> {
        let fresh = Handle {
            user: None,
            asked: None,
            locator: Some(locator),
            introduced: false,
        };
        if let Some(&(since, handle)) = self.resting.front()
            && now.saturating_duration_since(since) >= HANDLE_REST
        {
            self.resting.pop_front();
            self.handles[handle as usize - 1] = fresh;
            return Some(handle);
        }
        if self.handles.len() >= MAX_HANDLES {
            return None;
        }
        self.handles.push(fresh);
        Some(self.handles.len() as u32)
    }

    /// The session at `locator` is no more. Its handle, if it had one.
    fn release(&mut self, locator: Locator, now: Instant) -> Option<u32> {
        let handle = self.by_locator.remove(&locator)?;
        self.handles[handle as usize - 1].locator = None;
        self.resting.push_back((now, handle));
        Some(handle)
    }

    fn handle(&self, handle: u32) -> Option<&Handle> {
        self.handles.get((handle as usize).checked_sub(1)?)
    }

    /// Whether the edge behind a handle has yet to be told who this client is. From now on it has been.
    fn must_introduce(&mut self, handle: u32) -> bool {
        let handle = (handle as usize).checked_sub(1);
        let handle = handle.and_then(|index| self.handles.get_mut(index));
        handle.is_some_and(|handle| !std::mem::replace(&mut handle.introduced, true))
    }
}

impl Ready {
    /// Whether its token allows it to send `bytes` more now.
    fn may_send(&mut self, bytes: usize, now: Instant) -> bool {
        let allowance = self.allowance.as_mut();
        allowance.is_none_or(|allowance| allowance.allows(bytes, now))
    }

    /// Takes what has been sent off what its token allows.
    fn spend(&mut self, bytes: usize) {
        if let Some(allowance) = &mut self.allowance {
            allowance.spend(bytes);
        }
    }

    /// Another token for the same user.
    fn renew(&mut self, claims: Claims, now: Instant) {
        let rate = rate_of(&claims);
        self.allowance = match (rate, self.allowance) {
            (None, _) => None,
            (Some(rate), None) => Some(Allowance::new(rate, packets::MAX_PACKET, now)),
            (Some(rate), Some(old)) => Some(old.with_rate(rate, packets::MAX_PACKET, now)),
        };
        self.claims = claims;
    }
}

/// What a token allows, bytes per second.
fn rate_of(claims: &Claims) -> Option<f64> {
    claims.rate_bps.map(|bits| bits as f64 / 8.0)
}

impl Shard {
    /// A new client connection.
    pub(super) fn accepted_session(&mut self) -> Role {
        Role::Session(Box::new(Session {
            slot: 0,
            generation: self.rng.random(),
            ready: None,
            handles: Vec::new(),
            by_locator: FxHashMap::default(),
            resting: VecDeque::new(),
            rules: RulesByPlan::default(),
            groups: groups::SessionGroups::default(),
            answer_due: None,
        }))
    }

    /// The handshake of a client is complete: it has to say hello.
    pub(super) fn session_connected(&mut self, key: ConnKey, now: Instant) {
        self.timers
            .push(now + HELLO_PATIENCE, TimerKey::Greeting(key));
    }

    /// A message on a session's control stream.
    pub(super) fn session_control(&mut self, key: ConnKey, frame: &[u8], now: Instant) {
        let Ok(ClientMessage {
            id,
            body: Some(body),
        }) = ClientMessage::decode(frame)
        else {
            // A message of a later version: nothing to answer with.
            return;
        };
        let ready = self.session(key).is_some_and(Session::is_ready);
        match body {
            client_message::Body::Hello(hello) if !ready => {
                self.hello(key, id, &hello, now);
            }
            client_message::Body::LookupUser(lookup) if ready => {
                self.lookup_user(key, id, lookup, now);
            }
            client_message::Body::LookupRelay(lookup) if ready => {
                self.lookup_relay(key, id, &lookup.relay, now);
            }
            client_message::Body::Role(role) if ready => self.take_role(key, &role, now),
            client_message::Body::FindEdges(find) if ready => {
                let edges = self.edges_called(&find.relays);
                self.tell(key, id, edge_message::Body::FoundEdges(Edges { edges }));
            }
            client_message::Body::RefreshToken(refresh) if ready => {
                self.refresh(key, id, &refresh.token, now);
                self.leave_denied_groups(key, now);
                self.stop_denied_watches(key, now);
            }
            client_message::Body::KeepAlive(wait) if ready => {
                self.keep_alive(key, id, &wait, now);
            }
            client_message::Body::JoinGroup(join) if ready => {
                self.join_group(key, id, &join, now);
            }
            client_message::Body::LeaveGroup(leave) if ready => {
                self.leave_group(key, id, &leave, now);
            }
            client_message::Body::LookupGroup(lookup) if ready => {
                self.look_group_up(key, id, &lookup, now);
            }
            client_message::Body::FetchGroup(fetch) if ready => {
                self.fetch_from_group(key, id, &fetch, now);
            }
            client_message::Body::WatchUsers(WatchUsers { users })
            | client_message::Body::UnwatchUsers(UnwatchUsers { users })
                if users.len() > USERS_PER_MESSAGE =>
            {
                self.close(
                    key,
                    CloseCode::Protocol,
                    "a message names 100 users at most",
                    now,
                );
            }
            client_message::Body::WatchUsers(watch) if ready => {
                self.watch_users(key, watch.users, now);
            }
            client_message::Body::UnwatchUsers(unwatch) if ready => {
                self.unwatch_users(key, unwatch.users, now);
            }
            client_message::Body::Bye(_) => self.close(key, CloseCode::Done, "bye", now),
            _ if ready => {}
            _ => self.close(
                key,
                CloseCode::Protocol,
                "the first message must be one hello",
                now,
            ),
        }
    }

    fn hello(&mut self, key: ConnKey, id: u32, hello: &Hello, now: Instant) {
        let refusal = if self.draining {
            Some((CloseCode::Draining, "the relay is draining".to_owned()))
        } else if self.tables.me == RelayIndex::NONE {
            let reason = "the relay has not joined its network yet; try another or again";
            Some((CloseCode::Full, reason.to_owned()))
        } else if self.sessions >= self.limits.max_sessions {
            Some((CloseCode::Full, "the relay is full".to_owned()))
        } else {
            None
        };
        if let Some((code, reason)) = refusal {
            self.metrics.sessions_refused.inc();
            self.close(key, code, &reason, now);
            return;
        }
        let claims = match self.verify(&hello.token) {
            Ok(claims) => claims,
            Err((code, reason)) => {
                self.metrics.sessions_refused.inc();
                self.close(key, code, &reason, now);
                return;
            }
        };
        let tables = self.tables.clone();
        let user = UserKey {
            app: claims.app.clone(),
            user: claims.user.clone(),
        };
        let further = self.further(hello.role.as_ref());
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32
        });
        let app = self.apps.enter(&claims.app, packets::MAX_PACKET, now);
        let Some(session) = self.session_mut(key) else {
            return;
        };
        session.slot = slot;
        let locator = Locator {
            relay: tables.me,
            slot,
            generation: session.generation,
        };
        let welcome = Welcome {
            relay: tables.name_of(tables.me).unwrap_or_default().to_owned(),
            region: tables
                .members
                .get(&tables.me)
                .map_or_else(String::new, |member| member.region.clone()),
            relay_index: u32::from(locator.relay.0),
            slot: locator.slot,
            generation: locator.generation,
            max_message_bytes: claims.max_message_bytes(),
            expires_unix_s: claims.exp,
            app: claims.app.clone(),
            user: claims.user.clone(),
            edges: Vec::new(),
            load_permille: 0,
        };
        session.ready = Some(Ready {
            user: user.clone(),
            app,
            allowance: rate_of(&claims).map(|rate| Allowance::new(rate, packets::MAX_PACKET, now)),
            claims,
            instance: hello.instance,
            further,
        });
        self.slots[slot as usize - 1] = Some((locator.generation, key));
        self.sessions += 1;
        self.metrics.sessions_accepted.inc();
        self.metrics.sessions.set(self.sessions as i64);
        let welcome = Welcome {
            edges: self.other_edges(),
            load_permille: self.load_permille(),
            ..welcome
        };
        self.tell(key, id, edge_message::Body::Welcome(welcome));
        self.announce_session(key, now);
        tracing::debug!(user = %user, %locator, "session");
    }

    /// The role of a session, as the client says: `None` for its first one.
    fn further(&self, role: Option<&SessionRole>) -> Option<RelayIndex> {
        let role = role.filter(|role| role.standby)?;
        let members = self.tables.members.values();
        let first = members.into_iter().find(|member| member.name == role.first);
        Some(first.map_or(RelayIndex::NONE, |member| member.index))
    }

    fn take_role(&mut self, key: ConnKey, role: &SessionRole, now: Instant) {
        let further = self.further(Some(role));
        if let Some(ready) = self.session_mut(key).and_then(|s| s.ready.as_mut()) {
            ready.further = further;
        }
        self.announce_session(key, now);
    }

    /// No link to a relay works: clients whose first session is there should know.
    pub(super) fn tell_edge_down(&mut self, relay: RelayIndex) {
        let Some(name) = self.tables.name_of(relay).map(str::to_owned) else {
            return;
        };
        let concerned: Vec<ConnKey> = self
            .slots
            .iter()
            .flatten()
            .map(|&(_, key)| key)
            .filter(|&key| {
                let ready = self.session(key).and_then(|s| s.ready.as_ref());
                ready.is_some_and(|ready| ready.further == Some(relay))
            })
            .collect();
        for key in concerned {
            let relay = name.clone();
            self.tell(key, 0, edge_message::Body::EdgeDown(EdgeDown { relay }));
        }
    }

    /// Other edges that a client may connect to, those nearest to this one first.
    pub(super) fn other_edges(&self) -> Vec<Edge> {
        let tables = &self.tables;
        let mut others: Vec<_> = tables
            .members
            .values()
            .filter(|member| member.index != tables.me && !member.draining)
            .collect();
        others.sort_by_key(|member| self.cost_to(member.index).unwrap_or(u32::MAX));
        others.truncate(EDGES_TOLD);
        others.into_iter().map(|member| member.as_edge()).collect()
    }

    fn edges_called(&self, names: &[String]) -> Vec<Edge> {
        let named = |name: &String| self.tables.members.values().find(|m| m.name == *name);
        let found = names.iter().take(EDGES_FOUND).filter_map(named);
        found
            .filter(|member| !member.draining)
            .map(|member| member.as_edge())
            .collect()
    }

    /// What the way to a relay costs by the plan in force, microseconds-equivalent. `None` where there
    /// is no way, or the plan does not say.
    fn cost_to(&self, relay: RelayIndex) -> Option<u32> {
        if relay == self.tables.me {
            return Some(0);
        }
        let plan = self.tables.active_plan()?;
        let hop = plan.hop(Profile::Realtime as u8, 0, relay)?;
        (hop.cost_us > 0).then_some(hop.cost_us)
    }

    fn lookup_relay(&mut self, key: ConnKey, id: u32, name: &str, now: Instant) {
        let index = self
            .tables
            .members
            .values()
            .find(|member| member.name == name)
            .map(|member| member.index);
        let handle = index.and_then(|index| {
            let session = self.session_mut(key)?;
            let (handle, _) = session.handle_of(Locator::relay_itself(index), now)?;
            Some(handle)
        });
        self.tell_lookup(key, id, handle, lookup_result::Status::Offline);
    }

    /// The answer to a user's lookup has been found: tells the ways to the user's devices.
    pub(super) fn found_user(&mut self, key: ConnKey, id: u32, user: &str, at: &[Whereabouts]) {
        let now = self.now;
        let tables = self.tables.clone();
        let plan = tables.active_plan();
        // Where no way leads nobody can be reached: that relay has been left out of the plan.
        let reachable = |at: &&Whereabouts| {
            let relay = at.locator.relay;
            let planned = |plan: &Plan| plan.hop(Profile::Realtime as u8, 0, relay).is_some();
            relay == tables.me || plan.is_none_or(planned)
        };
        let mut devices: Vec<Device> = Vec::new();
        for at in at.iter().filter(reachable) {
            let cost = self.cost_to(at.locator.relay);
            let Some(session) = self.session_mut(key) else {
                return;
            };
            let Some(handle) = session.handle_of_user(user, at.locator, now) else {
                continue;
            };
            let way = Way {
                handle,
                relay: tables
                    .name_of(at.locator.relay)
                    .unwrap_or_default()
                    .to_owned(),
                cost_us: cost.map_or(0, |cost| cost.saturating_add(at.leg_us).max(1)),
                standby: at.standby,
                leg_us: at.leg_us,
            };
            match devices.iter_mut().find(|d| d.instance == at.instance) {
                Some(device) => device.ways.push(way),
                None => devices.push(Device {
                    instance: at.instance,
                    ways: vec![way],
                }),
            }
        }
        for device in &mut devices {
            let cost = |way: &Way| way.cost_us.wrapping_sub(1);
            device.ways.sort_by_key(|way| (cost(way), way.standby));
        }
        let nearest = devices.first().and_then(|device| device.ways.first());
        let result = LookupResult {
            status: nearest.map_or(lookup_result::Status::Retry, |_| {
                lookup_result::Status::Found
            }) as i32,
            handle: nearest.map_or(0, |way| way.handle),
            devices,
        };
        self.tell(key, id, edge_message::Body::LookupResult(result));
    }

    /// Answers a lookup: with the handle, or with `otherwise`.
    pub(super) fn tell_lookup(
        &mut self,
        key: ConnKey,
        id: u32,
        handle: Option<u32>,
        otherwise: lookup_result::Status,
    ) {
        let status = handle.map_or(otherwise, |_| lookup_result::Status::Found);
        let result = LookupResult {
            status: status as i32,
            handle: handle.unwrap_or(0),
            ..Default::default()
        };
        self.tell(key, id, edge_message::Body::LookupResult(result));
    }

    /// Sends a client a control message; `reply_to` 0 is news.
    pub(super) fn tell(&mut self, key: ConnKey, reply_to: u32, body: edge_message::Body) {
        let frame = frame_message(&EdgeMessage {
            reply_to,
            body: Some(body),
        });
        self.tell_framed(key, frame, self.now);
    }

    /// The same, of a message that is framed already.
    pub(super) fn tell_framed(&mut self, key: ConnKey, frame: Bytes, now: Instant) {
        let Some(conn) = self.conn_mut(key) else {
            return;
        };
        if conn.send_control(frame) {
            self.mark(key);
        } else {
            self.close(
                key,
                CloseCode::Protocol,
                "control messages are not read",
                now,
            );
        }
    }

    /// A session's connection is over.
    pub(super) fn session_over(&mut self, slot: u32, now: Instant) {
        let Some((generation, key)) = slot
            .checked_sub(1)
            .and_then(|index| self.slots.get_mut(index as usize)?.take())
        else {
            // It never said hello, or is over already.
            return;
        };
        self.free_slots.push(slot);
        self.sessions -= 1;
        self.metrics.sessions.set(self.sessions as i64);
        let locator = Locator {
            relay: self.tables.me,
            slot,
            generation,
        };
        self.leave_all_groups(key, now);
        self.stop_watching(key, now);
        let user = self.session(key).and_then(Session::user).cloned();
        if let Some(user) = user {
            self.apps.leave(&user.app);
            self.withdraw(&user, locator, now);
        }
    }

    /// The sessions here in these places of the slots: whose they are, and how they are announced.
    pub(super) fn present(&self, slots: Range<usize>) -> Vec<(UserKey, Whereabouts)> {
        let slots = self.slots.get(slots).unwrap_or_default();
        slots
            .iter()
            .flatten()
            .filter_map(|&(_, key)| self.presence_of(key))
            .collect()
    }

    /// Whose session it is, and how it is announced.
    pub(super) fn presence_of(&self, key: ConnKey) -> Option<(UserKey, Whereabouts)> {
        let conn = self.conn(key)?;
        let session = self.session(key)?;
        let ready = session.ready.as_ref()?;
        let at = Whereabouts {
            locator: Locator {
                relay: self.tables.me,
                slot: session.slot,
                generation: session.generation,
            },
            instance: ready.instance,
            leg_us: u32::try_from(conn.leg().as_micros()).unwrap_or(u32::MAX),
            standby: ready.further.is_some(),
        };
        Some((ready.user.clone(), at))
    }

    /// The user and the SDK instance of one of our own sessions.
    pub(super) fn user_at(&self, locator: Locator) -> Option<(UserKey, u64)> {
        let session = self.session(self.session_at(locator)?)?;
        let ready = session.ready.as_ref()?;
        Some((ready.user.clone(), ready.instance))
    }

    pub(super) fn session_at(&self, locator: Locator) -> Option<ConnKey> {
        let entry = self.slots.get((locator.slot as usize).checked_sub(1)?)?;
        entry
            .filter(|(generation, _)| *generation == locator.generation)
            .map(|(_, key)| key)
    }

    pub(super) fn session(&self, key: ConnKey) -> Option<&Session> {
        match self.conn(key) {
            Some(Conn {
                role: Role::Session(session),
                ..
            }) => Some(session),
            _ => None,
        }
    }

    pub(super) fn session_mut(&mut self, key: ConnKey) -> Option<&mut Session> {
        match self.conn_mut(key) {
            Some(Conn {
                role: Role::Session(session),
                ..
            }) => Some(session),
            _ => None,
        }
    }

    /// The sessions, for the debug page.
    pub(super) fn session_summaries(&self) -> Vec<BTreeMap<&'static str, String>> {
        self.slots
            .iter()
            .flatten()
            .filter_map(|&(generation, key)| {
                let session = self.session(key)?;
                let conn = self.conn(key)?;
                let locator = Locator {
                    relay: self.tables.me,
                    slot: session.slot,
                    generation,
                };
                Some(BTreeMap::from([
                    ("locator", locator.to_string()),
                    ("user", session.user()?.to_string()),
                    ("address", conn.quic.remote_address().to_string()),
                    (
                        "rtt_ms",
                        format!("{:.3}", conn.quic.rtt().as_secs_f64() * 1e3),
                    ),
                    ("handles", session.handles.len().to_string()),
                    ("queued", conn.queue.len().to_string()),
                ]))
            })
            .collect()
    }
}

fn unix_s(wall: SystemTime) -> u64 {
    wall.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
