//! Tokens of sessions: checked, refreshed, ended and withdrawn.

use std::time::Instant;

use tradewind_proto::{
    CloseCode,
    control::{Refreshed, edge_message},
    token::Claims,
};

use super::super::{ConnKey, Shard};

/// What a client is told whose token was withdrawn.
const REVOKED: &str = "the token was revoked by the operator";

impl Shard {
    /// What a token says, if it holds here and now.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, (CloseCode, String)> {
        let verified = self.tables.keys.verify(token, self.wall);
        let claims = verified.map_err(|error| (CloseCode::Unauthorized, error.to_string()))?;
        if self.tables.revoked.is_revoked(&claims, self.wall) {
            return Err((CloseCode::Revoked, REVOKED.to_owned()));
        }
        Ok(claims)
    }

    pub(super) fn refresh(&mut self, key: ConnKey, id: u32, token: &str, now: Instant) {
        let verified = self.verify(token);
        let Some(ready) = self.session_mut(key).and_then(|s| s.ready.as_mut()) else {
            return;
        };
        let answer = match verified {
            Ok(claims) if claims.app == ready.user.app && claims.user == ready.user.user => {
                ready.renew(claims, now);
                Refreshed {
                    expires_unix_s: ready.claims.exp,
                    error: String::new(),
                }
            }
            Ok(_) => Refreshed {
                expires_unix_s: ready.claims.exp,
                error: "the token is for another user".to_owned(),
            },
            Err((_, error)) => Refreshed {
                expires_unix_s: ready.claims.exp,
                error,
            },
        };
        self.tell(key, id, edge_message::Body::Refreshed(answer));
    }

    /// Ends sessions whose token has been withdrawn.
    pub(in super::super) fn close_revoked(&mut self, now: Instant) {
        let tables = self.tables.clone();
        if tables.revoked.is_empty() {
            return;
        }
        let wall = self.wall;
        let withdrawn: Vec<ConnKey> = self
            .slots
            .iter()
            .flatten()
            .map(|&(_, key)| key)
            .filter(|&key| {
                let ready = self.session(key).and_then(|s| s.ready.as_ref());
                ready.is_some_and(|ready| tables.revoked.is_revoked(&ready.claims, wall))
            })
            .collect();
        for key in withdrawn {
            self.metrics.sessions_revoked.inc();
            self.close(key, CloseCode::Revoked, REVOKED, now);
        }
    }
}
