//! What follows from what a worker did.

use super::Core;
use super::governor::SheddingAction;
use super::health::Availability;
use super::ids::{AgentName, TaskId, WorkerId};
use super::ledger::Phase;
use super::notice::{ExitReason, Notice};
use super::order::{BreakerAnswer, BreakerOp, CancelReason, Exit, Order, Report, WorkerReport};
use super::pool::{Stage, Verdict, Worker, WorkerState};
use super::settings::AgentMode;
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

    fn exited(&mut self, id: WorkerId, exit: &Exit) {
        let Some(mut worker) = self.pool.remove(id) else { return };
        let peak = self.learn_from_exit(&mut worker, exit);
        let state = std::mem::replace(&mut worker.state, WorkerState::Stopping { deadline: self.now.at });
        match state {
            WorkerState::Stopping { .. } => {
                self.note_exit(id, &worker, ExitReason::Finished, exit, String::new());
            }
            WorkerState::Idle { .. } => self.idle_ended(id, &worker, exit),
            WorkerState::Starting { .. } => {
                let message = format!("it {} before it said READY", ending(exit));
                self.note_exit(id, &worker, crash_reason(exit), exit, message.clone());
                let failure = explained(Failure::new(FailureCode::SpawnFailed, message), exit);
                self.start_failed(&worker.agent.name, worker.retiring, failure);
            }
            WorkerState::Dying { task, verdict } => {
                self.note_killed(id, &worker, &verdict, exit);
                if let Some(task) = task {
                    self.apply(task, verdict, exit, peak);
                }
            }
            WorkerState::Busy { task, stage, .. } => match worker.agent.mode {
                AgentMode::Oneshot => self.oneshot_ended(id, &worker, task, stage, exit, peak),
                AgentMode::Persistent => self.persistent_crashed(id, &worker, task, stage, exit, peak),
            },
        }
    }

    fn idle_ended(&mut self, id: WorkerId, worker: &Worker, exit: &Exit) {
        if exit.status == Some(0) {
            return self.note_exit(id, worker, ExitReason::Finished, exit, String::new());
        }
        self.note_exit(id, worker, crash_reason(exit), exit, "it ended while idle".to_string());
        self.note_health_failure(&worker.agent.name);
    }

    /// A worker that was killed here is gone.
    fn note_killed(&mut self, id: WorkerId, worker: &Worker, verdict: &Verdict, exit: &Exit) {
        let (reason, text) = match verdict {
            Verdict::Failed { failure, reason, .. } => (*reason, failure.message.clone()),
            Verdict::NoTask { reason } => (*reason, String::new()),
            Verdict::Cancelled | Verdict::LeftToNextStart => (ExitReason::Killed, String::new()),
        };
        self.note_exit(id, worker, reason, exit, text);
        // Why: who was killed to save the host has done nothing wrong.
        if matches!(verdict, Verdict::Failed { failure, .. } if failure.code != FailureCode::MemoryEmergency) {
            self.note_health_failure(&worker.agent.name);
        }
    }

    fn oneshot_ended(
        &mut self,
        id: WorkerId,
        worker: &Worker,
        task: TaskId,
        stage: Stage,
        exit: &Exit,
        peak: Option<u64>,
    ) {
        let is_kept = exit.result_error.is_none();
        let is_success = exit.status == Some(0) && is_kept;
        // Why: of a shell whose child the kernel killed, only its cgroup tells. A result that cannot be kept is no crash.
        let is_crash = stage == Stage::Working && is_kept && !is_success && (exit.signal.is_some() || exit.oom_killed);
        match &exit.result_error {
            Some(error) => self.note_exit(id, worker, ExitReason::Killed, exit, error.clone()),
            None if is_crash => self.note_exit(id, worker, crash_reason(exit), exit, String::new()),
            None => self.note_exit(id, worker, ExitReason::Finished, exit, String::new()),
        }
        if is_crash {
            self.note_health_failure(&worker.agent.name);
        } else {
            self.note_health(&worker.agent.name);
        }
        match (stage, &exit.result) {
            (Stage::Cancelling { reason: CancelReason::Requested, .. }, _) => {
                self.finish(task, Outcome::Cancelled, peak);
            }
            (_, Some(result)) if is_success => {
                self.finish(task, Outcome::Completed(result.clone()), peak);
            }
            (Stage::Cancelling { reason: CancelReason::Timeout, .. }, _) => {
                let failure = explained(self.timeout_failure(task), exit);
                self.fail_attempt(task, failure, true, peak);
            }
            // A drain's TERM ended it: the next start decides, as after a crash of the daemon.
            (Stage::Cancelling { reason: CancelReason::Drain, .. }, _) => {}
            (Stage::Working | Stage::Preempting { .. }, _) => {
                let failure = explained(oneshot_failure(exit), exit);
                self.fail_attempt(task, failure, is_crash, peak);
            }
        }
    }

    fn persistent_crashed(
        &mut self,
        id: WorkerId,
        worker: &Worker,
        task: TaskId,
        stage: Stage,
        exit: &Exit,
        peak: Option<u64>,
    ) {
        let (code, message) = if was_killed_by_kernel(exit) {
            (FailureCode::WorkerOom, kernel_kill(exit))
        } else {
            (FailureCode::WorkerCrashed, format!("the worker {} while it ran the task", ending(exit)))
        };
        self.note_exit(id, worker, crash_reason(exit), exit, message.clone());
        self.note_health_failure(&worker.agent.name);
        let verdict = match stage {
            Stage::Cancelling { reason: CancelReason::Requested, .. } => Verdict::Cancelled,
            Stage::Cancelling { reason: CancelReason::Timeout, .. } => self.failed_verdict(self.timeout_failure(task)),
            Stage::Working | Stage::Preempting { .. } | Stage::Cancelling { reason: CancelReason::Drain, .. } => {
                self.failed_verdict(Failure::new(code, message))
            }
        };
        self.apply(task, verdict, exit, peak);
    }

    fn failed_verdict(&self, failure: Failure) -> Verdict {
        Verdict::Failed { failure: Box::new(failure), retryable: true, reason: ExitReason::Crashed }
    }

    fn apply(&mut self, task: TaskId, verdict: Verdict, exit: &Exit, peak: Option<u64>) {
        match verdict {
            Verdict::NoTask { .. } | Verdict::LeftToNextStart => {}
            Verdict::Cancelled => self.finish(task, Outcome::Cancelled, peak),
            Verdict::Failed { failure, retryable, .. } => {
                self.fail_attempt(task, explained(*failure, exit), retryable, peak);
            }
        }
    }

    /// A worker did not get as far as READY. One of outdated settings says nothing about those of today.
    fn start_failed(&mut self, agent: &AgentName, is_outdated: bool, failure: Failure) {
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

    fn note_health(&mut self, agent: &AgentName) {
        if let Some(health) = self.health.get_mut(agent) {
            health.worked();
        }
    }

    fn note_health_failure(&mut self, agent: &AgentName) {
        let settings = &self.settings.workers;
        let health = self.health.entry(agent.clone()).or_default();
        if health.failed(self.now.at, settings)
            && let Availability::Unavailable { until, failures } = health.availability(self.now.at, settings)
        {
            let retry_after = until.saturating_sub(self.now.at);
            self.notice(Notice::AgentUnavailable { agent: agent.clone(), failures, retry_after });
        }
    }

    fn note_exit(&mut self, id: WorkerId, worker: &Worker, reason: ExitReason, exit: &Exit, text: String) {
        self.notice(Notice::WorkerExited {
            worker: id,
            agent: worker.agent.name.clone(),
            reason,
            status: exit.status,
            signal: exit.signal,
            text,
        });
    }
}

