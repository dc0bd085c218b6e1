//! The monitor over real processes. The tests wait for readings, never for time, and assert bytes.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};

use super::cgroup::{Cgroups, Detected, Kind, Usher};
use super::*;
use crate::core::governor::MemorySample;
use crate::core::ids::WorkerId;
use crate::core::order::{Exit, Order};
use crate::core::settings::{AgentMode, AgentSettings};
use crate::core::task::ResultPlace;
use crate::scheduler::Watch;
use crate::scheduler::call::Control;
use crate::sys::clock::Clock;
use crate::sys::eventfd::EventFd;
use crate::sys::poll::PollSet;
use crate::worker::guardian::Instance;
use crate::worker::tests::bench::{Bench, MIB, agent, sh, task};

/// Far beyond what anything here takes: only a hang is this slow.
const PATIENCE: Duration = Duration::from_secs(60);
const HARD_LIMIT: u64 = 300 * MIB;

/// How far a leak gets is measured without another leak beside it, on a machine that may have one core.
static MEASUREMENT: Mutex<()> = Mutex::new(());

/// A supervisor and a monitor, with the test in the place of the scheduler and its core.
struct Watchdog {
    bench: Bench,
    monitor: MonitorHandle,
    control_rx: Receiver<Control>,
    thread: Option<JoinHandle<()>>,
    _alone: MutexGuard<'static, ()>,
}

impl Watchdog {
    fn new(cgroups: Cgroups) -> Watchdog {
        let alone = MEASUREMENT.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = Instance::unguarded().unwrap();
        let settings = MonitorSettings {
            interval: Duration::from_secs(1),
            sources: Sources { budget: true, cgroup: true, host: true },
            limit_bytes: 4096 * MIB,
            min_free_bytes: 32 * MIB,
            thresholds: [0.70, 0.85, 0.90, 0.95],
            hysteresis: 0.10,
        };
        let surroundings = Surroundings { clock: Clock::start(), instance: instance.mark(), groups: cgroups.groups() };
        let (control_tx, control_rx) = bounded(64);
        let (monitor, handle) = Monitor::new(settings, surroundings, 64, control_tx).unwrap();
        let thread = std::thread::Builder::new().spawn(move || monitor.run()).unwrap();
        Watchdog {
            bench: Bench::held_by(instance, cgroups),
            monitor: handle,
            control_rx,
            thread: Some(thread),
            _alone: alone,
        }
    }

    fn start(&mut self, mut agent: AgentSettings) -> WorkerId {
        (agent.soft_limit_bytes, agent.hard_limit_bytes) = (HARD_LIMIT, HARD_LIMIT);
        let worker = self.bench.spawn(agent, Some(task(b"")));
        let pid = self.bench.spawned(worker);
        let activity = self.monitor.activity();
        activity.begin();
        let (soft_limit_bytes, hard_limit_bytes) = (HARD_LIMIT, HARD_LIMIT);
        self.monitor.watch(Watch::Started { worker, pid, soft_limit_bytes, hard_limit_bytes, activity });
        worker
    }

    /// The first reading that says so.
    fn reading(&self, wanted: impl Fn(&MemorySample) -> bool) -> MemorySample {
        loop {
            match self.control_rx.recv_timeout(PATIENCE).expect("no such reading came") {
                Control::Memory(sample) if wanted(&sample) => return *sample,
                _ => {}
            }
        }
    }

