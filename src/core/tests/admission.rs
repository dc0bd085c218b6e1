use std::sync::Arc;
use std::time::Duration;

use super::sim::*;
use crate::core::event::Submission;
use crate::core::ids::TaskId;
use crate::core::refusal::Refusal;
use crate::core::task::{Priority, TaskSpec, TaskState};

/// Both workers busy for good, so that what comes waits.
fn busy() -> Sim {
    let mut sim = Sim::new();
    sim.submit(task("once"));
    sim.submit(task("once"));
    assert_eq!(sim.running().len(), 2);
    sim
}

fn keyed(agent: &str, key: &str) -> TaskSpec {
    TaskSpec { idempotency_key: Some(Arc::from(key)), ..task(agent) }
}

#[test]
fn no_more_than_max_depth_wait() {
    let mut sim = busy();
    for _ in 0..5 {
        sim.submit(task("once"));
    }
    let refusal = sim.refused(task("once"));
    assert!(matches!(refusal, Refusal::QueueFull { waiting: 5, max_depth: 5, .. }), "{refusal}");
    assert_eq!(sim.core.queue.depth(), 5);
    assert_eq!(sim.names().last(), Some(&"TASK_REJECTED"));
}

#[test]
fn a_level_s_limit_holds_while_the_queue_has_room() {
    let mut sim = Sim::with(|settings| settings.queue.priority_limits = [5, 5, 5, 1, 5]);
    sim.submit(task("once"));
    sim.submit(task("once"));
    sim.submit(at(Priority::Low));
    let refusal = sim.refused(at(Priority::Low));
    assert!(matches!(refusal, Refusal::PriorityFull { priority: Priority::Low, limit: 1, .. }), "{refusal}");
    sim.submit(at(Priority::High));
}

#[test]
fn tasks_run_by_priority_and_within_a_level_in_the_order_they_came() {
    let mut sim = busy();
    let order = [Priority::Low, Priority::Critical, Priority::Normal, Priority::Critical, Priority::High];
    let [low, first, normal, second, high] = order.map(|priority| sim.submit(at(priority)));
    let mut seen = Vec::new();
    for _ in 0..5 {
        let running = sim.running();
        sim.complete(running[0]);
        seen.extend(sim.running().into_iter().filter(|task| !running.contains(task)));
    }
    assert_eq!(seen, [first, second, high, normal, low]);
}

#[test]
fn a_critical_task_evicts_the_youngest_queued_skippable_heartbeat_and_nothing_else() {
    let mut sim = busy();
    let low = sim.submit(at(Priority::Low));
    let old = sim.submit(heartbeat());
    let young = sim.submit(heartbeat());
    let firm = sim.submit(TaskSpec { skippable: false, ..heartbeat() });
    let odd = sim.submit(TaskSpec { skippable: true, ..at(Priority::Normal) });
    sim.take();
    let first = sim.submit(at(Priority::Critical));
    assert_eq!(sim.states([low, old, young, firm, odd, first]), {
        use TaskState::{Evicted, Queued};
        [Queued, Queued, Evicted, Queued, Queued, Queued]
    });
    assert_eq!(sim.names(), ["TASK_EVICTED", "TASK_ACCEPTED"]);
    sim.submit(at(Priority::Critical));
    assert_eq!(sim.state(old), TaskState::Evicted);
    let refusal = sim.refused(at(Priority::Critical));
    assert_eq!(refusal.code(), "queue_full");
    assert_eq!(sim.core.queue.depth(), 5);
}

#[test]
fn only_a_critical_task_evicts() {
    let mut sim = busy();
    for _ in 0..5 {
        sim.submit(heartbeat());
    }
    for priority in [Priority::High, Priority::Normal, Priority::Low, Priority::Heartbeat] {
        assert_eq!(sim.refused(at(priority)).code(), "queue_full", "{}", priority.name());
    }
    assert_eq!(sim.core.queue.depth(), 5);
}

#[test]
fn a_critical_task_over_its_own_limit_evicts_nobody() {
    let mut sim = Sim::with(|settings| settings.queue.priority_limits = [0, 5, 5, 5, 5]);
    sim.submit(task("once"));
    sim.submit(task("once"));
    for _ in 0..5 {
        sim.submit(heartbeat());
    }
    assert_eq!(sim.refused(at(Priority::Critical)).code(), "queue_full");
    assert_eq!(sim.core.queue.depth(), 5);
}

#[test]
fn a_parked_task_counts_as_waiting_and_goes_before_the_queued_ones_of_its_level() {
    let mut sim = Sim::with(|settings| settings.workers.max = 1);
    let parked = sim.submit(task("calm"));
    let high = sim.submit(TaskSpec { priority: Priority::High, ..task("calm") });
    let queued = sim.submit(task("calm"));
    let worker = sim.worker(parked);
    sim.core.preempt(worker, crate::core::order::PreemptReason::MemoryPressure);
    sim.preempted(parked, true);
    assert_eq!(sim.states([parked, high, queued]), [TaskState::Preempted, TaskState::Running, TaskState::Queued]);
    for _ in 0..3 {
        sim.submit(task("calm"));
    }
    let refusal = sim.refused(task("calm"));
    assert!(matches!(refusal, Refusal::QueueFull { waiting: 5, .. }), "{refusal}");
    sim.complete(high);
    assert_eq!(sim.states([parked, queued]), [TaskState::Running, TaskState::Queued]);
    let view = sim.core.task(parked).expect("known");
    assert_eq!((view.attempt, view.preemptions), (1, 1), "a preemption uses up no retry");
}

