//! Durable tasks: what was accepted, with payloads, checkpoints and results, as files an operator can look at.
//!
//! Owns the state directory: its lock, journal, files, replay and retention. May import core's types. Must never know
//! HTTP or threads.

mod advice;
mod aside;
mod damaged;
mod files;
mod format;
mod journal;
mod record;
mod replay;
mod sealed;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_damage;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::event::Record;
use crate::core::ids::TaskId;

pub use advice::advice;
pub use aside::Aside;
pub use damaged::DamageKind;
use damaged::Damaged;
pub use files::{Files, Lost};
use format::Format;
use journal::Journal;
pub use replay::Restored;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("cannot {what} {}: {source}; {}", .path.display(), advice(.source))]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is in use by another kurultaid: stop that one, or give this one its own daemon.state_dir", .path.display())]
    InUse { path: PathBuf },
    #[error(
        "{} has format {found}, and this kurultaid knows {} and older ones: run the kurultaid that wrote it, or move it away",
        .path.display(), format::CURRENT
    )]
    Format { path: PathBuf, found: u64 },
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
    /// `None`: it could not be written at the start, and is tried again.
    journal: Option<Journal>,
    files: Files,
    ids: TaskIds,
    fsync: bool,
    format: Format,
    /// Lines of the journal on the disk that cannot be used. It is kept before another one takes its place.
    damaged_lines: usize,
    /// Held as long as the daemon lives (flock(2)); the kernel gives it back however it ends.
    _lock: File,
}

impl Spool {
    /// Takes the directory for this daemon and reads what the last one left. The journal on disk is whole and short
    /// again when this returns, unless [`Restored::trouble`] says why it could not be written.
    ///
    /// # Errors
    ///
    /// Another daemon has the directory, it is of a format of the future, or it can be neither read nor made. What is
    /// damaged is none of these.
    pub fn open(root: &Path, fsync: bool) -> Result<(Spool, Restored), SpoolError> {
        let failed = |what: &'static str| {
            let path = root.to_path_buf();
            move |source| SpoolError::Io { what, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(failed("create"))?;
        let lock = lock(root)?;
        let damaged = Damaged::new(root);
        // Why first: nothing is changed in a directory of the future.
        let format = Format::check(root, &damaged)?;
        let files = Files::with(root, fsync, damaged).map_err(failed("prepare"))?;
        let (replay, mut read) = Journal::read(root, files.damaged()).map_err(failed("read the journal in"))?;
        let found = files.look_through();
        // Files of tasks come after a journal.
        if read.is_missing && !found.tasks.is_empty() {
            files.damaged().note(DamageKind::Journal, "the journal", &Lost::Missing.to_string());
            read.damaged_lines = 1;
        }
        let mut restored = replay.restored();
        restored.damaged_lines = read.damaged_lines;
        // Nor is a number given out again of which something was set aside.
        let aside = files.damaged().tasks().into_iter().map(|task| task.0.saturating_add(1)).max().unwrap_or(1);
        restored.next_task = read.next_number(restored.next_task, &found.tasks).max(aside);
        replay::reconcile(&mut restored, &files, &found)?;
        let mut spool = Spool {
            journal: None,
            ids: TaskIds(Arc::new(AtomicU64::new(restored.next_task))),
            files,
            fsync,
            format,
            damaged_lines: if read.is_to_be_kept { read.damaged_lines } else { 0 },
            _lock: lock,
        };
        restored.trouble = spool.rewrite(restored.records()).err().map(|error| error.to_string());
        Ok((spool, restored))
    }

    pub fn files(&self) -> Files {
        self.files.clone()
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
        let written = match &mut self.journal {
            Some(journal) => journal.append(records),
            None => Err(io::Error::other("it could not be written anew")),
        };
        written.map_err(|source| self.journal_error("write to", source))
    }

    /// The open journal, for a thread that syncs it; `None` while there is none.
    pub fn sync_handle(&self) -> Result<Option<File>, SpoolError> {
        let handle = self.journal.as_ref().map(Journal::handle).transpose();
        handle.map_err(|source| self.journal_error("open", source))
    }

    /// Whether the journal that is written to is the one that the next start will read.
    pub fn is_in_place(&self) -> bool {
        self.journal.as_ref().is_none_or(|journal| journal.is_at(self.files.root()))
    }

    /// Whether the journal is long and mostly about tasks that are gone.
    pub fn wants_rewrite(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::wants_rewrite)
    }

    /// Replaces the journal by one that says the same as `records`; everything in it is durable when this returns.
    pub fn rewrite(&mut self, records: impl Iterator<Item = Record>) -> Result<(), SpoolError> {
        let root = self.files.root();
        let failed = |what: &'static str| {
            let path = root.to_path_buf();
            move |source| SpoolError::Io { what, path, source }
        };
        if self.damaged_lines > 0 {
            Journal::keep(root, self.files.damaged(), self.damaged_lines)
                .map_err(failed("keep the damaged journal of"))?;
            self.damaged_lines = 0;
        }
        self.files.make_folders().map_err(failed("make the folders of"))?;
        // Why first: a daemon that knows this format reads the older ones, and not the other way round.
        self.format.write(root, self.fsync).map_err(failed("write the format of"))?;
        let next = self.ids.0.load(Ordering::Relaxed);
        let journal = Journal::rewrite(root, next, records, self.fsync).map_err(failed("rewrite the journal in"))?;
        self.journal = Some(journal);
        Ok(())
    }

    fn journal_error(&self, what: &'static str, source: io::Error) -> SpoolError {
        SpoolError::Io { what, path: self.files.root().join(journal::NAME), source }
    }
}

fn lock(root: &Path) -> Result<File, SpoolError> {
    let path = root.join("lock");
    let failed = |source| SpoolError::Io { what: "open", path: path.clone(), source };
    // A pipe of that name would be waited for.
    let options = |options: &mut OpenOptions| options.mode(0o600).custom_flags(libc::O_NONBLOCK).open(&path);
    let opened = options(OpenOptions::new().create(true).append(true));
    // Why: a file system that has become read-only, or a directory of that name, is no reason not to start.
    let opened = opened.or_else(|error| options(OpenOptions::new().read(true)).map_err(|_| error));
    // On a read-only file system it may never have been made; the directory itself serves as well.
    let is_read_only = |error: &io::Error| error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    let file = match opened {
        Err(error) if is_read_only(&error) => File::open(root),
        opened => opened,
    };
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(SpoolError::InUse { path: root.to_path_buf() }),
        Err(std::fs::TryLockError::Error(source)) => Err(SpoolError::Io { what: "lock", path, source }),
    }
}
