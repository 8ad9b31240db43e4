//! What each link costs in each profile, and over which uplink a pair of relays is reached.
//!
//! The cost of a link in `realtime`, in milliseconds of delay that are as bad:
//!
//! | term | from | why |
//! |---|---|---|
//! | delay | one-way delay (ms) | what routing is about |
//! | jitter | weight × deviation beyond 1 ms | a receiver that plays out evenly waits for it |
//! | loss | weight per % that is proven | what repair leaves of the harm (ITU-T G.107) |
//! | load | steep beyond 70 % of a link, an uplink or a processor | queues |
//! | hop | a little each | every relay more can fail |
//! | price | `price_ms` × money per 10⁹ bytes; 0 unless configured | the operator's purse |
//!
//! In `economy` delay, jitter and loss count with `delay_weight`, the price with a `price_ms` of
//! its own, and ways that take much longer than the fastest are ruled out (by the planner, and
//! here among the uplinks of one pair). A link outside of its busy hours costs [`OFF_HOURS_MS`]
//! more: so it is the last resort, and no more than that.

use std::{collections::BTreeMap, time::Duration};

use tradewind_proto::{LinkKey, RelayIndex, Uplink};
use tradewind_routing::{CostMatrix, CostTerms, CostWeights, PlannerConfig, link_cost};

use super::{
    links::{Measured, Usable},
    registry::Registry,
    traffic::Traffic,
};
use crate::policy::Compiled;

/// Number of profiles.
pub(super) const PROFILES: usize = 2;

/// What a link outside of its busy hours costs beyond what it is: more than any way that there is
/// besides, in milliseconds-equivalents.
pub(super) const OFF_HOURS_MS: f64 = 10_000.0;

/// One directed link with its costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkCosts {
    pub(super) measured: Measured,
    /// By profile; `None` unless usable and measured.
    pub(super) terms: [Option<CostTerms>; PROFILES],
    /// Share of its capacity in use, of the link itself or of either end's uplink or processor.
    pub(super) utilisation: f64,
    /// Bytes per second.
    pub(super) rate: f64,
    /// Bytes per second; infinite when not known.
    pub(super) capacity: f64,
    /// Money per 10⁹ bytes.
    pub(super) price: f64,
    /// It is for busy hours, and it is none of them.
    pub(super) off_hours: bool,
}

/// All directed links at one moment.
#[derive(Debug)]
pub(super) struct Costs {
    n: usize,
    /// In the order of their keys.
    links: Vec<LinkCosts>,
    /// By profile.
    pub(super) profiles: [PairCosts; PROFILES],
    /// One-way delays of `economy`'s choice, milliseconds.
    pub(super) delay_ms: CostMatrix,
    /// Bytes per second that `realtime`'s choice carries, row-major; infinite when not known.
    pub(super) capacity: Vec<f64>,
    /// Links whose delay is contradicted by others.
    pub(super) clamped: usize,
}

/// One profile's choice of uplink for each ordered pair of relays.
#[derive(Debug)]
pub(super) struct PairCosts {
    pub(super) cost: CostMatrix,
    /// Where in [`Costs::links`] it is, row-major.
    chosen: Vec<Option<u32>>,
}

/// What costs depend on beside the measurements.
pub(super) struct CostInput<'a> {
    pub(super) now: Duration,
    pub(super) registry: &'a Registry,
    pub(super) policy: &'a Compiled,
    pub(super) weights: &'a CostWeights,
    pub(super) traffic: &'a Traffic,
    pub(super) uplinks: &'a Uplinks,
}

impl Costs {
    pub(super) fn new((measured, clamped): (Vec<Measured>, usize), input: &CostInput<'_>) -> Self {
        let n = input.registry.len();
        let weights = input.policy.weights(input.weights);
        // In vain where no relay says what its uplinks carry.
        let sums = match input
            .registry
            .iter()
            .any(|(_, relay)| relay.states_capacity())
        {
            true => input.traffic.of_uplinks(input.now),
            false => BTreeMap::new(),
        };
        let links: Vec<LinkCosts> = measured
            .into_iter()
            .map(|link| with_costs(link, input, &weights, &sums))
            .collect();
        let pairs = || PairCosts {
            cost: CostMatrix::new(n),
            chosen: vec![None; n * n],
        };
        let mut costs = Self {
            n,
            links: Vec::new(),
            profiles: [pairs(), pairs()],
            delay_ms: CostMatrix::new(n),
            capacity: vec![f64::INFINITY; n * n],
            clamped,
        };
        let mut begin = 0;
        while begin < links.len() {
            let pair = |at: usize| (links[at].measured.key.from, links[at].measured.key.to);
            let mut end = begin + 1;
            while end < links.len() && pair(end) == pair(begin) {
                end += 1;
            }
            costs.choose(&links, begin, end, input);
            begin = end;
        }
        costs.links = links;
        costs
    }

