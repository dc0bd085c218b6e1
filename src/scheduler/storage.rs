//! The journal's side of the scheduler: records before answers, what happens when they cannot be written, and the reserve
//! that lets what runs come to its end on a disk that is nearly full.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Scheduler;
use super::call::{Answer, Draft, StorageStatus};
use super::sync::{SyncFailed, Unneeded};
use crate::core::event::{Action, Event};
use crate::core::ids::{TaskId, WorkerId};
use crate::core::ledger::FinishedTask;
use crate::core::notice::Notice;
use crate::core::task::Outcome;
use crate::spool::{DamageKind, Files};
use crate::sys;
use crate::sys::file::Free;

/// After a failed write, the whole journal is written anew at this interval until that works; and while the reserve is
/// touched, the disk is looked at.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// Of two submissions within this time the second goes by what the first found.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A task makes a few files; a file system may have room and none left to make.
const MIN_FREE_INODES: u64 = 64;

/// How the disk of `daemon.state_dir` stands.
#[derive(Debug)]
pub(super) struct Storage {
    files: Files,
    /// The reserve, `spool.min_free_mb` in bytes; a reload changes it.
    min_free: Arc<AtomicU64>,
    looked_at: Option<Duration>,
    free_bytes: Option<u64>,
    /// Why the journal cannot be written. Nothing is appended while this is there.
    journal: Option<Trouble>,
    /// The core knows of that.
    is_core_told: bool,
    /// What is free has gone into the reserve.
    low: Option<String>,
    /// Somebody was told that submissions are refused.
    is_told: bool,
}

#[derive(Debug)]
struct Trouble {
    error: String,
    retry_at: Duration,
    /// Lines can still be added, though nobody may rest on them: the next daemon, after a kill, knows more by them.
    takes_lines: bool,
}

impl Storage {
    pub(super) fn new(files: Files) -> Storage {
        let min_free = Arc::default();
        Storage {
            files,
            min_free,
            looked_at: None,
            free_bytes: None,
            journal: None,
            is_core_told: false,
            low: None,
            is_told: false,
        }
    }

    pub(super) fn reserve(&mut self, min_free: Arc<AtomicU64>) {
        self.min_free = min_free;
    }

    pub(super) fn status(&self) -> StorageStatus {
        let error = self.error().map(str::to_string);
        StorageStatus { free_bytes: self.free_bytes, error, damaged: self.files.all_damaged() }
    }

    /// When something is to be tried again.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        let look_at = self.looked_at.filter(|_| self.low.is_some()).map(|at| at + RETRY);
        self.journal.as_ref().map(|trouble| trouble.retry_at).into_iter().chain(look_at).min()
    }

    fn error(&self) -> Option<&str> {
        self.journal.as_ref().map(|trouble| &*trouble.error).or(self.low.as_deref())
    }

    /// Whether it was time to.
    fn look(&mut self, now: Duration) -> bool {
        if self.looked_at.is_some_and(|at| now < at + LOOK_EVERY) {
            return false;
        }
        self.looked_at = Some(now);
        let root = self.files.root();
        match sys::file::free(root) {
            Ok(free) => {
                self.free_bytes = Some(free.bytes);
                self.low = self.shortage(&free);
            }
            Err(error) => {
                log::debug!("cannot tell how much of {} is free: {error}", root.display());
                self.free_bytes = None;
            }
        }
        true
    }

    /// It begins below the reserve, and ends an eighth above it, so that it does not come and go with every task.
    fn shortage(&self, free: &Free) -> Option<String> {
        let min_free = self.min_free.load(Ordering::Relaxed);
        let enough = |least: u64| if self.low.is_some() { least + least / 8 } else { least };
        let root = self.files.root().display();
        if free.bytes < enough(min_free) {
            let (free, min_free) = (free.bytes >> 20, min_free >> 20);
            return Some(format!(
                "{root} has {free} MiB free, with spool.min_free_mb = {min_free} kept for the tasks that run: make room \
                 there, or lower it"
            ));
        }
        let inodes = free.inodes.filter(|inodes| min_free > 0 && *inodes < enough(MIN_FREE_INODES))?;
        Some(format!(
            "the file system of {root} has {inodes} inodes free, with {MIN_FREE_INODES} kept for the tasks that run: \
             remove files there"
        ))
    }
}

