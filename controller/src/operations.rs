//! What operators do with a running controller: policy, quarantine, rollout.

use std::path::Path;

use serde::Serialize;

use crate::{
    Controller, PathError, Policy, PolicyError,
    network::{
        AlertView, By, Effect, Explanation, Gain, LinkHistoryView, ObservedRule, OperateError,
        PlanEntry, RevocationView, Revoke, RolloutView, StatusView,
    },
    policy::ProfileName,
    storage::KeptPolicy,
};

/// How a policy is changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// Only say what would change.
    pub dry_run: bool,
    /// Take names of relays and regions that nobody has registered under yet.
    pub allow_unknown: bool,
}

/// What came of a change of policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyOutcome {
    /// Whether it is in force.
    pub applied: bool,
    /// By profile, what it changes against the one before.
    pub effects: Vec<Effect>,
    /// Rules that have no effect at present, and why.
    pub problems: Vec<String>,
    /// Why plans that come of it wait, if they do.
    pub held: Option<String>,
    /// Why it will not survive a restart, if it could not be written to disk.
    pub not_kept: Option<String>,
}

/// Why the policy file is not taken; the policy before stays.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// It cannot be read.
    #[error("cannot read `policy_file` {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no good policy.
    #[error("`policy_file`: {0}")]
    Policy(#[from] PolicyError),
}

