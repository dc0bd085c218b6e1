//! What is done about memory, one rung at a time: idle workers and garbage first, then preemption with a checkpoint,
//! then refusal (at the door: `admission`), and killing last. One action at a time, each followed by a pause in which
//! the memory may fall.

use std::cmp::Reverse;

use super::Core;
use super::governor::{Level, MemorySample, SheddingAction};
use super::ids::WorkerId;
use super::ledger::Phase;
use super::notice::{ExitReason, Notice};
use super::order::{Order, PreemptReason};
use super::pool::{Stage, Worker, WorkerState};
use super::settings::Mode;
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
        self.settings.features.memory_governance && self.settings.memory.mode != Mode::Observe
    }

    fn may_kill(&self) -> bool {
        self.settings.features.memory_governance && self.settings.memory.mode == Mode::Hard
    }

    /// Each worker's own limits, whatever the level.
    fn enforce_limits(&mut self) {
        let workers: Vec<WorkerId> = self.pool.iter().map(|(id, _)| id).collect();
        for id in workers {
            let Some(worker) = self.pool.get_mut(id) else { continue };
            let (Some(rss), agent) = (worker.rss_bytes, worker.agent.clone()) else { continue };
            if worker.is_ending() {
                continue;
            }
            let is_over = rss > agent.soft_limit_bytes;
            let is_new = is_over && !worker.is_over_soft_limit;
            worker.is_over_soft_limit = is_over;
            if rss > agent.hard_limit_bytes && self.may_kill() && self.is_worker_governed(id) {
                let message = format!(
                    "it used {} MiB of memory, over its hard limit of {} MiB: raise hard_limit_mb, or let it use less",
                    rss / MIB,
                    agent.hard_limit_bytes / MIB
                );
                self.kill_failing(id, FailureCode::WorkerOom, message, true, ExitReason::OutOfMemory);
            } else if is_new {
                self.notice(Notice::WorkerSoftLimit {
                    worker: id,
                    agent: agent.name.clone(),
                    rss_bytes: rss,
                    soft_limit_bytes: agent.soft_limit_bytes,
                });
                if self.governs_memory() {
                    self.collect_garbage(id);
                }
            }
        }
    }

    /// A worker without a task is governed; one with a task as the task is.
    fn is_worker_governed(&self, id: WorkerId) -> bool {
        self.pool.get(id).and_then(Worker::task).is_none_or(|task| self.is_governed(task))
    }

    /// Goes on shedding: called with every reading, and when a pause is over.
    pub(super) fn shed(&mut self, has_reading: bool) {
        let risen = self.governor.climb(self.now.at, has_reading);
        if !self.governs_memory() || self.draining.is_some() {
            return;
        }
        if let Some(rung) = risen {
            self.climbed(rung);
        }
        // Why: figures are read again before each action, so only a reading leads to one.
        if has_reading && self.may_kill() && !self.is_acting() && self.governor.shedding.settle_until <= self.now.at {
            match self.governor.rung() {
                Level::Normal | Level::Warning => {}
                Level::Critical | Level::Reject => self.preempt_one(),
                Level::Emergency => self.kill_one(),
            }
        }
    }

    /// Everybody is asked to free what he can each time it gets worse.
    fn climbed(&mut self, rung: Level) {
        if self.settings.features.gc_on_pressure {
            let workers: Vec<WorkerId> =
                self.pool.iter().filter(|(_, worker)| !worker.is_ending()).map(|(id, _)| id).collect();
            let asked = workers.iter().filter(|id| self.collect_garbage(**id)).count();
            if asked > 0 {
                let text = format!("{asked} workers were asked to free what they can: memory is {}", rung.name());
                self.note_action("gc", None, text);
            }
        }
    }

    fn collect_garbage(&mut self, id: WorkerId) -> bool {
        let hears = self.pool.get(id).is_some_and(|worker| {
            worker.agent.mode == super::settings::AgentMode::Persistent
                && matches!(worker.state, WorkerState::Idle { .. } | WorkerState::Busy { .. })
        });
        if hears {
            self.order(id, Order::CollectGarbage);
        }
        hears
    }

    /// Whether an action is under way. One that is over is followed by a pause; a preemption that takes too long for an
    /// emergency becomes a kill.
    fn is_acting(&mut self) -> bool {
        let Some(action) = self.governor.shedding.action else { return false };
        let is_over = match action {
            SheddingAction::Preempting(id) => !self.pool.get(id).is_some_and(|worker| {
                matches!(
                    worker.state,
                    WorkerState::Busy { stage: Stage::Preempting { .. }, .. } | WorkerState::Dying { .. }
                )
            }),
            SheddingAction::Killing(id) => self.pool.get(id).is_none(),
        };
        if is_over {
            self.governor.shedding.action = None;
            self.governor.shedding.settle_until = self.now.at + self.settings.memory.settle;
            return false;
        }
        if let SheddingAction::Preempting(id) = action
            && self.governor.rung() == Level::Emergency
            && self.pool.get(id).is_some_and(|worker| matches!(worker.state, WorkerState::Busy { .. }))
        {
            self.kill_for_memory(id);
        }
        true
    }

    pub(super) fn retire_for_memory(&mut self, id: WorkerId) {
        let text = format!("an idle worker was asked to end: it holds {} MiB", self.rss(id) / MIB);
        self.note_action("retire_idle", Some(id), text);
        self.shut_down(id);
    }

    fn preempt_one(&mut self) {
        let can = |core: &Core, id: WorkerId| {
            core.pool.get(id).is_some_and(|worker| worker.can_checkpoint)
                && core
                    .task_of(id)
                    .is_some_and(|task| task.spec.preemptible && task.spec.priority != Priority::Critical)
        };
        let Some(id) = self.victim(can) else { return };
        if self.is_in_vain(self.governor.rung()) {
            return;
        }
        if let Some(task) = self.task_of(id) {
            let text = format!(
                "{} at priority {} was asked for a checkpoint: it holds {} MiB",
                task.id,
                task.spec.priority.name(),
                self.rss(id) / MIB
            );
            self.note_action("preempt", Some(id), text);
        }
        self.governor.shedding.action = Some(SheddingAction::Preempting(id));
        self.preempt(id, PreemptReason::MemoryPressure);
    }

    fn kill_one(&mut self) {
        let Some(id) = self.victim(|_, _| true) else { return };
        if self.is_in_vain(Level::Emergency) {
            return;
        }
        self.kill_for_memory(id);
    }

    fn kill_for_memory(&mut self, id: WorkerId) {
        let message = format!(
            "memory was at {:.1} % of the limit and this task had the lowest priority; it held {} MiB",
            self.governor.pressure(&self.settings.memory) * 100.0,
            self.rss(id) / MIB
        );
        self.note_action("kill", Some(id), message.clone());
        self.governor.shedding.action = Some(SheddingAction::Killing(id));
        self.kill_failing(id, FailureCode::MemoryEmergency, message, true, ExitReason::Killed);
    }

    /// The running task of lowest priority, then largest memory, then latest start, among those that qualify.
    fn victim(&self, qualifies: impl Fn(&Core, WorkerId) -> bool) -> Option<WorkerId> {
        self.pool
            .iter()
            .filter(|(_, worker)| matches!(worker.state, WorkerState::Busy { stage: Stage::Working, .. }))
            .filter(|(id, _)| self.is_worker_governed(*id) && qualifies(self, *id))
            .max_by_key(|(id, _)| {
                let task = self.task_of(*id);
                let since = task.and_then(|task| match task.phase {
                    Phase::Running { since, .. } => Some(since),
                    Phase::Queued | Phase::Preempted => None,
                });
                (task.map(|task| task.spec.priority), self.rss(*id), since, Reverse(*id))
            })
            .map(|(id, _)| id)
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

    fn task_of(&self, id: WorkerId) -> Option<&super::ledger::Task> {
        self.pool.get(id).and_then(Worker::task).and_then(|task| self.ledger.get(task))
    }

    fn rss(&self, id: WorkerId) -> u64 {
        self.pool.get(id).and_then(|worker| worker.rss_bytes).unwrap_or(0)
    }
}
