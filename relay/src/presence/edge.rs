//! At an edge: whom its sessions watch, and what the homes of these users say of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tradewind_proto::{RelayIndex, UserKey};

use super::{LEASE, Lives, Status, USERS_PER_TICK};

/// Users that one session may watch.
pub(crate) const MAX_PER_SESSION: usize = 1_024;
/// Users that all sessions of an edge may watch, …
const MAX_USERS: usize = 50_000;
/// … and pairs of a session and a user that it watches.
const MAX_PAIRS: usize = 500_000;
/// How soon a home is asked again that has not answered; doubling, …
const PATIENCE: Duration = Duration::from_millis(600);
/// … up to how often it is asked in any case.
const RENEWAL: Duration = Duration::from_secs(5);
/// How long homes may say different things, or most of them nothing, until those that do say something
/// are believed.
const TORN: Duration = Duration::from_millis(500);

/// The users that sessions of this edge watch. `S` names a session.
#[derive(Debug)]
pub(crate) struct Watches<S> {
    users: FxHashMap<Arc<UserKey>, Watch<S>>,
    sessions: FxHashMap<S, BTreeSet<Arc<UserKey>>>,
    pairs: usize,
    due: BTreeSet<(Instant, Arc<UserKey>)>,
    /// Users whose homes may be others now.
    moving: VecDeque<Arc<UserKey>>,
    /// Whom homes are to be asked for, and told that nobody watches any more.
    questions: BTreeMap<RelayIndex, Vec<Arc<UserKey>>>,
    farewells: BTreeMap<RelayIndex, Vec<Arc<UserKey>>>,
    news: BTreeMap<S, Vec<(Arc<UserKey>, News)>>,
    /// How many users have each relay for a home.
    relied_on: BTreeMap<RelayIndex, usize>,
}

#[derive(Debug)]
struct Watch<S> {
    sessions: BTreeSet<S>,
    views: Vec<View>,
    /// What the sessions have been told.
    told: Option<bool>,
    /// Since when there is no majority among the homes.
    torn_since: Option<Instant>,
    due: Option<Instant>,
}

/// What a home says.
#[derive(Debug)]
struct View {
    home: RelayIndex,
    vote: Option<Vote>,
    ask_at: Instant,
    tries: u32,
}

#[derive(Debug, Clone, Copy)]
struct Vote {
    status: Status,
    version: u64,
    said_at: Instant,
}

/// What a session is told of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    Online,
    Offline,
    /// It is not watched, as the network watches as many users as it can.
    Busy,
}

/// Why a session does not watch a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The session watches too many.
    TooMany,
    /// The edge watches too many.
    Busy,
}

impl<S> Default for Watches<S> {
    fn default() -> Self {
        Self {
            users: FxHashMap::default(),
            sessions: FxHashMap::default(),
            pairs: 0,
            due: BTreeSet::new(),
            moving: VecDeque::new(),
            questions: BTreeMap::new(),
            farewells: BTreeMap::new(),
            news: BTreeMap::new(),
            relied_on: BTreeMap::new(),
        }
    }
}

