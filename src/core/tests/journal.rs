//! What is kept through a crash beside the tasks themselves, and what the core does while nothing can be kept.

use std::sync::Arc;
use std::time::Duration;

use super::sim::*;
use crate::core::Core;
use crate::core::breaker::{BreakerMemory, BreakerState, RememberedPhase};
use crate::core::event::{Action, BreakerRequest, Event, Now, Record, take_starts};
use crate::core::ids::{TaskId, Ticket, WorkerId};
use crate::core::order::Order;
use crate::core::restore::{Unfinished, UnfinishedState};
use crate::core::task::{FailureCode, Outcome, TaskState};
use crate::core::waiting::Wait;

fn submitted(task_id: u64, agent: &str) -> Event {
    Event::Submitted { ticket: Ticket(0), task: TaskId(task_id), spec: Box::new(task(agent)) }
}

#[test]
fn what_could_not_be_written_does_not_start_until_it_can() {
    let mut sim = Sim::new();
    let now = clock(sim.now);
    let mut actions = sim.core.handle(now, submitted(1, "once"));
    let unstarted = take_starts(&mut actions);
    assert_eq!(unstarted, [(WorkerId(1), TaskId(1))]);
    assert!(!actions.iter().any(|action| matches!(action, Action::Worker(..))), "{actions:?}");
    sim.core.handle(now, Event::JournalFailed { unstarted });
    assert_eq!(sim.state(TaskId(1)), TaskState::Queued);
    assert_eq!(sim.core.waits_for(TaskId(1)), Some(Wait::Storage));
    assert_eq!(sim.core.task(TaskId(1)).map(|task| task.attempt), Some(1), "no attempt is used up");
    let actions = sim.core.handle(now, Event::DeadlinePassed);
    assert!(actions.is_empty(), "{actions:?}");
    let actions = sim.core.handle(now, Event::JournalWorks);
    let is_spawn = |action: &Action| matches!(action, Action::Worker(WorkerId(2), Order::Spawn { .. }));
    assert!(actions.iter().any(is_spawn), "{actions:?}");
    assert_eq!(sim.state(TaskId(1)), TaskState::Running);
}

#[test]
fn a_start_on_a_kept_worker_is_taken_back_and_the_worker_stays() {
    let mut sim = Sim::new();
    let first = sim.submit(task("calm"));
    let worker = sim.worker(first);
    sim.complete(first);
    let now = clock(sim.now);
    let mut actions = sim.core.handle(now, submitted(9, "calm"));
    let unstarted = take_starts(&mut actions);
    assert_eq!(unstarted, [(worker, TaskId(9))]);
    sim.core.handle(now, Event::JournalFailed { unstarted });
    let actions = sim.core.handle(now, Event::JournalWorks);
    let is_assigned = |action: &Action| matches!(action, Action::Worker(id, Order::Assign(_)) if *id == worker);
    assert!(actions.iter().any(is_assigned), "{actions:?}");
}

#[test]
fn a_start_that_is_taken_back_after_it_was_cancelled_is_no_start() {
    let mut sim = Sim::new();
    let now = clock(sim.now);
    let mut actions = sim.core.handle(now, submitted(1, "once"));
    let unstarted = take_starts(&mut actions);
    sim.core.handle(now, Event::CancelRequested { ticket: Ticket(0), task: TaskId(1) });
    sim.core.handle(now, Event::JournalFailed { unstarted });
    assert_eq!(sim.state(TaskId(1)), TaskState::Cancelled);
    let actions = sim.core.handle(now, Event::JournalWorks);
    assert!(!actions.iter().any(|action| matches!(action, Action::Worker(..))), "{actions:?}");
}

#[test]
fn a_running_task_that_is_cancelled_is_so_after_a_crash() {
    let mut sim = Sim::new();
    let running = sim.submit(retried("once", 5));
    let cancel = || Event::CancelRequested { ticket: Ticket(0), task: running };
    let is_record = |action: &&Action| matches!(action, Action::Record(Record::CancelRequested { .. }));
    let now = clock(sim.now);
    assert_eq!(sim.core.handle(now, cancel()).iter().filter(is_record).count(), 1);
    assert_eq!(sim.core.handle(now, cancel()).iter().filter(is_record).count(), 0, "it is known");
    let kept = sim.core.records().filter(|record| matches!(record, Record::CancelRequested { .. })).count();
    assert_eq!(kept, 1, "a rewritten journal says so too");

    let mut after = Sim::new();
    let left = Unfinished {
        is_cancelled: true,
        state: UnfinishedState::Running,
        ..Unfinished::accepted(running, Arc::new(retried("once", 5)), 1)
    };
    after.core.restore(Vec::new(), vec![left]);
    assert_eq!(after.state(running), TaskState::Cancelled);
}

