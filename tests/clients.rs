//! Slow, silent and rude clients: each costs itself and nobody else.

mod common;

use std::io::ErrorKind;

use common::{Connection, Daemon, Footprint, Request, signal, soon, until};
use serde_json::json;

const CAT: &str = "[agents.cat]\ncommand = [\"cat\"]\n";

/// The head of an upload, and a little of its body.
fn begin_upload(daemon: &Daemon, head: &str) -> Connection {
    let mut connection = daemon.connect();
    connection
        .send(format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nabc").as_bytes())
        .expect("sent");
    connection
}

#[test]
fn uploads_that_stall_keep_nobody_else_waiting() {
    let daemon = Daemon::start(&format!("[gateway]\nidle_timeout_ms = 600000\n{CAT}"));
    let before = daemon.footprint();
    let stalled: Vec<Connection> =
        ["POST /v1/agents/cat/tasks", "POST /v1/tasks", "POST /nowhere", "GET /health", "DELETE /v1/tasks/t-1"]
            .into_iter()
            .cycle()
            .take(20)
            .map(|head| begin_upload(&daemon, head))
            .collect();
    for n in 0..3 {
        daemon.get("/health").expect(200);
        let body = format!("upload {n}");
        let done = daemon.post("/v1/agents/cat/tasks?wait=30", body.clone());
        assert_eq!((done.status, done.text()), (200, body));
    }
    drop(stalled);
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    assert_eq!(daemon.get("/v1/tasks").json()["tasks"].as_array().map(Vec::len), Some(3));
    daemon.stop();
}

#[test]
fn a_refused_body_that_is_still_to_come_holds_no_handler_and_not_the_next_request() {
    let daemon = Daemon::start(&format!("[gateway]\nidle_timeout_ms = 600000\n{CAT}"));
    let before = daemon.footprint();
    // More than there are handlers, each of which sends nothing more of its body for now.
    let mut waiting: Vec<Connection> = (0..40)
        .map(|_| {
            let mut connection = daemon.connect();
            let head = "POST /v1/agents/nobody/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nabc";
            connection.send(head.as_bytes()).expect("the daemon reads");
            connection
        })
        .collect();
    for connection in &mut waiting {
        let refused = connection.receive().expect("an answer").expect(404);
        assert_eq!((refused.error_code().as_str(), refused.header("Connection")), ("unknown_agent", None));
    }
    daemon.get("/health").expect(200);
    for (n, connection) in waiting.iter_mut().enumerate() {
        // In one piece with the next request, or in two.
        let mut rest = vec![b'x'; 59_997];
        if n % 2 == 0 {
            connection.send(&rest).expect("the daemon reads");
            rest.clear();
        }
        rest.extend(Request::get("/v1/tasks/t-7").bytes());
        connection.send(&rest).expect("the daemon reads");
        assert_eq!(connection.receive().expect("an answer").expect(404).error_code(), "unknown_task");
    }
    drop(waiting);
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}

#[test]
fn an_upload_that_trickles_is_ended() {
    let daemon = Daemon::start(&format!("[gateway]\nidle_timeout_ms = 500\n{CAT}"));
    let mut trickle = begin_upload(&daemon, "POST /v1/agents/cat/tasks");
    // One byte at each look: never silent, and never done.
    let response = until("it is told", || match trickle.send(b"x") {
        Ok(()) => trickle.has_answer().then(|| trickle.receive().expect("an answer")),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
            Some(trickle.receive().expect("it was told before the end"))
        }
    });
    assert_eq!((response.status, response.error_code().as_str()), (408, "invalid_request"));
    soon("nothing of it is left", || {
        std::fs::read_dir(daemon.path().join("state/payloads")).map_or(0, Iterator::count) == 0
    });
    drop(trickle);
    daemon.stop();
}

