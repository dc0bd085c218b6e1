//! What the daemon says it did: one variant an event of the log, with the figures that led to it. The same notice becomes
//! a log line, a metric, a line of `/v1/events` and an entry of `/v1/decisions`.

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
        worker: WorkerId,
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
    SpawnFailed,
}

impl ExitReason {
    pub const ALL: [ExitReason; 5] =
        [ExitReason::Finished, ExitReason::Crashed, ExitReason::Killed, ExitReason::Protocol, ExitReason::SpawnFailed];

    pub fn name(self) -> &'static str {
        match self {
            ExitReason::Finished => "finished",
            ExitReason::Crashed => "crashed",
            ExitReason::Killed => "killed",
            ExitReason::Protocol => "protocol",
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
    pub const NAMES: [&'static str; 26] = [
        "TASK_ACCEPTED",
        "TASK_REJECTED",
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
        "AGENT_UNAVAILABLE",
        "CIRCUIT_OPEN",
        "CIRCUIT_HALF_OPEN",
        "CIRCUIT_CLOSED",
        "MEMORY_WARNING",
        "MEMORY_CRITICAL",
        "MEMORY_REJECT",
        "MEMORY_EMERGENCY",
        "MEMORY_CLEARED",
        "CONFIG_RELOADED",
        "CONFIG_REJECTED",
    ];

    pub fn name(&self) -> &'static str {
        match self {
            Notice::TaskAccepted { .. } => "TASK_ACCEPTED",
            Notice::TaskRejected { .. } => "TASK_REJECTED",
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
            | Notice::Circuit { to: BreakerState::Open, .. }
            | Notice::MemoryLevel { .. } => Severity::Warning,
            Notice::AgentUnavailable { .. } => Severity::Error,
        }
    }

    pub fn task(&self) -> Option<TaskId> {
        match self {
            Notice::TaskAccepted { task, .. }
            | Notice::TaskStarted { task, .. }
            | Notice::TaskProgress { task, .. }
            | Notice::TaskCompleted { task, .. }
            | Notice::TaskFailed { task, .. }
            | Notice::TaskRetried { task, .. }
            | Notice::TaskCancelled { task, .. }
            | Notice::TaskPreempted { task, .. }
            | Notice::TaskEvicted { task, .. }
            | Notice::TaskKilled { task, .. } => Some(*task),
            Notice::HeartbeatSkipped { task, .. } => *task,
            Notice::TaskRejected { .. }
            | Notice::WorkerSpawned { .. }
            | Notice::WorkerExited { .. }
            | Notice::WorkerKilled { .. }
            | Notice::AgentUnavailable { .. }
            | Notice::Circuit { .. }
            | Notice::MemoryLevel { .. } => None,
        }
    }

    /// Whether it is a decision that `/v1/decisions` explains, rather than a step of ordinary work.
    pub fn is_decision(&self) -> bool {
        match self {
            Notice::TaskProgress { .. } | Notice::TaskCompleted { .. } | Notice::WorkerSpawned { .. } => false,
            Notice::TaskAccepted { .. }
            | Notice::TaskRejected { .. }
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
            | Notice::MemoryLevel { .. } => true,
        }
    }

