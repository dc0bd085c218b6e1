//! A worker's own limits: what happens to one that goes over them, to the others, and to what it leaves behind.

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::Duration;

use common::{
    Ballast, Daemon, Footprint, MIB, Memory, agent, ballast, descendants, leak, metric, never_until, soon, until,
    worker,
};
use serde_json::{Value, json};

const HARD_MIB: u64 = 300;

/// What examples/leak.rs takes at a time.
const LEAK_STEP: u64 = 256 << 10;

/// What tests/agents/leak-buffers takes at a time, and more than a family of leaks does.
const MEMBERS_STEP: u64 = MIB;

/// How far over its limit a worker may get where the watchdog alone holds it, and where its cgroup does.
const WATCHDOG: u64 = 8 * MIB;
const CGROUP: u64 = MIB;

/// From a reading to the kill three threads have to be woken. Where they may not go before others, a machine that others use as
/// well wakes them late.
fn watchdog(daemon: &Daemon) -> u64 {
    let memory = daemon.get("/v1/memory").expect(200).json();
    let urgency = memory["enforcement"]["watchdog"].as_str().expect("how urgent the watchdog is");
    if urgency == "realtime" { WATCHDOG } else { 8 * WATCHDOG }
}

/// How far a leak gets before it is seen depends on who else wants the processors: while one is measured, no other test of
/// this program runs.
static PROCESSORS: RwLock<()> = RwLock::new(());

fn config(cgroup: &str, more: &str) -> String {
    format!(
        "[memory]\ncgroup = {cgroup:?}\n[workers]\nmax = 3\nsoft_limit_mb = 200\nhard_limit_mb = {HARD_MIB}\n\
         {more}\n{}{}",
        worker("echo", "scripts/agents/echo.py", ""),
        worker("sleeper", "tests/agents/sleeper", "")
    )
}

fn leaking(rates: &[u64]) -> String {
    let program = leak();
    rates.iter().map(|rate| format!("[agents.leak-{rate}]\ncommand = [{program:?}, \"{rate}\", \"4096\"]\n")).collect()
}

// Another test that failed has nothing to do with this one, hence no look at poison.
fn alone() -> RwLockWriteGuard<'static, ()> {
    PROCESSORS.write().unwrap_or_else(PoisonError::into_inner)
}

fn among_others() -> RwLockReadGuard<'static, ()> {
    PROCESSORS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Where the daemon has said that it makes workers' cgroups; `None` where it has said that there are none.
fn cgroups(daemon: &Daemon) -> Option<PathBuf> {
    let found = daemon.logged("CGROUP_FOUND");
    let failed = daemon.log_text().contains("the watchdog alone holds hard limits");
    let found = found.first().filter(|line| line["kind"] != "none" && !failed)?;
    Some(PathBuf::from(found["path"].as_str().expect("a path")).join(format!("kurultai-{}", daemon.pid())))
}

/// Workers' groups are named as the workers are.
fn groups(base: &PathBuf) -> usize {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("w-"))).count()
}

/// The daemon is as it was before a worker died: its own tables, its processes, its cgroups.
#[track_caller]
fn is_as_before(daemon: &Daemon, before: Footprint) {
    soon("descriptors and threads are as before", || {
        let after = daemon.footprint();
        (after.fds, after.threads) == (before.fds, before.threads)
    });
}

/// Every worker is gone, and nothing of their cgroups is left; then the daemon as well.
#[track_caller]
fn leaves_nothing(daemon: Daemon) {
    let base = cgroups(&daemon);
    if let Some(base) = &base {
        assert!(base.is_dir(), "{} is not there", base.display());
        let workers = daemon.get("/v1/workers").expect(200).json()["workers"].as_array().map(Vec::len);
        soon("cgroups of workers that are gone are gone", || Some(groups(base)) <= workers);
    }
    daemon.stop();
    if let Some(base) = base {
        assert!(!base.exists(), "{} is left behind", base.display());
    }
}

#[track_caller]
fn died_of_memory(task: &Value) {
    assert_eq!((&task["state"], &task["error"]["code"]), (&json!("failed"), &json!("worker_oom")), "{task}");
    assert_eq!(task["error"]["signal"], 9, "{task}");
}

