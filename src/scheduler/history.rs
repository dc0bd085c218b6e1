//! How high the pressure on memory was in the last minutes: the peak of each slot of time, for people to look at. No
//! rule uses it.

use std::collections::VecDeque;
use std::time::Duration;

/// Short enough that a spike has its place, long enough that the minutes cost a few hundred bytes.
pub const SLOT: Duration = Duration::from_secs(2);
/// Ten minutes.
pub const SLOTS: usize = 300;

/// Thousandths of the limit, oldest first; the last is that of the slot under way. At most [`SLOTS`], fewer in the
/// first minutes, none before the first reading.
pub type Peaks = Vec<u16>;

#[derive(Debug, Default)]
pub struct History {
    peaks: VecDeque<u16>,
    /// Of the last peak, counted from the daemon's start.
    slot: u64,
    /// What a slot without a reading of its own has: readings are rarer while nothing is near its limit.
    last: u16,
}

impl History {
    pub fn note(&mut self, at: Duration, pressure: f64) {
        // A cast of a float ends at the type's bounds.
        let reading = (pressure * 1000.0).round() as u16;
        let slot = slot(at);
        if self.peaks.is_empty() {
            // Why at once: it would grow to twice the size on its way.
            self.peaks = VecDeque::with_capacity(SLOTS);
            self.peaks.push_back(reading);
        } else if slot == self.slot {
            let peak = self.peaks.back_mut().expect("it is not empty");
            *peak = reading.max(*peak);
        } else {
            for _ in 0..self.missing(slot).saturating_sub(1) {
                self.push(self.last);
            }
            self.push(reading);
        }
        (self.slot, self.last) = (slot, reading);
    }

    pub fn peaks(&self, at: Duration) -> Peaks {
        if self.peaks.is_empty() {
            return Vec::new();
        }
        let missing = self.missing(slot(at));
        let too_old = (self.peaks.len() + missing).saturating_sub(SLOTS);
        let known = self.peaks.iter().copied().skip(too_old);
        known.chain(std::iter::repeat_n(self.last, missing)).collect()
    }

    /// Slots since the last peak, at most all there are.
    fn missing(&self, slot: u64) -> usize {
        slot.saturating_sub(self.slot).min(SLOTS as u64) as usize
    }

    fn push(&mut self, peak: u16) {
        if self.peaks.len() == SLOTS {
            self.peaks.pop_front();
        }
        self.peaks.push_back(peak);
    }
}

fn slot(at: Duration) -> u64 {
    at.as_secs() / SLOT.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_slot_keeps_its_peak_and_one_without_a_reading_the_last_there_was() {
        let mut history = History::default();
        assert!(history.peaks(ms(9000)).is_empty(), "before the first reading");
        for (at, pressure) in [(1000, 0.3), (1500, 0.914), (1900, 0.4), (2100, 0.2), (8200, 0.5)] {
            history.note(ms(at), pressure);
        }
        assert_eq!(history.peaks(ms(9999)), [914, 200, 200, 200, 500]);
        assert_eq!(history.peaks(ms(12_000)), [914, 200, 200, 200, 500, 500, 500], "nothing was read since");
    }

    #[test]
    fn it_goes_back_ten_minutes_and_no_further() {
        let mut history = History::default();
        for second in 0..5000 {
            history.note(Duration::from_secs(second), second as f64 / 1000.0);
        }
        let peaks = history.peaks(Duration::from_secs(4999));
        assert_eq!((peaks.len(), peaks.first(), peaks.last()), (SLOTS, Some(&4401), Some(&4999)));
        assert_eq!(peaks.len() as u64 * SLOT.as_secs(), 600);
        assert_eq!(history.peaks(Duration::from_secs(5007))[..2], [4409, 4411], "time goes on without readings");
        assert_eq!(history.peaks(Duration::from_secs(1_000_000)), [4999; SLOTS]);
        history.note(Duration::from_secs(2_000_000), 70_000.0);
        assert_eq!(history.peaks(Duration::from_secs(2_000_000))[SLOTS - 2..], [4999, u16::MAX]);
        assert_eq!(history.peaks.len(), SLOTS);
    }

    #[test]
    fn it_costs_a_few_hundred_bytes() {
        let mut history = History::default();
        for second in 0..5000 {
            history.note(Duration::from_secs(second), 0.5);
        }
        assert!(history.peaks.capacity() * size_of::<u16>() <= 2048, "{}", history.peaks.capacity());
    }
}
