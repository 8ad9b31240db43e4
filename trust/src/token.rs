use std::{
    collections::BTreeMap,
    fmt, fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer, pem::PemObject as _};
use serde::Deserialize;
use tradewind_proto::token::Claims;

use crate::{
    TrustError, jwt,
    pem_file::{self, hex},
};

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 4096;
/// How far a token's times may be off: the clocks of issuers and relays disagree.
pub const CLOCK_LEEWAY: Duration = Duration::from_secs(30);

/// The audience a token may name; it need not name any.
const AUDIENCE: &str = "tradewind";
/// Most keys that are held at a time.
const MAX_KEYS: usize = 1024;
const HINT: &str =
    "it is an Ed25519 key in PEM, as `openssl genpkey -algorithm ed25519` writes one";
const PUBLIC_HINT: &str = "it is the public half of a token key in PEM, as `openssl pkey -pubout` writes it, or a JWK set";
/// DER of `SubjectPublicKeyInfo` for Ed25519 up to the 32 bytes of the key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Why a token was refused. The texts may be shown to who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN`]; it was not looked at.
    #[error("the token is {0} bytes long; at most {MAX_TOKEN} are accepted")]
    TooLong(usize),
    /// Not a JWT with our claims.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Signed by another algorithm than EdDSA, or by none.
    #[error("the token is signed with `{0}`; only EdDSA is accepted")]
    WrongAlgorithm(String),
    /// Signed by a key that is not known here.
    #[error(
        "the token is signed by the unknown key `{0}`; it may be of another deployment, or the key was withdrawn"
    )]
    UnknownKey(String),
    /// The signature is not that of the key it names.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// Its time is over.
    #[error("the token expired {} s ago; get a new one", by.as_secs())]
    Expired {
        /// For how long, leeway not counted.
        by: Duration,
    },
    /// Its time has not come.
    #[error("the token holds only in {} s from now; is the issuer's clock right?", wait.as_secs())]
    NotYetValid {
        /// For how long still, leeway not counted.
        wait: Duration,
    },
    /// It is meant for some other service.
    #[error("the token is meant for another audience than `{AUDIENCE}`")]
    WrongAudience,
}

/// Makes tokens: an Ed25519 key and the id under which its public half is known.
pub struct TokenSigner {
    kid: String,
    pkcs8: Vec<u8>,
    public: [u8; 32],
}

/// The public keys whose tokens are accepted, by key id. Keys are rotated by holding the old and
/// the new one for as long as tokens of the old one live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenKeys {
    keys: BTreeMap<String, [u8; 32]>,
}

impl TokenSigner {
    /// Makes a new key; its id is the first 8 bytes of the SHA-256 of its public half, in
    /// hexadecimal.
    ///
    /// # Errors
    /// [`TrustError::Crypto`].
    pub fn generate() -> Result<Self, TrustError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
            .map_err(TrustError::crypto("make a token key"))?;
        Self::from_pkcs8(key.serialize_der(), "the new key")
    }

    /// Reads a private key from PEM text (PKCS #8).
    ///
    /// # Errors
    /// [`TrustError::NotPem`], [`TrustError::Unusable`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, TrustError> {
        Self::parse(pem, "the token key text")
    }

    /// Reads a private key from a PEM file.
    ///
    /// # Errors
    /// [`TrustError::Missing`], [`TrustError::Io`] and those of [`TokenSigner::from_pem`], naming
    /// the file.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        let pem = pem_file::read(path, "token key", HINT)?;
        Self::parse(&pem, &path.display().to_string())
    }

    /// Writes the private key to a PEM file that only its owner may read.
    ///
    /// # Errors
    /// [`TrustError::Exists`] when it is there and `force` is off; [`TrustError::Io`].
    pub fn save(&self, path: &Path, force: bool) -> Result<(), TrustError> {
        let pem = pem_file::encode("PRIVATE KEY", &self.pkcs8);
        pem_file::write(path, "token key", pem.as_bytes(), true, force)
    }

    /// Uses another key id than the derived one.
    #[must_use]
    pub fn with_kid(mut self, kid: impl Into<String>) -> Self {
        self.kid = kid.into();
        self
    }

    /// The key's id.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half, raw.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }

    /// The public half in PEM: what is put among the [`TokenKeys`].
    #[must_use]
    pub fn public_key_pem(&self) -> String {
        pem_file::encode("PUBLIC KEY", &[&SPKI_PREFIX[..], &self.public].concat())
    }

    /// The set of this one key.
    #[must_use]
    pub fn keys(&self) -> TokenKeys {
        [(self.kid.clone(), self.public)].into_iter().collect()
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`TrustError::BadRequest`] when it would be longer than [`MAX_TOKEN`] or names no app or
    /// user; [`TrustError::Crypto`].
    pub fn sign(&self, claims: &Claims) -> Result<String, TrustError> {
        check(claims).map_err(|reason| TrustError::BadRequest {
            reason: format!("a token {reason}"),
        })?;
        jwt::install();
        let header = Header {
            kid: Some(self.kid.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        let token = jsonwebtoken::encode(&header, claims, &EncodingKey::from_ed_der(&self.pkcs8))
            .map_err(TrustError::crypto("sign a token"))?;
        if token.len() > MAX_TOKEN {
            return Err(TrustError::BadRequest {
                reason: format!(
                    "the token would be {} bytes long and no relay takes more than {MAX_TOKEN}; name fewer groups, or `*`",
                    token.len()
                ),
            });
        }
        Ok(token)
    }

    fn parse(pem: &[u8], origin: &str) -> Result<Self, TrustError> {
        match PrivateKeyDer::from_pem_slice(pem) {
            Ok(PrivateKeyDer::Pkcs8(key)) => {
                Self::from_pkcs8(key.secret_pkcs8_der().to_vec(), origin)
            }
            _ => Err(TrustError::NotPem {
                origin: origin.to_owned(),
                what: "private key",
                label: "PRIVATE KEY",
            }),
        }
    }

    fn from_pkcs8(pkcs8: Vec<u8>, origin: &str) -> Result<Self, TrustError> {
        let unusable = |reason: String| TrustError::Unusable {
            origin: origin.to_owned(),
            what: "token key",
            reason,
        };
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8)
            .map_err(|error| unusable(format!("{error}; it must be an Ed25519 key")))?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref())
            .map_err(|_| unusable("its public half is not 32 bytes long".into()))?;
        Ok(Self {
            kid: derived_kid(&public),
            pkcs8,
            public,
        })
    }
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSigner")
            .field("kid", &self.kid)
            .field("key", &"[secret]")
            .finish()
    }
}

