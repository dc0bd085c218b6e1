//! The core after a restart: what the spool remembered goes on.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::attempts::Attempts;
use super::breaker::{BreakerMemory, RememberedPhase};
use super::event::{Action, Now, Record};
use super::ids::{AgentName, TaskId};
use super::ledger::{FinishedTask, Phase, Task};
use super::task::{Failure, FailureCode, Outcome, TaskSpec};

/// A task that had not ended when the last daemon did.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfinished {
    pub id: TaskId,
    pub spec: Arc<TaskSpec>,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub retries: u32,
    pub memory_deaths: u32,
    /// Memory has stopped it at least once.
    pub by_memory: bool,
    pub attempts: Attempts,
    pub preemptions: u32,
    pub state: UnfinishedState,
    pub is_cancelled: bool,
    pub has_checkpoint: bool,
    /// Why its payload is not to be had, for the one who submitted it.
    pub lost: Option<Box<str>>,
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
    pub fn accepted(id: TaskId, spec: Arc<TaskSpec>, created_ms: u64) -> Unfinished {
        Unfinished {
            id,
            spec,
            created_ms,
            started_ms: None,
            retries: 0,
            memory_deaths: 0,
            by_memory: false,
            attempts: Attempts::default(),
            preemptions: 0,
            state: UnfinishedState::Queued,
            is_cancelled: false,
            has_checkpoint: false,
            lost: None,
        }
    }

    /// The records that lead to this state.
    pub fn records(&self) -> Vec<Record> {
        let (task, retries, memory_deaths, preemptions) = (self.id, self.retries, self.memory_deaths, self.preemptions);
        let mut records = vec![Record::Accepted { task, spec: self.spec.clone(), created_ms: self.created_ms }];
        records.extend(self.started_ms.map(|started_ms| Record::Started { task, started_ms }));
        let (attempts, by_memory) = (&self.attempts, self.by_memory);
        let returned = |preempted| {
            let attempts = attempts.clone();
            Record::Returned { task, retries, memory_deaths, by_memory, preemptions, preempted, attempts }
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
        records.extend(self.is_cancelled.then_some(Record::CancelRequested { task }));
        records
    }
}

impl Unfinished {
    /// As it goes on after a restart.
    fn task(&self, now: Now) -> Task {
        let phase = match self.state {
            UnfinishedState::Preempted => Phase::Preempted,
            UnfinishedState::Running if self.has_checkpoint => Phase::Preempted,
            UnfinishedState::Queued | UnfinishedState::Returned | UnfinishedState::Running => Phase::Queued,
        };
        Task {
            started_ms: self.started_ms,
            phase,
            retries: self.retries,
            memory_deaths: self.memory_deaths,
            was_stopped_by_memory: self.by_memory || self.memory_deaths > 0,
            attempts: self.attempts.clone(),
            preemptions: self.preemptions,
            has_checkpoint: self.has_checkpoint,
            ..Task::accepted(self.id, self.spec.clone(), Now { wall_ms: self.created_ms, ..now })
        }
    }
}

impl Core {
    /// The shortest list of records that says how everything stands.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let finished = self.ledger.finished_in_order().map(|task| Record::Finished(task.clone()));
        let footprints =
            self.footprints.iter().map(|(agent, peak_bytes)| Record::Footprint { agent: agent.clone(), peak_bytes });
        let breakers = self.breakers.iter().map(|(name, breaker)| (name, breaker.memory(self.now)));
        let breakers = breakers
            .filter(|(_, memory)| memory.phase != RememberedPhase::Closed)
            .map(|(name, memory)| Record::Breaker { name: name.clone(), memory });
        finished
            .chain(footprints)
            .chain(breakers)
            .chain(self.ledger.live().flat_map(|task| self.unfinished(task).records()))
    }

    fn unfinished(&self, task: &Task) -> Unfinished {
        let state = match task.phase {
            Phase::Running { .. } => UnfinishedState::Running,
            Phase::Preempted => UnfinishedState::Preempted,
            // It has been started, and came back.
            Phase::Queued if task.started_ms.is_some() || task.retries > 0 => UnfinishedState::Returned,
            Phase::Queued => UnfinishedState::Queued,
        };
        Unfinished {
            id: task.id,
            spec: task.spec.clone(),
            created_ms: task.created_ms,
            started_ms: task.started_ms,
            retries: task.retries,
            memory_deaths: task.memory_deaths,
            by_memory: task.was_stopped_by_memory,
            attempts: task.attempts.clone(),
            preemptions: task.preemptions,
            state,
            is_cancelled: task.is_cancelled,
            has_checkpoint: task.has_checkpoint,
            lost: None,
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

    /// How the breakers stood; of those that are still configured.
    pub fn restore_breakers(&mut self, breakers: Vec<(Arc<str>, BreakerMemory)>) {
        for (name, memory) in breakers {
            match self.breakers.get_mut(&name) {
                Some(breaker) => breaker.restore(memory, self.now),
                None => self.forget_breaker(name),
            }
        }
    }

    fn restore_one(&mut self, left: Unfinished) {
        let task = left.task(self.now);
        let (id, priority, max_retries) = (task.id, task.spec.priority, task.spec.max_retries);
        let (retries, has_checkpoint) = (task.retries, task.has_checkpoint);
        self.ledger.insert(task);
        if left.is_cancelled {
            return self.finish(id, Outcome::Cancelled, None);
        }
        if let Some(why) = left.lost {
            let message = format!("its payload is lost, {why}: submit the task again");
            return self.fail_attempt(id, Failure::new(FailureCode::SpawnFailed, message), false, None);
        }
        match left.state {
            UnfinishedState::Queued => self.queue.push(priority, id),
            UnfinishedState::Returned | UnfinishedState::Preempted => {
                self.queue.put_back(priority, id, |other| id < other);
            }
            UnfinishedState::Running if has_checkpoint => self.put_back(id),
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
