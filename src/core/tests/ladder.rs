use std::sync::Arc;
use std::time::Duration;

use super::sim::*;
use crate::core::governor::Level;
use crate::core::ids::{IncidentId, TaskId, WorkerId};
use crate::core::notice::Notice;
use crate::core::order::{Order, PreemptReason, Report};
use crate::core::settings::{MemorySettings, Mode, Settings};
use crate::core::task::{FailureCode, Priority, TaskSpec, TaskState};

const MS: Duration = Duration::from_millis(1);

fn calm(priority: Priority) -> TaskSpec {
    TaskSpec { priority, ..task("calm") }
}

fn wide(workers: usize) -> Sim {
    Sim::with(|settings| settings.workers.max = workers)
}

fn preempt(task: TaskId) -> Order {
    Order::Preempt { task, reason: PreemptReason::MemoryPressure, checkpoint_timeout: s(5) }
}

/// Orders that take something from a worker: all but those that give it work, ask for garbage or retire it.
fn actions(sim: &mut Sim) -> Vec<(u64, Order)> {
    let is_action = |order: &Order| matches!(order, Order::Preempt { .. } | Order::Kill);
    sim.orders().into_iter().filter(|(_, order)| is_action(order)).collect()
}

fn asked_for_garbage(sim: &mut Sim) -> Vec<u64> {
    sim.orders().into_iter().filter(|(_, order)| *order == Order::CollectGarbage).map(|(worker, _)| worker).collect()
}

#[test]
fn shedding_goes_up_and_down_one_rung_a_reading() {
    let mut sim = Sim::new();
    for (usage, rung) in [
        (960, Level::Warning),
        (960, Level::Critical),
        (960, Level::Reject),
        (960, Level::Emergency),
        (960, Level::Emergency),
        (100, Level::Reject),
        (100, Level::Critical),
        (960, Level::Reject),
        (100, Level::Critical),
        (100, Level::Warning),
        (100, Level::Normal),
        (100, Level::Normal),
    ] {
        sim.memory_at(usage);
        assert_eq!(sim.core.governor.rung(), rung, "at {usage}");
    }
}

#[test]
fn without_a_reading_each_rung_gets_a_tenth_of_a_second() {
    let mut sim = Sim::new();
    sim.memory_at(960);
    for rung in [Level::Critical, Level::Reject, Level::Emergency] {
        sim.pass(99 * MS);
        assert!(sim.core.governor.rung() < rung);
        sim.pass(MS);
        assert_eq!(sim.core.governor.rung(), rung);
    }
    assert_eq!(sim.core.next_deadline(), None, "nothing is left to do");
}

#[test]
fn every_rise_asks_the_ready_persistent_workers_for_garbage_and_no_fall_does() {
    let mut sim = wide(3);
    sim.submit(task("calm"));
    sim.submit(task("once"));
    sim.holds_ready = true;
    sim.submit(task("warm"));
    sim.take();
    for (usage, asked) in [(690, vec![]), (710, vec![1]), (720, vec![]), (910, vec![1]), (740, vec![]), (740, vec![])] {
        sim.memory_at(usage);
        assert_eq!(asked_for_garbage(&mut sim), asked, "at {usage}");
    }
    sim.memory_at(860);
    assert_eq!(asked_for_garbage(&mut sim), [1], "it has risen again");
}

#[test]
fn the_sentence_counts_the_workers_asked_for_garbage() {
    for (workers, says) in [(1, "1 worker was asked to free"), (2, "2 workers were asked to free")] {
        let mut sim = wide(2);
        for _ in 0..workers {
            sim.submit(task("calm"));
        }
        sim.take();
        sim.memory_at(710);
        let texts: Vec<String> = sim
            .notices()
            .into_iter()
            .filter_map(|notice| match notice {
                Notice::MemoryAction { action: "gc", text, .. } => Some(text),
                _ => None,
            })
            .collect();
        assert!(matches!(&texts[..], [text] if text.starts_with(says)), "{texts:?}");
    }
}

