//! Which class goes next: strict priority, with a small share for whoever has to wait.

use tradewind_proto::Class;

/// A class that waits is owed one byte for so many that more urgent ones send.
pub(super) const SHARE: i64 = 16;
/// A class goes ahead of more urgent ones when it is owed so many bytes: a packet.
pub(super) const TURN: i64 = 1_500;
/// No class is ever owed more: what it could not use while it could not be sent either, it does not get
/// afterwards.
pub(super) const MOST_OWED: i64 = 16 << 10;

/// By class, most urgent first.
pub(crate) type ByClass<T> = [T; Class::ALL.len()];

/// Chooses between classes. The most urgent one that waits goes first: audio, message, video, bulk.
/// So that nobody starves, a class that waits is owed a byte for every 16 that more urgent classes send
/// meanwhile, and goes ahead of them once it is owed 1,500.
///
/// Two bounds follow. A class that waits gets at least a sixteenth of what more urgent classes send, less
/// 1,500 bytes and one packet; and no more than a sixteenth goes ahead of its turn in each of the three
/// lower classes, so that audio keeps at least 13 sixteenths of a full link.
#[derive(Debug, Default)]
pub(crate) struct Priority {
    /// What each class is owed, in sixteenths of a byte; negative when it has had more than its share.
    owed: ByClass<i64>,
}

impl Priority {
    /// Which of the classes that wait goes next.
    pub(crate) fn next(&self, waiting: ByClass<bool>) -> Option<Class> {
        let mut waiting = Class::ALL
            .into_iter()
            .filter(|class| waiting[*class as usize]);
        let first = waiting.next()?;
        let owed = |class: &Class| self.owed[*class as usize] >= TURN * SHARE;
        Some(waiting.find(owed).unwrap_or(first))
    }

    /// Notes that `bytes` of a class have been sent while these classes wait.
    pub(crate) fn sent(&mut self, class: Class, bytes: usize, waiting: ByClass<bool>) {
        let bytes = bytes as i64;
        let class = class as usize;
        // What is sent while nothing more urgent waits takes nothing from anybody.
        if waiting[..class].contains(&true) {
            self.owed[class] -= bytes * SHARE;
        }
        for (owed, waits) in self.owed.iter_mut().zip(waiting).skip(class + 1) {
            let most = if waits { MOST_OWED * SHARE } else { 0 };
            // What a class had beyond its share it pays back, whether it waits or not.
            *owed = (*owed + bytes).min(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUDIO: usize = Class::Audio as usize;

    #[test]
    fn the_most_urgent_goes_first() {
        let priority = Priority::default();
        for first in Class::ALL {
            let waiting = std::array::from_fn(|class| class >= first as usize);
            assert_eq!(priority.next(waiting), Some(first));
        }
        assert_eq!(priority.next([false; 4]), None);
    }

    #[test]
    fn who_waits_goes_ahead_after_sixteen_times_as_much() {
        let mut priority = Priority::default();
        let waiting = [true, false, false, true];
        for _ in 0..SHARE - 1 {
            priority.sent(Class::Audio, TURN as usize, waiting);
            assert_eq!(priority.next(waiting), Some(Class::Audio));
        }
        priority.sent(Class::Audio, TURN as usize, waiting);
        assert_eq!(priority.next(waiting), Some(Class::Bulk));
        priority.sent(Class::Bulk, TURN as usize, waiting);
        assert_eq!(priority.next(waiting), Some(Class::Audio));
    }

    #[test]
    fn nothing_is_owed_to_who_does_not_wait() {
        let mut priority = Priority::default();
        let audio_only = [true, false, false, false];
        priority.sent(Class::Audio, 10_000_000, audio_only);
        assert_eq!(priority.next([true; 4]), Some(Class::Audio));
    }

    proptest! {
        /// Random arrivals at a server that sends one packet at a time.
        #[test]
        fn shares_are_as_promised(
            arrivals in prop::collection::vec((0_usize..4, 40_usize..1_400, 0_u8..3), 1..2_000),
            always in prop::option::of(0_usize..4),
        ) {
            let mut priority = Priority::default();
            let mut queues: [std::collections::VecDeque<usize>; 4] = Default::default();
            let mut ahead_of_turn = [0_i64; 4];
            let mut more_urgent = [0_i64; 4];
            // Since when a class waits without a break.
            let mut since = [(0_i64, 0_i64); 4];
            let mut sent = [0_i64; 4];
            for (class, bytes, services) in arrivals {
                for class in std::iter::once(class).chain(always) {
                    if queues[class].is_empty() {
                        since[class] = (sent[class], more_urgent[class]);
                    }
                    queues[class].push_back(bytes);
                }
                for _ in 0..services {
                    let waiting = queues.each_ref().map(|queue| !queue.is_empty());
                    let Some(class) = priority.next(waiting) else {
                        break;
                    };
                    let class = class as usize;
                    let bytes = queues[class].pop_front().expect("it waits") as i64;
                    if waiting[..class].contains(&true) {
                        ahead_of_turn[class] += bytes;
                    }
                    sent[class] += bytes;
                    more_urgent[class + 1..].iter_mut().for_each(|sum| *sum += bytes);
                    priority.sent(Class::ALL[class], bytes as usize, waiting);
                    for class in 0..4 {
                        // Who waits gets its share…
                        if !queues[class].is_empty() {
                            let others = more_urgent[class] - since[class].1;
                            let own = sent[class] - since[class].0;
                            // (what it had beyond it before must be paid back first)
                            prop_assert!(own + 2 * 1_400 + TURN >= others / SHARE, "{class}: {own} of {others}");
                        }
                        // … and nobody more than that ahead of its turn.
                        prop_assert!(ahead_of_turn[class] <= more_urgent[class] / SHARE + 1_400);
                    }
                    prop_assert_eq!(ahead_of_turn[AUDIO], 0);
                }
            }
        }
    }
}
