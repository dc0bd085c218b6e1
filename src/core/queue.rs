//! Who is waiting, in which order. Strict priority, first in first out within a level; a task that ran before
//! (preempted, or to be tried again) waits beside the queue and goes before the queued ones of its level.

use std::collections::VecDeque;

use super::ids::TaskId;
use super::task::Priority;

#[derive(Debug, Default)]
pub struct Queue {
    levels: [Level; Priority::COUNT],
}

#[derive(Debug, Default)]
struct Level {
    /// Oldest acceptance first. Each has held a worker, and may pause while another task has it: as many as may wait, and
    /// a worker's each on top.
    returned: VecDeque<TaskId>,
    queued: VecDeque<TaskId>,
}

/// A place in the order of service; valid until the queue changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    level: usize,
    index: usize,
}

impl Queue {
    /// Tasks accepted and never started: what `max_depth` bounds.
    pub fn depth(&self) -> usize {
        self.levels.iter().map(|level| level.queued.len()).sum()
    }

    pub fn parked(&self) -> usize {
        self.levels.iter().map(|level| level.returned.len()).sum()
    }

    /// Everything that waits, for admission.
    pub fn waiting(&self) -> usize {
        self.depth() + self.parked()
    }

    pub fn waiting_at(&self, priority: Priority) -> usize {
        let level = &self.levels[priority.index()];
        level.returned.len() + level.queued.len()
    }

    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.returned.is_empty() && level.queued.is_empty())
    }

    pub fn push(&mut self, priority: Priority, task: TaskId) {
        self.levels[priority.index()].queued.push_back(task);
    }

    /// `is_older(other)`: `task` was accepted before `other`.
    pub fn put_back(&mut self, priority: Priority, task: TaskId, is_older: impl Fn(TaskId) -> bool) {
        let returned = &mut self.levels[priority.index()].returned;
        let index = returned.iter().position(|other| is_older(*other)).unwrap_or(returned.len());
        returned.insert(index, task);
    }

    pub fn remove(&mut self, priority: Priority, task: TaskId) -> bool {
        let level = &mut self.levels[priority.index()];
        for list in [&mut level.returned, &mut level.queued] {
            if let Some(index) = list.iter().position(|other| *other == task) {
                list.remove(index);
                return true;
            }
        }
        false
    }

    /// In the order of service.
    pub fn iter(&self) -> impl Iterator<Item = TaskId> {
        self.levels.iter().flat_map(|level| level.returned.iter().chain(&level.queued)).copied()
    }

    /// Those that ran before.
    pub fn returned(&self) -> impl Iterator<Item = TaskId> {
        self.levels.iter().flat_map(|level| &level.returned).copied()
    }

    /// Queued at this level, the youngest first.
    pub fn youngest_queued(&self, priority: Priority) -> impl Iterator<Item = TaskId> {
        self.levels[priority.index()].queued.iter().rev().copied()
    }

    pub fn first(&self) -> Place {
        Place { level: 0, index: 0 }
    }

    /// The task at a place, or at the first place after it that has one.
    pub fn at(&self, mut place: Place) -> Option<(Place, TaskId)> {
        loop {
            let level = self.levels.get(place.level)?;
            let task = level.returned.get(place.index).or_else(|| level.queued.get(place.index - level.returned.len()));
            match task {
                Some(task) => return Some((place, *task)),
                None => place = Place { level: place.level + 1, index: 0 },
            }
        }
    }

    pub fn after(&self, place: Place) -> Place {
        Place { index: place.index + 1, ..place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(queue: &Queue) -> Vec<u64> {
        queue.iter().map(|task| task.0).collect()
    }

    #[test]
    fn critical_goes_before_heartbeat_and_older_before_younger() {
        let mut queue = Queue::default();
        for (priority, task) in [
            (Priority::Heartbeat, 1),
            (Priority::Low, 2),
            (Priority::Critical, 3),
            (Priority::Low, 4),
            (Priority::Critical, 5),
        ] {
            queue.push(priority, TaskId(task));
        }
        assert_eq!(order(&queue), [3, 5, 2, 4, 1]);
    }

    #[test]
    fn a_returned_task_goes_before_the_queued_ones_of_its_level_and_no_other() {
        let mut queue = Queue::default();
        queue.push(Priority::High, TaskId(4));
        queue.push(Priority::Normal, TaskId(5));
        queue.put_back(Priority::Normal, TaskId(3), |other| 3 < other.0);
        queue.put_back(Priority::Normal, TaskId(2), |other| 2 < other.0);
        assert_eq!(order(&queue), [4, 2, 3, 5]);
        assert_eq!((queue.depth(), queue.parked(), queue.waiting()), (2, 2, 4));
    }

    #[test]
    fn places_walk_the_same_order() {
        let mut queue = Queue::default();
        queue.push(Priority::Heartbeat, TaskId(1));
        queue.push(Priority::Critical, TaskId(2));
        queue.put_back(Priority::Critical, TaskId(3), |_| false);
        let mut seen = Vec::new();
        let mut place = queue.first();
        while let Some((here, task)) = queue.at(place) {
            seen.push(task.0);
            place = queue.after(here);
        }
        assert_eq!(seen, order(&queue));
    }
}
