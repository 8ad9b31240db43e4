//! Writing behind the controller's back.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
};

use tokio::sync::oneshot;

use super::{Kept, MemoryStorage, Record, SqliteStorage, Storage, StorageError};

const FILE: &str = "controller.db";
/// Records that wait for the disk; beyond it they are lost, and counted.
const MAX_WAITING: usize = 1_024;

/// Keeps records without holding anybody up.
pub(crate) struct Store {
    way: Way,
    failures: Arc<AtomicU64>,
}

enum Way {
    /// In memory: at once, on the caller's thread, so that virtual time stays the same.
    Inline(Mutex<Box<dyn Storage>>),
    /// On disk: by a thread of its own.
    Thread(SyncSender<Job>),
}

enum Job {
    Write(Box<Record>),
    /// Asks whether everything before was written.
    Flush(oneshot::Sender<Result<(), String>>),
}

impl Store {
    /// Keeps records in `dir`, or in memory; gives what was kept before.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) fn open(dir: Option<&Path>) -> Result<(Self, Kept), StorageError> {
        let failures = Arc::new(AtomicU64::new(0));
        let Some(dir) = dir else {
            let storage: Box<dyn Storage> = Box::new(MemoryStorage::default());
            let way = Way::Inline(Mutex::new(storage));
            return Ok((Self { way, failures }, Kept::default()));
        };
        let mut storage = SqliteStorage::open(&dir.join(FILE))?;
        let kept = storage.load()?;
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let counted = failures.clone();
        std::thread::Builder::new()
            .name("tradewind-store".to_owned())
            .spawn(move || run(storage, &receiver, &counted))
            .map_err(StorageError::Thread)?;
        let way = Way::Thread(sender);
        Ok((Self { way, failures }, kept))
    }

    /// Keeps a record, soon.
    pub(crate) fn write(&self, record: Box<Record>) {
        match &self.way {
            Way::Inline(storage) => {
                let mut storage = storage.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = storage.write(&record) {
                    note(&error, &self.failures);
                }
            }
            Way::Thread(jobs) => {
                let why = match jobs.try_send(Job::Write(record)) {
                    Ok(()) => return,
                    Err(TrySendError::Full(_)) => "the disk is too slow",
                    Err(TrySendError::Disconnected(_)) => "the thread that writes has ended",
                };
                tracing::error!("{why}: a record is not kept");
                self.failures.fetch_add(1, Relaxed);
            }
        }
    }

    /// Waits until everything so far is on disk.
    ///
    /// # Errors
    /// What went wrong since the last time somebody asked.
    pub(crate) async fn flush(&self) -> Result<(), String> {
        let Way::Thread(jobs) = &self.way else {
            return Ok(());
        };
        let (sender, receiver) = oneshot::channel();
        let gone =
            || "it is not kept: the disk is too slow, or the controller is stopping".to_owned();
        jobs.try_send(Job::Flush(sender)).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// How often a record could not be kept.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}

fn run(mut storage: SqliteStorage, jobs: &Receiver<Job>, failures: &AtomicU64) {
    let mut failed = None;
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Write(record) => {
                if let Err(error) = storage.write(&record) {
                    note(&error, failures);
                    failed = Some(error.to_string());
                }
            }
            // Who asked may have gone away.
            Job::Flush(answer) => drop(answer.send(failed.take().map_or(Ok(()), Err))),
        }
    }
}

fn note(error: &StorageError, failures: &AtomicU64) {
    tracing::error!(%error, "a record is not kept");
    failures.fetch_add(1, Relaxed);
}
