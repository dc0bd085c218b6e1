//! The journal's lines: what the core's records look like on disk, as JSON that `jq` can read. Apart from the core's own
//! types, so that those may change and an old journal still reads.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::core::attempts::Attempt;
use crate::core::breaker::{BreakerMemory, RememberedPhase};
use crate::core::event::Record;
use crate::core::ids::{TaskId, WorkerId};
use crate::core::ledger::FinishedTask;
use crate::core::task::{
    Failure, FailureCode, Outcome, Payload, PayloadKind, Priority, ResultPlace, ResultRef, Stored, TaskSpec,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub(super) enum Line {
    /// The first line of a journal: numbers below `next` have been given out.
    Begin {
        next: u64,
    },
    Accepted {
        task: u64,
        at: u64,
        #[serde(flatten)]
        spec: Spec,
    },
    Started {
        task: u64,
        at: u64,
    },
    Returned {
        task: u64,
        retries: u32,
        #[serde(skip_serializing_if = "is_zero", default)]
        memory_deaths: u32,
        #[serde(skip_serializing_if = "is_false", default)]
        by_memory: bool,
        preemptions: u32,
        preempted: bool,
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        attempts: Vec<Tried>,
    },
    Finished {
        task: u64,
        created: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        started: Option<u64>,
        at: u64,
        attempt: u32,
        preemptions: u32,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        run_us: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        peak_rss: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        worker: Option<u64>,
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        attempts: Vec<Tried>,
        end: End,
        #[serde(flatten)]
        spec: Box<Spec>,
    },
    Footprint {
        agent: String,
        peak_bytes: u64,
    },
    /// Somebody wants a running task gone.
    Cancel {
        task: u64,
    },
    Breaker {
        name: String,
        state: Circuit,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        until: Option<u64>,
        openings: usize,
    },
    Forgotten {
        task: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Circuit {
    Closed,
    HalfOpen,
    Open,
    /// By an operator.
    ForcedOpen,
}

/// A failed attempt.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tried {
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    started: Option<u64>,
    at: u64,
    code: String,
    message: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    agent: String,
    priority: u8,
    payload: Data,
    json: bool,
    timeout_ms: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    max_retries: u32,
    preemptible: bool,
    skippable: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    key: Option<String>,
    request: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    schedule: Option<String>,
}

/// Bytes in the line itself, as text where they are text, or the size of a file of the task.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Data {
    Text(String),
    Base64(String),
    File(Held),
}

/// A file, with the checksum of it. Format 1 had the size alone, and so has what is only remembered of one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Held {
    Checked { bytes: u64, crc: String },
    Bytes(u64),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", rename_all_fields = "camelCase")]
pub(super) enum End {
    Completed {
        result: Data,
        json: bool,
    },
    Failed {
        code: String,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        stack: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        exit_status: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        signal: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        stderr_tail: Option<String>,
    },
    Cancelled,
    Skipped,
    Evicted,
}

/// A journal's line says something no daemon wrote.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("it begins a journal and is no record")]
    Begin,
    #[error("priority {0} is none of 0 to 4")]
    Priority(u8),
    #[error("no failure is called {0:?}")]
    FailureCode(String),
    #[error("checksum {0:?} is not eight hexadecimal digits")]
    Checksum(String),
    #[error("a circuit breaker is open and nobody knows until when")]
    Circuit,
    #[error("a payload is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
}

