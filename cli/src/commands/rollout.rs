//! `tradewind rollout`.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    connect::{AdminArgs, ControllerArgs},
    plans, show,
};

/// What plans are stamped: shares, rollback, hold, release.
#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Shows what is stamped and what could be.
    Status(StatusArgs),
    /// Stamps a share of flows with the plan in force, the others with the one before it.
    Share(ShareArgs),
    /// Goes back to an older plan and holds it.
    Rollback(RollbackArgs),
    /// Lets plans by choice wait; what mends a failure does not wait.
    Hold(HoldArgs),
    /// Ends a hold: what was held back is planned now.
    Release(ReleaseArgs),
}

/// Shows what is stamped and what could be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind rollout status --dev")]
pub(crate) struct StatusArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

/// Stamps a share of flows with the plan in force, the others with the one before it. As long as
/// it is not 100 %, plans by choice wait.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind rollout share --dev 5%
  tradewind rollout share --dev 100%")]
pub(crate) struct ShareArgs {
    /// Such as 5%, 25% or 100%.
    share: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Goes back to an older plan and holds it, until `tradewind rollout release`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind rollout status --dev          which there are
  tradewind rollout rollback --dev 3.17")]
pub(crate) struct RollbackArgs {
    /// The plan, EPOCH.NUMBER.
    plan: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Lets plans by choice wait; what mends a failure does not wait.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind rollout hold --dev --reason \"the match begins\"")]
pub(crate) struct HoldArgs {
    /// Why.
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Ends a hold: what was held back is planned now.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind rollout release --dev")]
pub(crate) struct ReleaseArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(crate) async fn run(command: RolloutCommand) -> anyhow::Result<()> {
    let (rollout, as_json) = match command {
        RolloutCommand::Status(args) => {
            let api = args.controller.api()?;
            (api.get("/v1/rollout", &[]).await?, args.json)
        }
        RolloutCommand::Share(args) => {
            let body = json!({ "share": args.share });
            (ask(&args.admin, body).await?, args.json)
        }
        RolloutCommand::Rollback(args) => {
            let body = json!({ "rollback": args.plan });
            (ask(&args.admin, body).await?, args.json)
        }
        RolloutCommand::Hold(args) => {
            let body = json!({ "hold": true, "reason": args.reason });
            (ask(&args.admin, body).await?, args.json)
        }
        RolloutCommand::Release(args) => (
            ask(&args.admin, json!({ "release": true })).await?,
            args.json,
        ),
    };
    if as_json {
        return show::json(&rollout);
    }
    for line in plans::stamped(&rollout) {
        show::line(line)?;
    }
    Ok(())
}

async fn ask(admin: &AdminArgs, body: Value) -> anyhow::Result<Value> {
    admin
        .change(Method::POST, "/v1/rollout", &[], Some(body))
        .await
}
