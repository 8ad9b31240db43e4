//! The least that can fan out, to compare with: a minimal relay on async quinn, one sender, and
//! receivers that all get what it sends.

use std::sync::Arc;

use anyhow::Context as _;
use quinn::Connection;
use tempfile::TempDir;
use tradewind_host::{Host, OsHost};
use tradewind_trust::{Ca, EDGE_NAME};

use crate::{
    data_plane::between::{self, EVERYBODY, FIRST_SENDER, NUMBER},
    network::{KEEP_ALIVE, Process, myself, socket},
    raw::{Arrivals, PER_SOCKET, Receivers, receivers_on_a_thread},
};

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
        let ca = Ca::create("bench", OsHost.wall_clock())?;
        ca.save(dir.path(), false)?;
        let (process, address) =
            Process::start_reference(myself()?.arg("quinn-relay").arg(dir.path()))?;
        let roots = ca.roots();
        let sender = socket(&roots, KEEP_ALIVE)?
            .connect(address, EDGE_NAME)?
            .await?;
        between::register(&sender, FIRST_SENDER).await?;
        let all = arrivals.clone();
        let receivers = receivers_on_a_thread("quinn-receivers", Arc::default(), async move {
            let host: &dyn Host = &OsHost;
            let mut current = None;
            for (n, number) in (0..count).zip(0..FIRST_SENDER) {
                if n % PER_SOCKET == 0 {
                    current = Some(socket(&roots, KEEP_ALIVE)?);
                }
                let socket = current.as_ref().context("there is a socket")?;
                let connection = socket.connect(address, EDGE_NAME)?.await?;
                between::register(&connection, number).await?;
                let all = all.clone();
                host.spawn(async move {
                    while let Ok(packet) = connection.read_datagram().await {
                        all.note(packet.get(NUMBER..).unwrap_or_default());
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
        let packet = [&EVERYBODY.to_be_bytes(), body].concat();
        Ok(self.sender.send_datagram(packet.into())?)
    }
}
