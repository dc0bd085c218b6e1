//! Whole commands against a scripted daemon: what is asked, what is shown, and the exit status.

use super::console::{Console, Env};
use super::fake::{Daemon, Recorded, json, run_line, until_close};
use super::run;
use std::ffi::OsString;
use std::io;

const TASK: &str = r#"{"id":"t-7","agent":"wc","priority":"normal","state":"queued","queuePosition":2}"#;
const COMPLETED: &str = r#"{"id":"t-7","agent":"wc","priority":"normal","state":"completed","durationMs":1200}"#;
const FAILED: &str = r#"{"id":"t-7","agent":"wc","state":"failed","error":{"code":"agent_failed","message":"exit status 3","exitStatus":3,"stderrTail":"no such\u001b[2J word\nbye\n"}}"#;
const EVENTS: &str = concat!(
    r#"{"at":"2026-01-02T03:04:05.678Z","type":"state","task":"t-7","state":"running","attempt":2}"#,
    "\n",
    r#"{"at":"2026-01-02T03:04:06.678Z","type":"progress","task":"t-7","percent":30,"message":"a\u001bb"}"#,
    "\n",
);
const STATUS: &str = r#"{"version":"0.1.0","state":"running","pid":812,"uptimeS":11520.4,
 "config":{"file":"/etc/kurultai/kurultai.toml","loadedAt":"2026-01-02T03:04:05.678Z","reload":{"at":"2026-01-02T03:04:05.678Z","result":"rejected","error":"memory.warning is above memory.critical"}},
 "memory":{"level":"critical","mode":"hard","incident":"mem-3","usageBytes":931135488,"limitBytes":1073741824,"pressure":{"budget":0.867,"host":0.31},"thresholds":{"warning":0.7,"critical":0.85,"reject":0.9,"emergency":0.95,"hysteresis":0.1},"daemon":{"rssBytes":2202009},"host":{"totalBytes":4294967296,"availableBytes":2963527434},"sampledAt":"2026-01-02T03:04:05.678Z"},
 "queue":{"depth":3,"maxDepth":5,"parked":1,"byPriority":{"critical":0,"high":1,"normal":2,"low":0,"heartbeat":0},"limits":{"critical":5,"high":5,"normal":5,"low":5,"heartbeat":5},"tasks":[{"id":"t-3","agent":"wc","priority":"high","position":1,"state":"queued"}]},
 "workers":{"max":2,"active":1,"idle":1,"workers":[{"id":"w-1","agent":"architecture-synchroniser-with-a-long-name","mode":"persistent","pid":4194304,"state":"busy","task":"t-1000","startedAt":"2026-01-02T03:04:05.678Z","tasksDone":12,"rssBytes":536870912,"heapUsedBytes":268435456},{"id":"w-2","agent":"wc","state":"idle"}]},
 "breakers":[{"name":"architecture-sync","state":"open","failures":3,"successes":0,"openings":2,"retryAfterMs":1900,"forced":true}],
 "schedules":[{"name":"heartbeat-main","agent":"heartbeat","everyS":300,"nextAt":"2026-01-02T03:04:05.678Z","skipped":4}],
 "storage":{"ok":false,"freeBytes":4096,"error":"/var/lib/kurultai has 0 MiB free","damaged":2},
 "features":{"memoryGovernance":true,"workerPool":false,"circuitBreakers":true,"rolloutPercent":50}}"#;

fn first_line(request: &str) -> &str {
    request.lines().next().unwrap_or_default()
}

