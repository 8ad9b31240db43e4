//! The queue of one connection: what waits to be handed to QUIC.
//!
//! QUIC libraries send datagrams before stream data and know no class, so the order is made here:
//! audio, messages, video, bulk ([`priority`]), and within a class tenants in turn ([`fair`]). Every
//! queue is bounded. Media that is late or too much is dropped oldest first, so that fresh packets win;
//! messages are refused when the queue is full, and the sender is told.

mod fair;
mod priority;

use std::{ops::Range, time::Instant};

use tradewind_proto::{Class, DropReason};

use self::fair::{FairQueue, Length};
pub(crate) use self::priority::{ByClass, Priority};
use crate::{flow::FlowHash, packet::Packet};

/// Most datagrams of one class waiting on one connection.
const MAX_DATAGRAMS: usize = 512;
/// Most bytes of one class's datagrams waiting on one connection.
const MAX_DATAGRAM_BYTES: usize = 640 << 10;
/// What a packet counts for beside its payload: headers, and that it takes room at all.
const OVERHEAD: usize = 64;
/// A tenant's messages of one class may take so many times the room that is left then.
const ROOM_FACTOR: ByClass<usize> = [4, 4, 2, 1];

/// A packet with the handle that a client knows its sender by (0 on links).
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) packet: Packet,
    pub(crate) handle: u32,
}

impl Length for Queued {
    fn length(&self) -> usize {
        self.packet.payload_len() + OVERHEAD
    }
}

/// How the queue of one kind of connection is laid out.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Message streams of each class; at most 32 in all. None is shared, so that a lost packet of one
    /// class holds up no other.
    pub(crate) streams: ByClass<Range<u8>>,
    /// Most bytes of messages waiting.
    pub(crate) max_message_bytes: usize,
    /// Whether packets of several tenants meet here.
    pub(crate) tenants: bool,
}

impl Layout {
    /// How many message streams there are.
    pub(crate) const fn count(&self) -> usize {
        self.streams[Class::Bulk as usize].end as usize
    }

    /// A bit for each stream of a class.
    fn mask(&self, class: Class) -> u32 {
        let Range { start, end } = self.streams[class as usize];
        (u32::MAX >> (32 - u32::from(end - start))) << start
    }
}

/// What waits on one connection.
#[derive(Debug)]
pub(crate) struct SendQueue {
    layout: &'static Layout,
    datagrams: ByClass<FairQueue<Queued>>,
    messages: ByClass<FairQueue<Queued>>,
    message_bytes: usize,
}

impl SendQueue {
    /// An empty queue.
    pub(crate) fn new(layout: &'static Layout) -> Self {
        Self {
            layout,
            datagrams: std::array::from_fn(|_| FairQueue::new(1)),
            messages: std::array::from_fn(|_| FairQueue::new(layout.count() as u8)),
            message_bytes: 0,
        }
    }

    /// Adds a media packet. Gives those that had to make room to `dropped`: the oldest ones of the
    /// tenant that has most waiting in this class.
    pub(crate) fn push_datagram(&mut self, queued: Queued, mut dropped: impl FnMut(Queued)) {
        let tenant = self.tenant(&queued);
        let queue = &mut self.datagrams[queued.packet.header.class as usize];
        queue.push(tenant, 0, queued);
        while queue.len() > MAX_DATAGRAMS || queue.bytes() > MAX_DATAGRAM_BYTES {
            let Some(oldest) = queue.pop_of_greatest() else {
                return;
            };
            dropped(oldest);
        }
    }

    /// Adds a packet of a message lane. Gives it back when there is no room: when its tenant has more
    /// waiting in this class than a few times what is still free (after Choudhury and Hahne, "Dynamic
    /// queue length thresholds", 1998). So there always is room for who has nothing waiting, and bulk
    /// never takes all of it.
    pub(crate) fn push_message(&mut self, queued: Queued) -> Result<(), Box<Queued>> {
        let length = queued.length();
        let class = queued.packet.header.class as usize;
        let tenant = self.tenant(&queued);
        let free = self.layout.max_message_bytes - self.message_bytes;
        let queue = &mut self.messages[class];
        let wanted = queue.bytes_of(tenant) + length;
        if length > free || wanted > (free - length) * ROOM_FACTOR[class] {
            return Err(Box::new(queued));
        }
        self.message_bytes += length;
        // The sender's lanes are hashed onto the streams; one lane stays on one stream, in order.
        let header = &queued.packet.header;
        let lane = FlowHash::new(header.sender, header.flow);
        let Range { start, end } = self.layout.streams[class];
        let stream = start + lane.stream_draw(u32::from(end - start)) as u8;
        queue.push(tenant, stream, queued);
        Ok(())
    }

