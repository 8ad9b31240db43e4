//! The client's state: peers and their lanes, handles, timers. It outlives sessions.

mod incoming;
mod lookup;
mod outgoing;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tradewind_host::Host;
use tradewind_proto::{
    control::Welcome,
    lane::{MessageId, Outcome, ReceiveConfig, ReceiveLane, SendConfig, SendLane},
};

pub(crate) use incoming::Ping;
pub(crate) use outgoing::Packet;

use crate::{
    ClientConfig, Delivered, EdgeAddr, LookupError, Message, PingError, PingReport, SendError,
    State, Stats,
    inbox::Inbox,
    session::{Live, Wakes},
};

/// Message streams of a session: lanes are spread over them.
pub(crate) const STREAMS: usize = 8;

/// Peers remembered; beyond it those with nothing under way are forgotten.
const MAX_PEERS: usize = 16_384;
/// Lanes kept per sending user; beyond it the one idle for longest is forgotten.
const MAX_LANES_PER_SENDER: usize = 64;
/// Packets held of senders that are not known yet.
const MAX_HELD: usize = 1_024;
/// The same, of one of them.
const MAX_HELD_PER_HANDLE: usize = 64;
/// Longest name of a user, in bytes.
const MAX_USER: usize = 512;

pub(crate) type Outcomes = oneshot::Sender<Result<Delivered, SendError>>;
pub(crate) type Found = oneshot::Sender<Result<u32, LookupError>>;
pub(crate) type Pinged = oneshot::Sender<Result<PingReport, PingError>>;

pub(crate) struct Core {
    host: Arc<dyn Host>,
    send_config: SendConfig,
    receive_config: ReceiveConfig,
    /// This SDK instance: what peers know as receiver instance.
    pub(crate) instance: u64,
    pub(crate) live: Option<Arc<Live>>,
    /// Sessions so far; the number of the present one.
    pub(crate) sessions: u64,
    pub(crate) welcome: Welcome,
    /// Edges told by the network.
    pub(crate) known_edges: Vec<EdgeAddr>,
    pub(crate) closed: bool,
    peers: BTreeMap<Arc<str>, Peer>,
    /// Whom the sender instances of our lanes belong to.
    by_sender: FxHashMap<u64, Arc<str>>,
    received: BTreeMap<ReceiveKey, ReceiveEntry>,
    /// Lanes whose messages the inbox has no room for.
    blocked: VecDeque<ReceiveKey>,
    handles: FxHashMap<u32, Handle>,
    held: usize,
    timers: BTreeSet<(Instant, Timer)>,
    /// Lanes that may have something to send, per stream.
    ready: [VecDeque<LaneKey>; STREAMS],
    control: VecDeque<Bytes>,
    asks: BTreeMap<u32, Ask>,
    next_id: u32,
    next_flow: u32,
    pings: BTreeMap<u32, Ping>,
    pub(crate) inbox: Inbox,
    pub(crate) stats: Stats,
    wakes: Wakes,
}

/// A user that we send to, or want to.
struct Peer {
    /// The sender instance of our lanes to it.
    sender: u64,
    whereabouts: Whereabouts,
    lanes: BTreeMap<u32, SendEntry>,
    /// Open flows to it.
    flows: usize,
    /// Whether one of them was used since its way was checked.
    flow_used: bool,
    waiting: Vec<Found>,
    /// When it was found last.
    found_at: Option<Instant>,
    lookup_timer: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    Unknown,
    /// The question with this id is open.
    Asked(u32),
    /// To be asked again at the lookup timer.
    AskLater,
    At(u32),
    /// As `At`, and the question whether that still holds is open.
    Checked {
        handle: u32,
        id: u32,
    },
}

impl Whereabouts {
    const fn handle(self) -> Option<u32> {
        match self {
            Self::At(handle) | Self::Checked { handle, .. } => Some(handle),
            Self::Unknown | Self::Asked(_) | Self::AskLater => None,
        }
    }
}

