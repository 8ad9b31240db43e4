//! Steady flows: one-way media packets at an even pace across what is about to fail, and how long
//! they fell silent.
//!
//! The *gap* of a flow is the longest time between two arrivals in a row of which the later one
//! comes after the fault, by network time; nothing is taken off for the pace (20 ms). When the
//! packets sent last do not arrive, the flow was not routed around the fault, and its gap goes on
//! to the end.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tradewind_routing::RttMatrix;

use super::{
    faults::{FaultKind, Who, Worse},
    ground::Applied,
    trails::Trail,
};

/// Time between two packets of a flow.
pub(super) const PACE: Duration = Duration::from_millis(20);
/// Flows begin so long before the fault, …
pub(super) const BEFORE: Duration = Duration::from_secs(2);
/// … and end so long after it, or when it is healed.
pub(super) const AFTER: Duration = Duration::from_secs(4);
/// Flows per fault.
pub(super) const MOST_FLOWS: usize = 120;

/// A dead link is found within this time …
const DETECTION: Duration = Duration::from_millis(300);
/// … and one that is far worse than normal within this, if the packets of this time can tell.
const BROWNOUT_DETECTION: Duration = Duration::from_millis(200);
/// Fewer packets lost are an accident.
const LEAST_LOST: i32 = 3;
/// So far apart are packets on a link that carries one flow: 50 of it a second, and 16 probes.
const EVIDENCE_PACE: Duration = Duration::from_millis(15);
/// The chance that those of the bound tell too little.
const TELLS_TOO_LITTLE: f64 = 0.01;
/// Until the first packet after a lost one is sent, and acknowledged.
const ACKNOWLEDGED: Duration = Duration::from_millis(40);
/// A flow of which nothing sent in the last so long arrives is silent.
const SILENT: Duration = Duration::from_millis(500);

/// Sent and received packets of all pairs.
#[derive(Debug)]
pub(super) struct Steady {
    n: usize,
    logs: Mutex<Vec<Log>>,
}

/// Packets of one pair, by network time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Log {
    /// By number.
    pub(super) sent: Vec<Duration>,
    /// In order of time, with the numbers.
    pub(super) arrived: Vec<(Duration, u32)>,
}

impl Steady {
    pub(super) fn new(n: usize) -> Self {
        Self {
            n,
            logs: Mutex::new(vec![Log::default(); n * n]),
        }
    }

    /// Takes a note of a packet and gives it its number.
    pub(super) fn sent(&self, from: usize, to: usize, now: Duration) -> u32 {
        let log = &mut self.lock()[from * self.n + to];
        log.sent.push(now);
        log.sent.len() as u32 - 1
    }

    pub(super) fn arrived(&self, from: usize, to: usize, number: u32, now: Duration) {
        self.lock()[from * self.n + to].arrived.push((now, number));
    }

    pub(super) fn log(&self, from: usize, to: usize) -> Log {
        self.lock()[from * self.n + to].clone()
    }

    /// Forgets all packets.
    pub(super) fn clear(&self) {
        self.lock().fill(Log::default());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Log>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How one flow came over one fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlowGap {
    pub(super) from: usize,
    pub(super) to: usize,
    /// An end's own edge was killed: the client had to go elsewhere.
    pub(super) session: bool,
    /// Packets arrive again.
    pub(super) routed: bool,
    pub(super) gap: Duration,
    /// What it may be: detection, the failing link's round trip, and what the new way takes longer.
    pub(super) bound: Duration,
    /// Of a brownout that there is a better way around.
    pub(super) reaction: Option<Reaction>,
    /// By places.
    pub(super) before: Vec<usize>,
    pub(super) after: Vec<usize>,
}

/// How long packets still took a link that had become far worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reaction {
    /// From the beginning until the last packet was sent over it.
    pub(super) took: Duration,
    /// Detection, and the link's round trip as it was then: see [`evidence`] for loss.
    pub(super) bound: Duration,
}

/// One flow and what can be known of it.
pub(super) struct Seen<'a> {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) log: &'a Log,
    /// The way of a packet by its number.
    pub(super) trail: &'a dyn Fn(u32) -> Option<Trail>,
}

