//! Who is there: relays by name and by their stable dense index.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tradewind_proto::{
    PlanId, RelayIndex, Uplink,
    control::{Register, RelayInfo, UplinkInfo},
};
use tradewind_trust::check_relay_name;

use super::ConnectionId;
use crate::state::{SavedRelay, SavedUplink};

/// Longest region or software version, in bytes.
const MAX_TEXT: usize = 128;
/// Most addresses of one kind that a relay may state.
const MAX_ADDRESSES: usize = 16;
/// Most uplinks of one relay.
const MAX_UPLINKS: usize = 16;

/// A load that is told is told lower only when the relay is so much below it, parts per thousand: each
/// time all relays are told, and one that swings about a step would never be done.
const WELL_BELOW: u32 = 50;

/// What is told of a load, when `told` was told last: steps of 100, and nothing below 500.
const fn load_to_tell(told: u32, permille: u32) -> u32 {
    let step = match permille {
        0..500 => 0,
        load => load / 100 * 100,
    };
    if step > told || permille + WELL_BELOW < told {
        step
    } else {
        told
    }
}

/// All relays ever known, in the order of their indices.
#[derive(Debug, Default)]
pub(super) struct Registry {
    relays: Vec<Relay>,
    by_name: BTreeMap<String, RelayIndex>,
    by_connection: BTreeMap<ConnectionId, RelayIndex>,
}

/// What is known of one relay.
#[derive(Debug, Clone)]
pub(super) struct Relay {
    pub(super) saved: SavedRelay,
    pub(super) software: String,
    pub(super) connection: Option<ConnectionId>,
    /// Since when it is online, or offline.
    pub(super) since: Duration,
    pub(super) draining: bool,
    /// Did not acknowledge a plan in time: no transit until it acknowledges one.
    pub(super) silent: bool,
    pub(super) sessions: u32,
    pub(super) busy_permille: u32,
    /// The greater of that and of its share of sessions.
    pub(super) load_permille: u32,
    /// Its load as clients are told of it: coarsely, and not before it matters.
    pub(super) load_told: u32,
    /// Newest plan it has acknowledged.
    pub(super) held: Option<PlanId>,
    /// Sequence of its last report in this incarnation.
    pub(super) last_report: Option<u64>,
    /// Since when it has been offline with no link up.
    pub(super) dead_since: Option<Duration>,
    /// What the operator has decided about it.
    pub(super) standing: Standing,
}

/// What the operator has decided about a relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    #[default]
    Member,
    /// No path crosses it; its sessions stay.
    Quarantined,
    /// It drains: from this moment it has so long, then it is retired.
    Leaving {
        /// When it is retired at the latest.
        until: Duration,
    },
    /// It is gone for good: its name is refused. Its index is never given again.
    Retired,
}

/// What became of a registration.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) index: RelayIndex,
    /// The relay's earlier connection, which this one replaces.
    pub(super) replaced: Option<ConnectionId>,
    /// Whether anything to be kept on disk has changed.
    pub(super) changed: bool,
    /// Whether its process has restarted (or is new).
    pub(super) restarted: bool,
}

impl Registry {
    pub(super) fn from_saved(saved: Vec<SavedRelay>) -> Self {
        let mut registry = Self::default();
        for relay in saved {
            registry.add(relay);
        }
        registry
    }

    /// Takes in a relay whose certificate is that of its name.
    ///
    /// # Errors
    /// What is wrong, in words for the relay's operator.
    pub(super) fn admit(
        &mut self,
        now: Duration,
        connection: ConnectionId,
        register: Register,
        max_relays: usize,
    ) -> Result<Admitted, String> {
        check_relay_name(&register.name).map_err(|error| error.to_string())?;
        let saved = checked(&register)?;
        let (index, is_new) = match self.by_name.get(&saved.name) {
            Some(&index) => (index, false),
            None if self.relays.len() >= max_relays => {
                return Err(format!(
                    "the network has {max_relays} relays, which is the limit (max_relays)"
                ));
            }
            None => (self.add(saved.clone()), true),
        };
        let relay = &mut self.relays[index.as_usize()];
        if relay.standing == Standing::Retired {
            return Err(format!(
                "`{}` was decommissioned; to take it in again: tradewind decommission --undo {}",
                saved.name, saved.name
            ));
        }
        let changed = is_new || relay.saved != saved;
        let restarted = is_new || relay.saved.incarnation != saved.incarnation;
        if restarted {
            relay.last_report = None;
            relay.draining = false;
        }
        relay.saved = saved;
        relay.software = register.software;
        relay.held = register.held.as_ref().and_then(|held| held.id());
        relay.since = now;
        relay.silent = false;
        relay.dead_since = None;
        let replaced = relay.connection.replace(connection);
        if let Some(old) = replaced {
            self.by_connection.remove(&old);
        }
        self.by_connection.insert(connection, index);
        Ok(Admitted {
            index,
            replaced,
            changed,
            restarted,
        })
    }

