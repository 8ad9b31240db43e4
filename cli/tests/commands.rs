//! The commands that need no network: what they make, and how they say no.

#![allow(clippy::unwrap_used)] // tests

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, UNIX_EPOCH},
};

use tempfile::TempDir;
use tradewind_trust::{Identity, Roots, TokenError, TokenKeys, verify_peer_name};

fn tradewind(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tradewind"));
    // Nothing of whoever runs the tests.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRADEWIND_") {
            command.env_remove(name);
        }
    }
    command.current_dir(dir).args(args).output().unwrap()
}

/// What it says on standard output; it must end well.
fn good(dir: &Path, args: &[&str]) -> String {
    let output = tradewind(dir, args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// It must end with `code` and say one line that contains `text`.
#[track_caller]
fn refused(dir: &Path, code: i32, text: &str, args: &[&str]) {
    let output = tradewind(dir, args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(said.starts_with("tradewind: error: "), "{said}");
    assert!(said.contains(text), "no {text:?} in {said}");
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn certificates_that_were_issued_descend_from_the_authority_and_bear_their_names() {
    let temporary = directory();
    let dir = temporary.path();
    good(dir, &["ca", "init", "--dir", "ca"]);
    good(dir, &["ca", "issue", "controller", "--dir", "ca"]);
    let issue = [
        "ca",
        "issue",
        "relay",
        "oslo-1",
        "--dir",
        "ca",
        "--san",
        "192.0.2.1",
    ];
    good(dir, &[&issue[..], &["--out", "certs", "--json"]].concat());
    Roots::load(&dir.join("ca/ca.pem")).unwrap();
    let load = |stem: &str| {
        let file = |ending: &str| dir.join(format!("{stem}.{ending}"));
        Identity::load(&file("pem"), &file("key")).unwrap()
    };
    let relay = load("certs/oslo-1");
    verify_peer_name(relay.certificate(), "oslo-1").unwrap();
    assert!(verify_peer_name(load("controller").certificate(), "oslo-1").is_err());
    // What is there is not lost by a slip.
    refused(dir, 2, "not overwritten", &["ca", "init", "--dir", "ca"]);
    refused(
        dir,
        2,
        "not overwritten",
        &[&issue[..], &["--out", "certs"]].concat(),
    );
    good(dir, &[&issue[..], &["--out", "certs", "--force"]].concat());
    refused(
        dir,
        2,
        "reserved",
        &["ca", "issue", "relay", "tradewind-edge", "--dir", "ca"],
    );
    refused(
        dir,
        2,
        "ca.pem does not exist",
        &["ca", "issue", "controller", "--dir", "no"],
    );
}

#[test]
fn a_token_says_what_was_asked_for_and_holds_for_as_long() {
    let temporary = directory();
    let dir = temporary.path();
    good(dir, &["token", "keygen", "--public", "public.pem"]);
    let keys = TokenKeys::load(&dir.join("public.pem")).unwrap();
    let create = ["token", "create", "--key", "token.key", "--user", "alice"];
    let more = [
        "--app",
        "chat",
        "--groups",
        "a,b",
        "--send",
        "c",
        "--classes",
        "audio",
        "--max-message",
        "1KiB",
    ];
    let token = good(
        dir,
        &[&create[..], &more[..], &["--expires", "2000000000"]].concat(),
    );
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let claims = keys.verify(token.trim(), at(1_999_999_999)).unwrap();
    assert_eq!(
        (claims.app.as_str(), claims.user.as_str()),
        ("chat", "alice")
    );
    assert_eq!(claims.send, ["a", "b", "c"]);
    assert_eq!(claims.recv, ["a", "b"]);
    assert_eq!(claims.max_message, Some(1_024));
    assert_eq!(claims.classes.map(|classes| classes.len()), Some(1));
    let late = keys.verify(token.trim(), at(2_000_000_100));
    assert!(matches!(late, Err(TokenError::Expired { .. })), "{late:?}");

    refused(dir, 2, "not overwritten", &["token", "keygen"]);
    refused(
        dir,
        2,
        "nowhere.key does not exist",
        &["token", "create", "--key", "nowhere.key", "--user", "a"],
    );
    refused(
        dir,
        2,
        "must name a user",
        &["token", "create", "--key", "token.key", "--user", ""],
    );
}

#[test]
fn who_names_no_network_is_told_how_to() {
    let temporary = directory();
    let dir = temporary.path();
    refused(dir, 2, "no edge is named", &["send", "bob", "hi"]);
    refused(
        dir,
        2,
        "no development network",
        &["send", "--dev", "bob", "hi"],
    );
    refused(
        dir,
        2,
        "no certificate authority",
        &["send", "--edge", "127.0.0.1:1", "bob", "hi"],
    );
    good(dir, &["ca", "init", "--dir", "ca"]);
    for args in [
        &["bob"][..],
        &["bob", "hi", "--lines"],
        &["bob", "--file", "f", "--lines"],
        &["bob", "hi", "--interval", "1s"],
    ] {
        let output = tradewind(dir, &[&["send"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let send = ["send", "--edge", "127.0.0.1:1", "--ca", "ca/ca.pem"];
    refused(
        dir,
        2,
        "no token is given",
        &[&send[..], &["bob", "hi"]].concat(),
    );
    let both = ["--token", "t", "--token-file", "f", "bob", "hi"];
    refused(dir, 2, "both given", &[&send[..], &both[..]].concat());
    refused(
        dir,
        2,
        "large.bin",
        &[&send[..], &["--token", "t", "bob", "--file", "large.bin"]].concat(),
    );
    refused(
        dir,
        1,
        "does not answer",
        &["relays", "--controller", "http://127.0.0.1:1"],
    );
}

#[test]
fn the_doctor_fails_only_when_something_is_bad() {
    let temporary = directory();
    let dir = temporary.path();
    let findings = good(dir, &["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_str(&findings).unwrap();
    let first = &findings[0];
    assert_eq!(
        (&first["check"], &first["verdict"]),
        (&"udp over IPv4".into(), &"good".into())
    );
    refused(
        dir,
        1,
        "checks failed",
        &["doctor", "--ca", "nowhere.pem", "--json"],
    );
}

/// Writes a matrix of `n` places: some cells empty, directions far from equal, whatever in the
/// diagonal, and the file as spreadsheets of another system write it.
fn matrix(dir: &Path, n: usize) -> Vec<Vec<Option<f64>>> {
    let mut state = 12_345u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let mut cells = vec![vec![None; n]; n];
    for (from, row) in cells.iter_mut().enumerate() {
        for (to, cell) in row.iter_mut().enumerate() {
            if from != to && random(4) > 0 {
                *cell = Some(random(200_000) as f64 / 1_000.0);
            }
        }
    }
    // The last place can be left, not reached.
    cells.iter_mut().for_each(|row| row[n - 1] = None);
    let mut text = "\u{feff}rtt".to_owned();
    (0..n).for_each(|place| text += &format!(",\"place, {place}\""));
    for (from, row) in cells.iter().enumerate() {
        text += &format!("\r\n\"place, {from}\"");
        for (to, cell) in row.iter().enumerate() {
            text += &match cell {
                _ if from == to => ",self".to_owned(),
                Some(ms) => format!(", {ms}"),
                None => ",".to_owned(),
            };
        }
    }
    std::fs::write(dir.join("m.csv"), text + "\r\n").unwrap();
    cells
}

/// The least cost over at most `left` places between, by trying all.
fn least(
    cells: &[Vec<Option<f64>>],
    hop: f64,
    path: &mut Vec<usize>,
    to: usize,
    left: usize,
) -> Option<f64> {
    let at = path[path.len() - 1];
    let mut best = cells[at][to];
    for via in 0..cells.len() {
        if left == 0 || via == to || path.contains(&via) {
            continue;
        }
        let Some(link) = cells[at][via] else { continue };
        path.push(via);
        if let Some(onward) = least(cells, hop, path, to, left - 1) {
            let ms = link + hop + onward;
            best = Some(best.map_or(ms, |best: f64| best.min(ms)));
        }
        path.pop();
    }
    best
}

#[test]
fn a_plan_tells_for_every_pair_the_best_of_all_ways_over_up_to_four_relays() {
    let temporary = directory();
    let dir = temporary.path();
    let n = 9;
    let cells = matrix(dir, n);
    for hop in ["0", "2.5"] {
        let line = [
            "plan",
            "--matrix",
            "m.csv",
            "--json",
            "--pairs",
            "--hop-cost",
        ];
        let plan = good(dir, &[&line[..], &[hop]].concat());
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        let hop: f64 = hop.parse().unwrap();
        let place = |name: &serde_json::Value| -> usize {
            let name = name.as_str().unwrap().strip_prefix("place, ").unwrap();
            name.parse().unwrap()
        };
        let mut told = std::collections::BTreeMap::new();
        for pair in plan["pairs"].as_array().unwrap() {
            let (from, to) = (place(&pair["from"]), place(&pair["to"]));
            let path: Vec<_> = pair["path"].as_array().unwrap().iter().map(place).collect();
            let best = pair["best_ms"].as_f64().unwrap();
            assert_eq!((path[0], path[path.len() - 1]), (from, to));
            assert!(path.len() <= 6);
            let links = path.windows(2).map(|link| cells[link[0]][link[1]].unwrap());
            let cost = links.sum::<f64>() + hop * (path.len() - 2) as f64;
            assert!((cost - best).abs() < 1e-9, "{pair}");
            assert_eq!(pair["direct_ms"].as_f64(), cells[from][to]);
            assert!(told.insert((from, to), best).is_none(), "{pair} twice");
        }
        let (mut savings, mut improved) = (Vec::new(), 0);
        let (mut all_direct, mut all_best) = (0.0, 0.0);
        for from in 0..n {
            for to in (0..n).filter(|&to| to != from) {
                let optimum = least(&cells, hop, &mut vec![from], to, 4);
                let best = told.get(&(from, to)).copied();
                assert_eq!(best.is_some(), optimum.is_some(), "{from} {to}");
                let Some(optimum) = optimum else { continue };
                assert!((best.unwrap() - optimum).abs() < 1e-9, "{from} {to}");
                if let Some(direct) = cells[from][to] {
                    assert!(best.unwrap() <= direct);
                    improved += u64::from(optimum < 0.95 * direct);
                    savings.push(direct - optimum);
                    all_direct += direct;
                    all_best += optimum;
                }
            }
        }
        let near = |key: &str, value: f64| {
            let told = plan[key].as_f64().unwrap();
            assert!((told - value).abs() < 1e-9, "{key}: {told}, not {value}");
        };
        savings.sort_by(f64::total_cmp);
        let middle = savings.len() / 2;
        let median = match savings.len() % 2 {
            0 => (savings[middle - 1] + savings[middle]) / 2.0,
            _ => savings[middle],
        };
        near("latency_removed_pct", 100.0 * (1.0 - all_best / all_direct));
        near("median_saving_ms", median);
        assert_eq!(plan["improved_over_5pct"], improved);
        assert_eq!(plan["pair_count"], told.len());
        assert_eq!(
            plan["unreachable_count"],
            n - 1,
            "the last place is not reached"
        );
        assert_eq!(plan["direct_count"], savings.len());
    }
}

/// Two clusters of two, a hub near both, and a slow direct link between the clusters; asymmetric.
const CLUSTERS: &str = "rtt,a-1,a-2,hub,b-1,b-2
a-1,0,5,20,100,110
a-2,6,0,22,105,115
hub,21,23,0,20,25
b-1,120,125,22,0,4
b-2,130,,26,5,0
";

#[test]
fn a_plan_chooses_places_for_relays_and_prices_cuts_and_failures() {
    let temporary = directory();
    let dir = temporary.path();
    std::fs::write(dir.join("m.csv"), CLUSTERS).unwrap();
    let plan = |more: &[&str]| -> serde_json::Value {
        let line = ["plan", "--matrix", "m.csv", "--json"];
        serde_json::from_str(&good(dir, &[&line[..], more].concat())).unwrap()
    };
    let chosen = plan(&["--choose", "1", "--hop-cost", "1"]);
    assert_eq!(chosen["relays"], serde_json::json!(["hub"]));
    assert_eq!(chosen["choice"]["steps"][0]["relay"], "hub");
    assert_eq!(chosen, {
        let mut same = plan(&["--relays", "hub", "--hop-cost", "1"]);
        same["choice"] = chosen["choice"].clone();
        same
    });
    assert_eq!(chosen["direct_count"], 19);
    assert_eq!(chosen["improved_over_5pct"], 7, "all between the clusters");
    assert_eq!(
        chosen["pairs_by_relays_crossed"],
        serde_json::json!([12, 8])
    );

    // Without the hub the direct links are left, for all pairs but one, which goes over b-1.
    let cut = plan(&["--relays", "hub,b-1", "--cut", "hub", "--pairs"])["cut"].take();
    assert_eq!(cut["places"], serde_json::json!(["hub"]));
    assert_eq!(
        (&cut["pair_count"], &cut["cut_off_count"]),
        (&12.into(), &0.into())
    );
    let cut = plan(&["--relays", "hub", "--cut", "a-2-hub", "--pairs"])["cut"].take();
    assert_eq!(cut["links"], serde_json::json!([["a-2", "hub"]]));
    assert_eq!(
        (&cut["worsened_count"], &cut["cut_off_count"]),
        (&3.into(), &3.into())
    );
    let to_b1 = cut["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|pair| pair["to"] == "b-1");
    assert_eq!(
        *to_b1.unwrap(),
        serde_json::json!({
            "from": "a-2", "to": "b-1", "before_ms": 42.0, "best_ms": 105.0, "path": ["a-2", "b-1"]
        })
    );

    let failures = plan(&["--relays", "hub", "--failures"])["failures"].take();
    let added = 60.0 + 65.0 + 63.0 + 68.0 + 77.0 + 80.0 + 83.0;
    assert_eq!(
        failures["relays"],
        serde_json::json!([
            { "relay": "hub", "pair_count": 8, "cut_off_count": 1, "added_ms": added }
        ])
    );
    assert_eq!(failures["links"][0]["cut_off_count"], 3);

    let tables = good(
        dir,
        &["plan", "--matrix", "m.csv", "--failures", "--cut", "hub"],
    );
    for text in [
        "largest savings",
        "dearest failures of links",
        "without hub",
    ] {
        assert!(tables.contains(text), "no {text:?} in {tables}");
    }
    let shipped = good(dir, &["plan", "--choose", "3", "--top", "2"]);
    assert!(shipped.contains("12 places"), "{shipped}");
}

#[test]
fn a_plan_that_cannot_be_made_says_what_to_change() {
    let temporary = directory();
    let dir = temporary.path();
    std::fs::write(dir.join("m.csv"), CLUSTERS).unwrap();
    std::fs::write(dir.join("bad.csv"), "x,a,b\na,0,fast\nb,1,0\n").unwrap();
    for (text, args) in [
        ("cannot read the matrix no.csv", &["--matrix", "no.csv"][..]),
        ("\"fast\" is not a number", &["--matrix", "bad.csv"]),
        (
            "no place is called \"c\"",
            &["--matrix", "m.csv", "--relays", "hub,c"],
        ),
        (
            "names \"hub\" twice",
            &["--matrix", "m.csv", "--relays", "hub,HUB"],
        ),
        ("has 5 places", &["--matrix", "m.csv", "--choose", "6"]),
        ("at least one", &["--matrix", "m.csv", "--choose", "0"]),
        (
            "no place is called \"moon\"",
            &["--matrix", "m.csv", "--cut", "hub-moon"],
        ),
        ("any of: a-1, a-2", &["--matrix", "m.csv", "--cut", "a"]),
    ] {
        refused(dir, 2, text, &[&["plan"], args].concat());
    }
    for args in [
        &["--hop-cost", "-1"][..],
        &["--hop-cost", "nan"],
        &["--pairs"],
        &["--relays", "hub", "--choose", "1"],
    ] {
        let output = tradewind(dir, &[&["plan"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_policy_is_checked_without_any_network() {
    let temporary = directory();
    let dir = temporary.path();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write(
        "good.toml",
        "[[forbid_transit]]\nregions = [\"cn\"]\napp = \"bank\"\n",
    );
    assert!(good(dir, &["policy", "check", "good.toml"]).contains("good"));
    let shown = good(dir, &["policy", "check", "good.toml", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    write("good.json", &shown["policy"].to_string());
    good(dir, &["policy", "check", "good.json"]);
    write("bad.toml", "[[forbid_transit]]\nregion = [\"cn\"]\n");
    refused(dir, 2, "`regions`", &["policy", "check", "bad.toml"]);
    write("worse.toml", "[[price]]\nper_gb = 1.0\n");
    refused(dir, 2, "which links", &["policy", "apply", "worse.toml"]);
    refused(dir, 2, "nowhere.toml", &["policy", "check", "nowhere.toml"]);
    let away = ["--controller", "http://127.0.0.1:1"];
    for command in [
        &["quarantine", "tokyo-1"][..],
        &["unpin", "a", "b"],
        &["rollout", "share", "5%"],
        &["plans"],
        &["status"],
        &["link", "a", "b"],
    ] {
        refused(dir, 1, "does not answer", &[command, &away[..]].concat());
    }
    let secrets = ["--admin-secret", "x", "--admin-secret-file", "y"];
    refused(
        dir,
        2,
        "both given",
        &[&["quarantine", "a"][..], &away[..], &secrets[..]].concat(),
    );
}
