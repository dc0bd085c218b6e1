//! What time alone brings about.

use std::sync::Arc;
use std::time::Duration;

use super::event::{Action, Record};
use super::governor::Level;
use super::ids::WorkerId;
use super::ledger::Retention;
use super::notice::{ExitReason, Notice};
use super::order::{CancelReason, Order, PreemptReason};
use super::pool::{Stage, Verdict, WorkerState};
use super::settings::ScheduleSettings;
use super::task::FailureCode;
use super::{Core, DrainStage, Draining};

impl Core {
    /// When `handle` wants to be called again though nothing has happened; `None`: never.
    pub fn next_deadline(&self) -> Option<Duration> {
        let idle_timeout = self.settings.workers.idle_timeout;
        let workers = self.pool.iter().filter_map(|(_, worker)| worker.deadline(idle_timeout));
        let breakers = self.breakers.values().filter_map(super::breaker::Breaker::next_deadline);
        let drain = self.draining.as_ref().and_then(Draining::next_deadline);
        let forgotten = self.ledger.next_forgotten(&self.retention());
        let all = workers.chain(breakers).chain(drain).chain(forgotten).chain(self.governor.next_deadline());
        if self.draining.is_some() {
            return all.min();
        }
        let schedules = self.schedules.iter().map(super::schedule::Schedule::next_at);
        let retries = self.queue.returned().filter_map(|id| self.ledger.get(id)?.retry_at);
        let retries = retries.filter(|at| *at > self.now.at);
        all.chain(schedules).chain(retries).chain(self.next_available()).chain(self.settled_at()).min()
    }

    /// When the pause after an action is over, if something waits that may start then.
    fn settled_at(&self) -> Option<Duration> {
        let settle_until = self.governor.shedding.settle_until;
        (settle_until > self.now.at && !self.queue.is_empty()).then_some(settle_until)
    }

    /// When an agent that something waits for may be started again.
    fn next_available(&self) -> Option<Duration> {
        use super::health::Availability::{Available, BackingOff, Unavailable};
        if self.queue.is_empty() {
            return None;
        }
        self.health
            .values()
            .filter_map(|health| match health.availability(self.now.at, &self.settings.workers) {
                Available => None,
                BackingOff { until } | Unavailable { until, .. } => Some(until),
            })
            .min()
    }

    pub(super) fn pass_deadlines(&mut self) {
        self.pass_breakers();
        self.pass_schedules();
        self.shed(false);
        // Why first: what the drain's deadline ends is left to the next start, not failed for being late.
        self.pass_drain();
        self.pass_workers();
        self.pass_retention();
    }

    pub(super) fn pass_retention(&mut self) {
        let retention = self.retention();
        while let Some(task) = self.ledger.forget_one(self.now.at, &retention) {
            self.actions.push(Action::Record(Record::Forgotten { task }));
        }
    }

    fn retention(&self) -> Retention {
        let settings = &self.settings.retention;
        Retention { age: settings.age, result_bytes: settings.result_bytes }
    }

    pub(super) fn pass_breakers(&mut self) {
        let now = self.now.at;
        let moved: Vec<_> = self
            .breakers
            .iter_mut()
            .filter_map(|(name, breaker)| breaker.tick(now).map(|to| (name.clone(), to)))
            .collect();
        for (name, to) in moved {
            self.note_transition(&name, Some(to));
        }
    }

    fn pass_schedules(&mut self) {
        if self.draining.is_some() {
            return;
        }
        for index in 0..self.schedules.len() {
            if !self.schedules[index].take_due(self.now.at) {
                continue;
            }
            let (is_short, is_refusing) = (self.skips_beats(), self.governor.level() >= Level::Reject);
            let schedule = &mut self.schedules[index];
            let settings = schedule.settings.clone();
            if is_short && settings.skippable && (is_refusing || schedule.may_skip()) {
                schedule.note_skip();
                self.notice(Notice::HeartbeatSkipped {
                    schedule: Some(settings.name.clone()),
                    task: None,
                    agent: settings.agent.clone(),
                    text: "memory is short",
                    incident: self.governor.incident(),
                });
            } else if is_short && settings.skippable {
                // Why: a skippable one would be taken, and then passed over for as long as memory is short.
                schedule.note_forced_beat();
                self.actions.push(Action::Beat(Arc::new(ScheduleSettings { skippable: false, ..(*settings).clone() })));
            } else {
                schedule.note_beat();
                self.actions.push(Action::Beat(settings));
            }
        }
    }

