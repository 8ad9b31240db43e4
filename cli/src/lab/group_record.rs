//! What was sent to the lab's groups, who got it, and what did not hold of what must.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;

use super::{copies::Counts, invariants::Violation, options::GroupOptions};

/// Violations that are told in words; more are only counted.
const MOST_TOLD: usize = 10;

/// A client in one lane of another one's in a group: (receiver, group, sender, lane).
type Line = (usize, usize, usize, u32);

/// All messages and media packets to groups. Clients are those of the groups, by number.
#[derive(Debug, Default)]
pub(super) struct GroupRecord {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By group: its members.
    members: Vec<BTreeSet<usize>>,
    messages: Vec<Sent>,
    latest: HashMap<Line, u32>,
    /// Segments that receivers were told to be lost.
    gaps: HashMap<Line, u64>,
    duplicates: u64,
    reordered: u64,
    /// What came to one that is no member.
    foreign: u64,
    /// From the send to the receiver's application, microseconds of network time.
    took_us: Vec<u32>,
    media_sent: u64,
    media_expected: u64,
    media_deliveries: u64,
}

#[derive(Debug)]
struct Sent {
    group: usize,
    sender: usize,
    lane: u32,
    /// Since the network began.
    at: Duration,
    /// What the sender was told, if anything; an error's name.
    outcome: Option<Result<(), &'static str>>,
    received: BTreeSet<usize>,
}

/// The groups' part of the report's summary.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct GroupSummary {
    pub(crate) groups: u64,
    pub(crate) group_members: u64,
    /// Copies that relays got of messages to groups, one per segment and link.
    pub(crate) copies_sent: u64,
    /// Links in the origin's out-tree to relays with members, in the plan that was stamped.
    pub(crate) copies_minimum: u64,
    /// Segments that these are of.
    pub(crate) copies_counted: u64,
    /// Segments left out on both sides: sent again, deflected, or met by a fault.
    pub(crate) copies_excluded: u64,
    pub(crate) group_messages_sent: u64,
    /// Not confirmed to their senders.
    pub(crate) group_messages_failed: u64,
    /// Of the messages that were confirmed: how often they came to a member, and had to.
    pub(crate) group_deliveries: u64,
    pub(crate) group_deliveries_expected: u64,
    /// Segments that members were told to be lost.
    pub(crate) group_gaps: u64,
    pub(crate) group_duplicates: u64,
    pub(crate) group_reordered: u64,
    /// Questions of members about what they missed.
    pub(crate) group_fetches: u64,
    pub(crate) group_media_sent: u64,
    pub(crate) group_media_deliveries: u64,
    pub(crate) group_media_expected: u64,
    /// From the send to the member's application.
    pub(crate) group_ms_p50: Option<f64>,
    pub(crate) group_ms_p99: Option<f64>,
}

/// What came of the groups.
#[derive(Debug, Clone, Default)]
pub(super) struct GroupOutcome {
    pub(super) summary: GroupSummary,
    pub(super) violations: Vec<Violation>,
}

impl GroupRecord {
    pub(super) fn set_members(&self, members: Vec<BTreeSet<usize>>) {
        self.lock().members = members;
    }

    /// A message is handed to the network. Gives its number.
    pub(super) fn send(&self, group: usize, sender: usize, lane: u32, at: Duration) -> u32 {
        let mut inner = self.lock();
        inner.messages.push(Sent {
            group,
            sender,
            lane,
            at,
            outcome: None,
            received: BTreeSet::new(),
        });
        inner.messages.len() as u32 - 1
    }

    /// The sender was told what became of it.
    pub(super) fn settle(&self, number: u32, outcome: Result<(), &'static str>) {
        self.lock().messages[number as usize].outcome = Some(outcome);
    }

    /// A message has come to a client.
    pub(super) fn receive(&self, receiver: usize, group: usize, number: u32, now: Duration) {
        let mut inner = self.lock();
        let Inner {
            members, messages, ..
        } = &mut *inner;
        let is_member = members
            .get(group)
            .is_some_and(|members| members.contains(&receiver));
        let Some(sent) = messages
            .get_mut(number as usize)
            .filter(|sent| is_member && sent.group == group && sent.sender != receiver)
        else {
            inner.foreign += 1;
            return;
        };
        let took = now.saturating_sub(sent.at).as_micros();
        let line = (receiver, group, sent.sender, sent.lane);
        if !sent.received.insert(receiver) {
            inner.duplicates += 1;
            return;
        }
        let latest = inner.latest.entry(line).or_insert(number);
        let late = number < *latest;
        *latest = number.max(*latest);
        inner.reordered += u64::from(late);
        inner.took_us.push(u32::try_from(took).unwrap_or(u32::MAX));
    }

