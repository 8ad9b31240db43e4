//! What can be looked at without an edge.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use hickory_resolver::{TokioResolver, proto::rr::RData};
use tokio::net::UdpSocket;
use tradewind_host::probe_receive_buffer;
use tradewind_trust::{CLOCK_LEEWAY, Identity, Roots, verify_peer_name};

use super::Finding;
use crate::commands::connect::{ControllerArgs, host, now};

const PATIENCE: Duration = Duration::from_secs(1);

/// Whether UDP works at all: a datagram to ourselves.
pub(super) async fn loopback(check: &'static str, address: &str) -> Finding {
    let echo = async {
        let [a, b] = [
            UdpSocket::bind(address).await?,
            UdpSocket::bind(address).await?,
        ];
        a.send_to(b"tradewind", b.local_addr()?).await?;
        let mut buffer = [0; 16];
        let (length, from) = b.recv_from(&mut buffer).await?;
        b.send_to(&buffer[..length], from).await?;
        a.recv_from(&mut buffer).await?;
        Ok::<_, io::Error>(())
    };
    match host().timeout(PATIENCE, echo).await {
        Ok(Ok(())) => Finding::good(check, "a datagram to this machine itself comes back"),
        Ok(Err(error)) if address.starts_with('[') => Finding::warning(
            check,
            format!("no IPv6 on this machine: {error}"),
            "edges that have IPv4 addresses can be used",
        ),
        Ok(Err(error)) => Finding::bad(
            check,
            format!("no UDP on this machine: {error}"),
            "look at the network's set-up, and at what confines this process",
        ),
        Err(_) => Finding::bad(
            check,
            "a datagram to this machine itself got lost",
            "a packet filter drops UDP on the loopback device: allow it",
        ),
    }
}

/// Whether the kernel grants the socket buffers a relay wants.
pub(super) fn socket_buffers() -> Finding {
    const CHECK: &str = "socket buffers";
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    match probe_receive_buffer() {
        Ok((asked, granted)) if granted >= asked => {
            Finding::good(CHECK, format!("{} granted", mib(granted)))
        }
        Ok((asked, granted)) => Finding::warning(
            CHECK,
            format!(
                "{} asked for, {} granted: bursts may be lost",
                mib(asked),
                mib(granted)
            ),
            format!("on relays: sysctl -w net.core.rmem_max={asked} net.core.wmem_max={asked}"),
        ),
        Err(error) => Finding::bad(CHECK, error.to_string(), "no UDP socket can be made"),
    }
}

/// Whether the authority's certificates can be read and hold.
pub(super) fn authority(controller: &ControllerArgs) -> Finding {
    const CHECK: &str = "authority";
    match controller.roots() {
        Ok(None) => Finding::skipped(CHECK, "give --ca FILE, or --dev"),
        Ok(Some(roots)) => validity(&roots, now()),
        Err(error) => Finding::bad(
            CHECK,
            tradewind_service::exit::one_line(&error),
            "get `ca.pem` from who runs the network",
        ),
    }
}

fn validity(roots: &Roots, now: SystemTime) -> Finding {
    const CHECK: &str = "authority";
    let now = i64::try_from(super::super::connect::unix_seconds(now)).unwrap_or(i64::MAX);
    let mut least = i64::MAX;
    for cert in roots.certs() {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else {
            return Finding::bad(
                CHECK,
                "a CA certificate cannot be read",
                "get `ca.pem` anew",
            );
        };
        if parsed.validity().not_before.timestamp() > now {
            return Finding::bad(
                CHECK,
                "a CA certificate does not hold yet",
                "is this machine's clock right?",
            );
        }
        least = least.min(parsed.validity().not_after.timestamp() - now);
    }
    let days = least / 86_400;
    match least {
        ..=0 => Finding::bad(
            CHECK,
            "a CA certificate has expired",
            "get the new `ca.pem`, or set this machine's clock",
        ),
        1..2_592_000 => Finding::warning(
            CHECK,
            format!("a CA certificate expires in {days} days"),
            "plan its replacement: `ca.pem` may hold the old and the new one",
        ),
        _ => Finding::good(CHECK, format!("readable, holds for {days} more days")),
    }
}

/// Whether a node's certificate can be read, holds, and is that of `relay`.
pub(super) fn certificate(cert: Option<&Path>, key: Option<&Path>, relay: Option<&str>) -> Finding {
    const CHECK: &str = "certificate";
    let (Some(cert), Some(key)) = (cert, key) else {
        return Finding::skipped(CHECK, "on nodes: give --cert FILE and --key FILE");
    };
    let identity = match Identity::load(cert, key) {
        Ok(identity) => identity,
        Err(error) => {
            return Finding::bad(
                CHECK,
                error.to_string(),
                "`tradewind ca issue` makes a new pair",
            );
        }
    };
    if let Some(relay) = relay
        && let Err(error) = verify_peer_name(identity.certificate(), relay)
    {
        return Finding::bad(
            CHECK,
            error.to_string(),
            format!("`tradewind ca issue relay {relay}` makes the right one"),
        );
    }
    match identity.warning(now()) {
        Some(warning) => Finding::warning(CHECK, warning, "`tradewind ca issue` makes a new pair"),
        None => Finding::good(CHECK, "readable, matches its key, holds"),
    }
}