    /// Its values in a fixed order, named as in the log; `each` is called once a value.
    pub fn fields<'a>(&'a self, each: &mut dyn FnMut(&'static str, Field<'a>)) {
        match self {
            Notice::TaskAccepted { task, agent, priority, request, waiting } => {
                each("task", id(task));
                each("agent", text(agent));
                each("priority", text(priority.name()));
                each("waiting", Field::Count(*waiting as u64));
                each("request", text(request));
            }
            Notice::TaskRejected { agent, code, text: why, request } => {
                each("agent", text(agent));
                each("code", text(code));
                each("text", text(why));
                each("request", text(request));
            }
            Notice::TaskStarted { task, worker, agent, attempt, waited, request } => {
                each("task", id(task));
                each("worker", id(worker));
                each("agent", text(agent));
                each("attempt", Field::Count(u64::from(*attempt)));
                each("waitedMs", millis(waited));
                each("request", text(request));
            }
            Notice::TaskProgress { task, percent, message } => {
                each("task", id(task));
                each("percent", Field::Number(*percent));
                optional(message.as_deref(), "message", each);
            }
            Notice::TaskCompleted { task, worker, agent, run_time, result_bytes, request } => {
                each("task", id(task));
                each("worker", id(worker));
                each("agent", text(agent));
                each("durationMs", millis(run_time));
                each("resultBytes", Field::Count(*result_bytes));
                each("request", text(request));
            }
            Notice::TaskFailed { task, worker, agent, code, text: why, run_time, request } => {
                each("task", id(task));
                if let Some(worker) = worker {
                    each("worker", id(worker));
                }
                each("agent", text(agent));
                each("code", text(code.name()));
                each("text", text(why));
                if let Some(run_time) = run_time {
                    each("durationMs", millis(run_time));
                }
                each("request", text(request));
            }
            Notice::TaskRetried { task, agent, code, text: why, retries, max_retries, request } => {
                each("task", id(task));
                each("agent", text(agent));
                each("code", text(code.name()));
                each("text", text(why));
                each("retries", Field::Count(u64::from(*retries)));
                each("maxRetries", Field::Count(u64::from(*max_retries)));
                each("request", text(request));
            }
            Notice::TaskCancelled { task, agent, request } => {
                each("task", id(task));
                each("agent", text(agent));
                each("request", text(request));
            }
            Notice::TaskPreempted { task, worker, agent, has_checkpoint, preemptions, request } => {
                each("task", id(task));
                each("worker", id(worker));
                each("agent", text(agent));
                each("checkpoint", Field::Flag(*has_checkpoint));
                each("preemptions", Field::Count(u64::from(*preemptions)));
                each("request", text(request));
            }
            Notice::TaskEvicted { task, agent, made_room_for, request } => {
                each("task", id(task));
                each("agent", text(agent));
                each("madeRoomFor", id(made_room_for));
                each("request", text(request));
            }
            Notice::TaskKilled { task, worker, agent, code, text: why, request } => {
                each("task", id(task));
                each("worker", id(worker));
                each("agent", text(agent));
                each("code", text(code.name()));
                each("text", text(why));
                each("request", text(request));
            }
            Notice::HeartbeatSkipped { schedule, task, agent, text: why, incident } => {
                if let Some(task) = task {
                    each("task", id(task));
                }
                optional(schedule.as_deref(), "schedule", each);
                each("agent", text(agent));
                each("text", text(why));
                if let Some(incident) = incident {
                    each("incident", id(incident));
                }
            }
            Notice::WorkerSpawned { worker, agent, pid } => {
                each("worker", id(worker));
                each("agent", text(agent));
                each("pid", Field::Count(u64::from(*pid)));
            }
            Notice::WorkerExited { worker, agent, reason, status, signal, text: why } => {
                each("worker", id(worker));
                each("agent", text(agent));
                each("reason", text(reason.name()));
                if let Some(status) = status {
                    each("status", Field::Number(f64::from(*status)));
                }
                if let Some(signal) = signal {
                    each("signal", Field::Number(f64::from(*signal)));
                }
                if !why.is_empty() {
                    each("text", text(why));
                }
            }
            Notice::WorkerKilled { worker, agent, text: why } => {
                each("worker", id(worker));
                each("agent", text(agent));
                each("text", text(why));
            }
            Notice::AgentUnavailable { agent, failures, retry_after } => {
                each("agent", text(agent));
                each("failures", Field::Count(*failures as u64));
                each("retryAfterS", Field::Count(retry_after.as_secs()));
            }
            Notice::Circuit { breaker, to: _, openings, retry_after } => {
                each("breaker", text(breaker));
                each("openings", Field::Count(*openings as u64));
                if let Some(retry_after) = retry_after {
                    each("retryAfterMs", millis(retry_after));
                }
            }
            Notice::MemoryLevel { from, to, pressure, usage_bytes, limit_bytes, incident } => {
                each("incident", id(incident));
                each("from", text(from.name()));
                each("to", text(to.name()));
                each("pressure", Field::Number((pressure * 1000.0).round() / 1000.0));
                each("usageBytes", Field::Count(*usage_bytes));
                each("limitBytes", Field::Count(*limit_bytes));
            }
        }
    }

    /// One sentence for a person who asks why.
    pub fn sentence(&self) -> String {
        match self {
            Notice::TaskAccepted { priority, waiting, .. } => {
                format!("accepted at priority {}; {waiting} were waiting", priority.name())
            }
            Notice::TaskRejected { code, text, .. } => format!("refused ({code}): {text}"),
            Notice::TaskStarted { worker, attempt, waited, .. } => {
                format!("started on worker {worker}, attempt {attempt}, after waiting {} ms", waited.as_millis())
            }
            Notice::TaskProgress { percent, .. } => format!("{percent} % done"),
            Notice::TaskCompleted { run_time, .. } => format!("completed in {} ms", run_time.as_millis()),
            Notice::TaskFailed { code, text, .. } => format!("failed ({}): {text}", code.name()),
            Notice::TaskRetried { code, text, retries, max_retries, .. } => {
                format!("goes back to wait for retry {retries} of {max_retries} after {}: {text}", code.name())
            }
            Notice::TaskCancelled { .. } => "cancelled by request".to_string(),
            Notice::TaskPreempted { has_checkpoint, preemptions, .. } => format!(
                "preempted {}, for time {preemptions}; it runs again before the queued tasks of its level",
                if *has_checkpoint { "with a checkpoint" } else { "without a checkpoint" }
            ),
            Notice::TaskEvicted { made_room_for, .. } => {
                format!("evicted: the queue was full and critical task {made_room_for} needed its place")
            }
            Notice::TaskKilled { code, text, .. } => format!("its worker was killed ({}): {text}", code.name()),
            Notice::HeartbeatSkipped { text, .. } => format!("skipped: {text}"),
            Notice::WorkerSpawned { worker, pid, .. } => format!("worker {worker} started as process {pid}"),
            Notice::WorkerExited { worker, reason, text, .. } => {
                format!("worker {worker} ended ({}){}{text}", reason.name(), if text.is_empty() { "" } else { ": " })
            }
            Notice::WorkerKilled { worker, text, .. } => format!("worker {worker} was killed: {text}"),
            Notice::AgentUnavailable { agent, failures, retry_after } => format!(
                "agent {agent} failed {failures} times within the hour; it is started again in {} s",
                retry_after.as_secs()
            ),
            Notice::Circuit { breaker, to, .. } => format!("circuit breaker {breaker} is now {}", to.name()),
            Notice::MemoryLevel { from, to, pressure, .. } => {
                format!(
                    "memory level went from {} to {} at {:.1} % of the limit",
                    from.name(),
                    to.name(),
                    pressure * 100.0
                )
            }
        }
    }
}

fn id(id: &dyn fmt::Display) -> Field<'_> {
    Field::Id(id)
}

fn text(text: &str) -> Field<'_> {
    Field::Text(text)
}

fn millis<'a>(duration: &Duration) -> Field<'a> {
    Field::Number((duration.as_secs_f64() * 1_000_000.0).round() / 1000.0)
}

fn optional<'a>(value: Option<&'a str>, name: &'static str, each: &mut dyn FnMut(&'static str, Field<'a>)) {
    if let Some(value) = value {
        each(name, text(value));
    }
}
