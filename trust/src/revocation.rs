use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tradewind_proto::{control, token::Claims};

use crate::{CLOCK_LEEWAY, enrol::unix_seconds};

/// Longest name of an app, a user or a token in a revocation, in bytes.
const MAX_NAME: usize = 256;

/// What a revocation is about, within an app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revoked {
    /// The token of this id (`jti`).
    Token(String),
    /// The tokens of this user.
    User(String),
}

/// Tokens that are withdrawn before their time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The app (tenant).
    pub app: String,
    /// Which of its tokens.
    pub what: Revoked,
    /// Of a user's: those made (`iat`) in this second or before, Unix seconds; those that do not say
    /// when they were made as well. A newer one is accepted. Without meaning for a token's id.
    pub issued_until: u64,
    /// When it may be forgotten, Unix seconds: no token that it covers is valid any more.
    pub until: u64,
}

/// Why a revocation is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// It names nothing, or too much.
    #[error("the {0} must have 1 to {MAX_NAME} bytes that print")]
    Name(&'static str),
    /// There are too many.
    #[error(
        "there are {} revocations already: lift some, or withdraw the key that signed the tokens",
        RevocationList::MAX
    )]
    Full,
}

/// Tokens that are withdrawn: single ones by id, and all those that a user was given up to some
/// moment. Bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationList {
    apps: BTreeMap<String, OfApp>,
    count: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OfApp {
    /// `jti` → until when.
    tokens: BTreeMap<String, u64>,
    users: BTreeMap<String, OfUser>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OfUser {
    issued_until: u64,
    until: u64,
}

impl Revoked {
    /// The user or the token's id.
    #[must_use]
    pub fn name(&self) -> &str {
        let (Self::Token(name) | Self::User(name)) = self;
        name
    }
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "token {id}"),
            Self::User(user) => write!(f, "user {user}"),
        }
    }
}

impl Revocation {
    /// Checks that its names can be names.
    ///
    /// # Errors
    /// [`RevocationError::Name`].
    pub fn check(&self) -> Result<(), RevocationError> {
        let good = |name: &str| {
            !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
        };
        let what = match &self.what {
            Revoked::Token(_) => "token id",
            Revoked::User(_) => "user",
        };
        match (good(&self.app), good(self.what.name())) {
            (false, _) => Err(RevocationError::Name("app")),
            (_, false) => Err(RevocationError::Name(what)),
            _ => Ok(()),
        }
    }

    /// Whether no token that it covers can be valid any more.
    #[must_use]
    pub fn is_over(&self, now: SystemTime) -> bool {
        is_over(self.until, now)
    }

    /// As it travels; `None` when it is about nothing.
    #[must_use]
    pub fn from_message(message: control::Revocation) -> Option<Self> {
        let what = match (message.token_id.is_empty(), message.user.is_empty()) {
            (false, true) => Revoked::Token(message.token_id),
            (true, false) => Revoked::User(message.user),
            _ => return None,
        };
        Some(Self {
            app: message.app,
            what,
            issued_until: message.not_after_unix_s,
            until: message.until_unix_s,
        })
    }

    /// As it travels.
    #[must_use]
    pub fn to_message(&self) -> control::Revocation {
        let (token_id, user) = match &self.what {
            Revoked::Token(id) => (id.clone(), String::new()),
            Revoked::User(user) => (String::new(), user.clone()),
        };
        control::Revocation {
            token_id,
            app: self.app.clone(),
            user,
            not_after_unix_s: self.issued_until,
            until_unix_s: self.until,
        }
    }
}

impl RevocationList {
    /// Revocations at most.
    pub const MAX: usize = 10_000;

