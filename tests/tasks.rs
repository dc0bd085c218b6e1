//! Tasks over HTTP: from a submission to its result, with the real daemon and real agents.

mod common;

use common::{Daemon, Request, agent, until, worker};
use serde_json::{Value, json};

const LONG_MS: u64 = 600_000;

/// One worker, so that what waits and what runs is known.
fn one_worker(more: &str) -> String {
    format!(
        "[workers]\nmax = 1\ncancel_grace_ms = 100\n{more}\n{}{}[agents.wc]\ncommand = [\"wc\", \"-c\"]\n",
        worker("sleeper", "tests/agents/sleeper", ""),
        worker("fields", "tests/agents/task-fields", ""),
    )
}

/// A task that occupies the only worker until it is cancelled.
fn occupy(daemon: &Daemon) -> String {
    let id = daemon.accept("sleeper", json!({ "ms": LONG_MS }));
    daemon.in_state(&id, &["running"]);
    id
}

fn cancel(daemon: &Daemon, id: &str) -> Value {
    daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{id}"))).expect(202).json()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn ids(tasks: &Value) -> Vec<String> {
    let tasks = tasks["tasks"].as_array().expect("a list");
    tasks.iter().map(|task| task["id"].as_str().expect("an id").to_owned()).collect()
}

#[track_caller]
fn is_a_time(value: &Value) {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time"));
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{text}");
}

#[test]
fn an_accepted_task_has_a_place_and_a_finished_one_has_exactly_the_documented_fields() {
    let daemon = Daemon::start(&one_worker(""));
    let response = daemon.submit(&json!({ "agent": "sleeper", "payload": { "ms": 50 } })).expect(202);
    assert_eq!(response.header("Location"), Some("/v1/tasks/t-1"));
    let accepted = response.json();
    assert_eq!((&accepted["id"], &accepted["attempt"]), (&json!("t-1"), &json!(1)));
    let finished = daemon.finished("t-1");
    assert_eq!(
        keys(&finished).iter().filter(|key| **key != "peakRssBytes").collect::<Vec<_>>(),
        [
            &"id",
            &"agent",
            &"priority",
            &"state",
            &"createdAt",
            &"startedAt",
            &"finishedAt",
            &"attempt",
            &"maxRetries",
            &"preemptions",
            &"requestId",
            &"workerId",
            &"payloadBytes",
            &"durationMs",
            &"result"
        ],
        "{finished}"
    );
    let running = daemon.accept("sleeper", json!({ "ms": 10_000, "steps": 10 }));
    let progress = until("progress is told", || daemon.task(&running).get("progress").cloned());
    assert!(progress["percent"].as_f64().is_some_and(|percent| percent > 0.0 && percent < 100.0), "{progress}");
    assert!(progress["message"].as_str().is_some_and(|text| text.ends_with(" of 10")), "{progress}");
    cancel(&daemon, &running);
    daemon.finished(&running);
    for key in ["createdAt", "startedAt", "finishedAt"] {
        is_a_time(&finished[key]);
    }
    assert_eq!((&finished["state"], &finished["priority"]), (&json!("completed"), &json!("normal")));
    assert_eq!(finished["result"], json!({ "slept": 50, "steps": 10, "resumedAt": 0, "attempt": 1 }));
    assert!(finished["durationMs"].as_f64().is_some_and(|ms| ms >= 50.0), "{finished}");
    assert_eq!(finished["workerId"], "w-1");
    assert_eq!(finished["payloadBytes"], 9, "the payload is {{\"ms\":50}}");
    daemon.stop();
}

#[test]
fn a_failed_task_says_why_in_its_error_and_nothing_else() {
    let daemon = Daemon::start(&one_worker(""));
    let failed = daemon.run_task("sleeper", json!({ "fail": "no such luck" }));
    assert_eq!(failed["state"], "failed");
    assert_eq!(keys(&failed["error"]), ["code", "message", "stack"], "{failed}");
    assert_eq!((&failed["error"]["code"], failed.get("result")), (&json!("agent_failed"), None));
    assert!(failed["error"]["message"].as_str().is_some_and(|text| text.contains("no such luck")), "{failed}");
    let id = failed["id"].as_str().expect("an id");
    let result = daemon.get(&format!("/v1/tasks/{id}/result")).expect(409);
    assert_eq!(result.error_code(), "no_result");
    daemon.stop();
}

