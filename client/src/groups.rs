//! Groups, as applications see them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;
use tradewind_proto::{
    Class,
    packet::{AccessHeader, Kind},
};

use crate::{
    Client, Delivered, FlowError, GroupError, Receipt, SendError, SendOptions, core::Answer,
    flow::limit_of, shared::Shared,
};

/// How long a join or a lookup may take, retries included.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest payload of a media packet to a group that every path carries, bytes.
const GUARANTEED_GROUP_DATAGRAM: usize = 1_000;
/// Layers that a sender may offer.
const LAYERS: u8 = 8;

/// What a member wants of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JoinOptions {
    /// Media layers wanted: bit *k* is layer *k*. 0, the default: all.
    pub layers: u8,
}

impl Client {
    /// Makes this client a member: everything that is sent to the group once this returns will come,
    /// or be told as [`Event::Gap`](crate::Event::Gap). It lasts until [`Client::leave`], over
    /// sessions; joining again changes the layers. What this client itself sends does not come back
    /// to it.
    ///
    /// # Errors
    /// [`GroupError`]; the client is not a member then.
    pub async fn join(&self, group: &str, options: JoinOptions) -> Result<(), GroupError> {
        let layers = u32::from(options.layers);
        let joined = self
            .wait(|answer| {
                self.shared()
                    .with(|core, now| core.join_group(group, layers, answer, now));
            })
            .await;
        if joined == Err(GroupError::TimedOut) {
            self.shared()
                .with(|core, now| core.give_up_join(group, now));
        }
        joined
    }

    /// Ends the membership, at once.
    pub fn leave(&self, group: &str) {
        self.shared().with(|core, now| core.leave_group(group, now));
    }

    /// Sends a message to all members of a group, and waits until all edges that have some hold it.
    /// One need not be a member to send.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send_group(
        &self,
        group: &str,
        payload: impl Into<Bytes>,
    ) -> Result<Delivered, SendError> {
        self.enqueue_group(group, payload, SendOptions::default())
            .await
    }

    /// Sends a message to a group at once and gives a future of its outcome. Members receive the
    /// messages of one lane in the order of these calls.
    pub fn enqueue_group(
        &self,
        group: &str,
        payload: impl Into<Bytes>,
        options: SendOptions,
    ) -> Receipt {
        let (outcome, receiver) = oneshot::channel();
        let payload = payload.into();
        self.shared()
            .with(|core, now| core.enqueue_group(group, payload, options, outcome, now));
        Receipt { receiver }
    }

    /// A flow of media packets to a group.
    ///
    /// # Errors
    /// [`GroupError`].
    pub async fn open_group_flow(
        &self,
        group: &str,
        class: Class,
    ) -> Result<GroupFlow, GroupError> {
        let shared = self.shared();
        self.wait(|answer| shared.with(|core, now| core.find_group(group, answer, now)))
            .await?;
        let (name, id) = shared.with(|core, _| (core.count_group_flow(group, 1), core.new_flow()));
        Ok(GroupFlow {
            group: name.ok_or(GroupError::Closed)?,
            shared: shared.clone(),
            class,
            id,
            sequence: AtomicU32::new(0),
            sent: AtomicU64::new(0),
        })
    }

    async fn wait(&self, ask: impl FnOnce(Answer)) -> Result<(), GroupError> {
        let (answer, answered) = oneshot::channel();
        ask(answer);
        match self.shared().host.timeout(PATIENCE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(GroupError::TimedOut),
        }
    }
}

/// Ongoing media packets to a group in one class: unreliable, each on its own.
pub struct GroupFlow {
    shared: Arc<Shared>,
    group: Arc<str>,
    class: Class,
    id: u32,
    sequence: AtomicU32,
    sent: AtomicU64,
}

impl GroupFlow {
    /// Sends one packet of a layer (0 to 7, by the sender's own choice; members choose which they
    /// want); never waits. It may be lost on the way to any of the members.
    ///
    /// # Errors
    /// [`FlowError`]; the packet is gone then.
    pub fn send(&self, layer: u8, payload: Bytes) -> Result<(), FlowError> {
        if *self.shared.closing.borrow() {
            return Err(FlowError::Closed);
        }
        if layer >= LAYERS {
            return Err(FlowError::NoSuchLayer(layer));
        }
        let way = self
            .shared
            .with(|core, now| core.group_way(&self.group, now));
        let (live, handle) = way.ok_or(FlowError::NotConnected)?;
        let bytes = payload.len();
        let limit = limit_of(&live.connection).min(GUARANTEED_GROUP_DATAGRAM);
        if bytes > limit {
            return Err(FlowError::TooLarge { bytes, limit });
        }
        let header = AccessHeader {
            kind: Kind::Media,
            class: self.class,
            trace: false,
            path_change: false,
            group: false,
            layer,
            handle,
            flow: self.id,
            sequence: self.sequence.fetch_add(1, Relaxed),
            age_us: 0,
        };
        Shared::send_datagram(&live.connection, &header, &[&payload])?;
        self.sent.fetch_add(1, Relaxed);
        self.shared.count_media_sent();
        Ok(())
    }

    /// Packets sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// The flow's number, as members see it in [`Media::flow`](crate::Media::flow).
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }
}

impl Drop for GroupFlow {
    fn drop(&mut self) {
        self.shared
            .with(|core, _| core.count_group_flow(&self.group, -1));
    }
}

impl std::fmt::Debug for GroupFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupFlow")
            .field("group", &self.group)
            .field("class", &self.class)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
