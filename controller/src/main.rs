//! The controller's service: reads the configuration, starts the library, serves HTTP, stops.

mod dev;
mod settings;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use axum::Router;
use clap::{Args, Parser, Subcommand};
use settings::Settings;
use tradewind_controller::{Controller, ControllerConfig, metrics, state};
use tradewind_host::{Host, OsHost};
use tradewind_service::{
    admin::{self, Admin},
    config::{HumanDuration, Secret, apply, redacted},
    exit::{self, UsageError, usage},
    logs::{self, LogHandle},
    notify,
    signals::Signals,
};
use tradewind_trust::{Identity, check_relay_name, tls};

const NAME: &str = "tradewind-controller";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long open HTTP requests may go on once the service stops.
const GRACE: Duration = Duration::from_secs(2);
/// How long `health` waits for an answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

const EXAMPLES: &str = "Examples:
  tradewind-controller --dev                        a throw-away network on this machine
  tradewind-controller run --config controller.toml
  tradewind-controller check-config --config controller.toml
  tradewind-controller enrol-token create --config controller.toml --relay tokyo-1

Exit codes: 0 good, 1 failed, 2 wrong usage or configuration.";

/// The controller of a Tradewind network: measures, plans, and tells relays which way packets go.
#[derive(Parser)]
#[command(name = NAME, version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the controller (also without the word `run`)
    Run(RunArgs),
    /// Checks the configuration and all files it names, and starts nothing
    CheckConfig(RunArgs),
    /// Asks a running controller on this machine whether it is well (for containers)
    Health(RunArgs),
    /// One-time tokens with which relays enrol
    EnrolToken {
        #[command(subcommand)]
        command: EnrolTokenCommand,
    },
}

#[derive(Subcommand)]
enum EnrolTokenCommand {
    /// Makes a token and prints it; works while the controller runs
    Create {
        #[command(flatten)]
        run: RunArgs,
        /// Only the relay of this name may use it
        #[arg(long, value_name = "NAME")]
        relay: Option<String>,
        /// How long it is good for
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        lifetime: HumanDuration,
    },
}

#[derive(Args, Clone)]
struct RunArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "TRADEWIND_CONTROLLER_CONFIG")]
    config: Option<PathBuf>,
    /// Throw-away network on loopback: makes its own keys
    #[arg(long, conflicts_with = "config")]
    dev: bool,
    /// Where `--dev` keeps its keys
    #[arg(long, value_name = "DIR", env = "TRADEWIND_DEV_DIR", default_value = dev::DIR)]
    dev_dir: PathBuf,
    /// Where relays connect (UDP)
    #[arg(long, value_name = "IP:PORT", env = "TRADEWIND_CONTROLLER_LISTEN")]
    listen: Option<SocketAddr>,
    /// The HTTP API (TCP)
    #[arg(long, value_name = "IP:PORT", env = "TRADEWIND_CONTROLLER_HTTP")]
    http: Option<SocketAddr>,
    /// Where indices, epoch, policy, history and enrolment tokens are kept
    #[arg(long, value_name = "DIR", env = "TRADEWIND_CONTROLLER_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Public keys of client tokens: PEM, JSON Web Key Set, or a directory of such
    #[arg(long, value_name = "PATH", env = "TRADEWIND_CONTROLLER_TOKEN_KEYS")]
    token_keys: Option<PathBuf>,
    /// The first plan waits for so many relays, though not for ever
    #[arg(long, value_name = "N", env = "TRADEWIND_CONTROLLER_EXPECTED_RELAYS")]
    expected_relays: Option<usize>,
    /// What is logged: error, warn, info, debug, trace, or directives
    #[arg(long, value_name = "FILTER", env = "TRADEWIND_CONTROLLER_LOG")]
    log: Option<String>,
    /// Secret for administration over HTTP; in the environment only
    #[arg(skip = std::env::var("TRADEWIND_CONTROLLER_ADMIN_SECRET").ok().map(Secret::from))]
    admin_secret: Option<Secret>,
}

