//! QUIC's parameters on the two ports.

use std::{sync::Arc, time::Duration};

use quinn_proto::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig,
    VarInt,
};
use tradewind_proto::{ALPN_CLIENT, ALPN_LINK};
use tradewind_trust::{Identity, QuicKeys, Roots, TrustError, tls};

use crate::{congestion::LinkCongestion, shard::Certificates};

/// Most datagram bytes inside QUIC on one connection: about one batch. What waits longer waits in
/// our own queue, where class and age count.
const DATAGRAM_BATCH: usize = 8 << 10;
/// Acknowledge every this many packets (ACK frequency extension): fewer packets back, less CPU.
const ACK_EVERY: u32 = 10;
/// A link's packets are acknowledged within this: acknowledgements are signs of life, and of what was
/// lost.
const LINK_ACK_DELAY: Duration = Duration::from_millis(25);
/// The same on links, whose congestion control must allow for it.
pub(crate) const LINK_ACK_EVERY: u32 = ACK_EVERY;
/// Smallest UDP payload of a link at the start: what an IPv6 path of the minimum MTU, 1,280,
/// carries (RFC 8200, section 5). Discovery finds more.
const LINK_INITIAL_MTU: u16 = 1_232;

/// A client that is silent for so long is gone, milliseconds; most say that they want to be given up
/// sooner. Phones may be silent for two minutes, to spare their batteries.
const CLIENT_IDLE_MS: VarInt = VarInt::from_u32(180_000);

/// How soon after each other clients of the process before are told that their connections are gone:
/// there may be tens of thousands. Each answer is shorter than what it answers.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

/// The clients' endpoint, with keys that outlive the process.
pub(crate) fn client_endpoint(quic_keys: &QuicKeys) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    quic_keys.apply_to_endpoint(&mut config);
    config.min_reset_interval(RESET_INTERVAL);
    config
}

/// TLS for both ports, and the clients' transport. That of a link is set when it is made: see
/// [`link_transport`].
pub(crate) fn certificates(
    identity: &Identity,
    roots: &Roots,
    quic_keys: &QuicKeys,
    clock: tls::WallClock,
) -> Result<Certificates, TrustError> {
    let client_tls = tls::client_port_server_config(identity, &[ALPN_CLIENT], clock.clone())?;
    let link_tls = tls::mtls_server_config(identity, roots, &[ALPN_LINK], clock.clone())?;
    let dial_tls = tls::mtls_client_config(identity, roots, &[ALPN_LINK], clock)?;

    let mut client_server = ServerConfig::with_crypto(tls::quic_server(client_tls)?);
    client_server.transport_config(Arc::new(client_transport()));
    quic_keys.apply_to_server(&mut client_server);
    let mut link_server = ServerConfig::with_crypto(tls::quic_server(link_tls)?);
    link_server.migration(false);
    let link_client = ClientConfig::new(tls::quic_client(dial_tls)?);
    Ok(Certificates {
        client_server: Arc::new(client_server),
        link_server: Arc::new(link_server),
        link_client,
    })
}

/// Towards clients: modest windows, for there are many of them.
fn client_transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(16))
        .stream_receive_window(VarInt::from_u32(256 << 10))
        .receive_window(VarInt::from_u32(1 << 20))
        .send_window(1 << 20)
        .max_idle_timeout(Some(IdleTimeout::from(CLIENT_IDLE_MS)))
        .datagram_receive_buffer_size(Some(256 << 10))
        .datagram_send_buffer_size(DATAGRAM_BATCH)
        .ack_frequency_config(Some(ack_frequency(Duration::from_millis(20))));
    config
}

/// QUIC's parameters between relays: room for the product of bandwidth and delay of a long link, and
/// the links' own congestion control.
#[must_use]
pub fn link_transport(congestion: LinkCongestion) -> TransportConfig {
    let mut link_acks = ack_frequency(LINK_ACK_DELAY);
    // The first packet after a gap is acknowledged at once (RFC 9000, section 13.2.1): a brownout is
    // seen by the losses it makes.
    link_acks.reordering_threshold(VarInt::from_u32(1));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(64))
        .stream_receive_window(VarInt::from_u32(4 << 20))
        .receive_window(VarInt::from_u32(32 << 20))
        .send_window(16 << 20)
        .initial_rtt(Duration::from_millis(200))
        .congestion_controller_factory(Arc::new(congestion))
        .initial_mtu(LINK_INITIAL_MTU)
        // Longer than the slowest probing is silent; what is dead is found by probes, and sooner.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(40_000))))
        .datagram_receive_buffer_size(Some(2 << 20))
        .datagram_send_buffer_size(DATAGRAM_BATCH)
        .ack_frequency_config(Some(link_acks));
    config
}

fn ack_frequency(max_delay: Duration) -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config
        .ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY))
        .max_ack_delay(Some(max_delay));
    config
}
