//! Without sockets: the test is the edge.

use bytes::Bytes;
use tradewind_proto::{
    Class,
    control::{FetchGroup, GroupFetched, GroupHead, GroupSource},
    lane::{Ack, Data, LaneFrame, Skip, Trouble},
    packet::{AccessHeader, Kind},
};

use super::*;
use crate::{Message, SendError, SendOptions, core::Packet, inbox::Inbox};

type Sent = oneshot::Receiver<crate::Outcomes>;
type Answered = oneshot::Receiver<Result<(), GroupError>>;

const GROUP: &str = "choir";
/// Of the edge: who sends to the group.
const SOURCE: u32 = 1 << 31 | 5;
/// A sender instance of another member.
const OTHER: u64 = 77;

struct World {
    groups: Groups,
    inbox: Inbox,
    now: Instant,
    next_id: u32,
}

#[allow(clippy::disallowed_methods)] // an origin for virtual time; its value means nothing
fn world() -> World {
    let mut drawn = 40;
    let draw = move || {
        drawn += 1;
        drawn
    };
    World {
        groups: Groups::new(SendConfig::default(), ReceiveConfig::default(), draw),
        inbox: Inbox::new(100, 100),
        now: Instant::now(),
        next_id: 0,
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    /// What is said to the edge now, each with its id.
    fn said(&mut self) -> Vec<(u32, Body)> {
        let mut said = Vec::new();
        while let Some((body, name)) = self.groups.output().questions.pop_front() {
            self.next_id += 1;
            if let Some(name) = name {
                self.groups.asked(&name, self.next_id);
            }
            said.push((self.next_id, body));
        }
        said
    }

    fn one_said(&mut self) -> (u32, Body) {
        let mut said = self.said();
        assert_eq!(said.len(), 1, "{said:?}");
        said.remove(0)
    }

    fn join(&mut self) -> Answered {
        let (answer, answered) = oneshot::channel();
        self.groups.join(GROUP, 0, answer, self.now);
        answered
    }

    /// A member, in a session.
    fn joined() -> Self {
        let mut world = world();
        world.groups.attached(world.now);
        let mut answered = world.join();
        world.answer_join(9);
        assert_eq!(answered.try_recv(), Ok(Ok(())));
        world
    }

    fn answer_join(&mut self, handle: u32) {
        let (id, body) = self.one_said();
        assert!(matches!(body, Body::JoinGroup(_)), "{body:?}");
        self.result(id, Status::Done, handle);
    }

    fn result(&mut self, id: u32, status: Status, handle: u32) {
        self.groups
            .on_result(&GROUP.into(), id, status, handle, self.now);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.groups.next_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.groups.on_timers(self.now);
        }
        self.now = end;
    }

    fn send(&mut self, text: &'static str) -> Sent {
        let (outcome, sent) = oneshot::channel();
        let payload = Bytes::from_static(text.as_bytes());
        let options = SendOptions::default();
        self.groups
            .enqueue(GROUP, payload, options, 1_000, outcome, self.now);
        sent
    }

    /// DATA frames that go out now, with their handle.
    fn frames(&mut self) -> Vec<(u32, Data)> {
        let mut frames = Vec::new();
        while let Some((name, lane)) = self.groups.output().turns.pop_front() {
            while let Some((handle, _, frame)) = self.groups.next_frame(&name, lane, self.now) {
                if let LaneFrame::Data(data) = frame {
                    frames.push((handle, data));
                }
            }
        }
        frames
    }

    fn hear(&mut self, frame: &LaneFrame) {
        let header = AccessHeader {
            kind: Kind::Message,
            class: Class::Message,
            trace: false,
            path_change: false,
            group: true,
            layer: 0,
            handle: SOURCE,
            flow: frame.lane(),
            sequence: frame.sequence(),
            age_us: 1_000,
        };
        let payload = frame.encode();
        self.groups.on_packet(
            Packet {
                session: 1,
                header,
                payload,
            },
            self.now,
        );
    }

    fn introduce(&mut self) {
        self.groups.on_source(
            GroupSource {
                handle: SOURCE,
                group: GROUP.to_owned(),
                user: "ann".to_owned(),
                origin: 3,
            },
            self.now,
        );
    }

    /// What the application gets.
    fn read(&mut self) -> Vec<String> {
        self.groups.deliver(&mut self.inbox, self.now);
        let mut read = Vec::new();
        while let Some(event) = self.inbox.pop() {
            read.push(match event {
                Event::Message(Message {
                    from,
                    group,
                    payload,
                    ..
                }) => {
                    assert_eq!((&*from, group.as_deref()), ("ann", Some(GROUP)));
                    String::from_utf8(payload.to_vec()).unwrap()
                }
                Event::Gap(gap) => format!("gap of {}", gap.segments),
                other => format!("{other:?}"),
            });
        }
        read
    }

    fn fetch(&mut self) -> FetchGroup {
        match self.one_said().1 {
            Body::FetchGroup(fetch) => fetch,
            other => panic!("{other:?}"),
        }
    }
}

