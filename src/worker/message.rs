//! What workers say, parsed from one line: kurultai-protocol(7).

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::core::ids::{PermitId, TaskId};
use crate::core::limits::CHECKPOINT_MAX;
use crate::core::order::{BreakerOp, HeapReading};

use super::text::cut;

/// The version this daemon speaks.
pub const PROTOCOL: u64 = 1;
/// A breaker's name is a configuration key; nobody has longer ones.
const NAME_MAX: usize = 256;

/// One message; text and raw JSON are borrowed from the line where they can be.
#[derive(Debug, PartialEq)]
pub enum Message<'a> {
    Ready {
        can_checkpoint: bool,
        can_cancel: bool,
    },
    Progress {
        task: TaskId,
        percent: f64,
        text: Option<Cow<'a, str>>,
        checkpoint: Option<&'a str>,
    },
    Chunk {
        task: TaskId,
        seq: u64,
        data: Cow<'a, [u8]>,
    },
    /// `result` is the JSON text as it was sent.
    Complete {
        task: TaskId,
        result: Option<&'a str>,
    },
    Failed {
        task: TaskId,
        error: Cow<'a, str>,
        stack: Option<Cow<'a, str>>,
        retryable: bool,
    },
    Preempted {
        task: TaskId,
        checkpoint: Option<&'a str>,
    },
    Memory(HeapReading),
    Breaker {
        name: Cow<'a, str>,
        op: BreakerOp,
    },
    Log {
        level: log::Level,
        text: Cow<'a, str>,
    },
    /// A type this version does not know: logged and ignored.
    Unknown(Cow<'a, str>),
}

/// Every known field of every message, unparsed: a field that does not belong to the message at hand may hold anything,
/// for unknown fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    protocol: Option<&'a RawValue>,
    #[serde(borrow)]
    capabilities: Option<&'a RawValue>,
    #[serde(borrow)]
    task_id: Option<&'a RawValue>,
    #[serde(borrow)]
    percent: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    checkpoint: Option<&'a RawValue>,
    #[serde(borrow)]
    seq: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    encoding: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    stack: Option<&'a RawValue>,
    #[serde(borrow)]
    retryable: Option<&'a RawValue>,
    #[serde(borrow)]
    heap_used: Option<&'a RawValue>,
    #[serde(borrow)]
    heap_total: Option<&'a RawValue>,
    #[serde(borrow)]
    rss: Option<&'a RawValue>,
    #[serde(borrow)]
    external: Option<&'a RawValue>,
    #[serde(borrow)]
    array_buffers: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    op: Option<&'a RawValue>,
    #[serde(borrow)]
    permit: Option<&'a RawValue>,
    #[serde(borrow)]
    level: Option<&'a RawValue>,
}

/// JSON text, borrowed unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Parses one line. The error says what is wrong with it, without the line itself.
pub fn parse(line: &[u8]) -> Result<Message<'_>, String> {
    let line = std::str::from_utf8(line).map_err(|error| format!("a line that is not UTF-8 ({error})"))?;
    // serde takes an array for a struct as well.
    if !line.trim_start().starts_with('{') {
        return Err("a line that is no JSON object".to_owned());
    }
    let fields: Fields<'_> =
        serde_json::from_str(line).map_err(|error| format!("a line that is no JSON object ({error})"))?;
    let Some(kind) = text(fields.kind, "type")? else { return Err("a message without a type".to_owned()) };
    fields.message(kind).map_err(|(kind, error)| format!("a bad {kind} message: {error}"))
}

impl<'a> Fields<'a> {
    fn message(&self, kind: Cow<'a, str>) -> Result<Message<'a>, (Cow<'a, str>, String)> {
        let message = match kind.as_ref() {
            "READY" => self.ready(),
            "PROGRESS" => self.progress(),
            "CHUNK" => self.chunk(),
            "COMPLETE" => self.task().map(|task| Message::Complete { task, result: self.result.map(RawValue::get) }),
            "FAILED" => self.failed(),
            "PREEMPTED" => self.preempted(),
            "MEMORY" => self.memory(),
            "BREAKER" => self.breaker(),
            "LOG" => self.log(),
            _ => return Ok(Message::Unknown(kind)),
        };
        message.map_err(|error| (kind, error))
    }

    fn ready(&self) -> Result<Message<'a>, String> {
        match value::<u64>(self.protocol, "protocol")? {
            Some(PROTOCOL) => {}
            Some(other) => return Err(format!("it speaks protocol {other}, this daemon speaks {PROTOCOL}")),
            None => return Err("protocol is missing".to_owned()),
        }
        let capabilities = value::<Vec<Text<'a>>>(self.capabilities, "capabilities")?.unwrap_or_default();
        let can = |name: &str| capabilities.iter().any(|capability| capability.0 == name);
        Ok(Message::Ready { can_checkpoint: can("checkpoint"), can_cancel: can("cancel") })
    }

