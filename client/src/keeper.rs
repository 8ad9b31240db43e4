//! Keeps the client's sessions: that there always is a first one; that another one stands by at the
//! second-best edge; that conversations have those they profit from; that an edge which does not
//! answer is left in time.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use quinn::ConnectionError;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tradewind_proto::{
    CloseCode,
    control::{RefreshToken, client_message},
};

use crate::{
    ConnectError, EdgeAddr,
    connect::{self, Connector, Established},
    core::Ended,
    edges::EdgeTable,
    keep_alive::{KeepAlive, Memory, Quiet, Verdict},
    session::{self, Session, code, describe, say_goodbye},
    shared::{Either, Shared, either, until_true},
};

/// Pauses between attempts to connect: from, to; doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The first pause after an edge had no time.
const BUSY_BACKOFF: Duration = Duration::from_secs(1);
/// How long before its end a token is replaced, at least.
const REFRESH_AHEAD: Duration = Duration::from_secs(60);
/// How often it is looked whether that is due: from, to.
const REFRESH_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How soon a token is replaced again at the earliest.
const REFRESH_AGAIN: Duration = Duration::from_secs(5);
/// How often the sessions that matter are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A session that matters is asked for a sign of life when nothing was heard for so long, …
const ASK_AFTER: Duration = Duration::from_millis(250);
/// … and is dead when none has come so long after that, or two round trips and a little.
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_EXTRA: Duration = Duration::from_millis(100);
/// When the keeper itself was late by so much, the host has slept: what it has not heard meanwhile says
/// nothing.
const SLEPT: Duration = Duration::from_secs(1);
/// A further session that has carried nothing for so long is closed, unless it stands by.
const UNUSED: Duration = Duration::from_secs(12);
/// How soon addresses of edges that are not known are asked for again.
const FIND_AGAIN: Duration = Duration::from_secs(5);
/// Handshakes at a time.
const ATTEMPTS: usize = 3;
/// Sessions beyond the first are set up within this time after that, at random: clients of an edge that
/// died must not all come at once.
const SPREAD: Duration = Duration::from_millis(1_500);
/// Another edge becomes the first one when its round trip is shorter by this share …
const NEARER: f64 = 0.8;
/// … and by this much.
const NEARER_BY: Duration = Duration::from_millis(5);

/// What the keeper is told.
enum Event {
    Ended(u64, ConnectionError),
    Draining(u64),
    Measured(EdgeAddr, Result<Duration, ConnectError>),
    Attached(EdgeAddr, Result<Box<Established>, ConnectError>),
}

/// What is heard of a session's edge.
#[derive(Debug, Clone, Copy)]
struct Life {
    packets: u64,
    heard_at: Instant,
    asked_at: Option<Instant>,
}

struct Kept {
    session: Session,
    since: Instant,
    life: Life,
    quiet: Quiet,
    draining: bool,
}

struct Keeper {
    shared: Arc<Shared>,
    connector: Connector,
    table: EdgeTable,
    sessions: BTreeMap<u64, Kept>,
    /// Handshakes under way.
    attempts: Vec<EdgeAddr>,
    /// No further session is set up before.
    not_before: Instant,
    /// Addresses of edges are not asked for again before.
    find_not_before: Instant,
    looked_at: Instant,
    /// Of an adaptive keep-alive.
    memory: Option<Memory>,
    /// What the clock on the wall showed then: it goes on while the host sleeps.
    looked_at_wall: SystemTime,
    events: mpsc::UnboundedSender<Event>,
}

/// Starts a client's tasks on its first session.
pub(crate) fn start(shared: &Arc<Shared>, connector: Connector, first: Established) {
    let host = shared.host.clone();
    host.spawn(run_timers(shared.clone()));
    let (sender, events) = mpsc::unbounded_channel();
    let now = host.now();
    let mut keeper = Keeper {
        shared: shared.clone(),
        connector,
        table: EdgeTable::default(),
        sessions: BTreeMap::new(),
        attempts: Vec::new(),
        not_before: now,
        find_not_before: now,
        looked_at: now,
        memory: None,
        looked_at_wall: host.wall_clock(),
        events: sender,
    };
    keeper.begin(first, true);
    host.spawn(keep(keeper, events));
    host.spawn(refresh_tokens(shared.clone()));
}