fn main() -> ExitCode {
    exit::finish(NAME, start(Cli::parse()))
}

fn start(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => runtime()?.block_on(run(args)),
        Command::CheckConfig(args) => check_config(&args),
        Command::Health(args) => health(&args),
        Command::EnrolToken {
            command:
                EnrolTokenCommand::Create {
                    run,
                    relay,
                    lifetime,
                },
        } => create_enrol_token(&run, relay, lifetime.0),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

impl RunArgs {
    /// Flags and environment over the file over the defaults.
    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = settings::load(self.config.as_deref())?;
        if self.dev {
            settings.listen = dev::LISTEN;
            settings.http = dev::HTTP;
            settings.certificate = self.dev_dir.join("controller.pem");
            settings.key = self.dev_dir.join("controller.key");
            settings.ca = self.dev_dir.join("ca.pem");
            settings.ca_dir = Some(self.dev_dir.clone());
            settings.state_dir = self.dev_dir.join("controller");
        }
        apply(&mut settings.listen, self.listen);
        apply(&mut settings.http, self.http);
        apply(&mut settings.state_dir, self.state_dir.clone());
        apply(&mut settings.log, self.log.clone());
        apply(&mut settings.token_keys, self.token_keys.clone().map(Some));
        apply(
            &mut settings.expected_relays,
            self.expected_relays.map(Some),
        );
        if let Some(secret) = &self.admin_secret {
            settings.admin_secret = Some(secret.clone());
            settings.admin_secret_file = None;
        }
        Ok(settings)
    }

    fn controller_config(&self, settings: &Settings) -> anyhow::Result<ControllerConfig> {
        let now = OsHost.wall_clock();
        if !self.dev {
            return settings.controller_config(now);
        }
        let mut config = dev::prepare(&self.dev_dir, settings.listen, now)?;
        config.state_dir = Some(settings.state_dir.clone());
        config.network.expected_relays = settings.expected_relays;
        Ok(config)
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let log_handle = logs::init(&settings.log).map_err(usage)?;
    let config = args.controller_config(&settings)?;
    let http_identity = settings.http_identity()?;
    // Both ports first: nothing is changed on disk when one of them is busy.
    let listener = admin::listen(settings.http, "--http").await?;
    let http_address = listener.local_addr()?;
    let controller = Controller::start(config, Arc::new(OsHost))?;
    match &settings.policy_file {
        Some(file) => {
            // A controller that plans without a new policy is better than none.
            if let Err(error) = controller.load_policy_file(file) {
                tracing::error!(%error, "the policy before stays");
            }
        }
        None => {
            let (policy, _) = controller.policy();
            if policy.source.starts_with("file ") {
                tracing::warn!(
                    source = policy.source,
                    "this policy stays in force though `policy_file` is not set any more; \
                     `tradewind policy apply` sets another"
                );
            }
        }
    }
    // Not before: whoever cannot start says why in one line.
    logs::log_start(NAME, VERSION, commit());
    let signals = Signals::new().context("cannot follow signals")?;

    let registry = metrics::registry(&controller, VERSION, commit())?;
    let shown = redacted(&settings);
    let stopping = signals.clone();
    let router = Admin::new(registry)
        .ready(move || match stopping.is_draining() {
            true => Err("stopping".to_owned()),
            false => Ok(()),
        })
        .config(move || shown.clone())
        .merge(controller.api())
        .into_router();

    let listen = controller.listen_address();
    tracing::info!(%listen, http = %http_address, "up");
    if args.dev {
        print!("{}", dev::greeting(&args.dev_dir, listen, http_address));
        let _ = io::stdout().flush();
    }
    notify::ready();
    let reload = reload(args, controller.clone(), log_handle, signals.clone());
    let drained = signals.clone();
    let served = async move {
        match http_identity {
            None => {
                let stop = async move { drained.drain().await };
                admin::serve(listener, router, stop).await
            }
            Some(identity) => serve_tls(listener, router, &identity, drained).await,
        }
    };
    let stopped = async {
        tokio::select! {
            served = served => served.context("the HTTP listener failed"),
            () = signals.now() => Ok(()),
            never = reload => never,
        }
    };
    let result = stopped.await;
    notify::stopping();
    tracing::info!("stopping: relays forward on the plan they hold");
    controller.shutdown().await;
    result
}

/// Reads the configuration again whenever asked to. What is wrong with it is said, and what was
/// before stays.
async fn reload(
    args: RunArgs,
    controller: Controller,
    log_handle: LogHandle,
    mut signals: Signals,
) -> anyhow::Result<()> {
    loop {
        signals.reload().await;
        notify::reloading();
        let reloaded = || -> anyhow::Result<()> {
            let settings = args.settings()?;
            log_handle.set(&settings.log)?;
            if !args.dev {
                let (identity, roots) = settings.identity()?;
                let keys = settings.load_token_keys()?;
                controller.set_identity(&identity, &roots)?;
                controller.set_token_keys(keys);
            }
            if let Some(file) = &settings.policy_file {
                controller.load_policy_file(file)?;
            }
            Ok(())
        };
        match reloaded() {
            Ok(()) => tracing::info!("log filter, certificates, token keys and policy read again"),
            Err(error) => {
                let error = exit::one_line(&error);
                tracing::error!(error, "not reloaded: what was before stays");
            }
        }
        notify::ready();
    }
}

async fn serve_tls(
    listener: tokio::net::TcpListener,
    router: Router,
    identity: &Identity,
    signals: Signals,
) -> io::Result<()> {
    let clock = tls::host_clock(Arc::new(OsHost));
    let config = tls::client_port_server_config(identity, &[b"http/1.1"], clock)
        .map_err(io::Error::other)?;
    let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(config));
    let handle = axum_server::Handle::new();
    let server = axum_server::from_tcp_rustls(listener.into_std()?, config)?
        .handle(handle.clone())
        .serve(router.into_make_service());
    let stop = async {
        signals.drain().await;
        handle.graceful_shutdown(Some(GRACE));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = server => served,
        () = stop => Ok(()),
    }
}

