//! What is to happen when: virtual time goes from entry to entry, and of one moment the first that was put in is first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

#[derive(Debug)]
pub struct Agenda<T> {
    entries: BinaryHeap<Reverse<Entry<T>>>,
    count: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Duration,
    number: u64,
    what: T,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Agenda { entries: BinaryHeap::new(), count: 0 }
    }
}

impl<T> Agenda<T> {
    pub fn put(&mut self, at: Duration, what: T) {
        self.count += 1;
        self.entries.push(Reverse(Entry { at, number: self.count, what }));
    }

    pub fn next_at(&self) -> Option<Duration> {
        self.entries.peek().map(|Reverse(entry)| entry.at)
    }

    pub fn take(&mut self) -> Option<(Duration, T)> {
        self.entries.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_by_time_and_of_one_moment_in_their_order() {
        let mut agenda = Agenda::default();
        for (second, what) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            agenda.put(Duration::from_secs(second), what);
        }
        assert_eq!(agenda.next_at(), Some(Duration::from_secs(1)));
        let order: String = std::iter::from_fn(|| agenda.take()).map(|(_, what)| what).collect();
        assert_eq!(order, "abcd");
    }
}
