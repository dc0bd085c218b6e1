//! Who follows which events. The scheduler names the receivers, the door writes the lines.

use std::sync::Arc;

use crossbeam::channel::Sender;

use super::call::{Follow, StreamItem, StreamLine};
use crate::core::Core;
use crate::core::event::Now;
use crate::core::ids::TaskId;
use crate::core::ledger::FinishedTask;
use crate::core::notice::Notice;
use crate::sys::eventfd::EventFd;

/// The way to the door: a bounded queue and a bell.
#[derive(Clone)]
pub struct StreamPort {
    pub items_tx: Sender<StreamItem>,
    pub bell: Arc<EventFd>,
}

pub(super) struct Streams {
    port: StreamPort,
    followers: Vec<(u64, Follow)>,
}

impl Streams {
    pub(super) fn new(port: StreamPort) -> Self {
        Streams { port, followers: Vec::new() }
    }

    /// The first line is how the task stands now; a task nobody knows or that has ended has no second.
    pub(super) fn follow(&mut self, core: &Core, now: Now, from: u64, what: Follow) {
        if let Follow::Task(task) = what {
            let Some(view) = core.task(task) else { return self.send(now, vec![from], StreamLine::End) };
            self.send(now, vec![from], StreamLine::State { task, state: view.state, attempt: view.attempt });
            if view.state.is_terminal() {
                return self.send(now, vec![from], StreamLine::End);
            }
        }
        self.followers.push((from, what));
    }

    /// Whether it was one.
    pub(super) fn forget(&mut self, from: u64) -> bool {
        let before = self.followers.len();
        self.followers.retain(|(follower, _)| *follower != from);
        self.followers.len() < before
    }

    pub(super) fn notice(&mut self, core: &Core, now: Now, notice: &Arc<Notice>) {
        if self.followers.is_empty() {
            return;
        }
        let name = notice.name();
        let all = self.followers_of(|what| match what {
            Follow::Events(types) => types.is_empty() || types.iter().any(|wanted| wanted == name),
            Follow::Task(_) => false,
        });
        if !all.is_empty() {
            self.send(now, all, StreamLine::Event { notice: notice.clone(), incident: core.incident() });
        }
        let Some(task) = notice.task() else { return };
        let of_task = self.followers_of_task(task);
        if of_task.is_empty() {
            return;
        }
        match &**notice {
            Notice::TaskProgress { percent, message, .. } => {
                self.send(now, of_task, StreamLine::Progress { task, percent: *percent, message: message.clone() });
            }
            _ => {
                // Why: the end of a task has a line of its own, and by now the core may be past this notice.
                if let Some(view) = core.task(task).filter(|view| !view.state.is_terminal()) {
                    self.send(now, of_task, StreamLine::State { task, state: view.state, attempt: view.attempt });
                }
            }
        }
    }

    pub(super) fn ended(&mut self, now: Now, task: &FinishedTask) {
        let followers = self.followers_of_task(task.id);
        if followers.is_empty() {
            return;
        }
        let state = task.outcome.state();
        self.send(now, followers.clone(), StreamLine::State { task: task.id, state, attempt: task.attempt });
        self.send(now, followers.clone(), StreamLine::End);
        self.followers.retain(|(follower, _)| !followers.contains(follower));
    }

    fn followers_of_task(&self, task: TaskId) -> Vec<u64> {
        self.followers_of(|what| matches!(what, Follow::Task(wanted) if *wanted == task))
    }

    fn followers_of(&self, matches: impl Fn(&Follow) -> bool) -> Vec<u64> {
        self.followers.iter().filter(|(_, what)| matches(what)).map(|(follower, _)| *follower).collect()
    }

    fn send(&mut self, at: Now, to: Vec<u64>, line: StreamLine) {
        let item = StreamItem { to, at_ms: at.wall_ms, line };
        match self.port.items_tx.try_send(item) {
            Ok(()) => self.port.bell.ring(),
            // Why: the door is behind by a whole queue; followers lose lines rather than tasks their time.
            Err(error) => log::warn!("event streams are behind: a line for {:?} is dropped", error.into_inner().to),
        }
    }
}
