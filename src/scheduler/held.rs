//! Reports that rest on a file: the core hears of a result or a checkpoint once that survives a power cut, for its record
//! must not be older than what it speaks of. What the same worker says after it waits with it.

use std::collections::{BTreeMap, VecDeque};

use crossbeam::channel::{Receiver, never};

use super::Scheduler;
use super::sync::{KEPT, Kept, TaskFile};
use crate::core::event::Event;
use crate::core::ids::WorkerId;
use crate::core::order::{Report, WorkerReport};
use crate::spool::advice;

#[derive(Debug)]
pub(super) struct Held {
    /// The first of each waits for its file.
    reports: BTreeMap<WorkerId, VecDeque<WorkerReport>>,
    pub(super) kept_rx: Receiver<Kept>,
}

impl Held {
    pub(super) fn new(kept_rx: Option<Receiver<Kept>>) -> Held {
        Held { reports: BTreeMap::new(), kept_rx: kept_rx.unwrap_or_else(never) }
    }

    pub(super) fn next_kept(&self) -> Option<Kept> {
        self.kept_rx.try_recv().ok()
    }

    /// Takes a report whose turn has not come. Readings and questions need not wait, and there is no end of them.
    fn queue(&mut self, report: WorkerReport) -> Option<WorkerReport> {
        match (self.reports.get_mut(&report.worker), &report.report) {
            (None, _) | (_, Report::Memory(_) | Report::Breaker { .. } | Report::Progress { .. }) => Some(report),
            (
                Some(queue),
                Report::Spawned { .. }
                | Report::SpawnFailed { .. }
                | Report::Ready { .. }
                | Report::Completed { .. }
                | Report::Failed { .. }
                | Report::Preempted { .. }
                | Report::ProtocolError { .. }
                | Report::Exited(_),
            ) => {
                queue.push_back(report);
                None
            }
        }
    }
}

impl<W: Send + 'static> Scheduler<W> {
    /// The file this report rests on, if it does.
    fn file_of(&self, WorkerReport { worker, report }: &WorkerReport) -> Option<TaskFile> {
        match report {
            Report::Completed { task, result } => result.is_file().then_some(TaskFile::Result(*task)),
            Report::Preempted { task, checkpoint } => checkpoint.then_some(TaskFile::Checkpoint(*task)),
            Report::Exited(exit) => {
                exit.result.as_ref().filter(|result| result.is_file())?;
                self.core.worker_task(*worker).map(TaskFile::Result)
            }
            Report::Spawned { .. }
            | Report::SpawnFailed { .. }
            | Report::Ready { .. }
            | Report::Progress { .. }
            | Report::Failed { .. }
            | Report::Memory(_)
            | Report::Breaker { .. }
            | Report::ProtocolError { .. } => None,
        }
    }

    pub(super) fn report(&mut self, report: WorkerReport) {
        self.watching.reported(&report);
        let Some(mut report) = self.held.queue(report) else { return };
        if let Some(file) = self.file_of(&report) {
            match &self.ports.syncer {
                // Why the bound: neither thread may wait for the other.
                Some(syncer) if self.held.reports.len() < KEPT => {
                    syncer.keep(report.worker, file);
                    self.held.reports.insert(report.worker, VecDeque::from([report]));
                    return;
                }
                Some(_) | None => {
                    if let Err(error) = file.keep(&self.files) {
                        self.unkept(&mut report.report, file, &error);
                    }
                }
            }
        }
        self.step(Event::Worker(report));
        self.perform();
    }

    /// The file of a report is safe, or cannot be made so; what was behind it follows.
    pub(super) fn file_kept(&mut self, kept: Kept) {
        let Kept { worker, file, result } = kept;
        let mut reports = self.held.reports.remove(&worker).unwrap_or_default().into_iter();
        let Some(mut first) = reports.next() else { return };
        if let Err(error) = result {
            self.unkept(&mut first.report, file, &error);
        }
        self.step(Event::Worker(first));
        self.perform();
        for report in reports {
            self.step(Event::Worker(report));
            self.perform();
        }
    }

    /// A result that cannot be kept is none; a checkpoint is there as long as the machine runs.
    fn unkept(&self, report: &mut Report, file: TaskFile, error: &std::io::Error) {
        let why = format!("the {} cannot be kept: {error}; {}", file.name(), advice(error));
        match report {
            Report::Completed { task, .. } => {
                self.files.remove_result(*task);
                *report = Report::Failed { task: *task, error: why, stack: None, retryable: false };
            }
            Report::Exited(exit) => {
                if let TaskFile::Result(task) = file {
                    self.files.remove_result(task);
                }
                exit.result = None;
                exit.result_error = Some(why);
            }
            Report::Preempted { task, .. } => log::error!(task:% = task; "{why}; it may not survive a power cut"),
            Report::Spawned { .. }
            | Report::SpawnFailed { .. }
            | Report::Ready { .. }
            | Report::Progress { .. }
            | Report::Failed { .. }
            | Report::Memory(_)
            | Report::Breaker { .. }
            | Report::ProtocolError { .. } => {}
        }
    }
}
