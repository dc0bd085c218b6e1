//! Which request means what: kurultai-api(7) as a table.

use std::sync::Arc;
use std::time::Duration;

use super::answer::Problem;
use super::head::{Head, Method, cut};
use super::query::Query;
use crate::core::event::BreakerRequest;
use crate::core::ids::{PermitId, TaskId};
use crate::core::notice::Notice;
use crate::core::task::TaskState;
use crate::core::view::TaskFilter;
use crate::metrics::Route;
use crate::scheduler::call::Follow;

const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1000;

/// A request as it is understood, before its body has been looked at.
#[derive(Debug)]
pub enum Target {
    /// A JSON envelope.
    SubmitEnvelope {
        wait: Option<Duration>,
    },
    /// A raw payload.
    SubmitRaw {
        agent: Arc<str>,
        query: Box<Query>,
    },
    List(TaskFilter),
    Show(TaskId),
    Result(TaskId),
    Follow(Follow),
    Why(TaskId),
    Cancel(TaskId),
    Decisions {
        limit: usize,
    },
    Status(Part),
    /// The permit of a report may be in the body.
    Breaker {
        name: Arc<str>,
        request: BreakerCall,
    },
    Reload,
    Drain,
    Health {
        live: bool,
    },
    Metrics,
    Page,
}

/// A part of the status object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    All,
    Queue,
    Workers,
    Breakers,
    Memory,
    Agents,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerCall {
    Plain(BreakerRequest),
    Success(Option<PermitId>),
    Failure(Option<PermitId>),
}

pub fn route(head: &Head) -> (Route, Result<Target, Problem>) {
    let path = head.path.as_str();
    let parts: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    let method = match head.method {
        Method::Head => Method::Get,
        method => method,
    };
    let query = Query::parse(&head.query);
    let (route, methods, target) = match parts[..] {
        ["v1", "tasks"] => (Route::Tasks, "GET, HEAD, POST", tasks(method, query)),
        ["v1", "tasks", id] => (Route::Task, "GET, HEAD, DELETE", task(method, id, query)),
        ["v1", "tasks", id, "result"] => (Route::TaskResult, "GET, HEAD", task_part(method, id, query, Target::Result)),
        ["v1", "tasks", id, "events"] => {
            // Why: HEAD asks for the head of an answer that is a stream without end.
            (Route::TaskEvents, "GET", task_part(head.method, id, query, |id| Target::Follow(Follow::Task(id))))
        }
        ["v1", "tasks", id, "why"] => (Route::TaskWhy, "GET, HEAD", task_part(method, id, query, Target::Why)),
        ["v1", "agents", name, "tasks"] => (Route::AgentTasks, "POST", submit_raw(method, name, query)),
        ["v1", "decisions"] => (Route::Decisions, "GET, HEAD", decisions(method, query)),
        ["v1", "events"] => (Route::Events, "GET", events(head.method, query)),
        ["v1", "status"] => (Route::Status, "GET, HEAD", status(method, query, Part::All)),
        ["v1", "queue"] => (Route::Queue, "GET, HEAD", status(method, query, Part::Queue)),
        ["v1", "workers"] => (Route::Workers, "GET, HEAD", status(method, query, Part::Workers)),
        ["v1", "memory"] => (Route::Memory, "GET, HEAD", status(method, query, Part::Memory)),
        ["v1", "agents"] => (Route::Agents, "GET, HEAD", status(method, query, Part::Agents)),
        ["v1", "breakers"] => (Route::Breakers, "GET, HEAD", status(method, query, Part::Breakers)),
        ["v1", "breakers", name, call] => (Route::Breaker, "POST", breaker(method, name, call, query)),
        ["v1", "reload"] => (Route::Reload, "POST", command(method, query, Target::Reload)),
        ["v1", "drain"] => (Route::Drain, "POST", command(method, query, Target::Drain)),
        ["health"] => (Route::Health, "GET, HEAD", health(method, query)),
        ["metrics"] => (Route::Metrics, "GET, HEAD", get(method, query, || Target::Metrics)),
        [""] => (Route::Page, "GET, HEAD", get(method, query, || Target::Page)),
        _ => (Route::Other, "", Ok(None)),
    };
    let target = match target {
        Ok(Some(target)) => Ok(target),
        Ok(None) if route == Route::Other => Err(unknown_path(path)),
        Ok(None) => {
            let message = format!("{path} has no such method: it takes {methods}");
            Err(Problem { allow: Some(methods), ..Problem::new(405, "method_not_allowed", message) })
        }
        Err(problem) => Err(problem),
    };
    (route, target)
}

/// `Ok(None)`: the path does not have this method.
type Routed = Result<Option<Target>, Problem>;

