//! Probing of links: when a probe is sent, what follows from those that come, and when silence is
//! death.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use quinn_proto::ConnectionStats;
use rand::RngExt;
use tradewind_proto::{
    CloseCode, DropReason, RelayIndex,
    packet::{Probe, ProbeState},
};
use tradewind_routing::{
    EstimatorConfig, LinkHealth, LinkState, LossCount, ProbeEcho, ProbeFields, ProbeSession,
    ProbeVerdict,
    budget::{self, DENSE, FAST, LinkUse, Pace},
};

use super::{
    ConnKey, Shard, TimerKey,
    connection::{Conn, Role},
    link::Link,
};

/// How long a link that answers no more keeps its connection: a new one is the quicker way back,
/// for QUIC has backed off by then.
const DOWN_PATIENCE: Duration = Duration::from_secs(2);
/// How long a link that is not up is probed as fast as if it were in use.
const SETTLING: Duration = Duration::from_secs(5);
/// A link carries packets if the last one was sent within this time.
const CARRYING: Duration = Duration::from_secs(2);
/// Between two probes whoever asks for an answer at once.
const LEAST_SPACING: Duration = Duration::from_millis(10);
/// News of a link's state is sent so often, for any one probe may be lost, …
const URGENT_PROBES: u8 = 3;
/// … so far apart.
const URGENT_SPACING: Duration = Duration::from_millis(15);
/// Probes that prove that a loss is a brownout, or an accident, where few packets go.
const PROOF_PROBES: u8 = 8;
/// The way out of a link that loses far more than usual is probed so often: whether it is well again
/// must be seen on probes alone, for others take another way now.
const RECOVERING: Duration = Duration::from_millis(30);
/// From this interval on a probe asks for its answer at once: an echo that is held for seconds
/// measures the drift of the clocks as well.
const HELD_TOO_LONG: Duration = Duration::from_millis(500);
/// A round trip that changes by this, and by a tenth, is reported at once.
const LEAST_STEP: Duration = Duration::from_millis(3);
/// How long links are not judged by their delay after most of them looked late at once.
const LOOKS_LATE: Duration = Duration::from_millis(500);
/// Loss from which on a link is probed more densely.
const LOSSY: f64 = 0.005;

/// The probing of one link, from one of its ends.
#[derive(Debug)]
pub(super) struct Probing {
    pub(super) session: ProbeSession,
    /// Our share of the budget.
    interval: Duration,
    sent_at: Option<Instant>,
    next_at: Option<Instant>,
    /// The deadline of silence as it stands in the shard's timers.
    silence_at: Option<Instant>,
    urgent: u8,
    /// The next probe is an answer: it asks for none.
    answering: bool,
    /// When the last packet of a client was sent over the link.
    carried_at: Option<Instant>,
    /// QUIC frames received: when there are more, the peer lives.
    frames: u64,
    /// Since when the link has not been up, at most.
    settling_since: Instant,
    /// The way in, and the way out, as they were when last looked at.
    degraded: (bool, Option<u32>),
    /// The shortest round trip when a change of it was last a reason to report.
    told_rtt: Duration,
}

impl Probing {
    pub(super) fn new(session: u32, now: Instant) -> Self {
        Self {
            session: ProbeSession::new(session, FAST, EstimatorConfig::default()),
            interval: FAST,
            sent_at: None,
            next_at: None,
            silence_at: None,
            urgent: 0,
            answering: false,
            carried_at: None,
            frames: 0,
            settling_since: now,
            degraded: (false, None),
            told_rtt: Duration::ZERO,
        }
    }

    /// Whether the round trip has changed so much that routing should know at once.
    fn has_stepped(&mut self, rtt: Duration) -> bool {
        let stepped = rtt.abs_diff(self.told_rtt) > LEAST_STEP.max(self.told_rtt / 10);
        if stepped {
            self.told_rtt = rtt;
        }
        stepped
    }

    /// Whether the way in is degraded, and the way out: by how much, microseconds-equivalent.
    pub(super) fn degraded(&self) -> (bool, Option<u32>) {
        self.degraded
    }

    /// Takes what QUIC has received for signs of life: frames are counted after decryption, so
    /// nobody else can have made them.
    pub(super) fn observe(&mut self, stats: &ConnectionStats, now_us: u64) {
        let frames = &stats.frame_rx;
        let sum = frames.acks
            + frames.datagram
            + frames.stream
            + frames.ping
            + frames.max_data
            + frames.max_stream_data
            + frames.path_challenge
            + frames.path_response
            + frames.new_connection_id;
        if sum > self.frames {
            self.frames = sum;
            self.session.on_traffic(now_us);
        }
        // Packets that carry nothing but acknowledgements are not missed when they are lost.
        let carried = stats.frame_tx.datagram + stats.frame_tx.stream + stats.frame_tx.ping;
        let sent = stats.path.sent_packets.min(carried);
        self.session
            .on_counts(now_us, sent, stats.path.lost_packets);
    }

