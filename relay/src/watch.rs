//! Looking on while packets pass: for tests of whole networks, which check of every packet what no
//! end of it can see.

use std::{fmt, sync::OnceLock};

use tradewind_proto::{RelayIndex, packet::LinkHeader};

/// A packet on its way through a relay: taken from one of its clients, or come over a link.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'a> {
    /// The relay's index.
    pub relay: RelayIndex,
    /// The packet's header, as it came.
    pub header: &'a LinkHeader,
    /// Of a packet to a group: the relays that this copy has still to reach.
    pub relays: &'a [RelayIndex],
    /// The application's bytes; of reliable kinds, a frame of the lane.
    pub payload: &'a [u8],
}

type Watch = Box<dyn Fn(&Passage<'_>) + Send + Sync>;

/// Who looks on, if anybody does: set once, and free of cost until then.
#[derive(Default)]
pub(crate) struct Watcher(OnceLock<Watch>);

impl Watcher {
    pub(crate) fn set(&self, watch: Watch) {
        // The first one stays.
        let _ = self.0.set(watch);
    }

    pub(crate) fn get(&self) -> Option<&Watch> {
        self.0.get()
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher")
            .field(&self.0.get().is_some())
            .finish()
    }
}
