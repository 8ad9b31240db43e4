//! Where to put relays: the K places of a matrix from which a network serves clients at all of
//! them best.
//!
//! What is made small is the sum, over all ordered pairs of places, of the best way's cost as in
//! [`WhatIf`]: the directed cells along it plus a hop cost for each relay
//! crossed between its ends. The direct way is one of them ([`choose`]), or all go over at least one
//! relay, as clients do ([`choose_for_clients`]). A pair without any way weighs more than all else. It is a k-median problem with ways over several medians, NP-hard like that one, so the
//! answer is a good one and not always the best one. The search:
//!
//! 1. Two beginnings. One adds, K times, the place that takes most off the sum. The other takes the
//!    places on the ways that save most where relays are everywhere: it sees relays that help only
//!    together, of which the first sees none.
//! 2. Exchange: take a relay away and put the place that now takes most off in its stead, for as
//!    long as any exchange helps (the local search of Teitz and Bart 1968; for k-median a local
//!    optimum of single exchanges is within a factor of 5, Arya et al. 2004, and near 1 in
//!    practice).
//! 3. Where the matrix is small enough, the same with two relays at once.
//!
//! A relay more is one step of Floyd and Warshall's recursion: with relay `v`, the best way from
//! `a` to `b` is the old one or the old ones to and from `v`. So trying one place costs O(n²), a
//! round of additions O(n³), a round of exchanges O(K·n³), one of two at once O(K²·n⁴). The
//! recursion does not count how many relays a way crosses. Up to six relays it is exact all the
//! same; with more the search may believe in ways over more relays than packets may cross, which
//! hardly ever are the best ones.

use crate::{matrix::RttMatrix, whatif::WhatIf};

/// How far a long computation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is about.
    pub stage: Stage,
    /// How much of it is done.
    pub done: usize,
    /// Of how much. While exchanging, what is done may fall back: each exchange that helped makes
    /// all others worth trying again.
    pub total: usize,
}

/// What a long computation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Relays are added one after another.
    Adding,
    /// Relays are exchanged for better ones.
    Exchanging,
    /// Two relays at once are exchanged for better ones.
    ExchangingTwo,
    /// Failures are tried, for each origin.
    Failures,
}

impl Progress {
    pub(crate) fn failures(done: usize, total: usize) -> Self {
        Self {
            stage: Stage::Failures,
            done,
            total,
        }
    }
}

/// Places chosen for relays.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// The places: first the one that helps most alone, then always the one that helps most beside
    /// those before it.
    pub relays: Vec<usize>,
    /// How many exchanges have made it better than it began.
    pub exchanges: usize,
}

/// Stands for "no way": more than any way costs, and little enough for sums over all pairs to keep
/// their microseconds.
const NO_WAY_MS: f64 = 1e9;

/// How many sums may be tried in a round of exchanges of two relays at once: some tenths of a
/// second's work. Enough for 20 relays at 37 places, 10 at 54, 5 at 79.
const MOST_WORK_FOR_TWO: f64 = 2e8;

/// Chooses the `k` best places for relays (all, when there are no more), each relay crossed
/// costing `hop_ms`. The same input gives the same answer.
///
/// `progress` is told after every addition and every exchange tried: about every 0.1 s with 500
/// places.
///
/// ```
/// use tradewind_routing::{RttMatrix, placement};
/// let matrix = RttMatrix::parse(
///     "rtt,Perth,Hong Kong,Vladivostok\nPerth,0,94,498\nHong Kong,94,0,57\nVladivostok,498,57,0\n",
/// )?;
/// assert_eq!(placement::choose(&matrix, 1, 0.2, &mut |_| {}).relays, [1]);
/// # Ok::<(), tradewind_routing::MatrixError>(())
/// ```
///
/// # Panics
/// When `hop_ms` is negative or not finite.
#[must_use]
pub fn choose(
    matrix: &RttMatrix,
    k: usize,
    hop_ms: f64,
    progress: &mut dyn FnMut(Progress),
) -> Placement {
    let none = Reach::new(&WhatIf::new(matrix, Some(&[]), hop_ms), hop_ms);
    search(&none, matrix, k, progress)
}

/// As [`choose`], where all go over at least one relay, however near to each other they are: relays
/// are not only where they shorten ways, but near to everybody too.
///
/// # Panics
/// When `hop_ms` is negative or not finite.
#[must_use]
pub fn choose_for_clients(
    matrix: &RttMatrix,
    k: usize,
    hop_ms: f64,
    progress: &mut dyn FnMut(Progress),
) -> Placement {
    let none = Reach::new(&WhatIf::new(matrix, Some(&[]), hop_ms), hop_ms).without_direct();
    search(&none, matrix, k, progress)
}

