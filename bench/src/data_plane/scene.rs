//! A sender's process, a receiver's, and one between them.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::ValueEnum as _;
use serde::de::DeserializeOwned;
use tradewind_host::{Host, OsHost};
use tradewind_trust::Ca;

use super::{
    between::UdpMode,
    ends::{Arrived, Door, Sent},
};
use crate::{
    network::{Network, Process, myself},
    threads::alone,
};

/// So long after the last packet was sent nothing is under way any more.
const SETTLE: Duration = Duration::from_millis(300);

/// What is between sender and receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    Udp(UdpMode),
    Quinn,
    Tradewind,
}

impl Through {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Udp(UdpMode::Single) => "udp",
            Self::Udp(UdpMode::Batched) => "udp, mmsg",
            Self::Udp(UdpMode::Sealed) => "udp, mmsg, aead",
            Self::Udp(UdpMode::Segmented) => "udp, gso and gro",
            Self::Quinn => "quinn",
            Self::Tradewind => "tradewind",
        }
    }

    fn door(self) -> Door {
        match self {
            Self::Udp(_) => Door::Udp,
            Self::Quinn => Door::Quinn,
            Self::Tradewind => Door::Tradewind,
        }
    }
}

/// What is sent in a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Of each packet's payload.
    pub(crate) bytes: u16,
    /// Packets per second over all pairs; 0: as many as possible.
    pub(crate) rate: u32,
}

/// What a block has shown.
pub(crate) struct Block {
    pub(crate) sent: u64,
    pub(crate) arrived: Arrived,
    /// How long was sent, seconds.
    pub(crate) seconds: f64,
    /// Work of the process between, seconds.
    pub(crate) cpu: f64,
    /// Its memory after that, bytes.
    pub(crate) memory: u64,
}

/// The processes; they end with this.
pub(crate) struct Scene {
    through: Through,
    sender: End,
    receiver: End,
    between: Between,
}

enum Between {
    Relay(Network),
    Reference(Process),
}

impl Between {
    fn process(&self) -> &Process {
        match self {
            Self::Relay(network) => network.relay(),
            Self::Reference(process) => process,
        }
    }
}

impl Scene {
    /// Sets up `pairs` of sender and receiver.
    pub(crate) fn start(through: Through, pairs: u32) -> anyhow::Result<Self> {
        // Both ends have read it when they are ready.
        let temporary = tempfile::tempdir().context("no temporary directory")?;
        let (between, at, dir) = match through {
            Through::Tradewind => {
                let network = alone(Network::start())?;
                let entrance = network.entrance();
                let at = entrance.edge();
                (Between::Relay(network), at, entrance.dir().to_owned())
            }
            Through::Quinn | Through::Udp(_) => {
                let dir = temporary.path().to_owned();
                let mut command = myself()?;
                if let Through::Udp(mode) = through {
                    let mode = mode.to_possible_value().context("no mode is hidden")?;
                    command.args(["udp-forwarder", mode.get_name()]);
                } else {
                    Ca::create("bench", OsHost.wall_clock())?.save(&dir, false)?;
                    command.arg("quinn-relay").arg(&dir);
                }
                let (process, at) = Process::start_reference(&mut command)?;
                (Between::Reference(process), at, dir)
            }
        };
        // Receivers first: senders look them up.
        let receiver = End::start("receiver", through.door(), at, &dir, pairs)?;
        let sender = End::start("sender", through.door(), at, &dir, pairs)?;
        Ok(Self {
            through,
            sender,
            receiver,
            between,
        })
    }

    pub(crate) fn through(&self) -> Through {
        self.through
    }

    /// One block of packets.
    pub(crate) fn measure(&mut self, load: Load, duration: Duration) -> anyhow::Result<Block> {
        let process = self.between.process();
        let _: String = self.receiver.ask("begin")?;
        let before = process.cpu()?;
        let order = format!("run {} {} {}", load.bytes, load.rate, duration.as_millis());
        let Sent { sent, seconds } = self.sender.ask(&order)?;
        std::thread::sleep(SETTLE);
        let cpu = (process.cpu()? - before).as_secs_f64();
        let arrived: Arrived = self.receiver.ask("end")?;
        ensure!(
            arrived.delivered > 0,
            "nothing came through {}",
            self.through.name()
        );
        Ok(Block {
            sent,
            arrived,
            seconds,
            cpu,
            memory: process.memory()?,
        })
    }
}

/// A process that does what it is told; it ends with this.
struct End {
    name: &'static str,
    process: Child,
    tell: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
}

impl End {
    fn start(
        name: &'static str,
        door: Door,
        at: SocketAddr,
        dir: &Path,
        count: u32,
    ) -> anyhow::Result<Self> {
        let door = door.to_possible_value().context("no door is hidden")?;
        let mut process = myself()?
            .arg(name)
            .args(["--door", door.get_name(), "--at", &at.to_string()])
            .arg("--dir")
            .arg(dir)
            .args(["--count", &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start a {name}"))?;
        let tell = process.stdin.take().context("it has no standard input")?;
        let told = process.stdout.take().context("it has no standard output")?;
        let mut end = Self {
            name,
            process,
            tell,
            told: BufReader::new(told).lines(),
        };
        let ready = end.line()?;
        ensure!(ready == "ready", "a {name} says {ready:?}");
        Ok(end)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let line = self.told.next();
        Ok(line.with_context(|| format!("a {} has ended too early", self.name))??)
    }

    fn ask<T: DeserializeOwned>(&mut self, what: &str) -> anyhow::Result<T> {
        writeln!(self.tell, "{what}")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("a {} says {line:?}", self.name))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
