//! `tradewind routes`.

use clap::Args;
use serde_json::Value;

use super::{connect::ControllerArgs, show};

/// Shows which way packets go between two relays, and why.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind routes --dev perth-1 vladivostok-1
  tradewind routes --dev --profile economy perth-1 vladivostok-1
  tradewind routes --json perth-1 vladivostok-1 | jq .alternatives")]
pub(crate) struct RoutesArgs {
    /// The relay where the way begins.
    from: String,
    /// The relay where it ends.
    to: String,
    /// What the way should be good at.
    #[arg(long, default_value = "realtime", value_name = "PROFILE", value_parser = ["realtime", "economy"])]
    profile: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

pub(crate) async fn run(args: RoutesArgs) -> anyhow::Result<()> {
    let api = args.controller.api()?;
    let query = [
        ("from", args.from.as_str()),
        ("to", args.to.as_str()),
        ("profile", args.profile.as_str()),
    ];
    let path = api.get("/v1/path", &query).await?;
    if args.json {
        return show::json(&path);
    }
    show::line(format!(
        "{}   (plan {})",
        show::texts(path.get("path"), " -> "),
        show::text_in(&path, "plan")
    ))?;
    show::line(format!(
        "cost {}, direct {}: {}",
        show::ms_in(&path, "cost_ms"),
        show::ms_in(&path, "direct_cost_ms"),
        verdict(&path)
    ))?;
    show::line(format!(
        "one-way delay {}, direct {}\n",
        show::ms_in(&path, "delay_ms"),
        show::ms_in(&path, "direct_delay_ms"),
    ))?;
    for split in show::members(&path, "split") {
        let weight = split.get(0).and_then(Value::as_u64).unwrap_or(0);
        show::line(format!(
            "weight {weight:>3} of flows: {}",
            show::texts(split.get(1), " -> ")
        ))?;
    }
    if let Some(others) = path.get("other_flows").filter(|others| !others.is_null()) {
        let permille = others.get("share_permille").and_then(Value::as_f64);
        show::line(format!(
            "a rollout is under way: {} % of flows follow plan {}: {}",
            permille.unwrap_or(0.0) / 10.0,
            show::text_in(others, "plan"),
            show::texts(others.get("path"), " -> ")
        ))?;
    }
    if let Some(since) = path.get("since_unix_s").and_then(Value::as_u64) {
        show::line(format!("so since {}", show::unix_time(since)))?;
    }
    show::line(format!("why: {}\n", show::text_in(&path, "why")))?;
    links(show::members(&path, "links"))?;
    let alternatives = show::members(&path, "alternatives");
    if !alternatives.is_empty() {
        show::line("\nInstead, over each other first hop:")?;
        let rows = alternatives.iter().map(alternative).collect();
        show::table(
            &[
                ("COST", true),
                ("MORE", true),
                ("ONE WAY", true),
                ("WAY", false),
            ],
            rows,
        )?;
    }
    show::line(format!(
        "\nIf the first hop fails: {}.",
        show::text_in(&path, "if_first_hop_fails")
    ))?;
    let backups = show::members(&path, "backups");
    let backups = backups.iter().map(|backup| {
        format!(
            "{} ({})",
            show::text_in(backup, "relay"),
            show::ms_in(backup, "cost_ms")
        )
    });
    let backups: Vec<String> = backups.collect();
    if !backups.is_empty() {
        show::line(format!("Backups, the best first: {}", backups.join(", ")))?;
    }
    Ok(())
}

fn links(links: &[Value]) -> anyhow::Result<()> {
    show::table(
        &[
            ("LINK", false),
            ("STATE", false),
            ("ONE WAY", true),
            ("RTT", true),
            ("LOST", true),
            ("COST", true),
            ("= DELAY", true),
            ("+ JITTER", true),
            ("+ LOSS", true),
            ("+ LOAD", true),
            ("+ HOP", true),
            ("+ PRICE", true),
            ("USED", true),
        ],
        links.iter().map(row).collect(),
    )
}

fn alternative(way: &Value) -> Vec<String> {
    vec![
        show::ms_in(way, "cost_ms"),
        show::ms_in(way, "more_ms"),
        show::ms_in(way, "delay_ms"),
        show::texts(way.get("path"), " -> "),
    ]
}

fn verdict(path: &Value) -> String {
    match path.get("saved_ms").and_then(Value::as_f64) {
        None => "there is nothing to compare it with".to_owned(),
        Some(saved) if saved >= 0.005 => format!("saves {}", show::ms(saved)),
        Some(saved) if saved <= -0.005 => {
            format!("costs {} more just now", show::ms(-saved))
        }
        Some(_) => "the direct way is the best".to_owned(),
    }
}

fn row(link: &Value) -> Vec<String> {
    let uplink = match link.get("uplink").and_then(Value::as_u64) {
        None | Some(0) => String::new(),
        Some(uplink) => format!(" (uplink {uplink})"),
    };
    let loss = link
        .get("loss")
        .and_then(Value::as_f64)
        .map_or_else(|| "-".to_owned(), |loss| format!("{:.2} %", loss * 100.0));
    vec![
        format!(
            "{} -> {}{uplink}",
            show::text_in(link, "from"),
            show::text_in(link, "to")
        ),
        show::text_in(link, "state"),
        show::ms_in(link, "one_way_ms"),
        show::ms_in(link, "rtt_ms"),
        loss,
        show::ms_in(link, "cost_ms"),
        show::ms_in(link, "delay_cost_ms"),
        show::ms_in(link, "jitter_cost_ms"),
        show::ms_in(link, "loss_cost_ms"),
        show::ms_in(link, "load_cost_ms"),
        show::ms_in(link, "hop_cost_ms"),
        show::ms_in(link, "price_cost_ms"),
        used(link),
    ]
}

/// Share of what the link can do that is in use; a dash when its capacity is not known and
/// nothing else is busy.
fn used(link: &Value) -> String {
    let known = link
        .get("capacity")
        .is_some_and(|capacity| !capacity.is_null());
    let share = link
        .get("utilisation")
        .and_then(Value::as_f64)
        .unwrap_or(0.0);
    let closed = if show::is(link, "off_hours") {
        " (off hours)"
    } else {
        ""
    };
    match known || share > 0.0 {
        true => format!("{:.0} %{closed}", share * 100.0),
        false => format!("-{closed}"),
    }
}
