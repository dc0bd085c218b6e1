//! What clients may send: every refusal with its documented status and error, and everything sound answered.

mod common;

use common::{Connection, Daemon, Home, Request, Response, free_port, run, soon, until, worker};
use serde_json::{Value, json};

const CONFIG: &str = "[agents.cat]\ncommand = [\"cat\"]\n[breakers.b]\n";

fn config() -> String {
    format!(
        "[workers]\nmax = 1\ncancel_grace_ms = 100\n[gateway]\nmax_body_mb = 7\n{}{CONFIG}",
        worker("sleeper", "tests/agents/sleeper", "")
    )
}

/// A daemon on TCP as well, and its port.
fn on_tcp(gateway: &str) -> (Daemon, u16) {
    let port = free_port();
    let daemon = Daemon::start(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n{gateway}\n{CONFIG}"));
    (daemon, port)
}

fn raw(daemon: &Daemon, bytes: &[u8]) -> Response {
    let mut connection = daemon.connect();
    let sent = connection.send(bytes);
    connection.receive().unwrap_or_else(|error| panic!("{error} (sent: {sent:?}): {}", bytes.escape_ascii()))
}

#[test]
fn what_is_no_sound_request_is_refused_and_the_connection_closed() {
    let daemon = Daemon::start(&config());
    let get = |headers: &str| format!("GET /health HTTP/1.1\r\n{headers}\r\n\r\n").into_bytes();
    let post = |headers: &str| format!("POST /v1/tasks HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{{}}").into_bytes();
    let long = "x".repeat(9000);
    let malformed = [
        ("no HTTP", b"hello there\r\n\r\n".to_vec()),
        ("HTTP/2.0", b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n".to_vec()),
        ("no path", b"GET health HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("no host", get("X: y")),
        ("two hosts", get("Host: x\r\nHost: y")),
        ("a host that is no text", b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n".to_vec()),
        ("a space before the colon", post("Content-Length : 2")),
        ("a folded header", post("X: a\r\n b")),
        ("a control character", post("X: a\x01b")),
        ("a signed length", post("Content-Length: +2")),
        ("a hexadecimal length", post("Content-Length: 0x2")),
        ("no length in the header", post("Content-Length:")),
        ("two lengths", post("Content-Length: 2\r\nContent-Length: 2")),
        ("a list of lengths", post("Content-Length: 2, 2")),
        ("an endless length", post("Content-Length: 99999999999999999999")),
        ("length and chunked", post("Content-Length: 2\r\nTransfer-Encoding: chunked")),
        ("gzip", post("Transfer-Encoding: gzip")),
        ("chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
    ];
    let large = [
        ("a long header", get(&format!("Host: x\r\nX: {long}"))),
        ("a long path", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()),
        ("many headers", get(&format!("Host: x{}", "\r\nA: b".repeat(64)))),
    ];
    for (status, (what, bytes)) in malformed.map(|row| (400, row)).into_iter().chain(large.map(|row| (431, row))) {
        let mut connection = daemon.connect();
        let _ = connection.send(&bytes);
        let response = connection.receive().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((response.status, response.error_code().as_str()), (status, "invalid_request"), "{what}");
        assert_eq!(response.header("Connection"), Some("close"), "{what}");
        assert!(connection.is_closed(), "{what}");
    }
    assert_eq!(daemon.get("/health").status, 200);
    daemon.stop();
}

#[test]
fn what_is_sound_and_not_possible_is_refused_and_the_connection_goes_on() {
    let daemon = Daemon::start(&config());
    let get = |path: &str| Request::get(path);
    let post = |path: &str, body: &str| Request::post(path, body);
    let submit = |body: &str| Request::post("/v1/tasks", body).with("Content-Type", "application/json");
    let invalid = [
        get("/health?deep"),
        get("/health?live&live"),
        get("/v1/tasks?limit=0"),
        get("/v1/tasks?limit=1001"),
        get("/v1/tasks?limit=1.5"),
        get("/v1/tasks?limit=-1"),
        get("/v1/tasks?limit="),
        get("/v1/tasks?limit=1&limit=2"),
        get("/v1/tasks?state=sleeping"),
        get("/v1/tasks?state=queued,"),
        get("/v1/tasks?colour=blue"),
        get("/v1/tasks?agent=%zz"),
        get("/v1/tasks?agent=%ff"),
        get("/v1/decisions?limit=x"),
        get("/v1/status?all"),
        get("/v1/events?types=TEA_TIME"),
        get("/metrics?x=1"),
        post("/v1/tasks?wait=-1", "{}"),
        post("/v1/tasks?wait=3601", "{}"),
        post("/v1/tasks?wait=NaN", "{}"),
        post("/v1/tasks?wait=soon", "{}"),
        post("/v1/tasks?priority=high", "{}"),
        post("/v1/agents/cat/tasks?priority=5", ""),
        post("/v1/agents/cat/tasks?priority=urgent", ""),
        post("/v1/agents/cat/tasks?timeoutS=0", ""),
        post("/v1/agents/cat/tasks?timeoutS=-1", ""),
        post("/v1/agents/cat/tasks?timeoutS=1801", ""),
        post("/v1/agents/cat/tasks?maxRetries=-1", ""),
        post("/v1/agents/cat/tasks?maxRetries=1001", ""),
        post("/v1/agents/cat/tasks?preemptible=maybe", ""),
        post("/v1/agents/cat/tasks", "{\"a\":").with("Content-Type", "application/json"),
        submit(""),
        submit("null"),
        submit("[]"),
        submit("{\"agent\":"),
        submit("{}"),
        submit("{\"agent\":7}"),
        submit("{\"agent\":\"cat\"} x"),
        submit("{\"agent\":\"cat\",\"colour\":\"blue\"}"),
        submit("{\"agent\":\"cat\",\"agent\":\"cat\"}"),
        submit("{\"agent\":\"cat\",\"priority\":5}"),
        submit("{\"agent\":\"cat\",\"priority\":-1}"),
        submit("{\"agent\":\"cat\",\"priority\":1.5}"),
        submit("{\"agent\":\"cat\",\"priority\":\"urgent\"}"),
        submit("{\"agent\":\"cat\",\"timeoutS\":0}"),
        submit("{\"agent\":\"cat\",\"timeoutS\":1e99}"),
        submit("{\"agent\":\"cat\",\"timeoutS\":\"60\"}"),
        submit("{\"agent\":\"cat\",\"maxRetries\":-1}"),
        submit("{\"agent\":\"cat\",\"maxRetries\":1001}"),
        submit("{\"agent\":\"cat\",\"preemptible\":1}"),
    ];
    let unsupported = Request::post("/v1/tasks", "<task/>").with("Content-Type", "text/xml");
    let rest = [
        (get("/nowhere"), 404, "not_found"),
        (get("/v1"), 404, "not_found"),
        (get("/v1/tasks/"), 404, "unknown_task"),
        (get("/v1/tasks/7"), 404, "unknown_task"),
        (get("/v1/tasks/t-0"), 404, "unknown_task"),
        (get("/v1/tasks/t-99999999999999999999"), 404, "unknown_task"),
        (get("/v1/tasks/t-1/result"), 404, "unknown_task"),
        (get("/v1/tasks/t-1/colour"), 404, "not_found"),
        (post("/v1/breakers/b/explode", ""), 404, "not_found"),
        (submit("{\"agent\":\"nobody\"}"), 404, "unknown_agent"),
        (post("/v1/agents/nobody/tasks", "x"), 404, "unknown_agent"),
        (unsupported, 415, "unsupported_media_type"),
        (submit(&format!("{{\"agent\":\"cat\",\"payload\":\"{}\"}}", "x".repeat(256 << 10))), 413, "payload_too_large"),
    ];
    let rows = invalid.map(|request| (request, 400, "invalid_request")).into_iter().chain(rest);
    let mut connection = daemon.connect();
    for (request, status, code) in rows {
        let response = connection.ask(&request);
        assert_eq!((response.status, response.error_code().as_str()), (status, code), "{request:?}");
        if response.header("Connection") == Some("close") {
            // What is not worth reading to its end costs the connection.
            assert!(request.bytes().len() > 64 << 10, "{request:?}");
            connection = daemon.connect();
        }
    }
    let list = connection.ask(&get("/v1/tasks")).expect(200).json();
    assert_eq!(list, json!({ "tasks": Value::Array(Vec::new()) }), "nothing of it was accepted");
    let left: Vec<_> = std::fs::read_dir(daemon.path().join("state/payloads")).map_or(Vec::new(), Iterator::collect);
    assert!(left.is_empty(), "{left:?}");
    drop(connection);
    daemon.stop();
}

#[test]
fn a_body_needs_a_length_and_has_a_limit() {
    let daemon = Daemon::start(&config());
    for path in ["/v1/tasks", "/v1/agents/cat/tasks"] {
        let none = raw(&daemon, format!("POST {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!((none.status, none.error_code().as_str()), (411, "length_required"), "{path}");
        let chunked =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
        let chunked = raw(&daemon, chunked.as_bytes());
        assert_eq!((chunked.status, chunked.error_code().as_str()), (411, "length_required"), "{path}");
        let large = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", (7 << 20) + 1);
        let large = raw(&daemon, large.as_bytes());
        assert_eq!((large.status, large.error_code().as_str()), (413, "payload_too_large"), "{path}");
        let huge = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n");
        assert_eq!(raw(&daemon, huge.as_bytes()).status, 413, "{path}: refused before a byte has come");
    }
    let mut short = daemon.connect();
    short.send(b"POST /v1/agents/cat/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc").expect("sent");
    short.stop_writing();
    let response = short.receive().expect("an answer");
    assert_eq!((response.status, response.error_code().as_str()), (400, "invalid_request"));
    soon("what came of it is removed", || {
        std::fs::read_dir(daemon.path().join("state/payloads")).map_or(0, Iterator::count) == 0
    });
    daemon.stop();
}

#[test]
fn every_path_says_which_methods_it_has() {
    let daemon = Daemon::start(&config());
    let rows = [
        ("/v1/tasks", "PUT", "GET, HEAD, POST"),
        ("/v1/tasks/t-1", "POST", "GET, HEAD, DELETE"),
        ("/v1/tasks/t-1/result", "DELETE", "GET, HEAD"),
        ("/v1/tasks/t-1/events", "POST", "GET"),
        ("/v1/tasks/t-1/why", "POST", "GET, HEAD"),
        ("/v1/agents/cat/tasks", "GET", "POST"),
        ("/v1/decisions", "POST", "GET, HEAD"),
        ("/v1/events", "POST", "GET"),
        ("/v1/status", "POST", "GET, HEAD"),
        ("/v1/queue", "DELETE", "GET, HEAD"),
        ("/v1/workers", "PATCH", "GET, HEAD"),
        ("/v1/memory", "OPTIONS", "GET, HEAD"),
        ("/v1/agents", "POST", "GET, HEAD"),
        ("/v1/breakers", "POST", "GET, HEAD"),
        ("/v1/breakers/b/open", "GET", "POST"),
        ("/v1/reload", "GET", "POST"),
        ("/v1/drain", "GET", "POST"),
        ("/health", "POST", "GET, HEAD"),
        ("/metrics", "DELETE", "GET, HEAD"),
    ];
    let mut connection = daemon.connect();
    for (path, method, allow) in rows {
        let response = connection.ask(&Request::new(method, path));
        assert_eq!((response.status, response.error_code().as_str()), (405, "method_not_allowed"), "{method} {path}");
        assert_eq!(response.header("Allow"), Some(allow), "{method} {path}");
        for allowed in allow.split(", ").filter(|method| *method == "HEAD") {
            let head = connection.ask(&Request::new(allowed, path));
            let get = connection.ask(&Request::get(path));
            assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
            assert_eq!(head.header("Content-Type"), get.header("Content-Type"), "{path}");
        }
    }
    for path in ["/v1/events", "/v1/tasks/t-1/events"] {
        let head = daemon.ask(&Request::new("HEAD", path));
        assert_eq!(head.status, 405, "a stream has no end to tell the length of: {path}");
    }
    daemon.stop();
}

#[test]
fn a_connection_takes_requests_one_after_the_other_and_pipelined() {
    let daemon = Daemon::start(&config());
    let mut connection = daemon.connect();
    for n in 0..50 {
        let echoed = connection.ask(&Request::post("/v1/agents/cat/tasks?wait=30", format!("body {n}"))).expect(200);
        assert_eq!((echoed.text(), echoed.header("Connection")), (format!("body {n}"), None));
    }
    let mut two = Request::post("/v1/agents/cat/tasks?wait=30", "first").bytes();
    two.extend(Request::get("/health?live").bytes());
    two.extend(Request::post("/v1/agents/cat/tasks?wait=30", "third").bytes());
    connection.send(&two).expect("the daemon reads");
    assert_eq!(connection.receive().expect("an answer").text(), "first");
    assert_eq!(connection.receive().expect("an answer").json()["status"], "live");
    assert_eq!(connection.receive().expect("an answer").text(), "third");
    let last = connection.ask(&Request::get("/health").with("Connection", "close")).expect(200);
    assert_eq!(last.header("Connection"), Some("close"));
    assert!(connection.is_closed());
    daemon.stop();
}

#[test]
fn an_old_client_and_a_careful_one_are_served_as_they_ask() {
    let daemon = Daemon::start(&config());
    let mut old = daemon.connect();
    old.send(b"GET /health HTTP/1.0\r\n\r\n").expect("the daemon reads");
    let response = old.receive().expect("an answer");
    assert!(response.status_line.starts_with("HTTP/1.0 200"), "{}", response.status_line);
    assert!(old.is_closed(), "HTTP/1.0 is one request a connection");
    let mut kept = daemon.connect();
    for _ in 0..2 {
        kept.send(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("the daemon reads");
        assert_eq!(kept.receive().expect("an answer").header("Connection"), Some("keep-alive"));
    }
    kept.send(b"GET /v1/events HTTP/1.0\r\n\r\n").expect("the daemon reads");
    assert_eq!(kept.receive().expect("an answer").error_code(), "invalid_request", "chunks are HTTP/1.1");

    let mut careful = daemon.connect();
    let head =
        "POST /v1/agents/cat/tasks?wait=30 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    careful.send(head.as_bytes()).expect("the daemon reads");
    assert_eq!(careful.receive().expect("leave to go on").status, 100);
    careful.send(b"hello").expect("the daemon reads");
    assert_eq!(careful.receive().expect("an answer").text(), "hello");
    careful.send(head.replace("cat", "nobody").replace("5\r\n", "9000000\r\n").as_bytes()).expect("the daemon reads");
    assert_eq!(careful.receive().expect("an answer").status, 413, "and no leave before it");
    drop((old, kept, careful));
    daemon.stop();
}

#[test]
fn a_head_that_does_not_come_is_not_waited_for_and_an_idle_connection_is_closed() {
    let daemon = Daemon::start("[gateway]\nhead_timeout_ms = 200\nidle_timeout_ms = 500\n");
    let mut slow = daemon.connect();
    slow.send(b"GET /health HTT").expect("the daemon reads");
    let response = slow.receive().expect("an answer");
    assert_eq!((response.status, response.error_code().as_str()), (408, "invalid_request"));
    assert!(slow.is_closed());
    let mut idle = daemon.connect();
    idle.ask(&Request::get("/health")).expect(200);
    assert!(idle.is_closed(), "without a word");
    daemon.stop();
}

#[test]
fn six_megabytes_go_in_and_come_out_as_they_were() {
    let (daemon, port) = on_tcp("");
    // Every byte value, no period that a buffer size could hide.
    let body: Vec<u8> = (0_u32..6 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let before = daemon.footprint();
    let request = Request::post("/v1/agents/cat/tasks?wait=30", body.clone());
    for mut connection in [daemon.connect(), Connection::tcp(port).expect("the daemon listens")] {
        let done = connection.ask(&request).expect(200);
        assert!(done.body == body, "{} bytes came back", done.body.len());
        let id = done.header("X-Task-Id").expect("an id").to_owned();
        let task = connection.ask(&Request::get(format!("/v1/tasks/{id}"))).expect(200).json();
        assert_eq!((&task["payloadBytes"], &task["resultBytes"]), (&json!(body.len()), &json!(body.len())));
        let again = connection.ask(&Request::get(format!("/v1/tasks/{id}/result"))).expect(200);
        assert!(again.body == body && again.header("Content-Type") == Some("application/octet-stream"));
    }
    let grown = daemon.footprint().rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown < 2 << 20, "a body goes through files, not through memory, which grew by {grown} bytes");
    daemon.stop();
}

#[test]
fn a_payload_nested_deeper_than_any_parser_likes_goes_through_untouched() {
    let daemon = Daemon::start(&(config() + &worker("echo", "scripts/agents/echo.py", "")));
    for (id, depth, is_shown) in [("t-1", 32, true), ("t-2", 33, false), ("t-3", 500, false)] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let envelope = format!("{{\"agent\":\"echo\",\"payload\":{deep}}}");
        let task = daemon.ask(&Request::post("/v1/tasks?wait=30", envelope)).expect(200).json();
        assert_eq!(task.get("result").is_some(), is_shown, "{depth}: {task}");
        assert_eq!(task.get("resultBytes").is_some(), !is_shown, "{depth}: {task}");
        assert_eq!(daemon.get(&format!("/v1/tasks/{id}/result")).expect(200).text(), deep);
    }
    let deeper = "[".repeat(100_000);
    let refused = daemon.ask(&Request::json("/v1/agents/echo/tasks", &json!(deeper)).with("X", "sound JSON, a text"));
    assert_eq!(refused.status, 202);
    let broken = Request::post("/v1/agents/echo/tasks", deeper).with("Content-Type", "application/json");
    assert_eq!(daemon.ask(&broken).expect(400).error_code(), "invalid_request");
    daemon.stop();
}

#[test]
fn clients_that_wait_take_no_threads_and_are_forgotten_when_they_leave() {
    let daemon = Daemon::start(&format!("[queue]\nmax_depth = 50\npriority_limits = {{ normal = 50 }}\n{}", config()));
    let before = daemon.footprint();
    let running = daemon.accept("sleeper", json!({ "ms": 600_000 }));
    daemon.in_state(&running, &["running"]);
    let with_worker = daemon.footprint();
    let mut waiting: Vec<Connection> = (0..20).map(|_| daemon.connect()).collect();
    for connection in &mut waiting {
        connection.send(&Request::post("/v1/agents/cat/tasks?wait=3600", "x").bytes()).expect("the daemon reads");
    }
    soon("all of them wait", || daemon.get("/v1/queue").json()["depth"] == 20);
    assert_eq!(daemon.get("/health").expect(200).json()["queue"]["depth"], 20);
    let with_waiting = common::Footprint::of(daemon.pid());
    assert_eq!(with_waiting.threads, before.threads);
    assert!(with_waiting.fds >= with_worker.fds + 20, "{with_waiting:?} after {with_worker:?}");
    let mut stays = waiting.pop().expect("there are twenty");
    drop(waiting);
    soon("the others' descriptors are given back", || common::Footprint::of(daemon.pid()).fds <= with_worker.fds + 2);
    daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{running}"))).expect(202);
    assert_eq!(stays.receive().expect("an answer").expect(200).text(), "x");
    drop(stays);
    soon("every task ran all the same", || {
        daemon.get("/v1/tasks?state=completed").json()["tasks"].as_array().map(Vec::len) == Some(20)
    });
    daemon.has_no_workers();
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}

#[test]
fn over_tcp_a_token_is_asked_for_and_strangers_are_not_let_in() {
    use std::os::unix::fs::PermissionsExt;
    let port = free_port();
    let home = Home::new("");
    let token = home.path().join("token");
    std::fs::write(&token, "correct-horse-battery\n").expect("it can be written");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    home.configure(&format!(
        "[gateway]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = {token:?}\nallowed_hosts = [\"box.example\"]\n{CONFIG}"
    ));
    let daemon = home.start();
    let ask = |request: Request| Connection::tcp(port).expect("the daemon listens").ask(&request);
    let with_token = |request: Request| request.with("Authorization", "Bearer correct-horse-battery");
    assert_eq!(ask(Request::get("/health")).status, 200, "health is for everybody");
    for authorization in ["", "Bearer correct-horse-batter", "Bearer correct-horse-battery2", "Basic Y29ycmVjdA=="] {
        let request = Request::get("/v1/status").with("Authorization", authorization);
        assert_eq!(ask(request).expect(401).error_code(), "unauthorized", "{authorization:?}");
    }
    assert_eq!(ask(Request::post("/v1/agents/cat/tasks", "x")).expect(401).error_code(), "unauthorized");
    assert_eq!(ask(with_token(Request::get("/v1/status"))).status, 200);
    assert_eq!(ask(with_token(Request::get("/v1/status").with("Host", "box.example:80"))).status, 200);
    for (name, value) in [("Host", "evil.example"), ("Origin", "http://evil.example"), ("Origin", "null")] {
        let refused = ask(with_token(Request::get("/v1/status").with(name, value))).expect(403);
        assert_eq!(refused.error_code(), "forbidden", "{name}: {value}");
    }
    let own_page = with_token(Request::get("/v1/status").with("Origin", &format!("http://localhost:{port}")));
    assert_eq!(ask(own_page).status, 200);
    assert_eq!(daemon.get("/v1/status").status, 200, "the Unix socket has its file mode");
    let mode = std::fs::metadata(daemon.home().socket()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.stop();
}

#[test]
fn a_client_on_the_network_has_a_rate_and_one_on_the_socket_has_none() {
    let (daemon, port) = on_tcp("submit_rate_per_s = 1");
    let mut client = Connection::tcp(port).expect("the daemon listens");
    let submit = Request::post("/v1/agents/nobody/tasks", "x");
    let refused = until("it is too much", || Some(client.ask(&submit)).filter(|response| response.status == 429));
    assert_eq!(refused.error_code(), "rate_limited");
    client.ask(&Request::get("/v1/status")).expect(200);
    for _ in 0..10 {
        daemon.ask(&submit).expect(404);
    }
    daemon.stop();
}

#[test]
fn curl_is_served_without_options() {
    let (daemon, port) = on_tcp("");
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let curl = |arguments: &[&str], input: &[u8]| {
        run("curl", ["--silent", "--show-error", "--max-time", "30"].iter().chain(arguments), input).expect(0)
    };
    let task = curl(&["-d", "{\"agent\":\"cat\",\"payload\":7}", &url("/v1/tasks?wait=30")], b"").json();
    assert_eq!(task["state"], "completed", "curl calls JSON a form, and that is well");
    let large = vec![b'k'; 2 << 20];
    let copied = curl(&["--data-binary", "@-", &url("/v1/agents/cat/tasks?wait=30")], &large);
    assert!(copied.stdout == large, "curl asks for leave (100) before a body of this size");
    let head = curl(&["--head", &url("/health")], b"").text();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let socket = daemon.home().socket().display().to_string();
    let status = curl(&["--unix-socket", &socket, "http://localhost/v1/status"], b"").json();
    assert_eq!((&status["state"], &status["pid"]), (&json!("running"), &json!(daemon.pid())));
    let piped = curl(&["-T", "-", "-X", "POST", "-w", "%{http_code}", &url("/v1/agents/cat/tasks")], b"x").text();
    assert!(piped.contains("length_required") && piped.ends_with("411"), "{piped}");
    daemon.stop();
}