/// Judges a flow that `fault` may have hit. Times are since `origin` (network time). `None` when
/// its packets did not cross the fault.
pub(super) fn judge(
    fault: &Applied,
    until: Duration,
    origin: Duration,
    matrix: &RttMatrix,
    seen: &Seen<'_>,
) -> Option<FlowGap> {
    let (at, until) = (origin + fault.at, origin + until);
    let log = seen.log;
    let sent = |number: u32| log.sent.get(number as usize).copied();
    let &(mut previous, last_before) = log.arrived.iter().rfind(|arrival| arrival.0 <= at)?;
    let before = (seen.trail)(last_before)?.path();
    let hit = hit(fault.what, &before)?;

    let (mut gap, mut first_after) = (Duration::ZERO, None);
    for &(arrived, number) in &log.arrived {
        if arrived <= at || sent(number).is_none_or(|sent| sent > until) {
            continue;
        }
        if arrived - previous > gap {
            gap = arrived - previous;
            first_after = Some(number);
        }
        previous = arrived;
    }
    let last_sent = log.sent.iter().rfind(|sent| **sent <= until)?;
    let routed = log.arrived.iter().any(|&(_, number)| {
        sent(number).is_some_and(|sent| sent > at && sent + SILENT >= *last_sent && sent <= until)
    });
    if !routed {
        gap = gap.max(until.saturating_sub(previous));
    }
    let after = first_after
        .and_then(|number| (seen.trail)(number))
        .map(|trail| trail.path())
        .unwrap_or_default();
    let (session, link) = match hit {
        Hit::Edge => (true, None),
        Hit::Link(a, b) => (false, Some((a, b))),
    };
    let link_rtt = link.map_or(Duration::ZERO, |(a, b)| rtt(matrix, a, b));
    let longer = delay(matrix, &after).saturating_sub(delay(matrix, &before));
    let reaction = match (fault.what, link) {
        (FaultKind::Brownout(_, _, worse), Some(link))
            if avoidable(matrix, &before, link, worse) =>
        {
            let bound = match worse {
                Worse::Delay(by) => BROWNOUT_DETECTION + link_rtt + 2 * by,
                // QUIC waits for an eighth of a round trip whether a packet was only overtaken.
                Worse::Loss(ppm) => {
                    evidence(f64::from(ppm) / 1e6) + ACKNOWLEDGED + link_rtt + link_rtt / 8
                }
            };
            let last = last_over(seen, link, at, until);
            Some(Reaction {
                took: last.saturating_sub(at),
                bound,
            })
        }
        _ => None,
    };
    Some(FlowGap {
        from: seen.from,
        to: seen.to,
        session,
        routed,
        gap,
        bound: DETECTION + link_rtt + longer,
        reaction,
        before,
        after,
    })
}

/// Whether a path crosses what fails; and then, whether that is one of its ends.
pub(super) fn crosses(what: FaultKind, path: &[usize]) -> Option<bool> {
    hit(what, path).map(|hit| matches!(hit, Hit::Edge))
}

/// Where a fault hits a path.
enum Hit {
    /// At the edge of one end.
    Edge,
    /// At this link of it, or at the relay where that link ends.
    Link(usize, usize),
}

