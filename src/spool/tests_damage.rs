//! What a disk does to a spool between two daemons.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use super::tests::{accepted, open, spec};
use super::*;
use crate::core::breaker::{BreakerMemory, RememberedPhase};
use crate::core::ledger::FinishedTask;
use crate::core::task::{Outcome, Payload, ResultPlace, ResultRef, Stored, TaskSpec};

fn payload(spool: &Spool, task: TaskId, bytes: &[u8]) -> Record {
    let mut file = spool.files().create_payload(task).expect("created");
    file.write_all(bytes).expect("written");
    let stored = file.commit().expect("committed");
    assert_eq!(stored, Stored { bytes: bytes.len() as u64, crc: Some(crc32fast::hash(bytes)) });
    let spec = Arc::new(TaskSpec { payload: Payload::File(stored), ..TaskSpec::clone(&spec(b"")) });
    Record::Accepted { task, spec, created_ms: 1 }
}

fn result(spool: &Spool, task: TaskId, bytes: &[u8]) -> Record {
    let mut file = spool.files().create_result(task).expect("created");
    file.write_all(bytes).expect("written");
    let stored = file.leave();
    spool.files().keep_result(task).expect("kept");
    Record::Finished(Arc::new(FinishedTask {
        id: task,
        spec: TaskSpec { payload: Payload::File(Stored::unchecked(1)), ..TaskSpec::clone(&spec(b"")) },
        created_ms: 1,
        started_ms: None,
        finished_ms: 1,
        attempt: 1,
        attempts: Default::default(),
        preemptions: 0,
        run_time: None,
        peak_rss_bytes: None,
        worker: None,
        outcome: Outcome::Completed(ResultRef { place: ResultPlace::File(stored), is_json: false }),
    }))
}

fn stored(task: &FinishedTask) -> Stored {
    match &task.outcome {
        Outcome::Completed(ResultRef { place: ResultPlace::File(stored), .. }) => *stored,
        outcome => panic!("{outcome:?}"),
    }
}

type Ruin = fn(&Path);

/// Ways to ruin a file, and what is said of it.
const RUINS: [(&str, Ruin, &str); 7] = [
    ("gone", |path| fs::remove_file(path).expect("there"), "missing"),
    ("empty", |path| fs::write(path, b"").expect("written"), "0 bytes"),
    ("truncated", |path| fs::write(path, b"whol").expect("written"), "4 bytes"),
    ("garbled", |path| fs::write(path, b"wh0le").expect("written"), "checksum"),
    ("longer", |path| fs::write(path, b"whole and more").expect("written"), "14 bytes"),
    (
        "a directory",
        |path| {
            fs::remove_file(path).expect("there");
            fs::create_dir(path).expect("made");
        },
        "no plain file",
    ),
    (
        "a link",
        |path| {
            fs::remove_file(path).expect("there");
            symlink("/etc/hostname", path).expect("made");
        },
        "no plain file",
    ),
];

#[test]
fn a_payload_that_is_not_what_was_accepted_is_set_aside_and_its_task_says_so() {
    for (ruin, act, reason) in RUINS {
        let root = tempfile::tempdir().expect("a directory");
        let (mut spool, _) = open(root.path(), true);
        let records = [payload(&spool, TaskId(1), b"whole"), payload(&spool, TaskId(2), b"whole")];
        spool.append(records.iter()).expect("written");
        let path = spool.files().payload_path(TaskId(1));
        drop(spool);
        act(&path);

        let (spool, restored) = open(root.path(), true);
        let [ruined, whole] = &restored.unfinished[..] else { panic!("{ruin}: {restored:?}") };
        let lost = ruined.lost.as_deref().unwrap_or_else(|| panic!("{ruin}: it was not found"));
        assert!(lost.contains(reason), "{ruin}: {lost}");
        assert_eq!(whole.lost, None, "{ruin}");
        assert_eq!(spool.files().found_damaged(DamageKind::Payload), 1, "{ruin}");
        let kept = root.path().join("damaged/payload-t-1.1");
        assert_eq!(fs::symlink_metadata(kept).is_ok(), ruin != "gone", "{ruin}");
        assert!(fs::symlink_metadata(&path).is_err(), "{ruin}: out of the way");
    }
}

