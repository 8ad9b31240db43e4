//! Every message between the users of a lab under chaos: what became of it at both ends, and what
//! may become of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    faults::FaultKind,
    ground::{Applied, Ground},
    invariants::Violation,
    users::{User, UserSend},
};

/// A user that sleeps for less is away without anybody noticing.
const NOTICED: Duration = Duration::from_secs(2);
/// So long after it has woken up (or moved) at the latest a user can be reached again.
const BACK: Duration = Duration::from_secs(4);
/// A message is delivered once both ends can be reached for so long at a stretch, within its time to
/// live.
const TOGETHER: Duration = Duration::from_secs(6);
/// Of a message that is tried for a shorter time than that, nothing is asked when anything was wrong
/// with the network while it was tried, or so long before.
const SETTLING: Duration = Duration::from_secs(6);
/// Messages that are told in words; more are only counted.
const MOST_TOLD: usize = 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Letter {
    from: usize,
    to: usize,
    lane: u32,
    bytes: usize,
    ttl: Duration,
    /// Since measuring began, as all times here.
    sent: Duration,
    outcome: Option<Outcome>,
    received: u32,
}

/// What the sender was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    at: Duration,
    /// `None`: it was delivered.
    failed: Option<&'static str>,
}

/// A message as its receiver has seen it.
pub(super) struct Seen<'a> {
    /// Name of the sender, as the network says.
    pub(super) from: &'a str,
    pub(super) to: usize,
    pub(super) lane: u32,
    pub(super) bytes: usize,
    /// The contents are those that were sent.
    pub(super) whole: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Ledger {
    names: Vec<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By number.
    letters: Vec<Letter>,
    /// The latest message that came, by sender, receiver and lane.
    latest: HashMap<(usize, usize, u32), u32>,
    duplicates: u64,
    reordered: u64,
    /// What came but was never sent so.
    foreign: u64,
}

/// Sums over all messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) sent: u64,
    /// Both ends say so.
    pub(super) delivered: u64,
    /// By reason.
    pub(super) failed: BTreeMap<&'static str, u64>,
    /// Neither: the sender was told nothing, or that it was delivered though it never came.
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    pub(super) reordered: u64,
}

impl Ledger {
    pub(super) fn new(users: &[User]) -> Self {
        Self {
            names: users.iter().map(|user| user.name.clone()).collect(),
            inner: Mutex::default(),
        }
    }

    pub(super) fn name(&self, user: usize) -> &str {
        &self.names[user]
    }

    /// A message is handed to the network. Gives its number.
    pub(super) fn send(&self, from: usize, send: &UserSend, now: Duration) -> u32 {
        let mut inner = self.lock();
        inner.letters.push(Letter {
            from,
            to: send.to,
            lane: send.lane,
            bytes: send.bytes,
            ttl: send.ttl,
            sent: now,
            outcome: None,
            received: 0,
        });
        inner.letters.len() as u32 - 1
    }

    /// The sender is told an outcome: why it failed, if it did.
    pub(super) fn settle(&self, number: u32, failed: Option<&'static str>, now: Duration) {
        if let Some(letter) = self.lock().letters.get_mut(number as usize) {
            letter.outcome = Some(Outcome { at: now, failed });
        }
    }

