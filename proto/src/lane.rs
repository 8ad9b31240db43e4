//! Reliable messages: the state machines of both ends, and what they say to each other.
//!
//! A **lane** is one ordered sequence of messages from one sender instance to one destination user.
//! Its state lives at the two ends only: [`SendLane`] and [`ReceiveLane`]. Relays carry the frames
//! below as payload of packets of kind `Message` and know nothing of them, so any relay may die
//! with frames in flight. Sans-IO: frames and the time go in, frames and outcomes come out.
//!
//! # Segments
//! A message is cut into segments of at most [`MAX_SEGMENT`](crate::MAX_SEGMENT) bytes, all full but
//! the last. Every segment of a lane has a *sequence*, counting from 0 and never wrapping. An empty
//! message is one empty segment.
//!
//! The *base* is the sequence of the first segment of the sender's oldest message that is not
//! settled (confirmed or given up). It travels in every DATA frame: a receiver that has never heard
//! of the lane begins there, and one that waits for anything before it goes on from there. Bases
//! lie between messages only.
//!
//! # Instances
//! The *sender instance* is a random number that a sender draws for each destination user and keeps
//! for its life, over reconnects; nobody but that user learns it, so a frame that bears it comes
//! from the peer. The *receiver instance* is a random number of the receiver's, by which the sender
//! sees that the receiver has begun anew: it then sends everything unsettled again.
//!
//! # Frames
//! Network byte order. `|` separates bits within a byte, high bits first. Whoever reads ignores
//! reserved bits, whoever writes sets them to 0.
//!
//! **DATA**, sender to receiver, 32 or 36 bytes and the payload:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version (4 bits) = 1 \| type (4 bits) = 0 |
//! | 1 | first segment of a message (1 bit) \| last segment (1 bit) \| reserved (6 bits) |
//! | 2-3 | reserved |
//! | 4-11 | sender instance |
//! | 12-15 | lane |
//! | 16-23 | sequence |
//! | 24-31 | base, not above the sequence |
//! | 32-35 | only in a first segment: length of the message, in bytes |
//! | … | payload, at most 16,384 bytes |
//!
//! **ACK**, receiver to sender, 40 bytes and 8 per range:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version = 1 \| type = 1 |
//! | 1 | reserved (3 bits) \| number of ranges (5 bits), at most 16 |
//! | 2-3 | reserved |
//! | 4-11 | receiver instance |
//! | 12-19 | sender instance |
//! | 20-23 | lane |
//! | 24-31 | *next*: every segment before it has come or was skipped |
//! | 32-35 | *window* (credit): cost of what may be in flight from *next* on |
//! | 36-39 | age of the packet that this answers, microseconds, as its access header said |
//! | 40+8i | i-th range: first sequence held, less *next* (32 bits); count (32 bits, not 0) |
//!
//! Ranges are of segments held beyond *next*, ascending, without touching each other.
//!
//! **SKIP**, sender to receiver, 24 bytes: says the base when no DATA frame would:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version = 1 \| type = 2 |
//! | 1-3 | reserved |
//! | 4-11 | sender instance |
//! | 12-15 | lane |
//! | 16-23 | base |
//!
//! **REFUSE**, receiver to sender, 32 bytes: the message is not wanted; the sender gives it up.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version = 1 \| type = 3 |
//! | 1 | reason: 1 too large, 2 denied |
//! | 2-3 | reserved |
//! | 4-11 | receiver instance |
//! | 12-19 | sender instance |
//! | 20-23 | lane |
//! | 24-31 | sequence of the message's first segment |
//!
//! **LEFT**, 12 bytes and the name: whoever sends it has left an edge that did not answer any more:
//! ways that lead there are not to be taken, the directory may not have heard yet. Of no lane.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version = 1 \| type = 4 |
//! | 1 | length of the name, bytes |
//! | 2-3 | reserved |
//! | 4-11 | SDK instance of who sends it |
//! | 12… | name of the edge's relay |
//!
//! # Credit
//! A segment *costs* its payload's length and [`SEGMENT_COST`] more, so that many small ones are
//! bounded as well. The sender keeps the cost of all segments from *next* on that it has sent (and
//! not given up) at or below the window; before the first ACK that is [`INITIAL_WINDOW`]. The
//! receiver's window is its capacity less the cost of whole messages that nobody has taken; segments
//! of the message being put together are free, so a message may be larger than the window. When the
//! window is shut and nothing is in flight, the sender tries one segment at each retransmission
//! timeout. The receiver drops what exceeds its window.
//!
//! # Acknowledging and resending
//! The receiver acknowledges at once when a message is complete, when a segment is out of order or
//! comes again, at every second segment, and when its window opens; otherwise within [`ACK_DELAY`].
//!
//! The sender takes a segment for lost when one sent 3 transmissions later has been acknowledged
//! (RFC 9002, section 6.1.1), and everything in flight when the retransmission timer (RFC 6298,
//! 200 ms to 4 s, doubling) runs out. After 3 such timeouts in a row it also sends again what was
//! acknowledged of unsettled messages: the receiver may have lost it. Besides the window, the cost in
//! flight is limited by a congestion window (RFC 5681: slow start, then additive; halved on loss), as
//! relays drop when their queues are full.
//!
//! A message is *delivered* when *next* has passed its last segment. When its time to live ends
//! first it is *expired*: its segments are not sent any more, and the base moves on, told by SKIP
//! until an ACK shows that it is known, if anything sent after it is waiting there.
//!
//! # Groups
//! A lane to a group has the same sender's end, but the *ingress edge* acknowledges, once it and every
//! edge with members hold a segment. Each member has a [`MemberLane`], which acknowledges nothing,
//! asks its edge for what it misses, and passes over as a gap what nobody holds any more.

mod frame;
mod member;
mod receive;
mod rtt;
mod send;

use std::time::Duration;

pub use frame::{Ack, Data, LaneFrame, Left, MAX_RANGES, Refusal, Refuse, Skip, Tried, Try};
pub use member::{Fetch, Fetched, MISSING_FOR, MemberLane, Taken};
pub use receive::{ReceiveConfig, ReceiveLane, Received};
pub use send::{Enqueue, MessageId, Outcome, SendConfig, SendLane, Trouble};

/// What a segment costs besides its payload, bytes.
pub const SEGMENT_COST: usize = 64;
/// The window before a receiver has said one, bytes.
pub const INITIAL_WINDOW: u32 = 256 << 10;
/// How long a receiver may wait with an acknowledgement.
pub const ACK_DELAY: Duration = Duration::from_millis(20);

/// What a segment costs of the window, bytes.
const fn cost(payload: usize) -> usize {
    payload + SEGMENT_COST
}

#[cfg(test)]
mod member_tests;
#[cfg(test)]
mod tests;