    fn carries(&self, now: Instant) -> bool {
        self.carried_at
            .is_some_and(|at| now.saturating_duration_since(at) <= CARRYING)
    }

    fn present_interval(&self, now: Instant) -> Duration {
        let settling = self.session.state() != LinkState::Up
            && now.saturating_duration_since(self.settling_since) < SETTLING;
        if settling {
            self.interval.min(FAST)
        } else {
            self.interval
        }
    }

    fn wish(&mut self, now: Instant, now_us: u64) -> LinkUse {
        let estimate = self.session.estimate(now_us);
        let lossy = |loss: Option<LossCount>| loss.is_some_and(|loss| loss.share() >= LOSSY);
        LinkUse {
            // What a degraded link would carry goes elsewhere, and wants to come back.
            carries: self.carries(now) || self.degraded.0 || self.degraded.1.is_some(),
            peer_uses: self.session.peer_uses_it(),
            lossy: lossy(estimate.loss_out) || lossy(estimate.loss_in),
            ..LinkUse::default()
        }
    }
}

impl Shard {
    /// The link of a connection has been greeted: it is measured from now on.
    pub(super) fn begin_probing(&mut self, key: ConnKey, now: Instant) {
        if let Some(link) = self.link_mut(key) {
            link.probing.settling_since = now;
        }
        self.probe_at(key, now);
    }

    /// Shares the budget of probes anew.
    pub(super) fn share_budget(&mut self, now: Instant) {
        let now_us = self.micros(now);
        let keys: Vec<(RelayIndex, ConnKey)> = self
            .peers
            .iter()
            .filter_map(|(&(index, _), peer)| Some((index, peer.conn?)))
            .collect();
        let mut wishes = Vec::with_capacity(keys.len());
        let mut carrying = BTreeMap::new();
        for &(index, key) in &keys {
            let wish = self
                .link_mut(key)
                .map_or(LinkUse::default(), |link| link.probing.wish(now, now_us));
            *carrying.entry(index).or_insert(false) |= wish.carries;
            wishes.push(wish);
        }
        for (&(index, _), wish) in keys.iter().zip(&mut wishes) {
            wish.destinations = self.plan_use.destinations(index);
        }
        for ((next, backup), count) in self.plan_use.backups() {
            // Over whichever uplink.
            let first = keys.partition_point(|&(index, _)| index < backup);
            let of_backup = keys[first..].iter().zip(&mut wishes[first..]);
            for (_, wish) in of_backup.take_while(|((index, _), _)| *index == backup) {
                wish.backs += count;
                if carrying.get(&next) == Some(&true) {
                    wish.backs_carrying += count;
                }
            }
        }
        for (&(_, key), pace) in keys.iter().zip(budget::paces(&wishes)) {
            self.set_pace(key, pace, now);
        }
    }

    fn set_pace(&mut self, key: ConnKey, pace: Pace, now: Instant) {
        let now_us = self.micros(now);
        // Links that become fast together do not probe in step.
        let part = self.rng.random_range(0.0..1.0);
        let Some(link) = self.link_mut(key) else {
            return;
        };
        let probing = &mut link.probing;
        probing.session.set_in_use(now_us, pace.in_use);
        let faster = pace.interval < probing.interval;
        probing.interval = pace.interval;
        if faster {
            self.probe_at(key, now + pace.interval.mul_f64(part));
        }
    }

    /// A packet of a client is about to go over a link: from the first one on it is probed densely.
    pub(super) fn link_carries(&mut self, key: ConnKey, now: Instant) {
        let now_us = self.micros(now);
        let Some(link) = self.link_mut(key) else {
            return;
        };
        let probing = &mut link.probing;
        let carried = probing.carries(now);
        probing.carried_at = Some(now);
        if !carried && probing.interval > DENSE {
            probing.interval = DENSE;
            probing.session.set_in_use(now_us, true);
            self.probe_at(key, now);
        }
    }

    /// The next probe of a link leaves at `at`, or earlier if one is due earlier.
    fn probe_at(&mut self, key: ConnKey, at: Instant) {
        let Some(link) = self.link_mut(key) else {
            return;
        };
        if link.probing.next_at.is_none_or(|next| at < next) {
            link.probing.next_at = Some(at);
            self.timers.push(at, TimerKey::Probe(key));
        }
    }

