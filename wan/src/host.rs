//! Hosts: clocks, tasks and ports of one machine on the network.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};
use rand::{Rng as _, SeedableRng};
use tokio::task::AbortHandle;
use tradewind_host::{Host, Rng};

use crate::{
    Core, HostClock, PlaceId,
    clock::ClockState,
    link::{Fate, nanoseconds},
    socket::{Datagram, Outline, SocketShared, WanSocket, wildcards},
    timer::WanTimer,
};

/// One machine on the network: a [`Host`] with addresses, a clock and sockets of its own.
///
/// Dropping the handle does not take the host off the network; [`WanHost::kill`] does.
pub struct WanHost {
    node: Arc<HostNode>,
    core: Arc<Core>,
    runtime: Arc<WanRuntime>,
}

impl WanHost {
    pub(crate) fn new(core: Arc<Core>, node: Arc<HostNode>) -> Self {
        let runtime = Arc::new(WanRuntime {
            core: core.clone(),
            node: node.clone(),
        });
        Self {
            node,
            core,
            runtime,
        }
    }

    pub(crate) fn node(&self) -> &Arc<HostNode> {
        &self.node
    }

    /// The host's IPv4 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.node.ip4().into()
    }

    /// The host's IPv6 address.
    #[must_use]
    pub fn ip6(&self) -> IpAddr {
        self.node.ip6().into()
    }

    /// Where the host is.
    #[must_use]
    pub fn place(&self) -> PlaceId {
        self.node.place()
    }

    /// Sets the one-way delay between this host and its place's exit, both ways, on top of the
    /// links' (0 at first): for hosts that are not next to it.
    pub fn set_access_delay(&self, one_way: Duration) {
        self.node.access_ns.store(nanoseconds(one_way), Relaxed);
    }

    /// Has the host's clock run `drift_ppm` too fast from now on; timers follow.
    pub fn set_drift(&self, drift_ppm: f64) {
        self.node
            .clock_state()
            .set_drift(drift_ppm, self.core.engine.now_ns());
        self.core.engine.rearm(&self.node);
    }

    /// Steps the wall clock by so many microseconds (negative: back), as when somebody sets it.
    /// The monotonic clock goes on undisturbed.
    pub fn step_wall_clock(&self, by_us: i64) {
        self.node.wall_step_us.fetch_add(by_us, Relaxed);
    }

    /// Gives the host's process no processor for `duration` from now on, as when the machine is
    /// overloaded or was suspended: what arrives and what timers are due waits until then, and
    /// comes all at once. Clocks go on. A longer stall that is under way stays.
    pub fn stall(&self, duration: Duration) {
        let until_ns = self
            .core
            .engine
            .now_ns()
            .saturating_add(nanoseconds(duration));
        self.node.stalled_until_ns.fetch_max(until_ns, Relaxed);
    }

    /// Puts the machine to sleep for `duration` from now on, as when a laptop is shut: nothing runs,
    /// what arrives is lost (counted as `dead_host`), and the monotonic clock stands still, while the
    /// wall clock is right again afterwards. A longer sleep that is under way stays.
    pub fn sleep_for(&self, duration: Duration) {
        let now_ns = self.core.engine.now_ns();
        let until_ns = now_ns.saturating_add(nanoseconds(duration));
        let slept_ns = self.node.asleep_until_ns.fetch_max(until_ns, Relaxed);
        self.node.stalled_until_ns.fetch_max(until_ns, Relaxed);
        self.node.clock_state().pause(now_ns, until_ns);
        let more_ns = until_ns.saturating_sub(slept_ns.max(now_ns));
        self.step_wall_clock(i64::try_from(more_ns / 1000).unwrap_or(i64::MAX));
    }

    /// Has every write to this host's disk take `wait` from now on (see [`Host::disk_wait`]); 0 at
    /// first.
    pub fn set_disk_wait(&self, wait: Duration) {
        self.node.disk_wait_ns.store(nanoseconds(wait), Relaxed);
    }

    /// Puts the host behind a NAT, or a firewall, that forgets whom it has sent to: a packet is let in
    /// only from an address that one was sent to, from the same port, within `lifetime` before; others
    /// are lost (counted as `no_socket`). `None`, as at first: everything is let in.
    pub fn set_binding_lifetime(&self, lifetime: Option<Duration>) {
        let nat = lifetime.map(|lifetime| Nat {
            lifetime_ns: nanoseconds(lifetime),
            sent_ns: BTreeMap::new(),
        });
        *self.node.nat() = nat;
    }

    /// Kills the process on this host, as a power cut would: its tasks are aborted, its sockets
    /// never send or receive again, its ports are free, and packets that arrive are lost (counted
    /// as `dead_host`) until [`WanHost::revive`]. Timers it had armed may still complete for who
    /// holds them from outside.
    pub fn kill(&self) {
        self.node.alive.store(false, Relaxed);
        let sockets = std::mem::take(&mut self.node.ports().sockets);
        for socket in sockets.into_values() {
            socket.close();
        }
        let tasks = std::mem::take(&mut self.node.tasks().running);
        for task in tasks.into_values().flatten() {
            task.abort();
        }
    }

    /// Lets a killed host be used again: new sockets and tasks, as after a boot. Those from before
    /// stay dead.
    pub fn revive(&self) {
        self.node.alive.store(true, Relaxed);
    }

    /// Whether the host has not been killed, or has been revived.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.node.is_alive()
    }

    /// How many tasks run on the host.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.node.tasks().running.len()
    }
}

