//! Logs on standard error: for people on a terminal, JSON otherwise.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Changes what is logged while the program runs.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Why a log filter was refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a filter.
    #[error(
        "`{filter}` is not a log filter ({reason}); write a level (error, warn, info, debug, trace) or such as `info,tradewind_relay=debug`"
    )]
    BadFilter {
        /// The text.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logs have been set up before in this process.
    #[error("logs are set up already")]
    Twice,
}

/// Sets up logs for the process. `RUST_LOG` wins over `filter` (a level, or directives as in
/// `info,quinn=warn`).
///
/// # Errors
/// [`LogError`].
pub fn init(filter: &str) -> Result<LogHandle, LogError> {
    let terminal = io::stderr().is_terminal();
    let (filter, handle) = reload::Layer::new(effective_filter(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let done = if terminal {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));
        registry.with(lines).try_init()
    } else {
        let json = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(io::stderr);
        registry.with(json).try_init()
    };
    done.map_err(|_| LogError::Twice)?;
    Ok(LogHandle { filter: handle })
}

/// The first line in a service's log: what runs here.
pub fn log_start(program: &str, version: &str, commit: &str) {
    tracing::info!(program, version, commit, "starting");
}

impl LogHandle {
    /// Uses another filter from now on. `RUST_LOG` still wins.
    ///
    /// # Errors
    /// [`LogError::BadFilter`]; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let new = effective_filter(filter)?;
        // It fails only when the subscriber is gone, and nobody listens any more.
        let _ = self.filter.reload(new);
        Ok(())
    }
}

fn effective_filter(configured: &str) -> Result<EnvFilter, LogError> {
    let given = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    parse_filter(given.as_deref().unwrap_or(configured))
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let bad = |reason: String| LogError::BadFilter {
        filter: filter.to_owned(),
        reason,
    };
    // A lone word that is no level would be taken for the name of a module, and log nothing.
    let level = filter.parse::<tracing::level_filters::LevelFilter>();
    let lone_word = !filter.contains(['=', ',', ':', '[']);
    if filter.is_empty() || (lone_word && level.is_err()) {
        return Err(bad("no such level".to_owned()));
    }
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_directives_are_a_filter_and_a_slip_is_not() {
        for good in [
            "info",
            "DEBUG",
            "off",
            "info,quinn=warn",
            "tradewind_relay=trace",
        ] {
            parse_filter(good).unwrap();
        }
        for bad in ["", "inof", "info,quinn=loud"] {
            let error = parse_filter(bad).unwrap_err().to_string();
            assert!(error.contains("write a level"), "{error}");
        }
    }
}
