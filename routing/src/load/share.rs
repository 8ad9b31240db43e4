//! How the flows of a pair are dealt to its ways.

use super::{WEIGHT_SUM, links::Links};

/// Ways whose costs with prices differ by less, in ms, count as equal: moving flows for less is
/// unrest without gain.
const DEAD_BAND_MS: f64 = 0.5;

/// One way of a pair.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Way {
    /// Its links, from the origin on, as from·n + to.
    pub(super) links: Vec<u32>,
    /// Its cost without prices.
    pub(super) cost: f64,
}

/// The flows of one pair.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) from: usize,
    pub(super) to: usize,
    /// Bytes per second, > 0.
    pub(super) bytes: f64,
    /// The most a further way may cost.
    pub(super) bound: f64,
    /// The primary tree's way first; all different.
    pub(super) ways: Vec<Way>,
    /// What share takes each way; the sum is 1.
    pub(super) share: Vec<f64>,
}

impl Flow {
    /// What detours cost, in ms · bytes/s.
    pub(super) fn detour(&self) -> f64 {
        let ways = self.ways.iter().zip(&self.share);
        let more = |(way, share): (&Way, &f64)| share * (way.cost - self.ways[0].cost);
        self.bytes * ways.map(more).sum::<f64>()
    }

    /// Deals anew.
    pub(super) fn set(&mut self, share: Vec<f64>, links: &mut Links) {
        for ((way, old), new) in self.ways.iter().zip(&self.share).zip(&share) {
            if new != old {
                links.add(&way.links, (new - old) * self.bytes);
            }
        }
        self.share = share;
    }

    /// Adds the flow to the load of its links, or takes it off.
    pub(super) fn carry(&self, links: &mut Links, sign: f64) {
        for (way, share) in self.ways.iter().zip(&self.share) {
            links.add(&way.links, sign * share * self.bytes);
        }
    }

    /// As [`Flow::carry`], with all of it on the primary way.
    pub(super) fn carry_on_primary(&self, links: &mut Links, sign: f64) {
        links.add(&self.ways[0].links, sign * self.bytes);
    }

    /// The dearest way in use and the cheapest of all, when they are not about equal.
    fn unequal(&self, links: &Links, in_use: impl Fn(usize) -> bool) -> Option<(usize, usize)> {
        let (mut dear, mut cheap) = ((f64::NEG_INFINITY, 0), (f64::INFINITY, 0));
        for (index, way) in self.ways.iter().enumerate() {
            let prices = way
                .links
                .iter()
                .map(|&link| links.price(link as usize, 0.0));
            let cost = way.cost + prices.sum::<f64>();
            if cost > dear.0 && in_use(index) {
                dear = (cost, index);
            }
            if cost < cheap.0 {
                cheap = (cost, index);
            }
        }
        (dear.0 - cheap.0 > DEAD_BAND_MS).then_some((dear.1, cheap.1))
    }

    /// By how much `dear` is dearer than `cheap` once `bytes` have moved from one to the other.
    fn gap(&self, dear: usize, cheap: usize, bytes: f64, links: &Links) -> f64 {
        let (dear, cheap) = (&self.ways[dear], &self.ways[cheap]);
        let sum = |way: &Way, other: &Way, more: f64| {
            let own = way.links.iter().filter(|link| !other.links.contains(link));
            way.cost
                + own
                    .map(|&link| links.price(link as usize, more))
                    .sum::<f64>()
        };
        sum(dear, cheap, -bytes) - sum(cheap, dear, bytes)
    }

    /// Moves flows from the dearest to the cheapest way until they cost the same; whether anything
    /// moved.
    fn balance(&mut self, links: &mut Links) -> bool {
        let Some((dear, cheap)) = self.unequal(links, |way| self.share[way] > 0.0) else {
            return false;
        };
        let all = self.share[dear];
        let mut moved = all;
        if self.gap(dear, cheap, all * self.bytes, links) < 0.0 {
            let (mut low, mut high) = (0.0, all);
            for _ in 0..20 {
                moved = 0.5 * (low + high);
                match self.gap(dear, cheap, moved * self.bytes, links) > 0.0 {
                    true => low = moved,
                    false => high = moved,
                }
            }
        }
        if moved < 1e-4 {
            return false;
        }
        let mut share = self.share.clone();
        share[dear] = if moved == all { 0.0 } else { all - moved };
        share[cheap] += moved;
        self.set(share, links);
        true
    }

    /// The shares in whole percents: each rounded down, and what is missing to those that lost
    /// most.
    pub(super) fn percents(&self) -> Vec<u8> {
        let exact: Vec<f64> = self
            .share
            .iter()
            .map(|s| s * f64::from(WEIGHT_SUM))
            .collect();
        let mut percents: Vec<u8> = exact.iter().map(|e| e.floor() as u8).collect();
        let mut order: Vec<usize> = (0..exact.len()).collect();
        order.sort_by(|&a, &b| (exact[b].fract()).total_cmp(&exact[a].fract()));
        let missing = WEIGHT_SUM.saturating_sub(percents.iter().sum());
        for &way in order.iter().cycle().take(usize::from(missing)) {
            percents[way] += 1;
        }
        percents
    }

    /// Rounds to whole percents.
    pub(super) fn round(&mut self, links: &mut Links) {
        let percents = self.percents();
        let share = percents
            .iter()
            .map(|&p| f64::from(p) / f64::from(WEIGHT_SUM));
        self.set(share.collect(), links);
    }

    /// Moves one percent from the dearest to the cheapest way if that is a gain.
    fn step(&mut self, links: &mut Links) -> bool {
        let mut percents = self.percents();
        let Some((dear, cheap)) = self.unequal(links, |way| percents[way] > 0) else {
            return false;
        };
        let unit = self.bytes / f64::from(WEIGHT_SUM);
        // The middle of the step: prices are linear on both sides of their bends.
        if self.gap(dear, cheap, 0.5 * unit, links) <= 0.0 {
            return false;
        }
        percents[dear] -= 1;
        percents[cheap] += 1;
        let share = percents
            .iter()
            .map(|&p| f64::from(p) / f64::from(WEIGHT_SUM));
        self.set(share.collect(), links);
        true
    }
}

/// Lets shares settle: flow by flow, until no way in use is dearer than another or `sweeps` are
/// over. The sum of costs and prices is convex and smooth, so this comes down to its minimum.
pub(super) fn settle(flows: &mut [Flow], links: &mut Links, sweeps: usize) {
    for _ in 0..sweeps {
        let mut moved = false;
        for flow in flows.iter_mut().filter(|flow| flow.ways.len() > 1) {
            moved |= flow.balance(links);
        }
        if !moved {
            break;
        }
    }
}

/// Rounds all shares to whole percents, and mends by single percents what that broke.
pub(super) fn round(flows: &mut [Flow], links: &mut Links) {
    for flow in flows.iter_mut() {
        flow.round(links);
    }
    for _ in 0..20 {
        let mut moved = false;
        for flow in flows.iter_mut().filter(|flow| flow.ways.len() > 1) {
            moved |= flow.step(links);
        }
        if !moved {
            break;
        }
    }
}
