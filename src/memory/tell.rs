//! Which readings the scheduler hears of, and how soon.

use std::collections::BTreeMap;
use std::time::Duration;

use super::MonitorSettings;
use super::pace::{Limits, RAISED_CEILING};
use crate::core::governor::{Fill, MemorySample};
use crate::core::ids::WorkerId;

/// A reading that says the same as the last is passed on this often all the same, so that figures are never old.
pub const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// Changes without a crossing are passed on this often at most: the scheduler need not follow every page of a growing worker.
const AT_MOST_EVERY: Duration = Duration::from_millis(50);

/// While memory is so short that somebody may have to be preempted or killed, the next action waits for a reading, however
/// like the last one it is.
const SHORT_AT_LEAST_EVERY: Duration = RAISED_CEILING;

/// A change that is worth waking the scheduler for: half a percent of a ratio, 1 MiB of memory.
const RATIO_STEP: f64 = 0.005;
const BYTES_STEP: u64 = 1024 * 1024;

/// Whether to pass `new` on, when `told` was passed on this long ago. A worker that crossed a limit and a ratio that crossed a
/// threshold, up or down, are told at once.
pub fn is_news(
    told: &MemorySample,
    ago: Duration,
    new: &MemorySample,
    settings: &MonitorSettings,
    limits: &BTreeMap<WorkerId, Limits>,
) -> bool {
    let at_least_every = if is_short(new, settings) { SHORT_AT_LEAST_EVERY } else { AT_LEAST_EVERY };
    ago >= at_least_every || (ago >= AT_MOST_EVERY && differs(told, new)) || crosses(told, new, settings, limits)
}

/// Whether the level may be critical or above, and there is somebody who could give memory back.
fn is_short(sample: &MemorySample, settings: &MonitorSettings) -> bool {
    let [_, critical, ..] = settings.thresholds;
    let is_over = |ratio: f64| ratio >= critical - settings.hysteresis;
    let cgroup = sample.cgroup.map(Fill::ratio);
    !sample.workers.is_empty()
        && (is_starved(sample, settings)
            || [budget(sample, settings), cgroup, sample.host].into_iter().flatten().any(is_over))
}

fn budget(sample: &MemorySample, settings: &MonitorSettings) -> Option<f64> {
    (settings.limit_bytes > 0 && sample.budget_counts).then(|| sample.usage_bytes as f64 / settings.limit_bytes as f64)
}

fn is_starved(sample: &MemorySample, settings: &MonitorSettings) -> bool {
    let clears_at = settings.min_free_bytes as f64 * (1.0 + settings.hysteresis);
    sample.total_bytes > 0 && (sample.available_bytes as f64) < clears_at
}

/// Whether somebody who knows `told` has to be told of `new`.
fn differs(told: &MemorySample, new: &MemorySample) -> bool {
    let ratio = |told: Option<f64>, new: Option<f64>| match (told, new) {
        (Some(told), Some(new)) => (told - new).abs() >= RATIO_STEP,
        (told, new) => told != new,
    };
    let bytes = |told: u64, new: u64| told.abs_diff(new) >= BYTES_STEP;
    let same_workers = told.workers.len() == new.workers.len()
        && told.workers.iter().zip(&new.workers).all(|(told, new)| told.0 == new.0 && !bytes(told.1, new.1));
    !same_workers
        || bytes(told.usage_bytes, new.usage_bytes)
        || ratio(told.host, new.host)
        || ratio(told.cgroup.map(Fill::ratio), new.cgroup.map(Fill::ratio))
        || told.budget_counts != new.budget_counts
}

fn crosses(
    told: &MemorySample,
    new: &MemorySample,
    settings: &MonitorSettings,
    limits: &BTreeMap<WorkerId, Limits>,
) -> bool {
    let before = |worker: WorkerId| told.workers.iter().find(|(id, _)| *id == worker).map_or(0, |(_, rss)| *rss);
    let worker_crosses = new.workers.iter().any(|(worker, rss)| {
        let before = before(*worker);
        let side = |limit: u64| (before > limit) != (*rss > limit);
        limits.get(worker).is_some_and(|limits| side(limits.soft) || side(limits.hard))
    });
    let level = |ratio: Option<f64>| level(ratio.unwrap_or(0.0), settings);
    let cgroup = |sample: &MemorySample| sample.cgroup.map(Fill::ratio);
    let budget = |sample| budget(sample, settings);
    let starved = |sample: &MemorySample| sample.total_bytes > 0 && sample.available_bytes < settings.min_free_bytes;
    worker_crosses
        || level(cgroup(told)) != level(cgroup(new))
        || level(told.host) != level(new.host)
        || level(budget(told)) != level(budget(new))
        || starved(told) != starved(new)
}

