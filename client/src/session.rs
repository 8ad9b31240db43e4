//! Sessions: the tasks that carry bytes between a connection and the client's state.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, mpsc};
use tradewind_proto::{
    CloseCode, FrameReader, MAX_FRAME,
    control::{Bye, ClientMessage, EdgeMessage, Role, client_message},
    frame_message,
};

use crate::{
    EdgeAddr,
    connect::Established,
    core::STREAMS,
    shared::{Shared, either, until_true},
};

/// How long a client that ends waits until its last words have arrived.
const FAREWELL: Duration = Duration::from_secs(1);

/// A session's connection, and what wakes its tasks.
pub(crate) struct Live {
    pub(crate) number: u64,
    pub(crate) connection: Connection,
    pub(crate) stream_wakes: [Notify; STREAMS],
    pub(crate) control_wake: Notify,
    pub(crate) draining_wake: Notify,
}

/// Which tasks have something to do.
#[derive(Default)]
pub(crate) struct Wakes {
    pub(crate) timer: bool,
    pub(crate) events: bool,
    /// The keeper of sessions.
    pub(crate) keeper: bool,
    pub(crate) sessions: Vec<(Arc<Live>, SessionWakes)>,
}

/// Which tasks of a session have something to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionWakes {
    pub(crate) control: bool,
    pub(crate) draining: bool,
    /// A bit per message stream.
    pub(crate) streams: u32,
}

/// A session's connection with the things that must live as long.
pub(crate) struct Session {
    pub(crate) live: Arc<Live>,
    endpoint: quinn::Endpoint,
    pub(crate) edge: EdgeAddr,
    /// Name of its edge's relay.
    pub(crate) relay: String,
    /// Ends when all writers have ended.
    writers: mpsc::Receiver<()>,
}

impl SessionWakes {
    pub(crate) fn wake(&self, live: &Live) {
        if self.control {
            live.control_wake.notify_one();
        }
        for (stream, wake) in live.stream_wakes.iter().enumerate() {
            if self.streams & 1 << stream != 0 {
                wake.notify_one();
            }
        }
        if self.draining {
            live.draining_wake.notify_one();
        }
    }
}

/// Makes a session of an established connection: the first one, or a further one.
pub(crate) fn begin(shared: &Arc<Shared>, established: Established, first: bool) -> Session {
    let Established {
        connection,
        endpoint,
        control_send,
        control_receive,
        reader,
        welcome,
        edge,
    } = established;
    tracing::info!(%edge, relay = welcome.relay, first, "session");
    let number = shared.with(|core, _| core.new_session());
    let live = Arc::new(Live {
        number,
        connection,
        stream_wakes: std::array::from_fn(|_| Notify::new()),
        control_wake: Notify::new(),
        draining_wake: Notify::new(),
    });
    let relay = welcome.relay.clone();
    shared.with(|core, now| core.attach(live.clone(), welcome, first, now));
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
        relay,
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
                if *shared.closing.borrow()
                    && !shared.with(|core, _| core.has_frames(live.number, index))
                {
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
pub(crate) async fn say_goodbye(shared: &Arc<Shared>, mut session: Session) {
    let host = shared.host.clone();
    let live = &session.live;
    let farewell = async {
        // Nobody sends on it: it only ends.
        let _ = session.writers.recv().await;
        let bye = client_message::Body::Bye(Bye {});
        shared.with(|core, _| core.tell_session(live.number, bye));
        // The edge closes when it has read that.
        live.connection.closed().await;
    };
    let _ = host.timeout(FAREWELL, farewell).await;
    live.connection.close(code(CloseCode::Done), b"bye");
    let _ = host.timeout(FAREWELL, session.endpoint.wait_idle()).await;
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

/// The first message of a session.
pub(crate) fn hello(token: String, instance: u64, role: Option<Role>) -> Bytes {
    let sdk = concat!("tradewind-rust/", env!("CARGO_PKG_VERSION")).to_owned();
    let hello = tradewind_proto::control::Hello {
        token,
        instance,
        sdk,
        role,
    };
    frame_message(&ClientMessage {
        id: HELLO_ID,
        body: Some(client_message::Body::Hello(hello)),
    })
}

/// The id of the hello. Others count from 1.
pub(crate) const HELLO_ID: u32 = u32::MAX;