/// Runs leaks to their end; how far over the limit each got.
fn overshoots(daemon: &Daemon, rates: &[u64]) -> Vec<u64> {
    let _alone = alone();
    daemon.run_task("echo", json!("warm"));
    let before = daemon.footprint();
    let each = |rate: &u64| {
        let name = format!("leak-{rate}");
        let oom = format!("kurultai_worker_oom_total{{agent=\"{name}\"}}");
        let deaths = metric(daemon, &oom);
        let task = daemon.run_task(&name, json!(1));
        died_of_memory(&task);
        let peak = task["peakRssBytes"].as_u64().expect("a peak");
        assert!(peak > (HARD_MIB - 4) * MIB, "killed early, at {peak}: {task}");
        assert_eq!(daemon.run_task("echo", json!(rate))["result"], json!(rate), "the next task");
        is_as_before(daemon, before);
        assert_eq!(metric(daemon, &oom), deaths + 1.0);
        assert_eq!(daemon.get("/health").expect(200).json()["status"], "ok");
        peak.saturating_sub(HARD_MIB * MIB)
    };
    rates.iter().map(each).collect()
}

#[test]
fn a_leak_is_dead_soon_after_its_limit_with_the_watchdog_alone() {
    let daemon = Daemon::start(&config("off", &leaking(&[100, 1024])));
    assert_eq!(daemon.logged("CGROUP_FOUND").len(), 0);
    let over = overshoots(&daemon, &[1024, 100, 1024, 1024]);
    println!("watchdog, KiB over the limit: {:?}", over.iter().map(|over| over >> 10).collect::<Vec<_>>());
    let bound = watchdog(&daemon) + LEAK_STEP;
    assert!(over.iter().all(|over| (1..=bound).contains(over)), "{over:?}, at most {bound}");
    let killed = daemon.logged("TASK_KILLED");
    assert_eq!(killed.len(), over.len(), "the daemon killed each");
    assert!(killed.iter().all(|line| line["code"] == "worker_oom"), "{killed:?}");
    leaves_nothing(daemon);
}

#[test]
fn a_leak_is_dead_1_mib_over_its_limit_in_a_cgroup() {
    let daemon = Daemon::start(&config("auto", &leaking(&[100, 1024])));
    assert_eq!(daemon.logged("CGROUP_FOUND").len(), 1, "it says what it found");
    let bound = if cgroups(&daemon).is_some() { CGROUP } else { watchdog(&daemon) };
    let over = overshoots(&daemon, &[1024, 100, 1024, 1024]);
    println!("cgroup, KiB over the limit: {:?}", over.iter().map(|over| over >> 10).collect::<Vec<_>>());
    assert!(over.iter().all(|over| *over <= bound + LEAK_STEP), "{over:?}, with {:?}", cgroups(&daemon));
    leaves_nothing(daemon);
}

#[test]
fn buffers_of_node_and_grandchildren_are_caught() {
    for cgroup in ["off", "auto"] {
        let family = format!("{} 100 4096 & setsid {} 100 4096 & wait", leak(), leak());
        let more = format!(
            "[agents.family]\ncommand = [\"/bin/sh\", \"-c\", {:?}]\n{}",
            format!("setsid sh -c '{family}' & wait"),
            worker("node", "tests/agents/leak-buffers", "runtime = \"node\""),
        );
        let daemon = Daemon::start(&config(cgroup, &more));
        daemon.run_task("echo", json!("warm"));
        let before = daemon.footprint();
        for name in ["node", "family"] {
            let _alone = alone();
            let task = daemon.run_task(name, json!({}));
            died_of_memory(&task);
            let over = task["peakRssBytes"].as_u64().expect("a peak").saturating_sub(HARD_MIB * MIB);
            println!("{cgroup}, {name}: {} KiB over the limit", over >> 10);
            let bound = if cgroups(&daemon).is_some() { CGROUP } else { watchdog(&daemon) };
            assert!(over <= bound + MEMBERS_STEP, "{over}: {task}");
            assert_eq!(daemon.run_task("echo", json!(name))["result"], name, "the next task");
            soon("its whole tree is gone", || daemon.workers().len() <= 1);
            is_as_before(&daemon, before);
        }
        leaves_nothing(daemon);
    }
}

#[test]
fn a_memory_error_that_an_agent_swallows_does_no_harm() {
    let _guard = among_others();
    // Between the soft and the hard limit.
    let hoarder = worker("hoarder", "tests/agents/memory-error", "data_limit_mb = 240");
    let daemon = Daemon::start(&config("auto", &hoarder));
    daemon.run_task("echo", json!("warm"));
    let before = daemon.footprint();
    let mut pids = Vec::new();
    for _ in 0..2 {
        let task = daemon.run_task("hoarder", json!({}));
        assert_eq!((&task["state"], &task["result"]["errors"]), (&json!("completed"), &json!(20)), "{task}");
        assert!(task["result"]["held"].as_u64().is_some_and(|held| held > 200 * MIB), "{task}");
        pids.push(task["result"]["pid"].clone());
        soon("what it hoarded is given back", || Memory::of(&daemon).is_some_and(|memory| memory.usage < 100 * MIB));
    }
    assert_ne!(pids[0], pids[1], "it is replaced after its task");
    assert!(!daemon.logged("WORKER_SOFT_LIMIT").is_empty());
    assert_eq!(daemon.run_task("echo", json!(1))["state"], "completed");
    is_as_before(&daemon, before);
    leaves_nothing(daemon);
}

