//! Who is where: this relay's part of the directory, as one of the homes of some users.
//!
//! Soft state: edges own the truth about their sessions and announce it again before its lease ends.
//! Shared by the shards, off the per-packet way.

use std::{
    collections::HashMap,
    hash::BuildHasher as _,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustc_hash::FxBuildHasher;
use tradewind_proto::{Locator, RelayIndex, UserKey};

/// Homes of a key.
pub(crate) const HOMES: usize = 3;
/// How long an announcement holds unless it is repeated.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// How often edges repeat it.
pub(crate) const RENEWAL: Duration = Duration::from_secs(3);
/// How long an edge may use an answer.
pub(crate) const ANSWER_LEASE: Duration = Duration::from_secs(2);
/// How long a home says "ask again" instead of "nowhere" after the set of relays has changed: edges
/// announce at once when they learn of it.
pub(crate) const WARM_UP: Duration = Duration::from_secs(2);
/// The same after its start, when it knows nothing: by then every edge has renewed what it announced,
/// and had time to try again.
pub(crate) const COLD_START: Duration = Duration::from_secs(5);
/// Once a second one in so many users is swept: all at once would hold up packets.
pub(crate) const SWEEP_SHARE: usize = 8;
/// How long a home says "ask again" of a user whose last session has ended: who goes to another edge
/// is nowhere for a handshake and an announcement.
const MOVE: Duration = Duration::from_secs(2);
/// Sessions of one user that a home remembers.
const MAX_SESSIONS: usize = 64;
/// Users a home remembers; beyond it new ones are not taken.
const MAX_USERS: usize = 4_000_000;
/// Parts of the table: one of them grows, or is swept, at a time.
const PARTS: usize = 256;

/// One session of a user, as its edge announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    pub(crate) locator: Locator,
    /// The SDK instance: a user's sessions with the same one are one device's.
    pub(crate) instance: u64,
    /// One way between the edge and the client, microseconds; 0: not known.
    pub(crate) leg_us: u32,
    /// One of the device's further sessions.
    pub(crate) standby: bool,
}

/// The entries of which this relay is a home.
///
/// Laid out for memory, as there may be millions: a user's name is one allocation, and a user's only
/// session is in the table itself.
#[derive(Debug)]
pub(crate) struct Directory {
    parts: Box<[Mutex<Part>]>,
    users: AtomicUsize,
    /// Users whose last session has ended, and until when that may be because they are moving.
    moving: Mutex<HashMap<Name, Instant, FxBuildHasher>>,
    /// Where time begins for leases.
    origin: Instant,
    /// The part that is swept next.
    next_swept: AtomicUsize,
}

/// App, 0xff (which is in no UTF-8), user.
type Name = Box<[u8]>;

type Part = HashMap<Name, Sessions, FxBuildHasher>;

/// A user's sessions, the newest first.
#[derive(Debug)]
enum Sessions {
    One(Entry),
    /// Never empty.
    #[allow(clippy::box_collection)] // all users pay for the larger variant
    Many(Box<Vec<Entry>>),
}

/// [`Whereabouts`] with their lease, packed: one word less than in its natural order.
#[derive(Debug, Clone, Copy)]
struct Entry {
    instance: u64,
    slot: u32,
    generation: u32,
    leg_us: u32,
    /// Milliseconds since the directory's origin, modulo 2³².
    until: u32,
    relay: RelayIndex,
    standby: bool,
}

/// All users pay for each byte of it.
const _: () = assert!(size_of::<Sessions>() <= 32);

impl Entry {
    fn new(at: Whereabouts, until: u32) -> Self {
        Self {
            instance: at.instance,
            slot: at.locator.slot,
            generation: at.locator.generation,
            leg_us: at.leg_us,
            until,
            relay: at.locator.relay,
            standby: at.standby,
        }
    }

    fn at(&self) -> Whereabouts {
        Whereabouts {
            locator: Locator {
                relay: self.relay,
                slot: self.slot,
                generation: self.generation,
            },
            instance: self.instance,
            leg_us: self.leg_us,
            standby: self.standby,
        }
    }

    /// Leases are seconds, and what has run out is swept soon: nothing is 24 days off.
    fn holds(&self, now: u32) -> bool {
        self.until.wrapping_sub(now).cast_signed() > 0
    }
}

impl Sessions {
    fn all(&self) -> &[Entry] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    /// Keeps those for which `keep` holds. `false` when none is left.
    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) -> bool {
        match self {
            Self::One(entry) => keep(entry),
            Self::Many(entries) => {
                entries.retain(keep);
                if let [only] = entries[..] {
                    *self = Self::One(only);
                }
                !self.all().is_empty()
            }
        }
    }

    fn announce(&mut self, entry: Entry, now: u32) {
        if !self.retain(|known| known.holds(now)) {
            *self = Self::One(entry);
            return;
        }
        let at = entry.at().locator;
        let known = match self {
            Self::One(known) => std::slice::from_mut(known),
            Self::Many(known) => known,
        };
        if let Some(known) = known.iter_mut().find(|known| known.at().locator == at) {
            *known = entry;
            return;
        }
        match self {
            Self::One(known) => *self = Self::Many(Box::new(vec![entry, *known])),
            Self::Many(known) => {
                known.truncate(MAX_SESSIONS - 1);
                known.insert(0, entry);
            }
        }
    }
}

