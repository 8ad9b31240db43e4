//! Tokens that operators have withdrawn: kept on disk, and told to all relays at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tradewind_proto::control::{ControllerToRelay, Revocations, controller_to_relay as to_relay};
use tradewind_trust::{Revocation, RevocationError, RevocationList, Revoked};

use super::{ConnectionId, Network, OperateError};
use crate::storage::{Mark, Record};

/// A revocation is kept for so long unless the operator says until when the tokens hold.
const USUAL_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// Longest time that it is kept.
const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Told in one message at most: it must fit into a control frame, however long the names.
const IN_ONE_MESSAGE: usize = 5_000;

/// A revocation, and when and why it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRevocation {
    /// What is withdrawn.
    pub revocation: Revocation,
    /// When, and why.
    pub mark: Mark,
}

/// What an operator withdraws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoke {
    /// The app (tenant).
    pub app: String,
    /// One token or all of a user.
    pub what: Revoked,
    /// Of a user's: those made in this second or before, Unix seconds. `None`: until now.
    pub issued_until: Option<u64>,
    /// When no such token is valid any more, Unix seconds. `None`: in 30 days.
    pub until: Option<u64>,
    /// In the operator's words.
    pub reason: String,
}

/// A revocation as in `/v1/revocations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevocationView {
    /// The app (tenant).
    pub app: String,
    /// Id of the token, if it is about one.
    pub token: Option<String>,
    /// The user, if it is about all tokens of one.
    pub user: Option<String>,
    /// Of a user's tokens: those made in this second or before, Unix seconds.
    pub issued_until_unix_s: Option<u64>,
    /// When it is forgotten, Unix seconds.
    pub until_unix_s: u64,
    /// When it was made, Unix milliseconds.
    pub at_unix_ms: u64,
    /// In the operator's words.
    pub reason: String,
}

impl From<&KeptRevocation> for RevocationView {
    fn from(kept: &KeptRevocation) -> Self {
        let KeptRevocation { revocation, mark } = kept;
        let (token, user) = match &revocation.what {
            Revoked::Token(id) => (Some(id.clone()), None),
            Revoked::User(user) => (None, Some(user.clone())),
        };
        Self {
            app: revocation.app.clone(),
            issued_until_unix_s: user.is_some().then_some(revocation.issued_until),
            token,
            user,
            until_unix_s: revocation.until,
            at_unix_ms: mark.at_unix_ms,
            reason: mark.reason.clone(),
        }
    }
}

impl Network {
    /// Withdraws tokens: all relays are told at once, and those that come later when they come. It
    /// takes the place of an earlier one about the same.
    ///
    /// # Errors
    /// [`OperateError`]: names or times make no sense, or there are too many.
    pub fn revoke(
        &mut self,
        now: Duration,
        revoke: Revoke,
    ) -> Result<RevocationView, OperateError> {
        self.forget_revocations(now);
        let mark = self.mark(now, &revoke.reason)?;
        let today = self.unix(now).as_secs();
        let revocation = Revocation {
            issued_until: match revoke.what {
                Revoked::User(_) => revoke.issued_until.unwrap_or(today),
                Revoked::Token(_) => 0,
            },
            until: (revoke.until).unwrap_or_else(|| today.saturating_add(USUAL_LIFETIME.as_secs())),
            app: revoke.app,
            what: revoke.what,
        };
        let bad = |what: &str| Err(OperateError::Bad(what.to_owned()));
        if revoke.issued_until.is_some() && matches!(revocation.what, Revoked::Token(_)) {
            return bad("`issued_until_unix_s` is for users: a token's id names that token alone");
        }
        if revocation.until <= today {
            return bad("`until_unix_s` is over: there is no valid token to withdraw");
        }
        if revocation.until - today > LONGEST_LIFETIME.as_secs() {
            return bad("`until_unix_s` is more than 10 years away: it is in seconds");
        }
        if revocation.issued_until > revocation.until {
            return bad("`issued_until_unix_s` must not be after `until_unix_s`");
        }
        if let Err(error) = revocation.check() {
            return Err(OperateError::Bad(error.to_string()));
        }
        let key = (revocation.app.clone(), revocation.what.clone());
        if self.revocations.len() >= RevocationList::MAX && !self.revocations.contains_key(&key) {
            return Err(OperateError::Conflict(RevocationError::Full.to_string()));
        }
        tracing::warn!(
            app = revocation.app,
            what = %revocation.what,
            issued_until = revocation.issued_until,
            until = revocation.until,
            reason = mark.reason,
            "operator: tokens revoked"
        );
        self.stats.revocations_made += 1;
        let message = Revocations {
            revoked: vec![revocation.to_message()],
            ..Revocations::default()
        };
        let kept = KeptRevocation { revocation, mark };
        let view = RevocationView::from(&kept);
        self.keep(Record::Revocation(kept.clone()));
        self.revocations.insert(key, kept);
        self.send_to_all(&in_body(message));
        Ok(view)
    }

    /// Lifts a revocation: the tokens are accepted again.
    ///
    /// # Errors
    /// [`OperateError::Conflict`]: it is not there.
    pub fn lift_revocation(&mut self, app: &str, what: &Revoked) -> Result<(), OperateError> {
        let key = (app.to_owned(), what.clone());
        let Some(kept) = self.revocations.remove(&key) else {
            let what = format!(
                "the {what} of app {app} is not revoked; see `tradewind token revocations`"
            );
            return Err(OperateError::Conflict(what));
        };
        tracing::warn!(app, %what, "operator: revocation lifted");
        let message = Revocations {
            lifted: vec![kept.revocation.to_message()],
            ..Revocations::default()
        };
        let (app, what) = key;
        self.keep(Record::Lifted { app, what });
        self.send_to_all(&in_body(message));
        Ok(())
    }

    /// The revocations in force, by app.
    pub fn revocations(&self) -> impl ExactSizeIterator<Item = RevocationView> + '_ {
        self.revocations.values().map(RevocationView::from)
    }

    /// Takes up what was kept from before.
    pub(super) fn restore_revocations(&mut self, kept: Vec<KeptRevocation>) {
        for kept in kept {
            let key = (kept.revocation.app.clone(), kept.revocation.what.clone());
            self.revocations.insert(key, kept);
        }
        self.forget_revocations(Duration::ZERO);
    }

    /// Tells a relay that has come all that is in force. In place of what it knew.
    pub(super) fn send_revocations(&mut self, connection: ConnectionId, now: Duration) {
        self.forget_revocations(now);
        let all: Vec<_> = self
            .revocations
            .values()
            .map(|kept| kept.revocation.to_message())
            .collect();
        let mut parts: Vec<Revocations> = all
            .chunks(IN_ONE_MESSAGE)
            .map(|part| Revocations {
                revoked: part.to_vec(),
                ..Revocations::default()
            })
            .collect();
        if parts.is_empty() {
            parts.push(Revocations::default());
        }
        parts[0].whole = true;
        for part in parts {
            self.send(connection, in_body(part));
        }
    }

    /// Forgets those that cover no valid token any more. Relays do that by themselves.
    fn forget_revocations(&mut self, now: Duration) {
        let wall = self.wall_start() + now;
        let over: Vec<_> = self
            .revocations
            .iter()
            .filter(|(_, kept)| kept.revocation.is_over(wall))
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            self.revocations.remove(&key);
            let (app, what) = key;
            self.keep(Record::Lifted { app, what });
        }
    }
}

fn in_body(message: Revocations) -> ControllerToRelay {
    ControllerToRelay {
        body: Some(to_relay::Body::Revocations(message)),
    }
}
