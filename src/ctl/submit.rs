//! `submit`: a payload becomes a task, and with `--wait` its result comes back.
//!
//! Owns the progress bar. May import indicatif. Must never know how events are read.

use super::api::{Api, Task, TaskEvent};
use super::args::{Submit, Wait};
use super::console::Console;
use super::error::CtlError;
use super::follow::{self, Patience};
use super::http::{Request, encoded};
use super::{payload, tasks, text};
use crate::core::ids::TaskId;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

pub fn run(api: &Api, console: &mut Console, submit: &Submit, json: bool) -> Result<(), CtlError> {
    let patience = match submit.wait {
        Wait::Seconds(seconds) => Patience::of(Some(Duration::from_secs(seconds))),
        Wait::No | Wait::Forever => Patience::of(None),
    };
    let accepted = api.ask::<Task>(request(submit, console)?)?;
    if submit.wait == Wait::No {
        return if json {
            console.print_foreign_line(&accepted.raw)
        } else {
            tasks::print_id(console, &accepted.value)
        };
    }
    let task = tasks::id_of(api, &accepted.value)?;
    let finished = match wait(api, console, task, &patience) {
        Ok(finished) => finished,
        Err(error) => {
            if error.may_pass() {
                console.note(&format!("task {task} was accepted and is kept; kurultaictl tasks follow {task}"));
            }
            return Err(error);
        }
    };
    if json {
        tasks::show(api, console, task, true)?;
    } else if finished.state == "completed" {
        tasks::result(api, console, task)?;
    }
    follow::check(&finished)
}

fn request(submit: &Submit, console: &mut Console) -> Result<Request, CtlError> {
    let mut query = Vec::new();
    if let Some(priority) = submit.priority {
        query.push(format!("priority={}", priority.name()));
    }
    if let Some(seconds) = submit.timeout_s {
        query.push(format!("timeoutS={seconds}"));
    }
    if let Some(retries) = submit.retries {
        query.push(format!("maxRetries={retries}"));
    }
    let mut path = format!("/v1/agents/{}/tasks", encoded(&submit.agent));
    if !query.is_empty() {
        path = format!("{path}?{}", query.join("&"));
    }
    let kind = if submit.json_payload { "application/json" } else { "application/octet-stream" };
    let mut headers = vec![("Content-Type", kind.to_owned())];
    headers.extend(submit.idempotency_key.clone().map(|key| ("Idempotency-Key", key)));
    let body = payload::open(&submit.payload, console.input())?;
    Ok(Request { method: "POST", path, headers, body })
}

fn wait(api: &Api, console: &mut Console, task: TaskId, patience: &Patience) -> Result<Task, CtlError> {
    let bar = progress_bar(task, console.err_is_terminal());
    let finished = follow::until_over(api, task, patience, console, |_, _, event| {
        show(&bar, event);
        Ok(())
    });
    bar.finish_and_clear();
    finished
}

const REDRAW: Duration = Duration::from_millis(200);

fn progress_bar(task: TaskId, visible: bool) -> ProgressBar {
    if !visible {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3} % {elapsed} {wide_msg}");
    bar.set_style(style.expect("the template is well formed").progress_chars("=> "));
    bar.set_prefix(task.to_string());
    bar.enable_steady_tick(REDRAW);
    bar
}

fn show(bar: &ProgressBar, event: &TaskEvent) {
    if let Some(percent) = event.percent {
        bar.set_position(percent.clamp(0.0, 100.0) as u64);
    }
    if let Some(said) = event.message.as_deref().or(event.state.as_deref()) {
        bar.set_message(text::one_line(said));
    }
}
