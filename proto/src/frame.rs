//! Frames on QUIC streams: a length of 32 bits in network byte order, then that many bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Largest frame between clients, edges and relays, in bytes (header and payload).
pub const MAX_FRAME: usize = 64 << 10;
/// Largest frame between a relay and the controller, in bytes: a plan of some thousand relays.
pub const MAX_CONTROL_FRAME: usize = 4 << 20;

/// One frame's contents.
pub type Frame = Bytes;

/// A stream that cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The announced length is beyond the limit.
    #[error("a frame of {length} bytes was announced, the limit is {limit}: close the connection")]
    TooLong {
        /// The announced length, in bytes.
        length: u32,
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Cuts a stream of bytes into frames. Holds at most one incomplete frame; a frame that lies whole
/// within one chunk is a slice of it, not a copy.
#[derive(Debug)]
pub struct FrameReader {
    partial: BytesMut,
    chunk: Bytes,
    limit: usize,
}

impl FrameReader {
    /// A reader at the beginning of a stream whose frames have at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            partial: BytesMut::new(),
            chunk: Bytes::new(),
            limit,
        }
    }

    /// Takes the next bytes of the stream. Call [`next_frame`](Self::next_frame) until it gives
    /// `None` before the next call.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "frames left unread");
        self.chunk = chunk;
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// When a length beyond the limit is announced: nothing after it can be understood.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if !self.partial.is_empty() {
            self.fill_partial(4);
            if self.partial.len() < 4 {
                return Ok(None);
            }
            let length = self.check(&self.partial)?;
            self.fill_partial(4 + length);
            if self.partial.len() < 4 + length {
                return Ok(None);
            }
            let mut frame = self.partial.split().freeze();
            frame.advance(4);
            return Ok(Some(frame));
        }
        if self.chunk.len() >= 4 {
            let length = self.check(&self.chunk)?;
            if self.chunk.len() >= 4 + length {
                self.chunk.advance(4);
                return Ok(Some(self.chunk.split_to(length)));
            }
        }
        self.partial.extend_from_slice(&self.chunk);
        self.chunk.clear();
        Ok(None)
    }

    fn check(&self, bytes: &[u8]) -> Result<usize, FrameError> {
        let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if length as usize > self.limit {
            return Err(FrameError::TooLong {
                length,
                limit: self.limit,
            });
        }
        Ok(length as usize)
    }

    fn fill_partial(&mut self, until: usize) {
        let missing = until.saturating_sub(self.partial.len());
        let take = missing.min(self.chunk.len());
        self.partial.extend_from_slice(&self.chunk[..take]);
        self.chunk.advance(take);
    }
}

/// Writes a frame made of `parts`, one after the other, to the end of `out`.
pub fn encode_frame(out: &mut BytesMut, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(4 + length);
    out.put_u32(length as u32);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// A control message as a frame.
#[must_use]
pub fn frame_message(message: &impl prost::Message) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + message.encoded_len());
    out.put_u32(message.encoded_len() as u32);
    // Cannot fail: the buffer grows.
    let _ = message.encode(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_come_back_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            cuts in prop::collection::vec(1_usize..64, 1..50),
        ) {
            let mut stream = BytesMut::new();
            for frame in &frames {
                let (head, tail) = frame.split_at(frame.len() / 3);
                encode_frame(&mut stream, &[head, tail]);
            }
            let mut stream = stream.freeze();
            let mut reader = FrameReader::new(1_000);
            let mut read = Vec::new();
            let mut cuts = cuts.iter().cycle();
            while !stream.is_empty() {
                let cut = stream.len().min(*cuts.next().expect("endless"));
                reader.push(stream.split_to(cut));
                while let Some(frame) = reader.next_frame().expect("all are short") {
                    read.push(frame.to_vec());
                }
            }
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn no_stream_makes_the_reader_panic_or_hold_more_than_came(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut reader = FrameReader::new(MAX_CONTROL_FRAME);
            reader.push(bytes.clone().into());
            let mut taken = 0;
            while let Ok(Some(frame)) = reader.next_frame() {
                taken += 4 + frame.len();
            }
            prop_assert!(taken <= bytes.len());
            prop_assert!(reader.partial.capacity() <= 2 * bytes.len() + 64);
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_from_its_length_alone() {
        let mut reader = FrameReader::new(1_000);
        reader.push(Bytes::from_static(&[0, 0, 3, 233]));
        assert_eq!(
            reader.next_frame(),
            Err(FrameError::TooLong {
                length: 1_001,
                limit: 1_000
            })
        );
    }
}
