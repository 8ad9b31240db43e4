//! The frames, as bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    MAX_SEGMENT,
    packet::{HeaderError, VERSION},
};

/// Ranges that an ACK has room for.
pub const MAX_RANGES: usize = 16;

const DATA: u8 = 0;
const ACK: u8 = 1;
const SKIP: u8 = 2;
const REFUSE: u8 = 3;
const LEFT: u8 = 4;
const TRY: u8 = 5;
const TRIED: u8 = 6;

const FLAG_FIRST: u8 = 0x80;
const FLAG_LAST: u8 = 0x40;

const DATA_LEN: usize = 32;
const ACK_LEN: usize = 40;
const SKIP_LEN: usize = 24;
const REFUSE_LEN: usize = 32;
const LEFT_LEN: usize = 12;
const TRY_LEN: usize = 12;
const TRIED_LEN: usize = 20;

/// A frame of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneFrame {
    /// A segment of a message.
    Data(Data),
    /// What has come, and how much more may.
    Ack(Ack),
    /// The base, alone.
    Skip(Skip),
    /// A message that is not wanted.
    Refuse(Refuse),
    /// An edge that the sender of this frame has left.
    Left(Left),
    /// A question when it comes.
    Try(Try),
    /// The answer to that.
    Tried(Tried),
}

/// A segment of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// The sender instance.
    pub sender: u64,
    /// The lane.
    pub lane: u32,
    /// The segment's sequence.
    pub sequence: u64,
    /// First segment of the sender's oldest unsettled message.
    pub base: u64,
    /// In a message's first segment: the message's length, in bytes.
    pub total: Option<u32>,
    /// It is the message's last segment.
    pub last: bool,
    /// The segment's bytes.
    pub payload: Bytes,
}

/// What has come to a receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ack {
    /// The receiver instance.
    pub receiver: u64,
    /// The sender instance.
    pub sender: u64,
    /// The lane.
    pub lane: u32,
    /// Every segment before it has come or was skipped.
    pub next: u64,
    /// Cost of what may be in flight from `next` on, bytes.
    pub window: u32,
    /// Age of the packet that this answers, microseconds.
    pub age_us: u32,
    /// Segments held beyond `next`: (first, count), ascending, not touching. At most
    /// [`MAX_RANGES`].
    pub ranges: Vec<(u64, u32)>,
}

/// The base, alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skip {
    /// The sender instance.
    pub sender: u64,
    /// The lane.
    pub lane: u32,
    /// First segment of the sender's oldest unsettled message.
    pub base: u64,
}

/// A message that is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refuse {
    /// The receiver instance.
    pub receiver: u64,
    /// The sender instance.
    pub sender: u64,
    /// The lane.
    pub lane: u32,
    /// The message's first segment.
    pub sequence: u64,
    /// Why.
    pub reason: Refusal,
}

/// An edge that the sender of this frame has left, as it did not answer any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The SDK instance of the sender of this frame.
    pub instance: u64,
    /// Name of the edge's relay, at most 255 bytes of UTF-8.
    pub relay: String,
}

/// A question when it comes: of several, sent over different ways at the same moment, the differences say
/// which way is the shortest, whatever the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// Chosen by who asks, hard to guess.
    pub trial: u64,
}

/// When a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// The question's.
    pub trial: u64,
    /// When it came, by a clock of who answers that never jumps, microseconds since any moment.
    pub came_us: u64,
}

/// Why a receiver does not want a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// Longer than the receiver takes.
    TooLarge = 1,
    /// The receiver takes nothing from this sender.
    Denied = 2,
}