#[test]
fn a_task_whose_payload_is_lost_fails_and_says_why() {
    for state in [UnfinishedState::Queued, UnfinishedState::Returned, UnfinishedState::Running] {
        let mut sim = Sim::new();
        let lost = Some(Box::from("it is missing"));
        let left = Unfinished { lost, state, ..Unfinished::accepted(TaskId(3), Arc::new(retried("once", 5)), 1) };
        sim.core.restore(Vec::new(), vec![left]);
        let finished = sim.core.task(TaskId(3)).and_then(|task| task.finished).expect("it has ended");
        let Outcome::Failed(failure) = &finished.outcome else { panic!("{state:?}: {finished:?}") };
        assert_eq!(failure.code, FailureCode::SpawnFailed, "{state:?}");
        assert!(failure.message.contains("it is missing"), "{state:?}: {}", failure.message);
    }
}

fn breaker_records(actions: &[Action]) -> Vec<BreakerMemory> {
    let memory = |action: &Action| {
        if let Action::Record(Record::Breaker { memory, .. }) = action { Some(*memory) } else { None }
    };
    actions.iter().filter_map(memory).collect()
}

#[test]
fn each_change_of_a_breaker_is_recorded() {
    let mut sim = Sim::new();
    let now = clock(sim.now);
    let mut ask = |request| {
        let name = Arc::from("net");
        let actions = sim.core.handle(now, Event::Breaker { ticket: Ticket(0), name, request });
        breaker_records(&actions).into_iter().map(|memory| memory.phase).collect::<Vec<_>>()
    };
    assert_eq!(ask(BreakerRequest::ForceOpen), [RememberedPhase::Forced]);
    assert_eq!(ask(BreakerRequest::ForceClose), [RememberedPhase::Closed]);
    assert_eq!(ask(BreakerRequest::ForceClose), [], "nothing changed");
}

#[test]
fn a_breaker_goes_on_where_it_was_however_the_clock_was_set() {
    let hour = 3_600_000;
    let start = clock(s(0)).wall_ms;
    for (what, until_ms, expected) in [
        ("in time", start + 1500, Duration::from_millis(1500)),
        ("long past", start - hour, Duration::ZERO),
        ("the clock was set back an hour", start + hour, s(2)),
    ] {
        let mut core = Core::new(settings(), Now { at: Duration::ZERO, wall_ms: start });
        let memory = BreakerMemory { phase: RememberedPhase::Open { until_ms }, openings: 2 };
        core.restore_breakers(vec![(Arc::from("net"), memory)]);
        let view = core.breaker("net", clock(s(0))).expect("configured");
        assert_eq!((view.state, view.openings), (BreakerState::Open, 2), "{what}");
        assert_eq!(view.retry_after, Some(expected), "{what}");
        let records: Vec<_> = core.records().map(Action::Record).collect();
        assert_eq!(breaker_records(&records).len(), 1, "{what}: a rewritten journal has it");
    }
    let mut core = Core::new(settings(), clock(s(0)));
    let memory = BreakerMemory { phase: RememberedPhase::Forced, openings: 1 };
    core.restore_breakers(vec![(Arc::from("removed"), memory), (Arc::from("net"), memory)]);
    assert_eq!(core.breaker("removed", clock(s(0))), None);
    assert!(core.breaker("net", clock(s(0))).expect("configured").forced);
}

#[test]
fn that_memory_stopped_a_task_is_known_after_a_restart() {
    let mut sim = Sim::new();
    let left = Unfinished {
        by_memory: true,
        preemptions: 1,
        state: UnfinishedState::Preempted,
        ..Unfinished::accepted(TaskId(3), Arc::new(task("calm")), 1)
    };
    sim.core.restore(Vec::new(), vec![left]);
    let records: Vec<Record> = sim.core.records().collect();
    assert!(records.iter().any(|record| matches!(record, Record::Returned { by_memory: true, .. })), "{records:?}");
}
