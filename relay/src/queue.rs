//! The queue of one connection: what waits to be handed to QUIC.
//!
//! QUIC libraries send datagrams before stream data and know no class, so the order is made here:
//! audio, messages, video, bulk. Every queue is bounded. Media that is late or too much is dropped
//! oldest first, so that fresh packets win; messages are refused when the queue is full, and the
//! sender is told.

use std::{collections::VecDeque, time::Instant};

use tradewind_proto::{Class, DropReason};

use crate::packet::Packet;

/// Most datagrams of one class waiting on one connection.
const MAX_DATAGRAMS: usize = 512;
/// Most bytes of one class's datagrams waiting on one connection.
const MAX_DATAGRAM_BYTES: usize = 512 << 10;

/// A packet with the handle that a client knows its sender by (0 on links).
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) packet: Packet,
    pub(crate) handle: u32,
}

#[derive(Debug, Default)]
struct DatagramQueue {
    waiting: VecDeque<Queued>,
    bytes: usize,
}

/// What waits on one connection.
#[derive(Debug)]
pub(crate) struct SendQueue {
    /// By class; in order of priority.
    datagrams: [DatagramQueue; Class::ALL.len()],
    /// By stream.
    messages: Vec<VecDeque<Queued>>,
    message_bytes: usize,
    max_message_bytes: usize,
}

impl SendQueue {
    /// An empty queue for a connection with `streams` message streams, holding at most
    /// `max_message_bytes` of messages.
    pub(crate) fn new(streams: usize, max_message_bytes: usize) -> Self {
        Self {
            datagrams: Default::default(),
            messages: (0..streams).map(|_| VecDeque::new()).collect(),
            message_bytes: 0,
            max_message_bytes,
        }
    }

    /// Adds a media packet. Gives back the oldest ones of its class that had to make room.
    pub(crate) fn push_datagram(&mut self, queued: Queued) -> impl Iterator<Item = Queued> {
        let queue = &mut self.datagrams[queued.packet.header.class as usize];
        queue.bytes += queued.packet.payload_len();
        queue.waiting.push_back(queued);
        let mut dropped = Vec::new();
        while queue.waiting.len() > MAX_DATAGRAMS || queue.bytes > MAX_DATAGRAM_BYTES {
            dropped.extend(queue.pop());
        }
        dropped.into_iter()
    }

    /// Adds a packet of a message lane. Gives it back when there is no room.
    pub(crate) fn push_message(&mut self, queued: Queued) -> Result<(), Box<Queued>> {
        let length = queued.packet.payload_len();
        if self.message_bytes + length > self.max_message_bytes {
            return Err(Box::new(queued));
        }
        self.message_bytes += length;
        // The sender's lanes are hashed onto the streams; one lane stays on one stream, in order.
        let header = &queued.packet.header;
        let lane = header.flow ^ header.sender.slot.rotate_left(16);
        let stream = lane as usize % self.messages.len();
        self.messages[stream].push_back(queued);
        Ok(())
    }

    /// The next datagram among classes of at least the priority of `least`, and those before it
    /// whose deadline has passed.
    pub(crate) fn pop_datagram(
        &mut self,
        least: Class,
        now: Instant,
        mut dropped: impl FnMut(Queued, DropReason),
    ) -> Option<Queued> {
        for queue in &mut self.datagrams[..=least as usize] {
            while let Some(queued) = queue.pop() {
                let header = &queued.packet.header;
                if queued.packet.age_at(now) <= header.class.deadline() {
                    return Some(queued);
                }
                dropped(queued, DropReason::Deadline);
            }
        }
        None
    }

    /// Puts back what QUIC had no room for.
    pub(crate) fn unpop_datagram(&mut self, queued: Queued) {
        let queue = &mut self.datagrams[queued.packet.header.class as usize];
        queue.bytes += queued.packet.payload_len();
        queue.waiting.push_front(queued);
    }

    /// The next message packet of a stream.
    pub(crate) fn pop_message(&mut self, stream: usize) -> Option<Queued> {
        let queued = self.messages[stream].pop_front()?;
        self.message_bytes -= queued.packet.payload_len();
        Some(queued)
    }

