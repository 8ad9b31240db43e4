//! The ways a packet can take from the sender to the receiver, both in this process.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tradewind_client::{Class, Client, Flow, LookupError};
use tradewind_host::{Host, OsHost};
use tradewind_trust::{Ca, tls};

use crate::{
    data_plane::between::{NUMBER, REGISTER},
    network::{Entrance, Process, myself},
    threads::on_a_thread,
};

/// How a packet looks: when it was sent (nanoseconds since `origin`), and padding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packets {
    pub(crate) origin: Instant,
    pub(crate) bytes: usize,
}

impl Packets {
    /// A packet that is sent now.
    fn stamped(self) -> Bytes {
        let mut packet = BytesMut::zeroed(self.bytes);
        packet[..8].copy_from_slice(&self.now().to_be_bytes());
        packet.freeze()
    }

    /// How long a packet that comes now was on its way, nanoseconds.
    fn delay(self, packet: &[u8]) -> Option<u64> {
        let sent = u64::from_be_bytes(packet.get(..8)?.try_into().ok()?);
        self.now().checked_sub(sent)
    }

    fn now(self) -> u64 {
        let host: &dyn Host = &OsHost;
        u64::try_from((host.now() - self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Something that sends, and whose receiver writes down delays.
pub(crate) trait Way {
    /// Sends one packet now.
    fn send(&mut self) -> anyhow::Result<()>;

    /// Delays of the packets that came since the last call, nanoseconds.
    fn take_delays(&mut self) -> Vec<u64>;
}

/// Plain UDP through a plain forwarder in a process of its own.
pub(crate) struct Bare {
    packets: Packets,
    socket: UdpSocket,
    forwarder: SocketAddr,
    delays: std::sync::mpsc::Receiver<u64>,
    process: Process,
}

impl Bare {
    pub(crate) fn start(packets: Packets) -> anyhow::Result<Self> {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (process, forwarder) =
            Process::start_reference(myself()?.args(["udp-forwarder", "single"]))?;
        receiver.send_to(&[REGISTER.to_be_bytes(), [0; NUMBER]].concat(), forwarder)?;
        let (sender, delays) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while let Ok(length) = receiver.recv(&mut buffer) {
                if let Some(delay) = packets.delay(&buffer[NUMBER.min(length)..length])
                    && sender.send(delay).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self {
            packets,
            socket: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
            forwarder,
            delays,
            process,
        })
    }
}

impl Bare {
    /// The forwarder's process.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }
}

impl Way for Bare {
    fn send(&mut self) -> anyhow::Result<()> {
        let packet = [&[0; NUMBER], &self.packets.stamped()[..]].concat();
        self.socket.send_to(&packet, self.forwarder)?;
        Ok(())
    }

    fn take_delays(&mut self) -> Vec<u64> {
        self.delays.try_iter().collect()
    }
}

/// Two QUIC connections' worth of nothing between: sender and receiver talk directly. Shows what
/// the two ends of a session cost without any relay.
pub(crate) struct Direct {
    packets: Packets,
    connection: quinn::Connection,
    delays: mpsc::UnboundedReceiver<u64>,
    _endpoint: quinn::Endpoint,
}

impl Direct {
    pub(crate) async fn start(packets: Packets) -> anyhow::Result<Self> {
        const ALPN: &[u8] = b"bench";
        let host: Arc<dyn Host> = Arc::new(OsHost);
        let now = host.wall_clock();
        let clock = || tls::host_clock(host.clone());
        let ca = Ca::create("bench", now)?;
        let identity = ca.issue_relay("bench-1", &[], now, Duration::from_secs(86_400))?;
        let server = tls::client_port_server_config(&identity, &[ALPN], clock())?;
        let server = quinn::ServerConfig::with_crypto(tls::quic_server(server)?);
        let (told, address) = std::sync::mpsc::channel();
        let (sender, delays) = mpsc::unbounded_channel();
        on_a_thread("receiver", async move {
            let host: &dyn Host = &OsHost;
            let endpoint = host.quic_endpoint((Ipv4Addr::LOCALHOST, 0).into(), Some(server))?;
            told.send(endpoint.local_addr()?)
                .map_err(io::Error::other)?;
            let incoming = endpoint.accept().await.context("nobody came")?;
            let connection = incoming.await?;
            while let Ok(packet) = connection.read_datagram().await {
                if let Some(delay) = packets.delay(&packet)
                    && sender.send(delay).is_err()
                {
                    break;
                }
            }
            Ok(())
        })?;
        let address = address.recv().context("the receiver did not start")?;
        let endpoint = host.quic_endpoint((Ipv4Addr::LOCALHOST, 0).into(), None)?;
        let client = tls::client_config(&ca.roots(), &[ALPN], clock())?;
        let client = quinn::ClientConfig::new(tls::quic_client(client)?);
        let connection = endpoint
            .connect_with(client, address, tradewind_trust::EDGE_NAME)?
            .await?;
        Ok(Self {
            packets,
            connection,
            delays,
            _endpoint: endpoint,
        })
    }
}

impl Way for Direct {
    fn send(&mut self) -> anyhow::Result<()> {
        Ok(self.connection.send_datagram(self.packets.stamped())?)
    }

    fn take_delays(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.delays.try_recv().ok()).collect()
    }
}

/// Two client sessions at one relay.
pub(crate) struct Relayed {
    packets: Packets,
    flow: Flow,
    delays: mpsc::UnboundedReceiver<u64>,
    refused: Arc<AtomicUsize>,
    _client: Client,
}

impl Relayed {
    pub(crate) async fn start(packets: Packets, entrance: Entrance) -> anyhow::Result<Self> {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (sender, delays) = mpsc::unbounded_channel();
        let theirs = entrance.clone();
        on_a_thread("receiver", async move {
            let client = theirs.client("receiver").await?;
            ready.send(()).map_err(io::Error::other)?;
            while let Some(media) = client.recv_media().await {
                if let Some(delay) = packets.delay(&media.payload)
                    && sender.send(delay).is_err()
                {
                    break;
                }
            }
            Ok(())
        })?;
        let client = entrance.client("sender").await?;
        is_ready.recv().context("the receiver did not start")?;
        let flow = open_flow(&client).await?;
        Ok(Self {
            packets,
            flow,
            delays,
            refused: Arc::default(),
            _client: client,
        })
    }
}

impl Way for Relayed {
    fn send(&mut self) -> anyhow::Result<()> {
        if let Err(error) = self.flow.send(self.packets.stamped()) {
            // Counted as lost; the first one is worth a word.
            if self.refused.fetch_add(1, Relaxed) == 0 {
                eprintln!("a packet was not sent: {error}");
            }
        }
        Ok(())
    }

    fn take_delays(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.delays.try_recv().ok()).collect()
    }
}

/// The receiver has only just been announced: "offline" may be true for a moment.
async fn open_flow(client: &Client) -> anyhow::Result<Flow> {
    let host: &dyn Host = &OsHost;
    for _ in 0..50 {
        match client.open_flow("receiver", Class::Audio).await {
            Err(LookupError::Offline) => host.sleep(Duration::from_millis(100)).await,
            result => return Ok(result?),
        }
    }
    anyhow::bail!("the receiver is not online")
}
