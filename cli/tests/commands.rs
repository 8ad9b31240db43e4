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
