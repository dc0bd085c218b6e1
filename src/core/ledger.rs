//! Every task the daemon knows: the live ones, and the finished ones for as long as they are kept. A task is in one of
//! the two, and never comes back from the second.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::attempts::Attempts;
use super::event::Now;
use super::ids::{PermitId, TaskId, WorkerId};
use super::task::{Outcome, Payload, Priority, Progress, ResultPlace, Stored, TaskSpec, TaskState};

/// Memory that finished tasks may hold in all, whatever the retention: the daemon stays small after any burst.
pub const FINISHED_BYTES_MAX: usize = 1024 * 1024;

/// What a finished task costs beside its texts: the structs, their map and queue entries, and malloc's headers.
const FINISHED_BYTES_EACH: usize = 512;

#[derive(Debug)]
pub struct Task {
    pub id: TaskId,
    pub spec: Arc<TaskSpec>,
    /// When it was accepted or came back to wait.
    pub waiting_since: Duration,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub phase: Phase,
    /// Attempts used up by failures.
    pub retries: u32,
    /// Attempts that ended for memory's sake.
    pub memory_deaths: u32,
    /// Those that failed.
    pub attempts: Attempts,
    /// It is not tried again before: what fails at once must not fail a thousand times a second.
    pub retry_at: Option<Duration>,
    pub preemptions: u32,
    pub has_checkpoint: bool,
    /// Memory has stopped it before: it was preempted or killed for that.
    pub was_stopped_by_memory: bool,
    /// It was, before it was started.
    pub was_parked: bool,
    /// It runs, and somebody wants it gone.
    pub is_cancelled: bool,
    /// It was said that it waits for memory.
    pub is_wait_told: bool,
    pub progress: Option<Progress>,
    /// Of the breaker its agent is bound to, while it runs.
    pub permit: Option<HeldPermit>,
}

/// A permit with the breaker it is of: the agent may be bound to another one by the time the task ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPermit {
    pub breaker: Arc<str>,
    pub permit: PermitId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accepted, or to be tried again.
    Queued,
    Running {
        worker: WorkerId,
        since: Duration,
    },
    /// Parked after a preemption.
    Preempted,
}

impl Task {
    pub fn accepted(id: TaskId, spec: Arc<TaskSpec>, now: Now) -> Task {
        Task {
            id,
            spec,
            waiting_since: now.at,
            created_ms: now.wall_ms,
            started_ms: None,
            phase: Phase::Queued,
            retries: 0,
            memory_deaths: 0,
            attempts: Attempts::default(),
            retry_at: None,
            preemptions: 0,
            has_checkpoint: false,
            was_stopped_by_memory: false,
            was_parked: false,
            is_cancelled: false,
            is_wait_told: false,
            progress: None,
            permit: None,
        }
    }

    pub fn state(&self) -> TaskState {
        match self.phase {
            Phase::Queued => TaskState::Queued,
            Phase::Running { .. } => TaskState::Running,
            Phase::Preempted => TaskState::Preempted,
        }
    }

    pub fn attempt(&self) -> u32 {
        self.retries + 1
    }

    pub fn is_skippable_beat(&self) -> bool {
        self.spec.priority == Priority::Heartbeat && self.spec.skippable
    }
}

/// What is kept of a task that ended; immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedTask {
    pub id: TaskId,
    /// Its payload is gone: only the size is left.
    pub spec: TaskSpec,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub finished_ms: u64,
    pub attempt: u32,
    pub attempts: Attempts,
    pub preemptions: u32,
    pub run_time: Option<Duration>,
    pub peak_rss_bytes: Option<u64>,
    pub worker: Option<WorkerId>,
    pub outcome: Outcome,
}

impl FinishedTask {
    /// Its result lies in the spool's file of it.
    pub fn has_result_file(&self) -> bool {
        matches!(&self.outcome, Outcome::Completed(result) if result.is_file())
    }

    fn memory(&self) -> usize {
        let texts = match &self.outcome {
            Outcome::Completed(result) => match &result.place {
                ResultPlace::Inline(bytes) => bytes.len(),
                ResultPlace::File(_) => 0,
            },
            Outcome::Failed(failure) => {
                failure.message.len()
                    + failure.stack.as_ref().map_or(0, String::len)
                    + failure.stderr_tail.as_ref().map_or(0, String::len)
            }
            Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted => 0,
        };
        // The idempotency key stands in the index of keys too.
        let key = self.spec.idempotency_key.as_ref().map_or(0, |key| key.len() + 64);
        FINISHED_BYTES_EACH + texts + self.attempts.memory() + self.spec.request_id.len() + key
    }

