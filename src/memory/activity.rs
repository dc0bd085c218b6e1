//! Whether a worker is at work, told to the monitor for the price of two atomic operations a task.
//!
//! A worker without a task is read seldom, so the monitor must hear of a task. It need not hear of each: only the first one
//! after it had looked and found the worker idle rings its bell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::sys::eventfd::EventFd;

/// Shared by the scheduler, which alone writes the turns, and the monitor.
#[derive(Debug)]
pub struct Activity {
    /// Odd: at work. It changes at every beginning and every end.
    turns: AtomicU64,
    /// The monitor reads this worker often already.
    is_attended: AtomicBool,
    bell: Arc<EventFd>,
}

impl Activity {
    pub(super) fn new(bell: Arc<EventFd>) -> Activity {
        Activity { turns: AtomicU64::new(0), is_attended: AtomicBool::new(false), bell }
    }

    pub fn begin(&self) {
        if self.turns.load(Ordering::Relaxed).is_multiple_of(2) {
            // INVARIANT: before the look at the flag; `is_idle` writes the flag before it looks at this.
            self.turns.fetch_add(1, Ordering::SeqCst);
        }
        if !self.is_attended.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    pub fn end(&self) {
        if !self.turns.load(Ordering::Relaxed).is_multiple_of(2) {
            self.turns.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Has been at work since the last look, which saw `seen`, or is. The next [`Activity::begin`] after a `false` rings.
    pub(super) fn look(&self, seen: &mut u64) -> bool {
        let turns = self.turns.load(Ordering::SeqCst);
        let mut is_busy = turns != *seen || !turns.is_multiple_of(2);
        *seen = turns;
        if !is_busy {
            self.is_attended.store(false, Ordering::SeqCst);
            *seen = self.turns.load(Ordering::SeqCst);
            is_busy = *seen != turns;
        }
        if is_busy {
            self.is_attended.store(true, Ordering::SeqCst);
        }
        is_busy
    }

    /// Something began since the last look.
    pub(super) fn has_changed(&self, seen: u64) -> bool {
        self.turns.load(Ordering::SeqCst) != seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll::PollSet;
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn has_rung(bell: &EventFd) -> bool {
        let mut set = PollSet::default();
        let place = set.readable(Some(bell.as_fd()));
        set.wait(Some(Duration::ZERO)).unwrap();
        bell.hear();
        set.is_ready(place)
    }

    #[test]
    fn only_the_first_task_after_a_look_at_an_idle_worker_rings() {
        let bell = Arc::new(EventFd::new().unwrap());
        let activity = Activity::new(Arc::clone(&bell));
        let mut seen = 0;
        assert!(!activity.look(&mut seen), "it has not begun");
        activity.begin();
        assert!(has_rung(&bell), "the first task");
        for _ in 0..3 {
            activity.end();
            activity.begin();
        }
        activity.end();
        assert!(!has_rung(&bell), "the monitor attends already");
        assert!(activity.look(&mut seen), "it worked since the last look");
        activity.begin();
        assert!(!has_rung(&bell), "still attended");
        assert!(activity.look(&mut seen), "a task is running");
        assert!(activity.look(&mut seen), "and goes on running");
        activity.end();
        assert!(activity.look(&mut seen) && !activity.look(&mut seen), "idle since the last look");
        activity.begin();
        assert!(has_rung(&bell) && activity.has_changed(seen));
    }
}
