//! The parts of the daemon's state, each a command of its own and a block of `status`; and the commands that change
//! them.
//!
//! Owns these screens. May import the API, the console, tables and text. Must never know a socket.

use super::api::{Api, Breaker, Breakers, Drained, Memory, Queue, Reloaded, Schedule, Worker, Workers};
use super::console::{Console, Tone};
use super::error::CtlError;
use super::http::{Request, encoded};
use super::table::{Cell, Column, Table};
use super::text;
use crate::sys::clock::wall_ms;
use std::time::Duration;

pub fn queue(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let reply = api.get::<Queue>("/v1/queue")?;
    if json {
        return console.print_foreign_line(&reply.raw);
    }
    queue_block(&reply.value, console)?;
    if reply.value.tasks.is_empty() {
        return Ok(());
    }
    console.print("\n")?;
    let columns = [
        Column::Right("POSITION"),
        Column::Left("ID"),
        Column::Flexible("AGENT"),
        Column::Left("PRIORITY"),
        Column::Left("STATE"),
    ];
    let mut table = Table::new(0, columns);
    for task in &reply.value.tasks {
        let position = task.position.map_or_else(text::dash, |position| position.to_string());
        table.row([
            position.into(),
            (&task.id).into(),
            (&task.agent).into(),
            (&task.priority).into(),
            Cell::toned(&task.state, state_tone(&task.state)),
        ]);
    }
    table.print(console)
}

pub fn workers(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let reply = api.get::<Workers>("/v1/workers")?;
    if json { console.print_foreign_line(&reply.raw) } else { workers_block(&reply.value, console) }
}

pub fn breakers(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let reply = api.get::<Breakers>("/v1/breakers")?;
    if json {
        console.print_foreign_line(&reply.raw)
    } else if reply.value.breakers.is_empty() {
        console.print("no circuit breakers are configured\n")
    } else {
        breakers_table(0, &reply.value.breakers, console)
    }
}

/// `to` is `open` or `close`.
pub fn force_breaker(api: &Api, console: &mut Console, name: &str, to: &str, json: bool) -> Result<(), CtlError> {
    let path = format!("/v1/breakers/{}/{to}", encoded(name));
    let reply = api.ask::<Breaker>(Request::with_method("POST", path))?;
    if json { console.print_foreign_line(&reply.raw) } else { breakers_table(0, &[reply.value], console) }
}

pub fn memory(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let reply = api.get::<Memory>("/v1/memory")?;
    if json {
        return console.print_foreign_line(&reply.raw);
    }
    let memory = &reply.value;
    memory_block(memory, console)?;
    console.print("\n")?;
    let mut table = Table::new(0, [Column::Left("THRESHOLD"), Column::Right("AT"), Column::Right("MiB OF THE LIMIT")]);
    for (name, ratio) in memory.thresholds.named() {
        let bytes = (memory.limit_bytes as f64 * ratio) as u64;
        table.row([Cell::toned(name, level_tone(name)), text::percent(ratio).into(), text::mib(bytes).into()]);
    }
    table.print(console)?;
    console.print("\n")?;
    if let Some(rss) = memory.daemon.rss_bytes {
        console.print(&format!("daemon   {} MiB\n", text::mib(rss)))?;
    }
    if let Some(host) = &memory.host {
        let (available, total) = (text::mib(host.available_bytes), text::mib(host.total_bytes));
        console.print(&format!("host     {available} of {total} MiB available\n"))?;
    }
    console.print(&format!("sampled  {} ago\n", text::since(memory.sampled_at.as_deref(), wall_ms())))
}

pub fn reload(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let reply = api.ask::<Reloaded>(Request::with_method("POST", "/v1/reload"))?;
    if json {
        return console.print_foreign_line(&reply.raw);
    }
    let list = |keys: &[String]| text::one_line(&keys.join(", "));
    let changed = &reply.value.changed;
    let what = if changed.is_empty() { "nothing changed".to_owned() } else { format!("changed: {}", list(changed)) };
    console.print(&format!("configuration read again; {what}\n"))?;
    if reply.value.needs_restart.is_empty() {
        return Ok(());
    }
    console.print(&format!("only after a restart of kurultaid: {}\n", list(&reply.value.needs_restart)))
}

