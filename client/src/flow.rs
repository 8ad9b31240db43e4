//! Media flows.

use bytes::Bytes;

use crate::FlowError;

/// Ongoing packets to one destination in one class: unreliable, each on its own.
#[derive(Debug)]
pub struct Flow {}

impl Flow {
    /// Sends one packet; never waits.
    ///
    /// # Errors
    /// [`FlowError`]; the packet is gone then.
    pub fn send(&self, _payload: Bytes) -> Result<(), FlowError> {
        todo!()
    }

    /// Longest payload the path carries now, in bytes.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        todo!()
    }

    /// Packets sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        todo!()
    }

    /// The flow's number, as the receiver sees it in [`Media::flow`](crate::Media::flow).
    #[must_use]
    pub fn id(&self) -> u32 {
        todo!()
    }
}
