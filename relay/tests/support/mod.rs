//! A small world in virtual time: real relays, a controller that says what the test says, and
//! clients that speak the session protocol byte by byte.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // tests: each uses its part

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tradewind_host::Host;
use tradewind_proto::{
    ALPN_CLIENT, ALPN_CONTROL, Class, FrameReader, MAX_CONTROL_FRAME, MAX_FRAME,
    control::{
        Activate, Backup, ClientMessage, ControllerToRelay, EdgeMessage, Hello, LinkReport,
        LinkState, LookupRelay, LookupUser, PlanName, PlanPart, ProfileTable, Register, Registered,
        RelayInfo, RelayList, RelayToController, Selector, TokenKey, TokenKeys, TreeTable,
        client_message, controller_to_relay, edge_message, lookup_result, relay_to_controller,
    },
    encode_frame, frame_message,
    packet::{AccessHeader, Kind, Trace, TraceRecord},
    token::Claims,
};
use tradewind_relay::{Placement, Relay, RelaySettings, StartError};
use tradewind_trust::{Ca, EDGE_NAME, Identity, TokenSigner, tls};
use tradewind_wan::{HostClock, PlaceId, Wan, WanHost};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub struct World {
    pub wan: Wan,
    pub places: Vec<PlaceId>,
    pub relays: Vec<Relay>,
    pub relay_hosts: Vec<Arc<WanHost>>,
    pub controller: FakeController,
    ca: Ca,
    signer: TokenSigner,
    change: fn(&mut RelaySettings, &WanHost),
}

impl World {
    /// Relays r0, r1, … with the given one-way delays in milliseconds between them, all of them
    /// registered and linked. There is no plan yet.
    pub async fn new(wan: Wan, one_way_ms: &[&[u64]]) -> Self {
        Self::with_settings(wan, one_way_ms, |_, _| ()).await
    }

    /// The same, with settings that the test changes.
    pub async fn with_settings(
        wan: Wan,
        one_way_ms: &[&[u64]],
        change: fn(&mut RelaySettings, &WanHost),
    ) -> Self {
        let names: Vec<String> = (0..one_way_ms.len()).map(|i| format!("r{i}")).collect();
        let places = wan.add_matrix(&names, |i, j| Some(Duration::from_millis(one_way_ms[i][j])));
        let controller_host = wan.add_host(places[0], HostClock::EXACT);
        let now = controller_host.wall_clock();
        let ca = Ca::create("test", now).unwrap();
        let signer = TokenSigner::generate().unwrap();
        let identity = ca.issue_controller(&[], now, YEAR).unwrap();
        let controller =
            FakeController::start(controller_host, &identity, &ca, &signer, names.len());
        let mut world = Self {
            wan: wan.clone(),
            places: places.clone(),
            relays: Vec::new(),
            relay_hosts: Vec::new(),
            controller,
            ca,
            signer,
            change,
        };
        for (index, name) in names.iter().enumerate() {
            // Clocks that have nothing to do with each other.
            let clock = HostClock::new(1_000_000 * index as i64, 20.0 * index as f64 - 30.0);
            let host = wan.add_host(places[index], clock);
            let relay = world.start_relay(name, host.clone()).await;
            world.relays.push(relay);
            world.relay_hosts.push(host);
        }
        let links = names.len() * (names.len() - 1);
        for _ in 0..200 {
            if world.links_up().await == links {
                return world;
            }
            wan.sleep(Duration::from_millis(50)).await;
        }
        panic!("the links did not come up");
    }

    pub async fn start_relay(&self, name: &str, host: Arc<WanHost>) -> Relay {
        self.try_start_relay(name, host, |_| ()).await.unwrap()
    }

    pub async fn try_start_relay(
        &self,
        name: &str,
        host: Arc<WanHost>,
        change: impl FnOnce(&mut RelaySettings),
    ) -> Result<Relay, StartError> {
        self.try_start_relay_on(name, host.clone(), host, change)
            .await
    }

    /// The same on a machine of which `host` is a part.
    pub async fn try_start_relay_on(
        &self,
        name: &str,
        host: Arc<WanHost>,
        machine: Arc<dyn Host>,
        change: impl FnOnce(&mut RelaySettings),
    ) -> Result<Relay, StartError> {
        let identity = self
            .ca
            .issue_relay(name, &[], host.wall_clock(), YEAR)
            .unwrap();
        let mut settings = RelaySettings {
            name: name.to_owned(),
            region: "test".to_owned(),
            client_listen: SocketAddr::new(host.ip(), 7443),
            link_listen: SocketAddr::new(host.ip(), 7444),
            client_advertise: Vec::new(),
            link_advertise: Vec::new(),
            link_capacity: 0,
            uplinks: Vec::new(),
            controllers: vec![self.controller.address.to_string()],
            identity,
            roots: self.ca.roots(),
            state_file: None,
            max_sessions: 100,
            latitude: 0.0,
            longitude: 0.0,
        };
        (self.change)(&mut settings, &host);
        change(&mut settings);
        Relay::start(settings, machine, Placement::HostTasks).await
    }

