//! A running relay: its shards, its control task, and the handle to them.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use prometheus::Registry;
use rand::RngExt;
use tokio::sync::{mpsc, oneshot, watch};
use tradewind_host::Host;
use tradewind_proto::{PlanId, RelayIndex, Uplink, control::UplinkInfo};
use tradewind_trust::{Identity, QuicKeys, Roots, TrustError, check_relay_name, tls};

use crate::{
    AppRates,
    controller_link::{ControlTask, Introduction, Status},
    debug::{LinkView, PlanView},
    directory::Directory,
    driver::{Busy, Driver, Socket},
    groups::GroupSettings,
    metrics::Metrics,
    shard::{Command, Inspection, Limits, LinkPort, News, Port, Shard, ShardConfig},
    store::{Store, kept_quic_keys},
    transport,
    watch::Passage,
    webhook::{WebhookError, WebhookSettings, Webhooks},
};

/// Everything a relay needs to know to start.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Stable name, unique in the network.
    pub name: String,
    /// Region, for operators and policy.
    pub region: String,
    /// Where to listen for clients. Port 0 takes any free one.
    pub client_listen: SocketAddr,
    /// Where to listen for other relays.
    pub link_listen: SocketAddr,
    /// What clients shall use, when it is not the bound address (NAT, several families). Empty: the
    /// bound address.
    pub client_advertise: Vec<SocketAddr>,
    /// What other relays shall use. Empty: the bound address.
    pub link_advertise: Vec<SocketAddr>,
    /// What `link_listen` (uplink 0) carries each way, bytes per second; 0 when not known.
    pub link_capacity: u64,
    /// Further ways to other relays.
    pub uplinks: Vec<UplinkSettings>,
    /// Controllers, `host:port` each, tried in turn.
    pub controllers: Vec<String>,
    /// This relay's certificate and key.
    pub identity: Identity,
    /// The deployment's CA.
    pub roots: Roots,
    /// Where the last plan is kept; the keys of the clients' port beside it. `None`: nowhere.
    pub state_file: Option<PathBuf>,
    /// Client sessions at a time.
    pub max_sessions: usize,
    /// Handshakes of clients that are begun per second; a second's worth at once.
    pub handshakes_per_s: u32,
    /// What is kept of groups.
    pub groups: GroupSettings,
    /// What each app may send into the network here.
    pub app_rates: AppRates,
    /// Whom to tell of users who are offline.
    pub webhooks: Vec<WebhookSettings>,
    /// For maps, degrees; 0 and 0 when not known.
    pub latitude: f64,
    /// For maps, degrees.
    pub longitude: f64,
}

/// A way to other relays beside the first one, such as a private line.
#[derive(Debug, Clone)]
pub struct UplinkSettings {
    /// From 1; the same line has the same number at all relays.
    pub number: u8,
    /// Where to listen for other relays: an address of that line.
    pub link_listen: SocketAddr,
    /// What other relays shall use. Empty: the bound address.
    pub link_advertise: Vec<SocketAddr>,
    /// What it carries each way, bytes per second; 0 when not known.
    pub capacity: u64,
}

/// How long the controller is given to plan around a relay that leaves.
const REPLANNING: Duration = Duration::from_secs(2);

/// Where shards run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// As tasks of the host: on emulated hosts, and in tests.
    HostTasks,
    /// Each on a thread with a runtime of its own: on real ones.
    OwnThreads,
}

/// A relay that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A UDP port cannot be had.
    #[error("cannot listen for {what} on {address}: {source}; choose another with {option}")]
    Bind {
        /// Who was to be listened for.
        what: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// The option that sets it.
        option: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate, key or CA cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// No controller was named.
    #[error("no controller is named: set `controllers` to at least one HOST:PORT")]
    NoController,
    /// A socket is bound to an unspecified address and nothing says what others shall use.
    #[error(
        "listening on {0} tells others nothing they could connect to: set {1} to this relay's address"
    )]
    NoAdvertisedAddress(SocketAddr, &'static str),
    /// Two uplinks have one number, or one has the number 0.
    #[error(
        "uplink {0} is configured twice: number the uplinks 1, 2, …, and each once (0 is `link_listen`)"
    )]
    UplinkTwice(u8),
    /// A webhook cannot be used.
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    /// The metrics cannot be registered.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A thread cannot be started, or ended at once.
    #[error("cannot start a shard: {0}")]
    Thread(io::Error),
}

