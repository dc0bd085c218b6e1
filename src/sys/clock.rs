//! The only place that reads a clock. Everybody else is told the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock, from an origin chosen at start, so that a moment is a plain `Duration`.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Time since the clock was started; never goes back (clock_gettime(2), CLOCK_MONOTONIC).
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The instant of a moment, for a channel's deadline.
    pub fn instant(&self, at: Duration) -> Instant {
        self.origin + at
    }
}

/// Processor time this thread has used: clock_gettime(2), CLOCK_THREAD_CPUTIME_ID.
pub fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is alive and written to. The clock is there since Linux 2.6.12, so the call does not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.unsigned_abs() as u32)
}

/// Milliseconds since 1970-01-01 UTC; 0 if the machine's date is before that.
#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
