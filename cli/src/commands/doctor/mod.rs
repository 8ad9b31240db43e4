//! `tradewind doctor`.

mod checks;
mod edges;

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::{connect::ConnectArgs, show};

/// Looks for what keeps this machine from using the network, and says what to do about it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind doctor
  tradewind doctor --dev
  tradewind doctor --dns edges.example.org --ca ca.pem --cert tokyo-1.pem --key tokyo-1.key --name tokyo-1")]
pub(crate) struct DoctorArgs {
    /// A node's certificate to look at.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The private key to it.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The relay whose certificate it should be.
    #[arg(long, value_name = "RELAY", requires = "cert")]
    name: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work.
    Bad,
    /// There was nothing to check.
    Skipped,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    pub(crate) fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Good, found.into(), None)
    }

    pub(crate) fn warning(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Warning, found.into(), Some(advice.into()))
    }

    pub(crate) fn bad(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Bad, found.into(), Some(advice.into()))
    }

    pub(crate) fn skipped(check: &'static str, advice: impl Into<String>) -> Self {
        Self::new(
            check,
            Verdict::Skipped,
            "not looked at".to_owned(),
            Some(advice.into()),
        )
    }

    fn new(check: &'static str, verdict: Verdict, found: String, advice: Option<String>) -> Self {
        Self {
            check,
            verdict,
            found,
            advice,
        }
    }
}

pub(crate) async fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let mut findings = vec![
        checks::loopback("udp over IPv4", "127.0.0.1:0").await,
        checks::loopback("udp over IPv6", "[::1]:0").await,
        checks::socket_buffers(),
        checks::authority(&args.connect.controller),
        checks::certificate(
            args.cert.as_deref(),
            args.key.as_deref(),
            args.name.as_deref(),
        ),
        checks::clock(&args.connect.controller).await,
        checks::dns(args.connect.dns.as_deref()).await,
    ];
    findings.extend(edges::check(&args.connect).await);
    if args.json {
        show::json(&findings)?;
    } else {
        for finding in &findings {
            show_finding(finding)?;
        }
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .count();
    if bad > 0 {
        bail!("{bad} of {} checks failed", findings.len());
    }
    Ok(())
}

fn show_finding(finding: &Finding) -> anyhow::Result<()> {
    let mark = match finding.verdict {
        Verdict::Good => "good   ",
        Verdict::Warning => "warning",
        Verdict::Bad => "BAD    ",
        Verdict::Skipped => "-      ",
    };
    show::line(format!("{mark}  {:<15}  {}", finding.check, finding.found))?;
    if let Some(advice) = &finding.advice {
        show::line(format!("{:26}{advice}", ""))?;
    }
    Ok(())
}