#[test]
fn every_command_asks_for_its_route_and_nothing_else() {
    let b = r#"{"name":"x","state":"open"}"#;
    for (line, answer, route) in [
        ("status", STATUS, "GET /v1/status"),
        ("submit wc", TASK, "POST /v1/agents/wc/tasks"),
        (
            "submit a/b --priority 0 --timeout 9 --retries 2",
            TASK,
            "POST /v1/agents/a%2Fb/tasks?priority=critical&timeoutS=9&maxRetries=2",
        ),
        ("tasks list", "{}", "GET /v1/tasks"),
        (
            "tasks list --state queued,running --agent a&b --limit 3",
            "{}",
            "GET /v1/tasks?state=queued,running&agent=a%26b&limit=3",
        ),
        ("tasks show t-7", TASK, "GET /v1/tasks/t-7"),
        ("tasks cancel t-7", TASK, "DELETE /v1/tasks/t-7"),
        ("tasks result t-7", "x", "GET /v1/tasks/t-7/result"),
        ("queue", "{}", "GET /v1/queue"),
        ("workers", "{}", "GET /v1/workers"),
        ("breakers list", "{}", "GET /v1/breakers"),
        ("breakers open x", b, "POST /v1/breakers/x/open"),
        ("breakers close x", b, "POST /v1/breakers/x/close"),
        ("memory", "{}", "GET /v1/memory"),
        ("why t-7", "{}", "GET /v1/tasks/t-7/why"),
        ("events", "", "GET /v1/events"),
        ("events --types A,B", "", "GET /v1/events?types=A,B"),
        ("reload", r#"{"result":"ok"}"#, "POST /v1/reload"),
        ("drain", r#"{"state":"draining"}"#, "POST /v1/drain"),
    ] {
        let daemon = Daemon::answering([json(200, answer)]);
        let outcome = daemon.run(line);
        assert_eq!(outcome.status, 0, "{line}: {}", outcome.err);
        assert_eq!(outcome.err, "", "{line}");
        let requests = daemon.requests();
        assert_eq!(first_line(&requests[0]), format!("{route} HTTP/1.1"), "{line}");
    }
}

#[test]
fn json_is_the_apis_own() {
    for line in
        ["status", "submit wc", "tasks list", "tasks show t-7", "tasks cancel t-7", "queue", "workers", "memory"]
    {
        let body = r#"{ "id" : "t-7",  "unknown": [1]}"#;
        let daemon = Daemon::answering([json(200, body)]);
        assert_eq!(daemon.run(&format!("{line} --json")).out, format!("{body}\n"), "{line}");
    }
}

#[test]
fn refusals_have_the_exit_status_of_their_kind() {
    let error = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"what to do","retryAfterS":3}}}}"#);
    for (answer, status, expected) in [
        (json(429, &error("queue_full")), 75, "queue_full): what to do\nretryAfterS: 3"),
        (json(503, &error("memory_pressure")), 75, "retryAfterS: 3"),
        ("HTTP/1.1 503 X\r\nRetry-After: 9\r\n\r\nbusy".to_owned(), 75, "(http_503): busy\nretryAfterS: 9"),
        (json(401, &error("unauthorized")), 77, "--token-file"),
        (json(403, &error("forbidden")), 77, "403 forbidden"),
        (json(404, &error("unknown_agent")), 1, "(404 unknown_agent): what to do"),
        (json(409, &error("already_finished")), 1, "already_finished"),
        (json(500, ""), 1, "(500 http_500): no reason given"),
        (json(200, "[]x"), 69, "its JSON is not as expected"),
        (
            json(400, r#"{"error":{"code":"invalid_config","message":"a: wrong\nb: \u001bwrong"}}"#),
            1,
            "a: wrong\nb: \\x1bwrong",
        ),
    ] {
        let daemon = Daemon::answering([answer.clone()]);
        let outcome = daemon.run("submit wc");
        assert_eq!(outcome.status, status, "{answer}");
        assert!(outcome.err.contains(expected), "{answer}: {}", outcome.err);
        assert_eq!(outcome.out, "", "{answer}");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_told_with_the_path_and_what_to_do() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("sock");
    let at = |name: &std::path::Path| Env { socket: Some(name.into()), ..Env::default() };
    let missing = run_line("status", &[], &at(&path), false);
    assert_eq!(missing.status, 69);
    assert!(missing.err.contains(&format!("no socket at {}: start kurultaid", path.display())), "{}", missing.err);

    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let dead = run_line("status", &[], &at(&path), false);
    assert_eq!(dead.status, 69);
    assert!(dead.err.contains("onnection refused") && dead.err.contains("--socket PATH"), "{}", dead.err);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    drop(listener);
    let outcome = run_line(&format!("status --url {url}"), &[], &Env::default(), false);
    assert_eq!(outcome.status, 69);
    assert!(outcome.err.contains(&url), "{}", outcome.err);
}

#[test]
fn a_token_file_becomes_a_bearer_token_or_is_refused_before_anything_is_sent() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("token");
    std::fs::write(&file, "s3cret\n").expect("write");
    let daemon = Daemon::answering([json(200, "{}")]);
    assert_eq!(daemon.run(&format!("queue --token-file {}", file.display())).status, 0);
    assert!(daemon.requests()[0].contains("\r\nAuthorization: Bearer s3cret\r\n"));
    for (content, expected) in [("", "visible ASCII"), ("a\nb", "visible ASCII"), ("a b", "visible ASCII")] {
        std::fs::write(&file, content).expect("write");
        let outcome = run_line(&format!("queue --token-file {}", file.display()), &[], &Env::default(), false);
        assert_eq!(outcome.status, 1, "{content:?}");
        assert!(outcome.err.contains(expected), "{content:?}: {}", outcome.err);
    }
    let outcome = run_line("queue --token-file /nonexistent", &[], &Env::default(), false);
    assert!(outcome.status == 1 && outcome.err.contains("the token file /nonexistent"), "{}", outcome.err);
}

