//! Why a task waits is told to whoever asks, with the figures; and that it waits for memory is said once.

use super::sim::{Sim, agent, at, heartbeat, memory, retried, s, signal, task};
use crate::core::event::{BreakerRequest, Event};
use crate::core::governor::{Fill, MemorySample};
use crate::core::ids::TaskId;
use crate::core::notice::Notice;
use crate::core::settings::{AgentMode, AgentSettings};
use crate::core::task::{Priority, TaskSpec, TaskState};
use crate::core::waiting::Wait;

/// 100 and 900 bytes are too little to see in MiB.
const MIB: u64 = 1 << 20;

fn knowing(peaks: &[(&str, u64)]) -> Sim {
    let mut sim = Sim::with(|settings| {
        settings.memory.limit_bytes = 1000 * MIB;
        settings.memory.min_free_bytes = 32 * MIB;
        for agent in settings.agents.values_mut() {
            *agent =
                AgentSettings { soft_limit_bytes: 900 * MIB, hard_limit_bytes: 900 * MIB, ..(**agent).clone() }.into();
        }
    });
    let peaks = peaks.iter().map(|(agent, peak)| (std::sync::Arc::from(*agent), peak * MIB));
    sim.core.restore_footprints(peaks.collect());
    sim
}

fn reading(usage_mib: u64) -> MemorySample {
    MemorySample { total_bytes: 10_000 * MIB, available_bytes: 5000 * MIB, ..memory(usage_mib * MIB) }
}

fn read(sim: &mut Sim, sample: MemorySample) {
    sim.feed(Event::MemorySampled(Box::new(sample)));
}

fn reason(sim: &Sim, task: TaskId) -> &'static str {
    sim.core.waits_for(task).map_or("nothing", |wait| wait.name())
}

fn told(sim: &mut Sim) -> Vec<TaskId> {
    let waiting = |notice| if let Notice::TaskWaiting { task, .. } = notice { Some(task) } else { None };
    sim.notices().into_iter().filter_map(waiting).collect()
}

#[test]
fn a_task_that_does_not_fit_waits_with_the_figures_it_does_not_fit_by() {
    let mut sim = knowing(&[("calm", 300), ("once", 500)]);
    let running = sim.submit(task("calm"));
    let workers = vec![(sim.worker(running), 100 * MIB)];
    read(&mut sim, MemorySample { workers, ..reading(250) });
    let large = sim.submit(task("once"));
    let wait = sim.core.waits_for(large).expect("it waits");
    assert_eq!(
        (wait.name(), wait.to_string()),
        (
            "memory",
            "it may need 500 MiB, as its agent was seen to, and what runs may still grow by 200 MiB: of the 900 MiB of \
             the budget up to the reject line, 250 are in use"
                .to_string()
        )
    );
    let behind = sim.submit(task("once"));
    assert_eq!(sim.core.waits_for(behind), Some(Wait::MemoryOfAnother { task: large }));
    assert_eq!(told(&mut sim), [large]);
    read(&mut sim, reading(251));
    assert_eq!(told(&mut sim), [], "it is said once");
    sim.complete(running);
    assert_eq!((sim.state(large), reason(&sim, large)), (TaskState::Running, "nothing"));
}

#[test]
fn a_task_waits_for_room_in_whichever_source_has_the_least() {
    let limit = 1000 * MIB;
    for (what, sample, source) in [
        ("budget", reading(500), "of the budget"),
        ("cgroup", MemorySample { cgroup: Some(Fill { used: limit / 2, limit }), ..reading(100) }, "own cgroup"),
        (
            "host",
            MemorySample { host: Some(0.5), total_bytes: limit, available_bytes: limit / 2, ..reading(100) },
            "of the host",
        ),
        ("floor", MemorySample { available_bytes: 500 * MIB, ..reading(100) }, "memory.min_free_mb"),
        ("room", MemorySample { cgroup: Some(Fill { used: limit / 3, limit }), ..reading(100) }, ""),
    ] {
        let mut sim = knowing(&[("once", 480)]);
        sim.submit(task("calm"));
        read(&mut sim, sample);
        let next = sim.submit(task("once"));
        let wait = sim.core.waits_for(next).map_or(String::new(), |wait| wait.to_string());
        assert!(wait.contains(source) && wait.is_empty() == source.is_empty(), "{what}: {wait}");
    }
}

