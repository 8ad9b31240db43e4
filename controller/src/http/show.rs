//! What the controller knows and does: for everybody who reaches the API.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Serialize;

use super::{ApiError, Parameters, optional, parsed, required};
use crate::{
    Controller,
    network::{
        AlertView, Explanation, LinkHistoryView, MOST_PLANS, PlanEntry, RolloutView, StatusView,
    },
    policy::ProfileName,
};

/// Plans that are shown unless asked otherwise.
const SOME_PLANS: usize = 20;

#[derive(Serialize)]
pub(super) struct Plans {
    plans: Vec<PlanEntry>,
}

#[derive(Serialize)]
pub(super) struct Alerts {
    alerts: Vec<AlertView>,
}

pub(super) async fn path(
    State(controller): State<Controller>,
    parameters: Parameters,
) -> Result<Json<Explanation>, ApiError> {
    let hint = "ask for /v1/path?from=RELAY&to=RELAY";
    let from = required(&parameters, "from", hint)?;
    let to = required(&parameters, "to", hint)?;
    let profile = profile(&parameters)?.unwrap_or(ProfileName::Realtime);
    Ok(Json(controller.explain(from, to, profile)?))
}

pub(super) async fn link(
    State(controller): State<Controller>,
    parameters: Parameters,
) -> Result<Json<LinkHistoryView>, ApiError> {
    let hint = "ask for /v1/link?from=RELAY&to=RELAY&uplink=0";
    let from = required(&parameters, "from", hint)?;
    let to = required(&parameters, "to", hint)?;
    let uplink = parsed(&parameters, "uplink", "a number from 0 to 255")?.unwrap_or(0);
    Ok(Json(controller.link(from, to, uplink)?))
}

pub(super) async fn plans(
    State(controller): State<Controller>,
    parameters: Parameters,
) -> Result<Json<Plans>, ApiError> {
    let limit = parsed(&parameters, "limit", "a number of plans")?.unwrap_or(SOME_PLANS);
    Ok(Json(Plans {
        plans: controller.plans(limit.min(MOST_PLANS)),
    }))
}

pub(super) async fn plan_entry(
    State(controller): State<Controller>,
    Path(plan): Path<String>,
) -> Result<Json<PlanEntry>, ApiError> {
    controller.plan_entry(&plan).map(Json).ok_or_else(|| {
        let reason = format!(
            "no plan {plan} is remembered (the last {MOST_PLANS} are); /v1/plans lists them, named epoch.number"
        );
        ApiError(StatusCode::NOT_FOUND, reason)
    })
}

pub(super) async fn status(State(controller): State<Controller>) -> Json<StatusView> {
    Json(controller.status())
}

pub(super) async fn alerts(State(controller): State<Controller>) -> Json<Alerts> {
    Json(Alerts {
        alerts: controller.alerts(),
    })
}

pub(super) async fn rollout(State(controller): State<Controller>) -> Json<RolloutView> {
    Json(controller.rollout())
}

/// The profile that is asked for, if one is.
pub(super) fn profile(parameters: &Parameters) -> Result<Option<ProfileName>, ApiError> {
    optional(parameters, "profile")
        .map(|word| {
            ProfileName::parse(word).ok_or_else(|| {
                let reason =
                    format!("there is no profile `{word}`; there are realtime and economy");
                ApiError(StatusCode::BAD_REQUEST, reason)
            })
        })
        .transpose()
}
