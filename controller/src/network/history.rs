//! What was: plans with their reasons and orders, and figures of links over time.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tradewind_proto::{LinkKey, PlanId};

use super::{costs::LinkCosts, links::Usable};

/// Plans that are remembered, in memory and on disk.
pub const MOST_PLANS: usize = 1_000;
/// Orders that are remembered of one plan.
const MOST_ORDERS: usize = 50;

/// Who wanted a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The planner, by itself.
    Planner,
    /// An operator.
    Operator,
    /// A policy that changed, or a schedule in it.
    Policy,
}

/// One plan that was made, as in `/v1/plans`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Its name, `epoch.number`.
    pub plan: String,
    /// When it was made, Unix milliseconds.
    pub made_at_unix_ms: u64,
    /// Who wanted it.
    pub by: By,
    /// What changed and why.
    pub reasons: Vec<String>,
    /// Whether it mended ways that could not be used any more.
    pub repairs: bool,
    /// How many relays it knows.
    pub relays: usize,
    /// How many next hops it has otherwise than the plan before, over all profiles and trees.
    pub changed_next_hops: usize,
    /// Pairs for which one failing link is not bridged by any backup.
    pub unprotected: usize,
    /// From being made to being in force, milliseconds; null: it never was.
    pub activated_after_ms: Option<u64>,
    /// Orders to stamp it, the latest last.
    pub orders: Vec<OrderEntry>,
}

/// One order to stamp a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrderEntry {
    /// Counts within the epoch.
    pub order: u64,
    /// When, Unix milliseconds.
    pub at_unix_ms: u64,
    /// Share of flows that are stamped with the plan, parts per thousand.
    pub share_permille: u32,
    /// What the others are stamped with.
    pub rest: Option<String>,
    /// Who wanted it.
    pub by: By,
    /// Why.
    pub why: String,
}

/// The plans that were made, the latest last.
#[derive(Debug, Default)]
pub(super) struct History {
    entries: VecDeque<PlanEntry>,
}

impl History {
    /// Those of before a restart.
    pub(super) fn restore(&mut self, mut entries: Vec<PlanEntry>) {
        let surplus = entries.len().saturating_sub(MOST_PLANS);
        entries.drain(..surplus);
        self.entries = entries.into();
    }

    pub(super) fn add(&mut self, entry: PlanEntry) {
        self.entries.push_back(entry);
        if self.entries.len() > MOST_PLANS {
            self.entries.pop_front();
        }
    }

    /// Changes the entry of a plan; gives it as it is then.
    pub(super) fn amend(
        &mut self,
        id: PlanId,
        change: impl FnOnce(&mut PlanEntry),
    ) -> Option<PlanEntry> {
        let name = id.to_string();
        let entry = self
            .entries
            .iter_mut()
            .rev()
            .find(|entry| entry.plan == name)?;
        change(entry);
        let surplus = entry.orders.len().saturating_sub(MOST_ORDERS);
        entry.orders.drain(..surplus);
        Some(entry.clone())
    }

    pub(super) fn get(&self, name: &str) -> Option<&PlanEntry> {
        self.entries.iter().rev().find(|entry| entry.plan == name)
    }

    /// The latest first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &PlanEntry> {
        self.entries.iter().rev()
    }
}

/// How often the figures of links are noted down.
pub(super) const FINE: Duration = Duration::from_secs(10);
/// For an hour.
const FINE_SAMPLES: usize = 360;
/// Every 30th of the fine samples is kept for a day.
const COARSE_EVERY: u32 = 30;
const COARSE_SAMPLES: usize = 288;
/// Links whose figures are kept: with 648 samples of 24 bytes each, at most 64 MiB. In larger
/// networks those that the plan uses come first.
const MOST_LINKS: usize = 4_096;

/// The figures of a link at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at_s: u32,
    rtt_ms: f32,
    one_way_ms: f32,
    loss: f32,
    cost_ms: f32,
    state: Usable,
}

#[derive(Debug, Default)]
struct LinkHistory {
    fine: VecDeque<Sample>,
    coarse: VecDeque<Sample>,
    seen: u32,
    /// When the plan used it last.
    used_at: Duration,
}

/// Figures of links over time, within bounded memory.
#[derive(Debug, Default)]
pub(super) struct LinkHistories {
    links: BTreeMap<LinkKey, LinkHistory>,
}

/// One moment of a link, as in `/v1/link`. Unknown figures are null.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleView {
    /// Unix seconds.
    pub at_unix_s: u64,
    /// `up`, `down` or `unknown`.
    pub state: &'static str,
    /// Least round trip of the recent past.
    pub rtt_ms: Option<f32>,
    /// One-way delay.
    pub one_way_ms: Option<f32>,
    /// Share of probes lost, 0 to 1.
    pub loss: Option<f32>,
    /// What routing pays for it in `realtime`.
    pub cost_ms: Option<f32>,
}

