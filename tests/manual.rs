//! The man pages say what the software is: every key, option, route, field, error code, event, metric and message is in
//! its page with its figures, and no page names one that does not exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kurultai::config::{Absent, ENV_ONLY, KEYS, Key, Kind, Rule};
use kurultai::core::breaker::BreakerState;
use kurultai::core::governor::Level;
use kurultai::core::ids::{IncidentId, TaskId, WorkerId};
use kurultai::core::limits;
use kurultai::core::notice::{ExitReason, Notice};
use kurultai::core::order::{CancelReason, PreemptReason};
use kurultai::core::task::{FailureCode, Priority, TaskState};
use kurultai::ctl::{PROFILE_KEYS, ProfileKey, ProfileKind, Without};
use kurultai::metrics::Route;

const DAEMON: &str = include_str!("../man/kurultaid.8");
const CONFIG: &str = include_str!("../man/kurultai.toml.5");
const API: &str = include_str!("../man/kurultai-api.7");
const SIMULATE: &str = include_str!("../man/kurultai-simulate.7");
const PROTOCOL: &str = include_str!("../man/kurultai-protocol.7");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text between a heading (`.Sh NAME`, `.Ss NAME`) and the next one of its kind or above.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("the page has no {heading}"));
    let text = &page[start + heading.len() + 2..];
    let nexts = if heading.starts_with(".Ss") { &["\n.Ss ", "\n.Sh "][..] } else { &["\n.Sh "][..] };
    let end = nexts.iter().filter_map(|next| text.find(next)).min().unwrap_or(text.len());
    &text[..end]
}

/// The entries of a list: the words after `.It <macro> ` and the text up to the next entry of that kind.
fn entries<'a>(text: &'a str, kind: &str) -> Vec<(&'a str, &'a str)> {
    let marker = format!("\n.It {kind} ");
    let starts: Vec<usize> = text.match_indices(&marker).map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    let entry = |(start, end): (&usize, usize)| {
        let entry = &text[start + marker.len()..end];
        entry.split_once('\n').unwrap_or((entry, ""))
    };
    starts.iter().zip(ends).map(entry).collect()
}

fn names<'a>(text: &'a str, kind: &str) -> BTreeSet<&'a str> {
    entries(text, kind).into_iter().map(|(head, _)| head.split(' ').next().expect("a word")).collect()
}

/// Words that stand in double quotes in source code and satisfy `is_one`.
fn quoted_words(source: &str, is_one: impl Fn(&str) -> bool) -> BTreeSet<String> {
    source.split('"').skip(1).filter(|word| is_one(word)).map(str::to_owned).collect()
}

/// A source file without its unit tests.
fn source(path: &str) -> String {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.split("#[cfg(test)]\nmod tests").next().expect("a first part").to_owned()
}

// kurultai.toml(5)

/// The line that begins a key's entry: type, range, default, reload.
fn facts(key: &Key) -> String {
    let kind = match key.kind {
        Kind::Flag => "True or false".to_owned(),
        Kind::Integer { min, max } => format!("Integer, {min} to {max}"),
        Kind::Ratio { min, max } => format!("Number, {min} to {max}"),
        Kind::Choice(among) => format!("One of {}", among.join(", ")),
        Kind::Priority => "Priority".to_owned(),
        Kind::Text(rule) => text_rule(rule).to_owned(),
        Kind::Texts { rule, some } => {
            let of = match rule {
                Rule::Host => "host names",
                Rule::Variable => "names of variables",
                _ => "texts",
            };
            format!("List of {of}{}", if some { ", at least one" } else { "" })
        }
        Kind::Choices(among) => format!("List of {}, at least one", among.join(", ")),
        Kind::Integers { min, max } => format!("List of integers, {min} to {max}, at least one"),
        Kind::Levels { min, max, .. } => format!("Table of integers by priority, {min} to {max}"),
        Kind::Environment => "Table of texts".to_owned(),
        Kind::Payload => "Any value".to_owned(),
    };
    let absent = match key.absent {
        Absent::Default => format!("default {}", key.example),
        Absent::Required => "required".to_owned(),
        Absent::Means(means) => format!("default {means}"),
    };
    // Agents, schedules and breakers are reloaded as a whole, which their sections say.
    let reload = if key.reload && !key.is_pattern() { "; reload" } else { "" };
    format!("{kind}; {absent}{reload}.")
}

