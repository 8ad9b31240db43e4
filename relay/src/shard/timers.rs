//! The shard's timers.

use std::{cmp::Reverse, collections::BinaryHeap, time::Instant};

/// A heap of deadlines. Those that no longer hold are not removed: whoever is called looks whether
/// there is something to do.
#[derive(Debug)]
pub(super) struct Timers<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Ord + Copy> Timers<K> {
    /// Calls for `key` at `deadline`.
    pub(super) fn push(&mut self, deadline: Instant, key: K) {
        self.heap.push(Reverse((deadline, key)));
    }

    /// The next one that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.heap.peek()?.0.0 > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key))| key)
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((deadline, _))| *deadline)
    }
}

impl<K: Ord> Default for Timers<K> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
        }
    }
}
