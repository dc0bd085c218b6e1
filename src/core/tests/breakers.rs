use std::sync::Arc;

use super::sim::*;
use crate::core::breaker::BreakerState;
use crate::core::event::{BreakerAnswer, BreakerRequest};
use crate::core::ids::{PermitId, TaskId, WorkerId};
use crate::core::notice::Notice;
use crate::core::order::{BreakerAnswer as WorkerAnswer, BreakerOp, Order, Report};
use crate::core::settings::AgentSettings;
use crate::core::task::TaskState;

fn fail_one(sim: &mut Sim) -> TaskId {
    let failing = sim.submit(task("guarded"));
    sim.exit_of(failing, status(1));
    failing
}

fn opened() -> Sim {
    let mut sim = Sim::new();
    for _ in 0..3 {
        fail_one(&mut sim);
    }
    sim
}

fn transitions(sim: &mut Sim) -> Vec<BreakerState> {
    let notices = sim.notices().into_iter();
    notices.filter_map(|notice| if let Notice::Circuit { to, .. } = notice { Some(to) } else { None }).collect()
}

fn state(sim: &Sim) -> BreakerState {
    sim.core.breakers["net"].state()
}

#[test]
fn three_failing_tasks_open_the_breaker_of_their_agent_and_submissions_are_refused() {
    let mut sim = opened();
    assert_eq!(transitions(&mut sim), [BreakerState::Open]);
    let refusal = sim.refused(task("guarded"));
    assert_eq!((refusal.code(), refusal.retry_after()), ("circuit_open", Some(s(1))));
    sim.submit(task("once"));
}

#[test]
fn failures_that_are_tried_again_count_too_and_the_accepted_task_waits() {
    let mut sim = Sim::new();
    let stubborn = sim.submit(retried("guarded", 5));
    for pause in [1, 2, 0] {
        sim.exit_of(stubborn, signal(11));
        sim.pass(s(pause));
    }
    assert_eq!((state(&sim), sim.state(stubborn)), (BreakerState::Open, TaskState::Queued));
    sim.pass(s(4));
    assert_eq!((state(&sim), sim.state(stubborn)), (BreakerState::HalfOpen, TaskState::Running));
}

#[test]
fn half_open_runs_one_probe_at_a_time_and_closes_after_two_successes() {
    let mut sim = Sim::new();
    let running = [sim.submit(task("guarded")), sim.submit(task("guarded"))];
    let waiting = [sim.submit(task("guarded")), sim.submit(task("guarded")), sim.submit(task("guarded"))];
    sim.take();
    sim.exit_of(running[0], status(1));
    sim.exit_of(running[1], status(1));
    sim.exit_of(waiting[0], status(1));
    assert_eq!(state(&sim), BreakerState::Open);
    let [_, first, second] = waiting;
    // `first` has been running since before; its outcome says nothing any more.
    sim.exit_of(first, status(1));
    assert_eq!(sim.state(second), TaskState::Queued);
    sim.pass(s(1));
    assert_eq!(sim.state(second), TaskState::Running);
    let third = sim.submit(task("guarded"));
    assert_eq!(sim.state(third), TaskState::Queued, "one probe at a time");
    sim.complete(second);
    assert_eq!(sim.state(third), TaskState::Running);
    sim.complete(third);
    assert_eq!(transitions(&mut sim), [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed]);
}

#[test]
fn a_failed_probe_opens_it_for_longer() {
    let mut sim = opened();
    sim.pass(s(1));
    fail_one(&mut sim);
    assert_eq!(sim.refused(task("guarded")).retry_after(), Some(s(2)));
}

#[test]
fn a_cancelled_probe_says_nothing_and_the_next_task_probes() {
    let mut sim = opened();
    sim.pass(s(1));
    let probe = sim.submit(task("guarded"));
    sim.cancel(probe);
    sim.exit_of(probe, signal(15));
    let next = sim.submit(task("guarded"));
    assert_eq!((state(&sim), sim.state(next)), (BreakerState::HalfOpen, TaskState::Running));
}

#[test]
fn a_probe_settles_its_breaker_though_its_agent_was_reconfigured_meanwhile() {
    for removed in [true, false] {
        let mut sim = opened();
        sim.pass(s(1));
        let probe = sim.submit(task("guarded"));
        sim.reconfigure(|settings| {
            let unbound = AgentSettings { breaker: None, ..AgentSettings::clone(&settings.agents["guarded"]) };
            settings.agents.remove("guarded");
            if !removed {
                settings.agents.insert(unbound.name.clone(), Arc::new(unbound));
            }
        });
        sim.complete(probe);
        assert!(matches!(sim.breaker("net", BreakerRequest::Acquire), BreakerAnswer::Permit(_)), "removed: {removed}");
    }
}

