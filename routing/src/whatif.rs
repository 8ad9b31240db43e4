//! What a network of relays would do on a given matrix: the best way of every pair of places, and
//! what it would cost if a relay or a link failed.
//!
//! There is a client at every place and a relay at some or all of them. Costs are the cells as
//! they stand: the way from A to B costs the directed cells along it, added up, and
//! [`WhatIf::hop_ms`] for each relay crossed between its ends. The direct way, over no relay, is
//! always one of those compared.
//!
//! How many relays a way may cross: [`MAX_TRANSIT`] between the relays at its two ends. A client
//! at a relay's place uses that one; any other client reaches the network over a link to a relay
//! elsewhere, its edge, which is then crossed in addition. With a relay everywhere this is the
//! optimum of [`best_paths_with_hop_cost`](crate::best_paths_with_hop_cost).

use std::collections::BTreeMap;

use crate::{MAX_TRANSIT, cost::CostMatrix, matrix::RttMatrix, placement::Progress};

/// Places, the links between them, and the relays that may be crossed.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIf {
    cost: CostMatrix,
    is_relay: Vec<bool>,
    hop_ms: f64,
}

impl WhatIf {
    /// Relays at the places `relays`, or everywhere when it is `None`; `hop_ms` is what each relay
    /// crossed adds, in milliseconds.
    ///
    /// # Panics
    /// When a relay is not in the matrix, when there are 65,536 places or more, or when `hop_ms`
    /// is negative or not finite.
    #[must_use]
    pub fn new(matrix: &RttMatrix, relays: Option<&[usize]>, hop_ms: f64) -> Self {
        let n = matrix.len();
        assert!(
            n <= usize::from(u16::MAX),
            "{n} places are more than an index can name"
        );
        assert!(
            hop_ms >= 0.0 && hop_ms.is_finite(),
            "a hop cost of {hop_ms} ms"
        );
        let mut is_relay = vec![relays.is_none(); n];
        for &relay in relays.unwrap_or_default() {
            is_relay[relay] = true;
        }
        Self {
            cost: CostMatrix::from_rtt(matrix),
            is_relay,
            hop_ms,
        }
    }

    /// The same without some links (in both directions) and without some places, clients and all:
    /// these keep their index, but nothing leads to them or from them.
    #[must_use]
    pub fn without(&self, links: &[(usize, usize)], places: &[usize]) -> Self {
        let mut left = self.clone();
        let mut cut = |a, b| {
            left.cost.set(a, b, f64::INFINITY);
            left.cost.set(b, a, f64::INFINITY);
        };
        for &(a, b) in links {
            cut(a, b);
        }
        for &place in places {
            (0..self.len()).for_each(|other| cut(place, other));
        }
        for &place in places {
            left.is_relay[place] = false;
        }
        left
    }

