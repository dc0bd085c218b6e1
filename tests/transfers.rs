//! Bodies and results on their way: refused before they are sent, streamed without being held, cut into ranges.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Connection, Daemon, Footprint, MIB, Request, free_port, signal, soon, until, worker};
use serde_json::json;

const CAT: &str = "[agents.cat]\ncommand = [\"cat\"]\n";

/// A head that asks for leave to send this many bytes.
fn asking(path: &str, length: u64, more: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n{more}\r\n")
        .into_bytes()
}

/// What refuses submissions: each a daemon in that state, by code, and the request for it.
fn refusing() -> Vec<(&'static str, u16, Daemon, &'static str)> {
    let sleeper = worker("sleeper", "tests/agents/sleeper", "");
    let one = "[workers]\nmax = 1\n[queue]\nmax_depth = 1\n[daemon]\ndrain_timeout_s = 0\n";
    let busy = |config: &str, waiting: usize| {
        let daemon = Daemon::start(&format!("{config}{sleeper}{CAT}"));
        let running = daemon.accept("sleeper", json!({ "ms": 600_000 }));
        daemon.in_state(&running, &["running"]);
        (0..waiting).for_each(|_| drop(daemon.accept("sleeper", json!({ "ms": 1 }))));
        daemon
    };
    let full = busy(one, 1);
    let level = busy(
        "[workers]\nmax = 1\n[queue]\nmax_depth = 9\npriority_limits = { normal = 1 }\n[daemon]\ndrain_timeout_s = 0\n",
        1,
    );
    // The daemon alone is over it.
    let pressure = Daemon::start(&format!("[memory]\nlimit_mb = 4\n{CAT}"));
    soon("memory is short", || pressure.get("/health").status == 503);
    let broken = Daemon::start("[breakers.b]\n[agents.cat]\ncommand = [\"cat\"]\nbreaker = \"b\"\n");
    broken.post("/v1/breakers/b/open", "").expect(200);
    let draining = busy("[workers]\nmax = 1\n[daemon]\ndrain_timeout_s = 20\n", 0);
    signal(draining.pid(), "TERM");
    soon("it drains", || draining.get("/health").json()["status"] == "draining");
    let path = "/v1/agents/cat/tasks";
    vec![
        ("queue_full", 429, full, path),
        ("priority_full", 429, level, path),
        ("memory_pressure", 503, pressure, path),
        ("circuit_open", 503, broken, path),
        ("draining", 503, draining, path),
        ("unknown_agent", 404, Daemon::start(CAT), "/v1/agents/nobody/tasks"),
    ]
}

#[test]
fn what_would_be_refused_is_refused_before_its_body_has_come() {
    let body = vec![b'x'; 4 << 20];
    for (code, status, daemon, path) in refusing() {
        let mut careful = daemon.connect();
        careful.send(&asking(path, 4 << 20, "")).expect("the daemon reads");
        let refused = careful.receive().expect("an answer");
        assert_eq!((refused.status, refused.error_code().as_str()), (status, code), "no leave before it");
        assert_eq!(refused.header("Connection"), Some("close"), "{code}");
        assert!(careful.is_closed(), "{code}");
        // It sends all of its body before it looks for an answer, and finds it.
        let mut hasty = daemon.connect();
        hasty.send(&Request::post(path, body.clone()).bytes()).unwrap_or_else(|error| panic!("{code}: {error}"));
        let refused = hasty.receive().unwrap_or_else(|error| panic!("{code}: {error}"));
        assert_eq!((refused.status, refused.error_code().as_str()), (status, code));
        // The small rest is refused after it has come, on a connection that goes on.
        let mut small = daemon.connect();
        let refused = small.ask(&Request::post(path, "x"));
        assert_eq!((refused.status, refused.error_code().as_str()), (status, code));
        assert_eq!((refused.header("Connection"), small.ask(&Request::get("/health?live")).status), (None, 200));
        let rejected = daemon.logged("TASK_REJECTED");
        assert_eq!(rejected.len(), 3, "each is told: {rejected:?}");
        let payloads = std::fs::read_dir(daemon.path().join("state/payloads")).map_or(0, Iterator::count);
        assert_eq!(payloads, 0, "{code}");
        drop((careful, hasty, small));
        if code == "draining" {
            signal(daemon.pid(), "TERM");
            daemon.ended();
        } else {
            daemon.stop();
        }
    }
}