#[test]
fn a_result_that_is_not_what_was_written_is_not_given_out() {
    for (ruin, act, reason) in RUINS {
        for while_running in [true, false] {
            let root = tempfile::tempdir().expect("a directory");
            let (mut spool, _) = open(root.path(), true);
            let record = result(&spool, TaskId(1), b"whole");
            spool.append([&record].into_iter()).expect("written");
            let path = spool.files().result_path(TaskId(1));
            let Record::Finished(task) = record else { unreachable!() };
            if !while_running {
                drop(spool);
                act(&path);
                spool = open(root.path(), true).0;
            } else {
                assert!(spool.files().open_result(TaskId(1), stored(&task)).is_ok(), "{ruin}");
                act(&path);
            }
            let files = spool.files();
            let lost = files.open_result(TaskId(1), stored(&task)).expect_err(ruin).to_string();
            assert!(lost.contains(if ruin == "gone" && while_running { "missing" } else { reason }), "{ruin}: {lost}");
            let again = files.open_result(TaskId(1), stored(&task)).expect_err(ruin).to_string();
            // It may have been forgotten since somebody heard of it.
            let count = u64::from(!(ruin == "gone" && while_running));
            assert_eq!(
                (again, files.found_damaged(DamageKind::Result)),
                (lost, count),
                "{ruin}: told again, counted once"
            );
        }
    }
}

#[test]
fn the_newest_whole_checkpoint_counts() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = open(root.path(), true);
    let task = TaskId(1);
    spool.append([accepted(1, b"a")].iter()).expect("written");
    let files = spool.files();
    files.keep_checkpoint(task).expect("there is none to keep");
    files.write_checkpoint(task, b"{\"at\":1}").expect("written");
    files.keep_checkpoint(task).expect("kept");
    files.write_checkpoint(task, b"{\"at\":2}").expect("written");
    assert_eq!(files.read_checkpoint(task).expect("there"), b"{\"at\":2}");
    drop(spool);
    let folder = root.path().join("checkpoints");
    // What a power cut makes of a file that was never synced.
    fs::write(folder.join("t-1.latest"), [0; 17]).expect("written");
    let (spool, restored) = open(root.path(), true);
    assert!(restored.unfinished[0].has_checkpoint);
    assert_eq!(spool.files().read_checkpoint(task).expect("there"), b"{\"at\":1}");
    assert_eq!(spool.files().found_damaged(DamageKind::Checkpoint), 1);
    drop(spool);
    fs::write(folder.join("t-1"), b"00000000 {\"at\":1}\n").expect("written");
    let (spool, restored) = open(root.path(), true);
    assert!(!restored.unfinished[0].has_checkpoint, "a wrong checksum");
    drop(spool);
    fs::write(folder.join("t-1"), b"{\"at\": 9}").expect("written");
    let (spool, restored) = open(root.path(), true);
    assert!(restored.unfinished[0].has_checkpoint, "as format 1 wrote it");
    assert_eq!(spool.files().read_checkpoint(task).expect("there"), b"{\"at\": 9}");
}

#[test]
fn whatever_stands_in_a_place_of_the_spool_it_opens_and_nothing_is_overwritten() {
    let folders = ["payloads", "checkpoints", "results"];
    let places = [&folders[..], &["journal", "format", "lock", "journal.tmp", "format.tmp"]].concat();
    for place in places {
        for (kind, make) in [
            ("an empty file", (|path| fs::write(path, b"").expect("written")) as fn(&Path)),
            ("garbage", |path| fs::write(path, b"\xff\x00 not ours\n").expect("written")),
            ("a directory", |path| fs::create_dir(path).expect("made")),
            ("a link to nowhere", |path| symlink("nowhere", path).expect("made")),
            ("a pipe", |path| crate::sys::file::make_pipe(path).expect("made")),
        ] {
            // Where a directory belongs.
            if kind == "a directory" && folders.contains(&place) {
                continue;
            }
            let root = tempfile::tempdir().expect("a directory");
            let path = root.path().join(place);
            make(&path);
            let (mut spool, restored) = open(root.path(), true);
            assert_eq!(restored.trouble, None, "{kind} as {place}");
            spool.append([accepted(1, b"a")].iter()).expect("written");
            spool.files().create_payload(TaskId(1)).expect("created").commit().expect("committed");
            let found: u64 = DamageKind::ALL.into_iter().map(|kind| spool.files().found_damaged(kind)).sum();
            drop(spool);
            // A file of that name is one that was being written, made anew each time.
            let is_file = kind == "an empty file" || kind == "garbage";
            let is_nothing = place == "lock" || (place.ends_with(".tmp") && is_file);
            assert_eq!(found, u64::from(!is_nothing), "{kind} as {place}");
            let kept = fs::read_dir(root.path().join("damaged")).map_or(0, Iterator::count);
            assert_eq!(kept as u64, found, "{kind} as {place}");
            assert_eq!(open(root.path(), true).1.unfinished.len(), 1, "{kind} as {place}");
        }
    }
}

