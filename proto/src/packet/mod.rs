//! Packet headers. Network byte order throughout; laid out bit by bit in `docs/protocol.md`.

mod access;
mod link;
mod probe;
mod relay_set;
mod trace;

pub use access::AccessHeader;
pub use link::{Destination, LinkHeader, MAX_DEFLECTIONS, MAX_PASSED};
pub use probe::{Probe, ProbeState};
pub use relay_set::{MAX_SET_BYTES, MAX_SET_LEN, RelaySet};
pub use trace::{MAX_HOPS, Trace, TraceRecord};

/// Version of both packet formats: the high four bits of the first byte.
pub const VERSION: u8 = 1;

/// What a packet is: the low four bits of the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// One datagram of a media flow.
    Media = 0,
    /// One frame of a message lane (`tradewind_proto::lane`).
    Message = 1,
    /// Relays among themselves (`RelayMessage`).
    Control = 2,
    /// A link's measurement. Never forwarded.
    Probe = 3,
    /// To be answered by the destination with an `EchoReply`.
    EchoRequest = 4,
    /// The answer: the request's trace, then its payload.
    EchoReply = 5,
}

impl Kind {
    /// From the low four bits of the first byte.
    ///
    /// # Errors
    /// For a kind this version does not know.
    pub const fn from_bits(bits: u8) -> Result<Self, HeaderError> {
        Ok(match bits & 0x0f {
            0 => Self::Media,
            1 => Self::Message,
            2 => Self::Control,
            3 => Self::Probe,
            4 => Self::EchoRequest,
            5 => Self::EchoReply,
            other => return Err(HeaderError::Kind(other)),
        })
    }

    /// Whether it travels on streams, where nothing is lost, rather than in datagrams.
    #[must_use]
    pub const fn is_reliable(self) -> bool {
        matches!(self, Self::Message | Self::Control)
    }
}

/// Bytes that are no packet of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It ends before its header does.
    #[error("a header of {needed} bytes was expected, {got} came")]
    Short {
        /// Bytes that were needed.
        needed: usize,
        /// Bytes that came.
        got: usize,
    },
    /// Another version of the format.
    #[error("format version {0} is not spoken here (this is version {VERSION})")]
    Version(u8),
    /// A kind without a meaning.
    #[error("kind {0} has no meaning")]
    Kind(u8),
    /// A field that contradicts another one or is out of its range.
    #[error("bad field: {0}")]
    Field(&'static str),
}

fn need(bytes: &[u8], needed: usize) -> Result<(), HeaderError> {
    if bytes.len() < needed {
        return Err(HeaderError::Short {
            needed,
            got: bytes.len(),
        });
    }
    Ok(())
}

/// The kind of the packet that `bytes` begin with.
///
/// # Errors
/// When they are empty, or of another version or an unknown kind.
pub fn peek_kind(bytes: &[u8]) -> Result<Kind, HeaderError> {
    need(bytes, 1)?;
    if bytes[0] >> 4 != VERSION {
        return Err(HeaderError::Version(bytes[0] >> 4));
    }
    Kind::from_bits(bytes[0])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests;