#[test]
fn leave_is_given_when_the_task_would_be_taken_and_only_then() {
    let daemon = Daemon::start(CAT);
    let before = daemon.footprint();
    for length in [5, 3 << 20] {
        let mut careful = daemon.connect();
        careful.send(&asking("/v1/agents/cat/tasks?wait=30", length, "")).expect("the daemon reads");
        assert_eq!(careful.receive().expect("leave to go on").status, 100, "{length} bytes");
        let body = vec![b'c'; length as usize];
        careful.send(&body).expect("the daemon reads");
        assert!(careful.receive().expect("an answer").expect(200).body == body);
        careful.ask(&Request::get("/health?live")).expect(200);
    }
    let mut envelope = daemon.connect();
    let body = json!({ "agent": "cat", "payload": "e" }).to_string();
    envelope.send(&asking("/v1/tasks?wait=30", body.len() as u64, "")).expect("the daemon reads");
    assert_eq!(envelope.receive().expect("leave to go on").status, 100);
    envelope.send(body.as_bytes()).expect("the daemon reads");
    assert_eq!(envelope.receive().expect("an answer").expect(200).json()["state"], "completed");
    for (path, length, more, status) in [
        ("/v1/agents/cat/tasks", 8 << 20, "", 413),
        ("/v1/tasks", 1 << 20, "", 413),
        ("/v1/tasks", 9, "Content-Type: text/xml\r\n", 415),
        ("/v1/agents/cat/tasks?wait=x", 9, "", 400),
        ("/nowhere", 9, "", 404),
        ("/health", 9, "", 405),
    ] {
        let mut refused = daemon.connect();
        refused.send(&asking(path, length, more)).expect("the daemon reads");
        assert_eq!(refused.receive().expect("an answer").status, status, "{path}, and no leave before it");
        assert!(refused.is_closed(), "{path}: the body may or may not come");
    }
    let mut odd = daemon.connect();
    odd.send(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: tea\r\n\r\n{}").expect("sent");
    let refused = odd.receive().expect("an answer");
    assert_eq!((refused.status, refused.error_code().as_str()), (417, "expectation_failed"));
    for expectation in ["100-continue", "tea"] {
        let mut old = daemon.connect();
        let head = format!(
            "POST /v1/agents/cat/tasks?wait=30 HTTP/1.0\r\nContent-Length: 3\r\nExpect: {expectation}\r\n\r\nold"
        );
        old.send(head.as_bytes()).expect("the daemon reads");
        assert_eq!(old.receive().expect("an answer").expect(200).text(), "old", "an old client does not mean it");
    }
    drop((envelope, odd));
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}

#[test]
fn a_client_over_its_rate_is_told_before_its_body_has_come() {
    let port = free_port();
    let daemon = Daemon::start(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\nsubmit_rate_per_s = 1\n{CAT}"));
    let ask = || {
        let mut connection = Connection::tcp(port).expect("the daemon listens");
        connection.send(&asking("/v1/agents/cat/tasks", 4 << 20, "")).expect("the daemon reads");
        connection.receive().expect("an answer")
    };
    let refused = until("it is too much", || Some(ask()).filter(|response| response.status != 100));
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "rate_limited"));
    daemon.stop();
}

