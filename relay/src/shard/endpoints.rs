//! The QUIC endpoints of a shard, one per UDP port, and the names of their connections.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use quinn_proto::{Endpoint, EndpointConfig, ServerConfig, Transmit};
use tradewind_proto::Uplink;

use super::connection::Conn;

/// Answers of an endpoint itself (stateless resets, retries) that wait to be sent.
const MAX_RESPONSES: usize = 1_024;
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
