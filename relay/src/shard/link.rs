//! Links to other relays: dialling and greeting. What measures them is in [`super::probing`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use quinn_proto::{ServerConfig, TransportConfig};
use rand::RngExt;
use tradewind_proto::{
    CloseCode, DropReason, RelayIndex, Uplink,
    control::LinkHello,
    frame_message,
    packet::{Kind, peek_kind},
};
use tradewind_routing::{LinkHealth, LinkState};
use tradewind_trust::{cert_name, tls, verify_peer_name};

use super::{
    ConnKey, Port, Shard, TimerKey,
    connection::{Conn, Role},
    endpoints::Endpoints,
    probing::Probing,
};
use crate::{congestion::LinkCongestion, packet::Packet, transport::link_transport};

/// How long a connection may take to be greeted, once it stands.
const HELLO_PATIENCE: Duration = Duration::from_secs(3);
/// How long one that we dial may take to stand: QUIC repeats its first packets ever more seldom, so
/// that dialling anew is the quicker way to a peer that has come back.
const DIAL_PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a relay that has started, or was cut off, warns others of its missing links at most.
const MOST_SETTLING: Duration = Duration::from_secs(3);
const FIRST_REDIAL: Duration = Duration::from_millis(100);
const LAST_REDIAL: Duration = Duration::from_secs(1);

/// A connection to another relay.
#[derive(Debug)]
pub(crate) struct Link {
    /// The other relay: known from the start by who dials, from its greeting by who answers.
    pub(super) peer: Option<RelayIndex>,
    /// Which life of the other relay: as it has greeted; 0 before.
    pub(super) peer_incarnation: u64,
    pub(super) uplink: Uplink,
    dialed: bool,
    since: Instant,
    greeted: bool,
    pub(super) probing: Probing,
    pub(super) state: LinkState,
    /// It has been down since the connection stands.
    pub(super) been_down: bool,
    pub(super) down_since: Option<Instant>,
    /// The other relay has started or was cut off, and its links are only coming up. Taken to be so
    /// until its first probe has come.
    pub(super) peer_settling: bool,
    /// One-way estimate of the delay from the peer.
    pub(super) delay_in: Duration,
}

/// Another relay, over one uplink.
pub(super) type PeerKey = (RelayIndex, Uplink);

/// Another relay over one uplink, as the shard knows it.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) conn: Option<ConnKey>,
    redial: Duration,
    address: usize,
}

impl Link {
    fn new(
        peer: Option<RelayIndex>,
        uplink: Uplink,
        dialed: bool,
        session: u32,
        now: Instant,
    ) -> Self {
        Self {
            peer,
            peer_incarnation: 0,
            uplink,
            dialed,
            since: now,
            greeted: false,
            probing: Probing::new(session, now),
            state: LinkState::Unknown,
            been_down: false,
            down_since: None,
            peer_settling: true,
            delay_in: Duration::ZERO,
        }
    }

    /// Whether packets may be sent over it. A new connection is good for them before the link is
    /// warm: its handshake was a round trip. One that has been down has to be up again: what is heard
    /// of it says nothing about the way out. Costs are microseconds-equivalents here, as in plans.
    pub(super) fn health(&self) -> LinkHealth {
        let good = match self.state {
            LinkState::Up => true,
            LinkState::Unknown | LinkState::Warming => !self.been_down,
            LinkState::Down => false,
        };
        match self.probing.degraded().1 {
            _ if !self.greeted || !good => LinkHealth::Down,
            Some(extra_us) => LinkHealth::Degraded {
                extra: f64::from(extra_us),
            },
            None => LinkHealth::Up,
        }
    }
}

impl Shard {
    /// A new link connection that another relay has dialled.
    pub(super) fn accepted_link(&mut self, port: Port, now: Instant) -> Role {
        let session = self.rng.random_range(1..=u32::MAX);
        let uplink = self.endpoints(port).uplink;
        Role::Link(Box::new(Link::new(None, uplink, false, session, now)))
    }

    /// QUIC's parameters of a new link over an uplink: it has its share of what that carries.
    fn transport_over(&self, links: &Endpoints) -> Arc<TransportConfig> {
        let uplink = links.uplink;
        let congestion = links
            .capacity
            .map_or_else(LinkCongestion::default, |capacity| {
                let peers = self.peers.keys().filter(|peer| peer.1 == uplink);
                LinkCongestion::sharing(capacity, peers.count())
            });
        Arc::new(link_transport(congestion))
    }

    /// What a connection that comes in on a port is accepted with.
    pub(super) fn server_for(&self, port: Port) -> Arc<ServerConfig> {
        match port {
            Port::Client => self.clients.server.clone(),
            Port::Link(nth) => {
                let links = &self.links[usize::from(nth)];
                let mut server = ServerConfig::clone(&links.server);
                server.transport_config(self.transport_over(links));
                Arc::new(server)
            }
        }
    }

