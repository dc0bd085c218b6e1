//! The core after a restart: what the spool remembered goes on.

use std::sync::Arc;

use super::Core;
use super::event::{Action, Record};
use super::ids::TaskId;
use super::ledger::{FinishedTask, Phase, Task};
use super::task::{Failure, FailureCode, TaskSpec};

/// A task that had not ended when the last daemon did.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfinished {
    pub id: TaskId,
    pub spec: Arc<TaskSpec>,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub retries: u32,
    pub preemptions: u32,
    pub state: UnfinishedState,
    pub has_checkpoint: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnfinishedState {
    Queued,
    /// Waiting for another attempt.
    Returned,
    Preempted,
    Running,
}

impl Core {
    /// Takes over what the last daemon left, in the order it was accepted. What waited, waits; what ran goes by its
    /// checkpoint or its retries, or has failed.
    pub fn restore(&mut self, finished: Vec<FinishedTask>, unfinished: Vec<Unfinished>) -> Vec<Action> {
        for task in finished {
            let age = self.now.wall_ms.saturating_sub(task.finished_ms);
            let ended = self.now.at.saturating_sub(std::time::Duration::from_millis(age));
            self.ledger.finish(ended, Arc::new(task));
        }
        for task in unfinished {
            self.restore_one(task);
        }
        self.pass_deadlines();
        std::mem::take(&mut self.actions)
    }

    fn restore_one(&mut self, task: Unfinished) {
        let Unfinished { id, spec, created_ms, started_ms, retries, preemptions, state, has_checkpoint } = task;
        let priority = spec.priority;
        let phase = match state {
            UnfinishedState::Preempted => Phase::Preempted,
            UnfinishedState::Running if has_checkpoint => Phase::Preempted,
            UnfinishedState::Queued | UnfinishedState::Returned | UnfinishedState::Running => Phase::Queued,
        };
        self.ledger.insert(Task {
            id,
            spec,
            created_at: self.now.at,
            created_ms,
            started_ms,
            phase,
            retries,
            preemptions,
            has_checkpoint,
            progress: None,
            permit: None,
        });
        match state {
            UnfinishedState::Queued => self.queue.push(priority, id),
            UnfinishedState::Returned | UnfinishedState::Preempted => {
                self.queue.put_back(priority, id, |other| id < other);
            }
            UnfinishedState::Running if has_checkpoint => {
                self.queue.put_back(priority, id, |other| id < other);
                self.actions.push(Action::Record(Record::Returned { task: id, retries, preemptions, preempted: true }));
            }
            UnfinishedState::Running => {
                let message = "the daemon ended while the task ran, and it had neither retries nor a checkpoint left";
                self.fail_attempt(id, Failure::new(FailureCode::WorkerCrashed, message), true, None);
            }
        }
    }
}
