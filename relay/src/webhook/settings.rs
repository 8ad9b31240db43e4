//! What an operator says of a webhook.

use std::{fmt, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::Url;

/// How secrets begin that are written in Base64.
const SECRET_PREFIX: &str = "whsec_";
/// Shortest secret, in bytes.
const MIN_SECRET: usize = 16;
/// Longest name of an app, in bytes.
const MAX_APP: usize = 256;

/// A webhook of one app, or of all that have none of their own.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// The app; `*` stands for every app without one of its own.
    pub app: String,
    /// Where it is called: http or https.
    pub url: String,
    /// What calls are signed with.
    pub secret: WebhookSecret,
    /// PEM of the authorities that may vouch for the server; `None`: those that the system trusts.
    pub ca: Option<Vec<u8>>,
    /// Between two calls about one user from one sender it is so long at least, 0 to 1 h; what comes
    /// meanwhile is counted, and told together.
    pub window: Duration,
    /// How long a call may take, 100 ms to 1 min.
    pub timeout: Duration,
    /// How often a call is tried, 1 to 20.
    pub attempts: u32,
    /// Users and senders remembered at a time, 1 to 1,000,000: notices that wait and those told of late.
    pub queue: usize,
    /// Calls at a time, 1 to 256.
    pub concurrency: usize,
}

/// The key that calls are signed with. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Vec<u8>);

/// A webhook that cannot be used as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// No name of an app.
    #[error(
        "the webhook for `{0}`: `app` is the app's name as tokens have it, 1 to 256 bytes, or `*` for all apps without one of their own"
    )]
    App(String),
    /// No URL, or of another scheme.
    #[error(
        "the webhook of the app `{app}`: `url` {reason}: write it like https://api.example.org/tradewind"
    )]
    Url {
        /// The app.
        app: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no secret, or a bad one.
    #[error(
        "the webhook of the app `{app}`: {reason}: make a secret with `openssl rand -base64 32`, and put `whsec_` before it"
    )]
    Secret {
        /// The app.
        app: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A number out of its range.
    #[error("the webhook of the app `{app}`: `{key}` is from {range}")]
    Range {
        /// The app.
        app: String,
        /// The key.
        key: &'static str,
        /// What it may be.
        range: &'static str,
    },
    /// There are no certificates to trust.
    #[error(
        "the webhook of the app `{app}`: {reason}; name the authority of the server with `ca_file`"
    )]
    Roots {
        /// The app.
        app: String,
        /// What is wrong.
        reason: String,
    },
    /// Two of one app.
    #[error("the app `{0}` has two webhooks: leave one of them out")]
    Twice(String),
}

impl WebhookSettings {
    /// With the defaults.
    #[must_use]
    pub fn new(app: String, url: String, secret: WebhookSecret) -> Self {
        Self {
            app,
            url,
            secret,
            ca: None,
            window: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            attempts: 6,
            queue: 10_000,
            concurrency: 8,
        }
    }

    /// Checks all but the certificates.
    ///
    /// # Errors
    /// [`WebhookError`], naming the app and the key.
    pub fn check(&self) -> Result<(), WebhookError> {
        check_app(&self.app)?;
        check_url(&self.app, &self.url)?;
        let seconds = |s| Duration::from_secs(s);
        let ranges = [
            ("window", self.window <= seconds(3_600), "0s to 1h"),
            (
                "timeout",
                (Duration::from_millis(100)..=seconds(60)).contains(&self.timeout),
                "100ms to 1min",
            ),
            ("attempts", (1..=20).contains(&self.attempts), "1 to 20"),
            (
                "queue",
                (1..=1_000_000).contains(&self.queue),
                "1 to 1000000",
            ),
            (
                "concurrency",
                (1..=256).contains(&self.concurrency),
                "1 to 256",
            ),
        ];
        match ranges.into_iter().find(|(_, fits, _)| !fits) {
            None => Ok(()),
            Some((key, _, range)) => Err(WebhookError::Range {
                app: self.app.clone(),
                key,
                range,
            }),
        }
    }
}

fn check_app(app: &str) -> Result<(), WebhookError> {
    if app.is_empty() || app.len() > MAX_APP {
        return Err(WebhookError::App(app.to_owned()));
    }
    Ok(())
}

fn check_url(app: &str, url: &str) -> Result<(), WebhookError> {
    let wrong = |reason: String| WebhookError::Url {
        app: app.to_owned(),
        reason,
    };
    let parsed = Url::parse(url).map_err(|error| wrong(format!("is no URL ({error})")))?;
    if !["http", "https"].contains(&parsed.scheme()) {
        let scheme = parsed.scheme();
        return Err(wrong(format!(
            "is of the scheme `{scheme}`, not http or https"
        )));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong(
            "contains a name or password, which would be shown".to_owned(),
        ));
    }
    Ok(())
}

impl WebhookSecret {
    /// Reads the secret of an app's webhook: Base64 after `whsec_`, or else the text itself; of 16
    /// bytes at least.
    ///
    /// # Errors
    /// [`WebhookError::Secret`].
    pub fn parse(app: &str, text: &str) -> Result<Self, WebhookError> {
        let wrong = |reason: &str| WebhookError::Secret {
            app: app.to_owned(),
            reason: reason.to_owned(),
        };
        let bytes = match text.strip_prefix(SECRET_PREFIX) {
            Some(encoded) => BASE64_STANDARD
                .decode(encoded)
                .map_err(|_| wrong("what follows `whsec_` in its secret is no Base64"))?,
            None => text.as_bytes().to_vec(),
        };
        if bytes.len() < MIN_SECRET {
            return Err(wrong("its secret is shorter than 16 bytes"));
        }
        Ok(Self(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> WebhookSettings {
        let secret = WebhookSecret::parse("chat", "sixteen bytes or more").unwrap();
        WebhookSettings::new("chat".to_owned(), url.to_owned(), secret)
    }

    #[test]
    fn what_is_wrong_is_said_with_the_app_and_the_key() {
        let said = |settings: &WebhookSettings| settings.check().unwrap_err().to_string();
        assert_eq!(settings("https://example.org/hook").check(), Ok(()));
        assert!(said(&settings("ftp://example.org")).contains("scheme `ftp`, not http or https"));
        assert!(said(&settings("example.org/hook")).contains("`url` is no URL"));
        assert!(said(&settings("http://a:b@example.org")).contains("password"));
        let mut bad = settings("http://127.0.0.1:1/");
        bad.attempts = 0;
        assert!(said(&bad).contains("`attempts` is from 1 to 20"));
        bad.app = String::new();
        assert!(said(&bad).contains("`app`"));
    }

    #[test]
    fn a_secret_is_long_enough_or_refused_and_never_shown() {
        let short = WebhookSecret::parse("chat", "whsec_YWJj").unwrap_err();
        assert!(
            short.to_string().contains("shorter than 16 bytes"),
            "{short}"
        );
        let no_base64 = WebhookSecret::parse("chat", "whsec_!").unwrap_err();
        assert!(no_base64.to_string().contains("no Base64"), "{no_base64}");
        let secret =
            WebhookSecret::parse("chat", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(secret.bytes().len(), 24);
        assert!(!format!("{:?}", settings("http://x/")).contains("sixteen"));
    }
}
