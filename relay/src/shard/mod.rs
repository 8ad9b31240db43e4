//! The data plane: one shard is a plain single-threaded value that owns its QUIC endpoints (one for
//! clients, one for the links of each uplink), their connections, sessions and queues. It has no
//! locks, no tasks, no clock and no socket of its own: datagrams and the time are given to it,
//! datagrams come out.
//!
//! A packet's way: [`connection`] (decrypt, parse) → [`forward`] and [`crate::forwarder`] (which
//! neighbour, which session) → [`crate::queue`] and [`connection`] (send).

mod connection;
mod endpoints;
mod forward;
mod groups;
mod link;
mod offline;
mod plan_use;
mod presence;
mod probing;
mod report;
mod requests;
mod session;
mod timers;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::BytesMut;
use quinn_proto::{
    ConnectionHandle, DatagramEvent, EcnCodepoint, EndpointConfig, ServerConfig, Transmit,
};
use rand::RngExt;
use rustc_hash::FxHashMap;
use tradewind_host::Rng;
use tradewind_proto::{
    Class, CloseCode, DropReason, Locator, PlanId, RelayIndex, UserKey,
    control::{self, Draining, EdgeMessage, edge_message},
    packet::HeaderError,
};

pub(crate) use self::endpoints::{ConnKey, LinkPort, Port, PortTraits};
use self::{
    connection::{Input, Role},
    endpoints::Endpoints,
    groups::Groups,
    link::{Peer, PeerKey},
    plan_use::PlanUse,
    presence::Presence,
    requests::Request,
    timers::Timers,
};
use crate::{
    allowance::Allowance,
    apps::{AppRates, Apps},
    directory::{self, Directory, RENEWAL, SWEEP_SHARE, Whereabouts},
    forwarder::Split,
    groups::GroupSettings,
    metrics::Metrics,
    tables::Tables,
    webhook::Webhooks,
};

/// What we call ourselves to others.
pub(crate) const SOFTWARE: &str = concat!("tradewind-relay/", env!("CARGO_PKG_VERSION"));

/// How soon clients are asked to leave a relay that the controller takes out: it gives them a minute.
const SENT_AWAY_WITHIN: Duration = Duration::from_secs(10);
/// Timers later than this are a stall.
const STALL: Duration = Duration::from_millis(15);
/// Links are not judged for as long after a stall as it took, but at most so long: what has waited
/// has been worked off by then.
const MOST_DISTRUST: Duration = Duration::from_millis(300);

/// What comes for a connection is taken from QUIC after so many bytes, however much comes at once: QUIC
/// drops datagrams beyond its buffer without a word (256 KiB for clients).
const MOST_UNREAD: usize = 64 << 10;

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TimerKey {
    Quic(ConnKey),
    Probe(ConnKey),
    Silence(ConnKey),
    Greeting(ConnKey),
    Dialled(ConnKey),
    Dial(PeerKey),
    Request(u64),
    Report,
    ReportSoon,
    Renewal,
    Presence,
    Groups(groups::Timer),
}

/// Limits that the operator sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Client sessions at a time.
    pub(crate) max_sessions: usize,
    /// Handshakes of clients that are begun per second.
    pub(crate) handshakes_per_s: u32,
    pub(crate) groups: GroupSettings,
}

/// What a shard needs to begin.
pub(crate) struct ShardConfig {
    pub(crate) name: String,
    /// Random, new at each start: tells the relay's lives apart.
    pub(crate) incarnation: u64,
    /// Of the clients' port.
    pub(crate) client_endpoint: EndpointConfig,
    pub(crate) client_server: Arc<ServerConfig>,
    pub(crate) link_server: Arc<ServerConfig>,
    pub(crate) link_client: quinn_proto::ClientConfig,
    /// What the clients' socket can do.
    pub(crate) client_port: PortTraits,
    /// The uplinks, 0 first.
    pub(crate) link_ports: Vec<LinkPort>,
    pub(crate) limits: Limits,
    pub(crate) app_rates: AppRates,
    pub(crate) rng: Rng,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) webhooks: Webhooks,
}

