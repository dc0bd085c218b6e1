//! Group commit: answers that rest on records of the journal wait until those are on the disk, all that came meanwhile
//! share one fdatasync(2).

use std::fs::File;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::call::{Answer, Reply};
use crate::core::ids::TaskId;
use crate::spool::Files;

/// Turns of the scheduler that may wait for the disk. Each wait is one fdatasync, and one takes all that is there.
const QUEUE: usize = 64;

const RETRY: Duration = Duration::from_secs(2);

enum Message<W> {
    /// `results`: finished tasks whose result is a file of their own.
    Release {
        replies: Vec<Reply<W>>,
        results: Vec<TaskId>,
    },
    Journal(File),
    Flush(Sender<()>),
}

/// The scheduler's end.
pub struct Syncer<W> {
    tx: Sender<Message<W>>,
}

/// The thread's end.
pub struct SyncThread<W> {
    rx: Receiver<Message<W>>,
    replies_tx: Sender<Reply<W>>,
    journal: File,
    files: Files,
}

impl<W> Syncer<W> {
    pub fn new(journal: File, files: Files, replies_tx: Sender<Reply<W>>) -> (Syncer<W>, SyncThread<W>) {
        let (tx, rx) = bounded(QUEUE);
        (Syncer { tx }, SyncThread { rx, replies_tx, journal, files })
    }

    /// Sends these once everything written so far is durable.
    pub(super) fn release(&self, replies: Vec<Reply<W>>, results: Vec<TaskId>) {
        if !replies.is_empty() || !results.is_empty() {
            self.send(Message::Release { replies, results });
        }
    }

    pub(super) fn journal_replaced(&self, journal: File) {
        self.send(Message::Journal(journal));
    }

    /// Returns when all that was given to it has been sent.
    pub(super) fn flush(&self) {
        let (done_tx, done_rx) = bounded(1);
        self.send(Message::Flush(done_tx));
        let _ = done_rx.recv();
    }

    fn send(&self, message: Message<W>) {
        if self.tx.send(message).is_err() {
            log::error!("the sync thread is gone");
        }
    }
}

impl<W> SyncThread<W> {
    /// Runs until the scheduler is gone.
    pub fn run(mut self) {
        let mut replies = Vec::new();
        let mut flushes = Vec::new();
        while let Ok(message) = self.rx.recv() {
            self.take(message, &mut replies, &mut flushes);
            while let Ok(message) = self.rx.try_recv() {
                self.take(message, &mut replies, &mut flushes);
            }
            let synced = self.journal.sync_data();
            if let Err(error) = &synced {
                log::error!("cannot sync the journal: {error}; what was just accepted may not survive a power cut");
            }
            for reply in replies.drain(..) {
                let reply = match &synced {
                    Ok(()) => reply,
                    Err(error) => undurable(reply, error),
                };
                let _ = self.replies_tx.send(reply);
            }
            for flush in flushes.drain(..) {
                let _ = flush.send(());
            }
        }
    }

    fn take(&mut self, message: Message<W>, replies: &mut Vec<Reply<W>>, flushes: &mut Vec<Sender<()>>) {
        match message {
            Message::Release { replies: more, results } => {
                replies.extend(more);
                for task in results {
                    if let Err(error) = self.files.sync_result(task) {
                        log::error!("cannot sync the result of {task}: {error}; it may not survive a power cut");
                    }
                }
            }
            Message::Journal(journal) => self.journal = journal,
            Message::Flush(done_tx) => flushes.push(done_tx),
        }
    }
}

/// A 202 is a promise: what cannot be kept is not promised.
fn undurable<W>(reply: Reply<W>, error: &std::io::Error) -> Reply<W> {
    match reply.answer {
        Answer::Submitted { ref view, .. } if !view.state.is_terminal() => Reply {
            waiter: reply.waiter,
            answer: Answer::StorageFull { error: format!("cannot sync the journal: {error}"), retry_after: RETRY },
        },
        _ => reply,
    }
}
