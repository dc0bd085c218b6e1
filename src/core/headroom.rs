//! Whether there is memory for one more task: what its agent was seen to need, beside what the running ones may still
//! grow to, under the line where memory would be short.

use std::fmt;

use super::Core;
use super::governor::Level;
use super::ids::WorkerId;
use super::ledger::Task;
use super::settings::AgentSettings;
use super::task::Priority;

const MIB: u64 = 1024 * 1024;

/// Why a task has to wait for memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// What the task needs beyond what its idle worker holds already.
    needed: u64,
    /// What the tasks that run may still grow by.
    promised: u64,
    lack: Lack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// Of what is used, and the line it may be used up to.
    Room {
        source: &'static str,
        used: u64,
        line: u64,
        level: Level,
    },
    MinFree {
        available: u64,
        min_free: u64,
    },
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        match mib(self.needed) {
            0 => write!(f, "what runs may still grow by {} MiB: ", mib(self.promised))?,
            needed => write!(
                f,
                "it may need {needed} MiB, as its agent was seen to, and what runs may still grow by {} MiB: ",
                mib(self.promised)
            )?,
        }
        match self.lack {
            Lack::Room { source, used, line, level } => {
                let level = level.name();
                write!(f, "of the {} MiB of the {source} up to the {level} line, {} are in use", line / MIB, mib(used))
            }
            Lack::MinFree { available, min_free } => write!(
                f,
                "{} MiB are available on the host, and {} of them are to stay free (memory.min_free_mb)",
                available / MIB,
                mib(min_free)
            ),
        }
    }
}

impl Core {
    /// What keeps a task from starting for want of memory; `None`: it fits. The `idle` worker it would run on holds part
    /// of what it needs already.
    pub(super) fn shortage(&self, task: &Task, agent: &AgentSettings, idle: Option<WorkerId>) -> Option<Shortage> {
        let (_, sample) = self.governor.sample()?;
        let held = idle.and_then(|id| self.pool.get(id)).and_then(|worker| worker.rss_bytes).unwrap_or(0);
        let needed = self.footprints.peak(&agent.name).saturating_sub(held);
        let promised = self.promised_bytes();
        let settings = &self.settings.memory;
        let level = line_for(task);
        let share = level.begins_at(settings).unwrap_or(1.0);
        let room = |source, used, limit: u64| {
            let line = (share * limit as f64) as u64;
            (used + needed + promised > line).then_some(Lack::Room { source, used, line, level })
        };
        let budget = sample.budget_counts.then(|| room("budget", sample.usage_bytes, settings.limit_bytes));
        let cgroup = sample.cgroup.map(|fill| room("daemon's own cgroup", fill.used, fill.limit));
        let used = sample.total_bytes.saturating_sub(sample.available_bytes);
        let host = sample.host.map(|_| room("host", used, sample.total_bytes));
        let left = sample.available_bytes.saturating_sub(needed + promised);
        let min_free = (sample.total_bytes > 0 && left < settings.min_free_bytes)
            .then_some(Lack::MinFree { available: sample.available_bytes, min_free: settings.min_free_bytes });
        let lack = [budget, cgroup, host].into_iter().flatten().flatten().next().or(min_free)?;
        Some(Shortage { needed, promised, lack })
    }

    /// What the workers with a task, or about to get one, may still grow by.
    fn promised_bytes(&self) -> u64 {
        let growing = self.pool.iter().filter(|(_, worker)| worker.task().is_some() || worker.is_starting());
        growing
            .map(|(_, worker)| self.footprints.peak(&worker.agent.name).saturating_sub(worker.rss_bytes.unwrap_or(0)))
            .sum()
    }
}

/// The level that a task must not bring about. One that memory has stopped before would be stopped again at critical, with
/// all it had done since then for nothing.
fn line_for(task: &Task) -> Level {
    if task.was_stopped_by_memory && task.spec.priority != Priority::Critical { Level::Critical } else { Level::Reject }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_says_what_is_needed_and_what_there_is() {
        let of = |lack| Shortage { needed: 300 * MIB, promised: 40 * MIB, lack }.to_string();
        let room = Lack::Room { source: "budget", used: 700 * MIB, line: 921 * MIB, level: Level::Reject };
        assert_eq!(
            of(room),
            "it may need 300 MiB, as its agent was seen to, and what runs may still grow by 40 MiB: of the 921 MiB of \
             the budget up to the reject line, 700 are in use"
        );
        let min_free = Lack::MinFree { available: 350 * MIB, min_free: 32 * MIB };
        assert!(
            of(min_free)
                .ends_with("350 MiB are available on the host, and 32 of them are to stay free (memory.min_free_mb)")
        );
    }
}
