//! The worker protocol as one persistent worker speaks it: what a line means for the task it has.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::core::ids::TaskId;
use crate::core::limits::ERROR_TEXT_MAX;
use crate::core::order::Report;
use crate::core::task::ResultRef;
use crate::spool::{Files, advice};

use super::message::{self, Message};
use super::result::{ResultError, ResultSink};
use super::room::Room;
use super::stderr::{LogBudget, Speaker};
use super::text::{cut, quote};

/// Reports of progress of one task are at least this far apart, unless they say more than how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// A progress message is for a person's eyes; it is kept with the task.
const PROGRESS_TEXT_MAX: usize = 1024;

/// The longest reason of a breach, in bytes: a parser quotes all of a value it did not expect.
const REASON_MAX: usize = 256;

/// The answer that a result holds when COMPLETE gave none.
const NO_RESULT: &str = "null";

#[derive(Debug, Default)]
pub struct Session {
    is_ready: bool,
    current: Option<Current>,
}

/// The task it has been given and has not ended.
#[derive(Debug)]
struct Current {
    task: TaskId,
    chunks: Option<Chunks>,
    progress: Throttle,
}

#[derive(Debug)]
struct Chunks {
    next_seq: u64,
    sink: ResultSink,
    /// The result cannot be stored: told when the task ends, since the work is done and worth ending well.
    error: Option<ResultError>,
}

#[derive(Debug, Default)]
struct Throttle {
    sent_at: Option<Duration>,
    held_back: Option<(f64, Option<Box<str>>)>,
}

impl Session {
    pub fn task(&self) -> Option<TaskId> {
        self.current.as_ref().map(|current| current.task)
    }

    pub fn can_take_a_task(&self) -> bool {
        self.is_ready && self.current.is_none()
    }

    pub fn assign(&mut self, task: TaskId) {
        self.current = Some(Current { task, chunks: None, progress: Throttle::default() });
    }

    /// Takes one line. An error is a breach of the protocol, with the line quoted.
    pub fn line(
        &mut self,
        speaker: Speaker<'_>,
        budget: &mut LogBudget,
        room: &mut Room,
        line: &[u8],
    ) -> Result<(), String> {
        message::parse(line)
            .and_then(|message| self.message(speaker, budget, room, message))
            .map_err(|reason| format!("{}: {}", cut(&reason, REASON_MAX), quote(line)))
    }

    fn message(
        &mut self,
        speaker: Speaker<'_>,
        budget: &mut LogBudget,
        room: &mut Room,
        message: Message<'_>,
    ) -> Result<(), String> {
        let is_ready_message = matches!(message, Message::Ready { .. });
        if self.is_ready == is_ready_message {
            return Err(if self.is_ready { "READY for a second time" } else { "a message before READY" }.to_owned());
        }
        let report = match message {
            Message::Ready { can_checkpoint, can_cancel } => {
                self.is_ready = true;
                Report::Ready { can_checkpoint, can_cancel }
            }
            Message::Progress { task, percent, text, checkpoint } => {
                let current = self.current("PROGRESS", task)?;
                match current.progress(room, percent, text, checkpoint) {
                    Some(report) => report,
                    None => return Ok(()),
                }
            }
            Message::Chunk { task, seq, data } => {
                let max_bytes = room.result_max_bytes;
                return self.current("CHUNK", task)?.chunk(&room.files, max_bytes, seq, &data);
            }
            Message::Complete { task, result } => {
                let current = self.current("COMPLETE", task)?;
                let chunks = current.chunks.take();
                if let (Some(_), Some(_)) = (&chunks, result) {
                    current.chunks = chunks;
                    return Err("COMPLETE with a result after CHUNKs, which are the result".to_owned());
                }
                self.current = None;
                complete(room, task, chunks, result)?
            }
            Message::Failed { task, error, stack, retryable } => {
                self.end("FAILED", task)?;
                let kept = |text: Cow<'_, str>| cut(&text, ERROR_TEXT_MAX).to_owned();
                Report::Failed { task, error: kept(error), stack: stack.map(kept), retryable }
            }
            Message::Preempted { task, checkpoint } => {
                self.end("PREEMPTED", task)?;
                let checkpoint = match checkpoint {
                    // The last one still counts if this one cannot be stored.
                    Some(_) => write_checkpoint(&room.files, task, checkpoint) || room.files.has_checkpoint(task),
                    None => false,
                };
                Report::Preempted { task, checkpoint }
            }
            Message::Memory(reading) => Report::Memory(reading),
            Message::Breaker { name, op } => Report::Breaker { name: Arc::from(name), op },
            Message::Log { level, text } => {
                speaker.log_message(budget, room.now, level, self.task(), &text);
                return Ok(());
            }
            Message::Unknown(kind) => {
                let text = format!("a message of the unknown type {:?} was ignored", cut(&kind, 40));
                speaker.log_message(budget, room.now, log::Level::Warn, self.task(), &text);
                return Ok(());
            }
        };
        room.report(speaker.worker, report);
        Ok(())
    }

