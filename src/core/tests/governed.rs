//! What holds of the governor whatever the memory does: checked at every step of a random walk.

use std::collections::BTreeMap;
use std::time::Duration;

use super::processes::{Process, Temper};
use super::sim::{holding, memory};
use crate::core::Core;
use crate::core::governor::{Level, MemorySample};
use crate::core::ids::{IncidentId, TaskId, WorkerId};
use crate::core::ledger::Task;
use crate::core::notice::Notice;
use crate::core::order::{Order, PreemptReason};
use crate::core::settings::Mode;
use crate::core::task::{FailureCode, Priority};
use crate::simulation::desk::Said;
use crate::simulation::dice::Dice;

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
    pub fn next(&mut self, dice: &mut Dice, alive: &BTreeMap<WorkerId, Process>) -> MemorySample {
        self.others = wander(dice, self.others, 40, 700);
        self.available = wander(dice, self.available, 500, 9000);
        let old = std::mem::take(&mut self.workers);
        for (worker, process) in alive {
            let rss = old.get(worker).copied().unwrap_or(20);
            let rss = match process.temper {
                Temper::Leaking => rss + dice.below(40),
                _ if dice.one_in(50) => rss + 300,
                Temper::Decent | Temper::Deaf | Temper::Hung | Temper::Liar => wander(dice, rss, 60, 550),
            };
            self.workers.insert(*worker, rss);
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
    /// Until when the memory may fall after the action before, by the settings it ended under.
    settles: Option<Duration>,
    /// The lowest pressure since then, and whether it was below an emergency or has risen again.
    lowest: f64,
    has_turned: bool,
    /// Of the incident that is on, or was the last one.
    incident: Option<IncidentId>,
    /// How often each action was seen.
    pub seen: BTreeMap<&'static str, usize>,
}

impl Watch {
    /// The daemon has been restarted.
    pub fn restart(&mut self) {
        (self.is_reading, self.under_way, self.settles, self.incident) = (false, None, None, None);
    }

    pub fn begin(&mut self, core: &Core, is_reading: bool) {
        self.is_reading = is_reading;
        self.under_way = self.under_way.filter(|worker| core.pool.get(*worker).is_some());
    }

    pub fn check(&mut self, core: &Core, said: &[Said]) {
        if self.is_reading {
            let pressure = core.governor.pressure(&core.settings.memory);
            self.lowest = self.lowest.min(pressure);
            self.has_turned |= core.governor.level() < Level::Emergency || pressure > self.lowest + 0.01;
        }
        for said in said {
            match said {
                Said::Notice(Notice::MemoryAction { action, task, worker, incident, .. }) => {
                    assert_eq!(*incident, core.governor.incident(), "{action} in another incident");
                    self.check_action(core, action, *task, *worker);
                }
                Said::Notice(Notice::MemoryLevel { incident, .. }) => self.check_crossing(core, *incident),
                Said::Notice(Notice::TaskKilled { code: FailureCode::WorkerOom, worker, .. }) => {
                    let worker = core.pool.get(*worker).expect("it is not reaped yet");
                    assert!(worker.rss_bytes > Some(worker.agent.hard_limit_bytes), "killed and not over its limit");
                }
                Said::Order(worker, Order::Preempt { reason: PreemptReason::MemoryPressure, .. }) => {
                    assert_eq!(self.under_way, Some(*worker), "a preemption nobody was told of");
                }
                Said::Notice(Notice::TaskStarted { task, .. }) => self.check_start(core, *task),
                Said::Notice(_)
                | Said::Order(..)
                | Said::Record(_)
                | Said::Reply(..)
                | Said::Finished(_)
                | Said::Drained => {}
            }
        }
        let level = core.governor.level();
        assert_eq!(core.governor.incident().is_some(), level != Level::Normal, "an incident at {level:?}");
        if self.under_way.is_some() && core.governor.shedding.action.is_none() {
            self.under_way = None;
            self.settles = Some(core.now.at + core.settings.memory.settle);
            (self.lowest, self.has_turned) = (f64::INFINITY, false);
        }
    }

    /// A crossing opens an incident of a new number, or belongs to the one that is on.
    fn check_crossing(&mut self, core: &Core, incident: IncidentId) {
        assert!(self.is_reading, "a crossing without a reading");
        assert!(self.incident.is_none_or(|last| incident >= last), "{incident} after {:?}", self.incident);
        let is_over = core.governor.level() == Level::Normal;
        assert_eq!(core.governor.incident(), (!is_over).then_some(incident), "another incident is on");
        // The next one has another number.
        self.incident = Some(if is_over { IncidentId(incident.0 + 1) } else { incident });
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
        let is_settling = self.settles.is_some_and(|until| until > now);
        let is_new_emergency = core.governor.level() == Level::Emergency && self.has_turned;
        assert!(!is_settling || is_new_emergency, "two actions within the time to settle");
        self.under_way = worker;
    }

    fn check_start(&self, core: &Core, id: TaskId) {
        // It may be over by now, if its worker is.
        let Some(task) = core.ledger.get(id) else { return };
        let is_governed = core.governs_memory() && core.is_governed(id);
        let is_beat = task.spec.priority == Priority::Heartbeat && task.spec.skippable;
        let level = core.governor.level();
        assert!(!is_governed || !is_beat || level == Level::Normal, "a skippable heartbeat started at {level:?}");
        // Why all: what is not governed starts whatever is promised, and counts for those that are.
        if is_governed && core.settings.features.rollout_percent == 100 && core.pool.len() > 1 {
            let (promised, room) = (promised(core), room(core));
            assert!(promised <= room, "{id} started with {promised} of {room} promised: {:?}", core.pool);
        }
    }
}

/// What the workers with a task, or about to get one, may still grow by: never more than there is room for, unless one
/// is alone.
fn promised(core: &Core) -> u64 {
    let growing = core.pool.iter().filter(|(_, worker)| worker.task().is_some() || worker.is_starting());
    let more = growing
        .map(|(_, worker)| core.footprints.peak(&worker.agent.name).saturating_sub(worker.rss_bytes.unwrap_or(0)));
    more.sum()
}

/// Bytes up to the reject line, or to where the host would be short.
fn room(core: &Core) -> u64 {
    let Some((_, sample)) = core.governor.sample() else { return u64::MAX };
    let settings = &core.settings.memory;
    let [_, _, reject, _] = settings.thresholds;
    let up_to = |used: u64, limit: u64| ((reject * limit as f64) as u64).saturating_sub(used);
    let host = up_to(sample.total_bytes - sample.available_bytes, sample.total_bytes);
    let host = sample.host.map_or(u64::MAX, |_| host);
    // A floor of 0 is none.
    let floor = match settings.min_free_bytes {
        0 => u64::MAX,
        min_free => sample.available_bytes.saturating_sub(min_free),
    };
    up_to(sample.usage_bytes, settings.limit_bytes).min(host).min(floor)
}
