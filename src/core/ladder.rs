//! What is done about memory, one rung at a time: idle workers and garbage first, then preemption with a checkpoint,
//! then refusal (at the door: `admission`), and killing last. One action at a time, each followed by a pause in which
//! the memory may fall.

use std::time::Duration;

use super::Core;
use super::governor::{Level, MemorySample, SheddingAction};
use super::ids::WorkerId;
use super::ledger::{Phase, Task};
use super::notice::{ExitReason, Notice};
use super::order::{Order, PreemptReason};
use super::pool::{Stage, Worker, WorkerState};
use super::settings::{AgentMode, Mode};
use super::task::{FailureCode, Priority};

const MIB: u64 = 1024 * 1024;

impl Core {
    pub(super) fn memory_sampled(&mut self, sample: MemorySample) {
        for (worker, rss) in &sample.workers {
            if let Some(worker) = self.pool.get_mut(*worker) {
                worker.rss_bytes = Some(*rss);
                worker.peak_rss_bytes = worker.peak_rss_bytes.max(*rss);
            }
        }
        let usage_bytes = sample.usage_bytes;
        if let Some(crossing) = self.governor.observe(self.now, sample, &self.settings.memory) {
            self.notice(Notice::MemoryLevel {
                from: crossing.from,
                to: crossing.to,
                pressure: self.governor.pressure(&self.settings.memory),
                usage_bytes,
                limit_bytes: self.settings.memory.limit_bytes,
                incident: crossing.incident,
            });
        }
        self.enforce_limits();
        self.shed(true);
    }

    /// Whether memory has consequences at all.
    pub(super) fn governs_memory(&self) -> bool {
        let features = &self.settings.features;
        features.memory_governance && features.rollout_percent > 0 && self.settings.memory.mode != Mode::Observe
    }

    fn may_kill(&self) -> bool {
        self.governs_memory() && self.settings.memory.mode == Mode::Hard
    }

    /// Each worker's own limits, whatever the level.
    fn enforce_limits(&mut self) {
        let workers: Vec<WorkerId> = self.pool.iter().map(|(id, _)| id).collect();
        for id in workers {
            if self.is_over_hard_limit(id) {
                self.kill_over_limit(id);
            } else {
                self.enforce_soft_limit(id);
            }
        }
    }

    /// One that was asked to end counts too: until it has, it may grow as fast as any.
    fn is_over_hard_limit(&self, id: WorkerId) -> bool {
        self.may_kill()
            && self.is_worker_governed(id)
            && self.pool.get(id).is_some_and(|worker| {
                !worker.is_dying() && worker.rss_bytes.is_some_and(|rss| rss > worker.agent.hard_limit_bytes)
            })
    }

    fn kill_over_limit(&mut self, id: WorkerId) {
        let Some(worker) = self.pool.get(id) else { return };
        let message = format!(
            "it used {} MiB of memory, over its hard limit of {} MiB: raise hard_limit_mb, or let it use less",
            self.rss(id) / MIB,
            worker.agent.hard_limit_bytes / MIB
        );
        self.kill_failing(id, FailureCode::WorkerOom, message, true, ExitReason::OutOfMemory);
    }

    /// Said once for each time a worker goes over it; an idle one that does not shrink then is replaced.
    fn enforce_soft_limit(&mut self, id: WorkerId) {
        let is_governed = self.governs_memory() && self.is_worker_governed(id);
        let hysteresis = self.settings.memory.hysteresis;
        let Some(worker) = self.pool.get_mut(id).filter(|worker| !worker.is_ending()) else { return };
        let Some(rss_bytes) = worker.rss_bytes else { return };
        let (agent, soft_limit_bytes) = (worker.agent.name.clone(), worker.agent.soft_limit_bytes);
        // Why: one that stays near its limit would be told so with every reading.
        let clears_at = (soft_limit_bytes as f64 * (1.0 - hysteresis)) as u64;
        let was_over = worker.is_over_soft_limit;
        worker.is_over_soft_limit = rss_bytes > if was_over { clears_at } else { soft_limit_bytes };
        let is_idle_and_fat = worker.is_idle() && worker.is_fat();
        if worker.is_over_soft_limit && !was_over {
            let incident = self.governor.incident();
            self.notice(Notice::WorkerSoftLimit { worker: id, agent, rss_bytes, soft_limit_bytes, incident });
            if is_governed {
                self.collect_garbage(id);
            }
        } else if was_over && is_idle_and_fat && is_governed {
            self.retire_for_memory(id);
        }
    }

