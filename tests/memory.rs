//! What the daemon does about memory: levels, and what each of them costs whom.

mod common;

use common::{Ballast, Daemon, MIB, Memory, ballast, metric, soon, until, worker};
use serde_json::{Value, json};

const LIMIT_MIB: u64 = 400;

fn config(memory: &str, more: &str) -> String {
    format!(
        "[daemon]\ndrain_timeout_s = 1\n[memory]\nlimit_mb = {LIMIT_MIB}\ncheck_interval_ms = 50\n{memory}\n\
         [queue]\nmax_depth = 10\n{more}\n{}{}{}",
        worker("echo", "scripts/agents/echo.py", ""),
        ballast(&["ballast", "fixed", "normal", "low", "deaf", "small", "large"], ""),
        worker("sleeper", "tests/agents/sleeper", "")
    )
}

/// Every line of the log that is about a change of level.
fn crossings(daemon: &Daemon) -> Vec<Value> {
    const NAMES: [&str; 5] =
        ["MEMORY_WARNING", "MEMORY_CRITICAL", "MEMORY_REJECT", "MEMORY_EMERGENCY", "MEMORY_CLEARED"];
    let is_one = |line: &Value| line["event"].as_str().is_some_and(|event| NAMES.contains(&event));
    daemon.log_lines().into_iter().filter(is_one).collect()
}

const LEVELS: [&str; 5] = ["normal", "warning", "critical", "reject", "emergency"];
const THRESHOLDS: [f64; 5] = [0.0, 0.70, 0.85, 0.90, 0.95];
const HYSTERESIS: f64 = 0.10;

/// A crossing's own figures have to lead to it.
fn check_crossing(line: &Value) {
    let index = |name: &str| LEVELS.iter().position(|level| line[name] == *level).expect("a level");
    let (from, to) = (index("from"), index("to"));
    let ratio = line["usageBytes"].as_f64().expect("bytes") / line["limitBytes"].as_f64().expect("bytes");
    assert!((line["pressure"].as_f64().expect("a ratio") - ratio).abs() <= 0.0006, "{line}");
    assert_eq!(line["limitBytes"], LIMIT_MIB * MIB, "{line}");
    if to > from {
        assert!(ratio >= THRESHOLDS[to] && (to == 4 || ratio < THRESHOLDS[to + 1]), "{ratio}: {line}");
    } else {
        assert!(to < from && ratio < THRESHOLDS[to + 1] - HYSTERESIS, "{ratio}: {line}");
        assert!(to == 0 || ratio >= THRESHOLDS[to] - HYSTERESIS, "{ratio}: {line}");
    }
}

