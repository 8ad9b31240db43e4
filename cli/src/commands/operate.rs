//! `tradewind quarantine`, `unquarantine` and `decommission`.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::{connect::AdminArgs, http, show};

/// Takes a relay out of all paths at once; its sessions stay, and packets begin and end there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind quarantine --dev tokyo-1 --reason \"drops packets\"
  tradewind quarantine --admin-secret-file secret tokyo-1")]
pub(crate) struct QuarantineArgs {
    /// The relay, by its whole name.
    relay: String,
    /// Why: for the history.
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Ends a quarantine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind unquarantine --dev tokyo-1")]
pub(crate) struct UnquarantineArgs {
    /// The relay, by its whole name.
    relay: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Lets a relay drain, then refuses its name. Its index is never given to another.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind decommission --dev tokyo-1 --reason \"contract ended\"
  tradewind decommission --dev --undo tokyo-1")]
pub(crate) struct DecommissionArgs {
    /// The relay, by its whole name.
    relay: String,
    /// Why: for the history.
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    /// Take it in again instead.
    #[arg(long, conflicts_with = "reason")]
    undo: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(crate) async fn quarantine(args: QuarantineArgs) -> anyhow::Result<()> {
    let path = format!("/v1/relays/{}/quarantine", http::part(&args.relay));
    let body = Some(json!({ "reason": args.reason }));
    told(
        &args.admin.change(Method::POST, &path, &[], body).await?,
        args.json,
    )
}

pub(crate) async fn unquarantine(args: UnquarantineArgs) -> anyhow::Result<()> {
    let path = format!("/v1/relays/{}/quarantine", http::part(&args.relay));
    told(
        &args.admin.change(Method::DELETE, &path, &[], None).await?,
        args.json,
    )
}

pub(crate) async fn decommission(args: DecommissionArgs) -> anyhow::Result<()> {
    let path = format!("/v1/relays/{}/decommission", http::part(&args.relay));
    let done = match args.undo {
        true => args.admin.change(Method::DELETE, &path, &[], None).await?,
        false => {
            let body = Some(json!({ "reason": args.reason }));
            args.admin.change(Method::POST, &path, &[], body).await?
        }
    };
    told(&done, args.json)
}

fn told(done: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return show::json(done);
    }
    show::line(show::text_in(done, "done"))?;
    if let Some(reason) = done.get("not_kept").and_then(Value::as_str) {
        show::line(format!(
            "it will not survive a restart of the controller: {reason}"
        ))?;
    }
    Ok(())
}
