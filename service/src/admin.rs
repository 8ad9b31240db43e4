//! The admin HTTP listener: `/livez`, `/readyz`, `/metrics`, `/config`, and what a service adds.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot};

/// How long open requests may go on once the listener is to end.
const GRACE: Duration = Duration::from_secs(2);

type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;
type Config = Arc<dyn Fn() -> Value + Send + Sync>;

/// Builds the admin router.
pub struct Admin {
    registry: Registry,
    ready: Ready,
    config: Config,
    extra: Router,
}

/// A TCP address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {reason}; choose another with {flag}")]
pub struct ListenError {
    address: SocketAddr,
    reason: String,
    flag: &'static str,
}

impl Admin {
    /// Shows the metrics of `registry`; is ready at once and has an empty configuration until told
    /// otherwise.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            ready: Arc::new(|| Ok(())),
            config: Arc::new(|| Value::Object(serde_json::Map::new())),
            extra: Router::new(),
        }
    }

    /// What `/readyz` answers: 200, or 503 with the reason. It must not depend on other services
    /// being up.
    #[must_use]
    pub fn ready(mut self, ready: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.ready = Arc::new(ready);
        self
    }

    /// What `/config` shows: see [`redacted`](crate::config::redacted).
    #[must_use]
    pub fn config(mut self, config: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.config = Arc::new(config);
        self
    }

    /// Adds a service's own routes.
    #[must_use]
    pub fn merge(mut self, routes: Router) -> Self {
        self.extra = self.extra.merge(routes);
        self
    }

    /// The router.
    pub fn into_router(self) -> Router {
        let Self {
            registry,
            ready,
            config,
            extra,
        } = self;
        Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(async move || readyz(&ready)))
            .route("/metrics", get(async move || metrics(&registry)))
            .route("/config", get(async move || Json(config())))
            .merge(extra)
    }
}

/// Listens on a TCP address. `flag` is the one with which people choose another (`--admin`).
///
/// # Errors
/// [`ListenError`], which says what to do.
pub async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| ListenError {
            address,
            reason: match error.kind() {
                io::ErrorKind::AddrInUse => "address already in use".to_owned(),
                io::ErrorKind::AddrNotAvailable => {
                    "it is not an address of this machine".to_owned()
                }
                io::ErrorKind::PermissionDenied => {
                    "permission denied (ports below 1024 need privileges)".to_owned()
                }
                _ => error.to_string(),
            },
            flag,
        })
}

/// Serves `router` until `shutdown` completes; requests that are open then may go on for up to
/// 2 s.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (ending, ended) = oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        let _ = ending.send(());
    };
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown);
    let grace = async move {
        if ended.await.is_err() {
            std::future::pending::<()>().await;
        }
        #[allow(clippy::disallowed_methods)] // HTTP to people is on the real clock
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => result,
        () = grace => Ok(()),
    }
}

fn readyz(ready: &Ready) -> Response {
    match ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

fn metrics(registry: &Registry) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests;
