//! Finding the best edge: handshakes are raced, the lowest round trip wins.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prost::Message as _;
use quinn::{
    ClientConfig as QuicConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream,
    TransportErrorCode, VarInt,
};
use rand::RngExt as _;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tradewind_host::Rng;
use tradewind_proto::{
    ALPN_CLIENT, CloseCode, FrameReader, MAX_FRAME,
    control::{Edge, EdgeMessage, Role, Welcome, edge_message},
};
use tradewind_trust::{Roots, tls};

use crate::{
    ConnectError, EdgeAddr, KeepAlive,
    discover::{self, Candidate},
    edges::weighed,
    session::{HELLO_ID, code, describe, hello},
    shared::{Either, Shared, either},
};

/// Handshakes begun one right after the other.
const RACERS: usize = 4;
/// Candidates tried per attempt to connect.
const MAX_CANDIDATES: usize = 32;
/// Pause between their starts: enough that the first of equals has a head start.
const STAGGER: Duration = Duration::from_millis(5);
/// Pause before each further one, when those have not decided it: the order says nothing of
/// distance, so the nearest may be among the last.
const LATER_STAGGER: Duration = Duration::from_millis(15);
/// An edge that is so near is not worth waiting for a nearer one.
const NEAR: Duration = Duration::from_millis(10);
/// How long better edges may come in after the first one.
const MEASURING: Duration = Duration::from_millis(150);
/// How long one handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(4);
/// How long an edge may take to answer the hello.
const WELCOME: Duration = Duration::from_secs(5);
/// Datagrams that wait to be sent on a slow line, bytes. Beyond it the oldest is dropped.
const DATAGRAM_BUFFER: usize = 64 << 10;

/// A connection that an edge has welcomed.
pub(crate) struct Established {
    pub(crate) connection: Connection,
    pub(crate) endpoint: Endpoint,
    pub(crate) control_send: SendStream,
    pub(crate) control_receive: RecvStream,
    pub(crate) reader: FrameReader,
    pub(crate) welcome: Welcome,
    pub(crate) edge: EdgeAddr,
}

/// What is needed to connect, again and again.
#[derive(Clone)]
pub(crate) struct Connector {
    quic: QuicConfig,
    pub(crate) rng: Rng,
}

/// An edge whose handshake is done.
struct Ready {
    edge: EdgeAddr,
    connection: Connection,
    endpoint: Endpoint,
}

