//! Faults of all kinds, decided by the seed.

use std::time::Duration;

use rand::{RngExt as _, seq::SliceRandom as _};
use tradewind_host::Rng;
use tradewind_routing::RttMatrix;

use super::{
    faults::{Fault, FaultKind, Who, Worse},
    report::best_one_way,
    seeds,
    users::{self, User},
};

/// Shorter than this nothing can fail and be healed.
pub(super) const SHORTEST: Duration = Duration::from_secs(10);
/// Nothing fails before …
const QUIET_BEFORE: Duration = Duration::from_secs(1);
/// … and everything is healed so long before the end.
const QUIET_AFTER: Duration = Duration::from_secs(5);
/// One fault begins every so often, on average.
const EVERY: Duration = Duration::from_millis(900);
/// Something happens to one of so many users every second, on average.
const USERS_PER_SECOND: f64 = 80.0;
/// Percent of the moves that end at the place where the user began; the others end anywhere.
const AT_HOME: u32 = 75;
/// How long users sleep, in seconds: mostly …
const NAP: std::ops::Range<f64> = 1.0..12.0;
/// … and few of them up to a minute: the whole network has to live on for so long.
const LONG_SLEEP: std::ops::Range<f64> = 12.0..60.0;
/// Percent of the sleeps that are long.
const LONG_SLEEPS: u32 = 3;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Cut,
    CutOneWay,
    BrownoutDelay,
    BrownoutLoss,
    DelayStep,
    CrashRelay,
    CrashController,
    Stall,
    Partition,
    ControlLoss,
    ClockStep,
    Drift,
    SlowDisk,
    Drain,
    Disorder,
}

const KINDS: [Kind; 15] = [
    Kind::Cut,
    Kind::CutOneWay,
    Kind::BrownoutDelay,
    Kind::BrownoutLoss,
    Kind::DelayStep,
    Kind::CrashRelay,
    Kind::CrashController,
    Kind::Stall,
    Kind::Partition,
    Kind::ControlLoss,
    Kind::ClockStep,
    Kind::Drift,
    Kind::SlowDisk,
    Kind::Drain,
    Kind::Disorder,
];

/// The faults of a run, in order of time: every kind once in random order, then again while there
/// is time; each healed after a while. Two may be at once, but not of the same link or relay, and
/// only one relay is dead or without a processor at a time: its clients need another one. Meanwhile
/// users move and sleep, but for the first ones, who stay at their relays.
pub(super) fn faults(
    matrix: &RttMatrix,
    users: &[User],
    duration: Duration,
    seed: u64,
) -> Vec<Fault> {
    let mut rng = seeds::rng(seed, seeds::CHAOS, 0);
    let mut plan = Plan {
        links: links_in_use(matrix),
        n: matrix.len(),
        end: duration.saturating_sub(QUIET_AFTER),
        busy_links: Vec::new(),
        relay_free_at: Duration::ZERO,
        controller_free_at: Duration::ZERO,
        faults: Vec::new(),
    };
    let mut kinds: Vec<Kind> = Vec::new();
    let mut at = QUIET_BEFORE;
    while at < plan.end {
        if kinds.is_empty() {
            kinds = KINDS.to_vec();
            kinds.shuffle(&mut rng);
        }
        // Those that nothing is free for at the moment come later.
        let fits = kinds.iter().position(|&kind| plan.add(kind, at, &mut rng));
        if let Some(index) = fits {
            kinds.remove(index);
        }
        at += EVERY.mul_f64(rng.random_range(0.5..1.5));
    }
    let mut faults = plan.faults;
    faults.extend(of_users(matrix.len(), users, duration, seed));
    faults.sort_by_key(|fault| fault.at);
    faults
}