    async fn links_up(&self) -> usize {
        let mut up = 0;
        for relay in &self.relays {
            up += relay
                .links()
                .await
                .iter()
                .filter(|link| link.state == "up")
                .count();
        }
        up
    }

    /// Gives all relays a plan and activates it. `next_hops[relay][destination]`.
    pub async fn plan(&self, number: u32, next_hops: &[&[u32]], backups: &[(u32, &[u32])]) {
        self.controller.plan(number, next_hops, backups);
        for _ in 0..100 {
            let wanted = format!("1.{number}");
            if self.relays.iter().all(|r| r.plan().active == wanted) {
                // Homes answer for certain once they have been told.
                self.wan.sleep(Duration::from_secs(3)).await;
                return;
            }
            self.wan.sleep(Duration::from_millis(50)).await;
        }
        panic!("the plan was not activated");
    }

    pub fn token(&self, user: &str, change: impl FnOnce(&mut Claims)) -> String {
        let host = &self.relay_hosts[0];
        let unix = host.wall_clock().duration_since(std::time::UNIX_EPOCH);
        let mut claims = Claims {
            app: "chat".to_owned(),
            user: user.to_owned(),
            exp: unix.unwrap().as_secs() + 3_600,
            ..Claims::default()
        };
        change(&mut claims);
        self.signer.sign(&claims).unwrap()
    }

    /// A client at a relay's place, connected to it.
    pub async fn client(&self, relay: usize, user: &str) -> TestClient {
        let token = self.token(user, |_| ());
        self.client_with(relay, &token).await.unwrap()
    }

    pub async fn client_with(&self, relay: usize, token: &str) -> Result<TestClient, String> {
        let host = self.wan.add_host(self.places[relay], HostClock::EXACT);
        self.client_on(host, relay, token).await
    }

    /// A client on a host that the test keeps.
    pub async fn client_on(
        &self,
        host: Arc<WanHost>,
        relay: usize,
        token: &str,
    ) -> Result<TestClient, String> {
        let mut address = self.relays[relay].client_address();
        if address.ip().is_unspecified() {
            address.set_ip(self.relay_hosts[relay].ip6());
        }
        TestClient::connect(host, address, &self.ca, token).await
    }

    /// The value of a counter or gauge at a relay, summed over its labels that contain `label`.
    pub fn metric(&self, relay: usize, name: &str, label: &str) -> f64 {
        self.relays[relay]
            .registry()
            .gather()
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(|family| family.get_metric())
            .filter(|metric| {
                label.is_empty() || metric.get_label().iter().any(|l| l.value() == label)
            })
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }
}

pub struct FakeController {
    pub address: SocketAddr,
    state: Arc<Mutex<ControllerState>>,
    host: Arc<WanHost>,
}

#[derive(Default)]
struct ControllerState {
    expected: usize,
    registered: BTreeMap<
        String,
        (
            RelayInfo,
            quinn::Connection,
            tokio::sync::mpsc::UnboundedSender<Bytes>,
        ),
    >,
    reports: BTreeMap<String, LinkReport>,
    /// By relay and the destination's index: as reported last.
    demand: BTreeMap<(String, u32), Vec<u64>>,
    keys: Vec<TokenKey>,
    epoch: u32,
    /// Said to a relay before the epoch.
    first: Vec<controller_to_relay::Body>,
}

impl ControllerState {
    /// What a delta does not name is as it was.
    fn take_report(&mut self, relay: &str, mut report: LinkReport) {
        if let Some(before) = self.reports.remove(relay).filter(|_| report.delta) {
            let named = |link: &LinkState| {
                let mut links = report.links.iter();
                links.any(|other| (&other.peer, other.uplink) == (&link.peer, link.uplink))
            };
            let rest: Vec<_> = before.links.into_iter().filter(|l| !named(l)).collect();
            report.links.extend(rest);
        }
        self.reports.insert(relay.to_owned(), report);
    }
}

