//! What relays are compared with: forwarders of plain UDP, and a minimal relay on async quinn with
//! default settings. Both hand a packet to the receiver whose number it begins with.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
};

use anyhow::Context as _;
use clap::ValueEnum;
use quinn::{
    Connection, Incoming,
    udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState},
};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use serde::Serialize;
use tokio::{io::Interest, net::UdpSocket};
use tradewind_host::{Host, OsHost};
use tradewind_proto::ALPN_CLIENT;
use tradewind_trust::{Ca, tls};

/// Length of the receiver's number at the beginning of each packet.
pub(crate) const NUMBER: usize = 4;
/// A packet to the forwarder that begins with this tells that its sender is the receiver that follows.
pub(crate) const REGISTER: u32 = u32::MAX;

/// A packet to the reference on quinn that begins with this is for all receivers.
pub(crate) const EVERYBODY: u32 = u32::MAX - 1;
/// Senders have this number or greater ones: nobody sends to them.
pub(crate) const FIRST_SENDER: u32 = 1 << 16;

/// How a UDP forwarder receives and sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum UdpMode {
    /// `recvfrom`, `sendto`.
    Single,
    /// `recvmmsg`, `sendmmsg`.
    Batched,
    /// The same, and every packet is encrypted and decrypted once (AES-128-GCM), as QUIC has to.
    Sealed,
    /// GRO, GSO.
    Segmented,
}

/// Forwards until the process ends. Says its address first.
pub(crate) async fn udp_forwarder(mode: UdpMode) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    enlarge_buffers(&socket)?;
    println!("{}\nready", socket.local_addr()?);
    let mut receivers = Receivers::default();
    match mode {
        UdpMode::Single => one_by_one(&socket.into_std()?, &mut receivers),
        UdpMode::Batched => in_batches(&socket, &mut receivers, None).await,
        UdpMode::Sealed => in_batches(&socket, &mut receivers, Some(&key()?)).await,
        UdpMode::Segmented => in_segments(&socket, &mut receivers).await,
    }
}

/// 4 MiB each way, as a relay asks for, or what the kernel allows.
pub(crate) fn enlarge_buffers(socket: &UdpSocket) -> io::Result<()> {
    const BYTES: usize = 4 << 20;
    let state = UdpSocketState::new(socket.into())?;
    state.set_recv_buffer_size(socket.into(), BYTES)?;
    state.set_send_buffer_size(socket.into(), BYTES)
}

/// Where the receivers are, by number.
#[derive(Debug, Default)]
struct Receivers(HashMap<u32, SocketAddr>);

impl Receivers {
    /// Where a packet goes. `None` for those that are no data.
    fn of(&mut self, packet: &[u8], from: SocketAddr) -> Option<SocketAddr> {
        let number = number(packet)?;
        if number == REGISTER {
            self.0.insert(self::number(&packet[NUMBER..])?, from);
            return None;
        }
        self.0.get(&number).copied()
    }
}

/// The number at the beginning of a packet.
pub(crate) fn number(packet: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(packet.get(..NUMBER)?.try_into().ok()?))
}

fn one_by_one(socket: &std::net::UdpSocket, receivers: &mut Receivers) -> anyhow::Result<()> {
    socket.set_nonblocking(false)?;
    let mut buffer = [0; 2_048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        if let Some(to) = receivers.of(&buffer[..length], from) {
            socket.send_to(&buffer[..length], to)?;
        }
    }
}

fn key() -> anyhow::Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]);
    Ok(LessSafeKey::new(key.ok().context("no key")?))
}

/// Receives in batches, each datagram or each run of datagrams that the kernel has put together in a
/// buffer of its own.
struct Batches {
    state: UdpSocketState,
    size: usize,
    buffers: Vec<u8>,
    metas: [RecvMeta; BATCH_SIZE],
}

impl Batches {
    fn new(socket: &UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(socket.into())?;
        let size = state.gro_segments() * 1_500;
        Ok(Self {
            size,
            buffers: vec![0; BATCH_SIZE * size],
            metas: [RecvMeta::default(); BATCH_SIZE],
            state,
        })
    }

    /// Waits for the next batch.
    async fn next(
        &mut self,
        socket: &UdpSocket,
    ) -> io::Result<impl Iterator<Item = (&RecvMeta, &mut [u8])>> {
        let count = loop {
            socket.readable().await?;
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = {
                let mut chunks = self.buffers.chunks_mut(self.size);
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()))
            };
            let received = socket.try_io(Interest::READABLE, || {
                self.state.recv(socket.into(), &mut slices, &mut self.metas)
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result?,
            }
        };
        let buffers = self.buffers.chunks_mut(self.size);
        let got = self.metas.iter().zip(buffers).take(count);
        Ok(got.map(|(meta, buffer)| (meta, &mut buffer[..meta.len])))
    }
}

/// Tries to send until the socket has room for it.
async fn when_writable<T>(
    socket: &UdpSocket,
    mut send: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match socket.try_io(Interest::WRITABLE, &mut send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            result => return result,
        }
    }
}

