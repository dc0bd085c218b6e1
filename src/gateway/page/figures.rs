//! Each part of the page from the core's own types. INVARIANT: the same elements, attributes and words as the page's
//! script makes from the API, without space between elements; tests/browser compares the two.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::text::{Count, Escaped, Percent, Size, Span, push};
use crate::core::breaker::{BreakerState, BreakerView};
use crate::core::governor::{Fill, Level};
use crate::core::ids::TaskId;
use crate::core::notice::{Field, Severity};
use crate::core::settings::Mode;
use crate::core::task::{Priority, TaskState};
use crate::core::view::{QueueView, Snapshot, WorkerView, WorkersView};
use crate::gateway::json;
use crate::scheduler::call::{Decision, Enforcement, Status};

/// Rows of the workers' list that are there even if no worker is, so that what is below it stays in its place.
const ROWS_MIN: usize = 4;
/// Waiting tasks that are named.
const WAITING: usize = 6;

pub fn level(snapshot: &Snapshot) -> String {
    let name = if snapshot.is_draining { "draining" } else { snapshot.memory.level.name() };
    let (first, rest) = name.split_at(1);
    first.to_ascii_uppercase() + rest
}

/// The class that gives it its colour.
pub fn tone(snapshot: &Snapshot) -> &'static str {
    match snapshot.memory.level {
        Level::Normal if snapshot.is_draining => "warning",
        Level::Normal => "ok",
        level @ (Level::Warning | Level::Critical | Level::Reject | Level::Emergency) => level.name(),
    }
}

/// What the level has for its consequence.
pub fn means(snapshot: &Snapshot) -> &'static str {
    const SKIPPING: &str = "Heartbeats are skipped, idle workers are retired.";
    const REFUSING: &str = "New tasks are refused.";
    if snapshot.is_draining {
        return "The daemon is stopping: nothing new is taken.";
    }
    let mode = if snapshot.features.memory_governance { snapshot.memory.settings.mode } else { Mode::Observe };
    match (snapshot.memory.level, mode) {
        (Level::Normal, _) => "Memory is below every threshold.",
        (_, Mode::Observe) => "Memory is short, and is only observed.",
        (Level::Warning, _) | (Level::Critical, Mode::Soft) => SKIPPING,
        (Level::Critical, Mode::Hard) => "Tasks are preempted, only critical ones start.",
        (Level::Reject, _) | (Level::Emergency, Mode::Soft) => REFUSING,
        (Level::Emergency, Mode::Hard) => "New tasks are refused, running ones are killed, the lowest priority first.",
    }
}

pub fn incident(page: &mut String, snapshot: &Snapshot) {
    if let Some(incident) = snapshot.memory.incident {
        push(page, format_args!("incident {incident}"));
    }
}

pub fn about(page: &mut String, status: &Status) {
    push(page, format_args!("version {}, up {}", env!("CARGO_PKG_VERSION"), Span(status.uptime)));
}

pub fn fresh(page: &mut String, snapshot: &Snapshot) {
    push(page, format_args!("as of {} UTC", &json::time(snapshot.now.wall_ms)[11..19]));
}

pub fn alerts(page: &mut String, status: &Status) {
    let memory = &status.snapshot.memory;
    let mut alert = |text: &dyn Display| push(page, format_args!("<li>{}</li>", Escaped(&text.to_string())));
    if let Some((_, sample)) = &memory.sample
        && memory.level == Level::Emergency
        && (sample.available_bytes as f64) < memory.settings.min_free_bytes as f64 * (1.0 + memory.settings.hysteresis)
    {
        let (available, floor) = (Size(sample.available_bytes), memory.settings.min_free_bytes >> 20);
        alert(&format_args!("The host has {available} of memory available, with memory.min_free_mb = {floor}."));
    }
    if let Some(error) = &status.storage.error {
        alert(&format_args!("New tasks are refused for want of disk: {error}"));
    }
    if status.storage.damaged > 0 {
        let count = status.storage.damaged;
        alert(&format_args!(
            "Damaged or lost in the state directory: {count} since the start; see the log and kurultai-spool(5)."
        ));
    }
    if let Some(error) = status.config.reload.as_ref().and_then(|reload| reload.error.as_ref()) {
        alert(&format_args!("The configuration was not taken, the old one is in force: {error}"));
    }
}

