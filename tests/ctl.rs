//! `kurultaictl` against the real daemon: what a person types, sees, and what a script gets as exit status.

mod common;

use common::{Connection, Daemon, Home, Ran, Request, agent, free_port, run, soon, until, worker};
use serde_json::{Value, json};

fn config() -> String {
    format!(
        "[workers]\nmax = 1\ncancel_grace_ms = 100\n[queue]\nmax_depth = 2\n{}{}{}\
         [agents.cat]\ncommand = [\"cat\"]\n[breakers.api]\nbackoff_ms = [60000]\n",
        worker("sleeper", "tests/agents/sleeper", ""),
        worker("echo", "scripts/agents/echo.py", ""),
        agent("exit3", "tests/agents/bad/exit3", ""),
    )
}

fn ctl(daemon: &Daemon, arguments: &[&str]) -> Ran {
    daemon.home().ctl(arguments, b"")
}

fn occupy(daemon: &Daemon) -> String {
    let id = daemon.accept("sleeper", json!({ "ms": 600_000 }));
    daemon.in_state(&id, &["running"]);
    id
}

#[test]
fn a_submission_prints_its_id_or_with_wait_its_result() {
    let daemon = Daemon::start(&config());
    let accepted = daemon.home().ctl(&["submit", "cat", "-"], b"from standard input").expect(0).text();
    assert_eq!(accepted, "t-1\n");
    daemon.finished("t-1");
    assert_eq!(ctl(&daemon, &["tasks", "result", "t-1"]).expect(0).text(), "from standard input");
    let waited = daemon.home().ctl(&["submit", "cat", "-", "--wait"], b"and back").expect(0);
    assert_eq!((waited.text(), waited.stderr.as_str()), ("and back".to_owned(), ""));
    let file = daemon.path().join("payload");
    let large: Vec<u8> = (0_u32..3 << 20).map(|n| (n % 251) as u8).collect();
    std::fs::write(&file, &large).expect("it can be written");
    let file = file.to_str().expect("text");
    assert!(ctl(&daemon, &["submit", "cat", file, "--wait"]).expect(0).stdout == large, "a file, whole and streamed");
    let json_payload = ["submit", "echo", "-", "--json-payload", "--wait", "--priority", "high", "--retries", "2"];
    let echoed = daemon.home().ctl(&json_payload, b"{\"a\":1}").expect(0);
    assert_eq!(echoed.json(), json!({ "a": 1 }));
    let task = daemon.task("t-4");
    assert_eq!((&task["priority"], &task["maxRetries"]), (&json!("high"), &json!(2)));
    let object = ctl(&daemon, &["submit", "cat", "--wait", "--json"]).expect(0).json();
    assert_eq!((&object["id"], &object["state"]), (&json!("t-5"), &json!("completed")));
    daemon.stop();
}

