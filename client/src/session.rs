//! Sessions: the tasks that carry bytes between a connection and the client's state, and the one
//! that sees to it that there always is a session.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use prost::Message as _;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use rand::RngExt as _;
use tokio::sync::{Notify, mpsc};
use tradewind_proto::{
    CloseCode, FrameReader, MAX_FRAME,
    control::{Bye, ClientMessage, EdgeMessage, RefreshToken, client_message},
    frame_message,
};

use crate::{
    ConnectError,
    connect::{Connector, Established},
    core::STREAMS,
    shared::{Either, Shared, either, until_true},
};

/// Pauses between attempts to connect: from, to; doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long a client that ends waits until its last words have arrived.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long before its end a token is replaced, at least.
const REFRESH_AHEAD: Duration = Duration::from_secs(60);

/// The present session's connection, and what wakes its tasks.
pub(crate) struct Live {
    pub(crate) number: u64,
    pub(crate) connection: Connection,
    pub(crate) stream_wakes: [Notify; STREAMS],
    pub(crate) control_wake: Notify,
    pub(crate) draining_wake: Notify,
}

/// Which tasks have something to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wakes {
    pub(crate) timer: bool,
    pub(crate) events: bool,
    pub(crate) control: bool,
    pub(crate) draining: bool,
    /// A bit per message stream.
    pub(crate) streams: u32,
}

/// A session's connection with the things that must live as long.
struct Session {
    live: Arc<Live>,
    endpoint: quinn::Endpoint,
    edge: String,
    /// Ends when all writers have ended.
    writers: mpsc::Receiver<()>,
}

/// Starts a client's tasks on its first session.
pub(crate) fn start(shared: &Arc<Shared>, connector: Connector, first: Established) {
    let host = shared.host.clone();
    host.spawn(run_timers(shared.clone()));
    let session = begin(shared, first);
    host.spawn(supervise(shared.clone(), connector, session));
}

/// Does what is due, when it is.
async fn run_timers(shared: Arc<Shared>) {
    let work = async {
        loop {
            match shared.with(|core, now| core.on_timers(now)) {
                None => shared.timer_wake.notified().await,
                Some(at) => {
                    either(shared.timer_wake.notified(), shared.host.sleep_until(at)).await;
                }
            }
        }
    };
    either(until_true(&shared.done), work).await;
}

/// Why a session ends.
enum End {
    Closing,
    Draining,
    Lost(ConnectionError),
}

/// Keeps a session, until the client is closed or no edge will have it any more.
async fn supervise(shared: Arc<Shared>, mut connector: Connector, mut session: Session) {
    let reason = loop {
        let end = tokio::select! {
            biased;
            () = until_true(&shared.closing) => End::Closing,
            error = session.live.connection.closed() => End::Lost(error),
            () = session.live.draining_wake.notified() => End::Draining,
            () = refresh_token(&shared) => continue,
        };
        let next = match end {
            End::Closing => {
                say_goodbye(&shared, session).await;
                break "the client was closed".to_owned();
            }
            End::Draining => {
                // The session goes on until the next one stands.
                reconnect(&shared, &mut connector, Some(&session.edge)).await
            }
            End::Lost(error) => {
                let (code, reason) = describe(&error);
                tracing::info!(edge = session.edge, reason, "the session is lost");
                shared.with(|core, _| core.detach(reason.clone()));
                if is_final(code, &shared) {
                    break reason;
                }
                reconnect(&shared, &mut connector, None).await
            }
        };
        match next {
            Some(Ok(established)) => {
                let before = std::mem::replace(&mut session, begin(&shared, established));
                before
                    .live
                    .connection
                    .close(code(CloseCode::Done), b"moved");
            }
            Some(Err(error)) => break error.to_string(),
            None => {
                say_goodbye(&shared, session).await;
                break "the client was closed".to_owned();
            }
        }
    };
    shared.with(|core, now| core.finish(&reason, now));
    shared.done.send_replace(true);
    shared.with(|core, _| core.wake_events());
}

