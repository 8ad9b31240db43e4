//! The test vectors that every implementation of the protocol checks itself against. They were
//! written from `docs/protocol.md`, not by this code.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tradewind_proto::{
    Class, FrameReader, GroupKey, Locator, MAX_FRAME, PlanId, RelayIndex, Tenant, encode_frame,
    lane::{Ack, Data, LaneFrame, Left, Refusal, Refuse, Skip, Tried, Try},
    packet::{
        AccessHeader, Destination, Kind, LinkHeader, MAX_SET_LEN, Probe, ProbeState, RelaySet,
        Trace, TraceRecord,
    },
};

#[test]
fn link_headers_are_read_and_written_as_the_vectors_say() {
    for vector in vectors("link_header") {
        let (bytes, fields) = (hex(&vector["hex"]), &vector["fields"]);
        let to = &fields["destination"];
        let mut passed = [RelayIndex::NONE; 6];
        for (slot, relay) in passed.iter_mut().zip(list(&fields["passed"])) {
            *slot = RelayIndex(number(relay) as u16);
        }
        let header = LinkHeader {
            kind: kind(&fields["kind"]),
            class: class(&fields["class"]),
            profile: number(&fields["profile"]) as u8,
            tree: number(&fields["tree"]) as u8,
            deflections: number(&fields["deflections"]) as u8,
            trace: truth(&fields["trace"]),
            path_change: truth(&fields["path_change"]),
            hop_limit: number(&fields["hop_limit"]) as u8,
            plan: plan(&fields["plan"]),
            age_us: number(&fields["age_us"]) as u32,
            sender: locator(&fields["sender"]),
            destination: match to.get("group") {
                Some(key) => Destination::Group(GroupKey(long(key))),
                None => Destination::Session(locator(to)),
            },
            passed,
            uplink: number(&fields["uplink"]) as u8,
            flow: number(&fields["flow"]) as u32,
            sequence: number(&fields["sequence"]) as u32,
            layer: fields.get("layer").map_or(0, |layer| number(layer) as u8),
            tenant: Tenant(
                fields
                    .get("tenant")
                    .map_or(0, |tenant| number(tenant) as u8),
            ),
        };
        assert_eq!(LinkHeader::decode(&bytes), Ok(header), "{}", vector["name"]);
        let mut written = [0xaa; LinkHeader::LEN];
        header.encode(&mut written);
        assert_eq!(written.as_slice(), &bytes[..], "{}", vector["name"]);
    }
}

#[test]
fn access_headers_are_read_and_written_as_the_vectors_say() {
    for vector in vectors("access_header") {
        let (bytes, fields) = (hex(&vector["hex"]), &vector["fields"]);
        let header = AccessHeader {
            kind: kind(&fields["kind"]),
            class: class(&fields["class"]),
            trace: truth(&fields["trace"]),
            path_change: truth(&fields["path_change"]),
            group: fields.get("group").is_some_and(truth),
            layer: fields.get("layer").map_or(0, |layer| number(layer) as u8),
            handle: number(&fields["handle"]) as u32,
            flow: number(&fields["flow"]) as u32,
            sequence: number(&fields["sequence"]) as u32,
            age_us: number(&fields["age_us"]) as u32,
        };
        assert_eq!(
            AccessHeader::decode(&bytes),
            Ok(header),
            "{}",
            vector["name"]
        );
        let mut written = [0xaa; AccessHeader::LEN];
        header.encode(&mut written);
        assert_eq!(written.as_slice(), &bytes[..], "{}", vector["name"]);
    }
}

