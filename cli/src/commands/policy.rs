//! `tradewind policy`, `tradewind pin` and `tradewind unpin`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};
use tradewind_controller::Policy;
use tradewind_service::exit::usage;

use super::{
    connect::{AdminArgs, ControllerArgs},
    http, show,
};

/// The operator's policy: prices, capacities, transit bans, pins, busy hours, modes.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Shows the policy in force.
    Show(ShowArgs),
    /// Puts a policy in force, instead of the one before.
    Apply(ApplyArgs),
    /// Checks a policy file, and its names if a controller is named.
    Check(CheckArgs),
}

/// Shows the policy in force, as TOML that `apply` takes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind policy show --dev
  tradewind policy show > policy.toml")]
pub(crate) struct ShowArgs {
    /// As JSON, with where it came from.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

/// Puts a policy in force, instead of the one before.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind policy apply --dry-run policy.toml    what would change
  tradewind policy apply --admin-secret-file secret policy.toml")]
pub(crate) struct ApplyArgs {
    /// The policy (TOML, or JSON if it is named *.json).
    file: PathBuf,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Take names of relays and regions that nobody has registered under yet.
    #[arg(long)]
    allow_unknown: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Checks a policy file, and its names if a controller is named.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind policy check policy.toml
  tradewind policy check --dev policy.toml")]
pub(crate) struct CheckArgs {
    /// The policy (TOML, or JSON if it is named *.json).
    file: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

/// Makes packets take a certain way, whatever it costs, as long as all its links can be used.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind pin --dev tokyo-1 paris-1 --via singapore-1
  tradewind pin tokyo-1 paris-1 --profile economy     by the direct link")]
pub(crate) struct PinArgs {
    /// The relay where the way begins.
    from: String,
    /// The relay where it ends.
    to: String,
    /// The relays it crosses, in order; none: the direct link.
    #[arg(long, value_delimiter = ',', value_name = "RELAY")]
    via: Vec<String>,
    /// For this profile only.
    #[arg(long, value_name = "PROFILE", value_parser = ["realtime", "economy"])]
    profile: Option<String>,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Take names of relays that nobody has registered under yet.
    #[arg(long)]
    allow_unknown: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Ends a pin.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind unpin --dev tokyo-1 paris-1")]
pub(crate) struct UnpinArgs {
    /// The relay where the way begins.
    from: String,
    /// The relay where it ends.
    to: String,
    /// For this profile only.
    #[arg(long, value_name = "PROFILE", value_parser = ["realtime", "economy"])]
    profile: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(crate) async fn run(command: PolicyCommand) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Show(args) => show_policy(args).await,
        PolicyCommand::Apply(args) => apply(args).await,
        PolicyCommand::Check(args) => check(args).await,
    }
}

async fn show_policy(args: ShowArgs) -> anyhow::Result<()> {
    let policy = args.controller.api()?.get("/v1/policy", &[]).await?;
    if args.json {
        return show::json(&policy);
    }
    show::line(format!("# from: {}", show::text_in(&policy, "source")))?;
    for problem in show::members(&policy, "problems") {
        show::line(format!("# no effect: {}", problem.as_str().unwrap_or("-")))?;
    }
    show::line(show::text_in(&policy, "toml").trim_end())?;
    Ok(())
}

async fn apply(args: ApplyArgs) -> anyhow::Result<()> {
    let (_, kind, text) = read(&args.file)?;
    let query = [
        ("dry_run", flag(args.dry_run)),
        ("allow_unknown", flag(args.allow_unknown)),
    ];
    let secret = args.admin.secret()?;
    let api = args.admin.controller.api()?;
    let body = Some((kind, text));
    let outcome = api
        .change(Method::PUT, "/v1/policy", &query, body, secret.as_ref())
        .await?;
    told(&outcome, args.json)
}

async fn check(args: CheckArgs) -> anyhow::Result<()> {
    let (policy, ..) = read(&args.file)?;
    let mut problems = Vec::new();
    if args.controller.url().is_some() {
        let relays = http::list(
            args.controller.api()?.get("/v1/relays", &[]).await?,
            "relays",
        );
        let all = |key: &str| {
            relays
                .iter()
                .map(|relay| show::text_in(relay, key))
                .collect()
        };
        let (names, regions): (Vec<String>, Vec<String>) = (all("name"), all("region"));
        problems = policy.check_names(&names, &regions);
    }
    if args.json {
        show::json(&json!({ "policy": policy, "problems": problems }))?;
    } else if problems.is_empty() {
        show::line(format!("{}: the policy is good", args.file.display()))?;
    }
    if problems.is_empty() {
        return Ok(());
    }
    anyhow::bail!("{}: {}", args.file.display(), problems.join("; "))
}

pub(crate) async fn pin(args: PinArgs) -> anyhow::Result<()> {
    let mut pin = json!({ "from": args.from, "to": args.to, "via": args.via });
    if let Some(profile) = &args.profile {
        pin["profile"] = json!(profile);
    }
    let query = [
        ("dry_run", flag(args.dry_run)),
        ("allow_unknown", flag(args.allow_unknown)),
    ];
    let outcome = args
        .admin
        .change(Method::POST, "/v1/pins", &query, Some(pin))
        .await?;
    told(&outcome, args.json)
}

pub(crate) async fn unpin(args: UnpinArgs) -> anyhow::Result<()> {
    let mut query = vec![("from", args.from.as_str()), ("to", args.to.as_str())];
    query.extend(args.profile.as_deref().map(|profile| ("profile", profile)));
    let outcome = args
        .admin
        .change(Method::DELETE, "/v1/pins", &query, None)
        .await?;
    told(&outcome, args.json)
}

/// What a change of policy does in one profile, in a few words.
pub(crate) fn effect(effect: &Value) -> String {
    let count = |key: &str| effect.get(key).and_then(Value::as_u64).unwrap_or(0);
    let lost = match count("without_way") {
        0 => String::new(),
        lost => format!(", {lost} of them without any way"),
    };
    let worst = match effect.get("worst").filter(|worst| !worst.is_null()) {
        Some(worst) => format!(
            "; the worst is {} -> {}: {} more delay",
            show::text_in(worst, "from"),
            show::text_in(worst, "to"),
            show::ms_in(worst, "added_ms")
        ),
        None => String::new(),
    };
    let traffic = match show::members(effect, "traffic") {
        [] => String::new(),
        _ => format!(" of {}", show::texts(effect.get("traffic"), "; ")),
    };
    format!(
        "{}{traffic}: {} another way{lost}{worst}",
        show::text_in(effect, "profile"),
        match count("rerouted") {
            1 => "1 pair".to_owned(),
            pairs => format!("{pairs} pairs"),
        }
    )
}

/// Reads a policy and checks it by itself; gives it, its kind and its text.
fn read(file: &Path) -> anyhow::Result<(Policy, &'static str, String)> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read {}", file.display()))
        .map_err(usage_of)?;
    let is_json = file.extension().is_some_and(|ending| ending == "json");
    let (policy, kind) = match is_json {
        true => (Policy::from_json(text.as_bytes()), "application/json"),
        false => (
            Policy::from_toml(&text, &file.display().to_string()),
            "application/toml",
        ),
    };
    Ok((policy.map_err(usage)?, kind, text))
}

fn usage_of(error: anyhow::Error) -> anyhow::Error {
    let text = tradewind_service::exit::one_line(&error);
    tradewind_service::exit::UsageError::new(text).into()
}

fn told(outcome: &Value, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return show::json(outcome);
    }
    show::line(match show::is(outcome, "applied") {
        true => "the policy is in force; plans that come of it follow within seconds",
        false => "nothing is changed; this is what would be:",
    })?;
    for change in show::members(outcome, "effects") {
        show::line(effect(change))?;
    }
    for problem in show::members(outcome, "problems") {
        show::line(format!("no effect: {}", problem.as_str().unwrap_or("-")))?;
    }
    if let Some(held) = outcome.get("held").and_then(Value::as_str) {
        show::line(format!("plans by choice wait: {held}"))?;
    }
    if let Some(reason) = outcome.get("not_kept").and_then(Value::as_str) {
        show::line(format!(
            "it will not survive a restart of the controller: {reason}"
        ))?;
    }
    Ok(())
}

fn flag(set: bool) -> &'static str {
    if set { "true" } else { "false" }
}
