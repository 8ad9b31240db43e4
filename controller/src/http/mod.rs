//! The HTTP API: what the controller knows, as JSON. Errors are `{"error": "…"}`.

mod operate;
mod policy;
mod revocations;
mod show;

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json, Router,
    body::{Bytes, to_bytes},
    extract::{Query, State},
    http::{HeaderMap, StatusCode, Uri, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use subtle::ConstantTimeEq as _;

use crate::{
    AdminAccess, Controller, EnrolTokenError,
    network::{EdgeView, MatrixView, OperateError, PathError, PlanView, RelayView},
};

/// Enrolment tokens are good for an hour unless another time is asked for …
const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
/// … of at most 30 days.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// Longest reason of the framework, in bytes.
const MAX_REFUSAL: usize = 4_096;

type Parameters = Query<BTreeMap<String, String>>;

pub(crate) fn router(controller: Controller) -> Router {
    Router::new()
        .route("/v1/version", get(version))
        .route("/v1/relays", get(relays))
        .route("/v1/edges", get(edges))
        .route("/v1/matrix", get(matrix))
        .route("/v1/plan", get(plan))
        .route("/v1/path", get(show::path))
        .route("/v1/link", get(show::link))
        .route("/v1/plans", get(show::plans))
        .route("/v1/plans/{plan}", get(show::plan_entry))
        .route("/v1/status", get(show::status))
        .route("/v1/alerts", get(show::alerts))
        .route("/v1/policy", get(policy::show).put(policy::put))
        .route("/v1/pins", post(policy::pin).delete(policy::unpin))
        .route("/v1/rollout", get(show::rollout).post(operate::rollout))
        .route(
            "/v1/relays/{relay}/quarantine",
            post(operate::quarantine).delete(operate::unquarantine),
        )
        .route(
            "/v1/relays/{relay}/decommission",
            post(operate::decommission).delete(operate::recommission),
        )
        .route("/v1/enrol-tokens", post(create_enrol_token))
        .route(
            "/v1/revocations",
            get(revocations::list)
                .post(revocations::revoke)
                .delete(revocations::lift),
        )
        .route("/v1/{*unknown}", any(unknown))
        .method_not_allowed_fallback(wrong_method)
        .layer(map_response(errors_as_json))
        .with_state(controller)
}

/// An answer that is not what was asked for.
#[derive(Debug)]
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<PathError> for ApiError {
    fn from(error: PathError) -> Self {
        let status = match error {
            PathError::UnknownRelay { .. } | PathError::NoWay { .. } | PathError::NoLink { .. } => {
                StatusCode::NOT_FOUND
            }
            PathError::Ambiguous { .. } => StatusCode::BAD_REQUEST,
            PathError::NoPlan => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl From<OperateError> for ApiError {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::Relay(error) => error.into(),
            OperateError::Bad(reason) => Self(StatusCode::BAD_REQUEST, reason),
            OperateError::Conflict(reason) => Self(StatusCode::CONFLICT, reason),
        }
    }
}

#[derive(Serialize)]
struct Relays {
    relays: Vec<RelayView>,
}

#[derive(Serialize)]
struct Edges {
    edges: Vec<EdgeView>,
}

#[derive(Serialize)]
struct CreatedToken {
    token: String,
    relay: Option<String>,
    expires_in_s: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TokenRequest {
    relay: Option<String>,
    lifetime_s: Option<u64>,
}

async fn version() -> Response {
    let version = json!({ "name": "tradewind-controller", "version": env!("CARGO_PKG_VERSION") });
    Json(version).into_response()
}

async fn relays(State(controller): State<Controller>) -> Json<Relays> {
    Json(Relays {
        relays: controller.relays(),
    })
}

async fn edges(State(controller): State<Controller>) -> Json<Edges> {
    Json(Edges {
        edges: controller.edges(),
    })
}

async fn matrix(State(controller): State<Controller>) -> Json<MatrixView> {
    Json(controller.matrix())
}

async fn plan(State(controller): State<Controller>) -> Result<Json<PlanView>, ApiError> {
    Ok(Json(controller.plan().ok_or(PathError::NoPlan)?))
}

async fn create_enrol_token(
    State(controller): State<Controller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let request: TokenRequest = json_body(&headers, &body)?;
    let lifetime = request
        .lifetime_s
        .map_or(TOKEN_LIFETIME, Duration::from_secs);
    if lifetime.is_zero() || lifetime > MAX_TOKEN_LIFETIME {
        let reason = format!(
            "`lifetime_s` must be from 1 to {}",
            MAX_TOKEN_LIFETIME.as_secs()
        );
        return Err(ApiError(StatusCode::BAD_REQUEST, reason));
    }
    let token = controller
        .create_enrol_token(request.relay.clone(), lifetime)
        .map_err(|error| match error {
            EnrolTokenError::NotEnrolling => ApiError(StatusCode::CONFLICT, error.to_string()),
            EnrolTokenError::Trust(_) => ApiError(StatusCode::BAD_REQUEST, error.to_string()),
            EnrolTokenError::State(_) => {
                tracing::error!(%error, "enrolment token");
                let reason = "the token cannot be kept; the controller's log says why";
                ApiError(StatusCode::INTERNAL_SERVER_ERROR, reason.to_owned())
            }
        })?;
    let created = CreatedToken {
        token: token.to_string(),
        relay: request.relay,
        expires_in_s: lifetime.as_secs(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

async fn unknown(uri: Uri) -> ApiError {
    let reason = format!(
        "there is no {}; there are /v1/relays, /v1/edges, /v1/matrix, /v1/plan, /v1/plans, \
         /v1/path?from=&to=, /v1/link?from=&to=, /v1/status, /v1/alerts, /v1/policy, /v1/pins, \
         /v1/rollout, /v1/relays/RELAY/quarantine, /v1/relays/RELAY/decommission, \
         /v1/revocations, /v1/enrol-tokens (POST) and /v1/version",
        uri.path()
    );
    ApiError(StatusCode::NOT_FOUND, reason)
}

async fn wrong_method(uri: Uri) -> ApiError {
    let path = uri.path();
    let takes = match path {
        "/v1/enrol-tokens" => "POST",
        "/v1/policy" => "GET and PUT",
        "/v1/pins" => "POST and DELETE",
        "/v1/revocations" => "GET, POST and DELETE",
        "/v1/rollout" => "GET and POST",
        path if path.starts_with("/v1/relays/") => "POST and DELETE",
        _ => "GET",
    };
    let reason = format!("{path} takes {takes}");
    ApiError(StatusCode::METHOD_NOT_ALLOWED, reason)
}

/// What the framework itself refuses (a body that is too large, a path that is no text) in the same
/// form as everything else.
async fn errors_as_json(response: Response) -> Response {
    let is_text = content_type(response.headers()) == Some("text/plain");
    if !is_text || !response.status().is_client_error() {
        return response;
    }
    let status = response.status();
    let text = to_bytes(response.into_body(), MAX_REFUSAL).await;
    let reason = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    ApiError(status, reason).into_response()
}

fn check_admin(access: &AdminAccess, headers: &HeaderMap) -> Result<(), ApiError> {
    let secret = match access {
        AdminAccess::Open => return Ok(()),
        AdminAccess::Secret(secret) => secret,
        AdminAccess::Closed => {
            let reason = "administration over HTTP is off; configure `admin_secret_file`";
            return Err(ApiError(StatusCode::FORBIDDEN, reason.to_owned()));
        }
    };
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    match shown {
        Some(shown) if shown.as_bytes().ct_eq(secret.as_bytes()).into() => Ok(()),
        Some(_) => Err(ApiError(
            StatusCode::UNAUTHORIZED,
            "the admin secret is wrong".to_owned(),
        )),
        None => {
            let reason = "show the admin secret: `Authorization: Bearer …` \
                          (tradewind: --admin-secret-file FILE, or TRADEWIND_ADMIN_SECRET)";
            Err(ApiError(StatusCode::UNAUTHORIZED, reason.to_owned()))
        }
    }
}

/// A parameter of the query that must be there.
fn required<'a>(parameters: &'a Parameters, name: &str, hint: &str) -> Result<&'a str, ApiError> {
    optional(parameters, name).ok_or_else(|| {
        let reason = format!("parameter `{name}` is missing; {hint}");
        ApiError(StatusCode::BAD_REQUEST, reason)
    })
}

/// A parameter of the query, if it is there and not empty.
fn optional<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    let value = parameters.get(name).map(String::as_str);
    value.filter(|value| !value.is_empty())
}

/// A parameter that is read from its text, if it is there.
fn parsed<T: std::str::FromStr>(
    parameters: &Parameters,
    name: &str,
    forms: &str,
) -> Result<Option<T>, ApiError> {
    let Some(text) = optional(parameters, name) else {
        return Ok(None);
    };
    let value = text.parse().map_err(|_| {
        let reason = format!("`{name}={text}` is not {forms}");
        ApiError(StatusCode::BAD_REQUEST, reason)
    })?;
    Ok(Some(value))
}

/// The body as JSON, which must be said to be JSON: so browsers let no foreign page send it.
fn json_body<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, ApiError> {
    if content_type(headers) != Some("application/json") {
        let reason = "send a body of `Content-Type: application/json`, at least {}";
        return Err(ApiError(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            reason.to_owned(),
        ));
    }
    serde_json::from_slice(body).map_err(|error| {
        ApiError(
            StatusCode::BAD_REQUEST,
            format!("the body is not as expected: {error}"),
        )
    })
}

/// The kind of the body, without its parameters.
fn content_type(headers: &HeaderMap) -> Option<&str> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    kind.split(';').next().map(str::trim)
}