#[test]
fn nobody_is_asked_for_garbage_where_that_is_turned_off() {
    let mut sim = Sim::with(|settings| settings.features.gc_on_pressure = false);
    sim.submit(task("calm"));
    sim.take();
    sim.stay(840, &[]);
    assert_eq!(asked_for_garbage(&mut sim), [0; 0]);
}

#[test]
fn idle_workers_are_retired_at_warning_and_not_below_it() {
    let mut sim = Sim::new();
    for agent in ["calm", "warm"] {
        let done = sim.submit(task(agent));
        sim.complete(done);
    }
    sim.memory_at(690);
    assert_eq!(sim.processes(), [(1, "idle"), (2, "idle")]);
    sim.take();
    sim.memory_at(710);
    assert_eq!(sim.processes(), []);
    let retired: Vec<_> = sim
        .notices()
        .into_iter()
        .filter_map(|notice| {
            let Notice::MemoryAction { action: "retire_idle", worker, incident, .. } = notice else { return None };
            Some((worker, incident))
        })
        .collect();
    assert_eq!(retired, [1, 2].map(|id| (Some(WorkerId(id)), Some(IncidentId(1)))));
}

#[test]
fn on_the_way_down_shedding_does_no_more_than_the_level_asks_for() {
    let mut sim = Sim::new();
    sim.submit(calm(Priority::Low));
    sim.submit(calm(Priority::Normal));
    sim.stay(940, &[]);
    assert_eq!(actions(&mut sim), [(1, preempt(TaskId(1)))]);
    sim.preempted(TaskId(1), true);
    sim.pass(s(10));
    sim.read(740, &[]);
    assert_eq!((sim.core.governor.level(), sim.core.governor.rung()), (Level::Warning, Level::Critical));
    assert_eq!(sim.state(TaskId(1)), TaskState::Running, "the level lets it");
    assert_eq!(actions(&mut sim), [], "at warning nobody is preempted, however far shedding had climbed");
    sim.read(100, &[]);
    assert_eq!((sim.core.governor.level(), sim.core.governor.rung()), (Level::Normal, Level::Warning));
    sim.complete(TaskId(2));
    assert_eq!(sim.processes(), [(2, "idle"), (3, "busy")], "and at normal nobody is retired");
}

#[test]
fn a_queued_heartbeat_is_passed_over_and_said_so_once_and_runs_after_it() {
    let mut sim = Sim::new();
    sim.memory_at(710);
    sim.take();
    let beat = sim.submit(heartbeat());
    for usage in [710, 720, 860] {
        sim.memory_at(usage);
        sim.pass(s(1));
    }
    let skipped: Vec<_> = sim.notices().into_iter().filter(|notice| notice.name() == "HEARTBEAT_SKIPPED").collect();
    let [Notice::HeartbeatSkipped { task, incident, .. }] = &skipped[..] else { panic!("{skipped:?}") };
    assert_eq!((*task, *incident), (Some(beat), Some(IncidentId(1))));
    assert_eq!(sim.state(beat), TaskState::Queued);
    sim.memory_at(590);
    assert_eq!(sim.state(beat), TaskState::Running);
}

#[test]
fn the_beat_after_max_skips_starts_at_critical_where_one_that_nothing_forces_waits() {
    for max_skips in [0, 3] {
        let beat = crate::core::settings::ScheduleSettings { max_skips, ..schedule("main", s(60)) };
        let mut sim = Sim::with(|settings| settings.schedules = vec![Arc::new(beat)]);
        sim.submit(TaskSpec { timeout: s(1800), ..calm(Priority::Critical) });
        sim.memory_at(860);
        sim.pass(s(60));
        let spec = TaskSpec { skippable: false, schedule: Some(Arc::from("main")), ..heartbeat() };
        let beat = sim.submit(spec);
        let state = if max_skips == 0 { TaskState::Running } else { TaskState::Queued };
        assert_eq!(sim.state(beat), state, "max_skips = {max_skips}");
    }
}

