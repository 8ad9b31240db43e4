//! Exit codes, and the one line that says why.

use std::{error::Error, fmt, process::ExitCode};

use crate::config::ConfigError;

/// It went well.
pub const GOOD: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// It was called wrongly, or its configuration is wrong.
pub const USAGE: u8 = 2;

/// Marks an error as the caller's: exit code [`USAGE`].
#[derive(Debug)]
pub struct UsageError(String);

impl UsageError {
    /// An error of usage that says `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for UsageError {}

/// For `map_err`: makes any error one of usage, its causes included in the text.
pub fn usage(error: impl Into<anyhow::Error>) -> anyhow::Error {
    UsageError::new(one_line(&error.into())).into()
}

/// Ends a program: prints `program: error: …` in one line to standard error if it failed, and
/// gives the exit code.
#[must_use]
pub fn finish(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(GOOD),
        Err(error) => {
            eprintln!("{program}: error: {}", one_line(&error));
            ExitCode::from(code(&error))
        }
    }
}

/// The exit code for an error: [`USAGE`] when it is, or was caused by, a [`UsageError`] or a
/// [`ConfigError`]; else [`FAILED`].
#[must_use]
pub fn code(error: &anyhow::Error) -> u8 {
    let wrong_usage = error
        .chain()
        .any(|cause| cause.is::<UsageError>() || cause.is::<ConfigError>());
    if wrong_usage { USAGE } else { FAILED }
}

/// An error and its causes in one line. A cause whose text its effect already gives is not
/// repeated.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;
    use crate::config;

    #[test]
    fn an_error_and_its_causes_stand_in_one_line_without_repeating() {
        let error = anyhow::Error::from(io::Error::other("disk\n  full"))
            .context("cannot write plan: disk full")
            .context("cannot start");
        assert_eq!(
            one_line(&error),
            "cannot start: cannot write plan: disk full"
        );
        assert_eq!(code(&error), FAILED);
    }

    #[test]
    fn wrong_configuration_and_wrong_usage_end_with_2() {
        let error = config::parse::<std::collections::BTreeMap<String, u8>>("a = 'x'", "a.toml");
        let error = error.context("cannot start").unwrap_err();
        assert_eq!(code(&error), USAGE);
        let missing = io::Error::new(io::ErrorKind::NotFound, "no certificate");
        assert_eq!(code(&usage(missing)), USAGE);
    }
}
