//! The tenants with sessions at this relay: which packets are theirs, and what they may send together.

use std::{collections::BTreeMap, time::Instant};

use rustc_hash::FxHashMap;
use tradewind_proto::Tenant;

use crate::allowance::Allowance;

/// What each app may send into the network at one relay, all its sessions together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppRates {
    /// Bytes per second of every app that is not named; `None` is without limit.
    pub each: Option<u64>,
    /// Bytes per second of these apps; 0 is without limit.
    pub named: BTreeMap<String, u64>,
}

impl AppRates {
    fn of(&self, app: &str) -> Option<u64> {
        match self.named.get(app) {
            Some(0) => None,
            Some(&rate) => Some(rate),
            None => self.each,
        }
    }
}

/// An app that has sessions here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppId(u32);

/// The apps that have sessions here; no more than there are sessions.
#[derive(Debug)]
pub(crate) struct Apps {
    rates: AppRates,
    by_name: FxHashMap<String, AppId>,
    apps: Vec<App>,
    free: Vec<AppId>,
}

#[derive(Debug)]
struct App {
    tenant: Tenant,
    sessions: usize,
    allowance: Option<Allowance>,
}

impl Apps {
    pub(crate) fn new(rates: AppRates) -> Self {
        Self {
            rates,
            by_name: FxHashMap::default(),
            apps: Vec::new(),
            free: Vec::new(),
        }
    }

    /// An app has a session more, none of whose packets is longer than `largest` bytes.
    pub(crate) fn enter(&mut self, name: &str, largest: usize, now: Instant) -> AppId {
        if let Some(&id) = self.by_name.get(name) {
            self.apps[id.0 as usize].sessions += 1;
            return id;
        }
        let rate = self.rates.of(name);
        let app = App {
            tenant: Tenant::of(name),
            sessions: 1,
            allowance: rate.map(|rate| Allowance::new(rate as f64, largest, now)),
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.apps[id.0 as usize] = app;
                id
            }
            None => {
                self.apps.push(app);
                AppId(self.apps.len() as u32 - 1)
            }
        };
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// An app has a session less.
    pub(crate) fn leave(&mut self, name: &str) {
        let Some(&id) = self.by_name.get(name) else {
            return;
        };
        let app = &mut self.apps[id.0 as usize];
        app.sessions -= 1;
        if app.sessions == 0 {
            self.by_name.remove(name);
            self.free.push(id);
        }
    }

    /// How an app's packets are marked.
    pub(crate) fn tenant(&self, id: AppId) -> Tenant {
        self.apps[id.0 as usize].tenant
    }

    /// Whether an app may send `bytes` more now; they are taken off what it may send.
    pub(crate) fn may_send(&mut self, id: AppId, bytes: usize, now: Instant) -> bool {
        let Some(allowance) = &mut self.apps[id.0 as usize].allowance else {
            return true;
        };
        let allowed = allowance.allows(bytes, now);
        if allowed {
            allowance.spend(bytes);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)] // any instant will do
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn sessions_of_an_app_share_its_rate_and_others_have_their_own() {
        let now = start();
        let mut apps = Apps::new(AppRates {
            each: Some(1_000),
            named: [("large".to_owned(), 5_000), ("free".to_owned(), 0)].into(),
        });
        let [one, same, other, large, free] =
            ["one", "one", "other", "large", "free"].map(|name| apps.enter(name, 100, now));
        assert_eq!(one, same);
        assert!(apps.may_send(one, 600, now));
        assert!(!apps.may_send(same, 600, now));
        assert!(apps.may_send(other, 600, now));
        assert!(apps.may_send(large, 5_000, now));
        assert!(!apps.may_send(large, 1, now));
        assert!(apps.may_send(free, usize::MAX, now));
        assert_eq!(apps.tenant(one), Tenant::of("one"));
    }

    #[test]
    fn an_app_is_forgotten_with_its_last_session() {
        let now = start();
        let mut apps = Apps::new(AppRates::default());
        let first = apps.enter("one", 100, now);
        apps.enter("one", 100, now);
        apps.leave("one");
        assert_eq!(apps.enter("one", 100, now), first);
        apps.leave("one");
        apps.leave("one");
        assert!(apps.by_name.is_empty());
        // Its place is used again.
        let next = apps.enter("two", 100, now);
        assert_eq!(next, first);
        assert_eq!(apps.tenant(next), Tenant::of("two"));
    }
}
