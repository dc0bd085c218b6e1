//! Core types as the JSON of kurultai-api(7). The only place where a name of the API meets a name of the core.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::core::admission::DRAIN_RETRY;
use crate::core::attempts::Attempt;
use crate::core::breaker::BreakerView;
use crate::core::governor::{DaemonMemory, Level};
use crate::core::ids::IncidentId;
use crate::core::ledger::TaskView;
use crate::core::notice::{Field, Notice, Severity};
use crate::core::settings::{AgentMode, Mode, Runtime};
use crate::core::task::{Failure, Outcome, Priority, ResultPlace, TaskState};
use crate::core::view::{AgentView, HealthView, QueueView, ScheduleView, Snapshot, WorkersView};
use crate::scheduler::call::{Decision, Status, StorageStatus, StreamItem, StreamLine, Why};
use crate::scheduler::history::SLOT;

/// A result nested deeper than this is not shown in the task object: handlers have small stacks.
const DEPTH_MAX: usize = 32;

/// The last moment RFC 3339 can name. Only a journal of somebody else's making goes beyond.
const LAST_MS: u64 = 253_402_300_799_999;

/// RFC 3339 in UTC with milliseconds.
pub fn time(ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + Duration::from_millis(ms.min(LAST_MS));
    humantime::format_rfc3339_millis(at).to_string()
}

/// Leaves out what has no value yet.
fn put(object: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object.insert(name.to_string(), value.into());
    }
}

pub fn task(view: &TaskView) -> Value {
    let mut object = Map::new();
    put(&mut object, "id", Some(view.id.to_string()));
    put(&mut object, "agent", Some(&*view.agent));
    put(&mut object, "priority", Some(view.priority.name()));
    put(&mut object, "state", Some(view.state.name()));
    put(&mut object, "createdAt", Some(time(view.created_ms)));
    put(&mut object, "startedAt", view.started_ms.map(time));
    put(&mut object, "finishedAt", view.finished_ms.map(time));
    put(&mut object, "attempt", Some(view.attempt));
    if !view.attempts.is_empty() {
        object.insert("attempts".to_string(), view.attempts.iter().map(attempt).collect());
    }
    put(&mut object, "maxRetries", Some(view.max_retries));
    put(&mut object, "preemptions", Some(view.preemptions));
    if let Some(progress) = &view.progress {
        let mut inner = Map::new();
        put(&mut inner, "percent", Some(progress.percent));
        put(&mut inner, "message", progress.message.as_deref());
        object.insert("progress".to_string(), Value::Object(inner));
    }
    put(&mut object, "queuePosition", view.queue_position);
    put(&mut object, "requestId", Some(&*view.request_id));
    put(&mut object, "workerId", view.worker.map(|worker| worker.to_string()));
    put(&mut object, "payloadBytes", Some(view.payload_bytes));
    put(&mut object, "peakRssBytes", view.peak_rss_bytes);
    put(&mut object, "durationMs", view.run_time.map(millis));
    match view.finished.as_ref().map(|finished| &finished.outcome) {
        Some(Outcome::Completed(result)) => match (&result.place, result.is_json) {
            // Small ones only; the exact text, with numbers of any length, is at /v1/tasks/ID/result.
            (ResultPlace::Inline(bytes), true) if depth(bytes) <= DEPTH_MAX => {
                put(&mut object, "result", serde_json::from_slice::<Value>(bytes).ok());
            }
            (ResultPlace::Inline(_), true) => put(&mut object, "resultBytes", Some(result.bytes())),
            (ResultPlace::Inline(_), false) | (ResultPlace::File(_), _) => {
                put(&mut object, "resultBytes", Some(result.bytes()));
            }
        },
        Some(Outcome::Failed(failure)) => put(&mut object, "error", Some(self::failure(failure))),
        Some(Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted) | None => {}
    }
    Value::Object(object)
}

fn attempt(attempt: &Attempt) -> Value {
    let mut object = Map::new();
    put(&mut object, "attempt", Some(attempt.attempt));
    put(&mut object, "startedAt", attempt.started_ms.map(time));
    put(&mut object, "endedAt", Some(time(attempt.ended_ms)));
    put(&mut object, "code", Some(attempt.code.name()));
    put(&mut object, "message", Some(&*attempt.message));
    Value::Object(object)
}

/// How deep a JSON text is nested. Its brackets are counted before it is parsed, since parsing is recursive and a stack
/// that overflows is the end of the daemon.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut is_text, mut is_escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'[' | b'{' if !is_text => depth += 1,
            b']' | b'}' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