    /// How many places there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cost.len()
    }

    /// Whether there is no place at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What each relay crossed adds, in milliseconds.
    #[must_use]
    pub fn hop_ms(&self) -> f64 {
        self.hop_ms
    }

    /// The places with a relay, in order.
    #[must_use]
    pub fn relays(&self) -> Vec<usize> {
        (0..self.len()).filter(|&i| self.is_relay[i]).collect()
    }

    /// The cost of the link, in milliseconds; `None` where there is none and from a place to
    /// itself.
    #[must_use]
    pub fn direct_ms(&self, from: usize, to: usize) -> Option<f64> {
        self.cost.is_up(from, to).then(|| self.cost.get(from, to))
    }

    /// The best way of every ordered pair. Among ways of equal cost the one over fewer relays is
    /// taken.
    ///
    /// Time O(n² · relays · links of a way) at worst; see [`crate::best_paths`].
    #[must_use]
    pub fn ways(&self) -> Ways {
        let n = self.len();
        let mut ways = Ways {
            n,
            ms: Vec::with_capacity(n * n),
            spans: Vec::with_capacity(n * n),
            crossed: Vec::new(),
        };
        let mut labels = Labels::default();
        for from in 0..n {
            labels.grow(self, from);
            for to in 0..n {
                let label = labels.label(self.layer(from, to), to);
                let start = ways.crossed.len();
                ways.ms.push(labels.ms[label]);
                labels.push_crossed(label, &mut ways.crossed);
                let count = (ways.crossed.len() - start) as u16;
                let start = u32::try_from(start).expect("fewer than 2³² relays on all ways");
                ways.spans.push((start, count));
            }
        }
        ways
    }

    /// What the failure of each single relay, and of each single link in both directions, would
    /// cost. A client whose relay has failed takes another edge or the direct way; what the
    /// failure costs is what the pairs on whose way the relay lies between the ends lose.
    ///
    /// Only what led over the failed part is computed again: O(n²) work for each origin, times the
    /// links of a way squared, about as long as a few calls of [`WhatIf::ways`].
    pub fn failures(&self, progress: &mut dyn FnMut(Progress)) -> Failures {
        let n = self.len();
        let mut relays = vec![Toll::default(); n];
        let mut links: BTreeMap<(u16, u16), Toll> = BTreeMap::new();
        // into[x][y]: over relay y to x.
        let mut into = self.cost.transposed();
        for x in 0..n {
            for y in (0..n).filter(|&y| !self.is_relay[y] && y != x) {
                into.set(x, y, f64::INFINITY);
            }
        }
        let mut labels = Labels::default();
        let mut uses = Uses::default();
        for from in 0..n {
            labels.grow(self, from);
            uses.collect(&labels);
            // No way leads over its own origin.
            let own: Vec<f64> = (0..n).map(|x| into.get(x, from)).collect();
            for x in 0..n {
                into.set(x, from, f64::INFINITY);
            }
            for over in uses.relays.chunk_by(|a, b| a.0 == b.0) {
                let relay = over[0].0;
                let undo = labels.forget(relay.into());
                relays[usize::from(relay)].add(&self.lost(&mut labels, over, &into, None));
                labels.restore(&undo);
            }
            for over in uses.links.chunk_by(|a, b| a.0 == b.0) {
                let link = over[0].0;
                let (a, b) = (usize::from(link.0), usize::from(link.1));
                let (there, back) = (into.get(a, b), into.get(b, a));
                into.set(a, b, f64::INFINITY);
                into.set(b, a, f64::INFINITY);
                let toll = self.lost(&mut labels, over, &into, Some(link));
                links.entry(link).or_default().add(&toll);
                into.set(a, b, there);
                into.set(b, a, back);
            }
            for (x, &ms) in own.iter().enumerate() {
                into.set(x, from, ms);
            }
            progress(Progress::failures(from + 1, n));
        }
        let link = |(link, toll): ((u16, u16), Toll)| ((link.0.into(), link.1.into()), toll);
        Failures {
            relays: self
                .relays()
                .into_iter()
                .map(|relay| (relay, relays[relay]))
                .collect(),
            links: links
                .into_iter()
                // Some are only used by ways that longer ones are better than.
                .filter(|(_, toll)| toll.pairs > 0)
                .map(link)
                .collect(),
        }
    }

    /// Computes the labels in `over` again, all of which lead over what failed, says what the
    /// pairs among them lose, and puts them back. `over` is in order of layers.
    fn lost<T>(
        &self,
        labels: &mut Labels,
        over: &[(T, u32)],
        into: &CostMatrix,
        failed: Option<(u16, u16)>,
    ) -> Toll {
        let n = self.len();
        let mut undo = Vec::with_capacity(over.len());
        for &(_, label) in over {
            let label = label as usize;
            undo.push((label, labels.ms[label]));
            let (layer, to) = (label / n, label % n);
            labels.ms[label] = if layer == 0 {
                // Only a link's failure is felt without crossing a relay.
                debug_assert!(failed.is_some());
                f64::INFINITY
            } else {
                let before = &labels.ms[(layer - 1) * n..layer * n];
                let over_a_relay = least_sum(before, into.row(to)) + self.hop_ms;
                over_a_relay.min(before[to])
            };
        }
        let mut toll = Toll::default();
        for &(label, ms) in &undo {
            if label == labels.label(self.layer(labels.from, label % n), label % n) {
                toll.pairs += 1;
                if labels.ms[label].is_finite() {
                    toll.added_ms += labels.ms[label] - ms;
                } else {
                    toll.cut_off += 1;
                }
            }
        }
        labels.restore(&undo);
        toll
    }

    /// The layer of [`Labels`] that holds the best ways from `from` to `to`: as many as relays may
    /// be crossed.
    fn layer(&self, from: usize, to: usize) -> usize {
        MAX_TRANSIT + usize::from(!self.is_relay[from]) + usize::from(!self.is_relay[to])
    }
}

/// The best ways of all ordered pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Ways {
    n: usize,
    ms: Vec<f64>,
    /// Per pair, where the relays it crosses lie in `crossed`, and how many they are.
    spans: Vec<(u32, u16)>,
    crossed: Vec<u16>,
}