impl LaneFrame {
    /// Reads a frame: the whole payload of a packet.
    ///
    /// # Errors
    /// When the bytes are no frame of this version.
    pub fn decode(mut bytes: Bytes) -> Result<Self, HeaderError> {
        need(&bytes, 4)?;
        if bytes[0] >> 4 != VERSION {
            return Err(HeaderError::Version(bytes[0] >> 4));
        }
        let (kind, second) = (bytes[0] & 0x0f, bytes[1]);
        match kind {
            DATA => {
                let first = second & FLAG_FIRST != 0;
                need(&bytes, if first { DATA_LEN + 4 } else { DATA_LEN })?;
                bytes.advance(4);
                decode_data(bytes, first, second & FLAG_LAST != 0).map(Self::Data)
            }
            ACK => {
                let count = usize::from(second & 0x1f);
                need(&bytes, ACK_LEN + 8 * count)?;
                bytes.advance(4);
                decode_ack(bytes, count).map(Self::Ack)
            }
            SKIP => {
                need(&bytes, SKIP_LEN)?;
                bytes.advance(4);
                Ok(Self::Skip(Skip {
                    sender: bytes.get_u64(),
                    lane: bytes.get_u32(),
                    base: bytes.get_u64(),
                }))
            }
            REFUSE => {
                need(&bytes, REFUSE_LEN)?;
                bytes.advance(4);
                Ok(Self::Refuse(Refuse {
                    receiver: bytes.get_u64(),
                    sender: bytes.get_u64(),
                    lane: bytes.get_u32(),
                    sequence: bytes.get_u64(),
                    reason: match second {
                        1 => Refusal::TooLarge,
                        2 => Refusal::Denied,
                        _ => return Err(HeaderError::Field("a refusal without a known reason")),
                    },
                }))
            }
            LEFT => {
                let length = usize::from(second);
                need(&bytes, LEFT_LEN + length)?;
                bytes.advance(4);
                let instance = bytes.get_u64();
                let relay = std::str::from_utf8(&bytes[..length])
                    .map_err(|_| HeaderError::Field("a relay's name that is no text"))?;
                Ok(Self::Left(Left {
                    instance,
                    relay: relay.to_owned(),
                }))
            }
            TRY => {
                need(&bytes, TRY_LEN)?;
                bytes.advance(4);
                Ok(Self::Try(Try {
                    trial: bytes.get_u64(),
                }))
            }
            TRIED => {
                need(&bytes, TRIED_LEN)?;
                bytes.advance(4);
                Ok(Self::Tried(Tried {
                    trial: bytes.get_u64(),
                    came_us: bytes.get_u64(),
                }))
            }
            other => Err(HeaderError::Kind(other)),
        }
    }

    /// Whether the payload of a packet is a [`Try`] or its answer: those are no use of a way.
    #[must_use]
    pub fn is_try(payload: &[u8]) -> bool {
        payload
            .first()
            .is_some_and(|byte| matches!(byte & 0x0f, TRY | TRIED))
    }

    /// Writes all of it but the [payload](Self::payload), which follows.
    pub fn encode_head(&self, out: &mut BytesMut) {
        let begin = |out: &mut BytesMut, kind: u8, second: u8| {
            out.reserve(ACK_LEN + 8 * MAX_RANGES);
            out.put_slice(&[VERSION << 4 | kind, second, 0, 0]);
        };
        match self {
            Self::Data(data) => {
                let first = data.total.map_or(0, |_| FLAG_FIRST);
                let last = if data.last { FLAG_LAST } else { 0 };
                begin(out, DATA, first | last);
                out.put_u64(data.sender);
                out.put_u32(data.lane);
                out.put_u64(data.sequence);
                out.put_u64(data.base);
                if let Some(total) = data.total {
                    out.put_u32(total);
                }
            }
            Self::Ack(ack) => {
                let ranges = &ack.ranges[..ack.ranges.len().min(MAX_RANGES)];
                begin(out, ACK, ranges.len() as u8);
                out.put_u64(ack.receiver);
                out.put_u64(ack.sender);
                out.put_u32(ack.lane);
                out.put_u64(ack.next);
                out.put_u32(ack.window);
                out.put_u32(ack.age_us);
                for &(first, count) in ranges {
                    out.put_u32((first - ack.next) as u32);
                    out.put_u32(count);
                }
            }
            Self::Skip(skip) => {
                begin(out, SKIP, 0);
                out.put_u64(skip.sender);
                out.put_u32(skip.lane);
                out.put_u64(skip.base);
            }
            Self::Refuse(refuse) => {
                begin(out, REFUSE, refuse.reason as u8);
                out.put_u64(refuse.receiver);
                out.put_u64(refuse.sender);
                out.put_u32(refuse.lane);
                out.put_u64(refuse.sequence);
            }
            Self::Left(left) => {
                let name = &left.relay.as_bytes()[..left.relay.len().min(255)];
                begin(out, LEFT, name.len() as u8);
                out.put_u64(left.instance);
                out.put_slice(name);
            }
            Self::Try(asked) => {
                begin(out, TRY, 0);
                out.put_u64(asked.trial);
            }
            Self::Tried(tried) => {
                begin(out, TRIED, 0);
                out.put_u64(tried.trial);
                out.put_u64(tried.came_us);
            }
        }
    }

