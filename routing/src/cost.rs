//! What a link costs, in milliseconds-equivalents: how many milliseconds of delay are as bad.

use crate::matrix::RttMatrix;

/// The costs of all directed links among `n` relays, dense and row-major:
/// [`f64::INFINITY`] where there is no usable link (down, unknown or forbidden), 0 on the
/// diagonal.
#[derive(Debug, Clone, PartialEq)]
pub struct CostMatrix {
    n: usize,
    cells: Vec<f64>,
}

impl CostMatrix {
    /// `n` relays without any link.
    #[must_use]
    pub fn new(n: usize) -> Self {
        let mut matrix = Self {
            n,
            cells: vec![f64::INFINITY; n * n],
        };
        for i in 0..n {
            matrix.cells[i * n + i] = 0.0;
        }
        matrix
    }

    /// Asks `cost` for every ordered pair of different relays, in milliseconds-equivalents; what
    /// is not a non-negative number counts as no link.
    #[must_use]
    pub fn from_fn(n: usize, mut cost: impl FnMut(usize, usize) -> f64) -> Self {
        let mut matrix = Self::new(n);
        for i in 0..n {
            for j in 0..n {
                if i != j {
                    matrix.set(i, j, cost(i, j));
                }
            }
        }
        matrix
    }

    /// The cells of a matrix of round-trip times as they stand: unknown is no link.
    #[must_use]
    pub fn from_rtt(matrix: &RttMatrix) -> Self {
        Self::from_fn(matrix.len(), |i, j| {
            matrix.cell(i, j).unwrap_or(f64::INFINITY)
        })
    }

    /// The number of relays.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there is no relay at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The cost of the link from `i` to `j`.
    ///
    /// # Panics
    /// When an index is out of range.
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> f64 {
        assert!(j < self.n, "relay {j} outside of a matrix of {}", self.n);
        self.cells[i * self.n + j]
    }

    /// Sets the cost of the link from `i` to `j`. Not a number or negative counts as no link (a
    /// broken figure must not attract traffic); the diagonal stays 0.
    ///
    /// # Panics
    /// When an index is out of range.
    pub fn set(&mut self, i: usize, j: usize, cost: f64) {
        assert!(j < self.n, "relay {j} outside of a matrix of {}", self.n);
        let cost = if cost >= 0.0 { cost } else { f64::INFINITY };
        self.cells[i * self.n + j] = if i == j { 0.0 } else { cost };
    }

    /// Whether there is a usable link from `i` to `j`.
    #[must_use]
    pub fn is_up(&self, i: usize, j: usize) -> bool {
        i != j && self.get(i, j).is_finite()
    }

    /// The costs of all links out of `i`.
    #[must_use]
    pub fn row(&self, i: usize) -> &[f64] {
        &self.cells[i * self.n..(i + 1) * self.n]
    }

    /// The matrix with every link turned round.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let n = self.n;
        let mut cells = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                cells[j * n + i] = self.cells[i * n + j];
            }
        }
        Self { n, cells }
    }

    /// How many ordered pairs of different relays have a usable link.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.cells.iter().filter(|cost| cost.is_finite()).count() - self.n
    }
}

/// What is known about one directed link, as the cost function wants it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkMetrics {
    /// One-way delay in milliseconds, ≥ 0 (from [`crate::clock_sync`]; half the minimum RTT will
    /// do where that is not known).
    pub delay_ms: f64,
    /// Deviation of the round-trip time in milliseconds, ≥ 0.
    pub rtt_dev_ms: f64,
    /// Share of packets lost in this direction, 0..=1. Give [`confident_loss`], not the raw share.
    pub loss: f64,
    /// Share of the link's capacity in use, 0..; 0 when the capacity is not known.
    pub utilisation: f64,
    /// The operator's price as milliseconds-equivalents, ≥ 0 (0 in profile `realtime`).
    pub price_ms: f64,
}

/// How much each thing weighs in [`link_cost`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostWeights {
    /// Milliseconds per millisecond of deviation beyond [`CostWeights::jitter_free_ms`]. The
    /// deviation is that of a round trip, of which half belongs to each direction, and a receiver
    /// that plays out evenly waits about as long as packets vary: 0.5.
    pub jitter: f64,
    /// Deviation that costs nothing, in milliseconds: what timers and busy processors add anyway.
    /// It says nothing about the link, and must not move traffic: 1 ms.
    pub jitter_free_ms: f64,
    /// Milliseconds per 1 % of loss. By the E-model (ITU-T G.107) one percent of loss harms a call
    /// as much as 35 to 200 ms of delay; what repair (resending, concealment) takes off leaves
    /// about 20 ms.
    pub loss_ms_per_percent: f64,
    /// Utilisation from which on load costs: 0.7. Below, queues are short whatever the traffic.
    pub load_knee: f64,
    /// Milliseconds of load penalty where the spare capacity is as large as what is used beyond
    /// the knee: the M/M/1 shape `scale · (u − knee)/(1 − u)`, with 10 ms: 5 ms at 80 %, 20 ms at
    /// 90 %, 50 ms at 95 %.
    pub load_scale_ms: f64,
    /// Milliseconds for each link a packet takes: a transit relay holds it for 50 to 100 µs, and
    /// every relay more is one more that can fail: 0.1. More would eat what there is to gain.
    pub hop_ms: f64,
}

impl Default for CostWeights {
    fn default() -> Self {
        Self {
            jitter: 0.5,
            jitter_free_ms: 1.0,
            loss_ms_per_percent: 20.0,
            load_knee: 0.7,
            load_scale_ms: 10.0,
            hop_ms: 0.1,
        }
    }
}

