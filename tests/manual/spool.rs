//! kurultai-spool(5).

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use kurultai::core::attempts::Attempt;
use kurultai::core::breaker::{BreakerMemory, RememberedPhase};
use kurultai::core::event::Record;
use kurultai::core::ids::{TaskId, WorkerId};
use kurultai::core::ledger::FinishedTask;
use kurultai::core::task::{
    Failure, FailureCode, Outcome, Payload, PayloadKind, Priority, ResultPlace, ResultRef, Stored, TaskSpec,
};
use kurultai::spool::{DamageKind, Spool};
use serde_json::Value;

use super::page::{SPOOL, entries, names, section};

fn spec(payload: Payload) -> TaskSpec {
    TaskSpec {
        agent: Arc::from("wc"),
        priority: Priority::High,
        payload,
        payload_kind: PayloadKind::Json,
        timeout: Duration::from_secs(5),
        max_retries: 3,
        preemptible: true,
        skippable: true,
        idempotency_key: Some(Arc::from("k")),
        request_id: Arc::from("r"),
        schedule: Some(Arc::from("s")),
    }
}

fn failure() -> Failure {
    Failure {
        stack: Some("here".to_owned()),
        exit_status: Some(1),
        signal: Some(9),
        stderr_tail: Some("oh".to_owned()),
        ..Failure::new(FailureCode::AgentFailed, "no luck")
    }
}

fn finished(task: u64, outcome: Outcome) -> Record {
    Record::Finished(Arc::new(FinishedTask {
        id: TaskId(task),
        spec: spec(Payload::File(Stored::unchecked(7))),
        created_ms: 1,
        started_ms: Some(2),
        finished_ms: 3,
        attempt: 2,
        attempts: [Attempt::of(1, Some(1), 2, &failure())].into_iter().collect(),
        preemptions: 1,
        run_time: Some(Duration::from_secs(1)),
        peak_rss_bytes: Some(4096),
        worker: Some(WorkerId(1)),
        outcome,
    }))
}

/// One of every kind, with every field.
fn records() -> Vec<Record> {
    let task = TaskId(1);
    let bytes = |bytes: &[u8]| Payload::Inline(Arc::from(bytes));
    let stored = Stored { bytes: 5, crc: Some(77) };
    let accepted =
        |task, payload| Record::Accepted { task: TaskId(task), spec: Arc::new(spec(payload)), created_ms: 1 };
    let breaker = |phase| Record::Breaker { name: Arc::from("b"), memory: BreakerMemory { phase, openings: 2 } };
    vec![
        accepted(1, bytes(b"text")),
        accepted(2, bytes(b"\xff")),
        accepted(3, Payload::File(stored)),
        Record::Started { task, started_ms: 2 },
        Record::Returned {
            task,
            retries: 1,
            memory_deaths: 1,
            by_memory: true,
            preemptions: 1,
            preempted: true,
            attempts: [Attempt::of(1, Some(1), 2, &failure())].into_iter().collect(),
        },
        Record::CancelRequested { task },
        breaker(RememberedPhase::Closed),
        breaker(RememberedPhase::HalfOpen),
        breaker(RememberedPhase::Open { until_ms: 9 }),
        breaker(RememberedPhase::Forced),
        Record::Footprint { agent: Arc::from("wc"), peak_bytes: 1 },
        finished(1, Outcome::Completed(ResultRef { place: ResultPlace::File(stored), is_json: true })),
        finished(2, Outcome::Failed(Box::new(failure()))),
        finished(3, Outcome::Cancelled),
        finished(4, Outcome::Skipped),
        finished(5, Outcome::Evicted),
        Record::Forgotten { task },
    ]
}

fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                keys(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Words after a macro, as in `.Va agent , priority`.
fn marked(text: &str, kind: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| {
        let line = line.strip_prefix(".It ").unwrap_or(line);
        line.split_once(&format!("{kind} "))
            .filter(|(before, _)| before.is_empty() || *before == ".Pq " || *before == ".")
    });
    lines.flat_map(|(_, words)| words.split([' ', ',']).filter(|word| word.len() > 1).map(str::to_owned)).collect()
}

#[test]
fn the_spool_page_has_every_kind_of_line_and_every_field_of_the_journal_and_no_other() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = Spool::open(root.path(), false).expect("opens");
    spool.append(records().iter()).expect("written");
    let journal = fs::read_to_string(root.path().join("journal")).expect("text");
    let (mut ops, mut fields) = (BTreeSet::new(), BTreeSet::new());
    for line in journal.lines() {
        let (seal, json) = line.split_once(' ').expect("a seal and JSON");
        assert_eq!(seal, format!("{:08x}", crc32fast::hash(json.as_bytes())), "{json}");
        let value: Value = serde_json::from_str(json).expect("JSON");
        ops.insert(value["op"].as_str().expect("it says what it is").to_owned());
        keys(&value, &mut fields);
    }
    let page = section(SPOOL, ".Sh JOURNAL");
    let listed: BTreeSet<String> =
        names(page.split(".Ss Tasks").next().expect("before"), "Cm").into_iter().map(str::to_owned).collect();
    assert_eq!(listed, ops);
    let states = ["cancelled", "skipped", "evicted", "completed", "failed"];
    let ends = states
        .into_iter()
        .filter(|end| page.contains(&format!(".Cm {end} ")) || page.contains(&format!(".Cm {end}\n")));
    assert_eq!(ends.count(), states.len());
    // How an end is named is a field too, where it has more to say.
    fields.retain(|field| !states.contains(&field.as_str()));
    assert_eq!(marked(page, "Va"), fields);
}

#[test]
fn the_spool_page_has_every_kind_of_damage() {
    let kinds: BTreeSet<&str> = DamageKind::ALL.into_iter().map(DamageKind::name).collect();
    assert_eq!(names(section(SPOOL, ".Sh DAMAGE"), "Cm"), kinds);
}

#[test]
fn the_spool_page_names_what_a_state_directory_holds() {
    let root = tempfile::tempdir().expect("a directory");
    fs::write(root.path().join("journal"), "damaged\n").expect("written");
    drop(Spool::open(root.path(), false).expect("opens"));
    let there: BTreeSet<String> = fs::read_dir(root.path())
        .expect("there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    let files = section(SPOOL, ".Sh FILES");
    assert_eq!(names(files, "Pa").into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), there);
    let (_, format) = entries(files, "Pa").into_iter().find(|(name, _)| *name == "format").expect("listed");
    let version = fs::read_to_string(root.path().join("format")).expect("text");
    assert!(format.contains(&format!("now {};", version.trim())), "{format}");
    assert!(SPOOL.contains(&format!("\n.It {}\nThis page.", version.trim())));
}
