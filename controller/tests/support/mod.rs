//! A controller and minimal relays on an emulated network in virtual time. The relays speak the
//! control protocol and forward nothing; what they report is made up from a matrix.

#![allow(dead_code)] // each test uses some of it

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use prost::Message as _;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tradewind_controller::{AdminAccess, Controller, ControllerConfig};
use tradewind_host::Host;
use tradewind_proto::{
    ALPN_CONTROL, ALPN_ENROL, FrameReader, MAX_CONTROL_FRAME, PlanId,
    control::{
        ControllerToRelay, EnrolRequest, EnrolResponse, LinkReport, LinkState, PlanHeld, PlanPart,
        Register, RelayToController, controller_to_relay as to_relay, link_state,
        relay_to_controller as from_relay,
    },
    frame_message,
};
use tradewind_trust::{
    CONTROLLER_NAME, Ca, DEFAULT_LEAF_LIFETIME, EnrolToken, Identity, KeyRequest, Roots, tls,
};
use tradewind_wan::{HostClock, Wan, WanHost};

/// Round trips in milliseconds. Vladivostok and Perth are far apart but for the way by Hong Kong.
pub(crate) const PLACES: [&str; 3] = ["Perth", "Hong Kong", "Vladivostok"];
pub(crate) const RTT_MS: [[u64; 3]; 3] = [[0, 94, 498], [94, 0, 57], [498, 57, 0]];

/// A deployment's secrets.
pub(crate) struct Keys {
    pub(crate) ca: Arc<Ca>,
    pub(crate) token: EnrolToken,
}

/// What a relay has heard, for tests to look at.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) index: Option<u32>,
    pub(crate) refused: Option<String>,
    pub(crate) parts: BTreeMap<PlanId, PlanPart>,
    pub(crate) active: Option<PlanId>,
}

pub(crate) fn keys(host: &Arc<WanHost>) -> Keys {
    Keys {
        ca: Arc::new(Ca::create("test", host.wall_clock()).unwrap()),
        token: EnrolToken::from_bytes([5; 32]),
    }
}

/// A controller at `place`.
pub(crate) fn controller(host: &Arc<WanHost>, keys: &Keys, admin: AdminAccess) -> Controller {
    let identity = keys
        .ca
        .issue_controller(&[], host.wall_clock(), DEFAULT_LEAF_LIFETIME)
        .unwrap();
    let listen = SocketAddr::new(host.ip(), 7400);
    let mut config = ControllerConfig::new(listen, Arc::new(identity), keys.ca.roots());
    config.ca = Some(keys.ca.clone());
    config.reusable_enrol_tokens = vec![keys.token.clone()];
    config.network.expected_relays = Some(PLACES.len());
    config.admin = admin;
    Controller::start(config, host.clone()).unwrap()
}

/// The places of [`PLACES`] with a host each, whose clocks disagree.
pub(crate) fn world(wan: &Wan) -> Vec<Arc<WanHost>> {
    let names: Vec<String> = PLACES.map(str::to_owned).to_vec();
    let places = wan.add_matrix(&names, |a, b| {
        (a != b).then(|| Duration::from_micros(RTT_MS[a][b] * 500))
    });
    places
        .iter()
        .enumerate()
        .map(|(i, &place)| {
            wan.add_host(place, HostClock::new(7_000_000 * i as i64 - 3_000_000, 0.0))
        })
        .collect()
}

/// Enrols as `name`.
pub(crate) async fn enrol(
    host: &Arc<WanHost>,
    controller: SocketAddr,
    keys: &Keys,
    token: &str,
    name: &str,
) -> Result<Identity, String> {
    let (_endpoint, connection) =
        dial(host, controller, &keys.ca.roots(), None, ALPN_ENROL).await?;
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(|error| error.to_string())?;
    let request = KeyRequest::generate(name).unwrap();
    let message = EnrolRequest {
        token: token.to_owned(),
        relay: name.to_owned(),
        csr: request.csr().to_vec(),
        names: vec![host.ip().to_string()],
    };
    send.write_chunk(frame_message(&message)).await.unwrap();
    let mut frames = FrameReader::new(MAX_CONTROL_FRAME);
    let frame = next_frame(&mut frames, &mut recv)
        .await
        .ok_or("no answer")?;
    let response = EnrolResponse::decode(frame).unwrap();
    connection.close(0u32.into(), b"");
    if !response.error.is_empty() {
        return Err(response.error);
    }
    let chain = response.certificates.into_iter().map(Into::into).collect();
    Ok(request.complete(chain).unwrap())
}

