//! The failed attempts of a task that is tried again: what a poison task died of each time, for whoever looks at it.

use std::sync::Arc;

use super::task::{Failure, FailureCode};

/// The last so many are kept of a task.
pub const KEPT: usize = 10;

/// Characters of a failure's message that are kept with an attempt; the last failure is kept whole with its task.
const MESSAGE_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub attempt: u32,
    /// `None`: it never ran, or nobody alive knows when it began.
    pub started_ms: Option<u64>,
    pub ended_ms: u64,
    pub code: FailureCode,
    pub message: Box<str>,
}

/// The oldest first. Shared, because a task that ends hands them on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempts(Arc<[Attempt]>);

impl Attempts {
    pub fn iter(&self) -> impl Iterator<Item = &Attempt> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes they take beside their task.
    pub fn memory(&self) -> usize {
        self.iter().map(|attempt| size_of::<Attempt>() + attempt.message.len()).sum()
    }

    pub fn push(&mut self, attempt: Attempt) {
        self.0 = self.iter().cloned().chain([attempt]).collect::<Attempts>().0;
    }
}

/// The last [`KEPT`] of them.
impl FromIterator<Attempt> for Attempts {
    fn from_iter<I: IntoIterator<Item = Attempt>>(attempts: I) -> Self {
        let all: Vec<Attempt> = attempts.into_iter().collect();
        Attempts(all[all.len().saturating_sub(KEPT)..].into())
    }
}

impl Attempt {
    pub fn of(attempt: u32, started_ms: Option<u64>, ended_ms: u64, failure: &Failure) -> Attempt {
        let message = super::cut(&failure.message, MESSAGE_MAX).into();
        Attempt { attempt, started_ms, ended_ms, code: failure.code, message }
    }
}
