use std::{fmt, io, path::Path, sync::Arc};

use quinn_proto::{EndpointConfig, HashedConnectionIdGenerator, ServerConfig};
use ring::{
    hkdf, hmac,
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{
    TrustError,
    pem_file::{self, hex, unhex},
};

const WHAT: &str = "QUIC key";
/// Makes a wrong file easy to see.
const PREFIX: &str = "twq1-";

/// What a QUIC port must know again when its process starts anew: with it, clients of the process
/// before are told at once that their connections are gone (stateless reset, RFC 9000, section 10.3),
/// instead of waiting for a sign of life; and addresses that were validated stay so (Retry, section
/// 8.1.2). All keys are derived from one secret.
#[derive(Clone, PartialEq, Eq)]
pub struct QuicKeys([u8; 32]);

impl QuicKeys {
    /// Makes new ones from the crypto provider's random numbers.
    ///
    /// # Errors
    /// [`TrustError::Crypto`].
    pub fn generate() -> Result<Self, TrustError> {
        let mut secret = [0; 32];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(TrustError::crypto("draw random numbers"))?;
        Ok(Self(secret))
    }

    /// Reads those of the process before; `None` when there are none.
    ///
    /// # Errors
    /// [`TrustError`] naming the file: it cannot be read, or is none of these.
    pub fn load(path: &Path) -> Result<Option<Self>, TrustError> {
        let text = match pem_file::read(path, WHAT, "") {
            Ok(text) => text,
            Err(TrustError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let secret = std::str::from_utf8(&text)
            .ok()
            .and_then(|text| text.trim().strip_prefix(PREFIX))
            .and_then(unhex);
        let unusable = || TrustError::Io {
            action: "read",
            what: WHAT,
            path: path.to_owned(),
            source: io::Error::other(format!("it is not `{PREFIX}` and 64 hexadecimal digits")),
        };
        secret.map(|secret| Some(Self(secret))).ok_or_else(unusable)
    }

    /// Writes them to a file that only its owner may read, in place of what is there.
    ///
    /// # Errors
    /// [`TrustError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), TrustError> {
        let text = format!("{PREFIX}{}\n", hex(&self.0));
        pem_file::write(path, WHAT, text.as_bytes(), true, true)
    }

    /// Has an endpoint use them: connections of the process before are known to have been its own.
    pub fn apply_to_endpoint(&self, config: &mut EndpointConfig) {
        let cid_key = self.connection_ids();
        let generator = move || -> Box<dyn quinn_proto::ConnectionIdGenerator> {
            Box::new(HashedConnectionIdGenerator::from_key(cid_key))
        };
        let reset_key: hmac::Key = self.derive(&[b"stateless reset"], hmac::HMAC_SHA256);
        config
            .reset_key(Arc::new(reset_key))
            .cid_generator(generator);
    }

    /// Has a server use them for the tokens that validate addresses.
    pub fn apply_to_server(&self, config: &mut ServerConfig) {
        let key: hkdf::Prk = self.derive(&[b"address validation"], hkdf::HKDF_SHA256);
        config.token_key(Arc::new(key));
    }

    /// Connection IDs must be recognised as own ones, or else nothing is answered.
    fn connection_ids(&self) -> u64 {
        let key: hmac::Key = self.derive(&[b"connection ids"], hmac::HMAC_SHA256);
        let tag = hmac::sign(&key, b"");
        let (first, _) = tag.as_ref().split_at(8);
        first
            .iter()
            .fold(0, |key, &byte| key << 8 | u64::from(byte))
    }

    fn derive<L: hkdf::KeyType, K: for<'a> From<hkdf::Okm<'a, L>>>(
        &self,
        label: &[&[u8]],
        kind: L,
    ) -> K {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tradewind quic").extract(&self.0);
        K::from(
            secret
                .expand(label, kind)
                .expect("keys are shorter than 255 blocks"),
        )
    }
}

impl fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuicKeys([secret])")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn they_come_back_and_only_their_owner_may_read_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/quic.key");
        assert_eq!(QuicKeys::load(&path).unwrap(), None);
        let keys = QuicKeys::generate().unwrap();
        keys.save(&path).unwrap();
        assert_eq!(QuicKeys::load(&path).unwrap(), Some(keys.clone()));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let others = QuicKeys::generate().unwrap();
        assert_ne!(others.connection_ids(), keys.connection_ids());
        others.save(&path).unwrap();
        assert_eq!(QuicKeys::load(&path).unwrap(), Some(others));
    }

    #[test]
    fn what_is_damaged_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("quic.key");
        for damaged in ["", "twq1-", "twq1-00ff", "\u{fffd}"] {
            fs::write(&path, damaged).unwrap();
            let error = QuicKeys::load(&path).unwrap_err().to_string();
            assert!(error.contains("quic.key"), "{error}");
        }
        assert!(QuicKeys::load(directory.path()).is_err(), "a directory");
    }

    #[test]
    fn secrets_do_not_show_in_logs() {
        let keys = QuicKeys([0xab; 32]);
        assert!(!format!("{keys:?}").contains("ab"));
    }
}
