use super::sim::*;
use crate::core::event::{BreakerRequest, Event};
use crate::core::governor::MemorySample;
use crate::core::ids::{TaskId, WorkerId};
use crate::core::notice::{Field, Notice};
use crate::core::order::Report;
use crate::core::task::{Priority, TaskState};
use crate::core::view::TaskFilter;

#[test]
fn the_parts_of_a_snapshot_agree_with_one_another() {
    let mut sim = Sim::with(|settings| {
        settings.schedules = vec![std::sync::Arc::new(schedule("main", s(60)))];
        settings.workers.max_restarts_per_hour = 0;
    });
    let [calm, once] = [sim.submit(task("calm")), sim.submit(task("once"))];
    let waiting = sim.submit(at(Priority::High));
    sim.exit_of(once, signal(11));
    sim.complete(calm);
    sim.memory_at(710);
    sim.pass(s(5));
    let snapshot = sim.core.snapshot(clock(sim.now));
    assert_eq!(snapshot.queue.depth, 1);
    assert_eq!(snapshot.queue.by_priority, [0, 1, 0, 0, 0]);
    assert_eq!(snapshot.queue.tasks[0].0, waiting);
    assert_eq!(
        (snapshot.workers.active, snapshot.workers.idle, snapshot.workers.max),
        (0, 0, 2),
        "idle ones are retired"
    );
    assert_eq!(snapshot.memory.budget, Some(0.71));
    assert_eq!(snapshot.memory.level.name(), "warning");
    assert_eq!(snapshot.schedules[0].next_in, s(55));
    let once = snapshot.agents.iter().find(|agent| &*agent.name == "once").expect("configured");
    assert_eq!((once.queued, once.running, once.failures_last_hour, once.retry_after), (1, 0, 1, Some(s(3595))));
    assert_eq!(snapshot.breakers[0].1.state.name(), "closed");
}

#[test]
fn lists_are_newest_first_of_the_living_and_the_dead() {
    let mut sim = Sim::new();
    let tasks = [1, 2, 3, 4].map(|_| sim.submit(task("once")));
    sim.complete(tasks[1]);
    let list = |filter: TaskFilter| sim.core.tasks(&filter).iter().map(|task| task.id.0).collect::<Vec<_>>();
    let all = TaskFilter { limit: 10, ..TaskFilter::default() };
    assert_eq!(list(all.clone()), [4, 3, 2, 1]);
    assert_eq!(list(TaskFilter { limit: 2, ..all.clone() }), [4, 3]);
    assert_eq!(list(TaskFilter { states: vec![TaskState::Completed, TaskState::Queued], ..all.clone() }), [4, 2]);
    assert_eq!(list(TaskFilter { agent: Some("calm".to_string()), ..all }), [0; 0]);
    assert_eq!(sim.core.task(tasks[3]).and_then(|task| task.queue_position), Some(1));
    assert!(sim.core.task(TaskId(99)).is_none());
}

/// A bit of everything the daemon can say.
fn said() -> Vec<Notice> {
    let mut sim = Sim::with(|settings| {
        settings.workers.max_restarts_per_hour = 2;
        settings.schedules = vec![std::sync::Arc::new(schedule("main", s(7)))];
        settings.queue.max_depth = 1;
    });
    let running = sim.submit(retried("calm", 1));
    let progress = Report::Progress { task: running, percent: 10.0, message: Some(Box::from("x")), checkpoint: false };
    sim.report(WorkerId(1), progress);
    sim.core.preempt(WorkerId(1), crate::core::order::PreemptReason::MemoryPressure);
    sim.preempted(running, true);
    sim.submit(task("once"));
    sim.submit(heartbeat());
    let critical = sim.submit(at(Priority::Critical));
    sim.refused(task("once"));
    sim.cancel(critical);
    sim.exit_of(running, signal(11));
    sim.pass(s(1));
    let fat = MemorySample { workers: vec![(sim.worker(running), 301)], ..memory(710) };
    sim.feed(Event::MemorySampled(Box::new(fat)));
    sim.complete(running);
    sim.memory_at(960);
    sim.pass(s(10));
    sim.memory_at(100);
    sim.breaker("net", BreakerRequest::ForceOpen);
    sim.breaker("net", BreakerRequest::ForceClose);
    sim.holds_ready = true;
    sim.submit(task("warm"));
    sim.pass(s(30));
    sim.cancel(TaskId(2));
    sim.pass(s(5));
    for _ in 0..3 {
        let crashing = sim.submit(task("once"));
        sim.pass(s(8));
        sim.exit_of(crashing, signal(11));
    }
    sim.notices()
}

#[test]
fn every_notice_has_a_listed_name_a_sentence_and_fields() {
    let notices = said();
    for notice in &notices {
        assert!(Notice::NAMES.contains(&notice.name()), "{}", notice.name());
        assert!(!notice.sentence().is_empty(), "{notice:?}");
        let mut names = Vec::new();
        notice.fields(&mut |name, value| {
            names.push(name);
            if let ("task", Field::Id(task)) = (name, value) {
                assert_eq!(Some(task.to_string()), notice.task().map(|task| task.to_string()));
            }
        });
        assert!(!names.is_empty(), "{notice:?}");
        let _ = (notice.severity(), notice.is_decision());
    }
    let mut missing = Notice::NAMES.to_vec();
    missing.retain(|name| !notices.iter().any(|notice| notice.name() == *name));
    assert_eq!(
        missing,
        [
            "TASK_WAITING",
            "CIRCUIT_HALF_OPEN",
            "MEMORY_CRITICAL",
            "MEMORY_REJECT",
            "STORAGE_FULL",
            "STORAGE_CLEARED",
            "CONFIG_RELOADED",
            "CONFIG_REJECTED"
        ]
    );
}
