//! The core after a restart: what the spool remembered goes on.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::attempts::Attempts;
use super::event::{Action, Record};
use super::ids::{AgentName, TaskId};
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
    pub memory_deaths: u32,
    pub attempts: Attempts,
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

impl Unfinished {
    /// The records that lead to this state.
    pub fn records(&self) -> Vec<Record> {
        let (task, retries, memory_deaths, preemptions) = (self.id, self.retries, self.memory_deaths, self.preemptions);
        let mut records = vec![Record::Accepted { task, spec: self.spec.clone(), created_ms: self.created_ms }];
        records.extend(self.started_ms.map(|started_ms| Record::Started { task, started_ms }));
        let attempts = &self.attempts;
        let returned = |preempted| {
            let attempts = attempts.clone();
            Record::Returned { task, retries, memory_deaths, preemptions, preempted, attempts }
        };
        match self.state {
            UnfinishedState::Queued => {}
            UnfinishedState::Returned => records.push(returned(false)),
            UnfinishedState::Preempted => records.push(returned(true)),
            UnfinishedState::Running => {
                records.push(returned(false));
                records.extend(self.started_ms.map(|started_ms| Record::Started { task, started_ms }));
            }
        }
        records
    }
}

impl Core {
    /// The shortest list of records that says how everything stands.
    pub fn records(&self) -> Vec<Record> {
        let finished = self.ledger.finished_in_order().map(|task| Record::Finished(task.clone()));
        let footprints =
            self.footprints.iter().map(|(agent, peak_bytes)| Record::Footprint { agent: agent.clone(), peak_bytes });
        finished.chain(footprints).chain(self.ledger.live().flat_map(|task| self.unfinished(task).records())).collect()
    }

    fn unfinished(&self, task: &Task) -> Unfinished {
        let state = match task.phase {
            Phase::Running { .. } => UnfinishedState::Running,
            Phase::Preempted => UnfinishedState::Preempted,
            Phase::Queued if task.retries > 0 => UnfinishedState::Returned,
            Phase::Queued => UnfinishedState::Queued,
        };
        Unfinished {
            id: task.id,
            spec: task.spec.clone(),
            created_ms: task.created_ms,
            started_ms: task.started_ms,
            retries: task.retries,
            memory_deaths: task.memory_deaths,
            attempts: task.attempts.clone(),
            preemptions: task.preemptions,
            state,
            has_checkpoint: task.has_checkpoint,
        }
    }

    /// Takes over what the last daemon left, in the order it was accepted. What waited, waits; what ran goes by its
    /// checkpoint or its retries, or has failed.
    /// Nothing starts yet: the first event after it, such as a reading of the memory, starts what may.
    pub fn restore(&mut self, mut finished: Vec<FinishedTask>, unfinished: Vec<Unfinished>) -> Vec<Action> {
        // The ledger wants them in the order they ended.
        finished.sort_by_key(|task| task.finished_ms);
        for task in finished {
            let age = Duration::from_millis(self.now.wall_ms.saturating_sub(task.finished_ms));
            // Why: the monotonic clock does not reach back before this start, or every restart would keep them longer.
            if age >= self.settings.retention.age {
                self.actions.push(Action::Record(Record::Forgotten { task: task.id }));
            } else {
                self.ledger.finish(self.now.at.saturating_sub(age), Arc::new(task));
            }
        }
        for task in unfinished {
            self.restore_one(task);
        }
        self.pass_deadlines();
        std::mem::take(&mut self.actions)
    }

    /// What tasks of each agent were seen to need at most.
    pub fn restore_footprints(&mut self, footprints: Vec<(AgentName, u64)>) {
        for (agent, peak) in footprints {
            if self.settings.agents.contains_key(&agent) {
                self.footprints.restore(agent, peak);
            }
        }
    }

    fn restore_one(&mut self, task: Unfinished) {
        let Unfinished { id, spec, created_ms, started_ms, retries, memory_deaths, preemptions, .. } = task;
        let Unfinished { attempts, state, has_checkpoint, .. } = task;
        let (priority, max_retries) = (spec.priority, spec.max_retries);
        let phase = match state {
            UnfinishedState::Preempted => Phase::Preempted,
            UnfinishedState::Running if has_checkpoint => Phase::Preempted,
            UnfinishedState::Queued | UnfinishedState::Returned | UnfinishedState::Running => Phase::Queued,
        };
        self.ledger.insert(Task {
            id,
            spec,
            waiting_since: self.now.at,
            created_ms,
            started_ms,
            phase,
            retries,
            memory_deaths,
            was_stopped_by_memory: memory_deaths > 0,
            attempts: attempts.clone(),
            retry_at: None,
            preemptions,
            has_checkpoint,
            is_wait_told: false,
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
                self.actions.push(Action::Record(Record::Returned {
                    task: id,
                    retries,
                    memory_deaths,
                    preemptions,
                    preempted: true,
                    attempts,
                }));
            }
            UnfinishedState::Running => {
                let message = if retries < max_retries {
                    "the daemon ended while the task ran"
                } else {
                    "the daemon ended while the task ran, and it had neither retries nor a checkpoint left"
                };
                self.fail_attempt(id, Failure::new(FailureCode::WorkerCrashed, message), true, None);
                if let Some(task) = self.ledger.get_mut(id) {
                    // The restart was its pause.
                    task.retry_at = None;
                }
            }
        }
    }
}
