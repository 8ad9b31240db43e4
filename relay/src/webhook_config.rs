//! Webhooks, as the configuration file and flags have them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tradewind_relay::{WebhookError, WebhookSecret, WebhookSettings};
use tradewind_service::{
    config::{HumanDuration, Secret, apply},
    exit::UsageError,
};

/// What an application is told by HTTP of users who are offline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebhookConfig {
    pub(crate) app: String,
    pub(crate) url: String,
    pub(crate) secret: Option<Secret>,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) window: Option<HumanDuration>,
    pub(crate) timeout: Option<HumanDuration>,
    pub(crate) attempts: Option<u32>,
    pub(crate) queue: Option<usize>,
    pub(crate) concurrency: Option<usize>,
}

/// A webhook as a flag names it.
#[derive(Debug, Clone)]
pub(crate) struct WebhookArg {
    app: String,
    url: String,
}

impl std::str::FromStr for WebhookArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=');
        let (app, url) = parts.ok_or("write it like chat=https://api.example.org/tradewind")?;
        let (app, url) = (app.to_owned(), url.to_owned());
        Ok(Self { app, url })
    }
}

impl WebhookConfig {
    /// As flags give it.
    pub(crate) fn of(
        webhook: WebhookArg,
        secret: Option<Secret>,
        secret_file: Option<PathBuf>,
    ) -> Self {
        let WebhookArg { app, url } = webhook;
        Self {
            app,
            url,
            secret,
            secret_file,
            ca_file: None,
            window: None,
            timeout: None,
            attempts: None,
            queue: None,
            concurrency: None,
        }
    }

    /// All but the secret and the certificates, to be checked.
    fn checked(&self, secret: WebhookSecret) -> Result<WebhookSettings, WebhookError> {
        let mut settings = WebhookSettings::new(self.app.clone(), self.url.clone(), secret);
        apply(&mut settings.window, self.window.map(|time| time.0));
        apply(&mut settings.timeout, self.timeout.map(|time| time.0));
        apply(&mut settings.attempts, self.attempts);
        apply(&mut settings.queue, self.queue);
        apply(&mut settings.concurrency, self.concurrency);
        settings.check()?;
        Ok(settings)
    }

    /// Checks what can be checked without reading its files.
    ///
    /// # Errors
    /// What is wrong, naming the app and the key.
    pub(crate) fn check(&self) -> Result<(), String> {
        let secret = match (&self.secret, &self.secret_file) {
            (Some(_), Some(_)) => {
                return Err(
                    self.wrong("has both `secret` and `secret_file`: leave one of them out")
                );
            }
            (None, None) => {
                return Err(self.wrong(
                    "has no secret, which its receiver needs to trust it: set `secret_file` (or `secret`)",
                ));
            }
            (Some(secret), None) => secret.expose(),
            // What stands in the file shows when it is read.
            (None, Some(_)) => "to be read from the file",
        };
        WebhookSecret::parse(&self.app, secret)
            .and_then(|secret| self.checked(secret))
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    /// What it comes to, with the contents of its files.
    ///
    /// # Errors
    /// [`UsageError`], naming the app.
    pub(crate) fn settings(&self) -> Result<WebhookSettings, UsageError> {
        let usage = |text: String| UsageError::new(text);
        self.check().map_err(usage)?;
        let secret = Secret::resolve("secret", self.secret.as_ref(), self.secret_file.as_deref());
        let secret = secret.map_err(|error| usage(self.wrong(&error.to_string())))?;
        let secret = secret.as_ref().map_or("", Secret::expose);
        let settings = WebhookSecret::parse(&self.app, secret).and_then(|s| self.checked(s));
        let mut settings = settings.map_err(|error| usage(error.to_string()))?;
        if let Some(path) = &self.ca_file {
            let pem = std::fs::read(path).map_err(|error| {
                let reason = format!("cannot read `ca_file` {}: {error}", path.display());
                usage(self.wrong(&reason))
            })?;
            settings.ca = Some(pem);
        }
        Ok(settings)
    }

    fn wrong(&self, reason: &str) -> String {
        format!("`webhooks`: the one of the app `{}` {reason}", self.app)
    }
}

#[cfg(test)]
mod tests {
    use tradewind_service::config::parse;

    use super::*;
    use crate::config::Config;

    const SAMPLE: &str = include_str!("../relay.sample.toml");

    #[test]
    fn the_example_of_a_webhook_is_one_and_a_bad_one_is_refused_with_what_is_wrong() {
        let at = SAMPLE.find("# [[webhooks]]").unwrap();
        let example: String = SAMPLE[at..]
            .lines()
            .map_while(|line| line.strip_prefix("# "))
            .map(|line| format!("{line}\n"))
            .collect();
        let config: Config = parse(&format!("{SAMPLE}\n{example}"), "relay.sample.toml").unwrap();
        config.check().unwrap();
        let defaults = WebhookSettings::new(
            String::new(),
            String::new(),
            WebhookSecret::parse("", "sixteen bytes or more").unwrap(),
        );
        let of_sample = &config.webhooks[0];
        let secret = WebhookSecret::parse("", "sixteen bytes or more").unwrap();
        let of_sample = of_sample.checked(secret).unwrap();
        assert_eq!(
            (of_sample.window, of_sample.timeout, of_sample.attempts),
            (defaults.window, defaults.timeout, defaults.attempts)
        );
        assert_eq!(
            (of_sample.queue, of_sample.concurrency),
            (defaults.queue, defaults.concurrency)
        );
        let said = |change: &dyn Fn(&mut WebhookConfig)| {
            let mut config = config.clone();
            change(&mut config.webhooks[0]);
            config.check().unwrap_err().to_string()
        };
        assert!(said(&|hook| hook.secret_file = None).contains("has no secret"));
        assert!(said(&|hook| hook.url = "ftp://x/".to_owned()).contains("scheme `ftp`"));
        assert!(said(&|hook| hook.secret = Some(Secret::from("x".to_owned()))).contains("both"));
        assert!(said(&|hook| hook.app = String::new()).contains("`app`"));
        let mut twice = config.clone();
        twice.webhooks.push(config.webhooks[0].clone());
        assert!(
            twice
                .check()
                .unwrap_err()
                .to_string()
                .contains("two webhooks")
        );
    }
}
