//! Disks that are full, limited or read-only: what was accepted comes to its end, what cannot be kept is refused, and work
//! goes on by itself when there is room.

mod common;

use std::fs;
use std::path::Path;

use common::{Daemon, Footprint, Home, MIB, Response, SmallDisk, limit, metric, mount, run, soon, text, worker};
use serde_json::{Value, json};

/// `waiter` waits for the file `go` of the home and gives 100,000 bytes.
fn agents(home: &Home) -> String {
    let go = home.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; head -c 100000 /dev/zero", text(&go));
    format!(
        "[agents.waiter]\ncommand = [\"sh\", \"-c\", {script:?}]\nmax_retries = 3\n[agents.cat]\ncommand = [\"cat\"]\n\
         [agents.large]\ncommand = [\"head\", \"-c\", \"300000\", \"/dev/zero\"]\nmax_retries = 3\n{}",
        worker("chunks", "tests/agents/chunks", "")
    )
}

const QUEUE: &str = "[queue]\nmax_depth = 200\npriority_limits = { normal = 200 }\n";

fn start(config: &str) -> Daemon {
    let home = Home::new("");
    home.configure(&format!("{config}{QUEUE}{}", agents(&home)));
    home.start()
}

fn go(daemon: &Daemon) {
    fs::write(daemon.path().join("go"), "").expect("the directory can be written");
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).expect("it is there").count()
}

#[track_caller]
fn is_refused(response: &Response) {
    assert_eq!((response.status, response.error_code().as_str()), (503, "storage_full"), "{}", response.text());
    assert!(response.header("Retry-After").is_some());
}

fn storage(daemon: &Daemon) -> Value {
    let health = daemon.get("/health").expect(200).json();
    assert_eq!(health["status"], "ok", "memory is not short: {health}");
    health["storage"].clone()
}

#[track_caller]
fn is_told_once(daemon: &Daemon, event: &str) {
    soon(event, || !daemon.logged(event).is_empty());
    assert_eq!(daemon.logged(event).len(), 1, "{event}");
}

/// What came and went has left nothing behind.
#[track_caller]
fn holds_no_more(daemon: &Daemon, before: Footprint) {
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads), "{after:?}, before {before:?}");
    assert!(after.rss_bytes < before.rss_bytes + 2 * MIB, "{after:?}, before {before:?}");
}

#[test]
fn below_the_reserve_new_tasks_are_refused_and_what_runs_comes_to_its_end() {
    let daemon = start("[workers]\nmax = 1\n[spool]\nmin_free_mb = 1\n");
    daemon.run_task("cat", json!("warm"));
    let before = daemon.footprint();
    let running = daemon.accept("waiter", json!(1));
    daemon.in_state(&running, &["running"]);
    let queued = daemon.accept("cat", json!("queued"));
    let told = storage(&daemon);
    assert_eq!((&told["ok"], &told["error"]), (&json!(true), &Value::Null), "{told}");
    let free = told["freeBytes"].as_u64().expect("a size");
    assert!(metric(&daemon, "kurultai_storage_free_bytes") > 0.0);

    let reserve = |mb: u64| {
        let config = format!("[workers]\nmax = 1\n[spool]\nmin_free_mb = {mb}\n{QUEUE}{}", agents(daemon.home()));
        daemon.home().configure(&config);
        let report = daemon.post("/v1/reload", "").expect(200).json();
        assert_eq!(report["changed"], json!(["spool.min_free_mb"]), "{report}");
    };
    // Twice as much as there is: others who use the disk meanwhile do not matter.
    reserve(free / MIB * 2 + 2);
    soon("a submission is refused", || daemon.submit(&json!({ "agent": "cat" })).status == 503);
    is_refused(&daemon.submit(&json!({ "agent": "cat" })));
    is_refused(&daemon.post("/v1/agents/cat/tasks", vec![b'x'; 2 << 20]));
    let told = storage(&daemon);
    assert_eq!(told["ok"], false);
    assert!(told["error"].as_str().is_some_and(|error| error.contains("spool.min_free_mb")), "{told}");
    assert_eq!(metric(&daemon, "kurultai_storage_ok"), 0.0);
    assert!(metric(&daemon, "kurultai_tasks_rejected_total{reason=\"storage_full\"}") >= 3.0);
    is_told_once(&daemon, "STORAGE_FULL");
    go(&daemon);
    assert_eq!(daemon.finished(&running)["resultBytes"], 100_000);
    assert_eq!(daemon.finished(&queued)["state"], "completed");

    reserve(1);
    is_told_once(&daemon, "STORAGE_CLEARED");
    assert_eq!(daemon.run_task("cat", json!(1))["state"], "completed");
    assert_eq!((storage(&daemon)["ok"].clone(), metric(&daemon, "kurultai_storage_ok")), (json!(true), 1.0));
    holds_no_more(&daemon, before);
    daemon.stop();
}