fn hit(what: FaultKind, path: &[usize]) -> Option<Hit> {
    let link = |fits: &dyn Fn(usize, usize) -> bool| {
        path.windows(2)
            .map(|link| (link[0], link[1]))
            .find(|&(a, b)| fits(a, b))
            .map(|(a, b)| Hit::Link(a, b))
    };
    match what {
        FaultKind::Cut(x, y) | FaultKind::Brownout(x, y, _) | FaultKind::DelayStep(x, y, _) => {
            link(&|a, b| (a, b) == (x, y) || (a, b) == (y, x))
        }
        FaultKind::CutOneWay(x, y) => link(&|a, b| (a, b) == (x, y)),
        FaultKind::Kill(Who::Relay(relay))
        | FaultKind::Stall(relay, _)
        | FaultKind::Drain(relay, _) => {
            if path.first() == Some(&relay) || path.last() == Some(&relay) {
                return Some(Hit::Edge);
            }
            link(&|_, b| b == relay)
        }
        _ => None,
    }
}

/// When a packet was last sent over the link and came over it, at least `at`.
fn last_over(seen: &Seen<'_>, link: (usize, usize), at: Duration, until: Duration) -> Duration {
    let mut last = at;
    for (number, &sent) in seen.log.sent.iter().enumerate() {
        if sent + Duration::from_secs(1) < at || sent > until {
            continue;
        }
        let Some(trail) = (seen.trail)(number as u32) else {
            continue;
        };
        for hops in trail.hops.windows(2) {
            if (hops[0].0, hops[1].0) == link {
                last = last.max(hops[0].1);
            }
        }
    }
    last
}

/// How long packets must be sent over a link that loses this share of them until so many are lost
/// that it cannot be chance, 99 times of 100; not less than the time allowed for any detection.
fn evidence(share: f64) -> Duration {
    let kept = 1.0 - share;
    // By the binomial distribution.
    let tells_too_little = |n: i32| -> f64 {
        let mut term = kept.powi(n);
        let mut sum = 0.0;
        for lost in 0..LEAST_LOST {
            sum += term;
            term *= f64::from(n - lost) / f64::from(lost + 1) * share / kept;
        }
        sum
    };
    let packets = (LEAST_LOST..1_000).find(|&n| tells_too_little(n) <= TELLS_TOO_LITTLE);
    let time = EVIDENCE_PACE * packets.unwrap_or(1_000).unsigned_abs();
    time.max(BROWNOUT_DETECTION)
}

/// Whether the relay before the link has a better way to the end of the path than over the link as
/// it is now: over one relay, or directly.
fn avoidable(matrix: &RttMatrix, path: &[usize], link: (usize, usize), worse: Worse) -> bool {
    let Worse::Delay(added) = worse else {
        return true;
    };
    let Some(at) = path.windows(2).position(|hop| (hop[0], hop[1]) == link) else {
        return false;
    };
    let (here, end) = (path[at], path[path.len() - 1]);
    let over_it = delay(matrix, &path[at..]) + added;
    let one_way = |a: usize, b: usize| {
        let other = (a, b) != link && (b, a) != link;
        matrix.one_way(a, b).filter(|_| other)
    };
    let by_relay = (0..matrix.len())
        .filter(|&by| by != here && by != end)
        .filter_map(|by| Some(one_way(here, by)? + one_way(by, end)?));
    by_relay
        .chain(one_way(here, end))
        .min()
        .is_some_and(|way| way < over_it)
}

/// One-way, in milliseconds of the matrix.
fn delay(matrix: &RttMatrix, path: &[usize]) -> Duration {
    path.windows(2)
        .filter_map(|link| matrix.one_way(link[0], link[1]))
        .sum()
}

fn rtt(matrix: &RttMatrix, a: usize, b: usize) -> Duration {
    let way = |a: usize, b: usize| matrix.one_way(a, b).unwrap_or_default();
    way(a, b) + way(b, a)
}

#[cfg(test)]
mod tests {
    use tradewind_proto::PlanId;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn matrix() -> RttMatrix {
        RttMatrix::parse("x,a,b,c,d\na,0,40,300,60\nb,40,0,40,9\nc,300,40,0,60\nd,60,9,60,0\n")
            .unwrap()
    }