/// The n-th message of another member's lane, one segment long.
fn data(n: u64, base: u64) -> LaneFrame {
    let payload = Bytes::from(format!("m{n}"));
    LaneFrame::Data(Data {
        sender: OTHER,
        lane: 0,
        sequence: n,
        base,
        total: Some(payload.len() as u32),
        last: true,
        payload,
    })
}

fn fetched(from: u64, to: u64, missing: &[u64]) -> GroupFetched {
    GroupFetched {
        group: GROUP.to_owned(),
        sender: OTHER,
        lane: 0,
        from,
        to,
        missing: missing.to_vec(),
        unreachable: false,
        busy: false,
    }
}

fn ack(next: u64) -> Ack {
    Ack {
        receiver: 1,
        sender: 41,
        lane: 0,
        next,
        window: 1 << 20,
        ..Ack::default()
    }
}

#[test]
fn a_join_waits_for_a_session_is_asked_again_and_answered_once() {
    let mut world = world();
    let mut answered = world.join();
    assert!(world.said().is_empty());
    world.groups.attached(world.now);
    let (id, _) = world.one_said();
    world.result(id, Status::Retry, 0);
    world.pass(ms(199));
    assert!(world.said().is_empty());
    world.pass(ms(1));
    let (id, _) = world.one_said();
    world.result(id, Status::Retry, 0);
    world.pass(ms(399));
    assert!(world.said().is_empty(), "ever longer pauses");
    world.pass(ms(1));
    // No answer at all: asked again after a while, and a late answer to the first one is nothing.
    let (late, _) = world.one_said();
    world.pass(ANSWER_WITHIN);
    let (id, _) = world.one_said();
    world.result(late, Status::Done, 7);
    assert!(answered.try_recv().is_err());
    world.result(id, Status::Done, 7);
    assert_eq!(answered.try_recv(), Ok(Ok(())));
    world.pass(Duration::from_secs(60));
    assert!(world.said().is_empty());
    // Joining again with the same layers is nothing to be asked; with others it is.
    assert_eq!(world.join().try_recv(), Ok(Ok(())));
    let (answer, mut answered) = oneshot::channel();
    world.groups.join(GROUP, 3, answer, world.now);
    assert!(matches!(world.one_said().1, Body::JoinGroup(join) if join.layers == 3));
    world.groups.close(world.now);
    assert_eq!(answered.try_recv(), Ok(Err(GroupError::Closed)));
}

