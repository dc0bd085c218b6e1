//! Each worker's own limits, and deaths by memory.

use std::sync::Arc;

use super::sim::*;
use crate::core::event::Event;
use crate::core::ids::WorkerId;
use crate::core::notice::{ExitReason, Notice};
use crate::core::order::{Exit, Order};
use crate::core::settings::{AgentSettings, Mode};
use crate::core::task::{FailureCode, TaskState};

fn kernel_oom(status: Option<i32>, signal: Option<i32>) -> Exit {
    Exit { status, signal, oom_killed: true, ..Exit::default() }
}

fn exit_reasons(sim: &mut Sim) -> Vec<ExitReason> {
    sim.notices()
        .into_iter()
        .filter_map(|notice| if let Notice::WorkerExited { reason, .. } = notice { Some(reason) } else { None })
        .collect()
}

#[test]
fn over_its_soft_limit_a_worker_is_asked_for_garbage_once_for_each_crossing() {
    let mut sim = Sim::new();
    sim.submit(task("calm"));
    // It clears a tenth lower, so that one at the edge is not told so with every reading.
    for (rss, asked) in [(300, 0), (301, 1), (400, 0), (299, 0), (301, 0), (270, 0), (301, 1)] {
        sim.take();
        sim.read(100, &[(1, rss)]);
        let notices = sim.core.snapshot(clock(sim.now)).workers.workers[0].rss_bytes;
        assert_eq!(notices, Some(rss));
        let actions = sim.take();
        let count = |wanted: &dyn Fn(&crate::core::event::Action) -> bool| actions.iter().filter(|a| wanted(a)).count();
        let orders = count(&|action| matches!(action, crate::core::event::Action::Worker(_, Order::CollectGarbage)));
        let told = count(&|action| {
            matches!(action, crate::core::event::Action::Notice(Notice::WorkerSoftLimit { soft_limit_bytes: 300, .. }))
        });
        assert_eq!((orders, told), (asked, asked), "at {rss}");
    }
}

#[test]
fn a_worker_still_over_its_soft_limit_when_its_task_ends_is_replaced_and_one_that_shrank_is_kept() {
    for (last, left) in [(301, 0), (300, 1)] {
        let mut sim = Sim::new();
        let running = sim.submit(task("calm"));
        sim.read(100, &[(1, 400)]);
        sim.read(100, &[(1, last)]);
        assert_eq!(sim.state(running), TaskState::Running);
        sim.complete(running);
        assert_eq!(sim.processes().len(), left, "at {last}");
    }
}

#[test]
fn an_idle_worker_that_does_not_shrink_under_its_soft_limit_is_retired() {
    let mut sim = Sim::new();
    let done = sim.submit(task("calm"));
    sim.complete(done);
    sim.read(100, &[(1, 301)]);
    assert_eq!(sim.processes(), [(1, "idle")], "it has been asked to free memory");
    sim.read(100, &[(1, 301)]);
    assert_eq!(sim.processes(), []);
}

#[test]
fn where_memory_is_only_observed_a_fat_worker_is_told_of_and_kept() {
    let mut sim = Sim::with(|settings| settings.memory.mode = Mode::Observe);
    let done = sim.submit(task("calm"));
    sim.read(100, &[(1, 900)]);
    assert!(sim.names().contains(&"WORKER_SOFT_LIMIT"));
    sim.complete(done);
    sim.read(100, &[(1, 900)]);
    assert_eq!(sim.processes(), [(1, "idle")]);
}

#[test]
fn over_its_hard_limit_a_worker_is_killed_whatever_the_level() {
    for agent in ["calm", "once"] {
        let mut sim = Sim::new();
        let running = sim.submit(task(agent));
        sim.read(100, &[(1, 500)]);
        assert_eq!(sim.state(running), TaskState::Running);
        sim.take();
        sim.read(100, &[(1, 501)]);
        assert_eq!(exit_reasons(&mut sim), [ExitReason::OutOfMemory]);
        let failure = sim.failure(running);
        assert_eq!(failure.code, FailureCode::WorkerOom, "{agent}");
        assert!(failure.message.contains("over its hard limit"), "{}", failure.message);
        assert_eq!(sim.core.health[agent].recent(sim.now), 1, "its agent is at fault");
    }
}

#[test]
fn a_worker_that_is_ending_or_starting_has_a_hard_limit_too() {
    let mut sim = Sim::new();
    let done = sim.submit(task("calm"));
    sim.complete(done);
    sim.holds_exit = true;
    sim.pass(s(300));
    assert_eq!(sim.processes(), [(1, "stopping")]);
    sim.take();
    sim.read(100, &[(1, 501)]);
    sim.read(100, &[(1, 502)]);
    assert_eq!(sim.orders(), [(1, Order::Kill)]);
    sim.exit(WorkerId(1), signal(9));
    assert_eq!(exit_reasons(&mut sim), [ExitReason::OutOfMemory]);
    sim.holds_ready = true;
    let waiting = sim.submit(task("calm"));
    sim.read(100, &[(2, 501)]);
    assert_eq!(sim.code(waiting), FailureCode::SpawnFailed);
}

