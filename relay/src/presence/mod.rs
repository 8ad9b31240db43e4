//! Who is online, for whom it matters: plain state machines over explicit time. What they say to others
//! is sent by [`crate::shard`].
//!
//! - [`Watches`], at an edge: whom its sessions watch, and what the homes of these users say of them.
//! - [`Watchers`], at a home: which edges watch a user, and whether the user is online.
//! - [`Lives`]: which relays live. What a dead one has said does not count.

mod edge;
mod home;
mod lives;

use std::{sync::Arc, time::Duration};

use tradewind_proto::{
    UserKey,
    control::{UserName, presence_state},
};

pub(crate) use self::{
    edge::{News, Refusal, Watches},
    home::{Known, Watchers},
    lives::Lives,
};
pub(crate) use presence_state::Status;

/// How often everything here is looked at while there is something to look at.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// How long a home tells an edge of changes, unless the edge watches on.
pub(crate) const LEASE: Duration = Duration::from_secs(12);
/// Users named in one packet between relays, and in one message to a client.
pub(crate) const USERS_PER_MESSAGE: usize = 100;
/// Users looked at anew in one tick, at most: when a relay with many of them dies, or homes change.
const USERS_PER_TICK: usize = 2_000;
/// Longest name of an app or a user, in bytes.
const MAX_NAME: usize = 256;

/// The name as it travels.
pub(crate) fn name_of(user: &UserKey) -> UserName {
    UserName {
        app: user.app.clone(),
        user: user.user.clone(),
    }
}

/// The user that is named; `None` if nobody can have that name.
pub(crate) fn parse_name(name: Option<UserName>) -> Option<Arc<UserKey>> {
    let UserName { app, user } = name?;
    let fits = app.len() <= MAX_NAME && is_user_name(&user);
    fits.then(|| Arc::new(UserKey { app, user }))
}

/// Whether a user can have that name.
pub(crate) fn is_user_name(user: &str) -> bool {
    !user.is_empty() && user.len() <= MAX_NAME
}
