//! The second room of a packet's way: from the forwarder's verdict into the queue of a link or a
//! session.

use std::time::Instant;

use bytes::BytesMut;
use tradewind_proto::{
    DropReason, Locator, RelayIndex,
    control::rejected,
    packet::{Destination, Kind, LinkHeader, MAX_PASSED, Trace},
};

use super::{ConnKey, Shard, connection::Role};
use crate::{
    forwarder::{self, Verdict},
    packet::Packet,
    queue::Queued,
    watch::Passage,
};

impl Shard {
    /// Sends a packet on its way.
    pub(super) fn forward(&mut self, mut packet: Packet, now: Instant) {
        let tables = self.tables.clone();
        if let Some(watch) = self.metrics.watcher.get() {
            watch(&Passage {
                relay: tables.me,
                header: &packet.header,
                payload: &packet.payload(),
            });
        }
        let verdict = forwarder::route(&packet.header, &tables, |relay| self.link_is_up(relay));
        match verdict {
            Verdict::Local(locator) if locator.is_relay_itself() => self.for_relay(packet, now),
            Verdict::Local(locator) => self.deliver(locator, packet, now),
            Verdict::Link { next, deflected } => {
                let header = &mut packet.header;
                if header.sender.relay != tables.me && !header.pass(tables.me) {
                    self.metrics.count_drop(DropReason::HopLimit);
                    return;
                }
                header.hop_limit -= 1;
                if header.plan != tables.active && tables.plan(header.plan).is_none() {
                    self.metrics.unknown_plans.inc();
                }
                if deflected {
                    header.deflections += 1;
                    packet.deflected = true;
                    self.metrics.deflections.inc();
                }
                let Some(key) = self.peers.get(&next).and_then(|peer| peer.conn) else {
                    self.metrics.count_drop(DropReason::NoWay);
                    return;
                };
                self.enqueue(key, Queued { packet, handle: 0 }, now);
            }
            Verdict::Drop(reason) => {
                self.metrics.count_drop(reason);
                if packet.header.kind == Kind::Message && reason == DropReason::NoWay {
                    self.tell_sender_rejected(&packet.header, rejected::Reason::NoWay, now);
                }
            }
        }
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
            let dropped = conn.queue.push_datagram(queued).count();
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
                let header = LinkHeader {
                    kind: Kind::EchoReply,
                    hop_limit: forwarder::HOP_LIMIT,
                    deflections: 0,
                    plan: self.tables.active,
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

    fn link_is_up(&self, relay: RelayIndex) -> bool {
        self.peers
            .get(&relay)
            .and_then(|peer| self.conn(peer.conn?))
            .is_some_and(|conn| match &conn.role {
                Role::Link(link) => conn.alive && link.is_up(),
                Role::Session(_) => false,
            })
    }
}
