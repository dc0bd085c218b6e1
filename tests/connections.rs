//! How many may be connected, and what is still to be had when all of them are.

mod common;

use std::ffi::OsStr;
use std::process::Command;

use common::{Connection, Daemon, Footprint, Home, Request, command, free_port, metric, shell, soon, until, worker};
use serde_json::json;

/// As kurultai.toml(5) has it under max_connections.
const SHORT: usize = 4;

/// With an agent whose tasks a stop does not wait for.
fn sleeper() -> String {
    format!("[daemon]\ndrain_timeout_s = 0\n{}", worker("sleeper", "tests/agents/sleeper", ""))
}

/// `max` connections, half of them waiting for a task that does not end, the others following events.
fn occupied(daemon: &Daemon, max: usize) -> Vec<Connection> {
    let running = daemon.accept("sleeper", json!({ "ms": 600_000 }));
    daemon.in_state(&running, &["running"]);
    daemon.footprint();
    let mut held: Vec<Connection> = (0..max).map(|_| daemon.connect()).collect();
    for (nth, connection) in held.iter_mut().enumerate() {
        let request = match nth % 2 {
            0 => Request::post("/v1/agents/sleeper/tasks?wait=3600", "{\"ms\":1}")
                .with("Content-Type", "application/json"),
            _ => Request::get(format!("/v1/tasks/{running}/events")),
        };
        connection.send(&request.bytes()).expect("the daemon reads");
        if nth % 2 == 1 {
            assert_eq!(connection.receive_head().expect("a head").status, 200);
        }
    }
    soon("every other one waits", || daemon.get("/v1/queue").json()["depth"] == max.div_ceil(2));
    held
}

#[test]
fn with_every_connection_taken_short_requests_are_answered_at_once_and_long_ones_refused() {
    let max = 16;
    let config = format!(
        "[gateway]\nmax_connections = {max}\n[queue]\nmax_depth = 50\npriority_limits = {{ normal = 50 }}\n\
         [workers]\nmax = 1\n[agents.cat]\ncommand = [\"cat\"]\n{}",
        sleeper()
    );
    let daemon = Daemon::start(&config);
    let held = occupied(&daemon, max);
    let full = Footprint::of(daemon.pid());
    for path in ["/health", "/health?live", "/metrics", "/v1/status", "/v1/queue", "/v1/tasks", "/v1/tasks/t-1"] {
        let mut connection = daemon.connect();
        let response = connection.ask(&Request::get(path)).expect(200);
        assert_eq!(response.header("Connection"), Some("close"), "{path}");
        assert!(connection.is_closed(), "{path}: it is for one request");
    }
    assert_eq!(daemon.home().ctl(&["status"], b"").expect(0).stderr, "");
    let accepted = daemon.post("/v1/agents/cat/tasks", "short").expect(202).json();
    let id = accepted["id"].as_str().expect("an id");
    daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{id}"))).expect(202);
    let long = [
        Request::post("/v1/agents/cat/tasks?wait=1", "x"),
        Request::json("/v1/tasks?wait=1", &json!({ "agent": "cat" })),
        Request::get("/v1/events"),
        Request::get("/v1/tasks/t-1/events"),
        Request::get("/v1/tasks/t-1/result"),
        Request::post("/v1/agents/cat/tasks", vec![b'x'; 20_000]),
    ];
    for request in long {
        let refused = daemon.ask(&request).expect(503);
        assert_eq!(refused.error_code(), "overloaded", "{refused:?}");
    }
    let mut idle: Vec<Connection> = Vec::new();
    let mut turned_away = until("all places are taken", || {
        let mut connection = daemon.connect();
        let is_answered = connection.has_answer();
        idle.push(connection);
        (is_answered && idle.len() > SHORT).then(|| idle.pop().expect("it was just put there"))
    });
    let refused = turned_away.receive().expect("told without being asked").expect(503);
    assert_eq!(refused.error_code(), "overloaded");
    assert!(turned_away.is_closed());
    drop((idle, turned_away));
    soon("the short ones are free again", || {
        let mut connection = daemon.connect();
        let _ = connection.send(&Request::get("/health?live").bytes());
        connection.receive().is_ok_and(|response| response.status == 200)
    });
    soon("nothing of it is left", || Footprint::of(daemon.pid()).fds <= full.fds);
    assert_eq!(Footprint::of(daemon.pid()).threads, full.threads);
    drop(held);
    daemon.stop();
}

