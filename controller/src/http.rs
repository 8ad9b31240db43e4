//! The HTTP API: what the controller knows, as JSON. Errors are `{"error": "…"}`.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use subtle::ConstantTimeEq as _;

use crate::{
    AdminAccess, Controller, EnrolTokenError,
    network::{EdgeView, MatrixView, PathError, PathView, PlanView, RelayView},
};

/// Enrolment tokens are good for an hour unless another time is asked for …
const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
/// … of at most 30 days.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

type Parameters = Query<BTreeMap<String, String>>;

pub(crate) fn router(controller: Controller) -> Router {
    Router::new()
        .route("/v1/version", get(version))
        .route("/v1/relays", get(relays))
        .route("/v1/edges", get(edges))
        .route("/v1/matrix", get(matrix))
        .route("/v1/plan", get(plan))
        .route("/v1/path", get(path))
        .route("/v1/enrol-tokens", post(create_enrol_token))
        .route("/v1/{*unknown}", any(unknown))
        .method_not_allowed_fallback(wrong_method)
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

async fn path(
    State(controller): State<Controller>,
    Query(parameters): Parameters,
) -> Result<Json<PathView>, ApiError> {
    let parameter = |name: &str| {
        parameters
            .get(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| {
                let hint = "ask for /v1/path?from=RELAY&to=RELAY";
                ApiError(
                    StatusCode::BAD_REQUEST,
                    format!("parameter `{name}` is missing; {hint}"),
                )
            })
    };
    let (from, to) = (parameter("from")?, parameter("to")?);
    Ok(Json(controller.path(from, to)?))
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
        "there is no {}; there are /v1/relays, /v1/edges, /v1/matrix, /v1/plan, \
         /v1/path?from=&to=, /v1/enrol-tokens (POST) and /v1/version",
        uri.path()
    );
    ApiError(StatusCode::NOT_FOUND, reason)
}

async fn wrong_method(uri: Uri) -> ApiError {
    let reason = match uri.path() {
        "/v1/enrol-tokens" => "/v1/enrol-tokens takes POST".to_owned(),
        path => format!("{path} takes GET"),
    };
    ApiError(StatusCode::METHOD_NOT_ALLOWED, reason)
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
            let reason = "show the admin secret: `Authorization: Bearer …`";
            Err(ApiError(StatusCode::UNAUTHORIZED, reason.to_owned()))
        }
    }
}

/// The body as JSON, which must be said to be JSON: so browsers let no foreign page send it.
fn json_body<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, ApiError> {
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.split(';').next().map(str::trim) == Some("application/json"));
    if !is_json {
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
