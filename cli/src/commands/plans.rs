//! `tradewind plans`, `tradewind link` and `tradewind status`.

use clap::Args;
use serde_json::Value;

use super::{connect::ControllerArgs, http, show};

/// Shows the plans that were made: when, why, by whom, and what was stamped.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind plans --dev
  tradewind plans --limit 100 --json
  tradewind plans 3.17")]
pub(crate) struct PlansArgs {
    /// One plan, EPOCH.NUMBER, with everything about it.
    plan: Option<String>,
    /// How many, the latest first.
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

/// Shows one link now, and over the last hour and day.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind link --dev tokyo-1 paris-1
  tradewind link tokyo-1 paris-1 --uplink 1 --json | jq .day")]
pub(crate) struct LinkArgs {
    /// The relay where it begins.
    from: String,
    /// The relay where it ends.
    to: String,
    /// Which uplink.
    #[arg(long, default_value_t = 0, value_name = "N")]
    uplink: u8,
    /// As JSON: all samples, also the day's.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

/// Shows what needs somebody's eyes, what is stamped, and what the plan saves.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind status --dev
  tradewind status --json | jq .alerts")]
pub(crate) struct StatusArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

/// Samples of the last hour that people are shown: one a minute.
const EVERY_MINUTE: usize = 6;

pub(crate) async fn plans(args: PlansArgs) -> anyhow::Result<()> {
    let api = args.controller.api()?;
    if let Some(plan) = &args.plan {
        let entry = api
            .get(&format!("/v1/plans/{}", http::part(plan)), &[])
            .await?;
        return if args.json {
            show::json(&entry)
        } else {
            one(&entry)
        };
    }
    let limit = args.limit.to_string();
    let plans = http::list(api.get("/v1/plans", &[("limit", &limit)]).await?, "plans");
    if args.json {
        return show::json(&plans);
    }
    if plans.is_empty() {
        show::line("no plan was made yet")?;
        return Ok(());
    }
    show::table(
        &[
            ("PLAN", false),
            ("MADE", false),
            ("BY", false),
            ("IN FORCE AFTER", true),
            ("STAMPED", true),
            ("HOPS CHANGED", true),
            ("WHY", false),
        ],
        plans.iter().map(row).collect(),
    )
}

pub(crate) async fn link(args: LinkArgs) -> anyhow::Result<()> {
    let api = args.controller.api()?;
    let uplink = args.uplink.to_string();
    let query = [
        ("from", args.from.as_str()),
        ("to", args.to.as_str()),
        ("uplink", uplink.as_str()),
    ];
    let link = api.get("/v1/link", &query).await?;
    if args.json {
        return show::json(&link);
    }
    let now = link.get("now").unwrap_or(&Value::Null);
    show::line(format!(
        "{} -> {} over uplink {uplink}: {}, one way {}, round trip {}, cost {}\n",
        show::text_in(now, "from"),
        show::text_in(now, "to"),
        show::text_in(now, "state"),
        show::ms_in(now, "one_way_ms"),
        show::ms_in(now, "rtt_ms"),
        show::ms_in(now, "cost_ms"),
    ))?;
    let samples = show::members(&link, "hour")
        .iter()
        .rev()
        .step_by(EVERY_MINUTE);
    show::table(
        &[
            ("AT", false),
            ("STATE", false),
            ("ONE WAY", true),
            ("RTT", true),
            ("LOSS", true),
            ("COST", true),
        ],
        samples.map(sample).collect(),
    )
}

pub(crate) async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let status = args.controller.api()?.get("/v1/status", &[]).await?;
    if args.json {
        return show::json(&status);
    }
    let rollout = status.get("rollout").unwrap_or(&Value::Null);
    for line in stamped(rollout) {
        show::line(line)?;
    }
    show::line(format!(
        "policy: {}",
        show::text_in(&status, "policy_source")
    ))?;
    for gain in show::members(&status, "gains") {
        show::line(format!(
            "{} ({}): {} of {} pairs have a better way than the direct one; {} saved on average, {} at most",
            show::text_in(gain, "profile"),
            show::text_in(gain, "mode"),
            show::text_in(gain, "improved"),
            show::text_in(gain, "pairs"),
            show::ms_in(gain, "mean_saved_ms"),
            show::ms_in(gain, "most_saved_ms"),
        ))?;
    }
    for rule in show::members(&status, "observed") {
        for effect in show::members(rule, "effects") {
            show::line(format!(
                "observed: {}: {}",
                show::text_in(rule, "rule"),
                super::policy::effect(effect)
            ))?;
        }
    }
    let alerts = show::members(&status, "alerts");
    if alerts.is_empty() {
        show::line("no alerts")?;
    }
    for alert in alerts {
        show::line(format!(
            "alert: {}: {}",
            show::text_in(alert, "kind"),
            show::text_in(alert, "text")
        ))?;
    }
    Ok(())
}

/// What is stamped, and what waits, in lines.
pub(crate) fn stamped(rollout: &Value) -> Vec<String> {
    let percent = |value: Option<&Value>| {
        let permille = value.and_then(Value::as_f64).unwrap_or(0.0);
        format!("{} %", permille / 10.0)
    };
    let rest = match rollout.get("rest").and_then(Value::as_str) {
        Some(rest) => format!(", the others with {rest}"),
        None => String::new(),
    };
    let mut lines = vec![match rollout.get("plan").and_then(Value::as_str) {
        None => "no plan is in force yet: relays are still measuring".to_owned(),
        Some(plan) => format!(
            "plan {plan}: stamped on {} of flows{rest} (order {})",
            percent(rollout.get("share_permille")),
            show::text_in(rollout, "order"),
        ),
    }];
    for (key, word) in [
        ("on_its_way", "on its way"),
        ("held", "plans by choice wait"),
    ] {
        if let Some(text) = rollout.get(key).and_then(Value::as_str) {
            lines.push(format!("{word}: {text}"));
        }
    }
    for reason in show::members(rollout, "held_back") {
        lines.push(format!("held back: {}", reason.as_str().unwrap_or("-")));
    }
    lines.push(format!(
        "older plans to go back to: {}",
        show::texts(rollout.get("older"), ", ")
    ));
    lines
}

fn row(plan: &Value) -> Vec<String> {
    let after = plan
        .get("activated_after_ms")
        .and_then(Value::as_f64)
        .map_or_else(|| "never".to_owned(), show::ms);
    let orders = show::members(plan, "orders");
    let share = orders.last().and_then(|order| order.get("share_permille"));
    let share = share
        .and_then(Value::as_f64)
        .map_or_else(|| "-".to_owned(), |share| format!("{} %", share / 10.0));
    vec![
        show::text_in(plan, "plan"),
        made_at(plan),
        show::text_in(plan, "by"),
        after,
        share,
        show::text_in(plan, "changed_next_hops"),
        show::texts(plan.get("reasons"), "; "),
    ]
}

fn one(plan: &Value) -> anyhow::Result<()> {
    show::line(format!(
        "plan {}, made {} by the {}; {} relays, {} next hops changed, {} ways without a reaction",
        show::text_in(plan, "plan"),
        made_at(plan),
        show::text_in(plan, "by"),
        show::text_in(plan, "relays"),
        show::text_in(plan, "changed_next_hops"),
        show::text_in(plan, "unprotected"),
    ))?;
    for reason in show::members(plan, "reasons") {
        show::line(format!("  because: {}", reason.as_str().unwrap_or("-")))?;
    }
    for order in show::members(plan, "orders") {
        let at = order.get("at_unix_ms").and_then(Value::as_u64).unwrap_or(0) / 1_000;
        let share = order
            .get("share_permille")
            .and_then(Value::as_f64)
            .unwrap_or(0.0);
        show::line(format!(
            "  order {} at {}: {} % of flows, the others {}; by the {}: {}",
            show::text_in(order, "order"),
            show::unix_time(at),
            share / 10.0,
            show::text_in(order, "rest"),
            show::text_in(order, "by"),
            show::text_in(order, "why"),
        ))?;
    }
    Ok(())
}

fn sample(sample: &Value) -> Vec<String> {
    let at = sample.get("at_unix_s").and_then(Value::as_u64).unwrap_or(0);
    let loss = sample
        .get("loss")
        .and_then(Value::as_f64)
        .map_or_else(|| "-".to_owned(), |loss| format!("{:.2} %", loss * 100.0));
    vec![
        show::unix_time(at),
        show::text_in(sample, "state"),
        show::ms_in(sample, "one_way_ms"),
        show::ms_in(sample, "rtt_ms"),
        loss,
        show::ms_in(sample, "cost_ms"),
    ]
}

fn made_at(plan: &Value) -> String {
    let ms = plan.get("made_at_unix_ms").and_then(Value::as_u64);
    show::unix_time(ms.unwrap_or(0) / 1_000)
}