impl Ways {
    /// What the best way costs, in milliseconds; `None` where there is no way. 0 from a place to
    /// itself.
    #[must_use]
    pub fn best_ms(&self, from: usize, to: usize) -> Option<f64> {
        let ms = self.ms[from * self.n + to];
        ms.is_finite().then_some(ms)
    }

    /// The relays that the best way crosses between its ends, in order; none when it is direct or
    /// when there is no way.
    #[must_use]
    pub fn crossed(&self, from: usize, to: usize) -> &[u16] {
        let (start, count) = self.spans[from * self.n + to];
        &self.crossed[start as usize..start as usize + usize::from(count)]
    }

    /// The best way with both its ends; `None` where there is none.
    #[must_use]
    pub fn path(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        self.best_ms(from, to)?;
        let mut path = vec![from];
        path.extend(self.crossed(from, to).iter().map(|&relay| relay as usize));
        if from != to {
            path.push(to);
        }
        Some(path)
    }
}

/// What failures would cost; see [`WhatIf::failures`].
#[derive(Debug, Clone, PartialEq)]
pub struct Failures {
    /// Every relay, in order.
    pub relays: Vec<(usize, Toll)>,
    /// Every link that any best way uses, by its places in order; all others cost nothing.
    pub links: Vec<((usize, usize), Toll)>,
}

/// What one failure costs all pairs together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Toll {
    /// Ordered pairs that must take another way, if they have one.
    pub pairs: usize,
    /// Those that have none.
    pub cut_off: usize,
    /// What the others lose, all together, in milliseconds.
    pub added_ms: f64,
}

impl Toll {
    fn add(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.cut_off += other.cut_off;
        self.added_ms += other.added_ms;
    }
}

/// The best ways from one place, layer by layer (Bellman and Ford's recursion): label `k·n + v` is
/// the least cost of reaching `v` over at most `k` relays.
#[derive(Default)]
struct Labels {
    n: usize,
    from: usize,
    ms: Vec<f64>,
    /// The place before it on that way; of no meaning where the layer below has the same cost.
    before: Vec<u16>,
}

impl Labels {
    fn grow(&mut self, what: &WhatIf, from: usize) {
        let n = what.len();
        (self.n, self.from) = (n, from);
        self.ms.clear();
        self.ms.extend_from_slice(what.cost.row(from));
        self.before.clear();
        self.before.resize(n, from as u16);
        let top = (0..n).map(|to| what.layer(from, to)).max().unwrap_or(0);
        let mut improved: Vec<usize> = (0..n).filter(|&v| what.cost.is_up(from, v)).collect();
        for layer in 1..=top {
            self.ms.extend_from_within((layer - 1) * n..);
            self.before.resize((layer + 1) * n, 0);
            let (below, here) = self.ms.split_at_mut(layer * n);
            let below = &below[(layer - 1) * n..];
            let before = &mut self.before[layer * n..];
            for &via in improved.iter().filter(|&&via| what.is_relay[via]) {
                let so_far = below[via] + what.hop_ms;
                for (to, &link) in what.cost.row(via).iter().enumerate() {
                    let total = so_far + link;
                    if total < here[to] {
                        here[to] = total;
                        before[to] = via as u16;
                    }
                }
            }
            improved.clear();
            improved.extend((0..n).filter(|&v| here[v] < below[v]));
        }
    }

    fn label(&self, layer: usize, to: usize) -> usize {
        layer * self.n + to
    }

    /// The label before this one on its way, and the link between them; `None` at the origin.
    fn step(&self, mut label: usize) -> Option<(usize, (u16, u16))> {
        let to = label % self.n;
        if to == self.from || !self.ms[label].is_finite() {
            return None;
        }
        while label >= self.n && self.ms[label] == self.ms[label - self.n] {
            label -= self.n;
        }
        let before = self.before[label];
        let lower = if label >= self.n {
            label - to - self.n + usize::from(before)
        } else {
            self.from
        };
        Some((lower, (before, to as u16)))
    }

    fn push_crossed(&self, label: usize, crossed: &mut Vec<u16>) {
        let start = crossed.len();
        let mut at = label;
        while let Some((lower, (before, _))) = self.step(at) {
            if usize::from(before) != self.from {
                crossed.push(before);
            }
            at = lower;
        }
        crossed[start..].reverse();
    }

