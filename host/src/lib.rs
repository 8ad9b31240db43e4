//! What a node is given by the world it runs in: a clock, timers, tasks, UDP sockets and random
//! numbers.
//!
//! Nothing in Tradewind's libraries asks the operating system for the time, a socket or a random
//! number by itself: each node is handed a [`Host`]. [`OsHost`] is the real one; `tradewind-wan`
//! has one on an emulated wide-area network, in real and in virtual time. That is what lets whole
//! networks be tested deterministically from a seed.

mod os;

use std::{
    fmt::Debug,
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

pub use os::{OsHost, probe_receive_buffer};
pub use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};

/// The generator every node draws from: seeded, so that a run can be replayed. Not for keys: those
/// come from the crypto provider.
pub type Rng = rand_pcg::Pcg64;

/// The world as one node sees it.
///
/// The monotonic clock and the wall clock of different hosts need not agree: each may be off by an
/// offset and run fast or slow. Nothing may lean on synchronised time.
pub trait Host: Debug + Send + Sync + 'static {
    /// Timers, tasks and the monotonic clock, in the form quinn wants them.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// The wall clock (for token and certificate lifetimes; never for measuring).
    fn wall_clock(&self) -> SystemTime;

    /// Binds a UDP socket. Port 0 asks for any free port.
    ///
    /// # Errors
    /// When the address is in use or is not one of this host's.
    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// A fresh seed from this host's source of randomness: different on every call, and, on a
    /// seeded host, the same sequence in every run.
    fn seed(&self) -> [u8; 32];

    /// How long a write to this host's disk takes besides what it takes really: on emulated hosts
    /// with a slow disk. What is written is there after so long; whoever must not go on before that
    /// waits.
    fn disk_wait(&self) -> Duration {
        Duration::ZERO
    }
}

/// Conveniences that every [`Host`] has.
impl dyn Host {
    /// The monotonic clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.runtime().now()
    }

    /// Runs `future` in the background until it ends.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime().spawn(Box::pin(future));
    }

    /// Completes when `deadline` has come by this host's monotonic clock.
    pub async fn sleep_until(&self, deadline: Instant) {
        let mut timer = self.runtime().new_timer(deadline);
        std::future::poll_fn(|cx| timer.as_mut().poll(cx)).await;
    }

    /// Completes after `duration`.
    pub async fn sleep(&self, duration: Duration) {
        self.sleep_until(self.now() + duration).await;
    }

    /// Runs `future` for at most `duration`.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is over first; the future is dropped then.
    pub async fn timeout<T>(
        &self,
        duration: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let mut future = std::pin::pin!(future);
        let mut timer = self.runtime().new_timer(self.now() + duration);
        std::future::poll_fn(|cx| {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                return std::task::Poll::Ready(Ok(value));
            }
            timer.as_mut().poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }

    /// A new generator of random numbers, seeded by [`Host::seed`].
    #[must_use]
    pub fn rng(&self) -> Rng {
        use rand::SeedableRng;
        Rng::from_seed(self.seed())
    }

    /// A quinn endpoint on a socket of this host, its random numbers seeded by it.
    ///
    /// # Errors
    /// As [`Host::bind_udp`].
    pub fn quic_endpoint(
        &self,
        address: SocketAddr,
        server: Option<quinn::ServerConfig>,
    ) -> io::Result<quinn::Endpoint> {
        let mut config = quinn::EndpointConfig::default();
        config.rng_seed(Some(self.seed()));
        quinn::Endpoint::new_with_abstract_socket(
            config,
            server,
            self.bind_udp(address)?,
            self.runtime(),
        )
    }
}

/// The time given to [`timeout`](trait.Host.html) was over before the future was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl std::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no answer in time")
    }
}

impl std::error::Error for Elapsed {}