impl TokenKeys {
    /// Reads the keys in a file or in a directory of such files: PEM (`PUBLIC KEY`, Ed25519; known
    /// by its derived id, and by the file's name without the ending), or a JSON Web Key Set
    /// (RFC 7517) with keys of type `OKP`, curve `Ed25519` (RFC 8037). In a directory, only files
    /// ending in `.pem`, `.json` or `.jwks` are read.
    ///
    /// # Errors
    /// [`TrustError`] naming the file; a directory with one bad file gives no keys at all.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        const WHAT: &str = "token key";
        if !path.is_dir() {
            return Self::load_file(path);
        }
        let io = |source| TrustError::Io {
            action: "read",
            what: WHAT,
            path: path.to_owned(),
            source,
        };
        let mut files = fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(io)
            .map(|mut files: Vec<_>| {
                files.sort();
                files
            })?;
        files.retain(|file| {
            file.extension()
                .is_some_and(|ext| ext == "pem" || ext == "json" || ext == "jwks")
        });
        let mut all = Self::default();
        for file in files {
            all.keys.extend(Self::load_file(&file)?.keys);
        }
        Ok(all)
    }

    /// Reads a JSON Web Key Set; `origin` stands in errors.
    ///
    /// # Errors
    /// [`TrustError::Unusable`].
    pub fn from_jwks(json: &[u8], origin: &str) -> Result<Self, TrustError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Jwk>,
        }
        #[derive(Deserialize)]
        struct Jwk {
            kty: String,
            #[serde(default)]
            crv: String,
            #[serde(default)]
            x: String,
            kid: Option<String>,
        }
        let unusable = |reason: String| TrustError::Unusable {
            origin: origin.to_owned(),
            what: "JSON Web Key Set",
            reason,
        };
        let set: Set = serde_json::from_slice(json).map_err(|error| unusable(error.to_string()))?;
        let mut keys = BTreeMap::new();
        for key in set.keys {
            // RFC 7517, 5: keys of unknown types are passed over.
            if key.kty != "OKP" || key.crv != "Ed25519" {
                continue;
            }
            let public = BASE64
                .decode(&key.x)
                .ok()
                .and_then(|x| <[u8; 32]>::try_from(x).ok())
                .ok_or_else(|| unusable("`x` of a key is not 32 bytes in base64url".into()))?;
            keys.insert(key.kid.unwrap_or_else(|| derived_kid(&public)), public);
        }
        if keys.is_empty() {
            return Err(unusable("it has no Ed25519 key".into()));
        }
        if keys.len() > MAX_KEYS {
            return Err(unusable(format!("it has more than {MAX_KEYS} keys")));
        }
        Ok(Self { keys })
    }

    /// Adds a key, or replaces the one of that id.
    pub fn insert(&mut self, kid: impl Into<String>, public: [u8; 32]) {
        self.keys.insert(kid.into(), public);
    }

    /// Withdraws a key: its tokens are refused from now on. Whether it was there.
    pub fn remove(&mut self, kid: &str) -> bool {
        self.keys.remove(kid).is_some()
    }

    /// The keys in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.keys.iter().map(|(kid, key)| (kid.as_str(), key))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none: then every token is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks a token's form, signature and times, and returns what it says. Revocation is the
    /// caller's to check ([`RevocationList`](crate::RevocationList)).
    ///
    /// # Errors
    /// [`TokenError`], one variant for each reason.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong(token.len()));
        }
        let header = TokenHeader::parse(token)?;
        if header.alg != "EdDSA" {
            return Err(TokenError::WrongAlgorithm(shown(&header.alg)));
        }
        let kid = header
            .kid
            .ok_or(TokenError::Malformed("its header names no key (`kid`)"))?;
        let key = self
            .keys
            .get(&kid)
            .ok_or_else(|| TokenError::UnknownKey(shown(&kid)))?;
        jwt::install();
        let claims = jsonwebtoken::decode(token, &DecodingKey::from_ed_der(key), &validation())
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => TokenError::BadSignature,
                ErrorKind::InvalidAudience => TokenError::WrongAudience,
                ErrorKind::Json(_) => {
                    TokenError::Malformed("its claims are not those of a Tradewind token")
                }
                _ => TokenError::Malformed("it is not three base64url parts"),
            })?
            .claims;
        check(&claims).map_err(TokenError::Malformed)?;
        check_times(&claims, now)?;
        Ok(claims)
    }

    fn load_file(path: &Path) -> Result<Self, TrustError> {
        let text = pem_file::read(path, "public token key", PUBLIC_HINT)?;
        let origin = path.display().to_string();
        if path.extension().is_some_and(|ext| ext != "pem") || text.first() == Some(&b'{') {
            return Self::from_jwks(&text, &origin);
        }
        let spki =
            SubjectPublicKeyInfoDer::from_pem_slice(&text).map_err(|_| TrustError::NotPem {
                origin: origin.clone(),
                what: "public key",
                label: "PUBLIC KEY",
            })?;
        let public = spki
            .strip_prefix(&SPKI_PREFIX)
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .ok_or_else(|| TrustError::Unusable {
                origin,
                what: "public key",
                reason: "it is not an Ed25519 key".into(),
            })?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(
            [(derived_kid(&public), public), (stem.into_owned(), public)]
                .into_iter()
                .collect(),
        )
    }
}

