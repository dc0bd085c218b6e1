//! A start on a disk that cannot be written: what there is is served, nothing new is taken and nothing starts, until the
//! disk can be written again.

use std::fs;

use serde_json::{Value, json};

use super::state::*;
use crate::common::{Daemon, Home, SmallDisk, command, limit, soon, text};

/// Why nothing can be written.
enum Shortage {
    Full(SmallDisk),
    ReadOnly(SmallDisk),
    /// Where nothing may be mounted: a limit of file sizes, which the journal is over.
    FileSize,
}

const LIMIT_BYTES: u32 = 4096;

impl Shortage {
    fn full() -> Shortage {
        SmallDisk::mount("size=4m").map_or(Shortage::FileSize, Shortage::Full)
    }

    fn read_only() -> Shortage {
        SmallDisk::mount("size=4m").map_or(Shortage::FileSize, Shortage::ReadOnly)
    }

    /// The configuration that puts the state there.
    fn state_dir(&self) -> String {
        match self {
            Shortage::Full(disk) | Shortage::ReadOnly(disk) => {
                format!("[daemon]\nstate_dir = {:?}\n", text(&disk.path().join("state")))
            }
            // The log is a file too.
            Shortage::FileSize => "[daemon]\nlog_level = \"error\"\n".to_owned(),
        }
    }

    fn begin(&self) {
        match self {
            Shortage::Full(disk) => drop(disk.fill()),
            Shortage::ReadOnly(disk) => disk.remount("ro"),
            Shortage::FileSize => {}
        }
    }

    #[track_caller]
    fn start(&self, home: Home) -> Daemon {
        match self {
            Shortage::Full(_) | Shortage::ReadOnly(_) => home.start(),
            Shortage::FileSize => home.start_with(|daemon| {
                let mut limited = command("prlimit");
                limited.arg(format!("--fsize={LIMIT_BYTES}:")).arg(daemon.get_program()).args(daemon.get_args());
                *daemon = limited;
                daemon
            }),
        }
    }

    fn end(&self, daemon: &Daemon) {
        match self {
            Shortage::Full(disk) => fs::remove_file(disk.path().join("ballast")).expect("it is there"),
            Shortage::ReadOnly(disk) => disk.remount("rw"),
            Shortage::FileSize => limit(daemon, "--fsize=unlimited:"),
        }
    }

    fn error(&self) -> &'static str {
        match self {
            Shortage::Full(_) => "No space left on device",
            Shortage::ReadOnly(_) => "Read-only file system",
            Shortage::FileSize => "File too large",
        }
    }

    fn is_logged(&self) -> bool {
        !matches!(self, Shortage::FileSize)
    }
}

fn a_start_when_nothing_can_be_written(shortage: &Shortage) {
    let home = Home::new("");
    home.configure(&config(&home, &shortage.state_dir()));
    let daemon = home.start();
    let done = daemon.run_task("large", json!(1))["id"].as_str().expect("an id").to_owned();
    let blocker = block(&daemon);
    // Longer than the limit, all together.
    let filler = "x".repeat(900);
    let queued: Vec<String> = (0..6).map(|_| daemon.accept("effects", json!({ "filler": filler }))).collect();
    let mut home = daemon.kill();

    shortage.begin();
    // The second time as the first left it.
    for start in ["the first", "the second"] {
        let daemon = shortage.start(home);
        for path in ["/health", "/v1/status"] {
            let storage = daemon.get(path).expect(200).json()["storage"].clone();
            assert_eq!(storage["ok"], false, "{start} start, {path}: {storage}");
            assert!(
                storage["error"].as_str().is_some_and(|error| error.contains(shortage.error())),
                "{path}: {storage}"
            );
            assert_eq!(storage["damaged"], Value::Null, "{start} start, {path}: nothing is: {storage}");
        }
        if shortage.is_logged() {
            let told = daemon.logged("STORAGE_FULL");
            assert_eq!(told.len(), 1, "{start} start: {told:?}");
            assert!(told[0].to_string().contains(shortage.error()), "{start} start: {told:?}");
        }
        assert_eq!(daemon.get(&format!("/v1/tasks/{done}/result")).expect(200).body, vec![0; 100_000], "{start} start");
        let small = daemon.submit(&json!({ "agent": "effects" }));
        let large = daemon.post("/v1/agents/cat/tasks", vec![b'x'; 100_000]);
        for refused in [small, large] {
            assert_eq!((refused.status, refused.error_code().as_str()), (503, "storage_full"), "{}", refused.text());
            assert!(refused.header("Retry-After").is_some(), "{start} start");
        }
        for id in &queued {
            let why = daemon.get(&format!("/v1/tasks/{id}/why")).expect(200).json();
            assert_eq!((&why["state"], &why["waitsFor"]["reason"]), (&json!("queued"), &json!("storage")), "{why}");
        }
        let crashed = daemon.finished(&blocker);
        assert_eq!(crashed["error"]["code"], "worker_crashed", "{start} start: it does not run again either");
        assert_eq!(daemon.workers(), Vec::<u32>::new(), "{start} start");
        home = daemon.kill();
    }

    let daemon = shortage.start(home);
    assert_eq!(daemon.get("/v1/status").json()["storage"]["ok"], false);
    shortage.end(&daemon);
    soon("it goes on by itself", || daemon.get("/v1/status").json()["storage"]["ok"] == true);
    for id in &queued {
        assert_eq!(daemon.finished(id)["state"], "completed", "{id}");
    }
    if shortage.is_logged() {
        assert_eq!(daemon.logged("STORAGE_CLEARED").len(), 1);
    }
    let new = daemon.run_task("cat", json!(1))["id"].as_str().expect("an id").to_owned();
    let daemon = daemon.kill().start();
    for id in queued.iter().chain([&done, &new]) {
        assert_eq!(daemon.task(id)["state"], "completed", "{id} is remembered");
    }
    assert_eq!(daemon.task(&blocker)["error"]["code"], "worker_crashed");
    damage_is_told(&daemon, &[]);
    ran_once(&daemon.stop(), &queued);
}

#[test]
fn a_daemon_that_starts_on_a_full_disk_serves_what_there_is_and_goes_on_when_there_is_room() {
    a_start_when_nothing_can_be_written(&Shortage::full());
}

#[test]
fn a_daemon_that_starts_on_a_read_only_disk_serves_what_there_is_and_goes_on_when_it_can_be_written() {
    a_start_when_nothing_can_be_written(&Shortage::read_only());
}

#[test]
fn a_daemon_that_starts_with_a_journal_over_its_limit_serves_what_there_is_and_goes_on_when_that_is_raised() {
    a_start_when_nothing_can_be_written(&Shortage::FileSize);
}
