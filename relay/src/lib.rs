//! A Tradewind relay: the node that forwards packets.
//!
//! The data plane is made of shards ([`shard`](crate)): single-threaded values that drive
//! `quinn-proto` themselves, without locks or tasks of their own. A control task talks to the
//! controller and publishes immutable tables to them. See `docs/architecture.md`.

mod allowance;
mod apps;
mod congestion;
mod controller_link;
mod debug;
mod directory;
#[cfg(test)]
mod directory_load;
mod driver;
mod enrol;
mod flow;
mod forwarder;
mod groups;
mod held;
mod link_report;
mod metrics;
mod packet;
mod plan;
mod presence;
mod queue;
mod relay;
mod resolve;
mod shard;
mod store;
mod tables;
mod transport;
mod watch;
mod webhook;

pub use apps::AppRates;
pub use congestion::LinkCongestion;
pub use debug::{LinkView, PlanView};
pub use enrol::{EnrolError, Enrolment, enrol};
pub use groups::GroupSettings;
pub use relay::{Placement, Relay, RelaySettings, StartError, UplinkSettings};
pub use resolve::{ResolveError, resolve};
pub use transport::link_transport;
pub use watch::Passage;
pub use webhook::{WebhookError, WebhookSecret, WebhookSettings};