impl fmt::Debug for WanHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WanHost({})", self.node.ip4())
    }
}

impl Host for WanHost {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.runtime.clone()
    }

    fn wall_clock(&self) -> SystemTime {
        let host_ns = self.node.clock().host_ns(self.core.engine.now_ns());
        let step_ns = self.node.wall_step_us.load(Relaxed).saturating_mul(1000);
        let elapsed_ns = host_ns.saturating_add(step_ns);
        let by = Duration::from_nanos(elapsed_ns.unsigned_abs());
        let base = self.core.wall_base();
        if elapsed_ns < 0 { base - by } else { base + by }
    }

    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        if !self.node.is_alive() {
            return Err(io::Error::new(
                io::ErrorKind::NetworkDown,
                format!(
                    "cannot bind {address}: host {} has been killed",
                    self.node.ip4()
                ),
            ));
        }
        let shared = self.node.bind(address)?;
        Ok(Arc::new(WanSocket::new(
            self.core.clone(),
            self.node.clone(),
            shared,
        )))
    }

    fn seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.node
            .rng
            .lock()
            .expect("no code panics while it holds a generator")
            .fill_bytes(&mut seed);
        seed
    }

    fn disk_wait(&self) -> Duration {
        Duration::from_nanos(self.node.disk_wait_ns.load(Relaxed))
    }
}

/// What the network itself knows of a host.
pub(crate) struct HostNode {
    pub(crate) index: u32,
    place: AtomicU32,
    /// What its addresses end in.
    number: AtomicU32,
    access_ns: AtomicU64,
    clock: Mutex<ClockState>,
    wall_step_us: AtomicI64,
    /// Network time until which its process gets no processor.
    stalled_until_ns: AtomicU64,
    /// Network time until which it hears nothing, either.
    asleep_until_ns: AtomicU64,
    disk_wait_ns: AtomicU64,
    rng: Mutex<Rng>,
    alive: AtomicBool,
    nat: Mutex<Option<Nat>>,
    ports: Mutex<Ports>,
    tasks: Mutex<Tasks>,
}

/// Remembers to whom packets were sent.
struct Nat {
    lifetime_ns: u64,
    /// By own port and peer: when the last one was.
    sent_ns: BTreeMap<(u16, SocketAddr), u64>,
}

#[derive(Default)]
struct Ports {
    /// By port and bound address, which may be unspecified.
    sockets: BTreeMap<(u16, IpAddr), Arc<SocketShared>>,
    last_given: u16,
}

#[derive(Default)]
struct Tasks {
    next_id: u64,
    /// `None` while a task is being started.
    running: BTreeMap<u64, Option<AbortHandle>>,
}

/// Ports given to who asks for any (RFC 6335, section 6).
const FIRST_DYNAMIC_PORT: u16 = 49_152;

