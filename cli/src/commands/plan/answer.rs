//! The answer: what is printed as JSON, and what the tables are made from.

use serde::Serialize;
use tradewind_routing::{Failures, Placement, RttMatrix, Toll, Ways, WhatIf};

use super::Cuts;

#[derive(Debug, Serialize)]
pub(super) struct Answer<'a> {
    pub(super) matrix: &'a str,
    pub(super) place_count: usize,
    pub(super) hop_cost_ms: f64,
    pub(super) relays: Vec<&'a str>,
    #[serde(flatten)]
    pub(super) totals: Totals,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) choice: Option<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<Cut<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failures: Option<FailureLists<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pairs: Option<Vec<Pair<'a>>>,
    #[serde(skip)]
    pub(super) ways: Ways,
}

/// What a network does for all ordered pairs of different places. The numbers that need a pair
/// with a cell are `None` when there is no such pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Totals {
    pub(super) pair_count: usize,
    pub(super) unreachable_count: usize,
    pub(super) direct_count: usize,
    pub(super) improved_over_5pct: usize,
    pub(super) latency_removed_pct: Option<f64>,
    pub(super) median_saving_ms: Option<f64>,
    pub(super) p99_saving_ms: Option<f64>,
    pub(super) pairs_by_relays_crossed: Vec<usize>,
}

/// The best way of one pair.
#[derive(Debug, Serialize)]
pub(super) struct Pair<'a> {
    pub(super) from: &'a str,
    pub(super) to: &'a str,
    pub(super) direct_ms: Option<f64>,
    pub(super) best_ms: f64,
    pub(super) path: Vec<&'a str>,
}

/// Where relays should be.
#[derive(Debug, Serialize)]
pub(super) struct Choice<'a> {
    /// What the relays up to each one do together.
    pub(super) steps: Vec<Step<'a>>,
    /// With a relay at every place.
    pub(super) everywhere_latency_removed_pct: Option<f64>,
    pub(super) exchanges: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Step<'a> {
    pub(super) relay: &'a str,
    pub(super) pair_count: usize,
    pub(super) improved_over_5pct: usize,
    pub(super) latency_removed_pct: Option<f64>,
}

/// What is left without some links and places.
#[derive(Debug, Serialize)]
pub(super) struct Cut<'a> {
    pub(super) links: Vec<[&'a str; 2]>,
    pub(super) places: Vec<&'a str>,
    #[serde(flatten)]
    pub(super) totals: Totals,
    pub(super) worsened_count: usize,
    pub(super) cut_off_count: usize,
    pub(super) added_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pairs: Option<Vec<CutPair<'a>>>,
}

/// A pair that a cut sends another way.
#[derive(Debug, Serialize)]
pub(super) struct CutPair<'a> {
    from: &'a str,
    to: &'a str,
    before_ms: f64,
    best_ms: Option<f64>,
    path: Vec<&'a str>,
}

/// What single failures cost, dearest first.
#[derive(Debug, Serialize)]
pub(super) struct FailureLists<'a> {
    pub(super) relays: Vec<RelayFailure<'a>>,
    pub(super) links: Vec<LinkFailure<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct RelayFailure<'a> {
    pub(super) relay: &'a str,
    #[serde(flatten)]
    pub(super) cost: FailureCost,
}

#[derive(Debug, Serialize)]
pub(super) struct LinkFailure<'a> {
    pub(super) link: [&'a str; 2],
    #[serde(flatten)]
    pub(super) cost: FailureCost,
}

#[derive(Debug, Serialize)]
pub(super) struct FailureCost {
    pub(super) pair_count: usize,
    pub(super) cut_off_count: usize,
    pub(super) added_ms: f64,
}

impl<'a> Answer<'a> {
    pub(super) fn new(name: &'a str, matrix: &'a RttMatrix, whole: &WhatIf) -> Self {
        let ways = whole.ways();
        Self {
            matrix: name,
            place_count: matrix.len(),
            hop_cost_ms: whole.hop_ms(),
            relays: named(matrix, whole.relays()),
            totals: Totals::new(whole, &ways, &[]),
            choice: None,
            cut: None,
            failures: None,
            pairs: None,
            ways,
        }
    }

