//! Whether edges can be reached, how fast, and what the path carries.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Endpoint, MtuDiscoveryConfig, TransportConfig};
use serde_json::Value;
use tradewind_client::Discovery;
use tradewind_proto::{GUARANTEED_DATAGRAM, packet::AccessHeader};
use tradewind_trust::{ALPN_CLIENT, EDGE_NAME, Roots, tls};

use super::Finding;
use crate::commands::{
    connect::{ConnectArgs, host},
    http, show,
};

const CHECK: &str = "edge";
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Path MTU discovery takes a few round trips.
const MTU_DISCOVERY: Duration = Duration::from_millis(700);
const MAX_EDGES: usize = 16;

/// One finding per edge.
pub(super) async fn check(connect: &ConnectArgs) -> Vec<Finding> {
    let Ok(ways) = connect.discovery().await else {
        return vec![Finding::skipped(
            CHECK,
            "give --edge HOST:PORT, --dns NAME, --controller URL, or --dev",
        )];
    };
    // What is wrong with it is said already.
    let Ok(Some(roots)) = connect.controller.roots() else {
        return vec![Finding::skipped(
            CHECK,
            "without the authority's certificate none can be checked",
        )];
    };
    let mut findings = Vec::new();
    let mut edges = Vec::new();
    for way in ways {
        match of(&way, connect).await {
            Ok(found) => edges.extend(found),
            Err(finding) => findings.push(finding),
        }
    }
    if edges.is_empty() && findings.is_empty() {
        findings.push(Finding::bad(
            CHECK,
            "no edge is known",
            "is a relay running, and online?",
        ));
    }
    for (name, address) in edges.into_iter().take(MAX_EDGES) {
        findings.push(reach(&name, address, &roots).await);
    }
    findings
}

/// Names and addresses of the edges that a way of discovery knows.
async fn of(way: &Discovery, connect: &ConnectArgs) -> Result<Vec<(String, SocketAddr)>, Finding> {
    let nameless = |address: SocketAddr| (address.to_string(), address);
    match way {
        Discovery::Static(edges) => Ok(edges.iter().map(|edge| nameless(edge.address)).collect()),
        Discovery::Dns { name } => {
            let port = tradewind_client::DEFAULT_PORT;
            match tokio::net::lookup_host((name.as_str(), port)).await {
                Ok(found) => Ok(found.map(nameless).collect()),
                // The check of the DNS has said it.
                Err(_) => Ok(Vec::new()),
            }
        }
        Discovery::Controller { url } => {
            let edges = async {
                let body = connect.controller.api()?.get("/v1/edges", &[]).await?;
                anyhow::Ok(http::list(body, "edges"))
            };
            let edges = edges.await.map_err(|error| {
                Finding::bad(
                    CHECK,
                    format!("{url}: {}", tradewind_service::exit::one_line(&error)),
                    "give edges with --edge HOST:PORT",
                )
            })?;
            Ok(edges.iter().filter_map(first_address).collect())
        }
    }
}

fn first_address(edge: &Value) -> Option<(String, SocketAddr)> {
    let address = edge
        .get("client_addresses")?
        .get(0)?
        .as_str()?
        .parse()
        .ok()?;
    Some((show::text_in(edge, "name"), address))
}

async fn reach(name: &str, address: SocketAddr, roots: &Roots) -> Finding {
    let shown = if name == address.to_string() {
        name.to_owned()
    } else {
        format!("{name} ({address})")
    };
    let (endpoint, connecting) = match dial(address, roots) {
        Ok(dialled) => dialled,
        Err(reason) => {
            return Finding::bad(
                CHECK,
                format!("{shown}: {reason}"),
                "no QUIC on this machine",
            );
        }
    };
    let connection = match host().timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            return Finding::bad(
                CHECK,
                format!("{shown}: {error}"),
                "it answers, but not as an edge of this deployment: is the CA the right one?",
            );
        }
        Err(_) => {
            return Finding::bad(
                CHECK,
                format!("{shown}: no answer"),
                "is it running, and is UDP to this port let through?",
            );
        }
    };
    host().sleep(MTU_DISCOVERY).await;
    let rtt = connection.rtt();
    let mtu = connection.stats().path.current_mtu;
    let payload = connection
        .max_datagram_size()
        .map_or(0, |size| size.saturating_sub(AccessHeader::LEN));
    connection.close(quinn::VarInt::from_u32(0), b"doctor");
    // The goodbye has to leave before the socket is closed.
    let _ = host()
        .timeout(Duration::from_millis(100), endpoint.wait_idle())
        .await;
    let found = format!(
        "{shown}: RTT {}, path MTU {mtu} bytes, media packets up to {payload} bytes",
        show::duration(rtt)
    );
    if payload < GUARANTEED_DATAGRAM {
        return Finding::warning(
            CHECK,
            found,
            format!(
                "less than the {GUARANTEED_DATAGRAM} bytes every path should carry: a tunnel on the way?"
            ),
        );
    }
    Finding::good(CHECK, found)
}

fn dial(address: SocketAddr, roots: &Roots) -> Result<(Endpoint, quinn::Connecting), String> {
    let clock = tls::host_clock(host());
    let crypto = tls::client_config(roots, &[ALPN_CLIENT], clock)
        .and_then(tls::quic_client)
        .map_err(|error| error.to_string())?;
    let mut config = quinn::ClientConfig::new(crypto);
    let mut transport = TransportConfig::default();
    transport.mtu_discovery_config(Some(MtuDiscoveryConfig::default()));
    config.transport_config(Arc::new(transport));
    let local: SocketAddr = if address.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let endpoint = host()
        .quic_endpoint(local, None)
        .map_err(|error| error.to_string())?;
    let connecting = endpoint
        .connect_with(config, address, EDGE_NAME)
        .map_err(|error| error.to_string())?;
    Ok((endpoint, connecting))
}
