//! Why a packet was not forwarded. Nothing is dropped outside this list.

/// The reason a relay did not forward a packet. Each has a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// The header cannot be parsed.
    Malformed,
    /// A version of the format this relay does not speak.
    Version,
    /// The hop limit is used up.
    HopLimit,
    /// The class's deadline has passed.
    Deadline,
    /// The queue of its class towards the next neighbour or session is full.
    QueueFull,
    /// Larger than the path carries.
    TooLarge,
    /// Neither tree, nor reaction, nor direct link leads to the destination now.
    NoWay,
    /// The packet would visit a relay twice.
    Loop,
    /// The destination session has ended or moved.
    SessionGone,
    /// The sender's handle means nothing at this edge.
    UnknownHandle,
    /// The token does not allow it.
    Denied,
    /// The sender exceeds its rate.
    RateLimited,
    /// The connection was closed with the packet still in its queue.
    ConnectionClosed,
    /// Sent before the session was accepted.
    NotReady,
    /// A kind of packet that does not belong on this port.
    Unexpected,
    /// It was sent to a group that has no members here.
    NoMembers,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::Malformed,
        Self::Version,
        Self::HopLimit,
        Self::Deadline,
        Self::QueueFull,
        Self::TooLarge,
        Self::NoWay,
        Self::Loop,
        Self::SessionGone,
        Self::UnknownHandle,
        Self::Denied,
        Self::RateLimited,
        Self::ConnectionClosed,
        Self::NotReady,
        Self::Unexpected,
        Self::NoMembers,
    ];

    /// Its value of the label `reason` in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::HopLimit => "hop_limit",
            Self::Deadline => "deadline",
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::NoWay => "no_way",
            Self::Loop => "loop",
            Self::SessionGone => "session_gone",
            Self::UnknownHandle => "unknown_handle",
            Self::Denied => "denied",
            Self::RateLimited => "rate_limited",
            Self::ConnectionClosed => "connection_closed",
            Self::NotReady => "not_ready",
            Self::Unexpected => "unexpected",
            Self::NoMembers => "no_members",
        }
    }
}