#[test]
fn silent_connections_keep_nobody_out() {
    let daemon = Daemon::start("[gateway]\nmax_connections = 8\nidle_timeout_ms = 600000\n");
    daemon.footprint();
    let mut silent: Vec<Connection> = Vec::new();
    for n in 0..40 {
        silent.push(daemon.connect());
        let mut speaking = daemon.connect();
        speaking.ask(&Request::get("/health")).expect(200);
        assert_eq!(speaking.ask(&Request::get("/health?live")).status, 200, "beside {n} that say nothing");
    }
    for connection in silent.iter_mut().take(8) {
        assert!(connection.is_closed(), "the longest idle gave way");
    }
    drop(silent);
    daemon.stop();
}

#[test]
fn whoever_says_nothing_on_a_short_connection_loses_it_to_others() {
    let gateway =
        "[gateway]\nmax_connections = 4\nhead_timeout_ms = 300\nidle_timeout_ms = 600000\n[workers]\nmax = 1\n";
    let daemon = Daemon::start(&format!("{gateway}{}", sleeper()));
    let lasting = occupied(&daemon, 4);
    // The place of the last one that asked may not be free yet.
    let mut silent: Vec<Connection> = (1..SHORT).map(|_| daemon.connect()).collect();
    for connection in &mut silent {
        assert!(connection.is_closed(), "after head_timeout_ms, not idle_timeout_ms");
    }
    daemon.get("/health?live").expect(200);
    drop(lasting);
    daemon.stop();
}

#[test]
fn clients_that_wait_or_follow_and_leave_are_noticed_and_their_places_are_free() {
    let max = 120;
    let config = format!(
        "[gateway]\nmax_connections = {max}\n[queue]\nmax_depth = 200\npriority_limits = {{ normal = 200 }}\n\
         [workers]\nmax = 1\n{}",
        sleeper()
    );
    let daemon = Daemon::start(&config);
    let held = occupied(&daemon, max);
    let full = Footprint::of(daemon.pid());
    let connections = || metric(&daemon, "kurultai_http_connections");
    assert_eq!(connections(), max as f64 + 1.0, "and the one that asks");
    // All at once: none of them may be overlooked.
    drop(held);
    soon("every one is noticed", || connections() == 1.0);
    soon("and its descriptor given back", || Footprint::of(daemon.pid()).fds + max <= full.fds);
    assert_eq!(Footprint::of(daemon.pid()).threads, full.threads);
    daemon.stop();
}

#[test]
fn a_client_that_vanishes_without_a_word_is_asked_for_after_a_while() {
    let port = free_port();
    let daemon = Daemon::start(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n"));
    let mut follower = Connection::tcp(port).expect("the daemon listens");
    follower.send(&Request::get("/v1/events?types=TASK_FAILED").bytes()).expect("the daemon reads");
    assert_eq!(follower.receive_head().expect("a head").status, 200);
    // proc_net(5): local address, peer, state 01 (established), queues, and timer 02 (keepalive) with its jiffies.
    let local = format!(" 0100007F:{port:04X} ");
    soon("the kernel's timer runs", || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("proc_net(5)");
        table.lines().filter(|line| line.contains(&local)).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1] == local.trim() && fields[3] == "01" && fields[5].starts_with("02:")
        })
    });
    drop(follower);
    daemon.stop();
}

#[test]
fn hundreds_of_idle_connections_cost_no_thread_and_the_cap_holds() {
    let max = 100;
    let daemon = Daemon::start(&format!("[gateway]\nmax_connections = {max}\nidle_timeout_ms = 600000\n"));
    let before = daemon.footprint();
    let held: Vec<Connection> = (0..500).filter_map(|_| Connection::unix(&daemon.home().socket()).ok()).collect();
    assert_eq!(held.len(), 500, "a listener's backlog takes them as long as it must");
    soon("all places are taken", || Footprint::of(daemon.pid()).fds >= before.fds + max);
    let during = Footprint::of(daemon.pid());
    assert_eq!(during.threads, before.threads);
    // The short ones, those that were turned away and have not closed yet, and one that is being accepted.
    assert!(during.fds <= before.fds + max + SHORT + 16 + 1, "{during:?} after {before:?}");
    let grown = during.rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown < 512 << 10, "RSS grew by {grown} bytes for {max} idle connections");
    drop(held);
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.get("/health").expect(200);
    daemon.stop();
}

#[test]
fn a_daemon_that_runs_out_of_descriptors_recovers() {
    let daemon = Daemon::start("[gateway]\nmax_connections = 64\nidle_timeout_ms = 600000\n");
    let before = daemon.footprint();
    let few = before.fds + 8;
    shell(&format!("prlimit --pid {} --nofile={few}:{few}", daemon.pid())).expect(0);
    let mut held: Vec<Connection> = (0..40).map(|_| daemon.connect()).collect();
    soon("there are none left", || !daemon.logged_text("cannot accept connections").is_empty());
    assert_eq!(Footprint::of(daemon.pid()).threads, before.threads);
    held[0].ask(&Request::get("/health")).expect(200);
    drop(held);
    until("it hears again", || {
        let mut connection = daemon.connect();
        connection.send(&Request::get("/health").bytes()).ok()?;
        connection.receive().ok().filter(|response| response.status == 200)
    });
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}

