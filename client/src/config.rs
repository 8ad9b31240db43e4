//! What a client needs to know before it connects.

use std::{
    fmt, future::Future, net::SocketAddr, pin::Pin, str::FromStr, sync::Arc, time::Duration,
};

use rustls_pki_types::CertificateDer;

use crate::KeepAlive;

/// Port that edges listen on when nothing names another.
pub const DEFAULT_PORT: u16 = 7443;

/// How a client finds and enters the network. [`ClientConfig::new`] has defaults for everything
/// but the three things that have none.
#[derive(Clone)]
pub struct ClientConfig {
    /// Where to learn of edges, in order: all are asked, and their answers joined.
    pub discovery: Vec<Discovery>,
    /// The token that says who the client is.
    pub token: TokenSource,
    /// Certificates of the deployment's authority (DER).
    pub roots: Vec<CertificateDer<'static>>,
    /// Further authorities for `https` discovery only: for a controller behind a public
    /// certificate.
    pub http_roots: Vec<CertificateDer<'static>>,
    /// Name that an edge's certificate must have. `tradewind-edge` is in the certificate of every
    /// relay.
    pub server_name: String,
    /// How long [`Client::connect`](crate::Client::connect) tries. 10 s.
    pub connect_timeout: Duration,
    /// A connection without any sign of life for so long is dead. (One in use is given up within a second.)
    /// 8 s: below the 10 s for which the directory keeps a session that is no longer announced, so
    /// that a client has moved before its senders are told that it is offline. With an adaptive
    /// `keep_alive` it is [`AdaptiveKeepAlive::longest`](crate::AdaptiveKeepAlive::longest) and 30 s.
    pub idle_timeout: Duration,
    /// How often a sign of life is sent when there is nothing else to send. Every 2.5 s; for phones there
    /// is [`KeepAlive::Adaptive`], which spares the battery.
    pub keep_alive: KeepAlive,
    /// Whether a further session stands by at the second-best edge, so that the death of the first one
    /// costs no new connection. `true`.
    pub standby: bool,
    /// Edges that a conversation may enter and leave the network by on this client's side: the nearest
    /// ones, from 1. With 1 all goes by the first session's edge. 3.
    pub near_edges: usize,
    /// Sessions at a time, from 1: beyond the first one, the one that stands by and those at the nearest
    /// edges, conversations may use edges near to the peer. 12.
    pub max_sessions: usize,
    /// Most bytes of messages queued per lane. Beyond it a send ends as `QueueFull`. 32 MiB.
    pub lane_queue_bytes: usize,
    /// Messages that wait for [`Client::recv`](crate::Client::recv); when so many wait, senders are
    /// held back. 1,024.
    pub message_queue: usize,
    /// Media packets that wait for [`Client::recv`](crate::Client::recv); beyond it the oldest is
    /// dropped and counted. 1,024.
    pub media_queue: usize,
    /// How long audio and video may wait for packets of their flow that they have overtaken as it came
    /// to another, shorter way: at most 60 ms. At all other times nothing waits. Zero (not at all), as most
    /// players have a buffer of their own, which knows until when a packet is of use.
    pub reorder: Duration,
    /// Largest message that is accepted, in bytes. 16 MiB.
    pub max_message: u64,
}

