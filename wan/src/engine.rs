//! What makes things happen when they are due: one queue of deliveries and timers, emptied by a
//! driver task in virtual time and by a thread in real time.

use std::{
    cmp::Ordering as Order,
    collections::BinaryHeap,
    future::Future,
    num::NonZeroU64,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::{
    host::HostNode,
    link::{Fate, Link},
    socket::{Datagram, Outline},
    timer::TimerShared,
};

/// Which clock network time follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Network time jumps to the next event as soon as every task waits.
    Virtual,
    /// Network time is real time.
    Real,
}

/// How late packets were placed into their sockets' inboxes in real time (never early), in
/// microseconds, rounded down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeliveryError {
    /// Packets measured, those over links without delay included, which cannot be late.
    pub packets: u64,
    /// Half of the packets were at most this late.
    pub p50_us: u64,
    /// 99 % of the packets were at most this late.
    pub p99_us: u64,
    /// The latest of all.
    pub max_us: u64,
}

/// Real time: the last stretch before a deadline is spun through, since waking a thread takes about
/// as long (measured in a virtual machine: some 30 µs, of which this saves all but a few). Not
/// more: two cores have a network to run besides.
const SPIN_NS: u64 = 30_000;

/// Real time on one thread: with the next event so far off the thread rests, …
const REST_NS: u64 = 3_000_000;
/// … until so long before it, since tokio's timers tick in milliseconds.
const REST_EARLY_NS: u64 = 2_000_000;

/// Events fired before the timer thread looks at its queue again.
const BATCH: usize = 128;

/// Virtual time: with nothing at all queued the world sleeps this long (tokio's clock), so that
/// tokio timers of foreign code get their turn, before it is declared dead.
const DEADLOCK: Duration = Duration::from_secs(30 * 86_400);

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) mode: Mode,
    /// Real time: where network time 0 is.
    epoch: Instant,
    virtual_now_ns: AtomicU64,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Something is due before what the timer thread is spinning for.
    earlier: AtomicBool,
    stop: AtomicBool,
    digest: AtomicU64,
    lateness: Lateness,
}

#[derive(Debug, Default)]
struct Queue {
    heap: BinaryHeap<Event>,
    next_order: u64,
    /// When the driver or thread will look next by itself. 0 while it is awake.
    armed_ns: u64,
    driver: Option<Waker>,
}

#[derive(Debug)]
struct Event {
    at_ns: u64,
    /// Events due at the same time happen in the order in which they were scheduled.
    order: u64,
    what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Deliver(Box<Packet>),
    Timer(Arc<TimerShared>),
}

/// A packet under way.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) link: Arc<Link>,
    pub(crate) to: Arc<HostNode>,
    pub(crate) datagram: Datagram,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    /// Reversed: the heap's greatest is the earliest.
    fn cmp(&self, other: &Self) -> Order {
        (other.at_ns, other.order).cmp(&(self.at_ns, self.order))
    }
}

impl Engine {
    #[allow(clippy::disallowed_methods)] // the edge: here network time meets the machine's
    pub(crate) fn new(mode: Mode) -> Arc<Self> {
        Arc::new(Self {
            mode,
            epoch: Instant::now(),
            virtual_now_ns: AtomicU64::new(0),
            queue: Mutex::default(),
            wake: Condvar::new(),
            earlier: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            digest: AtomicU64::new(0xcbf2_9ce4_8422_2325),
            lateness: Lateness::default(),
        })
    }

    /// Where network time 0 is among `Instant`s.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Network time.
    #[allow(clippy::disallowed_methods)] // the edge: here network time meets the machine's
    pub(crate) fn now_ns(&self) -> u64 {
        match self.mode {
            Mode::Virtual => self.virtual_now_ns.load(Relaxed),
            Mode::Real => crate::link::nanoseconds(self.epoch.elapsed()),
        }
    }

