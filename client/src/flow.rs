//! Media flows.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use tradewind_proto::{
    Class, GUARANTEED_DATAGRAM,
    packet::{AccessHeader, Kind},
};

use crate::{FlowError, core::WayKey, shared::Shared};

/// So many packets say that they take another way than those before, as some may get lost.
const MARKED: u8 = 3;

/// Ongoing packets to one destination in one class: unreliable, each on its own. It follows the
/// peer when either end moves to another edge.
pub struct Flow {
    shared: Arc<Shared>,
    user: Arc<str>,
    /// Where it answers to.
    direct: Option<WayKey>,
    class: Class,
    id: u32,
    sequence: AtomicU32,
    sent: AtomicU64,
    /// The way that the last packet took, and how many more are to say that it is a new one.
    way: Mutex<(Option<WayKey>, u8)>,
}

impl Flow {
    /// A flow to `user`, which the core counts already.
    pub(crate) fn new(
        shared: Arc<Shared>,
        user: Arc<str>,
        direct: Option<WayKey>,
        class: Class,
        id: u32,
    ) -> Self {
        Self {
            shared,
            user,
            direct,
            class,
            id,
            sequence: AtomicU32::new(0),
            sent: AtomicU64::new(0),
            way: Mutex::new((None, 0)),
        }
    }

    /// Sends one packet; never waits. It may be lost, like any datagram.
    ///
    /// # Errors
    /// [`FlowError`]; the packet is gone then.
    pub fn send(&self, payload: Bytes) -> Result<(), FlowError> {
        if *self.shared.closing.borrow() {
            return Err(FlowError::Closed);
        }
        let way = self
            .shared
            .with(|core, now| core.way_of(&self.user, self.direct, self.class, now));
        let Some((live, way)) = way else {
            return Err(FlowError::NotConnected);
        };
        let (bytes, limit) = (payload.len(), limit_of(&live.connection));
        if bytes > limit {
            return Err(FlowError::TooLarge { bytes, limit });
        }
        let header = AccessHeader {
            kind: Kind::Media,
            class: self.class,
            trace: false,
            path_change: self.is_new_way(way),
            group: false,
            layer: 0,
            handle: way.handle,
            flow: self.id,
            sequence: self.sequence.fetch_add(1, Relaxed),
            age_us: 0,
        };
        Shared::send_datagram(&live.connection, &header, &[&payload])?;
        self.sent.fetch_add(1, Relaxed);
        self.shared.count_media_sent();
        Ok(())
    }

    /// Whether packets took another way than this one until just now.
    fn is_new_way(&self, way: WayKey) -> bool {
        let mut last = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0.replace(way).is_some_and(|last| last != way) {
            last.1 = MARKED;
        }
        let marked = last.1 > 0;
        last.1 = last.1.saturating_sub(1);
        marked
    }

    /// Longest payload the path carries now, in bytes. Every path carries
    /// [`GUARANTEED_DATAGRAM`].
    #[must_use]
    pub fn max_payload(&self) -> usize {
        let live = self.shared.with(|core, now| {
            let way = core.way_of(&self.user, self.direct, self.class, now);
            way.map(|(live, _)| live)
        });
        live.map_or(GUARANTEED_DATAGRAM, |live| limit_of(&live.connection))
    }

    /// Packets sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// The flow's number, as the receiver sees it in [`Media::flow`](crate::Media::flow).
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The user at the other end.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.with(|core, _| core.count_flow(&self.user, -1));
    }
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow")
            .field("user", &self.user)
            .field("class", &self.class)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The session's own limit, but no more than is guaranteed behind it: nothing tells of the links.
pub(crate) fn limit_of(connection: &quinn::Connection) -> usize {
    connection
        .max_datagram_size()
        .unwrap_or(0)
        .saturating_sub(AccessHeader::LEN)
        .min(GUARANTEED_DATAGRAM)
}
