//! What travels in Tradewind: names, packet headers, relay sets, control messages, token claims and
//! the reliable-message state machines.
//!
//! Sans-IO: no sockets, no runtime, no clock. The formats are documented bit by bit in
//! `docs/protocol.md`, with test vectors in `proto/vectors/`.

mod class;
mod close;
pub mod control;
mod drop_reason;
mod frame;
mod ids;
pub mod lane;
pub mod packet;
mod tenant;
pub mod token;

pub use class::{Class, Profile};
pub use close::CloseCode;
pub use drop_reason::DropReason;
pub use frame::{
    Frame, FrameError, FrameReader, MAX_CONTROL_FRAME, MAX_FRAME, encode_frame, frame_message,
};
pub use ids::{GroupKey, LinkKey, Locator, PlanId, RelayIndex, Uplink, UserKey};
pub use tenant::Tenant;

/// ALPN of the native client session.
pub const ALPN_CLIENT: &[u8] = b"tradewind/1";
/// ALPN between relays.
pub const ALPN_LINK: &[u8] = b"tradewind-link/1";
/// ALPN between a relay and the controller.
pub const ALPN_CONTROL: &[u8] = b"tradewind-control/1";
/// ALPN of enrolment.
pub const ALPN_ENROL: &[u8] = b"tradewind-enrol/1";

/// Payload of a media datagram, in bytes, that every path carries.
pub const GUARANTEED_DATAGRAM: usize = 1_100;
/// Payload of a media datagram to a group, in bytes, that every path carries.
pub const GUARANTEED_GROUP_DATAGRAM: usize = 1_000;
/// Largest payload of one packet on a message stream, in bytes. Longer messages are segmented by
/// the SDKs, so that no relay holds a whole large message and none blocks a lane for long.
pub const MAX_SEGMENT: usize = 16 << 10;