    /// Rounds a time of happening up to what the mode can tell apart: virtual time has whole
    /// microseconds.
    pub(crate) fn round_up(&self, at_ns: u64) -> u64 {
        match self.mode {
            Mode::Virtual => at_ns.div_ceil(1000).saturating_mul(1000),
            Mode::Real => at_ns,
        }
    }

    /// Has `what` happen at `at_ns` (see [`Engine::round_up`]), at once if that is past.
    pub(crate) fn schedule(&self, at_ns: u64, what: What) {
        self.schedule_all(std::iter::once((at_ns, what)));
    }

    pub(crate) fn schedule_all(&self, events: impl Iterator<Item = (u64, What)>) {
        let mut queue = self.queue();
        let mut first_ns = u64::MAX;
        for (at_ns, what) in events {
            first_ns = first_ns.min(at_ns);
            let order = queue.next_order;
            queue.next_order += 1;
            queue.heap.push(Event { at_ns, order, what });
        }
        if first_ns >= queue.armed_ns {
            return;
        }
        // Woken once is enough, however much earlier the next event is.
        queue.armed_ns = 0;
        let driver = queue.driver.take();
        drop(queue);
        match driver {
            Some(driver) => driver.wake(),
            None if self.mode == Mode::Real => {
                self.earlier.store(true, Relaxed);
                self.wake.notify_one();
            }
            None => {}
        }
    }

    /// A packet has arrived.
    pub(crate) fn deliver(&self, link: &Link, to: &HostNode, datagram: Datagram) {
        let outline = datagram.outline();
        let count = |fate| {
            link.count(fate, outline.len);
            self.trace(fate, &outline);
        };
        if to.is_asleep(self.now_ns()) {
            return count(Fate::DeadHost);
        }
        if !to.lets_in(&outline, self.now_ns()) {
            return count(Fate::NoSocket);
        }
        to.deliver(datagram, count);
    }

    /// In real time, a packet due now need not make the detour over the timer thread.
    pub(crate) fn deliver_now(&self, link: &Link, to: &HostNode, datagram: Datagram) {
        self.lateness.record(0);
        self.deliver(link, to, datagram);
    }

    /// Computes anew when the timers of a host are due, after its clock has changed.
    pub(crate) fn rearm(&self, node: &Arc<HostNode>) {
        let timers: Vec<_> = self
            .queue()
            .heap
            .iter()
            .filter_map(|event| match &event.what {
                What::Timer(timer) if timer.is_of(node) => Some(timer.clone()),
                _ => None,
            })
            .collect();
        for timer in timers {
            timer.rearm(self);
        }
    }

    /// Folds a packet's fate into the digest of everything that has happened (virtual time only:
    /// in real time the order is the machine's).
    pub(crate) fn trace(&self, fate: Fate, packet: &Outline) {
        if self.mode == Mode::Real {
            return;
        }
        let mut hash = self.digest.load(Relaxed);
        let mut fold = |word: u64| {
            hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        };
        fold(self.now_ns());
        fold(fate as u64 | u64::from(packet.ecn.map_or(0, |ecn| ecn as u8)) << 8);
        fold(packet.len as u64);
        for address in [packet.source, packet.destination] {
            let ip = match address.ip() {
                std::net::IpAddr::V4(ip) => u128::from(ip.to_bits()),
                std::net::IpAddr::V6(ip) => ip.to_bits(),
            };
            fold(ip as u64 ^ (ip >> 64) as u64);
            fold(u64::from(address.port()));
        }
        self.digest.store(hash, Relaxed);
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest.load(Relaxed)
    }

    pub(crate) fn delivery_error(&self) -> DeliveryError {
        self.lateness.summary()
    }

