//! The service's configuration file.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tradewind_controller::{AdminAccess, ControllerConfig, NetworkConfig, Policy};
use tradewind_service::{
    config::{HumanDuration, Secret},
    exit::{UsageError, usage},
};
use tradewind_trust::{Ca, Identity, Roots, TokenKeys};

/// Everything that can be configured. `controller.sample.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) http_certificate: Option<PathBuf>,
    pub(crate) http_key: Option<PathBuf>,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
    pub(crate) ca_dir: Option<PathBuf>,
    pub(crate) token_keys: Option<PathBuf>,
    pub(crate) state_dir: PathBuf,
    pub(crate) admin_secret: Option<Secret>,
    pub(crate) admin_secret_file: Option<PathBuf>,
    pub(crate) expected_relays: Option<usize>,
    pub(crate) max_relays: usize,
    pub(crate) log: String,
    pub(crate) policy_file: Option<PathBuf>,
    pub(crate) planner: PlannerSettings,
    pub(crate) cost: CostSettings,
    pub(crate) rollout: RolloutSettings,
}

/// How plans by choice come into force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RolloutSettings {
    steps: Vec<String>,
    every: HumanDuration,
}

/// When plans change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PlannerSettings {
    interval: HumanDuration,
    plan_timeout: HumanDuration,
    margin: f64,
    margin_ms: f64,
    hold: HumanDuration,
    choice_rest: HumanDuration,
    grace: HumanDuration,
    first_plan_within: HumanDuration,
    leave_out_after: HumanDuration,
    forget_after: HumanDuration,
}

/// What makes a link dear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CostSettings {
    jitter: f64,
    loss_ms_per_percent: f64,
    load_knee: f64,
    load_scale_ms: f64,
    hop_ms: f64,
}

impl Default for Settings {
    fn default() -> Self {
        let network = NetworkConfig::default();
        Self {
            listen: (Ipv6Addr::UNSPECIFIED, 7400).into(),
            http: (Ipv4Addr::LOCALHOST, 7401).into(),
            http_certificate: None,
            http_key: None,
            certificate: "/etc/tradewind/controller.pem".into(),
            key: "/etc/tradewind/controller.key".into(),
            ca: "/etc/tradewind/ca.pem".into(),
            ca_dir: None,
            token_keys: None,
            state_dir: "/var/lib/tradewind-controller".into(),
            admin_secret: None,
            admin_secret_file: None,
            expected_relays: None,
            max_relays: network.max_relays,
            log: "info".to_owned(),
            policy_file: None,
            planner: PlannerSettings::default(),
            cost: CostSettings::default(),
            rollout: RolloutSettings::default(),
        }
    }
}

impl Default for RolloutSettings {
    fn default() -> Self {
        let network = NetworkConfig::default();
        Self {
            steps: Vec::new(),
            every: HumanDuration(network.rollout_every),
        }
    }
}

impl Default for PlannerSettings {
    fn default() -> Self {
        let network = NetworkConfig::default();
        Self {
            interval: HumanDuration(network.interval),
            plan_timeout: HumanDuration(network.plan_timeout),
            margin: network.planner.margin,
            margin_ms: network.planner.margin_ms,
            hold: HumanDuration(network.planner.hold),
            choice_rest: HumanDuration(network.planner.choice_rest),
            grace: HumanDuration(network.planner.grace),
            first_plan_within: HumanDuration(network.planner.first_plan_within),
            leave_out_after: HumanDuration(network.leave_out_after),
            forget_after: HumanDuration(network.forget_after),
        }
    }
}

impl Default for CostSettings {
    fn default() -> Self {
        let weights = NetworkConfig::default().weights;
        Self {
            jitter: weights.jitter,
            loss_ms_per_percent: weights.loss_ms_per_percent,
            load_knee: weights.load_knee,
            load_scale_ms: weights.load_scale_ms,
            hop_ms: weights.hop_ms,
        }
    }
}

