//! Timers by a host's own clock.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Instant,
};

use quinn::AsyncTimer;

use crate::{
    Core,
    engine::{Engine, What},
    host::HostNode,
};

/// A timer that quinn, or anything else on a host, holds.
#[derive(Debug)]
pub(crate) struct WanTimer {
    core: Arc<Core>,
    shared: Arc<TimerShared>,
}

/// What the queue knows of a timer.
///
/// A reset to a later time leaves the queue alone: the old entry comes up early, sees that, and
/// queues itself again. QUIC moves its timers with nearly every packet, nearly always later.
#[derive(Debug)]
pub(crate) struct TimerShared {
    node: Arc<HostNode>,
    state: Mutex<TimerState>,
}

#[derive(Debug)]
struct TimerState {
    /// By the host's clock.
    deadline_host_ns: i64,
    /// Network time of the entry in the queue that counts; others are stale.
    queued_ns: Option<u64>,
    waker: Option<Waker>,
}

impl WanTimer {
    pub(crate) fn new(core: Arc<Core>, node: Arc<HostNode>, deadline: Instant) -> Self {
        let state = TimerState {
            deadline_host_ns: core.host_ns_of(deadline),
            queued_ns: None,
            waker: None,
        };
        Self {
            core,
            shared: Arc::new(TimerShared {
                node,
                state: Mutex::new(state),
            }),
        }
    }
}

impl AsyncTimer for WanTimer {
    fn reset(self: Pin<&mut Self>, deadline: Instant) {
        self.shared.state().deadline_host_ns = self.core.host_ns_of(deadline);
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let engine = &self.core.engine;
        let mut state = self.shared.state();
        if self.shared.is_due(&state, engine) {
            return Poll::Ready(());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        self.shared.enqueue(&mut state, engine);
        Poll::Pending
    }
}

impl Drop for WanTimer {
    fn drop(&mut self) {
        let waker = self.shared.state().waker.take();
        drop(waker);
    }
}

impl TimerShared {
    fn state(&self) -> MutexGuard<'_, TimerState> {
        self.state
            .lock()
            .expect("no code panics while it holds a timer")
    }

    pub(crate) fn is_of(&self, node: &Arc<HostNode>) -> bool {
        Arc::ptr_eq(&self.node, node)
    }

    fn is_due(&self, state: &TimerState, engine: &Engine) -> bool {
        let now_ns = engine.now_ns();
        self.node.clock().host_ns(now_ns) >= state.deadline_host_ns
            && self.node.stalled_until(now_ns).is_none()
    }

    /// The queue's entry of `at_ns` has come up.
    pub(crate) fn fire(self: &Arc<Self>, at_ns: u64, engine: &Engine) {
        let mut state = self.state();
        if state.queued_ns != Some(at_ns) {
            return;
        }
        state.queued_ns = None;
        if !self.is_due(&state, engine) {
            if state.waker.is_some() {
                self.enqueue(&mut state, engine);
            }
            return;
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// The host's clock runs differently from now on.
    pub(crate) fn rearm(self: &Arc<Self>, engine: &Engine) {
        let mut state = self.state();
        if state.waker.is_some() {
            state.queued_ns = None;
            self.enqueue(&mut state, engine);
        }
    }

    /// Sees to it that the queue has an entry no later than the deadline.
    fn enqueue(self: &Arc<Self>, state: &mut TimerState, engine: &Engine) {
        let due_ns = self.node.clock().net_ns(state.deadline_host_ns);
        let stalled_ns = self.node.stalled_until(engine.now_ns()).unwrap_or(0);
        let at_ns = engine.round_up(due_ns.max(stalled_ns));
        if state.queued_ns.is_none_or(|queued_ns| at_ns < queued_ns) {
            state.queued_ns = Some(at_ns);
            engine.schedule(at_ns, What::Timer(self.clone()));
        }
    }
}
