//! Worker processes: how they end, what is left of them, and how many there may be.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Daemon, Request, agent, bad_agent, is_alive, never_until, repository, run, soon, until, worker};
use serde_json::{Value, json};

/// What a misbehaving agent's task has to end with.
struct Bad {
    agent: &'static str,
    mode: &'static str,
    timeout_s: u64,
    /// `None`: it completes.
    code: Option<&'static str>,
    exit_status: Option<i64>,
    signal: Option<i64>,
    /// Has to be in the error's message, or in the result of one that completes.
    says: &'static str,
    stderr: &'static str,
}

/// Nothing that ends a task by itself takes so long, and it must not be taken for a timeout: a worker that closes its
/// standard output is given a second to exit, from when it got that far.
const LONG_S: u64 = 30;

const fn bad(agent: &'static str, code: Option<&'static str>, says: &'static str) -> Bad {
    Bad { agent, mode: "persistent", timeout_s: LONG_S, code, exit_status: None, signal: None, says, stderr: "" }
}

fn table() -> Vec<Bad> {
    let protocol = Some("protocol_error");
    let killed = |row: Bad| Bad { signal: Some(9), ..row };
    vec![
        killed(bad("bad-seq", protocol, "CHUNK with seq 2 where 1 was due")),
        killed(bad("big-checkpoint", protocol, "checkpoint")),
        killed(bad("close-stdout", protocol, "closed its standard output")),
        Bad { signal: Some(11), ..bad("die-by-signal", Some("worker_crashed"), "signal 11") },
        killed(bad("endless-line", protocol, "a line over 1048576 bytes")),
        Bad { exit_status: Some(1), ..bad("exit-after-ready", Some("worker_crashed"), "status 1") },
        Bad { exit_status: Some(0), ..bad("exit-clean-midtask", Some("worker_crashed"), "status 0") },
        Bad {
            mode: "oneshot",
            exit_status: Some(3),
            stderr: "exit3: first line\nexit3: the disk is on fire\n",
            ..bad("exit3", Some("agent_failed"), "status 3")
        },
        Bad { mode: "oneshot", ..bad("flood-stderr", None, "done") },
        Bad { mode: "oneshot", signal: Some(9), ..bad("flood-stdout", Some("agent_failed"), "retention_mb") },
        killed(bad("garbage", protocol, "Traceback (most recent call last)")),
        bad("grandchildren", None, "pids"),
        Bad {
            mode: "oneshot",
            timeout_s: 3,
            signal: Some(9),
            stderr: "ignore-term: ignoring\n",
            ..bad("ignore-term", Some("timeout"), "timeout")
        },
        killed(bad("invalid-utf8", protocol, "UTF-8")),
        killed(bad("not-object", protocol, "a line that is no JSON object")),
        killed(Bad { timeout_s: 1, ..bad("silent-cancel", Some("timeout"), "timeout") }),
        bad("silent-spawn", Some("spawn_failed"), "no READY"),
        bad("slow-ready", None, "ready"),
        bad("unknown-type", None, "fine"),
        killed(bad("wrong-task", protocol, "t-999999")),
    ]
}

fn check(row: &Bad, task: &Value) {
    let name = row.agent;
    match row.code {
        None => {
            assert_eq!(task["state"], "completed", "{name}: {task}");
            let shown = task.get("result").map_or("done".to_owned(), Value::to_string);
            assert!(shown.contains(row.says), "{name}: {task}");
        }
        Some(code) => {
            let error = &task["error"];
            assert_eq!((&task["state"], &error["code"]), (&json!("failed"), &json!(code)), "{name}: {task}");
            assert!(error["message"].as_str().is_some_and(|text| text.contains(row.says)), "{name}: {task}");
            let (status, signal) = (error.get("exitStatus"), error.get("signal"));
            assert_eq!(status.and_then(Value::as_i64), row.exit_status, "{name}: {task}");
            assert_eq!(signal.and_then(Value::as_i64), row.signal, "{name}: {task}");
            let tail = error.get("stderrTail").and_then(Value::as_str).unwrap_or("");
            assert_eq!(tail, row.stderr, "{name}: {task}");
        }
    }
}

