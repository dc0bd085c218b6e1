//! From the scheduler's answer to a reply: statuses and error codes of kurultai-api(7).

use std::time::Duration;

use serde_json::json;

use super::answer::{BYTES, Body, FilePart, JSON, Problem, Reply};
use super::exchange::Plan;
use super::json;
use super::page;
use super::range::{self, Conditions};
use super::routes::Part;
use crate::core::event::{BreakerAnswer, CancelAnswer};
use crate::core::ledger::TaskView;
use crate::core::refusal::Refusal;
use crate::core::task::{Outcome, ResultPlace, ResultRef};
use crate::core::view::{HealthView, Snapshot};
use crate::metrics::{HttpMetrics, Metrics, exposition};
use crate::scheduler::call::{Answer, Follow, Status, StorageStatus};
use crate::spool::{Files, Lost};
use crate::sys;

pub enum Rendered {
    Reply(Reply),
    Follow(Follow),
}

pub fn render(plan: Plan, answer: Answer, files: &Files) -> Rendered {
    let reply = match (plan, answer) {
        (Plan::Follow(Follow::Task(_)), Answer::Task(None)) => unknown_task(),
        (Plan::Follow(what), _) => return Rendered::Follow(what),
        (Plan::ResultItself, Answer::Submitted { view, is_duplicate }) => {
            replayed(result_itself(&view, files), is_duplicate)
        }
        (_, Answer::Submitted { view, is_duplicate }) => submitted(&view, is_duplicate),
        (_, Answer::Refused(refusal)) => refused(&refusal),
        (_, Answer::StorageFull { error, retry_after }) => {
            storage_full(format!("{error}; nothing was accepted: try again later"), retry_after)
        }
        (_, Answer::CancelUnwritten { error, retry_after }) => {
            let message = format!(
                "{error}; the task is cancelled, and runs all the same if the daemon ends before that is written"
            );
            storage_full(message, retry_after)
        }
        (_, Answer::Cancelled(answer, view)) => cancelled(answer, view.as_deref()),
        (Plan::Report, Answer::Breaker { answer: BreakerAnswer::Done, .. }) => Reply::bytes(204, JSON, Vec::new()),
        (_, Answer::Breaker { answer, name, view }) => {
            breaker(&answer, &name, view.map(|view| json::breaker(&name, &view)))
        }
        (Plan::Result(conditions), Answer::Task(Some(view))) => result(&view, &conditions, files),
        (_, Answer::Task(Some(view))) => Reply::json(200, &json::task(&view)),
        (_, Answer::Task(None)) => unknown_task(),
        (_, Answer::Tasks(views)) => {
            Reply::json(200, &json!({ "tasks": views.iter().map(json::task).collect::<Vec<_>>() }))
        }
        (_, Answer::Overview(status, decisions)) => page::reply(&status, &decisions),
        (_, Answer::Health { health: view, storage }) => health(&view, &storage),
        (Plan::Status(part), Answer::Status(status)) => status_part(part, &status),
        (_, Answer::Status(status)) => status_part(Part::All, &status),
        (_, Answer::Pong) => Reply::json(200, &json!({ "status": "live" })),
        (_, Answer::Decisions(decisions)) => Reply::json(200, &json!({ "decisions": json::decisions(&decisions) })),
        (_, Answer::Why(None)) => unknown_task(),
        (_, Answer::Why(Some(why))) => Reply::json(200, &json::why(&why)),
        (_, Answer::Reloaded(Ok(report))) => Reply::json(
            200,
            &json!({ "result": "ok", "changed": report.changed, "needsRestart": report.needs_restart }),
        ),
        (_, Answer::Draining) => Reply::json(202, &json!({ "state": "draining" })),
        (_, Answer::Reloaded(Err(problems))) => Problem::new(400, "invalid_config", problems).into(),
        (_, Answer::Admissible) => Problem::new(500, "internal", "leave for a body that nobody sends").into(),
        (_, Answer::Scrape(_)) => Problem::new(500, "internal", "a scrape without a plan for it").into(),
    };
    Rendered::Reply(reply)
}

pub fn metrics(parts: &(Metrics, Snapshot), http: &HttpMetrics, open: usize) -> Reply {
    let (metrics, snapshot) = parts;
    let page = exposition(metrics, snapshot, http, open, &sys::proc_self::read());
    Reply::bytes(200, "text/plain; version=0.0.4; charset=utf-8", page.into_bytes())
}

fn submitted(view: &TaskView, is_duplicate: bool) -> Reply {
    let status = if view.state.is_terminal() { 200 } else { 202 };
    let reply = Reply::json(status, &json::task(view)).with("Location", format!("/v1/tasks/{}", view.id));
    replayed(reply, is_duplicate)
}

/// Tells a client that its key was known and nothing new was made.
fn replayed(reply: Reply, is_duplicate: bool) -> Reply {
    if is_duplicate { reply.with("Idempotent-Replay", "true") } else { reply }
}

/// The answer of a raw submission that was waited for: the result's own bytes.
fn result_itself(view: &TaskView, files: &Files) -> Reply {
    let location = format!("/v1/tasks/{}", view.id);
    let reply: Reply = match view.finished.as_ref().map(|finished| &finished.outcome) {
        Some(Outcome::Completed(result)) => stored_result(view, result, files),
        Some(Outcome::Failed(failure)) => Reply::json(502, &json!({ "error": json::failure(failure) })),
        Some(Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted) => {
            let message = format!("the task was {}: submit it again if it is still wanted", view.state.name());
            Problem::new(502, view.state.name(), message).into()
        }
        None => {
            let message = format!("the task has not finished yet: its result will be at {location}/result");
            Problem::new(504, "not_finished", message).into()
        }
    };
    reply.with("X-Task-Id", view.id.to_string()).with("Location", location)
}

