//! Sanity of whole simulations: what more workers, less memory, leaks and crashes bring about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::figures::Figures;
use super::load::{Load, Phase, Spread, Work};
use super::run::{Monitor, simulate};
use crate::core::settings::Settings;
use crate::core::task::Priority;

const MIB: f64 = (1 << 20) as f64;

fn work() -> Work {
    Work {
        share: 1,
        run: Spread::Uniform { min: 1.0, max: 5.0 },
        peak: Spread::Fixed(100.0 * MIB),
        idle: Spread::Fixed(10.0 * MIB),
        ready: Spread::Fixed(0.2),
        leak: 0.0,
        crash: 0.0,
        gives_checkpoints: true,
        max_retries: None,
    }
}

fn load(submitters: u64, interval_s: f64, work: Work) -> Load {
    let phase = Phase {
        name: "one".to_string(),
        duration: Duration::from_secs(300),
        submitters,
        interval: Duration::from_secs_f64(interval_s),
        priorities: [0, 1, 4, 1, 0],
        retries: 0,
        outside_bytes: 0,
    };
    Load { phases: vec![phase], agents: BTreeMap::from([(Arc::from("a"), work)]), host_bytes: None }
}

fn settings(limit_mb: u64, workers: usize, mode: &str) -> Settings {
    let text = format!(
        "[memory]\nlimit_mb = {limit_mb}\n[queue]\nmax_depth = 20\npriority_limits = {{ low = 20, normal = 20, high = 20 }}\n\
         [workers]\nmax = {workers}\nmax_restarts_per_hour = 3600\n[agents.a]\ncommand = [\"a\"]\nmode = \"{mode}\"\nmax_retries = 3\n"
    );
    let loaded = crate::config::parse(&text, "test", [], None).expect("a sound configuration");
    crate::daemon::settings::settings(&loaded.config)
}

fn run(settings: Settings, load: &Load, seed: u64) -> Figures {
    let monitor = Monitor { interval: Duration::from_secs(1), watches_budget: true, watches_host: true };
    let figures = simulate(settings, monitor, load, seed);
    let total = figures.total();
    assert_eq!(total.submitted, total.accepted + total.refused);
    assert_eq!(total.accepted, total.completed + total.failed + total.evicted, "everything ends: {figures:?}");
    let mut phases = super::figures::Counts::default();
    figures.phases.iter().for_each(|counts| phases.add(counts));
    assert_eq!(phases, total, "phases and agents are two views of the same");
    figures
}

#[test]
fn a_load_that_fits_is_all_done_at_once() {
    for mode in ["oneshot", "persistent"] {
        let figures = run(settings(1024, 2, mode), &load(1, 30.0, work()), 1);
        assert_eq!((figures.total().accepted, figures.total().completed), (10, 10), "{mode}");
        assert_eq!((figures.incidents, figures.kills.len()), (0, 0), "{mode}");
        assert!(figures.waits.percentile(100) <= Some(Duration::from_millis(200)), "{mode}: {:?}", figures.waits);
        let runs = [0, 100].map(|percent| figures.runs.percentile(percent).expect("runs").as_secs_f64());
        assert!(runs[0] >= 1.0 && runs[1] <= 5.2, "{mode}: {runs:?}");
        assert!((100..115).contains(&(figures.peak_bytes >> 20)), "{mode}: {}", figures.peak_bytes);
    }
}

#[test]
fn a_seed_gives_the_same_figures_and_another_gives_others() {
    let load = load(5, 2.0, Work { crash: 0.1, ..work() });
    let run = |seed| run(settings(512, 2, "persistent"), &load, seed);
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn more_workers_refuse_no_more() {
    let load = load(10, 4.0, work());
    let refused = [1, 2, 4, 8].map(|workers| run(settings(4096, workers, "oneshot"), &load, 3).total().refused);
    assert!(refused.is_sorted_by(|few, many| few >= many), "{refused:?}");
    assert!(refused[0] > refused[2] && refused[3] < 10, "{refused:?}");
}

#[test]
fn a_tighter_limit_makes_tasks_wait_for_memory() {
    let load = load(4, 3.0, work());
    let waits = [2048, 512, 256].map(|limit| {
        let figures = run(settings(limit, 6, "oneshot"), &load, 3);
        figures.waits.percentile(95).expect("waits")
    });
    assert!(waits.is_sorted() && waits[0] < waits[2], "{waits:?}");
}

#[test]
fn tasks_larger_than_their_limit_are_killed_for_it() {
    let figures =
        run(settings(4096, 2, "oneshot"), &load(1, 30.0, Work { peak: Spread::Fixed(600.0 * MIB), ..work() }), 1);
    let total = figures.total();
    assert_eq!((total.completed, total.failed), (0, total.accepted));
    assert_eq!(figures.kills.keys().copied().collect::<Vec<_>>(), ["worker_oom"]);
    assert!(figures.peak_bytes >> 20 < 560, "stopped soon after 512: {}", figures.peak_bytes >> 20);
    assert_eq!(total.killed, 3 * total.failed, "two more tries each");
}

#[test]
fn pressure_from_outside_sheds_and_passes() {
    let mut load = load(4, 4.0, Work { run: Spread::Fixed(20.0), ..work() });
    load.host_bytes = Some(1 << 30);
    load.phases.push(Phase { name: "squeezed".to_string(), outside_bytes: 540 << 20, ..load.phases[0].clone() });
    load.phases.push(Phase { name: "after".to_string(), ..load.phases[0].clone() });
    let figures = run(settings(4096, 4, "persistent"), &load, 5);
    assert!(figures.incidents > 0 && figures.total().preempted > 0, "{figures:?}");
    let [before, squeezed, after] = [0, 1, 2].map(|phase| figures.phases[phase].completed);
    assert!(squeezed < before && after >= squeezed, "{before}, {squeezed}, {after}");
}

#[test]
fn a_leaking_worker_is_replaced_before_it_costs_a_task() {
    let leaking = Work { leak: 4.0 * MIB, run: Spread::Fixed(5.0), ..work() };
    let figures = run(settings(1024, 2, "persistent"), &load(1, 6.0, leaking), 1);
    assert_eq!((figures.total().failed, figures.total().killed), (0, 0));
    assert!(figures.worker_starts > 2, "{}", figures.worker_starts);
    assert!(figures.peak_bytes >> 20 < 420, "{}", figures.peak_bytes >> 20);
}

#[test]
fn crashes_are_tried_again_and_refused_submissions_too() {
    let mut load = load(3, 6.0, Work { crash: 0.2, ..work() });
    let impatient = run(settings(4096, 1, "oneshot"), &load, 2);
    assert!(impatient.total().retried > 0 && impatient.total().refused > 0, "{:?}", impatient.total());
    load.phases[0].retries = 100;
    let patient = run(settings(4096, 1, "oneshot"), &load, 2);
    assert!(patient.total().refused < impatient.total().refused, "{:?}", patient.total());
    assert!(patient.refusals.values().sum::<u64>() > patient.total().refused);
}

#[test]
fn what_a_priority_asks_for_is_what_it_gets() {
    let mut load = load(10, 2.0, work());
    load.phases[0].priorities = [1, 0, 0, 0, 0];
    let critical = run(settings(4096, 2, "oneshot"), &load, 2);
    assert_eq!(critical.refusals.keys().copied().collect::<Vec<_>>(), ["priority_full"]);
    assert_eq!(Priority::ALL.len(), load.phases[0].priorities.len());
}
