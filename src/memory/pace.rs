//! How long until the next reading: a pure function of headroom and growth.
//!
//! After earlyoom's `sleep_time_ms` (rfjakob/earlyoom, main.c): the time the fastest plausible growth needs to use up the
//! smallest headroom. What may be reached first is read first, and what is far or still is left alone.

use std::time::Duration;

/// The fastest a busy worker's memory is taken to grow, in bytes a second: touching fresh pages goes at one to two
/// GiB/s a core. What is seen to grow faster counts as what it is.
pub const PLAUSIBLE_GROWTH: u64 = 2 << 30;

/// What a worker without a task may grow by unseen, in bytes a second: a program's own housekeeping.
pub const IDLE_GROWTH: u64 = 8 << 20;

/// What is seen to grow at least this fast, in bytes a second, is growing: it is watched closely near its hard limit.
const GROWING: u64 = 16 << 20;

/// The leak that has to be caught in time, in bytes a second.
const LEAK: u64 = 1 << 30;

/// Floors of the period. A wake-up from sleep costs 50 to 100 µs, most of it for cold caches, so closeness has its price. A
/// worker that grows is read as often as poll(2) can; it crosses its limit soon or stops. One that stands still may stand
/// there for hours: it is read so often that a leak which begins just then gets 6 MiB over, with time added for what it
/// has left, up to a bound, and where readings are dear.
pub const GROWING_FLOOR: Duration = Duration::from_millis(1);
pub const STILL_FLOOR: Duration = Duration::from_millis(6);
pub const STILL_FLOOR_MOST: Duration = Duration::from_millis(10);
pub const STILL_FLOOR_DEAR: Duration = Duration::from_millis(16);
/// At a hard limit that the kernel holds and a level: what either calls for takes longer than this by itself.
pub const HELD_FLOOR: Duration = Duration::from_millis(20);
pub const LEVEL_FLOOR: Duration = Duration::from_millis(20);
/// At a soft limit, which is only spoken of.
pub const SOFT_FLOOR: Duration = Duration::from_millis(50);

/// The longest period while a level is raised or a soft limit passed and there are workers: what is asked of them is to
/// show soon.
pub const RAISED_CEILING: Duration = Duration::from_millis(250);

/// What watching workers that stand still near their limits may take: one part in this many of a processor, unless readings
/// are so dear that [`STILL_FLOOR_DEAR`] is too often for that.
const STILL_SHARE: u32 = 100;

/// What a turn of the monitor takes of a processor, smoothed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost(Duration);

impl Cost {
    pub fn note(&mut self, turn: Duration) {
        self.0 = (self.0 * 7 + turn) / 8;
    }

    fn still_floor(self) -> Duration {
        (self.0 * STILL_SHARE).clamp(STILL_FLOOR, STILL_FLOOR_DEAR)
    }
}

/// Something that must be noticed when it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Bytes up to it.
    pub headroom: u64,
    /// Bytes a second towards it, at most.
    pub growth: u64,
    pub floor: Duration,
}

/// The time to the next reading: the shortest a line asks for, at most `ceiling`.
pub fn period(lines: impl IntoIterator<Item = Line>, ceiling: Duration) -> Duration {
    let wanted = |line: Line| match line.growth {
        0 => ceiling,
        growth => Duration::from_secs_f64(line.headroom as f64 / growth as f64).max(line.floor),
    };
    lines.into_iter().map(wanted).fold(ceiling, Duration::min)
}

/// A worker's limits, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub soft: u64,
    pub hard: u64,
    /// The kernel holds the hard limit, so that it needs no watch as close.
    pub is_held: bool,
}

/// How fast a worker grows, in bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    pub seen: u64,
    pub plausible: u64,
}

impl Rates {
    pub fn fastest(self) -> u64 {
        self.seen.max(self.plausible)
    }
}

/// What a worker that has `rss` bytes may reach next. A limit that is passed is no line any more.
pub fn worker_lines(rss: u64, limits: Limits, rates: Rates, cost: Cost) -> impl Iterator<Item = Line> {
    let growth = rates.fastest();
    let hard_floor = match limits.is_held {
        true => HELD_FLOOR,
        false if rates.seen >= GROWING => GROWING_FLOOR,
        false => {
            let left = Duration::from_secs_f64(limits.hard.saturating_sub(rss) as f64 / LEAK as f64);
            let floor = cost.still_floor();
            (floor + left).min(STILL_FLOOR_MOST).max(floor)
        }
    };
    let lines = [(limits.soft, SOFT_FLOOR), (limits.hard, hard_floor)];
    lines.into_iter().filter(move |(limit, _)| *limit > 0 && rss <= *limit).map(move |(limit, floor)| Line {
        headroom: limit - rss,
        growth,
        floor,
    })
}

