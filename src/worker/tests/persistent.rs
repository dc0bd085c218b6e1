//! Workers that are kept: the protocol spoken well, and every way to break it.

use std::sync::Arc;
use std::time::Duration;

use super::bench::*;
use crate::core::ids::PermitId;
use crate::core::limits::LINE_MAX;
use crate::core::order::{BreakerAnswer, BreakerOp, CancelReason, HeapReading, Order, PreemptReason, Report};
use crate::core::settings::AgentMode;
use crate::core::task::{Payload, PayloadKind, ResultPlace, ResultRef, Stored};

fn inline(text: &str, is_json: bool) -> ResultRef {
    ResultRef { place: ResultPlace::Inline(Arc::from(text.as_bytes())), is_json }
}

/// Prints what it reads, as the result of task t-7.
const ECHO: &str = r#"while read -r line; do printf '{"type":"COMPLETE","taskId":"t-7","result":%s}\n' "$line"; done"#;

#[test]
fn a_task_goes_out_and_its_answer_comes_back_as_it_was_written() {
    let mut bench = Bench::new();
    let worker = bench.ready(ECHO);
    for payload in ["{\n \"b\": 1e400,\r\n \"a\": 0}", "17"] {
        bench.assign(worker, task(payload.as_bytes()));
        let line = payload.replace(['\n', '\r'], " ");
        let sent = format!(
            "{{\"type\":\"TASK\",\"taskId\":\"t-7\",\"priority\":\"normal\",\"payloadType\":\"json\",\"timeoutMs\":60000,\
             \"attempt\":1,\"requestId\":\"r-1\",\"payload\":{line}}}"
        );
        let expected = Report::Completed { task: TASK, result: inline(&sent, true) };
        assert_eq!(bench.next(worker), expected);
    }
    bench.send(worker, Order::Shutdown);
    // The echo answers SHUTDOWN with a result for no task, which a worker must not do, even if it ends at once.
    assert!(matches!(bench.next(worker), Report::ProtocolError { .. }));
    bench.exited(worker);
}

