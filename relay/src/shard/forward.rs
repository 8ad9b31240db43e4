//! The second room of a packet's way: from the forwarder's verdict into the queue of a link or a
//! session.

use std::time::Instant;

use bytes::BytesMut;
use tradewind_proto::{
    DropReason, GroupKey, Locator, RelayIndex, Uplink,
    control::rejected,
    packet::{Destination, Kind, LinkHeader, MAX_PASSED, RelaySet, Trace},
};
use tradewind_routing::LinkHealth;

use super::{ConnKey, Shard, connection::Role};
use crate::{
    flow::FlowHash,
    forwarder::{self, Deflection, Verdict},
    packet::Packet,
    queue::Queued,
    watch::Passage,
};

/// What it costs more to go through a relay whose links are only coming up than through others,
/// microseconds-equivalent: dearer than all ways around.
const SETTLING_US: f64 = 1e6;

/// A link to another relay, as it is now.
struct LinkTo {
    uplink: Uplink,
    key: ConnKey,
    health: LinkHealth,
    peer_settling: bool,
}

impl Shard {
    /// Sends a packet that has come, or was made here, on its way.
    pub(super) fn forward(&mut self, packet: Packet, now: Instant) {
        if let Some(watch) = self.metrics.watcher.get() {
            watch(&Passage {
                relay: self.tables.me,
                header: &packet.header,
                relays: packet.relays.relays(),
                payload: &packet.payload(),
            });
        }
        self.send_on(packet, now);
    }

    fn send_on(&mut self, packet: Packet, now: Instant) {
        let tables = self.tables.clone();
        let target = match packet.header.destination {
            Destination::Session(locator) => locator.relay,
            Destination::Group(group) => return self.send_on_to_group(group, packet, now),
        };
        let verdict = forwarder::route(&packet.header, &tables, |relay| {
            self.on_the_way(relay, target)
        });
        match verdict {
            Verdict::Local(locator) if locator.is_relay_itself() => self.for_relay(packet, now),
            Verdict::Local(locator) => self.deliver(locator, packet, now),
            Verdict::Link {
                next,
                uplink,
                deflected,
            } => {
                self.send_over(next, uplink, deflected, packet, now);
            }
            Verdict::Drop(reason) => {
                self.metrics.count_drop(reason);
                if packet.header.kind == Kind::Message && reason == DropReason::NoWay {
                    self.tell_sender_rejected(&packet.header, rejected::Reason::NoWay, now);
                }
            }
        }
    }

    /// Sends a packet to a group on: a copy to each neighbour behind which some of its relays are, and
    /// one to the members here.
    fn send_on_to_group(&mut self, group: GroupKey, packet: Packet, now: Instant) {
        let tables = self.tables.clone();
        let mut split = std::mem::take(&mut self.split);
        forwarder::split(
            &packet.header,
            &packet.relays,
            &tables,
            |relay, target| self.on_the_way(relay, target),
            &mut split,
        );
        // Each copy gets a set of its own.
        let mut packet = packet;
        packet.relays = RelaySet::EMPTY;
        for copy in split.copies.drain(..) {
            let (whole, cut) = match copy.relays.encoded_len() {
                Some(_) => (Some(copy.relays), None),
                None => (None, Some(copy.relays)),
            };
            let cut = cut.iter().flat_map(RelaySet::parts);
            for relays in whole.into_iter().chain(cut) {
                let mut packet = packet.clone();
                packet.relays = relays;
                self.metrics.groups.copies.inc();
                self.send_over(copy.next, copy.uplink, copy.deflected, packet, now);
            }
        }
        for &(_, reason) in &split.dropped {
            self.metrics.count_drop(reason);
        }
        let local = split.local;
        self.split = split;
        if local {
            self.for_group(group, packet, now);
        }
    }

    /// Hands a packet to the link to `next`.
    fn send_over(
        &mut self,
        next: RelayIndex,
        uplink: Uplink,
        deflected: Option<Deflection>,
        mut packet: Packet,
        now: Instant,
    ) {
        let me = self.tables.me;
        let header = &mut packet.header;
        if header.sender.relay != me && !header.pass(me) {
            self.metrics.count_drop(DropReason::HopLimit);
            return;
        }
        header.hop_limit -= 1;
        if header.plan != self.tables.active && self.tables.plan(header.plan).is_none() {
            self.metrics.unknown_plans.inc();
        }
        if let Some(reason) = deflected {
            header.deflections += 1;
            packet.deflected = true;
            self.metrics.count_deflection(reason);
        }
        let Some((uplink, key)) = self.link_to(next, uplink) else {
            self.metrics.count_drop(DropReason::NoWay);
            return;
        };
        packet.header.uplink = uplink.0;
        if packet.header.kind != Kind::Control {
            self.link_carries(key, now);
        }
        self.enqueue(key, Queued { packet, handle: 0 }, now);
    }