    /// The length of what a class's next datagram will carry. Those before it whose deadline has passed
    /// are given to `dropped`.
    pub(crate) fn next_datagram(
        &mut self,
        class: Class,
        now: Instant,
        mut dropped: impl FnMut(Queued, DropReason),
    ) -> Option<&Packet> {
        let queue = &mut self.datagrams[class as usize];
        while queue
            .peek(ALL)
            .is_some_and(|first| first.packet.age_at(now) > class.deadline())
        {
            if let Some((_, late)) = queue.pop(ALL) {
                dropped(late, DropReason::Deadline);
            }
        }
        queue.peek(ALL).map(|queued| &queued.packet)
    }

    /// Takes a class's next datagram.
    pub(crate) fn pop_datagram(&mut self, class: Class) -> Option<Queued> {
        Some(self.datagrams[class as usize].pop(ALL)?.1)
    }

    /// Takes a class's next message packet for one of the streams of `open` (a bit each), with its stream.
    pub(crate) fn pop_message(&mut self, class: Class, open: u32) -> Option<(u8, Queued)> {
        let (stream, queued) = self.messages[class as usize].pop(open)?;
        self.message_bytes -= queued.length();
        Some((stream, queued))
    }

    /// Whether datagrams of a class wait.
    pub(crate) fn has_datagrams(&self, class: Class) -> bool {
        self.datagrams[class as usize].len() > 0
    }

    /// Whether messages of a class wait for one of the streams of `open`.
    pub(crate) fn has_messages(&self, class: Class, open: u32) -> bool {
        self.messages[class as usize].waits_for(open)
    }

    /// A bit for each stream of a class.
    pub(crate) fn streams(&self, class: Class) -> u32 {
        self.layout.mask(class)
    }

    /// Whether there is room for more messages of one tenant, of whatever class: most of the queue is
    /// free.
    pub(crate) fn has_room_for_messages(&self) -> bool {
        4 * self.message_bytes < self.layout.max_message_bytes
    }

    /// Packets waiting.
    pub(crate) fn len(&self) -> usize {
        let all = self.datagrams.iter().chain(&self.messages);
        all.map(FairQueue::len).sum()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        let mut all = self.datagrams.iter().chain(&self.messages);
        all.all(|queue| queue.len() == 0)
    }

    /// Empties it, most urgent first; each lane's packets come in order.
    pub(crate) fn drain(&mut self) -> Vec<Queued> {
        let mut all = Vec::with_capacity(self.len());
        for (datagrams, messages) in self.datagrams.iter_mut().zip(&mut self.messages) {
            datagrams.drain(&mut all);
            messages.drain(&mut all);
        }
        self.message_bytes = 0;
        all
    }

    /// Whose turn a packet is taken out in.
    fn tenant(&self, queued: &Queued) -> u8 {
        match self.layout.tenants {
            true => queued.packet.header.tenant.0,
            false => 0,
        }
    }
}