    /// Makes a place unreachable in all layers; gives what was there.
    fn forget(&mut self, place: usize) -> Vec<(usize, f64)> {
        let all = (place..self.ms.len()).step_by(self.n);
        let undo: Vec<_> = all.map(|label| (label, self.ms[label])).collect();
        for &(label, _) in &undo {
            self.ms[label] = f64::INFINITY;
        }
        undo
    }

    fn restore(&mut self, undo: &[(usize, f64)]) {
        for &(label, ms) in undo {
            self.ms[label] = ms;
        }
    }
}

/// Which labels from one place lead over which relays and links: sorted, so that those of one
/// relay or link are together and in order of layers.
#[derive(Default)]
struct Uses {
    relays: Vec<(u16, u32)>,
    links: Vec<((u16, u16), u32)>,
}

impl Uses {
    fn collect(&mut self, labels: &Labels) {
        self.relays.clear();
        self.links.clear();
        for label in 0..labels.ms.len() {
            let mut at = label;
            while let Some((lower, (before, to))) = labels.step(at) {
                let link = (before.min(to), before.max(to));
                self.links.push((link, label as u32));
                if usize::from(before) != labels.from {
                    self.relays.push((before, label as u32));
                }
                at = lower;
            }
        }
        self.relays.sort_unstable();
        self.links.sort_unstable();
    }
}

