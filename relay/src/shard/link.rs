//! Links to other relays: dialling, greeting, probing, and what is reported of them.

use std::time::{Duration, Instant};

use prost::Message as _;
use rand::RngExt;
use tradewind_proto::{
    CloseCode, DropReason, PlanId, RelayIndex, Uplink,
    control::{self, LinkHello},
    frame_message,
    packet::{Kind, Probe, peek_kind},
};
use tradewind_routing::{EstimatorConfig, LinkState, ProbeEcho, ProbeFields, ProbeSession};
use tradewind_trust::{cert_name, tls, verify_peer_name};

use super::{
    ConnKey, Shard, TimerKey,
    connection::{Conn, Role},
};
use crate::packet::Packet;

/// Probes per second and link while they are few.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Added to the interval for every link, so that the probes of a relay with many links stay within
/// a budget (200 a second).
const PROBE_INTERVAL_PER_LINK: Duration = Duration::from_millis(5);
/// How long a link that answers no more keeps its connection: a new one is the quicker way back,
/// for QUIC has backed off by then.
const DOWN_PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may take to be greeted.
const HELLO_PATIENCE: Duration = Duration::from_secs(3);
const FIRST_REDIAL: Duration = Duration::from_millis(100);
const LAST_REDIAL: Duration = Duration::from_secs(2);

/// A connection to another relay.
#[derive(Debug)]
pub(crate) struct Link {
    /// The other relay: known from the start by who dials, from its greeting by who answers.
    pub(super) peer: Option<RelayIndex>,
    pub(super) uplink: Uplink,
    dialed: bool,
    since: Instant,
    greeted: bool,
    probing: ProbeSession,
    pub(super) state: LinkState,
    down_since: Option<Instant>,
    /// One-way estimate of the delay from the peer.
    pub(super) delay_in: Duration,
}

/// Another relay, as the shard knows it.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) conn: Option<ConnKey>,
    redial: Duration,
    address: usize,
}

impl Link {
    fn new(
        peer: Option<RelayIndex>,
        dialed: bool,
        session: u32,
        interval: Duration,
        now: Instant,
    ) -> Self {
        Self {
            peer,
            uplink: Uplink::default(),
            dialed,
            since: now,
            greeted: false,
            probing: ProbeSession::new(session, interval, EstimatorConfig::default()),
            state: LinkState::Unknown,
            down_since: None,
            delay_in: Duration::ZERO,
        }
    }

    /// Whether packets may be sent over it.
    pub(super) fn is_up(&self) -> bool {
        self.greeted && self.state != LinkState::Down
    }
}

impl Shard {
    /// A new link connection that another relay has dialled.
    pub(super) fn accepted_link(&mut self, now: Instant) -> Role {
        let session = self.rng.random_range(1..=u32::MAX);
        let interval = self.probe_interval();
        Role::Link(Box::new(Link::new(None, false, session, interval, now)))
    }

    /// Brings the peers in line with the list of relays: dials the new ones (the lower name dials),
    /// closes those that are no more.
    pub(super) fn update_peers(&mut self, now: Instant) {
        let tables = self.tables.clone();
        let me = tables.me;
        if me == RelayIndex::NONE {
            return;
        }
        let gone: Vec<RelayIndex> = self
            .peers
            .keys()
            .copied()
            .filter(|index| !tables.members.contains_key(index))
            .collect();
        for index in gone {
            if let Some(peer) = self.peers.remove(&index)
                && let Some(key) = peer.conn
            {
                self.close(key, CloseCode::Done, "no longer in the network", now);
            }
        }
        for member in tables.members.values() {
            if member.index != me && !self.peers.contains_key(&member.index) {
                self.peers.insert(member.index, Peer::default());
                if self.name < member.name {
                    self.timers.push(now, TimerKey::Dial(member.index));
                }
            }
        }
        let interval = self.probe_interval();
        for link in self.links.conns.iter_mut().flatten() {
            if let Role::Link(link) = &mut link.role {
                link.probing.set_interval(interval);
            }
        }
    }

