//! What goes into the core and what comes out.

use std::sync::Arc;
use std::time::Duration;

use super::attempts::Attempts;
use super::breaker::BreakerMemory;
use super::governor::MemorySample;
use super::ids::{AgentName, PermitId, TaskId, Ticket, WorkerId};
use super::ledger::FinishedTask;
use super::notice::Notice;
use super::order::{Order, WorkerReport};
use super::refusal::Refusal;
use super::settings::{ScheduleSettings, Settings};
use super::task::{TaskSpec, TaskState};

/// The time an event happened, as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, since the daemon's start. Every rule uses this one.
    pub at: Duration,
    /// Milliseconds since 1970-01-01 UTC, for people. No rule uses it.
    pub wall_ms: u64,
}

/// Everything that can happen to the daemon. Closed on purpose: a new cause is a new variant.
#[derive(Debug, Clone)]
pub enum Event {
    Submitted {
        ticket: Ticket,
        task: TaskId,
        spec: Box<TaskSpec>,
    },
    CancelRequested {
        ticket: Ticket,
        task: TaskId,
    },
    Breaker {
        ticket: Ticket,
        name: Arc<str>,
        request: BreakerRequest,
    },
    Worker(WorkerReport),
    MemorySampled(Box<MemorySample>),
    Reconfigured(Box<Settings>),
    /// Stop: nothing new is taken or started, what runs has until `timeout`.
    DrainRequested {
        timeout: Duration,
    },
    DeadlinePassed,
    /// Records cannot be kept for now: nothing starts, since a task that ran and of which nobody knows would run again.
    /// `unstarted`: those whose start was decided in this turn, could not be written, and was not carried out.
    JournalFailed {
        unstarted: Vec<(WorkerId, TaskId)>,
    },
    /// Everything that is known has been written.
    JournalWorks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerRequest {
    Acquire,
    Success(PermitId),
    Failure(PermitId),
    ForceOpen,
    ForceClose,
}

/// What the core wants done. It cannot fail on I/O: failure comes back as an event.
#[derive(Debug, Clone)]
pub enum Action {
    Worker(WorkerId, Order),
    /// To be durable before any [`Action::Answer`] or [`Action::Finished`] that comes after it is told to anyone.
    Record(Record),
    Answer(Ticket, Answer),
    /// A task has ended; whoever waits for it can be told.
    Finished(Arc<FinishedTask>),
    Notice(Notice),
    /// A schedule is due and its beat may go in: submit one.
    Beat(Arc<ScheduleSettings>),
    /// Draining is over: no worker is left.
    Drained,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Submitted(Result<Submission, Refusal>),
    Cancelled(CancelAnswer),
    Breaker(BreakerAnswer),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submission {
    pub task: TaskId,
    /// The idempotency key was known: this is the task it stands for, and nothing new was made.
    pub is_duplicate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It is cancelled, or its worker has been told.
    Accepted,
    AlreadyFinished(TaskState),
    UnknownTask,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BreakerAnswer {
    Permit(PermitId),
    Open { retry_after: Duration },
    Done,
    UnknownBreaker,
    UnknownPermit,
}

/// What has to be remembered through a crash.
#[derive(Debug, Clone)]
pub enum Record {
    Accepted {
        task: TaskId,
        spec: Arc<TaskSpec>,
        created_ms: u64,
    },
    Started {
        task: TaskId,
        started_ms: u64,
    },
    /// Back to waiting: after a preemption, or for another attempt.
    Returned {
        task: TaskId,
        retries: u32,
        memory_deaths: u32,
        /// Memory has stopped it at least once.
        by_memory: bool,
        preemptions: u32,
        preempted: bool,
        attempts: Attempts,
    },
    /// Somebody wants a running task gone: whatever becomes of the daemon, it does not run again.
    CancelRequested {
        task: TaskId,
    },
    Finished(Arc<FinishedTask>),
    /// What a task of this agent was seen to need at most.
    Footprint {
        agent: AgentName,
        peak_bytes: u64,
    },
    Breaker {
        name: Arc<str>,
        memory: BreakerMemory,
    },
    /// Past its retention: its result may go.
    Forgotten {
        task: TaskId,
    },
}

/// Takes out of a turn's actions what would start a task: its record could not be written. For [`Event::JournalFailed`].
pub fn take_starts(actions: &mut Vec<Action>) -> Vec<(WorkerId, TaskId)> {
    let mut starts = Vec::new();
    actions.retain(|action| match action {
        Action::Worker(worker, Order::Spawn { task: Some(assignment), .. } | Order::Assign(assignment)) => {
            starts.push((*worker, assignment.task));
            false
        }
        Action::Notice(Notice::TaskStarted { .. }) => false,
        Action::Worker(..)
        | Action::Record(_)
        | Action::Answer(..)
        | Action::Finished(_)
        | Action::Notice(_)
        | Action::Beat(_)
        | Action::Drained => true,
    });
    starts
}
