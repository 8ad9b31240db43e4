//! Who is who in a deployment: its certificate authority, the TLS configurations made from it, the
//! tokens of clients and of enrolling relays.
//!
//! One crypto provider for everything, *ring*, always given explicitly. All keys are Ed25519: their
//! signatures and certificates have constant lengths, which runs in virtual time rely on. TLS is 1.3
//! only, without resumption and without 0-RTT, and takes the time of day from the host it runs on.

mod ca;
mod enrol;
mod error;
mod identity;
mod jwt;
mod names;
mod pem_file;
mod quic_keys;
mod revocation;
pub mod tls;
mod token;

pub use ca::{AltName, Ca, DEFAULT_LEAF_LIFETIME, Role};
pub use enrol::{EnrolBook, EnrolError, EnrolGrant, EnrolHash, EnrolToken};
pub use error::TrustError;
pub use identity::{Identity, KeyRequest, Roots, Validity};
pub use names::{
    CONTROLLER_NAME, EDGE_NAME, MAX_RELAY_NAME, cert_name, check_relay_name, peer_dns_names,
    server_name, verify_peer_controller, verify_peer_name,
};
pub use quic_keys::QuicKeys;
pub use revocation::{Revocation, RevocationError, RevocationList, Revoked};
pub use token::{CLOCK_LEEWAY, MAX_TOKEN, TokenError, TokenKeys, TokenSigner};
pub use tradewind_proto::{ALPN_CLIENT, ALPN_CONTROL, ALPN_ENROL, ALPN_LINK, token::Claims};
