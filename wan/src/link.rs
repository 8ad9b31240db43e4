//! One directed way between two places, and what it does to packets.

use std::{
    sync::{
        Mutex,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng};
use rustc_hash::FxHashMap;
use tradewind_host::Rng;

/// What one directed link does to packets. [`LinkSpec::default`] is perfect: 0 delay, no loss, no
/// limit of bandwidth, an IP MTU of 1,500 bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkSpec {
    /// One-way delay.
    pub delay: Duration,
    /// Delay added at random to each packet.
    pub jitter: Jitter,
    /// Whether packets from one host to another stay in order (the default): a packet that drew
    /// less jitter than the one before it then waits for it.
    pub keep_order: bool,
    /// Probability that a packet is lost, each independently, 0 to 1.
    pub loss: f64,
    /// Loss in bursts, besides `loss`.
    pub burst: Option<BurstLoss>,
    /// Probability that a packet arrives twice, each independently, 0 to 1. The copy comes with
    /// jitter of its own, and as late as [`LinkSpec::overtaking`] has it.
    pub duplicate: f64,
    /// Packets that are held back so that others overtake them, whatever `keep_order` says.
    pub overtaking: Option<Overtaking>,
    /// Bandwidth and the queue before it; `None` is unlimited.
    pub bandwidth: Option<Bandwidth>,
    /// Largest IP packet in bytes, headers included (IPv4 and UDP: 28, IPv6 and UDP: 48). Larger
    /// ones vanish silently, as behind a router whose "packet too big" never arrives.
    pub mtu: usize,
}

impl Default for LinkSpec {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Jitter::None,
            keep_order: true,
            loss: 0.0,
            burst: None,
            duplicate: 0.0,
            overtaking: None,
            bandwidth: None,
            mtu: 1500,
        }
    }
}

impl LinkSpec {
    /// A link that only delays.
    #[must_use]
    pub fn with_delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }
}

/// Delay added at random to each packet; never negative.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Jitter {
    /// None.
    #[default]
    None,
    /// Evenly between 0 and `max`.
    Uniform {
        /// The most that is added.
        max: Duration,
    },
    /// Normally distributed, truncated to 0 … `mean` + 4 × `deviation`.
    Normal {
        /// What is added on average (before truncation).
        mean: Duration,
        /// Standard deviation.
        deviation: Duration,
    },
}

/// Loss in bursts after Gilbert (1960) and Elliott (1963): a chain of a good and a bad state that
/// takes one step per packet, and loses packets in the bad one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BurstLoss {
    /// Probability per packet to go from good to bad, 0 to 1.
    pub enter: f64,
    /// Probability per packet to go from bad to good, 0 to 1; bursts last 1/`leave` packets on
    /// average.
    pub leave: f64,
    /// Probability that a packet is lost in the bad state, 0 to 1.
    pub loss: f64,
}

/// Reordering: some packets take longer than the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overtaking {
    /// Probability that a packet is held back, each independently, 0 to 1.
    pub share: f64,
    /// It comes evenly up to so much later.
    pub by: Duration,
}

/// Bandwidth of a link and the drop-tail queue before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Bytes per second of IP packets, headers included. 0 counts as 1.
    pub bytes_per_second: u64,
    /// Bytes that may wait, the packet in transmission included. A packet that finds an empty
    /// queue is always taken.
    pub queue_bytes: u64,
}

/// What happened to packets on a directed link, in packets (a segmented transmit counts each of
/// its datagrams).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LinkStats {
    /// Handed to the link.
    pub sent: u64,
    /// Copies that [`LinkSpec::duplicate`] made of them: what becomes of these is counted besides.
    pub duplicated: u64,
    /// Packets and copies held back by [`LinkSpec::overtaking`].
    pub held_back: u64,
    /// Placed into the destination socket's inbox.
    pub delivered: u64,
    /// Payload bytes placed there.
    pub delivered_bytes: u64,
    /// Lost by [`LinkSpec::loss`].
    pub lost_random: u64,
    /// Lost by [`LinkSpec::burst`].
    pub lost_burst: u64,
    /// Found the queue of [`LinkSpec::bandwidth`] full.
    pub queue_full: u64,
    /// Larger than [`LinkSpec::mtu`].
    pub too_large: u64,
    /// Sent while the link was cut.
    pub cut: u64,
    /// Sent though there is no such link (an unknown cell of the matrix).
    pub no_link: u64,
    /// Sent by a killed host's socket, or arrived at a host that was dead or asleep.
    pub dead_host: u64,
    /// Arrived at a port where nobody listens, or at an address that its host no longer has.
    pub no_socket: u64,
    /// Arrived at a socket whose inbox was full.
    pub inbox_full: u64,
}

