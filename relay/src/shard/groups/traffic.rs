//! What is sent to groups: into the network at the sender's edge, to the members at theirs.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rand::RngExt;
use tradewind_proto::{
    Class, DropReason, GroupKey, Locator, RelayIndex, Tenant,
    control::GroupSegment,
    lane::LaneFrame,
    packet::{Destination, Kind, LinkHeader, MAX_PASSED, RelaySet},
};

use super::{ConnKey, Lane, LaneKey, MAX_LANES, Shard};
use crate::{
    flow::FlowHash,
    forwarder::HOP_LIMIT,
    groups::{Held, IngressLane, Taken},
    packet::Packet,
    plan::Plan,
    queue::Queued,
    shard::session::Session,
    tables::Stamp,
};

/// A packet of a session for a group that it may send to.
#[derive(Debug)]
pub(in crate::shard) struct Sent {
    pub(in crate::shard) group: GroupKey,
    pub(in crate::shard) session: ConnKey,
    /// The session's handle of the group.
    pub(in crate::shard) handle: u32,
    pub(in crate::shard) max_message: u64,
    pub(in crate::shard) packet: Packet,
}

impl Shard {
    /// A packet of one of our sessions goes to a group.
    ///
    /// # Errors
    /// Why it is not taken.
    pub(in crate::shard) fn send_to_group(
        &mut self,
        sent: Sent,
        now: Instant,
    ) -> Result<(), DropReason> {
        self.use_relays_of(sent.group, now);
        if sent.packet.header.kind == Kind::Media {
            let mut packet = sent.packet;
            packet.relays = self.other_relays_of(sent.group, now).0;
            self.send_out(sent.group, packet, true, None, now);
            return Ok(());
        }
        match LaneFrame::decode(sent.packet.payload()) {
            Ok(LaneFrame::Data(data)) => {
                if data
                    .total
                    .is_some_and(|total| u64::from(total) > sent.max_message)
                {
                    return Err(DropReason::TooLarge);
                }
                let lane = LaneKey {
                    group: sent.group,
                    sender: data.sender,
                    lane: data.lane,
                };
                self.send_segment(
                    sent,
                    lane,
                    data.base,
                    data.sequence,
                    data.payload.len(),
                    now,
                )
            }
            Ok(LaneFrame::Skip(skip)) => {
                let lane = LaneKey {
                    group: sent.group,
                    sender: skip.sender,
                    lane: skip.lane,
                };
                self.ingress_lane(&sent, lane, skip.base, now)?;
                self.groups.acks_due.insert(lane);
                let mut packet = sent.packet;
                packet.relays = self.other_relays_of(sent.group, now).0;
                self.send_out(sent.group, packet, true, Some(lane), now);
                Ok(())
            }
            // Members acknowledge nothing, and the rest is between two clients.
            Ok(_) => Err(DropReason::Unexpected),
            Err(_) => Err(DropReason::Malformed),
        }
    }

    fn send_segment(
        &mut self,
        sent: Sent,
        lane: LaneKey,
        base: u64,
        sequence: u64,
        length: usize,
        now: Instant,
    ) -> Result<(), DropReason> {
        let (relays, certain) = self.other_relays_of(lane.group, now);
        let ingress = self.ingress_lane(&sent, lane, base, now)?;
        let mut packet = sent.packet;
        match ingress.take(sequence, length, &relays, certain, now) {
            Taken::New => {
                if relays.is_empty() && certain {
                    self.groups.acks_due.insert(lane);
                }
                let new = self.keep(lane, sequence, &packet, now);
                packet.relays = relays;
                self.send_out(lane.group, packet, new, Some(lane), now);
            }
            Taken::Again(relays) => {
                packet.relays = relays;
                self.send_out(lane.group, packet, false, Some(lane), now);
            }
            Taken::Held => {
                self.groups.acks_due.insert(lane);
            }
            Taken::Refused => return Err(DropReason::QueueFull),
        }
        Ok(())
    }

    /// The state of a lane that enters here, with what the sender has just said of its base.
    fn ingress_lane(
        &mut self,
        sent: &Sent,
        lane: LaneKey,
        base: u64,
        now: Instant,
    ) -> Result<&mut IngressLane, DropReason> {
        let group = self.groups.known.get(&lane.group);
        let group = group.ok_or(DropReason::UnknownHandle)?;
        let key = (lane.sender, lane.lane);
        let known = group.lanes.get(&key);
        // A session is the same user's for ever.
        if known.is_none_or(|known| known.session != sent.session) {
            let user = self.session(sent.session).and_then(Session::user);
            let owner = &user.ok_or(DropReason::NotReady)?.user;
            match known {
                // Members know the sender's instance; nobody else may use it.
                Some(known) if known.owner != *owner => return Err(DropReason::Denied),
                Some(_) => {}
                None if self.groups.lanes >= MAX_LANES => return Err(DropReason::QueueFull),
                None => {
                    let owner = owner.clone();
                    self.begin_lane(sent, lane, owner, base, now);
                }
            }
        }
        let group = self.groups.known.get_mut(&lane.group);
        let state = group.and_then(|group| group.lanes.get_mut(&key));
        let state = state.ok_or(DropReason::UnknownHandle)?;
        state.session = sent.session;
        state.handle = sent.handle;
        state.ingress.used = now;
        state.ingress.go_on_from(base);
        Ok(&mut state.ingress)
    }