impl Directory {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            users: AtomicUsize::new(0),
            moving: Mutex::default(),
            origin: now,
            next_swept: AtomicUsize::new(0),
        }
    }

    /// Takes an announcement. A session not known before becomes the user's newest. `false` when
    /// there is no room.
    pub(crate) fn announce(
        &self,
        user: &UserKey,
        at: Whereabouts,
        lease: Duration,
        now: Instant,
    ) -> bool {
        let entry = Entry::new(at, self.ticks(now + lease.min(LEASE)));
        let name = name(user);
        let mut part = self.part(&name);
        if let Some(sessions) = part.get_mut(&name) {
            sessions.announce(entry, self.ticks(now));
            return true;
        }
        if self.users.load(Relaxed) >= MAX_USERS {
            return false;
        }
        part.insert(name, Sessions::One(entry));
        self.users.fetch_add(1, Relaxed);
        true
    }

    /// Forgets a session.
    pub(crate) fn withdraw(&self, user: &UserKey, locator: Locator, now: Instant) {
        let name = name(user);
        let mut part = self.part(&name);
        let Some(sessions) = part.get_mut(&name) else {
            return;
        };
        if sessions.retain(|entry| entry.at().locator != locator) {
            return;
        }
        part.remove(&name);
        drop(part);
        self.users.fetch_sub(1, Relaxed);
        let mut moving = lock(&self.moving);
        if moving.len() < MAX_USERS {
            moving.insert(name, now + MOVE);
        }
    }

    /// Whether the user's last session ended only just now: it may be on its way to another edge.
    pub(crate) fn may_be_moving(&self, user: &UserKey, now: Instant) -> bool {
        let moving = lock(&self.moving);
        moving.get(&name(user)).is_some_and(|until| now < *until)
    }

    /// The sessions of a user, newest first.
    pub(crate) fn lookup(&self, user: &UserKey, now: Instant) -> Vec<Whereabouts> {
        let name = name(user);
        let now = self.ticks(now);
        let part = self.part(&name);
        let all = part.get(&name).map_or(&[][..], Sessions::all);
        let holding = all.iter().filter(|entry| entry.holds(now));
        holding.map(Entry::at).collect()
    }

    /// Forgets what has run out, of one in `share` of the users at a call, in turn.
    pub(crate) fn sweep(&self, share: usize, now: Instant) {
        let ticks = self.ticks(now);
        for _ in 0..PARTS.div_ceil(share) {
            let next = self.next_swept.fetch_add(1, Relaxed);
            let mut part = lock(&self.parts[next % PARTS]);
            let before = part.len();
            part.retain(|_, sessions| sessions.retain(|entry| entry.holds(ticks)));
            self.users.fetch_sub(before - part.len(), Relaxed);
            // Not while it may grow again at once: what is left takes an eighth of the room.
            if part.capacity() > 8 * part.len() {
                let room = 2 * part.len();
                part.shrink_to(room);
            }
        }
        lock(&self.moving).retain(|_, until| now < *until);
    }

    /// Users in it.
    pub(crate) fn len(&self) -> usize {
        self.users.load(Relaxed)
    }

    fn part(&self, name: &Name) -> MutexGuard<'_, Part> {
        // The tables take the lower and the highest bits for themselves.
        let place = FxBuildHasher.hash_one(name) >> 32;
        lock(&self.parts[place as usize % PARTS])
    }

    fn ticks(&self, at: Instant) -> u32 {
        at.saturating_duration_since(self.origin).as_millis() as u32
    }
}

fn name(user: &UserKey) -> Name {
    [user.app.as_bytes(), &[0xff], user.user.as_bytes()]
        .concat()
        .into()
}

/// Nobody who holds one of these locks panics half way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The homes of a key among `relays`, best first, by rendezvous hashing (Thaler and Ravishankar,
/// 1998): when a relay comes or goes only the keys of which it is a home move.
pub(crate) fn homes(key: &UserKey, relays: &[RelayIndex]) -> Vec<RelayIndex> {
    let mut ranked: Vec<(u64, RelayIndex)> = relays
        .iter()
        .map(|&relay| {
            let relay_bytes = relay.0.to_be_bytes();
            let parts = [
                key.app.as_bytes(),
                &[0xff],
                key.user.as_bytes(),
                &relay_bytes,
            ];
            (mix(fnv1a(parts.into_iter().flatten())), relay)
        })
        .collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.truncate(HOMES);
    ranked.into_iter().map(|(_, relay)| relay).collect()
}

