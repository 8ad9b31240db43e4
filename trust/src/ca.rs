use std::{
    fmt,
    net::IpAddr,
    path::Path,
    str::FromStr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName,
    pem::PemObject as _,
};

use crate::{
    CONTROLLER_NAME, EDGE_NAME, Identity, Roots, TrustError,
    names::{cert_name, check_relay_name, is_single_label},
    pem_file,
};

/// Lifetime of issued certificates when nothing else is asked for: 1 year.
pub const DEFAULT_LEAF_LIFETIME: Duration = Duration::from_secs(365 * 86_400);

const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates begin this long before they are made: the clocks of hosts disagree.
const BACKDATE: Duration = Duration::from_secs(86_400);
const CERT_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";
const HINT: &str = "`tradewind ca init` makes it";

/// The deployment's certificate authority: signs the certificates of relays and of the controller,
/// and nothing else is trusted between them.
pub struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The relay of that name: carries [`cert_name`](crate::cert_name) of it and
    /// [`EDGE_NAME`].
    Relay(String),
    /// The controller: carries [`CONTROLLER_NAME`].
    Controller,
}

/// A further name in a certificate: the public DNS name or address a node is reached by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AltName {
    /// A DNS name of at least two labels, or `localhost`.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl Ca {
    /// Makes a new authority with a fresh key; it holds for 10 years from `now`.
    ///
    /// # Errors
    /// [`TrustError::Crypto`].
    pub fn create(name: &str, now: SystemTime) -> Result<Self, TrustError> {
        let make = || {
            let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
            let mut params = CertificateParams::default();
            params.not_before = (now - BACKDATE).into();
            params.not_after = (now + CA_LIFETIME).into();
            params.serial_number = Some(serial_number());
            params.distinguished_name = subject(name);
            // Only leaves below it: nobody it certifies can certify others.
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let certificate = params.self_signed(&key)?.der().clone();
            let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
            Ok::<_, rcgen::Error>(Self {
                certificate,
                issuer,
            })
        };
        make().map_err(TrustError::crypto("make a certificate authority"))
    }

    /// Reads the authority from PEM texts.
    ///
    /// # Errors
    /// [`TrustError::NotPem`], [`TrustError::Unusable`], [`TrustError::KeyMismatch`].
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, TrustError> {
        Self::parse(cert, key, "the CA certificate text", "the CA key text")
    }

    /// Reads `ca.pem` and `ca.key` in `dir`.
    ///
    /// # Errors
    /// [`TrustError::Missing`], [`TrustError::Io`] and those of [`Ca::from_pem`], naming the file.
    pub fn load(dir: &Path) -> Result<Self, TrustError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let cert = pem_file::read(&cert_path, "CA certificate", HINT)?;
        let key = pem_file::read(&key_path, "CA key", HINT)?;
        let origin = |path: &Path| path.display().to_string();
        Self::parse(&cert, &key, &origin(&cert_path), &origin(&key_path))
    }

    /// Writes `ca.pem` and `ca.key` (readable by its owner only) into `dir`, making it if needed.
    ///
    /// # Errors
    /// [`TrustError::Exists`] when one is there and `force` is off: an authority that is lost
    /// means new certificates for every relay. [`TrustError::Io`].
    pub fn save(&self, dir: &Path, force: bool) -> Result<(), TrustError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        if !force && let Some(path) = [&cert_path, &key_path].into_iter().find(|p| p.exists()) {
            return Err(TrustError::Exists { path: path.clone() });
        }
        let key = self.issuer.key().serialize_pem();
        pem_file::write(&key_path, "CA key", key.as_bytes(), true, force)?;
        let cert = self.certificate_pem();
        pem_file::write(&cert_path, "CA certificate", cert.as_bytes(), false, force)
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate in PEM: what every node and client is given.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        pem_file::encode("CERTIFICATE", &self.certificate)
    }

    /// The authority as what peers must descend from.
    #[must_use]
    pub fn roots(&self) -> Roots {
        Roots::from_der(vec![self.certificate.clone()]).expect("our own certificate is usable")
    }

    /// A fresh key and certificate for the relay `name`, holding for `lifetime` from `now`.
    ///
    /// # Errors
    /// [`TrustError::BadRelayName`], [`TrustError::BadAltName`], [`TrustError::Crypto`].
    pub fn issue_relay(
        &self,
        name: &str,
        extra: &[AltName],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Identity, TrustError> {
        self.issue(&Role::Relay(name.to_owned()), extra, now, lifetime)
    }

    /// A fresh key and certificate for the controller, holding for `lifetime` from `now`.
    ///
    /// # Errors
    /// [`TrustError::BadAltName`], [`TrustError::Crypto`].
    pub fn issue_controller(
        &self,
        extra: &[AltName],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Identity, TrustError> {
        self.issue(&Role::Controller, extra, now, lifetime)
    }

    /// Certifies the key of a request (DER, PKCS #10), whose signature proves that the sender has
    /// it. Names, purpose and times are those given here, never those in the request.
    ///
    /// Returns the chain, the new certificate first.
    ///
    /// # Errors
    /// [`TrustError::BadRequest`] when it does not parse, its signature is wrong, or its key is not
    /// Ed25519; and those of [`Ca::issue_relay`].
    pub fn sign_csr(
        &self,
        csr: &[u8],
        role: &Role,
        extra: &[AltName],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let refuse = |reason: String| TrustError::BadRequest { reason };
        let request = CertificateSigningRequestDer::from(csr);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(|error| refuse(error.to_string()))?;
        if *request.public_key.algorithm() != rcgen::PKCS_ED25519 {
            return Err(refuse("its key is not Ed25519".into()));
        }
        let params = leaf(role, extra, now, lifetime)?;
        let cert = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(TrustError::crypto("sign a certificate"))?;
        Ok(vec![cert.der().clone()])
    }

    fn issue(
        &self,
        role: &Role,
        extra: &[AltName],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Identity, TrustError> {
        let params = leaf(role, extra, now, lifetime)?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)
            .map_err(TrustError::crypto("make a key"))?;
        let cert = params
            .signed_by(&key, &self.issuer)
            .map_err(TrustError::crypto("sign a certificate"))?;
        Identity::from_der(
            vec![cert.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
    }

    fn parse(
        cert: &[u8],
        key: &[u8],
        cert_origin: &str,
        key_origin: &str,
    ) -> Result<Self, TrustError> {
        let certificate = CertificateDer::from_pem_slice(cert).map_err(|_| TrustError::NotPem {
            origin: cert_origin.to_owned(),
            what: "CA certificate",
            label: "CERTIFICATE",
        })?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TrustError::NotPem {
            origin: key_origin.to_owned(),
            what: "private key",
            label: "PRIVATE KEY",
        })?;
        let unusable = |origin: &str, what, reason: String| TrustError::Unusable {
            origin: origin.to_owned(),
            what,
            reason,
        };
        let key = KeyPair::try_from(&key)
            .map_err(|error| unusable(key_origin, "private key", error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| unusable(cert_origin, "CA certificate", error.to_string()))?;
        if !parsed.is_ca() {
            let reason = "it is not the certificate of an authority".to_owned();
            return Err(unusable(cert_origin, "CA certificate", reason));
        }
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(TrustError::KeyMismatch {
                cert: cert_origin.to_owned(),
                key: key_origin.to_owned(),
            });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| unusable(cert_origin, "CA certificate", error.to_string()))?;
        Ok(Self {
            certificate,
            issuer,
        })
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ca { key: [secret] }")
    }
}

impl FromStr for AltName {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let name = Self::Dns(text.to_ascii_lowercase());
        name.check()?;
        Ok(name)
    }
}

impl fmt::Display for AltName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl AltName {
    /// Single labels are the names of relays, of edges and of the controller: none may be had
    /// through the back door of a further name.
    fn check(&self) -> Result<(), TrustError> {
        let Self::Dns(name) = self else {
            return Ok(());
        };
        let reason = if !matches!(
            ServerName::try_from(name.as_str()),
            Ok(ServerName::DnsName(_))
        ) {
            "it is neither a DNS name nor an address"
        } else if is_single_label(name) && name != "localhost" {
            "a name without a dot would be that of a node; give the full DNS name"
        } else {
            return Ok(());
        };
        Err(TrustError::BadAltName {
            name: name.escape_debug().to_string(),
            reason,
        })
    }

    fn san(&self) -> Result<SanType, TrustError> {
        self.check()?;
        Ok(match self {
            Self::Dns(name) => dns(name)?,
            Self::Ip(address) => SanType::IpAddress(*address),
        })
    }
}

fn leaf(
    role: &Role,
    extra: &[AltName],
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    params.serial_number = Some(serial_number());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    match role {
        Role::Relay(name) => {
            check_relay_name(name)?;
            params.distinguished_name = subject(name);
            params.subject_alt_names = vec![dns(&cert_name(name))?, dns(EDGE_NAME)?];
        }
        Role::Controller => {
            params.distinguished_name = subject(CONTROLLER_NAME);
            params.subject_alt_names = vec![dns(CONTROLLER_NAME)?];
        }
    }
    for name in extra {
        params.subject_alt_names.push(name.san()?);
    }
    Ok(params)
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn dns(name: &str) -> Result<SanType, TrustError> {
    let name = name
        .try_into()
        .map_err(TrustError::crypto("put a name into a certificate"))?;
    Ok(SanType::DnsName(name))
}

/// 126 random bits in 16 bytes whose encoding never loses or gains one: certificates for the same
/// names are equally long in every run.
fn serial_number() -> SerialNumber {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system's random numbers do not fail");
    bytes[0] = 0x40 | (bytes[0] & 0x3f);
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests;
