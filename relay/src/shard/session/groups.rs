//! What clients say of groups, and what they send to them.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tradewind_proto::{
    DropReason, GroupKey, Locator,
    control::{FetchGroup, JoinGroup, LeaveGroup, LookupGroup, group_result},
    packet::{AccessHeader, Destination, Kind, LinkHeader, MAX_PASSED},
};

use super::{ConnKey, Role, Session, Shard, packets};
use crate::{
    flow::FlowHash,
    forwarder::HOP_LIMIT,
    groups::{GroupId, MAX_GROUP_NAME},
    packet::Packet,
    shard::groups::Sent,
};

/// The highest bits of the handles by which a session sends to groups; users' handles are far below.
const HANDLE: u32 = 0b01 << 30;
/// Groups that one session may have to do with in its life.
const MAX_GROUPS: usize = 1_024;

/// The groups that a session has joined or sends to.
#[derive(Debug, Default)]
pub(in crate::shard) struct SessionGroups {
    /// By handle, less its highest bits.
    known: Vec<KnownGroup>,
}

#[derive(Debug)]
struct KnownGroup {
    key: GroupKey,
    id: Arc<GroupId>,
    /// Whether the session's token allows it to send there.
    may_send: bool,
}

/// Whether a client's handle is of a group.
pub(in crate::shard) const fn is_of_group(handle: u32) -> bool {
    handle >> 30 == HANDLE >> 30
}

impl SessionGroups {
    fn named(&self, group: &str) -> Option<(u32, GroupKey)> {
        let mut known = self.known.iter();
        let place = known.position(|known| known.id.group == group)?;
        Some((HANDLE | place as u32, self.known[place].key))
    }

    fn at(&self, handle: u32) -> Option<&KnownGroup> {
        self.known.get((handle & !HANDLE) as usize)
    }

    pub(in crate::shard) fn keys(&self) -> impl Iterator<Item = GroupKey> + '_ {
        self.known.iter().map(|known| known.key)
    }
}

impl Session {
    fn may_send_to(&self, group: &str) -> bool {
        self.ready
            .as_ref()
            .is_some_and(|ready| ready.claims.may_send_to(group))
    }

    fn may_receive_from(&self, group: &str) -> bool {
        self.ready
            .as_ref()
            .is_some_and(|ready| ready.claims.may_receive_from(group))
    }
}

impl Shard {
    /// A client joins a group.
    pub(super) fn join_group(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        join: &JoinGroup,
        now: Instant,
    ) {
        let Some(session) = self.session(key) else {
            return;
        };
        if !session.may_receive_from(&join.group) {
            return self.tell_group_result(key, reply_to, group_result::Status::Denied, 0);
        }
        let sends = session.may_send_to(&join.group);
        let Some((handle, group)) = self.session_group(key, reply_to, &join.group, now) else {
            return;
        };
        let layers = match join.layers as u8 {
            0 => u8::MAX,
            layers => layers,
        };
        if sends {
            self.use_relays_of(group, now);
        }
        let handle = if sends { handle } else { 0 };
        self.add_member(group, key, (layers, join.again), (reply_to, handle), now);
    }

    /// A client leaves a group.
    pub(super) fn leave_group(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        leave: &LeaveGroup,
        now: Instant,
    ) {
        let known = self.session(key).and_then(|s| s.groups.named(&leave.group));
        if let Some((_, group)) = known {
            self.remove_member(group, key, now);
        }
        self.tell_group_result(key, reply_to, group_result::Status::Done, 0);
    }

    /// A client wants to send to a group without joining.
    pub(super) fn look_group_up(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        lookup: &LookupGroup,
        now: Instant,
    ) {
        if !self
            .session(key)
            .is_some_and(|s| s.may_send_to(&lookup.group))
        {
            return self.tell_group_result(key, reply_to, group_result::Status::Denied, 0);
        }
        if let Some((handle, group)) = self.session_group(key, reply_to, &lookup.group, now) {
            self.prepare_to_send(group, key, (reply_to, handle), now);
        }
    }

    /// A client wants segments of a group again.
    pub(super) fn fetch_from_group(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        fetch: &FetchGroup,
        now: Instant,
    ) {
        let session = self.session(key);
        let known = session
            .filter(|session| session.may_receive_from(&fetch.group))
            .and_then(|session| session.groups.named(&fetch.group));
        if let Some((_, group)) = known {
            return self.fetch_group(key, reply_to, group, fetch, now);
        }
        self.tell_nothing_fetched(key, reply_to, fetch, false);
    }

