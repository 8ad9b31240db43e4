//! The client itself.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tradewind_host::Host;
use tradewind_proto::Class;

use crate::{
    ClientConfig, ConnectError, Delivered, Event, Flow, LookupError, Media, Message, PingError,
    PingReport, SendError, SendOptions, Stats,
};

/// A connected client. Clones are the same client; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// Finds the best edge and sets up a session there.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        _config: ClientConfig,
        _host: Arc<dyn Host>,
    ) -> Result<Self, ConnectError> {
        todo!()
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
    pub fn enqueue(
        &self,
        _user: &str,
        _payload: impl Into<Bytes>,
        _options: SendOptions,
    ) -> Receipt {
        todo!()
    }

    /// A flow of media packets to a user.
    ///
    /// # Errors
    /// [`LookupError`].
    pub async fn open_flow(&self, _user: &str, _class: Class) -> Result<Flow, LookupError> {
        todo!()
    }

    /// A flow back to where a packet came from, without a lookup.
    #[must_use]
    pub fn reply_flow(&self, _media: &Media) -> Flow {
        todo!()
    }

    /// The next event, in order of arrival; `None` once the client is closed and all were read.
    pub async fn recv(&self) -> Option<Event> {
        todo!()
    }

    /// The next message; `None` once the client is closed and all were read.
    pub async fn recv_message(&self) -> Option<Message> {
        todo!()
    }

    /// The next media packet; `None` once the client is closed and all were read.
    pub async fn recv_media(&self) -> Option<Media> {
        todo!()
    }

    /// Measures the whole way to a user's client and back, hop by hop.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping_user(&self, _user: &str) -> Result<PingReport, PingError> {
        todo!()
    }

    /// Measures the way to a relay and back, hop by hop.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping_relay(&self, _relay: &str) -> Result<PingReport, PingError> {
        todo!()
    }

    /// Counters and present state.
    #[must_use]
    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// The app and user of the token, as the edge reads it.
    #[must_use]
    pub fn identity(&self) -> (String, String) {
        todo!()
    }

    /// Largest message the token allows, in bytes.
    #[must_use]
    pub fn max_message_bytes(&self) -> u64 {
        todo!()
    }

    /// Says goodbye to the edge and ends. Sends under way end as [`SendError::Closed`].
    pub async fn close(&self) {
        todo!()
    }
}

/// The outcome of a send, to be awaited, or dropped when nobody wants to know it (the message is
/// sent all the same).
#[derive(Debug)]
#[must_use = "it is the only place where the outcome is told"]
pub struct Receipt {}

impl Future for Receipt {
    type Output = Result<Delivered, SendError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        todo!()
    }
}