/// Connects, however often it takes. An error when it will never succeed; `None` when the client is
/// to end first.
async fn reconnect(
    shared: &Arc<Shared>,
    connector: &mut Connector,
    leaving: Option<&str>,
) -> Option<Result<Established, ConnectError>> {
    let work = async {
        let mut backoff = BACKOFF.0;
        // Clients of an edge that died are not to come all at once.
        let mut pause = backoff.mul_f64(connector.rng.random::<f64>());
        loop {
            shared.host.sleep(pause).await;
            let known = shared.with(|core, _| core.known_edges.clone());
            let instance = shared.with(|core, _| core.instance);
            let error = match connector.connect(shared, &known, instance, leaving).await {
                Ok(established) => return Ok(established),
                Err(error) => error,
            };
            if is_hopeless(&error, shared) {
                return Err(error);
            }
            tracing::debug!(%error, "not connected yet");
            pause = backoff.mul_f64(0.5 + connector.rng.random::<f64>() / 2.0);
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    };
    match either(until_true(&shared.closing), work).await {
        Either::First(()) => None,
        Either::Second(result) => Some(result),
    }
}

/// Makes an established connection the present session.
fn begin(shared: &Arc<Shared>, established: Established) -> Session {
    let Established {
        connection,
        endpoint,
        control_send,
        control_receive,
        reader,
        welcome,
        edge,
    } = established;
    tracing::info!(edge, relay = welcome.relay, "session");
    let number = shared.with(|core, _| core.sessions) + 1;
    let live = Arc::new(Live {
        number,
        connection,
        stream_wakes: std::array::from_fn(|_| Notify::new()),
        control_wake: Notify::new(),
        draining_wake: Notify::new(),
    });
    shared.with(|core, now| core.attach(live.clone(), welcome, now));
    let (writing, writers) = mpsc::channel(1);
    let host = &shared.host;
    host.spawn(read_control(
        shared.clone(),
        live.clone(),
        control_receive,
        reader,
    ));
    host.spawn(read_datagrams(shared.clone(), live.clone()));
    host.spawn(read_streams(shared.clone(), live.clone()));
    for stream in 0..STREAMS {
        host.spawn(write_stream(
            shared.clone(),
            live.clone(),
            stream,
            writing.clone(),
        ));
    }
    host.spawn(write_control(shared.clone(), live.clone(), control_send));
    Session {
        live,
        endpoint,
        edge,
        writers,
    }
}

async fn read_control(
    shared: Arc<Shared>,
    live: Arc<Live>,
    mut stream: RecvStream,
    mut reader: FrameReader,
) {
    loop {
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    // A message of a later version may be unknown; that is no error.
                    if let Ok(message) = EdgeMessage::decode(&frame[..]) {
                        shared.with(|core, now| core.on_control(live.number, message, now));
                    }
                }
                Ok(None) => break,
                Err(error) => return broken(&live, &error.to_string()),
            }
        }
        match stream.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => reader.push(chunk.bytes),
            Ok(None) | Err(_) => return,
        }
    }
}

async fn read_datagrams(shared: Arc<Shared>, live: Arc<Live>) {
    while let Ok(datagram) = live.connection.read_datagram().await {
        shared.with(|core, now| core.on_packet(live.number, datagram, false, now));
    }
}

async fn read_streams(shared: Arc<Shared>, live: Arc<Live>) {
    while let Ok(stream) = live.connection.accept_uni().await {
        shared
            .host
            .spawn(read_stream(shared.clone(), live.clone(), stream));
    }
}

async fn read_stream(shared: Arc<Shared>, live: Arc<Live>, mut stream: RecvStream) {
    let mut reader = FrameReader::new(MAX_FRAME);
    while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
        reader.push(chunk.bytes);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    shared.with(|core, now| core.on_packet(live.number, frame, true, now));
                }
                Ok(None) => break,
                Err(error) => return broken(&live, &error.to_string()),
            }
        }
    }
}

/// Writes one message stream, opened when it is first needed. Ends, once the client is closing, when
/// all has arrived.
async fn write_stream(
    shared: Arc<Shared>,
    live: Arc<Live>,
    index: usize,
    _writing: mpsc::Sender<()>,
) {
    let mut stream: Option<SendStream> = None;
    let work = async {
        loop {
            let mut frames = shared.with(|core, now| core.next_frames(live.number, index, now));
            if frames.is_empty() {
                if *shared.closing.borrow() && !shared.with(|core, _| core.has_frames(index)) {
                    break;
                }
                let woken = live.stream_wakes[index].notified();
                if *shared.closing.borrow() {
                    continue;
                }
                either(woken, until_true(&shared.closing)).await;
                continue;
            }
            let stream = match &mut stream {
                Some(stream) => stream,
                none => match live.connection.open_uni().await {
                    Ok(opened) => none.insert(opened),
                    Err(_) => return,
                },
            };
            if stream.write_all_chunks(&mut frames).await.is_err() {
                return;
            }
        }
        if let Some(stream) = &mut stream
            && stream.finish().is_ok()
        {
            let _ = stream.stopped().await;
        }
    };
    either(live.connection.closed(), work).await;
}

