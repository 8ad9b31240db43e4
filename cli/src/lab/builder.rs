//! Builds a whole network on an emulated wide-area one: hosts, controller, relays, clients.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use rand::RngExt as _;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tradewind_client::{Client, ClientConfig, Discovery, EdgeAddr};
use tradewind_controller::{Controller, ControllerConfig};
use tradewind_host::Host as _;
use tradewind_relay::{AppRates, Placement, Relay, RelaySettings};
use tradewind_trust::{Ca, Claims, DEFAULT_LEAF_LIFETIME, TokenSigner};
use tradewind_wan::{HostClock, Jitter, LinkSpec, Overtaking, PlaceId, Wan, WanHost};

use super::{
    options::{Mode, Scenario},
    places,
    report::best_one_way,
    seeds, users,
    world::Watched,
};

/// Hosts' clocks are off by up to this much either way …
const MOST_OFFSET_US: i64 = 3_600_000_000;
/// … and drift by so many parts per million.
const MOST_DRIFT_PPM: f64 = 50.0;
/// Certificates and tokens hold from so long ago, lest slow clocks refuse them.
const BACKDATED: Duration = Duration::from_secs(2 * 3_600);
const TOKEN_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
const APP: &str = "lab";

/// No CSV has this name: it would have been trimmed.
const CONTROLLER_PLACE: &str = " controller ";

const CONTROLLER_PORT: u16 = 7400;
pub(super) const CLIENT_PORT: u16 = 7443;
const LINK_PORT: u16 = 7444;
/// Edges a client knows of: its own, and the nearest others, to go to when its own dies.
const EDGES_KNOWN: usize = 4;

/// Clients that talk all the time notice a dead edge soon.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Under chaos every link doubles such a share of the packets, …
const DUPLICATE: f64 = 0.002;
/// … and has others overtake such a share of them.
const OVERTAKING: Overtaking = Overtaking {
    share: 0.002,
    by: Duration::from_millis(10),
};

/// Network time after which a network that does not work yet has failed.
const STARTUP_LIMIT: Duration = Duration::from_secs(60);
const STARTUP_POLL: Duration = Duration::from_millis(10);

