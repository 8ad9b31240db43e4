//! What must not be lost beside the network's state: the policy, the operator's decisions, the
//! history of plans.
//!
//! [`Storage`] is the narrow seam: everything at the start, one record at a time afterwards. The
//! controller writes behind its own back (`Store`): a slow disk holds up nobody, and one that is
//! full is said and counted while planning goes on.

mod sqlite;
mod store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use tradewind_trust::Revoked;

use crate::{
    network::{KeptRevocation, MOST_PLANS, PlanEntry},
    policy::Policy,
};

pub use sqlite::SqliteStorage;
pub(crate) use store::Store;

/// Keeps records for the next start.
pub trait Storage: Send {
    /// Everything that was kept.
    ///
    /// # Errors
    /// [`StorageError`]: it is damaged, or cannot be read.
    fn load(&mut self) -> Result<Kept, StorageError>;

    /// Keeps one record, in place of an earlier one of the same name.
    ///
    /// # Errors
    /// [`StorageError`]; what was there before is untouched then.
    fn write(&mut self, record: &Record) -> Result<(), StorageError>;
}

/// Everything that is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    /// The policy, if one was ever set.
    pub policy: Option<KeptPolicy>,
    /// What operators have decided about relays.
    pub decisions: Decisions,
    /// Plans, the oldest first.
    pub plans: Vec<PlanEntry>,
    /// Tokens that are withdrawn.
    pub revocations: Vec<KeptRevocation>,
}

/// One thing to be kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The policy, in place of the one before.
    Policy(KeptPolicy),
    /// The operators' decisions, all of them.
    Decisions(Decisions),
    /// A plan, new or amended.
    Plan(PlanEntry),
    /// Tokens are withdrawn; in place of an earlier record about the same.
    Revocation(KeptRevocation),
    /// They are no more, or it means nothing any more.
    Lifted {
        /// The app.
        app: String,
        /// Which of its tokens.
        what: Revoked,
    },
}

/// A policy and where it came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KeptPolicy {
    /// The policy.
    pub policy: Policy,
    /// When it was set, Unix milliseconds.
    pub set_at_unix_ms: u64,
    /// `file …`, `api` or `default`.
    pub source: String,
    /// What the policy file contained when it was last taken. As long as it contains this, a
    /// policy set over the API stays in force over restarts and reloads.
    pub file_text: Option<String>,
}

/// What operators have decided about relays, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decisions {
    /// Out of all paths; their sessions stay.
    pub quarantined: BTreeMap<String, Mark>,
    /// To be refused; after they have drained.
    pub decommissioned: BTreeMap<String, Mark>,
}

/// When something was decided, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Unix milliseconds.
    pub at_unix_ms: u64,
    /// In the operator's words.
    pub reason: String,
}

/// Why records cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database says no.
    #[error("cannot {action} {path}: {source}")]
    Database {
        /// `open`, `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// What it says.
        source: rusqlite::Error,
    },
    /// A record cannot be understood.
    #[error(
        "{path} is damaged: {what}: {reason}; restore it, or remove it to start without policy, operator's decisions and history"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Which record.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system gives no thread to write with.
    #[error("cannot start the thread that writes to disk: {0}")]
    Thread(std::io::Error),
    /// A later version of the controller has written it.
    #[error(
        "{path} was written by a later version (format {found}; this one knows {known}): run that one, or restore an older copy"
    )]
    Later {
        /// The file.
        path: String,
        /// Its format.
        found: i64,
        /// The greatest that is known here.
        known: i64,
    },
}

/// Keeps everything in memory: for tests and throw-away networks.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    kept: Kept,
}

impl MemoryStorage {
    fn forget_revocation(&mut self, app: &str, what: &Revoked) {
        let about_another =
            |kept: &KeptRevocation| kept.revocation.app != app || kept.revocation.what != *what;
        self.kept.revocations.retain(about_another);
    }
}

impl Storage for MemoryStorage {
    fn load(&mut self) -> Result<Kept, StorageError> {
        Ok(self.kept.clone())
    }

    fn write(&mut self, record: &Record) -> Result<(), StorageError> {
        match record {
            Record::Policy(policy) => self.kept.policy = Some(policy.clone()),
            Record::Decisions(decisions) => self.kept.decisions = decisions.clone(),
            Record::Plan(entry) => {
                let plans = &mut self.kept.plans;
                match plans
                    .iter_mut()
                    .rev()
                    .find(|known| known.plan == entry.plan)
                {
                    Some(known) => *known = entry.clone(),
                    None => plans.push(entry.clone()),
                }
                if plans.len() > MOST_PLANS {
                    plans.remove(0);
                }
            }
            Record::Revocation(kept) => {
                let of = &kept.revocation;
                self.forget_revocation(&of.app, &of.what);
                self.kept.revocations.push(kept.clone());
            }
            Record::Lifted { app, what } => self.forget_revocation(app, what),
        }
        Ok(())
    }
}
