//! What must hold whatever fails:
//!
//! - every message is delivered exactly once, and in order;
//! - no packet visits a relay twice, and no packet is dropped because it would;
//! - no packet sees two plans;
//! - nobody is unreachable for longer than failover takes while there is a way;
//! - no destination's tree changes more than once a minute between the same two choices, unless
//!   what it leaves has failed, or does not answer the controller.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use serde::Serialize;
use tradewind_proto::PlanId;

use super::{
    faults::FaultKind,
    ground::{Applied, Ground},
    options::Scenario,
    record::Pair,
    steady::Log,
    traffic::STEADY,
    users,
    world::Watched,
};

/// While invariants are checked every client sends every other one a packet so often.
pub(super) const PACE: Duration = Duration::from_millis(200);
/// How often the plan in force is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Failover: a dead link is found within this time.
const DETECTION: Duration = Duration::from_millis(300);
/// Of a flow over a link that loses many packets, a few in a row are lost by chance before the link
/// is left.
const BY_CHANCE: Duration = Duration::from_secs(1);
/// A client leaves an edge that does not answer within a second, and is at another one half a second
/// later: of a flow that has come to another edge at one of its ends, that is added.
const OTHER_EDGE: Duration = Duration::from_millis(1_500);
/// Between the same two choices a tree changes once in this time.
const CALM: Duration = Duration::from_secs(60);
/// Who leaves a tree all of whose links have worked for so long leaves it by choice.
const WORKED: Duration = Duration::from_secs(2);

/// What is told of the time before something that must not be.
const LATELY: Duration = Duration::from_secs(2);

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    /// Which of them is broken.
    pub(crate) invariant: &'static str,
    /// How.
    pub(crate) what: String,
}

/// A plan that has come into force.
#[derive(Debug)]
pub(super) struct PlanInForce {
    /// Since measuring began.
    at: Duration,
    id: PlanId,
    /// By destination: next hops by relay.
    trees: BTreeMap<String, Tree>,
    /// Relays that have not acknowledged plans in time of late: none may lead over them.
    silent: BTreeSet<String>,
}

type Tree = BTreeMap<String, String>;

/// All that is known at the end.
pub(super) struct Facts<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) watched: &'a Watched,
    /// Network time at which measuring began.
    pub(super) origin: Duration,
    pub(super) ground: &'a Ground,
    pub(super) applied: &'a [Applied],
    pub(super) plans: &'a [PlanInForce],
    /// Packets dropped lest they visit a relay twice.
    pub(super) looped: u64,
}

/// Takes a note of every plan that comes into force until network time `end`.
pub(super) async fn follow_plans(watched: &Watched, end: Duration) -> Vec<PlanInForce> {
    let mut plans: Vec<PlanInForce> = Vec::new();
    let mut silent: BTreeMap<String, Duration> = BTreeMap::new();
    while watched.wan.network_time() < end {
        let now = watched.elapsed().unwrap_or_default();
        let relays = watched.controller().map(|controller| controller.relays());
        for relay in relays.into_iter().flatten().filter(|relay| relay.silent) {
            silent.insert(relay.name, now);
        }
        silent.retain(|_, last| *last + WORKED >= now);
        if let Some(controller) = watched.controller()
            && let Some(id) = controller.active_plan()
            && plans.last().is_none_or(|last| last.id != id)
            && let Some(plan) = controller.plan()
        {
            plans.push(PlanInForce {
                at: now,
                id,
                trees: plan.next_hops,
                silent: silent.keys().cloned().collect(),
            });
        }
        watched.wan.sleep(LOOK).await;
    }
    plans
}

/// All violations.
pub(super) fn check(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    messages(&facts.watched.record.all(), facts.scenario, &mut found);
    let (told, count) = facts.watched.trails.wrong();
    if count > 0 {
        found.push(Violation {
            invariant: "no packet visits a relay twice or sees two plans",
            what: format!("{count} times: {}", told.join("; ")),
        });
    }
    if facts.looped > 0 {
        found.push(Violation {
            invariant: "no packet would visit a relay twice",
            what: format!("{} packets were dropped for that", facts.looped),
        });
    }
    reachable(facts, &mut found);
    calm(facts, &mut found);
    found
}