#[test]
fn every_misbehaving_agent_costs_its_own_task_and_nothing_else() {
    let rows = table();
    let there: Vec<String> = std::fs::read_dir(repository().join("tests/agents/bad"))
        .expect("the agents are there")
        .map(|entry| entry.expect("it can be read").file_name().into_string().expect("a name"))
        .filter(|name| !name.starts_with('_'))
        .collect();
    for name in &there {
        assert!(rows.iter().any(|row| row.agent == *name), "{name} has no row in the table");
    }
    assert_eq!(rows.len(), there.len());

    let agents: String = rows.iter().map(|row| bad_agent(row.agent, row.mode)).collect();
    let daemon = Daemon::start(&format!(
        "[workers]\nmax = 2\ncancel_grace_ms = 200\nspawn_timeout_s = 6\nidle_timeout_s = 1\n\
         [spool]\nretention_mb = 16\n{agents}{}",
        worker("echo", "scripts/agents/echo.py", "")
    ));
    daemon.run_task("echo", json!("warm"));
    soon("the first worker is gone", || daemon.workers().is_empty());
    let before = daemon.footprint();
    let mut grandchildren = Vec::new();
    for row in &rows {
        let envelope = json!({ "agent": row.agent, "payload": { "ms": 600_000 }, "timeoutS": row.timeout_s });
        let task = daemon.run_with(envelope);
        check(row, &task);
        if row.agent == "grandchildren" {
            grandchildren = pids_in(&task["result"]["pids"]);
        }
        let good = daemon.run_task("echo", json!(row.agent));
        assert_eq!((&good["state"], &good["result"]), (&json!("completed"), &json!(row.agent)), "after {}", row.agent);
    }
    daemon.has_no_workers();
    assert_eq!(grandchildren.len(), 3);
    for pid in grandchildren {
        assert!(!is_alive(pid), "grandchild {pid} outlived its worker");
    }
    soon("descriptors and threads are as before", || {
        let after = daemon.footprint();
        (after.fds, after.threads) == (before.fds, before.threads)
    });
    let grown = daemon.footprint().rss_bytes.saturating_sub(before.rss_bytes);
    // 20 finished tasks, and what the allocator keeps: far less than the 50 and 64 MiB that were thrown at it.
    assert!(grown < 2 << 20, "RSS grew by {grown} bytes");
    daemon.stop();
}

fn pids_in(list: &Value) -> Vec<u32> {
    list.as_array().expect("a list").iter().filter_map(|pid| u32::try_from(pid.as_u64()?).ok()).collect()
}

#[test]
fn grandchildren_of_a_crashed_worker_are_gone_with_it() {
    let daemon = Daemon::start(&bad_agent("grandchildren", "persistent"));
    let pids = daemon.path().join("pids");
    let failed = daemon.run_task("grandchildren", json!({ "pidFile": pids, "crash": true }));
    // A KILL that nobody here sent is taken for the kernel's.
    assert_eq!((&failed["error"]["code"], &failed["error"]["signal"]), (&json!("worker_oom"), &json!(9)));
    let written: Value = serde_json::from_slice(&std::fs::read(&pids).expect("it was written")).expect("JSON");
    let pids = pids_in(&written["pids"]);
    assert_eq!(pids.len(), 3);
    for pid in pids {
        assert!(!is_alive(pid), "grandchild {pid} outlived its worker");
    }
    daemon.has_no_workers();
    daemon.stop();
}

#[test]
fn nothing_of_a_worker_survives_a_daemon_that_is_killed() {
    let daemon = Daemon::start(
        &(bad_agent("grandchildren", "persistent")
            + &bad_agent("ignore-term", "oneshot")
            + "[agents.nested]\ncommand = [\"/bin/sh\", \"-c\", \"setsid sleep 1000 & sleep 1000\"]\n"),
    );
    let pids = daemon.path().join("pids");
    let done = daemon.run_task("grandchildren", json!({ "pidFile": pids }));
    assert_eq!(done["state"], "completed");
    let mut watched = pids_in(&done["result"]["pids"]);
    let running = daemon.accept("nested", json!({}));
    daemon.in_state(&running, &["running"]);
    soon("the sleepers sleep", || daemon.workers().len() >= watched.len() + 3);
    watched.extend(daemon.workers());
    assert!(watched.iter().all(|pid| is_alive(*pid)));
    daemon.kill();
    for pid in watched {
        soon(&format!("process {pid} ends with the daemon"), || !is_alive(pid));
    }
}

