use std::time::Duration;

use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::{
    ALPN_CLIENT, ALPN_CONTROL, ALPN_ENROL, ALPN_LINK, CONTROLLER_NAME, Ca, EDGE_NAME, server_name,
    verify_peer_name,
};

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn clock(time: SystemTime) -> WallClock {
    Arc::new(move || time)
}

struct World {
    ca: Ca,
    oslo: Identity,
    lima: Identity,
    controller: Identity,
}

impl World {
    fn new() -> Self {
        let ca = Ca::create("Test", now()).unwrap();
        let relay = |name| ca.issue_relay(name, &[], now(), 10 * DAY).unwrap();
        let (oslo, lima) = (relay("oslo-1"), relay("gcp:south Lima"));
        let controller = ca.issue_controller(&[], now(), 10 * DAY).unwrap();
        Self {
            ca,
            oslo,
            lima,
            controller,
        }
    }

    fn link_server(&self) -> ServerConfig {
        mtls_server_config(&self.oslo, &self.ca.roots(), &[ALPN_LINK], clock(now())).unwrap()
    }

    fn link_client(&self) -> ClientConfig {
        mtls_client_config(&self.lima, &self.ca.roots(), &[ALPN_LINK], clock(now())).unwrap()
    }
}

/// Both ends after their handshake, or what went wrong first.
fn shake(
    client: ClientConfig,
    server: ServerConfig,
    name: ServerName<'static>,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn edge() -> ServerName<'static> {
    ServerName::try_from(EDGE_NAME).unwrap()
}

#[test]
fn two_relays_of_one_deployment_link_and_know_each_other() {
    let world = World::new();
    let name = server_name("oslo-1");
    let (client, server) = shake(world.link_client(), world.link_server(), name).unwrap();
    assert_eq!(server.alpn_protocol(), Some(ALPN_LINK));
    assert_eq!(
        client.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    let peer = &server.peer_certificates().unwrap()[0];
    verify_peer_name(peer, "gcp:south Lima").unwrap();
    assert!(verify_peer_name(peer, "oslo-1").is_err());
}

#[test]
fn a_relay_that_is_not_the_one_dialled_is_refused() {
    let world = World::new();
    let name = server_name("tokyo-1");
    let error = shake(world.link_client(), world.link_server(), name).unwrap_err();
    let wrong_name = matches!(
        error,
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName
                | rustls::CertificateError::NotValidForNameContext { .. }
        )
    );
    assert!(wrong_name, "{error:?}");
}

#[test]
fn a_relay_of_another_deployment_is_refused_by_either_end() {
    let (ours, theirs) = (World::new(), World::new());
    let name = || server_name("oslo-1");
    let error = shake(theirs.link_client(), ours.link_server(), name()).unwrap_err();
    assert!(
        matches!(error, rustls::Error::InvalidCertificate(_)),
        "{error:?}"
    );
    // A client that trusts the server, but whose own certificate is of another deployment.
    let client = mtls_client_config(&theirs.lima, &ours.ca.roots(), &[ALPN_LINK], clock(now()));
    let error = shake(client.unwrap(), ours.link_server(), name()).unwrap_err();
    assert!(
        matches!(error, rustls::Error::InvalidCertificate(_)),
        "{error:?}"
    );
}

#[test]
fn a_link_without_a_certificate_is_refused() {
    let world = World::new();
    let client = client_config(&world.ca.roots(), &[ALPN_LINK], clock(now())).unwrap();
    let error = shake(client, world.link_server(), server_name("oslo-1")).unwrap_err();
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
}

#[test]
fn a_client_reaches_any_edge_by_the_shared_name_but_not_the_controller_by_it() {
    let world = World::new();
    let client = || client_config(&world.ca.roots(), &[ALPN_CLIENT], clock(now())).unwrap();
    for relay in [&world.oslo, &world.lima] {
        let server = client_port_server_config(relay, &[ALPN_CLIENT], clock(now())).unwrap();
        let (_, server) = shake(client(), server, edge()).unwrap();
        assert!(server.peer_certificates().is_none());
    }
    let server = client_port_server_config(&world.controller, &[ALPN_CLIENT], clock(now()));
    assert!(shake(client(), server.unwrap(), edge()).is_err());
}

#[test]
fn the_controller_takes_both_the_certified_and_the_enrolling() {
    let world = World::new();
    let roots = world.ca.roots();
    let alpns = [ALPN_CONTROL, ALPN_ENROL];
    let server = || controller_server_config(&world.controller, &roots, &alpns, clock(now()));
    let name = || ServerName::try_from(CONTROLLER_NAME).unwrap();

    let enrolling = client_config(&roots, &[ALPN_ENROL], clock(now())).unwrap();
    let (_, met) = shake(enrolling, server().unwrap(), name()).unwrap();
    assert!(met.peer_certificates().is_none());
    assert_eq!(met.alpn_protocol(), Some(ALPN_ENROL));

    let known = mtls_client_config(&world.oslo, &roots, &[ALPN_CONTROL], clock(now())).unwrap();
    let (_, met) = shake(known, server().unwrap(), name()).unwrap();
    let chain = met.peer_certificates().unwrap().to_vec();
    let peer = peer_certificate(Some(Box::new(
        chain
            .into_iter()
            .map(CertificateDer::into_owned)
            .collect::<Vec<_>>(),
    )));
    verify_peer_name(&peer.unwrap(), "oslo-1").unwrap();

    let stranger = World::new();
    let false_one = mtls_client_config(&stranger.oslo, &roots, &[ALPN_CONTROL], clock(now()));
    assert!(shake(false_one.unwrap(), server().unwrap(), name()).is_err());
}

#[test]
fn a_protocol_the_server_does_not_speak_is_refused() {
    let world = World::new();
    let client = client_config(&world.ca.roots(), &[ALPN_ENROL], clock(now())).unwrap();
    let server = client_port_server_config(&world.oslo, &[ALPN_CLIENT], clock(now())).unwrap();
    let error = shake(client, server, edge()).unwrap_err();
    assert_eq!(error, rustls::Error::NoApplicationProtocol);
}

#[test]
fn certificates_are_judged_by_the_clock_that_was_handed_in() {
    let world = World::new();
    let server = || client_port_server_config(&world.oslo, &[ALPN_CLIENT], clock(now())).unwrap();
    let meet = |time| {
        let client = client_config(&world.ca.roots(), &[ALPN_CLIENT], clock(time)).unwrap();
        shake(client, server(), edge()).map(|_| ())
    };
    // Clocks of hosts differ: a day before the certificate was made still works.
    meet(now() - Duration::from_secs(80_000)).unwrap();
    meet(now() + 9 * DAY).unwrap();
    let error = meet(now() + 11 * DAY).unwrap_err();
    let expired = matches!(
        error,
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. }
        )
    );
    assert!(expired, "{error:?}");
    assert!(meet(now() - 3 * DAY).is_err());
    // And so does the server judge its peers.
    let late = clock(now() + 11 * DAY);
    let server = mtls_server_config(&world.oslo, &world.ca.roots(), &[ALPN_LINK], late).unwrap();
    assert!(shake(world.link_client(), server, server_name("oslo-1")).is_err());
}

#[test]
fn a_deployment_may_trust_two_authorities_while_one_replaces_the_other() {
    let (old, new) = (World::new(), World::new());
    let both =
        Roots::from_pem(format!("{}{}", old.ca.roots().pem(), new.ca.roots().pem()).as_bytes());
    let both = both.unwrap();
    assert_eq!(both.certs().len(), 2);
    for world in [&old, &new] {
        let client = client_config(&both, &[ALPN_CLIENT], clock(now())).unwrap();
        let server = client_port_server_config(&world.oslo, &[ALPN_CLIENT], clock(now()));
        shake(client, server.unwrap(), edge()).unwrap();
    }
}

#[test]
fn no_session_is_resumed() {
    let world = World::new();
    let server =
        Arc::new(client_port_server_config(&world.oslo, &[ALPN_CLIENT], clock(now())).unwrap());
    let client = client_config(&world.ca.roots(), &[ALPN_CLIENT], clock(now())).unwrap();
    for _ in 0..2 {
        let (client, _) = shake(client.clone(), (*server).clone(), edge()).unwrap();
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

#[test]
fn the_configurations_work_within_quic() {
    let world = World::new();
    quic_server(world.link_server()).unwrap();
    quic_client(world.link_client()).unwrap();
}
