//! Groups, as the stand-in network does them: all edges share one window of what was sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use tradewind_host::Host;
use tradewind_proto::{
    control::{
        EdgeMessage, GroupFetched, GroupHead, GroupResult, GroupSource, client_message,
        edge_message, group_result::Status,
    },
    encode_frame, frame_message,
    lane::{Ack, LaneFrame},
    packet::{AccessHeader, Kind},
};

use super::{Net, State};

/// Handles of groups; those of sessions are below.
pub const GROUP_HANDLE: u32 = 1 << 30;
/// Handles of an edge itself.
const SOURCE_HANDLE: u32 = 1 << 31;

type LaneName = (String, u64, u32);

#[derive(Default)]
pub struct Groups {
    /// Handle less [`GROUP_HANDLE`].
    names: Vec<String>,
    /// (group, session): layers.
    members: BTreeMap<(String, u32), u32>,
    windows: BTreeMap<LaneName, Window>,
    /// Handle less [`SOURCE_HANDLE`]: (group, session of the sender).
    sources: Vec<(String, u32)>,
    /// (session, source): it knows who that is.
    told: BTreeSet<(u32, u32)>,
    /// What each edge has acknowledged: the next one, and those beyond.
    acknowledged: BTreeMap<(usize, LaneName), (u64, BTreeSet<u64>)>,
}

struct Window {
    /// Session of the sender.
    from: u32,
    user: String,
    edge: usize,
    segments: BTreeMap<u64, (AccessHeader, Bytes)>,
}

impl Net {
    /// A request about groups.
    pub(super) fn group_request(
        &self,
        host: &Arc<dyn Host>,
        me: u32,
        id: u32,
        body: client_message::Body,
    ) {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let user = state.sessions[&me].user.clone();
        match body {
            client_message::Body::JoinGroup(join) => {
                state
                    .seen
                    .joins
                    .push((user, join.group.clone(), join.layers));
                if let Some(handle) = state.group_answer(me, id, &join.group) {
                    let members = &mut state.groups.members;
                    members.insert((join.group, me), join.layers);
                    state.tell_result(me, id, Status::Done, handle);
                }
            }
            client_message::Body::LookupGroup(lookup) => {
                if let Some(handle) = state.group_answer(me, id, &lookup.group) {
                    state.tell_result(me, id, Status::Done, handle);
                }
            }
            client_message::Body::LeaveGroup(leave) => {
                state.groups.members.remove(&(leave.group, me));
            }
            client_message::Body::FetchGroup(fetch) => {
                state.seen.fetches += 1;
                let name = (fetch.group.clone(), fetch.sender, fetch.lane);
                let newest = state.groups.windows.get(&name);
                let newest = newest.and_then(|window| window.segments.last_key_value());
                let to = newest.map_or(0, |(last, _)| *last).min(fetch.to);
                let mut missing = Vec::new();
                for sequence in fetch.from..=to {
                    let window = &state.groups.windows[&name];
                    match window.segments.get(&sequence) {
                        Some((header, payload)) if !state.knobs.forgotten => {
                            let (header, payload) = (*header, payload.clone());
                            let source = (fetch.group.clone(), window.from);
                            state.give(host, me, source, header, &payload);
                        }
                        _ => missing.extend([sequence, sequence]),
                    }
                }
                let fetched = GroupFetched {
                    group: fetch.group,
                    sender: fetch.sender,
                    lane: fetch.lane,
                    from: fetch.from,
                    to,
                    missing,
                    unreachable: false,
                    busy: false,
                };
                state.sessions[&me].tell(id, edge_message::Body::GroupFetched(fetched));
            }
            other => panic!("no request about groups: {other:?}"),
        }
    }

