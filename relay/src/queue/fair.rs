//! Packets of one class, taken out by tenants in turn.

use std::collections::VecDeque;

/// What a tenant may send in a turn, bytes. A packet that is longer waits for several turns.
const QUANTUM: usize = 2 << 10;
/// An empty queue keeps no more room than this for its next packets.
const KEPT_ROOM: usize = 8;

/// Something with a length in bytes.
pub(super) trait Length {
    fn length(&self) -> usize;
}

/// Waiting packets of one class. Tenants take turns, each with the same number of bytes (deficit round
/// robin: Shreedhar and Varghese, "Efficient fair queuing", SIGCOMM 1995), however much each has waiting.
/// A tenant's packets wait by stream, in order within each; its streams take turns by the packet.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    /// By tenant; made when one has something waiting for the first time.
    tenants: Vec<Option<Box<TenantQueue<T>>>>,
    /// The tenants that have something waiting, in the order of their turns.
    turns: VecDeque<u8>,
    streams: u8,
    len: usize,
    bytes: usize,
}

#[derive(Debug)]
struct TenantQueue<T> {
    streams: Box<[VecDeque<T>]>,
    /// A bit for each stream that has something.
    filled: u32,
    /// The stream whose turn it is.
    next: u32,
    bytes: usize,
    /// What it may still send in this turn.
    deficit: usize,
}

impl<T: Length> FairQueue<T> {
    /// An empty one, with at most 32 streams.
    pub(super) fn new(streams: u8) -> Self {
        Self {
            tenants: Vec::new(),
            turns: VecDeque::new(),
            streams,
            len: 0,
            bytes: 0,
        }
    }

    /// Adds a packet at the end of a tenant's stream.
    pub(super) fn push(&mut self, tenant: u8, stream: u8, item: T) {
        let place = usize::from(tenant);
        if self.tenants.len() <= place {
            self.tenants.resize_with(place + 1, || None);
        }
        let streams = self.streams;
        let queue = self.tenants[place].get_or_insert_with(|| Box::new(TenantQueue::new(streams)));
        if queue.filled == 0 {
            queue.deficit = QUANTUM;
            self.turns.push_back(tenant);
        }
        let length = item.length();
        queue.filled |= 1 << stream;
        queue.bytes += length;
        queue.streams[usize::from(stream)].push_back(item);
        self.len += 1;
        self.bytes += length;
    }

    /// The packet whose turn it is among the streams of `open` (a bit each). The turn is kept until it
    /// has been taken.
    pub(super) fn peek(&mut self, open: u32) -> Option<&T> {
        let (tenant, stream) = self.turn(open)?;
        self.tenants[usize::from(tenant)].as_ref()?.streams[stream].front()
    }

    /// Takes that packet; gives its stream as well.
    pub(super) fn pop(&mut self, open: u32) -> Option<(u8, T)> {
        let (tenant, stream) = self.turn(open)?;
        let queue = self.tenants[usize::from(tenant)].as_mut()?;
        let item = queue.take(stream)?;
        let length = item.length();
        queue.deficit -= length;
        queue.next = stream as u32 + 1;
        if queue.filled == 0 {
            self.turns.pop_front();
        }
        self.len -= 1;
        self.bytes -= length;
        Some((stream as u8, item))
    }

    /// Takes the oldest packet of the tenant that has most bytes waiting.
    pub(super) fn pop_of_greatest(&mut self) -> Option<T> {
        let bytes = |tenant: u8| {
            self.tenants[usize::from(tenant)]
                .as_ref()
                .map_or(0, |queue| queue.bytes)
        };
        let greatest = self
            .turns
            .iter()
            .copied()
            .max_by_key(|&tenant| bytes(tenant))?;
        let queue = self.tenants[usize::from(greatest)].as_mut()?;
        let stream = queue.filled.trailing_zeros() as usize;
        let item = queue.take(stream)?;
        if queue.filled == 0 {
            self.turns.retain(|&tenant| tenant != greatest);
        }
        self.len -= 1;
        self.bytes -= item.length();
        Some(item)
    }

    /// Packets waiting.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes waiting.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of one tenant that wait.
    pub(super) fn bytes_of(&self, tenant: u8) -> usize {
        let queue = self.tenants.get(usize::from(tenant));
        queue
            .and_then(Option::as_ref)
            .map_or(0, |queue| queue.bytes)
    }

