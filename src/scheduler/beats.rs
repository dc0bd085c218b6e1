//! Tasks that schedules make.

use std::sync::Arc;
use std::time::Duration;

use super::{NOBODY, Scheduler};
use crate::core::event::Event;
use crate::core::ids::TaskId;
use crate::core::limits;
use crate::core::notice::Notice;
use crate::core::settings::ScheduleSettings;
use crate::core::task::{Payload, PayloadKind, TaskSpec};

impl<W: Send + 'static> Scheduler<W> {
    pub(super) fn beat(&mut self, schedule: &ScheduleSettings) {
        if schedule.skippable && self.storage_refusal().is_some() {
            return self.note(Notice::HeartbeatSkipped {
                schedule: Some(schedule.name.clone()),
                task: None,
                agent: schedule.agent.clone(),
                text: "the disk is full",
                incident: None,
            });
        }
        let agent = self.core.settings().agents.get(&schedule.agent);
        let task = self.ids.take();
        let spec = Box::new(TaskSpec {
            agent: schedule.agent.clone(),
            priority: schedule.priority,
            payload: self.schedule_payload(task, schedule),
            payload_kind: PayloadKind::Json,
            timeout: agent.map_or(Duration::ZERO, |agent| agent.task_timeout),
            max_retries: agent.map_or(0, |agent| agent.max_retries),
            preemptible: agent.is_none_or(|agent| agent.preemptible),
            skippable: schedule.skippable,
            idempotency_key: None,
            request_id: Arc::from(format!("schedule-{}", schedule.name)),
            schedule: Some(schedule.name.clone()),
        });
        self.step(Event::Submitted { ticket: NOBODY, task, spec });
    }

    fn schedule_payload(&self, task: TaskId, schedule: &ScheduleSettings) -> Payload {
        if schedule.payload.len() <= limits::INLINE_PAYLOAD_MAX {
            return Payload::Inline(schedule.payload.clone());
        }
        let written = self.files.create_payload(task).and_then(|mut file| {
            std::io::Write::write_all(&mut file, &schedule.payload)?;
            file.commit()
        });
        match written {
            Ok(stored) => Payload::File(stored),
            // The configuration holds it all the same, so it may travel in memory this once.
            Err(_) => Payload::Inline(schedule.payload.clone()),
        }
    }
}