/// The soft limit of open files.
fn soft_limit(daemon: &Daemon) -> usize {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("the daemon lives");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("proc_pid_limits(5)");
    line.split_whitespace().next().and_then(|soft| soft.parse().ok()).expect("a number")
}

#[test]
fn what_the_daemon_provides_for_is_enough_for_all_there_can_be() {
    let max = 24;
    let config = format!(
        "[gateway]\nmax_connections = {max}\nidle_timeout_ms = 600000\nhead_timeout_ms = 60000\n\
         [workers]\nmax = 6\n[queue]\nmax_depth = 50\npriority_limits = {{ normal = 50 }}\n\
         [agents.cat]\ncommand = [\"cat\"]\n{}",
        sleeper()
    );
    let daemon = Home::new(&config).start_with(|command| limited(command, 64, 4096));
    daemon.post("/v1/agents/cat/tasks?wait=30", vec![b'r'; 3 << 20]).expect(200);
    let running: Vec<String> = (0..6).map(|_| daemon.accept("sleeper", json!({ "ms": 600_000 }))).collect();
    running.iter().for_each(|task| drop(daemon.in_state(task, &["running"])));
    daemon.footprint();
    // Each is sent a file it does not read, and there are more clients than places.
    let mut held: Vec<Connection> = (0..max).map(|_| daemon.connect()).collect();
    for connection in &mut held {
        connection.send(&Request::get("/v1/tasks/t-1/result").bytes()).expect("the daemon reads");
        assert_eq!(connection.receive_head().expect("a head").status, 200);
    }
    held.extend((0..40).map(|_| daemon.connect()));
    let (mut most, limit) = (0, soft_limit(&daemon));
    until("those too many are told", || {
        most = most.max(Footprint::of(daemon.pid()).fds);
        held.last_mut().is_some_and(Connection::has_answer).then_some(())
    });
    assert!(most > 2 * max && most <= limit, "{most} descriptors of {limit}");
    assert_eq!(daemon.logged_text("cannot accept a connection"), Vec::<String>::new());
    drop(held);
    daemon.stop();
}

/// Makes it start with these limits of open files.
fn limited(start: &mut Command, soft: usize, hard: usize) -> &mut Command {
    let program = start.get_program().to_owned();
    let arguments: Vec<_> = start.get_args().map(OsStr::to_owned).collect();
    *start = command("prlimit");
    start.arg(format!("--nofile={soft}:{hard}")).arg(program).args(arguments)
}

#[test]
fn the_limit_of_descriptors_is_raised_as_far_as_the_configuration_needs_and_the_host_allows() {
    for (hard, is_enough) in [(2048, true), (100, false)] {
        let daemon = Home::new("").start_with(|command| limited(command, 80, hard));
        let soft = soft_limit(&daemon);
        let warned = !daemon.logged_text("the limit of open files is").is_empty();
        assert_eq!((soft > 100, warned), (is_enough, !is_enough), "{soft}");
        assert!(soft <= 512, "no more than it needs: {soft}");
        daemon.stop();
    }
}

#[test]
fn a_client_that_leaves_as_soon_as_it_has_asked_is_not_waited_for() {
    let config = format!(
        "[gateway]\nmax_connections = 64\n[queue]\nmax_depth = 600\npriority_limits = {{ normal = 600 }}\n\
         [workers]\nmax = 1\n[spool]\ndurability = \"none\"\n{}",
        sleeper()
    );
    let daemon = Daemon::start(&config);
    let running = daemon.accept("sleeper", json!({ "ms": 600_000 }));
    daemon.in_state(&running, &["running"]);
    let before = daemon.footprint();
    let asked = Request::json("/v1/agents/sleeper/tasks?wait=3600", &json!({ "ms": 1 })).bytes();
    for _ in 0..400 {
        let mut connection = daemon.connect();
        // It may be turned away while those before it are being noticed.
        let _ = connection.send(&asked);
    }
    soon("every one is noticed", || {
        let mut connection = daemon.connect();
        let _ = connection.send(&Request::get("/metrics").bytes());
        let is_alone = |text: String| text.lines().any(|line| line == "kurultai_http_connections 1");
        connection.receive().is_ok_and(|response| response.status == 200 && is_alone(response.text()))
    });
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}
