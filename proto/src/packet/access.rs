//! The header between a client and its edge.

use super::{HeaderError, Kind, VERSION, need, u32_at};
use crate::Class;

const FLAG_TRACE: u8 = 0x20;
const FLAG_PATH_CHANGE: u8 = 0x10;
const FLAG_GROUP: u8 = 0x08;

/// The fixed part of every packet between a client and its edge, 20 bytes, the same in both
/// directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessHeader {
    /// What the packet is.
    pub kind: Kind,
    /// The application's class.
    pub class: Class,
    /// To the edge: record the hops. From the edge: a trace follows.
    pub trace: bool,
    /// From the edge: the flow's route has just changed on purpose.
    pub path_change: bool,
    /// From the edge: it was sent to a group, `handle` is one of the edge itself (told by
    /// `GroupSource`), the same for all members, and the age is without the client's own leg.
    pub group: bool,
    /// Layer of a group's media, 0 to 7; members choose the layers that they want.
    pub layer: u8,
    /// To the edge: the destination's handle, from a lookup or from a packet received. From the
    /// edge: the sender's handle.
    pub handle: u32,
    /// The flow or lane.
    pub flow: u32,
    /// Number within the flow; wraps.
    pub sequence: u32,
    /// From the edge: time since the packet left the sender, microseconds. To the edge: zero, and
    /// ignored.
    pub age_us: u32,
}

impl AccessHeader {
    /// Length, in bytes.
    pub const LEN: usize = 20;

    /// Reads it.
    ///
    /// # Errors
    /// When `bytes` are too short or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let kind = super::peek_kind(bytes)?;
        need(bytes, Self::LEN)?;
        Ok(Self {
            kind,
            class: Class::from_bits(bytes[1] >> 6),
            trace: bytes[1] & FLAG_TRACE != 0,
            path_change: bytes[1] & FLAG_PATH_CHANGE != 0,
            group: bytes[1] & FLAG_GROUP != 0,
            layer: bytes[2] & 0b111,
            handle: u32_at(bytes, 4),
            flow: u32_at(bytes, 8),
            sequence: u32_at(bytes, 12),
            age_us: u32_at(bytes, 16),
        })
    }

    /// Writes it to the beginning of `out`.
    ///
    /// # Panics
    /// When `out` is shorter than [`Self::LEN`].
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..Self::LEN];
        out[0] = VERSION << 4 | self.kind as u8;
        out[1] = (self.class as u8) << 6
            | if self.trace { FLAG_TRACE } else { 0 }
            | if self.path_change {
                FLAG_PATH_CHANGE
            } else {
                0
            }
            | if self.group { FLAG_GROUP } else { 0 };
        out[2] = self.layer & 0b111;
        out[3] = 0;
        out[4..8].copy_from_slice(&self.handle.to_be_bytes());
        out[8..12].copy_from_slice(&self.flow.to_be_bytes());
        out[12..16].copy_from_slice(&self.sequence.to_be_bytes());
        out[16..20].copy_from_slice(&self.age_us.to_be_bytes());
    }
}