    /// The link that a profile takes from `from` to `to`, if anything was ever said about one.
    pub(super) fn get(&self, profile: usize, from: usize, to: usize) -> Option<&LinkCosts> {
        let at = self.profiles[profile].chosen[from * self.n + to]?;
        self.links.get(at as usize)
    }

    /// Of a link over a certain uplink.
    pub(super) fn of(&self, key: LinkKey) -> Option<&LinkCosts> {
        let at = self
            .links
            .binary_search_by_key(&key, |link| link.measured.key);
        at.ok().map(|at| &self.links[at])
    }

    /// All links.
    pub(super) fn links(&self) -> &[LinkCosts] {
        &self.links
    }

    /// The uplink that a profile takes from `from` to `to`.
    pub(super) fn uplink(&self, profile: usize, from: usize, to: usize) -> Uplink {
        self.get(profile, from, to)
            .map_or(Uplink::default(), |link| link.measured.key.uplink)
    }

    /// How many ordered pairs have a link that can be used.
    pub(super) fn usable(&self) -> usize {
        self.profiles[0].cost.link_count()
    }

    /// Of the uplinks of one pair (`links[begin..end]`), the one each profile takes.
    fn choose(&mut self, links: &[LinkCosts], begin: usize, end: usize, input: &CostInput<'_>) {
        let key = links[begin].measured.key;
        let (from, to) = (key.from.as_usize(), key.to.as_usize());
        let total = |at: usize, profile: usize| total_of(&links[at], profile);
        let delay = |at: usize| links[at].terms[0].map_or(f64::INFINITY, |terms| terms.delay_ms);
        let fastest = (begin..end).map(delay).fold(f64::INFINITY, f64::min);
        let slowest = fastest * input.policy.latency_factor + input.policy.latency_slack_ms;
        for profile in 0..PROFILES {
            let fits = |at: usize| profile == 0 || delay(at) <= slowest;
            let best = (begin..end)
                .filter(|&at| fits(at))
                .min_by(|&a, &b| total(a, profile).total_cmp(&total(b, profile)))
                .filter(|&at| total(at, profile).is_finite());
            let chosen = best.map(|best| {
                let present = input.uplinks.present(profile, key.from, key.to);
                let present = (begin..end)
                    .find(|&at| Some(links[at].measured.key.uplink) == present)
                    .filter(|&at| fits(at) && total(at, profile).is_finite());
                present.unwrap_or(best)
            });
            // Without any that costs a number: what is known of the first that works at all.
            let usable = |at: &usize| links[*at].measured.usable == Usable::Yes;
            let shown = chosen.or((begin..end).find(usable)).unwrap_or(begin);
            self.profiles[profile].chosen[from * self.n + to] = Some(shown as u32);
            if let Some(at) = chosen {
                self.profiles[profile]
                    .cost
                    .set(from, to, total(at, profile));
                if profile == 1 {
                    self.delay_ms.set(from, to, delay(at));
                } else {
                    self.capacity[from * self.n + to] = links[at].capacity;
                }
            }
        }
    }
}

