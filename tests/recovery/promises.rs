//! What was answered before a kill holds after it.

use std::fs;

use serde_json::{Value, json};

use super::state::*;
use crate::common::{Daemon, Home, Request, Response, run_command, soon, until};

#[test]
fn a_cancelled_task_that_was_still_running_when_the_daemon_was_killed_does_not_run_again() {
    let home = Home::new("");
    let config = config(&home, "").replace("[workers]\n", "[workers]\ncancel_grace_ms = 600000\n");
    home.configure(&config);
    let daemon = home.start();
    let cancelled = daemon.accept_with(json!({ "agent": "effects", "payload": { "ms": LONG_MS }, "maxRetries": 5 }));
    soon("it has begun", || effects(daemon.home()).contains_key(&cancelled));
    let next = daemon.accept("effects", json!({}));
    let answer = daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{cancelled}"))).expect(202).json();
    assert_eq!(answer["state"], "running", "its worker does not listen: {answer}");

    let mut daemon = daemon.kill().start();
    for start in ["the first", "the second"] {
        let task = daemon.finished(&cancelled);
        assert_eq!((&task["state"], &task["attempt"]), (&json!("cancelled"), &json!(1)), "{start}: {task}");
        assert_eq!(daemon.finished(&next)["state"], "completed", "{start}");
        daemon = daemon.kill().start();
    }
    let counts = effects(&daemon.stop());
    assert_eq!((counts[&cancelled], counts[&next], counts.len()), ((1, 0), (1, 1), 2));
}

fn breaker(daemon: &Daemon, name: &str) -> Value {
    let all = daemon.get("/v1/breakers").expect(200).json();
    let found = all["breakers"].as_array().expect("a list").iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {all}")).clone()
}

fn fail(daemon: &Daemon, name: &str) {
    let permit = daemon.post(&format!("/v1/breakers/{name}/acquire"), "").expect(200).json()["permit"].clone();
    let report = Request::json(format!("/v1/breakers/{name}/failure"), &json!({ "permit": permit }));
    daemon.ask(&report).expect(204);
}

#[test]
fn breakers_are_after_a_kill_as_they_were() {
    let section = |name: &str, keys: &str| format!("[breakers.{name}]\nfailure_threshold = 1\n{keys}\n");
    let home = Home::new("");
    let breakers = section("long", "backoff_ms = [10, 600000]")
        + &section("short", "backoff_ms = [10]")
        + &section("forced", "backoff_ms = [10]")
        + &section("closed", "backoff_ms = [10]\nfailure_threshold = 2").replacen("failure_threshold = 1\n", "", 1)
        + &section("again", "backoff_ms = [600000]");
    home.configure(&(config(&home, &breakers) + "[agents.guarded]\ncommand = [\"cat\"]\nbreaker = \"long\"\n"));
    let daemon = home.start();
    let waiting = daemon.accept("sleeper", json!({ "ms": 0 }));
    daemon.finished(&waiting);
    ["long", "short", "again"].iter().for_each(|name| fail(&daemon, name));
    for name in ["long", "short"] {
        until("it lets a probe through", || (breaker(&daemon, name)["state"] == "half_open").then_some(()));
    }
    fail(&daemon, "long");
    fail(&daemon, "closed");
    daemon.post("/v1/breakers/forced/open", "").expect(200);
    // It was open, and is so for good now.
    daemon.post("/v1/breakers/again/open", "").expect(200);
    let before = breaker(&daemon, "long");

    let mut daemon = daemon.kill().start();
    for start in ["the first", "the second"] {
        let long = breaker(&daemon, "long");
        assert_eq!(
            (&long["state"], &long["openings"], &long["forced"]),
            (&json!("open"), &json!(2), &json!(false)),
            "{start}"
        );
        let left = |breaker: &Value| breaker["retryAfterMs"].as_u64().expect("a time");
        assert!((1..=left(&before)).contains(&left(&long)), "{start}: {long}, before {before}");
        let refused = daemon.submit(&json!({ "agent": "guarded" }));
        assert_eq!((refused.status, refused.error_code().as_str()), (503, "circuit_open"), "{start}");
        assert_eq!(breaker(&daemon, "short")["state"], "half_open", "{start}");
        for name in ["forced", "again"] {
            let forced = breaker(&daemon, name);
            assert_eq!((&forced["state"], &forced["forced"]), (&json!("open"), &json!(true)), "{start}: {forced}");
        }
        let closed = breaker(&daemon, "closed");
        assert_eq!((&closed["state"], &closed["openings"]), (&json!("closed"), &json!(0)), "{start}: {closed}");
        daemon = daemon.kill().start();
    }
    // What an operator closes is closed.
    for name in ["forced", "long"] {
        daemon.post(&format!("/v1/breakers/{name}/close"), "").expect(200);
    }
    let daemon = daemon.kill().start();
    for name in ["forced", "long"] {
        assert_eq!(breaker(&daemon, name)["state"], "closed", "{name}");
    }
    assert_eq!(daemon.run_task("guarded", json!(1))["state"], "completed");
    daemon.stop();
}