    /// Takes a packet from a session to a group.
    pub(super) fn carry_to_group(
        &self,
        host: &Arc<dyn Host>,
        from: u32,
        header: AccessHeader,
        payload: Bytes,
    ) {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let Some(session) = state.sessions.get(&from) else {
            return;
        };
        let (user, edge) = (session.user.clone(), session.edge);
        let group = state.groups.names[(header.handle - GROUP_HANDLE) as usize].clone();
        let mut fresh = true;
        let mut head = None;
        if header.kind == Kind::Message {
            match LaneFrame::decode(payload.clone()).unwrap() {
                LaneFrame::Data(data) => {
                    let name = (group.clone(), data.sender, data.lane);
                    let window = state.groups.windows.entry(name.clone());
                    let window = window.or_insert_with(|| Window {
                        from,
                        user,
                        edge,
                        segments: BTreeMap::new(),
                    });
                    (window.from, window.edge) = (from, edge);
                    head = Some(GroupHead {
                        group: group.clone(),
                        sender: data.sender,
                        lane: data.lane,
                        newest: data.sequence,
                        origin: edge as u32,
                    });
                    let segment = (header, payload.clone());
                    fresh = window.segments.insert(data.sequence, segment).is_none();
                    let held = state.groups.acknowledged.entry((edge, name));
                    let (next, beyond) = held.or_insert((data.base, BTreeSet::new()));
                    *next = (*next).max(data.base);
                    beyond.insert(data.sequence);
                    while beyond.remove(next) {
                        *next += 1;
                    }
                    let ack = Ack {
                        receiver: edge as u64 + 1,
                        sender: data.sender,
                        lane: data.lane,
                        next: *next,
                        window: 1 << 20,
                        age_us: 1_000,
                        ranges: Vec::new(),
                    };
                    let frame = LaneFrame::Ack(ack);
                    let header = AccessHeader {
                        sequence: frame.sequence(),
                        ..header
                    };
                    state.write(from, header, &frame.encode());
                }
                LaneFrame::Skip(_) => {}
                other => panic!("to a group: {other:?}"),
            }
        }
        if !fresh {
            return;
        }
        let members: Vec<(u32, u32)> = state
            .groups
            .members
            .iter()
            .filter(|((of, session), _)| *of == group && *session != from)
            .map(|((_, session), layers)| (*session, *layers))
            .collect();
        for (member, layers) in members {
            let wanted = layers == 0 || layers & (1 << header.layer) != 0;
            if header.kind == Kind::Media && !wanted {
                continue;
            }
            if let Some(head) = &head
                && state.happens(state.knobs.group_loss)
            {
                // Its queue has room again at once.
                let head = edge_message::Body::GroupHead(head.clone());
                state.sessions[&member].tell(0, head);
                continue;
            }
            state.give(host, member, (group.clone(), from), header, &payload);
        }
    }
}

impl State {
    /// The handle, unless the request is answered otherwise.
    fn group_answer(&mut self, me: u32, id: u32, group: &str) -> Option<u32> {
        if self.knobs.denied.contains(group) {
            self.tell_result(me, id, Status::Denied, 0);
            return None;
        }
        if self.knobs.retries > 0 {
            self.knobs.retries -= 1;
            self.tell_result(me, id, Status::Retry, 0);
            return None;
        }
        let names = &mut self.groups.names;
        let known = names.iter().position(|name| name == group);
        let index = known.unwrap_or_else(|| {
            names.push(group.to_owned());
            names.len() - 1
        });
        Some(GROUP_HANDLE + index as u32)
    }

    fn tell_result(&self, me: u32, id: u32, status: Status, handle: u32) {
        let status = status as i32;
        let result = GroupResult { status, handle };
        self.sessions[&me].tell(id, edge_message::Body::GroupResult(result));
    }

    /// Gives a member a packet to its group, and tells it who sends, if it does not know.
    fn give(
        &mut self,
        host: &Arc<dyn Host>,
        member: u32,
        source: (String, u32),
        header: AccessHeader,
        payload: &Bytes,
    ) {
        let sources = &mut self.groups.sources;
        let known = sources.iter().position(|known| *known == source);
        let index = known.unwrap_or_else(|| {
            sources.push(source.clone());
            sources.len() - 1
        }) as u32;
        let Some(receiver) = self.sessions.get(&member) else {
            return;
        };
        if self.groups.told.insert((member, index)) {
            let window = self
                .groups
                .windows
                .iter()
                .find(|((group, ..), window)| (group, window.from) == (&source.0, source.1));
            let live = self.sessions.get(&source.1);
            let (user, origin) = match (live, window) {
                (Some(session), _) => (session.user.clone(), session.edge),
                (None, Some((_, window))) => (window.user.clone(), window.edge),
                (None, None) => return,
            };
            let body = edge_message::Body::GroupSource(GroupSource {
                handle: SOURCE_HANDLE | index,
                group: source.0,
                user,
                origin: origin as u32,
            });
            let news = frame_message(&EdgeMessage {
                reply_to: 0,
                body: Some(body),
            });
            let (control, spawner) = (receiver.control.clone(), host.clone());
            let delay = self.knobs.peer_delay;
            host.spawn(async move {
                spawner.sleep(delay).await;
                let _ = control.send(news);
            });
        }
        let header = AccessHeader {
            group: true,
            handle: SOURCE_HANDLE | index,
            age_us: 1_000,
            ..header
        };
        self.write(member, header, payload);
    }

    fn write(&self, session: u32, header: AccessHeader, payload: &Bytes) {
        let Some(session) = self.sessions.get(&session) else {
            return;
        };
        let mut head = [0; AccessHeader::LEN];
        header.encode(&mut head);
        let mut out = BytesMut::new();
        if header.kind == Kind::Message {
            encode_frame(&mut out, &[&head, payload]);
            let _ = session.messages.send(out.freeze());
        } else {
            out.extend_from_slice(&head);
            out.extend_from_slice(payload);
            let _ = session.connection.send_datagram(out.freeze());
        }
    }
}
