//! What members have missed: they are told so, and fetch it, from this edge or the sender's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tradewind_proto::{
    Class, GroupKey, RelayIndex,
    control::{
        FetchGroup, GroupFetch, GroupFetched, GroupHead, GroupReplay, edge_message,
        relay_message::Body,
    },
};

use super::{ConnKey, LaneKey, Shard, Timer, TimerKey, traffic::segment_of};
use crate::groups::{Fetch, GroupId, Held, OriginAsk, Step};

/// How often it is looked whether members have room again, and edges have answered.
const TICK: Duration = Duration::from_millis(50);
/// Fetches that one session may have open, …
const MAX_FETCHES: usize = 64;
/// … and all together.
const MAX_ALL_FETCHES: usize = 200_000;
/// Segments and bytes that an edge sends another one at a time.
const REPLAY_SEGMENTS: usize = 256;
const REPLAY_BYTES: usize = 512 << 10;
/// Lanes of which a session is told that it missed something; of others it sees by their next packet.
const MAX_MISSED: usize = 1_024;
/// Lanes of which a member that was away is told at once.
const MAX_HEADS: usize = 256;

/// What is to be made up for.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    missed: BTreeMap<ConnKey, BTreeSet<LaneKey>>,
    fetches: BTreeMap<(ConnKey, LaneKey), Running>,
    asks: BTreeMap<LaneKey, Asked>,
    /// The lanes of `asks` by the ids of the questions.
    asked: FxHashMap<u64, LaneKey>,
    /// Its timer is set.
    pub(super) armed: bool,
}

/// A sender's edge that is asked for what is not held here.
#[derive(Debug)]
struct Asked {
    origin: RelayIndex,
    ask: OriginAsk,
    /// Whose fetches of the lane wait for it.
    waiting: BTreeSet<ConnKey>,
}

#[derive(Debug)]
struct Running {
    reply_to: u32,
    fetch: Fetch,
    /// The sender's edge is being asked.
    waits: bool,
}

impl Recovery {
    /// A session has left a group, or ended.
    pub(super) fn forget(&mut self, key: ConnKey, group: Option<GroupKey>) {
        let of = |lane: &LaneKey| group.is_none_or(|group| lane.group == group);
        if let Some(lanes) = self.missed.get_mut(&key) {
            lanes.retain(|lane| !of(lane));
        }
        let gone: Vec<LaneKey> = self.fetches_of(key).filter(of).collect();
        for lane in gone {
            self.fetches.remove(&(key, lane));
        }
    }

    /// The lanes of which a session fetches something.
    fn fetches_of(&self, key: ConnKey) -> impl Iterator<Item = LaneKey> + '_ {
        let all = (key, LaneKey::FIRST)..=(key, LaneKey::LAST);
        self.fetches.range(all).map(|(&(_, lane), _)| lane)
    }

    fn is_idle(&self) -> bool {
        self.missed.is_empty() && self.fetches.is_empty() && self.asks.is_empty()
    }
}

impl Shard {
    /// A member had no room for a segment.
    pub(super) fn missed(&mut self, key: ConnKey, lane: LaneKey, now: Instant) {
        let lanes = self.groups.recovery.missed.entry(key).or_default();
        if lanes.len() < MAX_MISSED {
            lanes.insert(lane);
        }
        self.recover_soon(now);
    }

    /// A member asks for segments again.
    pub(in crate::shard) fn fetch_group(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        group: GroupKey,
        request: &FetchGroup,
        now: Instant,
    ) {
        self.metrics.groups.fetches.inc();
        let lane = LaneKey {
            group,
            sender: request.sender,
            lane: request.lane,
        };
        let groups = &self.groups;
        let member = groups
            .known
            .get(&group)
            .is_some_and(|known| known.places.contains_key(&key));
        if !member || request.from > request.to {
            return self.tell_nothing_fetched(key, reply_to, request, false);
        }
        let recovery = &groups.recovery;
        let full = recovery.fetches_of(key).count() >= MAX_FETCHES
            || recovery.fetches.len() >= MAX_ALL_FETCHES;
        if full && !recovery.fetches.contains_key(&(key, lane)) {
            return self.tell_nothing_fetched(key, reply_to, request, true);
        }
        let fetch = Fetch::new(lane, request.from, request.to);
        let groups = &mut self.groups;
        let origin = u16::try_from(request.origin).ok().map(RelayIndex);
        let origin = origin
            .filter(|&relay| relay != self.tables.me && self.tables.members.contains_key(&relay));
        let lacking = fetch.not_held(&groups.windows).zip(origin);
        if let Some((range, origin)) = lacking {
            let asked = groups.recovery.asks.entry(lane).or_insert_with(|| Asked {
                origin,
                ask: OriginAsk::new(range, now),
                waiting: BTreeSet::new(),
            });
            asked.ask.widen(range);
            asked.waiting.insert(key);
        }
        let running = Running {
            reply_to,
            fetch,
            waits: lacking.is_some(),
        };
        groups.recovery.fetches.insert((key, lane), running);
        match lacking {
            Some(_) => self.ask_origin(lane, now),
            None => self.pump_fetch(key, lane, now),
        }
        if !self.groups.recovery.is_idle() {
            self.recover_soon(now);
        }
    }

