//! Learning of edges.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    TokioResolver,
    proto::rr::{RData, rdata::SRV},
};
use rand::RngExt as _;
use serde::Deserialize;
use tradewind_host::Rng;

use crate::{DEFAULT_PORT, Discovery, EdgeAddr, connect::shuffle, shared::Shared};

/// How long one way of discovery may take.
const PATIENCE: Duration = Duration::from_secs(4);

/// An edge that may be tried.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) edge: EdgeAddr,
    /// Lower ones are tried first (RFC 2782).
    pub(crate) priority: u16,
    /// How loaded it is, parts per thousand, if that is known.
    pub(crate) load_permille: Option<u32>,
}

impl From<EdgeAddr> for Candidate {
    fn from(edge: EdgeAddr) -> Self {
        Self {
            edge,
            priority: 0,
            load_permille: None,
        }
    }
}

/// Asks all ways of discovery: candidates in the order to try them, and what went wrong.
pub(crate) async fn discover(shared: &Arc<Shared>, rng: &mut Rng) -> (Vec<Candidate>, Vec<String>) {
    let mut candidates = Vec::new();
    let mut problems = Vec::new();
    for way in &shared.config.discovery {
        let (found, origin) = match way {
            Discovery::Static(edges) => {
                let found = edges.iter().cloned().map(Candidate::from).collect();
                (Ok(found), "the list".to_owned())
            }
            Discovery::Dns { name } => {
                let found = shared.host.timeout(PATIENCE, by_dns(name, rng)).await;
                let found = found.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                (found, format!("DNS of {name}"))
            }
            Discovery::Controller { url } => {
                let found = shared
                    .host
                    .timeout(PATIENCE, by_http(shared, url, rng))
                    .await;
                let found = found.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                (found, url.clone())
            }
        };
        match found {
            Ok(found) if found.is_empty() => problems.push(format!("{origin}: no edges")),
            Ok(found) => candidates.extend(found),
            Err(error) => {
                tracing::debug!(origin, error, "discovery failed");
                problems.push(format!("{origin}: {error}"));
            }
        }
    }
    if shared.config.discovery.is_empty() {
        problems.push("no way of discovery is configured".to_owned());
    }
    (candidates, problems)
}

async fn by_dns(name: &str, rng: &mut Rng) -> Result<Vec<Candidate>, String> {
    let text = |error: hickory_resolver::net::NetError| error.to_string();
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(text)?;
    let mut candidates = Vec::new();
    let service = format!("_tradewind._udp.{}.", name.trim_end_matches('.'));
    if let Ok(answer) = resolver.srv_lookup(service).await {
        let records = answer
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                // RFC 2782: a root target says that there is no such service.
                RData::SRV(srv) if !srv.target.is_root() => Some(srv.clone()),
                _ => None,
            });
        for srv in in_order(records.collect(), rng) {
            let Ok(addresses) = resolver.lookup_ip(srv.target.clone()).await else {
                continue;
            };
            candidates.extend(addresses.iter().map(|ip| Candidate {
                edge: SocketAddr::new(ip, srv.port).into(),
                priority: srv.priority,
                load_permille: None,
            }));
        }
    }
    if candidates.is_empty() {
        let addresses = resolver.lookup_ip(name).await.map_err(text)?;
        candidates = addresses
            .iter()
            .map(|ip| Candidate::from(EdgeAddr::from(SocketAddr::new(ip, DEFAULT_PORT))))
            .collect();
        shuffle(&mut candidates, rng);
    }
    Ok(candidates)
}

/// The order of RFC 2782: by priority; within one, drawn by weight.
fn in_order(mut records: Vec<SRV>, rng: &mut Rng) -> Vec<SRV> {
    records.sort_by_key(|srv| (srv.priority, srv.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|srv| srv.priority) {
        let same = records.iter().take_while(|srv| srv.priority == priority);
        let sum: u32 = same.map(|srv| u32::from(srv.weight)).sum();
        let mut draw = rng.random_range(0..=sum);
        let chosen = records
            .iter()
            .position(|srv| match draw.checked_sub(u32::from(srv.weight)) {
                Some(rest) if rest > 0 => {
                    draw = rest;
                    false
                }
                _ => true,
            });
        ordered.push(records.remove(chosen.unwrap_or(0)));
    }
    ordered
}

#[derive(Deserialize)]
#[serde(untagged)]
enum EdgeList {
    Named { edges: Vec<ListedEdge> },
    Bare(Vec<ListedEdge>),
}

#[derive(Deserialize)]
struct ListedEdge {
    name: String,
    client_addresses: Vec<String>,
    load_permille: Option<u32>,
}

async fn by_http(shared: &Shared, url: &str, rng: &mut Rng) -> Result<Vec<Candidate>, String> {
    let tls = tls_for_http(shared)?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .build()
        .map_err(|error| chain(&error))?;
    let list = format!("{}/v1/edges", url.trim_end_matches('/'));
    let answer = client
        .get(list)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| chain(&error))?;
    let edges = match answer.json().await.map_err(|error| chain(&error))? {
        EdgeList::Named { edges } | EdgeList::Bare(edges) => edges,
    };
    let mut candidates: Vec<_> = edges
        .into_iter()
        .flat_map(|edge| {
            let name = edge.name;
            edge.client_addresses
                .into_iter()
                .filter_map(|address| address.parse().ok())
                .map(move |address| Candidate {
                    load_permille: edge.load_permille,
                    ..Candidate::from(EdgeAddr {
                        address,
                        relay: Some(name.clone()),
                    })
                })
        })
        .collect();
    shuffle(&mut candidates, rng);
    Ok(candidates)
}

fn tls_for_http(shared: &Shared) -> Result<rustls::ClientConfig, String> {
    let config = &shared.config;
    let mut store = rustls::RootCertStore::empty();
    for root in config.roots.iter().chain(&config.http_roots) {
        store.add(root.clone()).map_err(|error| error.to_string())?;
    }
    let tls = rustls::ClientConfig::builder_with_provider(tradewind_trust::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(tls)
}

/// An error with its causes: reqwest's own text leaves them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::Name;
    use rand::SeedableRng as _;

    use super::*;

    fn srv(priority: u16, weight: u16, port: u16) -> SRV {
        SRV::new(priority, weight, port, Name::root())
    }

    #[test]
    fn srv_records_come_by_priority_and_are_drawn_by_weight() {
        let mut rng = Rng::seed_from_u64(1);
        let mut first = [0; 3];
        for _ in 0..4_000 {
            let records = vec![srv(20, 9, 3), srv(10, 30, 1), srv(10, 10, 2)];
            let ordered = in_order(records, &mut rng);
            assert_eq!(ordered.len(), 3);
            assert_eq!(ordered[2].port, 3, "the larger priority number comes last");
            first[usize::from(ordered[0].port)] += 1;
        }
        assert!((2_700..3_300).contains(&first[1]), "3 of 4: {first:?}");
    }

    #[test]
    fn the_controllers_list_is_read_with_and_without_a_frame() {
        let bare = r#"[{"name":"tokyo","region":"x","client_addresses":["192.0.2.1:7443"]}]"#;
        let framed = format!("{{\"edges\":{bare}}}");
        for text in [bare, &framed] {
            let (EdgeList::Named { edges } | EdgeList::Bare(edges)) =
                serde_json::from_str(text).unwrap();
            assert_eq!(edges[0].name, "tokyo");
        }
    }
}
