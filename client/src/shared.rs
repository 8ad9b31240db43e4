//! What all parts of a client share.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, watch};
use tradewind_host::Host;
use tradewind_proto::packet::AccessHeader;

use crate::{ClientConfig, FlowError, core::Core};

/// The client's state behind its lock, and what wakes its tasks. Nothing is awaited under the lock.
pub(crate) struct Shared {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) config: ClientConfig,
    core: Mutex<Core>,
    /// The earliest timer has become earlier.
    pub(crate) timer_wake: Notify,
    /// Something can be received, or the client has ended.
    pub(crate) event_wake: Notify,
    /// The keeper of sessions has something to do.
    pub(crate) keeper_wake: Notify,
    /// The client is to end.
    pub(crate) closing: watch::Sender<bool>,
    /// The client has ended.
    pub(crate) done: watch::Sender<bool>,
    pub(crate) media_sent: AtomicU64,
}

impl Shared {
    pub(crate) fn new(host: Arc<dyn Host>, config: ClientConfig) -> Self {
        let core = Core::new(&config, host.clone());
        Self {
            host,
            config,
            core: Mutex::new(core),
            timer_wake: Notify::new(),
            event_wake: Notify::new(),
            keeper_wake: Notify::new(),
            closing: watch::Sender::new(false),
            done: watch::Sender::new(false),
            media_sent: AtomicU64::new(0),
        }
    }

    /// Runs `work` on the state, then wakes who has something to do because of it.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Core, Instant) -> T) -> T {
        let now = self.host.now();
        let (result, wakes) = {
            let mut core = self.core.lock().expect("nobody panics while holding it");
            let result = work(&mut core, now);
            (result, core.take_wakes())
        };
        if wakes.timer {
            self.timer_wake.notify_one();
        }
        if wakes.events {
            self.event_wake.notify_waiters();
        }
        if wakes.keeper {
            self.keeper_wake.notify_one();
        }
        for (live, of_session) in wakes.sessions {
            of_session.wake(&live);
        }
        result
    }

    /// Waits until `take` gives something.
    pub(crate) async fn next<T>(&self, mut take: impl FnMut(&mut Core, Instant) -> Option<T>) -> T {
        loop {
            let mut woken = pin!(self.event_wake.notified());
            // Registered before looking: what comes in between is not missed.
            woken.as_mut().enable();
            if let Some(found) = self.with(&mut take) {
                return found;
            }
            woken.await;
        }
    }

    /// Sends one datagram of the session, head and payload in one buffer.
    pub(crate) fn send_datagram(
        connection: &quinn::Connection,
        header: &AccessHeader,
        payload: &[&[u8]],
    ) -> Result<(), FlowError> {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        let mut bytes = BytesMut::with_capacity(AccessHeader::LEN + length);
        bytes.resize(AccessHeader::LEN, 0);
        header.encode(&mut bytes);
        for part in payload {
            bytes.extend_from_slice(part);
        }
        Self::send_bytes(connection, bytes.freeze())
    }

    fn send_bytes(connection: &quinn::Connection, bytes: Bytes) -> Result<(), FlowError> {
        let length = bytes.len().saturating_sub(AccessHeader::LEN);
        connection
            .send_datagram(bytes)
            .map_err(|error| match error {
                quinn::SendDatagramError::TooLarge => FlowError::TooLarge {
                    bytes: length,
                    limit: connection
                        .max_datagram_size()
                        .unwrap_or(0)
                        .saturating_sub(AccessHeader::LEN),
                },
                _ => FlowError::NotConnected,
            })
    }

    pub(crate) fn count_media_sent(&self) {
        self.media_sent.fetch_add(1, Relaxed);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Completes with what is ready first; at the same time, the first.
pub(crate) async fn either<A, B>(
    a: impl Future<Output = A>,
    b: impl Future<Output = B>,
) -> Either<A, B> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(a) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::First(a));
        }
        b.as_mut().poll(cx).map(Either::Second)
    })
    .await
}

pub(crate) enum Either<A, B> {
    First(A),
    Second(B),
}

/// Completes once the value is true, or nobody can set it any more.
pub(crate) async fn until_true(watch: &watch::Sender<bool>) {
    let _ = watch.subscribe().wait_for(|value| *value).await;
}