#[test]
fn a_raw_submission_that_waits_is_answered_with_the_result_itself() {
    let config = one_worker("") + &agent("exit3", "tests/agents/bad/exit3", "");
    let daemon = Daemon::start(&config);
    let done = daemon.post("/v1/agents/wc/tasks?wait=30", "twelve bytes").expect(200);
    assert_eq!(done.text(), "12\n");
    assert_eq!(done.header("X-Task-Id"), Some("t-1"));
    assert_eq!(done.header("Content-Type"), Some("application/octet-stream"));

    let failed = daemon.post("/v1/agents/exit3/tasks?wait=30", "x").expect(502);
    assert_eq!(failed.header("X-Task-Id"), Some("t-2"));
    let error = &failed.json()["error"];
    assert_eq!((&error["code"], &error["exitStatus"]), (&json!("agent_failed"), &json!(3)));
    assert!(error["stderrTail"].as_str().is_some_and(|tail| tail.contains("the disk is on fire")), "{error}");

    let body = json!({ "ms": LONG_MS });
    let late = daemon.ask(&Request::json("/v1/agents/sleeper/tasks?wait=0.2", &body)).expect(504);
    assert_eq!(late.error_code(), "not_finished");
    assert_eq!((late.header("X-Task-Id"), late.header("Location")), (Some("t-3"), Some("/v1/tasks/t-3")));
    cancel(&daemon, "t-3");
    let gone = daemon.ask(&Request::post("/v1/agents/wc/tasks?wait=30", "").with("Idempotency-Key", "k"));
    assert_eq!((gone.status, gone.text()), (200, "0\n".to_owned()), "an empty body is a payload");
    daemon.stop();
}

#[test]
fn a_wait_that_ends_first_is_answered_with_the_task_as_it_is() {
    let daemon = Daemon::start(&one_worker(""));
    let body = json!({ "agent": "sleeper", "payload": { "ms": LONG_MS } });
    let task = daemon.ask(&Request::json("/v1/tasks?wait=0.2", &body)).expect(202).json();
    let id = task["id"].as_str().expect("an id");
    cancel(&daemon, id);
    daemon.in_state(id, &["cancelled"]);
    let done = daemon.ask(&Request::json("/v1/tasks?wait=30", &json!({ "agent": "wc" }))).expect(200).json();
    assert_eq!(done["state"], "completed");
    assert_eq!(done["resultBytes"], 2, "wc -c of the payload null prints 4 and a newline");
    daemon.stop();
}

#[test]
fn tasks_are_listed_newest_first_and_filtered() {
    let daemon = Daemon::start(&one_worker("[queue]\nmax_depth = 20\n"));
    let ran = daemon.run_task("wc", json!(1))["id"].as_str().expect("an id").to_owned();
    let failed = daemon.run_task("sleeper", json!({ "fail": "x" }))["id"].as_str().expect("an id").to_owned();
    let running = occupy(&daemon);
    let queued: Vec<String> = (0..3).map(|_| daemon.accept("wc", json!(1))).collect();
    let list = |query: &str| ids(&daemon.get(&format!("/v1/tasks{query}")).expect(200).json());

    let all = [&queued[2], &queued[1], &queued[0], &running, &failed, &ran];
    assert_eq!(list("").iter().collect::<Vec<_>>(), all);
    assert_eq!(list("?limit=2").iter().collect::<Vec<_>>(), all[..2]);
    assert_eq!(list("?agent=sleeper").iter().collect::<Vec<_>>(), [&running, &failed]);
    assert_eq!(list("?state=queued,running&agent=wc").iter().collect::<Vec<_>>(), all[..3]);
    assert_eq!(list("?state=failed").iter().collect::<Vec<_>>(), [&failed]);
    assert_eq!(list("?agent=nobody"), Vec::<String>::new());
    cancel(&daemon, &running);
    daemon.finished(&queued[2]);
    daemon.stop();
}

