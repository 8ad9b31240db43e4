//! Builds a whole network on an emulated wide-area one, lets it work, and looks on.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use rand::RngExt as _;
use tokio::task::JoinSet;
use tradewind_client::{Client, ClientConfig, Discovery, EdgeAddr};
use tradewind_controller::{Controller, ControllerConfig};
use tradewind_host::Host as _;
use tradewind_relay::{Placement, Relay, RelaySettings};
use tradewind_trust::{Ca, Claims, DEFAULT_LEAF_LIFETIME, TokenSigner};
use tradewind_wan::{HostClock, Jitter, LinkSpec, Mode, PlaceId, Wan, WanHost};

use super::{
    options::{FaultKind, Scenario},
    places,
    record::Record,
    report::{Outcome, best_one_way},
    seeds,
    traffic::Traffic,
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
const CLIENT_PORT: u16 = 7443;
const LINK_PORT: u16 = 7444;
/// Edges a client knows of: its own, and the nearest others, to go to when its own dies.
const EDGES_KNOWN: usize = 4;

/// Clients that talk all the time notice a dead edge soon.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Network time after which a network that does not work yet has failed.
const STARTUP_LIMIT: Duration = Duration::from_secs(60);
const STARTUP_POLL: Duration = Duration::from_millis(10);
/// How long media packets sent last are waited for.
const LAST_MEDIA: Duration = Duration::from_secs(2);

/// What can be seen from outside while the lab runs.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) wan: Wan,
    pub(super) record: Record,
    pub(super) controller: OnceLock<Controller>,
    /// Network time at which measuring began.
    pub(super) started: OnceLock<Duration>,
}

impl Watched {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let wan = if scenario.virtual_time {
            Wan::virtual_time(scenario.seed)
        } else {
            Wan::real_time_on_one_thread(scenario.seed)
        };
        Self {
            wan,
            record: Record::new(scenario.matrix.len()),
            controller: OnceLock::new(),
            started: OnceLock::new(),
        }
    }

    /// Network time since measuring began.
    pub(super) fn elapsed(&self) -> Option<Duration> {
        Some(self.wan.network_time().saturating_sub(*self.started.get()?))
    }
}

/// Runs the scenario to its end.
pub(super) fn run(scenario: &Scenario, watched: &Arc<Watched>) -> anyhow::Result<Outcome> {
    watched.wan.run(live(scenario, watched))
}

async fn live(scenario: &Scenario, watched: &Arc<Watched>) -> anyhow::Result<Outcome> {
    let wan = &watched.wan;
    let builder = Builder::new(scenario, wan)?;
    let controller = builder.controller()?;
    // Set only once: this is called once.
    let _ = watched.controller.set(controller.clone());
    let relays = builder.relays(&controller).await?;
    let limit = wan.network_time() + STARTUP_LIMIT;
    while relays.iter().any(|relay| relay.unready().is_some()) {
        if wan.network_time() > limit {
            return Err(builder.no_plan(&relays));
        }
        wan.sleep(STARTUP_POLL).await;
    }
    let clients = builder.clients().await?;
    let traffic =
        Traffic::prepare(scenario, watched.clone(), clients, &builder.client_hosts).await?;

    let startup = wan.network_time();
    let _ = watched.started.set(startup);
    let plans_before = controller.plans_activated();
    let end = startup + scenario.duration;
    let window = async {
        wan.sleep_until(end).await;
        controller.plans_activated() - plans_before
    };
    let (plan_updates, (), ()) = tokio::join!(window, builder.faults(startup), traffic.run());
    let last_media = wan.network_time().max(end + LAST_MEDIA);
    let paths = traffic.paths(&controller).await;
    wan.sleep_until(last_media).await;
    Ok(Outcome {
        pairs: watched.record.all(),
        paths,
        plan_updates,
        startup,
        packets: wan.total_stats().sent,
        delivery_error: (wan.mode() == Mode::Real).then(|| wan.delivery_error()),
    })
}

/// Everything that is made before anything starts.
struct Builder<'a> {
    scenario: &'a Scenario,
    wan: &'a Wan,
    places: Vec<PlaceId>,
    /// The place where the controller stands, and what it is called on the network: a place of its
    /// own, so that relays reach it that have no link with that place.
    centre: usize,
    controller_place: PlaceId,
    controller_host: Arc<WanHost>,
    relay_hosts: Vec<Arc<WanHost>>,
    client_hosts: Vec<Arc<WanHost>>,
    ca: Ca,
    signer: TokenSigner,
    /// The wall clock when certificates begin to hold.
    valid_from: SystemTime,
}

