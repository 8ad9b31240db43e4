//! Withdrawing tokens: for administrators. The list names users, so it is for them alone too.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use serde::{Deserialize, Serialize};
use tradewind_trust::Revoked;

use super::{ApiError, Parameters, check_admin, json_body, operate::Done, optional, required};
use crate::{
    Controller,
    network::{RevocationView, Revoke},
};

const HINT: &str = "name the `app` and either a `token` (its id, `jti`) or a `user`";

#[derive(Serialize)]
pub(super) struct Revocations {
    revocations: Vec<RevocationView>,
}

#[derive(Serialize)]
pub(super) struct Made {
    #[serde(flatten)]
    revocation: RevocationView,
    /// Why it will not survive a restart, if it could not be written to disk.
    not_kept: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Request {
    app: String,
    token: Option<String>,
    user: Option<String>,
    issued_until_unix_s: Option<u64>,
    until_unix_s: Option<u64>,
    reason: String,
}

pub(super) async fn list(
    State(controller): State<Controller>,
    headers: HeaderMap,
) -> Result<Json<Revocations>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    Ok(Json(Revocations {
        revocations: controller.revocations(),
    }))
}

pub(super) async fn revoke(
    State(controller): State<Controller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Made>), ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let request: Request = json_body(&headers, &body)?;
    let revoke = Revoke {
        app: request.app,
        what: what(request.token, request.user)?,
        issued_until: request.issued_until_unix_s,
        until: request.until_unix_s,
        reason: request.reason,
    };
    let (revocation, not_kept) = controller.revoke(revoke).await?;
    let made = Made {
        revocation,
        not_kept,
    };
    Ok((StatusCode::CREATED, Json(made)))
}

pub(super) async fn lift(
    State(controller): State<Controller>,
    headers: HeaderMap,
    parameters: Parameters,
) -> Result<Json<Done>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let app = required(&parameters, "app", HINT)?;
    let named = |name| optional(&parameters, name).map(str::to_owned);
    let what = what(named("token"), named("user"))?;
    let act = |network: &mut crate::network::Network, _| network.lift_revocation(app, &what);
    let not_kept = controller.operate(act).await?;
    Ok(super::operate::done(
        format!("the {what} of app {app} is no longer revoked"),
        not_kept,
    ))
}

fn what(token: Option<String>, user: Option<String>) -> Result<Revoked, ApiError> {
    match (token, user) {
        (Some(id), None) => Ok(Revoked::Token(id)),
        (None, Some(user)) => Ok(Revoked::User(user)),
        _ => Err(ApiError(StatusCode::BAD_REQUEST, HINT.to_owned())),
    }
}
