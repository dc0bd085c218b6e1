//! Random walks: everything that can happen to the daemon, in any order, from one seed.
//!
//! A fixed set of seeds and a few new ones with every run of the tests; `make simulate` walks for longer, on programs
//! built for speed. A walk that fails prints its seed and the end of its way; `make simulate SEED=n` goes it again.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::sim::{agent, breaker, memory, s, schedule, settings, task};
use super::world::{Input, World};
use crate::core::event::{BreakerRequest, Event};
use crate::core::ids::{PermitId, TaskId, WorkerId};
use crate::core::order::{BreakerOp, Report, WorkerReport};
use crate::core::pool::Worker;
use crate::core::settings::{AgentMode, AgentSettings, Features, Mode, Settings};
use crate::core::task::{Priority, TaskSpec};
use crate::simulation::dice::Dice;
use crate::simulation::spool::Crash;
use crate::sys::clock::Clock;

/// Seeds that every run of the tests walks, and the time for new ones after them.
const SEEDS: u64 = 40;
const NEW_SEEDS: Duration = Duration::from_secs(3);

const STEPS: usize = 2000;
const AGENTS: [&str; 9] = ["calm", "calm", "warm", "once", "once", "guarded", "guarded", "shy", "nobody"];

/// What to walk: KURULTAI_SEED is the first seed, KURULTAI_COUNT how many there are from it on, KURULTAI_SECONDS how
/// long to go on with new ones.
struct Plan {
    seeds: std::ops::Range<u64>,
    new_seeds: Duration,
}

impl Plan {
    fn from_environment() -> Plan {
        let number = |name| {
            let text: String = std::env::var(name).ok().filter(|text| !text.is_empty())?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
        };
        let (first, count) = (number("KURULTAI_SEED"), number("KURULTAI_COUNT"));
        let seconds = number("KURULTAI_SECONDS").map(s);
        match (first, count, seconds) {
            (None, None, None) => Plan { seeds: 0..SEEDS, new_seeds: NEW_SEEDS },
            (None, None, Some(seconds)) => Plan { seeds: 0..0, new_seeds: seconds },
            (first, count, seconds) => {
                let first = first.unwrap_or(0);
                Plan { seeds: first..first.saturating_add(count.unwrap_or(1)), new_seeds: seconds.unwrap_or_default() }
            }
        }
    }
}

#[derive(Default)]
struct Walked {
    walks: usize,
    events: u64,
    crashes: usize,
    seen: BTreeSet<&'static str>,
}

#[test]
fn whatever_happens_nothing_is_lost_run_twice_or_left_waiting() {
    let plan = Plan::from_environment();
    let clock = Clock::start();
    let mut walked = Walked::default();
    for seed in plan.seeds {
        walk(seed, &mut walked);
    }
    let chance = RandomState::new();
    let end = clock.now() + plan.new_seeds;
    while clock.now() < end {
        walk(chance.build_hasher().finish().rotate_left(walked.walks as u32), &mut walked);
    }
    let Walked { walks, events, crashes, seen } = walked;
    let seconds = clock.now().as_secs_f64();
    println!(
        "{walks} walks, {events} events, {crashes} crashes in {seconds:.1} s: {:.0} events/s",
        events as f64 / seconds
    );
    if walks >= SEEDS as usize {
        assert_eq!(Vec::from_iter(seen), ["gc", "kill", "none", "preempt", "retire_idle"], "the walks lead everywhere");
    }
}

#[test]
fn a_seed_walks_the_same_way_again() {
    let went = || {
        let mut world = start(7, true);
        go(&mut world);
        (world.events, world.crashes, Vec::from_iter(world.last_words().cloned()))
    };
    assert_eq!(went(), went());
}

