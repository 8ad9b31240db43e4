//! A stand-in for the network: edges on emulated hosts that share one table of sessions. It knows no
//! routes, and does what tests ask of it: lose, hide, refuse, drain.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)] // each test file uses its part

mod groups;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tokio::sync::mpsc;
use tradewind_client::{Client, ClientConfig, Discovery, EdgeAddr};
use tradewind_host::Host;
use tradewind_proto::{
    ALPN_CLIENT, CloseCode, FrameReader, MAX_FRAME, RelayIndex,
    control::{
        Alive, ClientMessage, Device, Draining, Edge, EdgeDown, EdgeMessage, Gone, Hello,
        LookupResult, Peer, PresenceNews, Rejected, UserPresence, Way, Welcome, client_message,
        edge_message, lookup_result, lookup_user, rejected, user_presence,
    },
    encode_frame, frame_message,
    lane::LaneFrame,
    packet::{AccessHeader, Kind, Trace, TraceRecord},
};
use tradewind_trust::{Ca, QuicKeys, tls};
use tradewind_wan::{HostClock, PlaceId, Wan, WanHost};

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The stand-in network.
#[derive(Clone)]
pub struct Net {
    pub wan: Wan,
    ca: Arc<Ca>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<u32, Session>,
    next_session: u32,
    directory: BTreeMap<String, u32>,
    edges: Vec<EdgeAddr>,
    /// Of each edge's port.
    keys: Vec<QuicKeys>,
    dice: u64,
    groups: groups::Groups,
    /// Session, and whom it watches.
    watched: BTreeSet<(u32, String)>,
    pub knobs: Knobs,
    pub seen: Seen,
}

/// What the network is to do.
#[derive(Debug, Clone, Default)]
pub struct Knobs {
    /// Percent of message packets that vanish.
    pub loss: u64,
    /// How late `Peer` comes after the first packet.
    pub peer_delay: Duration,
    /// How often lookups are answered with RETRY first.
    pub retries: u32,
    /// How often message packets are rejected as QUEUE_FULL first.
    pub rejections: u32,
    /// Edges that are full.
    pub full: BTreeSet<usize>,
    /// Edges that begin no handshake.
    pub busy: BTreeSet<usize>,
    /// How many handshakes an edge begins per second at most.
    pub handshakes_per_s: Option<usize>,
    /// How loaded edges say that they are, parts per thousand.
    pub loads: BTreeMap<usize, u32>,
    /// Users nobody may send to.
    pub denied: BTreeSet<String>,
    /// The largest message, in bytes.
    pub max_message: Option<u64>,
    /// Percent of message packets to groups that a member's edge has no room for.
    pub group_loss: u64,
    /// Nobody holds any more what was sent to groups.
    pub forgotten: bool,
    /// What the way between two edges costs, in milliseconds. With it lookups tell all sessions of a
    /// user as ways to one device.
    pub costs: Option<BTreeMap<(usize, usize), u32>>,
    /// How often watches are answered with BUSY first.
    pub busy_watches: u32,
}

/// What the network has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub hellos: Vec<(usize, String)>,
    pub byes: Vec<String>,
    pub lookups: Vec<String>,
    /// The same, with what waits for them.
    pub purposes: Vec<(String, lookup_user::Purpose)>,
    /// Who has told somebody to have left which edge.
    pub left: Vec<(String, String)>,
    /// User, group, layers.
    pub joins: Vec<(String, String, u32)>,
    pub fetches: usize,
    /// Handshakes begun: at which edge, when.
    pub begun: Vec<(usize, Duration)>,
    /// Handshakes refused.
    pub refused: usize,
    /// User and edge of who watches, and whom.
    pub watches: Vec<(String, usize, String)>,
}