pub fn failure(failure: &Failure) -> Value {
    let mut object = Map::new();
    put(&mut object, "code", Some(failure.code.name()));
    put(&mut object, "message", Some(&*failure.message));
    put(&mut object, "stack", failure.stack.as_deref());
    put(&mut object, "exitStatus", failure.exit_status);
    put(&mut object, "signal", failure.signal);
    put(&mut object, "stderrTail", failure.stderr_tail.as_deref());
    Value::Object(object)
}

/// Milliseconds with the fraction that a microsecond is.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// A ratio with three digits: more would be noise.
pub fn ratio(ratio: f64) -> f64 {
    (ratio * 1000.0).round() / 1000.0
}

pub fn status(status: &Status) -> Value {
    let snapshot = &status.snapshot;
    let reload = status.config.reload.as_ref().map(|reload| {
        let mut object = Map::new();
        put(&mut object, "at", Some(time(reload.at_ms)));
        put(&mut object, "result", Some(if reload.error.is_none() { "ok" } else { "rejected" }));
        put(&mut object, "error", reload.error.as_deref());
        Value::Object(object)
    });
    let mut object = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": if snapshot.is_draining { "draining" } else { "running" },
        "pid": std::process::id(),
        "uptimeS": millis(status.uptime).round() / 1000.0,
        "config": {
            "file": status.config.file.display().to_string(),
            "loadedAt": time(status.config.loaded_ms),
            "reload": reload,
        },
        "memory": memory(status),
        "queue": queue(&snapshot.queue),
        "workers": workers(&snapshot.workers),
        "breakers": breakers(snapshot),
        "schedules": snapshot.schedules.iter().map(|view| schedule(view, snapshot)).collect::<Vec<_>>(),
        "features": {
            "memoryGovernance": snapshot.features.memory_governance,
            "workerPool": snapshot.features.worker_pool,
            "circuitBreakers": snapshot.features.circuit_breakers,
            "rolloutPercent": snapshot.features.rollout_percent,
        },
    });
    object["storage"] = storage(&status.storage);
    object
}

fn storage(storage: &StorageStatus) -> Value {
    let mut object = Map::new();
    put(&mut object, "ok", Some(storage.error.is_none()));
    put(&mut object, "freeBytes", storage.free_bytes);
    put(&mut object, "error", storage.error.as_deref());
    put(&mut object, "damaged", (storage.damaged > 0).then_some(storage.damaged));
    Value::Object(object)
}

pub fn memory(status: &Status) -> Value {
    let (view, enforcement) = (&status.snapshot.memory, &status.enforcement);
    let settings = &view.settings;
    let [warning, critical, reject, emergency] = settings.thresholds;
    let mut pressure = Map::new();
    put(&mut pressure, "budget", view.budget.map(ratio));
    let mut object = json!({
        "level": view.level.name(),
        "mode": mode(settings.mode),
        "incident": view.incident.map(|incident| incident.to_string()),
        "limitBytes": settings.limit_bytes,
        "minFreeBytes": settings.min_free_bytes,
        "thresholds": {
            "warning": warning, "critical": critical, "reject": reject, "emergency": emergency,
            "hysteresis": settings.hysteresis,
        },
    });
    if let Some((at, sample)) = &view.sample {
        put(&mut pressure, "cgroup", sample.cgroup.map(|fill| ratio(fill.ratio())));
        put(&mut pressure, "host", sample.host.map(ratio));
        object["usageBytes"] = json!(sample.usage_bytes);
        object["daemon"] = daemon(&sample.daemon);
        object["host"] = json!({ "totalBytes": sample.total_bytes, "availableBytes": sample.available_bytes });
        object["sampledAt"] = json!(time(at.wall_ms));
    }
    object["pressure"] = Value::Object(pressure);
    object["highest"] = json!(ratio(view.pressure));
    let peaks: Vec<f64> = status.history.iter().map(|thousandths| f64::from(*thousandths) / 1000.0).collect();
    object["history"] = json!({ "slotS": SLOT.as_secs(), "peaks": peaks });
    object["enforcement"] = json!({
        "cgroup": enforcement.cgroup, "detail": enforcement.detail, "psi": enforcement.psi,
        "watchdog": enforcement.urgency.name(),
    });
    object
}

fn daemon(memory: &DaemonMemory) -> Value {
    let DaemonMemory { rss, heap_used, heap_total, external } = memory;
    json!({ "rssBytes": rss, "heapUsedBytes": heap_used, "heapTotalBytes": heap_total, "externalBytes": external })
}

pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Observe => "observe",
        Mode::Soft => "soft",
        Mode::Hard => "hard",
    }
}

