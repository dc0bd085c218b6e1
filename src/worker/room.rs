//! What all workers share: where results go, what time it is, who hears the reports.

use std::time::Duration;

use crossbeam::channel::{SendTimeoutError, Sender};

use crate::core::ids::WorkerId;
use crate::core::order::{Report, WorkerReport};
use crate::memory::cgroup::Cgroups;
use crate::spool::Files;
use crate::sys::clock::Clock;
use crate::sys::mark;

/// One read takes at most this. The buffer is shared: only one worker is read at a time.
const READ_BYTES: usize = 16 * 1024;

pub struct Room {
    pub files: Files,
    pub result_max_bytes: u64,
    pub instance: mark::Instance,
    pub cgroups: Cgroups,
    pub clock: Clock,
    /// The time of this turn of the loop.
    pub now: Duration,
    pub scratch: Box<[u8]>,
    pub reports_tx: Sender<WorkerReport>,
    /// When everything must be over; nobody may be listening any more.
    pub stop_by: Option<Duration>,
    /// Nobody hears reports: there is no scheduler, so there is nothing to do but to stop.
    pub is_unheard: bool,
}

impl Room {
    pub fn new(
        files: Files,
        result_max_bytes: u64,
        instance: mark::Instance,
        cgroups: Cgroups,
        clock: Clock,
        reports_tx: Sender<WorkerReport>,
    ) -> Room {
        Room {
            files,
            result_max_bytes,
            instance,
            cgroups,
            clock,
            now: clock.now(),
            scratch: vec![0; READ_BYTES].into_boxed_slice(),
            reports_tx,
            stop_by: None,
            is_unheard: false,
        }
    }

    /// Blocks while the scheduler is behind: its workers wait in their pipes then. No cycle, since the scheduler never
    /// waits for us.
    pub fn report(&mut self, worker: WorkerId, report: Report) {
        if self.is_unheard {
            return;
        }
        let report = WorkerReport { worker, report };
        self.is_unheard = match self.stop_by {
            None => self.reports_tx.send(report).is_err(),
            Some(stop_by) => match self.reports_tx.send_timeout(report, stop_by.saturating_sub(self.clock.now())) {
                Ok(()) => false,
                Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Disconnected(_)) => true,
            },
        };
    }
}
