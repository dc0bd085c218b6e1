//! What the core asks of worker processes, and what it hears from them.

use std::sync::Arc;
use std::time::Duration;

use super::ids::{PermitId, TaskId, WorkerId};
use super::settings::AgentSettings;
use super::task::{Assignment, ResultRef};

/// A request to the supervisor about one worker. None of them is answered directly: what comes of it is a [`Report`].
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Start the process. A oneshot worker starts with its task; a persistent one has to say READY first.
    Spawn { agent: Arc<AgentSettings>, task: Option<Box<Assignment>> },
    /// Give a task to a ready persistent worker.
    Assign(Box<Assignment>),
    /// Persistent: CANCEL. Oneshot: TERM to its process group.
    Cancel { task: TaskId, reason: CancelReason },
    /// PREEMPT, to a persistent worker.
    Preempt { task: TaskId, reason: PreemptReason, checkpoint_timeout: Duration },
    /// GC, to a persistent worker.
    CollectGarbage,
    /// BREAKER_STATE.
    BreakerState { name: Arc<str>, answer: BreakerAnswer },
    /// Persistent: SHUTDOWN and end of input. Oneshot: TERM to its process group.
    Shutdown,
    /// KILL to the whole process group and to what is left of its tree.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    Requested,
    Timeout,
    Drain,
}

impl CancelReason {
    pub fn name(self) -> &'static str {
        match self {
            CancelReason::Requested => "requested",
            CancelReason::Timeout => "timeout",
            CancelReason::Drain => "drain",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreemptReason {
    MemoryPressure,
    Priority,
    /// The daemon is stopping; the task goes on after the next start.
    Shutdown,
}

impl PreemptReason {
    pub fn name(self) -> &'static str {
        match self {
            PreemptReason::MemoryPressure => "memory_pressure",
            PreemptReason::Priority => "priority",
            PreemptReason::Shutdown => "shutdown",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerAnswer {
    Permit(PermitId),
    RetryAfter(Duration),
}

/// What a worker did, in the order it did it. `Exited` or `SpawnFailed` is the last word about a worker: its
/// process has been reaped and its whole process group is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    Spawned {
        pid: u32,
    },
    SpawnFailed {
        error: String,
    },
    Ready {
        can_checkpoint: bool,
        can_cancel: bool,
    },
    /// `checkpoint`: a new one has been written to the spool.
    Progress {
        task: TaskId,
        percent: f64,
        message: Option<Box<str>>,
        checkpoint: bool,
    },
    Completed {
        task: TaskId,
        result: ResultRef,
    },
    Failed {
        task: TaskId,
        error: String,
        stack: Option<String>,
        retryable: bool,
    },
    /// `checkpoint`: one has been written to the spool; without it the task starts again from the beginning.
    Preempted {
        task: TaskId,
        checkpoint: bool,
    },
    Memory(HeapReading),
    Breaker {
        name: Arc<str>,
        op: BreakerOp,
    },
    /// It broke the protocol; the supervisor is killing it, `Exited` follows.
    ProtocolError {
        message: String,
    },
    Exited(Box<Exit>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerOp {
    Acquire,
    Success(PermitId),
    Failure(PermitId),
}

/// Bytes, as Node's `process.memoryUsage()` names them; 0 where the worker's language has no such figure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeapReading {
    pub heap_used: u64,
    pub heap_total: u64,
    pub rss: u64,
    pub external: u64,
    pub array_buffers: u64,
}

/// How a process ended. For a oneshot worker that ended by itself with status 0, `result` is its standard output.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exit {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    /// The last 2 KiB of its standard error, made valid UTF-8; empty if it wrote none.
    pub stderr_tail: String,
    pub result: Option<ResultRef>,
    /// Its result could not be taken (over the limit, disk full): why, and what to do.
    pub result_error: Option<String>,
    /// `ru_maxrss` of wait4(2), in bytes.
    pub peak_rss_bytes: u64,
    /// The kernel killed a process of its tree for want of memory, as its cgroup tells; false where it has none.
    pub oom_killed: bool,
}

/// A report with the worker it is about.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerReport {
    pub worker: WorkerId,
    pub report: Report,
}
