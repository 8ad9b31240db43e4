//! A real controller and a real relay, each a process of its own, on loopback.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tradewind_client::{Client, ClientConfig, Discovery};
use tradewind_host::{Host, OsHost};
use tradewind_proto::ALPN_CLIENT;
use tradewind_trust::{Claims, Roots, TokenSigner, tls};

const READY_WITHIN: Duration = Duration::from_secs(20);
/// Time between two signs of life of a session.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The processes; they end with this.
pub(crate) struct Network {
    dir: TempDir,
    edge: SocketAddr,
    admin: SocketAddr,
    relay: Process,
    _controller: Process,
}

impl Network {
    /// Starts both and waits until the relay has a plan.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// The same with further flags for the relay.
    pub(crate) async fn start_with(flags: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let dev = ["--dev", "--dev-dir"];
        let (controller, lines) = Process::start(
            Command::new(beside_me("tradewind-controller")?)
                .args(dev)
                .arg(dir.path())
                .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]),
            "Next",
        )?;
        let listen = address_after(&lines, "relays connect to ")?;
        let relay_program = beside_me("tradewind-relay")?;
        let (relay, lines) = Process::start(
            Command::new(&relay_program)
                .args(dev)
                .arg(dir.path())
                .args(["--name", "bench-1", "--controller", &listen.to_string()])
                // Clients come as fast as they can.
                .args(["--handshakes-per-s", "1000000"])
                .args(flags),
            "Next",
        )?;
        let edge = address_after(&lines, "clients ")?;
        let admin = address_after(&lines, "http://")?;
        wait_until_ready(&relay_program, admin).await?;
        Ok(Self {
            dir,
            edge,
            admin,
            relay,
            _controller: controller,
        })
    }

    /// The relay's process.
    pub(crate) fn relay(&self) -> &Process {
        &self.relay
    }

    /// The value of a counter or gauge of the relay, summed over its labels that contain `label`.
    pub(crate) async fn relay_metric(&self, name: &str, label: &str) -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect(self.admin).await?;
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.admin
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let values = answer
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '))
            .filter(|(labels, _)| labels.contains(label))
            .filter_map(|(_, value)| value.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// What a client needs to enter.
    pub(crate) fn entrance(&self) -> Entrance {
        Entrance::new(self.dir.path(), self.edge)
    }
}

/// The way in. Holds no process: these must end when the benchmark does, whoever still runs.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    dir: PathBuf,
    edge: SocketAddr,
    alive_every: Duration,
}

impl Entrance {
    /// To a relay whose network's keys are in `dir`.
    pub(crate) fn new(dir: &Path, edge: SocketAddr) -> Self {
        Self {
            dir: dir.to_owned(),
            edge,
            alive_every: KEEP_ALIVE,
        }
    }

    /// With so much time between two signs of life.
    pub(crate) fn alive_every(mut self, every: Duration) -> Self {
        self.alive_every = every;
        self
    }

    /// Where the network's keys are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A socket for one or many sessions.
    pub(crate) fn socket(&self) -> anyhow::Result<quinn::Endpoint> {
        socket(&self.roots()?, self.alive_every)
    }

    /// A client's session at the relay.
    pub(crate) async fn client(&self, user: &str) -> anyhow::Result<Client> {
        let discovery = Discovery::from(vec![self.edge]);
        let roots = self.roots()?.certs().to_vec();
        let config = ClientConfig::new(discovery, token(&self.signer()?, user)?, roots);
        Ok(Client::connect(config, Arc::new(OsHost)).await?)
    }

    /// The relay's client port.
    pub(crate) fn edge(&self) -> SocketAddr {
        self.edge
    }

    /// Whom clients trust.
    pub(crate) fn roots(&self) -> anyhow::Result<Roots> {
        Ok(Roots::load(&self.dir.join("ca.pem"))?)
    }

    /// What makes tokens.
    pub(crate) fn signer(&self) -> anyhow::Result<TokenSigner> {
        let kid = std::fs::read_to_string(self.dir.join("token.kid")).context("no token.kid")?;
        Ok(TokenSigner::load(&self.dir.join("token.key"))?.with_kid(kid.trim()))
    }
}

