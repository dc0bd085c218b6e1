//! What the spool would know: the records replayed through the simplest of state machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::core::Core;
use crate::core::attempts::Attempts;
use crate::core::event::Record;
use crate::core::ids::TaskId;
use crate::core::ledger::FinishedTask;
use crate::core::restore::{Unfinished, UnfinishedState};
use crate::core::task::TaskState;

#[derive(Debug, Default)]
pub struct Remembered {
    pub unfinished: BTreeMap<TaskId, Unfinished>,
    pub finished: BTreeMap<TaskId, Arc<FinishedTask>>,
    pub ever: BTreeSet<TaskId>,
}

impl Remembered {
    pub fn replay(&mut self, record: &Record) {
        match record {
            Record::Accepted { task, spec, created_ms } => {
                assert!(self.ever.insert(*task), "{task} was accepted twice");
                let unfinished = Unfinished {
                    id: *task,
                    spec: spec.clone(),
                    created_ms: *created_ms,
                    started_ms: None,
                    retries: 0,
                    memory_deaths: 0,
                    attempts: Attempts::default(),
                    preemptions: 0,
                    state: UnfinishedState::Queued,
                    has_checkpoint: false,
                };
                self.unfinished.insert(*task, unfinished);
            }
            Record::Started { task, started_ms } => {
                let task = self.living(*task);
                assert_ne!(task.state, UnfinishedState::Running, "{} was started twice", task.id);
                task.state = UnfinishedState::Running;
                task.started_ms = task.started_ms.or(Some(*started_ms));
            }
            Record::Returned { task, retries, memory_deaths, preemptions, preempted, attempts } => {
                let task = self.living(*task);
                assert!(*retries >= task.retries && *preemptions >= task.preemptions, "{} counts back", task.id);
                (task.retries, task.memory_deaths, task.preemptions) = (*retries, *memory_deaths, *preemptions);
                task.attempts = attempts.clone();
                task.state = if *preempted { UnfinishedState::Preempted } else { UnfinishedState::Returned };
            }
            Record::Finished(finished) => {
                let task = finished.id;
                self.unfinished.remove(&task).unwrap_or_else(|| panic!("{task} ended and was not alive"));
                self.finished.insert(task, finished.clone());
            }
            Record::Footprint { .. } => {}
            Record::Forgotten { task } => {
                self.finished.remove(task).unwrap_or_else(|| panic!("{task} was forgotten and had not ended"));
            }
        }
    }

    fn living(&mut self, task: TaskId) -> &mut Unfinished {
        self.unfinished.get_mut(&task).unwrap_or_else(|| panic!("{task} is not alive"))
    }

    /// What is remembered is what the core holds.
    pub fn check(&self, core: &Core) {
        let mut live = core.ledger.live();
        for remembered in self.unfinished.values() {
            let task = live.next().unwrap_or_else(|| panic!("{} is remembered and not alive", remembered.id));
            assert_eq!(task.id, remembered.id);
            let state = match remembered.state {
                UnfinishedState::Queued | UnfinishedState::Returned => TaskState::Queued,
                UnfinishedState::Preempted => TaskState::Preempted,
                UnfinishedState::Running => TaskState::Running,
            };
            assert_eq!((task.state(), task.retries, task.preemptions), {
                (state, remembered.retries, remembered.preemptions)
            });
        }
        assert!(live.next().is_none(), "a task is alive that nobody remembers");
        assert!(self.finished.keys().eq(core.ledger.finished_all().map(|task| &task.id)), "the ended differ");
    }
}
