//! Control messages: Protocol Buffers, generated from `proto/schema/`.

#![allow(missing_docs, clippy::use_self, unreachable_pub)] // generated; documented in the schema

use crate::{Locator, PlanId, RelayIndex};

include!(concat!(env!("OUT_DIR"), "/tradewind.v1.rs"));

impl From<Locator> for LocatorMessage {
    fn from(locator: Locator) -> Self {
        Self {
            relay: u32::from(locator.relay.0),
            slot: locator.slot,
            generation: locator.generation,
        }
    }
}

impl LocatorMessage {
    /// The locator it names; `None` when the relay index is out of range.
    #[must_use]
    pub fn locator(&self) -> Option<Locator> {
        Some(Locator {
            relay: RelayIndex(u16::try_from(self.relay).ok()?),
            slot: self.slot,
            generation: self.generation,
        })
    }
}

impl From<PlanId> for PlanName {
    fn from(id: PlanId) -> Self {
        Self {
            epoch: u32::from(id.epoch),
            number: id.number,
        }
    }
}

impl PlanName {
    /// The plan it names; `None` when the epoch is out of range.
    #[must_use]
    pub fn id(&self) -> Option<PlanId> {
        Some(PlanId {
            epoch: u16::try_from(self.epoch).ok()?,
            number: self.number,
        })
    }
}
