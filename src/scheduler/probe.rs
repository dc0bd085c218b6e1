//! Submissions that are asked about before their payloads have come, so that none is sent for nothing.

use super::Scheduler;
use super::call::{Answer, Draft};
use crate::core::admission::DRAIN_RETRY;
use crate::core::event::Event;
use crate::core::ids::TaskId;
use crate::core::notice::Notice;
use crate::core::refusal::Refusal;

impl<W: Send + 'static> Scheduler<W> {
    /// A refusal counts and is told as one, for the submission itself will not come; but not that of an envelope, of which
    /// nobody knows yet for which agent it is.
    pub(super) fn probe(&mut self, task: TaskId, draft: Option<Box<Draft>>) -> Answer {
        let refusal = match &draft {
            Some(draft) => self.storage_refusal_of(draft),
            None => self.storage_refusal(),
        };
        if let Some(answer) = refusal {
            if let Some(draft) = draft {
                self.note_refused_for_storage(*draft, &answer);
            }
            return answer;
        }
        // Why: what refuses may have passed since the core last heard of the time.
        self.step(Event::DeadlinePassed);
        self.perform();
        let Some(draft) = draft else {
            let is_draining = self.core.is_draining();
            return if is_draining {
                Answer::Refused(Refusal::Draining { retry_after: DRAIN_RETRY })
            } else {
                Answer::Admissible
            };
        };
        let spec = draft.complete(self.core.settings());
        match self.core.would_admit(task, &spec) {
            Ok(()) => Answer::Admissible,
            Err(refusal) => {
                self.note(Notice::TaskRejected {
                    agent: spec.agent,
                    code: refusal.code(),
                    text: refusal.to_string(),
                    request: spec.request_id,
                });
                Answer::Refused(refusal)
            }
        }
    }

    pub(super) fn note_refused_for_storage(&mut self, draft: Draft, answer: &Answer) {
        if let Answer::StorageFull { error, .. } = answer {
            let (agent, request) = (draft.agent, draft.request_id);
            self.note(Notice::TaskRejected { agent, code: "storage_full", text: error.clone(), request });
        }
    }
}
