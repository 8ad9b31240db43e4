//! What the clients do: echoes of media packets and messages between all pairs, through the SDK
//! as any application would.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::task::JoinSet;
use tradewind_client::{Class, Client, Event, Flow, Media, SendOptions};
use tradewind_controller::Controller;
use tradewind_host::Host;
use tradewind_wan::WanHost;

use super::{
    crowd,
    options::Scenario,
    record::{Record, reason},
    schedule::{self, LANES, PICTURE_LANE, What},
    world::Watched,
};

/// First byte of a payload.
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;
const MESSAGE: u8 = 3;
pub(super) const STEADY: u8 = 4;
/// A message between users of the crowd.
pub(super) const CROWD: u8 = 5;
/// Added to the kind of what is not counted: the first echo of a flow, which also waits until the
/// two clients' edges have introduced them to each other.
const FIRST: u8 = 0x80;
/// Bytes of such an echo.
const FIRST_BYTES: usize = 160;
/// Bytes of a packet of a steady flow.
const STEADY_BYTES: usize = 160;
/// Kind, two places, number, time: what every payload begins with.
const STAMP: usize = 1 + 2 + 2 + 4 + 8;

/// Flows that are opened at a time, per client.
const OPENING: usize = 8;
/// At the end, each client finds out its ways one after the other, this far apart.
const TRACE_INTERVAL: Duration = Duration::from_millis(5);
/// The first echoes are spread over this long, …
const FIRST_WITHIN: Duration = Duration::from_millis(500);
/// … and waited for at most so long.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// All clients, ready to send.
pub(super) struct Traffic {
    actors: Vec<Arc<Actor>>,
    duration: Duration,
    seed: u64,
    /// Names of places by relay name.
    names: BTreeMap<String, String>,
    /// Places by relay name.
    places: BTreeMap<String, usize>,
}

/// One client and what it needs.
struct Actor {
    me: usize,
    client: Client,
    host: Arc<dyn Host>,
    watched: Arc<Watched>,
    /// By place; none to itself.
    users: Vec<String>,
    flows: Vec<Option<Flow>>,
}

impl Traffic {
    /// Opens flows from everybody to everybody, and sends a first echo on each.
    pub(super) async fn prepare(
        scenario: &Scenario,
        watched: Arc<Watched>,
        clients: Vec<Client>,
        hosts: &[Arc<WanHost>],
    ) -> anyhow::Result<Self> {
        let users: Vec<String> = scenario
            .places
            .iter()
            .map(|place| place.user.clone())
            .collect();
        let mut preparing = JoinSet::new();
        for (me, (client, host)) in clients.into_iter().zip(hosts).enumerate() {
            let host: Arc<dyn Host> = host.clone();
            let (users, watched) = (users.clone(), watched.clone());
            preparing.spawn(async move {
                let flows = open_flows(&client, me, &users).await?;
                anyhow::Ok(Actor {
                    me,
                    client,
                    host,
                    watched,
                    users,
                    flows,
                })
            });
        }
        let mut actors = Vec::new();
        while let Some(actor) = preparing.join_next().await {
            actors.push(Arc::new(actor.context("a client ended early")??));
        }
        actors.sort_by_key(|actor| actor.me);
        for actor in &actors {
            actor.host.spawn(receive(actor.clone()));
        }
        let mut first = JoinSet::new();
        for actor in &actors {
            first.spawn(first_echoes(actor.clone()));
        }
        while first.join_next().await.is_some() {}
        let places = scenario.places.iter().zip(scenario.matrix.names());
        let by_relay = scenario.places.iter().enumerate();
        Ok(Self {
            places: by_relay
                .map(|(index, place)| (place.relay.clone(), index))
                .collect(),
            actors,
            duration: scenario.duration,
            seed: scenario.seed,
            names: places
                .map(|(place, name)| (place.relay.clone(), name.clone()))
                .collect(),
        })
    }

    /// The clients, by place.
    pub(super) fn clients(&self) -> Vec<Client> {
        let actors = self.actors.iter();
        actors.map(|actor| actor.client.clone()).collect()
    }

    /// The place whose relay is the edge of this place's client now.
    pub(super) fn edge(&self, place: usize) -> Option<usize> {
        let relay = self.actors[place].client.stats().relay?;
        self.places.get(&relay).copied()
    }

