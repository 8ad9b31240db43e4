//! A group's directory entry at one of its homes: which relays have members, and which edges cache
//! that.
//!
//! An announcement is confirmed when every edge that caches the entry has confirmed the change or its
//! lease has ended, so that whoever sends from then on sends to the new relay too. Edges and homes
//! meet in majorities, see [`super::RelayCache`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tradewind_proto::{GroupKey, RelayIndex, packet::RelaySet};

use super::{CACHE_LEASE, GroupId, LEASE};

/// Groups that a home remembers; beyond it new ones are not taken.
const MAX_GROUPS: usize = 1_000_000;
/// Announcements that wait for edges at a time.
const MAX_PENDING: usize = 10_000;
/// How often an edge is told of the same change.
const REPEAT: Duration = Duration::from_millis(400);

/// The groups of which this relay is a home.
#[derive(Debug)]
pub(crate) struct Home {
    groups: FxHashMap<GroupKey, Entry>,
    /// When to look at a group again; one entry for each group.
    due: BTreeSet<(Instant, GroupKey)>,
    /// Confirmations waited for, by the id of the message.
    changes: BTreeMap<u64, (RelayIndex, GroupKey, u64)>,
    pending: Vec<Pending>,
    /// Versions count on over restarts, as they begin with the time.
    version: u64,
    next_id: u64,
}

#[derive(Debug)]
struct Entry {
    id: GroupId,
    version: u64,
    members: BTreeMap<RelayIndex, Member>,
    edges: BTreeMap<RelayIndex, Edge>,
    due: Instant,
}

/// A relay that has members.
#[derive(Debug)]
struct Member {
    until: Instant,
    /// The version that it came with.
    since: u64,
    /// Id of its latest announcement: a withdrawal from before means nothing.
    announced: u64,
}

/// An edge that caches the entry.
#[derive(Debug)]
struct Edge {
    until: Instant,
    /// The version that it is known to use at least.
    confirmed: u64,
}

/// An announcement that is not confirmed yet.
#[derive(Debug)]
struct Pending {
    from: RelayIndex,
    id: u64,
    groups: Vec<GroupKey>,
    until: Instant,
}

/// What a home has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HomeAction {
    /// The announcement `id` holds.
    Announced { to: RelayIndex, id: u64 },
    /// The relays with members are these now; to be confirmed.
    Changed {
        to: RelayIndex,
        id: u64,
        group: GroupId,
        relays: RelaySet,
        version: u64,
    },
}

impl Home {
    /// An empty one. `wall_us` is the time of day, microseconds: versions begin with it.
    pub(crate) fn new(wall_us: u64) -> Self {
        Self {
            groups: FxHashMap::default(),
            due: BTreeSet::new(),
            changes: BTreeMap::new(),
            pending: Vec::new(),
            version: wall_us,
            next_id: 0,
        }
    }

    /// An edge announces that these groups have members at it.
    pub(crate) fn announce(
        &mut self,
        from: RelayIndex,
        id: u64,
        groups: Vec<GroupId>,
        lease: Duration,
        now: Instant,
        actions: &mut Vec<HomeAction>,
    ) {
        let until = now + lease.min(LEASE);
        let mut keys = Vec::with_capacity(groups.len());
        for group in groups {
            let key = group.key();
            let Some(entry) = self.entry(key, group, now) else {
                return; // no room: the edge asks again
            };
            keys.push(key);
            if let Some(member) = entry.members.get_mut(&from)
                && member.until > now
            {
                member.until = until;
                member.announced = member.announced.max(id);
                continue;
            }
            let version = self.version + 1;
            self.version = version;
            if let Some(entry) = self.groups.get_mut(&key) {
                entry.version = version;
                let member = Member {
                    until,
                    since: version,
                    announced: id,
                };
                entry.members.insert(from, member);
            }
            self.tell_edges(key, now, actions);
        }
        if self.holds_everywhere(from, &keys, now) {
            actions.push(HomeAction::Announced { to: from, id });
            return;
        }
        self.pending
            .retain(|pending| (pending.from, pending.id) != (from, id));
        if self.pending.len() < MAX_PENDING {
            self.pending.push(Pending {
                from,
                id,
                groups: keys,
                until: now + CACHE_LEASE + REPEAT,
            });
        }
    }

    /// The last member at an edge has gone.
    pub(crate) fn withdraw(
        &mut self,
        from: RelayIndex,
        id: u64,
        group: &GroupId,
        now: Instant,
        actions: &mut Vec<HomeAction>,
    ) {
        let key = group.key();
        let Some(entry) = self.groups.get_mut(&key) else {
            return;
        };
        if entry
            .members
            .get(&from)
            .is_none_or(|member| member.announced > id)
        {
            return;
        }
        entry.members.remove(&from);
        self.version += 1;
        entry.version = self.version;
        self.tell_edges(key, now, actions);
    }

