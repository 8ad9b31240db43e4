//! What a controller is started with, and why it may not start.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use tradewind_trust::{Ca, EnrolToken, Identity, Roots, TokenKeys, TrustError};

use crate::{network::NetworkConfig, state::StateError, storage::StorageError};

/// What a controller is started with.
pub struct ControllerConfig {
    /// Where relays connect: UDP. Port 0 asks for any free one.
    pub listen: SocketAddr,
    /// The controller's certificate and key.
    pub identity: Arc<Identity>,
    /// What relays' certificates must descend from.
    pub roots: Roots,
    /// Signs the certificates of enrolling relays. `None`: nobody can enrol here.
    pub ca: Option<Arc<Ca>>,
    /// Enrolment tokens that any relay may use again and again: for throw-away networks only.
    pub reusable_enrol_tokens: Vec<EnrolToken>,
    /// Public keys that client tokens are verified with, for the relays.
    pub token_keys: TokenKeys,
    /// Where indices, epoch and enrolment tokens are kept. `None`: in memory only, so that a
    /// restarted controller knows nothing of the one before it.
    pub state_dir: Option<PathBuf>,
    /// Planning.
    pub network: NetworkConfig,
    /// Who may administer over the HTTP API.
    pub admin: AdminAccess,
}

/// Who may administer over the HTTP API.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum AdminAccess {
    /// Nobody.
    #[default]
    Closed,
    /// Those who show this as `Authorization: Bearer …`.
    Secret(String),
    /// Everybody who reaches it: for throw-away networks on loopback only.
    Open,
}

impl ControllerConfig {
    /// A controller on `listen` that keeps nothing on disk, enrols nobody and has no token keys.
    #[must_use]
    pub fn new(listen: SocketAddr, identity: Arc<Identity>, roots: Roots) -> Self {
        Self {
            listen,
            identity,
            roots,
            ca: None,
            reusable_enrol_tokens: Vec::new(),
            token_keys: TokenKeys::default(),
            state_dir: None,
            network: NetworkConfig::default(),
            admin: AdminAccess::Closed,
        }
    }
}

/// Why a controller did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The QUIC port cannot be had.
    #[error(
        "cannot listen for relays on UDP {address}: {source}; is another controller running there?"
    )]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// What was kept on disk cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// What was kept of policy, decisions and plans cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
