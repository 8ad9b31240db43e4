use std::{fs, path::PathBuf, time::Duration};

use clap::Parser as _;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    listen: String,
    drain: HumanDuration,
    admin_secret: Option<Secret>,
    admin_secret_file: Option<PathBuf>,
    limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    rate: Rate,
    largest_message: Size,
    sessions: u32,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            listen: "[::]:7400".into(),
            drain: HumanDuration(Duration::from_secs(30)),
            admin_secret: None,
            admin_secret_file: None,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate: Rate::from_bits_per_sec(1_000_000_000),
            largest_message: Size::from_bytes(16 << 20),
            sessions: 10_000,
        }
    }
}

fn error(text: &str) -> String {
    parse::<Sample>(text, "relay.toml").unwrap_err().to_string()
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    #[derive(clap::Parser)]
    struct Args {
        #[arg(long)]
        listen: Option<String>,
        #[arg(long)]
        drain: Option<HumanDuration>,
    }

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("relay.toml");
    fs::write(&path, "listen = \"a:1\"\ndrain = \"5s\"\n").unwrap();
    let args = Args::parse_from(["relay", "--listen", "b:2"]);

    let mut config: Sample = load(Some(&path)).unwrap();
    apply(&mut config.listen, args.listen);
    apply(&mut config.drain, args.drain);

    assert_eq!(config.listen, "b:2");
    assert_eq!(config.drain.0, Duration::from_secs(5));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(load::<Sample>(None).unwrap(), Sample::default());
}

#[test]
fn a_misspelt_key_is_refused_with_its_line_and_the_nearest_key() {
    assert_eq!(
        error("# a comment\n\nlistne = \"a:1\"\n"),
        "relay.toml:3: unknown key `listne`; did you mean `listen`?"
    );
    assert_eq!(
        error("listen = \"a:1\"\n[limits]\nsessions = 1\nlargest-mesage = \"1KiB\"\n"),
        "relay.toml:4: unknown key `largest-mesage`; did you mean `largest_message`?"
    );
    assert_eq!(
        error("[limit]\n"),
        "relay.toml:1: unknown key `limit`; did you mean `limits`?"
    );
    assert_eq!(
        error("limits.zzz = 1\n"),
        "relay.toml:1: unknown key `zzz`; known here: rate, largest_message, sessions"
    );
}

#[test]
fn a_misspelt_key_is_refused_also_where_a_struct_forgot_to() {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    #[allow(dead_code)]
    struct Careless {
        inner: Inner,
        list: Vec<Inner>,
    }
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    #[allow(dead_code)]
    struct Inner {
        name: String,
    }
    let error = |text: &str| parse::<Careless>(text, "a.toml").unwrap_err().to_string();
    assert_eq!(
        error("[inner]\nname = 'x'\nnmae = 'y'\n"),
        "a.toml:3: unknown key `inner.nmae`"
    );
    assert_eq!(
        error("[[list]]\nname = 'x'\n[[list]]\n\nnmae = 'y'\n"),
        "a.toml:5: unknown key `list.1.nmae`"
    );
}

#[test]
fn a_bad_value_is_refused_with_its_line_its_key_and_what_is_accepted() {
    let text = error("\ndrain = \"soon\"\n");
    assert!(
        text.starts_with("relay.toml:2: `drain`: `soon` is not a duration; write a number and a unit, such as \"5s\""),
        "{text}"
    );
    let text = error("[limits]\nrate = 5\n");
    assert!(
        text.starts_with("relay.toml:2: `rate`: `5` is not a rate; write"),
        "{text}"
    );
    let text = error("[limits]\nsessions = \"many\"\n");
    assert!(
        text.starts_with("relay.toml:2: `sessions`: invalid type: string"),
        "{text}"
    );
    let text = error("listen = \n");
    assert!(text.starts_with("relay.toml:1: "), "{text}");
    assert!(!text.contains('\n'), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let error = load::<Sample>(Some(Path::new("/nowhere/relay.toml"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration file /nowhere/relay.toml: it does not exist"
    );
}

#[test]
fn a_secret_comes_from_one_place_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    fs::write(&path, "hush\n").unwrap();
    let given = Secret::from("hush".to_owned());

    assert_eq!(Secret::resolve("k", None, None).unwrap(), None);
    assert_eq!(
        Secret::resolve("k", None, Some(&path)).unwrap().unwrap(),
        given
    );
    let both = Secret::resolve("k", Some(&given), Some(&path)).unwrap_err();
    assert_eq!(
        both.to_string(),
        "`k` and `k_file` are both given; keep one of them"
    );
    fs::write(&path, "\n").unwrap();
    let empty = Secret::resolve("k", None, Some(&path))
        .unwrap_err()
        .to_string();
    assert!(
        empty.contains("`k_file`") && empty.ends_with("it is empty"),
        "{empty}"
    );
}

#[test]
fn secrets_are_not_shown() {
    #[derive(Serialize)]
    struct Undeclared {
        enrol_token: &'static str,
        token_keys: &'static str,
        token_file: &'static str,
        api: Vec<std::collections::BTreeMap<&'static str, &'static str>>,
    }
    let config = Sample {
        admin_secret: Some("hush".to_owned().into()),
        admin_secret_file: Some("/run/secret".into()),
        ..Sample::default()
    };
    let shown = redacted(&config);
    assert_eq!(shown["admin_secret"], REDACTED);
    assert_eq!(shown["admin_secret_file"], "/run/secret");
    assert_eq!(shown["drain"], "30s");
    let toml = to_toml(&config).unwrap();
    assert!(!toml.contains("hush") && !format!("{config:?}").contains("hush"));

    let shown = redacted(&Undeclared {
        enrol_token: "hush",
        token_keys: "/etc/keys",
        token_file: "/etc/token",
        api: vec![
            [("password", "hush"), ("user", "eve")]
                .into_iter()
                .collect(),
        ],
    });
    assert_eq!(shown["enrol_token"], REDACTED);
    assert_eq!(shown["token_keys"], "/etc/keys");
    assert_eq!(shown["token_file"], "/etc/token");
    assert_eq!(shown["api"][0]["password"], REDACTED);
    assert_eq!(shown["api"][0]["user"], "eve");
}

#[test]
fn the_defaults_written_out_read_back_as_the_defaults() {
    let text = to_toml(&Sample::default()).unwrap();
    assert_eq!(parse::<Sample>(&text, "x").unwrap(), Sample::default());
}
