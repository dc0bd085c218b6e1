//! A long journal.

use std::fs;

use serde_json::json;

use super::state::*;
use crate::common::{Home, MIB};

const QUEUED: u64 = 9_000;
/// As many as a daemon remembers beside its own bound on them.
const FINISHED: u64 = 1_000;

/// One in ten has a file of its own.
const PAYLOAD: usize = 5000;

fn write_state(home: &Home) {
    let state = state(home);
    for folder in ["payloads", "results", "checkpoints"] {
        fs::create_dir_all(state.join(folder)).expect("made");
    }
    let file =
        |bytes: &[u8]| json!({ "file": { "bytes": bytes.len(), "crc": format!("{:08x}", crc32fast::hash(bytes)) } });
    let spec = |task: u64| {
        let request = format!("r-{task}");
        json!({
            "agent": "guarded", "priority": 2, "json": false, "timeoutMs": 600_000, "preemptible": true,
            "skippable": false, "key": format!("key-{task}"), "request": request
        })
    };
    let record = |op: &str, task: u64, more: serde_json::Value| {
        let mut record = json!({ "op": op, "task": task, "at": now_ms() });
        for part in [spec(task), more] {
            record.as_object_mut().expect("an object").extend(part.as_object().expect("an object").clone());
        }
        line(&record)
    };
    let mut journal = line(&json!({ "op": "begin", "next": 1 }));
    for task in 1..=FINISHED {
        let result = if task % 10 == 0 {
            let bytes = vec![b'r'; PAYLOAD];
            fs::write(state.join(format!("results/t-{task}")), &bytes).expect("written");
            file(&bytes)
        } else {
            json!({ "text": format!("result {task}") })
        };
        let end = json!({ "completed": { "result": result, "json": false } });
        let more = json!({ "created": now_ms(), "attempt": 1, "preemptions": 0, "payload": { "file": 4 }, "end": end });
        journal += &record("finished", task, more);
    }
    for task in FINISHED + 1..=FINISHED + QUEUED {
        let payload = if task % 10 == 0 {
            let bytes = vec![b'p'; PAYLOAD];
            fs::write(state.join(format!("payloads/t-{task}")), &bytes).expect("written");
            file(&bytes)
        } else {
            json!({ "text": format!("payload {task}") })
        };
        journal += &record("accepted", task, json!({ "payload": payload }));
    }
    // Nothing starts: what is there after the start can be counted.
    journal += &line(&json!({ "op": "breaker", "name": "held", "state": "forced_open", "openings": 1 }));
    fs::write(state.join("journal"), journal).expect("written");
    fs::write(state.join("format"), "2\n").expect("written");
}

#[test]
fn ten_thousand_tasks_are_all_there_after_a_start_and_cost_what_they_may() {
    let home = Home::new(
        "[queue]\nmax_depth = 10000\npriority_limits = { normal = 10000 }\n[workers]\nmax = 1\n[breakers.held]\n\
         [agents.guarded]\ncommand = [\"cat\"]\nbreaker = \"held\"\n",
    );
    let home = home.start().stop();
    let alone = home.start();
    let empty = alone.footprint().rss_bytes;
    let home = alone.stop();
    write_state(&home);
    let mut daemon = home.start();
    for start in ["the first", "the second"] {
        assert_eq!(daemon.get("/v1/queue").expect(200).json()["depth"], QUEUED, "{start}");
        let ended = daemon.get("/v1/tasks?state=completed&limit=1000").expect(200).json();
        assert_eq!(ended["tasks"].as_array().map(Vec::len), Some(FINISHED as usize), "{start}");
        for task in [1, FINISHED / 2, FINISHED, FINISHED + 1, FINISHED + QUEUED] {
            let state = if task <= FINISHED { "completed" } else { "queued" };
            assert_eq!(daemon.task(&format!("t-{task}"))["state"], state, "{start}: t-{task}");
        }
        let result = |task: u64| daemon.get(&format!("/v1/tasks/t-{task}/result")).expect(200).body;
        assert_eq!((result(7), result(10)), (b"result 7".to_vec(), vec![b'r'; PAYLOAD]), "{start}");
        damage_is_told(&daemon, &[]);
        let rss = daemon.footprint().rss_bytes;
        println!("{start} start: {} KiB, empty {} KiB", rss >> 10, empty >> 10);
        assert!(rss < empty + 12 * MIB, "{start}: {rss} with {QUEUED} waiting, {empty} without");
        daemon = daemon.kill().start();
    }
    daemon.post("/v1/breakers/held/close", "").expect(200);
    for task in [FINISHED + 1, FINISHED + 10] {
        assert_eq!(daemon.finished(&format!("t-{task}"))["state"], "completed", "t-{task}");
    }
    assert_eq!(daemon.get(&format!("/v1/tasks/t-{}/result", FINISHED + 10)).expect(200).body, vec![b'p'; PAYLOAD]);
    assert_eq!(
        daemon.get(&format!("/v1/tasks/t-{}/result", FINISHED + 1)).expect(200).text(),
        format!("payload {}", FINISHED + 1)
    );
    daemon.kill();
}
