//! From a request to a submission: the JSON envelope, or a raw body with parameters.

use std::io::{BufReader, Write};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::answer::Problem;
use super::body::{Body, unstored};
use super::head::{Head, cut, idempotency_key};
use super::query::Query;
use crate::core::ids::TaskId;
use crate::core::limits::INLINE_PAYLOAD_MAX;
use crate::core::task::{Payload, PayloadKind, Priority, Stored};
use crate::scheduler::call::Draft;
use crate::spool::Files;

/// The longest name of an agent: kurultai.toml(5).
const AGENT_NAME_MAX: usize = 64;

/// More attempts than anybody needs; a bound so that a slip of the finger is told.
const RETRIES_MAX: u32 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope<'a> {
    agent: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    priority: Option<PriorityValue>,
    #[serde(rename = "timeoutS")]
    timeout_s: Option<f64>,
    max_retries: Option<u32>,
    preemptible: Option<bool>,
    skippable: Option<bool>,
    idempotency_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PriorityValue {
    Number(u64),
    Name(String),
}

/// What `POST /v1/tasks` was sent; `key` is that of the head.
pub fn envelope(
    key: Option<&Arc<str>>,
    body: &[u8],
    task: TaskId,
    files: &Files,
    request_id: Arc<str>,
) -> Result<Draft, Problem> {
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(|error| {
        Problem::invalid(format!(
            "the body is no task: {}; send an object with \"agent\" and what kurultai-api(7) lists",
            brief(&error)
        ))
    })?;
    let priority = match envelope.priority {
        None => None,
        Some(PriorityValue::Number(number)) => Some(priority(&number.to_string())?),
        Some(PriorityValue::Name(name)) => Some(priority(&name)?),
    };
    let key = match (&envelope.idempotency_key, key) {
        (Some(in_body), Some(in_head)) if **in_body != **in_head => {
            return Err(Problem::invalid("idempotencyKey and the Idempotency-Key header differ: send one"));
        }
        (Some(key), _) => Some(idempotency_key(key)?),
        (None, key) => key.cloned(),
    };
    let payload = envelope.payload.map_or("null", RawValue::get).as_bytes();
    Ok(Draft {
        agent: agent_name(&envelope.agent)?,
        priority,
        payload: store(payload, task, files)?,
        payload_kind: PayloadKind::Json,
        timeout: envelope.timeout_s.map(|seconds| timeout("timeoutS", seconds)).transpose()?,
        max_retries: envelope.max_retries.map(|retries| max_retries(u64::from(retries))).transpose()?,
        preemptible: envelope.preemptible,
        skippable: envelope.skippable,
        idempotency_key: key,
        request_id,
    })
}

/// A name that some agent could have. Any other is nobody's, and is kept nowhere: not in the log nor among the decisions.
fn agent_name(name: &str) -> Result<Arc<str>, Problem> {
    let is_possible = (1..=AGENT_NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if is_possible {
        return Ok(Arc::from(name));
    }
    let message = format!("no agent can be called {:?}: GET /v1/agents lists them", cut(name));
    Err(Problem::new(404, "unknown_agent", message))
}

/// An error of serde quotes what it found, however long that is.
fn brief(error: &serde_json::Error) -> String {
    const MOST: usize = 300;
    let text = error.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What `POST /v1/agents/NAME/tasks` was sent, and how long its client waits.
pub fn raw(
    head: &Head,
    agent: Arc<str>,
    mut query: Query,
    request_id: Arc<str>,
) -> Result<(Draft, Option<Duration>), Problem> {
    let wait = query.take_wait()?;
    let draft = Draft {
        agent: agent_name(&agent)?,
        priority: query.take("priority").map(|text| priority(&text)).transpose()?,
        payload: Payload::File(Stored::unchecked(0)),
        payload_kind: if is_json(head) { PayloadKind::Json } else { PayloadKind::Raw },
        timeout: query.take_seconds("timeoutS")?.map(|seconds| timeout("timeoutS", seconds)).transpose()?,
        max_retries: query.take_number("maxRetries", 0, u64::from(RETRIES_MAX))?.map(max_retries).transpose()?,
        preemptible: query.take_flag("preemptible")?,
        skippable: query.take_flag("skippable")?,
        idempotency_key: head.idempotency_key.clone(),
        request_id,
    };
    query.nothing_else()?;
    Ok((draft, wait))
}

/// The payload of a raw submission. One that says it is JSON has to be.
pub fn raw_payload(kind: PayloadKind, body: &mut Body<'_>, task: TaskId, files: &Files) -> Result<Payload, Problem> {
    let payload = body.store(task, files)?;
    if kind == PayloadKind::Json {
        let checked: Result<IgnoredAny, _> = match &payload {
            Payload::Inline(bytes) => serde_json::from_slice(bytes),
            Payload::File(stored) => {
                let file = files.open_payload(task, *stored).map_err(|lost| {
                    files.remove_inputs(task);
                    unstored(&std::io::Error::other(lost))
                })?;
                serde_json::from_reader(BufReader::with_capacity(16 * 1024, file))
            }
        };
        if let Err(error) = checked {
            files.remove_inputs(task);
            return Err(Problem::invalid(format!(
                "the body is no JSON: {error}; send JSON, or another Content-Type for other bytes"
            )));
        }
    }
    Ok(payload)
}

/// JSON, nothing, or what curl says when it is not told what it sends.
pub fn check_envelope_type(head: &Head) -> Result<(), Problem> {
    let Some(content_type) = &head.content_type else { return Ok(()) };
    if is_json(head) || essence(content_type).eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(());
    }
    Err(Problem::new(
        415,
        "unsupported_media_type",
        format!(
            "Content-Type {:?} is no JSON: send application/json, or a raw body to /v1/agents/NAME/tasks",
            cut(content_type)
        ),
    ))
}

fn is_json(head: &Head) -> bool {
    head.content_type.as_deref().map(essence).is_some_and(|kind| {
        kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
    })
}

/// A media type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split_once(';').map_or(content_type, |(kind, _)| kind).trim()
}

fn store(payload: &[u8], task: TaskId, files: &Files) -> Result<Payload, Problem> {
    if payload.len() <= INLINE_PAYLOAD_MAX {
        return Ok(Payload::Inline(Arc::from(payload)));
    }
    let written = files.create_payload(task).and_then(|mut file| {
        file.write_all(payload)?;
        file.commit()
    });
    written.map(Payload::File).map_err(|error| {
        files.remove_inputs(task);
        unstored(&error)
    })
}

fn priority(text: &str) -> Result<Priority, Problem> {
    text.parse().map_err(|error: crate::core::task::PriorityError| Problem::invalid(error.to_string()))
}

fn timeout(name: &str, seconds: f64) -> Result<Duration, Problem> {
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|duration| duration.as_millis() >= 1);
    duration.ok_or_else(|| Problem::invalid(format!("{name}={seconds} is no timeout: give seconds, at least 0.001")))
}

fn max_retries(retries: u64) -> Result<u32, Problem> {
    let retries = u32::try_from(retries).ok().filter(|retries| *retries <= RETRIES_MAX);
    retries.ok_or_else(|| Problem::invalid(format!("maxRetries is over {RETRIES_MAX}: ask for fewer")))
}
