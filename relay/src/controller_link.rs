//! The control task: talks to the controller, keeps the tables, publishes them to the shards.
//!
//! The relay forwards on what it holds for as long as the controller is away.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tradewind_host::{Host, Rng};
use tradewind_proto::{
    ALPN_CONTROL, FrameReader, MAX_CONTROL_FRAME, PlanId,
    control::{
        ControllerToRelay, Demand, Leaving, LinkReport, PlanHeld, Register, RelayLoad,
        RelayToController, UplinkInfo, controller_to_relay, relay_to_controller,
    },
    frame_message,
};
use tradewind_trust::{CONTROLLER_NAME, Identity, Roots, TrustError, tls};

use crate::{
    held::{Activation, Held},
    link_report::Told,
    metrics::Metrics,
    resolve::resolve,
    shard::{ClassBytes, Command, News, SOFTWARE},
    store::Store,
    tables::Tables,
};

/// Longest wait before the controller is tried again.
const LAST_RETRY: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// What the relay tells the controller of itself.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    pub(crate) name: String,
    /// Random, new at each start: tells the relay's lives apart.
    pub(crate) incarnation: u64,
    pub(crate) region: String,
    pub(crate) client_addresses: Vec<SocketAddr>,
    pub(crate) link_addresses: Vec<SocketAddr>,
    pub(crate) uplinks: Vec<UplinkInfo>,
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
}

/// How the rest of the relay sees the control task.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    pub(crate) tables: Arc<Tables>,
    pub(crate) controller_connected: bool,
}

/// The control task.
pub(crate) struct ControlTask {
    pub(crate) host: Arc<dyn Host>,
    /// `host:port` each; tried in turn.
    pub(crate) controllers: Vec<String>,
    pub(crate) introduction: Introduction,
    pub(crate) identity: Identity,
    pub(crate) roots: Roots,
    pub(crate) store: Option<Store>,
    pub(crate) shards: Vec<mpsc::Sender<Command>>,
    pub(crate) news: mpsc::Receiver<News>,
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) metrics: Arc<Metrics>,
    /// Number of the last link report; they count on over reconnections.
    pub(crate) last_report: u64,
}

