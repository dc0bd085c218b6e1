//! How long things take, learned from what was seen: the basis of an honest Retry-After.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ids::AgentName;

/// Weight of the newest of an agent's run times in its mean: ten runs and an old habit is forgotten.
const NEWEST: f64 = 0.2;

#[derive(Debug, Default)]
pub struct RunTimes {
    means: BTreeMap<AgentName, Duration>,
}

impl RunTimes {
    pub fn learn(&mut self, agent: &AgentName, run_time: Duration) {
        match self.means.get_mut(agent) {
            Some(mean) => *mean = mean.mul_f64(1.0 - NEWEST) + run_time.mul_f64(NEWEST),
            None => {
                self.means.insert(agent.clone(), run_time);
            }
        }
    }

    /// How much longer a task that has run for `elapsed` will run. Without experience, or past it: as long again.
    pub fn remaining(&self, agent: &AgentName, elapsed: Duration) -> Duration {
        match self.means.get(agent) {
            Some(mean) if *mean > elapsed => *mean - elapsed,
            Some(_) | None => elapsed,
        }
    }

    pub fn mean(&self, agent: &AgentName) -> Option<Duration> {
        self.means.get(agent).copied()
    }

    pub fn retain(&mut self, is_configured: impl Fn(&AgentName) -> bool) {
        self.means.retain(|agent, _| is_configured(agent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_the_mean_less_the_elapsed_or_as_long_again() {
        let agent: AgentName = AgentName::from("a");
        let mut times = RunTimes::default();
        assert_eq!(times.remaining(&agent, Duration::from_secs(7)), Duration::from_secs(7));
        times.learn(&agent, Duration::from_secs(10));
        assert_eq!(times.remaining(&agent, Duration::from_secs(7)), Duration::from_secs(3));
        assert_eq!(times.remaining(&agent, Duration::from_secs(30)), Duration::from_secs(30));
        times.learn(&agent, Duration::from_secs(20));
        assert_eq!(times.mean(&agent), Some(Duration::from_secs(12)));
    }
}