impl LinkStats {
    /// Packets that vanished, whatever the reason.
    #[must_use]
    pub fn vanished(&self) -> u64 {
        self.lost_random
            + self.lost_burst
            + self.queue_full
            + self.too_large
            + self.cut
            + self.no_link
            + self.dead_host
            + self.no_socket
            + self.inbox_full
    }

    /// Packets under way: neither delivered nor vanished yet.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        (self.sent + self.duplicated).saturating_sub(self.delivered + self.vanished())
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.duplicated += other.duplicated;
        self.held_back += other.held_back;
        self.delivered += other.delivered;
        self.delivered_bytes += other.delivered_bytes;
        self.lost_random += other.lost_random;
        self.lost_burst += other.lost_burst;
        self.queue_full += other.queue_full;
        self.too_large += other.too_large;
        self.cut += other.cut;
        self.no_link += other.no_link;
        self.dead_host += other.dead_host;
        self.no_socket += other.no_socket;
        self.inbox_full += other.inbox_full;
    }
}

/// What became of one packet. The discriminants index the counters and enter the trace digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Delivered,
    LostRandom,
    LostBurst,
    QueueFull,
    TooLarge,
    Cut,
    NoLink,
    DeadHost,
    NoSocket,
    InboxFull,
}

const FATES: usize = 10;

/// A directed link: its present behaviour, its state and its counters.
#[derive(Debug)]
pub(crate) struct Link {
    state: Mutex<LinkState>,
    sent: AtomicU64,
    duplicated: AtomicU64,
    held_back: AtomicU64,
    /// Packets in the engine's queue; changed upwards only under the lock of `state`.
    queued: AtomicU64,
    delivered_bytes: AtomicU64,
    fates: [AtomicU64; FATES],
}

#[derive(Debug)]
pub(crate) struct LinkState {
    /// `None`: there is no such link.
    pub(crate) spec: Option<LinkSpec>,
    pub(crate) cut: bool,
    rng: Rng,
    in_burst: bool,
    /// Network time at which the queue will be empty.
    busy_until_ns: u64,
    /// Latest delivery per pair of hosts (point look-ups only).
    last_delivery_ns: FxHashMap<(u32, u32), u64>,
}

/// One packet as a link sees it.
pub(crate) struct Offer {
    pub(crate) now_ns: u64,
    /// IP packet size, headers included.
    pub(crate) bytes: u64,
    /// Indices of the sending and receiving host.
    pub(crate) pair: (u32, u32),
    /// Access delay of both hosts.
    pub(crate) access_ns: u64,
}

/// When a packet arrives: network time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrivals {
    pub(crate) at_ns: u64,
    /// And once more.
    pub(crate) copy_ns: Option<u64>,
    /// How many of them are held back.
    pub(crate) held_back: u64,
}

impl Link {
    pub(crate) fn new(spec: Option<LinkSpec>, seed: [u8; 32]) -> Self {
        Self {
            state: Mutex::new(LinkState {
                spec,
                cut: false,
                rng: Rng::from_seed(seed),
                in_burst: false,
                busy_until_ns: 0,
                last_delivery_ns: FxHashMap::default(),
            }),
            sent: AtomicU64::new(0),
            duplicated: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            delivered_bytes: AtomicU64::new(0),
            fates: Default::default(),
        }
    }

    pub(crate) fn state(&self) -> std::sync::MutexGuard<'_, LinkState> {
        self.state
            .lock()
            .expect("no code panics while it holds a link")
    }

    pub(crate) fn count_sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_arrivals(&self, arrivals: &Arrivals) {
        let copies = u64::from(arrivals.copy_ns.is_some());
        self.duplicated.fetch_add(copies, Relaxed);
        self.held_back.fetch_add(arrivals.held_back, Relaxed);
    }

    pub(crate) fn count(&self, fate: Fate, payload_bytes: usize) {
        self.fates[fate as usize].fetch_add(1, Relaxed);
        if fate == Fate::Delivered {
            self.delivered_bytes
                .fetch_add(payload_bytes as u64, Relaxed);
        }
    }

    pub(crate) fn enters_queue(&self) {
        self.queued.fetch_add(1, Relaxed);
    }

    /// After its delivery: the next packet may then be delivered by another thread.
    pub(crate) fn has_left_queue(&self) {
        self.queued.fetch_sub(1, Release);
    }

    pub(crate) fn queue_is_empty(&self) -> bool {
        self.queued.load(Acquire) == 0
    }

    pub(crate) fn stats(&self) -> LinkStats {
        let fate = |fate: Fate| self.fates[fate as usize].load(Relaxed);
        LinkStats {
            sent: self.sent.load(Relaxed),
            duplicated: self.duplicated.load(Relaxed),
            held_back: self.held_back.load(Relaxed),
            delivered: fate(Fate::Delivered),
            delivered_bytes: self.delivered_bytes.load(Relaxed),
            lost_random: fate(Fate::LostRandom),
            lost_burst: fate(Fate::LostBurst),
            queue_full: fate(Fate::QueueFull),
            too_large: fate(Fate::TooLarge),
            cut: fate(Fate::Cut),
            no_link: fate(Fate::NoLink),
            dead_host: fate(Fate::DeadHost),
            no_socket: fate(Fate::NoSocket),
            inbox_full: fate(Fate::InboxFull),
        }
    }
}

