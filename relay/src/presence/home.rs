//! At a home: which edges watch a user, and whether the user is online.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tradewind_proto::{Locator, RelayIndex, UserKey};

use super::{LEASE, Lives, Status, USERS_PER_MESSAGE, USERS_PER_TICK};

/// A user whose last session has ended on purpose is online for so long still: it may be on its way to
/// another edge. (Of an edge that died, the time in which it did not answer is enough.)
const GRACE: Duration = Duration::from_secs(1);
/// Watched users that a home remembers; beyond it new ones are refused.
const MAX_USERS: usize = 200_000;
/// Edges that watch one user; beyond it new ones are refused.
const MAX_EDGES: usize = 1_024;
/// Sessions of one user that are looked at.
const MAX_SESSIONS: usize = 64;
/// How often an edge is told of a change, and how soon it is told again.
const TRIES: u32 = 4;
const REPEAT: Duration = Duration::from_millis(400);
/// Messages that are told again if they are not noted, at most.
const MAX_UNNOTED: usize = 10_000;

/// The watched users of whom this relay is a home.
#[derive(Debug)]
pub(crate) struct Watchers {
    users: FxHashMap<Arc<UserKey>, Entry>,
    /// Where their sessions are.
    places: BTreeSet<(RelayIndex, Arc<UserKey>)>,
    due: BTreeSet<(Instant, Arc<UserKey>)>,
    /// To be looked at anew, as a relay has died or is back.
    stale: VecDeque<Arc<UserKey>>,
    /// Whom each edge is to be told of.
    changed: BTreeMap<RelayIndex, Vec<Arc<UserKey>>>,
    unnoted: BTreeMap<u64, Unnoted>,
    /// What is to be told again, by id and edge.
    again: Vec<(u64, RelayIndex, Vec<Arc<UserKey>>)>,
    /// Versions count on over restarts, as they begin with the time.
    version: u64,
    next_id: u64,
}

#[derive(Debug)]
struct Entry {
    sessions: Vec<Place>,
    edges: Vec<Edge>,
    status: Status,
    version: u64,
    /// Nothing is known for certain before: the edges are still telling this home.
    sure_from: Instant,
    /// When the user is offline unless a session comes.
    offline_at: Option<Instant>,
    due: Option<Instant>,
}

/// A session of a watched user.
#[derive(Debug)]
struct Place {
    locator: Locator,
    announced_at: Instant,
    until: Instant,
}

/// An edge that watches.
#[derive(Debug)]
struct Edge {
    relay: RelayIndex,
    until: Instant,
}

/// What an edge was told, and has not noted yet.
#[derive(Debug)]
struct Unnoted {
    edge: RelayIndex,
    users: Vec<Arc<UserKey>>,
    tries: u32,
    again_at: Instant,
}

/// What is to be told to an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Push {
    pub(crate) to: RelayIndex,
    pub(crate) id: u64,
    pub(crate) states: Vec<(Arc<UserKey>, Status, u64)>,
}

/// What the directory knows of a user when the first edge watches it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) sessions: Vec<Locator>,
    /// Its last session has only just ended.
    pub(crate) may_be_moving: bool,
}

impl Watchers {
    /// Watches nobody. `wall_us` is the time of day, microseconds: versions begin with it. Ids of
    /// messages begin with `first_id`.
    pub(crate) fn new(wall_us: u64, first_id: u64) -> Self {
        Self {
            users: FxHashMap::default(),
            places: BTreeSet::new(),
            due: BTreeSet::new(),
            stale: VecDeque::new(),
            changed: BTreeMap::new(),
            unnoted: BTreeMap::new(),
            again: Vec::new(),
            version: wall_us,
            next_id: first_id,
        }
    }

