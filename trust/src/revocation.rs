use std::{collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Serialize};
use tradewind_proto::token::Claims;

use crate::enrol::unix_seconds;

/// Tokens that were withdrawn before their time: single ones by id, and all those a user was given
/// up to some moment. Serialisable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RevocationList {
    /// (`jti`) → when the entry may be forgotten, Unix seconds: the token has expired by then.
    tokens: BTreeMap<String, u64>,
    /// app → user → tokens made up to this Unix second are refused.
    users: BTreeMap<String, BTreeMap<String, u64>>,
}

impl RevocationList {
    /// Withdraws the token with this `jti`; the entry is kept until `expiry`, the token's own.
    pub fn revoke_token(&mut self, jti: impl Into<String>, expiry: SystemTime) {
        self.tokens.insert(jti.into(), unix_seconds(expiry));
    }

    /// Withdraws all tokens the user was given up to `at` (by their `iat`; those that do not say
    /// when they were made are withdrawn as well).
    pub fn revoke_user(&mut self, app: &str, user: &str, at: SystemTime) {
        let users = self.users.entry(app.to_owned()).or_default();
        let until = users.entry(user.to_owned()).or_default();
        *until = (*until).max(unix_seconds(at));
    }

    /// Whether a token that says `claims` was withdrawn.
    #[must_use]
    pub fn is_revoked(&self, claims: &Claims) -> bool {
        let by_id = claims
            .jti
            .as_ref()
            .is_some_and(|jti| self.tokens.contains_key(jti));
        let by_user = self
            .users
            .get(&claims.app)
            .and_then(|users| users.get(&claims.user))
            .is_some_and(|until| claims.iat <= *until);
        by_id || by_user
    }

    /// Forgets tokens that have expired (with a minute to spare for the leeway of clocks).
    pub fn prune(&mut self, now: SystemTime) {
        let now = unix_seconds(now);
        self.tokens
            .retain(|_, expiry| expiry.saturating_add(60) >= now);
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len() + self.users.values().map(BTreeMap::len).sum::<usize>()
    }

    /// Whether nothing is withdrawn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn claims(user: &str, iat: u64, jti: Option<&str>) -> Claims {
        Claims {
            app: "chat".into(),
            user: user.into(),
            iat,
            jti: jti.map(str::to_owned),
            ..Claims::default()
        }
    }

    #[test]
    fn a_withdrawn_user_is_let_in_again_only_with_a_newer_token() {
        let mut list = RevocationList::default();
        list.revoke_user("chat", "eve", UNIX_EPOCH + Duration::from_secs(100));
        list.revoke_user("chat", "eve", UNIX_EPOCH + Duration::from_secs(50));
        assert!(list.is_revoked(&claims("eve", 100, None)));
        assert!(list.is_revoked(&claims("eve", 0, None)));
        assert!(!list.is_revoked(&claims("eve", 101, None)));
        assert!(!list.is_revoked(&claims("bob", 1, None)));
    }

    #[test]
    fn a_withdrawn_token_is_forgotten_once_it_has_expired() {
        let mut list = RevocationList::default();
        list.revoke_token("t-1", UNIX_EPOCH + Duration::from_secs(100));
        assert!(list.is_revoked(&claims("bob", 1, Some("t-1"))));
        assert!(!list.is_revoked(&claims("bob", 1, Some("t-2"))));
        let json = serde_json::to_string(&list).unwrap();
        assert_eq!(serde_json::from_str::<RevocationList>(&json).unwrap(), list);
        list.prune(UNIX_EPOCH + Duration::from_secs(120));
        assert_eq!(list.len(), 1);
        list.prune(UNIX_EPOCH + Duration::from_secs(161));
        assert!(list.is_empty());
    }
}