    /// Has steady flows between these pairs of places until network time `until`, in the background.
    pub(super) fn start_steady(
        &self,
        flows: &mut JoinSet<()>,
        pairs: &[(usize, usize)],
        pace: Duration,
        until: Duration,
    ) {
        for (index, &(from, to)) in pairs.iter().enumerate() {
            let actor = self.actors[from].clone();
            // Not all at the same moment.
            let first = pace.mul_f64(index as f64 / pairs.len() as f64);
            flows.spawn(async move {
                let wan = &actor.watched.wan;
                let mut next = wan.network_time() + first;
                while next < until {
                    wan.sleep_until(next).await;
                    actor.steady(to);
                    next += pace;
                }
            });
        }
    }

    /// The same between all pairs, to its end.
    pub(super) async fn steady_between_all(&self, pace: Duration, until: Duration) {
        let n = self.actors.len();
        let pairs: Vec<(usize, usize)> = (0..n * n)
            .map(|pair| (pair / n, pair % n))
            .filter(|(from, to)| from != to)
            .collect();
        let mut flows = JoinSet::new();
        self.start_steady(&mut flows, &pairs, pace, until);
        while flows.join_next().await.is_some() {}
    }

    /// Sends everything there is to send, and waits until the outcome of every message is known.
    pub(super) async fn run(&self) {
        let n = self.actors.len();
        let mut sending = JoinSet::new();
        for actor in &self.actors {
            let sends = schedule::schedule(n, actor.me, self.duration, self.seed);
            sending.spawn(send_all(actor.clone(), sends));
        }
        while sending.join_next().await.is_some() {}
    }

    /// The ways that packets take now, by (from · n + to): recorded by a packet, or else as
    /// planned.
    pub(super) async fn paths(&self, controller: Option<&Controller>) -> Vec<Vec<String>> {
        let n = self.actors.len();
        let by_index: BTreeMap<u16, String> = controller
            .map(Controller::relays)
            .into_iter()
            .flatten()
            .map(|relay| (relay.index, relay.name))
            .collect();
        let mut tracing = JoinSet::new();
        for actor in &self.actors {
            tracing.spawn(trace_all(actor.clone()));
        }
        let mut paths = vec![Vec::new(); n * n];
        while let Some(traced) = tracing.join_next().await {
            for (from, to, hops) in traced.unwrap_or_default() {
                let relays = hops.iter().filter_map(|hop| by_index.get(hop));
                paths[from * n + to] = relays.cloned().collect();
            }
        }
        for (index, path) in paths.iter_mut().enumerate() {
            let (from, to) = (index / n, index % n);
            if from != to && path.is_empty() {
                let relay = |place: usize| self.actors[place].client.stats().relay;
                if let (Some(from), Some(to), Some(controller)) =
                    (relay(from), relay(to), controller)
                    && let Ok(planned) = controller.path(&from, &to)
                {
                    *path = planned.path;
                }
            }
            for relay in path {
                if let Some(name) = self.names.get(relay) {
                    relay.clone_from(name);
                }
            }
        }
        paths
    }
}

async fn open_flows(
    client: &Client,
    me: usize,
    users: &[String],
) -> anyhow::Result<Vec<Option<Flow>>> {
    let mut flows: Vec<Option<Flow>> = users.iter().map(|_| None).collect();
    let mut opening = JoinSet::new();
    let mut wanted = (0..users.len()).filter(|&to| to != me);
    loop {
        while opening.len() < OPENING
            && let Some(to) = wanted.next()
        {
            let (client, user) = (client.clone(), users[to].clone());
            opening.spawn(async move {
                let flow = client.open_flow(&user, Class::Audio).await;
                let flow = flow.with_context(|| format!("{user} cannot be found"));
                (to, flow)
            });
        }
        let Some(opened) = opening.join_next().await else {
            return Ok(flows);
        };
        let (to, flow) = opened.context("a client ended early")?;
        flows[to] = Some(flow?);
    }
}

