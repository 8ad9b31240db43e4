//! What a policy must be like: by itself, and against the relays there are.

use std::collections::{BTreeMap, BTreeSet};

use tradewind_routing::MAX_TRANSIT;

use super::{
    ForbidTransit, LinkMatch, MAX_NAME, MOST_RESTRICTED, MOST_RULES, Mode, Places, Policy,
    PolicyError, schedule::time_zone,
};

/// Whose packets a restriction is about: (app, group), empty for any.
pub(super) type Whose = (String, String);
/// Regions and relays that must not be crossed.
pub(super) type Forbidden = (BTreeSet<String>, BTreeSet<String>);

impl Policy {
    /// Whether the policy makes sense, whatever relays there are.
    ///
    /// # Errors
    /// [`PolicyError::Rule`], naming the first rule that does not, and the key.
    pub fn check(&self) -> Result<(), PolicyError> {
        for (kind, count) in [
            ("price", self.price.len()),
            ("capacity", self.capacity.len()),
            ("forbid_transit", self.forbid_transit.len()),
            ("pin", self.pin.len()),
            ("peak_only", self.peak_only.len()),
        ] {
            if count > MOST_RULES {
                let reason = format!("{count} rules; at most {MOST_RULES} are taken");
                return Err(refused(format!("[[{kind}]]"), reason));
            }
        }
        for (at, price) in self.price.iter().enumerate() {
            check_links(&price.links(), false)
                .and(not_negative("per_gb", price.per_gb))
                .map_err(|reason| refused(nth("price", at), reason))?;
        }
        for (at, capacity) in self.capacity.iter().enumerate() {
            let positive = match capacity.rate.bytes_per_sec() {
                0 => Err("`rate` must be more than 0; to close links, quarantine their relay or forbid transit".to_owned()),
                _ => Ok(()),
            };
            check_links(&capacity.links(), false)
                .and(positive)
                .map_err(|reason| refused(nth("capacity", at), reason))?;
        }
        for (at, peak) in self.peak_only.iter().enumerate() {
            let links = match &peak.relay {
                Some(_) if check_links(&peak.links(), false).is_ok() => {
                    Err("give either `relay`, or keys of links, not both".to_owned())
                }
                Some(name) => check_text("relay", name),
                None => check_links(&peak.links(), true),
            };
            links
                .and(time_zone(&peak.time_zone).map(|_| ()))
                .map_err(|reason| refused(nth("peak_only", at), reason))?;
        }
        for (at, rule) in self.forbid_transit.iter().enumerate() {
            check_forbid(rule).map_err(|reason| refused(nth("forbid_transit", at), reason))?;
        }
        for (at, pin) in self.pin.iter().enumerate() {
            check_pin(&pin.from, &pin.via, &pin.to)
                .map_err(|reason| refused(nth("pin", at), reason))?;
        }
        self.check_numbers()?;
        let sets = self.restricted_sets();
        if sets.len() > MOST_RESTRICTED {
            let reason = format!(
                "apps and groups together need {} different sets of regions and relays that are \
                 not crossed, and a plan has room for {MOST_RESTRICTED}; let some share the same \
                 `regions` and `relays` (a packet that several rules are about needs all of them)",
                sets.len()
            );
            return Err(refused("[[forbid_transit]]".to_owned(), reason));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), PolicyError> {
        let weights = [
            ("jitter", self.weights.jitter),
            ("loss_ms_per_percent", self.weights.loss_ms_per_percent),
            ("load_scale_ms", self.weights.load_scale_ms),
            ("hop_ms", self.weights.hop_ms),
        ];
        for (key, value) in weights {
            not_negative(key, value.unwrap_or(0.0))
                .map_err(|reason| refused("[weights]".to_owned(), reason))?;
        }
        if self
            .weights
            .load_knee
            .is_some_and(|knee| !(0.0..1.0).contains(&knee))
        {
            let reason = "`load_knee` must be from 0 to below 1".to_owned();
            return Err(refused("[weights]".to_owned(), reason));
        }
        not_negative("price_ms", self.profiles.realtime.price_ms)
            .map_err(|reason| refused("[profiles.realtime]".to_owned(), reason))?;
        let economy = &self.profiles.economy;
        not_negative("price_ms", economy.price_ms)
            .and(not_negative("latency_slack_ms", economy.latency_slack_ms))
            .and(
                match economy.delay_weight > 0.0 && economy.delay_weight <= 1.0 {
                    true => Ok(()),
                    false => Err("`delay_weight` must be above 0 and at most 1".to_owned()),
                },
            )
            .and(match (1.0..=1_000.0).contains(&economy.latency_factor) {
                true => Ok(()),
                false => Err("`latency_factor` must be from 1 to 1000".to_owned()),
            })
            .map_err(|reason| refused("[profiles.economy]".to_owned(), reason))
    }

    /// What is wrong with the names in the policy: each unknown one, with the nearest there is.
    #[must_use]
    pub fn check_names(&self, relays: &[String], regions: &[String]) -> Vec<String> {
        let places = Places {
            names: relays,
            regions,
        };
        let mut problems = Vec::new();
        let mut relay = |rule: String, key: &str, name: Option<&str>| {
            if let Some(name) = name.filter(|name| !places.has_relay(name)) {
                problems.push(unknown(&rule, key, "relay", name, relays));
            }
        };
        for (rule, links) in self.link_matches() {
            relay(rule.clone(), "from", links.from);
            relay(rule, "to", links.to);
        }
        for (at, peak) in self.peak_only.iter().enumerate() {
            relay(nth("peak_only", at), "relay", peak.relay.as_deref());
        }
        for (at, rule) in self.forbid_transit.iter().enumerate() {
            for name in &rule.relays {
                relay(nth("forbid_transit", at), "relays", Some(name));
            }
        }
        for (at, pin) in self.pin.iter().enumerate() {
            relay(nth("pin", at), "from", Some(&pin.from));
            for name in &pin.via {
                relay(nth("pin", at), "via", Some(name));
            }
            relay(nth("pin", at), "to", Some(&pin.to));
        }
        let mut region = |rule: String, key: &str, name: Option<&str>| {
            if let Some(name) = name.filter(|name| !places.has_region(name)) {
                problems.push(unknown(&rule, key, "region", name, regions));
            }
        };
        for (rule, links) in self.link_matches() {
            region(rule.clone(), "from_region", links.from_region);
            region(rule.clone(), "to_region", links.to_region);
            region(rule, "region", links.region);
        }
        for (at, rule) in self.forbid_transit.iter().enumerate() {
            for name in &rule.regions {
                region(nth("forbid_transit", at), "regions", Some(name));
            }
        }
        problems
    }

    /// Whose packets are restricted, and to what: the most particular first, closed under
    /// combination, so that the first that fits a packet says all that holds for it.
    pub(super) fn restrictions(&self) -> BTreeMap<Whose, Forbidden> {
        let rules: Vec<(Whose, &ForbidTransit)> = self
            .forbid_transit
            .iter()
            .filter(|rule| rule.mode == Mode::Enforce)
            .filter(|rule| rule.app.is_some() || rule.group.is_some())
            .map(|rule| {
                let whose = (
                    rule.app.clone().unwrap_or_default(),
                    rule.group.clone().unwrap_or_default(),
                );
                (whose, rule)
            })
            .collect();
        let mut keys: BTreeSet<Whose> = rules.iter().map(|(whose, _)| whose.clone()).collect();
        // A rule about an app and one about a group of any app meet in that app's group.
        let apps: Vec<String> = keys.iter().map(|(app, _)| app.clone()).collect();
        let groups_of_any: Vec<String> = keys
            .iter()
            .filter(|(app, _)| app.is_empty())
            .map(|(_, group)| group.clone())
            .collect();
        for app in apps.iter().filter(|app| !app.is_empty()) {
            keys.extend(
                groups_of_any
                    .iter()
                    .map(|group| (app.clone(), group.clone())),
            );
        }
        let fits = |rule: &Whose, packet: &Whose| {
            (rule.0.is_empty() || rule.0 == packet.0) && (rule.1.is_empty() || rule.1 == packet.1)
        };
        keys.into_iter()
            .map(|key| {
                let mut forbidden = Forbidden::default();
                for (_, rule) in rules.iter().filter(|(whose, _)| fits(whose, &key)) {
                    forbidden.0.extend(rule.regions.iter().cloned());
                    forbidden.1.extend(rule.relays.iter().cloned());
                }
                (key, forbidden)
            })
            .collect()
    }

    /// The different sets of what must not be crossed: one restricted rule set each.
    pub(super) fn restricted_sets(&self) -> Vec<Forbidden> {
        let sets: BTreeSet<Forbidden> = self.restrictions().into_values().collect();
        sets.into_iter().collect()
    }

    fn link_matches(&self) -> Vec<(String, LinkMatch<'_>)> {
        let prices = self.price.iter().enumerate();
        let capacities = self.capacity.iter().enumerate();
        let peaks = self.peak_only.iter().enumerate();
        prices
            .map(|(at, rule)| (nth("price", at), rule.links()))
            .chain(capacities.map(|(at, rule)| (nth("capacity", at), rule.links())))
            .chain(peaks.map(|(at, rule)| (nth("peak_only", at), rule.links())))
            .collect()
    }
}

fn check_links(links: &LinkMatch<'_>, or_relay: bool) -> Result<(), String> {
    let texts = [
        ("from", links.from),
        ("to", links.to),
        ("from_region", links.from_region),
        ("to_region", links.to_region),
        ("region", links.region),
    ];
    if texts.iter().all(|(_, text)| text.is_none()) && links.uplink.is_none() {
        let relay = if or_relay { ", or `relay`" } else { "" };
        return Err(format!(
            "it does not say which links it is about: give `from` and `to` (relays), \
             `from_region` and `to_region`, `region`, or `uplink`{relay}"
        ));
    }
    for (key, text) in texts {
        text.map_or(Ok(()), |text| check_text(key, text))?;
    }
    if links.from.is_some() && links.from == links.to {
        return Err("`from` and `to` are the same relay".to_owned());
    }
    Ok(())
}

fn check_forbid(rule: &ForbidTransit) -> Result<(), String> {
    if rule.regions.is_empty() && rule.relays.is_empty() {
        return Err("it forbids nothing: give `regions` or `relays`".to_owned());
    }
    if rule.profile.is_some() && (rule.app.is_some() || rule.group.is_some()) {
        return Err(
            "give `profile`, or `app` and `group`, not both: a restriction of an app or group \
             holds in every profile"
                .to_owned(),
        );
    }
    for (key, names) in [("regions", &rule.regions), ("relays", &rule.relays)] {
        names.iter().try_for_each(|name| check_text(key, name))?;
    }
    for (key, name) in [("app", &rule.app), ("group", &rule.group)] {
        name.as_ref().map_or(Ok(()), |name| check_text(key, name))?;
    }
    Ok(())
}

fn check_pin(from: &str, via: &[String], to: &str) -> Result<(), String> {
    if via.len() > MAX_TRANSIT {
        return Err(format!(
            "`via` names {} relays; a path crosses at most {MAX_TRANSIT}",
            via.len()
        ));
    }
    let mut seen = BTreeSet::new();
    for name in [from]
        .into_iter()
        .chain(via.iter().map(String::as_str))
        .chain([to])
    {
        check_text("via", name)?;
        if !seen.insert(name) {
            return Err(format!("`{name}` is on it twice: that would be a loop"));
        }
    }
    Ok(())
}

fn check_text(key: &str, text: &str) -> Result<(), String> {
    match text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        true => Err(format!(
            "`{key}` must be a name of 1 to {MAX_NAME} bytes that print"
        )),
        false => Ok(()),
    }
}

fn not_negative(key: &str, value: f64) -> Result<(), String> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(()),
        false => Err(format!("`{key}` must be a number that is not negative")),
    }
}

pub(super) fn nth(kind: &str, at: usize) -> String {
    format!("[[{kind}]] number {}", at + 1)
}

fn refused(rule: String, reason: String) -> PolicyError {
    PolicyError::Rule { rule, reason }
}

fn unknown(rule: &str, key: &str, what: &str, name: &str, known: &[String]) -> String {
    let wanted = name.to_lowercase();
    let nearest = known
        .iter()
        .map(|known| (strsim::jaro_winkler(&known.to_lowercase(), &wanted), known))
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((_, nearest)) => format!("; did you mean `{nearest}`?"),
        None => String::new(),
    };
    format!("{rule}: `{key}`: no {what} is called `{name}`{hint}")
}
