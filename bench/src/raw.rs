//! Sessions that speak the protocol byte by byte, without an SDK: what is measured is the relay.

use std::{
    io,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use prost::Message as _;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;
use tradewind_host::{Host, OsHost};
use tradewind_proto::{
    Class, FrameReader, MAX_FRAME,
    control::{
        ClientMessage, EdgeMessage, Hello, JoinGroup, LookupUser, client_message, edge_message,
        group_result, lookup_result,
    },
    encode_frame, frame_message,
    lane::{Data, LaneFrame},
    packet::{AccessHeader, Kind},
};
use tradewind_trust::EDGE_NAME;

use crate::{
    network::{Entrance, token},
    threads::on_a_thread,
};

/// Sessions that share a socket.
pub(crate) const PER_SOCKET: usize = 100;
/// Sessions that are set up at a time.
const AT_A_TIME: usize = 64;
/// How often a session is tried to be set up.
const TRIES: u32 = 5;
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);
const LOOK_UPS: u32 = 100;

/// One session.
pub(crate) struct RawSession {
    connection: Connection,
    control: SendStream,
    answers: RecvStream,
    frames: FrameReader,
    lane: Option<SendStream>,
    last_id: u32,
}

impl RawSession {
    /// One on a socket of its own.
    pub(crate) async fn open(entrance: &Entrance, user: &str) -> anyhow::Result<Self> {
        let token = token(&entrance.signer()?, user)?;
        Self::open_on(&entrance.socket()?, entrance.edge(), token).await
    }

    async fn open_on(socket: &Endpoint, edge: SocketAddr, token: String) -> anyhow::Result<Self> {
        let connection = socket.connect(edge, EDGE_NAME)?.await?;
        let (control, answers) = connection.open_bi().await?;
        let mut session = Self {
            connection,
            control,
            answers,
            frames: FrameReader::new(MAX_FRAME),
            lane: None,
            last_id: 0,
        };
        let hello = client_message::Body::Hello(Hello {
            token,
            instance: 1,
            sdk: "bench".to_owned(),
            ..Hello::default()
        });
        match session.ask(hello).await? {
            edge_message::Body::Welcome(_) => Ok(session),
            other => bail!("not welcome: {other:?}"),
        }
    }

    async fn ask(&mut self, body: client_message::Body) -> anyhow::Result<edge_message::Body> {
        self.last_id += 1;
        let message = ClientMessage {
            id: self.last_id,
            body: Some(body),
        };
        self.control.write_chunk(frame_message(&message)).await?;
        loop {
            while let Some(frame) = self.frames.next_frame()? {
                let message = EdgeMessage::decode(frame)?;
                if message.reply_to == self.last_id {
                    return message.body.context("an answer without a body");
                }
            }
            let chunk = self.answers.read_chunk(usize::MAX, true).await?;
            self.frames
                .push(chunk.context("the session has ended")?.bytes);
        }
    }

    /// The handle of a user, who may have been announced only just now.
    pub(crate) async fn handle(&mut self, user: &str) -> anyhow::Result<u32> {
        for _ in 0..LOOK_UPS {
            let user = user.to_owned();
            let lookup = client_message::Body::LookupUser(LookupUser {
                user,
                ..Default::default()
            });
            if let edge_message::Body::LookupResult(result) = self.ask(lookup).await?
                && result.status() == lookup_result::Status::Found
            {
                return Ok(result.handle);
            }
            let host: &dyn Host = &OsHost;
            host.sleep(LOOK_UP_EVERY).await;
        }
        bail!("{user} is not found");
    }

    /// Joins a group; gives the handle by which it is sent to.
    pub(crate) async fn join(&mut self, group: &str) -> anyhow::Result<u32> {
        loop {
            let join = client_message::Body::JoinGroup(JoinGroup {
                group: group.to_owned(),
                ..JoinGroup::default()
            });
            let edge_message::Body::GroupResult(result) = self.ask(join).await? else {
                bail!("no answer about a group");
            };
            match result.status() {
                group_result::Status::Done => return Ok(result.handle),
                group_result::Status::Retry => {}
                status => bail!("{group} cannot be joined: {status:?}"),
            }
            let host: &dyn Host = &OsHost;
            host.sleep(LOOK_UP_EVERY).await;
        }
    }

    /// Its connection.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a datagram.
    pub(crate) fn send_media(&self, handle: u32, class: Class, body: &[u8]) -> anyhow::Result<()> {
        let mut packet = BytesMut::from(media_head(handle, class));
        packet.extend_from_slice(body);
        Ok(self.connection.send_datagram(packet.freeze())?)
    }

    /// Sends what [`Self::frame`] has put together on the message stream; waits until QUIC takes it.
    pub(crate) async fn send_frames(&mut self, frames: BytesMut) -> anyhow::Result<()> {
        if self.lane.is_none() {
            self.lane = Some(self.connection.open_uni().await?);
        }
        let lane = self.lane.as_mut().context("it has just been opened")?;
        Ok(lane.write_chunk(frames.freeze()).await?)
    }

