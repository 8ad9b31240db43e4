//! `tradewind-bench probing`: what the links of one relay cost while nothing goes over them.
//!
//! One real relay on threads of its own, a real QUIC link to every other relay of the network, over
//! loopback. The others have that one link each, so that those which are no neighbours probe it once
//! a second, and not every 9.5 s as with a thousand links: 100 of them are as much work as 947 of a
//! full mesh. Hence the default of 153 relays, which stand for 1,000. The arithmetic that it is
//! compared with is in `routing/src/budget.rs`.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use prost::Message as _;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tradewind_host::{Host, OsHost};
use tradewind_proto::{
    ALPN_CONTROL, FrameReader, MAX_CONTROL_FRAME,
    control::{
        Activate, ControllerToRelay, PlanName, PlanPart, ProfileTable, Register, Registered,
        RelayInfo, RelayList, RelayToController, TokenKeys, TreeTable, controller_to_relay,
        relay_to_controller,
    },
    frame_message,
};
use tradewind_relay::{AppRates, Placement, Relay, RelaySettings};
use tradewind_trust::{Ca, tls};

use crate::threads::{cpu_time, on_a_thread};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// The measured relay: the lowest name dials.
const HUB: usize = 0;
/// Of the threads that only the measured relay has: its shard's, and its control task's.
const THREADS: [&str; 2] = ["shard-0", "hub-control"];
/// How long all links may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(180);
/// Links that have just come up are probed fast for a while.
const SETTLE: Duration = Duration::from_secs(30);
/// IPv4 and UDP, of each packet.
const OVERHEAD_BYTES: u64 = 28;

/// What the links of one relay cost while nothing goes over them.
#[derive(Debug, Args)]
pub(crate) struct ProbingArgs {
    /// Relays in the network. 153 make the measured one send and receive as many probes as in a full
    /// mesh of 1,000.
    #[arg(long, default_value_t = 153, value_parser = clap::value_parser!(u16).range(2..=2_000))]
    relays: u16,
    /// How many of the others are in the plan as next hops: they and the relay want these links fast.
    /// 52 are all that the budget allows.
    #[arg(long, default_value_t = 52)]
    neighbours: u16,
    /// How long to measure.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    relays: usize,
    neighbours: usize,
    seconds: f64,
    links_up: usize,
    /// Links that went down while measuring.
    links_lost: usize,
    /// Of one core, shard and control task together, percent.
    cpu_percent: f64,
    packets_sent_per_s: f64,
    packets_received_per_s: f64,
    /// IPv4 and UDP included.
    links_sent_kbit_s: f64,
    links_received_kbit_s: f64,
    /// What the relay told the controller, by its messages' length.
    reports_kbit_s: f64,
}

pub(crate) fn run(args: &ProbingArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start a runtime")?
        .block_on(measure(args))
}