    /// A message comes to its receiver.
    pub(super) fn receive(&self, number: u32, seen: &Seen<'_>) {
        let inner = &mut *self.lock();
        let sent = inner.letters.get_mut(number as usize).filter(|letter| {
            self.names[letter.from] == seen.from
                && (letter.to, letter.lane, letter.bytes) == (seen.to, seen.lane, seen.bytes)
        });
        let Some(letter) = sent.filter(|_| seen.whole) else {
            inner.foreign += 1;
            return;
        };
        letter.received += 1;
        let lane = (letter.from, letter.to, letter.lane);
        if letter.received > 1 {
            inner.duplicates += 1;
        } else if let Some(before) = inner.latest.insert(lane, number)
            && before > number
        {
            inner.reordered += 1;
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let inner = self.lock();
        let mut counts = Counts {
            sent: inner.letters.len() as u64,
            duplicates: inner.duplicates,
            reordered: inner.reordered,
            ..Counts::default()
        };
        for letter in &inner.letters {
            match letter.outcome {
                Some(Outcome { failed: None, .. }) if letter.received > 0 => counts.delivered += 1,
                Some(Outcome {
                    failed: Some(reason),
                    ..
                }) => *counts.failed.entry(reason).or_default() += 1,
                _ => counts.lost += 1,
            }
        }
        counts
    }

    /// What did not hold of what must: every message ends as delivered, once and in order, or as a
    /// named failure; and it fails only if one of the ends was away.
    pub(super) fn check(&self, ground: &Ground, applied: &[Applied]) -> Vec<Violation> {
        let inner = self.lock();
        let mut found = Vec::new();
        let unusual = [
            (inner.duplicates, "came twice"),
            (inner.reordered, "came after later ones of their lane"),
            (inner.foreign, "came though nobody sent them so"),
        ];
        for (count, what) in unusual.into_iter().filter(|(count, _)| *count > 0) {
            found.push(Violation {
                invariant: "every message is delivered once at most, and in order",
                what: format!("{count} messages between users {what}"),
            });
        }
        let doings = Doings { ground, applied };
        let wrong: Vec<String> = (inner.letters.iter().enumerate())
            .filter_map(|(number, letter)| {
                let why = doings.wrong(letter)?;
                let (from, to) = (&self.names[letter.from], &self.names[letter.to]);
                Some(format!(
                    "message {number} from {from} to {to} in lane {} with {:?} to live, sent at {:?}: {why} ({})",
                    letter.lane,
                    letter.ttl,
                    letter.sent,
                    doings.of(letter),
                ))
            })
            .collect();
        let more = wrong.len().saturating_sub(MOST_TOLD);
        let told = wrong.into_iter().take(MOST_TOLD);
        found.extend(told.map(|what| Violation {
            invariant: "every message is delivered or has a named outcome, and fails for a reason only",
            what,
        }));
        if more > 0 {
            found.push(Violation {
                invariant: "every message is delivered or has a named outcome, and fails for a reason only",
                what: format!("and {more} more messages"),
            });
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was done to the users and to the network.
struct Doings<'a> {
    ground: &'a Ground,
    applied: &'a [Applied],
}

impl Doings<'_> {
    /// What is wrong with how a message ended, if anything is.
    fn wrong(&self, letter: &Letter) -> Option<String> {
        let Some(Outcome { at, failed }) = letter.outcome else {
            return Some("it has no outcome".to_owned());
        };
        let Some(reason) = failed else {
            let lost = letter.received == 0;
            return lost.then(|| format!("confirmed at {at:?}, but it never came"));
        };
        let excused = match reason {
            "offline" => self.asleep(letter.to).any(|(from, to)| {
                from + NOTICED <= at && from + NOTICED < to && letter.sent <= to + BACK
            }),
            "expired" if letter.ttl < TOGETHER => {
                let before = letter.sent.saturating_sub(SETTLING);
                !self.ground.is_whole(before, at)
                    || self.together(letter, at) < at - letter.sent
                    || self.have_moved(letter, at)
            }
            "expired" => self.together(letter, at) < TOGETHER,
            _ => false,
        };
        (!excused).then(|| format!("{reason} at {at:?} without a reason"))
    }

    /// When a user slept: from, to.
    fn asleep(&self, user: usize) -> impl Iterator<Item = (Duration, Duration)> + '_ {
        self.applied.iter().filter_map(move |applied| {
            let at = applied.at;
            match applied.what {
                FaultKind::Sleep(who, by) if who == user => Some((at, at + by)),
                _ => None,
            }
        })
    }

    /// Whether one of a message's ends moved until `end`, or shortly before it was sent.
    fn have_moved(&self, letter: &Letter, end: Duration) -> bool {
        self.applied.iter().any(|applied| {
            let at = applied.at;
            matches!(applied.what, FaultKind::Roam(who, ..) if [letter.from, letter.to].contains(&who))
                && at <= end
                && letter.sent <= at + BACK
        })
    }

    /// The longest time at a stretch, from a message's send until `end`, in which both of its ends
    /// could be reached.
    fn together(&self, letter: &Letter, end: Duration) -> Duration {
        let mut away: Vec<(Duration, Duration)> = [letter.from, letter.to]
            .into_iter()
            .flat_map(|user| self.asleep(user))
            .collect();
        away.sort_unstable();
        let (mut longest, mut since) = (Duration::ZERO, letter.sent);
        for (from, to) in away {
            longest = longest.max(from.min(end).saturating_sub(since));
            since = since.max(to + BACK);
        }
        longest.max(end.saturating_sub(since))
    }

    /// What happened to a message's ends, in words.
    fn of(&self, letter: &Letter) -> String {
        let ends = [("the sender", letter.from), ("the receiver", letter.to)];
        let words: Vec<String> = (self.applied.iter())
            .filter_map(|applied| {
                let (user, what) = match applied.what {
                    FaultKind::Sleep(user, by) => (user, format!("slept for {by:?}")),
                    FaultKind::Roam(user, ..) => (user, "moved".to_owned()),
                    _ => return None,
                };
                let (end, _) = ends.iter().find(|(_, end)| *end == user)?;
                Some(format!("at {:?} {end} {what}", applied.at))
            })
            .collect();
        if words.is_empty() {
            "both ends stayed where they were".to_owned()
        } else {
            words.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use tradewind_routing::RttMatrix;

    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn ledger() -> Ledger {
        let user = |name: &str| User {
            name: name.to_owned(),
            place: 0,
            access: Duration::ZERO,
        };
        Ledger::new(&[user("alice"), user("bob"), user("carol")])
    }

    fn send(ledger: &Ledger, at: u64, ttl: u64) -> u32 {
        let send = UserSend {
            at: S(at),
            to: 1,
            lane: 0,
            bytes: 20,
            ttl: S(ttl),
        };
        ledger.send(0, &send, S(at))
    }

    fn receive(ledger: &Ledger, number: u32) {
        ledger.receive(number, &seen());
    }

    fn seen() -> Seen<'static> {
        Seen {
            from: "alice",
            to: 1,
            lane: 0,
            bytes: 20,
            whole: true,
        }
    }

    fn check(ledger: &Ledger, applied: &[(u64, FaultKind)]) -> Vec<String> {
        let matrix = RttMatrix::parse("x,a,b\na,0,10\nb,10,0\n").unwrap();
        let applied: Vec<Applied> = applied
            .iter()
            .map(|&(at, what)| Applied { at: S(at), what })
            .collect();
        let ground = Ground::new(&matrix, &applied);
        let found = ledger.check(&ground, &applied);
        found.into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn each_message_is_counted_once_and_what_nobody_knows_of_is_lost() {
        let ledger = ledger();
        for _ in 0..5 {
            send(&ledger, 1, 30);
        }
        for number in [0, 1] {
            receive(&ledger, number);
            ledger.settle(number, None, S(2));
        }
        // Told to be delivered, but it never came; expired, though it did come; nothing told.
        ledger.settle(2, None, S(2));
        receive(&ledger, 3);
        ledger.settle(3, Some("expired"), S(31));
        let counts = ledger.counts();
        assert_eq!((counts.sent, counts.delivered, counts.lost), (5, 2, 2));
        assert_eq!(counts.failed, [("expired", 1)].into());
        assert_eq!((counts.duplicates, counts.reordered), (0, 0));
        let found = check(&ledger, &[(3, FaultKind::Sleep(1, S(60)))]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("never came") && found[1].contains("no outcome"));
    }

    #[test]
    fn messages_that_come_twice_late_or_changed_are_noticed() {
        let ledger = ledger();
        for number in 0..4 {
            send(&ledger, 1, 30);
            ledger.settle(number, None, S(2));
        }
        for number in [1, 0, 0, 2, 3] {
            receive(&ledger, number);
        }
        let counts = ledger.counts();
        assert_eq!((counts.duplicates, counts.reordered), (1, 1));
        let wrongs = [
            Seen {
                from: "carol",
                ..seen()
            },
            Seen { to: 2, ..seen() },
            Seen { lane: 1, ..seen() },
            Seen {
                bytes: 21,
                ..seen()
            },
            Seen {
                whole: false,
                ..seen()
            },
        ];
        for wrong in &wrongs {
            ledger.receive(2, wrong);
        }
        ledger.receive(9, &seen());
        let found = check(&ledger, &[]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[2].starts_with("6 messages"), "{}", found[2]);
    }

    #[test]
    fn a_message_may_fail_only_while_one_of_its_ends_is_away() {
        let ended = |reason, at: u64, ttl, applied: &[(u64, FaultKind)]| {
            let ledger = ledger();
            let number = send(&ledger, 5, ttl);
            ledger.settle(number, Some(reason), S(at));
            check(&ledger, applied).len()
        };
        let sleep = |at, user, by| [(at, FaultKind::Sleep(user, S(by)))];
        assert_eq!(ended("expired", 35, 30, &[]), 1);
        assert_eq!(ended("expired", 35, 30, &sleep(6, 1, 60)), 0);
        assert_eq!(ended("expired", 35, 30, &sleep(6, 0, 60)), 0);
        // Of no concern to it, or over soon enough, or too late.
        assert_eq!(ended("expired", 35, 30, &sleep(6, 2, 60)), 1);
        assert_eq!(ended("expired", 35, 30, &sleep(6, 1, 10)), 1);
        assert_eq!(ended("expired", 35, 30, &sleep(16, 1, 60)), 1);
        let roam = [(6, FaultKind::Roam(1, 0, Duration::ZERO))];
        assert_eq!(ended("expired", 35, 30, &roam), 1);
        assert_eq!(ended("offline", 7, 30, &roam), 1);
        assert_eq!(ended("offline", 12, 30, &sleep(6, 1, 60)), 0);
        assert_eq!(ended("offline", 12, 30, &sleep(6, 0, 60)), 1);
        assert_eq!(
            ended("offline", 7, 30, &sleep(6, 1, 60)),
            1,
            "nobody can know yet"
        );
        assert_eq!(ended("denied", 12, 30, &sleep(6, 1, 60)), 1);
        // One that is soon worth nothing, while something is wrong, or nothing is.
        assert_eq!(ended("expired", 7, 2, &[(6, FaultKind::Cut(0, 1))]), 0);
        assert_eq!(ended("expired", 7, 2, &sleep(6, 1, 1)), 0);
        assert_eq!(ended("expired", 7, 2, &roam), 0);
        assert_eq!(ended("expired", 7, 2, &[(8, FaultKind::Cut(0, 1))]), 1);
        assert_eq!(ended("expired", 7, 2, &[]), 1);
    }
}