impl Connector {
    pub(crate) fn new(shared: &Shared) -> Result<Self, ConnectError> {
        let config = &shared.config;
        let unusable = |error: tradewind_trust::TrustError| ConnectError::Config(error.to_string());
        let roots = Roots::from_der(config.roots.clone()).map_err(unusable)?;
        let clock = tls::host_clock(shared.host.clone());
        let tls = tls::client_config(&roots, &[ALPN_CLIENT], clock).map_err(unusable)?;
        let mut quic = QuicConfig::new(tls::quic_client(tls).map_err(unusable)?);
        let (keep_alive, idle) = match config.keep_alive {
            KeepAlive::Fixed(every) => (Some(every), config.idle_timeout),
            KeepAlive::Adaptive(bounds) if bounds.is_sound() => (None, bounds.idle_timeout()),
            KeepAlive::Adaptive(bounds) => {
                return Err(ConnectError::Config(format!(
                    "an adaptive keep-alive must begin at 5 s or more and end at 140 s or less, not {:?} and {:?}",
                    bounds.first, bounds.longest
                )));
            }
        };
        let idle = idle
            .try_into()
            .map_err(|_| ConnectError::Config("the idle timeout is too long".to_owned()))?;
        let mut transport = quinn::TransportConfig::default();
        transport
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(keep_alive)
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(16))
            .stream_receive_window(VarInt::from_u32(2 << 20))
            .receive_window(VarInt::from_u32(16 << 20))
            .send_window(2 << 20)
            .datagram_receive_buffer_size(Some(1 << 20))
            .datagram_send_buffer_size(DATAGRAM_BUFFER);
        quic.transport_config(Arc::new(transport));
        Ok(Self {
            quic,
            rng: shared.host.rng(),
        })
    }

    /// Sets up a session at the best of the edges known and discovered, but not at the one called
    /// `leaving`.
    pub(crate) async fn connect(
        &mut self,
        shared: &Arc<Shared>,
        known: &[EdgeAddr],
        instance: u64,
        leaving: Option<&str>,
    ) -> Result<Established, ConnectError> {
        let patience = shared.config.connect_timeout;
        let mut tried = Vec::new();
        let work = self.try_to_connect(shared, known, instance, leaving, &mut tried);
        let result = shared.host.timeout(patience, work).await;
        result.unwrap_or_else(|_| {
            Err(ConnectError::Unreachable {
                tried: tried.join(", "),
                reason: "no answer".to_owned(),
                waited: patience,
            })
        })
    }

    async fn try_to_connect(
        &mut self,
        shared: &Arc<Shared>,
        known: &[EdgeAddr],
        instance: u64,
        leaving: Option<&str>,
        tried: &mut Vec<String>,
    ) -> Result<Established, ConnectError> {
        let token = shared
            .config
            .token
            .get()
            .await
            .map_err(ConnectError::Token)?;
        let (mut candidates, problems) = discover::discover(shared, &mut self.rng).await;
        // What edges say is younger than what discovery does.
        let mut loads = FxHashMap::from_iter(
            candidates
                .iter()
                .filter_map(|found| Some((found.edge.address, found.load_permille?))),
        );
        shared.with(|core, _| loads.extend(&core.edge_loads));
        candidates.extend(known.iter().cloned().map(Candidate::from));
        let mut seen = std::collections::BTreeSet::new();
        candidates.retain(|candidate| seen.insert(candidate.edge.address));
        if let Some(leaving) = leaving
            && candidates
                .iter()
                .any(|candidate| !candidate.edge.is(leaving))
        {
            candidates.retain(|candidate| !candidate.edge.is(leaving));
        }
        candidates.sort_by_key(|candidate| candidate.priority);
        candidates.truncate(MAX_CANDIDATES);
        if candidates.is_empty() {
            return Err(ConnectError::NoEdges {
                reason: problems.join("; "),
            });
        }
        let started = shared.host.now();
        let mut last = None;
        for group in candidates.chunk_by(|a, b| a.priority == b.priority) {
            let edges: Vec<_> = group
                .iter()
                .map(|candidate| candidate.edge.clone())
                .collect();
            tried.extend(edges.iter().map(ToString::to_string));
            match self.race(shared, edges, &loads, &token, instance).await {
                Ok(established) => return Ok(established),
                // Another edge would say the same.
                Err(
                    error @ (ConnectError::Unauthorized { .. }
                    | ConnectError::Revoked { .. }
                    | ConnectError::Socket(_)),
                ) => {
                    return Err(error);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(ConnectError::Unreachable { reason, .. }) => ConnectError::Unreachable {
                tried: tried.join(", "),
                reason,
                waited: shared.host.now().saturating_duration_since(started),
            },
            Some(error) => error,
            None => ConnectError::NoEdges {
                reason: "none was tried".to_owned(),
            },
        })
    }

    /// Races handshakes, and says hello to the best edge; if that one declines, to the next.
    async fn race(
        &mut self,
        shared: &Arc<Shared>,
        edges: Vec<EdgeAddr>,
        loads: &FxHashMap<SocketAddr, u32>,
        token: &str,
        instance: u64,
    ) -> Result<Established, ConnectError> {
        let host = &shared.host;
        let mut endpoints: [Option<Endpoint>; 2] = [None, None];
        let (done, mut results) =
            mpsc::channel::<(usize, Result<Ready, ConnectError>)>(edges.len());
        let worth = |ready: &Ready| {
            let load = loads.get(&ready.edge.address);
            weighed(ready.connection.rtt(), load.copied().unwrap_or(0))
        };
        let mut started = Vec::new();
        let mut waiting: Vec<usize> = Vec::new();
        let mut next_start = host.now();
        let mut ready: Vec<Ready> = Vec::new();
        let mut first_ready = None;
        let mut last = ConnectError::Unreachable {
            tried: String::new(),
            reason: "no answer".to_owned(),
            waited: Duration::ZERO,
        };
        loop {
            let now = host.now();
            while started.len() < edges.len() && next_start <= now {
                let index = started.len();
                started.push(now);
                let stagger = if started.len() < RACERS {
                    STAGGER
                } else {
                    LATER_STAGGER
                };
                next_start = now + stagger;
                let edge = edges[index].clone();
                let endpoint = match endpoint_for(shared, &mut endpoints, edge.address) {
                    Ok(endpoint) => endpoint,
                    Err(error) if edges.len() == 1 => return Err(error),
                    Err(error) => {
                        last = error;
                        continue;
                    }
                };
                waiting.push(index);
                let (shared, quic, done) = (shared.clone(), self.quic.clone(), done.clone());
                host.spawn(async move {
                    let cancelled = done.clone();
                    let work = handshake(&shared, endpoint, edge, quic);
                    if let Either::Second(result) = either(cancelled.closed(), work).await {
                        let _ = done.send((index, result)).await;
                    }
                });
            }
            let all_started = started.len() == edges.len();
            let best = ready.iter().map(worth).min();
            let decided = match (best, first_ready) {
                (Some(best), Some(first)) => {
                    // Whoever has taken longer by now cannot be much better.
                    let hopeless = best.mul_f64(1.25) + STAGGER;
                    let open = (!all_started && best > NEAR)
                        || waiting
                            .iter()
                            .any(|&index| now.saturating_duration_since(started[index]) < hopeless);
                    !open || now >= first + MEASURING
                }
                _ => false,
            };
            if decided {
                ready.sort_by_key(worth);
                let best = ready.remove(0);
                if ready.is_empty() {
                    first_ready = None;
                }
                match say_hello(shared, best, token, instance, None).await {
                    Ok(established) => {
                        for other in ready {
                            other
                                .connection
                                .close(code(CloseCode::Done), b"another edge is nearer");
                        }
                        return Ok(established);
                    }
                    Err(
                        error @ (ConnectError::Unauthorized { .. } | ConnectError::Revoked { .. }),
                    ) => {
                        return Err(error);
                    }
                    Err(error) => last = error,
                }
                continue;
            }
            if waiting.is_empty() && all_started {
                return Err(last);
            }
            let mut wake = first_ready.map(|first| first + MEASURING);
            let mut earlier =
                |at| wake = Some(wake.map_or(at, |wake: std::time::Instant| wake.min(at)));
            if !all_started {
                earlier(next_start);
            }
            if let Some(best) = best {
                let hopeless = best.mul_f64(1.25) + STAGGER;
                for &index in &waiting {
                    earlier(started[index] + hopeless);
                }
            }
            let timer = async {
                match wake {
                    // Past deadlines have been seen to: they must not spin.
                    Some(at) => {
                        host.sleep_until(at.max(now + Duration::from_micros(100)))
                            .await;
                    }
                    None => std::future::pending().await,
                }
            };
            if let Either::First(Some((index, result))) = either(results.recv(), timer).await {
                waiting.retain(|&waiting| waiting != index);
                match result {
                    Ok(edge) => {
                        first_ready.get_or_insert(host.now());
                        ready.push(edge);
                    }
                    Err(error) => last = error,
                }
            }
        }
    }
}