impl Settings {
    /// The library's configuration, with all files read.
    ///
    /// # Errors
    /// In words for the operator; all of them are errors of usage.
    pub(crate) fn controller_config(&self, now: SystemTime) -> anyhow::Result<ControllerConfig> {
        let (identity, roots) = self.identity()?;
        if let Some(warning) = identity.warning(now) {
            tracing::warn!(certificate = %self.certificate.display(), warning, "certificate");
        }
        let mut config = ControllerConfig::new(self.listen, Arc::new(identity), roots);
        config.ca = match &self.ca_dir {
            Some(dir) => Some(Arc::new(Ca::load(dir).map_err(usage)?)),
            None => None,
        };
        config.token_keys = self.load_token_keys()?;
        config.state_dir = Some(self.state_dir.clone());
        config.network = self.network()?;
        config.admin = self.admin_access()?;
        Ok(config)
    }

    pub(crate) fn identity(&self) -> anyhow::Result<(Identity, Roots)> {
        let identity = Identity::load(&self.certificate, &self.key).map_err(usage)?;
        Ok((identity, Roots::load(&self.ca).map_err(usage)?))
    }

    /// Certificate and key of the HTTP API; `None`: it is plain HTTP.
    pub(crate) fn http_identity(&self) -> anyhow::Result<Option<Identity>> {
        match (&self.http_certificate, &self.http_key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                Ok(Some(Identity::load(certificate, key).map_err(usage)?))
            }
            _ => Err(wrong(
                "`http_certificate` and `http_key` go together: give both or none",
            )),
        }
    }

    pub(crate) fn load_token_keys(&self) -> anyhow::Result<TokenKeys> {
        match &self.token_keys {
            Some(path) => TokenKeys::load(path).map_err(usage).context("`token_keys`"),
            None => Ok(TokenKeys::default()),
        }
    }

    /// Reads the files and checks the values, but starts nothing.
    pub(crate) fn check(&self, now: SystemTime) -> anyhow::Result<()> {
        self.controller_config(now)?;
        self.http_identity()?;
        if let Some(path) = &self.policy_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read `policy_file` {}", path.display()))
                .map_err(|error| wrong(&tradewind_service::exit::one_line(&error)))?;
            Policy::from_toml(&text, &path.display().to_string()).map_err(usage)?;
        }
        Ok(())
    }

    fn admin_access(&self) -> anyhow::Result<AdminAccess> {
        let secret = Secret::resolve(
            "admin_secret",
            self.admin_secret.as_ref(),
            self.admin_secret_file.as_deref(),
        )?;
        Ok(secret.map_or(AdminAccess::Closed, |secret| {
            AdminAccess::Secret(secret.expose().to_owned())
        }))
    }

    fn network(&self) -> anyhow::Result<NetworkConfig> {
        let (planner, cost) = (&self.planner, &self.cost);
        for (key, value) in [
            ("planner.margin", planner.margin),
            ("planner.margin_ms", planner.margin_ms),
            ("cost.jitter", cost.jitter),
            ("cost.loss_ms_per_percent", cost.loss_ms_per_percent),
            ("cost.load_scale_ms", cost.load_scale_ms),
            ("cost.hop_ms", cost.hop_ms),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(wrong(&format!("`{key}` must be 0 or more")));
            }
        }
        if !(0.0..1.0).contains(&cost.load_knee) {
            return Err(wrong("`cost.load_knee` must be from 0 to below 1"));
        }
        if planner.interval.0.is_zero() || planner.plan_timeout.0.is_zero() {
            return Err(wrong(
                "`planner.interval` and `planner.plan_timeout` must not be 0",
            ));
        }
        if !(1..=65_000).contains(&self.max_relays) {
            return Err(wrong("`max_relays` must be from 1 to 65000"));
        }
        let mut network = NetworkConfig {
            expected_relays: self.expected_relays,
            interval: planner.interval.0,
            plan_timeout: planner.plan_timeout.0,
            leave_out_after: planner.leave_out_after.0,
            forget_after: planner.forget_after.0,
            max_relays: self.max_relays,
            ..NetworkConfig::default()
        };
        network.rollout_steps = self.rollout.permilles()?;
        network.rollout_every = self.rollout.every.0;
        network.planner.margin = planner.margin;
        network.planner.margin_ms = planner.margin_ms;
        network.planner.hold = planner.hold.0;
        network.planner.choice_rest = planner.choice_rest.0;
        network.planner.grace = planner.grace.0;
        network.planner.first_plan_within = planner.first_plan_within.0;
        network.weights.jitter = cost.jitter;
        network.weights.loss_ms_per_percent = cost.loss_ms_per_percent;
        network.weights.load_knee = cost.load_knee;
        network.weights.load_scale_ms = cost.load_scale_ms;
        network.weights.hop_ms = cost.hop_ms;
        Ok(network)
    }
}

