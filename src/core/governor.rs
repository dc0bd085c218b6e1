//! How full the memory is, as a level with hysteresis. The ladder of actions hangs on the level.

use std::time::Duration;

use super::event::Now;
use super::ids::{IncidentId, WorkerId};
use super::settings::MemorySettings;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    #[default]
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

    /// The ratio at which it begins; `None` for normal.
    pub fn begins_at(self, settings: &MemorySettings) -> Option<f64> {
        (self as usize).checked_sub(1).map(|index| settings.thresholds[index])
    }
}

/// One reading of the host and the workers, in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemorySample {
    /// Daemon and worker trees together: what `limit_mb` bounds.
    pub usage_bytes: u64,
    pub daemon: DaemonMemory,
    /// Resident memory of each worker's whole tree.
    pub workers: Vec<(WorkerId, u64)>,
    pub total_bytes: u64,
    /// MemAvailable of /proc/meminfo (proc(5)).
    pub available_bytes: u64,
    /// SwapFree of /proc/meminfo; 0 without swap.
    pub swap_free_bytes: u64,
    /// The configured sources other than the budget, which follows from `usage_bytes`; `None`: there is no such source here.
    pub cgroup: Option<Fill>,
    /// The share of the host's memory that is not available.
    pub host: Option<f64>,
    pub budget_counts: bool,
}

/// The daemon itself, in bytes. Figures of its heap are 0 where the allocator does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DaemonMemory {
    pub rss: u64,
    pub heap_used: u64,
    /// What the heap has from the system.
    pub heap_total: u64,
    /// Blocks beside the heap.
    pub external: u64,
}

/// How full something with a limit is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    pub used: u64,
    pub limit: u64,
}

impl Fill {
    pub fn ratio(self) -> f64 {
        self.used as f64 / self.limit.max(1) as f64
    }
}

#[derive(Debug, Default)]
pub struct Governor {
    level: Level,
    /// How far shedding has gone: follows the level one rung at a time, up and down.
    rung: Level,
    rung_since: Duration,
    /// MemAvailable fell under `min_free_mb` and has not recovered.
    is_starved: bool,
    incident: Option<IncidentId>,
    incidents: u64,
    sample: Option<(Now, MemorySample)>,
    /// Smoothed change of the pressure, per second.
    trend: f64,
    pub(super) shedding: Shedding,
}

/// The one action that is under way, and the pause after it.
#[derive(Debug, Default)]
pub struct Shedding {
    pub action: Option<SheddingAction>,
    pub settle_until: Duration,
    /// The lowest pressure since the last action was over.
    lowest: f64,
    /// Since then the pressure was below an emergency, or has risen again: what was to fall has fallen.
    pub has_turned: bool,
    /// It was said in this incident that the pressure comes from outside.
    pub has_blamed_outside: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SheddingAction {
    Preempting(WorkerId),
    Killing(WorkerId),
}

/// A change of level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    pub from: Level,
    pub to: Level,
    pub incident: IncidentId,
}

/// How long a rung is given to work before the next one, if no reading comes that says more.
const RUNG_PAUSE: Duration = Duration::from_millis(100);

/// A pressure that is this much above its lowest does not fall any more.
const RISING: f64 = 0.01;

/// Readings older than this count for little in the trend.
const TREND_MEMORY: Duration = Duration::from_secs(5);

/// A pressure that falls slower than this, per second, does not fall.
const FALLING: f64 = 0.001;

impl Governor {
    pub fn level(&self) -> Level {
        self.level
    }

    pub fn rung(&self) -> Level {
        self.rung
    }