/// A running relay. Cheap to clone; the relay ends when it is told to, or when no handle to it is
/// left.
#[derive(Debug, Clone)]
pub struct Relay {
    name: String,
    host: Arc<dyn Host>,
    client_address: SocketAddr,
    /// Uplink 0 first.
    link_addresses: Vec<SocketAddr>,
    shards: Vec<mpsc::Sender<Command>>,
    draining: Arc<watch::Sender<bool>>,
    status: watch::Receiver<Status>,
    metrics: Arc<Metrics>,
    quic_keys: QuicKeys,
}

impl Relay {
    /// Starts a relay: binds its ports and begins to look for the controller.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and which setting mends it.
    pub async fn start(
        settings: RelaySettings,
        host: Arc<dyn Host>,
        placement: Placement,
    ) -> Result<Self, StartError> {
        check_relay_name(&settings.name)?;
        if settings.controllers.is_empty() {
            return Err(StartError::NoController);
        }
        let mut settings = settings;
        settings.uplinks.sort_by_key(|uplink| uplink.number);
        let mut before = 0;
        for uplink in &settings.uplinks {
            if uplink.number == before {
                return Err(StartError::UplinkTwice(before));
            }
            before = uplink.number;
        }
        let metrics = Arc::new(Metrics::new()?);
        let directory = Arc::new(Directory::new(host.now()));
        let hooks = std::mem::take(&mut settings.webhooks);
        let webhooks = Webhooks::start(hooks, &settings.name, &host, &metrics.webhooks)?;
        let (news_sender, news) = mpsc::channel(64);
        let (commands, shard_commands) = mpsc::channel(64);
        let incarnation = host.rng().random();
        let quic_keys = kept_quic_keys(settings.state_file.as_deref())?;
        let start = ShardStart {
            settings: settings.clone(),
            incarnation,
            quic_keys: quic_keys.clone(),
            host: host.clone(),
            metrics: metrics.clone(),
            directory,
            webhooks,
            commands: shard_commands,
            news: news_sender,
        };
        let Bound { client, links } = match placement {
            Placement::HostTasks => {
                let (driver, bound) = start.build()?;
                host.spawn(driver.run());
                bound
            }
            Placement::OwnThreads => start.on_own_thread().await?,
        };
        let (draining, draining_seen) = watch::channel(false);
        let (status_sender, status) = watch::channel(Status::default());
        let control = ControlTask {
            host: host.clone(),
            controllers: settings.controllers,
            introduction: Introduction {
                name: settings.name.clone(),
                incarnation,
                region: settings.region,
                client_addresses: advertised(
                    settings.client_advertise,
                    client,
                    "client_advertise",
                )?,
                link_addresses: advertised(settings.link_advertise, links[0], "link_advertise")?,
                uplinks: uplink_infos(settings.link_capacity, settings.uplinks, &links)?,
                latitude: settings.latitude,
                longitude: settings.longitude,
            },
            identity: settings.identity,
            roots: settings.roots,
            store: settings
                .state_file
                .map(|path| Store::new(path, metrics.store_failures.clone())),
            shards: vec![commands.clone()],
            news,
            draining: draining_seen,
            status: status_sender,
            metrics: metrics.clone(),
            last_report: 0,
        };
        host.spawn(control.run());
        Ok(Self {
            name: settings.name,
            host,
            client_address: client,
            link_addresses: links,
            shards: vec![commands],
            draining: Arc::new(draining),
            status,
            metrics,
            quic_keys,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens for clients.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Where it listens for other relays, on uplink 0.
    #[must_use]
    pub fn link_address(&self) -> SocketAddr {
        self.link_addresses[0]
    }

    /// Its metrics.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.metrics.registry
    }

    /// Has `watch` see every packet that passes from now on, on the thread that forwards it: for
    /// tests. Only the first call has an effect.
    pub fn watch_packets(&self, watch: impl Fn(&Passage<'_>) + Send + Sync + 'static) {
        self.metrics.watcher.set(Box::new(watch));
    }

    /// Why it should not be given clients now, if so. Never depends on the controller being up.
    #[must_use]
    pub fn unready(&self) -> Option<&'static str> {
        if *self.draining.borrow() {
            return Some("draining");
        }
        if self.status.borrow().tables.active == PlanId::NONE {
            return Some("no plan yet");
        }
        None
    }

    /// Whether the controller is connected.
    #[must_use]
    pub fn controller_connected(&self) -> bool {
        self.status.borrow().controller_connected
    }

    /// The index the controller gave it.
    #[must_use]
    pub fn index(&self) -> Option<RelayIndex> {
        let me = self.status.borrow().tables.me;
        (me != RelayIndex::NONE).then_some(me)
    }

    /// The plan it stamps.
    #[must_use]
    pub fn plan(&self) -> PlanView {
        PlanView::new(&self.status.borrow().tables)
    }

    /// Its links.
    pub async fn links(&self) -> Vec<LinkView> {
        let inspection = self.inspect().await;
        inspection.links.into_iter().map(LinkView::from).collect()
    }

    /// Its sessions, one map of facts each.
    pub async fn sessions(&self) -> Vec<BTreeMap<&'static str, String>> {
        self.inspect().await.sessions
    }

    /// Shows renewed certificates on connections made from now on, to clients and other relays;
    /// those that stand are left alone. The connection to the controller keeps the old certificate
    /// until the relay starts anew.
    ///
    /// # Errors
    /// [`TrustError`]; the certificates there were stay in use then.
    pub async fn reload_identity(
        &self,
        identity: &Identity,
        roots: &Roots,
    ) -> Result<(), TrustError> {
        for shard in &self.shards {
            let clock = tls::host_clock(self.host.clone());
            let renewed = transport::certificates(identity, roots, &self.quic_keys, clock)?;
            // A shard that has stopped shows none.
            let _ = shard.send(Command::Certificates(Box::new(renewed))).await;
        }
        Ok(())
    }

    /// Leaves the network without hurting anybody: takes no new clients, tells the controller, sends
    /// the clients there are elsewhere, and stops when they are gone or `deadline` is over.
    pub async fn drain(&self, deadline: Duration) {
        // Nobody listens any more: it has stopped already.
        self.draining.send_replace(true);
        self.tell(|| Command::Drain { deadline }).await;
        let begun = self.host.now();
        let until = begun + deadline;
        // Transit traffic leaves when the controller has planned around this relay.
        let replanned = if self.controller_connected() {
            begun + REPLANNING
        } else {
            begun
        };
        while self.host.now() < until
            && (self.metrics.sessions.get() > 0 || self.host.now() < replanned)
        {
            self.host.sleep(Duration::from_millis(50)).await;
        }
        self.stop().await;
    }

    /// Stops now.
    pub async fn stop(&self) {
        self.tell(|| Command::Close).await;
        // A shard ends when it has sent its last datagrams.
        self.ended().await;
    }

    /// Completes when a shard has ended: because it was told to, or because it is broken.
    pub async fn ended(&self) {
        for shard in &self.shards {
            shard.closed().await;
        }
    }

    async fn inspect(&self) -> Inspection {
        let mut whole = Inspection::default();
        for shard in &self.shards {
            let (reply, answer) = oneshot::channel();
            if shard.send(Command::Inspect(reply)).await.is_ok()
                && let Ok(part) = answer.await
            {
                whole.links.extend(part.links);
                whole.sessions.extend(part.sessions);
            }
        }
        whole
    }

    async fn tell(&self, command: impl Fn() -> Command) {
        for shard in &self.shards {
            // A shard that has stopped needs no telling.
            let _ = shard.send(command()).await;
        }
    }
}

/// The addresses that the sockets are bound to.
struct Bound {
    client: SocketAddr,
    /// By uplink, 0 first.
    links: Vec<SocketAddr>,
}

/// What a shard is started with.
struct ShardStart {
    settings: RelaySettings,
    incarnation: u64,
    quic_keys: QuicKeys,
    host: Arc<dyn Host>,
    metrics: Arc<Metrics>,
    directory: Arc<Directory>,
    webhooks: Webhooks,
    commands: mpsc::Receiver<Command>,
    news: mpsc::Sender<News>,
}

impl ShardStart {
    /// Binds the ports and builds the shard. Must be called where the shard will run.
    fn build(self) -> Result<(Driver, Bound), StartError> {
        let host = self.host;
        let settings = self.settings;
        let bind = |port, address, what, option| {
            Socket::bind(&*host, port, address)
                .and_then(|socket| Ok((socket.local_addr()?, socket)))
                .map_err(|source| StartError::Bind {
                    what,
                    address,
                    option,
                    source,
                })
        };
        let (client_address, client) = bind(
            Port::Client,
            settings.client_listen,
            "clients",
            "--client-listen",
        )?;
        let option = "--link-listen";
        let mut wanted = vec![(0, settings.link_capacity, settings.link_listen, option)];
        for uplink in &settings.uplinks {
            let option = "`link_listen` of the uplink";
            wanted.push((uplink.number, uplink.capacity, uplink.link_listen, option));
        }
        let mut sockets = vec![client];
        let mut link_ports = Vec::new();
        let mut links = Vec::new();
        for (nth, (number, capacity, listen, option)) in (0..).zip(wanted) {
            let (address, socket) = bind(Port::Link(nth), listen, "relays", option)?;
            link_ports.push(LinkPort {
                uplink: Uplink(number),
                capacity: (capacity > 0).then_some(capacity),
                traits: socket.traits(),
            });
            links.push(address);
            sockets.push(socket);
        }
        let certificates = transport::certificates(
            &settings.identity,
            &settings.roots,
            &self.quic_keys,
            tls::host_clock(host.clone()),
        )?;
        let config = ShardConfig {
            name: settings.name,
            incarnation: self.incarnation,
            client_endpoint: transport::client_endpoint(&self.quic_keys),
            client_server: certificates.client_server,
            link_server: certificates.link_server,
            link_client: certificates.link_client,
            client_port: sockets[0].traits(),
            link_ports,
            limits: Limits {
                max_sessions: settings.max_sessions,
                handshakes_per_s: settings.handshakes_per_s,
                groups: settings.groups,
            },
            app_rates: settings.app_rates,
            rng: host.rng(),
            metrics: self.metrics,
            directory: self.directory,
            webhooks: self.webhooks,
        };
        let shard = Shard::new(config, host.now(), host.wall_clock());
        let driver = Driver {
            busy: Busy::new(host.now()),
            host,
            shard,
            sockets,
            commands: self.commands,
            news: self.news,
        };
        let bound = Bound {
            client: client_address,
            links,
        };
        Ok((driver, bound))
    }