    /// An edge asks which relays have members, and is told of changes from now on. Gives them, and the
    /// version.
    pub(crate) fn look_up(
        &mut self,
        from: RelayIndex,
        group: GroupId,
        now: Instant,
    ) -> Option<(RelaySet, u64)> {
        let key = group.key();
        self.entry(key, group, now)?;
        let entry = self.groups.get_mut(&key)?;
        let version = entry.version;
        let edge = entry.edges.entry(from).or_insert(Edge {
            until: now,
            confirmed: version,
        });
        if edge.until <= now {
            // It uses nothing that it was told before.
            edge.confirmed = version;
        }
        edge.until = now + CACHE_LEASE;
        Some((entry.relays(now), version))
    }

    /// An edge uses what the message `id` told it.
    pub(crate) fn confirmed(
        &mut self,
        from: RelayIndex,
        id: u64,
        now: Instant,
        actions: &mut Vec<HomeAction>,
    ) {
        let Some(&(edge, key, version)) = self.changes.get(&id).filter(|change| change.0 == from)
        else {
            return;
        };
        self.changes.remove(&id);
        if let Some(edge) = self
            .groups
            .get_mut(&key)
            .and_then(|e| e.edges.get_mut(&edge))
        {
            edge.confirmed = edge.confirmed.max(version);
        }
        self.settle(now, actions);
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant, actions: &mut Vec<HomeAction>) {
        while let Some(&(due, key)) = self.due.first()
            && due <= now
        {
            self.due.pop_first();
            self.look_at(key, now, actions);
        }
        self.settle(now, actions);
        if self.changes.len() > 4 * MAX_PENDING {
            self.changes.clear(); // edges are told again
        }
    }

    /// When [`tick`](Self::tick) must be called, if nothing else happens.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let pending = self.pending.iter().map(|pending| pending.until).min();
        let due = self.due.first().map(|(due, _)| *due);
        pending.into_iter().chain(due).min()
    }

    /// Groups in it.
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    fn entry(&mut self, key: GroupKey, id: GroupId, now: Instant) -> Option<&mut Entry> {
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&key) {
            return None;
        }
        let entry = self.groups.entry(key).or_insert_with(|| {
            let due = now + CACHE_LEASE;
            self.due.insert((due, key));
            Entry {
                id: id.clone(),
                version: self.version,
                members: BTreeMap::new(),
                edges: BTreeMap::new(),
                due,
            }
        });
        // Two groups with one key: the first one stays.
        (entry.id == id).then_some(entry)
    }

    /// Ends leases, tells edges again that have not confirmed, and forgets the group when nothing is
    /// left of it.
    fn look_at(&mut self, key: GroupKey, now: Instant, actions: &mut Vec<HomeAction>) {
        let Some(entry) = self.groups.get_mut(&key) else {
            return;
        };
        let before = entry.members.len();
        entry.members.retain(|_, member| member.until > now);
        entry.edges.retain(|_, edge| edge.until > now);
        if entry.members.is_empty() && entry.edges.is_empty() {
            self.groups.remove(&key);
            return;
        }
        if entry.members.len() < before {
            self.version += 1;
            entry.version = self.version;
        }
        let leases = entry.members.values().map(|member| member.until);
        let leases = leases.chain(entry.edges.values().map(|edge| edge.until));
        entry.due = leases
            .min()
            .unwrap_or(now + CACHE_LEASE)
            .max(now + REPEAT / 4);
        self.due.insert((entry.due, key));
        self.tell_edges(key, now, actions);
    }

    /// Tells every edge that does not use the present version yet.
    fn tell_edges(&mut self, key: GroupKey, now: Instant, actions: &mut Vec<HomeAction>) {
        let Some(entry) = self.groups.get_mut(&key) else {
            return;
        };
        let relays = entry.relays(now);
        let mut waiting = false;
        for (&to, edge) in &mut entry.edges {
            if edge.until <= now || edge.confirmed >= entry.version {
                continue;
            }
            waiting = true;
            self.next_id += 1;
            self.changes.insert(self.next_id, (to, key, entry.version));
            actions.push(HomeAction::Changed {
                to,
                id: self.next_id,
                group: entry.id.clone(),
                relays: relays.clone(),
                version: entry.version,
            });
        }
        if waiting && entry.due > now + REPEAT {
            self.due.remove(&(entry.due, key));
            entry.due = now + REPEAT;
            self.due.insert((entry.due, key));
        }
    }

    /// Confirms the announcements that hold everywhere by now.
    fn settle(&mut self, now: Instant, actions: &mut Vec<HomeAction>) {
        let pending = std::mem::take(&mut self.pending);
        for one in pending {
            if self.holds_everywhere(one.from, &one.groups, now) {
                actions.push(HomeAction::Announced {
                    to: one.from,
                    id: one.id,
                });
            } else if one.until > now {
                self.pending.push(one);
            }
        }
    }

    /// Whether every edge that caches these groups knows of the members at `from`.
    fn holds_everywhere(&self, from: RelayIndex, groups: &[GroupKey], now: Instant) -> bool {
        groups.iter().all(|key| {
            let Some(entry) = self.groups.get(key) else {
                return false;
            };
            let Some(member) = entry.members.get(&from).filter(|member| member.until > now) else {
                return false;
            };
            let mut edges = entry.edges.values();
            edges.all(|edge| edge.until <= now || edge.confirmed >= member.since)
        })
    }
}