/// The next threshold above `used` of `limit` bytes; `None` past the last one, and without a limit.
pub fn level_line(used: u64, limit: u64, thresholds: &[f64; 4], growth: u64) -> Option<Line> {
    let next = thresholds.iter().map(|threshold| (threshold * limit as f64) as u64).find(|at| used < *at)?;
    Some(Line { headroom: next - used, growth, floor: LEVEL_FLOOR })
}

/// How far what is available is above `min_free` bytes.
pub fn min_free_line(available: u64, min_free: u64, growth: u64) -> Option<Line> {
    (min_free > 0 && available >= min_free).then(|| Line { headroom: available - min_free, growth, floor: LEVEL_FLOOR })
}

/// A rate counts for half after this long. On a machine with work for more processors than it has, a leak stands still for as
/// long as others have their turn, and then goes on as before.
const RATE_HALF_LIFE: Duration = Duration::from_millis(20);

/// How fast something grows, from its readings: the last rate, or what is left of the one before if that is more, so that
/// a pause for breath is not taken for the end. Rare readings halve it at most.
#[derive(Debug, Clone, Copy, Default)]
pub struct Growth {
    last: Option<(Duration, u64)>,
    rate: u64,
}

impl Growth {
    pub fn note(&mut self, now: Duration, bytes: u64) {
        if let Some((at, before)) = self.last {
            let seconds = now.saturating_sub(at).as_secs_f64();
            if seconds <= 0.0 {
                return;
            }
            let rate = (bytes.saturating_sub(before) as f64 / seconds) as u64;
            let halvings = (seconds / RATE_HALF_LIFE.as_secs_f64()).min(1.0);
            self.rate = rate.max((self.rate as f64 * 0.5_f64.powf(halvings)) as u64);
        }
        self.last = Some((now, bytes));
    }

