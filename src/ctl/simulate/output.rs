//! A simulation for programs: JSON, and the series as CSV.
//!
//! Owns the names of fields and columns. May import serde_json. Must never know a terminal.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Simulated;
use crate::core::governor::Level;
use crate::simulation::figures::{Counts, Figures, Point, Times};

/// Columns of the series; fields of JSON's `series` are the same in camel case.
pub const COLUMNS: &str = "at_s,usage_mb,pressure,level,workers,running,waiting,accepted,refused,completed";

pub fn csv(figures: &Figures) -> String {
    let mut text = format!("{COLUMNS}\n");
    for point in &figures.points {
        let Point { pressure, workers, running, waiting, accepted, refused, completed, .. } = point;
        let _ = writeln!(
            text,
            "{},{:.1},{pressure:.4},{},{workers},{running},{waiting},{accepted},{refused},{completed}",
            point.at.as_secs(),
            point.usage_bytes as f64 / 1_048_576.0,
            point.level.name(),
        );
    }
    text
}

pub fn json(simulated: &Simulated<'_>) -> Value {
    let Simulated { config_file, profile_file, config, load, seed, figures } = simulated;
    let agents: Map<String, Value> =
        figures.agents.iter().map(|(agent, counts)| (agent.to_string(), self::counts(counts))).collect();
    let phases: Vec<Value> = load
        .phases
        .iter()
        .zip(&figures.phases)
        .map(|(phase, counts)| {
            let mut object = self::counts(counts);
            object["name"] = json!(phase.name);
            object["durationS"] = json!(phase.duration.as_secs_f64());
            object
        })
        .collect();
    let levels: Map<String, Value> = Level::ALL
        .into_iter()
        .zip(figures.levels)
        .map(|(level, time)| (level.name().to_owned(), json!(ms(time))))
        .collect();
    json!({
        "config": config_file.display().to_string(),
        "profile": profile_file.display().to_string(),
        "seed": seed,
        "durationS": load.duration().as_secs_f64(),
        "lastedS": figures.lasted.as_secs_f64(),
        "total": self::counts(&figures.total()),
        "agents": agents,
        "phases": phases,
        "refusals": figures.refusals,
        "failures": figures.failures,
        "kills": figures.kills,
        "actions": figures.actions,
        "waitMs": times(&figures.waits),
        "runMs": times(&figures.runs),
        "totalMs": times(&figures.totals),
        "workerStarts": figures.worker_starts,
        "memory": {
            "limitBytes": config.memory.limit_mb << 20,
            "peakBytes": figures.peak_bytes,
            "peakPressure": rounded(figures.peak_pressure),
            "leastAvailableBytes": figures.least_available_bytes,
            "incidents": figures.incidents,
            "levelsMs": levels,
        },
        "series": figures.points.iter().map(point).collect::<Vec<_>>(),
    })
}

fn counts(counts: &Counts) -> Value {
    let Counts {
        submitted,
        accepted,
        refused,
        completed,
        failed,
        evicted,
        unfinished,
        beats,
        skipped,
        preempted,
        killed,
        retried,
    } = counts;
    json!({
        "submitted": submitted, "accepted": accepted, "refused": refused, "completed": completed, "failed": failed,
        "evicted": evicted, "unfinished": unfinished, "beats": beats, "skipped": skipped, "preempted": preempted,
        "killed": killed, "retried": retried,
    })
}

fn times(times: &Times) -> Value {
    let at = |percent| times.percentile(percent).map(ms);
    json!({ "count": times.count(), "p50": at(50), "p95": at(95), "p99": at(99), "max": at(100) })
}

fn point(point: &Point) -> Value {
    let Point { at, usage_bytes, pressure, level, workers, running, waiting, accepted, refused, completed } = point;
    json!({
        "atS": at.as_secs(), "usageMb": rounded(*usage_bytes as f64 / 1_048_576.0), "pressure": rounded(*pressure),
        "level": level.name(), "workers": workers, "running": running, "waiting": waiting, "accepted": accepted,
        "refused": refused, "completed": completed,
    })
}

fn ms(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1000.0)
}

/// Four decimals: what a reader may compare.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
