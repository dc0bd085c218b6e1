//! What a task failed of is told attempt by attempt, and it is not tried again at once.

use std::sync::Arc;

use super::sim::*;
use crate::core::attempts::{Attempts, KEPT};
use crate::core::ids::TaskId;
use crate::core::ledger::FinishedTask;
use crate::core::order::Exit;
use crate::core::restore::{Unfinished, UnfinishedState};
use crate::core::task::{FailureCode, TaskState};
use crate::core::waiting::Wait;

fn told(attempts: &Attempts) -> Vec<(u32, &'static str)> {
    attempts.iter().map(|attempt| (attempt.attempt, attempt.code.name())).collect()
}

fn left(retries: u32, state: UnfinishedState) -> Unfinished {
    Unfinished { retries, state, ..Unfinished::accepted(TaskId(1), Arc::new(retried("calm", 9)), 1) }
}

#[test]
fn a_poison_task_ends_with_the_history_of_its_attempts() {
    let mut sim = Sim::new();
    let poison = sim.submit(retried("calm", 2));
    let began = clock(sim.now).wall_ms;
    sim.pass(s(3));
    sim.fail(poison, true);
    sim.pass(s(1));
    sim.exit_of(poison, signal(11));
    sim.pass(s(2));
    sim.fail(poison, true);
    let FinishedTask { attempts, attempt, .. } = &*sim.finished(poison);
    assert_eq!(sim.code(poison), FailureCode::RetriesExhausted);
    assert_eq!(told(attempts), [(1, "agent_failed"), (2, "worker_crashed"), (3, "agent_failed")]);
    assert_eq!(*attempt, 3);
    let first = attempts.iter().next().expect("the first");
    assert_eq!((first.started_ms, first.ended_ms, &*first.message), (Some(began), began + 3000, "no luck"));
}

#[test]
fn a_task_that_was_never_tried_again_has_no_attempts_beside_its_end() {
    let mut sim = Sim::new();
    let [failed, done] = [sim.submit(task("calm")), sim.submit(retried("calm", 1))];
    sim.fail(failed, true);
    sim.complete(done);
    assert!([failed, done].iter().all(|task| sim.finished(*task).attempts.is_empty()));
}

#[test]
fn only_the_last_attempts_are_kept_and_their_messages_are_cut() {
    let mut sim = Sim::with(|settings| settings.workers.restart_backoff = vec![s(1)]);
    let poison = sim.submit(retried("calm", 19));
    for _ in 0..20 {
        let worker = sim.worker(poison);
        let report =
            crate::core::order::Report::Failed { task: poison, error: "ä".repeat(5000), stack: None, retryable: true };
        sim.report(worker, report);
        sim.pass(s(1));
    }
    let attempts = &sim.finished(poison).attempts;
    assert_eq!(told(attempts).first(), Some(&(11, "agent_failed")));
    assert_eq!(attempts.iter().count(), KEPT);
    assert!(attempts.iter().all(|attempt| attempt.message.chars().count() == 201 && attempt.message.ends_with('…')));
}

#[test]
fn a_failed_task_pauses_longer_with_each_retry_while_its_worker_serves_others() {
    let mut sim = Sim::with(|settings| settings.workers.max = 1);
    let failing = sim.submit(retried("calm", 9));
    for pause in [1, 2, 4, 8, 8].map(s) {
        sim.fail(failing, true);
        let wait = sim.core.waits_for(failing);
        assert_eq!(wait, Some(Wait::RetryPause { retry_after: pause }));
        assert_eq!(wait.map(|wait| wait.name()), Some("retry_pause"));
        let other = sim.submit(task("calm"));
        assert_eq!(sim.state(other), TaskState::Running, "nothing holds up the next task");
        sim.complete(other);
        sim.pass(pause - std::time::Duration::from_millis(1));
        assert_eq!(sim.state(failing), TaskState::Queued, "{pause:?} are not over");
        sim.pass(std::time::Duration::from_millis(1));
        assert_eq!(sim.state(failing), TaskState::Running, "{pause:?} are over");
    }
}

#[test]
fn a_task_in_its_pause_can_be_cancelled() {
    let mut sim = Sim::new();
    let failing = sim.submit(retried("calm", 1));
    sim.fail(failing, true);
    sim.cancel(failing);
    assert_eq!(sim.state(failing), TaskState::Cancelled);
    assert_eq!(told(&sim.finished(failing).attempts), [(1, "agent_failed")]);
}

#[test]
fn after_a_restart_the_pause_is_over() {
    for state in [UnfinishedState::Returned, UnfinishedState::Running] {
        let mut sim = Sim::new();
        sim.core.restore(Vec::new(), vec![left(2, state)]);
        sim.feed(crate::core::event::Event::DeadlinePassed);
        assert_eq!(sim.state(TaskId(1)), TaskState::Running, "{state:?}");
    }
}

#[test]
fn a_oneshot_whose_result_cannot_be_kept_is_neither_a_crash_nor_tried_again() {
    let mut sim = Sim::new();
    let big = sim.submit(retried("once", 5));
    let error = "cannot store the result: No space left on device (os error 28)";
    sim.exit_of(big, Exit { result_error: Some(error.to_string()), ..signal(9) });
    let failure = sim.failure(big);
    assert_eq!((failure.code, failure.message.as_str()), (FailureCode::AgentFailed, error));
    assert_eq!(sim.core.health.get("once").map_or(0, |health| health.recent(sim.now)), 0);
}
