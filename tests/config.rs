//! The command line, the configuration's ways in, reload, signals and what a daemon says when it cannot start.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Daemon, Home, Ran, Request, run_command, signal, soon, until};
use serde_json::{Value, json};

const WC: &str = "[agents.wc]\ncommand = [\"wc\", \"-c\"]\n";

/// Runs `kurultaid` to its end.
fn kurultaid(home: &Home, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    run_command(home.kurultaid().args(arguments).envs(environment.iter().copied()), b"")
}

/// A home whose file is this and nothing else.
fn verbatim(text: &str) -> Home {
    let home = Home::new("");
    std::fs::write(home.config(), text).expect("the directory can be written");
    home
}

#[test]
fn a_check_prints_every_problem_with_its_place_and_starts_nothing() {
    let home = verbatim(
        "[memory]\nwarning = 0.9\ncritical = 0.8\n\n[queue]\nmax_dept = 3\n[workers]\nmax = \"two\"\n\
         soft_limit_mb = 600\n[agents.wc]\ncommand = []\nbreaker = \"none\"\n[gateway]\nlisten = \"0.0.0.0:7700\"\n",
    );
    let checked = kurultaid(&home, &["--check"], &[("KURULTAI_SPOOL_RETENTION_S", "soon")]).expect(78);
    let file = home.config().display().to_string();
    let rows = [
        (format!("{file}:6: queue.max_dept: "), "max_depth"),
        (format!("{file}:8: workers.max: "), ""),
        (format!("{file}:11: agents.wc.command: "), ""),
        (format!("{file}:12: agents.wc.breaker: "), "[breakers.none]"),
        (format!("{file}:3: memory.critical: "), "order them"),
        (format!("{file}:9: workers.soft_limit_mb: "), "lower the soft limit"),
        (format!("{file}:14: gateway.listen: "), "set gateway.token_file"),
        ("env KURULTAI_SPOOL_RETENTION_S: spool.retention_s: ".to_owned(), ""),
    ];
    for (place, fix) in &rows {
        let line = checked.stderr.lines().find(|line| line.starts_with(place));
        let line = line.unwrap_or_else(|| panic!("nothing about {place:?} in\n{}", checked.stderr));
        assert!(line.contains(fix) && line.contains("; "), "{line}");
    }
    assert_eq!(checked.stderr.lines().count(), rows.len(), "{}", checked.stderr);
    assert_eq!(checked.stdout, b"");
    assert_eq!(kurultaid(&home, &[], &[]).expect(78).stderr.lines().count(), rows.len() - 1, "a start says the same");
    assert!(!home.path().join("state").exists());

    let sound = Home::new(WC);
    let said = kurultaid(&sound, &["--check"], &[]).expect(0).text();
    assert_eq!(said, format!("{}: the configuration is valid\n", sound.config().display()));
    assert!(!sound.path().join("state").exists());
}

#[test]
fn the_check_names_every_user_group_and_program_this_host_has_not() {
    let home = verbatim("");
    let flat = home.path().join("flat").display().to_string();
    std::fs::write(&flat, "no program").expect("it can be written");
    let config = format!(
        "[daemon]\nuser = \"no-such-daemon\"\n[gateway]\nsocket_group = \"no-such-group\"\n\
         [agents.a]\ncommand = [\"no-such-program\"]\nuser = \"no-such-user\"\n\
         [agents.b]\ncommand = [\"/no/such/program\"]\nuser = \"root\"\n[agents.c]\ncommand = [{flat:?}]\n\
         [agents.e]\ncommand = [\"sh\"]\nenv = {{ PATH = \"/no/bin\" }}\n\
         [agents.f]\ncommand = [\"sh\"]\n",
    );
    std::fs::write(home.config(), &config).expect("it can be written");
    let checked = kurultaid(&home, &["--check"], &[("KURULTAI_DAEMON_USER", "no-such-variable")]).expect(78);
    let file = home.config().display().to_string();
    let program = "there is no program \"no-such-program\" in ";
    for says in [
        &format!("{file}:6: agents.a.command: {program}"),
        &format!("{file}:9: agents.b.command: there is no program \"/no/such/program\"; "),
        &format!("{file}:12: agents.c.command: {flat:?} is no file that can be executed; "),
        &format!("{file}:14: agents.e.command: there is no program \"sh\" in /no/bin; "),
        &format!("{file}:4: gateway.socket_group: there is no group \"no-such-group\"; "),
        &format!("{file}:7: agents.a.user: there is no user \"no-such-user\"; "),
        "env KURULTAI_DAEMON_USER: daemon.user: there is no user \"no-such-variable\"; ",
    ] {
        assert_eq!(
            checked.stderr.lines().filter(|line| line.starts_with(says)).count(),
            1,
            "{says}\n{}",
            checked.stderr
        );
    }
    assert_eq!(checked.stderr.lines().count(), 7, "{}", checked.stderr);
    assert_eq!(checked.stdout, b"");

    let warned = "[agents.a]\ncommand = [\"no-such-program\"]\n";
    std::fs::write(home.config(), warned).expect("it can be written");
    let checked = kurultaid(&home, &["--check"], &[]).expect(0);
    assert!(checked.stderr.contains(program) && checked.text().ends_with("is valid\n"), "{}", checked.stderr);
}