#[test]
fn a_result_is_refused_before_it_is_there() {
    let daemon = Daemon::start(&one_worker(""));
    let running = occupy(&daemon);
    let queued = daemon.accept("wc", json!(1));
    for id in [&running, &queued] {
        let refused = daemon.get(&format!("/v1/tasks/{id}/result")).expect(409);
        assert_eq!(refused.error_code(), "not_finished", "{id}");
    }
    cancel(&daemon, &running);
    daemon.finished(&queued);
    assert_eq!(daemon.get(&format!("/v1/tasks/{queued}/result")).expect(200).text(), "1\n");
    assert_eq!(daemon.get("/v1/tasks/t-99/result").expect(404).error_code(), "unknown_task");
    daemon.stop();
}

#[test]
fn cancelling_ends_what_waits_and_what_runs_and_refuses_what_has_ended() {
    let daemon = Daemon::start(&one_worker(""));
    let running = occupy(&daemon);
    let queued = daemon.accept("wc", json!(1));
    assert_eq!(cancel(&daemon, &queued)["state"], "cancelled", "nothing has to be asked first");
    assert_eq!(cancel(&daemon, &running)["state"], "running", "its worker is asked first");
    let cancelled = daemon.in_state(&running, &["cancelled"]);
    assert!(cancelled["finishedAt"].is_string() && cancelled.get("error").is_none(), "{cancelled}");
    for id in [&running, &queued] {
        let refused = daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{id}"))).expect(409);
        assert_eq!(refused.error_code(), "already_finished", "{id}");
    }
    let unknown = daemon.ask(&Request::new("DELETE", "/v1/tasks/t-77")).expect(404);
    assert_eq!(unknown.error_code(), "unknown_task");
    daemon.stop();
}

#[test]
fn the_events_of_a_task_are_its_states_and_progress_and_end_with_it() {
    let daemon = Daemon::start(&one_worker(""));
    let before = occupy(&daemon);
    let id = daemon.accept("sleeper", json!({ "ms": 300, "steps": 2 }));
    let mut follower = daemon.connect();
    follower.send(&Request::get(format!("/v1/tasks/{id}/events")).bytes()).expect("the daemon reads");
    let head = follower.receive_head().expect("a head");
    assert_eq!((head.status, head.header("Content-Type")), (200, Some("application/x-ndjson")));
    let first = follower.next_event().expect("the present state");
    assert_eq!((&first["type"], &first["state"]), (&json!("state"), &json!("queued")));
    cancel(&daemon, &before);
    let mut events = vec![first];
    events.extend(std::iter::from_fn(|| follower.next_event()));
    let told: Vec<String> = events
        .iter()
        .map(|event| {
            assert_eq!(event["task"], id, "{event}");
            is_a_time(&event["at"]);
            match event["type"].as_str() {
                Some("state") => format!("{} {}", event["state"].as_str().unwrap_or("?"), event["attempt"]),
                Some("progress") => format!("{} {}", event["percent"].as_f64().unwrap_or(-1.0), event["message"]),
                other => panic!("{other:?}: {event}"),
            }
        })
        .collect();
    assert_eq!(told, ["queued 1", "running 1", "50 \"step 1 of 2\"", "100 \"step 2 of 2\"", "completed 1"]);

    let again = daemon.get(&format!("/v1/tasks/{id}/events")).expect(200).text();
    assert_eq!(again.lines().count(), 1, "a task that has ended has one line: {again}");
    assert_eq!(daemon.get("/v1/tasks/t-99/events").expect(404).error_code(), "unknown_task");
    daemon.stop();
}

#[test]
fn decisions_about_a_task_are_explained_with_figures() {
    let daemon = Daemon::start(&one_worker(""));
    let task = daemon.run_task("sleeper", json!({ "fail": "x" }));
    let id = task["id"].as_str().expect("an id");
    let why = daemon.get(&format!("/v1/tasks/{id}/why")).expect(200).json();
    assert_eq!((&why["task"], &why["state"]), (&json!(id), &json!("failed")));
    let events: Vec<&str> =
        why["decisions"].as_array().expect("a list").iter().filter_map(|one| one["event"].as_str()).collect();
    assert_eq!(events, ["TASK_FAILED", "TASK_STARTED", "TASK_ACCEPTED"], "newest first");
    let started = &why["decisions"][1];
    assert_eq!((&started["task"], &started["worker"]), (&json!(id), &json!("w-1")));
    assert_eq!(started["figures"]["attempt"], 1);
    assert!(started["text"].as_str().is_some_and(|text| text.contains("w-1") && text.contains("attempt 1")), "{why}");

    daemon.submit(&json!({ "agent": "nobody" })).expect(404);
    let decisions = daemon.get("/v1/decisions?limit=1").expect(200).json();
    let only = &decisions["decisions"][0];
    assert_eq!((&only["event"], &only["figures"]["code"]), (&json!("TASK_REJECTED"), &json!("unknown_agent")));
    assert_eq!(daemon.get("/v1/tasks/t-99/why").expect(404).error_code(), "unknown_task");
    daemon.stop();
}