/// All lines about memory between an opening and its end have its incident.
fn incidents(lines: &[Value]) -> Vec<String> {
    let mut incidents: Vec<String> =
        lines.iter().map(|line| line["incident"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()).collect();
    incidents.dedup();
    incidents
}

#[test]
fn levels_begin_at_their_thresholds_clear_ten_percent_lower_and_are_one_incident() {
    let daemon = Daemon::start(&config("mode = \"observe\"", "[workers]\nmax = 3\n"));
    let running = daemon.accept_with(json!({ "agent": "sleeper", "payload": { "ms": 600_000 }, "priority": "low" }));
    let mut ballast = Ballast::start(&daemon, "ballast");
    assert_eq!(Memory::of(&daemon).map(|memory| memory.level).as_deref(), Some("normal"));
    let mut incident = None;
    // Nothing is refused, so the worst that /health says is critical.
    for (share, level, status) in [
        (0.68, "normal", "ok"),
        (0.72, "warning", "warning"),
        (0.83, "warning", "warning"),
        (0.87, "critical", "critical"),
        (0.92, "reject", "critical"),
        (0.97, "emergency", "critical"),
        (0.87, "emergency", "critical"),
        (0.83, "reject", "critical"),
        (0.81, "reject", "critical"),
        (0.79, "critical", "critical"),
        (0.76, "critical", "critical"),
        (0.73, "warning", "warning"),
        (0.62, "warning", "warning"),
        (0.58, "normal", "ok"),
    ] {
        let memory = ballast.bring_to(&daemon, share);
        assert_eq!(memory.level, level, "at {share}: {memory:?}");
        let health = daemon.get("/health").expect(200);
        assert_eq!((&health.json()["status"], &health.json()["memory"]["level"]), (&json!(status), &json!(level)));
        assert_eq!(daemon.get("/health?live").status, 200, "it lives at {share}");
        let at = LEVELS.iter().position(|name| *name == level).expect("a level");
        assert_eq!(metric(&daemon, "kurultai_memory_level"), at as f64, "at {share}");
        incident = memory.incident.clone().or(incident);
        assert_eq!(memory.incident.is_some(), level != "normal", "{memory:?}");
    }
    let lines = crossings(&daemon);
    lines.iter().for_each(check_crossing);
    let to: Vec<&str> = lines.iter().filter_map(|line| line["to"].as_str()).collect();
    assert_eq!(to, ["warning", "critical", "reject", "emergency", "reject", "critical", "warning", "normal"]);
    assert_eq!(incidents(&lines), [incident.expect("there was one")]);
    for level in &LEVELS[1..] {
        for direction in ["up", "down"] {
            let series =
                format!("kurultai_memory_threshold_crossings_total{{level=\"{level}\",direction=\"{direction}\"}}");
            assert_eq!(metric(&daemon, &series), 1.0, "{series}");
        }
    }

    // At the edge: once over it, and once back.
    for _ in 0..4 {
        assert_eq!(ballast.bring_to(&daemon, 0.71).level, "warning");
        assert_eq!(ballast.bring_to(&daemon, 0.69).level, "warning");
    }
    assert_eq!(ballast.bring_to(&daemon, 0.5).level, "normal");
    let lines = crossings(&daemon);
    assert_eq!(lines.len(), 10, "{lines:#?}");
    assert_eq!(incidents(&lines).len(), 2, "a new one is another incident");

    // To observe is to do nothing.
    assert_eq!(daemon.task(&running)["state"], "running");
    ballast.end();
    let done = daemon.finished(&ballast.task);
    assert_eq!((&done["state"], &done["result"]["attempt"]), (&json!("completed"), &json!(1)), "{done}");
    for event in ["MEMORY_ACTION", "TASK_KILLED", "TASK_PREEMPTED", "TASK_REJECTED", "HEARTBEAT_SKIPPED"] {
        assert_eq!(daemon.logged(event), [json!(null); 0], "{event}");
    }
    daemon.stop();
}

#[test]
fn at_warning_heartbeats_are_skipped_idle_workers_end_and_the_others_are_asked_for_garbage() {
    let daemon = Daemon::start(&config(
        "",
        &format!(
            "[workers]\nmax = 5\n[[schedules]]\nname = \"beat\"\nagent = \"beat\"\nevery_s = 1\n{}{}",
            worker("beat", "scripts/agents/echo.py", ""),
            worker("node", "tests/agents/leak-buffers", "runtime = \"node\""),
        ),
    ));
    let mut ballast = Ballast::start(&daemon, "ballast");
    let node = daemon.accept("node", json!({ "mb": 1, "ms": 600_000 }));
    daemon.in_state(&node, &["running"]);
    daemon.run_task("echo", json!("warm"));
    soon("a beat has come", || metric(&daemon, "kurultai_tasks_completed_total{agent=\"beat\"}") >= 1.0);
    let workers = |field: &str, value: &Value| -> Vec<Value> {
        let object = daemon.get("/v1/workers").expect(200).json();
        let list = object["workers"].as_array().expect("a list");
        list.iter().filter(|worker| worker[field] == *value).cloned().collect()
    };
    assert_eq!(workers("agent", &json!("echo"))[0]["state"], "idle");
    assert_eq!(workers("agent", &json!("node"))[0].get("heapUsedBytes"), None, "it has not been asked yet");

    let memory = ballast.bring_to(&daemon, 0.75);
    assert_eq!(memory.level, "warning");
    let incident = json!(memory.incident);
    soon("the idle workers are gone", || workers("state", &json!("idle")).is_empty());
    soon("node has told of its heap", || {
        workers("agent", &json!("node"))[0]["heapUsedBytes"].as_u64().is_some_and(|bytes| bytes > MIB)
    });
    soon("the ballast has heard of it", || daemon.log_text().contains("ballast heard of garbage"));
    let skipped = until("a beat is skipped", || daemon.logged("HEARTBEAT_SKIPPED").pop());
    assert_eq!((&skipped["schedule"], &skipped["incident"]), (&json!("beat"), &incident), "{skipped}");
    soon("it is counted", || metric(&daemon, "kurultai_heartbeats_skipped_total") >= 1.0);
    let status = daemon.get("/v1/status").expect(200).json();
    assert!(status["schedules"][0]["skipped"].as_u64().is_some_and(|skipped| skipped >= 1), "{status}");

    // One that was submitted waits, which is said once.
    let beat = daemon.accept_with(json!({ "agent": "echo", "payload": 1, "priority": "heartbeat" }));
    let beats = metric(&daemon, "kurultai_tasks_completed_total{agent=\"beat\"}");
    let skips = || daemon.logged("HEARTBEAT_SKIPPED");
    let before = skips().len();
    soon("two more beats are skipped", || {
        skips().iter().filter(|line| line["schedule"] == "beat").count() >= 2 && skips().len() >= before + 2
    });
    assert_eq!(skips().iter().filter(|line| line["task"] == *beat).count(), 1);
    assert_eq!(daemon.task(&beat)["state"], "queued");
    assert_eq!(metric(&daemon, "kurultai_tasks_completed_total{agent=\"beat\"}"), beats);
    for action in ["gc", "retire_idle"] {
        let series = format!("kurultai_memory_recovery_actions_total{{action=\"{action}\"}}");
        assert!(metric(&daemon, &series) >= 1.0, "{series}");
    }
    let lines = daemon.logged("MEMORY_ACTION");
    assert_eq!(incidents(&lines), [incident.as_str().expect("it is one")]);
    // What works goes on, and new work is taken.
    assert_eq!(daemon.run_task("echo", json!("now"))["state"], "completed");
    assert_eq!(daemon.task(&node)["state"], "running");

    ballast.end();
    assert_eq!(daemon.finished(&beat)["state"], "completed");
    soon("beats come again", || metric(&daemon, "kurultai_tasks_completed_total{agent=\"beat\"}") > beats);
    daemon.stop();
}

/// A sleeper that holds memory and is past its second step.
fn sleeper(daemon: &Daemon, mib: u64, more: Value) -> String {
    let mut envelope = json!({ "agent": "sleeper", "payload": { "ms": 4000, "steps": 10, "mb": mib } });
    for (key, value) in more.as_object().expect("fields of an envelope") {
        envelope[key] = value.clone();
    }
    let id = daemon.accept_with(envelope);
    soon("it is at work", || daemon.task(&id)["progress"]["percent"].as_f64().is_some_and(|percent| percent >= 20.0));
    id
}

#[test]
fn at_critical_the_lowest_priority_checkpoints_is_parked_and_goes_on_where_it_was() {
    let daemon = Daemon::start(&config("settle_ms = 60000", "[workers]\nmax = 4\n"));
    let mut ballast = Ballast::start(&daemon, "ballast");
    // What may not be preempted is the largest and the lowest.
    let fixed = Ballast::start_with(&daemon, "fixed", 80 * MIB, json!({ "priority": "low", "preemptible": false }));
    let normal = Ballast::start_with(&daemon, "normal", 20 * MIB, json!({}));
    let low = sleeper(&daemon, 30, json!({ "priority": "low" }));
    ballast.push_to(&daemon, 0.87);
    let parked = daemon.in_state(&low, &["preempted"]);
    assert_eq!((&parked["preemptions"], &parked["attempt"]), (&json!(1), &json!(1)), "{parked}");
    let memory = ballast.bring_to(&daemon, 0.80);
    assert_eq!(memory.level, "critical");
    // Only critical tasks start at this level.
    let held = daemon.accept("sleeper", json!({ "ms": 0 }));
    let why = daemon.get(&format!("/v1/tasks/{held}/why")).expect(200).json();
    assert_eq!(why["waitsFor"]["reason"], "memory_level", "{why}");
    let urgent = daemon.run_with(json!({ "agent": "echo", "payload": 1, "priority": "critical" }));
    assert_eq!(urgent["state"], "completed");
    assert_eq!((&daemon.task(&held)["state"], &daemon.task(&low)["state"]), (&json!("queued"), &json!("preempted")));
    for task in [&fixed.task, &normal.task, &ballast.task] {
        assert_eq!(daemon.task(task)["state"], "running", "{task}");
    }

    ballast.end();
    let done = daemon.finished(&low);
    assert_eq!((&done["state"], &done["attempt"]), (&json!("completed"), &json!(1)), "{done}");
    assert!(done["result"]["resumedAt"].as_u64().is_some_and(|step| step >= 2), "{done}");
    assert_eq!((&done["result"]["steps"], &done["preemptions"]), (&json!(10), &json!(1)), "{done}");
    assert_eq!(daemon.finished(&held)["state"], "completed");
    for task in [&fixed, &normal] {
        task.end();
        let done = daemon.finished(&task.task);
        assert_eq!((&done["state"], &done["result"]["attempt"]), (&json!("completed"), &json!(1)), "{done}");
    }
    let preempted = daemon.logged("TASK_PREEMPTED");
    assert_eq!(preempted.len(), 1, "{preempted:?}");
    assert_eq!((&preempted[0]["task"], &preempted[0]["checkpoint"]), (&json!(low), &json!(true)));
    assert_eq!(json!(memory.incident), preempted[0]["incident"]);
    assert_eq!(metric(&daemon, "kurultai_tasks_preempted_total"), 1.0);
    assert_eq!(metric(&daemon, "kurultai_memory_recovery_actions_total{action=\"preempt\"}"), 1.0);
    assert_eq!(daemon.logged("TASK_KILLED").len(), 0);
    let why = daemon.get(&format!("/v1/tasks/{low}/why")).expect(200).text();
    assert!(why.contains("TASK_PREEMPTED") && why.contains("asked for a checkpoint"), "{why}");
    daemon.stop();
}

#[test]
fn once_memory_has_had_time_to_fall_the_next_one_goes_though_nothing_has_moved() {
    let daemon = Daemon::start(&config("settle_ms = 300", "[workers]\nmax = 4\n"));
    let mut ballast = Ballast::start(&daemon, "ballast");
    let low = Ballast::start_with(&daemon, "low", MIB, json!({ "priority": "low" }));
    let normal = Ballast::start_with(&daemon, "normal", MIB, json!({}));
    ballast.push_to(&daemon, 0.89);
    for task in [&low, &normal] {
        daemon.in_state(&task.task, &["preempted"]);
    }
    let samples = || metric(&daemon, "kurultai_memory_samples_total");
    let before = samples();
    soon("readings go on though nothing moves", || samples() >= before + 3.0);
    assert_eq!(daemon.task(&ballast.task)["state"], "running");
    let preempted: Vec<Value> = daemon.logged("TASK_PREEMPTED").iter().map(|line| line["task"].clone()).collect();
    assert_eq!(preempted, [json!(low.task), json!(normal.task)]);
    for task in [&ballast, &low, &normal] {
        task.end();
        assert_eq!(daemon.finished(&task.task)["state"], "completed");
    }
    daemon.stop();
}

#[test]
fn a_task_that_gives_no_checkpoint_in_time_is_killed_and_goes_by_its_retries() {
    for (retries, state, attempt) in [(0, "failed", 1), (1, "completed", 2)] {
        let daemon = Daemon::start(&config("", "[workers]\nmax = 3\ncheckpoint_timeout_ms = 200\n"));
        let mut ballast = Ballast::start(&daemon, "ballast");
        let more = json!({ "priority": "low", "deaf": true, "maxRetries": retries });
        let deaf = Ballast::start_with(&daemon, "deaf", 60 * MIB, more);
        ballast.push_to(&daemon, 0.87);
        let killed = until("it is killed", || daemon.logged("TASK_KILLED").pop());
        assert_eq!((&killed["task"], &killed["code"]), (&json!(deaf.task), &json!("memory_emergency")), "{killed}");
        assert!(killed["incident"].is_string(), "{killed}");
        soon("its memory is back", || Memory::of(&daemon).is_some_and(|memory| memory.ratio() < 0.75));
        // Beside that ballast it would be stopped again.
        ballast.hold(0);
        deaf.end();
        let done = daemon.finished(&deaf.task);
        assert_eq!((&done["state"], &done["attempt"]), (&json!(state), &json!(attempt)), "{retries} retries: {done}");
        if retries == 0 {
            assert_eq!(done["error"]["code"], "memory_emergency", "{done}");
        }
        assert_eq!(daemon.task(&ballast.task)["state"], "running");
        assert_eq!(metric(&daemon, "kurultai_tasks_retried_total"), f64::from(retries));
        assert_eq!(metric(&daemon, "kurultai_tasks_killed_total"), 1.0);
        daemon.stop();
    }
}

#[test]
fn at_reject_submissions_are_refused_with_a_time_to_come_back_and_taken_again_afterwards() {
    let daemon = Daemon::start(&config("", ""));
    let mut ballast = Ballast::start(&daemon, "ballast");
    let memory = ballast.bring_to(&daemon, 0.92);
    assert_eq!(memory.level, "reject");
    for (priority, n) in [("critical", 1.0), ("heartbeat", 2.0)] {
        let refused = daemon.submit(&json!({ "agent": "sleeper", "payload": {}, "priority": priority })).expect(503);
        assert_eq!(refused.error_code(), "memory_pressure");
        assert_eq!(metric(&daemon, "kurultai_tasks_rejected_total{reason=\"memory_pressure\"}"), n);
    }
    assert_eq!(daemon.post("/v1/agents/sleeper/tasks", "x").expect(503).error_code(), "memory_pressure");
    let health = daemon.get("/health").expect(503);
    assert_eq!(health.json()["status"], "overloaded");
    assert_eq!(health.header("Retry-After"), Some(health.json()["retryAfterS"].to_string().as_str()), "{health:?}");
    let lines = daemon.logged("TASK_REJECTED");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(incidents(&lines), [memory.incident.expect("there is one")]);
    assert_eq!(daemon.task(&ballast.task)["state"], "running", "what runs goes on");

    ballast.end();
    soon("it takes work again", || daemon.get("/health").status == 200);
    assert_eq!(daemon.run_task("sleeper", json!({ "ms": 0 }))["state"], "completed");
    daemon.stop();
}

#[test]
fn at_emergency_the_lowest_priority_is_killed_and_nothing_else() {
    let daemon = Daemon::start(&config("", "[workers]\nmax = 4\n"));
    let mut ballast = Ballast::start(&daemon, "ballast");
    let keep = json!({ "preemptible": false });
    let normal = Ballast::start_with(&daemon, "normal", 30 * MIB, keep.clone());
    let small = Ballast::start_with(&daemon, "small", 5 * MIB, json!({ "preemptible": false, "priority": "low" }));
    let large = Ballast::start_with(&daemon, "large", 90 * MIB, json!({ "preemptible": false, "priority": "low" }));
    ballast.push_to(&daemon, 0.97);
    let dead = daemon.finished(&large.task);
    assert_eq!((&dead["state"], &dead["error"]["code"]), (&json!("failed"), &json!("memory_emergency")), "{dead}");
    soon("/health is 200 again", || daemon.get("/health").status == 200);
    assert_eq!(daemon.run_task("sleeper", json!({ "ms": 0 }))["state"], "completed", "work is taken again");
    for task in [&ballast, &small, &normal] {
        task.end();
        let done = daemon.finished(&task.task);
        assert_eq!((&done["state"], &done["result"]["attempt"]), (&json!("completed"), &json!(1)), "{done}");
    }
    let killed = daemon.logged("TASK_KILLED");
    assert_eq!(killed.len(), 1, "{killed:?}");
    assert_eq!(incidents(&killed), incidents(&crossings(&daemon)), "one incident");
    crossings(&daemon).iter().for_each(check_crossing);
    assert_eq!(metric(&daemon, "kurultai_memory_recovery_actions_total{action=\"kill\"}"), 1.0);
    assert_eq!(metric(&daemon, "kurultai_tasks_failed_total{agent=\"large\",reason=\"memory_emergency\"}"), 1.0);
    let why = daemon.get(&format!("/v1/tasks/{}/why", large.task)).expect(200).text();
    assert!(why.contains("lowest priority") && why.contains("MiB"), "{why}");
    soon("it is ok", || daemon.get("/health").json()["status"] == "ok");
    daemon.stop();
}

#[test]
fn soft_refuses_and_skips_but_leaves_alone_what_runs() {
    let daemon = Daemon::start(&config("mode = \"soft\"", "[workers]\nmax = 3\n"));
    let mut ballast = Ballast::start(&daemon, "ballast");
    let low = Ballast::start_with(&daemon, "low", 30 * MIB, json!({ "priority": "low" }));
    let memory = ballast.bring_to(&daemon, 0.97);
    assert_eq!(memory.level, "emergency");
    let refused = daemon.submit(&json!({ "agent": "sleeper", "payload": {} })).expect(503);
    assert_eq!(refused.error_code(), "memory_pressure");
    // Each of these is a reading, and after each the ladder would have acted.
    for share in [0.97, 0.99, 0.97, 0.99] {
        assert_eq!(ballast.bring_to(&daemon, share).level, "emergency");
    }
    for event in ["TASK_KILLED", "TASK_PREEMPTED"] {
        assert_eq!(daemon.logged(event), [json!(null); 0], "{event}");
    }
    for task in [&ballast, &low] {
        task.end();
        let done = daemon.finished(&task.task);
        assert_eq!((&done["state"], &done["preemptions"]), (&json!("completed"), &json!(0)), "{done}");
        assert_eq!(done["result"]["attempt"], 1, "{done}");
    }
    daemon.stop();
}