pub fn drain(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let reply = api.ask::<Drained>(Request::with_method("POST", "/v1/drain"))?;
    if json {
        return console.print_foreign_line(&reply.raw);
    }
    console.print(&format!(
        "{}: new work is refused, what runs is finished, then the daemon stops\n",
        text::one_line(&reply.value.state)
    ))
}

const BAR_WIDTH: usize = 50;

pub fn memory_block(memory: &Memory, console: &mut Console) -> Result<(), CtlError> {
    let tone = level_tone(&memory.level);
    let level = console.toned(&text::one_line(&memory.level), tone);
    let incident = memory.incident.as_ref().map_or_else(String::new, |id| format!(", incident {}", text::one_line(id)));
    let (used, limit) = (text::mib(memory.usage_bytes), text::mib(memory.limit_bytes));
    let mode = text::one_line(&memory.mode);
    console.print(&heading("Memory", &format!("{level}{incident}, mode {mode}, {used} of {limit} MiB"), console))?;
    let highest = memory.pressure.highest();
    let bar = console.toned(&bar(highest, &memory.thresholds.named().map(|(_, ratio)| ratio)), tone);
    console.print(&format!("  [{bar}] {}\n", text::percent(highest)))?;
    let sources: Vec<_> =
        memory.pressure.sources().map(|(source, ratio)| format!("{source} {}", text::percent(ratio))).collect();
    let thresholds = memory.thresholds.named().map(|(_, ratio)| format!("{:.0}", ratio * 100.0)).join(", ");
    console.print(&format!("  {}; thresholds | at {thresholds} %\n", sources.join(", ")))
}

/// `#` up to the ratio, `.` after it, `|` where a threshold is.
fn bar(ratio: f64, thresholds: &[f64]) -> String {
    let at = |ratio: f64| (ratio.clamp(0.0, 1.0) * BAR_WIDTH as f64).round() as usize;
    let full = at(ratio);
    let mut cells: Vec<char> = (0..BAR_WIDTH).map(|cell| if cell < full { '#' } else { '.' }).collect();
    for threshold in thresholds {
        cells[at(*threshold).min(BAR_WIDTH - 1)] = '|';
    }
    cells.into_iter().collect()
}

pub fn queue_block(queue: &Queue, console: &mut Console) -> Result<(), CtlError> {
    let parked = if queue.parked == 0 { String::new() } else { format!(", {} preempted and parked", queue.parked) };
    let summary = format!("{} of {} waiting{parked}", queue.depth, queue.max_depth);
    console.print(&heading("Queue", &summary, console))?;
    let limits = queue.limits.named();
    let levels: Vec<_> = queue
        .by_priority
        .named()
        .iter()
        .zip(limits)
        .map(|((name, count), (_, limit))| format!("{name} {count}/{limit}"))
        .collect();
    console.print(&format!("  {}\n", levels.join("  ")))
}

pub fn workers_block(workers: &Workers, console: &mut Console) -> Result<(), CtlError> {
    let summary = format!("{} active, {} idle, at most {}", workers.active, workers.idle, workers.max);
    console.print(&heading("Workers", &summary, console))?;
    if workers.workers.is_empty() { Ok(()) } else { workers_table(&workers.workers, console) }
}

