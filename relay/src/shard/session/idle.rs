//! Sessions that carry nothing: they tell the edge that they are still there, and the edge tells them.

use std::time::{Duration, Instant};

use tradewind_proto::{
    CloseCode,
    control::{Alive, KeepAlive, edge_message},
};

use super::super::{ConnKey, Shard};

/// Longest wait for an answer: the session would be over soon after.
const LONGEST_WAIT: Duration = Duration::from_secs(170);

impl Shard {
    pub(super) fn keep_alive(&mut self, key: ConnKey, id: u32, wait: &KeepAlive, now: Instant) {
        if wait.answer_after_ms == 0 {
            return self.tell(key, id, edge_message::Body::Alive(Alive {}));
        }
        let wait = Duration::from_millis(u64::from(wait.answer_after_ms)).min(LONGEST_WAIT);
        if let Some(session) = self.session_mut(key) {
            session.answer_due = Some((now + wait, id));
        }
    }

    /// Looks after all sessions: ends those whose token has ended, and answers those that have waited
    /// for it. One pass, and no timer for each of very many.
    pub(in super::super) fn tend_sessions(&mut self, now: Instant) {
        let wall = self.wall;
        let (mut expired, mut due) = (Vec::new(), Vec::new());
        for &(_, key) in self.slots.iter().flatten() {
            let Some(session) = self.session(key) else {
                continue;
            };
            if session.expired(wall) {
                expired.push(key);
            } else if session.answer_due.is_some_and(|(at, _)| at <= now) {
                due.push(key);
            }
        }
        for key in expired {
            self.close(key, CloseCode::TokenExpired, "the token has expired", now);
        }
        for key in due {
            let waiting = self.session_mut(key).and_then(|s| s.answer_due.take());
            if let Some((_, id)) = waiting {
                self.tell(key, id, edge_message::Body::Alive(Alive {}));
            }
        }
    }
}