impl FakeController {
    fn start(
        host: Arc<WanHost>,
        identity: &Identity,
        ca: &Ca,
        signer: &TokenSigner,
        expected: usize,
    ) -> Self {
        let host_dyn: Arc<dyn Host> = host.clone();
        let config = tls::controller_server_config(
            identity,
            &ca.roots(),
            &[ALPN_CONTROL],
            tls::host_clock(host_dyn.clone()),
        )
        .unwrap();
        let config = quinn::ServerConfig::with_crypto(tls::quic_server(config).unwrap());
        let address = SocketAddr::new(host.ip(), 7400);
        let endpoint = host_dyn.quic_endpoint(address, Some(config)).unwrap();
        let state = Arc::new(Mutex::new(ControllerState {
            expected,
            epoch: 1,
            keys: vec![TokenKey {
                kid: signer.kid().to_owned(),
                public_key: signer.public_key().to_vec(),
            }],
            ..ControllerState::default()
        }));
        let shared = state.clone();
        let spawner = host_dyn.clone();
        host_dyn.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let state = shared.clone();
                let tasks = spawner.clone();
                spawner.spawn(async move {
                    if let Ok(connection) = incoming.await {
                        serve_relay(connection, state, tasks).await;
                    }
                });
            }
        });
        Self {
            address,
            state,
            host,
        }
    }

    /// The last report of a relay.
    pub fn report(&self, relay: &str) -> LinkReport {
        self.state.lock().unwrap().reports[relay].clone()
    }

    /// Loses all relays and comes back from an old state: of the epoch before, and without waiting to
    /// say so before it says `first`.
    pub fn come_back_old(&self, first: Vec<controller_to_relay::Body>) {
        let mut state = self.state.lock().unwrap();
        state.epoch = 0;
        state.first = first;
        for (_, connection, _) in state.registered.values() {
            connection.close(0_u32.into(), b"restored");
        }
    }

    /// A relay as it has registered.
    pub fn relay(&self, name: &str) -> RelayInfo {
        self.state.lock().unwrap().registered[name].0.clone()
    }

    /// Payload bytes that clients of `relay` have sent to those of the relay `destination`, by class.
    pub fn demand(&self, relay: &str, destination: u32) -> Option<Vec<u64>> {
        let key = (relay.to_owned(), destination);
        self.state.lock().unwrap().demand.get(&key).cloned()
    }

    /// Sends a relay a message, whatever it is.
    pub fn tell(&self, relay: &str, body: controller_to_relay::Body) {
        let state = self.state.lock().unwrap();
        tell(&state.registered[relay].2, body);
    }

    /// Gives each relay its part of a plan, with what `tables` makes for its index. Nobody stamps it
    /// yet.
    pub fn distribute(
        &self,
        number: u32,
        selectors: &[Selector],
        tables: impl Fn(usize) -> Vec<ProfileTable>,
    ) {
        let state = self.state.lock().unwrap();
        let mut relays: Vec<RelayInfo> = state
            .registered
            .values()
            .map(|(info, ..)| info.clone())
            .collect();
        relays.sort_by_key(|info| info.index);
        for (info, _, send) in state.registered.values() {
            let part = PlanPart {
                plan: Some(PlanName { epoch: 1, number }),
                relays: relays.clone(),
                profiles: tables(info.index as usize),
                selectors: selectors.to_vec(),
            };
            tell(send, controller_to_relay::Body::PlanPart(part));
        }
    }

    /// Orders all relays to stamp a plan.
    pub fn activate(&self, activate: &Activate) {
        let state = self.state.lock().unwrap();
        for (_, _, send) in state.registered.values() {
            tell(send, controller_to_relay::Body::Activate(*activate));
        }
    }

    pub fn kill(&self) {
        self.host.kill();
    }

    /// Gives each relay its part of a plan of one tree, and orders all to stamp it.
    pub fn plan(&self, number: u32, next_hops: &[&[u32]], backups: &[(u32, &[u32])]) {
        self.distribute(number, &[], |relay| {
            vec![ProfileTable {
                trees: vec![TreeTable {
                    next_hop: next_hops[relay].to_vec(),
                    ..TreeTable::default()
                }],
                backups: backups
                    .iter()
                    .map(|(destination, relays)| Backup {
                        destination: *destination,
                        relays: relays.to_vec(),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            }]
        });
        self.activate(&Activate {
            plan: Some(PlanName { epoch: 1, number }),
            ..Default::default()
        });
    }
}

fn tell(send: &tokio::sync::mpsc::UnboundedSender<Bytes>, body: controller_to_relay::Body) {
    let _ = send.send(frame_message(&ControllerToRelay { body: Some(body) }));
}

async fn serve_relay(
    connection: quinn::Connection,
    state: Arc<Mutex<ControllerState>>,
    host: Arc<dyn Host>,
) {
    let (mut out, mut receive) = connection.accept_bi().await.unwrap();
    let (send, mut frames_out) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    host.spawn(async move {
        while let Some(frame) = frames_out.recv().await {
            if out.write_chunk(frame).await.is_err() {
                return;
            }
        }
    });
    let mut frames = FrameReader::new(MAX_CONTROL_FRAME);
    let mut name = String::new();
    while let Ok(Some(chunk)) = receive.read_chunk(usize::MAX, true).await {
        frames.push(chunk.bytes);
        while let Some(frame) = frames.next_frame().unwrap() {
            match RelayToController::decode(frame).unwrap().body.unwrap() {
                relay_to_controller::Body::Register(register) => {
                    name.clone_from(&register.name);
                    register_relay(&state, &connection, &send, register);
                }
                relay_to_controller::Body::LinkReport(report) => {
                    let mut state = state.lock().unwrap();
                    for row in &report.demand {
                        let key = (name.clone(), row.destination);
                        state.demand.insert(key, row.bytes.clone());
                    }
                    state.take_report(&name, report);
                }
                _ => {}
            }
        }
    }
}

fn register_relay(
    state: &Mutex<ControllerState>,
    connection: &quinn::Connection,
    send: &tokio::sync::mpsc::UnboundedSender<Bytes>,
    register: Register,
) {
    let mut state = state.lock().unwrap();
    let index = register.name[1..].parse().unwrap();
    for body in &state.first {
        tell(send, body.clone());
    }
    tell(
        send,
        controller_to_relay::Body::Registered(Registered {
            index,
            epoch: state.epoch,
        }),
    );
    let keys = TokenKeys {
        keys: state.keys.clone(),
        revocations: Vec::new(),
    };
    tell(send, controller_to_relay::Body::TokenKeys(keys));
    let info = RelayInfo {
        index,
        name: register.name.clone(),
        region: register.region,
        client_addresses: register.client_addresses,
        link_addresses: register.link_addresses,
        draining: false,
        incarnation: register.incarnation,
        uplinks: register.uplinks,
    };
    state
        .registered
        .insert(register.name, (info, connection.clone(), send.clone()));
    if state.registered.len() == state.expected {
        let list = RelayList {
            version: 1,
            relays: state
                .registered
                .values()
                .map(|(info, ..)| info.clone())
                .collect(),
        };
        for (_, _, send) in state.registered.values() {
            tell(send, controller_to_relay::Body::RelayList(list.clone()));
        }
    }
}

/// A client that speaks the protocol by hand.
pub struct TestClient {
    pub host: Arc<dyn Host>,
    pub connection: quinn::Connection,
    control: quinn::SendStream,
    answers: quinn::RecvStream,
    frames: FrameReader,
    next_id: u32,
    lane: Option<quinn::SendStream>,
    pub relay: String,
}

impl TestClient {
    pub async fn connect(
        host: Arc<dyn Host>,
        address: SocketAddr,
        ca: &Ca,
        token: &str,
    ) -> Result<Self, String> {
        let config =
            tls::client_config(&ca.roots(), &[ALPN_CLIENT], tls::host_clock(host.clone())).unwrap();
        let config = quinn::ClientConfig::new(tls::quic_client(config).unwrap());
        let endpoint = host.quic_endpoint(([0_u16; 8], 0).into(), None).unwrap();
        let connection = endpoint
            .connect_with(config, address, EDGE_NAME)
            .unwrap()
            .await
            .map_err(|error| error.to_string())?;
        let (control, answers) = connection.open_bi().await.unwrap();
        let mut client = Self {
            host,
            connection,
            control,
            answers,
            frames: FrameReader::new(MAX_FRAME),
            next_id: 0,
            lane: None,
            relay: String::new(),
        };
        let hello = client_message::Body::Hello(Hello {
            token: token.to_owned(),
            instance: 1,
            sdk: "test".to_owned(),
        });
        let id = client.ask(hello).await;
        match client.answer(id).await {
            Some(edge_message::Body::Welcome(welcome)) => {
                client.relay = welcome.relay;
                Ok(client)
            }
            Some(other) => Err(format!("{other:?}")),
            None => Err(client.connection.closed().await.to_string()),
        }
    }

    pub async fn ask(&mut self, body: client_message::Body) -> u32 {
        self.next_id += 1;
        let message = ClientMessage {
            id: self.next_id,
            body: Some(body),
        };
        let _ = self.control.write_chunk(frame_message(&message)).await;
        self.next_id
    }

    /// The next message on the control stream.
    pub async fn news(&mut self) -> Option<EdgeMessage> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(EdgeMessage::decode(frame).unwrap());
            }
            let chunk = self.answers.read_chunk(usize::MAX, true).await.ok()??;
            self.frames.push(chunk.bytes);
        }
    }

    async fn answer(&mut self, id: u32) -> Option<edge_message::Body> {
        loop {
            let message = self.news().await?;
            if message.reply_to == id {
                return message.body;
            }
        }
    }

    pub async fn lookup(&mut self, user: &str) -> (lookup_result::Status, u32) {
        let user = user.to_owned();
        let id = self
            .ask(client_message::Body::LookupUser(LookupUser { user }))
            .await;
        self.lookup_answer(id).await
    }

    pub async fn lookup_relay(&mut self, relay: &str) -> (lookup_result::Status, u32) {
        let relay = relay.to_owned();
        let id = self
            .ask(client_message::Body::LookupRelay(LookupRelay { relay }))
            .await;
        self.lookup_answer(id).await
    }

    async fn lookup_answer(&mut self, id: u32) -> (lookup_result::Status, u32) {
        match self.answer(id).await {
            Some(edge_message::Body::LookupResult(result)) => (result.status(), result.handle),
            other => panic!("{other:?}"),
        }
    }

    /// The handle of a user who is there.
    pub async fn handle(&mut self, user: &str) -> u32 {
        let (status, handle) = self.lookup(user).await;
        assert_eq!(status, lookup_result::Status::Found, "{user}");
        handle
    }

    pub fn send(&self, header: AccessHeader, payload: &[u8]) {
        let mut datagram = vec![0; AccessHeader::LEN];
        header.encode(&mut datagram);
        datagram.extend_from_slice(payload);
        self.connection.send_datagram(datagram.into()).unwrap();
    }

    pub async fn send_message(&mut self, header: AccessHeader, payload: &[u8]) {
        if self.lane.is_none() {
            self.lane = Some(self.connection.open_uni().await.unwrap());
        }
        let mut head = [0; AccessHeader::LEN];
        header.encode(&mut head);
        let mut frame = BytesMut::new();
        encode_frame(&mut frame, &[&head, payload]);
        self.lane.as_mut().unwrap().write_all(&frame).await.unwrap();
    }

    /// The next datagram within five seconds.
    pub async fn receive(&self) -> Option<(AccessHeader, Bytes)> {
        let datagram = self
            .host
            .timeout(Duration::from_secs(5), self.connection.read_datagram())
            .await
            .ok()?
            .unwrap();
        Some((
            AccessHeader::decode(&datagram).unwrap(),
            datagram.slice(AccessHeader::LEN..),
        ))
    }

    /// Sends a flagged packet of each flow, and gives the relays that each one's came by, by flow.
    pub async fn ways(
        &self,
        to: &Self,
        handle: u32,
        class: Class,
        flows: std::ops::Range<u32>,
    ) -> BTreeMap<u32, Vec<u16>> {
        let ways = self.hops(to, handle, class, flows).await.into_iter();
        ways.map(|(flow, hops)| (flow, hops.iter().map(|hop| hop.relay.0).collect()))
            .collect()
    }

    /// The same with all that the trace says of each hop.
    pub async fn hops(
        &self,
        to: &Self,
        handle: u32,
        class: Class,
        flows: std::ops::Range<u32>,
    ) -> BTreeMap<u32, Vec<TraceRecord>> {
        let mut ways = BTreeMap::new();
        let flows: Vec<u32> = flows.collect();
        // Few at a time: no queue is to overflow.
        for some in flows.chunks(25) {
            for &flow in some {
                let mut packet = header(Kind::Media, class, handle, 1);
                packet.trace = true;
                packet.flow = flow;
                self.send(packet, b"which way?");
            }
            for _ in some {
                let (received, payload) = to.receive().await.expect("it arrives");
                let trace = Trace::decode(&payload).unwrap();
                ways.insert(received.flow, trace.hops);
            }
        }
        ways
    }

    /// The next stream that the edge opens.
    pub async fn incoming_lane(&self) -> quinn::RecvStream {
        self.connection.accept_uni().await.unwrap()
    }

    /// The next message packet on a stream.
    pub async fn receive_message(stream: &mut quinn::RecvStream) -> (AccessHeader, Vec<u8>) {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).await.unwrap();
        let payload = frame.split_off(AccessHeader::LEN);
        (AccessHeader::decode(&frame).unwrap(), payload)
    }
}

/// A header with the usual fields.
pub fn header(kind: Kind, class: Class, handle: u32, sequence: u32) -> AccessHeader {
    AccessHeader {
        kind,
        class,
        trace: false,
        path_change: false,
        handle,
        flow: 1,
        sequence,
        age_us: 0,
    }
}