    fn disk(&self) -> u64 {
        match &self.outcome {
            Outcome::Completed(result) => match result.place {
                ResultPlace::Inline(_) => 0,
                ResultPlace::File(stored) => stored.bytes,
            },
            Outcome::Failed(_) | Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted => 0,
        }
    }
}

/// A task as one asks to see it, live or finished.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskView {
    pub id: TaskId,
    pub agent: Arc<str>,
    pub priority: super::task::Priority,
    pub state: TaskState,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    pub finished_ms: Option<u64>,
    pub attempt: u32,
    /// Those that failed.
    pub attempts: Attempts,
    pub max_retries: u32,
    pub preemptions: u32,
    pub progress: Option<Progress>,
    /// From 1, the next to start.
    pub queue_position: Option<usize>,
    pub request_id: Arc<str>,
    pub worker: Option<WorkerId>,
    pub payload_bytes: u64,
    pub peak_rss_bytes: Option<u64>,
    pub run_time: Option<Duration>,
    /// Shared with the ledger: a result or failure is not copied for every reader.
    pub finished: Option<Arc<FinishedTask>>,
}

#[derive(Debug)]
pub struct Retention {
    pub age: Duration,
    pub result_bytes: u64,
}

#[derive(Debug, Default)]
pub struct Ledger {
    live: BTreeMap<TaskId, Task>,
    finished: BTreeMap<TaskId, Arc<FinishedTask>>,
    /// Oldest end first.
    ended: VecDeque<(Duration, TaskId)>,
    keys: HashMap<Arc<str>, TaskId>,
    finished_memory: usize,
    finished_disk: u64,
}

impl Ledger {
    pub fn insert(&mut self, task: Task) {
        if let Some(key) = &task.spec.idempotency_key {
            self.keys.insert(key.clone(), task.id);
        }
        self.live.insert(task.id, task);
    }

    pub fn get(&self, task: TaskId) -> Option<&Task> {
        self.live.get(&task)
    }

    pub fn get_mut(&mut self, task: TaskId) -> Option<&mut Task> {
        self.live.get_mut(&task)
    }

    pub fn live(&self) -> impl DoubleEndedIterator<Item = &Task> {
        self.live.values()
    }

    pub fn finished(&self, task: TaskId) -> Option<&Arc<FinishedTask>> {
        self.finished.get(&task)
    }

    pub fn finished_all(&self) -> impl DoubleEndedIterator<Item = &Arc<FinishedTask>> {
        self.finished.values()
    }

    /// The one that ended first comes first.
    pub fn finished_in_order(&self) -> impl Iterator<Item = &Arc<FinishedTask>> {
        self.ended.iter().filter_map(|(_, task)| self.finished.get(task))
    }

    pub fn by_key(&self, key: &str) -> Option<TaskId> {
        self.keys.get(key).copied()
    }

    /// The key of a live task is anybody's again.
    pub fn release_key(&mut self, task: TaskId) {
        let Some(task) = self.live.get_mut(&task) else { return };
        let Some(key) = task.spec.idempotency_key.clone() else { return };
        Arc::make_mut(&mut task.spec).idempotency_key = None;
        if self.keys.get(&key) == Some(&task.id) {
            self.keys.remove(&key);
        }
    }

    pub fn take(&mut self, task: TaskId) -> Option<Task> {
        self.live.remove(&task)
    }

    /// The task has ended at `at`.
    pub fn finish(&mut self, at: Duration, task: Arc<FinishedTask>) {
        if let Some(key) = &task.spec.idempotency_key {
            self.keys.insert(key.clone(), task.id);
        }
        self.finished_memory += task.memory();
        self.finished_disk += task.disk();
        self.ended.push_back((at, task.id));
        self.finished.insert(task.id, task);
    }

    /// The oldest finished task that is to be forgotten now, removed. Call until `None`.
    pub fn forget_one(&mut self, now: Duration, retention: &Retention) -> Option<TaskId> {
        let (at, task) = *self.ended.front()?;
        let is_due = at + retention.age <= now
            || self.finished_memory > FINISHED_BYTES_MAX
            || self.finished_disk > retention.result_bytes;
        if !is_due {
            return None;
        }
        self.ended.pop_front();
        let finished = self.finished.remove(&task)?;
        self.finished_memory -= finished.memory();
        self.finished_disk -= finished.disk();
        if let Some(key) = &finished.spec.idempotency_key
            && self.keys.get(key) == Some(&task)
        {
            self.keys.remove(key);
        }
        Some(task)
    }

