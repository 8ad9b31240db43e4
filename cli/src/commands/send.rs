//! `tradewind send`.

use std::{io::Read as _, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tradewind_client::{Class, SendError, SendOptions};
use tradewind_service::{config::HumanDuration, exit::UsageError};

use super::{
    connect::{ConnectArgs, read_named},
    show,
};

/// Sends a message and tells its end-to-end outcome.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind send --dev --as alice bob 'hello'
  tradewind send --edge edge.example.org:7443 --ca ca.pem --token-file alice.token bob --file photo.jpg
  date | tradewind send --dev --as alice bob -")]
pub(crate) struct SendArgs {
    /// The user to send to.
    user: String,
    /// The message; `-` reads standard input.
    #[arg(required_unless_present = "file")]
    text: Option<String>,
    /// Send the contents of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// How long to try.
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    ttl: HumanDuration,
    /// Messages of one lane arrive in order.
    #[arg(long, default_value_t = 0)]
    lane: u32,
    /// Priority in the network: audio, message, video or bulk.
    #[arg(long, default_value = "message")]
    class: Class,
    /// Tell the outcome as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: SendArgs) -> anyhow::Result<()> {
    let payload = payload(&args)?;
    if args.user.is_empty() {
        return Err(UsageError::new("the user's name is empty").into());
    }
    let bytes = payload.len();
    let client = args.connect.connect().await?;
    let options = SendOptions {
        ttl: args.ttl.0,
        lane: args.lane,
        class: args.class,
        ..SendOptions::default()
    };
    let outcome = client.send_with(&args.user, payload, options).await;
    client.close().await;
    let user = &args.user;
    match outcome {
        Ok(delivered) => {
            let (after, age) = (delivered.after, delivered.age);
            if args.json {
                return show::json(&json!({
                    "to": user,
                    "outcome": "delivered",
                    "bytes": bytes,
                    "after_ms": show::millis(after),
                    "age_ms": show::millis(age),
                }));
            }
            show::line(format!(
                "delivered to {user}: {bytes} bytes, confirmed after {}, {} in the network",
                show::duration(after),
                show::duration(age)
            ))?;
            Ok(())
        }
        Err(error) => {
            if args.json {
                show::json(&json!({
                    "to": user,
                    "outcome": outcome_name(error),
                    "bytes": bytes,
                    "error": error.to_string(),
                }))?;
            }
            bail!("not delivered to {user}: {}", explained(error))
        }
    }
}

fn payload(args: &SendArgs) -> anyhow::Result<Vec<u8>> {
    if let Some(path) = &args.file {
        return read_named(path);
    }
    match args.text.as_deref() {
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .context("cannot read standard input")?;
            Ok(bytes)
        }
        text => Ok(text.unwrap_or_default().as_bytes().to_vec()),
    }
}

fn outcome_name(error: SendError) -> &'static str {
    match error {
        SendError::Offline => "offline",
        SendError::Expired => "expired",
        SendError::Denied => "denied",
        SendError::TooLarge { .. } => "too_large",
        SendError::QueueFull => "queue_full",
        SendError::Closed => "closed",
    }
}

fn explained(error: SendError) -> String {
    match error {
        SendError::Offline => "nobody of that name is online".to_owned(),
        other => other.to_string(),
    }
}