#[test]
fn a_payload_goes_by_value_or_by_path() {
    let mut bench = Bench::new();
    let script = r#"while read -r line; do case $line in *SHUTDOWN*) exit 0;; esac
        line=${line##*requestId\":\"r-1\",}
        printf '{"type":"COMPLETE","taskId":"t-7","result":{%s}\n' "$line"; done"#;
    let worker = bench.ready(script);
    let path = bench.files.payload_path(TASK);
    let by_path = format!("{{\"payloadPath\":\"{}\"}}", path.display());
    let filed = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Payload::File(Stored::unchecked(bytes.len() as u64))
    };
    let small = |bytes: &[u8]| Payload::Inline(Arc::from(bytes));
    let medium = format!("\"{}\"", "m".repeat(500));
    for (payload, kind, expected) in [
        (small(b"[1]"), PayloadKind::Json, "{\"payload\":[1]}".to_owned()),
        (small(b"a\n\"b"), PayloadKind::Raw, r#"{"payload":"a\n\"b"}"#.to_owned()),
        (filed(medium.as_bytes()), PayloadKind::Json, format!("{{\"payload\":{medium}}}")),
        (small(b"\xff\x00"), PayloadKind::Raw, by_path.clone()),
    ] {
        bench.assign(worker, task_with(payload.clone(), kind));
        let expected = Report::Completed { task: TASK, result: inline(&expected, true) };
        assert_eq!(bench.next(worker), expected, "{payload:?}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"\xff\x00", "a small payload that is no text is put into a file");
    let large = filed(&vec![b'x'; 65 * 1024]);
    bench.assign(worker, task_with(large, PayloadKind::Raw));
    assert_eq!(bench.next(worker), Report::Completed { task: TASK, result: inline(&by_path, true) });

    std::fs::remove_file(&path).unwrap();
    bench.assign(worker, task_with(Payload::File(Stored::unchecked(9)), PayloadKind::Json));
    match bench.next(worker) {
        Report::Failed { task: TASK, error, retryable: false, .. } => {
            assert!(error.contains("cannot read the payload"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // It is as free as before.
    bench.assign(worker, task(b"2"));
    assert!(matches!(bench.next(worker), Report::Completed { .. }));
    bench.send(worker, Order::Shutdown);
    assert_eq!(bench.exited(worker).status, Some(0));
}

#[test]
fn every_message_becomes_its_report() {
    let mut bench = Bench::new();
    let worker = bench.ready(
        r#"read -r task
        say() { printf '%s\n' "$1"; }
        say '{"type":"LOG","level":"info","message":"hello"}'
        say '{"type":"HUM","new":"in a later version"}'
        say '{"type":"MEMORY","heapUsed":5,"rss":9}'
        say '{"type":"BREAKER","name":"sync","op":"acquire"}'
        read -r answer; case $answer in *'"name":"sync","permit":"p-3"'*) ;; *) exit 9;; esac
        say '{"type":"BREAKER","name":"sync","op":"success","permit":"p-3"}'
        say '{"type":"PROGRESS","taskId":"t-7","percent":10,"message":"begun"}'
        say '{"type":"PROGRESS","taskId":"t-7","percent":20,"checkpoint":{"at":20}}'
        say '{"type":"PROGRESS","taskId":"t-7","percent":100}'
        say '{"type":"FAILED","taskId":"t-7","error":"no","stack":"here","retryable":true}'
        read -r task; read -r preempt
        case $preempt in *'"reason":"priority","checkpointTimeoutMs":5000'*) ;; *) exit 9;; esac
        say '{"type":"PREEMPTED","taskId":"t-7","checkpoint":[1,2]}'
        read -r task; case $task in *'"checkpoint":[1,2],"payload"'*) ;; *) exit 9;; esac
        read -r cancel; case $cancel in *'"CANCEL","taskId":"t-7","reason":"drain"'*) ;; *) exit 9;; esac
        say '{"type":"CHUNK","taskId":"t-7","seq":0,"data":"a\n"}'
        say '{"type":"CHUNK","taskId":"t-7","seq":1,"data":"AP8=","encoding":"base64"}'
        say '{"type":"COMPLETE","taskId":"t-7"}'
        read -r gc; case $gc in *'"GC"'*) ;; *) exit 9;; esac
        read -r shutdown; read -r nothing && exit 9
        exit 0"#,
    );
    bench.assign(worker, task(b"1"));
    let reading = HeapReading { heap_used: 5, rss: 9, ..HeapReading::default() };
    assert_eq!(bench.next(worker), Report::Memory(reading));
    assert_eq!(bench.next(worker), Report::Breaker { name: Arc::from("sync"), op: BreakerOp::Acquire });
    let answer = BreakerAnswer::Permit(PermitId(3));
    bench.send(worker, Order::BreakerState { name: Arc::from("sync"), answer });
    let op = BreakerOp::Success(PermitId(3));
    assert_eq!(bench.next(worker), Report::Breaker { name: Arc::from("sync"), op });
    let progress = |percent: f64, message: Option<&str>, checkpoint: bool| Report::Progress {
        task: TASK,
        percent,
        message: message.map(Box::from),
        checkpoint,
    };
    assert_eq!(bench.next(worker), progress(10.0, Some("begun"), false));
    assert_eq!(bench.next(worker), progress(20.0, None, true));
    assert_eq!(bench.files.read_checkpoint(TASK).unwrap(), b"{\"at\":20}");
    assert_eq!(bench.next(worker), progress(100.0, None, false));
    let failed = Report::Failed { task: TASK, error: "no".into(), stack: Some("here".into()), retryable: true };
    assert_eq!(bench.next(worker), failed);

    bench.assign(worker, task(b"1"));
    let preempt =
        |task| Order::Preempt { task, reason: PreemptReason::Priority, checkpoint_timeout: Duration::from_secs(5) };
    // One that was overtaken by the end of its task is not passed on.
    bench.send(worker, preempt(crate::core::ids::TaskId(6)));
    bench.send(worker, preempt(TASK));
    assert_eq!(bench.next(worker), Report::Preempted { task: TASK, checkpoint: true });

    let mut again = task(b"1");
    again.has_checkpoint = true;
    bench.assign(worker, again);
    bench.send(worker, Order::Cancel { task: TASK, reason: CancelReason::Drain });
    assert_eq!(bench.next(worker), Report::Completed { task: TASK, result: inline_bytes(b"a\n\0\xff") });
    bench.send(worker, Order::CollectGarbage);
    bench.send(worker, Order::Shutdown);
    assert_eq!(bench.exited(worker).status, Some(0));
}