#[test]
fn a_failed_task_is_exit_status_1_with_its_reason() {
    let daemon = Daemon::start(&config());
    let failed = ctl(&daemon, &["submit", "exit3", "--wait"]).expect(1);
    assert_eq!(failed.stdout, b"");
    assert!(failed.stderr.contains("t-1") && failed.stderr.contains("agent_failed"), "{}", failed.stderr);
    let shown = ctl(&daemon, &["tasks", "show", "t-1"]).expect(0).text();
    for part in ["agent_failed", "exit status 3", "the disk is on fire"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(ctl(&daemon, &["tasks", "follow", "t-1"]).expect(1).text().lines().count(), 1);
    ctl(&daemon, &["tasks", "result", "t-1"]).expect(1);
    let as_json = ctl(&daemon, &["submit", "exit3", "--wait", "--json"]).expect(1).json();
    assert_eq!(as_json["error"]["exitStatus"], 3);
    daemon.stop();
}

#[test]
fn a_wait_that_ends_first_has_an_exit_status_of_its_own() {
    let daemon = Daemon::start(&config());
    let file = daemon.path().join("payload");
    std::fs::write(&file, json!({ "ms": 600_000 }).to_string()).expect("it can be written");
    let file = file.to_str().expect("text");
    let over = ctl(&daemon, &["submit", "sleeper", file, "--json-payload", "--wait=1"]).expect(124);
    assert!(over.stderr.contains("t-1"), "{}", over.stderr);
    assert!(ctl(&daemon, &["tasks", "cancel", "t-1"]).expect(0).text().starts_with("t-1: "));
    daemon.in_state("t-1", &["cancelled"]);
    daemon.stop();
}

#[test]
fn tasks_are_listed_shown_followed_explained_and_cancelled() {
    let daemon = Daemon::start(&config());
    let done = daemon.run_task("echo", json!("x"))["id"].as_str().expect("an id").to_owned();
    let running = occupy(&daemon);
    let queued = daemon.accept("echo", json!(1));
    let list = ctl(&daemon, &["tasks", "list"]).expect(0).text();
    let ids: Vec<&str> = list.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(ids, [&queued, &running, &done], "newest first: {list}");
    let filtered = ctl(&daemon, &["tasks", "list", "--state", "queued,running", "--agent", "echo", "--json"]).expect(0);
    assert_eq!(filtered.json()["tasks"].as_array().map(Vec::len), Some(1));
    assert_eq!(ctl(&daemon, &["tasks", "list", "--agent", "nobody"]).expect(0).text(), "no tasks\n");

    let shown = ctl(&daemon, &["tasks", "show", &done]).expect(0).text();
    for part in [&done, "completed", "took", "w-1"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(ctl(&daemon, &["tasks", "show", &done, "--json"]).expect(0).json(), daemon.task(&done));
    let why = ctl(&daemon, &["why", &done]).expect(0).text();
    assert!(why.contains("TASK_STARTED") && why.contains("attempt 1"), "{why}");
    let queue = ctl(&daemon, &["queue"]).expect(0).text();
    assert!(queue.contains(&queued), "{queue}");

    assert_eq!(ctl(&daemon, &["tasks", "cancel", &queued]).expect(0).text(), format!("{queued}: cancelled\n"));
    ctl(&daemon, &["tasks", "cancel", &queued]).expect(1);
    let followed = std::thread::scope(|scope| {
        let follower = scope.spawn(|| ctl(&daemon, &["tasks", "follow", &running]));
        soon("it is followed", || daemon.get("/metrics").text().contains("route=\"/v1/tasks/ID/events\",code=\"200\""));
        ctl(&daemon, &["tasks", "cancel", &running]).expect(0);
        follower.join().expect("it ends")
    });
    let followed = followed.expect(1).text();
    assert!(followed.contains("running") && followed.trim_end().ends_with("cancelled"), "{followed}");
    let lines = ctl(&daemon, &["tasks", "follow", &done, "--json"]).expect(0).json();
    assert_eq!(lines["state"], "completed");
    for command in [&["tasks", "show", "t-99"][..], &["why", "t-99"], &["tasks", "follow", "t-99"]] {
        let unknown = ctl(&daemon, command).expect(1);
        assert!(unknown.stderr.contains("unknown_task"), "{command:?}: {}", unknown.stderr);
    }
    daemon.stop();
}

#[test]
fn every_part_of_the_daemon_has_a_screen_and_the_same_as_json() {
    let daemon = Daemon::start(&config());
    daemon.run_task("echo", json!(1));
    let status = ctl(&daemon, &["status"]).expect(0).text();
    for part in ["kurultaid", "running", "Memory", "Queue", "Workers", "Breakers", "echo"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    for (command, path, screen) in [
        (&["status"][..], "/v1/status", "pid"),
        (&["queue"], "/v1/queue", ""),
        (&["workers"], "/v1/workers", "echo"),
        (&["breakers", "list"], "/v1/breakers", "api"),
        (&["memory"], "/v1/memory", "warning"),
    ] {
        assert!(ctl(&daemon, command).expect(0).text().contains(screen), "{command:?}");
        let printed = ctl(&daemon, &[command, &["--json"]].concat()).expect(0).json();
        let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&printed), keys(&daemon.get(path).expect(200).json()), "{command:?}");
    }
    assert!(ctl(&daemon, &["breakers", "open", "api"]).expect(0).text().contains("open"));
    assert_eq!(ctl(&daemon, &["breakers", "close", "api", "--json"]).expect(0).json()["state"], "closed");
    ctl(&daemon, &["breakers", "open", "nobody"]).expect(1);
    daemon.stop();
}

#[test]
fn what_is_refused_for_now_is_exit_status_75() {
    let daemon = Daemon::start(&config());
    let running = occupy(&daemon);
    for _ in 0..2 {
        ctl(&daemon, &["submit", "cat"]).expect(0);
    }
    let full = ctl(&daemon, &["submit", "cat"]).expect(75);
    assert!(full.stderr.contains("queue_full") && full.stderr.contains("retryAfterS: "), "{}", full.stderr);
    let unknown = ctl(&daemon, &["submit", "nobody"]).expect(1);
    assert!(unknown.stderr.contains("unknown_agent"), "{}", unknown.stderr);
    ctl(&daemon, &["tasks", "cancel", &running]).expect(0);
    daemon.finished("t-3");
    daemon.stop();
}

#[test]
fn a_slip_of_the_finger_is_exit_status_2_and_no_daemon_is_69() {
    let home = Home::new("");
    for arguments in [&["statsu"][..], &[], &["tasks"], &["submit"], &["tasks", "list", "--limit", "0"], &["why"]] {
        let refused = home.ctl(arguments, b"").expect(2);
        assert!(!refused.stderr.is_empty(), "{arguments:?}");
    }
    for command in [&["status"][..], &["submit", "cat"], &["tasks", "list"], &["reload"], &["drain"]] {
        let unreachable = home.ctl(command, b"").expect(69);
        assert!(unreachable.stderr.contains("start kurultaid"), "{command:?}: {}", unreachable.stderr);
    }
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let refused = run(env!("CARGO_BIN_EXE_kurultaictl"), ["--url", &url, "status"], b"").expect(69);
    assert!(refused.stderr.contains(&url), "{}", refused.stderr);
    assert!(home.ctl(&["--version"], b"").expect(0).text().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn over_tcp_it_gives_the_token() {
    use std::os::unix::fs::PermissionsExt;
    let port = free_port();
    let home = Home::new("");
    let token = home.path().join("token");
    std::fs::write(&token, "correct-horse-battery\n").expect("it can be written");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    home.configure(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = {token:?}\n"));
    let daemon = home.start();
    let url = format!("http://127.0.0.1:{port}");
    let program = env!("CARGO_BIN_EXE_kurultaictl");
    let denied = run(program, ["--url", &url, "status"], b"").expect(77);
    assert!(denied.stderr.contains("--token-file"), "{}", denied.stderr);
    let token = token.to_str().expect("text");
    let status = run(program, ["--url", &url, "--token-file", token, "status", "--json"], b"").expect(0).json();
    assert_eq!(status["pid"], daemon.pid());
    daemon.stop();
}

#[test]
fn reload_and_drain_are_commands() {
    let daemon = Daemon::start(&config());
    assert_eq!(ctl(&daemon, &["reload"]).expect(0).text(), "configuration read again; nothing changed\n");
    daemon.home().configure(&config().replace("max_depth = 2", "max_depth = 3"));
    assert!(ctl(&daemon, &["reload"]).expect(0).text().contains("queue.max_depth"));
    daemon.home().configure("[queue]\nmax_depth = 0\n");
    let invalid = ctl(&daemon, &["reload"]).expect(1);
    assert!(invalid.stderr.contains("queue.max_depth"), "{}", invalid.stderr);
    assert!(ctl(&daemon, &["status"]).expect(0).text().contains("reload rejected"));
    daemon.home().configure(&config());
    let running = daemon.accept("sleeper", json!({ "ms": 700 }));
    daemon.in_state(&running, &["running"]);
    assert!(ctl(&daemon, &["drain"]).expect(0).text().starts_with("draining: "));
    assert_eq!(ctl(&daemon, &["submit", "cat"]).expect(75).stdout, b"");
    let daemon = daemon.ended().start();
    assert_eq!(daemon.task(&running)["state"], "completed");
    daemon.stop();
}

#[test]
fn events_are_printed_as_they_happen() {
    let daemon = Daemon::start(&config());
    // The client is a shell's child, so that head(1) can end it after three lines.
    let socket = daemon.home().socket().display().to_string();
    let line = format!(
        "{} --socket {socket} events --types TASK_ACCEPTED,TASK_STARTED,TASK_COMPLETED | head -n 3",
        env!("CARGO_BIN_EXE_kurultaictl")
    );
    let printed = std::thread::scope(|scope| {
        let reader = scope.spawn(|| common::shell(&line));
        soon("it follows", || daemon.get("/metrics").text().contains("route=\"/v1/events\",code=\"200\""));
        daemon.run_task("cat", json!(1));
        // The client notices that nobody reads when it has more to write.
        until("head has three lines", || {
            if reader.is_finished() {
                return Some(());
            }
            daemon.run_task("cat", json!(1));
            None
        });
        reader.join().expect("it ends")
    });
    let text = printed.expect(0).text();
    let events: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(events, ["TASK_ACCEPTED", "TASK_STARTED", "TASK_COMPLETED"], "{text}");
    assert!(text.lines().all(|line| line.contains(" task=t-1 ")), "{text}");
    daemon.stop();
}

#[test]
fn a_result_goes_to_a_pipe_whose_reader_leaves_without_a_complaint() {
    let daemon = Daemon::start(&config());
    let mut connection: Connection = daemon.connect();
    connection.ask(&Request::post("/v1/agents/cat/tasks?wait=30", vec![b'a'; 4 << 20])).expect(200);
    let socket = daemon.home().socket().display().to_string();
    let program = env!("CARGO_BIN_EXE_kurultaictl");
    let cut = common::shell(&format!("{program} --socket {socket} tasks result t-1 | head -c 5")).expect(0);
    assert_eq!((cut.text(), cut.stderr.as_str()), ("aaaaa".to_owned(), ""));
    drop(connection);
    daemon.stop();
}
