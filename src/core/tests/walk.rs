//! Random walks. A failing one prints its seed; `KURULTAI_SEED=n cargo test walk` takes that one again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::sim::{agent, breaker, memory, s, schedule, settings, task};
use super::world::{Dice, World};
use crate::core::event::{BreakerRequest, Event};
use crate::core::ids::{PermitId, TaskId, WorkerId};
use crate::core::order::{BreakerOp, PreemptReason, Report, WorkerReport};
use crate::core::pool::Worker;
use crate::core::settings::{AgentMode, AgentSettings, Features, Mode, Settings};
use crate::core::task::{Priority, TaskSpec};

const WALKS: u64 = 100;
const STEPS: usize = 2000;
const AGENTS: [&str; 9] = ["calm", "calm", "warm", "once", "once", "guarded", "guarded", "shy", "nobody"];

/// Prints the seed of a walk that did not come to its end.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to walk this way again: KURULTAI_SEED={} cargo test walk", self.0);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("KURULTAI_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("KURULTAI_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..WALKS,
    }
}

#[test]
fn whatever_happens_nothing_is_lost_run_twice_or_left_waiting() {
    let mut seen = BTreeSet::new();
    for seed in seeds() {
        let guard = Seed(seed);
        let mut dice = Dice(seed);
        let mut world = World::new(random_settings(&mut dice), seed);
        for _ in 0..STEPS {
            step(&mut world);
        }
        come_to_rest(&mut world);
        seen.extend(world.watch.seen.keys().copied());
        drop(guard);
    }
    if seeds().count() > 1 {
        assert_eq!(Vec::from_iter(seen), ["gc", "kill", "none", "preempt", "retire_idle"], "the walks lead everywhere");
    }
}

fn random_settings(dice: &mut Dice) -> Settings {
    let mut settings = settings();
    settings.workers.max = 1 + dice.below(3) as usize;
    settings.workers.idle_timeout = s(dice.below(3) * 10);
    settings.workers.recycle_after_tasks = dice.below(3);
    settings.workers.max_restarts_per_hour = dice.pick(&[0, 3, 30, 1000, 1000]);
    settings.queue.max_depth = 1 + dice.below(6) as usize;
    settings.queue.priority_limits[dice.below(5) as usize] = 1;
    settings.memory.mode = dice.pick(&[Mode::Hard, Mode::Hard, Mode::Soft, Mode::Observe]);
    settings.memory.settle = s(dice.below(4));
    settings.memory.min_free_bytes = dice.pick(&[0, 10, 400]);
    settings.retention.age = s(dice.pick(&[1, 60, 3600]));
    settings.features = Features {
        worker_pool: !dice.one_in(4),
        circuit_breakers: !dice.one_in(4),
        rollout_percent: dice.pick(&[100, 100, 50, 0]),
        memory_governance: !dice.one_in(8),
        gc_on_pressure: !dice.one_in(4),
    };
    let shy = AgentSettings { max_workers: Some(1), ..agent("shy", AgentMode::Persistent) };
    settings.agents.insert(shy.name.clone(), Arc::new(shy));
    for bound in ["guarded", "calm"] {
        if dice.one_in(2) {
            let agent =
                AgentSettings { breaker: Some(Arc::from("net")), ..AgentSettings::clone(&settings.agents[bound]) };
            settings.agents.insert(agent.name.clone(), Arc::new(agent));
        }
    }
    if dice.one_in(4) {
        let gone = dice.pick(&AGENTS);
        settings.agents.remove(gone);
    }
    match dice.below(4) {
        0 => settings.breakers.clear(),
        1 => {
            settings.breakers.insert(Arc::from("other"), breaker());
        }
        _ => {}
    }
    if dice.one_in(2) {
        settings.schedules = vec![Arc::new(schedule("main", s(1 + dice.below(20))))];
    }
    settings
}

fn random_task(dice: &mut Dice) -> TaskSpec {
    let priority = dice.pick(&Priority::ALL);
    TaskSpec {
        priority,
        timeout: s(1 + dice.below(30)),
        max_retries: dice.below(3) as u32,
        skippable: priority == Priority::Heartbeat && !dice.one_in(4),
        idempotency_key: dice.one_in(8).then(|| Arc::from(format!("k{}", dice.below(10)))),
        ..task(dice.pick(&AGENTS))
    }
}

fn step(world: &mut World) {
    match world.dice.below(100) {
        0..25 => {
            let spec = random_task(&mut world.dice);
            submit(world, spec);
        }
        25..28 => {
            if let Some(beat) = world.beats.pop() {
                let TaskSpec { payload, .. } = task(&beat.agent);
                let (priority, skippable) = (beat.priority, beat.skippable);
                let schedule = Some(beat.name.clone());
                submit(world, TaskSpec { priority, skippable, schedule, payload, ..task(&beat.agent) });
            }
        }
        28..33 => {
            let ticket = world.ticket();
            let task = TaskId(world.last_task.saturating_sub(world.dice.below(12)));
            world.feed(Event::CancelRequested { ticket, task });
        }
        33..70 => {
            if let Some(worker) = random_worker(world) {
                world.stir(worker, true);
            }
        }
        70..73 => worker_breaker(world),
        73..79 => read_memory(world),
        79..82 => breaker_request(world),
        82 => {
            let mut settings = random_settings(&mut world.dice);
            if world.dice.one_in(2) {
                // Only the numbers: every agent stays as it is.
                settings.agents = world.core.settings().agents.clone();
            }
            world.reconfigured(&settings);
            world.feed(Event::Reconfigured(Box::new(settings)));
        }
        83..86 => {
            // A preemption can come at any time, not only from the governor.
            for worker in world.processes.keys().copied().collect::<Vec<_>>() {
                preempt(world, worker);
            }
        }
        86..95 => {
            world.now += Duration::from_millis(world.dice.below(3000));
            world.feed(Event::DeadlinePassed);
        }
        95..99 => {
            if let Some(deadline) = world.core.next_deadline() {
                world.now = deadline;
                world.feed(Event::DeadlinePassed);
            }
        }
        _ => match world.dice.below(6) {
            0 => drain_and_restart(world),
            1 => restart(world),
            _ => {}
        },
    }
}