#[test]
fn a_refused_upload_is_thrown_away_and_its_client_reads_the_answer() {
    let port = free_port();
    let daemon = Daemon::start(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n{CAT}"));
    let before = daemon.footprint();
    let request = Request::post("/v1/agents/cat/tasks", vec![b'x'; 20 << 20]).bytes();
    for mut connection in [daemon.connect(), Connection::tcp(port).expect("the daemon listens")] {
        connection.send(&request).expect("all of it is taken");
        let refused = connection.receive().expect("an answer").expect(413);
        assert_eq!(refused.error_code(), "payload_too_large");
        assert!(connection.is_closed());
    }
    // Nobody waits with them: there are fewer handlers than these.
    let head = b"POST /v1/agents/cat/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\nabc";
    let mut silent: Vec<Connection> = (0..20).map(|_| daemon.connect()).collect();
    for connection in &mut silent {
        connection.send(head).expect("the daemon reads");
        connection.receive().expect("an answer").expect(413);
    }
    daemon.get("/health").expect(200);
    soon("those that do not close are closed", || Footprint::of(daemon.pid()).fds == before.fds);
    let grown = Footprint::of(daemon.pid()).rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown < MIB, "RSS grew by {grown} bytes");
    drop(silent);
    daemon.stop();
}

#[test]
fn a_result_can_be_had_in_parts() {
    let daemon = Daemon::start(CAT);
    let small: Vec<u8> = (0..100).collect();
    // Beyond what fits into one answer of a socket, and in a file.
    let large: Vec<u8> = (0_u32..3 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (id, body) in [("t-1", small), ("t-2", large)] {
        daemon.post("/v1/agents/cat/tasks?wait=30", body.clone()).expect(200);
        let path = format!("/v1/tasks/{id}/result");
        let total = body.len();
        let mut connection = daemon.connect();
        let mut ask = |name: &str, value: &str| connection.ask(&Request::get(&path).with(name, value));
        let whole = ask("X", "y").expect(200);
        assert!(whole.body == body && whole.header("Accept-Ranges") == Some("bytes"), "{id}");
        let etag = whole.header("ETag").expect("a name").to_owned();
        assert!(etag.starts_with('"') && etag.contains(id), "{etag}");
        for (range, first, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=10-19".to_owned(), 10, 20),
            ("bytes=10-".to_owned(), 10, total),
            ("bytes=-7".to_owned(), total - 7, total),
            (format!("bytes=-{}", total * 2), 0, total),
            (format!("bytes={}-{}", total - 1, total * 2), total - 1, total),
        ] {
            let part = ask("Range", &range).expect(206);
            let said = format!("bytes {first}-{}/{total}", end - 1);
            assert_eq!(part.header("Content-Range"), Some(said.as_str()), "{range} of {id}");
            assert!(part.body == body[first..end], "{range} of {id}: {} bytes", part.body.len());
            assert_eq!(part.header("ETag"), Some(etag.as_str()));
        }
        for range in ["bytes=0-1,3-4", "lines=0-1", "bytes=2-1", "bytes=x"] {
            assert!(ask("Range", range).expect(200).body == body, "{range} is left alone");
        }
        for range in [format!("bytes={total}-"), "bytes=-0".to_owned()] {
            let refused = ask("Range", &range).expect(416);
            assert_eq!(refused.error_code(), "range_not_satisfiable");
            assert_eq!(refused.header("Content-Range"), Some(format!("bytes */{total}").as_str()), "{range}");
        }
        for tags in [etag.clone(), format!("\"x\", W/{etag}"), "*".to_owned()] {
            let known = ask("If-None-Match", &tags).expect(304);
            assert_eq!((known.body.len(), known.header("ETag")), (0, Some(etag.as_str())), "{tags}");
        }
        ask("If-None-Match", "\"x\"").expect(200);
        let mut conditional =
            |tag: &str| connection.ask(&Request::get(&path).with("Range", "bytes=1-2").with("If-Range", tag)).status;
        assert_eq!(
            (conditional(&etag), conditional("\"x\""), conditional("Tue, 24 Nov 2026 08:15:00 GMT")),
            (206, 200, 200)
        );
        let head = connection.ask(&Request::new("HEAD", &path).with("Range", "bytes=1-2")).expect(200);
        let length = total.to_string();
        assert_eq!(
            (head.header("Content-Length"), head.header("Accept-Ranges"), head.header("ETag"), head.body.len()),
            (Some(length.as_str()), Some("bytes"), Some(etag.as_str()), 0),
            "ranges are defined for GET alone"
        );
    }
    daemon.post("/v1/agents/cat/tasks?wait=30", "").expect(200);
    let empty = daemon.ask(&Request::get("/v1/tasks/t-3/result").with("Range", "bytes=0-")).expect(416);
    assert_eq!(empty.header("Content-Range"), Some("bytes */0"));
    assert_eq!(daemon.ask(&Request::get("/v1/tasks/t-3/result").with("Range", "bytes=-5")).expect(200).body.len(), 0);
    daemon.stop();
}

#[test]
fn sixty_megabytes_pass_in_both_directions_and_memory_does_not_notice() {
    let daemon = Daemon::start(&format!("[gateway]\nmax_body_mb = 64\n{CAT}"));
    daemon.post("/v1/agents/cat/tasks?wait=30", vec![b'w'; 1 << 20]).expect(200);
    let body: Vec<u8> = (0_u32..60 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let before = daemon.footprint();
    let (is_over, highest) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A look every few milliseconds, from the first byte in to the last one out.
            soon("the transfer is over", || {
                highest.fetch_max(Footprint::of(daemon.pid()).rss_bytes, Ordering::Relaxed);
                is_over.load(Ordering::Acquire)
            });
        });
        let accepted = daemon.post("/v1/agents/cat/tasks", body.clone()).expect(202).json();
        let id = accepted["id"].as_str().expect("an id").to_owned();
        daemon.finished(&id);
        let result = daemon.get(&format!("/v1/tasks/{id}/result")).expect(200);
        is_over.store(true, Ordering::Release);
        assert!(result.body == body, "{} bytes came back", result.body.len());
    });
    let grown = highest.into_inner().saturating_sub(before.rss_bytes);
    assert!(grown > 0 || before.rss_bytes > 0, "it was looked at");
    assert!(grown < 4 * MIB, "RSS grew by {grown} bytes while 60 MB passed");
    daemon.has_no_workers();
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}