#[test]
fn the_victim_is_the_lowest_then_the_largest_then_the_youngest() {
    use Priority::{Critical, Heartbeat, High, Low, Normal};
    for (tasks, preempted, killed) in [
        ([(High, 10), (Low, 10), (Normal, 90)], Some(2), 2),
        ([(High, 10), (Heartbeat, 1), (Low, 90)], Some(2), 2),
        ([(Normal, 10), (Normal, 30), (Normal, 20)], Some(2), 2),
        ([(Normal, 10), (Normal, 10), (High, 90)], Some(2), 2),
        ([(Critical, 90), (Critical, 10), (High, 10)], Some(3), 3),
        ([(Critical, 90), (Critical, 10), (Critical, 10)], None, 1),
    ] {
        for (usage, victim) in [(860, preempted), (960, Some(killed))] {
            let mut sim = wide(3);
            for (priority, _) in tasks {
                sim.submit(calm(priority));
                sim.pass(s(1));
            }
            sim.take();
            let workers = [(1, tasks[0].1), (2, tasks[1].1), (3, tasks[2].1)];
            // Why a pause: one that is to be killed is not to be preempted on the way up.
            let settings = MemorySettings { settle: MS, ..sim.core.settings().memory.clone() };
            sim.core.governor.begin_to_settle(sim.now, &settings);
            sim.stay(usage, &workers);
            sim.pass(MS);
            sim.take();
            sim.read(usage, &workers);
            let done: Vec<_> = actions(&mut sim);
            let wanted = if usage == 860 {
                victim.map(|id| (id, preempt(TaskId(id))))
            } else {
                victim.map(|id| (id, Order::Kill))
            };
            assert_eq!(done, Vec::from_iter(wanted), "{tasks:?} at {usage}");
        }
    }
}

#[test]
fn only_what_can_checkpoint_and_may_be_preempted_is_asked_to() {
    let mut sim = wide(3);
    sim.submit(at(Priority::Low));
    sim.submit(TaskSpec { preemptible: false, ..calm(Priority::Low) });
    sim.holds_ready = true;
    sim.submit(TaskSpec { priority: Priority::Low, ..task("warm") });
    sim.report(WorkerId(3), Report::Ready { can_checkpoint: false, can_cancel: true });
    assert_eq!(sim.running().len(), 3);
    sim.take();
    sim.stay(890, &[]);
    assert_eq!(actions(&mut sim), []);
}

#[test]
fn a_preempted_task_is_parked_and_goes_on_from_its_checkpoint_before_the_queued_ones() {
    let mut sim = Sim::new();
    let [low, high] = [sim.submit(calm(Priority::Low)), sim.submit(calm(Priority::High))];
    let queued = sim.submit(calm(Priority::Low));
    sim.stay(860, &[(1, 40), (2, 90)]);
    assert_eq!(actions(&mut sim), [(1, preempt(low))]);
    sim.preempted(low, true);
    let told = sim.notices();
    assert!(told.iter().any(|notice| matches!(notice, Notice::TaskPreempted { incident: Some(IncidentId(1)), .. })));
    assert_eq!(sim.states([low, high, queued]), [TaskState::Preempted, TaskState::Running, TaskState::Queued]);
    sim.pass(s(60));
    sim.read(800, &[]);
    assert_eq!(sim.state(low), TaskState::Preempted, "still critical");
    sim.take();
    sim.read(740, &[]);
    assert_eq!(sim.states([low, queued]), [TaskState::Running, TaskState::Queued]);
    let orders = sim.orders();
    let Some((_, Order::Assign(assignment))) = orders.last() else { panic!("{orders:?}") };
    assert_eq!((assignment.task, assignment.has_checkpoint, assignment.attempt), (low, true, 1));
}