/// Measures the round trip to an edge: by a handshake, which leaves nothing behind.
pub(crate) async fn measure(
    shared: Arc<Shared>,
    connector: Connector,
    edge: EdgeAddr,
) -> Result<Duration, ConnectError> {
    let endpoint = endpoint_for(&shared, &mut [None, None], edge.address)?;
    let ready = handshake(&shared, endpoint, edge, connector.quic).await?;
    let rtt = ready.connection.rtt();
    let measured: &[u8] = b"measured";
    ready.connection.close(code(CloseCode::Done), measured);
    ready.endpoint.wait_idle().await;
    Ok(rtt)
}

/// Sets up a further session at an edge; `first` is the relay of the first one.
pub(crate) async fn attach(
    shared: Arc<Shared>,
    connector: Connector,
    edge: EdgeAddr,
    first: String,
) -> Result<Established, ConnectError> {
    let token = shared.config.token.get().await;
    let token = token.map_err(ConnectError::Token)?;
    let endpoint = endpoint_for(&shared, &mut [None, None], edge.address)?;
    let ready = handshake(&shared, endpoint, edge, connector.quic).await?;
    let instance = shared.with(|core, _| core.instance);
    let role = Role {
        standby: true,
        first,
    };
    say_hello(&shared, ready, &token, instance, Some(role)).await
}

impl EdgeAddr {
    /// Whether both are the same edge.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        self.address == other.address || (self.relay.is_some() && self.relay == other.relay)
    }

    /// Whether this is the edge of that name or address.
    fn is(&self, edge: &str) -> bool {
        self.relay.as_deref() == Some(edge) || self.address.to_string() == edge
    }
}

/// Edges as the network tells them.
pub(crate) fn edges_of(edges: &[Edge]) -> Vec<EdgeAddr> {
    edges
        .iter()
        .flat_map(|edge| {
            edge.addresses
                .iter()
                .filter_map(|address| address.parse::<SocketAddr>().ok())
                .map(|address| EdgeAddr {
                    address,
                    relay: Some(edge.relay.clone()),
                })
        })
        .take(MAX_CANDIDATES)
        .collect()
}

