//! Whether a submission is taken, and what becomes of a cancelled task.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::event::{Action, Answer, CancelAnswer, Record, Submission};
use super::governor::Level;
use super::health::Availability;
use super::ids::{TaskId, Ticket, WorkerId};
use super::ledger::{Phase, Task};
use super::notice::Notice;
use super::order::CancelReason;
use super::pool::{Verdict, WorkerState};
use super::refusal::{Refusal, honest};
use super::task::{Outcome, Priority, TaskSpec};

/// A daemon that drains comes back with its init script; nobody knows when.
pub const DRAIN_RETRY: Duration = Duration::from_secs(10);

impl Core {
    pub(super) fn submit(&mut self, ticket: Ticket, id: TaskId, spec: TaskSpec) {
        let answer = match self.known_by_key(&spec) {
            Some(known) => known,
            None => self.admit(id, &spec).map(|()| Submission { task: id, is_duplicate: false }),
        };
        match &answer {
            Ok(submission) if !submission.is_duplicate => self.accept(id, spec),
            Ok(_) => {}
            Err(refusal) => self.notice(Notice::TaskRejected {
                agent: spec.agent,
                code: refusal.code(),
                text: refusal.to_string(),
                request: spec.request_id,
            }),
        }
        self.answer(ticket, Answer::Submitted(answer));
    }

    /// Whether a task like this would be taken now, for somebody who has not sent its payload yet.
    pub fn would_admit(&self, id: TaskId, spec: &TaskSpec) -> Result<(), Refusal> {
        if let Some(known) = self.known_by_key(spec) {
            return known.map(|_| ());
        }
        self.check_configured(spec)?;
        self.check_state(id, spec)?;
        match self.check_room(spec) {
            Err(Refusal::QueueFull { .. }) if self.evictable(spec).is_some() => Ok(()),
            checked => checked,
        }
    }

    /// A task that was taken but could not be written is withdrawn: its client was told that nothing was accepted, and
    /// sends it again under the same key.
    pub fn release_key(&mut self, task: TaskId) {
        self.ledger.release_key(task);
    }

    /// Whether some task, live or finished, was submitted under this key.
    pub fn knows_key(&self, key: &str) -> bool {
        self.ledger.by_key(key).is_some()
    }

    fn known_by_key(&self, spec: &TaskSpec) -> Option<Result<Submission, Refusal>> {
        let task = self.ledger.by_key(spec.idempotency_key.as_deref()?)?;
        let live = self.ledger.get(task).map(|task| &task.spec.agent);
        let agent = live.or_else(|| self.ledger.finished(task).map(|task| &task.spec.agent))?;
        Some(if *agent == spec.agent {
            Ok(Submission { task, is_duplicate: true })
        } else {
            Err(Refusal::KeyOfAnotherTask { task, agent: agent.clone() })
        })
    }

    fn admit(&mut self, id: TaskId, spec: &TaskSpec) -> Result<(), Refusal> {
        self.check_configured(spec)?;
        self.check_state(id, spec)?;
        self.replace_older_beat(spec);
        match self.check_room(spec) {
            Err(full @ Refusal::QueueFull { .. }) => match self.evictable(spec) {
                Some(heartbeat) => {
                    self.evict(heartbeat, id);
                    Ok(())
                }
                None => Err(full),
            },
            checked => checked,
        }
    }

    fn check_configured(&self, spec: &TaskSpec) -> Result<(), Refusal> {
        if !self.settings.agents.contains_key(&spec.agent) {
            let names: Vec<&str> = self.settings.agents.keys().map(|name| &**name).collect();
            let known = if names.is_empty() { "none".to_string() } else { names.join(", ") };
            return Err(Refusal::UnknownAgent { agent: spec.agent.to_string(), known });
        }
        let max = self.settings.workers.max_task_timeout;
        if spec.timeout > max {
            return Err(Refusal::TimeoutTooLong { asked: spec.timeout, max });
        }
        Ok(())
    }

    fn check_state(&self, id: TaskId, spec: &TaskSpec) -> Result<(), Refusal> {
        if self.draining.is_some() {
            return Err(Refusal::Draining { retry_after: DRAIN_RETRY });
        }
        let now = self.now.at;
        if let Some(health) = self.health.get(&spec.agent)
            && let Availability::Unavailable { until, failures } = health.availability(now, &self.settings.workers)
        {
            let retry_after = honest(until.saturating_sub(now));
            return Err(Refusal::AgentUnavailable { agent: spec.agent.clone(), failures, retry_after });
        }
        if !self.is_governed(id) {
            return Ok(());
        }
        if self.governs_memory() && self.governor.level() >= Level::Reject {
            let settings = &self.settings.memory;
            let retry_after = honest(self.governor.retry_after(settings, self.next_end()));
            return Err(Refusal::MemoryPressure { cause: self.governor.cause(settings), retry_after });
        }
        if let Some((breaker, retry_after)) = self.open_breaker(&spec.agent) {
            let retry_after = honest(retry_after);
            return Err(Refusal::CircuitOpen { breaker, agent: spec.agent.clone(), retry_after });
        }
        Ok(())
    }

    fn check_room(&self, spec: &TaskSpec) -> Result<(), Refusal> {
        let settings = &self.settings.queue;
        let waiting = self.queue.waiting();
        if waiting >= settings.max_depth {
            let retry_after = honest(self.room_estimate(0));
            return Err(Refusal::QueueFull { waiting, max_depth: settings.max_depth, retry_after });
        }
        let (limit, at_level) = self.limit_of(spec.priority);
        if at_level >= limit {
            let retry_after = honest(self.room_estimate(self.ahead_of(spec.priority)));
            return Err(Refusal::PriorityFull { priority: spec.priority, waiting: at_level, limit, retry_after });
        }
        Ok(())
    }

