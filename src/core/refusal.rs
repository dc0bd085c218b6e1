//! Why a submission was not taken: what happened, with the figures, and what to do.

use std::sync::Arc;
use std::time::Duration;

use super::ids::TaskId;
use super::task::Priority;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("no agent is called {agent:?}: configured are {known}")]
    UnknownAgent { agent: String, known: String },
    #[error("the idempotency key stands for task {task} of agent {agent}: use a new key for another task")]
    KeyOfAnotherTask { task: TaskId, agent: Arc<str> },
    #[error("a timeout of {} s is over workers.max_task_timeout_s = {}: ask for less", .asked.as_secs_f64(), .max.as_secs())]
    TimeoutTooLong { asked: Duration, max: Duration },
    #[error(
        "the queue is full ({waiting} of {max_depth} waiting): retry in {} s, or raise queue.max_depth",
        .retry_after.as_secs()
    )]
    QueueFull { waiting: usize, max_depth: usize, retry_after: Duration },
    #[error(
        "the queue has no more room at priority {} ({waiting} of {limit} waiting): retry in {} s, or raise queue.priority_limits",
        .priority.name(), .retry_after.as_secs()
    )]
    PriorityFull { priority: Priority, waiting: usize, limit: usize, retry_after: Duration },
    #[error(
        "{cause}, and no task is taken until that is better: retry in {} s", .retry_after.as_secs()
    )]
    MemoryPressure { cause: String, retry_after: Duration },
    #[error("circuit breaker {breaker} of agent {agent} is open: retry in {} s", .retry_after.as_secs())]
    CircuitOpen { breaker: Arc<str>, agent: Arc<str>, retry_after: Duration },
    #[error(
        "agent {agent} has failed {failures} times within the hour and is not started again for now: \
         see its stderr in the log; retry in {} s", .retry_after.as_secs()
    )]
    AgentUnavailable { agent: Arc<str>, failures: usize, retry_after: Duration },
    #[error("the daemon is stopping and takes no new tasks: retry in {} s", .retry_after.as_secs())]
    Draining { retry_after: Duration },
}

impl Refusal {
    /// The error code of kurultai-api(7).
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::UnknownAgent { .. } => "unknown_agent",
            Refusal::KeyOfAnotherTask { .. } | Refusal::TimeoutTooLong { .. } => "invalid_request",
            Refusal::QueueFull { .. } => "queue_full",
            Refusal::PriorityFull { .. } => "priority_full",
            Refusal::MemoryPressure { .. } => "memory_pressure",
            Refusal::CircuitOpen { .. } => "circuit_open",
            Refusal::AgentUnavailable { .. } => "agent_unavailable",
            Refusal::Draining { .. } => "draining",
        }
    }

    /// When to try again, for those that time alone resolves; whole seconds, at least 1.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Refusal::UnknownAgent { .. } | Refusal::KeyOfAnotherTask { .. } | Refusal::TimeoutTooLong { .. } => None,
            Refusal::QueueFull { retry_after, .. }
            | Refusal::PriorityFull { retry_after, .. }
            | Refusal::MemoryPressure { retry_after, .. }
            | Refusal::CircuitOpen { retry_after, .. }
            | Refusal::AgentUnavailable { retry_after, .. }
            | Refusal::Draining { retry_after } => Some(*retry_after),
        }
    }
}

/// A Retry-After as it may be told: whole seconds, 1 to 120.
pub fn honest(estimate: Duration) -> Duration {
    let whole = estimate.as_secs().saturating_add(u64::from(estimate.subsec_nanos() > 0));
    Duration::from_secs(whole.clamp(1, 120))
}