    /// Brings the peers in line with the list of relays: dials the new ones (the lower name dials),
    /// closes those that are no more.
    pub(super) fn update_peers(&mut self, now: Instant) {
        let tables = self.tables.clone();
        let me = tables.me;
        if me == RelayIndex::NONE {
            return;
        }
        // Over every uplink that both have.
        let own: Vec<Uplink> = self.links.iter().map(|links| links.uplink).collect();
        if self.peers.is_empty() {
            self.settling_until = Some(now + MOST_SETTLING);
        }
        let linked = |(index, uplink): PeerKey| {
            let member = tables.members.get(&index);
            member.is_some_and(|member| own.contains(&uplink) && member.has_uplink(uplink))
        };
        let gone: Vec<PeerKey> = self
            .peers
            .keys()
            .copied()
            .filter(|&peer| !linked(peer))
            .collect();
        for peer in gone {
            if let Some(peer) = self.peers.remove(&peer)
                && let Some(key) = peer.conn
            {
                self.close(key, CloseCode::Done, "no longer in the network", now);
            }
        }
        for member in tables.members.values() {
            for &uplink in &own {
                let peer = (member.index, uplink);
                if member.index != me && linked(peer) && !self.peers.contains_key(&peer) {
                    self.peers.insert(peer, Peer::default());
                    if self.name < member.name {
                        self.timers.push(now, TimerKey::Dial(peer));
                    }
                }
            }
        }
    }

    /// Whether links of this relay are only coming up, after its start or when it was cut off.
    pub(super) fn is_settling(&self, now: Instant) -> bool {
        self.settling_until.is_some_and(|until| now < until)
    }

    /// A link has come up or gone down: looks whether this relay is settling, which begins when it
    /// has lost most links and ends when it has all.
    pub(super) fn note_settling(&mut self, now: Instant) {
        let up = |peer: &Peer| {
            let conn = peer.conn.and_then(|key| self.conn(key));
            conn.is_some_and(|conn| match &conn.role {
                Role::Link(link) => link.state == LinkState::Up,
                Role::Session(_) => false,
            })
        };
        let all = self.peers.len();
        let up = self.peers.values().filter(|peer| up(peer)).count();
        if up == all {
            self.settling_until = None;
        } else if 2 * up < all {
            self.settling_until = Some(now + MOST_SETTLING);
        }
    }

    /// Dials a relay over an uplink unless it is connected.
    pub(super) fn dial(&mut self, dialled: PeerKey, now: Instant) {
        let (index, uplink) = dialled;
        let Some(member) = self.tables.members.get(&index).cloned() else {
            return;
        };
        let own = self.links.iter().position(|links| links.uplink == uplink);
        let Some(nth) = own else {
            return;
        };
        let transport = self.transport_over(&self.links[nth]);
        let links = &mut self.links[nth];
        let Some(peer) = self.peers.get_mut(&dialled) else {
            return;
        };
        if peer.conn.is_some() || self.draining {
            return;
        }
        let addresses: Vec<_> = member
            .addresses_of(uplink)
            .iter()
            .filter(|address| address.is_ipv6() == links.ipv6 || links.ipv6)
            .collect();
        let Some(&&address) = addresses.get(peer.address % addresses.len().max(1)) else {
            self.redial_later(dialled, now);
            return;
        };
        peer.address += 1;
        let port = links.port;
        let mut client = self.link_client.clone();
        client.transport_config(transport);
        let result = links.endpoint.connect(
            now,
            client,
            links.reachable(address),
            &cert_name(&member.name),
        );
        match result {
            Ok((handle, quic)) => {
                let session = self.rng.random_range(1..=u32::MAX);
                let link = Link::new(Some(index), uplink, true, session, now);
                let key = self.insert(port, handle, quic, Role::Link(Box::new(link)));
                if let Some(peer) = self.peers.get_mut(&dialled) {
                    peer.conn = Some(key);
                }
                self.timers
                    .push(now + DIAL_PATIENCE, TimerKey::Dialled(key));
            }
            Err(error) => {
                tracing::warn!(peer = %member.name, %address, %error, "cannot dial");
                self.redial_later(dialled, now);
            }
        }
    }

    fn redial_later(&mut self, dialled: PeerKey, now: Instant) {
        let Some(member) = self.tables.members.get(&dialled.0) else {
            return;
        };
        if self.name >= member.name {
            return; // the other side dials
        }
        let Some(peer) = self.peers.get_mut(&dialled) else {
            return;
        };
        peer.redial = (peer.redial * 2).clamp(FIRST_REDIAL, LAST_REDIAL);
        // Half to all of it, so that relays do not redial in step.
        let wait = peer.redial.mul_f64(self.rng.random_range(0.5..1.0));
        self.timers.push(now + wait, TimerKey::Dial(dialled));
    }

    /// The handshake of a link is complete: who dialled greets.
    pub(super) fn link_connected(&mut self, key: ConnKey, now: Instant) {
        let uplink = self.endpoints(key.port).uplink;
        let hello = frame_message(&self.greeting(uplink));
        let Some(conn) = self.conn_mut(key) else {
            return;
        };
        if let Role::Link(link) = &conn.role
            && link.dialed
        {
            conn.open_control();
            conn.send_control(hello);
        }
        self.timers
            .push(now + HELLO_PATIENCE, TimerKey::Greeting(key));
    }

