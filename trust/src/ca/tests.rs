use std::time::UNIX_EPOCH;

use super::*;
use crate::{KeyRequest, peer_dns_names, verify_peer_controller, verify_peer_name};

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn ca() -> Ca {
    Ca::create("Test", now()).unwrap()
}

#[test]
fn an_authority_survives_being_saved_and_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("ca");
    let first = ca();
    first.save(&home, false).unwrap();
    let again = Ca::load(&home).unwrap();
    assert_eq!(again.certificate(), first.certificate());
    // What the loaded one issues has the same issuer.
    let identity = again.issue_relay("oslo-1", &[], now(), DAY).unwrap();
    let (_, cert) = x509_parser::parse_x509_certificate(identity.certificate()).unwrap();
    let (_, issuer) = x509_parser::parse_x509_certificate(first.certificate()).unwrap();
    assert_eq!(cert.issuer(), issuer.subject());

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(home.join("ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn an_authority_is_overwritten_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (ca(), ca());
    first.save(dir.path(), false).unwrap();
    let error = second.save(dir.path(), false).unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    assert_eq!(
        Ca::load(dir.path()).unwrap().certificate(),
        first.certificate()
    );
    // Neither is a half of one put beside what is there.
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    assert!(second.save(dir.path(), false).is_err());
    assert!(!dir.path().join("ca.pem").exists());
    second.save(dir.path(), true).unwrap();
    assert_eq!(
        Ca::load(dir.path()).unwrap().certificate(),
        second.certificate()
    );
}

#[test]
fn files_that_cannot_be_an_authority_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Ca::load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("ca.pem does not exist") && error.contains("ca init"),
        "{error}"
    );

    let (first, second) = (ca(), ca());
    first.save(dir.path(), false).unwrap();
    std::fs::write(dir.path().join("ca.pem"), second.certificate_pem()).unwrap();
    let error = Ca::load(dir.path()).unwrap_err();
    assert!(matches!(error, TrustError::KeyMismatch { .. }), "{error}");

    // A relay's certificate and key cannot be used to issue others.
    let relay = first.issue_relay("oslo-1", &[], now(), DAY).unwrap();
    let error = Ca::from_pem(relay.cert_pem().as_bytes(), relay.key_pem().as_bytes());
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("not the certificate of an authority")
    );
    let error = Ca::from_pem(b"hello", b"hello").unwrap_err().to_string();
    assert!(error.contains("-----BEGIN CERTIFICATE-----"), "{error}");
}

#[test]
fn a_relays_certificate_is_for_itself_for_any_edge_and_for_its_extra_names() {
    let extra = ["relay.example.com", "192.0.2.7", "2001:db8::7"];
    let extra: Vec<AltName> = extra.iter().map(|name| name.parse().unwrap()).collect();
    let ca = ca();
    let relay = ca.issue_relay("oslo-1", &extra, now(), DAY).unwrap();
    let cert = relay.certificate();
    assert_eq!(
        peer_dns_names(cert).unwrap(),
        ["oslo-1", EDGE_NAME, "relay.example.com"]
    );
    verify_peer_name(cert, "oslo-1").unwrap();
    let error = verify_peer_name(cert, "oslo-2").unwrap_err().to_string();
    assert!(
        error.contains("oslo-2") && error.contains("oslo-1"),
        "{error}"
    );
    assert!(verify_peer_controller(cert).is_err());

    let odd = ca
        .issue_relay("gcp:asia-east1 Changhua", &[], now(), DAY)
        .unwrap();
    verify_peer_name(odd.certificate(), "gcp:asia-east1 Changhua").unwrap();
    assert!(verify_peer_name(odd.certificate(), "gcp:asia-east2 Hong Kong").is_err());

    let controller = ca.issue_controller(&extra, now(), DAY).unwrap();
    verify_peer_controller(controller.certificate()).unwrap();
    assert!(
        !peer_dns_names(controller.certificate())
            .unwrap()
            .contains(&EDGE_NAME.into())
    );
}

#[test]
fn nobody_gets_a_name_that_is_anothers() {
    let ca = ca();
    for name in [EDGE_NAME, CONTROLLER_NAME, "", "a\nb"] {
        assert!(ca.issue_relay(name, &[], now(), DAY).is_err(), "{name}");
    }
    for name in [
        "oslo-2",
        EDGE_NAME,
        CONTROLLER_NAME,
        "Tradewind-Edge",
        "a b",
        "",
        "*",
    ] {
        assert!(name.parse::<AltName>().is_err(), "{name}");
        let name = AltName::Dns(name.to_owned());
        assert!(ca.issue_relay("oslo-1", &[name], now(), DAY).is_err());
    }
}