    /// Whether at least half of the room for messages is free.
    pub(crate) fn has_room_for_messages(&self) -> bool {
        2 * self.message_bytes < self.max_message_bytes
    }

    /// How many message streams there are.
    pub(crate) fn streams(&self) -> usize {
        self.messages.len()
    }

    /// Packets waiting.
    pub(crate) fn len(&self) -> usize {
        let datagrams: usize = self.datagrams.iter().map(|queue| queue.waiting.len()).sum();
        datagrams + self.messages.iter().map(VecDeque::len).sum::<usize>()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.message_bytes == 0
            && self.datagrams.iter().all(|queue| queue.waiting.is_empty())
            && self.messages.iter().all(VecDeque::is_empty)
    }

    /// Empties it.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Queued> {
        let mut all = Vec::new();
        for queue in &mut self.datagrams {
            queue.bytes = 0;
            all.extend(queue.waiting.drain(..));
        }
        for stream in &mut self.messages {
            all.extend(stream.drain(..));
        }
        self.message_bytes = 0;
        all.into_iter()
    }
}

impl DatagramQueue {
    fn pop(&mut self) -> Option<Queued> {
        let queued = self.waiting.pop_front()?;
        self.bytes -= queued.packet.payload_len();
        Some(queued)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tradewind_proto::{
        Locator, PlanId, RelayIndex,
        packet::{Destination, Kind, LinkHeader, MAX_PASSED},
    };

    use super::*;

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
        };
        let payload = Bytes::from_static(&[7; 1_000]);
        Queued {
            packet: Packet::new(header, payload, 0, now),
            handle: 0,
        }
    }

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_full_media_queue_drops_its_oldest() {
        let now = start();
        let mut queue = SendQueue::new(4, 1 << 20);
        let mut dropped = Vec::new();
        for sequence in 0..MAX_DATAGRAMS as u32 + 3 {
            let item = queued(Kind::Media, Class::Video, 1, sequence, now);
            dropped.extend(
                queue
                    .push_datagram(item)
                    .map(|gone| gone.packet.header.sequence),
            );
        }
        assert_eq!(dropped, [0, 1, 2]);
        assert_eq!(queue.len(), MAX_DATAGRAMS);
    }

    #[test]
    fn audio_leaves_before_video_and_the_late_is_dropped() {
        let now = start();
        let mut queue = SendQueue::new(4, 1 << 20);
        for (class, sequence) in [(Class::Video, 1), (Class::Audio, 2), (Class::Audio, 3)] {
            let item = queued(Kind::Media, class, 1, sequence, now);
            assert_eq!(queue.push_datagram(item).count(), 0);
        }
        let mut late = Vec::new();
        let first = queue
            .pop_datagram(Class::Bulk, now, |_, _| ())
            .expect("three are waiting");
        assert_eq!(first.packet.header.sequence, 2);
        let later = now + Class::Audio.deadline() + Duration::from_millis(1);
        let second = queue
            .pop_datagram(Class::Bulk, later, |gone, reason| {
                late.push((gone.packet.header.sequence, reason));
            })
            .expect("video is still in time");
        assert_eq!(second.packet.header.sequence, 1);
        assert_eq!(late, [(3, DropReason::Deadline)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_message_queue_refuses_and_a_lane_stays_in_order_on_its_stream() {
        let now = start();
        let mut queue = SendQueue::new(4, 3_000);
        for sequence in 0..3 {
            let item = queued(Kind::Message, Class::Message, 5, sequence, now);
            assert!(queue.push_message(item).is_ok());
        }
        let over = queued(Kind::Message, Class::Message, 5, 3, now);
        assert!(queue.push_message(over).is_err());
        let stream = (0..4)
            .find(|&stream| !queue.messages[stream].is_empty())
            .expect("one has it");
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop_message(stream))
            .map(|item| item.packet.header.sequence)
            .collect();
        assert_eq!(order, [0, 1, 2]);
        assert!(queue.is_empty());
    }
}
