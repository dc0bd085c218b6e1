//! Whole trees: nothing a worker started outlives it, and nothing of ours outlives the daemon.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::time::Duration;

use super::bench::*;
use crate::core::order::{Order, Report};
use crate::core::settings::AgentMode;
use crate::sys::poll::PollSet;
use crate::sys::process::{Signal, open_pidfd, send_signal};
use crate::worker::guardian;

/// Starts a process that has left the session, the group and the environment of its parent, and puts its pid into
/// `pid`: a double fork with `setsid`. It says its pid and then keeps nothing open.
const ESCAPE: &str =
    "pid=$(setsid -f env -i /bin/sh -c 'echo $$; exec >/dev/null 2>&1 </dev/null; while :; do sleep 1000; done')";
const TELL: &str = r#"echo '{"type":"MEMORY","rss":'$pid'}'"#;

fn started_at(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19).map(str::to_owned)
}

/// The process, or another of that number, is not there.
fn is_gone_since(pid: u32, start: &Option<String>) -> bool {
    start.is_some() && started_at(pid) != *start
}

#[test]
fn what_left_the_session_dies_with_its_worker() {
    let mut bench = Bench::new();
    for (end, how) in [("exit 0", "an exit"), ("kill -SEGV $$", "a crash"), ("read -r never", "a kill")] {
        let worker = bench.ready(&format!("{ESCAPE}; {TELL}; read -r task; sleep 1000 & {end}"));
        let pid = bench.told_pid(worker);
        let start = started_at(pid);
        assert!(start.is_some(), "{how}: the escaped process is not there");
        bench.assign(worker, task(b"1"));
        if how == "a kill" {
            bench.send(worker, Order::Kill);
        }
        bench.exited(worker);
        assert!(is_gone_since(pid, &start), "after {how} the escaped process lives on");
    }
}

