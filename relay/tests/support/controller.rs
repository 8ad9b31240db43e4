//! A controller that says what the test says.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use prost::Message as _;
use tradewind_host::Host;
use tradewind_proto::{
    ALPN_CONTROL, FrameReader, MAX_CONTROL_FRAME,
    control::{
        Activate, Backup, ControllerToRelay, LinkReport, LinkState, PlanName, PlanPart,
        ProfileTable, Register, Registered, RelayInfo, RelayList, RelayToController, Selector,
        TokenKey, TokenKeys, TreeTable, controller_to_relay, relay_to_controller,
    },
    frame_message,
};
use tradewind_trust::{Ca, Identity, TokenSigner, tls};
use tradewind_wan::WanHost;

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
    pub fn start(
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

    /// Plans without a relay from now on.
    pub fn forget(&self, relay: &str) {
        self.state.lock().unwrap().registered.remove(relay);
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
        ..Default::default()
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
