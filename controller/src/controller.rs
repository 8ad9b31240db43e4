//! The controller in the world: its port, its tasks, its handle.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::{Endpoint, IdleTimeout, TransportConfig, VarInt};
use tokio::sync::{Notify, Semaphore, watch};
use tradewind_host::Host;
use tradewind_proto::{ALPN_CONTROL, ALPN_ENROL, CloseCode, PlanId, frame_message};
use tradewind_trust::{Ca, EnrolToken, Identity, Roots, TokenKeys, TrustError, tls};

use crate::{
    config::{AdminAccess, ControllerConfig, StartError},
    connection::{self, Outbox},
    enrol::{EnrolTokenError, Tokens},
    network::{
        Action, ConnectionId, EdgeView, MatrixView, Network, PathError, PathView, PlanView,
        RelayView, Stats,
    },
    state,
    storage::Store,
};

/// A relay that says nothing for this long is offline.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Handshakes and enrolments under way at once; more wait in the socket.
const MAX_UNREGISTERED: usize = 256;
/// How long goodbyes may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A running controller. Clones are the same one. It runs until [`Controller::shutdown`].
#[derive(Clone)]
pub struct Controller {
    pub(crate) shared: Arc<Shared>,
}

/// What all tasks share.
pub(crate) struct Shared {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) ca: Option<Arc<Ca>>,
    pub(crate) tokens: Tokens,
    admin: AdminAccess,
    /// Bounds connections that have not registered.
    pub(crate) unregistered: Arc<Semaphore>,
    started: Instant,
    endpoint: Endpoint,
    state_dir: Option<PathBuf>,
    inner: Mutex<Inner>,
    plan: watch::Sender<Option<PlanId>>,
    /// The time of the next tick has come nearer.
    sooner: Notify,
    stopping: AtomicBool,
    state_write_failures: AtomicU64,
    pub(crate) store: Store,
    /// Held while a policy is changed over the API.
    pub(crate) changing_policy: tokio::sync::Mutex<()>,
}

struct Inner {
    network: Network,
    outboxes: BTreeMap<ConnectionId, Outbox>,
    next_connection: u64,
}

impl Controller {
    /// Binds the port on `host` and starts the tasks.
    ///
    /// # Errors
    /// [`StartError`]: the port is busy, the certificate cannot be used, or what was kept on disk
    /// cannot be read.
    pub fn start(config: ControllerConfig, host: Arc<dyn Host>) -> Result<Self, StartError> {
        let server = server_config(&config.identity, &config.roots, &host)?;
        let endpoint = host
            .quic_endpoint(config.listen, Some(server))
            .map_err(|source| StartError::Bind {
                address: config.listen,
                source,
            })?;
        let saved = state::begin_epoch(config.state_dir.as_deref())?;
        let (store, kept) = Store::open(config.state_dir.as_deref())?;
        let mut network = Network::new(config.network, saved, config.token_keys, host.wall_clock());
        network.restore(kept);
        let shared = Arc::new(Shared {
            ca: config.ca,
            tokens: Tokens::new(config.state_dir.clone(), config.reusable_enrol_tokens),
            admin: config.admin,
            unregistered: Arc::new(Semaphore::new(MAX_UNREGISTERED)),
            started: host.now(),
            endpoint,
            state_dir: config.state_dir,
            inner: Mutex::new(Inner {
                network,
                outboxes: BTreeMap::new(),
                next_connection: 0,
            }),
            plan: watch::Sender::new(None),
            sooner: Notify::new(),
            stopping: AtomicBool::new(false),
            state_write_failures: AtomicU64::new(0),
            store,
            changing_policy: tokio::sync::Mutex::new(()),
            host,
        });
        shared.host.spawn(accept(shared.clone()));
        shared.host.spawn(keep_time(shared.clone()));
        Ok(Self { shared })
    }

    /// The address of the QUIC port.
    ///
    /// # Panics
    /// Never: a bound socket has an address.
    #[must_use]
    pub fn listen_address(&self) -> SocketAddr {
        self.shared
            .endpoint
            .local_addr()
            .expect("a bound socket has an address")
    }

