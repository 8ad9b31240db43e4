//! How often each link of a relay is probed, within a budget.
//!
//! A dead link must be noticed in 300 ms where packets go over it, and where they would go next. No
//! relay can afford that for a thousand links, nor is it needed: a link that begins to carry packets
//! is probed fast from the first of them on.
//!
//! # The arithmetic
//! A probe is a QUIC packet of 93 bytes (64 of probe, 3 of DATAGRAM frame, 10 of short header, 16 of
//! AEAD tag): 121 bytes with IPv4 and UDP. The acknowledgement of the peer's probe rides on the next
//! probe of ours if one leaves within 25 ms, which at a probe every 100 ms is so for a quarter of
//! them; the others are packets of their own, of 63 bytes. So one probe a second each way costs, each
//! way, 121 + 0.75 · 63 = 168 bytes and 1.75 packets sent and as many received.
//!
//! | at 1,000 relays | probes/s | packets/s, both ways | kbit/s, each way |
//! |---|---|---|---|
//! | fast: [`FAST_PER_SECOND`] (52 links at 10 Hz, or fewer and denser) | 520 | 1,820 | 699 |
//! | slow: the other 947, each every 9.5 s | 100 | 350 | 134 |
//! | together | 620 | 2,170 | 833 |
//!
//! `tradewind-bench probing` measures it: docs/performance.md. What it takes of a processor are system
//! calls, UDP, AEAD and QUIC's bookkeeping for so many packets that come one by one; the estimators' own
//! work, 0.2 µs for a probe sent and received, is nothing beside it. Reports to the controller come on
//! top of the bits: see the relay's `report` module.

use std::{cmp::Reverse, time::Duration};

/// The interval of links that carry packets, and of links in use that lose some: three probes go out
/// within the detection time even where one comes late.
pub const DENSE: Duration = Duration::from_millis(60);
/// The interval of other links that matter: in the plan, or backups.
pub const FAST: Duration = Duration::from_millis(100);
/// The shortest and the longest interval of the links that do not matter at present.
pub const SLOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Fast and dense probes per second, all links together.
pub const FAST_PER_SECOND: f64 = 520.0;
/// Slow probes per second, all links together (unless even [`SLOW`]'s longest interval makes more).
pub const SLOW_PER_SECOND: f64 = 100.0;
/// At most so many links are probed densely.
const MOST_DENSE: usize = 16;
/// At most so many links are fast only because they are in the plan, without carrying anything.
const MOST_IDLE: usize = 12;

/// What a relay wants of one of its links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkUse {
    /// It has carried packets of clients within the last seconds.
    pub carries: bool,
    /// The other end says that it uses the link.
    pub peer_uses: bool,
    /// Probes are lost on it.
    pub lossy: bool,
    /// To how many destinations it is the first backup of a link that carries packets.
    pub backs_carrying: usize,
    /// To how many destinations it is the plan's next hop.
    pub destinations: usize,
    /// To how many destinations it is the first backup.
    pub backs: usize,
}

/// How a link is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time between two probes, before jitter.
    pub interval: Duration,
    /// We want it fast on our own account: the other end is told so. That the *other* end wants it
    /// does not count, or two ends would keep each other fast for ever.
    pub in_use: bool,
}

