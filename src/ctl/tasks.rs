//! `tasks` and `why`: what became of work.
//!
//! Owns their screens. May import the API, the console, tables and text. Must never know a socket.

use super::api::{Api, Task, TaskError, TaskEvent, Tasks, Why};
use super::console::Console;
use super::error::CtlError;
use super::follow::{self, Patience};
use super::http::{Request, encoded};
use super::parts::state_tone;
use super::table::{Cell, Column, Table};
use super::text;
use crate::core::ids::TaskId;
use crate::sys::clock::wall_ms;
use std::time::Duration;

pub struct Filter {
    pub state: Option<String>,
    pub agent: Option<String>,
    pub limit: Option<u32>,
}

pub fn list(api: &Api, console: &mut Console, filter: &Filter, json: bool) -> Result<(), CtlError> {
    let mut query = Vec::new();
    query.extend(filter.state.as_ref().map(|state| format!("state={state}")));
    query.extend(filter.agent.as_ref().map(|agent| format!("agent={}", encoded(agent))));
    query.extend(filter.limit.map(|limit| format!("limit={limit}")));
    let mark = if query.is_empty() { "" } else { "?" };
    let reply = api.get::<Tasks>(format!("/v1/tasks{mark}{}", query.join("&")))?;
    if json {
        return console.print_foreign_line(&reply.raw);
    }
    if reply.value.tasks.is_empty() {
        return console.print("no tasks\n");
    }
    let columns = [
        Column::Left("ID"),
        Column::Flexible("AGENT"),
        Column::Left("PRIORITY"),
        Column::Left("STATE"),
        Column::Right("AGE"),
        Column::Right("TOOK"),
        Column::Right("PEAK MiB"),
        Column::Flexible("NOTE"),
    ];
    let now_ms = wall_ms();
    let mut table = Table::new(0, columns);
    for task in &reply.value.tasks {
        table.row([
            (&task.id).into(),
            (&task.agent).into(),
            (&task.priority).into(),
            Cell::toned(&task.state, state_tone(&task.state)),
            text::since(task.created_at.as_deref(), now_ms).into(),
            took(task).map_or_else(text::dash, text::age).into(),
            task.peak_rss_bytes.map_or_else(text::dash, text::mib).into(),
            note(task).into(),
        ]);
    }
    table.print(console)
}

fn took(task: &Task) -> Option<Duration> {
    Duration::try_from_secs_f64(task.duration_ms? / 1000.0).ok()
}

/// What is most worth knowing of a task in a few words.
fn note(task: &Task) -> String {
    if let Some(error) = &task.error {
        return error.code.clone();
    }
    match (&task.progress, task.queue_position) {
        (Some(progress), _) if task.state == "running" => {
            let percent = progress.percent.map(|percent| format!("{percent:.0} %"));
            let words: Vec<_> = percent.into_iter().chain(progress.message.clone()).collect();
            words.join(" ")
        }
        (_, Some(position)) => format!("position {position}"),
        (_, None) => String::new(),
    }
}

pub fn show(api: &Api, console: &mut Console, task: TaskId, json: bool) -> Result<(), CtlError> {
    let reply = api.get::<Task>(format!("/v1/tasks/{task}"))?;
    if json { console.print_foreign_line(&reply.raw) } else { sheet(&reply.value, console) }
}

fn sheet(task: &Task, console: &mut Console) -> Result<(), CtlError> {
    let state = console.toned(&text::one_line(&task.state), state_tone(&task.state));
    let now_ms = wall_ms();
    let moment = |at: &Option<String>| {
        at.as_ref().map(|at| format!("{} ({} ago)", text::one_line(at), text::since(Some(at), now_ms)))
    };
    let size = |bytes: Option<u64>| bytes.map(|bytes| format!("{} MiB ({bytes} bytes)", text::mib(bytes)));
    let retries = task.max_retries.filter(|retries| *retries > 0).map(|retries| format!(", at most {retries} retries"));
    let attempt = task.attempt.map(|attempt| format!("{attempt}{}", retries.unwrap_or_default()));
    let lines = [
        ("task", Some(text::one_line(&task.id))),
        ("agent", Some(text::one_line(&task.agent))),
        ("priority", Some(text::one_line(&task.priority))),
        ("state", Some(state)),
        ("position", task.queue_position.map(|position| position.to_string())),
        ("progress", task.progress.is_some().then(|| text::one_line(&note(task))).filter(|note| !note.is_empty())),
        ("attempt", attempt),
        ("preempted", task.preemptions.filter(|times| *times > 0).map(|times| format!("{times} times"))),
        ("created", moment(&task.created_at)),
        ("started", moment(&task.started_at)),
        ("finished", moment(&task.finished_at)),
        ("took", took(task).map(text::age)),
        ("peak RSS", size(task.peak_rss_bytes)),
        ("worker", task.worker_id.as_deref().map(text::one_line)),
        ("request", task.request_id.as_deref().map(text::one_line)),
        ("payload", size(task.payload_bytes)),
        ("result", task.result.as_ref().map(|result| text::one_line(&result.to_string())).or(size(task.result_bytes))),
    ];
    for (name, value) in lines {
        if let Some(value) = value {
            console.print(&format!("{name:<10} {value}\n"))?;
        }
    }
    task.error.as_ref().map_or(Ok(()), |error| error_lines(error, console))
}

