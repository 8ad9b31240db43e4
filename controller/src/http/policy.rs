//! The policy: shown to everybody who reaches the API, changed by administrators.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use serde::Serialize;

use super::{ApiError, Parameters, check_admin, content_type, json_body, parsed, required, show};
use crate::{
    Controller, Policy, PolicyChange, PolicyError, PolicyOutcome, network::OperateError,
    policy::Pin,
};

#[derive(Serialize)]
pub(super) struct PolicyView {
    policy: Policy,
    /// The same as TOML.
    toml: String,
    /// `file …`, `api` or `default`.
    source: String,
    set_at_unix_ms: u64,
    /// Rules that have no effect at present, and why.
    problems: Vec<String>,
}

pub(super) async fn show(State(controller): State<Controller>) -> Json<PolicyView> {
    let (kept, problems) = controller.policy();
    Json(PolicyView {
        toml: kept.policy.to_toml(),
        policy: kept.policy,
        source: kept.source,
        set_at_unix_ms: kept.set_at_unix_ms,
        problems,
    })
}

pub(super) async fn put(
    State(controller): State<Controller>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<PolicyOutcome>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let policy = match content_type(&headers) {
        Some("application/json") => Policy::from_json(&body),
        Some("application/toml" | "text/toml") => {
            let text = std::str::from_utf8(&body).map_err(|error| {
                ApiError(
                    StatusCode::BAD_REQUEST,
                    format!("the policy is no text: {error}"),
                )
            })?;
            Policy::from_toml(text, "policy")
        }
        // A page in a browser cannot say either of its form.
        _ => {
            let reason = "send a policy of `Content-Type: application/toml` or `application/json`";
            return Err(ApiError(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                reason.to_owned(),
            ));
        }
    };
    let outcome = controller.set_policy(policy?, change(&parameters)?).await?;
    Ok(Json(outcome))
}

pub(super) async fn pin(
    State(controller): State<Controller>,
    parameters: Parameters,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<PolicyOutcome>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let pin: Pin = json_body(&headers, &body)?;
    let what = format!("pinned: {} to {}", pin.from, pin.to);
    let edit = |mut policy: Policy| {
        policy.add_pin(pin);
        Ok(policy)
    };
    let outcome = controller
        .change_policy(edit, change(&parameters)?, &what)
        .await?;
    Ok(Json(outcome))
}

pub(super) async fn unpin(
    State(controller): State<Controller>,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Json<PolicyOutcome>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let hint = "send DELETE /v1/pins?from=RELAY&to=RELAY";
    let from = required(&parameters, "from", hint)?;
    let to = required(&parameters, "to", hint)?;
    let profile = show::profile(&parameters)?;
    let edit = |mut policy: Policy| match policy.remove_pins(from, to, profile) {
        0 => {
            let what = format!(
                "there is no pin from `{from}` to `{to}`; `tradewind policy show` lists them"
            );
            Err(OperateError::Conflict(what))
        }
        _ => Ok(policy),
    };
    // Other rules may name relays that are yet to come; they were taken so.
    let change = PolicyChange {
        allow_unknown: true,
        ..change(&parameters)?
    };
    let what = format!("unpinned: {from} to {to}");
    Ok(Json(controller.change_policy(edit, change, &what).await?))
}

fn change(parameters: &Parameters) -> Result<PolicyChange, ApiError> {
    let flag =
        |name| Ok::<_, ApiError>(parsed(parameters, name, "true or false")?.unwrap_or(false));
    Ok(PolicyChange {
        dry_run: flag("dry_run")?,
        allow_unknown: flag("allow_unknown")?,
    })
}

impl From<PolicyError> for ApiError {
    fn from(error: PolicyError) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}