    /// Runs the shard on a thread with a current-thread runtime of its own: nothing else of this
    /// process can then delay a packet.
    async fn on_own_thread(self) -> Result<Bound, StartError> {
        let (told, bound) = oneshot::channel();
        std::thread::Builder::new()
            .name("shard-0".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = told.send(Err(StartError::Thread(error)));
                        return;
                    }
                };
                runtime.block_on(async move {
                    match self.build() {
                        Ok((driver, addresses)) => {
                            // Whoever started us waits for this.
                            let _ = told.send(Ok(addresses));
                            driver.run().await;
                        }
                        Err(error) => {
                            let _ = told.send(Err(error));
                        }
                    }
                });
            })
            .map_err(StartError::Thread)?;
        bound.await.unwrap_or_else(|_| {
            Err(StartError::Thread(io::Error::other(
                "the thread ended while it started",
            )))
        })
    }
}

/// What the controller is told of the uplinks: those beside uplink 0, and every capacity.
fn uplink_infos(
    capacity: u64,
    uplinks: Vec<UplinkSettings>,
    bound: &[SocketAddr],
) -> Result<Vec<UplinkInfo>, StartError> {
    let mut infos = Vec::new();
    if capacity > 0 {
        infos.push(UplinkInfo {
            number: 0,
            link_addresses: Vec::new(),
            capacity,
        });
    }
    for (uplink, &bound) in uplinks.into_iter().zip(&bound[1..]) {
        let option = "`link_advertise` of the uplink";
        let addresses = advertised(uplink.link_advertise, bound, option)?;
        infos.push(UplinkInfo {
            number: u32::from(uplink.number),
            link_addresses: addresses.iter().map(ToString::to_string).collect(),
            capacity: uplink.capacity,
        });
    }
    Ok(infos)
}

/// What others shall use to reach a port bound to `bound`.
fn advertised(
    configured: Vec<SocketAddr>,
    bound: SocketAddr,
    option: &'static str,
) -> Result<Vec<SocketAddr>, StartError> {
    let with_port = |address: SocketAddr| match address.port() {
        // "Our address, and whatever port was bound."
        0 => SocketAddr::new(address.ip(), bound.port()),
        _ => address,
    };
    if !configured.is_empty() {
        return Ok(configured.into_iter().map(with_port).collect());
    }
    if bound.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) || bound.ip().is_unspecified() {
        return Err(StartError::NoAdvertisedAddress(bound, option));
    }
    Ok(vec![bound])
}
