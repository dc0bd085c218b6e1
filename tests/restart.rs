//! What a daemon leaves is what the next one finds: killed, drained, or told to stop at once.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use common::{Daemon, Home, Request, free_port, signal, soon, until, worker};
use kurultai::sys::poll::PollSet;
use serde_json::{Value, json};

const LONG_MS: u64 = 600_000;

/// Agents whose runs can be counted afterwards, one at a time.
fn config(more: &str) -> String {
    format!(
        "[workers]\nmax = 1\ncancel_grace_ms = 100\n[queue]\nmax_depth = 20\npriority_limits = {{ normal = 20 }}\n{more}\n{}{}\
         [agents.cat]\ncommand = [\"cat\"]\n",
        worker("sleeper", "tests/agents/sleeper", ""),
        worker("echo", "scripts/agents/echo.py", "")
    )
}

/// A home whose `effects` agent leaves a trace.
fn home(more: &str) -> Home {
    let home = Home::new("");
    let effects = format!("env = {{ EFFECTS_FILE = {:?} }}", home.path().join("effects").display().to_string());
    home.configure(&(config(more) + &worker("effects", "tests/agents/effects", &effects)));
    home
}

/// How often each task was started and ended, by its id.
fn effects(home: &Home) -> BTreeMap<String, (usize, usize)> {
    let mut counts = BTreeMap::<String, (usize, usize)>::new();
    for line in std::fs::read_to_string(home.path().join("effects")).unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let count = counts.entry(words[1].to_owned()).or_default();
        match words[0] {
            "start" => count.0 += 1,
            _ => count.1 += 1,
        }
    }
    counts
}

fn number(id: &str) -> u64 {
    id.strip_prefix("t-").and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{id} is no task's id"))
}

#[test]
fn a_killed_daemon_loses_nothing_it_accepted_and_repeats_nothing_it_may_not() {
    let daemon = home("").start();
    let done = daemon.run_task("effects", json!({}))["id"].as_str().expect("an id").to_owned();
    let large = vec![b'z'; 300_000];
    let copied = daemon.post("/v1/agents/cat/tasks?wait=30", large.clone()).expect(200);
    let copied = copied.header("X-Task-Id").expect("an id").to_owned();
    let running = daemon.accept("effects", json!({ "ms": LONG_MS }));
    daemon.in_state(&running, &["running"]);
    soon("it has begun", || effects(daemon.home()).contains_key(&running));
    let queued: Vec<String> = (0..3).map(|_| daemon.accept("effects", json!({}))).collect();
    let raw = daemon.post("/v1/agents/cat/tasks", large.clone()).expect(202).json()["id"].clone();
    let raw = raw.as_str().expect("an id");

    let daemon = daemon.kill().start();
    let lost = daemon.finished(&running);
    assert_eq!((&lost["state"], &lost["error"]["code"]), (&json!("failed"), &json!("worker_crashed")), "{lost}");
    for id in &queued {
        assert_eq!(daemon.finished(id)["state"], "completed", "{id}");
    }
    daemon.finished(raw);
    assert!(daemon.get(&format!("/v1/tasks/{raw}/result")).expect(200).body == large, "a payload in a file");
    assert_eq!(daemon.task(&done)["state"], "completed");
    assert!(daemon.get(&format!("/v1/tasks/{copied}/result")).expect(200).body == large, "a result in a file");
    let next = daemon.accept("echo", json!(1));
    assert!(number(&next) > number(raw), "{next} is new");
    daemon.finished(&next);
    let home = daemon.stop();
    let counts = effects(&home);
    assert_eq!(counts[&running], (1, 0));
    for id in queued.iter().chain([&done]) {
        assert_eq!(counts[id], (1, 1), "{id}");
    }
}