#[test]
fn the_same_key_is_the_same_task_whether_in_the_header_or_the_body() {
    let daemon = Daemon::start(&one_worker(""));
    let body = json!({ "agent": "wc", "payload": 1, "idempotencyKey": "monday" });
    let first = daemon.submit(&body).expect(202);
    assert_eq!(first.header("Idempotent-Replay"), None);
    let id = first.json()["id"].clone();
    let replays = [
        Request::json("/v1/tasks", &body),
        Request::json("/v1/tasks", &json!({ "agent": "wc" })).with("Idempotency-Key", "monday"),
        Request::post("/v1/agents/wc/tasks", "other").with("Idempotency-Key", "monday"),
    ];
    for request in &replays {
        let replay = daemon.ask(request);
        assert_eq!((&replay.json()["id"], replay.header("Idempotent-Replay")), (&id, Some("true")), "{request:?}");
    }
    daemon.finished(id.as_str().expect("an id"));
    let replay = daemon.ask(&replays[0]).expect(200);
    assert_eq!((&replay.json()["id"], &replay.json()["state"]), (&id, &json!("completed")));
    let waited = daemon.ask(&Request::post("/v1/agents/wc/tasks?wait=5", "x").with("Idempotency-Key", "monday"));
    assert_eq!((waited.status, waited.text()), (200, "1\n".to_owned()), "the result of the first");
    assert_eq!(ids(&daemon.get("/v1/tasks").json()).len(), 1, "nothing ran twice");

    for (request, what) in [
        (Request::json("/v1/tasks", &json!({ "agent": "sleeper", "idempotencyKey": "monday" })), "another agent"),
        (Request::json("/v1/tasks", &body).with("Idempotency-Key", "tuesday"), "two keys"),
        (Request::post("/v1/agents/wc/tasks", "").with("Idempotency-Key", "a b"), "a space"),
        (Request::json("/v1/tasks", &json!({ "agent": "wc", "idempotencyKey": "" })), "empty"),
        (Request::json("/v1/tasks", &json!({ "agent": "wc", "idempotencyKey": "k".repeat(129) })), "long"),
    ] {
        let refused = daemon.ask(&request);
        assert_eq!((refused.status, refused.error_code().as_str()), (400, "invalid_request"), "{what}");
    }
    daemon.stop();
}

#[test]
fn tasks_are_started_by_priority_and_first_come_first_served_within_one() {
    let daemon = Daemon::start(&one_worker("[queue]\nmax_depth = 20\n"));
    let first = occupy(&daemon);
    let submitted: Vec<(Value, String)> =
        [json!("low"), json!(2), json!("HEARTBEAT"), json!("High"), json!("0"), json!("normal"), json!("critical")]
            .into_iter()
            .map(|priority| {
                let id = daemon.accept_with(json!({ "agent": "wc", "priority": priority, "skippable": false }));
                (priority, id)
            })
            .collect();
    let id_of = |index: usize| submitted[index].1.clone();
    let order = [4, 6, 3, 1, 5, 0, 2].map(id_of);
    let queue = daemon.get("/v1/queue").expect(200).json();
    let waiting: Vec<&str> =
        queue["tasks"].as_array().expect("a list").iter().filter_map(|task| task["id"].as_str()).collect();
    assert_eq!(waiting, order.each_ref().map(String::as_str));
    assert_eq!(daemon.task(&order[2])["queuePosition"], 3);
    cancel(&daemon, &first);
    for id in &order {
        daemon.finished(id);
    }
    let started: Vec<Value> = daemon.logged("TASK_STARTED").iter().map(|line| line["task"].clone()).collect();
    assert_eq!(started[1..], order.each_ref().map(|id| json!(id)));
    daemon.stop();
}