    /// When held back progress is to be reported.
    pub fn deadline(&self) -> Option<Duration> {
        let progress = &self.current.as_ref()?.progress;
        progress.held_back.as_ref().and(progress.sent_at).map(|sent_at| sent_at + PROGRESS_EVERY)
    }

    pub fn held_back_progress(&mut self, now: Duration) -> Option<Report> {
        let current = self.current.as_mut()?;
        let (percent, message) = current.progress.held_back.take()?;
        current.progress.sent_at = Some(now);
        Some(Report::Progress { task: current.task, percent, message, checkpoint: false })
    }

    /// The worker is gone: what it left unfinished is removed.
    pub fn abandon(&mut self) {
        self.current = None;
    }

    fn current(&mut self, kind: &str, task: TaskId) -> Result<&mut Current, String> {
        let given = self.task();
        match &mut self.current {
            Some(current) if given == Some(task) => Ok(current),
            Some(_) | None => Err(match given {
                Some(given) => format!("{kind} for {task}, but its task is {given}"),
                None => format!("{kind} for {task}, but it has no task"),
            }),
        }
    }

    fn end(&mut self, kind: &str, task: TaskId) -> Result<(), String> {
        self.current(kind, task)?;
        self.abandon();
        Ok(())
    }
}

impl Current {
    fn progress(
        &mut self,
        room: &Room,
        percent: f64,
        text: Option<Cow<'_, str>>,
        checkpoint: Option<&str>,
    ) -> Option<Report> {
        let message = text.map(|text| Box::from(cut(&text, PROGRESS_TEXT_MAX)));
        let checkpoint = write_checkpoint(&room.files, self.task, checkpoint);
        let is_due = self.progress.sent_at.is_none_or(|sent_at| room.now >= sent_at + PROGRESS_EVERY);
        if !is_due && !checkpoint && percent < 100.0 {
            self.progress.held_back = Some((percent, message));
            return None;
        }
        self.progress = Throttle { sent_at: Some(room.now), held_back: None };
        Some(Report::Progress { task: self.task, percent, message, checkpoint })
    }

    fn chunk(&mut self, files: &Files, max_bytes: u64, seq: u64, data: &[u8]) -> Result<(), String> {
        let task = self.task;
        let chunks = self.chunks.get_or_insert_with(|| Chunks {
            next_seq: 0,
            sink: ResultSink::new(task, max_bytes),
            error: None,
        });
        if seq != chunks.next_seq {
            return Err(format!("CHUNK with seq {seq} where {} was due", chunks.next_seq));
        }
        chunks.next_seq += 1;
        match chunks.sink.write(files, data) {
            Ok(()) => Ok(()),
            // Nothing else would ever stop it.
            Err(error @ ResultError::TooLarge { .. }) => Err(error.to_string()),
            Err(error @ ResultError::Write { .. }) => {
                chunks.error = Some(error);
                Ok(())
            }
        }
    }
}

fn complete(room: &Room, task: TaskId, chunks: Option<Chunks>, result: Option<&str>) -> Result<Report, String> {
    let stored = match chunks {
        Some(Chunks { error: Some(error), .. }) => Err(error),
        Some(Chunks { sink, .. }) => Ok(sink.finish(false)),
        None => store_json(room, task, result.unwrap_or(NO_RESULT)),
    };
    match stored {
        Ok(Some(result)) => Ok(Report::Completed { task, result }),
        Ok(None) => Err("its result was lost".to_owned()),
        Err(error) => Ok(Report::Failed { task, error: error.to_string(), stack: None, retryable: false }),
    }
}

fn store_json(room: &Room, task: TaskId, text: &str) -> Result<Option<ResultRef>, ResultError> {
    let mut sink = ResultSink::new(task, room.result_max_bytes);
    sink.write(&room.files, text.as_bytes())?;
    Ok(sink.finish(true))
}

/// Whether there is a new checkpoint. Without one the task goes on, and would start again from an earlier point.
fn write_checkpoint(files: &Files, task: TaskId, checkpoint: Option<&str>) -> bool {
    let Some(checkpoint) = checkpoint else { return false };
    match files.write_checkpoint(task, checkpoint.as_bytes()) {
        Ok(()) => true,
        Err(error) => {
            log::warn!(task:% = task; "cannot store a checkpoint: {error}; {}", advice(&error));
            false
        }
    }
}
