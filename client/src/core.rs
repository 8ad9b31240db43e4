//! The client's state: sessions, peers and their lanes, timers. It outlives sessions.

mod attachment;
mod devices;
mod groups;
mod incoming;
mod lookup;
mod outgoing;
mod presence;
mod proving;
mod talk;
mod tries;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tradewind_host::Host;
use tradewind_proto::{
    Class,
    control::Welcome,
    lane::{MessageId, Outcome, ReceiveConfig, ReceiveLane, SendConfig, SendLane},
};

pub(crate) use attachment::{Attachment, Ended};
use devices::{Device, SendState};
pub(crate) use groups::Answer;
pub(crate) use incoming::Ping;
pub(crate) use outgoing::Packet;
use talk::Talk;
use tries::Trying;
pub(crate) use ways::WayKey;
use ways::Ways;

use crate::{
    ClientConfig, EdgeAddr, LookupError, Media, Message, PingError, PingReport, State, Stats,
    inbox::Inbox,
    reorder::Reorder,
    session::{SessionWakes, Wakes},
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

pub(crate) type Outcomes = oneshot::Sender<crate::Outcomes>;
pub(crate) type Found = oneshot::Sender<Result<WayKey, LookupError>>;
pub(crate) type Pinged = oneshot::Sender<Result<PingReport, PingError>>;

pub(crate) struct Core {
    host: Arc<dyn Host>,
    began: Instant,
    send_config: SendConfig,
    receive_config: ReceiveConfig,
    /// This SDK instance: what peers know as receiver instance.
    pub(crate) instance: u64,
    /// Sessions that stand, by number.
    attachments: BTreeMap<u64, Attachment>,
    /// The first of them: the one that questions go to, and acquaintances begin with.
    first: Option<u64>,
    /// Sessions so far.
    pub(crate) sessions: u64,
    /// Of the first session, also while there is none.
    pub(crate) welcome: Welcome,
    /// Edges told by the network.
    pub(crate) known_edges: Vec<EdgeAddr>,
    /// How loaded edges are, parts per thousand, as edges have said last.
    pub(crate) edge_loads: FxHashMap<SocketAddr, u32>,
    /// Edges that conversations would profit from, by relay.
    wanted_edges: BTreeMap<Arc<str>, Wish>,
    pub(crate) closed: bool,
    near_edges: usize,
    peers: BTreeMap<Arc<str>, Peer>,
    /// Whom the sender instances of our lanes belong to.
    by_sender: FxHashMap<u64, DeviceKey>,
    sends: FxHashMap<u64, SendState>,
    next_send: u64,
    received: BTreeMap<ReceiveKey, ReceiveEntry>,
    /// Lanes whose messages the inbox has no room for.
    blocked: VecDeque<ReceiveKey>,
    held: usize,
    groups: groups::Groups,
    group_link: groups::GroupLink,
    watched: presence::Watched,
    timers: BTreeSet<(Instant, Timer)>,
    next_id: u32,
    next_flow: u32,
    pings: BTreeMap<u32, Ping>,
    /// Ways that are tried, by the flow of the echoes.
    proofs: BTreeMap<u32, proving::Proof>,
    reorder: Reorder<FlowKey, (Media, Instant)>,
    reorder_timer: Option<Instant>,
    /// Ways that are being tried, by number, the oldest first.
    tries: BTreeMap<u64, Trying>,
    next_try: u32,
    pub(crate) inbox: Inbox,
    pub(crate) stats: Stats,
    wakes: Wakes,
    /// Sessions that have something to do.
    woken: Vec<u64>,
}

/// A user that we send to, or want to, or hear of.
struct Peer {
    /// By SDK instance; [`devices::ANY`] stands for whichever it will be.
    devices: BTreeMap<u64, Device>,
    /// The device that media and pings go to.
    newest: Option<u64>,
    /// Those that the directory named last, newest first.
    present: Vec<u64>,
    whereabouts: Whereabouts,
    /// The most urgent class of what waits to be sent and of which the directory has not said yet that
    /// nobody is there.
    wants: Option<Class>,
    /// Open flows to it.
    flows: usize,
    /// Of what was sent to it last.
    class: Class,
    /// Relays whose edges we have left without the peer having been told, as there was no way to it.
    unsaid: Vec<String>,
    waiting: Vec<Found>,
    /// When it was found last.
    found_at: Option<Instant>,
    lookup_timer: Option<Instant>,
    talk: Talk,
}

/// That a session at some edge might be of use.
struct Wish {
    until: Instant,
    /// The way to an edge that is farther away makes all ways over it too long.
    within: Duration,
}

/// How it stands with the question where a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    Unknown,
    /// The question with this id is open at this session.
    Asked(u64, u32),
    /// To be asked again at the lookup timer.
    AskLater,
    /// There are ways.
    Known,
    /// As `Known`, and the question whether that still holds is open.
    Checked(u64, u32),
}

