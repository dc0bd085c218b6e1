//! What follows from the end of a worker process: whose fault it was, and what becomes of the task it had.

use super::Core;
use super::ids::{TaskId, WorkerId};
use super::notice::{ExitReason, Notice};
use super::order::{CancelReason, Exit};
use super::pool::{Stage, Verdict, Worker, WorkerState};
use super::settings::AgentMode;
use super::task::{Failure, FailureCode, Outcome};

impl Core {
    pub(super) fn exited(&mut self, id: WorkerId, exit: &Exit) {
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

    pub(super) fn apply(&mut self, task: TaskId, verdict: Verdict, exit: &Exit, peak: Option<u64>) {
        match verdict {
            Verdict::NoTask { .. } | Verdict::LeftToNextStart => {}
            Verdict::Cancelled => self.finish(task, Outcome::Cancelled, peak),
            Verdict::Failed { failure, retryable, .. } => {
                self.fail_attempt(task, explained(*failure, exit), retryable, peak);
            }
        }
    }

    pub(super) fn note_exit(&mut self, id: WorkerId, worker: &Worker, reason: ExitReason, exit: &Exit, text: String) {
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