    /// A worker without a task is governed; one with a task as the task is.
    fn is_worker_governed(&self, id: WorkerId) -> bool {
        self.pool.get(id).and_then(Worker::task).is_none_or(|task| self.is_governed(task))
    }

    /// Goes on shedding: called with every reading, and when a pause is over.
    pub(super) fn shed(&mut self, has_reading: bool) {
        let risen = self.governor.climb(self.now.at, has_reading);
        self.note_action_over();
        if !self.governs_memory() {
            return;
        }
        if let Some(rung) = risen {
            self.ask_all_for_garbage(rung);
        }
        // Why: figures are read again before each action, so only a reading leads to one.
        if has_reading {
            self.act();
        }
    }

    fn act(&mut self) {
        let rung = self.governor.sheds_at();
        if rung < Level::Critical || self.is_in_vain(rung) || !self.may_kill() {
            return;
        }
        match self.governor.shedding.action {
            Some(SheddingAction::Preempting(id)) if rung == Level::Emergency => self.stop_waiting_for(id),
            Some(SheddingAction::Preempting(_) | SheddingAction::Killing(_)) => {}
            // Why not wait for the rest of the pause: whoever brings the next emergency about has memory that the last one
            // did not give back, and in two seconds a leak takes gigabytes.
            None if rung == Level::Emergency && (!self.is_settling() || self.governor.shedding.has_turned) => {
                self.kill_one();
            }
            None if self.is_settling() => {}
            None => self.preempt_one(),
        }
    }

    /// Everybody is asked to free what he can each time it gets worse.
    fn ask_all_for_garbage(&mut self, rung: Level) {
        if !self.settings.features.gc_on_pressure {
            return;
        }
        let workers: Vec<WorkerId> = self.pool.iter().map(|(id, _)| id).collect();
        let asked = workers.iter().filter(|id| self.is_worker_governed(**id) && self.collect_garbage(**id)).count();
        if asked > 0 {
            let workers = if asked == 1 { "worker was" } else { "workers were" };
            let text = format!("{asked} {workers} asked to free what they can: memory is {}", rung.name());
            self.note_action("gc", None, text);
        }
    }

    /// Whether the worker is one that hears it.
    fn collect_garbage(&mut self, id: WorkerId) -> bool {
        let hears = self.pool.get(id).is_some_and(|worker| {
            worker.agent.mode == AgentMode::Persistent
                && matches!(worker.state, WorkerState::Idle { .. } | WorkerState::Busy { .. })
        });
        if hears {
            self.order(id, Order::CollectGarbage);
        }
        hears
    }

    /// An action is over when the worker has let go of its task or is gone; then the memory gets time to fall.
    fn note_action_over(&mut self) {
        let Some(action) = self.governor.shedding.action else { return };
        let is_under_way = match action {
            SheddingAction::Killing(id) => self.pool.get(id).is_some(),
            SheddingAction::Preempting(id) => self.pool.get(id).is_some_and(|worker| match &worker.state {
                WorkerState::Busy { stage: Stage::Preempting { .. } | Stage::Cancelling { .. }, .. }
                | WorkerState::Dying { .. } => true,
                WorkerState::Busy { stage: Stage::Working, .. }
                | WorkerState::Starting { .. }
                | WorkerState::Idle { .. }
                | WorkerState::Stopping { .. } => false,
            }),
        };
        if !is_under_way {
            self.governor.begin_to_settle(self.now.at, &self.settings.memory);
        }
    }

    /// Whether an action is under way or the memory is still being given time to fall after one.
    pub(super) fn is_settling(&self) -> bool {
        self.governor.shedding.action.is_some() || self.governor.shedding.settle_until > self.now.at
    }

    /// A preemption that takes too long for an emergency becomes a kill.
    fn stop_waiting_for(&mut self, id: WorkerId) {
        if self.pool.get(id).is_some_and(Worker::is_busy) {
            self.kill_for_memory(id);
        }
    }