    /// The session's handle of a group and the group's key; answers by itself when there is none.
    fn session_group(
        &mut self,
        key: ConnKey,
        reply_to: u32,
        name: &str,
        now: Instant,
    ) -> Option<(u32, GroupKey)> {
        let session = self.session(key)?;
        let known = session.groups.named(name);
        let id = match known.and_then(|(handle, _)| session.groups.at(handle)) {
            Some(known) => known.id.clone(),
            None => Arc::new(GroupId {
                app: session.user()?.app.clone(),
                group: name.to_owned(),
            }),
        };
        let full = known.is_none() && session.groups.known.len() >= MAX_GROUPS;
        if name.len() > MAX_GROUP_NAME || full {
            self.tell_group_result(key, reply_to, group_result::Status::Denied, 0);
            return None;
        }
        let group = known.map_or_else(|| id.key(), |(_, group)| group);
        if !self.know_group(group, &id, now) {
            self.tell_group_result(key, reply_to, group_result::Status::Retry, 0);
            return None;
        }
        if known.is_none() {
            let session = self.session_mut(key)?;
            let may_send = session.may_send_to(&id.group);
            let known = &mut session.groups.known;
            known.push(KnownGroup {
                key: group,
                id,
                may_send,
            });
            return Some((HANDLE | (known.len() - 1) as u32, group));
        }
        known
    }

    /// A session has ended: it is a member of nothing any more.
    pub(super) fn leave_all_groups(&mut self, key: ConnKey, now: Instant) {
        let session = self.session(key);
        let groups: Vec<GroupKey> = session.map_or_else(Vec::new, |s| s.groups.keys().collect());
        for group in groups {
            self.remove_member(group, key, now);
        }
    }

    /// A session has a new token: it sends and receives nothing any more that this one does not allow.
    pub(super) fn leave_denied_groups(&mut self, key: ConnKey, now: Instant) {
        let Some(session) = self.session_mut(key) else {
            return;
        };
        let mut known = std::mem::take(&mut session.groups.known);
        for group in &mut known {
            group.may_send = session.may_send_to(&group.id.group);
        }
        session.groups.known = known;
        let known = session.groups.known.iter();
        let denied = known.filter(|known| !session.may_receive_from(&known.id.group));
        let denied: Vec<GroupKey> = denied.map(|known| known.key).collect();
        for group in denied {
            self.remove_member(group, key, now);
        }
    }

    /// A packet from a client to a group.
    pub(super) fn group_packet(
        &mut self,
        key: ConnKey,
        access: &AccessHeader,
        raw: Bytes,
        reliable: bool,
        now: Instant,
    ) {
        let sent = self.admit_to_group(key, access, raw, reliable, now);
        if let Err(reason) = sent.and_then(|sent| {
            self.metrics.count_ingress(access.class);
            self.metrics.groups.packets.inc();
            self.send_to_group(sent, now)
        }) {
            self.refuse_packet(key, access, reason);
        }
    }

    fn admit_to_group(
        &mut self,
        key: ConnKey,
        access: &AccessHeader,
        raw: Bytes,
        reliable: bool,
        now: Instant,
    ) -> Result<Sent, DropReason> {
        let tables = self.tables.clone();
        let Some(conn) = self.conn_mut(key) else {
            return Err(DropReason::ConnectionClosed);
        };
        let leg = conn.leg();
        let Role::Session(session) = &mut conn.role else {
            return Err(DropReason::Unexpected);
        };
        let Some(ready) = &mut session.ready else {
            return Err(DropReason::NotReady);
        };
        let belongs = match access.kind {
            Kind::Message => reliable,
            Kind::Media => !reliable,
            Kind::Control | Kind::Probe | Kind::EchoRequest | Kind::EchoReply => false,
        };
        if !belongs {
            return Err(DropReason::Unexpected);
        }
        if raw.len() > packets::MAX_PACKET {
            return Err(DropReason::TooLarge);
        }
        let Some(known) = session.groups.at(access.handle) else {
            return Err(DropReason::UnknownHandle);
        };
        let claims = &ready.claims;
        if !claims.allows_class(access.class) || !known.may_send {
            return Err(DropReason::Denied);
        }
        let (group, id) = (known.key, known.id.clone());
        let max_message = claims.max_message_bytes();
        let (app, may_send) = (ready.app, ready.may_send(raw.len(), now));
        let sender = Locator {
            relay: tables.me,
            slot: session.slot,
            generation: session.generation,
        };
        if !may_send || !self.apps.may_send(app, raw.len(), now) {
            return Err(DropReason::RateLimited);
        }
        if let Some(ready) = self.session_mut(key).and_then(|s| s.ready.as_mut()) {
            ready.spend(raw.len());
        }
        // It may have been idle so long that the edge has forgotten it.
        if !self.know_group(group, &id, now) {
            return Err(DropReason::QueueFull);
        }
        let stamp = self.stamp_to_group(group, FlowHash::new(sender, access.flow));
        let header = LinkHeader {
            kind: access.kind,
            class: access.class,
            profile: stamp.profile,
            tree: stamp.tree,
            deflections: 0,
            trace: access.trace,
            path_change: false,
            hop_limit: HOP_LIMIT,
            plan: stamp.plan,
            age_us: u32::try_from(leg.as_micros()).unwrap_or(u32::MAX),
            sender,
            destination: Destination::Group(group),
            passed: [tradewind_proto::RelayIndex::NONE; MAX_PASSED],
            uplink: 0,
            flow: access.flow,
            sequence: access.sequence,
            layer: access.layer,
            tenant: self.apps.tenant(app),
        };
        Ok(Sent {
            group,
            session: key,
            handle: access.handle,
            max_message,
            packet: Packet::new(header, raw, AccessHeader::LEN, now),
        })
    }
}
