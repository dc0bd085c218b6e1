//! A simulation for people.
//!
//! Owns its words and tables. May import the console, tables and text. Must never know how the figures came about.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::console::{Console, Tone};
use super::super::error::CtlError;
use super::super::parts::level_tone;
use super::super::table::{Cell, Column, Table};
use super::super::text::{self, age, mib, percent};
use super::{Simulated, plot};
use crate::core::governor::Level;
use crate::simulation::figures::{Counts, Figures, Times};

pub fn show(simulated: &Simulated<'_>, console: &mut Console) -> Result<(), CtlError> {
    let Simulated { config_file, profile_file, load, seed, figures, .. } = simulated;
    let head = format!(
        "{} of {} on {}, seed {seed}: over after {}",
        age(load.duration()),
        text::one_line(&profile_file.display().to_string()),
        text::one_line(&config_file.display().to_string()),
        age(figures.lasted)
    );
    let is_long = console.out_is_terminal() && head.chars().count() > console.width;
    let head = if is_long { text::wrap(&head, console.width).join("\n") } else { head };
    console.print(&format!("{head}\n\n"))?;
    counts(simulated, console)?;
    console.print("\n")?;
    reasons(figures, console)?;
    times(figures, console)?;
    console.print("\n")?;
    memory(simulated, console)?;
    if console.out_is_terminal() {
        console.print("\n")?;
        plot::show(simulated, console)?;
    }
    Ok(())
}

/// By agent, by phase where there are several, and in all.
fn counts(simulated: &Simulated<'_>, console: &mut Console) -> Result<(), CtlError> {
    let Simulated { load, figures, .. } = simulated;
    let columns = [
        Column::Flexible("TASKS"),
        Column::Right("SENT"),
        Column::Right("ACCEPTED"),
        Column::Right("REFUSED"),
        Column::Right("DONE"),
        Column::Right("FAILED"),
        Column::Right("PREEMPTED"),
        Column::Right("KILLED"),
        Column::Right("RETRIED"),
    ];
    let mut table = Table::new(0, columns);
    let mut row = |name: &str, counts: &Counts| {
        let Counts { submitted, accepted, refused, completed, failed, preempted, killed, retried, .. } = counts;
        let bad = |count: u64| Cell::toned(&count.to_string(), if count > 0 { Tone::Bad } else { Tone::Plain });
        let careful = |count: u64| Cell::toned(&count.to_string(), if count > 0 { Tone::Careful } else { Tone::Plain });
        table.row([
            name.into(),
            submitted.to_string().into(),
            accepted.to_string().into(),
            careful(*refused),
            completed.to_string().into(),
            bad(*failed),
            careful(*preempted),
            bad(*killed),
            careful(*retried),
        ]);
    };
    for (agent, counts) in &figures.agents {
        row(agent, counts);
    }
    if load.phases.len() > 1 {
        for (phase, counts) in load.phases.iter().zip(&figures.phases) {
            row(&format!("in {}", phase.name), counts);
        }
    }
    if figures.agents.len() > 1 || load.phases.len() > 1 {
        row("in all", &figures.total());
    }
    table.print(console)
}

fn reasons(figures: &Figures, console: &mut Console) -> Result<(), CtlError> {
    let total = figures.total();
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("{name:<10} {text}\n"));
        }
    };
    line("refusals", listed(&figures.refusals));
    line("failures", listed(&figures.failures));
    line("kills", listed(&figures.kills));
    line("memory", listed(&figures.actions));
    if total.evicted > 0 {
        line("evicted", format!("{} heartbeats made room for critical tasks", total.evicted));
    }
    if total.beats + total.skipped > 0 {
        line("schedules", format!("{} beats, {} skipped", total.beats, total.skipped));
    }
    if total.unfinished > 0 {
        line("unfinished", format!("{} tasks had no end an hour after the last submission", total.unfinished));
    }
    if lines.is_empty() {
        return Ok(());
    }
    lines.push("\n".to_owned());
    console.print(&lines.concat())
}

/// `queue_full 120, memory_pressure 3`: the most frequent first.
fn listed(counts: &BTreeMap<&'static str, u64>) -> String {
    let mut counts = Vec::from_iter(counts);
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), **name));
    Vec::from_iter(counts.iter().map(|(name, count)| format!("{name} {count}"))).join(", ")
}

fn times(figures: &Figures, console: &mut Console) -> Result<(), CtlError> {
    let columns = [
        Column::Left("SECONDS"),
        Column::Right("P50"),
        Column::Right("P95"),
        Column::Right("P99"),
        Column::Right("MAX"),
    ];
    let mut table = Table::new(0, columns);
    for (name, times) in [("waiting", &figures.waits), ("running", &figures.runs), ("in all", &figures.totals)] {
        let [p50, p95, p99, max] = [50, 95, 99, 100].map(|percent| seconds(times, percent));
        table.row([name.into(), p50.into(), p95.into(), p99.into(), max.into()]);
    }
    table.print(console)
}

fn seconds(times: &Times, percent: usize) -> String {
    times.percentile(percent).map_or_else(text::dash, |time| format!("{:.2}", time.as_secs_f64()))
}

fn memory(simulated: &Simulated<'_>, console: &mut Console) -> Result<(), CtlError> {
    let Simulated { config, figures, .. } = simulated;
    let share = figures.peak_bytes as f64 / (config.memory.limit_mb << 20) as f64;
    let mut text =
        format!("peak       {} of {} MiB, {}", mib(figures.peak_bytes), config.memory.limit_mb, percent(share));
    if let Some(available) = figures.least_available_bytes {
        text += &format!("\nhost       at least {} MiB available", mib(available));
    }
    text += &format!("\nworkers    {} started\n", figures.worker_starts);
    let raised = Level::ALL.into_iter().zip(figures.levels).skip(1).filter(|(_, time)| *time > Duration::ZERO);
    let raised = Vec::from_iter(
        raised.map(|(level, time)| format!("{} {}", console.toned(level.name(), level_tone(level.name())), age(time))),
    );
    if !raised.is_empty() {
        text += &format!("levels     {}; {} incidents\n", raised.join(", "), figures.incidents);
    }
    console.print(&text)
}
