//! `--record`: a profile out of a running daemon's history.
//!
//! Owns what of it becomes which key. May import the API and the console. Must never know a socket.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::super::api::{Api, Task, Tasks};
use super::super::console::Console;
use super::super::error::CtlError;
use super::super::text::{one_line, unix_ms};
use crate::core::task::Priority;

/// The most tasks that the API lists.
const HISTORY_MAX: usize = 1000;

/// Between two runs of one agent that differ by less the spread is none.
const ALIKE: f64 = 1.01;

/// What a process is taken to hold without a task, if its tasks held more.
const IDLE_MB: f64 = 10.0;

pub fn run(api: &Api, console: &mut Console) -> Result<(), CtlError> {
    let reply = api.get::<Tasks>(format!("/v1/tasks?state=completed,failed&limit={HISTORY_MAX}"))?;
    let usable = Vec::from_iter(reply.value.tasks.iter().filter(|task| task.duration_ms.is_some()));
    if usable.is_empty() {
        let what = "a profile".to_owned();
        let why = "the daemon remembers no task that has run: give it some work first".to_owned();
        return Err(CtlError::Unsendable { what, why });
    }
    console.print(&profile(&usable))
}

/// `tasks`: at least one, each with a duration.
pub fn profile(tasks: &[&Task]) -> String {
    let mut created: Vec<u64> = tasks.iter().filter_map(|task| unix_ms(task.created_at.as_deref()?)).collect();
    created.sort_unstable();
    let spanned_s = created.last().zip(created.first()).map_or(0.0, |(last, first)| (last - first) as f64 / 1000.0);
    let interval_s = (spanned_s / (tasks.len().saturating_sub(1).max(1)) as f64).max(0.01);
    let mut text = format!(
        "# Recorded from the last {} tasks of a running daemon. What it does not remember is a guess or at its default:\n\
         # idle_mb, ready_s and leak_mb_per_s; and all submissions come from one, at even intervals.\n\n\
         [[phases]]\nname = \"recorded\"\nduration_s = {}\nagents = 1\ninterval_s = {}\n",
        tasks.len(),
        rounded((spanned_s + interval_s).max(1.0)),
        rounded(interval_s)
    );
    let mut weights = [0_u64; Priority::COUNT];
    for priority in tasks.iter().filter_map(|task| task.priority.parse::<Priority>().ok()) {
        weights[priority.index()] += 1;
    }
    let named = Priority::ALL.into_iter().zip(weights).filter(|(_, weight)| *weight > 0);
    let named = Vec::from_iter(named.map(|(priority, weight)| format!("{} = {weight}", priority.name())));
    if !named.is_empty() {
        let _ = writeln!(text, "priorities = {{ {} }}", named.join(", "));
    }
    let mut agents: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        agents.entry(&task.agent).or_default().push(task);
    }
    for (agent, tasks) in agents {
        text += &section(agent, &tasks);
    }
    text
}

fn section(agent: &str, tasks: &[&Task]) -> String {
    let seconds = tasks.iter().filter_map(|task| task.duration_ms).map(|ms| ms / 1000.0);
    let peaks = tasks.iter().filter_map(|task| task.peak_rss_bytes).map(|bytes| bytes as f64 / 1_048_576.0);
    let peaks = Vec::from_iter(peaks);
    let least = peaks.iter().copied().fold(f64::INFINITY, f64::min);
    let crashed = tasks.iter().filter(|task| task.error.as_ref().is_some_and(|error| error.code == "worker_crashed"));
    let name = toml_key(agent);
    let mut text = format!(
        "\n[agents.{name}]\nshare = {}\nrun_s = {}\npeak_mb = {}\n",
        tasks.len().min(HISTORY_MAX),
        spread(seconds.collect()).unwrap_or_else(|| "0".to_owned()),
        spread(peaks).unwrap_or_else(|| "10 # not seen".to_owned()),
    );
    if least < IDLE_MB {
        let _ = writeln!(text, "idle_mb = {}", rounded(least));
    }
    let crash = crashed.count() as f64 / tasks.len() as f64;
    if crash > 0.0 {
        let _ = writeln!(text, "crash = {}", rounded(crash));
    }
    if tasks.iter().any(|task| task.preemptions.unwrap_or(0) > 0) {
        text += "checkpoint = true\n";
    }
    if let Some(retries) = tasks.iter().filter_map(|task| task.max_retries).max().filter(|retries| *retries > 0) {
        let _ = writeln!(text, "max_retries = {}", retries.min(100));
    }
    text
}

/// A bare key where it can be one.
fn toml_key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric() || "_-".contains(char));
    if is_bare { name.to_owned() } else { format!("{:?}", one_line(name)) }
}

/// As a profile spells it; `None` of nothing.
fn spread(mut values: Vec<f64>) -> Option<String> {
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| values.get((values.len() * percent).div_ceil(100).max(1) - 1).copied();
    let (p50, p95) = (at(50)?, at(95)?);
    if p95 <= p50 * ALIKE || p50 <= 0.0 {
        return Some(rounded(p95));
    }
    Some(format!("{{ p50 = {}, p95 = {} }}", rounded(p50), rounded(p95)))
}

/// Three decimals where they count, and no more than are there.
fn rounded(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
