//! What a client may be told while the disk is slow, or fails.

use std::sync::Arc;
use std::time::Duration;

use super::sim::{clock, s, settings, task};
use crate::core::ids::TaskId;
use crate::core::task::{TaskSpec, TaskState};
use crate::simulation::desk::{Answer, Caller, Desk, Said};
use crate::simulation::spool::Spool;

fn desk() -> Desk {
    Desk::open(settings(), clock(Duration::ZERO), Spool::default())
}

fn keyed() -> TaskSpec {
    TaskSpec { idempotency_key: Some(Arc::from("k")), ..task("once") }
}

fn replies(desk: &mut Desk) -> Vec<(u64, Answer)> {
    let said = desk.take().into_iter();
    said.filter_map(|said| if let Said::Reply(Caller(caller), answer) = said { Some((caller, answer)) } else { None })
        .collect()
}

fn accepted(task: u64, is_duplicate: bool) -> Answer {
    Answer::Submitted { task: TaskId(task), state: TaskState::Running, is_duplicate }
}

#[test]
fn a_wait_that_has_run_out_is_answered_once_the_task_is_on_the_disk() {
    let mut desk = desk();
    desk.submit(clock(s(0)), Caller(1), task("once"), s(10));
    desk.wake(clock(s(10)));
    assert_eq!(replies(&mut desk), [], "a power cut would lose it");
    desk.sync(true);
    assert_eq!(replies(&mut desk), [(1, accepted(1, false))]);
}

#[test]
fn a_known_key_is_answered_once_its_task_is_on_the_disk() {
    let mut desk = desk();
    desk.submit(clock(s(0)), Caller(1), keyed(), s(10));
    desk.submit(clock(s(0)), Caller(2), keyed(), s(0));
    assert_eq!(replies(&mut desk), [], "a power cut would lose it");
    desk.sync(true);
    assert_eq!(replies(&mut desk), [(2, accepted(1, true))]);
}

#[test]
fn a_known_task_goes_on_though_something_else_cannot_be_written() {
    let mut desk = desk();
    let mut short = settings();
    short.retention.age = s(60);
    desk.hear(clock(s(0)), crate::core::event::Event::Reconfigured(Box::new(short)));
    desk.submit(clock(s(0)), Caller(1), keyed(), s(0));
    desk.submit(clock(s(0)), Caller(2), task("once"), s(0));
    desk.cancel(clock(s(0)), Caller(3), TaskId(2));
    let exit = crate::core::order::Report::Exited(Box::default());
    let worker = crate::core::ids::WorkerId(2);
    let report = crate::core::order::WorkerReport { worker, report: exit };
    desk.hear(clock(s(0)), crate::core::event::Event::Worker(report));
    desk.sync(true);
    desk.take();
    desk.spool.is_failing = true;
    // The cancelled one is forgotten in the same turn, which cannot be written.
    desk.submit(clock(s(60)), Caller(4), keyed(), s(0));
    assert!(desk.has_trouble());
    desk.sync(true);
    assert_eq!(replies(&mut desk), [(4, accepted(1, true))]);
    assert_eq!(desk.core.task(TaskId(1)).map(|task| task.state), Some(TaskState::Running));
    desk.submit(clock(s(60)), Caller(5), task("once"), s(0));
    assert_eq!(replies(&mut desk), [(5, Answer::StorageFull)]);
}

#[test]
fn what_cannot_be_written_is_refused_and_does_not_run() {
    let mut desk = desk();
    desk.spool.is_failing = true;
    desk.submit(clock(s(0)), Caller(1), task("calm"), s(0));
    desk.sync(true);
    assert_eq!(replies(&mut desk), [(1, Answer::StorageFull)]);
    assert_eq!(desk.core.task(TaskId(1)).map(|task| task.state), Some(TaskState::Cancelled));
    desk.spool.is_failing = false;
    desk.wake(clock(s(2)));
    assert!(!desk.has_trouble(), "writing is tried again");
}
