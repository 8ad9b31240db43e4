//! The centre of a Tradewind network: who is there, what the links are like, which way packets go.
//!
//! A [`Controller`] accepts the relays' control connections (mTLS over QUIC), keeps what they
//! report of their links, and gives every relay its part of a numbered plan. It is never on a
//! packet's way: relays forward on the plan they hold for as long as it is away.
//!
//! [`network`] is the whole logic, a state machine over explicit time without sockets; the rest
//! moves frames between it and the relays, and shows it to people ([`Controller::api`]).

mod config;
mod connection;
mod controller;
mod enrol;
mod http;
pub mod metrics;
pub mod network;
mod operations;
pub mod policy;
pub mod state;
pub mod storage;

pub use config::{AdminAccess, ControllerConfig, StartError};
pub use controller::Controller;
pub use enrol::EnrolTokenError;
pub use network::{NetworkConfig, PathError};
pub use operations::{PolicyChange, PolicyFileError, PolicyOutcome};
pub use policy::{Policy, PolicyError};
