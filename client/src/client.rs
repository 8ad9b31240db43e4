//! The client itself.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use rand::RngExt as _;
use tokio::sync::oneshot;
use tradewind_host::Host;
use tradewind_proto::{
    Class,
    packet::{AccessHeader, Kind},
};

use crate::{
    ClientConfig, ConnectError, Delivered, Event, Flow, LookupError, Media, Message, Outcomes,
    PingError, PingReport, SendError, SendOptions, Stats,
    connect::Connector,
    core::{Found, Ping, WayKey},
    keeper,
    shared::{Shared, until_true},
};

/// How long a lookup may take, retries included.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(8);
/// How long an answer to a ping is waited for.
const PING_PATIENCE: Duration = Duration::from_secs(3);

/// A connected client. Clones are the same client; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    handle: Arc<ClientHandle>,
}

/// Ends the client when nobody holds it any more.
#[derive(Debug)]
struct ClientHandle {
    shared: Arc<Shared>,
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        self.shared.with(|core, now| core.fail_everything(now));
        self.shared.closing.send_replace(true);
    }
}

impl Client {
    /// Finds the best edge and sets up a session there: handshakes are raced, a little staggered, and
    /// of those that complete within a moment after the first the lowest round trip wins.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is tried any more then. Once connected, a lost session is followed
    /// by another one without end.
    pub async fn connect(config: ClientConfig, host: Arc<dyn Host>) -> Result<Self, ConnectError> {
        let shared = Arc::new(Shared::new(host, config));
        let mut connector = Connector::new(&shared)?;
        let instance = shared.with(|core, _| core.instance);
        let first = connector.connect(&shared, &[], instance, None).await?;
        keeper::start(&shared, connector, first);
        Ok(Self {
            handle: Arc::new(ClientHandle { shared }),
        })
    }