fn check_config(args: &RunArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    if !args.dev {
        settings.check(OsHost.wall_clock())?;
    }
    print!("{}", tradewind_service::config::to_toml(&settings)?);
    eprintln!("{NAME}: the configuration is good");
    Ok(())
}

/// A request by hand: a health check should need nothing but the port.
fn health(args: &RunArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let mut address = settings.http;
    if address.ip().is_unspecified() {
        let loopback = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    let unwell = || format!("no controller answers at {address}");
    let mut stream = TcpStream::connect_timeout(&address, HEALTH_TIMEOUT).with_context(unwell)?;
    if settings.http_certificate.is_some() {
        println!("listening"); // what is behind TLS is not asked
        return Ok(());
    }
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(unwell)?;
    let mut answer = String::new();
    stream
        .take(4_096)
        .read_to_string(&mut answer)
        .with_context(unwell)?;
    if answer.split_whitespace().nth(1) == Some("200") {
        println!("ready");
        return Ok(());
    }
    let reason = answer.lines().last().unwrap_or("no answer");
    anyhow::bail!("the controller at {address} is not ready: {reason}")
}

fn create_enrol_token(
    args: &RunArgs,
    relay: Option<String>,
    lifetime: Duration,
) -> anyhow::Result<()> {
    let settings = args.settings()?;
    if let Some(relay) = &relay {
        check_relay_name(relay).map_err(usage)?;
    }
    if settings.ca_dir.is_none() {
        let text = "relays cannot enrol at this controller: configure `ca_dir`";
        return Err(UsageError::new(text).into());
    }
    let now: SystemTime = OsHost.wall_clock();
    let token = state::create_enrol_token(&settings.state_dir, relay, lifetime, now)?;
    println!("{token}");
    Ok(())
}

/// The commit this was built from, where the build says it.
fn commit() -> &'static str {
    option_env!("TRADEWIND_COMMIT").unwrap_or("unknown")
}