    /// Takes a revocation, in place of an earlier one about the same.
    ///
    /// # Errors
    /// [`RevocationError`]; the list is as it was then.
    pub fn insert(&mut self, revocation: &Revocation) -> Result<(), RevocationError> {
        revocation.check()?;
        if self.count >= Self::MAX && !self.contains(&revocation.app, &revocation.what) {
            return Err(RevocationError::Full);
        }
        let Revocation {
            app,
            what,
            issued_until,
            until,
        } = revocation.clone();
        let of_app = self.apps.entry(app).or_default();
        let new = match what {
            Revoked::Token(id) => of_app.tokens.insert(id, until).is_none(),
            Revoked::User(user) => {
                let of_user = OfUser {
                    issued_until,
                    until,
                };
                of_app.users.insert(user, of_user).is_none()
            }
        };
        self.count += usize::from(new);
        Ok(())
    }

    /// Lifts a revocation. Whether it was there.
    pub fn remove(&mut self, app: &str, what: &Revoked) -> bool {
        let Some(of_app) = self.apps.get_mut(app) else {
            return false;
        };
        let found = match what {
            Revoked::Token(id) => of_app.tokens.remove(id).is_some(),
            Revoked::User(user) => of_app.users.remove(user).is_some(),
        };
        if of_app.tokens.is_empty() && of_app.users.is_empty() {
            self.apps.remove(app);
        }
        self.count -= usize::from(found);
        found
    }

    /// Whether a token that says `claims` is withdrawn at this time.
    #[must_use]
    pub fn is_revoked(&self, claims: &Claims, now: SystemTime) -> bool {
        let Some(of_app) = self.apps.get(&claims.app) else {
            return false;
        };
        let by_id = claims.jti.as_ref().and_then(|id| of_app.tokens.get(id));
        let by_user = of_app.users.get(&claims.user);
        by_id.is_some_and(|&until| !is_over(until, now))
            || by_user.is_some_and(|of| claims.iat <= of.issued_until && !is_over(of.until, now))
    }

    /// Forgets what is over.
    pub fn prune(&mut self, now: SystemTime) {
        self.apps.retain(|_, of_app| {
            of_app.tokens.retain(|_, until| !is_over(*until, now));
            of_app.users.retain(|_, of| !is_over(of.until, now));
            !of_app.tokens.is_empty() || !of_app.users.is_empty()
        });
        let of = |of: &OfApp| of.tokens.len() + of.users.len();
        self.count = self.apps.values().map(of).sum();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is withdrawn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them, by app.
    pub fn iter(&self) -> impl Iterator<Item = Revocation> + '_ {
        self.apps.iter().flat_map(|(app, of_app)| {
            let tokens = of_app.tokens.iter().map(|(id, &until)| Revocation {
                app: app.clone(),
                what: Revoked::Token(id.clone()),
                issued_until: 0,
                until,
            });
            let users = of_app.users.iter().map(|(user, of)| Revocation {
                app: app.clone(),
                what: Revoked::User(user.clone()),
                issued_until: of.issued_until,
                until: of.until,
            });
            tokens.chain(users)
        })
    }

    fn contains(&self, app: &str, what: &Revoked) -> bool {
        self.apps.get(app).is_some_and(|of_app| match what {
            Revoked::Token(id) => of_app.tokens.contains_key(id),
            Revoked::User(user) => of_app.users.contains_key(user),
        })
    }
}

