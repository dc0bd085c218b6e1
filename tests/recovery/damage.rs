//! Files of tasks that are not what was written.

use std::fs;

use serde_json::{Value, json};

use super::state::*;
use crate::common::{Daemon, soon};

/// What is said of a ruined file whose content is known by a checksum.
fn reason(ruin: &str) -> &'static str {
    match ruin {
        "missing" => "it is missing",
        "garbled" => "its checksum is",
        "a directory" | "a link" | "a pipe" => "it is no plain file",
        _ => "bytes, and 100000 were written",
    }
}

#[test]
fn a_task_whose_payload_is_lost_fails_and_says_why_and_the_others_run() {
    let daemon = home("").start();
    let blocker = block(&daemon);
    let body = vec![b'p'; 100_000];
    let submit = || {
        let task = daemon.post("/v1/agents/cat/tasks", body.clone()).expect(202).json();
        task["id"].as_str().expect("an id").to_owned()
    };
    let ruined: Vec<String> = RUINS.iter().map(|_| submit()).collect();
    let (whole, small) = (submit(), daemon.accept("effects", json!({})));

    let home = daemon.kill();
    let state = state(&home);
    let path = |id: &str| state.join("payloads").join(id);
    ruined.iter().zip(&RUINS).for_each(|(id, ruin)| (ruin.act)(&path(id)));
    let ruins: Vec<_> = ruined.iter().map(|id| look(&path(id))).collect();
    let daemon = home.start();
    for ((id, ruin), found) in ruined.iter().zip(&RUINS).zip(ruins) {
        let task = daemon.finished(id);
        let error = &task["error"];
        assert_eq!((&task["state"], &error["code"]), (&json!("failed"), &json!("spawn_failed")), "{}", ruin.name);
        let message = error["message"].as_str().expect("a message");
        let why = reason(ruin.name);
        assert!(
            message.contains(why) && message.contains("payload") && message.contains("again"),
            "{}: {message}",
            ruin.name
        );
        is_logged(&daemon, &path(id), why);
        let kept = aside(&state, "payload", id);
        assert_eq!(kept, if found.is_some() { vec![found] } else { Vec::new() }, "{}", ruin.name);
        assert_eq!(look(&path(id)), None, "{}: out of the way", ruin.name);
    }
    damage_is_told(&daemon, &[("payload", RUINS.len() as u64)]);
    assert_eq!(daemon.finished(&whole)["state"], "completed");
    assert!(daemon.get(&format!("/v1/tasks/{whole}/result")).expect(200).body == body);
    assert_eq!(daemon.finished(&small)["state"], "completed");
    assert_eq!(daemon.finished(&blocker)["error"]["code"], "worker_crashed");
    ran_once(&daemon.stop(), &[small]);
}

#[test]
fn a_result_that_is_lost_is_answered_as_gone_and_never_as_another() {
    let daemon = home("").start();
    let ruined: Vec<String> =
        RUINS.iter().map(|_| daemon.run_task("large", json!(1))["id"].as_str().unwrap().to_owned()).collect();
    let whole = daemon.run_task("large", json!(1));
    let whole = whole["id"].as_str().expect("an id");
    let small = daemon.run_task("cat", json!("small"));
    let small = small["id"].as_str().expect("an id");

    let home = daemon.kill();
    let state = state(&home);
    let path = |id: &str| state.join("results").join(id);
    ruined.iter().zip(&RUINS).for_each(|(id, ruin)| (ruin.act)(&path(id)));
    let ruins: Vec<_> = ruined.iter().map(|id| look(&path(id))).collect();
    let daemon = home.start();
    let lost = |id: &str, name: &str| {
        let answer = daemon.get(&format!("/v1/tasks/{id}/result"));
        assert_eq!((answer.status, answer.error_code().as_str()), (410, "result_lost"), "{name}: {}", answer.text());
        answer.text()
    };
    for ((id, ruin), found) in ruined.iter().zip(&RUINS).zip(ruins) {
        let text = lost(id, ruin.name);
        assert!(text.contains(reason(ruin.name)), "{}: {text}", ruin.name);
        is_logged(&daemon, &path(id), reason(ruin.name));
        assert_eq!(lost(id, ruin.name), text, "{}: still", ruin.name);
        assert_eq!(daemon.task(id)["state"], "completed", "{}: it did run", ruin.name);
        let kept = aside(&state, "result", id);
        assert_eq!(kept, if found.is_some() { vec![found] } else { Vec::new() }, "{}", ruin.name);
    }
    damage_is_told(&daemon, &[("result", RUINS.len() as u64)]);
    assert_eq!(daemon.get(&format!("/v1/tasks/{whole}/result")).expect(200).body, vec![0; 100_000]);
    assert_eq!(daemon.get(&format!("/v1/tasks/{small}/result")).expect(200).body, b"\"small\"");
    assert_eq!(daemon.run_task("large", json!(1))["resultBytes"], 100_000);
    daemon.stop();
}

/// A task of the agent `sleeper` that had made steps when the daemon ended.
struct Left {
    id: String,
    ruin: &'static Ruin,
    /// An older checkpoint is whole.
    has_older: bool,
    is_preempted: bool,
    max_retries: u32,
}

