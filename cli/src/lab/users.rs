//! The users of a lab under chaos: where they are and what they send to each other, decided by the
//! seed before it begins.

use std::time::Duration;

use rand::RngExt as _;
use tradewind_host::Rng;

use super::{
    places::Place,
    schedule::{PICTURE_LANE, TEXT_LANE},
    seeds,
};

/// Users unless `--users` says otherwise.
pub(super) const DEFAULT: usize = 200;

/// A user is so far from its place's exit, one way, in microseconds: at home, …
const HOME_US: std::ops::Range<u64> = 300..4_000;
/// … and on a mobile network.
const MOBILE_US: std::ops::Range<u64> = 10_000..40_000;

/// A user begins to talk to somebody so often, on average …
const TALKS_EVERY: Duration = Duration::from_secs(5);
/// … and then sends up to so many messages, …
const MOST_MESSAGES: u32 = 4;
/// … each so long after the one before it, or at the same moment.
const PAUSE: Duration = Duration::from_millis(700);
/// Percent of the talks that go to one of a few friends; the others go to anybody.
const TO_FRIENDS: u32 = 70;
const FRIENDS: usize = 5;

/// How long most messages are tried, …
const TTL: Duration = Duration::from_secs(12);
/// … and those that are soon worth nothing: what expires has to be skipped by who waits for it.
const SHORT_TTL: Duration = Duration::from_secs(2);

/// Somebody with a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    /// Index in the matrix.
    pub(crate) place: usize,
    /// One-way delay to the place's exit.
    pub(crate) access: Duration,
}

/// One message to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UserSend {
    /// Since measuring began.
    pub(super) at: Duration,
    /// Index of the user it is for.
    pub(super) to: usize,
    pub(super) lane: u32,
    /// Bytes of payload.
    pub(super) bytes: usize,
    pub(super) ttl: Duration,
}

/// The lab's own client at each place, which stays there, and users somewhere, `count` in all.
pub(super) fn users(places: &[Place], count: usize, seed: u64) -> Vec<User> {
    let mut rng = seeds::rng(seed, seeds::USERS, 0);
    let own = places.iter().enumerate().map(|(place, own)| User {
        name: own.user.clone(),
        place,
        access: Duration::ZERO,
    });
    let others = (places.len()..count).map(|index| User {
        name: format!("user-{index}"),
        place: rng.random_range(0..places.len()),
        access: access(false, &mut rng),
    });
    own.chain(others).collect()
}

/// Whether a user has several sessions, as an SDK has by default, or one.
pub(super) const fn has_several_sessions(user: usize) -> bool {
    user.is_multiple_of(2)
}

/// How far a user is from its place's exit, at home or on a mobile network.
pub(super) fn access(mobile: bool, rng: &mut Rng) -> Duration {
    let range = if mobile { MOBILE_US } else { HOME_US };
    Duration::from_micros(rng.random_range(range))
}

/// What the user `from` of `n` sends within `duration`, in order of time.
pub(super) fn sends(n: usize, from: usize, duration: Duration, seed: u64) -> Vec<UserSend> {
    let mut rng = seeds::rng(seed, seeds::USERS, 1 + from as u64);
    let anybody = |rng: &mut Rng| (from + rng.random_range(1..n)) % n;
    let friends: Vec<usize> = (0..FRIENDS).map(|_| anybody(&mut rng)).collect();
    let mut sends = Vec::new();
    let mut at = TALKS_EVERY.mul_f64(rng.random_range(0.0..1.0));
    while at < duration {
        let to = if rng.random_range(0..100) < TO_FRIENDS {
            friends[rng.random_range(0..FRIENDS)]
        } else {
            anybody(&mut rng)
        };
        let mut when = at;
        for _ in 0..rng.random_range(1..=MOST_MESSAGES) {
            let (lane, bytes) = match rng.random_range(0..100) {
                0..93 => (TEXT_LANE, rng.random_range(20..400)),
                93..99 => (PICTURE_LANE, rng.random_range(2_000..12_000)),
                _ => (PICTURE_LANE, 60_000),
            };
            let short = rng.random_range(0..100) < 5;
            sends.push(UserSend {
                at: when.min(duration),
                to,
                lane,
                bytes,
                ttl: if short { SHORT_TTL } else { TTL },
            });
            if rng.random_range(0..2) == 0 {
                when += PAUSE.mul_f64(rng.random_range(0.0..1.0));
            }
        }
        at += TALKS_EVERY.mul_f64(rng.random_range(0.5..1.5));
    }
    // Stable: what is sent at the same moment stays in the order in which it was drawn.
    sends.sort_by_key(|send| send.at);
    sends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(count: usize) -> Vec<Place> {
        let place = |index| Place {
            relay: format!("relay-{index}"),
            user: format!("client-{index}"),
            latitude: 0.0,
            longitude: 0.0,
        };
        (0..count).map(place).collect()
    }

    #[test]
    fn the_seed_spreads_users_over_all_places_and_each_place_has_its_own_one() {
        let all = users(&places(12), 200, 3);
        assert_eq!(all.len(), 200);
        assert_eq!(all, users(&places(12), 200, 3));
        assert_ne!(all, users(&places(12), 200, 4));
        for (place, own) in all[..12].iter().enumerate() {
            assert_eq!(own.name, format!("client-{place}"));
            assert_eq!((own.place, own.access), (place, Duration::ZERO));
        }
        let mut names: Vec<&str> = all.iter().map(|user| user.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 200);
        let at = |place| all.iter().filter(|user| user.place == place).count();
        assert!((0..12).all(|place| at(place) >= 5));
    }

    #[test]
    fn users_send_texts_and_pictures_to_others_within_the_time() {
        let duration = Duration::from_secs(20);
        let mut all = Vec::new();
        for from in 0..200 {
            let sends = sends(200, from, duration, 1);
            assert!(sends.iter().all(|send| send.to < 200 && send.to != from));
            assert!(sends.iter().all(|send| send.at <= duration));
            assert!(sends.is_sorted_by_key(|send| send.at));
            all.extend(sends);
        }
        assert!((1_500..2_500).contains(&all.len()), "{}", all.len());
        let share = |of: fn(&UserSend) -> bool| {
            100 * all.iter().filter(|send| of(send)).count() / all.len()
        };
        assert!((4..10).contains(&share(|send| send.lane == PICTURE_LANE)));
        assert!((2..9).contains(&share(|send| send.ttl == SHORT_TTL)));
        assert!(share(|send| send.at == Duration::ZERO) < 2);
    }
}