async fn measure(args: &ProbingArgs) -> anyhow::Result<()> {
    let host: Arc<dyn Host> = Arc::new(OsHost);
    let relays = usize::from(args.relays);
    let neighbours = usize::from(args.neighbours).min(relays - 1);
    let now = host.wall_clock();
    let ca = Ca::create("bench", now)?;
    let controller = Controller::start(&*host, &ca)?;
    let hub = start_hub(settings(HUB, &ca, &controller)?)?;
    let mut others = Vec::with_capacity(relays - 1);
    for index in 1..relays {
        let settings = settings(index, &ca, &controller)?;
        others.push(Relay::start(settings, host.clone(), Placement::HostTasks).await?);
    }
    let until = host.now() + UP_WITHIN;
    controller.all_there(relays, until).await?;
    controller.introduce(relays);
    loop {
        let up = links_up(&hub).await;
        if !args.json {
            eprint!("\r{up} of {} links up ", relays - 1);
        }
        if up == relays - 1 {
            break;
        }
        ensure!(
            host.now() < until,
            "only {up} links came up in {UP_WITHIN:?}"
        );
        host.sleep(Duration::from_secs(1)).await;
    }
    controller.plan(relays, neighbours);
    host.sleep(SETTLE).await;

    let before = Sample::take(&hub, &controller).await?;
    let begun = host.now();
    host.sleep(Duration::from_secs(args.seconds)).await;
    let after = Sample::take(&hub, &controller).await?;
    let seconds = (host.now() - begun).as_secs_f64();
    let kbit_s = |bytes: u64| bytes as f64 * 8.0 / 1e3 / seconds;
    let packets = [0, 1].map(|way| after.packets[way] - before.packets[way]);
    let links = [0, 1].map(|way| {
        let payload = after.bytes[way] - before.bytes[way];
        kbit_s(payload + packets[way] * OVERHEAD_BYTES)
    });
    let report = Report {
        relays,
        neighbours,
        seconds,
        links_up: after.links_up,
        links_lost: before.links_up.saturating_sub(after.links_up),
        cpu_percent: (after.cpu - before.cpu).as_secs_f64() / seconds * 100.0,
        packets_sent_per_s: packets[0] as f64 / seconds,
        packets_received_per_s: packets[1] as f64 / seconds,
        links_sent_kbit_s: links[0],
        links_received_kbit_s: links[1],
        reports_kbit_s: kbit_s(after.reported - before.reported),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    eprint!("\r");
    println!(
        "{} relays, {} of them neighbours in the plan; {:.0} s of rest\n\n\
         links up         {} ({} lost)\n\
         processor        {:.2} % of a core\n\
         packets          {:.0}/s sent, {:.0}/s received\n\
         links            {:.0} kbit/s sent, {:.0} kbit/s received\n\
         reports          {:.0} kbit/s",
        report.relays,
        report.neighbours,
        report.seconds,
        report.links_up,
        report.links_lost,
        report.cpu_percent,
        report.packets_sent_per_s,
        report.packets_received_per_s,
        report.links_sent_kbit_s,
        report.links_received_kbit_s,
        report.reports_kbit_s,
    );
    Ok(())
}

fn name(index: usize) -> String {
    format!("relay-{index:04}")
}

fn settings(index: usize, ca: &Ca, controller: &Controller) -> anyhow::Result<RelaySettings> {
    let name = name(index);
    Ok(RelaySettings {
        webhooks: Vec::new(),
        identity: ca.issue_relay(&name, &[], OsHost.wall_clock(), YEAR)?,
        name,
        region: "bench".to_owned(),
        client_listen: LOOPBACK,
        link_listen: LOOPBACK,
        client_advertise: Vec::new(),
        link_advertise: Vec::new(),
        link_capacity: 0,
        uplinks: Vec::new(),
        controllers: vec![controller.address.to_string()],
        roots: ca.roots(),
        state_file: None,
        max_sessions: 1,
        handshakes_per_s: 1,
        groups: tradewind_relay::GroupSettings::default(),
        app_rates: AppRates::default(),
        latitude: 0.0,
        longitude: 0.0,
    })
}

/// On a runtime of its own, so that its work can be told from that of the others.
fn start_hub(settings: RelaySettings) -> anyhow::Result<Relay> {
    let (told, started) = std::sync::mpsc::channel();
    on_a_thread(THREADS[1], async move {
        let relay = Relay::start(settings, Arc::new(OsHost), Placement::OwnThreads).await?;
        told.send(relay).map_err(io::Error::other)?;
        std::future::pending().await
    })?;
    started.recv().context("the measured relay did not start")
}

async fn links_up(relay: &Relay) -> usize {
    let links = relay.links().await;
    links.iter().filter(|link| link.state == "up").count()
}

/// Counters of the measured relay.
struct Sample {
    cpu: Duration,
    links_up: usize,
    /// UDP payload and packets of its links, sent and received.
    bytes: [u64; 2],
    packets: [u64; 2],
    reported: u64,
}

impl Sample {
    async fn take(hub: &Relay, controller: &Controller) -> anyhow::Result<Self> {
        let links = hub.links().await;
        let mut sample = Self {
            cpu: cpu_time(&THREADS)?,
            links_up: 0,
            bytes: [0; 2],
            packets: [0; 2],
            reported: controller.state().reported,
        };
        for link in links {
            sample.links_up += usize::from(link.state == "up");
            sample.bytes[0] += link.bytes_sent;
            sample.bytes[1] += link.bytes_received;
            sample.packets[0] += link.packets_sent;
            sample.packets[1] += link.packets_received;
        }
        Ok(sample)
    }
}

/// Tells each relay only what the benchmark wants it to know.
struct Controller {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    registered: BTreeMap<u32, (RelayInfo, UnboundedSender<Bytes>)>,
    /// Bytes of messages from the measured relay.
    reported: u64,
}

impl Controller {
    fn start(host: &dyn Host, ca: &Ca) -> anyhow::Result<Self> {
        let identity = ca.issue_controller(&[], host.wall_clock(), YEAR)?;
        let clock = tls::host_clock(Arc::new(OsHost));
        let config = tls::controller_server_config(&identity, &ca.roots(), &[ALPN_CONTROL], clock)?;
        let config = quinn::ServerConfig::with_crypto(tls::quic_server(config)?);
        let endpoint = host.quic_endpoint(LOOPBACK, Some(config))?;
        let address = endpoint.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let state = shared.clone();
                spawn(async move {
                    if let Err(error) = serve(incoming, &state).await {
                        eprintln!("a relay's connection has ended: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, state })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds this")
    }

    async fn all_there(&self, relays: usize, until: std::time::Instant) -> anyhow::Result<()> {
        let host: &dyn Host = &OsHost;
        while self.state().registered.len() < relays {
            ensure!(host.now() < until, "not all relays registered in time");
            host.sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// The measured relay hears of all others, each of them only of it.
    fn introduce(&self, relays: usize) {
        for index in 0..relays {
            let body = RelayList {
                version: 1,
                relays: self.known_to(index, relays),
            };
            self.tell(index, controller_to_relay::Body::RelayList(body));
        }
    }

    fn known_to(&self, index: usize, relays: usize) -> Vec<RelayInfo> {
        let state = self.state();
        let of = |index: usize| state.registered[&(index as u32)].0.clone();
        match index {
            HUB => (0..relays).map(of).collect(),
            _ => vec![of(HUB), of(index)],
        }
    }

    /// The measured relay goes to all over its neighbours, and they use their links with it.
    fn plan(&self, relays: usize, neighbours: usize) {
        let plan = PlanName {
            epoch: 1,
            number: 1,
        };
        for index in 0..=neighbours {
            let next_hop = match index {
                HUB => {
                    let over = |to: usize| {
                        if to == HUB {
                            HUB
                        } else {
                            1 + (to - 1) % neighbours
                        }
                    };
                    (0..relays).map(|to| over(to) as u32).collect()
                }
                _ => vec![HUB as u32, index as u32],
            };
            let part = PlanPart {
                plan: Some(plan),
                relays: self.known_to(index, relays),
                profiles: vec![ProfileTable {
                    trees: vec![TreeTable {
                        next_hop,
                        ..TreeTable::default()
                    }],
                    ..ProfileTable::default()
                }],
                ..PlanPart::default()
            };
            self.tell(index, controller_to_relay::Body::PlanPart(part));
            let activate = Activate {
                plan: Some(plan),
                ..Activate::default()
            };
            self.tell(index, controller_to_relay::Body::Activate(activate));
        }
    }

    fn tell(&self, index: usize, body: controller_to_relay::Body) {
        say(&self.state().registered[&(index as u32)].1, body);
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    let host: &dyn Host = &OsHost;
    host.spawn(task);
}

fn say(to: &UnboundedSender<Bytes>, body: controller_to_relay::Body) {
    // Whoever is gone needs nothing.
    let _ = to.send(frame_message(&ControllerToRelay { body: Some(body) }));
}

async fn serve(incoming: quinn::Incoming, state: &Mutex<State>) -> anyhow::Result<()> {
    let connection = incoming.await?;
    let (mut out, mut receive) = connection.accept_bi().await?;
    let (send, mut frames_out) = unbounded_channel::<Bytes>();
    spawn(async move {
        while let Some(frame) = frames_out.recv().await {
            if out.write_chunk(frame).await.is_err() {
                return;
            }
        }
    });
    let mut frames = FrameReader::new(MAX_CONTROL_FRAME);
    let mut own = None;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        if own == Some(HUB) {
            let mut state = state.lock().expect("nothing panics while it holds this");
            state.reported += chunk.bytes.len() as u64;
        }
        frames.push(chunk.bytes);
        while let Some(frame) = frames.next_frame()? {
            if let Some(relay_to_controller::Body::Register(register)) =
                RelayToController::decode(frame)?.body
            {
                own = Some(admit(register, &send, state)?);
            }
        }
    }
    Ok(())
}

fn admit(
    register: Register,
    send: &UnboundedSender<Bytes>,
    state: &Mutex<State>,
) -> anyhow::Result<usize> {
    let Some(index) = register.name.strip_prefix("relay-") else {
        bail!("a relay called {}", register.name);
    };
    let index: u32 = index.parse()?;
    let registered = Registered { index, epoch: 1 };
    say(send, controller_to_relay::Body::Registered(registered));
    say(
        send,
        controller_to_relay::Body::TokenKeys(TokenKeys::default()),
    );
    let info = RelayInfo {
        index,
        name: register.name,
        region: register.region,
        client_addresses: register.client_addresses,
        link_addresses: register.link_addresses,
        incarnation: register.incarnation,
        uplinks: register.uplinks,
        draining: false,
        ..Default::default()
    };
    let mut state = state.lock().expect("nothing panics while it holds this");
    state.registered.insert(index, (info, send.clone()));
    Ok(index as usize)
}