    /// An edge watches a user, from now on or still. Gives what it is to be told.
    pub(crate) fn watch(
        &mut self,
        from: RelayIndex,
        user: &Arc<UserKey>,
        (lease, sure_from): (Duration, Instant),
        known: impl FnOnce() -> Known,
        lives: &Lives,
        now: Instant,
    ) -> (Status, u64) {
        if !self.users.contains_key(user) {
            if self.users.len() >= MAX_USERS {
                return (Status::Full, 0);
            }
            let known = known();
            let place = |&locator: &Locator| Place {
                locator,
                announced_at: now,
                // At the latest; it is announced again sooner.
                until: now + crate::directory::LEASE,
            };
            let relays = known.sessions.iter().map(|locator| locator.relay);
            self.places
                .extend(relays.map(|relay| (relay, user.clone())));
            self.version += 1;
            let entry = Entry {
                sessions: known.sessions.iter().map(place).collect(),
                edges: Vec::new(),
                status: Status::Unknown,
                version: self.version,
                sure_from,
                offline_at: known.may_be_moving.then(|| now + GRACE),
                due: None,
            };
            self.users.insert(user.clone(), entry);
        }
        let Some(entry) = self.users.get_mut(user) else {
            return (Status::Full, 0);
        };
        let until = now + lease.min(LEASE);
        entry.sure_from = entry.sure_from.max(sure_from);
        let full = entry.edges.len() >= MAX_EDGES;
        match entry.edges.iter_mut().find(|edge| edge.relay == from) {
            Some(edge) => edge.until = until,
            None if full => return (Status::Full, 0),
            None => entry.edges.push(Edge { relay: from, until }),
        }
        self.look_at(user, lives, now);
        // It is answered, and need not be told as well.
        if let Some(changed) = self.changed.get_mut(&from) {
            changed.pop_if(|last| last == user);
        }
        let found = self.users.get(user);
        found.map_or((Status::Unknown, 0), |entry| (entry.status, entry.version))
    }

    /// An edge does not watch a user any more.
    pub(crate) fn unwatch(
        &mut self,
        from: RelayIndex,
        user: &Arc<UserKey>,
        lives: &Lives,
        now: Instant,
    ) {
        if let Some(entry) = self.users.get_mut(user) {
            entry.edges.retain(|edge| edge.relay != from);
            self.look_at(user, lives, now);
        }
    }

    /// An edge has announced a session.
    pub(crate) fn announced(
        &mut self,
        user: &UserKey,
        locator: Locator,
        lease: Duration,
        lives: &Lives,
        now: Instant,
    ) {
        let Some((user, _)) = self.users.get_key_value(user) else {
            return;
        };
        let user = user.clone();
        let place = Place {
            locator,
            announced_at: now,
            until: now + lease.min(crate::directory::LEASE),
        };
        if let Some(entry) = self.users.get_mut(&user) {
            match entry.sessions.iter_mut().find(|p| p.locator == locator) {
                Some(known) => *known = place,
                None => {
                    if entry.sessions.len() >= MAX_SESSIONS {
                        let gone = entry.sessions.remove(0).locator.relay;
                        self.forget_place(gone, &user);
                    }
                    if let Some(entry) = self.users.get_mut(&user) {
                        entry.sessions.push(place);
                    }
                    self.places.insert((locator.relay, user.clone()));
                }
            }
        }
        self.look_at(&user, lives, now);
    }

    /// A session has ended.
    pub(crate) fn withdrawn(
        &mut self,
        user: &UserKey,
        locator: Locator,
        lives: &Lives,
        now: Instant,
    ) {
        let Some((user, _)) = self.users.get_key_value(user) else {
            return;
        };
        let user = user.clone();
        if let Some(entry) = self.users.get_mut(&user) {
            entry.sessions.retain(|place| place.locator != locator);
            if entry.status == Status::Online {
                entry.offline_at.get_or_insert(now + GRACE);
            }
        }
        self.forget_place(locator.relay, &user);
        self.look_at(&user, lives, now);
    }

