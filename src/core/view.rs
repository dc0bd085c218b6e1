//! What the daemon shows of itself: plain copies, taken in one turn, so that the parts agree with one another.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::breaker::{Breaker, BreakerState, BreakerView};
use super::event::Now;
use super::governor::{self, Level, MemorySample};
use super::health::Availability;
use super::ids::{AgentName, IncidentId, TaskId, WorkerId};
use super::ledger::{FinishedTask, Phase, Task, TaskView};
use super::order::HeapReading;
use super::settings::{AgentMode, Features, MemorySettings, Runtime};
use super::task::{Priority, TaskState};

#[derive(Debug, Clone)]
pub struct Snapshot {
    pub now: Now,
    pub is_draining: bool,
    pub memory: MemoryView,
    pub queue: QueueView,
    pub workers: WorkersView,
    pub breakers: Vec<(Arc<str>, BreakerView)>,
    pub schedules: Vec<ScheduleView>,
    pub agents: Vec<AgentView>,
    pub features: Features,
}

/// What `/health` tells: as much as can be copied after every event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealthView {
    pub is_draining: bool,
    pub level: Level,
    pub is_governed: bool,
    pub pressure: f64,
    pub queue_depth: usize,
    pub queue_max_depth: usize,
    pub workers_active: usize,
    pub workers_idle: usize,
    pub workers_max: usize,
    pub breakers_open: usize,
    /// Zero where memory refuses nothing.
    pub retry_after: Duration,
}

#[derive(Debug, Clone)]
pub struct MemoryView {
    pub level: Level,
    /// How far shedding has gone.
    pub rung: Level,
    pub pressure: f64,
    pub budget: Option<f64>,
    pub incident: Option<IncidentId>,
    /// Whether memory has consequences: not where it is only observed.
    pub is_governed: bool,
    pub settings: MemorySettings,
    pub sample: Option<(Now, MemorySample)>,
    /// For somebody who comes back when the pressure may have fallen.
    pub retry_after: Duration,
}

#[derive(Debug, Clone)]
pub struct QueueView {
    pub depth: usize,
    pub max_depth: usize,
    pub parked: usize,
    pub by_priority: [usize; Priority::COUNT],
    pub limits: [usize; Priority::COUNT],
    /// In the order of service.
    pub tasks: Vec<(TaskId, AgentName, Priority, TaskState)>,
}

#[derive(Debug, Clone)]
pub struct WorkersView {
    pub max: usize,
    pub active: usize,
    pub idle: usize,
    pub workers: Vec<WorkerView>,
}

#[derive(Debug, Clone)]
pub struct WorkerView {
    pub id: WorkerId,
    pub agent: AgentName,
    pub mode: AgentMode,
    pub pid: Option<u32>,
    pub state: &'static str,
    pub task: Option<TaskId>,
    pub started_ms: u64,
    pub tasks_done: u64,
    pub rss_bytes: Option<u64>,
    pub soft_limit_bytes: u64,
    pub hard_limit_bytes: u64,
    pub heap: Option<HeapReading>,
}

#[derive(Debug, Clone)]
pub struct AgentView {
    pub name: AgentName,
    pub mode: AgentMode,
    pub runtime: Runtime,
    /// `None`: it may be started now.
    pub retry_after: Option<Duration>,
    pub breaker: Option<Arc<str>>,
    pub running: usize,
    pub queued: usize,
    pub failures_last_hour: usize,
}

#[derive(Debug, Clone)]
pub struct ScheduleView {
    pub name: Arc<str>,
    pub agent: AgentName,
    pub every: Duration,
    pub next_in: Duration,
    pub skipped: u64,
}

/// Which tasks a list should show.
#[derive(Debug, Clone, Default)]
pub struct TaskFilter {
    /// Empty: all.
    pub states: Vec<TaskState>,
    pub agent: Option<String>,
    pub limit: usize,
}

/// The most waiting tasks a queue view lists; the counts are of all.
const QUEUE_VIEW_MAX: usize = 1000;

impl Core {
    pub fn snapshot(&self, now: Now) -> Snapshot {
        Snapshot {
            now,
            is_draining: self.draining.is_some(),
            memory: self.memory_view(),
            queue: self.queue_view(),
            workers: self.workers_view(),
            breakers: self.breakers.iter().map(|(name, breaker)| (name.clone(), breaker.view(now.at))).collect(),
            schedules: self.schedules_view(now),
            agents: self.agents_view(now),
            features: self.settings.features,
        }
    }