    /// Whoever is no member gets nothing, and who asks for too much at once is to ask again (`busy`).
    pub(in crate::shard) fn tell_nothing_fetched(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        request: &FetchGroup,
        busy: bool,
    ) {
        let fetched = GroupFetched {
            group: request.group.clone(),
            sender: request.sender,
            lane: request.lane,
            from: request.from,
            to: request.from.saturating_sub(1),
            // For those that do not know what busy is.
            unreachable: busy,
            busy,
            ..GroupFetched::default()
        };
        self.tell(key, reply_to, edge_message::Body::GroupFetched(fetched));
    }

    fn recover_soon(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.groups.recovery.armed, true) {
            self.timers
                .push(now + TICK, TimerKey::Groups(Timer::Recovery));
        }
    }

    /// Asks edges, gives members what there is, tells those that have room again what they missed.
    pub(super) fn recover(&mut self, now: Instant) {
        let lanes: Vec<LaneKey> = self.groups.recovery.asks.keys().copied().collect();
        for lane in lanes {
            self.ask_origin(lane, now);
        }
        let fetches = self.groups.recovery.fetches.iter();
        let ready = fetches.filter(|(_, running)| !running.waits);
        let ready: Vec<(ConnKey, LaneKey)> = ready.map(|(&at, _)| at).collect();
        for (key, lane) in ready {
            self.pump_fetch(key, lane, now);
        }
        let missed = std::mem::take(&mut self.groups.recovery.missed);
        for (key, lanes) in missed {
            match self.conn(key).filter(|conn| !conn.over) {
                Some(conn) if conn.queue.has_room_for_messages() => {
                    for lane in lanes {
                        self.tell_head(key, lane);
                    }
                }
                Some(_) => {
                    self.groups.recovery.missed.insert(key, lanes);
                }
                None => {}
            }
        }
        if !self.groups.recovery.is_idle() {
            self.recover_soon(now);
        }
    }

    fn ask_origin(&mut self, lane: LaneKey, now: Instant) {
        let groups = &mut self.groups;
        let Some(Asked { origin, ask, .. }) = groups.recovery.asks.get_mut(&lane) else {
            return;
        };
        let (origin, before) = (*origin, ask.id);
        if ask.is_over(now) {
            self.origin_said(lane, None, true, now);
            return;
        }
        let next_id = &mut groups.next_id;
        let next = || {
            *next_id += 1;
            *next_id
        };
        let Some((from, to)) = ask.due(next, now) else {
            return;
        };
        let id = ask.id;
        groups.recovery.asked.remove(&before);
        groups.recovery.asked.insert(id, lane);
        let Some(group) = groups.known.get(&lane.group) else {
            self.origin_said(lane, None, true, now);
            return;
        };
        let fetch = GroupFetch {
            group: Some(group.id.message()),
            sender: lane.sender,
            lane: lane.lane,
            from,
            to,
        };
        self.send_control(origin, id, Body::GroupFetch(fetch), now);
    }

    /// Nothing more is to be had of a lane from its sender's edge: whoever waits gets what there is.
    fn origin_said(&mut self, lane: LaneKey, newest: Option<u64>, unreachable: bool, now: Instant) {
        let recovery = &mut self.groups.recovery;
        let Some(Asked { ask, waiting, .. }) = recovery.asks.remove(&lane) else {
            return;
        };
        recovery.asked.remove(&ask.id);
        for key in waiting {
            if let Some(running) = self.groups.recovery.fetches.get_mut(&(key, lane))
                && std::mem::take(&mut running.waits)
            {
                running.fetch.origin_said(newest, unreachable);
                self.pump_fetch(key, lane, now);
            }
        }
    }

    /// Gives a member what it has asked for, as far as its queue takes it.
    fn pump_fetch(&mut self, key: ConnKey, lane: LaneKey, now: Instant) {
        while self
            .conn(key)
            .is_some_and(|conn| conn.queue.has_room_for_messages())
        {
            let groups = &mut self.groups;
            let Some(running) = groups.recovery.fetches.get_mut(&(key, lane)) else {
                return;
            };
            match running.fetch.step(&groups.windows) {
                Step::Give(sequence) => self.give_again(key, lane, sequence, now),
                Step::Done {
                    from,
                    to,
                    missing,
                    unreachable,
                } => {
                    let reply_to = running.reply_to;
                    groups.recovery.fetches.remove(&(key, lane));
                    let Some(group) = groups.known.get(&lane.group) else {
                        return;
                    };
                    let fetched = GroupFetched {
                        group: group.id.group.clone(),
                        sender: lane.sender,
                        lane: lane.lane,
                        from,
                        to,
                        missing,
                        unreachable,
                        busy: false,
                    };
                    return self.tell(key, reply_to, edge_message::Body::GroupFetched(fetched));
                }
            }
        }
    }

    fn give_again(&mut self, key: ConnKey, lane: LaneKey, sequence: u64, now: Instant) {
        let Some(packet) = self.held_packet(lane, sequence, now) else {
            return;
        };
        let Some(handle) = self.handle_of_source(lane.group, packet.header.sender, now) else {
            return;
        };
        let packet = packet.for_members(handle, self.tables.me, now);
        self.give(key, packet, Some(lane), now);
    }

    /// Tells a member that was away how far the lanes of a group have come.
    pub(super) fn tell_heads(&mut self, group: GroupKey, key: ConnKey) {
        let mut lanes: Vec<LaneKey> = self.groups.windows.lanes_of(group).collect();
        lanes.sort_unstable();
        lanes.truncate(MAX_HEADS);
        for lane in lanes {
            self.tell_head(key, lane);
        }
    }

    /// Tells a member how far a lane of which it missed something has come.
    fn tell_head(&mut self, key: ConnKey, lane: LaneKey) {
        let groups = &self.groups;
        let newest = groups.windows.newest(lane);
        let held = newest.and_then(|newest| groups.windows.get(lane, newest).zip(Some(newest)));
        let (Some((held, newest)), Some(group)) = (held, groups.known.get(&lane.group)) else {
            return; // it is gone by now: the next packet will show the gap
        };
        let head = GroupHead {
            group: group.id.group.clone(),
            sender: lane.sender,
            lane: lane.lane,
            newest,
            origin: u32::from(held.source.relay.0),
        };
        self.metrics.groups.heads.inc();
        self.tell(key, 0, edge_message::Body::GroupHead(head));
    }

    /// Another edge asks for segments that entered here.
    pub(super) fn on_group_fetch(
        &mut self,
        from: RelayIndex,
        id: u64,
        fetch: GroupFetch,
        now: Instant,
    ) {
        let Some(group) = GroupId::parse(fetch.group) else {
            return;
        };
        let lane = LaneKey {
            group: group.key(),
            sender: fetch.sender,
            lane: fetch.lane,
        };
        let mut bytes = 0;
        let replays: Vec<GroupReplay> = self
            .groups
            .windows
            .range(lane, fetch.from, fetch.to)
            .take(REPLAY_SEGMENTS)
            .take_while(|(_, held)| {
                let room = bytes < REPLAY_BYTES;
                bytes += held.payload.len();
                room
            })
            .map(|(_, held)| GroupReplay {
                source: Some(held.source.into()),
                class: held.class as u32,
                age_us: held.age_at(now),
                payload: held.payload.to_vec(),
                ..GroupReplay::default()
            })
            .collect();
        for replay in replays {
            self.send_control(from, id, Body::GroupReplay(replay), now);
        }
        let newest = self.groups.windows.newest(lane);
        let end = GroupReplay {
            newest: newest.unwrap_or(0),
            nothing: newest.is_none(),
            ..GroupReplay::default()
        };
        self.send_control(from, id, Body::GroupReplay(end), now);
    }

    /// A segment from its sender's edge, or the end of them.
    pub(super) fn on_group_replay(
        &mut self,
        from: RelayIndex,
        id: u64,
        replay: GroupReplay,
        now: Instant,
    ) {
        let recovery = &mut self.groups.recovery;
        let Some(&lane) = recovery.asked.get(&id) else {
            return;
        };
        let Some(Asked { ask, .. }) = recovery.asks.get_mut(&lane).filter(|a| a.origin == from)
        else {
            return;
        };
        if replay.payload.is_empty() {
            let newest = (!replay.nothing).then_some(replay.newest);
            if ask.end(newest) {
                self.origin_said(lane, newest, false, now);
            } else {
                self.ask_origin(lane, now);
            }
            return;
        }
        let payload = replay.payload.into();
        let source = replay.source.and_then(|source| source.locator());
        let source = source.filter(|source| source.relay == from);
        if let (Some(sequence), Some(source)) = (segment_of(lane, &payload), source) {
            ask.got(sequence, now);
            let held = Held {
                payload,
                class: Class::from_bits(replay.class as u8),
                source,
                arrived: now,
                age_us: replay.age_us,
            };
            self.groups.windows.insert(lane, sequence, held);
        }
    }
}