impl<W: Send + 'static> Scheduler<W> {
    /// A task has ended: what it was given goes with its record.
    pub(super) fn clear_inputs(&mut self, task: &FinishedTask) {
        self.unneeded.push(Unneeded::Inputs(task.id));
        // An attempt before the last may have left one.
        if !matches!(task.outcome, Outcome::Completed(_)) || (task.attempt > 1 && !task.has_result_file()) {
            self.files.remove_result(task.id);
        }
    }

    pub(super) fn clear_result(&mut self, task: TaskId) {
        self.unneeded.push(Unneeded::Result(task));
    }

    /// The files that may go once all that has been written is on the disk; none while something could not be.
    pub(super) fn take_unneeded(&mut self) -> Vec<Unneeded> {
        if self.storage.journal.is_some() { Vec::new() } else { std::mem::take(&mut self.unneeded) }
    }

    pub(super) fn remove_unneeded(&mut self) {
        for unneeded in self.take_unneeded() {
            unneeded.remove(&self.files);
        }
    }

    /// Writes this turn's records with one call. Tells if there were any.
    pub(super) fn write_records(&mut self, actions: &[Action]) -> bool {
        let mut records = actions.iter().filter_map(|action| match action {
            Action::Record(record) => Some(record),
            Action::Worker(..)
            | Action::Answer(..)
            | Action::Finished(_)
            | Action::Notice(_)
            | Action::Beat(_)
            | Action::Drained => None,
        });
        let Some(first) = records.next() else { return false };
        let written = match &self.storage.journal {
            None => self.spool.append(std::iter::once(first).chain(records)),
            Some(Trouble { takes_lines: true, .. }) => self.spool.append(std::iter::once(first).chain(records)),
            // The rewrite that ends the trouble writes everything that is known then.
            Some(_) => return false,
        };
        match (&mut self.storage.journal, written) {
            (None, Ok(())) => return true,
            (None, Err(error)) => self.journal_failed(error.to_string()),
            (Some(trouble), written) => trouble.takes_lines = written.is_ok(),
        }
        false
    }

    pub(super) fn journal_failed(&mut self, error: String) {
        let takes_lines = self.storage.journal.as_ref().is_some_and(|trouble| trouble.takes_lines);
        self.storage.journal = Some(Trouble { error, retry_at: self.clock.now() + RETRY, takes_lines });
        self.storage.looked_at = None;
        self.look_at_storage();
    }

    /// Why a submission cannot be kept, if that is so. Submissions that come thick and fast cost no system call each.
    pub(super) fn storage_refusal(&mut self) -> Option<Answer> {
        self.look_at_storage();
        self.storage.error().map(|error| Answer::StorageFull { error: error.to_string(), retry_after: RETRY })
    }

    /// What has just been taken in memory and could not be written.
    pub(super) fn unwritten(&self) -> Option<Answer> {
        let trouble = self.storage.journal.as_ref()?;
        Some(Answer::StorageFull { error: trouble.error.clone(), retry_after: RETRY })
    }

    /// As [`Scheduler::unwritten`], of a task that has just been cancelled.
    pub(super) fn unwritten_cancel(&self) -> Option<Answer> {
        let trouble = self.storage.journal.as_ref()?;
        Some(Answer::CancelUnwritten { error: trouble.error.clone(), retry_after: RETRY })
    }

    /// The core starts nothing while what starts cannot be written.
    pub(super) fn tell_journal_failed(&mut self, unstarted: Vec<(WorkerId, TaskId)>) {
        if self.storage.journal.is_some() && !self.storage.is_core_told {
            self.storage.is_core_told = true;
            self.step(Event::JournalFailed { unstarted });
        }
    }

    /// As [`Scheduler::storage_refusal`], but for a submission whose key is known: nothing new has to be kept for it.
    pub(super) fn storage_refusal_of(&mut self, draft: &Draft) -> Option<Answer> {
        let is_known = draft.idempotency_key.as_ref().is_some_and(|key| self.core.knows_key(key));
        self.storage_refusal().filter(|_| !is_known)
    }

    /// Takes a new reading if the last one is old, and tells once when refusing begins and once when it ends.
    pub(super) fn look_at_storage(&mut self) {
        let has_looked = self.storage.look(self.clock.now());
        if has_looked && self.storage.journal.is_none() && !self.spool.is_in_place() {
            log::error!("the journal was removed or replaced while the daemon ran: it is written anew");
            return self.rewrite_journal();
        }
        let StorageStatus { free_bytes, error, damaged: _ } = self.storage.status();
        let damaged = DamageKind::ALL.into_iter().map(|kind| (kind.name(), self.files.found_damaged(kind)));
        self.metrics.note_storage(free_bytes, error.is_none(), damaged);
        // Before anybody is told: the board must not say otherwise.
        let is_news = error.is_some() != self.storage.is_told;
        match error {
            Some(text) if !self.storage.is_told => {
                self.storage.is_told = true;
                self.note(Notice::StorageFull { text, free_bytes });
            }
            None if self.storage.is_told => {
                self.storage.is_told = false;
                self.note(Notice::StorageCleared { free_bytes });
            }
            Some(_) | None => {}
        }
        if is_news {
            self.publish_health();
        }
    }

    pub(super) fn retry_storage(&mut self) {
        let now = self.clock.now();
        if self.storage.journal.as_ref().is_some_and(|trouble| trouble.retry_at <= now) {
            self.rewrite_journal();
        }
        if self.storage.low.is_some() {
            self.look_at_storage();
        }
    }

    pub(super) fn rewrite_journal(&mut self) {
        let rewritten = self.spool.rewrite(self.core.records()).and_then(|()| {
            if let (Some(syncer), Some(journal)) = (&self.ports.syncer, self.spool.sync_handle()?) {
                syncer.journal_replaced(journal);
            }
            Ok(())
        });
        match rewritten {
            Ok(()) => {
                if self.storage.journal.take().is_some() {
                    // What was free then is no news.
                    self.storage.looked_at = None;
                }
                self.remove_unneeded();
                self.look_at_storage();
                if std::mem::take(&mut self.storage.is_core_told) {
                    self.step(Event::JournalWorks);
                    self.perform();
                }
            }
            Err(error) => {
                self.journal_failed(error.to_string());
                self.tell_journal_failed(Vec::new());
                self.perform();
            }
        }
    }

    /// Records that nobody waits for have waited long enough.
    pub(super) fn sync_overdue(&mut self) {
        let now = self.clock.now();
        let unneeded = self.take_unneeded();
        match &mut self.ports.syncer {
            Some(syncer) if syncer.overdue_at().is_some_and(|at| at <= now) => syncer.release(Vec::new(), unneeded),
            Some(_) | None => self.unneeded.extend(unneeded),
        }
    }

    /// What has been written is on the disk when this returns, or could not be brought there twice.
    pub(super) fn settle_journal(&mut self) {
        if let Some(syncer) = &self.ports.syncer {
            syncer.flush();
        }
        while let Some(kept) = self.held.next_kept() {
            self.file_kept(kept);
        }
        if self.storage.journal.is_some() {
            // There may be room since the last attempt.
            self.rewrite_journal();
        }
        if let Some(syncer) = &self.ports.syncer {
            syncer.flush();
        }
        if let Ok(failed) = self.sync_failed_rx.try_recv() {
            self.sync_failed(failed);
        }
    }

    /// The kernel may have dropped what it could not write, and another sync of the same file would not tell (fsync(2),
    /// "Errors"; LWN "PostgreSQL's fsync() surprise"): the journal is written anew from memory. Those who were told no must
    /// not have their tasks run.
    pub(super) fn sync_failed(&mut self, failed: SyncFailed) {
        self.journal_failed(failed.error);
        if let Some(trouble) = &mut self.storage.journal {
            trouble.takes_lines = true;
        }
        // Before any of them gives way to another one that was refused.
        self.tell_journal_failed(Vec::new());
        for task in failed.refused {
            self.core.release_key(task);
            self.step(Event::CancelRequested { ticket: super::NOBODY, task });
        }
        self.perform();
        self.rewrite_journal();
    }
}
