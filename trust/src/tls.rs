//! TLS configurations for every kind of connection, made from an [`Identity`] and [`Roots`].
//!
//! All take the time of day from a [`WallClock`], so that certificates on emulated hosts are judged
//! by those hosts' clocks. All are TLS 1.3 only, with one provider (*ring*), without session
//! resumption and without 0-RTT: a resumed session would outlive a revoked certificate, and early
//! data can be replayed.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, ConfigBuilder, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tradewind_host::Host;

use crate::{Identity, Roots, TrustError};

/// Tells the time of day: for the lifetimes of certificates, never for measuring.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The crypto provider of everything in a deployment.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The wall clock of a host.
#[must_use]
pub fn host_clock(host: Arc<dyn Host>) -> WallClock {
    Arc::new(move || host.wall_clock())
}

/// For a relay's client port: shows the relay's certificate, asks for none.
///
/// # Errors
/// [`TrustError::Crypto`]: the identity cannot be used.
pub fn client_port_server_config(
    identity: &Identity,
    alpns: &[&[u8]],
    clock: WallClock,
) -> Result<ServerConfig, TrustError> {
    let builder = server_builder(clock)?.with_no_client_auth();
    finish_server(builder, identity, alpns)
}

/// For a relay's link port: asks for a certificate of this deployment and takes nothing less.
/// *Which* relay it is must be checked on top (see [`verify_peer_name`](crate::verify_peer_name)).
///
/// # Errors
/// As [`client_port_server_config`].
pub fn mtls_server_config(
    identity: &Identity,
    roots: &Roots,
    alpns: &[&[u8]],
    clock: WallClock,
) -> Result<ServerConfig, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.store(), provider())
        .build()
        .map_err(TrustError::crypto("verify peers' certificates"))?;
    let builder = server_builder(clock)?.with_client_cert_verifier(verifier);
    finish_server(builder, identity, alpns)
}

/// For the controller: a certificate of this deployment is verified when shown, but enrolment goes
/// without one. The controller must itself demand one ([`peer_certificate`]) before it answers
/// anything else.
///
/// # Errors
/// As [`client_port_server_config`].
pub fn controller_server_config(
    identity: &Identity,
    roots: &Roots,
    alpns: &[&[u8]],
    clock: WallClock,
) -> Result<ServerConfig, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.store(), provider())
        .allow_unauthenticated()
        .build()
        .map_err(TrustError::crypto("verify peers' certificates"))?;
    let builder = server_builder(clock)?.with_client_cert_verifier(verifier);
    finish_server(builder, identity, alpns)
}

/// For clients and for enrolment: verifies the server, shows nothing.
///
/// # Errors
/// [`TrustError::Crypto`].
pub fn client_config(
    roots: &Roots,
    alpns: &[&[u8]],
    clock: WallClock,
) -> Result<ClientConfig, TrustError> {
    let builder = client_builder(clock)?.with_root_certificates(roots.store());
    Ok(finish_client(builder.with_no_client_auth(), alpns))
}

/// For a relay that dials another or the controller: verifies the server, shows the relay's own
/// certificate.
///
/// # Errors
/// [`TrustError::Crypto`]: the identity cannot be used.
pub fn mtls_client_config(
    identity: &Identity,
    roots: &Roots,
    alpns: &[&[u8]],
    clock: WallClock,
) -> Result<ClientConfig, TrustError> {
    let config = client_builder(clock)?
        .with_root_certificates(roots.store())
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().clone_key())
        .map_err(TrustError::crypto("use the certificate"))?;
    Ok(finish_client(config, alpns))
}

/// Makes a TLS configuration fit for QUIC (quinn and quinn-proto take the same).
///
/// # Errors
/// [`TrustError::Crypto`].
pub fn quic_server(config: ServerConfig) -> Result<Arc<QuicServerConfig>, TrustError> {
    QuicServerConfig::try_from(config)
        .map(Arc::new)
        .map_err(TrustError::crypto("use TLS within QUIC"))
}

/// Makes a TLS configuration fit for QUIC (quinn and quinn-proto take the same).
///
/// # Errors
/// [`TrustError::Crypto`].
pub fn quic_client(config: ClientConfig) -> Result<Arc<QuicClientConfig>, TrustError> {
    QuicClientConfig::try_from(config)
        .map(Arc::new)
        .map_err(TrustError::crypto("use TLS within QUIC"))
}

/// The peer's own certificate out of what quinn's `Connection::peer_identity` (or quinn-proto's
/// `crypto_session().peer_identity()`) gives; `None` when it has shown none.
#[must_use]
pub fn peer_certificate(
    peer_identity: Option<Box<dyn std::any::Any>>,
) -> Option<CertificateDer<'static>> {
    let chain = peer_identity?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    chain.into_iter().next()
}

struct Clock(WallClock);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

fn server_builder(
    clock: WallClock,
) -> Result<ConfigBuilder<ServerConfig, rustls::WantsVerifier>, TrustError> {
    ServerConfig::builder_with_details(provider(), Arc::new(Clock(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::crypto("set up TLS 1.3"))
}

fn client_builder(
    clock: WallClock,
) -> Result<ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TrustError> {
    ClientConfig::builder_with_details(provider(), Arc::new(Clock(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::crypto("set up TLS 1.3"))
}

fn finish_server(
    builder: ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    identity: &Identity,
    alpns: &[&[u8]],
) -> Result<ServerConfig, TrustError> {
    let mut config = builder
        .with_single_cert(identity.chain().to_vec(), identity.key().clone_key())
        .map_err(TrustError::crypto("use the certificate"))?;
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn finish_client(mut config: ClientConfig, alpns: &[&[u8]]) -> ClientConfig {
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

#[cfg(test)]
mod tests;
