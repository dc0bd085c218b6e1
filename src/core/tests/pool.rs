use std::sync::Arc;

use super::sim::*;
use crate::core::order::{Order, Report};
use crate::core::settings::{AgentSettings, Settings};
use crate::core::task::{FailureCode, TaskState};

fn set_agent(settings: &mut Settings, agent: AgentSettings) {
    settings.agents.insert(agent.name.clone(), Arc::new(agent));
}

#[test]
fn there_are_never_more_processes_than_allowed_even_while_they_end() {
    let mut sim = Sim::new();
    sim.holds_exit = true;
    let first = sim.submit(task("calm"));
    let second = sim.submit(task("calm"));
    sim.complete(first);
    sim.complete(second);
    let waiting = sim.submit(task("once"));
    assert_eq!(sim.processes(), [(1, "stopping"), (2, "idle")]);
    assert_eq!(sim.state(waiting), TaskState::Queued);
    sim.pass(s(5));
    assert_eq!(sim.processes(), [(1, "stopping"), (2, "idle")], "killed, and not gone yet");
    sim.exit(crate::core::ids::WorkerId(1), signal(9));
    assert_eq!(sim.processes(), [(2, "idle"), (3, "busy")]);
}

#[test]
fn an_idle_worker_is_used_again_the_warmest_first() {
    let mut sim = Sim::new();
    let [first, second] = [sim.submit(task("calm")), sim.submit(task("calm"))];
    sim.complete(second);
    sim.pass(s(1));
    sim.complete(first);
    let third = sim.submit(task("calm"));
    assert_eq!(sim.worker(third).0, 1);
    assert_eq!(sim.processes(), [(1, "busy"), (2, "idle")]);
}

#[test]
fn an_idle_worker_ends_after_its_idle_timeout() {
    let mut sim = Sim::new();
    let first = sim.submit(task("calm"));
    sim.complete(first);
    sim.pass(s(299));
    assert_eq!(sim.processes(), [(1, "idle")]);
    sim.take();
    sim.pass(s(1));
    assert_eq!(sim.orders(), [(1, Order::Shutdown)]);
    assert_eq!(sim.processes(), []);
}

#[test]
fn with_no_idle_time_at_all_a_task_still_gets_its_worker() {
    let mut sim = Sim::with(|settings| settings.workers.idle_timeout = s(0));
    let first = sim.submit(task("calm"));
    assert_eq!(sim.state(first), TaskState::Running);
    sim.complete(first);
    assert_eq!(sim.processes(), [], "and the worker ends with it");
}

#[test]
fn a_task_that_comes_as_the_idle_timeout_ends_takes_the_worker() {
    let mut sim = Sim::new();
    let first = sim.submit(task("calm"));
    sim.complete(first);
    sim.now += s(300);
    let second = sim.submit(task("calm"));
    assert_eq!(sim.worker(second).0, 1);
}

#[test]
fn another_agent_s_idle_worker_makes_room_the_coldest_first() {
    let mut sim = Sim::new();
    let [first, second] = [sim.submit(task("calm")), sim.submit(task("warm"))];
    sim.complete(second);
    sim.pass(s(1));
    sim.complete(first);
    sim.take();
    let third = sim.submit(task("once"));
    assert_eq!(sim.orders()[0], (2, Order::Shutdown));
    assert_eq!(sim.worker(third).0, 3);
    assert_eq!(sim.processes(), [(1, "idle"), (3, "busy")]);
}

#[test]
fn one_waiting_task_retires_one_worker_and_not_two() {
    let mut sim = Sim::new();
    sim.holds_exit = true;
    let [first, second] = [sim.submit(task("calm")), sim.submit(task("warm"))];
    sim.complete(first);
    sim.complete(second);
    sim.submit(task("once"));
    sim.pass(s(1));
    assert_eq!(sim.processes(), [(1, "stopping"), (2, "idle")]);
}

#[test]
fn an_agent_has_no_more_processes_than_its_own_maximum_and_holds_up_nobody() {
    let mut sim = Sim::with(|settings| {
        set_agent(settings, AgentSettings { max_workers: Some(1), ..AgentSettings::clone(&settings.agents["once"]) });
    });
    let [first, second] = [sim.submit(task("once")), sim.submit(task("once"))];
    let third = sim.submit(task("warm"));
    assert_eq!(sim.states([first, second, third]), [TaskState::Running, TaskState::Queued, TaskState::Running]);
    sim.complete(first);
    assert_eq!(sim.state(second), TaskState::Running);
}

#[test]
fn one_waiting_task_starts_one_worker_and_the_next_task_another() {
    let mut sim = Sim::with(|settings| settings.workers.max = 4);
    sim.holds_ready = true;
    sim.submit(task("calm"));
    sim.pass(s(1));
    assert_eq!(sim.processes(), [(1, "starting")]);
    sim.submit(task("calm"));
    assert_eq!(sim.processes(), [(1, "starting"), (2, "starting")]);
}

#[test]
fn a_worker_is_replaced_after_its_share_of_tasks() {
    let mut sim = Sim::with(|settings| settings.workers.recycle_after_tasks = 2);
    for worker in [1, 1, 2, 2, 3] {
        let next = sim.submit(task("calm"));
        assert_eq!(sim.worker(next).0, worker, "{next}");
        sim.complete(next);
    }
}

#[test]
fn without_the_pool_every_task_gets_a_fresh_process() {
    let mut sim = Sim::with(|settings| settings.features.worker_pool = false);
    for worker in 1..4 {
        let next = sim.submit(task("calm"));
        assert_eq!(sim.worker(next).0, worker);
        sim.complete(next);
        assert_eq!(sim.processes(), []);
    }
}