    /// The most tasks that may wait at this level, and how many do.
    fn limit_of(&self, priority: Priority) -> (usize, usize) {
        (self.settings.queue.priority_limits[priority.index()], self.queue.waiting_at(priority))
    }

    /// The breaker its agent is bound to, if that is open, with the time until it lets a probe through.
    fn open_breaker(&self, agent: &Arc<str>) -> Option<(Arc<str>, Duration)> {
        if !self.settings.features.circuit_breakers {
            return None;
        }
        let name = self.settings.agents.get(agent)?.breaker.as_ref()?;
        let retry_after = self.breakers.get(name)?.view(self.now.at).retry_after?;
        Some((name.clone(), retry_after))
    }

    /// When a place becomes free: as the next running task ends, and then as `ahead` more have been started.
    fn room_estimate(&self, ahead: usize) -> Duration {
        let next = self.next_end().unwrap_or_default();
        let rounds = ahead.div_ceil(self.settings.workers.max.max(1)) as u32;
        let waiting = self.queue.iter().filter_map(|task| self.ledger.get(task));
        let known: Vec<Duration> = waiting.filter_map(|task| self.run_times.mean(&task.spec.agent)).collect();
        let mean = known.iter().sum::<Duration>().checked_div(known.len() as u32).unwrap_or(next);
        next + mean * rounds
    }

    /// How long until the first of the running tasks has probably ended.
    pub(super) fn next_end(&self) -> Option<Duration> {
        let remaining = self.ledger.live().filter_map(|task| match task.phase {
            Phase::Running { since, .. } => {
                Some(self.run_times.remaining(&task.spec.agent, self.now.at.saturating_sub(since)))
            }
            Phase::Queued | Phase::Preempted => None,
        });
        remaining.min()
    }

    fn ahead_of(&self, priority: Priority) -> usize {
        Priority::ALL.into_iter().take(priority.index()).map(|level| self.queue.waiting_at(level)).sum()
    }

    fn accept(&mut self, id: TaskId, spec: TaskSpec) {
        let spec = Arc::new(spec);
        self.notice(Notice::TaskAccepted {
            task: id,
            agent: spec.agent.clone(),
            priority: spec.priority,
            request: spec.request_id.clone(),
            waiting: self.queue.waiting(),
        });
        self.actions.push(Action::Record(Record::Accepted {
            task: id,
            spec: spec.clone(),
            created_ms: self.now.wall_ms,
        }));
        self.queue.push(spec.priority, id);
        self.ledger.insert(Task::accepted(id, spec, self.now));
    }

    /// Only a critical task evicts, and only the youngest queued skippable heartbeat.
    fn evictable(&self, spec: &TaskSpec) -> Option<TaskId> {
        let (limit, at_level) = self.limit_of(spec.priority);
        if spec.priority != Priority::Critical || at_level >= limit {
            return None;
        }
        self.queue
            .youngest_queued(Priority::Heartbeat)
            .find(|task| self.ledger.get(*task).is_some_and(|task| task.spec.skippable))
    }

    fn evict(&mut self, heartbeat: TaskId, made_room_for: TaskId) {
        if let Some(task) = self.ledger.get(heartbeat) {
            let (agent, request) = (task.spec.agent.clone(), task.spec.request_id.clone());
            self.notice(Notice::TaskEvicted { task: heartbeat, agent, made_room_for, request });
        }
        self.finish(heartbeat, Outcome::Evicted, None);
    }

    /// Of a schedule only the newest due beat is kept: one that still waits gives way.
    fn replace_older_beat(&mut self, spec: &TaskSpec) {
        if spec.schedule.is_none() {
            return;
        }
        let older = self
            .queue
            .iter()
            .find(|task| self.ledger.get(*task).is_some_and(|task| task.spec.schedule == spec.schedule));
        if let Some(older) = older {
            self.notice(Notice::HeartbeatSkipped {
                schedule: spec.schedule.clone(),
                task: Some(older),
                agent: spec.agent.clone(),
                text: "a newer beat of its schedule is due",
                incident: self.governor.incident(),
            });
            self.finish(older, Outcome::Skipped, None);
        }
    }

    pub(super) fn cancel(&mut self, ticket: Ticket, id: TaskId) {
        let answer = match self.ledger.get(id).map(|task| task.phase) {
            Some(Phase::Running { worker, .. }) => {
                self.cancel_running(id, worker);
                CancelAnswer::Accepted
            }
            Some(Phase::Queued | Phase::Preempted) => {
                self.finish(id, Outcome::Cancelled, None);
                CancelAnswer::Accepted
            }
            None => match self.ledger.finished(id) {
                Some(finished) => CancelAnswer::AlreadyFinished(finished.outcome.state()),
                None => CancelAnswer::UnknownTask,
            },
        };
        self.answer(ticket, Answer::Cancelled(answer));
    }

    /// Whatever its worker is being killed for: what is cancelled is not tried again.
    fn cancel_running(&mut self, task: TaskId, worker: WorkerId) {
        if let Some(task) = self.ledger.get_mut(task)
            && !std::mem::replace(&mut task.is_cancelled, true)
        {
            self.actions.push(Action::Record(Record::CancelRequested { task: task.id }));
        }
        match self.pool.get_mut(worker).map(|worker| &mut worker.state) {
            Some(WorkerState::Busy { .. }) => self.ask_to_cancel(worker, CancelReason::Requested),
            Some(WorkerState::Dying { verdict, .. }) => *verdict = Verdict::Cancelled,
            // A drain killed its worker and left the task to the next start.
            None => self.finish(task, Outcome::Cancelled, None),
            Some(WorkerState::Starting { .. } | WorkerState::Idle { .. } | WorkerState::Stopping { .. }) => {}
        }
    }
}
