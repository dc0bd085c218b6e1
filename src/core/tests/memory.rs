use super::sim::*;
use crate::core::event::Event;
use crate::core::governor::{Level, MemorySample};
use crate::core::ids::{IncidentId, WorkerId};
use crate::core::notice::Notice;
use crate::core::settings::Mode;
use crate::core::task::{Priority, TaskState};

#[test]
fn at_critical_nothing_but_critical_tasks_starts() {
    let mut sim = Sim::with(|settings| settings.workers.max = 3);
    sim.submit(task("once"));
    sim.memory_at(860);
    let [high, critical] = [sim.submit(at(Priority::High)), sim.submit(at(Priority::Critical))];
    assert_eq!(sim.states([high, critical]), [TaskState::Queued, TaskState::Running]);
    sim.memory_at(740);
    assert_eq!(sim.state(high), TaskState::Running);
}

#[test]
fn with_nothing_running_the_first_task_starts_whatever_the_level() {
    let mut sim = Sim::new();
    let first = sim.submit(task("once"));
    let second = sim.submit(task("once"));
    let third = sim.submit(task("once"));
    sim.memory_at(910);
    sim.complete(first);
    assert_eq!(sim.state(third), TaskState::Queued);
    sim.complete(second);
    assert_eq!(sim.state(third), TaskState::Running);
}

#[test]
fn at_reject_submissions_are_refused_and_below_it_they_are_taken() {
    let mut sim = Sim::new();
    sim.memory_at(910);
    let refusal = sim.refused(at(Priority::Critical));
    assert_eq!((refusal.code(), refusal.retry_after()), ("memory_pressure", Some(s(2))));
    assert!(refusal.to_string().contains("91.0 %"), "{refusal}");
    sim.memory_at(790);
    sim.submit(at(Priority::Low));
}

#[test]
fn what_is_only_observed_is_reported_and_has_no_consequences() {
    for change in [0, 1, 2] {
        let mut sim = Sim::with(|settings| match change {
            0 => settings.memory.mode = Mode::Observe,
            1 => settings.features.memory_governance = false,
            _ => settings.features.rollout_percent = 0,
        });
        sim.memory_at(960);
        assert_eq!(sim.names(), ["MEMORY_EMERGENCY"], "{change}");
        let first = sim.submit(task("once"));
        let beat = sim.submit(heartbeat());
        assert_eq!(sim.states([first, beat]), [TaskState::Running, TaskState::Running], "{change}");
    }
}

#[test]
fn a_share_of_tasks_is_governed() {
    let mut sim = Sim::with(|settings| {
        settings.features.rollout_percent = 30;
        settings.queue.max_depth = 10_000;
        settings.queue.priority_limits = [10_000; 5];
    });
    sim.memory_at(960);
    let refused = (0..1000).filter(|_| sim.try_submit(task("once")).is_err()).count();
    assert!((250..350).contains(&refused), "{refused} of 1000 were refused");
}

#[test]
fn every_crossing_is_told_with_its_figures_and_one_incident_until_normal() {
    let mut sim = Sim::new();
    for usage in [710, 720, 860, 910, 960, 400, 710] {
        sim.memory_at(usage);
    }
    let told: Vec<_> = sim
        .notices()
        .into_iter()
        .map(|notice| match notice {
            Notice::MemoryLevel { to, usage_bytes, incident, .. } => (to, usage_bytes, incident),
            other => panic!("{other:?}"),
        })
        .collect();
    let [first, second] = [IncidentId(1), IncidentId(2)];
    assert_eq!(
        told,
        [
            (Level::Warning, 710, first),
            (Level::Critical, 860, first),
            (Level::Reject, 910, first),
            (Level::Emergency, 960, first),
            (Level::Normal, 400, first),
            (Level::Warning, 710, second),
        ]
    );
}

#[test]
fn a_reading_tells_what_each_worker_holds() {
    let mut sim = Sim::new();
    sim.submit(task("calm"));
    let sample = MemorySample { workers: vec![(WorkerId(1), 55), (WorkerId(9), 66)], ..memory(100) };
    sim.feed(Event::MemorySampled(Box::new(sample)));
    let workers = sim.core.snapshot(clock(sim.now)).workers.workers;
    assert_eq!(workers.iter().map(|worker| (worker.id.0, worker.rss_bytes)).collect::<Vec<_>>(), [(1, Some(55))]);
}
