//! Beats that are due by the clock. Missed ones are not made up for: only the newest due beat is ever kept.

use std::sync::Arc;
use std::time::Duration;

use super::settings::ScheduleSettings;

#[derive(Debug)]
pub struct Schedule {
    pub settings: Arc<ScheduleSettings>,
    next_at: Duration,
    skipped_in_a_row: u32,
    skipped: u64,
    is_forced: bool,
}

impl Schedule {
    /// The first beat is due one period from now.
    pub fn new(settings: Arc<ScheduleSettings>, now: Duration) -> Self {
        let next_at = now + settings.every;
        Schedule { settings, next_at, skipped_in_a_row: 0, skipped: 0, is_forced: false }
    }

    /// The same schedule under new settings; a shorter period takes effect at once.
    pub fn reconfigure(&mut self, settings: Arc<ScheduleSettings>, now: Duration) {
        self.next_at = self.next_at.min(now + settings.every);
        self.settings = settings;
    }

    pub fn next_at(&self) -> Duration {
        self.next_at
    }

    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Whether a beat is due; moves on to the next one, which is always in the future.
    pub fn take_due(&mut self, now: Duration) -> bool {
        if now < self.next_at {
            return false;
        }
        self.next_at += self.settings.every;
        if self.next_at <= now {
            self.next_at = now + self.settings.every;
        }
        true
    }

    /// Whether a skippable beat may be skipped once more; after `max_skips` in a row one runs all the same.
    pub fn may_skip(&self) -> bool {
        self.settings.skippable && self.skipped_in_a_row < self.settings.max_skips
    }

    pub fn note_skip(&mut self) {
        self.skipped_in_a_row = self.skipped_in_a_row.saturating_add(1);
        self.skipped += 1;
    }

    pub fn note_beat(&mut self) {
        self.skipped_in_a_row = 0;
        self.is_forced = false;
    }

    /// A beat after `max_skips`: it runs though memory is short.
    pub fn note_forced_beat(&mut self) {
        self.note_beat();
        self.is_forced = true;
    }

    /// Whether the last beat given out was one after `max_skips`.
    pub fn is_forced(&self) -> bool {
        self.is_forced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::task::Priority;

    fn every(seconds: u64) -> Arc<ScheduleSettings> {
        Arc::new(ScheduleSettings {
            name: Arc::from("beat"),
            agent: Arc::from("heartbeat"),
            every: Duration::from_secs(seconds),
            priority: Priority::Heartbeat,
            skippable: true,
            max_skips: 2,
            payload: Arc::from(*b"{}"),
        })
    }

    #[test]
    fn a_long_pause_gives_one_beat_and_the_next_a_period_later() {
        let mut schedule = Schedule::new(every(10), Duration::ZERO);
        assert!(!schedule.take_due(Duration::from_secs(9)));
        assert!(schedule.take_due(Duration::from_secs(10)));
        assert_eq!(schedule.next_at(), Duration::from_secs(20));
        assert!(schedule.take_due(Duration::from_secs(95)));
        assert!(!schedule.take_due(Duration::from_secs(95)));
        assert_eq!(schedule.next_at(), Duration::from_secs(105));
    }

    #[test]
    fn after_max_skips_one_beat_runs_all_the_same() {
        let mut schedule = Schedule::new(every(10), Duration::ZERO);
        for _ in 0..2 {
            assert!(schedule.may_skip());
            schedule.note_skip();
        }
        assert!(!schedule.may_skip());
        schedule.note_beat();
        assert!(schedule.may_skip());
        assert_eq!(schedule.skipped(), 2);
    }
}
