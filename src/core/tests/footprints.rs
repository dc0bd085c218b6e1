use super::sim::*;
use crate::core::event::{Action, Event, Record};
use crate::core::governor::MemorySample;
use crate::core::order::{Exit, Order};
use crate::core::settings::{Mode, Settings};
use crate::core::task::{Priority, TaskSpec, TaskState};

/// Agents `calm`, `warm` and `once` are known to need these.
fn knowing(peaks: &[(&str, u64)], change: impl FnOnce(&mut Settings)) -> Sim {
    let mut sim = Sim::with(|settings| {
        settings.workers.max = 4;
        change(settings);
    });
    sim.core.restore_footprints(peaks.iter().map(|(agent, peak)| ((*agent).into(), *peak)).collect());
    sim
}

fn peak(sim: &Sim, agent: &str) -> u64 {
    sim.core.footprints.peak(agent)
}

fn recorded(sim: &mut Sim) -> Vec<u64> {
    sim.take()
        .into_iter()
        .filter_map(|action| {
            let Action::Record(Record::Footprint { peak_bytes, .. }) = action else { return None };
            Some(peak_bytes)
        })
        .collect()
}

#[test]
fn a_footprint_is_the_most_a_task_was_seen_to_hold_and_a_lighter_one_pulls_it_down_slowly() {
    let mut sim = Sim::new();
    for (rss, learned, told) in [(80, 80, vec![80]), (160, 160, vec![160]), (80, 150, vec![150]), (150, 150, vec![])] {
        let running = sim.submit(task("calm"));
        sim.take();
        sim.read(100, &[(1, rss)]);
        sim.read(100, &[(1, 10)]);
        sim.complete(running);
        assert_eq!((peak(&sim, "calm"), recorded(&mut sim)), (learned, told), "after {rss}");
    }
}

#[test]
fn of_a_oneshot_the_kernel_s_own_figure_counts_too() {
    let mut sim = Sim::new();
    let running = sim.submit(task("once"));
    sim.read(100, &[(1, 50)]);
    sim.exit_of(running, Exit { peak_rss_bytes: 70, ..status(0) });
    assert_eq!(peak(&sim, "once"), 70);
}

#[test]
fn what_did_not_come_to_its_end_makes_no_footprint_smaller() {
    let mut sim = knowing(&[("calm", 80), ("once", 80)], |_| {});
    let [failed, killed] = [sim.submit(task("calm")), sim.submit(task("once"))];
    sim.read(100, &[(1, 8), (2, 8)]);
    sim.fail(failed, false);
    sim.exit_of(killed, signal(11));
    assert_eq!((peak(&sim, "calm"), peak(&sim, "once")), (80, 80));
}

#[test]
fn the_end_of_a_worker_teaches_nothing_its_tasks_have_not() {
    let mut sim = Sim::new();
    let mut first = true;
    for _ in 0..10 {
        let running = sim.submit(task("calm"));
        sim.read(100, &[(1, if first { 160 } else { 10 })]);
        first = false;
        sim.complete(running);
    }
    let learned = peak(&sim, "calm");
    assert!(learned < 160);
    sim.exit(crate::core::ids::WorkerId(1), Exit { peak_rss_bytes: 160, ..status(0) });
    assert_eq!(peak(&sim, "calm"), learned);
}