#[test]
fn probes_are_read_and_written_as_the_vectors_say() {
    for vector in vectors("probe") {
        let (bytes, fields) = (hex(&vector["hex"]), &vector["fields"]);
        let probe = Probe {
            discriminator: number(&fields["discriminator"]) as u32,
            sequence: number(&fields["sequence"]) as u32,
            sent_us: long(&fields["sent_us"]),
            echo_discriminator: number(&fields["echo_discriminator"]) as u32,
            echo_sequence: number(&fields["echo_sequence"]) as u32,
            echo_sent_us: long(&fields["echo_sent_us"]),
            echo_received_us: long(&fields["echo_received_us"]),
            received: number(&fields["received"]) as u32,
            interval_us: number(&fields["interval_us"]) as u32,
            oldest_stamped: plan(&fields["oldest_stamped"]),
            state: match number(&fields["state"]) {
                0 => ProbeState::NotSaid,
                1 => ProbeState::Unknown,
                2 => ProbeState::Warming,
                3 => ProbeState::Up,
                4 => ProbeState::Down,
                other => panic!("no such state: {other}"),
            },
            in_use: truth(&fields["in_use"]),
            answer: truth(&fields["answer"]),
            degraded_in: truth(&fields["degraded_in"]),
            degraded_out: truth(&fields["degraded_out"]),
            settling: truth(&fields["settling"]),
        };
        assert_eq!(Probe::decode(&bytes), Ok(probe), "{}", vector["name"]);
        assert_eq!(probe.encode().as_slice(), &bytes[..], "{}", vector["name"]);
    }
}

#[test]
fn relay_sets_are_read_and_written_in_the_form_the_vectors_choose() {
    for vector in vectors("relay_set") {
        let bytes = hex(&vector["hex"]);
        let set: RelaySet = list(&vector["fields"]["relays"])
            .iter()
            .map(|relay| RelayIndex(number(relay) as u16))
            .collect();
        // What follows a set is not part of it.
        let longer = [&bytes[..], &[0xff; 3]].concat();
        let read = RelaySet::decode(&longer);
        assert_eq!(read, Ok((set.clone(), bytes.len())), "{}", vector["name"]);
        let mut written = [0; MAX_SET_LEN];
        let length = set.encode(&mut written).unwrap();
        assert_eq!(written[..length], bytes, "{}", vector["name"]);
    }
}

#[test]
fn traces_are_read_and_written_as_the_vectors_say() {
    for vector in vectors("trace") {
        let bytes = hex(&vector["hex"]);
        let hops = list(&vector["fields"]["hops"])
            .iter()
            .map(|hop| TraceRecord {
                relay: RelayIndex(number(&hop["relay"]) as u16),
                uplink: number(&hop["uplink"]) as u8,
                deflected: truth(&hop["deflected"]),
                age_us: number(&hop["age_us"]) as u32,
            })
            .collect();
        let trace = Trace { hops };
        assert_eq!(
            Trace::decode(&bytes),
            Ok(trace.clone()),
            "{}",
            vector["name"]
        );
        assert_eq!(trace.encode().as_slice(), &bytes[..], "{}", vector["name"]);
    }
}

#[test]
fn frames_are_cut_and_written_as_the_vectors_say() {
    for vector in vectors("frame") {
        let bytes = hex(&vector["hex"]);
        let contents = hex(&vector["fields"]["contents"]);
        let mut reader = FrameReader::new(MAX_FRAME);
        reader.push(Bytes::from(bytes.clone()));
        assert_eq!(reader.next_frame(), Ok(Some(contents.clone().into())));
        let mut written = BytesMut::new();
        encode_frame(&mut written, &[&contents]);
        assert_eq!(&written[..], bytes);
    }
}

