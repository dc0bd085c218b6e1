//! What the daemon says it did: one variant an event of the log, with the figures that led to it. The same notice becomes
//! a log line, a metric, a line of `/v1/events` and an entry of `/v1/decisions`.

mod fields;
mod sentence;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::BreakerState;
use super::governor::Level;
use super::ids::{IncidentId, TaskId, WorkerId};
use super::task::{FailureCode, Priority};

#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    TaskAccepted {
        task: TaskId,
        agent: Arc<str>,
        priority: Priority,
        request: Arc<str>,
        waiting: usize,
    },
    TaskRejected {
        agent: Arc<str>,
        code: &'static str,
        text: String,
        request: Arc<str>,
    },
    TaskStarted {
        task: TaskId,
        worker: WorkerId,
        agent: Arc<str>,
        attempt: u32,
        waited: Duration,
        request: Arc<str>,
    },
    TaskProgress {
        task: TaskId,
        percent: f64,
        message: Option<Box<str>>,
    },
    TaskCompleted {
        task: TaskId,
        worker: Option<WorkerId>,
        agent: Arc<str>,
        run_time: Duration,
        result_bytes: u64,
        request: Arc<str>,
    },
    TaskFailed {
        task: TaskId,
        worker: Option<WorkerId>,
        agent: Arc<str>,
        code: FailureCode,
        text: String,
        run_time: Option<Duration>,
        request: Arc<str>,
    },
    TaskRetried {
        task: TaskId,
        agent: Arc<str>,
        code: FailureCode,
        text: String,
        retries: u32,
        max_retries: u32,
        request: Arc<str>,
    },
    TaskCancelled {
        task: TaskId,
        agent: Arc<str>,
        request: Arc<str>,
    },
    TaskPreempted {
        task: TaskId,
        worker: WorkerId,
        agent: Arc<str>,
        has_checkpoint: bool,
        preemptions: u32,
        request: Arc<str>,
        incident: Option<IncidentId>,
    },
    TaskEvicted {
        task: TaskId,
        agent: Arc<str>,
        made_room_for: TaskId,
        request: Arc<str>,
    },
    TaskKilled {
        task: TaskId,
        worker: WorkerId,
        agent: Arc<str>,
        code: FailureCode,
        text: String,
        request: Arc<str>,
        incident: Option<IncidentId>,
    },
    HeartbeatSkipped {
        schedule: Option<Arc<str>>,
        task: Option<TaskId>,
        agent: Arc<str>,
        text: &'static str,
        incident: Option<IncidentId>,
    },
    WorkerSpawned {
        worker: WorkerId,
        agent: Arc<str>,
        pid: u32,
    },
    WorkerExited {
        worker: WorkerId,
        agent: Arc<str>,
        reason: ExitReason,
        status: Option<i32>,
        signal: Option<i32>,
        text: String,
    },
    WorkerKilled {
        worker: WorkerId,
        agent: Arc<str>,
        text: String,
    },
    AgentUnavailable {
        agent: Arc<str>,
        failures: usize,
        retry_after: Duration,
    },
    Circuit {
        breaker: Arc<str>,
        to: BreakerState,
        openings: usize,
        retry_after: Option<Duration>,
    },
    WorkerSoftLimit {
        worker: WorkerId,
        agent: Arc<str>,
        rss_bytes: u64,
        soft_limit_bytes: u64,
        incident: Option<IncidentId>,
    },
    /// It could start, but does not fit.
    TaskWaiting {
        task: TaskId,
        agent: Arc<str>,
        text: String,
        incident: Option<IncidentId>,
    },
    MemoryAction {
        action: &'static str,
        task: Option<TaskId>,
        worker: Option<WorkerId>,
        text: String,
        incident: Option<IncidentId>,
    },
    /// Submissions are refused for want of disk.
    StorageFull {
        text: String,
        free_bytes: Option<u64>,
    },
    /// They are taken again.
    StorageCleared {
        free_bytes: Option<u64>,
    },
    ConfigReloaded {
        changed: String,
        needs_restart: String,
    },
    ConfigRejected {
        text: String,
    },
    MemoryLevel {
        from: Level,
        to: Level,
        pressure: f64,
        usage_bytes: u64,
        limit_bytes: u64,
        incident: IncidentId,
    },
}

/// Why a worker is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExitReason {
    /// It did its task, or was idle or asked to stop, and ended as it should.
    Finished,
    /// It exited or was signalled by itself.
    Crashed,
    /// A rule of the daemon killed it.
    Killed,
    Protocol,
    /// Over its own memory limit, or killed by the kernel for memory's sake.
    OutOfMemory,
    SpawnFailed,
}

