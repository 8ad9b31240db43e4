//! The QUIC endpoints of a shard, one per UDP port, and their connections: how they are named, found,
//! accepted and ended.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionHandle, Endpoint, EndpointConfig, ServerConfig, Transmit, VarInt,
};
use tradewind_proto::{CloseCode, DropReason, Uplink};

use super::{
    Shard, TimerKey,
    connection::{Conn, Role},
};

/// Answers of an endpoint itself (stateless resets, retries) that wait to be sent.
const MAX_RESPONSES: usize = 1_024;
/// Connections in their handshake from which on addresses must be validated (Retry, RFC 9000,
/// section 8.1.2).
const BUSY_HANDSHAKES: usize = 500;
/// How long a client may take from its first packet to its hello: whoever claims to be somewhere else
/// never comes so far.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Working for more of the time, parts per thousand, a shard takes fewer new clients.
const TOO_BUSY: u32 = 900;
/// Connections in their handshake beyond which new ones are refused.
const MAX_HANDSHAKES: usize = 5_000;

/// Which of the relay's UDP ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Port {
    /// Clients.
    Client,
    /// Other relays, over one of the uplinks: by its place among them, 0 is uplink 0.
    Link(u8),
}

impl Port {
    /// Its place among all ports.
    pub(crate) fn place(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Link(nth) => 1 + usize::from(nth),
        }
    }
}

/// Names one connection. `serial` tells it from a later one in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnKey {
    pub(super) port: Port,
    pub(super) handle: usize,
    pub(super) serial: u32,
}

/// What a shard must know of a way to other relays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkPort {
    pub(crate) uplink: Uplink,
    /// What it carries each way, bytes per second, if that is known.
    pub(crate) capacity: Option<u64>,
    /// What its socket can do.
    pub(crate) traits: PortTraits,
}

/// What a shard must know of a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortTraits {
    pub(crate) ipv6: bool,
    pub(crate) may_fragment: bool,
    pub(crate) max_segments: usize,
}

/// One of the QUIC endpoints and its connections.
pub(super) struct Endpoints {
    pub(super) port: Port,
    /// The uplink that it is for; 0 for clients.
    pub(super) uplink: Uplink,
    /// What it carries each way, bytes per second, if that is known.
    pub(super) capacity: Option<u64>,
    /// What connections are accepted with.
    pub(super) server: Arc<ServerConfig>,
    pub(super) endpoint: Endpoint,
    pub(super) ipv6: bool,
    pub(super) max_segments: usize,
    pub(super) conns: Vec<Option<Conn>>,
    /// Serial of the connection in each place of `conns`.
    pub(super) serials: Vec<u32>,
    pub(super) handshakes: usize,
    pub(super) responses: VecDeque<(Transmit, Vec<u8>)>,
}

impl Endpoints {
    pub(super) fn for_clients(
        config: EndpointConfig,
        server: Arc<ServerConfig>,
        traits: PortTraits,
    ) -> Self {
        let only = LinkPort {
            uplink: Uplink(0),
            capacity: None,
            traits,
        };
        Self::new(Port::Client, only, config, server)
    }

    pub(super) fn new(
        port: Port,
        of: LinkPort,
        config: EndpointConfig,
        server: Arc<ServerConfig>,
    ) -> Self {
        let traits = of.traits;
        let allow_mtud = !traits.may_fragment;
        Self {
            port,
            uplink: of.uplink,
            capacity: of.capacity,
            server: server.clone(),
            endpoint: Endpoint::new(Arc::new(config), Some(server), allow_mtud, None),
            ipv6: traits.ipv6,
            max_segments: traits.max_segments,
            conns: Vec::new(),
            serials: Vec::new(),
            handshakes: 0,
            responses: VecDeque::new(),
        }
    }

    /// Shows renewed certificates from now on.
    pub(super) fn set_server(&mut self, server: Arc<ServerConfig>) {
        self.endpoint.set_server_config(Some(server.clone()));
        self.server = server;
    }

    /// Queues an answer of the endpoint itself.
    pub(super) fn respond(&mut self, transmit: Transmit, bytes: &[u8]) {
        if self.responses.len() < MAX_RESPONSES {
            let bytes = bytes[..transmit.size].to_vec();
            self.responses.push_back((transmit, bytes));
        }
    }

    /// All connections there are.
    pub(super) fn keys(&self) -> Vec<ConnKey> {
        self.conns
            .iter()
            .enumerate()
            .filter(|(_, conn)| conn.is_some())
            .map(|(handle, _)| ConnKey {
                port: self.port,
                handle,
                serial: self.serials[handle],
            })
            .collect()
    }

    /// The form of `address` that this socket can send to: a socket bound to an IPv6 address
    /// reaches IPv4 through mapped addresses (RFC 4291, section 2.5.5.2).
    pub(super) fn reachable(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.ipv6 => {
                SocketAddr::new(IpAddr::V6(v4.ip().to_ipv6_mapped()), v4.port())
            }
            other => other,
        }
    }
}

