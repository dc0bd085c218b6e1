//! The journal's side of the scheduler: records before answers, and what happens when they cannot be written.

use std::time::Duration;

use super::Scheduler;
use crate::core::event::{Action, Record};
use crate::core::ids::TaskId;
use crate::core::ledger::FinishedTask;
use crate::core::limits;
use crate::core::task::{Outcome, ResultPlace};

/// After a failed write, the whole journal is written anew at this interval until that works.
pub(super) const RETRY: Duration = Duration::from_secs(2);

pub(super) struct Trouble {
    pub error: String,
    pub retry_at: Duration,
}

impl<W: Send + 'static> Scheduler<W> {
    pub(super) fn clear_inputs(&self, task: &FinishedTask) {
        if task.spec.payload.bytes() > limits::INLINE_PAYLOAD_MAX as u64 || task.preemptions > 0 {
            self.files.remove_inputs(task.id);
        } else {
            self.files.remove_checkpoint(task.id);
        }
        if !matches!(task.outcome, Outcome::Completed(_)) {
            self.files.remove_result(task.id);
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
        if self.storage.is_some() {
            // The rewrite that ends the trouble writes everything that is known then.
            return false;
        }
        if let Err(error) = self.spool.append(std::iter::once(first).chain(records)) {
            self.storage_failed(error.to_string());
        }
        true
    }

    pub(super) fn storage_failed(&mut self, error: String) {
        log::error!("{error}; new tasks are refused until the journal can be written again");
        self.storage = Some(Trouble { error, retry_at: self.clock.now() + RETRY });
    }

    pub(super) fn retry_storage(&mut self) {
        if self.storage.as_ref().is_some_and(|trouble| trouble.retry_at <= self.clock.now()) {
            self.rewrite_journal();
        }
    }

    pub(super) fn rewrite_journal(&mut self) {
        let records = self.core.records();
        let rewritten = self.spool.rewrite(&records).and_then(|()| match &self.ports.syncer {
            Some(syncer) => self.spool.sync_handle().map(|file| syncer.journal_replaced(file)),
            None => Ok(()),
        });
        match rewritten {
            Ok(()) => {
                if self.storage.take().is_some() {
                    log::info!("the journal can be written again; new tasks are taken");
                }
            }
            Err(error) => self.storage_failed(error.to_string()),
        }
    }
}

/// The tasks of this turn that have ended with a result in a file of its own.
pub(super) fn result_files(actions: &[Action]) -> Vec<TaskId> {
    let in_file = |task: &FinishedTask| match &task.outcome {
        Outcome::Completed(result) => matches!(result.place, ResultPlace::File { .. }),
        Outcome::Failed(_) | Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted => false,
    };
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Record(Record::Finished(task)) if in_file(task) => Some(task.id),
            Action::Record(_)
            | Action::Worker(..)
            | Action::Answer(..)
            | Action::Finished(_)
            | Action::Notice(_)
            | Action::Beat(_)
            | Action::Drained => None,
        })
        .collect()
}
