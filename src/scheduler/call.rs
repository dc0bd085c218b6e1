//! What the gateway asks the scheduler, and what it is told. `W` is whoever waits: the scheduler carries it and knows
//! nothing of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::history::Peaks;
use crate::core::breaker::BreakerView;
use crate::core::event::{BreakerAnswer, BreakerRequest, CancelAnswer};
use crate::core::ids::{IncidentId, TaskId};
use crate::core::ledger::TaskView;
use crate::core::notice::Notice;
use crate::core::refusal::Refusal;
use crate::core::settings::Settings;
use crate::core::task::{Payload, PayloadKind, Priority, TaskSpec};
use crate::core::view::{HealthView, Snapshot, TaskFilter};
use crate::core::waiting::Wait;
use crate::metrics::Metrics;
use crate::sys::priority::Urgency;

#[derive(Debug)]
pub struct Call<W> {
    /// The connection it came on: if that goes away, nobody waits any more.
    pub from: u64,
    pub waiter: W,
    pub request: Request,
}

#[derive(Debug)]
pub enum Request {
    Submit {
        task: TaskId,
        draft: Box<Draft>,
        wait: Option<Duration>,
    },
    /// Whether a submission would be taken whose payload has not come yet; without a draft, whether any would.
    Probe {
        task: TaskId,
        draft: Option<Box<Draft>>,
    },
    Cancel {
        task: TaskId,
    },
    Breaker {
        name: Arc<str>,
        request: BreakerRequest,
    },
    Task {
        task: TaskId,
    },
    Tasks(TaskFilter),
    Status,
    /// What is, and the last decisions, taken at one moment.
    Overview {
        decisions: usize,
    },
    Health,
    Scrape,
    Decisions {
        limit: usize,
    },
    Why {
        task: TaskId,
    },
    /// Answered while the threads turn.
    Ping,
}

/// A submission with what the client left open.
#[derive(Debug, Clone)]
pub struct Draft {
    pub agent: Arc<str>,
    pub priority: Option<Priority>,
    pub payload: Payload,
    pub payload_kind: PayloadKind,
    pub timeout: Option<Duration>,
    pub max_retries: Option<u32>,
    pub preemptible: Option<bool>,
    pub skippable: Option<bool>,
    pub idempotency_key: Option<Arc<str>>,
    pub request_id: Arc<str>,
}

impl Draft {
    /// With the agent's own defaults for what was left open. An agent that is not configured is refused later, by name.
    pub fn complete(self, settings: &Settings) -> TaskSpec {
        let agent = settings.agents.get(&self.agent);
        let priority = self.priority.unwrap_or(Priority::Normal);
        TaskSpec {
            priority,
            payload: self.payload,
            payload_kind: self.payload_kind,
            timeout: self.timeout.or(agent.map(|agent| agent.task_timeout)).unwrap_or(Duration::ZERO),
            max_retries: self.max_retries.or(agent.map(|agent| agent.max_retries)).unwrap_or(0),
            preemptible: self.preemptible.or(agent.map(|agent| agent.preemptible)).unwrap_or(true),
            skippable: self.skippable.unwrap_or(priority == Priority::Heartbeat),
            idempotency_key: self.idempotency_key,
            request_id: self.request_id,
            schedule: None,
            agent: agent.map_or(self.agent, |agent| agent.name.clone()),
        }
    }
}

#[derive(Debug)]
pub struct Reply<W> {
    pub waiter: W,
    pub answer: Answer,
}