struct Session {
    user: String,
    instance: u64,
    further: bool,
    edge: usize,
    connection: quinn::Connection,
    control: mpsc::UnboundedSender<Bytes>,
    messages: mpsc::UnboundedSender<Bytes>,
    /// Sessions behind handles: handle n is at n − 1.
    handles: Vec<u32>,
}

impl Net {
    pub fn new(wan: &Wan) -> Self {
        let host = wan.add_host(wan.add_place("nowhere"), HostClock::EXACT);
        let ca = Ca::create("test", host.wall_clock()).unwrap();
        Self {
            wan: wan.clone(),
            ca: Arc::new(ca),
            state: Arc::default(),
        }
    }

    pub fn set(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.state.lock().unwrap().knobs);
    }

    pub fn seen(&self) -> Seen {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn edges(&self) -> Vec<EdgeAddr> {
        self.state.lock().unwrap().edges.clone()
    }

    /// Adds an edge at a place.
    pub fn edge(&self, place: PlaceId) -> Arc<WanHost> {
        let node = self.wan.add_host(place, HostClock::new(-2_000_000, 20.0));
        let address = SocketAddr::new(node.ip(), 7443);
        let index = {
            let mut state = self.state.lock().unwrap();
            let index = state.edges.len();
            state.edges.push(EdgeAddr {
                address,
                relay: Some(format!("edge-{index}")),
            });
            state.keys.push(QuicKeys::generate().unwrap());
            index
        };
        self.listen(index, node.clone());
        node
    }

    /// The process of an edge ends without a word and starts anew.
    pub fn restart(&self, edge: usize, node: &Arc<WanHost>) {
        node.kill();
        node.revive();
        self.listen(edge, node.clone());
    }

    fn listen(&self, index: usize, host: Arc<dyn Host>) {
        let (address, keys) = {
            let state = self.state.lock().unwrap();
            (state.edges[index].address, state.keys[index].clone())
        };
        let identity = self
            .ca
            .issue_relay(
                &format!("edge-{index}"),
                &[],
                host.wall_clock(),
                secs(86_400),
            )
            .unwrap();
        let clock = tls::host_clock(host.clone());
        let server = tls::client_port_server_config(&identity, &[ALPN_CLIENT], clock).unwrap();
        let mut server = quinn::ServerConfig::with_crypto(tls::quic_server(server).unwrap());
        let mut transport = quinn::TransportConfig::default();
        transport.max_idle_timeout(Some(secs(180).try_into().unwrap()));
        server.transport_config(Arc::new(transport));
        let mut config = quinn::EndpointConfig::default();
        keys.apply_to_endpoint(&mut config);
        config.rng_seed(Some(host.seed()));
        let socket = host.bind_udp(address).unwrap();
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, host.runtime())
                .unwrap();
        let (net, spawner) = (self.clone(), host.clone());
        host.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let (net, host) = (net.clone(), spawner.clone());
                if !net.admits(index) {
                    incoming.refuse();
                    continue;
                }
                spawner.spawn(async move {
                    if let Ok(connection) = incoming.await {
                        net.serve(host, index, connection).await;
                    }
                });
            }
        });
    }

    /// Whether an edge begins one more handshake now.
    fn admits(&self, edge: usize) -> bool {
        let now = self.wan.network_time();
        let mut state = self.state.lock().unwrap();
        let begun = state.seen.begun.iter().rev();
        let lately = begun
            .take_while(|(_, at)| *at + secs(1) > now)
            .filter(|(at, _)| *at == edge)
            .count();
        let limit = state.knobs.handshakes_per_s.unwrap_or(usize::MAX);
        let admits = !state.knobs.busy.contains(&edge) && lately < limit;
        match admits {
            true => state.seen.begun.push((edge, now)),
            false => state.seen.refused += 1,
        }
        admits
    }

    /// What a client called `user` that knows all edges is configured with.
    pub fn config(&self, user: &str) -> ClientConfig {
        let roots = vec![self.ca.certificate().clone()];
        ClientConfig::new(Discovery::Static(self.edges()), user, roots)
    }

    /// A client on a host of its own.
    pub async fn client(&self, place: PlaceId, user: &str) -> Client {
        let host = self.wan.add_host(place, HostClock::new(7_000_000, -30.0));
        Client::connect(self.config(user), host).await.unwrap()
    }

    /// An edge tells its clients that another one is down.
    pub fn say_down(&self, edge: usize, down: &str) {
        let state = self.state.lock().unwrap();
        for session in state.sessions.values().filter(|s| s.edge == edge) {
            let relay = down.to_owned();
            session.tell(0, edge_message::Body::EdgeDown(EdgeDown { relay }));
        }
    }

    /// An edge tells its clients to go.
    pub fn drain(&self, edge: usize) {
        let state = self.state.lock().unwrap();
        let others: Vec<_> = (0..state.edges.len())
            .filter(|index| *index != edge)
            .map(|index| told(&state.edges[index]))
            .collect();
        for session in state
            .sessions
            .values()
            .filter(|session| session.edge == edge)
        {
            session.tell(
                0,
                edge_message::Body::Draining(Draining {
                    edges: others.clone(),
                    deadline_ms: 5_000,
                }),
            );
        }
    }

    /// The edge closes the connection of a user.
    pub fn kick(&self, user: &str, code: CloseCode) {
        let state = self.state.lock().unwrap();
        for session in state
            .sessions
            .values()
            .filter(|session| session.user == user)
        {
            session.connection.close((code as u32).into(), b"kicked");
        }
    }

    async fn serve(self, host: Arc<dyn Host>, edge: usize, connection: quinn::Connection) {
        let Ok((mut send, mut receive)) = connection.accept_bi().await else {
            return;
        };
        let mut reader = FrameReader::new(MAX_FRAME);
        let mut me = None;
        let (control, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
        host.spawn(async move {
            while let Some(frame) = outgoing.recv().await {
                if send.write_chunk(frame).await.is_err() {
                    return;
                }
            }
        });
        while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
            reader.push(chunk.bytes);
            while let Some(frame) = reader.next_frame().unwrap() {
                let message = ClientMessage::decode(&frame[..]).unwrap();
                let id = message.id;
                // A sign of life was asked for.
                let Some(body) = message.body else {
                    continue;
                };
                match (body, me) {
                    (client_message::Body::Role(role), Some(me)) => {
                        let mut state = self.state.lock().unwrap();
                        if let Some(session) = state.sessions.get_mut(&me) {
                            session.further = role.standby;
                            if !role.standby {
                                let user = session.user.clone();
                                state.directory.insert(user, me);
                            }
                        }
                    }
                    (client_message::Body::KeepAlive(wait), Some(me)) => {
                        let (net, later) = (self.clone(), host.clone());
                        host.spawn(async move {
                            later.sleep(ms(u64::from(wait.answer_after_ms))).await;
                            let state = net.state.lock().unwrap();
                            if let Some(session) = state.sessions.get(&me) {
                                session.tell(id, edge_message::Body::Alive(Alive {}));
                            }
                        });
                    }
                    (client_message::Body::Hello(hello), None) => {
                        me = self.hello(&host, edge, &connection, &control, id, &hello);
                    }
                    (client_message::Body::LookupUser(lookup), Some(me)) => {
                        let seen = (lookup.user.clone(), lookup.purpose());
                        self.state.lock().unwrap().seen.purposes.push(seen);
                        self.lookup(me, id, &lookup.user);
                    }
                    (client_message::Body::WatchUsers(watch), Some(me)) => {
                        self.watch(me, watch.users);
                    }
                    (client_message::Body::UnwatchUsers(unwatch), Some(me)) => {
                        let mut state = self.state.lock().unwrap();
                        for user in unwatch.users {
                            state.watched.remove(&(me, user));
                        }
                    }
                    (client_message::Body::Bye(_), Some(me)) => {
                        let mut state = self.state.lock().unwrap();
                        let user = state.sessions[&me].user.clone();
                        state.seen.byes.push(user);
                        connection.close((CloseCode::Done as u32).into(), b"bye");
                    }
                    (body, Some(me)) => self.group_request(&host, me, id, body),
                    other => panic!("not expected: {other:?}"),
                }
            }
        }
        connection.closed().await;
        if let Some(me) = me {
            let mut state = self.state.lock().unwrap();
            if let Some(gone) = state.sessions.remove(&me)
                && state.directory.get(&gone.user) == Some(&me)
            {
                state.directory.remove(&gone.user);
                state.tell_presence(&gone.user);
            }
        }
    }

    fn hello(
        &self,
        host: &Arc<dyn Host>,
        edge: usize,
        connection: &quinn::Connection,
        control: &mpsc::UnboundedSender<Bytes>,
        id: u32,
        hello: &Hello,
    ) -> Option<u32> {
        let user = hello.token.as_str();
        let mut state = self.state.lock().unwrap();
        if user == "bad" {
            let code = CloseCode::Unauthorized as u32;
            connection.close(code.into(), b"the token's signature is wrong");
            return None;
        }
        if state.knobs.full.contains(&edge) {
            connection.close((CloseCode::Full as u32).into(), b"full");
            return None;
        }
        state.seen.hellos.push((edge, user.to_owned()));
        state.next_session += 1;
        let me = state.next_session;
        let (messages, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
        let out = connection.clone();
        host.spawn(async move {
            let mut stream = out.open_uni().await.unwrap();
            while let Some(frame) = outgoing.recv().await {
                if stream.write_chunk(frame).await.is_err() {
                    return;
                }
            }
        });
        let session = Session {
            user: user.to_owned(),
            instance: hello.instance,
            further: hello.role.as_ref().is_some_and(|role| role.standby),
            edge,
            connection: connection.clone(),
            control: control.clone(),
            messages,
            handles: Vec::new(),
        };
        let load = |edge: &usize| state.knobs.loads.get(edge).copied().unwrap_or(0);
        let welcome = Welcome {
            relay: format!("edge-{edge}"),
            region: "test".to_owned(),
            max_message_bytes: state.knobs.max_message.unwrap_or(16 << 20),
            expires_unix_s: u64::MAX / 4,
            app: "app".to_owned(),
            user: user.to_owned(),
            edges: (0..)
                .zip(&state.edges)
                .map(|(index, edge)| Edge {
                    load_permille: load(&index),
                    ..told(edge)
                })
                .collect(),
            load_permille: load(&edge),
            ..Welcome::default()
        };
        session.tell(id, edge_message::Body::Welcome(welcome));
        state.sessions.insert(me, session);
        // A session that stands by is not where a user is sought.
        let stands_by = state.sessions[&me].further && state.directory.contains_key(user);
        if !stands_by {
            state.directory.insert(user.to_owned(), me);
        }
        state.tell_presence(user);
        let (net, reading, spawner) = (self.clone(), connection.clone(), host.clone());
        host.spawn(async move {
            while let Ok(datagram) = reading.read_datagram().await {
                net.carry(&spawner, me, datagram);
            }
        });
        let (net, reading, spawner) = (self.clone(), connection.clone(), host.clone());
        host.spawn(async move {
            while let Ok(mut stream) = reading.accept_uni().await {
                let (net, host) = (net.clone(), spawner.clone());
                spawner.spawn(async move {
                    let mut reader = FrameReader::new(MAX_FRAME);
                    while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
                        reader.push(chunk.bytes);
                        while let Some(frame) = reader.next_frame().unwrap() {
                            net.carry(&host, me, frame);
                        }
                    }
                });
            }
        });
        Some(me)
    }

    fn watch(&self, me: u32, users: Vec<String>) {
        let mut state = self.state.lock().unwrap();
        for user in users {
            let session = &state.sessions[&me];
            let seen = (session.user.clone(), session.edge, user.clone());
            state.seen.watches.push(seen);
            let refused = if state.knobs.busy_watches > 0 {
                state.knobs.busy_watches -= 1;
                user_presence::Status::Busy
            } else if state.knobs.denied.contains(&user) {
                user_presence::Status::Denied
            } else {
                state.watched.insert((me, user.clone()));
                state.tell_presence(&user);
                continue;
            };
            state.sessions[&me].tell_presence(&user, refused);
        }
    }

    fn lookup(&self, me: u32, id: u32, user: &str) {
        let mut state = self.state.lock().unwrap();
        state.seen.lookups.push(user.to_owned());
        let (status, handle) = if state.knobs.retries > 0 {
            state.knobs.retries -= 1;
            (lookup_result::Status::Retry, 0)
        } else if state.knobs.denied.contains(user) {
            (lookup_result::Status::Denied, 0)
        } else if let Some(&target) = state.directory.get(user) {
            let handle = state.sessions.get_mut(&me).unwrap().handle_of(target).0;
            (lookup_result::Status::Found, handle)
        } else {
            (lookup_result::Status::Offline, 0)
        };
        let devices = match status {
            lookup_result::Status::Found => state.devices(me, user),
            _ => Vec::new(),
        };
        let result = LookupResult {
            status: status as i32,
            handle,
            devices,
        };
        state.sessions[&me].tell(id, edge_message::Body::LookupResult(result));
    }

    /// Takes a packet from a session to the one it is for.
    fn carry(&self, host: &Arc<dyn Host>, from: u32, packet: Bytes) {
        let mut header = AccessHeader::decode(&packet).unwrap();
        let mut payload = packet.slice(AccessHeader::LEN..);
        if header.handle >= groups::GROUP_HANDLE {
            return self.carry_to_group(host, from, header, payload);
        }
        let mut state = self.state.lock().unwrap();
        let is_message = header.kind == Kind::Message;
        let loss = state.knobs.loss;
        if state.happens(loss) && is_message {
            return;
        }
        // What a way costs is only said here: whoever tries one finds all alike.
        if is_message
            && state.knobs.costs.is_some()
            && matches!(LaneFrame::decode(payload.clone()), Ok(LaneFrame::Try(_)))
        {
            return;
        }
        if is_message
            && let Ok(LaneFrame::Left(left)) = LaneFrame::decode(payload.clone())
            && let Some(sender) = state.sessions.get(&from)
        {
            let said = (sender.user.clone(), left.relay);
            state.seen.left.push(said);
        }
        let Some(sender) = state.sessions.get(&from) else {
            return;
        };
        let Some(&target) = sender.handles.get(header.handle as usize - 1) else {
            panic!("a handle that was never given: {header:?}");
        };
        if is_message && state.knobs.rejections > 0 {
            let rejected = Rejected {
                reason: rejected::Reason::QueueFull as i32,
                handle: header.handle,
                flow: header.flow,
                sequence: header.sequence,
            };
            sender.tell(0, edge_message::Body::Rejected(rejected));
            state.knobs.rejections -= 1;
            return;
        }
        let user = sender.user.clone();
        let instance = match state.knobs.costs {
            Some(_) => sender.instance,
            None => 0,
        };
        let (relay, peer_delay) = (sender.edge as u16, state.knobs.peer_delay);
        if !state.sessions.contains_key(&target) {
            let gone = Gone {
                handle: header.handle,
            };
            state.sessions[&from].tell(0, edge_message::Body::Gone(gone));
            return;
        }
        let receiver = state.sessions.get_mut(&target).unwrap();
        let (handle, new) = receiver.handle_of(from);
        if new {
            let (control, spawner) = (receiver.control.clone(), host.clone());
            let body = Some(edge_message::Body::Peer(Peer {
                handle,
                user,
                instance,
            }));
            let news = frame_message(&EdgeMessage { reply_to: 0, body });
            host.spawn(async move {
                spawner.sleep(peer_delay).await;
                let _ = control.send(news);
            });
        }
        header.handle = handle;
        header.age_us = 1_000;
        if header.trace {
            let hop = |relay, age_us| TraceRecord {
                relay: RelayIndex(relay),
                uplink: 0,
                deflected: false,
                age_us,
            };
            let hops = vec![hop(relay, 100), hop(receiver.edge as u16, 900)];
            let mut traced = BytesMut::from(&Trace { hops }.encode()[..]);
            traced.extend_from_slice(&payload);
            payload = traced.freeze();
        }
        let mut head = [0; AccessHeader::LEN];
        header.encode(&mut head);
        let mut out = BytesMut::new();
        if is_message {
            encode_frame(&mut out, &[&head, &payload]);
            let _ = receiver.messages.send(out.freeze());
        } else {
            out.extend_from_slice(&head);
            out.extend_from_slice(&payload);
            let _ = receiver.connection.send_datagram(out.freeze());
        }
    }
}