#[test]
fn a_result_that_is_not_read_waits_in_no_memory_and_not_for_ever() {
    let daemon = Daemon::start(&format!("[gateway]\nidle_timeout_ms = 500\n{CAT}"));
    daemon.post("/v1/agents/cat/tasks?wait=30", vec![b'r'; 6 << 20]).expect(200);
    let before = daemon.footprint();
    let mut slow: Vec<Connection> = (0..8)
        .map(|_| {
            let mut connection = daemon.connect();
            connection.send(&Request::get("/v1/tasks/t-1/result").bytes()).expect("the daemon reads");
            assert_eq!(connection.receive_head().expect("a head").status, 200);
            connection
        })
        .collect();
    daemon.get("/health").expect(200);
    let grown = Footprint::of(daemon.pid()).rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown < 1 << 20, "RSS grew by {grown} bytes for answers nobody reads");
    soon("they are let go", || Footprint::of(daemon.pid()).fds == before.fds);
    let (whole, read) = (6 << 20, slow[0].rest().expect("what was sent can be read").len());
    assert!(read < whole, "{read} bytes of {whole}");
    daemon.stop();
}

#[test]
fn a_follower_that_does_not_read_is_let_go_and_costs_little() {
    let daemon = Daemon::start(CAT);
    let mut healthy = daemon.connect();
    let mut deaf = daemon.connect();
    for connection in [&mut healthy, &mut deaf] {
        connection.send(&Request::get("/v1/events?types=TASK_REJECTED").bytes()).expect("the daemon reads");
        assert_eq!(connection.receive_head().expect("a head").status, 200);
    }
    let before = Footprint::of(daemon.pid());
    let refused = Request::json("/v1/tasks", &json!({ "agent": "x".repeat(64) }));
    let mut client = daemon.connect();
    for _ in 0..3000 {
        client.ask(&refused).expect(404);
        assert_eq!(healthy.next_event().expect("the stream goes on")["event"], "TASK_REJECTED");
    }
    soon("the deaf one is let go", || Footprint::of(daemon.pid()).fds <= before.fds);
    let grown = Footprint::of(daemon.pid()).rss_bytes.saturating_sub(before.rss_bytes);
    // 256 decisions are remembered.
    assert!(grown < 3 << 20, "RSS grew by {grown} bytes");
    drop((healthy, deaf, client));
    daemon.stop();
}

#[test]
fn hundreds_of_connections_that_come_and_go_leave_nothing() {
    let daemon = Daemon::start(CAT);
    daemon.post("/v1/agents/cat/tasks?wait=30", "warm").expect(200);
    let before = daemon.footprint();
    for n in 0..300 {
        let mut connection = daemon.connect();
        let _ = match n % 4 {
            0 => Ok(()),
            1 => connection.send(b"GET /health HTT"),
            2 => connection.send(&Request::get("/v1/status").bytes()),
            _ => connection.send(&Request::post("/v1/agents/cat/tasks", vec![b'x'; 5000]).bytes()[..2000]),
        };
    }
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    let grown = after.rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown < 1 << 20, "RSS grew by {grown} bytes");
    daemon.stop();
}

#[test]
fn no_client_keeps_a_daemon_from_stopping() {
    let daemon = Daemon::start(&format!(
        "[gateway]\nidle_timeout_ms = 600000\nhead_timeout_ms = 60000\n[workers]\nmax = 1\n\
         [daemon]\ndrain_timeout_s = 1\n{CAT}{}",
        common::worker("sleeper", "tests/agents/sleeper", "")
    ));
    let running = daemon.accept("sleeper", json!({ "ms": 600_000 }));
    daemon.in_state(&running, &["running"]);
    let idle = daemon.connect();
    let mut half = daemon.connect();
    half.send(b"GET /health HTT").expect("the daemon reads");
    let stalled = begin_upload(&daemon, "POST /v1/agents/cat/tasks");
    let mut waiting = daemon.connect();
    waiting.send(&Request::post("/v1/agents/cat/tasks?wait=3600", "x").bytes()).expect("the daemon reads");
    soon("it waits", || daemon.get("/v1/queue").json()["depth"] == 1);
    let mut follower = daemon.connect();
    follower.send(&Request::get(format!("/v1/tasks/{running}/events")).bytes()).expect("the daemon reads");
    assert_eq!(follower.receive_head().expect("a head").status, 200);
    assert_eq!(follower.next_event().expect("the present state")["state"], "running");
    signal(daemon.pid(), "TERM");
    daemon.ended();
    assert_eq!(waiting.receive().expect("whoever waits is told").status, 504);
    drop((idle, half, stalled, follower));
}
