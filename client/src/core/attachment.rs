//! The client's sessions: a first one, a further one that stands by, and more where conversations
//! profit from them.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tradewind_proto::{
    control::{KeepAlive, Role, Welcome, client_message},
    frame_message,
};

use super::{Ask, Core, Handle, LaneKey, STREAMS, Whereabouts};
use crate::{
    ConnectError, LookupError, PingError, State,
    session::{Live, SessionWakes},
};

/// Edges that were left without a peer's knowledge, at most.
const MAX_UNSAID: usize = 4;
/// A session that carried something within this time is in use.
const IN_USE: Duration = Duration::from_secs(5);

/// Edges whose load is remembered, about.
const MOST_LOADS: usize = 256;
/// Addresses of one edge.
const MOST_ADDRESSES: usize = 16;

/// One of the client's sessions.
pub(crate) struct Attachment {
    pub(crate) live: Arc<Live>,
    pub(crate) welcome: Welcome,
    pub(super) handles: FxHashMap<u32, Handle>,
    /// Lanes that may have something to send, per stream.
    pub(super) ready: [VecDeque<LaneKey>; STREAMS],
    pub(super) control: VecDeque<Bytes>,
    pub(super) asks: BTreeMap<u32, Ask>,
    pub(super) wakes: SessionWakes,
    /// When something was sent or came over it last.
    used_at: Instant,
    /// Its edge is said to be down.
    doubted: bool,
    /// The last keep-alive that asked for an answer.
    keep_alive: Option<u32>,
    /// It has been answered.
    answered: bool,
}

impl Attachment {
    /// One way to its edge: half the shortest round trip. (The smoothed one contains the edge's delay in
    /// acknowledging.)
    pub(super) fn leg(&self) -> Duration {
        self.live.connection.stats().path.min_rtt / 2
    }
}

/// How a session has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ended<'a> {
    /// Its edge does not answer, or has closed it: peers should not take ways there any more.
    Lost(&'a str),
    /// This client has left.
    OnPurpose(&'a str),
}

/// What the keeper of sessions wants to know of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// When something was sent or came over it last.
    pub(crate) used_at: Instant,
    /// Whether a dead edge would be felt: it must show signs of life.
    pub(crate) matters: bool,
    /// Whether there is reason to believe that its edge is dead.
    pub(crate) doubted: bool,
}

