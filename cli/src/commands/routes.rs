//! `tradewind routes`.

use clap::Args;
use serde_json::Value;

use super::{connect::ControllerArgs, show};

/// Shows which way packets go between two relays, and why.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind routes --dev perth-1 vladivostok-1")]
pub(crate) struct RoutesArgs {
    /// The relay where the way begins.
    from: String,
    /// The relay where it ends.
    to: String,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

pub(crate) async fn run(args: RoutesArgs) -> anyhow::Result<()> {
    let api = args.controller.api()?;
    let query = [("from", args.from.as_str()), ("to", args.to.as_str())];
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
    let links = path.get("links").and_then(Value::as_array);
    let rows = links.into_iter().flatten().map(row).collect();
    show::table(
        &[
            ("LINK", false),
            ("STATE", false),
            ("ONE WAY", true),
            ("RTT", true),
            ("LOSS", true),
            ("COST", true),
            ("JITTER", true),
            ("LOSS", true),
            ("LOAD", true),
            ("HOP", true),
        ],
        rows,
    )
}

fn verdict(path: &Value) -> String {
    match path.get("saved_ms").and_then(Value::as_f64) {
        None => "there is nothing to compare it with".to_owned(),
        Some(saved) if saved >= 0.005 => format!("saves {}", show::ms(saved)),
        Some(saved) if saved <= -0.005 => {
            format!(
                "costs {} more just now; the plan waits for it to last",
                show::ms(-saved)
            )
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
        show::ms_in(link, "jitter_cost_ms"),
        show::ms_in(link, "loss_cost_ms"),
        show::ms_in(link, "load_cost_ms"),
        show::ms_in(link, "hop_cost_ms"),
    ]
}
