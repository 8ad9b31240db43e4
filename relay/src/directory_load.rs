//! What a million users in the directory take, and how fast they are found. It prints, and judges
//! nothing but that all are found:
//!
//! `cargo test --release -p tradewind-relay directory_load -- --ignored --nocapture`

use std::time::{Duration, Instant};

use tradewind_proto::{Locator, RelayIndex, UserKey};

use crate::directory::{Directory, LEASE, SWEEP_SHARE, Whereabouts};

const USERS: u32 = 1_000_000;
const LOOKUPS: u32 = 2_000_000;

fn user(n: u32) -> UserKey {
    UserKey {
        app: "chat".into(),
        user: format!("user-{n}"),
    }
}

/// Memory that this process holds, bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this needs Linux");
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.expect("the kernel says how much memory a process holds") << 10
}

#[allow(clippy::disallowed_methods)] // it measures
fn now() -> Instant {
    Instant::now()
}

#[test]
#[ignore = "a measurement"]
fn a_million_users_and_two_million_lookups() {
    let start = now();
    let directory = Directory::new(start);
    let before = memory();
    for n in 0..USERS {
        let at = Whereabouts {
            locator: Locator {
                relay: RelayIndex((n % 50) as u16),
                slot: n,
                generation: n.wrapping_mul(0x9e37_79b9),
            },
            instance: u64::from(n),
            leg_us: 20_000,
            standby: false,
        };
        assert!(directory.announce(&user(n), at, LEASE, start));
    }
    let (announced, after) = (now(), memory());
    // The questions as they come: their names have been parsed.
    let asked: Vec<UserKey> = (0..LOOKUPS)
        .map(|n| user(n.wrapping_mul(2_654_435_761) % USERS))
        .collect();
    let begun = now();
    let found = asked
        .iter()
        .filter(|user| !directory.lookup(user, start).is_empty())
        .count();
    let took = begun.elapsed();
    assert_eq!(found, LOOKUPS as usize);
    let swept = now();
    directory.sweep(SWEEP_SHARE, start);
    let sweep = swept.elapsed();
    assert_eq!(directory.len(), USERS as usize);
    let per_second = |count: u32, took: Duration| f64::from(count) / took.as_secs_f64();
    println!(
        "{:.0} bytes for each of {USERS} users; {:.0} announcements/s; {:.0} lookups/s; \
         {:.1} ms for a sweep of one in {SWEEP_SHARE}",
        (after - before) as f64 / f64::from(USERS),
        per_second(USERS, announced - start),
        per_second(LOOKUPS, took),
        sweep.as_secs_f64() * 1e3,
    );
}