    fn greeting(&self, uplink: Uplink) -> LinkHello {
        LinkHello {
            relay: self.name.clone(),
            uplink: u32::from(uplink.0),
            software: super::SOFTWARE.to_owned(),
            incarnation: self.incarnation,
        }
    }

    /// A message on a link's control stream: the only one there is, is the greeting.
    pub(super) fn link_control(&mut self, key: ConnKey, frame: &[u8], now: Instant) {
        let Ok(hello) = LinkHello::decode(frame) else {
            self.close(key, CloseCode::Protocol, "the greeting cannot be read", now);
            return;
        };
        let Some(member) = self
            .tables
            .members
            .values()
            .find(|member| member.name == hello.relay)
            .cloned()
        else {
            self.close(
                key,
                CloseCode::WrongPeer,
                "not in this relay's list of relays yet",
                now,
            );
            return;
        };
        let uplink = self.endpoints(key.port).uplink;
        let answer = frame_message(&self.greeting(uplink));
        let Some(conn) = self.conn_mut(key) else {
            return;
        };
        let certificate = tls::peer_certificate(conn.quic.crypto_session().peer_identity());
        let genuine = certificate.is_some_and(|cert| verify_peer_name(&cert, &member.name).is_ok());
        let Role::Link(link) = &mut conn.role else {
            return;
        };
        if !genuine || link.peer.is_some_and(|expected| expected != member.index) {
            let reason = format!(
                "the certificate does not name {}: issue one that does",
                member.name
            );
            tracing::warn!(peer = %member.name, "{reason}");
            self.close(key, CloseCode::WrongPeer, &reason, now);
            return;
        }
        if link.greeted {
            return;
        }
        if hello.uplink != u32::from(uplink.0) {
            let reason = format!(
                "{} takes this address for its uplink {}, here it is uplink {}: number them alike",
                member.name, hello.uplink, uplink.0
            );
            tracing::warn!(peer = %member.name, "{reason}");
            self.close(key, CloseCode::WrongPeer, &reason, now);
            return;
        }
        link.peer = Some(member.index);
        link.peer_incarnation = hello.incarnation;
        link.greeted = true;
        link.since = now;
        let dialed = link.dialed;
        if !dialed {
            conn.send_control(answer);
        }
        let peer = self.peers.entry((member.index, uplink)).or_default();
        peer.redial = Duration::ZERO;
        let older = peer.conn.replace(key).filter(|&older| older != key);
        if let Some(older) = older {
            self.close(older, CloseCode::Replaced, "a newer connection came", now);
        }
        tracing::debug!(peer = %member.name, dialed, "link connected");
        self.mark(key);
        self.begin_probing(key, now);
    }

    /// The time for a connection to stand is over.
    pub(super) fn dialled(&mut self, key: ConnKey, now: Instant) {
        if self.conn_mut(key).is_some_and(|conn| !conn.alive) {
            self.close(key, CloseCode::Timeout, "no answer", now);
        }
    }

    /// The time to be greeted is over.
    pub(super) fn greeting_due(&mut self, key: ConnKey, now: Instant) {
        let late = self.conn_mut(key).is_some_and(|conn| match &conn.role {
            Role::Link(link) => !link.greeted,
            Role::Session(session) => !session.is_ready(),
        });
        if late {
            self.close(key, CloseCode::Timeout, "no hello in time", now);
        }
    }

    /// A datagram from a link: a probe or a packet.
    pub(super) fn link_datagram(&mut self, key: ConnKey, bytes: bytes::Bytes, now: Instant) {
        if peek_kind(&bytes) == Ok(Kind::Probe) {
            self.on_probe(key, &bytes, now);
        } else {
            self.link_packet(key, bytes, now);
        }
    }

    /// A packet that came over a link goes on its way.
    pub(super) fn link_packet(&mut self, key: ConnKey, bytes: bytes::Bytes, now: Instant) {
        let Some(Conn {
            role: Role::Link(link),
            ..
        }) = self.conn_mut(key)
        else {
            return;
        };
        if !link.greeted {
            self.metrics.count_drop(DropReason::NotReady);
            return;
        }
        let delay = link.delay_in;
        match Packet::from_link(bytes, now) {
            Ok(mut packet) => {
                let delay_us = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
                packet.header.age_us = packet.header.age_us.saturating_add(delay_us);
                self.forward(packet, now);
            }
            Err(error) => self.count_bad_header(error),
        }
    }

    /// A link's connection is over.
    pub(super) fn link_over(&mut self, key: ConnKey, peer: RelayIndex, now: Instant) {
        let peer = (peer, self.endpoints(key.port).uplink);
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        if entry.conn == Some(key) {
            entry.conn = None;
            self.report_soon(now);
            self.redial_later(peer, now);
            self.look_after_clients_of(Some(peer.0));
        }
    }
}