#[test]
fn a_oneshot_worker_is_started_with_its_task_and_a_persistent_one_before_it() {
    let mut sim = Sim::new();
    let once = sim.submit(task("once"));
    let calm = sim.submit(task("calm"));
    let given: Vec<_> = sim
        .orders()
        .into_iter()
        .map(|(worker, order)| match order {
            Order::Spawn { task, .. } => (worker, "spawn", task.map(|assignment| assignment.task)),
            Order::Assign(assignment) => (worker, "assign", Some(assignment.task)),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(given, [(1, "spawn", Some(once)), (2, "spawn", None), (2, "assign", Some(calm))]);
}

#[test]
fn a_worker_that_does_not_get_ready_in_time_is_killed_and_its_task_fails() {
    let mut sim = Sim::new();
    sim.holds_ready = true;
    let waiting = sim.submit(task("calm"));
    sim.pass(s(29));
    assert_eq!(sim.state(waiting), TaskState::Queued);
    sim.take();
    sim.pass(s(1));
    assert_eq!(sim.orders(), [(1, Order::Kill)]);
    let failure = sim.failure(waiting);
    assert_eq!(failure.code, FailureCode::SpawnFailed);
    assert_eq!(failure.message, "the worker did not get ready: no READY within workers.spawn_timeout_s = 30");
}

#[test]
fn a_failed_spawn_uses_up_a_retry_and_the_next_one_waits_longer_each_time() {
    let mut sim = Sim::new();
    sim.holds_ready = true;
    let waiting = sim.submit(retried("calm", 3));
    for (worker, pause) in [(1, 1), (2, 2), (3, 4)] {
        assert_eq!(sim.processes(), [(worker, "starting")]);
        let id = crate::core::ids::WorkerId(worker);
        sim.report(id, Report::SpawnFailed { error: "no such file".to_string() });
        assert_eq!(sim.state(waiting), TaskState::Queued);
        sim.pass(s(pause) - std::time::Duration::from_millis(1));
        assert_eq!(sim.processes(), [], "still pausing after failure {worker}");
        sim.pass(std::time::Duration::from_millis(1));
    }
    sim.report(crate::core::ids::WorkerId(4), Report::SpawnFailed { error: "no such file".to_string() });
    let failure = sim.failure(waiting);
    assert_eq!(failure.code, FailureCode::RetriesExhausted);
    assert!(failure.message.ends_with("the last time spawn_failed: no such file"), "{}", failure.message);
}

#[test]
fn a_success_ends_the_growing_of_pauses() {
    let mut sim = Sim::new();
    let crashed = sim.submit(retried("once", 2));
    sim.exit_of(crashed, signal(11));
    sim.pass(s(1));
    sim.exit_of(crashed, signal(11));
    sim.pass(s(2));
    sim.complete(crashed);
    let next = sim.submit(retried("once", 1));
    sim.exit_of(next, signal(11));
    sim.pass(s(1));
    assert_eq!(sim.state(next), TaskState::Running);
}

#[test]
fn an_agent_that_fails_too_often_is_refused_for_a_while_and_then_runs_what_waited() {
    let mut sim = Sim::with(|settings| settings.workers.max_restarts_per_hour = 3);
    let crashing = sim.submit(retried("once", 9));
    sim.take();
    for pause in [1, 2, 4, 0] {
        sim.exit_of(crashing, signal(11));
        sim.pass(s(pause));
    }
    assert!(sim.names().contains(&"AGENT_UNAVAILABLE"));
    let refusal = sim.refused(task("once"));
    assert_eq!((refusal.code(), refusal.retry_after()), ("agent_unavailable", Some(s(120))));
    sim.submit(task("calm"));
    assert_eq!(sim.state(crashing), TaskState::Queued);
    sim.pass(s(3600 - 8));
    assert_eq!(sim.state(crashing), TaskState::Queued, "the first failure is an hour old in a second");
    sim.pass(s(1));
    assert_eq!(sim.state(crashing), TaskState::Running);
    sim.submit(task("once"));
}

#[test]
fn an_idle_worker_that_crashes_counts_against_its_agent_and_one_that_ends_in_order_does_not() {
    let mut sim = Sim::new();
    for (exit, failures) in [(status(0), 0), (status(1), 1), (signal(9), 2)] {
        let done = sim.submit(task("calm"));
        let worker = sim.worker(done);
        sim.complete(done);
        sim.exit(worker, exit.clone());
        assert_eq!(sim.core.health.get("calm").map_or(0, |health| health.recent(sim.now)), failures, "{exit:?}");
        sim.pass(s(10));
    }
}

#[test]
fn a_worker_that_ends_before_it_is_ready_fails_the_task_that_called_for_it() {
    let mut sim = Sim::new();
    sim.holds_ready = true;
    let waiting = sim.submit(task("calm"));
    sim.exit(crate::core::ids::WorkerId(1), crate::core::order::Exit { stderr_tail: "boom".into(), ..status(3) });
    let failure = sim.failure(waiting);
    assert_eq!(failure.code, FailureCode::SpawnFailed);
    assert_eq!(failure.message, "it exited with status 3 before it said READY");
    assert_eq!((failure.exit_status, failure.stderr_tail.as_deref()), (Some(3), Some("boom")));
}

#[test]
fn a_worker_whose_task_was_cancelled_before_it_was_ready_waits_for_the_next() {
    let mut sim = Sim::new();
    sim.holds_ready = true;
    let first = sim.submit(task("calm"));
    sim.cancel(first);
    sim.ready(crate::core::ids::WorkerId(1));
    assert_eq!(sim.processes(), [(1, "idle")]);
    let second = sim.submit(task("calm"));
    assert_eq!(sim.worker(second).0, 1);
}
