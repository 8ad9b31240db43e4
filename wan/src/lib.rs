//! An emulated wide-area network under quinn's [`Runtime`](quinn::Runtime) and
//! [`AsyncUdpSocket`](quinn::AsyncUdpSocket): places, directed links between them, and hosts that
//! are [`Host`](tradewind_host::Host)s, so that relays, the controller and clients run on it
//! unchanged. No kernel sockets, no privileges.
//!
//! ```
//! use std::{net::SocketAddr, time::Duration};
//! use tradewind_host::Host;
//! use tradewind_wan::{HostClock, run_virtual};
//!
//! let measured = run_virtual(7, |wan| async move {
//!     // Half the round trips of a matrix; a missing cell is no link.
//!     let names = ["perth".to_owned(), "vladivostok".to_owned()];
//!     let places = wan.add_matrix(&names, |_, _| Some(Duration::from_micros(249_000)));
//!     let perth = wan.add_host(places[0], HostClock::EXACT);
//!     let vladivostok = wan.add_host(places[1], HostClock::new(-3_000_000, 40.0));
//!
//!     let socket = vladivostok.bind_udp(SocketAddr::new(vladivostok.ip(), 0)).unwrap();
//!     let transmit = quinn::udp::Transmit {
//!         destination: socket.local_addr().unwrap(),
//!         ecn: None,
//!         contents: b"hello",
//!         segment_size: None,
//!         src_ip: None,
//!     };
//!     perth.bind_udp(SocketAddr::new(perth.ip(), 0)).unwrap().try_send(&transmit).unwrap();
//!     let (mut buffer, mut meta) = ([0; 1500], [quinn::udp::RecvMeta::default()]);
//!     std::future::poll_fn(|cx| {
//!         socket.poll_recv(cx, &mut [std::io::IoSliceMut::new(&mut buffer)], &mut meta)
//!     })
//!     .await
//!     .unwrap();
//!     wan.network_time()
//! });
//! assert_eq!(measured, Duration::from_micros(249_000));
//! ```
//!
//! # Links
//! Each ordered pair of places has a link or none; places have a perfect link to themselves, so
//! hosts at one place are 0 ms apart. A [`LinkSpec`] says what a link does: delay, jitter, random
//! and burst loss, duplicates, reordering, bandwidth with a finite queue, MTU. It can be replaced at any time
//! ([`Wan::set_link`]), and the link be cut and healed ([`Wan::cut`], [`Wan::heal`]). Packets
//! already under way when a link is changed or cut still arrive. Every packet that vanishes is
//! counted with its reason ([`LinkStats`]). The bandwidth of a link is shared by all hosts of the
//! two places.
//!
//! # Hosts
//! A host can be killed and revived ([`WanHost::kill`]), get no processor for a while
//! ([`WanHost::stall`]), sleep ([`WanHost::sleep_for`]), and move to another place or network, with
//! new addresses under living sockets ([`Wan::move_host`]).
//!
//! # Clocks
//! Every host has its own monotonic and wall clock ([`HostClock`]); timers run by it.
//! [`Wan::network_time`] is the truth, for those who watch from outside.
//!
//! # Virtual time
//! [`run_virtual`] runs everything on one thread over tokio's paused clock: when no task can go
//! on, time jumps to the next delivery or timer. tokio's timers tick in milliseconds, so its clock
//! runs 1,000 times faster than network time, and one tick is one microsecond of network time:
//! everything happens on whole microseconds (rounded up). From one seed every run is identical, as
//! [`Wan::trace_digest`] shows, if the code on the hosts keeps to its `Host`: no other clocks,
//! timers or randomness, and no `tokio::select!` without `biased`, which draws its order from an
//! unseeded generator. Kernel sockets and foreign threads are outside of virtual time, which does
//! not wait for them (but for `tokio::task::spawn_blocking` it does).
//!
//! # Real time
//! [`Wan::real_time`] has one thread that places packets into inboxes and completes timers when
//! they are due: never early, and typically some microseconds late ([`Wan::delivery_error`]).
//! [`Wan::real_time_on_one_thread`] does without it, and without waking anybody, at the price of
//! one processor: for whole networks on a machine that has other things to do as well.

mod clock;
mod engine;
mod host;
mod link;
mod socket;
mod timer;
mod topology;