/// A socket for connections that trust these, with so much time between two signs of life.
pub(crate) fn socket(roots: &Roots, alive_every: Duration) -> anyhow::Result<quinn::Endpoint> {
    let host: Arc<dyn Host> = Arc::new(OsHost);
    let tls = tls::client_config(roots, &[ALPN_CLIENT], tls::host_clock(host.clone()))?;
    let mut config = quinn::ClientConfig::new(tls::quic_client(tls)?);
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(alive_every));
    config.transport_config(Arc::new(transport));
    let mut endpoint = host.quic_endpoint((Ipv4Addr::LOCALHOST, 0).into(), None)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// A token for a day.
pub(crate) fn token(signer: &TokenSigner, user: &str) -> anyhow::Result<String> {
    let now = OsHost
        .wall_clock()
        .duration_since(std::time::UNIX_EPOCH)
        .context("the clock stands before 1970")?
        .as_secs();
    Ok(signer.sign(&Claims {
        app: "bench".to_owned(),
        user: user.to_owned(),
        iat: now,
        exp: now + 86_400,
        send: vec!["*".to_owned()],
        recv: vec!["*".to_owned()],
        ..Claims::default()
    })?)
}

async fn wait_until_ready(relay: &Path, admin: SocketAddr) -> anyhow::Result<()> {
    let host: &dyn Host = &OsHost;
    let until = host.now() + READY_WITHIN;
    loop {
        let output = Command::new(relay)
            .args(["health", "--admin", &admin.to_string()])
            .output()
            .context("cannot ask the relay for its health")?;
        if output.status.success() {
            return Ok(());
        }
        if host.now() > until {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!(
                "the relay is not ready after {READY_WITHIN:?}: {}",
                why.trim()
            );
        }
        host.sleep(Duration::from_millis(100)).await;
    }
}

/// A process that ends with this value.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it and gives what it says up to a line that contains `until`.
    pub(crate) fn start(command: &mut Command, until: &str) -> anyhow::Result<(Self, Vec<String>)> {
        let name = command.get_program().display().to_string();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("it has no standard output")?;
        let process = Self(child);
        let mut lines = Vec::new();
        let mut output = BufReader::new(stdout).lines();
        for line in &mut output {
            let line = line.with_context(|| format!("cannot read what {name} says"))?;
            if line.contains(until) {
                // Read on, so that it is never held back by a full pipe.
                std::thread::spawn(move || output.for_each(drop));
                return Ok((process, lines));
            }
            lines.push(line);
        }
        Err(anyhow!("{name} has ended before it was ready"))
    }
}

impl Process {
    /// Starts something that a relay is compared with, and gives the address that it says first.
    pub(crate) fn start_reference(command: &mut Command) -> anyhow::Result<(Self, SocketAddr)> {
        let (process, lines) = Self::start(command, "ready")?;
        let address = lines.first().context("it does not say its address")?;
        Ok((process, address.parse()?))
    }

    /// What all its threads have worked so far (Linux: `schedstat`).
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        crate::threads::process_cpu_time(self.0.id())
    }

    /// Memory that it holds, bytes (Linux: `VmRSS`).
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))
            .context("this needs Linux")?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .context("the kernel does not say how much memory the process holds")?;
        Ok(kib << 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program.
pub(crate) fn myself() -> anyhow::Result<Command> {
    let me = std::env::current_exe().context("where is this program?")?;
    Ok(Command::new(me))
}

fn beside_me(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()
        .context("where is this program?")?
        .with_file_name(program);
    if !path.exists() {
        bail!(
            "{} is not there: run `cargo build --release --workspace` first",
            path.display()
        );
    }
    Ok(path)
}

/// The address that follows `word` in one of `lines`.
fn address_after(lines: &[String], word: &str) -> anyhow::Result<SocketAddr> {
    lines
        .iter()
        .filter_map(|line| Some(line.split_once(word)?.1.trim_start()))
        .find_map(|rest| {
            let end = rest.find([' ', ',']).unwrap_or(rest.len());
            rest[..end].parse().ok()
        })
        .with_context(|| format!("no address after {word:?} in {lines:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_what_the_services_say() {
        let lines = [
            "Tradewind controller, development: relays connect to 127.0.0.1:71 (UDP), HTTP API at http://127.0.0.1:72",
            "  clients  127.0.0.1:73",
        ]
        .map(str::to_owned);
        let port = |word| address_after(&lines, word).unwrap().port();
        assert_eq!(port("relays connect to "), 71);
        assert_eq!(port("http://"), 72);
        assert_eq!(port("clients "), 73);
        assert!(address_after(&lines, "links ").is_err());
    }
}
