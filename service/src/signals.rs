//! What the signals mean: first SIGTERM or SIGINT begins the drain, the second stops now, SIGHUP
//! reloads the configuration.

use std::io;

use tokio::sync::watch;

/// Follows the process's signals. Clones follow them too.
#[derive(Debug, Clone)]
pub struct Signals {
    counts: watch::Receiver<Counts>,
    reloads_seen: u64,
}

/// Gives signals by hand: to end a service from within its own process, and in tests.
#[derive(Debug, Clone)]
pub struct SignalSender {
    counts: watch::Sender<Counts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    stops: u64,
    reloads: u64,
}

impl Signals {
    /// Begins to follow the process's signals; from now on SIGTERM does not end it by itself. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses the signal handlers.
    #[cfg(unix)]
    pub fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (sender, signals) = Self::manual();
        let follow = async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => sender.stop(),
                    _ = interrupt.recv() => sender.stop(),
                    _ = hangup.recv() => sender.reload(),
                }
            }
        };
        #[allow(clippy::disallowed_methods)] // signals exist in the real process only
        tokio::spawn(follow);
        Ok(signals)
    }

    /// Begins to follow Ctrl-C. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// None on this system.
    #[cfg(not(unix))]
    pub fn new() -> io::Result<Self> {
        let (sender, signals) = Self::manual();
        let follow = async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                sender.stop();
            }
        };
        #[allow(clippy::disallowed_methods)] // signals exist in the real process only
        tokio::spawn(follow);
        Ok(signals)
    }

    /// Signals that come from the returned sender only.
    #[must_use]
    pub fn manual() -> (SignalSender, Self) {
        let (sender, receiver) = watch::channel(Counts::default());
        let signals = Self {
            counts: receiver,
            reloads_seen: 0,
        };
        (SignalSender { counts: sender }, signals)
    }

    /// Completes once the drain should begin (and at once when it should have already).
    pub async fn drain(&self) {
        self.stops(1).await;
    }

    /// Completes once the process should stop without waiting for the drain.
    pub async fn now(&self) {
        self.stops(2).await;
    }

    /// Whether the drain should have begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.counts.borrow().stops >= 1
    }

    /// Completes at the next request to read the configuration again. Several that came meanwhile
    /// count as one.
    pub async fn reload(&mut self) {
        let seen = self.reloads_seen;
        match self.counts.wait_for(|counts| counts.reloads > seen).await {
            Ok(counts) => self.reloads_seen = counts.reloads,
            Err(_) => std::future::pending().await,
        }
    }

    async fn stops(&self, count: u64) {
        let mut counts = self.counts.clone();
        // The value's guard must not be held over the next await: this future is to be `Send`.
        let nobody_left = counts
            .wait_for(|counts| counts.stops >= count)
            .await
            .is_err();
        if nobody_left {
            std::future::pending::<()>().await;
        }
    }
}

impl SignalSender {
    /// As SIGTERM would.
    pub fn stop(&self) {
        self.counts.send_modify(|counts| counts.stops += 1);
    }

    /// As SIGHUP would.
    pub fn reload(&self) {
        self.counts.send_modify(|counts| counts.reloads += 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(future).as_mut().poll(&mut context) == Poll::Ready(())
    }

    #[test]
    fn the_first_stop_drains_and_the_second_stops_now() {
        let (sender, signals) = Signals::manual();
        assert!(!is_ready(signals.drain()) && !signals.is_draining());
        sender.stop();
        assert!(is_ready(signals.drain()) && signals.is_draining());
        assert!(!is_ready(signals.now()));
        sender.stop();
        assert!(is_ready(signals.now()));
        // Late followers are told as well.
        assert!(is_ready(signals.clone().now()));
    }

    #[test]
    fn each_request_to_reload_is_answered_once() {
        let (sender, mut signals) = Signals::manual();
        assert!(!is_ready(signals.reload()));
        sender.reload();
        sender.reload();
        assert!(is_ready(signals.reload()));
        assert!(!is_ready(signals.reload()));
        assert!(!is_ready(signals.drain()));
    }
}