async fn in_batches(
    socket: &UdpSocket,
    receivers: &mut Receivers,
    key: Option<&LessSafeKey>,
) -> anyhow::Result<()> {
    let mut batches = Batches::new(socket)?;
    loop {
        let mut out: Vec<(SocketAddrAny, _)> = Vec::with_capacity(BATCH_SIZE);
        for (meta, received) in batches.next(socket).await? {
            for packet in received.chunks_mut(meta.stride.max(1)) {
                if let Some(to) = receivers.of(packet, meta.addr) {
                    if let Some(key) = key {
                        through_aead(key, packet)?;
                    }
                    out.push((to.into(), [io::IoSlice::new(packet)]));
                }
            }
        }
        let mut none: Vec<_> = out.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: Vec<_> = out
            .iter()
            .zip(&mut none)
            .map(|((to, packet), none)| MMsgHdr::new_with_addr(to, packet, none))
            .collect();
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            let sent = when_writable(socket, || Ok(sendmmsg(socket, rest, SendFlags::empty())?));
            let sent = sent.await?;
            rest = &mut rest[sent..];
        }
    }
}

/// What QUIC has to do at a relay: open and seal each packet. The contents are the same afterwards.
fn through_aead(key: &LessSafeKey, packet: &mut [u8]) -> anyhow::Result<()> {
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut sealed = packet.to_vec();
    let done = key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed);
    done.ok().context("cannot seal")?;
    let opened = key.open_in_place(nonce(), Aad::empty(), &mut sealed);
    packet.copy_from_slice(opened.ok().context("cannot open")?);
    Ok(())
}

async fn in_segments(socket: &UdpSocket, receivers: &mut Receivers) -> anyhow::Result<()> {
    let sending = UdpSocketState::new(socket.into())?;
    let mut batches = Batches::new(socket)?;
    loop {
        for (meta, received) in batches.next(socket).await? {
            // What the kernel has put together came from one sender: here that is to one receiver.
            let Some(destination) = receivers.of(received, meta.addr) else {
                continue;
            };
            let stride = meta.stride.max(1);
            for contents in received.chunks(stride * sending.max_gso_segments()) {
                let transmit = Transmit {
                    destination,
                    ecn: None,
                    contents,
                    segment_size: (contents.len() > stride).then_some(stride),
                    src_ip: None,
                };
                when_writable(socket, || sending.try_send(socket.into(), &transmit)).await?;
            }
        }
    }
}

/// The reference on quinn: a task for each connection, which hands on what comes. `dir` is that of a
/// development CA, which signs its certificate.
pub(crate) async fn quinn_relay(dir: &Path) -> anyhow::Result<()> {
    let host: Arc<dyn Host> = Arc::new(OsHost);
    let ca = Ca::load(dir)?;
    let day = std::time::Duration::from_secs(86_400);
    let identity = ca.issue_relay("reference-1", &[], host.wall_clock(), day)?;
    let clock = tls::host_clock(host.clone());
    let server = tls::client_port_server_config(&identity, &[ALPN_CLIENT], clock)?;
    let server = quinn::ServerConfig::with_crypto(tls::quic_server(server)?);
    let endpoint = host.quic_endpoint((Ipv4Addr::LOCALHOST, 0).into(), Some(server))?;
    println!("{}\nready", endpoint.local_addr()?);
    let receivers: Arc<Mutex<BTreeMap<u32, Connection>>> = Arc::default();
    while let Some(incoming) = endpoint.accept().await {
        let receivers = receivers.clone();
        host.spawn(async move {
            if let Err(error) = serve(incoming, &receivers).await {
                eprintln!("a connection has ended: {error:#}");
            }
        });
    }
    Ok(())
}

/// Tells the reference on quinn the number of a connection.
pub(crate) async fn register(connection: &Connection, number: u32) -> anyhow::Result<()> {
    let (mut hello, mut answer) = connection.open_bi().await?;
    hello.write_all(&number.to_be_bytes()).await?;
    hello.finish()?;
    answer.read_to_end(16).await?;
    Ok(())
}

/// One connection: it says its number on a stream, then sends.
async fn serve(
    incoming: Incoming,
    receivers: &Mutex<BTreeMap<u32, Connection>>,
) -> anyhow::Result<()> {
    let connection = incoming.await?;
    let (mut answer, mut hello) = connection.accept_bi().await?;
    let mut number = [0; NUMBER];
    hello.read_exact(&mut number).await?;
    let lock = || {
        receivers
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    };
    lock().insert(u32::from_be_bytes(number), connection.clone());
    answer.write_all(b"ok").await?;
    answer.finish()?;
    loop {
        let packet = connection.read_datagram().await?;
        let receivers = lock();
        let to = match self::number(&packet) {
            Some(EVERYBODY) => receivers.range(..FIRST_SENDER),
            Some(number) => receivers.range(number..=number),
            None => continue,
        };
        for (_, to) in to {
            // Too large before the path's limit is found out: lost, as on any path.
            let _ = to.send_datagram(packet.clone());
        }
    }
}
