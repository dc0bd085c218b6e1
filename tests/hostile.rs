//! Bytes from clients that mean harm or know no better. After each the daemon is as it was: the same threads and
//! descriptors, no more memory, and an answer for whoever comes next.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use common::{Connection, Daemon, Footprint, LIMIT, MIB, Request, free_port, metric, soon, until};

const CAT: &str = "[agents.cat]\ncommand = [\"cat\"]\n";

/// What hostile bytes may leave behind in memory that the allocator keeps.
const RSS_KEPT: u64 = 400 << 10;

/// A daemon that has worked a little, and what it holds then.
struct Watched {
    daemon: Daemon,
    port: u16,
    before: Footprint,
}

impl Watched {
    fn start(gateway: &str) -> Watched {
        let port = free_port();
        let daemon = Daemon::start(&format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n{gateway}\n{CAT}"));
        // The first of everything costs memory once: stacks, buffers, what the allocator keeps.
        for _ in 0..8 {
            daemon.post("/v1/agents/cat/tasks?wait=30", vec![b'w'; 40_000]).expect(200);
            drop(Connection::tcp(port).expect("the daemon listens").ask(&Request::get("/v1/status")));
            let mut half = daemon.connect();
            half.send(&vec![b'x'; 8192]).expect("the daemon reads");
            half.receive().expect("an answer").expect(431);
        }
        daemon.has_no_workers();
        let before = daemon.footprint();
        Watched { daemon, port, before }
    }

    #[track_caller]
    fn is_unharmed(&self, after: &str) {
        self.daemon.get("/health?live").expect(200);
        let now = self.daemon.footprint();
        assert_eq!((now.fds, now.threads), (self.before.fds, self.before.threads), "after {after}");
        let grown = now.rss_bytes.saturating_sub(self.before.rss_bytes);
        assert!(grown < RSS_KEPT, "RSS grew by {grown} bytes after {after}");
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.daemon.home().socket()).expect("the daemon listens");
        stream.set_read_timeout(Some(LIMIT)).expect("the socket is open");
        stream.set_write_timeout(Some(LIMIT)).expect("the socket is open");
        stream
    }

    /// Sends these bytes and no more, and reads all that comes back.
    fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.stream();
        // What is refused early need not be read to its end.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(!matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock), "neither answered nor closed");
        answer
    }

    /// The statuses of all answers to these bytes.
    fn statuses(&self, bytes: &[u8]) -> Vec<u16> {
        let answer = String::from_utf8_lossy(&self.exchange(bytes)).into_owned();
        // In messages that quote what was sent, no number follows.
        let status = |part: &str| part.get(2..5)?.parse().ok();
        answer.split("HTTP/1.").skip(1).filter_map(status).collect()
    }

    fn stop(self) {
        self.daemon.stop();
    }
}

#[test]
fn a_length_of_a_hundred_gigabytes_without_a_byte_costs_nothing() {
    let watched = Watched::start("");
    for head in ["POST /v1/agents/cat/tasks", "POST /v1/tasks", "POST /nowhere", "GET /health", "DELETE /v1/tasks/t-1"]
    {
        let mut held: Vec<Connection> = (0..10).map(|_| watched.daemon.connect()).collect();
        for connection in &mut held {
            let bytes = format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n");
            connection.send(bytes.as_bytes()).expect("the daemon reads");
            let response = connection.receive().expect("an answer");
            assert_eq!(response.header("Connection"), Some("close"), "{head}");
        }
        drop(held);
        watched.is_unharmed(head);
    }
    watched.stop();
}

#[test]
fn names_that_no_agent_can_have_are_kept_nowhere() {
    let watched = Watched::start("");
    let name = "N".repeat(250_000);
    for _ in 0..40 {
        let refused = watched.daemon.submit(&serde_json::json!({ "agent": name })).expect(404);
        assert!(refused.text().len() < 1000 && refused.error_code() == "unknown_agent", "{}", refused.text().len());
        let refused = watched.daemon.submit(&serde_json::json!({ "agent": "cat", (name.as_str()): 1 })).expect(400);
        assert!(refused.text().len() < 2000, "{}", refused.text().len());
    }
    watched.is_unharmed("names");
    assert!(watched.daemon.log_text().len() < 200_000);
    watched.stop();
}

#[test]
fn headers_that_may_mean_two_things_are_refused() {
    let watched = Watched::start("");
    for (head, status) in [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://localhost", 400),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b", 400),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: a\r\nIdempotency-Key: b", 400),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\nContent-Type: a/c", 400),
        ("GET /health HTTP/1.1\r\nHost: localhost", 200),
    ] {
        let mut connection = watched.daemon.connect();
        connection.send(format!("{head}\r\n\r\n").as_bytes()).expect("the daemon reads");
        assert_eq!(connection.receive().expect("an answer").status, status, "{head}");
    }
    watched.is_unharmed("two headers");
    watched.stop();
}

