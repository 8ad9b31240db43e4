//! Clients elsewhere than relays: `tradewind lab --relays 12 --clients 40`. All pairs of them echo each
//! other's packets for a while; what that takes is compared with the direct way, with one central
//! server, with the nearest edges, and with the best that any edges and any path could do.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use rand::{RngExt as _, seq::SliceRandom as _};
use serde::Serialize;
use tokio::task::JoinSet;
use tradewind_client::{Class, Client, Discovery, Event, Flow};
use tradewind_host::Host;
use tradewind_routing::RttMatrix;
use tradewind_wan::{HostClock, LinkSpec, WanHost};

use super::{
    builder::{self, Builder, worsened},
    options::Scenario,
    reference::Reference,
    seeds,
    world::Watched,
};

/// Conversations go on for so long before they are measured: the whole way of one is chosen while it
/// runs.
const WARM_UP: Duration = Duration::from_secs(20);
/// Each client sends every other one a packet so often.
const PACE: Duration = Duration::from_millis(1_500);
/// Echoes that come so long after the end count.
const LAST: Duration = Duration::from_secs(2);
/// A client and a relay in the same place are so far apart, one way.
const SAME_PLACE: Duration = Duration::from_micros(50);
const BYTES: usize = 200;

const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

/// Where the clients are, and the whole matrix.
#[derive(Debug, Clone)]
pub(crate) struct FarClients {
    pub(crate) matrix: RttMatrix,
    /// Places of the relays, in the scenario's order.
    pub(crate) relays: Vec<usize>,
    /// Places of the clients.
    pub(crate) clients: Vec<usize>,
}

