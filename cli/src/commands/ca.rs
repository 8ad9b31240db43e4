//! `tradewind ca`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use tradewind_service::{config::HumanDuration, exit::usage};
use tradewind_trust::{AltName, Ca, Identity, cert_name};

use super::{connect::now, show};

/// The deployment's certificate authority.
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Makes a new authority: `ca.pem` for everybody, `ca.key` for nobody else.
    Init(InitArgs),
    /// Makes a certificate and its key.
    #[command(subcommand)]
    Issue(IssueCommand),
}

/// Makes a new authority.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind ca init --dir /etc/tradewind/ca --name 'Example Tradewind CA'")]
pub(crate) struct InitArgs {
    /// Where it goes.
    #[arg(
        long,
        env = "TRADEWIND_CA_DIR",
        default_value = "ca",
        value_name = "DIR"
    )]
    dir: PathBuf,
    /// Its name, for people.
    #[arg(long, default_value = "Tradewind CA")]
    name: String,
    /// Overwrite what is there: everything issued before becomes worthless.
    #[arg(long)]
    force: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Makes a certificate and its key.
#[derive(Debug, Subcommand)]
pub(crate) enum IssueCommand {
    /// For the relay of that name.
    Relay {
        /// The relay's stable name, like tokyo-1.
        name: String,
        #[command(flatten)]
        issue: IssueArgs,
    },
    /// For the controller.
    Controller {
        #[command(flatten)]
        issue: IssueArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// Where the authority is.
    #[arg(
        long,
        env = "TRADEWIND_CA_DIR",
        default_value = "ca",
        value_name = "DIR"
    )]
    dir: PathBuf,
    /// A DNS name or address it is reached by; may be repeated.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    san: Vec<AltName>,
    /// How long it holds.
    #[arg(long, default_value = "365d", value_name = "DURATION")]
    ttl: HumanDuration,
    /// Where the two files go.
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
    /// Overwrite what is there.
    #[arg(long)]
    force: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: CaCommand) -> anyhow::Result<()> {
    match command {
        CaCommand::Init(args) => init(&args),
        CaCommand::Issue(IssueCommand::Relay { name, issue }) => {
            let ca = Ca::load(&issue.dir).map_err(usage)?;
            let identity = ca
                .issue_relay(&name, &issue.san, now(), issue.ttl.0)
                .map_err(usage)?;
            save(&identity, &cert_name(&name), &issue)
        }
        CaCommand::Issue(IssueCommand::Controller { issue }) => {
            let ca = Ca::load(&issue.dir).map_err(usage)?;
            let identity = ca
                .issue_controller(&issue.san, now(), issue.ttl.0)
                .map_err(usage)?;
            save(&identity, "controller", &issue)
        }
    }
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let ca = Ca::create(&args.name, now())?;
    ca.save(&args.dir, args.force).map_err(usage)?;
    let (cert, key) = (args.dir.join("ca.pem"), args.dir.join("ca.key"));
    if args.json {
        return show::json(&json!({ "certificate_file": cert, "key_file": key }));
    }
    show::line(format!(
        "{}: give it to every node and client",
        cert.display()
    ))?;
    show::line(format!("{}: keep it secret", key.display()))?;
    Ok(())
}

fn save(identity: &Identity, stem: &str, args: &IssueArgs) -> anyhow::Result<()> {
    let file = |ending: &str| args.out.join(Path::new(&format!("{stem}.{ending}")));
    let (cert, key) = (file("pem"), file("key"));
    identity.save(&cert, &key, args.force).map_err(usage)?;
    if args.json {
        return show::json(&json!({ "certificate_file": cert, "key_file": key }));
    }
    show::line(format!("{}: the certificate", cert.display()))?;
    show::line(format!(
        "{}: its private key; keep it secret",
        key.display()
    ))?;
    Ok(())
}
