//! Names to addresses.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;

/// A name that leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Not `host:port`.
    #[error("{0:?} is not an address: write HOST:PORT, for example controller.example.org:7400")]
    Malformed(String),
    /// The resolver has no answer.
    #[error("cannot resolve {name}: {reason}; check the name and this machine's DNS")]
    Dns {
        /// The name asked for.
        name: String,
        /// What the resolver said.
        reason: String,
    },
}

/// The first address of `host:port`. Literal addresses need no DNS.
///
/// # Errors
/// [`ResolveError`].
pub async fn resolve(address: &str) -> Result<SocketAddr, ResolveError> {
    if let Ok(literal) = address.parse() {
        return Ok(literal);
    }
    let (name, port) = address
        .rsplit_once(':')
        .and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?)))
        .ok_or_else(|| ResolveError::Malformed(address.to_owned()))?;
    let failed = |reason: String| ResolveError::Dns {
        name: name.to_owned(),
        reason,
    };
    let resolver = TokioResolver::builder_tokio()
        .and_then(hickory_resolver::ResolverBuilder::build)
        .map_err(|error| failed(error.to_string()))?;
    let found = resolver
        .lookup_ip(name)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let ip: IpAddr = found
        .iter()
        .next()
        .ok_or_else(|| failed("no addresses".to_owned()))?;
    Ok(SocketAddr::new(ip, port))
}