#[test]
fn a_file_that_is_not_there_or_no_toml_is_a_configuration_error() {
    let home = verbatim("[memory\n");
    let broken = kurultaid(&home, &["--check"], &[]).expect(78);
    assert!(broken.stderr.starts_with(&format!("{}:1: ", home.config().display())), "{}", broken.stderr);
    std::fs::remove_file(home.config()).expect("it was there");
    let missing = kurultaid(&home, &["--check"], &[]).expect(78);
    assert!(missing.stderr.contains(&home.config().display().to_string()), "{}", missing.stderr);
}

#[test]
fn the_printed_configuration_says_where_values_come_from_and_is_itself_valid() {
    let home = Home::new(&format!("[queue]\nmax_depth = 7\n{WC}[breakers.b]\n"));
    let environment =
        [("KURULTAI_MAX_WORKERS", "3"), ("KURULTAI_SPOOL_RETENTION_S", "60"), ("FF_WORKER_POOL", "false")];
    let printed = kurultaid(&home, &["--print-config"], &environment).expect(0).text();
    let has = |value: &str, origin: &str| {
        let line = printed.lines().find(|line| line.starts_with(value)).unwrap_or_else(|| panic!("{value}: {printed}"));
        assert!(line.contains(&format!("# {origin}")), "{line}");
    };
    has("max_depth = 7", "file:");
    has("max = 3", "env KURULTAI_MAX_WORKERS");
    has("retention_s = 60", "env KURULTAI_SPOOL_RETENTION_S");
    has("worker_pool = false", "env FF_WORKER_POOL");
    has("drain_timeout_s = 30", "default");
    let again = verbatim(&printed);
    let reprinted = kurultaid(&again, &["--print-config"], &[]).expect(0).text();
    let values = |text: &str| -> Vec<String> {
        let without_origin = |line: &str| line.split(" # ").next().unwrap_or("").trim_end().to_owned();
        text.lines().skip(1).map(without_origin).filter(|line| !line.starts_with('#')).collect()
    };
    assert_eq!(values(&reprinted), values(&printed));
}

#[test]
fn the_command_line_is_understood_or_refused() {
    let home = Home::new("");
    let version = kurultaid(&home, &["--version"], &[]).expect(0).text();
    assert_eq!(version, format!("kurultaid {}\n", env!("CARGO_PKG_VERSION")));
    for option in ["--help", "-h"] {
        let help = kurultaid(&home, &[option], &[]).expect(0).text();
        for option in ["--config", "--check", "--print-config", "--pid-file", "--version", "--help"] {
            assert!(help.contains(option), "{option}");
        }
    }
    for (arguments, says) in [
        (&["--chekc"][..], "--chekc"),
        (&["start"], "start"),
        (&["--config"], "--config"),
        (&["--check=now"], "now"),
        (&["-x"], "-x"),
    ] {
        let refused = kurultaid(&home, arguments, &[]).expect(2);
        assert!(
            refused.stderr.contains(says) && refused.stderr.contains("--help"),
            "{arguments:?}: {}",
            refused.stderr
        );
        assert_eq!(refused.stdout, b"");
    }
}

