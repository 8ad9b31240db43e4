use std::{fmt, path::Path};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::{ConfigError, read_text};

/// What stands in the place of a secret wherever a configuration is shown.
pub const REDACTED: &str = "[redacted]";

/// A secret: never shown, neither in logs nor in `/config`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret from where it was given: as itself (from the environment) or in a file
    /// (`<key>_file`), whose surrounding white space is not part of it.
    ///
    /// # Errors
    /// [`ConfigError::TwoSecrets`]; [`ConfigError::Read`] when there is no such file or it is
    /// empty.
    pub fn resolve(
        key: &str,
        itself: Option<&Self>,
        file: Option<&Path>,
    ) -> Result<Option<Self>, ConfigError> {
        match (itself, file) {
            (Some(_), Some(_)) => Err(ConfigError::TwoSecrets {
                key: key.to_owned(),
            }),
            (Some(secret), None) => Ok(Some(secret.clone())),
            (None, None) => Ok(None),
            (None, Some(path)) => {
                let what = format!("the file of `{key}_file`");
                let text = read_text(path, &what)?;
                let secret = text.trim();
                if secret.is_empty() {
                    return Err(ConfigError::Read {
                        what,
                        path: path.display().to_string(),
                        reason: "it is empty".to_owned(),
                    });
                }
                Ok(Some(Self(secret.to_owned())))
            }
        }
    }

    /// The secret itself, for use, not for showing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(secret: &str) -> Result<Self, Self::Err> {
        Ok(Self(secret.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// A configuration as JSON for `/config`. [`Secret`]s hide themselves; and texts under keys that
/// sound like secrets are hidden too, in case one was not declared so (paths to files are not).
#[must_use]
pub fn redacted(config: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(config).unwrap_or(Value::Null);
    hide(&mut value, false);
    value
}

fn hide(value: &mut Value, secret: bool) {
    match value {
        Value::String(text) if secret => *text = REDACTED.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, secret)),
        Value::Object(map) => {
            // A key that says nothing leaves what the one above it said.
            map.retain(|_, value| !value.is_null());
            for (key, value) in map {
                hide(value, !is_path(key) && (secret || sounds_secret(key)));
            }
        }
        _ => {}
    }
}

fn sounds_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "secret",
        "token",
        "password",
        "passphrase",
        "private",
        "credential",
    ]
    .iter()
    .any(|word| key.contains(word))
}

fn is_path(key: &str) -> bool {
    ["_file", "_dir", "_path", "_keys", "_ttl", "_lifetime"]
        .iter()
        .any(|ending| key.ends_with(ending))
}
