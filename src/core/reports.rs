//! What follows from what a worker did.

use super::Core;
use super::governor::SheddingAction;
use super::health::Availability;
use super::ids::{AgentName, TaskId, WorkerId};
use super::ledger::Phase;
use super::notice::{ExitReason, Notice};
use super::order::{BreakerAnswer, BreakerOp, CancelReason, Exit, Order, Report, WorkerReport};
use super::pool::{Stage, Verdict, Worker, WorkerState};
use super::task::{Failure, FailureCode, Outcome, Progress, ResultRef};

impl Core {
    pub(super) fn report(&mut self, WorkerReport { worker, report }: WorkerReport) {
        match report {
            Report::Spawned { pid } => self.spawned(worker, pid),
            Report::SpawnFailed { error } => self.spawn_failed(worker, &error),
            Report::Ready { can_checkpoint, can_cancel: _ } => self.ready(worker, can_checkpoint),
            Report::Progress { task, percent, message, checkpoint } => {
                self.progress(worker, task, Progress { percent, message }, checkpoint);
            }
            Report::Completed { task, result } => self.completed(worker, task, result),
            Report::Failed { task, error, stack, retryable } => self.failed(worker, task, error, stack, retryable),
            Report::Preempted { task, checkpoint } => self.preempted(worker, task, checkpoint),
            Report::Memory(reading) => {
                if let Some(worker) = self.pool.get_mut(worker) {
                    worker.heap = Some(reading);
                }
            }
            Report::Breaker { name, op } => self.worker_breaker(worker, &name, op),
            Report::ProtocolError { message } => self.protocol_error(worker, message),
            Report::Exited(exit) => self.exited(worker, &exit),
        }
    }

    fn spawned(&mut self, id: WorkerId, pid: u32) {
        if let Some(worker) = self.pool.get_mut(id) {
            worker.pid = Some(pid);
            let agent = worker.agent.name.clone();
            self.notice(Notice::WorkerSpawned { worker: id, agent, pid });
        }
    }

    fn spawn_failed(&mut self, id: WorkerId, error: &str) {
        let Some(worker) = self.pool.remove(id) else { return };
        let agent = worker.agent.name.clone();
        self.note_exit(id, &worker, ExitReason::SpawnFailed, &Exit::default(), error.to_string());
        if !worker.is_starting() {
            self.note_health_failure(&agent);
        }
        let failure = Failure::new(FailureCode::SpawnFailed, error);
        match worker.state {
            WorkerState::Busy { task, stage: Stage::Cancelling { reason: CancelReason::Requested, .. }, .. } => {
                self.finish(task, Outcome::Cancelled, None);
            }
            WorkerState::Busy { task, .. } => self.fail_attempt(task, failure, true, None),
            WorkerState::Dying { task: Some(task), verdict } => self.apply(task, verdict, &Exit::default(), None),
            WorkerState::Starting { .. } => self.start_failed(&agent, worker.retiring, failure),
            WorkerState::Idle { .. } | WorkerState::Stopping { .. } | WorkerState::Dying { task: None, .. } => {}
        }
    }

    fn ready(&mut self, id: WorkerId, can_checkpoint: bool) {
        let since = self.now.at;
        let Some(worker) = self.pool.get_mut(id) else { return };
        worker.can_checkpoint = can_checkpoint;
        if worker.is_starting() {
            worker.state = WorkerState::Idle { since };
            if worker.retiring {
                self.shut_down(id);
            }
        }
    }

    fn progress(&mut self, worker: WorkerId, id: TaskId, progress: Progress, checkpoint: bool) {
        if self.pool.get(worker).and_then(Worker::task) != Some(id) {
            return;
        }
        let Some(task) = self.ledger.get_mut(id) else { return };
        task.has_checkpoint |= checkpoint;
        task.progress = Some(progress.clone());
        self.notice(Notice::TaskProgress { task: id, percent: progress.percent, message: progress.message });
    }

    fn completed(&mut self, worker: WorkerId, task: TaskId, result: ResultRef) {
        let outcome = match self.stage_of(worker, task) {
            None => return,
            Some(Stage::Cancelling { reason: CancelReason::Requested, .. }) => Outcome::Cancelled,
            // Why: it made it after all; a timeout or preemption that came too late is no reason to throw work away.
            Some(Stage::Working | Stage::Preempting { .. } | Stage::Cancelling { .. }) => Outcome::Completed(result),
        };
        let peak =
            self.pool.get(worker).map(|worker| worker.heap.map_or(0, |heap| heap.rss).max(worker.peak_rss_bytes));
        self.finish(task, outcome, peak.filter(|peak| *peak > 0));
        self.learn_footprint_of(worker, true);
        self.release(worker);
    }

