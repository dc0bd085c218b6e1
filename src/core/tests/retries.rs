use super::sim::*;
use crate::core::ids::WorkerId;
use crate::core::notice::Notice;
use crate::core::order::{Exit, HeapReading, Order, PreemptReason, Report};
use crate::core::task::{FailureCode, TaskState};

#[test]
fn a_crash_is_tried_again_until_the_retries_are_used_up_and_the_last_cause_is_told() {
    for agent in ["calm", "once"] {
        let mut sim = Sim::new();
        let crashing = sim.submit(retried(agent, 2));
        for (attempt, pause) in [(1, 1), (2, 2)] {
            assert_eq!(sim.core.task(crashing).map(|task| task.attempt), Some(attempt), "{agent}");
            sim.exit_of(crashing, signal(11));
            assert_eq!(sim.state(crashing), TaskState::Queued, "{agent}");
            sim.pass(s(pause));
        }
        sim.exit_of(crashing, Exit { stderr_tail: "segfault".into(), ..signal(11) });
        let failure = sim.failure(crashing);
        assert_eq!(failure.code, FailureCode::RetriesExhausted);
        assert!(failure.message.contains("failed 3 times"), "{}", failure.message);
        assert!(failure.message.contains("worker_crashed"), "{}", failure.message);
        assert_eq!((failure.signal, failure.stderr_tail.as_deref()), (Some(11), Some("segfault")));
    }
}

#[test]
fn without_retries_the_failure_keeps_its_own_code() {
    for (agent, exit, code) in [
        ("calm", status(0), FailureCode::WorkerCrashed),
        ("calm", signal(11), FailureCode::WorkerCrashed),
        ("once", signal(11), FailureCode::WorkerCrashed),
        ("once", status(2), FailureCode::AgentFailed),
    ] {
        let mut sim = Sim::new();
        let failing = sim.submit(task(agent));
        sim.exit_of(failing, exit.clone());
        let failure = sim.failure(failing);
        assert_eq!(failure.code, code, "{agent} {exit:?}");
        assert_eq!((failure.exit_status, failure.signal), (exit.status, exit.signal));
    }
}

#[test]
fn a_failure_is_tried_again_only_if_the_agent_says_so() {
    let mut sim = Sim::new();
    let failing = sim.submit(retried("calm", 1));
    sim.fail(failing, true);
    assert_eq!(sim.state(failing), TaskState::Queued);
    sim.pass(s(1));
    sim.fail(failing, false);
    let failure = sim.failure(failing);
    assert_eq!((failure.code, failure.message.as_str()), (FailureCode::AgentFailed, "no luck"));
    assert_eq!(sim.processes(), [(1, "idle")], "a failed task is no reason to replace its worker");
}

#[test]
fn a_oneshot_that_exits_with_a_status_has_decided_and_is_not_tried_again() {
    let mut sim = Sim::new();
    let failing = sim.submit(retried("once", 5));
    sim.exit_of(failing, Exit { stderr_tail: "usage".into(), ..status(2) });
    let failure = sim.failure(failing);
    assert_eq!(failure.message, "the process exited with status 2; its stderr may say why");
    assert_eq!(failure.stderr_tail.as_deref(), Some("usage"));
    let health = sim.core.health.get("once");
    assert_eq!(health.map_or(0, |health| health.recent(sim.now)), 0, "and nothing is wrong with its agent");
}

#[test]
fn a_result_that_could_not_be_kept_fails_the_task_and_says_why() {
    let mut sim = Sim::new();
    let big = sim.submit(task("once"));
    sim.exit_of(big, Exit { result_error: Some("the result is too large".to_string()), ..status(0) });
    assert_eq!(sim.failure(big).message, "the result is too large");
}

#[test]
fn a_protocol_error_fails_the_task_and_replaces_the_worker() {
    let mut sim = Sim::new();
    let broken = sim.submit(retried("calm", 5));
    let message = "a line that is no JSON object: \"hello\"";
    sim.report(WorkerId(1), Report::ProtocolError { message: message.to_string() });
    assert_eq!(sim.state(broken), TaskState::Running, "until the process is gone");
    sim.exit(WorkerId(1), signal(9));
    let failure = sim.failure(broken);
    assert_eq!((failure.code, failure.message.as_str()), (FailureCode::ProtocolError, message));
    let next = sim.submit(task("calm"));
    sim.pass(s(1));
    assert_eq!(sim.worker(next).0, 2);
}

#[test]
fn a_protocol_error_before_ready_fails_the_task_that_waits_for_the_worker() {
    let mut sim = Sim::new();
    sim.holds_ready = true;
    let waiting = sim.submit(task("calm"));
    sim.report(WorkerId(1), Report::ProtocolError { message: "hello".to_string() });
    assert_eq!(sim.code(waiting), FailureCode::SpawnFailed);
    sim.exit(WorkerId(1), signal(9));
    assert_eq!(sim.core.health["calm"].recent(sim.now), 1, "one failure is counted once");
}

