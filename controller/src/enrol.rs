//! Enrolment: a relay shows a one-time token and gets its certificate signed.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tradewind_proto::control::{EnrolRequest, EnrolResponse};
use tradewind_trust::{
    AltName, Ca, DEFAULT_LEAF_LIFETIME, EnrolBook, EnrolToken, Role, TrustError, check_relay_name,
};

use crate::state::{StateError, io_error, read_json, write_json};

const BOOK_FILE: &str = "enrol-tokens.json";
const LOCK_FILE: &str = "enrol-tokens.lock";
/// Most further names in one certificate.
const MAX_NAMES: usize = 16;

/// Why no enrolment token could be made.
#[derive(Debug, thiserror::Error)]
pub enum EnrolTokenError {
    /// There is no CA to sign with.
    #[error("this controller does not enrol relays: configure `ca_dir`")]
    NotEnrolling,
    /// The tokens' file cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The name of the relay, or no randomness.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// The tokens that were given out, on disk or in memory. Only their hashes are kept.
pub(crate) struct Tokens {
    dir: Option<PathBuf>,
    /// Without a directory, the book itself.
    memory: Mutex<EnrolBook>,
    /// For throw-away networks: good for any relay, again and again.
    reusable: Vec<EnrolToken>,
}

impl Tokens {
    pub(crate) fn new(dir: Option<PathBuf>, reusable: Vec<EnrolToken>) -> Self {
        Self {
            dir,
            memory: Mutex::default(),
            reusable,
        }
    }