#[test]
fn lane_frames_are_read_and_written_as_the_vectors_say() {
    for vector in vectors("lane_frame") {
        let (bytes, fields) = (hex(&vector["hex"]), &vector["fields"]);
        let of = |key: &str| number(&fields[key]);
        let frame = match vector["type"].as_str().unwrap() {
            "data" => LaneFrame::Data(Data {
                sender: long(&fields["sender"]),
                lane: of("lane") as u32,
                sequence: of("sequence"),
                base: of("base"),
                total: fields["total"].as_u64().map(|total| total as u32),
                last: truth(&fields["last"]),
                payload: hex(&fields["payload"]).into(),
            }),
            "ack" => LaneFrame::Ack(Ack {
                receiver: long(&fields["receiver"]),
                sender: long(&fields["sender"]),
                lane: of("lane") as u32,
                next: of("next"),
                window: of("window") as u32,
                age_us: of("age_us") as u32,
                ranges: list(&fields["ranges"])
                    .iter()
                    .map(|range| (number(&range[0]), number(&range[1]) as u32))
                    .collect(),
            }),
            "skip" => LaneFrame::Skip(Skip {
                sender: long(&fields["sender"]),
                lane: of("lane") as u32,
                base: of("base"),
            }),
            "refuse" => LaneFrame::Refuse(Refuse {
                receiver: long(&fields["receiver"]),
                sender: long(&fields["sender"]),
                lane: of("lane") as u32,
                sequence: of("sequence"),
                reason: match fields["reason"].as_str().unwrap() {
                    "too_large" => Refusal::TooLarge,
                    "denied" => Refusal::Denied,
                    other => panic!("no reason is called {other}"),
                },
            }),
            "left" => LaneFrame::Left(Left {
                instance: long(&fields["instance"]),
                relay: fields["relay"].as_str().unwrap().to_owned(),
            }),
            "try" => LaneFrame::Try(Try {
                trial: long(&fields["trial"]),
            }),
            "tried" => LaneFrame::Tried(Tried {
                trial: long(&fields["trial"]),
                came_us: of("came_us"),
            }),
            other => panic!("no lane frame is called {other}"),
        };
        let read = LaneFrame::decode(bytes.clone().into());
        assert_eq!(read, Ok(frame.clone()), "{}", vector["name"]);
        assert_eq!(&frame.encode()[..], bytes, "{}", vector["name"]);
    }
}

#[test]
fn what_the_vectors_call_wrong_is_refused() {
    for vector in vectors("refused") {
        let bytes = hex(&vector["hex"]);
        let refused = match vector["what"].as_str().unwrap() {
            "link_header" => LinkHeader::decode(&bytes).is_err(),
            "access_header" => AccessHeader::decode(&bytes).is_err(),
            "probe" => Probe::decode(&bytes).is_err(),
            "relay_set" => RelaySet::decode(&bytes).is_err(),
            "trace" => Trace::decode(&bytes).is_err(),
            "lane_frame" => LaneFrame::decode(bytes.into()).is_err(),
            other => panic!("nothing is called {other}"),
        };
        assert!(refused, "{}", vector["name"]);
    }
}

/// The vectors under `key`; there must be some.
fn vectors(key: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../vectors/headers.json")).expect("JSON");
    let vectors = list(&all[key]).clone();
    assert!(!vectors.is_empty(), "{key}");
    vectors
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().expect("hexadecimal");
    assert!(digits.len().is_multiple_of(2), "{digits}");
    (0..digits.len() / 2)
        .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("hexadecimal"))
        .collect()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

/// 64 bits, as a hexadecimal text.
fn long(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().expect("a text"), 16).expect("hexadecimal")
}

fn truth(value: &Value) -> bool {
    value.as_bool().expect("true or false")
}

fn class(value: &Value) -> Class {
    value.as_str().expect("a class").parse().expect("a class")
}

fn kind(value: &Value) -> Kind {
    match value.as_str().expect("a kind") {
        "media" => Kind::Media,
        "message" => Kind::Message,
        "control" => Kind::Control,
        "probe" => Kind::Probe,
        "echo_request" => Kind::EchoRequest,
        "echo_reply" => Kind::EchoReply,
        other => panic!("no kind is called {other}"),
    }
}

fn plan(value: &Value) -> PlanId {
    PlanId {
        epoch: number(&value["epoch"]) as u16,
        number: number(&value["number"]) as u32,
    }
}

fn locator(value: &Value) -> Locator {
    Locator {
        relay: RelayIndex(number(&value["relay"]) as u16),
        slot: number(&value["slot"]) as u32,
        generation: number(&value["generation"]) as u32,
    }
}
