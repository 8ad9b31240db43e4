//! `--groups`: clients of their own, several per place where there are more of them than places, that
//! are members of groups and send messages and media to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use rand::{RngExt as _, seq::SliceRandom as _};
use tokio::task::JoinSet;
use tradewind_client::{Class, Client, Event, JoinOptions, SendOptions};
use tradewind_host::{Host, Rng};
use tradewind_wan::{HostClock, WanHost};

use super::{
    builder::Builder,
    copies::Copies,
    ground::Ground,
    group_record::{GroupOutcome, GroupRecord},
    options::{GroupOptions, Scenario},
    places::Place,
    record::reason,
    schedule::{PICTURE_LANE, TEXT_LANE},
    seeds,
    world::Watched,
};

/// First byte of a payload.
pub(super) const MESSAGE: u8 = 6;
const MEDIA: u8 = 7;
/// Kind, group, sender, number: what every payload begins with.
const STAMP: usize = 1 + 2 + 4 + 4;

/// Clients that send to a group, at most.
const SENDERS: usize = 5;
/// Messages per second to each group at most, …
const MESSAGES_PER_GROUP: f64 = 2.0;
/// … and so many deliveries per second in all.
const DELIVERIES: f64 = 2_500.0;
/// Media packets per second to each group at most, …
const MEDIA_PER_GROUP: f64 = 10.0;
/// … and so many deliveries per second in all.
const MEDIA_DELIVERIES: f64 = 2_500.0;
const MEDIA_BYTES: usize = 160;

/// Clients begin to connect so far apart, and so do joins.
const INTERVAL: Duration = Duration::from_millis(5);
/// Joins under way at a time, per client.
const JOINING: usize = 8;
/// How often somebody looks whether all has arrived, …
const LOOK: Duration = Duration::from_millis(50);
/// … and for how long after the last outcome.
const PATIENCE: Duration = Duration::from_secs(25);

/// What is seen of groups while the lab runs.
#[derive(Debug)]
pub(super) struct GroupWatch {
    pub(super) record: GroupRecord,
    pub(super) copies: Copies,
}

impl GroupWatch {
    pub(super) fn new(places: &[Place]) -> Self {
        Self {
            record: GroupRecord::default(),
            copies: Copies::new(places),
        }
    }
}

/// All groups, ready to be sent to.
pub(super) struct Groups {
    options: GroupOptions,
    clients: Vec<Arc<Participant>>,
    /// By group.
    members: Vec<BTreeSet<usize>>,
    senders: Vec<Vec<usize>>,
    watched: Arc<Watched>,
    duration: Duration,
    seed: u64,
}

/// One client.
struct Participant {
    me: usize,
    client: Client,
    host: Arc<WanHost>,
}

/// One thing to send to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Send {
    /// Since measuring began.
    at: Duration,
    /// Index among the group's senders.
    sender: usize,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Message { lane: u32, bytes: usize },
    Media,
}

/// Who is where, and in which groups: decided by the seed.
#[derive(Debug, PartialEq, Eq)]
struct Cast {
    /// By client.
    places: Vec<usize>,
    members: Vec<BTreeSet<usize>>,
    senders: Vec<Vec<usize>>,
}

impl Cast {
    fn draw(options: GroupOptions, places: usize, seed: u64) -> Self {
        let mut rng = seeds::rng(seed, seeds::GROUPS, 0);
        // A few more than a group has members, so that groups differ.
        let count = places.max(options.members + options.members.div_ceil(4));
        let at = (0..count).map(|client| match client {
            first if first < places => first,
            _ => rng.random_range(0..places),
        });
        let at: Vec<usize> = at.collect();
        let (mut members, mut senders) = (Vec::new(), Vec::new());
        for _ in 0..options.groups {
            let mut all: Vec<usize> = (0..count).collect();
            all.shuffle(&mut rng);
            // Mostly members send; who is none may as well.
            let most = SENDERS.min(options.members);
            let mut of_group = all[..most].to_vec();
            if count > options.members {
                of_group[most - 1] = all[options.members];
            }
            members.push(all[..options.members].iter().copied().collect());
            senders.push(of_group);
        }
        Self {
            places: at,
            members,
            senders,
        }
    }
}