    /// Dials a relay unless it is connected.
    pub(super) fn dial(&mut self, index: RelayIndex, now: Instant) {
        let Some(member) = self.tables.members.get(&index).cloned() else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        if peer.conn.is_some() || self.draining {
            return;
        }
        let addresses: Vec<_> = member
            .link_addresses
            .iter()
            .filter(|address| address.is_ipv6() == self.links.ipv6 || self.links.ipv6)
            .collect();
        let Some(&&address) = addresses.get(peer.address % addresses.len().max(1)) else {
            self.redial_later(index, now);
            return;
        };
        peer.address += 1;
        let result = self.links.endpoint.connect(
            now,
            self.link_client.clone(),
            self.links.reachable(address),
            &cert_name(&member.name),
        );
        match result {
            Ok((handle, quic)) => {
                let session = self.rng.random_range(1..=u32::MAX);
                let interval = self.probe_interval();
                let link = Link::new(Some(index), true, session, interval, now);
                let key = self.insert(super::Port::Link, handle, quic, Role::Link(Box::new(link)));
                if let Some(peer) = self.peers.get_mut(&index) {
                    peer.conn = Some(key);
                }
                self.timers
                    .push(now + HELLO_PATIENCE, TimerKey::Greeting(key));
            }
            Err(error) => {
                tracing::warn!(peer = %member.name, %address, %error, "cannot dial");
                self.redial_later(index, now);
            }
        }
    }

    fn redial_later(&mut self, index: RelayIndex, now: Instant) {
        let Some(member) = self.tables.members.get(&index) else {
            return;
        };
        if self.name >= member.name {
            return; // the other side dials
        }
        let Some(peer) = self.peers.get_mut(&index) else {
            return;
        };
        peer.redial = (peer.redial * 2).clamp(FIRST_REDIAL, LAST_REDIAL);
        // Half to all of it, so that relays do not redial in step.
        let wait = peer.redial.mul_f64(self.rng.random_range(0.5..1.0));
        self.timers.push(now + wait, TimerKey::Dial(index));
    }

