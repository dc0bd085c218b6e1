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

use std::sync::atomic::{AtomicUsize, Ordering};

use faults::points::{Fault, Point, chosen, points};
use faults::script::Script;
use faults::start::Start;

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
