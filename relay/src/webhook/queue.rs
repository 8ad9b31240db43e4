//! What is called when: events about one user from one sender are gathered, calls that fail are
//! repeated, and everything is bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use tradewind_proto::Class;

use super::{OfflineEvent, WebhookSettings};

/// The first event waits so long for others.
const GATHER: Duration = Duration::from_millis(300);
/// Pauses between attempts: from, to; doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The notices of one webhook.
#[derive(Debug)]
pub(super) struct Queue {
    notices: BTreeMap<Topic, Notice>,
    /// Those to be sent, and when.
    due: BTreeSet<(Instant, Topic)>,
    /// Those that were sent of late, and until when the next one waits.
    resting: BTreeSet<(Instant, Topic)>,
    calling: usize,
    window: Duration,
    attempts: u32,
    limit: usize,
    concurrency: usize,
}

/// What a notice is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Topic {
    pub(super) app: String,
    pub(super) user: String,
    pub(super) from: String,
}

#[derive(Debug)]
struct Notice {
    state: State,
    /// What has come while another one is being sent, or too soon after it.
    next: Option<Events>,
}

#[derive(Debug)]
enum State {
    /// To be sent when it is due, for the first time or again.
    Waiting(Call),
    Calling(Call),
    Resting {
        until: Instant,
    },
}

/// Events that are told together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Events {
    /// The most urgent of their classes.
    pub(super) class: Class,
    pub(super) count: u64,
    pub(super) first_at: SystemTime,
    pub(super) last_at: SystemTime,
}

#[derive(Debug, Clone)]
struct Call {
    id: u128,
    events: Events,
    tries: u32,
}

/// A call to be made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) topic: Topic,
    /// The same for each attempt.
    pub(super) id: u128,
    pub(super) events: Events,
    /// From 1.
    pub(super) attempt: u32,
}

/// How an attempt has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Ok,
    /// It may be taken later.
    Failed,
    /// It will never be taken.
    Refused,
}

impl Queue {
    pub(super) fn new(settings: &WebhookSettings) -> Self {
        Self {
            notices: BTreeMap::new(),
            due: BTreeSet::new(),
            resting: BTreeSet::new(),
            calling: 0,
            window: settings.window,
            attempts: settings.attempts,
            limit: settings.queue,
            concurrency: settings.concurrency,
        }
    }

    /// Takes an event; `id` names the call if there is to be another one. `false` when there is no room.
    pub(super) fn push(&mut self, event: OfflineEvent, id: u128, now: Instant) -> bool {
        let OfflineEvent {
            app,
            user,
            from,
            class,
            at,
        } = event;
        let topic = Topic { app, user, from };
        let events = Events {
            class,
            count: 1,
            first_at: at,
            last_at: at,
        };
        if let Some(notice) = self.notices.get_mut(&topic) {
            match &mut notice.state {
                State::Waiting(call) if call.tries == 0 => call.events.add(events),
                State::Resting { until } => {
                    // What came meanwhile goes with this one, when that is due.
                    let at = *until;
                    self.resting.remove(&(at, topic.clone()));
                    self.due.insert((at, topic));
                    let call = Call {
                        id,
                        events,
                        tries: 0,
                    };
                    notice.state = State::Waiting(call);
                }
                _ => match &mut notice.next {
                    Some(next) => next.add(events),
                    none => *none = Some(events),
                },
            }
            return true;
        }
        if self.notices.len() >= self.limit {
            let Some((_, oldest)) = self.resting.pop_first() else {
                return false;
            };
            self.notices.remove(&oldest);
        }
        let at = now + GATHER;
        self.due.insert((at, topic.clone()));
        let call = Call {
            id,
            events,
            tries: 0,
        };
        let state = State::Waiting(call);
        self.notices.insert(topic, Notice { state, next: None });
        true
    }

    /// The next call to be made now; forgets what has rested.
    pub(super) fn next_job(&mut self, now: Instant) -> Option<Job> {
        while let Some((at, _)) = self.resting.first()
            && *at <= now
        {
            let (_, topic) = self.resting.pop_first()?;
            self.notices.remove(&topic);
        }
        if self.calling >= self.concurrency || self.due.first()?.0 > now {
            return None;
        }
        let (_, topic) = self.due.pop_first()?;
        let notice = self.notices.get_mut(&topic)?;
        let State::Waiting(call) = &notice.state else {
            return None;
        };
        let mut call = call.clone();
        call.tries += 1;
        self.calling += 1;
        let job = Job {
            topic,
            id: call.id,
            events: call.events,
            attempt: call.tries,
        };
        notice.state = State::Calling(call);
        Some(job)
    }

    /// A call has ended. `lot` is drawn from 0 to 1: repeated calls are spread by it; `id` names the next
    /// call, if something waits for it. `true` when the notice is given up.
    pub(super) fn ended(
        &mut self,
        topic: &Topic,
        ended: Ended,
        (lot, id): (f64, u128),
        now: Instant,
    ) -> bool {
        let Some(notice) = self.notices.get_mut(topic) else {
            return false;
        };
        let State::Calling(call) = &notice.state else {
            return false;
        };
        self.calling -= 1;
        let lost = ended == Ended::Failed && call.tries >= self.attempts;
        if ended == Ended::Failed && !lost {
            let pause = BACKOFF.0.saturating_mul(1 << (call.tries - 1).min(16));
            let at = now + pause.min(BACKOFF.1).mul_f64(0.5 + lot);
            let call = call.clone();
            notice.state = State::Waiting(call);
            self.due.insert((at, topic.clone()));
            return false;
        }
        let at = now + self.window;
        if let Some(events) = notice.next.take() {
            let call = Call {
                id,
                events,
                tries: 0,
            };
            notice.state = State::Waiting(call);
            self.due.insert((at, topic.clone()));
        } else {
            notice.state = State::Resting { until: at };
            self.resting.insert((at, topic.clone()));
        }
        lost
    }