/// Shares the budget among all links of a relay; links that matter as much in their order.
#[must_use]
pub fn paces(links: &[LinkUse]) -> Vec<Pace> {
    let mut order: Vec<usize> = (0..links.len()).collect();
    order.sort_by_key(|&link| {
        let LinkUse {
            carries,
            peer_uses,
            lossy: _,
            backs_carrying,
            destinations,
            backs,
        } = links[link];
        Reverse((carries, backs_carrying, peer_uses, destinations, backs))
    });
    let (mut spent, mut dense, mut idle) = (0.0, 0, 0);
    let mut fast: Vec<Option<Pace>> = vec![None; links.len()];
    for link in order {
        let wish = &links[link];
        let busy = wish.carries || wish.backs_carrying > 0;
        let planned = wish.destinations > 0 || wish.backs > 0;
        let in_use = busy || (planned && idle < MOST_IDLE);
        if !in_use && !wish.peer_uses {
            continue;
        }
        let densely = (wish.carries || wish.lossy) && dense < MOST_DENSE;
        let interval = if densely { DENSE } else { FAST };
        let cost = 1.0 / interval.as_secs_f64();
        if spent + cost > FAST_PER_SECOND + 1e-6 {
            continue;
        }
        spent += cost;
        dense += usize::from(densely);
        idle += usize::from(in_use && !busy);
        fast[link] = Some(Pace { interval, in_use });
    }
    let slow = fast.iter().filter(|pace| pace.is_none()).count();
    let interval = Duration::from_secs_f64(slow as f64 / SLOW_PER_SECOND).clamp(SLOW.0, SLOW.1);
    let slow = Pace {
        interval,
        in_use: false,
    };
    fast.into_iter().map(|pace| pace.unwrap_or(slow)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: LinkUse = LinkUse {
        carries: false,
        peer_uses: false,
        lossy: false,
        backs_carrying: 0,
        destinations: 0,
        backs: 0,
    };

    fn per_second(paces: &[Pace], which: impl Fn(&Pace) -> bool) -> f64 {
        paces
            .iter()
            .filter(|pace| which(pace))
            .map(|pace| 1.0 / pace.interval.as_secs_f64())
            .sum()
    }

    #[test]
    fn a_thousand_relays_stay_within_the_budget_whatever_is_in_use() {
        for (carrying, planned, asked) in [(0, 40, 0), (16, 60, 30), (300, 999, 999), (5, 0, 999)] {
            let links: Vec<LinkUse> = (0..999)
                .map(|n| LinkUse {
                    carries: n < carrying,
                    destinations: usize::from(n < planned),
                    peer_uses: n < asked,
                    lossy: n % 3 == 0,
                    ..IDLE
                })
                .collect();
            let paces = paces(&links);
            let fast = |pace: &Pace| pace.interval <= FAST;
            assert!(paces.iter().filter(|pace| fast(pace)).count() <= 64);
            let probes = per_second(&paces, |_| true);
            let bits = probes * (121.0 + 0.75 * 63.0) * 8.0;
            assert!(bits < 950_000.0, "{bits} bit/s");
            let processor = probes * 2.0 * 1.75 * 15e-6;
            assert!(processor < 0.04, "{processor} of a core");
            let slow = paces.iter().find(|pace| !fast(pace)).map(|p| p.interval);
            assert!(slow.is_some_and(|slow| slow >= Duration::from_secs(5) && slow <= SLOW.1));
        }
    }

    #[test]
    fn what_carries_packets_comes_first_then_its_backups_then_the_plan() {
        let mut links = vec![
            LinkUse {
                destinations: 1,
                ..IDLE
            };
            200
        ];
        links[150].carries = true;
        links[160].backs_carrying = 3;
        links[170].destinations = 50;
        let paces = paces(&links);
        let pace = |interval| Pace {
            interval,
            in_use: true,
        };
        assert_eq!(paces[150], pace(DENSE));
        assert_eq!(paces[160], pace(FAST));
        assert_eq!(paces[170], pace(FAST));
        let fast = paces.iter().filter(|pace| pace.in_use).count();
        assert_eq!(fast, 2 + MOST_IDLE);
        assert_eq!(paces[199].interval, Duration::from_secs_f64(1.86));
    }

    #[test]
    fn a_link_that_only_the_other_end_uses_is_fast_but_not_said_to_be_in_use() {
        let peers = LinkUse {
            peer_uses: true,
            ..IDLE
        };
        let paces = paces(&[IDLE, peers]);
        assert_eq!(
            (paces[1].interval, paces[1].in_use, paces[0].interval),
            (FAST, false, SLOW.0)
        );
    }
}
