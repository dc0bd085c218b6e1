use std::sync::Arc;

use super::sim::*;
use crate::core::event::Action;
use crate::core::ids::TaskId;
use crate::core::settings::ScheduleSettings;
use crate::core::task::{Priority, TaskSpec, TaskState};

/// What the scheduler makes of a beat.
fn of(beat: &ScheduleSettings) -> TaskSpec {
    TaskSpec {
        priority: beat.priority,
        skippable: beat.skippable,
        schedule: Some(beat.name.clone()),
        ..task(&beat.agent)
    }
}

fn beating(change: impl FnOnce(&mut ScheduleSettings)) -> Sim {
    let mut beat = schedule("main", s(60));
    change(&mut beat);
    let mut sim = Sim::with(|settings| settings.schedules = vec![Arc::new(beat)]);
    sim.take();
    sim
}

/// Lets time pass and submits the beats that fell due.
fn beats(sim: &mut Sim, time: std::time::Duration) -> Vec<TaskId> {
    sim.take();
    sim.pass(time);
    let due: Vec<_> = sim
        .take()
        .into_iter()
        .filter_map(|action| if let Action::Beat(beat) = action { Some(beat) } else { None })
        .collect();
    due.iter().map(|beat| sim.submit(of(beat))).collect()
}

#[test]
fn a_beat_is_due_every_period() {
    let mut sim = beating(|_| {});
    assert_eq!(beats(&mut sim, s(59)).len(), 0);
    assert_eq!(beats(&mut sim, s(1)).len(), 1);
    assert_eq!(beats(&mut sim, s(59)).len(), 0);
    assert_eq!(beats(&mut sim, s(1)).len(), 1);
}

#[test]
fn of_a_schedule_only_the_newest_due_beat_waits() {
    for skippable in [true, false] {
        let mut sim = beating(|beat| beat.skippable = skippable);
        let mut keep = Vec::new();
        for _ in 0..2 {
            keep.push(sim.submit(TaskSpec { timeout: s(1800), ..task("once") }));
        }
        let other = sim.submit(heartbeat());
        let old = beats(&mut sim, s(60))[0];
        let new = beats(&mut sim, s(60))[0];
        assert_eq!(
            sim.states([other, old, new]),
            [TaskState::Queued, TaskState::Skipped, TaskState::Queued],
            "skippable: {skippable}"
        );
    }
}

#[test]
fn due_beats_are_skipped_at_warning_and_after_max_skips_one_runs_all_the_same() {
    let mut sim = beating(|_| {});
    let running = sim.submit(TaskSpec { timeout: s(1800), ..task("once") });
    sim.memory_at(710);
    for nth in 1..=3 {
        sim.take();
        sim.pass(s(60));
        assert_eq!(sim.names(), ["HEARTBEAT_SKIPPED"], "beat {nth}");
    }
    let forced = beats(&mut sim, s(60));
    assert_eq!(forced.len(), 1);
    assert_eq!(sim.states([forced[0], running]), [TaskState::Running, TaskState::Running]);
    assert_eq!(beats(&mut sim, s(60)).len(), 0, "and the counting begins anew");
}

#[test]
fn at_reject_not_even_the_beat_after_max_skips_runs() {
    let mut sim = beating(|_| {});
    sim.memory_at(910);
    assert_eq!(beats(&mut sim, s(600)).len(), 0);
    sim.memory_at(100);
    assert_eq!(beats(&mut sim, s(60)).len(), 1);
}

#[test]
fn a_beat_that_may_not_be_skipped_is_not() {
    let mut sim = beating(|beat| beat.skippable = false);
    sim.memory_at(710);
    let due = beats(&mut sim, s(60));
    assert_eq!(sim.state(due[0]), TaskState::Running);
}

#[test]
fn queued_skippable_heartbeats_are_passed_over_at_warning_and_run_when_it_is_over() {
    let mut sim = Sim::with(|settings| settings.workers.max = 1);
    let running = sim.submit(task("once"));
    let beat = sim.submit(heartbeat());
    let firm = sim.submit(TaskSpec { skippable: false, ..heartbeat() });
    let high = sim.submit(TaskSpec { skippable: true, ..at(Priority::High) });
    sim.memory_at(710);
    sim.complete(running);
    sim.complete(high);
    assert_eq!(sim.states([beat, firm]), [TaskState::Queued, TaskState::Running]);
    sim.complete(firm);
    assert_eq!(sim.state(beat), TaskState::Queued);
    sim.memory_at(500);
    assert_eq!(sim.state(beat), TaskState::Running);
}

#[test]
fn while_governance_is_rolled_out_each_beat_goes_by_its_own_task() {
    let mut sim = beating(|_| {});
    sim.reconfigure(|settings| settings.features.rollout_percent = 50);
    sim.memory_at(710);
    let mut given = std::collections::BTreeSet::new();
    for _ in 0..40 {
        given.extend(beats(&mut sim, s(60)).into_iter().map(|beat| sim.state(beat) == TaskState::Running));
    }
    assert_eq!(given.len(), 2, "some run and some are passed over");
}

#[test]
fn while_the_mode_is_observe_nothing_is_skipped() {
    let mut sim = beating(|_| {});
    sim.reconfigure(|settings| settings.memory.mode = crate::core::settings::Mode::Observe);
    sim.memory_at(990);
    let due = beats(&mut sim, s(60));
    assert_eq!(sim.state(due[0]), TaskState::Running);
}