#[test]
fn on_a_full_disk_what_was_accepted_ends_and_after_it_nothing_is_missing() {
    // Without the right to mount, the limit of file sizes below is what fills up.
    let Some(disk) = SmallDisk::mount("size=4m") else { return the_journal_at_its_limit_refuses_and_recovers() };
    let config =
        format!("[workers]\nmax = 1\n[daemon]\nstate_dir = {:?}\n[spool]\nmin_free_mb = 0\n", text(disk.path()));
    let daemon = start(&config);
    daemon.run_task("cat", json!("warm"));
    let before = daemon.footprint();
    let running = daemon.accept("waiter", json!(1));
    daemon.in_state(&running, &["running"]);
    let mut accepted: Vec<String> = (0..3).map(|_| daemon.accept("cat", json!("queued"))).collect();
    let ballast = disk.fill();
    is_refused(&daemon.post("/v1/agents/cat/tasks", vec![b'x'; 100_000]));
    assert_eq!(entries(&disk.path().join("payloads")), 0, "what could not be stored is gone");
    // The journal's last page may have room for some.
    let refused = (0..100)
        .map(|_| daemon.submit(&json!({ "agent": "cat", "payload": "x".repeat(900) })))
        .inspect(|answer| {
            accepted.extend((answer.status == 202).then(|| answer.json()["id"].as_str().unwrap().to_owned()))
        })
        .find(|answer| answer.status != 202)
        .expect("the disk is full");
    is_refused(&refused);
    assert!(refused.text().contains("No space left"), "{}", refused.text());
    assert_eq!(storage(&daemon)["ok"], false);
    go(&daemon);
    let lost = daemon.finished(&running);
    let message = lost["error"]["message"].as_str().expect("a message");
    assert_eq!(
        (&lost["state"], &lost["error"]["code"], &lost["attempt"]),
        (&json!("failed"), &json!("agent_failed"), &json!(1))
    );
    assert!(message.contains("cannot store the result: No space left") && message.contains("make room"), "{message}");
    assert_eq!(entries(&disk.path().join("results")), 0, "nothing of it is left");
    // Who starts then runs again after a crash, for nobody knows of it.
    for id in &accepted {
        assert_eq!(daemon.task(id)["state"], "queued", "{id}");
        assert_eq!(daemon.get(&format!("/v1/tasks/{id}/why")).expect(200).json()["waitsFor"]["reason"], "storage");
    }
    is_told_once(&daemon, "STORAGE_FULL");

    fs::remove_file(ballast).expect("it is there");
    is_told_once(&daemon, "STORAGE_CLEARED");
    accepted.push(daemon.accept("cat", json!("after")));
    for id in &accepted {
        assert_eq!(daemon.finished(id)["state"], "completed", "{id}");
    }
    holds_no_more(&daemon, before);
    let daemon = daemon.kill().start();
    for id in &accepted {
        assert_eq!(daemon.task(id)["state"], "completed", "{id} is remembered");
    }
    assert_eq!(daemon.task(&running)["error"], lost["error"]);
    daemon.stop();
}

#[test]
fn at_a_limit_of_file_sizes_large_files_are_refused_and_the_daemon_lives() {
    let daemon = start("[daemon]\nlog_level = \"error\"\n");
    daemon.run_task("cat", json!("warm"));
    let worker = daemon.run_task("chunks", json!({ "bytes": 1 }))["workerId"].clone();
    let before = daemon.footprint();
    limit(&daemon, "--fsize=65536:");
    let refused = daemon.post("/v1/agents/cat/tasks", vec![b'x'; 200_000]);
    is_refused(&refused);
    assert!(refused.text().contains("ulimit -f"), "{}", refused.text());
    assert_eq!(entries(&daemon.path().join("state/payloads")), 0);
    // A oneshot is stopped; a persistent worker has done its work, and goes on.
    for (agent, payload) in [
        ("large", json!(1)),
        ("chunks", json!({ "bytes": 300_000 })),
        ("chunks", json!({ "bytes": 300_000, "whole": true })),
    ] {
        let task = daemon.run_task(agent, payload);
        let message = task["error"]["message"].as_str().expect("a message");
        assert_eq!((&task["state"], &task["error"]["code"]), (&json!("failed"), &json!("agent_failed")), "{task}");
        assert!(message.starts_with("cannot store the result: File too large"), "{message}");
    }
    assert_eq!(entries(&daemon.path().join("state/results")), 0);
    assert_eq!(daemon.run_task("chunks", json!({ "bytes": 1 }))["workerId"], worker, "its worker lives");
    limit(&daemon, "--fsize=unlimited:");
    assert_eq!(daemon.run_task("large", json!(1))["resultBytes"], 300_000);
    holds_no_more(&daemon, before);
    daemon.stop();
}

