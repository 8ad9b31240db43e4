//! Where the client's state and its groups meet. Groups live on the first session.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tradewind_proto::{
    Class,
    control::{LeaveGroup, Rejected, client_message, edge_message::Body},
    lane::{LaneFrame, Trouble},
};

use super::{Answer, LEG_LOOK};
use crate::{
    SendOptions,
    core::{Ask, Core, LaneKey, Outcomes, Packet, Timer, WayKey, outgoing::stream_of},
    session::Live,
};

/// What the groups have of the client's sessions.
#[derive(Default)]
pub(in crate::core) struct GroupLink {
    /// The session that they live on.
    session: Option<u64>,
    /// What is to be added to the age of its group packets, microseconds; and when that was looked at.
    leg: Option<(u32, Instant)>,
    /// The groups' own earliest timer.
    timer: Option<Instant>,
}

impl Core {
    pub(crate) fn join_group(&mut self, group: &str, layers: u32, answer: Answer, now: Instant) {
        self.groups.join(group, layers, answer, now);
        self.serve_groups(now);
    }

    pub(crate) fn give_up_join(&mut self, group: &str, now: Instant) {
        self.groups.give_up_join(group, now);
        self.serve_groups(now);
    }

    pub(crate) fn leave_group(&mut self, group: &str, now: Instant) {
        self.groups.leave(group, now);
        self.serve_groups(now);
    }

    /// Answers when the group can be sent to.
    pub(crate) fn find_group(&mut self, group: &str, answer: Answer, now: Instant) {
        self.groups.find(group, answer, now);
        self.serve_groups(now);
    }

    /// Takes a message to send to a group.
    pub(crate) fn enqueue_group(
        &mut self,
        group: &str,
        payload: Bytes,
        options: SendOptions,
        outcome: Outcomes,
        now: Instant,
    ) {
        self.stats.messages_sent += 1;
        let limit = self.welcome.max_message_bytes;
        self.groups
            .enqueue(group, payload, options, limit, outcome, now);
        self.serve_groups(now);
    }

    /// A flow to a group is opened (+1) or closed (−1).
    pub(crate) fn count_group_flow(&mut self, group: &str, by: isize) -> Option<Arc<str>> {
        self.groups.count_flow(group, by)
    }

    /// The way of a group's flow now.
    pub(crate) fn group_way(&mut self, group: &Arc<str>, now: Instant) -> Option<(Arc<Live>, u32)> {
        let session = self.group_link.session?;
        let live = self.live(session)?.clone();
        let handle = self.groups.handle_of(group, now);
        self.serve_groups(now);
        self.note_use(session, now);
        Some((live, handle?))
    }

    /// All memberships move to another session, or wait for one.
    pub(in crate::core) fn move_groups(&mut self, to: Option<u64>, now: Instant) {
        if self.group_link.session == to {
            return;
        }
        if let Some(before) = self.group_link.session {
            // A session that goes on is not to get everything as well.
            for group in self.groups.joined() {
                let leave = client_message::Body::LeaveGroup(LeaveGroup { group });
                self.tell_session(before, leave);
            }
            if let Some(attachment) = self.attachments.get_mut(&before) {
                attachment
                    .asks
                    .retain(|_, ask| !matches!(ask, Ask::Group(_)));
            }
            self.groups.detached(now);
        }
        (self.group_link.session, self.group_link.leg) = (to, None);
        if to.is_some() {
            self.groups.attached(now);
        }
        self.serve_groups(now);
    }

    /// Whether a handle is one of ours to send to a group with.
    pub(in crate::core) fn is_group_way(&self, way: WayKey) -> bool {
        self.group_link.session == Some(way.session) && self.groups.owns(way.handle)
    }

    /// A control message about groups has come.
    pub(in crate::core) fn on_group_control(
        &mut self,
        session: u64,
        reply_to: u32,
        body: Body,
        now: Instant,
    ) {
        if self.group_link.session != Some(session) {
            return;
        }
        match body {
            Body::GroupResult(result) => {
                let attachment = self.attachments.get_mut(&session);
                let asked = attachment.and_then(|attachment| attachment.asks.remove(&reply_to));
                if let Some(Ask::Group(name)) = asked {
                    let (status, handle) = (result.status(), result.handle);
                    self.groups.on_result(&name, reply_to, status, handle, now);
                }
            }
            Body::GroupSource(source) => self.groups.on_source(source, now),
            Body::GroupFetched(fetched) => self.groups.on_fetched(&fetched, now),
            Body::GroupHead(head) => self.groups.on_head(&head, now),
            _ => {}
        }
        self.serve_groups(now);
    }

