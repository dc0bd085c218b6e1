//! Callers that wait for a task to end. They hold no thread: a waiter is what the gateway left, and a deadline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::Scheduler;
use super::call::{Answer, Reply};
use crate::core::ids::TaskId;
use crate::core::ledger::FinishedTask;
use crate::core::view::finished_view;

pub(super) struct Waiting<W> {
    pub task: TaskId,
    pub until: Duration,
    /// The connection it came on.
    pub from: u64,
    pub waiter: W,
    /// The task was there before this caller came.
    pub is_duplicate: bool,
}

/// Clients that were gone before their calls were taken. Each connection has one call at most, so that no more need to be
/// remembered than there can be calls; what is here for another reason does no harm, for no connection's number comes twice.
#[derive(Debug)]
pub(super) struct Gone {
    clients: VecDeque<u64>,
    most: usize,
}

impl Gone {
    pub(super) fn new(calls: usize) -> Gone {
        Gone { clients: VecDeque::new(), most: calls.max(1) }
    }

    fn note(&mut self, from: u64) {
        if self.clients.len() == self.most {
            self.clients.pop_front();
        }
        self.clients.push_back(from);
    }

    pub(super) fn has(&self, from: u64) -> bool {
        self.clients.contains(&from)
    }
}

impl<W: Send + 'static> Scheduler<W> {
    /// Nobody waits any more on this connection, nor will anybody whose call comes later: the word that a client is gone
    /// is urgent and may overtake what it asked.
    pub(super) fn gone(&mut self, from: u64) {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.from != from);
        let followed = self.streams.forget(from);
        if self.waiting.len() == before && !followed {
            self.gone.note(from);
        }
    }

    pub(super) fn finished(&mut self, task: &Arc<FinishedTask>, replies: &mut Vec<Reply<W>>) {
        self.streams.ended(self.now(), task);
        let mut index = 0;
        while index < self.waiting.len() {
            if self.waiting[index].task == task.id {
                let waiting = self.waiting.swap_remove(index);
                let view = Box::new(finished_view(task));
                replies.push(Reply {
                    waiter: waiting.waiter,
                    answer: Answer::Submitted { view, is_duplicate: waiting.is_duplicate },
                });
            } else {
                index += 1;
            }
        }
    }

    pub(super) fn time_out_waiting(&mut self) {
        let now = self.clock.now();
        let mut replies = Vec::new();
        while let Some(index) = self.waiting.iter().position(|waiting| waiting.until <= now) {
            let waiting = self.waiting.swap_remove(index);
            let answer = match self.core.task(waiting.task) {
                Some(view) => Answer::Submitted { view: Box::new(view), is_duplicate: waiting.is_duplicate },
                None => Answer::Task(None),
            };
            replies.push(Reply { waiter: waiting.waiter, answer });
        }
        // Why: nobody has been answered for these tasks, so that nobody has waited for the disk yet.
        self.release(replies, false);
    }

    /// Whoever still waits is told how his task stands: it is safe in the spool.
    pub(super) fn dismiss_waiting(&mut self) {
        let mut replies = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let view = self.core.task(waiting.task).map(Box::new);
            let answer =
                view.map_or(Answer::Task(None), |view| Answer::Submitted { view, is_duplicate: waiting.is_duplicate });
            replies.push(Reply { waiter: waiting.waiter, answer });
        }
        self.release(replies, false);
    }
}