#[test]
fn what_the_token_does_not_allow_is_denied() {
    let mut world = world();
    world.groups.attached(world.now);
    let mut answered = world.join();
    let mut sent = world.send("x");
    let (id, _) = world.one_said();
    world.result(id, Status::Denied, 0);
    assert_eq!(answered.try_recv(), Ok(Err(GroupError::Denied)));
    // It may be that it may send without being a member.
    assert!(sent.try_recv().is_err());
    let (id, body) = world.one_said();
    assert!(matches!(body, Body::LookupGroup(_)));
    world.result(id, Status::Denied, 0);
    assert_eq!(sent.try_recv().unwrap().whole, Err(SendError::Denied));
    // A member that may not send.
    let mut answered = world.join();
    world.answer_join(0);
    assert_eq!(answered.try_recv(), Ok(Ok(())));
    let mut sent = world.send("x");
    world.answer_join(0);
    assert_eq!(sent.try_recv().unwrap().whole, Err(SendError::Denied));
    for (name, error) in [
        ("", GroupError::Name),
        (&*"x".repeat(513), GroupError::Name),
    ] {
        let (answer, mut answered) = oneshot::channel();
        world.groups.join(name, 0, answer, world.now);
        assert_eq!(answered.try_recv(), Ok(Err(error)));
    }
}

#[test]
fn who_may_not_be_a_member_any_more_at_the_next_edge_is_told() {
    let mut world = World::joined();
    world.groups.detached(world.now);
    world.groups.attached(world.now);
    let (id, _) = world.one_said();
    world.result(id, Status::Denied, 0);
    assert!(matches!(
        world.groups.output().events.pop_front(),
        Some(Event::GroupLeft { group }) if &*group == GROUP
    ));
    assert!(world.said().is_empty());
}

#[test]
fn a_send_needs_no_membership_and_ends_with_the_edges_word() {
    let mut world = world();
    world.groups.attached(world.now);
    let mut sent = world.send("x");
    assert!(world.frames().is_empty());
    let (id, body) = world.one_said();
    assert!(matches!(body, Body::LookupGroup(_)));
    world.result(id, Status::Done, 9);
    let frames = world.frames();
    assert_eq!(frames.len(), 1);
    assert_eq!((frames[0].0, frames[0].1.sender), (9, 41));
    world.pass(ms(30));
    assert!(
        !world.groups.on_ack(8, &ack(1), world.now),
        "no handle of a group"
    );
    assert!(sent.try_recv().is_err());
    assert!(world.groups.on_ack(9, &ack(1), world.now));
    let delivered = sent.try_recv().unwrap().whole.unwrap();
    assert_eq!(delivered.after, ms(30));
    assert_eq!(world.groups.output().counts.delivered, 1);
}

#[test]
fn a_rejected_segment_and_one_of_an_unknown_handle_are_sent_again() {
    let mut world = World::joined();
    let mut sent = world.send("x");
    assert_eq!(world.frames().len(), 1);
    assert!(
        world
            .groups
            .on_rejected(9, 0, 0, Trouble::Congested, world.now)
    );
    world.pass(ms(100));
    assert_eq!(world.frames().len(), 1);
    assert!(world.groups.on_handle_gone(9, world.now));
    world.answer_join(11);
    let frames = world.frames();
    assert_eq!((frames.len(), frames[0].0), (1, 11));
    world.groups.on_ack(11, &ack(1), world.now);
    assert!(sent.try_recv().unwrap().whole.is_ok());
}

#[test]
fn sends_under_way_go_on_at_the_next_edge() {
    let mut world = World::joined();
    let mut sent = world.send("x");
    assert_eq!(world.frames()[0].0, 9);
    world.groups.detached(world.now);
    let mut later = world.send("y");
    world.pass(ms(1_000));
    assert!(world.frames().is_empty());
    world.groups.attached(world.now);
    world.answer_join(4);
    let numbers: Vec<_> = world
        .frames()
        .iter()
        .map(|(h, d)| (*h, d.sequence))
        .collect();
    assert_eq!(numbers, [(4, 0), (4, 1)]);
    world.groups.on_ack(4, &ack(2), world.now);
    assert!(sent.try_recv().unwrap().whole.is_ok() && later.try_recv().unwrap().whole.is_ok());
}