/// One walk from its beginning to its rest. If it fails it is gone again, to tell of its end.
fn walk(seed: u64, walked: &mut Walked) {
    let mut world = start(seed, false);
    match catch_unwind(AssertUnwindSafe(|| go(&mut world))) {
        Ok(()) => {
            walked.walks += 1;
            walked.events += world.events;
            walked.crashes += world.crashes;
            walked.seen.extend(world.watch.seen.keys().copied());
        }
        Err(panic) => {
            let mut again = start(seed, true);
            let _ = catch_unwind(AssertUnwindSafe(|| go(&mut again)));
            eprintln!("\nseed {seed} failed at event {}; the last of it, and how it failed:", again.events);
            again.last_words().for_each(|line| eprintln!("{line}"));
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            eprintln!("{}", text.unwrap_or("a panic without words"));
            eprintln!("to walk this way again: make simulate SEED={seed}\n");
            resume_unwind(panic);
        }
    }
}

fn start(seed: u64, is_traced: bool) -> World {
    let mut dice = Dice::new(seed);
    let settings = random_settings(&mut dice);
    World::new(settings, dice, is_traced)
}

fn go(world: &mut World) {
    for _ in 0..STEPS {
        step(world);
    }
    come_to_rest(world);
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
    let key = dice.one_in(5).then(|| dice.below(6));
    let agent = key.map_or_else(|| dice.pick(&AGENTS), |key| AGENTS[key as usize]);
    TaskSpec {
        priority,
        timeout: s(1 + dice.below(30)),
        max_retries: dice.below(3) as u32,
        skippable: priority == Priority::Heartbeat && !dice.one_in(4),
        idempotency_key: key.map(|key| Arc::from(format!("k{}", key / dice.pick(&[1, 1, 1, 2])))),
        ..task(agent)
    }
}

fn step(world: &mut World) {
    match world.dice.below(100) {
        0..27 => {
            let spec = Box::new(random_task(&mut world.dice));
            let wait = s(world.dice.pick(&[0, 0, 1, 30]));
            world.feed(Input::Submit { spec, wait });
        }
        27..32 => {
            let task = random_known(world);
            world.feed(Input::Cancel(task));
        }
        32..68 => {
            if let Some(worker) = random_worker(world) {
                world.stir(worker, true);
            }
        }
        68..71 => worker_breaker(world),
        71..77 => read_memory(world),
        77..80 => breaker_request(world),
        80 => reconfigure(world),
        81..84 => {
            for worker in world.processes.keys().copied().collect::<Vec<_>>() {
                preempt(world, worker);
            }
        }
        84..91 => pass(world, 3000),
        91..94 => {
            if let Some(wake) = world.desk.next_wake() {
                world.now = world.now.max(wake);
                world.feed(Input::Wake);
            }
        }
        94..97 => {
            let works = !world.dice.one_in(30);
            world.feed(Input::Sync { works });
        }
        97 => gone(world),
        98 => match world.dice.below(6) {
            0 => world.feed(Input::DiskFails(true)),
            1..4 => world.feed(Input::DiskFails(false)),
            4 => world.feed(Input::Rewrite),
            // The clock is set, forward or back.
            _ => world.wall_shift = world.dice.below(7_200_000) as i64 - 3_600_000,
        },
        _ => match world.dice.below(12) {
            0 => drain_and_restart(world),
            1..3 => crash(world),
            // At any record or action of what comes next.
            3..5 => {
                let steps = 1 + world.dice.below(12) as u32;
                world.feed(Input::Fuse(steps));
            }
            _ => {}
        },
    }
}

fn pass(world: &mut World, most_ms: u64) {
    world.now += Duration::from_millis(world.dice.below(most_ms));
    world.feed(Input::Wake);
}

fn random_known(world: &mut World) -> TaskId {
    TaskId(world.last_task().saturating_sub(world.dice.below(12)))
}

fn random_worker(world: &mut World) -> Option<WorkerId> {
    let workers: Vec<WorkerId> = world.processes.keys().copied().collect();
    (!workers.is_empty()).then(|| world.dice.pick(&workers))
}

fn gone(world: &mut World) {
    let open = Vec::from_iter(world.open.iter().copied());
    if !open.is_empty() {
        let caller = world.dice.pick(&open);
        world.feed(Input::Gone(caller));
    }
}

