//! The names of things: newtypes so that a task's number is never taken for a worker's.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A task, for ever: numbers are never used again, not even after a restart. Shown as `t-17`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// A worker process, for the life of the daemon. Shown as `w-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// A circuit breaker's leave to make one call. Shown as `p-9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PermitId(pub u64);

/// A stretch of memory pressure, from the first threshold crossed until the level is normal again. Shown as `mem-2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncidentId(pub u64);

/// Somebody waiting for an answer; what is behind it (a socket, a test) is the scheduler's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An agent's name as configured; shared, because every task of the agent carries it.
pub type AgentName = Arc<str>;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: expected {prefix}<number>, such as {prefix}17")]
pub struct IdError {
    text: String,
    what: &'static str,
    prefix: &'static str,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t-{}", self.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w-{}", self.0)
    }
}

impl fmt::Display for PermitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p-{}", self.0)
    }
}

impl fmt::Display for IncidentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mem-{}", self.0)
    }
}

impl FromStr for TaskId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse(text, "task id", "t-").map(TaskId)
    }
}

impl FromStr for PermitId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse(text, "permit", "p-").map(PermitId)
    }
}

/// One spelling per id: `t-07` and `t-+7` are refused, so that an id can be compared as text.
fn parse(text: &str, what: &'static str, prefix: &'static str) -> Result<u64, IdError> {
    let number = text
        .strip_prefix(prefix)
        .filter(|digits| !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| IdError { text: text.chars().take(40).collect(), what, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!("t-17".parse(), Ok(TaskId(17)));
        assert_eq!(TaskId(17).to_string(), "t-17");
        for bad in ["", "t-", "t-0", "t-07", "t-+7", "17", "w-17", "t-17 ", "t-99999999999999999999", "t-../x"] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad:?} was taken for a task id");
        }
    }
}
