//! What workers are told, one line a message: kurultai-protocol(7).

use std::io::Write;
use std::time::Duration;

use crate::core::ids::{TaskId, WorkerId};
use crate::core::order::{BreakerAnswer, CancelReason, PreemptReason};
use crate::core::settings::AgentSettings;
use crate::core::task::{Assignment, PayloadKind};

use super::message::PROTOCOL;

const MIB: u64 = 1024 * 1024;

/// A payload as the TASK message carries it.
#[derive(Debug, PartialEq, Eq)]
pub enum Carried<'a> {
    /// One JSON value.
    Json(&'a [u8]),
    Text(&'a str),
    /// The path of a read-only file.
    Path(&'a str),
}

pub fn hello(out: &mut Vec<u8>, worker: WorkerId, agent: &AgentSettings) {
    begin(out, "HELLO");
    number_field(out, "protocol", format_args!("[{PROTOCOL}]"));
    string_field(out, "workerId", &worker.to_string());
    string_field(out, "agent", &agent.name);
    number_field(out, "softMemoryLimitMB", format_args!("{}", agent.soft_limit_bytes / MIB));
    number_field(out, "hardMemoryLimitMB", format_args!("{}", agent.hard_limit_bytes / MIB));
    end(out);
}

/// `checkpoint` is one JSON value. The payload is the last field of the line.
pub fn task(out: &mut Vec<u8>, assignment: &Assignment, checkpoint: Option<&[u8]>, payload: &Carried<'_>) {
    let spec = &assignment.spec;
    begin(out, "TASK");
    string_field(out, "taskId", &assignment.task.to_string());
    string_field(out, "priority", spec.priority.name());
    let kind = match spec.payload_kind {
        PayloadKind::Json => "json",
        PayloadKind::Raw => "raw",
    };
    string_field(out, "payloadType", kind);
    number_field(out, "timeoutMs", format_args!("{}", spec.timeout.as_millis()));
    number_field(out, "attempt", format_args!("{}", assignment.attempt));
    string_field(out, "requestId", &spec.request_id);
    if let Some(checkpoint) = checkpoint {
        json_field(out, "checkpoint", checkpoint);
    }
    match payload {
        Carried::Json(json) => json_field(out, "payload", json),
        Carried::Text(text) => string_field(out, "payload", text),
        Carried::Path(path) => string_field(out, "payloadPath", path),
    }
    end(out);
}

pub fn cancel(out: &mut Vec<u8>, task: TaskId, reason: CancelReason) {
    begin(out, "CANCEL");
    string_field(out, "taskId", &task.to_string());
    string_field(out, "reason", reason.name());
    end(out);
}

pub fn preempt(out: &mut Vec<u8>, task: TaskId, reason: PreemptReason, checkpoint_timeout: Duration) {
    begin(out, "PREEMPT");
    string_field(out, "taskId", &task.to_string());
    string_field(out, "reason", reason.name());
    number_field(out, "checkpointTimeoutMs", format_args!("{}", checkpoint_timeout.as_millis()));
    end(out);
}

pub fn collect_garbage(out: &mut Vec<u8>) {
    begin(out, "GC");
    end(out);
}

pub fn breaker_state(out: &mut Vec<u8>, name: &str, answer: BreakerAnswer) {
    begin(out, "BREAKER_STATE");
    string_field(out, "name", name);
    match answer {
        BreakerAnswer::Permit(permit) => string_field(out, "permit", &permit.to_string()),
        BreakerAnswer::RetryAfter(wait) => number_field(out, "retryAfterMs", format_args!("{}", wait.as_millis())),
    }
    end(out);
}

pub fn shutdown(out: &mut Vec<u8>) {
    begin(out, "SHUTDOWN");
    end(out);
}

fn begin(out: &mut Vec<u8>, kind: &str) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.push(b'"');
}

fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"}\n");
}

fn name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn string_field(out: &mut Vec<u8>, field: &str, text: &str) {
    name(out, field);
    serde_json::to_writer(out, text).expect("a string is written to memory");
}

fn number_field(out: &mut Vec<u8>, field: &str, value: std::fmt::Arguments<'_>) {
    name(out, field);
    out.write_fmt(value).expect("a number is written to memory");
}

/// JSON text as it is, on one line: outside of strings a line break is white space, inside it cannot occur.
fn json_field(out: &mut Vec<u8>, field: &str, json: &[u8]) {
    name(out, field);
    out.extend(json.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::ids::PermitId;
    use crate::core::task::{Payload, Priority, TaskSpec};

    fn line(compose: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        compose(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_task_is_one_line_and_its_payload_the_last_field() {
        let assignment = Assignment {
            task: TaskId(4),
            spec: Arc::new(TaskSpec {
                agent: Arc::from("a"),
                priority: Priority::High,
                payload: Payload::Inline(Arc::from(&b""[..])),
                payload_kind: PayloadKind::Json,
                timeout: Duration::from_millis(1500),
                max_retries: 0,
                preemptible: true,
                skippable: false,
                idempotency_key: None,
                request_id: Arc::from("r\"1"),
                schedule: None,
            }),
            attempt: 2,
            has_checkpoint: true,
            worker: WorkerId(1),
        };
        assert_eq!(
            line(|out| task(out, &assignment, Some(b"{\"at\":3}"), &Carried::Json(b"{\n\"a\":\r\n1}"))),
            "{\"type\":\"TASK\",\"taskId\":\"t-4\",\"priority\":\"high\",\"payloadType\":\"json\",\"timeoutMs\":1500,\
             \"attempt\":2,\"requestId\":\"r\\\"1\",\"checkpoint\":{\"at\":3},\"payload\":{ \"a\":  1}}\n"
        );
        let text = line(|out| task(out, &assignment, None, &Carried::Text("two\nlines")));
        assert!(text.ends_with("\"requestId\":\"r\\\"1\",\"payload\":\"two\\nlines\"}\n"), "{text}");
        let path = line(|out| task(out, &assignment, None, &Carried::Path("/p/t-4")));
        assert!(path.ends_with(",\"payloadPath\":\"/p/t-4\"}\n"), "{path}");
    }

    #[test]
    fn short_messages_are_what_the_protocol_says() {
        let table: [(String, &str); 6] = [
            (
                line(|out| cancel(out, TaskId(4), CancelReason::Timeout)),
                r#"{"type":"CANCEL","taskId":"t-4","reason":"timeout"}"#,
            ),
            (
                line(|out| preempt(out, TaskId(4), PreemptReason::MemoryPressure, Duration::from_secs(5))),
                r#"{"type":"PREEMPT","taskId":"t-4","reason":"memory_pressure","checkpointTimeoutMs":5000}"#,
            ),
            (line(collect_garbage), r#"{"type":"GC"}"#),
            (
                line(|out| breaker_state(out, "b", BreakerAnswer::Permit(PermitId(9)))),
                r#"{"type":"BREAKER_STATE","name":"b","permit":"p-9"}"#,
            ),
            (
                line(|out| breaker_state(out, "b", BreakerAnswer::RetryAfter(Duration::from_secs(1)))),
                r#"{"type":"BREAKER_STATE","name":"b","retryAfterMs":1000}"#,
            ),
            (line(shutdown), r#"{"type":"SHUTDOWN"}"#),
        ];
        for (line, expected) in table {
            assert_eq!(line, format!("{expected}\n"));
        }
    }
}