fn text_rule(rule: Rule) -> &'static str {
    match rule {
        Rule::Any => "Text",
        Rule::Filled => "Text, not empty",
        Rule::AbsolutePath => "Absolute path",
        Rule::SocketDirectory => "Absolute path, at most 93 bytes",
        Rule::OptionalPath => "Absolute path or \"\"",
        Rule::Name => "Name",
        Rule::OptionalName => "Name or \"\"",
        Rule::Listen => "Address:port or \"\"",
        Rule::Host => "Host name",
        Rule::Variable => "Name of a variable",
    }
}

fn heading(key: &Key) -> String {
    match (key.section(), key.is_pattern()) {
        ("schedules", _) => ".Ss [[schedules]]".to_owned(),
        (section, true) => format!(".Ss [{section}.NAME]"),
        (section, false) => format!(".Ss [{section}]"),
    }
}

#[test]
fn the_configuration_page_has_every_key_with_its_facts_and_no_other() {
    let mut missing = Vec::new();
    for key in KEYS {
        let section = section(CONFIG, &heading(key));
        match entries(section, "Cm").into_iter().find(|(name, _)| *name == key.field()) {
            Some((_, text)) if text.lines().next() == Some(facts(key).as_str()) => {}
            Some((_, text)) => missing.push(format!("{}: {:?}, not {:?}", key.path, text.lines().next(), facts(key))),
            None => missing.push(format!("{}: {}", key.path, facts(key))),
        }
        let fields: BTreeSet<&str> =
            KEYS.iter().filter(|other| heading(other) == heading(key)).map(Key::field).collect();
        assert_eq!(names(section, "Cm"), fields, "{}", heading(key));
        assert!(!key.is_pattern() || key.reload, "{} is not reloaded, which its section says", key.path);
    }
    assert!(missing.is_empty(), "in man/kurultai.toml.5:\n{}", missing.join("\n"));
}

#[test]
fn the_configuration_page_has_every_old_name() {
    let environment = section(CONFIG, ".Sh ENVIRONMENT");
    for key in KEYS {
        if let Some(old) = key.v21 {
            let line = format!(".It Ev {old} Ta Cm {}\n", key.path);
            assert!(environment.contains(&line), "{line}");
        }
    }
    for name in ENV_ONLY {
        assert!(environment.contains(&format!(".It Ev {name}\n")), "{name}");
    }
}

#[test]
fn the_configuration_page_s_example_and_the_files_of_conf_are_valid() {
    let example = section(CONFIG, ".Sh EXAMPLES");
    let (_, example) = example.split_once(".Bd -literal -offset indent\n").expect("an example");
    let (example, _) = example.split_once(".Ed").expect("its end");
    let mut texts = vec![("the example of kurultai.toml(5)".to_owned(), example.to_owned())];
    for entry in fs::read_dir(root().join("conf")).expect("conf").map(|entry| entry.expect("an entry").path()) {
        if entry.extension().is_some_and(|extension| extension == "toml") {
            texts.push((entry.display().to_string(), fs::read_to_string(&entry).expect("a text")));
        }
    }
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for (number, text) in readme.split("```toml\n").skip(1).enumerate() {
        texts.push((format!("README.md, snippet {number}"), text.split("```").next().expect("its end").to_owned()));
    }
    for (name, text) in texts {
        let loaded = kurultai::config::parse(&text, &name, [], None).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
    }
}

// kurultaid(8)

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

