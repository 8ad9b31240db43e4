//! What an application is told by HTTP: that somebody has something for a user who is offline, so that
//! it can wake the user's phone. The edge of the sender calls; the controller has no part in it.
//!
//! The shard hands events over and never waits. [`Queue`] decides what is called when, as a plain state
//! machine; [`call`] does it.

mod call;
mod metrics;
mod queue;
mod settings;
mod sign;

use std::{sync::Arc, time::SystemTime};

use tokio::sync::mpsc;
use tradewind_host::Host;
use tradewind_proto::Class;

pub(crate) use self::metrics::WebhookMetrics;
use self::queue::Queue;
pub use self::settings::{WebhookError, WebhookSecret, WebhookSettings};

/// Events that wait for the task of a webhook.
const EVENTS: usize = 1_024;
/// Stands for every app.
const ANY_APP: &str = "*";

/// Somebody had something for a user who is offline.
#[derive(Debug, Clone)]
pub(crate) struct OfflineEvent {
    pub(crate) app: String,
    /// Who is offline.
    pub(crate) user: String,
    /// Who has something for that user.
    pub(crate) from: String,
    pub(crate) class: Class,
    pub(crate) at: SystemTime,
}

/// Where a shard's events go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Webhooks {
    /// By app.
    hooks: Vec<(String, mpsc::Sender<OfflineEvent>)>,
}

impl Webhooks {
    /// Starts a task for each webhook of the relay of that name.
    ///
    /// # Errors
    /// [`WebhookError`].
    pub(crate) fn start(
        settings: Vec<WebhookSettings>,
        relay: &str,
        host: &Arc<dyn Host>,
        metrics: &WebhookMetrics,
    ) -> Result<Self, WebhookError> {
        let mut hooks: Vec<(String, mpsc::Sender<OfflineEvent>)> = Vec::new();
        for settings in settings {
            if hooks.iter().any(|(app, _)| *app == settings.app) {
                return Err(WebhookError::Twice(settings.app));
            }
            let (sender, events) = mpsc::channel(EVENTS);
            hooks.push((settings.app.clone(), sender));
            let caller = call::Caller::new(settings, relay, metrics.clone())?;
            host.spawn(call::run(caller, events, host.clone()));
        }
        Ok(Self { hooks })
    }

    /// Whether an app has one: its own, or the one of all apps.
    pub(crate) fn has(&self, app: &str) -> bool {
        self.of(app).is_some()
    }

    /// Hands an event over. Never waits.
    pub(crate) fn tell(&self, event: OfflineEvent, metrics: &WebhookMetrics) {
        if let Some(hook) = self.of(&event.app) {
            metrics.events.inc();
            if hook.try_send(event).is_err() {
                metrics.dropped_busy.inc();
            }
        }
    }

    fn of(&self, app: &str) -> Option<&mpsc::Sender<OfflineEvent>> {
        let named = |wanted: &str| self.hooks.iter().find(|(app, _)| app == wanted);
        named(app).or_else(|| named(ANY_APP)).map(|(_, hook)| hook)
    }
}
