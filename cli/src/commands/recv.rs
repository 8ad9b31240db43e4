//! `tradewind recv`.

use anyhow::{anyhow, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::Args;
use serde_json::json;
use tradewind_client::{Client, Event, Message, State};
use tradewind_service::config::HumanDuration;

use super::{
    connect::{ConnectArgs, Ended, for_a_while},
    show,
};

/// Receives messages and shows them, one a line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind recv --dev --as bob
  tradewind recv --dev --as bob --count 1 --json")]
pub(crate) struct RecvArgs {
    /// End after so many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Fail when they have not all come by then.
    #[arg(long, value_name = "DURATION")]
    timeout: Option<HumanDuration>,
    /// Each message as JSON, one a line: `text` where it is UTF-8, else `base64`.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: RecvArgs) -> anyhow::Result<()> {
    let client = args.connect.connect().await?;
    let (app, user) = client.identity();
    if let Some(relay) = client.stats().relay {
        eprintln!("receiving as {app}/{user} at {relay}; Ctrl-C ends");
    }
    let mut received = 0;
    let receiving = receive(&client, &args, &mut received);
    let result = match for_a_while(args.timeout, receiving).await {
        Ended::Done(result) => result,
        Ended::Interrupted => Ok(()),
        Ended::TimeOver(timeout) => Err(anyhow!("{received} messages came within {timeout}")),
    };
    // Says goodbye, so that the directory knows at once.
    client.close().await;
    result
}

async fn receive(client: &Client, args: &RecvArgs, received: &mut u64) -> anyhow::Result<()> {
    while args.count != Some(*received) {
        match client.recv().await {
            Some(Event::Message(message)) => {
                *received += 1;
                show_message(&message, args.json)?;
            }
            Some(Event::State(State::Connected { relay, .. })) => {
                tracing::info!(relay, "connected");
            }
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

fn show_message(message: &Message, as_json: bool) -> anyhow::Result<()> {
    let text = std::str::from_utf8(&message.payload);
    if as_json {
        let mut object = json!({
            "from": &*message.from,
            "lane": message.lane,
            "bytes": message.payload.len(),
            "age_ms": show::millis(message.age),
        });
        match text {
            Ok(text) => object["text"] = text.into(),
            Err(_) => object["base64"] = BASE64_STANDARD.encode(&message.payload).into(),
        }
        return show::json_line(&object);
    }
    // What strangers write must not drive the terminal.
    let text = match text {
        Ok(text) => text
            .chars()
            .map(|c| {
                if c.is_control() && !matches!(c, '\n' | '\t') {
                    '\u{fffd}'
                } else {
                    c
                }
            })
            .collect(),
        Err(_) => format!("[{} bytes that are no text]", message.payload.len()),
    };
    show::line(format!("{}: {text}", message.from))?;
    Ok(())
}