#[test]
fn while_storage_is_short_a_known_key_is_answered_as_before_and_a_new_one_is_refused() {
    let home = home("");
    let daemon = home.start();
    let envelope = |key: &str| json!({ "agent": "effects", "payload": {}, "idempotencyKey": key });
    let body = vec![b'k'; 100_000];
    let raw = |key: &str| Request::post("/v1/agents/cat/tasks", body.clone()).with("Idempotency-Key", key);
    let done = daemon.run_with(envelope("done"))["id"].clone();
    block(&daemon);
    let waiting = daemon.submit(&envelope("waiting")).expect(202).json()["id"].clone();
    let large = daemon.ask(&raw("large")).expect(202).json()["id"].clone();
    // As much as no disk has.
    daemon.home().configure(&config(daemon.home(), "[spool]\nmin_free_mb = 1048576\n"));
    daemon.post("/v1/reload", "").expect(200);
    soon("storage is short", || daemon.get("/v1/status").json()["storage"]["ok"] == false);

    let is_replay = |answer: &Response, status: u16, task: &Value| {
        let told = (answer.status, answer.header("Idempotent-Replay"), &answer.json()["id"]);
        assert_eq!(told, (status, Some("true"), task), "{}", answer.text());
    };
    let mut daemon = daemon;
    for start in ["a reload", "a kill"] {
        let wait = Request::json("/v1/tasks?wait=1", &envelope("done"));
        is_replay(&daemon.ask(&wait), 200, &done);
        if start == "a reload" {
            is_replay(&daemon.submit(&envelope("waiting")), 202, &waiting);
            is_replay(&daemon.ask(&raw("large")), 202, &large);
        }
        for refused in [daemon.submit(&envelope("new")), daemon.ask(&raw("newer"))] {
            assert_eq!((refused.status, refused.error_code().as_str()), (503, "storage_full"), "after {start}");
        }
        for path in ["/health", "/v1/status"] {
            let storage = daemon.get(path).expect(200).json()["storage"].clone();
            assert_eq!(storage["ok"], false, "after {start}, {path}: {storage}");
        }
        daemon = daemon.kill().start();
        // What was accepted runs: the reserve is kept for that.
        for task in [&waiting, &large] {
            assert_eq!(daemon.finished(task.as_str().expect("an id"))["state"], "completed", "after {start}");
        }
        is_replay(&daemon.ask(&Request::json("/v1/tasks?wait=1", &envelope("waiting"))), 200, &waiting);
    }
    let home = daemon.stop();
    ran_once(&home, &[done, waiting].map(|id| id.as_str().expect("an id").to_owned()));
    let left = fs::read_dir(state(&home).join("payloads")).expect("there").count();
    assert_eq!(left, 0, "what came with a known key or was refused is gone");
}

#[test]
fn a_second_daemon_on_the_same_directory_ends_with_71_and_says_why_and_the_first_goes_on() {
    let daemon = home("").start();
    let running = daemon.accept("effects", json!({ "ms": 3000 }));
    soon("it has begun", || effects(daemon.home()).contains_key(&running));
    let queued = daemon.accept("effects", json!({}));
    let state_dir = format!("[daemon]\nstate_dir = {:?}\n", state(daemon.home()).display().to_string());
    let second = Home::new(&(state_dir + "[agents.effects]\ncommand = [\"false\"]\n"));
    let before = look(&state(daemon.home()).join("journal"));
    let ended = run_command(&mut second.kurultaid(), b"").expect(71);
    assert!(ended.stderr.contains("is in use by another kurultaid: stop that one"), "{}", ended.stderr);
    assert!(!second.socket().exists(), "it leaves nothing behind");
    assert_eq!(look(&state(daemon.home()).join("journal")), before, "it has touched nothing");
    for id in [&running, &queued] {
        assert_eq!(daemon.finished(id)["state"], "completed", "{id}");
    }
    ran_once(&daemon.stop(), &[running, queued]);
}
