//! How full links are, and what that costs.

use super::{LoadConfig, LoadProblem};

/// Milliseconds per unit of utilisation over the target: 100 ms at 10 % over. That outweighs
/// detours within the usual bound early: one of 20 ms is taken at 72 %.
const SOFT_MS: f64 = 1_000.0;

/// Milliseconds per unit of utilisation over the limit, at first: no detour within the bound is
/// worth 1 % over.
const HARD_MS: f64 = 100_000.0;

/// How far below the limit the steep price begins: what rounding of weights may add.
const MARGIN: f64 = 0.005;

/// How much dearer a link becomes each time that it is found over the limit, and at most.
const HARDER: f64 = 3.0;
const HARDEST: f64 = 1_000.0;

/// Load and capacity of all links, by index from·n + to.
#[derive(Debug, Clone)]
pub(super) struct Links {
    pub(super) n: usize,
    pub(super) config: LoadConfig,
    pub(super) load: Vec<f64>,
    capacity: Vec<f64>,
    /// The links of known capacity.
    known: Vec<u32>,
    /// By how much the price over the limit is multiplied.
    strict: Vec<f32>,
}

impl Links {
    pub(super) fn new(problem: &LoadProblem<'_>, load: Vec<f64>) -> Self {
        let n = problem.cost.len();
        let mut known = Vec::new();
        let mut capacity = Vec::new();
        for (link, &figure) in problem.capacity.iter().enumerate() {
            if figure.is_finite() && link / n != link % n {
                known.push(link as u32);
            }
            // A link without any capacity is as good as full; not 0, so that figures stay finite.
            capacity.push(if figure.is_finite() {
                figure.max(1.0)
            } else {
                f64::INFINITY
            });
        }
        Self {
            n,
            config: problem.config,
            load,
            strict: vec![1.0; capacity.len()],
            capacity,
            known,
        }
    }

    /// These links, as dear as they have become, with the load of others.
    pub(super) fn with_load_of(&self, other: &Self) -> Self {
        Self {
            load: other.load.clone(),
            ..self.clone()
        }
    }

    pub(super) fn utilisation(&self, link: usize) -> f64 {
        self.load[link] / self.capacity[link]
    }

    /// The links that are over `utilisation`, by index.
    pub(super) fn over(&self, utilisation: f64) -> Vec<usize> {
        // Sums of the same demands in another order differ in the last digits.
        let limit = utilisation + 1e-9;
        let full = |&link: &usize| self.utilisation(link) > limit;
        self.known
            .iter()
            .map(|&link| link as usize)
            .filter(full)
            .collect()
    }

    /// The highest utilisation of all links.
    pub(super) fn worst(&self) -> f64 {
        let all = self
            .known
            .iter()
            .map(|&link| self.utilisation(link as usize));
        all.fold(0.0, f64::max)
    }

    /// By how much these links together are over the limit.
    pub(super) fn excess(&self, links: &[usize]) -> f64 {
        let over = |&link: &usize| (self.utilisation(link) - self.config.limit).max(0.0);
        // Not `sum`: that of nothing is −0, which orders below 0.
        links.iter().map(over).fold(0.0, |sum, over| sum + over)
    }

    /// Makes these links dearer over the limit.
    pub(super) fn harden(&mut self, links: &[usize]) {
        for &link in links {
            self.strict[link] = (self.strict[link] * HARDER as f32).min(HARDEST as f32);
        }
    }

    /// What one byte more would cost on this link, in ms, with `more` bytes/s than now.
    pub(super) fn price(&self, link: usize, more: f64) -> f64 {
        let capacity = self.capacity[link];
        if capacity == f64::INFINITY {
            return 0.0;
        }
        let used = (self.load[link] + more) / capacity;
        let soft = SOFT_MS * (used - self.config.target).max(0.0);
        let over = (used - (self.config.limit - MARGIN)).max(0.0);
        soft + HARD_MS * f64::from(self.strict[link]) * over
    }

    /// What the load of this link costs in all, in ms · bytes/s: the integral of the price, whatever
    /// was hardened since.
    pub(super) fn penalty_of(&self, link: usize) -> f64 {
        self.integral(link, 1.0)
    }

    /// As [`Links::penalty_of`], with what was hardened.
    pub(super) fn strict_penalty_of(&self, link: usize) -> f64 {
        self.integral(link, f64::from(self.strict[link]))
    }

    fn integral(&self, link: usize, strict: f64) -> f64 {
        let capacity = self.capacity[link];
        if capacity == f64::INFINITY {
            return 0.0;
        }
        let used = self.load[link] / capacity;
        let soft = (used - self.config.target).max(0.0);
        let over = (used - (self.config.limit - MARGIN)).max(0.0);
        0.5 * capacity * (SOFT_MS * soft * soft + HARD_MS * strict * over * over)
    }

    /// What the load of all links costs.
    pub(super) fn penalty(&self) -> f64 {
        let known = self.known.iter();
        known.map(|&link| self.penalty_of(link as usize)).sum()
    }

    pub(super) fn add(&mut self, links: &[u32], bytes: f64) {
        for &link in links {
            let load = &mut self.load[link as usize];
            *load = (*load + bytes).max(0.0);
        }
    }
}