fn workers_table(workers: &[Worker], console: &mut Console) -> Result<(), CtlError> {
    let columns = [
        Column::Left("ID"),
        Column::Flexible("AGENT"),
        Column::Left("STATE"),
        Column::Left("TASK"),
        Column::Right("PID"),
        Column::Right("RSS MiB"),
        Column::Right("HEAP MiB"),
        Column::Right("DONE"),
        Column::Right("AGE"),
    ];
    let now_ms = wall_ms();
    let number = |value: Option<u64>| value.map_or_else(text::dash, |value| value.to_string());
    let size = |bytes: Option<u64>| bytes.map_or_else(text::dash, text::mib);
    let mut table = Table::new(2, columns);
    for worker in workers {
        table.row([
            (&worker.id).into(),
            (&worker.agent).into(),
            Cell::toned(&worker.state, state_tone(&worker.state)),
            worker.task.as_deref().unwrap_or("-").into(),
            number(worker.pid).into(),
            size(worker.rss_bytes).into(),
            size(worker.heap_used_bytes).into(),
            number(worker.tasks_done).into(),
            text::since(worker.started_at.as_deref(), now_ms).into(),
        ]);
    }
    table.print(console)
}

pub fn breakers_table(indent: usize, breakers: &[Breaker], console: &mut Console) -> Result<(), CtlError> {
    let columns = [
        Column::Flexible("NAME"),
        Column::Left("STATE"),
        Column::Right("FAILURES"),
        Column::Right("SUCCESSES"),
        Column::Right("OPENINGS"),
        Column::Right("RETRY IN"),
    ];
    let mut table = Table::new(indent, columns);
    for breaker in breakers {
        let forced = if breaker.forced { " (forced)" } else { "" };
        let retry = breaker.retry_after_ms.map_or_else(text::dash, |ms| text::age(Duration::from_millis(ms)));
        table.row([
            (&breaker.name).into(),
            Cell::toned(&format!("{}{forced}", breaker.state), state_tone(&breaker.state)),
            breaker.failures.to_string().into(),
            breaker.successes.to_string().into(),
            breaker.openings.to_string().into(),
            retry.into(),
        ]);
    }
    table.print(console)
}

pub fn schedules_table(schedules: &[Schedule], console: &mut Console) -> Result<(), CtlError> {
    let columns = [
        Column::Flexible("NAME"),
        Column::Flexible("AGENT"),
        Column::Right("EVERY"),
        Column::Right("NEXT IN"),
        Column::Right("SKIPPED"),
    ];
    let now_ms = wall_ms();
    let mut table = Table::new(2, columns);
    for schedule in schedules {
        let every = schedule.every_s.map_or_else(text::dash, |seconds| text::age(Duration::from_secs(seconds)));
        table.row([
            (&schedule.name).into(),
            (&schedule.agent).into(),
            every.into(),
            text::until(schedule.next_at.as_deref(), now_ms).into(),
            schedule.skipped.to_string().into(),
        ]);
    }
    table.print(console)
}

/// A block's first line.
pub fn heading(name: &str, summary: &str, console: &Console) -> String {
    format!("{}  {summary}\n", console.toned(&format!("{name:<9}"), Tone::Title))
}

pub fn level_tone(level: &str) -> Tone {
    match level {
        "normal" => Tone::Good,
        "warning" => Tone::Careful,
        _ => Tone::Bad,
    }
}

/// The colour of a task's, worker's or breaker's state.
pub fn state_tone(state: &str) -> Tone {
    match state {
        "running" | "busy" | "completed" | "closed" => Tone::Good,
        "preempted" | "skipped" | "evicted" | "cancelled" | "half_open" | "stopping" => Tone::Careful,
        "failed" | "open" => Tone::Bad,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_the_ratio_and_every_threshold_whatever_the_figures() {
        for (ratio, full) in [(0.0, 0), (0.5, 25), (1.0, 46), (7.0, 46), (-1.0, 0), (f64::NAN, 0)] {
            let bar = bar(ratio, &[0.7, 0.85, 0.9, 0.95]);
            assert_eq!(bar.chars().count(), BAR_WIDTH, "{ratio}");
            assert_eq!(bar.matches('#').count(), full, "{ratio}: {bar}");
            assert_eq!(bar.matches('|').count(), 4, "{ratio}: {bar}");
        }
    }
}
