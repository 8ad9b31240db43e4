//! `tradewind relays`.

use clap::Args;
use serde_json::Value;

use super::{connect::ControllerArgs, http, show};

/// Shows the relays of the network.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind relays --dev
  tradewind relays --controller https://controller.example.org:7401 --ca ca.pem --json")]
pub(crate) struct RelaysArgs {
    /// As JSON, with everything the controller knows.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerArgs,
}

pub(crate) async fn run(args: RelaysArgs) -> anyhow::Result<()> {
    let api = args.controller.api()?;
    let relays = http::list(api.get("/v1/relays", &[]).await?, "relays");
    if args.json {
        return show::json(&relays);
    }
    if relays.is_empty() {
        show::line("no relay has registered yet")?;
        return Ok(());
    }
    let rows = relays.iter().map(row).collect();
    show::table(
        &[
            ("RELAY", false),
            ("INDEX", true),
            ("REGION", false),
            ("STATE", false),
            ("SESSIONS", true),
            ("BUSY", true),
            ("CLIENTS", false),
            ("LINKS", false),
            ("VERSION", false),
        ],
        rows,
    )
}

fn row(relay: &Value) -> Vec<String> {
    let addresses = relay.get("addresses");
    let at = |port: &str| show::texts(addresses.and_then(|all| all.get(port)), " ");
    let busy = relay
        .get("busy_permille")
        .and_then(Value::as_f64)
        .map_or_else(|| "-".to_owned(), |busy| format!("{:.0} %", busy / 10.0));
    vec![
        show::text_in(relay, "name"),
        show::text_in(relay, "index"),
        show::text_in(relay, "region"),
        state(relay).to_owned(),
        show::text_in(relay, "sessions"),
        busy,
        at("client"),
        at("link"),
        show::text_in(relay, "software"),
    ]
}

fn state(relay: &Value) -> &'static str {
    let is = |key: &str| show::is(relay, key);
    match relay.get("standing").and_then(Value::as_str) {
        Some("retired") => return "retired",
        Some("leaving") => return "decommissioned",
        Some("quarantined") if is("online") => return "quarantined",
        _ => {}
    }
    match () {
        () if !is("online") => "offline",
        () if is("draining") => "draining",
        () if is("silent") => "silent",
        () => "online",
    }
}