impl<S: Copy + Ord + Hash> Watches<S> {
    /// A session watches a user from now on. It is told at once if that is known.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn watch(
        &mut self,
        session: S,
        user: UserKey,
        homes: impl FnOnce(&UserKey) -> Vec<RelayIndex>,
        lives: &Lives,
        now: Instant,
    ) -> Result<(), Refusal> {
        let of_session = self.sessions.get(&session);
        if of_session.is_some_and(|users| users.contains(&user)) {
            return Ok(());
        }
        if of_session.is_some_and(|users| users.len() >= MAX_PER_SESSION) {
            return Err(Refusal::TooMany);
        }
        let known = self.users.get_key_value(&user);
        let full = known.is_none() && self.users.len() >= MAX_USERS;
        if full || self.pairs >= MAX_PAIRS {
            return Err(Refusal::Busy);
        }
        let user = known.map_or_else(|| Arc::new(user), |(user, _)| user.clone());
        if let Some(watch) = self.users.get_mut(&user) {
            watch.sessions.insert(session);
            if let Some(online) = watch.told {
                let news = self.news.entry(session).or_default();
                news.push((user.clone(), News::of(online)));
            }
        } else {
            let watch = Watch {
                sessions: BTreeSet::from([session]),
                views: homes(&user)
                    .into_iter()
                    .map(|home| View::new(home, now))
                    .collect(),
                told: None,
                torn_since: None,
                due: None,
            };
            for view in &watch.views {
                *self.relied_on.entry(view.home).or_default() += 1;
            }
            self.users.insert(user.clone(), watch);
            self.look_at(&user, lives, now);
        }
        self.sessions.entry(session).or_default().insert(user);
        self.pairs += 1;
        Ok(())
    }

    /// A session does not watch a user any more.
    pub(crate) fn unwatch(&mut self, session: S, user: &UserKey) {
        let Some(users) = self.sessions.get_mut(&session) else {
            return;
        };
        let Some(user) = users.take(user) else {
            return;
        };
        if users.is_empty() {
            self.sessions.remove(&session);
        }
        self.end(session, &user);
    }

    /// A session has ended.
    pub(crate) fn forget_session(&mut self, session: S) {
        for user in self.sessions.remove(&session).unwrap_or_default() {
            self.end(session, &user);
        }
        self.news.remove(&session);
    }

    /// Whom a session watches.
    pub(crate) fn watched_by(&self, session: S) -> impl Iterator<Item = &Arc<UserKey>> {
        self.sessions.get(&session).into_iter().flatten()
    }

    /// A home says how it stands with users; `asked` if this is an answer.
    pub(crate) fn on_states(
        &mut self,
        from: RelayIndex,
        states: impl Iterator<Item = (Arc<UserKey>, Status, u64)>,
        asked: bool,
        lives: &Lives,
        now: Instant,
    ) {
        for (user, status, version) in states {
            let Some((user, _)) = self.users.get_key_value(&user) else {
                continue;
            };
            let user = user.clone();
            let view = self.users.get_mut(&user).and_then(|watch| {
                let mut views = watch.views.iter_mut();
                views.find(|view| view.home == from)
            });
            let Some(view) = view else {
                continue;
            };
            // What was said earlier may come later, by another way.
            let newest = view
                .vote(lives, now)
                .is_none_or(|vote| vote.version <= version);
            if newest {
                view.vote = Some(Vote {
                    status,
                    version,
                    said_at: now,
                });
            }
            if asked {
                view.tries = 0;
                view.ask_at = now + RENEWAL;
            }
            self.look_at(&user, lives, now);
        }
    }

    /// The relays that homes are chosen from have changed: users will be looked at a few at a time.
    pub(crate) fn move_homes(&mut self) {
        self.moving = self.users.keys().cloned().collect();
        // As hash maps come in any order.
        self.moving.make_contiguous().sort_unstable();
    }

    /// The homes that are relied on.
    pub(crate) fn homes(&self) -> impl Iterator<Item = RelayIndex> + '_ {
        self.relied_on.keys().copied()
    }

    /// Does what is due.
    pub(crate) fn tick(
        &mut self,
        homes: impl Fn(&UserKey) -> Vec<RelayIndex>,
        lives: &Lives,
        now: Instant,
    ) {
        for _ in 0..USERS_PER_TICK {
            let Some(user) = self.moving.pop_front() else {
                break;
            };
            if let Some(watch) = self.users.get_mut(&user) {
                let mut before = std::mem::take(&mut watch.views);
                let relied_before: Vec<RelayIndex> = before.iter().map(|v| v.home).collect();
                let kept = |home| {
                    let known = before.iter().position(|view| view.home == home);
                    known.map_or_else(|| View::new(home, now), |at| before.swap_remove(at))
                };
                watch.views = homes(&user).into_iter().map(kept).collect();
                for view in &watch.views {
                    *self.relied_on.entry(view.home).or_default() += 1;
                }
                for home in relied_before {
                    self.rely_no_more(home);
                }
                self.look_at(&user, lives, now);
            }
        }
        for _ in 0..USERS_PER_TICK {
            let Some((_, user)) = self.due.first().filter(|(at, _)| *at <= now).cloned() else {
                break;
            };
            self.due.pop_first();
            if let Some(watch) = self.users.get_mut(&user) {
                watch.due = None;
            }
            self.look_at(&user, lives, now);
        }
    }

    /// Whom homes are to be asked for now.
    pub(crate) fn questions(&mut self) -> BTreeMap<RelayIndex, Vec<Arc<UserKey>>> {
        std::mem::take(&mut self.questions)
    }

    /// Whom homes need not tell of any more.
    pub(crate) fn farewells(&mut self) -> BTreeMap<RelayIndex, Vec<Arc<UserKey>>> {
        std::mem::take(&mut self.farewells)
    }

    /// What sessions are to be told now.
    pub(crate) fn news(&mut self) -> BTreeMap<S, Vec<(Arc<UserKey>, News)>> {
        std::mem::take(&mut self.news)
    }

    /// Users watched.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    fn end(&mut self, session: S, user: &Arc<UserKey>) {
        self.pairs -= 1;
        let Some(watch) = self.users.get_mut(user) else {
            return;
        };
        watch.sessions.remove(&session);
        if watch.sessions.is_empty()
            && let Some(watch) = self.users.remove(user)
        {
            self.close(user, watch);
        }
    }

    fn close(&mut self, user: &Arc<UserKey>, watch: Watch<S>) {
        if let Some(due) = watch.due {
            self.due.remove(&(due, user.clone()));
        }
        for view in watch.views {
            let farewells = self.farewells.entry(view.home).or_default();
            farewells.push(user.clone());
            self.rely_no_more(view.home);
        }
    }

    fn rely_no_more(&mut self, home: RelayIndex) {
        if let Some(users) = self.relied_on.get_mut(&home) {
            *users -= 1;
            if *users == 0 {
                self.relied_on.remove(&home);
            }
        }
    }

    /// Asks homes that are due, and tells the sessions what has changed.
    fn look_at(&mut self, user: &Arc<UserKey>, lives: &Lives, now: Instant) {
        let Some(watch) = self.users.get_mut(user) else {
            return;
        };
        for view in watch.views.iter_mut().filter(|view| view.ask_at <= now) {
            view.ask_at = now + (PATIENCE * (1 << view.tries.min(4))).min(RENEWAL);
            view.tries += 1;
            let questions = self.questions.entry(view.home).or_default();
            questions.push(user.clone());
        }
        let count = |status| {
            let votes = watch.views.iter().filter_map(|view| view.vote(lives, now));
            votes.filter(|vote| vote.status == status).count()
        };
        let (on, off, full) = (
            count(Status::Online),
            count(Status::Offline),
            count(Status::Full),
        );
        let is_majority = |count: usize| 2 * count > watch.views.len();
        if is_majority(full) {
            return self.give_up(user);
        }
        let online = if is_majority(on) || is_majority(off) {
            watch.torn_since = None;
            Some(is_majority(on))
        } else if on + off == 0 {
            watch.torn_since = None;
            watch.told
        } else if now < *watch.torn_since.get_or_insert(now) + TORN {
            watch.told
        } else if off == 0 {
            Some(true)
        } else if on == 0 {
            Some(false)
        } else {
            watch.told.or(Some(true))
        };
        if online != watch.told {
            watch.told = online;
            for &session in &watch.sessions {
                let news = self.news.entry(session).or_default();
                news.extend(online.map(|online| (user.clone(), News::of(online))));
            }
        }
        let asks = watch.views.iter().map(|view| view.ask_at);
        // Homes that contradict each other may do so until one is found to be dead.
        let contradiction = on > 0 && off > 0;
        let torn = watch.torn_since.map(|since| match since + TORN {
            at if at <= now && contradiction => now + TORN,
            at => at,
        });
        let next = asks.chain(torn).filter(|at| *at > now).min();
        if let Some(next) = next
            && watch.due.is_none_or(|due| next < due)
        {
            if let Some(due) = watch.due.replace(next) {
                self.due.remove(&(due, user.clone()));
            }
            self.due.insert((next, user.clone()));
        }
    }

    /// The homes have no room.
    fn give_up(&mut self, user: &Arc<UserKey>) {
        let Some(watch) = self.users.remove(user) else {
            return;
        };
        for &session in &watch.sessions {
            self.pairs -= 1;
            if let Some(users) = self.sessions.get_mut(&session) {
                users.remove(user);
                if users.is_empty() {
                    self.sessions.remove(&session);
                }
            }
            let news = self.news.entry(session).or_default();
            news.push((user.clone(), News::Busy));
        }
        self.close(user, watch);
    }
}