    /// The relay whose connection ended, unless it has a newer one.
    pub(super) fn disconnect(
        &mut self,
        now: Duration,
        connection: ConnectionId,
    ) -> Option<RelayIndex> {
        let index = self.by_connection.remove(&connection)?;
        let relay = &mut self.relays[index.as_usize()];
        relay.connection = None;
        relay.since = now;
        Some(index)
    }

    pub(super) fn len(&self) -> usize {
        self.relays.len()
    }

    pub(super) fn index_of(&self, name: &str) -> Option<RelayIndex> {
        self.by_name.get(name).copied()
    }

    pub(super) fn of_connection(&self, connection: ConnectionId) -> Option<RelayIndex> {
        self.by_connection.get(&connection).copied()
    }

    pub(super) fn get(&self, index: RelayIndex) -> &Relay {
        &self.relays[index.as_usize()]
    }

    pub(super) fn get_mut(&mut self, index: RelayIndex) -> &mut Relay {
        &mut self.relays[index.as_usize()]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RelayIndex, &Relay)> {
        self.relays
            .iter()
            .enumerate()
            .map(|(i, relay)| (RelayIndex(i as u16), relay))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (RelayIndex, &mut Relay)> {
        self.relays
            .iter_mut()
            .enumerate()
            .map(|(i, relay)| (RelayIndex(i as u16), relay))
    }

    /// The relays that are connected now.
    pub(super) fn online(&self) -> impl Iterator<Item = (RelayIndex, ConnectionId)> {
        self.by_connection
            .iter()
            .map(|(&connection, &index)| (index, connection))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.relays
            .iter()
            .map(|relay| relay.saved.name.clone())
            .collect()
    }

    pub(super) fn regions(&self) -> Vec<String> {
        self.relays
            .iter()
            .map(|relay| relay.saved.region.clone())
            .collect()
    }

    pub(super) fn to_saved(&self) -> Vec<SavedRelay> {
        self.relays
            .iter()
            .map(|relay| relay.saved.clone())
            .collect()
    }

    fn add(&mut self, saved: SavedRelay) -> RelayIndex {
        let index = RelayIndex(self.relays.len() as u16);
        self.by_name.insert(saved.name.clone(), index);
        self.relays.push(Relay {
            saved,
            software: String::new(),
            connection: None,
            since: Duration::ZERO,
            draining: false,
            silent: false,
            sessions: 0,
            busy_permille: 0,
            load_permille: 0,
            load_told: 0,
            held: None,
            last_report: None,
            dead_since: None,
            standing: Standing::Member,
        });
        index
    }
}

impl Relay {
    pub(super) fn is_online(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn name(&self) -> &str {
        &self.saved.name
    }

    pub(super) fn info(&self, index: RelayIndex) -> RelayInfo {
        RelayInfo {
            index: u32::from(index.0),
            name: self.saved.name.clone(),
            region: self.saved.region.clone(),
            client_addresses: self.saved.client_addresses.clone(),
            link_addresses: self.saved.link_addresses.clone(),
            draining: self.draining || matches!(self.standing, Standing::Leaving { .. }),
            incarnation: self.saved.incarnation,
            uplinks: self.saved.uplinks.iter().map(SavedUplink::info).collect(),
            load_permille: self.load_told,
        }
    }

    /// Takes note of how loaded it is now. Whether others are to be told.
    pub(super) fn set_load(&mut self, permille: u32) -> bool {
        self.load_permille = permille;
        let before = self.load_told;
        self.load_told = load_to_tell(before, permille);
        before != self.load_told
    }

    /// What it says one of its uplinks carries each way, bytes per second.
    pub(super) fn uplink_capacity(&self, uplink: Uplink) -> Option<f64> {
        self.saved
            .uplinks
            .iter()
            .find(|info| info.number == uplink.0 && info.capacity > 0)
            .map(|info| info.capacity as f64)
    }

    /// Whether it says what any of its uplinks carries.
    pub(super) fn states_capacity(&self) -> bool {
        self.saved.uplinks.iter().any(|uplink| uplink.capacity > 0)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.standing == Standing::Retired
    }

    /// Why no path crosses it, apart from policy.
    pub(super) fn closed_because(&self) -> Option<&'static str> {
        match self.standing {
            Standing::Quarantined => Some("quarantined"),
            Standing::Leaving { .. } | Standing::Retired => Some("decommissioned"),
            Standing::Member if self.draining => Some("draining"),
            Standing::Member if self.silent => Some("silent"),
            Standing::Member => None,
        }
    }
}

/// What the relay says of itself, if it is fit to be stored and told to others.
fn checked(register: &Register) -> Result<SavedRelay, String> {
    for (what, text) in [
        ("region", &register.region),
        ("software", &register.software),
    ] {
        if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            return Err(format!(
                "{what} must be at most {MAX_TEXT} bytes that print"
            ));
        }
    }
    for (what, addresses) in [
        ("client", &register.client_addresses),
        ("link", &register.link_addresses),
    ] {
        if addresses.len() > MAX_ADDRESSES {
            return Err(format!(
                "at most {MAX_ADDRESSES} {what} addresses are taken"
            ));
        }
        check_addresses(what, addresses)?;
    }
    check_uplinks(&register.uplinks)?;
    let degrees = |value: f64, limit: f64| match value.is_finite() && value.abs() <= limit {
        true => Ok(value),
        false => Err(format!("{value} is no coordinate in degrees")),
    };
    Ok(SavedRelay {
        name: register.name.clone(),
        region: register.region.clone(),
        client_addresses: register.client_addresses.clone(),
        link_addresses: register.link_addresses.clone(),
        latitude: degrees(register.latitude, 90.0)?,
        longitude: degrees(register.longitude, 180.0)?,
        incarnation: register.incarnation,
        uplinks: register.uplinks.iter().map(saved_uplink).collect(),
    })
}