#[test]
fn a_full_queue_and_a_full_level_refuse_and_say_when_to_come_back() {
    let daemon = Daemon::start(&one_worker("[queue]\nmax_depth = 3\npriority_limits = { low = 1 }\n"));
    let first = occupy(&daemon);
    let low = json!({ "agent": "wc", "priority": "low" });
    daemon.submit(&low).expect(202);
    assert_eq!(daemon.submit(&low).expect(429).error_code(), "priority_full");
    let waiting: Vec<String> = (0..2).map(|_| daemon.accept("wc", json!(1))).collect();
    for priority in ["critical", "normal", "heartbeat"] {
        let refused = daemon.submit(&json!({ "agent": "wc", "priority": priority })).expect(429);
        assert_eq!(refused.error_code(), "queue_full", "{priority}: nothing here is a skippable heartbeat");
    }
    let queue = daemon.get("/v1/queue").expect(200).json();
    assert_eq!((&queue["depth"], &queue["maxDepth"], &queue["byPriority"]["low"]), (&json!(3), &json!(3), &json!(1)));
    cancel(&daemon, &first);
    daemon.finished(&waiting[1]);
    daemon.stop();
}

#[test]
fn a_critical_task_takes_the_place_of_the_youngest_heartbeat_that_may_be_skipped() {
    let daemon = Daemon::start(&one_worker("[queue]\nmax_depth = 3\n"));
    let first = occupy(&daemon);
    let beat = |skippable: bool| json!({ "agent": "wc", "priority": "heartbeat", "skippable": skippable });
    let old = daemon.accept_with(beat(true));
    let young = daemon.accept_with(json!({ "agent": "wc", "priority": "heartbeat" }));
    let firm = daemon.accept_with(beat(false));
    assert_eq!(daemon.submit(&beat(true)).expect(429).error_code(), "queue_full", "a heartbeat evicts nothing");
    let critical = daemon.accept_with(json!({ "agent": "wc", "priority": "critical" }));
    assert_eq!(daemon.task(&young)["state"], "evicted");
    assert_eq!(daemon.task(&old)["state"], "queued");
    let why = daemon.get(&format!("/v1/tasks/{young}/why")).json();
    assert_eq!(why["decisions"][0]["event"], "TASK_EVICTED");
    assert_eq!(why["decisions"][0]["figures"]["madeRoomFor"], critical);
    cancel(&daemon, &first);
    for id in [&critical, &old, &firm] {
        assert_eq!(daemon.finished(id)["state"], "completed", "{id}");
    }
    daemon.stop();
}

#[test]
fn a_retryable_failure_is_tried_again_until_it_works_or_retries_are_used_up() {
    let daemon = Daemon::start(&one_worker(""));
    let payload = json!({ "fail": "not yet", "failAttempts": 2, "retryable": true });
    let done = daemon.run_with(json!({ "agent": "sleeper", "payload": payload, "maxRetries": 3 }));
    assert_eq!((&done["state"], &done["attempt"]), (&json!("completed"), &json!(3)));
    assert_eq!((&done["result"]["attempt"], &done["maxRetries"]), (&json!(3), &json!(3)));

    let exhausted = daemon.run_with(json!({ "agent": "sleeper", "payload": payload, "maxRetries": 1 }));
    assert_eq!((&exhausted["state"], &exhausted["attempt"]), (&json!("failed"), &json!(2)));
    assert_eq!(exhausted["error"]["code"], "retries_exhausted");
    assert!(exhausted["error"]["message"].as_str().is_some_and(|text| text.contains("not yet")), "{exhausted}");

    let final_failure = json!({ "fail": "never", "failAttempts": 1 });
    let failed = daemon.run_with(json!({ "agent": "sleeper", "payload": final_failure, "maxRetries": 3 }));
    assert_eq!((&failed["attempt"], &failed["error"]["code"]), (&json!(1), &json!("agent_failed")));
    daemon.stop();
}

