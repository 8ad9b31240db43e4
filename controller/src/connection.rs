//! One connection of one relay: frames in, frames out.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tradewind_proto::{
    ALPN_CONTROL, ALPN_ENROL, CloseCode, Frame, FrameReader, MAX_CONTROL_FRAME,
    control::{
        ControllerToRelay, EnrolRequest, Refused, RelayToController,
        controller_to_relay as to_relay, relay_to_controller as from_relay,
    },
    frame_message,
};
use tradewind_trust::{tls, verify_peer_name};

use crate::{controller::Shared, enrol, network::Part};

/// Frames waiting for a relay that reads slowly; beyond it the connection is closed, and the
/// relay gets what is current when it is back.
const MAX_WAITING: usize = 256;
/// From connecting to having registered, or being enrolled.
const HELLO: Duration = Duration::from_secs(5);
/// Largest request for enrolment, in bytes.
const MAX_ENROL_FRAME: usize = 64 << 10;
const READ_CHUNK: usize = 64 << 10;

/// Where to write what is for one relay.
pub(crate) struct Outbox {
    frames: mpsc::Sender<Outgoing>,
    connection: Connection,
}

enum Outgoing {
    Frame(bytes::Bytes),
    /// Built by the connection's own task: that takes a while.
    Part(Part),
    Close(CloseCode, String),
}

impl Outbox {
    pub(crate) fn send(&self, message: &ControllerToRelay) {
        self.send_frame(frame_message(message));
    }

    /// Sends a message that is encoded already.
    pub(crate) fn send_frame(&self, frame: bytes::Bytes) {
        self.put(Outgoing::Frame(frame));
    }

    pub(crate) fn send_part(&self, part: Part) {
        self.put(Outgoing::Part(part));
    }

    fn put(&self, outgoing: Outgoing) {
        if self.frames.try_send(outgoing).is_err() {
            close(&self.connection, CloseCode::Protocol, "reads too slowly");
        }
    }

