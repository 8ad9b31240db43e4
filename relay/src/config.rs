//! The relay's configuration file and the flags over it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use tradewind_relay::{AppRates, UplinkSettings, WebhookError};
use tradewind_service::{
    config::{ConfigError, HumanDuration, Rate, Secret, Size, apply, load},
    exit::UsageError,
};

use crate::webhook_config::{WebhookArg, WebhookConfig};

/// Everything that can be configured. `relay.sample.toml` explains it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) controllers: Vec<String>,
    pub(crate) client_listen: SocketAddr,
    pub(crate) link_listen: SocketAddr,
    pub(crate) client_advertise: Vec<SocketAddr>,
    pub(crate) link_advertise: Vec<SocketAddr>,
    pub(crate) link_capacity: Rate,
    pub(crate) admin: SocketAddr,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    pub(crate) certificate_names: Vec<String>,
    pub(crate) enrol_token: Option<Secret>,
    pub(crate) enrol_token_file: Option<PathBuf>,
    pub(crate) state_file: PathBuf,
    pub(crate) max_sessions: usize,
    pub(crate) handshakes_per_s: u32,
    pub(crate) replay_bytes: Size,
    pub(crate) replay_age: HumanDuration,
    pub(crate) app_rate: Rate,
    pub(crate) app_rates: BTreeMap<String, Rate>,
    pub(crate) drain: HumanDuration,
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
    pub(crate) log: String,
    pub(crate) uplinks: Vec<UplinkConfig>,
    pub(crate) webhooks: Vec<WebhookConfig>,
}

/// A way to other relays beside the first one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UplinkConfig {
    pub(crate) number: u8,
    pub(crate) link_listen: SocketAddr,
    #[serde(default)]
    pub(crate) link_advertise: Vec<SocketAddr>,
    #[serde(default)]
    pub(crate) capacity: Rate,
}