impl Line {
    pub(super) fn of(record: &Record) -> Line {
        match record {
            Record::Accepted { task, spec, created_ms } => {
                Line::Accepted { task: task.0, at: *created_ms, spec: Spec::of(spec) }
            }
            Record::Started { task, started_ms } => Line::Started { task: task.0, at: *started_ms },
            Record::Returned { task, retries, memory_deaths, by_memory, preemptions, preempted, attempts } => {
                Line::Returned {
                    task: task.0,
                    retries: *retries,
                    memory_deaths: *memory_deaths,
                    by_memory: *by_memory,
                    preemptions: *preemptions,
                    preempted: *preempted,
                    attempts: attempts.iter().map(Tried::of).collect(),
                }
            }
            Record::Footprint { agent, peak_bytes } => {
                Line::Footprint { agent: agent.to_string(), peak_bytes: *peak_bytes }
            }
            Record::CancelRequested { task } => Line::Cancel { task: task.0 },
            Record::Breaker { name, memory } => {
                let (state, until) = match memory.phase {
                    RememberedPhase::Closed => (Circuit::Closed, None),
                    RememberedPhase::HalfOpen => (Circuit::HalfOpen, None),
                    RememberedPhase::Open { until_ms } => (Circuit::Open, Some(until_ms)),
                    RememberedPhase::Forced => (Circuit::ForcedOpen, None),
                };
                Line::Breaker { name: name.to_string(), state, until, openings: memory.openings }
            }
            Record::Finished(task) => Line::Finished {
                task: task.id.0,
                created: task.created_ms,
                started: task.started_ms,
                at: task.finished_ms,
                attempt: task.attempt,
                preemptions: task.preemptions,
                run_us: task.run_time.map(|time| time.as_micros() as u64),
                peak_rss: task.peak_rss_bytes,
                worker: task.worker.map(|worker| worker.0),
                attempts: task.attempts.iter().map(Tried::of).collect(),
                end: End::of(&task.outcome),
                spec: Box::new(Spec::of(&task.spec)),
            },
            Record::Forgotten { task } => Line::Forgotten { task: task.0 },
        }
    }

    /// # Errors
    ///
    /// It says what no daemon writes. A first line is no record.
    pub(super) fn into_record(self) -> Result<Record, LineError> {
        Ok(match self {
            Line::Begin { .. } => return Err(LineError::Begin),
            Line::Accepted { task, at, spec } => {
                Record::Accepted { task: TaskId(task), spec: Arc::new(spec.into_spec()?), created_ms: at }
            }
            Line::Started { task, at } => Record::Started { task: TaskId(task), started_ms: at },
            Line::Returned { task, retries, memory_deaths, by_memory, preemptions, preempted, attempts } => {
                Record::Returned {
                    task: TaskId(task),
                    retries,
                    memory_deaths,
                    by_memory,
                    preemptions,
                    preempted,
                    attempts: attempts.into_iter().map(Tried::into_attempt).collect::<Result<_, _>>()?,
                }
            }
            Line::Cancel { task } => Record::CancelRequested { task: TaskId(task) },
            Line::Breaker { name, state, until, openings } => {
                let phase = match state {
                    Circuit::Closed => RememberedPhase::Closed,
                    Circuit::HalfOpen => RememberedPhase::HalfOpen,
                    Circuit::Open => RememberedPhase::Open { until_ms: until.ok_or(LineError::Circuit)? },
                    Circuit::ForcedOpen => RememberedPhase::Forced,
                };
                Record::Breaker { name: Arc::from(name), memory: BreakerMemory { phase, openings } }
            }
            Line::Footprint { agent, peak_bytes } => Record::Footprint { agent: Arc::from(agent), peak_bytes },
            Line::Finished {
                task,
                created,
                started,
                at,
                attempt,
                preemptions,
                run_us,
                peak_rss,
                worker,
                attempts,
                end,
                spec,
            } => Record::Finished(Arc::new(FinishedTask {
                id: TaskId(task),
                spec: spec.into_spec()?,
                created_ms: created,
                started_ms: started,
                finished_ms: at,
                attempt,
                preemptions,
                run_time: run_us.map(Duration::from_micros),
                peak_rss_bytes: peak_rss,
                worker: worker.map(WorkerId),
                attempts: attempts.into_iter().map(Tried::into_attempt).collect::<Result<_, _>>()?,
                outcome: end.into_outcome()?,
            })),
            Line::Forgotten { task } => Record::Forgotten { task: TaskId(task) },
        })
    }
}

impl Tried {
    fn of(attempt: &Attempt) -> Tried {
        Tried {
            attempt: attempt.attempt,
            started: attempt.started_ms,
            at: attempt.ended_ms,
            code: attempt.code.name().to_string(),
            message: attempt.message.to_string(),
        }
    }

    fn into_attempt(self) -> Result<Attempt, LineError> {
        let Tried { attempt, started, at, code, message } = self;
        Ok(Attempt {
            attempt,
            started_ms: started,
            ended_ms: at,
            code: failure_code(code)?,
            message: message.into_boxed_str(),
        })
    }
}

fn failure_code(code: String) -> Result<FailureCode, LineError> {
    FailureCode::ALL.into_iter().find(|known| known.name() == code).ok_or(LineError::FailureCode(code))
}

