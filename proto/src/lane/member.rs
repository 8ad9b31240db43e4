//! A group member's end of a lane.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{Data, ReceiveConfig, ReceiveLane, Received, Skip};
use crate::MAX_SEGMENT;

/// How long a segment may be missing before it is asked for: most come late by themselves.
pub const MISSING_FOR: Duration = Duration::from_millis(300);
/// How long the edge may take to answer before it is asked again: it may have to ask another one.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest pause between two questions.
const MOST_PAUSE: Duration = Duration::from_secs(4);
/// Questions in a row that may be without effect, until what is missing counts as lost.
const MOST_TRIES: u32 = 6;
/// Most segments asked for at once.
const MOST_FETCHED: u64 = 256;
/// Most ranges of lost segments remembered beyond the next one.
const MOST_LOST: usize = 64;
/// Most gaps that wait to be told; beyond it they are told as one.
const MOST_GAPS: usize = 64;

/// What a member gets of a lane, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// A message.
    Message(Received),
    /// So many segments were passed over, as nobody holds them any more.
    Gap(u64),
}

/// Segments to be asked for with `FetchGroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// The first.
    pub from: u64,
    /// The last; `u64::MAX` is the newest there is.
    pub to: u64,
}

/// What an edge has answered to a [`Fetch`], as `GroupFetched` says.
#[derive(Debug, Clone, Copy)]
pub struct Fetched<'a> {
    /// The first segment that was asked for.
    pub from: u64,
    /// The last there is, or that was asked for.
    pub to: u64,
    /// Pairs of first and last: what nobody holds any more.
    pub missing: &'a [u64],
    /// The sender's edge did not answer.
    pub unreachable: bool,
    /// The edge did not take the question.
    pub busy: bool,
}

/// A group member's end of a lane: as a [`ReceiveLane`] it puts messages together, orders them and
/// removes duplicates; but it acknowledges nothing, and does not go on at the sender's base, which
/// says what is settled for the edges, not for this member. What stays missing it asks its edge for,
/// and passes over, as a gap, what nobody holds any more.
#[derive(Debug)]
pub struct MemberLane {
    inner: ReceiveLane,
    max_message: u64,
    /// The sequence after the last segment that is known to exist.
    end: u64,
    /// Segments beyond the next that will never come: first, and the one after the last.
    lost: BTreeMap<u64, u64>,
    /// Losses before this one are nothing to be told.
    told_from: u64,
    /// Gaps to be told, each with the number of messages that go before it.
    gaps: VecDeque<(u64, u64)>,
    /// Messages taken so far.
    taken: u64,
    asking: Asking,
    /// The last segment asked for.
    asked_to: u64,
    /// Questions in a row without effect, …
    tries: u32,
    /// … since this segment was the next.
    stuck_at: u64,
    /// Whether to ask for the newest segment as well.
    ask_newest: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// Nothing is missing.
    No,
    /// To be asked then.
    At(Instant),
    /// Asked; to be asked again then.
    Open(Instant),
}

impl MemberLane {
    /// A lane that begins at `next`. Losses before `told_from` are passed over without a word: they
    /// may be older than the membership.
    #[must_use]
    pub fn new(config: ReceiveConfig, sender: u64, lane: u32, next: u64, told_from: u64) -> Self {
        Self {
            // Nobody is told the receiver instance, as nothing is acknowledged.
            inner: ReceiveLane::new(config, 0, sender, lane, next),
            max_message: config.max_message,
            end: next,
            lost: BTreeMap::new(),
            told_from,
            gaps: VecDeque::new(),
            taken: 0,
            asking: Asking::No,
            asked_to: 0,
            tries: 0,
            stuck_at: next,
            ask_newest: false,
        }
    }

    /// A DATA frame has come; `age` is that of its packet.
    pub fn on_data(&mut self, data: Data, age: Duration, now: Instant) {
        self.end = self.end.max(data.sequence + 1);
        // Nobody hears a refusal.
        if let Some(total) = data
            .total
            .filter(|total| u64::from(*total) > self.max_message)
        {
            let segments = u64::from(total).div_ceil(MAX_SEGMENT as u64);
            self.lose(data.sequence, data.sequence.saturating_add(segments));
        } else {
            self.inner.on_data(Data { base: 0, ..data }, age, now);
        }
        self.settle(now);
    }

    /// A SKIP frame has come.
    pub fn on_skip(&mut self, skip: &Skip, now: Instant) {
        self.end = self.end.max(skip.base);
        self.settle(now);
    }

    /// The edge says what is the newest segment that it holds.
    pub fn on_newest(&mut self, newest: u64, now: Instant) {
        self.end = self.end.max(newest.saturating_add(1));
        self.settle(now);
    }

    /// A question was answered. What is not missing has been sent, and may come before this or after.
    pub fn on_fetched(&mut self, fetched: &Fetched<'_>, now: Instant) {
        if !matches!(self.asking, Asking::Open(_)) {
            return;
        }
        let (from, to) = (fetched.from, fetched.to.min(self.asked_to));
        if fetched.busy {
            // It was none.
            self.tries = self.tries.saturating_sub(1);
        }
        self.asking = Asking::At(now + self.pause());
        if fetched.busy || fetched.unreachable {
            // The sender may be on its way to another edge; and then it sends again.
            return self.settle(now);
        }
        self.ask_newest = false;
        if to < from {
            // Known to exist, and held by nobody.
            self.lose(from, self.hole_end());
        } else {
            self.end = self.end.max(to.saturating_add(1));
            for pair in fetched.missing.as_chunks::<2>().0 {
                self.lose(pair[0].max(from), pair[1].min(to).saturating_add(1));
            }
        }
        self.settle(now);
    }