#[test]
fn a_crash_is_tried_again_and_a_wrong_exit_status_is_not() {
    let script = "[ $KURULTAI_ATTEMPT -gt 1 ] && exec cat; echo dying >&2; kill -SEGV $$";
    let daemon = Daemon::start(&format!(
        "[agents.crash]\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\nmax_retries = 1\n{}max_retries = 5\n",
        agent("exit3", "tests/agents/bad/exit3", "")
    ));
    let done = daemon.ask(&Request::post("/v1/agents/crash/tasks?wait=30", "payload")).expect(200);
    assert_eq!(done.text(), "payload", "the second attempt has it as well");
    assert_eq!(daemon.task("t-1")["attempt"], 2);
    let crashed = daemon.run_with(json!({ "agent": "crash", "maxRetries": 0 }));
    let error = &crashed["error"];
    assert_eq!(
        (&error["code"], &error["signal"], &error["stderrTail"]),
        (&json!("worker_crashed"), &json!(11), &json!("dying\n"))
    );
    let failed = daemon.run_task("exit3", json!(1));
    assert_eq!((&failed["attempt"], &failed["error"]["code"]), (&json!(1), &json!("agent_failed")));
    daemon.stop();
}

#[test]
fn a_task_past_its_time_is_asked_and_then_killed() {
    let config = one_worker("") + &common::bad_agent("ignore-term", "oneshot");
    let daemon = Daemon::start(&config);
    for agent in ["sleeper", "ignore-term"] {
        let timed_out = daemon.run_with(json!({ "agent": agent, "payload": { "ms": LONG_MS }, "timeoutS": 0.5 }));
        assert_eq!(timed_out["error"]["code"], "timeout", "{timed_out}");
        assert!(timed_out["durationMs"].as_f64().is_some_and(|ms| ms >= 500.0), "{timed_out}");
    }
    let refused = daemon.submit(&json!({ "agent": "wc", "timeoutS": 1801 })).expect(400);
    assert_eq!(refused.error_code(), "invalid_request");
    assert_eq!(daemon.run_task("wc", json!(1))["state"], "completed");
    daemon.stop();
}

#[test]
fn a_request_id_goes_from_the_client_through_log_and_worker_and_back() {
    let config = one_worker("") + &agent("env-dump", "tests/agents/env-dump", "");
    let daemon = Daemon::start(&config);
    let ask = |path: &str, id: &str| {
        let response = daemon.ask(&Request::post(path, "null").with("X-Request-Id", id)).expect(200);
        assert_eq!(response.header("X-Request-Id"), Some(id));
        response
    };
    let environment = ask("/v1/agents/env-dump/tasks?wait=30", "req-7:a_b.c").json()["env"].clone();
    assert_eq!(environment["KURULTAI_REQUEST_ID"], "req-7:a_b.c");
    assert_eq!(environment["KURULTAI_TASK_ID"], "t-1");
    let fields = ask("/v1/agents/fields/tasks?wait=30&priority=high", "req-8").json();
    assert_eq!((&fields["requestId"], &fields["priority"]), (&json!("req-8"), &json!("high")));
    assert_eq!(daemon.task("t-2")["requestId"], "req-8");
    for event in ["TASK_ACCEPTED", "TASK_STARTED", "TASK_COMPLETED"] {
        let line = until(&format!("{event} of t-2 is logged"), || {
            daemon.logged(event).into_iter().find(|line| line["task"] == "t-2")
        });
        assert_eq!(line["request"], "req-8", "{line}");
    }
    for insane in ["a b", "a\"b", &"x".repeat(65)] {
        let response = daemon.ask(&Request::get("/health").with("X-Request-Id", insane));
        let ours = response.header("X-Request-Id").expect("every answer has one");
        assert!(ours.starts_with("r-"), "{insane:?} gave {ours:?}");
    }
    daemon.stop();
}

#[test]
fn health_is_never_older_than_the_last_answer() {
    let daemon = Daemon::start(&one_worker(""));
    occupy(&daemon);
    let depth = || daemon.get("/health").expect(200).json()["queue"]["depth"].clone();
    assert_eq!(depth(), 0);
    for _ in 0..20 {
        let waiting: Vec<String> = (1..=5)
            .map(|count| {
                let id = daemon.accept("sleeper", json!({ "ms": LONG_MS }));
                assert_eq!(depth(), count, "after {id} was accepted");
                id
            })
            .collect();
        for (left, id) in (0..5).rev().zip(&waiting) {
            cancel(&daemon, id);
            assert_eq!(depth(), left, "after {id} was cancelled");
        }
    }
}
