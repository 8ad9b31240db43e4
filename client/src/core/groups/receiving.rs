//! What members get: lanes with gaps that are asked for, and media.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tradewind_proto::{
    control::{FetchGroup, GroupFetched, GroupHead, GroupSource, client_message::Body},
    lane::{Data, Fetched, LaneFrame, MISSING_FOR, MemberLane, Taken},
    packet::{Kind, Trace},
};

use super::{Groups, MAX_NAME, Timer, Unheard};
use crate::{Event, Gap, Media, Message, core::Packet, inbox::Inbox};

/// Cost of what one lane keeps, besides the message being put together, bytes.
pub(super) const LANE_CAPACITY: usize = 512 << 10;
/// Lanes from all groups; beyond it those idle for longest are forgotten, …
const MAX_LANES: usize = 16_384;
/// … and so many at once, as finding them takes looking at all.
const FORGOTTEN_AT_ONCE: usize = 256;
/// Senders known by the handles of an edge.
const MAX_SOURCES: usize = 131_072;
/// Packets held of senders that are not known yet.
const MAX_HELD: usize = 1_024;
/// The same, of one of them.
const MAX_HELD_PER_HANDLE: usize = 64;
/// Questions about missing segments that are open at a time.
const MAX_FETCHES: usize = 64;
/// When so many are open, another one waits so long.
const FETCH_LATER: Duration = Duration::from_millis(50);
/// For so long edges keep segments, unless told otherwise.
const REPLAY_AGE: Duration = Duration::from_secs(30);
/// Lanes remembered of which nothing was heard.
const MAX_UNHEARD: usize = 1_024;

/// A lane of another member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MemberKey {
    group: Arc<str>,
    user: Arc<str>,
    sender: u64,
    lane: u32,
}

pub(super) struct MemberEntry {
    pub(super) lane: MemberLane,
    /// Relay index of the sender's edge, as last heard.
    origin: u32,
    heard_at: Instant,
    duplicates_counted: u64,
    readable: bool,
    pub(super) fetching: bool,
    pub(super) timer: Option<Instant>,
}

/// Who is behind a handle of the edge.
#[derive(Default)]
pub(super) struct Source {
    known: Option<Sender>,
    /// Packets that came before that was known.
    held: Vec<Packet>,
}

#[derive(Clone)]
struct Sender {
    group: Arc<str>,
    user: Arc<str>,
    origin: u32,
}