/// What is sent to one group within `duration`, in order of time: at least one message and one media
/// packet.
fn schedule(options: GroupOptions, senders: usize, duration: Duration, rng: &mut Rng) -> Vec<Send> {
    let per_group = |rate: f64, deliveries: f64| {
        let copies = (options.groups * options.members) as f64;
        Duration::from_secs_f64(1.0 / rate.min(deliveries / copies)).min(duration)
    };
    let mut sends = Vec::new();
    let mut at = |period: Duration, rng: &mut Rng, what: &dyn Fn(&mut Rng) -> What| {
        let mut at = period.mul_f64(rng.random_range(0.0..1.0));
        while at < duration {
            let sender = rng.random_range(0..senders);
            let what = what(rng);
            sends.push(Send { at, sender, what });
            at += period;
        }
    };
    at(per_group(MESSAGES_PER_GROUP, DELIVERIES), rng, &|rng| {
        let (lane, bytes) = match rng.random_range(0..100) {
            0..90 => (TEXT_LANE, rng.random_range(20..400)),
            90..98 => (PICTURE_LANE, 5_000),
            _ => (PICTURE_LANE, 60_000),
        };
        What::Message { lane, bytes }
    });
    at(per_group(MEDIA_PER_GROUP, MEDIA_DELIVERIES), rng, &|_| {
        What::Media
    });
    sends.sort_unstable();
    sends
}

fn name(group: usize) -> String {
    format!("group-{group}")
}

fn user(client: usize) -> String {
    format!("member-{client}")
}

impl Groups {
    /// Connects the clients and has all groups joined, if there are to be any.
    pub(super) async fn gather(builder: &Builder<'_>) -> anyhow::Result<Option<Self>> {
        let scenario = builder.scenario;
        let Some(options) = scenario.groups else {
            return Ok(None);
        };
        let cast = Cast::draw(options, builder.places.len(), scenario.seed);
        builder
            .watched
            .groups
            .record
            .set_members(cast.members.clone());
        let clients = connect(builder, &cast).await?;
        for participant in &clients {
            let host: Arc<dyn Host> = participant.host.clone();
            host.spawn(receive(participant.clone(), builder.watched.clone()));
        }
        let groups = Self {
            options,
            clients,
            members: cast.members,
            senders: cast.senders,
            watched: builder.watched.clone(),
            duration: scenario.duration,
            seed: scenario.seed,
        };
        groups.join_all().await?;
        Ok(Some(groups))
    }

    async fn join_all(&self) -> anyhow::Result<()> {
        let mut joining = JoinSet::new();
        for participant in &self.clients {
            let of = |group: &usize| self.members[*group].contains(&participant.me);
            let mine: Vec<usize> = (0..self.members.len()).filter(of).collect();
            let participant = participant.clone();
            self.watched.wan.sleep(INTERVAL).await;
            joining.spawn(async move {
                for some in mine.chunks(JOINING) {
                    let mut joins = JoinSet::new();
                    for &group in some {
                        let client = participant.client.clone();
                        joins.spawn(async move {
                            let joined = client.join(&name(group), JoinOptions::default()).await;
                            joined.with_context(|| format!("{} cannot be joined", name(group)))
                        });
                    }
                    while let Some(joined) = joins.join_next().await {
                        joined.context("a client ended while it joined")??;
                    }
                }
                anyhow::Ok(())
            });
        }
        while let Some(joined) = joining.join_next().await {
            joined.context("a client ended while it joined")??;
        }
        Ok(())
    }