#[test]
fn a_worker_over_its_soft_limit_is_asked_and_told_of_and_replaced_after_its_task() {
    let _guard = among_others();
    let daemon = Daemon::start(&config("auto", &ballast(&["ballast"], "")));
    let mut ballast = Ballast::start_with(&daemon, "ballast", 100 * MIB, json!({}));
    let id = daemon.task(&ballast.task)["workerId"].clone();
    assert_eq!(daemon.logged("WORKER_SOFT_LIMIT").len(), 0);
    ballast.hold(230 * MIB);
    let line = until("it is told of", || daemon.logged("WORKER_SOFT_LIMIT").pop());
    assert_eq!((&line["worker"], &line["agent"]), (&id, &json!("ballast")), "{line}");
    assert_eq!(line["softLimitBytes"], 200 * MIB, "{line}");
    assert!(line["rssBytes"].as_u64().is_some_and(|rss| (200 * MIB..=250 * MIB).contains(&rss)), "{line}");
    soon("it is asked to free what it can", || daemon.log_text().contains("ballast heard of garbage"));
    let workers = || daemon.get("/v1/workers").expect(200).json()["workers"].clone();
    soon("all of it is seen", || workers()[0]["rssBytes"].as_u64().is_some_and(|rss| rss > 230 * MIB));
    assert_eq!(daemon.task(&ballast.task)["state"], "running", "a soft limit ends nothing");
    daemon.run_task("echo", json!("others work"));
    assert_eq!(daemon.logged("WORKER_SOFT_LIMIT").len(), 1, "it is told once");

    // A task that keeps what it has: tests/agents/ballast gives back at the end, so its worker may stay.
    ballast.end();
    assert_eq!(daemon.finished(&ballast.task)["state"], "completed");
    soon("no fat worker is left", || {
        let fat = |worker: &Value| worker["rssBytes"].as_u64().is_some_and(|rss| rss > 200 * MIB);
        !workers().as_array().expect("a list").iter().any(fat)
    });
    let again = Ballast::start_with(&daemon, "ballast", MIB, json!({}));
    again.end();
    assert_eq!(daemon.finished(&again.task)["state"], "completed");
    leaves_nothing(daemon);
}

#[test]
fn who_only_observes_or_is_soft_kills_nobody_over_a_hard_limit() {
    let _guard = among_others();
    for mode in ["observe", "soft"] {
        for cgroup in ["off", "auto"] {
            let more = format!("[memory]\nmode = {mode:?}\n");
            let config = config(cgroup, "").replacen("[memory]\n", &more, 1);
            let daemon = Daemon::start(&config);
            let task = daemon.run_task("sleeper", json!({ "ms": 500, "mb": HARD_MIB + 50 }));
            assert_eq!(task["state"], "completed", "{mode}, cgroup {cgroup}: {task}");
            leaves_nothing(daemon);
        }
    }
}

#[test]
fn a_leak_costs_its_own_task_and_everything_else_completes() {
    let _guard = among_others();
    let config = config("auto", &leaking(&[512])).replace("[memory]\n", "[memory]\nlimit_mb = 512\n");
    let daemon = Daemon::start(&config.replace("max = 3", "max = 4"));
    let others: Vec<String> = (0..2).map(|_| daemon.accept("sleeper", json!({ "ms": 1500, "mb": 20 }))).collect();
    for other in &others {
        daemon.in_state(other, &["running"]);
    }
    let leak = daemon.accept("leak-512", json!(1));
    let echoes: Vec<String> = (0..3).map(|n| daemon.accept("echo", json!(n))).collect();
    let dead = daemon.finished(&leak);
    let code = dead["error"]["code"].as_str().unwrap_or("none");
    assert!(["worker_oom", "memory_emergency"].contains(&code), "{dead}");
    for task in others.iter().chain(&echoes) {
        let done = daemon.finished(task);
        assert_eq!((&done["state"], &done["attempt"]), (&json!("completed"), &json!(1)), "{done}");
    }
    soon("/health is ok", || {
        let health = daemon.get("/health");
        health.status == 200 && health.json()["status"] == "ok"
    });
    leaves_nothing(daemon);
}

