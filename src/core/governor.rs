//! How full the memory is, as a level with hysteresis. The ladder of actions hangs on the level.

use std::time::Duration;

use super::event::Now;
use super::ids::{IncidentId, WorkerId};
use super::settings::MemorySettings;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Normal,
    Warning,
    Critical,
    Reject,
    Emergency,
}

impl Level {
    pub const ALL: [Level; 5] = [Level::Normal, Level::Warning, Level::Critical, Level::Reject, Level::Emergency];

    pub fn name(self) -> &'static str {
        match self {
            Level::Normal => "normal",
            Level::Warning => "warning",
            Level::Critical => "critical",
            Level::Reject => "reject",
            Level::Emergency => "emergency",
        }
    }
}

/// One reading of the host and the workers, in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemorySample {
    /// Daemon and worker trees together: what `limit_mb` bounds.
    pub usage_bytes: u64,
    pub daemon_rss_bytes: u64,
    /// The daemon's heap: what is in use, and what is taken from the system; 0 where the allocator does not tell.
    pub daemon_heap_used_bytes: u64,
    pub daemon_heap_total_bytes: u64,
    /// Resident memory of each worker's whole tree.
    pub workers: Vec<(WorkerId, u64)>,
    pub total_bytes: u64,
    /// MemAvailable of /proc/meminfo (proc(5)).
    pub available_bytes: u64,
    /// SwapFree of /proc/meminfo; 0 without swap.
    pub swap_free_bytes: u64,
    /// Ratios of the configured sources other than the budget, which follows from `usage_bytes`; `None`: there is no such source here.
    pub cgroup: Option<f64>,
    pub host: Option<f64>,
    pub budget_counts: bool,
}

#[derive(Debug, Default)]
pub struct Governor {
    level: Option<Level>,
    incident: Option<IncidentId>,
    incidents: u64,
    sample: Option<(Now, MemorySample)>,
}

/// A change of level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    pub from: Level,
    pub to: Level,
    pub incident: IncidentId,
}

impl Governor {
    pub fn level(&self) -> Level {
        self.level.unwrap_or(Level::Normal)
    }

    pub fn incident(&self) -> Option<IncidentId> {
        self.incident
    }

    pub fn sample(&self) -> Option<&(Now, MemorySample)> {
        self.sample.as_ref()
    }

    /// The highest of the sources, as a ratio; 0 before the first reading.
    pub fn pressure(&self, settings: &MemorySettings) -> f64 {
        self.sample.as_ref().map_or(0.0, |(_, sample)| pressure(sample, settings))
    }

    /// Takes a reading; tells if the level changed. An incident opens at the first crossing and is over at normal.
    pub fn observe(&mut self, now: Now, sample: MemorySample, settings: &MemorySettings) -> Option<Crossing> {
        let from = self.level();
        let mut to = next_level(from, pressure(&sample, settings), settings);
        // Why: a budget may be far from its limit while the host is about to swap or kill.
        if sample.total_bytes > 0 && sample.available_bytes < settings.min_free_bytes {
            to = Level::Emergency;
        }
        self.sample = Some((now, sample));
        self.level = Some(to);
        if to == from {
            return None;
        }
        let incident = self.incident.unwrap_or_else(|| {
            self.incidents += 1;
            IncidentId(self.incidents)
        });
        self.incident = (to != Level::Normal).then_some(incident);
        Some(Crossing { from, to, incident })
    }

    /// How long until the level may have fallen, for somebody who is refused because of it.
    pub fn retry_after(&self, settings: &MemorySettings) -> Duration {
        settings.settle
    }
}

/// The highest of the sources that count.
pub fn pressure(sample: &MemorySample, settings: &MemorySettings) -> f64 {
    let budget = budget(sample, settings).filter(|_| sample.budget_counts);
    [budget, sample.cgroup, sample.host].into_iter().flatten().fold(0.0, f64::max)
}

pub fn budget(sample: &MemorySample, settings: &MemorySettings) -> Option<f64> {
    (settings.limit_bytes > 0).then(|| sample.usage_bytes as f64 / settings.limit_bytes as f64)
}

/// Up at a threshold, down only below the threshold minus the hysteresis: the level does not flap at an edge.
fn next_level(from: Level, pressure: f64, settings: &MemorySettings) -> Level {
    let reached = |margin: f64| settings.thresholds.iter().filter(|threshold| pressure >= **threshold - margin).count();
    let up = Level::ALL[reached(0.0)];
    let down = Level::ALL[reached(settings.hysteresis)];
    if up > from { up } else { down.min(from) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::settings::Mode;

    fn settings() -> MemorySettings {
        MemorySettings {
            mode: Mode::Hard,
            limit_bytes: 1000,
            min_free_bytes: 10,
            thresholds: [0.70, 0.85, 0.90, 0.95],
            hysteresis: 0.10,
            settle: Duration::from_secs(2),
        }
    }

    fn at(usage: u64) -> MemorySample {
        MemorySample {
            usage_bytes: usage,
            total_bytes: 10_000,
            available_bytes: 5_000,
            budget_counts: true,
            ..MemorySample::default()
        }
    }

    const NOW: Now = Now { at: Duration::ZERO, wall_ms: 0 };

    #[test]
    fn levels_begin_at_their_thresholds_and_clear_ten_percent_lower() {
        let mut governor = Governor::default();
        for (usage, level) in [
            (699, Level::Normal),
            (700, Level::Warning),
            (601, Level::Warning),
            (699, Level::Warning),
            (850, Level::Critical),
            (751, Level::Critical),
            (749, Level::Warning),
            (950, Level::Emergency),
            (849, Level::Reject),
            (799, Level::Critical),
            (599, Level::Normal),
        ] {
            governor.observe(NOW, at(usage), &settings());
            assert_eq!(governor.level(), level, "at {usage}");
        }
    }

    #[test]
    fn an_incident_lasts_until_the_level_is_normal_again() {
        let mut governor = Governor::default();
        let crossing = governor.observe(NOW, at(710), &settings()).expect("crossed");
        assert_eq!(crossing.incident, IncidentId(1));
        assert_eq!(governor.observe(NOW, at(960), &settings()).map(|c| c.incident), Some(IncidentId(1)));
        assert_eq!(governor.observe(NOW, at(100), &settings()).map(|c| c.incident), Some(IncidentId(1)));
        assert_eq!(governor.incident(), None);
        assert_eq!(governor.observe(NOW, at(710), &settings()).map(|c| c.incident), Some(IncidentId(2)));
    }

    #[test]
    fn a_host_without_free_memory_is_an_emergency_whatever_the_ratio() {
        let mut governor = Governor::default();
        governor.observe(NOW, MemorySample { available_bytes: 9, ..at(100) }, &settings());
        assert_eq!(governor.level(), Level::Emergency);
    }
}