    /// Sends everything there is to send, and waits until it has arrived, or cannot any more.
    pub(super) async fn run(&self) {
        let mut sending = JoinSet::new();
        for (group, senders) in self.senders.iter().enumerate() {
            let mut rng = seeds::rng(self.seed, seeds::GROUPS, 1 + group as u64);
            let sends = schedule(self.options, senders.len(), self.duration, &mut rng);
            let senders: Vec<_> = senders.iter().map(|&me| self.clients[me].clone()).collect();
            sending.spawn(send_all(self.watched.clone(), group, senders, sends));
        }
        while sending.join_next().await.is_some() {}
        let wan = &self.watched.wan;
        let patience = wan.network_time() + PATIENCE;
        while !self.watched.groups.record.is_complete() && wan.network_time() < patience {
            wan.sleep(LOOK).await;
        }
    }

    /// What came of it all. `origin` is the network time at which measuring began.
    pub(super) fn outcome(
        &self,
        scenario: &Scenario,
        origin: Duration,
        ground: &Ground,
    ) -> GroupOutcome {
        let faults = !scenario.faults.is_empty();
        let by_relay: BTreeMap<&str, usize> = scenario
            .places
            .iter()
            .enumerate()
            .map(|(place, at)| (at.relay.as_str(), place))
            .collect();
        // Where nothing fails nobody moves, and it is known where members are without asking those
        // who are judged.
        let edges: Vec<Option<usize>> = self
            .clients
            .iter()
            .map(|participant| {
                let relay = participant.client.stats().relay?;
                by_relay.get(relay.as_str()).copied()
            })
            .collect();
        let places: Vec<Option<BTreeSet<usize>>> = self
            .members
            .iter()
            .map(|members| members.iter().map(|&member| edges[member]).collect())
            .collect();
        let copies = self.watched.groups.copies.count(origin, ground, |group| {
            places.get(group).cloned().flatten().filter(|_| !faults)
        });
        let fetches = self
            .clients
            .iter()
            .map(|participant| participant.client.stats().group_fetches)
            .sum();
        let record = &self.watched.groups.record;
        record.outcome(self.options, copies, fetches, faults)
    }
}

async fn connect(builder: &Builder<'_>, cast: &Cast) -> anyhow::Result<Vec<Arc<Participant>>> {
    let mut connecting = JoinSet::new();
    for (me, &place) in cast.places.iter().enumerate() {
        let config = builder.client_config(&user(me), place)?;
        let host = builder
            .wan
            .add_host(builder.places[place], HostClock::EXACT);
        builder.wan.sleep(INTERVAL).await;
        connecting.spawn(async move {
            let client = Client::connect(config, host.clone()).await;
            let client = client.with_context(|| format!("{} cannot connect", user(me)))?;
            anyhow::Ok(Arc::new(Participant { me, client, host }))
        });
    }
    let mut clients = Vec::new();
    while let Some(connected) = connecting.join_next().await {
        clients.push(connected.context("a client ended while it connected")??);
    }
    clients.sort_by_key(|participant| participant.me);
    Ok(clients)
}

async fn send_all(
    watched: Arc<Watched>,
    group: usize,
    senders: Vec<Arc<Participant>>,
    sends: Vec<Send>,
) {
    let wan = &watched.wan;
    let record = &watched.groups.record;
    let began = wan.network_time();
    let mut flows = Vec::new();
    for sender in &senders {
        flows.push(
            sender
                .client
                .open_group_flow(&name(group), Class::Audio)
                .await
                .ok(),
        );
    }
    let mut outcomes = JoinSet::new();
    let mut media = 0;
    for send in sends {
        wan.sleep_until(began + send.at).await;
        let sender = &senders[send.sender];
        match send.what {
            What::Media => {
                let payload = stamped(MEDIA, group, sender.me, media, MEDIA_BYTES);
                media += 1;
                let sent = flows[send.sender]
                    .as_ref()
                    .map(|flow| flow.send(0, payload));
                if let Some(Ok(())) = sent {
                    record.media_sent(group, sender.me);
                }
            }
            What::Message { lane, bytes } => {
                let number = record.send(group, sender.me, lane, wan.network_time());
                let payload = stamped(MESSAGE, group, sender.me, number, bytes);
                let class = if lane == PICTURE_LANE {
                    Class::Bulk
                } else {
                    Class::Message
                };
                let options = SendOptions {
                    lane,
                    class,
                    ..SendOptions::default()
                };
                let receipt = sender.client.enqueue_group(&name(group), payload, options);
                let watched = watched.clone();
                outcomes.spawn(async move {
                    let outcome = receipt.await.map(|_| ()).map_err(reason);
                    watched.groups.record.settle(number, outcome);
                });
            }
        }
    }
    while outcomes.join_next().await.is_some() {}
}