fn preempt(world: &mut World, worker: WorkerId) {
    let is_able = |worker: &Worker| worker.can_checkpoint && worker.task().is_some();
    if world.desk.core.pool.get(worker).is_some_and(is_able) {
        world.feed(Input::Preempt(worker));
    }
}

fn read_memory(world: &mut World) {
    for _ in 0..=world.dice.below(3) {
        let sample = world.memory.next(&mut world.dice, &world.processes);
        world.feed(Input::Event(Event::MemorySampled(Box::new(sample))));
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
    let name = Arc::from(world.dice.pick(&["net", "net", "other", "none"]));
    world.feed(Input::Breaker(name, request));
}

fn worker_breaker(world: &mut World) {
    let op = match world.dice.below(3) {
        0 => BreakerOp::Acquire,
        1 => BreakerOp::Success(random_permit(world)),
        _ => BreakerOp::Failure(random_permit(world)),
    };
    if let Some(worker) = random_worker(world) {
        let name = Arc::from(world.dice.pick(&["net", "none"]));
        world.feed(Input::Event(Event::Worker(WorkerReport { worker, report: Report::Breaker { name, op } })));
    }
}

fn reconfigure(world: &mut World) {
    let mut settings = random_settings(&mut world.dice);
    if world.dice.one_in(2) {
        // Only the numbers: every agent stays as it is.
        settings.agents = world.desk.core.settings().agents.clone();
    }
    world.reconfigured(&settings);
    world.feed(Input::Event(Event::Reconfigured(Box::new(settings))));
}

fn drain_and_restart(world: &mut World) {
    let crashes = world.crashes;
    world.is_draining = true;
    let timeout = s(world.dice.below(20));
    world.feed(Input::Event(Event::DrainRequested { timeout }));
    for _ in 0..10_000 {
        if world.drained > 0 || world.crashes > crashes {
            break;
        }
        match world.dice.below(4) {
            0 => {
                let spec = Box::new(random_task(&mut world.dice));
                world.feed(Input::Submit { spec, wait: Duration::ZERO });
            }
            1 => {
                if let Some(worker) = random_worker(world) {
                    world.stir(worker, true);
                }
            }
            2 => pass(world, 3000),
            _ => {
                let task = random_known(world);
                world.feed(Input::Cancel(task));
            }
        }
    }
    if world.crashes > crashes {
        return;
    }
    assert_eq!(world.drained, 1, "drained once");
    world.feed(Input::Sync { works: true });
    crash_as(world, Crash::Daemon);
}

fn crash(world: &mut World) {
    let kept = world.dice.below(world.desk.spool.unsynced() as u64 + 1) as usize;
    let crash = if world.dice.one_in(2) { Crash::Daemon } else { Crash::Power { kept } };
    crash_as(world, crash);
}

fn crash_as(world: &mut World, crash: Crash) {
    let settings = random_settings(&mut world.dice);
    world.reconfigured(&settings);
    world.crash(settings, crash);
}

/// From now on everybody behaves, memory is there and the disk works: every accepted task ends, every request has its
/// reply, and what was stopped goes on.
fn come_to_rest(world: &mut World) {
    world.feed(Input::DiskFails(false));
    let mut settings = random_settings(&mut world.dice);
    settings.schedules.clear();
    world.reconfigured(&settings);
    world.feed(Input::Event(Event::Reconfigured(Box::new(settings))));
    world.feed(Input::Event(Event::MemorySampled(Box::new(memory(100)))));
    for name in ["net", "other"] {
        world.feed(Input::Breaker(Arc::from(name), BreakerRequest::ForceClose));
    }
    for _ in 0..10_000 {
        for worker in world.processes.keys().copied().collect::<Vec<_>>() {
            world.stir(worker, false);
        }
        world.feed(Input::Sync { works: true });
        if world.remembered.unfinished.is_empty() && world.processes.is_empty() && world.open.is_empty() {
            return world.check_all_ended();
        }
        if let Some(wake) = world.desk.next_wake() {
            world.now = world.now.max(wake);
        }
        world.feed(Input::Wake);
    }
    panic!("still alive: {:?}, with {:?}", world.remembered.unfinished.keys(), world.processes);
}