use std::{
    future::Future,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

pub use clock::HostClock;
pub use engine::{DeliveryError, Mode};
pub use host::WanHost;
pub use link::{Bandwidth, BurstLoss, Jitter, LinkSpec, LinkStats, Overtaking};
pub use topology::PlaceId;

use engine::Engine;
use host::HostNode;
use link::{Link, nanoseconds};
use topology::Topology;

/// The wall clock of virtual time starts at 2026-01-01T00:00:00Z.
const VIRTUAL_WALL_START: Duration = Duration::from_secs(1_767_225_600);

/// An emulated wide-area network. Clones are the same network.
#[derive(Debug, Clone)]
pub struct Wan {
    core: Arc<Core>,
}

/// Builds a network in virtual time from `seed` and runs `world` on it to its end. See
/// [`Wan::run`].
///
/// # Panics
/// As [`Wan::run`].
pub fn run_virtual<F: Future>(seed: u64, world: impl FnOnce(Wan) -> F) -> F::Output {
    let wan = Wan::virtual_time(seed);
    wan.run(world(wan.clone()))
}

/// Builds a network in real time and runs `world` on it to its end. See [`Wan::run`].
///
/// # Panics
/// As [`Wan::run`].
pub fn run_real<F: Future>(seed: u64, world: impl FnOnce(Wan) -> F) -> F::Output {
    let wan = Wan::real_time(seed);
    wan.run(world(wan.clone()))
}

/// Making and running a network.
impl Wan {
    /// A network in virtual time: from the same seed, the same run. It only lives inside
    /// [`Wan::run`].
    #[must_use]
    pub fn virtual_time(seed: u64) -> Self {
        let base = SystemTime::UNIX_EPOCH + VIRTUAL_WALL_START;
        Self {
            core: Core::new(Mode::Virtual, seed, base),
        }
    }

    /// A network in real time, with a thread of its own. The seed decides losses, jitter and the
    /// hosts' random numbers. Hosts' tasks run on the tokio runtime from which they are spawned.
    ///
    /// # Panics
    /// If no thread can be started.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the edge: here network time meets the machine's
    pub fn real_time(seed: u64) -> Self {
        let core = Core::new(Mode::Real, seed, SystemTime::now());
        let engine = core.engine.clone();
        std::thread::Builder::new()
            .name("wan-timer".to_owned())
            .spawn(move || engine.run_thread())
            .expect("the system can start one more thread");
        Self { core }
    }

    /// A network in real time on the thread that calls [`Wan::run`], where all tasks run as well.
    /// Otherwise as [`Wan::real_time`]. It only lives inside [`Wan::run`], and keeps one processor
    /// busy: nothing waits there for a thread to be woken, which on machines that share their
    /// processors with others takes milliseconds.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the edge: here network time meets the machine's
    pub fn real_time_on_one_thread(seed: u64) -> Self {
        let core = Core::new(Mode::Real, seed, SystemTime::now());
        core.one_thread.store(true, Relaxed);
        Self { core }
    }

    /// Runs `world` to its end on a new tokio runtime: in virtual time one thread with paused
    /// clock, in real time two worker threads or this one alone. Tasks still running then are
    /// dropped.
    ///
    /// # Panics
    /// In virtual time, when every task waits and nothing is under way that could ever wake one;
    /// and when called from inside a tokio runtime.
    pub fn run<F: Future>(&self, world: F) -> F::Output {
        let one_thread = self.core.one_thread.load(Relaxed);
        let mut builder = match self.core.engine.mode {
            Mode::Real if one_thread => tokio::runtime::Builder::new_current_thread(),
            Mode::Virtual => {
                let mut builder = tokio::runtime::Builder::new_current_thread();
                builder.start_paused(true);
                builder
            }
            Mode::Real => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(2);
                builder
            }
        };
        if self.core.engine.mode == Mode::Real {
            builder.enable_io();
        }
        // In virtual time nothing comes from outside: asking the system whether something has, at
        // every step of the clock, would cost a tenth of the run.
        let runtime = builder
            .enable_time()
            .build()
            .expect("the system can start a tokio runtime");
        self.core.set_tokio(Some(runtime.handle().clone()));
        let output = runtime.block_on(async {
            if self.core.engine.mode == Mode::Real {
                if one_thread {
                    let driver = self.core.engine.drive_real();
                    tokio::runtime::Handle::current().spawn(driver);
                }
                return world.await;
            }
            let mut driver = tokio::runtime::Handle::current().spawn(self.core.engine.drive());
            let mut world = pin!(world);
            std::future::poll_fn(|cx| {
                if let Poll::Ready(output) = world.as_mut().poll(cx) {
                    return Poll::Ready(output);
                }
                if std::pin::Pin::new(&mut driver).poll(cx).is_ready() {
                    panic!("virtual time stands still: every task waits, and nothing is under way");
                }
                Poll::Pending
            })
            .await
        });
        self.core.set_tokio(None);
        output
    }

    /// Which clock network time follows.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.core.engine.mode
    }

    /// Time since the network was made.
    #[must_use]
    pub fn network_time(&self) -> Duration {
        Duration::from_nanos(self.core.engine.now_ns())
    }

    /// Completes when network time is `at`.
    pub async fn sleep_until(&self, at: Duration) {
        let deadline = self
            .core
            .instant_of(i64::try_from(at.as_nanos()).unwrap_or(i64::MAX));
        let observer = WanHost::new(self.core.clone(), self.core.observer.clone());
        let mut timer = tradewind_host::Host::runtime(&observer).new_timer(deadline);
        std::future::poll_fn(|cx| timer.as_mut().poll(cx)).await;
    }

    /// Completes after `duration` of network time.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.network_time() + duration).await;
    }

    /// Sets what a wall clock without offset shows at network time 0. At first that is the present
    /// in real time, and 2026-01-01T00:00:00Z in virtual time.
    pub fn set_wall_clock_start(&self, start: SystemTime) {
        *self
            .core
            .wall_base
            .lock()
            .expect("no code panics while it holds the wall clock") = start;
    }

    /// A digest of every packet so far: when, from where to where, how large, and what became of
    /// it. Equal digests are equal runs. Always the same in real time, where order is chance.
    #[must_use]
    pub fn trace_digest(&self) -> u64 {
        self.core.engine.digest()
    }

    /// How late packets were delivered so far, in real time; zeros in virtual time.
    #[must_use]
    pub fn delivery_error(&self) -> DeliveryError {
        self.core.engine.delivery_error()
    }
}

