//! What survives a restart: the relays' indices and the epoch, as JSON in the state directory.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tradewind_proto::control::UplinkInfo;
use tradewind_trust::EnrolToken;

use crate::enrol::{EnrolTokenError, Tokens};

const NETWORK_FILE: &str = "network.json";

/// Everything about the network that is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedNetwork {
    /// Of the controller that wrote it; the next one takes a greater one.
    pub epoch: u16,
    /// Every relay that was ever known, by index from 0.
    pub relays: Vec<SavedRelay>,
}

/// What is kept of a relay. Its addresses too: a controller that has just started must not tell
/// the relays which are back that the others are gone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedRelay {
    /// Its stable name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Where clients reach it, `ip:port`, in order of preference.
    pub client_addresses: Vec<String>,
    /// Where relays reach it, `ip:port`, in order of preference.
    pub link_addresses: Vec<String>,
    /// Degrees; both 0 when not known.
    pub latitude: f64,
    /// Degrees; both 0 when not known.
    pub longitude: f64,
    /// Of its last start.
    pub incarnation: u64,
    /// Its ways to other relays beside the first, and what any of them carries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<SavedUplink>,
}

/// What is kept of a relay's uplink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedUplink {
    /// Its number.
    pub number: u8,
    /// Where relays reach it over this uplink, `ip:port`, in order of preference.
    pub link_addresses: Vec<String>,
    /// What it carries each way, bytes per second; 0 when not known.
    pub capacity: u64,
}

impl SavedUplink {
    /// As relays are told.
    #[must_use]
    pub fn info(&self) -> UplinkInfo {
        UplinkInfo {
            number: u32::from(self.number),
            link_addresses: self.link_addresses.clone(),
            capacity: self.capacity,
        }
    }
}

/// Why something kept on disk could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write` or `make`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is damaged.
    #[error(
        "{} is damaged ({reason}); restore it, or remove it to start with new relay indices",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// All epochs are used up.
    #[error("{} has used up all epochs; remove it to start anew, then restart all relays", path.display())]
    NoMoreEpochs {
        /// The file.
        path: PathBuf,
    },
}

/// Reads what the last controller left in `dir`, begins a new epoch and writes that down.
/// Without a directory: nothing is known, and the epoch is 1.
///
/// # Errors
/// [`StateError`], naming the file.
pub fn begin_epoch(dir: Option<&Path>) -> Result<SavedNetwork, StateError> {
    let Some(dir) = dir else {
        return Ok(SavedNetwork {
            epoch: 1,
            ..SavedNetwork::default()
        });
    };
    fs::create_dir_all(dir).map_err(io_error("make", dir))?;
    let mut saved: SavedNetwork = read_json(&dir.join(NETWORK_FILE))?.unwrap_or_default();
    saved.epoch = saved
        .epoch
        .checked_add(1)
        .ok_or_else(|| StateError::NoMoreEpochs {
            path: dir.join(NETWORK_FILE),
        })?;
    save(dir, &saved)?;
    Ok(saved)
}

/// Writes the network's state.
///
/// # Errors
/// [`StateError::Io`]; what was there before is untouched then.
pub fn save(dir: &Path, network: &SavedNetwork) -> Result<(), StateError> {
    write_json(&dir.join(NETWORK_FILE), network)
}

/// Makes a one-time enrolment token in the state directory of a controller, which may be running:
/// good for `lifetime`, for `relay` only if named.
///
/// # Errors
/// [`EnrolTokenError`].
pub fn create_enrol_token(
    dir: &Path,
    relay: Option<String>,
    lifetime: Duration,
    now: SystemTime,
) -> Result<EnrolToken, EnrolTokenError> {
    Tokens::new(Some(dir.to_owned()), Vec::new()).create(relay, lifetime, now)
}

/// Reads a JSON file; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| StateError::Damaged {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

/// Replaces a JSON file as a whole: after a crash at any moment there is the old or the new one.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let text = serde_json::to_vec_pretty(value).expect("plain data always has a JSON form");
    let write = || {
        let beside = path.with_extension("json.new");
        let mut file = File::create(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The rename itself is durable only once the directory is.
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(io_error("write", path))
}

pub(crate) fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> StateError + 'a {
    move |source| StateError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_has_a_greater_epoch_and_the_same_relays() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let mut first = begin_epoch(Some(&dir)).unwrap();
        assert_eq!(
            first,
            SavedNetwork {
                epoch: 1,
                relays: vec![]
            }
        );
        first.relays.push(SavedRelay {
            name: "tokyo-1".into(),
            ..SavedRelay::default()
        });
        save(&dir, &first).unwrap();
        let second = begin_epoch(Some(&dir)).unwrap();
        assert_eq!(second.epoch, 2);
        assert_eq!(second.relays, first.relays);
        assert_eq!(begin_epoch(None).unwrap().epoch, 1);
    }

    #[test]
    fn a_damaged_file_is_refused_by_name_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(NETWORK_FILE);
        fs::write(&file, "{\"epoch\": 7, \"rel").unwrap();
        let error = begin_epoch(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("network.json is damaged"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"epoch\": 7, \"rel");
    }

    #[test]
    fn when_the_epochs_are_used_up_the_controller_says_so() {
        let dir = tempfile::tempdir().unwrap();
        save(
            dir.path(),
            &SavedNetwork {
                epoch: u16::MAX,
                relays: vec![],
            },
        )
        .unwrap();
        assert!(matches!(
            begin_epoch(Some(dir.path())),
            Err(StateError::NoMoreEpochs { .. })
        ));
    }
}