    /// Why not while governance is rolled out to a share of the tasks: whether a beat is in it, its task's id says.
    fn skips_beats(&self) -> bool {
        let is_for_all = self.settings.features.rollout_percent == 100;
        self.governor.level() >= Level::Warning && self.governs_memory() && is_for_all
    }

    /// The idle workers, or the others, whose deadline has come.
    fn due_workers(&self, idle: bool) -> Vec<WorkerId> {
        let idle_timeout = self.settings.workers.idle_timeout;
        let is_due = |deadline| deadline <= self.now.at;
        self.pool
            .iter()
            .filter(|(_, worker)| worker.is_idle() == idle && worker.deadline(idle_timeout).is_some_and(is_due))
            .map(|(id, _)| id)
            .collect()
    }

    fn pass_workers(&mut self) {
        for worker in self.due_workers(false) {
            self.pass_worker(worker);
        }
    }

    /// Those whose time is over; while memory is short, all of them.
    pub(super) fn retire_idle(&mut self) {
        if self.governor.sheds_at() >= Level::Warning && self.governs_memory() {
            let idle: Vec<WorkerId> =
                self.pool.iter().filter(|(_, worker)| worker.is_idle()).map(|(id, _)| id).collect();
            for id in idle {
                self.retire_for_memory(id);
            }
        }
        for worker in self.due_workers(true) {
            self.shut_down(worker);
        }
    }

    fn pass_worker(&mut self, id: WorkerId) {
        let Some(worker) = self.pool.get(id) else { return };
        match &worker.state {
            WorkerState::Starting { .. } => {
                let timeout = self.settings.workers.spawn_timeout.as_secs();
                let message = format!("no READY within workers.spawn_timeout_s = {timeout}");
                self.kill_failing(id, FailureCode::SpawnFailed, message, true, ExitReason::Killed);
            }
            WorkerState::Stopping { .. } => {
                let agent = worker.agent.name.clone();
                let text = "it did not end when asked to".to_string();
                self.notice(Notice::WorkerKilled { worker: id, agent, text });
                self.doom(id, Verdict::NoTask { reason: ExitReason::Killed });
            }
            WorkerState::Busy { stage: Stage::Working, .. } => self.ask_to_cancel(id, CancelReason::Timeout),
            WorkerState::Busy { task, stage: Stage::Cancelling { reason: CancelReason::Timeout, .. }, .. } => {
                let message = self.timeout_failure(*task).message;
                self.kill_failing(id, FailureCode::Timeout, message, true, ExitReason::Killed);
            }
            WorkerState::Busy { stage: Stage::Cancelling { .. }, .. } => {
                let message = "it did not stop when cancelled".to_string();
                self.kill_failing(id, FailureCode::WorkerCrashed, message, true, ExitReason::Killed);
            }
            WorkerState::Busy { stage: Stage::Preempting { .. }, .. } => {
                self.kill_silent(id);
            }
            WorkerState::Idle { .. } | WorkerState::Dying { .. } => {}
        }
    }

    pub(super) fn ask_to_cancel(&mut self, id: WorkerId, reason: CancelReason) {
        let kill_at = self.now.at + self.settings.workers.cancel_grace;
        let Some(worker) = self.pool.get_mut(id) else { return };
        let WorkerState::Busy { task, stage, .. } = &mut worker.state else { return };
        let task = *task;
        // A second reason does not give it more time, but a client's word decides what becomes of the task.
        let (kill_at, is_told) = match *stage {
            Stage::Cancelling { kill_at, reason: told } => (kill_at, told == reason),
            Stage::Working | Stage::Preempting { .. } => (kill_at, false),
        };
        *stage = Stage::Cancelling { reason, kill_at };
        if !is_told {
            self.order(id, Order::Cancel { task, reason });
        }
    }