#[test]
fn a_request_is_granted_the_names_that_were_decided_not_those_it_asks_for() {
    let ca = ca();
    let request = KeyRequest::generate("oslo-2").unwrap();
    let role = Role::Relay("oslo-1".into());
    let chain = ca.sign_csr(request.csr(), &role, &[], now(), DAY).unwrap();
    let identity = request.complete(chain).unwrap();
    assert_eq!(
        peer_dns_names(identity.certificate()).unwrap(),
        ["oslo-1", EDGE_NAME]
    );
}

#[test]
fn a_request_that_proves_nothing_is_refused() {
    let ca = ca();
    let sign = |csr: &[u8]| {
        ca.sign_csr(csr, &Role::Controller, &[], now(), DAY)
            .unwrap_err()
    };
    assert!(matches!(sign(b"hello"), TrustError::BadRequest { .. }));
    let mut csr = KeyRequest::generate("oslo-1").unwrap().csr().to_vec();
    *csr.last_mut().unwrap() ^= 1;
    assert!(matches!(sign(&csr), TrustError::BadRequest { .. }));
    let ecdsa = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&ecdsa)
        .unwrap();
    assert!(sign(csr.der()).to_string().contains("Ed25519"));
}

#[test]
fn a_certificate_does_not_complete_a_request_it_was_not_issued_for() {
    let ca = ca();
    let (ours, theirs) = (
        KeyRequest::generate("a").unwrap(),
        KeyRequest::generate("a").unwrap(),
    );
    let role = Role::Relay("a".into());
    let chain = ca.sign_csr(theirs.csr(), &role, &[], now(), DAY).unwrap();
    assert!(matches!(
        ours.complete(chain),
        Err(TrustError::KeyMismatch { .. })
    ));
}

#[test]
fn certificates_for_the_same_names_are_equally_long_every_time() {
    let lengths: std::collections::BTreeSet<_> = (0..64)
        .map(|_| {
            let ca = ca();
            let relay = ca.issue_relay("oslo-1", &[], now(), DAY).unwrap();
            (
                ca.certificate().len(),
                relay.certificate().len(),
                relay.key().secret_der().len(),
            )
        })
        .collect();
    assert_eq!(lengths.len(), 1);
}

#[test]
fn an_identity_survives_files_and_what_is_wrong_with_files_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("relay.pem"), dir.path().join("relay.key"));
    let load = || Identity::load(&cert, &key).unwrap_err().to_string();

    let error = load();
    assert!(
        error.starts_with("certificate file") && error.contains("relay.pem does not exist"),
        "{error}"
    );
    let ca = ca();
    let relay = ca.issue_relay("oslo-1", &[], now(), DAY).unwrap();
    relay.save(&cert, &key, false).unwrap();
    let again = Identity::load(&cert, &key).unwrap();
    assert_eq!((again.chain(), again.key()), (relay.chain(), relay.key()));

    let other = ca.issue_relay("oslo-2", &[], now(), DAY).unwrap();
    std::fs::write(&key, other.key_pem()).unwrap();
    let error = load();
    assert!(
        error.contains("relay.key does not match the certificate in"),
        "{error}"
    );
    std::fs::write(&key, relay.cert_pem()).unwrap();
    assert!(load().contains("relay.key holds no private key in PEM form"));
    std::fs::write(&cert, "hello").unwrap();
    assert!(load().contains("relay.pem holds no certificate in PEM form"));
    std::fs::write(
        &cert,
        "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    std::fs::write(&key, relay.key_pem()).unwrap();
    let error = load();
    assert!(
        error.contains("relay.pem holds a certificate that cannot be used"),
        "{error}"
    );

    let missing = Roots::load(&dir.path().join("ca.pem"))
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("CA certificate file") && missing.contains("ca init"),
        "{missing}"
    );
}

#[test]
fn an_operator_is_warned_in_time_of_a_certificate_that_ends() {
    let relay = ca().issue_relay("oslo-1", &[], now(), 90 * DAY).unwrap();
    assert_eq!(relay.validity().not_after, now() + 90 * DAY);
    assert_eq!(relay.warning(now()), None);
    assert_eq!(relay.warning(now() + 59 * DAY), None);
    let soon = relay.warning(now() + 61 * DAY).unwrap();
    assert!(soon.contains("expires in 29 days"), "{soon}");
    let over = relay.warning(now() + 93 * DAY).unwrap();
    assert!(over.contains("expired 3 days ago"), "{over}");
    let early = relay.warning(now() - 2 * DAY).unwrap();
    assert!(early.contains("clock"), "{early}");
}

#[test]
fn secrets_are_not_shown_in_debug_output() {
    let ca = ca();
    let relay = ca.issue_relay("oslo-1", &[], now(), DAY).unwrap();
    for shown in [format!("{ca:?}"), format!("{relay:?}")] {
        assert!(shown.contains("[secret]") && shown.len() < 80, "{shown}");
    }
}
