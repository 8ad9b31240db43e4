//! What a relay keeps on disk: its index, the last plan, the relays, the token keys. With it a
//! restarted relay forwards while the controller is away.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use prost::Message as _;
use tradewind_proto::control::HeldState;

/// The file.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    path: PathBuf,
}

impl Store {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What was kept; `None` when there is nothing, or nothing that can be read (which is said).
    pub(crate) fn load(&self) -> Option<HeldState> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the kept plan");
                return None;
            }
        };
        match HeldState::decode(bytes.as_slice()) {
            Ok(state) => Some(state),
            Err(error) => {
                tracing::warn!(
                    path = %self.path.display(),
                    %error,
                    "the kept plan is damaged; waiting for the controller's"
                );
                None
            }
        }
    }

    /// Keeps `state`: whole or not at all. A full disk is reported and costs nothing but the next
    /// restart without a controller.
    pub(crate) fn save(&self, state: &HeldState) {
        if let Err(error) = write_whole(&self.path, &state.encode_to_vec()) {
            tracing::error!(path = %self.path.display(), %error, "cannot keep the plan on disk");
        }
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_comes_back_and_damage_is_no_plan() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::new(directory.path().join("state/plan.bin"));
        assert!(store.load().is_none());
        let state = HeldState {
            index: 7,
            epoch: 3,
            ..Default::default()
        };
        store.save(&state);
        assert_eq!(store.load(), Some(state));
        fs::write(directory.path().join("state/plan.bin"), [0xff; 9]).expect("written");
        assert!(store.load().is_none());
    }
}
