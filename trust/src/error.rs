use std::{io, path::PathBuf};

/// Why a certificate, a key or a name was refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file that is needed does not exist.
    #[error("{what} file {} does not exist; {hint}", path.display())]
    Missing {
        /// What it should hold (`certificate`, `private key`, `CA certificate`, …).
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What makes it.
        hint: &'static str,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {what} file {}: {source}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// What it holds.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is there already, and overwriting was not asked for.
    #[error("{} exists already and is not overwritten; remove it or use --force", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// The text is not PEM of the kind that is needed.
    #[error("{origin} holds no {what} in PEM form (a block `-----BEGIN {label}-----`)")]
    NotPem {
        /// The file, or a word for the text in memory.
        origin: String,
        /// What was looked for.
        what: &'static str,
        /// The PEM label that was looked for.
        label: &'static str,
    },
    /// PEM of the right kind whose content cannot be used.
    #[error("{origin} holds a {what} that cannot be used: {reason}")]
    Unusable {
        /// The file, or a word for the text in memory.
        origin: String,
        /// What it is.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// Certificate and private key do not belong together.
    #[error(
        "the private key in {key} does not match the certificate in {cert}; use the pair that was issued together"
    )]
    KeyMismatch {
        /// The certificate's file, or a word for the text in memory.
        cert: String,
        /// The key's file, or a word for the text in memory.
        key: String,
    },
    /// Not usable as the name of a relay.
    #[error("`{name}` cannot be the name of a relay: {reason}")]
    BadRelayName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not usable as a further name in a certificate.
    #[error("`{name}` cannot be a further name in a certificate: {reason}")]
    BadAltName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A request for a certificate that is not granted.
    #[error("the certificate request is refused: {reason}")]
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// A peer's certificate is not that of the node it says to be.
    #[error("the peer says it is {expected}, but its certificate is for {found}")]
    WrongPeer {
        /// Who it should be.
        expected: String,
        /// The names in the certificate.
        found: String,
    },
    /// The crypto provider refused: a defect in the program or its input.
    #[error("cannot {action}: {reason}")]
    Crypto {
        /// What was attempted.
        action: &'static str,
        /// What the library said.
        reason: String,
    },
}

impl TrustError {
    /// For `map_err` on the errors of rustls, rcgen, webpki and quinn.
    pub(crate) fn crypto<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Crypto {
            action,
            reason: error.to_string(),
        }
    }
}
