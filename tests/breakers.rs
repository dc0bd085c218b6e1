//! Circuit breakers: around an agent that calls a server, around a cron job's own calls, and inside a worker.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use common::{Connection, Daemon, Request, agent, soon, until, worker};
use serde_json::{Value, json};

/// A server that counts who calls, and hangs up on them until it is told to live.
struct Endpoint {
    port: u16,
    calls: Arc<AtomicUsize>,
    is_alive: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    fn start() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
        let port = listener.local_addr().expect("it is bound").port();
        let (calls, is_alive, is_over) = <(Arc<AtomicUsize>, Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let shared = (calls.clone(), is_alive.clone(), is_over.clone());
        let thread = std::thread::Builder::new().spawn(move || {
            let (calls, is_alive, is_over) = shared;
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                calls.fetch_add(1, Ordering::SeqCst);
                if is_alive.load(Ordering::SeqCst) {
                    answer(&mut stream.expect("it was accepted"));
                }
            }
        });
        Endpoint { port, calls, is_alive, is_over, thread: Some(thread.expect("a thread can be started")) }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn come_alive(&self) {
        self.is_alive.store(true, Ordering::SeqCst);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(stream: &mut TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
}

fn sync_agent(endpoint: &Endpoint, breaker: &str) -> String {
    let more = format!("breaker = \"architecture-sync\"\nenv = {{ SYNC_URL = {:?} }}", endpoint.url());
    format!("{}[breakers.architecture-sync]\n{breaker}\n", agent("sync", "scripts/agents/sync", &more))
}

fn breaker(daemon: &Daemon, name: &str) -> Value {
    let all = daemon.get("/v1/breakers").expect(200).json();
    let found = all["breakers"].as_array().expect("a list").iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {all}")).clone()
}

fn reaches(daemon: &Daemon, name: &str, state: &str) -> Value {
    until(&format!("{name} is {state}"), || Some(breaker(daemon, name)).filter(|breaker| breaker["state"] == state))
}

/// Follows circuit events from now on.
fn follow(daemon: &Daemon) -> Connection {
    let mut events = daemon.connect();
    let types = "CIRCUIT_OPEN,CIRCUIT_HALF_OPEN,CIRCUIT_CLOSED";
    events.send(&Request::get(format!("/v1/events?types={types}")).bytes()).expect("the daemon reads");
    assert_eq!(events.receive_head().expect("a head").status, 200);
    events
}

#[test]
fn ten_syncs_with_a_dead_server_are_fewer_than_five_calls() {
    let endpoint = Endpoint::start();
    let daemon = Daemon::start(&sync_agent(&endpoint, "failure_threshold = 3\nbackoff_ms = [60000]"));
    let mut refused = 0;
    for sync in 0..10 {
        let response = daemon.post("/v1/agents/sync/tasks?wait=30", "");
        match response.status {
            502 => assert!(sync < 3, "sync {sync} was tried"),
            503 => {
                assert_eq!(response.error_code(), "circuit_open");
                refused += 1;
            }
            other => panic!("{other}: {}", response.text()),
        }
    }
    assert_eq!((endpoint.calls(), refused), (3, 7));
    let open = breaker(&daemon, "architecture-sync");
    assert_eq!((&open["state"], &open["openings"], &open["forced"]), (&json!("open"), &json!(1), &json!(false)));
    assert!(open["retryAfterMs"].as_u64().is_some_and(|ms| (1..=60_000).contains(&ms)), "{open}");
    assert_eq!(daemon.get("/health").expect(200).json()["breakers"]["open"], 1);
    daemon.stop();
}

#[test]
fn syncs_that_were_accepted_before_it_opened_wait_instead_of_calling() {
    let endpoint = Endpoint::start();
    let daemon = Daemon::start(
        &("[workers]\nmax = 2\n[queue]\nmax_depth = 20\npriority_limits = { normal = 20 }\n".to_owned()
            + &sync_agent(&endpoint, "failure_threshold = 3\nbackoff_ms = [60000]")),
    );
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let response = daemon.post("/v1/agents/sync/tasks", "");
        match response.status {
            202 => waiting.push(response.json()["id"].as_str().expect("an id").to_owned()),
            _ => assert_eq!(response.error_code(), "circuit_open"),
        }
    }
    reaches(&daemon, "architecture-sync", "open");
    daemon.has_no_workers();
    assert!((3..5).contains(&endpoint.calls()), "{} calls", endpoint.calls());
    let failed = daemon.get("/v1/tasks?state=failed").json()["tasks"].as_array().map_or(0, Vec::len);
    assert_eq!(failed, endpoint.calls(), "one call, one failure");
    let queued = daemon.get("/v1/tasks?state=queued").json()["tasks"].as_array().map_or(0, Vec::len);
    assert_eq!(queued + failed, waiting.len(), "nothing is lost");
    daemon.stop();
}

#[test]
fn a_breaker_tries_one_call_after_its_pause_and_closes_after_enough_of_them() {
    let endpoint = Endpoint::start();
    let settings = "failure_threshold = 2\nsuccess_threshold = 2\nbackoff_ms = [100, 200]";
    let daemon = Daemon::start(&sync_agent(&endpoint, settings));
    let mut events = follow(&daemon);
    let sync = || daemon.post("/v1/agents/sync/tasks?wait=30", "");
    for _ in 0..2 {
        sync().expect(502);
    }
    reaches(&daemon, "architecture-sync", "half_open");
    assert_eq!(endpoint.calls(), 2, "it opened, and time alone half-opened it");
    sync().expect(502);
    let again = reaches(&daemon, "architecture-sync", "half_open");
    assert_eq!((endpoint.calls(), &again["openings"]), (3, &json!(2)), "one probe failed");
    endpoint.come_alive();
    assert_eq!(sync().expect(200).json()["code"], 200);
    let between = breaker(&daemon, "architecture-sync");
    assert_eq!((&between["state"], &between["successes"]), (&json!("half_open"), &json!(1)));
    sync().expect(200);
    let closed = breaker(&daemon, "architecture-sync");
    assert_eq!((&closed["state"], &closed["openings"]), (&json!("closed"), &json!(0)));
    for expected in ["CIRCUIT_OPEN", "CIRCUIT_HALF_OPEN", "CIRCUIT_OPEN", "CIRCUIT_HALF_OPEN", "CIRCUIT_CLOSED"] {
        let event = events.next_event().expect("the stream goes on");
        assert_eq!((&event["event"], &event["breaker"]), (&json!(expected), &json!("architecture-sync")), "{event}");
    }
    drop(events);
    daemon.stop();
}

#[test]
fn a_cron_job_guards_its_own_calls_with_permits() {
    let daemon = Daemon::start("[breakers.api]\nfailure_threshold = 2\nsuccess_threshold = 1\nbackoff_ms = [100]\n");
    let acquire = || daemon.post("/v1/breakers/api/acquire", "");
    let permit = || acquire().expect(200).json()["permit"].as_str().expect("a permit").to_owned();
    let report = |outcome: &str, permit: &str| {
        daemon.post(&format!("/v1/breakers/api/{outcome}"), json!({ "permit": permit }).to_string())
    };
    let (one, other, third) = (permit(), permit(), permit());
    assert_eq!(report("success", &one).expect(204).body, b"");
    assert_eq!(report("success", &one).expect(404).error_code(), "unknown_permit", "it is spent");
    assert_eq!(report("failure", "p-99").expect(404).error_code(), "unknown_permit");
    assert_eq!(report("failure", "nonsense").expect(404).error_code(), "unknown_permit");
    assert_eq!(daemon.post("/v1/breakers/api/success", "").expect(400).error_code(), "invalid_request");
    daemon.post(&format!("/v1/breakers/api/failure?permit={other}"), "").expect(204);
    assert_eq!(breaker(&daemon, "api")["failures"], 1);
    report("failure", &third).expect(204);
    assert_eq!(acquire().expect(503).error_code(), "circuit_open");
    reaches(&daemon, "api", "half_open");
    let probe = permit();
    assert_eq!(acquire().expect(503).error_code(), "circuit_open", "one probe at a time");
    report("success", &probe).expect(204);
    assert_eq!(breaker(&daemon, "api")["state"], "closed");
    for call in ["acquire", "success?permit=p-1", "failure?permit=p-1", "open", "close"] {
        let unknown = daemon.post(&format!("/v1/breakers/nobody/{call}"), "").expect(404);
        assert_eq!(unknown.error_code(), "unknown_breaker", "{call}");
    }
    daemon.stop();
}

#[test]
fn an_operator_opens_and_closes_by_force() {
    let endpoint = Endpoint::start();
    endpoint.come_alive();
    let daemon = Daemon::start(&sync_agent(&endpoint, "backoff_ms = [10]"));
    let mut events = follow(&daemon);
    let opened = daemon.post("/v1/breakers/architecture-sync/open", "").expect(200).json();
    assert_eq!((&opened["state"], &opened["forced"]), (&json!("open"), &json!(true)));
    assert_eq!(daemon.post("/v1/agents/sync/tasks", "").expect(503).error_code(), "circuit_open");
    assert_eq!(events.next_event().expect("an event")["event"], "CIRCUIT_OPEN");
    let closed = daemon.post("/v1/breakers/architecture-sync/close", "").expect(200).json();
    assert_eq!((&closed["state"], &closed["forced"]), (&json!("closed"), &json!(false)));
    assert_eq!(events.next_event().expect("an event")["event"], "CIRCUIT_CLOSED");
    daemon.post("/v1/agents/sync/tasks?wait=30", "").expect(200);
    assert_eq!(endpoint.calls(), 1);
    drop(events);
    daemon.stop();
}

#[test]
fn a_worker_asks_for_permits_and_reports_in_its_own_words() {
    let daemon = Daemon::start(
        &(worker("guarded", "tests/agents/guarded", "")
            + "[breakers.api]\nfailure_threshold = 2\nsuccess_threshold = 1\nbackoff_ms = [60000]\n"),
    );
    let run = |payload: &str| daemon.run_task("guarded", json!(payload))["result"].clone();
    let first = run("success");
    assert!(first["permit"].as_str().is_some_and(|permit| permit.starts_with("p-")), "{first}");
    run("failure");
    assert_eq!(breaker(&daemon, "api")["failures"], 1);
    run("failure");
    soon("the report is in", || breaker(&daemon, "api")["state"] == "open");
    let refused = run("success");
    assert!(refused["retryAfterMs"].as_u64().is_some_and(|ms| (1..=60_000).contains(&ms)), "{refused}");
    daemon.post("/v1/breakers/api/close", "").expect(200);
    assert!(run("success")["permit"].is_string());
    daemon.stop();
}

#[test]
fn without_the_feature_nothing_is_refused() {
    let endpoint = Endpoint::start();
    let daemon = Daemon::start(
        &("[features]\ncircuit_breakers = false\n".to_owned()
            + &sync_agent(&endpoint, "failure_threshold = 1\nbackoff_ms = [60000]")),
    );
    for _ in 0..4 {
        daemon.post("/v1/agents/sync/tasks?wait=30", "").expect(502);
    }
    assert_eq!(endpoint.calls(), 4);
    daemon.stop();
}