#[test]
fn a_task_that_ran_alone_does_not_start_again_in_the_same_breath() {
    let mut sim = Sim::new();
    let alone = sim.submit(task("calm"));
    sim.stay(860, &[(1, 400)]);
    sim.preempted(alone, true);
    assert_eq!(sim.processes(), [], "its worker is retired and gives the memory back");
    assert_eq!(sim.state(alone), TaskState::Preempted);
    sim.pass(s(1));
    assert_eq!(sim.state(alone), TaskState::Preempted, "the memory is given time to fall");
    sim.pass(s(1));
    assert_eq!(sim.state(alone), TaskState::Running, "then waiting would be for ever: nothing else runs");
}

#[test]
fn one_that_does_not_answer_is_killed_and_goes_by_its_retries() {
    for (retries, state) in [(0, TaskState::Failed), (1, TaskState::Queued)] {
        let mut sim = Sim::new();
        let silent = sim.submit(TaskSpec { max_retries: retries, ..calm(Priority::Low) });
        sim.submit(calm(Priority::Critical));
        sim.stay(860, &[]);
        sim.pass(s(5) - MS);
        assert_eq!(actions(&mut sim), [(1, preempt(silent))]);
        sim.pass(MS);
        assert_eq!(actions(&mut sim), [(1, Order::Kill)]);
        assert_eq!(sim.state(silent), state);
        assert!(!sim.core.health.contains_key("calm"), "its agent is not to blame");
        if retries == 0 {
            let failure = sim.failure(silent);
            assert_eq!(failure.code, FailureCode::MemoryEmergency);
            assert!(failure.message.contains("workers.checkpoint_timeout_ms = 5000"), "{}", failure.message);
        }
    }
}

#[test]
fn one_action_at_a_time_and_after_each_the_memory_gets_time_to_fall() {
    let mut sim = wide(3);
    let tasks = [Priority::Low, Priority::Normal, Priority::Critical].map(|priority| sim.submit(calm(priority)));
    sim.stay(860, &[]);
    assert_eq!(actions(&mut sim), [(1, preempt(tasks[0]))]);
    sim.pass(s(3));
    sim.stay(870, &[]);
    assert_eq!(actions(&mut sim), [], "the first has not answered yet");
    sim.preempted(tasks[0], true);
    sim.pass(s(2) - MS);
    sim.stay(870, &[]);
    assert_eq!(actions(&mut sim), [], "it may fall yet");
    sim.pass(s(60));
    assert_eq!(actions(&mut sim), [], "nobody has looked again");
    sim.read(870, &[]);
    assert_eq!(actions(&mut sim), [(2, preempt(tasks[1]))]);
}

#[test]
fn the_pause_begins_when_the_killed_worker_is_gone() {
    let mut sim = Sim::new();
    sim.submit(task("once"));
    sim.submit(at(Priority::High));
    sim.holds_exit = true;
    sim.stay(960, &[]);
    assert_eq!(actions(&mut sim), [(1, Order::Kill)]);
    sim.pass(s(60));
    sim.stay(960, &[]);
    assert_eq!(actions(&mut sim), [], "its memory is not back yet");
    sim.exit(WorkerId(1), signal(9));
    sim.pass(s(2) - MS);
    sim.read(960, &[]);
    assert_eq!(actions(&mut sim), []);
    sim.pass(MS);
    sim.read(960, &[]);
    assert_eq!(actions(&mut sim), [(2, Order::Kill)]);
}

#[test]
fn an_emergency_that_comes_again_is_not_waited_for() {
    // What the readings after the kill are, and whether the next one is killed though memory still has time to fall.
    for (readings, is_killed) in [
        (&[960, 960][..], false),
        (&[960, 955, 964], false),
        (&[990, 960, 971], true),
        (&[960, 971], true),
        (&[860, 960], true),
        (&[840, 960], true),
    ] {
        let mut sim = Sim::new();
        sim.submit(task("once"));
        sim.submit(at(Priority::High));
        sim.stay(960, &[]);
        let killed = actions(&mut sim);
        assert_eq!(killed, [(1, Order::Kill)]);
        for usage in readings {
            sim.pass(MS);
            sim.read(*usage, &[]);
        }
        let expected = if is_killed { vec![(2, Order::Kill)] } else { Vec::new() };
        assert_eq!(actions(&mut sim), expected, "{readings:?}");
    }
}