pub fn queue(view: &QueueView) -> Value {
    let by_level = |counts: &[usize; Priority::COUNT]| {
        let pairs = Priority::ALL.iter().map(|priority| (priority.name().to_string(), json!(counts[priority.index()])));
        Value::Object(pairs.collect())
    };
    let tasks: Vec<Value> = view
        .tasks
        .iter()
        .enumerate()
        .map(|(index, (id, agent, priority, state))| {
            json!({
                "id": id.to_string(), "agent": &**agent, "priority": priority.name(),
                "position": index + 1, "state": state.name(),
            })
        })
        .collect();
    json!({
        "depth": view.depth, "maxDepth": view.max_depth, "parked": view.parked,
        "byPriority": by_level(&view.by_priority), "limits": by_level(&view.limits), "tasks": tasks,
    })
}

pub fn workers(view: &WorkersView) -> Value {
    let workers: Vec<Value> = view
        .workers
        .iter()
        .map(|worker| {
            let mut object = Map::new();
            put(&mut object, "id", Some(worker.id.to_string()));
            put(&mut object, "agent", Some(&*worker.agent));
            put(&mut object, "mode", Some(agent_mode(worker.mode)));
            put(&mut object, "pid", worker.pid);
            put(&mut object, "state", Some(worker.state));
            put(&mut object, "task", worker.task.map(|task| task.to_string()));
            put(&mut object, "startedAt", Some(time(worker.started_ms)));
            put(&mut object, "tasksDone", Some(worker.tasks_done));
            put(&mut object, "rssBytes", worker.rss_bytes);
            put(&mut object, "softLimitBytes", Some(worker.soft_limit_bytes));
            put(&mut object, "hardLimitBytes", Some(worker.hard_limit_bytes));
            put(&mut object, "heapUsedBytes", worker.heap.map(|heap| heap.heap_used).filter(|bytes| *bytes > 0));
            Value::Object(object)
        })
        .collect();
    json!({ "max": view.max, "active": view.active, "idle": view.idle, "workers": workers })
}

fn agent_mode(mode: AgentMode) -> &'static str {
    match mode {
        AgentMode::Oneshot => "oneshot",
        AgentMode::Persistent => "persistent",
    }
}

pub fn breakers(snapshot: &Snapshot) -> Vec<Value> {
    snapshot.breakers.iter().map(|(name, view)| breaker(name, view)).collect()
}

pub fn breaker(name: &str, view: &BreakerView) -> Value {
    let mut object = Map::new();
    put(&mut object, "name", Some(name));
    put(&mut object, "state", Some(view.state.name()));
    put(&mut object, "failures", Some(view.failures));
    put(&mut object, "successes", Some(view.successes));
    put(&mut object, "openings", Some(view.openings));
    put(&mut object, "retryAfterMs", view.retry_after.map(|wait| wait.as_millis() as u64));
    put(&mut object, "forced", Some(view.forced));
    Value::Object(object)
}

fn schedule(view: &ScheduleView, snapshot: &Snapshot) -> Value {
    json!({
        "name": &*view.name, "agent": &*view.agent, "everyS": view.every.as_secs(),
        "nextAt": time(snapshot.now.wall_ms + view.next_in.as_millis() as u64), "skipped": view.skipped,
    })
}

pub fn agents(agents: &[AgentView]) -> Value {
    let agent = |agent: &AgentView| {
        let mut object = Map::new();
        put(&mut object, "name", Some(&*agent.name));
        put(&mut object, "mode", Some(agent_mode(agent.mode)));
        let runtime = match agent.runtime {
            Runtime::Generic => "generic",
            Runtime::Node => "node",
        };
        put(&mut object, "runtime", Some(runtime));
        put(&mut object, "available", Some(agent.retry_after.is_none()));
        put(&mut object, "retryAfterS", agent.retry_after.map(|wait| wait.as_secs_f64().ceil() as u64));
        put(&mut object, "breaker", agent.breaker.as_deref());
        put(&mut object, "running", Some(agent.running));
        put(&mut object, "queued", Some(agent.queued));
        put(&mut object, "failuresLastHour", Some(agent.failures_last_hour));
        Value::Object(object)
    };
    json!({ "agents": agents.iter().map(agent).collect::<Vec<_>>() })
}