fn search(
    none: &Reach,
    matrix: &RttMatrix,
    k: usize,
    progress: &mut dyn FnMut(Progress),
) -> Placement {
    let n = matrix.len();
    let k = k.min(n);
    let everywhere: Vec<usize> = (0..n).collect();
    let begins = [
        none.greedy(k, &everywhere, progress),
        busiest(&WhatIf::new(matrix, None, none.hop_ms), k),
    ];
    let mut searches = begins.map(|relays| {
        let mut search = Search {
            relays,
            exchanges: 0,
        };
        search.exchange_one(none, progress);
        search
    });
    searches.sort_by(|a, b| a.sum(none).total_cmp(&b.sum(none)));
    let [mut found, _] = searches;
    while found.exchange_two(none, progress) {
        found.exchange_one(none, progress);
    }
    Placement {
        relays: none.greedy(k, &found.relays, &mut |_| {}),
        exchanges: found.exchanges,
    }
}

/// The `k` relays over which most is saved where relays are everywhere.
fn busiest(everywhere: &WhatIf, k: usize) -> Vec<usize> {
    let n = everywhere.len();
    let ways = everywhere.ways();
    let mut saved = vec![0.0; n];
    for from in 0..n {
        for to in 0..n {
            let Some(best) = ways.best_ms(from, to) else {
                continue;
            };
            let direct = everywhere.direct_ms(from, to).unwrap_or(NO_WAY_MS);
            for &relay in ways.crossed(from, to) {
                saved[usize::from(relay)] += direct - best;
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| saved[b].total_cmp(&saved[a]));
    order.truncate(k);
    order.sort_unstable();
    order
}

/// Relays that become better by exchanges.
struct Search {
    relays: Vec<usize>,
    exchanges: usize,
}

impl Search {
    fn sum(&self, none: &Reach) -> f64 {
        none.with(&self.relays).sum()
    }

    /// Until no exchange of one relay helps.
    fn exchange_one(&mut self, none: &Reach, progress: &mut dyn FnMut(Progress)) {
        let k = self.relays.len();
        // How many in a row could not be exchanged; and who is tried next.
        let (mut settled, mut next) = (0, 0);
        while settled < k {
            let old = self.relays[next];
            let others = none.with(&self.without(&[old]));
            let now = others.gain(old);
            if let Some((place, gain)) = others.best(self.free(none.n))
                && others.is_better(gain, now)
            {
                self.relays[next] = place;
                self.exchanges += 1;
                settled = 0;
            }
            settled += 1;
            next = (next + 1) % k;
            progress(Progress {
                stage: Stage::Exchanging,
                done: settled,
                total: k,
            });
        }
    }

    /// Looks for two relays that two other places are better than: whether it has found some.
    fn exchange_two(&mut self, none: &Reach, progress: &mut dyn FnMut(Progress)) -> bool {
        let (n, k) = (none.n, self.relays.len());
        let pairs = k * k.saturating_sub(1) / 2;
        if pairs as f64 * (n as f64).powi(4) / 2.0 > MOST_WORK_FOR_TWO {
            return false;
        }
        let mut done = 0;
        for first in 0..k {
            for second in first + 1..k {
                let old = [self.relays[first], self.relays[second]];
                let others = none.with(&self.without(&old));
                let now = others.sum() - others.with(&old).sum();
                let mut best: Option<(usize, usize, f64)> = None;
                for place in (0..n).filter(|place| old.contains(place) || self.is_free(*place)) {
                    let beside = others.with(&[place]);
                    let so_far = others.sum() - beside.sum();
                    let later =
                        (place + 1..n).filter(|other| old.contains(other) || self.is_free(*other));
                    if let Some((other, gain)) = beside.best(later)
                        && best.is_none_or(|(_, _, most)| so_far + gain > most)
                    {
                        best = Some((place, other, so_far + gain));
                    }
                }
                if let Some((place, other, gain)) = best
                    && others.is_better(gain, now)
                {
                    (self.relays[first], self.relays[second]) = (place, other);
                    self.exchanges += 2;
                    return true;
                }
                done += 1;
                progress(Progress {
                    stage: Stage::ExchangingTwo,
                    done,
                    total: pairs,
                });
            }
        }
        false
    }

    fn without(&self, old: &[usize]) -> Vec<usize> {
        let all = self.relays.iter().copied();
        all.filter(|relay| !old.contains(relay)).collect()
    }

    fn is_free(&self, place: usize) -> bool {
        !self.relays.contains(&place)
    }

    fn free(&self, n: usize) -> impl Iterator<Item = usize> {
        (0..n).filter(|&place| self.is_free(place))
    }
}

/// What every ordered pair's best way over some relays costs.
#[derive(Clone)]
struct Reach {
    n: usize,
    /// Row-major, in milliseconds; [`NO_WAY_MS`] where there is none.
    ms: Vec<f64>,
    /// The same of ways over at least one relay, where these are what matters.
    over: Option<Vec<f64>>,
    hop_ms: f64,
}

impl Reach {
    /// Over no relay.
    fn new(direct: &WhatIf, hop_ms: f64) -> Self {
        let n = direct.len();
        let ms = |pair: usize| match (pair / n, pair % n) {
            (from, to) if from == to => 0.0,
            (from, to) => direct.direct_ms(from, to).unwrap_or(NO_WAY_MS),
        };
        Self {
            n,
            ms: (0..n * n).map(ms).collect(),
            over: None,
            hop_ms,
        }
    }

    /// The same, where only ways over relays matter: there is none yet.
    fn without_direct(mut self) -> Self {
        let n = self.n;
        let ms = |pair: usize| if pair / n == pair % n { 0.0 } else { NO_WAY_MS };
        self.over = Some((0..n * n).map(ms).collect());
        self
    }

    fn row(&self, from: usize) -> &[f64] {
        &self.ms[from * self.n..(from + 1) * self.n]
    }

    /// What is to be small.
    fn goal(&self) -> &[f64] {
        self.over.as_ref().unwrap_or(&self.ms)
    }

    fn sum(&self) -> f64 {
        self.goal().iter().sum()
    }

    /// The same with further relays.
    fn with(&self, relays: &[usize]) -> Self {
        let mut more = self.clone();
        relays.iter().for_each(|&relay| more.add(relay));
        more
    }

    /// Whether one gain is larger than another by more than sums are off by rounding, lest two
    /// sets be exchanged for ever.
    fn is_better(&self, gain: f64, than: f64) -> bool {
        gain > than + self.sum() * 1e-11
    }

    /// Puts a relay at `place`.
    fn add(&mut self, place: usize) {
        let onward = self.row(place).to_vec();
        for from in 0..self.n {
            let row = from * self.n..(from + 1) * self.n;
            let so_far = self.ms[row.start + place] + self.hop_ms;
            let over = self.over.iter_mut();
            for rows in over.chain([&mut self.ms]) {
                for (ms, onward) in rows[row.clone()].iter_mut().zip(&onward) {
                    let over = so_far + onward;
                    if over < *ms {
                        *ms = over;
                    }
                }
            }
        }
    }

    /// How much a relay at `place` would take off the sum.
    fn gain(&self, place: usize) -> f64 {
        let onward = self.row(place);
        let mut gain = 0.0;
        for from in 0..self.n {
            let to_place = self.row(from)[place];
            if to_place < NO_WAY_MS {
                let row = &self.goal()[from * self.n..(from + 1) * self.n];
                gain += saved(row, onward, to_place + self.hop_ms);
            }
        }
        gain
    }

    /// The first of the places that take most off.
    fn best(&self, places: impl Iterator<Item = usize>) -> Option<(usize, f64)> {
        let mut best: Option<(usize, f64)> = None;
        for place in places {
            let gain = self.gain(place);
            if best.is_none_or(|(_, most)| gain > most) {
                best = Some((place, gain));
            }
        }
        best
    }

    /// `k` of the places, one after another, each time the one that takes most off.
    fn greedy(&self, k: usize, among: &[usize], progress: &mut dyn FnMut(Progress)) -> Vec<usize> {
        let mut reach = self.clone();
        let mut chosen = Vec::with_capacity(k);
        while chosen.len() < k.min(among.len()) {
            let left = among
                .iter()
                .copied()
                .filter(|place| !chosen.contains(place));
            let (place, _) = reach.best(left).expect("fewer are chosen than there are");
            reach.add(place);
            chosen.push(place);
            progress(Progress {
                stage: Stage::Adding,
                done: chosen.len(),
                total: k,
            });
        }
        chosen
    }
}

/// The sum of what `so_far + onward` takes off each of `row`, where it does.
fn saved(row: &[f64], onward: &[f64], so_far: f64) -> f64 {
    // Sums of floats keep their order, so several at a time must be asked for.
    let mut sums = [0.0; 8];
    let mut add = |lane: usize, ms: f64, onward: f64| {
        let less = ms - (so_far + onward);
        sums[lane] += if less > 0.0 { less } else { 0.0 };
    };
    let (rows, onwards) = (row.chunks_exact(8), onward.chunks_exact(8));
    for (ms, onward) in rows.remainder().iter().zip(onwards.remainder()) {
        add(0, *ms, *onward);
    }
    for (ms, onward) in rows.zip(onwards) {
        for lane in 0..8 {
            add(lane, ms[lane], onward[lane]);
        }
    }
    sums.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CostMatrix, testing::metric_costs};
    use std::fmt::Write as _;

    fn matrix(cost: &CostMatrix) -> RttMatrix {
        let n = cost.len();
        let mut text = String::from("rtt");
        (0..n).for_each(|i| write!(text, ",p{i}").unwrap());
        for i in 0..n {
            write!(text, "\np{i}").unwrap();
            for j in 0..n {
                match cost.is_up(i, j) {
                    true => write!(text, ",{}", cost.get(i, j)).unwrap(),
                    false => text.push(','),
                }
            }
        }
        RttMatrix::parse(&text).unwrap()
    }

    /// The sum that is to be small, by way of the exact computation.
    fn sum(matrix: &RttMatrix, relays: &[usize], hop_ms: f64) -> f64 {
        let ways = WhatIf::new(matrix, Some(relays), hop_ms).ways();
        let n = matrix.len();
        let ms = |pair: usize| ways.best_ms(pair / n, pair % n).unwrap_or(NO_WAY_MS);
        (0..n * n).map(ms).sum()
    }

    /// The least sum of all sets of `k` places.
    fn optimum(matrix: &RttMatrix, k: usize, hop_ms: f64) -> f64 {
        let n = matrix.len();
        let sets = (0..1u32 << n).filter(|set| set.count_ones() as usize == k);
        sets.map(|set| {
            let relays: Vec<usize> = (0..n).filter(|i| set >> i & 1 == 1).collect();
            sum(matrix, &relays, hop_ms)
        })
        .fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn on_small_matrices_it_is_within_a_hundredth_of_the_best_of_all_subsets() {
        let (mut worst, mut missed, mut cases) = (1.0f64, 0, 0);
        for seed in 0..24 {
            let n = 6 + seed as usize % 5;
            let missing = [0.0, 0.0, 0.3][seed as usize % 3];
            let matrix = matrix(&metric_costs(n, seed, missing));
            for k in 1..=4 {
                let placement = choose(&matrix, k, 0.2, &mut |_| {});
                assert_eq!(placement.relays.len(), k);
                let (found, best) = (
                    sum(&matrix, &placement.relays, 0.2),
                    optimum(&matrix, k, 0.2),
                );
                assert!(found >= best * (1.0 - 1e-12));
                worst = worst.max(found / best);
                missed += usize::from(found > best * (1.0 + 1e-9));
                cases += 1;
            }
        }
        println!("worst ratio {worst:.5}, {missed} of {cases} not the best");
        assert!(worst <= 1.01, "{worst}");
        assert!(missed * 20 <= cases, "{missed} of {cases} are not the best");
    }

    #[test]
    fn what_the_search_adds_up_is_what_the_exact_ways_cost() {
        for seed in 0..6 {
            let matrix = matrix(&metric_costs(20, seed, 0.2));
            let relays = [1, 4, 7, 8, 15, 19];
            let mut reach = Reach::new(&WhatIf::new(&matrix, Some(&[]), 0.5), 0.5);
            for (count, &relay) in relays.iter().enumerate() {
                let (before, gain) = (reach.sum(), reach.gain(relay));
                reach.add(relay);
                assert!((before - gain - reach.sum()).abs() <= 1e-9 * before);
                let exact = sum(&matrix, &relays[..=count], 0.5);
                assert!((reach.sum() - exact).abs() <= 1e-9 * exact, "seed {seed}");
            }
        }
    }

    #[test]
    fn for_clients_every_way_goes_over_a_relay() {
        for seed in 0..6 {
            let (matrix, hop_ms) = (matrix(&metric_costs(12, seed, 0.2)), 0.5);
            let n = matrix.len();
            let whole_sum = |relays: &[usize]| {
                // Leg, best way between relays, leg: as clients go.
                let ways = WhatIf::new(&matrix, Some(relays), hop_ms).ways();
                let leg = |from: usize, to: usize| match from == to {
                    true => Some(0.0),
                    false => matrix.cell(from, to),
                };
                let pair = |from: usize, to: usize| {
                    let mut best = NO_WAY_MS;
                    for &entry in relays {
                        for &exit in relays {
                            let between = match entry == exit {
                                true => Some(0.0),
                                false => ways.best_ms(entry, exit).map(|ms| ms + hop_ms),
                            };
                            if let (Some(first), Some(between), Some(last)) =
                                (leg(from, entry), between, leg(exit, to))
                            {
                                best = best.min(first + between + last + hop_ms);
                            }
                        }
                    }
                    best
                };
                let pairs = (0..n * n).map(|pair| (pair / n, pair % n));
                let others = pairs.filter(|(from, to)| from != to);
                others.map(|(from, to)| pair(from, to)).sum::<f64>()
            };
            let direct = WhatIf::new(&matrix, Some(&[]), hop_ms);
            let mut reach = Reach::new(&direct, hop_ms).without_direct();
            for relay in [3, 7, 1, 10] {
                let (before, gain) = (reach.sum(), reach.gain(relay));
                reach.add(relay);
                assert!((before - gain - reach.sum()).abs() <= 1e-9 * before);
            }
            let exact = whole_sum(&[3, 7, 1, 10]);
            assert!((reach.sum() - exact).abs() <= 1e-9 * exact, "seed {seed}");
            let chosen = choose_for_clients(&matrix, 2, hop_ms, &mut |_| {}).relays;
            let pairs = (0..n).flat_map(|a| (0..a).map(move |b| [a, b]));
            let best = pairs
                .map(|pair| whole_sum(&pair))
                .fold(f64::INFINITY, f64::min);
            assert!(whole_sum(&chosen) <= best * 1.01, "seed {seed}");
        }
    }

    #[test]
    fn near_clients_need_a_relay_near_to_them_where_they_cannot_go_directly() {
        // One long way that a relay at `h` shortens; and three places near to each other, far away.
        let matrix = RttMatrix::parse(
            "x,a,b,h,c,d,e\na,0,200,90,300,300,300\nb,200,0,90,300,300,300\nh,90,90,0,300,300,300\n\
             c,300,300,300,0,4,4\nd,300,300,300,4,0,4\ne,300,300,300,4,4,0\n",
        )
        .unwrap();
        assert_eq!(choose(&matrix, 1, 0.0, &mut |_| {}).relays, [2]);
        let mut both = choose_for_clients(&matrix, 2, 0.0, &mut |_| {}).relays;
        both.sort_unstable();
        assert!(both[0] <= 2 && both[1] >= 3, "{both:?}");
    }

    #[test]
    fn relays_that_help_only_together_are_found() {
        // Two clusters; between them a fast line p2 - p3 whose ends are no use alone.
        let mut cost = CostMatrix::from_fn(8, |i, j| if i / 4 == j / 4 { 40.0 } else { 300.0 });
        for (a, b, ms) in [(0, 1, 5.0), (1, 2, 160.0), (3, 2, 150.0)] {
            cost.set(a, b, ms);
            cost.set(b, a, ms);
        }
        cost.set(2, 6, 10.0);
        cost.set(6, 2, 10.0);
        let matrix = matrix(&cost);
        for k in 1..=3 {
            let found = sum(&matrix, &choose(&matrix, k, 0.0, &mut |_| {}).relays, 0.0);
            let best = optimum(&matrix, k, 0.0);
            assert!(found <= best * (1.0 + 1e-9), "{k}: {found} and {best}");
        }
    }

    #[test]
    fn connecting_pairs_comes_before_shortening_ways() {
        // a - hub - b has no other way; c - d gains 100 ms over e.
        let matrix = RttMatrix::parse(
            "x,a,hub,b,c,d,e\na,,1,,,,\nhub,1,,1,,,\nb,,1,,,,\nc,,,,,200,50\nd,,,,200,,50\ne,,,,50,50,\n",
        )
        .unwrap();
        let placement = choose(&matrix, 2, 0.0, &mut |_| {});
        assert_eq!(placement.relays, [1, 5]);
    }

    #[test]
    fn as_many_as_there_are_is_all_and_it_says_how_far_it_is() {
        let matrix = matrix(&metric_costs(5, 1, 0.0));
        let mut told = Vec::new();
        let mut relays = choose(&matrix, 9, 0.0, &mut |progress| told.push(progress)).relays;
        relays.sort_unstable();
        assert_eq!(relays, [0, 1, 2, 3, 4]);
        assert!(told.iter().any(|progress| progress.stage == Stage::Adding));
        let last = told.last().unwrap();
        assert_eq!((last.stage, last.done), (Stage::ExchangingTwo, last.total));
        assert_eq!(choose(&matrix, 0, 0.0, &mut |_| {}).relays, [0usize; 0]);
    }
}