fn messages(pairs: &[Pair], scenario: &Scenario, found: &mut Vec<Violation>) {
    let names = scenario.matrix.names();
    let n = names.len();
    for (index, pair) in pairs.iter().enumerate() {
        let sum =
            |of: fn(&super::record::Received) -> u64| pair.received.iter().map(of).sum::<u64>();
        let (doubled, reordered) = (sum(|lane| lane.duplicates), sum(|lane| lane.reordered));
        let missing = pair.messages_sent - pair.messages_delivered();
        if missing + doubled + reordered > 0 {
            let (from, to) = (&names[index / n], &names[index % n]);
            found.push(Violation {
                invariant: "every message is delivered exactly once, and in order",
                what: format!(
                    "{from} to {to}: of {} messages {missing} not delivered ({:?}), {doubled} doubled, {reordered} out of order",
                    pair.messages_sent, pair.messages_failed
                ),
            });
        }
    }
}

fn reachable(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let names = facts.scenario.matrix.names();
    let n = names.len();
    for (from, to) in (0..n * n).map(|pair| (pair / n, pair % n)) {
        if from == to {
            continue;
        }
        let log = facts.watched.steady.log(from, to);
        let path = |number: u32| {
            let trail = facts.watched.trails.trail(&(STEADY, from, to, number))?;
            Some(trail.path())
        };
        if let Some(silence) = too_silent(facts, &log, (from, to), &path) {
            let Silence {
                from: at,
                lasted,
                bound,
                ..
            } = silence;
            found.push(Violation {
                invariant: "nobody is unreachable for longer than failover takes",
                what: format!(
                    "{} to {}: nothing arrived for {lasted:?} from {at:?} on ({}) though there was a way all the time; at most {bound:?}; the packets sent meanwhile were last seen at {}",
                    names[from],
                    names[to],
                    happened(facts, at),
                    last_seen(facts, &silence.lost, &path),
                ),
            });
        }
    }
}

/// Part of the time in which nothing of a flow arrived.
struct Silence {
    /// Since measuring began: when the part begins.
    from: Duration,
    lasted: Duration,
    /// How long it may have been.
    bound: Duration,
    /// Numbers of the packets between the one before and the one after it.
    lost: Range<u32>,
}

