//! A state directory that a daemon of format 1 left, killed while it worked: tests/fixtures/state-1.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::state::{moved, now_ms, rewrite, state, times};
use crate::common::{Home, Request, repository, worker};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("it is there") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Made a moment ago, or what has ended would be forgotten some day.
fn old_state(home: &Home) {
    let state = state(home);
    copy(&repository().join("tests/fixtures/state-1"), &state);
    rewrite(&state.join("journal"), |journal| {
        assert_eq!(moved(&journal, 0), journal, "the sums are those of format 1");
        let last = times(&journal).into_iter().max().expect("there are times");
        moved(&journal, now_ms() - last)
    });
}

#[test]
fn a_directory_of_the_older_format_is_taken_over_whole() {
    let cat = |name: &str| format!("[agents.{name}]\ncommand = [\"cat\"]\n");
    let home = Home::new(&format!(
        "[workers]\nmax = 2\n[spool]\nretention_s = 31536000\n[agents.wc]\ncommand = [\"wc\", \"-c\"]\n{}{}",
        ["copy", "fail", "slow", "wait"].map(cat).concat(),
        worker("steps", "tests/agents/task-fields", "")
    ));
    old_state(&home);
    let state = state(&home);
    let (result, payload) =
        (fs::read(state.join("results/t-2")).unwrap(), fs::read(state.join("payloads/t-9")).unwrap());
    let mut daemon = home.start();
    let next = daemon.accept("wc", json!("new"));
    assert_eq!(next, "t-12");
    daemon.finished(&next);

    // Twice: as the old one left it, and as this one has written it anew.
    for start in ["the first", "the second"] {
        let check = |id: &str, fields: Value| {
            let task = daemon.finished(id);
            for (name, value) in fields.as_object().expect("fields") {
                assert_eq!(task[name], *value, "{start} start: {name} of {task}");
            }
            task
        };
        let result_of = |id: &str| daemon.get(&format!("/v1/tasks/{id}/result")).expect(200).body;
        check("t-1", json!({ "state": "completed", "agent": "wc", "attempt": 1, "peakRssBytes": 10_043_392 }));
        assert_eq!(result_of("t-1"), b"4\n", "{start}");
        check("t-2", json!({ "state": "completed", "resultBytes": 5000, "payloadBytes": 5000 }));
        assert!(result_of("t-2") == result, "{start}");
        let failed = check("t-3", json!({ "state": "failed" }));
        let error = &failed["error"];
        assert_eq!(
            (&error["code"], &error["signal"], &error["stderrTail"]),
            (&json!("worker_oom"), &json!(9), &json!("broken\n"))
        );
        let again = check("t-4", json!({ "state": "completed", "attempt": 2, "maxRetries": 2 }));
        assert_eq!((&again["attempts"][0]["code"], result_of("t-4")), (&json!("timeout"), b"x".to_vec()), "{again}");
        let resumed = check("t-5", json!({ "state": "completed", "attempt": 1, "preemptions": 1, "priority": "low" }));
        let given = &resumed["result"];
        assert_eq!(given["checkpoint"], json!({ "at": 11, "text": "größer" }), "{start}: {resumed}");
        assert_eq!(given["payload"], "{\"work\":1}", "{start}: {resumed}");
        let spent = check("t-6", json!({ "state": "failed", "attempt": 2, "priority": "critical" }));
        assert_eq!(spent["error"]["code"], "retries_exhausted", "{spent}");
        assert!(spent["error"]["message"].as_str().is_some_and(|text| text.contains("the daemon ended")), "{spent}");
        for id in ["t-7", "t-8", "t-9", "t-11"] {
            check(id, json!({ "state": "completed", "attempt": 1, "preemptions": 0 }));
        }
        assert_eq!((result_of("t-7"), result_of("t-8")), (b"again".to_vec(), b"5\n".to_vec()), "{start}");
        assert!(result_of("t-9") == payload, "{start}: a payload in a file");
        assert_eq!(result_of("t-11"), [0xff, 0, 0xfe], "{start}: bytes that are no text");
        check("t-10", json!({ "state": "cancelled" }));
        for (key, agent, task) in [("failed-once", "fail", "t-3"), ("order-8", "wc", "t-8")] {
            let again = Request::post(format!("/v1/agents/{agent}/tasks"), "eight").with("Idempotency-Key", key);
            let answer = daemon.ask(&again);
            assert_eq!(
                (answer.header("Idempotent-Replay"), &answer.json()["id"]),
                (Some("true"), &json!(task)),
                "{key}"
            );
        }

        assert_eq!(fs::read_to_string(state.join("format")).expect("there"), "2\n", "{start}");
        assert!(!state.join("damaged").exists(), "{start}");
        assert_eq!(daemon.get("/v1/status").json()["storage"]["damaged"], Value::Null, "{start}");
        let journal = fs::read_to_string(state.join("journal")).expect("there");
        assert!(journal.lines().next().is_some_and(|line| line.contains("\"begin\"")), "{start}: {journal}");
        assert_eq!(journal.matches("{\"op\":\"begin\"").count(), 1, "{start}: {journal}");
        assert_eq!(
            fs::read_dir(state.join("payloads")).expect("there").count(),
            0,
            "{start}: nobody needs them any more"
        );
        assert_eq!(fs::read_dir(state.join("checkpoints")).expect("there").count(), 0, "{start}");
        daemon = daemon.kill().start();
    }
    let journal = fs::read_to_string(state.join("journal")).expect("there");
    assert!(journal.contains("{\"bytes\":5000,\"crc\":"), "what was written since has its sum: {journal}");
    assert_eq!(daemon.accept("wc", json!("newer")), "t-13", "a number is given out once");
    daemon.stop();
}