#[test]
fn there_are_never_more_processes_than_workers_max() {
    let daemon = Daemon::start(&format!(
        "[workers]\nmax = 3\n[queue]\nmax_depth = 100\npriority_limits = {{ normal = 100 }}\n\
         [agents.once]\ncommand = [\"sleep\", \"0.02\"]\n{}{}",
        worker("sleeper", "tests/agents/sleeper", ""),
        worker("echo", "scripts/agents/echo.py", "")
    ));
    let ids: Vec<String> = (0..60)
        .map(|n| match n % 3 {
            0 => daemon.accept("sleeper", json!({ "ms": 5, "steps": 1 })),
            1 => daemon.accept("echo", json!(n)),
            _ => daemon.accept("once", json!(n)),
        })
        .collect();
    let too_many = || Some(daemon.workers()).filter(|workers| workers.len() > 3);
    let all_done =
        || daemon.get("/v1/tasks?state=completed").json()["tasks"].as_array().map(Vec::len) == Some(ids.len());
    never_until("more processes than workers.max", too_many, all_done);
    let workers = daemon.get("/v1/workers").expect(200).json();
    assert_eq!(workers["max"], 3);
    assert!(workers["workers"].as_array().is_some_and(|list| list.len() <= 3), "{workers}");
    daemon.stop();
}

#[test]
fn a_warm_worker_is_used_again_until_it_has_been_idle_for_too_long() {
    let daemon = Daemon::start(&format!(
        "[workers]\nmax = 2\nidle_timeout_s = 5\n{}",
        worker("fields", "tests/agents/task-fields", "")
    ));
    let first = daemon.run_task("fields", json!(1))["result"]["pid"].clone();
    for _ in 0..5 {
        assert_eq!(daemon.run_task("fields", json!(1))["result"]["pid"], first);
    }
    let workers = daemon.get("/v1/workers").expect(200).json();
    let only = &workers["workers"][0];
    assert_eq!((&only["state"], &only["pid"], &only["tasksDone"]), (&json!("idle"), &first, &json!(6)));
    assert_eq!((&workers["idle"], &workers["active"]), (&json!(1), &json!(0)), "{workers}");
    daemon.has_no_workers();
    let line = until("its end is logged", || daemon.logged("WORKER_EXITED").pop());
    assert_eq!((&line["reason"], &line["status"]), (&json!("finished"), &json!(0)), "{line}");
    assert_ne!(daemon.run_task("fields", json!(1))["result"]["pid"], first);
    daemon.stop();
}

#[test]
fn without_a_pool_and_after_recycling_every_task_has_its_own_process() {
    for features in ["[features]\nworker_pool = false\n", "[workers]\nrecycle_after_tasks = 1\n"] {
        let daemon = Daemon::start(&(features.to_owned() + &worker("fields", "tests/agents/task-fields", "")));
        let first = daemon.run_task("fields", json!(1))["result"]["pid"].clone();
        assert_ne!(daemon.run_task("fields", json!(1))["result"]["pid"], first, "{features}");
        daemon.has_no_workers();
        daemon.stop();
    }
}

#[test]
fn an_agent_that_keeps_failing_is_given_up_for_a_while() {
    let daemon = Daemon::start(
        &("[workers]\nmax_restarts_per_hour = 2\n".to_owned()
            + &bad_agent("die-by-signal", "persistent")
            + "[agents.wc]\ncommand = [\"wc\"]\n"),
    );
    for failure in 0..3 {
        let failed = daemon.run_task("die-by-signal", json!(1));
        assert_eq!(failed["error"]["code"], "worker_crashed", "failure {failure}");
    }
    let refused = daemon.submit(&json!({ "agent": "die-by-signal" })).expect(503);
    assert_eq!(refused.error_code(), "agent_unavailable");
    let agents = daemon.get("/v1/agents").expect(200).json();
    let given_up = agents["agents"].as_array().expect("a list").iter().find(|agent| agent["name"] == "die-by-signal");
    let given_up = given_up.expect("it is configured");
    assert_eq!((&given_up["available"], &given_up["failuresLastHour"]), (&json!(false), &json!(3)), "{agents}");
    assert!(given_up["retryAfterS"].as_u64().is_some_and(|seconds| seconds > 3000), "{agents}");
    assert_eq!(daemon.logged("AGENT_UNAVAILABLE").len(), 1);
    assert_eq!(daemon.run_task("wc", json!(1))["state"], "completed", "the others go on");
    daemon.stop();
}

