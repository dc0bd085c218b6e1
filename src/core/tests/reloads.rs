use std::sync::Arc;

use super::sim::*;
use crate::core::event::BreakerRequest;
use crate::core::ids::WorkerId;
use crate::core::order::Report;
use crate::core::settings::{AgentMode, AgentSettings, BreakerSettings, Settings};
use crate::core::task::{FailureCode, TaskState};

fn change_agent(settings: &mut Settings, name: &str) {
    let agent = AgentSettings { soft_limit_bytes: 200, ..AgentSettings::clone(&settings.agents[name]) };
    settings.agents.insert(agent.name.clone(), Arc::new(agent));
}

#[test]
fn idle_workers_of_unchanged_agents_stay_and_those_of_changed_and_removed_ones_end() {
    let mut sim = Sim::with(|settings| {
        settings.workers.max = 3;
        let agent = agent("gone", AgentMode::Persistent);
        settings.agents.insert(agent.name.clone(), Arc::new(agent));
    });
    for tasks in ["calm", "warm", "gone"].map(|agent| sim.submit(task(agent))) {
        sim.complete(tasks);
    }
    sim.reconfigure(|settings| {
        change_agent(settings, "warm");
        settings.agents.remove("gone");
    });
    assert_eq!(sim.processes(), [(1, "idle")]);
    assert_eq!(sim.refused(task("gone")).code(), "unknown_agent");
}

#[test]
fn a_running_task_keeps_what_it_started_with_and_its_worker_ends_after_it() {
    for removed in [true, false] {
        let mut sim = Sim::new();
        let running = sim.submit(task("calm"));
        sim.reconfigure(|settings| {
            change_agent(settings, "calm");
            if removed {
                settings.agents.remove("calm");
            }
        });
        assert_eq!(sim.state(running), TaskState::Running);
        sim.complete(running);
        assert_eq!(sim.state(running), TaskState::Completed);
        assert_eq!(sim.processes(), []);
    }
}

#[test]
fn queued_tasks_of_a_removed_agent_fail_and_say_why() {
    let mut sim = Sim::with(|settings| settings.workers.max = 1);
    let [running, queued] = [sim.submit(task("once")), sim.submit(retried("calm", 3))];
    sim.reconfigure(|settings| {
        settings.agents.remove("calm");
    });
    sim.complete(running);
    let failure = sim.failure(queued);
    assert_eq!(failure.code, FailureCode::SpawnFailed);
    assert_eq!(failure.message, "agent calm is no longer configured: add it again and submit the task again");
}

#[test]
fn an_added_agent_runs() {
    let mut sim = Sim::new();
    sim.reconfigure(|settings| {
        let new = agent("new", AgentMode::Oneshot);
        settings.agents.insert(new.name.clone(), Arc::new(new));
    });
    let first = sim.submit(task("new"));
    assert_eq!(sim.state(first), TaskState::Running);
}

#[test]
fn a_worker_that_was_starting_under_the_old_settings_gets_no_task_and_fails_none() {
    for end in ["ready", "spawn failed", "exit", "protocol", "silence"] {
        let mut sim = Sim::new();
        sim.holds_ready = true;
        let waiting = sim.submit(task("calm"));
        sim.pass(s(10));
        sim.reconfigure(|settings| change_agent(settings, "calm"));
        match end {
            "ready" => sim.ready(WorkerId(1)),
            "spawn failed" => sim.report(WorkerId(1), Report::SpawnFailed { error: "no such file".to_string() }),
            "exit" => sim.exit(WorkerId(1), status(1)),
            "protocol" => {
                sim.report(WorkerId(1), Report::ProtocolError { message: "hello".to_string() });
                sim.exit(WorkerId(1), signal(9));
            }
            _ => sim.pass(s(20)),
        }
        assert_eq!(sim.state(waiting), TaskState::Queued, "{end}");
        assert_eq!(sim.processes(), [(2, "starting")], "{end}");
        sim.ready(WorkerId(2));
        assert_eq!(sim.state(waiting), TaskState::Running, "{end}");
    }
}

#[test]
fn an_agent_given_up_gets_another_chance_when_it_is_changed() {
    let mut sim = Sim::with(|settings| settings.workers.max_restarts_per_hour = 0);
    let crashing = sim.submit(task("once"));
    sim.exit_of(crashing, signal(11));
    assert_eq!(sim.refused(task("once")).code(), "agent_unavailable");
    sim.reconfigure(|_| {});
    assert_eq!(sim.refused(task("once")).code(), "agent_unavailable", "nothing was changed");
    sim.reconfigure(|settings| change_agent(settings, "once"));
    sim.submit(task("once"));
}

#[test]
fn fewer_workers_are_reached_by_ending_idle_ones_and_then_those_that_get_free() {
    let mut sim = Sim::with(|settings| settings.workers.max = 4);
    let tasks = [1, 2, 3, 4].map(|_| sim.submit(task("calm")));
    sim.complete(tasks[0]);
    sim.reconfigure(|settings| settings.workers.max = 2);
    assert_eq!(sim.processes(), [(2, "busy"), (3, "busy"), (4, "busy")]);
    let next = sim.submit(task("calm"));
    sim.complete(tasks[1]);
    assert_eq!(sim.state(next), TaskState::Queued);
    assert_eq!(sim.processes(), [(3, "busy"), (4, "busy")]);
    sim.complete(tasks[2]);
    assert_eq!(sim.worker(next).0, 3);
}

#[test]
fn without_the_pool_no_worker_that_has_worked_is_used_again() {
    let mut sim = Sim::new();
    let done = sim.submit(task("calm"));
    sim.complete(done);
    sim.reconfigure(|settings| settings.features.worker_pool = false);
    assert_eq!(sim.processes(), []);
}

#[test]
fn breakers_keep_their_state_and_removed_ones_hold_nothing_back() {
    let mut sim = Sim::new();
    sim.breaker("net", BreakerRequest::ForceOpen);
    sim.reconfigure(|settings| {
        let longer = BreakerSettings { window: s(90), ..breaker() };
        settings.breakers.insert(Arc::from("net"), longer);
    });
    assert_eq!(sim.refused(task("guarded")).code(), "circuit_open");
    sim.reconfigure(|settings| settings.breakers.clear());
    let free = sim.submit(task("guarded"));
    assert_eq!(sim.state(free), TaskState::Running);
}

#[test]
fn a_schedule_keeps_its_next_beat_a_shorter_one_comes_sooner_and_a_removed_one_never() {
    let mut sim = Sim::with(|settings| settings.schedules = vec![Arc::new(schedule("main", s(300)))]);
    let next = |sim: &Sim| sim.core.schedules.iter().map(|beat| beat.next_at()).collect::<Vec<_>>();
    sim.pass(s(100));
    sim.reconfigure(|settings| settings.schedules[0] = Arc::new(schedule("main", s(900))));
    assert_eq!(next(&sim), [s(300)]);
    sim.reconfigure(|settings| settings.schedules[0] = Arc::new(schedule("main", s(60))));
    assert_eq!(next(&sim), [s(160)]);
    sim.reconfigure(|settings| settings.schedules[0] = Arc::new(schedule("other", s(60))));
    assert_eq!(next(&sim), [s(160)]);
    sim.reconfigure(|settings| settings.schedules.clear());
    assert_eq!(next(&sim), []);
}