impl FromIterator<(String, [u8; 32])> for TokenKeys {
    fn from_iter<I: IntoIterator<Item = (String, [u8; 32])>>(keys: I) -> Self {
        Self {
            keys: keys.into_iter().collect(),
        }
    }
}

/// The fields of a JOSE header (RFC 7515, 4.1) that decide what happens to a token.
#[derive(Deserialize)]
struct TokenHeader {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

impl TokenHeader {
    fn parse(token: &str) -> Result<Self, TokenError> {
        const SHAPE: TokenError = TokenError::Malformed("it is not three base64url parts");
        let mut parts = token.split('.');
        let (Some(header), Some(_), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SHAPE);
        };
        let header = BASE64.decode(header).map_err(|_| SHAPE)?;
        let header: Self = serde_json::from_slice(&header)
            .map_err(|_| TokenError::Malformed("its header is not that of a JWT"))?;
        if header.crit.is_some() {
            // RFC 7515, 4.1.11: what must be understood and is not is refused.
            return Err(TokenError::Malformed(
                "its header demands extensions (`crit`) that are not known here",
            ));
        }
        Ok(header)
    }
}

fn validation() -> Validation {
    let mut validation = Validation::new(Algorithm::EdDSA);
    // It would ask the system for the time; ours is handed in (see `check_times`).
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.required_spec_claims.clear();
    validation.set_audience(&[AUDIENCE]);
    validation
}

fn check(claims: &Claims) -> Result<(), &'static str> {
    if claims.app.is_empty() {
        Err("must name an app")
    } else if claims.user.is_empty() {
        Err("must name a user")
    } else {
        Ok(())
    }
}

fn check_times(claims: &Claims, now: SystemTime) -> Result<(), TokenError> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let expiry = Duration::from_secs(claims.exp);
    if now > expiry.saturating_add(CLOCK_LEEWAY) {
        return Err(TokenError::Expired { by: now - expiry });
    }
    let start = Duration::from_secs(claims.nbf.unwrap_or(0));
    if start > now + CLOCK_LEEWAY {
        return Err(TokenError::NotYetValid { wait: start - now });
    }
    Ok(())
}

fn derived_kid(public: &[u8; 32]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, public);
    hex(&digest.as_ref()[..8])
}

/// What a stranger wrote, cut to what fits into a line of a log.
fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