    /// A relay has died, or is back: what it has announced counts otherwise now.
    pub(crate) fn relay_changed(&mut self, relay: RelayIndex) {
        let from = (relay, nobody());
        let there = self.places.range(from..);
        let users = there.take_while(|(at, _)| *at == relay);
        self.stale.extend(users.map(|(_, user)| user.clone()));
    }

    /// The relays at which watched users have sessions.
    pub(crate) fn relays(&self) -> impl Iterator<Item = RelayIndex> + '_ {
        let next = |after: Option<RelayIndex>| {
            let from = match after {
                None => RelayIndex(0),
                Some(relay) => RelayIndex(relay.0.checked_add(1)?),
            };
            let from = (from, nobody());
            self.places.range(from..).next().map(|(relay, _)| *relay)
        };
        std::iter::successors(next(None), move |&relay| next(Some(relay)))
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, lives: &Lives, now: Instant) {
        for _ in 0..USERS_PER_TICK {
            let Some(user) = self.stale.pop_front() else {
                break;
            };
            self.look_at(&user, lives, now);
        }
        for _ in 0..USERS_PER_TICK {
            let Some((_, user)) = self.due.first().filter(|(at, _)| *at <= now).cloned() else {
                break;
            };
            self.due.pop_first();
            if let Some(entry) = self.users.get_mut(&user) {
                entry.due = None;
            }
            self.look_at(&user, lives, now);
        }
        for (&id, unnoted) in &mut self.unnoted {
            if unnoted.again_at <= now {
                unnoted.tries += 1;
                unnoted.again_at = now + REPEAT;
                self.again.push((id, unnoted.edge, unnoted.users.clone()));
            }
        }
        self.unnoted.retain(|_, unnoted| unnoted.tries < TRIES);
    }

    /// What is to be told to edges now.
    pub(crate) fn pushes(&mut self, now: Instant) -> Vec<Push> {
        let mut due = std::mem::take(&mut self.again);
        for (edge, users) in std::mem::take(&mut self.changed) {
            for users in users.chunks(USERS_PER_MESSAGE) {
                self.next_id += 1;
                due.push((self.next_id, edge, users.to_vec()));
                if self.unnoted.len() < MAX_UNNOTED {
                    let unnoted = Unnoted {
                        edge,
                        users: users.to_vec(),
                        tries: 1,
                        again_at: now + REPEAT,
                    };
                    self.unnoted.insert(self.next_id, unnoted);
                }
            }
        }
        let state = |edge: RelayIndex, user: Arc<UserKey>| {
            let entry = self.users.get(&user)?;
            let watches = entry.edges.iter().any(|e| e.relay == edge && e.until > now);
            watches.then_some((user, entry.status, entry.version))
        };
        let push = |(id, to, users): (u64, RelayIndex, Vec<Arc<UserKey>>)| Push {
            to,
            id,
            states: users.into_iter().filter_map(|u| state(to, u)).collect(),
        };
        let pushes = due.into_iter().map(push);
        pushes.filter(|push| !push.states.is_empty()).collect()
    }

    /// An edge has taken what the message told it.
    pub(crate) fn noted(&mut self, from: RelayIndex, id: u64) {
        if self.unnoted.get(&id).is_some_and(|u| u.edge == from) {
            self.unnoted.remove(&id);
        }
    }

    /// Users watched.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    /// Finds out whether a user is online, and when to look again.
    fn look_at(&mut self, user: &Arc<UserKey>, lives: &Lives, now: Instant) {
        let Some(entry) = self.users.get_mut(user) else {
            return;
        };
        entry.edges.retain(|edge| edge.until > now);
        if entry.edges.is_empty() {
            return self.forget(user);
        }
        let ended: Vec<RelayIndex> = entry
            .sessions
            .extract_if(.., |place| place.until <= now)
            .map(|place| place.locator.relay)
            .collect();
        let living = entry.sessions.iter().any(|place| {
            let Place {
                locator,
                announced_at,
                ..
            } = *place;
            lives.counts(locator.relay, announced_at)
        });
        let status = if living {
            entry.offline_at = None;
            Status::Online
        } else if now < entry.sure_from {
            Status::Unknown
        } else if entry.status == Status::Online {
            // Its edge has died, or does not renew any more.
            let ends = *entry.offline_at.get_or_insert(now);
            if now < ends {
                Status::Online
            } else {
                Status::Offline
            }
        } else if entry.offline_at.is_some_and(|ends| now < ends) {
            entry.status
        } else {
            Status::Offline
        };
        if status != entry.status {
            self.version += 1;
            entry.version = self.version;
            entry.status = status;
            for edge in &entry.edges {
                let changed = self.changed.entry(edge.relay).or_default();
                changed.push(user.clone());
            }
        }
        let times = entry.sessions.iter().map(|place| place.until);
        let times = times.chain(entry.edges.iter().map(|edge| edge.until));
        let times = times.chain(entry.offline_at).chain([entry.sure_from]);
        let next = times.filter(|at| *at > now).min();
        // What has moved later is looked at again when the earlier time comes.
        if let Some(next) = next
            && entry.due.is_none_or(|due| next < due)
        {
            if let Some(due) = entry.due.replace(next) {
                self.due.remove(&(due, user.clone()));
            }
            self.due.insert((next, user.clone()));
        }
        for relay in ended {
            self.forget_place(relay, user);
        }
    }

    fn forget(&mut self, user: &Arc<UserKey>) {
        let Some(entry) = self.users.remove(user) else {
            return;
        };
        for place in entry.sessions {
            self.places.remove(&(place.locator.relay, user.clone()));
        }
        if let Some(due) = entry.due {
            self.due.remove(&(due, user.clone()));
        }
    }

    /// One session of a user at a relay has gone; it may have others there.
    fn forget_place(&mut self, relay: RelayIndex, user: &Arc<UserKey>) {
        let more = self.users.get(user).is_some_and(|entry| {
            let mut sessions = entry.sessions.iter();
            sessions.any(|place| place.locator.relay == relay)
        });
        if !more {
            self.places.remove(&(relay, user.clone()));
        }
    }
}