/// The least of `a[i] + b[i]`.
fn least_sum(a: &[f64], b: &[f64]) -> f64 {
    // Several at a time: a single running minimum would wait for itself.
    let mut least = [f64::INFINITY; 4];
    let (a, b) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest = rest.fold(f64::INFINITY, |least, (a, b)| least.min(a + b));
    for (a, b) in a.zip(b) {
        for lane in 0..4 {
            let sum = a[lane] + b[lane];
            if sum < least[lane] {
                least[lane] = sum;
            }
        }
    }
    least.into_iter().fold(rest, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        best_paths_with_hop_cost, path_cost,
        testing::{arbitrary_costs, metric_costs},
    };
    use proptest::prelude::*;

    /// A network with relays where `mask` has a bit.
    fn network(cost: &CostMatrix, mask: u32, hop_ms: f64) -> WhatIf {
        WhatIf {
            cost: cost.clone(),
            is_relay: (0..cost.len()).map(|i| mask >> i & 1 == 1).collect(),
            hop_ms,
        }
    }

    /// By trying every simple path over relays.
    fn brute_force(what: &WhatIf, from: usize, to: usize) -> f64 {
        fn visit(what: &WhatIf, path: &mut Vec<usize>, ms: f64, to: usize, left: usize) -> f64 {
            let at = path[path.len() - 1];
            let mut best = ms + what.cost.get(at, to);
            for via in 0..what.len() {
                if left > 0 && what.is_relay[via] && via != to && !path.contains(&via) {
                    path.push(via);
                    let onward = ms + what.cost.get(at, via) + what.hop_ms;
                    best = best.min(visit(what, path, onward, to, left - 1));
                    path.pop();
                }
            }
            best
        }
        if from == to {
            return 0.0;
        }
        let elsewhere = |place: usize| usize::from(!what.is_relay[place]);
        let left = 4 + elsewhere(from) + elsewhere(to);
        visit(what, &mut vec![from], 0.0, to, left)
    }

    /// What one failure costs, by computing everything again. Pairs that end at `place` are not
    /// looked at.
    fn toll(what: &WhatIf, failed: &WhatIf, place: Option<usize>) -> (usize, f64) {
        let (before, after) = (what.ways(), failed.ways());
        let mut toll = (0, 0.0);
        for from in (0..what.len()).filter(|&from| Some(from) != place) {
            for to in (0..what.len()).filter(|&to| Some(to) != place) {
                match (before.best_ms(from, to), after.best_ms(from, to)) {
                    (Some(_), None) => toll.0 += 1,
                    (Some(before), Some(after)) => toll.1 += after - before,
                    (None, _) => {}
                }
            }
        }
        toll
    }

    proptest! {
        #[test]
        fn every_pair_has_the_best_of_all_ways_over_the_relays(
            cost in arbitrary_costs(2..=7),
            mask in any::<u32>(),
            hop_ms in prop_oneof![Just(0.0), Just(0.25)],
        ) {
            let what = network(&cost, mask, hop_ms);
            let ways = what.ways();
            for from in 0..cost.len() {
                for to in 0..cost.len() {
                    let optimum = brute_force(&what, from, to);
                    prop_assert_eq!(ways.best_ms(from, to).unwrap_or(f64::INFINITY), optimum);
                    let Some(path) = ways.path(from, to) else { continue };
                    prop_assert_eq!((path[0], path[path.len() - 1]), (from, to));
                    let crossed = ways.crossed(from, to);
                    prop_assert!(crossed.iter().all(|&relay| what.is_relay[relay as usize]));
                    let hops = crossed.len() as f64 * hop_ms;
                    prop_assert_eq!(path_cost(&cost, &path) + hops, optimum);
                }
            }
        }

        #[test]
        fn with_relays_everywhere_it_is_what_the_planner_compares_itself_with(
            seed in any::<u64>(),
            n in 2..=24usize,
            missing in prop_oneof![Just(0.0), Just(0.4), Just(0.8)],
        ) {
            let cost = metric_costs(n, seed, missing);
            let ways = network(&cost, u32::MAX, 0.5).ways();
            let best = best_paths_with_hop_cost(&cost, MAX_TRANSIT, 0.5);
            for from in 0..n {
                for to in 0..n {
                    let ms = ways.best_ms(from, to).unwrap_or(f64::INFINITY);
                    prop_assert_eq!(ms, best.cost(from, to));
                    prop_assert_eq!(ways.crossed(from, to), best.transit(from, to));
                }
            }
        }

        #[test]
        fn a_failure_costs_what_computing_everything_without_it_says(
            cost in arbitrary_costs(2..=8),
            mask in prop_oneof![Just(u32::MAX), any::<u32>()],
            hop_ms in prop_oneof![Just(0.0), Just(0.25)],
        ) {
            let what = network(&cost, mask, hop_ms);
            let failures = what.failures(&mut |_| {});
            for &(relay, told) in &failures.relays {
                let (cut_off, added_ms) = toll(&what, &what.without(&[], &[relay]), Some(relay));
                prop_assert_eq!((told.cut_off, told.added_ms), (cut_off, added_ms));
                prop_assert!(told.pairs >= told.cut_off);
            }
            for a in 0..cost.len() {
                for b in a + 1..cost.len() {
                    let told = failures.links.iter().find(|(link, _)| *link == (a, b));
                    let told = told.map_or_else(Toll::default, |(_, toll)| *toll);
                    let (cut_off, added_ms) = toll(&what, &what.without(&[(a, b)], &[]), None);
                    prop_assert_eq!((told.cut_off, told.added_ms), (cut_off, added_ms));
                }
            }
        }
    }

    fn line() -> RttMatrix {
        // a - b - c - d in a row, each link 10 ms there and 20 ms back; a - d also directly.
        RttMatrix::parse("x,a,b,c,d\na,0,10,,90\nb,20,0,10,\nc,,20,0,10\nd,100,,20,0\n").unwrap()
    }

    #[test]
    fn directions_are_never_averaged_and_each_relay_crossed_costs_its_hop() {
        let what = WhatIf::new(&line(), None, 1.5);
        let ways = what.ways();
        assert_eq!(ways.best_ms(0, 3), Some(33.0));
        assert_eq!(ways.path(0, 3), Some(vec![0, 1, 2, 3]));
        assert_eq!(ways.best_ms(3, 0), Some(63.0));
        assert_eq!(
            (what.direct_ms(3, 0), what.direct_ms(0, 2)),
            (Some(100.0), None)
        );
        let direct = WhatIf::new(&line(), None, 60.0).ways();
        assert_eq!(direct.path(0, 3), Some(vec![0, 3]));
    }

    #[test]
    fn clients_away_from_the_relays_reach_them_over_a_link() {
        let ways = WhatIf::new(&line(), Some(&[1]), 1.0).ways();
        assert_eq!(
            ways.path(0, 2),
            Some(vec![0, 1, 2]),
            "b is the edge of both"
        );
        assert_eq!(ways.best_ms(0, 2), Some(21.0));
        assert_eq!(
            ways.path(0, 3),
            Some(vec![0, 3]),
            "c has no relay to go over"
        );
        assert_eq!(ways.path(1, 3), None);
    }

    #[test]
    fn a_place_that_is_gone_is_neither_reached_nor_crossed() {
        let what = WhatIf::new(&line(), None, 0.0).without(&[], &[1]);
        let ways = what.ways();
        assert_eq!((what.relays(), ways.path(0, 1)), (vec![0, 2, 3], None));
        assert_eq!(ways.path(0, 2), Some(vec![0, 3, 2]));
    }
}