    /// Puts a packet into the queue of a connection.
    pub(super) fn enqueue(&mut self, key: ConnKey, queued: Queued, now: Instant) {
        let Some(conn) = self.conn_mut(key) else {
            self.metrics.count_drop(DropReason::ConnectionClosed);
            return;
        };
        if queued.packet.header.kind.is_reliable() {
            if let Err(refused) = conn.queue.push_message(queued) {
                self.metrics.count_drop(DropReason::QueueFull);
                if refused.packet.header.kind == Kind::Message {
                    let header = refused.packet.header;
                    self.tell_sender_rejected(&header, rejected::Reason::QueueFull, now);
                }
                return;
            }
        } else {
            let mut dropped = 0;
            conn.queue.push_datagram(queued, |_| dropped += 1);
            for _ in 0..dropped {
                self.metrics.count_drop(DropReason::QueueFull);
            }
        }
        self.mark(key);
    }

    /// A packet for this relay itself.
    fn for_relay(&mut self, mut packet: Packet, now: Instant) {
        match packet.header.kind {
            Kind::Control => self.control_packet(&packet, now),
            Kind::EchoRequest => {
                let me = self.tables.me;
                packet.record_hop(me, now);
                let mut payload = BytesMut::new();
                if let Some(trace) = &packet.trace {
                    payload.extend_from_slice(&Trace::encode(trace));
                }
                payload.extend_from_slice(&packet.payload());
                // It keeps to the rules of the request, by a tree of the plan of here and now.
                let asked = &packet.header;
                let rules = self
                    .tables
                    .plan(asked.plan)
                    .map_or(0, |plan| plan.rules_of(asked.profile, asked.tree));
                let stamp = self.tables.stamp(
                    FlowHash::new(asked.sender, asked.flow),
                    asked.profile,
                    asked.sender.relay,
                    |_| rules,
                );
                let header = LinkHeader {
                    kind: Kind::EchoReply,
                    hop_limit: forwarder::HOP_LIMIT,
                    deflections: 0,
                    plan: stamp.plan,
                    profile: stamp.profile,
                    tree: stamp.tree,
                    age_us: 0,
                    sender: Locator::relay_itself(me),
                    destination: Destination::Session(packet.header.sender),
                    passed: [RelayIndex::NONE; MAX_PASSED],
                    uplink: 0,
                    ..packet.header
                };
                self.forward(Packet::new(header, payload.freeze(), 0, now), now);
            }
            _ => self.metrics.count_drop(DropReason::Unexpected),
        }
    }

    /// A link is down: what waits to be sent over it goes another way at once. (What QUIC has taken
    /// already cannot be had back; resending from end to end covers it.)
    pub(super) fn requeue(&mut self, key: ConnKey, now: Instant) {
        let waiting: Vec<Queued> = self
            .conn_mut(key)
            .map_or_else(Vec::new, |conn| conn.queue.drain());
        self.forward_again(waiting, now);
    }

    /// Forwards what waited for a link that is no more. It is as much as one queue holds, and ends up
    /// in other queues, which are bounded as well.
    pub(super) fn forward_again(&mut self, waiting: Vec<Queued>, now: Instant) {
        let me = self.tables.me;
        for Queued { mut packet, .. } in waiting {
            packet.take_back(me);
            self.metrics.requeued.inc();
            self.send_on(packet, now);
        }
    }

    /// How it stands with another relay, as the next one on the way to `target`.
    fn on_the_way(&self, relay: RelayIndex, target: RelayIndex) -> LinkHealth {
        if relay == target {
            self.neighbour(relay)
        } else {
            self.transit_over(relay)
        }
    }

    /// How it stands with another relay: as with the best of the links to it.
    pub(super) fn neighbour(&self, relay: RelayIndex) -> LinkHealth {
        self.links_to(relay)
            .map(|link| link.health)
            .min_by(LinkHealth::compare)
            .unwrap_or(LinkHealth::Down)
    }

    /// How it stands with another relay as a way to others. While its own links are only coming up it
    /// is taken where there is nothing else.
    fn transit_over(&self, relay: RelayIndex) -> LinkHealth {
        let (mut best, mut settling) = (LinkHealth::Down, false);
        for link in self.links_to(relay) {
            if link.health.compare(&best).is_lt() {
                best = link.health;
            }
            settling |= link.peer_settling;
        }
        let worse = LinkHealth::Degraded { extra: SETTLING_US };
        if settling && best.compare(&worse).is_lt() {
            return worse;
        }
        best
    }

    /// The link to take to another relay: over the uplink that the plan wants while none is in better
    /// health.
    fn link_to(&self, relay: RelayIndex, wanted: Uplink) -> Option<(Uplink, ConnKey)> {
        self.links_to(relay)
            .min_by(|one, other| {
                let by_health = one.health.compare(&other.health);
                by_health.then((one.uplink != wanted).cmp(&(other.uplink != wanted)))
            })
            .map(|link| (link.uplink, link.key))
    }

    /// The links to a relay that are connected, by the number of the uplink.
    fn links_to(&self, relay: RelayIndex) -> impl Iterator<Item = LinkTo> + '_ {
        let all = (relay, Uplink(u8::MIN))..=(relay, Uplink(u8::MAX));
        self.peers.range(all).filter_map(|(&(_, uplink), peer)| {
            let key = peer.conn?;
            let conn = self.conn(key)?;
            let Role::Link(link) = &conn.role else {
                return None;
            };
            Some(LinkTo {
                uplink,
                key,
                health: match conn.alive {
                    true => link.health(),
                    false => LinkHealth::Down,
                },
                peer_settling: link.peer_settling,
            })
        })
    }
}
