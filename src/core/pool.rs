//! The worker processes, as the core knows them: a number, an agent, a state. Every process counts until it has been
//! reaped, whatever it is doing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ids::{TaskId, WorkerId};
use super::notice::ExitReason;
use super::order::{CancelReason, HeapReading};
use super::settings::AgentSettings;
use super::task::Failure;

#[derive(Debug)]
pub struct Worker {
    /// As configured when it was started.
    pub agent: Arc<AgentSettings>,
    pub state: WorkerState,
    pub pid: Option<u32>,
    pub started_ms: u64,
    pub tasks_done: u64,
    pub can_checkpoint: bool,
    /// Ends after its present task.
    pub retiring: bool,
    pub heap: Option<HeapReading>,
    /// Of its whole tree, at the last reading.
    pub rss_bytes: Option<u64>,
    /// The most of it since its last task ended.
    pub peak_rss_bytes: u64,
    /// It was said; stays until it is well below again.
    pub is_over_soft_limit: bool,
}

#[derive(Debug)]
pub enum WorkerState {
    /// Spawned, has not said READY.
    Starting {
        deadline: Duration,
    },
    Idle {
        since: Duration,
    },
    Busy {
        task: TaskId,
        deadline: Duration,
        stage: Stage,
    },
    /// Asked to end by itself.
    Stopping {
        deadline: Duration,
    },
    /// Killed, not reaped yet.
    Dying {
        task: Option<TaskId>,
        verdict: Verdict,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Working,
    Cancelling { reason: CancelReason, kill_at: Duration },
    Preempting { kill_at: Duration },
}

/// What becomes of the task of a worker that was killed.
#[derive(Debug)]
pub enum Verdict {
    /// There was none, or it no longer matters.
    NoTask {
        reason: ExitReason,
    },
    Cancelled,
    /// It failed; `failure` is completed with how the process ended.
    Failed {
        failure: Box<Failure>,
        retryable: bool,
        reason: ExitReason,
    },
    /// The daemon is stopping: the spool still says it runs, and the next start decides.
    LeftToNextStart,
}

impl Worker {
    pub fn task(&self) -> Option<TaskId> {
        match &self.state {
            WorkerState::Busy { task, .. } => Some(*task),
            WorkerState::Dying { task, .. } => *task,
            WorkerState::Starting { .. } | WorkerState::Idle { .. } | WorkerState::Stopping { .. } => None,
        }
    }

    pub fn is_busy(&self) -> bool {
        matches!(self.state, WorkerState::Busy { .. })
    }

    /// At its task, and not asked to stop.
    pub fn is_working(&self) -> bool {
        matches!(self.state, WorkerState::Busy { stage: Stage::Working, .. })
    }

    pub fn is_dying(&self) -> bool {
        matches!(self.state, WorkerState::Dying { .. })
    }

    /// Over its soft limit at the last reading.
    pub fn is_fat(&self) -> bool {
        self.rss_bytes.is_some_and(|rss| rss > self.agent.soft_limit_bytes)
    }

    /// The most it held since the last call.
    pub fn take_peak(&mut self) -> u64 {
        std::mem::replace(&mut self.peak_rss_bytes, self.rss_bytes.unwrap_or(0))
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, WorkerState::Idle { .. })
    }

    pub fn is_starting(&self) -> bool {
        matches!(self.state, WorkerState::Starting { .. })
    }

    pub fn is_ending(&self) -> bool {
        matches!(self.state, WorkerState::Stopping { .. } | WorkerState::Dying { .. })
    }

    /// When something has to be done about it; `None`: its next step is its own.
    pub fn deadline(&self, idle_timeout: Duration) -> Option<Duration> {
        match &self.state {
            WorkerState::Starting { deadline } | WorkerState::Stopping { deadline } => Some(*deadline),
            WorkerState::Idle { since } => Some(*since + idle_timeout),
            WorkerState::Busy { deadline, stage, .. } => Some(match stage {
                Stage::Working => *deadline,
                Stage::Cancelling { kill_at, .. } | Stage::Preempting { kill_at } => *kill_at,
            }),
            WorkerState::Dying { .. } => None,
        }
    }

    pub fn state_name(&self) -> &'static str {
        match self.state {
            WorkerState::Starting { .. } => "starting",
            WorkerState::Idle { .. } => "idle",
            WorkerState::Busy { .. } => "busy",
            WorkerState::Stopping { .. } | WorkerState::Dying { .. } => "stopping",
        }
    }
}

#[derive(Debug, Default)]
pub struct Pool {
    workers: BTreeMap<WorkerId, Worker>,
    last_id: u64,
}

impl Pool {
    pub fn add(&mut self, worker: Worker) -> WorkerId {
        self.last_id += 1;
        let id = WorkerId(self.last_id);
        self.workers.insert(id, worker);
        id
    }

    /// The id the next [`Pool::add`] gives.
    pub fn next_id(&self) -> WorkerId {
        WorkerId(self.last_id + 1)
    }

    pub fn remove(&mut self, worker: WorkerId) -> Option<Worker> {
        self.workers.remove(&worker)
    }

    pub fn put_back(&mut self, id: WorkerId, worker: Worker) {
        self.workers.insert(id, worker);
    }

    pub fn get(&self, worker: WorkerId) -> Option<&Worker> {
        self.workers.get(&worker)
    }

    pub fn get_mut(&mut self, worker: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(&worker)
    }

    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(id, worker)| (*id, worker))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (WorkerId, &mut Worker)> {
        self.workers.iter_mut().map(|(id, worker)| (*id, worker))
    }

    /// Every process that has not been reaped.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    pub fn count(&self, matches: impl Fn(&Worker) -> bool) -> usize {
        self.workers.values().filter(|worker| matches(worker)).count()
    }

    pub fn idle(&self) -> usize {
        self.count(Worker::is_idle)
    }

    /// The idle worker of this agent, as it is configured now, that worked last: its memory is warm, and the others
    /// come nearer to their idle timeout.
    pub fn warmest_idle(&self, agent: &Arc<AgentSettings>) -> Option<WorkerId> {
        self.idle_workers()
            .filter(|(_, worker, _)| Arc::ptr_eq(&worker.agent, agent))
            .max_by_key(|(id, _, since)| (*since, *id))
            .map(|(id, ..)| id)
    }

    /// The idle worker, of any agent, that has been idle longest, but for one that is wanted.
    pub fn coldest_idle(&self, wanted: Option<WorkerId>) -> Option<WorkerId> {
        let others = self.idle_workers().filter(|(id, ..)| Some(*id) != wanted);
        others.min_by_key(|(id, _, since)| (*since, *id)).map(|(id, ..)| id)
    }

    fn idle_workers(&self) -> impl Iterator<Item = (WorkerId, &Worker, Duration)> {
        self.iter().filter_map(|(id, worker)| match worker.state {
            WorkerState::Idle { since } => Some((id, worker, since)),
            WorkerState::Starting { .. }
            | WorkerState::Busy { .. }
            | WorkerState::Stopping { .. }
            | WorkerState::Dying { .. } => None,
        })
    }
}