#[test]
fn a_program_that_cannot_be_started_fails_its_task_and_says_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").expect("it can be written");
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let no_interpreter = directory.path().join("no-interpreter");
    std::fs::write(&no_interpreter, "#!/no/such/interpreter\n").expect("it can be written");
    std::fs::set_permissions(&no_interpreter, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let rows = [
        ("missing", "\"/no/such/program\"".to_owned(), "", "interpreter"),
        ("not-in-path", "\"no-such-program-here\"".to_owned(), "", "not found in PATH"),
        ("plain", format!("{plain:?}"), "", "chmod +x"),
        ("no-interpreter", format!("{no_interpreter:?}"), "", "interpreter"),
        ("directory", "\"true\"".to_owned(), "cwd = \"/no/such/directory\"", "/no/such/directory"),
        ("user", "\"true\"".to_owned(), "user = \"nobody-by-this-name\"", "nobody-by-this-name"),
    ];
    for mode in ["oneshot", "persistent"] {
        let agents: String = rows
            .iter()
            .map(|(name, command, more, _)| {
                format!("[agents.{name}]\ncommand = [{command}]\nmode = \"{mode}\"\n{more}\n")
            })
            .collect();
        let daemon = Daemon::start(&agents);
        let before = daemon.footprint();
        for (name, _, _, says) in &rows {
            let failed = daemon.run_task(name, json!(1));
            let error = &failed["error"];
            assert_eq!((&failed["state"], &error["code"]), (&json!("failed"), &json!("spawn_failed")), "{mode} {name}");
            assert!(error["message"].as_str().is_some_and(|text| text.contains(says)), "{mode} {name}: {failed}");
        }
        daemon.has_no_workers();
        soon("descriptors are as before", || daemon.footprint().fds == before.fds);
        daemon.stop();
    }
}

#[test]
fn a_worker_gets_the_documented_environment_and_three_descriptors_and_a_session_of_its_own() {
    let config = agent("dump", "tests/agents/env-dump", "env = { COLOUR = \"blue\" }\nenv_pass = [\"PATH\", \"HUE\"]")
        + &worker("fields", "tests/agents/task-fields", "");
    let daemon = common::Home::new(&config).start_with(|command| command.env("HUE", "12").env("SECRET", "x"));
    let big = vec![b'x'; 100_000];
    let request = Request::post("/v1/agents/dump/tasks?wait=30&priority=low", big).with("X-Request-Id", "r-x");
    let dump = daemon.ask(&request).expect(200).json();
    assert_eq!(dump["payloadBytes"], 100_000, "standard input is the payload's file");
    let mut environment = dump["env"].as_object().expect("an object").clone();
    let path = environment.remove("PATH").expect("PATH is passed by default");
    assert!(path.as_str().is_some_and(|path| path.starts_with("/usr/local/bin:")), "{path}");
    // Python sets this one itself in the C locale (PEP 538).
    environment.remove("LC_CTYPE");
    assert_eq!(
        Value::Object(environment),
        json!({
            "HUE": "12", "COLOUR": "blue",
            "KURULTAI_WORKER_ID": "w-1", "WORKER_ID": "w-1", "KURULTAI_AGENT": "dump", "KURULTAI_TASK_ID": "t-1",
            "KURULTAI_REQUEST_ID": "r-x", "KURULTAI_ATTEMPT": "1", "KURULTAI_PRIORITY": "low",
        })
    );
    let descriptors: Vec<&str> = dump["fds"].as_object().expect("an object").keys().map(String::as_str).collect();
    let mut sorted = descriptors.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["0", "1", "2"], "{dump}");
    assert_eq!((&dump["sid"], &dump["pgid"]), (&dump["pid"], &dump["pid"]), "{dump}");
    assert_eq!((&dump["cwd"], &dump["oomScoreAdj"]), (&json!("/"), &json!(500)), "{dump}");
    let signals = |name: &str| u64::from_str_radix(dump["status"][name].as_str().unwrap_or("?"), 16).expect("a set");
    assert_eq!(signals("SigBlk"), 0, "{dump}");
    // PIPE and XFSZ are ignored by Python itself; 32 and 33 are libc's own (nptl(7)).
    let not_ours = (1 << 12) | (1 << 24) | (1 << 31) | (1 << 32);
    assert_eq!(signals("SigIgn") & !not_ours, 0, "{dump}");

    let fields = daemon.run_task("fields", json!(1))["result"].clone();
    let names: Vec<&str> = fields["env"].as_object().expect("an object").keys().map(String::as_str).collect();
    let ours: Vec<&&str> = names.iter().filter(|name| name.contains("KURULTAI") || **name == "WORKER_ID").collect();
    assert_eq!(ours.len(), 3, "a persistent worker outlives its tasks: {names:?}");
    daemon.stop();
}