#[test]
fn a_payload_comes_from_a_file_from_standard_input_or_is_empty() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("in");
    std::fs::write(&file, "from a file").expect("write");
    let long = "x".repeat(3 * 1024 * 1024);
    for (line, input, expected) in [
        ("submit wc".to_owned(), "ignored", ""),
        ("submit wc -".to_owned(), "typed", "typed"),
        ("submit wc -".to_owned(), long.as_str(), long.as_str()),
        (format!("submit wc {}", file.display()), "ignored", "from a file"),
        ("submit wc /proc/self/comm".to_owned(), "", &std::fs::read_to_string("/proc/self/comm").expect("comm")),
    ] {
        let daemon = Daemon::answering([json(202, TASK)]);
        let outcome = daemon.run_with_input(&line, input.as_bytes());
        assert_eq!((outcome.status, outcome.out.as_str()), (0, "t-7\n"), "{line}: {}", outcome.err);
        let requests = daemon.requests();
        let (head, body) = requests[0].split_once("\r\n\r\n").expect("a head");
        // Why: `comm` differs between threads of a test run; its being sent is the point.
        assert!(body == expected || line.contains("/proc/"), "{line}: {} bytes", body.len());
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())) && body.is_empty() == expected.is_empty(),
            "{head}"
        );
        assert!(head.contains("Content-Type: application/octet-stream"), "{head}");
    }
    let outcome = run_line("submit wc /nonexistent", &[], &Env::default(), false);
    assert!(outcome.status == 1 && outcome.err.contains("cannot read /nonexistent"), "{}", outcome.err);
    let outcome = run_line("submit wc /", &[], &Env::default(), false);
    assert!(outcome.status == 1 && outcome.err.contains("cannot read /:"), "{}", outcome.err);
}

#[test]
fn json_payload_and_key_travel_in_headers() {
    let daemon = Daemon::answering([json(202, TASK)]);
    daemon.run_with_input("submit wc - --json-payload --idempotency-key once", b"{}");
    let request = &daemon.requests()[0];
    assert!(request.contains("\r\nContent-Type: application/json\r\nIdempotency-Key: once\r\n"), "{request}");
}

#[test]
fn waiting_ends_with_the_result() {
    let daemon = Daemon::answering([json(202, TASK), until_close(EVENTS), json(200, COMPLETED), json(200, "  42\n")]);
    let outcome = daemon.run("submit wc --wait");
    assert_eq!((outcome.status, outcome.out.as_str(), outcome.err.as_str()), (0, "  42\n", ""));
    let requests = daemon.requests();
    let routes: Vec<_> = requests.iter().map(|request| first_line(request)).collect();
    assert_eq!(routes[1], "GET /v1/tasks/t-7/events HTTP/1.1");
    assert_eq!(routes[2], "GET /v1/tasks/t-7 HTTP/1.1");
    assert_eq!(routes[3], "GET /v1/tasks/t-7/result HTTP/1.1");
}