    /// The plan in force; `None` before the first one.
    #[must_use]
    pub fn active_plan(&self) -> Option<PlanId> {
        *self.shared.plan.borrow()
    }

    /// Follows the plan in force.
    #[must_use]
    pub fn watch_plan(&self) -> watch::Receiver<Option<PlanId>> {
        self.shared.plan.subscribe()
    }

    /// How many plans have come into force.
    #[must_use]
    pub fn plans_activated(&self) -> u64 {
        self.stats().plans_activated
    }

    /// All relays ever known, by index.
    #[must_use]
    pub fn relays(&self) -> Vec<RelayView> {
        self.shared.read(|network, _| network.relays())
    }

    /// The edges that clients may connect to now.
    #[must_use]
    pub fn edges(&self) -> Vec<EdgeView> {
        self.shared.read(|network, _| network.edges())
    }

    /// All links as they are now.
    #[must_use]
    pub fn matrix(&self) -> MatrixView {
        self.shared.read(|network, now| network.matrix(now))
    }

    /// The plan in force, in full.
    #[must_use]
    pub fn plan(&self) -> Option<PlanView> {
        self.shared.read(|network, _| network.plan_view())
    }

    /// The way the plan in force takes between two relays, with its costs at this moment.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn path(&self, from: &str, to: &str) -> Result<PathView, PathError> {
        self.shared.read(|network, now| network.path(now, from, to))
    }

    /// The tree along which what enters at the relay `origin` goes to groups, in a plan that relays
    /// still hold: (relay, relay that it receives from), by name. `None` when there is no such plan or
    /// relay.
    #[must_use]
    pub fn out_tree(&self, plan: PlanId, origin: &str) -> Option<Vec<(String, String)>> {
        self.shared
            .read(|network, _| network.out_tree(plan, origin))
    }

    /// Why measurements are distrusted at present, if they are.
    #[must_use]
    pub fn alert(&self) -> Option<String> {
        self.shared
            .read(|network, _| network.alert().map(str::to_owned))
    }

    /// Counts since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.read(|network, _| network.stats())
    }

    /// How often state, policy, decisions or history could not be written to disk.
    #[must_use]
    pub fn state_write_failures(&self) -> u64 {
        self.shared.state_write_failures.load(Relaxed) + self.shared.store.failures()
    }

    /// Makes a one-time enrolment token that is good for `lifetime`, for `relay` only if named.
    ///
    /// # Errors
    /// [`EnrolTokenError`].
    pub fn create_enrol_token(
        &self,
        relay: Option<String>,
        lifetime: Duration,
    ) -> Result<EnrolToken, EnrolTokenError> {
        if self.shared.ca.is_none() {
            return Err(EnrolTokenError::NotEnrolling);
        }
        self.shared
            .tokens
            .create(relay, lifetime, self.shared.host.wall_clock())
    }

    /// Gives other token keys to all relays.
    pub fn set_token_keys(&self, keys: TokenKeys) {
        self.shared.with(|network, _| network.set_token_keys(keys));
    }

    /// Uses another certificate for connections from now on.
    ///
    /// # Errors
    /// [`TrustError`]; the one before stays then.
    pub fn set_identity(&self, identity: &Identity, roots: &Roots) -> Result<(), TrustError> {
        let server = server_config(identity, roots, &self.shared.host)?;
        self.shared.endpoint.set_server_config(Some(server));
        Ok(())
    }

    /// The HTTP API: `/v1/…`.
    pub fn api(&self) -> axum::Router {
        crate::http::router(self.clone())
    }

    /// Says goodbye to all relays, which forward on, and stops. Takes at most a second or so.
    pub async fn shutdown(&self) {
        self.shared.stopping.store(true, Relaxed);
        self.shared.sooner.notify_one();
        let code = VarInt::from_u32(CloseCode::Done as u32);
        self.shared.endpoint.close(code, b"the controller stops");
        let _ = self
            .shared
            .host
            .timeout(GOODBYE, self.shared.endpoint.wait_idle())
            .await;
    }

    pub(crate) fn admin_access(&self) -> &AdminAccess {
        &self.shared.admin
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("plan", &self.active_plan())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Names a new connection and where to write what is for it.
    pub(crate) fn connected(&self, outbox: Outbox) -> ConnectionId {
        let mut inner = self.lock();
        let id = ConnectionId(inner.next_connection);
        inner.next_connection += 1;
        inner.outboxes.insert(id, outbox);
        id
    }

    pub(crate) fn disconnected(&self, id: ConnectionId) {
        self.lock().outboxes.remove(&id);
        self.with(|network, now| network.disconnected(now, id));
    }

    /// Lets the network do something, and does what follows from it.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Network, Duration) -> T) -> T {
        let mut inner = self.lock();
        let before = inner.network.next_tick();
        let result = act(&mut inner.network, self.now());
        for action in inner.network.take_actions() {
            self.perform(&inner, action);
        }
        if inner.network.next_tick() < before {
            self.sooner.notify_one();
        }
        result
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Network, Duration) -> T) -> T {
        let inner = self.lock();
        look(&inner.network, self.now())
    }

    fn perform(&self, inner: &Inner, action: Action) {
        match action {
            Action::Send {
                connection,
                message,
            } => {
                if let Some(outbox) = inner.outboxes.get(&connection) {
                    outbox.send(&message);
                }
            }
            Action::SendAll {
                connections,
                message,
            } => {
                let frame = frame_message(&message);
                for connection in connections {
                    if let Some(outbox) = inner.outboxes.get(&connection) {
                        outbox.send_frame(frame.clone());
                    }
                }
            }
            Action::SendPart { connection, part } => {
                if let Some(outbox) = inner.outboxes.get(&connection) {
                    outbox.send_part(part);
                }
            }
            Action::Close {
                connection,
                code,
                reason,
            } => {
                if let Some(outbox) = inner.outboxes.get(&connection) {
                    outbox.close(code, reason);
                }
            }
            Action::Save(saved) => {
                let Some(dir) = &self.state_dir else { return };
                // Without it the next controller may give an index anew; the network runs on.
                if let Err(error) = state::save(dir, &saved) {
                    tracing::error!(%error, "the state is not saved");
                    self.state_write_failures.fetch_add(1, Relaxed);
                }
            }
            Action::Keep(record) => self.store.write(record),
            Action::Activated(id) => {
                self.plan.send_replace(Some(id));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.host.now().saturating_duration_since(self.started)
    }
}

async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let Ok(permit) = shared.unregistered.clone().try_acquire_owned() else {
            incoming.ignore();
            continue;
        };
        shared
            .host
            .spawn(connection::serve(shared.clone(), incoming, permit));
    }
}

/// Ticks the network whenever it is due.
async fn keep_time(shared: Arc<Shared>) {
    while !shared.stopping.load(Relaxed) {
        let due = shared.read(|network, _| network.next_tick());
        tokio::select! {
            biased; // no random numbers from elsewhere
            () = shared.sooner.notified() => {}
            () = shared.host.sleep_until(shared.started + due) => {
                let wall = shared.host.wall_clock();
                shared.with(|network, now| {
                    network.set_wall_start(wall - now);
                    network.tick(now);
                    let ended = shared.now();
                    network.ticked(ended, ended - now);
                });
            }
        }
    }
}

fn server_config(
    identity: &Identity,
    roots: &Roots,
    host: &Arc<dyn Host>,
) -> Result<quinn::ServerConfig, TrustError> {
    let clock = tls::host_clock(host.clone());
    let alpns = [ALPN_CONTROL, ALPN_ENROL];
    let crypto = tls::controller_server_config(identity, roots, &alpns, clock)?;
    let mut config = quinn::ServerConfig::with_crypto(tls::quic_server(crypto)?);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(
            IdleTimeout::try_from(IDLE_TIMEOUT).expect("5 s are within the range"),
        ));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