fn error_lines(error: &TaskError, console: &mut Console) -> Result<(), CtlError> {
    let signal = error.signal.as_ref().map(|signal| signal.as_str().map_or_else(|| signal.to_string(), str::to_owned));
    let how =
        [error.exit_status.map(|status| format!("exit status {status}")), signal.map(|name| format!("signal {name}"))];
    let how: Vec<_> = how.into_iter().flatten().collect();
    let how = if how.is_empty() { String::new() } else { format!(" ({})", text::one_line(&how.join(", "))) };
    console.print(&format!("{:<10} {}{how}\n", "error", text::one_line(&error.code)))?;
    console.print(&indented(&error.message))?;
    for (title, part) in [("stack", &error.stack), ("stderr", &error.stderr_tail)] {
        if let Some(part) = part.as_deref().filter(|part| !part.trim().is_empty()) {
            console.print(&format!("{title}\n{}", indented(part)))?;
        }
    }
    Ok(())
}

fn indented(block: &str) -> String {
    block.trim_end().lines().map(|line| format!("  {}\n", text::one_line(line))).collect()
}

pub fn cancel(api: &Api, console: &mut Console, task: TaskId, json: bool) -> Result<(), CtlError> {
    let reply = api.ask::<Task>(Request::with_method("DELETE", format!("/v1/tasks/{task}")))?;
    if json {
        return console.print_foreign_line(&reply.raw);
    }
    let state = text::one_line(&reply.value.state);
    let told = if state == "cancelled" { state } else { format!("{state}, its worker is told to stop") };
    console.print(&format!("{task}: {told}\n"))
}

pub fn result(api: &Api, console: &mut Console, task: TaskId) -> Result<(), CtlError> {
    let mut body = api.stream(Request::get(format!("/v1/tasks/{task}/result")))?;
    console.print_stream(&mut body, |source| api.lost(source))
}

pub fn follow(api: &Api, console: &mut Console, task: TaskId, json: bool) -> Result<(), CtlError> {
    let finished = follow::until_over(api, task, &Patience::of(None), console, |console, line, event| {
        if json { console.print_foreign_line(line) } else { event_line(event, console) }
    })?;
    follow::check(&finished)
}

fn event_line(event: &TaskEvent, console: &mut Console) -> Result<(), CtlError> {
    let what = match (&event.state, event.percent) {
        (Some(state), _) => {
            let attempt = event.attempt.filter(|attempt| *attempt > 1);
            let attempt = attempt.map_or_else(String::new, |attempt| format!(", attempt {attempt}"));
            format!("{}{attempt}", console.toned(&text::one_line(state), state_tone(state)))
        }
        (None, Some(percent)) => {
            let message = text::one_line(event.message.as_deref().unwrap_or_default());
            format!("{percent:>3.0} % {message}").trim_end().to_owned()
        }
        (None, None) => text::one_line(&event.kind),
    };
    console.print(&format!("{}  {what}\n", text::one_line(&event.at)))?;
    console.flush()
}

pub fn why(api: &Api, console: &mut Console, task: TaskId, json: bool) -> Result<(), CtlError> {
    let reply = api.get::<Why>(format!("/v1/tasks/{task}/why"))?;
    if json {
        return console.print_foreign_line(&reply.raw);
    }
    let state = console.toned(&text::one_line(&reply.value.state), state_tone(&reply.value.state));
    console.print(&format!("task {task} is {state}\n"))?;
    if let Some(wait) = &reply.value.waits_for {
        for line in text::wrap(&format!("it waits: {}", text::one_line(&wait.text)), console.width) {
            console.print(&format!("{line}\n"))?;
        }
    }
    if reply.value.decisions.is_empty() {
        return console.print("no decision about it is remembered\n");
    }
    for decision in &reply.value.decisions {
        let mut head = format!("{}  {}", text::one_line(&decision.at), text::one_line(&decision.event));
        for (name, id) in [("worker", &decision.worker), ("incident", &decision.incident)] {
            if let Some(id) = id {
                head.push_str(&format!("  {name} {}", text::one_line(id)));
            }
        }
        console.print(&format!("\n{head}\n"))?;
        for line in text::wrap(&text::one_line(&decision.text), console.width - 2) {
            console.print(&format!("  {line}\n"))?;
        }
    }
    Ok(())
}

pub fn print_id(console: &mut Console, task: &Task) -> Result<(), CtlError> {
    console.print(&format!("{}\n", text::one_line(&task.id)))
}

/// The id the daemon gave a new task, checked because it becomes part of a path.
pub fn id_of(api: &Api, task: &Task) -> Result<TaskId, CtlError> {
    task.id.parse().map_err(|error| api.bad_answer(format!("{error}")))
}