    /// Kills the worker at its hard limit, as the core would; how it ended, and the reading at which it was killed.
    fn kill_at_limit(&self, worker: WorkerId) -> (Exit, u64) {
        let rss = rss_of(&self.reading(|sample| rss_of(sample, worker) > HARD_LIMIT), worker);
        self.bench.send(worker, Order::Kill);
        (self.bench.exited(worker), rss)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.monitor.send(Message::Stop);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn rss_of(sample: &MemorySample, worker: WorkerId) -> u64 {
    sample.workers.iter().find(|(id, _)| *id == worker).map_or(0, |(_, rss)| *rss)
}

/// examples/leak.rs, which cargo builds beside the tests.
fn leak() -> String {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/leak");
    assert!(path.exists(), "{} is not there: build it with cargo build --examples", path.display());
    path.to_str().unwrap().to_owned()
}

fn leaking(mib_per_second: u64) -> AgentSettings {
    agent(AgentMode::Oneshot, &[&leak(), &mib_per_second.to_string(), "1024"])
}

#[test]
fn a_leak_is_dead_soon_after_its_limit_with_the_watchdog_alone() {
    let mut watchdog = Watchdog::new(Cgroups::off());
    for mib_per_second in [100, 1024] {
        let worker = watchdog.start(leaking(mib_per_second));
        let (exit, seen) = watchdog.kill_at_limit(worker);
        let over = exit.peak_rss_bytes.saturating_sub(HARD_LIMIT);
        println!(
            "watchdog, {mib_per_second} MiB/s: {} KiB over when seen, {} when dead",
            (seen - HARD_LIMIT) >> 10,
            over >> 10
        );
        assert_eq!((exit.signal, exit.oom_killed), (Some(libc::SIGKILL), false));
        // The other tests of this program want the processors too: tests/memory_limits.rs measures it alone.
        assert!((1..=64 * MIB).contains(&over), "{over} bytes over at {mib_per_second} MiB/s");
    }
}

/// A place for cgroups in our own cgroup of version 1; `None` where there is none to write to.
fn v1_place(name: &str) -> Option<(Detected, Removed)> {
    let found = Cgroups::detect("/".as_ref());
    if found.kind != Kind::V1 {
        return None;
    }
    let path = found.path.join(format!("kurultai-test-{name}-{}", std::process::id()));
    std::fs::create_dir(&path).ok()?;
    Some((Detected { path: path.clone(), ..found }, Removed(path)))
}

/// The test's own cgroup, which must be empty at its end.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).expect("cgroups are left behind");
    }
}

#[test]
fn a_leak_is_at_most_1_mib_over_its_limit_in_a_cgroup_and_everywhere_its_end_is_told_apart() {
    let Some((place, removed)) = v1_place("leak") else {
        // Nothing is held here, and nothing is claimed to be.
        let mut watchdog = Watchdog::new(Cgroups::off());
        let worker = watchdog.start(leaking(1024));
        return assert!(!watchdog.kill_at_limit(worker).0.oom_killed);
    };
    let mut watchdog = Watchdog::new(Cgroups::prepare(&place, None).unwrap());
    for mib_per_second in [100, 1024] {
        let worker = watchdog.start(leaking(mib_per_second));
        let exit = watchdog.bench.exited(worker);
        let over = exit.peak_rss_bytes.saturating_sub(HARD_LIMIT);
        println!("cgroup, {mib_per_second} MiB/s: {} KiB over when dead", over >> 10);
        assert_eq!((exit.signal, exit.oom_killed), (Some(libc::SIGKILL), true));
        assert!(over <= MIB, "{over} bytes over at {mib_per_second} MiB/s");
        assert!(exit.peak_rss_bytes > HARD_LIMIT - 4 * MIB, "killed early, at {}", exit.peak_rss_bytes);
    }
    // A grandchild that the kernel kills takes the whole worker with it.
    let worker = watchdog.start(sh(AgentMode::Oneshot, &format!("{} 1024 1024; sleep 1000", leak())));
    let exit = watchdog.bench.exited(worker);
    assert!(exit.oom_killed && exit.signal == Some(libc::SIGKILL), "{exit:?}");
    let worker = watchdog.start(sh(AgentMode::Oneshot, "exit 3"));
    let exit = watchdog.bench.exited(worker);
    assert_eq!((exit.status, exit.oom_killed), (Some(3), false));
    drop(watchdog);
    drop(removed);
}

/// Serves an usher until its cgroups are gone.
fn serve(mut usher: Usher, bell: Arc<EventFd>) -> JoinHandle<()> {
    let body = move || {
        while usher.serve() {
            let mut set = PollSet::default();
            set.readable(Some(bell.as_fd()));
            set.wait(Some(PATIENCE)).unwrap();
            bell.hear();
        }
    };
    std::thread::Builder::new().spawn(body).unwrap()
}