struct SendEntry {
    lane: SendLane,
    outcomes: BTreeMap<MessageId, Outcomes>,
    lengths: BTreeMap<MessageId, u64>,
    resent_counted: u64,
    queued: bool,
    timer: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ReceiveKey {
    user: Arc<str>,
    sender: u64,
    lane: u32,
}

struct ReceiveEntry {
    lane: ReceiveLane,
    /// Where the latest packet of the lane came from: session, handle.
    from: (u64, u32),
    heard_at: Instant,
    duplicates_counted: u64,
    queued: bool,
    blocked: bool,
    timer: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum LaneKey {
    Send(Arc<str>, u32),
    Receive(ReceiveKey),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lane(LaneKey),
    Lookup(Arc<str>),
}

/// What a handle of the present session stands for.
#[derive(Default)]
struct Handle {
    user: Option<Arc<str>>,
    gone: bool,
    /// Packets that came before it was known whose they are.
    held: Vec<Packet>,
}

/// A question to the edge.
enum Ask {
    User(Arc<str>),
    Relay(Found),
}

impl Core {
    pub(crate) fn new(config: &ClientConfig, host: Arc<dyn Host>) -> Self {
        let instance = random(&*host);
        Self {
            send_config: SendConfig {
                queue_bytes: config.lane_queue_bytes,
                ..SendConfig::default()
            },
            receive_config: ReceiveConfig {
                max_message: config.max_message,
                ..ReceiveConfig::default()
            },
            host,
            instance,
            live: None,
            sessions: 0,
            welcome: Welcome::default(),
            known_edges: Vec::new(),
            closed: false,
            peers: BTreeMap::new(),
            by_sender: FxHashMap::default(),
            received: BTreeMap::new(),
            blocked: VecDeque::new(),
            handles: FxHashMap::default(),
            held: 0,
            timers: BTreeSet::new(),
            ready: std::array::from_fn(|_| VecDeque::new()),
            control: VecDeque::new(),
            asks: BTreeMap::new(),
            next_id: 1,
            next_flow: 1,
            pings: BTreeMap::new(),
            inbox: Inbox::new(config.message_queue, config.media_queue),
            stats: Stats::default(),
            wakes: Wakes::default(),
        }
    }

    pub(crate) fn take_wakes(&mut self) -> Wakes {
        std::mem::take(&mut self.wakes)
    }

    /// A session stands: everything under way goes on over it.
    pub(crate) fn attach(&mut self, live: Arc<Live>, welcome: Welcome, now: Instant) {
        self.forget_session();
        self.stats.sessions += 1;
        self.push_state(State::Connected {
            relay: welcome.relay.clone(),
            region: welcome.region.clone(),
        });
        self.sessions = live.number;
        self.known_edges = crate::connect::edges_of(&welcome.edges);
        self.welcome = welcome;
        self.live = Some(live);
        let wanted: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_wanted())
            .map(|(user, _)| user.clone())
            .collect();
        for user in wanted {
            self.look_up(&user, now);
        }
    }

    /// There is no session any more.
    pub(crate) fn detach(&mut self, reason: String) {
        self.forget_session();
        self.push_state(State::Reconnecting { reason });
    }

    /// The end: everything under way ends with it.
    pub(crate) fn finish(&mut self, reason: &str, now: Instant) {
        self.fail_everything(now);
        self.forget_session();
        self.push_state(State::Closed {
            reason: reason.to_owned(),
        });
    }

    /// Ends all sends and lookups, and takes no more.
    pub(crate) fn fail_everything(&mut self, now: Instant) {
        self.closed = true;
        self.wakes.events = true;
        let users: Vec<_> = self.peers.keys().cloned().collect();
        for user in users {
            let Some(peer) = self.peers.get_mut(&user) else {
                continue;
            };
            for waiting in peer.waiting.drain(..) {
                let _ = waiting.send(Err(LookupError::Closed));
            }
            self.each_lane(&user, now, |lane, now| lane.fail_all(Outcome::Closed, now));
        }
        self.asks.clear();
        self.pings.clear();
    }

    /// What the time demands; gives the time of the next call.
    pub(crate) fn on_timers(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _)) = self.timers.first() {
            if *at > now {
                break;
            }
            let Some((_, timer)) = self.timers.pop_first() else {
                break;
            };
            match timer {
                Timer::Lookup(user) => self.lookup_timer(&user, now),
                Timer::Lane(LaneKey::Send(user, lane)) => {
                    if let Some(entry) = self.send_entry(&user, lane) {
                        entry.timer = None;
                        let before = entry.lane.timeouts();
                        entry.lane.on_timeout(now);
                        let silent = entry.lane.timeouts() > before && before >= 1;
                        self.serve_send(&user, lane);
                        if silent {
                            self.doubt_whereabouts(&user, now);
                        }
                    }
                }
                Timer::Lane(LaneKey::Receive(key)) => {
                    if let Some(entry) = self.received.get_mut(&key) {
                        entry.timer = None;
                        self.serve_receive(&key, now);
                    }
                }
            }
        }
        // The caller waits for it: no wake is needed.
        self.wakes.timer = false;
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next message for the application; `None` when there is none.
    pub(crate) fn pop_message(&mut self, now: Instant) -> Option<Message> {
        let message = self.inbox.pop_message();
        if message.is_some() {
            self.unblock(now);
        }
        message
    }

    /// Lets lanes go on that waited for room in the inbox.
    pub(crate) fn unblock(&mut self, now: Instant) {
        while self.inbox.has_room()
            && let Some(key) = self.blocked.pop_front()
        {
            if let Some(entry) = self.received.get_mut(&key) {
                entry.blocked = false;
                self.serve_receive(&key, now);
            }
        }
    }

