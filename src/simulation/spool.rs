//! A spool without a disk: what would be found after a crash. Records go through the simplest of state machines, which
//! insists that they make sense.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::breaker::{BreakerMemory, RememberedPhase};
use crate::core::event::Record;
use crate::core::ids::{AgentName, TaskId};
use crate::core::ledger::FinishedTask;
use crate::core::restore::{Unfinished, UnfinishedState};

/// What a list of records says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Remembered {
    pub unfinished: BTreeMap<TaskId, Unfinished>,
    pub finished: BTreeMap<TaskId, Arc<FinishedTask>>,
    pub footprints: BTreeMap<AgentName, u64>,
    /// Those that are not closed.
    pub breakers: BTreeMap<Arc<str>, BreakerMemory>,
    /// The highest task number that was ever written; no task gets it again.
    pub last_task: u64,
}

impl Remembered {
    /// # Panics
    ///
    /// If the record contradicts those before it: the core has a bug.
    pub fn replay(&mut self, record: &Record) {
        match record {
            Record::Accepted { task, spec, created_ms } => {
                let unfinished = Unfinished::accepted(*task, spec.clone(), *created_ms);
                self.last_task = self.last_task.max(task.0);
                let known = self.unfinished.insert(*task, unfinished).is_some() || self.finished.contains_key(task);
                assert!(!known, "{task} was accepted twice");
            }
            Record::Started { task, started_ms } => {
                let task = self.living(*task);
                assert_ne!(task.state, UnfinishedState::Running, "{} was started twice", task.id);
                task.state = UnfinishedState::Running;
                task.started_ms = task.started_ms.or(Some(*started_ms));
            }
            Record::Returned { task, retries, memory_deaths, by_memory, preemptions, preempted, attempts } => {
                let task = self.living(*task);
                assert!(*retries >= task.retries && *preemptions >= task.preemptions, "{} counts back", task.id);
                (task.retries, task.memory_deaths, task.preemptions) = (*retries, *memory_deaths, *preemptions);
                assert!(*by_memory || !task.by_memory, "{} forgets that memory stopped it", task.id);
                assert!(!task.is_cancelled, "{} was cancelled and goes on", task.id);
                task.by_memory = *by_memory;
                task.attempts = attempts.clone();
                task.state = if *preempted { UnfinishedState::Preempted } else { UnfinishedState::Returned };
            }
            Record::CancelRequested { task } => {
                let task = self.living(*task);
                assert_eq!(task.state, UnfinishedState::Running, "{} waits, and is cancelled by its end", task.id);
                assert!(!std::mem::replace(&mut task.is_cancelled, true), "{} was cancelled twice", task.id);
            }
            Record::Breaker { name, memory } => {
                if memory.phase == RememberedPhase::Closed {
                    self.breakers.remove(name);
                } else {
                    self.breakers.insert(name.clone(), *memory);
                }
            }
            Record::Finished(finished) => {
                let task = finished.id;
                let lived = self.unfinished.remove(&task).is_some();
                let ended = self.finished.insert(task, finished.clone()).is_some();
                assert!(lived && !ended, "{task} ended and was not alive");
            }
            Record::Footprint { agent, peak_bytes } => {
                self.footprints.insert(agent.clone(), *peak_bytes);
            }
            Record::Forgotten { task } => {
                self.finished.remove(task).unwrap_or_else(|| panic!("{task} was forgotten and had not ended"));
            }
        }
    }

    /// From the shortest list of records, in which a finished task was never accepted.
    pub fn from_shortest(records: &[Record]) -> Remembered {
        let mut remembered = Remembered::default();
        for record in records {
            match record {
                Record::Finished(finished) => {
                    remembered.finished.insert(finished.id, finished.clone());
                }
                Record::Accepted { .. }
                | Record::Started { .. }
                | Record::Returned { .. }
                | Record::CancelRequested { .. }
                | Record::Breaker { .. }
                | Record::Footprint { .. }
                | Record::Forgotten { .. } => remembered.replay(record),
            }
        }
        remembered
    }

    fn living(&mut self, task: TaskId) -> &mut Unfinished {
        self.unfinished.get_mut(&task).unwrap_or_else(|| panic!("{task} is not alive"))
    }
}

/// A spool whose disk does what it is told to.
#[derive(Debug, Default)]
pub struct Spool {
    /// Survives everything.
    synced: Remembered,
    /// Written and not synced: survives the daemon's end, and of a power cut some of the first.
    written: Vec<Record>,
    /// Checkpoints that lie in files.
    pub checkpoints: BTreeSet<TaskId>,
    /// The disk is full or broken: nothing can be written.
    pub is_failing: bool,
}

/// How a daemon that did not stop by itself ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// It alone: what was written is there.
    Daemon,
    /// The machine with it: so many of the records that were not synced are there all the same.
    Power { kept: usize },
}

impl Spool {
    /// Whether they were written.
    pub fn append(&mut self, records: &[Record]) -> bool {
        if !self.is_failing {
            self.written.extend_from_slice(records);
        }
        !self.is_failing
    }

    /// Replaces everything by the shortest list of records that says how it stands. Whether that worked.
    pub fn rewrite(&mut self, records: &[Record], last_task: u64) -> bool {
        if !self.is_failing {
            self.sync();
            let before = std::mem::replace(&mut self.synced, Remembered::from_shortest(records));
            self.synced.last_task = last_task;
            let has_come_back = before.finished.keys().find(|task| self.synced.unfinished.contains_key(task));
            assert_eq!(has_come_back, None, "a task came back from its end");
        }
        !self.is_failing
    }

    pub fn sync(&mut self) {
        for record in self.written.drain(..) {
            self.synced.replay(&record);
            // The files of a task go once its end is safe.
            if let Record::Finished(task) = &record {
                self.checkpoints.remove(&task.id);
            }
        }
    }

    pub fn unsynced(&self) -> usize {
        self.written.len()
    }

    /// What survives everything.
    pub fn synced(&self) -> &Remembered {
        &self.synced
    }

    /// What the next start finds, as it hands it to the core: only whole checkpoints count.
    pub fn recover(&mut self, crash: Crash) -> &Remembered {
        match crash {
            Crash::Daemon => {}
            Crash::Power { kept } => self.written.truncate(kept),
        }
        self.sync();
        let unfinished = &mut self.synced.unfinished;
        self.checkpoints.retain(|task| unfinished.contains_key(task));
        for task in unfinished.values_mut() {
            task.has_checkpoint = self.checkpoints.contains(&task.id);
        }
        &self.synced
    }
}