#[test]
fn workers_are_in_their_groups_from_the_first_instruction_seated_or_not() {
    let Some((place, removed)) = v1_place("seats") else {
        let exit = Bench::held_by(Instance::unguarded().unwrap(), Cgroups::off()).run("cat /proc/self/cgroup", b"");
        return assert!(!inline(&exit).contains("/w-"), "a group where there can be none");
    };
    let bell = Arc::new(EventFd::new().unwrap());
    let mut cgroups = Cgroups::prepare(&place, None).unwrap();
    let usher = cgroups.usher(Arc::clone(&bell)).expect("version 1 has seats");
    let served = serve(usher, Arc::clone(&bell));
    let mut bench = Bench::held_by(Instance::unguarded().unwrap(), cgroups);
    for number in 1..=20 {
        let exit = bench.run("cat /proc/self/cgroup", b"");
        assert!(inline(&exit).contains(&format!("/w-{number}\n")), "{number}: {exit:?}");
    }
    let pids = [(); 2].map(|()| {
        let worker = bench.spawn(sh(AgentMode::Oneshot, "sleep 1000"), Some(task(b"")));
        bench.spawned(worker)
    });
    for (pid, number) in pids.into_iter().zip(21..) {
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.contains(&format!("/w-{number}\n")), "two at once: {cgroup}");
    }
    drop(bench);
    bell.ring();
    served.join().unwrap();
    drop(removed);
}

fn inline(exit: &Exit) -> String {
    match exit.result.as_ref().map(|result| &result.place) {
        Some(ResultPlace::Inline(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("no small result: {other:?}"),
    }
}

/// Grandchildren: in the session, out of it, and adopted by the daemon.
const GRANDCHILDREN: [(&str, &str); 3] = [
    ("its child", "LEAK & wait"),
    ("the child of its child", "(LEAK & wait) & wait"),
    ("a process that left its session, group and parent", "setsid -f env -i LEAK; sleep 1000"),
];

#[test]
fn what_a_workers_descendants_hold_is_the_workers() {
    let mut watchdog = Watchdog::new(Cgroups::off());
    // Another one beside it, so that what is unmarked would belong to nobody.
    let other = watchdog.start(sh(AgentMode::Oneshot, "sleep 1000"));
    for (what, script) in GRANDCHILDREN {
        let script = script.replace("LEAK", &format!("{} 4096 64", leak()));
        let worker = watchdog.start(sh(AgentMode::Oneshot, &script));
        let sample = watchdog.reading(|sample| rss_of(sample, worker) > 64 * MIB);
        let rss = rss_of(&sample, worker);
        assert!(rss < 80 * MIB, "{what}: {rss}");
        assert!(rss_of(&sample, other) < 16 * MIB, "{what} was charged to another worker");
        assert!(
            sample.usage_bytes > 64 * MIB && sample.usage_bytes < rss + sample.daemon.rss + 32 * MIB,
            "{what}: {sample:?}"
        );
        watchdog.bench.send(worker, Order::Kill);
        watchdog.bench.exited(worker);
        watchdog.monitor.watch(Watch::Ended { worker });
    }
}

#[test]
fn grandchildren_that_leak_are_caught() {
    let mut watchdog = Watchdog::new(Cgroups::off());
    for (what, script) in GRANDCHILDREN {
        let worker = watchdog.start(sh(AgentMode::Oneshot, &script.replace("LEAK", &format!("{} 200 1024", leak()))));
        let (exit, seen) = watchdog.kill_at_limit(worker);
        println!("{what}: {} KiB over when seen", (seen - HARD_LIMIT) >> 10);
        assert!(seen - HARD_LIMIT < 64 * MIB, "{what}: seen at {seen}");
        assert_eq!(exit.signal, Some(libc::SIGKILL), "{what}");
        watchdog.monitor.watch(Watch::Ended { worker });
    }
}

#[test]
fn a_reading_has_the_daemon_and_the_host_in_it() {
    let watchdog = Watchdog::new(Cgroups::off());
    let sample = watchdog.reading(|_| true);
    assert!(sample.daemon.rss > 0 && sample.usage_bytes == sample.daemon.rss, "{sample:?}");
    assert!(sample.total_bytes > sample.available_bytes && sample.host.is_some() && sample.budget_counts, "{sample:?}");
    assert!(sample.daemon.heap_used <= sample.daemon.heap_total, "{sample:?}");
    assert_eq!(sample.workers, []);
}