#[derive(Debug)]
pub enum Answer {
    /// Taken and durable; with `wait`, finished or not finished in time.
    Submitted {
        view: Box<TaskView>,
        is_duplicate: bool,
    },
    /// To a probe: it would be taken, as things stand.
    Admissible,
    Refused(Refusal),
    StorageFull {
        error: String,
        retry_after: Duration,
    },
    Cancelled(CancelAnswer, Option<Box<TaskView>>),
    /// It is cancelled, and nobody would know of it after a crash.
    CancelUnwritten {
        error: String,
        retry_after: Duration,
    },
    Breaker {
        answer: BreakerAnswer,
        name: Arc<str>,
        view: Option<BreakerView>,
    },
    Task(Option<Box<TaskView>>),
    Tasks(Vec<TaskView>),
    Status(Box<Status>),
    Overview(Box<Status>, Vec<Decision>),
    Health {
        health: HealthView,
        storage: StorageStatus,
    },
    Scrape(Box<(Metrics, Snapshot)>),
    Decisions(Vec<Decision>),
    Why(Option<Box<Why>>),
    Pong,
    Reloaded(Result<ReloadReport, String>),
    Draining,
}

/// Why a task is where it is.
#[derive(Debug)]
pub struct Why {
    pub view: TaskView,
    /// What it waits for; `None`: it does not wait.
    pub wait: Option<Wait>,
    /// Newest first.
    pub decisions: Vec<Decision>,
}

#[derive(Debug, Clone)]
pub struct Status {
    pub snapshot: Snapshot,
    pub config: ConfigStatus,
    pub uptime: Duration,
    pub storage: StorageStatus,
    pub enforcement: Arc<Enforcement>,
    pub history: Peaks,
}

/// How the disk of `daemon.state_dir` stands.
#[derive(Debug, Clone, Default)]
pub struct StorageStatus {
    /// `None`: the system does not tell.
    pub free_bytes: Option<u64>,
    /// Why submissions are refused.
    pub error: Option<String>,
    /// Files and journals that were found damaged or lost since the start, and set aside where there was something.
    pub damaged: u64,
}

/// What holds a worker's limits on this host, as it was found at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enforcement {
    /// `v2`, `v1` or `none`.
    pub cgroup: String,
    /// Why it is used, or why not and what to do.
    pub detail: String,
    /// The kernel wakes the monitor when memory stalls.
    pub psi: bool,
    /// How the threads that watch and kill go before others.
    pub urgency: Urgency,
}

/// Where the configuration in force came from.
#[derive(Debug, Clone)]
pub struct ConfigStatus {
    pub file: PathBuf,
    pub loaded_ms: u64,
    pub reload: Option<ReloadStatus>,
}

#[derive(Debug, Clone)]
pub struct ReloadStatus {
    pub at_ms: u64,
    /// `None`: it worked.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct ReloadReport {
    pub changed: Vec<String>,
    pub needs_restart: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Decision {
    pub at_ms: u64,
    /// Of the memory pressure that was on then.
    pub incident: Option<IncidentId>,
    pub notice: Arc<Notice>,
}

/// What the daemon's main thread, the monitor and the door tell the scheduler; goes before everything else.
#[derive(Debug)]
pub enum Control {
    Memory(Box<crate::core::governor::MemorySample>),
    /// `None`: the file was not taken, and the old settings stay.
    Reconfigured {
        settings: Option<Box<Settings>>,
        status: ConfigStatus,
        notice: Box<Notice>,
    },
    Drain {
        timeout: Duration,
    },
    /// A client went away.
    Gone {
        from: u64,
    },
    Follow {
        from: u64,
        what: Follow,
    },
    LogState,
    Stop,
}

/// What an event stream shows.
#[derive(Debug, Clone)]
pub enum Follow {
    Task(TaskId),
    /// Event names; empty: all.
    Events(Vec<String>),
}

/// A line for event streams.
#[derive(Debug, Clone)]
pub struct StreamItem {
    pub to: Vec<u64>,
    pub at_ms: u64,
    pub line: StreamLine,
}

#[derive(Debug, Clone)]
pub enum StreamLine {
    State {
        task: TaskId,
        state: crate::core::task::TaskState,
        attempt: u32,
    },
    Progress {
        task: TaskId,
        percent: f64,
        message: Option<Box<str>>,
    },
    Event {
        notice: Arc<Notice>,
        incident: Option<IncidentId>,
    },
    /// The task has ended, or nobody knows it: close the stream.
    End,
}