    /// Sends the next probe of a link, if it is time, and looks whether the peer still answers.
    pub(super) fn probe_due(&mut self, key: ConnKey, now: Instant) {
        let now_us = self.micros(now);
        let oldest_stamped = self.tables.oldest_stamped();
        let settling = self.is_settling(now);
        let jitter = self.rng.random_range(0.9..1.1);
        let Some(conn) = self.conn_mut(key) else {
            return;
        };
        let Role::Link(link) = &mut conn.role else {
            return;
        };
        let probing = &mut link.probing;
        // Timers are not taken back: an earlier one may have done it.
        if conn.over || probing.next_at.is_none_or(|next| next > now) {
            return;
        }
        let interval = probing.present_interval(now);
        probing.session.set_interval(interval);
        let mut fields = probing.session.next_probe(now_us);
        fields.answer |= interval >= HELD_TOO_LONG && !probing.answering;
        probing.answering = false;
        probing.sent_at = Some(now);
        let wait = if probing.urgent > 0 {
            probing.urgent -= 1;
            URGENT_SPACING
        } else {
            let recovering = probing.session.brownout().sees_out();
            let longest = if recovering { RECOVERING } else { interval };
            interval.min(longest).mul_f64(jitter)
        };
        probing.next_at = Some(now + wait);
        let probe = Probe {
            oldest_stamped,
            settling,
            ..wire(&fields)
        };
        // Before all else: a probe that waited would measure our queue. QUIC drops its oldest
        // datagram if it must.
        let _ = conn
            .quic
            .datagrams()
            .send(probe.encode().to_vec().into(), true);
        self.mark(key);
        self.timers.push(now + wait, TimerKey::Probe(key));
        self.judge(key, now);
    }

    /// A probe has come.
    pub(super) fn on_probe(&mut self, key: ConnKey, bytes: &[u8], now: Instant) {
        let now_us = self.micros(now);
        let Ok(probe) = Probe::decode(bytes) else {
            self.metrics.count_drop(DropReason::Malformed);
            return;
        };
        let Some(link) = self.link_mut(key) else {
            return;
        };
        link.peer_settling = probe.settling;
        let peer = link.peer;
        let probing = &mut link.probing;
        let verdict = probing.session.on_probe(now_us, &fields(&probe));
        if matches!(
            verdict,
            ProbeVerdict::Accepted | ProbeVerdict::PeerRestarted
        ) {
            let called = probing.session.peer_uses_it() && probing.interval > FAST;
            if called {
                probing.interval = FAST;
            }
            if probe.answer || called {
                probing.answering = true;
                let soonest = probing.sent_at.map_or(now, |sent| sent + LEAST_SPACING);
                self.probe_at(key, soonest.max(now));
            }
        }
        if let Some(peer) = peer {
            self.note_stamped(peer, probe.oldest_stamped, now);
        }
        self.judge(key, now);
    }

    /// The time has come at which a link is down if nothing has been heard of it.
    pub(super) fn silence_due(&mut self, key: ConnKey, now: Instant) {
        let Some(link) = self.link_mut(key) else {
            return;
        };
        if link.probing.silence_at.is_some_and(|at| at <= now) {
            link.probing.silence_at = None;
            self.judge(key, now);
        }
    }

    /// Follows a link's state; a change is told to the peer and reported at once.
    pub(super) fn judge(&mut self, key: ConnKey, now: Instant) {
        let now_us = self.micros(now);
        let epoch = self.epoch;
        let Some(Conn {
            role: Role::Link(link),
            quic,
            over: false,
            ..
        }) = self.conn_mut(key)
        else {
            return;
        };
        // What has been received but not been looked at yet counts.
        link.probing.observe(&quic.stats(), now_us);
        let estimate = link.probing.session.estimate(now_us);
        let brownout = link.probing.session.brownout();
        let degraded = (brownout.degraded_in(), brownout.degraded_out());
        let seen_here = brownout.sees_in();
        let proof = link.probing.session.wants_proof() && estimate.state == LinkState::Up;
        if proof {
            link.probing.urgent = link.probing.urgent.max(PROOF_PROBES);
        }
        let was = std::mem::replace(&mut link.probing.degraded, degraded);
        let stepped = estimate
            .rtt_min
            .is_some_and(|rtt| link.probing.has_stepped(rtt));
        link.delay_in = estimate.rtt_min.unwrap_or_default() / 2;
        let before = std::mem::replace(&mut link.state, estimate.state);
        let after = link.state;
        let peer = link.peer;
        let deadline = link
            .probing
            .session
            .deadline_us()
            .map(|us| epoch + Duration::from_micros(us));
        let rearm = deadline.filter(|&at| link.probing.silence_at.is_none_or(|armed| at < armed));
        if let Some(at) = rearm {
            link.probing.silence_at = Some(at);
            self.timers.push(at, TimerKey::Silence(key));
        }
        if proof {
            self.probe_at(key, now + URGENT_SPACING);
        }
        let turned = (was.0, was.1.is_some()) != (degraded.0, degraded.1.is_some());
        let begins_here = seen_here && !was.0;
        if turned && !(begins_here && self.all_look_late(now)) {
            self.link_degraded(key, peer, degraded, now);
        }
        if stepped && after == LinkState::Up {
            self.report_soon(now);
        }
        if before != after {
            self.link_changed(key, peer, after, now);
        } else if self.link_mut(key).is_some_and(|link| {
            link.down_since
                .is_some_and(|since| now.saturating_duration_since(since) > DOWN_PATIENCE)
        }) {
            self.close(key, CloseCode::Timeout, "no answers", now);
        }
    }