// kurultai-api(7)

#[test]
fn the_api_page_has_every_route_and_no_other() {
    let mut documented: BTreeSet<&str> = ["GET", "POST", "DELETE"]
        .iter()
        .flat_map(|method| API.match_indices(&format!("\n.It Cm {method} ")).map(|(at, _)| at).collect::<Vec<_>>())
        .map(|at| API[at + 1..].lines().next().expect("a line").rsplit(' ').next().expect("a path"))
        .collect();
    // Five routes of a breaker are one to the metrics.
    let calls: Vec<&str> = documented.iter().copied().filter(|path| path.starts_with("/v1/breakers/NAME/")).collect();
    let routes = source("src/gateway/routes.rs");
    for call in &calls {
        let word = call.rsplit('/').next().expect("a word");
        assert!(routes.contains(&format!("\"{word}\" =>")), "{call}");
        documented.remove(call);
    }
    assert_eq!(calls.len(), ["acquire", "success", "failure", "open", "close"].len());
    documented.insert("/v1/breakers/NAME");
    let served = Route::ALL.into_iter().filter(|route| *route != Route::Other).map(Route::pattern).collect();
    assert_eq!(documented, served);
}

/// Status and code of every refusal of the gateway's own making.
fn problems() -> BTreeSet<(String, String)> {
    let mut problems = BTreeSet::new();
    for entry in fs::read_dir(root().join("src/gateway")).expect("src/gateway") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            continue;
        }
        let text = source(path.strip_prefix(root()).expect("below the root").to_str().expect("text"));
        let compact: String = text.split_whitespace().collect();
        for made in compact.split("Problem::new(").skip(1) {
            let mut words = made.splitn(3, ',');
            let (status, code) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if status.parse::<u16>().is_ok() && code.starts_with('"') {
                problems.insert((status.to_owned(), code.trim_matches('"').to_owned()));
            }
        }
    }
    problems
}

/// `Refusal::A { .. } | Refusal::B { .. } => VALUE,` as pairs of a variant and its value.
fn arms(text: &str) -> Vec<(String, String)> {
    let mut arms = Vec::new();
    for arm in text.split("=>").zip(text.split("=>").skip(1)) {
        let value = arm.1.split([',', '\n']).next().expect("a value").trim().trim_matches('"').to_owned();
        // What stands before the last comma belongs to the arm before.
        let pattern = arm.0.rsplit_once(",\n").map_or(arm.0, |(_, pattern)| pattern);
        for variant in pattern.split("Refusal::").skip(1) {
            let name = variant.chars().take_while(char::is_ascii_alphanumeric).collect();
            arms.push((name, value.clone()));
        }
    }
    arms
}

/// Status and code of every refusal of the core.
fn refusals() -> BTreeSet<(String, String)> {
    let body = |path: &str, start: &str| {
        let text = source(path);
        let (_, body) = text.split_once(start).unwrap_or_else(|| panic!("{path} has no {start}"));
        body.split("\n    }\n").next().expect("a body").to_owned()
    };
    let statuses = arms(&body("src/gateway/render.rs", "let status = match refusal {"));
    let codes = arms(&body("src/core/refusal.rs", "pub fn code(&self)"));
    let code_of = |variant: &str| {
        let (_, code) = codes.iter().find(|(known, _)| known == variant).expect("a code for each status");
        code.clone()
    };
    statuses.into_iter().map(|(variant, status)| (status, code_of(&variant))).collect()
}

#[test]
fn the_api_page_has_every_error_code_with_its_status_and_no_other() {
    let page = section(API, ".Sh ERROR CODES");
    let documented: BTreeSet<(String, String)> = entries(page, "Sy")
        .into_iter()
        .map(|(head, _)| head.split_once(" Cm ").expect("a status and a code"))
        .map(|(status, code)| (status.to_owned(), code.to_owned()))
        .collect();
    let problems = problems();
    assert!(problems.len() > 15, "found only {problems:?}");
    let refusals = refusals();
    assert!(refusals.len() > 5, "found only {refusals:?}");
    let answered: BTreeSet<_> = problems.union(&refusals).cloned().collect();
    assert_eq!(documented, answered);
    let failed = section(API, ".Ss Failed tasks");
    assert_eq!(names(failed, "Cm"), FailureCode::ALL.into_iter().map(FailureCode::name).collect());
}