#[test]
fn footprints_outlive_a_restart_and_go_with_their_agent() {
    let mut sim = knowing(&[("calm", 80), ("nobody", 90)], |_| {});
    let kept: Vec<_> = sim
        .core
        .records()
        .map(|record| match record {
            Record::Footprint { agent, peak_bytes } => (agent.to_string(), peak_bytes),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kept, [("calm".to_string(), 80)]);
    sim.reconfigure(|settings| {
        settings.agents.remove("calm");
    });
    assert_eq!(sim.core.records().count(), 0);
}

#[test]
fn a_task_starts_only_where_it_fits_beside_what_the_running_ones_may_grow_to() {
    // The reject line is at 900 of 1000 bytes, of which the daemon and the others use 100.
    for (running_peak, rss, needed, state) in [
        (400, 0, 400, TaskState::Running),
        (400, 0, 401, TaskState::Queued),
        (400, 300, 400, TaskState::Running),
        (400, 300, 401, TaskState::Queued),
        (400, 500, 300, TaskState::Running),
        (400, 500, 301, TaskState::Queued),
        (0, 0, 800, TaskState::Running),
        (0, 0, 801, TaskState::Queued),
        (801, 0, 0, TaskState::Queued),
    ] {
        let mut sim = knowing(&[("calm", running_peak), ("once", needed)], |_| {});
        sim.submit(task("calm"));
        sim.read(100 + rss, &[(1, rss)]);
        let next = sim.submit(task("once"));
        assert_eq!(sim.state(next), state, "{needed} beside one of {running_peak} that holds {rss}");
    }
}

#[test]
fn the_host_s_free_memory_bounds_what_starts_as_the_budget_does() {
    for (available, has_host, state) in [
        (1000, false, TaskState::Running),
        (109, false, TaskState::Queued),
        (1100, true, TaskState::Running),
        (1099, true, TaskState::Queued),
    ] {
        let mut sim = knowing(&[("once", 100)], |_| {});
        sim.submit(task("calm"));
        // At a level at which everything may start.
        sim.reconfigure(|settings| settings.memory.thresholds = [0.895, 0.896, 0.90, 0.95]);
        let host = has_host.then_some(0.5);
        let sample = MemorySample { available_bytes: available, host, ..memory(100) };
        sim.feed(Event::MemorySampled(Box::new(sample)));
        let next = sim.submit(task("once"));
        assert_eq!(sim.state(next), state, "{available} available, host counts: {has_host}");
    }
}

#[test]
fn what_an_idle_worker_holds_already_is_not_needed_twice() {
    let mut sim = knowing(&[("calm", 800)], |_| {});
    let [first, second] = [sim.submit(task("once")), sim.submit(task("calm"))];
    sim.read(100, &[]);
    sim.complete(first);
    sim.read(250, &[(2, 150)]);
    sim.complete(second);
    sim.submit(task("once"));
    sim.read(250, &[(2, 150)]);
    let third = sim.submit(task("calm"));
    assert_eq!(sim.state(third), TaskState::Running, "250 are used, and it may grow by 650 at most");
}

#[test]
fn with_nothing_running_the_first_task_starts_whatever_it_needs() {
    for agent in ["once", "calm"] {
        let mut sim = knowing(&[("once", 5000), ("calm", 5000)], |_| {});
        sim.read(100, &[]);
        let [first, second] = [sim.submit(task(agent)), sim.submit(task(agent))];
        assert_eq!(sim.states([first, second]), [TaskState::Running, TaskState::Queued], "{agent}");
        sim.complete(first);
        assert_eq!(sim.state(second), TaskState::Running, "{agent}");
    }
}

#[test]
fn nothing_lower_takes_the_memory_that_a_task_waits_for() {
    let mut sim = knowing(&[("calm", 500), ("once", 10)], |_| {});
    let running = sim.submit(task("calm"));
    sim.read(100, &[]);
    let large = sim.submit(TaskSpec { priority: Priority::High, ..task("calm") });
    let small = sim.submit(at(Priority::Low));
    assert_eq!(sim.states([large, small]), [TaskState::Queued, TaskState::Queued]);
    let smaller_and_higher = sim.submit(at(Priority::Critical));
    assert_eq!(sim.state(smaller_and_higher), TaskState::Running);
    sim.complete(running);
    assert_eq!(sim.states([large, small]), [TaskState::Running, TaskState::Running]);
}

#[test]
fn one_that_waits_for_its_worker_holds_up_nobody() {
    let mut sim = knowing(&[("calm", 500)], |_| {});
    sim.read(100, &[]);
    sim.holds_ready = true;
    sim.submit(TaskSpec { priority: Priority::High, ..task("calm") });
    let other = sim.submit(task("once"));
    assert_eq!(sim.processes(), [(1, "starting"), (2, "busy")]);
    assert_eq!(sim.state(other), TaskState::Running);
}

#[test]
fn an_idle_worker_of_another_agent_makes_room_for_a_task_that_does_not_fit() {
    let mut sim = knowing(&[("once", 500)], |_| {});
    let [first, second] = [sim.submit(task("calm")), sim.submit(task("warm"))];
    sim.complete(first);
    sim.holds_exit = true;
    sim.read(550, &[(1, 250), (2, 250)]);
    sim.take();
    let large = sim.submit(task("once"));
    assert_eq!(sim.orders(), [(1, Order::Shutdown)]);
    assert_eq!(sim.states([second, large]), [TaskState::Running, TaskState::Queued]);
    sim.exit(crate::core::ids::WorkerId(1), status(0));
    sim.read(300, &[(2, 250)]);
    assert_eq!(sim.state(large), TaskState::Running);
}

#[test]
fn where_memory_is_not_governed_everything_starts_at_once() {
    type Change = fn(&mut Settings);
    let changes: [(&str, Change); 3] = [
        ("observe", |settings| settings.memory.mode = Mode::Observe),
        ("off", |settings| settings.features.memory_governance = false),
        ("rollout", |settings| settings.features.rollout_percent = 0),
    ];
    for (name, change) in changes {
        let mut sim = knowing(&[("once", 5000)], change);
        sim.read(100, &[]);
        for _ in 0..4 {
            sim.submit(task("once"));
        }
        assert_eq!(sim.running().len(), 4, "{name}");
    }
}