pub fn tiles(page: &mut String, snapshot: &Snapshot) {
    let Snapshot { memory, workers, queue, breakers, .. } = snapshot;
    let mut tile = |what: &str, figure: &dyn Display, more: &str| {
        let more = Escaped(more);
        push(page, format_args!("<div><dt>{what}</dt><dd>{figure}</dd><dd>{more}</dd></div>"));
    };
    let is_highest = |ratio: Option<f64>| ratio.map(json::ratio) == Some(json::ratio(memory.pressure));
    let from = match &memory.sample {
        None => "no reading yet".to_string(),
        Some(_) if is_highest(memory.budget) => format!("of the budget, {}", Size(memory.settings.limit_bytes)),
        Some((_, sample)) if is_highest(sample.cgroup.map(Fill::ratio)) => "of the cgroup’s limit".to_string(),
        Some(_) => "of the host’s memory".to_string(),
    };
    tile("Memory pressure", &Percent(memory.pressure), &from);
    let WorkersView { active, max, idle, .. } = workers;
    tile("Workers at work", &format_args!("{active} / {max}"), &format!("{idle} idle"));
    let QueueView { depth, max_depth, parked, .. } = queue;
    tile("Tasks waiting", &format_args!("{depth} / {max_depth}"), &format!("{parked} preempted"));
    let open: Vec<&str> =
        breakers.iter().filter(|(_, view)| view.state == BreakerState::Open).map(|(name, _)| &**name).collect();
    let names = if open.is_empty() { "none".to_string() } else { open.join(", ") };
    tile("Breakers open", &format_args!("{} / {}", open.len(), breakers.len()), &names);
}

pub fn sources(page: &mut String, snapshot: &Snapshot, enforcement: &Enforcement) {
    let memory = &snapshot.memory;
    let mut row = |name: &str, value: &dyn Display| {
        push(page, format_args!("<div><dt>{name}</dt><dd>{value}</dd></div>"));
    };
    let sample = memory.sample.as_ref().map(|(_, sample)| sample);
    if let (Some(ratio), Some(sample)) = (memory.budget, sample) {
        let (used, limit) = (Size(sample.usage_bytes), Size(memory.settings.limit_bytes));
        row("Budget", &format_args!("{}, {used} of {limit}", Percent(ratio)));
    }
    let known = [
        ("Cgroup", sample.and_then(|sample| sample.cgroup).map(Fill::ratio)),
        ("Host", sample.and_then(|sample| sample.host)),
    ];
    for (name, ratio) in known.into_iter().filter_map(|(name, ratio)| Some((name, ratio?))) {
        row(name, &Percent(ratio));
    }
    if let Some(sample) = sample {
        row("Available", &format_args!("{} of {}", Size(sample.available_bytes), Size(sample.total_bytes)));
        row("Daemon", &Size(sample.daemon.rss));
    }
    row("Mode", &json::mode(memory.settings.mode));
    match enforcement.cgroup.as_str() {
        "none" => row("Limits held by", &"watchdog"),
        version => row("Limits held by", &format_args!("cgroup {}", Escaped(version))),
    }
}

pub fn workers(page: &mut String, view: &WorkersView) {
    for one in &view.workers {
        worker(page, one);
    }
    for _ in view.workers.len()..view.max.min(ROWS_MIN) {
        page.push_str("<li class=\"entry soft\"><div class=\"line\">free</div>");
        bar(page, 0.0, None, "", &"no worker");
        page.push_str("</li>");
    }
}

fn worker(page: &mut String, one: &WorkerView) {
    let (soft, hard) = (Size(one.soft_limit_bytes), Size(one.hard_limit_bytes));
    let tone = match one.state {
        "busy" => "ok",
        "stopping" => "warning",
        _ => "plain",
    };
    push(
        page,
        format_args!(
            "<li class=\"entry\"><div class=\"line\"><b>{}</b><span class=\"id soft\">{}</span>\
             <span class=\"end\"><span class=\"state {tone}\">{}</span>",
            Escaped(&one.agent),
            one.id,
            one.state,
        ),
    );
    if let Some(task) = one.task {
        push(page, format_args!(" {}", Link(task)));
    }
    page.push_str("</span></div>");
    let tick = Some(share(one.soft_limit_bytes, one.hard_limit_bytes));
    match one.rss_bytes {
        Some(rss) => {
            let tone = match rss {
                rss if rss <= one.soft_limit_bytes => "",
                rss if rss <= one.hard_limit_bytes => "warning",
                _ => "reject",
            };
            bar(page, share(rss, one.hard_limit_bytes), tick, tone, &format_args!("{} of {hard}", Size(rss)));
        }
        None => bar(page, 0.0, tick, "", &"no reading yet"),
    }
    page.push_str("<div class=\"line\"><b>");
    match one.rss_bytes {
        Some(rss) => push(page, format_args!("{}", Size(rss))),
        None => page.push('–'),
    }
    push(
        page,
        format_args!(
            "</b><span class=\"soft\">soft {soft}, hard {hard}</span><span class=\"soft end\">{}</span></div></li>",
            Count(one.tasks_done, "task done", "tasks done")
        ),
    );
}

fn share(bytes: u64, limit: u64) -> f64 {
    if limit == 0 { 0.0 } else { bytes as f64 / limit as f64 }
}