    /// A sender's lane that is new here.
    fn begin_lane(&mut self, sent: &Sent, lane: LaneKey, owner: String, base: u64, now: Instant) {
        let new = Lane {
            ingress: IngressLane::new(self.rng.random(), base, now),
            owner,
            session: sent.session,
            handle: sent.handle,
        };
        if let Some(group) = self.groups.known.get_mut(&lane.group) {
            group.lanes.insert((lane.sender, lane.lane), new);
            self.groups.lanes += 1;
        }
    }

    /// What a packet that is sent to a group here and now is stamped with.
    pub(in crate::shard) fn stamp_to_group(&mut self, key: GroupKey, flow: FlowHash) -> Stamp {
        let group = self.groups.known.get_mut(&key);
        self.tables.stamp_to_group(flow, |plan| {
            group.map_or(0, |group| {
                let id = &group.id;
                let find = |plan: &Plan| plan.rules_for_group(&id.app, &id.group);
                group.rules.of(plan, find)
            })
        })
    }

    /// Sends a packet that entered here to the relays in it, and to the members here if `local`.
    fn send_out(
        &mut self,
        group: GroupKey,
        packet: Packet,
        local: bool,
        lane: Option<LaneKey>,
        now: Instant,
    ) {
        self.forward(packet.clone(), now);
        if local {
            self.give_to_members(group, packet, lane, now);
        }
    }

    /// The other relays with members of a group, as far as they are known, and whether that is certain.
    fn other_relays_of(&self, key: GroupKey, now: Instant) -> (RelaySet, bool) {
        let cache = self
            .groups
            .known
            .get(&key)
            .and_then(|group| group.cache.as_ref());
        cache.map_or((RelaySet::EMPTY, false), |cache| {
            let mut relays = cache.relays().clone();
            relays.remove(self.tables.me);
            (relays, cache.is_certain(now))
        })
    }

    /// Puts a segment into its replay window; `false` when it is there already.
    fn keep(&mut self, lane: LaneKey, sequence: u64, packet: &Packet, now: Instant) -> bool {
        let held = Held {
            payload: packet.payload(),
            class: packet.header.class,
            source: packet.header.sender,
            arrived: now,
            age_us: age_us(packet, now),
        };
        self.groups.windows.insert(lane, sequence, held)
    }

    /// A packet that came over a link is for the members here.
    pub(in crate::shard) fn for_group(&mut self, key: GroupKey, packet: Packet, now: Instant) {
        let known = self.groups.known.get(&key);
        let any = known.is_some_and(|group| !group.members.is_empty());
        match packet.header.kind {
            Kind::Media if any => self.give_to_members(key, packet, None, now),
            Kind::Media => self.metrics.count_drop(DropReason::NoMembers),
            Kind::Message => self.frame_for_group(key, packet, any, now),
            Kind::Control | Kind::Probe | Kind::EchoRequest | Kind::EchoReply => {
                self.metrics.count_drop(DropReason::Unexpected);
            }
        }
    }

    fn frame_for_group(&mut self, key: GroupKey, packet: Packet, any: bool, now: Instant) {
        let of = |sender, lane| LaneKey {
            group: key,
            sender,
            lane,
        };
        let (lane, new) = match LaneFrame::decode(packet.payload()) {
            Ok(LaneFrame::Data(data)) => {
                let lane = of(data.sender, data.lane);
                let segment = GroupSegment {
                    group: key.0,
                    sender: data.sender,
                    lane: data.lane,
                    sequence: data.sequence,
                    age_us: age_us(&packet, now),
                };
                let origin = packet.header.sender.relay;
                self.groups.held.entry(origin).or_default().push(segment);
                (lane, any && self.keep(lane, data.sequence, &packet, now))
            }
            Ok(LaneFrame::Skip(skip)) => (of(skip.sender, skip.lane), true),
            Ok(_) => return self.metrics.count_drop(DropReason::Unexpected),
            Err(_) => return self.metrics.count_drop(DropReason::Malformed),
        };
        if !any {
            self.metrics.count_drop(DropReason::NoMembers);
        } else if new {
            self.give_to_members(key, packet, Some(lane), now);
        }
    }

