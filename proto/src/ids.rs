//! Names of things, small enough to travel in every packet.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A relay's small dense index, given by the controller and never reused while a retained plan
/// names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RelayIndex(pub u16);

impl RelayIndex {
    /// No relay. Never given to one.
    pub const NONE: Self = Self(u16::MAX);

    /// As an index into a table.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl Default for RelayIndex {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for RelayIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Which of the ways between the same two relays (public Internet, private line).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Uplink(pub u8);

/// A link: one directed way between two relays over one uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkKey {
    /// Where it begins.
    pub from: RelayIndex,
    /// Where it ends.
    pub to: RelayIndex,
    /// Over which uplink.
    pub uplink: Uplink,
}

/// Name of a plan. A greater epoch is a later controller; numbers count within an epoch.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PlanId {
    /// Epoch of the controller that made it.
    pub epoch: u16,
    /// Its number within the epoch, from 1.
    pub number: u32,
}

impl PlanId {
    /// No plan: the packet goes by direct links.
    pub const NONE: Self = Self {
        epoch: 0,
        number: 0,
    };
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

/// Address of a session: the edge, the slot in it, and a random generation, so that a later
/// session in the same slot is never taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locator {
    /// The edge.
    pub relay: RelayIndex,
    /// The slot at the edge, from 1. Slot 0 is the relay itself.
    pub slot: u32,
    /// Random, new for each session. 0 for the relay itself.
    pub generation: u32,
}

impl Locator {
    /// The relay itself: control packets and pings go there.
    #[must_use]
    pub const fn relay_itself(relay: RelayIndex) -> Self {
        Self {
            relay,
            slot: 0,
            generation: 0,
        }
    }

    /// Whether this names the relay and none of its sessions.
    #[must_use]
    pub const fn is_relay_itself(&self) -> bool {
        self.slot == 0
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{:08x}", self.relay.0, self.slot, self.generation)
    }
}

/// Key of a group on the wire: a hash of (app, group) that the directory resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupKey(pub u64);

/// A user of an app (a tenant).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UserKey {
    /// The tenant.
    pub app: String,
    /// The user within it.
    pub user: String,
}

impl fmt::Display for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.user)
    }
}
