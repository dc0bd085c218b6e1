//! How much memory a task of each agent needs, learned from what was seen: a task starts only where it fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Core;
use super::event::{Action, Record};
use super::governor::Level;
use super::ids::{AgentName, WorkerId};
use super::settings::AgentSettings;

/// A smaller peak pulls the learned one down by this share of the difference: one light task proves little.
const DECAY: u64 = 8;

/// A change by less than one part in so many is not worth a record.
const RECORD_STEP: u64 = 20;

/// Peak memory by agent, in bytes.
#[derive(Debug, Default)]
pub struct Footprints {
    peaks: BTreeMap<AgentName, Learned>,
}

#[derive(Debug, Clone, Copy)]
struct Learned {
    peak: u64,
    recorded: u64,
}

impl Footprints {
    /// 0 for an agent that was never seen.
    pub fn peak(&self, agent: &str) -> u64 {
        self.peaks.get(agent).map_or(0, |learned| learned.peak)
    }

    pub fn restore(&mut self, agent: AgentName, peak: u64) {
        self.peaks.insert(agent, Learned { peak, recorded: peak });
    }

    /// The new figure if it has changed enough to be remembered through a restart.
    pub fn learn(&mut self, agent: &AgentName, peak: u64) -> Option<u64> {
        if peak == 0 {
            return None;
        }
        let learned = self.peaks.entry(agent.clone()).or_insert(Learned { peak: 0, recorded: 0 });
        learned.peak = if peak >= learned.peak { peak } else { learned.peak - (learned.peak - peak) / DECAY };
        if learned.peak.abs_diff(learned.recorded) <= learned.recorded / RECORD_STEP {
            return None;
        }
        learned.recorded = learned.peak;
        Some(learned.peak)
    }

    pub fn retain(&mut self, is_configured: impl Fn(&AgentName) -> bool) {
        self.peaks.retain(|agent, _| is_configured(agent));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&AgentName, u64)> {
        self.peaks.iter().map(|(agent, learned)| (agent, learned.peak))
    }
}

impl Core {
    /// A persistent worker's task has ended.
    pub(super) fn learn_footprint_of(&mut self, id: WorkerId) {
        if let Some(mut worker) = self.pool.remove(id) {
            self.learn_footprint(&mut worker, 0);
            self.pool.put_back(id, worker);
        }
    }

    /// A worker's task has ended, or the worker itself.
    pub(super) fn learn_footprint(&mut self, worker: &mut super::pool::Worker, exit_peak: u64) {
        let peak = worker.peak_rss_bytes.max(exit_peak);
        worker.peak_rss_bytes = worker.rss_bytes.unwrap_or(0);
        let agent = worker.agent.name.clone();
        if let Some(peak_bytes) = self.footprints.learn(&agent, peak) {
            self.actions.push(Action::Record(Record::Footprint { agent, peak_bytes }));
        }
    }

    /// Whether a task of this agent fits under the reject line, beside what the running ones may still grow to. The
    /// `idle` worker it would run on holds part of it already.
    pub(super) fn fits(&self, agent: &Arc<AgentSettings>, idle: Option<WorkerId>) -> bool {
        let Some((_, sample)) = self.governor.sample() else { return true };
        let held = idle.and_then(|id| self.pool.get(id)).and_then(|worker| worker.rss_bytes).unwrap_or(0);
        let needed = self.footprints.peak(&agent.name).max(held) - held;
        let promised: u64 = self
            .pool
            .iter()
            .filter(|(_, worker)| worker.task().is_some() || worker.is_starting())
            .map(|(_, worker)| self.footprints.peak(&worker.agent.name).saturating_sub(worker.rss_bytes.unwrap_or(0)))
            .sum();
        let more = needed + promised;
        let settings = &self.settings.memory;
        let line = Level::Reject.begins_at(settings).unwrap_or(1.0);
        let budget_has_room =
            !sample.budget_counts || (sample.usage_bytes + more) as f64 <= line * settings.limit_bytes as f64;
        let used = sample.total_bytes.saturating_sub(sample.available_bytes);
        let host_has_room = sample.host.is_none() || (used + more) as f64 <= line * sample.total_bytes as f64;
        let floor_holds =
            sample.total_bytes == 0 || sample.available_bytes.saturating_sub(more) >= settings.min_free_bytes;
        budget_has_room && host_has_room && floor_holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_peak_counts_at_once_and_a_smaller_one_slowly() {
        let agent: AgentName = AgentName::from("a");
        let mut footprints = Footprints::default();
        assert_eq!(footprints.learn(&agent, 0), None, "nothing was seen");
        assert_eq!(footprints.learn(&agent, 800), Some(800));
        assert_eq!(footprints.learn(&agent, 790), None, "hardly a change");
        assert_eq!(footprints.learn(&agent, 1600), Some(1600));
        assert_eq!(footprints.learn(&agent, 800), Some(1500));
        assert_eq!(footprints.peak("a"), 1500);
        assert_eq!(footprints.peak("b"), 0);
    }
}
