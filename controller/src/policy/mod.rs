//! What the operator wants of the network: prices, capacities, transit bans, pins, weights,
//! schedules and modes.
//!
//! A [`Policy`] names relays and regions. It is read from TOML ([`Policy::from_toml`]) or JSON,
//! checked by itself ([`Policy::check`]) and against the relays there are
//! ([`Policy::check_names`]), and compiled to dense indices whenever plans are made.
//!
//! Where several `[[price]]`, `[[capacity]]` rules fit a link, the last one decides: general ones
//! come first.

mod compile;
mod rules;
mod schedule;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use tradewind_service::config::{ConfigError, Rate};

pub(crate) use compile::{Compiled, ObservedKind, Places};
pub use schedule::{Day, Hours};

/// Restricted rule sets that one plan has room for: each has a tree of its own beside the first.
pub const MOST_RESTRICTED: usize = 3;
/// Most rules of one kind.
const MOST_RULES: usize = 1_000;
/// Longest name of a relay, region, app or group, in bytes.
const MAX_NAME: usize = 256;

/// Everything the operator wants. The default wants nothing in particular.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// What links cost in money.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub price: Vec<Price>,
    /// What links carry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capacity: Vec<Capacity>,
    /// Where packets must not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forbid_transit: Vec<ForbidTransit>,
    /// Ways that are taken whatever they cost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pin: Vec<Pin>,
    /// Extra capacity, for busy hours only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peak_only: Vec<PeakOnly>,
    /// Instead of the settings' `[cost]`.
    pub weights: Weights,
    /// What each profile is good at.
    pub profiles: Profiles,
}

/// Whether something is done, or only computed and its effect recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is done.
    #[default]
    Enforce,
    /// What it would change is recorded; nothing is changed.
    Observe,
}

/// A profile's name in policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileName {
    /// Latency and loss first.
    Realtime,
    /// Price first, within a bound on latency.
    Economy,
}

impl ProfileName {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Realtime, Self::Economy];

    /// As in policies and the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Economy => "economy",
        }
    }

    /// The profile of this name.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.word() == word)
    }
}

/// A rule about links: the common keys, those of the rule itself, and which links it fits.
macro_rules! link_rule {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// The relay where the link begins.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub from: Option<String>,
            /// The relay where the link ends.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub to: Option<String>,
            /// The region where the link begins.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub from_region: Option<String>,
            /// The region where the link ends.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub to_region: Option<String>,
            /// The region where the link begins or ends.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub region: Option<String>,
            /// The uplink; absent: any.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub uplink: Option<u8>,
            /// Whether the other direction is meant too (it is, unless told otherwise).
            #[serde(default = "yes", skip_serializing_if = "is_yes")]
            pub both_ways: bool,
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl $name {
            pub(crate) fn links(&self) -> LinkMatch<'_> {
                LinkMatch {
                    from: self.from.as_deref(),
                    to: self.to.as_deref(),
                    from_region: self.from_region.as_deref(),
                    to_region: self.to_region.as_deref(),
                    region: self.region.as_deref(),
                    uplink: self.uplink,
                    both_ways: self.both_ways,
                }
            }
        }
    };
}

link_rule! {
    /// What traffic over some links costs its operator.
    Price {
        /// Per 10⁹ bytes sent, in any one currency.
        per_gb: f64,
    }
}

link_rule! {
    /// What some links carry each way.
    Capacity {
        /// Such as `"1Gbps"`.
        rate: Rate,
    }
}

link_rule! {
    /// Links, or a relay, used in busy hours only. Outside of them they are measured but not used,
    /// unless there is no other way.
    PeakOnly {
        /// The relay that is not crossed outside of the hours, instead of links.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        relay: Option<String>,
        /// `"mon"` to `"sun"`; absent: every day. Of hours past midnight, the day they begin on.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        days: Vec<Day>,
        /// `"09:00-18:00"`; an end that is not after the beginning is on the next day.
        hours: Hours,
        /// IANA name, such as `"Asia/Tokyo"`; absent: UTC.
        #[serde(default = "utc")]
        time_zone: String,
    }
}

/// Which links a rule fits: all that is given must hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkMatch<'a> {
    pub(crate) from: Option<&'a str>,
    pub(crate) to: Option<&'a str>,
    pub(crate) from_region: Option<&'a str>,
    pub(crate) to_region: Option<&'a str>,
    pub(crate) region: Option<&'a str>,
    pub(crate) uplink: Option<u8>,
    pub(crate) both_ways: bool,
}