#[test]
fn a_header_line_without_an_end_is_refused_after_its_first_kilobytes() {
    let watched = Watched::start("");
    let mut stream = watched.stream();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ").expect("the daemon reads");
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0;
    // The daemon throws some of it away, so that its answer arrives, and then closes.
    while sent < 300 && stream.write_all(&piece).is_ok() {
        sent += 1;
        if sent % 16 == 0 {
            let grown = Footprint::of(watched.daemon.pid()).rss_bytes.saturating_sub(watched.before.rss_bytes);
            assert!(grown < RSS_KEPT, "RSS grew by {grown} bytes after {sent} MiB of a header");
        }
    }
    assert!(sent < 300, "all of it was taken");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", answer.escape_ascii());
    drop(stream);
    watched.is_unharmed("an endless header line");
    watched.stop();
}

#[test]
fn three_hundred_thousand_requests_whose_answers_nobody_reads_hold_up_nobody() {
    let watched = Watched::start("idle_timeout_ms = 600000");
    let mut stream = watched.stream();
    let writer = stream.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut writer = writer;
            for n in 0..300_000 {
                let request = format!("GET /health?live HTTP/1.1\r\nHost: x\r\nX-Request-Id: n-{n}\r\n\r\n");
                // Sooner or later the daemon reads no more of it, and then the test ends it.
                if writer.write_all(request.as_bytes()).is_err() {
                    return;
                }
            }
        });
        for n in 0..50 {
            watched.daemon.get("/health").expect(200);
            let body = format!("served {n}");
            assert_eq!(watched.daemon.post("/v1/agents/cat/tasks?wait=30", body.clone()).expect(200).text(), body);
        }
        // Tasks that ran are remembered: 1 MiB at most, and these are few.
        let now = Footprint::of(watched.daemon.pid());
        let grown = now.rss_bytes.saturating_sub(watched.before.rss_bytes);
        assert!(grown < MIB && now.threads == watched.before.threads, "{now:?} after {:?}", watched.before);
        // What has been answered was answered in order.
        let mut read = Vec::new();
        let mut piece = [0; 16 * 1024];
        while read.len() < 64 * 1024 {
            let count = stream.read(&mut piece).expect("there are answers");
            read.extend_from_slice(&piece[..count]);
        }
        let text = String::from_utf8(read).expect("text");
        let ids: Vec<&str> = text
            .split("X-Request-Id: n-")
            .skip(1)
            .filter_map(|rest| rest.split_once("\r\n"))
            .map(|(id, _)| id)
            .collect();
        assert!(ids.len() > 100 && ids.iter().enumerate().all(|(n, id)| *id == n.to_string()), "{ids:?}");
        stream.shutdown(std::net::Shutdown::Both).expect("the socket is open");
    });
    drop(stream);
    soon("its descriptor is given back", || Footprint::of(watched.daemon.pid()).fds <= watched.before.fds);
    watched.daemon.has_no_workers();
    watched.stop();
}

