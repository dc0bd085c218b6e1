//! kurultaid(8).

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kurultai::core::breaker::BreakerState;
use kurultai::core::governor::Level;
use kurultai::core::ids::{IncidentId, TaskId, WorkerId};
use kurultai::core::notice::{ExitReason, Notice};
use kurultai::core::task::{FailureCode, Priority};

use super::page::{DAEMON, entries, names, quoted_words, section, source};

#[test]
fn the_daemon_page_has_every_option_and_no_other() {
    #[expect(clippy::disallowed_methods, reason = "a test starts the program it is about")]
    let help = Command::new(env!("CARGO_BIN_EXE_kurultaid")).arg("--help").output().expect("kurultaid --help");
    assert!(help.status.success(), "{help:?}");
    let help = String::from_utf8(help.stdout).expect("text");
    let word = |rest: &str| rest.chars().take_while(|char| char.is_ascii_lowercase() || *char == '-').collect();
    let offered: BTreeSet<String> = help.split("--").skip(1).map(word).collect();
    let description = section(DAEMON, ".Sh DESCRIPTION");
    let documented: BTreeSet<String> =
        names(description, "Fl").into_iter().map(|name| name.trim_start_matches('-').to_owned()).collect();
    assert_eq!(documented, offered);
    for name in ["config", "check", "print-config", "pid-file", "version", "help"] {
        assert!(offered.contains(name), "--{name}");
    }
}

fn text() -> Arc<str> {
    Arc::from("x")
}

/// One notice of each kind, with every field that may be left out.
fn notices() -> Vec<Notice> {
    let (task, worker, incident) = (TaskId(1), WorkerId(1), IncidentId(1));
    let (agent, request, code) = (text(), text(), FailureCode::Timeout);
    let duration = Duration::from_secs(1);
    let level = |from, to| Notice::MemoryLevel { from, to, pressure: 0.5, usage_bytes: 1, limit_bytes: 2, incident };
    let circuit = |to| Notice::Circuit { breaker: text(), to, openings: 1, retry_after: Some(duration) };
    let mut notices = vec![
        Notice::TaskAccepted {
            task,
            agent: agent.clone(),
            priority: Priority::Normal,
            request: request.clone(),
            waiting: 1,
        },
        Notice::TaskRejected { agent: agent.clone(), code: "x", text: "x".into(), request: request.clone() },
        Notice::TaskWaiting { task, agent: agent.clone(), text: "x".into(), incident: Some(incident) },
        Notice::TaskStarted {
            task,
            worker,
            agent: agent.clone(),
            attempt: 1,
            waited: duration,
            request: request.clone(),
        },
        Notice::TaskProgress { task, percent: 1.0, message: Some("x".into()) },
        Notice::TaskCompleted {
            task,
            worker: Some(worker),
            agent: agent.clone(),
            run_time: duration,
            result_bytes: 1,
            request: request.clone(),
        },
        Notice::TaskFailed {
            task,
            worker: Some(worker),
            agent: agent.clone(),
            code,
            text: "x".into(),
            run_time: Some(duration),
            request: request.clone(),
        },
        Notice::TaskRetried {
            task,
            agent: agent.clone(),
            code,
            text: "x".into(),
            retries: 1,
            max_retries: 1,
            request: request.clone(),
        },
        Notice::TaskCancelled { task, agent: agent.clone(), request: request.clone() },
        Notice::TaskPreempted {
            task,
            worker,
            agent: agent.clone(),
            has_checkpoint: true,
            preemptions: 1,
            request: request.clone(),
            incident: Some(incident),
        },
        Notice::TaskEvicted { task, agent: agent.clone(), made_room_for: task, request: request.clone() },
        Notice::TaskKilled {
            task,
            worker,
            agent: agent.clone(),
            code,
            text: "x".into(),
            request,
            incident: Some(incident),
        },
        Notice::HeartbeatSkipped {
            schedule: Some(text()),
            task: Some(task),
            agent: agent.clone(),
            text: "x",
            incident: Some(incident),
        },
        Notice::WorkerSpawned { worker, agent: agent.clone(), pid: 1 },
        Notice::WorkerExited {
            worker,
            agent: agent.clone(),
            reason: ExitReason::Crashed,
            status: Some(1),
            signal: Some(1),
            text: "x".into(),
        },
        Notice::WorkerKilled { worker, agent: agent.clone(), text: "x".into() },
        Notice::WorkerSoftLimit {
            worker,
            agent: agent.clone(),
            rss_bytes: 2,
            soft_limit_bytes: 1,
            incident: Some(incident),
        },
        Notice::MemoryAction {
            action: "kill",
            task: Some(task),
            worker: Some(worker),
            text: "x".into(),
            incident: Some(incident),
        },
        Notice::AgentUnavailable { agent, failures: 1, retry_after: duration },
        Notice::StorageFull { text: "x".into(), free_bytes: Some(1) },
        Notice::StorageCleared { free_bytes: Some(1) },
        Notice::ConfigReloaded { changed: "x".into(), needs_restart: "x".into() },
        Notice::ConfigRejected { text: "x".into() },
        level(Level::Emergency, Level::Warning),
    ];
    notices.extend(BreakerState::ALL.map(circuit));
    notices.extend(Level::ALL.into_iter().skip(1).map(|to| level(Level::Normal, to)));
    notices
}

#[test]
fn the_daemon_page_has_every_event_with_its_fields_and_no_other() {
    let page = section(DAEMON, ".Sh LOG EVENTS");
    assert_eq!(names(page, "Cm"), Notice::NAMES.into_iter().collect());
    let notices = notices();
    let covered: BTreeSet<&str> = notices.iter().map(Notice::name).collect();
    assert_eq!(covered, Notice::NAMES.into_iter().collect(), "events this test makes");
    let of_notice = |notice: &Notice| {
        let mut fields = Vec::new();
        notice.fields(&mut |name, _| fields.push(name));
        (notice.name(), fields.join(", "))
    };
    for (name, fields) in notices.iter().map(of_notice) {
        let (_, entry) = entries(page, "Cm").into_iter().find(|(listed, _)| *listed == name).expect("listed");
        let line = entry.lines().find_map(|line| line.strip_prefix("Fields: ")).expect("a line of fields");
        assert_eq!(line.trim_end_matches('.').replace(['[', ']'], ""), fields, "{name}");
    }
    for reason in ExitReason::ALL {
        assert!(page.contains(&format!(".Cm {}", reason.name())), "{}", reason.name());
    }
}

#[test]
fn the_daemon_page_has_every_metric_and_no_other() {
    let is_metric = |word: &str| {
        ["kurultai_", "process_"].iter().any(|prefix| word.starts_with(prefix))
            && word.chars().all(|char| char.is_ascii_lowercase() || char == '_')
    };
    let exposed = quoted_words(&source("src/metrics/exposition.rs"), is_metric);
    let page = section(DAEMON, ".Sh METRICS");
    assert_eq!(names(page, "Cm"), exposed.iter().map(String::as_str).collect());
}
