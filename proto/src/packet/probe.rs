//! What measures a link.

use super::{HeaderError, Kind, VERSION, need, u16_at, u32_at, u64_at};
use crate::PlanId;

/// A probe, 64 bytes. Both ends of a link send one at every interval, each carrying an echo of the
/// last one that came: one packet per direction and interval gives both ends the round trip, both
/// one-way differences and the loss of each direction.
///
/// Stamps are microseconds of the sender's monotonic clock, from an origin of its own.
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
}

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
        out[56..60].copy_from_slice(&self.interval_us.to_be_bytes());
        out
    }
}