/// What the control task tells a shard.
#[derive(Debug)]
pub(crate) enum Command {
    /// New tables hold from now on.
    Tables(Arc<Tables>),
    /// Certificates have been renewed.
    Certificates(Box<Certificates>),
    /// Take no new sessions, and send those there are elsewhere.
    Drain {
        /// How long clients have to leave.
        deadline: Duration,
    },
    /// Close everything now.
    Close,
    /// Describe the links and sessions.
    Inspect(tokio::sync::oneshot::Sender<Inspection>),
}

/// TLS configurations made from renewed certificates.
#[derive(Debug)]
pub(crate) struct Certificates {
    pub(crate) client_server: Arc<ServerConfig>,
    pub(crate) link_server: Arc<ServerConfig>,
    pub(crate) link_client: quinn_proto::ClientConfig,
}

/// A shard's state, for the debug pages.
#[derive(Debug, Default, Clone)]
pub(crate) struct Inspection {
    pub(crate) links: Vec<control::LinkState>,
    pub(crate) sessions: Vec<BTreeMap<&'static str, String>>,
}

/// What a shard tells the control task.
#[derive(Debug)]
pub(crate) enum News {
    /// The links' states: once a second, and when one changes.
    Links {
        links: Vec<control::LinkState>,
        sessions: usize,
        /// Filled in by the driver, which knows when it waits. Parts per thousand.
        busy_permille: u32,
        /// As busy, or as full, whichever is greater; filled in likewise.
        load_permille: u32,
        /// What own sessions have sent since the start, by the destination's relay index.
        demand: Vec<ClassBytes>,
        /// The oldest plan that neighbours stamp; [`PlanId::NONE`] while none has said so.
        oldest_stamped: PlanId,
    },
}

/// Payload bytes by class.
pub(crate) type ClassBytes = [u64; Class::ALL.len()];

/// The data plane of one core.
pub(crate) struct Shard {
    name: String,
    incarnation: u64,
    rng: Rng,
    limits: Limits,
    metrics: Arc<Metrics>,
    directory: Arc<Directory>,
    webhooks: Webhooks,
    tables: Arc<Tables>,
    clients: Endpoints,
    /// One for each uplink, in the order of their numbers.
    links: Vec<Endpoints>,
    link_client: quinn_proto::ClientConfig,
    next_serial: u32,
    timers: Timers<TimerKey>,
    dirty: VecDeque<ConnKey>,
    inbox: VecDeque<(ConnKey, Input)>,
    /// Messages from this relay to itself.
    own_messages: VecDeque<control::RelayMessage>,
    peers: BTreeMap<PeerKey, Peer>,
    /// The oldest plan that each neighbour stamps, and when it said so.
    stamped: BTreeMap<RelayIndex, (PlanId, Instant)>,
    /// By the destination's relay index.
    demand: Vec<ClassBytes>,
    /// What the stamped plans make of our links.
    plan_use: PlanUse,
    /// When links were last reported, and when they are next out of turn.
    reported_at: Option<Instant>,
    report_at: Option<Instant>,
    /// By slot - 1: generation and connection.
    slots: Vec<Option<(u32, ConnKey)>>,
    free_slots: Vec<u32>,
    /// Where in `slots` those are that are announced again next.
    next_renewed: usize,
    sessions: usize,
    /// Handshakes of clients that may be begun.
    admission: Allowance,
    /// Share of the time that this shard works, parts per thousand, as the driver has said last.
    busy_permille: u32,
    apps: Apps,
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    lookups: FxHashMap<UserKey, (Vec<Whereabouts>, Instant)>,
    /// Users and SDK instances of sessions elsewhere.
    identities: FxHashMap<Locator, (UserKey, u64)>,
    /// The open question who is behind a session.
    asked_who: FxHashMap<Locator, u64>,
    told_gone: BTreeMap<(Locator, Locator), Instant>,
    groups: Groups,
    presence: Presence,
    /// Where the packet to a group that is being forwarded goes.
    split: Split,
    /// From when on edges have told this home of all sessions: it knows who is nowhere.
    homes_warm_at: Instant,
    /// Others are warned until then that links of this relay are only coming up.
    settling_until: Option<Instant>,
    /// Origin of the stamps that probes carry.
    epoch: Instant,
    now: Instant,
    wall: SystemTime,
    draining: bool,
    /// Everything is being closed.
    stopping: bool,
    news: VecDeque<News>,
    buffer: Vec<u8>,
}