/// Why the controller is not connected (any more).
#[derive(Debug, thiserror::Error)]
enum Away {
    #[error("{0}")]
    Resolve(#[from] crate::resolve::ResolveError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("cannot open a socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("cannot dial: {0}")]
    Dial(#[from] quinn::ConnectError),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("no answer within {CONNECT_PATIENCE:?}")]
    Timeout,
    #[error("sending: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("receiving: {0}")]
    Read(#[from] quinn::ReadError),
    #[error("the controller ended the control stream")]
    Ended,
    #[error("a message cannot be read: {0}")]
    Frame(#[from] tradewind_proto::FrameError),
    #[error("a message cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the controller refused this relay: {0}")]
    Refused(String),
    #[error(
        "the controller is of epoch {0}, a newer one ({1}) has been seen: it was restored from an old state"
    )]
    OldEpoch(u32, u32),
}

/// What is true of one connection to the controller only.
#[derive(Debug, Default)]
struct Conversation {
    /// The controller has said which epoch it is of, and it is none of the past.
    registered: bool,
    /// Demand as it was reported last, by the destination's index.
    demand: Vec<ClassBytes>,
    /// Links as they were reported last.
    links: Told,
}

impl ControlTask {
    /// Runs until the relay ends.
    pub(crate) async fn run(mut self) {
        let mut rng = self.host.rng();
        let mut held = Held::default();
        if let Some(state) = self.store.as_ref().and_then(Store::load) {
            held.restore(state, self.host.now(), self.host.wall_clock());
            self.publish(&held).await;
            if held.tables.active != PlanId::NONE {
                tracing::info!(plan = %held.tables.active, "forwarding on the plan kept on disk");
            }
        }
        let mut wait = FIRST_RETRY;
        for attempt in 0.. {
            let address = &self.controllers[attempt % self.controllers.len()].clone();
            let before = self.host.now();
            let away = match self.converse(address, &mut held).await {
                Ok(()) => return,
                Err(away) => away,
            };
            self.set_connected(false);
            if self.host.now() - before > LAST_RETRY * 2 {
                wait = FIRST_RETRY;
            }
            tracing::warn!(controller = %address, reason = %away, "the controller is away");
            self.pause(wait, &mut rng, &mut held).await;
            wait = (wait * 2).min(LAST_RETRY);
        }
    }

    /// One connection to the controller, from register to its end.
    async fn converse(&mut self, address: &str, held: &mut Held) -> Result<(), Away> {
        let host = self.host.clone();
        let remote = resolve(address).await?;
        let local: SocketAddr = if remote.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let endpoint = host.quic_endpoint(local, None)?;
        let config = tls::mtls_client_config(
            &self.identity,
            &self.roots,
            &[ALPN_CONTROL],
            tls::host_clock(host.clone()),
        )?;
        let mut client = quinn::ClientConfig::new(tls::quic_client(config)?);
        client.transport_config(Arc::new(transport()));
        let connecting = endpoint.connect_with(client, remote, CONTROLLER_NAME)?;
        let connection = host
            .timeout(CONNECT_PATIENCE, connecting)
            .await
            .map_err(|_| Away::Timeout)??;
        let (mut send, mut receive) = connection.open_bi().await?;
        let register = self.register(held);
        write(&mut send, relay_to_controller::Body::Register(register)).await?;

        let mut frames = FrameReader::new(MAX_CONTROL_FRAME);
        let mut leaving_told = false;
        let mut conversation = Conversation::default();
        // Of what was told while nobody listened only the newest is still so.
        let mut newest = None;
        while let Ok(news) = self.news.try_recv() {
            newest = Some(news);
        }
        if let Some(news) = newest {
            let report = self.report(news, &mut conversation, held);
            write(&mut send, relay_to_controller::Body::LinkReport(report)).await?;
        }
        loop {
            tokio::select! {
                biased;
                chunk = receive.read_chunk(usize::MAX, true) => {
                    let chunk = chunk?.ok_or(Away::Ended)?;
                    frames.push(chunk.bytes);
                    while let Some(frame) = frames.next_frame()? {
                        let message = ControllerToRelay::decode(frame)?;
                        if let Some(answer) = self.take(message, &mut conversation, held).await? {
                            write(&mut send, answer).await?;
                        }
                    }
                }
                changed = self.draining.changed(), if !leaving_told => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    leaving_told = true;
                    write(&mut send, relay_to_controller::Body::Leaving(Leaving {})).await?;
                }
                news = self.news.recv() => {
                    let Some(news) = news else {
                        return Ok(());
                    };
                    let report = self.report(news, &mut conversation, held);
                    write(&mut send, relay_to_controller::Body::LinkReport(report)).await?;
                }
            }
        }
    }

    /// What the shards have told, for the controller.
    fn report(
        &mut self,
        news: News,
        conversation: &mut Conversation,
        held: &mut Held,
    ) -> LinkReport {
        let News::Links {
            links,
            sessions,
            busy_permille,
            load_permille,
            demand,
            oldest_stamped,
        } = news;
        held.note_stamped_elsewhere(oldest_stamped);
        self.last_report += 1;
        let (links, delta) = conversation.links.next(self.host.now(), links);
        LinkReport {
            sequence: self.last_report,
            links,
            delta,
            load: Some(RelayLoad {
                sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
                busy_permille,
                load_permille,
                draining: *self.draining.borrow(),
            }),
            demand: conversation.changed_demand(demand),
        }
    }

    /// Takes a message of the controller; gives the answer.
    async fn take(
        &mut self,
        message: ControllerToRelay,
        conversation: &mut Conversation,
        held: &mut Held,
    ) -> Result<Option<relay_to_controller::Body>, Away> {
        use controller_to_relay::Body;
        let Some(body) = message.body else {
            // A message of a later version.
            return Ok(None);
        };
        if !conversation.registered && !matches!(body, Body::Registered(_) | Body::Refused(_)) {
            // It may be a controller of the past.
            tracing::warn!("the controller gives orders before it has said its epoch: not taken");
            return Ok(None);
        }
        match body {
            Body::Registered(registered) => {
                if !held.register(registered.index, registered.epoch) {
                    return Err(Away::OldEpoch(registered.epoch, held.state.epoch));
                }
                conversation.registered = true;
                self.set_connected(true);
                tracing::info!(index = registered.index, "registered with the controller");
            }
            Body::Refused(refused) => return Err(Away::Refused(refused.reason)),
            Body::RelayList(list) => held.take_relays(list),
            Body::TokenKeys(keys) => held.take_keys(keys),
            Body::Revocations(change) => held.take_revocations(change, self.host.wall_clock()),
            Body::PlanPart(part) => {
                return Ok(match held.hold(&part, self.host.now()) {
                    Ok(Some(id)) => {
                        self.publish(held).await;
                        Some(relay_to_controller::Body::PlanHeld(PlanHeld {
                            plan: Some(id.into()),
                        }))
                    }
                    Ok(None) => None,
                    Err(error) => {
                        self.metrics.plans_refused.inc();
                        tracing::error!(%error, "plan refused");
                        None
                    }
                });
            }
            Body::Activate(activate) => match held.activate(&activate) {
                Activation::Done => {
                    let stamping = held.tables.stamping;
                    tracing::debug!(plan = %stamping.plan, share = stamping.share, "activated");
                }
                Activation::Late => {
                    tracing::debug!(order = activate.order, "an order that has been overtaken");
                    return Ok(None);
                }
                Activation::Refused(reason) => {
                    let id = activate.plan.and_then(|name| name.id());
                    let id = id.unwrap_or(PlanId::NONE);
                    tracing::warn!(plan = %id, reason, "not activated");
                    return Ok(None);
                }
            },
        }
        self.publish(held).await;
        if let Some(store) = &mut self.store {
            store.save(&held.state, &self.host);
        }
        Ok(None)
    }

    fn register(&self, held: &Held) -> Register {
        let text = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect();
        let own = &self.introduction;
        Register {
            name: own.name.clone(),
            region: own.region.clone(),
            software: SOFTWARE.to_owned(),
            client_addresses: text(&own.client_addresses),
            link_addresses: text(&own.link_addresses),
            incarnation: own.incarnation,
            held: Some(held.tables.active.into()),
            latitude: own.latitude,
            longitude: own.longitude,
            uplinks: own.uplinks.clone(),
        }
    }

    async fn publish(&self, held: &Held) {
        let tables = Arc::new(held.tables.clone());
        self.status
            .send_modify(|status| status.tables = tables.clone());
        for shard in &self.shards {
            // A shard that is no more needs none.
            let _ = shard.send(Command::Tables(tables.clone())).await;
        }
    }

    fn set_connected(&self, connected: bool) {
        self.metrics.controller_connected.set(i64::from(connected));
        self.status
            .send_modify(|status| status.controller_connected = connected);
    }

    /// Waits about `time`, taking what the shards tell meanwhile (the controller will be told the
    /// next).
    async fn pause(&mut self, time: Duration, rng: &mut Rng, held: &mut Held) {
        let until = self.host.now() + time.mul_f64(rng.random_range(0.5..1.0));
        let host = self.host.clone();
        let sleep = host.sleep_until(until);
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                biased;
                () = &mut sleep => return,
                news = self.news.recv() => match news {
                    Some(News::Links { oldest_stamped, .. }) => {
                        held.note_stamped_elsewhere(oldest_stamped);
                    }
                    None => return,
                },
            }
        }
    }
}

impl Conversation {
    /// The rows of demand that have changed since they were reported on this connection.
    fn changed_demand(&mut self, demand: Vec<ClassBytes>) -> Vec<Demand> {
        self.demand.resize(demand.len(), ClassBytes::default());
        let changed = (0_u32..)
            .zip(demand.iter().zip(&self.demand))
            .filter(|(_, (now, before))| now != before)
            .map(|(destination, (now, _))| Demand {
                destination,
                bytes: now.to_vec(),
            })
            .collect();
        self.demand = demand;
        changed
    }
}

/// Keep-alives find a dead controller within seconds; nothing waits for them.
fn transport() -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .max_idle_timeout(Some(quinn::IdleTimeout::from(quinn::VarInt::from_u32(
            8_000,
        ))));
    config
}

async fn write(
    send: &mut quinn::SendStream,
    body: relay_to_controller::Body,
) -> Result<(), quinn::WriteError> {
    let frame: Bytes = frame_message(&RelayToController { body: Some(body) });
    send.write_chunk(frame).await
}
