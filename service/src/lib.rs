//! What both services share: configuration, logs, the admin HTTP listener, signals, systemd,
//! metrics and exit codes.
//!
//! This is the shell around the libraries: it runs on the real clock and the real tokio runtime.

pub mod admin;
pub mod config;
pub mod exit;
pub mod logs;
pub mod metrics;
pub mod notify;
pub mod signals;