    /// Gives all members here their copies of a packet, which share its bytes. The sending session gets
    /// none.
    fn give_to_members(
        &mut self,
        key: GroupKey,
        packet: Packet,
        lane: Option<LaneKey>,
        now: Instant,
    ) {
        let sender = packet.header.sender;
        if self
            .groups
            .known
            .get(&key)
            .is_none_or(|group| group.members.is_empty())
        {
            return;
        }
        let Some(handle) = self.handle_of_source(key, sender, now) else {
            return;
        };
        let me = self.tables.me;
        let own = (sender.relay == me)
            .then(|| self.session_at(sender))
            .flatten();
        let layer = 1_u8 << packet.header.layer;
        let media = packet.header.kind == Kind::Media;
        let packet = packet.for_members(handle, me, now);
        let members = match self.groups.known.get_mut(&key) {
            Some(group) => std::mem::take(&mut group.members),
            None => return,
        };
        let mut given = 0;
        for member in &members {
            if Some(member.key) == own || (media && member.layers & layer == 0) {
                continue;
            }
            given += 1;
            self.give(member.key, packet.clone(), lane, now);
        }
        self.metrics.groups.deliveries.inc_by(given);
        if let Some(group) = self.groups.known.get_mut(&key) {
            group.members = members;
        }
    }

    /// Puts a copy into a member's queue. Whoever has no room for a message is told later that there was
    /// one.
    pub(super) fn give(
        &mut self,
        key: ConnKey,
        packet: Packet,
        lane: Option<LaneKey>,
        now: Instant,
    ) -> bool {
        let Some(conn) = self.conn_mut(key) else {
            self.metrics.count_drop(DropReason::ConnectionClosed);
            return false;
        };
        let queued = Queued { packet, handle: 0 };
        if !queued.packet.header.kind.is_reliable() {
            let mut dropped = 0;
            conn.queue.push_datagram(queued, |_| dropped += 1);
            for _ in 0..dropped {
                self.metrics.count_drop(DropReason::QueueFull);
            }
        } else if conn.queue.push_message(queued).is_err() {
            self.metrics.count_drop(DropReason::QueueFull);
            if let Some(lane) = lane {
                self.missed(key, lane, now);
            }
            return false;
        }
        self.mark(key);
        true
    }

    /// Sends what is held of a lane that entered here to more relays.
    pub(super) fn send_held_to(
        &mut self,
        lane: LaneKey,
        sequence: u64,
        relays: RelaySet,
        now: Instant,
    ) {
        if relays.is_empty() {
            return;
        }
        // What is not held any more its sender sends again.
        if let Some(mut packet) = self.held_packet(lane, sequence, now) {
            packet.relays = relays;
            self.forward(packet, now);
        }
    }

    /// A packet of a segment in the replay window, as it would enter the network here now.
    pub(super) fn held_packet(
        &mut self,
        lane: LaneKey,
        sequence: u64,
        now: Instant,
    ) -> Option<Packet> {
        let held = self.groups.windows.get(lane, sequence)?.clone();
        let tenant = Tenant::of(&self.groups.known.get(&lane.group)?.id.app);
        let stamp = self.stamp_to_group(lane.group, FlowHash::new(held.source, lane.lane));
        let header = LinkHeader {
            profile: stamp.profile,
            tree: stamp.tree,
            plan: stamp.plan,
            age_us: held.age_at(now),
            flow: lane.lane,
            sequence: sequence as u32,
            tenant,
            ..message_header(held.class, held.source, Destination::Group(lane.group))
        };
        Some(Packet::new(header, held.payload, 0, now))
    }

    /// Tells the sender of a lane which of its segments every edge holds.
    pub(super) fn acknowledge(&mut self, key: LaneKey, now: Instant) {
        let group = self.groups.known.get(&key.group);
        let Some(lane) = group.and_then(|group| group.lanes.get(&(key.sender, key.lane))) else {
            return;
        };
        let (session, handle) = (lane.session, lane.handle);
        let ack = LaneFrame::Ack(lane.ingress.ack(key.sender, key.lane));
        let mut payload = BytesMut::new();
        ack.encode_head(&mut payload);
        let me = Locator::relay_itself(self.tables.me);
        let header = LinkHeader {
            flow: key.lane,
            ..message_header(Class::Message, me, Destination::Session(me))
        };
        let packet = Packet::new(header, payload.freeze(), 0, now);
        self.enqueue(session, Queued { packet, handle }, now);
    }
}

/// The header of a message packet that begins its way here and now.
fn message_header(class: Class, sender: Locator, destination: Destination) -> LinkHeader {
    LinkHeader {
        kind: Kind::Message,
        class,
        profile: 0,
        tree: 0,
        deflections: 0,
        trace: false,
        path_change: false,
        hop_limit: HOP_LIMIT,
        plan: tradewind_proto::PlanId::NONE,
        age_us: 0,
        sender,
        destination,
        passed: [RelayIndex::NONE; MAX_PASSED],
        uplink: 0,
        flow: 0,
        sequence: 0,
        layer: 0,
        tenant: Tenant::NONE,
    }
}

fn age_us(packet: &Packet, now: Instant) -> u32 {
    u32::try_from(packet.age_at(now).as_micros()).unwrap_or(u32::MAX)
}

/// The lane's frame of a replayed segment, and its sequence.
pub(super) fn segment_of(lane: LaneKey, payload: &Bytes) -> Option<u64> {
    match LaneFrame::decode(payload.clone()) {
        Ok(LaneFrame::Data(data)) if (data.sender, data.lane) == (lane.sender, lane.lane) => {
            Some(data.sequence)
        }
        _ => None,
    }
}
