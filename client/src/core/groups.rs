//! Groups: membership, what is sent to them and what comes from them. It knows no session: whoever
//! owns it says when there is one, takes from it what is to be said and sent, and gives it what comes.

mod hooks;
mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tradewind_proto::{
    control::{JoinGroup, LeaveGroup, LookupGroup, client_message::Body, group_result::Status},
    lane::{Outcome, ReceiveConfig, SendConfig},
};

pub(super) use self::hooks::GroupLink;
use self::{
    receiving::{MemberEntry, MemberKey, Source},
    sending::SendEntry,
};
use crate::{Event, GroupError, Media};

/// Groups remembered; beyond it those with nothing under way are forgotten.
const MAX_GROUPS: usize = 4_096;
/// Longest name of a group, in bytes.
const MAX_NAME: usize = 512;
/// How long the edge may take to answer before it is asked again: a join waits for leases to end.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// Pauses before it is asked again when it cannot answer: from, to; doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// How often the round trip to the edge is looked at.
const LEG_LOOK: Duration = Duration::from_secs(1);

/// Answers a join, or who waits until a group can be sent to.
pub(crate) type Answer = oneshot::Sender<Result<(), GroupError>>;

pub(super) struct Groups {
    send_config: SendConfig,
    receive_config: ReceiveConfig,
    /// Draws sender instances that nobody can guess.
    draw: Box<dyn FnMut() -> u64 + Send>,
    by_name: BTreeMap<Arc<str>, Group>,
    /// Our own handles in the present session.
    by_handle: FxHashMap<u32, Arc<str>>,
    /// Who is behind the handles of the present edge.
    sources: FxHashMap<u32, Source>,
    /// Packets held of senders that are not known yet.
    held: usize,
    members: BTreeMap<MemberKey, MemberEntry>,
    /// Lanes of which nothing was heard but that the edge could not give us something of, and the relay
    /// index of the sender's edge.
    unheard: BTreeMap<Unheard, u32>,
    /// Lanes with something for the application.
    readable: VecDeque<MemberKey>,
    open_fetches: usize,
    timers: BTreeSet<(Instant, Timer)>,
    /// Whether there is a session.
    attached: bool,
    closed: bool,
    out: Output,
}

/// What is to be done outside.
#[derive(Default)]
pub(super) struct Output {
    /// To be said to the edge; those with a name are questions of that group.
    pub(super) questions: VecDeque<(Body, Option<Arc<str>>)>,
    /// Lanes that have something to send.
    pub(super) turns: VecDeque<(Arc<str>, u32)>,
    pub(super) media: VecDeque<Media>,
    pub(super) events: VecDeque<Event>,
    pub(super) counts: Counts,
}

/// What has happened since it was taken last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) delivered: u64,
    pub(super) failed: u64,
    pub(super) resent: u64,
    pub(super) duplicates: u64,
    pub(super) media_dropped: u64,
    pub(super) fetches: u64,
    pub(super) unexpected: u64,
}

#[derive(Default)]
struct Group {
    /// The sender instance of our lanes to it.
    sender: u64,
    /// The layers wanted, if it is to be joined.
    layers: Option<u32>,
    /// A member in the present session.
    joined: bool,
    /// What the edge said of the membership may not hold any more.
    stale: bool,
    /// When the last session ended in which it was a member; and when it was one again.
    away: Option<(Instant, Option<Instant>)>,
    /// What it may be sent to with, in the present session.
    handle: Option<u32>,
    asked: Asked,
    pause: Duration,
    timer: Option<Instant>,
    joining: Vec<Answer>,
    finding: Vec<Answer>,
    /// Open flows to it.
    flows: usize,
    lanes: BTreeMap<u32, SendEntry>,
}

/// Whether there is a question to the edge about a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Asked {
    #[default]
    No,
    /// To be said.
    Queued,
    /// The one with this id is open.
    Open(u32),
    /// To be asked again at the group's timer.
    Later,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Group(Arc<str>),
    Send(Arc<str>, u32),
    Member(MemberKey),
    /// The edge was too busy to give us this segment of a lane of which nothing was heard.
    Unheard(Unheard, u64),
}

/// Group, sender instance and lane.
type Unheard = (Arc<str>, u64, u32);

impl Groups {
    pub(super) fn new(
        send_config: SendConfig,
        receive_config: ReceiveConfig,
        draw: impl FnMut() -> u64 + Send + 'static,
    ) -> Self {
        Self {
            send_config,
            receive_config: ReceiveConfig {
                capacity: receiving::LANE_CAPACITY,
                ..receive_config
            },
            draw: Box::new(draw),
            by_name: BTreeMap::new(),
            by_handle: FxHashMap::default(),
            sources: FxHashMap::default(),
            held: 0,
            members: BTreeMap::new(),
            unheard: BTreeMap::new(),
            readable: VecDeque::new(),
            open_fetches: 0,
            timers: BTreeSet::new(),
            attached: false,
            closed: false,
            out: Output::default(),
        }
    }