impl UplinkConfig {
    pub(crate) fn settings(&self) -> UplinkSettings {
        UplinkSettings {
            number: self.number,
            link_listen: self.link_listen,
            link_advertise: self.link_advertise.clone(),
            capacity: self.capacity.bytes_per_sec(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let everywhere = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        Self {
            name: String::new(),
            region: String::new(),
            controllers: Vec::new(),
            client_listen: everywhere(7443),
            link_listen: everywhere(7444),
            client_advertise: Vec::new(),
            link_advertise: Vec::new(),
            link_capacity: Rate::default(),
            admin: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7445),
            certificate: "/etc/tradewind/relay.pem".into(),
            key: "/etc/tradewind/relay.key".into(),
            ca: "/etc/tradewind/ca.pem".into(),
            certificate_names: Vec::new(),
            enrol_token: None,
            enrol_token_file: None,
            state_file: "/var/lib/tradewind-relay/plan.bin".into(),
            max_sessions: 10_000,
            handshakes_per_s: 500,
            replay_bytes: Size::from_bytes(64 << 20),
            replay_age: HumanDuration(Duration::from_secs(30)),
            app_rate: Rate::default(),
            app_rates: BTreeMap::new(),
            drain: HumanDuration(Duration::from_secs(10)),
            latitude: 0.0,
            longitude: 0.0,
            log: "info".to_owned(),
            uplinks: Vec::new(),
            webhooks: Vec::new(),
        }
    }
}

/// Where the configuration comes from. Each flag wins over its key in the file.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file (TOML).
    #[arg(long, env = "TRADEWIND_RELAY_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// This relay's stable name, unique in the network.
    #[arg(long, env = "TRADEWIND_RELAY_NAME")]
    pub(crate) name: Option<String>,
    /// The region it stands in.
    #[arg(long, env = "TRADEWIND_RELAY_REGION")]
    pub(crate) region: Option<String>,
    /// A controller, HOST:PORT; may be repeated.
    #[arg(
        long = "controller",
        env = "TRADEWIND_RELAY_CONTROLLERS",
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    pub(crate) controllers: Option<Vec<String>>,
    /// Where to listen for clients (UDP).
    #[arg(long, env = "TRADEWIND_RELAY_CLIENT_LISTEN", value_name = "IP:PORT")]
    pub(crate) client_listen: Option<SocketAddr>,
    /// Where to listen for other relays (UDP).
    #[arg(long, env = "TRADEWIND_RELAY_LINK_LISTEN", value_name = "IP:PORT")]
    pub(crate) link_listen: Option<SocketAddr>,
    /// What clients shall use to reach it; may be repeated.
    #[arg(
        long,
        env = "TRADEWIND_RELAY_CLIENT_ADVERTISE",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    client_advertise: Option<Vec<SocketAddr>>,
    /// What other relays shall use to reach it; may be repeated.
    #[arg(
        long,
        env = "TRADEWIND_RELAY_LINK_ADVERTISE",
        value_delimiter = ',',
        value_name = "IP:PORT"
    )]
    link_advertise: Option<Vec<SocketAddr>>,
    /// What the links can carry each way together, such as 1Gbps; 0 when not known.
    #[arg(long, env = "TRADEWIND_RELAY_LINK_CAPACITY", value_name = "RATE")]
    link_capacity: Option<Rate>,
    /// Where to serve /livez, /readyz, /metrics, /config and /debug (TCP).
    #[arg(long, env = "TRADEWIND_RELAY_ADMIN", value_name = "IP:PORT")]
    pub(crate) admin: Option<SocketAddr>,
    /// This relay's certificate (PEM).
    #[arg(long, env = "TRADEWIND_RELAY_CERTIFICATE", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The private key to it (PEM).
    #[arg(long, env = "TRADEWIND_RELAY_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// The deployment's CA (PEM).
    #[arg(long, env = "TRADEWIND_RELAY_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// When enrolling: a DNS name or address it is reached by; may be repeated.
    #[arg(
        long = "certificate-name",
        env = "TRADEWIND_RELAY_CERTIFICATE_NAMES",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    certificate_names: Option<Vec<String>>,
    /// A one-time token to enrol with, when there is no certificate yet.
    #[arg(
        long,
        env = "TRADEWIND_RELAY_ENROL_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    enrol_token: Option<Secret>,
    /// A file with it.
    #[arg(long, env = "TRADEWIND_RELAY_ENROL_TOKEN_FILE", value_name = "FILE")]
    enrol_token_file: Option<PathBuf>,
    /// Where the last plan is kept.
    #[arg(long, env = "TRADEWIND_RELAY_STATE_FILE", value_name = "FILE")]
    state_file: Option<PathBuf>,
    /// Most client sessions at a time.
    #[arg(long, env = "TRADEWIND_RELAY_MAX_SESSIONS", value_name = "N")]
    max_sessions: Option<usize>,
    /// Most handshakes of clients that are begun per second; others are sent to the next edge.
    #[arg(long, env = "TRADEWIND_RELAY_HANDSHAKES_PER_S", value_name = "N")]
    handshakes_per_s: Option<u32>,
    /// Most bytes that are kept of messages to groups, for members that missed some.
    #[arg(long, env = "TRADEWIND_RELAY_REPLAY_BYTES", value_name = "SIZE")]
    replay_bytes: Option<Size>,
    /// How long messages to groups are kept.
    #[arg(long, env = "TRADEWIND_RELAY_REPLAY_AGE", value_name = "DURATION")]
    replay_age: Option<HumanDuration>,
    /// What the sessions of one app may send together, such as 500Mbps; 0 is without limit.
    #[arg(long, env = "TRADEWIND_RELAY_APP_RATE", value_name = "RATE")]
    app_rate: Option<Rate>,
    /// Whom to tell by HTTP of an app's users who are offline, such as
    /// chat=https://api.example.org/tradewind; may be repeated, and stands for all webhooks of the file.
    #[arg(
        long,
        env = "TRADEWIND_RELAY_WEBHOOK",
        value_delimiter = ',',
        value_name = "APP=URL"
    )]
    webhook: Option<Vec<WebhookArg>>,
    /// What calls of those webhooks are signed with.
    #[arg(
        long,
        env = "TRADEWIND_RELAY_WEBHOOK_SECRET",
        requires = "webhook",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    webhook_secret: Option<Secret>,
    /// A file with it.
    #[arg(
        long,
        env = "TRADEWIND_RELAY_WEBHOOK_SECRET_FILE",
        requires = "webhook",
        value_name = "FILE"
    )]
    webhook_secret_file: Option<PathBuf>,
    /// How long clients have to leave when it is stopped.
    #[arg(long, env = "TRADEWIND_RELAY_DRAIN", value_name = "DURATION")]
    drain: Option<HumanDuration>,
    /// Where it stands, degrees north, for maps.
    #[arg(long, env = "TRADEWIND_RELAY_LATITUDE", allow_negative_numbers = true)]
    latitude: Option<f64>,
    /// Where it stands, degrees east, for maps.
    #[arg(long, env = "TRADEWIND_RELAY_LONGITUDE", allow_negative_numbers = true)]
    longitude: Option<f64>,
    /// What is logged: a level, or such as info,tradewind_relay=debug.
    #[arg(long, env = "TRADEWIND_RELAY_LOG", value_name = "FILTER")]
    log: Option<String>,
}