/// One device of one user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct DeviceKey {
    user: Arc<str>,
    instance: u64,
}

struct SendEntry {
    lane: SendLane,
    /// The sends that its unsettled messages belong to.
    sends: BTreeMap<MessageId, u64>,
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
    /// Where the latest packet of the lane came from.
    from: WayKey,
    heard_at: Instant,
    duplicates_counted: u64,
    /// The session that it waits for its turn at.
    queued_at: Option<u64>,
    blocked: bool,
    timer: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum LaneKey {
    Send(DeviceKey, u32),
    Receive(ReceiveKey),
    /// A lane to a group.
    Group(Arc<str>, u32),
    /// A frame of no lane, for the session behind a handle.
    Notice(u32, Bytes),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lane(LaneKey),
    Groups,
    Watches,
    Lookup(Arc<str>),
    /// The echo with this flow.
    Proof(u32),
    /// Media that has overtaken other has waited for long enough.
    Reorder,
}

/// A flow of media towards us.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct FlowKey {
    user: Arc<str>,
    instance: u64,
    flow: u32,
}

/// What a handle of a session stands for.
#[derive(Default)]
struct Handle {
    user: Option<Arc<str>>,
    /// The SDK instance there.
    instance: u64,
    gone: bool,
    /// Packets that came before it was known whose they are.
    held: Vec<Packet>,
}

/// A question to the edge.
enum Ask {
    User(Arc<str>),
    /// The same, of a session that the conversation might enter the network by.
    Ways(Arc<str>),
    Relay(Found),
    Group(Arc<str>),
}

impl Ask {
    /// Whether something cannot go on without the answer.
    const fn is_awaited(&self) -> bool {
        matches!(self, Self::User(_) | Self::Relay(_))
    }
}

impl Core {
    pub(crate) fn new(config: &ClientConfig, host: Arc<dyn Host>) -> Self {
        let instance = random(&*host);
        let send_config = SendConfig {
            queue_bytes: config.lane_queue_bytes,
            ..SendConfig::default()
        };
        let receive_config = ReceiveConfig {
            max_message: config.max_message,
            ..ReceiveConfig::default()
        };
        let drawing = host.clone();
        Self {
            send_config,
            receive_config,
            groups: groups::Groups::new(send_config, receive_config, move || random(&*drawing)),
            group_link: groups::GroupLink::default(),
            watched: presence::Watched::default(),
            began: host.now(),
            host,
            instance,
            attachments: BTreeMap::new(),
            first: None,
            sessions: 0,
            welcome: Welcome::default(),
            known_edges: Vec::new(),
            edge_loads: FxHashMap::default(),
            wanted_edges: BTreeMap::new(),
            closed: false,
            near_edges: config.near_edges,
            peers: BTreeMap::new(),
            by_sender: FxHashMap::default(),
            sends: FxHashMap::default(),
            next_send: 0,
            received: BTreeMap::new(),
            blocked: VecDeque::new(),
            held: 0,
            timers: BTreeSet::new(),
            next_id: 1,
            next_flow: 1,
            pings: BTreeMap::new(),
            proofs: BTreeMap::new(),
            reorder: Reorder::new(config.reorder),
            reorder_timer: None,
            tries: BTreeMap::new(),
            next_try: 0,
            inbox: Inbox::new(config.message_queue, config.media_queue),
            stats: Stats::default(),
            wakes: Wakes::default(),
            woken: Vec::new(),
        }
    }