impl ClientConfig {
    /// A configuration with all defaults.
    #[must_use]
    pub fn new(
        discovery: impl Into<Vec<Discovery>>,
        token: impl Into<TokenSource>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self {
            discovery: discovery.into(),
            token: token.into(),
            roots,
            http_roots: Vec::new(),
            server_name: tradewind_trust::EDGE_NAME.to_owned(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(8),
            keep_alive: KeepAlive::Fixed(Duration::from_millis(2_500)),
            standby: true,
            near_edges: 3,
            max_sessions: 12,
            lane_queue_bytes: 32 << 20,
            message_queue: 1024,
            media_queue: 1024,
            reorder: Duration::ZERO,
            max_message: tradewind_proto::token::DEFAULT_MAX_MESSAGE,
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("discovery", &self.discovery)
            .field("token", &self.token)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// One way to learn of edges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// These.
    Static(Vec<EdgeAddr>),
    /// SRV records of `_tradewind._udp.<name>` (RFC 2782: priority, weight and port count); when
    /// there are none, A and AAAA records of the name, with port [`DEFAULT_PORT`]. Asks the
    /// system's resolvers, so only on a real host.
    Dns {
        /// The deployment's DNS name.
        name: String,
    },
    /// The controller's list: `GET <url>/v1/edges`. Only on a real host.
    Controller {
        /// Base URL, like `https://controller.example:7401`.
        url: String,
    },
}

impl From<Discovery> for Vec<Discovery> {
    fn from(discovery: Discovery) -> Self {
        vec![discovery]
    }
}

impl From<Vec<SocketAddr>> for Discovery {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self::Static(addresses.into_iter().map(EdgeAddr::from).collect())
    }
}

/// As people write it: `ip:port` (several with commas between them), `http://…` or `https://…` of
/// a controller, or else a DNS name.
impl FromStr for Discovery {
    type Err = DiscoveryParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let addresses: Result<Vec<SocketAddr>, _> =
            text.split(',').map(|part| part.trim().parse()).collect();
        if let Ok(addresses) = addresses {
            return Ok(addresses.into());
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Controller {
                url: text.trim_end_matches('/').to_owned(),
            });
        }
        let is_name = !text.is_empty()
            && text.len() <= 253
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            && text.bytes().any(|b| b.is_ascii_alphabetic());
        if is_name {
            return Ok(Self::Dns {
                name: text.to_owned(),
            });
        }
        Err(DiscoveryParseError(text.to_owned()))
    }
}

/// A text that names no way to find edges.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no way to find edges: give ip:port (several with commas), a controller's http(s) URL, or a DNS name"
)]
pub struct DiscoveryParseError(String);

/// An edge's address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeAddr {
    /// Its client port.
    pub address: SocketAddr,
    /// The relay's name, where known.
    pub relay: Option<String>,
}

impl From<SocketAddr> for EdgeAddr {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            relay: None,
        }
    }
}

impl fmt::Display for EdgeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.relay {
            Some(relay) => write!(f, "{relay} ({})", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// Asks the application's backend for a token. An error's text ends up in
/// [`ConnectError::Token`](crate::ConnectError::Token).
pub type TokenProvider =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync>;

/// Where tokens come from.
#[derive(Clone)]
pub enum TokenSource {
    /// One token: the session ends when it does.
    Fixed(String),
    /// A fresh one whenever needed: before each connection, and before the present one ends.
    Provider(TokenProvider),
}

impl TokenSource {
    /// Tokens from an async function.
    pub fn provider<F>(provider: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        Self::Provider(Arc::new(move || Box::pin(provider())))
    }

    pub(crate) async fn get(&self) -> Result<String, String> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::Provider(provider) => provider().await,
        }
    }

    pub(crate) fn can_refresh(&self) -> bool {
        matches!(self, Self::Provider(_))
    }
}

impl From<String> for TokenSource {
    fn from(token: String) -> Self {
        Self::Fixed(token)
    }
}

impl From<&str> for TokenSource {
    fn from(token: &str) -> Self {
        Self::Fixed(token.to_owned())
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed(_) => "Fixed([secret])",
            Self::Provider(_) => "Provider",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_becomes_the_discovery_they_mean() {
        let of = |text: &str| text.parse::<Discovery>();
        assert_eq!(
            of("127.0.0.1:7443, [::1]:9"),
            Ok(vec![
                "127.0.0.1:7443".parse::<SocketAddr>().unwrap(),
                "[::1]:9".parse().unwrap()
            ]
            .into())
        );
        assert_eq!(
            of("https://c.example:7401/"),
            Ok(Discovery::Controller {
                url: "https://c.example:7401".to_owned()
            })
        );
        assert_eq!(
            of("edges.example.com"),
            Ok(Discovery::Dns {
                name: "edges.example.com".to_owned()
            })
        );
        for wrong in ["", "127.0.0.1", "a b", "127.0.0.1:7443,", "host:port"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_do_not_show_in_logs() {
        let config = ClientConfig::new(Discovery::Static(Vec::new()), "secret!", Vec::new());
        assert!(!format!("{config:?}").contains("secret!"));
    }
}
