//! The SDK in Rust: find an edge, connect, send, receive, survive.

mod client;
mod config;
mod connect;
mod core;
mod discover;
mod error;
mod event;
mod flow;
mod inbox;
mod session;
mod shared;

pub use client::{Client, Receipt};
pub use config::{
    ClientConfig, DEFAULT_PORT, Discovery, DiscoveryParseError, EdgeAddr, TokenProvider,
    TokenSource,
};
pub use error::{ConnectError, FlowError, LookupError, PingError, SendError};
pub use event::{Delivered, Event, Hop, Media, Message, PingReport, SendOptions, State, Stats};
pub use flow::Flow;
pub use tradewind_proto::{Class, CloseCode};