    /// The session with the edge is over: questions will not be answered.
    pub fn suspend(&mut self) {
        self.asking = Asking::No;
    }

    /// The client is a member again, at another edge: whatever was sent meanwhile is to be asked for.
    pub fn resume(&mut self, now: Instant) {
        self.ask_newest = true;
        self.tries = 0;
        self.asking = Asking::At(now);
    }

    /// The next message or gap.
    pub fn take(&mut self, now: Instant) -> Option<Taken> {
        if let Some(&(before, segments)) = self.gaps.front()
            && before <= self.taken
        {
            self.gaps.pop_front();
            return Some(Taken::Gap(segments));
        }
        let received = self.inner.take(now)?;
        self.taken += 1;
        Some(Taken::Message(received))
    }

    /// Whether there is something to be taken.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.inner.has_ready() || !self.gaps.is_empty()
    }

    /// What is due to be asked for, if anything.
    pub fn poll_fetch(&mut self, now: Instant) -> Option<Fetch> {
        let (Asking::At(at) | Asking::Open(at)) = self.asking else {
            return None;
        };
        if at > now || !self.inner.has_room() {
            return None;
        }
        if self.tries >= MOST_TRIES {
            self.ask_newest = false;
            self.asking = Asking::No;
            self.lose(self.inner.next(), self.hole_end());
            self.settle(now);
            return None;
        }
        self.tries += 1;
        self.stuck_at = self.inner.next();
        self.asking = Asking::Open(now + ANSWER_WITHIN);
        let from = self.inner.next();
        self.asked_to = if self.ask_newest {
            u64::MAX
        } else {
            (self.hole_end() - 1).min(from.saturating_add(MOST_FETCHED - 1))
        };
        Some(Fetch {
            from,
            to: self.asked_to,
        })
    }

    /// When [`poll_fetch`](Self::poll_fetch) is to be called, if nothing else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.asking {
            Asking::At(at) | Asking::Open(at) if self.inner.has_room() => Some(at),
            _ => None,
        }
    }

    /// Whether nothing is missing, kept, or to be told.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.asking == Asking::No && self.inner.kept_bytes() == 0 && !self.has_ready()
    }

    /// Segments that came again and were removed, so far.
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.inner.duplicates()
    }

    /// The sequence after the segments missing from the next one on.
    fn hole_end(&self) -> u64 {
        self.inner.first_held().unwrap_or(self.end)
    }

    /// The pause before the next question: ever longer while they have no effect.
    fn pause(&self) -> Duration {
        let doublings = self.tries.saturating_sub(1).min(8);
        (MISSING_FOR * (1 << doublings)).min(MOST_PAUSE)
    }

    /// Segments from `first` to before `end` will never come.
    fn lose(&mut self, first: u64, end: u64) {
        if first >= end || end <= self.inner.next() {
            return;
        }
        let known = self.lost.entry(first).or_default();
        *known = end.max(*known);
        if self.lost.len() > MOST_LOST {
            // They will be asked for again.
            self.lost.pop_last();
        }
    }

    /// Passes over what is lost, and decides whether something must be asked for.
    fn settle(&mut self, now: Instant) {
        while let Some((&first, &end)) = self.lost.first_key_value() {
            let next = self.inner.next();
            if end <= next {
                self.lost.pop_first();
                continue;
            }
            if first > next {
                break;
            }
            // A segment may have come all the same.
            let to = end.min(self.inner.first_held().unwrap_or(u64::MAX));
            let before = self.taken + self.inner.ready() as u64;
            self.inner.advance_to(to, now);
            self.end = self.end.max(to);
            self.note_gap(before, to.saturating_sub(next.max(self.told_from)));
        }
        let next = self.inner.next();
        let went_on = next > self.stuck_at;
        if went_on {
            self.tries = 0;
            self.stuck_at = next;
        }
        let missing = next < self.end || self.ask_newest;
        self.asking = match self.asking {
            _ if !missing => Asking::No,
            Asking::No => Asking::At(now + MISSING_FOR),
            // All of what was asked for is here: the rest is missing for as long.
            Asking::At(_)
                if went_on && self.tries == 0 && next > self.asked_to && self.asked_to > 0 =>
            {
                self.asked_to = 0;
                Asking::At(now)
            }
            // It came late by itself, and what is missing now is another one.
            Asking::At(at) if went_on && !self.ask_newest => Asking::At(at.max(now + MISSING_FOR)),
            // Over a thin line the answer takes its time: what comes shows that it is under way.
            Asking::Open(at) if went_on => Asking::Open(at.max(now + ANSWER_WITHIN)),
            asking => asking,
        };
    }

    fn note_gap(&mut self, before: u64, segments: u64) {
        if segments == 0 {
            return;
        }
        let full = self.gaps.len() >= MOST_GAPS;
        match self.gaps.back_mut() {
            Some((last, known)) if *last == before || full => *known += segments,
            _ => self.gaps.push_back((before, segments)),
        }
    }
}
