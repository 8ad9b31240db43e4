use rustls_pki_types::{CertificateDer, ServerName};

use crate::{TrustError, pem_file::hex};

/// The name every relay's certificate carries besides its own: clients ask for it, as any edge
/// will do.
pub const EDGE_NAME: &str = "tradewind-edge";
/// The name in the controller's certificate.
pub const CONTROLLER_NAME: &str = "tradewind-controller";
/// Longest name of a relay, in bytes of UTF-8.
pub const MAX_RELAY_NAME: usize = 64;

/// Bytes of the digest in a derived name: 80 bits, beyond any search for a collision that would
/// be worth it to somebody who may already name relays.
const SLUG_BYTES: usize = 10;
const SLUG_PREFIX: &str = "r-";

/// Checks the name of a relay: 1 to [`MAX_RELAY_NAME`] bytes of printable UTF-8 without spaces at
/// the ends, and not one of the names that mean something else in certificates.
///
/// # Errors
/// [`TrustError::BadRelayName`].
pub fn check_relay_name(name: &str) -> Result<(), TrustError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_RELAY_NAME {
        "it is longer than 64 bytes"
    } else if name.trim() != name {
        "it begins or ends with a space"
    } else if name.chars().any(is_invisible) {
        "it has characters that do not print"
    } else if is_reserved(name) {
        "it is reserved"
    } else {
        return Ok(());
    };
    Err(TrustError::BadRelayName {
        name: name.escape_debug().to_string(),
        reason,
    })
}

/// The DNS-safe name under which a relay stands in certificates and TLS handshakes: its own name
/// where that is a DNS label (RFC 1123, lower case), else `r-` and the first 10 bytes of the name's
/// SHA-256 in hexadecimal. Different names never share one, short of a collision of the digest.
#[must_use]
pub fn cert_name(relay: &str) -> String {
    if is_label(relay) && !looks_derived(relay) && !is_reserved(relay) {
        return relay.to_owned();
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, relay.as_bytes());
    format!("{SLUG_PREFIX}{}", hex(&digest.as_ref()[..SLUG_BYTES]))
}

/// The name to ask for when dialling `relay` itself (and not just any edge), in rustls' form.
#[must_use]
pub fn server_name(relay: &str) -> ServerName<'static> {
    ServerName::try_from(cert_name(relay)).expect("cert_name gives DNS labels only")
}

/// Checks that a peer's certificate is that of `relay`. The chain must have been verified before,
/// as rustls does in the handshake; this only compares names.
///
/// # Errors
/// [`TrustError::WrongPeer`]; [`TrustError::Crypto`] when it is no certificate.
pub fn verify_peer_name(cert: &CertificateDer<'_>, relay: &str) -> Result<(), TrustError> {
    verify(cert, &server_name(relay), &format!("relay `{relay}`"))
}

/// Checks that a peer's certificate, verified before, is the controller's.
///
/// # Errors
/// As [`verify_peer_name`].
pub fn verify_peer_controller(cert: &CertificateDer<'_>) -> Result<(), TrustError> {
    let name = ServerName::try_from(CONTROLLER_NAME).expect("a DNS label");
    verify(cert, &name, "the controller")
}

/// The DNS names in a peer's certificate, which must have been verified before.
///
/// # Errors
/// [`TrustError::Crypto`] when it is no certificate.
pub fn peer_dns_names(cert: &CertificateDer<'_>) -> Result<Vec<String>, TrustError> {
    let cert = webpki::EndEntityCert::try_from(cert)
        .map_err(TrustError::crypto("read the peer's certificate"))?;
    Ok(cert.valid_dns_names().map(str::to_owned).collect())
}

/// Whether `name` would be a relay's or the controller's in a certificate: one label, no dots.
pub(crate) fn is_single_label(name: &str) -> bool {
    !name.contains('.')
}

fn verify(
    cert: &CertificateDer<'_>,
    name: &ServerName<'_>,
    expected: &str,
) -> Result<(), TrustError> {
    let parsed = webpki::EndEntityCert::try_from(cert)
        .map_err(TrustError::crypto("read the peer's certificate"))?;
    parsed
        .verify_is_valid_for_subject_name(name)
        .map_err(|_| TrustError::WrongPeer {
            expected: expected.to_owned(),
            found: parsed.valid_dns_names().collect::<Vec<_>>().join(", "),
        })
}

fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [EDGE_NAME, CONTROLLER_NAME, "localhost"].contains(&name.as_str())
}

/// A DNS label in lower case that is not a number alone (which would read as part of an address).
fn is_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !bytes.iter().all(u8::is_ascii_digit)
}

/// Whether a name has the shape of a derived one: such a name is derived once more, else one relay
/// could be named like another's digest.
fn looks_derived(name: &str) -> bool {
    name.strip_prefix(SLUG_PREFIX).is_some_and(|rest| {
        rest.len() == 2 * SLUG_BYTES && rest.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Control characters and those that change how the text around them is shown.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_named_like_a_dns_label_keeps_its_name() {
        assert_eq!(cert_name("tokyo-1"), "tokyo-1");
        assert_eq!(cert_name("1a"), "1a");
    }

    #[test]
    fn any_other_name_maps_to_a_stable_label_of_its_own() {
        let name = cert_name("gcp:asia-east1 Changhua");
        assert_eq!(name, cert_name("gcp:asia-east1 Changhua"));
        assert_eq!(name.len(), 22);
        assert_ne!(name, cert_name("gcp:asia-east1 changhua"));
        // Nobody can take that label by naming a relay like it.
        assert_ne!(cert_name(&name), name);
    }

    #[test]
    fn every_certificate_name_is_one_that_tls_accepts() {
        for relay in [
            "tokyo-1",
            "São Paulo",
            "1",
            "123",
            "-a",
            "a-",
            "a--b",
            "xn--a",
            "Tokyo",
            "a.b",
            "10.0.0.1",
            "::1",
            "*",
            "r-",
            "東京",
            &"a".repeat(63),
            &"a".repeat(64),
        ] {
            check_relay_name(relay).unwrap();
            let name = cert_name(relay);
            assert!(is_single_label(&name), "{relay}");
            assert!(
                matches!(server_name(relay), ServerName::DnsName(_)),
                "{relay}"
            );
        }
    }

    #[test]
    fn names_that_would_mislead_are_refused() {
        for (name, reason) in [
            ("", "empty"),
            (" tokyo", "space"),
            ("tokyo ", "space"),
            ("to\nkyo", "print"),
            ("to\u{202e}kyo", "print"),
            ("tradewind-edge", "reserved"),
            ("Tradewind-Controller", "reserved"),
            ("localhost", "reserved"),
        ] {
            let error = check_relay_name(name).unwrap_err().to_string();
            assert!(error.contains(reason), "{name:?}: {error}");
        }
        assert!(check_relay_name(&"a".repeat(65)).is_err());
    }
}
