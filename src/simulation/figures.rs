//! What came of a simulated load: counts, times and memory.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::governor::Level;
use crate::core::ids::AgentName;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// From the first submission until everything had ended.
    pub lasted: Duration,
    pub agents: BTreeMap<AgentName, Counts>,
    pub phases: Vec<Counts>,
    /// Every answer that was a refusal, by its code; one submission may have had several.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Tasks that failed, by the code of their failure.
    pub failures: BTreeMap<&'static str, u64>,
    /// Workers killed with a task, by the code.
    pub kills: BTreeMap<&'static str, u64>,
    /// What was done about memory, by its name.
    pub actions: BTreeMap<&'static str, u64>,
    pub worker_starts: u64,
    pub incidents: u64,
    /// From acceptance to the first start.
    pub waits: Times,
    /// Of the runs that completed a task.
    pub runs: Times,
    /// From acceptance to completion.
    pub totals: Times,
    pub peak_bytes: u64,
    pub peak_pressure: f64,
    /// The least memory the host had available; `None`: the host was not looked at.
    pub least_available_bytes: Option<u64>,
    /// Time spent at each level, normal first.
    pub levels: [Duration; Level::ALL.len()],
    pub points: Vec<Point>,
    pub step: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub submitted: u64,
    pub accepted: u64,
    /// Given up: refused as often as was tried.
    pub refused: u64,
    pub completed: u64,
    pub failed: u64,
    pub evicted: u64,
    /// Not over when the simulation was ended.
    pub unfinished: u64,
    /// Tasks of schedules that were accepted, and beats that were skipped.
    pub beats: u64,
    pub skipped: u64,
    /// How often it happened; to one task perhaps more than once.
    pub preempted: u64,
    pub killed: u64,
    pub retried: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        for (own, more) in [
            (&mut self.submitted, other.submitted),
            (&mut self.accepted, other.accepted),
            (&mut self.refused, other.refused),
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.evicted, other.evicted),
            (&mut self.unfinished, other.unfinished),
            (&mut self.beats, other.beats),
            (&mut self.skipped, other.skipped),
            (&mut self.preempted, other.preempted),
            (&mut self.killed, other.killed),
            (&mut self.retried, other.retried),
        ] {
            *own += more;
        }
    }
}

/// How it stood at the end of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub at: Duration,
    /// The most within the step.
    pub usage_bytes: u64,
    /// The most within the step, of the sources that are looked at.
    pub pressure: f64,
    pub level: Level,
    pub workers: usize,
    pub running: usize,
    pub waiting: usize,
    /// So far, in all.
    pub accepted: u64,
    pub refused: u64,
    pub completed: u64,
}

/// A collection of durations, and their percentiles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    micros: Vec<u64>,
    is_sorted: bool,
}

impl Times {
    pub fn note(&mut self, time: Duration) {
        self.micros.push(time.as_micros() as u64);
        self.is_sorted = false;
    }

    pub fn sort(&mut self) {
        self.micros.sort_unstable();
        self.is_sorted = true;
    }

    pub fn count(&self) -> usize {
        self.micros.len()
    }

    /// The smallest that so many percent of all do not exceed; `None` of nothing, and before [`Times::sort`].
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.micros.len() * percent).div_ceil(100).max(1);
        self.micros.get(rank - 1).filter(|_| self.is_sorted).map(|micros| Duration::from_micros(*micros))
    }
}

impl Figures {
    pub fn total(&self) -> Counts {
        let mut total = Counts::default();
        self.agents.values().for_each(|counts| total.add(counts));
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times_by_nearest_rank() {
        let mut times = Times::default();
        assert_eq!(times.percentile(50), None);
        for ms in [15, 20, 35, 40, 50] {
            times.note(Duration::from_millis(ms));
        }
        times.sort();
        for (percent, ms) in [(0, 15), (5, 15), (30, 20), (40, 20), (50, 35), (95, 50), (100, 50)] {
            assert_eq!(times.percentile(percent), Some(Duration::from_millis(ms)), "p{percent}");
        }
    }
}