#[test]
fn a_death_by_the_kernel_for_memory_is_told_apart_from_a_crash() {
    for (agent, exit, code) in [
        ("calm", signal(9), FailureCode::WorkerOom),
        ("once", signal(9), FailureCode::WorkerOom),
        ("calm", kernel_oom(None, Some(9)), FailureCode::WorkerOom),
        ("once", kernel_oom(None, Some(9)), FailureCode::WorkerOom),
        // A shell tells of its killed child by its status.
        ("once", kernel_oom(Some(137), None), FailureCode::WorkerOom),
        ("calm", kernel_oom(Some(1), None), FailureCode::WorkerOom),
        ("calm", signal(11), FailureCode::WorkerCrashed),
        ("once", signal(11), FailureCode::WorkerCrashed),
        ("once", status(137), FailureCode::AgentFailed),
    ] {
        let mut sim = Sim::new();
        let running = sim.submit(task(agent));
        sim.take();
        sim.exit_of(running, exit.clone());
        assert_eq!(sim.code(running), code, "{agent} {exit:?}");
        let is_oom = exit_reasons(&mut sim) == [ExitReason::OutOfMemory];
        assert_eq!(is_oom, code == FailureCode::WorkerOom, "{agent} {exit:?}");
        let retried = sim.submit(retried(agent, 1));
        sim.pass(s(1));
        sim.exit_of(retried, exit.clone());
        assert_eq!(sim.state(retried).is_terminal(), code == FailureCode::AgentFailed, "{agent} {exit:?}");
    }
}

#[test]
fn a_task_that_coped_with_the_death_of_a_child_has_done_its_work() {
    let mut sim = Sim::new();
    let running = sim.submit(task("once"));
    sim.exit_of(running, Exit { oom_killed: true, ..status(0) });
    assert_eq!(sim.state(running), TaskState::Completed);
    assert!(!sim.core.health.contains_key("once"));
}

#[test]
fn an_idle_worker_that_the_kernel_killed_is_counted_as_out_of_memory() {
    let mut sim = Sim::new();
    let done = sim.submit(task("calm"));
    sim.complete(done);
    sim.take();
    sim.exit(WorkerId(1), signal(9));
    assert_eq!(exit_reasons(&mut sim), [ExitReason::OutOfMemory]);
}

#[test]
fn deaths_by_memory_have_a_budget_of_their_own_whatever_the_retries() {
    for (max_oom_kills, deaths) in [(0, 1), (1, 2), (2, 3)] {
        let mut sim = Sim::with(|settings| {
            let agent = AgentSettings { max_oom_kills, ..AgentSettings::clone(&settings.agents["once"]) };
            settings.agents.insert(agent.name.clone(), Arc::new(agent));
        });
        let leaking = sim.submit(retried("once", 9));
        sim.exit_of(leaking, signal(11));
        for death in 1..=deaths {
            sim.pass(s(10));
            assert_eq!(sim.state(leaking), TaskState::Running, "{max_oom_kills}: before death {death}");
            let worker = sim.worker(leaking);
            sim.feed(Event::MemorySampled(Box::new(holding(memory(100), &[(worker.0, 501)]))));
        }
        let failure = sim.failure(leaking);
        assert_eq!(failure.code, FailureCode::RetriesExhausted);
        let reason = format!("max_oom_kills = {max_oom_kills} allows no more; the last time worker_oom");
        assert!(failure.message.contains(&reason), "{}", failure.message);
    }
}

#[test]
fn the_budget_of_deaths_by_memory_outlives_a_restart() {
    let mut sim = Sim::new();
    let leaking = sim.submit(retried("once", 9));
    sim.exit_of(leaking, signal(9));
    let told: Vec<u32> = sim
        .core
        .records()
        .filter_map(|record| {
            let crate::core::event::Record::Returned { memory_deaths, .. } = record else { return None };
            Some(memory_deaths)
        })
        .collect();
    assert_eq!(told, [1]);
}

#[test]
fn what_a_task_held_at_most_is_told_with_it() {
    let mut sim = Sim::new();
    let [calm, once] = [sim.submit(task("calm")), sim.submit(task("once"))];
    sim.read(100, &[(1, 90), (2, 80)]);
    sim.read(100, &[(1, 50), (2, 40)]);
    sim.complete(calm);
    sim.exit_of(once, Exit { peak_rss_bytes: 85, ..status(1) });
    assert_eq!([calm, once].map(|task| sim.finished(task).peak_rss_bytes), [Some(90), Some(85)]);
}
