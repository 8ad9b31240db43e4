//! Trying ways: what the parts of a way add up to is off by what is not known of them, above all by
//! half the difference between there and back on the two legs, of which only round trips are known. So
//! while a conversation lasts the most promising ways to a device are asked the same question at the
//! same moment, and the device says by its own clock when each came. The clocks' difference is the
//! same for all of them: which way is the shortest, and by how much, is exact.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tradewind_proto::lane::{LaneFrame, Tried, Try};

use super::{Core, DeviceKey, LaneKey, WayKey, random};

/// What was measured holds for so long.
const HOLDS: Duration = Duration::from_secs(60);
/// Measurements of a way that are kept: the shortest one counts.
const KEPT: usize = 3;
/// So many say how long a way takes. One may be too long: the first packet over a way waits until the
/// peer's edge knows who sends it.
const ENOUGH: usize = 2;
/// Clocks are never so far apart, in microseconds.
const MOST_EXCESS_US: i64 = 1 << 60;
/// Until that many are there, ways are tried again so soon at the earliest, …
const AGAIN: Duration = Duration::from_secs(1);
/// … then at growing intervals for as long as the choice stays the same, from, to, …
const PAUSE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(20));
/// … and hardly ever when nothing came back so often: the peer's SDK may know nothing of this.
const UNANSWERED: u32 = 3;
const PAUSE_UNANSWERED: Duration = Duration::from_secs(60);
/// What has not been answered by then will not be.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions open at a time.
const MOST_OPEN: usize = 4_096;
/// Devices of one peer whose ways are tried: the newest ones.
const MOST_DEVICES: usize = 4;

/// What trying a way has shown: how much longer it took than its parts add up to, in microseconds. It
/// contains the difference of the two clocks, so it says something only beside another way's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tries {
    /// The latest ones first.
    excess_us: Vec<(Instant, i64)>,
}

impl Tries {
    pub(super) fn add(&mut self, excess_us: i64, now: Instant) {
        // Whatever the other end says: sums with it must not overflow.
        let excess_us = excess_us.clamp(-MOST_EXCESS_US, MOST_EXCESS_US);
        self.excess_us.insert(0, (now, excess_us));
        self.excess_us.truncate(KEPT);
    }

    /// The least of those that hold.
    pub(super) fn excess_us(&self, now: Instant) -> Option<i64> {
        self.hold(now).min()
    }

    /// When an answer came last.
    pub(super) fn latest(&self) -> Option<Instant> {
        self.excess_us.first().map(|(at, _)| *at)
    }

    pub(super) fn are_enough(&self, now: Instant) -> bool {
        self.hold(now).count() >= ENOUGH
    }

    fn hold(&self, now: Instant) -> impl Iterator<Item = i64> {
        let holding = self.excess_us.iter();
        holding
            .filter(move |(at, _)| now < *at + HOLDS)
            .map(|(_, excess)| *excess)
    }
}

/// When the ways to a device are tried.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    began: Option<Instant>,
    pause: Duration,
    chosen: Option<WayKey>,
    unanswered: u32,
}

impl Rounds {
    /// Begins a round, if it is time for one. `settled`: enough is known of all ways that would be
    /// tried.
    pub(super) fn begin(&mut self, settled: bool, chosen: Option<WayKey>, now: Instant) -> bool {
        let steady = settled && chosen == self.chosen;
        let pause = match steady {
            _ if self.unanswered >= UNANSWERED => PAUSE_UNANSWERED,
            true => self.pause,
            false => AGAIN,
        };
        if self.began.is_some_and(|began| now < began + pause) {
            return false;
        }
        self.pause = match steady {
            true => (self.pause * 2).clamp(PAUSE.0, PAUSE.1),
            false => PAUSE.0,
        };
        self.began = Some(now);
        self.chosen = chosen;
        self.unanswered = self.unanswered.saturating_add(1);
        true
    }

    pub(super) const fn answered(&mut self) {
        self.unanswered = 0;
    }
}

/// A question that is not answered yet.
pub(super) struct Trying {
    device: DeviceKey,
    way: WayKey,
    sent: Instant,
    /// What the parts of the way added up to.
    parts_us: i64,
}

impl Core {
    /// Tries the ways to a peer, if that may change which one is taken and it is time for it.
    pub(super) fn try_ways(&mut self, user: &Arc<str>, now: Instant) {
        self.end_unanswered_tries(now);
        let attachments = &self.attachments;
        let leg = |session: u64| Some(attachments.get(&session)?.leg());
        let Some(peer) = self.peers.get_mut(user) else {
            return;
        };
        let mut trying = Vec::new();
        for &instance in peer.present.iter().take(MOST_DEVICES) {
            let Some(device) = peer.devices.get_mut(&instance) else {
                continue;
            };
            for (way, parts_us) in device.ways.begin_round(leg, now) {
                let user = user.clone();
                trying.push(Trying {
                    device: DeviceKey { user, instance },
                    way,
                    sent: now,
                    parts_us,
                });
            }
        }
        for trying in trying {
            if self.tries.len() >= MOST_OPEN {
                return;
            }
            // In the order of time, and not to be guessed by who does not hear it.
            self.next_try = self.next_try.wrapping_add(1);
            let chance = random(&*self.host) & u64::from(u32::MAX);
            let trial = u64::from(self.next_try) << 32 | chance;
            self.send_notice(trying.way, &LaneFrame::Try(Try { trial }));
            self.tries.insert(trial, trying);
        }
    }

