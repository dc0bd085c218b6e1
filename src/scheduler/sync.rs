//! Group commit: answers that rest on records of the journal wait until those are on the disk, all that came meanwhile
//! share one fdatasync(2). Records nobody waits for are synced a second later at most. Files of tasks are synced here too,
//! so that no other thread waits for a disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::call::{Answer, Reply};
use super::storage::RETRY;
use crate::core::event::CancelAnswer;
use crate::core::ids::{TaskId, WorkerId};
use crate::spool::{Files, advice};

/// Turns of the scheduler that may wait for the disk. Each wait is one fdatasync, and one takes all that is there.
const QUEUE: usize = 64;

enum Message<W> {
    Release { replies: Vec<Reply<W>>, unneeded: Vec<Unneeded> },
    Keep { worker: WorkerId, file: TaskFile },
    Journal(File),
    Flush(Sender<()>),
}

/// Files that may be waited for at once. As many answers fit their queue, so that this thread never waits for the
/// scheduler, which may be waiting for it.
pub(super) const KEPT: usize = 64;

/// After this, a record that nobody waits for is on the disk: what a power cut takes of the past is bounded.
const SYNC_WITHIN: Duration = Duration::from_secs(1);

/// A file that a report of a worker rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskFile {
    Result(TaskId),
    Checkpoint(TaskId),
}

impl TaskFile {
    pub(super) fn name(self) -> &'static str {
        match self {
            TaskFile::Result(_) => "result",
            TaskFile::Checkpoint(_) => "checkpoint",
        }
    }

    /// It survives a power cut when this returns, if the spool is to survive one at all.
    pub(super) fn keep(self, files: &Files) -> io::Result<()> {
        match self {
            TaskFile::Result(task) => files.keep_result(task),
            TaskFile::Checkpoint(task) => files.keep_checkpoint(task),
        }
    }
}

/// Files of a task that nobody wants once its record is on the disk, and that are needed if it never gets there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unneeded {
    Inputs(TaskId),
    Result(TaskId),
}

impl Unneeded {
    pub(super) fn remove(self, files: &Files) {
        match self {
            Unneeded::Inputs(task) => files.remove_inputs(task),
            Unneeded::Result(task) => files.remove_result(task),
        }
    }
}

/// How that went.
#[derive(Debug)]
pub(super) struct Kept {
    pub worker: WorkerId,
    pub file: TaskFile,
    pub result: io::Result<()>,
}

/// The scheduler's end.
pub struct Syncer<W> {
    tx: Sender<Message<W>>,
    pub(super) failed_rx: Receiver<SyncFailed>,
    kept_rx: Receiver<Kept>,
    /// When what has been written and not been synced has to be.
    overdue_at: Option<Duration>,
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
    kept_tx: Sender<Kept>,
    /// Not taken by the scheduler yet. It grows by what is submitted until then, which the next journal comes after.
    failed: Option<SyncFailed>,
    journal: Option<File>,
    /// Why nothing rests on this journal any more; another one comes.
    broken: Option<String>,
    files: Files,
    keeps: VecDeque<(WorkerId, TaskFile)>,
    unneeded: Vec<Unneeded>,
}

/// What is served by one sync.
struct Round<W> {
    replies: Vec<Reply<W>>,
    flushes: Vec<Sender<()>>,
    wants_sync: bool,
}

impl<W> Syncer<W> {
    /// `journal`: or why it could not be written.
    pub fn new(
        journal: Result<File, String>,
        files: Files,
        replies_tx: Sender<Reply<W>>,
    ) -> (Syncer<W>, SyncThread<W>) {
        let (tx, rx) = bounded(QUEUE);
        // One that is not taken yet is added to.
        let (failed_tx, failed_rx) = bounded(1);
        let (kept_tx, kept_rx) = bounded(KEPT);
        let (journal, broken) = match journal {
            Ok(journal) => (Some(journal), None),
            Err(error) => (None, Some(error)),
        };
        let thread = SyncThread {
            rx,
            replies_tx,
            failed_tx,
            kept_tx,
            failed: None,
            journal,
            broken,
            files,
            keeps: VecDeque::new(),
            unneeded: Vec::new(),
        };
        (Syncer { tx, failed_rx, kept_rx, overdue_at: None }, thread)
    }