impl ConfigArgs {
    /// Reads the file, and puts the flags over it.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and line.
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        let mut config = load(self.config.as_deref())?;
        self.apply(&mut config);
        Ok(config)
    }

    /// Puts the flags over `config`.
    pub(crate) fn apply(&self, config: &mut Config) {
        let from = self.clone();
        apply(&mut config.name, from.name);
        apply(&mut config.region, from.region);
        apply(&mut config.controllers, from.controllers);
        apply(&mut config.client_listen, from.client_listen);
        apply(&mut config.link_listen, from.link_listen);
        apply(&mut config.client_advertise, from.client_advertise);
        apply(&mut config.link_advertise, from.link_advertise);
        apply(&mut config.link_capacity, from.link_capacity);
        apply(&mut config.admin, from.admin);
        apply(&mut config.certificate, from.certificate);
        apply(&mut config.key, from.key);
        apply(&mut config.ca, from.ca);
        apply(&mut config.certificate_names, from.certificate_names);
        apply(&mut config.state_file, from.state_file);
        apply(&mut config.max_sessions, from.max_sessions);
        apply(&mut config.handshakes_per_s, from.handshakes_per_s);
        apply(&mut config.replay_bytes, from.replay_bytes);
        apply(&mut config.replay_age, from.replay_age);
        apply(&mut config.app_rate, from.app_rate);
        apply(&mut config.drain, from.drain);
        apply(&mut config.latitude, from.latitude);
        apply(&mut config.longitude, from.longitude);
        apply(&mut config.log, from.log);
        if let Some(webhooks) = from.webhook {
            let (secret, file) = (&from.webhook_secret, &from.webhook_secret_file);
            let webhook = |arg| WebhookConfig::of(arg, secret.clone(), file.clone());
            config.webhooks = webhooks.into_iter().map(webhook).collect();
        }
        // One way of giving the token replaces the other.
        if from.enrol_token.is_some() || from.enrol_token_file.is_some() {
            config.enrol_token = from.enrol_token;
            config.enrol_token_file = from.enrol_token_file;
        }
    }
}

impl Config {
    /// What each app may send.
    pub(crate) fn app_rates(&self) -> AppRates {
        let named = self.app_rates.iter();
        AppRates {
            each: Some(self.app_rate.bytes_per_sec()).filter(|rate| *rate > 0),
            named: named
                .map(|(app, rate)| (app.clone(), rate.bytes_per_sec()))
                .collect(),
        }
    }

