//! What a relay keeps on disk: its index, the plans it stamps, the relays, the token keys and what is
//! revoked. With it a restarted relay forwards while the controller is away. Beside it, the keys with
//! which clients of the process before are told that it has ended.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::IntCounter;
use prost::Message as _;
use tradewind_host::Host;
use tradewind_proto::control::HeldState;
use tradewind_trust::{QuicKeys, TrustError};

/// How long a relay that ends waits for the disk.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// The file, and the thread that writes it: a disk that is slow, full or stuck delays neither the
/// control task nor a packet.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// Writes that failed.
    failures: IntCounter,
    shared: Arc<Shared>,
    begun: bool,
    /// States to keep so far.
    count: u64,
}

#[derive(Debug, Default)]
struct Shared {
    slot: Mutex<Slot>,
    changed: Condvar,
}

/// What is to be written. A newer state takes the place of one that still waits.
#[derive(Debug, Default)]
struct Slot {
    waiting: Option<Vec<u8>>,
    /// Which of the states to keep that is, or was.
    newest: u64,
    writing: bool,
    ended: bool,
}

impl Store {
    pub(crate) fn new(path: PathBuf, failures: IntCounter) -> Self {
        Self {
            path,
            failures,
            shared: Arc::default(),
            begun: false,
            count: 0,
        }
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

    /// Keeps `state`, whole or not at all, some time soon. What fails is reported and counted, and
    /// costs nothing but the next restart without a controller.
    pub(crate) fn save(&mut self, state: &HeldState, host: &Arc<dyn Host>) {
        let path = self.path.clone();
        self.begin(move |bytes| write_whole(&path, bytes));
        self.count += 1;
        let (number, bytes) = (self.count, state.encode_to_vec());
        let wait = host.disk_wait();
        if wait.is_zero() {
            self.shared.put(number, bytes);
            return;
        }
        let (shared, disk) = (self.shared.clone(), host.clone());
        host.spawn(async move {
            disk.sleep(wait).await;
            shared.put(number, bytes);
        });
    }

    /// Starts the thread, once.
    fn begin(&mut self, write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static) {
        if self.begun {
            return;
        }
        let writer = Writer {
            shared: self.shared.clone(),
            failures: self.failures.clone(),
            path: self.path.clone(),
        };
        match std::thread::Builder::new()
            .name("plan-store".to_owned())
            .spawn(move || writer.run(write))
        {
            Ok(_) => self.begun = true,
            Err(error) => {
                self.failures.inc();
                tracing::error!(%error, "cannot start the thread that keeps the plan on disk");
            }
        }
    }
}

impl Drop for Store {
    /// What was saved last is on disk when the relay has ended, unless the disk is stuck.
    fn drop(&mut self) {
        let mut slot = self.shared.slot();
        slot.ended = true;
        self.shared.changed.notify_all();
        if self.begun {
            let busy = |slot: &mut Slot| slot.writing || slot.waiting.is_some();
            let waited = self
                .shared
                .changed
                .wait_timeout_while(slot, LAST_WRITE, busy);
            if waited.is_ok_and(|(_, timeout)| timeout.timed_out()) {
                tracing::error!(path = %self.path.display(), "the disk is stuck: the last plan is not kept");
            }
        }
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        // Whoever panicked left a slot that can be read.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a state written, unless a newer one has been.
    fn put(&self, number: u64, bytes: Vec<u8>) {
        let mut slot = self.slot();
        if number > slot.newest {
            slot.newest = number;
            slot.waiting = Some(bytes);
            self.changed.notify_all();
        }
    }

    /// What is to be written next; `None` when the relay has ended.
    fn next(&self) -> Option<Vec<u8>> {
        let mut slot = self.slot();
        slot.writing = false;
        self.changed.notify_all();
        loop {
            if let Some(bytes) = slot.waiting.take() {
                slot.writing = true;
                return Some(bytes);
            }
            if slot.ended {
                return None;
            }
            slot = self
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    failures: IntCounter,
    path: PathBuf,
}

impl Writer {
    fn run(self, mut write: impl FnMut(&[u8]) -> io::Result<()>) {
        while let Some(bytes) = self.shared.next() {
            if let Err(error) = write(&bytes) {
                self.failures.inc();
                tracing::error!(path = %self.path.display(), %error, "cannot keep the plan on disk");
            }
        }
    }
}

/// The keys of the process before, or new ones, kept for the next. Without them clients only learn
/// later that this is another process: that is no reason not to start.
pub(crate) fn kept_quic_keys(state_file: Option<&Path>) -> Result<QuicKeys, TrustError> {
    let Some(path) = state_file.map(|file| file.with_extension("quic-key")) else {
        return QuicKeys::generate();
    };
    match QuicKeys::load(&path) {
        Ok(Some(keys)) => return Ok(keys),
        Ok(None) => {}
        Err(error) => tracing::warn!(
            %error,
            "new QUIC keys: clients of the process before notice late that it has ended"
        ),
    }
    let keys = QuicKeys::generate()?;
    if let Err(error) = keys.save(&path) {
        tracing::warn!(%error, "clients will notice late that this process has ended");
    }
    Ok(keys)
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
    use std::sync::mpsc;

    use super::*;

    fn failures() -> IntCounter {
        IntCounter::new("failures", "Writes that failed.").expect("a counter")
    }

    fn put(store: &mut Store, state: &HeldState) {
        store.count += 1;
        store.shared.put(store.count, state.encode_to_vec());
    }

    fn state(index: u32) -> HeldState {
        HeldState {
            index,
            epoch: 3,
            ..Default::default()
        }
    }

    #[test]
    fn what_was_kept_comes_back_and_damage_is_no_plan() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state/plan.bin");
        let mut store = Store::new(path.clone(), failures());
        assert!(store.load().is_none());
        let file = path.clone();
        store.begin(move |bytes| write_whole(&file, bytes));
        put(&mut store, &state(7));
        drop(store);
        let store = Store::new(path.clone(), failures());
        assert_eq!(store.load(), Some(state(7)));
        fs::write(path, [0xff; 9]).expect("written");
        assert!(store.load().is_none());
    }

    #[test]
    fn a_slow_disk_delays_nobody_and_gets_only_the_last_of_what_waited() {
        let (go_on, gate) = mpsc::channel::<()>();
        let (tell, written) = mpsc::channel();
        let mut store = Store::new("unused".into(), failures());
        let write = move |bytes: &[u8]| {
            let _ = tell.send(HeldState::decode(bytes).expect("a state").index);
            // The disk stands still until it is let go.
            let _ = gate.recv();
            Ok(())
        };
        store.begin(write);
        put(&mut store, &state(1));
        assert_eq!(written.recv(), Ok(1));
        for index in 2..=5 {
            // Returns at once: nobody has let the disk go.
            put(&mut store, &state(index));
        }
        // What the disk took longer for than for what came after it is old by now.
        store.shared.put(1, state(1).encode_to_vec());
        drop(go_on);
        drop(store);
        assert_eq!(written.iter().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_full_disk_is_counted_and_harms_nothing() {
        let counted = failures();
        let mut store = Store::new("unused".into(), counted.clone());
        let full = |_: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
        store.begin(full);
        put(&mut store, &state(1));
        drop(store);
        assert_eq!(counted.get(), 1);
    }
}