    /// Closes once what was sent before has been read.
    pub(crate) fn close(&self, code: CloseCode, reason: String) {
        if let Err(error) = self.frames.try_send(Outgoing::Close(code, reason)) {
            let (mpsc::error::TrySendError::Full(left) | mpsc::error::TrySendError::Closed(left)) =
                error;
            if let Outgoing::Close(code, reason) = left {
                close(&self.connection, code, &reason);
            }
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let from = incoming.remote_address();
    let greeting = async {
        let connection = incoming.await.map_err(|error| error.to_string())?;
        let streams = connection
            .accept_bi()
            .await
            .map_err(|error| error.to_string())?;
        Ok::<_, String>((connection, streams))
    };
    let (connection, (send, recv)) = match shared.host.timeout(HELLO, greeting).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return tracing::debug!(%from, error, "no connection"),
        Err(_) => return tracing::debug!(%from, "no hello in time"),
    };
    match alpn(&connection).as_deref() {
        Some(ALPN_CONTROL) => control(&shared, &connection, send, recv, permit).await,
        Some(ALPN_ENROL) => {
            let _ = shared
                .host
                .timeout(HELLO, enrolment(&shared, &connection, send, recv))
                .await;
            close(&connection, CloseCode::Done, "");
        }
        _ => close(&connection, CloseCode::Protocol, "unknown protocol"),
    }
}

async fn control(
    shared: &Arc<Shared>,
    connection: &Connection,
    send: SendStream,
    mut recv: RecvStream,
    permit: OwnedSemaphorePermit,
) {
    let mut frames = FrameReader::new(MAX_CONTROL_FRAME);
    let first = shared
        .host
        .timeout(HELLO, next_frame(&mut frames, &mut recv))
        .await;
    let Ok(Some(first)) = first else {
        return close(
            connection,
            CloseCode::Timeout,
            "Register did not come in time",
        );
    };
    let Some(register) = decode(&first) else {
        return close(connection, CloseCode::Protocol, "not a message");
    };
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    let outbox = Outbox {
        frames: sender,
        connection: connection.clone(),
    };
    shared
        .host
        .spawn(write(shared.clone(), connection.clone(), send, receiver));
    if let Err(reason) = check_certificate(connection, &register) {
        tracing::warn!(from = %connection.remote_address(), reason, "relay refused");
        let body = to_relay::Body::Refused(Refused {
            reason: reason.clone(),
        });
        outbox.send(&ControllerToRelay { body: Some(body) });
        outbox.close(CloseCode::WrongPeer, reason);
        // The writer ends it, or else the peer does.
        connection.closed().await;
        return;
    }
    drop(permit);
    let id = shared.connected(outbox);
    shared.with(|network, now| network.received(now, id, register));
    while let Some(frame) = next_frame(&mut frames, &mut recv).await {
        let Some(message) = decode(&frame) else {
            close(connection, CloseCode::Protocol, "not a message");
            break;
        };
        shared.with(|network, now| network.received(now, id, message));
    }
    // A stream that ends is a connection that ends: there is nothing else on it.
    shared.disconnected(id);
    if connection.close_reason().is_none() {
        let goodbye = shared
            .host
            .timeout(Duration::from_secs(2), connection.closed());
        if goodbye.await.is_err() {
            close(connection, CloseCode::Done, "the control stream has ended");
        }
    }
}

/// A relay is who its certificate says, and nobody else.
fn check_certificate(connection: &Connection, message: &RelayToController) -> Result<(), String> {
    let Some(from_relay::Body::Register(register)) = &message.body else {
        return Err("the first message must be Register".to_owned());
    };
    let Some(certificate) = tls::peer_certificate(connection.peer_identity()) else {
        return Err("no certificate was shown: enrol first".to_owned());
    };
    verify_peer_name(&certificate, &register.name).map_err(|error| error.to_string())
}

async fn write(
    shared: Arc<Shared>,
    connection: Connection,
    mut send: SendStream,
    mut frames: mpsc::Receiver<Outgoing>,
) {
    while let Some(outgoing) = frames.recv().await {
        let frame = match outgoing {
            Outgoing::Frame(frame) => frame,
            Outgoing::Part(part) => frame_message(&part.message()),
            Outgoing::Close(code, reason) => {
                let _ = send.finish();
                let _ = shared
                    .host
                    .timeout(Duration::from_secs(1), send.stopped())
                    .await;
                return close(&connection, code, &reason);
            }
        };
        if send.write_chunk(frame).await.is_err() {
            return;
        }
    }
}

async fn enrolment(
    shared: &Arc<Shared>,
    connection: &Connection,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let mut frames = FrameReader::new(MAX_ENROL_FRAME);
    let Some(frame) = next_frame(&mut frames, &mut recv).await else {
        return;
    };
    let Ok(request) = EnrolRequest::decode(frame) else {
        return;
    };
    let now = shared.host.wall_clock();
    let response = enrol::answer(&request, shared.ca.as_ref(), &shared.tokens, now);
    if send.write_chunk(frame_message(&response)).await.is_ok() {
        let _ = send.finish();
        // The relay closes when it has read the answer.
        connection.closed().await;
    }
}

/// The next frame; `None` when the stream has ended or cannot be understood.
async fn next_frame(frames: &mut FrameReader, recv: &mut RecvStream) -> Option<Frame> {
    loop {
        match frames.next_frame() {
            Ok(Some(frame)) => return Some(frame),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "relay");
                return None;
            }
        }
        let chunk = recv.read_chunk(READ_CHUNK, true).await.ok()??;
        frames.push(chunk.bytes);
    }
}

fn decode(frame: &Frame) -> Option<RelayToController> {
    RelayToController::decode(frame.clone()).ok()
}

fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    connection
        .handshake_data()?
        .downcast::<quinn::crypto::rustls::HandshakeData>()
        .ok()?
        .protocol
}

fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
}
