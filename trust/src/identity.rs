use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
    pem::PemObject as _,
};

use crate::{TrustError, names::cert_name, pem_file, tls};

const CERT_HINT: &str = "`tradewind ca issue` makes it";
const ROOTS_HINT: &str = "it is the `ca.pem` that `tradewind ca init` made";

/// A node's certificate chain (its own first) and the private key to it.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The CA certificates that peers must descend from. More than one while a CA is being replaced.
#[derive(Debug, Clone)]
pub struct Roots {
    certs: Vec<CertificateDer<'static>>,
    store: Arc<rustls::RootCertStore>,
}

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before: SystemTime,
    /// Its last second.
    pub not_after: SystemTime,
}

/// A fresh key and the request to have it certified (PKCS #10, RFC 2986): what an enrolling relay
/// makes. The private key never leaves it.
pub struct KeyRequest {
    key: PrivateKeyDer<'static>,
    csr: CertificateSigningRequestDer<'static>,
}

impl Identity {
    /// Takes a chain (own certificate first) and its private key, both DER.
    ///
    /// # Errors
    /// [`TrustError::Unusable`] for an empty chain or a key of no known form,
    /// [`TrustError::KeyMismatch`] when they do not belong together.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TrustError> {
        Self::checked(chain, key, "the certificate chain", "the private key")
    }

    /// Reads PEM text: one or more certificates (own first), and a private key.
    ///
    /// # Errors
    /// [`TrustError::NotPem`] and those of [`Identity::from_der`].
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, TrustError> {
        Self::parse(cert, key, "the certificate text", "the private key text")
    }

    /// Reads the two PEM files.
    ///
    /// # Errors
    /// [`TrustError::Missing`], [`TrustError::Io`] and those of [`Identity::from_pem`], all naming
    /// the file.
    pub fn load(cert_path: &Path, key_path: &Path) -> Result<Self, TrustError> {
        let cert = pem_file::read(cert_path, "certificate", CERT_HINT)?;
        let key = pem_file::read(key_path, "private key", CERT_HINT)?;
        let origin = |path: &Path| path.display().to_string();
        Self::parse(&cert, &key, &origin(cert_path), &origin(key_path))
    }

    /// Writes the two PEM files, the key's readable by its owner only.
    ///
    /// # Errors
    /// [`TrustError::Exists`] when one is there and `force` is off; [`TrustError::Io`].
    pub fn save(&self, cert_path: &Path, key_path: &Path, force: bool) -> Result<(), TrustError> {
        pem_file::write(
            key_path,
            "private key",
            self.key_pem().as_bytes(),
            true,
            force,
        )?;
        let cert = self.cert_pem();
        pem_file::write(cert_path, "certificate", cert.as_bytes(), false, force)
    }

    /// The chain in PEM, own certificate first.
    #[must_use]
    pub fn cert_pem(&self) -> String {
        certs_pem(&self.chain)
    }

    /// The private key in PEM (PKCS #8). A secret.
    #[must_use]
    pub fn key_pem(&self) -> String {
        let label = match &self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem_file::encode(label, self.key.secret_der())
    }

    /// The chain, own certificate first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The node's own certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// The private key. A secret.
    #[must_use]
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// From when until when the node's own certificate holds.
    #[must_use]
    pub fn validity(&self) -> Validity {
        validity(self.certificate()).expect("parsed when the identity was made")
    }

    /// What an operator should be told about the certificate's time at `now`, if anything: it has
    /// ended, has not begun, or ends within 30 days or a third of its lifetime, whichever is less.
    #[must_use]
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let Validity {
            not_before,
            not_after,
        } = self.validity();
        let lifetime = not_after.duration_since(not_before).unwrap_or_default();
        let soon = (lifetime / 3).min(Duration::from_secs(30 * 86_400));
        if let Ok(wait) = not_before.duration_since(now)
            && !wait.is_zero()
        {
            return Some(format!(
                "the certificate holds only in {} from now; is this machine's clock right?",
                rough(wait)
            ));
        }
        match not_after.duration_since(now) {
            Err(over) => Some(format!(
                "the certificate has expired {} ago; issue a new one, or check this machine's clock",
                rough(over.duration())
            )),
            Ok(left) if left < soon => Some(format!(
                "the certificate expires in {}; issue a new one",
                rough(left)
            )),
            Ok(_) => None,
        }
    }

    fn parse(
        cert: &[u8],
        key: &[u8],
        cert_origin: &str,
        key_origin: &str,
    ) -> Result<Self, TrustError> {
        let chain = parse_certs(cert, cert_origin, "certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TrustError::NotPem {
            origin: key_origin.to_owned(),
            what: "private key",
            label: "PRIVATE KEY",
        })?;
        Self::checked(chain, key, cert_origin, key_origin)
    }

    fn checked(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        cert_origin: &str,
        key_origin: &str,
    ) -> Result<Self, TrustError> {
        let unusable = |origin: &str, what, reason: String| TrustError::Unusable {
            origin: origin.to_owned(),
            what,
            reason,
        };
        let Some(own) = chain.first() else {
            return Err(unusable(cert_origin, "chain", "it is empty".into()));
        };
        validity(own).map_err(|reason| unusable(cert_origin, "certificate", reason))?;
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &tls::provider())
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => TrustError::KeyMismatch {
                    cert: cert_origin.to_owned(),
                    key: key_origin.to_owned(),
                },
                rustls::Error::InvalidCertificate(_) => {
                    unusable(cert_origin, "certificate", error.to_string())
                }
                _ => unusable(key_origin, "private key", error.to_string()),
            })?;
        Ok(Self { chain, key })
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("chain", &self.chain.len())
            .field("key", &"[secret]")
            .finish()
    }
}

