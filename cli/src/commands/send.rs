//! `tradewind send`.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, Read as _},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde_json::json;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};
use tradewind_client::{Class, Client, SendError, SendOptions};
use tradewind_service::{config::HumanDuration, exit::UsageError};

use super::{
    connect::{ConnectArgs, host, read_named},
    show,
};

/// With --lines: messages whose outcome is not known yet, at most.
const MOST_UNDER_WAY: usize = 4_096;
/// Lines read ahead.
const READ_AHEAD: usize = 64;
/// Longest line, in bytes: the longest message a token allows unless it says more.
const LONGEST_LINE: u64 = 16 << 20;

/// Sends a message and tells its end-to-end outcome.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind send --dev --as alice bob 'hello'
  tradewind send --edge edge.example.org:7443 --ca ca.pem --token-file alice.token bob --file photo.jpg
  date | tradewind send --dev --as alice bob -
  seq 1000 | tradewind send --dev --as alice bob --lines --json")]
pub(crate) struct SendArgs {
    /// The user to send to.
    user: String,
    /// The message; `-` reads standard input.
    #[arg(required_unless_present_any = ["file", "lines"])]
    text: Option<String>,
    /// Send the contents of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Send every line of standard input as a message of its own, as they come, and tell at its end
    /// how many of them ended how.
    #[arg(long, conflicts_with_all = ["text", "file"])]
    lines: bool,
    /// With --lines: at least so long between two messages.
    #[arg(
        long,
        default_value = "0s",
        value_name = "DURATION",
        requires = "lines"
    )]
    interval: HumanDuration,
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
    if args.user.is_empty() {
        return Err(UsageError::new("the user's name is empty").into());
    }
    let options = SendOptions {
        ttl: args.ttl.0,
        lane: args.lane,
        class: args.class,
        ..SendOptions::default()
    };
    if args.lines {
        return send_lines(&args, options).await;
    }
    let payload = payload(&args)?;
    let bytes = payload.len();
    let client = args.connect.connect().await?;
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

/// Messages sent line by line.
#[derive(Default)]
struct Lines {
    /// Each ends with why it was not delivered, if it was not.
    under_way: JoinSet<Option<&'static str>>,
    delivered: u64,
    /// By reason.
    failures: BTreeMap<&'static str, u64>,
}

async fn send_lines(args: &SendArgs, options: SendOptions) -> anyhow::Result<()> {
    let client = args.connect.connect().await?;
    let mut lines = Lines::default();
    let work = async {
        let sent = lines.send_all(&client, args, options).await;
        lines.all_end().await;
        sent
    };
    let all_sent = tokio::select! {
        sent = work => sent,
        _ = tokio::signal::ctrl_c() => {
            // What is under way ends as closed then.
            client.close().await;
            Ok(())
        }
    };
    lines.all_end().await;
    client.close().await;
    let Lines {
        delivered,
        failures,
        ..
    } = lines;
    let failed: u64 = failures.values().sum();
    let (user, sent) = (&args.user, delivered + failed);
    if args.json {
        show::json(&json!({
            "to": user,
            "sent": sent,
            "delivered": delivered,
            "failed": failed,
            "failures": failures,
        }))?;
    } else {
        let why = failures
            .iter()
            .map(|(why, count)| format!(", {count} {why}"));
        let why: String = why.collect();
        show::line(format!(
            "delivered to {user}: {delivered} of {sent} messages{why}"
        ))?;
    }
    all_sent?;
    if failed > 0 {
        bail!("{failed} of {sent} messages to {user} were not delivered");
    }
    Ok(())
}

impl Lines {
    /// Sends all lines there are.
    async fn send_all(
        &mut self,
        client: &Client,
        args: &SendArgs,
        options: SendOptions,
    ) -> anyhow::Result<()> {
        let mut lines = read_lines();
        while let Some(line) = lines.recv().await {
            let receipt = client.enqueue(&args.user, line?, options);
            self.under_way
                .spawn(async move { receipt.await.err().map(outcome_name) });
            while let Some(ended) = self.under_way.try_join_next() {
                self.count(ended);
            }
            if self.under_way.len() >= MOST_UNDER_WAY
                && let Some(ended) = self.under_way.join_next().await
            {
                self.count(ended);
            }
            if !args.interval.0.is_zero() {
                host().sleep(args.interval.0).await;
            }
        }
        Ok(())
    }

    /// Waits for the outcomes of all that were sent.
    async fn all_end(&mut self) {
        while let Some(ended) = self.under_way.join_next().await {
            self.count(ended);
        }
    }

    fn count(&mut self, ended: Result<Option<&'static str>, JoinError>) {
        // Waiting for an outcome neither panics nor is it aborted.
        match ended.unwrap_or(Some("closed")) {
            None => self.delivered += 1,
            Some(why) => *self.failures.entry(why).or_default() += 1,
        }
    }
}

/// The lines of standard input, without their ends, from a thread of its own: it blocks.
fn read_lines() -> mpsc::Receiver<anyhow::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let read = (&mut input)
                .take(LONGEST_LINE + 1)
                .read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) => return,
                Ok(_) if line.len() as u64 > LONGEST_LINE => {
                    Err(anyhow!("a line is longer than {LONGEST_LINE} bytes"))
                }
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    Ok(line)
                }
                Err(error) => Err(error).context("cannot read standard input"),
            };
            let last = line.is_err();
            if sender.blocking_send(line).is_err() || last {
                return;
            }
        }
    });
    receiver
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