    /// Ends the timer thread.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
        // Through the lock, so that the thread is either before its check or in its wait.
        drop(self.queue());
        self.wake.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .expect("no code panics while it holds the queue")
    }

    fn fire(&self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event.what {
                What::Timer(timer) => timer.fire(event.at_ns, self),
                What::Deliver(packet) => {
                    let now_ns = self.now_ns();
                    if let Some(until_ns) = packet.to.stalled_until(now_ns)
                        && !packet.to.is_asleep(now_ns)
                    {
                        self.schedule(self.round_up(until_ns), What::Deliver(packet));
                        continue;
                    }
                    if self.mode == Mode::Real {
                        self.lateness
                            .record(self.now_ns().saturating_sub(event.at_ns));
                    }
                    let Packet { link, to, datagram } = *packet;
                    self.deliver(&link, &to, datagram);
                    link.has_left_queue();
                }
            }
        }
    }

    /// Takes what is due by `now_ns`, in order; else says when the next is.
    fn take_due(queue: &mut Queue, now_ns: u64, due: &mut Vec<Event>) -> u64 {
        while let Some(event) = queue.heap.peek() {
            if event.at_ns > now_ns || due.len() >= BATCH {
                return event.at_ns;
            }
            due.extend(queue.heap.pop());
        }
        u64::MAX
    }

    /// The timer thread's life in real time.
    pub(crate) fn run_thread(&self) {
        // Without this the kernel may wake us 50 µs late, to save power. Where it cannot be set
        // that is what deliveries then suffer.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut due = Vec::with_capacity(BATCH);
        let mut queue = self.queue();
        while !self.stop.load(Relaxed) {
            let now_ns = self.now_ns();
            let next_ns = Self::take_due(&mut queue, now_ns, &mut due);
            if !due.is_empty() {
                drop(queue);
                self.fire(&mut due);
                queue = self.queue();
                continue;
            }
            let wait_ns = next_ns.saturating_sub(now_ns);
            if wait_ns <= SPIN_NS {
                self.earlier.store(false, Relaxed);
                queue.armed_ns = next_ns;
                drop(queue);
                while self.now_ns() < next_ns && !self.earlier.load(Relaxed) {
                    std::hint::spin_loop();
                }
                queue = self.queue();
                queue.armed_ns = 0;
                continue;
            }
            queue.armed_ns = next_ns;
            queue = if next_ns == u64::MAX {
                self.wake
                    .wait(queue)
                    .expect("no code panics while it holds the queue")
            } else {
                let wait = Duration::from_nanos(wait_ns - SPIN_NS);
                let woken = self.wake.wait_timeout(queue, wait);
                woken.expect("no code panics while it holds the queue").0
            };
            queue.armed_ns = 0;
        }
    }

    /// Virtual time's driver: completes only when nothing can ever happen again.
    #[allow(clippy::disallowed_methods)] // the edge: tokio's paused clock drives network time
    pub(crate) fn drive(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        Driver {
            engine: self.clone(),
            tokio_origin: tokio::time::Instant::now(),
            net_origin_ns: self.now_ns(),
            sleep: Box::pin(tokio::time::sleep_until(tokio::time::Instant::now())),
            idle_since: None,
            due: Vec::new(),
        }
    }
}

impl Engine {
    /// Real time's driver on the thread of the hosts' tasks: never completes.
    ///
    /// While something is due within a few milliseconds, which is always so in a network at work,
    /// it lets the runtime turn without rest: no thread is woken by another, and the processor
    /// does not fall asleep, which in a virtual machine takes far longer to end than everything
    /// else here.
    #[allow(clippy::disallowed_methods)] // the edge: network time is the machine's
    pub(crate) fn drive_real(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        RealDriver {
            engine: self.clone(),
            sleep: Box::pin(tokio::time::sleep_until(tokio::time::Instant::now())),
            due: Vec::with_capacity(BATCH),
        }
    }
}

struct RealDriver {
    engine: Arc<Engine>,
    sleep: Pin<Box<tokio::time::Sleep>>,
    due: Vec<Event>,
}

impl Future for RealDriver {
    type Output = ();