impl Shard {
    pub(crate) fn new(config: ShardConfig, now: Instant, wall: SystemTime) -> Self {
        let mut rng = config.rng;
        let mut seeded = |mut endpoint: EndpointConfig| {
            endpoint.rng_seed(Some(rng.random()));
            endpoint
        };
        let clients = Endpoints::for_clients(
            seeded(config.client_endpoint),
            config.client_server,
            config.client_port,
        );
        let links = (0..)
            .zip(config.link_ports)
            .map(|(nth, of)| {
                let endpoint = seeded(EndpointConfig::default());
                Endpoints::new(Port::Link(nth), of, endpoint, config.link_server.clone())
            })
            .collect();
        let mut timers = Timers::default();
        timers.push(now, TimerKey::Report);
        timers.push(now + RENEWAL, TimerKey::Renewal);
        Self {
            name: config.name,
            incarnation: config.incarnation,
            rng,
            limits: config.limits,
            metrics: config.metrics,
            directory: config.directory,
            webhooks: config.webhooks,
            tables: Arc::default(),
            clients,
            links,
            link_client: config.link_client,
            next_serial: 0,
            timers,
            dirty: VecDeque::new(),
            inbox: VecDeque::new(),
            own_messages: VecDeque::new(),
            peers: BTreeMap::new(),
            stamped: BTreeMap::new(),
            demand: Vec::new(),
            plan_use: PlanUse::default(),
            reported_at: None,
            report_at: None,
            slots: Vec::new(),
            free_slots: Vec::new(),
            next_renewed: 0,
            sessions: 0,
            admission: Allowance::new(f64::from(config.limits.handshakes_per_s), 4, now),
            busy_permille: 0,
            apps: Apps::new(config.app_rates),
            requests: BTreeMap::new(),
            next_request: 0,
            lookups: FxHashMap::default(),
            identities: FxHashMap::default(),
            asked_who: FxHashMap::default(),
            told_gone: BTreeMap::new(),
            groups: Groups::new(config.limits.groups, now, wall),
            presence: Presence::new(now, wall),
            split: Split::default(),
            homes_warm_at: now + directory::COLD_START,
            settling_until: None,
            epoch: now,
            now,
            wall,
            draining: false,
            stopping: false,
            news: VecDeque::new(),
            buffer: Vec::new(),
        }
    }