/// What happens to the users from index `n` on.
fn of_users(n: usize, users: &[User], duration: Duration, seed: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut rng = seeds::rng(seed, seeds::USER_FAULTS, 0);
    let movable = users.len().saturating_sub(n);
    if movable == 0 {
        return faults;
    }
    let every = Duration::from_secs_f64(USERS_PER_SECOND / movable as f64);
    // They may still be asleep when everything else is healed; nothing is sent then but by them.
    let end = duration.saturating_sub(QUIET_AFTER);
    let mut awake_at = vec![Duration::ZERO; users.len()];
    let mut at = QUIET_BEFORE;
    while at < end {
        let user = n + rng.random_range(0..movable);
        if awake_at[user] <= at {
            let what = if rng.random_range(0..100) < 60 {
                let place = if rng.random_range(0..100) < AT_HOME {
                    users[user].place
                } else {
                    rng.random_range(0..n)
                };
                let mobile = rng.random_range(0..2) == 0;
                FaultKind::Roam(user, place, users::access(mobile, &mut rng))
            } else {
                let range = if rng.random_range(0..100) < LONG_SLEEPS {
                    LONG_SLEEP
                } else {
                    NAP
                };
                let by = Duration::from_secs_f64(rng.random_range(range));
                awake_at[user] = at + by;
                FaultKind::Sleep(user, by)
            };
            faults.push(Fault { at, what });
        }
        at += every.mul_f64(rng.random_range(0.5..1.5));
    }
    faults
}

struct Plan {
    links: Vec<(usize, usize)>,
    n: usize,
    /// Everything is healed by then.
    end: Duration,
    /// With the time at which they are healed.
    busy_links: Vec<((usize, usize), Duration)>,
    relay_free_at: Duration,
    controller_free_at: Duration,
    faults: Vec<Fault>,
}

impl Plan {
    /// Adds a fault of this kind and its end, if there is something for it.
    fn add(&mut self, kind: Kind, at: Duration, rng: &mut Rng) -> bool {
        let mut until = |from: f64, to: f64| {
            let healed = at + Duration::from_secs_f64(rng.random_range(from..to));
            healed.min(self.end)
        };
        let healed = until(1.5, 4.0);
        match kind {
            Kind::Cut
            | Kind::CutOneWay
            | Kind::BrownoutDelay
            | Kind::BrownoutLoss
            | Kind::DelayStep
            | Kind::Disorder => {
                let Some((a, b)) = self.free_link(at, rng) else {
                    return false;
                };
                let what = match kind {
                    Kind::Cut => FaultKind::Cut(a, b),
                    Kind::CutOneWay => FaultKind::CutOneWay(a, b),
                    Kind::BrownoutDelay => {
                        let by = Duration::from_millis(rng.random_range(80..300));
                        FaultKind::Brownout(a, b, Worse::Delay(by))
                    }
                    Kind::BrownoutLoss => {
                        FaultKind::Brownout(a, b, Worse::Loss(rng.random_range(200_000..400_000)))
                    }
                    Kind::Disorder => FaultKind::Disorder(a, b, rng.random_range(20_000..300_000)),
                    _ => FaultKind::DelayStep(a, b, rng.random_range(5_000..60_000)),
                };
                self.busy_links.push(((a, b), healed));
                self.during(at, what, healed, FaultKind::Heal(a, b));
            }
            Kind::CrashRelay | Kind::Stall | Kind::Drain => {
                if at < self.relay_free_at {
                    return false;
                }
                let relay = rng.random_range(0..self.n);
                if matches!(kind, Kind::Stall) {
                    let by = Duration::from_millis(rng.random_range(50..800));
                    self.push(at, FaultKind::Stall(relay, by));
                    self.relay_free_at = at + by + Duration::from_secs(1);
                } else {
                    let who = Who::Relay(relay);
                    let what = if matches!(kind, Kind::Drain) {
                        let within = Duration::from_millis(rng.random_range(500..3_000));
                        FaultKind::Drain(relay, within)
                    } else {
                        FaultKind::Kill(who)
                    };
                    self.during(at, what, healed, FaultKind::Restart(who));
                    self.relay_free_at = healed + Duration::from_secs(1);
                }
            }
            Kind::CrashController | Kind::Partition | Kind::ControlLoss => {
                if at < self.controller_free_at {
                    return false;
                }
                self.controller_free_at = healed + Duration::from_millis(500);
                let who = Who::Controller;
                let relay = rng.random_range(0..self.n);
                let (what, after) = match kind {
                    Kind::CrashController => (FaultKind::Kill(who), FaultKind::Restart(who)),
                    Kind::Partition => (FaultKind::Partition(relay), FaultKind::Rejoin(relay)),
                    _ => {
                        let ppm = rng.random_range(50_000..400_000);
                        (FaultKind::ControlLoss(ppm), FaultKind::ControlLoss(0))
                    }
                };
                self.during(at, what, healed, after);
            }
            Kind::ClockStep => {
                let relay = rng.random_range(0..self.n);
                self.push(at, FaultKind::StepClock(relay, rng.random_range(-600..600)));
            }
            Kind::Drift => {
                let relay = rng.random_range(0..self.n);
                self.push(at, FaultKind::Drift(relay, rng.random_range(-100..100)));
            }
            Kind::SlowDisk => {
                let relay = rng.random_range(0..self.n);
                let by = Duration::from_millis(rng.random_range(100..1_500));
                let fast = FaultKind::SlowDisk(relay, Duration::ZERO);
                self.during(at, FaultKind::SlowDisk(relay, by), healed, fast);
            }
        }
        true
    }