#[test]
fn the_api_page_has_every_state_field_and_parameter() {
    let states = section(API, ".Ss States");
    assert_eq!(names(states, "Cm"), TaskState::ALL.into_iter().map(TaskState::name).collect());
    // What the gateway puts into objects: put(&mut object, "id", …), "max": …, object["storage"].
    let json = source("src/gateway/json.rs");
    let compact: String = json.split_whitespace().collect();
    let mut fields = BTreeSet::new();
    for (marker, end) in [("put(&mutobject,\"", '"'), ("put(&mutinner,\"", '"'), ("object[\"", '"')] {
        fields.extend(compact.split(marker).skip(1).filter_map(|rest| rest.split_once(end)).map(|(name, _)| name));
    }
    fields.extend(compact.split("\":").map(|before| before.rsplit('"').next().expect("a word")));
    fields.retain(|name| !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric()));
    assert!(fields.len() > 80, "found only {fields:?}");
    for field in fields {
        let is_there = API.contains(&format!("\"{field}\""))
            || API.contains(&format!("\\(dq{field}\\(dq"))
            || API.split([' ', '\n']).any(|word| word == field);
        assert!(is_there, "{field} is not in kurultai-api(7)");
    }
    let submission = section(API, ".Sh TASKS");
    for field in
        ["agent", "payload", "priority", "timeoutS", "maxRetries", "preemptible", "skippable", "idempotencyKey"]
    {
        assert!(submission.contains(&format!("\n.It Va {field}\n")), "{field} of an envelope");
    }
    let mut parameters = BTreeSet::new();
    for path in ["src/gateway/routes.rs", "src/gateway/submit.rs", "src/gateway/query.rs"] {
        let text = source(path);
        for marker in [".take(\"", ".take_number(\"", ".take_seconds(\"", ".take_flag(\""] {
            let taken = text.split(marker).skip(1).filter_map(|rest| rest.split_once('"'));
            parameters.extend(taken.map(|(name, _)| name.to_owned()));
        }
    }
    assert!(parameters.len() > 10, "found only {parameters:?}");
    for name in parameters {
        assert!(API.contains(&format!("?{name}")) || API.contains(&format!("\n.Cm {name}")), "parameter {name}");
    }
}

