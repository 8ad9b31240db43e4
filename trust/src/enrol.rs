use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::{
    TrustError,
    pem_file::{hex, unhex},
};

/// Makes a leaked token easy to find in logs and repositories, and a wrong paste easy to see.
const PREFIX: &str = "twe1-";

/// A one-time secret with which a relay enrols: `twe1-` and 32 random bytes in hexadecimal. The
/// controller keeps only its [`EnrolHash`].
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolToken([u8; 32]);

/// The SHA-256 of an enrolment token: safe to store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EnrolHash([u8; 32]);

/// What an enrolment token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolGrant {
    /// The only relay that may use it, if it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// When it ends, Unix seconds.
    pub expires: u64,
    /// The relay that has used it, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
}

/// The enrolment tokens the controller has given out. Serialisable; holds no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnrolBook {
    grants: BTreeMap<String, EnrolGrant>,
}

/// Why an enrolment token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolError {
    /// Not of the form of one.
    #[error("this is not an enrolment token (`{PREFIX}` and 64 hexadecimal digits)")]
    Malformed,
    /// Not one that this controller has given out.
    #[error("the enrolment token is not known to this controller; ask it for a new one")]
    Unknown,
    /// Its time is over.
    #[error("the enrolment token has expired; ask the controller for a new one")]
    Expired,
    /// It has been used.
    #[error("the enrolment token has been used by relay `{0}`; each is good for one enrolment")]
    Used(String),
    /// It is for another relay.
    #[error("the enrolment token is for relay `{0}`")]
    OtherRelay(String),
}

impl EnrolToken {
    /// Makes a new one from the crypto provider's random numbers.
    ///
    /// # Errors
    /// [`TrustError::Crypto`].
    pub fn generate() -> Result<Self, TrustError> {
        let mut bytes = [0; 32];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(TrustError::crypto("draw random numbers"))?;
        Ok(Self(bytes))
    }

    /// Takes given bytes: for tests that must be repeatable.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its hash.
    #[must_use]
    pub fn hash(&self) -> EnrolHash {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        EnrolHash(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// Shows the secret: it is what is pasted into the relay's configuration.
impl fmt::Display for EnrolToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex(&self.0))
    }
}

impl fmt::Debug for EnrolToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolToken([secret])")
    }
}

impl FromStr for EnrolToken {
    type Err = EnrolError;

    fn from_str(text: &str) -> Result<Self, EnrolError> {
        text.trim()
            .strip_prefix(PREFIX)
            .and_then(unhex)
            .map(Self)
            .ok_or(EnrolError::Malformed)
    }
}

impl EnrolHash {
    /// Whether `token` is the one, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, token: &EnrolToken) -> bool {
        self.0.ct_eq(&token.hash().0).into()
    }
}

impl fmt::Display for EnrolHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for EnrolHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnrolHash({self})")
    }
}

impl FromStr for EnrolHash {
    type Err = EnrolError;

    fn from_str(text: &str) -> Result<Self, EnrolError> {
        unhex(text).map(Self).ok_or(EnrolError::Malformed)
    }
}

impl EnrolBook {
    /// Enters a token that was given out, good until `expires`, for `relay` only if it is named.
    pub fn add(&mut self, token: &EnrolToken, relay: Option<String>, expires: SystemTime) {
        let grant = EnrolGrant {
            relay,
            expires: unix_seconds(expires),
            used_by: None,
        };
        self.grants.insert(token.hash().to_string(), grant);
    }

    /// Uses up a token for `relay`. A second time is refused, to the same relay too: who overheard
    /// a used token could else enrol under its name. An answer lost on the way costs a token.
    ///
    /// # Errors
    /// [`EnrolError`]; the token is not used up then.
    pub fn redeem(&mut self, token: &str, relay: &str, now: SystemTime) -> Result<(), EnrolError> {
        let token: EnrolToken = token.parse()?;
        // Every entry is compared, in constant time each: how long it takes tells nothing.
        let mut found = None;
        for (hash, grant) in &mut self.grants {
            if hash
                .parse()
                .is_ok_and(|hash: EnrolHash| hash.matches(&token))
            {
                found = Some(grant);
            }
        }
        let grant = found.ok_or(EnrolError::Unknown)?;
        if let Some(only) = grant.relay.as_deref().filter(|only| *only != relay) {
            return Err(EnrolError::OtherRelay(only.to_owned()));
        }
        if let Some(user) = &grant.used_by {
            return Err(EnrolError::Used(user.clone()));
        }
        if unix_seconds(now) > grant.expires {
            return Err(EnrolError::Expired);
        }
        grant.used_by = Some(relay.to_owned());
        Ok(())
    }

    /// Forgets what has expired.
    pub fn prune(&mut self, now: SystemTime) {
        let now = unix_seconds(now);
        self.grants.retain(|_, grant| grant.expires >= now);
    }

    /// The grants, by the hash of their token.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &EnrolGrant)> {
        self.grants
            .iter()
            .map(|(hash, grant)| (hash.as_str(), grant))
    }
}

pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_survives_being_pasted_and_nothing_else_passes_for_one() {
        let token = EnrolToken::generate().unwrap();
        let text = format!("  {token}\n");
        assert_eq!(text.parse::<EnrolToken>().unwrap(), token);
        assert!(token.hash().matches(&token));
        assert!(!token.hash().matches(&EnrolToken::from_bytes([7; 32])));
        for bad in ["", "twe1-", "twe1-00", &token.to_string()[1..], "twe1-zz"] {
            assert_eq!(bad.parse::<EnrolToken>(), Err(EnrolError::Malformed));
        }
        assert!(!format!("{token:?}").contains(&hex(&token.0)));
    }

    #[test]
    fn each_token_enrols_one_relay_in_its_time() {
        let (first, second) = (
            EnrolToken::from_bytes([1; 32]),
            EnrolToken::from_bytes([2; 32]),
        );
        let mut book = EnrolBook::default();
        book.add(&first, None, at(100));
        book.add(&second, Some("oslo-1".into()), at(100));

        let stranger = EnrolToken::from_bytes([3; 32]).to_string();
        assert_eq!(book.redeem(&stranger, "a", at(1)), Err(EnrolError::Unknown));
        assert_eq!(
            book.redeem(&first.to_string(), "a", at(101)),
            Err(EnrolError::Expired)
        );
        assert_eq!(book.redeem(&first.to_string(), "a", at(50)), Ok(()));
        let used = EnrolError::Used("a".into());
        assert_eq!(
            book.redeem(&first.to_string(), "a", at(51)),
            Err(used.clone())
        );
        assert_eq!(book.redeem(&first.to_string(), "b", at(52)), Err(used));
        let other = EnrolError::OtherRelay("oslo-1".into());
        assert_eq!(book.redeem(&second.to_string(), "b", at(52)), Err(other));
        assert_eq!(book.redeem(&second.to_string(), "oslo-1", at(52)), Ok(()));

        book.prune(at(101));
        assert_eq!(book.iter().count(), 0);
    }

    #[test]
    fn the_stored_book_holds_no_secret_and_reads_back() {
        let token = EnrolToken::from_bytes([1; 32]);
        let mut book = EnrolBook::default();
        book.add(&token, None, at(100));
        let json = serde_json::to_string(&book).unwrap();
        assert!(!json.contains(&hex(&[1; 32])));
        assert_eq!(serde_json::from_str::<EnrolBook>(&json).unwrap(), book);
    }
}