/// The cost of a link, term by term, each in milliseconds-equivalents: for those who ask why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostTerms {
    /// The one-way delay.
    pub delay_ms: f64,
    /// For varying delay.
    pub jitter_ms: f64,
    /// For lost packets.
    pub loss_ms: f64,
    /// For being close to full.
    pub load_ms: f64,
    /// For being one hop more.
    pub hop_ms: f64,
    /// For the operator's purse.
    pub price_ms: f64,
}

impl CostTerms {
    /// The link's cost: the sum.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.delay_ms + self.jitter_ms + self.loss_ms + self.load_ms + self.hop_ms + self.price_ms
    }
}

/// Utilisation beyond which the load penalty grows no more, so that it stays a number.
const FULL: f64 = 0.995;

/// Loss from which on a link is of no use.
const USELESS_LOSS: f64 = 0.5;

/// What a link costs. A link that loses half of all packets or more costs [`f64::INFINITY`], as
/// does one whose numbers are not numbers.
///
/// ```
/// use tradewind_routing::{CostWeights, LinkMetrics, link_cost};
/// let link = LinkMetrics { delay_ms: 40.0, rtt_dev_ms: 3.0, loss: 0.01, utilisation: 0.8, price_ms: 0.0 };
/// let terms = link_cost(&link, &CostWeights::default());
/// assert_eq!(terms.delay_ms, 40.0);
/// assert!((terms.total() - (40.0 + 1.0 + 20.0 + 5.0 + 0.1)).abs() < 1e-9);
/// ```
#[must_use]
pub fn link_cost(link: &LinkMetrics, weights: &CostWeights) -> CostTerms {
    let u = link.utilisation.clamp(0.0, FULL);
    let over = (u - weights.load_knee).max(0.0);
    let loss_ms = if link.loss < USELESS_LOSS {
        weights.loss_ms_per_percent * 100.0 * link.loss.max(0.0)
    } else {
        f64::INFINITY
    };
    CostTerms {
        delay_ms: link.delay_ms.max(0.0),
        jitter_ms: weights.jitter * (link.rtt_dev_ms - weights.jitter_free_ms).max(0.0),
        loss_ms,
        load_ms: weights.load_scale_ms * over / (1.0 - u),
        hop_ms: weights.hop_ms,
        price_ms: link.price_ms.max(0.0),
    }
}

/// The share of loss that `lost` of `sent` packets prove: the lower end of Wilson's score interval
/// (one-sided, once in 4,300). So strict, because every link of a network is looked at again and again,
/// and the best way is sought among them: at 1 % of loss everywhere, links that are lucky at the moment
/// would draw traffic from one to the next. A single lost packet proves nothing, of however few: it is an
/// accident.
#[must_use]
pub fn confident_loss(lost: u64, sent: u64) -> f64 {
    if sent == 0 || lost < 2 {
        return 0.0;
    }
    const Z: f64 = 3.5;
    let n = sent as f64;
    let p = (lost as f64 / n).min(1.0);
    let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((p + Z * Z / (2.0 * n) - spread) / (1.0 + Z * Z / n)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(delay_ms: f64) -> LinkMetrics {
        LinkMetrics {
            delay_ms,
            rtt_dev_ms: 0.0,
            loss: 0.0,
            utilisation: 0.0,
            price_ms: 0.0,
        }
    }

    #[test]
    fn a_clean_link_costs_its_delay_and_one_hop() {
        let terms = link_cost(&clean(75.0), &CostWeights::default());
        assert!((terms.total() - 75.1).abs() < 1e-9);
    }

    #[test]
    fn load_is_free_up_to_the_knee_and_steep_beyond() {
        let load = |utilisation| {
            link_cost(
                &LinkMetrics {
                    utilisation,
                    ..clean(1.0)
                },
                &CostWeights::default(),
            )
            .load_ms
        };
        assert_eq!(load(0.7), 0.0);
        assert!(load(0.71) > 0.0);
        assert!(load(0.9) > 3.0 * load(0.8));
        assert!(load(7.0).is_finite());
    }

    #[test]
    fn a_link_that_loses_half_of_everything_is_no_link() {
        let cost =
            |loss| link_cost(&LinkMetrics { loss, ..clean(1.0) }, &CostWeights::default()).total();
        assert!(cost(0.49).is_finite());
        assert_eq!(cost(0.5), f64::INFINITY);
        assert_eq!(cost(f64::NAN), f64::INFINITY);
    }

    #[test]
    fn one_accident_proves_little_loss_and_many_prove_it() {
        assert_eq!(confident_loss(0, 100), 0.0);
        assert_eq!(confident_loss(0, 0), 0.0);
        assert_eq!(confident_loss(1, 10), 0.0);
        assert!(confident_loss(2, 50) < 0.015);
        let proven = confident_loss(100, 1_000);
        assert!((0.07..0.1).contains(&proven), "{proven}");
        assert!(confident_loss(10, 10) > 0.4);
        // At 1 % one window of 200 probes in twenty loses five.
        assert!(confident_loss(5, 200) < 0.007);
    }

    #[test]
    fn figures_that_are_not_costs_are_no_links() {
        let costs = CostMatrix::from_fn(3, |i, j| match (i, j) {
            (0, 1) => f64::NAN,
            (1, 2) => -1.0,
            _ => 2.0,
        });
        assert!(!costs.is_up(0, 1) && !costs.is_up(1, 2) && !costs.is_up(1, 1));
        assert_eq!(costs.link_count(), 4);
        assert_eq!(costs.transposed().get(1, 0), f64::INFINITY);
        assert_eq!(costs.row(2), [2.0, 2.0, 0.0]);
    }
}
