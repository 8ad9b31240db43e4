//! Groups, by hand.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tradewind_proto::{
    Class, FrameReader, MAX_FRAME,
    control::{
        FetchGroup, GroupFetched, GroupResult, JoinGroup, LeaveGroup, LookupGroup, OutHop,
        OutTreePart, ProfileTable, TreeTable, client_message, edge_message, group_result,
    },
    lane::{Ack, Data, LaneFrame, Skip},
    packet::{AccessHeader, Kind},
};

use super::{TestClient, World, header};

/// What came to a member on a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    pub header: AccessHeader,
    pub frame: LaneFrame,
}

impl Received {
    /// The text of a segment.
    pub fn text(&self) -> String {
        match &self.frame {
            LaneFrame::Data(data) => String::from_utf8(data.payload.to_vec()).unwrap(),
            other => format!("{other:?}"),
        }
    }
}

/// Takes the message packets of all of a client's streams, as they come.
pub struct Inbox {
    packets: tokio::sync::mpsc::UnboundedReceiver<Received>,
}

impl Inbox {
    pub fn new(client: &TestClient) -> Self {
        let (sender, packets) = tokio::sync::mpsc::unbounded_channel();
        let (connection, host) = (client.connection.clone(), client.host.clone());
        client.host.spawn(async move {
            while let Ok(mut stream) = connection.accept_uni().await {
                let sender = sender.clone();
                host.spawn(async move {
                    let mut frames = FrameReader::new(MAX_FRAME);
                    while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
                        frames.push(chunk.bytes);
                        while let Some(frame) = frames.next_frame().unwrap() {
                            let header = AccessHeader::decode(&frame).unwrap();
                            let frame =
                                LaneFrame::decode(frame.slice(AccessHeader::LEN..)).unwrap();
                            let _ = sender.send(Received { header, frame });
                        }
                    }
                });
            }
        });
        Self { packets }
    }

    /// All that has come so far.
    pub fn take(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.packets.try_recv().ok()).collect()
    }

    /// The texts of the segments that have come so far.
    pub fn texts(&mut self) -> Vec<String> {
        self.take().iter().map(Received::text).collect()
    }

    /// The latest acknowledgement that has come so far.
    pub fn last_ack(&mut self) -> Option<Ack> {
        let acks = self
            .take()
            .into_iter()
            .filter_map(|received| match received.frame {
                LaneFrame::Ack(ack) => Some(ack),
                _ => None,
            });
        acks.last()
    }
}

/// A segment that is a whole message.
pub fn data(sender: u64, sequence: u64, base: u64, text: &str) -> LaneFrame {
    LaneFrame::Data(Data {
        sender,
        lane: 3,
        sequence,
        base,
        total: Some(text.len() as u32),
        last: true,
        payload: Bytes::copy_from_slice(text.as_bytes()),
    })
}

pub fn skip(sender: u64, base: u64) -> LaneFrame {
    LaneFrame::Skip(Skip {
        sender,
        lane: 3,
        base,
    })
}

