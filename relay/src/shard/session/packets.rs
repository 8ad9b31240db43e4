//! Packets of clients: into the network here, out of it here, and what is said of those that cannot.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tradewind_proto::{
    DropReason, Locator, MAX_SEGMENT, RelayIndex, Tenant, UserKey,
    control::{Gone, Peer, Rejected, edge_message, rejected},
    packet::{AccessHeader, Destination, Kind, LinkHeader, MAX_PASSED},
};

use super::{ConnKey, Role, Shard, groups};
use crate::{flow::FlowHash, forwarder::HOP_LIMIT, packet::Packet, queue::Queued};

/// Bytes that the lane's own header may add to a segment.
const LANE_OVERHEAD: usize = 256;
/// Largest packet a client may send, in bytes.
pub(super) const MAX_PACKET: usize = AccessHeader::LEN + MAX_SEGMENT + LANE_OVERHEAD;
/// How often it is asked who a sender is while nobody answers.
const INTRODUCTION_PERIOD: Duration = Duration::from_secs(3);

/// A packet that a client may send.
struct Admitted {
    sender: Locator,
    destination: Locator,
    /// The delay of the client's own leg.
    leg: Duration,
    tenant: Tenant,
}

impl Shard {
    /// A packet from a client enters the network here.
    pub(in crate::shard) fn session_packet(
        &mut self,
        key: ConnKey,
        raw: Bytes,
        reliable: bool,
        now: Instant,
    ) {
        let access = match AccessHeader::decode(&raw) {
            Ok(access) => access,
            Err(error) => return self.count_bad_header(error),
        };
        if groups::is_of_group(access.handle) {
            return self.group_packet(key, &access, raw, reliable, now);
        }
        match self.admit(key, &access, raw.len(), reliable, now) {
            Ok(admitted) => {
                let Admitted {
                    sender,
                    destination,
                    leg,
                    tenant,
                } = admitted;
                self.metrics.count_ingress(access.class);
                let payload = raw.len() - AccessHeader::LEN;
                self.count_demand(destination.relay, access.class, payload);
                let tables = self.tables.clone();
                let Some(session) = self.session_mut(key) else {
                    return;
                };
                let stamp = tables.stamp(
                    FlowHash::new(sender, access.flow),
                    access.class.profile() as u8,
                    destination.relay,
                    |plan| session.rules_in(plan),
                );
                if !destination.is_relay_itself() && session.must_introduce(access.handle) {
                    self.introduce_to(destination.relay, sender, now);
                }
                let header = LinkHeader {
                    kind: access.kind,
                    class: access.class,
                    profile: stamp.profile,
                    tree: stamp.tree,
                    deflections: 0,
                    trace: access.trace,
                    path_change: access.path_change,
                    hop_limit: HOP_LIMIT,
                    plan: stamp.plan,
                    age_us: u32::try_from(leg.as_micros()).unwrap_or(u32::MAX),
                    sender,
                    destination: Destination::Session(destination),
                    passed: [RelayIndex::NONE; MAX_PASSED],
                    uplink: 0,
                    flow: access.flow,
                    sequence: access.sequence,
                    layer: 0,
                    tenant,
                };
                self.forward(Packet::new(header, raw, AccessHeader::LEN, now), now);
            }
            Err(reason) => self.refuse_packet(key, &access, reason),
        }
    }

    /// A client's packet is not taken; of one on a lane it is told so.
    pub(super) fn refuse_packet(
        &mut self,
        key: ConnKey,
        access: &AccessHeader,
        reason: DropReason,
    ) {
        self.metrics.count_drop(reason);
        if access.kind != Kind::Message {
            return;
        }
        let reason = match reason {
            DropReason::Denied => rejected::Reason::Denied,
            DropReason::TooLarge => rejected::Reason::TooLarge,
            DropReason::UnknownHandle => rejected::Reason::UnknownHandle,
            DropReason::RateLimited | DropReason::QueueFull => rejected::Reason::QueueFull,
            DropReason::SessionGone => {
                let gone = Gone {
                    handle: access.handle,
                };
                return self.tell(key, 0, edge_message::Body::Gone(gone));
            }
            _ => return,
        };
        self.tell_rejected(key, reason, access.handle, access.flow, access.sequence);
    }

