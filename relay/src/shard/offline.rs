//! Something waits for a user who is offline: its application may want to know.

use tradewind_proto::{Class, UserKey, control::lookup_user::Purpose};

use super::{ConnKey, Shard};
use crate::webhook::OfflineEvent;

impl Shard {
    /// A lookup of a session has ended with the definite answer that the user is offline.
    pub(super) fn call_webhook(&mut self, key: ConnKey, user: UserKey, purpose: Purpose) {
        let class = match purpose {
            Purpose::Audio => Class::Audio,
            Purpose::Unspecified | Purpose::Message => Class::Message,
            Purpose::Video => Class::Video,
            Purpose::Bulk => Class::Bulk,
            Purpose::Look => return,
        };
        if !self.webhooks.has(&user.app) {
            return;
        }
        let Some(session) = self.session(key).filter(|s| s.may_send_in(class)) else {
            return;
        };
        let Some(from) = session.user().map(|own| own.user.clone()) else {
            return;
        };
        let event = OfflineEvent {
            app: user.app,
            user: user.user,
            from,
            class,
            at: self.wall,
        };
        self.webhooks.tell(event, &self.metrics.webhooks);
    }
}