#[test]
fn the_pages_have_the_limits_of_the_code() {
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    let mib = |bytes: usize| format!("{} MiB", bytes / 1024 / 1024);
    for (page, text, what) in [
        (API, kib(limits::INLINE_RESULT_MAX), "a small result"),
        (API, kib(limits::STDERR_TAIL_MAX), "the end of standard error"),
        (API, mib(kurultai::core::ledger::FINISHED_BYTES_MAX), "memory of finished tasks"),
        (CONFIG, mib(kurultai::core::ledger::FINISHED_BYTES_MAX), "memory of finished tasks"),
        (CONFIG, mib(kurultai::config::FILE_MAX as usize), "the configuration"),
        (PROTOCOL, mib(limits::LINE_MAX), "a line"),
        (PROTOCOL, kib(limits::PAYLOAD_IN_MESSAGE_MAX), "a payload in TASK"),
        (PROTOCOL, kib(limits::CHECKPOINT_MAX), "a checkpoint"),
        (PROTOCOL, kib(limits::ERROR_TEXT_MAX), "an error"),
        (PROTOCOL, kib(limits::STDERR_TAIL_MAX), "the end of standard error"),
    ] {
        assert!(page.contains(&text), "{what}: {text}");
    }
    for (path, constant) in [
        ("src/gateway/head.rs", "HEAD_MAX: usize = 8 * 1024;"),
        ("src/gateway/head.rs", "HEADERS_MAX: usize = 64;"),
        ("src/gateway/head.rs", "REQUEST_ID_MAX: usize = 64;"),
        ("src/gateway/head.rs", "IDEMPOTENCY_KEY_MAX: usize = 128;"),
        ("src/gateway/body.rs", "ENVELOPE_MAX: u64 = 256 * 1024;"),
        ("src/gateway/upload.rs", "SMALL_BODY_MAX: u64 = 16 * 1024;"),
        ("src/gateway/body.rs", "UNWANTED_MAX: u64 = 64 * 1024;"),
        ("src/gateway/conn.rs", "SHORT_CONNECTIONS: usize = 4;"),
        ("src/gateway/lingering.rs", "LONGEST: Duration = Duration::from_secs(10);"),
        ("src/gateway/lingering.rs", "MOST: u64 = 64 * 1024 * 1024;"),
        ("src/gateway/query.rs", "WAIT_MAX: f64 = 3600.0;"),
        ("src/gateway/submit.rs", "RETRIES_MAX: u32 = 1000;"),
        ("src/gateway/routes.rs", "LIST_DEFAULT: usize = 100;"),
        ("src/gateway/routes.rs", "LIST_MAX: usize = 1000;"),
        ("src/gateway/outgoing.rs", "BEHIND_MAX: usize = 64 * 1024;"),
        ("src/scheduler/mod.rs", "DECISIONS_MAX: usize = 256;"),
        ("src/scheduler/history.rs", "SLOTS: usize = 300;"),
        ("src/gateway/page/mod.rs", "DECISIONS: usize = 20;"),
        ("src/core/breaker.rs", "PROBE_TTL: Duration = Duration::from_secs(60);"),
        ("src/core/breaker.rs", "PERMITS_MAX: usize = 256;"),
    ] {
        assert!(source(path).contains(constant), "{path} no longer says {constant}: say so in kurultai-api(7)");
    }
}

// kurultai-protocol(7)

/// Every message with its fields, in the order of the page.
const FROM_THE_DAEMON: [(&str, &str); 7] = [
    ("HELLO", "protocol workerId agent softMemoryLimitMB hardMemoryLimitMB"),
    ("TASK", "taskId priority payloadType timeoutMs attempt requestId checkpoint payload payloadPath"),
    ("CANCEL", "taskId reason"),
    ("PREEMPT", "taskId reason checkpointTimeoutMs"),
    ("GC", ""),
    ("BREAKER_STATE", "name permit retryAfterMs"),
    ("SHUTDOWN", ""),
];
const FROM_THE_WORKER: [(&str, &str); 9] = [
    ("READY", "protocol capabilities"),
    ("PROGRESS", "taskId percent message checkpoint"),
    ("CHUNK", "taskId seq data encoding"),
    ("COMPLETE", "taskId result"),
    ("FAILED", "taskId error stack retryable"),
    ("PREEMPTED", "taskId checkpoint"),
    ("MEMORY", "heapUsed heapTotal rss external arrayBuffers"),
    ("BREAKER", "name op permit"),
    ("LOG", "level message"),
];

