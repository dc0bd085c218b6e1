//! What a task is: what was asked for, and how it stands.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::ids::{AgentName, WorkerId};

/// 0 `critical` to 4 `heartbeat`: the smaller runs first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    Critical,
    High,
    Normal,
    Low,
    Heartbeat,
}

impl Priority {
    pub const COUNT: usize = 5;
    pub const ALL: [Priority; Priority::COUNT] =
        [Priority::Critical, Priority::High, Priority::Normal, Priority::Low, Priority::Heartbeat];

    pub fn index(self) -> usize {
        self as usize
    }

    pub fn name(self) -> &'static str {
        match self {
            Priority::Critical => "critical",
            Priority::High => "high",
            Priority::Normal => "normal",
            Priority::Low => "low",
            Priority::Heartbeat => "heartbeat",
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no priority: expected critical, high, normal, low, heartbeat or 0 to 4")]
pub struct PriorityError(String);

impl FromStr for Priority {
    type Err = PriorityError;

    /// The number or the name, in any case.
    fn from_str(text: &str) -> Result<Self, PriorityError> {
        Priority::ALL
            .into_iter()
            .find(|priority| {
                text.eq_ignore_ascii_case(priority.name())
                    || (text.len() == 1 && text.as_bytes()[0] == b'0' + priority.index() as u8)
            })
            .ok_or_else(|| PriorityError(text.chars().take(40).collect()))
    }
}

/// What a whole file of the spool holds: how a torn or damaged one is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub bytes: u64,
    /// CRC-32 (ISO 3309) of all of it; `None` where none was kept.
    pub crc: Option<u32>,
}

impl Stored {
    pub fn unchecked(bytes: u64) -> Stored {
        Stored { bytes, crc: None }
    }
}

/// Where a payload is. Small ones travel with the task, large ones stay in the spool's payload file of that task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    Inline(Arc<[u8]>),
    File(Stored),
}

impl Payload {
    pub fn bytes(&self) -> u64 {
        match self {
            Payload::Inline(bytes) => bytes.len() as u64,
            Payload::File(stored) => stored.bytes,
        }
    }
}

/// How a payload is handed to a persistent worker: as a JSON value, or as text or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    Json,
    Raw,
}

/// What was asked for; it does not change.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSpec {
    pub agent: AgentName,
    pub priority: Priority,
    pub payload: Payload,
    pub payload_kind: PayloadKind,
    pub timeout: Duration,
    pub max_retries: u32,
    pub preemptible: bool,
    pub skippable: bool,
    pub idempotency_key: Option<Arc<str>>,
    pub request_id: Arc<str>,
    /// The schedule that made it; `None` for a client's.
    pub schedule: Option<Arc<str>>,
}

/// A finished task never changes state again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    Queued,
    Running,
    Preempted,
    Completed,
    Failed,
    Cancelled,
    Skipped,
    Evicted,
}

impl TaskState {
    pub const ALL: [TaskState; 8] = [
        TaskState::Queued,
        TaskState::Running,
        TaskState::Preempted,
        TaskState::Completed,
        TaskState::Failed,
        TaskState::Cancelled,
        TaskState::Skipped,
        TaskState::Evicted,
    ];

    pub fn name(self) -> &'static str {
        match self {
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Preempted => "preempted",
            TaskState::Completed => "completed",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
            TaskState::Skipped => "skipped",
            TaskState::Evicted => "evicted",
        }
    }

    pub fn is_terminal(self) -> bool {
        match self {
            TaskState::Queued | TaskState::Running | TaskState::Preempted => false,
            TaskState::Completed
            | TaskState::Failed
            | TaskState::Cancelled
            | TaskState::Skipped
            | TaskState::Evicted => true,
        }
    }
}

/// How a finished task ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Completed(ResultRef),
    Failed(Box<Failure>),
    Cancelled,
    Skipped,
    Evicted,
}

impl Outcome {
    pub fn state(&self) -> TaskState {
        match self {
            Outcome::Completed(_) => TaskState::Completed,
            Outcome::Failed(_) => TaskState::Failed,
            Outcome::Cancelled => TaskState::Cancelled,
            Outcome::Skipped => TaskState::Skipped,
            Outcome::Evicted => TaskState::Evicted,
        }
    }
}

/// A result. Small ones travel with the report, large ones are in the spool's result file of that task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRef {
    pub place: ResultPlace,
    /// One JSON value, as a COMPLETE message gives it; otherwise plain bytes.
    pub is_json: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultPlace {
    Inline(Arc<[u8]>),
    File(Stored),
}

impl ResultRef {
    pub fn is_file(&self) -> bool {
        matches!(self.place, ResultPlace::File(_))
    }

    pub fn bytes(&self) -> u64 {
        match &self.place {
            ResultPlace::Inline(bytes) => bytes.len() as u64,
            ResultPlace::File(stored) => stored.bytes,
        }
    }
}

/// Why a task failed, for the one who asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: FailureCode,
    /// What happened, with the value, and what to do.
    pub message: String,
    pub stack: Option<String>,
    pub exit_status: Option<i32>,
    pub signal: Option<i32>,
    pub stderr_tail: Option<String>,
}

impl Failure {
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), stack: None, exit_status: None, signal: None, stderr_tail: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureCode {
    AgentFailed,
    WorkerCrashed,
    WorkerOom,
    MemoryEmergency,
    Timeout,
    SpawnFailed,
    ProtocolError,
    RetriesExhausted,
}

impl FailureCode {
    pub const ALL: [FailureCode; 8] = [
        FailureCode::AgentFailed,
        FailureCode::WorkerCrashed,
        FailureCode::WorkerOom,
        FailureCode::MemoryEmergency,
        FailureCode::Timeout,
        FailureCode::SpawnFailed,
        FailureCode::ProtocolError,
        FailureCode::RetriesExhausted,
    ];

    /// Whether the attempt ended because memory was short or over a limit.
    pub fn is_for_memory(self) -> bool {
        matches!(self, FailureCode::WorkerOom | FailureCode::MemoryEmergency)
    }

    pub fn name(self) -> &'static str {
        match self {
            FailureCode::AgentFailed => "agent_failed",
            FailureCode::WorkerCrashed => "worker_crashed",
            FailureCode::WorkerOom => "worker_oom",
            FailureCode::MemoryEmergency => "memory_emergency",
            FailureCode::Timeout => "timeout",
            FailureCode::SpawnFailed => "spawn_failed",
            FailureCode::ProtocolError => "protocol_error",
            FailureCode::RetriesExhausted => "retries_exhausted",
        }
    }
}

/// How far a running task says it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    pub percent: f64,
    pub message: Option<Box<str>>,
}

/// One run of a task, given to a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    pub task: super::ids::TaskId,
    pub spec: Arc<TaskSpec>,
    /// From 1.
    pub attempt: u32,
    /// A checkpoint lies in the spool, from a preemption or from progress before a failure.
    pub has_checkpoint: bool,
    pub worker: WorkerId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_a_number_or_a_name_in_any_case() {
        for (text, priority) in [
            ("critical", Priority::Critical),
            ("HIGH", Priority::High),
            ("Normal", Priority::Normal),
            ("3", Priority::Low),
            ("4", Priority::Heartbeat),
        ] {
            assert_eq!(text.parse(), Ok(priority), "{text}");
        }
        for bad in ["", "5", "-1", "urgent", "00", " low"] {
            assert!(bad.parse::<Priority>().is_err(), "{bad:?} was taken for a priority");
        }
    }
}
