//! Following one task's events until it ends, through restarts of the daemon.
//!
//! Owns when to go on waiting and when to stop. May import the API and the clock. Must never know what is printed.

use super::api::{Api, Task, TaskEvent};
use super::catalogue::is_over;
use super::console::Console;
use super::error::CtlError;
use super::http::Request;
use crate::core::ids::TaskId;
use crate::sys::clock::Clock;
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

/// The daemon's own limit is far lower.
const LINE_LIMIT_BYTES: u64 = 2 * 1024 * 1024;
/// Attempts in a row that may fail before following is given up; a restart takes a few seconds.
const ATTEMPTS_MAX: u32 = 30;

/// The end of the caller's patience.
pub struct Patience {
    clock: Clock,
    limit: Option<Duration>,
}

impl Patience {
    /// Starts now; `None` is endless.
    pub fn of(limit: Option<Duration>) -> Patience {
        Patience { clock: Clock::start(), limit }
    }

    /// Time left, at least a millisecond; `Err` once there is none.
    fn left(&self, task: TaskId) -> Result<Option<Duration>, CtlError> {
        let Some(limit) = self.limit else { return Ok(None) };
        match limit.checked_sub(self.clock.now()) {
            Some(left) if left >= Duration::from_millis(1) => Ok(Some(left)),
            Some(_) | None => Err(self.over(task)),
        }
    }

    fn over(&self, task: TaskId) -> CtlError {
        let seconds = self.limit.unwrap_or_default().as_secs();
        CtlError::WaitOver { task: task.to_string(), seconds }
    }
}

/// Calls `on_event` with every line and its meaning, and returns the finished task.
pub fn until_over(
    api: &Api,
    task: TaskId,
    patience: &Patience,
    console: &mut Console,
    mut on_event: impl FnMut(&mut Console, &[u8], &TaskEvent) -> Result<(), CtlError>,
) -> Result<Task, CtlError> {
    let mut failures = 0;
    let mut seen = false;
    loop {
        let before = seen;
        let mut watched = |line: &[u8], event: &TaskEvent| {
            seen = true;
            on_event(console, line, event)
        };
        let error = match follow_once(api, task, patience, &mut watched) {
            Ok(Some(finished)) => return Ok(finished),
            Ok(None) => None,
            Err(error) if before || seen => Some(error),
            Err(error) => return Err(error),
        };
        failures = if error.is_none() { 0 } else { failures + 1 };
        match error {
            Some(error) if !error.may_pass() || failures == ATTEMPTS_MAX => return Err(error),
            Some(_) | None => {}
        }
        patience.left(task)?;
        console.wait_a_moment();
    }
}

/// `None` where the events ended and the task has not, as when the daemon stops.
fn follow_once(
    api: &Api,
    task: TaskId,
    patience: &Patience,
    on_event: &mut impl FnMut(&[u8], &TaskEvent) -> Result<(), CtlError>,
) -> Result<Option<Task>, CtlError> {
    let body = api.stream(Request::get(format!("/v1/tasks/{task}/events")))?;
    let mut lines = BufReader::new(body);
    loop {
        lines.get_ref().set_timeout(patience.left(task)?).map_err(|source| api.lost(source))?;
        let mut line = Vec::new();
        match read_line(&mut lines, &mut line) {
            Ok(()) if line.is_empty() => break,
            Ok(()) => {
                if let Ok(event) = serde_json::from_slice::<TaskEvent>(&line) {
                    on_event(&line, &event)?;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(patience.over(task));
            }
            // Why: a daemon that stops cuts its answers; the task's own state says how it stands.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => break,
            Err(error) => return Err(api.lost(error)),
        }
    }
    let found = api.get::<Task>(format!("/v1/tasks/{task}"))?.value;
    Ok(is_over(&found.state).then_some(found))
}

/// One line with its end; empty at the end of the stream.
pub fn read_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<()> {
    lines.take(LINE_LIMIT_BYTES).read_until(b'\n', line)?;
    if line.len() as u64 == LINE_LIMIT_BYTES && !line.ends_with(b"\n") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
    }
    Ok(())
}

/// `Err` unless the task completed; the message holds the cause and the end of what it wrote to stderr.
pub fn check(task: &Task) -> Result<(), CtlError> {
    if task.state == "completed" {
        return Ok(());
    }
    let mut cause = String::new();
    if let Some(error) = &task.error {
        cause = format!(": {}: {}", error.code, error.message);
        if let Some(tail) = error.stderr_tail.as_deref().filter(|tail| !tail.trim().is_empty()) {
            cause.push_str("\nend of its stderr:");
            for line in tail.trim_end().lines() {
                cause.push_str("\n  ");
                cause.push_str(line);
            }
        }
    }
    let state = match task.state.as_str() {
        "failed" => "failed".to_owned(),
        state => format!("was {state}"),
    };
    Err(CtlError::TaskEnded { task: task.id.clone(), state, cause })
}