/// The number of thresholds reached, and of those left behind for good with the hysteresis.
fn level(ratio: f64, settings: &MonitorSettings) -> (usize, usize) {
    let reached = |margin: f64| settings.thresholds.iter().filter(|threshold| ratio >= **threshold - margin).count();
    (reached(0.0), reached(settings.hysteresis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Sources;

    const MIB: u64 = 1 << 20;

    fn settings() -> MonitorSettings {
        MonitorSettings {
            interval: Duration::from_secs(1),
            sources: Sources { budget: true, cgroup: true, host: true },
            limit_bytes: 1000 * MIB,
            min_free_bytes: 32 * MIB,
            thresholds: [0.70, 0.85, 0.90, 0.95],
            hysteresis: 0.10,
        }
    }

    fn told() -> MemorySample {
        MemorySample {
            usage_bytes: 650 * MIB,
            host: Some(0.5),
            total_bytes: 2000 * MIB,
            available_bytes: 1000 * MIB,
            workers: vec![(WorkerId(1), 299 * MIB), (WorkerId(2), 100 * MIB)],
            budget_counts: true,
            ..MemorySample::default()
        }
    }

    #[test]
    fn while_memory_is_short_the_same_is_told_several_times_a_second() {
        let same = |usage: u64, available: u64, workers: usize| MemorySample {
            usage_bytes: usage * MIB,
            available_bytes: available * MIB,
            workers: told().workers[..workers].to_vec(),
            ..told()
        };
        for (what, sample, is_soon) in [
            ("critical", same(900, 1000, 2), true),
            ("critical until ten percent below", same(751, 1000, 2), true),
            ("a warning", same(740, 1000, 2), false),
            ("a starved host", same(100, 33, 2), true),
            ("nobody to give anything back", same(900, 1000, 0), false),
        ] {
            let is_news = |ago| is_news(&sample, ago, &sample, &settings(), &BTreeMap::new());
            assert_eq!(is_news(SHORT_AT_LEAST_EVERY), is_soon, "{what}");
            assert!(!is_news(SHORT_AT_LEAST_EVERY / 2) && is_news(AT_LEAST_EVERY), "{what}");
        }
    }

    #[test]
    fn only_a_change_that_matters_wakes_the_scheduler_and_a_crossing_does_so_at_once() {
        let limits = Limits { soft: 300 * MIB, hard: 300 * MIB, is_held: false };
        let limits = BTreeMap::from([(WorkerId(1), limits), (WorkerId(2), limits)]);
        let workers = |one: u64, two: u64| vec![(WorkerId(1), one * MIB), (WorkerId(2), two * MIB)];
        // What is new, whether it is told at once, and whether it is after a while.
        let table = [
            ("the same", told(), false, false),
            ("a page more", MemorySample { usage_bytes: 650 * MIB + 4096, host: Some(0.501), ..told() }, false, false),
            ("more", MemorySample { usage_bytes: 652 * MIB, ..told() }, false, true),
            ("a warning", MemorySample { usage_bytes: 701 * MIB, ..told() }, true, true),
            ("all clear", MemorySample { usage_bytes: 599 * MIB, ..told() }, true, true),
            ("a fuller host", MemorySample { host: Some(0.51), ..told() }, false, true),
            ("a critical host", MemorySample { host: Some(0.85), ..told() }, true, true),
            ("no host", MemorySample { host: None, ..told() }, false, true),
            ("a full cgroup", MemorySample { cgroup: Some(Fill { used: 99, limit: 100 }), ..told() }, true, true),
            ("a starved host", MemorySample { available_bytes: 31 * MIB, ..told() }, true, true),
            ("a worker at its limit", MemorySample { workers: workers(300, 100), ..told() }, false, true),
            ("a worker past its limit", MemorySample { workers: workers(301, 100), ..told() }, true, true),
            ("the other one past it", MemorySample { workers: workers(299, 900), ..told() }, true, true),
            ("a worker less", MemorySample { workers: vec![], ..told() }, false, true),
        ];
        for (what, new, at_once, later) in table {
            let is_news = |ago| is_news(&told(), ago, &new, &settings(), &limits);
            assert_eq!(is_news(Duration::ZERO), at_once, "{what}, at once");
            assert_eq!(is_news(AT_MOST_EVERY), later, "{what}, after a while");
            assert!(is_news(AT_LEAST_EVERY), "{what}, after long");
        }
    }
}