    /// Takes one UDP datagram.
    pub(crate) fn handle(
        &mut self,
        port: Port,
        now: Instant,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        data: BytesMut,
    ) {
        self.now = now;
        let length = data.len();
        self.buffer.clear();
        let mut buffer = std::mem::take(&mut self.buffer);
        let endpoints = self.endpoints(port);
        match endpoints
            .endpoint
            .handle(now, remote, local_ip, ecn, data, &mut buffer)
        {
            Some(DatagramEvent::ConnectionEvent(ConnectionHandle(handle), event)) => {
                if let Some(conn) = endpoints.conns.get_mut(handle).and_then(Option::as_mut) {
                    conn.quic.handle_event(event);
                    conn.unread += length;
                    let full = conn.unread > MOST_UNREAD;
                    let serial = endpoints.serials[handle];
                    let key = ConnKey {
                        port,
                        handle,
                        serial,
                    };
                    self.mark(key);
                    if full {
                        self.drive(key);
                    }
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.accept(port, incoming, now, &mut buffer);
            }
            Some(DatagramEvent::Response(transmit)) => endpoints.respond(transmit, &buffer),
            None => {}
        }
        self.buffer = buffer;
    }

    /// Takes a command of the control task.
    pub(crate) fn command(&mut self, command: Command, now: Instant) {
        self.now = now;
        match command {
            Command::Tables(tables) => self.take_tables(tables, now),
            Command::Certificates(new) => {
                self.clients.set_server(new.client_server);
                for links in &mut self.links {
                    links.set_server(new.link_server.clone());
                }
                self.link_client = new.link_client;
            }
            Command::Drain { deadline } => self.drain(deadline, now),
            Command::Close => {
                self.stopping = true;
                let all = std::iter::once(&self.clients).chain(&self.links);
                let keys: Vec<ConnKey> = all.flat_map(Endpoints::keys).collect();
                for key in keys {
                    self.close(key, CloseCode::Draining, "the relay stops", now);
                }
            }
            Command::Inspect(reply) => {
                let inspection = Inspection {
                    links: self.link_states(now),
                    sessions: self.session_summaries(),
                };
                // Nobody waits any more: fine.
                let _ = reply.send(inspection);
            }
        }
    }

    /// Does everything that is due: timers, what came in, and gives what is to be sent to `send`,
    /// which takes it or says that the socket is full (then the rest waits for the next call).
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        wall: SystemTime,
        mut send: impl FnMut(Port, &Transmit, &[u8]) -> bool,
    ) {
        self.now = now;
        self.wall = wall;
        self.notice_stall(now);
        while let Some(key) = self.timers.pop_due(now) {
            self.timer_due(key, now);
        }
        for endpoints in std::iter::once(&mut self.clients).chain(&mut self.links) {
            while let Some((transmit, bytes)) = endpoints.responses.front() {
                if !send(endpoints.port, transmit, bytes) {
                    return;
                }
                endpoints.responses.pop_front();
            }
        }
        let mut driven = 0;
        loop {
            // First take in everything, so that what goes to one neighbour goes in one batch.
            while let Some(&key) = self.dirty.get(driven) {
                self.drive(key);
                driven += 1;
            }
            if self.take_inputs(now) {
                continue;
            }
            let Some(key) = self.dirty.pop_front() else {
                return;
            };
            driven -= 1;
            if !self.transmit(key, now, &mut send) {
                self.dirty.push_front(key);
                return;
            }
        }
    }

    /// When this process was late for its own timers, what waited meanwhile looks late as well, and
    /// it is not the links that were slow.
    fn notice_stall(&mut self, now: Instant) {
        let late = self
            .timers
            .next()
            .map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        if late > STALL {
            self.metrics.stalls.inc();
            self.distrust_links(now, late.min(MOST_DISTRUST));
        }
    }