/// All streams.
const ALL: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use bytes::Bytes;
    use tradewind_proto::{
        Locator, PlanId, RelayIndex, Tenant,
        packet::{Destination, Kind, LinkHeader, MAX_PASSED},
    };

    use super::*;

    const LAYOUT: Layout = Layout {
        streams: [0..1, 1..3, 3..4, 4..6],
        max_message_bytes: 100 * (1_000 + OVERHEAD),
        tenants: true,
    };

    fn queued(kind: Kind, class: Class, flow: u32, sequence: u32, now: Instant) -> Queued {
        let header = LinkHeader {
            kind,
            class,
            profile: 0,
            tree: 0,
            deflections: 0,
            trace: false,
            path_change: false,
            hop_limit: 7,
            plan: PlanId::NONE,
            age_us: 0,
            sender: Locator {
                relay: RelayIndex(1),
                slot: 1,
                generation: 1,
            },
            destination: Destination::Session(Locator::relay_itself(RelayIndex(2))),
            passed: [RelayIndex::NONE; MAX_PASSED],
            uplink: 0,
            flow,
            sequence,
            layer: 0,
            tenant: Tenant(1),
        };
        let payload = Bytes::from_static(&[7; 1_000]);
        Queued {
            packet: Packet::new(header, payload, 0, now),
            handle: 0,
        }
    }

    fn of_tenant(tenant: u8, mut queued: Queued) -> Queued {
        queued.packet.header.tenant = Tenant(tenant);
        queued
    }

    fn no_drops(_: Queued) {
        panic!("there was room");
    }

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_full_media_queue_drops_its_oldest() {
        let now = start();
        let mut queue = SendQueue::new(&LAYOUT);
        let mut dropped = Vec::new();
        for sequence in 0..MAX_DATAGRAMS as u32 + 3 {
            let item = queued(Kind::Media, Class::Video, 1, sequence, now);
            queue.push_datagram(item, |gone| dropped.push(gone.packet.header.sequence));
        }
        assert_eq!(dropped, [0, 1, 2]);
        assert_eq!(queue.len(), MAX_DATAGRAMS);
    }

    #[test]
    fn a_tenant_that_sends_too_much_makes_room_itself() {
        let now = start();
        let mut queue = SendQueue::new(&LAYOUT);
        let item = queued(Kind::Media, Class::Video, 1, 0, now);
        queue.push_datagram(of_tenant(2, item), no_drops);
        let mut dropped = Vec::new();
        for sequence in 0..2 * MAX_DATAGRAMS as u32 {
            let item = queued(Kind::Media, Class::Video, 1, sequence, now);
            queue.push_datagram(item, |gone| dropped.push(gone.packet.header));
        }
        assert_eq!(dropped.len(), MAX_DATAGRAMS + 1);
        assert!(dropped.iter().all(|header| header.tenant == Tenant(1)));
    }

    #[test]
    fn what_is_late_is_dropped_and_another_class_is_not() {
        let now = start();
        let mut queue = SendQueue::new(&LAYOUT);
        for (class, sequence) in [(Class::Video, 1), (Class::Audio, 2), (Class::Audio, 3)] {
            let item = queued(Kind::Media, class, 1, sequence, now);
            queue.push_datagram(item, no_drops);
        }
        let next = queue.next_datagram(Class::Audio, now, |_, _| panic!("in time"));
        assert_eq!(next.map(|packet| packet.header.sequence), Some(2));
        let mut late = Vec::new();
        let later = now + Class::Audio.deadline() + Duration::from_millis(1);
        for class in Class::ALL {
            let drop = |gone: Queued, reason| late.push((gone.packet.header.sequence, reason));
            let there = queue.next_datagram(class, later, drop).is_some();
            assert_eq!(there, class == Class::Video);
        }
        assert_eq!(late, [(2, DropReason::Deadline), (3, DropReason::Deadline)]);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn a_full_message_queue_refuses_and_a_lane_stays_in_order_on_its_stream() {
        let now = start();
        let mut queue = SendQueue::new(&LAYOUT);
        let refused = (0..1_000).find(|&sequence| {
            let item = queued(Kind::Message, Class::Message, 5, sequence, now);
            queue.push_message(item).is_err()
        });
        // Four times what is left: 80 of 100.
        assert_eq!(refused, Some(80));
        let streams = queue.streams(Class::Message);
        assert_eq!(streams, 0b110);
        let order: Vec<(u8, u32)> =
            std::iter::from_fn(|| queue.pop_message(Class::Message, streams))
                .map(|(stream, item)| (stream, item.packet.header.sequence))
                .collect();
        let stream = order[0].0;
        let wanted: Vec<(u8, u32)> = (0..80).map(|sequence| (stream, sequence)).collect();
        assert_eq!(order, wanted);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_queue_full_of_pictures_takes_texts_and_one_full_of_one_tenants_takes_anothers() {
        let now = start();
        let mut queue = SendQueue::new(&LAYOUT);
        let mut taken: BTreeMap<(Class, u8), u32> = BTreeMap::new();
        for (class, tenant) in [
            (Class::Bulk, 1),
            (Class::Bulk, 2),
            (Class::Message, 1),
            (Class::Message, 2),
        ] {
            for sequence in 0..1_000 {
                let item = queued(Kind::Message, class, 1, sequence, now);
                if queue.push_message(of_tenant(tenant, item)).is_ok() {
                    *taken.entry((class, tenant)).or_default() += 1;
                }
            }
        }
        // Each a half or four fifths of what was left.
        let wanted = [50, 25, 20, 4];
        assert_eq!(
            taken.into_iter().collect::<Vec<_>>(),
            [
                ((Class::Message, 1), wanted[2]),
                ((Class::Message, 2), wanted[3]),
                ((Class::Bulk, 1), wanted[0]),
                ((Class::Bulk, 2), wanted[1]),
            ]
        );
    }

    #[test]
    fn while_there_is_room_a_message_of_any_class_is_taken() {
        let now = start();
        for class in Class::ALL {
            let mut queue = SendQueue::new(&LAYOUT);
            let mut taken = 0;
            while queue.has_room_for_messages() {
                let item = queued(Kind::Message, class, 1, taken, now);
                assert!(queue.push_message(item).is_ok(), "{class:?} after {taken}");
                taken += 1;
            }
            assert!(taken > 20);
        }
    }

    #[test]
    fn the_first_lanes_of_all_senders_are_spread_over_the_streams() {
        let now = start();
        let mut queue = SendQueue::new(&LAYOUT);
        let mut on_stream = [0; 2];
        for slot in 0..1_000 {
            let mut item = queued(Kind::Message, Class::Message, 0, 0, now);
            item.packet.header.sender.slot = slot;
            queue.push_message(item).expect("there is room");
            let (stream, _) = queue.pop_message(Class::Message, ALL).expect("it waits");
            on_stream[usize::from(stream) - 1] += 1;
        }
        assert!(
            on_stream.iter().all(|count| (400..600).contains(count)),
            "{on_stream:?}"
        );
    }

    #[test]
    fn every_stream_is_of_one_class() {
        let mut all = 0;
        for class in Class::ALL {
            let mask = LAYOUT.mask(class);
            assert_eq!(all & mask, 0);
            all |= mask;
        }
        assert_eq!(all.count_ones() as usize, LAYOUT.count());
    }
}