/// A bar that is full at 1; `tick` marks a place on it. Its widths are attributes: the page's policy has no room for
/// styles.
fn bar(page: &mut String, part: f64, tick: Option<f64>, tone: &str, label: &dyn Display) {
    let of_100 = |ratio: f64| format!("{:.1}", ratio.min(1.0) * 100.0);
    push(
        page,
        format_args!(
            "<svg class=\"bar\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{label}\">\
             <rect class=\"track\" width=\"100\" height=\"10\"></rect>\
             <rect class=\"fill {tone}\" width=\"{}\" height=\"10\"></rect>",
            of_100(part),
        ),
    );
    if let Some(tick) = tick {
        push(page, format_args!("<rect class=\"tick\" x=\"{}\" width=\"0.5\" height=\"10\"></rect>", of_100(tick)));
    }
    page.push_str("</svg>");
}

pub fn queue(page: &mut String, view: &QueueView) {
    for priority in Priority::ALL {
        let (waiting, limit) = (view.by_priority[priority.index()], view.limits[priority.index()]);
        push(page, format_args!("<tr><th scope=\"row\">{}</th><td>", priority.name()));
        bar(page, share(waiting as u64, limit as u64), None, "", &format_args!("{waiting} of {limit}"));
        push(page, format_args!("</td><td>{waiting} / {limit}</td></tr>"));
    }
}

pub fn waiting(page: &mut String, view: &QueueView) {
    if view.tasks.is_empty() {
        return page.push_str("<span class=\"soft\">No task waits.</span>");
    }
    let mut gap = "Next: ";
    for (task, agent, _, state) in view.tasks.iter().take(WAITING) {
        let parked = if *state == TaskState::Preempted { " (preempted)" } else { "" };
        push(page, format_args!("{gap}{} {}{parked}", Link(*task), Escaped(agent)));
        gap = ", ";
    }
    let left = (view.depth + view.parked).saturating_sub(view.tasks.len().min(WAITING));
    if left > 0 {
        push(page, format_args!(" and {left} more"));
    }
}

pub fn breakers(page: &mut String, breakers: &[(Arc<str>, BreakerView)]) {
    if breakers.is_empty() {
        page.push_str("<li class=\"soft\">None is configured.</li>");
    }
    for (name, view) in breakers {
        let (tone, state) = match view.state {
            BreakerState::Closed => ("ok", "closed"),
            BreakerState::HalfOpen => ("warning", "half-open"),
            BreakerState::Open => ("reject", "open"),
        };
        push(
            page,
            format_args!(
                "<li><div class=\"line\"><b>{}</b><span class=\"state end {tone}\">{state}</span></div>\
                 <div class=\"line soft\">",
                Escaped(name)
            ),
        );
        match view.state {
            _ if view.forced => page.push_str("held open by hand"),
            BreakerState::Open => {
                // As the API has it: whole milliseconds, of which a begun second counts.
                let left = view.retry_after.unwrap_or_default().as_millis().div_ceil(1000) as u64;
                let (left, times) = (Span(Duration::from_secs(left)), Count(view.openings as u64, "time", "times"));
                push(page, format_args!("tried again in {left}, opened {times} in a row"));
            }
            BreakerState::HalfOpen => {
                push(page, format_args!("{} so far", Count(view.successes.into(), "success", "successes")));
            }
            BreakerState::Closed if view.failures > 0 => {
                push(page, format_args!("{} in its window", Count(view.failures as u64, "failure", "failures")));
            }
            BreakerState::Closed => page.push_str("no failures"),
        }
        page.push_str("</div></li>");
    }
}

pub fn decisions(page: &mut String, decisions: &[Decision], snapshot: &Snapshot) {
    if decisions.is_empty() {
        page.push_str("<li class=\"soft\">Nothing has been decided yet.</li>");
    }
    let now = json::time(snapshot.now.wall_ms);
    for decision in decisions {
        let at = json::time(decision.at_ms);
        let day = if at[..10] == now[..10] { String::new() } else { format!("{} ", &at[5..10]) };
        let tone = match decision.notice.severity() {
            Severity::Debug | Severity::Info => "plain",
            Severity::Warning => "critical",
            Severity::Error => "reject",
        };
        push(
            page,
            format_args!(
                "<li class=\"{tone}\"><time datetime=\"{at}\">{day}{}</time><span class=\"event\">{}</span>\
                 <span class=\"what\">",
                &at[11..19],
                decision.notice.name(),
            ),
        );
        if let Some(task) = decision.notice.task() {
            push(page, format_args!("{} ", Link(task)));
        }
        decision.notice.fields(&mut |name, field| {
            if let ("agent", Field::Text(agent)) = (name, field) {
                push(page, format_args!("<b>{}</b> ", Escaped(agent)));
            }
        });
        push(page, format_args!("{}</span></li>", Escaped(&decision.notice.sentence())));
    }
}

/// A task's id, which leads to its object.
struct Link(TaskId);

impl Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<a class=\"id\" href=\"/v1/tasks/{0}\">{0}</a>", self.0)
    }
}