#[test]
fn a_task_with_a_retry_left_runs_again_after_a_kill() {
    let daemon = home("").start();
    let envelope = json!({ "agent": "effects", "payload": { "ms": LONG_MS }, "maxRetries": 1, "idempotencyKey": "k" });
    let id = daemon.accept_with(envelope.clone());
    soon("it has begun", || effects(daemon.home()).contains_key(&id));
    let daemon = daemon.kill().start();
    let again = daemon.in_state(&id, &["running"]);
    assert_eq!(again["attempt"], 2, "{again}");
    soon("it has begun again", || effects(daemon.home())[&id].0 == 2);
    let replay = daemon.submit(&envelope).expect(202);
    assert_eq!((&replay.json()["id"], replay.header("Idempotent-Replay")), (&json!(id), Some("true")));
    let daemon = daemon.kill().start();
    let spent = daemon.finished(&id);
    assert_eq!((&spent["state"], &spent["error"]["code"]), (&json!("failed"), &json!("retries_exhausted")), "{spent}");
    assert!(spent["error"]["message"].as_str().is_some_and(|text| text.contains("the daemon ended")), "{spent}");
    daemon.stop();
}

#[test]
fn a_kill_between_any_two_submissions_keeps_every_one_that_was_answered() {
    let mut home = home("");
    let mut accepted = Vec::new();
    for round in 0..5 {
        let daemon = home.start();
        for _ in 0..=round {
            accepted.push(daemon.accept("effects", json!({ "ms": 20 })));
        }
        home = daemon.kill();
    }
    let daemon = home.start();
    let mut sorted = accepted.clone();
    sorted.sort_unstable_by_key(|id| number(id));
    sorted.dedup();
    assert_eq!(sorted, accepted, "ids are new and rise");
    for id in &accepted {
        let task = daemon.finished(id);
        let may_be = task["state"] == "completed" || task["error"]["code"] == "worker_crashed";
        assert!(may_be, "{task}");
    }
    let home = daemon.stop();
    for (id, (starts, _)) in effects(&home) {
        assert_eq!(starts, 1, "{id} has no retries");
    }
}

#[test]
fn a_term_lets_what_runs_finish_and_keeps_what_waits_for_the_next_start() {
    let daemon = home("").start();
    let running = daemon.accept("effects", json!({ "ms": 1500 }));
    soon("it has begun", || effects(daemon.home()).contains_key(&running));
    let queued = daemon.accept("effects", json!({}));
    signal(daemon.pid(), "TERM");
    let health = until("it drains", || Some(daemon.get("/health")).filter(|health| health.status == 503));
    assert_eq!(health.json()["status"], "draining");
    assert_eq!(health.header("Retry-After"), Some(health.json()["retryAfterS"].to_string().as_str()));
    assert_eq!(daemon.submit(&json!({ "agent": "echo" })).expect(503).error_code(), "draining");
    assert_eq!(daemon.get("/health?live").status, 200, "the threads turn");
    assert_eq!(daemon.get("/v1/status").json()["state"], "draining");
    let daemon = daemon.ended().start();
    assert_eq!(daemon.task(&running)["state"], "completed");
    assert_eq!(daemon.finished(&queued)["state"], "completed");
    let home = daemon.stop();
    assert_eq!(effects(&home), BTreeMap::from([(running, (1, 1)), (queued, (1, 1))]));
}

#[test]
fn a_task_that_can_checkpoint_goes_on_where_it_was_after_a_drain() {
    // The drain leaves no time but that for checkpoints.
    let daemon = Daemon::start(&config("[daemon]\ndrain_timeout_s = 5\n"));
    let id = daemon.accept("sleeper", json!({ "ms": 6000, "steps": 60 }));
    until("it is some way on", || {
        Some(daemon.task(&id))
            .filter(|task| task["progress"]["percent"].as_f64().is_some_and(|percent| percent >= 10.0))
    });
    let home = daemon.stop();
    let daemon = home.start();
    let resumed = daemon.in_state(&id, &["running"]);
    assert_eq!((&resumed["preemptions"], &resumed["attempt"]), (&json!(1), &json!(1)), "{resumed}");
    let done = daemon.finished(&id);
    assert!(done["result"]["resumedAt"].as_u64().is_some_and(|step| step >= 6), "{done}");
    daemon.stop();
}

#[test]
fn a_second_term_stops_at_once_and_leaves_the_running_task_to_the_next_start() {
    let daemon = home("").start();
    let id = daemon.accept_with(json!({ "agent": "effects", "payload": { "ms": LONG_MS }, "maxRetries": 1 }));
    soon("it has begun", || effects(daemon.home()).contains_key(&id));
    signal(daemon.pid(), "TERM");
    until("it drains", || Some(daemon.get("/health")).filter(|health| health.status == 503));
    let daemon = daemon.stop().start();
    assert_eq!(daemon.in_state(&id, &["running"])["attempt"], 2);
    daemon.kill();
}