    /// What follows the head: the bytes of a segment; empty in all other frames.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        match self {
            Self::Data(data) => data.payload.clone(),
            _ => Bytes::new(),
        }
    }

    /// The whole frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode_head(&mut out);
        out.extend_from_slice(&self.payload());
        out.freeze()
    }

    /// The lane it is of.
    #[must_use]
    pub const fn lane(&self) -> u32 {
        match self {
            Self::Data(data) => data.lane,
            Self::Ack(ack) => ack.lane,
            Self::Skip(skip) => skip.lane,
            Self::Refuse(refuse) => refuse.lane,
            Self::Left(_) | Self::Try(_) | Self::Tried(_) => 0,
        }
    }

    /// For the sequence in the packet's header: the low 32 bits of the frame's own.
    #[must_use]
    pub const fn sequence(&self) -> u32 {
        match self {
            Self::Data(data) => data.sequence as u32,
            Self::Ack(ack) => ack.next as u32,
            Self::Skip(skip) => skip.base as u32,
            Self::Refuse(refuse) => refuse.sequence as u32,
            Self::Left(_) | Self::Try(_) | Self::Tried(_) => 0,
        }
    }
}

fn decode_data(mut bytes: Bytes, first: bool, last: bool) -> Result<Data, HeaderError> {
    let data = Data {
        sender: bytes.get_u64(),
        lane: bytes.get_u32(),
        sequence: bytes.get_u64(),
        base: bytes.get_u64(),
        total: first.then(|| bytes.get_u32()),
        last,
        payload: bytes,
    };
    if data.base > data.sequence {
        return Err(HeaderError::Field("a base above the sequence"));
    }
    if data.sequence == u64::MAX {
        return Err(HeaderError::Field("a lane at its end"));
    }
    if data.payload.len() > MAX_SEGMENT {
        return Err(HeaderError::Field("a segment longer than allowed"));
    }
    Ok(data)
}

fn decode_ack(mut bytes: Bytes, count: usize) -> Result<Ack, HeaderError> {
    if count > MAX_RANGES {
        return Err(HeaderError::Field("an ACK with too many ranges"));
    }
    let mut ack = Ack {
        receiver: bytes.get_u64(),
        sender: bytes.get_u64(),
        lane: bytes.get_u32(),
        next: bytes.get_u64(),
        window: bytes.get_u32(),
        age_us: bytes.get_u32(),
        ranges: Vec::with_capacity(count),
    };
    let mut end = ack.next;
    for _ in 0..count {
        let (offset, count) = (bytes.get_u32(), bytes.get_u32());
        let first = ack.next.checked_add(u64::from(offset));
        let range_end = first.and_then(|first| first.checked_add(u64::from(count)));
        let (Some(first), Some(range_end)) = (first, range_end) else {
            return Err(HeaderError::Field("a range beyond the lane's end"));
        };
        if first <= end || count == 0 {
            return Err(HeaderError::Field("ranges that touch or are out of order"));
        }
        ack.ranges.push((first, count));
        end = range_end;
    }
    Ok(ack)
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
