//! How much memory a task of each agent needs, learned from what was seen.

use std::collections::BTreeMap;

use super::Core;
use super::event::{Action, Record};
use super::ids::{AgentName, WorkerId};
use super::order::Exit;
use super::pool::Worker;
use super::settings::AgentMode;

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

    /// The new figure if it has changed enough to be remembered through a restart. `is_whole`: of a task that came to
    /// its end; a smaller peak of one that did not says nothing.
    pub fn learn(&mut self, agent: &AgentName, peak: u64, is_whole: bool) -> Option<u64> {
        if peak == 0 {
            return None;
        }
        let learned = self.peaks.entry(agent.clone()).or_insert(Learned { peak: 0, recorded: 0 });
        if peak >= learned.peak {
            learned.peak = peak;
        } else if is_whole {
            learned.peak -= (learned.peak - peak) / DECAY;
        }
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
    /// A persistent worker has let go of its task; `is_whole`: having finished it.
    pub(super) fn learn_footprint_of(&mut self, id: WorkerId, is_whole: bool) {
        let Some(worker) = self.pool.get_mut(id) else { return };
        let (agent, peak) = (worker.agent.name.clone(), worker.take_peak());
        self.learn_footprint(agent, peak, is_whole);
    }

    /// A worker has ended. The peak of the task it ended with; `None`: it had none, or nothing was seen.
    pub(super) fn learn_from_exit(&mut self, worker: &mut Worker, exit: &Exit) -> Option<u64> {
        worker.task()?;
        // Why: the kernel's figure is of the whole life of the process; tasks before this one have been learned from.
        let of_life = if worker.tasks_done == 0 { exit.peak_rss_bytes } else { 0 };
        let peak = worker.take_peak().max(of_life);
        let is_whole = worker.agent.mode == AgentMode::Oneshot && exit.status == Some(0);
        self.learn_footprint(worker.agent.name.clone(), peak, is_whole);
        (peak > 0).then_some(peak)
    }

    fn learn_footprint(&mut self, agent: AgentName, peak: u64, is_whole: bool) {
        if !self.settings.agents.contains_key(&agent) {
            return;
        }
        if let Some(peak_bytes) = self.footprints.learn(&agent, peak, is_whole) {
            self.actions.push(Action::Record(Record::Footprint { agent, peak_bytes }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_peak_counts_at_once_and_a_smaller_one_slowly() {
        let agent: AgentName = AgentName::from("a");
        let mut footprints = Footprints::default();
        assert_eq!(footprints.learn(&agent, 0, true), None, "nothing was seen");
        assert_eq!(footprints.learn(&agent, 800, true), Some(800));
        assert_eq!(footprints.learn(&agent, 790, true), None, "hardly a change");
        assert_eq!(footprints.learn(&agent, 1600, false), Some(1600));
        assert_eq!(footprints.learn(&agent, 100, false), None, "it was stopped on its way");
        assert_eq!(footprints.learn(&agent, 800, true), Some(1500));
        assert_eq!(footprints.peak("a"), 1500);
        assert_eq!(footprints.peak("b"), 0);
    }
}