#[test]
fn waiting_for_a_task_that_fails_ends_with_1_the_cause_and_its_stderr() {
    let daemon = Daemon::answering([json(202, TASK), until_close(EVENTS), json(200, FAILED)]);
    let outcome = daemon.run("submit wc --wait");
    assert_eq!((outcome.status, outcome.out.as_str()), (1, ""));
    assert_eq!(
        outcome.err,
        "kurultaictl: task t-7 failed: agent_failed: exit status 3\nend of its stderr:\n  no such\\x1b[2J word\n  bye\n"
    );
}

#[test]
fn every_end_but_completion_is_a_failure() {
    for state in ["failed", "cancelled", "skipped", "evicted"] {
        let task = format!(r#"{{"id":"t-7","state":"{state}"}}"#);
        let daemon = Daemon::answering([until_close(""), json(200, &task)]);
        let outcome = daemon.run("tasks follow t-7");
        assert_eq!(outcome.status, 1, "{state}");
        assert!(outcome.err.contains(state), "{state}: {}", outcome.err);
    }
}

#[test]
fn waiting_survives_a_restart_of_the_daemon() {
    let busy = json(503, r#"{"error":{"code":"draining","message":"m","retryAfterS":1}}"#);
    let cut = EVENTS[..EVENTS.len() - 20].to_owned();
    let daemon = Daemon::answering([
        json(202, TASK),
        until_close(&cut),
        json(200, TASK),
        busy.clone(),
        busy,
        until_close(EVENTS),
        json(200, COMPLETED),
        json(200, "42"),
    ]);
    let outcome = daemon.run("submit wc --wait");
    assert_eq!((outcome.status, outcome.out.as_str()), (0, "42"), "{}", outcome.err);
}

#[test]
fn a_daemon_that_does_not_come_back_is_given_up_and_the_task_named() {
    let daemon = Daemon::answering([json(202, TASK), until_close(EVENTS)]);
    let outcome = daemon.run("submit wc --wait");
    assert_eq!(outcome.status, 69);
    assert!(outcome.err.contains("task t-7 was accepted and is kept"), "{}", outcome.err);
}

#[test]
fn a_wait_that_runs_out_ends_with_124_and_leaves_the_task() {
    let (end_tx, end_rx) = crossbeam::channel::bounded::<()>(0);
    let daemon = Daemon::serving(move |listener, _| {
        use std::io::Write;
        let (stream, _) = listener.accept().expect("accept");
        super::fake::read_request(&stream);
        (&stream).write_all(json(202, TASK).as_bytes()).expect("answer");
        drop(stream);
        let (stream, _) = listener.accept().expect("accept");
        super::fake::read_request(&stream);
        (&stream).write_all(until_close(EVENTS).as_bytes()).expect("answer");
        let _ = end_rx.recv();
    });
    let outcome = daemon.run("submit wc --wait=1");
    drop(end_tx);
    assert_eq!(outcome.status, 124);
    assert!(
        outcome.err.contains("t-7 is not finished after 1 s and goes on: kurultaictl tasks follow t-7"),
        "{}",
        outcome.err
    );
    daemon.requests();
}

#[test]
fn following_prints_each_event_as_a_line() {
    let daemon = Daemon::answering([until_close(EVENTS), json(200, COMPLETED)]);
    let outcome = daemon.run("tasks follow t-7");
    assert_eq!(outcome.out, "2026-01-02T03:04:05.678Z  running, attempt 2\n2026-01-02T03:04:06.678Z   30 % a\\x1bb\n");
    let daemon = Daemon::answering([until_close(EVENTS), json(200, COMPLETED)]);
    assert_eq!(daemon.run("tasks follow t-7 --json").out, EVENTS);
}

#[test]
fn a_result_is_untouched_in_a_pipe_and_harmless_on_a_terminal() {
    let result = json(200, "\x1b]0;owned\x07ok");
    let daemon = Daemon::answering([result.clone()]);
    assert_eq!(daemon.run("tasks result t-7").out, "\x1b]0;owned\x07ok");
    let daemon = Daemon::answering([result]);
    assert_eq!(daemon.run_on_terminal("tasks result t-7").out, "\\x1b]0;owned\\x07ok\n");
}

#[test]
fn the_status_fits_a_terminal_and_shows_what_matters() {
    let daemon = Daemon::answering([json(200, STATUS)]);
    let out = daemon.run_on_terminal("status").out;
    for part in [
        "running, 0.1.0, pid 812, up 3h12m",
        "the old configuration is in force: memory.warning",
        "switched off: worker pool",
        "new tasks are refused for want of disk: /var/lib/kurultai has 0 MiB free",
        "damaged or lost in the state directory: 2 since the start",
        "critical, incident mem-3, mode hard, 888.0 of 1024.0 MiB",
        "] 86.7 %",
        "budget 86.7 %, host 31.0 %; thresholds | at 70, 85, 90, 95 %",
        "3 of 5 waiting, 1 preempted and parked",
        "high 1/5",
        "1 active, 1 idle, at most 2",
        "512.0",
        "open (forced)",
        "1s",
        "heartbeat-main",
        "5m0s",
    ] {
        assert!(out.contains(part), "{part:?} is missing in\n{out}");
    }
    for line in out.lines() {
        assert!(line.chars().count() <= 80, "too wide: {line}");
    }
}

#[test]
fn objects_that_lack_everything_are_shown_all_the_same() {
    for line in
        ["status", "tasks show t-7", "queue", "workers", "breakers list", "memory", "why t-7", "breakers open x"]
    {
        let daemon = Daemon::answering([json(200, "{}")]);
        let outcome = daemon.run(line);
        assert_eq!((outcome.status, outcome.err.as_str()), (0, ""), "{line}");
    }
}

#[test]
fn watching_goes_on_until_nobody_reads() {
    for terminal in [false, true] {
        let looks = [json(200, STATUS), "".to_owned()].into_iter().chain(vec![json(200, STATUS); 8]);
        let daemon = Daemon::answering(looks);
        let (out, err) = (Recorded::breaking_after(2000), Recorded::default());
        let input = Box::new(io::empty());
        let mut console = Console::for_test(Box::new(out.clone()), Box::new(err.clone()), input, terminal);
        let env = Env { socket: Some(daemon.socket()), ..Env::default() };
        let status = run(["status", "--watch"].map(OsString::from), &env, &mut console);
        assert_eq!(status, 0, "{}", err.text());
        assert!(out.text().matches("kurultaid").count() >= 2, "{}", out.text());
        assert_eq!(out.text().contains("\x1b[H\x1b[2J"), terminal);
        assert!(err.text().contains("broke"), "the failed look is told: {}", err.text());
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let daemon = Daemon::answering([json(200, STATUS)]);
    let err = Recorded::default();
    let out = Box::new(Recorded::breaking_after(10));
    let mut console = Console::for_test(out, Box::new(err.clone()), Box::new(io::empty()), false);
    let env = Env { socket: Some(daemon.socket()), ..Env::default() };
    assert_eq!(run(["status"].map(OsString::from), &env, &mut console), 0);
    assert_eq!(err.text(), "");
}

#[test]
fn why_tells_the_decisions_with_their_ids() {
    let body = r#"{"task":"t-7","state":"preempted","decisions":[{"at":"2026-01-02T03:04:05.678Z","event":"TASK_PREEMPTED","task":"t-7","worker":"w-1","incident":"mem-3","text":"critical memory, 86.7 % of 1024 MiB, and no other running task has a lower priority than this one","figures":{}}]}"#;
    let daemon = Daemon::answering([json(200, body)]);
    let out = daemon.run_on_terminal("why t-7").out;
    assert!(out.starts_with("task t-7 is preempted\n\n2026-01-02T03:04:05.678Z  TASK_PREEMPTED  worker w-1  incident mem-3\n  critical memory"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
}