fn inline_bytes(bytes: &[u8]) -> ResultRef {
    ResultRef { place: ResultPlace::Inline(Arc::from(bytes)), is_json: false }
}

#[test]
fn large_results_go_to_their_file() {
    let mut bench = Bench::new();
    let worker = bench.ready(
        r#"read -r task
        printf '{"type":"COMPLETE","taskId":"t-7","result":"'; head -c 900000 /dev/zero | tr '\0' x; printf '"}\n'
        read -r task
        piece=$(head -c 60000 /dev/zero | tr '\0' y)
        for seq in 0 1 2; do printf '{"type":"CHUNK","taskId":"t-7","seq":%s,"data":"%s"}\n' $seq "$piece"; done
        printf '{"type":"COMPLETE","taskId":"t-7"}\n'
        read -r shutdown"#,
    );
    for (bytes, is_json) in [(900_002, true), (180_000, false)] {
        bench.assign(worker, task(b"1"));
        let Report::Completed { task: TASK, result } = bench.next(worker) else { panic!("{bytes} bytes") };
        assert_eq!((result.bytes(), result.is_json, result.is_file()), (bytes, is_json, true));
        bench.files.keep_result(TASK).unwrap();
        assert_eq!(std::fs::metadata(bench.files.result_path(TASK)).unwrap().len(), bytes);
    }
}

#[test]
fn a_result_that_cannot_be_stored_fails_the_task_and_not_the_worker() {
    let mut bench = Bench::new();
    let worker = bench.ready(
        r#"piece=$(head -c 60000 /dev/zero | tr '\0' y)
        while read -r task; do
            printf '{"type":"CHUNK","taskId":"t-7","seq":0,"data":"%s"}\n' "$piece"
            printf '{"type":"CHUNK","taskId":"t-7","seq":1,"data":"%s"}\n' "$piece"
            printf '{"type":"COMPLETE","taskId":"t-7"}\n'
        done"#,
    );
    let (results, aside) = (bench.dir.path().join("results"), bench.dir.path().join("aside"));
    std::fs::rename(&results, &aside).unwrap();
    bench.assign(worker, task(b"1"));
    match bench.next(worker) {
        Report::Failed { task: TASK, error, retryable: false, .. } => {
            assert!(error.starts_with("cannot store the result: "), "{error}");
        }
        other => panic!("{other:?}"),
    }
    std::fs::rename(&aside, &results).unwrap();
    bench.assign(worker, task(b"1"));
    assert!(matches!(bench.next(worker), Report::Completed { .. }));
}

const NO_TASK: &str = "FAILED for t-7, but it has no task";