#[test]
fn a_preemption_that_an_emergency_overtakes_becomes_a_kill() {
    let mut sim = Sim::new();
    let slow = sim.submit(task("calm"));
    sim.stay(860, &[]);
    assert_eq!(actions(&mut sim), [(1, preempt(slow))]);
    sim.pass(s(1));
    sim.stay(960, &[]);
    assert_eq!(actions(&mut sim), [(1, Order::Kill)]);
    assert_eq!(sim.code(slow), FailureCode::MemoryEmergency);
}

#[test]
fn a_kill_in_an_emergency_is_told_with_its_incident_and_held_against_nobody() {
    let mut sim = Sim::new();
    let killed = sim.submit(task("once"));
    sim.stay(960, &[]);
    let failure = sim.failure(killed);
    assert_eq!(failure.code, FailureCode::MemoryEmergency);
    assert!(failure.message.starts_with("memory is at 96.0 % of its limit"), "{}", failure.message);
    assert!(!sim.core.health.contains_key("once"));
    let told: Vec<_> = sim
        .notices()
        .into_iter()
        .filter_map(|notice| {
            if let Notice::MemoryAction { action: "kill", task, worker, incident, .. } = notice {
                return Some((task, worker, incident));
            }
            let Notice::TaskKilled { task, worker, incident, .. } = notice else { return None };
            Some((Some(task), Some(worker), incident))
        })
        .collect();
    assert_eq!(told, [(Some(killed), Some(WorkerId(1)), Some(IncidentId(1))); 2]);
}

#[test]
fn one_that_is_being_cancelled_is_killed_in_an_emergency_too_and_stays_cancelled() {
    let mut sim = Sim::new();
    let cancelled = sim.submit(task("calm"));
    sim.cancel(cancelled);
    sim.stay(960, &[]);
    assert_eq!(actions(&mut sim), [(1, Order::Kill)]);
    assert_eq!(sim.state(cancelled), TaskState::Cancelled);
}

#[test]
fn a_daemon_that_drains_still_saves_the_host() {
    let mut sim = Sim::new();
    let running = sim.submit(task("once"));
    sim.drain(s(30));
    sim.stay(960, &[]);
    assert_eq!(sim.code(running), FailureCode::MemoryEmergency);
}

#[test]
fn no_running_task_is_touched_but_in_hard_mode_and_where_governance_applies() {
    type Change = fn(&mut Settings);
    let changes: [(&str, Change); 4] = [
        ("soft", |settings| settings.memory.mode = Mode::Soft),
        ("observe", |settings| settings.memory.mode = Mode::Observe),
        ("off", |settings| settings.features.memory_governance = false),
        ("rollout", |settings| settings.features.rollout_percent = 0),
    ];
    for (name, change) in changes {
        let mut sim = Sim::with(change);
        sim.submit(task("calm"));
        let idle = sim.submit(task("warm"));
        sim.complete(idle);
        sim.take();
        for usage in [860, 960] {
            sim.stay(usage, &[(1, 900)]);
            sim.pass(s(10));
            sim.stay(usage, &[(1, 900)]);
        }
        let orders = sim.orders();
        if name == "soft" {
            assert!(
                !orders.iter().any(|(_, order)| matches!(order, Order::Preempt { .. } | Order::Kill)),
                "{orders:?}"
            );
            assert_eq!(sim.refused(task("once")).code(), "memory_pressure");
            assert_eq!(sim.processes(), [(1, "busy")], "the idle one is gone");
        } else {
            assert_eq!(orders, [], "{name}");
            sim.submit(heartbeat());
            assert_eq!(sim.running().len(), 2, "{name}");
        }
    }
}