    fn failed(&mut self, worker: WorkerId, task: TaskId, error: String, stack: Option<String>, retryable: bool) {
        match self.stage_of(worker, task) {
            None => return,
            Some(Stage::Cancelling { reason: CancelReason::Requested, .. }) => {
                self.finish(task, Outcome::Cancelled, None);
            }
            Some(Stage::Cancelling { reason: CancelReason::Timeout, .. }) => {
                let failure = self.timeout_failure(task);
                self.fail_attempt(task, failure, true, None);
            }
            Some(Stage::Working | Stage::Preempting { .. } | Stage::Cancelling { reason: CancelReason::Drain, .. }) => {
                let failure = Failure { stack, ..Failure::new(FailureCode::AgentFailed, error) };
                self.fail_attempt(task, failure, retryable, None);
            }
        }
        self.learn_footprint_of(worker, false);
        self.release(worker);
    }

    fn preempted(&mut self, id: WorkerId, task_id: TaskId, checkpoint: bool) {
        match self.stage_of(id, task_id) {
            None => return,
            Some(Stage::Preempting { .. } | Stage::Cancelling { reason: CancelReason::Drain, .. }) => {
                self.park(id, task_id, checkpoint);
            }
            Some(Stage::Cancelling { reason: CancelReason::Requested, .. }) => {
                self.finish(task_id, Outcome::Cancelled, None);
            }
            Some(Stage::Cancelling { reason: CancelReason::Timeout, .. }) => {
                let failure = self.timeout_failure(task_id);
                self.fail_attempt(task_id, failure, true, None);
            }
            Some(Stage::Working) => {
                let message = format!("it sent PREEMPTED for {task_id} and had not been asked to");
                return self.kill_failing(id, FailureCode::ProtocolError, message, false, ExitReason::Protocol);
            }
        }
        self.learn_footprint_of(id, false);
        self.release(id);
    }

    fn park(&mut self, worker: WorkerId, id: TaskId, checkpoint: bool) {
        let is_for_memory = self.governor.shedding.action == Some(SheddingAction::Preempting(worker));
        let Some(task) = self.ledger.get_mut(id) else { return };
        task.phase = Phase::Preempted;
        task.preemptions += 1;
        task.was_stopped_by_memory |= is_for_memory;
        task.has_checkpoint = checkpoint;
        task.progress = None;
        let (spec, preemptions, permit) = (task.spec.clone(), task.preemptions, task.permit.take());
        self.settle_permit(permit, &Outcome::Cancelled);
        self.put_back(id);
        self.notice(Notice::TaskPreempted {
            task: id,
            worker,
            agent: spec.agent.clone(),
            has_checkpoint: checkpoint,
            preemptions,
            request: spec.request_id.clone(),
            incident: self.governor.incident(),
        });
    }

    /// How far the worker is with this task; `None` if its end is decided already.
    fn stage_of(&self, worker: WorkerId, task: TaskId) -> Option<Stage> {
        match self.pool.get(worker)?.state {
            WorkerState::Busy { task: current, stage, .. } if current == task => Some(stage),
            WorkerState::Busy { .. }
            | WorkerState::Starting { .. }
            | WorkerState::Idle { .. }
            | WorkerState::Stopping { .. }
            | WorkerState::Dying { .. } => None,
        }
    }

    /// A persistent worker has done with its task: idle, or replaced.
    fn release(&mut self, id: WorkerId) {
        let settings = &self.settings.workers;
        let is_draining = self.draining.is_some();
        let (has_surplus, governs_memory) = (self.has_surplus(), self.governs_memory());
        let Some(worker) = self.pool.get_mut(id) else { return };
        worker.tasks_done += 1;
        let is_worn = settings.recycle_after_tasks > 0 && worker.tasks_done >= settings.recycle_after_tasks;
        // Why: it was asked to free memory when it went over its soft limit, and has not.
        let is_fat = governs_memory && worker.is_fat();
        let ends =
            worker.retiring || is_worn || is_fat || is_draining || has_surplus || !self.settings.features.worker_pool;
        worker.state = WorkerState::Idle { since: self.now.at };
        let agent = worker.agent.name.clone();
        self.note_health(&agent);
        if ends {
            self.shut_down(id);
        }
    }