impl Shard {
    pub(super) fn accept(
        &mut self,
        port: Port,
        incoming: quinn_proto::Incoming,
        now: Instant,
        buffer: &mut Vec<u8>,
    ) {
        let turned_away = port == Port::Client && (self.draining || !self.may_begin_handshake(now));
        let metrics = self.metrics.clone();
        let endpoints = self.endpoints(port);
        if endpoints.handshakes >= MAX_HANDSHAKES || turned_away {
            // It has cost nothing yet, and the client goes to the next edge.
            if port == Port::Client {
                metrics.handshakes_refused.inc();
            }
            let transmit = endpoints.endpoint.refuse(incoming, buffer);
            endpoints.respond(transmit, buffer);
            return;
        }
        if endpoints.handshakes >= BUSY_HANDSHAKES && incoming.may_retry() {
            // The initial's buffer holds nothing of ours: retry writes into it.
            if let Ok(transmit) = endpoints.endpoint.retry(incoming, buffer) {
                endpoints.respond(transmit, buffer);
            }
            return;
        }
        let server = self.server_for(port);
        let endpoints = self.endpoints(port);
        match endpoints
            .endpoint
            .accept(incoming, now, buffer, Some(server))
        {
            Ok((handle, quic)) => {
                let role = match port {
                    Port::Client => self.accepted_session(),
                    Port::Link(_) => self.accepted_link(port, now),
                };
                let key = self.insert(port, handle, quic, role);
                if port == Port::Client {
                    self.admission.spend(self.cost_of_handshake());
                    self.timers
                        .push(now + HANDSHAKE_PATIENCE, TimerKey::Greeting(key));
                }
            }
            Err(error) => {
                if let Some(transmit) = error.response {
                    endpoints.respond(transmit, buffer);
                }
            }
        }
    }

    fn may_begin_handshake(&mut self, now: Instant) -> bool {
        let cost = self.cost_of_handshake();
        self.admission.allows(cost, now)
    }

    /// Of a shard that can hardly keep up, a quarter as many are begun: those who are there come first.
    fn cost_of_handshake(&self) -> usize {
        if self.busy_permille >= TOO_BUSY { 4 } else { 1 }
    }

    pub(super) fn insert(
        &mut self,
        port: Port,
        handle: ConnectionHandle,
        quic: Connection,
        role: Role,
    ) -> ConnKey {
        self.next_serial = self.next_serial.wrapping_add(1);
        let serial = self.next_serial;
        let endpoints = self.endpoints(port);
        let index = handle.0;
        if endpoints.conns.len() <= index {
            endpoints.conns.resize_with(index + 1, || None);
            endpoints.serials.resize(index + 1, 0);
        }
        endpoints.conns[index] = Some(Conn::new(quic, role));
        endpoints.serials[index] = serial;
        endpoints.handshakes += 1;
        let key = ConnKey {
            port,
            handle: index,
            serial,
        };
        self.mark(key);
        key
    }

    /// Closes a connection. What belongs to it ends at once.
    pub(super) fn close(&mut self, key: ConnKey, code: CloseCode, reason: &str, now: Instant) {
        if let Some(conn) = self.conn_mut(key) {
            let reason = Bytes::copy_from_slice(reason.as_bytes());
            conn.quic.close(now, VarInt::from_u32(code as u32), reason);
            self.mark(key);
            self.connection_over(key, now);
        }
    }

    /// A connection carries nothing any more: its session or link ends. A link's queue goes another
    /// way, a session's is dropped.
    pub(super) fn connection_over(&mut self, key: ConnKey, now: Instant) {
        let metrics = self.metrics.clone();
        let Some(conn) = self.conn_mut(key) else {
            return;
        };
        if std::mem::replace(&mut conn.over, true) {
            return;
        }
        conn.alive = false;
        let waiting = conn.queue.drain();
        let (slot, peer) = match &conn.role {
            Role::Session(session) => (Some(session.slot), None),
            Role::Link(link) => (None, link.peer),
        };
        self.handshake_over(key);
        if let Some(slot) = slot {
            self.session_over(slot, now);
        }
        if let Some(peer) = peer {
            self.link_over(key, peer, now);
        }
        if slot.is_none() && !self.stopping {
            self.forward_again(waiting, now);
        } else {
            for _ in waiting {
                metrics.count_drop(DropReason::ConnectionClosed);
            }
        }
    }

    /// A handshake has ended, well or not.
    pub(super) fn handshake_over(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn_mut(key)
            && std::mem::replace(&mut conn.handshaking, false)
        {
            self.endpoints(key.port).handshakes -= 1;
        }
    }

    /// Marks a connection as having something to do.
    pub(super) fn mark(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn_mut(key)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push_back(key);
        }
    }

    pub(super) fn endpoints(&mut self, port: Port) -> &mut Endpoints {
        match port {
            Port::Client => &mut self.clients,
            Port::Link(nth) => &mut self.links[usize::from(nth)],
        }
    }

    pub(super) fn conn(&self, key: ConnKey) -> Option<&Conn> {
        let endpoints = match key.port {
            Port::Client => &self.clients,
            Port::Link(nth) => &self.links[usize::from(nth)],
        };
        (endpoints.serials.get(key.handle) == Some(&key.serial))
            .then(|| endpoints.conns[key.handle].as_ref())
            .flatten()
    }

    pub(super) fn conn_mut(&mut self, key: ConnKey) -> Option<&mut Conn> {
        let endpoints = self.endpoints(key.port);
        (endpoints.serials.get(key.handle) == Some(&key.serial))
            .then(|| endpoints.conns[key.handle].as_mut())
            .flatten()
    }
}
