//! What a client token says.

use serde::{Deserialize, Serialize};

use crate::Class;

/// Claims of a client token (JWT, RFC 7519; signed with EdDSA, RFC 8037). Absent lists grant
/// nothing; absent limits mean the relay's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The tenant.
    pub app: String,
    /// The user within it.
    pub user: String,
    /// When the token ends, Unix seconds.
    pub exp: u64,
    /// When it was made, Unix seconds.
    #[serde(default)]
    pub iat: u64,
    /// When it begins to hold, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Its id, for revocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// Groups the user may send to (`*` is all).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub send: Vec<String>,
    /// Groups the user may receive from (`*` is all).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recv: Vec<String>,
    /// Users of the app of whom the user may know whether they are online (`*` is all). Absent: all, as
    /// whoever sends to somebody learns it anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Vec<String>>,
    /// Classes the user may send in. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<Class>>,
    /// Rate the user may send at, bits per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_bps: Option<u64>,
    /// Largest message the user may send, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message: Option<u64>,
}

/// Largest message when the token names no limit: 16 MiB.
pub const DEFAULT_MAX_MESSAGE: u64 = 16 << 20;

impl Claims {
    /// Whether the user may send in `class`.
    #[must_use]
    pub fn allows_class(&self, class: Class) -> bool {
        self.classes
            .as_ref()
            .is_none_or(|classes| classes.contains(&class))
    }

    /// Whether the user may send to `group`.
    #[must_use]
    pub fn may_send_to(&self, group: &str) -> bool {
        names(&self.send, group)
    }

    /// Whether the user may receive what is sent to `group`.
    #[must_use]
    pub fn may_receive_from(&self, group: &str) -> bool {
        names(&self.recv, group)
    }

    /// Whether the user may know whether `user` is online.
    #[must_use]
    pub fn may_watch(&self, user: &str) -> bool {
        self.watch.as_ref().is_none_or(|list| names(list, user))
    }

    /// Largest message the user may send, in bytes.
    #[must_use]
    pub fn max_message_bytes(&self) -> u64 {
        self.max_message.unwrap_or(DEFAULT_MAX_MESSAGE)
    }
}

fn names(list: &[String], wanted: &str) -> bool {
    list.iter().any(|name| name == "*" || name == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_granted_by_its_name_or_by_the_star() {
        let claims = Claims {
            send: vec!["news".to_owned()],
            recv: vec!["*".to_owned()],
            ..Claims::default()
        };
        assert!(claims.may_send_to("news") && !claims.may_send_to("new"));
        assert!(claims.may_receive_from("anything"));
        assert!(!Claims::default().may_receive_from("news"));
    }

    #[test]
    fn everybody_may_be_watched_unless_the_token_names_whom() {
        assert!(Claims::default().may_watch("bob"));
        let mut claims = Claims {
            watch: Some(vec!["bob".to_owned()]),
            ..Claims::default()
        };
        assert!(claims.may_watch("bob") && !claims.may_watch("eve"));
        claims.watch = Some(Vec::new());
        assert!(!claims.may_watch("bob"));
    }
}