/// FNV-1a, 64 bits. Every relay must come to the same result, on every machine and in every version,
/// which no hasher of a library promises.
pub(crate) fn fnv1a<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finaliser of MurmurHash3: spreads every input bit over every output bit, which FNV does not.
pub(crate) fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: u32) -> UserKey {
        UserKey {
            app: "chat".into(),
            user: format!("user-{n}"),
        }
    }

    fn locator(relay: u16, slot: u32) -> Locator {
        Locator {
            relay: RelayIndex(relay),
            slot,
            generation: 7,
        }
    }

    fn at(relay: u16, slot: u32) -> Whereabouts {
        Whereabouts {
            locator: locator(relay, slot),
            instance: u64::from(slot),
            leg_us: 10,
            standby: false,
        }
    }

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_newest_session_of_a_user_comes_first_and_renewing_does_not_change_that() {
        let now = start();
        let directory = Directory::new(now);
        for slot in [1, 2, 1] {
            assert!(directory.announce(&user(1), at(3, slot), LEASE, now));
        }
        assert_eq!(directory.lookup(&user(1), now), [at(3, 2), at(3, 1)]);
        directory.withdraw(&user(1), locator(3, 2), now);
        assert_eq!(directory.lookup(&user(1), now), [at(3, 1)]);
        assert!(!directory.may_be_moving(&user(1), now));
    }

    #[test]
    fn a_user_between_two_edges_is_not_nowhere_yet() {
        let now = start();
        let directory = Directory::new(now);
        assert!(!directory.may_be_moving(&user(1), now));
        assert!(directory.announce(&user(1), at(3, 1), LEASE, now));
        directory.withdraw(&user(1), locator(3, 1), now);
        assert!(directory.lookup(&user(1), now).is_empty());
        assert!(directory.may_be_moving(&user(1), now));
        assert!(!directory.may_be_moving(&user(1), now + MOVE));
    }

    #[test]
    fn an_announcement_ends_with_its_lease() {
        let now = start();
        let directory = Directory::new(now);
        assert!(directory.announce(&user(1), at(3, 1), LEASE, now));
        assert!(directory.lookup(&user(1), now + LEASE).is_empty());
        directory.sweep(1, now + LEASE);
        assert_eq!(directory.len(), 0);
    }

    #[test]
    fn a_user_has_many_sessions_and_the_oldest_make_room() {
        let now = start();
        let directory = Directory::new(now);
        for slot in 0..100 {
            assert!(directory.announce(&user(1), at(3, slot), LEASE, now));
        }
        let newest: Vec<Whereabouts> = (100 - MAX_SESSIONS as u32..100)
            .rev()
            .map(|slot| at(3, slot))
            .collect();
        assert_eq!(directory.lookup(&user(1), now), newest);
        for slot in 0..99 {
            directory.withdraw(&user(1), locator(3, slot), now);
        }
        assert_eq!(directory.lookup(&user(1), now), [at(3, 99)]);
        assert_eq!(directory.len(), 1);
        directory.withdraw(&user(1), locator(3, 99), now);
        assert_eq!(directory.len(), 0);
    }

    #[test]
    fn sweeping_in_shares_forgets_everything_that_has_run_out_and_nothing_else() {
        let begun = start();
        let directory = Directory::new(begun);
        // Past the end of the leases' clock.
        let now = begun + Duration::from_millis(u64::from(u32::MAX) - 3_000);
        let later = now + LEASE / 2;
        for n in 0..5_000 {
            assert!(directory.announce(&user(n), at(3, 1), LEASE, now));
            if n % 2 == 0 {
                assert!(directory.announce(&user(n), at(4, 1), LEASE, later));
            }
        }
        for _ in 0..8 {
            directory.sweep(8, later);
        }
        assert_eq!(directory.len(), 5_000);
        let end = now + LEASE;
        for _ in 0..8 {
            directory.sweep(8, end);
        }
        assert_eq!(directory.len(), 2_500);
        for n in 0..5_000 {
            let left = if n % 2 == 0 { vec![at(4, 1)] } else { vec![] };
            assert_eq!(directory.lookup(&user(n), end), left);
        }
    }

    #[test]
    fn names_that_read_the_same_together_are_not_the_same() {
        let now = start();
        let directory = Directory::new(now);
        let key = |app: &str, user: &str| UserKey {
            app: app.to_owned(),
            user: user.to_owned(),
        };
        assert!(directory.announce(&key("ab", "c"), at(3, 1), LEASE, now));
        assert!(directory.lookup(&key("a", "bc"), now).is_empty());
        assert!(directory.lookup(&key("abc", ""), now).is_empty());
    }

    #[test]
    fn homes_are_spread_evenly_and_few_move_when_a_relay_leaves() {
        let all: Vec<RelayIndex> = (0..20).map(RelayIndex).collect();
        let fewer: Vec<RelayIndex> = (0..19).map(RelayIndex).collect();
        let mut count = [0_u32; 20];
        let mut moved = 0;
        for n in 0..4_000 {
            let before = homes(&user(n), &all);
            assert_eq!(before.len(), HOMES);
            for relay in &before {
                count[relay.as_usize()] += 1;
            }
            let after = homes(&user(n), &fewer);
            if before.contains(&RelayIndex(19)) {
                moved += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        // Each is a home of 3/20 of the users: 600, with a standard deviation of some 23.
        assert!(count.iter().all(|&n| (480..=720).contains(&n)), "{count:?}");
        assert_eq!(moved, count[19]);
    }
}