    /// Checks what can be checked without starting.
    ///
    /// # Errors
    /// [`UsageError`], naming the key.
    pub(crate) fn check(&self) -> Result<(), UsageError> {
        let wrong = |text: String| Err(UsageError::new(text));
        if self.name.is_empty() {
            return wrong("the relay has no name: set `name`, or give --name".to_owned());
        }
        if let Err(error) = tradewind_trust::check_relay_name(&self.name) {
            return wrong(format!("`name`: {error}"));
        }
        if self.controllers.is_empty() {
            return wrong(
                "no controller is named: set `controllers` to at least one HOST:PORT, or give --controller".to_owned(),
            );
        }
        for (nth, uplink) in self.uplinks.iter().enumerate() {
            let twice = |other: &UplinkConfig| other.number == uplink.number;
            if uplink.number == 0 || self.uplinks[..nth].iter().any(twice) {
                return wrong(format!(
                    "`uplinks`: number {} is taken: number them 1, 2, …, and each once (0 is `link_listen`)",
                    uplink.number
                ));
            }
        }
        let further = self.uplinks.iter().map(|uplink| {
            (
                "link_advertise` of an entry of `uplinks",
                uplink.link_listen,
                &uplink.link_advertise,
            )
        });
        let first = [
            (
                "client_advertise",
                self.client_listen,
                &self.client_advertise,
            ),
            ("link_advertise", self.link_listen, &self.link_advertise),
        ];
        for (key, listen, advertise) in first.into_iter().chain(further) {
            if listen.ip().is_unspecified() && advertise.is_empty() {
                return wrong(format!(
                    "`{key}` is needed: listening on {listen} tells others nothing they could connect to"
                ));
            }
            if let Some(bad) = advertise
                .iter()
                .find(|address| address.ip().is_unspecified())
            {
                return wrong(format!("`{key}`: nobody can connect to {bad}"));
            }
        }
        for (nth, webhook) in self.webhooks.iter().enumerate() {
            webhook.check().or_else(wrong)?;
            let twice = |other: &WebhookConfig| other.app == webhook.app;
            if self.webhooks[..nth].iter().any(twice) {
                let error = WebhookError::Twice(webhook.app.clone());
                return wrong(format!("`webhooks`: {error}"));
            }
        }
        if self.max_sessions == 0 {
            return wrong("`max_sessions` must be at least 1".to_owned());
        }
        if self.handshakes_per_s == 0 {
            return wrong("`handshakes_per_s` must be at least 1".to_owned());
        }
        if !(-90.0..=90.0).contains(&self.latitude) || !(-180.0..=180.0).contains(&self.longitude) {
            return wrong(
                "`latitude` is from -90 to 90 and `longitude` from -180 to 180 degrees".to_owned(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tradewind_service::config::parse;

    use super::*;

    const SAMPLE: &str = include_str!("../relay.sample.toml");

    #[test]
    fn the_sample_with_its_defaults_uncommented_is_the_defaults() {
        let mut keys = 0;
        let uncommented: String = SAMPLE
            .lines()
            .map(|line| {
                let default = line
                    .strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' ') && rest.contains(" = "));
                keys += usize::from(default.is_some());
                format!("{}\n", default.unwrap_or(line))
            })
            .collect();
        let mut config: Config = parse(&uncommented, "relay.sample.toml").unwrap();
        // What has no default stands in the sample as an example.
        let sample: Config = parse(SAMPLE, "relay.sample.toml").unwrap();
        config.name.clear();
        config.region.clear();
        for key in ["controllers", "client_advertise", "link_advertise"] {
            assert!(SAMPLE.contains(&format!("\n{key} = ")), "{key}");
        }
        config.controllers.clear();
        config.client_advertise.clear();
        config.link_advertise.clear();
        assert_eq!(config, Config::default());
        sample.check().unwrap();
        assert_eq!(keys, 19);
    }

    #[test]
    fn every_key_stands_in_the_sample() {
        let serde_json::Value::Object(keys) = serde_json::to_value(Config::default()).unwrap()
        else {
            unreachable!("a struct is an object");
        };
        for key in keys.keys() {
            assert!(
                SAMPLE.lines().any(|line| {
                    let line = line.trim_start_matches(['#', ' ']);
                    line.starts_with(&format!("{key} = ")) || line == format!("[[{key}]]")
                }),
                "{key}"
            );
        }
    }

    #[test]
    fn the_example_of_an_uplink_is_one_and_numbers_are_given_once() {
        let at = SAMPLE.find("# [[uplinks]]").unwrap();
        let example: String = SAMPLE[at..]
            .lines()
            .map_while(|line| line.strip_prefix("# "))
            .map(|line| format!("{line}\n"))
            .collect();
        let text = format!("{}\n{example}", &SAMPLE[..at]);
        let mut config: Config = parse(&text, "relay.sample.toml").unwrap();
        config.check().unwrap();
        let settings = config.uplinks[0].settings();
        assert_eq!((settings.number, settings.capacity), (1, 125_000_000));
        config.uplinks.push(config.uplinks[0].clone());
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("number 1 is taken"), "{error}");
    }

    #[test]
    fn rates_of_apps_are_one_for_all_and_others_by_name() {
        let text = "app_rate = '8Mbps'\napp_rates = { chat = '80Mbps', backup = '0bps' }";
        let rates = parse::<Config>(text, "relay.toml").unwrap().app_rates();
        assert_eq!(rates.each, Some(1_000_000));
        let named = [("backup".to_owned(), 0), ("chat".to_owned(), 10_000_000)];
        assert_eq!(rates.named, named.into());
        assert_eq!(Config::default().app_rates(), AppRates::default());
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_one_that_was_meant() {
        let error = parse::<Config>("regoin = 'x'", "relay.toml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "relay.toml:1: unknown key `regoin`; did you mean `region`?"
        );
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let mut config: Config = parse("region = 'asia'\nmax_sessions = 5", "relay.toml").unwrap();
        let args = ConfigArgs {
            region: Some("europe".to_owned()),
            ..ConfigArgs::default()
        };
        args.apply(&mut config);
        assert_eq!((config.region.as_str(), config.max_sessions), ("europe", 5));
    }

    #[test]
    fn what_others_could_not_connect_to_is_refused_by_the_name_of_its_key() {
        let config = Config {
            name: "oslo-1".to_owned(),
            controllers: vec!["127.0.0.1:7400".to_owned()],
            ..Config::default()
        };
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("client_advertise"), "{error}");
    }
}
