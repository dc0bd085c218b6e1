//! A crash and an error at every system call that touches the state directory: strace(1) counts them in a run without
//! faults, and then strikes at one of them in each of many runs.
//!
//! Every so many of them, from a seed that is printed; `make faults` takes them all.

mod common;
mod faults {
    pub mod points;
    pub mod script;
    pub mod start;
    pub mod traced;
}

use common::{Connection, Request, until};
use std::sync::atomic::{AtomicUsize, Ordering};

use faults::points::{Fault, Point, chosen, points};
use faults::script::Script;
use faults::start::Start;
use faults::traced::{Phase, Traced};
use serde_json::Value;

/// What a test for every day takes.
const POINTS: usize = 8;

/// Runs at once.
const LANES: usize = 4;

#[test]
fn a_crash_at_any_step_on_the_disk_loses_nothing_that_was_promised() {
    let start = Start::make();
    let all = points(&start, |_| vec![Fault::Kill]);
    let strikes = each(&chosen(&all, POINTS), |point| Script::of(&start, point).crash());
    println!("{} points: {strikes} crashes of {} runs", all.len(), chosen(&all, POINTS).len());
    assert!(strikes > 0, "no fault has struck");
}

#[test]
fn an_error_at_any_step_on_the_disk_is_told_and_passes() {
    let start = Start::make();
    let all = points(&start, |call| match call {
        // A full disk is told when something is to be put on it, one that has become read-only to whoever names a file.
        "openat" => vec![Fault::Eio, Fault::Enospc, Fault::Erofs, Fault::Emfile],
        "write" | "fsync" | "fdatasync" => vec![Fault::Eio, Fault::Enospc],
        _ => vec![Fault::Eio, Fault::Erofs],
    });
    let strikes = each(&chosen(&all, POINTS), |point| Script::of(&start, point).stumble());
    println!("{} points: {strikes} errors of {} runs", all.len(), chosen(&all, POINTS).len());
    assert!(strikes > 0, "no fault has struck");
}

#[test]
fn what_was_refused_for_want_of_a_sync_does_not_run_after_a_kill() {
    let start = Start::make();
    let options = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=1+"];
    let options: Vec<String> = options.into_iter().map(str::to_owned).collect();
    let traced = Traced::start(start.copy(), Phase::Work, &options).unwrap_or_else(|(_, status)| panic!("{status}"));
    let socket = traced.home().socket();
    let ask = |request: &Request| Connection::unix(&socket).expect("it listens").ask(request);
    let request = Request::post("/v1/agents/cat/tasks", "refused");
    let refused = ask(&request);
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "storage_full"), "{}", refused.text());
    let listed = |tasks: &Value| -> Vec<(String, String)> {
        let text = |task: &Value, name: &str| task[name].as_str().expect("text").to_owned();
        let tasks = tasks["tasks"].as_array().expect("a list");
        tasks.iter().map(|task| (text(task, "id"), text(task, "state"))).collect()
    };
    let is_cancelled = |(_, state): &(String, String)| state == "cancelled";
    let withdrawn = until("it is withdrawn", || {
        let tasks = ask(&Request::get("/v1/tasks?agent=cat")).json();
        listed(&tasks).into_iter().find(is_cancelled)
    });
    traced.kill();
    let (home, _) = traced.ended();
    let daemon = home.start();
    let after = listed(&daemon.get("/v1/tasks?agent=cat").json());
    assert!(after.contains(&withdrawn), "{withdrawn:?} is not as it was: {after:?}");
    daemon.kill();
}

/// How many of the points have been hit: what depends on the moment, such as which thread takes a call, may pass.
fn each(points: &[Point], strikes: impl Fn(&Point) -> bool + Sync) -> usize {
    let (next, struck) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    println!("{point}");
                    if strikes(point) {
                        struck.fetch_add(1, Ordering::Relaxed);
                    } else {
                        println!("{point}: not reached");
                    }
                }
            });
        }
    });
    struck.into_inner()
}
