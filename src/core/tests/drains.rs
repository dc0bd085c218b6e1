use super::sim::*;
use crate::core::event::{Action, CancelAnswer};
use crate::core::order::{Order, PreemptReason, Report};
use crate::core::task::{TaskSpec, TaskState};

fn drained(sim: &mut Sim) -> usize {
    sim.take().iter().filter(|action| matches!(action, Action::Drained)).count()
}

#[test]
fn a_drain_takes_and_starts_nothing_new_and_idle_workers_end() {
    let mut sim = Sim::new();
    let [done, running] = [sim.submit(task("calm")), sim.submit(task("once"))];
    sim.complete(done);
    sim.drain(s(30));
    assert_eq!(sim.processes(), [(2, "busy")]);
    let refusal = sim.refused(task("once"));
    assert_eq!((refusal.code(), refusal.retry_after()), ("draining", Some(s(10))));
    assert_eq!(drained(&mut sim), 0);
    sim.complete(running);
    assert_eq!(sim.state(running), TaskState::Completed);
    assert_eq!(drained(&mut sim), 1);
    sim.drain(s(30));
    sim.pass(s(100));
    assert_eq!(drained(&mut sim), 0, "told once");
    assert!(sim.core.snapshot(clock(sim.now)).is_draining);
}

#[test]
fn with_no_worker_a_drain_is_over_at_once() {
    let mut sim = Sim::new();
    sim.drain(s(30));
    assert_eq!(drained(&mut sim), 1);
}

#[test]
fn what_waits_keeps_waiting_and_no_schedule_beats() {
    let mut sim = Sim::with(|settings| {
        settings.workers.max = 1;
        settings.schedules = vec![std::sync::Arc::new(schedule("main", s(1)))];
    });
    let [running, waiting] = [sim.submit(retried("calm", 1)), sim.submit(task("once"))];
    sim.drain(s(30));
    sim.fail(running, true);
    sim.pass(s(60));
    assert_eq!(sim.states([running, waiting]), [TaskState::Queued, TaskState::Queued]);
    assert_eq!(sim.processes(), []);
    assert!(!sim.take().iter().any(|action| matches!(action, Action::Beat(_))));
}

#[test]
fn what_runs_is_asked_for_a_checkpoint_in_time_and_parked_when_it_gives_one() {
    let mut sim = Sim::new();
    let running = sim.submit(task("calm"));
    sim.take();
    sim.drain(s(30));
    sim.pass(s(24));
    assert_eq!(sim.orders(), []);
    sim.pass(s(1));
    let asked = Order::Preempt { task: running, reason: PreemptReason::Shutdown, checkpoint_timeout: s(5) };
    assert_eq!(sim.orders(), [(1, asked)]);
    sim.preempted(running, true);
    assert_eq!(sim.state(running), TaskState::Preempted);
    assert_eq!(drained(&mut sim), 1);
}

#[test]
fn what_still_runs_at_the_deadline_is_killed_and_left_to_the_next_start() {
    let mut sim = Sim::new();
    let tasks = [sim.submit(task("calm")), sim.submit(task("once"))];
    sim.drain(s(30));
    sim.take();
    sim.pass(s(30));
    let actions = sim.take();
    let kills = actions.iter().filter(|action| matches!(action, Action::Worker(_, Order::Kill))).count();
    assert_eq!(kills, 2);
    assert!(!actions.iter().any(|action| matches!(action, Action::Record(_))), "the spool still says they run");
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Drained)).count(), 1);
    assert_eq!(sim.states(tasks), [TaskState::Running, TaskState::Running]);
}

#[test]
fn a_drain_without_time_kills_at_once() {
    let mut sim = Sim::new();
    sim.submit(task("calm"));
    sim.drain(s(0));
    assert_eq!(drained(&mut sim), 1);
}

#[test]
fn a_second_drain_only_shortens_the_first() {
    let mut sim = Sim::new();
    sim.submit(task("once"));
    sim.drain(s(30));
    sim.drain(s(100));
    sim.drain(s(10));
    sim.pass(s(9));
    assert_eq!(drained(&mut sim), 0);
    sim.pass(s(1));
    assert_eq!(drained(&mut sim), 1);
}

#[test]
fn a_cancelled_task_does_not_run_again_because_the_daemon_stops() {
    // Before the drain's deadline, while its worker is being killed, and when that is gone already.
    for moment in [0, 1, 2] {
        let mut sim = Sim::with(|settings| settings.workers.cancel_grace = s(60));
        sim.holds_exit = true;
        let running = sim.submit(task("calm"));
        let worker = sim.worker(running);
        sim.drain(s(30));
        for step in 0..3 {
            if step == moment {
                assert_eq!(sim.cancel(running), CancelAnswer::Accepted);
            }
            match step {
                0 => sim.pass(s(30)),
                1 => sim.exit(worker, signal(9)),
                _ => {}
            }
        }
        assert_eq!(sim.state(running), TaskState::Cancelled, "moment {moment}");
    }
}

#[test]
fn a_worker_that_was_starting_ends_and_its_task_waits_on() {
    let mut sim = Sim::new();
    sim.holds_ready = true;
    sim.holds_exit = true;
    let [first, second] = [sim.submit(task("calm")), sim.submit(task("warm"))];
    sim.drain(s(30));
    assert_eq!(sim.processes(), [(1, "stopping"), (2, "stopping")]);
    sim.report(crate::core::ids::WorkerId(1), Report::Ready { can_checkpoint: true, can_cancel: true });
    sim.report(crate::core::ids::WorkerId(2), Report::SpawnFailed { error: "no such file".to_string() });
    sim.pass(s(5));
    sim.exit(crate::core::ids::WorkerId(1), signal(9));
    assert_eq!(sim.states([first, second]), [TaskState::Queued, TaskState::Queued]);
    assert_eq!(drained(&mut sim), 1);
}

#[test]
fn a_timeout_during_a_drain_is_a_timeout() {
    let mut sim = Sim::new();
    let slow = sim.submit(TaskSpec { timeout: s(1), ..task("once") });
    sim.drain(s(30));
    sim.pass(s(6));
    assert_eq!(sim.code(slow), crate::core::task::FailureCode::Timeout);
}
