//! A small world in virtual time: real relays, a controller that says what the test says, and
//! clients that speak the session protocol byte by byte.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used
)] // tests: each uses its part

mod client;
mod controller;
mod groups;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tradewind_host::Host;
use tradewind_proto::{
    control::{Activate, PlanName},
    token::Claims,
};
use tradewind_relay::{AppRates, GroupSettings, Placement, Relay, RelaySettings, StartError};
use tradewind_trust::{Ca, TokenSigner};
use tradewind_wan::{HostClock, PlaceId, Wan, WanHost};

pub use self::{
    client::{TestClient, header},
    controller::FakeController,
    groups::{Inbox, Received, data, skip},
};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub struct World {
    pub wan: Wan,
    pub places: Vec<PlaceId>,
    pub relays: Vec<Relay>,
    pub relay_hosts: Vec<Arc<WanHost>>,
    pub controller: FakeController,
    ca: Ca,
    signer: TokenSigner,
    change: fn(&mut RelaySettings, &WanHost),
}

impl World {
    /// Relays r0, r1, … with the given one-way delays in milliseconds between them, all of them
    /// registered and linked. There is no plan yet.
    pub async fn new(wan: Wan, one_way_ms: &[&[u64]]) -> Self {
        Self::with_settings(wan, one_way_ms, |_, _| ()).await
    }

    /// The same, with settings that the test changes.
    pub async fn with_settings(
        wan: Wan,
        one_way_ms: &[&[u64]],
        change: fn(&mut RelaySettings, &WanHost),
    ) -> Self {
        let names: Vec<String> = (0..one_way_ms.len()).map(|i| format!("r{i}")).collect();
        let places = wan.add_matrix(&names, |i, j| Some(Duration::from_millis(one_way_ms[i][j])));
        let controller_host = wan.add_host(places[0], HostClock::EXACT);
        let now = controller_host.wall_clock();
        let ca = Ca::create("test", now).unwrap();
        let signer = TokenSigner::generate().unwrap();
        let identity = ca.issue_controller(&[], now, YEAR).unwrap();
        let controller =
            FakeController::start(controller_host, &identity, &ca, &signer, names.len());
        let mut world = Self {
            wan: wan.clone(),
            places: places.clone(),
            relays: Vec::new(),
            relay_hosts: Vec::new(),
            controller,
            ca,
            signer,
            change,
        };
        for (index, name) in names.iter().enumerate() {
            // Clocks that have nothing to do with each other.
            let clock = HostClock::new(1_000_000 * index as i64, 20.0 * index as f64 - 30.0);
            let host = wan.add_host(places[index], clock);
            let relay = world.start_relay(name, host.clone()).await;
            world.relays.push(relay);
            world.relay_hosts.push(host);
        }
        let links = names.len() * (names.len() - 1);
        for _ in 0..200 {
            if world.links_up().await == links {
                return world;
            }
            wan.sleep(Duration::from_millis(50)).await;
        }
        panic!("the links did not come up");
    }

    pub async fn start_relay(&self, name: &str, host: Arc<WanHost>) -> Relay {
        self.try_start_relay(name, host, |_| ()).await.unwrap()
    }

    pub async fn try_start_relay(
        &self,
        name: &str,
        host: Arc<WanHost>,
        change: impl FnOnce(&mut RelaySettings),
    ) -> Result<Relay, StartError> {
        self.try_start_relay_on(name, host.clone(), host, change)
            .await
    }

    /// The same on a machine of which `host` is a part.
    pub async fn try_start_relay_on(
        &self,
        name: &str,
        host: Arc<WanHost>,
        machine: Arc<dyn Host>,
        change: impl FnOnce(&mut RelaySettings),
    ) -> Result<Relay, StartError> {
        let identity = self
            .ca
            .issue_relay(name, &[], host.wall_clock(), YEAR)
            .unwrap();
        let mut settings = RelaySettings {
            name: name.to_owned(),
            region: "test".to_owned(),
            client_listen: SocketAddr::new(host.ip(), 7443),
            link_listen: SocketAddr::new(host.ip(), 7444),
            client_advertise: Vec::new(),
            link_advertise: Vec::new(),
            link_capacity: 0,
            uplinks: Vec::new(),
            controllers: vec![self.controller.address.to_string()],
            identity,
            roots: self.ca.roots(),
            state_file: None,
            max_sessions: 1_000,
            handshakes_per_s: 1_000,
            groups: GroupSettings::default(),
            app_rates: AppRates::default(),
            webhooks: Vec::new(),
            latitude: 0.0,
            longitude: 0.0,
        };
        (self.change)(&mut settings, &host);
        change(&mut settings);
        Relay::start(settings, machine, Placement::HostTasks).await
    }

    async fn links_up(&self) -> usize {
        let mut up = 0;
        for relay in &self.relays {
            up += relay
                .links()
                .await
                .iter()
                .filter(|link| link.state == "up")
                .count();
        }
        up
    }

    /// Gives all relays a plan and activates it. `next_hops[relay][destination]`.
    pub async fn plan(&self, number: u32, next_hops: &[&[u32]], backups: &[(u32, &[u32])]) {
        self.controller.plan(number, next_hops, backups);
        self.stamped(number).await;
    }

    /// Has all relays stamp a plan that they hold.
    pub async fn activate(&self, number: u32) {
        self.controller.activate(&Activate {
            plan: Some(PlanName { epoch: 1, number }),
            ..Default::default()
        });
        self.stamped(number).await;
    }

    async fn stamped(&self, number: u32) {
        for _ in 0..100 {
            let wanted = format!("1.{number}");
            if self.relays.iter().all(|r| r.plan().active == wanted) {
                // Homes answer for certain once they have been told.
                self.wan.sleep(Duration::from_secs(3)).await;
                return;
            }
            self.wan.sleep(Duration::from_millis(50)).await;
        }
        panic!("the plan was not activated");
    }

    pub fn token(&self, user: &str, change: impl FnOnce(&mut Claims)) -> String {
        let host = &self.relay_hosts[0];
        let unix = host.wall_clock().duration_since(std::time::UNIX_EPOCH);
        let mut claims = Claims {
            app: "chat".to_owned(),
            user: user.to_owned(),
            exp: unix.unwrap().as_secs() + 3_600,
            ..Claims::default()
        };
        change(&mut claims);
        self.signer.sign(&claims).unwrap()
    }

    /// A client at a relay's place, connected to it.
    pub async fn client(&self, relay: usize, user: &str) -> TestClient {
        let token = self.token(user, |_| ());
        self.client_with(relay, &token).await.unwrap()
    }

    pub async fn client_with(&self, relay: usize, token: &str) -> Result<TestClient, String> {
        let host = self.wan.add_host(self.places[relay], HostClock::EXACT);
        self.client_on(host, relay, token).await
    }

    /// A client on a host that the test keeps.
    pub async fn client_on(
        &self,
        host: Arc<WanHost>,
        relay: usize,
        token: &str,
    ) -> Result<TestClient, String> {
        let mut address = self.relays[relay].client_address();
        if address.ip().is_unspecified() {
            address.set_ip(self.relay_hosts[relay].ip6());
        }
        TestClient::connect(host, address, &self.ca, token).await
    }

    /// The value of a counter or gauge at a relay, summed over its labels that contain `label`.
    pub fn metric(&self, relay: usize, name: &str, label: &str) -> f64 {
        self.relays[relay]
            .registry()
            .gather()
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(|family| family.get_metric())
            .filter(|metric| {
                label.is_empty() || metric.get_label().iter().any(|l| l.value() == label)
            })
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }
}
