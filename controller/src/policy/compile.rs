//! From names to dense indices, at one moment.

use std::time::SystemTime;

use tradewind_proto::control::Selector;
use tradewind_routing::CostWeights;

use super::{
    LinkMatch, Mode, Pin, Policy, ProfileName, Weights,
    rules::{Forbidden, nth},
    schedule::{is_busy, time_zone},
};

/// The relays there are, by index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) names: &'a [String],
    pub(crate) regions: &'a [String],
}

/// A policy as the planner takes it. Relays are dense indices, profiles numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Compiled {
    prices: Vec<(LinkTest, f64)>,
    capacities: Vec<(LinkTest, f64)>,
    off_hours: Vec<LinkTest>,
    /// Relays whose busy hours it is not.
    pub(crate) off_hours_relays: Vec<bool>,
    /// Relays that nobody's packets cross.
    pub(crate) everybody: Vec<bool>,
    /// Relays that packets of a profile do not cross.
    pub(crate) by_profile: [Vec<bool>; 2],
    /// Relays that restricted packets do not cross: of rule sets 1, 2, …
    pub(crate) restricted: Vec<Vec<bool>>,
    pub(crate) selectors: Vec<Selector>,
    /// Whole paths, by profile.
    pub(crate) pins: [Vec<Vec<usize>>; 2],
    pub(crate) profiles: [ProfileCosts; 2],
    pub(crate) latency_factor: f64,
    pub(crate) latency_slack_ms: f64,
    pub(crate) observed: Vec<Observed>,
    /// Rules that say nothing at present, and why.
    pub(crate) problems: Vec<String>,
    weights: Weights,
}

/// How a profile weighs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProfileCosts {
    pub(crate) mode: Mode,
    pub(crate) price_ms: f64,
    pub(crate) delay_weight: f64,
}

/// A rule that is computed but not applied.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    /// Which: kind and number, from 1.
    pub(crate) rule: String,
    pub(crate) kind: ObservedKind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ObservedKind {
    /// Relays that would not be crossed.
    Forbid(Vec<bool>),
    /// A path that would be taken.
    Pin(Vec<usize>),
}

/// Which links a rule fits: by relay, where it may begin and end.
#[derive(Debug, Clone, PartialEq)]
struct LinkTest {
    from: Vec<bool>,
    to: Vec<bool>,
    /// Either end has to be in here.
    either: Option<Vec<bool>>,
    uplink: Option<u8>,
    both_ways: bool,
}

impl LinkTest {
    fn fits(&self, from: usize, to: usize, uplink: u8) -> bool {
        let ends =
            (self.from[from] && self.to[to]) || (self.both_ways && self.from[to] && self.to[from]);
        ends && self.uplink.is_none_or(|wanted| wanted == uplink)
            && self
                .either
                .as_ref()
                .is_none_or(|either| either[from] || either[to])
    }
}