#[test]
fn the_environment_goes_before_the_file() {
    let home = Home::new(&format!("[queue]\nmax_depth = 7\n{WC}"));
    let daemon =
        home.start_with(|command| command.env("KURULTAI_QUEUE_MAX_DEPTH", "3").env("KURULTAI_WORKERS_MAX", "4"));
    assert_eq!(daemon.get("/v1/queue").json()["maxDepth"], 3);
    assert_eq!(daemon.get("/v1/workers").json()["max"], 4);
    daemon.stop();
}

/// Reloads with HUP, and waits until the daemon says what came of it.
fn hang_up(daemon: &Daemon) -> Value {
    let before = reloads(daemon);
    signal(daemon.pid(), "HUP");
    until("the reload is over", || Some(reloads(daemon)).filter(|now| *now != before))
}

fn reloads(daemon: &Daemon) -> Value {
    daemon.get("/v1/status").expect(200).json()["config"]["reload"].clone()
}

fn metric(daemon: &Daemon, line: &str) -> String {
    let page = daemon.get("/metrics").expect(200).text();
    let found = page.lines().find_map(|one| one.strip_prefix(line));
    found.unwrap_or_else(|| panic!("{line} is not in\n{page}")).trim().to_owned()
}

#[test]
fn a_reload_changes_what_it_may_and_says_what_needs_a_restart() {
    let daemon = Daemon::start(WC);
    assert_eq!(reloads(&daemon), Value::Null);
    daemon.home().configure(
        "[queue]\nmax_depth = 9\n[spool]\nretention_mb = 17\n[agents.cat]\ncommand = [\"cat\"]\n[breakers.b]\n",
    );
    let report = daemon.post("/v1/reload", "").expect(200).json();
    assert_eq!(
        report,
        json!({
            "result": "ok", "changed": ["queue.max_depth", "agents.cat", "agents.wc", "breakers.b"],
            "needsRestart": ["spool.retention_mb"],
        })
    );
    assert_eq!(daemon.get("/v1/queue").json()["maxDepth"], 9);
    assert_eq!(daemon.run_task("cat", json!("new"))["state"], "completed");
    assert_eq!(daemon.submit(&json!({ "agent": "wc" })).expect(404).error_code(), "unknown_agent");
    assert_eq!(daemon.get("/v1/breakers").json()["breakers"][0]["name"], "b");
    assert_eq!(reloads(&daemon)["result"], "ok");

    daemon.home().configure(&format!("[queue]\nmax_depth = 4\n{WC}"));
    assert_eq!(hang_up(&daemon)["result"], "ok");
    assert_eq!(daemon.get("/v1/queue").json()["maxDepth"], 4);
    assert_eq!(daemon.run_task("wc", json!(1))["state"], "completed");
    assert_eq!(daemon.logged("CONFIG_RELOADED").len(), 2);
    assert_eq!(metric(&daemon, "kurultai_config_reloads_total{result=\"ok\"}"), "2");
    daemon.stop();
}

#[test]
fn an_invalid_file_leaves_the_running_configuration_and_is_told_everywhere() {
    let daemon = Daemon::start(&format!("[queue]\nmax_depth = 7\n{WC}"));
    let mut events = daemon.connect();
    events.send(&Request::get("/v1/events?types=CONFIG_REJECTED,CONFIG_RELOADED").bytes()).expect("the daemon reads");
    assert_eq!(events.receive_head().expect("a head").status, 200);
    daemon.home().configure("[queue]\nmax_depth = 0\n[workers]\nmax = 65\n");
    let refused = daemon.post("/v1/reload", "").expect(400);
    assert_eq!(refused.error_code(), "invalid_config");
    let message = refused.json()["error"]["message"].as_str().expect("a text").to_owned();
    assert!(message.contains("queue.max_depth") && message.contains("workers.max"), "every problem: {message}");
    let status = reloads(&daemon);
    assert_eq!((&status["result"], &status["error"]), (&json!("rejected"), &json!(message)));
    let line = daemon.logged("CONFIG_REJECTED").pop().expect("it is logged");
    assert!(line["text"].as_str().is_some_and(|text| text.contains("queue.max_depth")), "{line}");
    assert_eq!(metric(&daemon, "kurultai_config_reloads_total{result=\"rejected\"}"), "1");
    assert_eq!(daemon.get("/v1/queue").json()["maxDepth"], 7);
    assert_eq!(daemon.run_task("wc", json!(1))["state"], "completed");
    assert_eq!(events.next_event().expect("an event")["event"], "CONFIG_REJECTED");

    assert_eq!(hang_up(&daemon)["result"], "rejected");
    assert_eq!(daemon.logged("CONFIG_REJECTED").len(), 2);
    assert_eq!(events.next_event().expect("an event")["event"], "CONFIG_REJECTED");
    daemon.home().configure(WC);
    assert_eq!(daemon.post("/v1/reload", "").expect(200).json()["result"], "ok");
    assert_eq!(events.next_event().expect("an event")["event"], "CONFIG_RELOADED");
    drop(events);
    daemon.stop();
}