fn stamped(kind: u8, group: usize, sender: usize, number: u32, bytes: usize) -> Bytes {
    let bytes = bytes.max(STAMP);
    let mut payload = BytesMut::with_capacity(bytes);
    payload.put_u8(kind);
    payload.put_u16(group as u16);
    payload.put_u32(sender as u32);
    payload.put_u32(number);
    payload.resize(bytes, kind);
    payload.freeze()
}

/// Group and number of a payload of this kind.
pub(super) fn read_stamp(kind: u8, payload: &[u8]) -> Option<(usize, u32)> {
    let (&[first, g0, g1, _, _, _, _, n0, n1, n2, n3], _) = payload.split_first_chunk()?;
    let group = u16::from_be_bytes([g0, g1]);
    let number = u32::from_be_bytes([n0, n1, n2, n3]);
    (first == kind).then_some((group.into(), number))
}

/// Takes notes of what comes, until the client is closed.
async fn receive(participant: Arc<Participant>, watched: Arc<Watched>) {
    let record = &watched.groups.record;
    let me = participant.me;
    while let Some(event) = participant.client.recv().await {
        match event {
            Event::Message(message) => {
                if let Some((group, number)) = read_stamp(MESSAGE, &message.payload)
                    && message.group.as_deref() == Some(&*name(group))
                {
                    record.receive(me, group, number, watched.wan.network_time());
                }
            }
            Event::Media(media) if read_stamp(MEDIA, &media.payload).is_some() => {
                record.media_received();
            }
            Event::Gap(gap) => {
                let number = |text: &str| text.rsplit('-').next()?.parse::<usize>().ok();
                if let (Some(group), Some(sender)) = (number(&gap.group), number(&gap.from)) {
                    record.gap(me, group, sender, gap.lane, gap.segments);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: GroupOptions = GroupOptions {
        groups: 20,
        members: 50,
    };

    #[test]
    fn the_seed_draws_members_and_senders_from_clients_at_all_places() {
        let cast = Cast::draw(OPTIONS, 12, 3);
        assert_eq!(cast, Cast::draw(OPTIONS, 12, 3));
        assert_ne!(cast, Cast::draw(OPTIONS, 12, 4));
        assert_eq!(cast.places.len(), 63);
        assert!((0..12).all(|place| cast.places.contains(&place)));
        for (members, senders) in cast.members.iter().zip(&cast.senders) {
            assert_eq!((members.len(), senders.len()), (50, 5));
            let inside = senders.iter().filter(|sender| members.contains(sender));
            assert_eq!(inside.count(), 4, "one sends without being a member");
        }
        // More places than members: one client each is enough.
        let few = GroupOptions {
            groups: 1,
            members: 2,
        };
        assert_eq!(Cast::draw(few, 12, 3).places, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn every_group_is_sent_something_and_the_machine_can_carry_it() {
        let duration = Duration::from_secs(20);
        for (groups, members) in [(1, 2), (20, 50), (20, 500), (3, 5_000)] {
            let options = GroupOptions { groups, members };
            let mut rng = seeds::rng(1, seeds::GROUPS, 1);
            let sends = schedule(options, 5, duration, &mut rng);
            let is_message = |send: &&Send| matches!(send.what, What::Message { .. });
            let messages = sends.iter().filter(is_message).count();
            assert!(messages >= 1 && sends.len() > messages);
            assert!(
                sends
                    .iter()
                    .all(|send| send.at < duration && send.sender < 5)
            );
            let deliveries = sends.len() * groups * members;
            assert!(deliveries <= 110_000, "{groups}, {members}: {deliveries}");
        }
    }
}