/// Does what is due in the client's state, when it is.
async fn run_timers(shared: Arc<Shared>) {
    let work = async {
        loop {
            match shared.with(|core, now| core.on_timers(now)) {
                None => shared.timer_wake.notified().await,
                Some(at) => {
                    either(shared.timer_wake.notified(), shared.host.sleep_until(at)).await;
                }
            }
        }
    };
    either(until_true(&shared.done), work).await;
}

/// Keeps sessions until the client is closed, or no edge will have it any more.
async fn keep(mut keeper: Keeper, mut events: mpsc::UnboundedReceiver<Event>) {
    let shared = keeper.shared.clone();
    let error = loop {
        let wake_at = keeper.tend();
        let timer = async {
            match wake_at {
                Some(at) => shared.host.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            biased;
            () = until_true(&shared.closing) => None,
            event = events.recv() => event,
            () = shared.keeper_wake.notified() => continue,
            () = timer => continue,
        };
        let Some(event) = event else {
            keeper.say_goodbye().await;
            break None;
        };
        if let Err(error) = keeper.take(event) {
            break Some(error);
        }
        if keeper.first_stands() {
            continue;
        }
        let leaving = keeper.leaving();
        match reconnect(&mut keeper, leaving.as_deref()).await {
            Some(Ok(established)) => {
                keeper.begin(established, true);
                keeper.end_draining();
            }
            Some(Err(error)) => break Some(error),
            None => {
                keeper.say_goodbye().await;
                break None;
            }
        }
    };
    let closed = || "the client was closed".to_owned();
    let reason = error.as_ref().map_or_else(closed, ToString::to_string);
    for kept in keeper.sessions.values() {
        let connection = &kept.session.live.connection;
        connection.close(code(CloseCode::Done), reason.as_bytes());
    }
    shared.with(|core, now| core.finish(&reason, error, now));
    shared.done.send_replace(true);
    shared.with(|core, _| core.wake_events());
}

impl Keeper {
    fn begin(&mut self, established: Established, first: bool) {
        let shared = &self.shared;
        let session = session::begin(shared, established, first);
        let live = session.live.clone();
        let (closed, draining) = (self.events.clone(), self.events.clone());
        let watched = live.clone();
        shared.host.spawn(async move {
            let work = async {
                loop {
                    watched.draining_wake.notified().await;
                    let _ = draining.send(Event::Draining(watched.number));
                }
            };
            let Either::First(error) = either(watched.connection.closed(), work).await;
            let _ = closed.send(Event::Ended(watched.number, error));
        });
        let now = shared.host.now();
        if let (true, KeepAlive::Adaptive(bounds)) =
            (self.sessions.is_empty(), shared.config.keep_alive)
        {
            // It may be another network.
            self.memory = Some(Memory::new(bounds));
        }
        if first {
            self.not_before = now + SPREAD.mul_f64(self.connector.rng.random::<f64>());
        }
        self.table.learn(std::slice::from_ref(&session.edge));
        let address = session.edge.address;
        self.table.measured(address, live.connection.rtt(), now);
        let life = Life {
            packets: live.connection.stats().udp_rx.datagrams,
            heard_at: now,
            asked_at: None,
        };
        let kept = Kept {
            session,
            since: now,
            life,
            quiet: Quiet::new(now),
            draining: false,
        };
        self.sessions.insert(live.number, kept);
    }

    /// Handles an event. An error ends the client.
    fn take(&mut self, event: Event) -> Result<(), ConnectError> {
        let now = self.shared.host.now();
        match event {
            Event::Ended(number, error) => {
                let (code, reason) = describe(&error);
                if let Some(kept) = self.sessions.get(&number) {
                    let edge = kept.session.edge.to_string();
                    tracing::info!(number, reason, "a session is lost");
                    self.lose(number, &reason);
                    if is_final(code, &self.shared) {
                        return Err(connect::refused(&edge, &error));
                    }
                }
            }
            Event::Draining(number) => {
                if let Some(kept) = self.sessions.get_mut(&number) {
                    kept.draining = true;
                    self.table.failed(kept.session.edge.address, now);
                    self.choose_first();
                    if self.first_stands() {
                        self.end_draining();
                    }
                }
            }
            Event::Measured(edge, result) => {
                self.attempts.retain(|attempt| *attempt != edge);
                match result {
                    Ok(rtt) => self.table.measured(edge.address, rtt, now),
                    Err(error) => {
                        tracing::debug!(%edge, %error, "not measured");
                        self.not_reached(&edge, &error, now);
                    }
                }
            }
            Event::Attached(edge, result) => {
                self.attempts.retain(|attempt| *attempt != edge);
                match result {
                    Ok(established) => self.begin(*established, false),
                    // The edges of the other sessions are about to say the same.
                    Err(error @ ConnectError::Revoked { .. }) => return Err(error),
                    Err(error) => {
                        tracing::debug!(%edge, %error, "no further session");
                        self.not_reached(&edge, &error, now);
                    }
                }
            }
        }
        Ok(())
    }

    /// An edge could not be reached, or has no time.
    fn not_reached(&mut self, edge: &EdgeAddr, error: &ConnectError, now: Instant) {
        match error {
            ConnectError::Busy { .. } => {
                let chance = self.connector.rng.random();
                self.table.busy(edge.address, chance, now);
            }
            _ => self.table.failed(edge.address, now),
        }
    }

    /// Looks after the sessions. When to look again, if nothing else happens.
    fn tend(&mut self) -> Option<Instant> {
        let shared = self.shared.clone();
        let now = shared.host.now();
        let slept = now.saturating_duration_since(self.looked_at) > LOOK + SLEPT;
        let mut matters = false;
        let mut dead = Vec::new();
        for (&number, kept) in &mut self.sessions {
            let Some(used) = shared.with(|core, _| core.use_of(number, now)) else {
                continue;
            };
            let connection = &kept.session.live.connection;
            let packets = connection.stats().udp_rx.datagrams;
            let life = &mut kept.life;
            if used.doubted && life.asked_at.is_none() {
                // Only what is heard from now on says that its edge lives.
                life.packets = packets;
                life.asked_at = Some(now);
                matters = true;
                shared.with(|core, _| core.ask_for_life(number));
                continue;
            }
            if packets != life.packets || slept {
                life.packets = packets;
                life.heard_at = now;
                life.asked_at = None;
                shared.with(|core, _| core.not_doubted(number));
                matters |= used.matters;
                continue;
            }
            matters |= used.matters;
            match life.asked_at {
                None => {
                    let silent = now.saturating_duration_since(life.heard_at) >= ASK_AFTER;
                    if used.matters && silent {
                        life.asked_at = Some(now);
                        shared.with(|core, _| core.ask_for_life(number));
                    }
                }
                Some(asked_at) => {
                    let patience = PATIENCE.max(connection.rtt() * 2 + PATIENCE_EXTRA);
                    if now >= asked_at + patience {
                        dead.push(number);
                    }
                }
            }
        }
        let quiet = self.keep_alive(now);
        self.looked_at = now;
        for number in dead {
            self.give_up(number);
        }
        self.set_up_more(now);
        let next = matters.then_some(now + LOOK);
        let survey = self.table.next_measurement().filter(|&at| at > now);
        let spread = Some(self.not_before).filter(|&at| at > now);
        let unused = (self.sessions.len() > 1).then_some(now + UNUSED);
        [next, survey, spread, unused, quiet]
            .into_iter()
            .flatten()
            .min()
    }

    /// Keeps idle sessions alive as rarely as the network allows, if that is wanted. When to look again.
    fn keep_alive(&mut self, now: Instant) -> Option<Instant> {
        let wall = self.shared.host.wall_clock();
        let by_wall = wall.duration_since(self.looked_at_wall);
        let by_clock = now.saturating_duration_since(self.looked_at);
        let slept = by_wall.is_ok_and(|by_wall| by_wall > by_clock + SLEPT);
        self.looked_at_wall = wall;
        let memory = self.memory.as_mut()?;
        let shared = &self.shared;
        let (mut next, mut dead) = (None, Vec::new());
        // When one is asked the others are asked too, for the sake of the radio.
        for joining in [false, true] {
            let mut asked = false;
            next = None;
            for (&number, kept) in &mut self.sessions {
                let connection = &kept.session.live.connection;
                let heard = connection.stats().udp_rx.datagrams;
                let used = shared.with(|core, now| core.use_of(number, now));
                let busy = used.is_none_or(|used| used.matters);
                if busy || (slept && !joining) {
                    kept.quiet.disturb();
                }
                if shared.with(|core, _| core.take_answer(number)) {
                    kept.quiet.on_answer(heard, now, memory);
                }
                if busy {
                    continue;
                }
                if joining {
                    kept.quiet.join(now);
                }
                let mut verdict = kept.quiet.poll(heard, connection.rtt(), now, memory);
                if let Verdict::Ask(after) = verdict {
                    asked = true;
                    shared.with(|core, _| core.keep_alive(number, after));
                    verdict = kept.quiet.poll(heard, connection.rtt(), now, memory);
                }
                match verdict {
                    Verdict::Wait(at) => next = Some(next.map_or(at, |next: Instant| next.min(at))),
                    Verdict::Dead => dead.push(number),
                    Verdict::Ask(_) => {}
                }
            }
            if !asked {
                break;
            }
        }
        for number in dead {
            self.give_up(number);
        }
        next
    }

    /// The edge of a session does not answer any more.
    fn give_up(&mut self, number: u64) {
        let Some(kept) = self.sessions.get(&number) else {
            return;
        };
        tracing::info!(edge = %kept.session.edge, "the edge does not answer");
        let live = kept.session.live.clone();
        self.lose(number, "no sign of life");
        live.connection
            .close(code(CloseCode::Done), b"no sign of life");
    }

    fn lose(&mut self, number: u64, reason: &str) {
        let now = self.shared.host.now();
        if let Some(kept) = self.sessions.remove(&number) {
            self.table.failed(kept.session.edge.address, now);
            self.choose_first();
            self.shared
                .with(|core, now| core.detach(number, &Ended::Lost(reason), now));
        }
    }

    /// Sees to it that the first session is one that stands, if there is one.
    fn choose_first(&mut self) {
        if self.first_stands() {
            return;
        }
        let standing = self.sessions.iter().filter(|(_, kept)| !kept.draining);
        let best = standing.min_by_key(|(_, kept)| kept.session.live.connection.rtt());
        if let Some((&number, _)) = best {
            let now = self.shared.host.now();
            self.not_before = now + SPREAD.mul_f64(self.connector.rng.random::<f64>());
            self.shared.with(|core, now| core.promote(number, now));
        }
    }

    /// Whether the first session stands, and is not to end soon.
    fn first_stands(&self) -> bool {
        let first = self.shared.with(|core, _| core.first());
        let first = first.and_then(|first| self.sessions.get(&first));
        first.is_some_and(|kept| !kept.draining)
    }

    /// The relay that is to be left, if the first session is there.
    fn leaving(&self) -> Option<String> {
        let draining = self.sessions.values().find(|kept| kept.draining)?;
        Some(draining.session.relay.clone())
    }

    /// Ends the sessions at edges that are going away.
    fn end_draining(&mut self) {
        let draining: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, kept)| kept.draining)
            .map(|(&number, _)| number)
            .collect();
        for number in draining {
            self.end(number, b"moved");
        }
    }

    fn end(&mut self, number: u64, reason: &[u8]) {
        if let Some(kept) = self.sessions.remove(&number) {
            self.shared
                .with(|core, now| core.detach(number, &Ended::OnPurpose("moved"), now));
            let connection = &kept.session.live.connection;
            connection.close(code(CloseCode::Done), reason);
        }
    }

    /// Measures edges, and sets up and ends further sessions.
    fn set_up_more(&mut self, now: Instant) {
        let shared = self.shared.clone();
        let config = &shared.config;
        if config.max_sessions <= 1 || !self.first_stands() {
            return;
        }
        let (known, loads, wanted, talking) = shared.with(|core, now| {
            (
                core.known_edges.clone(),
                core.edge_loads.clone(),
                core.wanted_edges(now),
                core.is_talking(now),
            )
        });
        self.table.learn(&known);
        self.table.learn_loads(&loads);
        // A phone that rests does not wake up to measure edges again.
        let resting = self.memory.is_some() && !talking;
        // How many edges beside the first one's.
        let near = match (talking, config.standby) {
            (true, _) => config.near_edges.saturating_sub(1).max(1),
            (false, true) => 1,
            (false, false) => 0,
        };
        let mut unknown = Vec::new();
        let mut targets: Vec<EdgeAddr> = Vec::new();
        let nearest = self.table.nearest(now).into_iter().cloned();
        if near > 0 {
            targets.extend(nearest.take(near + 1));
        }
        for (relay, within) in &wanted {
            let rtt = self.table.rtt_of(relay);
            if rtt.is_some_and(|rtt| rtt / 2 > *within) {
                continue;
            }
            match self.table.of_relay(relay, now) {
                Some(Ok(edge)) => targets.push(edge.clone()),
                Some(Err(())) => {}
                None => unknown.push(relay.to_string()),
            }
        }
        self.end_unused(&targets, now);
        if near == 0 || now < self.not_before {
            return;
        }
        if !unknown.is_empty() && now >= self.find_not_before {
            shared.with(|core, _| core.find_edges(unknown));
            self.find_not_before = now + FIND_AGAIN;
        }
        self.move_first(now);
        while self.attempts.len() < ATTEMPTS
            && let Some(edge) = self.table.to_measure(&self.attempts, now)
            && !(resting && self.table.is_measured(edge.address))
        {
            let connected = self.session_at(&edge);
            if let Some(number) = connected {
                let rtt = self.sessions[&number].session.live.connection.rtt();
                self.table.measured(edge.address, rtt, now);
                continue;
            }
            self.attempts.push(edge.clone());
            let (shared, connector) = (shared.clone(), self.connector.clone());
            let events = self.events.clone();
            self.shared.host.spawn(async move {
                let result = connect::measure(shared, connector, edge.clone()).await;
                let _ = events.send(Event::Measured(edge, result));
            });
        }
        let first = shared.with(|core, _| core.welcome.relay.clone());
        for edge in targets {
            let room = self.sessions.len() + self.attempts.len() < config.max_sessions;
            let busy = self.attempts.len() >= ATTEMPTS || self.attempts.contains(&edge);
            if !room || busy || self.session_at(&edge).is_some() {
                continue;
            }
            self.attempts.push(edge.clone());
            let (shared, connector) = (shared.clone(), self.connector.clone());
            let (events, first) = (self.events.clone(), first.clone());
            self.shared.host.spawn(async move {
                let result = connect::attach(shared, connector, edge.clone(), first).await;
                let _ = events.send(Event::Attached(edge, result.map(Box::new)));
            });
        }
    }

    /// Ends further sessions that nothing profits from.
    fn end_unused(&mut self, targets: &[EdgeAddr], now: Instant) {
        let first = self.shared.with(|core, _| core.first());
        let unused: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(number, kept)| {
                let used = self.shared.with(|core, now| core.use_of(**number, now));
                let idle = used.is_none_or(|used| now >= used.used_at + UNUSED);
                let wanted = targets.iter().any(|target| kept.session.edge.is_at(target));
                Some(**number) != first && idle && now >= kept.since + UNUSED && !wanted
            })
            .map(|(&number, _)| number)
            .collect();
        for number in unused {
            if let Some(kept) = self.sessions.get(&number) {
                self.table.useless(kept.session.edge.address, now);
            }
            self.end(number, b"of no use");
        }
    }

    /// Makes a session at a much nearer edge the first one.
    fn move_first(&mut self, now: Instant) {
        let first = self.shared.with(|core, _| core.first());
        let Some(present) = first.and_then(|first| self.sessions.get(&first)) else {
            return;
        };
        let worth = |kept: &Kept| {
            let rtt = kept.session.live.connection.rtt();
            self.table.weighed(kept.session.edge.address, rtt)
        };
        let rtt = worth(present);
        let nearer = self.sessions.iter().find(|(_, kept)| {
            let other = worth(kept);
            !kept.draining
                && other.as_secs_f64() < rtt.as_secs_f64() * NEARER
                && other + NEARER_BY < rtt
        });
        if let Some((&number, _)) = nearer
            && now >= present.since + UNUSED
        {
            self.shared.with(|core, now| core.promote(number, now));
        }
    }

    fn session_at(&self, edge: &EdgeAddr) -> Option<u64> {
        let mut sessions = self.sessions.iter();
        let found = sessions.find(|(_, kept)| {
            kept.session.edge.is_at(edge) || edge.relay.as_ref() == Some(&kept.session.relay)
        });
        found.map(|(&number, _)| number)
    }

    /// Lets everything arrive that was handed over, on all sessions at a time, and ends them.
    async fn say_goodbye(&mut self) {
        let (ended, mut all_ended) = mpsc::channel::<()>(1);
        for kept in std::mem::take(&mut self.sessions).into_values() {
            let (shared, ended) = (self.shared.clone(), ended.clone());
            self.shared.host.spawn(async move {
                say_goodbye(&shared, kept.session).await;
                drop(ended);
            });
        }
        drop(ended);
        // Nobody sends on it: it only ends.
        let _ = all_ended.recv().await;
    }
}