impl View {
    const fn new(home: RelayIndex, now: Instant) -> Self {
        Self {
            home,
            vote: None,
            ask_at: now,
            tries: 0,
        }
    }

    /// What it says, if that still counts.
    fn vote(&self, lives: &Lives, now: Instant) -> Option<Vote> {
        self.vote
            .filter(|vote| now < vote.said_at + LEASE && lives.counts(self.home, vote.said_at))
    }
}

impl News {
    const fn of(online: bool) -> Self {
        if online { Self::Online } else { Self::Offline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOMES: [RelayIndex; 3] = [RelayIndex(1), RelayIndex(2), RelayIndex(3)];

    struct Edge {
        watches: Watches<u32>,
        lives: Lives,
        now: Instant,
        version: u64,
    }

    fn user(name: &str) -> UserKey {
        UserKey {
            app: "chat".into(),
            user: name.into(),
        }
    }

    impl Edge {
        #[allow(clippy::disallowed_methods)] // any instant will do
        fn new() -> Self {
            Self {
                watches: Watches::default(),
                lives: Lives::default(),
                now: Instant::now(),
                version: 0,
            }
        }

        fn watch(&mut self, session: u32, name: &str) -> Result<(), Refusal> {
            let homes = |_: &UserKey| HOMES.to_vec();
            self.watches
                .watch(session, user(name), homes, &self.lives, self.now)
        }

        fn says(&mut self, home: usize, status: Status) -> Vec<(u32, News)> {
            self.version += 1;
            let states = [(Arc::new(user("bob")), status, self.version)];
            self.watches
                .on_states(HOMES[home], states.into_iter(), true, &self.lives, self.now);
            self.news()
        }

        fn news(&mut self) -> Vec<(u32, News)> {
            let news = self.watches.news().into_iter();
            news.flat_map(|(session, news)| news.into_iter().map(move |(_, n)| (session, n)))
                .collect()
        }

        fn after(&mut self, time: Duration) -> Vec<(u32, News)> {
            self.now += time;
            let homes = |_: &UserKey| HOMES.to_vec();
            self.watches.tick(homes, &self.lives, self.now);
            self.news()
        }
    }

    #[test]
    fn what_most_homes_say_is_told_once_to_everybody_who_watches() {
        let mut edge = Edge::new();
        edge.watch(7, "bob").unwrap();
        assert_eq!(edge.watches.questions().len(), 3);
        assert_eq!(edge.says(0, Status::Online), []);
        assert_eq!(edge.says(1, Status::Online), [(7, News::Online)]);
        assert_eq!(edge.says(2, Status::Online), []);
        edge.watch(8, "bob").unwrap();
        assert_eq!(edge.news(), [(8, News::Online)]);
        assert!(edge.watches.questions().is_empty());
        assert_eq!(edge.says(2, Status::Offline), []);
        let both = [(7, News::Offline), (8, News::Offline)];
        assert_eq!(edge.says(0, Status::Offline), both);
        edge.watches.unwatch(7, &user("bob"));
        assert!(edge.watches.farewells().is_empty());
        edge.watches.forget_session(8);
        assert_eq!(edge.watches.farewells().len(), 3);
        assert_eq!((edge.watches.len(), edge.watches.pairs), (0, 0));
        assert!(edge.watches.due.is_empty() && edge.watches.sessions.is_empty());
    }

    #[test]
    fn without_a_majority_who_says_something_is_believed_after_a_while() {
        let mut edge = Edge::new();
        edge.watch(7, "bob").unwrap();
        assert_eq!(edge.says(0, Status::Offline), []);
        assert_eq!(edge.says(1, Status::Unknown), []);
        assert_eq!(edge.after(TORN), [(7, News::Offline)]);
        // Homes that contradict each other change nothing.
        assert_eq!(edge.says(1, Status::Online), []);
        assert_eq!(edge.after(TORN * 2), []);
        assert_eq!(edge.says(2, Status::Online), [(7, News::Online)]);
    }

    #[test]
    fn homes_are_asked_again_until_they_answer_and_then_now_and_then() {
        let mut edge = Edge::new();
        edge.watch(7, "bob").unwrap();
        assert_eq!(edge.watches.questions().len(), 3);
        edge.says(0, Status::Online);
        edge.says(1, Status::Online);
        edge.after(PATIENCE);
        assert_eq!(
            edge.watches.questions().into_keys().collect::<Vec<_>>(),
            [HOMES[2]]
        );
        edge.after(RENEWAL);
        assert_eq!(edge.watches.questions().len(), 3);
        // Nobody says anything any more: what was told holds, as nothing speaks against it.
        assert_eq!(edge.after(LEASE), []);
    }

    #[test]
    fn what_was_said_earlier_and_comes_later_does_not_count() {
        let mut edge = Edge::new();
        edge.watch(7, "bob").unwrap();
        edge.says(0, Status::Online);
        assert_eq!(edge.says(1, Status::Online), [(7, News::Online)]);
        let late = [(Arc::new(user("bob")), Status::Offline, 0)];
        for home in [HOMES[0], HOMES[1]] {
            let late = late.clone().into_iter();
            edge.watches
                .on_states(home, late, false, &edge.lives, edge.now);
        }
        assert_eq!(edge.news(), []);
    }

    #[test]
    fn a_session_may_watch_only_so_many_and_full_homes_say_so() {
        let mut edge = Edge::new();
        for n in 0..MAX_PER_SESSION {
            edge.watch(7, &format!("user-{n}")).unwrap();
        }
        assert_eq!(edge.watch(7, "bob"), Err(Refusal::TooMany));
        assert_eq!(edge.watch(7, "user-3"), Ok(()));
        edge.watch(8, "bob").unwrap();
        edge.says(0, Status::Full);
        assert_eq!(edge.says(1, Status::Full), [(8, News::Busy)]);
        assert_eq!(edge.watches.len(), MAX_PER_SESSION);
    }

    #[test]
    fn homes_that_stay_keep_their_word_when_others_change() {
        let mut edge = Edge::new();
        edge.watch(7, "bob").unwrap();
        edge.watches.questions();
        for home in 0..3 {
            edge.says(home, Status::Online);
        }
        edge.watches.move_homes();
        let others = |_: &UserKey| vec![HOMES[0], HOMES[1], RelayIndex(9)];
        edge.watches.tick(others, &edge.lives, edge.now);
        assert_eq!(
            edge.watches.questions().into_keys().collect::<Vec<_>>(),
            [RelayIndex(9)]
        );
        assert_eq!(edge.news(), []);
        assert_eq!(
            edge.watches.homes().collect::<Vec<_>>(),
            [HOMES[0], HOMES[1], RelayIndex(9)]
        );
        assert_eq!(edge.says(0, Status::Offline), []);
        assert_eq!(edge.says(1, Status::Offline), [(7, News::Offline)]);
    }
}