fn submit(world: &mut World, spec: TaskSpec) {
    world.last_task += 1;
    let (ticket, task) = (world.ticket(), TaskId(world.last_task));
    world.feed(Event::Submitted { ticket, task, spec: Box::new(spec) });
}

fn random_worker(world: &mut World) -> Option<WorkerId> {
    let workers: Vec<WorkerId> = world.processes.keys().copied().collect();
    (!workers.is_empty()).then(|| world.dice.pick(&workers))
}

fn preempt(world: &mut World, worker: WorkerId) {
    let is_able = |worker: &Worker| worker.can_checkpoint && worker.task().is_some();
    if world.core.pool.get(worker).is_some_and(is_able) {
        world.core.preempt(worker, PreemptReason::Priority);
        world.feed(Event::DeadlinePassed);
    }
}

fn read_memory(world: &mut World) {
    let alive: Vec<WorkerId> = world.processes.keys().copied().collect();
    for _ in 0..=world.dice.below(3) {
        let sample = world.memory.next(&mut world.dice, alive.iter().copied());
        world.feed(Event::MemorySampled(Box::new(sample)));
    }
}

fn random_permit(world: &mut World) -> PermitId {
    if world.permits.is_empty() || world.dice.one_in(5) {
        return PermitId(world.dice.below(200));
    }
    let index = world.dice.below(world.permits.len() as u64) as usize;
    world.permits.swap_remove(index)
}

fn breaker_request(world: &mut World) {
    let request = match world.dice.below(12) {
        0..5 => BreakerRequest::Acquire,
        5..7 => BreakerRequest::Success(random_permit(world)),
        7..10 => BreakerRequest::Failure(random_permit(world)),
        10 => BreakerRequest::ForceOpen,
        _ => BreakerRequest::ForceClose,
    };
    let (ticket, name) = (world.ticket(), Arc::from(world.dice.pick(&["net", "net", "other", "none"])));
    world.feed(Event::Breaker { ticket, name, request });
}

fn worker_breaker(world: &mut World) {
    let op = match world.dice.below(3) {
        0 => BreakerOp::Acquire,
        1 => BreakerOp::Success(random_permit(world)),
        _ => BreakerOp::Failure(random_permit(world)),
    };
    if let Some(worker) = random_worker(world) {
        let name = Arc::from(world.dice.pick(&["net", "none"]));
        world.feed(Event::Worker(WorkerReport { worker, report: Report::Breaker { name, op } }));
    }
}

fn drain_and_restart(world: &mut World) {
    world.is_draining = true;
    let timeout = s(world.dice.below(20));
    world.feed(Event::DrainRequested { timeout });
    for _ in 0..10_000 {
        if world.drained > 0 {
            break;
        }
        match world.dice.below(4) {
            0 => {
                let spec = random_task(&mut world.dice);
                submit(world, spec);
            }
            1 => {
                if let Some(worker) = random_worker(world) {
                    world.stir(worker, true);
                }
            }
            2 => {
                world.now += Duration::from_millis(world.dice.below(3000));
                world.feed(Event::DeadlinePassed);
            }
            _ => {
                let ticket = world.ticket();
                let task = TaskId(world.last_task.saturating_sub(world.dice.below(12)));
                world.feed(Event::CancelRequested { ticket, task });
            }
        }
    }
    world.feed(Event::DeadlinePassed);
    assert_eq!(world.drained, 1, "drained once");
    restart(world);
}

fn restart(world: &mut World) {
    let settings = random_settings(&mut world.dice);
    world.reconfigured(&settings);
    world.restart(settings);
}

/// From now on everybody behaves: every accepted task ends.
fn come_to_rest(world: &mut World) {
    let mut settings = random_settings(&mut world.dice);
    settings.schedules.clear();
    world.reconfigured(&settings);
    world.feed(Event::Reconfigured(Box::new(settings)));
    world.feed(Event::MemorySampled(Box::new(memory(100))));
    for name in ["net", "other"] {
        let ticket = world.ticket();
        world.feed(Event::Breaker { ticket, name: Arc::from(name), request: BreakerRequest::ForceClose });
    }
    for _ in 0..10_000 {
        for worker in world.processes.keys().copied().collect::<Vec<_>>() {
            world.stir(worker, false);
        }
        if world.remembered.unfinished.is_empty() && world.processes.is_empty() {
            return;
        }
        if let Some(deadline) = world.core.next_deadline() {
            world.now = deadline;
        }
        world.feed(Event::DeadlinePassed);
    }
    panic!("still alive: {:?}, with {:?}", world.remembered.unfinished.keys(), world.processes);
}