#[test]
fn the_moment_its_pause_is_over_it_gives_a_permit_though_nobody_has_told_it_the_time() {
    let mut sim = opened();
    sim.now += s(1);
    assert!(matches!(sim.breaker("net", BreakerRequest::Acquire), BreakerAnswer::Permit(_)));
}

#[test]
fn a_script_guards_its_calls_with_permits() {
    let mut sim = Sim::new();
    let permit = sim.permit("net");
    assert_eq!(sim.breaker("net", BreakerRequest::Success(permit)), BreakerAnswer::Done);
    assert_eq!(sim.breaker("net", BreakerRequest::Success(permit)), BreakerAnswer::UnknownPermit);
    assert_eq!(sim.breaker("net", BreakerRequest::Failure(PermitId(999))), BreakerAnswer::UnknownPermit);
    assert_eq!(sim.breaker("none", BreakerRequest::Acquire), BreakerAnswer::UnknownBreaker);
    for _ in 0..3 {
        let permit = sim.permit("net");
        assert_eq!(sim.breaker("net", BreakerRequest::Failure(permit)), BreakerAnswer::Done);
    }
    assert_eq!(sim.breaker("net", BreakerRequest::Acquire), BreakerAnswer::Open { retry_after: s(1) });
    sim.pass(s(1));
    sim.permit("net");
    sim.pass(s(60));
    assert_eq!(state(&sim), BreakerState::Open, "a probe nobody reported counts as failed");
}

#[test]
fn a_task_s_permit_is_not_for_others_to_report_on() {
    let mut sim = Sim::new();
    sim.submit(task("guarded"));
    sim.submit(task("calm"));
    let guessed = PermitId(1);
    assert_eq!(sim.breaker("net", BreakerRequest::Failure(guessed)), BreakerAnswer::UnknownPermit);
    assert_eq!(sim.breaker("net", BreakerRequest::Success(guessed)), BreakerAnswer::UnknownPermit);
    let op = BreakerOp::Failure(guessed);
    sim.report(WorkerId(2), Report::Breaker { name: Arc::from("net"), op });
    sim.exit_of(TaskId(1), status(1));
    assert_eq!(sim.core.breakers["net"].view(sim.now).failures, 1);
}

#[test]
fn permits_that_scripts_forget_do_not_push_out_those_of_running_tasks() {
    let mut sim = Sim::new();
    let first = sim.submit(task("guarded"));
    for _ in 0..1000 {
        sim.permit("net");
    }
    sim.exit_of(first, status(1));
    assert_eq!(sim.core.breakers["net"].view(sim.now).failures, 1);
}

#[test]
fn an_operator_opens_and_closes_it() {
    let mut sim = Sim::new();
    let waiting = [sim.submit(task("guarded")), sim.submit(task("guarded")), sim.submit(task("guarded"))][2];
    sim.take();
    assert_eq!(sim.breaker("net", BreakerRequest::ForceOpen), BreakerAnswer::Done);
    sim.complete(TaskId(1));
    sim.pass(s(500));
    assert_eq!(sim.state(waiting), TaskState::Queued);
    assert_eq!(sim.refused(task("guarded")).retry_after(), Some(s(120)));
    assert_eq!(sim.breaker("net", BreakerRequest::ForceClose), BreakerAnswer::Done);
    assert_eq!(sim.state(waiting), TaskState::Running);
    assert_eq!(transitions(&mut sim), [BreakerState::Open, BreakerState::Closed]);
}

#[test]
fn a_worker_asks_for_permits_and_reports_on_them() {
    let mut sim = Sim::new();
    sim.submit(task("calm"));
    let net: Arc<str> = Arc::from("net");
    let ask = |sim: &mut Sim, name: &Arc<str>| {
        sim.take();
        let report = Report::Breaker { name: name.clone(), op: BreakerOp::Acquire };
        sim.report(WorkerId(1), report);
        match &sim.orders()[..] {
            [(1, Order::BreakerState { answer, .. })] => *answer,
            other => panic!("{other:?}"),
        }
    };
    for nth in 0..4 {
        let WorkerAnswer::Permit(permit) = ask(&mut sim, &net) else { panic!("no permit at {nth}") };
        let op = if nth == 0 { BreakerOp::Success(permit) } else { BreakerOp::Failure(permit) };
        sim.report(WorkerId(1), Report::Breaker { name: net.clone(), op });
    }
    assert_eq!(transitions(&mut sim), [BreakerState::Open]);
    assert_eq!(ask(&mut sim, &net), WorkerAnswer::RetryAfter(s(1)));
    assert!(matches!(ask(&mut sim, &Arc::from("unknown")), WorkerAnswer::Permit(_)), "it guards nothing");
}

#[test]
fn without_the_feature_breakers_hold_nothing_back() {
    let mut sim = Sim::with(|settings| settings.features.circuit_breakers = false);
    sim.breaker("net", BreakerRequest::ForceOpen);
    let free = sim.submit(task("guarded"));
    assert_eq!(sim.state(free), TaskState::Running);
}