/// Everything that is made before anything starts.
pub(super) struct Builder<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) watched: &'a Arc<Watched>,
    pub(super) wan: &'a Wan,
    pub(super) places: Vec<PlaceId>,
    /// The place where the controller stands, and what it is called on the network: a place of its
    /// own, so that relays reach it that have no link with that place.
    pub(super) centre: usize,
    pub(super) controller_place: PlaceId,
    pub(super) controller_host: Arc<WanHost>,
    pub(super) relay_hosts: Vec<Arc<WanHost>>,
    pub(super) client_hosts: Vec<Arc<WanHost>>,
    /// Of the users besides these clients.
    pub(super) user_hosts: Vec<Arc<WanHost>>,
    ca: Ca,
    signer: TokenSigner,
    /// The wall clock when certificates begin to hold.
    valid_from: SystemTime,
    /// Where processes that are started anew keep what they shall find then.
    disk: Option<TempDir>,
    /// By place; `None` until it has started.
    relays: Mutex<Vec<Option<Relay>>>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(scenario: &'a Scenario, watched: &'a Arc<Watched>) -> anyhow::Result<Self> {
        let wan = &watched.wan;
        let matrix = &scenario.matrix;
        let places = wan.add_matrix(matrix.names(), |i, j| matrix.one_way(i, j));
        for &from in &places {
            for &to in &places {
                if let Some(mut spec) = wan.link(from, to) {
                    if from != to {
                        spec = worsened(spec, scenario);
                    }
                    if scenario.mode == Mode::Chaos {
                        (spec.duplicate, spec.overtaking) = (DUPLICATE, Some(OVERTAKING));
                    }
                    wan.set_link(from, to, spec);
                }
            }
        }
        let mut rng = seeds::rng(scenario.seed, seeds::CLOCKS, 0);
        let mut host = |place: PlaceId| {
            let offset = rng.random_range(-MOST_OFFSET_US..=MOST_OFFSET_US);
            let drift = rng.random_range(-MOST_DRIFT_PPM..=MOST_DRIFT_PPM);
            wan.add_host(place, HostClock::new(offset, drift))
        };
        let centre = places::most_central(matrix);
        let controller_place = wan.add_place(CONTROLLER_PLACE);
        let ways = best_one_way(matrix);
        for (index, &place) in places.iter().enumerate() {
            // A known cell of the centre's; else as the Internet would, over other places.
            let spec = |from, to| {
                let way = Duration::from_secs_f64(ways.cost(from, to) / 1_000.0);
                let delay = matrix.one_way(from, to).unwrap_or(way);
                worsened(LinkSpec::with_delay(delay), scenario)
            };
            wan.set_link(place, controller_place, spec(index, centre));
            wan.set_link(controller_place, place, spec(centre, index));
        }
        let controller_host = host(controller_place);
        let relay_hosts: Vec<_> = places.iter().map(|&place| host(place)).collect();
        let client_hosts = places.iter().map(|&place| host(place)).collect();
        let others = scenario.users.iter().skip(places.len());
        let user_hosts = others
            .map(|user| {
                let host = host(places[user.place]);
                host.set_access_delay(user.access);
                host
            })
            .collect();
        let valid_from = present(wan) - BACKDATED;
        let disk = scenario
            .wants_disks()
            .then(tempfile::tempdir)
            .transpose()
            .context("cannot make a directory for what relays keep")?;
        Ok(Self {
            scenario,
            watched,
            wan,
            disk,
            relays: Mutex::new(vec![None; matrix.len()]),
            places,
            centre,
            controller_place,
            controller_host,
            relay_hosts,
            client_hosts,
            user_hosts,
            ca: Ca::create("tradewind lab", valid_from)?,
            signer: TokenSigner::generate()?,
            valid_from,
        })
    }

    /// Starts the controller, or starts it anew.
    pub(super) fn start_controller(&self) -> anyhow::Result<Controller> {
        let listen = SocketAddr::new(self.controller_host.ip(), CONTROLLER_PORT);
        let identity = self
            .ca
            .issue_controller(&[], self.valid_from, DEFAULT_LEAF_LIFETIME)?;
        let mut config = ControllerConfig::new(listen, Arc::new(identity), self.ca.roots());
        config.token_keys = self.signer.keys();
        config.network.expected_relays = Some(self.places.len());
        config.state_dir = self
            .disk
            .as_ref()
            .map(|disk| disk.path().join("controller"));
        let controller = Controller::start(config, self.controller_host.clone())?;
        self.watched.set_controller(controller.clone());
        Ok(controller)
    }

    pub(super) async fn start_relays(&self) -> anyhow::Result<()> {
        for place in 0..self.places.len() {
            self.start_relay(place).await?;
        }
        Ok(())
    }

    /// Starts the relay of a place, or starts it anew.
    pub(super) async fn start_relay(&self, index: usize) -> anyhow::Result<()> {
        let (place, host) = (&self.scenario.places[index], &self.relay_hosts[index]);
        let identity =
            self.ca
                .issue_relay(&place.relay, &[], self.valid_from, DEFAULT_LEAF_LIFETIME)?;
        let controller = SocketAddr::new(self.controller_host.ip(), CONTROLLER_PORT);
        let settings = RelaySettings {
            webhooks: Vec::new(),
            name: place.relay.clone(),
            region: place.relay.clone(),
            client_listen: SocketAddr::new(host.ip(), CLIENT_PORT),
            link_listen: SocketAddr::new(host.ip(), LINK_PORT),
            client_advertise: Vec::new(),
            link_advertise: Vec::new(),
            link_capacity: 0,
            uplinks: Vec::new(),
            controllers: vec![controller.to_string()],
            identity,
            roots: self.ca.roots(),
            state_file: self
                .disk
                .as_ref()
                .map(|disk| disk.path().join(format!("relay-{index}.plan"))),
            max_sessions: 10_000,
            handshakes_per_s: 10_000,
            groups: tradewind_relay::GroupSettings::default(),
            app_rates: AppRates::default(),
            latitude: place.latitude,
            longitude: place.longitude,
        };
        let relay = Relay::start(settings, host.clone(), Placement::HostTasks).await?;
        let (ways, groups) = (
            self.scenario.watches_packets(),
            self.scenario.groups.is_some(),
        );
        if ways || groups {
            let watched = self.watched.clone();
            relay.watch_packets(move |passage| {
                let now = watched.wan.network_time();
                if ways {
                    watched.trails.note(index, now, passage);
                }
                if groups {
                    let controller = || watched.controller();
                    watched.groups.copies.note(index, now, passage, controller);
                }
            });
        }
        self.relays_mut()[index] = Some(relay);
        Ok(())
    }

    /// Waits until all relays stamp a plan.
    pub(super) async fn first_plan(&self) -> anyhow::Result<()> {
        let limit = self.wan.network_time() + STARTUP_LIMIT;
        while self.relays().iter().any(|relay| relay.unready().is_some()) {
            if self.wan.network_time() > limit {
                return Err(self.no_plan());
            }
            self.wan.sleep(STARTUP_POLL).await;
        }
        Ok(())
    }

    /// The relays that have been started, those that were killed since included.
    pub(super) fn relays(&self) -> Vec<Relay> {
        self.relays_mut().iter().flatten().cloned().collect()
    }

    fn relays_mut(&self) -> MutexGuard<'_, Vec<Option<Relay>>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One client per place, all connected.
    pub(super) async fn clients(&self) -> anyhow::Result<Vec<Client>> {
        let mut connecting = JoinSet::new();
        for (index, place) in self.scenario.places.iter().enumerate() {
            let mut config = self.client_config(&place.user, index)?;
            self.vary(&mut config, index);
            let host = self.client_hosts[index].clone();
            let relay = place.relay.clone();
            connecting.spawn(async move {
                let client = Client::connect(config, host).await;
                let client =
                    client.with_context(|| format!("the client at {relay} cannot connect"));
                (index, client)
            });
        }
        let mut clients = vec![None; self.places.len()];
        while let Some(done) = connecting.join_next().await {
            let (index, client) = done.context("a client ended while it connected")?;
            clients[index] = Some(client?);
        }
        let connected: Option<Vec<_>> = clients.into_iter().collect();
        connected.ok_or_else(|| anyhow!("a client is missing"))
    }

    /// What the client of a user at a place is told.
    pub(super) fn client_config(&self, user: &str, place: usize) -> anyhow::Result<ClientConfig> {
        let expires = self.valid_from + BACKDATED + TOKEN_LIFETIME;
        let token = self.signer.sign(&Claims {
            app: APP.to_owned(),
            user: user.to_owned(),
            exp: unix_seconds(expires),
            iat: unix_seconds(self.valid_from),
            send: vec!["*".to_owned()],
            recv: vec!["*".to_owned()],
            ..Claims::default()
        })?;
        let mut config = ClientConfig::new(
            Discovery::Static(self.edges_known_at(place)),
            token,
            self.ca.roots().certs().to_vec(),
        );
        config.idle_timeout = IDLE_TIMEOUT;
        config.keep_alive = KEEP_ALIVE.into();
        if self.scenario.mode != Mode::Chaos {
            // The lab's clients stand beside their relays: there is no nearer door. One stands by.
            config.near_edges = 1;
            config.max_sessions = 2;
        }
        Ok(config)
    }

    /// Under chaos some have one session only; the others are as an SDK is by default.
    pub(super) fn vary(&self, config: &mut ClientConfig, user: usize) {
        if self.scenario.mode == Mode::Chaos && !users::has_several_sessions(user) {
            config.standby = false;
            config.max_sessions = 1;
        }
    }

    /// The host of a user besides the clients at the relays.
    pub(super) fn user_host(&self, user: usize) -> Option<&WanHost> {
        let index = user.checked_sub(self.places.len())?;
        Some(&**self.user_hosts.get(index)?)
    }

    /// The client's own edge, then those nearest to it.
    fn edges_known_at(&self, index: usize) -> Vec<EdgeAddr> {
        let matrix = &self.scenario.matrix;
        let rtt = |to: usize| matrix.direct_rtt(index, to).unwrap_or(f64::INFINITY);
        let mut order: Vec<usize> = (0..matrix.len()).collect();
        order.sort_by(|&a, &b| rtt(a).total_cmp(&rtt(b)));
        // Another place may be 0 ms away as well.
        order.sort_by_key(|&relay| relay != index);
        let edge = |relay: usize| EdgeAddr {
            address: SocketAddr::new(self.relay_hosts[relay].ip(), CLIENT_PORT),
            relay: Some(self.scenario.places[relay].relay.clone()),
        };
        order.into_iter().take(EDGES_KNOWN).map(edge).collect()
    }

    fn no_plan(&self) -> anyhow::Error {
        let relays = self.relays();
        let waiting = relays.iter().filter(|relay| relay.unready().is_some());
        let names: Vec<&str> = waiting.map(Relay::name).take(10).collect();
        anyhow!(
            "no plan at {} after {} s: are these places linked with the others, and is this machine fast enough?",
            names.join(", "),
            STARTUP_LIMIT.as_secs()
        )
    }
}

/// What the options make of every link.
pub(super) fn worsened(spec: LinkSpec, scenario: &Scenario) -> LinkSpec {
    let jitter = if scenario.jitter.is_zero() {
        Jitter::None
    } else {
        Jitter::Uniform {
            max: scenario.jitter,
        }
    };
    LinkSpec {
        loss: scenario.loss,
        jitter,
        ..spec
    }
}

/// What a wall clock without offset shows on the network.
fn present(wan: &Wan) -> SystemTime {
    let observer = wan.add_host(wan.add_place(" observer "), HostClock::EXACT);
    observer.wall_clock()
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