    /// There is a session: all memberships begin anew there.
    pub(super) fn attached(&mut self, now: Instant) {
        self.attached = true;
        let names: Vec<_> = self.by_name.keys().cloned().collect();
        for name in names {
            self.ask(&name, now);
        }
    }

    /// The session is over, and with it what was known by its handles.
    pub(super) fn detached(&mut self, now: Instant) {
        if !std::mem::take(&mut self.attached) {
            return;
        }
        self.by_handle.clear();
        self.sources.clear();
        self.out.counts.media_dropped += std::mem::take(&mut self.held) as u64;
        self.unheard.clear();
        self.out.questions.clear();
        self.out.turns.clear();
        self.open_fetches = 0;
        let names: Vec<_> = self.by_name.keys().cloned().collect();
        for name in names {
            self.set_group_timer(&name, None);
            let Some(group) = self.by_name.get_mut(&name) else {
                continue;
            };
            if std::mem::take(&mut group.joined) {
                let since = match group.away {
                    // What was missed before may not have been asked for yet.
                    Some((since, None)) => since,
                    _ => now,
                };
                group.away = Some((since, None));
            }
            (group.handle, group.asked) = (None, Asked::No);
            for entry in group.lanes.values_mut() {
                entry.queued = false;
            }
        }
        let lanes: Vec<_> = self.members.keys().cloned().collect();
        for key in lanes {
            if let Some(entry) = self.members.get_mut(&key) {
                entry.fetching = false;
                entry.lane.suspend();
            }
            self.serve_member(&key, now);
        }
    }

    /// The end: everything under way ends with it.
    pub(super) fn close(&mut self, now: Instant) {
        self.closed = true;
        let names: Vec<_> = self.by_name.keys().cloned().collect();
        for name in names {
            if let Some(group) = self.by_name.get_mut(&name) {
                group.answer_all(&Err(GroupError::Closed));
            }
            self.each_lane(&name, now, |lane, now| lane.fail_all(Outcome::Closed, now));
        }
    }

    /// Makes the client a member, or changes the layers that it wants (0: all).
    pub(super) fn join(&mut self, name: &str, layers: u32, answer: Answer, now: Instant) {
        let (name, group) = match self.group(name) {
            Ok(found) => found,
            Err(error) => {
                let _ = answer.send(Err(error));
                return;
            }
        };
        if group.joined && group.layers == Some(layers) {
            let _ = answer.send(Ok(()));
            return;
        }
        group.joining.push(answer);
        if group.layers != Some(layers) {
            group.layers = Some(layers);
            // An answer to an earlier question would be about other layers, or to a mere lookup.
            group.asked = Asked::No;
        }
        self.ask(&name, now);
    }

    /// Ends the membership.
    pub(super) fn leave(&mut self, name: &str, now: Instant) {
        let Some((name, group)) = self.known(name) else {
            return;
        };
        if group.layers.take().is_none() {
            return;
        }
        for joining in group.joining.drain(..) {
            let _ = joining.send(Err(GroupError::Left));
        }
        group.end_membership();
        if let Some(handle) = group.handle.take() {
            self.by_handle.remove(&handle);
        }
        self.forget_members(&name);
        if self.attached {
            let group = name.to_string();
            let leave = Body::LeaveGroup(LeaveGroup { group });
            self.out.questions.push_back((leave, None));
        }
        // Sends go on without membership, where the token allows it.
        self.ask(&name, now);
    }

    /// Who asked to join does not wait any more: not a member, then.
    pub(super) fn give_up_join(&mut self, name: &str, now: Instant) {
        if let Some((_, group)) = self.known(name)
            && !group.joined
            && group.away.is_none()
        {
            self.leave(name, now);
        }
    }

