//! Whether a conversation with a peer goes on: for what lives longer than a moment the whole way is
//! chosen, and checked.

use std::time::{Duration, Instant};

/// What lasts so long is a conversation.
pub(super) const MOMENT: Duration = Duration::from_secs(1);
/// A conversation in which nothing was said for so long is over.
const SILENCE: Duration = Duration::from_secs(10);

/// When was something sent to a peer, or came from it?
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Talk {
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Talk {
    /// Something was said. `true` when that began a conversation.
    pub(super) fn note(&mut self, now: Instant) -> bool {
        let goes_on = self.last.is_some_and(|last| now < last + SILENCE);
        self.last = Some(now);
        if !goes_on {
            self.since = Some(now);
        }
        !goes_on
    }

    /// Whether a conversation goes on in which something was still said after a moment. A single message
    /// is none, nor are several at once.
    pub(super) fn lasts(&self, now: Instant) -> bool {
        let span = self.since.zip(self.last);
        self.goes_on(now) && span.is_some_and(|(since, last)| last >= since + MOMENT)
    }

    /// Whether something was said of late.
    pub(super) fn goes_on(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last + SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // any instant will do
    fn a_conversation_is_what_goes_on_after_a_moment_and_ends_with_silence() {
        let now = Instant::now();
        let mut talk = Talk::default();
        assert!(!talk.goes_on(now));
        assert!(talk.note(now));
        assert!(!talk.note(now + MOMENT / 2));
        assert!(!talk.lasts(now));
        assert!(!talk.lasts(now + MOMENT * 2), "nothing was said since");
        assert!(!talk.note(now + MOMENT));
        assert!(talk.lasts(now + MOMENT));
        assert!(talk.lasts(now + SILENCE));
        assert!(!talk.goes_on(now + MOMENT + SILENCE));
        assert!(talk.note(now + MOMENT + SILENCE));
        assert!(!talk.lasts(now + MOMENT + SILENCE));
    }
}