#[test]
fn an_idle_or_ending_worker_that_breaks_the_protocol_harms_no_task() {
    let mut sim = Sim::new();
    let done = sim.submit(task("calm"));
    sim.complete(done);
    sim.report(WorkerId(1), Report::ProtocolError { message: "hello".to_string() });
    sim.exit(WorkerId(1), signal(9));
    assert_eq!(sim.core.health["calm"].recent(sim.now), 1);
    sim.pass(s(1));
    sim.holds_exit = true;
    let next = sim.submit(task("calm"));
    sim.complete(next);
    sim.pass(s(300));
    assert_eq!(sim.processes(), [(2, "stopping")]);
    sim.report(WorkerId(2), Report::ProtocolError { message: "hello".to_string() });
    sim.report(WorkerId(2), Report::ProtocolError { message: "again".to_string() });
    sim.exit(WorkerId(2), signal(9));
    assert_eq!(sim.processes(), []);
}

#[test]
fn preempted_that_nobody_asked_for_is_a_protocol_error() {
    let mut sim = Sim::new();
    let broken = sim.submit(task("calm"));
    sim.preempted(broken, true);
    assert_eq!(sim.code(broken), FailureCode::ProtocolError);
}

#[test]
fn a_preempted_task_runs_again_with_its_checkpoint() {
    for checkpoint in [true, false] {
        let mut sim = Sim::new();
        let running = sim.submit(task("calm"));
        sim.core.preempt(WorkerId(1), PreemptReason::MemoryPressure);
        sim.take();
        sim.preempted(running, checkpoint);
        let [.., (_, Order::Assign(assignment))] = &sim.orders()[..] else { panic!("not given out again") };
        assert_eq!((assignment.has_checkpoint, assignment.attempt), (checkpoint, 1));
    }
}

#[test]
fn a_worker_that_does_not_answer_a_preemption_is_killed_and_one_that_finishes_has_finished() {
    let mut sim = Sim::new();
    let [silent, done] = [sim.submit(retried("calm", 1)), sim.submit(task("calm"))];
    sim.core.preempt(WorkerId(1), PreemptReason::MemoryPressure);
    sim.core.preempt(WorkerId(2), PreemptReason::MemoryPressure);
    sim.complete(done);
    assert_eq!(sim.state(done), TaskState::Completed);
    sim.pass(s(5));
    let view = sim.core.task(silent).expect("known");
    assert_eq!(view.attempt, 2, "the kill used up an attempt");
}

#[test]
fn a_checkpoint_told_with_progress_is_there_for_the_next_attempt() {
    let mut sim = Sim::new();
    let crashing = sim.submit(retried("calm", 1));
    let message = Some(Box::from("half"));
    sim.report(WorkerId(1), Report::Progress { task: crashing, percent: 50.0, message, checkpoint: true });
    let view = sim.core.task(crashing).expect("known");
    assert_eq!(view.progress.map(|progress| progress.percent), Some(50.0));
    sim.exit(WorkerId(1), signal(11));
    sim.take();
    sim.pass(s(1));
    let [.., (_, Order::Assign(assignment))] = &sim.orders()[..] else { panic!("not given out again") };
    assert_eq!((assignment.has_checkpoint, assignment.attempt), (true, 2));
}

#[test]
fn reports_about_a_task_whose_end_is_decided_change_nothing() {
    let mut sim = Sim::new();
    sim.holds_exit = true;
    let broken = sim.submit(task("calm"));
    sim.report(WorkerId(1), Report::ProtocolError { message: "hello".to_string() });
    sim.complete(broken);
    sim.fail(broken, true);
    sim.preempted(broken, true);
    sim.exit(WorkerId(1), signal(9));
    assert_eq!(sim.code(broken), FailureCode::ProtocolError);
}

#[test]
fn the_peak_of_a_task_is_what_its_worker_or_the_kernel_told() {
    let mut sim = Sim::new();
    let [calm, once] = [sim.submit(task("calm")), sim.submit(task("once"))];
    sim.report(WorkerId(1), Report::Memory(HeapReading { rss: 77, ..HeapReading::default() }));
    sim.complete(calm);
    sim.exit_of(once, Exit { peak_rss_bytes: 88, ..status(0) });
    assert_eq!([calm, once].map(|task| sim.finished(task).peak_rss_bytes), [Some(77), Some(88)]);
}

#[test]
fn the_time_waited_is_that_of_the_present_attempt() {
    let mut sim = Sim::new();
    let crashing = sim.submit(retried("once", 1));
    sim.pass(s(100));
    sim.exit_of(crashing, signal(11));
    sim.take();
    sim.pass(s(1));
    let waits: Vec<_> = sim
        .notices()
        .into_iter()
        .filter_map(|notice| if let Notice::TaskStarted { waited, .. } = notice { Some(waited) } else { None })
        .collect();
    assert_eq!(waits, [s(1)]);
}