async fn send_all(actor: Arc<Actor>, sends: Vec<schedule::Send>) {
    let began = actor.host.now();
    let n = actor.users.len();
    let mut echoes = vec![0; n];
    let mut messages = vec![[0; LANES]; n];
    let mut outcomes = JoinSet::new();
    for send in sends {
        actor.host.sleep_until(began + send.at).await;
        match send.what {
            What::Echo => {
                let number = next(&mut echoes[send.to]);
                actor.echo(send.to, number, send.bytes);
            }
            What::Message { lane } => {
                let number = next(&mut messages[send.to][lane as usize]);
                let actor = actor.clone();
                let payload = actor.payload(MESSAGE, send.to, number, send.bytes);
                let options = SendOptions {
                    lane,
                    class: if lane == PICTURE_LANE {
                        Class::Bulk
                    } else {
                        Class::Message
                    },
                    ..SendOptions::default()
                };
                let receipt = actor
                    .client
                    .enqueue(&actor.users[send.to], payload, options);
                actor.note(send.to, |pair| pair.messages_sent += 1);
                outcomes.spawn(async move {
                    let outcome = receipt.await;
                    actor.note(send.to, |pair| match outcome {
                        Ok(_) => pair.messages_confirmed += 1,
                        Err(error) => {
                            *pair.messages_failed.entry(reason(error)).or_default() += 1;
                        }
                    });
                });
            }
        }
        while outcomes.try_join_next().is_some() {}
    }
    while outcomes.join_next().await.is_some() {}
}

fn next(number: &mut u32) -> u32 {
    let this = *number;
    *number += 1;
    this
}

impl Actor {
    /// A media packet that will come back. One that there is no way for at the moment is lost.
    fn echo(&self, to: usize, number: u32, bytes: usize) {
        self.note(to, |pair| pair.media_sent += 1);
        self.request(REQUEST, to, number, bytes);
    }

    /// A packet of a steady flow, which nobody answers.
    fn steady(&self, to: usize) {
        let now = self.watched.wan.network_time();
        let number = self.watched.steady.sent(self.me, to, now);
        self.request(STEADY, to, number, STEADY_BYTES);
    }

    fn request(&self, kind: u8, to: usize, number: u32, bytes: usize) {
        if let Some(flow) = &self.flows[to] {
            let bytes = bytes.min(flow.max_payload());
            if let Err(error) = flow.send(self.payload(kind, to, number, bytes)) {
                tracing::debug!(%error, to, "an echo was not sent");
            }
        }
    }

    fn payload(&self, kind: u8, to: usize, number: u32, bytes: usize) -> Bytes {
        // Network time: the clocks of hosts run fast and slow.
        let now = self.watched.wan.network_time();
        stamped(kind, (self.me, to), number, bytes, now)
    }

    /// Takes a note of the pair from this client to another one.
    fn note(&self, to: usize, act: impl FnOnce(&mut super::record::Pair)) {
        self.record().with(self.me, to, act);
    }

    fn record(&self) -> &Record {
        &self.watched.record
    }
}

/// A payload of so many bytes, or as many as its stamp has, from one to another.
pub(super) fn stamped(
    kind: u8,
    (from, to): (usize, usize),
    number: u32,
    bytes: usize,
    now: Duration,
) -> Bytes {
    let mut payload = BytesMut::with_capacity(bytes.max(STAMP));
    payload.put_u8(kind);
    payload.put_u16(from as u16);
    payload.put_u16(to as u16);
    payload.put_u32(number);
    payload.put_u64(now.as_nanos() as u64);
    payload.resize(bytes.max(STAMP), kind);
    payload.freeze()
}

/// What a payload says at its beginning.
pub(super) struct Stamp {
    pub(super) kind: u8,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) number: u32,
    nanoseconds: u64,
}

impl Stamp {
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let (&[kind, f0, f1, t0, t1, n0, n1, n2, n3], rest) = payload.split_first_chunk()?;
        let (stamp, _) = rest.split_first_chunk()?;
        Some(Self {
            kind,
            from: u16::from_be_bytes([f0, f1]).into(),
            to: u16::from_be_bytes([t0, t1]).into(),
            number: u32::from_be_bytes([n0, n1, n2, n3]),
            nanoseconds: u64::from_be_bytes(*stamp),
        })
    }

    /// Whether the rest of a payload with this stamp is as it was made.
    pub(super) fn is_followed_by_filler(&self, payload: &[u8]) -> bool {
        payload.iter().skip(STAMP).all(|&byte| byte == self.kind)
    }
}