    /// Adds a packet of kind message to `frames`.
    pub(crate) fn frame(frames: &mut BytesMut, handle: u32, body: &[u8]) {
        let mut head = [0; AccessHeader::LEN];
        header(Kind::Message, Class::Message, handle).encode(&mut head);
        encode_frame(frames, &[&head, body]);
    }

    /// Adds a message to a group, of one segment with that number, to `frames`.
    pub(crate) fn group_frame(frames: &mut BytesMut, handle: u32, sequence: u64, body: Bytes) {
        let mut head = [0; AccessHeader::LEN];
        header(Kind::Message, Class::Message, handle).encode(&mut head);
        let segment = LaneFrame::Data(Data {
            sender: 1,
            lane: 1,
            sequence,
            base: 0,
            total: Some(body.len() as u32),
            last: true,
            payload: body,
        });
        encode_frame(frames, &[&head, &segment.encode()]);
    }

    /// Takes what comes on streams, and notes nothing.
    pub(crate) fn discard(&self) {
        let host: Arc<dyn Host> = Arc::new(OsHost);
        let (connection, tasks) = (self.connection.clone(), host.clone());
        host.spawn(async move {
            while let Ok(mut stream) = connection.accept_uni().await {
                tasks.spawn(async move {
                    while let Ok(Some(_)) = stream.read_chunk(usize::MAX, true).await {}
                });
            }
        });
    }

    /// Notes everything that comes, until the session ends.
    pub(crate) fn receive(self, arrivals: &Arc<Arrivals>, host: &Arc<dyn Host>) {
        let Self {
            connection,
            mut answers,
            control,
            ..
        } = self;
        let (all, datagrams) = (arrivals.clone(), connection.clone());
        host.spawn(async move {
            while let Ok(packet) = datagrams.read_datagram().await {
                all.note_packet(&packet);
            }
        });
        host.spawn(async move {
            // News are read, for whoever reads none is sent away.
            let _open = control;
            while let Ok(Some(_)) = answers.read_chunk(usize::MAX, true).await {}
        });
        let (all, tasks) = (arrivals.clone(), host.clone());
        host.spawn(async move {
            while let Ok(mut stream) = connection.accept_uni().await {
                let all = all.clone();
                tasks.spawn(async move {
                    let mut frames = FrameReader::new(MAX_FRAME);
                    while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
                        frames.push(chunk.bytes);
                        while let Ok(Some(frame)) = frames.next_frame() {
                            all.note_packet(&frame);
                        }
                    }
                });
            }
        });
    }
}

/// What a datagram begins with.
pub(crate) fn media_head(handle: u32, class: Class) -> Bytes {
    let mut head = BytesMut::zeroed(AccessHeader::LEN);
    header(Kind::Media, class, handle).encode(&mut head);
    head.freeze()
}

fn header(kind: Kind, class: Class, handle: u32) -> AccessHeader {
    AccessHeader {
        kind,
        class,
        trace: false,
        path_change: false,
        group: false,
        layer: 0,
        handle,
        flow: 1,
        sequence: 0,
        age_us: 0,
    }
}

/// What has come to one or many receivers. Every payload begins with the time at which it was sent.
pub(crate) struct Arrivals {
    origin: Instant,
    count: AtomicUsize,
    delays_ns: Mutex<Vec<u64>>,
}

impl Arrivals {
    pub(crate) fn new() -> Arc<Self> {
        let host: &dyn Host = &OsHost;
        Arc::new(Self {
            origin: host.now(),
            count: AtomicUsize::new(0),
            delays_ns: Mutex::default(),
        })
    }

    /// Writes the present time into the beginning of a payload.
    pub(crate) fn stamp(&self, payload: &mut [u8]) {
        payload[..8].copy_from_slice(&self.now_ns().to_be_bytes());
    }

