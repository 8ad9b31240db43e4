//! A client that speaks the session protocol byte by byte.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tradewind_host::Host;
use tradewind_proto::{
    ALPN_CLIENT, Class, FrameReader, MAX_FRAME,
    control::{
        ClientMessage, EdgeMessage, Hello, LookupRelay, LookupUser, client_message, edge_message,
        lookup_result,
    },
    encode_frame, frame_message,
    packet::{AccessHeader, Kind, Trace, TraceRecord},
};
use tradewind_trust::{Ca, EDGE_NAME, tls};

/// A client that speaks the protocol by hand.
pub struct TestClient {
    pub host: Arc<dyn Host>,
    pub connection: quinn::Connection,
    control: quinn::SendStream,
    answers: quinn::RecvStream,
    frames: FrameReader,
    next_id: u32,
    lane: Option<quinn::SendStream>,
    /// News that came while an answer was awaited.
    passed_by: Vec<EdgeMessage>,
    pub relay: String,
}

impl TestClient {
    pub async fn connect(
        host: Arc<dyn Host>,
        address: SocketAddr,
        ca: &Ca,
        token: &str,
    ) -> Result<Self, String> {
        let config =
            tls::client_config(&ca.roots(), &[ALPN_CLIENT], tls::host_clock(host.clone())).unwrap();
        let mut config = quinn::ClientConfig::new(tls::quic_client(config).unwrap());
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(10)));
        config.transport_config(Arc::new(transport));
        let endpoint = host.quic_endpoint(([0_u16; 8], 0).into(), None).unwrap();
        let connection = endpoint
            .connect_with(config, address, EDGE_NAME)
            .unwrap()
            .await
            .map_err(|error| error.to_string())?;
        let (control, answers) = connection.open_bi().await.unwrap();
        let mut client = Self {
            host,
            connection,
            control,
            answers,
            frames: FrameReader::new(MAX_FRAME),
            next_id: 0,
            lane: None,
            passed_by: Vec::new(),
            relay: String::new(),
        };
        let hello = client_message::Body::Hello(Hello {
            token: token.to_owned(),
            instance: 1,
            sdk: "test".to_owned(),
            ..Default::default()
        });
        let id = client.ask(hello).await;
        match client.answer(id).await {
            Some(edge_message::Body::Welcome(welcome)) => {
                client.relay = welcome.relay;
                Ok(client)
            }
            Some(other) => Err(format!("{other:?}")),
            None => Err(client.connection.closed().await.to_string()),
        }
    }

    pub async fn ask(&mut self, body: client_message::Body) -> u32 {
        self.next_id += 1;
        let message = ClientMessage {
            id: self.next_id,
            body: Some(body),
        };
        let _ = self.control.write_chunk(frame_message(&message)).await;
        self.next_id
    }

    /// The next message on the control stream.
    pub async fn news(&mut self) -> Option<EdgeMessage> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(EdgeMessage::decode(frame).unwrap());
            }
            let chunk = self.answers.read_chunk(usize::MAX, true).await.ok()??;
            self.frames.push(chunk.bytes);
        }
    }

    /// The news that came while answers were awaited.
    pub fn take_news(&mut self) -> Vec<EdgeMessage> {
        std::mem::take(&mut self.passed_by)
    }

    pub async fn answer(&mut self, id: u32) -> Option<edge_message::Body> {
        loop {
            let message = self.news().await?;
            if message.reply_to == id {
                return message.body;
            }
            self.passed_by.push(message);
        }
    }

    pub async fn lookup(&mut self, user: &str) -> (lookup_result::Status, u32) {
        let user = user.to_owned();
        let id = self
            .ask(client_message::Body::LookupUser(LookupUser {
                user,
                ..Default::default()
            }))
            .await;
        self.lookup_answer(id).await
    }

    pub async fn lookup_relay(&mut self, relay: &str) -> (lookup_result::Status, u32) {
        let relay = relay.to_owned();
        let id = self
            .ask(client_message::Body::LookupRelay(LookupRelay { relay }))
            .await;
        self.lookup_answer(id).await
    }

    async fn lookup_answer(&mut self, id: u32) -> (lookup_result::Status, u32) {
        match self.answer(id).await {
            Some(edge_message::Body::LookupResult(result)) => (result.status(), result.handle),
            other => panic!("{other:?}"),
        }
    }

    /// The handle of a user who is there.
    pub async fn handle(&mut self, user: &str) -> u32 {
        let (status, handle) = self.lookup(user).await;
        assert_eq!(status, lookup_result::Status::Found, "{user}");
        handle
    }

    pub fn send(&self, header: AccessHeader, payload: &[u8]) {
        let mut datagram = vec![0; AccessHeader::LEN];
        header.encode(&mut datagram);
        datagram.extend_from_slice(payload);
        self.connection.send_datagram(datagram.into()).unwrap();
    }

    pub async fn send_message(&mut self, header: AccessHeader, payload: &[u8]) {
        if self.lane.is_none() {
            self.lane = Some(self.connection.open_uni().await.unwrap());
        }
        let mut head = [0; AccessHeader::LEN];
        header.encode(&mut head);
        let mut frame = BytesMut::new();
        encode_frame(&mut frame, &[&head, payload]);
        self.lane.as_mut().unwrap().write_all(&frame).await.unwrap();
    }

    /// The next datagram within five seconds.
    pub async fn receive(&self) -> Option<(AccessHeader, Bytes)> {
        let datagram = self
            .host
            .timeout(Duration::from_secs(5), self.connection.read_datagram())
            .await
            .ok()?
            .unwrap();
        Some((
            AccessHeader::decode(&datagram).unwrap(),
            datagram.slice(AccessHeader::LEN..),
        ))
    }

    /// Sends a flagged packet of each flow, and gives the relays that each one's came by, by flow.
    pub async fn ways(
        &self,
        to: &Self,
        handle: u32,
        class: Class,
        flows: std::ops::Range<u32>,
    ) -> BTreeMap<u32, Vec<u16>> {
        let ways = self.hops(to, handle, class, flows).await.into_iter();
        ways.map(|(flow, hops)| (flow, hops.iter().map(|hop| hop.relay.0).collect()))
            .collect()
    }

    /// The same with all that the trace says of each hop.
    pub async fn hops(
        &self,
        to: &Self,
        handle: u32,
        class: Class,
        flows: std::ops::Range<u32>,
    ) -> BTreeMap<u32, Vec<TraceRecord>> {
        let mut ways = BTreeMap::new();
        let flows: Vec<u32> = flows.collect();
        // Few at a time: no queue is to overflow.
        for some in flows.chunks(25) {
            for &flow in some {
                let mut packet = header(Kind::Media, class, handle, 1);
                packet.trace = true;
                packet.flow = flow;
                self.send(packet, b"which way?");
            }
            for _ in some {
                let (received, payload) = to.receive().await.expect("it arrives");
                let trace = Trace::decode(&payload).unwrap();
                ways.insert(received.flow, trace.hops);
            }
        }
        ways
    }

    /// The next stream that the edge opens.
    pub async fn incoming_lane(&self) -> quinn::RecvStream {
        self.connection.accept_uni().await.unwrap()
    }

    /// The next message packet on a stream.
    pub async fn receive_message(stream: &mut quinn::RecvStream) -> (AccessHeader, Vec<u8>) {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).await.unwrap();
        let payload = frame.split_off(AccessHeader::LEN);
        (AccessHeader::decode(&frame).unwrap(), payload)
    }
}

/// A header with the usual fields.
pub fn header(kind: Kind, class: Class, handle: u32, sequence: u32) -> AccessHeader {
    AccessHeader {
        kind,
        class,
        trace: false,
        path_change: false,
        group: false,
        layer: 0,
        handle,
        flow: 1,
        sequence,
        age_us: 0,
    }
}
