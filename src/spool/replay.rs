//! From records to tasks: the state the last daemon was in.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::SpoolError;
use super::files::{Files, Found, Lost};
use crate::core::breaker::{BreakerMemory, RememberedPhase};
use crate::core::event::Record;
use crate::core::ids::{AgentName, TaskId};
use crate::core::ledger::FinishedTask;
use crate::core::restore::{Unfinished, UnfinishedState};
use crate::core::task::{Outcome, Payload, ResultPlace, Stored};

/// What a start takes over, in the order of acceptance.
#[derive(Debug, Default)]
pub struct Restored {
    pub finished: Vec<FinishedTask>,
    pub unfinished: Vec<Unfinished>,
    /// The most memory a task of each agent was seen to need, in bytes.
    pub footprints: Vec<(AgentName, u64)>,
    /// How those breakers stood that were not closed.
    pub breakers: Vec<(Arc<str>, BreakerMemory)>,
    /// The first task number that was never given out.
    pub next_task: u64,
    pub damaged_lines: usize,
    /// Why the journal could not be written anew. It has to be before anything is kept.
    pub trouble: Option<String>,
}

impl Restored {
    /// The shortest journal that says the same.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        let finished = self.finished.iter().map(|task| Record::Finished(Arc::new(task.clone())));
        let footprints = self
            .footprints
            .iter()
            .map(|(agent, peak_bytes)| Record::Footprint { agent: agent.clone(), peak_bytes: *peak_bytes });
        let breakers =
            self.breakers.iter().map(|(name, memory)| Record::Breaker { name: name.clone(), memory: *memory });
        finished.chain(footprints).chain(breakers).chain(self.unfinished.iter().flat_map(Unfinished::records))
    }
}

/// Records, one after the other, to where they lead. What it holds is what there is to know: a long journal about few tasks
/// costs little.
#[derive(Debug, Default)]
pub(super) struct Replay {
    unfinished: BTreeMap<TaskId, Unfinished>,
    finished: BTreeMap<TaskId, FinishedTask>,
    ended: Vec<TaskId>,
    footprints: BTreeMap<AgentName, u64>,
    breakers: BTreeMap<Arc<str>, BreakerMemory>,
    next: u64,
}

impl Replay {
    pub(super) fn numbers_begin_at(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    pub(super) fn take(&mut self, record: Record) {
        match record {
            Record::Accepted { task, spec, created_ms } => {
                self.numbers_begin_at(task.0 + 1);
                self.unfinished.insert(task, Unfinished::accepted(task, spec, created_ms));
            }
            Record::Started { task, started_ms } => {
                if let Some(task) = self.unfinished.get_mut(&task) {
                    task.started_ms = task.started_ms.or(Some(started_ms));
                    task.state = UnfinishedState::Running;
                }
            }
            Record::Returned { task, retries, memory_deaths, by_memory, preemptions, preempted, attempts } => {
                if let Some(task) = self.unfinished.get_mut(&task) {
                    (task.retries, task.memory_deaths, task.preemptions) = (retries, memory_deaths, preemptions);
                    task.by_memory = by_memory;
                    task.attempts = attempts;
                    task.state = if preempted { UnfinishedState::Preempted } else { UnfinishedState::Returned };
                }
            }
            Record::CancelRequested { task } => {
                if let Some(task) = self.unfinished.get_mut(&task) {
                    task.is_cancelled = true;
                }
            }
            Record::Footprint { agent, peak_bytes } => {
                self.footprints.insert(agent, peak_bytes);
            }
            Record::Breaker { name, memory } if memory.phase == RememberedPhase::Closed => {
                self.breakers.remove(&name);
            }
            Record::Breaker { name, memory } => {
                self.breakers.insert(name, memory);
            }
            Record::Finished(task) => {
                self.numbers_begin_at(task.id.0 + 1);
                self.unfinished.remove(&task.id);
                self.ended.push(task.id);
                self.finished.insert(task.id, Arc::unwrap_or_clone(task));
            }
            Record::Forgotten { task } => {
                self.finished.remove(&task);
            }
        }
    }

    pub(super) fn restored(mut self) -> Restored {
        Restored {
            finished: self.ended.into_iter().filter_map(|task| self.finished.remove(&task)).collect(),
            unfinished: self.unfinished.into_values().collect(),
            footprints: self.footprints.into_iter().collect(),
            breakers: self.breakers.into_iter().collect(),
            next_task: self.next.max(1),
            damaged_lines: 0,
            trouble: None,
        }
    }
}

/// Holds the records against the files: only a whole payload, checkpoint or result counts, and files of tasks that nobody
/// knows are removed, or set aside if it is the journal's fault.
///
/// # Errors
///
/// A payload that may be whole cannot be read, for want of a right or a descriptor.
pub(super) fn reconcile(restored: &mut Restored, files: &Files, found: &Found) -> Result<(), SpoolError> {
    for task in &mut restored.unfinished {
        if let Payload::File(stored) = task.spec.payload
            && let Err(lost) = files.check_payload(task.id, stored)
        {
            if let Lost::Unknown(source) = lost {
                return Err(SpoolError::Io { what: "read", path: files.payload_path(task.id), source });
            }
            task.lost = Some(lost.to_string().into_boxed_str());
        }
        // Of one that cannot be read now, nobody knows that it is lost.
        task.has_checkpoint =
            files.has_checkpoint(task.id) && matches!(files.read_checkpoint(task.id), Ok(_) | Err(Lost::Unknown(_)));
    }
    // In the order of their numbers, both; what ended is not.
    let unfinished = &restored.unfinished;
    let results: BTreeMap<TaskId, Stored> = restored.finished.iter().filter_map(result_file).collect();
    for (task, stored) in &results {
        files.look_at_result(*task, *stored);
    }
    // What was to be read is out of the way already.
    found.strangers.iter().for_each(|path| files.damaged().set_stranger_aside(path));
    for &task in &found.tasks {
        let known = unfinished.binary_search_by_key(&task, |known| known.id).ok().map(|place| &unfinished[place]);
        match known {
            Some(known) => {
                if matches!(known.spec.payload, Payload::Inline(_)) && !known.has_checkpoint {
                    files.remove_inputs(task);
                }
                files.remove_result(task);
            }
            None if results.contains_key(&task) => files.remove_inputs(task),
            None if restored.damaged_lines > 0 => files.set_task_aside(task),
            None => {
                files.remove_inputs(task);
                files.remove_result(task);
            }
        }
    }
    Ok(())
}

fn result_file(task: &FinishedTask) -> Option<(TaskId, Stored)> {
    match &task.outcome {
        Outcome::Completed(result) => match result.place {
            ResultPlace::File(stored) => Some((task.id, stored)),
            ResultPlace::Inline(_) => None,
        },
        Outcome::Failed(_) | Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted => None,
    }
}