/// Connects with `identity` and registers as `name`; reports and acknowledges until `heard` is
/// dropped or the connection ends.
pub(crate) async fn relay(
    host: Arc<WanHost>,
    controller: SocketAddr,
    roots: Roots,
    identity: Arc<Identity>,
    place: usize,
    name: String,
    heard: Arc<Mutex<Heard>>,
) {
    let dialled = dial(&host, controller, &roots, Some(&identity), ALPN_CONTROL).await;
    let (_endpoint, connection) = dialled.unwrap();
    let (mut send, recv) = connection.open_bi().await.unwrap();
    let register = Register {
        name,
        region: "test".into(),
        client_addresses: vec![format!("{}", SocketAddr::new(host.ip(), 7443))],
        link_addresses: vec![format!("{}", SocketAddr::new(host.ip(), 7444))],
        incarnation: 1,
        ..Register::default()
    };
    say(&mut send, from_relay::Body::Register(register)).await;
    let (acks, mut to_acknowledge) = tokio::sync::mpsc::unbounded_channel();
    let host: Arc<dyn Host> = host;
    host.spawn(listen(recv, heard, acks));
    let mut sequence = 0;
    let mut next_report = host.now();
    loop {
        tokio::select! {
            biased;
            plan = to_acknowledge.recv() => {
                let Some(plan) = plan else { return };
                say(&mut send, from_relay::Body::PlanHeld(PlanHeld { plan: Some(plan) })).await;
            }
            () = host.sleep_until(next_report) => {
                sequence += 1;
                next_report += Duration::from_secs(1);
                let report = LinkReport { sequence, links: links(place), load: None, ..Default::default() };
                say(&mut send, from_relay::Body::LinkReport(report)).await;
            }
        }
    }
}

async fn listen(
    mut recv: RecvStream,
    heard: Arc<Mutex<Heard>>,
    acks: tokio::sync::mpsc::UnboundedSender<tradewind_proto::control::PlanName>,
) {
    let mut frames = FrameReader::new(MAX_CONTROL_FRAME);
    while let Some(frame) = next_frame(&mut frames, &mut recv).await {
        let message = ControllerToRelay::decode(frame).unwrap();
        let mut heard = heard.lock().unwrap();
        match message.body.unwrap() {
            to_relay::Body::Registered(registered) => heard.index = Some(registered.index),
            to_relay::Body::Refused(refused) => heard.refused = Some(refused.reason),
            to_relay::Body::PlanPart(part) => {
                let plan = part.plan.unwrap();
                heard.parts.insert(plan.id().unwrap(), part);
                let _ = acks.send(plan);
            }
            to_relay::Body::Activate(activate) => heard.active = activate.plan.unwrap().id(),
            to_relay::Body::RelayList(_)
            | to_relay::Body::TokenKeys(_)
            | to_relay::Body::Revocations(_) => {}
        }
    }
}

/// What the relay at `place` would measure, with clocks as wrong as they can be.
fn links(place: usize) -> Vec<LinkState> {
    let clock = |place: usize| 1_000_000_000 * place as i64;
    (0..PLACES.len())
        .filter(|&peer| peer != place)
        .map(|peer| {
            let rtt_us = (RTT_MS[place][peer] * 1_000) as u32;
            LinkState {
                peer: PLACES[peer].to_owned(),
                state: link_state::State::Up.into(),
                rtt_min_us: rtt_us,
                rtt_smoothed_us: rtt_us,
                raw_in_us: i64::from(rtt_us / 2) + clock(place) - clock(peer),
                raw_out_us: i64::from(rtt_us / 2) + clock(peer) - clock(place),
                raw_known: true,
                ..LinkState::default()
            }
        })
        .collect()
}

pub(crate) async fn dial(
    host: &Arc<WanHost>,
    controller: SocketAddr,
    roots: &Roots,
    identity: Option<&Identity>,
    alpn: &[u8],
) -> Result<(Endpoint, Connection), String> {
    let any_port = SocketAddr::new(host.ip(), 0);
    let host: Arc<dyn Host> = host.clone();
    let clock = tls::host_clock(host.clone());
    let crypto = match identity {
        Some(identity) => tls::mtls_client_config(identity, roots, &[alpn], clock),
        None => tls::client_config(roots, &[alpn], clock),
    };
    let config = quinn::ClientConfig::new(tls::quic_client(crypto.unwrap()).unwrap());
    let endpoint = host
        .quic_endpoint(any_port, None)
        .map_err(|error| error.to_string())?;
    let connecting = endpoint
        .connect_with(config, controller, CONTROLLER_NAME)
        .map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(|error| error.to_string())?;
    Ok((endpoint, connection))
}

pub(crate) async fn say(send: &mut SendStream, body: from_relay::Body) {
    let message = RelayToController { body: Some(body) };
    // The controller may have gone away, as in some tests.
    let _ = send.write_chunk(frame_message(&message)).await;
}

pub(crate) async fn next_frame(
    frames: &mut FrameReader,
    recv: &mut RecvStream,
) -> Option<bytes::Bytes> {
    loop {
        if let Some(frame) = frames.next_frame().unwrap() {
            return Some(frame);
        }
        frames.push(recv.read_chunk(64 << 10, true).await.ok()??.bytes);
    }
}