#[test]
fn the_protocol_page_has_every_message_with_its_fields_and_no_other() {
    for (heading, messages) in
        [(".Ss From the daemon", &FROM_THE_DAEMON[..]), (".Ss From the worker", &FROM_THE_WORKER[..])]
    {
        let documented: Vec<(&str, String)> = entries(section(PROTOCOL, heading), "Cm")
            .into_iter()
            .map(|(name, text)| (name, entries(text, "Va")))
            .map(|(name, fields)| (name, fields.iter().map(|(field, _)| *field).collect::<Vec<_>>().join(" ")))
            .collect();
        let expected: Vec<(&str, String)> = messages.iter().map(|(name, fields)| (*name, (*fields).into())).collect();
        assert_eq!(documented, expected, "{heading}");
    }
    // What the daemon says and reads, out of the code that does it.
    let composed = source("src/worker/compose.rs");
    let said: BTreeSet<&str> = composed.split("begin(out, \"").skip(1).map(quoted).collect();
    assert_eq!(said, FROM_THE_DAEMON.iter().map(|(name, _)| *name).collect());
    let fields = ["string_field", "number_field", "json_field"];
    let said: BTreeSet<&str> = fields
        .iter()
        .flat_map(|field| composed.split(&format!("{field}(out, \"")).skip(1).map(quoted).collect::<Vec<_>>())
        .collect();
    assert_eq!(said, words(&FROM_THE_DAEMON));
    let parsed = source("src/worker/message.rs");
    let read: BTreeSet<&str> = parsed
        .match_indices("\" => ")
        .map(|(at, _)| parsed[..at].rsplit('"').next().expect("a word"))
        .filter(|word| word.chars().all(|char| char.is_ascii_uppercase()))
        .collect();
    assert_eq!(read, FROM_THE_WORKER.iter().map(|(name, _)| *name).collect());
    let (_, fields) = parsed.split_once("struct Fields").expect("the fields of messages");
    let (fields, _) = fields.split_once("\n}").expect("its end");
    let read: BTreeSet<String> = fields
        .lines()
        .filter_map(|line| line.trim().split_once(": Option"))
        .map(|(name, _)| camel_case(name))
        .filter(|name| name != "kind")
        .collect();
    assert_eq!(read.iter().map(String::as_str).collect::<BTreeSet<_>>(), words(&FROM_THE_WORKER));
    for reason in [CancelReason::Requested, CancelReason::Timeout, CancelReason::Drain].map(CancelReason::name) {
        assert!(PROTOCOL.contains(&format!("\n.Cm {reason}")), "CANCEL: {reason}");
    }
    for reason in [PreemptReason::MemoryPressure, PreemptReason::Priority, PreemptReason::Shutdown] {
        assert!(PROTOCOL.contains(&format!("\n.Cm {}", reason.name())), "PREEMPT: {}", reason.name());
    }
}

fn quoted(rest: &str) -> &str {
    rest.split('"').next().expect("a word")
}

fn words(messages: &[(&'static str, &'static str)]) -> BTreeSet<&'static str> {
    messages.iter().flat_map(|(_, fields)| fields.split_whitespace()).collect()
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| name + &part[..1].to_ascii_uppercase() + &part[1..])
}

// kurultai-simulate(7)

fn facts_of_profile(key: &ProfileKey) -> String {
    let kind = match key.kind {
        ProfileKind::Text => "Text, 1 to 64 characters".to_owned(),
        ProfileKind::Flag => "True or false".to_owned(),
        ProfileKind::Integer { min, max } => format!("Integer, {min} to {max}"),
        ProfileKind::Number { min, max } => format!("Number, {min} to {max}"),
        ProfileKind::Spread { min, max } => format!("Number or spread, {min} to {max}"),
        ProfileKind::Weights { max } => format!("Table of integers by priority, 0 to {max}"),
    };
    match key.absent {
        Without::Default => format!("{kind}; default {}.", key.example),
        Without::Required => format!("{kind}; required."),
        Without::Means(means) => format!("{kind}; default {means}."),
    }
}

