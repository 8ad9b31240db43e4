//! Which relays live. Links tell their two ends only, and idle ones late; so a relay on which something
//! depends here is asked, over whatever way there is, as everything between relays is.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use tradewind_proto::RelayIndex;

use super::TICK;

/// How often a relay is asked.
const PERIOD: Duration = Duration::from_millis(300);
/// A relay that has not answered a question for so long is dead. The longest round trip on Earth and a
/// link that is found dead on the way fit in.
pub(crate) const SILENCE: Duration = Duration::from_millis(900);
/// When looking was late by so much, this relay was busy itself: what has not come in meanwhile says
/// nothing.
const STALL: Duration = Duration::from_millis(200);

/// The relays that something depends on.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    relays: BTreeMap<RelayIndex, Life>,
    ticked_at: Option<Instant>,
    next_id: u64,
}

#[derive(Debug)]
struct Life {
    /// 0: not known.
    incarnation: u64,
    /// Questions that were not answered, and no later one either.
    open: VecDeque<(u64, Instant)>,
    ask_at: Instant,
    heard_at: Instant,
    /// When its present life was first heard of, the one before had been heard last then: what it said
    /// before does not count.
    counts_from: Option<Instant>,
    dead: bool,
}

impl Lives {
    /// Follows these relays and no others.
    pub(crate) fn follow(&mut self, wanted: impl Iterator<Item = RelayIndex>, now: Instant) {
        let mut before = std::mem::take(&mut self.relays);
        for relay in wanted {
            let life = before.remove(&relay).unwrap_or_else(|| Life {
                incarnation: 0,
                open: VecDeque::new(),
                ask_at: now,
                heard_at: now,
                counts_from: None,
                dead: false,
            });
            self.relays.insert(relay, life);
        }
    }

    /// Gives the relays to be asked now, each with the id of the question; and those that have died.
    pub(crate) fn tick(&mut self, now: Instant) -> (Vec<(RelayIndex, u64)>, Vec<RelayIndex>) {
        let before = self.ticked_at.replace(now).unwrap_or(now);
        let stalled = now.saturating_duration_since(before) > TICK + STALL;
        let (mut asked, mut died) = (Vec::new(), Vec::new());
        for (&relay, life) in &mut self.relays {
            if stalled {
                life.open.clear();
            }
            let silent = life
                .open
                .front()
                .is_some_and(|&(_, at)| now >= at + SILENCE);
            if silent && !std::mem::replace(&mut life.dead, true) {
                died.push(relay);
            }
            if now >= life.ask_at {
                self.next_id += 1;
                if silent {
                    // It is dead until it answers one of these.
                    life.open.pop_front();
                }
                life.open.push_back((self.next_id, now));
                life.ask_at = now + PERIOD;
                asked.push((relay, self.next_id));
            }
        }
        (asked, died)
    }

    /// An answer has come. `true` when that makes a difference: the relay was taken for dead, or this
    /// is another life of it.
    pub(crate) fn heard(
        &mut self,
        relay: RelayIndex,
        id: u64,
        incarnation: u64,
        now: Instant,
    ) -> bool {
        let Some(life) = self.relays.get_mut(&relay) else {
            return false;
        };
        if !life.open.iter().any(|(open, _)| *open == id) {
            return false;
        }
        life.open.retain(|(open, _)| *open > id);
        let another = ![0, life.incarnation].contains(&incarnation) && life.incarnation != 0;
        if another {
            life.counts_from = Some(life.heard_at);
        }
        if incarnation != 0 {
            life.incarnation = incarnation;
        }
        life.heard_at = now;
        std::mem::replace(&mut life.dead, false) || another
    }

    /// Whether what a relay said then still holds: it lives, and has not begun anew since.
    pub(crate) fn counts(&self, relay: RelayIndex, said_at: Instant) -> bool {
        self.relays
            .get(&relay)
            .is_none_or(|life| !life.dead && life.counts_from.is_none_or(|from| said_at >= from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: RelayIndex = RelayIndex(7);

    /// Ticks until `until`; answers every question `answer` says, after `rtt`. When the relay died.
    fn run(
        lives: &mut Lives,
        from: Instant,
        until: Instant,
        rtt: Duration,
        answer: impl Fn(Instant) -> Option<u64>,
    ) -> Option<Instant> {
        let mut now = from;
        let mut died_at = None;
        let mut answers: VecDeque<(Instant, u64, u64)> = VecDeque::new();
        while now < until {
            while let Some(&(at, id, incarnation)) = answers.front()
                && at <= now
            {
                answers.pop_front();
                lives.heard(R, id, incarnation, at);
            }
            let (asked, died) = lives.tick(now);
            for (_, id) in asked {
                if let Some(incarnation) = answer(now) {
                    answers.push_back((now + rtt, id, incarnation));
                }
            }
            if !died.is_empty() {
                assert_eq!((died, died_at), (vec![R], None));
                died_at = Some(now);
            }
            now += TICK;
        }
        died_at
    }

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> (Lives, Instant) {
        let now = Instant::now();
        let mut lives = Lives::default();
        lives.follow([R].into_iter(), now);
        (lives, now)
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_relay_half_a_world_away_lives_and_one_that_falls_silent_is_dead_in_time() {
        let (mut lives, now) = start();
        let rtt = Duration::from_millis(600);
        assert_eq!(run(&mut lives, now, now + secs(20), rtt, |_| Some(1)), None);
        let killed = now + secs(20);
        let died = run(&mut lives, killed, killed + secs(5), rtt, |_| None).unwrap();
        assert!(died - killed <= SILENCE + PERIOD, "{:?}", died - killed);
        assert!(!lives.counts(R, died));
        // It was only cut off: what it said before counts again.
        run(&mut lives, killed + secs(5), killed + secs(7), rtt, |_| {
            Some(1)
        });
        assert!(lives.counts(R, now));
    }

    #[test]
    fn what_an_earlier_life_has_said_does_not_count() {
        let (mut lives, now) = start();
        let rtt = Duration::from_millis(50);
        let back = now + secs(3);
        let restarted = move |at| Some(if at < back { 1 } else { 2 });
        assert_eq!(run(&mut lives, now, now + secs(5), rtt, restarted), None);
        assert!(!lives.counts(R, now + secs(2)));
        assert!(lives.counts(R, back));
    }

    #[test]
    fn a_stall_of_this_relay_kills_nobody() {
        let (mut lives, now) = start();
        let (asked, _) = lives.tick(now);
        assert_eq!(asked.len(), 1);
        let (asked, died) = lives.tick(now + secs(3));
        assert_eq!((asked.len(), died.len()), (1, 0));
        assert!(lives.counts(R, now));
        // Whom nobody depends on is not asked.
        lives.follow(std::iter::empty(), now + secs(3));
        assert!(lives.tick(now + secs(4)).0.is_empty());
    }
}