/// The longest part of a silence in which nothing changed and there was a way, if it is too long.
fn too_silent(
    facts: &Facts<'_>,
    log: &Log,
    places: (usize, usize),
    way_of: &dyn Fn(u32) -> Option<Vec<usize>>,
) -> Option<Silence> {
    let mut worst: Option<Silence> = None;
    let last_sent = log.sent.last()?.saturating_sub(facts.origin);
    let mut arrivals: Vec<(Duration, Option<u32>)> = log
        .arrived
        .iter()
        .map(|&(at, number)| (at.saturating_sub(facts.origin), Some(number)))
        .collect();
    arrivals.push((last_sent, None));
    for silence in arrivals.windows(2) {
        let ((begins, number), (ends, next)) = (silence[0], silence[1]);
        let path = number.and_then(way_of).unwrap_or_default();
        let (Some(&edge_in), Some(&edge_out)) = (path.first(), path.last()) else {
            continue;
        };
        let lost = number.map_or(0, |last| last + 1)..next.unwrap_or(log.sent.len() as u32);
        // The session of an end that lost its edge, or the way to it, while the packet before the
        // silence was under way is as much over as when that happens after it has arrived.
        let left = number
            .and_then(|number| log.sent.get(number as usize))
            .map_or(begins, |sent| sent.saturating_sub(facts.origin))
            .min(begins);
        // The flow may have come to another way meanwhile.
        let mut ways = vec![path.clone()];
        ways.extend(next.and_then(way_of));
        ways.extend(lost.clone().filter_map(way_of));
        let ends_at = |way: &[usize]| (way.first().copied(), way.last().copied());
        let moved = ways
            .iter()
            .any(|way| !way.is_empty() && ends_at(way) != ends_at(&path));
        // A client may be far from its edge.
        let links: Vec<(usize, usize)> = ways
            .iter()
            .map(|way| [&[places.0], &way[..], &[places.1]].concat())
            .flat_map(|way| {
                way.windows(2)
                    .map(|link| (link[0], link[1]))
                    .collect::<Vec<_>>()
            })
            .collect();
        // Of several edges it was one that the sender does not reach any more: no relay has seen it.
        let unseen = users::has_several_sessions(places.0)
            && lost.clone().any(|number| way_of(number).is_none());
        let other_edge = if moved || unseen {
            OTHER_EDGE
        } else {
            Duration::ZERO
        };
        let delay = next
            .and_then(|next| log.sent.get(next as usize))
            .map_or(Duration::ZERO, |sent| {
                (facts.origin + ends).saturating_sub(*sent)
            });
        // From the end backwards, by what has changed meanwhile.
        let mut to = ends;
        while to > begins {
            let changed = facts.ground.last_change(to);
            let from = changed.max(begins);
            let healthy = facts.ground.throughout(from, to, |now| {
                links.iter().all(|&(a, b)| !now.is_degraded(a, b))
            });
            let by_chance = if healthy { Duration::ZERO } else { BY_CHANCE };
            let bound =
                DETECTION + slowest_at(facts, changed) + delay + PACE + by_chance + other_edge;
            let silent = to - from;
            let way = || {
                facts
                    .ground
                    .throughout(left, to - Duration::from_nanos(1), |now| {
                        now.is_up(edge_in)
                            && now.is_up(edge_out)
                            && now.is_open(places.0, edge_in)
                            && now.is_open(places.1, edge_out)
                    })
                    && facts
                        .ground
                        .throughout(from, to - Duration::from_nanos(1), |now| {
                            now.is_connected(edge_in, edge_out)
                        })
            };
            let longest = worst.as_ref().map_or(Duration::ZERO, |worst| worst.lasted);
            if silent > bound && silent > longest && way() {
                worst = Some(Silence {
                    from,
                    lasted: silent,
                    bound,
                    lost: lost.clone(),
                });
            }
            to = from;
        }
    }
    worst
}

/// Where these packets got to, in words.
fn last_seen(
    facts: &Facts<'_>,
    lost: &Range<u32>,
    path: &dyn Fn(u32) -> Option<Vec<usize>>,
) -> String {
    let names = facts.scenario.matrix.names();
    let mut places: BTreeMap<String, u32> = BTreeMap::new();
    for number in lost.clone() {
        let way = path(number).unwrap_or_default();
        let way: Vec<&str> = way.iter().map(|&place| names[place].as_str()).collect();
        let way = if way.is_empty() {
            "no relay".to_owned()
        } else {
            way.join(" - ")
        };
        *places.entry(way).or_default() += 1;
    }
    let words: Vec<String> = places
        .iter()
        .map(|(place, count)| format!("{place} ({count})"))
        .collect();
    words.join(", ")
}

/// What had been done to the network shortly before, in words.
fn happened(facts: &Facts<'_>, at: Duration) -> String {
    let lately = facts
        .applied
        .iter()
        .filter(|applied| applied.at <= at && applied.at + LATELY >= at);
    let words: Vec<String> = lately
        .map(|applied| {
            let what = applied.what.describe(&facts.scenario.matrix);
            format!("at {:.3} s: {what}", applied.at.as_secs_f64())
        })
        .collect();
    if words.is_empty() {
        return format!("nothing had been done for {LATELY:?}");
    }
    words.join(", ")
}