impl Core {
    /// A session stands. What is under way goes on over it if it is the first.
    pub(crate) fn attach(&mut self, live: Arc<Live>, welcome: Welcome, first: bool, now: Instant) {
        let number = live.number;
        self.learn_loads(live.connection.remote_address(), &welcome);
        let attachment = Attachment {
            live,
            welcome,
            handles: FxHashMap::default(),
            ready: std::array::from_fn(|_| VecDeque::new()),
            control: VecDeque::new(),
            asks: BTreeMap::new(),
            wakes: SessionWakes::default(),
            used_at: now,
            doubted: false,
            keep_alive: None,
            answered: false,
        };
        for peer in self.peers.values_mut() {
            peer.unsaid.retain(|left| *left != attachment.welcome.relay);
        }
        self.attachments.insert(number, attachment);
        if first {
            self.promote(number, now);
        } else {
            // The first one may be another by now than it was when this one said hello.
            let role = Role {
                standby: true,
                first: self.welcome.relay.clone(),
            };
            self.tell_session(number, client_message::Body::Role(role));
        }
        // Conversations may have a shorter way over it.
        let talking: Vec<Arc<str>> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.talk.lasts(now))
            .map(|(user, _)| user.clone())
            .collect();
        for user in talking {
            self.ask_for_ways(&user, now);
        }
    }

    /// An edge says how loaded it and others are.
    fn learn_loads(&mut self, address: SocketAddr, welcome: &Welcome) {
        if self.edge_loads.len() > MOST_LOADS {
            self.edge_loads.clear();
        }
        let others = welcome.edges.iter().flat_map(|edge| {
            let parsed = edge.addresses.iter().filter_map(|a| a.parse().ok());
            parsed
                .take(MOST_ADDRESSES)
                .map(|address| (address, edge.load_permille))
        });
        self.edge_loads.extend(others.take(MOST_LOADS));
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.edge_loads.insert(address, welcome.load_permille);
    }

    /// Makes a session the first one.
    pub(crate) fn promote(&mut self, number: u64, now: Instant) {
        let Some(attachment) = self.attachments.get(&number) else {
            return;
        };
        let welcome = attachment.welcome.clone();
        let before = self.first.replace(number);
        self.stats.sessions += 1;
        self.push_state(State::Connected {
            relay: welcome.relay.clone(),
            region: welcome.region.clone(),
        });
        self.known_edges = crate::connect::edges_of(&welcome.edges);
        let relay = welcome.relay.clone();
        self.welcome = welcome;
        // The edges of all sessions should know.
        let sessions: Vec<u64> = self.attachments.keys().copied().collect();
        for session in sessions.into_iter().filter(|_| before.is_some()) {
            let role = Role {
                standby: session != number,
                first: relay.clone(),
            };
            self.tell_session(session, client_message::Body::Role(role));
        }
        let wanted: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_wanted() || peer.must_be_told(now))
            .map(|(user, _)| user.clone())
            .collect();
        for user in wanted {
            self.look_up(&user, now);
        }
        self.move_groups(Some(number), now);
        self.move_watches(Some(number));
    }

    /// A session is over. What went over it goes over the others; the application is told why when it
    /// was the last one.
    pub(crate) fn detach(&mut self, number: u64, ended: &Ended<'_>, now: Instant) {
        let Some(attachment) = self.attachments.remove(&number) else {
            return;
        };
        let held: usize = attachment.handles.values().map(|h| h.held.len()).sum();
        self.held -= held;
        self.stats.media_dropped += held as u64;
        for ask in attachment.asks.into_values() {
            if let Ask::Relay(found) = ask {
                let _ = found.send(Err(LookupError::TimedOut));
            }
        }
        let pings = std::mem::take(&mut self.pings);
        for (flow, ping) in pings {
            if ping.session == number {
                ping.failed(PingError::NotConnected);
            } else {
                self.pings.insert(flow, ping);
            }
        }
        for entry in self.received.values_mut() {
            entry.queued_at = entry.queued_at.filter(|&session| session != number);
        }
        let was_first = self.first == Some(number);
        if was_first {
            self.first = None;
            self.move_groups(None, now);
            self.move_watches(None);
        }
        if self.attachments.is_empty() && !self.closed {
            let reason = match ended {
                Ended::Lost(reason) | Ended::OnPurpose(reason) => (*reason).to_owned(),
            };
            self.push_state(State::Reconnecting { reason });
        }
        let left = attachment.welcome.relay;
        let users: Vec<_> = self.peers.keys().cloned().collect();
        for user in users {
            let Some(peer) = self.peers.get_mut(&user) else {
                continue;
            };
            if matches!(peer.whereabouts, Whereabouts::Asked(s, _) | Whereabouts::Checked(s, _) if s == number)
            {
                peer.whereabouts = Whereabouts::Unknown;
            }
            for device in peer.devices.values_mut() {
                device.ways.forget_session(number);
            }
            self.choose_ways(&user, now);
            let Some(peer) = self.peers.get(&user) else {
                continue;
            };
            // What was asked there has to be asked anew.
            let unasked = peer.whereabouts == Whereabouts::Unknown && peer.is_wanted();
            let talking = peer.talk.goes_on(now);
            if unasked {
                self.look_up(&user, now);
            }
            if talking && matches!(ended, Ended::Lost(_)) {
                if let Some(peer) = self.peers.get_mut(&user) {
                    if peer.unsaid.len() >= MAX_UNSAID {
                        peer.unsaid.remove(0);
                    }
                    peer.unsaid.push(left.clone());
                }
                self.say_unsaid(&user, now);
            }
        }
    }

    /// The end: everything under way ends with it.
    pub(crate) fn finish(&mut self, reason: &str, error: Option<ConnectError>, now: Instant) {
        self.fail_everything(now);
        let sessions: Vec<u64> = self.attachments.keys().copied().collect();
        for session in sessions {
            self.detach(session, &Ended::OnPurpose(reason), now);
        }
        self.push_state(State::Closed {
            reason: reason.to_owned(),
            error,
        });
    }

    /// The number of the first session.
    pub(crate) const fn first(&self) -> Option<u64> {
        self.first
    }

    /// The first session.
    pub(crate) fn first_attachment(&self) -> Option<&Attachment> {
        self.attachments.get(&self.first?)
    }

    /// The connection of a session.
    pub(crate) fn live(&self, session: u64) -> Option<&Arc<Live>> {
        Some(&self.attachments.get(&session)?.live)
    }

    /// Notes that something was sent or came over a session.
    pub(super) fn note_use(&mut self, session: u64, now: Instant) {
        if let Some(attachment) = self.attachments.get_mut(&session) {
            // Whether its edge lives begins to matter.
            self.wakes.keeper |= now >= attachment.used_at + IN_USE;
            attachment.used_at = now;
        }
    }

    /// The edge of another session says that a relay is down.
    pub(super) fn on_edge_down(&mut self, relay: &str) {
        for attachment in self.attachments.values_mut() {
            if attachment.welcome.relay == relay {
                attachment.doubted = true;
                self.wakes.keeper = true;
            }
        }
    }

    /// What the keeper of sessions wants to know.
    pub(crate) fn use_of(&self, session: u64, now: Instant) -> Option<Use> {
        let attachment = self.attachments.get(&session)?;
        Some(Use {
            used_at: attachment.used_at,
            matters: now < attachment.used_at + IN_USE
                || attachment.doubted
                || attachment.asks.values().any(Ask::is_awaited),
            doubted: attachment.doubted,
        })
    }

    /// Edges that conversations would profit from, by relay, if the way there is no longer than that.
    pub(crate) fn wanted_edges(&mut self, now: Instant) -> Vec<(Arc<str>, Duration)> {
        self.wanted_edges.retain(|_, wish| wish.until > now);
        let wanted = self.wanted_edges.iter();
        wanted
            .map(|(relay, wish)| (relay.clone(), wish.within))
            .collect()
    }

    /// Whether a conversation goes on.
    pub(crate) fn is_talking(&self, now: Instant) -> bool {
        self.peers.values().any(|peer| peer.talk.lasts(now))
    }

    /// Something was heard from the edge of a session.
    pub(crate) fn not_doubted(&mut self, session: u64) {
        if let Some(attachment) = self.attachments.get_mut(&session) {
            attachment.doubted = false;
        }
    }

    /// Sends a control message over all sessions.
    pub(crate) fn tell_all(&mut self, body: &client_message::Body) {
        let sessions: Vec<u64> = self.attachments.keys().copied().collect();
        for session in sessions {
            self.tell_session(session, body.clone());
        }
    }

    /// Sends a control message over a session. Its id; `None` when that is over.
    pub(crate) fn tell_session(&mut self, session: u64, body: client_message::Body) -> Option<u32> {
        let id = self.next_id;
        let attachment = self.attachments.get_mut(&session)?;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        let message = tradewind_proto::control::ClientMessage {
            id,
            body: Some(body),
        };
        attachment.control.push_back(frame_message(&message));
        self.wake(session, |wakes| wakes.control = true);
        Some(id)
    }

    /// Tells the edge that the session is still there, and asks for an answer after a silence.
    pub(crate) fn keep_alive(&mut self, session: u64, answer_after: Duration) {
        let answer_after_ms = u32::try_from(answer_after.as_millis()).unwrap_or(u32::MAX);
        let body = client_message::Body::KeepAlive(KeepAlive { answer_after_ms });
        let asked = self.tell_session(session, body);
        if let Some(attachment) = self.attachments.get_mut(&session) {
            (attachment.keep_alive, attachment.answered) = (asked, false);
        }
    }

    /// The edge has answered a keep-alive.
    pub(super) fn on_alive(&mut self, session: u64, asked: u32) {
        if let Some(attachment) = self.attachments.get_mut(&session)
            && attachment.keep_alive == Some(asked)
        {
            attachment.answered = true;
            self.wakes.keeper = true;
        }
    }

    /// Whether the last keep-alive has been answered since this was asked last.
    pub(crate) fn take_answer(&mut self, session: u64) -> bool {
        let attachment = self.attachments.get_mut(&session);
        attachment.is_some_and(|attachment| std::mem::take(&mut attachment.answered))
    }

    /// Asks for a sign of life: a message without contents, of which nothing but its acknowledgement
    /// comes back.
    pub(crate) fn ask_for_life(&mut self, session: u64) {
        if let Some(attachment) = self.attachments.get_mut(&session) {
            let nothing = tradewind_proto::control::ClientMessage { id: 0, body: None };
            attachment.control.push_back(frame_message(&nothing));
            self.wake(session, |wakes| wakes.control = true);
        }
    }
}
