//! Which agents may be started: a pause after each failure in a row, and none at all for a while after too many within
//! an hour. Time alone makes an agent available again.

use std::collections::VecDeque;
use std::time::Duration;

use super::settings::WorkerSettings;

const HOUR: Duration = Duration::from_secs(3600);

/// The failures of one agent's processes: crashes, broken protocol, failed spawns. A task that fails in an orderly way
/// is none.
#[derive(Debug, Default)]
pub struct Health {
    failures: VecDeque<Duration>,
    in_a_row: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    Available,
    /// A pause between restarts; submissions are taken and wait.
    BackingOff {
        until: Duration,
    },
    /// Given up for now; submissions are refused.
    Unavailable {
        until: Duration,
        failures: usize,
    },
}

impl Health {
    /// Whether this failure was the one too many.
    pub fn failed(&mut self, now: Duration, settings: &WorkerSettings) -> bool {
        self.forget_old(now);
        let was_over = self.failures.len() > settings.max_restarts_per_hour;
        self.failures.push_back(now);
        self.in_a_row += 1;
        !was_over && self.failures.len() > settings.max_restarts_per_hour
    }

    pub fn worked(&mut self) {
        self.in_a_row = 0;
    }

    /// `max_restarts_per_hour` restarts are allowed, so it takes one failure more than that.
    pub fn availability(&self, now: Duration, settings: &WorkerSettings) -> Availability {
        let recent = self.recent(now);
        if recent > settings.max_restarts_per_hour {
            let frees_up = self.failures.len() - settings.max_restarts_per_hour - 1;
            return Availability::Unavailable { until: self.failures[frees_up] + HOUR, failures: recent };
        }
        let last = self.failures.back().filter(|_| self.in_a_row > 0);
        let until = last.map(|last| *last + backoff(&settings.restart_backoff, self.in_a_row));
        match until {
            Some(until) if until > now => Availability::BackingOff { until },
            Some(_) | None => Availability::Available,
        }
    }

    pub fn recent(&self, now: Duration) -> usize {
        self.failures.iter().filter(|at| **at + HOUR > now).count()
    }

    fn forget_old(&mut self, now: Duration) {
        while self.failures.front().is_some_and(|at| *at + HOUR <= now) {
            self.failures.pop_front();
        }
    }
}

/// The pause after so many failures in a row; the last one repeats.
pub(super) fn backoff(pauses: &[Duration], in_a_row: usize) -> Duration {
    let nth = in_a_row.saturating_sub(1).min(pauses.len().saturating_sub(1));
    pauses.get(nth).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> WorkerSettings {
        WorkerSettings {
            max: 2,
            idle_timeout: Duration::from_secs(300),
            max_task_timeout: Duration::from_secs(1800),
            spawn_timeout: Duration::from_secs(30),
            recycle_after_tasks: 0,
            max_restarts_per_hour: 3,
            restart_backoff: [1, 2, 4].map(Duration::from_secs).to_vec(),
            cancel_grace: Duration::from_secs(5),
            checkpoint_timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn pauses_grow_with_failures_in_a_row_and_end_with_a_success() {
        let mut health = Health::default();
        let now = Duration::from_secs(100);
        for pause in [1, 2, 4].map(Duration::from_secs) {
            health.failed(now, &settings());
            assert_eq!(health.availability(now, &settings()), Availability::BackingOff { until: now + pause });
        }
        health.worked();
        assert_eq!(health.availability(now, &settings()), Availability::Available);
    }

    #[test]
    fn one_failure_more_than_the_allowed_restarts_gives_up_and_time_brings_it_back() {
        let mut health = Health::default();
        for second in 0..3 {
            assert!(!health.failed(Duration::from_secs(second), &settings()), "failure {second}");
        }
        assert!(health.failed(Duration::from_secs(10), &settings()), "the fourth is one too many");
        let until = Duration::from_secs(3600);
        assert_eq!(
            health.availability(Duration::from_secs(11), &settings()),
            Availability::Unavailable { until, failures: 4 }
        );
        assert_eq!(health.availability(until, &settings()), Availability::Available);
    }
}
