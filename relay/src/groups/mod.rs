//! Groups: what an edge and a home know of them, as plain state machines over explicit time. What
//! they say to others is sent by [`crate::shard`].
//!
//! - [`Home`]: which relays have members, and who caches that: a part of the directory.
//! - [`Announced`]: an edge's own membership, as far as the homes have confirmed it.
//! - [`RelayCache`]: an edge's copy of a group's relay set, and how certain it is.
//! - [`IngressLane`]: which segments of a sender's lane every egress edge holds.
//! - [`ReplayWindows`]: the segments themselves, for members that missed some.

mod announced;
mod fetch;
mod home;
mod ingress;
mod relay_cache;
mod replay;

#[cfg(test)]
mod model_tests;

use std::time::Duration;

use ring::digest::{SHA256, digest};
use tradewind_proto::{GroupKey, RelayIndex, control};

pub(crate) use self::{
    announced::Announced,
    fetch::{Fetch, OriginAsk, Step},
    home::{Home, HomeAction},
    ingress::{IngressLane, Taken},
    relay_cache::RelayCache,
    replay::{Held, ReplayWindows},
};
use crate::directory::{self, HOMES};

/// How long an edge's announcement holds at a home unless it is repeated. As long as a dead edge is
/// waited for before its segments count as held.
pub(crate) const LEASE: Duration = Duration::from_secs(7);
/// How long an edge may use a home's answer. As long as a join waits for an edge that is silent.
pub(crate) const CACHE_LEASE: Duration = Duration::from_secs(2);
/// Longest name of a group, in bytes.
pub(crate) const MAX_GROUP_NAME: usize = 256;

/// A group of an app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GroupId {
    pub(crate) app: String,
    pub(crate) group: String,
}

/// A sender's lane in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneKey {
    pub(crate) group: GroupKey,
    /// The sender instance.
    pub(crate) sender: u64,
    pub(crate) lane: u32,
}

impl LaneKey {
    /// The least of all keys …
    pub(crate) const FIRST: Self = Self {
        group: GroupKey(u64::MIN),
        sender: u64::MIN,
        lane: u32::MIN,
    };
    /// … and the greatest.
    pub(crate) const LAST: Self = Self {
        group: GroupKey(u64::MAX),
        sender: u64::MAX,
        lane: u32::MAX,
    };
}

/// What an operator sets of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSettings {
    /// Most bytes that are kept of messages to groups, for members that missed some; one group has at
    /// most a quarter of it.
    pub replay_bytes: usize,
    /// How long they are kept.
    pub replay_age: Duration,
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            replay_bytes: 64 << 20,
            replay_age: Duration::from_secs(30),
        }
    }
}

impl GroupId {
    /// Its key in packets: the first 8 bytes of SHA-256 of app, 0xff and group, which no other name
    /// can be found for easily.
    pub(crate) fn key(&self) -> GroupKey {
        let parts = [self.app.as_bytes(), &[0xff], self.group.as_bytes()];
        let hash = digest(&SHA256, &parts.concat());
        let first = hash.as_ref().iter().take(8);
        GroupKey(first.fold(0, |key, &byte| key << 8 | u64::from(byte)))
    }

    /// Its homes among `relays`, best first.
    pub(crate) fn homes(&self, relays: &[RelayIndex]) -> Vec<RelayIndex> {
        let rank = |&relay: &RelayIndex| {
            let relay_bytes = relay.0.to_be_bytes();
            // A group and a user of one name have homes of their own each.
            let parts = [
                b"group".as_slice(),
                &[0xff],
                self.app.as_bytes(),
                &[0xff],
                self.group.as_bytes(),
                &relay_bytes,
            ];
            (
                directory::mix(directory::fnv1a(parts.into_iter().flatten())),
                relay,
            )
        };
        let mut ranked: Vec<(u64, RelayIndex)> = relays.iter().map(rank).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.truncate(HOMES);
        ranked.into_iter().map(|(_, relay)| relay).collect()
    }

    pub(crate) fn parse(name: Option<control::GroupName>) -> Option<Self> {
        let name = name?;
        (name.group.len() <= MAX_GROUP_NAME && name.app.len() <= MAX_GROUP_NAME).then_some(Self {
            app: name.app,
            group: name.group,
        })
    }

    pub(crate) fn message(&self) -> control::GroupName {
        control::GroupName {
            app: self.app.clone(),
            group: self.group.clone(),
        }
    }
}

/// Whether `count` of `all` are so many that any other so many have one in common with them.
pub(crate) const fn is_majority(count: usize, all: usize) -> bool {
    2 * count > all
}