    /// Bytes a second.
    pub fn rate(&self) -> u64 {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const THRESHOLDS: [f64; 4] = [0.70, 0.85, 0.90, 0.95];

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_period_is_the_smallest_headroom_over_the_growth_within_its_bounds() {
        let line = |headroom_mib: u64, growth_mib: u64| Line {
            headroom: headroom_mib * MIB,
            growth: growth_mib * MIB,
            floor: GROWING_FLOOR,
        };
        let table: [(&[Line], Duration, &str); 7] = [
            (&[], ms(1000), "nothing to reach"),
            (&[line(1, 0)], ms(1000), "near, and still"),
            (&[line(200, 2000)], ms(100), "headroom over growth"),
            (&[line(200, 2000), line(20, 2000)], ms(10), "the nearest decides"),
            (&[line(20, 20), line(200, 2000)], ms(100), "not the smallest headroom but the first to be reached"),
            (&[line(1, 2000)], ms(1), "the floor"),
            (&[line(0, 2000)], ms(1), "at the line"),
        ];
        for (lines, expected, what) in table {
            assert_eq!(period(lines.iter().copied(), ms(1000)), expected, "{what}");
        }
        assert_eq!(period([line(9, 1)], ms(1)), ms(1), "the ceiling is above every floor");
    }

    #[test]
    fn a_worker_is_watched_by_what_it_can_reach_and_do() {
        let limits = Limits { soft: 300 * MIB, hard: 512 * MIB, is_held: false };
        let held = Limits { is_held: true, ..limits };
        let far = Limits { soft: 0, hard: 1 << 40, is_held: false };
        let still = |plausible| Rates { seen: 0, plausible };
        let (busy, idle, growing) =
            (still(PLAUSIBLE_GROWTH), still(IDLE_GROWTH), Rates { seen: 1 << 30, plausible: 0 });
        let table = [
            (100, limits, busy, 97, "busy, far below both"),
            (100, limits, idle, 1000, "idle, far below both"),
            (299, limits, busy, 50, "near its soft limit"),
            (301, limits, busy, 103, "past its soft limit only the hard one counts"),
            (512, limits, busy, 6, "still at its hard limit"),
            (510, limits, busy, 7, "still near its hard limit"),
            (500, limits, busy, 10, "still not far from its hard limit"),
            (511, limits, growing, 1, "growing near its hard limit"),
            (412, limits, growing, 97, "growing, and far from it"),
            (510, held, growing, 20, "near a hard limit the kernel holds"),
            (510, limits, idle, 250, "idle near its hard limit"),
            (513, limits, busy, 1000, "past both there is nothing to reach"),
            (100, far, busy, 1000, "a limit beyond all"),
        ];
        for (rss_mib, limits, rates, expected_ms, what) in table {
            let period = period(worker_lines(rss_mib * MIB, limits, rates, Cost::default()), ms(1000));
            assert_eq!(period.as_millis(), expected_ms, "{what}");
        }
    }

    #[test]
    fn the_dearer_a_reading_the_rarer_are_those_of_what_stands_still() {
        let limits = Limits { soft: 0, hard: 512 * MIB, is_held: false };
        let still = Rates { seen: 0, plausible: PLAUSIBLE_GROWTH };
        let growing = Rates { seen: 1 << 30, plausible: 0 };
        for (turn_us, still_ms, growing_ms) in [(20, 6, 1), (60, 6, 1), (80, 8, 1), (500, 16, 1)] {
            let mut cost = Cost::default();
            (0..100).for_each(|_| cost.note(Duration::from_micros(turn_us)));
            let at_limit = |rates| period(worker_lines(512 * MIB, limits, rates, cost), ms(1000));
            assert_eq!(at_limit(still).as_micros().div_ceil(1000), still_ms, "at {turn_us} us a turn");
            assert_eq!(at_limit(growing), ms(growing_ms), "at {turn_us} us a turn, growing");
        }
    }

    #[test]
    fn the_next_level_is_the_nearest_one_above() {
        let headroom = |used| level_line(used, 1000, &THRESHOLDS, 1).map(|line| line.headroom);
        for (used, expected) in [(0, Some(700)), (699, Some(1)), (700, Some(150)), (949, Some(1)), (950, None)] {
            assert_eq!(headroom(used), expected, "at {used}");
        }
        assert_eq!(level_line(5, 0, &THRESHOLDS, 1), None, "no limit, no level");
        assert_eq!(min_free_line(100, 32, 1).map(|line| line.headroom), Some(68));
        assert_eq!(min_free_line(31, 32, 1), None);
        assert_eq!(min_free_line(31, 0, 1), None, "0 is off");
    }

    #[test]
    fn growth_is_seen_at_once_and_forgotten_by_halves() {
        let mut growth = Growth::default();
        let rates = [(0, 50), (100, 150), (200, 150), (300, 150), (400, 40), (400, 900)].map(|(at_ms, bytes)| {
            growth.note(ms(at_ms), bytes);
            growth.rate()
        });
        assert_eq!(rates, [0, 1000, 500, 250, 125, 125]);
    }

    #[test]
    fn a_leak_that_waits_for_a_processor_is_still_taken_for_one() {
        let mut growth = Growth::default();
        growth.note(ms(0), 0);
        growth.note(ms(1), MIB);
        (2..=100).for_each(|at_ms| growth.note(ms(at_ms), MIB));
        assert!(growth.rate() >= GROWING, "after 100 ms: {}", growth.rate());
        (101..=200).for_each(|at_ms| growth.note(ms(at_ms), MIB));
        assert!(growth.rate() < GROWING, "after 200 ms: {}", growth.rate());
    }

    /// The kill comes a reading after the limit is passed: what was added in between is what a leak gets over it.
    #[test]
    fn a_leak_at_one_gib_a_second_is_seen_before_it_is_seven_mib_over() {
        let limits = Limits { soft: 300 * MIB, hard: 300 * MIB, is_held: false };
        for start_mib in [0, 10, 77, 150, 299] {
            let (mut now, mut growth) = (Duration::ZERO, Growth::default());
            let rss = |now: Duration| start_mib * MIB + (now.as_secs_f64() * (1u64 << 30) as f64) as u64;
            let mut readings = 0;
            while rss(now) <= limits.hard {
                growth.note(now, rss(now));
                let rates = Rates { seen: growth.rate(), plausible: PLAUSIBLE_GROWTH };
                now += period(worker_lines(rss(now), limits, rates, Cost::default()), ms(1000));
                readings += 1;
            }
            assert!(rss(now) - limits.hard < 7 * MIB, "from {start_mib} MiB: {} bytes over", rss(now) - limits.hard);
            assert!(readings < 20, "from {start_mib} MiB: {readings} readings");
        }
    }
}