/// Before all users in any order.
fn nobody() -> Arc<UserKey> {
    Arc::new(UserKey {
        app: String::new(),
        user: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGE: RelayIndex = RelayIndex(1);
    const OTHER: RelayIndex = RelayIndex(2);

    struct Home {
        watchers: Watchers,
        lives: Lives,
        bob: Arc<UserKey>,
        now: Instant,
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(relay: RelayIndex, slot: u32) -> Locator {
        Locator {
            relay,
            slot,
            generation: 1,
        }
    }

    impl Home {
        #[allow(clippy::disallowed_methods)] // any instant will do
        fn new() -> Self {
            let bob = UserKey {
                app: "chat".into(),
                user: "bob".into(),
            };
            Self {
                watchers: Watchers::new(1_000, 0),
                lives: Lives::default(),
                bob: Arc::new(bob),
                now: Instant::now(),
            }
        }

        fn watch(&mut self, sessions: &[Locator], sure_in: Duration) -> Status {
            let known = || Known {
                sessions: sessions.to_vec(),
                may_be_moving: false,
            };
            let terms = (LEASE, self.now + sure_in);
            let (status, _) =
                self.watchers
                    .watch(EDGE, &self.bob, terms, known, &self.lives, self.now);
            status
        }

        fn announced(&mut self, locator: Locator) -> Vec<Status> {
            let lease = crate::directory::LEASE;
            self.watchers
                .announced(&self.bob, locator, lease, &self.lives, self.now);
            self.told()
        }

        fn withdrawn(&mut self, locator: Locator) -> Vec<Status> {
            self.watchers
                .withdrawn(&self.bob, locator, &self.lives, self.now);
            self.told()
        }

        fn told(&mut self) -> Vec<Status> {
            let pushes = self.watchers.pushes(self.now).into_iter();
            let noted: Vec<Push> = pushes.collect();
            for push in &noted {
                self.watchers.noted(push.to, push.id);
            }
            let states = noted.into_iter().flat_map(|push| push.states);
            states.map(|(_, status, _)| status).collect()
        }

        fn after(&mut self, time: Duration) -> Vec<Status> {
            self.now += time;
            self.watchers.tick(&self.lives, self.now);
            self.told()
        }
    }

    #[test]
    fn changes_are_told_and_who_moves_to_another_edge_is_online_all_the_time() {
        let mut home = Home::new();
        assert_eq!(home.watch(&[], ms(0)), Status::Offline);
        assert_eq!(home.announced(at(OTHER, 1)), [Status::Online]);
        assert_eq!(home.withdrawn(at(OTHER, 1)), []);
        assert_eq!(home.after(GRACE - ms(1)), []);
        assert_eq!(home.announced(at(EDGE, 5)), []);
        assert_eq!(home.after(GRACE), []);
        assert_eq!(home.withdrawn(at(EDGE, 5)), []);
        assert_eq!(home.after(GRACE), [Status::Offline]);
    }

    #[test]
    fn a_home_that_is_still_being_told_says_nothing_but_what_it_knows() {
        let mut home = Home::new();
        assert_eq!(home.watch(&[], ms(2_000)), Status::Unknown);
        assert_eq!(home.after(ms(1_900)), []);
        assert_eq!(home.after(ms(100)), [Status::Offline]);
        let mut home = Home::new();
        assert_eq!(home.watch(&[at(OTHER, 1)], ms(2_000)), Status::Online);
    }

    #[test]
    fn the_sessions_at_a_dead_relay_do_not_count_until_it_is_back() {
        let mut home = Home::new();
        assert_eq!(home.watch(&[at(OTHER, 1)], ms(0)), Status::Online);
        assert_eq!(home.watchers.relays().collect::<Vec<_>>(), [OTHER]);
        home.lives.follow([OTHER].into_iter(), home.now);
        let mut told = Vec::new();
        let mut last = 0;
        for _ in 0..15 {
            let (asked, died) = home.lives.tick(home.now);
            last = asked.last().map_or(last, |(_, id)| *id);
            for relay in died {
                home.watchers.relay_changed(relay);
            }
            told.extend(home.after(ms(100)));
        }
        assert_eq!(told, [Status::Offline]);
        assert!(home.lives.heard(OTHER, last, 0, home.now));
        home.watchers.relay_changed(OTHER);
        assert_eq!(home.after(ms(100)), [Status::Online]);
    }

    #[test]
    fn sessions_and_watches_end_with_their_leases_and_nothing_stays_behind() {
        let mut home = Home::new();
        assert_eq!(home.watch(&[at(OTHER, 1)], ms(0)), Status::Online);
        assert_eq!(home.after(crate::directory::LEASE), [Status::Offline]);
        assert_eq!(home.announced(at(OTHER, 2)), [Status::Online]);
        assert_eq!(home.after(LEASE), []);
        let Watchers {
            users, places, due, ..
        } = &home.watchers;
        assert!(users.is_empty() && places.is_empty() && due.is_empty());
    }

    #[test]
    fn a_change_is_told_again_until_it_is_noted_but_not_for_ever() {
        let mut home = Home::new();
        home.watch(&[], ms(0));
        home.watchers.announced(
            &home.bob,
            at(OTHER, 1),
            crate::directory::LEASE,
            &home.lives,
            home.now,
        );
        let mut times = 0;
        for _ in 0..10 {
            times += home.watchers.pushes(home.now).len();
            home.now += REPEAT;
            home.watchers.tick(&home.lives, home.now);
        }
        assert_eq!(times, TRIES as usize);
    }
}
