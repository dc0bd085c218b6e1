use super::sim::*;
use crate::core::event::CancelAnswer;
use crate::core::ids::TaskId;
use crate::core::order::{CancelReason, Order, PreemptReason, Report};
use crate::core::task::{FailureCode, TaskSpec, TaskState};

fn short(agent: &str) -> TaskSpec {
    TaskSpec { timeout: s(10), ..task(agent) }
}

fn cancels(sim: &mut Sim) -> Vec<(u64, CancelReason)> {
    let orders = sim.orders().into_iter();
    let cancels = orders.filter_map(|(worker, order)| match order {
        Order::Cancel { reason, .. } => Some((worker, reason)),
        Order::Spawn { .. }
        | Order::Assign(_)
        | Order::Preempt { .. }
        | Order::CollectGarbage
        | Order::BreakerState { .. }
        | Order::Shutdown
        | Order::Kill => None,
    });
    cancels.collect()
}

#[test]
fn a_task_over_its_timeout_is_asked_to_stop_then_killed_and_has_failed_with_timeout() {
    for agent in ["calm", "once"] {
        let mut sim = Sim::new();
        let slow = sim.submit(short(agent));
        sim.take();
        sim.pass(s(10));
        assert_eq!(cancels(&mut sim), [(1, CancelReason::Timeout)], "{agent}");
        assert_eq!(sim.state(slow), TaskState::Running);
        sim.pass(s(5));
        assert!(sim.orders().contains(&(1, Order::Kill)), "{agent}");
        let failure = sim.failure(slow);
        assert_eq!((failure.code, failure.signal), (FailureCode::Timeout, Some(9)), "{agent}");
        assert!(failure.message.contains("timeout of 10 s"), "{}", failure.message);
    }
}

#[test]
fn what_completes_within_the_grace_counts() {
    for agent in ["calm", "once"] {
        let mut sim = Sim::new();
        let slow = sim.submit(short(agent));
        sim.pass(s(14));
        sim.complete(slow);
        assert_eq!(sim.state(slow), TaskState::Completed, "{agent}");
    }
}

#[test]
fn a_worker_that_gives_up_when_its_time_is_over_has_timed_out_and_is_kept() {
    let mut sim = Sim::new();
    let slow = sim.submit(short("calm"));
    sim.pass(s(10));
    sim.fail(slow, false);
    assert_eq!(sim.code(slow), FailureCode::Timeout);
    assert_eq!(sim.processes(), [(1, "idle")]);
}

#[test]
fn a_oneshot_ended_by_the_signal_of_its_timeout_has_timed_out_and_a_retry_follows() {
    let mut sim = Sim::new();
    let slow = sim.submit(TaskSpec { max_retries: 1, ..short("once") });
    sim.pass(s(10));
    sim.exit_of(slow, signal(15));
    sim.pass(s(1));
    assert_eq!(sim.state(slow), TaskState::Running, "the second attempt");
    sim.pass(s(10));
    sim.exit_of(slow, signal(15));
    let failure = sim.failure(slow);
    assert_eq!(failure.code, FailureCode::RetriesExhausted);
    assert!(failure.message.contains("timeout: it ran longer"), "{}", failure.message);
}

#[test]
fn a_queued_task_is_cancelled_at_once() {
    let mut sim = Sim::with(|settings| settings.workers.max = 1);
    sim.submit(task("once"));
    let queued = sim.submit(task("once"));
    assert_eq!(sim.cancel(queued), CancelAnswer::Accepted);
    assert_eq!(sim.state(queued), TaskState::Cancelled);
    assert_eq!(sim.core.queue.depth(), 0);
    assert_eq!(sim.cancel(queued), CancelAnswer::AlreadyFinished(TaskState::Cancelled));
    assert_eq!(sim.cancel(TaskId(77)), CancelAnswer::UnknownTask);
}

#[test]
fn a_cancel_reaches_the_worker_and_whatever_it_answers_the_task_is_cancelled() {
    for answer in ["completed", "failed", "preempted", "crashed", "silence", "protocol"] {
        let mut sim = Sim::new();
        let running = sim.submit(retried("calm", 3));
        sim.take();
        assert_eq!(sim.cancel(running), CancelAnswer::Accepted);
        assert_eq!(cancels(&mut sim), [(1, CancelReason::Requested)]);
        assert_eq!(sim.state(running), TaskState::Running, "until the worker has let go of it");
        let worker = sim.worker(running);
        match answer {
            "completed" => sim.complete(running),
            "failed" => sim.fail(running, true),
            "preempted" => sim.preempted(running, true),
            "crashed" => sim.exit(worker, signal(11)),
            "silence" => sim.pass(s(5)),
            "protocol" => {
                sim.report(worker, Report::ProtocolError { message: "no JSON".to_string() });
                sim.exit(worker, signal(9));
            }
            other => panic!("{other}"),
        }
        assert_eq!(sim.state(running), TaskState::Cancelled, "{answer}");
    }
}

#[test]
fn a_cancelled_oneshot_is_cancelled_however_it_ends() {
    for exit in [status(0), status(1), signal(15)] {
        let mut sim = Sim::new();
        let running = sim.submit(retried("once", 3));
        sim.cancel(running);
        sim.exit_of(running, exit.clone());
        assert_eq!(sim.state(running), TaskState::Cancelled, "{exit:?}");
    }
}

#[test]
fn a_cancelled_task_whose_process_never_started_is_not_tried_again() {
    let mut sim = Sim::new();
    let running = sim.submit(retried("once", 3));
    sim.cancel(running);
    let worker = sim.worker(running);
    sim.report(worker, Report::SpawnFailed { error: "no such file".to_string() });
    assert_eq!(sim.state(running), TaskState::Cancelled);
}

#[test]
fn a_cancel_while_its_worker_is_being_killed_stops_the_retry() {
    let mut sim = Sim::new();
    sim.holds_exit = true;
    let slow = sim.submit(TaskSpec { max_retries: 3, ..short("calm") });
    sim.pass(s(15));
    assert_eq!(sim.processes(), [(1, "stopping")]);
    assert_eq!(sim.cancel(slow), CancelAnswer::Accepted);
    let worker = sim.worker(slow);
    sim.exit(worker, signal(9));
    assert_eq!(sim.state(slow), TaskState::Cancelled);
}

#[test]
fn a_second_reason_to_stop_gives_no_more_time_but_a_client_s_word_decides() {
    let mut sim = Sim::new();
    let slow = sim.submit(TaskSpec { max_retries: 3, ..short("calm") });
    sim.pass(s(12));
    sim.cancel(slow);
    sim.take();
    sim.cancel(slow);
    assert_eq!(cancels(&mut sim), [], "it has been told");
    sim.pass(s(3));
    assert_eq!(sim.state(slow), TaskState::Cancelled);
}

#[test]
fn a_cancel_overtakes_a_preemption() {
    let mut sim = Sim::new();
    let running = sim.submit(task("calm"));
    let worker = sim.worker(running);
    sim.core.preempt(worker, PreemptReason::MemoryPressure);
    sim.cancel(running);
    sim.preempted(running, true);
    assert_eq!(sim.state(running), TaskState::Cancelled);
    assert_eq!(sim.processes(), [(1, "idle")]);
}
