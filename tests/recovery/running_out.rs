//! A disk that cannot be written any more while tasks wait: none starts whose start could not be remembered.

use std::fs;

use serde_json::json;

use super::state::*;
use crate::common::{Daemon, FailingDisk, Home, Request, SmallDisk, limit, soon, text};

enum Disk {
    Small(SmallDisk),
    Failing(FailingDisk),
    /// Where nothing may be mounted: a limit of file sizes that the journal is at.
    Limited,
}

impl Disk {
    fn small() -> Disk {
        SmallDisk::mount("size=4m").map_or(Disk::Limited, Disk::Small)
    }

    fn failing() -> Disk {
        FailingDisk::mount().map_or(Disk::Limited, Disk::Failing)
    }

    fn state_dir(&self) -> String {
        let path = match self {
            Disk::Small(disk) => disk.path().join("state"),
            Disk::Failing(disk) => disk.path().join("state"),
            Disk::Limited => return "[daemon]\nlog_level = \"error\"\n".to_owned(),
        };
        format!("[daemon]\nstate_dir = {:?}\n", text(&path))
    }

    fn run_out(&self, daemon: &Daemon) {
        match self {
            Disk::Small(disk) => drop(disk.fill()),
            Disk::Failing(disk) => disk.abort(),
            Disk::Limited => {
                let journal = fs::metadata(state(daemon.home()).join("journal")).expect("it is there").len();
                limit(daemon, &format!("--fsize={journal}:"));
            }
        }
    }

    /// `daemon`: `None` if it has been killed.
    fn repair(&self, daemon: Option<&Daemon>) {
        match self {
            Disk::Small(disk) => fs::remove_file(disk.path().join("ballast")).expect("it is there"),
            Disk::Failing(disk) => disk.repair(),
            Disk::Limited => drop(daemon.map(|daemon| limit(daemon, "--fsize=unlimited:"))),
        }
    }
}

/// One task runs until it is let go, others wait, and the journal cannot be written.
struct RunOut {
    disk: Disk,
    daemon: Daemon,
    running: String,
    queued: Vec<String>,
    /// Cancelled when nobody would know of it after a crash.
    cancelled: String,
}

impl RunOut {
    #[track_caller]
    fn make(disk: Disk) -> RunOut {
        let home = Home::new("");
        let go = home.path().join("go");
        let script = format!("while [ ! -e {} ]; do sleep 0.02; done; echo done", text(&go));
        let waiter = format!("{}[agents.waiter]\ncommand = [\"sh\", \"-c\", {script:?}]\n", disk.state_dir());
        home.configure(&config(&home, &waiter));
        let daemon = home.start();
        let running = daemon.accept("waiter", json!(1));
        daemon.in_state(&running, &["running"]);
        let envelope = json!({ "agent": "effects", "payload": { "filler": "x".repeat(900) } });
        let mut queued: Vec<String> = (0..3).map(|_| daemon.accept_with(envelope.clone())).collect();
        disk.run_out(&daemon);
        // What is open already may have room for some.
        let refused = (0..100)
            .map(|_| daemon.submit(&envelope))
            .inspect(|answer| {
                queued.extend((answer.status == 202).then(|| answer.json()["id"].as_str().unwrap().to_owned()))
            })
            .find(|answer| answer.status != 202)
            .expect("it has run out");
        assert_eq!((refused.status, refused.error_code().as_str()), (503, "storage_full"), "{}", refused.text());
        fs::write(&go, "").expect("the directory can be written");
        assert_eq!(daemon.finished(&running)["state"], "completed", "what ran comes to its end");
        for id in &queued {
            let why = daemon.get(&format!("/v1/tasks/{id}/why")).expect(200).json();
            assert_eq!((&why["state"], &why["waitsFor"]["reason"]), (&json!("queued"), &json!("storage")), "{why}");
        }
        let cancelled = queued.pop().expect("some");
        let answer = daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{cancelled}")));
        assert_eq!((answer.status, answer.error_code().as_str()), (503, "storage_full"), "{}", answer.text());
        assert_eq!(daemon.task(&cancelled)["state"], "cancelled", "for now");
        for path in ["/health", "/v1/status"] {
            assert_eq!(daemon.get(path).expect(200).json()["storage"]["ok"], false, "{path}");
        }
        ran_once(daemon.home(), &[]);
        RunOut { disk, daemon, running, queued, cancelled }
    }

    #[track_caller]
    fn goes_on(self) {
        let RunOut { disk, daemon, running, queued, cancelled } = self;
        disk.repair(Some(&daemon));
        soon("it goes on by itself", || daemon.get("/v1/status").json()["storage"]["ok"] == true);
        for id in &queued {
            assert_eq!(daemon.finished(id)["state"], "completed", "{id}");
        }
        let daemon = daemon.kill().start();
        for id in queued.iter().chain([&running]) {
            assert_eq!(daemon.task(id)["state"], "completed", "{id} is remembered");
        }
        assert_eq!(daemon.task(&cancelled)["state"], "cancelled", "and so is that");
        damage_is_told(&daemon, &[]);
        ran_once(&daemon.stop(), &queued);
    }

    /// Killed where it is; the disk is seen to before the next start.
    #[track_caller]
    fn dies(self) {
        let RunOut { disk, daemon, running, mut queued, cancelled } = self;
        let home = daemon.kill();
        disk.repair(None);
        // Whoever cancelled it was told so.
        queued.push(cancelled);
        let daemon = home.start();
        for id in &queued {
            let task = daemon.finished(id);
            assert_eq!((&task["state"], &task["attempt"]), (&json!("completed"), &json!(1)), "{task}");
        }
        // Its end could not be written. It has no retries, and so it has run once.
        let task = daemon.finished(&running);
        assert_eq!((&task["state"], &task["error"]["code"]), (&json!("failed"), &json!("worker_crashed")), "{task}");
        let all = daemon.get("/v1/tasks?limit=1000").expect(200).json()["tasks"].as_array().map_or(0, Vec::len);
        assert_eq!(all, queued.len() + 1, "who was told no has no task");
        assert_eq!(daemon.run_task("cat", json!(1))["state"], "completed");
        ran_once(&daemon.stop(), &queued);
    }
}

#[test]
fn nothing_starts_while_the_disk_is_full_and_all_of_it_when_there_is_room() {
    RunOut::make(Disk::small()).goes_on();
}

#[test]
fn nothing_starts_while_the_journal_is_at_its_limit_and_all_of_it_when_that_is_raised() {
    RunOut::make(Disk::Limited).goes_on();
}

#[test]
fn nothing_runs_twice_after_a_kill_on_a_full_disk() {
    RunOut::make(Disk::small()).dies();
}

#[test]
fn nothing_runs_twice_after_a_kill_at_a_limit_of_file_sizes() {
    RunOut::make(Disk::Limited).dies();
}

#[test]
fn nothing_runs_twice_after_a_kill_on_a_disk_that_turned_read_only() {
    RunOut::make(Disk::failing()).dies();
}