/// Tokens are accepted for the clocks' leeway after their end.
fn is_over(until: u64, now: SystemTime) -> bool {
    let end = Duration::from_secs(until).saturating_add(CLOCK_LEEWAY);
    unix_seconds(now) > end.as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(unix_s: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(unix_s)
    }

    fn claims(app: &str, user: &str, iat: u64, jti: Option<&str>) -> Claims {
        Claims {
            app: app.into(),
            user: user.into(),
            iat,
            jti: jti.map(str::to_owned),
            ..Claims::default()
        }
    }

    fn of_user(user: &str, issued_until: u64, until: u64) -> Revocation {
        Revocation {
            app: "chat".into(),
            what: Revoked::User(user.into()),
            issued_until,
            until,
        }
    }

    fn of_token(id: &str, until: u64) -> Revocation {
        Revocation {
            app: "chat".into(),
            what: Revoked::Token(id.into()),
            issued_until: 0,
            until,
        }
    }

    #[test]
    fn a_withdrawn_user_is_let_in_again_only_with_a_newer_token() {
        let mut list = RevocationList::default();
        list.insert(&of_user("eve", 100, 1_000)).unwrap();
        let now = at(200);
        for (claims, revoked) in [
            (claims("chat", "eve", 100, None), true),
            // It does not say when it was made.
            (claims("chat", "eve", 0, None), true),
            (claims("chat", "eve", 101, None), false),
            (claims("chat", "bob", 1, None), false),
            (claims("shop", "eve", 1, None), false),
            (claims("chat", "eve", 101, Some("eve")), false),
        ] {
            assert_eq!(list.is_revoked(&claims, now), revoked, "{claims:?}");
        }
        // The later one about the same user holds, also when it says less.
        list.insert(&of_user("eve", 50, 1_000)).unwrap();
        assert_eq!(list.len(), 1);
        assert!(!list.is_revoked(&claims("chat", "eve", 100, None), now));
        assert!(list.remove("chat", &Revoked::User("eve".into())));
        assert!(!list.remove("chat", &Revoked::User("eve".into())));
        assert!(!list.is_revoked(&claims("chat", "eve", 1, None), now));
        assert_eq!(list, RevocationList::default());
    }

    #[test]
    fn a_withdrawn_token_is_of_one_app_and_forgotten_once_it_has_expired() {
        let mut list = RevocationList::default();
        list.insert(&of_token("t-1", 100)).unwrap();
        let token = |app, id| claims(app, "bob", 1, Some(id));
        assert!(list.is_revoked(&token("chat", "t-1"), at(50)));
        assert!(!list.is_revoked(&token("chat", "t-2"), at(50)));
        assert!(!list.is_revoked(&token("shop", "t-1"), at(50)));
        let leeway = CLOCK_LEEWAY.as_secs();
        assert!(list.is_revoked(&token("chat", "t-1"), at(100 + leeway)));
        list.prune(at(100 + leeway));
        assert_eq!(list.len(), 1);
        assert!(!list.is_revoked(&token("chat", "t-1"), at(101 + leeway)));
        list.prune(at(101 + leeway));
        assert_eq!(list, RevocationList::default());
    }

    #[test]
    fn names_and_their_number_are_bounded() {
        let mut list = RevocationList::default();
        let long = "x".repeat(MAX_NAME + 1);
        for (bad, named) in [
            (of_token("", 9), "token id"),
            (of_token(&long, 9), "token id"),
            (of_user("a\nb", 1, 9), "user"),
            (
                Revocation {
                    app: String::new(),
                    ..of_user("a", 1, 9)
                },
                "app",
            ),
        ] {
            assert_eq!(list.insert(&bad), Err(RevocationError::Name(named)));
        }
        for n in 0..RevocationList::MAX {
            list.insert(&of_token(&n.to_string(), n as u64)).unwrap();
        }
        assert_eq!(list.insert(&of_token("x", 9)), Err(RevocationError::Full));
        assert_eq!(list.insert(&of_token("5", 9)), Ok(()));
        assert_eq!(list.len(), RevocationList::MAX);
        assert_eq!(list.iter().count(), RevocationList::MAX);
        list.prune(at(5_000));
        assert!(list.len() < RevocationList::MAX);
        assert_eq!(list.insert(&of_token("x", 9)), Ok(()));
    }

    #[test]
    fn it_travels_whole_and_is_about_one_thing() {
        for revocation in [of_user("eve", 5, 9), of_token("t", 9)] {
            let message = revocation.to_message();
            assert_eq!(Revocation::from_message(message), Some(revocation));
        }
        let both = control::Revocation {
            user: "eve".into(),
            ..of_token("t", 9).to_message()
        };
        assert_eq!(Revocation::from_message(both), None);
        assert_eq!(
            Revocation::from_message(control::Revocation::default()),
            None
        );
    }
}
