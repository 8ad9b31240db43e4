//! The operator's hand: for administrators.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::HeaderMap,
};
use serde::{Deserialize, Serialize};

use super::{ApiError, check_admin, json_body};
use crate::{
    Controller,
    network::{Network, OperateError, RolloutView},
};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Why {
    reason: String,
}

#[derive(Serialize)]
pub(super) struct Done {
    /// What was done.
    done: String,
    /// Why it will not survive a restart, if it could not be written to disk.
    not_kept: Option<String>,
}

/// One of these.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RolloutRequest {
    /// Such as `"5%"`.
    share: Option<String>,
    /// `epoch.number`.
    rollback: Option<String>,
    hold: Option<bool>,
    release: Option<bool>,
    reason: String,
}

pub(super) async fn quarantine(
    State(controller): State<Controller>,
    Path(relay): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Done>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let why: Why = json_body(&headers, &body)?;
    let act = |network: &mut Network, now| network.quarantine(now, &relay, &why.reason);
    let not_kept = controller.operate(act).await?;
    Ok(done(
        format!("{relay} is quarantined: no path crosses it, its sessions stay"),
        not_kept,
    ))
}

pub(super) async fn unquarantine(
    State(controller): State<Controller>,
    Path(relay): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Done>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let act = |network: &mut Network, now| network.unquarantine(now, &relay);
    let not_kept = controller.operate(act).await?;
    Ok(done(format!("{relay} is no longer quarantined"), not_kept))
}

pub(super) async fn decommission(
    State(controller): State<Controller>,
    Path(relay): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Done>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let why: Why = json_body(&headers, &body)?;
    let act = |network: &mut Network, now| network.decommission(now, &relay, &why.reason);
    let not_kept = controller.operate(act).await?;
    Ok(done(
        format!("{relay} drains; then its name is refused"),
        not_kept,
    ))
}

pub(super) async fn recommission(
    State(controller): State<Controller>,
    Path(relay): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Done>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let act = |network: &mut Network, now| network.recommission(now, &relay);
    let not_kept = controller.operate(act).await?;
    Ok(done(format!("{relay} is taken in again"), not_kept))
}

pub(super) async fn rollout(
    State(controller): State<Controller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<RolloutView>, ApiError> {
    check_admin(controller.admin_access(), &headers)?;
    let request: RolloutRequest = json_body(&headers, &body)?;
    let act =
        |network: &mut Network, now| {
            match request {
        RolloutRequest { share: Some(share), rollback: None, hold: None, release: None, .. } => {
            network.set_share(now, permille(&share)?)
        }
        RolloutRequest { share: None, rollback: Some(plan), hold: None, release: None, .. } => {
            network.rollback(now, &plan)
        }
        RolloutRequest { share: None, rollback: None, hold: Some(true), release: None, reason } => {
            network.hold(now, &reason)
        }
        RolloutRequest { share: None, rollback: None, hold: None, release: Some(true), .. } => {
            network.release(now);
            Ok(())
        }
        _ => Err(OperateError::Bad(
            "say one of {\"share\": \"5%\"}, {\"rollback\": \"EPOCH.NUMBER\"}, {\"hold\": true} \
             and {\"release\": true}"
                .to_owned(),
        )),
    }
        };
    // Nothing of it outlives the controller: a restarted one plans by itself.
    controller.operate(act).await?;
    Ok(Json(controller.rollout()))
}

/// `"5%"` or `"12.5 %"` in parts per thousand.
fn permille(text: &str) -> Result<u32, OperateError> {
    let wrong = || OperateError::Bad(format!("`{text}` is no share; write such as \"5%\""));
    let number = text.trim().strip_suffix('%').ok_or_else(wrong)?;
    let percent: f64 = number.trim().parse().map_err(|_| wrong())?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(wrong());
    }
    Ok((percent * 10.0).round() as u32)
}

pub(super) fn done(done: String, not_kept: Option<String>) -> Json<Done> {
    Json(Done { done, not_kept })
}
