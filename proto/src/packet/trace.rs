//! The record of a flagged packet's hops.

use super::{HeaderError, need, u16_at, u32_at};
use crate::RelayIndex;

/// Hops a trace has room for: the origin, 4 of transit, 2 deflections and the destination.
pub const MAX_HOPS: usize = 8;

const RECORD: usize = 8;
const FLAG_DEFLECTED: u8 = 1;

/// One relay that a flagged packet went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceRecord {
    /// The relay.
    pub relay: RelayIndex,
    /// Uplink of the link it came over; 0 at the origin.
    pub uplink: u8,
    /// Whether the packet left its tree here.
    pub deflected: bool,
    /// The packet's age when it left the relay, microseconds.
    pub age_us: u32,
}

/// The trace of a flagged packet. Its size on the wire is fixed, so that relays record in place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The hops, in order; at most [`MAX_HOPS`].
    pub hops: Vec<TraceRecord>,
}

impl Trace {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 4 + MAX_HOPS * RECORD;

    /// Reads it from the beginning of `bytes`.
    ///
    /// # Errors
    /// When it is cut short or says it has more hops than fit.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        need(bytes, Self::LEN)?;
        let count = usize::from(bytes[0]);
        if count > MAX_HOPS {
            return Err(HeaderError::Field("a trace has too many hops"));
        }
        let hops = (0..count)
            .map(|i| {
                let at = 4 + i * RECORD;
                TraceRecord {
                    relay: RelayIndex(u16_at(bytes, at)),
                    uplink: bytes[at + 2],
                    deflected: bytes[at + 3] & FLAG_DEFLECTED != 0,
                    age_us: u32_at(bytes, at + 4),
                }
            })
            .collect();
        Ok(Self { hops })
    }

    /// Its bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        for hop in self.hops.iter().take(MAX_HOPS) {
            // Cannot be full: at most MAX_HOPS are recorded.
            let _ = Self::record(&mut out, *hop);
        }
        out
    }

    /// Adds a hop to a trace that lies encoded at the beginning of `bytes`. `false` when it is full
    /// or no trace.
    #[must_use]
    pub fn record(bytes: &mut [u8], hop: TraceRecord) -> bool {
        let Some(count) = bytes.first().copied().map(usize::from) else {
            return false;
        };
        if count >= MAX_HOPS || bytes.len() < Self::LEN {
            return false;
        }
        let at = 4 + count * RECORD;
        bytes[at..at + 2].copy_from_slice(&hop.relay.0.to_be_bytes());
        bytes[at + 2] = hop.uplink;
        bytes[at + 3] = if hop.deflected { FLAG_DEFLECTED } else { 0 };
        bytes[at + 4..at + 8].copy_from_slice(&hop.age_us.to_be_bytes());
        bytes[0] += 1;
        true
    }
}