fn check_uplinks(uplinks: &[UplinkInfo]) -> Result<(), String> {
    if uplinks.len() > MAX_UPLINKS {
        return Err(format!("at most {MAX_UPLINKS} uplinks are taken"));
    }
    for (at, uplink) in uplinks.iter().enumerate() {
        let number = uplink.number;
        if number > u32::from(u8::MAX) {
            return Err(format!("uplink {number}: numbers go from 0 to 255"));
        }
        if uplinks[..at].iter().any(|other| other.number == number) {
            return Err(format!("uplink {number} is stated twice"));
        }
        if uplink.link_addresses.len() > MAX_ADDRESSES {
            return Err(format!(
                "at most {MAX_ADDRESSES} addresses of an uplink are taken"
            ));
        }
        check_addresses(&format!("uplink {number}"), &uplink.link_addresses)?;
    }
    Ok(())
}

fn check_addresses(what: &str, addresses: &[String]) -> Result<(), String> {
    for address in addresses {
        let parsed: SocketAddr = address
            .parse()
            .map_err(|_| format!("{what} address `{address}` is not `ip:port`"))?;
        if parsed.ip().is_unspecified() || parsed.port() == 0 {
            return Err(format!(
                "{what} address `{address}` cannot be reached by others: state the address \
                 and port that they shall use"
            ));
        }
    }
    Ok(())
}

/// Of an uplink that was checked.
fn saved_uplink(uplink: &UplinkInfo) -> SavedUplink {
    SavedUplink {
        number: uplink.number as u8,
        link_addresses: uplink.link_addresses.clone(),
        capacity: uplink.capacity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_swings_about_a_step_is_told_once() {
        let mut told = 0;
        let mut of = |permille| {
            told = load_to_tell(told, permille);
            told
        };
        let swings = [499, 500, 499, 599, 600, 599, 551, 600, 549, 449, 1_000];
        assert_eq!(
            swings.map(&mut of),
            [0, 500, 500, 500, 600, 600, 600, 600, 500, 0, 1_000]
        );
    }
}