    /// A client was told that segments are lost.
    pub(super) fn gap(
        &self,
        receiver: usize,
        group: usize,
        sender: usize,
        lane: u32,
        segments: u64,
    ) {
        let mut inner = self.lock();
        *inner
            .gaps
            .entry((receiver, group, sender, lane))
            .or_default() += segments;
    }

    pub(super) fn media_sent(&self, group: usize, sender: usize) {
        let mut inner = self.lock();
        let members = &inner.members[group];
        let others = members.len() - usize::from(members.contains(&sender));
        inner.media_sent += 1;
        inner.media_expected += others as u64;
    }

    pub(super) fn media_received(&self) {
        self.lock().media_deliveries += 1;
    }

    /// Whether nothing more has to come: all that was confirmed is with all members, or told as lost.
    pub(super) fn is_complete(&self) -> bool {
        let inner = self.lock();
        inner.missing().is_empty()
    }

    /// Everything, in the end.
    pub(super) fn outcome(
        &self,
        options: GroupOptions,
        copies: Counts,
        fetches: u64,
        faults: bool,
    ) -> GroupOutcome {
        let inner = self.lock();
        let confirmed = |sent: &&Sent| sent.outcome == Some(Ok(()));
        let failed = inner.messages.iter().filter(|sent| !confirmed(sent));
        let deliveries: usize = inner
            .messages
            .iter()
            .filter(confirmed)
            .map(|sent| sent.received.len())
            .sum();
        let expected: usize = inner
            .messages
            .iter()
            .filter(confirmed)
            .map(|sent| inner.expected(sent).count())
            .sum();
        let mut took: Vec<u32> = inner.took_us.clone();
        took.sort_unstable();
        let quantile = |percent: usize| {
            let rank = (took.len() * percent).div_ceil(100);
            let us = took.get(rank.checked_sub(1)?)?;
            Some(f64::from(*us) / 1_000.0)
        };
        let summary = GroupSummary {
            groups: options.groups as u64,
            group_members: options.members as u64,
            copies_sent: copies.sent,
            copies_minimum: copies.minimum,
            copies_counted: copies.packets,
            copies_excluded: copies.excluded,
            group_messages_sent: inner.messages.len() as u64,
            group_messages_failed: failed.count() as u64,
            group_deliveries: deliveries as u64,
            group_deliveries_expected: expected as u64,
            group_gaps: inner.gaps.values().sum(),
            group_duplicates: inner.duplicates,
            group_reordered: inner.reordered,
            group_fetches: fetches,
            group_media_sent: inner.media_sent,
            group_media_deliveries: inner.media_deliveries,
            group_media_expected: inner.media_expected,
            group_ms_p50: quantile(50),
            group_ms_p99: quantile(99),
        };
        let violations = inner.violations(&summary, faults);
        GroupOutcome {
            summary,
            violations,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn expected(&self, sent: &Sent) -> impl Iterator<Item = usize> {
        let sender = sent.sender;
        let members = self.members[sent.group].iter().copied();
        members.filter(move |member| *member != sender)
    }

    /// By line: how many confirmed messages have not come and were not told as lost either.
    fn missing(&self) -> BTreeMap<Line, u64> {
        let mut missing: BTreeMap<Line, u64> = BTreeMap::new();
        for sent in &self.messages {
            if sent.outcome != Some(Ok(())) {
                continue;
            }
            for member in self.expected(sent) {
                if !sent.received.contains(&member) {
                    let line = (member, sent.group, sent.sender, sent.lane);
                    *missing.entry(line).or_default() += 1;
                }
            }
        }
        for (line, segments) in &self.gaps {
            if let Some(count) = missing.get_mut(line) {
                *count = count.saturating_sub(*segments);
            }
        }
        missing.retain(|_, count| *count > 0);
        missing
    }

    fn violations(&self, summary: &GroupSummary, faults: bool) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut add = |invariant, what| found.push(Violation { invariant, what });
        if summary.copies_sent != summary.copies_minimum {
            add(
                "a message to a group crosses every link once",
                format!(
                    "{} copies were sent; {} are needed",
                    summary.copies_sent, summary.copies_minimum
                ),
            );
        }
        if !faults && summary.copies_counted == 0 && summary.copies_excluded > 0 {
            add(
                "where nothing fails copies can be counted",
                format!("{} segments were left out", summary.copies_excluded),
            );
        }
        let missing = self.missing();
        for ((receiver, group, sender, lane), count) in missing.iter().take(MOST_TOLD) {
            add(
                "a member gets every message, or is told of a gap",
                format!(
                    "client {receiver} in group {group}: {count} messages of client {sender} in lane {lane} are missing"
                ),
            );
        }
        if missing.len() > MOST_TOLD {
            add(
                "a member gets every message, or is told of a gap",
                format!("the same in {} more lanes", missing.len() - MOST_TOLD),
            );
        }
        if !faults && summary.group_gaps > 0 {
            add(
                "where nothing fails there are no gaps",
                format!("{} segments were told as lost", summary.group_gaps),
            );
        }
        if summary.group_duplicates + summary.group_reordered + self.foreign > 0 {
            add(
                "a member gets every message once, in order, and nobody else does",
                format!(
                    "{} doubled, {} out of order, {} at clients that are no members",
                    summary.group_duplicates, summary.group_reordered, self.foreign
                ),
            );
        }
        let untold = self.messages.iter().filter(|sent| sent.outcome.is_none());
        let untold = untold.count();
        if untold > 0 {
            add(
                "every send has an outcome",
                format!("{untold} messages to groups have none"),
            );
        }
        let mut failures: BTreeMap<&str, u64> = BTreeMap::new();
        for sent in &self.messages {
            if let Some(Err(reason)) = sent.outcome {
                *failures.entry(reason).or_default() += 1;
            }
        }
        if !faults && !failures.is_empty() {
            add(
                "where nothing fails every message to a group is confirmed",
                format!("{failures:?}"),
            );
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: GroupOptions = GroupOptions {
        groups: 1,
        members: 3,
    };
    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn record() -> GroupRecord {
        let record = GroupRecord::default();
        record.set_members(vec![[0, 1, 2].into()]);
        record
    }

    fn outcome(record: &GroupRecord, faults: bool) -> GroupOutcome {
        record.outcome(OPTIONS, Counts::default(), 0, faults)
    }

    #[test]
    fn what_is_confirmed_must_come_to_all_members_but_the_sender() {
        let record = record();
        let first = record.send(0, 0, 0, MS(5));
        let second = record.send(0, 0, 0, MS(6));
        record.settle(first, Ok(()));
        record.settle(second, Err("expired"));
        record.receive(1, 0, first, MS(45));
        assert!(!record.is_complete());
        let missing = outcome(&record, true);
        assert_eq!(missing.violations.len(), 1, "{:?}", missing.violations);
        record.receive(2, 0, first, MS(25));
        assert!(record.is_complete());
        let whole = outcome(&record, true);
        assert!(whole.violations.is_empty());
        let summary = whole.summary;
        assert_eq!(
            (summary.group_deliveries, summary.group_deliveries_expected),
            (2, 2)
        );
        assert_eq!(summary.group_messages_failed, 1);
        assert_eq!(summary.group_ms_p99, Some(40.0));
        // Without a fault nothing may fail.
        assert_eq!(outcome(&record, false).violations.len(), 1);
    }

    #[test]
    fn a_gap_that_was_told_is_a_violation_only_where_nothing_fails() {
        let record = record();
        let sent = record.send(0, 0, 0, MS(0));
        record.settle(sent, Ok(()));
        record.receive(1, 0, sent, MS(1));
        record.gap(2, 0, 0, 0, 1);
        assert!(outcome(&record, true).violations.is_empty());
        assert_eq!(outcome(&record, true).summary.group_gaps, 1);
        assert_eq!(outcome(&record, false).violations.len(), 1);
    }

    #[test]
    fn doubled_messages_those_out_of_order_and_those_of_others_are_seen() {
        let record = record();
        let numbers: Vec<u32> = (0..3).map(|_| record.send(0, 0, 0, MS(0))).collect();
        for &number in &numbers {
            record.settle(number, Ok(()));
            record.receive(2, 0, number, MS(1));
        }
        for number in [0, 2, 1, 1] {
            record.receive(1, 0, number, MS(1));
        }
        record.receive(7, 0, 0, MS(1));
        record.receive(0, 0, 0, MS(1));
        let outcome = outcome(&record, true);
        let summary = outcome.summary;
        assert_eq!((summary.group_duplicates, summary.group_reordered), (1, 1));
        assert_eq!(outcome.violations.len(), 1);
        assert!(outcome.violations[0].what.contains("2 at clients"));
    }

    #[test]
    fn more_copies_than_needed_are_too_many() {
        let counts = Counts {
            sent: 5,
            minimum: 4,
            ..Counts::default()
        };
        let outcome = record().outcome(OPTIONS, counts, 0, false);
        assert_eq!(outcome.violations.len(), 1);
    }
}