#[test]
fn a_task_that_runs_keeps_the_settings_it_started_with() {
    let sleeper = common::worker("sleeper", "tests/agents/sleeper", "");
    let daemon = Daemon::start(&sleeper);
    let id = daemon.accept("sleeper", json!({ "ms": 1000 }));
    daemon.in_state(&id, &["running"]);
    daemon.home().configure(WC);
    daemon.post("/v1/reload", "").expect(200);
    assert_eq!(daemon.finished(&id)["state"], "completed", "though its agent is gone");
    daemon.has_no_workers();
    daemon.stop();
}

#[test]
fn usr1_opens_the_log_anew_and_usr2_logs_the_state_as_json() {
    let home = Home::new("");
    let log = home.path().join("kurultai.log");
    home.configure(&format!(
        "[daemon]\nlog_file = {log:?}\n[workers]\nmax = 1\n[breakers.b]\n{}[[schedules]]\nname = \"hourly\"\nagent = \"sleeper\"\nevery_s = 3600\n",
        common::worker("sleeper", "tests/agents/sleeper", "")
    ));
    let daemon = home.start();
    let running = daemon.accept("sleeper", json!({ "ms": 600_000 }));
    daemon.in_state(&running, &["running"]);
    let queued = daemon.accept("sleeper", json!({}));
    let moved = daemon.path().join("kurultai.log.1");
    std::fs::rename(&log, &moved).expect("it is there");
    signal(daemon.pid(), "USR1");
    soon("the log is there again", || log.exists());
    signal(daemon.pid(), "USR2");
    let lines = |path: &std::path::Path| -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    };
    let found = |event: &str| until(event, || lines(&log).into_iter().find(|line| line["event"] == event));
    assert_eq!(found("STATE_SCHEDULE")["schedule"], "hourly");
    assert_eq!(found("STATE_BREAKER")["breaker"], "b");
    let worker = found("STATE_WORKER");
    assert_eq!((&worker["task"], &worker["state"]), (&json!(running), &json!("busy")), "{worker}");
    assert_eq!(found("STATE_TASK")["task"], queued);
    assert_eq!(found("STATE_QUEUE")["depth"], 1);
    assert_eq!(found("STATE_MEMORY")["level"], "normal");
    for line in lines(&moved).iter().chain(&lines(&log)) {
        assert!(line["at"].is_string() && line["level"].is_string(), "{line}");
        assert!(line["event"].is_string() != line["message"].is_string(), "{line}");
    }
    assert!(lines(&moved).iter().any(|line| line["event"] == "DAEMON_STARTED"));
    assert_eq!(daemon.log_text(), "", "standard error is not for the log then");
    daemon.ask(&Request::new("DELETE", format!("/v1/tasks/{running}"))).expect(202);
    daemon.finished(&queued);
    daemon.stop();
}

#[test]
fn text_logs_are_one_line_an_event_with_values_behind_names() {
    let daemon = Daemon::start(&format!("[daemon]\nlog_format = \"text\"\n{WC}"));
    daemon.ask(&Request::post("/v1/agents/wc/tasks?wait=30", "x").with("X-Request-Id", "r-5")).expect(200);
    let text = until("its end is logged", || Some(daemon.log_text()).filter(|text| text.contains("TASK_COMPLETED")));
    let line = text.lines().find(|line| line.contains("TASK_STARTED")).expect("its start is logged");
    assert!(line.contains(" INFO  TASK_STARTED task=t-1 worker=w-1 agent=wc attempt=1 "), "{line}");
    assert!(line.ends_with(" request=r-5"), "{line}");
    daemon.stop();
}

