//! What can go wrong, one type per boundary.

use std::time::Duration;

use tradewind_proto::CloseCode;

/// Why a client is not connected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No way of discovery knows an edge.
    #[error("no edge is known: {reason}")]
    NoEdges {
        /// What each way of discovery said.
        reason: String,
    },
    /// Edges are known, none answered.
    #[error(
        "no edge answered within {waited:?} (tried {tried}; last: {reason}); is UDP let through, and is the CA the deployment's?"
    )]
    Unreachable {
        /// Which were tried.
        tried: String,
        /// What the last one failed with.
        reason: String,
        /// For how long.
        waited: Duration,
    },
    /// An edge has no time for one more client now. The SDK tries others, and this one again later.
    #[error("the edge {edge} is busy: try another or again in some seconds")]
    Busy {
        /// Which.
        edge: String,
    },
    /// An edge has refused the token.
    #[error("the edge refused the token: {reason}")]
    Unauthorized {
        /// The edge's own words.
        reason: String,
    },
    /// The operator has withdrawn the token, or the user's access. Final: no edge will have it.
    #[error("access was revoked: {reason}")]
    Revoked {
        /// The edge's own words.
        reason: String,
    },
    /// An edge has closed the connection for another reason.
    #[error("the edge {edge} closed the connection: {code}{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Refused {
        /// Which.
        edge: String,
        /// Why.
        code: CloseCode,
        /// The edge's own words.
        reason: String,
    },
    /// The token provider has none.
    #[error("no token to connect with: {0}")]
    Token(String),
    /// The certificates or the server name in the configuration cannot be used.
    #[error("the client's configuration cannot be used: {0}")]
    Config(String),
    /// This host gives no socket.
    #[error("no UDP socket on this host: {0}")]
    Socket(String),
}

/// How a send ended, if not as [`Delivered`](crate::Delivered). Exactly one outcome per send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The directory says that the user is nowhere, or does not exist. Not delivered.
    #[error("the user is not online")]
    Offline,
    /// Not confirmed within its time to live. It may have been delivered all the same; it will not
    /// be any more.
    #[error("not confirmed in time")]
    Expired,
    /// The token does not allow it. Not delivered.
    #[error("the token does not allow it")]
    Denied,
    /// Larger than the sender's token or the receiver allow. Not delivered.
    #[error("the message is {bytes} bytes long; at most {limit} are allowed")]
    TooLarge {
        /// Its length, in bytes.
        bytes: u64,
        /// The limit, in bytes; the message's own length less one where the receiver did not say.
        limit: u64,
    },
    /// Too much is waiting on this lane already. Not delivered: wait for earlier sends to end.
    #[error("too much is waiting for this user on this lane: wait for earlier sends")]
    QueueFull,
    /// The client was closed first. Not confirmed.
    #[error("the client was closed")]
    Closed,
}

/// Why a packet of a flow was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// Longer than [`Flow::max_payload`](crate::Flow::max_payload).
    #[error("the payload is {bytes} bytes long; the path carries {limit}")]
    TooLarge {
        /// Its length, in bytes.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// There is no session now, or it is not yet known where the peer is: media is not kept for
    /// later.
    #[error("there is no way to the peer at this moment")]
    NotConnected,
    /// Layers are numbered from 0 to 7.
    #[error("there is no layer {0}: they are numbered from 0 to 7")]
    NoSuchLayer(u8),
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

/// Why a client is no member of a group, or may not send to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The token does not allow it.
    #[error("the token does not allow it")]
    Denied,
    /// The network could not do it in time. The client is not a member: try again.
    #[error("the network could not do it in time: try again")]
    TimedOut,
    /// The client has left the group, or does so.
    #[error("the group was left meanwhile")]
    Left,
    /// Names of groups have 1 to 512 bytes.
    #[error("a group's name has 1 to 512 bytes")]
    Name,
    /// The client is in, or sends to, too many groups: leave some.
    #[error("too many groups: leave some first")]
    TooMany,
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

/// Why a user is not watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The token does not allow it.
    #[error("the token does not allow it")]
    Denied,
    /// The client watches 1,024 users already: end some watches first.
    #[error("a client watches at most 1024 users: end some watches first")]
    TooMany,
    /// Names of users have 1 to 512 bytes.
    #[error("a user's name has 1 to 512 bytes")]
    Name,
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

/// Why there is no handle for a user or relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The directory says that it is nowhere.
    #[error("it is not online")]
    Offline,
    /// The token does not allow it.
    #[error("the token does not allow it")]
    Denied,
    /// No definite answer came in time.
    #[error("the directory gave no answer in time")]
    TimedOut,
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

/// Why a ping has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// There is nobody to ping.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// No answer came.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// There is no session now, or there was none any more before the answer came.
    #[error("there is no session at this moment")]
    NotConnected,
}