    /// Sends these, and removes those, once everything written so far is durable.
    pub(super) fn release(&mut self, replies: Vec<Reply<W>>, unneeded: Vec<Unneeded>) {
        self.overdue_at = None;
        self.send(Message::Release { replies, unneeded });
    }

    /// Nobody waits for what has been written.
    pub(super) fn sync_soon(&mut self, now: Duration) {
        self.overdue_at.get_or_insert(now + SYNC_WITHIN);
    }

    /// When [`Syncer::release`] is wanted at the latest.
    pub(super) fn overdue_at(&self) -> Option<Duration> {
        self.overdue_at
    }

    /// Has the file synced; how that went comes back.
    pub(super) fn keep(&self, worker: WorkerId, file: TaskFile) {
        self.send(Message::Keep { worker, file });
    }

    pub(super) fn kept(&self) -> Receiver<Kept> {
        self.kept_rx.clone()
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
        let mut round = Round { replies: Vec::new(), flushes: Vec::new(), wants_sync: false };
        loop {
            if self.keeps.is_empty() {
                let Ok(message) = self.rx.recv() else { return };
                self.take(message, &mut round);
            }
            self.take_all(&mut round);
            self.serve(&mut round);
            // Why one: whoever waits for the journal does not wait for all the files of others.
            if let Some((worker, file)) = self.keeps.pop_front() {
                let _ = self.kept_tx.send(Kept { worker, file, result: file.keep(&self.files) });
            }
            if self.keeps.is_empty() {
                for flush in round.flushes.drain(..) {
                    let _ = flush.send(());
                }
            }
        }
    }

    /// What is there now: what comes while it is taken has its turn later, or a busy scheduler would never let it end.
    fn take_all(&mut self, round: &mut Round<W>) {
        for _ in 0..self.rx.len() {
            let Ok(message) = self.rx.try_recv() else { return };
            self.take(message, round);
        }
    }

    /// Syncs what there is, and answers by how that went.
    fn serve(&mut self, round: &mut Round<W>) {
        if !std::mem::take(&mut round.wants_sync) {
            return;
        }
        self.sync();
        self.tell_failure(&round.replies);
        for reply in round.replies.drain(..) {
            let reply = match &self.broken {
                None => reply,
                Some(error) => undurable(reply, error),
            };
            let _ = self.replies_tx.send(reply);
        }
        if self.broken.is_none() {
            self.unneeded.drain(..).for_each(|unneeded| unneeded.remove(&self.files));
        }
    }