    /// Answers when the group can be sent to.
    pub(super) fn find(&mut self, name: &str, answer: Answer, now: Instant) {
        match self.group(name) {
            Ok((_, group)) if group.handle.is_some() => {
                let _ = answer.send(Ok(()));
            }
            Ok((name, group)) => {
                group.finding.push(answer);
                self.ask(&name, now);
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    /// A flow to a group is opened (+1) or closed (−1).
    pub(super) fn count_flow(&mut self, name: &str, by: isize) -> Option<Arc<str>> {
        let (name, group) = self.group(name).ok()?;
        group.flows = group.flows.saturating_add_signed(by);
        Some(name)
    }

    /// The groups that the client is a member of in the present session.
    pub(super) fn joined(&self) -> Vec<String> {
        let joined = self.by_name.iter().filter(|(_, group)| group.joined);
        joined.map(|(name, _)| name.to_string()).collect()
    }

    /// Whether it is a handle of ours to send to a group with.
    pub(super) fn owns(&self, handle: u32) -> bool {
        self.by_handle.contains_key(&handle)
    }

    /// The session goes on with another token, which may allow other things: what membership is now is
    /// asked, as the edge does not say so by itself.
    pub(super) fn token_changed(&mut self, now: Instant) {
        let names: Vec<_> = self.by_name.keys().cloned().collect();
        for name in names {
            if let Some(group) = self.by_name.get_mut(&name) {
                group.stale = group.joined;
            }
            self.ask(&name, now);
        }
    }

    /// The handle to send to a group with; asks for one when there is none.
    pub(super) fn handle_of(&mut self, name: &Arc<str>, now: Instant) -> Option<u32> {
        let group = self.by_name.get(name)?;
        let handle = group.handle;
        // To members the edge has said already whether they may.
        if handle.is_none() && !group.joined {
            self.ask(name, now);
        }
        handle
    }

    /// The question about this group has been sent, with this id.
    pub(super) fn asked(&mut self, name: &Arc<str>, id: u32) {
        if let Some(group) = self.by_name.get_mut(name)
            && group.asked == Asked::Queued
        {
            group.asked = Asked::Open(id);
        }
    }

    /// The answer has come.
    pub(super) fn on_result(
        &mut self,
        name: &Arc<str>,
        id: u32,
        status: Status,
        handle: u32,
        now: Instant,
    ) {
        let Some(group) = self.by_name.get_mut(name) else {
            return;
        };
        if group.asked != Asked::Open(id) {
            return;
        }
        group.asked = Asked::No;
        match status {
            Status::Done => self.on_done(name, handle, now),
            Status::Denied => self.on_denied(name, now),
            Status::Retry | Status::Unspecified => {
                group.asked = Asked::Later;
                group.pause = (group.pause * 2).clamp(RETRY.0, RETRY.1);
                let at = now + group.pause;
                self.set_group_timer(name, Some(at));
            }
        }
    }

    /// The edge does not know the handle any more.
    pub(super) fn on_handle_gone(&mut self, handle: u32, now: Instant) -> bool {
        let Some(name) = self.by_handle.remove(&handle) else {
            return false;
        };
        if let Some(group) = self.by_name.get_mut(&name) {
            group.handle = None;
            // Membership stands or falls with the edge's group, and is begun anew if it fell.
            group.asked = Asked::No;
        }
        self.ask(&name, now);
        true
    }

    /// What the time demands.
    pub(super) fn on_timers(&mut self, now: Instant) {
        while let Some((at, _)) = self.timers.first() {
            if *at > now {
                break;
            }
            let Some((_, timer)) = self.timers.pop_first() else {
                break;
            };
            match timer {
                Timer::Group(name) => {
                    if let Some(group) = self.by_name.get_mut(&name) {
                        (group.timer, group.asked) = (None, Asked::No);
                        self.ask(&name, now);
                    }
                }
                Timer::Send(name, lane) => self.send_timer(&name, lane, now),
                Timer::Member(key) => {
                    if let Some(entry) = self.members.get_mut(&key) {
                        entry.timer = None;
                        self.serve_member(&key, now);
                    }
                }
                Timer::Unheard(unheard, sequence) => self.ask_unheard(&unheard, sequence),
            }
        }
    }

    /// When [`on_timers`](Self::on_timers) is to be called.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What is to be done outside.
    pub(super) const fn output(&mut self) -> &mut Output {
        &mut self.out
    }

    /// Asks the edge for what a group needs, unless that is known or asked already.
    fn ask(&mut self, name: &Arc<str>, now: Instant) {
        let attached = self.attached && !self.closed;
        let Some(group) = self.by_name.get_mut(name) else {
            return;
        };
        group.joining.retain(|answer| !answer.is_closed());
        group.finding.retain(|answer| !answer.is_closed());
        if !attached || group.asked != Asked::No {
            return;
        }
        let group_name = name.to_string();
        let question = match group.layers {
            Some(layers)
                if !group.joined
                    || group.stale
                    || group.handle.is_none()
                    || !group.joining.is_empty() =>
            {
                Body::JoinGroup(JoinGroup {
                    group: group_name,
                    layers,
                    again: !group.joined && group.away.is_some(),
                })
            }
            None if group.handle.is_none() && group.wants_to_send() => {
                Body::LookupGroup(LookupGroup { group: group_name })
            }
            _ => return,
        };
        group.asked = Asked::Queued;
        self.out.questions.push_back((question, Some(name.clone())));
        self.set_group_timer(name, Some(now + ANSWER_WITHIN));
    }

    fn on_done(&mut self, name: &Arc<str>, handle: u32, now: Instant) {
        self.set_group_timer(name, None);
        let Some(group) = self.by_name.get_mut(name) else {
            return;
        };
        (group.pause, group.stale) = (Duration::ZERO, false);
        let joined = group.layers.is_some() && !std::mem::replace(&mut group.joined, true);
        if group.layers.is_none() {
            group.joined = false;
        }
        for joining in group.joining.drain(..) {
            let _ = joining.send(Ok(()));
        }
        if joined && let Some((_, back)) = &mut group.away {
            *back = Some(now);
        }
        let may_send = handle != 0;
        let found = if may_send {
            Ok(())
        } else {
            Err(GroupError::Denied)
        };
        for finding in group.finding.drain(..) {
            let _ = finding.send(found);
        }
        let before = std::mem::replace(&mut group.handle, may_send.then_some(handle));
        if joined {
            self.resume_members(name, now);
        }
        if !may_send {
            self.each_lane(name, now, |lane, now| lane.fail_all(Outcome::Denied, now));
        } else if before != Some(handle) {
            self.by_handle.insert(handle, name.clone());
            self.each_lane(name, now, |lane, _| lane.way_changed());
        }
    }

    fn on_denied(&mut self, name: &Arc<str>, now: Instant) {
        self.set_group_timer(name, None);
        let Some(group) = self.by_name.get_mut(name) else {
            return;
        };
        group.pause = Duration::ZERO;
        if group.layers.take().is_none() {
            for finding in group.finding.drain(..) {
                let _ = finding.send(Err(GroupError::Denied));
            }
            if group.flows > 0 {
                // They go on asking, but not with every packet.
                group.asked = Asked::Later;
                self.set_group_timer(name, Some(now + RETRY.1));
            }
            self.each_lane(name, now, |lane, now| lane.fail_all(Outcome::Denied, now));
            return;
        }
        for joining in group.joining.drain(..) {
            let _ = joining.send(Err(GroupError::Denied));
        }
        if group.joined || group.away.is_some() {
            let group = name.clone();
            self.out.events.push_back(Event::GroupLeft { group });
        }
        if let Some(group) = self.by_name.get_mut(name) {
            group.end_membership();
        }
        self.forget_members(name);
        // It may be that it may send without being a member.
        self.ask(name, now);
    }

    /// The group of this name, made if needed.
    fn group(&mut self, name: &str) -> Result<(Arc<str>, &mut Group), GroupError> {
        if self.closed {
            return Err(GroupError::Closed);
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(GroupError::Name);
        }
        if !self.by_name.contains_key(name) {
            if self.by_name.len() >= MAX_GROUPS {
                self.forget_idle_groups();
            }
            if self.by_name.len() >= MAX_GROUPS {
                return Err(GroupError::TooMany);
            }
            let sender = (self.draw)();
            let group = Group {
                sender,
                ..Group::default()
            };
            self.by_name.insert(name.into(), group);
        }
        self.known(name).ok_or(GroupError::TooMany)
    }

    fn known(&mut self, name: &str) -> Option<(Arc<str>, &mut Group)> {
        let name = self.by_name.get_key_value(name)?.0.clone();
        self.by_name.get_mut(&name).map(|group| (name, group))
    }

    fn forget_idle_groups(&mut self) {
        let idle: Vec<_> = self
            .by_name
            .iter()
            .filter(|(_, group)| group.layers.is_none() && !group.wants_to_send())
            .map(|(name, _)| name.clone())
            .collect();
        for name in idle {
            self.set_group_timer(&name, None);
            let Some(group) = self.by_name.remove(&name) else {
                continue;
            };
            if let Some(handle) = group.handle {
                self.by_handle.remove(&handle);
            }
            for (lane, entry) in group.lanes {
                if let Some(at) = entry.timer {
                    self.timers.remove(&(at, Timer::Send(name.clone(), lane)));
                }
            }
        }
    }

    fn set_group_timer(&mut self, name: &Arc<str>, at: Option<Instant>) {
        if let Some(group) = self.by_name.get_mut(name) {
            let before = std::mem::replace(&mut group.timer, at);
            self.set_timer(Timer::Group(name.clone()), before, at);
        }
    }

    fn set_timer(&mut self, timer: Timer, before: Option<Instant>, at: Option<Instant>) {
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.timers.remove(&(before, timer.clone()));
        }
        if let Some(at) = at {
            self.timers.insert((at, timer));
        }
    }
}

impl Group {
    fn wants_to_send(&self) -> bool {
        let pending = self.lanes.values().any(|entry| entry.lane.pending() > 0);
        self.flows > 0 || !self.finding.is_empty() || pending
    }

    fn end_membership(&mut self) {
        (self.joined, self.away, self.asked) = (false, None, Asked::No);
        self.stale = false;
    }

    fn answer_all(&mut self, answer: &Result<(), GroupError>) {
        for waiting in self.joining.drain(..).chain(self.finding.drain(..)) {
            let _ = waiting.send(*answer);
        }
    }
}
