//! What a client receives and reports.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tradewind_proto::{Class, packet::TraceRecord};

use crate::{ConnectError, SendError, WatchError};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message: exactly once, in order per sender and lane.
    Message(Message),
    /// A media packet.
    Media(Media),
    /// The session's state has changed.
    State(State),
    /// Whether a watched user is online: for the first time, or as that has changed.
    Presence(Presence),
    /// A user is not watched any more, as the network does not allow that.
    WatchEnded {
        /// The user.
        user: Arc<str>,
        /// Why.
        reason: WatchError,
    },
    /// Messages to a group were missed, and nobody holds them any more.
    Gap(Gap),
    /// The client is no member of the group any more, as its token does not allow that now.
    GroupLeft {
        /// The group.
        group: Arc<str>,
    },
}

/// Whether a watched user is online, that is, has a session at some edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The user.
    pub user: Arc<str>,
    /// Whether it is online.
    pub online: bool,
}

/// Messages to a group that were missed for good, in their place among those of the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The group.
    pub group: Arc<str>,
    /// The user who sent them.
    pub from: Arc<str>,
    /// The sender's lane.
    pub lane: u32,
    /// Segments of messages passed over: as many messages at most, unless parts of one came.
    pub segments: u64,
}

/// A message received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The user who sent it, as the sender's token says.
    pub from: Arc<str>,
    /// The group that it was sent to, if it was.
    pub group: Option<Arc<str>>,
    /// The sender's lane.
    pub lane: u32,
    /// Its bytes.
    pub payload: Bytes,
    /// How old its last part was when it came here: estimated time in the network, without
    /// synchronised clocks.
    pub age: Duration,
}

/// A media packet received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// The user who sent it, as the sender's token says.
    pub from: Arc<str>,
    /// The group that it was sent to, if it was.
    pub group: Option<Arc<str>>,
    /// The sender's layer, 0 to 7; 0 if it was not sent to a group.
    pub layer: u8,
    /// The sender's handle, within this session.
    pub handle: u32,
    /// The session in which the handle means something.
    pub(crate) session: u64,
    /// The sender's flow.
    pub flow: u32,
    /// Number within the flow; wraps.
    pub sequence: u32,
    /// Estimated time in the network, without synchronised clocks; and how long it waited for others
    /// ([`ClientConfig::reorder`](crate::ClientConfig::reorder)).
    pub age: Duration,
    /// Its class.
    pub class: Class,
    /// The flow has just come to another way: packets may come out of order. The first three packets by
    /// it say so.
    pub path_change: bool,
    /// Its bytes.
    pub payload: Bytes,
}

/// State of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// A session stands, or another one than before is the first now.
    Connected {
        /// Name of the edge.
        relay: String,
        /// Its region.
        region: String,
    },
    /// The last session is lost; another one is being set up. Sends wait meanwhile.
    Reconnecting {
        /// What happened.
        reason: String,
    },
    /// The end: no session will be set up any more.
    Closed {
        /// Why.
        reason: String,
        /// The error that ended it, such as [`ConnectError::Revoked`]; `None` when the application
        /// has closed the client.
        error: Option<ConnectError>,
    },
}

/// A message was delivered: the receiver's SDK holds it, and has confirmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// From the send to the confirmation, by this host's clock.
    pub after: Duration,
    /// The message's age when it came to the receiver: estimated time in the network.
    pub age: Duration,
}

/// How a send ended at one device of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOutcome {
    /// The device: its SDK instance, a random number.
    pub device: u64,
    /// How it ended.
    pub outcome: Result<Delivered, SendError>,
}

/// How a send ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// As a whole: delivered when one device at least has confirmed it (the first to do so counts).
    pub whole: Result<Delivered, SendError>,
    /// For each device that the message was for. Empty when it did not come so far.
    pub devices: Vec<DeviceOutcome>,
}

impl Outcomes {
    pub(crate) fn new(devices: Vec<DeviceOutcome>) -> Self {
        let delivered = devices.iter().find(|device| device.outcome.is_ok());
        let told = delivered.or(devices.first());
        Self {
            whole: told.map_or(Err(SendError::Offline), |device| device.outcome),
            devices,
        }
    }

    pub(crate) const fn failed(error: SendError) -> Self {
        Self {
            whole: Err(error),
            devices: Vec::new(),
        }
    }
}

/// How to send a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendOptions {
    /// How long to try. 30 s.
    pub ttl: Duration,
    /// Messages of one lane arrive in order; those of different lanes do not wait for each other.
    /// 0.
    pub lane: u32,
    /// Priority in the network's queues.
    pub class: Class,
    /// Only to the device that came online last, instead of to all devices of the user. `false`.
    pub newest_device: bool,
}

impl Default for SendOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            lane: 0,
            class: Class::Message,
            newest_device: false,
        }
    }
}

/// One relay that a ping went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The relay's index. Relays' names are in the controller's list.
    pub relay: u16,
    /// Uplink of the link it came over; 0 at the first relay.
    pub uplink: u8,
    /// Whether the packet left its planned way here, because the next relay did not answer.
    pub deflected: bool,
    /// Age when it left this relay.
    pub age: Duration,
}

impl From<TraceRecord> for Hop {
    fn from(record: TraceRecord) -> Self {
        Self {
            relay: record.relay.0,
            uplink: record.uplink,
            deflected: record.deflected,
            age: Duration::from_micros(u64::from(record.age_us)),
        }
    }
}

/// What a ping found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingReport {
    /// The whole way and back.
    pub rtt: Duration,
    /// Relays on the way there, in order.
    pub forward: Vec<Hop>,
    /// Relays on the way back, in order.
    pub back: Vec<Hop>,
}

/// Counters since the client was made, and its present state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Name of the edge; `None` without a session.
    pub relay: Option<String>,
    /// Round trip to the edge; `None` without a session.
    pub edge_rtt: Option<Duration>,
    /// First sessions so far: one, and one more for each change of the edge.
    pub sessions: u64,
    /// Messages given to send.
    pub messages_sent: u64,
    /// Messages confirmed by their receivers.
    pub messages_delivered: u64,
    /// Messages that ended otherwise.
    pub messages_failed: u64,
    /// Segments of messages that were sent again.
    pub segments_resent: u64,
    /// Messages received.
    pub messages_received: u64,
    /// Segments that came a second time and were removed.
    pub duplicates_removed: u64,
    /// Questions to edges about messages to groups that were missed.
    pub group_fetches: u64,
    /// Media packets sent.
    pub media_sent: u64,
    /// Media packets received.
    pub media_received: u64,
    /// Media packets dropped because nobody read them, or their sender stayed unknown.
    pub media_dropped: u64,
    /// Packets that were none of this protocol, or belonged to nothing here.
    pub unexpected: u64,
}