#[test]
fn retry_after_is_what_the_running_task_still_needs() {
    let mut sim = Sim::with(|settings| settings.queue.max_depth = 1);
    let learned = sim.submit(task("once"));
    sim.pass(s(40));
    sim.complete(learned);
    sim.submit(task("once"));
    sim.pass(s(10));
    sim.submit(task("once"));
    sim.submit(task("once"));
    // 40 s learned, 10 s gone; then 20 more; past the mean, as long again as it has run.
    for (wait, told) in [(0, 30), (20, 10), (20, 40), (300, 120)] {
        sim.pass(s(wait));
        assert_eq!(sim.refused(task("once")).retry_after(), Some(s(told)), "{wait} s later");
    }
}

#[test]
fn retry_after_is_never_less_than_a_second_nor_more_than_two_minutes() {
    let mut sim = busy();
    for _ in 0..5 {
        sim.submit(task("once"));
    }
    assert_eq!(sim.refused(task("once")).retry_after(), Some(s(1)), "nothing is known yet");
    sim.pass(Duration::from_millis(2500));
    assert_eq!(sim.refused(task("once")).retry_after(), Some(s(3)), "a part of a second counts as one");
    sim.pass(s(500));
    assert_eq!(sim.refused(task("once")).retry_after(), Some(s(120)));
}

#[test]
fn a_full_level_waits_for_the_levels_before_it_too() {
    let mut sim = Sim::with(|settings| {
        settings.workers.max = 1;
        settings.queue.priority_limits = [5, 5, 5, 1, 5];
    });
    let learned = sim.submit(task("once"));
    sim.pass(s(10));
    sim.complete(learned);
    sim.submit(task("once"));
    sim.submit(at(Priority::High));
    sim.submit(at(Priority::Normal));
    sim.submit(at(Priority::Low));
    let refusal = sim.refused(at(Priority::Low));
    assert_eq!((refusal.code(), refusal.retry_after()), ("priority_full", Some(s(30))));
}

#[test]
fn a_known_key_gives_the_same_task_before_and_after_its_end() {
    let mut sim = Sim::new();
    let first = sim.submit(keyed("once", "k"));
    let duplicate = Ok(Submission { task: first, is_duplicate: true });
    assert_eq!(sim.try_submit(keyed("once", "k")), duplicate);
    sim.complete(first);
    assert_eq!(sim.try_submit(keyed("once", "k")), duplicate);
    sim.drain(s(30));
    assert_eq!(sim.try_submit(keyed("once", "k")), duplicate, "even while draining: nothing new is made");
}

#[test]
fn a_key_of_another_agent_s_task_is_refused() {
    let mut sim = Sim::new();
    let first = sim.submit(keyed("once", "k"));
    let refusal = sim.refused(keyed("calm", "k"));
    assert_eq!(refusal, Refusal::KeyOfAnotherTask { task: first, agent: Arc::from("once") });
    assert_eq!((refusal.code(), refusal.retry_after()), ("invalid_request", None));
}

#[test]
fn a_key_goes_with_its_forgotten_task() {
    let mut sim = Sim::with(|settings| settings.retention.age = s(60));
    let first = sim.submit(keyed("once", "k"));
    sim.complete(first);
    sim.pass(s(59));
    assert!(sim.core.task(first).is_some());
    sim.take();
    sim.pass(s(1));
    assert!(sim.core.task(first).is_none());
    let forgotten = sim.take().into_iter().any(|action| {
        matches!(action, crate::core::event::Action::Record(crate::core::event::Record::Forgotten { task }) if task == first)
    });
    assert!(forgotten, "the spool is told");
    assert_ne!(sim.submit(keyed("calm", "k")), first);
}

#[test]
fn a_key_whose_task_is_forgotten_in_this_moment_makes_a_new_task() {
    let mut sim = Sim::with(|settings| settings.retention.age = s(60));
    let first = sim.submit(keyed("once", "k"));
    sim.complete(first);
    // Nobody has looked since: the submission itself is what comes first after the deadline.
    sim.now += s(60);
    let submission = sim.try_submit(keyed("once", "k")).expect("taken");
    assert!(!submission.is_duplicate && submission.task != first, "{submission:?}");
}

#[test]
fn what_can_never_run_is_refused_with_what_to_change() {
    let mut sim = Sim::new();
    let refusal = sim.refused(task("nobody"));
    assert_eq!(refusal.code(), "unknown_agent");
    assert_eq!(refusal.to_string(), "no agent is called \"nobody\": configured are calm, guarded, once, warm");
    let refusal = sim.refused(TaskSpec { timeout: s(1801), ..task("once") });
    assert_eq!(refusal.code(), "invalid_request");
    assert_eq!(refusal.retry_after(), None);
}

#[test]
fn a_client_learns_before_it_sends_its_payload_what_it_would_be_told() {
    let mut sim = busy();
    let ask = |sim: &Sim, spec: &TaskSpec| sim.core.would_admit(TaskId(999), spec).map_err(|refusal| refusal.code());
    let first = sim.submit(keyed("once", "k"));
    for _ in 0..4 {
        sim.submit(heartbeat());
    }
    for (spec, told) in [
        (task("once"), Err("queue_full")),
        (at(Priority::Critical), Ok(())),
        (task("nobody"), Err("unknown_agent")),
        (keyed("once", "k"), Ok(())),
        (keyed("calm", "k"), Err("invalid_request")),
    ] {
        assert_eq!(ask(&sim, &spec), told, "{} at {}", spec.agent, spec.priority.name());
    }
    assert_eq!(sim.core.queue.depth(), 5, "asking changes nothing");
    assert_eq!(sim.state(first), TaskState::Queued);
}