fn oneshot_failure(exit: &Exit) -> Failure {
    if let Some(error) = &exit.result_error {
        return Failure::new(FailureCode::AgentFailed, error.clone());
    }
    if was_killed_by_kernel(exit) {
        return Failure::new(FailureCode::WorkerOom, kernel_kill(exit));
    }
    if exit.signal.is_some() {
        return Failure::new(FailureCode::WorkerCrashed, format!("the process {}", ending(exit)));
    }
    Failure::new(FailureCode::AgentFailed, format!("the process {}; its stderr may say why", ending(exit)))
}

/// A KILL that nobody here sent, or the cgroup's own word.
fn was_killed_by_kernel(exit: &Exit) -> bool {
    const KILL: i32 = 9;
    exit.oom_killed || exit.signal == Some(KILL)
}

fn crash_reason(exit: &Exit) -> ExitReason {
    if was_killed_by_kernel(exit) { ExitReason::OutOfMemory } else { ExitReason::Crashed }
}

fn kernel_kill(exit: &Exit) -> String {
    if exit.oom_killed {
        "the kernel killed it at its memory limit: raise hard_limit_mb, or let it use less".to_string()
    } else {
        "it was killed by a KILL that the daemon did not send, most likely by the kernel for want of memory: see dmesg"
            .to_string()
    }
}

fn ending(exit: &Exit) -> String {
    match (exit.status, exit.signal) {
        (_, Some(signal)) => format!("was ended by signal {signal}"),
        (Some(status), None) => format!("exited with status {status}"),
        (None, None) => "ended".to_string(),
    }
}

/// The failure with how the process ended.
fn explained(failure: Failure, exit: &Exit) -> Failure {
    Failure {
        exit_status: exit.status,
        signal: exit.signal,
        stderr_tail: (!exit.stderr_tail.is_empty()).then(|| exit.stderr_tail.clone()),
        ..failure
    }
}