    pub fn next_forgotten(&self, retention: &Retention) -> Option<Duration> {
        self.ended.front().map(|(at, _)| *at + retention.age)
    }
}

/// The finished form of a task that has left the live ones.
pub fn finished(task: &Task, outcome: Outcome, now: Now, peak_rss_bytes: Option<u64>) -> FinishedTask {
    let (worker, run_time) = match task.phase {
        Phase::Running { worker, since } => (Some(worker), Some(now.at.saturating_sub(since))),
        Phase::Queued | Phase::Preempted => (None, None),
    };
    let mut spec = TaskSpec::clone(&task.spec);
    spec.payload = Payload::File(Stored::unchecked(spec.payload.bytes()));
    FinishedTask {
        id: task.id,
        spec,
        created_ms: task.created_ms,
        started_ms: task.started_ms,
        finished_ms: now.wall_ms,
        attempt: task.attempt(),
        attempts: task.attempts.clone(),
        preemptions: task.preemptions,
        run_time,
        peak_rss_bytes,
        worker,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::task::{Failure, FailureCode, PayloadKind, Priority};

    fn ended(id: u64, text: usize) -> Arc<FinishedTask> {
        let spec = TaskSpec {
            agent: Arc::from("a"),
            priority: Priority::Normal,
            payload: Payload::File(Stored::unchecked(3)),
            payload_kind: PayloadKind::Raw,
            timeout: Duration::from_secs(1),
            max_retries: 0,
            preemptible: true,
            skippable: false,
            idempotency_key: Some(Arc::from(format!("key-{id}"))),
            request_id: Arc::from("r"),
            schedule: None,
        };
        let task = Task::accepted(TaskId(id), Arc::new(spec), Now { at: Duration::ZERO, wall_ms: 0 });
        let failure = Failure::new(FailureCode::AgentFailed, "x".repeat(text));
        let now = Now { at: Duration::from_secs(id), wall_ms: id };
        Arc::new(finished(&task, Outcome::Failed(Box::new(failure)), now, None))
    }

    #[test]
    fn a_released_key_is_free_and_stays_so_when_its_task_ends() {
        let mut ledger = Ledger::default();
        let done = ended(1, 0);
        let key = done.spec.idempotency_key.clone().expect("it has one");
        let start = Now { at: Duration::ZERO, wall_ms: 0 };
        ledger.insert(Task::accepted(done.id, Arc::new(done.spec.clone()), start));
        assert_eq!(ledger.by_key(&key), Some(done.id));
        ledger.release_key(done.id);
        assert_eq!(ledger.by_key(&key), None);
        let task = ledger.take(done.id).expect("it lives");
        let cancelled = finished(&task, Outcome::Cancelled, Now { at: Duration::ZERO, wall_ms: 0 }, None);
        ledger.finish(Duration::ZERO, Arc::new(cancelled));
        assert_eq!(ledger.by_key(&key), None);
    }

    #[test]
    fn finished_tasks_never_hold_more_memory_than_their_bound() {
        let retention = Retention { age: Duration::from_secs(1_000_000), result_bytes: u64::MAX };
        let mut ledger = Ledger::default();
        for id in 1..2000 {
            ledger.finish(Duration::from_secs(id), ended(id, 4000));
            while ledger.forget_one(Duration::from_secs(id), &retention).is_some() {}
            assert!(ledger.finished_memory <= FINISHED_BYTES_MAX, "after {id}");
        }
        assert!(ledger.finished(TaskId(1999)).is_some(), "the newest stay");
        assert!(ledger.finished(TaskId(1)).is_none(), "the oldest go");
        assert_eq!(ledger.by_key("key-1"), None, "a key goes with its task");
        assert_eq!(ledger.by_key("key-1999"), Some(TaskId(1999)));
    }

    #[test]
    fn a_finished_task_is_forgotten_at_its_age_and_not_before() {
        let retention = Retention { age: Duration::from_secs(10), result_bytes: u64::MAX };
        let mut ledger = Ledger::default();
        ledger.finish(Duration::from_secs(1), ended(1, 0));
        assert_eq!(ledger.next_forgotten(&retention), Some(Duration::from_secs(11)));
        assert_eq!(ledger.forget_one(Duration::from_secs(10), &retention), None);
        assert_eq!(ledger.forget_one(Duration::from_secs(11), &retention), Some(TaskId(1)));
        assert_eq!(ledger.forget_one(Duration::from_secs(11), &retention), None);
    }
}
