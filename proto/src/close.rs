//! Why a QUIC connection was closed on purpose.

/// Application error codes of CONNECTION_CLOSE (RFC 9000, section 19.19), the same on every port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum CloseCode {
    /// Nothing is wrong: the peer is done.
    #[error("closed by the peer")]
    Done = 0,
    /// The peer spoke out of turn or what cannot be parsed.
    #[error("protocol error")]
    Protocol = 1,
    /// No token, or one that does not hold.
    #[error("the token was refused")]
    Unauthorized = 2,
    /// The token has expired and was not refreshed.
    #[error("the token has expired")]
    TokenExpired = 3,
    /// The token or user was revoked.
    #[error("the token was revoked")]
    Revoked = 4,
    /// The node goes away; connect elsewhere.
    #[error("the relay is draining")]
    Draining = 5,
    /// The node is full; connect elsewhere.
    #[error("the relay is full")]
    Full = 6,
    /// The certificate is not the one expected here.
    #[error("the certificate is not the expected one")]
    WrongPeer = 7,
    /// The same node has connected again; this connection is the older one.
    #[error("replaced by a newer connection")]
    Replaced = 8,
    /// Hello did not come in time.
    #[error("no hello in time")]
    Timeout = 9,
}

impl CloseCode {
    /// The code on the wire, if this version knows it.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => Self::Done,
            1 => Self::Protocol,
            2 => Self::Unauthorized,
            3 => Self::TokenExpired,
            4 => Self::Revoked,
            5 => Self::Draining,
            6 => Self::Full,
            7 => Self::WrongPeer,
            8 => Self::Replaced,
            9 => Self::Timeout,
            _ => return None,
        })
    }
}