#[test]
fn a_breach_of_the_protocol_is_quoted_and_ends_the_worker() {
    let mut bench = Bench::new();
    let ready = r#"echo '{"type":"READY","protocol":1}'"#;
    let chunk = |seq: u32| format!(r#"echo '{{"type":"CHUNK","taskId":"t-7","seq":{seq},"data":"x"}}'"#);
    let table = [
        ("echo Traceback: no".to_owned(), "no JSON object: \"Traceback: no\""),
        ("echo".to_owned(), "no JSON object: \"\""),
        (r#"echo '{"type":"LOG","level":"info","message":"x"}'"#.to_owned(), "a message before READY"),
        (r#"echo '{"type":"READY","protocol":2}'"#.to_owned(), "it speaks protocol 2, this daemon speaks 1"),
        (format!("{ready}; {ready}"), "READY for a second time"),
        (format!("{ready}; echo '{{'"), "EOF while parsing"),
        (format!("{ready}; tr '\\0' x </dev/zero"), "a line over 1048576 bytes: \"xxx"),
        (format!("{ready}; exec >&-; sleep 1000"), "it closed its standard output, and lives"),
        (format!("{ready}; read -r l; read -r l; {}", chunk(1)), "CHUNK with seq 1 where 0 was due"),
        (format!("{ready}; read -r l; read -r l; {}; {}", chunk(0), chunk(0)), "CHUNK with seq 0 where 1 was due"),
        (
            format!(r#"{ready}; read -r l; read -r l; echo '{{"type":"COMPLETE","taskId":"t-8"}}'"#),
            "COMPLETE for t-8, but its task is t-7",
        ),
        (format!(r#"{ready}; echo '{{"type":"FAILED","taskId":"t-7","error":"x"}}'"#), NO_TASK),
        (
            format!(
                "{ready}; read -r l; read -r l; p=$(head -c 500000 /dev/zero | tr '\\0' y); for s in 0 1 2 3 4 5 6; do \
                 echo '{{\"type\":\"CHUNK\",\"taskId\":\"t-7\",\"seq\":'$s',\"data\":\"'$p'\"}}'; done"
            ),
            "raise spool.retention_mb",
        ),
        (
            format!(
                "{ready}; read -r l; read -r l; {}; echo '{{\"type\":\"COMPLETE\",\"taskId\":\"t-7\",\"result\":1}}'",
                chunk(0)
            ),
            "COMPLETE with a result after CHUNKs",
        ),
    ];
    for (script, expected) in table {
        let worker = bench.spawn(sh(AgentMode::Persistent, &format!("{script}; sleep 1000")), None);
        bench.spawned(worker);
        let mut report = bench.next(worker);
        if let Report::Ready { .. } = report {
            if expected != NO_TASK {
                bench.assign(worker, task(b"1"));
            }
            report = bench.next(worker);
        }
        match report {
            Report::ProtocolError { message } => {
                assert!(message.contains(expected), "{script}: {message:?} does not say {expected:?}");
                assert!(message.len() < 800, "{script}: {message:?}");
            }
            other => panic!("{script}: {other:?}"),
        }
        assert_eq!(bench.exited(worker).signal, Some(libc::SIGKILL), "{script}");
        assert!(bench.has_no_result(), "{script}");
    }
}

#[test]
fn a_long_value_of_the_wrong_type_does_not_make_a_long_message() {
    let mut bench = Bench::new();
    let script = r#"printf '{"type":"READY","protocol":"%050000d"}\n' 0; sleep 1000"#;
    let worker = bench.spawn(sh(AgentMode::Persistent, script), None);
    bench.spawned(worker);
    match bench.next(worker) {
        Report::ProtocolError { message } => {
            assert!(message.starts_with("a bad READY message: protocol: invalid type: string"), "{message}");
            assert!(message.len() < 800, "{} bytes", message.len());
        }
        other => panic!("{other:?}"),
    }
    bench.exited(worker);
}

#[test]
fn a_worker_that_does_not_read_is_not_waited_for() {
    let mut bench = Bench::new();
    let worker = bench.ready("exec sleep 1000");
    let name: Arc<str> = Arc::from("x".repeat(LINE_MAX / 10));
    for _ in 0..12 {
        let answer = BreakerAnswer::Permit(PermitId(1));
        bench.send(worker, Order::BreakerState { name: Arc::clone(&name), answer });
    }
    match bench.next(worker) {
        Report::ProtocolError { message } => assert!(message.contains("does not read its standard input"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.exited(worker).signal, Some(libc::SIGKILL));
}

#[test]
fn progress_is_thinned_and_the_last_word_kept() {
    let mut bench = Bench::new();
    let worker = bench.ready(
        r#"read -r task; i=0
        while [ $i -lt 99 ]; do i=$((i+1)); echo '{"type":"PROGRESS","taskId":"t-7","percent":'$i'}'; done
        read -r shutdown"#,
    );
    bench.assign(worker, task(b"1"));
    let mut percents = Vec::new();
    while percents.last() != Some(&99.0) {
        match bench.next(worker) {
            Report::Progress { percent, checkpoint: false, .. } => percents.push(percent),
            other => panic!("{other:?}"),
        }
    }
    assert!(percents.is_sorted() && percents[0] == 1.0, "{percents:?}");
}

#[test]
fn standard_error_explains_and_does_not_flood() {
    let mut bench = Bench::new();
    let worker = bench.ready("yes | head -c 300000 >&2; echo the reason >&2; exit 4");
    let exit = bench.exited(worker);
    assert_eq!(exit.status, Some(4));
    assert!(exit.stderr_tail.ends_with("y\nthe reason\n") && exit.stderr_tail.len() <= 2048, "{exit:?}");
}

#[test]
fn a_last_message_before_the_exit_counts() {
    let mut bench = Bench::new();
    let worker = bench.ready(r#"read -r task; echo '{"type":"COMPLETE","taskId":"t-7","result":1}'"#);
    bench.assign(worker, task(b"1"));
    assert_eq!(bench.next(worker), Report::Completed { task: TASK, result: inline("1", true) });
    assert_eq!(bench.exited(worker).status, Some(0));
}
