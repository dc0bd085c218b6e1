//! Group commit: answers that rest on records of the journal wait until those are on the disk, all that came meanwhile
//! share one fdatasync(2).

use std::fs::File;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::call::{Answer, Reply};
use super::storage::RETRY;
use crate::core::ids::TaskId;
use crate::spool::{Files, advice};

/// Turns of the scheduler that may wait for the disk. Each wait is one fdatasync, and one takes all that is there.
const QUEUE: usize = 64;

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
    pub(super) failed_rx: Receiver<SyncFailed>,
}

/// Records may not have reached the disk, whatever a later sync of the same file says.
#[derive(Debug)]
pub struct SyncFailed {
    pub error: String,
    /// New tasks whose submitters have been told no.
    pub refused: Vec<TaskId>,
}

/// The thread's end.
pub struct SyncThread<W> {
    rx: Receiver<Message<W>>,
    replies_tx: Sender<Reply<W>>,
    failed_tx: Sender<SyncFailed>,
    /// Not taken by the scheduler yet. It grows by what is submitted until then, which the next journal comes after.
    failed: Option<SyncFailed>,
    journal: File,
    /// Why nothing rests on this journal any more; another one comes.
    broken: Option<String>,
    files: Files,
}

impl<W> Syncer<W> {
    pub fn new(journal: File, files: Files, replies_tx: Sender<Reply<W>>) -> (Syncer<W>, SyncThread<W>) {
        let (tx, rx) = bounded(QUEUE);
        // One that is not taken yet is added to.
        let (failed_tx, failed_rx) = bounded(1);
        let thread = SyncThread { rx, replies_tx, failed_tx, failed: None, journal, broken: None, files };
        (Syncer { tx, failed_rx }, thread)
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
            self.take_all(&mut replies, &mut flushes);
            self.serve(&mut replies);
            for flush in flushes.drain(..) {
                let _ = flush.send(());
            }
        }
    }

    fn take_all(&mut self, replies: &mut Vec<Reply<W>>, flushes: &mut Vec<Sender<()>>) {
        while let Ok(message) = self.rx.try_recv() {
            self.take(message, replies, flushes);
        }
    }

    /// Syncs what there is, and answers by how that went.
    fn serve(&mut self, replies: &mut Vec<Reply<W>>) {
        self.sync();
        self.tell_failure(replies);
        for reply in replies.drain(..) {
            let reply = match &self.broken {
                None => reply,
                Some(error) => undurable(reply, error),
            };
            let _ = self.replies_tx.send(reply);
        }
    }

    /// Never a second time after a failure: the kernel tells it once, and may have dropped what it could not write.
    fn sync(&mut self) {
        if self.broken.is_none()
            && let Err(error) = self.journal.sync_data()
        {
            let error = format!("cannot sync the journal: {error}; {}", advice(&error));
            self.failed = Some(SyncFailed { error: error.clone(), refused: Vec::new() });
            self.broken = Some(error);
        }
    }

    /// Before anybody is answered, the scheduler knows whose tasks must not run. It is not waited for: it may be waiting for
    /// this thread, and gives it another journal when it has heard.
    fn tell_failure(&mut self, replies: &[Reply<W>]) {
        if let Some(error) = &self.broken {
            let refused = replies.iter().filter_map(|reply| refused(&reply.answer));
            let failed = self.failed.get_or_insert_with(|| SyncFailed { error: error.clone(), refused: Vec::new() });
            failed.refused.extend(refused);
        }
        if let Some(failed) = self.failed.take()
            && let Err(error) = self.failed_tx.try_send(failed)
        {
            self.failed = Some(error.into_inner());
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
            Message::Journal(journal) => {
                self.journal = journal;
                self.broken = None;
            }
            Message::Flush(done_tx) => flushes.push(done_tx),
        }
    }
}

