//! The header between relays.

use super::{HeaderError, Kind, VERSION, need, u16_at, u32_at, u64_at};
use crate::{Class, GroupKey, Locator, PlanId, RelayIndex, Tenant};

/// Relays after the origin that a packet can remember: 4 of transit and 2 deflections.
pub const MAX_PASSED: usize = 6;

/// A packet is deflected at most this often, then dropped.
pub const MAX_DEFLECTIONS: u8 = 2;

const FLAG_TRACE: u8 = 0x80;
const FLAG_GROUP: u8 = 0x40;
const FLAG_PATH_CHANGE: u8 = 0x20;

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To one session, or to a relay itself.
    Session(Locator),
    /// To a group; a relay set follows the header.
    Group(GroupKey),
}

/// The fixed part of every packet between relays, 56 bytes. Set by the ingress edge; nothing in it
/// is ever taken from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkHeader {
    /// What the packet is.
    pub kind: Kind,
    /// The application's class.
    pub class: Class,
    /// Profile of the route, two bits. A relay that does not know the value uses realtime.
    pub profile: u8,
    /// Number of the in-tree within plan, profile and destination, two bits.
    pub tree: u8,
    /// How often the packet has left its tree. A deflected packet goes straight to its destination.
    pub deflections: u8,
    /// A trace follows (after the relay set, if there is one).
    pub trace: bool,
    /// First packet of a media flow after its route changed on purpose.
    pub path_change: bool,
    /// How many more links it may take, at most 15.
    pub hop_limit: u8,
    /// The plan it travels by, from end to end.
    pub plan: PlanId,
    /// Time since it entered the network, microseconds; estimated, saturating.
    pub age_us: u32,
    /// The sending session. Its relay is the origin relay.
    pub sender: Locator,
    /// Where it goes.
    pub destination: Destination,
    /// Relays it has passed after the origin, in order; [`RelayIndex::NONE`] beyond.
    pub passed: [RelayIndex; MAX_PASSED],
    /// Uplink of the link it was last sent over.
    pub uplink: u8,
    /// The flow or lane, chosen by the sender; with the sender, the key of load splitting.
    pub flow: u32,
    /// Number within the flow, chosen by the sender; wraps.
    pub sequence: u32,
    /// Layer of a group's media, 0 to 7.
    pub layer: u8,
    /// The sender's tenant, for fairness on full links.
    pub tenant: Tenant,
}

impl LinkHeader {
    /// Length of the fixed part, in bytes.
    pub const LEN: usize = 56;

    /// Reads the fixed part.
    ///
    /// # Errors
    /// When `bytes` are too short, of another version, or contradict themselves.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let kind = super::peek_kind(bytes)?;
        need(bytes, Self::LEN)?;
        let flags = bytes[2];
        let passed_count = usize::from(bytes[3] & 0x0f);
        if passed_count > MAX_PASSED {
            return Err(HeaderError::Field("more relays passed than can be"));
        }
        let mut passed = [RelayIndex::NONE; MAX_PASSED];
        for (i, relay) in passed.iter_mut().take(passed_count).enumerate() {
            *relay = RelayIndex(u16_at(bytes, 34 + 2 * i));
            if *relay == RelayIndex::NONE {
                return Err(HeaderError::Field("a passed relay has no index"));
            }
        }
        let destination = if flags & FLAG_GROUP != 0 {
            Destination::Group(GroupKey(u64_at(bytes, 24)))
        } else {
            Destination::Session(Locator {
                relay: RelayIndex(u16_at(bytes, 24)),
                slot: u32_at(bytes, 26),
                generation: u32_at(bytes, 30),
            })
        };
        Ok(Self {
            kind,
            class: Class::from_bits(bytes[1] >> 6),
            profile: bytes[1] >> 4 & 0b11,
            tree: bytes[1] >> 2 & 0b11,
            deflections: bytes[1] & 0b11,
            trace: flags & FLAG_TRACE != 0,
            path_change: flags & FLAG_PATH_CHANGE != 0,
            hop_limit: bytes[3] >> 4,
            plan: PlanId {
                epoch: u16_at(bytes, 6),
                number: u32_at(bytes, 8),
            },
            age_us: u32_at(bytes, 12),
            sender: Locator {
                relay: RelayIndex(u16_at(bytes, 4)),
                slot: u32_at(bytes, 16),
                generation: u32_at(bytes, 20),
            },
            destination,
            passed,
            uplink: bytes[54],
            flow: u32_at(bytes, 46),
            sequence: u32_at(bytes, 50),
            layer: bytes[55] & 0b111,
            tenant: Tenant((flags & 0b111) << 5 | bytes[55] >> 3),
        })
    }

    /// Writes the fixed part to the beginning of `out`.
    ///
    /// # Panics
    /// When `out` is shorter than [`Self::LEN`].
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..Self::LEN];
        out[0] = VERSION << 4 | self.kind as u8;
        out[1] = (self.class as u8) << 6
            | (self.profile & 0b11) << 4
            | (self.tree & 0b11) << 2
            | (self.deflections & 0b11);
        let group = matches!(self.destination, Destination::Group(_));
        out[2] = if self.trace { FLAG_TRACE } else { 0 }
            | if group { FLAG_GROUP } else { 0 }
            | if self.path_change {
                FLAG_PATH_CHANGE
            } else {
                0
            }
            | self.tenant.0 >> 5;
        out[3] = self.hop_limit.min(15) << 4 | self.passed_count() as u8;
        out[4..6].copy_from_slice(&self.sender.relay.0.to_be_bytes());
        out[6..8].copy_from_slice(&self.plan.epoch.to_be_bytes());
        out[8..12].copy_from_slice(&self.plan.number.to_be_bytes());
        out[12..16].copy_from_slice(&self.age_us.to_be_bytes());
        out[16..20].copy_from_slice(&self.sender.slot.to_be_bytes());
        out[20..24].copy_from_slice(&self.sender.generation.to_be_bytes());
        match self.destination {
            Destination::Session(locator) => {
                out[24..26].copy_from_slice(&locator.relay.0.to_be_bytes());
                out[26..30].copy_from_slice(&locator.slot.to_be_bytes());
                out[30..34].copy_from_slice(&locator.generation.to_be_bytes());
            }
            Destination::Group(key) => {
                out[24..32].copy_from_slice(&key.0.to_be_bytes());
                out[32..34].fill(0);
            }
        }
        for (i, relay) in self.passed.iter().enumerate() {
            out[34 + 2 * i..36 + 2 * i].copy_from_slice(&relay.0.to_be_bytes());
        }
        out[46..50].copy_from_slice(&self.flow.to_be_bytes());
        out[50..54].copy_from_slice(&self.sequence.to_be_bytes());
        out[54] = self.uplink;
        out[55] = self.tenant.0 << 3 | self.layer & 0b111;
    }

    /// How many relays it has passed after the origin.
    #[must_use]
    pub fn passed_count(&self) -> usize {
        self.passed
            .iter()
            .position(|&relay| relay == RelayIndex::NONE)
            .unwrap_or(MAX_PASSED)
    }

    /// Whether the packet has been at `relay` (as origin or on the way).
    #[must_use]
    pub fn has_visited(&self, relay: RelayIndex) -> bool {
        self.sender.relay == relay || self.passed.contains(&relay)
    }

    /// Notes that the packet passes `relay`. `false` when its memory is full.
    #[must_use]
    pub fn pass(&mut self, relay: RelayIndex) -> bool {
        let count = self.passed_count();
        if count == MAX_PASSED {
            return false;
        }
        self.passed[count] = relay;
        true
    }
}