    /// A number for a new session.
    pub(crate) fn new_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }

    /// What has something to do since the last call.
    pub(crate) fn take_wakes(&mut self) -> Wakes {
        let mut wakes = std::mem::take(&mut self.wakes);
        for session in self.woken.drain(..) {
            if let Some(attachment) = self.attachments.get_mut(&session) {
                let of_session = std::mem::take(&mut attachment.wakes);
                wakes.sessions.push((attachment.live.clone(), of_session));
            }
        }
        wakes
    }

    fn wake(&mut self, session: u64, wake: impl FnOnce(&mut SessionWakes)) {
        if let Some(attachment) = self.attachments.get_mut(&session) {
            if attachment.wakes == SessionWakes::default() {
                self.woken.push(session);
            }
            wake(&mut attachment.wakes);
        }
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
        self.groups.close(now);
        self.serve_groups(now);
        for attachment in self.attachments.values_mut() {
            attachment.asks.clear();
        }
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
                Timer::Groups => self.on_group_timer(now),
                Timer::Proof(flow) => self.prove_again(flow, now),
                Timer::Reorder => self.on_reorder_timer(now),
                Timer::Watches => self.watch_timer(),
                Timer::Lane(LaneKey::Send(device, lane)) => {
                    if let Some(entry) = self.send_entry(&device, lane) {
                        entry.timer = None;
                        let before = entry.lane.timeouts();
                        entry.lane.on_timeout(now);
                        let silent = entry.lane.timeouts() > before && before >= 1;
                        self.serve_send(&device, lane);
                        if silent {
                            self.doubt_way(&device, now);
                        }
                    }
                }
                // These have no timers.
                Timer::Lane(LaneKey::Notice(..) | LaneKey::Group(..)) => {}
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
        self.serve_groups(now);
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
            self.peers.insert(user.into(), Peer::default());
        }
        let name = self.peers.get_key_value(user)?.0.clone();
        self.peers.get_mut(user).map(|peer| (name, peer))
    }

    fn device(&mut self, key: &DeviceKey) -> Option<&mut Device> {
        self.peers
            .get_mut(&key.user)?
            .devices
            .get_mut(&key.instance)
    }

    fn send_entry(&mut self, device: &DeviceKey, lane: u32) -> Option<&mut SendEntry> {
        self.device(device)?.lanes.get_mut(&lane)
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
            if let Some(at) = peer.lookup_timer {
                self.timers.remove(&(at, Timer::Lookup(user.clone())));
            }
            for (instance, device) in peer.devices {
                let user = user.clone();
                self.forget_device(&DeviceKey { user, instance }, device);
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

impl Default for Peer {
    fn default() -> Self {
        Self {
            devices: BTreeMap::new(),
            newest: None,
            present: Vec::new(),
            whereabouts: Whereabouts::Unknown,
            wants: None,
            flows: 0,
            class: Class::Message,
            unsaid: Vec::new(),
            waiting: Vec::new(),
            found_at: None,
            lookup_timer: None,
            talk: Talk::default(),
        }
    }
}

impl Peer {
    /// Whether something wants to go there.
    fn is_wanted(&self) -> bool {
        self.flows > 0 || !self.waiting.is_empty() || self.has_messages()
    }

    /// Whether it talks to us, and has yet to be told which edge we have left.
    fn must_be_told(&self, now: Instant) -> bool {
        !self.unsaid.is_empty() && self.talk.goes_on(now)
    }

    /// Something of a class is to be sent to it.
    fn want(&mut self, class: Class) {
        self.wants = Some(self.wants.map_or(class, |wants| wants.min(class)));
    }

    fn has_messages(&self) -> bool {
        self.devices.values().any(Device::has_messages)
    }

    /// The way to the newest device.
    fn way(&self) -> Option<WayKey> {
        self.devices.get(&self.newest?)?.ways.chosen()
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
/// A device that the directory does not name for so long is no more.
const ABSENT_FOR: Duration = Duration::from_secs(3);
/// How soon to ask again for a peer that has just gone offline, while something waits for it.
const LOOKUP_OFFLINE_RETRY: Duration = Duration::from_secs(1);