    /// The client has ended: whoever waits for something must look.
    pub(crate) fn wake_events(&mut self) {
        self.wakes.events = true;
    }

    /// A number for a new flow.
    pub(crate) fn new_flow(&mut self) -> u32 {
        let flow = self.next_flow;
        self.next_flow = self.next_flow.wrapping_add(1);
        flow
    }

    /// The peer of this name, made if needed.
    fn peer(&mut self, user: &str) -> Option<(Arc<str>, &mut Peer)> {
        if user.is_empty() || user.len() > MAX_USER {
            return None;
        }
        if !self.peers.contains_key(user) {
            if self.peers.len() >= MAX_PEERS {
                self.forget_idle_peers();
            }
            let sender = random(&*self.host);
            let name: Arc<str> = user.into();
            self.by_sender.insert(sender, name.clone());
            self.peers.insert(name, Peer::new(sender));
        }
        let name = self.peers.get_key_value(user)?.0.clone();
        self.peers.get_mut(user).map(|peer| (name, peer))
    }

    fn send_entry(&mut self, user: &str, lane: u32) -> Option<&mut SendEntry> {
        self.peers.get_mut(user)?.lanes.get_mut(&lane)
    }

    fn forget_session(&mut self) {
        self.live = None;
        self.known_handles_forgotten();
        self.control.clear();
        for ready in &mut self.ready {
            ready.clear();
        }
        for ask in std::mem::take(&mut self.asks).into_values() {
            if let Ask::Relay(found) = ask {
                let _ = found.send(Err(LookupError::TimedOut));
            }
        }
        for ping in std::mem::take(&mut self.pings).into_values() {
            ping.failed(PingError::NotConnected);
        }
        for peer in self.peers.values_mut() {
            peer.whereabouts = Whereabouts::Unknown;
            for entry in peer.lanes.values_mut() {
                entry.queued = false;
            }
        }
        for entry in self.received.values_mut() {
            entry.queued = false;
        }
    }

    fn known_handles_forgotten(&mut self) {
        self.stats.media_dropped += self.held as u64;
        self.handles.clear();
        self.held = 0;
    }

    fn forget_idle_peers(&mut self) {
        let idle: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.is_wanted())
            .map(|(user, _)| user.clone())
            .collect();
        for user in idle {
            let Some(peer) = self.peers.remove(&user) else {
                continue;
            };
            self.by_sender.remove(&peer.sender);
            if let Some(at) = peer.lookup_timer {
                self.timers.remove(&(at, Timer::Lookup(user.clone())));
            }
            for (lane, entry) in peer.lanes {
                if let Some(at) = entry.timer {
                    let key = LaneKey::Send(user.clone(), lane);
                    self.timers.remove(&(at, Timer::Lane(key)));
                }
            }
        }
    }

    fn push_state(&mut self, state: State) {
        self.inbox.push_state(state);
        self.wakes.events = true;
    }

    /// Sets a timer in place of the one at `before`.
    fn set_timer(&mut self, timer: Timer, before: Option<Instant>, at: Option<Instant>) {
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.timers.remove(&(before, timer.clone()));
        }
        if let Some(at) = at {
            let earliest = self.timers.first().map(|(at, _)| *at);
            self.timers.insert((at, timer));
            self.wakes.timer |= earliest.is_none_or(|earliest| at < earliest);
        }
    }
}

impl Peer {
    fn new(sender: u64) -> Self {
        Self {
            sender,
            whereabouts: Whereabouts::Unknown,
            lanes: BTreeMap::new(),
            flows: 0,
            flow_used: false,
            waiting: Vec::new(),
            found_at: None,
            lookup_timer: None,
        }
    }

    /// Whether something wants to go there.
    fn is_wanted(&self) -> bool {
        self.flows > 0 || !self.waiting.is_empty() || self.has_messages()
    }

    fn has_messages(&self) -> bool {
        self.lanes.values().any(|entry| entry.lane.pending() > 0)
    }
}

/// A random number that nobody can guess.
fn random(host: &dyn Host) -> u64 {
    let seed = host.seed();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&seed[..8]);
    u64::from_be_bytes(bytes)
}

/// How long the edge may take to answer a lookup before it is asked again.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(3);
/// How soon to ask again when the directory cannot say.
const LOOKUP_RETRY: Duration = Duration::from_millis(200);
/// How often the way of a flow in use is checked: datagrams get no answer that could show that the
/// peer's edge has died.
const FLOW_CHECK: Duration = Duration::from_secs(5);
/// How soon to ask again for a peer that has just gone offline, while something waits for it.
const LOOKUP_OFFLINE_RETRY: Duration = Duration::from_secs(1);