#[test]
fn the_simulation_page_has_every_key_of_a_profile_with_its_facts_and_no_other() {
    for (name, heading) in
        [("", ".Ss Above all sections"), ("phases", ".Ss [[phases]]"), ("agents", ".Ss [agents.NAME] and [defaults]")]
    {
        let section = section(SIMULATE, heading);
        let keys = || PROFILE_KEYS.iter().filter(|key| key.section == name);
        assert_eq!(names(section, "Cm"), keys().map(|key| key.name).collect(), "{heading}");
        for key in keys() {
            let (_, text) = entries(section, "Cm").into_iter().find(|(head, _)| *head == key.name).expect("listed");
            assert_eq!(text.lines().next(), Some(facts_of_profile(key).as_str()), "{}", key.name);
        }
    }
    let mib = kurultai::ctl::PROFILE_MAX / 1024 / 1024;
    assert!(SIMULATE.contains(&format!("at most {mib} MiB")));
    assert!(SIMULATE.contains("at most 10,000,000\nsubmissions"));
    assert_eq!(kurultai::ctl::SUBMISSIONS_MAX, 10_000_000.0);
}

#[test]
fn the_simulation_page_has_every_column_and_names_the_profiles_that_are_shipped() {
    let output = source("src/ctl/simulate/output.rs");
    let (_, columns) = output.split_once("COLUMNS: &str").expect("the columns");
    let columns = columns.split('"').nth(1).expect("a text");
    assert!(columns.split(',').count() > 5, "{columns}");
    for column in columns.split(',') {
        assert!(SIMULATE.contains(&format!(".Cm {column}")), "{column}");
    }
    let shipped: BTreeSet<String> = fs::read_dir(root().join("conf/profiles"))
        .expect("conf/profiles")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    let files = section(SIMULATE, ".Sh FILES");
    let named = names(files, "Pa").into_iter().map(|path| path.rsplit('/').next().expect("a name").to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), shipped);
}

// All pages

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        fs::read_dir(root().join("man")).expect("man").map(|entry| entry.expect("an entry").path()).collect();
    pages.sort();
    pages
}

fn mandoc(arguments: &[&str], page: &Path) -> std::process::Output {
    #[expect(clippy::disallowed_methods, reason = "a test runs the tool it is about")]
    let output = Command::new("mandoc").args(arguments).arg(page).output();
    output.unwrap_or_else(|error| panic!("mandoc: {error}; scripts/setup installs it"))
}

#[test]
fn mandoc_has_nothing_to_say_about_the_pages() {
    for page in pages() {
        let lint = mandoc(&["-T", "lint", "-W", "warning"], &page);
        let said = String::from_utf8_lossy(&lint.stdout);
        assert!(lint.status.success() && said.is_empty(), "{}:\n{said}", page.display());
    }
}

#[test]
fn no_line_of_a_page_is_wider_than_a_terminal() {
    for page in pages() {
        let shown = String::from_utf8(mandoc(&["-T", "utf8", "-O", "width=80"], &page).stdout).expect("UTF-8");
        assert!(shown.lines().count() > 100, "{} shows {} lines", page.display(), shown.lines().count());
        for line in shown.lines() {
            // Bold and underlined characters are struck twice, with a backspace between.
            let width = line.chars().count() - 2 * line.matches('\u{8}').count();
            assert!(width <= 80, "{}, {width} columns: {line}", page.display());
        }
    }
}

#[test]
fn pages_that_are_referred_to_exist() {
    let ours: BTreeSet<String> =
        pages().iter().map(|page| page.file_name().expect("a name").to_str().expect("text").to_owned()).collect();
    let mut texts: Vec<(String, String)> =
        pages().iter().map(|page| (page.display().to_string(), fs::read_to_string(page).expect("a text"))).collect();
    texts.push(("README.md".to_owned(), fs::read_to_string(root().join("README.md")).expect("README.md")));
    for (name, text) in &texts {
        for line in text.lines().filter_map(|line| line.strip_prefix(".Xr kurultai")) {
            let mut words = line.split(' ');
            let page = format!("kurultai{}.{}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
            assert!(ours.contains(&page), "{name} refers to {page}");
        }
        for page in text.split("(man/").skip(1).filter_map(|rest| rest.split_once(')')).map(|(page, _)| page) {
            assert!(ours.contains(page), "{name} refers to man/{page}");
        }
    }
}