impl Left {
    fn records(&self, number: usize) -> String {
        let (max_retries, preempted) = (self.max_retries, self.is_preempted);
        let accepted = json!({
            "op": "accepted", "task": number, "at": now_ms(), "agent": "sleeper", "priority": 2,
            "payload": { "text": "{\"steps\":5}" }, "json": true, "timeoutMs": 60_000, "maxRetries": max_retries,
            "preemptible": true, "skippable": false, "request": "r"
        });
        let started = json!({ "op": "started", "task": number, "at": now_ms() });
        let returned = json!({ "op": "returned", "task": number, "retries": 0, "preemptions": 1, "preempted": true });
        let mut lines = line(&accepted) + &line(&started);
        if preempted {
            lines += &line(&returned);
        }
        lines
    }

    #[track_caller]
    fn check(&self, daemon: &Daemon) {
        let task = daemon.finished(&self.id);
        let told = (&task["state"], &task["result"]["resumedAt"], &task["attempt"]);
        let name = self.ruin.name;
        if self.has_older {
            assert_eq!(told, (&json!("completed"), &json!(2), &json!(1)), "{name}: the older one: {task}");
        } else if self.is_preempted {
            assert_eq!(told, (&json!("completed"), &json!(0), &json!(1)), "{name}: it begins anew: {task}");
        } else if self.max_retries > 0 {
            assert_eq!(told, (&json!("completed"), &json!(0), &json!(2)), "{name}: a retry: {task}");
        } else {
            assert_eq!(
                (told.0, &task["error"]["code"]),
                (&json!("failed"), &json!("worker_crashed")),
                "{name}: {task}"
            );
        }
    }
}

#[test]
fn a_checkpoint_that_is_not_whole_is_passed_over_for_the_older_one_or_the_task_goes_by_its_retries() {
    let home = home("");
    let state = state(&home);
    let folder = state.join("checkpoints");
    fs::create_dir_all(&folder).expect("made");
    // Where there is an older one, the newer is ruined; one that is longer than it was has lost its end.
    let ways = [(true, true, 0), (true, false, 0), (false, true, 0), (false, false, 1), (false, false, 0)];
    let ways = RUINS.iter().flat_map(|ruin| ways.map(|way| (ruin, way)));
    let mut journal = String::new();
    let mut all = Vec::new();
    for (number, (ruin, (has_older, is_preempted, max_retries))) in (1..).zip(ways) {
        let left = Left { id: format!("t-{number}"), ruin, has_older, is_preempted, max_retries };
        journal += &left.records(number);
        let (kept, latest) = (folder.join(&left.id), folder.join(format!("{}.latest", left.id)));
        let newer = if has_older { &latest } else { &kept };
        fs::write(&kept, sealed("{\"step\":2}")).expect("written");
        fs::write(newer, sealed("{\"step\":4}")).expect("written");
        (ruin.act)(newer);
        all.push((left, look(newer)));
    }
    fs::write(state.join("journal"), line(&json!({ "op": "begin", "next": 100 })) + &journal).expect("written");
    fs::write(state.join("format"), "2\n").expect("written");

    let daemon = home.start();
    let mut damaged = 0;
    for (left, found) in &all {
        left.check(&daemon);
        let name = if left.has_older { format!("{}.latest", left.id) } else { left.id.clone() };
        // Whether one was there at all is not known of what is missing.
        let kept = if found.is_some() { vec![found.clone()] } else { Vec::new() };
        damaged += kept.len() as u64;
        assert_eq!(aside(&state, "checkpoint", &name), kept, "{name}, {}", left.ruin.name);
    }
    damage_is_told(&daemon, &[("checkpoint", damaged)]);
    assert_eq!(daemon.accept("cat", json!(1)), "t-100");
    daemon.stop();
}

#[test]
fn a_result_that_cannot_be_kept_fails_its_task_and_leaves_nothing() {
    let daemon = home("").start();
    let blocker = block(&daemon);
    let results = state(daemon.home()).join("results");
    let tasks = [(); 2].map(|()| daemon.accept("large", json!(1)));
    fs::create_dir(results.join(&tasks[0])).expect("made");
    daemon.ask(&crate::common::Request::new("DELETE", format!("/v1/tasks/{blocker}"))).expect(202);
    let failed = daemon.finished(&tasks[0]);
    let message = failed["error"]["message"].as_str().expect("a message");
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("agent_failed")), "{failed}");
    assert!(message.contains("the result cannot be kept") && message.contains("directory"), "{message}");
    assert_eq!(daemon.finished(&tasks[1])["state"], "completed", "the next is not held up");
    soon("what came of it is gone", || !results.join(format!("{}.tmp", tasks[0])).exists());
    assert_eq!(daemon.get(&format!("/v1/tasks/{}/result", tasks[0])).expect(409).error_code(), "no_result");
    fs::remove_dir(results.join(&tasks[0])).expect("as it was");
    assert_eq!(fs::read_dir(&results).expect("there").count(), 1);
    let daemon = daemon.kill().start();
    assert_eq!(daemon.task(&tasks[0])["error"], failed["error"], "it is remembered");
    assert_eq!(daemon.get("/v1/status").json()["storage"]["damaged"], Value::Null);
    daemon.stop();
}