#[test]
fn what_comes_is_held_until_it_is_known_whose_it_is() {
    let mut world = World::joined();
    world.hear(&data(4, 4));
    world.hear(&data(5, 4));
    assert!(world.read().is_empty());
    world.introduce();
    assert_eq!(world.read(), ["m4", "m5"]);
    // A second copy is removed.
    world.hear(&data(5, 4));
    assert!(world.read().is_empty());
    assert_eq!(world.groups.output().counts.duplicates, 1);
    // After leaving, what is still under way is nothing to us.
    world.groups.leave(GROUP, world.now);
    assert!(matches!(world.one_said().1, Body::LeaveGroup(_)));
    world.hear(&data(6, 4));
    assert!(world.read().is_empty());
}

#[test]
fn acknowledgements_of_members_are_not_believed() {
    let mut world = World::joined();
    let mut sent = world.send("x");
    world.frames();
    world.introduce();
    world.hear(&LaneFrame::Ack(ack(1)));
    assert!(sent.try_recv().is_err());
    assert_eq!(world.groups.output().counts.unexpected, 1);
}

#[test]
fn what_is_missing_is_fetched_once_and_what_is_lost_is_a_gap() {
    let mut world = World::joined();
    world.introduce();
    world.hear(&data(0, 0));
    world.hear(&data(3, 0));
    world.pass(ms(299));
    assert!(world.said().is_empty());
    world.pass(ms(1));
    let fetch = world.fetch();
    assert_eq!(
        (fetch.from, fetch.to, fetch.origin, fetch.sender),
        (1, 2, 3, OTHER)
    );
    world.pass(ms(1_000));
    assert!(world.said().is_empty(), "one question at a time");
    assert_eq!(world.read(), ["m0"]);
    world.hear(&data(2, 0));
    world.groups.on_fetched(&fetched(1, 2, &[1, 1]), world.now);
    assert_eq!(world.read(), ["gap of 1", "m2", "m3"]);
    world.pass(Duration::from_secs(60));
    assert!(world.said().is_empty());
}

#[test]
fn a_member_at_a_new_edge_asks_for_what_was_sent_meanwhile() {
    let mut world = World::joined();
    world.introduce();
    world.hear(&data(0, 0));
    world.groups.detached(world.now);
    world.pass(ms(3_000));
    assert!(world.said().is_empty());
    world.groups.attached(world.now);
    world.answer_join(2);
    let fetch = world.fetch();
    assert_eq!((fetch.from, fetch.to, fetch.origin), (1, u64::MAX, 3));
    // Handles are another edge's now: who is behind them is told anew.
    world.hear(&data(1, 0));
    world.groups.on_fetched(&fetched(1, 2, &[]), world.now);
    world.introduce();
    world.hear(&data(2, 0));
    assert_eq!(world.read(), ["m0", "m1", "m2"]);
    world.pass(Duration::from_secs(60));
    assert!(world.said().is_empty());
}

#[test]
fn of_a_lane_first_heard_after_an_outage_the_beginning_is_asked_for() {
    let mut world = World::joined();
    world.groups.detached(world.now);
    world.pass(ms(3_000));
    world.groups.attached(world.now);
    world.answer_join(2);
    world.introduce();
    world.hear(&data(6, 6));
    world.pass(MISSING);
    let fetch = world.fetch();
    assert_eq!((fetch.from, fetch.to), (0, 5));
    // The rest is older than what was missed.
    world.groups.on_fetched(&fetched(0, 5, &[0, 3]), world.now);
    world.hear(&data(4, 4));
    world.hear(&data(5, 4));
    assert_eq!(world.read(), ["m4", "m5", "m6"]);
    // Long after, a lane that is heard first begins where it is.
    world.pass(Duration::from_secs(40));
    world.hear(&LaneFrame::Skip(Skip {
        sender: 78,
        lane: 0,
        base: 4,
    }));
    let LaneFrame::Data(other) = data(9, 8) else {
        unreachable!()
    };
    world.hear(&LaneFrame::Data(Data {
        sender: 78,
        ..other
    }));
    world.pass(MISSING);
    assert_eq!(world.fetch().from, 8);
}