    /// Makes a token that is good for `lifetime`, for `relay` only if it is named.
    pub(crate) fn create(
        &self,
        relay: Option<String>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<EnrolToken, EnrolTokenError> {
        if let Some(relay) = &relay {
            check_relay_name(relay)?;
        }
        let token = EnrolToken::generate()?;
        self.change(|book| {
            book.prune(now);
            book.add(&token, relay, now + lifetime);
        })?;
        Ok(token)
    }

    fn redeem(&self, token: &str, relay: &str, now: SystemTime) -> Result<(), String> {
        let reusable = token.parse::<EnrolToken>().is_ok_and(|shown| {
            self.reusable
                .iter()
                .any(|known| known.hash().matches(&shown))
        });
        if reusable {
            return Ok(());
        }
        self.change(|book| book.redeem(token, relay, now))
            .map_err(|error| {
                tracing::error!(%error, "enrolment tokens");
                "the controller cannot use its enrolment tokens; its log says why".to_owned()
            })?
            .map_err(|error| error.to_string())
    }

    /// Changes the book: the one on disk is read anew each time and locked meanwhile, since
    /// `tradewind-controller enrol-token create` writes it too.
    fn change<T>(&self, change: impl FnOnce(&mut EnrolBook) -> T) -> Result<T, StateError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(dir) = &self.dir else {
            return Ok(change(&mut memory));
        };
        let _lock = lock(dir)?;
        let path = dir.join(BOOK_FILE);
        let before: EnrolBook = read_json(&path)?.unwrap_or_default();
        let mut book = before.clone();
        let result = change(&mut book);
        if book != before {
            write_json(&path, &book)?;
        }
        Ok(result)
    }
}

/// Holds the lock until dropped.
fn lock(dir: &Path) -> Result<File, StateError> {
    std::fs::create_dir_all(dir).map_err(io_error("make", dir))?;
    let path = dir.join(LOCK_FILE);
    let file = File::create(&path).map_err(io_error("write", &path))?;
    file.lock().map_err(io_error("lock", &path))?;
    Ok(file)
}

/// Answers a request for enrolment.
pub(crate) fn answer(
    request: &EnrolRequest,
    ca: Option<&Arc<Ca>>,
    tokens: &Tokens,
    now: SystemTime,
) -> EnrolResponse {
    match enrol(request, ca, tokens, now) {
        Ok(response) => {
            tracing::info!(relay = request.relay, "relay enrolled");
            response
        }
        Err(error) => {
            tracing::warn!(
                relay = request.relay.escape_debug().to_string(),
                error,
                "not enrolled"
            );
            EnrolResponse {
                error,
                ..EnrolResponse::default()
            }
        }
    }
}

fn enrol(
    request: &EnrolRequest,
    ca: Option<&Arc<Ca>>,
    tokens: &Tokens,
    now: SystemTime,
) -> Result<EnrolResponse, String> {
    let ca = ca.ok_or("this controller does not enrol relays: it has no CA key (`ca_dir`)")?;
    check_relay_name(&request.relay).map_err(|error| error.to_string())?;
    if request.names.len() > MAX_NAMES {
        return Err(format!(
            "at most {MAX_NAMES} further names go into a certificate"
        ));
    }
    let names: Vec<AltName> = request.names.iter().map(|name| alt_name(name)).collect();
    let role = Role::Relay(request.relay.clone());
    // Signed before the token is used up: a bad request must not cost one. Nothing is handed out
    // unless the token holds.
    let chain = ca
        .sign_csr(&request.csr, &role, &names, now, DEFAULT_LEAF_LIFETIME)
        .map_err(|error| error.to_string());
    let chain = match chain {
        Ok(chain) => chain,
        // Strangers learn nothing about what is wrong with their request.
        Err(error) => {
            return tokens
                .check_only(&request.token, &request.relay, now)
                .and(Err(error));
        }
    };
    tokens.redeem(&request.token, &request.relay, now)?;
    Ok(EnrolResponse {
        error: String::new(),
        certificates: chain.iter().map(|der| der.to_vec()).collect(),
        ca: ca.certificate().to_vec(),
    })
}

impl Tokens {
    /// Whether the token would be taken, without using it up.
    fn check_only(&self, token: &str, relay: &str, now: SystemTime) -> Result<(), String> {
        let scratch = Self {
            dir: None,
            memory: Mutex::new(
                self.change(|book| book.clone())
                    .map_err(|error| error.to_string())?,
            ),
            reusable: self.reusable.clone(),
        };
        scratch.redeem(token, relay, now)
    }
}

fn alt_name(name: &str) -> AltName {
    match name.parse() {
        Ok(ip) => AltName::Ip(ip),
        Err(_) => AltName::Dns(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tradewind_trust::KeyRequest;

    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn request(token: &EnrolToken, relay: &str) -> EnrolRequest {
        EnrolRequest {
            token: token.to_string(),
            relay: relay.to_owned(),
            csr: KeyRequest::generate(relay).unwrap().csr().to_vec(),
            names: vec!["127.0.0.1".into()],
        }
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_token_made_by_one_process_enrols_one_relay_at_another() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(Ca::create("test", now()).unwrap());
        let token = Tokens::new(Some(dir.path().into()), vec![])
            .create(None, HOUR, now())
            .unwrap();

        let tokens = Tokens::new(Some(dir.path().into()), vec![]);
        let good = answer(&request(&token, "tokyo-1"), Some(&ca), &tokens, now());
        assert_eq!(good.error, "");
        assert_eq!(good.certificates.len(), 1);
        assert_eq!(good.ca, ca.certificate().to_vec());

        let again = answer(&request(&token, "paris-1"), Some(&ca), &tokens, now());
        assert!(again.error.contains("tokyo-1"), "{}", again.error);
        assert!(again.certificates.is_empty());
        let file = std::fs::read_to_string(dir.path().join(BOOK_FILE)).unwrap();
        assert!(
            !file.contains(&token.to_string()),
            "secrets are never stored"
        );
    }

    #[test]
    fn reusable_tokens_enrol_everybody_and_a_bad_request_does_not_use_a_token_up() {
        let ca = Arc::new(Ca::create("test", now()).unwrap());
        let dev = EnrolToken::from_bytes([7; 32]);
        let tokens = Tokens::new(None, vec![dev.clone()]);
        for relay in ["tokyo-1", "paris-1"] {
            assert_eq!(
                answer(&request(&dev, relay), Some(&ca), &tokens, now()).error,
                ""
            );
        }

        let token = tokens.create(Some("oslo-1".into()), HOUR, now()).unwrap();
        let broken = EnrolRequest {
            csr: vec![1, 2, 3],
            ..request(&token, "oslo-1")
        };
        assert!(
            answer(&broken, Some(&ca), &tokens, now())
                .error
                .contains("request")
        );
        assert_ne!(
            answer(&request(&token, "rome-1"), Some(&ca), &tokens, now()).error,
            ""
        );
        assert_eq!(
            answer(&request(&token, "oslo-1"), Some(&ca), &tokens, now()).error,
            ""
        );
    }

    #[test]
    fn without_a_ca_or_with_an_unknown_token_nobody_is_enrolled() {
        let ca = Arc::new(Ca::create("test", now()).unwrap());
        let tokens = Tokens::new(None, vec![]);
        let stranger = EnrolToken::from_bytes([9; 32]);
        let no_ca = answer(&request(&stranger, "tokyo-1"), None, &tokens, now());
        assert!(no_ca.error.contains("ca_dir"), "{}", no_ca.error);
        let unknown = answer(&request(&stranger, "tokyo-1"), Some(&ca), &tokens, now());
        assert!(unknown.error.contains("not known"), "{}", unknown.error);
        let late = tokens.create(None, HOUR, now()).unwrap();
        let late = answer(
            &request(&late, "tokyo-1"),
            Some(&ca),
            &tokens,
            now() + 2 * HOUR,
        );
        assert!(late.error.contains("expired"), "{}", late.error);
    }
}
