//! What the control task is told: of the links, of what clients send, and of the plans that
//! neighbours stamp.

use std::time::{Duration, Instant};

use tradewind_proto::{Class, PlanId, RelayIndex, control};
use tradewind_routing::{LinkState, LossCount};

use super::{ClassBytes, News, Shard, TimerKey, connection::Role};

/// How often links are reported in any case.
pub(super) const PERIOD: Duration = Duration::from_secs(1);
/// What changes together is reported together.
const GATHER: Duration = Duration::from_millis(20);

/// How long what a neighbour's last probe has said of the plans that it stamps is believed: by then
/// what it has stamped has arrived.
const STAMPED_FOR: Duration = Duration::from_secs(60);

impl Shard {
    /// Something has changed that the controller should know: reports it at once, unless the last
    /// report was a moment ago.
    pub(super) fn report_soon(&mut self, now: Instant) {
        if self.report_at.is_some() {
            return;
        }
        match self.reported_at.map(|last| last + GATHER) {
            Some(at) if at > now => {
                self.report_at = Some(at);
                self.timers.push(at, TimerKey::ReportSoon);
            }
            _ => self.report_links(now),
        }
    }

    /// The moment is over.
    pub(super) fn report_due(&mut self, now: Instant) {
        if self.report_at.take().is_some() {
            self.report_links(now);
        }
    }

    pub(super) fn report_links(&mut self, now: Instant) {
        self.reported_at = Some(now);
        let links = self.link_states(now);
        let up = links
            .iter()
            .filter(|link| link.state == control::link_state::State::Up as i32)
            .count();
        self.metrics.links_up.set(up as i64);
        let queued: usize = std::iter::once(&self.clients)
            .chain(&self.links)
            .flat_map(|endpoints| endpoints.conns.iter().flatten())
            .map(|conn| conn.queue.len())
            .sum();
        self.metrics.queue_packets.set(queued as i64);
        let open = self.clients.handshakes;
        self.metrics.handshakes_open.set(open as i64);
        let sessions = self.sessions;
        let oldest_stamped = self.oldest_stamped_elsewhere(now);
        self.news.push_back(News::Links {
            links,
            sessions,
            busy_permille: 0,
            load_permille: 0,
            demand: self.demand.clone(),
            oldest_stamped,
        });
    }

    /// The links' states, for the controller.
    pub(super) fn link_states(&mut self, now: Instant) -> Vec<control::LinkState> {
        let now_us = self.micros(now);
        let peers: Vec<_> = self
            .peers
            .iter()
            .map(|(&peer, state)| (peer, state.conn))
            .collect();
        let mut states = Vec::with_capacity(peers.len());
        for ((index, uplink), key) in peers {
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
                    uplink: u32::from(uplink.0),
                    state: control::link_state::State::Down as i32,
                    ..Default::default()
                });
                continue;
            };
            let estimate = link.probing.session.estimate(now_us);
            let micros =
                |d: Option<Duration>| d.map_or(0, |d| u32::try_from(d.as_micros()).unwrap_or(0));
            let ppm = |loss: Option<LossCount>| loss.map_or(0, |loss| (loss.share() * 1e6) as u32);
            let probes = |loss: Option<LossCount>| loss.map_or(0, |loss| loss.sent);
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
                // A window of twenty seconds hides what has just begun.
                loss_out_ppm: link
                    .probing
                    .session
                    .brownout()
                    .share_out()
                    .map_or(0, |share| (share * 1e6) as u32)
                    .max(ppm(estimate.loss_out)),
                raw_in_us: estimate.raw_in_us.unwrap_or_default(),
                raw_out_us: estimate.raw_out_us.unwrap_or_default(),
                raw_known: estimate.raw_in_us.is_some() && estimate.raw_out_us.is_some(),
                bytes_sent: stats.udp_tx.bytes,
                bytes_received: stats.udp_rx.bytes,
                packets_sent: stats.udp_tx.datagrams,
                packets_received: stats.udp_rx.datagrams,
                degraded_out: link.probing.degraded().1.is_some(),
                degraded_in: link.probing.degraded().0,
                raw_age_us: u32::try_from(estimate.raw_age_us).unwrap_or(u32::MAX),
                drift_ppb: estimate.drift_ppb.unwrap_or(0),
                loss_probes: probes(estimate.loss_in).max(probes(estimate.loss_out)),
                peer_incarnation: link.peer_incarnation,
            });
        }
        states
    }

    /// Notes what a neighbour's probe says: the oldest plan that it stamps.
    pub(super) fn note_stamped(&mut self, peer: RelayIndex, oldest: PlanId, now: Instant) {
        if oldest == PlanId::NONE {
            self.stamped.remove(&peer);
        } else {
            self.stamped.insert(peer, (oldest, now));
        }
    }

    pub(super) fn oldest_stamped_elsewhere(&mut self, now: Instant) -> PlanId {
        self.stamped
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < STAMPED_FOR);
        let plans = self.stamped.values().map(|&(plan, _)| plan);
        plans.min().unwrap_or(PlanId::NONE)
    }

    /// Counts what own sessions send to clients of other relays.
    pub(super) fn count_demand(&mut self, destination: RelayIndex, class: Class, bytes: usize) {
        // Indices beyond the list of relays are none of a relay.
        if destination == self.tables.me || !self.tables.members.contains_key(&destination) {
            return;
        }
        let index = destination.as_usize();
        if self.demand.len() <= index {
            self.demand.resize(index + 1, ClassBytes::default());
        }
        self.demand[index][class as usize] += bytes as u64;
    }
}
