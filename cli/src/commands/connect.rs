//! How commands find and enter the network: options shared by all that do.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::Args;
use tradewind_client::{Client, ClientConfig, DEFAULT_PORT, Discovery, EdgeAddr};
use tradewind_host::{Host, OsHost};
use tradewind_service::{
    config::{HumanDuration, Secret},
    exit::{UsageError, usage},
};
use tradewind_trust::{Claims, Roots, TokenSigner};

/// Where a controller serves its API on its own machine, unless told otherwise.
const LOCAL_CONTROLLER: &str = "http://127.0.0.1:7401";
/// Where a development network keeps its keys, seen from the working directory.
pub(crate) const DEV_DIR: &str = ".tradewind-dev";
const DEV_USER: &str = "cli";
const DEV_APP: &str = "dev";
const DEV_TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3_600);

/// The development network of `tradewind-controller --dev`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Development network")]
pub(crate) struct DevArgs {
    /// Use the network that `tradewind-controller --dev` has set up on this machine.
    #[arg(long, env = "TRADEWIND_DEV", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) dev: bool,
    /// Where it keeps its keys.
    #[arg(long, env = "TRADEWIND_DEV_DIR", default_value = DEV_DIR, value_name = "DIR")]
    pub(crate) dev_dir: PathBuf,
}

/// Where the controller's HTTP API is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Controller")]
pub(crate) struct ControllerArgs {
    /// URL of the controller's HTTP API, like https://controller.example.org:7401 [where it is
    /// asked, by default: http://127.0.0.1:7401].
    #[arg(long, env = "TRADEWIND_CONTROLLER", value_name = "URL")]
    pub(crate) controller: Option<String>,
    /// Certificates of the deployment's authority (`ca.pem`).
    #[arg(long, env = "TRADEWIND_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) dev: DevArgs,
}

/// The controller, asked as its administrator.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Controller")]
pub(crate) struct AdminArgs {
    /// A file with the controller's admin secret.
    #[arg(long, env = "TRADEWIND_ADMIN_SECRET_FILE", value_name = "FILE")]
    admin_secret_file: Option<PathBuf>,
    /// The secret itself: give it in the environment.
    #[arg(
        long,
        env = "TRADEWIND_ADMIN_SECRET",
        hide = true,
        hide_env_values = true,
        value_name = "SECRET"
    )]
    admin_secret: Option<Secret>,
    #[command(flatten)]
    pub(crate) controller: ControllerArgs,
}

/// How to enter the network as a client.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectArgs {
    /// An edge to use, HOST:PORT; may be repeated.
    #[arg(
        long = "edge",
        env = "TRADEWIND_EDGE",
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    pub(crate) edges: Vec<String>,
    /// Find edges by the DNS records of this name.
    #[arg(long, env = "TRADEWIND_DNS", value_name = "NAME")]
    pub(crate) dns: Option<String>,
    /// The token that says who you are.
    #[arg(
        long,
        env = "TRADEWIND_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<Secret>,
    /// A file with the token.
    #[arg(long, env = "TRADEWIND_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// With --dev: be this user, with a token made on the spot.
    #[arg(long = "as", value_name = "USER", requires = "dev", conflicts_with_all = ["token", "token_file"])]
    as_user: Option<String>,
    /// How long to look for an edge.
    #[arg(
        long,
        env = "TRADEWIND_CONNECT_TIMEOUT",
        default_value = "10s",
        value_name = "DURATION"
    )]
    connect_timeout: HumanDuration,
    #[command(flatten)]
    pub(crate) controller: ControllerArgs,
}

impl DevArgs {
    /// The file `name` of the development directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dev_dir.join(name)
    }

    /// The key that signs tokens for the development network.
    pub(crate) fn signer(&self) -> anyhow::Result<TokenSigner> {
        let signer = self.explained(TokenSigner::load(&self.file("token.key")))?;
        // The key's id stands beside it; without the file it is the derived one.
        Ok(match std::fs::read_to_string(self.file("token.kid")) {
            Ok(kid) if !kid.trim().is_empty() => signer.with_kid(kid.trim()),
            _ => signer,
        })
    }

    /// An error about the directory's contents, with what makes them.
    fn explained<T>(&self, result: Result<T, tradewind_trust::TrustError>) -> anyhow::Result<T> {
        result.map_err(|error| {
            if self.dev_dir.exists() {
                return usage(error);
            }
            UsageError::new(format!(
                "there is no development network in {}: start `tradewind-controller --dev` in this directory, or name it with --dev-dir",
                self.dev_dir.display()
            ))
            .into()
        })
    }
}

impl ControllerArgs {
    /// The API's URL, if one is known.
    pub(crate) fn url(&self) -> Option<&str> {
        match &self.controller {
            Some(url) => Some(url.trim_end_matches('/')),
            None => self.dev.dev.then_some(LOCAL_CONTROLLER),
        }
    }

    /// The authority's certificates, if they are known.
    pub(crate) fn roots(&self) -> anyhow::Result<Option<Roots>> {
        match &self.ca {
            Some(path) => Ok(Some(Roots::load(path).map_err(usage)?)),
            None if self.dev.dev => {
                let roots = Roots::load(&self.dev.file("ca.pem"));
                Ok(Some(self.dev.explained(roots)?))
            }
            None => Ok(None),
        }
    }