impl State {
    /// The sessions of a user as ways of a session to its one device, if costs are known.
    fn devices(&mut self, me: u32, user: &str) -> Vec<Device> {
        let Some(costs) = self.knobs.costs.clone() else {
            return Vec::new();
        };
        let own = self.sessions[&me].edge;
        let theirs: Vec<u32> = (self.sessions.iter())
            .filter(|(_, session)| session.user == user)
            .map(|(&number, _)| number)
            .collect();
        let mut instance = 0;
        let mut ways = Vec::new();
        for number in theirs {
            let session = &self.sessions[&number];
            instance = session.instance;
            let (edge, standby) = (session.edge, session.further);
            let leg_us = session.connection.rtt().as_micros() as u32 / 2;
            let cost_us = costs[&(own, edge)] * 1_000 + leg_us;
            let handle = self.sessions.get_mut(&me).unwrap().handle_of(number).0;
            ways.push(Way {
                handle,
                relay: format!("edge-{edge}"),
                cost_us,
                leg_us,
                standby,
            });
        }
        vec![Device { instance, ways }]
    }

    /// Everybody who watches a user is told, whether anything has changed or not.
    fn tell_presence(&self, user: &str) {
        let online = self.directory.contains_key(user);
        let status = if online {
            user_presence::Status::Online
        } else {
            user_presence::Status::Offline
        };
        for (session, _) in self.watched.iter().filter(|(_, watched)| watched == user) {
            if let Some(session) = self.sessions.get(session) {
                session.tell_presence(user, status);
            }
        }
    }

    /// So many percent of the time.
    fn happens(&mut self, percent: u64) -> bool {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.dice >> 33) % 100 < percent
    }
}

impl Session {
    fn tell(&self, reply_to: u32, body: edge_message::Body) {
        let body = Some(body);
        let _ = self
            .control
            .send(frame_message(&EdgeMessage { reply_to, body }));
    }

    fn tell_presence(&self, user: &str, status: user_presence::Status) {
        let user = UserPresence {
            user: user.to_owned(),
            status: status as i32,
        };
        let news = PresenceNews { users: vec![user] };
        self.tell(0, edge_message::Body::PresenceNews(news));
    }

    fn handle_of(&mut self, session: u32) -> (u32, bool) {
        if let Some(index) = self.handles.iter().position(|known| *known == session) {
            return (index as u32 + 1, false);
        }
        self.handles.push(session);
        (self.handles.len() as u32, true)
    }
}

fn told(edge: &EdgeAddr) -> Edge {
    Edge {
        relay: edge.relay.clone().unwrap_or_default(),
        region: "test".to_owned(),
        addresses: vec![edge.address.to_string()],
        ..Default::default()
    }
}