fn with_costs(
    measured: Measured,
    input: &CostInput<'_>,
    weights: &CostWeights,
    sums: &BTreeMap<(RelayIndex, Uplink), (f64, f64)>,
) -> LinkCosts {
    let key = measured.key;
    let (from, to, uplink) = (key.from.as_usize(), key.to.as_usize(), key.uplink.0);
    let ends = [
        input.registry.get(key.from).uplink_capacity(key.uplink),
        input.registry.get(key.to).uplink_capacity(key.uplink),
    ];
    let of_uplinks = ends.into_iter().flatten().fold(f64::INFINITY, f64::min);
    let capacity = input
        .policy
        .capacity(from, to, uplink)
        .unwrap_or(of_uplinks);
    let rate = input.traffic.rate(input.now, key);
    let sum = |relay: RelayIndex| sums.get(&(relay, key.uplink)).copied().unwrap_or_default();
    let shares = [
        measured.metrics.map_or(0.0, |metrics| metrics.utilisation),
        rate / capacity,
        ends[0].map_or(0.0, |capacity| sum(key.from).0 / capacity),
        ends[1].map_or(0.0, |capacity| sum(key.to).1 / capacity),
    ];
    let utilisation = shares.into_iter().fold(0.0, f64::max);
    let off_hours = input.policy.is_off_hours(from, to, uplink);
    let price = input.policy.price(from, to, uplink);
    let terms = std::array::from_fn(|profile| {
        let profile = &input.policy.profiles[profile];
        let mut metrics = measured.metrics?;
        metrics.utilisation = utilisation;
        metrics.price_ms = price * profile.price_ms + if off_hours { OFF_HOURS_MS } else { 0.0 };
        let terms = link_cost(&metrics, weights);
        let terms = CostTerms {
            delay_ms: terms.delay_ms * profile.delay_weight,
            jitter_ms: terms.jitter_ms * profile.delay_weight,
            loss_ms: terms.loss_ms * profile.delay_weight,
            ..terms
        };
        terms.total().is_finite().then_some(terms)
    });
    LinkCosts {
        measured,
        terms,
        utilisation,
        rate,
        capacity,
        price,
        off_hours,
    }
}

fn total_of(link: &LinkCosts, profile: usize) -> f64 {
    link.terms[profile].map_or(f64::INFINITY, |terms| terms.total())
}

/// The uplink that each profile takes between relays that have several in common. The same
/// caution as for trees: another must be clearly better, for some time, and at most one change by
/// choice per rest; one that fails is left at once.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    /// By profile and pair.
    choices: BTreeMap<(usize, RelayIndex, RelayIndex), Choice>,
}

#[derive(Debug, Clone, Copy)]
struct Choice {
    uplink: Uplink,
    better_since: Option<Duration>,
    /// When it was last changed by choice.
    chosen_at: Option<Duration>,
}

impl Uplinks {
    /// Whether no two relays have more than one uplink in common.
    pub(super) fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    pub(super) fn present(
        &self,
        profile: usize,
        from: RelayIndex,
        to: RelayIndex,
    ) -> Option<Uplink> {
        let choice = self.choices.get(&(profile, from, to));
        choice.map(|choice| choice.uplink)
    }

    /// Follows the costs at this moment; gives whether any choice has changed.
    pub(super) fn follow(&mut self, now: Duration, costs: &Costs, config: &PlannerConfig) -> bool {
        let mut changed = false;
        let mut begin = 0;
        let links = costs.links();
        while begin < links.len() {
            let key = links[begin].measured.key;
            let same = |link: &&LinkCosts| {
                (link.measured.key.from, link.measured.key.to) == (key.from, key.to)
            };
            let end = begin + links[begin..].iter().take_while(same).count();
            if end - begin > 1 {
                for profile in 0..PROFILES {
                    changed |= self.follow_pair(now, profile, &links[begin..end], config);
                }
            }
            begin = end;
        }
        changed
    }

    fn follow_pair(
        &mut self,
        now: Duration,
        profile: usize,
        links: &[LinkCosts],
        config: &PlannerConfig,
    ) -> bool {
        let best = links
            .iter()
            .min_by(|a, b| total_of(a, profile).total_cmp(&total_of(b, profile)));
        let Some(best) = best.filter(|best| total_of(best, profile).is_finite()) else {
            return false;
        };
        let key = best.measured.key;
        let first = Choice {
            uplink: key.uplink,
            better_since: None,
            chosen_at: None,
        };
        let mut is_new = false;
        let choice = self
            .choices
            .entry((profile, key.from, key.to))
            .or_insert_with(|| {
                is_new = true;
                first
            });
        if is_new || choice.uplink == key.uplink {
            choice.better_since = None;
            return is_new;
        }
        let present = links
            .iter()
            .find(|link| link.measured.key.uplink == choice.uplink)
            .map_or(f64::INFINITY, |link| total_of(link, profile));
        if present.is_infinite() {
            *choice = first;
            return true;
        }
        let gain = present - total_of(best, profile);
        if gain <= config.margin_ms || gain <= config.margin * present {
            choice.better_since = None;
            return false;
        }
        let since = *choice.better_since.get_or_insert(now);
        let rested = choice
            .chosen_at
            .is_none_or(|at| now >= at + config.choice_rest);
        if now < since + config.hold || !rested {
            return false;
        }
        *choice = Choice {
            chosen_at: Some(now),
            ..first
        };
        true
    }
}