    /// Access to the API: without any word of where it is, that of this machine's controller.
    pub(crate) fn api(&self) -> anyhow::Result<super::http::Api> {
        let url = self.url().unwrap_or(LOCAL_CONTROLLER);
        super::http::Api::new(url, self.roots()?.as_ref())
    }
}

impl AdminArgs {
    /// The secret, if one is given.
    pub(crate) fn secret(&self) -> anyhow::Result<Option<Secret>> {
        let file = self.admin_secret_file.as_deref();
        Ok(Secret::resolve(
            "admin_secret",
            self.admin_secret.as_ref(),
            file,
        )?)
    }

    /// Asks for a change, with a body in JSON if there is one.
    pub(crate) async fn change(
        &self,
        method: reqwest::Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<serde_json::Value>,
    ) -> anyhow::Result<serde_json::Value> {
        let body = body.map(|body| ("application/json", body.to_string()));
        let secret = self.secret()?;
        let api = self.controller.api()?;
        api.change(method, path, query, body, secret.as_ref()).await
    }
}

impl ConnectArgs {
    /// Connects to the best edge there is.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let config = self.config().await?;
        Ok(Client::connect(config, host()).await?)
    }

    /// Where edges are looked for.
    pub(crate) async fn discovery(&self) -> anyhow::Result<Vec<Discovery>> {
        let mut ways = Vec::new();
        let mut addresses = Vec::new();
        for edge in &self.edges {
            addresses.extend(resolve(edge).await?.into_iter().map(EdgeAddr::from));
        }
        if !addresses.is_empty() {
            ways.push(Discovery::Static(addresses));
        }
        if let Some(name) = &self.dns {
            ways.push(Discovery::Dns { name: name.clone() });
        }
        // Whoever names edges means these: the controller only helps where none are named.
        if ways.is_empty()
            && let Some(url) = self.controller.url()
        {
            ways.push(Discovery::Controller {
                url: url.to_owned(),
            });
        }
        if ways.is_empty() {
            return Err(UsageError::new(
                "no edge is named: give --edge HOST:PORT, --dns NAME, --controller URL, or --dev",
            )
            .into());
        }
        Ok(ways)
    }

    async fn config(&self) -> anyhow::Result<ClientConfig> {
        let discovery = self.discovery().await?;
        let roots = self.controller.roots()?.ok_or_else(|| {
            UsageError::new(
                "no certificate authority is named: give --ca FILE (its `ca.pem`), or --dev",
            )
        })?;
        let mut config = ClientConfig::new(discovery, self.token()?, roots.certs().to_vec());
        config.connect_timeout = self.connect_timeout.0;
        Ok(config)
    }

    fn token(&self) -> anyhow::Result<String> {
        let given = Secret::resolve("token", self.token.as_ref(), self.token_file.as_deref())?;
        if let Some(token) = given {
            return Ok(token.expose().trim().to_owned());
        }
        if !self.controller.dev.dev {
            return Err(UsageError::new(
                "no token is given: give --token-file FILE or set TRADEWIND_TOKEN (`tradewind token create` makes one)",
            )
            .into());
        }
        let now = unix_seconds(now());
        let claims = Claims {
            app: DEV_APP.to_owned(),
            user: self.as_user.clone().unwrap_or_else(|| DEV_USER.to_owned()),
            exp: now + DEV_TOKEN_LIFETIME.as_secs(),
            iat: now,
            send: vec!["*".to_owned()],
            recv: vec!["*".to_owned()],
            ..Claims::default()
        };
        self.controller.dev.signer()?.sign(&claims).map_err(usage)
    }
}

/// This machine.
pub(crate) fn host() -> Arc<dyn Host> {
    Arc::new(OsHost)
}

/// The time of day.
pub(crate) fn now() -> SystemTime {
    OsHost.wall_clock()
}

/// Seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The addresses of HOST:PORT; without a port, that of edges.
async fn resolve(edge: &str) -> anyhow::Result<Vec<SocketAddr>> {
    if let Ok(address) = edge.parse() {
        return Ok(vec![address]);
    }
    if let Ok(ip) = edge.parse() {
        return Ok(vec![SocketAddr::new(ip, DEFAULT_PORT)]);
    }
    let with_port = if edge.contains(':') {
        edge.to_owned()
    } else {
        format!("{edge}:{DEFAULT_PORT}")
    };
    let found = tokio::net::lookup_host(&with_port)
        .await
        .with_context(|| format!("cannot find the edge {edge}"))?;
    Ok(found.collect())
}

/// Reads a small text file that the user has named.
pub(crate) fn read_named(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .map_err(usage)
}

/// How [`for_a_while`] has ended.
pub(super) enum Ended<T> {
    /// The work was done.
    Done(T),
    /// It was not done by then.
    TimeOver(HumanDuration),
    /// By Ctrl-C.
    Interrupted,
}

/// Works until it is done, the time is over or Ctrl-C comes: in all three cases the caller can still say
/// goodbye.
pub(super) async fn for_a_while<T>(
    timeout: Option<HumanDuration>,
    work: impl Future<Output = T>,
) -> Ended<T> {
    let timed = async {
        match timeout {
            None => Ended::Done(work.await),
            Some(timeout) => match host().timeout(timeout.0, work).await {
                Ok(done) => Ended::Done(done),
                Err(_) => Ended::TimeOver(timeout),
            },
        }
    };
    tokio::select! {
        ended = timed => ended,
        _ = tokio::signal::ctrl_c() => Ended::Interrupted,
    }
}
