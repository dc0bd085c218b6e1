//! kurultai-protocol(7).

use std::collections::BTreeSet;

use kurultai::core::order::{CancelReason, PreemptReason};

use super::page::{PROTOCOL, entries, section, source};

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
