//! When an idle session says that it is still there: often enough that the network between it and its
//! edge does not forget it, and no more often, for each packet wakes a phone's radio. Pure: the time is
//! handed in.
//!
//! What forgets is a NAT or a firewall on the way, and nobody says after how long: so it is tried. The
//! edge is asked for an answer that comes only after a silence; if the answer comes, the binding has
//! lived that long, and the next silence is longer. If none comes, though the edge answers at once when
//! it is asked at once, the binding had died, and a shorter silence is kept from then on.

use std::time::{Duration, Instant};

/// Each silence that was survived is followed by one so much longer.
const STEP: f64 = 1.5;
/// No silence is shorter, whatever is forgotten.
const SHORTEST: Duration = Duration::from_secs(5);
/// How late an answer may be beyond two round trips: edges look once a second who waits, and what is
/// lost is sent again.
const GRACE: Duration = Duration::from_secs(3);
/// Datagrams that come for a question and its answer; when there were more, it was not silent.
const FOR_ONE_ANSWER: u64 = 3;
/// Sessions whose answers are due within this time of each other are not brought any closer.
const TOGETHER: Duration = Duration::from_secs(3);

/// How a session is kept alive while nothing else is sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// A sign of life this often.
    Fixed(Duration),
    /// As rarely as the network allows, which is found out: for phones. The price: while nothing is
    /// sent, a client that vanishes is missed only after [`AdaptiveKeepAlive::longest`] and half a
    /// minute, and an edge that dies together with the one that stands by is noticed as late.
    Adaptive(AdaptiveKeepAlive),
}

/// Bounds of an adaptive [`KeepAlive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveKeepAlive {
    /// The first silence: one that about every network survives. At least 5 s. 15 s.
    pub first: Duration,
    /// The longest one, at most 140 s: edges end sessions that are silent for three minutes. 120 s.
    pub longest: Duration,
}

impl Default for AdaptiveKeepAlive {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(15),
            longest: Duration::from_secs(120),
        }
    }
}

impl AdaptiveKeepAlive {
    /// Longest allowed value of [`longest`](Self::longest).
    pub(crate) const LONGEST: Duration = Duration::from_secs(140);

    /// Whether its values are within their ranges.
    pub(crate) fn is_sound(&self) -> bool {
        SHORTEST <= self.first && self.first <= self.longest && self.longest <= Self::LONGEST
    }

    /// QUIC's idle timeout that permits it.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.longest + Duration::from_secs(30)
    }
}

impl From<Duration> for KeepAlive {
    fn from(every: Duration) -> Self {
        Self::Fixed(every)
    }
}

/// What is known of how long the network remembers: the same for all sessions of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    bounds: AdaptiveKeepAlive,
    /// The longest silence that was survived.
    survived: Option<Duration>,
    /// The shortest one that was not.
    forgotten: Option<Duration>,
}

impl Memory {
    pub(crate) const fn new(bounds: AdaptiveKeepAlive) -> Self {
        Self {
            bounds,
            survived: None,
            forgotten: None,
        }
    }

    /// The silence to keep now.
    pub(crate) fn silence(&self) -> Duration {
        match (self.survived, self.forgotten) {
            (None, None) => self.bounds.first,
            (Some(survived), None) => survived.mul_f64(STEP).min(self.bounds.longest),
            (Some(survived), Some(_)) => survived,
            (None, Some(forgotten)) => (forgotten / 2).max(SHORTEST),
        }
    }

    fn on_survived(&mut self, silence: Duration) {
        self.survived = self.survived.max(Some(silence));
    }

    fn on_forgotten(&mut self, silence: Duration) {
        let least = self.forgotten.unwrap_or(silence);
        self.forgotten = Some(least.min(silence));
        // What was survived before was on another network.
        self.survived = self.survived.filter(|survived| *survived < silence);
    }
}

/// What is to be done for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing until then.
    Wait(Instant),
    /// Ask the edge for an answer after a silence; 0: at once.
    Ask(Duration),
    /// Nothing answers: neither network nor edge.
    Dead,
}

/// The quiet of one session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quiet {
    phase: Phase,
    asked_at: Instant,
    /// Datagrams that had come by then.
    heard_by_then: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has to be asked anew.
    Over,
    /// The edge is to answer after that silence.
    Silent(Duration),
    /// It has not; it is to answer at once now.
    Missed(Duration),
    /// It answers no such questions (it is of an older version): it is only asked now and then.
    Plain,
}

