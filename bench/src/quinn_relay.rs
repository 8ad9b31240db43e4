//! The least that can fan out, to compare with: datagrams of the first connection go to all others,
//! over async quinn as it is.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use quinn::Connection;
use tempfile::TempDir;
use tradewind_host::{Host, OsHost};
use tradewind_proto::ALPN_CLIENT;
use tradewind_trust::{Ca, EDGE_NAME, Roots, tls};

use crate::{
    network::{KEEP_ALIVE, Process, socket},
    raw::{Arrivals, PER_SOCKET, Receivers, receivers_on_a_thread},
};

const ROOTS: &str = "roots.pem";

/// One in a process of its own.
pub(crate) struct QuinnRelay {
    process: Process,
    sender: Connection,
    _receivers: Receivers,
    _dir: TempDir,
}

impl QuinnRelay {
    /// Starts it, with a sender and receivers that note what comes.
    pub(crate) async fn start(count: usize, arrivals: &Arc<Arrivals>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let me = std::env::current_exe().context("where is this program?")?;
        let path = dir.path().join(ROOTS);
        let (process, lines) =
            Process::start(Command::new(me).arg("quinn-relay").arg(&path), "ready")?;
        let address: SocketAddr = lines.first().context("it says nothing")?.parse()?;
        let roots = Roots::load(&path)?;
        let sender = socket(&roots, KEEP_ALIVE)?
            .connect(address, EDGE_NAME)?
            .await?;
        let all = arrivals.clone();
        let receivers = receivers_on_a_thread("quinn-receivers", Arc::default(), async move {
            let host: &dyn Host = &OsHost;
            let mut current = None;
            for n in 0..count {
                if n % PER_SOCKET == 0 {
                    current = Some(socket(&roots, KEEP_ALIVE)?);
                }
                let socket = current.as_ref().context("there is a socket")?;
                let connection = socket.connect(address, EDGE_NAME)?.await?;
                let all = all.clone();
                host.spawn(async move {
                    while let Ok(packet) = connection.read_datagram().await {
                        all.note(&packet);
                    }
                });
            }
            Ok(())
        })?;
        Ok(Self {
            process,
            sender,
            _receivers: receivers,
            _dir: dir,
        })
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Sends a datagram to all.
    pub(crate) fn send(&self, body: &[u8]) -> anyhow::Result<()> {
        Ok(self.sender.send_datagram(body.to_vec().into())?)
    }
}

/// The whole of it: writes down whom to trust, says its address, then hands on what comes.
pub(crate) fn run(roots: &Path) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(serve(roots))
}

async fn serve(roots: &Path) -> anyhow::Result<()> {
    let host: Arc<dyn Host> = Arc::new(OsHost);
    let now = host.wall_clock();
    let ca = Ca::create("bench", now)?;
    std::fs::write(roots, ca.certificate_pem())?;
    let identity = ca.issue_relay("bench-1", &[], now, Duration::from_secs(86_400))?;
    let clock = tls::host_clock(host.clone());
    let server = tls::client_port_server_config(&identity, &[ALPN_CLIENT], clock)?;
    let server = quinn::ServerConfig::with_crypto(tls::quic_server(server)?);
    let endpoint = host.quic_endpoint((Ipv4Addr::LOCALHOST, 0).into(), Some(server))?;
    println!("{}\nready", endpoint.local_addr()?);
    let members: Arc<Mutex<Vec<Connection>>> = Arc::default();
    let mut sender = None;
    while let Some(incoming) = endpoint.accept().await {
        let connection = incoming.await?;
        if sender.is_some() {
            members
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .push(connection);
            continue;
        }
        sender = Some(connection.clone());
        let members = members.clone();
        host.spawn(async move {
            while let Ok(packet) = connection.read_datagram().await {
                let members = members.lock().unwrap_or_else(|e| e.into_inner());
                for member in members.iter() {
                    // What is too large for a path is lost.
                    let _ = member.send_datagram(packet.clone());
                }
            }
        });
    }
    Ok(())
}
