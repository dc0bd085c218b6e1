//! Where the scheduler writes how the daemon is, for those who ask often: `/health` without a way through its queue.
//!
//! A seqlock of atomics: one writer, no reader ever waits. What is here is a copy of the core's state as of the last
//! event, made before anybody was told of that event. It is good for a moment only, so that a scheduler that hangs is found
//! out by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::core::governor::Level;
use crate::core::view::HealthView;

/// How long a copy may stand for the scheduler's own answer.
const GOOD_FOR: Duration = Duration::from_millis(100);

const WORDS: usize = 10;

/// Stands for figures that the system does not tell.
const UNKNOWN: u64 = u64::MAX;

/// Empty while there is more to say than that work is taken: then the scheduler is to be asked.
#[derive(Debug, Default)]
pub struct HealthBoard {
    /// Odd while it is being written.
    version: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl HealthBoard {
    /// By the scheduler alone. With the free bytes of the disk, if they are known.
    pub(super) fn publish(&self, now: Duration, health: Option<&(HealthView, Option<u64>)>) {
        let words = health.and_then(|(health, free_bytes)| encode(now, health, *free_bytes)).unwrap_or_default();
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // INVARIANT: the odd version is seen before any of the words, and all of them before the even one.
        fence(Ordering::Release);
        for (place, word) in self.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// `None`: ask the scheduler.
    pub fn read(&self, now: Duration) -> Option<(HealthView, Option<u64>)> {
        let before = self.version.load(Ordering::Acquire);
        let mut words = [0; WORDS];
        for (word, place) in words.iter_mut().zip(&self.words) {
            *word = place.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        let is_whole = before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before;
        if is_whole { decode(now, words) } else { None }
    }
}

/// A copy that was not made since the start has the moment 0, and level 0 is none.
fn encode(now: Duration, health: &HealthView, free_bytes: Option<u64>) -> Option<[u64; WORDS]> {
    if health.is_draining {
        return None;
    }
    let level = match health.level {
        Level::Normal => 1,
        Level::Warning => 2,
        Level::Critical => 3,
        Level::Reject | Level::Emergency => return None,
    };
    Some([
        now.as_micros() as u64,
        level,
        health.pressure.to_bits(),
        health.queue_depth as u64,
        health.queue_max_depth as u64,
        health.workers_active as u64,
        health.workers_idle as u64,
        health.workers_max as u64,
        health.breakers_open as u64,
        free_bytes.unwrap_or(UNKNOWN),
    ])
}

fn decode(now: Duration, words: [u64; WORDS]) -> Option<(HealthView, Option<u64>)> {
    let [at, level, pressure, depth, max_depth, active, idle, max, open, free_bytes] = words;
    let level = match level {
        1 => Level::Normal,
        2 => Level::Warning,
        3 => Level::Critical,
        _ => return None,
    };
    let count = |word: u64| usize::try_from(word).unwrap_or(usize::MAX);
    let view = || HealthView {
        is_draining: false,
        level,
        is_governed: true,
        pressure: f64::from_bits(pressure),
        queue_depth: count(depth),
        queue_max_depth: count(max_depth),
        workers_active: count(active),
        workers_idle: count(idle),
        workers_max: count(max),
        breakers_open: count(open),
        retry_after: Duration::ZERO,
    };
    let is_new = now.saturating_sub(Duration::from_micros(at)) < GOOD_FOR;
    is_new.then(|| (view(), (free_bytes != UNKNOWN).then_some(free_bytes)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn health(number: usize) -> HealthView {
        HealthView {
            is_draining: false,
            level: Level::Warning,
            is_governed: true,
            pressure: number as f64,
            queue_depth: number,
            queue_max_depth: number,
            workers_active: number,
            workers_idle: number,
            workers_max: number,
            breakers_open: number,
            retry_after: Duration::ZERO,
        }
    }

    #[test]
    fn a_copy_is_as_it_was_written_and_good_for_a_moment() {
        let (board, at) = (HealthBoard::default(), Duration::from_secs(7));
        assert_eq!(board.read(Duration::ZERO), None, "nothing was written");
        for free_bytes in [Some(7), None] {
            board.publish(at, Some(&(health(3), free_bytes)));
            assert_eq!(board.read(at), Some((health(3), free_bytes)));
        }
        assert_eq!(board.read(at + GOOD_FOR), None, "too old");
        board.publish(at, None);
        assert_eq!(board.read(at), None);
    }

    #[test]
    fn what_refuses_work_is_told_by_the_scheduler() {
        let (board, at) = (HealthBoard::default(), Duration::from_secs(7));
        for refusing in [
            HealthView { is_draining: true, ..health(1) },
            HealthView { level: Level::Reject, ..health(1) },
            HealthView { level: Level::Emergency, ..health(1) },
        ] {
            board.publish(at, Some(&(refusing, None)));
            assert_eq!(board.read(at), None, "{refusing:?}");
        }
    }

    #[test]
    fn a_reader_never_sees_half_of_two_copies() {
        let (board, is_over) = (Arc::new(HealthBoard::default()), Arc::new(AtomicBool::new(false)));
        let reader = {
            let (board, is_over) = (board.clone(), is_over.clone());
            move || {
                let mut seen = 0;
                while !is_over.load(Ordering::Relaxed) || seen == 0 {
                    if let Some((view, _)) = board.read(Duration::ZERO) {
                        assert_eq!(view, health(view.queue_depth));
                        seen += 1;
                    }
                }
            }
        };
        let reader = std::thread::Builder::new().spawn(reader).expect("a thread starts");
        for number in 0..200_000 {
            board.publish(Duration::ZERO, Some(&(health(number), None)));
        }
        is_over.store(true, Ordering::Relaxed);
        reader.join().expect("the reader saw nothing odd");
    }
}