    /// When [`poll`](Self::poll) must be called again at the latest.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        self.timers.next()
    }

    /// Takes how busy it is, which only the driver knows, and gives how loaded it is: as busy or as full,
    /// whichever is greater. Parts per thousand.
    pub(crate) fn take_busy(&mut self, busy_permille: u32) -> u32 {
        self.busy_permille = busy_permille;
        self.load_permille()
    }

    pub(super) fn load_permille(&self) -> u32 {
        let full = self.sessions * 1_000 / self.limits.max_sessions.max(1);
        self.busy_permille.max(full as u32).min(1_000)
    }

    /// What the control task is to be told.
    pub(crate) fn next_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    fn take_tables(&mut self, tables: Arc<Tables>, now: Instant) {
        let before = std::mem::replace(&mut self.tables, tables);
        let homes = |tables: &Tables| tables.active_plan().map(|plan| plan.relays.clone());
        if before.me != RelayIndex::NONE && before.me != self.tables.me {
            // Every locator of ours has become wrong.
            for key in self.clients.keys() {
                self.close(key, CloseCode::Draining, "the relay has a new index", now);
            }
        }
        // The controller takes this relay out, by no doing of its own. It may take it in again, so
        // that whoever comes all the same is served.
        if self.tables.i_am_to_go() && !before.i_am_to_go() && !self.draining {
            tracing::warn!("the controller takes this relay out: clients are sent elsewhere");
            self.send_clients_elsewhere(SENT_AWAY_WITHIN, now);
        }
        if !Arc::ptr_eq(&before.revoked, &self.tables.revoked) {
            self.close_revoked(now);
        }
        self.update_peers(now);
        self.plan_use = PlanUse::of(self.tables.plans_in_use().map(|plan| &plan.part));
        self.share_budget(now);
        if homes(&before) != homes(&self.tables) {
            let warm = now >= self.homes_warm_at;
            self.move_groups(homes(&before), warm, now);
            self.move_presence(homes(&before), warm);
            self.homes_warm_at = self.homes_warm_at.max(now + directory::WARM_UP);
            self.announce_all(now);
        }
        self.metrics
            .plan_epoch
            .set(i64::from(self.tables.active.epoch));
        self.metrics
            .plan_number
            .set(i64::from(self.tables.active.number));
        self.metrics
            .stamped_share
            .set(i64::from(self.tables.stamping.share));
    }

    fn drain(&mut self, deadline: Duration, now: Instant) {
        self.draining = true;
        self.send_clients_elsewhere(deadline, now);
    }

    fn send_clients_elsewhere(&mut self, deadline: Duration, now: Instant) {
        let body = edge_message::Body::Draining(Draining {
            edges: self.other_edges(),
            deadline_ms: deadline.as_millis() as u32,
        });
        let frame = tradewind_proto::frame_message(&EdgeMessage {
            reply_to: 0,
            body: Some(body),
        });
        for key in self.clients.keys() {
            match self.conn_mut(key) {
                Some(conn) if conn.alive => {
                    conn.send_control(frame.clone());
                    self.mark(key);
                }
                _ => self.close(key, CloseCode::Draining, "the relay is draining", now),
            }
        }
    }

    /// Lets a connection work: endpoint events, then what it has for us.
    fn drive(&mut self, key: ConnKey) {
        let now_us = self.micros(self.now);
        let inbox = &mut self.inbox;
        let endpoints = match key.port {
            Port::Client => &mut self.clients,
            Port::Link(nth) => &mut self.links[usize::from(nth)],
        };
        if endpoints.serials.get(key.handle) != Some(&key.serial) {
            return;
        }
        let Some(conn) = endpoints.conns[key.handle].as_mut() else {
            return;
        };
        while let Some(event) = conn.quic.poll_endpoint_events() {
            let answer = endpoints
                .endpoint
                .handle_event(ConnectionHandle(key.handle), event);
            if let Some(event) = answer {
                conn.quic.handle_event(event);
            }
        }
        conn.unread = 0;
        conn.read(|input| inbox.push_back((key, input)));
        if let Role::Link(link) = &mut conn.role {
            link.probing.observe(&conn.quic.stats(), now_us);
        }
        // Not before what it carried has been ended: the news of a timeout, which drains at once,
        // still lies in the inbox.
        if conn.over && conn.quic.is_drained() {
            endpoints.conns[key.handle] = None;
        }
    }

    /// Handles what came in. `true` when there was anything.
    fn take_inputs(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some((key, input)) = self.inbox.pop_front() {
            any = true;
            // What a closed connection still had to say means nothing any more.
            if !matches!(input, Input::Lost(_)) && self.conn(key).is_none_or(|conn| conn.over) {
                if matches!(input, Input::Packet(_) | Input::Datagram(_)) {
                    self.metrics.count_drop(DropReason::ConnectionClosed);
                }
                continue;
            }
            match (key.port, input) {
                (_, Input::Connected) => {
                    self.handshake_over(key);
                    match key.port {
                        Port::Client => self.session_connected(key, now),
                        Port::Link(_) => self.link_connected(key, now),
                    }
                }
                (_, Input::Lost(reason)) => {
                    tracing::debug!(port = ?key.port, %reason, "connection lost");
                    self.connection_over(key, now);
                    self.mark(key);
                }
                (_, Input::Broken(reason)) => self.close(key, CloseCode::Protocol, reason, now),
                (Port::Client, Input::Datagram(raw)) => self.session_packet(key, raw, false, now),
                (Port::Client, Input::Packet(raw)) => self.session_packet(key, raw, true, now),
                (Port::Client, Input::Control(frame)) => self.session_control(key, &frame, now),
                (Port::Link(_), Input::Datagram(raw)) => self.link_datagram(key, raw, now),
                (Port::Link(_), Input::Packet(raw)) => self.link_packet(key, raw, now),
                (Port::Link(_), Input::Control(frame)) => self.link_control(key, &frame, now),
            }
        }
        any |= self.flush_groups(now);
        while let Some(message) = self.own_messages.pop_front() {
            any = true;
            let me = self.tables.me;
            self.on_relay_message(me, message, now);
        }
        any
    }

    /// The third room: hands queued packets to QUIC and QUIC's datagrams to the socket. `false`
    /// when the socket is full.
    fn transmit(
        &mut self,
        key: ConnKey,
        now: Instant,
        send: &mut impl FnMut(Port, &Transmit, &[u8]) -> bool,
    ) -> bool {
        let me = self.tables.me;
        let metrics = self.metrics.clone();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut room = true;
        let max_segments = self.endpoints(key.port).max_segments;
        if let Some(conn) = self.conn_mut(key) {
            loop {
                let handed_over = conn.pump(me, now, &metrics);
                let mut sent = false;
                loop {
                    buffer.clear();
                    let Some(transmit) = conn.poll_transmit(now, max_segments, &mut buffer) else {
                        break;
                    };
                    if !send(key.port, &transmit, &buffer[..transmit.size]) {
                        // The datagram itself is kept by who said so.
                        room = false;
                        break;
                    }
                    sent = true;
                }
                // What was sent has made room for what still waits, if anything does.
                if !room || !(handed_over || sent) || !conn.has_more() {
                    break;
                }
            }
            if room {
                conn.dirty = false;
            }
            // A deadline that has moved further away is looked at again when the old one comes.
            if let Some(deadline) = conn.quic.poll_timeout()
                && conn.timer.is_none_or(|armed| deadline < armed)
            {
                conn.timer = Some(deadline);
                self.timers.push(deadline, TimerKey::Quic(key));
            }
        }
        self.buffer = buffer;
        if room {
            // Sending makes events too (a freed buffer, the end of draining).
            self.drive(key);
        }
        room
    }

    fn timer_due(&mut self, key: TimerKey, now: Instant) {
        match key {
            TimerKey::Quic(key) => {
                if let Some(conn) = self.conn_mut(key)
                    && conn.timer.is_some_and(|deadline| deadline <= now)
                {
                    conn.timer = None;
                    conn.quic.handle_timeout(now);
                    self.mark(key);
                }
            }
            TimerKey::Probe(key) => self.probe_due(key, now),
            TimerKey::Silence(key) => self.silence_due(key, now),
            TimerKey::Greeting(key) => self.greeting_due(key, now),
            TimerKey::Dialled(key) => self.dialled(key, now),
            TimerKey::Dial(peer) => self.dial(peer, now),
            TimerKey::Request(id) => self.try_request(id, now),
            TimerKey::Report => {
                self.share_budget(now);
                self.report_links(now);
                self.tend_sessions(now);
                self.sweep_requests(now);
                self.sweep_groups(now);
                self.directory.sweep(SWEEP_SHARE, now);
                let users = self.directory.len();
                self.metrics.directory_users.set(users as i64);
                self.timers.push(now + report::PERIOD, TimerKey::Report);
            }
            TimerKey::ReportSoon => self.report_due(now),
            TimerKey::Groups(timer) => self.groups_due(timer, now),
            TimerKey::Presence => self.presence_due(now),
            TimerKey::Renewal => {
                if self.next_renewed == 0 {
                    self.renew_groups(now);
                    self.count_watched();
                }
                let pause = self.renew_some(now);
                self.timers.push(now + pause, TimerKey::Renewal);
            }
        }
    }

    pub(super) fn count_bad_header(&self, error: HeaderError) {
        self.metrics.count_drop(match error {
            HeaderError::Version(_) => DropReason::Version,
            _ => DropReason::Malformed,
        });
    }

    /// Microseconds of this relay's own clock, as probes carry them.
    pub(super) fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_micros() as u64
    }
}