impl Quiet {
    /// Of a session that carries nothing from now on.
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Over,
            asked_at: now,
            heard_by_then: 0,
        }
    }

    /// The session carries something: whatever was asked says nothing.
    pub(crate) fn disturb(&mut self) {
        if self.phase != Phase::Plain {
            self.phase = Phase::Over;
        }
    }

    /// The answer to the last question has come; so have `heard` datagrams in all.
    pub(crate) fn on_answer(&mut self, heard: u64, now: Instant, memory: &mut Memory) {
        match self.phase {
            Phase::Silent(silence) => {
                let was_silent = heard.saturating_sub(self.heard_by_then) <= FOR_ONE_ANSWER;
                let took = now.saturating_duration_since(self.asked_at);
                // The edge's clock may run a little faster.
                if was_silent && took * 100 >= silence * 99 {
                    memory.on_survived(silence);
                }
            }
            Phase::Missed(silence) => memory.on_forgotten(silence),
            Phase::Over | Phase::Plain => return,
        }
        self.phase = Phase::Over;
    }

    /// What is to be done now, `heard` datagrams having come in all.
    pub(crate) fn poll(
        &mut self,
        heard: u64,
        rtt: Duration,
        now: Instant,
        memory: &Memory,
    ) -> Verdict {
        let grace = GRACE + rtt * 2;
        let heard_nothing = heard == self.heard_by_then;
        match self.phase {
            Phase::Over => self.ask(
                Phase::Silent(memory.silence()),
                memory.silence(),
                heard,
                now,
            ),
            Phase::Silent(silence) => {
                let due = self.asked_at + silence + grace;
                if now < due {
                    return Verdict::Wait(due);
                }
                self.ask(Phase::Missed(silence), Duration::ZERO, heard, now)
            }
            Phase::Missed(_) => {
                let due = self.asked_at + grace;
                if now < due {
                    return Verdict::Wait(due);
                }
                if heard_nothing {
                    return Verdict::Dead;
                }
                self.ask(Phase::Plain, Duration::ZERO, heard, now)
            }
            Phase::Plain => {
                let checked = self.asked_at + grace;
                let due = self.asked_at + memory.bounds.first;
                if now < checked {
                    return Verdict::Wait(checked);
                }
                if heard_nothing {
                    return Verdict::Dead;
                }
                if now < due {
                    return Verdict::Wait(due);
                }
                self.ask(Phase::Plain, Duration::ZERO, heard, now)
            }
        }
    }

    /// Asks now, as the radio is awake for another session, unless its own answer is near anyway.
    pub(crate) fn join(&mut self, now: Instant) {
        if let Phase::Silent(silence) = self.phase
            && now >= self.asked_at + TOGETHER
            && now + TOGETHER + GRACE < self.asked_at + silence
        {
            self.phase = Phase::Over;
        }
    }

    fn ask(&mut self, phase: Phase, after: Duration, heard: u64, now: Instant) -> Verdict {
        self.phase = phase;
        self.asked_at = now;
        self.heard_by_then = heard;
        Verdict::Ask(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const RTT: Duration = Duration::from_millis(50);

    /// A session, its edge, and a network that forgets after a while.
    struct World {
        now: Instant,
        memory: Memory,
        quiet: Quiet,
        heard: u64,
        /// After so long a silence nothing comes to the client any more.
        forgets_after: Duration,
        edge_lives: bool,
        edge_is_old: bool,
        sent_at: Instant,
        /// When the edge answers.
        answer_at: Option<Instant>,
        asked: Vec<Duration>,
    }

    impl World {
        #[allow(clippy::disallowed_methods)] // any instant will do
        fn new(forgets_after: Duration) -> Self {
            let now = Instant::now();
            Self {
                now,
                memory: Memory::new(AdaptiveKeepAlive::default()),
                quiet: Quiet::new(now),
                heard: 0,
                forgets_after,
                edge_lives: true,
                edge_is_old: false,
                sent_at: now,
                answer_at: None,
                asked: Vec::new(),
            }
        }

        /// Lets time pass; whether the edge is still thought to live.
        fn run(&mut self, time: Duration) -> bool {
            let end = self.now + time;
            loop {
                let verdict = self.quiet.poll(self.heard, RTT, self.now, &self.memory);
                let next = match verdict {
                    Verdict::Dead => return false,
                    Verdict::Wait(at) => at,
                    Verdict::Ask(after) => {
                        self.asked.push(after);
                        self.sent_at = self.now;
                        if self.edge_lives {
                            self.heard += 1; // its acknowledgement
                        }
                        self.answer_at = Some(self.now + after + RTT);
                        continue;
                    }
                };
                let at = self.answer_at.unwrap_or(next).min(next);
                if at > end {
                    self.now = end;
                    return true;
                }
                self.now = at;
                if self.answer_at == Some(at) {
                    self.answer_at = None;
                    let remembered = at - self.sent_at < self.forgets_after + RTT;
                    if self.edge_lives && !self.edge_is_old && remembered {
                        self.heard += 1;
                        self.quiet.on_answer(self.heard, self.now, &mut self.memory);
                    }
                }
            }
        }
    }

    #[test]
    fn the_silence_grows_step_by_step_up_to_the_longest() {
        let mut world = World::new(Duration::MAX / 4);
        assert!(world.run(S * 1_000));
        let asked: Vec<u64> = world.asked.iter().map(Duration::as_secs).collect();
        assert_eq!(asked[..7], [15, 22, 33, 50, 75, 113, 120]);
        assert!(asked[7..].iter().all(|&silence| silence == 120));
    }

    #[test]
    fn what_the_network_forgets_is_not_tried_again() {
        let mut world = World::new(S * 40);
        assert!(world.run(S * 3_600));
        let asked: Vec<u64> = world.asked.iter().map(Duration::as_secs).collect();
        // 50 s were too long; asked at once the edge answered.
        assert_eq!(asked[..6], [15, 22, 33, 50, 0, 33]);
        assert!(asked[5..].iter().all(|&silence| silence == 33));
    }

    #[test]
    fn another_network_that_forgets_sooner_is_found_out() {
        let mut world = World::new(S * 200);
        assert!(world.run(S * 1_000));
        assert_eq!(world.memory.silence(), S * 120);
        world.forgets_after = S * 20;
        assert!(world.run(S * 1_000));
        assert_eq!(world.memory.silence(), S * 15);
        world.forgets_after = S * 2;
        assert!(world.run(S * 1_000));
        assert_eq!(world.memory.silence(), SHORTEST, "and no shorter");
    }

    #[test]
    fn an_edge_that_dies_is_found_after_the_silence_at_the_latest() {
        let mut world = World::new(S * 200);
        assert!(world.run(S * 1_000));
        world.edge_lives = false;
        let died = world.now;
        assert!(!world.run(S * 1_000));
        assert!(world.now - died <= S * 120 + (GRACE + RTT * 2) * 2);
    }

    #[test]
    fn an_older_edge_is_asked_at_the_first_interval() {
        let mut world = World::new(S * 200);
        world.edge_is_old = true;
        assert!(world.run(S * 200));
        assert_eq!(world.asked[0], S * 15);
        assert!(world.asked[1..].iter().all(Duration::is_zero));
        assert!((12..16).contains(&world.asked.len()), "{:?}", world.asked);
        world.edge_lives = false;
        assert!(!world.run(S * 30));
    }

    #[test]
    fn what_was_disturbed_proves_nothing() {
        let mut world = World::new(S * 200);
        assert!(world.run(S * 10));
        // News from the edge: not the session's own traffic, but no silence.
        world.heard += 2;
        assert!(world.run(S * 10));
        assert_eq!(world.asked, [S * 15, S * 15]);
        world.quiet.disturb();
        assert!(world.run(S));
        assert_eq!(world.asked, [S * 15; 3]);
        assert_eq!(world.memory.silence(), S * 15);
    }

    #[test]
    fn sessions_are_asked_together() {
        let mut world = World::new(S * 200);
        assert!(world.run(S));
        let mut join = |after| {
            assert!(world.run(after));
            world.quiet.join(world.now);
            assert!(world.run(Duration::ZERO));
            world.asked.len()
        };
        assert_eq!(join(S), 1, "asked just now");
        assert_eq!(join(S * 4), 2);
        assert_eq!(join(S * 10), 2, "its own answer is near");
    }

    #[test]
    fn bounds_have_bounds() {
        let of = |first, longest| AdaptiveKeepAlive {
            first: S * first,
            longest: S * longest,
        };
        assert!(AdaptiveKeepAlive::default().is_sound());
        for bad in [of(4, 100), of(20, 10), of(15, 141)] {
            assert!(!bad.is_sound(), "{bad:?}");
        }
    }
}