#[test]
fn a_journal_at_the_limit_of_file_sizes_refuses_and_recovers() {
    the_journal_at_its_limit_refuses_and_recovers();
}

fn the_journal_at_its_limit_refuses_and_recovers() {
    let daemon = start("[daemon]\nlog_level = \"error\"\n");
    daemon.run_task("cat", json!("warm"));
    let before = daemon.footprint();
    let running = daemon.accept("waiter", json!(1));
    daemon.in_state(&running, &["running"]);
    let journal = fs::metadata(daemon.path().join("state/journal")).expect("it is there").len();
    limit(&daemon, &format!("--fsize={journal}:"));
    let refused = daemon.submit(&json!({ "agent": "cat", "payload": "x".repeat(900) }));
    is_refused(&refused);
    assert!(refused.text().contains("File too large"), "{}", refused.text());
    limit(&daemon, "--fsize=unlimited:");
    soon("it is taken again", || storage(&daemon)["ok"] == true);
    assert_eq!(daemon.run_task("cat", json!(1))["state"], "completed");
    go(&daemon);
    assert_eq!(daemon.finished(&running)["resultBytes"], 100_000);
    holds_no_more(&daemon, before);
    let tasks = daemon.get("/v1/tasks?agent=cat").json()["tasks"].as_array().expect("a list").clone();
    let states: Vec<&Value> = tasks.iter().map(|task| &task["state"]).collect();
    assert_eq!(states, ["completed", "cancelled", "completed"], "who was told no has no task that runs");
    daemon.stop();
}

#[test]
fn on_a_disk_that_turned_read_only_large_bodies_are_refused_and_large_results_fail_their_tasks() {
    let daemon = start("");
    let worker = daemon.run_task("chunks", json!({ "bytes": 1 }))["workerId"].clone();
    let before = daemon.footprint();
    let places = ["payloads", "results"].map(|name| daemon.path().join("state").join(name));
    // Who may not mount has no right to write either, where the directory's mode says so.
    let is_mounted = places.iter().all(|place| mount(&["-t", "tmpfs", "-o", "ro", "tmpfs", text(place)]));
    let set_mode = |mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        places.iter().for_each(|place| fs::set_permissions(place, fs::Permissions::from_mode(mode)).expect("ours"));
    };
    if !is_mounted {
        set_mode(0o511);
    }
    let why = if is_mounted { "Read-only file system" } else { "Permission denied" };
    let refused = daemon.post("/v1/agents/cat/tasks", vec![b'x'; 100_000]);
    let large = [("large", json!(1)), ("chunks", json!({ "bytes": 100_000 }))]
        .map(|(agent, payload)| daemon.run_task(agent, payload));
    let small = daemon.run_task("chunks", json!({ "bytes": 1 }));
    if is_mounted {
        places.iter().for_each(|place| drop(run("umount", ["--lazy", text(place)], b"").expect(0)));
    } else {
        set_mode(0o711);
    }
    is_refused(&refused);
    assert!(refused.text().contains(why), "{}", refused.text());
    for task in large {
        let message = task["error"]["message"].as_str().expect("a message");
        assert!(message.starts_with(&format!("cannot store the result: {why}")), "{message}");
    }
    assert_eq!((&small["state"], &small["workerId"]), (&json!("completed"), &worker));
    assert_eq!(daemon.run_task("large", json!(1))["resultBytes"], 300_000);
    holds_no_more(&daemon, before);
    daemon.stop();
}

