//! Counters of what happened, and their text for Prometheus.
//!
//! May import std, core's types and what `sys` reads of this process. Must never know policy: it counts what it is told.

mod exposition;
mod http;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::core::breaker::BreakerState;
use crate::core::governor::Level;
use crate::core::notice::{ExitReason, Notice};
use crate::core::task::{FailureCode, Priority};

pub use exposition::exposition;
pub use http::{HttpMetrics, Route};

/// Upper bounds in seconds, from a no-op to the longest task a configuration may allow.
pub const TASK_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0];

/// What happened since the start; owned by the scheduler, copied for a scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    agents: BTreeMap<Arc<str>, AgentMetrics>,
    rejected: BTreeMap<&'static str, u64>,
    preempted: u64,
    killed: u64,
    evicted: u64,
    retried: u64,
    heartbeats_skipped: u64,
    recovery_actions: BTreeMap<&'static str, u64>,
    memory_samples: u64,
    crossings: BTreeMap<(Level, Direction), u64>,
    transitions: BTreeMap<(Arc<str>, &'static str), u64>,
    reloads: [u64; 2],
    storage_free_bytes: Option<u64>,
    is_storage_ok: bool,
    /// By kind.
    damaged: Vec<(&'static str, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Up,
    Down,
}

#[derive(Debug, Clone, Default)]
struct AgentMetrics {
    accepted: [u64; Priority::COUNT],
    completed: u64,
    failed: BTreeMap<FailureCode, u64>,
    spawns: u64,
    exits: BTreeMap<ExitReason, u64>,
    run_seconds: Histogram<{ TASK_BUCKETS.len() }>,
    wait_seconds: Histogram<{ TASK_BUCKETS.len() }>,
}

#[derive(Debug, Clone, Copy)]
struct Histogram<const N: usize> {
    /// Observations in each bucket alone, and above the last.
    counts: [u64; N],
    above: u64,
    sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Histogram { counts: [0; N], above: 0, sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    fn observe(&mut self, bounds: &[f64; N], value: Duration) {
        let seconds = value.as_secs_f64();
        self.sum += seconds;
        match bounds.iter().position(|bound| seconds <= *bound) {
            Some(bucket) => self.counts[bucket] += 1,
            None => self.above += 1,
        }
    }
}

impl Metrics {
    /// Agents show zeros from the start: an alert on a series that is not there yet never fires.
    pub fn know_agents<'a>(&mut self, agents: impl Iterator<Item = &'a Arc<str>>) {
        for agent in agents {
            self.agents.entry(agent.clone()).or_default();
        }
    }

    pub fn note_sample(&mut self) {
        self.memory_samples += 1;
    }

    /// `damaged`: what was found so since the start, by kind.
    pub fn note_storage(
        &mut self,
        free_bytes: Option<u64>,
        is_ok: bool,
        damaged: impl Iterator<Item = (&'static str, u64)>,
    ) {
        (self.storage_free_bytes, self.is_storage_ok) = (free_bytes, is_ok);
        self.damaged.clear();
        self.damaged.extend(damaged);
    }

    pub fn note_reload(&mut self, worked: bool) {
        self.reloads[usize::from(worked)] += 1;
    }

    pub fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::TaskAccepted { agent, priority, .. } => self.agent(agent).accepted[priority.index()] += 1,
            Notice::TaskRejected { code, .. } => *self.rejected.entry(code).or_default() += 1,
            Notice::TaskStarted { agent, waited, .. } => {
                self.agent(agent).wait_seconds.observe(&TASK_BUCKETS, *waited);
            }
            Notice::TaskCompleted { agent, run_time, .. } => {
                let agent = self.agent(agent);
                agent.completed += 1;
                agent.run_seconds.observe(&TASK_BUCKETS, *run_time);
            }
            Notice::TaskFailed { agent, code, run_time, .. } => {
                let agent = self.agent(agent);
                *agent.failed.entry(*code).or_default() += 1;
                if let Some(run_time) = run_time {
                    agent.run_seconds.observe(&TASK_BUCKETS, *run_time);
                }
            }
            Notice::TaskRetried { .. } => self.retried += 1,
            Notice::TaskPreempted { .. } => self.preempted += 1,
            Notice::TaskEvicted { .. } => self.evicted += 1,
            Notice::TaskKilled { .. } => self.killed += 1,
            Notice::HeartbeatSkipped { .. } => self.heartbeats_skipped += 1,
            Notice::WorkerSpawned { agent, .. } => self.agent(agent).spawns += 1,
            Notice::WorkerExited { agent, reason, .. } => *self.agent(agent).exits.entry(*reason).or_default() += 1,
            Notice::MemoryAction { action, .. } => *self.recovery_actions.entry(action).or_default() += 1,
            Notice::Circuit { breaker, to, .. } => {
                *self.transitions.entry((breaker.clone(), to.name())).or_default() += 1;
            }
            Notice::MemoryLevel { from, to, .. } => self.note_crossings(*from, *to),
            Notice::TaskProgress { .. }
            | Notice::TaskWaiting { .. }
            | Notice::TaskCancelled { .. }
            | Notice::WorkerKilled { .. }
            | Notice::WorkerSoftLimit { .. }
            | Notice::StorageFull { .. }
            | Notice::StorageCleared { .. }
            | Notice::ConfigReloaded { .. }
            | Notice::ConfigRejected { .. }
            | Notice::AgentUnavailable { .. } => {}
        }
    }

    /// A jump over several thresholds crosses each of them.
    fn note_crossings(&mut self, from: Level, to: Level) {
        let (low, high, direction) = if from < to { (from, to, Direction::Up) } else { (to, from, Direction::Down) };
        for level in Level::ALL.into_iter().filter(|level| *level > low && *level <= high) {
            *self.crossings.entry((level, direction)).or_default() += 1;
        }
    }

    fn agent(&mut self, name: &Arc<str>) -> &mut AgentMetrics {
        if !self.agents.contains_key(name) {
            self.agents.insert(name.clone(), AgentMetrics::default());
        }
        self.agents.get_mut(name).expect("inserted above")
    }
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
        }
    }
}

fn state_value(state: BreakerState) -> u64 {
    match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        BreakerState::Open => 2,
    }
}