#[test]
fn no_request_can_be_smuggled_in_another() {
    let watched = Watched::start("");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = smuggled.len();
    let at = |method: &str, path: &str, headers: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}").into_bytes()
    };
    let post = |headers: &str| at("POST", "/v1/agents/cat/tasks", headers);
    let get = |headers: &[u8]| {
        let start = b"GET /health?live HTTP/1.1\r\nHost: x\r\n".as_slice();
        [start, headers, b"\r\n\r\n", smuggled.as_bytes()].concat()
    };
    let rows: Vec<(&str, u16, Vec<u8>)> = vec![
        ("a signed and odd length", 400, post("Content-Length: +5x")),
        ("a signed length", 400, post("Content-Length: +5")),
        ("a negative length", 400, post("Content-Length: -1")),
        ("a hexadecimal length", 400, post("Content-Length: 0x5")),
        ("a length with a fraction", 400, post("Content-Length: 5.0")),
        ("a length in words", 400, post("Content-Length: five")),
        ("a length with a space in it", 400, post("Content-Length: 5 0")),
        ("an endless length", 400, post("Content-Length: 18446744073709551616")),
        ("two equal lengths", 400, post("Content-Length: 5\r\nContent-Length: 5")),
        ("two lengths", 400, post(&format!("Content-Length: 5\r\nContent-Length: {}", length + 5))),
        ("a list of lengths", 400, post("Content-Length: 5, 5")),
        ("length and chunked", 400, post("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        ("chunked and length", 400, post("Transfer-Encoding: chunked\r\nContent-Length: 5")),
        ("a space before the colon of the length", 400, post("Content-Length : 5")),
        ("a space before the colon of the coding", 400, post("Transfer-Encoding : chunked")),
        ("a folded coding", 400, post("Transfer-Encoding:\r\n chunked")),
        ("a folded length", 400, post("X: y\r\n Content-Length: 5")),
        ("a folded first header", 400, post(" X: y")),
        ("another coding", 400, post("Transfer-Encoding: xchunked")),
        ("a coding behind a vertical tab", 400, post("Transfer-Encoding: \x0bchunked")),
        ("a coding in quotes", 400, post("Transfer-Encoding: \"chunked\"")),
        ("identity", 400, post("Transfer-Encoding: identity")),
        ("identity and chunked", 400, post("Transfer-Encoding: identity, chunked")),
        ("chunked twice in one", 400, post("Transfer-Encoding: chunked, chunked")),
        ("chunked twice", 400, post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        ("an empty coding", 400, post("Transfer-Encoding:")),
        ("chunked", 411, post("Transfer-Encoding: chunked")),
        ("chunked in other letters", 411, post("tRANSFER-eNCODING: cHUNKED")),
        ("chunked behind a tab", 411, post("Transfer-Encoding:\tchunked")),
        ("no length", 411, post("X: y")),
        ("chunked where nothing is", 404, at("POST", "/nowhere", "Transfer-Encoding: chunked")),
        ("chunked where there is no such method", 405, at("PUT", "/health", "Transfer-Encoding: chunked")),
        ("chunked where no body is wanted", 411, at("GET", "/health", "Transfer-Encoding: chunked")),
        ("a longer body where none is wanted", 200, at("GET", "/health?live", "Content-Length: 1000000")),
        ("a line feed alone", 400, get(b"X: y\nZ: z")),
        ("a carriage return alone", 400, get(b"X: y\rZ: z")),
        ("NUL in a value", 400, get(b"X: a\0b")),
        ("NUL in a name", 400, get(b"X\0: a")),
        ("a header without a colon", 400, get(b"X")),
        ("a header without a name", 400, get(b": x")),
        ("a second host", 400, get(b"Host: y")),
    ];
    for (what, status, bytes) in rows {
        let statuses = watched.statuses(&bytes);
        assert_eq!(statuses, [status], "{what}");
    }
    let not_found = metric(&watched.daemon, "kurultai_http_requests_total{route=\"other\",code=\"404\"}");
    assert_eq!(not_found, 1.0, "for /nowhere, and nobody asked for /smuggled");
    // The same bytes where they are a body, to the last of them.
    let body = format!(
        "POST /v1/agents/cat/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{smuggled}{smuggled}"
    );
    assert_eq!(watched.statuses(body.as_bytes()), [202, 404], "a body, and a request after it");
    watched.daemon.has_no_workers();
    watched.is_unharmed("all of these");
    watched.stop();
}

#[test]
fn what_is_no_http_1_is_told_so_and_closed() {
    let watched = Watched::start("");
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.extend((0..501_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
    let rows: [(&str, &[u8]); 8] = [
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0"),
        ("a TLS ClientHello", &hello),
        ("HTTP/0.9", b"GET /health\r\n\r\n"),
        ("HTTP/3.0", b"GET /health HTTP/3.0\r\nHost: x\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("SMTP", b"EHLO localhost\r\nMAIL FROM:<a@b>\r\n\r\n"),
        ("a method that is none", b"G\x01T /health HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"),
    ];
    for (what, bytes) in rows {
        let mut connection = Connection::tcp(watched.port).expect("the daemon listens");
        connection.send(bytes).expect("the daemon reads");
        let refused = connection.receive().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((refused.status, refused.error_code().as_str()), (400, "invalid_request"), "{what}");
        assert!(connection.is_closed(), "{what}");
    }
    watched.is_unharmed("all of these");
    watched.stop();
}

#[test]
fn odd_methods_and_targets_have_their_answers() {
    let watched = Watched::start("");
    let mut connection = watched.daemon.connect();
    for (method, path, status) in [
        ("get", "/health", 405),
        ("OPTIONS", "/v1/tasks", 405),
        ("TRACE", "/health", 405),
        ("PROPFIND", "/v1/tasks", 405),
        ("GET", "http://localhost/health", 200),
        ("GET", "http://localhost", 200),
        ("GET", "HTTP://localhost/health", 400),
        ("OPTIONS", "*", 400),
        ("GET", "/health#top", 404),
        ("GET", "//health", 404),
        ("GET", "/health/", 404),
        ("GET", "/v1/../health", 404),
        ("GET", "/v1/tasks/..", 404),
        ("GET", "/v1/tasks/../status", 404),
        ("GET", "/v1/tasks/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/tasks/t-1%00", 404),
        ("GET", "/v1/tasks/t-1%2fresult", 404),
        ("GET", "/v1/tasks/%74-1", 404),
        ("GET", "/v1/tasks/t-01", 404),
        ("GET", "/v1/tasks/t--1", 404),
        ("GET", "/v1/tasks/t-1/result/../../../etc/passwd", 404),
        ("POST", "/v1/agents/../tasks", 404),
        ("POST", "/v1/agents/%2e%2e/tasks", 404),
        ("POST", "/v1/agents/%/tasks", 400),
        ("POST", "/v1/agents/%zz/tasks", 400),
        ("POST", "/v1/agents/%ff/tasks", 400),
        ("POST", "/v1/agents/cat%00/tasks", 404),
        ("POST", "/v1/agents/c%61t/tasks?wait=30", 200),
        ("GET", "/v1/tasks?state=%2e%2e", 400),
        ("GET", "/v1/tasks?agent=../../etc", 200),
    ] {
        if connection.ask(&Request::get("/health?live")).header("Connection") == Some("close") {
            connection = watched.daemon.connect();
        }
        let response = connection.ask(&Request::new(method, path));
        assert_eq!(response.status, status, "{method} {path}");
        if response.header("Connection") == Some("close") {
            connection = watched.daemon.connect();
        }
    }
    drop(connection);
    watched.daemon.has_no_workers();
    watched.is_unharmed("all of these");
    watched.stop();
}

#[test]
fn a_request_cut_off_at_any_byte_is_no_task_and_leaves_nothing() {
    let watched = Watched::start("");
    let accepted = || metric(&watched.daemon, "kurultai_tasks_accepted_total{agent=\"cat\",priority=\"normal\"}");
    let before = accepted();
    let requests = [
        "POST /v1/agents/cat/tasks?priority=normal HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\nhello world",
        "POST /v1/tasks HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n{\"agent\":\"cat\"}",
        "POST /v1/tasks HTTP/1.0\r\nContent-Length: 15\r\n\r\n{\"agent\":\"cat\"}",
    ];
    for request in requests {
        for end in 0..request.len() {
            let statuses = watched.statuses(&request.as_bytes()[..end]);
            assert!(matches!(statuses[..], [] | [400] | [100, 400]), "after {end} bytes of {request:?}: {statuses:?}");
        }
        assert_eq!(accepted(), before, "{request:?}");
    }
    assert_eq!(watched.statuses(requests[0].as_bytes()), [202], "whole, it is a task");
    let left = || std::fs::read_dir(watched.daemon.path().join("state/payloads")).map_or(0, Iterator::count);
    soon("no payload is left", || left() == 0);
    watched.daemon.has_no_workers();
    watched.is_unharmed("every one of them");
    watched.stop();
}

/// xorshift64: the same bytes on every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn noise_is_answered_or_closed_and_forgotten() {
    let watched = Watched::start("");
    let seed = 0x6b75_7275_6c74_6169;
    let mut noise = Noise(seed);
    let sound = b"POST /v1/agents/cat/tasks?wait=30 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
    for round in 0..400 {
        let bytes = match round % 4 {
            0 => {
                let count = noise.next() as usize % 2000;
                noise.bytes(count)
            }
            // A sound request with one byte of it changed, or some of its bytes twice.
            1 => {
                let mut bytes = sound.to_vec();
                let at = noise.next() as usize % bytes.len();
                bytes[at] = noise.next() as u8;
                bytes
            }
            2 => {
                let (from, to) = (noise.next() as usize % sound.len(), noise.next() as usize % sound.len());
                [&sound[..to], &sound[from..]].concat()
            }
            _ => {
                let more = noise.next() as usize % 600;
                [&sound[..], &noise.bytes(more)].concat()
            }
        };
        for status in watched.statuses(&bytes) {
            // 504: it stops writing, by which it counts as gone, and is not waited for.
            assert!((200..500).contains(&status) || status == 504, "seed {seed:#x}, round {round}: {status}");
        }
    }
    until("every task of it has ended", || {
        let queue = watched.daemon.get("/v1/status").json();
        (queue["queue"]["depth"] == 0 && queue["workers"]["active"] == 0).then_some(())
    });
    watched.daemon.has_no_workers();
    watched.daemon.get("/health?live").expect(200);
    let now = watched.daemon.footprint();
    assert_eq!((now.fds, now.threads), (watched.before.fds, watched.before.threads), "seed {seed:#x}");
    // Tasks among them are remembered.
    let grown = now.rss_bytes.saturating_sub(watched.before.rss_bytes);
    assert!(grown < MIB, "RSS grew by {grown} bytes");
    watched.stop();
}
