//! Why a task waits, for somebody who asks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::governor::Level;
use super::headroom::Shortage;
use super::health::Availability;
use super::ids::{AgentName, TaskId};
use super::ledger::Task;
use super::pool::Worker;

/// What stands between a waiting task and its start.
#[derive(Debug, Clone, PartialEq)]
pub enum Wait {
    Draining,
    /// The journal cannot be written, and its start would not be known after a crash.
    Storage,
    /// Its last attempt failed.
    RetryPause {
        retry_after: Duration,
    },
    /// What memory lets start at this level, and what it is at.
    MemoryLevel {
        level: Level,
        cause: String,
    },
    Memory(Shortage),
    /// Another task goes before it, and that one waits for memory.
    MemoryOfAnother {
        task: TaskId,
    },
    Breaker {
        breaker: Arc<str>,
        retry_after: Duration,
    },
    /// The agent's processes failed.
    AgentPause {
        agent: AgentName,
        retry_after: Duration,
    },
    AgentFull {
        agent: AgentName,
        max_workers: usize,
    },
    WorkerStarting {
        agent: AgentName,
    },
    WorkersBusy {
        max: usize,
    },
    /// Its agent is not configured any more; or it starts right now.
    Turn,
}

impl Wait {
    /// The kind, for a program.
    pub fn name(&self) -> &'static str {
        match self {
            Wait::Draining => "draining",
            Wait::Storage => "storage",
            Wait::RetryPause { .. } => "retry_pause",
            Wait::MemoryLevel { .. } => "memory_level",
            Wait::Memory(_) => "memory",
            Wait::MemoryOfAnother { .. } => "memory_of_another",
            Wait::Breaker { .. } => "breaker",
            Wait::AgentPause { .. } => "agent_pause",
            Wait::AgentFull { .. } => "agent_full",
            Wait::WorkerStarting { .. } => "worker_starting",
            Wait::WorkersBusy { .. } => "workers_busy",
            Wait::Turn => "turn",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |wait: &Duration| wait.as_secs_f64().ceil();
        match self {
            Wait::Draining => write!(f, "the daemon stops; it runs after the next start"),
            Wait::Storage => {
                write!(f, "the journal cannot be written, and nothing starts until it can: /health has the error")
            }
            Wait::RetryPause { retry_after } => {
                write!(f, "its last attempt failed, and it is tried again in {} s", seconds(retry_after))
            }
            Wait::MemoryLevel { level, cause } => {
                let what = if *level >= Level::Critical { "critical tasks alone start" } else { "no heartbeat starts" };
                write!(f, "{cause}, which is level {}, and {what}", level.name())
            }
            Wait::Memory(shortage) => shortage.fmt(f),
            Wait::MemoryOfAnother { task } => write!(f, "{task} goes before it and waits for memory"),
            Wait::Breaker { breaker, retry_after } => {
                write!(f, "circuit breaker {breaker} is open for another {} s", seconds(retry_after))
            }
            Wait::AgentPause { agent, retry_after } => {
                write!(f, "agent {agent} failed and is started again in {} s", seconds(retry_after))
            }
            Wait::AgentFull { agent, max_workers } => {
                write!(f, "agent {agent} has as many workers as agents.{agent}.max_workers = {max_workers} allows")
            }
            Wait::WorkerStarting { agent } => write!(f, "a worker of agent {agent} is starting"),
            Wait::WorkersBusy { max } => write!(f, "every worker is busy, with workers.max = {max}"),
            Wait::Turn => write!(f, "nothing: it is about to start"),
        }
    }
}

impl Core {
    /// What a waiting task waits for; `None` if it does not wait.
    pub fn waits_for(&self, id: TaskId) -> Option<Wait> {
        let place = self.queue.iter().position(|waiting| waiting == id)?;
        let own = self.wait_of(self.ledger.get(id)?);
        match own {
            // Why only then: it looks at everything that waits before this one.
            Wait::Turn | Wait::Memory(_) => {
                let mut before = self.queue.iter().take(place);
                Some(
                    before
                        .find(|other| self.waits_for_memory(*other))
                        .map_or(own, |task| Wait::MemoryOfAnother { task }),
                )
            }
            Wait::Draining
            | Wait::Storage
            | Wait::RetryPause { .. }
            | Wait::MemoryLevel { .. }
            | Wait::MemoryOfAnother { .. }
            | Wait::Breaker { .. }
            | Wait::AgentPause { .. }
            | Wait::AgentFull { .. }
            | Wait::WorkerStarting { .. }
            | Wait::WorkersBusy { .. } => Some(own),
        }
    }

    /// Cheaper than the whole of what it waits for.
    fn waits_for_memory(&self, id: TaskId) -> bool {
        // Of a task that does not fit it was said.
        self.ledger.get(id).is_some_and(|task| {
            task.is_wait_told && !task.is_skippable_beat() && matches!(self.wait_of(task), Wait::Memory(_))
        })
    }

    /// INVARIANT: in the order in which `dispatch` looks.
    fn wait_of(&self, task: &Task) -> Wait {
        let Some(agent) = self.settings.agents.get(&task.spec.agent) else { return Wait::Turn };
        let name = &agent.name;
        if self.draining.is_some() {
            return Wait::Draining;
        }
        if !self.is_journal_writable {
            return Wait::Storage;
        }
        if let Some(retry_after) = self.retry_pause(task.id) {
            return Wait::RetryPause { retry_after };
        }
        if self.is_held_by_level(task) {
            let cause = self.governor.cause(&self.settings.memory);
            return Wait::MemoryLevel { level: self.governor.level(), cause };
        }
        if let Some((breaker, retry_after)) = self.breaker_wait(task.id, agent) {
            return Wait::Breaker { breaker, retry_after };
        }
        let idle = self.pool.warmest_idle(agent);
        if idle.is_none() {
            if let Some(health) = self.health.get(name)
                && let Availability::BackingOff { until } | Availability::Unavailable { until, .. } =
                    health.availability(self.now.at, &self.settings.workers)
            {
                let retry_after = until.saturating_sub(self.now.at);
                return Wait::AgentPause { agent: name.clone(), retry_after };
            }
            if self.pool.iter().any(|(_, worker)| worker.agent.name == *name && worker.is_starting()) {
                return Wait::WorkerStarting { agent: name.clone() };
            }
            let of_agent = self.pool.count(|worker| worker.agent.name == *name);
            if let Some(max_workers) = agent.max_workers.filter(|max| of_agent >= *max) {
                return Wait::AgentFull { agent: name.clone(), max_workers };
            }
        }
        let max = self.settings.workers.max;
        if idle.is_none() && self.pool.len() >= max && self.pool.count(Worker::is_idle) == 0 {
            return Wait::WorkersBusy { max };
        }
        let is_governed = self.governs_memory() && self.is_governed(task.id);
        match self.shortage(task, agent, idle).filter(|_| is_governed && !self.is_alone(idle)) {
            Some(shortage) => Wait::Memory(shortage),
            None => Wait::Turn,
        }
    }
}
