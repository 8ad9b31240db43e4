//! The HTTP API.
use crate::Controller;
pub(crate) fn router(_controller: Controller) -> axum::Router {
    axum::Router::new()
}