    /// Never a second time after a failure: the kernel tells it once, and may have dropped what it could not write.
    fn sync(&mut self) {
        if self.broken.is_none()
            && let Some(journal) = &self.journal
            && let Err(error) = journal.sync_data()
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

    fn take(&mut self, message: Message<W>, round: &mut Round<W>) {
        match message {
            Message::Release { replies, unneeded } => {
                round.replies.extend(replies);
                round.wants_sync = true;
                self.unneeded.extend(unneeded);
            }
            Message::Keep { worker, file } => self.keeps.push_back((worker, file)),
            Message::Journal(journal) => {
                // What came before it rests on the old one.
                self.serve(round);
                self.journal = Some(journal);
                self.broken = None;
            }
            Message::Flush(done_tx) => {
                round.flushes.push(done_tx);
                round.wants_sync = true;
            }
        }
    }
}

/// A 202 is a promise: what cannot be kept is not promised.
fn undurable<W>(reply: Reply<W>, error: &str) -> Reply<W> {
    let Reply { waiter, answer } = reply;
    match answer {
        Answer::Submitted { view, .. } if !view.state.is_terminal() => {
            Reply { waiter, answer: Answer::StorageFull { error: error.to_string(), retry_after: RETRY } }
        }
        Answer::Cancelled(CancelAnswer::Accepted, _) => {
            Reply { waiter, answer: Answer::CancelUnwritten { error: error.to_string(), retry_after: RETRY } }
        }
        kept => Reply { waiter, answer: kept },
    }
}

/// The task that [`undurable`] makes a no of; not if it is somebody else's, who was told yes before.
fn refused(answer: &Answer) -> Option<TaskId> {
    if let Answer::Submitted { view, is_duplicate: false } = answer {
        return (!view.state.is_terminal()).then_some(view.id);
    }
    None
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
        let (mut syncer, mut thread) = Syncer::new(Ok(broken_journal()), files, replies_tx);
        let mut pass = |syncer: &mut Syncer<u64>, replies: Vec<Reply<u64>>| {
            syncer.release(replies, Vec::new());
            let mut round = Round { replies: Vec::new(), flushes: Vec::new(), wants_sync: false };
            thread.take_all(&mut round);
            thread.serve(&mut round);
            let told: Vec<(u64, bool)> = replies_rx
                .try_iter()
                .map(|reply: Reply<u64>| (reply.waiter, matches!(reply.answer, Answer::Submitted { .. })))
                .collect();
            told
        };
        let told = pass(
            &mut syncer,
            vec![
                submitted(1, TaskState::Queued, false),
                submitted(2, TaskState::Running, true),
                submitted(3, TaskState::Completed, false),
            ],
        );
        assert_eq!(told, [(1, false), (2, false), (3, true)], "what has ended has ended");
        assert_eq!(pass(&mut syncer, vec![submitted(4, TaskState::Queued, false)]), [(4, false)]);
        assert_eq!(pass(&mut syncer, vec![submitted(5, TaskState::Queued, false)]), [(5, false)]);
        let first = syncer.failed_rx.try_recv().expect("the scheduler is told");
        assert_eq!(first.refused, [TaskId(1)], "a duplicate is another's task");
        assert!(first.error.contains("cannot sync the journal"), "{}", first.error);

        syncer.journal_replaced(File::create(root.path().join("journal")).expect("made"));
        assert_eq!(pass(&mut syncer, vec![submitted(6, TaskState::Queued, false)]), [(6, true)]);
        let second = syncer.failed_rx.try_recv().expect("and of the others");
        assert_eq!(second.refused, [4, 5].map(TaskId));
        assert_eq!(pass(&mut syncer, vec![submitted(7, TaskState::Queued, false)]), [(7, true)]);
        assert!(syncer.failed_rx.try_recv().is_err());
    }

    #[test]
    fn whoever_waits_for_the_journal_does_not_wait_for_the_files_of_others() {
        let root = tempfile::tempdir().expect("a directory");
        let files = Files::open(root.path(), true).expect("opens");
        let journal = File::create(root.path().join("journal")).expect("made");
        let (replies_tx, replies_rx) = bounded(16);
        let (mut syncer, mut thread) = Syncer::new(Ok(journal), files, replies_tx);
        for worker in 0..3 {
            syncer.keep(WorkerId(worker), TaskFile::Checkpoint(TaskId(worker)));
        }
        syncer.release(vec![submitted(1, TaskState::Queued, false)], Vec::new());
        let mut round = Round { replies: Vec::new(), flushes: Vec::new(), wants_sync: false };
        thread.take_all(&mut round);
        thread.serve(&mut round);
        assert_eq!(replies_rx.len(), 1);
        assert_eq!((thread.keeps.len(), syncer.kept_rx.len()), (3, 0));
        let kept_rx = syncer.kept();
        drop(syncer);
        thread.run();
        assert_eq!(kept_rx.len(), 3, "and they have their turn");
    }

    #[test]
    fn what_a_task_was_given_goes_once_its_end_is_on_the_disk() {
        let root = tempfile::tempdir().expect("a directory");
        let files = Files::open(root.path(), true).expect("opens");
        let payload = |task| {
            files.create_payload(TaskId(task)).expect("created").commit().expect("committed");
            files.payload_path(TaskId(task))
        };
        let (first, second) = (payload(1), payload(2));
        let (replies_tx, _replies_rx) = bounded(16);
        let (mut syncer, mut thread) = Syncer::<u64>::new(Ok(broken_journal()), files.clone(), replies_tx);
        let mut pass = |thread: &mut SyncThread<u64>, task| {
            syncer.release(Vec::new(), vec![Unneeded::Inputs(TaskId(task))]);
            let mut round = Round { replies: Vec::new(), flushes: Vec::new(), wants_sync: false };
            thread.take_all(&mut round);
            thread.serve(&mut round);
        };
        pass(&mut thread, 1);
        assert!(first.exists(), "the next start may want it");
        thread.journal = Some(File::create(root.path().join("journal")).expect("made"));
        thread.broken = None;
        pass(&mut thread, 2);
        assert!(!first.exists() && !second.exists());
    }
}