/// Answers echoes and takes notes, until the client is closed.
async fn receive(actor: Arc<Actor>) {
    let mut back = Answers::default();
    while let Some(event) = actor.client.recv().await {
        match event {
            Event::Media(media) => on_media(&actor, &mut back, &media),
            Event::Message(message) => {
                if let Some(stamp) = Stamp::read(&message.payload)
                    && stamp.kind == MESSAGE
                    && stamp.to == actor.me
                    && stamp.from < actor.users.len()
                {
                    actor.record().with(stamp.from, actor.me, |pair| {
                        if let Some(lane) = pair.received.get_mut(message.lane as usize) {
                            lane.note(stamp.number);
                        }
                    });
                }
                crowd::note(&actor.watched, actor.me, &message);
            }
            Event::State(state) => {
                tracing::debug!(client = actor.me, ?state, "session");
                // Handles mean nothing in another session.
                back = Answers::default();
            }
            _ => {}
        }
    }
}

/// Flows back to those who sent echoes, by their handle.
type Answers = BTreeMap<u32, Flow>;

fn on_media(actor: &Actor, back: &mut Answers, media: &Media) {
    let now = actor.watched.wan.network_time();
    let Some(stamp) = Stamp::read(&media.payload) else {
        return;
    };
    if stamp.from.max(stamp.to) >= actor.users.len() {
        return;
    }
    let counted = stamp.kind & FIRST == 0;
    match stamp.kind & !FIRST {
        REQUEST => {
            let mut payload = BytesMut::from(&media.payload[..]);
            payload[0] = ANSWER | (stamp.kind & FIRST);
            let flow = back
                .entry(media.handle)
                .or_insert_with(|| actor.client.reply_flow(media));
            if counted {
                actor
                    .record()
                    .with(stamp.from, actor.me, |pair| pair.media_delivered += 1);
                actor.note(stamp.from, |pair| pair.media_sent += 1);
            }
            if let Err(error) = flow.send(payload.freeze()) {
                tracing::debug!(%error, to = stamp.from, "an answer was not sent");
                back.remove(&media.handle);
            }
        }
        STEADY => actor
            .watched
            .steady
            .arrived(stamp.from, actor.me, stamp.number, now),
        ANSWER if stamp.from == actor.me => {
            let sent = Duration::from_nanos(stamp.nanoseconds);
            let rtt = now.saturating_sub(sent).as_micros();
            let rtt = u32::try_from(rtt).unwrap_or(u32::MAX);
            if counted {
                actor
                    .record()
                    .with(stamp.to, actor.me, |pair| pair.media_delivered += 1);
                actor.note(stamp.to, |pair| pair.rtts_us.push(rtt));
            } else {
                actor.note(stamp.to, |pair| pair.first_rtt_us = Some(rtt));
            }
        }
        _ => {}
    }
}

/// Sends one echo to each of the others and waits until they are back: whoever talks to each other
/// for long is introduced once.
async fn first_echoes(actor: Arc<Actor>) {
    let others: Vec<usize> = (0..actor.users.len())
        .filter(|&to| to != actor.me)
        .collect();
    let interval = FIRST_WITHIN / u32::try_from(others.len()).unwrap_or(u32::MAX);
    for &to in &others {
        actor.request(REQUEST | FIRST, to, 0, FIRST_BYTES);
        actor.host.sleep(interval).await;
    }
    let patience = actor.host.now() + FIRST_PATIENCE;
    let waiting = |to: usize| {
        actor
            .record()
            .with(actor.me, to, |pair| pair.first_rtt_us.is_none())
    };
    while others.iter().any(|&to| waiting(to)) && actor.host.now() < patience {
        actor.host.sleep(interval).await;
    }
}

/// The relays on the way to each of the others, where a packet came through.
async fn trace_all(actor: Arc<Actor>) -> Vec<(usize, usize, Vec<u16>)> {
    let mut pings = JoinSet::new();
    for to in (0..actor.users.len()).filter(|&to| to != actor.me) {
        let actor = actor.clone();
        actor.host.sleep(TRACE_INTERVAL).await;
        pings.spawn(async move {
            let report = actor.client.ping_user(&actor.users[to]).await.ok()?;
            let hops = report.forward.iter().map(|hop| hop.relay).collect();
            Some((actor.me, to, hops))
        });
    }
    let mut traced = Vec::new();
    while let Some(ping) = pings.join_next().await {
        traced.extend(ping.ok().flatten());
    }
    traced
}