impl<'a> Builder<'a> {
    fn new(scenario: &'a Scenario, wan: &'a Wan) -> anyhow::Result<Self> {
        let matrix = &scenario.matrix;
        let places = wan.add_matrix(matrix.names(), |i, j| matrix.one_way(i, j));
        if scenario.loss > 0.0 || !scenario.jitter.is_zero() {
            for &from in &places {
                for &to in places.iter().filter(|&&to| to != from) {
                    if let Some(spec) = wan.link(from, to) {
                        wan.set_link(from, to, worsened(spec, scenario));
                    }
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
        let valid_from = present(wan) - BACKDATED;
        Ok(Self {
            scenario,
            wan,
            places,
            centre,
            controller_place,
            controller_host,
            relay_hosts,
            client_hosts,
            ca: Ca::create("tradewind lab", valid_from)?,
            signer: TokenSigner::generate()?,
            valid_from,
        })
    }

    fn controller(&self) -> anyhow::Result<Controller> {
        let listen = SocketAddr::new(self.controller_host.ip(), CONTROLLER_PORT);
        let identity = self
            .ca
            .issue_controller(&[], self.valid_from, DEFAULT_LEAF_LIFETIME)?;
        let mut config = ControllerConfig::new(listen, Arc::new(identity), self.ca.roots());
        config.token_keys = self.signer.keys();
        config.network.expected_relays = Some(self.places.len());
        Ok(Controller::start(config, self.controller_host.clone())?)
    }

    async fn relays(&self, controller: &Controller) -> anyhow::Result<Vec<Relay>> {
        let mut relays = Vec::new();
        for (place, host) in self.scenario.places.iter().zip(&self.relay_hosts) {
            let identity =
                self.ca
                    .issue_relay(&place.relay, &[], self.valid_from, DEFAULT_LEAF_LIFETIME)?;
            let settings = RelaySettings {
                name: place.relay.clone(),
                region: place.relay.clone(),
                client_listen: SocketAddr::new(host.ip(), CLIENT_PORT),
                link_listen: SocketAddr::new(host.ip(), LINK_PORT),
                client_advertise: Vec::new(),
                link_advertise: Vec::new(),
                link_capacity: 0,
                uplinks: Vec::new(),
                controllers: vec![controller.listen_address().to_string()],
                identity,
                roots: self.ca.roots(),
                state_file: None,
                max_sessions: 10_000,
                latitude: place.latitude,
                longitude: place.longitude,
            };
            relays.push(Relay::start(settings, host.clone(), Placement::HostTasks).await?);
        }
        Ok(relays)
    }

    /// One client per place, all connected.
    async fn clients(&self) -> anyhow::Result<Vec<Client>> {
        let expires = self.valid_from + BACKDATED + TOKEN_LIFETIME;
        let mut connecting = JoinSet::new();
        for (index, place) in self.scenario.places.iter().enumerate() {
            let token = self.signer.sign(&Claims {
                app: APP.to_owned(),
                user: place.user.clone(),
                exp: unix_seconds(expires),
                iat: unix_seconds(self.valid_from),
                ..Claims::default()
            })?;
            let edges = self.edges_known_at(index);
            let mut config = ClientConfig::new(
                Discovery::Static(edges),
                token,
                self.ca.roots().certs().to_vec(),
            );
            config.idle_timeout = IDLE_TIMEOUT;
            config.keep_alive = KEEP_ALIVE;
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

    async fn faults(&self, started: Duration) {
        for fault in &self.scenario.faults {
            self.wan.sleep_until(started + fault.at).await;
            match fault.what {
                FaultKind::Cut(a, b) => {
                    for (from, to) in self.links_between(a, b) {
                        self.wan.cut_both(from, to);
                    }
                }
                FaultKind::Heal(a, b) => {
                    for (from, to) in self.links_between(a, b) {
                        self.wan.heal_both(from, to);
                    }
                }
                FaultKind::Kill(relay) => self.relay_hosts[relay].kill(),
            }
        }
    }

    /// The places' own, and that of the controller at one of them.
    fn links_between(&self, a: usize, b: usize) -> Vec<(PlaceId, PlaceId)> {
        let mut links = vec![(self.places[a], self.places[b])];
        for (place, other) in [(a, b), (b, a)] {
            if place == self.centre {
                links.push((self.controller_place, self.places[other]));
            }
        }
        links
    }

    fn no_plan(&self, relays: &[Relay]) -> anyhow::Error {
        let waiting = relays.iter().filter(|relay| relay.unready().is_some());
        let names: Vec<&str> = waiting.map(Relay::name).take(10).collect();
        anyhow!(
            "no plan at {} after {} s: are these places linked with the others, and is this machine fast enough?",
            names.join(", "),
            STARTUP_LIMIT.as_secs()
        )
    }
}

fn worsened(spec: LinkSpec, scenario: &Scenario) -> LinkSpec {
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
