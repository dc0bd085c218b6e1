use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::core::attempts::{Attempt, Attempts};
use crate::core::restore::UnfinishedState;
use crate::core::task::{Failure, FailureCode, Payload, PayloadKind, Priority, TaskSpec};
use std::io::Write;

/// Waits for a moment: a process that another test starts has all our descriptors until its exec, the lock among them.
pub(super) fn open(root: &Path, fsync: bool) -> (Spool, Restored) {
    for _ in 0..500 {
        match Spool::open(root, fsync) {
            Err(SpoolError::InUse { .. }) => drop(crossbeam::channel::after(Duration::from_millis(20)).recv()),
            opened => return opened.expect("opens"),
        }
    }
    panic!("{} stays in use", root.display());
}

pub(super) fn spec(payload: &[u8]) -> Arc<TaskSpec> {
    Arc::new(TaskSpec {
        agent: Arc::from("wc"),
        priority: Priority::High,
        payload: Payload::Inline(Arc::from(payload)),
        payload_kind: PayloadKind::Raw,
        timeout: Duration::from_millis(1500),
        max_retries: 2,
        preemptible: true,
        skippable: false,
        idempotency_key: Some(Arc::from("k")),
        request_id: Arc::from("r-1"),
        schedule: None,
    })
}

pub(super) fn accepted(task: u64, payload: &[u8]) -> Record {
    Record::Accepted { task: TaskId(task), spec: spec(payload), created_ms: 77 }
}

#[test]
fn what_was_accepted_is_there_after_reopening_and_numbers_go_on() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, restored) = open(root.path(), true);
    assert_eq!((restored.next_task, restored.unfinished.len()), (1, 0));
    let task = spool.ids().take();
    let failure = Failure::new(FailureCode::Timeout, "too slow");
    let attempts: Attempts = [Attempt::of(1, Some(78), 79, &failure)].into_iter().collect();
    let records = [
        accepted(task.0, b"not utf8: \xff"),
        Record::Started { task, started_ms: 78 },
        accepted(2, b"text"),
        Record::Returned {
            task,
            retries: 1,
            memory_deaths: 0,
            by_memory: true,
            preemptions: 2,
            preempted: false,
            attempts: attempts.clone(),
        },
    ];
    spool.append(records.iter()).expect("written");
    drop(spool);

    let (spool, restored) = open(root.path(), true);
    assert_eq!(restored.next_task, 3);
    assert_eq!(spool.ids().take(), TaskId(3));
    let [first, second] = &restored.unfinished[..] else { panic!("two tasks: {restored:?}") };
    assert_eq!(first.spec, spec(b"not utf8: \xff"));
    assert_eq!((first.state, first.retries, first.preemptions), (UnfinishedState::Returned, 1, 2));
    assert!(first.by_memory && !second.by_memory);
    assert_eq!(first.attempts, attempts);
    assert_eq!((second.id, second.state, second.created_ms), (TaskId(2), UnfinishedState::Queued, 77));
}

#[test]
fn a_journal_from_before_attempts_were_kept_is_read() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = open(root.path(), false);
    let attempts = Attempts::default();
    let returned = Record::Returned {
        task: TaskId(1),
        retries: 1,
        memory_deaths: 0,
        by_memory: false,
        preemptions: 0,
        preempted: false,
        attempts,
    };
    spool.append([accepted(1, b"a"), returned].iter()).expect("written");
    drop(spool);
    let journal = std::fs::read_to_string(root.path().join("journal")).expect("text");
    assert!(!journal.contains("attempts"), "without any, the line is as it was: {journal}");
    let (_spool, restored) = open(root.path(), false);
    assert_eq!((restored.damaged_lines, restored.unfinished[0].retries), (0, 1));
}

#[test]
fn a_second_daemon_is_told_that_the_directory_is_in_use() {
    let root = tempfile::tempdir().expect("a directory");
    let _first = open(root.path(), false);
    assert!(matches!(Spool::open(root.path(), false), Err(SpoolError::InUse { .. })));
}

#[test]
fn damaged_lines_are_set_aside_and_the_others_count() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = open(root.path(), false);
    spool.append([accepted(1, b"a"), accepted(2, b"b")].iter()).expect("written");
    drop(spool);
    let path = root.path().join("journal");
    let mut journal = std::fs::read_to_string(&path).expect("text");
    journal = journal.replacen("\"task\":1", "\"task\":9", 1);
    journal.push_str("00000000 {\"op\":\"acc");
    std::fs::write(&path, &journal).expect("written");

    let (_spool, restored) = open(root.path(), false);
    assert_eq!(restored.damaged_lines, 2);
    assert_eq!(restored.unfinished.iter().map(|task| task.id.0).collect::<Vec<_>>(), [2]);
    let aside = std::fs::read_to_string(root.path().join("damaged/journal-journal.1")).expect("kept");
    assert_eq!(aside, journal, "whole, as it was found");
}

#[test]
fn files_nobody_owns_are_removed_and_a_dropped_payload_leaves_none() {
    let root = tempfile::tempdir().expect("a directory");
    let (spool, _) = open(root.path(), false);
    let files = spool.files();
    let mut payload = files.create_payload(TaskId(5)).expect("created");
    payload.write_all(b"x").expect("written");
    drop(payload);
    assert!(!files.payload_path(TaskId(5)).exists());
    files.create_payload(TaskId(6)).expect("created").commit().expect("committed");
    files.create_result(TaskId(6)).expect("created");
    assert!(files.payload_path(TaskId(6)).exists());
    let cut_short = files.create_payload(TaskId(7)).expect("created");
    let aside = cut_short.path().to_path_buf();
    // As after a kill: nobody cleans up.
    std::mem::forget(cut_short);
    drop(spool);
    let _reopened = open(root.path(), false);
    assert!(!aside.exists(), "what was being received");
    assert!(!files.payload_path(TaskId(6)).exists() && !files.result_path(TaskId(6)).exists());
}

#[test]
fn a_format_of_the_future_is_refused_and_left_alone() {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::write(root.path().join("format"), "3\n").expect("written");
    std::fs::write(root.path().join("journal"), "what only that one knows\n").expect("written");
    assert!(matches!(Spool::open(root.path(), false), Err(SpoolError::Format { found: 3, .. })));
    assert_eq!(std::fs::read_to_string(root.path().join("format")).expect("there"), "3\n");
    assert_eq!(std::fs::read_to_string(root.path().join("journal")).expect("there"), "what only that one knows\n");
}