    pub fn health(&self) -> HealthView {
        let (settings, level) = (&self.settings.memory, self.governor.level());
        let idle = self.pool.idle();
        let is_open = |breaker: &&Breaker| breaker.state() == BreakerState::Open;
        HealthView {
            is_draining: self.draining.is_some(),
            level,
            is_governed: self.governs_memory(),
            pressure: self.governor.pressure(settings),
            queue_depth: self.queue.depth(),
            queue_max_depth: self.settings.queue.max_depth,
            workers_active: self.pool.iter().count() - idle,
            workers_idle: idle,
            workers_max: self.settings.workers.max,
            breakers_open: self.breakers.values().filter(is_open).count(),
            retry_after: if level >= Level::Reject {
                super::refusal::honest(self.governor.retry_after(settings, self.next_end()))
            } else {
                Duration::ZERO
            },
        }
    }

    /// It takes nothing more and is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Of the memory pressure that is on now.
    pub fn incident(&self) -> Option<IncidentId> {
        self.governor.incident()
    }

    /// How full the memory is, by the last reading.
    pub fn level(&self) -> Level {
        self.governor.level()
    }

    /// Tasks that wait, queued or parked.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    pub fn breaker(&self, name: &str, now: Now) -> Option<BreakerView> {
        self.breakers.get(name).map(|breaker| breaker.view(now.at))
    }

    /// What is asked next is answered as of this moment, and not as of the last event.
    pub fn look(&mut self, now: Now) {
        self.now = now;
    }

    /// The task this worker has.
    pub fn worker_task(&self, worker: WorkerId) -> Option<TaskId> {
        self.pool.get(worker)?.task()
    }

    pub fn task(&self, id: TaskId) -> Option<TaskView> {
        match self.ledger.get(id) {
            Some(task) => Some(self.live_view(task)),
            None => self.ledger.finished(id).map(finished_view),
        }
    }

    /// Newest first.
    pub fn tasks(&self, filter: &TaskFilter) -> Vec<TaskView> {
        let mut live = self.ledger.live().rev().peekable();
        let mut finished = self.ledger.finished_all().rev().peekable();
        let mut found = Vec::new();
        while found.len() < filter.limit {
            let live_is_newer = match (live.peek(), finished.peek()) {
                (Some(live), Some(finished)) => live.id > finished.id,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let matches = |state: TaskState, agent: &str| {
                (filter.states.is_empty() || filter.states.contains(&state))
                    && filter.agent.as_deref().is_none_or(|wanted| wanted == agent)
            };
            if live_is_newer {
                found.extend(
                    live.next().filter(|task| matches(task.state(), &task.spec.agent)).map(|task| self.live_view(task)),
                );
            } else {
                found.extend(
                    finished.next().filter(|task| matches(task.outcome.state(), &task.spec.agent)).map(finished_view),
                );
            }
        }
        found
    }

    fn live_view(&self, task: &Task) -> TaskView {
        let (worker, run_time) = match task.phase {
            Phase::Running { worker, since } => (Some(worker), Some(self.now.at.saturating_sub(since))),
            Phase::Queued | Phase::Preempted => (None, None),
        };
        let queue_position = match task.phase {
            Phase::Running { .. } => None,
            Phase::Queued | Phase::Preempted => {
                self.queue.iter().position(|waiting| waiting == task.id).map(|index| index + 1)
            }
        };
        TaskView {
            id: task.id,
            agent: task.spec.agent.clone(),
            priority: task.spec.priority,
            state: task.state(),
            created_ms: task.created_ms,
            started_ms: task.started_ms,
            finished_ms: None,
            attempt: task.attempt(),
            attempts: task.attempts.clone(),
            max_retries: task.spec.max_retries,
            preemptions: task.preemptions,
            progress: task.progress.clone(),
            queue_position,
            request_id: task.spec.request_id.clone(),
            worker,
            payload_bytes: task.spec.payload.bytes(),
            peak_rss_bytes: None,
            run_time,
            finished: None,
        }
    }

    fn memory_view(&self) -> MemoryView {
        let settings = self.settings.memory.clone();
        let sample = self.governor.sample().cloned();
        MemoryView {
            level: self.governor.level(),
            pressure: self.governor.pressure(&settings),
            budget: sample.as_ref().and_then(|(_, sample)| governor::budget(sample, &settings)),
            rung: self.governor.rung(),
            incident: self.governor.incident(),
            is_governed: self.governs_memory(),
            retry_after: super::refusal::honest(self.governor.retry_after(&settings, self.next_end())),
            settings,
            sample,
        }
    }

    fn queue_view(&self) -> QueueView {
        let tasks = self.queue.iter().take(QUEUE_VIEW_MAX).filter_map(|id| self.ledger.get(id));
        QueueView {
            depth: self.queue.depth(),
            max_depth: self.settings.queue.max_depth,
            parked: self.queue.parked(),
            by_priority: Priority::ALL.map(|priority| self.queue.waiting_at(priority)),
            limits: self.settings.queue.priority_limits,
            tasks: tasks.map(|task| (task.id, task.spec.agent.clone(), task.spec.priority, task.state())).collect(),
        }
    }

    fn workers_view(&self) -> WorkersView {
        let workers: Vec<WorkerView> = self
            .pool
            .iter()
            .map(|(id, worker)| WorkerView {
                id,
                agent: worker.agent.name.clone(),
                mode: worker.agent.mode,
                pid: worker.pid,
                state: worker.state_name(),
                task: worker.task(),
                started_ms: worker.started_ms,
                tasks_done: worker.tasks_done,
                rss_bytes: worker.rss_bytes,
                soft_limit_bytes: worker.agent.soft_limit_bytes,
                hard_limit_bytes: worker.agent.hard_limit_bytes,
                heap: worker.heap,
            })
            .collect();
        let idle = self.pool.idle();
        WorkersView { max: self.settings.workers.max, active: workers.len() - idle, idle, workers }
    }

    fn agents_view(&self, now: Now) -> Vec<AgentView> {
        let waiting = |name: &AgentName| {
            self.queue.iter().filter(|id| self.ledger.get(*id).is_some_and(|task| task.spec.agent == *name)).count()
        };
        self.settings
            .agents
            .values()
            .map(|agent| {
                let health = self.health.get(&agent.name);
                let availability = health.map(|health| health.availability(now.at, &self.settings.workers));
                AgentView {
                    name: agent.name.clone(),
                    mode: agent.mode,
                    runtime: agent.runtime,
                    retry_after: match availability {
                        Some(Availability::BackingOff { until } | Availability::Unavailable { until, .. }) => {
                            Some(until.saturating_sub(now.at))
                        }
                        Some(Availability::Available) | None => None,
                    },
                    breaker: agent.breaker.clone(),
                    running: self.pool.count(|worker| worker.agent.name == agent.name && worker.task().is_some()),
                    queued: waiting(&agent.name),
                    failures_last_hour: health.map_or(0, |health| health.recent(now.at)),
                }
            })
            .collect()
    }

    fn schedules_view(&self, now: Now) -> Vec<ScheduleView> {
        let view = |schedule: &super::schedule::Schedule| ScheduleView {
            name: schedule.settings.name.clone(),
            agent: schedule.settings.agent.clone(),
            every: schedule.settings.every,
            next_in: schedule.next_at().saturating_sub(now.at),
            skipped: schedule.skipped(),
        };
        self.schedules.iter().map(view).collect()
    }
}

pub fn finished_view(task: &Arc<FinishedTask>) -> TaskView {
    TaskView {
        id: task.id,
        agent: task.spec.agent.clone(),
        priority: task.spec.priority,
        state: task.outcome.state(),
        created_ms: task.created_ms,
        started_ms: task.started_ms,
        finished_ms: Some(task.finished_ms),
        attempt: task.attempt,
        attempts: task.attempts.clone(),
        max_retries: task.spec.max_retries,
        preemptions: task.preemptions,
        progress: None,
        queue_position: None,
        request_id: task.spec.request_id.clone(),
        worker: task.worker,
        payload_bytes: task.spec.payload.bytes(),
        peak_rss_bytes: task.peak_rss_bytes,
        run_time: task.run_time,
        finished: Some(task.clone()),
    }
}