fn result(view: &TaskView, conditions: &Conditions, files: &Files) -> Reply {
    match view.finished.as_ref().map(|finished| &finished.outcome) {
        Some(Outcome::Completed(result)) => match stored_result(view, result, files) {
            whole if whole.status == 200 => range::apply(conditions, range::etag(view), whole),
            problem => problem,
        },
        Some(Outcome::Failed(_) | Outcome::Cancelled | Outcome::Skipped | Outcome::Evicted) => {
            let message = format!("the task has no result, it was {}: see /v1/tasks/{}", view.state.name(), view.id);
            Problem::new(409, "no_result", message).into()
        }
        None => {
            let message = format!("the task is {}: wait for it at /v1/tasks/{}/events", view.state.name(), view.id);
            Problem::new(409, "not_finished", message).into()
        }
    }
}

fn stored_result(view: &TaskView, result: &ResultRef, files: &Files) -> Reply {
    match &result.place {
        ResultPlace::Inline(bytes) if result.is_json => Reply::bytes(200, JSON, bytes.to_vec()),
        ResultPlace::Inline(bytes) => Reply::bytes(200, BYTES, bytes.to_vec()),
        ResultPlace::File(stored) => match files.open_result(view.id, *stored) {
            Ok(file) => Reply {
                status: 200,
                content_type: if result.is_json { JSON } else { BYTES },
                headers: Vec::new(),
                body: Body::File(FilePart { file, offset: 0, left: stored.bytes }),
            },
            Err(Lost::Unknown(error)) => {
                let message = format!("the result of {} cannot be read: {error}; look into daemon.state_dir", view.id);
                Problem::new(500, "internal", message).into()
            }
            Err(lost) => {
                let message = format!("the result of {} is lost, {lost}: submit the task again", view.id);
                Problem::new(410, "result_lost", message).into()
            }
        },
    }
}

fn refused(refusal: &Refusal) -> Reply {
    let status = match refusal {
        Refusal::UnknownAgent { .. } => 404,
        Refusal::KeyOfAnotherTask { .. } | Refusal::TimeoutTooLong { .. } => 400,
        Refusal::QueueFull { .. } | Refusal::PriorityFull { .. } => 429,
        Refusal::MemoryPressure { .. }
        | Refusal::CircuitOpen { .. }
        | Refusal::AgentUnavailable { .. }
        | Refusal::Draining { .. } => 503,
    };
    let problem = Problem::new(status, refusal.code(), refusal.to_string());
    Problem { retry_after_s: refusal.retry_after().map(|wait| wait.as_secs().max(1)), ..problem }.into()
}

fn storage_full(message: String, retry_after: Duration) -> Reply {
    let problem = Problem::new(503, "storage_full", message);
    Problem { retry_after_s: Some(retry_after.as_secs().max(1)), ..problem }.into()
}

fn cancelled(answer: CancelAnswer, view: Option<&TaskView>) -> Reply {
    match (answer, view) {
        (CancelAnswer::Accepted, Some(view)) => Reply::json(202, &json::task(view)),
        (CancelAnswer::AlreadyFinished(state), _) => {
            let message = format!("the task has finished, it is {}: there is nothing to cancel", state.name());
            Problem::new(409, "already_finished", message).into()
        }
        (CancelAnswer::Accepted | CancelAnswer::UnknownTask, _) => unknown_task(),
    }
}

fn breaker(answer: &BreakerAnswer, name: &str, view: Option<serde_json::Value>) -> Reply {
    match (answer, view) {
        (BreakerAnswer::Permit(permit), _) => Reply::json(200, &json!({ "permit": permit.to_string() })),
        (BreakerAnswer::Open { retry_after }, _) => {
            let seconds = crate::core::refusal::honest(*retry_after).as_secs();
            let problem =
                Problem::new(503, "circuit_open", format!("circuit breaker {name} is open: retry in {seconds} s"));
            Problem { retry_after_s: Some(seconds), ..problem }.into()
        }
        (BreakerAnswer::Done, Some(view)) => Reply::json(200, &view),
        (BreakerAnswer::UnknownPermit, _) => {
            Problem::new(404, "unknown_permit", "no such permit is out: it was reported already, or expired").into()
        }
        (BreakerAnswer::UnknownBreaker | BreakerAnswer::Done, _) => {
            let message = format!("no circuit breaker is called {name:?}: /v1/breakers lists them");
            Problem::new(404, "unknown_breaker", message).into()
        }
    }
}

pub fn health(health: &HealthView, storage: &StorageStatus) -> Reply {
    let (code, object) = json::health(health, storage);
    let retry_after = object["retryAfterS"].as_u64();
    let reply = Reply::json(code, &object);
    match retry_after {
        Some(seconds) => reply.with("Retry-After", seconds.to_string()),
        None => reply,
    }
}

fn status_part(part: Part, status: &Status) -> Reply {
    let snapshot = &status.snapshot;
    let object = match part {
        Part::All => json::status(status),
        Part::Queue => json::queue(&snapshot.queue),
        Part::Workers => json::workers(&snapshot.workers),
        Part::Breakers => json!({ "breakers": json::breakers(snapshot) }),
        Part::Memory => json::memory(status),
        Part::Agents => json::agents(&snapshot.agents),
    };
    Reply::json(200, &object)
}

fn unknown_task() -> Reply {
    let message = "no such task: it never was, or its retention is over (spool.retention_s)";
    Problem::new(404, "unknown_task", message).into()
}
