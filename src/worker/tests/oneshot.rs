//! One process a task: what it is given, what is taken from it, and how a start fails.

use std::collections::BTreeSet;

use super::bench::*;
use crate::core::limits::{INLINE_RESULT_MAX, STDERR_TAIL_MAX};
use crate::core::order::{CancelReason, Order, Report};
use crate::core::settings::{AgentMode, AgentSettings, Runtime};
use crate::core::task::{Payload, PayloadKind, ResultPlace, Stored};

fn inline(exit: &crate::core::order::Exit) -> String {
    match exit.result.as_ref().map(|result| &result.place) {
        Some(ResultPlace::Inline(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{other:?} is no small result: {exit:?}"),
    }
}

#[test]
fn a_payload_goes_in_and_the_result_comes_out() {
    let mut bench = Bench::new();
    let exit = bench.run("cat; echo oops >&2", b"{\"a\": 1}");
    assert_eq!(inline(&exit), "{\"a\": 1}");
    assert_eq!((exit.status, exit.signal, exit.stderr_tail.as_str()), (Some(0), None, "oops\n"));
    assert!(exit.peak_rss_bytes > 100_000, "{exit:?}");

    std::fs::write(bench.files.payload_path(TASK), b"from the file").unwrap();
    let filed = task_with(Payload::File(Stored::unchecked(13)), PayloadKind::Raw);
    let worker = bench.spawn(agent(AgentMode::Oneshot, &["cat"]), Some(filed));
    bench.spawned(worker);
    assert_eq!(inline(&bench.exited(worker)), "from the file");
}

#[test]
fn a_large_result_is_in_its_file() {
    let mut bench = Bench::new();
    let exit = bench.run("head -c 200000 /dev/zero", b"");
    let crc = Some(crc32fast::hash(&[0; 200_000]));
    assert_eq!(exit.result.unwrap().place, ResultPlace::File(Stored { bytes: 200_000, crc }));
    bench.files.keep_result(TASK).unwrap();
    assert_eq!(std::fs::metadata(bench.files.result_path(TASK)).unwrap().len(), 200_000);
    bench.files.remove_result(TASK);
    let exit = bench.run(&format!("head -c {INLINE_RESULT_MAX} /dev/zero"), b"");
    assert_eq!(inline(&exit).len(), INLINE_RESULT_MAX);
}

#[test]
fn each_way_to_end_is_told_apart() {
    let mut bench = Bench::new();
    let flood = format!("head -c {} /dev/zero >&2; echo end >&2; exit 1", 10 * STDERR_TAIL_MAX);
    for (script, status, signal) in [
        ("exec 0<&-; exit 0", Some(0), None),
        ("echo lost; exit 3", Some(3), None),
        ("kill -SEGV $$", None, Some(libc::SIGSEGV)),
        (&flood, Some(1), None),
        ("exec yes", None, Some(libc::SIGKILL)),
    ] {
        let exit = bench.run(script, b"payload");
        assert_eq!((exit.status, exit.signal), (status, signal), "{script}: {exit:?}");
        assert_eq!(exit.result.is_some(), status == Some(0), "{script}: {exit:?}");
        assert!(exit.stderr_tail.len() <= STDERR_TAIL_MAX, "{script}");
        let endless = script == "exec yes";
        assert_eq!(exit.result_error.is_some_and(|error| error.contains("raise spool.retention_mb")), endless);
        assert!(bench.has_no_result(), "{script}");
    }
    assert!(bench.run(&flood, b"").stderr_tail.ends_with("end\n"));
}

#[test]
fn a_result_that_cannot_be_stored_is_an_error_of_its_own() {
    let mut bench = Bench::new();
    std::fs::remove_dir(bench.dir.path().join("results")).unwrap();
    let exit = bench.run("head -c 200000 /dev/zero", b"");
    assert!(exit.result_error.as_ref().is_some_and(|error| error.contains("cannot store the result")), "{exit:?}");
    assert_eq!(exit.result, None);
}

#[test]
fn a_cancel_is_a_term_to_the_whole_group() {
    let mut bench = Bench::new();
    let fifo = bench.dir.path().join("fifo").to_str().unwrap().to_owned();
    bench.run(&format!("mkfifo {fifo}"), b"");
    // The shell waits for the group's other member, so both must have had the signal.
    let script = format!("trap 'wait; echo stopped; exit 0' TERM; sh -c 'echo >{fifo}; exec sleep 1000' & wait");
    for (order, status) in [
        (Order::Cancel { task: TASK, reason: CancelReason::Timeout }, Some(0)),
        (Order::Shutdown, Some(0)),
        (Order::Kill, None),
    ] {
        let worker = bench.spawn(sh(AgentMode::Oneshot, &script), Some(task(b"")));
        bench.spawned(worker);
        assert_eq!(std::fs::read(&fifo).unwrap(), b"\n");
        bench.send(worker, order);
        let exit = bench.exited(worker);
        assert_eq!(exit.status, status, "{exit:?}");
        assert!(status.is_none() || inline(&exit) == "stopped\n", "{exit:?}");
    }
}

#[test]
fn the_environment_is_exactly_what_is_promised() {
    let mut bench = Bench::new();
    let mut agent = agent(AgentMode::Oneshot, &["/usr/bin/env"]);
    agent.env.insert("COLOUR".to_owned(), "blue=green".to_owned());
    agent.env.insert("KURULTAI_AGENT".to_owned(), "forged".to_owned());
    agent.env_pass = vec!["NO_SUCH_VARIABLE_HERE".to_owned()];
    let worker = bench.spawn(agent, Some(task(b"")));
    bench.spawned(worker);
    let printed = inline(&bench.exited(worker));
    let expected = [
        "COLOUR=blue=green",
        "KURULTAI_AGENT=tested",
        "KURULTAI_ATTEMPT=1",
        "KURULTAI_PRIORITY=normal",
        "KURULTAI_REQUEST_ID=r-1",
        "KURULTAI_TASK_ID=t-7",
        "KURULTAI_WORKER_ID=w-1",
        "WORKER_ID=w-1",
    ];
    assert_eq!(printed.lines().collect::<BTreeSet<_>>(), BTreeSet::from(expected));
}

#[test]
fn a_process_starts_clean() {
    let mut bench = Bench::new();
    let script = "umask; pwd; cat /proc/self/oom_score_adj; grep -E '^Sig(Blk|Ign)' /proc/self/status; \
                  ls /proc/$$/fd | tr '\\n' ' '; grep 'core file' /proc/self/limits; cut -d' ' -f5,6 /proc/$$/stat; echo $$";
    let exit = bench.run(script, b"");
    let printed = inline(&exit);
    let lines: Vec<&str> = printed.lines().map(str::trim).collect();
    assert_eq!(lines[..3], ["0022", "/", "500"], "{printed}");
    for line in &lines[3..5] {
        assert!(line.ends_with("0000000000000000"), "a signal is not as it should be: {printed}");
    }
    let core_limit: Vec<&str> = lines[5].split_ascii_whitespace().collect();
    assert!(core_limit.starts_with(&["0", "1", "2"]) && core_limit.ends_with(&["0", "0", "bytes"]), "{printed}");
    let pid = lines[7];
    assert_eq!(lines[6], format!("{pid} {pid}"), "it leads no session: {printed}");
}

#[test]
fn node_is_told_its_heap_on_the_command_line_and_scripts_by_the_environment() {
    let mut bench = Bench::new();
    let node = bench.write("node", "#!/bin/sh\necho \"$@\" \"[$NODE_OPTIONS]\"\n", 0o755);
    let script = bench.write("script", "#!/bin/sh\necho \"$@\" \"[$NODE_OPTIONS]\"\n", 0o755);
    for (program, own, expected) in [
        (&node, None, "--max-old-space-size=512 app.js []\n"),
        (&script, None, "app.js [--max-old-space-size=512]\n"),
        (&script, Some("--trace-gc"), "app.js [--max-old-space-size=512 --trace-gc]\n"),
    ] {
        let mut agent = agent(AgentMode::Oneshot, &[program, "app.js"]);
        agent.runtime = Runtime::Node;
        agent.env.extend(own.map(|own| ("NODE_OPTIONS".to_owned(), own.to_owned())));
        let worker = bench.spawn(agent, Some(task(b"")));
        bench.spawned(worker);
        assert_eq!(inline(&bench.exited(worker)), expected, "{program}");
    }
}

#[test]
fn a_worker_runs_as_its_user_or_says_why_not() {
    let mut bench = Bench::new();
    let mut agent = sh(AgentMode::Oneshot, "id -u; id -G; cat");
    agent.user = Some("nobody".to_owned());
    std::fs::write(bench.files.payload_path(TASK), b"its own").unwrap();
    let worker = bench.spawn(agent, Some(task_with(Payload::File(Stored::unchecked(7)), PayloadKind::Raw)));
    match bench.next(worker) {
        Report::Spawned { .. } => {
            let printed = inline(&bench.exited(worker));
            let lines: Vec<&str> = printed.lines().collect();
            assert!(lines[0] != "0" && !lines[1].split(' ').any(|group| group == "0"), "{printed}");
            assert_eq!(lines[2], "its own");
        }
        Report::SpawnFailed { error } => assert!(error.contains("only a daemon that runs as root"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_start_that_fails_says_why_and_what_to_do() {
    let mut bench = Bench::new();
    let plain = bench.write("plain", "#!/bin/sh\n", 0o644);
    let unmarked = bench.write("unmarked", "echo hello\n", 0o755);
    let orphaned = bench.write("orphaned", "#!/no/such/interpreter\n", 0o755);
    let with = |command: &[&str], change: fn(&mut AgentSettings)| {
        let mut agent = agent(AgentMode::Oneshot, command);
        change(&mut agent);
        agent
    };
    for (agent, expected) in [
        (with(&["no-such-program-here"], |_| {}), "not found in PATH ("),
        (with(&["sh"], |agent| drop(agent.env.insert("PATH".into(), "/no:/where".into()))), "in PATH (/no:/where)"),
        (with(&["/no/such/program"], |_| {}), "/no/such/program: No such file"),
        (with(&[&orphaned], |_| {}), "nor the interpreter"),
        (with(&[&plain], |_| {}), "chmod +x"),
        (with(&["/tmp"], |_| {}), "Permission denied"),
        (with(&[&unmarked], |_| {}), "without a #! line"),
        (with(&["true"], |agent| agent.cwd = Some("/no/such/place".into())), "see agents.tested.cwd"),
        (with(&["true"], |agent| agent.user = Some("no-such-user-here".into())), "there is no user"),
        (with(&["true", "a\0b"], |_| {}), "agents.tested.command has a NUL byte"),
        (with(&[""], |_| {}), "name is empty"),
    ] {
        let command = agent.command.clone();
        let worker = bench.spawn(agent, Some(task(b"")));
        match bench.next(worker) {
            Report::SpawnFailed { error } => {
                assert!(error.contains(expected), "{command:?}: {error:?} does not say {expected:?}");
            }
            other => panic!("{command:?}: {other:?}"),
        }
    }
    let lost = task_with(Payload::File(Stored::unchecked(9)), PayloadKind::Raw);
    let worker = bench.spawn(agent(AgentMode::Oneshot, &["cat"]), Some(lost));
    assert!(
        matches!(bench.next(worker), Report::SpawnFailed { error } if error.contains("cannot open the payload")),
        "a payload that is not there"
    );
}