impl HostNode {
    /// `number` is what its addresses end in.
    pub(crate) fn new(
        index: u32,
        number: u32,
        place: PlaceId,
        clock: HostClock,
        seed: [u8; 32],
    ) -> Self {
        Self {
            index,
            place: AtomicU32::new(place.0),
            number: AtomicU32::new(number),
            access_ns: AtomicU64::new(0),
            clock: Mutex::new(ClockState::new(clock)),
            wall_step_us: AtomicI64::new(0),
            stalled_until_ns: AtomicU64::new(0),
            asleep_until_ns: AtomicU64::new(0),
            disk_wait_ns: AtomicU64::new(0),
            rng: Mutex::new(Rng::from_seed(seed)),
            alive: AtomicBool::new(true),
            nat: Mutex::default(),
            ports: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// A host at no place that only lends its exact clock.
    pub(crate) fn observer() -> Self {
        let nobody = u32::MAX;
        Self::new(nobody, 0, PlaceId::NOWHERE, HostClock::EXACT, [0; 32])
    }

    pub(crate) fn place(&self) -> PlaceId {
        PlaceId(self.place.load(Relaxed))
    }

    fn ip4(&self) -> Ipv4Addr {
        let number = self.number.load(Relaxed) & 0xff_ffff;
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() | number)
    }

    fn ip6(&self) -> Ipv6Addr {
        let number = self.number.load(Relaxed);
        Ipv6Addr::from_bits((0xfd00_u128 << 112) + u128::from(number))
    }

    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.ip4().into(), self.ip6().into()]
    }

    /// See [`Wan::move_host`](crate::Wan::move_host).
    pub(crate) fn moved(&self, place: PlaceId, number: u32) {
        self.place.store(place.0, Relaxed);
        self.number.store(number, Relaxed);
    }

    pub(crate) fn owns(&self, ip: IpAddr) -> bool {
        self.addresses().contains(&ip)
    }

    /// The own address of the same family as `peer`.
    pub(crate) fn address_like(&self, peer: IpAddr) -> IpAddr {
        match peer {
            IpAddr::V4(_) => self.ip4().into(),
            IpAddr::V6(_) => self.ip6().into(),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Relaxed)
    }

    /// Until when its process gets no processor, if it gets none at `now_ns`.
    pub(crate) fn stalled_until(&self, now_ns: u64) -> Option<u64> {
        let until_ns = self.stalled_until_ns.load(Relaxed);
        (until_ns > now_ns).then_some(until_ns)
    }

    /// Whether it hears nothing at `now_ns`.
    pub(crate) fn is_asleep(&self, now_ns: u64) -> bool {
        self.asleep_until_ns.load(Relaxed) > now_ns
    }

    pub(crate) fn access_ns(&self) -> u64 {
        self.access_ns.load(Relaxed)
    }

    pub(crate) fn clock(&self) -> ClockState {
        *self.clock_state()
    }

    fn clock_state(&self) -> MutexGuard<'_, ClockState> {
        self.clock
            .lock()
            .expect("no code panics while it holds a clock")
    }

    fn nat(&self) -> MutexGuard<'_, Option<Nat>> {
        self.nat
            .lock()
            .expect("no code panics while it holds the NAT")
    }

    /// A packet leaves the host.
    pub(crate) fn lets_out(&self, source: SocketAddr, to: SocketAddr, now_ns: u64) {
        if let Some(nat) = &mut *self.nat() {
            nat.sent_ns.insert((source.port(), to), now_ns);
        }
    }

    /// Whether a packet that arrives is let in.
    pub(crate) fn lets_in(&self, packet: &Outline, now_ns: u64) -> bool {
        self.nat().as_ref().is_none_or(|nat| {
            let binding = (packet.destination.port(), packet.source);
            let sent_ns = nat.sent_ns.get(&binding);
            sent_ns.is_some_and(|sent_ns| now_ns.saturating_sub(*sent_ns) < nat.lifetime_ns)
        })
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports
            .lock()
            .expect("no code panics while it holds the ports")
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks
            .lock()
            .expect("no code panics while it holds the tasks")
    }

    /// A packet has arrived. `fate` is told what became of it before anyone can read it: who has
    /// read a packet finds it counted.
    pub(crate) fn deliver(&self, datagram: Datagram, fate: impl FnOnce(Fate)) {
        if !self.is_alive() {
            return fate(Fate::DeadHost);
        }
        let (ip, port) = (datagram.destination.ip(), datagram.destination.port());
        if !self.owns(ip) {
            return fate(Fate::NoSocket);
        }
        let socket = {
            let ports = self.ports();
            std::iter::once(&ip)
                .chain(wildcards(ip))
                .find_map(|&bound| ports.sockets.get(&(port, bound)).cloned())
        };
        match socket {
            Some(socket) => socket.deliver(datagram, fate),
            None => fate(Fate::NoSocket),
        }
    }

    fn bind(&self, address: SocketAddr) -> io::Result<Arc<SocketShared>> {
        let ip = address.ip();
        if !ip.is_unspecified() && !self.owns(ip) {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!(
                    "cannot bind {address}: host {} has no such address",
                    self.ip4()
                ),
            ));
        }
        let mut ports = self.ports();
        let port = match address.port() {
            0 => ports.any_free(ip).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("cannot bind {address}: all ports are in use"),
                )
            })?,
            port if ports.is_busy(ip, port) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("cannot bind {address}: the port is in use; choose another, or 0"),
                ));
            }
            port => port,
        };
        let shared = Arc::new(SocketShared::new(SocketAddr::new(ip, port)));
        ports.sockets.insert((port, ip), shared.clone());
        Ok(shared)
    }

    /// A socket is gone; its port is free, unless another has it since.
    pub(crate) fn release(&self, local: SocketAddr, shared: &Arc<SocketShared>) {
        let key = (local.port(), local.ip());
        let mut ports = self.ports();
        if ports
            .sockets
            .get(&key)
            .is_some_and(|socket| Arc::ptr_eq(socket, shared))
        {
            ports.sockets.remove(&key);
        }
    }
}