    /// When [`next_job`](Self::next_job) is to be called again, if nothing else happens.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.due.first().filter(|_| self.calling < self.concurrency);
        let both = due.into_iter().chain(self.resting.first());
        both.map(|(at, _)| *at).min()
    }

    /// Notices that wait.
    pub(super) fn waiting(&self) -> usize {
        self.due.len()
    }
}

impl Events {
    fn add(&mut self, other: Self) {
        self.class = self.class.min(other.class);
        self.count += other.count;
        self.first_at = self.first_at.min(other.first_at);
        self.last_at = self.last_at.max(other.last_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::WebhookSecret;

    const WINDOW: Duration = Duration::from_secs(30);

    struct World {
        queue: Queue,
        now: Instant,
        ids: u128,
    }

    impl World {
        #[allow(clippy::disallowed_methods)] // any instant will do
        fn new(change: impl FnOnce(&mut WebhookSettings)) -> Self {
            let secret = WebhookSecret::parse("chat", "sixteen bytes or more").unwrap();
            let mut settings =
                WebhookSettings::new("chat".to_owned(), "http://x/".to_owned(), secret);
            change(&mut settings);
            Self {
                queue: Queue::new(&settings),
                now: Instant::now(),
                ids: 0,
            }
        }

        fn push(&mut self, from: &str, class: Class) -> bool {
            self.ids += 1;
            let event = OfflineEvent {
                app: "chat".to_owned(),
                user: "bob".to_owned(),
                from: from.to_owned(),
                class,
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(self.ids as u64),
            };
            self.queue.push(event, self.ids, self.now)
        }

        fn after(&mut self, time: Duration) -> Option<Job> {
            self.now += time;
            self.queue.next_job(self.now)
        }

        fn ended(&mut self, job: &Job, ended: Ended) -> bool {
            self.ids += 1;
            let draw = (0.5, self.ids);
            self.queue.ended(&job.topic, ended, draw, self.now)
        }
    }

    #[test]
    fn a_chatty_sender_makes_one_call_per_window_and_all_is_counted() {
        let mut world = World::new(|_| ());
        for _ in 0..5 {
            assert!(world.push("alice", Class::Message));
        }
        assert!(world.push("alice", Class::Audio));
        assert_eq!(world.after(Duration::ZERO), None);
        let job = world.after(GATHER).unwrap();
        assert_eq!((job.events.count, job.events.class), (6, Class::Audio));
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        assert_eq!(
            (seconds(job.events.first_at), seconds(job.events.last_at)),
            (1, 6)
        );
        // While it is being made, and within the window after it.
        world.push("alice", Class::Video);
        assert!(!world.ended(&job, Ended::Ok));
        world.push("alice", Class::Video);
        assert_eq!(world.after(WINDOW - Duration::from_millis(1)), None);
        let next = world.after(Duration::from_millis(1)).unwrap();
        assert_eq!((next.events.count, next.events.class), (2, Class::Video));
        assert_ne!(next.id, job.id);
        assert!(!world.ended(&next, Ended::Ok));
        // And then nothing is left.
        assert_eq!(world.after(WINDOW), None);
        assert!(world.queue.notices.is_empty() && world.queue.next_due().is_none());
    }

    #[test]
    fn what_fails_is_tried_again_with_the_same_id_and_longer_pauses_but_not_for_ever() {
        let mut world = World::new(|settings| settings.attempts = 3);
        world.push("alice", Class::Message);
        let mut job = world.after(GATHER).unwrap();
        let id = job.id;
        for (attempt, pause) in [(2, 1), (3, 2)] {
            assert!(!world.ended(&job, Ended::Failed));
            let pause = Duration::from_secs(pause);
            assert_eq!(world.after(pause - Duration::from_millis(1)), None);
            job = world.after(Duration::from_millis(1)).unwrap();
            assert_eq!((job.id, job.attempt), (id, attempt));
        }
        assert!(world.ended(&job, Ended::Failed), "it is given up");
        assert_eq!(world.after(WINDOW), None);
        assert!(world.queue.notices.is_empty());
        // What the application will not have is not tried again.
        world.push("alice", Class::Message);
        let job = world.after(GATHER).unwrap();
        assert!(!world.ended(&job, Ended::Refused));
        assert_eq!(world.after(WINDOW), None);
    }

    #[test]
    fn room_and_calls_at_a_time_are_bounded() {
        let mut world = World::new(|settings| (settings.queue, settings.concurrency) = (3, 2));
        for from in ["a", "b", "c"] {
            assert!(world.push(from, Class::Message));
        }
        assert!(!world.push("d", Class::Message));
        assert!(
            world.push("c", Class::Message),
            "it is counted with the others"
        );
        let first = world.after(GATHER).unwrap();
        assert!(world.after(Duration::ZERO).is_some());
        assert_eq!(world.after(Duration::ZERO), None);
        assert_eq!(world.queue.next_due(), None);
        assert!(!world.ended(&first, Ended::Ok));
        assert_eq!(world.after(Duration::ZERO).unwrap().topic.from, "c");
        // What only rests makes room.
        assert!(world.push("d", Class::Message));
        assert!(!world.push("e", Class::Message));
    }
}
