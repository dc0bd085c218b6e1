//! What a worker writes to standard error, and what it logs: the end of it kept, lines passed to the log within bounds.

use std::time::Duration;

use crate::core::ids::WorkerId;
use crate::core::limits::STDERR_TAIL_MAX;
use crate::core::settings::AgentSettings;

use super::text::{printable, tail};

/// The longest line that is logged; the rest of it is dropped.
const LOG_LINE_MAX: usize = 1024;
/// Lines a worker may have in the log per window, its LOG messages included.
const LINES_PER_WINDOW: u32 = 50;
const WINDOW: Duration = Duration::from_secs(1);

/// The last of what was written to standard error.
#[derive(Debug, Default)]
pub struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    pub fn push(&mut self, piece: &[u8]) {
        let piece = &piece[piece.len().saturating_sub(STDERR_TAIL_MAX)..];
        let excess = (self.bytes.len() + piece.len()).saturating_sub(STDERR_TAIL_MAX);
        self.bytes.drain(..excess);
        self.bytes.extend_from_slice(piece);
    }

    pub fn text(&self) -> String {
        tail(&self.bytes, STDERR_TAIL_MAX)
    }
}

/// Standard error cut into lines of bounded length.
#[derive(Debug, Default)]
pub struct LogLines {
    line: Vec<u8>,
}

impl LogLines {
    pub fn push(&mut self, mut piece: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            self.extend(&piece[..end]);
            piece = &piece[end + 1..];
            each(&self.line);
            self.line.clear();
        }
        self.extend(piece);
    }

    /// What was written last, without an end of line.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            each(&self.line);
            self.line.clear();
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LOG_LINE_MAX - self.line.len();
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// Lets so many lines per second pass and counts the others.
#[derive(Debug, Default)]
pub struct LogBudget {
    window: Duration,
    used: u32,
    dropped: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Pass {
    /// Log it, after saying how many were dropped before it.
    Yes {
        dropped: u64,
    },
    No,
}

impl LogBudget {
    pub fn take(&mut self, now: Duration) -> Pass {
        if now >= self.window + WINDOW {
            *self = LogBudget { window: now, used: 0, dropped: self.dropped };
        }
        if self.used == LINES_PER_WINDOW {
            self.dropped += 1;
            return Pass::No;
        }
        self.used += 1;
        Pass::Yes { dropped: std::mem::take(&mut self.dropped) }
    }

    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// Whose lines they are.
#[derive(Debug, Clone, Copy)]
pub struct Speaker<'a> {
    pub worker: WorkerId,
    pub agent: &'a AgentSettings,
}

impl Speaker<'_> {
    pub fn log_stderr(self, budget: &mut LogBudget, now: Duration, line: &[u8]) {
        if log::log_enabled!(log::Level::Info) && self.may_log(budget, now) {
            let (worker, agent, text) = (self.worker, &*self.agent.name, printable(line, LOG_LINE_MAX));
            log::info!(worker:% = worker, agent:% = agent; "WORKER_STDERR {text}");
        }
    }

    pub fn log_message(
        self,
        budget: &mut LogBudget,
        now: Duration,
        level: log::Level,
        task: Option<crate::core::ids::TaskId>,
        text: &str,
    ) {
        if !log::log_enabled!(level) || !self.may_log(budget, now) {
            return;
        }
        let (worker, agent, text) = (self.worker, &*self.agent.name, printable(text.as_bytes(), LOG_LINE_MAX));
        match task {
            Some(task) => log::log!(level, worker:% = worker, agent:% = agent, task:% = task; "WORKER_LOG {text}"),
            None => log::log!(level, worker:% = worker, agent:% = agent; "WORKER_LOG {text}"),
        }
    }

    pub fn log_dropped(self, dropped: u64) {
        if dropped > 0 {
            let (worker, agent) = (self.worker, &*self.agent.name);
            log::info!(
                worker:% = worker, agent:% = agent, dropped = dropped;
                "WORKER_STDERR {dropped} more lines, over {LINES_PER_WINDOW} a second"
            );
        }
    }

    fn may_log(self, budget: &mut LogBudget, now: Duration) -> bool {
        match budget.take(now) {
            Pass::Yes { dropped } => {
                self.log_dropped(dropped);
                true
            }
            Pass::No => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_of_it() {
        let mut tail = Tail::default();
        tail.push(b"first ");
        tail.push(&[b'x'; STDERR_TAIL_MAX]);
        tail.push(b" last");
        let text = tail.text();
        assert!(text.len() == STDERR_TAIL_MAX && text.ends_with("x last") && !text.contains("first"), "{text}");
        tail.push(&[b'y'; 10_000]);
        assert_eq!(tail.text(), "y".repeat(STDERR_TAIL_MAX));
        assert!(tail.bytes.capacity() <= 4 * STDERR_TAIL_MAX, "{}", tail.bytes.capacity());
    }

    #[test]
    fn long_lines_are_cut_and_the_next_one_is_whole() {
        let (mut lines, mut seen) = (LogLines::default(), Vec::new());
        for piece in [&[b'x'; 900][..], &[b'y'; 900], b"\nnext", b" one\n\nrest"] {
            lines.push(piece, |line| seen.push(line.to_vec()));
        }
        lines.finish(|line| seen.push(line.to_vec()));
        assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [LOG_LINE_MAX, 8, 0, 4]);
        assert_eq!(seen[1], b"next one");
    }

    #[test]
    fn a_flood_is_counted_instead_of_logged() {
        let mut budget = LogBudget::default();
        let passed = (0..200).filter(|_| budget.take(Duration::from_secs(5)) != Pass::No).count();
        assert_eq!(passed, LINES_PER_WINDOW as usize);
        assert_eq!(budget.take(Duration::from_secs(6)), Pass::Yes { dropped: 150 });
        assert_eq!(budget.take(Duration::from_secs(6)), Pass::Yes { dropped: 0 });
    }
}
