//! The users of a lab under chaos at work: each has a client, as an application would, and sends to
//! the others.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::task::JoinSet;
use tradewind_client::{Class, Client, Event, Message, SendOptions};
use tradewind_host::Host;
use tradewind_wan::WanHost;

use super::{
    builder::Builder,
    ledger::Seen,
    record::reason,
    schedule::PICTURE_LANE,
    traffic::{CROWD, Stamp, Traffic, stamped},
    users,
    world::Watched,
};

/// Clients begin to connect so far apart.
const CONNECT_INTERVAL: Duration = Duration::from_millis(5);
/// An outcome that has not come so long after a message's time to live, by the sender's clock, never
/// comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// All users, ready to send.
pub(super) struct Crowd {
    members: Vec<Arc<Member>>,
    watched: Arc<Watched>,
    duration: Duration,
    seed: u64,
}

/// One user's client and the host it runs on.
struct Member {
    me: usize,
    client: Client,
    host: Arc<WanHost>,
}

impl Crowd {
    /// Connects the users besides the lab's own clients, which take part with those they have.
    pub(super) async fn gather(builder: &Builder<'_>, traffic: &Traffic) -> anyhow::Result<Self> {
        let scenario = builder.scenario;
        let own = builder.places.len();
        let mut connecting = JoinSet::new();
        for (me, user) in scenario.users.iter().enumerate().skip(own) {
            let mut config = builder.client_config(&user.name, user.place)?;
            builder.vary(&mut config, me);
            let host = builder.user_hosts[me - own].clone();
            let name = user.name.clone();
            builder.wan.sleep(CONNECT_INTERVAL).await;
            connecting.spawn(async move {
                let client = Client::connect(config, host.clone()).await;
                let client = client.with_context(|| format!("{name} cannot connect"))?;
                anyhow::Ok(Arc::new(Member { me, client, host }))
            });
        }
        let hosts = builder.client_hosts.iter().cloned();
        let clients = traffic.clients().into_iter().zip(hosts).enumerate();
        let mut members: Vec<Arc<Member>> = clients
            .map(|(me, (client, host))| Arc::new(Member { me, client, host }))
            .collect();
        while let Some(member) = connecting.join_next().await {
            members.push(member.context("a client ended while it connected")??);
        }
        members.sort_by_key(|member| member.me);
        for member in &members[own..] {
            let receiving = receive(member.clone(), builder.watched.clone());
            let host: Arc<dyn Host> = member.host.clone();
            host.spawn(receiving);
        }
        Ok(Self {
            members,
            watched: builder.watched.clone(),
            duration: scenario.duration,
            seed: scenario.seed,
        })
    }

    /// Sends everything there is to send until network time `end`, and waits until every outcome is
    /// known, or cannot come any more.
    pub(super) async fn run(&self, end: Duration) {
        let n = self.members.len();
        let mut sending = JoinSet::new();
        for member in &self.members {
            let sends = users::sends(n, member.me, self.duration, self.seed);
            let (member, watched) = (member.clone(), self.watched.clone());
            sending.spawn(async move {
                let mut outcomes = JoinSet::new();
                tokio::select! {
                    biased;
                    () = member.send_all(&watched, sends, &mut outcomes) => {}
                    // Who sleeps then wants to send no more.
                    () = watched.wan.sleep_until(end) => {}
                }
                while outcomes.join_next().await.is_some() {}
            });
        }
        while sending.join_next().await.is_some() {}
    }
}

impl Member {
    /// Sends when it is time by the host's own clock, and takes notes of what becomes of it.
    async fn send_all(
        &self,
        watched: &Arc<Watched>,
        sends: Vec<users::UserSend>,
        outcomes: &mut JoinSet<()>,
    ) {
        let host: Arc<dyn Host> = self.host.clone();
        let began = host.now();
        for send in sends {
            host.sleep_until(began + send.at).await;
            let (watched, host) = (watched.clone(), host.clone());
            let now = watched.elapsed().unwrap_or_default();
            let number = watched.ledger.send(self.me, &send, now);
            let now = watched.wan.network_time();
            let payload = stamped(CROWD, (self.me, send.to), number, send.bytes, now);
            let options = SendOptions {
                ttl: send.ttl,
                lane: send.lane,
                class: if send.lane == PICTURE_LANE {
                    Class::Bulk
                } else {
                    Class::Message
                },
                ..SendOptions::default()
            };
            let to = watched.ledger.name(send.to);
            let receipt = self.client.enqueue(to, payload, options);
            outcomes.spawn(async move {
                if let Ok(outcome) = host.timeout(send.ttl + PATIENCE, receipt).await {
                    let now = watched.elapsed().unwrap_or_default();
                    let failed = outcome.err().map(reason);
                    watched.ledger.settle(number, failed, now);
                }
            });
        }
    }
}

/// Takes notes of what comes, until the client is closed.
async fn receive(member: Arc<Member>, watched: Arc<Watched>) {
    while let Some(event) = member.client.recv().await {
        match event {
            Event::Message(message) => note(&watched, member.me, &message),
            Event::State(state) => tracing::debug!(user = member.me, ?state, "session"),
            _ => {}
        }
    }
}

/// Takes a note of a message that the user `me` has received.
pub(super) fn note(watched: &Watched, me: usize, message: &Message) {
    if let Some(stamp) = Stamp::read(&message.payload)
        && stamp.kind == CROWD
    {
        let seen = Seen {
            from: &message.from,
            to: me,
            lane: message.lane,
            bytes: message.payload.len(),
            whole: stamp.to == me && stamp.is_followed_by_filler(&message.payload),
        };
        watched.ledger.receive(stamp.number, &seen);
    }
}