    /// The handshake of a link is complete: who dialled greets.
    pub(super) fn link_connected(&mut self, key: ConnKey, now: Instant) {
        let hello = frame_message(&LinkHello {
            relay: self.name.clone(),
            uplink: 0,
            software: super::SOFTWARE.to_owned(),
        });
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
        let answer = frame_message(&LinkHello {
            relay: self.name.clone(),
            uplink: 0,
            software: super::SOFTWARE.to_owned(),
        });
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
        link.peer = Some(member.index);
        link.uplink = Uplink(hello.uplink.min(255) as u8);
        link.greeted = true;
        link.since = now;
        let dialed = link.dialed;
        if !dialed {
            conn.send_control(answer);
        }
        let peer = self.peers.entry(member.index).or_default();
        peer.redial = Duration::ZERO;
        let older = peer.conn.replace(key).filter(|&older| older != key);
        if let Some(older) = older {
            self.close(older, CloseCode::Replaced, "a newer connection came", now);
        }
        tracing::debug!(peer = %member.name, dialed, "link connected");
        self.mark(key);
        self.timers.push(now, TimerKey::Probe(key));
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

    /// Sends the next probe of a link, and looks whether the peer still answers.
    pub(super) fn probe_due(&mut self, key: ConnKey, now: Instant) {
        let now_us = self.micros(now);
        let oldest_stamped = self.tables.oldest_stamped();
        let jitter = self.rng.random_range(0.9..1.1);
        let Some(conn) = self.conn_mut(key) else {
            return;
        };
        let Role::Link(link) = &mut conn.role else {
            return;
        };
        if conn.over {
            return;
        }
        let fields = link.probing.next_probe(now_us);
        let interval = link.probing.interval().mul_f64(jitter);
        let probe = wire(&fields, oldest_stamped);
        // Before all else: a probe that waited would measure our queue. QUIC drops its oldest
        // datagram if it must.
        let _ = conn
            .quic
            .datagrams()
            .send(probe.encode().to_vec().into(), true);
        self.mark(key);
        self.timers.push(now + interval, TimerKey::Probe(key));
        self.judge(key, now);
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

    fn on_probe(&mut self, key: ConnKey, bytes: &[u8], now: Instant) {
        let now_us = self.micros(now);
        let Ok(probe) = Probe::decode(bytes) else {
            self.metrics.count_drop(DropReason::Malformed);
            return;
        };
        let Some(Conn {
            role: Role::Link(link),
            ..
        }) = self.conn_mut(key)
        else {
            return;
        };
        link.probing.on_probe(now_us, &fields(&probe));
        if let Some(peer) = link.peer {
            self.note_stamped(peer, probe.oldest_stamped, now);
        }
        self.judge(key, now);
    }

    /// Follows a link's state; a change is reported at once.
    fn judge(&mut self, key: ConnKey, now: Instant) {
        let now_us = self.micros(now);
        let Some(Conn {
            role: Role::Link(link),
            ..
        }) = self.conn_mut(key)
        else {
            return;
        };
        let estimate = link.probing.estimate(now_us);
        link.delay_in = estimate.rtt_min.unwrap_or_default() / 2;
        let before = std::mem::replace(&mut link.state, estimate.state);
        let after = link.state;
        let peer = link.peer;
        if before != after {
            link.down_since = (after == LinkState::Down).then_some(now);
            if after == LinkState::Up || after == LinkState::Down {
                let name = peer.and_then(|peer| self.tables.name_of(peer));
                tracing::info!(peer = name, state = ?after, "link");
                self.metrics.link_changes.inc();
                self.report_links(now);
                if after == LinkState::Down {
                    self.requeue(key, now);
                }
            }
        } else if link
            .down_since
            .is_some_and(|since| now.saturating_duration_since(since) > DOWN_PATIENCE)
        {
            link.down_since = None;
            self.close(key, CloseCode::Timeout, "no answers", now);
        }
    }

    /// A link's connection is over.
    pub(super) fn link_over(&mut self, key: ConnKey, peer: RelayIndex, now: Instant) {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        if entry.conn == Some(key) {
            entry.conn = None;
            self.report_links(now);
            self.redial_later(peer, now);
        }
    }

    /// The links' states, for the controller.
    pub(super) fn link_states(&mut self, now: Instant) -> Vec<control::LinkState> {
        let now_us = self.micros(now);
        let peers: Vec<_> = self
            .peers
            .iter()
            .map(|(&index, peer)| (index, peer.conn))
            .collect();
        let mut states = Vec::with_capacity(peers.len());
        for (index, key) in peers {
            let Some(name) = self.tables.name_of(index).map(str::to_owned) else {
                continue;
            };
            let link = key.and_then(|key| self.conn_mut(key)).and_then(|conn| {
                let stats = conn.quic.stats();
                match &mut conn.role {
                    Role::Link(link) => Some((link, stats)),
                    Role::Session(_) => None,
                }
            });
            let Some((link, stats)) = link else {
                // Not connected: nobody answers there.
                states.push(control::LinkState {
                    peer: name,
                    state: control::link_state::State::Down as i32,
                    ..Default::default()
                });
                continue;
            };
            let estimate = link.probing.estimate(now_us);
            let micros =
                |d: Option<Duration>| d.map_or(0, |d| u32::try_from(d.as_micros()).unwrap_or(0));
            let ppm = |loss: Option<tradewind_routing::estimator::LossCount>| {
                loss.map_or(0, |loss| (loss.share() * 1e6) as u32)
            };
            states.push(control::LinkState {
                peer: name,
                uplink: u32::from(link.uplink.0),
                state: match estimate.state {
                    LinkState::Up => control::link_state::State::Up,
                    LinkState::Down => control::link_state::State::Down,
                    _ => control::link_state::State::Unknown,
                } as i32,
                rtt_min_us: micros(estimate.rtt_min),
                rtt_smoothed_us: micros(estimate.rtt_smoothed),
                rtt_deviation_us: micros(estimate.rtt_dev),
                loss_in_ppm: ppm(estimate.loss_in),
                loss_out_ppm: ppm(estimate.loss_out),
                raw_in_us: estimate.raw_in_us.unwrap_or_default(),
                raw_out_us: estimate.raw_out_us.unwrap_or_default(),
                raw_known: estimate.raw_in_us.is_some() && estimate.raw_out_us.is_some(),
                bytes_sent: stats.udp_tx.bytes,
                bytes_received: stats.udp_rx.bytes,
                packets_sent: stats.udp_tx.datagrams,
                packets_received: stats.udp_rx.datagrams,
                ..Default::default()
            });
        }
        states
    }

    fn probe_interval(&self) -> Duration {
        PROBE_INTERVAL.max(PROBE_INTERVAL_PER_LINK * self.peers.len() as u32)
    }
}

fn wire(fields: &ProbeFields, oldest_stamped: PlanId) -> Probe {
    let echo = fields.echo;
    Probe {
        discriminator: fields.session,
        sequence: fields.seq,
        sent_us: fields.sent_us,
        interval_us: fields.interval_us,
        echo_discriminator: echo.map_or(0, |echo| echo.session),
        echo_sequence: echo.map_or(0, |echo| echo.seq),
        echo_sent_us: echo.map_or(0, |echo| echo.sent_us),
        echo_received_us: echo.map_or(0, |echo| echo.received_us),
        received: echo.map_or(0, |echo| echo.received),
        oldest_stamped,
    }
}

fn fields(probe: &Probe) -> ProbeFields {
    ProbeFields {
        session: probe.discriminator,
        seq: probe.sequence,
        sent_us: probe.sent_us,
        interval_us: probe.interval_us,
        echo: (probe.echo_discriminator != 0).then_some(ProbeEcho {
            session: probe.echo_discriminator,
            seq: probe.echo_sequence,
            sent_us: probe.echo_sent_us,
            received_us: probe.echo_received_us,
            received: probe.received,
        }),
    }
}