    fn link_changed(
        &mut self,
        key: ConnKey,
        peer: Option<RelayIndex>,
        state: LinkState,
        now: Instant,
    ) {
        if let Some(link) = self.link_mut(key) {
            if state == LinkState::Down {
                link.been_down = true;
                link.down_since = Some(now);
                link.probing.settling_since = now;
                link.probing.urgent = URGENT_PROBES;
            } else {
                link.down_since = None;
            }
        }
        if state == LinkState::Down || state == LinkState::Up {
            let name = peer.and_then(|peer| self.tables.name_of(peer));
            tracing::info!(peer = name, ?state, "link");
            self.metrics.link_changes.inc();
            self.probe_at(key, now);
            self.report_soon(now);
            self.note_settling(now);
        }
        if state == LinkState::Down {
            self.requeue(key, now);
            self.look_after_clients_of(peer);
        }
    }

    /// A link to a relay is down. If it was the last one, clients that keep another session here
    /// should know.
    pub(super) fn look_after_clients_of(&mut self, peer: Option<RelayIndex>) {
        if let Some(peer) = peer
            && self.neighbour(peer) == LinkHealth::Down
        {
            self.tell_edge_down(peer);
        }
    }

    fn link_degraded(
        &mut self,
        key: ConnKey,
        peer: Option<RelayIndex>,
        (inward, outward): (bool, Option<u32>),
        now: Instant,
    ) {
        let name = peer.and_then(|peer| self.tables.name_of(peer));
        tracing::info!(peer = name, inward, outward_us = outward, "link degraded");
        self.metrics.link_brownouts.inc();
        if let Some(link) = self.link_mut(key) {
            // The other end must know.
            link.probing.urgent = URGENT_PROBES - 1;
        }
        self.probe_at(key, now);
        self.report_soon(now);
    }

    /// When most links look late at once the fault is here: a busy processor, or the way to all of
    /// them, and deflecting helps nobody. Then what has been held against them is forgiven.
    fn all_look_late(&mut self, now: Instant) -> bool {
        let keys: Vec<ConnKey> = self.peers.values().filter_map(|peer| peer.conn).collect();
        let (mut up, mut late) = (0, 0);
        for &key in &keys {
            if let Some(link) = self.link_mut(key)
                && link.state == LinkState::Up
                && link.probing.interval <= FAST
            {
                up += 1;
                late += usize::from(link.probing.session.brownout().sees_in());
            }
        }
        if up < 3 || 2 * late <= up {
            return false;
        }
        tracing::info!(
            late,
            of = up,
            "most links look late at once: suspecting this relay"
        );
        self.distrust_links(now, LOOKS_LATE);
        true
    }

    /// What links seem like within `time` from now on is not their fault.
    pub(super) fn distrust_links(&mut self, now: Instant, time: Duration) {
        let until = self.micros(now + time);
        let keys: Vec<ConnKey> = self.peers.values().filter_map(|peer| peer.conn).collect();
        for key in keys {
            if let Some(link) = self.link_mut(key) {
                link.probing.session.distrust(until);
            }
        }
    }

    pub(super) fn link_mut(&mut self, key: ConnKey) -> Option<&mut Link> {
        match &mut self.conn_mut(key)?.role {
            Role::Link(link) => Some(link),
            Role::Session(_) => None,
        }
    }
}

/// All but what is not about the link.
fn wire(fields: &ProbeFields) -> Probe {
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
        state: match fields.state {
            None => ProbeState::NotSaid,
            Some(LinkState::Unknown) => ProbeState::Unknown,
            Some(LinkState::Warming) => ProbeState::Warming,
            Some(LinkState::Up) => ProbeState::Up,
            Some(LinkState::Down) => ProbeState::Down,
        },
        in_use: fields.in_use,
        answer: fields.answer,
        degraded_in: fields.degraded_in,
        degraded_out: fields.degraded_out,
        ..Probe::default()
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
        state: match probe.state {
            ProbeState::NotSaid => None,
            ProbeState::Unknown => Some(LinkState::Unknown),
            ProbeState::Warming => Some(LinkState::Warming),
            ProbeState::Up => Some(LinkState::Up),
            ProbeState::Down => Some(LinkState::Down),
        },
        in_use: probe.in_use,
        answer: probe.answer,
        degraded_in: probe.degraded_in,
        degraded_out: probe.degraded_out,
    }
}
