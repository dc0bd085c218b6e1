//! What a simulated daemon has to do: phases of submissions, and what the tasks of each agent take.

use std::collections::BTreeMap;
use std::time::Duration;

use super::dice::Dice;
use crate::core::ids::AgentName;
use crate::core::task::Priority;

#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    pub phases: Vec<Phase>,
    /// Every agent that gets tasks, from submitters or schedules.
    pub agents: BTreeMap<AgentName, Work>,
    /// Memory of the host; `None`: the host's memory is not looked at.
    pub host_bytes: Option<u64>,
}

/// A stretch of time with the same demand.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    pub name: String,
    pub duration: Duration,
    /// How many submit, each at its own interval.
    pub submitters: u64,
    pub interval: Duration,
    /// How often each priority is asked for, in proportion.
    pub priorities: [u64; Priority::COUNT],
    /// How often a refused submission is tried again, after the time the daemon asks for.
    pub retries: u32,
    /// What others take of the host's memory.
    pub outside_bytes: u64,
}

/// What one agent's tasks take.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// How many of the submissions are for it, in proportion.
    pub share: u64,
    /// Seconds a task runs.
    pub run: Spread,
    /// Bytes its process holds at most, program and all.
    pub peak: Spread,
    /// Bytes its process holds without a task.
    pub idle: Spread,
    /// Seconds from the start of a process to its readiness.
    pub ready: Spread,
    /// Bytes a second of work that a process never gives back.
    pub leak: f64,
    /// Probability that a run ends in a crash.
    pub crash: f64,
    pub gives_checkpoints: bool,
    /// `None`: as the agent's configuration says.
    pub max_retries: Option<u32>,
}

/// How a quantity is spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spread {
    Fixed(f64),
    Uniform { min: f64, max: f64 },
    Normal { p50: f64, p95: f64 },
    LogNormal { p50: f64, p95: f64 },
}

/// The standard normal distribution's 95th percentile.
const Z95: f64 = 1.644_853_626_951_472_7;

impl Spread {
    /// Never below 0.
    pub fn draw(self, dice: &mut Dice) -> f64 {
        match self {
            Spread::Fixed(value) => value,
            Spread::Uniform { min, max } => min + (max - min) * dice.share(),
            Spread::Normal { p50, p95 } => (p50 + (p95 - p50) / Z95 * dice.normal()).max(0.0),
            Spread::LogNormal { p50, p95 } => p50 * ((p95 / p50).ln() / Z95 * dice.normal()).exp(),
        }
    }

    pub fn scaled(self, by: f64) -> Spread {
        match self {
            Spread::Fixed(value) => Spread::Fixed(value * by),
            Spread::Uniform { min, max } => Spread::Uniform { min: min * by, max: max * by },
            Spread::Normal { p50, p95 } => Spread::Normal { p50: p50 * by, p95: p95 * by },
            Spread::LogNormal { p50, p95 } => Spread::LogNormal { p50: p50 * by, p95: p95 * by },
        }
    }
}

impl Load {
    pub fn duration(&self) -> Duration {
        self.phases.iter().map(|phase| phase.duration).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_percentiles_it_was_given() {
        for (spread, p50, p95) in [
            (Spread::Fixed(4.0), 4.0, 4.0),
            (Spread::Uniform { min: 0.0, max: 100.0 }, 50.0, 95.0),
            (Spread::Normal { p50: 10.0, p95: 12.0 }, 10.0, 12.0),
            (Spread::LogNormal { p50: 2.0, p95: 8.0 }, 2.0, 8.0),
            (Spread::LogNormal { p50: 2.0, p95: 8.0 }.scaled(10.0), 20.0, 80.0),
        ] {
            let mut dice = Dice::new(3);
            let mut drawn: Vec<f64> = (0..20_001).map(|_| spread.draw(&mut dice)).collect();
            drawn.sort_by(f64::total_cmp);
            assert!(drawn[0] >= 0.0);
            for (at, expected) in [(10_000, p50), (19_000, p95)] {
                let found = drawn[at];
                assert!((found / expected - 1.0).abs() < 0.05, "{spread:?} has {found} at {at}");
            }
        }
    }
}
