//! `status`: the daemon at a glance, once or every second.
//!
//! Owns the order of the blocks, and watching. May import the API, the console and the parts. Must never know how a
//! part is drawn.

use super::api::{Api, Features, Status};
use super::console::{Console, Tone};
use super::error::CtlError;
use super::{parts, text};
use crate::sys::clock::wall_ms;
use std::time::Duration;

const PATH: &str = "/v1/status";

pub fn once(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let reply = api.get::<Status>(PATH)?;
    if json { console.print_foreign_line(&reply.raw) } else { screen(&reply.value, console) }
}

/// Until interrupted, or nobody reads any more. Only the first look has to work: a restart is watched, too.
pub fn watch(api: &Api, console: &mut Console, json: bool) -> Result<(), CtlError> {
    let mut look = api.get::<Status>(PATH);
    let mut seen = false;
    loop {
        match look {
            Ok(reply) if json => console.print_foreign_line(&reply.raw)?,
            Ok(reply) => {
                console.clear_screen()?;
                screen(&reply.value, console)?;
                if !console.out_is_terminal() {
                    console.print("\n")?;
                }
            }
            Err(error) if seen && error.may_pass() => console.complain(&error.to_string()),
            Err(error) => return Err(error),
        }
        console.flush()?;
        seen = true;
        console.wait_a_moment();
        look = api.get::<Status>(PATH);
    }
}

fn screen(status: &Status, console: &mut Console) -> Result<(), CtlError> {
    head(status, console)?;
    console.print("\n")?;
    parts::memory_block(&status.memory, console)?;
    console.print("\n")?;
    parts::queue_block(&status.queue, console)?;
    console.print("\n")?;
    parts::workers_block(&status.workers, console)?;
    if !status.breakers.is_empty() {
        let open = status.breakers.iter().filter(|breaker| breaker.state == "open").count();
        let heading = parts::heading("Breakers", &format!("{open} open"), console);
        console.print(&format!("\n{heading}"))?;
        parts::breakers_table(2, &status.breakers, console)?;
    }
    if !status.schedules.is_empty() {
        let heading = parts::heading("Schedules", &status.schedules.len().to_string(), console);
        console.print(&format!("\n{heading}"))?;
        parts::schedules_table(&status.schedules, console)?;
    }
    Ok(())
}

fn head(status: &Status, console: &mut Console) -> Result<(), CtlError> {
    let tone = if status.state == "running" { Tone::Good } else { Tone::Careful };
    let state = console.toned(&text::one_line(&status.state), tone);
    let pid = status.pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let uptime = status.uptime_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let up = uptime.map_or_else(String::new, |uptime| format!(", up {}", text::age(uptime)));
    let heading =
        parts::heading("kurultaid", &format!("{state}, {}{pid}{up}", text::one_line(&status.version)), console);
    console.print(&heading)?;
    if let Some(file) = &status.config.file {
        let loaded = text::since(status.config.loaded_at.as_deref(), wall_ms());
        console.print(&format!("  configuration {}, loaded {loaded} ago\n", text::one_line(file)))?;
    }
    if let Some(reload) = status.config.reload.as_ref().filter(|reload| reload.result != "ok") {
        let at = text::since(reload.at.as_deref(), wall_ms());
        let why = text::one_line(reload.error.as_deref().unwrap_or("no reason given"));
        warn(&format!("reload rejected {at} ago, the old configuration is in force: {why}"), console)?;
    }
    if let Some(error) = &status.storage.error {
        warn(&format!("new tasks are refused for want of disk: {}", text::one_line(error)), console)?;
    }
    if status.storage.damaged > 0 {
        warn(
            &format!(
                "damaged or lost in the state directory: {} since the start; see the log and kurultai-spool(5)",
                status.storage.damaged
            ),
            console,
        )?;
    }
    let off = switched_off(&status.features);
    if off.is_empty() { Ok(()) } else { console.print(&format!("  switched off: {}\n", off.join(", "))) }
}

fn warn(line: &str, console: &mut Console) -> Result<(), CtlError> {
    for piece in text::wrap(line, console.width - 2) {
        let piece = console.toned(&piece, Tone::Bad);
        console.print(&format!("  {piece}\n"))?;
    }
    Ok(())
}

fn switched_off(features: &Features) -> Vec<String> {
    let named = [
        ("memory governance", features.memory_governance),
        ("worker pool", features.worker_pool),
        ("circuit breakers", features.circuit_breakers),
    ];
    let mut off: Vec<_> =
        named.into_iter().filter(|(_, on)| *on == Some(false)).map(|(name, _)| name.to_owned()).collect();
    if let Some(share) = features.rollout_percent.filter(|share| *share < 100) {
        off.push(format!("governance for all but {share} % of the tasks"));
    }
    off
}