    /// How far shedding goes now: as far as it has climbed, and never further than the level asks for.
    pub fn sheds_at(&self) -> Level {
        self.rung.min(self.level)
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

    /// What is short, in words: a share, or the host's free memory where that decides.
    pub fn cause(&self, settings: &MemorySettings) -> String {
        const MIB: u64 = 1024 * 1024;
        match &self.sample {
            Some((_, sample)) if self.is_starved => format!(
                "the host has {} MiB of memory available, with memory.min_free_mb = {}",
                sample.available_bytes / MIB,
                settings.min_free_bytes / MIB
            ),
            Some(_) | None => format!("memory is at {:.1} % of its limit", self.pressure(settings) * 100.0),
        }
    }

    /// Takes a reading; tells if the level changed. An incident opens at the first crossing and is over at normal.
    pub fn observe(&mut self, now: Now, sample: MemorySample, settings: &MemorySettings) -> Option<Crossing> {
        let from = self.level;
        let pressure = pressure(&sample, settings);
        self.follow_trend(now, pressure, settings);
        // Why: a budget may be far from its limit while the host is about to swap or kill.
        self.is_starved = is_starved(self.is_starved, &sample, settings);
        let to = if self.is_starved { Level::Emergency } else { next_level(from, pressure, settings) };
        self.sample = Some((now, sample));
        self.level = to;
        let shedding = &mut self.shedding;
        shedding.lowest = shedding.lowest.min(pressure);
        shedding.has_turned |= to < Level::Emergency || pressure > shedding.lowest + RISING;
        if to == from {
            return None;
        }
        let incident = self.incident.unwrap_or_else(|| {
            self.incidents += 1;
            IncidentId(self.incidents)
        });
        self.incident = (to != Level::Normal).then_some(incident);
        if to == Level::Normal {
            self.shedding.has_blamed_outside = false;
        }
        Some(Crossing { from, to, incident })
    }

    /// The last action is over, and memory gets time to fall.
    pub fn begin_to_settle(&mut self, now: Duration, settings: &MemorySettings) {
        self.shedding.action = None;
        self.shedding.settle_until = now + settings.settle;
        (self.shedding.lowest, self.shedding.has_turned) = (f64::INFINITY, false);
    }

    /// Moves shedding one rung towards the level; the new rung if it went up. `has_reading`: a reading has just come,
    /// so that the last rung was seen not to be enough; otherwise it has [`RUNG_PAUSE`] to work.
    pub fn climb(&mut self, now: Duration, has_reading: bool) -> Option<Level> {
        let is_time = has_reading || self.rung_since + RUNG_PAUSE <= now;
        if self.rung == self.level || !is_time {
            return None;
        }
        let is_up = self.rung < self.level;
        let next = self.rung as usize;
        self.rung = Level::ALL[if is_up { next + 1 } else { next - 1 }];
        self.rung_since = now;
        is_up.then_some(self.rung)
    }

    /// When shedding wants to go on though no reading has come.
    pub fn next_deadline(&self) -> Option<Duration> {
        (self.rung != self.level).then_some(self.rung_since + RUNG_PAUSE)
    }

    /// How long until submissions may be taken again: as long as the pressure needs to fall to where the reject line
    /// clears, at the rate at which it falls. One that does not fall gives way when a running task ends, at `next_end`
    /// from now.
    pub fn retry_after(&self, settings: &MemorySettings, next_end: Option<Duration>) -> Duration {
        let [_, _, reject, _] = settings.thresholds;
        let excess = self.pressure(settings) - (reject - settings.hysteresis);
        if self.trend < -FALLING && excess > 0.0 {
            return Duration::try_from_secs_f64(excess / -self.trend).unwrap_or(Duration::MAX);
        }
        next_end.unwrap_or_default().max(settings.settle)
    }

    /// Bytes that would have to be given back to be under the line where `level` begins, if the pressure is the host's
    /// alone; `None` if the daemon's own budget or cgroup is over that line, where its workers are the cause.
    pub fn outside_excess(&self, level: Level, settings: &MemorySettings) -> Option<u64> {
        let (_, sample) = self.sample.as_ref()?;
        let line = level.begins_at(settings)?;
        let budget = budget(sample, settings).filter(|_| sample.budget_counts);
        if [budget, sample.cgroup.map(Fill::ratio)].into_iter().flatten().any(|ratio| ratio >= line) {
            return None;
        }
        let over_line = sample.host.map_or(0.0, |host| (host - line).max(0.0)) * sample.total_bytes as f64;
        let under_floor = settings.min_free_bytes.saturating_sub(sample.available_bytes);
        Some((over_line as u64).max(under_floor))
    }

    fn follow_trend(&mut self, now: Now, pressure: f64, settings: &MemorySettings) {
        let Some((then, old)) = &self.sample else { return };
        let passed = now.at.saturating_sub(then.at).as_secs_f64();
        if passed < 0.001 {
            return;
        }
        let slope = (pressure - self::pressure(old, settings)) / passed;
        let weight = 1.0 - (-passed / TREND_MEMORY.as_secs_f64()).exp();
        self.trend += weight * (slope - self.trend);
    }
}

fn is_starved(was: bool, sample: &MemorySample, settings: &MemorySettings) -> bool {
    if sample.total_bytes == 0 {
        return false;
    }
    let floor = settings.min_free_bytes as f64;
    let clears_at = if was { floor * (1.0 + settings.hysteresis) } else { floor };
    (sample.available_bytes as f64) < clears_at
}

/// The highest of the sources that count.
pub fn pressure(sample: &MemorySample, settings: &MemorySettings) -> f64 {
    let budget = budget(sample, settings).filter(|_| sample.budget_counts);
    [budget, sample.cgroup.map(Fill::ratio), sample.host].into_iter().flatten().fold(0.0, f64::max)
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
