//! A wall clock that was set between two daemons. To a daemon that is the same as if all times of the journal lay elsewhere.

use serde_json::{Value, json};

use super::state::*;
use crate::common::{Request, soon, until};

const PAUSE_MS: u64 = 2000;

fn config_with(home: &crate::common::Home, retention_s: u64) -> String {
    let more = format!(
        "[spool]\nretention_s = {retention_s}\n[breakers.server]\nfailure_threshold = 1\nbackoff_ms = [{PAUSE_MS}]\n\
         [agents.guarded]\ncommand = [\"cat\"]\nbreaker = \"server\"\n"
    );
    config(home, &more)
}

/// `moved_ms`: how far the times lie in the future when the daemon starts again.
fn the_clock_was_set(moved_ms: i64, retention_s: u64) {
    let home = crate::common::Home::new("");
    home.configure(&config_with(&home, retention_s));
    let daemon = home.start();
    let done = daemon.run_with(json!({ "agent": "large", "idempotencyKey": "done" }));
    let done = done["id"].as_str().expect("an id").to_owned();
    let retried = daemon.accept_with(json!({ "agent": "effects", "payload": { "ms": LONG_MS }, "maxRetries": 1 }));
    soon("it has begun", || effects(daemon.home()).contains_key(&retried));
    let queued = daemon.accept("effects", json!({}));
    let waiting = daemon.accept("guarded", json!("waits"));
    let permit = daemon.post("/v1/breakers/server/acquire", "").expect(200).json()["permit"].clone();
    daemon.ask(&Request::json("/v1/breakers/server/failure", &json!({ "permit": permit }))).expect(204);

    let home = daemon.kill();
    rewrite(&state(&home).join("journal"), |journal| moved(&journal, moved_ms));
    let daemon = home.start();
    let open = daemon.get("/v1/breakers").expect(200).json()["breakers"][0].clone();
    match open["state"].as_str() {
        Some("open") => assert!(open["retryAfterMs"].as_u64().is_some_and(|ms| ms <= PAUSE_MS), "{open}"),
        Some("half_open" | "closed") => {}
        other => panic!("{other:?}: {open}"),
    }
    if moved_ms < 0 {
        assert_ne!(open["state"], "open", "its pause is over");
    }
    // The worker is busy with the retry; its timeout is of this daemon's own time.
    let again = daemon.in_state(&retried, &["running"]);
    assert_eq!(again["attempt"], 2, "{again}");
    daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{retried}"))).expect(202);
    for id in [&queued, &waiting] {
        assert_eq!(daemon.finished(id)["state"], "completed", "{id}");
    }
    until("the breaker closes", || {
        let server = daemon.get("/v1/breakers").json()["breakers"][0].clone();
        (server["state"] != "open").then_some(())
    });
    // Not too early.
    assert_eq!(daemon.get(&format!("/v1/tasks/{done}/result")).expect(200).body, vec![0; 100_000]);
    let again = daemon.submit(&json!({ "agent": "large", "idempotencyKey": "done" }));
    assert_eq!((again.header("Idempotent-Replay"), &again.json()["id"]), (Some("true"), &json!(done)));

    // And not for ever: from here on its time is over, wherever the clock stands.
    let home = daemon.kill();
    home.configure(&config_with(&home, 1));
    let daemon = home.start();
    soon("everything is forgotten", || daemon.get("/v1/tasks").json()["tasks"] == Value::Array(Vec::new()));
    let results = state(daemon.home()).join("results");
    soon("and its result", || std::fs::read_dir(&results).expect("there").count() == 0);
    let home = daemon.kill();
    let journal = std::fs::read_to_string(state(&home).join("journal")).expect("there");
    let daemon = home.start();
    assert_eq!(daemon.get("/v1/tasks").json()["tasks"], Value::Array(Vec::new()), "for good: {journal}");
    daemon.stop();
}

#[test]
fn a_clock_set_back_an_hour_makes_nothing_last_longer_than_its_time() {
    the_clock_was_set(HOUR_MS, 3600);
}

#[test]
fn a_clock_set_forward_an_hour_makes_nothing_go_that_is_kept_for_longer() {
    // Nobody can tell it from an hour that has passed.
    the_clock_was_set(-HOUR_MS, 7200);
}

#[test]
fn a_clock_set_forward_past_the_retention_lets_what_has_ended_go_and_what_waits_run() {
    let home = home("[spool]\nretention_s = 600\n");
    let daemon = home.start();
    let done = daemon.run_task("large", json!(1))["id"].as_str().expect("an id").to_owned();
    block(&daemon);
    let queued = daemon.accept("effects", json!({}));
    let home = daemon.kill();
    rewrite(&state(&home).join("journal"), |journal| moved(&journal, -HOUR_MS));
    let daemon = home.start();
    assert_eq!(daemon.get(&format!("/v1/tasks/{done}")).status, 404);
    let results = state(daemon.home()).join("results");
    soon("its result is gone", || std::fs::read_dir(&results).expect("there").count() == 0);
    assert_eq!(daemon.finished(&queued)["state"], "completed");
    ran_once(&daemon.stop(), &[queued]);
}