#[test]
fn a_background_process_does_not_keep_a_finished_task() {
    let mut bench = Bench::new();
    // It holds standard output open: the result is complete all the same.
    let exit = bench.run("echo early; sleep 1000 & echo $!", b"");
    assert_eq!(exit.status, Some(0));
    let Some(crate::core::task::ResultPlace::Inline(bytes)) = exit.result.map(|result| result.place) else {
        panic!("no small result")
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let pid: u32 = text.strip_prefix("early\n").unwrap().trim().parse().unwrap();
    assert!(is_gone(pid), "{pid} lives on");
}

#[test]
fn the_end_of_one_worker_leaves_the_helpers_of_another_alone() {
    let mut bench = Bench::new();
    let keeper = bench.ready(&format!("{ESCAPE}; {TELL}; read -r shutdown"));
    let helper = bench.told_pid(keeper);
    let start = started_at(helper);
    let exit = bench.run("sleep 1000 & exit 0", b"");
    assert_eq!(exit.status, Some(0));
    assert_eq!(started_at(helper), start, "the helper was killed with another worker");
    bench.send(keeper, Order::Shutdown);
    assert_eq!(bench.exited(keeper).status, Some(0));
    assert!(is_gone_since(helper, &start), "the helper outlives its own worker");
}

#[test]
fn stopping_kills_everything_and_tells_of_it() {
    let mut bench = Bench::new();
    let worker = bench.ready(&format!("trap '' TERM; {ESCAPE}; {TELL}; while :; do sleep 1000; done"));
    let pid = bench.told_pid(worker);
    let start = started_at(pid);
    bench.handle.stop();
    assert_eq!(bench.exited(worker).signal, Some(libc::SIGKILL));
    assert!(is_gone_since(pid, &start));
    assert!(bench.reports_rx.recv().is_err(), "the supervisor has not ended");
    let order = Order::CollectGarbage;
    assert!(bench.handle.send(worker, order).is_err(), "an order was taken by nobody");
}

#[test]
fn a_supervisor_whose_handle_is_gone_stops() {
    let mut bench = Bench::new();
    let worker = bench.ready("sleep 1000");
    let unrelated = Bench::new();
    bench.handle = unrelated.handle.clone();
    assert_eq!(bench.exited(worker).signal, Some(libc::SIGKILL));
    assert!(bench.reports_rx.recv().is_err(), "the supervisor has not ended");
}

const KILLED: &str = "a_daemon_killed_with_kill_leaves_nothing_behind";

#[test]
fn a_daemon_killed_with_kill_leaves_nothing_behind() {
    if is_alone(KILLED) {
        return be_a_daemon();
    }
    let mut daemon = start_alone(KILLED, module_path!());
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pids: Vec<u32> = lines
        .by_ref()
        .find_map(|line| {
            let (_, pids) = line.split_once("pids ")?;
            Some(pids.split(' ').map(|pid| pid.parse().unwrap()).collect())
        })
        .expect("the daemon did not start");
    let watched: Vec<_> = pids.iter().map(|pid| (*pid, open_pidfd(*pid).unwrap())).collect();
    // What a terminal or a service manager sends to all must not end the guardian first.
    send_signal(watched[0].1.as_fd(), Signal::Terminate);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    for (pid, pidfd) in watched {
        let mut set = PollSet::default();
        let place = set.readable(Some(pidfd.as_fd()));
        set.wait(Some(Duration::from_secs(60))).unwrap();
        assert!(set.is_ready(place), "{pid} of {pids:?} (guardian, worker, its child, escaped child) lives on");
    }
}

/// Has a guardian and a worker with children, tells their pids and waits to be killed.
fn be_a_daemon() {
    let guardian = guardian::start().unwrap();
    let mut bench = Bench::with(guardian.instance());
    let worker = bench.spawn(
        sh(
            AgentMode::Persistent,
            &format!(
                "read -r hello; echo '{{\"type\":\"READY\",\"protocol\":1}}'; {ESCAPE}; {TELL}; sleep 1000 & pid=$!; {TELL}; wait"
            ),
        ),
        None,
    );
    let pid = bench.spawned(worker);
    assert!(matches!(bench.next(worker), Report::Ready { .. }));
    let (escaped, child) = (bench.told_pid(worker), bench.told_pid(worker));
    println!("pids {} {pid} {child} {escaped}", guardian.pid());
    // Only the kill ends this.
    let _ = bench.reports_rx.recv();
    panic!("the worker ended before the daemon");
}

const RETURNED: &str = "descriptors_processes_and_threads_are_given_back";

#[test]
fn descriptors_processes_and_threads_are_given_back() {
    if !is_alone(RETURNED) {
        return run_alone(RETURNED, module_path!());
    }
    let entries = |directory: &str| std::fs::read_dir(directory).unwrap().count();
    let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
    {
        let guardian = guardian::start().unwrap();
        let mut bench = Bench::with(guardian.instance());
        for round in 0..20 {
            bench.run(&format!("{ESCAPE}; sleep 1000 & echo {round}; head -c 5000 /dev/zero"), b"payload");
            let worker = bench.ready("exec >&2; nothing-like-this");
            bench.exited(worker);
            let worker = bench.spawn(agent(AgentMode::Oneshot, &["/no/such/program"]), Some(task(b"")));
            assert!(matches!(bench.next(worker), Report::SpawnFailed { .. }));
        }
        // A limit of 64 descriptors is used up by files; the failure is one task's, and passes.
        let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        assert!(files.len() < 64, "no limit was set");
        let worker = bench.spawn(sh(AgentMode::Oneshot, "exit 0"), Some(task(b"")));
        match bench.next(worker) {
            Report::SpawnFailed { error } => assert!(error.contains("raise its RLIMIT_NOFILE"), "{error}"),
            other => panic!("{other:?}"),
        }
        drop(files);
        assert_eq!(bench.run("exit 0", b"").status, Some(0));
    }
    assert_eq!(entries("/proc/self/fd"), descriptors);
    assert_eq!(entries("/proc/self/task"), threads);
    let us = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/self/task/{us}/children")).unwrap();
    assert_eq!(children, "", "children are left");
}
