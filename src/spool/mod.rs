//! Durable tasks: what was accepted, with payloads, checkpoints and results, as files an operator can look at.
//!
//! Owns the state directory: its lock, journal, files, replay and retention. May import core's types. Must never know
//! HTTP or threads.

mod advice;
mod files;
mod journal;
mod record;
mod replay;
#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::event::Record;
use crate::core::ids::TaskId;

pub use advice::advice;
pub use files::{Files, PayloadWriter};
use journal::Journal;
pub use replay::Restored;

/// The layout of the state directory; a daemon refuses one that is newer than it knows.
const FORMAT: &str = "1";

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("cannot {what} {}: {source}; {}", .path.display(), advice(.source))]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is in use by another kurultaid: stop that one, or give this one its own daemon.state_dir", .path.display())]
    InUse { path: PathBuf },
    #[error("{} has format {found:?}, and this kurultaid knows {FORMAT}: run the kurultaid that wrote it, or move it away", .path.display())]
    Format { path: PathBuf, found: String },
}

/// Task numbers, given out in order and never twice. Any thread may take one.
#[derive(Debug, Clone)]
pub struct TaskIds(Arc<AtomicU64>);

impl TaskIds {
    pub fn take(&self) -> TaskId {
        TaskId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// The journal and the directory around it; owned by the scheduler.
#[derive(Debug)]
pub struct Spool {
    journal: Journal,
    files: Files,
    ids: TaskIds,
    fsync: bool,
    /// Held as long as the daemon lives (flock(2)); the kernel gives it back however it ends.
    _lock: File,
}

impl Spool {
    /// Takes the directory for this daemon and reads what the last one left. The journal on disk is whole and short
    /// again when this returns.
    pub fn open(root: &Path, fsync: bool) -> Result<(Spool, Restored), SpoolError> {
        let failed = |what: &'static str| {
            let path = root.to_path_buf();
            move |source| SpoolError::Io { what, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(failed("create"))?;
        let lock = lock(root)?;
        check_format(root)?;
        let files = Files::open(root, fsync).map_err(failed("prepare"))?;
        let read = Journal::read(root).map_err(failed("read the journal in"))?;
        let mut restored = replay::replay(read.records, read.next);
        restored.damaged_lines = read.damaged_lines;
        replay::reconcile(&mut restored, &files).map_err(failed("look through"))?;
        let records = restored.records();
        let journal =
            Journal::rewrite(root, restored.next_task, &records, fsync).map_err(failed("write the journal in"))?;
        let ids = TaskIds(Arc::new(AtomicU64::new(restored.next_task)));
        Ok((Spool { journal, files, ids, fsync, _lock: lock }, restored))
    }

    pub fn files(&self) -> Files {
        self.files.clone()
    }

    pub fn root(&self) -> &Path {
        self.files.root()
    }

    pub fn ids(&self) -> TaskIds {
        self.ids.clone()
    }

    pub fn is_synchronous(&self) -> bool {
        self.fsync
    }

    /// Writes records in order. They survive the end of the daemon when this returns, and a power cut after a
    /// [`Spool::sync_handle`] has been synced.
    pub fn append<'a>(&mut self, records: impl Iterator<Item = &'a Record>) -> Result<(), SpoolError> {
        self.journal.append(records).map_err(|source| SpoolError::Io {
            what: "write to",
            path: self.journal.path().to_path_buf(),
            source,
        })
    }

    /// The open journal, for a thread that syncs it.
    pub fn sync_handle(&self) -> Result<File, SpoolError> {
        self.journal.handle().map_err(|source| SpoolError::Io {
            what: "open",
            path: self.journal.path().to_path_buf(),
            source,
        })
    }

    /// Whether the journal is long and mostly about tasks that are gone.
    pub fn wants_rewrite(&self) -> bool {
        self.journal.wants_rewrite()
    }

    /// Replaces the journal by one that says the same as `records`; everything in it is durable when this returns.
    pub fn rewrite(&mut self, records: &[Record]) -> Result<(), SpoolError> {
        let next = self.ids.0.load(Ordering::Relaxed);
        self.journal = Journal::rewrite(self.files.root(), next, records, self.fsync).map_err(|source| {
            SpoolError::Io { what: "rewrite the journal in", path: self.files.root().to_path_buf(), source }
        })?;
        Ok(())
    }
}

fn lock(root: &Path) -> Result<File, SpoolError> {
    let path = root.join("lock");
    let failed = |source| SpoolError::Io { what: "open", path: path.clone(), source };
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(SpoolError::InUse { path: root.to_path_buf() }),
        Err(std::fs::TryLockError::Error(source)) => Err(SpoolError::Io { what: "lock", path, source }),
    }
}

fn check_format(root: &Path) -> Result<(), SpoolError> {
    let path = root.join("format");
    match std::fs::read_to_string(&path) {
        Ok(found) if found.trim() == FORMAT => Ok(()),
        Ok(found) => Err(SpoolError::Format { path: root.to_path_buf(), found: found.trim().to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let written = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)
                .and_then(|mut file| writeln!(file, "{FORMAT}").and_then(|()| file.sync_all()));
            written.map_err(|source| SpoolError::Io { what: "write", path, source })
        }
        Err(source) => Err(SpoolError::Io { what: "read", path, source }),
    }
}