    fn worker_breaker(&mut self, worker: WorkerId, name: &std::sync::Arc<str>, op: BreakerOp) {
        let permit = self.next_permit();
        let now = self.now.at;
        let known = self.breakers.get_mut(name);
        let transition = match op {
            BreakerOp::Acquire => {
                let acquired = known.map(|breaker| breaker.acquire(now, permit, super::breaker::Holder::Outside(now)));
                let answer = match acquired {
                    // Why: a breaker nobody configured guards nothing, and an agent must not hang on its answer.
                    None | Some(Ok(())) => BreakerAnswer::Permit(permit),
                    Some(Err(retry_after)) => BreakerAnswer::RetryAfter(retry_after),
                };
                return self.order(worker, Order::BreakerState { name: name.clone(), answer });
            }
            BreakerOp::Success(permit) | BreakerOp::Failure(permit)
                if known.as_ref().is_some_and(|breaker| !breaker.is_outside(permit)) =>
            {
                None
            }
            BreakerOp::Success(permit) => known.and_then(|breaker| breaker.success(permit)),
            BreakerOp::Failure(permit) => known.and_then(|breaker| breaker.failure(now, permit)),
        };
        self.note_transition(name, transition.flatten());
    }

    fn protocol_error(&mut self, id: WorkerId, message: String) {
        let failure = Failure::new(FailureCode::ProtocolError, message);
        self.condemn(id, failure, false, ExitReason::Protocol);
    }

    /// Kills a worker; its task, if it has one, fails with this.
    pub(super) fn kill_failing(
        &mut self,
        id: WorkerId,
        code: FailureCode,
        message: String,
        retryable: bool,
        reason: ExitReason,
    ) {
        let Some(worker) = self.pool.get(id) else { return };
        let agent = worker.agent.name.clone();
        match worker.task().and_then(|task| self.ledger.get(task)) {
            Some(task) => {
                let (task, request) = (task.id, task.spec.request_id.clone());
                let (text, incident) = (message.clone(), self.governor.incident());
                self.notice(Notice::TaskKilled { task, worker: id, agent, code, text, request, incident });
            }
            None => self.notice(Notice::WorkerKilled { worker: id, agent, text: message.clone() }),
        }
        self.condemn(id, Failure::new(code, message), retryable, reason);
        self.order(id, Order::Kill);
    }

    fn condemn(&mut self, id: WorkerId, failure: Failure, retryable: bool, reason: ExitReason) {
        if let Some(worker) = self.pool.get(id).filter(|worker| worker.is_starting()) {
            // Why now: nobody else would ever tell the task that called for this worker.
            let message = format!("the worker did not get ready: {}", failure.message);
            let (agent, is_outdated) = (worker.agent.name.clone(), worker.retiring);
            self.start_failed(&agent, is_outdated, Failure::new(FailureCode::SpawnFailed, message));
        }
        let Some(worker) = self.pool.get_mut(id) else { return };
        let verdict = Verdict::Failed { failure: Box::new(failure), retryable, reason };
        let (task, verdict) = match &worker.state {
            WorkerState::Busy { task, stage, .. } => match stage {
                Stage::Cancelling { reason: CancelReason::Requested, .. } => (Some(*task), Verdict::Cancelled),
                Stage::Working | Stage::Preempting { .. } | Stage::Cancelling { .. } => (Some(*task), verdict),
            },
            WorkerState::Idle { .. } => (None, verdict),
            WorkerState::Starting { .. } | WorkerState::Stopping { .. } => (None, Verdict::NoTask { reason }),
            WorkerState::Dying { .. } => return,
        };
        worker.state = WorkerState::Dying { task, verdict };
    }

    /// A worker did not get as far as READY. One of outdated settings says nothing about those of today.
    pub(super) fn start_failed(&mut self, agent: &AgentName, is_outdated: bool, failure: Failure) {
        if !is_outdated {
            self.note_health_failure(agent);
            self.fail_next_waiting(agent, failure);
        }
    }

    /// The task that called for a worker which could not be had, or the next in line after it.
    fn fail_next_waiting(&mut self, agent: &AgentName, failure: Failure) {
        let next = self.queue.iter().find(|task| self.ledger.get(*task).is_some_and(|task| task.spec.agent == *agent));
        if let Some(task) = next {
            self.fail_attempt(task, failure, true, None);
        }
    }

    pub(super) fn timeout_failure(&self, task: TaskId) -> Failure {
        let timeout = self.ledger.get(task).map_or(0.0, |task| task.spec.timeout.as_secs_f64());
        Failure::new(
            FailureCode::Timeout,
            format!("it ran longer than its timeout of {timeout} s: raise timeoutS or workers.task_timeout_s"),
        )
    }

    pub(super) fn note_health(&mut self, agent: &AgentName) {
        if let Some(health) = self.health.get_mut(agent) {
            health.worked();
        }
    }

    pub(super) fn note_health_failure(&mut self, agent: &AgentName) {
        let settings = &self.settings.workers;
        let health = self.health.entry(agent.clone()).or_default();
        if health.failed(self.now.at, settings)
            && let Availability::Unavailable { until, failures } = health.availability(self.now.at, settings)
        {
            let retry_after = until.saturating_sub(self.now.at);
            self.notice(Notice::AgentUnavailable { agent: agent.clone(), failures, retry_after });
        }
    }
}