    /// Asks a running task for a checkpoint; it is parked when it answers, killed when it does not.
    pub(super) fn preempt(&mut self, id: WorkerId, reason: PreemptReason) {
        let checkpoint_timeout = self.settings.workers.checkpoint_timeout;
        let kill_at = self.now.at + checkpoint_timeout;
        let Some(worker) = self.pool.get_mut(id) else { return };
        if let WorkerState::Busy { task, stage: stage @ Stage::Working, .. } = &mut worker.state {
            *stage = Stage::Preempting { kill_at };
            let task = *task;
            self.order(id, Order::Preempt { task, reason, checkpoint_timeout });
        }
    }

    pub(super) fn drain(&mut self, timeout: Duration) {
        let deadline = self.now.at + timeout;
        let deadline = self.draining.as_ref().map_or(deadline, |draining| draining.deadline.min(deadline));
        let stage = self.draining.as_ref().map_or(DrainStage::Finishing, |draining| draining.stage);
        let checkpoint_at = deadline.saturating_sub(self.settings.workers.checkpoint_timeout);
        self.draining = Some(Draining { checkpoint_at, deadline, stage });
        let unneeded: Vec<WorkerId> =
            self.pool.iter().filter(|(_, worker)| worker.is_idle() || worker.is_starting()).map(|(id, _)| id).collect();
        for worker in unneeded {
            self.shut_down(worker);
        }
    }

    fn pass_drain(&mut self) {
        let Some(draining) = &mut self.draining else { return };
        let now = self.now.at;
        if draining.stage < DrainStage::Checkpointing && draining.checkpoint_at <= now {
            draining.stage = DrainStage::Checkpointing;
            for worker in self.busy(|can_checkpoint| can_checkpoint) {
                self.preempt(worker, PreemptReason::Shutdown);
            }
        }
        let Some(draining) = &mut self.draining else { return };
        if draining.stage < DrainStage::Killing && draining.deadline <= now {
            draining.stage = DrainStage::Killing;
            for id in self.busy(|_| true) {
                let verdict = self.verdict_of_drain(id);
                self.doom(id, verdict);
            }
        }
    }

    /// What a client cancelled does not run again because the daemon stops before its worker did.
    fn verdict_of_drain(&self, id: WorkerId) -> Verdict {
        let is_cancelled = self.pool.get(id).is_some_and(|worker| {
            matches!(
                worker.state,
                WorkerState::Busy { stage: Stage::Cancelling { reason: CancelReason::Requested, .. }, .. }
            )
        });
        if is_cancelled { Verdict::Cancelled } else { Verdict::LeftToNextStart }
    }

    fn doom(&mut self, id: WorkerId, verdict: Verdict) {
        if let Some(worker) = self.pool.get_mut(id) {
            let task = worker.task();
            worker.state = WorkerState::Dying { task, verdict };
            self.order(id, Order::Kill);
        }
    }

    fn busy(&self, matches: impl Fn(bool) -> bool) -> Vec<WorkerId> {
        let busy = self.pool.iter().filter(|(_, worker)| worker.is_busy() && matches(worker.can_checkpoint));
        busy.map(|(id, _)| id).collect()
    }

    pub(super) fn tell_if_drained(&mut self) {
        if let Some(draining) = &mut self.draining
            && draining.stage != DrainStage::Done
            && self.pool.is_empty()
        {
            draining.stage = DrainStage::Done;
            self.actions.push(Action::Drained);
        }
    }
}

impl Draining {
    fn next_deadline(&self) -> Option<Duration> {
        match self.stage {
            DrainStage::Finishing => Some(self.checkpoint_at),
            DrainStage::Checkpointing => Some(self.deadline),
            DrainStage::Killing | DrainStage::Done => None,
        }
    }
}