impl Entry {
    fn relays(&self, now: Instant) -> RelaySet {
        let members = self.members.iter();
        members
            .filter(|(_, member)| member.until > now)
            .map(|(&relay, _)| relay)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: RelayIndex = RelayIndex(1);
    const TWO: RelayIndex = RelayIndex(2);
    const MS: Duration = Duration::from_millis(1);

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    fn group() -> GroupId {
        GroupId {
            app: "chat".into(),
            group: "cats".into(),
        }
    }

    fn announce(home: &mut Home, from: RelayIndex, id: u64, now: Instant) -> Vec<HomeAction> {
        let mut actions = Vec::new();
        home.announce(from, id, vec![group()], LEASE, now, &mut actions);
        actions
    }

    fn tick(home: &mut Home, now: Instant) -> Vec<HomeAction> {
        let mut actions = Vec::new();
        home.tick(now, &mut actions);
        actions
    }

    fn announced(to: RelayIndex, id: u64) -> HomeAction {
        HomeAction::Announced { to, id }
    }

    #[test]
    fn without_edges_that_cache_an_announcement_holds_at_once() {
        let now = start();
        let mut home = Home::new(0);
        assert_eq!(announce(&mut home, ONE, 7, now), [announced(ONE, 7)]);
        let (relays, _) = home.look_up(TWO, group(), now).expect("room");
        assert!(relays.iter().eq([ONE]));
        // It is no news to anybody when it is repeated.
        assert_eq!(announce(&mut home, ONE, 8, now), [announced(ONE, 8)]);
    }

    #[test]
    fn an_announcement_holds_when_every_edge_that_caches_has_confirmed() {
        let now = start();
        let mut home = Home::new(0);
        home.look_up(TWO, group(), now);
        let actions = announce(&mut home, ONE, 7, now);
        let [HomeAction::Changed { to, id, relays, .. }] = &actions[..] else {
            panic!("{actions:?}");
        };
        assert_eq!((*to, relays.len()), (TWO, 1));
        let mut after = Vec::new();
        home.confirmed(ONE, *id, now, &mut after);
        assert_eq!(after, [], "that is not the edge that was told");
        home.confirmed(TWO, *id, now, &mut after);
        assert_eq!(after, [announced(ONE, 7)]);
    }

    #[test]
    fn an_edge_that_is_silent_is_told_again_and_waited_for_as_long_as_its_lease_holds() {
        let now = start();
        let mut home = Home::new(0);
        home.look_up(TWO, group(), now);
        assert_eq!(announce(&mut home, ONE, 7, now).len(), 1);
        let mut told = 0;
        for step in 1..40 {
            let at = now + step * 50 * MS;
            if at < now + CACHE_LEASE {
                let actions = tick(&mut home, at);
                assert!(!actions.contains(&announced(ONE, 7)), "{step}");
                told += actions.len();
            }
        }
        assert!((2..=5).contains(&told), "{told}");
        let at = now + CACHE_LEASE;
        assert!(tick(&mut home, at).contains(&announced(ONE, 7)));
    }

    #[test]
    fn a_lease_that_ends_is_a_change_and_a_group_without_anybody_is_forgotten() {
        let now = start();
        let mut home = Home::new(0);
        announce(&mut home, ONE, 7, now);
        let mut at = now;
        while at < now + LEASE {
            home.look_up(TWO, group(), at);
            assert_eq!(tick(&mut home, at), []);
            at += 500 * MS;
        }
        home.look_up(TWO, group(), at);
        let actions = tick(&mut home, at + 500 * MS);
        assert!(
            matches!(&actions[..], [HomeAction::Changed { to: TWO, relays, .. }] if relays.is_empty()),
            "{actions:?}"
        );
        tick(&mut home, at + 10 * LEASE);
        assert_eq!(home.len(), 0);
        assert_eq!(home.next_due(), None);
    }

    #[test]
    fn a_withdrawal_that_is_older_than_the_announcement_means_nothing() {
        let now = start();
        let mut home = Home::new(0);
        announce(&mut home, ONE, 7, now);
        let mut actions = Vec::new();
        home.withdraw(ONE, 6, &group(), now, &mut actions);
        assert_eq!(
            home.look_up(TWO, group(), now).map(|(r, _)| r.len()),
            Some(1)
        );
        home.withdraw(ONE, 8, &group(), now, &mut actions);
        assert_eq!(
            home.look_up(ONE, group(), now).map(|(r, _)| r.len()),
            Some(0)
        );
        assert_eq!(actions.len(), 1, "the edge is told: {actions:?}");
    }
}