impl RolloutSettings {
    /// The steps in parts per thousand.
    fn permilles(&self) -> anyhow::Result<Vec<u32>> {
        if self.every.0.is_zero() {
            return Err(wrong("`rollout.every` must not be 0"));
        }
        let mut steps = Vec::new();
        for text in &self.steps {
            let percent = text
                .trim()
                .strip_suffix('%')
                .and_then(|number| number.trim().parse().ok());
            let permille = percent.map(|percent: f64| (percent * 10.0).round());
            let step = permille.filter(|permille| (1.0..=1_000.0).contains(permille));
            let Some(step) = step.map(|step| step as u32) else {
                return Err(wrong(&format!(
                    "`rollout.steps`: `{text}` is no share above 0 %; write [\"5%\", \"25%\", \"100%\"]"
                )));
            };
            if steps.last().is_some_and(|&last| last >= step) {
                return Err(wrong("`rollout.steps` must grow from one to the next"));
            }
            steps.push(step);
        }
        Ok(steps)
    }
}

/// Reads the file over the defaults; without one, the defaults.
pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Settings> {
    Ok(tradewind_service::config::load(path)?)
}

fn wrong(text: &str) -> anyhow::Error {
    UsageError::new(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../controller.sample.toml");

    /// The sample with its settings (`#key = …`, no space) switched on; text stays comment.
    fn switched_on() -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with([' ', '#']) => setting.to_owned(),
            _ => line.to_owned(),
        };
        SAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let as_it_is: Settings = tradewind_service::config::parse(SAMPLE, "sample").unwrap();
        assert_eq!(as_it_is, Settings::default());
        let text = switched_on();
        let on: Settings = tradewind_service::config::parse(&text, "sample").unwrap();
        assert_eq!(on, Settings::default());
        assert!(text.contains("\nlisten = "));
    }

    #[test]
    fn the_sample_names_every_key() {
        let all = serde_json::to_value(Settings::default()).unwrap();
        let mut keys: Vec<String> = all.as_object().unwrap().keys().cloned().collect();
        for section in ["planner", "cost", "rollout"] {
            keys.extend(all[section].as_object().unwrap().keys().cloned());
        }
        for key in keys {
            let named =
                SAMPLE.contains(&format!("{key} = ")) || SAMPLE.contains(&format!("[{key}]"));
            assert!(named, "{key}");
        }
    }

    #[test]
    fn a_misspelt_key_names_the_nearest_one() {
        let error =
            tradewind_service::config::parse::<Settings>("htpp = \"127.0.0.1:1\"", "a.toml")
                .unwrap_err()
                .to_string();
        assert!(
            error.contains("a.toml:1") && error.contains("`http`"),
            "{error}"
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_key() {
        for (text, key) in [
            ("[cost]\nhop_ms = -1.0", "cost.hop_ms"),
            ("[cost]\nload_knee = 1.0", "cost.load_knee"),
            ("[planner]\nmargin = nan", "planner.margin"),
            ("[planner]\ninterval = \"0s\"", "planner.interval"),
            ("max_relays = 0", "max_relays"),
            ("[rollout]\nsteps = [\"5\"]", "rollout.steps"),
            ("[rollout]\nsteps = [\"25%\", \"5%\"]", "rollout.steps"),
            ("[rollout]\nevery = \"0s\"", "rollout.every"),
        ] {
            let settings: Settings = tradewind_service::config::parse(text, "a.toml").unwrap();
            let error = settings.network().unwrap_err();
            assert!(error.to_string().contains(key), "{text}: {error}");
            assert_eq!(tradewind_service::exit::code(&error), 2);
        }
    }
}
