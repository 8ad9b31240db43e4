//! Groups at a shard: membership at the edge and its timers. What members send is in [`traffic`], what
//! relays say to each other in [`messages`] and [`announcing`], what members missed in [`recovery`],
//! who sends in [`sources`]; the state machines are in [`crate::groups`].

mod announcing;
mod messages;
mod recovery;
mod sources;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustc_hash::FxHashMap;
use tradewind_proto::{
    GroupKey, Locator, RelayIndex,
    control::{
        GroupLookup, GroupResult, GroupSegment, GroupWithdraw, edge_message, group_result,
        relay_message,
    },
};

use self::recovery::Recovery;
pub(super) use self::traffic::Sent;
use super::{ConnKey, Shard, TimerKey};
use crate::{
    directory::COLD_START,
    groups::{
        Announced, CACHE_LEASE, GroupId, GroupSettings, Home, HomeAction, IngressLane, LaneKey,
        RelayCache, ReplayWindows,
    },
    tables::RulesByPlan,
};

/// How long a request between relays waits for its answer before it is made again.
const PATIENCE: Duration = Duration::from_millis(600);
/// How often.
const TRIES: u32 = 4;
/// Groups told to a home in one packet.
const GROUPS_PER_PACKET: usize = 100;
/// How long a client waits for a join, or for a group to be looked up.
const JOIN_PATIENCE: Duration = Duration::from_secs(4);
/// How long an edge stays in the group after its last member has left: it may be back soon.
const LINGER: Duration = Duration::from_secs(2);
/// How long the relay set of a group is kept fresh after it was last sent to.
const CACHE_IDLE: Duration = Duration::from_secs(60);
/// How long a sender's lane is remembered after its last frame.
const LANE_IDLE: Duration = Duration::from_secs(60);
/// How long a sender keeps its handle after its last packet.
const SOURCE_IDLE: Duration = Duration::from_secs(300);
/// How often a busy group is looked at.
const TICK: Duration = Duration::from_millis(400);
/// How often one that only has members is.
const SLOW_TICK: Duration = Duration::from_secs(10);
/// Groups that an edge knows at a time.
const MAX_GROUPS: usize = 200_000;
/// Sessions that wait for an answer about one group.
const MAX_WAITING: usize = 100_000;
/// Senders' lanes that an edge acknowledges at a time.
const MAX_LANES: usize = 100_000;
/// Handles of senders at a time.
const MAX_SOURCES: usize = 200_000;
/// The highest bit of edge-wide handles.
const EDGE_HANDLE: u32 = 1 << 31;
/// The highest bit of the ids of what this file asks: [`super::requests`] counts from 1.
const OWN_ID: u64 = 1 << 63;
/// How long nobody is asked again who a sender is.
const INTRODUCTION_PERIOD: Duration = Duration::from_secs(3);

/// What a timer of groups is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Group(GroupKey),
    Home,
    Ask(u64),
    Recovery,
}

/// All that a shard knows of groups.
#[derive(Debug)]
pub(super) struct Groups {
    known: FxHashMap<GroupKey, Group>,
    home: Home,
    home_timer: Option<Instant>,
    /// Not before this home has been told by all edges does it know everything.
    cold_until: Instant,
    /// The relays before those that the homes are chosen from now.
    relays_before: Vec<RelayIndex>,
    windows: ReplayWindows,
    recovery: Recovery,
    asks: BTreeMap<u64, Ask>,
    next_id: u64,
    next_handle: u32,
    sources: usize,
    lanes: usize,
    members: usize,
    /// Confirmations to be sent, by origin.
    held: BTreeMap<RelayIndex, Vec<GroupSegment>>,
    acks_due: BTreeSet<LaneKey>,
}

/// A group at this edge: with members, or sent to, or both.
#[derive(Debug)]
struct Group {
    id: Arc<GroupId>,
    /// The rule sets that what is sent to it keeps to.
    rules: RulesByPlan,
    members: Vec<Member>,
    /// Where each of them stands in `members`.
    places: FxHashMap<ConnKey, usize>,
    announced: Announced,
    linger_until: Option<Instant>,
    waiting: Vec<Waiting>,
    cache: Option<RelayCache>,
    /// By sender instance and lane.
    lanes: FxHashMap<(u64, u32), Lane>,
    sources: FxHashMap<Locator, Source>,
    timer: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    key: ConnKey,
    /// Bit k: layer k.
    layers: u8,
}

/// A session that waits for an answer.
#[derive(Debug)]
struct Waiting {
    key: ConnKey,
    reply_to: u32,
    handle: u32,
    /// It joins, and does not only want to send.
    joins: bool,
    /// It was a member before, elsewhere.
    again: bool,
    until: Instant,
}