/// A 202 is a promise: what cannot be kept is not promised.
fn undurable<W>(reply: Reply<W>, error: &str) -> Reply<W> {
    match reply.answer {
        Answer::Submitted { ref view, .. } if !view.state.is_terminal() => {
            Reply { waiter: reply.waiter, answer: Answer::StorageFull { error: error.to_string(), retry_after: RETRY } }
        }
        _ => reply,
    }
}

/// The task that [`undurable`] makes a no of; not if it is somebody else's, who was told yes before.
fn refused(answer: &Answer) -> Option<TaskId> {
    match answer {
        Answer::Submitted { view, is_duplicate: false } if !view.state.is_terminal() => Some(view.id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use super::*;
    use crate::core::ledger::TaskView;
    use crate::core::task::{Priority, TaskState};

    /// What cannot be synced: fsync(2) of a pipe is EINVAL.
    fn broken_journal() -> File {
        let (_reader, writer) = std::io::pipe().expect("a pipe");
        File::from(OwnedFd::from(writer))
    }

    fn submitted(task: u64, state: TaskState, is_duplicate: bool) -> Reply<u64> {
        let view = TaskView {
            id: TaskId(task),
            agent: Arc::from("a"),
            priority: Priority::Normal,
            state,
            created_ms: 0,
            started_ms: None,
            finished_ms: None,
            attempt: 1,
            attempts: Default::default(),
            max_retries: 0,
            preemptions: 0,
            progress: None,
            queue_position: None,
            request_id: Arc::from("r"),
            worker: None,
            payload_bytes: 0,
            peak_rss_bytes: None,
            run_time: None,
            finished: None,
        };
        Reply { waiter: task, answer: Answer::Submitted { view: Box::new(view), is_duplicate } }
    }

    #[test]
    fn after_a_failed_sync_nothing_is_promised_until_there_is_another_journal_and_the_scheduler_knows_whom_it_refused()
    {
        let root = tempfile::tempdir().expect("a directory");
        let files = Files::open(root.path(), true).expect("opens");
        let (replies_tx, replies_rx) = bounded(16);
        let (syncer, mut thread) = Syncer::new(broken_journal(), files, replies_tx);
        let mut pass = |syncer: &Syncer<u64>, replies: Vec<Reply<u64>>| {
            syncer.release(replies, Vec::new());
            let (mut taken, mut flushes) = (Vec::new(), Vec::new());
            thread.take_all(&mut taken, &mut flushes);
            thread.serve(&mut taken);
            let told: Vec<(u64, bool)> = replies_rx
                .try_iter()
                .map(|reply: Reply<u64>| (reply.waiter, matches!(reply.answer, Answer::Submitted { .. })))
                .collect();
            told
        };
        let told = pass(
            &syncer,
            vec![
                submitted(1, TaskState::Queued, false),
                submitted(2, TaskState::Running, true),
                submitted(3, TaskState::Completed, false),
            ],
        );
        assert_eq!(told, [(1, false), (2, false), (3, true)], "what has ended has ended");
        assert_eq!(pass(&syncer, vec![submitted(4, TaskState::Queued, false)]), [(4, false)]);
        assert_eq!(pass(&syncer, vec![submitted(5, TaskState::Queued, false)]), [(5, false)]);
        let first = syncer.failed_rx.try_recv().expect("the scheduler is told");
        assert_eq!(first.refused, [TaskId(1)], "a duplicate is another's task");
        assert!(first.error.contains("cannot sync the journal"), "{}", first.error);

        syncer.journal_replaced(File::create(root.path().join("journal")).expect("made"));
        assert_eq!(pass(&syncer, vec![submitted(6, TaskState::Queued, false)]), [(6, true)]);
        let second = syncer.failed_rx.try_recv().expect("and of the others");
        assert_eq!(second.refused, [4, 5].map(TaskId));
        assert_eq!(pass(&syncer, vec![submitted(7, TaskState::Queued, false)]), [(7, true)]);
        assert!(syncer.failed_rx.try_recv().is_err());
    }
}