    /// Packets every 20 ms for 3 s from a to c: by way of b until the fault at 1 s, lost for
    /// `lost`, then by way of d.
    fn flow(lost: Duration) -> (Log, impl Fn(u32) -> Option<Trail>) {
        let mut log = Log::default();
        for number in 0..150_u32 {
            let sent = PACE * number;
            log.sent.push(sent);
            // The link from a begins at the fault's place.
            if sent < MS(1_000) {
                log.arrived.push((sent + MS(40), number));
            } else if sent >= MS(1_000) + lost {
                log.arrived.push((sent + MS(60), number));
            }
        }
        let trail = |number: u32| {
            let by = if number < 50 { 1 } else { 3 };
            let sent = PACE * number;
            let hops = [(0, sent), (by, sent + MS(20)), (2, sent + MS(40))];
            Some(Trail::new(PlanId::NONE, hops.to_vec()))
        };
        (log, trail)
    }

    fn judged(what: FaultKind, lost: Duration) -> Option<FlowGap> {
        let (log, trail) = flow(lost);
        let seen = Seen {
            from: 0,
            to: 2,
            log: &log,
            trail: &trail,
        };
        let fault = Applied {
            at: MS(1_000),
            what,
        };
        judge(&fault, MS(3_000), Duration::ZERO, &matrix(), &seen)
    }

    #[test]
    fn the_gap_is_the_silence_and_the_bound_what_detection_link_and_new_way_allow() {
        let flow = judged(FaultKind::Cut(1, 0), MS(200)).unwrap();
        // The last packet of the old way arrives at 1,020 ms, the first of the new one at 1,260.
        assert_eq!(flow.gap, MS(240));
        assert_eq!((flow.before, flow.after), (vec![0, 1, 2], vec![0, 3, 2]));
        // 300 ms, 40 ms for a-b and back, and 60 ms instead of 40.
        assert_eq!(flow.bound, MS(360));
        assert!(flow.routed && !flow.session);
    }

    #[test]
    fn a_flow_that_never_comes_back_is_not_routed_and_silent_to_the_end() {
        let flow = judged(FaultKind::Kill(Who::Relay(1)), MS(5_000)).unwrap();
        assert!(!flow.routed);
        assert_eq!(flow.gap, MS(3_000 - 1_020));
    }

    #[test]
    fn a_killed_edge_is_a_matter_of_the_session_and_what_is_not_crossed_of_nobody() {
        assert!(
            judged(FaultKind::Kill(Who::Relay(2)), MS(200))
                .unwrap()
                .session
        );
        assert_eq!(judged(FaultKind::Cut(0, 3), MS(200)), None);
        assert_eq!(judged(FaultKind::CutOneWay(1, 0), MS(200)), None);
    }

    #[test]
    fn the_reaction_to_a_brownout_counts_packets_still_sent_over_the_link() {
        let brownout = |by| FaultKind::Brownout(0, 1, Worse::Delay(MS(by)));
        let reaction = judged(brownout(100), MS(0)).unwrap().reaction.unwrap();
        assert_eq!(reaction.took, Duration::ZERO);
        assert_eq!(reaction.bound, MS(200 + 40 + 200));
        // 40 ms and 10 more are better than any other way.
        assert_eq!(judged(brownout(10), MS(0)).unwrap().reaction, None);
    }

    #[test]
    fn loss_is_told_from_chance_by_as_many_packets_as_three_losses_take() {
        // Of 25 packets with 30 % of loss fewer than three are lost in 0.9 % of all cases.
        assert_eq!(evidence(0.3), MS(25 * 15));
        assert_eq!(evidence(0.2), MS(39 * 15));
        assert_eq!(evidence(0.9), MS(200));
        let reaction = judged(FaultKind::Brownout(0, 1, Worse::Loss(300_000)), MS(0))
            .unwrap()
            .reaction
            .unwrap();
        assert_eq!(reaction.bound, MS(375 + 40 + 40 + 5));
    }
}