/// One endpoint per family and race: a fresh socket, as the network may be another one.
fn endpoint_for(
    shared: &Shared,
    endpoints: &mut [Option<Endpoint>; 2],
    address: SocketAddr,
) -> Result<Endpoint, ConnectError> {
    let (slot, any) = if address.is_ipv4() {
        (&mut endpoints[0], SocketAddr::from(([0, 0, 0, 0], 0)))
    } else {
        (&mut endpoints[1], SocketAddr::from(([0; 16], 0)))
    };
    if let Some(endpoint) = slot {
        return Ok(endpoint.clone());
    }
    let endpoint = shared
        .host
        .quic_endpoint(any, None)
        .map_err(|error| ConnectError::Socket(error.to_string()))?;
    Ok(slot.insert(endpoint).clone())
}

async fn handshake(
    shared: &Shared,
    endpoint: Endpoint,
    edge: EdgeAddr,
    quic: QuicConfig,
) -> Result<Ready, ConnectError> {
    let unreachable = |reason: String| ConnectError::Unreachable {
        tried: edge.to_string(),
        reason: format!("{edge}: {reason}"),
        waited: HANDSHAKE,
    };
    let connecting = endpoint
        .connect_with(quic, edge.address, &shared.config.server_name)
        .map_err(|error| unreachable(error.to_string()))?;
    match shared.host.timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => Ok(Ready {
            edge,
            connection,
            endpoint,
        }),
        Ok(Err(ConnectionError::ConnectionClosed(close)))
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            Err(ConnectError::Busy {
                edge: edge.to_string(),
            })
        }
        Ok(Err(error)) => Err(unreachable(describe(&error).1)),
        Err(_) => Err(unreachable("no answer".to_owned())),
    }
}

async fn say_hello(
    shared: &Shared,
    ready: Ready,
    token: &str,
    instance: u64,
    role: Option<Role>,
) -> Result<Established, ConnectError> {
    let Ready {
        edge,
        connection,
        endpoint,
    } = ready;
    let name = edge.to_string();
    let lost = |error: &quinn::ConnectionError| refused(&name, error);
    let work = async {
        let (mut control_send, mut control_receive) =
            connection.open_bi().await.map_err(|error| lost(&error))?;
        let mut hello = [hello(token.to_owned(), instance, role)];
        // A failure to write shows in what is read.
        let _ = control_send.write_all_chunks(&mut hello).await;
        let mut reader = FrameReader::new(MAX_FRAME);
        loop {
            while let Some(frame) = reader.next_frame().map_err(|error| ConnectError::Refused {
                edge: name.clone(),
                code: CloseCode::Protocol,
                reason: error.to_string(),
            })? {
                let message = EdgeMessage::decode(&frame[..]).unwrap_or_default();
                if message.reply_to == HELLO_ID
                    && let Some(edge_message::Body::Welcome(welcome)) = message.body
                {
                    return Ok((control_send, control_receive, reader, welcome));
                }
            }
            match control_receive.read_chunk(usize::MAX, true).await {
                Ok(Some(chunk)) => reader.push(chunk.bytes),
                Ok(None) | Err(_) => return Err(lost(&connection.closed().await)),
            }
        }
    };
    match shared.host.timeout(WELCOME, work).await {
        Ok(Ok((control_send, control_receive, reader, welcome))) => Ok(Established {
            connection,
            endpoint,
            control_send,
            control_receive,
            reader,
            welcome,
            edge,
        }),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            connection.close(code(CloseCode::Timeout), b"no welcome in time");
            Err(ConnectError::Refused {
                edge: name,
                code: CloseCode::Timeout,
                reason: "no answer to the hello".to_owned(),
            })
        }
    }
}

/// What it means that an edge has ended a connection.
pub(crate) fn refused(edge: &str, error: &quinn::ConnectionError) -> ConnectError {
    let (code, reason) = describe(error);
    match code {
        Some(CloseCode::Unauthorized | CloseCode::TokenExpired) => {
            ConnectError::Unauthorized { reason }
        }
        Some(CloseCode::Revoked) => ConnectError::Revoked { reason },
        Some(code) => ConnectError::Refused {
            edge: edge.to_owned(),
            code,
            reason,
        },
        None => ConnectError::Unreachable {
            tried: edge.to_owned(),
            reason: format!("{edge}: {reason}"),
            waited: Duration::ZERO,
        },
    }
}

/// Puts those with equal claims into an order by chance.
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.random_range(0..=i));
    }
}