async fn write_control(shared: Arc<Shared>, live: Arc<Live>, mut stream: SendStream) {
    let work = async {
        loop {
            let mut frames: Vec<Bytes> = shared.with(|core, _| core.take_control(live.number));
            if frames.is_empty() {
                live.control_wake.notified().await;
            } else if stream.write_all_chunks(&mut frames).await.is_err() {
                return;
            }
        }
    };
    either(live.connection.closed(), work).await;
}

/// Lets everything arrive that was handed over, tells the edge, and closes.
async fn say_goodbye(shared: &Arc<Shared>, mut session: Session) {
    let host = shared.host.clone();
    let live = &session.live;
    let farewell = async {
        // Nobody sends on it: it only ends.
        let _ = session.writers.recv().await;
        let bye = client_message::Body::Bye(Bye {});
        shared.with(|core, _| core.tell_edge(bye));
        // The edge closes when it has read that.
        live.connection.closed().await;
    };
    let _ = host.timeout(FAREWELL, farewell).await;
    live.connection.close(code(CloseCode::Done), b"bye");
    let _ = host.timeout(FAREWELL, session.endpoint.wait_idle()).await;
}

/// Waits until the token must be replaced, and replaces it. Never completes when it cannot be.
async fn refresh_token(shared: &Arc<Shared>) {
    if !shared.config.token.can_refresh() {
        return std::future::pending().await;
    }
    let expires = shared.with(|core, _| core.welcome.expires_unix_s);
    let now = shared.host.wall_clock();
    let left = (UNIX_EPOCH + Duration::from_secs(expires))
        .duration_since(now)
        .unwrap_or_default();
    let wait = left.saturating_sub(REFRESH_AHEAD.max(left / 5));
    shared.host.sleep(wait.max(Duration::from_secs(1))).await;
    match shared.config.token.get().await {
        Ok(token) => {
            let refresh = client_message::Body::RefreshToken(RefreshToken { token });
            shared.with(|core, _| core.tell_edge(refresh));
            // The answer says until when the new one holds.
            shared.host.sleep(Duration::from_secs(5)).await;
        }
        Err(error) => {
            tracing::warn!(error, "no fresh token yet");
            shared.host.sleep(Duration::from_secs(5)).await;
        }
    }
}

fn broken(live: &Live, reason: &str) {
    live.connection
        .close(code(CloseCode::Protocol), reason.as_bytes());
}

pub(crate) fn code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}

/// What a lost connection says, for people; and the edge's reason, if it gave one.
pub(crate) fn describe(error: &ConnectionError) -> (Option<CloseCode>, String) {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = CloseCode::from_code(close.error_code.into_inner());
            let text = String::from_utf8_lossy(&close.reason).into_owned();
            let reason = match code {
                _ if !text.is_empty() => text,
                Some(code) => code.to_string(),
                None => format!("closed with code {}", close.error_code),
            };
            (code, reason)
        }
        ConnectionError::TimedOut => (None, "no sign of life".to_owned()),
        other => (None, other.to_string()),
    }
}

/// Whether a session that ended so is not to be followed by another.
fn is_final(code: Option<CloseCode>, shared: &Shared) -> bool {
    match code {
        // The user has connected elsewhere, or may not connect.
        Some(CloseCode::Replaced | CloseCode::Revoked) => true,
        Some(CloseCode::Unauthorized | CloseCode::TokenExpired) => {
            !shared.config.token.can_refresh()
        }
        _ => false,
    }
}

fn is_hopeless(error: &ConnectError, shared: &Shared) -> bool {
    match error {
        ConnectError::Config(_) => true,
        ConnectError::Unauthorized { .. } => !shared.config.token.can_refresh(),
        ConnectError::Refused { code, .. } => is_final(Some(*code), shared),
        _ => false,
    }
}

/// The first message of a session.
pub(crate) fn hello(token: String, instance: u64) -> Bytes {
    let sdk = concat!("tradewind-rust/", env!("CARGO_PKG_VERSION")).to_owned();
    let hello = tradewind_proto::control::Hello {
        token,
        instance,
        sdk,
        role: None,
    };
    frame_message(&ClientMessage {
        id: HELLO_ID,
        body: Some(client_message::Body::Hello(hello)),
    })
}

/// The id of the hello. Others count from 1.
pub(crate) const HELLO_ID: u32 = u32::MAX;