impl TestClient {
    async fn group_result(&mut self, id: u32) -> (group_result::Status, u32) {
        match self.answer(id).await {
            Some(edge_message::Body::GroupResult(result)) => {
                let GroupResult { handle, .. } = result;
                (result.status(), handle)
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn join(&mut self, group: &str, layers: u32) -> (group_result::Status, u32) {
        let group = group.to_owned();
        let join = client_message::Body::JoinGroup(JoinGroup {
            group,
            layers,
            again: false,
        });
        let id = self.ask(join).await;
        self.group_result(id).await
    }

    /// Joins a group that may be joined; gives the handle to send to it.
    pub async fn joined(&mut self, group: &str) -> u32 {
        let (status, handle) = self.join(group, 0).await;
        assert_eq!(status, group_result::Status::Done, "{group}");
        handle
    }

    pub async fn leave(&mut self, group: &str) {
        let group = group.to_owned();
        let leave = client_message::Body::LeaveGroup(LeaveGroup { group });
        let id = self.ask(leave).await;
        self.group_result(id).await;
    }

    pub async fn lookup_group(&mut self, group: &str) -> (group_result::Status, u32) {
        let group = group.to_owned();
        let lookup = client_message::Body::LookupGroup(LookupGroup { group });
        let id = self.ask(lookup).await;
        self.group_result(id).await
    }

    pub async fn fetch(&mut self, fetch: FetchGroup) -> GroupFetched {
        let id = self.ask(client_message::Body::FetchGroup(fetch)).await;
        match self.answer(id).await {
            Some(edge_message::Body::GroupFetched(fetched)) => fetched,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a frame of a lane to a group.
    pub async fn send_frame(&mut self, handle: u32, frame: &LaneFrame) {
        let sequence = match frame {
            LaneFrame::Data(data) => data.sequence as u32,
            _ => 0,
        };
        let mut packet = header(Kind::Message, Class::Message, handle, sequence);
        packet.flow = frame.lane();
        let mut bytes = BytesMut::new();
        frame.encode_head(&mut bytes);
        bytes.extend_from_slice(&frame.payload());
        self.send_message(packet, &bytes).await;
    }

    /// The datagrams that have come and come within `wait`.
    pub async fn datagrams(&self, wait: Duration) -> Vec<(AccessHeader, Bytes)> {
        let mut all = Vec::new();
        while let Ok(Ok(datagram)) = self
            .host
            .timeout(wait, self.connection.read_datagram())
            .await
        {
            let header = AccessHeader::decode(&datagram).unwrap();
            all.push((header, datagram.slice(AccessHeader::LEN..)));
        }
        all
    }
}

impl World {
    /// Gives all relays a plan in which messages take `next_hops[relay][destination]`, and what goes to
    /// groups takes `parents[origin][relay]`, the relay that each one receives from.
    pub async fn group_plan(&self, number: u32, next_hops: &[&[u32]], parents: &[&[u32]]) {
        self.controller.distribute(number, &[], |own| {
            vec![ProfileTable {
                trees: vec![TreeTable {
                    next_hop: next_hops[own].to_vec(),
                    ..TreeTable::default()
                }],
                out_trees: out_trees(own, parents),
                may_cross: vec![vec![0xff; next_hops.len().div_ceil(8)]],
                ..ProfileTable::default()
            }]
        });
        self.activate(number).await;
        // Homes that have only started know by now whatever there is to be known.
        self.wan.sleep(Duration::from_secs(3)).await;
    }

    /// A token by which `user` may send to and receive from all groups.
    pub fn group_token(&self, user: &str) -> String {
        self.token(user, |claims| {
            claims.send = vec!["*".to_owned()];
            claims.recv = vec!["*".to_owned()];
        })
    }

    pub async fn group_client(&self, relay: usize, user: &str) -> TestClient {
        let token = self.group_token(user);
        self.client_with(relay, &token).await.unwrap()
    }
}

/// The part of a relay in the out-trees.
fn out_trees(own: usize, parents: &[&[u32]]) -> Vec<OutTreePart> {
    let mut parts = Vec::new();
    for (origin, parents) in parents.iter().enumerate() {
        let mut hops: Vec<OutHop> = Vec::new();
        for to in (0..parents.len()).filter(|&to| to != origin) {
            // Climb from the destination until the parent is this relay.
            let mut at = to;
            while at != origin && parents[at] as usize != own {
                at = parents[at] as usize;
            }
            if at == origin {
                continue;
            }
            match hops.iter_mut().find(|hop| hop.next == at as u32) {
                Some(hop) => hop.destinations.push(to as u32),
                None => hops.push(OutHop {
                    next: at as u32,
                    uplink: 0,
                    destinations: vec![to as u32],
                }),
            }
        }
        if !hops.is_empty() {
            parts.push(OutTreePart {
                origin: origin as u32,
                hops,
            });
        }
    }
    parts
}