impl FarClients {
    /// Draws the places of `count` clients from all places: each once, as long as there are enough.
    pub(crate) fn draw(matrix: RttMatrix, relays: Vec<usize>, count: usize, seed: u64) -> Self {
        let mut rng = seeds::rng(seed, seeds::FAR_CLIENTS, 0);
        let mut clients = Vec::with_capacity(count);
        while clients.len() < count {
            let mut all: Vec<usize> = (0..matrix.len()).collect();
            all.shuffle(&mut rng);
            clients.extend(all.into_iter().take(count - clients.len()));
        }
        Self {
            matrix,
            relays,
            clients,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FarReport {
    matrix: String,
    relays: Vec<String>,
    clients: Vec<String>,
    pub(super) summary: FarSummary,
    pairs: Vec<FarPair>,
    run: FarRun,
}

/// Sums over the same ordered pairs of clients: those that have a direct way both ways, and of which
/// echoes came back. Round trips in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FarSummary {
    /// Straight from client to client, by the matrix.
    pub(super) direct_ms: f64,
    /// Over one server, in the place where that sum is least, by the matrix.
    pub(super) central_ms: f64,
    central_place: String,
    /// Into and out of the network at the nearest edges, the best path between them, by the matrix.
    pub(super) nearest_edge_ms: f64,
    /// Measured: medians.
    pub(super) tradewind_ms: f64,
    /// The best that any edges and any path could do, by the matrix, without a cost per hop.
    pub(super) joint_optimum_ms: f64,
    pairs: u64,
    /// Pairs that are in no sum.
    pub(super) unmeasured_pairs: u64,
    echoes_sent: u64,
    echoes_returned: u64,
}

#[derive(Debug, Clone, Serialize)]
struct FarPair {
    from: String,
    to: String,
    direct_ms: f64,
    nearest_edge_ms: f64,
    tradewind_ms: f64,
    joint_optimum_ms: f64,
}

#[derive(Debug, Clone, Serialize)]
struct FarRun {
    mode: &'static str,
    seed: u64,
    duration_s: f64,
    wall_s: f64,
    packets: u64,
}

/// One client and what it has measured, by peer.
struct Actor {
    me: usize,
    host: Arc<WanHost>,
    client: Client,
    flows: Vec<Option<Flow>>,
    record: std::sync::Mutex<Record>,
}

#[derive(Default)]
struct Record {
    measuring: bool,
    sent: u64,
    rtts: BTreeMap<usize, Vec<f64>>,
}

impl Actor {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn send(&self, to: usize, payload: Bytes) {
        if let Some(flow) = self.flows.get(to).and_then(Option::as_ref)
            && let Err(error) = flow.send(payload)
        {
            tracing::debug!(%error, to, "an echo was not sent");
        }
    }
}

/// Runs the scenario to its end.
#[allow(clippy::disallowed_methods)] // what the run takes, for people
pub(super) fn measure(scenario: &Scenario, far: &FarClients) -> anyhow::Result<FarReport> {
    let began = std::time::Instant::now();
    let watched = Arc::new(Watched::new(scenario));
    let actors = watched.wan.run(live(scenario, far, &watched))?;
    let packets = watched.wan.total_stats().sent;
    Ok(report(scenario, far, &actors, packets, began.elapsed()))
}

async fn live(
    scenario: &Scenario,
    far: &FarClients,
    watched: &Arc<Watched>,
) -> anyhow::Result<Vec<Arc<Actor>>> {
    let builder = Builder::new(scenario, watched)?;
    builder.start_controller()?;
    builder.start_relays().await?;
    builder.first_plan().await?;
    let clients = connect(&builder, far).await?;
    let users: Vec<String> = (0..clients.len()).map(user).collect();
    let mut opening = JoinSet::new();
    for (me, (host, client)) in clients.into_iter().enumerate() {
        let users = users.clone();
        opening.spawn(async move {
            let mut flows: Vec<Option<Flow>> = Vec::new();
            for (to, user) in users.iter().enumerate() {
                flows.push(match to == me {
                    true => None,
                    false => Some(client.open_flow(user, Class::Audio).await?),
                });
            }
            let record = std::sync::Mutex::default();
            anyhow::Ok(Arc::new(Actor {
                me,
                host,
                client,
                flows,
                record,
            }))
        });
    }
    let mut actors = Vec::new();
    while let Some(actor) = opening.join_next().await {
        actors.push(
            actor
                .context("a client ended early")?
                .context("a client cannot be found")?,
        );
    }
    actors.sort_by_key(|actor| actor.me);
    let wan = &watched.wan;
    let start = wan.network_time();
    let _ = watched.started.set(start);
    let end = start + WARM_UP + scenario.duration;
    for actor in &actors {
        let host: Arc<dyn Host> = actor.host.clone();
        host.spawn(receive(actor.clone(), watched.clone()));
        host.spawn(send(actor.clone(), watched.clone(), end));
    }
    wan.sleep_until(start + WARM_UP).await;
    for actor in &actors {
        actor.record().measuring = true;
    }
    wan.sleep_until(end + LAST).await;
    Ok(actors)
}

fn user(index: usize) -> String {
    format!("client-{index}")
}

/// Connects all clients. Each knows all edges, as from the deployment's DNS name.
async fn connect(
    builder: &Builder<'_>,
    far: &FarClients,
) -> anyhow::Result<Vec<(Arc<WanHost>, Client)>> {
    let wan = builder.wan;
    let port = builder::CLIENT_PORT;
    let edges = builder.relay_hosts.iter();
    let edges: Vec<SocketAddr> = edges.map(|host| SocketAddr::new(host.ip(), port)).collect();
    let mut rng = seeds::rng(builder.scenario.seed, seeds::FAR_CLIENTS, 1);
    let mut connecting = JoinSet::new();
    for (index, &home) in far.clients.iter().enumerate() {
        let place = wan.add_place(&format!(" client {index} "));
        for (&relay, &relay_place) in far.relays.iter().zip(&builder.places) {
            let both = (
                far.matrix.one_way(home, relay),
                far.matrix.one_way(relay, home),
            );
            if let (Some(there), Some(back)) = both {
                let spec = |delay: Duration| {
                    let spec = LinkSpec::with_delay(delay.max(SAME_PLACE));
                    worsened(spec, builder.scenario)
                };
                wan.set_link(place, relay_place, spec(there));
                wan.set_link(relay_place, place, spec(back));
            }
        }
        let clock = HostClock::new(rng.random_range(-1_000_000..1_000_000), 10.0);
        let host = wan.add_host(place, clock);
        let name = user(index);
        let mut config = builder.client_config(&name, 0)?;
        let defaults =
            tradewind_client::ClientConfig::new(Discovery::from(edges.clone()), "", Vec::new());
        config.discovery = defaults.discovery;
        config.near_edges = defaults.near_edges;
        config.max_sessions = defaults.max_sessions;
        connecting.spawn(async move {
            let client = Client::connect(config, host.clone()).await;
            let client = client.with_context(|| format!("{name} cannot connect"))?;
            anyhow::Ok((index, host, client))
        });
    }
    let mut clients = Vec::new();
    while let Some(done) = connecting.join_next().await {
        clients.push(done.context("a client ended while it connected")??);
    }
    clients.sort_by_key(|(index, ..)| *index);
    Ok(clients
        .into_iter()
        .map(|(_, host, client)| (host, client))
        .collect())
}

/// Sends all others packets, evenly spaced, until network time `end`.
async fn send(actor: Arc<Actor>, watched: Arc<Watched>, end: Duration) {
    let others: Vec<usize> = (0..actor.flows.len())
        .filter(|&to| to != actor.me)
        .collect();
    let step = PACE / u32::try_from(others.len().max(1)).unwrap_or(u32::MAX);
    // Not all clients at the same moment.
    let mut next =
        watched.wan.network_time() + step.mul_f64(actor.me as f64 / actor.flows.len() as f64);
    for &to in others.iter().cycle() {
        if next >= end {
            return;
        }
        watched.wan.sleep_until(next).await;
        next += step;
        let mut payload = BytesMut::with_capacity(BYTES);
        payload.put_u8(REQUEST);
        payload.put_u32(actor.me as u32);
        let measuring = actor.record().measuring;
        payload.put_u8(u8::from(measuring));
        payload.put_u64(watched.wan.network_time().as_nanos() as u64);
        payload.resize(BYTES, 0);
        actor.record().sent += u64::from(measuring);
        actor.send(to, payload.freeze());
    }
}

/// Answers, and takes notes of answers.
async fn receive(actor: Arc<Actor>, watched: Arc<Watched>) {
    while let Some(event) = actor.client.recv().await {
        let Event::Media(media) = event else {
            continue;
        };
        let Some((&[kind, a, b, c, d, measured], rest)) = media.payload.split_first_chunk() else {
            continue;
        };
        let Some((stamp, _)) = rest.split_first_chunk() else {
            continue;
        };
        let peer = u32::from_be_bytes([a, b, c, d]) as usize;
        match kind {
            REQUEST => {
                let mut payload = BytesMut::from(&media.payload[..]);
                payload[0] = ANSWER;
                payload[1..5].copy_from_slice(&(actor.me as u32).to_be_bytes());
                actor.send(peer, payload.freeze());
            }
            ANSWER if measured == 1 => {
                let sent = Duration::from_nanos(u64::from_be_bytes(*stamp));
                let rtt = watched.wan.network_time().saturating_sub(sent);
                let rtt = rtt.as_secs_f64() * 1_000.0;
                actor.record().rtts.entry(peer).or_default().push(rtt);
            }
            _ => {}
        }
    }
}

fn report(
    scenario: &Scenario,
    far: &FarClients,
    actors: &[Arc<Actor>],
    packets: u64,
    wall: Duration,
) -> FarReport {
    let names = far.matrix.names();
    let reference = Reference::new(&far.matrix, &far.relays);
    let mut pairs = Vec::new();
    let mut measured = Vec::new();
    let mut unmeasured = 0;
    for (me, actor) in actors.iter().enumerate() {
        let record = actor.record();
        for (other, &to) in far.clients.iter().enumerate().filter(|(o, _)| *o != me) {
            let from = far.clients[me];
            let direct = reference.direct(from, to);
            let mut rtts = record.rtts.get(&other).cloned().unwrap_or_default();
            rtts.sort_by(f64::total_cmp);
            let Some(&median) = rtts.get(rtts.len() / 2).filter(|_| direct.is_finite()) else {
                unmeasured += 1;
                continue;
            };
            measured.push((from, to));
            pairs.push(FarPair {
                from: names[from].clone(),
                to: names[to].clone(),
                direct_ms: direct,
                nearest_edge_ms: reference.nearest(from, to),
                tradewind_ms: median,
                joint_optimum_ms: reference.joint(from, to),
            });
        }
    }
    let (central, central_ms) = reference.central(&measured);
    let sum = |of: fn(&FarPair) -> f64| pairs.iter().map(of).sum::<f64>();
    let returned = |actor: &Arc<Actor>| actor.record().rtts.values().map(Vec::len).sum::<usize>();
    FarReport {
        matrix: scenario.matrix_name.clone(),
        relays: scenario.matrix.names().to_vec(),
        clients: far
            .clients
            .iter()
            .map(|&place| names[place].clone())
            .collect(),
        summary: FarSummary {
            direct_ms: sum(|pair| pair.direct_ms),
            central_ms,
            central_place: names[central].clone(),
            nearest_edge_ms: sum(|pair| pair.nearest_edge_ms),
            tradewind_ms: sum(|pair| pair.tradewind_ms),
            joint_optimum_ms: sum(|pair| pair.joint_optimum_ms),
            pairs: pairs.len() as u64,
            unmeasured_pairs: unmeasured,
            echoes_sent: actors.iter().map(|actor| actor.record().sent).sum(),
            echoes_returned: actors.iter().map(returned).sum::<usize>() as u64,
        },
        pairs,
        run: FarRun {
            mode: match scenario.virtual_time {
                true => "virtual",
                false => "real",
            },
            seed: scenario.seed,
            duration_s: scenario.duration.as_secs_f64(),
            wall_s: wall.as_secs_f64(),
            packets,
        },
    }
}

impl FarReport {
    /// For people.
    pub(super) fn text(&self) -> String {
        let summary = &self.summary;
        let line = |what: &str, ms: f64| {
            let share = 100.0 * (ms / summary.direct_ms - 1.0);
            format!("{what:<32} {ms:>12.0} ms  {share:>+6.1} %\n")
        };
        let mut text = format!(
            "{} clients, {} relays ({}), {} pairs; sums of round trips, against the direct way\n",
            self.clients.len(),
            self.relays.len(),
            self.relays.join(", "),
            summary.pairs,
        );
        text += &line("direct", summary.direct_ms);
        text += &line("one server (best place)", summary.central_ms);
        text += &line("nearest edges", summary.nearest_edge_ms);
        text += &line("tradewind (measured)", summary.tradewind_ms);
        text += &line("optimum (any edges, any path)", summary.joint_optimum_ms);
        if summary.joint_optimum_ms > summary.direct_ms {
            text += "the optimum itself is longer than the direct way: relays are too few, or too far away from \
                     clients that are near to each other\n";
        }
        if summary.unmeasured_pairs > 0 {
            text += &format!("{} pairs are in no sum\n", summary.unmeasured_pairs);
        }
        text
    }
}