impl Spec {
    fn of(spec: &TaskSpec) -> Spec {
        Spec {
            agent: spec.agent.to_string(),
            priority: spec.priority.index() as u8,
            payload: match &spec.payload {
                Payload::Inline(bytes) => Data::of(bytes),
                Payload::File(stored) => Data::File(Held::of(*stored)),
            },
            json: spec.payload_kind == PayloadKind::Json,
            timeout_ms: spec.timeout.as_millis() as u64,
            max_retries: spec.max_retries,
            preemptible: spec.preemptible,
            skippable: spec.skippable,
            key: spec.idempotency_key.as_ref().map(|key| key.to_string()),
            request: spec.request_id.to_string(),
            schedule: spec.schedule.as_ref().map(|name| name.to_string()),
        }
    }

    fn into_spec(self) -> Result<TaskSpec, LineError> {
        Ok(TaskSpec {
            agent: Arc::from(self.agent),
            priority: *Priority::ALL.get(usize::from(self.priority)).ok_or(LineError::Priority(self.priority))?,
            payload: match self.payload.into_bytes()? {
                Ok(bytes) => Payload::Inline(Arc::from(bytes)),
                Err(stored) => Payload::File(stored),
            },
            payload_kind: if self.json { PayloadKind::Json } else { PayloadKind::Raw },
            timeout: Duration::from_millis(self.timeout_ms),
            max_retries: self.max_retries,
            preemptible: self.preemptible,
            skippable: self.skippable,
            idempotency_key: self.key.map(Arc::from),
            request_id: Arc::from(self.request),
            schedule: self.schedule.map(Arc::from),
        })
    }
}

impl Data {
    fn of(bytes: &[u8]) -> Data {
        match std::str::from_utf8(bytes) {
            Ok(text) => Data::Text(text.to_string()),
            Err(_) => Data::Base64(BASE64.encode(bytes)),
        }
    }

    /// The bytes, or what is known of the file that has them.
    fn into_bytes(self) -> Result<Result<Vec<u8>, Stored>, LineError> {
        Ok(match self {
            Data::Text(text) => Ok(text.into_bytes()),
            Data::Base64(text) => Ok(BASE64.decode(text)?),
            Data::File(held) => Err(held.into_stored()?),
        })
    }
}

impl Held {
    fn of(stored: Stored) -> Held {
        match stored.crc {
            Some(crc) => Held::Checked { bytes: stored.bytes, crc: format!("{crc:08x}") },
            None => Held::Bytes(stored.bytes),
        }
    }

    fn into_stored(self) -> Result<Stored, LineError> {
        match self {
            Held::Checked { bytes, crc } => match u32::from_str_radix(&crc, 16) {
                Ok(crc) => Ok(Stored { bytes, crc: Some(crc) }),
                Err(_) => Err(LineError::Checksum(crc)),
            },
            Held::Bytes(bytes) => Ok(Stored::unchecked(bytes)),
        }
    }
}

impl End {
    fn of(outcome: &Outcome) -> End {
        match outcome {
            Outcome::Completed(result) => End::Completed {
                result: match &result.place {
                    ResultPlace::Inline(bytes) => Data::of(bytes),
                    ResultPlace::File(stored) => Data::File(Held::of(*stored)),
                },
                json: result.is_json,
            },
            Outcome::Failed(failure) => End::Failed {
                code: failure.code.name().to_string(),
                message: failure.message.clone(),
                stack: failure.stack.clone(),
                exit_status: failure.exit_status,
                signal: failure.signal,
                stderr_tail: failure.stderr_tail.clone(),
            },
            Outcome::Cancelled => End::Cancelled,
            Outcome::Skipped => End::Skipped,
            Outcome::Evicted => End::Evicted,
        }
    }

    fn into_outcome(self) -> Result<Outcome, LineError> {
        Ok(match self {
            End::Completed { result, json } => Outcome::Completed(ResultRef {
                place: match result.into_bytes()? {
                    Ok(bytes) => ResultPlace::Inline(Arc::from(bytes)),
                    Err(stored) => ResultPlace::File(stored),
                },
                is_json: json,
            }),
            End::Failed { code, message, stack, exit_status, signal, stderr_tail } => {
                let code = failure_code(code)?;
                Outcome::Failed(Box::new(Failure { code, message, stack, exit_status, signal, stderr_tail }))
            }
            End::Cancelled => Outcome::Cancelled,
            End::Skipped => Outcome::Skipped,
            End::Evicted => Outcome::Evicted,
        })
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}
