//! The truth about the emulated network at every moment: which links work and which relays run.

use std::time::Duration;

use tradewind_routing::RttMatrix;

use super::faults::{FaultKind, Who};

/// Links of a way at most: 4 relays of transit.
const MOST_LINKS: usize = 5;

/// Something that has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Applied {
    /// Since measuring began.
    pub(super) at: Duration,
    /// With the victim's place in place of "busiest".
    pub(super) what: FaultKind,
}

/// All that has happened to links and relays.
#[derive(Debug)]
pub(super) struct Ground {
    /// In order of time; the first at 0.
    moments: Vec<Moment>,
}

/// How things are from a moment on.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    /// Since measuring began.
    pub(super) at: Duration,
    n: usize,
    /// Directed links, by (from · n + to): exists and is not cut.
    open: Vec<bool>,
    /// Directed links that work far worse than is normal.
    degraded: Vec<bool>,
    dead: Vec<bool>,
    stalled: Vec<bool>,
}

impl Ground {
    pub(super) fn new(matrix: &RttMatrix, applied: &[Applied]) -> Self {
        let n = matrix.len();
        let exists = (0..n * n).map(|i| matrix.cell(i / n, i % n).is_some());
        let mut now = Moment {
            at: Duration::ZERO,
            n,
            open: exists.collect(),
            degraded: vec![false; n * n],
            dead: vec![false; n],
            stalled: vec![false; n],
        };
        // A stall ends by itself.
        let mut events: Vec<(Duration, Option<FaultKind>, Option<usize>)> = Vec::new();
        for event in applied {
            events.push((event.at, Some(event.what), None));
            if let FaultKind::Stall(relay, by) = event.what {
                events.push((event.at + by, None, Some(relay)));
            }
        }
        events.sort_by_key(|event| event.0);
        let mut moments = vec![now.clone()];
        for (at, what, recovered) in events {
            now.at = at;
            if let Some(relay) = recovered {
                now.stalled[relay] = false;
            }
            if let Some(what) = what {
                now.apply(matrix, what);
            }
            // What leaves links and relays as they are is no moment.
            if moments.last().is_none_or(|last| !last.is_like(&now)) {
                moments.push(now.clone());
            }
        }
        Self { moments }
    }

    /// Whether `holds` at every moment of the time from `from` to `to`.
    pub(super) fn throughout(
        &self,
        from: Duration,
        to: Duration,
        holds: impl Fn(&Moment) -> bool,
    ) -> bool {
        self.during(from, to).all(holds)
    }

    /// Whether all links and relays that there are work all that time as they did at first.
    pub(super) fn is_whole(&self, from: Duration, to: Duration) -> bool {
        self.throughout(from, to, |now| now.is_like(&self.moments[0]))
    }

    /// When something changed last before `to`.
    pub(super) fn last_change(&self, to: Duration) -> Duration {
        let earlier = self.moments.iter().rev().find(|moment| moment.at < to);
        earlier.map_or(Duration::ZERO, |moment| moment.at)
    }

    fn during(&self, from: Duration, to: Duration) -> impl Iterator<Item = &Moment> {
        let first = self
            .moments
            .partition_point(|moment| moment.at <= from)
            .saturating_sub(1);
        self.moments[first..]
            .iter()
            .take_while(move |moment| moment.at <= to.max(from))
    }
}

impl Moment {
    fn apply(&mut self, matrix: &RttMatrix, what: FaultKind) {
        let n = self.n;
        let both = |a: usize, b: usize| [a * n + b, b * n + a];
        match what {
            FaultKind::Cut(a, b) => {
                for link in both(a, b) {
                    self.open[link] = false;
                }
            }
            FaultKind::CutOneWay(a, b) => self.open[a * n + b] = false,
            FaultKind::Brownout(a, b, _) => {
                for link in both(a, b) {
                    self.degraded[link] = true;
                }
            }
            FaultKind::Heal(a, b) => {
                for link in both(a, b) {
                    self.open[link] = matrix.cell(link / n, link % n).is_some();
                    self.degraded[link] = false;
                }
            }
            // One that drains ends when it will.
            FaultKind::Kill(Who::Relay(relay)) | FaultKind::Drain(relay, _) => {
                self.dead[relay] = true;
            }
            FaultKind::Restart(Who::Relay(relay)) => self.dead[relay] = false,
            FaultKind::Stall(relay, _) => self.stalled[relay] = true,
            _ => {}
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.open == other.open
            && self.degraded == other.degraded
            && self.dead == other.dead
            && self.stalled == other.stalled
    }

    /// Whether this relay forwards what comes to it.
    pub(super) fn is_up(&self, relay: usize) -> bool {
        !self.dead[relay] && !self.stalled[relay]
    }

    /// Whether the link works far worse than is normal for it.
    pub(super) fn is_degraded(&self, a: usize, b: usize) -> bool {
        self.degraded[a * self.n + b]
    }

    /// Whether packets pass between two places, both ways.
    pub(super) fn is_open(&self, a: usize, b: usize) -> bool {
        let n = self.n;
        let good = |link: usize| self.open[link] && !self.degraded[link];
        a == b || good(a * n + b) && good(b * n + a)
    }

    /// Whether relays talk over the link: both directions must work.
    pub(super) fn is_usable(&self, a: usize, b: usize) -> bool {
        self.is_up(a) && self.is_up(b) && self.is_open(a, b)
    }

    /// Whether there is a way from one relay to another that packets may take.
    pub(super) fn is_connected(&self, from: usize, to: usize) -> bool {
        let mut reached = vec![false; self.n];
        reached[from] = true;
        let mut newest = vec![from];
        for _ in 0..MOST_LINKS {
            if newest.contains(&to) {
                return true;
            }
            let mut next = Vec::new();
            for &a in &newest {
                for (b, reached) in reached.iter_mut().enumerate() {
                    if !*reached && self.is_usable(a, b) {
                        *reached = true;
                        next.push(b);
                    }
                }
            }
            newest = next;
        }
        from == to && self.is_up(from) || newest.contains(&to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn square() -> RttMatrix {
        RttMatrix::parse("x,a,b,c\na,0,10,10\nb,10,0,\nc,10,,0\n").unwrap()
    }

    #[test]
    fn two_places_are_connected_while_a_way_of_working_links_is_there() {
        let at = |s, what| Applied { at: S(s), what };
        let ground = Ground::new(
            &square(),
            &[
                at(2, FaultKind::CutOneWay(0, 1)),
                at(4, FaultKind::Heal(1, 0)),
                at(5, FaultKind::Stall(0, S(1))),
                at(8, FaultKind::Kill(Who::Relay(0))),
                at(9, FaultKind::Restart(Who::Relay(0))),
            ],
        );
        let connected =
            |from: u64, to: u64| ground.throughout(S(from), S(to), |now| now.is_connected(2, 1));
        assert!(connected(0, 1));
        assert!(!connected(0, 3) && !connected(2, 3) && !connected(3, 5));
        assert!(!connected(5, 5) && connected(6, 7));
        assert!(!connected(7, 8) && connected(9, 100));
        assert_eq!(ground.last_change(S(7)), S(6));
        assert!(ground.is_whole(S(0), S(1)) && ground.is_whole(S(6), S(7)));
        assert!(!ground.is_whole(S(1), S(3)) && !ground.is_whole(S(8), S(8)));
        // What does not touch links and relays changes nothing.
        let noise = at(5, FaultKind::SlowDisk(0, S(1)));
        assert_eq!(Ground::new(&square(), &[noise]).last_change(S(7)), S(0));
    }
}