#[test]
fn a_node_agent_is_told_how_large_its_heap_may_be() {
    let script = "process.stdout.write(JSON.stringify({argv: process.execArgv, env: process.env.NODE_OPTIONS}))";
    let daemon = Daemon::start(&format!(
        "[agents.direct]\ncommand = [\"node\", \"-e\", {script:?}]\nruntime = \"node\"\nhard_limit_mb = 321\n\
         [agents.wrapped]\ncommand = [\"/bin/sh\", \"-c\", {:?}]\nruntime = \"node\"\nhard_limit_mb = 321\n\
         env = {{ NODE_OPTIONS = \"--no-warnings\" }}\n{}",
        format!("exec node -e '{script}'"),
        worker("render", "scripts/agents/render", "runtime = \"node\""),
    ));
    let ask = |agent: &str| daemon.post(&format!("/v1/agents/{agent}/tasks?wait=30"), "# A title").expect(200);
    let direct = ask("direct").json();
    assert!(
        direct["argv"].as_array().is_some_and(|argv| argv.contains(&json!("--max-old-space-size=321"))),
        "{direct}"
    );
    assert_eq!(ask("wrapped").json()["env"], "--max-old-space-size=321 --no-warnings");
    assert!(ask("render").text().contains("<h1 id=\"a-title\">A title</h1>"));
    daemon.stop();
}

/// The soft limit of open files of a daemon that runs; the hard one stays, so that it can be raised again.
fn limit_descriptors(daemon: &Daemon, soft: u64) {
    run("prlimit", ["--pid", &daemon.pid().to_string(), &format!("--nofile={soft}:")], b"").expect(0);
}

#[test]
fn workers_go_on_under_a_limit_of_descriptors_that_is_lower_than_what_is_open() {
    let daemon = Daemon::start(&format!("[workers]\nmax = 1\n{}", worker("sleeper", "tests/agents/sleeper", "")));
    let nothing = json!({ "ms": 1, "steps": 1 });
    daemon.run_task("sleeper", nothing.clone());
    let before = daemon.footprint();
    let [first, second] = [(); 2].map(|()| daemon.accept("sleeper", json!({ "ms": 600_000 })));
    let mut client = daemon.connect();
    // With an answer it has been accepted, and has its descriptor before there are none.
    client.ask(&Request::get("/health?live")).expect(200);
    let mut cancel_once = |id: &str, state: &str| {
        soon(&format!("{id} is {state}"), || {
            client.ask(&Request::get(format!("/v1/tasks/{id}"))).expect(200).json()["state"] == state
        });
        client.ask(&Request::new("DELETE", format!("/v1/tasks/{id}")))
    };
    for (soft, id) in [(1, &first), (0, &second)] {
        limit_descriptors(&daemon, soft);
        cancel_once(id, "running").expect(202);
        cancel_once(id, "cancelled").expect(409);
    }
    let said = daemon.logged_text("the limit of open files is 1,");
    assert_eq!(said.len(), 1, "{said:?}");
    limit_descriptors(&daemon, 1024);
    drop(client);
    assert_eq!(daemon.run_task("sleeper", nothing)["state"], "completed");
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    daemon.stop();
}
