//! Pressure that comes from outside the daemon, and how long it tells others to wait.

use std::time::Duration;

use super::sim::*;
use crate::core::event::Event;
use crate::core::governor::{Level, MemorySample};
use crate::core::notice::Notice;
use crate::core::order::Order;
use crate::core::settings::Mode;
use crate::core::task::{FailureCode, Priority, TaskSpec, TaskState};

/// The host has so much of its 10000 bytes available; the daemon's own budget is fine.
fn host(available_bytes: u64) -> MemorySample {
    MemorySample { available_bytes, host: Some(1.0 - available_bytes as f64 / 10_000.0), ..memory(100) }
}

fn read(sim: &mut Sim, sample: MemorySample) {
    sim.feed(Event::MemorySampled(Box::new(sample)));
}

fn stay(sim: &mut Sim, sample: &MemorySample) {
    for _ in 0..4 {
        read(sim, sample.clone());
    }
}

fn blames(sim: &mut Sim) -> usize {
    let blames = |notice: &Notice| matches!(notice, Notice::MemoryAction { action: "none", incident: Some(_), .. });
    sim.notices().iter().filter(|notice| blames(notice)).count()
}

#[test]
fn nobody_is_preempted_or_killed_for_memory_that_others_hold_and_it_is_said_once_in_an_incident() {
    for (available, level) in [(1100, Level::Reject), (100, Level::Emergency)] {
        let mut sim = Sim::new();
        let [calm, once] = [sim.submit(task("calm")), sim.submit(at(Priority::Low))];
        sim.take();
        for incident in 0..2 {
            for _ in 0..3 {
                stay(&mut sim, &holding(host(available.min(880)), &[(1, 20), (2, 20)]));
                sim.pass(s(10));
            }
            assert!(sim.core.governor.level() >= level.min(Level::Reject), "{incident}");
            assert_eq!(blames(&mut sim), 1, "incident {incident} at {available}");
            stay(&mut sim, &host(9000));
        }
        assert_eq!(sim.states([calm, once]), [TaskState::Running, TaskState::Running]);
    }
}

#[test]
fn a_daemon_that_refuses_for_others_says_so_though_nothing_of_its_own_runs() {
    for mode in [Mode::Hard, Mode::Soft] {
        let mut sim = Sim::with(|settings| settings.memory.mode = mode);
        stay(&mut sim, &host(900));
        assert_eq!(sim.refused(task("once")).code(), "memory_pressure");
        assert_eq!(blames(&mut sim), 1, "{mode:?}");
    }
}

#[test]
fn what_holds_enough_to_matter_is_preempted_and_killed_whoever_began_it() {
    let mut sim = Sim::new();
    let running = sim.submit(task("calm"));
    sim.take();
    stay(&mut sim, &holding(host(1450), &[(1, 60)]));
    assert!(matches!(&sim.orders()[..], [.., (1, Order::Preempt { .. })]));
    stay(&mut sim, &holding(host(490), &[(1, 20)]));
    assert_eq!(sim.code(running), FailureCode::MemoryEmergency);
}

#[test]
fn under_pressure_from_outside_tasks_still_start_one_at_a_time() {
    let mut sim = Sim::new();
    let [first, second, third] = [1, 2, 3].map(|_| sim.submit(task("once")));
    stay(&mut sim, &host(50));
    sim.complete(first);
    assert_eq!(sim.states([second, third]), [TaskState::Running, TaskState::Queued]);
    sim.complete(second);
    assert_eq!(sim.state(third), TaskState::Running);
}

#[test]
fn persistent_workers_too_are_started_one_at_a_time_and_given_their_task() {
    let mut sim = Sim::new();
    stay(&mut sim, &host(1200));
    let [first, second] = [sim.submit(task("calm")), sim.submit(task("warm"))];
    assert_eq!(sim.states([first, second]), [TaskState::Running, TaskState::Queued]);
    sim.complete(first);
    assert_eq!(sim.states([first, second]), [TaskState::Completed, TaskState::Running]);
    assert_eq!(sim.processes(), [(2, "busy")], "the first worker has been retired");
}

#[test]
fn a_host_without_free_memory_is_an_emergency_and_clears_a_tenth_above_the_floor() {
    let mut sim = Sim::with(|settings| settings.memory.min_free_bytes = 100);
    for (available, level) in [
        (100, Level::Normal),
        (99, Level::Emergency),
        (109, Level::Emergency),
        (111, Level::Normal),
        (100, Level::Normal),
    ] {
        read(&mut sim, MemorySample { available_bytes: available, ..memory(100) });
        assert_eq!(sim.core.governor.level(), level, "with {available} available");
    }
}

#[test]
fn a_host_without_free_memory_costs_the_lowest_task_and_its_message_says_why() {
    let mut sim = Sim::new();
    let [high, low] = [sim.submit(at(Priority::High)), sim.submit(at(Priority::Low))];
    stay(&mut sim, &holding(MemorySample { available_bytes: 5, ..memory(100) }, &[(1, 60), (2, 60)]));
    assert_eq!(sim.state(high), TaskState::Running);
    let failure = sim.failure(low);
    assert_eq!(failure.code, FailureCode::MemoryEmergency);
    assert!(failure.message.starts_with("the host has 0 MiB of memory available"), "{}", failure.message);
    let refusal = sim.refused(task("once"));
    assert!(refusal.to_string().starts_with("the host has 0 MiB"), "{refusal}");
}

#[test]
fn while_the_pressure_falls_retry_after_is_how_long_it_still_has_to() {
    let mut sim = Sim::new();
    let mut usage = 990;
    for _ in 0..20 {
        sim.memory_at(usage);
        sim.pass(s(1));
        usage -= 4;
    }
    // 4 bytes a second, from 914 to where the reject line clears at 800.
    let told = sim.refused(task("once")).retry_after().expect("it is told").as_secs();
    assert!((27..=31).contains(&told), "{told} s");
}

#[test]
fn while_the_pressure_stays_retry_after_is_when_a_running_task_ends_or_the_time_to_settle() {
    for (has_task, told) in [(true, 30), (false, 2)] {
        let mut sim = Sim::new();
        let learned = sim.submit(task("once"));
        sim.pass(s(40));
        sim.complete(learned);
        if has_task {
            sim.submit(TaskSpec { priority: Priority::Critical, ..task("once") });
        }
        for _ in 0..5 {
            sim.memory_at(910);
            sim.pass(s(2));
        }
        assert_eq!(sim.refused(task("once")).retry_after(), Some(s(told)), "running: {has_task}");
    }
}

#[test]
fn a_client_is_never_told_to_wait_for_more_than_two_minutes() {
    let mut sim = Sim::new();
    for usage in [990, 989, 988] {
        sim.memory_at(usage);
        sim.pass(Duration::from_millis(300));
    }
    let told = sim.refused(task("once")).retry_after().expect("it is told");
    assert!(told >= s(1) && told <= s(120), "{told:?}");
}
