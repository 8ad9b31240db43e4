//! `tradewind token revoke` and `tradewind token revocations`.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use tradewind_service::config::HumanDuration;

use super::{
    connect::{AdminArgs, now, unix_seconds},
    http, show,
};

/// Ends a user's access, or a single token's, now: sessions end at once at every relay, and no new one
/// begins.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind token revoke --dev --user alice --reason \"account closed\"
  tradewind token revoke --admin-secret-file secret --app chat --id 7f3a --ttl 12h
  tradewind token revoke --dev --user alice --undo

What is revoked of a user are the tokens made until now (or --issued-until). A token that is made
later is accepted: have your backend give none any more, or name a later --issued-until.")]
#[command(group = clap::ArgGroup::new("what").required(true).args(["id", "user"]))]
pub(crate) struct RevokeArgs {
    /// The app (tenant) the tokens are of.
    #[arg(long, env = "TRADEWIND_APP", default_value = "dev")]
    app: String,
    /// The token of this id (`jti`).
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// All tokens of this user.
    #[arg(long)]
    user: Option<String>,
    /// With --user: those made (`iat`) in this second or before, Unix seconds [default: now].
    #[arg(long, value_name = "SECONDS", requires = "user")]
    issued_until: Option<u64>,
    /// How long the tokens would still hold at most, from now: then the revocation is forgotten
    /// [default: 30 days].
    #[arg(long, value_name = "DURATION")]
    ttl: Option<HumanDuration>,
    /// Why: for the list and the log.
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    /// Lift the revocation instead: the tokens are accepted again.
    #[arg(long, conflicts_with_all = ["reason", "ttl", "issued_until"])]
    undo: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Shows what is revoked.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind token revocations --dev")]
pub(crate) struct RevocationsArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

const PATH: &str = "/v1/revocations";

pub(crate) async fn revoke(args: RevokeArgs) -> anyhow::Result<()> {
    let answer = match args.undo {
        true => {
            let what = match (&args.id, &args.user) {
                (Some(id), _) => ("token", id.as_str()),
                (None, user) => ("user", user.as_deref().unwrap_or_default()),
            };
            let query = [("app", args.app.as_str()), what];
            args.admin
                .change(Method::DELETE, PATH, &query, None)
                .await?
        }
        false => {
            let until = args
                .ttl
                .map(|ttl| unix_seconds(now()).saturating_add(ttl.0.as_secs()));
            let body = json!({
                "app": args.app,
                "token": args.id,
                "user": args.user,
                "issued_until_unix_s": args.issued_until,
                "until_unix_s": until,
                "reason": args.reason,
            });
            args.admin
                .change(Method::POST, PATH, &[], Some(body))
                .await?
        }
    };
    if args.json {
        return show::json(&answer);
    }
    match args.undo {
        true => show::line(show::text_in(&answer, "done"))?,
        false => show::line(format!(
            "revoked at all relays: {}; forgotten after {}",
            described(&answer),
            time_in(&answer, "until_unix_s")
        ))?,
    }
    if let Some(reason) = answer.get("not_kept").and_then(Value::as_str) {
        show::line(format!(
            "it will not survive a restart of the controller: {reason}"
        ))?;
    }
    Ok(())
}

pub(crate) async fn revocations(args: RevocationsArgs) -> anyhow::Result<()> {
    let answer = args.admin.change(Method::GET, PATH, &[], None).await?;
    if args.json {
        return show::json(&answer);
    }
    let all = http::list(answer, "revocations");
    if all.is_empty() {
        show::line("nothing is revoked")?;
        return Ok(());
    }
    for one in &all {
        let made_ms = one.get("at_unix_ms").and_then(Value::as_u64);
        show::line(format!(
            "{}; since {}, forgotten after {}; reason: {}",
            described(one),
            show::unix_time(made_ms.unwrap_or_default() / 1_000),
            time_in(one, "until_unix_s"),
            show::text_in(one, "reason"),
        ))?;
    }
    Ok(())
}

/// What a revocation is about.
fn described(revocation: &Value) -> String {
    let text = |name| revocation.get(name).and_then(Value::as_str);
    let app = text("app").unwrap_or_default();
    match (text("token"), text("user")) {
        (Some(id), _) => format!("token {id} of app {app}"),
        (None, user) => format!(
            "tokens of user {} of app {app} made until {}",
            user.unwrap_or_default(),
            time_in(revocation, "issued_until_unix_s")
        ),
    }
}

fn time_in(value: &Value, key: &str) -> String {
    show::unix_time(value.get(key).and_then(Value::as_u64).unwrap_or_default())
}
