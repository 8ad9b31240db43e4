//! `tradewind watch`.

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::json;
use tradewind_client::{Client, Event, State};
use tradewind_service::{config::HumanDuration, exit::UsageError};

use super::{
    connect::{ConnectArgs, Ended, for_a_while, now, unix_seconds},
    show,
};

/// Watches users: shows whether each is online, and every change as it comes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind watch --dev --as alice bob
  tradewind watch --dev --as alice bob eve --json
  tradewind watch --dev --as alice bob --count 1 --timeout 5s")]
pub(crate) struct WatchArgs {
    /// The users to watch.
    #[arg(required = true, value_name = "USER")]
    users: Vec<String>,
    /// End after so many lines: the first one of a user says how it is now.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long; with --count, fail when there were fewer lines by then.
    #[arg(long, value_name = "DURATION")]
    timeout: Option<HumanDuration>,
    /// Each change as JSON, one a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: WatchArgs) -> anyhow::Result<()> {
    let client = args.connect.connect().await?;
    let (app, user) = client.identity();
    if let Some(relay) = client.stats().relay {
        eprintln!("watching as {app}/{user} at {relay}; Ctrl-C ends");
    }
    let users: Vec<&str> = args.users.iter().map(String::as_str).collect();
    client
        .watch(&users)
        .map_err(|error| UsageError::new(error.to_string()))?;
    let mut shown = 0;
    let watching = watch(&client, &args, &mut shown);
    let result = match for_a_while(args.timeout, watching).await {
        Ended::Done(result) => result,
        Ended::TimeOver(timeout) if args.count.is_some() => {
            Err(anyhow!("{shown} changes came within {timeout}"))
        }
        Ended::TimeOver(_) | Ended::Interrupted => Ok(()),
    };
    client.close().await;
    result
}

async fn watch(client: &Client, args: &WatchArgs, shown: &mut u64) -> anyhow::Result<()> {
    while args.count != Some(*shown) {
        match client.recv().await {
            Some(Event::Presence(presence)) => {
                *shown += 1;
                let (user, online) = (&*presence.user, presence.online);
                if args.json {
                    show::json_line(&json!({
                        "user": user,
                        "online": online,
                        "at_unix_s": unix_seconds(now()),
                    }))?;
                } else {
                    let state = if online { "online" } else { "offline" };
                    show::line(format!("{user} {state}"))?;
                }
            }
            Some(Event::WatchEnded { user, reason }) => bail!("cannot watch {user}: {reason}"),
            Some(Event::State(State::Reconnecting { reason })) => {
                eprintln!("connecting anew: {reason}");
            }
            Some(Event::State(State::Closed { reason, .. })) => {
                bail!("the session has ended: {reason}")
            }
            Some(_) => {}
            None => bail!("the session has ended"),
        }
    }
    Ok(())
}
