//! A real controller and a real relay, each a process of its own, on loopback.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use tempfile::TempDir;
use tradewind_client::{Client, ClientConfig, Discovery};
use tradewind_host::{Host, OsHost};
use tradewind_trust::{Claims, Roots, TokenSigner};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// The processes; they end with this.
pub(crate) struct Network {
    dir: TempDir,
    edge: SocketAddr,
    _relay: Process,
    _controller: Process,
}

impl Network {
    /// Starts both and waits until the relay has a plan.
    pub(crate) async fn start() -> anyhow::Result<Self> {
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
                .args(["--name", "bench-1", "--controller", &listen.to_string()]),
            "Next",
        )?;
        let edge = address_after(&lines, "clients ")?;
        let admin = address_after(&lines, "http://")?;
        wait_until_ready(&relay_program, admin).await?;
        Ok(Self {
            dir,
            edge,
            _relay: relay,
            _controller: controller,
        })
    }

    /// What a client needs to enter.
    pub(crate) fn entrance(&self) -> Entrance {
        Entrance {
            dir: self.dir.path().to_owned(),
            edge: self.edge,
        }
    }
}

/// The way in. Holds no process: these must end when the benchmark does, whoever still runs.
#[derive(Debug, Clone)]
pub(crate) struct Entrance {
    dir: PathBuf,
    edge: SocketAddr,
}

impl Entrance {
    /// A client's session at the relay.
    pub(crate) async fn client(&self, user: &str) -> anyhow::Result<Client> {
        connect(&self.dir, self.edge, user).await
    }
}

async fn connect(dir: &Path, edge: SocketAddr, user: &str) -> anyhow::Result<Client> {
    let kid = std::fs::read_to_string(dir.join("token.kid")).context("no token.kid")?;
    let signer = TokenSigner::load(&dir.join("token.key"))?.with_kid(kid.trim());
    let roots = Roots::load(&dir.join("ca.pem"))?;
    let now = OsHost
        .wall_clock()
        .duration_since(std::time::UNIX_EPOCH)
        .context("the clock stands before 1970")?
        .as_secs();
    let token = signer.sign(&Claims {
        app: "bench".to_owned(),
        user: user.to_owned(),
        iat: now,
        exp: now + 86_400,
        ..Claims::default()
    })?;
    let discovery = Discovery::from(vec![edge]);
    let config = ClientConfig::new(discovery, token, roots.certs().to_vec());
    Ok(Client::connect(config, Arc::new(OsHost)).await?)
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

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