impl Roots {
    /// Takes DER certificates.
    ///
    /// # Errors
    /// [`TrustError::Unusable`] when there is none, or one is no CA certificate.
    pub fn from_der(certs: Vec<CertificateDer<'static>>) -> Result<Self, TrustError> {
        Self::checked(certs, "the list of CA certificates")
    }

    /// Reads PEM text with one or more CA certificates.
    ///
    /// # Errors
    /// [`TrustError::NotPem`], [`TrustError::Unusable`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, TrustError> {
        let origin = "the CA certificate text";
        Self::checked(parse_certs(pem, origin, "CA certificate")?, origin)
    }

    /// Reads a PEM file with one or more CA certificates.
    ///
    /// # Errors
    /// [`TrustError::Missing`], [`TrustError::Io`] and those of [`Roots::from_pem`], all naming the
    /// file.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        let pem = pem_file::read(path, "CA certificate", ROOTS_HINT)?;
        let origin = path.display().to_string();
        Self::checked(parse_certs(&pem, &origin, "CA certificate")?, &origin)
    }

    /// The certificates.
    #[must_use]
    pub fn certs(&self) -> &[CertificateDer<'static>] {
        &self.certs
    }

    /// The certificates in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        certs_pem(&self.certs)
    }

    pub(crate) fn store(&self) -> Arc<rustls::RootCertStore> {
        self.store.clone()
    }

    fn checked(certs: Vec<CertificateDer<'static>>, origin: &str) -> Result<Self, TrustError> {
        let unusable = |reason: String| TrustError::Unusable {
            origin: origin.to_owned(),
            what: "CA certificate",
            reason,
        };
        let mut store = rustls::RootCertStore::empty();
        for cert in &certs {
            store
                .add(cert.clone())
                .map_err(|error| unusable(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(unusable("there is none".into()));
        }
        Ok(Self {
            certs,
            store: Arc::new(store),
        })
    }
}

impl KeyRequest {
    /// Makes a key (Ed25519) and the request for `relay`. The names in the certificate are decided
    /// by who signs; the request's are for people to read.
    ///
    /// # Errors
    /// [`TrustError::Crypto`].
    pub fn generate(relay: &str) -> Result<Self, TrustError> {
        let make = |relay: &str| {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
            let mut params = rcgen::CertificateParams::new([cert_name(relay)])?;
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, relay);
            let csr = params.serialize_request(&key)?;
            Ok::<_, rcgen::Error>((key, csr))
        };
        let (key, csr) = make(relay).map_err(TrustError::crypto("make a certificate request"))?;
        Ok(Self {
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            csr: csr.der().clone(),
        })
    }

    /// The request in DER: what is sent to the controller.
    #[must_use]
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// Joins the key with the chain that was issued for it (DER, own certificate first).
    ///
    /// # Errors
    /// As [`Identity::from_der`].
    pub fn complete(self, chain: Vec<CertificateDer<'static>>) -> Result<Identity, TrustError> {
        Identity::from_der(chain, self.key)
    }
}

/// Reads the times of a certificate.
pub(crate) fn validity(cert: &CertificateDer<'_>) -> Result<Validity, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(cert).map_err(|error| error.to_string())?;
    let at = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        UNIX_EPOCH + Duration::from_secs(seconds)
    };
    Ok(Validity {
        not_before: at(parsed.validity().not_before),
        not_after: at(parsed.validity().not_after),
    })
}

fn parse_certs(
    pem: &[u8],
    origin: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let certs = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TrustError::Unusable {
            origin: origin.to_owned(),
            what,
            reason: error.to_string(),
        })?;
    if certs.is_empty() {
        return Err(TrustError::NotPem {
            origin: origin.to_owned(),
            what,
            label: "CERTIFICATE",
        });
    }
    Ok(certs)
}

fn certs_pem(certs: &[CertificateDer<'_>]) -> String {
    certs
        .iter()
        .map(|cert| pem_file::encode("CERTIFICATE", cert))
        .collect()
}

/// A duration for people: days, else hours, else minutes.
fn rough(duration: Duration) -> String {
    let minutes = duration.as_secs() / 60;
    let (count, unit) = match minutes {
        2_880.. => (minutes / 1_440, "days"),
        120.. => (minutes / 60, "hours"),
        _ => (minutes, "minutes"),
    };
    format!("{count} {unit}")
}