    pub(super) fn add_choice(
        &mut self,
        matrix: &'a RttMatrix,
        whole: &WhatIf,
        placement: &Placement,
    ) {
        let totals = |relays: Option<&[usize]>| {
            let network = WhatIf::new(matrix, relays, whole.hop_ms());
            Totals::new(&network, &network.ways(), &[])
        };
        let step = |(index, relay): (usize, &usize)| {
            let totals = totals(Some(&placement.relays[..=index]));
            Step {
                relay: &matrix.names()[*relay],
                pair_count: totals.pair_count,
                improved_over_5pct: totals.improved_over_5pct,
                latency_removed_pct: totals.latency_removed_pct,
            }
        };
        self.choice = Some(Choice {
            steps: placement.relays.iter().enumerate().map(step).collect(),
            everywhere_latency_removed_pct: totals(None).latency_removed_pct,
            exchanges: placement.exchanges,
        });
    }

    pub(super) fn add_cut(
        &mut self,
        matrix: &'a RttMatrix,
        cuts: &Cuts,
        left: &WhatIf,
        with_pairs: bool,
    ) {
        let names = matrix.names();
        let ways = left.ways();
        let mut cut = Cut {
            links: cuts
                .links
                .iter()
                .map(|&(a, b)| [names[a].as_str(), names[b].as_str()])
                .collect(),
            places: named(matrix, cuts.places.iter().copied()),
            totals: Totals::new(left, &ways, &cuts.places),
            worsened_count: 0,
            cut_off_count: 0,
            added_ms: 0.0,
            pairs: with_pairs.then(Vec::new),
        };
        for (from, to) in pairs(left.len(), &cuts.places) {
            let Some(before_ms) = self.ways.best_ms(from, to) else {
                continue;
            };
            let best_ms = ways.best_ms(from, to);
            match best_ms {
                Some(after_ms) => {
                    cut.worsened_count += usize::from(after_ms > before_ms);
                    cut.added_ms += after_ms - before_ms;
                }
                None => cut.cut_off_count += 1,
            }
            let path = ways.path(from, to);
            if let Some(changed) = &mut cut.pairs
                && path != self.ways.path(from, to)
            {
                changed.push(CutPair {
                    from: &names[from],
                    to: &names[to],
                    before_ms,
                    best_ms,
                    path: named(matrix, path.unwrap_or_default()),
                });
            }
        }
        self.cut = Some(cut);
    }

    pub(super) fn add_failures(&mut self, matrix: &'a RttMatrix, failures: Failures) {
        let names = matrix.names();
        let Failures {
            mut relays,
            mut links,
        } = failures;
        relays.sort_by(|(_, a), (_, b)| dearest_first(a, b));
        links.sort_by(|(_, a), (_, b)| dearest_first(a, b));
        self.failures = Some(FailureLists {
            relays: relays
                .into_iter()
                .map(|(relay, toll)| RelayFailure {
                    relay: &names[relay],
                    cost: toll.into(),
                })
                .collect(),
            links: links
                .into_iter()
                .map(|((a, b), toll)| LinkFailure {
                    link: [&names[a], &names[b]],
                    cost: toll.into(),
                })
                .collect(),
        });
    }

    pub(super) fn add_pairs(&mut self, matrix: &'a RttMatrix, whole: &WhatIf) {
        let all = pairs(whole.len(), &[]);
        self.pairs = Some(
            all.filter_map(|(from, to)| pair(matrix, whole, &self.ways, from, to))
                .collect(),
        );
    }
}