    /// Whether something waits for one of the streams of `open`.
    pub(super) fn waits_for(&self, open: u32) -> bool {
        self.turns.iter().any(|&tenant| {
            let queue = self.tenants[usize::from(tenant)].as_ref();
            queue.is_some_and(|queue| queue.filled & open != 0)
        })
    }

    /// Empties it; each stream's packets come in order.
    pub(super) fn drain(&mut self, all: &mut Vec<T>) {
        for tenant in self.turns.drain(..) {
            if let Some(queue) = self.tenants[usize::from(tenant)].take() {
                all.extend(queue.streams.into_iter().flatten());
            }
        }
        (self.len, self.bytes) = (0, 0);
    }

    /// The tenant and stream whose turn it is; that tenant is the first in `turns` then.
    fn turn(&mut self, open: u32) -> Option<(u8, usize)> {
        // Tenants passed by in a row because their streams take nothing now.
        let mut passed = 0;
        while passed < self.turns.len() {
            let &tenant = self.turns.front()?;
            let queue = self.tenants[usize::from(tenant)].as_mut()?;
            match queue.head(open) {
                None => passed += 1,
                Some((stream, length)) if length <= queue.deficit => return Some((tenant, stream)),
                Some(_) => {
                    queue.deficit += QUANTUM;
                    passed = 0;
                }
            }
            self.turns.rotate_left(1);
        }
        None
    }
}

impl<T: Length> TenantQueue<T> {
    fn new(streams: u8) -> Self {
        Self {
            streams: (0..streams).map(|_| VecDeque::new()).collect(),
            filled: 0,
            next: 0,
            bytes: 0,
            deficit: 0,
        }
    }

    /// The first stream from `next` on that has something and may send, and its packet's length.
    fn head(&self, open: u32) -> Option<(usize, usize)> {
        let ready = self.filled & open;
        if ready == 0 {
            return None;
        }
        let from = self.next % 32;
        let stream = (from + ready.rotate_right(from).trailing_zeros()) % 32;
        let first = self.streams[stream as usize].front()?;
        Some((stream as usize, first.length()))
    }