impl Places<'_> {
    pub(crate) fn has_relay(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    pub(crate) fn has_region(&self, name: &str) -> bool {
        self.regions.iter().any(|known| known == name)
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    fn is(&self, wanted: &str, of: &[String]) -> Vec<bool> {
        of.iter().map(|known| known == wanted).collect()
    }

    fn test(&self, links: &LinkMatch<'_>) -> LinkTest {
        let both = |relay: Option<&str>, region: Option<&str>| -> Vec<bool> {
            (0..self.names.len())
                .map(|at| {
                    relay.is_none_or(|relay| self.names[at] == relay)
                        && region.is_none_or(|region| self.regions[at] == region)
                })
                .collect()
        };
        LinkTest {
            from: both(links.from, links.from_region),
            to: both(links.to, links.to_region),
            either: links.region.map(|region| self.is(region, self.regions)),
            uplink: links.uplink,
            both_ways: links.both_ways,
        }
    }

    fn crossing(&self, forbidden: &Forbidden) -> Vec<bool> {
        (0..self.names.len())
            .map(|at| {
                forbidden.0.contains(&self.regions[at]) || forbidden.1.contains(&self.names[at])
            })
            .collect()
    }
}

impl Policy {
    /// The policy for these relays at this moment.
    pub(crate) fn compile(&self, places: Places<'_>, now: SystemTime) -> Compiled {
        let n = places.names.len();
        let (realtime, economy) = (&self.profiles.realtime, &self.profiles.economy);
        let mut compiled = Compiled {
            prices: self
                .price
                .iter()
                .map(|price| (places.test(&price.links()), price.per_gb))
                .collect(),
            capacities: self
                .capacity
                .iter()
                .map(|rule| (places.test(&rule.links()), rule.rate.bytes_per_sec() as f64))
                .collect(),
            off_hours: Vec::new(),
            off_hours_relays: vec![false; n],
            everybody: vec![false; n],
            by_profile: [vec![false; n], vec![false; n]],
            restricted: Vec::new(),
            selectors: Vec::new(),
            pins: [Vec::new(), Vec::new()],
            profiles: [
                ProfileCosts {
                    mode: realtime.mode,
                    price_ms: realtime.price_ms,
                    delay_weight: 1.0,
                },
                ProfileCosts {
                    mode: economy.mode,
                    price_ms: economy.price_ms,
                    delay_weight: economy.delay_weight,
                },
            ],
            latency_factor: economy.latency_factor,
            latency_slack_ms: economy.latency_slack_ms,
            observed: Vec::new(),
            problems: self.check_names(places.names, places.regions),
            weights: self.weights,
        };
        compiled.hours(self, places, now);
        compiled.bans(self, places);
        compiled.restrictions(self, places);
        compiled.paths(self, places);
        compiled
    }
}

impl Compiled {
    /// The cost weights: the settings' own, and over them the policy's.
    pub(crate) fn weights(&self, settings: &CostWeights) -> CostWeights {
        let own = &self.weights;
        CostWeights {
            jitter: own.jitter.unwrap_or(settings.jitter),
            loss_ms_per_percent: own
                .loss_ms_per_percent
                .unwrap_or(settings.loss_ms_per_percent),
            load_knee: own.load_knee.unwrap_or(settings.load_knee),
            load_scale_ms: own.load_scale_ms.unwrap_or(settings.load_scale_ms),
            hop_ms: own.hop_ms.unwrap_or(settings.hop_ms),
            ..*settings
        }
    }

    /// Money per 10⁹ bytes over a link.
    pub(crate) fn price(&self, from: usize, to: usize, uplink: u8) -> f64 {
        last_that_fits(&self.prices, from, to, uplink).unwrap_or(0.0)
    }

    /// Bytes per second that a link carries, where the policy says so.
    pub(crate) fn capacity(&self, from: usize, to: usize, uplink: u8) -> Option<f64> {
        last_that_fits(&self.capacities, from, to, uplink)
    }

    /// Whether a link is for busy hours and it is none of them.
    pub(crate) fn is_off_hours(&self, from: usize, to: usize, uplink: u8) -> bool {
        self.off_hours
            .iter()
            .any(|test| test.fits(from, to, uplink))
    }

    fn hours(&mut self, policy: &Policy, places: Places<'_>, now: SystemTime) {
        for (at, rule) in policy.peak_only.iter().enumerate() {
            let busy = match time_zone(&rule.time_zone) {
                Ok(zone) => is_busy(&rule.days, rule.hours, &zone, now),
                Err(problem) => {
                    self.problems
                        .push(format!("{}: {problem}", nth("peak_only", at)));
                    true
                }
            };
            match &rule.relay {
                _ if busy => {}
                Some(name) => {
                    if let Some(index) = places.index_of(name) {
                        self.off_hours_relays[index] = true;
                    }
                }
                None => self.off_hours.push(places.test(&rule.links())),
            }
        }
    }

    fn bans(&mut self, policy: &Policy, places: Places<'_>) {
        for (at, rule) in policy.forbid_transit.iter().enumerate() {
            let forbidden = (
                rule.regions.iter().cloned().collect(),
                rule.relays.iter().cloned().collect(),
            );
            let crossing = places.crossing(&forbidden);
            if rule.mode == Mode::Observe {
                self.observed.push(Observed {
                    rule: nth("forbid_transit", at),
                    kind: ObservedKind::Forbid(crossing),
                });
                continue;
            }
            let of = match (rule.profile, rule.app.is_some() || rule.group.is_some()) {
                (_, true) => continue, // a restricted rule set
                (Some(profile), _) => &mut self.by_profile[profile as usize],
                (None, _) => &mut self.everybody,
            };
            for (banned, crossing) in of.iter_mut().zip(&crossing) {
                *banned |= crossing;
            }
        }
    }

    fn restrictions(&mut self, policy: &Policy, places: Places<'_>) {
        let sets = policy.restricted_sets();
        let mut selectors: Vec<Selector> = policy
            .restrictions()
            .into_iter()
            .filter_map(|((app, group), forbidden)| {
                let set = sets.iter().position(|set| *set == forbidden)?;
                Some(Selector {
                    app,
                    group,
                    rules: set as u32 + 1,
                })
            })
            .collect();
        // The first that fits decides: the more a selector says, the earlier it comes.
        selectors.sort_by_key(|selector| {
            u8::from(selector.app.is_empty()) + u8::from(selector.group.is_empty())
        });
        self.selectors = selectors;
        self.restricted = sets.iter().map(|set| places.crossing(set)).collect();
    }

    fn paths(&mut self, policy: &Policy, places: Places<'_>) {
        for (at, pin) in policy.pin.iter().enumerate() {
            let Some(path) = whole_path(pin, places) else {
                continue; // the name is among the problems already
            };
            if pin.mode == Mode::Observe {
                self.observed.push(Observed {
                    rule: nth("pin", at),
                    kind: ObservedKind::Pin(path),
                });
                continue;
            }
            for profile in ProfileName::ALL {
                if pin.profile.is_some_and(|only| only != profile) {
                    continue;
                }
                let banned = path[1..path.len() - 1].iter().find(|&&relay| {
                    self.everybody[relay] || self.by_profile[profile as usize][relay]
                });
                match banned {
                    Some(&relay) => self.problems.push(format!(
                        "{}: it crosses `{}`, where transit is forbidden; the ban wins",
                        nth("pin", at),
                        places.names[relay]
                    )),
                    None => self.pins[profile as usize].push(path.clone()),
                }
            }
        }
    }
}

fn last_that_fits(rules: &[(LinkTest, f64)], from: usize, to: usize, uplink: u8) -> Option<f64> {
    let fitting = rules
        .iter()
        .rev()
        .find(|(test, _)| test.fits(from, to, uplink));
    fitting.map(|&(_, value)| value)
}

fn whole_path(pin: &Pin, places: Places<'_>) -> Option<Vec<usize>> {
    [&pin.from]
        .into_iter()
        .chain(&pin.via)
        .chain([&pin.to])
        .map(|name| places.index_of(name))
        .collect()
}
