//! Calls an application's webhook.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rand::RngExt as _;
use reqwest::{StatusCode, header};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::sync::mpsc;
use tradewind_host::Host;

use super::{
    OfflineEvent, Queue, WebhookError, WebhookMetrics, WebhookSettings,
    queue::{Ended, Job, Topic},
    sign::sign,
};

/// When nothing is due it is looked again then.
const IDLE: Duration = Duration::from_secs(3_600);

/// What calls are made with.
pub(super) struct Caller {
    settings: Arc<WebhookSettings>,
    relay: Arc<str>,
    http: reqwest::Client,
    metrics: WebhookMetrics,
}

impl Caller {
    pub(super) fn new(
        settings: WebhookSettings,
        relay: &str,
        metrics: WebhookMetrics,
    ) -> Result<Self, WebhookError> {
        settings.check()?;
        let wrong = |reason: String| WebhookError::Roots {
            app: settings.app.clone(),
            reason,
        };
        let roots = roots(&settings).map_err(wrong)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tradewind-relay/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            settings: Arc::new(settings),
            relay: relay.into(),
            http,
            metrics,
        })
    }

    /// The request for one attempt.
    fn request(&self, job: &Job, wall: SystemTime) -> reqwest::RequestBuilder {
        let id = format!("msg_{:032x}", job.id);
        let body = body_of(job, &id, &self.relay);
        let unix_s = wall
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let signature = sign(self.settings.secret.bytes(), &id, unix_s, body.as_bytes());
        self.http
            .post(&self.settings.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", unix_s)
            .header("webhook-signature", signature)
            .body(body)
    }
}

/// Who may vouch for the server.
fn roots(settings: &WebhookSettings) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = &settings.ca {
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| format!("`ca_file` is no PEM: {e}"))?;
            let added = roots.add(certificate);
            added.map_err(|e| format!("`ca_file` has a certificate of no use: {e}"))?;
        }
        if roots.is_empty() {
            return Err("`ca_file` has no certificate".to_owned());
        }
    } else if settings.url.starts_with("https:") {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("this system trusts no certificate authority".to_owned());
        }
    }
    Ok(roots)
}

fn body_of(job: &Job, id: &str, relay: &str) -> String {
    let time = |at: SystemTime| {
        Timestamp::try_from(at).map_or_else(|_| String::new(), |at| format!("{at:.3}"))
    };
    let Topic { app, user, from } = &job.topic;
    json!({
        "event": "offline",
        "id": id,
        "app": app,
        "user": user,
        "from": from,
        "class": job.events.class.name(),
        "count": job.events.count,
        "first_at": time(job.events.first_at),
        "last_at": time(job.events.last_at),
        "relay": relay,
    })
    .to_string()
}

/// Calls for the events that come, until none can come any more.
pub(super) async fn run(
    caller: Caller,
    mut events: mpsc::Receiver<OfflineEvent>,
    host: Arc<dyn Host>,
) {
    let mut queue = Queue::new(&caller.settings);
    let (done, mut ended) = mpsc::channel(caller.settings.concurrency);
    let mut rng = host.rng();
    let mut failing = false;
    // All webhooks add to one gauge.
    let mut shown = 0;
    loop {
        while let Some(job) = queue.next_job(host.now()) {
            let request = caller.request(&job, host.wall_clock());
            let done = done.clone();
            host.spawn(async move {
                let outcome = outcome_of(request.send().await);
                // Nobody waits for it any more: the relay ends.
                let _ = done.send((job.topic, outcome)).await;
            });
        }
        let waiting = queue.waiting() as i64;
        caller.metrics.waiting.add(waiting - shown);
        shown = waiting;
        let look_at = queue.next_due().unwrap_or_else(|| host.now() + IDLE);
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else {
                    caller.metrics.waiting.sub(shown);
                    return;
                };
                if !queue.push(event, rng.random(), host.now()) {
                    caller.metrics.dropped_full.inc();
                }
            }
            Some((topic, (outcome, reason))) = ended.recv() => {
                match outcome {
                    Ended::Ok => caller.metrics.calls_ok.inc(),
                    Ended::Failed => caller.metrics.calls_failed.inc(),
                    Ended::Refused => {
                        caller.metrics.calls_failed.inc();
                        caller.metrics.dropped_refused.inc();
                    }
                }
                // Said once, not for every call to a server that is away.
                if (outcome != Ended::Ok) && !failing {
                    let (app, url) = (&caller.settings.app, &caller.settings.url);
                    tracing::warn!(app, url, reason, "the webhook fails");
                }
                failing = outcome != Ended::Ok;
                let lots = (rng.random_range(0.0..1.0), rng.random());
                if queue.ended(&topic, outcome, lots, host.now()) {
                    caller.metrics.dropped_gave_up.inc();
                }
            }
            () = host.sleep_until(look_at) => {}
        }
    }
}

/// What an answer means, and in words.
fn outcome_of(answer: reqwest::Result<reqwest::Response>) -> (Ended, String) {
    match answer {
        Ok(answer) => {
            let status = answer.status();
            (meaning_of(status), format!("it answers {status}"))
        }
        Err(error) => {
            let mut root: &dyn std::error::Error = &error;
            while let Some(source) = root.source() {
                root = source;
            }
            (Ended::Failed, root.to_string())
        }
    }
}

fn meaning_of(status: StatusCode) -> Ended {
    let later = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    if status.is_success() {
        Ended::Ok
    } else if status.is_server_error() || later.contains(&status) {
        Ended::Failed
    } else {
        Ended::Refused
    }
}