/// A sender's lane that enters the network here.
#[derive(Debug)]
struct Lane {
    ingress: IngressLane,
    /// The user whose instance it is.
    owner: String,
    /// Where to acknowledge: the session that sent last, and its handle of the group.
    session: ConnKey,
    handle: u32,
}

/// Somebody who sends to the group.
#[derive(Debug)]
struct Source {
    handle: u32,
    user: Option<String>,
    asked: Instant,
    used: Instant,
}

/// Something asked and not answered yet.
#[derive(Debug)]
struct Ask {
    tries: u32,
    since: Instant,
    what: What,
}

#[derive(Debug)]
enum What {
    Announce {
        home: RelayIndex,
        groups: Vec<GroupKey>,
    },
    WhoIs {
        group: GroupKey,
        locator: Locator,
    },
}

impl Groups {
    pub(super) fn new(limits: GroupSettings, now: Instant, wall: SystemTime) -> Self {
        let wall_us = wall
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as u64);
        Self {
            known: FxHashMap::default(),
            home: Home::new(wall_us),
            home_timer: None,
            cold_until: now + COLD_START,
            relays_before: Vec::new(),
            windows: ReplayWindows::new(limits),
            recovery: Recovery::default(),
            asks: BTreeMap::new(),
            // It counts on over restarts: homes tell announcements from those before by it.
            next_id: OWN_ID | wall_us,
            next_handle: 0,
            sources: 0,
            lanes: 0,
            members: 0,
            held: BTreeMap::new(),
            acks_due: BTreeSet::new(),
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Group {
    fn new(id: Arc<GroupId>) -> Self {
        Self {
            id,
            rules: RulesByPlan::default(),
            members: Vec::new(),
            places: FxHashMap::default(),
            announced: Announced::default(),
            linger_until: None,
            waiting: Vec::new(),
            cache: None,
            lanes: FxHashMap::default(),
            sources: FxHashMap::default(),
            timer: None,
        }
    }

    /// Whether the homes are told of members here: while there are some, and a little longer.
    fn is_announced(&self) -> bool {
        !self.members.is_empty() || self.linger_until.is_some()
    }

    fn add(&mut self, key: ConnKey, layers: u8) -> bool {
        if let Some(&place) = self.places.get(&key) {
            self.members[place].layers = layers;
            return false;
        }
        self.places.insert(key, self.members.len());
        self.members.push(Member { key, layers });
        true
    }

    fn remove(&mut self, key: ConnKey) -> bool {
        let Some(place) = self.places.remove(&key) else {
            return false;
        };
        self.members.swap_remove(place);
        if let Some(moved) = self.members.get(place) {
            self.places.insert(moved.key, place);
        }
        true
    }
}

impl Shard {
    /// Makes a group known here if it is not. `false` when there is no room, or another group has its
    /// key.
    pub(super) fn know_group(&mut self, key: GroupKey, id: &Arc<GroupId>, now: Instant) -> bool {
        if let Some(group) = self.groups.known.get(&key) {
            return Arc::ptr_eq(&group.id, id) || group.id == *id;
        }
        if self.groups.known.len() >= MAX_GROUPS {
            return false;
        }
        self.groups.known.insert(key, Group::new(id.clone()));
        self.look_at_group_by(key, now + TICK);
        true
    }

    /// A session joins. It is answered when everything sent from then on will come.
    pub(super) fn add_member(
        &mut self,
        group_key: GroupKey,
        key: ConnKey,
        (layers, again): (u8, bool),
        reply: (u32, u32),
        now: Instant,
    ) {
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        let (reply_to, handle) = reply;
        if group.waiting.len() >= MAX_WAITING {
            return self.tell_group_result(key, reply_to, group_result::Status::Retry, 0);
        }
        let new = group.add(key, layers);
        group.linger_until = None;
        group.waiting.push(Waiting {
            key,
            reply_to,
            handle,
            joins: true,
            again,
            until: now + JOIN_PATIENCE,
        });
        if new {
            self.groups.members += 1;
            self.tell_sources(group_key, key);
        }
        self.announce_group(group_key, now);
        self.settle_waiting(group_key, now);
        self.look_at_group_by(group_key, now + TICK);
    }

    /// A session wants to send without being a member: it is answered when packets find their way.
    pub(super) fn prepare_to_send(
        &mut self,
        group_key: GroupKey,
        key: ConnKey,
        (reply_to, handle): (u32, u32),
        now: Instant,
    ) {
        self.use_relays_of(group_key, now);
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        if group.waiting.len() >= MAX_WAITING {
            return self.tell_group_result(key, reply_to, group_result::Status::Retry, 0);
        }
        group.waiting.push(Waiting {
            key,
            reply_to,
            handle,
            joins: false,
            again: false,
            until: now + JOIN_PATIENCE,
        });
        self.settle_waiting(group_key, now);
    }

    /// A session leaves a group.
    pub(super) fn remove_member(&mut self, group_key: GroupKey, key: ConnKey, now: Instant) {
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        group.waiting.retain(|waiting| waiting.key != key);
        if !group.remove(key) {
            return;
        }
        if group.members.is_empty() {
            group.linger_until = Some(now + LINGER);
        }
        self.groups.members -= 1;
        self.groups.recovery.forget(key, Some(group_key));
        self.look_at_group_by(group_key, now + LINGER);
    }

    /// Keeps the relay set of a group fresh from now on.
    pub(super) fn use_relays_of(&mut self, group_key: GroupKey, now: Instant) {
        let tables = self.tables.clone();
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        if let Some(cache) = &mut group.cache {
            cache.used = now;
            return;
        }
        let relays = tables.active_plan().map_or(&[][..], |plan| &plan.relays);
        group.cache = Some(RelayCache::new(group.id.homes(relays), now));
        self.ask_homes(group_key, now);
        self.look_at_group_by(group_key, now + TICK);
    }

    /// Asks the homes of a group whose answers run out.
    fn ask_homes(&mut self, group_key: GroupKey, now: Instant) {
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        let next_id = &mut self.groups.next_id;
        let due = group.cache.as_mut().map_or_else(Vec::new, |cache| {
            let next = || {
                *next_id += 1;
                *next_id
            };
            cache.due(next, now)
        });
        let name = group.id.message();
        for (home, id) in due {
            let lookup = GroupLookup {
                group: Some(name.clone()),
            };
            self.send_control(home, id, relay_message::Body::GroupLookup(lookup), now);
        }
    }

    /// Something may have changed in what is known of a group's relays.
    fn relays_have_changed(&mut self, group_key: GroupKey, now: Instant) {
        let tables = self.tables.clone();
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        let Some(cache) = &mut group.cache else {
            return;
        };
        cache.update(
            tables.active_plan().map_or(&[][..], |plan| &plan.relays),
            now,
        );
        if !cache.is_certain(now) {
            return;
        }
        let mut relays = cache.relays().clone();
        relays.remove(tables.me);
        let mut more = Vec::new();
        for (&(sender, lane), state) in &mut group.lanes {
            let key = LaneKey {
                group: group_key,
                sender,
                lane,
            };
            let mut progress = state.ingress.wait_only_for(&relays);
            if state.ingress.is_uncertain() {
                progress = true;
                let new = state.ingress.make_certain(&relays).into_iter();
                more.extend(new.map(|(sequence, relays)| (key, sequence, relays)));
            }
            if progress {
                self.groups.acks_due.insert(key);
            }
        }
        for (lane, sequence, relays) in more {
            self.send_held_to(lane, sequence, relays, now);
        }
        self.settle_waiting(group_key, now);
    }

    /// Answers those that have waited for what is true now.
    fn settle_waiting(&mut self, group_key: GroupKey, now: Instant) {
        let Some(group) = self.groups.known.get_mut(&group_key) else {
            return;
        };
        if group.waiting.is_empty() {
            return;
        }
        let joined = group.announced.holds(now);
        let known = group
            .cache
            .as_ref()
            .is_some_and(|cache| cache.is_certain(now));
        let mut answered = Vec::new();
        group.waiting.retain(|waiting| {
            let status = if waiting.joins && joined || !waiting.joins && known {
                group_result::Status::Done
            } else if waiting.until <= now {
                group_result::Status::Retry
            } else {
                return true;
            };
            let again = waiting.again && status == group_result::Status::Done;
            answered.push((waiting.key, waiting.reply_to, waiting.handle, status, again));
            false
        });
        for (key, reply_to, handle, status, again) in answered {
            self.tell_group_result(key, reply_to, status, handle);
            if again {
                self.tell_heads(group_key, key);
            }
        }
    }

    /// Answers a request about a group. The handle is told only with [`group_result::Status::Done`].
    pub(super) fn tell_group_result(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        status: group_result::Status,
        handle: u32,
    ) {
        if reply_to == 0 {
            return;
        }
        let done = status == group_result::Status::Done;
        let result = GroupResult {
            status: status as i32,
            handle: if done { handle } else { 0 },
        };
        self.tell(key, reply_to, edge_message::Body::GroupResult(result));
    }

    /// A timer of groups.
    pub(super) fn groups_due(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Group(key) => {
                let due = self.groups.known.get_mut(&key).is_some_and(|group| {
                    let due = group.timer.is_some_and(|at| at <= now);
                    if due {
                        group.timer = None;
                    }
                    due
                });
                if due {
                    self.look_at_group(key, now);
                }
            }
            // What was armed before something became due earlier still comes.
            Timer::Home if self.groups.home_timer.is_none_or(|at| at > now) => {}
            Timer::Home => {
                self.groups.home_timer = None;
                self.at_home(now, |home, actions| home.tick(now, actions));
            }
            Timer::Ask(id) => self.try_ask(id, now),
            Timer::Recovery => {
                self.groups.recovery.armed = false;
                self.recover(now);
            }
        }
    }

    /// What is due once a second.
    pub(super) fn sweep_groups(&mut self, now: Instant) {
        let groups = &mut self.groups;
        groups.windows.sweep(now);
        let here = groups
            .known
            .values()
            .filter(|group| !group.members.is_empty());
        let metrics = &self.metrics.groups;
        metrics.groups.set(here.count() as i64);
        metrics.members.set(groups.members as i64);
        metrics.directory.set(groups.home.len() as i64);
        metrics.replay_bytes.set(groups.windows.bytes() as i64);
    }

    fn look_at_group_by(&mut self, key: GroupKey, at: Instant) {
        if let Some(group) = self.groups.known.get_mut(&key)
            && group.timer.is_none_or(|armed| at < armed)
        {
            group.timer = Some(at);
            self.timers.push(at, TimerKey::Groups(Timer::Group(key)));
        }
    }

    /// Ends what has run out, asks for what runs out, and forgets the group when nothing is left of it.
    fn look_at_group(&mut self, key: GroupKey, now: Instant) {
        let Some(group) = self.groups.known.get_mut(&key) else {
            return;
        };
        if group.linger_until.is_some_and(|until| until <= now) {
            group.linger_until = None;
            let announced = std::mem::take(&mut group.announced);
            let name = group.id.message();
            for &home in announced.homes() {
                let withdraw = GroupWithdraw {
                    group: Some(name.clone()),
                };
                let id = self.groups.next_id();
                let body = relay_message::Body::GroupWithdraw(withdraw);
                self.send_control(home, id, body, now);
            }
        }
        let idle = |since: Instant, most: Duration| now.saturating_duration_since(since) >= most;
        let Some(group) = self.groups.known.get_mut(&key) else {
            return;
        };
        let sources = group.sources.len();
        group
            .sources
            .retain(|_, source| !idle(source.used, SOURCE_IDLE));
        self.groups.sources -= sources - group.sources.len();
        let lanes = group.lanes.len();
        group
            .lanes
            .retain(|_, lane| !idle(lane.ingress.used, LANE_IDLE));
        self.groups.lanes -= lanes - group.lanes.len();
        let unused = group
            .cache
            .as_ref()
            .is_some_and(|cache| idle(cache.used, CACHE_IDLE));
        if unused {
            group.cache = None;
        }
        self.ask_homes(key, now);
        self.relays_have_changed(key, now);
        self.settle_waiting(key, now);
        let Some(group) = self.groups.known.get(&key) else {
            return;
        };
        let busy = group.cache.is_some() || !group.waiting.is_empty();
        if !busy && !group.is_announced() && group.lanes.is_empty() && group.sources.is_empty() {
            self.groups.known.remove(&key);
            return;
        }
        let next = now + if busy { TICK } else { SLOW_TICK };
        let next = group.linger_until.map_or(next, |until| next.min(until));
        self.look_at_group_by(key, next);
    }

    /// Lets the home do something, says what it has to say, and comes back when it wants.
    fn at_home(&mut self, now: Instant, act: impl FnOnce(&mut Home, &mut Vec<HomeAction>)) {
        let mut actions = Vec::new();
        act(&mut self.groups.home, &mut actions);
        for action in actions {
            self.home_says(action, now);
        }
        if let Some(due) = self.groups.home.next_due()
            && self.groups.home_timer.is_none_or(|armed| due < armed)
        {
            self.groups.home_timer = Some(due);
            self.timers.push(due, TimerKey::Groups(Timer::Home));
        }
    }
}

// A majority of answers must not outlive the wait of those who join.
const _: () = assert!(CACHE_LEASE.as_millis() < JOIN_PATIENCE.as_millis());