#[test]
fn without_descriptors_large_bodies_are_refused_and_with_them_all_is_as_before() {
    let daemon = start("");
    let worker = daemon.run_task("chunks", json!({ "bytes": 1 }))["workerId"].clone();
    let before = daemon.footprint();
    // Connections have their descriptors; for files there is none.
    let [mut sender, mut client] = [(); 2].map(|()| daemon.connect());
    for client in [&mut sender, &mut client] {
        assert_eq!(client.ask(&common::Request::get("/health?live")).status, 200);
    }
    let lowest = (0..).find(|fd| !Path::new(&format!("/proc/{}/fd/{fd}", daemon.pid())).exists());
    limit(&daemon, &format!("--nofile={}:", lowest.expect("a free number")));
    let refused = sender.ask(&common::Request::post("/v1/agents/cat/tasks", vec![b'x'; 100_000]));
    is_refused(&refused);
    assert!(refused.text().contains("Too many open files"), "{}", refused.text());
    let envelope = json!({ "agent": "chunks", "payload": { "bytes": 100_000 } });
    let failed = client.ask(&common::Request::json("/v1/tasks?wait=30", &envelope)).expect(200).json();
    let message = failed["error"]["message"].as_str().expect("a message");
    assert!(message.starts_with("cannot store the result: Too many open files"), "{message}");
    limit(&daemon, "--nofile=256:");
    drop((sender, client));
    assert_eq!(daemon.run_task("chunks", json!({ "bytes": 100_000 }))["workerId"], worker, "its worker lives");
    assert_eq!(daemon.run_task("large", json!(1))["resultBytes"], 300_000);
    holds_no_more(&daemon, before);
    daemon.stop();
}

#[test]
fn without_inodes_new_tasks_are_refused_and_told_why() {
    let Some(disk) = SmallDisk::mount("size=200m,nr_inodes=300") else {
        // Without the right to mount, what can be had of it.
        return the_journal_at_its_limit_refuses_and_recovers();
    };
    let daemon = start(&format!("[daemon]\nstate_dir = {:?}\n[spool]\nmin_free_mb = 1\n", text(disk.path())));
    daemon.run_task("cat", json!("warm"));
    let ballast = disk.path().join("ballast");
    fs::create_dir(&ballast).expect("there is room");
    let mut made = (0..).take_while(|number| fs::write(ballast.join(number.to_string()), "").is_ok()).count();
    soon("it is noticed", || storage(&daemon)["ok"] == false);
    let refused = daemon.submit(&json!({ "agent": "cat", "payload": "x" }));
    is_refused(&refused);
    assert!(refused.text().contains("inodes free"), "{}", refused.text());
    while made > 0 {
        made -= 1;
        fs::remove_file(ballast.join(made.to_string())).expect("it was made");
    }
    soon("it is well again", || storage(&daemon)["ok"] == true);
    assert_eq!(daemon.run_task("cat", json!("after"))["state"], "completed");
    daemon.stop();
}

#[test]
fn a_journal_that_is_removed_under_the_daemon_is_written_anew_before_anything_rests_on_it() {
    for whole in [false, true] {
        let daemon = start("");
        let before = daemon.run_task("cat", json!("before"))["id"].as_str().expect("an id").to_owned();
        let state = daemon.path().join("state");
        if whole {
            fs::rename(&state, daemon.path().join("moved")).expect("moved");
            fs::create_dir(&state).expect("made");
        } else {
            fs::remove_file(state.join("journal")).expect("there");
        }
        soon("it is written anew", || {
            storage(&daemon);
            state.join("journal").exists()
        });
        let large = daemon.post("/v1/agents/cat/tasks", vec![b'x'; 5000]).expect(202).json()["id"].clone();
        let large = large.as_str().expect("an id").to_owned();
        assert_eq!(daemon.finished(&large)["resultBytes"], 5000, "whole: {whole}");
        let daemon = daemon.kill().start();
        for task in [before, large] {
            assert_eq!(daemon.task(&task)["state"], "completed", "whole: {whole}");
        }
        daemon.stop();
    }
}

#[test]
fn a_payload_that_is_replaced_under_the_daemon_is_not_run_and_holds_nobody_up() {
    type Replace = fn(&Path);
    let replacements: [(&str, Replace); 3] = [
        ("a pipe", |path| drop(run("mkfifo", [text(path)], b"").expect(0))),
        ("shorter", |path| fs::write(path, "x").expect("written")),
        ("gone", |_| {}),
    ];
    for (what, replace) in replacements {
        let daemon = start("[workers]\nmax = 1\n");
        let running = daemon.accept("waiter", json!(1));
        daemon.in_state(&running, &["running"]);
        let queued = daemon.post("/v1/agents/cat/tasks", vec![b'x'; 5000]).expect(202).json()["id"].clone();
        let queued = queued.as_str().expect("an id").to_owned();
        let path = daemon.path().join("state/payloads").join(&queued);
        fs::remove_file(&path).expect("it is there");
        replace(&path);
        go(&daemon);
        let failed = daemon.finished(&queued);
        assert_eq!(
            (&failed["state"], &failed["error"]["code"]),
            (&json!("failed"), &json!("spawn_failed")),
            "{what}: {failed}"
        );
        assert_eq!(daemon.run_task("cat", json!("after"))["state"], "completed", "{what}");
        daemon.stop();
    }
}
