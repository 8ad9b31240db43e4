//! The controller's HTTP API.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, anyhow};
use reqwest::Method;
use rustls::RootCertStore;
use serde_json::Value;
use tradewind_service::config::Secret;
use tradewind_trust::{Roots, tls};

const PATIENCE: Duration = Duration::from_secs(5);
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// Access to the API of one controller.
pub(crate) struct Api {
    base: String,
    http: reqwest::Client,
}

/// An answer.
pub(crate) struct Answer {
    /// Its body.
    pub(crate) body: Value,
    /// Its `Date`, as it came.
    pub(crate) date: Option<String>,
}

impl Api {
    /// The API at `base`. Certificates are checked against the deployment's own authority.
    pub(crate) fn new(base: &str, roots: Option<&Roots>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .user_agent(concat!("tradewind/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls_config(roots)?)
            .build()
            .context("cannot set up HTTP")?;
        Ok(Self {
            base: base.to_owned(),
            http,
        })
    }

    /// Its URL.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Asks for `path` and gives the JSON that is answered.
    ///
    /// # Errors
    /// When the controller is away, or says no: then in its own words.
    pub(crate) async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        Ok(self.ask(path, query).await?.body)
    }

    /// As [`Api::get`], with what else came.
    pub(crate) async fn ask(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.answer(self.http.get(url)).await
    }

    /// Asks an administrator's thing of the controller: `body` is its kind and text.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub(crate) async fn change(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<(&str, String)>,
        secret: Option<&Secret>,
    ) -> anyhow::Result<Value> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        // A policy is tried on the whole network: that may take a while.
        let mut request = self.http.request(method, url).timeout(LONG_PATIENCE);
        if let Some(secret) = secret {
            request = request.bearer_auth(secret.expose());
        }
        if let Some((kind, text)) = body {
            request = request
                .header(reqwest::header::CONTENT_TYPE, kind)
                .body(text);
        }
        Ok(self.answer(request).await?.body)
    }

    /// `path` below the API's URL.
    fn url(&self, path: &str) -> anyhow::Result<reqwest::Url> {
        reqwest::Url::parse(&format!("{}{path}", self.base))
            .with_context(|| format!("{} is no URL of a controller", self.base))
            .map_err(tradewind_service::exit::usage)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
        let answer = request
            .send()
            .await
            .map_err(|error| anyhow!("{}", root_cause(&error)))
            .with_context(|| format!("the controller at {} does not answer", self.base))?;
        let status = answer.status();
        let date = answer
            .headers()
            .get(reqwest::header::DATE)
            .and_then(|date| date.to_str().ok())
            .map(str::to_owned);
        let text = answer
            .text()
            .await
            .with_context(|| format!("the answer of {} broke off", self.base))?;
        let body = serde_json::from_str::<Value>(&text).ok();
        if !status.is_success() {
            let reason = body
                .as_ref()
                .and_then(|body| body.get("error"))
                .and_then(|error| error.as_str().or_else(|| error.get("message")?.as_str()))
                .map_or_else(|| format!("HTTP {status}"), str::to_owned);
            return Err(anyhow!(reason));
        }
        Ok(Answer {
            body: body.unwrap_or(Value::String(text)),
            date,
        })
    }

    /// Names of the relays by their index.
    pub(crate) async fn relay_names(&self) -> anyhow::Result<BTreeMap<u16, String>> {
        let relays = list(self.get("/v1/relays", &[]).await?, "relays");
        Ok(relays
            .iter()
            .filter_map(|relay| {
                let index = u16::try_from(relay.get("index")?.as_u64()?).ok()?;
                Some((index, relay.get("name")?.as_str()?.to_owned()))
            })
            .collect())
    }
}

/// A name as one part of a path.
pub(crate) fn part(name: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| match kept(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// A list in an answer, bare or under its name.
pub(crate) fn list(body: Value, name: &str) -> Vec<Value> {
    match body {
        Value::Array(list) => list,
        Value::Object(mut map) => match map.remove(name) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn tls_config(roots: Option<&Roots>) -> anyhow::Result<rustls::ClientConfig> {
    let mut store = RootCertStore::empty();
    for cert in roots.map(Roots::certs).unwrap_or_default() {
        store.add(cert.clone()).context("the CA cannot be used")?;
    }
    let config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(config)
}

/// What is at the bottom of an error of HTTP: "connection refused" and not "error sending request".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