/// Whether this machine's clock agrees with the controller's.
pub(super) async fn clock(controller: &ControllerArgs) -> Finding {
    const CHECK: &str = "clock";
    let Some(api) = controller.url().and_then(|_| controller.api().ok()) else {
        return Finding::skipped(CHECK, "give --controller URL to compare with, or --dev");
    };
    let answer = match api.ask("/livez", &[]).await {
        Ok(answer) => answer,
        Err(error) => {
            return Finding::warning(
                CHECK,
                format!(
                    "nothing to compare with: {}",
                    tradewind_service::exit::one_line(&error)
                ),
                "clients work without the controller; is its URL right, and TCP let through?",
            );
        }
    };
    let theirs = answer
        .date
        .and_then(|date| httpdate::parse_http_date(&date).ok());
    let Some(theirs) = theirs else {
        return Finding::skipped(CHECK, format!("{} tells no time", api.base()));
    };
    compare(now(), theirs)
}

/// The header counts in seconds, and the answer took some time: a second or two is nothing.
fn compare(ours: SystemTime, theirs: SystemTime) -> Finding {
    const CHECK: &str = "clock";
    let off = ours
        .duration_since(theirs)
        .unwrap_or_else(|error| error.duration());
    let found = format!("{} s off the controller's", off.as_secs());
    match off {
        _ if off < Duration::from_secs(3) => Finding::good(CHECK, "agrees with the controller's"),
        _ if off < CLOCK_LEEWAY => {
            Finding::warning(CHECK, found, "let a time service (NTP) set it")
        }
        _ => Finding::bad(
            CHECK,
            found,
            "certificates and tokens are judged by it: let a time service (NTP) set it",
        ),
    }
}

/// What the DNS says of the name under which edges are found.
pub(super) async fn dns(name: Option<&str>) -> Finding {
    const CHECK: &str = "dns";
    let Some(name) = name else {
        return Finding::skipped(CHECK, "give --dns NAME if edges are found by DNS");
    };
    let resolver =
        match TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build) {
            Ok(resolver) => resolver,
            Err(error) => {
                return Finding::bad(
                    CHECK,
                    format!("this machine names no resolver: {error}"),
                    "look at /etc/resolv.conf",
                );
            }
        };
    let service = format!("_tradewind._udp.{}.", name.trim_end_matches('.'));
    let mut targets = Vec::new();
    if let Ok(found) = resolver.srv_lookup(service.as_str()).await {
        for record in found.answers() {
            if let RData::SRV(srv) = &record.data {
                targets.push(format!(
                    "{}:{}",
                    srv.target.to_utf8().trim_end_matches('.'),
                    srv.port
                ));
            }
        }
    }
    if !targets.is_empty() {
        return Finding::good(CHECK, format!("SRV records name {}", targets.join(", ")));
    }
    match resolver.lookup_ip(name).await {
        Ok(found) => {
            let port = tradewind_client::DEFAULT_PORT;
            let addresses: Vec<_> = found
                .iter()
                .map(|ip| SocketAddr::new(ip, port).to_string())
                .collect();
            Finding::good(
                CHECK,
                format!("no SRV records; addresses {}", addresses.join(", ")),
            )
        }
        Err(error) => Finding::bad(
            CHECK,
            format!("{name} leads nowhere: {error}"),
            format!("publish SRV records of _tradewind._udp.{name}, or A and AAAA records of it"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tradewind_trust::Ca;

    use super::{super::Verdict, *};

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn an_authority_is_good_until_a_month_before_its_end() {
        let start = UNIX_EPOCH + 20_000 * DAY;
        let roots = Ca::create("test", start).unwrap().roots();
        assert_eq!(validity(&roots, start).verdict, Verdict::Good);
        assert_eq!(validity(&roots, start - 2 * DAY).verdict, Verdict::Bad);
        assert_eq!(
            validity(&roots, start + 3_630 * DAY).verdict,
            Verdict::Warning
        );
        assert_eq!(validity(&roots, start + 3_700 * DAY).verdict, Verdict::Bad);
    }

    #[test]
    fn a_clock_is_judged_by_what_tokens_allow() {
        let theirs = UNIX_EPOCH + 20_000 * DAY;
        let after = |seconds| compare(theirs + Duration::from_secs(seconds), theirs).verdict;
        assert_eq!(after(1), Verdict::Good);
        assert_eq!(after(10), Verdict::Warning);
        assert_eq!(after(31), Verdict::Bad);
        assert_eq!(compare(theirs - DAY, theirs).verdict, Verdict::Bad);
    }

    #[test]
    fn a_certificate_of_another_relay_is_bad() {
        let ca = Ca::create("test", now()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("a.pem"), dir.path().join("a.key"));
        ca.issue_relay("oslo-1", &[], now(), 365 * DAY)
            .unwrap()
            .save(&cert, &key, false)
            .unwrap();
        let verdict = |name| certificate(Some(&cert), Some(&key), Some(name)).verdict;
        assert_eq!(verdict("oslo-1"), Verdict::Good);
        assert_eq!(verdict("rome-1"), Verdict::Bad);
        std::fs::remove_file(&key).unwrap();
        assert_eq!(verdict("oslo-1"), Verdict::Bad);
    }
}