/// The round trip of the slowest link that what happened then may have failed; or what is left of that
/// of one that failed shortly before: it is not found any sooner for something else that happens.
fn slowest_at(facts: &Facts<'_>, at: Duration) -> Duration {
    let matrix = &facts.scenario.matrix;
    let rtt = |a: usize, b: usize| {
        let way = |a, b| matrix.one_way(a, b).unwrap_or_default();
        way(a, b) + way(b, a)
    };
    let link = |applied: &Applied| match applied.what {
        FaultKind::Cut(a, b) | FaultKind::CutOneWay(a, b) | FaultKind::Brownout(a, b, _) => {
            rtt(a, b)
        }
        FaultKind::Kill(super::faults::Who::Relay(relay)) | FaultKind::Stall(relay, _) => {
            let others = 0..matrix.len();
            others
                .map(|other| rtt(relay, other))
                .max()
                .unwrap_or_default()
        }
        _ => Duration::ZERO,
    };
    let until_then = facts.applied.iter().filter(|applied| applied.at <= at);
    until_then
        .map(|applied| (applied.at + link(applied)).saturating_sub(at))
        .max()
        .unwrap_or_default()
}

fn calm(facts: &Facts<'_>, found: &mut Vec<Violation>) {
    let places: BTreeMap<&str, usize> = facts
        .scenario
        .places
        .iter()
        .enumerate()
        .map(|(index, place)| (place.relay.as_str(), index))
        .collect();
    let worked = |tree: &Tree, at: Duration| {
        facts
            .ground
            .throughout(at.saturating_sub(WORKED), at, |now| {
                tree.iter().all(|(from, to)| {
                    let place = |name: &String| places.get(name.as_str()).copied();
                    place(from)
                        .zip(place(to))
                        .is_some_and(|(a, b)| now.is_usable(a, b))
                })
            })
    };
    /// Two choices, and when one was last left for the other.
    type Choices<'a> = BTreeMap<(&'a String, &'a Tree, &'a Tree), Duration>;
    let mut changed = Choices::new();
    for plans in facts.plans.windows(2) {
        let (before, after) = (&plans[0], &plans[1]);
        if before.id.epoch != after.id.epoch {
            // Another controller, without memory.
            changed.clear();
            continue;
        }
        for (destination, new) in &after.trees {
            let Some(old) = before.trees.get(destination) else {
                continue;
            };
            // Relays that have come or gone make no choice.
            // Relays that do not answer the controller have to be left as if they had failed.
            let crosses_silent = old
                .values()
                .any(|next| next != destination && after.silent.contains(next));
            if old == new || !old.keys().eq(new.keys()) || crosses_silent || !worked(old, after.at)
            {
                continue;
            }
            let choices = (destination, old.min(new), old.max(new));
            if let Some(last) = changed.insert(choices, after.at)
                && after.at < last + CALM
            {
                found.push(Violation {
                    invariant: "no more than one change a minute between the same two choices",
                    what: format!(
                        "the tree to {destination} changed at {last:?} and at {:?} (plan {})",
                        after.at, after.id
                    ),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::lab::{
        faults::{Fault, Who},
        options::LabArgs,
    };

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        args: LabArgs,
    }

    const S: fn(u64) -> Duration = Duration::from_secs;
    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// Three regions, and what happens to them.
    fn world(applied: &[Applied]) -> (Scenario, Watched, Ground) {
        let line = ["lab", "--virtual", "--regions", "london,frankfurt,ashburn"];
        let mut scenario = Scenario::new(&Program::parse_from(line).args).unwrap();
        let asked = applied
            .iter()
            .map(|&Applied { at, what }| Fault { at, what });
        scenario.faults = asked.collect();
        let watched = Watched::new(&scenario);
        let ground = Ground::new(&scenario.matrix, applied);
        (scenario, watched, ground)
    }

    fn facts<'a>(
        world: &'a (Scenario, Watched, Ground),
        applied: &'a [Applied],
        plans: &'a [PlanInForce],
    ) -> Facts<'a> {
        Facts {
            scenario: &world.0,
            watched: &world.1,
            origin: Duration::ZERO,
            ground: &world.2,
            applied,
            plans,
            looped: 0,
        }
    }

    /// Packets from the first to the second place for 10 s; none arrives from 3 s until `back`.
    fn silent_until(back: Duration) -> Log {
        let mut log = Log::default();
        for number in 0..50_u32 {
            let sent = PACE * number;
            log.sent.push(sent);
            if sent < S(3) || sent >= back {
                log.arrived.push((sent + MS(10), number));
            }
        }
        log
    }

    fn silence(applied: &[Applied], back: Duration) -> Option<Duration> {
        let world = world(applied);
        let facts = facts(&world, applied, &[]);
        too_silent(&facts, &silent_until(back), (0, 1), &|_| Some(vec![0, 1]))
            .map(|silence| silence.lasted)
    }

    #[test]
    fn silence_without_a_reason_is_a_violation_and_detection_takes_its_time() {
        assert_eq!(silence(&[], S(3)), None);
        assert_eq!(silence(&[], MS(3_200)), None);
        assert_eq!(silence(&[], S(5)), Some(MS(2_200)));
        // One that goes on to the end as well.
        assert!(silence(&[], S(100)).is_some());
    }

    #[test]
    fn nobody_is_owed_delivery_without_a_way_or_while_its_edge_is_dead() {
        let at = |s, what| Applied { at: S(s), what };
        let cut_off = [
            at(3, FaultKind::Cut(0, 1)),
            at(3, FaultKind::Cut(0, 2)),
            at(5, FaultKind::Heal(0, 2)),
        ];
        assert_eq!(silence(&cut_off, MS(5_200)), None);
        assert!(silence(&cut_off, MS(6_200)).is_some());
        // There is another way from the beginning.
        assert!(silence(&cut_off[..1], MS(5_200)).is_some());
        let dead = [
            at(3, FaultKind::Kill(Who::Relay(1))),
            at(5, FaultKind::Restart(Who::Relay(1))),
        ];
        assert_eq!(silence(&dead, S(9)), None);
    }

    #[test]
    fn an_edge_that_died_with_a_packet_under_way_ended_the_session() {
        // The last packet is sent at 2.8 s and arrives 10 ms later.
        let at = |ms, what| Applied { at: MS(ms), what };
        let who = Who::Relay(0);
        let dead = [
            at(2_803, FaultKind::Kill(who)),
            at(2_806, FaultKind::Restart(who)),
        ];
        assert_eq!(silence(&dead, S(9)), None);
        // That of a relay between them, or before the packet was sent, is no excuse.
        let dead = [
            at(2_703, FaultKind::Kill(who)),
            at(2_706, FaultKind::Restart(who)),
        ];
        assert!(silence(&dead, S(9)).is_some());
        let who = Who::Relay(2);
        let dead = [
            at(2_803, FaultKind::Kill(who)),
            at(2_806, FaultKind::Restart(who)),
        ];
        assert!(silence(&dead, S(9)).is_some());
    }

    #[test]
    fn a_link_is_not_found_dead_any_sooner_for_what_happens_next() {
        let at = |ms, what| Applied { at: MS(ms), what };
        let cut = at(3_000, FaultKind::Cut(0, 2));
        let then = at(3_020, FaultKind::Kill(Who::Relay(1)));
        let applied = [cut, then];
        let world = world(&applied);
        let facts = facts(&world, &applied, &[]);
        let matrix = &world.0.matrix;
        let rtt = |a, b| matrix.one_way(a, b).unwrap() + matrix.one_way(b, a).unwrap();
        assert_eq!(slowest_at(&facts, S(3)), rtt(0, 2));
        let of_relay = rtt(1, 0).max(rtt(1, 2));
        let left = rtt(0, 2) - MS(20);
        assert_eq!(slowest_at(&facts, MS(3_020)), of_relay.max(left));
        assert_eq!(slowest_at(&facts, MS(3_040)), of_relay.max(left) - MS(20));
        assert_eq!(slowest_at(&facts, S(4)), Duration::ZERO);
    }

    #[test]
    fn on_a_bad_link_packets_in_a_row_are_lost_by_chance_though_the_one_before_went_elsewhere() {
        let applied = [Applied {
            at: S(3),
            what: FaultKind::Brownout(0, 2, super::super::faults::Worse::Loss(300_000)),
        }];
        let world = world(&applied);
        let facts = facts(&world, &applied, &[]);
        let (good, bad) = (
            |_| Some(vec![0, 1]),
            |number| {
                Some(if number < 15 {
                    vec![0, 1]
                } else {
                    vec![0, 2, 1]
                })
            },
        );
        let log = silent_until(MS(4_200));
        assert!(too_silent(&facts, &log, (0, 1), &good).is_some());
        assert!(too_silent(&facts, &log, (0, 1), &bad).is_none());
        let longer = silent_until(MS(5_200));
        assert!(too_silent(&facts, &longer, (0, 1), &bad).is_some());
    }

    #[test]
    fn who_has_several_sessions_may_have_sent_to_an_edge_that_it_does_not_reach() {
        let world = world(&[]);
        let facts = facts(&world, &[], &[]);
        let seen = |number| Some(vec![0, 1]).filter(|_| !(15..21).contains(&number));
        let back = |ms| silent_until(MS(ms));
        assert!(too_silent(&facts, &back(4_200), (0, 1), &seen).is_none());
        assert!(too_silent(&facts, &back(4_200), (1, 0), &seen).is_some());
        assert!(too_silent(&facts, &back(5_200), (0, 1), &seen).is_some());
    }

    fn plan(at: Duration, number: u32, next: &str) -> PlanInForce {
        let tree = [("London".to_owned(), next.to_owned())];
        PlanInForce {
            at,
            id: PlanId { epoch: 1, number },
            trees: [("Ashburn".to_owned(), tree.into())].into(),
            silent: BTreeSet::new(),
        }
    }

    #[test]
    fn two_changes_a_minute_between_the_same_choices_are_one_too_many_unless_forced() {
        let mut flapping = [
            plan(S(0), 1, "Ashburn"),
            plan(S(10), 2, "Frankfurt"),
            plan(S(30), 3, "Ashburn"),
        ];
        let count = |applied: &[Applied], plans: &[PlanInForce]| {
            let world = world(applied);
            let mut found = Vec::new();
            calm(&facts(&world, applied, plans), &mut found);
            found.len()
        };
        assert_eq!(count(&[], &flapping), 1);
        let cut = Applied {
            at: S(9),
            what: FaultKind::Cut(0, 2),
        };
        assert_eq!(count(&[cut], &flapping), 0, "the first was forced");
        flapping[2].silent.insert("Frankfurt".to_owned());
        assert_eq!(count(&[], &flapping), 0, "the second was forced");
        let slow = [
            plan(S(0), 1, "Ashburn"),
            plan(S(10), 2, "Frankfurt"),
            plan(S(71), 3, "Ashburn"),
        ];
        assert_eq!(count(&[], &slow), 0);
    }

    #[test]
    fn a_message_that_is_missing_doubled_or_late_is_a_violation() {
        let world = world(&[]);
        let mut pairs = vec![Pair::default(); 9];
        pairs[1].messages_sent = 2;
        pairs[1].messages_confirmed = 2;
        let check = |pairs: &[Pair]| {
            let mut found = Vec::new();
            messages(pairs, &world.0, &mut found);
            found.len()
        };
        pairs[1].received[0].note(0);
        assert_eq!(check(&pairs), 1);
        pairs[1].received[0].note(1);
        assert_eq!(check(&pairs), 0);
        pairs[1].received[0].note(1);
        assert_eq!(check(&pairs), 1);
    }
}
