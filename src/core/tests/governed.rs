//! What holds of the governor whatever the memory does: checked at every step of a random walk.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sim::{holding, memory};
use super::world::Dice;
use crate::core::Core;
use crate::core::event::{Action, Event};
use crate::core::governor::{Level, MemorySample};
use crate::core::ids::{TaskId, WorkerId};
use crate::core::ledger::Task;
use crate::core::notice::Notice;
use crate::core::order::{Order, PreemptReason};
use crate::core::settings::Mode;
use crate::core::task::{FailureCode, Priority};

/// The memory of the host and of the workers, as walks that mostly go a little up or down and sometimes jump.
#[derive(Debug)]
pub struct MemoryWalk {
    others: u64,
    available: u64,
    workers: BTreeMap<WorkerId, u64>,
}

impl MemoryWalk {
    pub fn new() -> MemoryWalk {
        MemoryWalk { others: 100, available: 5000, workers: BTreeMap::new() }
    }

    /// The next reading.
    pub fn next(&mut self, dice: &mut Dice, alive: impl Iterator<Item = WorkerId>) -> MemorySample {
        self.others = wander(dice, self.others, 40, 700);
        self.available = wander(dice, self.available, 500, 9000);
        let old = std::mem::take(&mut self.workers);
        for worker in alive {
            let rss = old.get(&worker).copied().unwrap_or(20);
            let rss = if dice.one_in(50) { rss + 300 } else { wander(dice, rss, 60, 550) };
            self.workers.insert(worker, rss);
        }
        let workers: Vec<(u64, u64)> = self.workers.iter().map(|(worker, rss)| (worker.0, *rss)).collect();
        let usage = self.others + self.workers.values().sum::<u64>();
        let host = (!dice.one_in(3)).then(|| 1.0 - self.available as f64 / 10_000.0);
        MemorySample { available_bytes: self.available, host, ..holding(memory(usage), &workers) }
    }
}

fn wander(dice: &mut Dice, from: u64, step: u64, max: u64) -> u64 {
    if dice.one_in(30) {
        return dice.below(max);
    }
    (from + dice.below(2 * step + 1)).saturating_sub(step).min(max)
}

/// Looks at what the core does about memory.
#[derive(Debug, Default)]
pub struct Watch {
    is_reading: bool,
    /// The worker the present action is about.
    under_way: Option<WorkerId>,
    /// When the action before ended.
    ended: Option<Duration>,
    /// How often each action was seen.
    pub seen: BTreeMap<&'static str, usize>,
}

impl Watch {
    /// The daemon has been restarted.
    pub fn restart(&mut self) {
        (self.is_reading, self.under_way, self.ended) = (false, None, None);
    }

    pub fn begin(&mut self, core: &Core, event: &Event) {
        self.is_reading = matches!(event, Event::MemorySampled(_));
        self.under_way = self.under_way.filter(|worker| core.pool.get(*worker).is_some());
    }

    pub fn check(&mut self, core: &Core, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Notice(Notice::MemoryAction { action, task, worker, incident, .. }) => {
                    assert!(
                        core.governor.level() == Level::Normal || incident.is_some(),
                        "{action} without an incident"
                    );
                    self.check_action(core, action, *task, *worker);
                }
                Action::Notice(Notice::TaskKilled { code: FailureCode::WorkerOom, worker, .. }) => {
                    let worker = core.pool.get(*worker).expect("it is not reaped yet");
                    assert!(worker.rss_bytes > Some(worker.agent.hard_limit_bytes), "killed and not over its limit");
                }
                Action::Worker(worker, Order::Preempt { reason: PreemptReason::MemoryPressure, .. }) => {
                    assert_eq!(self.under_way, Some(*worker), "a preemption nobody was told of");
                }
                Action::Notice(Notice::TaskStarted { task, .. }) => self.check_start(core, *task),
                Action::Notice(_)
                | Action::Worker(..)
                | Action::Record(_)
                | Action::Answer(..)
                | Action::Finished(_)
                | Action::Beat(_)
                | Action::Drained => {}
            }
        }
        if self.under_way.is_some() && core.governor.shedding.action.is_none() {
            self.under_way = None;
            self.ended = Some(core.now.at);
        }
    }

    fn check_action(&mut self, core: &Core, action: &'static str, task: Option<TaskId>, worker: Option<WorkerId>) {
        *self.seen.entry(action).or_default() += 1;
        assert!(core.governs_memory(), "{action} where none is wanted");
        let wanted = match action {
            // It did not answer a preemption.
            "kill" if self.under_way == worker => Level::Normal,
            "kill" => Level::Emergency,
            "preempt" | "none" => Level::Critical,
            "gc" => Level::Warning,
            "retire_idle" => Level::Normal,
            other => panic!("{other} is no action"),
        };
        let level = core.governor.level();
        assert!(level >= wanted, "{action} at {level:?}");
        if matches!(action, "preempt" | "kill") {
            self.acted(core, worker);
        }
        let is_critical = |task: &Task| task.spec.priority == Priority::Critical;
        let has_hit_critical = task.and_then(|task| core.ledger.get(task)).is_some_and(is_critical);
        assert!(action != "preempt" || !has_hit_critical, "a critical task was preempted");
    }

    /// One at a time, with a pause between them, and each with figures just read.
    fn acted(&mut self, core: &Core, worker: Option<WorkerId>) {
        // The same one: a preemption that went on as a kill.
        if self.under_way.is_some() && self.under_way == worker {
            return;
        }
        let now = core.now.at;
        assert!(self.is_reading, "an action without a new reading");
        assert!(core.settings.memory.mode == Mode::Hard, "an action in {:?} mode", core.settings.memory.mode);
        assert_eq!(self.under_way, None, "two actions at a time");
        let settle = core.settings.memory.settle;
        assert!(self.ended.is_none_or(|ended| ended + settle <= now), "two actions within the time to settle");
        self.under_way = worker;
    }

    fn check_start(&self, core: &Core, id: TaskId) {
        // It may be over by now, if its worker is.
        let Some(task) = core.ledger.get(id) else { return };
        let is_governed = core.governs_memory() && core.is_governed(id);
        let is_beat = task.spec.priority == Priority::Heartbeat && task.spec.skippable;
        let level = core.governor.level();
        assert!(!is_governed || !is_beat || level == Level::Normal, "a skippable heartbeat started at {level:?}");
    }
}
