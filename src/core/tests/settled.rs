//! What holds of the core's own books between any two events: every task in one place, every worker at one task, nobody
//! waiting for nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::core::Core;
use crate::core::governor::Level;
use crate::core::health::Availability;
use crate::core::ids::{TaskId, WorkerId};
use crate::core::ledger::Phase;
use crate::core::restore::UnfinishedState;
use crate::core::task::{Priority, TaskSpec, TaskState};
use crate::simulation::spool::Remembered;

pub fn check(core: &Core, remembered: &Remembered, now: Duration, is_draining: bool) {
    agrees(core, remembered);
    let busy: Vec<(TaskId, WorkerId)> =
        core.pool.iter().filter_map(|(id, worker)| worker.task().map(|task| (task, id))).collect();
    assert_eq!(busy.iter().map(|(task, _)| task).collect::<BTreeSet<_>>().len(), busy.len(), "run twice: {busy:?}");
    let waiting: Vec<TaskId> = core.queue.iter().collect();
    let mut held = BTreeSet::new();
    for task in core.ledger.live() {
        let places = waiting.iter().filter(|waiting| **waiting == task.id).count();
        assert_eq!(places, usize::from(!matches!(task.phase, Phase::Running { .. })), "places of {task:?}");
        if let Phase::Running { worker, .. } = task.phase {
            let is_left = is_draining && core.pool.get(worker).is_none();
            assert!(is_left || busy.contains(&(task.id, worker)), "nobody runs {task:?}");
            held.extend(task.permit.as_ref().map(|held| held.permit));
        } else {
            assert!(task.permit.is_none(), "{task:?} waits and holds a permit");
        }
        assert!(core.ledger.finished(task.id).is_none(), "{} came back from its end", task.id);
    }
    assert!(waiting.iter().all(|task| core.ledger.get(*task).is_some()), "a ghost waits");
    for breaker in core.breakers.values() {
        assert!(breaker.held_by_tasks().all(|permit| held.contains(&permit)), "a permit leaked from {breaker:?}");
    }
    if !is_draining {
        nothing_waits_for_nothing(core, &waiting, now);
    }
}

/// What is remembered is what the core holds.
fn agrees(core: &Core, remembered: &Remembered) {
    let mut live = core.ledger.live();
    for remembered in remembered.unfinished.values() {
        let task = live.next().unwrap_or_else(|| panic!("{} is remembered and not alive", remembered.id));
        assert_eq!(task.id, remembered.id);
        let state = match remembered.state {
            UnfinishedState::Queued | UnfinishedState::Returned => TaskState::Queued,
            UnfinishedState::Preempted => TaskState::Preempted,
            UnfinishedState::Running => TaskState::Running,
        };
        assert_eq!(
            (task.state(), task.retries, task.memory_deaths, task.preemptions, task.is_cancelled),
            (state, remembered.retries, remembered.memory_deaths, remembered.preemptions, remembered.is_cancelled),
            "{}",
            task.id
        );
    }
    assert!(live.next().is_none(), "a task is alive that nobody remembers");
}

fn nothing_waits_for_nothing(core: &Core, waiting: &[TaskId], now: Duration) {
    if core.pool.len() >= core.settings.workers.max || !core.is_journal_writable {
        return;
    }
    for task in waiting.iter().filter_map(|task| core.ledger.get(*task)) {
        let Some(agent) = core.settings.agents.get(&task.spec.agent) else { panic!("{task:?} waits for nobody") };
        let of_agent = core.pool.count(|worker| worker.agent.name == agent.name);
        let is_coming = core.pool.iter().any(|(_, worker)| worker.agent.name == agent.name && worker.is_starting());
        let is_available = core
            .health
            .get(&agent.name)
            .is_none_or(|health| health.availability(now, &core.settings.workers) == Availability::Available);
        if core.retry_pause(task.id).is_some() {
            continue;
        }
        let is_governed = core.governs_memory() && core.is_governed(task.id);
        if is_governed && is_held(core, &task.spec) {
            continue;
        }
        let has_breakers = core.settings.features.circuit_breakers && core.is_governed(task.id);
        let is_guarded = agent.breaker.as_ref().and_then(|name| core.breakers.get(name)).filter(|_| has_breakers);
        if is_guarded.is_some_and(|breaker| breaker.refusal(now).is_some()) {
            continue;
        }
        let idle = core.pool.warmest_idle(agent);
        if is_governed && !core.pool.is_empty() && core.shortage(task, agent, idle).is_some() {
            // It waits for memory that others hold, and what comes after it lets it have that.
            return;
        }
        let may_run = is_available || idle.is_some();
        let is_at_its_most = agent.max_workers.is_some_and(|max| of_agent >= max);
        assert!(!may_run || is_coming || is_at_its_most, "{task:?} waits, and nothing is in its way");
    }
}

/// Whether the level keeps a task like this waiting: even at the highest one starts when nothing else is left.
fn is_held(core: &Core, spec: &TaskSpec) -> bool {
    let level = core.governor.level();
    let is_beat = level >= Level::Warning && spec.priority == Priority::Heartbeat && spec.skippable;
    let is_alone = core.pool.is_empty() && !core.is_settling();
    is_beat || (level >= Level::Critical && spec.priority != Priority::Critical && !is_alone)
}
