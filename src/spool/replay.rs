//! From records to tasks: the state the last daemon was in.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::files::Files;
use crate::core::attempts::Attempts;
use crate::core::event::Record;
use crate::core::ids::{AgentName, TaskId};
use crate::core::ledger::FinishedTask;
use crate::core::restore::{Unfinished, UnfinishedState};
use crate::core::task::{Outcome, Payload, ResultPlace};

/// What a start takes over, in the order of acceptance.
#[derive(Debug, Default)]
pub struct Restored {
    pub finished: Vec<FinishedTask>,
    pub unfinished: Vec<Unfinished>,
    /// The most memory a task of each agent was seen to need, in bytes.
    pub footprints: Vec<(AgentName, u64)>,
    /// The first task number that was never given out.
    pub next_task: u64,
    pub damaged_lines: usize,
}

impl Restored {
    /// The shortest journal that says the same.
    pub(super) fn records(&self) -> Vec<Record> {
        let finished = self.finished.iter().map(|task| Record::Finished(Arc::new(task.clone())));
        let footprints = self
            .footprints
            .iter()
            .map(|(agent, peak_bytes)| Record::Footprint { agent: agent.clone(), peak_bytes: *peak_bytes });
        finished.chain(footprints).chain(self.unfinished.iter().flat_map(Unfinished::records)).collect()
    }
}

pub(super) fn replay(records: Vec<Record>, next: u64) -> Restored {
    let mut unfinished: BTreeMap<TaskId, Unfinished> = BTreeMap::new();
    let mut finished: BTreeMap<TaskId, FinishedTask> = BTreeMap::new();
    let mut ended: Vec<TaskId> = Vec::new();
    let mut footprints: BTreeMap<AgentName, u64> = BTreeMap::new();
    let mut next = next;
    for record in records {
        match record {
            Record::Accepted { task, spec, created_ms } => {
                next = next.max(task.0 + 1);
                let state = UnfinishedState::Queued;
                let new = Unfinished {
                    id: task,
                    spec,
                    created_ms,
                    started_ms: None,
                    retries: 0,
                    memory_deaths: 0,
                    attempts: Attempts::default(),
                    preemptions: 0,
                    state,
                    has_checkpoint: false,
                };
                unfinished.insert(task, new);
            }
            Record::Started { task, started_ms } => {
                if let Some(task) = unfinished.get_mut(&task) {
                    task.started_ms = task.started_ms.or(Some(started_ms));
                    task.state = UnfinishedState::Running;
                }
            }
            Record::Footprint { agent, peak_bytes } => {
                footprints.insert(agent, peak_bytes);
            }
            Record::Returned { task, retries, memory_deaths, preemptions, preempted, attempts } => {
                if let Some(task) = unfinished.get_mut(&task) {
                    (task.retries, task.memory_deaths, task.preemptions) = (retries, memory_deaths, preemptions);
                    task.attempts = attempts;
                    task.state = if preempted { UnfinishedState::Preempted } else { UnfinishedState::Returned };
                }
            }
            Record::Finished(task) => {
                next = next.max(task.id.0 + 1);
                unfinished.remove(&task.id);
                ended.push(task.id);
                finished.insert(task.id, FinishedTask::clone(&task));
            }
            Record::Forgotten { task } => {
                finished.remove(&task);
            }
        }
    }
    Restored {
        finished: ended.into_iter().filter_map(|task| finished.remove(&task)).collect(),
        unfinished: unfinished.into_values().collect(),
        footprints: footprints.into_iter().collect(),
        next_task: next,
        damaged_lines: 0,
    }
}

/// Holds the records against the files: a checkpoint counts only if it is whole, and files of tasks that nobody knows
/// are removed.
pub(super) fn reconcile(restored: &mut Restored, files: &Files) -> std::io::Result<()> {
    for task in &mut restored.unfinished {
        task.has_checkpoint = files
            .read_checkpoint(task.id)
            .is_ok_and(|text| serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok());
    }
    for task in files.tasks_with_files()? {
        let wants_inputs = restored.unfinished.iter().find(|known| known.id == task);
        let wants_result = restored.finished.iter().find(|known| known.id == task);
        if wants_inputs.is_none_or(|known| matches!(known.spec.payload, Payload::Inline(_)) && !known.has_checkpoint) {
            files.remove_inputs(task);
        }
        let keeps_result = wants_result.is_some_and(|known| match &known.outcome {
            Outcome::Completed(result) => matches!(result.place, ResultPlace::File { .. }),
            Outcome::Failed(_) | Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted => false,
        });
        if !keeps_result {
            files.remove_result(task);
        }
    }
    Ok(())
}