impl Controller {
    /// Why packets go the way they go between two relays.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn explain(
        &self,
        from: &str,
        to: &str,
        profile: ProfileName,
    ) -> Result<Explanation, PathError> {
        self.shared
            .read(|network, now| network.explain(now, from, to, profile))
    }

    /// One link now and over time.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn link(&self, from: &str, to: &str, uplink: u8) -> Result<LinkHistoryView, PathError> {
        self.shared
            .read(|network, now| network.link(now, from, to, uplink))
    }

    /// Plans with their reasons and orders, the latest first.
    #[must_use]
    pub fn plans(&self, limit: usize) -> Vec<PlanEntry> {
        self.shared
            .read(|network, _| network.plans().take(limit).cloned().collect())
    }

    /// One plan's reasons and orders, by `epoch.number`.
    #[must_use]
    pub fn plan_entry(&self, name: &str) -> Option<PlanEntry> {
        self.shared
            .read(|network, _| network.plan_entry(name).cloned())
    }

    /// The controller at a glance.
    #[must_use]
    pub fn status(&self) -> StatusView {
        let mut status = self.shared.read(|network, now| network.status(now));
        status.alerts.extend(self.storage_alert());
        status
    }

    /// What needs somebody's eyes.
    #[must_use]
    pub fn alerts(&self) -> Vec<AlertView> {
        let mut alerts = self.shared.read(|network, now| network.alerts(now));
        alerts.extend(self.storage_alert());
        alerts
    }

    /// What plans save and what rules that are only observed would change.
    #[must_use]
    pub fn gains(&self) -> (Vec<Gain>, Vec<ObservedRule>) {
        self.shared.read(|network, _| {
            let (gains, observed) = network.gains();
            (gains.to_vec(), observed.to_vec())
        })
    }

    /// What is stamped and what could be.
    #[must_use]
    pub fn rollout(&self) -> RolloutView {
        self.shared.read(|network, _| network.rollout())
    }

    /// The policy in force, and what of it has no effect at present.
    #[must_use]
    pub fn policy(&self) -> (KeptPolicy, Vec<String>) {
        self.shared.read(|network, _| {
            let (policy, problems) = network.policy();
            (policy.clone(), problems.to_vec())
        })
    }

    /// Sets a policy that has been checked by itself, or says what it would change.
    ///
    /// # Errors
    /// [`OperateError::Bad`]: names that are not known.
    pub async fn set_policy(
        &self,
        policy: Policy,
        change: PolicyChange,
    ) -> Result<PolicyOutcome, OperateError> {
        self.change_policy(|_| Ok(policy), change, "another policy")
            .await
    }

    /// Changes the policy in force, as [`Controller::set_policy`].
    ///
    /// # Errors
    /// Of `edit`; [`OperateError::Bad`]: names that are not known, or no good policy.
    pub async fn change_policy(
        &self,
        edit: impl FnOnce(Policy) -> Result<Policy, OperateError>,
        change: PolicyChange,
        what: &str,
    ) -> Result<PolicyOutcome, OperateError> {
        // One after the other: each builds on the one before.
        let _turn = self.shared.changing_policy.lock().await;
        let (kept, _) = self.policy();
        let policy = edit(kept.policy)?;
        policy
            .check()
            .map_err(|error| OperateError::Bad(error.to_string()))?;
        let relays = self.relays();
        let names: Vec<String> = relays.iter().map(|relay| relay.name.clone()).collect();
        let regions: Vec<String> = relays.into_iter().map(|relay| relay.region).collect();
        let problems = policy.check_names(&names, &regions);
        if !problems.is_empty() && !change.allow_unknown {
            return Err(OperateError::Bad(format!(
                "{}; names that are yet to come are taken with allow_unknown=true (--allow-unknown)",
                problems.join("; ")
            )));
        }
        let trial = self.shared.read(|network, now| network.trial(now, &policy));
        // In large networks it takes a while: not under the lock, nor on a thread that serves relays.
        let effects = tokio::task::spawn_blocking(move || trial.effects())
            .await
            .map_err(|error| OperateError::Conflict(format!("cannot tell its effect: {error}")))?;
        let mut outcome = PolicyOutcome {
            applied: !change.dry_run,
            effects,
            problems,
            held: self.rollout().held,
            not_kept: None,
        };
        if !change.dry_run {
            let kept = KeptPolicy {
                policy,
                source: "api".to_owned(),
                file_text: kept.file_text,
                ..KeptPolicy::default()
            };
            self.shared
                .with(|network, now| network.set_policy(now, kept, By::Policy, what));
            outcome.not_kept = self.shared.store.flush().await.err();
        }
        Ok(outcome)
    }

    /// Takes the policy from a file, unless it contains what it did when it was last taken: so a
    /// policy that was set over the API since then stays. Gives whether it was taken.
    ///
    /// # Errors
    /// [`PolicyFileError`]; the policy before stays then.
    pub fn load_policy_file(&self, path: &Path) -> Result<bool, PolicyFileError> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| PolicyFileError::Read {
            path: origin.clone(),
            source,
        })?;
        let policy = Policy::from_toml(&text, &origin)?;
        let (before, _) = self.policy();
        if before.file_text.as_deref() == Some(text.as_str()) {
            if before.source == "api" {
                tracing::warn!(
                    file = origin,
                    "the policy set over the API stays in force: the file has not changed since"
                );
            }
            return Ok(false);
        }
        let what = format!("policy file {origin}");
        let kept = KeptPolicy {
            policy,
            source: format!("file {origin}"),
            file_text: Some(text),
            ..KeptPolicy::default()
        };
        self.shared
            .with(|network, now| network.set_policy(now, kept, By::Policy, &what));
        Ok(true)
    }

    /// Withdraws tokens at all relays; gives it as it is in force, and why it will not survive a
    /// restart, if it could not be written to disk.
    ///
    /// # Errors
    /// [`OperateError`]: names or times make no sense, or there are too many.
    pub async fn revoke(
        &self,
        revoke: Revoke,
    ) -> Result<(RevocationView, Option<String>), OperateError> {
        let view = self
            .shared
            .with(|network, now| network.revoke(now, revoke))?;
        Ok((view, self.shared.store.flush().await.err()))
    }

    /// The revocations in force.
    #[must_use]
    pub fn revocations(&self) -> Vec<RevocationView> {
        self.shared
            .read(|network, _| network.revocations().collect())
    }

    /// Does something about relays or the rollout, and waits until what is to be kept of it is on
    /// disk. Gives why it is not, if so.
    ///
    /// # Errors
    /// Of `act`.
    pub(crate) async fn operate(
        &self,
        act: impl FnOnce(&mut crate::network::Network, std::time::Duration) -> Result<(), OperateError>,
    ) -> Result<Option<String>, OperateError> {
        self.shared.with(act)?;
        Ok(self.shared.store.flush().await.err())
    }

    fn storage_alert(&self) -> Option<AlertView> {
        let failures = self.state_write_failures();
        (failures > 0).then(|| AlertView {
            kind: "storage",
            text: format!(
                "{failures} records could not be written to disk since the start; the log says why"
            ),
        })
    }
}