/// Connects, however often it takes. An error when it will never succeed; `None` when the client is
/// to end first.
async fn reconnect(
    keeper: &mut Keeper,
    leaving: Option<&str>,
) -> Option<Result<Established, ConnectError>> {
    let shared = keeper.shared.clone();
    let connector = &mut keeper.connector;
    let work = async {
        let mut backoff = BACKOFF.0;
        // Clients of an edge that died are not to come all at once.
        let mut pause = backoff.mul_f64(connector.rng.random::<f64>());
        loop {
            shared.host.sleep(pause).await;
            let known = shared.with(|core, _| core.known_edges.clone());
            let instance = shared.with(|core, _| core.instance);
            let error = match connector.connect(&shared, &known, instance, leaving).await {
                Ok(established) => return Ok(established),
                Err(error) => error,
            };
            if is_hopeless(&error, &shared) {
                return Err(error);
            }
            tracing::debug!(%error, "not connected yet");
            if matches!(error, ConnectError::Busy { .. }) {
                // Others are coming, too: it takes seconds until all have found a place.
                backoff = backoff.max(BUSY_BACKOFF);
            }
            // Full jitter: those who were refused together must not come together again.
            pause = backoff.mul_f64(connector.rng.random::<f64>());
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    };
    match either(until_true(&shared.closing), work).await {
        Either::First(()) => None,
        Either::Second(result) => Some(result),
    }
}

/// Replaces the token whenever that is due, if it can be.
async fn refresh_tokens(shared: Arc<Shared>) {
    if !shared.config.token.can_refresh() {
        return;
    }
    let work = async {
        loop {
            let expires = shared.with(|core, _| core.welcome.expires_unix_s);
            let left = (UNIX_EPOCH + Duration::from_secs(expires))
                .duration_since(shared.host.wall_clock())
                .unwrap_or_default();
            let wait = left.saturating_sub(REFRESH_AHEAD.max(left / 5));
            // The session may be another one by then, with another token.
            shared
                .host
                .sleep(wait.clamp(REFRESH_PAUSE.0, REFRESH_PAUSE.1))
                .await;
            if wait > REFRESH_PAUSE.1 {
                continue;
            }
            match shared.config.token.get().await {
                Ok(token) => {
                    let refresh = client_message::Body::RefreshToken(RefreshToken { token });
                    shared.with(|core, _| core.tell_all(&refresh));
                }
                Err(error) => tracing::warn!(error, "no fresh token yet"),
            }
            // The answer says until when the new one holds.
            shared.host.sleep(REFRESH_AGAIN).await;
        }
    };
    either(until_true(&shared.done), work).await;
}

/// Whether a session that ended so is not to be followed by another.
fn is_final(code: Option<CloseCode>, shared: &Shared) -> bool {
    match code {
        // The user has connected elsewhere, or may not connect.
        Some(CloseCode::Replaced | CloseCode::Revoked) => true,
        Some(CloseCode::Unauthorized | CloseCode::TokenExpired) => {
            !shared.config.token.can_refresh()
        }
        _ => false,
    }
}

fn is_hopeless(error: &ConnectError, shared: &Shared) -> bool {
    match error {
        ConnectError::Config(_) | ConnectError::Revoked { .. } => true,
        ConnectError::Unauthorized { .. } => !shared.config.token.can_refresh(),
        ConnectError::Refused { code, .. } => is_final(Some(*code), shared),
        _ => false,
    }
}