    /// A packet with the group flag has come.
    pub(in crate::core) fn on_group_packet(&mut self, mut packet: Packet, now: Instant) {
        if self.group_link.session != Some(packet.session) {
            // What was still under way over the session before.
            return;
        }
        // The edge writes one packet for all members: each adds its own leg.
        let leg = self.group_leg(packet.session, now);
        packet.header.age_us = packet.header.age_us.saturating_add(leg);
        self.groups.on_packet(packet, now);
        self.serve_groups(now);
    }

    /// The session goes on with another token.
    pub(in crate::core) fn group_token_changed(&mut self, session: u64, now: Instant) {
        if self.group_link.session == Some(session) {
            self.groups.token_changed(now);
            self.serve_groups(now);
        }
    }

    /// The edge does not know a group's handle any more.
    pub(in crate::core) fn on_group_gone(&mut self, handle: u32, now: Instant) {
        self.groups.on_handle_gone(handle, now);
        self.serve_groups(now);
    }

    /// The edge did not take a packet to a group.
    pub(in crate::core) fn on_group_rejected(
        &mut self,
        rejected: &Rejected,
        trouble: Trouble,
        now: Instant,
    ) {
        let (lane, sequence) = (rejected.flow, rejected.sequence);
        self.groups
            .on_rejected(rejected.handle, lane, sequence, trouble, now);
        self.serve_groups(now);
    }

    pub(in crate::core) fn on_group_timer(&mut self, now: Instant) {
        self.group_link.timer = None;
        self.groups.on_timers(now);
        self.serve_groups(now);
    }

    /// The next frame of a lane to a group, if it is the turn of this session.
    pub(in crate::core) fn next_group_frame(
        &mut self,
        session: u64,
        group: &Arc<str>,
        lane: u32,
        now: Instant,
    ) -> Option<(u32, Class, LaneFrame)> {
        if self.group_link.session != Some(session) {
            return None;
        }
        let frame = self.groups.next_frame(group, lane, now);
        self.serve_groups(now);
        frame
    }

    /// Does outside what the groups want done.
    pub(in crate::core) fn serve_groups(&mut self, now: Instant) {
        let received = self.groups.deliver(&mut self.inbox, now);
        self.stats.messages_received += received;
        self.wakes.events |= received > 0 || self.inbox.has_notices();
        while let Some((body, group)) = self.groups.output().questions.pop_front() {
            let Some(session) = self.group_link.session else {
                continue;
            };
            if let Some(id) = self.tell_session(session, body)
                && let Some(group) = group
                && let Some(attachment) = self.attachments.get_mut(&session)
            {
                self.groups.asked(&group, id);
                attachment.asks.insert(id, Ask::Group(group));
            }
        }
        while let Some((group, lane)) = self.groups.output().turns.pop_front() {
            if let Some(session) = self.group_link.session {
                self.queue_turn(session, stream_of(lane), LaneKey::Group(group, lane), false);
            }
        }
        let out = self.groups.output();
        while let Some(media) = out.media.pop_front() {
            self.stats.media_received += 1;
            self.stats.media_dropped += u64::from(self.inbox.push_media(media));
            self.wakes.events = true;
        }
        while let Some(event) = out.events.pop_front() {
            self.inbox.push_notice(event);
            self.wakes.events = true;
        }
        let counts = std::mem::take(&mut out.counts);
        self.stats.messages_delivered += counts.delivered;
        self.stats.messages_failed += counts.failed;
        self.stats.segments_resent += counts.resent;
        self.stats.duplicates_removed += counts.duplicates;
        self.stats.media_dropped += counts.media_dropped;
        self.stats.group_fetches += counts.fetches;
        self.stats.unexpected += counts.unexpected;
        let next = self.groups.next_timeout();
        let before = std::mem::replace(&mut self.group_link.timer, next);
        self.set_timer(Timer::Groups, before, next);
    }

    /// One way to the edge, microseconds: looked at now and then.
    fn group_leg(&mut self, session: u64, now: Instant) -> u32 {
        if let Some((leg, looked)) = self.group_link.leg
            && now.saturating_duration_since(looked) < LEG_LOOK
        {
            return leg;
        }
        let attachment = self.attachments.get(&session);
        let leg = attachment.map_or(0, |attachment| attachment.leg().as_micros());
        let leg = u32::try_from(leg).unwrap_or(u32::MAX);
        self.group_link.leg = Some((leg, now));
        leg
    }
}