    /// It was asked for a checkpoint and did not answer in time.
    pub(super) fn kill_silent(&mut self, id: WorkerId) {
        let timeout = self.settings.workers.checkpoint_timeout.as_millis();
        let message = format!("it gave no checkpoint within workers.checkpoint_timeout_ms = {timeout} when preempted");
        if self.governor.shedding.action == Some(SheddingAction::Preempting(id)) {
            self.note_action("kill", Some(id), message.clone());
        }
        self.kill_failing(id, FailureCode::MemoryEmergency, message, true, ExitReason::Killed);
    }

    pub(super) fn retire_for_memory(&mut self, id: WorkerId) {
        let text = format!("an idle worker was asked to end: it holds {} MiB", self.rss(id) / MIB);
        self.note_action("retire_idle", Some(id), text);
        self.shut_down(id);
    }

    fn preempt_one(&mut self) {
        let victim = self.victim(|worker, task| {
            worker.is_working()
                && worker.can_checkpoint
                && task.spec.preemptible
                && task.spec.priority != Priority::Critical
        });
        let Some(id) = victim else { return };
        if let Some(task) = self.task_of(id) {
            let text = format!(
                "{} at priority {} was asked for a checkpoint, the lowest that can give one: {}; it holds {} MiB",
                task.id,
                task.spec.priority.name(),
                self.governor.cause(&self.settings.memory),
                self.rss(id) / MIB
            );
            self.note_action("preempt", Some(id), text);
        }
        self.governor.shedding.action = Some(SheddingAction::Preempting(id));
        self.preempt(id, PreemptReason::MemoryPressure);
    }

    /// One that is being cancelled holds its memory all the same.
    fn kill_one(&mut self) {
        if let Some(id) = self.victim(|worker, _| worker.is_busy()) {
            self.kill_for_memory(id);
        }
    }

    fn kill_for_memory(&mut self, id: WorkerId) {
        let message = format!(
            "{}, and this task had the lowest priority; it held {} MiB",
            self.governor.cause(&self.settings.memory),
            self.rss(id) / MIB
        );
        self.note_action("kill", Some(id), message.clone());
        self.governor.shedding.action = Some(SheddingAction::Killing(id));
        self.kill_failing(id, FailureCode::MemoryEmergency, message, true, ExitReason::Killed);
    }

    /// The running task of lowest priority, then largest memory, then latest start, among those that qualify.
    fn victim(&self, qualifies: impl Fn(&Worker, &Task) -> bool) -> Option<WorkerId> {
        let running = self.pool.iter().filter_map(|(id, worker)| {
            let task = worker.task().and_then(|task| self.ledger.get(task))?;
            (self.is_governed(task.id) && qualifies(worker, task)).then_some((id, worker, task))
        });
        let last = running.max_by_key(|(_, worker, task)| {
            let since = match task.phase {
                Phase::Running { since, .. } => since,
                Phase::Queued | Phase::Preempted => Duration::ZERO,
            };
            (task.spec.priority, worker.rss_bytes.unwrap_or(0), since, task.id)
        });
        last.map(|(id, ..)| id)
    }

    /// Whether the pressure comes from outside and all that runs here holds less than would have to be given back.
    /// Said once in an incident.
    fn is_in_vain(&mut self, level: Level) -> bool {
        let Some(excess) = self.governor.outside_excess(level, &self.settings.memory) else { return false };
        let held: u64 = self.pool.iter().filter_map(|(_, worker)| worker.rss_bytes).sum();
        if held >= excess {
            return false;
        }
        if !self.governor.shedding.has_blamed_outside {
            self.governor.shedding.has_blamed_outside = true;
            let text = format!(
                "the pressure comes from outside: {} MiB too much are in use on this host, and all workers together \
                 hold {} MiB, so none is preempted or killed for it",
                excess / MIB,
                held / MIB
            );
            self.note_action("none", None, text);
        }
        true
    }

    fn note_action(&mut self, action: &'static str, worker: Option<WorkerId>, text: String) {
        let task = worker.and_then(|worker| self.task_of(worker)).map(|task| task.id);
        self.notice(Notice::MemoryAction { action, task, worker, text, incident: self.governor.incident() });
    }

    fn task_of(&self, id: WorkerId) -> Option<&Task> {
        self.pool.get(id).and_then(Worker::task).and_then(|task| self.ledger.get(task))
    }

    fn rss(&self, id: WorkerId) -> u64 {
        self.pool.get(id).and_then(|worker| worker.rss_bytes).unwrap_or(0)
    }
}
