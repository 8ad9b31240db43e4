//! The SDK in Rust: find an edge, connect, send, receive, survive.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use tradewind_client::{Client, ClientConfig, Discovery, Event};
//! use tradewind_host::OsHost;
//!
//! # async fn example(roots: Vec<rustls_pki_types::CertificateDer<'static>>, token: String)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let discovery: Discovery = "edges.example.com".parse()?;
//! let config = ClientConfig::new(discovery, token, roots);
//! let client = Client::connect(config, Arc::new(OsHost)).await?;
//!
//! // Ends when ben's client has confirmed it, or in a named error.
//! let delivered = client.send("ben", "good evening").await?;
//! println!("confirmed after {:?}", delivered.after);
//!
//! while let Some(event) = client.recv().await {
//!     if let Event::Message(message) = event {
//!         println!("{}: {} bytes", message.from, message.payload.len());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Messages
//! [`Client::send`] ends in exactly one outcome: [`Delivered`], or a [`SendError`]. Messages of one
//! *lane* to one user arrive in the order in which they were given to send; use another lane for a
//! picture, and the text after it does not wait. Many can be under way at a time:
//!
//! ```no_run
//! use tradewind_client::{Client, SendOptions};
//!
//! # async fn example(client: Client, picture: Vec<u8>) -> Result<(), tradewind_client::SendError> {
//! let picture = client.enqueue("ben", picture, SendOptions { lane: 1, ..Default::default() });
//! let text = client.enqueue("ben", "look at this", SendOptions::default());
//! text.await?;
//! picture.await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Media
//! A [`Flow`] sends datagrams: each may be lost, none is resent, and sending never waits.
//!
//! ```no_run
//! use bytes::Bytes;
//! use tradewind_client::{Class, Client};
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! let flow = client.open_flow("ben", Class::Audio).await?;
//! flow.send(Bytes::from_static(b"20 ms of speech"))?;
//!
//! // An echo: answers go straight back to where packets come from.
//! while let Some(media) = client.recv_media().await {
//!     client.reply_flow(&media).send(media.payload.clone())?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A flow may come to another way while it goes on, when there is a shorter one or an edge has died. The
//! first packets by a new way say so ([`Media::path_change`]), and some may overtake those before; with
//! [`ClientConfig::reorder`] they are received in order all the same.
//!
//! # Groups
//! A group is a name; who sends to it need not be a member, and its members may be anywhere: each
//! border is crossed once. The token says which groups a user may send to and receive from.
//!
//! ```no_run
//! use bytes::Bytes;
//! use tradewind_client::{Class, Client, Event, JoinOptions};
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! // Everything sent once this returns will come, or be told as a gap.
//! client.join("choir", JoinOptions::default()).await?;
//! // All edges with members hold it when this returns.
//! client.send_group("choir", "rehearsal at eight").await?;
//! let flow = client.open_group_flow("choir", Class::Audio).await?;
//! flow.send(0, Bytes::from_static(b"20 ms of singing"))?;
//! while let Some(event) = client.recv().await {
//!     match event {
//!         Event::Message(message) if message.group.is_some() => println!("{}", message.from),
//!         Event::Gap(gap) => println!("{} segments of {} are lost", gap.segments, gap.from),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Presence
//! ```no_run
//! use tradewind_client::{Client, Event};
//!
//! # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
//! client.watch(&["ben", "eve"])?;
//! while let Some(event) = client.recv().await {
//!     if let Event::Presence(presence) = event {
//!         println!("{} online: {}", presence.user, presence.online);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Survival
//! Another session stands by at the second-best edge. When the edge dies or drains, that one is the
//! first from then on; without one the client connects to the best of the others by itself, for as
//! long as it takes. What was under way goes on there. The application sees [`State`] events. Tokens
//! are replaced in time when they come from a provider:
//!
//! ```
//! use tradewind_client::{ClientConfig, Discovery, TokenSource};
//!
//! async fn ask_our_backend() -> Result<String, String> {
//!     Ok("a fresh token".to_owned())
//! }
//!
//! let edges: Discovery = "192.0.2.1:7443, 192.0.2.2:7443".parse().unwrap();
//! let config = ClientConfig::new(edges, TokenSource::provider(ask_our_backend), Vec::new());
//! assert_eq!(config.server_name, "tradewind-edge");
//! ```
//!
//! # Inside
//! One state behind one lock (`core`), which outlives sessions; tasks around it carry bytes. Whatever
//! a client does it does on its [`Host`](tradewind_host::Host): in virtual time a client runs as
//! deterministically as everything else.

mod client;
mod config;
mod connect;
mod core;
mod discover;
mod edges;
mod error;
mod event;
mod flow;
mod groups;
mod inbox;
mod keep_alive;
mod keeper;
mod presence;
mod reorder;
mod session;
mod shared;

pub use client::{Client, Receipt};
pub use config::{
    ClientConfig, DEFAULT_PORT, Discovery, DiscoveryParseError, EdgeAddr, TokenProvider,
    TokenSource,
};
pub use error::{
    ConnectError, FlowError, GroupError, LookupError, PingError, SendError, WatchError,
};
pub use event::{
    Delivered, DeviceOutcome, Event, Gap, Hop, Media, Message, Outcomes, PingReport, Presence,
    SendOptions, State, Stats,
};
pub use flow::Flow;
pub use groups::{GroupFlow, JoinOptions};
pub use keep_alive::{AdaptiveKeepAlive, KeepAlive};
pub use tradewind_proto::{Class, CloseCode};
