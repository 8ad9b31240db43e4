//! What waits for the application.

use std::{collections::VecDeque, sync::Arc};

use crate::{Event, Media, Message, Presence, State};

/// Bytes of messages that wait for the application, besides one message.
const MESSAGE_BYTES: usize = 8 << 20;
/// Changes of state that wait; beyond it the oldest is forgotten.
const STATES: usize = 64;
/// Gaps and the like that wait; the same.
const NOTICES: usize = 1_024;

/// Bounded queues per kind, and the order among them.
#[derive(Debug)]
pub(crate) struct Inbox {
    order: u64,
    messages: VecDeque<(u64, Message)>,
    message_bytes: usize,
    message_limit: usize,
    media: VecDeque<(u64, Media)>,
    media_limit: usize,
    states: VecDeque<(u64, State)>,
    notices: VecDeque<(u64, Event)>,
    /// At most one for each watched user.
    presence: VecDeque<(u64, Unread)>,
}

/// A change of presence that waits.
#[derive(Debug)]
struct Unread {
    user: Arc<str>,
    online: bool,
    /// The application knows nothing of the user yet.
    first: bool,
}

impl Inbox {
    pub(crate) fn new(message_limit: usize, media_limit: usize) -> Self {
        Self {
            order: 0,
            messages: VecDeque::new(),
            message_bytes: 0,
            message_limit: message_limit.max(1),
            media: VecDeque::new(),
            media_limit: media_limit.max(1),
            states: VecDeque::new(),
            notices: VecDeque::new(),
            presence: VecDeque::new(),
        }
    }

    /// Whether another message is taken.
    pub(crate) fn has_room(&self) -> bool {
        self.messages.len() < self.message_limit && self.message_bytes < MESSAGE_BYTES
    }

    pub(crate) fn push_message(&mut self, message: Message) {
        self.message_bytes += message.payload.len();
        self.messages.push_back((self.order, message));
        self.order += 1;
    }

    /// Takes a media packet. `true` when the oldest one had to go.
    #[must_use]
    pub(crate) fn push_media(&mut self, media: Media) -> bool {
        let full = self.media.len() >= self.media_limit;
        if full {
            self.media.pop_front();
        }
        self.media.push_back((self.order, media));
        self.order += 1;
        full
    }

    pub(crate) fn push_state(&mut self, state: State) {
        if self.states.len() >= STATES {
            self.states.pop_front();
        }
        self.states.push_back((self.order, state));
        self.order += 1;
    }

    /// Takes another event.
    pub(crate) fn push_notice(&mut self, event: Event) {
        if self.notices.len() >= NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back((self.order, event));
        self.order += 1;
    }

    /// A watched user is online or not, other than before; `first` if nothing was known before. What
    /// has changed back before the application looked is no change.
    pub(crate) fn push_presence(&mut self, user: Arc<str>, online: bool, first: bool) {
        let mut waiting = self.presence.iter_mut();
        match waiting.find(|(_, unread)| unread.user == user) {
            Some((_, unread)) if unread.first => unread.online = online,
            Some(_) => self.forget_presence(&user),
            None => {
                let unread = Unread {
                    user,
                    online,
                    first,
                };
                self.presence.push_back((self.order, unread));
                self.order += 1;
            }
        }
    }

    /// The application is not told of a user any more.
    pub(crate) fn forget_presence(&mut self, user: &str) {
        self.presence.retain(|(_, unread)| *unread.user != *user);
    }

    pub(crate) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// What came first of all.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        let order = |order: Option<u64>| order.unwrap_or(u64::MAX);
        let message = order(self.messages.front().map(|(order, _)| *order));
        let media = order(self.media.front().map(|(order, _)| *order));
        let state = order(self.states.front().map(|(order, _)| *order));
        let notice = order(self.notices.front().map(|(order, _)| *order));
        let presence = order(self.presence.front().map(|(order, _)| *order));
        if presence < message.min(media).min(state).min(notice) {
            self.presence.pop_front().map(|(_, unread)| {
                let Unread { user, online, .. } = unread;
                Event::Presence(Presence { user, online })
            })
        } else if notice < message.min(media).min(state) {
            self.notices.pop_front().map(|(_, event)| event)
        } else if message < media.min(state) {
            self.pop_message().map(Event::Message)
        } else if media < state {
            self.pop_media().map(Event::Media)
        } else {
            self.states
                .pop_front()
                .map(|(_, state)| Event::State(state))
        }
    }

    pub(crate) fn pop_message(&mut self) -> Option<Message> {
        let (_, message) = self.messages.pop_front()?;
        self.message_bytes -= message.payload.len();
        Some(message)
    }

    pub(crate) fn pop_media(&mut self) -> Option<Media> {
        self.media.pop_front().map(|(_, media)| media)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_is_undone_before_it_is_read_is_none() {
        let mut inbox = Inbox::new(1, 1);
        let bob: Arc<str> = "bob".into();
        let told = |user: &Arc<str>, online| {
            let user = user.clone();
            Some(Event::Presence(Presence { user, online }))
        };
        inbox.push_presence(bob.clone(), false, true);
        inbox.push_presence(bob.clone(), true, false);
        assert_eq!(inbox.pop(), told(&bob, true));
        assert_eq!(inbox.pop(), None);
        inbox.push_presence(bob.clone(), false, false);
        inbox.push_presence(bob.clone(), true, false);
        assert_eq!(inbox.pop(), None);
        inbox.push_presence(bob.clone(), false, false);
        assert_eq!(inbox.pop(), told(&bob, false));
    }
}
