//! `tradewind ping`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use tradewind_client::{Client, Hop, LookupError, PingError, PingReport};
use tradewind_service::config::HumanDuration;

use super::{
    connect::{ConnectArgs, host},
    show,
};

/// Measures the whole way to a user or relay and back, hop by hop.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind ping --dev --as alice bob
  tradewind ping --dev --as alice tokyo-1 --count 20 --interval 200ms")]
pub(crate) struct PingArgs {
    /// A user, or else a relay.
    target: String,
    /// The target is a relay, even if a user is called the same.
    #[arg(long)]
    relay: bool,
    /// How many to send.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Time between them.
    #[arg(long, default_value = "500ms", value_name = "DURATION")]
    interval: HumanDuration,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: PingArgs) -> anyhow::Result<()> {
    let client = args.connect.connect().await?;
    let result = measure(&client, &args).await;
    client.close().await;
    let (is_relay, reports, lost) = result?;
    // Names are a convenience: without the controller there are indices.
    let controller = &args.connect.controller;
    let names = match controller.url().and_then(|_| controller.api().ok()) {
        Some(api) => api.relay_names().await.unwrap_or_default(),
        None => BTreeMap::new(),
    };
    let report = Report {
        args: &args,
        is_relay,
        reports,
        lost,
        names,
    };
    if args.json {
        show::json(&report.as_json())?;
    } else {
        report.show()?;
    }
    if report.reports.is_empty() {
        bail!("no answer from {}", args.target);
    }
    Ok(())
}

/// Whether the target is a relay, the answers, and how many did not come.
async fn measure(client: &Client, args: &PingArgs) -> anyhow::Result<(bool, Vec<PingReport>, u32)> {
    let mut is_relay = args.relay;
    let (mut reports, mut lost) = (Vec::new(), 0);
    for number in 0..args.count {
        if number > 0 {
            host().sleep(args.interval.0).await;
        }
        let mut result = once(client, &args.target, is_relay).await;
        if number == 0 && !is_relay && nobody(&result) {
            is_relay = true;
            result = once(client, &args.target, true).await;
            if nobody(&result) {
                return Err(anyhow!(
                    "no user who is online and no relay is called {}",
                    args.target
                ));
            }
        }
        match result {
            Ok(report) => {
                if !args.json {
                    show::line(format!("{}: {}", args.target, show::duration(report.rtt)))?;
                }
                reports.push(report);
            }
            Err(PingError::TimedOut(_) | PingError::NotConnected) => {
                lost += 1;
                if !args.json {
                    show::line(format!("{}: no answer", args.target))?;
                }
            }
            Err(PingError::Lookup(LookupError::Offline)) => {
                bail!("{} is not online", args.target)
            }
            Err(error) => bail!("cannot ping {}: {error}", args.target),
        }
    }
    Ok((is_relay, reports, lost))
}

async fn once(client: &Client, target: &str, is_relay: bool) -> Result<PingReport, PingError> {
    if is_relay {
        client.ping_relay(target).await
    } else {
        client.ping_user(target).await
    }
}

fn nobody(result: &Result<PingReport, PingError>) -> bool {
    matches!(result, Err(PingError::Lookup(LookupError::Offline)))
}

struct Report<'a> {
    args: &'a PingArgs,
    is_relay: bool,
    reports: Vec<PingReport>,
    lost: u32,
    names: BTreeMap<u16, String>,
}

impl Report<'_> {
    fn show(&self) -> anyhow::Result<()> {
        let rtts = self.sorted_rtts();
        let answered = rtts.len();
        show::line(format!(
            "\n{} to {}: {} sent, {answered} answered",
            if self.is_relay { "relay" } else { "user" },
            self.args.target,
            answered + self.lost as usize,
        ))?;
        let (Some(min), Some(max)) = (rtts.first(), rtts.last()) else {
            return Ok(());
        };
        show::line(format!(
            "round trip min {}, median {}, max {}",
            show::duration(*min),
            show::duration(rtts[answered / 2]),
            show::duration(*max)
        ))?;
        // The last one went the way that holds now.
        if let Some(last) = self.reports.last() {
            self.show_hops("there", &last.forward)?;
            self.show_hops("back", &last.back)?;
        }
        Ok(())
    }

    fn show_hops(&self, way: &str, hops: &[Hop]) -> anyhow::Result<()> {
        if hops.is_empty() {
            return Ok(());
        }
        show::line("")?;
        let mut before = Duration::ZERO;
        let rows = hops
            .iter()
            .enumerate()
            .map(|(number, hop)| {
                let step = hop.age.saturating_sub(before);
                before = hop.age;
                vec![
                    format!("{}", number + 1),
                    self.name(hop),
                    format!("+{}", show::duration(step)),
                    show::duration(hop.age),
                    note(hop),
                ]
            })
            .collect();
        show::table(
            &[
                (way, true),
                ("RELAY", false),
                ("STEP", true),
                ("AGE", true),
                ("NOTE", false),
            ],
            rows,
        )
    }

    fn as_json(&self) -> Value {
        let rtts = self.sorted_rtts();
        let ms = |rtt: Option<&Duration>| rtt.map(|rtt| show::millis(*rtt));
        let last = self.reports.last();
        json!({
            "target": self.args.target,
            "kind": if self.is_relay { "relay" } else { "user" },
            "sent": rtts.len() + self.lost as usize,
            "answered": rtts.len(),
            "rtt_ms": {
                "min": ms(rtts.first()),
                "median": ms(rtts.get(rtts.len() / 2)),
                "max": ms(rtts.last()),
            },
            "rtts_ms": self.reports.iter().map(|one| show::millis(one.rtt)).collect::<Vec<_>>(),
            "forward": last.map(|last| self.hops_json(&last.forward)),
            "back": last.map(|last| self.hops_json(&last.back)),
        })
    }

    fn hops_json(&self, hops: &[Hop]) -> Vec<Value> {
        hops.iter()
            .map(|hop| {
                json!({
                    "relay": self.names.get(&hop.relay),
                    "index": hop.relay,
                    "uplink": hop.uplink,
                    "deflected": hop.deflected,
                    "age_ms": show::millis(hop.age),
                })
            })
            .collect()
    }

    fn sorted_rtts(&self) -> Vec<Duration> {
        let mut rtts: Vec<_> = self.reports.iter().map(|report| report.rtt).collect();
        rtts.sort_unstable();
        rtts
    }

    fn name(&self, hop: &Hop) -> String {
        self.names
            .get(&hop.relay)
            .cloned()
            .unwrap_or_else(|| format!("#{}", hop.relay))
    }
}

fn note(hop: &Hop) -> String {
    let mut notes = Vec::new();
    if hop.uplink != 0 {
        notes.push(format!("uplink {}", hop.uplink));
    }
    if hop.deflected {
        notes.push("left the planned way here".to_owned());
    }
    notes.join(", ")
}