/// The health object and its HTTP status.
pub fn health(health: &HealthView, storage_status: &StorageStatus) -> (u16, Value) {
    let (code, name) = if health.is_draining {
        (503, "draining")
    } else {
        match health.level {
            Level::Normal => (200, "ok"),
            Level::Warning => (200, "warning"),
            Level::Critical => (200, "critical"),
            // Nothing is refused.
            Level::Reject | Level::Emergency if !health.is_governed => (200, "critical"),
            Level::Reject => (503, "overloaded"),
            Level::Emergency => (503, "emergency"),
        }
    };
    let mut object = json!({
        "status": name,
        "memory": { "level": health.level.name(), "pressure": ratio(health.pressure) },
        "queue": { "depth": health.queue_depth, "maxDepth": health.queue_max_depth },
        "workers": {
            "active": health.workers_active, "idle": health.workers_idle, "max": health.workers_max,
        },
        "breakers": { "open": health.breakers_open },
    });
    if code == 503 {
        let wait = if health.is_draining { DRAIN_RETRY } else { health.retry_after };
        object["retryAfterS"] = json!(wait.as_secs().max(1));
    }
    object["storage"] = storage(storage_status);
    (code, object)
}

pub fn why(why: &Why) -> Value {
    let mut object = json!({ "task": why.view.id.to_string(), "state": why.view.state.name() });
    if let Some(wait) = &why.wait {
        object["waitsFor"] = json!({ "reason": wait.name(), "text": wait.to_string() });
    }
    object["decisions"] = Value::Array(decisions(&why.decisions));
    object
}

pub fn decisions(decisions: &[Decision]) -> Vec<Value> {
    decisions.iter().map(decision).collect()
}

fn decision(decision: &Decision) -> Value {
    let mut figures = Map::new();
    let mut object = Map::new();
    object.insert("at".to_string(), json!(time(decision.at_ms)));
    object.insert("event".to_string(), json!(decision.notice.name()));
    object.insert("severity".to_string(), json!(severity(decision.notice.severity())));
    decision.notice.fields(&mut |name, field| match name {
        "task" | "worker" | "incident" | "request" | "agent" => {
            object.insert(name.to_string(), value(field));
        }
        "text" => {}
        figure => {
            figures.insert(figure.to_string(), value(field));
        }
    });
    put_incident(&mut object, decision.incident);
    object.insert("text".to_string(), json!(decision.notice.sentence()));
    object.insert("figures".to_string(), Value::Object(figures));
    Value::Object(object)
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Debug => "debug",
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn value(field: Field<'_>) -> Value {
    match field {
        Field::Text(text) => json!(text),
        Field::Id(id) => json!(id.to_string()),
        Field::Count(count) => json!(count),
        Field::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(number as i64),
        Field::Number(number) => json!(number),
        Field::Flag(flag) => json!(flag),
    }
}

/// A line of an event stream with its newline; `None` for the end of one.
pub fn stream_line(item: &StreamItem) -> Option<Vec<u8>> {
    let at = time(item.at_ms);
    let object = match &item.line {
        StreamLine::State { task, state, attempt } => state_line(at, *task, *state, *attempt),
        StreamLine::Progress { task, percent, message } => {
            let mut object = json!({ "at": at, "type": "progress", "task": task.to_string(), "percent": percent });
            if let Some(message) = message {
                object["message"] = json!(message);
            }
            object
        }
        StreamLine::Event { notice, incident } => event_line(at, notice, *incident),
        StreamLine::End => return None,
    };
    let mut line = object.to_string().into_bytes();
    line.push(b'\n');
    Some(line)
}

fn state_line(at: String, task: crate::core::ids::TaskId, state: TaskState, attempt: u32) -> Value {
    json!({ "at": at, "type": "state", "task": task.to_string(), "state": state.name(), "attempt": attempt })
}

/// The memory pressure that was on, unless the notice itself names one.
fn put_incident(object: &mut Map<String, Value>, incident: Option<IncidentId>) {
    if let Some(incident) = incident {
        object.entry("incident").or_insert_with(|| json!(incident.to_string()));
    }
}

fn event_line(at: String, notice: &Notice, incident: Option<IncidentId>) -> Value {
    let mut object = Map::new();
    object.insert("at".to_string(), json!(at));
    object.insert("event".to_string(), json!(notice.name()));
    notice.fields(&mut |name, field| {
        object.insert(name.to_string(), value(field));
    });
    put_incident(&mut object, incident);
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::depth;

    #[test]
    fn brackets_in_texts_are_no_nesting() {
        for (json, expected) in
            [("1", 0), ("[]", 1), ("[[],{\"a\":[1]}]", 3), ("\"[[[[\"", 0), ("[\"\\\"[[[\"]", 1), ("[\"\\\\\",[]]", 2)]
        {
            assert_eq!(depth(json.as_bytes()), expected, "{json}");
        }
    }
}