    /// Whether a client may send a packet.
    fn admit(
        &mut self,
        key: ConnKey,
        access: &AccessHeader,
        length: usize,
        reliable: bool,
        now: Instant,
    ) -> Result<Admitted, DropReason> {
        let me = self.tables.me;
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
            Kind::Media | Kind::EchoRequest | Kind::EchoReply => !reliable,
            Kind::Control | Kind::Probe => false,
        };
        if !belongs {
            return Err(DropReason::Unexpected);
        }
        if !ready.claims.allows_class(access.class) {
            return Err(DropReason::Denied);
        }
        if length > MAX_PACKET {
            return Err(DropReason::TooLarge);
        }
        let (app, may_send) = (ready.app, ready.may_send(length, now));
        let Some(handle) = session.handle(access.handle) else {
            return Err(DropReason::UnknownHandle);
        };
        let destination = handle.locator.ok_or(DropReason::SessionGone)?;
        if destination.is_relay_itself() && access.kind != Kind::EchoRequest {
            return Err(DropReason::Denied);
        }
        let sender = Locator {
            relay: me,
            slot: session.slot,
            generation: session.generation,
        };
        if !may_send || !self.apps.may_send(app, length, now) {
            return Err(DropReason::RateLimited);
        }
        if let Some(ready) = self.session_mut(key).and_then(|s| s.ready.as_mut()) {
            ready.spend(length);
        }
        Ok(Admitted {
            sender,
            destination,
            leg,
            tenant: self.apps.tenant(app),
        })
    }

    /// A packet for a session of this relay.
    pub(in crate::shard) fn deliver(&mut self, locator: Locator, packet: Packet, now: Instant) {
        let sender = packet.header.sender;
        let Some(key) = self.session_at(locator) else {
            self.metrics.count_drop(DropReason::SessionGone);
            self.tell_sender_gone(sender, locator, now);
            return;
        };
        let Some(session) = self.session_mut(key) else {
            return;
        };
        let Some((handle, new)) = session.handle_of(sender, now) else {
            self.metrics.count_drop(DropReason::UnknownHandle);
            return;
        };
        if new {
            // Whoever sends here has looked this client up.
            session.must_introduce(handle);
        }
        if !sender.is_relay_itself() && (new || self.introduction_due(key, handle, now)) {
            self.introduce(key, sender, now);
        }
        self.enqueue(key, Queued { packet, handle }, now);
    }

    /// Whether it is time to ask (again) who is behind a handle.
    fn introduction_due(&mut self, key: ConnKey, handle: u32, now: Instant) -> bool {
        let Some(handle) = self
            .session_mut(key)
            .and_then(|session| session.handles.get_mut(handle as usize - 1))
        else {
            return false;
        };
        let asked = handle.asked.get_or_insert(now);
        let due =
            handle.user.is_none() && now.saturating_duration_since(*asked) > INTRODUCTION_PERIOD;
        if due {
            *asked = now;
        }
        due
    }

    /// Tells a client who is behind a handle that was made for packets that came to it.
    pub(in crate::shard) fn tell_peer(
        &mut self,
        key: ConnKey,
        locator: Locator,
        (user, instance): &(UserKey, u64),
    ) {
        let Some(session) = self.session_mut(key) else {
            return;
        };
        // Users of another app are nobody here.
        if session.user().is_none_or(|own| own.app != user.app) {
            return;
        }
        let Some(&handle) = session.by_locator.get(&locator) else {
            return;
        };
        session.handles[handle as usize - 1].user = Some(user.user.as_str().into());
        let peer = Peer {
            handle,
            user: user.user.clone(),
            instance: *instance,
        };
        self.tell(key, 0, edge_message::Body::Peer(peer));
    }

    /// The session at `destination` has ended: the handle that leads there leads nowhere.
    pub(in crate::shard) fn session_is_gone(&mut self, sender: Locator, destination: Locator) {
        let now = self.now;
        let Some(key) = self.session_at(sender) else {
            return;
        };
        let released = self
            .session_mut(key)
            .and_then(|session| session.release(destination, now));
        if let Some(handle) = released {
            self.tell(key, 0, edge_message::Body::Gone(Gone { handle }));
        }
    }

    /// Tells a client that a packet of a lane was not taken.
    pub(in crate::shard) fn tell_rejected(
        &mut self,
        key: ConnKey,
        reason: rejected::Reason,
        handle: u32,
        flow: u32,
        sequence: u32,
    ) {
        let rejected = Rejected {
            reason: reason as i32,
            handle,
            flow,
            sequence,
        };
        self.tell(key, 0, edge_message::Body::Rejected(rejected));
    }

    /// The same, found out by another relay, which knows only the locators.
    pub(in crate::shard) fn packet_was_rejected(
        &mut self,
        sender: Locator,
        destination: Locator,
        reason: rejected::Reason,
        flow: u32,
        sequence: u32,
    ) {
        let Some(key) = self.session_at(sender) else {
            return;
        };
        let handle = self
            .session(key)
            .and_then(|session| session.by_locator.get(&destination).copied());
        if let Some(handle) = handle {
            self.tell_rejected(key, reason, handle, flow, sequence);
        }
    }
}
