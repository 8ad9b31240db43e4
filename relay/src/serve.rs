//! A configured relay from its start to its end.

use std::sync::Arc;

use anyhow::Context as _;
use axum::{Json, Router, extract::State, routing::get};
use tokio::{net::TcpListener, sync::oneshot};
use tradewind_host::{Host, OsHost, probe_receive_buffer};
use tradewind_relay::{Enrolment, GroupSettings, Placement, Relay, RelaySettings, enrol};
use tradewind_service::{
    admin::{self, Admin},
    config::{Secret, redacted},
    exit::usage,
    logs::{self, LogHandle},
    notify,
    signals::Signals,
};
use tradewind_trust::{Identity, Roots};

use crate::{
    PROGRAM,
    config::{Config, ConfigArgs, UplinkConfig},
    webhook_config::WebhookConfig,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A relay that runs, with what belongs to it.
pub(crate) struct Service {
    pub(crate) relay: Relay,
    pub(crate) admin: std::net::SocketAddr,
    listener: TcpListener,
    config: Config,
    args: ConfigArgs,
    logs: LogHandle,
    signals: Signals,
}

/// Runs a relay until it is told to stop.
pub(crate) async fn run(config: Config, args: ConfigArgs) -> anyhow::Result<()> {
    Service::start(config, args).await?.until_stopped().await
}

impl Service {
    /// Starts the relay that `config` describes. On SIGHUP the file that `args` names is read anew.
    pub(crate) async fn start(config: Config, args: ConfigArgs) -> anyhow::Result<Self> {
        let logs = logs::init(&config.log).map_err(usage)?;
        let commit = option_env!("TRADEWIND_COMMIT").unwrap_or("unknown");
        logs::log_start(PROGRAM, VERSION, commit);
        // From here on signals wait until the relay can drain.
        let signals = Signals::new().context("cannot handle signals")?;
        // What is wrong with this machine shows before the network hears of the relay.
        let listener = admin::listen(config.admin, "--admin").await?;
        let admin = listener.local_addr()?;
        warn_of_small_buffers();
        let (identity, roots) = identity(&config).await?;
        if let Some(warning) = identity.warning(OsHost.wall_clock()) {
            tracing::warn!(certificate = %config.certificate.display(), "{warning}");
        }
        let host: Arc<dyn Host> = Arc::new(OsHost);
        let settings = settings(&config, identity, roots)?;
        let relay = Relay::start(settings, host, Placement::OwnThreads).await?;
        tracing::info!(
            name = config.name,
            clients = %relay.client_address(),
            links = %relay.link_address(),
            admin = %admin,
            "listening"
        );
        Ok(Self {
            relay,
            admin,
            listener,
            config,
            args,
            logs,
            signals,
        })
    }

    /// Serves until a signal comes; then drains.
    pub(crate) async fn until_stopped(self) -> anyhow::Result<()> {
        let Self {
            relay,
            listener,
            config,
            args,
            logs,
            mut signals,
            ..
        } = self;
        let router = router(&relay, &config);
        let (stop_admin, admin_stopped) = oneshot::channel::<()>();
        let admin = admin::serve(listener, router, async move {
            // Dropped or told: both mean the end.
            let _ = admin_stopped.await;
        });
        let life = async {
            notify::ready();
            let end = signals.clone();
            tokio::select! {
                () = end.drain() => {}
                () = reload_for_ever(&relay, &config, &args, &logs, &mut signals) => {}
                () = relay.ended() => {
                    drop(stop_admin);
                    anyhow::bail!("a shard has ended by itself: this is a defect; the log says more");
                }
            }
            notify::stopping();
            tracing::info!(deadline = %config.drain, "draining; another signal stops at once");
            tokio::select! {
                () = relay.drain(config.drain.0) => tracing::info!("drained"),
                () = end.now() => {
                    tracing::info!("stopping at once");
                    relay.stop().await;
                }
            }
            drop(stop_admin);
            Ok(())
        };
        let (lived, served) = tokio::join!(life, admin);
        lived?;
        served.context("the admin listener failed")
    }
}

/// This relay's certificate, made by enrolling if there is none yet, and the CA.
async fn identity(config: &Config) -> anyhow::Result<(Identity, Roots)> {
    let roots = Roots::load(&config.ca).map_err(usage)?;
    let token = Secret::resolve(
        "enrol_token",
        config.enrol_token.as_ref(),
        config.enrol_token_file.as_deref(),
    );
    let there = config.certificate.exists() || config.key.exists();
    if there || (config.enrol_token.is_none() && config.enrol_token_file.is_none()) {
        // A token that has been used up is nobody's concern any more.
        let identity = Identity::load(&config.certificate, &config.key).map_err(usage)?;
        return Ok((identity, roots));
    }
    let token = token?
        .context("the enrolment token is empty")
        .map_err(usage)?;
    let identity = enrol_anywhere(config, &token, &roots).await?;
    identity.save(&config.certificate, &config.key, false)?;
    tracing::info!(certificate = %config.certificate.display(), "enrolled");
    Ok((identity, roots))
}

/// Enrols with the first controller that answers.
pub(crate) async fn enrol_anywhere(
    config: &Config,
    token: &Secret,
    roots: &Roots,
) -> anyhow::Result<Identity> {
    let mut last = None;
    for controller in &config.controllers {
        let request = Enrolment {
            controller: controller.clone(),
            token: token.expose().to_owned(),
            relay: config.name.clone(),
            names: config.certificate_names.clone(),
            roots: roots.clone(),
        };
        match enrol(request, Arc::new(OsHost)).await {
            Ok(identity) => return Ok(identity),
            Err(error @ tradewind_relay::EnrolError::Refused { .. }) => return Err(error.into()),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("no controller is named"), Into::into))
}

fn settings(config: &Config, identity: Identity, roots: Roots) -> anyhow::Result<RelaySettings> {
    let webhooks = config.webhooks.iter().map(WebhookConfig::settings);
    Ok(RelaySettings {
        webhooks: webhooks.collect::<Result<_, _>>()?,
        name: config.name.clone(),
        region: config.region.clone(),
        client_listen: config.client_listen,
        link_listen: config.link_listen,
        client_advertise: config.client_advertise.clone(),
        link_advertise: config.link_advertise.clone(),
        link_capacity: config.link_capacity.bytes_per_sec(),
        uplinks: config.uplinks.iter().map(UplinkConfig::settings).collect(),
        controllers: config.controllers.clone(),
        identity,
        roots,
        state_file: Some(config.state_file.clone()),
        max_sessions: config.max_sessions,
        handshakes_per_s: config.handshakes_per_s,
        groups: GroupSettings {
            replay_bytes: usize::try_from(config.replay_bytes.bytes()).unwrap_or(usize::MAX),
            replay_age: config.replay_age.0,
        },
        app_rates: config.app_rates(),
        latitude: config.latitude,
        longitude: config.longitude,
    })
}

fn router(relay: &Relay, config: &Config) -> Router {
    let debug = Router::new()
        .route(
            "/debug/plan",
            get(async |State(relay): State<Relay>| Json(relay.plan())),
        )
        .route(
            "/debug/links",
            get(async |State(relay): State<Relay>| Json(relay.links().await)),
        )
        .route(
            "/debug/sessions",
            get(async |State(relay): State<Relay>| Json(relay.sessions().await)),
        )
        .with_state(relay.clone());
    let shown = redacted(config);
    let readiness = relay.clone();
    Admin::new(relay.registry().clone())
        .ready(move || {
            readiness
                .unready()
                .map_or(Ok(()), |why| Err(why.to_owned()))
        })
        .config(move || shown.clone())
        .merge(debug)
        .into_router()
}

/// Reads what can be changed while running again, whenever asked to.
async fn reload_for_ever(
    relay: &Relay,
    config: &Config,
    args: &ConfigArgs,
    logs: &LogHandle,
    signals: &mut Signals,
) {
    loop {
        signals.reload().await;
        notify::reloading();
        match reload(relay, config, args, logs).await {
            Ok(()) => tracing::info!("log filter and certificates reloaded"),
            Err(error) => tracing::error!(
                "NOT reloaded, everything stays as it was: {}",
                tradewind_service::exit::one_line(&error)
            ),
        }
        notify::ready();
    }
}

async fn reload(
    relay: &Relay,
    running: &Config,
    args: &ConfigArgs,
    logs: &LogHandle,
) -> anyhow::Result<()> {
    // Without a file (`--dev`) there is nothing new in the configuration, but in the certificates.
    let config = match args.config {
        Some(_) => args.load()?,
        None => running.clone(),
    };
    let roots = Roots::load(&config.ca)?;
    let identity = Identity::load(&config.certificate, &config.key)?;
    tradewind_trust::verify_peer_name(identity.certificate(), &running.name)?;
    logs.set(&config.log)?;
    relay.reload_identity(&identity, &roots).await?;
    Ok(())
}

fn warn_of_small_buffers() {
    match probe_receive_buffer() {
        Ok((asked, granted)) if granted < asked => tracing::warn!(
            asked,
            granted,
            "the kernel grants smaller socket buffers than asked for, bursts may be lost: raise net.core.rmem_max and net.core.wmem_max"
        ),
        _ => {}
    }
}