    fn progress(&self) -> Result<Message<'a>, String> {
        let percent = required(value::<f64>(self.percent, "percent")?, "percent")?;
        Ok(Message::Progress {
            task: self.task()?,
            percent: percent.clamp(0.0, 100.0),
            text: text(self.message, "message")?,
            checkpoint: self.checkpoint()?,
        })
    }

    fn chunk(&self) -> Result<Message<'a>, String> {
        let data = required(text(self.data, "data")?, "data")?;
        let data = match text(self.encoding, "encoding")?.as_deref() {
            None | Some("utf8") => match data {
                Cow::Borrowed(data) => Cow::Borrowed(data.as_bytes()),
                Cow::Owned(data) => Cow::Owned(data.into_bytes()),
            },
            Some("base64") => Cow::Owned(
                BASE64_STANDARD.decode(data.as_bytes()).map_err(|error| format!("data is no base64: {error}"))?,
            ),
            Some(other) => return Err(format!("encoding {:?} is neither utf8 nor base64", cut(other, 40))),
        };
        Ok(Message::Chunk { task: self.task()?, seq: required(value(self.seq, "seq")?, "seq")?, data })
    }

    fn failed(&self) -> Result<Message<'a>, String> {
        Ok(Message::Failed {
            task: self.task()?,
            error: required(text(self.error, "error")?, "error")?,
            stack: text(self.stack, "stack")?,
            retryable: value(self.retryable, "retryable")?.unwrap_or(false),
        })
    }

    fn preempted(&self) -> Result<Message<'a>, String> {
        Ok(Message::Preempted { task: self.task()?, checkpoint: self.checkpoint()? })
    }

    fn memory(&self) -> Result<Message<'a>, String> {
        let bytes = |field, name| Ok::<u64, String>(value(field, name)?.unwrap_or(0));
        Ok(Message::Memory(HeapReading {
            heap_used: bytes(self.heap_used, "heapUsed")?,
            heap_total: bytes(self.heap_total, "heapTotal")?,
            rss: bytes(self.rss, "rss")?,
            external: bytes(self.external, "external")?,
            array_buffers: bytes(self.array_buffers, "arrayBuffers")?,
        }))
    }

    fn breaker(&self) -> Result<Message<'a>, String> {
        let name = required(text(self.name, "name")?, "name")?;
        if name.len() > NAME_MAX {
            return Err(format!("name is {} bytes long, over {NAME_MAX}", name.len()));
        }
        let permit = || {
            let permit = required(text(self.permit, "permit")?, "permit")?;
            permit.parse::<PermitId>().map_err(|error| error.to_string())
        };
        let op = match required(text(self.op, "op")?, "op")?.as_ref() {
            "acquire" => BreakerOp::Acquire,
            "success" => BreakerOp::Success(permit()?),
            "failure" => BreakerOp::Failure(permit()?),
            other => return Err(format!("op {:?} is none of acquire, success, failure", cut(other, 40))),
        };
        Ok(Message::Breaker { name, op })
    }

    fn log(&self) -> Result<Message<'a>, String> {
        let level = match required(text(self.level, "level")?, "level")?.as_ref() {
            "error" => log::Level::Error,
            "warn" => log::Level::Warn,
            "info" => log::Level::Info,
            "debug" => log::Level::Debug,
            "trace" => log::Level::Trace,
            other => return Err(format!("level {:?} is none of error, warn, info, debug, trace", cut(other, 40))),
        };
        Ok(Message::Log { level, text: required(text(self.message, "message")?, "message")? })
    }

    fn task(&self) -> Result<TaskId, String> {
        required(text(self.task_id, "taskId")?, "taskId")?.parse().map_err(|error| format!("taskId: {error}"))
    }

    fn checkpoint(&self) -> Result<Option<&'a str>, String> {
        let checkpoint = self.checkpoint.map(RawValue::get);
        match checkpoint {
            Some(text) if text.len() > CHECKPOINT_MAX => {
                Err(format!("checkpoint is {} bytes long, over {CHECKPOINT_MAX}", text.len()))
            }
            Some(_) | None => Ok(checkpoint),
        }
    }
}

fn required<T>(value: Option<T>, name: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("{name} is missing"))
}

fn text<'a>(field: Option<&'a RawValue>, name: &str) -> Result<Option<Cow<'a, str>>, String> {
    Ok(value::<Text<'a>>(field, name)?.map(|text| text.0))
}

/// A field that is absent or null is `None`.
fn value<'a, T: Deserialize<'a>>(field: Option<&'a RawValue>, name: &str) -> Result<Option<T>, String> {
    let parse = |raw: &'a RawValue| serde_json::from_str(raw.get()).map_err(|error| format!("{name}: {error}"));
    field.map(parse).transpose().map(Option::flatten)
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