/// Where packets must not pass. They may begin and end there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForbidTransit {
    /// Regions whose relays are not crossed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// Relays that are not crossed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<String>,
    /// For traffic of this profile only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileName>,
    /// For traffic of this app only (data residency).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// For traffic to this group only, of `app` or of any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Whether it is done.
    pub mode: Mode,
}

/// A way that is taken whatever it costs, as long as all its links can be used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The relay where it begins.
    pub from: String,
    /// The relays it crosses, in order; none: the direct link.
    #[serde(default)]
    pub via: Vec<String>,
    /// The relay where it ends.
    pub to: String,
    /// For this profile only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileName>,
    /// Whether it is done.
    #[serde(default)]
    pub mode: Mode,
}

/// Cost weights, each instead of the one in the settings' `[cost]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Milliseconds per millisecond of deviation of the round trip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
    /// Milliseconds per percent of loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_ms_per_percent: Option<f64>,
    /// Utilisation from which on load costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_knee: Option<f64>,
    /// How steeply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_scale_ms: Option<f64>,
    /// Milliseconds per hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hop_ms: Option<f64>,
}

/// What each profile is good at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profiles {
    /// For audio, messages, video.
    pub realtime: Realtime,
    /// For bulk.
    pub economy: Economy,
}

/// Latency and loss first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Realtime {
    /// Observe: packets go direct where the direct link works; what the plan would save is
    /// recorded.
    pub mode: Mode,
    /// Milliseconds of delay that one unit of money per 10⁹ bytes is as bad as.
    pub price_ms: f64,
}

/// Price first, within a bound on latency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Economy {
    /// As in [`Realtime`].
    pub mode: Mode,
    /// As in [`Realtime`]. 2,000 with a `delay_weight` of 0.2: one hundredth of the unit per 10⁹
    /// bytes (a cent per gigabyte) is worth 100 ms of delay.
    pub price_ms: f64,
    /// How much delay, jitter and loss weigh against what they weigh in `realtime`: 0.2. Not 0:
    /// of ways equally dear the shortest is taken.
    pub delay_weight: f64,
    /// A way may take so many times what the fastest takes,
    pub latency_factor: f64,
    /// and so many milliseconds more.
    pub latency_slack_ms: f64,
}

impl Default for Realtime {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            price_ms: 0.0,
        }
    }
}

impl Default for Economy {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            price_ms: 2_000.0,
            delay_weight: 0.2,
            latency_factor: 1.5,
            latency_slack_ms: 30.0,
        }
    }
}

/// Why a policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, or keys and values that mean nothing.
    #[error(transparent)]
    Toml(#[from] ConfigError),
    /// Not JSON, or keys and values that mean nothing.
    #[error("the policy is not as expected: {0}")]
    Json(#[from] serde_json::Error),
    /// A rule that makes no sense.
    #[error("{rule}: {reason}")]
    Rule {
        /// Which: kind and number, from 1.
        rule: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl Policy {
    /// Reads TOML and checks it by itself; `origin` stands in errors.
    ///
    /// # Errors
    /// [`PolicyError`], naming the line or the rule and the key.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, PolicyError> {
        let policy: Self = tradewind_service::config::parse(text, origin)?;
        policy.check()?;
        Ok(policy)
    }

    /// Reads JSON and checks it by itself.
    ///
    /// # Errors
    /// [`PolicyError`], naming the rule and the key.
    pub fn from_json(text: &[u8]) -> Result<Self, PolicyError> {
        let policy: Self = serde_json::from_slice(text)?;
        policy.check()?;
        Ok(policy)
    }

    /// As TOML.
    ///
    /// # Panics
    /// Never: a policy has a form in TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a policy has a form in TOML")
    }

    /// Adds a pin, instead of one between the same two relays for the same profile.
    pub fn add_pin(&mut self, pin: Pin) {
        self.remove_pins(&pin.from, &pin.to, pin.profile);
        self.pin.push(pin);
    }

    /// Removes the pins between two relays, for a profile or for all; gives how many.
    pub fn remove_pins(&mut self, from: &str, to: &str, profile: Option<ProfileName>) -> usize {
        let before = self.pin.len();
        self.pin.retain(|pin| {
            let meant = profile.is_none() || pin.profile == profile;
            !(pin.from == from && pin.to == to && meant)
        });
        before - self.pin.len()
    }
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde hands it in
fn is_yes(value: &bool) -> bool {
    *value
}

fn utc() -> String {
    "UTC".to_owned()
}