#[test]
fn a_drain_asked_over_http_ends_the_daemon_cleanly_and_answers_who_waits() {
    let daemon = home("").start();
    let running = daemon.accept("effects", json!({ "ms": 1000 }));
    soon("it has begun", || effects(daemon.home()).contains_key(&running));
    let mut waiting = daemon.connect();
    let envelope = json!({ "agent": "echo", "payload": 1 });
    waiting.send(&Request::json("/v1/tasks?wait=60", &envelope).bytes()).expect("the daemon reads");
    let queued = until("it is queued", || {
        daemon.get("/v1/queue").json()["tasks"].get(0).map(|task| task["id"].as_str().expect("an id").to_owned())
    });
    let answer = daemon.post("/v1/drain", "").expect(202).json();
    assert_eq!(answer, json!({ "state": "draining" }));
    let told = waiting.receive().expect("an answer");
    assert_eq!((told.status, &told.json()["state"]), (202, &json!("queued")), "{}", told.text());
    let daemon = daemon.ended().start();
    assert_eq!(daemon.finished(&queued)["state"], "completed");
    assert_eq!(daemon.task(&running)["state"], "completed");
    daemon.stop();
}

#[test]
fn finished_tasks_are_forgotten_with_their_results_when_their_time_is_over() {
    let daemon = Daemon::start(&config("[spool]\nretention_s = 2\n"));
    let large = vec![b'q'; 100_000];
    let done = daemon.post("/v1/agents/cat/tasks?wait=30", large).expect(200);
    let id = done.header("X-Task-Id").expect("an id").to_owned();
    soon("it is forgotten", || daemon.get(&format!("/v1/tasks/{id}")).status == 404);
    // Once that is on the disk.
    let results = daemon.path().join("state/results");
    soon("its result is gone", || std::fs::read_dir(&results).is_ok_and(|mut entries| entries.next().is_none()));
    let home = daemon.stop();
    let daemon = home.start();
    assert_eq!(daemon.get("/v1/tasks").json(), json!({ "tasks": Value::Array(Vec::new()) }));
    daemon.stop();
}

/// Somebody has connected, and nobody has accepted.
fn is_called(listener: &impl AsFd) -> bool {
    let mut set = PollSet::default();
    let place = set.readable(Some(listener.as_fd()));
    set.wait(Some(Duration::ZERO)).expect("poll(2)");
    set.is_ready(place)
}

/// Somebody waits for a lock of the file: `1: -> FLOCK  ADVISORY  WRITE 123 fe:00:456 0 EOF` of proc_locks(5).
fn is_lock_awaited(file: &File) -> bool {
    let inode = format!(":{} ", file.metadata().expect("it is open").ino());
    let locks = fs::read_to_string("/proc/locks").expect("proc_locks(5)");
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

#[test]
fn what_a_killed_daemon_s_unborn_child_still_holds_is_had_as_soon_as_it_lets_go() {
    let port = free_port();
    let home = Home::new(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n"));
    for name in ["run", "state"] {
        fs::create_dir(home.path().join(name)).expect("the directory can be written");
    }
    // Here, this program is the child: it has what the daemon had.
    let tcp = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let unix = UnixListener::bind(home.socket()).expect("the directory can be written");
    let lock = File::create(home.path().join("state/lock")).expect("the directory can be written");
    lock.lock().expect("nobody has it");

    let mut daemon = home.launch(|command| command);
    soon("it waits for the address", || is_called(&tcp));
    drop(tcp);
    soon("it waits for the socket", || {
        // The listener, the question whether anybody listens, and the wait.
        let socket = daemon.home().socket().display().to_string();
        let table = fs::read_to_string("/proc/net/unix").expect("proc_net(5)");
        table.lines().filter(|line| line.ends_with(&socket)).count() == 3
    });
    drop(unix);
    soon("it waits for the state directory", || is_lock_awaited(&lock));
    drop(lock);
    daemon.has_started();
    daemon.stop();
}