#[test]
fn what_memory_has_stopped_comes_back_only_where_it_is_not_stopped_again() {
    // It is known to need 300 of 1000: beside 560 it fits under the reject line, beside 540 under the critical one too.
    for (usage, again) in [(560, TaskState::Preempted), (540, TaskState::Running)] {
        let mut sim = knowing(&[("calm", 300), ("warm", 10)]);
        let [low, other] = [sim.submit(TaskSpec { priority: Priority::Low, ..task("calm") }), sim.submit(task("warm"))];
        let workers = |sim: &Sim| vec![(sim.worker(low), 300 * MIB), (sim.worker(other), 10 * MIB)];
        let workers = workers(&sim);
        for _ in 0..4 {
            read(&mut sim, MemorySample { workers: workers.clone(), ..reading(860) });
        }
        sim.preempted(low, true);
        sim.pass(s(10));
        let fresh = sim.submit(TaskSpec { priority: Priority::High, ..task("once") });
        read(&mut sim, MemorySample { workers: vec![(workers[1].0, 10 * MIB)], ..reading(usage) });
        sim.complete(fresh);
        assert_eq!(sim.state(low), again, "beside {usage}");
        let new = sim.submit(TaskSpec { priority: Priority::High, ..task("calm") });
        if again == TaskState::Preempted {
            assert_eq!(sim.state(new), TaskState::Running, "one that was never stopped goes by the reject line");
        }
    }
}

#[test]
fn a_task_killed_for_memory_comes_back_only_where_critical_is_not_reached() {
    for (usage, again) in [(560, TaskState::Queued), (540, TaskState::Running)] {
        let mut sim = knowing(&[("once", 300)]);
        sim.reconfigure(|settings| settings.workers.restart_backoff = vec![s(0)]);
        let killed = sim.submit(retried("once", 1));
        sim.submit(task("warm"));
        let worker = sim.worker(killed);
        read(&mut sim, MemorySample { workers: vec![(worker, 901 * MIB)], ..reading(100) });
        assert_eq!(sim.state(killed), TaskState::Queued, "its worker was over its hard limit");
        sim.core.restore_footprints(vec![(std::sync::Arc::from("once"), 300 * MIB)]);
        read(&mut sim, reading(usage));
        sim.pass(s(60));
        assert_eq!(sim.state(killed), again, "beside {usage}");
    }
}

#[test]
fn each_thing_that_a_task_can_wait_for_has_its_own_words() {
    let mut sim = Sim::with(|settings| settings.workers.max = 1);
    let first = sim.submit(task("once"));
    let second = sim.submit(task("once"));
    assert_eq!((reason(&sim, first), reason(&sim, second)), ("nothing", "workers_busy"));
    sim.drain(s(5));
    assert_eq!(reason(&sim, second), "draining");

    let mut sim = Sim::new();
    let guarded = sim.submit(task("guarded"));
    let second = sim.submit(task("guarded"));
    let third = sim.submit(task("guarded"));
    sim.breaker("net", BreakerRequest::ForceOpen);
    sim.complete(guarded);
    sim.complete(second);
    assert_eq!(reason(&sim, third), "breaker");

    let mut sim = Sim::new();
    let crashed = sim.submit(retried("once", 1));
    sim.exit_of(crashed, signal(11));
    let behind = sim.submit(task("once"));
    assert_eq!([crashed, behind].map(|task| reason(&sim, task)), ["retry_pause", "agent_pause"]);

    let mut sim = Sim::with(|settings| {
        let shy = AgentSettings { max_workers: Some(1), ..agent("shy", AgentMode::Oneshot) };
        settings.agents.insert(shy.name.clone(), shy.into());
    });
    sim.submit(task("shy"));
    let next = sim.submit(task("shy"));
    assert_eq!(reason(&sim, next), "agent_full");

    let mut sim = Sim::new();
    sim.holds_ready = true;
    let starting = sim.submit(task("calm"));
    assert_eq!(reason(&sim, starting), "worker_starting");

    let mut sim = Sim::new();
    sim.submit(task("once"));
    sim.stay(870, &[]);
    let held = sim.submit(at(Priority::Low));
    sim.memory_at(860);
    assert_eq!(reason(&sim, held), "memory_level");
    assert_eq!(told(&mut sim), [], "the crossing has told");
    sim.memory_at(740);
    let beat = sim.submit(heartbeat());
    assert_eq!((reason(&sim, held), reason(&sim, beat)), ("nothing", "memory_level"));
    for task in [held, beat] {
        let words = sim.core.waits_for(task).map(|wait| wait.to_string());
        assert!(words.is_none_or(|words| words.contains("74.0 %") && words.contains("heartbeat")));
    }
    assert_eq!(sim.core.waits_for(TaskId(999)), None);
}