    fn take(&mut self, stream: usize) -> Option<T> {
        let queue = &mut self.streams[stream];
        let item = queue.pop_front()?;
        self.bytes -= item.length();
        if queue.is_empty() {
            self.filled &= !(1 << stream);
            queue.shrink_to(KEPT_ROOM);
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const ALL: u32 = u32::MAX;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Item {
        tenant: u8,
        stream: u8,
        number: usize,
        length: usize,
    }

    impl Length for Item {
        fn length(&self) -> usize {
            self.length
        }
    }

    fn push(queue: &mut FairQueue<Item>, item: Item) {
        queue.push(item.tenant, item.stream, item);
    }

    fn item(tenant: u8, number: usize, length: usize) -> Item {
        Item {
            tenant,
            stream: 0,
            number,
            length,
        }
    }

    #[test]
    fn tenants_share_bytes_evenly_however_much_each_has() {
        let mut queue = FairQueue::new(1);
        // Ten times as many packets, of tenant 1; small ones against segments of tenant 2.
        for number in 0..10_000 {
            push(&mut queue, item(1, number, 200));
        }
        for number in 0..100 {
            push(&mut queue, item(2, number, 16_400));
        }
        let mut bytes = BTreeMap::<u8, usize>::new();
        while bytes.values().sum::<usize>() < 1_000_000 {
            let (_, taken) = queue.pop(ALL).expect("more than that waits");
            *bytes.entry(taken.tenant).or_default() += taken.length;
        }
        let difference = bytes[&1].abs_diff(bytes[&2]);
        assert!(difference <= 16_400 + 2 * QUANTUM, "{bytes:?}");
    }

    #[test]
    fn one_packet_of_a_quiet_tenant_waits_for_one_turn_of_the_others() {
        let mut queue = FairQueue::new(1);
        for number in 0..1_000 {
            push(&mut queue, item(1, number, 1_000));
            push(&mut queue, item(2, number, 1_000));
        }
        push(&mut queue, item(3, 0, 1_000));
        let before = std::iter::from_fn(|| queue.pop(ALL)).take_while(|(_, i)| i.tenant != 3);
        assert!(before.count() <= 2 * (QUANTUM / 1_000 + 1));
    }

    #[test]
    fn a_stream_that_takes_nothing_holds_up_no_other() {
        let mut queue = FairQueue::new(2);
        for number in 0..3 {
            for (tenant, stream) in [(1, 0), (1, 1), (2, 0)] {
                let item = Item {
                    stream,
                    ..item(tenant, number, 3_000)
                };
                push(&mut queue, item);
            }
        }
        let open = 0b10;
        assert!(queue.waits_for(open));
        let taken: Vec<(u8, u8, usize)> = std::iter::from_fn(|| queue.pop(open))
            .map(|(stream, item)| (item.tenant, stream, item.number))
            .collect();
        assert_eq!(taken, [(1, 1, 0), (1, 1, 1), (1, 1, 2)]);
        assert!(!queue.waits_for(open));
        assert_eq!(queue.len(), 6);
    }

    #[test]
    fn room_is_made_by_the_oldest_packet_of_the_greatest() {
        let mut queue = FairQueue::new(1);
        push(&mut queue, item(1, 0, 100));
        for number in 0..3 {
            push(&mut queue, item(2, number, 1_000));
        }
        let gone: Vec<(u8, usize)> = std::iter::from_fn(|| queue.pop_of_greatest())
            .map(|item| (item.tenant, item.number))
            .collect();
        assert_eq!(gone, [(2, 0), (2, 1), (2, 2), (1, 0)]);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
        assert!(queue.pop(ALL).is_none());
    }

    proptest! {
        #[test]
        fn everything_comes_out_once_and_in_order(
            steps in prop::collection::vec((0_u8..5, 0_u8..4, 0_usize..20_000, 0_u8..4, any::<u32>()), 0..300),
        ) {
            let mut queue = FairQueue::new(4);
            let mut waiting: BTreeMap<(u8, u8), VecDeque<Item>> = BTreeMap::new();
            for (number, (tenant, stream, length, pops, open)) in steps.into_iter().enumerate() {
                let item = Item { tenant, stream, number, length };
                push(&mut queue, item);
                waiting.entry((tenant, stream)).or_default().push_back(item);
                for _ in 0..pops {
                    let could = waiting.iter().any(|((_, s), q)| open & 1 << s != 0 && !q.is_empty());
                    prop_assert_eq!(queue.waits_for(open), could);
                    let peeked = queue.peek(open).copied();
                    let popped = queue.pop(open);
                    prop_assert_eq!(peeked, popped.map(|(_, item)| item));
                    prop_assert_eq!(popped.is_some(), could, "whoever can send is found");
                    if let Some((stream, item)) = popped {
                        prop_assert!(open & 1 << stream != 0);
                        let first = waiting.get_mut(&(item.tenant, stream)).and_then(VecDeque::pop_front);
                        prop_assert_eq!(first, Some(item));
                    }
                }
                let left: Vec<Item> = waiting.values().flatten().copied().collect();
                prop_assert_eq!(queue.len(), left.len());
                prop_assert_eq!(queue.bytes(), left.iter().map(|item| item.length).sum::<usize>());
                let of_tenant = left.iter().filter(|i| i.tenant == tenant).map(|i| i.length).sum::<usize>();
                prop_assert_eq!(queue.bytes_of(tenant), of_tenant);
            }
        }

        /// Tenants that always have something waiting have had the same, but for a packet and a turn.
        #[test]
        fn shares_are_even_with_packets_of_any_length(
            lengths in prop::collection::vec(1_usize..17_000, 40..400),
            tenants in 2_u8..6,
        ) {
            let mut queue = FairQueue::new(1);
            for (number, length) in lengths.iter().enumerate() {
                push(&mut queue, item(number as u8 % tenants, number, *length));
            }
            let mut had = vec![0_usize; usize::from(tenants)];
            // While all have something.
            while (0..tenants).all(|tenant| queue.bytes_of(tenant) > 0) {
                let (_, taken) = queue.pop(ALL).expect("something waits");
                had[usize::from(taken.tenant)] += taken.length;
                let most = had.iter().max().expect("there are tenants");
                let least = had.iter().min().expect("there are tenants");
                prop_assert!(most - least <= 17_000 + 2 * QUANTUM, "{had:?}");
            }
        }
    }
}
