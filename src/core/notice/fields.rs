//! A notice's values, named as in the log and the API.

use std::fmt;
use std::time::Duration;

use super::{Field, Notice};
use crate::core::ids::IncidentId;

impl Notice {
    /// Its values in a fixed order, named as in the log; `each` is called once a value.
    pub fn fields<'a>(&'a self, each: &mut dyn FnMut(&'static str, Field<'a>)) {
        match self {
            Notice::TaskAccepted { task, agent, priority, request, waiting } => {
                each("task", id(task));
                each("agent", text(agent));
                each("priority", text(priority.name()));
                each("waiting", Field::Count(*waiting as u64));
                each("request", text(request));
            }
            Notice::TaskRejected { agent, code, text: why, request } => {
                each("agent", text(agent));
                each("code", text(code));
                each("text", text(why));
                each("request", text(request));
            }
            Notice::TaskWaiting { task, agent, text: why, incident } => {
                each_incident(incident.as_ref(), each);
                each("task", id(task));
                each("agent", text(agent));
                each("text", text(why));
            }
            Notice::TaskStarted { task, worker, agent, attempt, waited, request } => {
                each("task", id(task));
                each("worker", id(worker));
                each("agent", text(agent));
                each("attempt", Field::Count(u64::from(*attempt)));
                each("waitedMs", millis(waited));
                each("request", text(request));
            }
            Notice::TaskProgress { task, percent, message } => {
                each("task", id(task));
                each("percent", Field::Number(*percent));
                optional(message.as_deref(), "message", each);
            }
            Notice::TaskCompleted { task, worker, agent, run_time, result_bytes, request } => {
                each("task", id(task));
                if let Some(worker) = worker {
                    each("worker", id(worker));
                }
                each("agent", text(agent));
                each("durationMs", millis(run_time));
                each("resultBytes", Field::Count(*result_bytes));
                each("request", text(request));
            }
            Notice::TaskFailed { task, worker, agent, code, text: why, run_time, request } => {
                each("task", id(task));
                if let Some(worker) = worker {
                    each("worker", id(worker));
                }
                each("agent", text(agent));
                each("code", text(code.name()));
                each("text", text(why));
                if let Some(run_time) = run_time {
                    each("durationMs", millis(run_time));
                }
                each("request", text(request));
            }
            Notice::TaskRetried { task, agent, code, text: why, retries, max_retries, request } => {
                each("task", id(task));
                each("agent", text(agent));
                each("code", text(code.name()));
                each("text", text(why));
                each("retries", Field::Count(u64::from(*retries)));
                each("maxRetries", Field::Count(u64::from(*max_retries)));
                each("request", text(request));
            }
            Notice::TaskCancelled { task, agent, request } => {
                each("task", id(task));
                each("agent", text(agent));
                each("request", text(request));
            }
            Notice::TaskPreempted { task, worker, agent, has_checkpoint, preemptions, request, incident } => {
                each_incident(incident.as_ref(), each);
                each("task", id(task));
                each("worker", id(worker));
                each("agent", text(agent));
                each("checkpoint", Field::Flag(*has_checkpoint));
                each("preemptions", Field::Count(u64::from(*preemptions)));
                each("request", text(request));
            }
            Notice::TaskEvicted { task, agent, made_room_for, request } => {
                each("task", id(task));
                each("agent", text(agent));
                each("madeRoomFor", id(made_room_for));
                each("request", text(request));
            }
            Notice::TaskKilled { task, worker, agent, code, text: why, request, incident } => {
                each_incident(incident.as_ref(), each);
                each("task", id(task));
                each("worker", id(worker));
                each("agent", text(agent));
                each("code", text(code.name()));
                each("text", text(why));
                each("request", text(request));
            }
            Notice::HeartbeatSkipped { schedule, task, agent, text: why, incident } => {
                if let Some(task) = task {
                    each("task", id(task));
                }
                optional(schedule.as_deref(), "schedule", each);
                each("agent", text(agent));
                each("text", text(why));
                each_incident(incident.as_ref(), each);
            }
            Notice::WorkerSpawned { worker, agent, pid } => {
                each("worker", id(worker));
                each("agent", text(agent));
                each("pid", Field::Count(u64::from(*pid)));
            }
            Notice::WorkerExited { worker, agent, reason, status, signal, text: why } => {
                each("worker", id(worker));
                each("agent", text(agent));
                each("reason", text(reason.name()));
                if let Some(status) = status {
                    each("status", Field::Number(f64::from(*status)));
                }
                if let Some(signal) = signal {
                    each("signal", Field::Number(f64::from(*signal)));
                }
                if !why.is_empty() {
                    each("text", text(why));
                }
            }
            Notice::WorkerKilled { worker, agent, text: why } => {
                each("worker", id(worker));
                each("agent", text(agent));
                each("text", text(why));
            }
            Notice::AgentUnavailable { agent, failures, retry_after } => {
                each("agent", text(agent));
                each("failures", Field::Count(*failures as u64));
                each("retryAfterS", Field::Count(retry_after.as_secs()));
            }
            Notice::Circuit { breaker, to: _, openings, retry_after } => {
                each("breaker", text(breaker));
                each("openings", Field::Count(*openings as u64));
                if let Some(retry_after) = retry_after {
                    each("retryAfterMs", millis(retry_after));
                }
            }
            Notice::WorkerSoftLimit { worker, agent, rss_bytes, soft_limit_bytes, incident } => {
                each_incident(incident.as_ref(), each);
                each("worker", id(worker));
                each("agent", text(agent));
                each("rssBytes", Field::Count(*rss_bytes));
                each("softLimitBytes", Field::Count(*soft_limit_bytes));
            }
            Notice::MemoryAction { action, task, worker, text: why, incident } => {
                each_incident(incident.as_ref(), each);
                each("action", text(action));
                if let Some(task) = task {
                    each("task", id(task));
                }
                if let Some(worker) = worker {
                    each("worker", id(worker));
                }
                each("text", text(why));
            }
            Notice::StorageFull { text: why, free_bytes } => {
                each("text", text(why));
                each_free(*free_bytes, each);
            }
            Notice::StorageCleared { free_bytes } => each_free(*free_bytes, each),
            Notice::ConfigReloaded { changed, needs_restart } => {
                each("changed", text(changed));
                each("needsRestart", text(needs_restart));
            }
            Notice::ConfigRejected { text: why } => each("text", text(why)),
            Notice::MemoryLevel { from, to, pressure, usage_bytes, limit_bytes, incident } => {
                each("incident", id(incident));
                each("from", text(from.name()));
                each("to", text(to.name()));
                each("pressure", Field::Number((pressure * 1000.0).round() / 1000.0));
                each("usageBytes", Field::Count(*usage_bytes));
                each("limitBytes", Field::Count(*limit_bytes));
            }
        }
    }
}

fn id(id: &dyn fmt::Display) -> Field<'_> {
    Field::Id(id)
}

fn each_incident<'a>(incident: Option<&'a IncidentId>, each: &mut dyn FnMut(&'static str, Field<'a>)) {
    if let Some(incident) = incident {
        each("incident", id(incident));
    }
}

fn each_free<'a>(bytes: Option<u64>, each: &mut dyn FnMut(&'static str, Field<'a>)) {
    if let Some(bytes) = bytes {
        each("freeBytes", Field::Count(bytes));
    }
}

fn text(text: &str) -> Field<'_> {
    Field::Text(text)
}

fn millis<'a>(duration: &Duration) -> Field<'a> {
    Field::Number((duration.as_secs_f64() * 1_000_000.0).round() / 1000.0)
}

fn optional<'a>(value: Option<&'a str>, name: &'static str, each: &mut dyn FnMut(&'static str, Field<'a>)) {
    if let Some(value) = value {
        each(name, text(value));
    }
}
