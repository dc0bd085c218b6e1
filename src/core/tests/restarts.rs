use std::sync::Arc;
use std::time::Duration;

use super::sim::*;
use crate::core::attempts::Attempts;
use crate::core::event::{Action, Event, Record};
use crate::core::ids::TaskId;
use crate::core::ledger::FinishedTask;
use crate::core::restore::{Unfinished, UnfinishedState};
use crate::core::task::{FailureCode, Outcome, TaskSpec, TaskState};

fn left(id: u64, state: UnfinishedState, spec: TaskSpec) -> Unfinished {
    Unfinished { state, ..Unfinished::accepted(TaskId(id), Arc::new(spec), 1) }
}

fn ended(id: u64, finished_ms: u64) -> FinishedTask {
    FinishedTask {
        id: TaskId(id),
        spec: TaskSpec { idempotency_key: Some(Arc::from(format!("k{id}"))), ..task("once") },
        created_ms: 1,
        started_ms: None,
        finished_ms,
        attempt: 1,
        attempts: Attempts::default(),
        preemptions: 0,
        run_time: None,
        peak_rss_bytes: None,
        worker: None,
        outcome: Outcome::Cancelled,
    }
}

fn records(actions: &[Action]) -> Vec<&Record> {
    actions.iter().filter_map(|action| if let Action::Record(record) = action { Some(record) } else { None }).collect()
}

#[test]
fn what_was_queued_runs() {
    let mut sim = Sim::new();
    let actions = sim.core.restore(Vec::new(), vec![left(7, UnfinishedState::Queued, task("once"))]);
    assert_eq!(records(&actions).len(), 0, "the spool knows already");
    sim.feed(Event::DeadlinePassed);
    assert_eq!(sim.state(TaskId(7)), TaskState::Running);
}

#[test]
fn what_ran_goes_by_its_checkpoint_or_its_retries_or_has_failed() {
    let mut sim = Sim::with(|settings| settings.workers.max = 0);
    let unfinished = vec![
        left(1, UnfinishedState::Running, task("calm")),
        left(2, UnfinishedState::Running, retried("calm", 1)),
        Unfinished { has_checkpoint: true, ..left(3, UnfinishedState::Running, task("calm")) },
        Unfinished { retries: 1, ..left(4, UnfinishedState::Running, retried("calm", 1)) },
    ];
    let actions = sim.core.restore(Vec::new(), unfinished);
    let [failed, retried, parked, exhausted] = [1, 2, 3, 4].map(TaskId);
    assert_eq!(sim.code(failed), FailureCode::WorkerCrashed);
    assert_eq!(sim.states([retried, parked]), [TaskState::Queued, TaskState::Preempted]);
    assert_eq!(sim.code(exhausted), FailureCode::RetriesExhausted);
    assert_eq!(sim.core.task(retried).map(|task| task.attempt), Some(2));
    assert_eq!(records(&actions).len(), 4, "each is remembered");
}

#[test]
fn what_waited_for_another_run_goes_before_what_was_queued() {
    let mut sim = Sim::with(|settings| settings.workers.max = 0);
    let unfinished = vec![
        left(1, UnfinishedState::Queued, task("calm")),
        left(2, UnfinishedState::Preempted, task("calm")),
        left(3, UnfinishedState::Returned, task("calm")),
    ];
    sim.core.restore(Vec::new(), unfinished);
    assert_eq!(sim.core.queue.iter().map(|task| task.0).collect::<Vec<_>>(), [2, 3, 1]);
    assert_eq!(sim.core.queue.depth(), 1);
}

#[test]
fn finished_tasks_are_known_until_their_retention_ends_whatever_order_they_come_in() {
    let mut sim = Sim::with(|settings| settings.retention.age = s(60));
    sim.pass(s(1000));
    let now = clock(sim.now).wall_ms;
    let finished = vec![ended(1, now - 10_000), ended(2, now - 50_000), ended(3, now - 60_000)];
    let actions = sim.core.restore(finished, Vec::new());
    assert!(matches!(records(&actions)[..], [Record::Forgotten { task: TaskId(3) }]), "{actions:?}");
    assert!(sim.try_submit(TaskSpec { idempotency_key: Some(Arc::from("k2")), ..task("once") }).unwrap().is_duplicate);
    sim.pass(s(10));
    assert!(sim.core.task(TaskId(2)).is_none());
    assert!(sim.core.task(TaskId(1)).is_some());
    sim.pass(s(40));
    assert!(sim.core.task(TaskId(1)).is_none());
}

#[test]
fn a_daemon_that_is_often_restarted_forgets_too() {
    let mut sim = Sim::with(|settings| settings.retention.age = s(60));
    let now = clock(Duration::ZERO).wall_ms;
    let actions = sim.core.restore(vec![ended(1, now - 61_000), ended(2, now - 59_000)], Vec::new());
    assert!(matches!(records(&actions)[..], [Record::Forgotten { task: TaskId(1) }]), "{actions:?}");
}