    fn free_link(&self, at: Duration, rng: &mut Rng) -> Option<(usize, usize)> {
        let busy = |&(a, b): &(usize, usize)| {
            self.busy_links
                .iter()
                .any(|&(link, until)| until >= at && (link == (a, b) || link == (b, a)))
        };
        let free: Vec<(usize, usize)> = self.links.iter().copied().filter(|l| !busy(l)).collect();
        (!free.is_empty()).then(|| free[rng.random_range(0..free.len())])
    }

    fn during(&mut self, at: Duration, what: FaultKind, until: Duration, after: FaultKind) {
        self.push(at, what);
        self.push(until, after);
    }

    fn push(&mut self, at: Duration, what: FaultKind) {
        self.faults.push(Fault { at, what });
    }
}

/// Links on the best way of some pair: those whose failure is felt. Both ways they must exist.
pub(super) fn links_in_use(matrix: &RttMatrix) -> Vec<(usize, usize)> {
    let n = matrix.len();
    let ways = best_one_way(matrix);
    let mut links = Vec::new();
    for from in 0..n {
        for to in (0..n).filter(|&to| to != from) {
            let path = ways.path(from, to).unwrap_or_default();
            for link in path.windows(2) {
                links.push((link[0].min(link[1]), link[0].max(link[1])));
            }
        }
    }
    links.sort_unstable();
    links.dedup();
    links.retain(|&(a, b)| matrix.direct_rtt(a, b).is_some());
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> RttMatrix {
        RttMatrix::parse("x,a,b,c,d\na,0,40,300,60\nb,40,0,40,9\nc,300,40,0,60\nd,60,9,60,0\n")
            .unwrap()
    }

    fn users(count: usize) -> Vec<User> {
        let user = |index: usize| User {
            name: format!("user-{index}"),
            place: index % 4,
            access: Duration::ZERO,
        };
        (0..count).map(user).collect()
    }

    #[test]
    fn everything_that_fails_is_healed_before_the_end_and_the_seed_decides() {
        let duration = Duration::from_secs(20);
        for seed in 0..200 {
            let all = faults(&matrix(), &users(20), duration, seed);
            assert_eq!(all, faults(&matrix(), &users(20), duration, seed));
            assert!(all.iter().all(|fault| fault.at <= duration - QUIET_AFTER));
            for fault in &all {
                let healed = |kind: fn(usize, usize) -> FaultKind, a, b| {
                    all.iter()
                        .any(|other| other.at >= fault.at && other.what == kind(a, b))
                };
                match fault.what {
                    FaultKind::Cut(a, b)
                    | FaultKind::CutOneWay(a, b)
                    | FaultKind::Disorder(a, b, _)
                    | FaultKind::Brownout(a, b, _) => assert!(healed(FaultKind::Heal, a, b)),
                    FaultKind::Kill(who) => assert!(all.iter().any(|other| {
                        other.at > fault.at && other.what == FaultKind::Restart(who)
                    })),
                    FaultKind::Drain(relay, _) => assert!(all.iter().any(|other| {
                        other.at > fault.at && other.what == FaultKind::Restart(Who::Relay(relay))
                    })),
                    FaultKind::Roam(user, place, _) => {
                        assert!((4..20).contains(&user) && place < 4);
                    }
                    FaultKind::Sleep(user, _) => assert!((4..20).contains(&user)),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn every_kind_comes_up_within_a_few_seeds() {
        let kinds: std::collections::BTreeSet<&str> = (0..5)
            .flat_map(|seed| faults(&matrix(), &users(200), Duration::from_secs(20), seed))
            .map(|fault| fault.what.kind())
            .collect();
        assert_eq!(kinds.len(), 19, "{kinds:?}");
    }
}