    /// Sends a message and waits for its end-to-end outcome.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(
        &self,
        user: &str,
        payload: impl Into<Bytes>,
    ) -> Result<Delivered, SendError> {
        self.enqueue(user, payload, SendOptions::default()).await
    }

    /// As [`Client::send`], with options.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send_with(
        &self,
        user: &str,
        payload: impl Into<Bytes>,
        options: SendOptions,
    ) -> Result<Delivered, SendError> {
        self.enqueue(user, payload, options).await
    }

    /// Sends a message at once and gives a future of its outcome. Messages of one lane arrive in
    /// the order of these calls.
    pub fn enqueue(&self, user: &str, payload: impl Into<Bytes>, options: SendOptions) -> Receipt {
        let (outcome, receiver) = oneshot::channel();
        let payload = payload.into();
        self.shared()
            .with(|core, now| core.enqueue(user, payload, options, outcome, now));
        Receipt { receiver }
    }

    /// A flow of media packets to a user.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn open_flow(&self, user: &str, class: Class) -> Result<Flow, LookupError> {
        let shared = self.shared();
        let found =
            |found: Found| shared.with(|core, now| core.find_user(user, Some(class), found, now));
        self.look_up(found).await?;
        let name = shared.with(|core, _| core.count_flow(user, 1));
        let name = name.ok_or(LookupError::Offline)?;
        let id = shared.with(|core, _| core.new_flow());
        Ok(Flow::new(shared.clone(), name, None, class, id))
    }

    /// A flow back to where a packet came from, without a lookup, in the same class.
    #[must_use]
    pub fn reply_flow(&self, media: &Media) -> Flow {
        let shared = self.shared();
        let name = shared.with(|core, _| core.count_flow(&media.from, 1));
        let name = name.unwrap_or_else(|| media.from.clone());
        let id = shared.with(|core, _| core.new_flow());
        let direct = Some(WayKey {
            session: media.session,
            handle: media.handle,
        });
        Flow::new(shared.clone(), name, direct, media.class, id)
    }

    /// The next event, in order of arrival; `None` once the client is closed and all were read.
    /// Dropping the future before it completes loses nothing.
    pub async fn recv(&self) -> Option<Event> {
        let shared = self.shared();
        shared
            .next(|core, now| {
                let event = core.inbox.pop();
                if matches!(event, Some(Event::Message(_))) {
                    core.unblock(now);
                }
                ended_or(event, shared)
            })
            .await
    }

    /// The next message; `None` once the client is closed and all were read.
    pub async fn recv_message(&self) -> Option<Message> {
        let shared = self.shared();
        shared
            .next(|core, now| ended_or(core.pop_message(now), shared))
            .await
    }

    /// The next media packet; `None` once the client is closed and all were read.
    pub async fn recv_media(&self) -> Option<Media> {
        let shared = self.shared();
        shared
            .next(|core, _| ended_or(core.inbox.pop_media(), shared))
            .await
    }

    /// Measures the whole way to a user's client and back, hop by hop. The client at the other end
    /// answers by itself.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping_user(&self, user: &str) -> Result<PingReport, PingError> {
        let shared = self.shared();
        let found = |found: Found| shared.with(|core, now| core.find_user(user, None, found, now));
        let way = self.look_up(found).await?;
        self.ping(way).await
    }

    /// Measures the way to a relay and back, hop by hop.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping_relay(&self, relay: &str) -> Result<PingReport, PingError> {
        let found = |found: Found| self.shared().with(|core, _| core.find_relay(relay, found));
        let way = self.look_up(found).await?;
        self.ping(way).await
    }

    /// Counters and present state.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = self.shared();
        let (mut stats, first) = shared.with(|core, _| {
            let first = core.first_attachment();
            let first = first.map(|a| (a.live.clone(), a.welcome.relay.clone()));
            (core.stats.clone(), first)
        });
        stats.media_sent = shared.media_sent.load(Relaxed);
        if let Some((live, relay)) = first {
            stats.relay = Some(relay);
            stats.edge_rtt = Some(live.connection.rtt());
        }
        stats
    }

    /// The app and user of the token, as the edge reads it.
    #[must_use]
    pub fn identity(&self) -> (String, String) {
        self.shared().with(|core, _| {
            let welcome = &core.welcome;
            (welcome.app.clone(), welcome.user.clone())
        })
    }

    /// Largest message the token allows, in bytes.
    #[must_use]
    pub fn max_message_bytes(&self) -> u64 {
        self.shared().with(|core, _| core.welcome.max_message_bytes)
    }

    /// Says goodbye to the edge and ends. Sends under way end as [`SendError::Closed`]; what was
    /// received is still acknowledged and can still be read.
    pub async fn close(&self) {
        let shared = self.shared();
        shared.with(|core, now| core.fail_everything(now));
        shared.closing.send_replace(true);
        until_true(&shared.done).await;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    async fn look_up(&self, ask: impl FnOnce(Found)) -> Result<WayKey, LookupError> {
        let (found, answer) = oneshot::channel();
        ask(found);
        match self.shared().host.timeout(LOOKUP_PATIENCE, answer).await {
            Ok(Ok(result)) => result,
            // Without a session there is nobody to ask.
            Ok(Err(_)) | Err(_) => Err(LookupError::TimedOut),
        }
    }

    async fn ping(&self, way: WayKey) -> Result<PingReport, PingError> {
        let shared = self.shared();
        let (pinged, answer) = oneshot::channel();
        let nonce = shared.host.rng().random::<u64>().to_be_bytes();
        let sent = shared.with(|core, now| -> Result<u32, PingError> {
            let live = core.live(way.session).cloned();
            let live = live.ok_or(PingError::NotConnected)?;
            let flow = core.new_flow();
            let header = AccessHeader {
                kind: Kind::EchoRequest,
                class: Class::Message,
                trace: true,
                path_change: false,
                group: false,
                layer: 0,
                handle: way.handle,
                flow,
                sequence: 0,
                age_us: 0,
            };
            core.await_ping(
                flow,
                Ping {
                    session: way.session,
                    nonce,
                    sent: now,
                    pinged,
                },
            );
            Shared::send_datagram(&live.connection, &header, &[&nonce])
                .map_err(|_| PingError::NotConnected)?;
            Ok(flow)
        });
        let flow = sent?;
        match shared.host.timeout(PING_PATIENCE, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PingError::NotConnected),
            Err(_) => {
                shared.with(|core, _| core.forget_ping(flow));
                Err(PingError::TimedOut(PING_PATIENCE))
            }
        }
    }
}

/// The outcome of a send, to be awaited, or dropped when nobody wants to know it (the message is
/// sent all the same).
#[derive(Debug)]
#[must_use = "it is the only place where the outcome is told"]
pub struct Receipt {
    pub(crate) receiver: oneshot::Receiver<Outcomes>,
}

impl Receipt {
    /// The outcomes for all devices of the user, and the one as a whole.
    pub async fn outcomes(self) -> Outcomes {
        let outcomes = self.receiver.await;
        outcomes.unwrap_or_else(|_| Outcomes::failed(SendError::Closed))
    }
}

impl Future for Receipt {
    type Output = Result<Delivered, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver)
            .poll(cx)
            .map(|outcomes| outcomes.map_or(Err(SendError::Closed), |outcomes| outcomes.whole))
    }
}

/// What was found; or, when that is nothing and nothing more can come, the end.
fn ended_or<T>(found: Option<T>, shared: &Shared) -> Option<Option<T>> {
    match found {
        Some(found) => Some(Some(found)),
        None => shared.done.borrow().then_some(None),
    }
}
