//! Who is where: this relay's part of the directory, as one of the homes of some users.
//!
//! Soft state: edges own the truth about their sessions and announce it again before its lease ends.
//! Shared by the shards, off the per-packet way.

use std::time::{Duration, Instant};

use dashmap::DashMap;
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
/// How long a home says "ask again" of a user whose last session has ended: who goes to another edge
/// is nowhere for a handshake and an announcement.
const MOVE: Duration = Duration::from_secs(2);
/// Sessions of one user that a home remembers.
const MAX_SESSIONS: usize = 64;
/// Users a home remembers; beyond it new ones are not taken.
const MAX_USERS: usize = 4_000_000;

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

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: Whereabouts,
    until: Instant,
}

/// The entries of which this relay is a home.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Newest session first.
    users: DashMap<UserKey, Vec<Entry>, FxBuildHasher>,
    /// Users whose last session has ended, and until when that may be because they are moving.
    moving: DashMap<UserKey, Instant, FxBuildHasher>,
}

impl Directory {
    /// Takes an announcement. A session not known before becomes the user's newest. `false` when
    /// there is no room.
    pub(crate) fn announce(
        &self,
        user: UserKey,
        at: Whereabouts,
        lease: Duration,
        now: Instant,
    ) -> bool {
        if self.users.len() >= MAX_USERS && !self.users.contains_key(&user) {
            return false;
        }
        let until = now + lease.min(LEASE);
        let mut entries = self.users.entry(user).or_default();
        entries.retain(|entry| entry.until > now);
        match entries
            .iter_mut()
            .find(|entry| entry.at.locator == at.locator)
        {
            Some(entry) => *entry = Entry { at, until },
            None => {
                if entries.len() >= MAX_SESSIONS {
                    entries.pop();
                }
                // Most users have one session or two: room for more is made when it is needed.
                entries.reserve_exact(1);
                entries.insert(0, Entry { at, until });
            }
        }
        true
    }

    /// Forgets a session.
    pub(crate) fn withdraw(&self, user: &UserKey, locator: Locator, now: Instant) {
        let last = self.users.remove_if_mut(user, |_, entries| {
            entries.retain(|entry| entry.at.locator != locator);
            entries.is_empty()
        });
        if last.is_some() && self.moving.len() < MAX_USERS {
            self.moving.insert(user.clone(), now + MOVE);
        }
    }

    /// Whether the user's last session ended only just now: it may be on its way to another edge.
    pub(crate) fn may_be_moving(&self, user: &UserKey, now: Instant) -> bool {
        self.moving.get(user).is_some_and(|until| now < *until)
    }

    /// The sessions of a user, newest first.
    pub(crate) fn lookup(&self, user: &UserKey, now: Instant) -> Vec<Whereabouts> {
        self.users.get(user).map_or_else(Vec::new, |entries| {
            entries
                .iter()
                .filter(|entry| entry.until > now)
                .map(|entry| entry.at)
                .collect()
        })
    }

    /// Forgets what has run out.
    pub(crate) fn sweep(&self, now: Instant) {
        self.users.retain(|_, entries| {
            entries.retain(|entry| entry.until > now);
            !entries.is_empty()
        });
        self.moving.retain(|_, until| now < *until);
    }

    /// Users in it.
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }
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
        let directory = Directory::default();
        for slot in [1, 2, 1] {
            assert!(directory.announce(user(1), at(3, slot), LEASE, now));
        }
        assert_eq!(directory.lookup(&user(1), now), [at(3, 2), at(3, 1)]);
        directory.withdraw(&user(1), locator(3, 2), now);
        assert_eq!(directory.lookup(&user(1), now), [at(3, 1)]);
        assert!(!directory.may_be_moving(&user(1), now));
    }

    #[test]
    fn a_user_between_two_edges_is_not_nowhere_yet() {
        let now = start();
        let directory = Directory::default();
        assert!(!directory.may_be_moving(&user(1), now));
        assert!(directory.announce(user(1), at(3, 1), LEASE, now));
        directory.withdraw(&user(1), locator(3, 1), now);
        assert!(directory.lookup(&user(1), now).is_empty());
        assert!(directory.may_be_moving(&user(1), now));
        assert!(!directory.may_be_moving(&user(1), now + MOVE));
    }

    #[test]
    fn an_announcement_ends_with_its_lease() {
        let now = start();
        let directory = Directory::default();
        assert!(directory.announce(user(1), at(3, 1), LEASE, now));
        assert!(directory.lookup(&user(1), now + LEASE).is_empty());
        directory.sweep(now + LEASE);
        assert_eq!(directory.len(), 0);
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
