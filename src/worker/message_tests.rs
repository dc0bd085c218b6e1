//! Every message type, well-formed and not.

use super::*;

const T1: TaskId = TaskId(1);

#[test]
fn every_message_is_understood() {
    let table: [(&str, Message<'_>); 16] = [
        (r#"{"type":"READY","protocol":1}"#, Message::Ready { can_checkpoint: false, can_cancel: false }),
        (
            r#" {"capabilities":["cancel","fly","checkpoint"],"protocol":1,"type":"READY"} "#,
            Message::Ready { can_checkpoint: true, can_cancel: true },
        ),
        (
            r#"{"type":"PROGRESS","taskId":"t-1","percent":12.5,"message":"a\nb","checkpoint":{"at": [1]}}"#,
            Message::Progress {
                task: T1,
                percent: 12.5,
                text: Some("a\nb".into()),
                checkpoint: Some(r#"{"at": [1]}"#),
            },
        ),
        (
            r#"{"type":"PROGRESS","taskId":"t-1","percent":250,"message":null,"checkpoint":null}"#,
            Message::Progress { task: T1, percent: 100.0, text: None, checkpoint: None },
        ),
        (
            r#"{"type":"CHUNK","taskId":"t-1","seq":0,"data":"h\u00e9"}"#,
            Message::Chunk { task: T1, seq: 0, data: "hé".as_bytes().into() },
        ),
        (
            r#"{"type":"CHUNK","taskId":"t-1","seq":7,"data":"AP8=","encoding":"base64"}"#,
            Message::Chunk { task: T1, seq: 7, data: b"\0\xff"[..].into() },
        ),
        (
            r#"{"type":"COMPLETE","taskId":"t-1","result":{"b": 1e400, "a":"\u0041" }}"#,
            Message::Complete { task: T1, result: Some(r#"{"b": 1e400, "a":"\u0041" }"#) },
        ),
        (r#"{"type":"COMPLETE","taskId":"t-1","error":17,"level":[]}"#, Message::Complete { task: T1, result: None }),
        (
            r#"{"type":"FAILED","taskId":"t-1","error":"no","stack":"at x","retryable":true}"#,
            Message::Failed { task: T1, error: "no".into(), stack: Some("at x".into()), retryable: true },
        ),
        (
            r#"{"type":"FAILED","taskId":"t-1","error":""}"#,
            Message::Failed { task: T1, error: "".into(), stack: None, retryable: false },
        ),
        (r#"{"type":"PREEMPTED","taskId":"t-1"}"#, Message::Preempted { task: T1, checkpoint: None }),
        (
            r#"{"type":"MEMORY","heapUsed":1,"heapTotal":2,"rss":3,"external":4,"arrayBuffers":5}"#,
            Message::Memory(HeapReading { heap_used: 1, heap_total: 2, rss: 3, external: 4, array_buffers: 5 }),
        ),
        (
            r#"{"type":"BREAKER","name":"sync","op":"acquire"}"#,
            Message::Breaker { name: "sync".into(), op: BreakerOp::Acquire },
        ),
        (
            r#"{"type":"BREAKER","name":"sync","op":"failure","permit":"p-3"}"#,
            Message::Breaker { name: "sync".into(), op: BreakerOp::Failure(PermitId(3)) },
        ),
        (
            r#"{"type":"LOG","level":"warn","message":"hot"}"#,
            Message::Log { level: log::Level::Warn, text: "hot".into() },
        ),
        (r#"{"type":"HUM","taskId":17}"#, Message::Unknown("HUM".into())),
    ];
    for (line, message) in table {
        assert_eq!(parse(line.as_bytes()), Ok(message), "{line}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let big = format!(r#"{{"type":"PREEMPTED","taskId":"t-1","checkpoint":"{}"}}"#, "x".repeat(CHECKPOINT_MAX));
    let long_name = format!(r#"{{"type":"BREAKER","op":"acquire","name":"{}"}}"#, "x".repeat(300));
    let deep = "[".repeat(200_000);
    let table: [(&[u8], &str); 31] = [
        (b"", "no JSON object"),
        (b"hello", "no JSON object"),
        (b"[\"READY\"]", "no JSON object"),
        (b"\"x\"", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{", "EOF while parsing"),
        (b"{\"type\":\"READY\",\"protocol\":1} x", "trailing characters"),
        (b"{\"type\":\"READY\",\"type\":\"READY\",\"protocol\":1}", "duplicate field `type`"),
        (b"{\"type\":\"LOG\",\"message\":\"\xff\"}", "not UTF-8"),
        (deep.as_bytes(), "no JSON object"),
        (b"{\"taskId\":\"t-1\"}", "without a type"),
        (b"{\"type\":7}", "type: invalid type: integer"),
        (b"{\"type\":\"READY\"}", "protocol is missing"),
        (b"{\"type\":\"READY\",\"protocol\":2}", "it speaks protocol 2, this daemon speaks 1"),
        (b"{\"type\":\"READY\",\"protocol\":1,\"capabilities\":\"all\"}", "capabilities: invalid type"),
        (b"{\"type\":\"PROGRESS\",\"taskId\":\"t-1\"}", "percent is missing"),
        (b"{\"type\":\"PROGRESS\",\"taskId\":\"t-1\",\"percent\":\"half\"}", "percent: invalid type"),
        (b"{\"type\":\"COMPLETE\"}", "bad COMPLETE message: taskId is missing"),
        (b"{\"type\":\"COMPLETE\",\"taskId\":\"t-01\"}", "is no task id"),
        (b"{\"type\":\"COMPLETE\",\"taskId\":1}", "taskId: invalid type"),
        (b"{\"type\":\"CHUNK\",\"taskId\":\"t-1\",\"data\":\"\"}", "seq is missing"),
        (b"{\"type\":\"CHUNK\",\"taskId\":\"t-1\",\"seq\":-1,\"data\":\"\"}", "seq: invalid value"),
        (b"{\"type\":\"CHUNK\",\"taskId\":\"t-1\",\"seq\":0,\"data\":\"A\",\"encoding\":\"base64\"}", "no base64"),
        (b"{\"type\":\"CHUNK\",\"taskId\":\"t-1\",\"seq\":0,\"data\":\"\",\"encoding\":\"rot13\"}", "neither utf8"),
        (b"{\"type\":\"FAILED\",\"taskId\":\"t-1\"}", "error is missing"),
        (big.as_bytes(), "checkpoint is 262146 bytes long, over 262144"),
        (b"{\"type\":\"MEMORY\",\"rss\":-1}", "rss: invalid value"),
        (b"{\"type\":\"BREAKER\",\"name\":\"a\",\"op\":\"success\",\"permit\":\"7\"}", "is no permit"),
        (b"{\"type\":\"BREAKER\",\"name\":\"a\",\"op\":\"open\"}", "is none of acquire"),
        (long_name.as_bytes(), "name is 300 bytes long"),
        (b"{\"type\":\"LOG\",\"level\":\"loud\",\"message\":\"x\"}", "is none of error"),
    ];
    for (line, expected) in table {
        let start = String::from_utf8_lossy(&line[..line.len().min(80)]);
        let error = parse(line).expect_err(&start);
        assert!(error.contains(expected), "{start}: {error:?} does not say {expected:?}");
    }
}
