//! Records in an SQLite file: each write is atomic and on disk when it returns.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Serialize, de::DeserializeOwned};
use tradewind_trust::Revoked;

use super::{Kept, Record, Storage, StorageError};
use crate::network::{KeptRevocation, MOST_PLANS};

/// What this version writes, in `PRAGMA user_version`.
const FORMAT: i64 = 1;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS document (name TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS plan (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        body TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS revocation (
        app TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (app, kind, name)
    );
";

/// An SQLite file.
#[derive(Debug)]
pub struct SqliteStorage {
    path: String,
    database: Connection,
}

impl SqliteStorage {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StorageError`]: it cannot be opened, is none, or is of a later version.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let name = path.display().to_string();
        let error = |source| StorageError::Database {
            action: "open",
            path: name.clone(),
            source,
        };
        let database = Connection::open(path).map_err(error)?;
        // One small file and few writes: a journal that is gone after each.
        database
            .pragma_update(None, "synchronous", "FULL")
            .map_err(error)?;
        let found: i64 = database
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(error)?;
        if found > FORMAT {
            return Err(StorageError::Later {
                path: name,
                found,
                known: FORMAT,
            });
        }
        database.execute_batch(TABLES).map_err(error)?;
        if found != FORMAT {
            database
                .pragma_update(None, "user_version", FORMAT)
                .map_err(error)?;
        }
        Ok(Self {
            path: name,
            database,
        })
    }

    fn document<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StorageError> {
        let query = "SELECT body FROM document WHERE name = ?1";
        let body: Option<String> = self
            .database
            .query_row(query, [name], |row| row.get(0))
            .optional()
            .map_err(|source| self.error("read", source))?;
        body.map(|body| self.understood(name, &body)).transpose()
    }

    fn revocations(&self) -> Result<Vec<KeptRevocation>, StorageError> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut query = self.database.prepare("SELECT body FROM revocation")?;
            let rows = query.query_map([], |row| row.get(0))?;
            rows.collect()
        };
        let rows = read().map_err(|source| self.error("read", source))?;
        rows.iter()
            .map(|body| self.understood("a revocation", body))
            .collect()
    }

    fn plans<T: DeserializeOwned>(&self) -> Result<Vec<T>, StorageError> {
        let read = || -> rusqlite::Result<Vec<(String, String)>> {
            let mut query = self
                .database
                .prepare("SELECT name, body FROM plan ORDER BY seq")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        let rows = read().map_err(|source| self.error("read", source))?;
        rows.iter()
            .map(|(name, body)| self.understood(&format!("plan {name}"), body))
            .collect()
    }

    fn understood<T: DeserializeOwned>(&self, what: &str, body: &str) -> Result<T, StorageError> {
        serde_json::from_str(body).map_err(|error| StorageError::Damaged {
            path: self.path.clone(),
            what: what.to_owned(),
            reason: error.to_string(),
        })
    }

    fn error(&self, action: &'static str, source: rusqlite::Error) -> StorageError {
        StorageError::Database {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

impl Storage for SqliteStorage {
    fn load(&mut self) -> Result<Kept, StorageError> {
        Ok(Kept {
            policy: self.document("policy")?,
            decisions: self.document("decisions")?.unwrap_or_default(),
            plans: self.plans()?,
            revocations: self.revocations()?,
        })
    }

    fn write(&mut self, record: &Record) -> Result<(), StorageError> {
        let document = "INSERT INTO document (name, body) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET body = excluded.body";
        let plan = "INSERT INTO plan (name, body) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET body = excluded.body";
        let revoked = "INSERT INTO revocation (app, kind, name, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (app, kind, name) DO UPDATE SET body = excluded.body";
        let lifted = "DELETE FROM revocation WHERE app = ?1 AND kind = ?2 AND name = ?3";
        let oldest = "DELETE FROM plan WHERE seq <= (SELECT max(seq) FROM plan) - ?1";
        let write = |database: &mut Connection| -> rusqlite::Result<()> {
            let change = database.transaction()?;
            match record {
                Record::Policy(policy) => {
                    change.execute(document, params!["policy", json(policy)])?
                }
                Record::Decisions(all) => {
                    change.execute(document, params!["decisions", json(all)])?
                }
                Record::Plan(entry) => {
                    change.execute(plan, params![entry.plan, json(entry)])?;
                    change.execute(oldest, [MOST_PLANS as i64])?
                }
                Record::Revocation(kept) => {
                    let of = &kept.revocation;
                    let body = json(kept);
                    let row = params![of.app, kind(&of.what), of.what.name(), body];
                    change.execute(revoked, row)?
                }
                Record::Lifted { app, what } => {
                    change.execute(lifted, params![app, kind(what), what.name()])?
                }
            };
            change.commit()
        };
        write(&mut self.database).map_err(|source| self.error("write", source))
    }
}

fn kind(what: &Revoked) -> &'static str {
    match what {
        Revoked::Token(_) => "token",
        Revoked::User(_) => "user",
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data always has a JSON form")
}

#[cfg(test)]
mod tests {
    use tradewind_trust::Revocation;

    use super::{
        super::{Decisions, KeptPolicy, Mark},
        *,
    };
    use crate::{
        network::{By, PlanEntry},
        policy::Policy,
    };

    fn entry(number: u32, reason: &str) -> PlanEntry {
        PlanEntry {
            plan: format!("1.{number}"),
            made_at_unix_ms: 1,
            by: By::Planner,
            reasons: vec![reason.to_owned()],
            repairs: false,
            relays: 3,
            changed_next_hops: 2,
            unprotected: 0,
            activated_after_ms: None,
            orders: Vec::new(),
        }
    }

    #[test]
    fn what_was_kept_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("controller.db");
        let mut decisions = Decisions::default();
        decisions
            .quarantined
            .insert("tokyo-1".into(), Mark::default());
        let policy = KeptPolicy {
            policy: Policy::from_toml("[[price]]\nuplink = 1\nper_gb = 0.5", "p").unwrap(),
            source: "api".into(),
            ..KeptPolicy::default()
        };
        let revoked = |user: &str, until| KeptRevocation {
            revocation: Revocation {
                app: "chat".into(),
                what: Revoked::User(user.into()),
                issued_until: 5,
                until,
            },
            mark: Mark::default(),
        };
        {
            let mut storage = SqliteStorage::open(&file).unwrap();
            assert_eq!(storage.load().unwrap(), Kept::default());
            for record in [
                Record::Policy(KeptPolicy::default()),
                Record::Policy(policy.clone()),
                Record::Decisions(decisions.clone()),
                Record::Plan(entry(1, "first")),
                Record::Plan(entry(2, "second")),
                Record::Plan(entry(1, "first, amended")),
                Record::Revocation(revoked("eve", 7)),
                Record::Revocation(revoked("eve", 9)),
                Record::Revocation(revoked("bob", 9)),
                Record::Lifted {
                    app: "chat".into(),
                    what: Revoked::User("bob".into()),
                },
            ] {
                storage.write(&record).unwrap();
            }
        }
        let kept = SqliteStorage::open(&file).unwrap().load().unwrap();
        assert_eq!(kept.policy, Some(policy));
        assert_eq!(kept.decisions, decisions);
        assert_eq!(kept.revocations, [revoked("eve", 9)]);
        assert_eq!(kept.plans, [entry(1, "first, amended"), entry(2, "second")]);
    }

    #[test]
    fn only_the_latest_plans_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = SqliteStorage::open(&dir.path().join("a.db")).unwrap();
        storage
            .database
            .pragma_update(None, "synchronous", "OFF")
            .unwrap();
        for number in 1..=MOST_PLANS as u32 + 5 {
            storage.write(&Record::Plan(entry(number, "x"))).unwrap();
        }
        let kept = storage.load().unwrap().plans;
        assert_eq!(kept.len(), MOST_PLANS);
        assert_eq!(kept[0].plan, "1.6");
    }

    #[test]
    fn a_full_disk_is_an_error_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = SqliteStorage::open(&dir.path().join("a.db")).unwrap();
        storage.write(&Record::Plan(entry(1, "small"))).unwrap();
        // SQLite's own limit on the file's size stands for the disk's.
        let pages: i64 = storage
            .database
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap();
        storage
            .database
            .pragma_update(None, "max_page_count", pages)
            .unwrap();
        let error = storage
            .write(&Record::Plan(entry(2, &"x".repeat(100_000))))
            .unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
        assert_eq!(storage.load().unwrap().plans, [entry(1, "small")]);
        storage
            .database
            .pragma_update(None, "max_page_count", 100_000)
            .unwrap();
        storage
            .write(&Record::Plan(entry(3, "room again")))
            .unwrap();
    }

    #[test]
    fn a_file_of_a_later_version_or_of_another_kind_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("controller.db");
        let storage = SqliteStorage::open(&file).unwrap();
        storage
            .database
            .pragma_update(None, "user_version", 99)
            .unwrap();
        drop(storage);
        let error = SqliteStorage::open(&file).unwrap_err().to_string();
        assert!(
            error.contains("later version") && error.contains("controller.db"),
            "{error}"
        );
        let other = dir.path().join("other.db");
        std::fs::write(&other, "certainly not a database, but text of some length").unwrap();
        let error = SqliteStorage::open(&other).unwrap_err().to_string();
        assert!(error.contains("other.db"), "{error}");
    }
}