impl LinkState {
    /// Sends one packet over the link: when it arrives, or why it never does.
    pub(crate) fn admit(&mut self, offer: &Offer) -> Result<Arrivals, Fate> {
        let Some(spec) = &self.spec else {
            return Err(Fate::NoLink);
        };
        if offer.bytes > spec.mtu as u64 {
            return Err(Fate::TooLarge);
        }
        if self.cut {
            return Err(Fate::Cut);
        }
        let departure_ns = match spec.bandwidth {
            None => offer.now_ns,
            Some(Bandwidth {
                bytes_per_second,
                queue_bytes,
            }) => {
                let rate = u128::from(bytes_per_second.max(1));
                let backlog_ns = self.busy_until_ns.saturating_sub(offer.now_ns);
                let backlog_bytes = u128::from(backlog_ns) * rate / 1_000_000_000;
                if backlog_ns > 0
                    && backlog_bytes + u128::from(offer.bytes) > u128::from(queue_bytes)
                {
                    return Err(Fate::QueueFull);
                }
                let wire_ns = (u128::from(offer.bytes) * 1_000_000_000).div_ceil(rate) as u64;
                self.busy_until_ns = self.busy_until_ns.max(offer.now_ns).saturating_add(wire_ns);
                self.busy_until_ns
            }
        };
        if spec.loss > 0.0 && unit(&mut self.rng) < spec.loss {
            return Err(Fate::LostRandom);
        }
        if let Some(burst) = spec.burst {
            let flip = if self.in_burst {
                burst.leave
            } else {
                burst.enter
            };
            if unit(&mut self.rng) < flip {
                self.in_burst = !self.in_burst;
            }
            if self.in_burst && unit(&mut self.rng) < burst.loss {
                return Err(Fate::LostBurst);
            }
        }
        let mut arrivals = Arrivals {
            at_ns: 0,
            copy_ns: None,
            held_back: 0,
        };
        let last_ns = self.last_delivery_ns.entry(offer.pair).or_default();
        let rng = &mut self.rng;
        let mut arrival = |rng: &mut Rng| {
            let arrival_ns = departure_ns
                .saturating_add(nanoseconds(spec.delay))
                .saturating_add(draw(spec.jitter, rng))
                .saturating_add(offer.access_ns);
            if let Some(Overtaking { share, by }) = spec.overtaking
                && unit(rng) < share
            {
                arrivals.held_back += 1;
                let max = by;
                return arrival_ns.saturating_add(draw(Jitter::Uniform { max }, rng));
            }
            if !spec.keep_order {
                return arrival_ns;
            }
            *last_ns = arrival_ns.max(*last_ns);
            *last_ns
        };
        let at_ns = arrival(rng);
        let twice = spec.duplicate > 0.0 && unit(rng) < spec.duplicate;
        let copy_ns = twice.then(|| arrival(rng));
        (arrivals.at_ns, arrivals.copy_ns) = (at_ns, copy_ns);
        Ok(arrivals)
    }
}

/// Nanoseconds of a duration; more than 584 years are as many.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Evenly in [0, 1).
fn unit(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn draw(jitter: Jitter, rng: &mut Rng) -> u64 {
    match jitter {
        Jitter::None => 0,
        Jitter::Uniform { max } => (unit(rng) * nanoseconds(max) as f64) as u64,
        Jitter::Normal { mean, deviation } => {
            // Irwin-Hall: the sum of 12 even draws, less 6, is normal to 2 % out to 3 deviations,
            // and needs no libm, whose last bits differ between machines.
            let normal = (0..12).map(|_| unit(rng)).sum::<f64>() - 6.0;
            let (mean, deviation) = (nanoseconds(mean) as f64, nanoseconds(deviation) as f64);
            (mean + normal * deviation).clamp(0.0, mean + 4.0 * deviation) as u64
        }
    }
}