impl fmt::Debug for HostNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostNode({})", self.ip4())
    }
}

impl Ports {
    /// Whether a socket there is already would share packets with one bound to `ip`. An
    /// unspecified IPv6 address is dual-stack, as on Linux.
    fn is_busy(&self, ip: IpAddr, port: u16) -> bool {
        let lowest = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let highest = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));
        let mut bound = self
            .sockets
            .range((port, lowest)..=(port, highest))
            .map(|(key, _)| key.1);
        let takes = |wild: IpAddr, ip: IpAddr| wildcards(ip).contains(&wild);
        bound.any(|other| other == ip || takes(other, ip) || takes(ip, other))
    }

    fn any_free(&mut self, ip: IpAddr) -> Option<u16> {
        let dynamic = u16::MAX - FIRST_DYNAMIC_PORT + 1;
        let first = self.last_given.wrapping_add(1).max(FIRST_DYNAMIC_PORT);
        let free = (0..dynamic)
            .map(|step| FIRST_DYNAMIC_PORT + (first - FIRST_DYNAMIC_PORT + step) % dynamic)
            .find(|&port| !self.is_busy(ip, port))?;
        self.last_given = free;
        Some(free)
    }
}

/// A host's clock, timers and tasks as quinn wants them.
#[derive(Debug)]
struct WanRuntime {
    core: Arc<Core>,
    node: Arc<HostNode>,
}

impl Runtime for WanRuntime {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(WanTimer::new(
            self.core.clone(),
            self.node.clone(),
            deadline,
        ))
    }

    /// Starts a task on the tokio runtime of the caller, or else on the network's. On a killed
    /// host nothing starts.
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if !self.node.is_alive() {
            return;
        }
        let id = {
            let mut tasks = self.node.tasks();
            tasks.next_id += 1;
            let id = tasks.next_id;
            tasks.running.insert(id, None);
            id
        };
        let ended = TaskEnd {
            node: self.node.clone(),
            id,
        };
        let task = self.core.tokio().spawn(async move {
            let _ended = ended;
            future.await;
        });
        match self.node.tasks().running.get_mut(&id) {
            Some(entry) => *entry = Some(task.abort_handle()),
            // It has ended already, or the host has been killed meanwhile.
            None => task.abort(),
        }
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a host on an emulated network has no kernel sockets; use Host::bind_udp",
        ))
    }

    fn now(&self) -> Instant {
        self.core
            .instant_of(self.node.clock().host_ns(self.core.engine.now_ns()))
    }
}

/// Takes a task off its host's list when it ends, however it ends.
struct TaskEnd {
    node: Arc<HostNode>,
    id: u64,
}

impl Drop for TaskEnd {
    fn drop(&mut self) {
        let entry = self.node.tasks().running.remove(&self.id);
        drop(entry);
    }
}