impl Totals {
    /// Without the pairs that end at `left_out`.
    fn new(network: &WhatIf, ways: &Ways, left_out: &[usize]) -> Self {
        let mut totals = Self {
            pair_count: 0,
            unreachable_count: 0,
            direct_count: 0,
            improved_over_5pct: 0,
            latency_removed_pct: None,
            median_saving_ms: None,
            p99_saving_ms: None,
            pairs_by_relays_crossed: Vec::new(),
        };
        let (mut all_direct, mut all_best) = (0.0, 0.0);
        let mut savings = Vec::new();
        for (from, to) in pairs(network.len(), left_out) {
            let Some(best) = ways.best_ms(from, to) else {
                totals.unreachable_count += 1;
                continue;
            };
            totals.pair_count += 1;
            let crossed = ways.crossed(from, to).len();
            let histogram = &mut totals.pairs_by_relays_crossed;
            histogram.resize(histogram.len().max(crossed + 1), 0);
            histogram[crossed] += 1;
            if let Some(direct) = network.direct_ms(from, to) {
                all_direct += direct;
                all_best += best;
                savings.push(direct - best);
                totals.improved_over_5pct += usize::from(is_improved(direct, best));
            }
        }
        totals.direct_count = savings.len();
        totals.latency_removed_pct =
            (all_direct > 0.0).then(|| 100.0 * (1.0 - all_best / all_direct));
        savings.sort_by(f64::total_cmp);
        totals.median_saving_ms = quantile(&savings, 0.5);
        totals.p99_saving_ms = quantile(&savings, 0.99);
        totals
    }
}

impl From<Toll> for FailureCost {
    fn from(toll: Toll) -> Self {
        Self {
            pair_count: toll.pairs,
            cut_off_count: toll.cut_off,
            added_ms: toll.added_ms,
        }
    }
}

/// The best way of a pair, if it has one.
pub(super) fn pair<'a>(
    matrix: &'a RttMatrix,
    network: &WhatIf,
    ways: &Ways,
    from: usize,
    to: usize,
) -> Option<Pair<'a>> {
    Some(Pair {
        from: &matrix.names()[from],
        to: &matrix.names()[to],
        direct_ms: network.direct_ms(from, to),
        best_ms: ways.best_ms(from, to)?,
        path: named(matrix, ways.path(from, to)?),
    })
}

/// All ordered pairs of different places, without those that end at `left_out`.
pub(super) fn pairs(n: usize, left_out: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    let places: Vec<usize> = (0..n).filter(|place| !left_out.contains(place)).collect();
    let count = places.len();
    (0..count * count)
        .map(move |pair| (places[pair / count], places[pair % count]))
        .filter(|(from, to)| from != to)
}

fn named(matrix: &RttMatrix, places: impl IntoIterator<Item = usize>) -> Vec<&str> {
    let name = |place: usize| matrix.names()[place].as_str();
    places.into_iter().map(name).collect()
}

/// Whether `best` is more than 5 % below `direct`. Exactly 5 % is not more, even where sums of
/// decimal fractions are off by their rounding.
fn is_improved(direct: f64, best: f64) -> bool {
    direct - best > direct * (0.05 + 1e-12)
}

fn dearest_first(a: &Toll, b: &Toll) -> std::cmp::Ordering {
    b.cut_off
        .cmp(&a.cut_off)
        .then(b.added_ms.total_cmp(&a.added_ms))
}

/// The value below which a share of the values lies; between two of them in proportion.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours_in_proportion() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[1.0, 2.0, 10.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 10.0], 0.5), Some(3.0));
        assert_eq!(quantile(&[0.0, 100.0], 0.99), Some(99.0));
    }

    #[test]
    fn five_per_cent_is_not_more_than_five_per_cent() {
        assert!(!is_improved(100.0, 95.0));
        assert!(!is_improved(2.0, 0.7 + 1.2));
        assert!(!is_improved(6.0, 5.7) && !is_improved(0.3, 0.1 + 0.185));
        assert!(is_improved(100.0, 94.999) && !is_improved(0.0, 0.0));
    }

    #[test]
    fn a_matrix_without_cells_has_no_figures_rather_than_zero() {
        let matrix = RttMatrix::parse("x,a,b\na,,\nb,,\n").unwrap();
        let whole = WhatIf::new(&matrix, None, 0.0);
        let totals = Answer::new("m", &matrix, &whole).totals;
        assert_eq!((totals.pair_count, totals.unreachable_count), (0, 2));
        assert_eq!(
            (totals.latency_removed_pct, totals.p99_saving_ms),
            (None, None)
        );
    }
}