#[test]
fn clients_that_stop_reading_a_large_result_take_no_handler_and_are_ended() {
    let max = 64;
    let daemon =
        Daemon::start(&format!("[gateway]\nmax_connections = {max}\nmax_body_mb = 20\nidle_timeout_ms = 2000\n{CAT}"));
    daemon.post("/v1/agents/cat/tasks?wait=30", vec![b'r'; 20 << 20]).expect(200);
    daemon.has_no_workers();
    let before = daemon.footprint();
    let mut slow: Vec<Connection> = (0..max)
        .map(|_| {
            let mut connection = daemon.connect();
            connection.send(&Request::get("/v1/tasks/t-1/result").bytes()).expect("the daemon reads");
            connection
        })
        .collect();
    for connection in &mut slow {
        soon("a first byte comes", || connection.has_answer());
    }
    // The last of the places is taken: this one is answered on a short connection.
    until("health is told", || {
        let mut connection = daemon.connect();
        connection.send(&Request::get("/health").bytes()).ok()?;
        connection.receive().ok().filter(|response| response.status == 200)
    });
    let grown = Footprint::of(daemon.pid()).rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown < MIB, "RSS grew by {grown} bytes for answers nobody reads");
    soon("they are let go", || Footprint::of(daemon.pid()).fds == before.fds);
    assert_eq!(Footprint::of(daemon.pid()).threads, before.threads);
    let read = slow[0].rest().expect("what was sent can be read").len();
    assert!(read < 20 << 20, "{read} bytes");
    daemon.stop();
}