fn tasks(method: Method, query: Result<Query, Problem>) -> Routed {
    match method {
        Method::Get => {
            let mut query = query?;
            let states = query.take("state").map_or(Ok(Vec::new()), |text| states(&text))?;
            let agent = query.take("agent");
            let limit = query.take_number("limit", 1, LIST_MAX as u64)?.map_or(LIST_DEFAULT, |limit| limit as usize);
            query.nothing_else()?;
            Ok(Some(Target::List(TaskFilter { states, agent, limit })))
        }
        Method::Post => {
            let mut query = query?;
            let wait = query.take_wait()?;
            query.nothing_else()?;
            Ok(Some(Target::SubmitEnvelope { wait }))
        }
        Method::Delete | Method::Head | Method::Other => Ok(None),
    }
}

fn states(text: &str) -> Result<Vec<TaskState>, Problem> {
    let named = |name: &str| {
        TaskState::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| {
            let known: Vec<&str> = TaskState::ALL.iter().map(|state| state.name()).collect();
            Problem::invalid(format!("state={:?} is no state: use {}", cut(name), known.join(", ")))
        })
    };
    text.split(',').map(named).collect()
}

fn task(method: Method, id: &str, query: Result<Query, Problem>) -> Routed {
    let make = match method {
        Method::Get => Target::Show,
        Method::Delete => Target::Cancel,
        Method::Post | Method::Head | Method::Other => return Ok(None),
    };
    query?.nothing_else()?;
    Ok(Some(make(task_id(id)?)))
}

fn task_part(method: Method, id: &str, query: Result<Query, Problem>, make: impl FnOnce(TaskId) -> Target) -> Routed {
    if method != Method::Get {
        return Ok(None);
    }
    query?.nothing_else()?;
    Ok(Some(make(task_id(id)?)))
}

/// Something that is no id is the id of no task.
fn task_id(text: &str) -> Result<TaskId, Problem> {
    text.parse().map_err(|error| Problem::new(404, "unknown_task", format!("{error}")))
}

fn submit_raw(method: Method, name: &str, query: Result<Query, Problem>) -> Routed {
    match method {
        Method::Post => {
            let agent = Arc::from(super::query::decode(name)?);
            Ok(Some(Target::SubmitRaw { agent, query: Box::new(query?) }))
        }
        Method::Get | Method::Head | Method::Delete | Method::Other => Ok(None),
    }
}

fn decisions(method: Method, query: Result<Query, Problem>) -> Routed {
    if method != Method::Get {
        return Ok(None);
    }
    let mut query = query?;
    let limit = query.take_number("limit", 1, LIST_MAX as u64)?.map_or(LIST_DEFAULT, |limit| limit as usize);
    query.nothing_else()?;
    Ok(Some(Target::Decisions { limit }))
}

fn events(method: Method, query: Result<Query, Problem>) -> Routed {
    if method != Method::Get {
        return Ok(None);
    }
    let mut query = query?;
    let types: Vec<String> =
        query.take("types").map_or(Vec::new(), |types| types.split(',').map(str::to_string).collect());
    if let Some(unknown) = types.iter().find(|name| !Notice::NAMES.contains(&name.as_str())) {
        let known = Notice::NAMES.join(", ");
        return Err(Problem::invalid(format!("types={:?} is no event: use {known}", cut(unknown))));
    }
    query.nothing_else()?;
    Ok(Some(Target::Follow(Follow::Events(types))))
}

fn status(method: Method, query: Result<Query, Problem>, part: Part) -> Routed {
    get(method, query, || Target::Status(part))
}

fn get(method: Method, query: Result<Query, Problem>, make: impl FnOnce() -> Target) -> Routed {
    if method != Method::Get {
        return Ok(None);
    }
    query?.nothing_else()?;
    Ok(Some(make()))
}

fn health(method: Method, query: Result<Query, Problem>) -> Routed {
    if method != Method::Get {
        return Ok(None);
    }
    let mut query = query?;
    let live = query.take("live").is_some();
    query.nothing_else()?;
    Ok(Some(Target::Health { live }))
}

fn breaker(method: Method, name: &str, call: &str, query: Result<Query, Problem>) -> Routed {
    let plain = |request| Ok(BreakerCall::Plain(request));
    let mut query = query?;
    let request = match call {
        "acquire" => plain(BreakerRequest::Acquire),
        "open" => plain(BreakerRequest::ForceOpen),
        "close" => plain(BreakerRequest::ForceClose),
        "success" => query.take_permit().map(BreakerCall::Success),
        "failure" => query.take_permit().map(BreakerCall::Failure),
        _ => {
            let message = format!(
                "{:?} is nothing to do with a breaker: use acquire, success, failure, open or close",
                cut(call)
            );
            Err(Problem::new(404, "not_found", message))
        }
    }?;
    if method != Method::Post {
        return Ok(None);
    }
    query.nothing_else()?;
    Ok(Some(Target::Breaker { name: Arc::from(super::query::decode(name)?), request }))
}

fn command(method: Method, query: Result<Query, Problem>, target: Target) -> Routed {
    if method != Method::Post {
        return Ok(None);
    }
    query?.nothing_else()?;
    Ok(Some(target))
}

fn unknown_path(path: &str) -> Problem {
    Problem::new(404, "not_found", format!("nothing is at {:?}: kurultai-api(7) lists what is", cut(path)))
}
