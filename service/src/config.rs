//! Configuration files in TOML, and the types of their values.
//!
//! Precedence is flag > environment > file > default: [`load`] reads the file over the defaults,
//! and the program then applies its `clap` arguments (whose `env` covers the environment) with
//! [`apply`]. The structs should derive `Deserialize` with
//! `#[serde(default, deny_unknown_fields)]`: then a misspelt key is refused together with the
//! nearest key there is.

mod secret;
mod units;

use std::{fs, io, ops::Range, path::Path};

use serde::{Serialize, de::DeserializeOwned};

pub use secret::{REDACTED, Secret, redacted};
pub use units::{HumanDuration, Rate, Size, UnitError};

/// Why a configuration was refused. Always a reason to end with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {what} {path}: {reason}")]
    Read {
        /// `the configuration file`, or the key that named the file.
        what: String,
        /// Which file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A key that means nothing here.
    #[error("{origin}:{line}: unknown key `{key}`{}", suggestion(nearest.as_deref(), known))]
    UnknownKey {
        /// The file.
        origin: String,
        /// Its line, from 1.
        line: usize,
        /// The key as written.
        key: String,
        /// The key that was probably meant.
        nearest: Option<String>,
        /// All keys that are known in this place, if that is known.
        known: Vec<String>,
    },
    /// Not TOML, or a value of the wrong form.
    #[error("{origin}:{line}: {}{message}", key.as_ref().map(|key| format!("`{key}`: ")).unwrap_or_default())]
    BadValue {
        /// The file.
        origin: String,
        /// Its line, from 1.
        line: usize,
        /// The key, where the value is at fault.
        key: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// Two ways of giving the same secret.
    #[error("`{key}` and `{key}_file` are both given; keep one of them")]
    TwoSecrets {
        /// The key.
        key: String,
    },
}

/// Reads the file at `path` over the defaults of `T`; without a path gives the defaults.
///
/// # Errors
/// [`ConfigError`], naming the file and the line.
pub fn load<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigError> {
    let Some(path) = path else {
        return Ok(T::default());
    };
    let text = read_text(path, "the configuration file")?;
    parse(&text, &path.display().to_string())
}

/// Reads TOML text; `origin` stands in errors.
///
/// # Errors
/// [`ConfigError::UnknownKey`], [`ConfigError::BadValue`].
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, ConfigError> {
    let source = Source { text, origin };
    let document = toml::Deserializer::parse(text).map_err(|error| source.explain(&error))?;
    // Structs that forgot `deny_unknown_fields` do not swallow keys in silence either.
    let mut ignored = None;
    let value = serde_ignored::deserialize(document, |path| {
        ignored.get_or_insert_with(|| keys_of(&path));
    })
    .map_err(|error| source.explain(&error))?;
    match ignored {
        None => Ok(value),
        Some(path) => Err(source.unknown_key(&path)),
    }
}

/// Puts a flag's (or environment variable's) value over the file's, if it was given.
pub fn apply<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

/// Writes a configuration as TOML, as `check-config` shows it. Secrets are redacted.
///
/// # Errors
/// When a value has no form in TOML.
pub fn to_toml(config: &impl Serialize) -> Result<String, toml::ser::Error> {
    toml::to_string_pretty(&redacted(config))
}

pub(crate) fn read_text(path: &Path, what: &str) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|error| ConfigError::Read {
        what: what.to_owned(),
        path: path.display().to_string(),
        reason: match error.kind() {
            io::ErrorKind::NotFound => "it does not exist".to_owned(),
            _ => error.to_string(),
        },
    })
}

struct Source<'a> {
    text: &'a str,
    origin: &'a str,
}

impl Source<'_> {
    fn explain(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        let line = self.line_at(span.start);
        let message = error.message();
        if let Some((key, known)) = split_unknown_field(message) {
            return ConfigError::UnknownKey {
                origin: self.origin.to_owned(),
                line,
                nearest: nearest(&key, &known),
                key,
                known,
            };
        }
        ConfigError::BadValue {
            origin: self.origin.to_owned(),
            line,
            key: self.key_before(&span),
            message: message.trim().replace('\n', "; "),
        }
    }

    fn unknown_key(&self, path: &[String]) -> ConfigError {
        let at = toml::de::DeTable::parse(self.text)
            .ok()
            .and_then(|table| span_of(table.get_ref(), path))
            .map_or(0, |span| span.start);
        ConfigError::UnknownKey {
            origin: self.origin.to_owned(),
            line: self.line_at(at),
            key: path.join("."),
            nearest: None,
            known: Vec::new(),
        }
    }

    /// Lines are counted from 1.
    fn line_at(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// The key on the line of a value that is at fault.
    fn key_before(&self, span: &Range<usize>) -> Option<String> {
        let before = self.text.get(..span.start)?;
        let line = before.rsplit('\n').next()?;
        let (key, _) = line.split_once('=')?;
        Some(key.trim().trim_matches('"').to_owned())
    }
}

/// Takes apart what serde says of an unknown field: that message is all it gives.
fn split_unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, expected) = rest.split_once('`')?;
    let known = expected.split('`').skip(1).step_by(2);
    Some((key.to_owned(), known.map(str::to_owned).collect()))
}

fn nearest(key: &str, known: &[String]) -> Option<String> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    known
        .iter()
        .map(|candidate| {
            (
                strsim::jaro_winkler(&plain(key), &plain(candidate)),
                candidate,
            )
        })
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.clone())
}

fn suggestion(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None if known.is_empty() => String::new(),
        None => format!("; known here: {}", known.join(", ")),
    }
}

fn keys_of(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path as P;
    let (parent, own) = match path {
        P::Root => return Vec::new(),
        P::Seq { parent, index } => (parent, Some(index.to_string())),
        P::Map { parent, key } => (parent, Some(key.clone())),
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => {
            (parent, None)
        }
    };
    let mut keys = keys_of(parent);
    keys.extend(own);
    keys
}

fn span_of(table: &toml::de::DeTable<'_>, path: &[String]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table
        .iter()
        .find(|(key, _)| key.get_ref().as_ref() == first.as_str())?;
    let mut found = key.span();
    let mut value = value.get_ref();
    let mut rest = rest;
    while let Some((next, after)) = rest.split_first() {
        match value {
            toml::de::DeValue::Table(table) => return span_of(table, rest).or(Some(found)),
            toml::de::DeValue::Array(array) => {
                let item = array.get(next.parse::<usize>().ok()?)?;
                found = item.span();
                value = item.get_ref();
            }
            _ => return Some(found),
        }
        rest = after;
    }
    Some(found)
}

#[cfg(test)]
mod tests;