#[test]
fn a_full_queue_at_the_edge_loses_nothing_for_good() {
    let mut world = World::joined();
    world.introduce();
    let head = |newest| GroupHead {
        group: GROUP.to_owned(),
        sender: OTHER,
        lane: 0,
        newest,
        origin: 3,
    };
    // Of a lane of which nothing was heard yet.
    world.groups.on_head(&head(1), world.now);
    let fetch = world.fetch();
    assert_eq!((fetch.from, fetch.to), (1, 1));
    world.hear(&data(1, 1));
    world.pass(MISSING);
    assert_eq!((world.fetch().from, world.read()), (0, vec![]));
    world.hear(&data(0, 0));
    world.groups.on_fetched(&fetched(0, 0, &[]), world.now);
    assert_eq!(world.read(), ["m0", "m1"]);
    // And of one that is known.
    world.groups.on_head(&head(3), world.now);
    world.pass(MISSING);
    let fetch = world.fetch();
    assert_eq!((fetch.from, fetch.to), (2, 3));
}

#[test]
fn a_reader_that_lags_is_not_given_more_than_it_has_room_for() {
    let mut world = World::joined();
    world.inbox = Inbox::new(10, 10);
    world.introduce();
    for n in 0..30 {
        world.hear(&data(n, 0));
    }
    assert_eq!(world.read().len(), 10);
    assert_eq!(world.read().len(), 10);
    assert_eq!(world.read().last().map(String::as_str), Some("m29"));
}

#[test]
fn only_so_many_questions_are_open_at_a_time() {
    let mut world = World::joined();
    world.introduce();
    for sender in 0..200 {
        for sequence in [0, 2] {
            let LaneFrame::Data(other) = data(sequence, 0) else {
                unreachable!()
            };
            world.hear(&LaneFrame::Data(Data { sender, ..other }));
        }
    }
    world.pass(MISSING);
    let said = world.said();
    assert_eq!(said.len(), 64);
    for (_, body) in &said[..10] {
        let Body::FetchGroup(fetch) = body else {
            unreachable!()
        };
        let answer = GroupFetched {
            sender: fetch.sender,
            ..fetched(1, 1, &[1, 1])
        };
        world.groups.on_fetched(&answer, world.now);
    }
    world.pass(ms(60));
    assert_eq!(world.said().len(), 10);
    // One that is not answered makes room for another.
    world.pass(Duration::from_secs(5));
    assert_eq!(world.said().len(), 64);
}

#[test]
fn a_new_token_may_allow_other_things() {
    let mut world = World::joined();
    world.groups.token_changed(world.now);
    world.answer_join(0);
    let mut sent = world.send("x");
    world.answer_join(0);
    assert_eq!(sent.try_recv().unwrap().whole, Err(SendError::Denied));
    world.groups.token_changed(world.now);
    let (id, _) = world.one_said();
    world.result(id, Status::Denied, 0);
    let event = world.groups.output().events.pop_front();
    assert!(matches!(event, Some(Event::GroupLeft { .. })));
}

#[test]
fn groups_with_nothing_under_way_are_forgotten_when_there_are_too_many() {
    let mut world = World::joined();
    for n in 0..MAX_GROUPS + 10 {
        let name = format!("group {n}");
        let (answer, mut answered) = oneshot::channel();
        world.groups.join(&name, 0, answer, world.now);
        assert!(answered.try_recv().is_err(), "it waits");
        world.groups.leave(&name, world.now);
    }
    assert!(world.groups.by_name.len() <= MAX_GROUPS);
    assert!(world.groups.by_name.contains_key(GROUP));
}

const MISSING: Duration = tradewind_proto::lane::MISSING_FOR;