    #[allow(clippy::disallowed_methods)] // the edge: network time is the machine's
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let engine = &this.engine;
        let now_ns = engine.now_ns();
        let mut queue = engine.queue();
        // While it turns nobody needs to wake it.
        queue.armed_ns = 0;
        let next_ns = Engine::take_due(&mut queue, now_ns, &mut this.due);
        let wait_ns = next_ns.saturating_sub(now_ns);
        if !this.due.is_empty() || wait_ns < REST_NS {
            drop(queue);
            engine.fire(&mut this.due);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        queue.armed_ns = next_ns;
        match &mut queue.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        drop(queue);
        let rest = Duration::from_nanos(wait_ns - REST_EARLY_NS).min(DEADLOCK);
        this.sleep
            .as_mut()
            .reset(tokio::time::Instant::now() + rest);
        if this.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// One tokio millisecond, the grain of its timers, is one microsecond of network time.
const TOKIO_NS_PER_NET_NS: u64 = 1000;

struct Driver {
    engine: Arc<Engine>,
    tokio_origin: tokio::time::Instant,
    net_origin_ns: u64,
    sleep: Pin<Box<tokio::time::Sleep>>,
    idle_since: Option<tokio::time::Instant>,
    due: Vec<Event>,
}

impl Driver {
    #[allow(clippy::disallowed_methods)] // the edge: tokio's paused clock drives network time
    fn tokio_now() -> tokio::time::Instant {
        tokio::time::Instant::now()
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let elapsed = Self::tokio_now().duration_since(this.tokio_origin);
            let now_ns =
                this.net_origin_ns + crate::link::nanoseconds(elapsed) / TOKIO_NS_PER_NET_NS;
            this.engine.virtual_now_ns.fetch_max(now_ns, Relaxed);
            let next_ns = Engine::take_due(&mut this.engine.queue(), now_ns, &mut this.due);
            if !this.due.is_empty() {
                this.idle_since = None;
                this.engine.fire(&mut this.due);
                continue;
            }
            let wake_at = if next_ns == u64::MAX {
                let since = *this.idle_since.get_or_insert_with(Self::tokio_now);
                if Self::tokio_now() >= since + DEADLOCK {
                    return Poll::Ready(());
                }
                since + DEADLOCK
            } else {
                this.idle_since = None;
                // Far deadlines are approached in steps that tokio's timer wheel can hold.
                let ahead_ns = (next_ns - now_ns).saturating_mul(TOKIO_NS_PER_NET_NS);
                Self::tokio_now() + Duration::from_nanos(ahead_ns).min(DEADLOCK)
            };
            {
                let mut queue = this.engine.queue();
                queue.armed_ns = next_ns;
                match &mut queue.driver {
                    Some(waker) => waker.clone_from(cx.waker()),
                    empty => *empty = Some(cx.waker().clone()),
                }
            }
            if this.sleep.deadline() != wake_at {
                this.sleep.as_mut().reset(wake_at);
            }
            if this.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// A histogram with bins of 1 µs.
#[derive(Debug)]
struct Lateness {
    bins: Vec<AtomicU64>,
    max_us: AtomicU64,
}

impl Default for Lateness {
    fn default() -> Self {
        Self {
            bins: (0..10_001).map(|_| AtomicU64::new(0)).collect(),
            max_us: AtomicU64::new(0),
        }
    }
}

impl Lateness {
    fn record(&self, late_ns: u64) {
        let late_us = late_ns / 1000;
        self.bins[(late_us as usize).min(self.bins.len() - 1)].fetch_add(1, Relaxed);
        self.max_us.fetch_max(late_us, Relaxed);
    }

    fn summary(&self) -> DeliveryError {
        let bins: Vec<u64> = self.bins.iter().map(|bin| bin.load(Relaxed)).collect();
        let packets = bins.iter().sum();
        let quantile = |percent: u64| {
            let mut seen = 0;
            bins.iter()
                .position(|&bin| {
                    seen += bin;
                    seen * 100 >= packets * percent
                })
                .unwrap_or(0) as u64
        };
        let (p50_us, p99_us) = (quantile(50), quantile(99));
        DeliveryError {
            packets,
            p50_us,
            p99_us,
            max_us: self.max_us.load(Relaxed),
        }
    }
}