#[test]
fn files_that_are_not_the_daemon_s_are_let_alone() {
    let root = tempfile::tempdir().expect("a directory");
    drop(open(root.path(), true));
    let foreign = ["payloads/README", "results/t-x", "checkpoints/t-1.old", "notes.txt"];
    for name in foreign {
        fs::write(root.path().join(name), b"mine").expect("written");
    }
    drop(open(root.path(), true));
    for name in foreign {
        assert_eq!(fs::read(root.path().join(name)).expect("there"), b"mine", "{name}");
    }
}

#[test]
fn a_directory_of_the_future_is_left_as_it_is() {
    let root = tempfile::tempdir().expect("a directory");
    fs::write(root.path().join("format"), "3\n").expect("written");
    fs::write(root.path().join("results"), "a file there").expect("written");
    assert!(matches!(Spool::open(root.path(), true), Err(SpoolError::Format { found: 3, .. })));
    let mut names: Vec<_> =
        fs::read_dir(root.path()).expect("there").map(|entry| entry.expect("one").file_name()).collect();
    names.sort();
    assert_eq!(names, ["format", "lock", "results"]);
}

#[test]
fn damage_is_kept_though_something_else_stands_in_its_place() {
    let root = tempfile::tempdir().expect("a directory");
    fs::write(root.path().join("damaged"), "mine").expect("written");
    fs::write(root.path().join("journal"), "garbage\n").expect("written");
    let (_spool, restored) = open(root.path(), true);
    assert_eq!((restored.trouble, restored.damaged_lines), (None, 1));
    let kept = |name: &str| fs::read(root.path().join("damaged").join(name)).expect("kept");
    assert_eq!((kept("layout-damaged.tmp.1"), kept("journal-journal.2")), (b"mine".to_vec(), b"garbage\n".to_vec()));
}

#[test]
fn what_stands_where_a_file_of_a_task_may_come_is_set_aside() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = open(root.path(), true);
    spool.append([accepted(1, b"a")].iter()).expect("written");
    drop(spool);
    let names = ["results/t-1", "results/t-2", "payloads/t-2.tmp", "checkpoints/t-1.latest"];
    names.iter().for_each(|name| fs::create_dir(root.path().join(name)).expect("made"));
    let (spool, restored) = open(root.path(), true);
    assert!(!restored.unfinished[0].has_checkpoint);
    assert_eq!((spool.files().all_damaged(), spool.files().found_damaged(DamageKind::Layout)), (4, 3));
    assert!(names.iter().all(|name| !root.path().join(name).exists()));
}

#[test]
fn a_number_that_a_lost_line_may_have_given_out_is_not_given_out_again() {
    let flip = |path: &Path| -> Vec<u8> { fs::read(path).expect("there").iter().map(|byte| byte ^ 1).collect() };
    let ruins: [&dyn Fn(&Path); 3] =
        [&|path| fs::remove_file(path).expect("there"), &|path| fs::write(path, b"").expect("written"), &|path| {
            fs::write(path, flip(path)).expect("written")
        }];
    for ruin in ruins {
        let root = tempfile::tempdir().expect("a directory");
        let (mut spool, _) = open(root.path(), true);
        for task in 1..=20 {
            spool.append([payload(&spool, TaskId(task), b"x")].iter()).expect("written");
        }
        drop(spool);
        ruin(&root.path().join("journal"));
        let (spool, restored) = open(root.path(), true);
        assert_eq!((restored.unfinished.len(), spool.files().found_damaged(DamageKind::Journal)), (0, 1));
        assert!((21..200).contains(&restored.next_task), "{}", restored.next_task);
    }
    // No file tells of these.
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = open(root.path(), true);
    spool.append((1..=20).map(|task| accepted(task, b"")).collect::<Vec<_>>().iter()).expect("written");
    drop(spool);
    let path = root.path().join("journal");
    fs::write(&path, fs::read_to_string(&path).expect("text").replace("accepted", "rejected")).expect("written");
    assert!((21..200).contains(&open(root.path(), true).1.next_task));
}

