//! Whether users are online, as applications see it.

use crate::{Client, WatchError};

impl Client {
    /// Watches users of the client's own app: [`Event::Presence`](crate::Event::Presence) tells of each
    /// whether it is online as soon as that is known, and of every change from then on, within some 2 s.
    /// It lasts until [`Client::unwatch`], over sessions: a change of the edge is no change of who is
    /// online. Users that are watched already are left as they are.
    ///
    /// While the client has no session nothing is known: the latest word holds.
    ///
    /// # Errors
    /// [`WatchError`]; nothing has changed then. What only the network knows comes as
    /// [`Event::WatchEnded`](crate::Event::WatchEnded).
    pub fn watch(&self, users: &[&str]) -> Result<(), WatchError> {
        self.shared().with(|core, _| core.watch(users))
    }

    /// Watches users no more: nothing is told of them from now on.
    pub fn unwatch(&self, users: &[&str]) {
        self.shared().with(|core, _| core.unwatch(users));
    }
}