    /// How many have come.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// The delays of those that came since the last call, nanoseconds.
    pub(crate) fn take_delays(&self) -> Vec<u64> {
        std::mem::take(&mut *self.delays_ns.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Notes a packet that has come from a relay.
    fn note_packet(&self, packet: &Bytes) {
        let payload = packet.slice(AccessHeader::LEN.min(packet.len())..);
        match AccessHeader::decode(packet) {
            Ok(header) if header.group && header.kind == Kind::Message => {
                if let Ok(frame) = LaneFrame::decode(payload) {
                    self.note(&frame.payload());
                }
            }
            Ok(_) => self.note(&payload),
            Err(_) => {}
        }
    }

    /// Notes a payload that has come.
    pub(crate) fn note(&self, payload: &[u8]) {
        let Some(sent) = payload.get(..8).and_then(|bytes| bytes.try_into().ok()) else {
            return;
        };
        let delay = self.now_ns().saturating_sub(u64::from_be_bytes(sent));
        let delays = self.delays_ns.lock();
        delays.unwrap_or_else(|e| e.into_inner()).push(delay);
        self.count.fetch_add(1, Relaxed);
    }

    fn now_ns(&self) -> u64 {
        let host: &dyn Host = &OsHost;
        u64::try_from((host.now() - self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Sessions on a thread of their own, which end with this.
#[derive(Debug)]
pub(crate) struct Receivers {
    ended: Arc<AtomicBool>,
}

impl Drop for Receivers {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
    }
}

/// Sessions of users `<name>-0`, … on a thread of their own, all members of `group` if there is one;
/// what comes to them is noted. While `paused` is set the thread does next to nothing, as on a machine
/// that is overloaded.
pub(crate) fn receivers(
    entrance: &Entrance,
    name: &'static str,
    count: usize,
    group: Option<&'static str>,
    arrivals: &Arc<Arrivals>,
    paused: &Arc<AtomicBool>,
) -> anyhow::Result<Receivers> {
    let (entrance, arrivals) = (entrance.clone(), arrivals.clone());
    receivers_on_a_thread(name, paused.clone(), async move {
        let host: Arc<dyn Host> = Arc::new(OsHost);
        for session in open_many(&entrance, name, 0..count, group).await? {
            session.receive(&arrivals, &host);
        }
        Ok(())
    })
}

/// The same for whatever receives; `start` begins it.
pub(crate) fn receivers_on_a_thread(
    name: &'static str,
    paused: Arc<AtomicBool>,
    start: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<Receivers> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let ended: Arc<AtomicBool> = Arc::default();
    let end = ended.clone();
    on_a_thread(name, async move {
        let host: &dyn Host = &OsHost;
        start.await?;
        ready.send(()).map_err(io::Error::other)?;
        while !end.load(Relaxed) {
            host.sleep(BETWEEN_PAUSES).await;
            if paused.load(Relaxed) {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    })?;
    is_ready.recv().context("the receivers did not start")?;
    Ok(Receivers { ended })
}

/// How long paused receivers do nothing, and how long they work in between.
const PAUSE: Duration = Duration::from_millis(1_500);
const BETWEEN_PAUSES: Duration = Duration::from_millis(20);

/// Sessions of users `<name>-<n>`, members of `group` if there is one.
pub(crate) async fn open_many(
    entrance: &Entrance,
    name: &str,
    numbers: Range<usize>,
    group: Option<&'static str>,
) -> anyhow::Result<Vec<RawSession>> {
    let host: Arc<dyn Host> = Arc::new(OsHost);
    let signer = entrance.signer()?;
    let edge = entrance.edge();
    let (done, mut opened) = mpsc::unbounded_channel();
    let count = numbers.len();
    let mut sessions = Vec::with_capacity(count);
    let mut current = None;
    for (nth, n) in numbers.enumerate() {
        if nth % PER_SOCKET == 0 {
            current = Some(entrance.socket()?);
        }
        let socket = current.clone().context("there is a socket")?;
        let (done, token) = (done.clone(), token(&signer, &format!("{name}-{n}"))?);
        host.spawn(async move {
            let open = async {
                let mut tries = 1;
                let mut session = loop {
                    match RawSession::open_on(&socket, edge, token.clone()).await {
                        // This machine may do too much else to say hello in time.
                        Err(_) if tries < TRIES => tries += 1,
                        opened => break opened?,
                    }
                };
                if let Some(group) = group {
                    session.join(group).await?;
                }
                Ok(session)
            };
            // Nobody waits any more when another one has failed.
            let _ = done.send(open.await);
        });
        if nth >= AT_A_TIME {
            sessions.push(next_opened(&mut opened).await?);
        }
    }
    while sessions.len() < count {
        sessions.push(next_opened(&mut opened).await?);
    }
    Ok(sessions)
}

async fn next_opened(
    opened: &mut mpsc::UnboundedReceiver<anyhow::Result<RawSession>>,
) -> anyhow::Result<RawSession> {
    opened.recv().await.context("they all have a sender")?
}

/// Time and work of a process over a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    begun: Instant,
    cpu: Duration,
}

impl Meter {
    pub(crate) fn start(process: &crate::network::Process) -> anyhow::Result<Self> {
        let host: &dyn Host = &OsHost;
        Ok(Self {
            begun: host.now(),
            cpu: process.cpu()?,
        })
    }

    /// Seconds of time and of work since.
    pub(crate) fn stop(self, process: &crate::network::Process) -> anyhow::Result<(f64, f64)> {
        let host: &dyn Host = &OsHost;
        let cpu = process.cpu()?.saturating_sub(self.cpu);
        Ok(((host.now() - self.begun).as_secs_f64(), cpu.as_secs_f64()))
    }
}

/// A payload of `bytes` (at least 8).
pub(crate) fn payload(bytes: usize) -> Vec<u8> {
    vec![0; bytes.max(8)]
}

/// A copy of `payload` that is sent now.
pub(crate) fn stamped(arrivals: &Arrivals, payload: &mut [u8]) -> Bytes {
    arrivals.stamp(payload);
    Bytes::copy_from_slice(payload)
}