impl Groups {
    /// It is now known who is behind a handle of the edge.
    pub(in crate::core) fn on_source(&mut self, source: GroupSource, now: Instant) {
        let too_long = source.group.len().max(source.user.len()) > MAX_NAME;
        let full = self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source.handle);
        // What it sent to before we joined, or after we left, is nothing to us.
        let Some((group, _)) = self.known(&source.group).filter(|_| !too_long && !full) else {
            return;
        };
        let user = source.user.into();
        let entry = self.sources.entry(source.handle).or_default();
        entry.known = Some(Sender {
            group,
            user,
            origin: source.origin,
        });
        let held = std::mem::take(&mut entry.held);
        self.held -= held.len();
        for packet in held {
            self.on_packet(packet, now);
        }
    }

    /// A packet with the group flag has come. Its age is complete.
    pub(in crate::core) fn on_packet(&mut self, packet: Packet, now: Instant) {
        let handle = packet.header.handle;
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&handle) {
            self.out.counts.unexpected += 1;
            return;
        }
        let source = self.sources.entry(handle).or_default();
        let Some(sender) = source.known.clone() else {
            if source.held.len() < MAX_HELD_PER_HANDLE && self.held < MAX_HELD {
                source.held.push(packet);
                self.held += 1;
            } else if packet.header.kind == Kind::Media {
                // Of a lane, it is found missing later.
                self.out.counts.media_dropped += 1;
            }
            return;
        };
        let member = self.by_name.get(&sender.group);
        let Some(group) = member.filter(|group| group.layers.is_some()) else {
            // What was under way when we left.
            return;
        };
        match packet.header.kind {
            Kind::Media => self.on_media(sender, packet),
            Kind::Message => {
                let away = group.away;
                self.on_frame(sender, away, packet, now);
            }
            _ => self.out.counts.unexpected += 1,
        }
    }

    /// The edge could not give us something of a lane.
    pub(in crate::core) fn on_head(&mut self, head: &GroupHead, now: Instant) {
        if let Some(key) = self.find_lane(&head.group, head.sender, head.lane) {
            if let Some(entry) = self.members.get_mut(&key) {
                entry.origin = head.origin;
                entry.lane.on_newest(head.newest, now);
                self.serve_member(&key, now);
            }
            return;
        }
        // Nothing was heard of it: whose it is will show with what comes.
        let Some((name, group)) = self.known(&head.group) else {
            return;
        };
        // Our own lanes are for the others.
        let own = group.sender == head.sender;
        if group.joined && !own && self.unheard.len() < MAX_UNHEARD {
            let unheard = (name, head.sender, head.lane);
            self.unheard.insert(unheard.clone(), head.origin);
            self.ask_unheard(&unheard, head.newest);
        }
    }

    /// Asks for a segment of a lane of which nothing was heard (yet).
    pub(super) fn ask_unheard(&mut self, unheard: &Unheard, sequence: u64) {
        let joined = self.by_name.get(&unheard.0).is_some_and(|g| g.joined);
        let Some(&origin) = self.unheard.get(unheard).filter(|_| joined) else {
            return;
        };
        let (group, sender, lane) = unheard;
        self.out.counts.fetches += 1;
        let fetch = FetchGroup {
            group: group.to_string(),
            sender: *sender,
            lane: *lane,
            from: sequence,
            to: sequence,
            origin,
        };
        self.out
            .questions
            .push_back((Body::FetchGroup(fetch), None));
    }

    /// The edge has answered what it holds.
    pub(in crate::core) fn on_fetched(&mut self, fetched: &GroupFetched, now: Instant) {
        let Some(key) = self.find_lane(&fetched.group, fetched.sender, fetched.lane) else {
            if let Some((name, _)) = self.known(&fetched.group).filter(|_| fetched.busy) {
                let unheard = (name, fetched.sender, fetched.lane);
                let again = Some(now + MISSING_FOR);
                self.set_timer(Timer::Unheard(unheard, fetched.from), None, again);
            }
            return;
        };
        let Some(entry) = self.members.get_mut(&key) else {
            return;
        };
        if std::mem::take(&mut entry.fetching) {
            self.open_fetches -= 1;
        }
        let answer = Fetched {
            from: fetched.from,
            to: fetched.to,
            missing: &fetched.missing,
            unreachable: fetched.unreachable,
            busy: fetched.busy,
        };
        entry.lane.on_fetched(&answer, now);
        self.serve_member(&key, now);
    }

    /// Gives the application what it has room for.
    pub(in crate::core) fn deliver(&mut self, inbox: &mut Inbox, now: Instant) -> u64 {
        let mut messages = 0;
        while inbox.has_room()
            && let Some(key) = self.readable.pop_front()
        {
            let Some(entry) = self.members.get_mut(&key) else {
                continue;
            };
            while inbox.has_room()
                && let Some(taken) = entry.lane.take(now)
            {
                match taken {
                    Taken::Message(received) => {
                        messages += 1;
                        inbox.push_message(Message {
                            from: key.user.clone(),
                            group: Some(key.group.clone()),
                            lane: key.lane,
                            payload: received.payload,
                            age: received.age,
                        });
                    }
                    Taken::Gap(segments) => inbox.push_notice(Event::Gap(Gap {
                        group: key.group.clone(),
                        from: key.user.clone(),
                        lane: key.lane,
                        segments,
                    })),
                }
            }
            entry.readable = false;
            self.serve_member(&key, now);
        }
        messages
    }

    /// After anything that happened to a member's lane: questions, timer, and its turn to be read.
    pub(super) fn serve_member(&mut self, key: &MemberKey, now: Instant) {
        let Some(entry) = self.members.get_mut(key) else {
            return;
        };
        let counts = &mut self.out.counts;
        counts.duplicates += entry.lane.duplicates() - entry.duplicates_counted;
        entry.duplicates_counted = entry.lane.duplicates();
        if entry.lane.has_ready() && !entry.readable {
            entry.readable = true;
            self.readable.push_back(key.clone());
        }
        let joined = self.attached && self.by_name.get(&key.group).is_some_and(|g| g.joined);
        let mut next = entry.lane.next_timeout().filter(|_| joined);
        if next.is_some_and(|at| at <= now) {
            if std::mem::take(&mut entry.fetching) {
                // It was not answered.
                self.open_fetches -= 1;
            }
            if self.open_fetches >= MAX_FETCHES {
                next = Some(now + FETCH_LATER);
            } else {
                if let Some(fetch) = entry.lane.poll_fetch(now) {
                    entry.fetching = true;
                    self.open_fetches += 1;
                    counts.fetches += 1;
                    let fetch = FetchGroup {
                        group: key.group.to_string(),
                        sender: key.sender,
                        lane: key.lane,
                        from: fetch.from,
                        to: fetch.to,
                        origin: entry.origin,
                    };
                    self.out
                        .questions
                        .push_back((Body::FetchGroup(fetch), None));
                }
                // Having given up on something, the lane may go on.
                if entry.lane.has_ready() && !entry.readable {
                    entry.readable = true;
                    self.readable.push_back(key.clone());
                }
                next = entry.lane.next_timeout();
            }
        }
        let before = std::mem::replace(&mut entry.timer, next);
        self.set_timer(Timer::Member(key.clone()), before, next);
    }

    /// The client is a member again: what was sent meanwhile is to be asked for.
    pub(super) fn resume_members(&mut self, group: &Arc<str>, now: Instant) {
        for key in self.lanes_of(group) {
            if let Some(entry) = self.members.get_mut(&key) {
                entry.lane.resume(now);
            }
            self.serve_member(&key, now);
        }
    }

    /// The client is no member any more.
    pub(super) fn forget_members(&mut self, group: &Arc<str>) {
        for key in self.lanes_of(group) {
            self.forget_member(&key);
        }
    }

    fn on_frame(
        &mut self,
        sender: Sender,
        away: Option<(Instant, Option<Instant>)>,
        packet: Packet,
        now: Instant,
    ) {
        let age = Duration::from_micros(u64::from(packet.header.age_us));
        let (lane, instance) = match LaneFrame::decode(packet.payload) {
            Ok(LaneFrame::Data(data)) => {
                let key = MemberKey {
                    group: sender.group,
                    user: sender.user,
                    sender: data.sender,
                    lane: data.lane,
                };
                return self.on_data(&key, sender.origin, away, data, age, now);
            }
            Ok(LaneFrame::Skip(skip)) => (skip.lane, skip),
            // Only the ingress edge acknowledges, and not as one of the group; the rest is between two
            // clients.
            _ => {
                self.out.counts.unexpected += 1;
                return;
            }
        };
        let key = MemberKey {
            group: sender.group,
            user: sender.user,
            sender: instance.sender,
            lane,
        };
        if let Some(entry) = self.members.get_mut(&key) {
            entry.origin = sender.origin;
            entry.lane.on_skip(&instance, now);
            self.serve_member(&key, now);
        }
    }

    fn on_data(
        &mut self,
        key: &MemberKey,
        origin: u32,
        away: Option<(Instant, Option<Instant>)>,
        data: Data,
        age: Duration,
        now: Instant,
    ) {
        if !self.members.contains_key(key) {
            if !self.make_room() {
                self.out.counts.unexpected += 1;
                return;
            }
            let unheard = (key.group.clone(), data.sender, data.lane);
            // Something of it may have been missed while the client was no member: that is asked
            // for. For long enough it is kept; only if it was not is the rest told as a gap.
            let missed = self.unheard.remove(&unheard).is_some()
                || away.is_some_and(|(_, back)| back.is_none_or(|back| now < back + REPLAY_AGE));
            let long = away.is_some_and(|(since, back)| {
                back.unwrap_or(now).saturating_duration_since(since) >= REPLAY_AGE
            });
            let next = if missed { 0 } else { data.base };
            let told_from = if missed && long { 0 } else { data.sequence };
            let config = self.receive_config;
            let entry = MemberEntry {
                lane: MemberLane::new(config, data.sender, data.lane, next, told_from),
                origin,
                heard_at: now,
                duplicates_counted: 0,
                readable: false,
                fetching: false,
                timer: None,
            };
            self.members.insert(key.clone(), entry);
        }
        if let Some(entry) = self.members.get_mut(key) {
            (entry.origin, entry.heard_at) = (origin, now);
            entry.lane.on_data(data, age, now);
            self.serve_member(key, now);
        }
    }

    fn on_media(&mut self, sender: Sender, packet: Packet) {
        let Packet {
            header, payload, ..
        } = packet;
        let payload = if header.trace {
            payload.slice(Trace::LEN.min(payload.len())..)
        } else {
            payload
        };
        self.out.media.push_back(Media {
            from: sender.user,
            group: Some(sender.group),
            layer: header.layer,
            handle: header.handle,
            // A handle of the edge is nothing that could be sent to.
            session: 0,
            flow: header.flow,
            sequence: header.sequence,
            age: Duration::from_micros(u64::from(header.age_us)),
            class: header.class,
            path_change: header.path_change,
            payload,
        });
    }

    /// The lanes of a group, or of one sender instance in it: the edge does not say whose it is.
    fn find_lane(&self, group: &str, sender: u64, lane: u32) -> Option<MemberKey> {
        let (name, _) = self.by_name.get_key_value(group)?;
        let mut lanes = self.range_of(name);
        lanes
            .find(|key| key.sender == sender && key.lane == lane)
            .cloned()
    }

    fn lanes_of(&self, group: &Arc<str>) -> Vec<MemberKey> {
        self.range_of(group).cloned().collect()
    }

    fn range_of<'a>(&'a self, group: &'a Arc<str>) -> impl Iterator<Item = &'a MemberKey> {
        let from = MemberKey {
            group: group.clone(),
            user: "".into(),
            sender: 0,
            lane: 0,
        };
        let lanes = self.members.range(from..);
        lanes
            .map(|(key, _)| key)
            .take_while(move |key| key.group == *group)
    }

    fn forget_member(&mut self, key: &MemberKey) {
        if let Some(entry) = self.members.remove(key) {
            self.open_fetches -= usize::from(entry.fetching);
            if let Some(at) = entry.timer {
                self.timers.remove(&(at, Timer::Member(key.clone())));
            }
        }
    }

    /// Forgets lanes that were idle for long, if there are too many. `false` when each has something
    /// under way.
    fn make_room(&mut self) -> bool {
        if self.members.len() < MAX_LANES {
            return true;
        }
        let idle = self
            .members
            .iter()
            .filter(|(_, entry)| entry.lane.is_idle());
        let mut idle: Vec<_> = idle
            .map(|(key, entry)| (entry.heard_at, key.clone()))
            .collect();
        idle.sort_unstable();
        idle.truncate(FORGOTTEN_AT_ONCE);
        for (_, key) in &idle {
            self.forget_member(key);
        }
        !idle.is_empty()
    }
}