/// Resident memory of the daemon and its whole tree, every 10 ms for as long as `work` takes; the most and how often.
fn watched(daemon: &Daemon, work: impl FnOnce()) -> (u64, usize) {
    let (stop_tx, stop_rx) = mpsc::sync_channel::<()>(0);
    let daemon_pid = daemon.pid();
    std::thread::scope(|scope| {
        let sampler = scope.spawn(move || {
            let (mut most, mut samples) = (0, 0);
            while stop_rx.recv_timeout(Duration::from_millis(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
                let tree = descendants(daemon_pid).into_iter().chain([daemon_pid]);
                most = tree.filter_map(rss).sum::<u64>().max(most);
                samples += 1;
            }
            (most, samples)
        });
        work();
        drop(stop_tx);
        sampler.join().expect("it only reads")
    })
}

/// Of a process that may have ended meanwhile.
fn rss(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())?;
    Some(kib << 10)
}

#[test]
fn a_small_installation_stays_under_512_mib_and_under_1_gib_in_a_burst() {
    let _guard = among_others();
    let config = format!(
        "[memory]\nlimit_mb = 512\n[queue]\nmax_depth = 10\npriority_limits = {{ normal = 10 }}\n\
         [[schedules]]\nname = \"beat\"\nagent = \"heartbeat\"\nevery_s = 1\n{}{}{}{}",
        agent("heartbeat", "scripts/agents/heartbeat", ""),
        worker("echo", "scripts/agents/echo.py", ""),
        worker("logstats", "scripts/agents/logstats", ""),
        worker("render", "scripts/agents/render", "runtime = \"node\""),
    );
    let daemon = Daemon::start(&config);
    let page = "# A title\n\nSome *text*.\n\n".repeat(2000);
    let render = |daemon: &Daemon| {
        let response = daemon.post("/v1/agents/render/tasks?wait=30", page.clone());
        assert_eq!(response.status, 200, "{}", response.text());
    };
    let beats = || metric(&daemon, "kurultai_tasks_completed_total{agent=\"heartbeat\"}");
    let (steady, samples) = watched(&daemon, || {
        for n in 0..20 {
            render(&daemon);
            assert_eq!(daemon.run_task("echo", json!(n))["state"], "completed");
        }
        soon("a beat has come", || beats() >= 1.0);
    });
    println!("steady: {} MiB at most, in {samples} samples", steady >> 20);
    assert!(samples >= 10 && steady < 512 * MIB, "{steady} bytes in {samples} samples");
    let (burst, samples) = watched(&daemon, || {
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| render(&daemon));
            }
        });
    });
    println!("burst: {} MiB at most, in {samples} samples", burst >> 20);
    assert!(burst < 1024 * MIB, "{burst} bytes in {samples} samples");
    assert_eq!(metric(&daemon, "kurultai_tasks_completed_total{agent=\"render\"}"), 30.0);
    daemon.stop();
}

#[test]
fn what_an_agent_needs_is_remembered_through_a_restart() {
    let _guard = among_others();
    let config = "[memory]\nlimit_mb = 400\ncheck_interval_ms = 50\n[workers]\nmax = 3\n".to_owned()
        + &ballast(&["big"], "max_workers = 2\n");
    let big = |daemon: &Daemon| Ballast::submit(daemon, "big", 220 * MIB, json!({}));
    let daemon = Daemon::start(&config);
    let first = big(&daemon);
    first.is_held(&daemon);
    soon("it is seen", || Memory::of(&daemon).is_some_and(|memory| memory.usage > 220 * MIB));
    first.end();
    daemon.finished(&first.task);
    let daemon = daemon.stop().start();
    let mut one = big(&daemon);
    let other = big(&daemon);
    one.is_held(&daemon);
    let state = |task: &str| daemon.task(task)["state"].clone();
    // With each reading it is looked whether there is room.
    for mib in [220, 225, 230] {
        one.hold(mib * MIB);
        let is_seen = || Memory::of(&daemon).is_some_and(|memory| memory.usage > mib * MIB);
        never_until(
            "the other one starts beside it",
            || Some(state(&other.task)).filter(|state| state != "queued"),
            is_seen,
        );
    }
    assert_eq!(state(&one.task), "running");
    let why = daemon.get(&format!("/v1/tasks/{}/why", other.task)).expect(200).json();
    let figures = why["waitsFor"]["text"].as_str().expect("words");
    assert!(figures.contains("of the 360 MiB of the budget up to the reject line"), "{why}");
    let told = |decision: &&Value| decision["event"] == "TASK_WAITING";
    assert_eq!(why["decisions"].as_array().expect("a list").iter().filter(told).count(), 1, "{why}");
    one.end();
    assert_eq!(daemon.finished(&one.task)["state"], "completed");
    assert_eq!(daemon.finished(&other.task)["state"], "completed");
    assert_eq!(crossings_up(&daemon), 0.0, "memory never became short");
    daemon.stop();
}

fn crossings_up(daemon: &Daemon) -> f64 {
    metric(daemon, "kurultai_memory_threshold_crossings_total{level=\"reject\",direction=\"up\"}")
}