/// What all handles to one network share.
#[derive(Debug)]
struct Core {
    engine: Arc<Engine>,
    seed: u64,
    topology: RwLock<Topology>,
    wall_base: Mutex<SystemTime>,
    tokio: Mutex<Option<tokio::runtime::Handle>>,
    unknown_address: AtomicU64,
    /// Real time without a thread of its own.
    one_thread: AtomicBool,
    /// A host outside of the network whose clock is network time.
    observer: Arc<HostNode>,
}

impl Core {
    fn new(mode: Mode, seed: u64, wall_base: SystemTime) -> Arc<Self> {
        Arc::new(Self {
            engine: Engine::new(mode),
            seed,
            topology: RwLock::default(),
            wall_base: Mutex::new(wall_base),
            tokio: Mutex::new(tokio::runtime::Handle::try_current().ok()),
            unknown_address: AtomicU64::new(0),
            one_thread: AtomicBool::new(false),
            observer: Arc::new(HostNode::observer()),
        })
    }

    fn set_tokio(&self, handle: Option<tokio::runtime::Handle>) {
        *self
            .tokio
            .lock()
            .expect("no code panics while it holds the runtime") = handle;
    }

    /// The runtime tasks are spawned on.
    fn tokio(&self) -> tokio::runtime::Handle {
        tokio::runtime::Handle::try_current()
            .ok()
            .or_else(|| {
                self.tokio
                    .lock()
                    .expect("nobody panics while holding it")
                    .clone()
            })
            .expect("hosts spawn tasks inside Wan::run or another tokio runtime")
    }

    fn wall_base(&self) -> SystemTime {
        *self
            .wall_base
            .lock()
            .expect("no code panics while it holds the wall clock")
    }

    /// Where the clocks' 0 is among `Instant`s: so far on that no clock's offset leads before the
    /// first `Instant` the system knows.
    fn clock_base(&self) -> Instant {
        self.engine.epoch() + Duration::from_micros(clock::MAX_OFFSET_US as u64)
    }

    fn instant_of(&self, host_ns: i64) -> Instant {
        let by = Duration::from_nanos(host_ns.unsigned_abs());
        if host_ns < 0 {
            self.clock_base() - by
        } else {
            self.clock_base() + by
        }
    }

    fn host_ns_of(&self, instant: Instant) -> i64 {
        let base = self.clock_base();
        let ns = |by: Duration| i64::try_from(nanoseconds(by)).unwrap_or(i64::MAX);
        if instant >= base {
            ns(instant - base)
        } else {
            -ns(base - instant)
        }
    }

    /// The link and the host a packet to `destination` goes by; `None` if nobody has the address.
    fn route(&self, from: &HostNode, destination: IpAddr) -> Option<(Arc<Link>, Arc<HostNode>)> {
        self.topology
            .read()
            .expect("no code panics while it changes the map")
            .route(from, destination)
    }

    fn count_unknown_address(&self, packets: u64) {
        self.unknown_address.fetch_add(packets, Relaxed);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

/// A seed of its own for each thing that draws random numbers: SplitMix64 (Steele and others,
/// 2014) over what names it.
fn sub_seed(seed: u64, kind: u64, a: u64, b: u64) -> [u8; 32] {
    let mut state = seed;
    let mut next = |word: u64| {
        state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state = mixed ^ (mixed >> 31);
        state
    };
    for word in [kind, a, b] {
        next(word);
    }
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&next(0).to_le_bytes());
    }
    bytes
}