impl LinkHistories {
    /// Notes the figures of all links; `used` tells whether the plan in force uses one.
    pub(super) fn note(
        &mut self,
        now: Duration,
        links: &[LinkCosts],
        used: impl Fn(LinkKey) -> bool,
    ) {
        let is_used: Vec<bool> = links.iter().map(|link| used(link.measured.key)).collect();
        let mut newly_used = 0;
        for (link, _) in links.iter().zip(&is_used).filter(|&(_, &is_used)| is_used) {
            match self.links.get_mut(&link.measured.key) {
                Some(history) => history.used_at = now,
                None => newly_used += 1,
            }
        }
        self.make_room(newly_used, now);
        // What is used has the first claim on the room.
        for first in [true, false] {
            for (link, _) in links
                .iter()
                .zip(&is_used)
                .filter(|&(_, &used)| used == first)
            {
                let key = link.measured.key;
                if self.links.len() < MOST_LINKS || self.links.contains_key(&key) {
                    let history = self.links.entry(key).or_default();
                    history.note(sample(now, link));
                    if first {
                        history.used_at = now;
                    }
                }
            }
        }
    }

    /// Forgets links that have not been used for longest, and not `now`, to have room for so many.
    fn make_room(&mut self, wanted: usize, now: Duration) {
        let surplus = (self.links.len() + wanted).saturating_sub(MOST_LINKS);
        if surplus == 0 {
            return;
        }
        let idle = self.links.iter().map(|(&key, link)| (link.used_at, key));
        let mut idle: Vec<_> = idle.filter(|&(used_at, _)| used_at < now).collect();
        idle.sort_unstable();
        for (_, key) in idle.into_iter().take(surplus) {
            self.links.remove(&key);
        }
    }

    /// The samples of a link: those of the last day, every five minutes, and those of the last
    /// hour, the oldest first. `wall` gives the Unix time of a moment.
    pub(super) fn of(
        &self,
        key: LinkKey,
        wall: impl Fn(Duration) -> Duration,
    ) -> (Vec<SampleView>, Vec<SampleView>) {
        let view = |sample: &Sample| SampleView {
            at_unix_s: wall(Duration::from_secs(sample.at_s.into())).as_secs(),
            state: super::views::word(sample.state),
            rtt_ms: known(sample.rtt_ms),
            one_way_ms: known(sample.one_way_ms),
            loss: known(sample.loss),
            cost_ms: known(sample.cost_ms),
        };
        match self.links.get(&key) {
            None => (Vec::new(), Vec::new()),
            Some(history) => (
                history.coarse.iter().map(view).collect(),
                history.fine.iter().map(view).collect(),
            ),
        }
    }
}

impl LinkHistory {
    fn note(&mut self, sample: Sample) {
        if self.seen.is_multiple_of(COARSE_EVERY) {
            push(&mut self.coarse, sample, COARSE_SAMPLES);
        }
        self.seen = self.seen.wrapping_add(1);
        push(&mut self.fine, sample, FINE_SAMPLES);
    }
}

fn push(ring: &mut VecDeque<Sample>, sample: Sample, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(sample);
}

fn sample(now: Duration, link: &LinkCosts) -> Sample {
    let figure = |value: Option<f64>| value.map_or(f32::NAN, |value| value as f32);
    let measured = &link.measured;
    Sample {
        at_s: now.as_secs() as u32,
        rtt_ms: figure(measured.rtt_ms),
        one_way_ms: figure(measured.one_way_ms),
        loss: figure((measured.usable == Usable::Yes).then_some(measured.loss)),
        cost_ms: figure(link.terms[0].map(|terms| terms.total())),
        state: measured.usable,
    }
}

fn known(figure: f32) -> Option<f32> {
    (!figure.is_nan()).then_some(figure)
}

#[cfg(test)]
mod tests {
    use tradewind_proto::{RelayIndex, Uplink};

    use super::{super::links::Measured, *};

    fn link(to: u16, rtt_ms: f64) -> LinkCosts {
        LinkCosts {
            measured: Measured {
                key: LinkKey {
                    from: RelayIndex(0),
                    to: RelayIndex(to),
                    uplink: Uplink(0),
                },
                usable: Usable::Yes,
                one_way_ms: None,
                rtt_ms: Some(rtt_ms),
                loss: 0.0,
                metrics: None,
            },
            terms: [None, None],
            utilisation: 0.0,
            rate: 0.0,
            capacity: f64::INFINITY,
            price: 0.0,
            off_hours: false,
        }
    }

    #[test]
    fn a_link_is_remembered_finely_for_an_hour_and_coarsely_for_a_day() {
        let mut histories = LinkHistories::default();
        let samples = 30 * 3_600 / 10;
        for at in 0..samples {
            histories.note(at * FINE, &[link(1, f64::from(at))], |_| true);
        }
        let key = link(1, 0.0).measured.key;
        let (coarse, fine) = histories.of(key, |at| at);
        assert_eq!((coarse.len(), fine.len()), (288, 360));
        assert_eq!(fine[0].at_unix_s, 29 * 3_600);
        assert_eq!(fine[359].rtt_ms, Some(10_799.0));
        assert_eq!(coarse[1].at_unix_s - coarse[0].at_unix_s, 300);
        assert_eq!(fine[0].one_way_ms, None, "unknown is not 0");
    }

    #[test]
    fn memory_is_bounded_and_links_in_use_come_first() {
        assert!(std::mem::size_of::<Sample>() <= 24);
        let mut histories = LinkHistories::default();
        let links: Vec<LinkCosts> = (0..5_000).map(|to| link(to, 1.0)).collect();
        histories.note(FINE, &links, |_| false);
        assert_eq!(histories.links.len(), MOST_LINKS);
        let used = links[4_999].measured.key;
        assert!(!histories.links.contains_key(&used));
        histories.note(2 * FINE, &links, |key| key == used);
        assert!(histories.links.contains_key(&used));
        assert_eq!(histories.links.len(), MOST_LINKS);
    }
}
