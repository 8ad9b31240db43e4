//! What measures a link.

use super::{HeaderError, Kind, VERSION, need, u16_at, u32_at, u64_at};
use crate::PlanId;

/// A probe, 64 bytes. Both ends of a link send one at every interval, each carrying an echo of the
/// last one that came: one packet per direction and interval gives both ends the round trip, both
/// one-way differences and the loss of each direction.
///
/// Stamps are microseconds of the sender's monotonic clock, from an origin of its own.
///
/// Each also says what its sender thinks of the link, as BFD does (RFC 5880, section 4.1): the end
/// that hears nothing any more tells the other one, which may hear everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probe {
    /// The sender's measuring session: random, so that a restarted relay is not taken for itself.
    pub discriminator: u32,
    /// Number of this probe within the session, from 1.
    pub sequence: u32,
    /// When this probe was sent.
    pub sent_us: u64,
    /// The peer's session that the echo is about; 0 when nothing has come yet.
    pub echo_discriminator: u32,
    /// Number of the last probe that came from it.
    pub echo_sequence: u32,
    /// The stamp that one carried (the peer's clock).
    pub echo_sent_us: u64,
    /// When it came (this sender's clock).
    pub echo_received_us: u64,
    /// How many different probes of that session have come in all.
    pub received: u32,
    /// How often the sender probes this link now, microseconds.
    pub interval_us: u32,
    /// Oldest plan this relay still stamps: what it names must be kept.
    pub oldest_stamped: PlanId,
    /// What the sender thinks of the link.
    pub state: ProbeState,
    /// The sender uses the link, or is about to: both ends shall probe it fast. About the sender
    /// alone, or two ends would keep each other fast for ever.
    pub in_use: bool,
    /// A probe is asked for at once.
    pub answer: bool,
    /// What comes from the peer comes far later, or less of it, than is normal for the link.
    pub degraded_in: bool,
    /// The same of what goes to the peer, as the sender of this probe has seen it by itself.
    pub degraded_out: bool,
    /// The sender's other links are only coming up: what is for other relays had better not go over
    /// it for now (as the overload bit of IS-IS asks for at a start, RFC 3277).
    pub settling: bool,
}

/// What the sender of a probe thinks of the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProbeState {
    /// Not said: by a version that says nothing of it, or in words of a later one.
    #[default]
    NotSaid = 0,
    /// Nothing heard yet.
    Unknown = 1,
    /// Heard, but not for long enough.
    Warming = 2,
    /// Good.
    Up = 3,
    /// Silent.
    Down = 4,
}

impl ProbeState {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Unknown,
            2 => Self::Warming,
            3 => Self::Up,
            4 => Self::Down,
            _ => Self::NotSaid,
        }
    }
}

const IN_USE: u8 = 1;
const ANSWER: u8 = 1 << 1;
const DEGRADED_IN: u8 = 1 << 2;
const DEGRADED_OUT: u8 = 1 << 3;
const SETTLING: u8 = 1 << 4;

impl Probe {
    /// Length, in bytes.
    pub const LEN: usize = 64;

    /// Reads it.
    ///
    /// # Errors
    /// When `bytes` are too short, of another version or no probe.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if super::peek_kind(bytes)? != Kind::Probe {
            return Err(HeaderError::Field("not a probe"));
        }
        need(bytes, Self::LEN)?;
        Ok(Self {
            discriminator: u32_at(bytes, 4),
            sequence: u32_at(bytes, 8),
            received: u32_at(bytes, 12),
            interval_us: u32_at(bytes, 56),
            sent_us: u64_at(bytes, 16),
            echo_discriminator: u32_at(bytes, 24),
            echo_sequence: u32_at(bytes, 28),
            echo_sent_us: u64_at(bytes, 32),
            echo_received_us: u64_at(bytes, 40),
            oldest_stamped: PlanId {
                epoch: u16_at(bytes, 48),
                number: u32_at(bytes, 50),
            },
            state: ProbeState::from_code(bytes[54]),
            in_use: bytes[55] & IN_USE != 0,
            answer: bytes[55] & ANSWER != 0,
            degraded_in: bytes[55] & DEGRADED_IN != 0,
            degraded_out: bytes[55] & DEGRADED_OUT != 0,
            settling: bytes[55] & SETTLING != 0,
        })
    }

    /// Its bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = VERSION << 4 | Kind::Probe as u8;
        out[4..8].copy_from_slice(&self.discriminator.to_be_bytes());
        out[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        out[12..16].copy_from_slice(&self.received.to_be_bytes());
        out[16..24].copy_from_slice(&self.sent_us.to_be_bytes());
        out[24..28].copy_from_slice(&self.echo_discriminator.to_be_bytes());
        out[28..32].copy_from_slice(&self.echo_sequence.to_be_bytes());
        out[32..40].copy_from_slice(&self.echo_sent_us.to_be_bytes());
        out[40..48].copy_from_slice(&self.echo_received_us.to_be_bytes());
        out[48..50].copy_from_slice(&self.oldest_stamped.epoch.to_be_bytes());
        out[50..54].copy_from_slice(&self.oldest_stamped.number.to_be_bytes());
        out[54] = self.state as u8;
        for (said, bit) in [
            (self.in_use, IN_USE),
            (self.answer, ANSWER),
            (self.degraded_in, DEGRADED_IN),
            (self.degraded_out, DEGRADED_OUT),
            (self.settling, SETTLING),
        ] {
            out[55] |= if said { bit } else { 0 };
        }
        out[56..60].copy_from_slice(&self.interval_us.to_be_bytes());
        out
    }
}