impl ExitReason {
    pub const ALL: [ExitReason; 6] = [
        ExitReason::Finished,
        ExitReason::Crashed,
        ExitReason::Killed,
        ExitReason::Protocol,
        ExitReason::OutOfMemory,
        ExitReason::SpawnFailed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ExitReason::Finished => "finished",
            ExitReason::Crashed => "crashed",
            ExitReason::Killed => "killed",
            ExitReason::Protocol => "protocol",
            ExitReason::OutOfMemory => "oom",
            ExitReason::SpawnFailed => "spawn_failed",
        }
    }
}

/// How much somebody who watches the log wants to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Debug,
    Info,
    Warning,
    Error,
}

/// One value of a notice.
#[derive(Clone, Copy)]
pub enum Field<'a> {
    Text(&'a str),
    Id(&'a dyn fmt::Display),
    Count(u64),
    Number(f64),
    Flag(bool),
}

impl Notice {
    /// The event names that stand in kurultaid(8).
    pub const NAMES: [&'static str; 31] = [
        "TASK_ACCEPTED",
        "TASK_REJECTED",
        "TASK_WAITING",
        "TASK_STARTED",
        "TASK_PROGRESS",
        "TASK_COMPLETED",
        "TASK_FAILED",
        "TASK_RETRIED",
        "TASK_CANCELLED",
        "TASK_PREEMPTED",
        "TASK_EVICTED",
        "TASK_KILLED",
        "HEARTBEAT_SKIPPED",
        "WORKER_SPAWNED",
        "WORKER_EXITED",
        "WORKER_KILLED",
        "WORKER_SOFT_LIMIT",
        "AGENT_UNAVAILABLE",
        "CIRCUIT_OPEN",
        "CIRCUIT_HALF_OPEN",
        "CIRCUIT_CLOSED",
        "MEMORY_WARNING",
        "MEMORY_CRITICAL",
        "MEMORY_REJECT",
        "MEMORY_EMERGENCY",
        "MEMORY_CLEARED",
        "MEMORY_ACTION",
        "STORAGE_FULL",
        "STORAGE_CLEARED",
        "CONFIG_RELOADED",
        "CONFIG_REJECTED",
    ];

    pub fn name(&self) -> &'static str {
        match self {
            Notice::TaskAccepted { .. } => "TASK_ACCEPTED",
            Notice::TaskRejected { .. } => "TASK_REJECTED",
            Notice::TaskWaiting { .. } => "TASK_WAITING",
            Notice::TaskStarted { .. } => "TASK_STARTED",
            Notice::TaskProgress { .. } => "TASK_PROGRESS",
            Notice::TaskCompleted { .. } => "TASK_COMPLETED",
            Notice::TaskFailed { .. } => "TASK_FAILED",
            Notice::TaskRetried { .. } => "TASK_RETRIED",
            Notice::TaskCancelled { .. } => "TASK_CANCELLED",
            Notice::TaskPreempted { .. } => "TASK_PREEMPTED",
            Notice::TaskEvicted { .. } => "TASK_EVICTED",
            Notice::TaskKilled { .. } => "TASK_KILLED",
            Notice::HeartbeatSkipped { .. } => "HEARTBEAT_SKIPPED",
            Notice::WorkerSpawned { .. } => "WORKER_SPAWNED",
            Notice::WorkerExited { .. } => "WORKER_EXITED",
            Notice::WorkerKilled { .. } => "WORKER_KILLED",
            Notice::AgentUnavailable { .. } => "AGENT_UNAVAILABLE",
            Notice::Circuit { to: BreakerState::Open, .. } => "CIRCUIT_OPEN",
            Notice::Circuit { to: BreakerState::HalfOpen, .. } => "CIRCUIT_HALF_OPEN",
            Notice::Circuit { to: BreakerState::Closed, .. } => "CIRCUIT_CLOSED",
            Notice::WorkerSoftLimit { .. } => "WORKER_SOFT_LIMIT",
            Notice::MemoryAction { .. } => "MEMORY_ACTION",
            Notice::StorageFull { .. } => "STORAGE_FULL",
            Notice::StorageCleared { .. } => "STORAGE_CLEARED",
            Notice::ConfigReloaded { .. } => "CONFIG_RELOADED",
            Notice::ConfigRejected { .. } => "CONFIG_REJECTED",
            Notice::MemoryLevel { from, to, .. } if to < from => "MEMORY_CLEARED",
            Notice::MemoryLevel { to, .. } => match to {
                Level::Normal => "MEMORY_CLEARED",
                Level::Warning => "MEMORY_WARNING",
                Level::Critical => "MEMORY_CRITICAL",
                Level::Reject => "MEMORY_REJECT",
                Level::Emergency => "MEMORY_EMERGENCY",
            },
        }
    }

    pub fn severity(&self) -> Severity {
        match self {
            Notice::TaskProgress { .. } => Severity::Debug,
            Notice::TaskAccepted { .. }
            | Notice::TaskWaiting { .. }
            | Notice::TaskStarted { .. }
            | Notice::TaskCompleted { .. }
            | Notice::TaskCancelled { .. }
            | Notice::HeartbeatSkipped { .. }
            | Notice::WorkerSpawned { .. }
            | Notice::Circuit { to: BreakerState::Closed | BreakerState::HalfOpen, .. } => Severity::Info,
            Notice::WorkerExited { reason: ExitReason::Finished, .. } => Severity::Info,
            Notice::MemoryLevel { from, to, .. } if to < from => Severity::Info,
            Notice::TaskRejected { .. }
            | Notice::TaskRetried { .. }
            | Notice::TaskFailed { .. }
            | Notice::TaskPreempted { .. }
            | Notice::TaskEvicted { .. }
            | Notice::TaskKilled { .. }
            | Notice::WorkerExited { .. }
            | Notice::WorkerKilled { .. }
            | Notice::WorkerSoftLimit { .. }
            | Notice::MemoryAction { .. }
            | Notice::Circuit { to: BreakerState::Open, .. }
            | Notice::MemoryLevel { .. } => Severity::Warning,
            Notice::ConfigReloaded { .. } | Notice::StorageCleared { .. } => Severity::Info,
            Notice::AgentUnavailable { .. } | Notice::StorageFull { .. } | Notice::ConfigRejected { .. } => {
                Severity::Error
            }
        }
    }

    pub fn task(&self) -> Option<TaskId> {
        match self {
            Notice::TaskAccepted { task, .. }
            | Notice::TaskWaiting { task, .. }
            | Notice::TaskStarted { task, .. }
            | Notice::TaskProgress { task, .. }
            | Notice::TaskCompleted { task, .. }
            | Notice::TaskFailed { task, .. }
            | Notice::TaskRetried { task, .. }
            | Notice::TaskCancelled { task, .. }
            | Notice::TaskPreempted { task, .. }
            | Notice::TaskEvicted { task, .. }
            | Notice::TaskKilled { task, .. } => Some(*task),
            Notice::HeartbeatSkipped { task, .. } | Notice::MemoryAction { task, .. } => *task,
            Notice::TaskRejected { .. }
            | Notice::WorkerSpawned { .. }
            | Notice::WorkerExited { .. }
            | Notice::WorkerKilled { .. }
            | Notice::AgentUnavailable { .. }
            | Notice::Circuit { .. }
            | Notice::WorkerSoftLimit { .. }
            | Notice::StorageFull { .. }
            | Notice::StorageCleared { .. }
            | Notice::ConfigReloaded { .. }
            | Notice::ConfigRejected { .. }
            | Notice::MemoryLevel { .. } => None,
        }
    }

    /// Whether it is a decision that `/v1/decisions` explains, rather than a step of ordinary work.
    pub fn is_decision(&self) -> bool {
        match self {
            Notice::TaskProgress { .. } | Notice::TaskCompleted { .. } | Notice::WorkerSpawned { .. } => false,
            Notice::TaskAccepted { .. }
            | Notice::TaskRejected { .. }
            | Notice::TaskWaiting { .. }
            | Notice::TaskStarted { .. }
            | Notice::TaskFailed { .. }
            | Notice::TaskRetried { .. }
            | Notice::TaskCancelled { .. }
            | Notice::TaskPreempted { .. }
            | Notice::TaskEvicted { .. }
            | Notice::TaskKilled { .. }
            | Notice::HeartbeatSkipped { .. }
            | Notice::WorkerExited { .. }
            | Notice::WorkerKilled { .. }
            | Notice::AgentUnavailable { .. }
            | Notice::Circuit { .. }
            | Notice::WorkerSoftLimit { .. }
            | Notice::MemoryAction { .. }
            | Notice::StorageFull { .. }
            | Notice::StorageCleared { .. }
            | Notice::ConfigReloaded { .. }
            | Notice::ConfigRejected { .. }
            | Notice::MemoryLevel { .. } => true,
        }
    }
}