#[test]
fn a_pid_file_is_there_while_the_daemon_listens() {
    let home = Home::new("");
    let path = home.path().join("kurultaid.pid");
    let daemon = home.start_with(|command| command.arg("--pid-file").arg(&path));
    soon("it is written", || path.exists());
    assert_eq!(std::fs::read_to_string(&path).expect("it can be read"), format!("{}\n", daemon.pid()));
    let home = daemon.stop();
    assert!(!path.exists());
    let nowhere = home.path().join("no/such/directory/pid");
    let refused = kurultaid(&home, &["--pid-file", nowhere.to_str().expect("text")], &[]).expect(71);
    assert!(refused.stderr.contains("pid file"), "{}", refused.stderr);
}

#[test]
fn a_second_daemon_in_the_same_place_ends_and_says_what_is_in_its_way() {
    let daemon = Daemon::start(WC);
    let id = daemon.accept("wc", json!(1));
    daemon.finished(&id);
    let same_socket = kurultaid(daemon.home(), &[], &[]).expect(71);
    assert!(same_socket.stderr.contains("kurultai.sock"), "{}", same_socket.stderr);
    let elsewhere = daemon.path().join("run2").display().to_string();
    let same_state = kurultaid(daemon.home(), &[], &[("KURULTAI_DAEMON_RUNTIME_DIR", &elsewhere)]).expect(71);
    let state = daemon.path().join("state").display().to_string();
    assert!(same_state.stderr.contains(&state), "{}", same_state.stderr);
    assert_eq!(daemon.task(&id)["state"], "completed", "the first one is none the worse for it");
    daemon.accept("wc", json!(1));
    daemon.stop();
}

#[test]
fn a_port_that_is_taken_is_said_to_be() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    let address = listener.local_addr().expect("it is bound").to_string();
    let home = Home::new(&format!("[gateway]\nlisten = {address:?}\n"));
    let refused = kurultaid(&home, &[], &[]).expect(71);
    assert!(refused.stderr.contains(&address) && refused.stderr.contains("gateway.listen"), "{}", refused.stderr);
    assert!(!home.socket().exists(), "what it had made is removed");
}

#[test]
fn a_socket_left_by_a_killed_daemon_is_in_nobodys_way() {
    let home = Daemon::start(WC).kill();
    assert!(home.socket().exists());
    home.start().stop();
}

#[test]
fn a_token_file_has_to_be_a_secret() {
    let home = Home::new("");
    let token = home.path().join("token");
    home.configure(&format!("[gateway]\ntoken_file = {token:?}\n"));
    for (text, mode, says) in [
        (None, 0o600, "make it readable"),
        (Some("correct-horse-battery"), 0o644, "chmod 600"),
        (Some("short"), 0o600, "at least 16"),
        (Some("correct horse battery"), 0o600, "visible ASCII"),
        (Some(""), 0o600, "at least 16"),
    ] {
        if let Some(text) = text {
            std::fs::write(&token, text).expect("it can be written");
            std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).expect("it is ours");
        }
        let refused = kurultaid(&home, &[], &[]).expect(78);
        assert!(refused.stderr.contains("gateway.token_file") && refused.stderr.contains(says), "{}", refused.stderr);
    }
    for listen in ["0.0.0.0:7700", "[::]:7700", "192.0.2.1:7700"] {
        let home = Home::new(&format!("[gateway]\nlisten = {listen:?}\n"));
        let refused = kurultaid(&home, &["--check"], &[]).expect(78);
        assert!(refused.stderr.contains("gateway.token_file"), "{listen}: {}", refused.stderr);
    }
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let home = Home::new("");
    let file = home.path().join("file");
    std::fs::write(&file, "").expect("it can be written");
    for (key, says) in [("state_dir", "daemon.state_dir"), ("runtime_dir", "daemon.runtime_dir")] {
        home.configure(&format!("[daemon]\n{key} = {:?}\n", file.join("below").display().to_string()));
        let refused = kurultaid(&home, &[], &[]).expect(71);
        assert!(refused.stderr.contains(says), "{key}: {}", refused.stderr);
    }
    home.configure(&format!("[daemon]\nlog_file = {:?}\n", file.join("below").display().to_string()));
    assert!(kurultaid(&home, &[], &[]).expect(78).stderr.contains("daemon.log_file"));
    home.configure("[daemon]\nuser = \"nobody-by-this-name\"\n");
    assert!(kurultaid(&home, &[], &[]).expect(78).stderr.contains("daemon.user"));
}