    /// What has not been answered in time leads nowhere, if another way that was tried since does: it is
    /// left out, so that the others are chosen from. The one in use shows by itself whether it works.
    fn end_unanswered_tries(&mut self, now: Instant) {
        let mut silent = Vec::new();
        while let Some(oldest) = self.tries.first_entry()
            && oldest.get().sent + PATIENCE <= now
        {
            silent.push(oldest.remove());
        }
        for Trying {
            device: key,
            way,
            sent,
            ..
        } in silent
        {
            if let Some(device) = self.device(&key)
                && device.ways.chosen() != Some(way)
                && device.ways.any_tried_since(sent)
            {
                device.ways.distrust(way, now);
                self.choose_ways(&key.user, now);
            }
        }
    }

    /// Somebody tries ways to this client. The answer goes back to where the question came from: how
    /// long it takes does not matter.
    pub(super) fn on_try(&mut self, way: WayKey, asked: Try, now: Instant) {
        let tried = Tried {
            trial: asked.trial,
            came_us: self.micros(now),
        };
        self.send_notice(way, &LaneFrame::Tried(tried));
    }

    /// A way that was tried leads to the peer. When that is known of all of them, the best one is taken.
    pub(super) fn on_tried(&mut self, tried: Tried, now: Instant) {
        let Some(trying) = self.tries.remove(&tried.trial) else {
            self.stats.unexpected += 1;
            return;
        };
        let sent_us = self.micros(trying.sent);
        let took_us = tried.came_us.wrapping_sub(sent_us).cast_signed();
        if let Some(device) = self.device(&trying.device) {
            let excess_us = took_us.wrapping_sub(trying.parts_us);
            device.ways.tried(trying.way, excess_us, now);
        }
        let of_round = |other: &Trying| other.device == trying.device && other.sent == trying.sent;
        if !self.tries.values().any(of_round) {
            self.choose_ways(&trying.device.user, now);
        }
    }

    fn send_notice(&mut self, way: WayKey, frame: &LaneFrame) {
        let key = LaneKey::Notice(way.handle, frame.encode());
        self.queue_turn(way.session, 0, key, true);
    }

    /// By this client's clock, which says nothing to anybody else.
    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_shortest_of_the_latest_measurements_counts_for_a_while() {
        let now = start();
        let mut tries = Tries::default();
        assert_eq!(tries.excess_us(now), None);
        tries.add(90_000, now);
        assert_eq!(tries.excess_us(now), Some(90_000));
        assert!(!tries.are_enough(now));
        tries.add(-7, now + AGAIN);
        tries.add(3, now + AGAIN);
        assert!(tries.are_enough(now + AGAIN));
        assert_eq!(tries.excess_us(now + AGAIN), Some(-7));
        tries.add(5, now + HOLDS);
        tries.add(4, now + HOLDS);
        assert_eq!(tries.excess_us(now + HOLDS), Some(3), "the oldest are gone");
        assert_eq!(tries.excess_us(now + HOLDS + AGAIN), Some(4));
        assert_eq!(tries.excess_us(now + HOLDS * 2), None);
    }

    #[test]
    fn rounds_become_rarer_while_nothing_changes_and_stop_when_nobody_answers() {
        let mut now = start();
        let chosen = |handle| Some(WayKey { session: 1, handle });
        let mut rounds = Rounds::default();
        // How long it takes until the next one, in seconds.
        let mut next = |rounds: &mut Rounds, settled, chosen| {
            let seconds = (0..).find(|_| {
                let begun = rounds.begin(settled, chosen, now);
                now += Duration::from_secs(1);
                begun
            });
            seconds.unwrap() + 1
        };
        assert_eq!(next(&mut rounds, false, chosen(1)), 1, "at once");
        rounds.answered();
        assert_eq!(next(&mut rounds, false, chosen(1)), 1);
        for expected in [4, 8, 16, 20, 20] {
            rounds.answered();
            assert_eq!(next(&mut rounds, true, chosen(1)), expected);
        }
        rounds.answered();
        assert_eq!(
            next(&mut rounds, true, chosen(2)),
            1,
            "another one is taken"
        );
        rounds.answered();
        assert_eq!(next(&mut rounds, true, chosen(2)), 4);
        assert_eq!(next(&mut rounds, false, chosen(2)), 1);
        assert_eq!(next(&mut rounds, false, chosen(2)), 1);
        assert_eq!(next(&mut rounds, false, chosen(2)), 60);
        rounds.answered();
        assert_eq!(next(&mut rounds, false, chosen(2)), 1);
    }
}
