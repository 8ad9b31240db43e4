//! What was observed while the lab ran.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tradewind_client::SendError;

use super::schedule::LANES;

/// Observations of all ordered pairs of clients.
#[derive(Debug)]
pub(super) struct Record {
    n: usize,
    pairs: Mutex<Vec<Pair>>,
}

/// Observations of one ordered pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pair {
    /// Round trips of echoes that the first client measured, in microseconds, as they came.
    pub(super) rtts_us: Vec<u32>,
    /// The round trip of the echo before these, in microseconds.
    pub(super) first_rtt_us: Option<u32>,
    /// Media packets from the first to the second client, echoes and answers to echoes.
    pub(super) media_sent: u64,
    pub(super) media_delivered: u64,
    pub(super) messages_sent: u64,
    /// Confirmed to the sender.
    pub(super) messages_confirmed: u64,
    /// Ended otherwise, by reason.
    pub(super) messages_failed: BTreeMap<&'static str, u64>,
    /// The receiver's own observation.
    pub(super) received: [Received; LANES],
}

/// Messages of one lane as their receiver has seen them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// By number, whether it came.
    seen: Vec<bool>,
    pub(super) messages: u64,
    pub(super) duplicates: u64,
    /// Came after one that was sent later.
    pub(super) reordered: u64,
}

impl Record {
    pub(super) fn new(n: usize) -> Self {
        Self {
            n,
            pairs: Mutex::new(vec![Pair::default(); n * n]),
        }
    }

    pub(super) fn with<T>(&self, from: usize, to: usize, act: impl FnOnce(&mut Pair) -> T) -> T {
        act(&mut self.lock()[from * self.n + to])
    }

    /// By (from · n + to).
    pub(super) fn all(&self) -> Vec<Pair> {
        self.lock().clone()
    }

    /// By (from · n + to): the median of the last few round trips, in microseconds.
    pub(super) fn present_rtts_us(&self) -> Vec<Option<u32>> {
        let pairs = self.lock();
        pairs
            .iter()
            .map(|pair| {
                let rtts = &pair.rtts_us;
                let mut last = rtts[rtts.len().saturating_sub(3)..].to_vec();
                last.sort_unstable();
                last.get(last.len() / 2).copied()
            })
            .collect()
    }

    /// Media packets and messages that were sent and that have arrived so far.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for pair in self.lock().iter() {
            totals.media_sent += pair.media_sent;
            totals.media_delivered += pair.media_delivered;
            totals.messages_sent += pair.messages_sent;
            totals.messages_delivered += pair.messages_delivered();
        }
        totals
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pair>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sums over all pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) media_sent: u64,
    pub(super) media_delivered: u64,
    pub(super) messages_sent: u64,
    pub(super) messages_delivered: u64,
}

impl Pair {
    /// Messages that were confirmed to the sender and that the receiver has seen as well.
    pub(super) fn messages_delivered(&self) -> u64 {
        let received: u64 = self.received.iter().map(|lane| lane.messages).sum();
        self.messages_confirmed.min(received)
    }
}

impl Received {
    /// Takes note of the message with this number.
    pub(super) fn note(&mut self, number: u32) {
        let number = number as usize;
        if self.seen.len() <= number {
            self.seen.resize(number + 1, false);
        } else if self.seen[number] {
            self.duplicates += 1;
            return;
        } else {
            self.reordered += 1;
        }
        self.seen[number] = true;
        self.messages += 1;
    }
}

/// The reason's name in the report.
pub(super) fn reason(error: SendError) -> &'static str {
    match error {
        SendError::Offline => "offline",
        SendError::Expired => "expired",
        SendError::Denied => "denied",
        SendError::TooLarge { .. } => "too_large",
        SendError::QueueFull => "queue_full",
        SendError::Closed => "closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiver_tells_duplicates_from_messages_out_of_order_and_from_gaps() {
        let mut lane = Received::default();
        for number in [0, 1, 4, 2, 2, 5, 4] {
            lane.note(number);
        }
        assert_eq!((lane.messages, lane.duplicates, lane.reordered), (5, 2, 1));
    }

    #[test]
    fn a_message_counts_as_delivered_only_when_both_ends_say_so() {
        let mut pair = Pair {
            messages_confirmed: 2,
            ..Pair::default()
        };
        pair.received[0].note(0);
        assert_eq!(pair.messages_delivered(), 1);
        pair.received[1].note(0);
        pair.received[1].note(1);
        assert_eq!(pair.messages_delivered(), 2);
    }

    #[test]
    fn the_present_round_trip_is_the_middle_of_the_last_three() {
        let record = Record::new(2);
        assert_eq!(record.present_rtts_us()[1], None);
        record.with(0, 1, |pair| pair.rtts_us.extend([1, 90, 20, 30]));
        assert_eq!(record.present_rtts_us()[1], Some(30));
    }
}
