//! The core's notices as log lines.

use log::kv::{self, Key, Value, VisitSource};

use crate::core::ids::IncidentId;
use crate::core::notice::{Field, Notice, Severity};
use crate::core::view::Snapshot;

/// `incident`: the memory pressure that is on, whether or not the notice is about it.
pub(super) fn log_notice(notice: &Notice, incident: Option<IncidentId>) {
    let level = match notice.severity() {
        Severity::Debug => log::Level::Debug,
        Severity::Info => log::Level::Info,
        Severity::Warning => log::Level::Warn,
        Severity::Error => log::Level::Error,
    };
    if level > log::max_level() {
        return;
    }
    let values = Values { notice, incident };
    log::logger().log(
        &log::Record::builder()
            .level(level)
            .target("kurultai")
            .args(format_args!("{}", notice.name()))
            .key_values(&values)
            .build(),
    );
}

struct Values<'a> {
    notice: &'a Notice,
    incident: Option<IncidentId>,
}

impl kv::Source for Values<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        let mut result = Ok(());
        let mut names_incident = false;
        self.notice.fields(&mut |name, field| {
            names_incident |= name == "incident";
            if result.is_ok() {
                let value = match field {
                    Field::Text(text) => Value::from(text),
                    Field::Id(id) => Value::from_dyn_display(id),
                    Field::Count(count) => Value::from(count),
                    Field::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => Value::from(number as i64),
                    Field::Number(number) => Value::from(number),
                    Field::Flag(flag) => Value::from(flag),
                };
                result = visitor.visit_pair(Key::from_str(name), value);
            }
        });
        match &self.incident {
            Some(incident) if !names_incident && result.is_ok() => {
                visitor.visit_pair(Key::from_str("incident"), Value::from_dyn_display(incident))
            }
            Some(_) | None => result,
        }
    }
}

/// One line an item, for somebody with a log and a signal and nothing else.
pub(super) fn log_state(snapshot: &Snapshot) {
    let memory = &snapshot.memory;
    log::info!(
        level = memory.level.name(), pressure = (memory.pressure * 1000.0).round() / 1000.0, limitBytes = memory.settings.limit_bytes;
        "STATE_MEMORY"
    );
    let queue = &snapshot.queue;
    log::info!(depth = queue.depth, maxDepth = queue.max_depth, parked = queue.parked; "STATE_QUEUE");
    for (task, agent, priority, state) in &queue.tasks {
        log::info!(task:% = task, agent:% = agent, priority = priority.name(), state = state.name(); "STATE_TASK");
    }
    for worker in &snapshot.workers.workers {
        log::info!(
            worker:% = worker.id, agent:% = worker.agent, pid = worker.pid, state = worker.state,
            task = worker.task.map(|task| task.to_string()), rssBytes = worker.rss_bytes;
            "STATE_WORKER"
        );
    }
    for (breaker, view) in &snapshot.breakers {
        log::info!(breaker:% = breaker, state = view.state.name(), openings = view.openings; "STATE_BREAKER");
    }
    for schedule in &snapshot.schedules {
        log::info!(
            schedule:% = schedule.name, agent:% = schedule.agent, nextInS = schedule.next_in.as_secs(),
            skipped = schedule.skipped;
            "STATE_SCHEDULE"
        );
    }
}