#[test]
fn without_its_journal_the_files_of_a_spool_are_set_aside() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = open(root.path(), true);
    let record = payload(&spool, TaskId(7), b"somebody's work");
    spool.append([&record].into_iter()).expect("written");
    drop(spool);
    fs::remove_file(root.path().join("journal")).expect("there");
    fs::remove_file(root.path().join("format")).expect("there");
    for _ in 0..2 {
        let (spool, restored) = open(root.path(), true);
        assert_eq!(restored.unfinished.len(), 0);
        assert_eq!(spool.ids().take(), TaskId(8), "no number is given out again");
        let kept = fs::read(root.path().join("damaged/payload-t-7.1")).expect("kept");
        assert_eq!(kept, b"somebody's work");
        drop(spool);
        fs::remove_file(root.path().join("journal")).expect("there");
    }
}

#[test]
fn what_is_kept_of_damaged_files_has_a_bound_and_the_newest_stay() {
    let root = tempfile::tempdir().expect("a directory");
    for round in 0..70_u64 {
        fs::write(root.path().join("journal"), format!("{round}\n")).expect("written");
        let (spool, restored) = open(root.path(), false);
        assert_eq!((restored.damaged_lines, spool.files().found_damaged(DamageKind::Journal)), (1, 1));
    }
    let kept = |root: &Path| -> Vec<Vec<u8>> {
        let entries = fs::read_dir(root.join("damaged")).expect("there");
        entries.map(|entry| fs::read(entry.expect("an entry").path()).expect("readable")).collect()
    };
    let texts = kept(root.path());
    assert_eq!(texts.len(), 64);
    assert!(texts.contains(&b"69\n".to_vec()) && !texts.contains(&b"0\n".to_vec()));
    fs::write(root.path().join("journal"), vec![b'x'; 20 << 20]).expect("written");
    drop(open(root.path(), false));
    assert_eq!(kept(root.path()).iter().map(Vec::len).collect::<Vec<_>>(), [20 << 20], "the newest, alone");
}

#[test]
fn breakers_and_cancellations_are_remembered() {
    let root = tempfile::tempdir().expect("a directory");
    let (mut spool, _) = open(root.path(), true);
    let breaker = |name: &str, phase, openings| Record::Breaker {
        name: Arc::from(name),
        memory: BreakerMemory { phase, openings },
    };
    let records = [
        accepted(1, b"a"),
        Record::Started { task: TaskId(1), started_ms: 5 },
        Record::CancelRequested { task: TaskId(1) },
        breaker("a", RememberedPhase::Open { until_ms: 5 }, 1),
        breaker("a", RememberedPhase::HalfOpen, 2),
        breaker("b", RememberedPhase::Forced, 1),
        breaker("c", RememberedPhase::Open { until_ms: 77 }, 3),
    ];
    spool.append(records.iter()).expect("written");
    drop(spool);
    for _ in 0..2 {
        // The second time from the journal that the first wrote.
        let (_spool, restored) = open(root.path(), true);
        assert!(restored.unfinished[0].is_cancelled);
        let told: Vec<_> =
            restored.breakers.iter().map(|(name, memory)| (&**name, memory.phase, memory.openings)).collect();
        let expected = [
            ("a", RememberedPhase::HalfOpen, 2),
            ("b", RememberedPhase::Forced, 1),
            ("c", RememberedPhase::Open { until_ms: 77 }, 3),
        ];
        assert_eq!(told, expected);
    }
}
