//! A new relay's way into a deployment: a one-time token for a certificate.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prost::Message as _;
use tradewind_host::Host;
use tradewind_proto::{
    ALPN_ENROL, FrameReader, MAX_FRAME,
    control::{EnrolRequest, EnrolResponse},
    frame_message,
};
use tradewind_trust::{CONTROLLER_NAME, Identity, KeyRequest, Roots, TrustError, tls};

use crate::resolve::{ResolveError, resolve};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a relay enrols with.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// The controller, `host:port`.
    pub controller: String,
    /// The one-time token.
    pub token: String,
    /// The relay's name.
    pub relay: String,
    /// DNS names and IP addresses to be put into the certificate beside the relay's name.
    pub names: Vec<String>,
    /// The deployment's CA, which the controller's certificate is checked against.
    pub roots: Roots,
}

/// Why a relay could not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The controller said no.
    #[error("the controller refused to enrol {relay}: {reason}")]
    Refused {
        /// The relay's name.
        relay: String,
        /// The controller's words.
        reason: String,
    },
    /// The controller's address cannot be found.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Keys or certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The controller cannot be talked to.
    #[error(
        "cannot enrol with the controller at {address}: {reason}; is it running, and is this its address?"
    )]
    Unreachable {
        /// The controller's address.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
}

/// Makes a key, has the controller sign a certificate for it, and gives both.
///
/// # Errors
/// [`EnrolError`]. A token that was refused stays unused.
pub async fn enrol(request: Enrolment, host: Arc<dyn Host>) -> Result<Identity, EnrolError> {
    let key = KeyRequest::generate(&request.relay)?;
    let address = resolve(&request.controller).await?;
    let config = tls::client_config(&request.roots, &[ALPN_ENROL], tls::host_clock(host.clone()))?;
    let config = quinn::ClientConfig::new(tls::quic_client(config)?);
    let message = EnrolRequest {
        token: request.token,
        relay: request.relay.clone(),
        csr: key.csr().to_vec(),
        names: request.names,
    };
    let exchange = exchange(&host, address, config, &message);
    let answer = host
        .timeout(PATIENCE, exchange)
        .await
        .map_err(|elapsed| elapsed.to_string())
        .and_then(|answer| answer)
        .map_err(|reason| EnrolError::Unreachable { address, reason })?;
    if !answer.error.is_empty() {
        return Err(EnrolError::Refused {
            relay: request.relay,
            reason: answer.error,
        });
    }
    let chain = answer.certificates.into_iter().map(Into::into).collect();
    Ok(key.complete(chain)?)
}

async fn exchange(
    host: &Arc<dyn Host>,
    address: SocketAddr,
    config: quinn::ClientConfig,
    message: &EnrolRequest,
) -> Result<EnrolResponse, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let local: SocketAddr = if address.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let endpoint = host.quic_endpoint(local, None).map_err(|e| text(&e))?;
    let connection = endpoint
        .connect_with(config, address, CONTROLLER_NAME)
        .map_err(|e| text(&e))?
        .await
        .map_err(|e| text(&e))?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| text(&e))?;
    send.write_chunk(frame_message(message))
        .await
        .map_err(|e| text(&e))?;
    send.finish().map_err(|e| text(&e))?;
    let mut frames = FrameReader::new(MAX_FRAME);
    loop {
        let chunk = receive
            .read_chunk(usize::MAX, true)
            .await
            .map_err(|e| text(&e))?
            .ok_or("the controller ended the stream without an answer")?;
        frames.push(chunk.bytes);
        if let Some(frame) = frames.next_frame().map_err(|e| text(&e))? {
            connection.close(quinn::VarInt::from_u32(0), b"enrolled");
            return EnrolResponse::decode(frame).map_err(|e| text(&e));
        }
    }
}
