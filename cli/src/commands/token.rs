//! `tradewind token`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use tradewind_client::Class;
use tradewind_service::{
    config::{HumanDuration, Rate, Size},
    exit::{UsageError, usage},
};
use tradewind_trust::{Claims, TokenSigner};

use super::{
    block_on,
    connect::{DevArgs, now, unix_seconds},
    revoke::{self, RevocationsArgs, RevokeArgs},
    show,
};

/// Makes client tokens and the key that signs them, and revokes them.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a token for a user.
    Create(Box<CreateArgs>),
    /// Makes the Ed25519 key that signs tokens.
    #[command(visible_alias = "key")]
    Keygen(KeygenArgs),
    /// Ends a user's access, or a single token's, now.
    Revoke(Box<RevokeArgs>),
    /// Shows what is revoked.
    Revocations(Box<RevocationsArgs>),
}

/// Makes a token for a user and writes it to standard output.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind token create --dev --user alice
  tradewind token create --key token.key --app chat --user alice --ttl 12h --classes audio,message > alice.token")]
pub(crate) struct CreateArgs {
    /// The key that signs it (PEM, Ed25519).
    #[arg(
        long,
        env = "TRADEWIND_TOKEN_KEY",
        value_name = "FILE",
        required_unless_present = "dev"
    )]
    key: Option<PathBuf>,
    /// Id of the key, if it is not the derived one.
    #[arg(long, env = "TRADEWIND_TOKEN_KID")]
    kid: Option<String>,
    /// The user.
    #[arg(long)]
    user: String,
    /// The app (tenant) the user belongs to.
    #[arg(long, env = "TRADEWIND_APP", default_value = "dev")]
    app: String,
    /// How long it holds, from now.
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    ttl: HumanDuration,
    /// When it ends, Unix seconds, instead of --ttl.
    #[arg(long, value_name = "SECONDS", conflicts_with = "ttl")]
    expires: Option<u64>,
    /// Groups to send to and receive from; `*` is all.
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    groups: Vec<String>,
    /// Groups to send to only.
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    send: Vec<String>,
    /// Groups to receive from only.
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    recv: Vec<String>,
    /// Users to be told of whether they are online; all if absent, nobody if empty.
    #[arg(long, value_delimiter = ',', value_name = "USER")]
    watch: Option<Vec<String>>,
    /// Classes to send in; all if absent.
    #[arg(long, value_delimiter = ',', value_name = "CLASS")]
    classes: Vec<Class>,
    /// Rate to send at, like 2Mbps.
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// Largest message to send, like 64KiB.
    #[arg(long, value_name = "SIZE")]
    max_message: Option<Size>,
    /// Id of the token, for revocation.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// With its claims, as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dev: DevArgs,
}

/// Makes the Ed25519 key that signs tokens.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  tradewind token keygen --out token.key --public token-keys/main.pem")]
pub(crate) struct KeygenArgs {
    /// Where the private key goes; only you can read it.
    #[arg(long, default_value = "token.key", value_name = "FILE")]
    out: PathBuf,
    /// Where the public key goes, which the controller is given.
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
    /// Overwrite what is there.
    #[arg(long)]
    force: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(args) => create(*args),
        TokenCommand::Keygen(args) => keygen(&args),
        TokenCommand::Revoke(args) => block_on(revoke::revoke(*args)),
        TokenCommand::Revocations(args) => block_on(revoke::revocations(*args)),
    }
}

fn create(args: CreateArgs) -> anyhow::Result<()> {
    let mut signer = match &args.key {
        Some(path) => TokenSigner::load(path).map_err(usage)?,
        None => args.dev.signer()?,
    };
    if let Some(kid) = &args.kid {
        signer = signer.with_kid(kid);
    }
    let iat = unix_seconds(now());
    let exp = match args.expires {
        Some(at) => at,
        None => iat
            .checked_add(args.ttl.0.as_secs())
            .ok_or_else(|| UsageError::new("--ttl is too long"))?,
    };
    let both = |own: Vec<String>| args.groups.iter().cloned().chain(own).collect();
    let claims = Claims {
        app: args.app,
        user: args.user,
        exp,
        iat,
        nbf: None,
        jti: args.id,
        send: both(args.send),
        recv: both(args.recv),
        watch: args.watch,
        classes: (!args.classes.is_empty()).then_some(args.classes),
        rate_bps: args.rate.map(Rate::bits_per_sec),
        max_message: args.max_message.map(Size::bytes),
    };
    let token = signer.sign(&claims).map_err(usage)?;
    if args.json {
        return show::json(&json!({ "token": token, "kid": signer.kid(), "claims": claims }));
    }
    show::line(token)?;
    Ok(())
}

fn keygen(args: &KeygenArgs) -> anyhow::Result<()> {
    let signer = TokenSigner::generate()?;
    // The public half is checked first: a key without it would be no use.
    if let Some(path) = &args.public
        && path.exists()
        && !args.force
    {
        return Err(UsageError::new(format!(
            "{} exists already and is not overwritten; remove it or use --force",
            path.display()
        ))
        .into());
    }
    signer.save(&args.out, args.force).map_err(usage)?;
    let public = signer.public_key_pem();
    if let Some(path) = &args.public {
        std::fs::write(path, &public)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        return show::json(&json!({
            "key_file": args.out,
            "kid": signer.kid(),
            "public_key": public,
        }));
    }
    show::line(format!(
        "{}: the private key; keep it secret",
        args.out.display()
    ))?;
    show::line(format!("key id {}", signer.kid()))?;
    match &args.public {
        Some(path) => show::line(format!(
            "{}: the public key; put it among the controller's token keys",
            path.display()
        ))?,
        None => show::line(public.trim_end())?,
    }
    Ok(())
}
